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

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use vhdkit::disk::Layer;
    use vhdkit::image::{CreateParameters, DiskType, Format, IdentifierSource};
    use vhdkit_testkit::fault::{Call, Fault, FaultStorage};
    use vhdkit_testkit::variant::new_image;

    use super::*;

    const MIB: u64 = 1 << 20;

    /// A dynamic disk with blocks of 1 MiB over storage that counts, and a file in the place of `/dev/ublkcN`.
    struct Bench {
        work: Work,
        storage: Arc<FaultStorage>,
        heard: Arc<Mutex<Vec<ErrorKind>>>,
    }

    impl Bench {
        fn new() -> Self {
            let parameters = CreateParameters {
                format: Format::Vhdx,
                disk_type: DiskType::Dynamic,
                virtual_size: 8 * MIB,
                block_size: Some(MIB),
                logical_sector_size: None,
                physical_sector_size: None,
                identifier: None,
                parent: None,
                identifiers: IdentifierSource::seeded(1),
                created: 0,
            };
            let storage = FaultStorage::new(new_image(&parameters).unwrap());
            let image = vhdkit::disk::open_image(storage.clone(), Format::Vhdx, true).unwrap();
            let layers = vec![Layer::new(image, "disk")];
            let heard = Arc::new(Mutex::new(Vec::new()));
            let ears = heard.clone();
            let work = Work {
                disk: Arc::new(VirtualDisk::from_layers(layers, true).unwrap()),
                device: tempfile::tempfile().unwrap(),
                pace: Pace::default(),
                watcher: Arc::new(move |error| ears.lock().unwrap().push(error.kind())),
            };
            Self {
                work,
                storage,
                heard,
            }
        }

        /// Runs a request for a range in bytes under tag 5 of queue 1.
        fn run(&self, op_flags: u32, offset: u64, length: u64) -> i32 {
            let request = Request {
                queue: 1,
                tag: 5,
                descriptor: IoDescriptor {
                    op_flags,
                    sectors: u32::try_from(length).unwrap() / SECTOR,
                    start_sector: offset / u64::from(SECTOR),
                    address: 0,
                },
            };
            Performer::new(&self.work).run(&request)
        }

        fn write(&self, flags: u32, offset: u64, data: &[u8]) -> i32 {
            self.work
                .device
                .write_all_at(data, data_offset(1, 5))
                .unwrap();
            self.run(IoDescriptor::WRITE | flags, offset, data.len() as u64)
        }

        fn read(&self, offset: u64, length: usize) -> Vec<u8> {
            let told = self.run(IoDescriptor::READ, offset, length as u64);
            assert_eq!(told, i32::try_from(length).unwrap());
            let mut data = vec![0; length];
            self.work
                .device
                .read_exact_at(&mut data, data_offset(1, 5))
                .unwrap();
            data
        }
    }

    #[test]
    fn bytes_go_to_the_disk_and_back_through_the_place_of_their_tag() {
        let bench = Bench::new();
        let data = vec![0xA5; 64 * 1024];
        assert_eq!(bench.write(0, MIB - 4096, &data), 64 * 1024);
        assert_eq!(bench.read(MIB - 4096, data.len()), data);
        let mut on_disk = vec![0; data.len()];
        bench.work.disk.read_at(MIB - 4096, &mut on_disk).unwrap();
        assert_eq!(on_disk, data);
    }

    #[test]
    fn a_flush_and_a_write_with_fua_are_durable_and_a_plain_write_is_not() {
        let bench = Bench::new();
        let flushes = || bench.storage.counts().of(Call::Flush);
        bench.write(0, 0, &[1; 4096]);
        bench.run(IoDescriptor::FLUSH, 0, 0);
        let settled = flushes();
        assert!(settled > 0);
        assert_eq!(bench.write(0, 0, &[2; 4096]), 4096);
        assert_eq!(flushes(), settled);
        assert_eq!(bench.write(IoDescriptor::FUA, 0, &[3; 4096]), 4096);
        let durable = flushes();
        assert!(durable > settled);
        // The kernel gives a flush the last sector that there could be.
        bench.write(0, 0, &[4; 4096]);
        let flush = IoDescriptor {
            op_flags: IoDescriptor::FLUSH,
            sectors: 0,
            start_sector: u64::MAX,
            address: 0,
        };
        let request = Request {
            queue: 0,
            tag: 0,
            descriptor: flush,
        };
        assert_eq!(Performer::new(&bench.work).run(&request), 0);
        assert!(flushes() > durable);
    }

    #[test]
    fn zeroing_keeps_or_frees_space_as_it_is_told_and_discarding_frees_it() {
        const PIECE: u64 = 256 * 1024;
        const THREE: usize = 3 * 256 * 1024;
        let bench = Bench::new();
        let count = |call| bench.storage.counts().of(call);
        let kept_or_freed = || {
            (
                count(Call::ZeroRange) + count(Call::Allocate),
                count(Call::PunchHole),
            )
        };
        let run = |op_flags, offset, length| {
            let before = kept_or_freed();
            assert_eq!(bench.run(op_flags, offset, length), 0);
            let after = kept_or_freed();
            (after.0 > before.0, after.1 > before.1)
        };
        bench.write(0, 0, &vec![7; 1 << 20]);
        let keep = IoDescriptor::WRITE_ZEROES | IoDescriptor::NO_UNMAP;
        assert_eq!(run(keep, 0, PIECE), (true, false));
        assert_eq!(run(keep, 2 * MIB, MIB), (true, false));
        assert_eq!(run(IoDescriptor::WRITE_ZEROES, PIECE, PIECE), (false, true));
        assert_eq!(run(IoDescriptor::DISCARD, 2 * PIECE, PIECE), (false, true));
        assert_eq!(bench.read(0, THREE), vec![0; THREE]);
        assert_eq!(bench.read(3 * PIECE, 4096), [7; 4096]);
        // A whole block leaves the disk.
        assert_eq!(bench.run(IoDescriptor::DISCARD, 0, MIB), 0);
        assert_eq!(bench.work.disk.map(0, MIB).unwrap().data, None);
    }

    #[test]
    fn what_fails_has_a_number_of_its_own_and_is_heard_of() {
        let bench = Bench::new();
        bench.write(0, 0, &[1; 4096]);
        bench
            .storage
            .fail_once(&[Call::Read], 0, Fault::InputOutput);
        assert_eq!(bench.run(IoDescriptor::READ, 0, 4096), -5);
        assert_eq!(bench.run(IoDescriptor::READ, 8 * MIB, 4096), -5);
        let no_such_thing = 200;
        assert_eq!(bench.run(no_such_thing, 0, 4096), -95);
        // Larger than the kernel was told to send.
        assert_eq!(bench.run(IoDescriptor::READ, 0, 2 * MIB), -22);
        assert_eq!(
            *bench.heard.lock().unwrap(),
            [ErrorKind::ReadFault, ErrorKind::BeyondEnd]
        );
    }

    #[test]
    fn a_full_file_system_is_called_so() {
        let full = Error::new(ErrorKind::DiskFull, "no space");
        assert_eq!(errno(&full), Errno::NOSPC);
        for &kind in ErrorKind::ALL {
            assert!(errno(&Error::new(kind, "x")).raw_os_error() > 0);
        }
    }

    #[test]
    fn only_bytes_that_need_not_be_durable_are_quick() {
        let quick = |op_flags| {
            Request {
                queue: 0,
                tag: 0,
                descriptor: IoDescriptor {
                    op_flags,
                    ..IoDescriptor::default()
                },
            }
            .only_moves_bytes()
        };
        assert!(quick(IoDescriptor::READ) && quick(IoDescriptor::WRITE));
        assert!(!quick(IoDescriptor::WRITE | IoDescriptor::FUA));
        assert!(!quick(IoDescriptor::FLUSH) && !quick(IoDescriptor::WRITE_ZEROES));
    }
}
