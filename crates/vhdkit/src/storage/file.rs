//! A file or block device of the host.

use std::fs::{File, OpenOptions};
use std::io::{self, PipeReader, PipeWriter};
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError, RwLock};

use rustix::fs::{FallocateFlags, SeekFrom};
use rustix::io::Errno;
use rustix::pipe::{SpliceFlags, splice};

use super::lock::Lock;
use super::{AlignedBuffer, Storage, copy_through_memory, end_of, sys};
use crate::error::{Error, ErrorKind, Result};

/// What a file is opened for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[expect(clippy::exhaustive_enums, reason = "there is no third way")]
pub enum Access {
    /// Reading; shares the file with other readers.
    ReadOnly,
    /// Reading and writing; excludes everybody else.
    ReadWrite,
}

/// The medium that a file lies on. Sizes are in bytes; where they are not known, 512 and 4096.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct HostDisk {
    /// The unit in which it is addressed.
    pub logical_sector_size: u32,
    /// The unit in which it writes.
    pub physical_sector_size: u32,
    /// True if it is on another machine.
    pub is_remote: bool,
}

/// Kinds of network file systems (`f_type`): NFS, SMB, CIFS, SMB2, Ceph, 9p, AFS.
const REMOTE: [i128; 7] = [
    0x6969,
    0x517B,
    0xFF53_4D42,
    0xFE53_4D42,
    0x00C3_6400,
    0x0102_1997,
    0x5346_414F,
];

/// An open file or block device.
///
/// What the file system lacks (holes, preallocation, reflink, locks, direct I/O) is done without; only what cannot be
/// done at all is an error.
pub struct FileStorage {
    // First, so that it is given back before the descriptors are closed: with the last one the number of a deleted file
    // becomes free, and a new file of another thread may get it. flock is given back before, see Drop.
    /// None for a look.
    _lock: Option<Lock>,
    file: File,
    path: PathBuf,
    access: Access,
    block_device: bool,
    /// Reads and writes bypass the page cache where their alignment allows it.
    bypass: bool,
    /// With `bypass`: shared by direct writes, held alone by others, which change part of a page that a direct write
    /// at the same time could be about to replace.
    pages: RwLock<()>,
    /// A second descriptor of the same file, opened for direct I/O when it is first needed; `None` if the file system
    /// has no direct I/O.
    direct: OnceLock<Option<File>>,
    no_holes: AtomicBool,
    no_clone: AtomicBool,
    /// See [`FileStorage::may_lend`].
    lends: OnceLock<bool>,
    /// See [`Storage::survives_crash`].
    nameless: AtomicBool,
    /// The last run of data that was found, to its real end. Looking for the end of a run takes some file systems (one
    /// in memory above all) as long as the run is, and whoever asks for its parts asks often. A hole made in it since
    /// is overlooked, which costs time and nothing else.
    known_data: Mutex<Range<u64>>,
}

impl FileStorage {
    /// Opens an existing file or block device.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`], [`ErrorKind::AccessDenied`]; [`ErrorKind::SharingViolation`] if somebody writes to the
    /// file, or if anybody has it open and `access` is [`Access::ReadWrite`]; [`ErrorKind::NotSupported`] if it is a
    /// folder, pipe or socket.
    pub fn open(path: impl AsRef<Path>, access: Access) -> Result<Self> {
        let path = path.as_ref();
        Self::from_file(open_file(path, access)?, path, access)
    }

    /// Opens a file for a look at it that keeps nobody from using it: read-only, without a lock. It may be changing.
    ///
    /// # Errors
    /// As [`FileStorage::open`], but for [`ErrorKind::SharingViolation`].
    pub(crate) fn look(path: &Path) -> Result<Self> {
        Self::new(
            open_file(path, Access::ReadOnly)?,
            path,
            Access::ReadOnly,
            false,
        )
    }

    /// Takes over an open file, for instance one that was just created.
    pub(super) fn from_file(file: File, path: &Path, access: Access) -> Result<Self> {
        Self::new(file, path, access, true)
    }

