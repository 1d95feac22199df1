//! What `GetVirtualDiskInformation` tells of a disk, beyond what its leaf says about itself ([`ImageInfo`]): the fifteen
//! kinds of the API, of which those that cost more than a look are functions.
//!
//! | kind | here |
//! |---|---|
//! | size, identifier, virtual disk id, storage type, provider subtype, physical sector size, parent identifier and time stamp | [`ImageInfo`] |
//! | parent location | [`parent_location`] |
//! | smallest safe virtual size | [`smallest_safe_size`](super::resize::smallest_safe_size) |
//! | fragmentation | [`fragmentation`] |
//! | is 4k aligned | [`is_4k_aligned`] |
//! | physical disk | [`HostDisk`](crate::storage::HostDisk) |
//! | is loaded | known to who attached it |
//! | change tracking state | off, unless there are [`change_tracking_files`] |
//!
//! [`ImageInfo`]: crate::image::ImageInfo

use std::path::PathBuf;

use crate::disk::{ParentMap, VirtualDisk, find_parents};
use crate::error::{Context, Result};
use crate::image::{DiskType, ExtentKind, ParentPath, Usage};

/// Where the parent of a differencing disk is.
#[derive(Clone, PartialEq, Eq, Debug)]
#[expect(clippy::exhaustive_enums, reason = "found or not")]
pub enum ParentLocation {
    /// This file.
    Resolved(PathBuf),
    /// None of the recorded places leads to a file.
    Candidates(Vec<ParentPath>),
}

/// Where the leaf's parent is: the file that the disk was opened with, else as the leaf's own records say. `None` if it
/// has no parent.
pub fn parent_location(disk: &VirtualDisk, map: &ParentMap) -> Option<ParentLocation> {
    let layers = disk.layers();
    let leaf = layers.first()?;
    let reference = leaf.info.parent.as_ref()?;
    Some(match layers.get(1) {
        Some(parent) => ParentLocation::Resolved(parent.path.clone()),
        None => match find_parents(&leaf.path, reference, map) {
            Ok(mut found) => ParentLocation::Resolved(found.swap_remove(0)),
            Err(_) => ParentLocation::Candidates(reference.paths.clone()),
        },
    })
}

/// Files in which Windows keeps track of changes to the disk (`disk.vhdx.rct`, `disk.vhdx.mrt`), if they lie beside it.
/// What they hold is not known, nor do they hear of what is written here; without them no changes are tracked.
pub fn change_tracking_files(disk: &VirtualDisk) -> Vec<PathBuf> {
    let path = disk.path();
    let beside = ["rct", "mrt"].map(|extension| path.with_added_extension(extension));
    beside.into_iter().filter(|path| path.exists()).collect()
}

/// How the space of the leaf's file is used.
///
/// # Errors
/// What reading the tables can fail with.
pub fn usage(disk: &VirtualDisk) -> Result<Usage> {
    disk.with_chain(|chain| {
        let leaf = chain.leaf();
        leaf.image().usage().at_path(leaf.path())
    })
}

/// How many of the leaf's blocks do not lie directly behind the one before them, in percent; 0 for fixed disks and
/// formats without blocks.
///
/// # Errors
/// What reading the tables can fail with.
pub fn fragmentation(disk: &VirtualDisk) -> Result<u32> {
    let usage = usage(disk)?;
    let steps = usage.allocated_blocks.saturating_sub(1).max(1);
    let percent = u128::from(usage.displaced_blocks) * 100 / u128::from(steps);
    Ok(u32::try_from(percent).unwrap_or(100))
}

/// True if bytes that lie on a multiple of 4096 on the disk do so in the leaf's file as well.
///
/// # Errors
/// What reading the tables can fail with.
pub fn is_4k_aligned(disk: &VirtualDisk) -> Result<bool> {
    if disk.info().disk_type == DiskType::Fixed {
        return Ok(true);
    }
    let (mut at, size) = (0, disk.virtual_size());
    while at < size {
        let (length, aligned) = disk.with_chain(|chain| {
            let leaf = chain.leaf();
            let extent = leaf.image().map(at, size - at).at_path(leaf.path())?;
            let aligned = match extent.kind {
                ExtentKind::Data { storage_offset } => storage_offset % 4096 == at % 4096,
                _ => true,
            };
            Ok::<_, crate::Error>((extent.length, aligned))
        })?;
        if !aligned {
            return Ok(false);
        }
        at += length;
    }
    Ok(true)
}
