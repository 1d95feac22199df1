//! UTF-16 of callers, and paths.
//!
//! A path is a path of this system. Its bytes are UTF-8 here; file names that are not valid Unicode cannot be named.

use std::path::{Path, PathBuf};

use uuid::Uuid;

use crate::codes::{ERROR_FILENAME_EXCED_RANGE, ERROR_INVALID_NAME};
use crate::guard::{Answer, Code, INVALID, require};
use crate::types::{GUID, PCWSTR};

/// Longest path of Windows in UTF-16 units, without the zero at its end.
const MAX_UNITS: usize = 32767;
/// Longest path of this system in bytes, with the zero at its end.
const PATH_MAX: usize = 4096;
/// Longest file name in bytes.
const NAME_MAX: usize = 255;

/// A caller's string, at most `limit` units long.
///
/// # Safety
/// `text` is NULL or leads to UTF-16 units up to a zero, or to more than `limit` units.
pub(crate) unsafe fn units(text: PCWSTR, limit: usize) -> Answer<Vec<u16>> {
    require(!text.is_null())?;
    let mut units = Vec::new();
    loop {
        // SAFETY: all units before this one are not zero, so by the contract this one may be read.
        let unit = unsafe { text.add(units.len()).read_unaligned() };
        if unit == 0 {
            return Ok(units);
        }
        if units.len() == limit {
            return Err(Code(ERROR_FILENAME_EXCED_RANGE));
        }
        units.push(unit);
    }
}

/// A path of this system.
///
/// ERROR_INVALID_PARAMETER for NULL, ERROR_INVALID_NAME for an empty path and for invalid UTF-16,
/// ERROR_FILENAME_EXCED_RANGE for what the system could not open for its length.
///
/// # Safety
/// As [`units`].
pub(crate) unsafe fn path(text: PCWSTR) -> Answer<PathBuf> {
    // SAFETY: as this function's.
    let units = unsafe { units(text, MAX_UNITS) }?;
    let text = String::from_utf16(&units).map_err(|_| Code(ERROR_INVALID_NAME))?;
    if text.is_empty() {
        return Err(Code(ERROR_INVALID_NAME));
    }
    if text.len() >= PATH_MAX || text.split('/').any(|name| name.len() > NAME_MAX) {
        return Err(Code(ERROR_FILENAME_EXCED_RANGE));
    }
    Ok(PathBuf::from(text))
}

/// A path that has to be fully qualified (contract, 2.0.5).
///
/// # Safety
/// As [`units`].
pub(crate) unsafe fn full_path(text: PCWSTR) -> Answer<PathBuf> {
    // SAFETY: as this function's.
    let path = unsafe { path(text) }?;
    require(path.is_absolute())?;
    Ok(path)
}

/// As [`full_path`], `None` for NULL.
///
/// # Safety
/// As [`units`].
pub(crate) unsafe fn optional_full_path(text: PCWSTR) -> Answer<Option<PathBuf>> {
    if text.is_null() {
        return Ok(None);
    }
    // SAFETY: as this function's.
    unsafe { full_path(text) }.map(Some)
}

/// A path in UTF-16 with a zero at its end.
pub(crate) fn wide_path(path: &Path) -> Vec<u16> {
    wide(&path.to_string_lossy())
}

/// Text in UTF-16 with a zero at its end.
pub(crate) fn wide(text: &str) -> Vec<u16> {
    text.encode_utf16().chain([0]).collect()
}

impl GUID {
    /// All zeros.
    pub(crate) const ZERO: GUID = guid(Uuid::nil());

    pub(crate) fn uuid(self) -> Uuid {
        Uuid::from_fields(self.Data1, self.Data2, self.Data3, &self.Data4)
    }

    /// `None` for zeros.
    pub(crate) fn given(self) -> Option<Uuid> {
        Some(self.uuid()).filter(|id| !id.is_nil())
    }
}

impl From<Uuid> for GUID {
    fn from(id: Uuid) -> Self {
        guid(id)
    }
}

const fn guid(id: Uuid) -> GUID {
    let (high, low) = id.as_u64_pair();
    #[expect(clippy::cast_possible_truncation, reason = "fields of a longer number")]
    GUID {
        Data1: (high >> 32) as u32,
        Data2: (high >> 16) as u16,
        Data3: high as u16,
        Data4: low.to_be_bytes(),
    }
}

/// A number of bytes as the API counts them.
pub(crate) fn length(bytes: usize) -> Answer<u32> {
    u32::try_from(bytes).map_err(|_| INVALID)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_checked() {
        let check = |text: &[u16]| {
            // SAFETY: the slices below end with a zero, or are longer than the limit.
            unsafe { path(text.as_ptr()) }.map_err(|Code(code)| code)
        };
        assert_eq!(check(&wide("/a/ß")), Ok(PathBuf::from("/a/ß")));
        assert_eq!(check(&[0]), Err(123));
        assert_eq!(check(&[0xD800, 0x41, 0]), Err(123));
        assert_eq!(check(&wide(&"x".repeat(256))), Err(206));
        assert_eq!(check(&wide(&"x/".repeat(2048))), Err(206));
        assert_eq!(check(&vec![0x41; 40_000]), Err(206));
        // SAFETY: NULL is allowed.
        assert_eq!(unsafe { path(std::ptr::null()) }, Err(INVALID));
    }

    #[test]
    fn identifiers_are_stored_in_windows_order() {
        let id = Uuid::from_u128(0xec98_4aec_a0f9_47e9_901f_7141_5a66_345b);
        let guid = GUID::from(id);
        assert_eq!(guid.Data1, 0xEC98_4AEC);
        assert_eq!(guid.Data4[0], 0x90);
        assert_eq!(guid.uuid(), id);
        assert_eq!(GUID::ZERO.given(), None);
    }
}
