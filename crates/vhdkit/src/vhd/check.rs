//! `check`: every structure of a VHD file against the specification, and the data against its bitmaps.
//!
//! Severities: what a crash of this library may leave behind, and what is merely unusual, is information; what another
//! program left wrong and a writable open puts right is a warning; lost or ambiguous data is an error.

use std::ops::Range;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use super::bat::{Bat, Entry, Front};
use super::bitmap::SectorBitmap;
use super::footer::{self, Candidate, Place, Places};
use super::geometry;
use super::header::SparseHeader;
use super::image::{end_of_use, reserved_ranges};
use super::layout::{
    EPOCH, FEATURE_RESERVED, FEATURE_TEMPORARY, FOOTER_SIZE, Footer, Locator, NO_OFFSET, SECTOR,
    TYPE_FIXED, UNALLOCATED,
};
use super::locator::{self, MAC, MACX, NONE, W2KU, W2RU, WI2K, WI2R};
use crate::error::{Error, ErrorKind, Result};
use crate::image::{DiskType, Finding, Severity};
use crate::num::to_usize;
use crate::storage::Storage;

use Severity::{Error as Bad, Fatal, Info, Warning};

/// Findings of one code beyond this many are only counted.
const MAX_PER_CODE: u64 = 100;

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
                        sparse(&mut report, &**storage, footer, disk_type, limit)?;
                    }
                }
            }
        }
    }
    Ok(report.finish())
}

#[derive(Default)]
struct Report {
    findings: Vec<Finding>,
    /// How often each code was met.
    counts: Vec<(&'static str, Severity, u64)>,
}

impl Report {
    fn add(
        &mut self,
        severity: Severity,
        code: &'static str,
        offset: impl Into<Option<u64>>,
        message: impl Into<String>,
    ) {
        let known = self.counts.iter().position(|(c, _, _)| *c == code);
        let index = known.unwrap_or(self.counts.len());
        if known.is_none() {
            self.counts.push((code, severity, 0));
        }
        let (_, worst, count) = &mut self.counts[index];
        *worst = severity.max(*worst);
        *count += 1;
        if *count <= MAX_PER_CODE {
            self.findings.push(Finding {
                code,
                severity,
                offset: offset.into(),
                message: message.into(),
            });
        }
    }

    /// The reason why the file does not open.
    fn fatal(&mut self, error: &Error, offset: Option<u64>) {
        let code = match error.kind() {
            ErrorKind::FooterMissing => "vhd-footer-lost",
            ErrorKind::FooterChecksumMismatch => "vhd-footer-checksum",
            ErrorKind::UnsupportedVersion => "vhd-footer-version",
            ErrorKind::InvalidType => "vhd-type-invalid",
            ErrorKind::InvalidSize => "vhd-size-invalid",
            ErrorKind::InvalidFileSize => "vhd-file-too-short",
            ErrorKind::SparseHeaderChecksumMismatch => "vhd-header-checksum",
            ErrorKind::SparseHeaderUnsupportedVersion => "vhd-header-version",
            ErrorKind::InvalidBlockSize => "vhd-block-size-invalid",
            _ => "vhd-header-corrupt",
        };
        self.add(Fatal, code, offset, error.reason());
    }

