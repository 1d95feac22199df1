//! User metadata of VHDX disks (contract, 2.10).

use std::ffi::c_void;

use vhdkit::ErrorKind;
use vhdkit::verbs::set;

use crate::access::Right;
use crate::codes::{ERROR_INSUFFICIENT_BUFFER, ERROR_VHD_METADATA_FULL};
use crate::guard::{Answer, Code, INVALID, guard, read, require, require_or, write};
use crate::handles;
use crate::strings::length;
use crate::types::{GUID, HANDLE};

/// The answer to a buffer that is too small: the page's, not the sample's (contract, X-5).
const SHORT_BUFFER: u32 = ERROR_INSUFFICIENT_BUFFER;

/// Longest item in bytes.
const MAX_ITEM: usize = 1 << 20;

/// # Safety
/// `item` is NULL or leads to a GUID.
unsafe fn item_id(item: *const GUID) -> Answer<uuid::Uuid> {
    // SAFETY: as this function's.
    unsafe { read(item) }.ok_or(INVALID)?.given().ok_or(INVALID)
}

/// Lists the identifiers of all items. `items` may be NULL to ask for their number.
///
/// ERROR_INSUFFICIENT_BUFFER with the number in `count` and as many identifiers as there is room for;
/// ERROR_VHD_INVALID_TYPE for a disk that is not a VHDX; ERROR_ACCESS_DENIED for a handle of version 1.
///
/// # Safety
/// Pointers are NULL or lead to what their types say, `items` to `count` of them.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn EnumerateVirtualDiskMetadata(
    handle: HANDLE,
    count: *mut u32,
    items: *mut GUID,
) -> u32 {
    guard(|| {
        // SAFETY: as this function's.
        let room = unsafe { read(count) }.ok_or(INVALID)?;
        let handle = handles::disk(handle)?;
        handle.access.require(Right::LookV2)?;
        let found = set::user_metadata(&handle.disk()?.disk())?;
        let number = length(found.len())?;
        // SAFETY: not NULL, and the caller's to be written.
        unsafe { write(count, number) };
        if items.is_null() {
            return Ok(());
        }
        for (i, (id, _)) in found.iter().take(room as usize).enumerate() {
            // SAFETY: within the room that there is.
            unsafe { write(items.add(i), GUID::from(*id)) };
        }
        require_or(number <= room, SHORT_BUFFER)
    })
}

/// Reads one item.
///
/// ERROR_INSUFFICIENT_BUFFER with the size in `size` and the beginning of the data; ERROR_NOT_FOUND; otherwise as
/// EnumerateVirtualDiskMetadata.
///
/// # Safety
/// Pointers are NULL or lead to what their types say, `data` to `size` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn GetVirtualDiskMetadata(
    handle: HANDLE,
    item: *const GUID,
    size: *mut u32,
    data: *mut c_void,
) -> u32 {
    guard(|| {
        // SAFETY: as this function's.
        let (id, room) = unsafe { (item_id(item)?, read(size).ok_or(INVALID)?) };
        require(!data.is_null() || room == 0)?;
        let handle = handles::disk(handle)?;
        handle.access.require(Right::LookV2)?;
        let value = set::read_user_metadata(&handle.disk()?.disk(), id)?;
        let needed = length(value.len())?;
        for (i, byte) in value.iter().take(room as usize).enumerate() {
            // SAFETY: within the room that there is.
            unsafe { write(data.cast::<u8>().add(i), *byte) };
        }
        // SAFETY: not NULL, and the caller's to be written.
        unsafe { write(size, needed) };
        require_or(needed <= room, SHORT_BUFFER)
    })
}

/// Writes or replaces one item, durably.
///
/// ERROR_VHD_METADATA_FULL beyond 1024 items and 1 MiB for one of them; ERROR_ACCESS_DENIED for handles of version 1 and
/// those that only ask or read.
///
/// # Safety
/// Pointers are NULL or lead to what their types say, `data` to `size` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn SetVirtualDiskMetadata(
    handle: HANDLE,
    item: *const GUID,
    size: u32,
    data: *const c_void,
) -> u32 {
    guard(|| {
        // SAFETY: as this function's.
        let id = unsafe { item_id(item) }?;
        require(!data.is_null() || size == 0)?;
        let handle = handles::disk(handle)?;
        handle.access.require(Right::ChangeV2)?;
        require_or(size as usize <= MAX_ITEM, ERROR_VHD_METADATA_FULL)?;
        let value: &[u8] = if size == 0 {
            &[]
        } else {
            // SAFETY: not NULL, and so long.
            unsafe { std::slice::from_raw_parts(data.cast(), size as usize) }
        };
        change(&handle, id, Some(value))
    })
}

/// Deletes one item, durably. ERROR_NOT_FOUND if there is none; otherwise as SetVirtualDiskMetadata.
///
/// # Safety
/// `item` is NULL or leads to a GUID.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn DeleteVirtualDiskMetadata(handle: HANDLE, item: *const GUID) -> u32 {
    guard(|| {
        // SAFETY: as this function's.
        let id = unsafe { item_id(item) }?;
        let handle = handles::disk(handle)?;
        handle.access.require(Right::ChangeV2)?;
        change(&handle, id, None)
    })
}

fn change(handle: &crate::disk::DiskHandle, id: uuid::Uuid, value: Option<&[u8]>) -> Answer {
    let disk = handle.disk()?;
    let _reserved = disk.reserve()?;
    match set::write_user_metadata(&disk.disk(), id, value) {
        Err(e) if e.kind() == ErrorKind::InvalidSize => Err(Code(ERROR_VHD_METADATA_FULL)),
        result => Ok(result?),
    }
}