    fn new(file: File, path: &Path, access: Access, locked: bool) -> Result<Self> {
        let metadata = file
            .metadata()
            .map_err(|e| Error::io("stat", e).with_path(path))?;
        let kind = metadata.file_type();
        let block_device = kind.is_block_device();
        if !kind.is_file() && !block_device {
            let what = if kind.is_dir() {
                "a folder"
            } else {
                "not a file or block device"
            };
            return Err(Error::no_disk(path, what));
        }
        // Two nodes of one device must conflict: its number is the identity.
        let id = if block_device {
            (u64::MAX, metadata.rdev())
        } else {
            (metadata.dev(), metadata.ino())
        };
        let lock = locked
            .then(|| Lock::acquire(&file, id, path, access == Access::ReadWrite))
            .transpose()?;
        Ok(Self {
            file,
            path: path.to_path_buf(),
            access,
            block_device,
            bypass: false,
            pages: RwLock::new(()),
            direct: OnceLock::new(),
            no_holes: AtomicBool::new(false),
            no_clone: AtomicBool::new(false),
            lends: OnceLock::new(),
            nameless: AtomicBool::new(false),
            known_data: Mutex::new(0..0),
            _lock: lock,
        })
    }

    /// Lets reads and writes bypass the page cache (direct I/O) when offset, length and address of the buffer are
    /// multiples of [`AlignedBuffer::ALIGNMENT`]; others, and file systems without direct I/O, go through the cache as
    /// before. For guests that have a cache of their own. What `flush` promises does not change.
    #[must_use]
    pub fn with_direct_io(mut self, direct: bool) -> Self {
        self.bypass = direct;
        self
    }

    /// What it was opened for.
    pub fn access(&self) -> Access {
        self.access
    }

    /// True for a block device: it cannot change its length.
    pub fn is_block_device(&self) -> bool {
        self.block_device
    }

    /// Bytes that the file takes on the host's disk (less than its length if it is sparse).
    pub fn allocated(&self) -> Result<u64> {
        let metadata = self.file.metadata().map_err(|e| self.error("stat", e))?;
        Ok(if self.block_device {
            self.len()?
        } else {
            metadata.blocks() * 512
        })
    }

    /// Seconds since 1970 of the last change of the content.
    pub fn modified(&self) -> Result<i64> {
        Ok(self
            .file
            .metadata()
            .map_err(|e| self.error("stat", e))?
            .mtime())
    }

    /// What the file lies on.
    pub fn host_disk(&self) -> Result<HostDisk> {
        let metadata = self.file.metadata().map_err(|e| self.error("stat", e))?;
        let device = if self.block_device {
            metadata.rdev()
        } else {
            metadata.dev()
        };
        let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
        // Of a partition the numbers are in the folder of its disk.
        let sector = |name: &str| {
            ["queue", "../queue"].iter().find_map(|queue| {
                let path = format!("/sys/dev/block/{major}:{minor}/{queue}/{name}");
                std::fs::read_to_string(path).ok()?.trim().parse().ok()
            })
        };
        let is_remote = rustix::fs::fstatfs(&self.file)
            .is_ok_and(|fs| REMOTE.iter().any(|kind| i128::from(fs.f_type) == *kind));
        Ok(HostDisk {
            logical_sector_size: sector("logical_block_size").unwrap_or(512),
            physical_sector_size: sector("physical_block_size").unwrap_or(4096),
            is_remote,
        })
    }

    pub(super) fn file(&self) -> &File {
        &self.file
    }

    pub(super) fn set_nameless(&self, nameless: bool) {
        self.nameless.store(nameless, Relaxed);
    }

    fn error(&self, action: &str, error: impl Into<io::Error>) -> Error {
        Error::io(action, error.into()).with_path(&self.path)
    }

    fn fallocate(&self, mode: FallocateFlags, offset: u64, length: u64) -> Result<bool> {
        match retry(|| rustix::fs::fallocate(&self.file, mode, offset, length)) {
            Ok(()) => Ok(true),
            Err(e) if unsupported(e) => Ok(false),
            Err(e) => Err(self.error("allocate space", e)),
        }
    }

    /// True if what was punched is gone from the page cache, so that nothing else ever appears in pages that were lent.
    /// A file system that cannot punch would have zeros written into them, and then the place's next content.
    fn may_lend(&self) -> bool {
        *self.lends.get_or_init(|| {
            // Asked behind the end, where nothing changes.
            let behind_end = || -> Result<bool> {
                let end = crate::num::round_up(self.len()?, 1 << 20);
                let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
                self.fallocate(flags, end, 1 << 20)
            };
            !self.bypass
                && (self.access == Access::ReadOnly
                    || self.block_device
                    || behind_end().unwrap_or(false))
        })
    }

