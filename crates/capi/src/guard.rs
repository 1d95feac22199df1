//! The boundary: what the functions return, and that no panic crosses it.

use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::codes::{ERROR_INTERNAL_ERROR, ERROR_INVALID_PARAMETER, ERROR_SUCCESS};

/// A Win32 code that is not success (or says that the work goes on).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Code(pub(crate) u32);

/// What the functions of this crate give internally.
pub(crate) type Answer<T = ()> = Result<T, Code>;

/// An argument that is not valid.
pub(crate) const INVALID: Code = Code(ERROR_INVALID_PARAMETER);

impl From<vhdkit::Error> for Code {
    fn from(error: vhdkit::Error) -> Self {
        Code(error.kind().win32_code())
    }
}

/// The code of an answer.
pub(crate) fn code_of(answer: Answer) -> u32 {
    match answer {
        Ok(()) => ERROR_SUCCESS,
        Err(Code(code)) => code,
    }
}

/// Runs a function's body. A panic inside becomes ERROR_INTERNAL_ERROR.
pub(crate) fn guard(body: impl FnOnce() -> Answer) -> u32 {
    code_of(caught(body))
}

/// As [`guard`], for functions that give more than a code.
pub(crate) fn caught<T>(body: impl FnOnce() -> Answer<T>) -> Answer<T> {
    catch_unwind(AssertUnwindSafe(body)).unwrap_or(Err(Code(ERROR_INTERNAL_ERROR)))
}

/// Fails unless `valid`.
pub(crate) fn require(valid: bool) -> Answer {
    if valid { Ok(()) } else { Err(INVALID) }
}

/// Fails with `code` unless `fine`.
pub(crate) fn require_or(fine: bool, code: u32) -> Answer {
    if fine { Ok(()) } else { Err(Code(code)) }
}

/// Fails if `flags` has bits outside `known`.
pub(crate) fn require_flags(flags: u32, known: u32) -> Answer {
    require(flags & !known == 0)
}

/// Reads what a caller's pointer leads to, of any alignment; `None` for NULL.
///
/// # Safety
/// `at` is NULL or leads to a `T` that may be read.
pub(crate) unsafe fn read<T: Copy>(at: *const T) -> Option<T> {
    // SAFETY: as this function's; an unaligned read has no other requirement.
    (!at.is_null()).then(|| unsafe { at.read_unaligned() })
}

/// Writes to where a caller's pointer leads, of any alignment; nothing for NULL.
///
/// # Safety
/// `at` is NULL or leads to memory of a `T` that may be written.
pub(crate) unsafe fn write<T: Copy>(at: *mut T, value: T) {
    if !at.is_null() {
        // SAFETY: as this function's; an unaligned write has no other requirement.
        unsafe { at.write_unaligned(value) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_becomes_a_code() {
        assert_eq!(guard(|| panic!("inside")), ERROR_INTERNAL_ERROR);
        assert_eq!(guard(|| Ok(())), 0);
        assert_eq!(guard(|| require_flags(4, 3)), ERROR_INVALID_PARAMETER);
    }
}
