//! What requests of the kernel mean for a disk, and what its errors are called there.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Instant;

use rustix::io::Errno;
use vhdkit::disk::Pace;
use vhdkit::image::ZeroMode;
use vhdkit::storage::AlignedBuffer;
use vhdkit::{Error, ErrorKind, VirtualDisk};

use super::Watcher;
use super::wire::{IoDescriptor, SECTOR, data_offset};

/// A request and where it came from.
#[derive(Clone, Copy, Debug)]
pub(super) struct Request {
    pub(super) queue: u16,
    pub(super) tag: u16,
    pub(super) descriptor: IoDescriptor,
}

impl Request {
    /// True if all it does is moving bytes, which a disk does from memory if it is lucky.
    pub(super) fn only_moves_bytes(&self) -> bool {
        match self.descriptor.operation() {
            IoDescriptor::READ => true,
            IoDescriptor::WRITE => !self.has(IoDescriptor::FUA),
            _ => false,
        }
    }

    fn has(&self, flag: u32) -> bool {
        self.descriptor.op_flags & flag != 0
    }
}

/// What requests are done with.
pub(super) struct Work {
    pub(super) disk: Arc<VirtualDisk>,
    /// `/dev/ublkcN`, where the data of requests are.
    pub(super) device: File,
    pub(super) pace: Pace,
    /// Hears of everything that fails.
    pub(super) watcher: Watcher,
}

/// Does requests; one for each thread, since it keeps a buffer.
pub(super) struct Performer<'a> {
    work: &'a Work,
    buffer: Option<AlignedBuffer>,
}

impl<'a> Performer<'a> {
    pub(super) fn new(work: &'a Work) -> Self {
        Self { work, buffer: None }
    }

    /// The bytes moved, or a negative error number. A bug in the disk's code is an error of this request alone.
    pub(super) fn run(&mut self, request: &Request) -> i32 {
        let started = Instant::now();
        let result = catch_unwind(AssertUnwindSafe(|| self.perform(request)));
        if request.only_moves_bytes() {
            self.work.pace.note(started.elapsed());
        }
        match result {
            Ok(Ok(bytes)) => i32::try_from(bytes).unwrap_or(i32::MAX),
            Ok(Err(errno)) => -errno.raw_os_error(),
            Err(_) => -Errno::IO.raw_os_error(),
        }
    }

    fn perform(&mut self, request: &Request) -> Result<u64, Errno> {
        let descriptor = &request.descriptor;
        let length = u64::from(descriptor.sectors) * u64::from(SECTOR);
        // A flush has no place, which the kernel writes as the last one there could be.
        let offset = descriptor.start_sector.saturating_mul(SECTOR.into());
        let at = data_offset(request.queue, request.tag);
        let work = self.work;
        let Work { disk, device, .. } = work;
        let failed = |error: Error| {
            (work.watcher)(&error);
            errno(&error)
        };
        match descriptor.operation() {
            IoDescriptor::READ => {
                let buffer = self.buffer(length)?;
                disk.read_at(offset, buffer).map_err(failed)?;
                device.write_all_at(buffer, at).map_err(moved)?;
                Ok(length)
            }
            IoDescriptor::WRITE => {
                let buffer = self.buffer(length)?;
                device.read_exact_at(buffer, at).map_err(moved)?;
                disk.write_at(offset, buffer).map_err(failed)?;
                if request.has(IoDescriptor::FUA) {
                    disk.flush().map_err(failed)?;
                }
                Ok(length)
            }
            IoDescriptor::FLUSH => disk.flush().map(|()| 0).map_err(failed),
            IoDescriptor::DISCARD => {
                let done = disk.discard(offset, length);
                done.map(|()| 0).map_err(failed)
            }
            IoDescriptor::WRITE_ZEROES => {
                let mode = if request.has(IoDescriptor::NO_UNMAP) {
                    ZeroMode::KeepAllocated
                } else {
                    ZeroMode::MayUnmap
                };
                disk.zero(offset, length, mode).map_err(failed)?;
                if request.has(IoDescriptor::FUA) {
                    disk.flush().map_err(failed)?;
                }
                Ok(0)
            }
            _ => Err(Errno::OPNOTSUPP),
        }
    }

    fn buffer(&mut self, length: u64) -> Result<&mut [u8], Errno> {
        let length = usize::try_from(length).map_err(|_| Errno::INVAL)?;
        let buffer = self
            .buffer
            .get_or_insert_with(|| AlignedBuffer::new(super::MAX_IO_BYTES as usize));
        buffer.get_mut(..length).ok_or(Errno::INVAL)
    }
}

/// Fails only if the device is going away.
#[expect(clippy::needless_pass_by_value, reason = "for map_err")]
fn moved(error: io::Error) -> Errno {
    Errno::from_io_error(&error).unwrap_or(Errno::IO)
}

/// What an error of the disk is called. The block layer knows few names; all others are an I/O error there.
fn errno(error: &Error) -> Errno {
    match error.kind() {
        ErrorKind::DiskFull
        | ErrorKind::FileTooLarge
        | ErrorKind::BlockAllocationFailure
        | ErrorKind::HostLimitation => Errno::NOSPC,
        ErrorKind::OutOfMemory => Errno::NOMEM,
        ErrorKind::NotSupported => Errno::OPNOTSUPP,
        _ => Errno::IO,
    }
}
