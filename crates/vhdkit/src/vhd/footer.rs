//! The footer and its copy: finding the one that counts.

use std::ops::Range;

use zerocopy::{FromBytes, FromZeros, IntoBytes};

use super::layout::{
    FOOTER_COOKIE, FOOTER_SIZE, Footer, GROW_COOKIE, GrowMark, HEADER_COOKIE, SECTOR,
    SHORT_FOOTER_SIZE, TYPE_DIFFERENCING, TYPE_DYNAMIC, TYPE_FIXED, VERSION,
};
use crate::error::{Error, ErrorKind, Result};
use crate::image::DiskType;
use crate::storage::Storage;

/// One's complement of the sum of all bytes but the four of the checksum itself.
pub(super) fn checksum(structure: &[u8], stored: [u8; 4]) -> u32 {
    let sum = |bytes: &[u8]| bytes.iter().map(|&b| u32::from(b)).sum::<u32>();
    !(sum(structure) - sum(&stored))
}

impl Footer {
    pub(super) fn computed_checksum(&self) -> u32 {
        checksum(self.as_bytes(), self.checksum.to_bytes())
    }

    /// Makes the checksum right.
    pub(super) fn sign(&mut self) {
        self.checksum = self.computed_checksum().into();
    }

    pub(super) fn is_signed(&self) -> bool {
        self.checksum.get() == self.computed_checksum()
    }

    /// True if the two are of one disk: the same identifier, or nothing else that differs.
    pub(super) fn is_same_disk(&self, other: &Footer) -> bool {
        let mut renamed = self.clone();
        renamed.unique_id = other.unique_id;
        renamed.sign();
        self.unique_id == other.unique_id || renamed == *other
    }

    /// The range that an interrupted growing left in a fixed disk: whole sectors inside the disk.
    pub(super) fn grow_mark(&self) -> Option<Range<u64>> {
        let (_, mark) = GrowMark::ref_from_suffix(&self.reserved).ok()?;
        let (start, end) = (mark.start.get(), mark.end.get());
        (mark.cookie == GROW_COOKIE
            && self.disk_type.get() == TYPE_FIXED
            && start < end
            && end <= self.current_size.get()
            && start.is_multiple_of(SECTOR)
            && end.is_multiple_of(SECTOR))
        .then_some(start..end)
    }

    /// Sets or clears the mark of growing, and signs.
    pub(super) fn with_grow_mark(mut self, range: Option<Range<u64>>) -> Self {
        let mark = range.map_or_else(GrowMark::new_zeroed, |range| GrowMark {
            cookie: GROW_COOKIE,
            start: range.start.into(),
            end: range.end.into(),
        });
        let at = self.reserved.len() - size_of::<GrowMark>();
        self.reserved[at..].copy_from_slice(mark.as_bytes());
        self.sign();
        self
    }

    fn is_sparse(&self) -> bool {
        matches!(self.disk_type.get(), TYPE_DYNAMIC | TYPE_DIFFERENCING)
    }
}

/// What is in a place where a footer may be.
#[derive(Clone)]
pub(super) enum Candidate {
    /// No cookie.
    Nothing,
    /// The cookie, but a wrong checksum.
    Damaged(Box<Footer>),
    /// Cookie and checksum are right.
    Signed(Box<Footer>),
}

impl Candidate {
    fn of(footer: Box<Footer>) -> Self {
        if footer.cookie != FOOTER_COOKIE {
            Candidate::Nothing
        } else if footer.is_signed() {
            Candidate::Signed(footer)
        } else {
            Candidate::Damaged(footer)
        }
    }

    pub(super) fn signed(&self) -> Option<&Footer> {
        match self {
            Candidate::Signed(footer) => Some(footer),
            _ => None,
        }
    }
}

/// Which place a footer was taken from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Place {
    /// The last 512 bytes.
    End,
    /// The last 511 bytes (Virtual PC before 2004).
    ShortEnd,
    /// The first 512 bytes.
    Start,
}

/// All places of a file where a footer may be, as read.
pub(super) struct Places {
    pub(super) file_size: u64,
    /// The last 512 bytes.
    pub(super) end: Candidate,
    /// The last 511 bytes, looked at only if `end` does not hold a footer.
    pub(super) short_end: Candidate,
    /// The first 512 bytes.
    pub(super) start: Candidate,
}

impl Places {
    pub(super) fn read(storage: &dyn Storage) -> Result<Self> {
        Self::read_as_of(storage, storage.len()?)
    }

    /// As if the file ended at `file_size`.
    pub(super) fn read_as_of(storage: &dyn Storage, file_size: u64) -> Result<Self> {
        let read = |offset: u64, size: u64| -> Result<Candidate> {
            let mut footer = Box::new(Footer::new_zeroed());
            storage.read_at(
                offset,
                &mut footer.as_mut_bytes()[..crate::num::to_usize(size)],
            )?;
            Ok(Candidate::of(footer))
        };
        let (mut end, mut short_end, mut start) =
            (Candidate::Nothing, Candidate::Nothing, Candidate::Nothing);
        if file_size >= FOOTER_SIZE {
            end = read(file_size - FOOTER_SIZE, FOOTER_SIZE)?;
            start = read(0, FOOTER_SIZE)?;
        }
        if end.signed().is_none() && file_size % SECTOR == SHORT_FOOTER_SIZE {
            short_end = read(file_size - SHORT_FOOTER_SIZE, SHORT_FOOTER_SIZE)?;
        }
        Ok(Self {
            file_size,
            end,
            short_end,
            start,
        })
    }