    fn zero_by_writing(&self, offset: u64, length: u64) -> Result<()> {
        let zeros = AlignedBuffer::new(256 * 1024);
        let mut done = 0;
        while done < length {
            let n = (length - done).min(zeros.len() as u64);
            self.write_at(offset + done, &zeros[..crate::num::to_usize(n)])?;
            done += n;
        }
        Ok(())
    }

    fn direct(&self) -> Option<&File> {
        self.direct
            .get_or_init(|| {
                // A file system in memory accepts the flag but has nothing to bypass.
                const TMPFS: u64 = 0x0102_1994;
                if rustix::fs::fstatfs(&self.file).is_ok_and(|s| s.f_type.cast_unsigned() == TMPFS)
                {
                    return None;
                }
                let flags = rustix::fs::OFlags::DIRECT.bits().cast_signed();
                let by_number = format!("/proc/self/fd/{}", self.file.as_raw_fd());
                OpenOptions::new()
                    .read(true)
                    .write(self.access == Access::ReadWrite)
                    .custom_flags(flags)
                    .open(by_number)
                    .ok()
            })
            .as_ref()
    }

    /// The descriptor for direct I/O, if this request is to use it.
    fn bypassing(&self, offset: u64, bytes: &[u8]) -> Option<&File> {
        (self.bypass && !bytes.is_empty() && is_aligned(offset, bytes))
            .then(|| self.direct())
            .flatten()
    }
}

fn open_file(path: &Path, access: Access) -> Result<File> {
    // Without O_NONBLOCK, opening a pipe that nobody writes to would wait for ever.
    OpenOptions::new()
        .read(true)
        .write(access == Access::ReadWrite)
        .custom_flags(rustix::fs::OFlags::NONBLOCK.bits().cast_signed())
        .open(path)
        .map_err(|e| Error::open(path, e))
}

impl Drop for FileStorage {
    fn drop(&mut self) {
        // A process that another thread is just starting holds copies of all descriptors until it runs its program;
        // closing ours would not give the lock back before that.
        let _ = self.file.unlock();
    }
}

