//! The Win32 calls that programs for virtdisk.h need, under their own names. Without the feature `win32` they are not
//! exported; those of `prefixed` always are.

#![allow(
    non_snake_case,
    reason = "names of Windows, also where they are not exported"
)]

use std::cell::Cell;
use std::ffi::{c_char, c_void};
use std::sync::Arc;
use std::time::Duration;

use crate::codes::*;
use crate::event::Event;
use crate::guard::{Answer, Code, INVALID, caught, require, require_or, write};
use crate::handles::{self, Object};
use crate::io::{self, Transfer};
use crate::overlapped::Which;
use crate::types::{BOOL, HANDLE, OVERLAPPED, PCWSTR, PWSTR};

thread_local! {
    static LAST_ERROR: Cell<u32> = const { Cell::new(0) };
}

/// Why the last call of this thread failed.
#[cfg_attr(feature = "win32", unsafe(no_mangle))]
pub extern "C" fn GetLastError() -> u32 {
    LAST_ERROR.get()
}

/// Sets what GetLastError gives.
#[cfg_attr(feature = "win32", unsafe(no_mangle))]
pub extern "C" fn SetLastError(code: u32) {
    LAST_ERROR.set(code);
}

/// The result of a call that says why it failed through GetLastError.
fn report<T>(failed: T, body: impl FnOnce() -> Answer<T>) -> T {
    match caught(body) {
        Ok(value) => value,
        Err(Code(code)) => {
            LAST_ERROR.set(code);
            failed
        }
    }
}

/// As [`report`], with TRUE or FALSE.
fn succeeds(body: impl FnOnce() -> Answer) -> BOOL {
    report(0, || body().map(|()| 1))
}

/// Makes an event. ERROR_NOT_SUPPORTED with a name.
///
/// # Safety
/// None: the pointers are not followed.
#[cfg_attr(feature = "win32", unsafe(no_mangle))]
pub unsafe extern "C" fn CreateEventW(
    _attributes: *const c_void,
    manual_reset: BOOL,
    initial_state: BOOL,
    name: PCWSTR,
) -> HANDLE {
    report(std::ptr::null_mut(), || {
        require_or(name.is_null(), ERROR_NOT_SUPPORTED)?;
        let event = Event::new(manual_reset != 0, initial_state != 0);
        handles::insert(Object::Event(Arc::new(event)))
    })
}

/// Signals an event.
#[cfg_attr(feature = "win32", unsafe(no_mangle))]
pub extern "C" fn SetEvent(handle: HANDLE) -> BOOL {
    succeeds(|| {
        handles::event(handle)?.set();
        Ok(())
    })
}

/// Takes an event's signal back.
#[cfg_attr(feature = "win32", unsafe(no_mangle))]
pub extern "C" fn ResetEvent(handle: HANDLE) -> BOOL {
    succeeds(|| {
        handles::event(handle)?.reset();
        Ok(())
    })
}

const WAIT_OBJECT_0: u32 = 0;
const WAIT_TIMEOUT: u32 = 258;
const WAIT_FAILED: u32 = u32::MAX;

/// A time in milliseconds; the largest is for ever.
fn timeout(milliseconds: u32) -> Option<Duration> {
    (milliseconds != u32::MAX).then(|| Duration::from_millis(milliseconds.into()))
}

/// Waits for an event, or until a virtual disk handle has no operation under way.
#[cfg_attr(feature = "win32", unsafe(no_mangle))]
pub extern "C" fn WaitForSingleObject(handle: HANDLE, milliseconds: u32) -> u32 {
    report(WAIT_FAILED, || {
        let timeout = timeout(milliseconds);
        let signalled = match handles::object(handle)? {
            Object::Event(event) => event.wait(timeout),
            Object::Disk(disk) => disk.operations.wait_idle(timeout),
        };
        Ok(if signalled {
            WAIT_OBJECT_0
        } else {
            WAIT_TIMEOUT
        })
    })
}

/// Closes a handle. Operations of a virtual disk handle are cancelled and have ended when this returns (P-25); what was
/// written is durable if it was the disk's last handle.
#[cfg_attr(feature = "win32", unsafe(no_mangle))]
pub extern "C" fn CloseHandle(handle: HANDLE) -> BOOL {
    succeeds(|| {
        if let Object::Disk(disk) = handles::remove(handle)? {
            disk.operations.close();
        }
        Ok(())
    })
}

