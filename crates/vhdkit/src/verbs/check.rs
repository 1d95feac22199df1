//! `check`: what is wrong with a file, without changing it.

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;

use crate::disk::{VirtualDisk, detect_format};
use crate::error::{Context, Error, ErrorKind, Result};
use crate::image::{Finding, Format, Severity};
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

/// Whether the children of an open chain still fit their parents, as far as opening it did not show: for each finding the
/// number of the child's layer. A VHD's identifier does not change when it is written to, so its size and the time of its
/// last change are the only signs of it; but the latter also changes when the file is copied, or given another parent.
pub fn check_links(disk: &VirtualDisk) -> Vec<(usize, Finding)> {
    let layers = disk.layers();
    let mut found = Vec::new();
    for (number, pair) in layers.windows(2).enumerate() {
        let [child, parent] = pair else { continue };
        if child.info.format != Format::Vhd {
            continue;
        }
        let path = parent.path.display();
        let mut add = |severity, code, message| {
            let finding = Finding {
                code,
                severity,
                offset: None,
                message,
            };
            found.push((number, finding));
        };
        if child.info.virtual_size != parent.info.virtual_size {
            add(
                Severity::Warning,
                "vhd-parent-size",
                format!(
                    "the disk has {} bytes, its parent {path} {}",
                    child.info.virtual_size, parent.info.virtual_size
                ),
            );
        }
        let recorded = child.info.parent.as_ref().and_then(|p| p.modified);
        let modified = std::fs::metadata(&parent.path).map(|m| m.mtime());
        if let (Some(recorded), Ok(modified)) = (recorded, modified)
            && recorded != modified
        {
            add(
                Severity::Info,
                "vhd-parent-modified",
                format!(
                    "its parent {path} was last changed {} seconds {} the time that is recorded: if it was not only copied, but written to, this disk is damaged",
                    modified.abs_diff(recorded),
                    if modified > recorded {
                        "after"
                    } else {
                        "before"
                    },
                ),
            );
        }
    }
    found
}

/// What is wrong with a chain that cannot be opened; `None` if it could not be looked at.
pub fn broken_chain(error: &Error) -> Option<Finding> {
    let code = match error.kind() {
        ErrorKind::ParentNotFound => "chain-parent-missing",
        ErrorKind::ParentIdMismatch | ErrorKind::ParentTimestampMismatch => "chain-parent-mismatch",
        ErrorKind::ParentSizeMismatch => "chain-parent-sectors",
        ErrorKind::ChainCycle => "chain-cycle",
        ErrorKind::ErrorInParent => "chain-parent-damaged",
        _ => return None,
    };
    Some(Finding {
        code,
        severity: Severity::Error,
        offset: None,
        message: error.reason().to_owned(),
    })
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
