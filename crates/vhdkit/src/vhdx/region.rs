//! The two region tables (format sheet 2.3).

use std::collections::HashSet;
use std::ops::Range;

use uuid::Uuid;
use zerocopy::{FromBytes, IntoBytes};

use super::header::{Headers, corrupt};
use super::layout::{
    ALIGNMENT, Guid, HEADER_AREA, MAX_REGIONS, REGION_BAT, REGION_METADATA, REGION_REQUIRED,
    REGION_SIGNATURE, REGION_TABLE_LENGTH, REGION_TABLE_OFFSETS, RegionTableEntry,
    RegionTableHeader, checksum,
};
use crate::error::{Error, ErrorKind, Result};
use crate::storage::Storage;

/// A part of the file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Region {
    pub(super) guid: Guid,
    pub(super) offset: u64,
    pub(super) length: u64,
    pub(super) required: bool,
}

impl std::fmt::Debug for Guid {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        std::fmt::Display::fmt(&Uuid::from(*self), f)
    }
}

impl Region {
    pub(super) fn end(&self) -> u64 {
        self.offset.saturating_add(self.length)
    }
}

/// The regions of a file.
#[derive(Clone, Debug)]
pub(super) struct Regions {
    pub(super) bat: Region,
    pub(super) metadata: Region,
    /// All of them, known or not.
    pub(super) all: Vec<Region>,
    /// The log, which is no region, as it was when the file was opened.
    log: Range<u64>,
}

/// The bytes of one copy, if signature and checksum are right.
pub(super) fn read_copy(storage: &dyn Storage, copy: usize) -> Result<Option<Vec<u8>>> {
    let mut bytes = vec![0; REGION_TABLE_LENGTH];
    storage.read_at(REGION_TABLE_OFFSETS[copy], &mut bytes)?;
    let (header, _) = RegionTableHeader::ref_from_prefix(&bytes)
        .map_err(|_| corrupt("the region table is too short"))?;
    let valid = header.signature == REGION_SIGNATURE
        && header.checksum.get() == checksum(&bytes)
        && header.entry_count.get() <= MAX_REGIONS;
    Ok(valid.then_some(bytes))
}

impl Regions {
    /// Takes the first valid copy and checks every entry (checklist 9.4).
    pub(super) fn read(storage: &dyn Storage, headers: &Headers, file_length: u64) -> Result<Self> {
        let table = match read_copy(storage, 0)? {
            Some(table) => table,
            None => {
                read_copy(storage, 1)?.ok_or_else(|| corrupt("both region tables are invalid"))?
            }
        };
        Self::parse(&table, headers, file_length)
    }

    fn parse(table: &[u8], headers: &Headers, file_length: u64) -> Result<Self> {
        let (header, _) = RegionTableHeader::ref_from_prefix(table)
            .map_err(|_| corrupt("the region table is too short"))?;
        if header.reserved.get() != 0 {
            return Err(corrupt("the region table has reserved bits set"));
        }
        let all = entries(table)?;
        let mut seen = HashSet::new();
        let (mut bat, mut metadata) = (None, None);
        for region in &all {
            if !seen.insert(Uuid::from(region.guid)) {
                return Err(corrupt(format!("region {:?} is listed twice", region.guid)));
            }
            let placed = region.offset.is_multiple_of(ALIGNMENT)
                && region.length.is_multiple_of(ALIGNMENT)
                && region.length > 0
                && region.offset >= HEADER_AREA
                && region
                    .offset
                    .checked_add(region.length)
                    .is_some_and(|end| end <= file_length);
            if !placed {
                return Err(corrupt(format!(
                    "region {:?} of {} bytes at {} is misplaced in a file of {file_length} bytes",
                    region.guid, region.length, region.offset
                )));
            }
            if region.guid == REGION_BAT {
                bat = Some(*region);
            } else if region.guid == REGION_METADATA {
                metadata = Some(*region);
            } else if region.required {
                return Err(Error::new(
                    ErrorKind::UnsupportedVersion,
                    format!("region {:?} is required but not known", region.guid),
                )
                .with_hint("the file was made by a newer program; use that one"));
            }
        }
        let mut ranges: Vec<(u64, u64)> = all.iter().map(|r| (r.offset, r.end())).collect();
        if headers.log_length > 0 {
            ranges.push((headers.log_offset, headers.log_offset + headers.log_length));
        }
        ranges.sort_unstable();
        if let Some(pair) = ranges.windows(2).find(|pair| pair[0].1 > pair[1].0) {
            return Err(corrupt(format!(
                "two regions, or a region and the log, overlap at {}",
                pair[1].0
            )));
        }
        Ok(Self {
            bat: bat.ok_or_else(|| corrupt("the BAT region is missing"))?,
            metadata: metadata.ok_or_else(|| corrupt("the metadata region is missing"))?,
            all,
            log: headers.log_offset..headers.log_offset + headers.log_length,
        })
    }

