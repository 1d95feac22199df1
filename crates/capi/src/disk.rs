//! What virtual disk handles stand for: a disk that is open, alone or shared by several handles of this process.
//!
//! Files are locked as the library does: many readers or one writer. Handles share one open disk where the contract lets
//! several exist: those that only ask and detach (2.0.2), those with the same ResiliencyGuid (2.0.3), and those that
//! meet a permanent attachment (2.2).

use std::ops::Range;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock, OnceLock, Weak};

use uuid::Uuid;
use vhdkit::disk::Parents;
use vhdkit::image::Format;
use vhdkit::scsi::{Command, Response, ScsiTarget};
use vhdkit::verbs::mirror::break_mirror;
use vhdkit::{OpenOptions, VirtualDisk};

use crate::access::{Access, Right};
use crate::codes::{
    ERROR_ACCESS_DENIED, ERROR_BUSY, ERROR_FILE_CORRUPT, ERROR_SHARING_VIOLATION,
    ERROR_VHD_INVALID_STATE,
};
use crate::constants::*;
use crate::device::Device;
use crate::guard::{Answer, Code, require_or};
use crate::overlapped::Operations;
use crate::sync::{Mutex, Order, RwLock};

/// How a disk is to be opened.
#[derive(Clone, Copy)]
pub(crate) struct Opening {
    pub(crate) format: Format,
    pub(crate) access: Access,
    /// `OPEN_VIRTUAL_DISK_FLAG_…`.
    pub(crate) flags: u32,
    /// Handles with the same one share the disk.
    pub(crate) resiliency: Option<Uuid>,
}

impl Opening {
    /// The library's words for it.
    pub(crate) fn options(self) -> OpenOptions {
        let has = |flag| self.flags & flag != 0;
        let alone = OPEN_VIRTUAL_DISK_FLAG_NO_PARENTS | OPEN_VIRTUAL_DISK_FLAG_CUSTOM_DIFF_CHAIN;
        let options = OpenOptions::new();
        // An ISO is told by its content; the others by their type alone, whatever a guest has written.
        let options = match self.format {
            Format::Iso => options,
            format => options.format(format),
        };
        options
            .write_depth(self.access.write_depth())
            .direct(!has(OPEN_VIRTUAL_DISK_FLAG_CACHED_IO))
            .cached_parents(has(OPEN_VIRTUAL_DISK_FLAG_PARENT_CACHED_IO))
            .record_native_paths(true)
            .ignore_relative_paths(has(OPEN_VIRTUAL_DISK_FLAG_IGNORE_RELATIVE_PARENT_LOCATOR))
            .parents(if has(alone) {
                Parents::Ignored
            } else {
                Parents::Recorded
            })
    }
}

impl Opening {
    /// Opens the file. ERROR_FILE_CORRUPT for an ISO that is none.
    fn open(self, path: &Path) -> Answer<VirtualDisk> {
        let disk = self.options().open(path)?;
        if self.format == Format::Iso {
            let info = disk.info();
            let whole = info.file_size >= ISO_MINIMUM && info.file_size.is_multiple_of(ISO_SECTOR);
            require_or(info.format == Format::Iso && whole, ERROR_FILE_CORRUPT)?;
        }
        Ok(disk)
    }
}

/// Least length of an ISO in bytes, and what its length is a multiple of (contract, 2.2).
const ISO_MINIMUM: u64 = 34_816;
const ISO_SECTOR: u64 = 2048;

/// A disk that is open.
pub(crate) struct Disk {
    opened: RwLock<Opened>,
    attachment: Mutex<Option<Attachment>>,
    /// Handles that do more than ask.
    users: AtomicUsize,
    /// An operation that changes the disk is under way.
    busy: AtomicBool,
}

#[derive(Clone)]
pub(crate) struct Opened {
    /// While a device has the file: a look at it.
    pub(crate) disk: Arc<VirtualDisk>,
    opening: Opening,
    /// The disk as a SCSI device, once somebody has sent it a command.
    scsi: Arc<OnceLock<ScsiTarget>>,
}

impl Opened {
    fn new(disk: VirtualDisk, opening: Opening) -> Self {
        Self {
            disk: Arc::new(disk),
            opening,
            scsi: Arc::default(),
        }
    }