/// How an operation, a read or a write ended. ERROR_IO_INCOMPLETE if it did not and `wait` is FALSE.
///
/// # Safety
/// Pointers are NULL or lead to what their types say.
#[cfg_attr(feature = "win32", unsafe(no_mangle))]
pub unsafe extern "C" fn GetOverlappedResult(
    handle: HANDLE,
    overlapped: *mut OVERLAPPED,
    transferred: *mut u32,
    wait: BOOL,
) -> BOOL {
    succeeds(|| {
        require(!transferred.is_null())?;
        let handle = handles::disk(handle)?;
        let bytes = handle.operations.result(overlapped, wait != 0)?;
        // SAFETY: not NULL, and the caller's to be written.
        unsafe { write(transferred, bytes) };
        Ok(())
    })
}

/// Cancels what this thread has started on a handle (P-24).
#[cfg_attr(feature = "win32", unsafe(no_mangle))]
pub extern "C" fn CancelIo(handle: HANDLE) -> BOOL {
    succeeds(|| {
        let handle = handles::disk(handle)?;
        // That there was nothing is no failure of this call.
        let _ = handle.operations.cancel(Which::OfThread);
        Ok(())
    })
}

/// Cancels the operation of an OVERLAPPED, or (NULL) all of a handle. ERROR_NOT_FOUND if nothing is under way (P-24).
///
/// # Safety
/// None: the OVERLAPPED is only compared.
#[cfg_attr(feature = "win32", unsafe(no_mangle))]
pub unsafe extern "C" fn CancelIoEx(handle: HANDLE, overlapped: *const OVERLAPPED) -> BOOL {
    succeeds(|| {
        let which = if overlapped.is_null() {
            Which::All
        } else {
            Which::One(overlapped)
        };
        handles::disk(handle)?.operations.cancel(which)
    })
}

/// Reads from an attached disk, see `io`. The bytes are there when this returns.
///
/// # Safety
/// Pointers are NULL or lead to what their types say, `buffer` to `length` bytes.
#[cfg_attr(feature = "win32", unsafe(no_mangle))]
pub unsafe extern "C" fn ReadFile(
    handle: HANDLE,
    buffer: *mut c_void,
    length: u32,
    transferred: *mut u32,
    overlapped: *mut OVERLAPPED,
) -> BOOL {
    // SAFETY: as this function's.
    unsafe {
        moved(
            handle,
            Transfer::Read(buffer.cast()),
            length,
            transferred,
            overlapped,
        )
    }
}

/// Writes to an attached disk, see `io`. Unless the disk was opened with CACHED_IO or NO_WRITE_HARDENING, the bytes are
/// durable when this returns.
///
/// # Safety
/// Pointers are NULL or lead to what their types say, `buffer` to `length` bytes.
#[cfg_attr(feature = "win32", unsafe(no_mangle))]
pub unsafe extern "C" fn WriteFile(
    handle: HANDLE,
    buffer: *const c_void,
    length: u32,
    transferred: *mut u32,
    overlapped: *mut OVERLAPPED,
) -> BOOL {
    // SAFETY: as this function's.
    unsafe {
        moved(
            handle,
            Transfer::Write(buffer.cast()),
            length,
            transferred,
            overlapped,
        )
    }
}

/// # Safety
/// Pointers are NULL or lead to what their types say.
unsafe fn moved(
    handle: HANDLE,
    transfer: Transfer,
    length: u32,
    transferred: *mut u32,
    overlapped: *mut OVERLAPPED,
) -> BOOL {
    succeeds(|| {
        // SAFETY: as this function's.
        unsafe { write(transferred, 0) };
        // SAFETY: as this function's.
        let bytes = unsafe { io::transfer(handle, transfer, length, overlapped) }?;
        // SAFETY: as this function's.
        unsafe { write(transferred, bytes) };
        Ok(())
    })
}

/// What was written to a disk is durable when this returns.
#[cfg_attr(feature = "win32", unsafe(no_mangle))]
pub extern "C" fn FlushFileBuffers(handle: HANDLE) -> BOOL {
    succeeds(|| io::flush(handle))
}

/// Waits.
#[cfg_attr(feature = "win32", unsafe(no_mangle))]
pub extern "C" fn Sleep(milliseconds: u32) {
    match timeout(milliseconds) {
        Some(time) => std::thread::sleep(time),
        None => loop {
            std::thread::park();
        },
    }
}

const CP_ACP: u32 = 0;
const CP_UTF8: u32 = 65001;
const MB_ERR_INVALID_CHARS: u32 = 8;
const WC_ERR_INVALID_CHARS: u32 = 0x80;

