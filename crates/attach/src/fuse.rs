//! A disk as the only file of a FUSE file system: what the kernel asks for goes straight to the disk.
//!
//! This module is the only one that knows `fuser`. Nothing is cached here or by the kernel's attributes, so a disk may
//! grow while it is used.

use std::ffi::OsStr;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, UNIX_EPOCH};

use fuser::{
    Config, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo,
    InitFlags, KernelConfig, LockOwner, MountOption, OpenAccMode, OpenFlags, ReplyAttr, ReplyData,
    ReplyDirectory, ReplyEmpty, ReplyEntry, ReplyLseek, ReplyOpen, ReplyStatfs, ReplyWrite,
    Request, Session, SessionACL, WriteFlags,
};
use rustix::fd::{AsRawFd, OwnedFd};
use rustix::fs::{FallocateFlags, Mode, OFlags};
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags};
use vhdkit::image::ZeroMode;
use vhdkit::{Error, ErrorKind, Result, VirtualDisk};

/// The kernel is to ask every time.
const NO_TIME: Duration = Duration::ZERO;
/// Largest read and write.
const LARGEST_REQUEST: u32 = 1 << 20;
/// Requests that a loop device may have underway; the kernel's default is 12.
const UNDERWAY: u16 = 64;
const FILE: INodeNo = INodeNo(2);

/// What a watcher is told.
pub(crate) enum Notice<'a> {
    /// A request failed.
    Trouble(&'a Error),
    /// Where partition tables begin something else has been written, and flushed.
    Table,
}

/// Hears what happens to a disk. Must not wait.
pub(crate) type Watcher = Arc<dyn Fn(Notice<'_>) + Send + Sync>;

/// The first bytes of a disk: an MBR and the header of a GPT, whatever the size of sectors.
const TABLE: u64 = 8192;

/// The file system.
struct OneFile {
    disk: Arc<VirtualDisk>,
    name: String,
    read_only: bool,
    watcher: Watcher,
    /// The table was written to since the last flush.
    table_touched: AtomicBool,
}

/// A file system that is being served; over when it is unmounted and nobody has its file open any more.
pub(crate) struct Serving {
    thread: JoinHandle<io::Result<()>>,
}

impl Serving {
    /// Returns when it is over.
    pub(crate) fn wait(self) -> io::Result<()> {
        match self.thread.join() {
            Ok(result) => result,
            Err(_) => Err(io::Error::other("a thread of the server panicked")),
        }
    }
}

/// The file system is mounted, but nowhere: nobody can come across it, and it is gone with the last user of its file.
/// The result is that file, open.
pub(crate) fn serve_detached(
    disk: Arc<VirtualDisk>,
    name: &str,
    watcher: Watcher,
) -> Result<(Serving, OwnedFd)> {
    let read_only = !disk.is_writable();
    let failed = |action: &str, e: rustix::io::Errno| mount_failed(action, e.into());
    let flags = OFlags::RDWR | OFlags::CLOEXEC;
    let device = rustix::fs::open("/dev/fuse", flags, Mode::empty())
        .map_err(|e| failed("open /dev/fuse", e))?;
    let context = rustix::mount::fsopen("fuse", FsOpenFlags::FSOPEN_CLOEXEC)
        .map_err(|e| failed("fsopen", e))?;
    let set = |key: &str, value: &str| {
        rustix::mount::fsconfig_set_string(&context, key, value).map_err(|e| failed("fsconfig", e))
    };
    set("source", "vhdkit")?;
    set("subtype", "vhdkit")?;
    set("fd", &device.as_raw_fd().to_string())?;
    set("rootmode", "40000")?;
    set("user_id", &rustix::process::geteuid().as_raw().to_string())?;
    set("group_id", &rustix::process::getegid().as_raw().to_string())?;
    rustix::mount::fsconfig_set_flag(&context, "allow_other").map_err(|e| failed("fsconfig", e))?;
    rustix::mount::fsconfig_create(&context).map_err(|e| failed("fsconfig", e))?;
    let mut attributes = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV;
    if read_only {
        attributes |= MountAttrFlags::MOUNT_ATTR_RDONLY;
    }
    let mount = rustix::mount::fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)
        .map_err(|e| failed("fsmount", e))?;

    let files = OneFile::new(disk, name, watcher);
    let session = Session::from_fd(files, device, SessionACL::All, config(read_only))
        .map_err(|e| mount_failed("start the file system", e))?;
    let serving = start(session)?;
    let access = if read_only {
        OFlags::RDONLY
    } else {
        OFlags::RDWR
    };
    let file = rustix::fs::openat(&mount, name, access | OFlags::CLOEXEC, Mode::empty())
        .map_err(|e| failed("open the file", e))?;
    Ok((serving, file))
}

