//! Change tracking, VHD Sets and forks (contract, 2.18, 2.19, 2.21): arguments are checked, then ERROR_NOT_SUPPORTED.

use crate::access::Right;
use crate::codes::ERROR_NOT_SUPPORTED;
use crate::constants::*;
use crate::guard::{Answer, Code, INVALID, guard, read, require, require_flags};
use crate::handles;
use crate::overlapped::guard_start;
use crate::strings::{full_path, units};
use crate::types::*;

const LATER: Answer = Err(Code(ERROR_NOT_SUPPORTED));

/// The handle exists, has its disk, and the right; what is asked for is not there.
fn refuse(handle: HANDLE, right: Right) -> Answer {
    let handle = handles::disk(handle)?;
    handle.access.require(right)?;
    handle.disk()?;
    LATER
}

/// What has changed since a change-tracking identifier. ERROR_NOT_SUPPORTED.
///
/// # Safety
/// Pointers are NULL or lead to what their types say; the identifier ends with a zero.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn QueryChangesVirtualDisk(
    handle: HANDLE,
    id: PCWSTR,
    offset: u64,
    length: u64,
    flags: QUERY_CHANGES_VIRTUAL_DISK_FLAG,
    ranges: *mut QUERY_CHANGES_VIRTUAL_DISK_RANGE,
    range_count: *mut u32,
    processed_length: *mut u64,
) -> u32 {
    guard(|| {
        require(!ranges.is_null() && !range_count.is_null() && !processed_length.is_null())?;
        require(flags == QUERY_CHANGES_VIRTUAL_DISK_FLAG_NONE)?;
        let limit = VIRTUAL_DISK_MAXIMUM_CHANGE_TRACKING_ID_LENGTH as usize;
        // SAFETY: as this function's.
        let id = unsafe { units(id, limit) }.map_err(|_| INVALID)?;
        require(!id.is_empty() && length > 0)?;
        let end = offset.checked_add(length).ok_or(INVALID)?;
        if let Ok(handle) = handles::disk(handle)
            && let Ok(disk) = handle.disk()
        {
            require(end <= disk.disk().virtual_size())?;
        }
        refuse(handle, Right::GetInfo)
    })
}

/// Takes a snapshot in a VHD Set. ERROR_NOT_SUPPORTED.
///
/// # Safety
/// `parameters` is NULL or leads to as much as its version has.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn TakeSnapshotVhdSet(
    handle: HANDLE,
    parameters: *const TAKE_SNAPSHOT_VHDSET_PARAMETERS,
    flags: TAKE_SNAPSHOT_VHDSET_FLAG,
) -> u32 {
    guard(|| {
        // SAFETY: as this function's.
        let parameters = unsafe { read(parameters) }.ok_or(INVALID)?;
        require(parameters.Version == TAKE_SNAPSHOT_VHDSET_VERSION_1)?;
        // SAFETY: the arm that Version selects, of plain numbers.
        let id = unsafe { parameters.Anonymous.Version1.SnapshotId };
        require(id.given().is_some())?;
        require_flags(flags, TAKE_SNAPSHOT_VHDSET_FLAG_WRITEABLE)?;
        refuse(handle, Right::ChangeV2)
    })
}

/// Deletes a snapshot of a VHD Set. ERROR_NOT_SUPPORTED.
///
/// # Safety
/// `parameters` is NULL or leads to as much as its version has.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn DeleteSnapshotVhdSet(
    handle: HANDLE,
    parameters: *const DELETE_SNAPSHOT_VHDSET_PARAMETERS,
    flags: DELETE_SNAPSHOT_VHDSET_FLAG,
) -> u32 {
    guard(|| {
        // SAFETY: as this function's.
        let parameters = unsafe { read(parameters) }.ok_or(INVALID)?;
        require(parameters.Version == DELETE_SNAPSHOT_VHDSET_VERSION_1)?;
        // SAFETY: the arm that Version selects, of plain numbers.
        let id = unsafe { parameters.Anonymous.Version1.SnapshotId };
        require(id.given().is_some())?;
        require_flags(flags, DELETE_SNAPSHOT_VHDSET_FLAG_PERSIST_RCT)?;
        refuse(handle, Right::ChangeV2)
    })
}

