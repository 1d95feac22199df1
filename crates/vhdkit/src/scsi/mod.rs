//! Floor 2: a disk as a SCSI logical unit: commands in, status and sense data out.
//!
//! [`ScsiTarget`] runs the commands of SPC-4 (what all devices have: INQUIRY, MODE SENSE ...) and SBC-3 (block devices)
//! over a [`VirtualDisk`]. It is a device server without a transport: whoever has one (a raw command of the disk
//! service, a network server) hands over the CDB and the buffer. There is one logical unit, number 0, and no tasks:
//! each command is run by the thread that brings it, any number of them at once.
//!
//! | module | what | standard |
//! |---|---|---|
//! | `sense` | sense data, and what errors are called | SPC-4 4.5 |
//! | `cdb` | fields of a CDB | SPC-4 4.2 |
//! | `commands` | the table of commands, REPORT SUPPORTED OPERATION CODES | SPC-4 6.35 |
//! | `inquiry` | INQUIRY and its vital product data, READ CAPACITY, REPORT LUNS, REQUEST SENSE, TEST UNIT READY | SPC-4 6, 7.8; SBC-3 5, 6.6 |
//! | `mode` | MODE SENSE and MODE SELECT | SPC-4 6.9 to 6.12, 7.5; SBC-3 6.5 |
//! | `transfer` | READ, WRITE, VERIFY, SYNCHRONIZE CACHE, START STOP UNIT | SBC-3 5 |
//! | `provisioning` | UNMAP, WRITE SAME, GET LBA STATUS | SBC-3 4.7, 5 |
//!
//! Rules that hold for every command:
//!
//! - Whether data goes in or out is decided by the operation code ([`Direction::of`]), never by what the caller says.
//! - Answers are cut off at the allocation length and at the end of the buffer, which is no error. Data sent to the disk
//!   that is shorter than the CDB says is refused, and nothing is written.
//! - Reserved bits are not looked at (SPC-4 4.2 leaves that open), bits that ask for something that is not there are
//!   refused, with a pointer to the field.
//! - Memory is bounded by a constant, whatever the CDB says: transfers use the caller's buffer, and the commands that need
//!   one of their own work in pieces.
//! - An optical disc (ISO) is a device of type 5 with the same commands, as far as they only read.

mod cdb;
mod commands;
mod inquiry;
mod mode;
mod provisioning;
mod sense;
mod transfer;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use uuid::Uuid;

use crate::disk::VirtualDisk;
use crate::image::{DiskType, Format, ImageInfo};
use cdb::{Blocks, Cdb};
pub use commands::Direction;
use sense::Failure;
pub use sense::{FIXED_LENGTH, FieldPointer, Sense, SenseKey};

/// How a command ended (SAM-5, section 5.3).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[expect(clippy::exhaustive_enums, reason = "the standard's list")]
pub enum Status {
    /// It worked.
    Good = 0x00,
    /// It did not; the sense data says why.
    CheckCondition = 0x02,
    /// The disk is being changed by an operation: try again later.
    Busy = 0x08,
    /// Another initiator has reserved the disk. Never given by [`ScsiTarget`], which knows only one.
    ReservationConflict = 0x18,
}

/// The buffer of a command.
#[derive(Debug)]
#[expect(clippy::exhaustive_enums, reason = "there is no fourth way")]
pub enum Data<'a> {
    /// There is none.
    None,
    /// For what the disk answers.
    In(&'a mut [u8]),
    /// What is sent to the disk.
    Out(&'a [u8]),
}

/// One command.
#[derive(Debug)]
#[non_exhaustive]
pub struct Command<'a> {
    /// The command descriptor block, of any length.
    pub cdb: &'a [u8],
    /// Its buffer.
    pub data: Data<'a>,
    /// The logical unit that it is for, as the eight bytes of SAM-5 read as a number; 0 is the disk.
    pub lun: u64,
}

impl<'a> Command<'a> {
    /// A command for the disk.
    pub fn new(cdb: &'a [u8], data: Data<'a>) -> Self {
        Self { cdb, data, lun: 0 }
    }

