//! Many readers or one writer, across processes (flock) and within one (a table).
//!
//! flock alone would do within one process on Linux, but not on file systems without locks; the table alone would not
//! be seen by others. Together a conflict inside the process is always found, one with another process wherever the
//! file system can tell.

use std::collections::HashMap;
use std::fs::{File, TryLockError};
use std::io;
use std::path::Path;
use std::sync::{LazyLock, Mutex, PoisonError};

use crate::error::{Error, ErrorKind, Result};

/// The identity of an open file: device and inode.
pub(super) type FileId = (u64, u64);

/// -1: one writer; n > 0: n readers.
static OPEN_FILES: LazyLock<Mutex<HashMap<FileId, isize>>> = LazyLock::new(Mutex::default);

/// A place in the table, given back on drop. The flock goes with the file's last descriptor.
pub(super) struct Lock {
    id: FileId,
}

impl Lock {
    pub(super) fn acquire(file: &File, id: FileId, path: &Path, exclusive: bool) -> Result<Self> {
        let held = if exclusive {
            file.try_lock()
        } else {
            file.try_lock_shared()
        };
        match held {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(conflict(path, exclusive)),
            // A file system without locks: the table is what is left.
            Err(TryLockError::Error(e)) if without_locks(&e) => {}
            Err(TryLockError::Error(e)) => return Err(Error::io("lock", e).with_path(path)),
        }
        let mut table = OPEN_FILES.lock().unwrap_or_else(PoisonError::into_inner);
        let count = table.entry(id).or_insert(0);
        if *count < 0 || (exclusive && *count > 0) {
            return Err(conflict(path, exclusive));
        }
        *count = if exclusive { -1 } else { *count + 1 };
        Ok(Self { id })
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        let mut table = OPEN_FILES.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = table.get_mut(&self.id) {
            *count = if *count < 0 { 0 } else { *count - 1 };
            if *count == 0 {
                table.remove(&self.id);
            }
        }
    }
}

fn without_locks(error: &io::Error) -> bool {
    // ENOSYS, EOPNOTSUPP and ENOLCK (NFS without a lock daemon).
    error.kind() == io::ErrorKind::Unsupported || matches!(error.raw_os_error(), Some(37 | 38 | 95))
}

fn conflict(path: &Path, exclusive: bool) -> Error {
    let reason = if exclusive {
        "the file is in use, so it cannot be opened for writing"
    } else {
        "the file is open for writing elsewhere"
    };
    Error::new(ErrorKind::SharingViolation, reason)
        .with_path(path)
        .with_hint("close the other user of the disk (a virtual machine, an attached disk, another vhdkit) and try again")
}