/// The file system is mounted in a folder, by `fusermount3` if this is not root.
pub(crate) fn serve_in(
    disk: Arc<VirtualDisk>,
    name: &str,
    folder: &Path,
    watcher: Watcher,
) -> Result<Serving> {
    let read_only = !disk.is_writable();
    // Told apart from all that can be wrong with a folder.
    rustix::fs::open("/dev/fuse", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()).map_err(|e| {
        let hint = match e {
            rustix::io::Errno::NOENT | rustix::io::Errno::NODEV => {
                "this takes FUSE: modprobe fuse, or vhdkit serve, which needs no kernel support"
            }
            _ => "it has to be open to you (on most systems everybody may: chmod 666 /dev/fuse as root); vhdkit serve does without",
        };
        Error::io("open /dev/fuse", e.into()).with_better_hint(hint)
    })?;
    let files = OneFile::new(disk, name, watcher);
    let session = Session::new(files, folder, &config(read_only)).map_err(|e| {
        let text = e.to_string();
        Error::new(
            match e.kind() {
                io::ErrorKind::NotFound => ErrorKind::NotFound,
                io::ErrorKind::NotADirectory => ErrorKind::PathNotFound,
                _ => ErrorKind::AccessDenied,
            },
            format!("mounting failed: {}", text.trim_end()),
        )
        .with_path(folder)
        .with_hint("without root this takes fusermount3 (Debian: package fuse3) and a folder of yours; vhdkit serve needs neither")
    })?;
    start(session)
}

fn config(read_only: bool) -> Config {
    let threads = std::thread::available_parallelism().map_or(2, usize::from);
    let mut config = Config::default();
    config.mount_options = vec![
        MountOption::FSName("vhdkit".into()),
        MountOption::Subtype("vhdkit".into()),
        MountOption::NoSuid,
        MountOption::NoDev,
    ];
    if read_only {
        config.mount_options.push(MountOption::RO);
    }
    // One is not enough: a flush takes its time, and reads need not wait for it.
    config.n_threads = Some(threads.clamp(2, 4));
    config
}

fn start(session: Session<OneFile>) -> Result<Serving> {
    let thread = std::thread::Builder::new()
        .name("fuse".into())
        .spawn(move || session.run())
        .map_err(|e| Error::io("start a thread", e))?;
    Ok(Serving { thread })
}

fn mount_failed(action: &str, e: io::Error) -> Error {
    let hint = match e.kind() {
        io::ErrorKind::NotFound => {
            "devices without ublk take FUSE: modprobe fuse, or vhdkit serve, which needs no kernel support"
        }
        io::ErrorKind::PermissionDenied => crate::NOT_ROOT,
        _ => "devices without ublk take FUSE and Linux 5.8 or later; vhdkit serve needs neither",
    };
    Error::io(action, e).with_better_hint(hint)
}

impl OneFile {
    fn new(disk: Arc<VirtualDisk>, name: &str, watcher: Watcher) -> Self {
        Self {
            read_only: !disk.is_writable(),
            disk,
            name: name.to_owned(),
            watcher,
            table_touched: AtomicBool::new(false),
        }
    }

    fn attributes(&self, inode: INodeNo) -> Option<FileAttr> {
        let (kind, perm, size) = match inode {
            INodeNo::ROOT => (FileType::Directory, 0o500, 0),
            FILE => {
                let perm = if self.read_only { 0o400 } else { 0o600 };
                (FileType::RegularFile, perm, self.disk.virtual_size())
            }
            _ => return None,
        };
        Some(FileAttr {
            ino: inode,
            size,
            blocks: size.div_ceil(512),
            atime: UNIX_EPOCH,
            mtime: UNIX_EPOCH,
            ctime: UNIX_EPOCH,
            crtime: UNIX_EPOCH,
            kind,
            perm,
            nlink: 1,
            uid: rustix::process::geteuid().as_raw(),
            gid: rustix::process::getegid().as_raw(),
            rdev: 0,
            blksize: 4096,
            flags: 0,
        })
    }