    /// The footer that counts (specification, "footer copies"): the one at the end; else a short one at the end;
    /// else the copy at the start, if it is one of a dynamic or differencing disk.
    pub(super) fn choose(&self) -> Result<(&Footer, Place)> {
        if let Some(footer) = self.end.signed() {
            return Ok((footer, Place::End));
        }
        if let Some(footer) = self.short_end.signed() {
            return Ok((footer, Place::ShortEnd));
        }
        if self.is_damaged_fixed() {
            // The first sector belongs to the guest, who could have put anything there.
            return Err(mismatch(&self.end, "the footer"));
        }
        match self.start.signed() {
            Some(footer) if footer.is_sparse() => return Ok((footer, Place::Start)),
            _ => {}
        }
        for (candidate, what) in [
            (&self.end, "the footer"),
            (&self.short_end, "the 511-byte footer"),
            (&self.start, "the copy of the footer"),
        ] {
            if matches!(candidate, Candidate::Damaged(_)) {
                return Err(mismatch(candidate, what));
            }
        }
        Err(Error::new(
            ErrorKind::FooterMissing,
            "neither the last nor the first sector is a VHD footer",
        )
        .with_hint(
            "a fixed disk without its footer is a raw disk: open it with the raw format to reach its data",
        ))
    }

    /// True if the file ends in what was the footer of a fixed disk.
    pub(super) fn is_damaged_fixed(&self) -> bool {
        matches!(&self.end, Candidate::Damaged(f)
            if f.disk_type.get() == TYPE_FIXED
                && f.current_size.get().checked_add(FOOTER_SIZE) == Some(self.file_size))
    }

    /// True if the file is a fixed disk and its footer, and nothing else.
    pub(super) fn is_exact_fixed(&self) -> bool {
        self.end.signed().is_some_and(|f| {
            f.disk_type.get() == TYPE_FIXED
                && f.current_size.get().checked_add(FOOTER_SIZE) == Some(self.file_size)
        })
    }

    /// Where the trailing footer starts: the end of what may hold blocks.
    pub(super) fn limit(&self, place: Place) -> u64 {
        match place {
            Place::End => self.file_size - FOOTER_SIZE,
            Place::ShortEnd => self.file_size - SHORT_FOOTER_SIZE,
            Place::Start => self.file_size,
        }
    }

    /// True if this is meant to be a VHD, be it damaged.
    pub(super) fn looks_like_vhd(&self, storage: &dyn Storage) -> Result<bool> {
        if self.choose().is_ok() || self.is_damaged_fixed() {
            return Ok(true);
        }
        // A cookie alone could be any guest's data: the structure that it leads to must be there too.
        for candidate in [&self.end, &self.short_end, &self.start] {
            let Candidate::Damaged(footer) = candidate else {
                continue;
            };
            for offset in [footer.data_offset.get(), FOOTER_SIZE] {
                let mut cookie = [0; 8];
                if offset <= self.file_size.saturating_sub(8) {
                    storage.read_at(offset, &mut cookie)?;
                }
                if cookie == HEADER_COOKIE {
                    return Ok(true);
                }
            }
        }
        Ok(false)
    }
}

fn mismatch(candidate: &Candidate, what: &str) -> Error {
    let Candidate::Damaged(footer) = candidate else {
        return Error::new(ErrorKind::FooterMissing, format!("{what} is missing"));
    };
    let error = Error::new(
        ErrorKind::FooterChecksumMismatch,
        format!(
            "the checksum of {what} is {:#010x}, its bytes give {:#010x}",
            footer.checksum,
            footer.computed_checksum()
        ),
    );
    if footer.disk_type.get() == TYPE_FIXED {
        error.with_hint(
            "open it with the raw format to reach its data; the last sector is the footer",
        )
    } else {
        error.with_hint("no valid copy of the footer is left; check lists what is damaged")
    }
}

/// The type of a signed footer; its other fields are checked on the way.
pub(super) fn validate(footer: &Footer) -> Result<DiskType> {
    let version = footer.version.get();
    if version >> 16 != VERSION >> 16 {
        return Err(Error::new(
            ErrorKind::UnsupportedVersion,
            format!(
                "version {}.{} of the VHD format is not supported",
                version >> 16,
                version & 0xFFFF
            ),
        ));
    }
    let disk_type = match footer.disk_type.get() {
        TYPE_FIXED => DiskType::Fixed,
        TYPE_DYNAMIC => DiskType::Dynamic,
        TYPE_DIFFERENCING => DiskType::Differencing,
        other => {
            return Err(Error::new(
                ErrorKind::InvalidType,
                format!("disk type {other} is neither fixed (2), dynamic (3) nor differencing (4)"),
            ));
        }
    };
    let size = footer.current_size.get();
    if size == 0 || !size.is_multiple_of(SECTOR) {
        return Err(Error::new(
            ErrorKind::InvalidSize,
            format!("the disk's size of {size} bytes is not a positive multiple of 512"),
        ));
    }
    Ok(disk_type)
}

/// What the creator calls itself, with its version: `win 10.0`.
pub(super) fn creator(footer: &Footer) -> Option<String> {
    let name = footer.creator_application.trim_ascii_end();
    let name = match name.iter().position(|&b| b == 0) {
        Some(end) => &name[..end],
        None => name,
    };
    if name.is_empty() {
        return None;
    }
    let version = footer.creator_version.get();
    Some(format!(
        "{} {}.{}",
        name.escape_ascii(),
        version >> 16,
        version & 0xFFFF
    ))
}