/// Makes a snapshot of a VHD Set its current state. ERROR_NOT_SUPPORTED.
///
/// # Safety
/// `parameters` is NULL or leads to as much as its version has.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ApplySnapshotVhdSet(
    handle: HANDLE,
    parameters: *const APPLY_SNAPSHOT_VHDSET_PARAMETERS,
    flags: APPLY_SNAPSHOT_VHDSET_FLAG,
) -> u32 {
    guard(|| {
        // SAFETY: as this function's.
        let parameters = unsafe { read(parameters) }.ok_or(INVALID)?;
        require(parameters.Version == APPLY_SNAPSHOT_VHDSET_VERSION_1)?;
        // SAFETY: the arm that Version selects, of plain numbers.
        let id = unsafe { parameters.Anonymous.Version1.SnapshotId };
        require(id.given().is_some())?;
        require_flags(flags, APPLY_SNAPSHOT_VHDSET_FLAG_WRITEABLE)?;
        refuse(handle, Right::ChangeV2)
    })
}

/// Repairs the entries of a VHD Set. ERROR_NOT_SUPPORTED.
///
/// # Safety
/// `parameters` is NULL or leads to as much as its version has; its strings end with a zero.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ModifyVhdSet(
    handle: HANDLE,
    parameters: *const MODIFY_VHDSET_PARAMETERS,
    flags: MODIFY_VHDSET_FLAG,
) -> u32 {
    guard(|| {
        require(!parameters.is_null())?;
        // SAFETY: every version has the member Version; the other reads are of the arm that it selects.
        unsafe {
            let union = &raw const (*parameters).Anonymous;
            match read(&raw const (*parameters).Version) {
                Some(MODIFY_VHDSET_SNAPSHOT_PATH) => {
                    let arm = read(&raw const (*union).SnapshotPath).ok_or(INVALID)?;
                    require(arm.SnapshotId.given().is_some())?;
                    full_path(arm.SnapshotFilePath)?;
                }
                Some(MODIFY_VHDSET_REMOVE_SNAPSHOT) => {
                    let id = read(&raw const (*union).SnapshotId).ok_or(INVALID)?;
                    require(id.given().is_some())?;
                }
                Some(MODIFY_VHDSET_DEFAULT_SNAPSHOT_PATH) => {
                    let path = read(&raw const (*union).DefaultFilePath).ok_or(INVALID)?;
                    full_path(path)?;
                }
                _ => return Err(INVALID),
            }
        }
        require_flags(flags, MODIFY_VHDSET_FLAG_WRITEABLE_SNAPSHOT)?;
        refuse(handle, Right::ChangeV2)
    })
}

/// Starts a fork. ERROR_NOT_SUPPORTED.
///
/// # Safety
/// `parameters` is NULL or leads to as much as its version has; its strings end with a zero.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ForkVirtualDisk(
    handle: HANDLE,
    flags: FORK_VIRTUAL_DISK_FLAG,
    parameters: *const FORK_VIRTUAL_DISK_PARAMETERS,
    overlapped: *mut OVERLAPPED,
) -> u32 {
    guard_start(handle, overlapped, || {
        require_flags(flags, FORK_VIRTUAL_DISK_FLAG_EXISTING_FILE)?;
        // SAFETY: as this function's.
        let parameters = unsafe { read(parameters) }.ok_or(INVALID)?;
        require(parameters.Version == FORK_VIRTUAL_DISK_VERSION_1)?;
        // SAFETY: the arm that Version selects; its string ends with a zero.
        unsafe { full_path(parameters.Anonymous.Version1.ForkedVirtualDiskPath) }?;
        require(!overlapped.is_null() && overlapped.is_aligned())?;
        refuse(handle, Right::ChangeV2)
    })
}

/// Ends a fork. ERROR_NOT_SUPPORTED.
#[unsafe(no_mangle)]
pub extern "C" fn CompleteForkVirtualDisk(handle: HANDLE) -> u32 {
    guard(|| refuse(handle, Right::ChangeV2))
}