    /// A command without data.
    pub fn without_data(cdb: &'a [u8]) -> Self {
        Self::new(cdb, Data::None)
    }

    /// Addresses another logical unit.
    #[must_use]
    pub fn to_lun(mut self, lun: u64) -> Self {
        self.lun = lun;
        self
    }
}

/// What came of a command.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct Response {
    /// How it ended.
    pub status: Status,
    /// Why, with [`Status::CheckCondition`].
    pub sense: Option<Sense>,
    /// Bytes of the buffer that were filled or used. Zero after a failure, except for a read error: then the bytes before
    /// the bad block are there.
    pub transferred: usize,
    /// Bytes that the command would move with a buffer that is long enough: what transports need to report a residue.
    pub expected: u64,
    /// The sense data goes out in the descriptor format (D_SENSE of the control mode page).
    descriptor: bool,
}

impl Response {
    /// The sense data as bytes, in the format that the initiator has chosen: fixed, 18 bytes, unless it set D_SENSE.
    /// Empty if there is none.
    pub fn sense_bytes(&self) -> Vec<u8> {
        self.sense
            .map_or_else(Vec::new, |sense| sense.bytes(self.descriptor))
    }
}

/// A disk as a SCSI device with one logical unit.
pub struct ScsiTarget {
    disk: Arc<VirtualDisk>,
    identifier: Uuid,
    /// Length of a logical block.
    sector: u64,
    optical: bool,
    state: Mutex<State>,
}

/// What one command leaves for the next.
struct State {
    /// Why the last command failed, for REQUEST SENSE.
    last: Option<Sense>,
    /// D_SENSE.
    descriptor: bool,
    /// Logical blocks that the initiator was told of, or would have been.
    capacity: u64,
}

/// A command that went well.
#[derive(Clone, Copy)]
struct Done {
    transferred: usize,
    expected: u64,
}

impl Done {
    const NOTHING: Done = Done {
        transferred: 0,
        expected: 0,
    };
}

/// A command that did not, and how many bytes are good all the same.
struct Failed {
    failure: Failure,
    transferred: usize,
}

impl<T: Into<Failure>> From<T> for Failed {
    fn from(failure: T) -> Self {
        Self {
            failure: failure.into(),
            transferred: 0,
        }
    }
}

type Outcome = Result<Done, Failed>;

/// A command that was found in the table.
struct Request {
    cdb: Cdb,
    /// It is for a logical unit that does not exist.
    other_unit: bool,
}

impl ScsiTarget {
    /// A disk as a device. Its names come from the disk's identifier; a disk without one gets a random name, since two
    /// disks of one name would be taken for two paths to one disk.
    pub fn new(disk: Arc<VirtualDisk>) -> Self {
        let info = disk.info();
        let sector = u64::from(info.logical_sector_size).max(1);
        let capacity = info.virtual_size / sector;
        Self {
            identifier: info.identifier.unwrap_or_else(Uuid::new_v4),
            sector,
            optical: info.format == Format::Iso,
            state: Mutex::new(State {
                last: None,
                descriptor: false,
                capacity,
            }),
            disk,
        }
    }

    /// Gives the device another name: for disks without an identifier, which have none that lasts.
    #[must_use]
    pub fn with_identifier(mut self, identifier: Uuid) -> Self {
        self.identifier = identifier;
        self
    }

    /// The disk.
    pub fn disk(&self) -> &Arc<VirtualDisk> {
        &self.disk
    }

    /// Runs a command to its end.
    pub fn execute(&self, command: Command<'_>) -> Response {
        let (keeps_sense, outcome) = self.find_and_run(command);
        let (status, sense, done) = match outcome {
            Ok(done) => (Status::Good, None, done),
            Err(Failed {
                failure,
                transferred,
            }) => {
                let done = Done {
                    transferred,
                    expected: transferred as u64,
                };
                match failure {
                    Failure::Check(sense) => (Status::CheckCondition, Some(sense), done),
                    Failure::Busy => (Status::Busy, None, done),
                }
            }
        };
        let mut state = self.state();
        if sense.is_some() || !keeps_sense {
            state.last = sense;
        }
        Response {
            status,
            sense,
            transferred: done.transferred,
            expected: done.expected,
            descriptor: state.descriptor,
        }
    }

