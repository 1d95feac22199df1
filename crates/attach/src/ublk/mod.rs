//! A disk as a Linux block device of its own kind, served by this process through ublk (`/dev/ublkbN`).
//!
//! Shorter than FUSE and a loop device: requests come from the block layer as they are, with flushes, FUA, discards and
//! both kinds of zeroing told apart, and the kernel reads the partition table. Needs the driver `ublk_drv` of Linux 6.5
//! or later, loaded, and root.
//!
//! When the serving process ends, however it does, the kernel removes the block device at once and fails what is
//! underway and all that comes with an I/O error: so the device asks for no user recovery, with which requests would
//! wait for a new server. What then remains is `/dev/ublkcN`, which [`remove`] takes away.
//!
//! `wire` has the structures, `sys` the unsafe code, `control` makes devices; `queue`, `helpers` and `perform` serve.

mod control;
mod helpers;
mod perform;
mod queue;
mod sys;
mod wire;

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use vhdkit::disk::Pace;
use vhdkit::{Error, ErrorKind, Result, VirtualDisk};

use control::Control;
use helpers::Helpers;
use perform::Work;
use wire::{Basic, DeviceInfo, Discard, Parameters, SECTOR};

/// What marks devices as ours, in the part of their description that the kernel leaves to servers: "vhdk".
const MARK: u32 = 0x7668_646B;
/// Largest request, in bytes.
const MAX_IO_BYTES: u32 = 1 << 20;
/// Most requests underway in one queue.
const DEPTH: u16 = 64;
/// Most queues. The kernel makes no more than there are processors.
const MAX_QUEUES: u16 = 4;
/// Longest range of one discard or zeroing, in bytes. Bounds how long one request takes.
const MAX_RANGE: u32 = 1 << 30;

/// True if this system can serve devices through ublk: the driver is there, new enough, and open to the caller.
pub fn available() -> bool {
    let needed = wire::F_IOCTL_ENCODE | wire::F_USER_COPY;
    let features = Control::open().and_then(|control| control.features());
    features.is_ok_and(|features| features & needed == needed)
}

/// Removes what is left of the device `/dev/ublkcN` of a server that has died; nothing is wrong if it is not there. A
/// device that is served is stopped.
///
/// # Errors
/// [`ErrorKind::Io`], [`ErrorKind::AccessDenied`].
pub fn remove(number: u32) -> Result<()> {
    let removed = Control::open().and_then(|control| control.delete(number));
    match removed {
        Err(e) if e.raw_os_error() == Some(rustix::io::Errno::NODEV.raw_os_error()) => Ok(()),
        other => other.map_err(|e| Error::io("remove", e).with_path(format!("/dev/ublkc{number}"))),
    }
}

/// Told of everything that goes wrong with a disk.
pub type Watcher = Arc<dyn Fn(&Error) + Send + Sync>;

/// How a disk is attached.
#[derive(Clone)]
#[expect(clippy::exhaustive_structs, reason = "a plain request")]
pub struct Options {
    /// Refuses writes, also if the disk was opened for writing.
    pub read_only: bool,
    /// A number by which the device is known again; see [`owner`].
    pub tag: u32,
    /// Hears of requests that fail.
    pub watcher: Watcher,
}

/// Whose a device is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[expect(clippy::exhaustive_structs, reason = "a plain answer")]
pub struct Owner {
    /// See [`Options::tag`].
    pub tag: u32,
    /// The process that serves it; `None` if that has died, and before it serves.
    pub pid: Option<u32>,
}

/// Whose the device `/dev/ublkcN` is, if it is one of ours.
pub fn owner(number: u32) -> Option<Owner> {
    let info = Control::open().ok()?.info(number).ok()?;
    if info.mark != MARK {
        return None;
    }
    let is_live = info.state == DeviceInfo::LIVE;
    Some(Owner {
        tag: info.tag,
        pid: u32::try_from(info.server_pid).ok().filter(|_| is_live),
    })
}

/// The number in the name of a device.
pub fn number_of(device: &Path) -> Option<u32> {
    let name = device.file_name()?.to_str()?;
    name.strip_prefix("ublkb")?.parse().ok()
}