    /// The chain that it has, whatever files record.
    fn same_chain(&self) -> OpenOptions {
        let layers = self.disk.layers();
        let parents: Vec<_> = layers
            .iter()
            .skip(1)
            .map(|layer| layer.path.clone())
            .collect();
        let options = self.opening.options();
        if parents.is_empty() {
            options
        } else {
            options.parents(Parents::Given(parents))
        }
    }

    /// Closes the files, but for a look at them.
    fn let_go(&mut self) -> Answer {
        let look = look_at(self.same_chain(), &self.disk.path())?;
        *self = Self::new(look, self.opening);
        Ok(())
    }

    /// Opens the files again.
    fn take_back(&mut self) -> Answer {
        let disk = self.same_chain().open(self.disk.path())?;
        *self = Self::new(disk, self.opening);
        Ok(())
    }
}

fn look_at(options: OpenOptions, path: &Path) -> Answer<VirtualDisk> {
    Ok(options.write_depth(0).unlocked(true).open(path)?)
}

/// Without a device, the disk's handles are for reading and writing.
#[derive(Clone)]
pub(crate) struct Attachment {
    /// As a device of the system.
    pub(crate) device: Option<Arc<Device>>,
    pub(crate) read_only: bool,
    pub(crate) permanent: bool,
    /// The part of the disk that is shown, in bytes; all of it is `None`.
    pub(crate) window: Option<Range<u64>>,
    /// `DEPENDENT_DISK_FLAG_…` that follow from how it was attached.
    pub(crate) dependent_flags: u32,
}

/// Device and inode of the leaf when it was opened.
type FileId = Option<(u64, u64)>;

type OpenDisks = Vec<(FileId, Weak<Disk>)>;

/// All open disks, by their files: looking for one must not keep another one open that is just being closed.
/// A mirrored disk moves to another file.
static OPEN: LazyLock<Mutex<OpenDisks>> = LazyLock::new(|| Mutex::new(Order::Open, Vec::new()));

/// Disks that stay attached without a handle.
static PERMANENT: LazyLock<Mutex<Vec<Arc<Disk>>>> =
    LazyLock::new(|| Mutex::new(Order::Permanent, Vec::new()));

fn file_id(path: &Path) -> FileId {
    std::fs::metadata(path).ok().map(|m| (m.dev(), m.ino()))
}

impl Disk {
    /// Opens a disk, or joins one that is open.
    pub(crate) fn open(path: &Path, opening: Opening) -> Answer<Arc<Self>> {
        let mut open = OPEN.lock();
        open.retain(|(_, disk)| disk.strong_count() > 0);
        let file = file_id(path);
        let there: Vec<_> = open
            .iter()
            .filter(|(of, _)| file.is_some() && *of == file)
            .filter_map(|(_, disk)| disk.upgrade())
            .collect();
        for disk in &there {
            if disk.may_join(opening)? {
                return Ok(disk.clone());
            }
        }
        // Handles that only ask do not keep others out: the disk is opened again for them, too.
        if let [asked] = &there[..]
            && asked.users.load(Ordering::Acquire) == 0
            && opening.access.write_depth() > 0
        {
            asked.reopen(path, opening)?;
            return Ok(asked.clone());
        }
        let (found, attachment) = match opening.open(path) {
            Ok(found) if opening.access.write_depth() > 0 => (found, None),
            // A device that is read-only leaves room for readers.
            Ok(found) => match Device::find(path) {
                Some(device) => meet_device(path, opening, device)?,
                None => (found, None),
            },
            Err(Code(ERROR_SHARING_VIOLATION)) => {
                let device = Device::find(path).ok_or(Code(ERROR_SHARING_VIOLATION))?;
                meet_device(path, opening, device)?
            }
            Err(code) => return Err(code),
        };
        let disk = Arc::new(Self {
            opened: RwLock::new(Order::Opened, Opened::new(found, opening)),
            attachment: Mutex::new(Order::Attachment, attachment),
            users: AtomicUsize::new(0),
            busy: AtomicBool::new(false),
        });
        open.push((file, Arc::downgrade(&disk)));
        Ok(disk)
    }

    fn may_join(&self, opening: Opening) -> Answer<bool> {
        let here = self.opening();
        let (wanted, given) = (opening.access.write_depth(), here.access.write_depth());
        if opening.access.only_asks() {
            return Ok(true);
        }
        if self
            .attachment()
            .is_some_and(|a| a.permanent || a.device.is_some())
        {
            require_detach(opening)?;
            require_or(wanted <= given, ERROR_ACCESS_DENIED)?;
            return Ok(true);
        }
        Ok(opening.resiliency.is_some()
            && opening.resiliency == here.resiliency
            && opening.flags == here.flags
            && opening.format == here.format
            && wanted <= given)
    }

