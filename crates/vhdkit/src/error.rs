//! The one error of the library.
//!
//! An [`Error`] has a stable [`ErrorKind`] for programs (each kind is exactly one Win32 code) and a sentence for
//! people: what failed, on which file, why, and what to do about it.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

/// The library's result type.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong, on which file, why, and what to do about it.
pub struct Error(Box<Inner>);

struct Inner {
    kind: ErrorKind,
    action: Option<String>,
    path: Option<PathBuf>,
    reason: String,
    hint: Option<String>,
    source: Option<io::Error>,
}

/// Too many open files, which `io::ErrorKind` has no name for.
const EMFILE: i32 = 24;

impl Error {
    /// An error of `kind` with the reason in words: lower case, no full stop, values in it.
    pub fn new(kind: ErrorKind, reason: impl Into<String>) -> Self {
        Self(Box::new(Inner {
            kind,
            action: None,
            path: None,
            reason: reason.into(),
            hint: None,
            source: None,
        }))
    }

    /// An operating-system error met while doing `action` ("read", "write", "flush" ...).
    pub fn io(action: &str, source: io::Error) -> Self {
        let kind = ErrorKind::of_io(&source, action);
        let mut error = Self::new(kind, format!("{action} failed: {}", words(&source)));
        error.0.hint = match kind {
            ErrorKind::DiskFull => {
                Some("free some space on the file system, or choose another target".into())
            }
            ErrorKind::AccessDenied => {
                Some("check the permissions of the file and its folder".into())
            }
            ErrorKind::WriteProtected => Some("choose a place that can be written to".into()),
            _ if source.raw_os_error() == Some(EMFILE) => {
                Some("allow more open files (ulimit -n)".into())
            }
            _ => None,
        };
        error.0.source = Some(source);
        error
    }

    /// An operating-system error met while opening a file, or looking for it.
    pub fn open(path: &Path, source: io::Error) -> Self {
        const SPELLING: &str = "check the spelling of the path";
        let is_lost = |folder: &Path| !folder.as_os_str().is_empty() && !folder.exists();
        let (kind, reason, hint) = match source.kind() {
            io::ErrorKind::IsADirectory => return Self::no_disk(path, "a folder"),
            io::ErrorKind::NotFound if path.parent().is_some_and(is_lost) => (
                ErrorKind::PathNotFound,
                "the folder does not exist",
                SPELLING,
            ),
            io::ErrorKind::NotFound => (ErrorKind::NotFound, "the file does not exist", SPELLING),
            io::ErrorKind::PermissionDenied => (
                ErrorKind::AccessDenied,
                "permission denied",
                "check the permissions of the file and its folder",
            ),
            io::ErrorKind::ReadOnlyFilesystem => (
                ErrorKind::WriteProtected,
                "the file system is read-only",
                "copy the file to a writable file system, or open it read-only",
            ),
            _ => return Self::io("open", source).with_path(path),
        };
        Self::new(kind, reason).with_path(path).with_hint(hint)
    }

    /// What is there is something that no disk can be in.
    pub(crate) fn no_disk(path: &Path, what: &str) -> Self {
        Self::new(ErrorKind::NotSupported, format!("it is {what}"))
            .with_path(path)
            .with_hint("name a disk image file or a block device")
    }

    /// Names the file, unless an inner layer already did.
    #[must_use]
    pub fn with_path(mut self, path: impl AsRef<Path>) -> Self {
        if self.0.path.is_none() {
            self.0.path = Some(path.as_ref().to_path_buf());
        }
        self
    }

    /// Says what to do about it, unless an inner layer already did.
    #[must_use]
    pub fn with_hint(mut self, hint: impl Into<String>) -> Self {
        if self.0.hint.is_none() {
            self.0.hint = Some(hint.into());
        }
        self
    }

    /// Says what to do about it, also where the error of the operating system alone had suggested something.
    #[must_use]
    pub fn with_better_hint(mut self, hint: impl Into<String>) -> Self {
        self.0.hint = Some(hint.into());
        self
    }

