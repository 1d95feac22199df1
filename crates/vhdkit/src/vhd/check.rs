//! `check`: every structure of a VHD file against the specification, and the data against its bitmaps.
//!
//! Severities: what a crash of this library may leave behind, and what is merely unusual, is information; what another
//! program left wrong and a writable open puts right is a warning; lost or ambiguous data is an error.

mod blocks;
mod report;

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use report::Report;

use super::footer::{self, Candidate, Place, Places};
use super::geometry;
use super::layout::{
    EPOCH, FEATURE_RESERVED, FEATURE_TEMPORARY, FOOTER_SIZE, Footer, NO_OFFSET, SECTOR, TYPE_FIXED,
};
use crate::error::Result;
use crate::image::{DiskType, Finding, Severity};
use crate::storage::Storage;

use Severity::{Fatal, Info, Warning};

/// Programs known to write VHD files.
const CREATORS: [&[u8]; 12] = [
    b"vpc ", b"vs  ", b"win ", b"d2v ", b"d2v\0", b"qemu", b"qem2", b"tap\0", b"CTXS", b"dutl",
    b"vbox", b"wa\0\0",
];

/// Looks at every structure of a VHD file. Findings come roughly in the order of the file; their codes are stable.
///
/// Every sector that a bitmap says is absent from a dynamic disk's block is read, all other data is not. Parents are
/// not opened.
///
/// # Errors
/// Only what reading can fail with; damage is a finding.
pub fn check(storage: &Arc<dyn Storage>) -> Result<Vec<Finding>> {
    let mut report = Report::default();
    let places = Places::read(&**storage)?;
    match places.choose() {
        Err(error) => {
            footer_places(&mut report, &places, None);
            report.fatal(&error, None);
        }
        Ok((footer, place)) => {
            footer_places(&mut report, &places, Some((footer, place)));
            let at = match place {
                Place::Start => 0,
                _ => places.limit(place),
            };
            match footer::validate(footer) {
                Err(error) => report.fatal(&error, Some(at)),
                Ok(disk_type) => {
                    footer_fields(&mut report, footer, at);
                    let limit = places.limit(place);
                    if disk_type == DiskType::Fixed {
                        fixed(&mut report, footer, limit);
                    } else {
                        blocks::sparse(&mut report, &**storage, footer, disk_type, limit)?;
                    }
                }
            }
        }
    }
    Ok(report.finish())
}

/// Which of the places hold a footer, and whether they agree.
fn footer_places(report: &mut Report, places: &Places, chosen: Option<(&Footer, Place)>) {
    let end = places.file_size.saturating_sub(FOOTER_SIZE);
    for (candidate, offset, code) in [
        (&places.end, end, "vhd-footer-damaged"),
        (&places.start, 0, "vhd-footer-copy-damaged"),
    ] {
        // The first sector of a fixed disk is the guest's.
        let is_copy = offset == 0 && places.file_size > FOOTER_SIZE;
        let fixed = chosen.is_some_and(|(f, _)| is_fixed(f)) || places.is_damaged_fixed();
        if is_copy && fixed {
            continue;
        }
        if let Candidate::Damaged(footer) = candidate {
            let mut message = format!(
                "the checksum is {:#010x}, the bytes give {:#010x}",
                footer.checksum,
                footer.computed_checksum()
            );
            let mut shown = footer.clone();
            shown.reserved[0] = 0;
            if shown.is_signed() {
                message.push_str(
                    "; it is right but for the byte at 85, where early XenServer marked hidden disks",
                );
            }
            report.add(Warning, code, offset, message);
        }
    }
    let Some((footer, place)) = chosen else {
        return;
    };
    match (place, &places.end) {
        (Place::End, _) => {}
        (Place::ShortEnd, _) => report.add(
            Info,
            "vhd-footer-short",
            places.limit(place),
            "the footer has 511 bytes, as Virtual PC wrote it before 2004; the first change makes it 512",
        ),
        (Place::Start, Candidate::Damaged(_)) => {}
        (Place::Start, _) => report.add(
            Info,
            "vhd-footer-missing",
            end,
            "no footer at the end, as after a crash while the file grew; its copy at the start is used",
        ),
    }
    if place == Place::Start || is_fixed(footer) {
        return;
    }
    match &places.start {
        Candidate::Signed(copy) if **copy == *footer => {}
        Candidate::Signed(copy) if copy.is_same_disk(footer) => report.add(
            Info,
            "vhd-footer-copy-differs",
            0,
            "the copy at the start differs from the footer at the end, as after a crash while the footer was changed; the one at the end is used",
        ),
        Candidate::Signed(_) => report.add(
            Warning,
            "vhd-footer-copy-differs",
            0,
            "the copy at the start is the footer of another disk; the one at the end is used",
        ),
        Candidate::Damaged(_) => {}
        Candidate::Nothing => report.add(
            Warning,
            "vhd-footer-copy-missing",
            0,
            "no copy of the footer at the start",
        ),
    }
}