    fn reopen(&self, path: &Path, opening: Opening) -> Answer {
        let mut opened = self.opened.write();
        // Two readers of one file are allowed, a reader beside a writer is not: the reader goes first. Should the
        // disk not open for writing, it is opened as it was.
        let before = opened.opening;
        opened.scsi = Arc::default();
        let old = std::mem::replace(&mut opened.disk, Arc::new(nothing()?));
        drop(old);
        let result = opening.open(path);
        let (disk, opening) = match result {
            Ok(disk) => (disk, opening),
            Err(e) => {
                opened.disk = Arc::new(before.open(path)?);
                return Err(e);
            }
        };
        *opened = Opened::new(disk, opening);
        Ok(())
    }

    fn opened(&self) -> Opened {
        self.opened.read().clone()
    }

    /// The library's disk.
    pub(crate) fn disk(&self) -> Arc<VirtualDisk> {
        self.opened().disk
    }

    /// Ends a mirror: the disk goes on with the copy, and is known by its file from then on. The number of the old file
    /// may be that of another one soon.
    pub(crate) fn break_mirror(&self) -> Answer {
        let mut open = OPEN.lock();
        let disk = self.disk();
        break_mirror(&disk)?;
        let moved = file_id(&disk.path());
        for (file, other) in open.iter_mut() {
            if std::ptr::eq(other.as_ptr(), self) {
                *file = moved;
            }
        }
        Ok(())
    }

    /// Sends one command to the disk as a SCSI device.
    pub(crate) fn scsi(&self, command: Command<'_>) -> Response {
        let opened = self.opened();
        opened
            .scsi
            .get_or_init(|| ScsiTarget::new(opened.disk.clone()))
            .execute(command)
    }

    /// How it was opened.
    pub(crate) fn opening(&self) -> Opening {
        self.opened().opening
    }

    /// How it is attached.
    pub(crate) fn attachment(&self) -> Option<Attachment> {
        let mut here = self.attachment.lock();
        let is_gone = |device: &Arc<Device>| !device.is_alive();
        if here
            .as_ref()
            .is_some_and(|a| a.device.as_ref().is_some_and(is_gone))
        {
            // By another hand. If others have the file by now, the look stays.
            *here = None;
            drop(here);
            let _ = self.opened.write().take_back();
            return None;
        }
        here.clone()
    }

    /// Attaches it as a device of the system, which has its files from then on. As [`Disk::attach`], and what
    /// [`Device::attach`] fails with.
    pub(crate) fn attach_device(&self, attachment: Attachment) -> Answer {
        require_or(self.attachment().is_none(), ERROR_SHARING_VIOLATION)?;
        let mut opened = self.opened.write();
        opened.let_go()?;
        match Device::attach(&opened, attachment.read_only, attachment.permanent) {
            Ok(device) => {
                *self.attachment.lock() = Some(Attachment {
                    device: Some(Arc::new(device)),
                    ..attachment
                });
                Ok(())
            }
            Err(code) => {
                opened.take_back()?;
                Err(code)
            }
        }
    }

    /// Attaches it. ERROR_SHARING_VIOLATION if it is attached.
    pub(crate) fn attach(self: &Arc<Self>, attachment: Attachment) -> Answer {
        let mut here = self.attachment.lock();
        require_or(here.is_none(), ERROR_SHARING_VIOLATION)?;
        if attachment.permanent {
            PERMANENT.lock().push(self.clone());
        }
        *here = Some(attachment);
        Ok(())
    }

    /// Ends the attachment. ERROR_VHD_INVALID_STATE if there is none.
    pub(crate) fn detach(self: &Arc<Self>) -> Answer {
        let attachment = self.attachment().ok_or(Code(ERROR_VHD_INVALID_STATE))?;
        if let Some(device) = attachment.device {
            device.detach()?;
            *self.attachment.lock() = None;
            return self.opened.write().take_back();
        }
        let disk = self.disk();
        let mut here = self.attachment.lock();
        if disk.is_writable() {
            disk.flush()?;
        }
        *here = None;
        PERMANENT.lock().retain(|disk| !Arc::ptr_eq(disk, self));
        Ok(())
    }

