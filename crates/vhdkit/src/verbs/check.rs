//! `check`: what is wrong with a file, without changing it.

use std::path::Path;
use std::sync::Arc;

use crate::disk::detect_format;
use crate::error::{Context, Result};
use crate::image::{Finding, Format};
use crate::storage::{Access, FileStorage, Storage};
use crate::{vhd, vhdx};

/// Looks at every structure of one file, read-only; parents are not opened. Findings come in the order of the file.
///
/// # Errors
/// Only if the file cannot be read at all; damage is a finding, not an error.
pub fn check_file(path: impl AsRef<Path>) -> Result<Vec<Finding>> {
    let path = path.as_ref();
    let storage: Arc<dyn Storage> = Arc::new(FileStorage::open(path, Access::ReadOnly)?);
    check_storage(&storage)
        .at_path(path)
        .while_doing("cannot check")
}

/// As [`check_file`], for any storage.
///
/// # Errors
/// As [`check_file`].
pub fn check_storage(storage: &Arc<dyn Storage>) -> Result<Vec<Finding>> {
    match detect_format(&**storage)? {
        Format::Vhd => vhd::check(storage),
        Format::Vhdx => vhdx::check(storage),
        Format::Raw | Format::Iso => Ok(Vec::new()),
    }
}