impl Storage for FileStorage {
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        if let Some(direct) = self.bypassing(offset, buf)
            && direct.read_exact_at(buf, offset).is_ok()
        {
            return Ok(());
        }
        // What failed above fails here too, or was refused for its shape.
        match self.file.read_exact_at(buf, offset) {
            Ok(()) => Ok(()),
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => {
                let end = end_of(offset, buf.len() as u64)?;
                Err(Error::new(
                    ErrorKind::ReadFault,
                    format!("read failed: bytes {offset} to {end} are past the end of the file"),
                )
                .with_path(&self.path))
            }
            Err(e) => Err(self.error("read", e)),
        }
    }

    fn lend(&self, offset: u64, length: u64, pipe: &PipeWriter) -> u64 {
        if !self.may_lend() {
            return 0;
        }
        let (mut at, end) = (offset, offset.saturating_add(length));
        while at < end {
            let left = crate::num::to_usize((end - at).min(1 << 30));
            // The flag is about room in the pipe only.
            let flags = SpliceFlags::NONBLOCK;
            match retry(|| splice(&self.file, Some(&mut at), pipe, None, left, flags)) {
                Ok(count) if count > 0 => {}
                _ => break,
            }
        }
        at - offset
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> Result<()> {
        let written = if !self.bypass {
            self.file.write_all_at(data, offset)
        } else if let Some(direct) = self.bypassing(offset, data) {
            let _shared = self.pages.read().unwrap_or_else(PoisonError::into_inner);
            match direct.write_all_at(data, offset) {
                // Refused for its shape: a device with larger sectors.
                Err(e) if is_invalid(&e) => self.file.write_all_at(data, offset),
                other => other,
            }
        } else {
            let _alone = self.pages.write().unwrap_or_else(PoisonError::into_inner);
            self.file.write_all_at(data, offset)
        };
        written.map_err(|e| self.error("write", e))
    }

    fn write_pipe(&self, offset: u64, length: u64, pipe: &PipeReader) -> u64 {
        if self.bypass {
            return 0;
        }
        let (mut at, end) = (offset, offset.saturating_add(length));
        while at < end {
            let left = crate::num::to_usize((end - at).min(1 << 30));
            // The flag is about bytes in the pipe only.
            let flags = SpliceFlags::NONBLOCK;
            match retry(|| splice(pipe, None, &self.file, Some(&mut at), left, flags)) {
                Ok(count) if count > 0 => {}
                _ => break,
            }
        }
        at - offset
    }

    fn flush(&self) -> Result<()> {
        retry(|| rustix::fs::fdatasync(&self.file)).map_err(|e| self.error("flush", e))
    }

    fn len(&self) -> Result<u64> {
        if self.block_device {
            return rustix::fs::seek(&self.file, SeekFrom::End(0))
                .map_err(|e| self.error("seek", e));
        }
        Ok(self
            .file
            .metadata()
            .map_err(|e| self.error("stat", e))?
            .len())
    }

    fn set_len(&self, length: u64) -> Result<()> {
        if self.block_device {
            return if self.len()? == length {
                Ok(())
            } else {
                Err(Error::new(
                    ErrorKind::HostLimitation,
                    "a block device cannot change its length",
                )
                .with_path(&self.path))
            };
        }
        self.file
            .set_len(length)
            .map_err(|e| self.error("write: change of length", e))
    }

    fn allocate(&self, offset: u64, length: u64) -> Result<()> {
        let end = end_of(offset, length)?;
        if length == 0
            || self.block_device
            || self.fallocate(FallocateFlags::empty(), offset, length)?
        {
            return Ok(());
        }
        if self.len()? < end {
            self.set_len(end)
        } else {
            Ok(())
        }
    }

    fn punch_hole(&self, offset: u64, length: u64) -> Result<()> {
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        if length == 0 || self.fallocate(flags, offset, length)? {
            return Ok(());
        }
        self.zero_by_writing(offset, length)
    }

    fn zero_range(&self, offset: u64, length: u64) -> Result<()> {
        // A small range is cheaper to write than to change in the file system's own maps.
        if length <= 64 * 1024 {
            return self.zero_by_writing(offset, length);
        }
        let flags = FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE;
        if self.fallocate(flags, offset, length)? {
            return Ok(());
        }
        self.zero_by_writing(offset, length)
    }

    fn next_data(&self, range: Range<u64>) -> Result<Option<Range<u64>>> {
        if range.start >= range.end {
            return Ok(None);
        }
        if self.block_device || self.no_holes.load(Relaxed) {
            return Ok(Some(range));
        }
        let known = lock(&self.known_data).clone();
        if known.contains(&range.start) {
            return Ok(Some(range.start..range.end.min(known.end)));
        }
        let start = match rustix::fs::seek(&self.file, SeekFrom::Data(range.start)) {
            Ok(start) => start.max(range.start),
            Err(Errno::NXIO) => return Ok(None),
            Err(e) if unsupported(e) => {
                self.no_holes.store(true, Relaxed);
                return Ok(Some(range));
            }
            Err(e) => return Err(self.error("seek", e)),
        };
        if start >= range.end {
            return Ok(None);
        }
        let end = match rustix::fs::seek(&self.file, SeekFrom::Hole(start)) {
            Ok(end) => end.max(start + 1),
            Err(_) => range.end,
        };
        *lock(&self.known_data) = start..end;
        Ok(Some(start..end.min(range.end)))
    }

    fn can_clone_from(&self, source: &dyn Storage) -> bool {
        // No file system clones a single byte in the middle of a block. One that can clone at all says so with EINVAL,
        // one that cannot says something else first.
        source.as_file().is_some_and(|source| {
            sys::clone_range(&self.file, &source.file, 1, 1, 1) == Err(Errno::INVAL)
        })
    }

    fn clone_range_from(
        &self,
        source: &dyn Storage,
        source_offset: u64,
        offset: u64,
        length: u64,
    ) -> Result<bool> {
        let Some(source) = source.as_file() else {
            return Ok(false);
        };
        if length == 0 || self.no_clone.load(Relaxed) {
            return Ok(false);
        }
        match retry(|| sys::clone_range(&self.file, &source.file, source_offset, offset, length)) {
            Ok(()) => Ok(true),
            // These two files never can: another file system, one without reflink.
            Err(Errno::XDEV | Errno::OPNOTSUPP | Errno::NOTTY | Errno::NOSYS | Errno::PERM) => {
                self.no_clone.store(true, Relaxed);
                Ok(false)
            }
            // This range cannot (alignment), or the file system declined.
            Err(Errno::INVAL | Errno::TXTBSY | Errno::ISDIR) => Ok(false),
            Err(e) => Err(self.error("write: clone of a range", e)),
        }
    }

    fn copy_range_from(
        &self,
        source: &dyn Storage,
        source_offset: u64,
        offset: u64,
        length: u64,
    ) -> Result<()> {
        if self.clone_range_from(source, source_offset, offset, length)? {
            return Ok(());
        }
        let mut done = 0;
        if let Some(from) = source.as_file() {
            while done < length {
                let n = crate::num::to_usize((length - done).min(1 << 30));
                let (mut from_at, mut to_at) = (source_offset + done, offset + done);
                match rustix::fs::copy_file_range(
                    &from.file,
                    Some(&mut from_at),
                    &self.file,
                    Some(&mut to_at),
                    n,
                ) {
                    // Nothing copied: the source ended, or a special file; memory will tell which.
                    Ok(0) => break,
                    Ok(n) => done += n as u64,
                    Err(Errno::INTR) => {}
                    Err(Errno::NOSPC | Errno::DQUOT | Errno::IO | Errno::FBIG) if done > 0 => {
                        break; // the plain copy meets it again and reports it where it happens
                    }
                    Err(_) => break,
                }
            }
        }
        copy_through_memory(
            self,
            source,
            source_offset + done,
            offset + done,
            length - done,
        )
    }

    fn write_bulk(&self, offset: u64, data: &[u8]) -> Result<()> {
        if is_aligned(offset, data)
            && data.len() >= 256 * 1024
            && let Some(direct) = self.direct()
        {
            match direct.write_all_at(data, offset) {
                Ok(()) => return Ok(()),
                // Refused for its shape (a device with larger sectors): the page cache takes anything.
                Err(e) if is_invalid(&e) => {}
                Err(e) => return Err(self.error("write", e)),
            }
        }
        // Requests beyond 256 KiB make the page cache take its slow path for very large folios.
        for (i, part) in data.chunks(256 * 1024).enumerate() {
            self.write_at(offset + (i as u64) * 256 * 1024, part)?;
        }
        Ok(())
    }

    fn reserve_bulk(&self, offset: u64, length: u64) -> Result<bool> {
        // Through the page cache, and on a file system in memory, it would only be more work.
        if length == 0 || self.block_device || self.direct().is_none() {
            return Ok(false);
        }
        let flags = FallocateFlags::KEEP_SIZE;
        match retry(|| rustix::fs::fallocate(&self.file, flags, offset, length)) {
            Ok(()) => Ok(true),
            // What is there may be enough for what is really written: nothing is kept of the attempt.
            Err(Errno::NOSPC | Errno::DQUOT | Errno::FBIG) => {
                self.release_unwritten(offset..offset + length)?;
                Ok(false)
            }
            Err(e) if unsupported(e) => Ok(false),
            Err(e) => Err(self.error("allocate space", e)),
        }
    }

    fn release_unwritten(&self, range: Range<u64>) -> Result<()> {
        /// Not worth a call.
        const SMALL: u64 = 64 * 1024;
        let mut at = range.start;
        while at < range.end {
            // File systems call reserved space a hole until it is written.
            let data = self.next_data(at..range.end)?;
            let (hole_end, next) = data.map_or((range.end, range.end), |d| (d.start, d.end));
            if hole_end - at >= SMALL {
                self.punch_hole(at, hole_end - at)?;
            }
            at = next;
        }
        Ok(())
    }

    fn grows_with_zeros(&self) -> bool {
        !self.block_device
    }

    fn survives_crash(&self) -> bool {
        !self.nameless.load(Relaxed)
    }

    fn path(&self) -> Option<&Path> {
        Some(&self.path)
    }

    fn as_file(&self) -> Option<&FileStorage> {
        Some(self)
    }
}