    /// Says what was being attempted ("cannot open"), unless an inner layer already did.
    #[must_use]
    pub fn while_doing(mut self, action: impl Into<String>) -> Self {
        if self.0.action.is_none() {
            self.0.action = Some(action.into());
        }
        self
    }

    /// The same error under another kind, the reason kept (a parent's damage becomes "error in parent").
    #[must_use]
    pub fn with_kind(mut self, kind: ErrorKind) -> Self {
        self.0.kind = kind;
        self
    }

    /// A copy for a second caller; the operating system's own error value is not repeated in it.
    #[must_use]
    pub fn duplicate(&self) -> Self {
        Self(Box::new(Inner {
            kind: self.0.kind,
            action: self.0.action.clone(),
            path: self.0.path.clone(),
            reason: self.0.reason.clone(),
            hint: self.0.hint.clone(),
            source: None,
        }))
    }

    /// The kind, for programs.
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// The file it is about.
    pub fn path(&self) -> Option<&Path> {
        self.0.path.as_deref()
    }

    /// Why, without the file's name.
    pub fn reason(&self) -> &str {
        &self.0.reason
    }

    /// What to do about it.
    pub fn hint(&self) -> Option<&str> {
        self.0.hint.as_deref()
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.0.action, &self.0.path) {
            (Some(action), Some(path)) => write!(f, "{action} {}: ", path.display())?,
            (Some(action), None) => write!(f, "{action}: ")?,
            (None, Some(path)) => write!(f, "{}: ", path.display())?,
            (None, None) => {}
        }
        f.write_str(&self.0.reason)
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}({self})", self.0.kind)
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.0.source.as_ref().map(|e| e as _)
    }
}

/// Adds the file and the attempted action to the error of a result.
pub trait Context<T> {
    /// See [`Error::with_path`].
    fn at_path(self, path: impl AsRef<Path>) -> Result<T>;
    /// See [`Error::while_doing`].
    fn while_doing(self, action: &str) -> Result<T>;
}

impl<T> Context<T> for Result<T> {
    fn at_path(self, path: impl AsRef<Path>) -> Result<T> {
        self.map_err(|e| e.with_path(path))
    }
    fn while_doing(self, action: &str) -> Result<T> {
        self.map_err(|e| e.while_doing(action))
    }
}