    fn finish(mut self) -> Vec<Finding> {
        for (code, severity, count) in self.counts {
            if count > MAX_PER_CODE {
                self.findings.push(Finding {
                    code,
                    severity,
                    offset: None,
                    message: format!("{} more of the same kind", count - MAX_PER_CODE),
                });
            }
        }
        self.findings
    }
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
        Candidate::Signed(copy) if copy.unique_id == footer.unique_id => report.add(
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

fn sparse(
    report: &mut Report,
    storage: &dyn Storage,
    footer: &Footer,
    disk_type: DiskType,
    limit: u64,
) -> Result<()> {
    let header = match SparseHeader::read(storage, footer, limit) {
        Ok(header) => header,
        Err(error) if is_damage(error.kind()) => {
            report.fatal(&error, Some(footer.data_offset.get()));
            return Ok(());
        }
        Err(error) => return Err(error),
    };
    let differencing = disk_type == DiskType::Differencing;
    parent(report, storage, &header, differencing, limit);
    let reserved = reserved_ranges(storage, footer, &header, limit);
    let bat = Bat::read(storage, &header, &reserved, limit)?;
    let blocks = entries(report, storage, &header, &reserved, limit)?;
    overlaps(report, &blocks, &bat);
    space(report, &header, &reserved, &bat, &blocks, limit);
    if !differencing {
        hidden_data(report, storage, &bat, header.blocks)?;
    }
    Ok(())
}

fn is_damage(kind: ErrorKind) -> bool {
    matches!(
        kind,
        ErrorKind::SparseHeaderCorrupt
            | ErrorKind::SparseHeaderChecksumMismatch
            | ErrorKind::SparseHeaderUnsupportedVersion
            | ErrorKind::InvalidBlockSize
            | ErrorKind::InvalidSize
    )
}

/// What the header says of the parent.
fn parent(
    report: &mut Report,
    storage: &dyn Storage,
    header: &SparseHeader,
    differencing: bool,
    limit: u64,
) {
    let at = header.offset;
    if !differencing {
        if header.raw.parent_unique_id != [0; 16] {
            report.add(
                Warning,
                "vhd-parent-unexpected",
                at + 40,
                "the header names a parent, but the disk is dynamic: the parent is not used",
            );
        }
        return;
    }
    if header.raw.parent_unique_id == [0; 16] {
        report.add(
            Bad,
            "vhd-parent-identifier-zero",
            at + 40,
            "the identifier of the parent is zero, so the right parent cannot be told from others",
        );
    }
    for (slot, locator) in (0..).zip(&header.raw.parent_locators) {
        let at = at + 576 + slot * 24;
        let code = locator.platform_code;
        if code == NONE {
            continue;
        }
        let name = code.escape_ascii();
        if ![W2RU, W2KU, WI2R, WI2K, MAC, MACX].contains(&code) {
            report.add(
                Info,
                "vhd-locator-unknown",
                at,
                format!("a parent locator of an unknown platform '{name}'"),
            );
        } else if locator.read(storage, limit).is_none() {
            report.add(
                Warning,
                "vhd-locator-invalid",
                at,
                format!(
                    "the parent locator '{name}' has {} bytes at {}, which cannot be read",
                    locator.platform_data_length, locator.platform_data_offset
                ),
            );
        } else if locator.space() % SECTOR != 0
            || locator.space() < u64::from(locator.platform_data_length.get())
        {
            report.add(
                Info,
                "vhd-locator-space",
                at + 4,
                format!(
                    "the parent locator '{name}' of {} bytes has a space of {}",
                    locator.platform_data_length, locator.platform_data_space
                ),
            );
        }
    }
    if locator::parent_paths(&header.raw, storage, limit).is_empty() {
        report.add(
            Bad,
            "vhd-parent-path-missing",
            at + 576,
            "no path of the parent is recorded",
        );
    }
}

/// All allocated blocks with sound entries, by their place in the file: offset and block.
fn entries(
    report: &mut Report,
    storage: &dyn Storage,
    header: &SparseHeader,
    reserved: &[Range<u64>],
    limit: u64,
) -> Result<Vec<(u64, u64)>> {
    let front = Front::new(reserved);
    let mut blocks = Vec::new();
    let (mut surplus, mut padding) = (0_u64, 0_u64);
    let mut buffer = vec![0; 64 * 1024];
    let end = header.table_end().min(limit);
    let mut at = header.table_offset;
    while at < end {
        let part = &mut buffer[..to_usize((end - at).min(64 * 1024))];
        storage.read_at(at, part)?;
        for (place, bytes) in (at..).step_by(4).zip(part.chunks_exact(4)) {
            let entry = u32::from_be_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
            if entry == UNALLOCATED {
                continue;
            }
            let block = (place - header.table_offset) / 4;
            if block >= header.blocks {
                *(if block < header.max_entries {
                    &mut surplus
                } else {
                    &mut padding
                }) += 1;
                continue;
            }
            let start = u64::from(entry) * SECTOR;
            let range = start..start + header.shape.total();
            if range.end > limit {
                report.add(
                    Bad,
                    "vhd-block-beyond-end",
                    place,
                    format!("block {block} at {start} reaches past the end of the data at {limit}: its data is lost"),
                );
            } else if !front.allows(range, limit) {
                report.add(
                    Bad,
                    "vhd-block-over-structures",
                    place,
                    format!("block {block} at {start} lies over the header, the block allocation table or a parent locator"),
                );
            } else {
                blocks.push((start, block));
            }
        }
        at += part.len() as u64;
    }
    if surplus > 0 {
        report.add(
            Info,
            "vhd-bat-surplus",
            header.table_offset + header.blocks * 4,
            format!("{surplus} blocks are allocated behind the end of the disk"),
        );
    }
    if padding > 0 {
        report.add(
            Warning,
            "vhd-bat-padding",
            header.table_offset + header.max_entries * 4,
            format!(
                "{padding} entries behind the end of the block allocation table are not 0xffffffff"
            ),
        );
    }
    blocks.sort_unstable();
    Ok(blocks)
}

fn overlaps(report: &mut Report, blocks: &[(u64, u64)], bat: &Bat) {
    for pair in blocks.windows(2) {
        let [(a_at, a), (b_at, b)] = [pair[0], pair[1]];
        if b_at - a_at < bat.shape.total() {
            report.add(
                Bad,
                "vhd-blocks-overlap",
                b_at,
                format!("blocks {a} at {a_at} and {b} at {b_at} share the same place in the file"),
            );
        }
    }
}

/// Room that nothing uses.
fn space(
    report: &mut Report,
    header: &SparseHeader,
    reserved: &[Range<u64>],
    bat: &Bat,
    blocks: &[(u64, u64)],
    limit: u64,
) {
    let end = end_of_use(header, reserved, bat, limit);
    if end < limit {
        report.add(
            Info,
            "vhd-unused-end",
            end,
            format!(
                "{} bytes before the footer are not in use; the first change gives them back",
                limit - end
            ),
        );
    }
    let total = bat.shape.total();
    let mut leaked = 0;
    let mut used: Vec<Range<u64>> = reserved.to_vec();
    used.extend(header.raw.parent_locators.iter().filter_map(Locator::room));
    let mut at = used.iter().map(|r| r.end).max().unwrap_or(0);
    for &(start, _) in blocks {
        // Smaller gaps are alignment.
        leaked += start.saturating_sub(bat.shape.place_behind(at)) / total;
        at = at.max(start + total);
    }
    if leaked > 0 {
        report.add(
            Info,
            "vhd-blocks-leaked",
            None,
            format!("room for {leaked} blocks between others is not in use; compact gives it back"),
        );
    }
}

/// Sectors that a dynamic disk's bitmap says were never written, but that hold data.
fn hidden_data(report: &mut Report, storage: &dyn Storage, bat: &Bat, blocks: u64) -> Result<()> {
    let shape = bat.shape;
    let mut bytes = vec![0; to_usize(shape.bitmap_size)];
    for block in 0..blocks {
        let Entry::At(at) = bat.get(block) else {
            continue;
        };
        storage.read_at(at, &mut bytes)?;
        let bitmap = SectorBitmap::from_bytes(&bytes);
        let mut sector = 0;
        let mut hidden = 0;
        while sector < shape.sectors() {
            let (set, run) = bitmap.run(sector..shape.sectors());
            if !set {
                let start = at + shape.bitmap_size + sector * SECTOR;
                hidden += non_zero_sectors(storage, start..start + run * SECTOR)?;
            }
            sector += run;
        }
        if hidden > 0 {
            report.add(
                Warning,
                "vhd-data-under-clear-bit",
                at,
                format!("{hidden} sectors of block {block} hold data, but its bitmap says that they were never written; they are shown"),
            );
        }
    }
    Ok(())
}

fn non_zero_sectors(storage: &dyn Storage, range: Range<u64>) -> Result<u64> {
    let mut buffer = vec![0; to_usize((range.end - range.start).min(64 * 1024))];
    let mut count = 0;
    let mut at = range.start;
    while at < range.end {
        let Some(data) = storage.next_data(at..range.end)? else {
            break;
        };
        at = data.start - (data.start - range.start) % SECTOR;
        let end = range.start + (data.end - range.start).next_multiple_of(SECTOR);
        let end = end.clamp(at + SECTOR, range.end);
        while at < end {
            let part = &mut buffer[..to_usize((end - at).min(64 * 1024))];
            storage.read_at(at, part)?;
            let sectors = part.chunks(to_usize(SECTOR));
            count += sectors.filter(|s| s.iter().any(|&b| b != 0)).count() as u64;
            at += part.len() as u64;
        }
    }
    Ok(count)
}