    /// The outcome, and whether the command leaves older sense data as it is.
    fn find_and_run(&self, command: Command<'_>) -> (bool, Outcome) {
        let found = match self.find(command.cdb) {
            Ok(found) => found,
            // What is wrong with the unit comes before what is wrong with the command.
            Err(_) if command.lun != 0 => return (false, Err(Sense::NO_SUCH_UNIT.into())),
            Err(sense) => return (false, Err(sense.into())),
        };
        let outcome = Cdb::new(command.cdb, found.length())
            .and_then(|cdb| {
                if !found.always {
                    if command.lun != 0 {
                        return Err(Sense::NO_SUCH_UNIT);
                    }
                    if let Some(attention) = self.attention() {
                        return Err(attention);
                    }
                }
                // NACA asks for an automatic contingent allegiance, which is not there (NORMACA is 0).
                cdb.refuse_bit(found.control_at(), 2)?;
                Ok(cdb)
            })
            .map_err(Failed::from)
            .and_then(|cdb| {
                let request = Request {
                    cdb,
                    other_unit: command.lun != 0,
                };
                (found.run)(self, &request, command.data)
            });
        (found.always, outcome)
    }

    /// Tells once that the disk has another size than before.
    fn attention(&self) -> Option<Sense> {
        let capacity = self.capacity();
        let mut state = self.state();
        (std::mem::replace(&mut state.capacity, capacity) != capacity)
            .then_some(Sense::CAPACITY_CHANGED)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whole logical blocks of the disk.
    fn capacity(&self) -> u64 {
        self.disk.virtual_size() / self.sector
    }

    /// Offset and length in bytes of a run of blocks. An empty run may be right behind the last block.
    fn bytes_of(&self, blocks: Blocks) -> Result<(u64, u64), Sense> {
        let capacity = self.capacity();
        if blocks.lba > capacity || blocks.count > capacity - blocks.lba {
            return Err(Sense::OUT_OF_RANGE);
        }
        Ok((blocks.lba * self.sector, blocks.count * self.sector))
    }

    fn check_writable(&self) -> Result<(), Sense> {
        if self.disk.is_writable() {
            Ok(())
        } else {
            Err(Sense::WRITE_PROTECTED)
        }
    }

    fn flush(&self) -> Result<(), Failure> {
        self.disk.flush().map_err(|e| Failure::of_write(&e))
    }
}

/// True if the disk takes space when it is written to, and can give it back.
fn is_thin(info: &ImageInfo) -> bool {
    matches!(info.disk_type, DiskType::Dynamic | DiskType::Differencing)
}

impl<'a> Data<'a> {
    /// The buffer for an answer.
    fn input(self) -> Result<&'a mut [u8], Sense> {
        match self {
            Data::In(buffer) => Ok(buffer),
            Data::None => Ok(&mut []),
            // The caller sends data with a command that answers.
            Data::Out(_) => Err(Sense::in_cdb(0, None)),
        }
    }

    /// The bytes that were sent; `short` if there are fewer than `length`.
    fn output(self, length: u64, short: Sense) -> Result<&'a [u8], Sense> {
        let sent: &[u8] = match self {
            Data::Out(sent) => sent,
            Data::None => &[],
            Data::In(_) if length == 0 => &[],
            Data::In(_) => return Err(Sense::in_cdb(0, None)),
        };
        usize::try_from(length)
            .ok()
            .and_then(|length| sent.get(..length))
            .ok_or(short)
    }

    /// Puts an answer into the buffer, cut off at the allocation length and at the end of the buffer.
    fn answer(self, answer: &[u8], allocation: u32) -> Outcome {
        let buffer = self.input()?;
        let expected = (answer.len() as u64).min(u64::from(allocation));
        let transferred = buffer.len().min(crate::num::to_usize(expected));
        buffer[..transferred].copy_from_slice(&answer[..transferred]);
        Ok(Done {
            transferred,
            expected,
        })
    }
}