macro_rules! kinds {
    ($($(#[$doc:meta])* $name:ident = $code:expr;)*) => {
        /// The closed list of what can go wrong. Each kind is exactly one Win32 code.
        #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
        #[non_exhaustive]
        pub enum ErrorKind { $($(#[$doc])* $name,)* }

        impl ErrorKind {
            /// Every kind.
            pub const ALL: &'static [ErrorKind] = &[$(ErrorKind::$name,)*];

            /// The Win32 error code that stands for this kind.
            pub const fn win32_code(self) -> u32 {
                match self { $(ErrorKind::$name => $code,)* }
            }
        }
    };
}

kinds! {
    /// ERROR_FILE_NOT_FOUND: the file does not exist.
    NotFound = 2;
    /// ERROR_PATH_NOT_FOUND: a folder on the way to the file does not exist.
    PathNotFound = 3;
    /// ERROR_ACCESS_DENIED: permissions forbid it.
    AccessDenied = 5;
    /// ERROR_NOT_ENOUGH_MEMORY.
    OutOfMemory = 8;
    /// ERROR_WRITE_PROTECT: the disk was opened read-only, or its medium is.
    WriteProtected = 19;
    /// ERROR_WRITE_FAULT: the operating system failed to write.
    WriteFault = 29;
    /// ERROR_READ_FAULT: the operating system failed to read.
    ReadFault = 30;
    /// ERROR_GEN_FAILURE: another operating-system error.
    Io = 31;
    /// ERROR_SHARING_VIOLATION: somebody else has the file open in a conflicting way.
    SharingViolation = 32;
    /// ERROR_HANDLE_EOF: a range reaches past the end of the disk.
    BeyondEnd = 38;
    /// ERROR_NOT_SUPPORTED: not possible for this format, file or system.
    NotSupported = 50;
    /// ERROR_FILE_EXISTS: the target exists and overwriting was not asked for.
    AlreadyExists = 80;
    /// ERROR_INVALID_PARAMETER: an argument is outside its range.
    InvalidParameter = 87;
    /// ERROR_DISK_FULL: the host file system has no space left.
    DiskFull = 112;
    /// ERROR_BUSY: another operation is running on this disk.
    Busy = 170;
    /// ERROR_FILE_TOO_LARGE: the host file system or the process limit forbids a file this long.
    FileTooLarge = 223;
    /// ERROR_OPERATION_ABORTED: cancelled on request.
    Aborted = 995;
    /// ERROR_NOT_FOUND: there is no such item, or no such operation.
    ItemNotFound = 1168;
    /// ERROR_FILE_CORRUPT: VHDX headers, regions, metadata or log, or an ISO's descriptors, are damaged.
    FileCorrupt = 1392;
    /// ERROR_VHD_DRIVE_FOOTER_MISSING.
    FooterMissing = 0xC03A_0001;
    /// ERROR_VHD_DRIVE_FOOTER_CHECKSUM_MISMATCH.
    FooterChecksumMismatch = 0xC03A_0002;
    /// ERROR_VHD_DRIVE_FOOTER_CORRUPT.
    FooterCorrupt = 0xC03A_0003;
    /// ERROR_VHD_FORMAT_UNKNOWN: no known signature.
    FormatUnknown = 0xC03A_0004;
    /// ERROR_VHD_FORMAT_UNSUPPORTED_VERSION: a newer version, or an unknown required structure.
    UnsupportedVersion = 0xC03A_0005;
    /// ERROR_VHD_SPARSE_HEADER_CHECKSUM_MISMATCH.
    SparseHeaderChecksumMismatch = 0xC03A_0006;
    /// ERROR_VHD_SPARSE_HEADER_UNSUPPORTED_VERSION.
    SparseHeaderUnsupportedVersion = 0xC03A_0007;
    /// ERROR_VHD_SPARSE_HEADER_CORRUPT.
    SparseHeaderCorrupt = 0xC03A_0008;
    /// ERROR_VHD_BLOCK_ALLOCATION_FAILURE: no further block can be placed in the file.
    BlockAllocationFailure = 0xC03A_0009;
    /// ERROR_VHD_BLOCK_ALLOCATION_TABLE_CORRUPT.
    BlockAllocationTableCorrupt = 0xC03A_000A;
    /// ERROR_VHD_INVALID_BLOCK_SIZE.
    InvalidBlockSize = 0xC03A_000B;
    /// ERROR_VHD_BITMAP_MISMATCH: a partially present block without its sector bitmap.
    BitmapMismatch = 0xC03A_000C;
    /// ERROR_VHD_PARENT_VHD_NOT_FOUND.
    ParentNotFound = 0xC03A_000D;
    /// ERROR_VHD_CHILD_PARENT_ID_MISMATCH.
    ParentIdMismatch = 0xC03A_000E;
    /// ERROR_VHD_CHILD_PARENT_TIMESTAMP_MISMATCH.
    ParentTimestampMismatch = 0xC03A_000F;
    /// ERROR_VHD_INVALID_SIZE: the virtual size is outside the format's limits.
    InvalidSize = 0xC03A_0012;
    /// ERROR_VHD_INVALID_FILE_SIZE: the file is shorter than its structures say.
    InvalidFileSize = 0xC03A_0013;
    /// ERROR_VHD_PARENT_VHD_ACCESS_DENIED.
    ParentAccessDenied = 0xC03A_0016;
    /// ERROR_VHD_CHILD_PARENT_SIZE_MISMATCH: sizes or sector sizes of child and parent disagree.
    ParentSizeMismatch = 0xC03A_0017;
    /// ERROR_VHD_DIFFERENCING_CHAIN_CYCLE_DETECTED.
    ChainCycle = 0xC03A_0018;
    /// ERROR_VHD_DIFFERENCING_CHAIN_ERROR_IN_PARENT: an ancestor is damaged.
    ErrorInParent = 0xC03A_0019;
    /// ERROR_VIRTUAL_DISK_LIMITATION: the host's volume or device cannot hold this kind of file.
    HostLimitation = 0xC03A_001A;
    /// ERROR_VHD_INVALID_TYPE: the operation does not fit fixed, dynamic or differencing.
    InvalidType = 0xC03A_001B;
    /// ERROR_VHD_INVALID_STATE: saved state, unfinished file, failed or closed disk.
    InvalidState = 0xC03A_001C;
    /// ERROR_VIRTDISK_UNSUPPORTED_DISK_SECTOR_SIZE.
    UnsupportedSectorSize = 0xC03A_001D;
    /// ERROR_VHD_RESIZE_WOULD_TRUNCATE_DATA: the new size would cut off a partition.
    WouldTruncateData = 0xC03A_0025;
    /// ERROR_VHD_COULD_NOT_COMPUTE_MINIMUM_VIRTUAL_SIZE: there is no readable partition table.
    NoSmallestSize = 0xC03A_0026;
    /// ERROR_VHD_ALREADY_AT_OR_BELOW_MINIMUM_VIRTUAL_SIZE.
    AlreadySmallest = 0xC03A_0027;
    /// ERROR_VHD_METADATA_FULL: no room for further metadata items.
    MetadataFull = 0xC03A_0028;
}

impl ErrorKind {
    fn of_io(error: &io::Error, action: &str) -> Self {
        use io::ErrorKind as K;
        match error.kind() {
            K::NotFound => ErrorKind::NotFound,
            K::NotADirectory => ErrorKind::PathNotFound,
            K::PermissionDenied => ErrorKind::AccessDenied,
            K::AlreadyExists => ErrorKind::AlreadyExists,
            K::StorageFull | K::QuotaExceeded => ErrorKind::DiskFull,
            K::FileTooLarge => ErrorKind::FileTooLarge,
            K::ReadOnlyFilesystem => ErrorKind::WriteProtected,
            K::OutOfMemory => ErrorKind::OutOfMemory,
            K::Unsupported => ErrorKind::NotSupported,
            K::UnexpectedEof => ErrorKind::ReadFault,
            _ if action.starts_with("read") => ErrorKind::ReadFault,
            _ if action.starts_with("write") || action.starts_with("flush") => {
                ErrorKind::WriteFault
            }
            _ => ErrorKind::Io,
        }
    }
}

/// The operating system's words without the "(os error N)" tail.
fn words(error: &io::Error) -> String {
    let text = error.to_string();
    let text = text.split(" (os error").next().unwrap_or(&text);
    let mut letters = text.chars();
    match letters.next() {
        Some(first) => first.to_lowercase().chain(letters).collect(),
        None => "unknown error".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn every_kind_has_its_own_win32_code() {
        let codes: HashSet<u32> = ErrorKind::ALL.iter().map(|k| k.win32_code()).collect();
        assert_eq!(codes.len(), ErrorKind::ALL.len());
        assert!(
            !codes.contains(&0) && !codes.contains(&997),
            "neither success nor pending"
        );
    }

    #[test]
    fn the_sentence_says_what_file_why() {
        let error = Error::new(ErrorKind::FileCorrupt, "both headers are invalid")
            .with_path("a.vhdx")
            .with_path("outer.vhdx")
            .while_doing("cannot open");
        assert_eq!(
            error.to_string(),
            "cannot open a.vhdx: both headers are invalid"
        );
    }

    #[test]
    fn operating_system_errors_become_kinds() {
        let full = Error::io("write", io::Error::from_raw_os_error(28));
        assert_eq!(full.kind(), ErrorKind::DiskFull);
        assert!(full.hint().is_some());
        assert_eq!(
            Error::io("read", io::Error::from_raw_os_error(5)).kind(),
            ErrorKind::ReadFault
        );
    }
}