    /// ERROR_VHD_INVALID_STATE if it is attached.
    pub(crate) fn require_detached(&self) -> Answer {
        require_or(self.attachment().is_none(), ERROR_VHD_INVALID_STATE)
    }

    /// ERROR_VHD_INVALID_STATE if it is attached and can be written to.
    pub(crate) fn require_unwritten(&self) -> Answer {
        let writable = self.attachment().is_some_and(|a| !a.read_only);
        require_or(!writable, ERROR_VHD_INVALID_STATE)
    }

    /// Reserves the disk for one operation that changes it. ERROR_BUSY if there is one, ERROR_VHD_INVALID_STATE while a
    /// device has it.
    pub(crate) fn reserve(self: &Arc<Self>) -> Answer<Reserved> {
        let reserved = self.reserve_attached()?;
        let has_device = self.attachment().is_some_and(|a| a.device.is_some());
        require_or(!has_device, ERROR_VHD_INVALID_STATE)?;
        Ok(reserved)
    }

    /// As [`Disk::reserve`], for detaching: also while a device has it.
    pub(crate) fn reserve_attached(self: &Arc<Self>) -> Answer<Reserved> {
        if self.busy.swap(true, Ordering::AcqRel) {
            return Err(Code(ERROR_BUSY));
        }
        Ok(Reserved(self.clone()))
    }
}

/// A file that is in use because a device has it can be opened for asking, and for detaching the device (2.4).
fn meet_device(
    path: &Path,
    opening: Opening,
    device: Device,
) -> Answer<(VirtualDisk, Option<Attachment>)> {
    if !opening.access.only_asks() {
        require_detach(opening)?;
        let writes = opening.access.write_depth() > 0;
        require_or(!writes || !device.read_only(), ERROR_ACCESS_DENIED)?;
    }
    let look = look_at(opening.options(), path)?;
    let depends = |is, flag| if is { flag } else { 0 };
    let attachment = Attachment {
        read_only: device.read_only(),
        permanent: device.permanent(),
        window: None,
        dependent_flags: depends(device.read_only(), DEPENDENT_DISK_FLAG_READ_ONLY)
            | depends(device.permanent(), DEPENDENT_DISK_FLAG_PERMANENT_LIFETIME),
        device: Some(Arc::new(device)),
    };
    Ok((look, Some(attachment)))
}

fn require_detach(opening: Opening) -> Answer {
    let detach = opening.access.require(Right::Detach);
    detach.map_err(|_| Code(ERROR_SHARING_VIOLATION))
}

/// Stands for a disk between two.
fn nothing() -> Answer<VirtualDisk> {
    let storage = Arc::new(vhdkit::storage::MemoryStorage::new());
    let image = vhdkit::disk::open_image(storage, Format::Raw, false)?;
    let layer = vhdkit::disk::Layer::new(image, "");
    Ok(VirtualDisk::from_layers(vec![layer], false)?)
}

/// See [`Disk::reserve`].
pub(crate) struct Reserved(Arc<Disk>);

impl Drop for Reserved {
    fn drop(&mut self) {
        self.0.busy.store(false, Ordering::Release);
    }
}

/// What a virtual disk handle names.
pub(crate) struct DiskHandle {
    pub(crate) access: Access,
    pub(crate) operations: Operations,
    /// Empty while the disk is being created.
    disk: OnceLock<Arc<Disk>>,
}

impl DiskHandle {
    /// A handle whose disk is still to be made.
    pub(crate) fn new(access: Access) -> Self {
        Self {
            access,
            operations: Operations::default(),
            disk: OnceLock::new(),
        }
    }

    /// Gives the handle its disk.
    pub(crate) fn set_disk(&self, disk: Arc<Disk>) {
        if !self.access.only_asks() {
            disk.users.fetch_add(1, Ordering::AcqRel);
        }
        // Nobody else sets it.
        let _ = self.disk.set(disk);
    }

    /// The disk. ERROR_VHD_INVALID_STATE while it is being created, and for good if that failed.
    pub(crate) fn disk(&self) -> Answer<&Arc<Disk>> {
        self.disk.get().ok_or(Code(ERROR_VHD_INVALID_STATE))
    }
}

impl Drop for DiskHandle {
    fn drop(&mut self) {
        if let Some(disk) = self.disk.get()
            && !self.access.only_asks()
        {
            disk.users.fetch_sub(1, Ordering::AcqRel);
        }
    }
}
