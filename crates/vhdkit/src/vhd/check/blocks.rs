//! The dynamic header, the block allocation table and the blocks.

use std::ops::Range;

use super::report::Report;
use crate::error::{ErrorKind, Result};
use crate::image::{DiskType, Severity};
use crate::num::to_usize;
use crate::storage::Storage;
use crate::vhd::bat::{Bat, Entry, Front};
use crate::vhd::bitmap::SectorBitmap;
use crate::vhd::header::SparseHeader;
use crate::vhd::image::{end_of_use, reserved_ranges};
use crate::vhd::layout::{Footer, HEADER_SIZE, Locator, NO_OFFSET, SECTOR, UNALLOCATED};
use crate::vhd::locator::{self, MAC, MACX, NONE, W2KU, W2RU, WI2K, WI2R};

use Severity::{Error as Bad, Info, Warning};

/// Everything behind the footer of a dynamic or differencing disk.
pub(super) fn sparse(
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
    if header.raw.data_offset.get() != NO_OFFSET {
        report.add(
            Info,
            "vhd-header-data-offset",
            at + 8,
            "the header's own data offset is not 0xffffffffffffffff",
        );
    }
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
        let (start, length) = (
            locator.platform_data_offset.get(),
            u64::from(locator.platform_data_length.get()),
        );
        let end = start.saturating_add(length);
        let structures = [
            0..SECTOR,
            header.offset..header.offset + HEADER_SIZE,
            header.table_offset..header.table_end(),
        ];
        let utf16 = [W2RU, W2KU].contains(&code);
        if !start.is_multiple_of(SECTOR)
            || (utf16 && length % 2 != 0)
            || structures.iter().any(|s| s.start < end && start < s.end)
        {
            report.add(
                Bad,
                "vhd-locator-misplaced",
                at,
                format!(
                    "the parent locator '{name}' of {length} bytes at {start} is not whole text in a place of its own"
                ),
            );
        }
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
    // A room past the end is a finding of its own, and holds no blocks.
    let rooms = header.raw.parent_locators.iter().filter_map(Locator::room);
    used.extend(rooms.filter(|room| room.end <= limit));
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
