//! GetVirtualDiskOperationProgress (contract, 2.11 and 6).

use crate::guard::{guard, require, write};
use crate::handles;
use crate::types::{HANDLE, OVERLAPPED, VIRTUAL_DISK_PROGRESS};

/// How far an operation is. Never waits, changes nothing.
///
/// ERROR_INVALID_PARAMETER for NULL and for an OVERLAPPED that no operation of this handle was started with (P-05);
/// ERROR_INVALID_HANDLE (P-06). What became of the operation is in `OperationStatus` alone (P-01).
///
/// # Safety
/// `progress` is NULL or may be written; `overlapped` is only compared.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn GetVirtualDiskOperationProgress(
    handle: HANDLE,
    overlapped: *const OVERLAPPED,
    progress: *mut VIRTUAL_DISK_PROGRESS,
) -> u32 {
    guard(|| {
        require(!overlapped.is_null() && !progress.is_null())?;
        let answer = handles::disk(handle)?.operations.progress(overlapped)?;
        // SAFETY: not NULL, and the caller's to be written.
        unsafe { write(progress, answer) };
        Ok(())
    })
}