/// True if direct I/O accepts the request.
fn is_aligned(offset: u64, bytes: &[u8]) -> bool {
    const MASK: usize = AlignedBuffer::ALIGNMENT - 1;
    bytes.as_ptr().align_offset(AlignedBuffer::ALIGNMENT) == 0
        && bytes.len() & MASK == 0
        && offset & MASK as u64 == 0
}

fn is_invalid(error: &io::Error) -> bool {
    error.raw_os_error() == Some(Errno::INVAL.raw_os_error())
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn unsupported(error: Errno) -> bool {
    matches!(
        error,
        Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL | Errno::NODEV | Errno::SPIPE
    )
}

fn retry<T>(mut call: impl FnMut() -> rustix::io::Result<T>) -> rustix::io::Result<T> {
    loop {
        match call() {
            Err(Errno::INTR) => {}
            other => return other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lock_ends_with_the_storage_also_if_a_process_was_being_started() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("disk");
        std::fs::write(&path, [0; 512]).unwrap();
        let storage = FileStorage::open(&path, Access::ReadWrite).unwrap();
        // What fork does to the descriptor.
        let inherited = storage.file.try_clone().unwrap();
        assert_eq!(
            FileStorage::open(&path, Access::ReadOnly)
                .err()
                .map(|e| e.kind()),
            Some(ErrorKind::SharingViolation)
        );
        drop(storage);
        FileStorage::open(&path, Access::ReadWrite).unwrap();
        drop(inherited);
    }

    /// A new file sometimes has the number of one that another thread is just deleting; that one's place in the table of
    /// locks must not keep it from being opened.
    #[test]
    fn a_file_that_goes_does_not_lock_a_new_one_with_its_number() {
        // Not in memory, where numbers are not used again.
        let folder = std::env::current_exe().unwrap();
        let folder = tempfile::tempdir_in(folder.parent().unwrap()).unwrap();
        std::thread::scope(|scope| {
            for thread in 0..4 {
                let path = folder.path().join(format!("disk-{thread}"));
                scope.spawn(move || {
                    for _ in 0..1500 {
                        std::fs::write(&path, [0; 512]).unwrap();
                        let storage = FileStorage::open(&path, Access::ReadWrite).unwrap();
                        std::fs::remove_file(&path).unwrap();
                        drop(storage);
                    }
                });
            }
        });
    }

    const PAGE: usize = AlignedBuffer::ALIGNMENT;

    /// In the folder of the tests' programs: more likely than others on a disk.
    fn storage(name: &str) -> FileStorage {
        let folder = std::env::current_exe().unwrap();
        let path = folder.with_file_name(format!("{name}-{}", std::process::id()));
        let storage = FileStorage::from_file(
            OpenOptions::new()
                .read(true)
                .write(true)
                .create_new(true)
                .open(&path)
                .unwrap(),
            &path,
            Access::ReadWrite,
        );
        std::fs::remove_file(path).unwrap();
        storage.unwrap().with_direct_io(true)
    }

    #[test]
    fn direct_and_cached_requests_see_each_other() {
        let storage = storage("mixed");
        let mut page = AlignedBuffer::new(PAGE);
        page.fill(7);
        storage.set_len(10 * PAGE as u64 + 512).unwrap();
        storage.write_at(PAGE as u64, &page).unwrap();
        storage.write_at(PAGE as u64 + 100, b"cached").unwrap();
        page.fill(0);
        storage.read_at(PAGE as u64, &mut page).unwrap();
        assert_eq!(&page[99..107], b"\x07cached\x07");
        page.fill(8);
        storage.write_at(PAGE as u64, &page).unwrap();
        let mut few = [0; 3];
        storage.read_at(PAGE as u64 + 101, &mut few).unwrap();
        assert_eq!(few, [8; 3]);
        // The last page ends with the file in its middle.
        assert!(storage.read_at(10 * PAGE as u64, &mut page).is_err());
        storage.read_at(10 * PAGE as u64, &mut page[..512]).unwrap();
        assert_eq!(page[..512], [0; 512]);
        storage.flush().unwrap();
    }

    #[test]
    fn a_part_of_a_page_never_brings_back_what_a_direct_write_replaced() {
        let storage = storage("raced");
        storage.set_len(PAGE as u64).unwrap();
        let mut page = AlignedBuffer::new(PAGE);
        for round in 1..=200_u8 {
            page.fill(round);
            std::thread::scope(|scope| {
                scope.spawn(|| storage.write_at(0, &[round; 512]).unwrap());
                storage.write_at(0, &page).unwrap();
            });
            let mut found = AlignedBuffer::new(PAGE);
            storage.read_at(0, &mut found).unwrap();
            assert!(found.iter().all(|&byte| byte == round), "round {round}");
        }
    }
}