    fn answer(&self, reply: ReplyEmpty, result: Result<()>) {
        match result {
            Ok(()) => reply.ok(),
            Err(e) => reply.error(self.failed(&e)),
        }
    }

    /// What the kernel is told, after the watcher has heard of it.
    fn failed(&self, error: &Error) -> Errno {
        let number = errno(error.kind());
        if !matches!(
            error.kind(),
            ErrorKind::WriteProtected | ErrorKind::BeyondEnd
        ) {
            (self.watcher)(Notice::Trouble(error));
        }
        number
    }

    /// The part of a range that the disk has; what is behind its end reads as nothing.
    fn inside(&self, offset: u64, length: u64) -> u64 {
        self.disk.virtual_size().saturating_sub(offset).min(length)
    }
}

/// What errors of the disk are called here.
fn errno(kind: ErrorKind) -> Errno {
    match kind {
        ErrorKind::WriteProtected => Errno::EROFS,
        ErrorKind::AccessDenied => Errno::EPERM,
        ErrorKind::DiskFull
        | ErrorKind::FileTooLarge
        | ErrorKind::BlockAllocationFailure
        | ErrorKind::HostLimitation => Errno::ENOSPC,
        ErrorKind::OutOfMemory => Errno::ENOMEM,
        ErrorKind::BeyondEnd | ErrorKind::InvalidParameter => Errno::EINVAL,
        ErrorKind::NotSupported => Errno::EOPNOTSUPP,
        _ => Errno::EIO,
    }
}