/// UTF-8 to UTF-16. The units written, or needed if `wide_length` is 0.
///
/// ERROR_INVALID_PARAMETER, ERROR_INVALID_FLAGS, ERROR_INSUFFICIENT_BUFFER; with MB_ERR_INVALID_CHARS,
/// ERROR_NO_UNICODE_TRANSLATION.
///
/// # Safety
/// `text` is `length` bytes long, or ends with a zero if that is -1; `wide` has room for `wide_length` units.
#[cfg_attr(feature = "win32", unsafe(no_mangle))]
pub unsafe extern "C" fn MultiByteToWideChar(
    code_page: u32,
    flags: u32,
    text: *const c_char,
    length: i32,
    wide: PWSTR,
    wide_length: i32,
) -> i32 {
    report(0, || {
        require(matches!(code_page, CP_ACP | CP_UTF8) && !text.is_null())?;
        require_or(flags & !MB_ERR_INVALID_CHARS == 0, ERROR_INVALID_FLAGS)?;
        let bytes = if length == -1 {
            // SAFETY: it ends with a zero.
            unsafe { std::ffi::CStr::from_ptr(text) }.to_bytes_with_nul()
        } else {
            let length = usize::try_from(length).map_err(|_| INVALID)?;
            require(length > 0)?;
            // SAFETY: it is so long.
            unsafe { std::slice::from_raw_parts(text.cast::<u8>(), length) }
        };
        let text = match std::str::from_utf8(bytes) {
            Err(_) if flags != 0 => return Err(Code(ERROR_NO_UNICODE_TRANSLATION)),
            _ => String::from_utf8_lossy(bytes),
        };
        let units: Vec<u16> = text.encode_utf16().collect();
        // SAFETY: as this function's.
        unsafe { hand_out(&units, wide, wide_length) }
    })
}

/// UTF-16 to UTF-8. The bytes written, or needed if `text_length` is 0.
///
/// Errors as MultiByteToWideChar; with WC_ERR_INVALID_CHARS, ERROR_NO_UNICODE_TRANSLATION.
///
/// # Safety
/// `wide` is `length` units long, or ends with a zero if that is -1; `text` has room for `text_length` bytes.
#[cfg_attr(feature = "win32", unsafe(no_mangle))]
pub unsafe extern "C" fn WideCharToMultiByte(
    code_page: u32,
    flags: u32,
    wide: PCWSTR,
    length: i32,
    text: *mut c_char,
    text_length: i32,
    default: *const c_char,
    used_default: *mut BOOL,
) -> i32 {
    report(0, || {
        require(matches!(code_page, CP_ACP | CP_UTF8) && !wide.is_null())?;
        require(default.is_null() && used_default.is_null())?;
        require_or(flags & !WC_ERR_INVALID_CHARS == 0, ERROR_INVALID_FLAGS)?;
        let count = if length == -1 {
            // SAFETY: it ends with a zero.
            unsafe { crate::strings::units(wide, usize::MAX) }?.len() + 1
        } else {
            usize::try_from(length).map_err(|_| INVALID)?
        };
        require(count > 0)?;
        // SAFETY: it is so long; a unit may lie anywhere.
        let units: Vec<u16> = (0..count)
            .map(|i| unsafe { wide.add(i).read_unaligned() })
            .collect();
        let result = match String::from_utf16(&units) {
            Err(_) if flags != 0 => return Err(Code(ERROR_NO_UNICODE_TRANSLATION)),
            Err(_) => String::from_utf16_lossy(&units),
            Ok(text) => text,
        };
        // SAFETY: as this function's.
        unsafe { hand_out(result.as_bytes(), text.cast::<u8>(), text_length) }
    })
}

/// # Safety
/// `target` is NULL or has room for `room` elements.
unsafe fn hand_out<T: Copy>(from: &[T], target: *mut T, room: i32) -> Answer<i32> {
    let room = usize::try_from(room).map_err(|_| INVALID)?;
    let needed = i32::try_from(from.len()).map_err(|_| INVALID)?;
    if room == 0 {
        return Ok(needed);
    }
    require(!target.is_null())?;
    require_or(from.len() <= room, ERROR_INSUFFICIENT_BUFFER)?;
    for (i, value) in from.iter().enumerate() {
        // SAFETY: within the room that there is.
        unsafe { write(target.add(i), *value) };
    }
    Ok(needed)
}