fn is_fixed(footer: &Footer) -> bool {
    footer.disk_type.get() == TYPE_FIXED
}

/// Fields of the footer that do not keep the file from being opened.
fn footer_fields(report: &mut Report, footer: &Footer, at: u64) {
    let features = footer.features.get();
    if features & FEATURE_RESERVED == 0 || features & !(FEATURE_RESERVED | FEATURE_TEMPORARY) != 0 {
        report.add(
            Warning,
            "vhd-footer-features",
            at + 8,
            format!("the features are {features:#x}, not 2 or 3"),
        );
    }
    if features & FEATURE_TEMPORARY != 0 {
        report.add(
            Info,
            "vhd-temporary",
            at + 8,
            "the disk is marked as temporary",
        );
    }
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(i64::MAX, |d| i64::try_from(d.as_secs()).unwrap_or(i64::MAX));
    if EPOCH + i64::from(footer.timestamp.get()) > now.saturating_add(24 * 3600) {
        report.add(
            Info,
            "vhd-timestamp-future",
            at + 24,
            format!(
                "the time of creation, {} seconds after 2000, is in the future",
                footer.timestamp
            ),
        );
    }
    if !CREATORS.contains(&footer.creator_application.as_slice()) {
        report.add(
            Info,
            "vhd-creator-unknown",
            at + 28,
            format!(
                "made by an unknown program '{}'",
                footer.creator_application.escape_ascii()
            ),
        );
    }
    if footer.saved_state != 0 {
        report.add(
            Info,
            "vhd-saved-state",
            at + 84,
            "the disk belongs to a virtual machine in saved state: do not change it while that state is kept",
        );
    }
    if footer.unique_id == [0; 16] {
        report.add(
            Info,
            "vhd-identifier-zero",
            at + 68,
            "the disk has no identifier",
        );
    }
    let size = footer.current_size.get();
    let stored = (
        footer.cylinders.get(),
        footer.heads,
        footer.sectors_per_track,
    );
    let described = geometry::size_of(stored);
    if &footer.creator_application == b"vpc "
        && described < size
        && described / SECTOR < geometry::MAX_SECTORS
    {
        report.add(
            Warning,
            "vhd-geometry-hides-data",
            at + 56,
            format!("Virtual PC shows the {described} bytes of the geometry, the disk has {size}"),
        );
    } else if stored != geometry::of_size(size) {
        report.add(
            Info,
            "vhd-geometry-differs",
            at + 56,
            format!("the geometry {stored:?} is not the one of {size} bytes"),
        );
    }
}

fn fixed(report: &mut Report, footer: &Footer, limit: u64) {
    let size = footer.current_size.get();
    if let Some(stale) = footer.grow_mark() {
        report.add(
            Info,
            "vhd-resize-interrupted",
            stale.start,
            format!(
                "the disk was made larger and that was interrupted: the {} bytes from here read as zeros, and the first change makes them so",
                stale.end - stale.start
            ),
        );
    }
    if size > limit {
        report.add(
            Fatal,
            "vhd-file-too-short",
            limit,
            format!("the disk has {size} bytes, the file holds only {limit}"),
        );
    } else if size < limit {
        report.add(
            Warning,
            "vhd-fixed-extra-bytes",
            size,
            format!(
                "{} bytes between the end of the disk and the footer",
                limit - size
            ),
        );
    }
    if footer.data_offset.get() != NO_OFFSET && footer.data_offset.get() != u64::from(u32::MAX) {
        report.add(
            Info,
            "vhd-fixed-data-offset",
            limit + 16,
            format!("a fixed disk with a data offset of {}", footer.data_offset),
        );
    }
}