impl Filesystem for OneFile {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> io::Result<()> {
        // What the kernel does not know it does without; the defaults are then its own.
        let _ = config.set_max_write(LARGEST_REQUEST);
        let _ = config.set_max_background(UNDERWAY);
        let _ = config.set_congestion_threshold(UNDERWAY);
        for wish in [
            InitFlags::FUSE_ASYNC_DIO,
            InitFlags::FUSE_ASYNC_READ,
            InitFlags::FUSE_BIG_WRITES,
            InitFlags::FUSE_MAX_PAGES,
        ] {
            let _ = config.add_capabilities(wish);
        }
        Ok(())
    }

    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        match self.attributes(FILE) {
            Some(attributes) if parent == INodeNo::ROOT && name == self.name.as_str() => {
                reply.entry(&NO_TIME, &attributes, Generation(0));
            }
            _ => reply.error(Errno::ENOENT),
        }
    }

    fn getattr(&self, _: &Request, inode: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        match self.attributes(inode) {
            Some(attributes) => reply.attr(&NO_TIME, &attributes),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn setattr(
        &self,
        _: &Request,
        inode: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        _: Option<fuser::TimeOrNow>,
        _: Option<fuser::TimeOrNow>,
        _: Option<std::time::SystemTime>,
        _: Option<FileHandle>,
        _: Option<std::time::SystemTime>,
        _: Option<std::time::SystemTime>,
        _: Option<std::time::SystemTime>,
        _: Option<fuser::BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        // Times are not kept; a disk has the size that it has.
        let changes = mode.is_some() || uid.is_some() || gid.is_some();
        let resizes = size.is_some_and(|size| size != self.disk.virtual_size());
        match self.attributes(inode) {
            _ if changes || resizes => reply.error(Errno::EPERM),
            Some(attributes) => reply.attr(&NO_TIME, &attributes),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn open(&self, _: &Request, inode: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        if inode != FILE {
            reply.error(Errno::EISDIR);
        } else if self.read_only && flags.acc_mode() != OpenAccMode::O_RDONLY {
            reply.error(Errno::EROFS);
        } else {
            reply.opened(FileHandle(0), FopenFlags::empty());
        }
    }

    fn read(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        thread_local! {
            static BUFFER: std::cell::RefCell<Vec<u8>> = const { std::cell::RefCell::new(Vec::new()) };
        }
        let length = self.inside(offset, size.into());
        let length = usize::try_from(length).unwrap_or_default();
        BUFFER.with_borrow_mut(|buffer| {
            if buffer.len() < length {
                buffer.resize(length, 0);
            }
            let part = &mut buffer[..length];
            match self.disk.read_at(offset, part) {
                Ok(()) => reply.data(part),
                Err(e) => reply.error(self.failed(&e)),
            }
        });
    }

    fn write(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        offset: u64,
        data: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let length = self.inside(offset, data.len() as u64);
        let part = &data[..usize::try_from(length).unwrap_or_default()];
        if part.is_empty() && !data.is_empty() {
            return reply.error(Errno::ENOSPC);
        }
        let result = self.disk.write_at(offset, part);
        if offset < TABLE {
            self.table_touched.store(true, Ordering::Release);
        }
        match result {
            Ok(()) => reply.written(u32::try_from(part.len()).unwrap_or_default()),
            Err(e) => reply.error(self.failed(&e)),
        }
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        // Closing a file makes nothing durable anywhere; an answer saves the kernel from asking again.
        reply.error(Errno::ENOSYS);
    }

    fn fsync(&self, _: &Request, _: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        let touched = self.table_touched.swap(false, Ordering::AcqRel);
        self.answer(reply, self.disk.flush());
        if touched {
            (self.watcher)(Notice::Table);
        }
    }

    fn fallocate(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        let flags = FallocateFlags::from_bits_retain(mode.cast_unsigned());
        let kept = flags.contains(FallocateFlags::KEEP_SIZE);
        let mode = match flags & !FallocateFlags::KEEP_SIZE {
            // A loop device uses it for discards and for zeroing that may free space, and cannot say which it is: so it
            // has to read as zeros afterwards.
            FallocateFlags::PUNCH_HOLE => ZeroMode::MayUnmap,
            FallocateFlags::ZERO_RANGE if kept || self.inside(offset, length) == length => {
                ZeroMode::KeepAllocated
            }
            _ => return reply.error(Errno::EOPNOTSUPP),
        };
        let length = self.inside(offset, length);
        self.answer(reply, self.disk.zero(offset, length, mode));
    }

    fn lseek(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        offset: i64,
        whence: i32,
        reply: ReplyLseek,
    ) {
        const SEEK_DATA: i32 = 3;
        const SEEK_HOLE: i32 = 4;
        let size = self.disk.virtual_size();
        let start = match u64::try_from(offset) {
            Ok(start) if start < size => start,
            _ => return reply.error(Errno::ENXIO),
        };
        let wants_data = match whence {
            SEEK_DATA => true,
            SEEK_HOLE => false,
            _ => return reply.error(Errno::EINVAL),
        };
        for extent in self.disk.extents(start..size) {
            match extent {
                Ok((at, extent)) if extent.data.is_some() == wants_data => {
                    return reply.offset(at.cast_signed());
                }
                Ok(_) => {}
                Err(e) => return reply.error(self.failed(&e)),
            }
        }
        if wants_data {
            reply.error(Errno::ENXIO);
        } else {
            reply.offset(size.cast_signed());
        }
    }

    fn readdir(
        &self,
        _: &Request,
        inode: INodeNo,
        _: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        if inode != INodeNo::ROOT {
            return reply.error(Errno::ENOTDIR);
        }
        let entries = [
            (INodeNo::ROOT, FileType::Directory, "."),
            (INodeNo::ROOT, FileType::Directory, ".."),
            (FILE, FileType::RegularFile, self.name.as_str()),
        ];
        for (number, (inode, kind, name)) in (1..).zip(entries) {
            if number > offset && reply.add(inode, number, kind, name) {
                break;
            }
        }
        reply.ok();
    }

    fn statfs(&self, _: &Request, _: INodeNo, reply: ReplyStatfs) {
        let blocks = self.disk.virtual_size() / 4096;
        reply.statfs(blocks, 0, 0, 1, 0, 4096, 255, 4096);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_of_error_has_a_number_that_programs_know() {
        for &kind in ErrorKind::ALL {
            assert!(i32::from(errno(kind)) > 0, "{kind:?}");
        }
        assert_eq!(i32::from(errno(ErrorKind::DiskFull)), 28);
        assert_eq!(i32::from(errno(ErrorKind::FileCorrupt)), 5);
    }
}