    /// True if a range of the file shares a byte with a region or the log.
    pub(super) fn overlap(&self, range: &Range<u64>) -> bool {
        let shares = |start, end| start < range.end && range.start < end;
        self.all
            .iter()
            .any(|region| shares(region.offset, region.end()))
            || shares(self.log.start, self.log.end)
    }
}

/// The pages that have to be written so that both copies are equal: none if they are. The first valid copy is right.
pub(super) fn repair_pages(storage: &dyn Storage) -> Result<Vec<(u64, Box<[u8]>)>> {
    let good = usize::from(read_copy(storage, 0)?.is_none());
    let Some(table) = read_copy(storage, good)? else {
        return Ok(Vec::new());
    };
    let target = REGION_TABLE_OFFSETS[1 - good];
    let mut other = vec![0; REGION_TABLE_LENGTH];
    storage.read_at(target, &mut other)?;
    Ok(table
        .chunks(4096)
        .zip(other.chunks(4096))
        .zip((target..).step_by(4096))
        .filter(|((page, other), _)| page != other)
        .map(|((page, _), offset)| (offset, page.into()))
        .collect())
}

/// The pages of both copies that have to be written so that they list these regions.
pub(super) fn changed_pages(
    storage: &dyn Storage,
    regions: &[Region],
) -> Result<Vec<(u64, Box<[u8]>)>> {
    let table = encode(regions)?;
    let mut pages = Vec::new();
    for copy in REGION_TABLE_OFFSETS {
        let mut present = vec![0; REGION_TABLE_LENGTH];
        storage.read_at(copy, &mut present)?;
        let changed = table
            .chunks(4096)
            .zip(present.chunks(4096))
            .zip((copy..).step_by(4096))
            .filter(|((new, old), _)| new != old)
            .map(|((new, _), offset)| (offset, new.into()));
        pages.extend(changed);
    }
    Ok(pages)
}

/// The entries of a table whose checksum was right.
pub(super) fn entries(table: &[u8]) -> Result<Vec<Region>> {
    let (header, rest) = RegionTableHeader::ref_from_prefix(table)
        .map_err(|_| corrupt("the region table is too short"))?;
    let count = crate::num::to_usize(header.entry_count.get().into());
    let (entries, _) = <[RegionTableEntry]>::ref_from_prefix_with_elems(rest, count)
        .map_err(|_| corrupt(format!("a region table cannot hold {count} entries")))?;
    entries
        .iter()
        .map(|entry| {
            let required = entry.required.get();
            if required & !REGION_REQUIRED != 0 {
                return Err(corrupt(format!(
                    "region {:?} has reserved bits set",
                    entry.guid
                )));
            }
            Ok(Region {
                guid: entry.guid,
                offset: entry.file_offset.get(),
                length: entry.length.get().into(),
                required: required != 0,
            })
        })
        .collect()
}

/// A table with these regions, checksum included.
pub(super) fn encode(regions: &[Region]) -> Result<Vec<u8>> {
    let count = u32::try_from(regions.len()).unwrap_or(u32::MAX);
    let mut table = RegionTableHeader {
        signature: REGION_SIGNATURE,
        checksum: 0.into(),
        entry_count: count.into(),
        reserved: 0.into(),
    }
    .as_bytes()
    .to_vec();
    for region in regions {
        let length = u32::try_from(region.length)
            .map_err(|_| corrupt(format!("a region of {} bytes is too long", region.length)))?;
        let entry = RegionTableEntry {
            guid: region.guid,
            file_offset: region.offset.into(),
            length: length.into(),
            required: u32::from(region.required).into(),
        };
        table.extend_from_slice(entry.as_bytes());
    }
    table.resize(REGION_TABLE_LENGTH, 0);
    let sum = checksum(&table);
    table[4..8].copy_from_slice(&sum.to_le_bytes());
    Ok(table)
}
