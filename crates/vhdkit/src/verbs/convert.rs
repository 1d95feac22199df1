//! `convert`: any disk, its chain flattened, into a new file of any writable format.

use std::path::PathBuf;

use crate::disk::OpenOptions;
use crate::error::{Error, ErrorKind, Result};
use crate::image::{DiskType, Format, IdentifierSource};
use crate::operation::Operation;
use uuid::Uuid;

/// What to convert into what. Sizes are in bytes; `None` takes the format's default.
#[derive(Clone, Debug)]
#[expect(clippy::exhaustive_structs, reason = "a plain request")]
pub struct ConvertOptions {
    /// The disk to read; its parents are read through it.
    pub source: PathBuf,
    /// How to open it.
    pub open: OpenOptions,
    /// The file (or, for raw, block device) to make.
    pub target: PathBuf,
    /// The target's format.
    pub format: Format,
    /// How the target takes space; never differencing. Raw ignores it: holes stay holes.
    pub disk_type: DiskType,
    /// The target's unit of allocation.
    pub block_size: Option<u64>,
    /// The target's sectors; `None` takes the source's where the format allows it.
    pub logical_sector_size: Option<u32>,
    /// The target's physical sectors.
    pub physical_sector_size: Option<u32>,
    /// The target's identifier.
    pub identifier: Option<Uuid>,
    /// Where identifiers come from.
    pub identifiers: IdentifierSource,
    /// Seconds since 1970 to store as time of creation.
    pub created: i64,
    /// Replace an existing file (only when the new one is complete).
    pub overwrite: bool,
}

/// What a conversion did. Sizes are in bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[non_exhaustive]
pub struct ConvertReport {
    /// Size of the virtual disk.
    pub virtual_size: u64,
    /// Bytes written as data.
    pub copied: u64,
    /// Bytes shared with the source by the file system instead of being copied.
    pub cloned: u64,
    /// Bytes that are zero and take no space in a target that can leave them out.
    pub zero: u64,
    /// Length of the new file.
    pub file_size: u64,
}

/// Converts. Units of progress: bytes of the source that hold data. A cancelled or failed conversion leaves no file
/// and never touches the source.
///
/// # Errors
/// Through the operation: what opening the source and creating the target can fail with, and
/// [`ErrorKind::ReadFault`], [`ErrorKind::WriteFault`], [`ErrorKind::DiskFull`].
pub fn convert(_options: ConvertOptions) -> Operation<ConvertReport> {
    Operation::start("convert", |_| -> Result<ConvertReport> {
        Err(Error::new(ErrorKind::NotSupported, "not yet"))
    })
}
