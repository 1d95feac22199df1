//! SetVirtualDiskInformation (contract, 2.9).

use std::path::PathBuf;
use std::sync::Arc;

use uuid::Uuid;
use vhdkit::image::Format;
use vhdkit::verbs::set;
use vhdkit::verbs::set_parent::{SetParentOptions, set_parent, set_parent_locator};

use crate::access::{Access, Right};
use crate::codes::*;
use crate::constants::*;
use crate::disk::{Disk, DiskHandle};
use crate::guard::{Answer, Code, INVALID, guard, read, require, require_or};
use crate::handles;
use crate::strings::full_path;
use crate::types::{HANDLE, SET_VIRTUAL_DISK_INFO};

/// What is to be changed.
enum Change {
    Parent { depth: usize, path: PathBuf },
    Identifier(Uuid),
    DiskId(Uuid),
    PhysicalSectorSize(u32),
    Tracking,
    Locator { linkage: Uuid, path: PathBuf },
}

/// Changes one thing of a disk, durably.
///
/// The disk is not attached (ERROR_VHD_INVALID_STATE), except for PARENT_PATH_WITH_DEPTH. ERROR_VHD_INVALID_TYPE if the
/// format or type does not have it; ERROR_VHD_CHILD_PARENT_ID_MISMATCH, ERROR_VHD_PARENT_VHD_NOT_FOUND for parents;
/// ERROR_NOT_SUPPORTED for change tracking.
///
/// # Safety
/// `info` is NULL or leads to as much as its version has; its strings end with a zero.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn SetVirtualDiskInformation(
    handle: HANDLE,
    info: *const SET_VIRTUAL_DISK_INFO,
) -> u32 {
    guard(|| {
        require(!info.is_null())?;
        // SAFETY: as this function's.
        let change = unsafe { arms(info) }?;
        let handle = handles::disk(handle)?;
        handle.access.require(Right::Change)?;
        let disk = handle.disk()?;
        let _reserved = disk.reserve()?;
        apply(&handle, disk, change)
    })
}

/// # Safety
/// `info` leads to as much as its version has; its strings end with a zero.
unsafe fn arms(info: *const SET_VIRTUAL_DISK_INFO) -> Answer<Change> {
    // SAFETY: every version has the member Version; the other reads are of the arm that it selects.
    unsafe {
        let union = &raw const (*info).Anonymous;
        Ok(match read(&raw const (*info).Version) {
            Some(SET_VIRTUAL_DISK_INFO_PARENT_PATH) => Change::Parent {
                depth: 1,
                path: full_path(read(&raw const (*union).ParentFilePath).ok_or(INVALID)?)?,
            },
            Some(SET_VIRTUAL_DISK_INFO_IDENTIFIER) => {
                let id = read(&raw const (*union).UniqueIdentifier).ok_or(INVALID)?;
                Change::Identifier(id.given().ok_or(INVALID)?)
            }
            Some(SET_VIRTUAL_DISK_INFO_PARENT_PATH_WITH_DEPTH) => {
                let arm = read(&raw const (*union).ParentPathWithDepthInfo).ok_or(INVALID)?;
                require(arm.ChildDepth > 0)?;
                Change::Parent {
                    depth: usize::try_from(arm.ChildDepth).map_err(|_| INVALID)?,
                    path: full_path(arm.ParentFilePath)?,
                }
            }
            Some(SET_VIRTUAL_DISK_INFO_PHYSICAL_SECTOR_SIZE) => {
                let size = read(&raw const (*union).VhdPhysicalSectorSize).ok_or(INVALID)?;
                require(matches!(size, 512 | 4096))?;
                Change::PhysicalSectorSize(size)
            }
            Some(SET_VIRTUAL_DISK_INFO_VIRTUAL_DISK_ID) => {
                let id = read(&raw const (*union).VirtualDiskId).ok_or(INVALID)?;
                Change::DiskId(id.given().ok_or(INVALID)?)
            }
            Some(SET_VIRTUAL_DISK_INFO_CHANGE_TRACKING_STATE) => Change::Tracking,
            Some(SET_VIRTUAL_DISK_INFO_PARENT_LOCATOR) => {
                let arm = read(&raw const (*union).ParentLocator).ok_or(INVALID)?;
                Change::Locator {
                    linkage: arm.LinkageId.given().ok_or(INVALID)?,
                    path: full_path(arm.ParentFilePath)?,
                }
            }
            _ => return Err(INVALID),
        })
    }
}

fn apply(handle: &DiskHandle, disk: &Arc<Disk>, change: Change) -> Answer {
    let target = disk.disk();
    let info = target.info();
    let require_format = |format| require_or(info.format == format, ERROR_VHD_INVALID_TYPE);
    if !matches!(change, Change::Parent { .. }) {
        disk.require_detached()?;
    }
    match change {
        Change::Parent { depth, path } => set_parent_at(handle, disk, depth, path),
        Change::Identifier(id) => {
            require_format(Format::Vhd)?;
            Ok(set::set_identifier(&target, id)?)
        }
        Change::DiskId(id) => {
            require_format(Format::Vhdx)?;
            if info.identifier == Some(id) {
                return Ok(());
            }
            Ok(set::set_identifier(&target, id)?)
        }
        Change::PhysicalSectorSize(size) => {
            require_format(Format::Vhdx)?;
            Ok(set::set_physical_sector_size(&target, size)?)
        }
        Change::Locator { linkage, path } => Ok(set_parent_locator(&target, linkage, &path)?),
        Change::Tracking => Err(Code(ERROR_NOT_SUPPORTED)),
    }
}

/// The image at a depth gets another parent; it is opened for writing for that, if the handle's generation allows it.
fn set_parent_at(handle: &DiskHandle, disk: &Disk, depth: usize, parent: PathBuf) -> Answer {
    let target = disk.disk();
    require(depth <= target.layers().len())?;
    require_or(parent.exists(), ERROR_VHD_PARENT_VHD_NOT_FOUND)?;
    let options = SetParentOptions {
        parent,
        depth,
        open: vhdkit::OpenOptions::new().record_native_paths(true),
        ignore_identifier: false,
        dry_run: false,
    };
    let opened = handle.access.write_depth();
    if depth <= opened {
        return Ok(set_parent(&target, &options)?);
    }
    let is_v2 = matches!(handle.access, Access::V2 { .. });
    require_or(is_v2, ERROR_ACCESS_DENIED)?;
    let open = disk.opening().options();
    open.set_write_depth(&target, depth)?;
    let result = set_parent(&target, &options);
    open.set_write_depth(&target, opened)?;
    Ok(result?)
}
