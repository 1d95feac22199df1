//! Files that a merge has to delete, written down before nothing leads to them any more.
//!
//! Once the disk has the target as its parent, the merged files between them are in no chain: a crash before the last of
//! them is gone would leave them for good. So a list of them is put beside the disk first, as `DISK.vhdkit-merged`, and
//! goes when they are gone. The next merge of the disk deletes what a list that it finds names, each file only if it
//! still is what was listed.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use uuid::Uuid;

use crate::disk::{Layer, OpenOptions, Parents};
use crate::error::{Error, ErrorKind, Result};
use crate::image::DiskType;
use crate::storage::{Access, FileStorage, NewFile, sync_names};

use super::super::set_parent::same_file;

const FIRST_LINE: &[u8] = b"vhdkit: files of a merge, to be deleted\n";
/// No list is longer, in bytes.
const LONGEST: u64 = 1 << 22;

/// A merged file and its identity.
pub(super) struct Leftover {
    pub(super) path: PathBuf,
    pub(super) identifier: Uuid,
}

fn list_of(disk: &Path) -> PathBuf {
    let mut name = disk.file_name().map(OsString::from).unwrap_or_default();
    name.push(".vhdkit-merged");
    disk.with_file_name(name)
}

/// Writes the list, durably.
pub(super) fn write(disk: &Path, files: &[Leftover]) -> Result<()> {
    let mut bytes = FIRST_LINE.to_vec();
    for file in files {
        let path = std::path::absolute(&file.path)
            .map_err(|e| Error::io("resolve", e).with_path(&file.path))?;
        bytes.extend(file.identifier.to_string().as_bytes());
        bytes.push(b' ');
        bytes.extend(path.as_os_str().as_bytes());
        // The one byte that no path holds.
        bytes.push(0);
    }
    let list = NewFile::create(&list_of(disk), false)?;
    list.storage().write_at(0, &bytes)?;
    list.storage().flush()?;
    list.publish()
}

/// Deletes the list, if there is one.
pub(super) fn forget(disk: &Path) -> Result<()> {
    let path = list_of(disk);
    match std::fs::remove_file(&path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            Err(Error::io("delete", e).with_path(path))
        }
        Err(_) => Ok(()),
        Ok(()) => sync_names(&path),
    }
}

/// The files that an earlier merge of the disk was to delete and that are still there: none if there is no list, or if
/// the chain needs one of them after all.
pub(super) fn find(disk: &Path, chain: &[Layer]) -> Vec<PathBuf> {
    let listed = read(&list_of(disk)).unwrap_or_default();
    let is_needed = |file: &Leftover| chain.iter().any(|l| same_file(l.path(), &file.path));
    if listed.iter().any(is_needed) {
        return Vec::new();
    }
    let mut known: Vec<Uuid> = listed.iter().map(|file| file.identifier).collect();
    known.extend(
        chain
            .iter()
            .filter_map(|layer| layer.image().info().link_identifier),
    );
    listed
        .into_iter()
        .filter(|file| is_still(file, &known))
        .map(|file| file.path)
        .collect()
}

fn read(list: &Path) -> Option<Vec<Leftover>> {
    if std::fs::symlink_metadata(list).ok()?.len() > LONGEST {
        return None;
    }
    let bytes = std::fs::read(list).ok()?;
    bytes
        .strip_prefix(FIRST_LINE)?
        .split(|&byte| byte == 0)
        .filter(|entry| !entry.is_empty())
        .map(|entry| {
            let (identifier, path) = entry.split_at_checked(37)?;
            Some(Leftover {
                identifier: std::str::from_utf8(&identifier[..36]).ok()?.parse().ok()?,
                path: PathBuf::from(OsStr::from_bytes(path)),
            })
        })
        .collect()
}

/// True if it is the file that was listed, a child of a known disk, and nobody uses it.
fn is_still(file: &Leftover, known: &[Uuid]) -> bool {
    if FileStorage::open(&file.path, Access::ReadWrite).is_err() {
        return false;
    }
    let open = OpenOptions::new().parents(Parents::Ignored);
    let Ok(disk) = open.open(&file.path) else {
        return false;
    };
    let info = disk.info();
    info.disk_type == DiskType::Differencing
        && info.link_identifier == Some(file.identifier)
        && info
            .parent
            .is_some_and(|parent| parent.identifiers.iter().any(|id| known.contains(id)))
}

/// Deletes files, in this order, durably.
pub(super) fn delete(paths: &[PathBuf], deleted: &mut Vec<PathBuf>) -> Result<()> {
    for path in paths {
        match std::fs::remove_file(path) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                return Err(Error::io("delete", e).with_path(path));
            }
            _ => deleted.push(path.clone()),
        }
    }
    let one_of_each_folder: BTreeMap<_, _> = paths.iter().map(|p| (p.parent(), p)).collect();
    one_of_each_folder
        .values()
        .try_for_each(|path| sync_names(path))
}

/// The merged layers as they go into a list.
pub(super) fn of_layers(layers: &[Layer]) -> Result<Vec<Leftover>> {
    layers
        .iter()
        .map(|layer| {
            let identifier = layer.image().info().link_identifier.ok_or_else(|| {
                Error::new(ErrorKind::InvalidType, "its format has no identity")
                    .with_path(layer.path())
            })?;
            Ok(Leftover {
                path: layer.path().to_path_buf(),
                identifier,
            })
        })
        .collect()
}
