//! The master boot record, and the chain of extended boot records behind it.
//!
//! Numbers are in logical sectors of the disk, 32 bits. An extended partition (0x05, 0x0F, 0x85) holds a chain: each
//! record has one logical partition, counted from the record itself, and a link to the next record, counted from the
//! start of the extended partition.

use std::collections::HashSet;

use zerocopy::little_endian::U32;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::{Medium, Partition, PartitionType};
use crate::error::Result;

/// Where the four entries are.
pub(super) const ENTRIES_OFFSET: usize = 446;
const SIGNATURE: [u8; 2] = [0x55, 0xAA];
const PROTECTIVE: u8 = 0xEE;
/// Logical partitions that are followed; Linux takes 60, Windows fewer.
const MAX_LOGICAL: u32 = 1024;

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy, Default)]
#[repr(C)]
pub(super) struct Entry {
    status: u8,
    first_chs: [u8; 3],
    kind: u8,
    last_chs: [u8; 3],
    pub(super) start: U32,
    pub(super) sectors: U32,
}

pub(super) const ENTRY_LENGTH: usize = size_of::<Entry>();
const _: () = assert!(ENTRY_LENGTH == 16);

impl Entry {
    fn is_used(&self) -> bool {
        self.kind != 0 && self.sectors.get() > 0
    }

    fn is_extended(&self) -> bool {
        self.is_used() && matches!(self.kind, 0x05 | 0x0F | 0x85)
    }

    pub(super) fn is_protective(&self) -> bool {
        self.kind == PROTECTIVE
    }

    /// First sector and number of sectors, counted from sector `base`.
    fn range(&self, base: u64) -> (u64, u64) {
        (
            base + u64::from(self.start.get()),
            self.sectors.get().into(),
        )
    }
}

/// The table in the first sector.
pub(super) struct Mbr {
    entries: [Entry; 4],
}

/// The four entries of a boot record; `None` if it is none. A file system's boot sector ends in the same two bytes, but
/// has code or text where an entry has one of two values.
pub(super) fn parse(sector: &[u8]) -> Option<Mbr> {
    let entries = entries(sector)?;
    // A partition cannot hold the table that it stands in.
    let overlaps = entries.iter().any(|e| e.is_used() && e.start.get() == 0);
    (!overlaps).then_some(Mbr { entries })
}

pub(super) fn entries(sector: &[u8]) -> Option<[Entry; 4]> {
    let bytes = sector.get(ENTRIES_OFFSET..512)?;
    let (entries, rest) = <[Entry; 4]>::read_from_prefix(bytes).ok()?;
    let plausible = entries.iter().all(|e| matches!(e.status, 0 | 0x80));
    (plausible && rest == SIGNATURE).then_some(entries)
}

/// False for the entry that stands for a GPT.
pub(super) fn is_not_protective(partition: &Partition) -> bool {
    partition.kind != PartitionType::Mbr(PROTECTIVE)
}

impl Mbr {
    pub(super) fn is_protective(&self) -> bool {
        self.entries.iter().any(Entry::is_protective)
    }

    pub(super) fn is_empty(&self) -> bool {
        !self.entries.iter().any(Entry::is_used)
    }

    /// The partitions of the first sector itself.
    pub(super) fn primaries(&self, sector: u64) -> impl Iterator<Item = Partition> {
        let numbered = (1..).zip(&self.entries).filter(|(_, e)| e.is_used());
        numbered
            .map(move |(n, e)| Partition::new(n, e.range(0), sector, PartitionType::Mbr(e.kind)))
    }

    /// All partitions, and whether all chains of logical ones came to their end.
    pub(super) fn partitions(&self, medium: &Medium<'_>) -> Result<(Vec<Partition>, bool)> {
        let mut partitions: Vec<_> = self.primaries(medium.sector_bytes()).collect();
        let mut complete = true;
        let mut number = 5;
        for extended in self.entries.iter().filter(|e| e.is_extended()) {
            complete &= follow(medium, extended, &mut number, &mut partitions)?;
        }
        Ok((partitions, complete))
    }
}

/// Follows the chain in an extended partition; false if it does not come to a proper end.
fn follow(
    medium: &Medium<'_>,
    extended: &Entry,
    number: &mut u32,
    partitions: &mut Vec<Partition>,
) -> Result<bool> {
    let (base, sectors) = extended.range(0);
    let mut seen = HashSet::new();
    let mut record = base;
    loop {
        let inside = (base..base + sectors).contains(&record);
        if !inside || !seen.insert(record) || *number >= 5 + MAX_LOGICAL {
            return Ok(false);
        }
        let sector = medium.read_sector(record)?;
        let Some([logical, link, ..]) = sector.as_deref().and_then(entries) else {
            return Ok(false);
        };
        if logical.is_used() {
            let range = logical.range(record);
            let kind = PartitionType::Mbr(logical.kind);
            partitions.push(Partition::new(*number, range, medium.sector_bytes(), kind));
            *number += 1;
        }
        if !link.is_used() {
            return Ok(true);
        }
        record = base + u64::from(link.start.get());
    }
}