/// A block device that this process serves. Dropping it stops it.
pub struct Device {
    control: Control,
    number: u32,
    path: PathBuf,
    queues: Mutex<Vec<JoinHandle<io::Result<()>>>>,
    removed: Mutex<bool>,
}

impl Device {
    /// Makes a block device of a disk, of the size that the disk has now. Works when this returns; its partitions are
    /// there, too.
    ///
    /// # Errors
    /// [`ErrorKind::AccessDenied`] without root; [`ErrorKind::NotFound`] without the driver;
    /// [`ErrorKind::NotSupported`] for a driver that is too old, or a disk without a whole sector; [`ErrorKind::Io`].
    pub fn start(disk: Arc<VirtualDisk>, options: Options) -> Result<Self> {
        let control = Control::open().map_err(failed(control::PATH))?;
        let parameters = parameters(&disk, &options)?;
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        let mut info = DeviceInfo {
            queues: u16::try_from(processors).map_or(MAX_QUEUES, |n| n.min(MAX_QUEUES)),
            queue_depth: DEPTH,
            max_io_bytes: MAX_IO_BYTES,
            device: u32::MAX,
            flags: wire::F_IOCTL_ENCODE | wire::F_USER_COPY,
            tag: options.tag,
            mark: MARK,
            ..DeviceInfo::default()
        };
        control.add(&mut info).map_err(failed(control::PATH))?;
        let device = Self {
            control,
            number: info.device,
            path: format!("/dev/ublkb{}", info.device).into(),
            queues: Mutex::default(),
            removed: Mutex::new(false),
        };
        device
            .serve(disk, options.watcher, &info)
            .map_err(failed(&device.path))?;
        device
            .control
            .set_parameters(info.device, &parameters)
            .and_then(|()| device.control.start(info.device))
            .map_err(failed(&device.path))?;
        Ok(device)
    }

    /// Starts the queues. Returns when all wait for requests: before that the kernel would not start the device, but
    /// wait for them.
    fn serve(&self, disk: Arc<VirtualDisk>, watcher: Watcher, info: &DeviceInfo) -> io::Result<()> {
        let work = Arc::new(Work {
            disk,
            device: open_character_device(info.device)?,
            pace: Pace::default(),
            watcher,
        });
        let shared = Arc::new(queue::Shared {
            helpers: Helpers::new(work.clone()),
            work,
            depth: info.queue_depth,
        });
        let (ready, is_ready) = mpsc::channel();
        for number in 0..info.queues {
            let (shared, ready) = (shared.clone(), ready.clone());
            let thread = std::thread::Builder::new()
                .name(format!("ublk queue {number}"))
                .spawn(move || queue::run(&shared, number, &ready))?;
            self.queues().push(thread);
        }
        drop(ready);
        if is_ready.iter().take(info.queues.into()).count() == usize::from(info.queues) {
            return Ok(());
        }
        // One has ended before it was ready. Removing the device ends the others, too.
        self.remove();
        Err(self.join().err().unwrap_or(io::ErrorKind::Other.into()))
    }

    /// True if the kernel can give the device another size.
    pub fn can_grow(&self) -> bool {
        let features = self.control.features();
        features.is_ok_and(|features| features & wire::F_UPDATE_SIZE != 0)
    }

    /// Gives the device the size that the disk has now, in bytes.
    ///
    /// # Errors
    /// [`ErrorKind::Io`].
    pub fn grow(&self, size: u64) -> Result<()> {
        let sectors = size / u64::from(SECTOR);
        let updated = self.control.update_size(self.number, sectors);
        updated.map_err(|e| Error::io("grow the device", e).with_path(&self.path))
    }

    /// `/dev/ublkbN`.
    pub fn device_path(&self) -> &Path {
        &self.path
    }

    /// The number at the end of its name, for [`remove`].
    pub fn number(&self) -> u32 {
        self.number
    }

    /// Waits until the device is gone: because of [`Device::stop`], or of a failure, or since somebody else removed it.
    ///
    /// # Errors
    /// [`ErrorKind::Io`] if serving it failed.
    pub fn wait(&self) -> Result<()> {
        self.join().map_err(failed(&self.path))
    }

