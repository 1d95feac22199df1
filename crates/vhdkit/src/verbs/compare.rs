//! `compare`: do two disks read the same?

use crate::disk::VirtualDisk;
use crate::error::{Error, ErrorKind, Result};
use crate::operation::Operation;

/// What a comparison found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct Comparison {
    /// Offset of the first byte that differs; `None` if the disks read the same. A longer disk whose surplus is all
    /// zeros counts as the same.
    pub first_difference: Option<u64>,
    /// True if the sizes differ (and the surplus is zeros).
    pub sizes_differ: bool,
}

/// Compares two disks. Units of progress: bytes where at least one of the two holds data.
///
/// # Errors
/// Through the operation: what reading can fail with.
pub fn compare(_a: VirtualDisk, _b: VirtualDisk) -> Operation<Comparison> {
    Operation::start("compare", |_| -> Result<Comparison> {
        Err(Error::new(ErrorKind::NotSupported, "not yet"))
    })
}
