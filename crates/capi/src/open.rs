//! OpenVirtualDisk (contract, 2.2).

use std::path::Path;
use std::sync::Arc;

use vhdkit::image::Format;

use crate::access::Access;
use crate::codes::ERROR_NOT_SUPPORTED;
use crate::constants::*;
use crate::disk::{Disk, DiskHandle, Opening};
use crate::guard::{Answer, INVALID, guard, read, require, require_flags, require_or, write};
use crate::handles::{self, Object};
use crate::storage_type;
use crate::strings::path;
use crate::types::{HANDLE, OPEN_VIRTUAL_DISK_PARAMETERS, PCWSTR, VIRTUAL_STORAGE_TYPE};

/// All flags that exist.
pub(crate) const KNOWN_FLAGS: u32 = 0xFFF;

/// Flags that are refused: for the kernel, and for VHD Sets.
const REFUSED_FLAGS: u32 = OPEN_VIRTUAL_DISK_FLAG_BLANK_FILE
    | OPEN_VIRTUAL_DISK_FLAG_BOOT_DRIVE
    | OPEN_VIRTUAL_DISK_FLAG_VHDSET_FILE_ONLY;

/// Opens a disk.
///
/// | flag | here |
/// |---|---|
/// | NO_PARENTS, CUSTOM_DIFF_CHAIN, IGNORE_RELATIVE_PARENT_LOCATOR | honoured |
/// | CACHED_IO, PARENT_CACHED_IO, NO_WRITE_HARDENING | honoured; without, the page cache is bypassed where it can be, and WriteFile flushes |
/// | SUPPORT_COMPRESSED_VOLUMES, SUPPORT_SPARSE_FILES_ANY_FS, SUPPORT_ENCRYPTED_FILES | nothing to do: such files are always accepted |
/// | BLANK_FILE, BOOT_DRIVE, VHDSET_FILE_ONLY | ERROR_NOT_SUPPORTED |
///
/// ERROR_NOT_SUPPORTED also for a snapshot (version 3), VHD Sets, and an ISO in any way but version 1 with rights of
/// READ; ERROR_SHARING_VIOLATION if others use the file; otherwise what opening can fail with.
///
/// # Safety
/// Pointers are NULL or lead to what their types say; `path` ends with a zero.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn OpenVirtualDisk(
    storage_type: *const VIRTUAL_STORAGE_TYPE,
    file: PCWSTR,
    mask: VIRTUAL_DISK_ACCESS_MASK,
    flags: OPEN_VIRTUAL_DISK_FLAG,
    parameters: *const OPEN_VIRTUAL_DISK_PARAMETERS,
    handle: *mut HANDLE,
) -> u32 {
    guard(|| {
        // SAFETY: as this function's.
        let (storage_type, file) = unsafe { (read(storage_type).ok_or(INVALID)?, path(file)?) };
        require(!handle.is_null())?;
        require_flags(mask, VIRTUAL_DISK_ACCESS_ALL)?;
        require_flags(flags, KNOWN_FLAGS)?;
        // SAFETY: as this function's.
        let (access, resiliency, has_snapshot) = unsafe { arms(parameters, mask) }?;
        require_flags_together(flags)?;
        let format = storage_type::format(storage_type, &file)?;
        require_or(
            flags & REFUSED_FLAGS == 0 && !has_snapshot,
            ERROR_NOT_SUPPORTED,
        )?;
        if format == Format::Iso {
            require_iso(access, flags)?;
        }
        let opening = Opening {
            format,
            access,
            flags,
            resiliency,
        };
        let opened = open(&file, opening)?;
        // SAFETY: not NULL, and the caller's to be written.
        unsafe { write(handle, opened) };
        Ok(())
    })
}

/// Opens a file and names it.
fn open(file: &Path, opening: Opening) -> Answer<HANDLE> {
    let handle = Arc::new(DiskHandle::new(opening.access));
    handle.set_disk(Disk::open(file, opening)?);
    handles::insert(Object::Disk(handle))
}

/// What the arm that `Version` selects says: rights, resiliency, and whether a snapshot is meant.
///
/// # Safety
/// `parameters` is NULL or leads to a structure as long as its version says.
unsafe fn arms(
    parameters: *const OPEN_VIRTUAL_DISK_PARAMETERS,
    mask: u32,
) -> Answer<(Access, Option<uuid::Uuid>, bool)> {
    let version1 = |rw_depth| {
        require(mask != VIRTUAL_DISK_ACCESS_NONE)?;
        Ok((Access::V1 { mask, rw_depth }, None, false))
    };
    let version2 = |get_info_only: i32, read_only: i32| -> Answer<Access> {
        require(mask == VIRTUAL_DISK_ACCESS_NONE)?;
        Ok(Access::V2 {
            get_info_only: get_info_only != 0,
            read_only: read_only != 0,
        })
    };
    if parameters.is_null() {
        return version1(OPEN_VIRTUAL_DISK_RW_DEPTH_DEFAULT);
    }
    // SAFETY: every version has the member Version; the other reads are of the arm that it selects.
    unsafe {
        match read(&raw const (*parameters).Version) {
            Some(OPEN_VIRTUAL_DISK_VERSION_1) => {
                let arm = read(&raw const (*parameters).Anonymous.Version1).ok_or(INVALID)?;
                version1(arm.RWDepth)
            }
            Some(OPEN_VIRTUAL_DISK_VERSION_2) => {
                let arm = read(&raw const (*parameters).Anonymous.Version2).ok_or(INVALID)?;
                let access = version2(arm.GetInfoOnly, arm.ReadOnly)?;
                Ok((access, arm.ResiliencyGuid.given(), false))
            }
            Some(OPEN_VIRTUAL_DISK_VERSION_3) => {
                let arm = read(&raw const (*parameters).Anonymous.Version3).ok_or(INVALID)?;
                let access = version2(arm.GetInfoOnly, arm.ReadOnly)?;
                let snapshot = arm.SnapshotId.given().is_some();
                Ok((access, arm.ResiliencyGuid.given(), snapshot))
            }
            _ => Err(INVALID),
        }
    }
}

/// Two ways to leave out parents exclude each other.
pub(crate) fn require_flags_together(flags: u32) -> Answer {
    let both = OPEN_VIRTUAL_DISK_FLAG_NO_PARENTS | OPEN_VIRTUAL_DISK_FLAG_CUSTOM_DIFF_CHAIN;
    require(flags & both != both)
}

/// An ISO is read-only, has no parents, and knows version 1 only.
fn require_iso(access: Access, flags: u32) -> Answer {
    let alone = OPEN_VIRTUAL_DISK_FLAG_NO_PARENTS | OPEN_VIRTUAL_DISK_FLAG_CUSTOM_DIFF_CHAIN;
    match access {
        Access::V1 { mask, .. } => {
            require_or(
                mask & VIRTUAL_DISK_ACCESS_WRITABLE == 0,
                ERROR_NOT_SUPPORTED,
            )?;
            require_or(flags & alone == 0, ERROR_NOT_SUPPORTED)
        }
        Access::V2 { .. } => require_or(false, ERROR_NOT_SUPPORTED),
    }
}