    /// Removes the device, after what is underway is done. What was written is flushed first by the kernel; whoever has
    /// it open, a mounted file system among them, gets I/O errors from then on.
    ///
    /// # Errors
    /// [`ErrorKind::Io`] if serving it had failed before.
    pub fn stop(&self) -> Result<()> {
        // It fails if the device is stopped already.
        if !self.is_removed() {
            let _ = self.control.stop(self.number);
        }
        let result = self.join();
        self.remove();
        result.map_err(failed(&self.path))
    }

    fn remove(&self) {
        let mut removed = self.removed.lock().unwrap_or_else(PoisonError::into_inner);
        if !*removed {
            // There is nothing else to be done about it.
            let _ = self.control.delete(self.number);
            *removed = true;
        }
    }

    fn is_removed(&self) -> bool {
        *self.removed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn join(&self) -> io::Result<()> {
        let mut result = Ok(());
        let mut queues = self.queues();
        for thread in queues.drain(..) {
            let ended = thread.join();
            result = result.and(ended.unwrap_or_else(|_| Err(io::ErrorKind::Other.into())));
        }
        result
    }

    fn queues(&self) -> std::sync::MutexGuard<'_, Vec<JoinHandle<io::Result<()>>>> {
        self.queues.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        let _ = self.stop();
    }
}

fn failed(path: impl AsRef<Path>) -> impl FnOnce(io::Error) -> Error {
    let path = path.as_ref().to_owned();
    move |e| {
        Error::io("ublk", e)
            .with_path(path)
            .while_doing("cannot attach as")
    }
}

/// What the kernel is to know of the disk.
fn parameters(disk: &VirtualDisk, options: &Options) -> Result<Parameters> {
    let info = disk.info();
    let logical = info.logical_sector_size;
    let physical = info.physical_sector_size.max(logical);
    let size = info.virtual_size - info.virtual_size % u64::from(logical);
    if size == 0 {
        return Err(Error::new(
            ErrorKind::NotSupported,
            format!("a disk of {} bytes has no whole sector", info.virtual_size),
        )
        .with_path(disk.path()));
    }
    let writable = disk.is_writable() && !options.read_only;
    let access = if writable { 0 } else { Basic::READ_ONLY };
    let shift = |bytes: u32| u8::try_from(bytes.trailing_zeros()).unwrap_or_default();
    Ok(Parameters {
        length: Parameters::LENGTH,
        types: Parameters::BASIC | if writable { Parameters::DISCARD } else { 0 },
        basic: Basic {
            attributes: access | Basic::VOLATILE_CACHE | Basic::FUA,
            logical_shift: shift(logical),
            physical_shift: shift(physical),
            optimal_shift: shift(physical.max(4096)),
            minimal_shift: shift(physical),
            max_sectors: MAX_IO_BYTES / SECTOR,
            chunk_sectors: 0,
            sectors: size / u64::from(SECTOR),
            virtual_boundary_mask: 0,
        },
        discard: Discard {
            alignment: 0,
            // Parts of a block that are discarded become holes of the file.
            granularity: physical.max(4096),
            max_discard_sectors: MAX_RANGE / SECTOR,
            max_zero_sectors: MAX_RANGE / SECTOR,
            max_segments: 1,
            reserved: 0,
        },
        end: 0,
    })
}

/// Opens `/dev/ublkcN`, which nobody else has then. Where udev makes or changes it, that takes a moment.
fn open_character_device(number: u32) -> io::Result<File> {
    let path = format!("/dev/ublkc{number}");
    let until = Instant::now() + Duration::from_secs(3);
    loop {
        match File::options().read(true).write(true).open(&path) {
            Err(e)
                if Instant::now() < until
                    && matches!(
                        e.kind(),
                        io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied
                    ) =>
            {
                std::thread::sleep(Duration::from_millis(5));
            }
            other => return other,
        }
    }
}

/// Keeps the kernel from writing out pages of this very device when the calling thread needs memory. Where it may not
/// say so, little memory remains a risk.
fn in_the_path_of_memory() {
    let _ = rustix::process::configure_io_flusher_behavior(true);
}
