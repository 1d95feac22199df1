//! AddVirtualDiskParent: a chain made by hand (contract, 2.17).

use crate::access::{Access, Right};
use crate::codes::{ERROR_ACCESS_DENIED, ERROR_VHD_INVALID_STATE, ERROR_VHD_PARENT_VHD_NOT_FOUND};
use crate::constants::OPEN_VIRTUAL_DISK_FLAG_CUSTOM_DIFF_CHAIN;
use crate::guard::{guard, require_or};
use crate::handles;
use crate::strings::full_path;
use crate::types::{HANDLE, PCWSTR};

/// Puts a file behind the last one of a chain. No file is changed.
///
/// For handles of version 2 opened with ReadOnly (else ERROR_ACCESS_DENIED) and CUSTOM_DIFF_CHAIN (else
/// ERROR_VHD_INVALID_STATE). ERROR_VHD_INVALID_TYPE if the chain is complete; ERROR_VHD_CHILD_PARENT_ID_MISMATCH,
/// ERROR_VHD_PARENT_VHD_NOT_FOUND, ERROR_VHD_DIFFERENCING_CHAIN_CYCLE_DETECTED.
///
/// # Safety
/// `parent` is NULL or ends with a zero.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn AddVirtualDiskParent(handle: HANDLE, parent: PCWSTR) -> u32 {
    guard(|| {
        // SAFETY: as this function's.
        let parent = unsafe { full_path(parent) }?;
        let handle = handles::disk(handle)?;
        handle.access.require(Right::LookV2)?;
        let read_only = matches!(
            handle.access,
            Access::V2 {
                read_only: true,
                ..
            }
        );
        require_or(read_only, ERROR_ACCESS_DENIED)?;
        let disk = handle.disk()?;
        let opening = disk.opening();
        let custom = opening.flags & OPEN_VIRTUAL_DISK_FLAG_CUSTOM_DIFF_CHAIN != 0;
        require_or(
            custom && disk.attachment().is_none(),
            ERROR_VHD_INVALID_STATE,
        )?;
        require_or(parent.exists(), ERROR_VHD_PARENT_VHD_NOT_FOUND)?;
        let _reserved = disk.reserve()?;
        Ok(opening.options().append_parent(&disk.disk(), parent)?)
    })
}
