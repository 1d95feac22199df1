//! The Win32 calls once more, under names that clash with nothing: for programs that have their own functions of these
//! names, and call these from there for handles of this library.

use std::ffi::c_void;

use crate::types::{BOOL, HANDLE, OVERLAPPED, PCWSTR};
use crate::win32;

/// As `GetLastError`.
#[unsafe(no_mangle)]
pub extern "C" fn vhdkit_GetLastError() -> u32 {
    win32::GetLastError()
}

/// As `CreateEventW`.
///
/// # Safety
/// As `CreateEventW`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vhdkit_CreateEventW(
    attributes: *const c_void,
    manual_reset: BOOL,
    initial_state: BOOL,
    name: PCWSTR,
) -> HANDLE {
    // SAFETY: as this function's.
    unsafe { win32::CreateEventW(attributes, manual_reset, initial_state, name) }
}

/// As `SetEvent`.
#[unsafe(no_mangle)]
pub extern "C" fn vhdkit_SetEvent(handle: HANDLE) -> BOOL {
    win32::SetEvent(handle)
}

/// As `ResetEvent`.
#[unsafe(no_mangle)]
pub extern "C" fn vhdkit_ResetEvent(handle: HANDLE) -> BOOL {
    win32::ResetEvent(handle)
}

/// As `WaitForSingleObject`.
#[unsafe(no_mangle)]
pub extern "C" fn vhdkit_WaitForSingleObject(handle: HANDLE, milliseconds: u32) -> u32 {
    win32::WaitForSingleObject(handle, milliseconds)
}

/// As `CloseHandle`.
#[unsafe(no_mangle)]
pub extern "C" fn vhdkit_CloseHandle(handle: HANDLE) -> BOOL {
    win32::CloseHandle(handle)
}

/// As `GetOverlappedResult`.
///
/// # Safety
/// As `GetOverlappedResult`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vhdkit_GetOverlappedResult(
    handle: HANDLE,
    overlapped: *mut OVERLAPPED,
    transferred: *mut u32,
    wait: BOOL,
) -> BOOL {
    // SAFETY: as this function's.
    unsafe { win32::GetOverlappedResult(handle, overlapped, transferred, wait) }
}

/// As `CancelIo`.
#[unsafe(no_mangle)]
pub extern "C" fn vhdkit_CancelIo(handle: HANDLE) -> BOOL {
    win32::CancelIo(handle)
}

/// As `CancelIoEx`.
///
/// # Safety
/// As `CancelIoEx`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vhdkit_CancelIoEx(handle: HANDLE, overlapped: *const OVERLAPPED) -> BOOL {
    // SAFETY: as this function's.
    unsafe { win32::CancelIoEx(handle, overlapped) }
}

/// As `ReadFile`.
///
/// # Safety
/// As `ReadFile`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vhdkit_ReadFile(
    handle: HANDLE,
    buffer: *mut c_void,
    length: u32,
    transferred: *mut u32,
    overlapped: *mut OVERLAPPED,
) -> BOOL {
    // SAFETY: as this function's.
    unsafe { win32::ReadFile(handle, buffer, length, transferred, overlapped) }
}

/// As `WriteFile`.
///
/// # Safety
/// As `WriteFile`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vhdkit_WriteFile(
    handle: HANDLE,
    buffer: *const c_void,
    length: u32,
    transferred: *mut u32,
    overlapped: *mut OVERLAPPED,
) -> BOOL {
    // SAFETY: as this function's.
    unsafe { win32::WriteFile(handle, buffer, length, transferred, overlapped) }
}

/// As `FlushFileBuffers`.
#[unsafe(no_mangle)]
pub extern "C" fn vhdkit_FlushFileBuffers(handle: HANDLE) -> BOOL {
    win32::FlushFileBuffers(handle)
}
