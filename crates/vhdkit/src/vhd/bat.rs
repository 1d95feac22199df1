//! The block allocation table (BAT) in memory.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use zerocopy::FromZeros;

use super::header::{BlockShape, SparseHeader};
use super::layout::{SECTOR, UNALLOCATED};
use crate::error::{Error, ErrorKind, Result};
use crate::num::{MIB, round_down, round_up, to_usize};
use crate::storage::{AlignedBuffer, Storage};
use crate::zeros::is_all;

/// Stands in memory for an entry that cannot be: it leads outside the file or over its structures.
const INVALID: u32 = UNALLOCATED - 1;

/// Entries of which is known together that none was ever in use: walks over the table of a large and empty disk skip
/// them, and do not touch their memory.
const GROUP: u64 = 4096;

/// Entries in a sector of the table.
pub(super) const PER_SECTOR: u64 = SECTOR / 4;

/// Where a block is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Entry {
    /// It takes no space.
    Unallocated,
    /// Byte offset of its bitmap in the file.
    At(u64),
    /// The file's entry is damaged.
    Invalid,
}

/// All entries of the disk's blocks, and those that share the last sector of the table with them.
///
/// An entry is stored with release order after the block's content was written; whoever loads it sees the content.
pub(super) struct Bat {
    /// Inverted, so that what is unallocated is zero: memory that nobody has touched takes none.
    entries: Vec<AtomicU32>,
    /// For each [`GROUP`] of them, true before the first is set.
    touched: Vec<AtomicBool>,
    /// Entries that belong to blocks of the disk; what follows is kept as it was.
    blocks: u64,
    pub(super) offset: u64,
    pub(super) shape: BlockShape,
}

impl Bat {
    /// Reads the table of a checked header. Entries that lead past `limit` or into one of `reserved` become
    /// [`Entry::Invalid`].
    pub(super) fn read(
        storage: &dyn Storage,
        header: &SparseHeader,
        reserved: &[Range<u64>],
        limit: u64,
    ) -> Result<Self> {
        let count = round_up(header.blocks, PER_SECTOR);
        let bat = Self::unallocated_table(count, header.blocks, header.table_offset, header.shape)?;
        // What the file's table does not have is padding.
        let present = count.min(header.max_entries);
        let front = Front::new(reserved);
        let mut buffer = vec![0; to_usize((present * 4).min(256 * 1024))];
        let mut at = 0;
        while at < present {
            let n = (present - at).min(64 * 1024);
            let part = &mut buffer[..to_usize(n * 4)];
            storage.read_at(header.table_offset + at * 4, part)?;
            let used = if is_all(part, 0xFF) { &[][..] } else { &*part };
            for (i, bytes) in (at..).zip(used.chunks_exact(4)) {
                let entry = u32::from_be_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
                if entry == UNALLOCATED {
                    continue;
                }
                let valid = i >= header.blocks
                    || (entry != INVALID && front.allows(block_range(entry, header.shape), limit));
                bat.store(i, if valid { entry } else { INVALID });
            }
            at += n;
        }
        Ok(bat)
    }

    /// A table of so many entries that take no space.
    fn unallocated_table(count: u64, blocks: u64, offset: u64, shape: BlockShape) -> Result<Self> {
        let no_memory = |_| {
            Error::new(
                ErrorKind::OutOfMemory,
                format!("no memory for a block allocation table of {count} entries"),
            )
        };
        Ok(Self {
            entries: AtomicU32::new_vec_zeroed(to_usize(count)).map_err(no_memory)?,
            touched: AtomicBool::new_vec_zeroed(to_usize(count.div_ceil(GROUP)))
                .map_err(no_memory)?,
            blocks,
            offset,
            shape,
        })
    }

    fn store(&self, index: u64, value: u32) {
        self.touched[to_usize(index / GROUP)].store(true, Ordering::Release);
        self.entries[to_usize(index)].store(!value, Ordering::Release);
    }

    /// The entries in a range of indices that are anything but unallocated, with their indices.
    fn set(&self, range: Range<u64>) -> impl Iterator<Item = (u64, u32)> + '_ {
        let first = range.start / GROUP;
        let groups = first..range.end.div_ceil(GROUP).max(first);
        groups
            .filter(|&group| self.touched[to_usize(group)].load(Ordering::Acquire))
            .flat_map(move |group| {
                let start = (group * GROUP).max(range.start);
                let end = ((group + 1) * GROUP).min(range.end);
                (start..end).zip(
                    self.entries[to_usize(start)..to_usize(end)]
                        .iter()
                        .map(load),
                )
            })
            .filter(|&(_, entry)| entry != UNALLOCATED)
    }

    /// Those of the disk's blocks.
    fn of_blocks(&self) -> impl Iterator<Item = (u64, u32)> + '_ {
        self.set(0..self.blocks)
    }

    pub(super) fn get(&self, block: u64) -> Entry {
        match load(&self.entries[to_usize(block)]) {
            UNALLOCATED => Entry::Unallocated,
            INVALID => Entry::Invalid,
            sector => Entry::At(u64::from(sector) * SECTOR),
        }
    }

    /// Makes a block visible whose content is written. `at` is below 2^32 - 2 sectors.
    pub(super) fn publish(&self, block: u64, at: u64) {
        let sector = u32::try_from(at / SECTOR).unwrap_or(INVALID);
        debug_assert!(sector < INVALID);
        self.store(block, sector);
    }

    /// Makes a block take no space.
    pub(super) fn release(&self, block: u64) {
        self.store(block, UNALLOCATED);
    }

    /// All blocks that have a place: number and offset, in the order of the disk.
    pub(super) fn placed(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        self.of_blocks()
            .filter(|&(_, entry)| entry < INVALID)
            .map(|(block, entry)| (block, u64::from(entry) * SECTOR))
    }

    /// The first block from `first` on that has a place, and where.
    pub(super) fn next_placed(&self, first: u64) -> Option<(u64, u64)> {
        self.set(first..self.blocks)
            .find(|&(_, entry)| entry < INVALID)
            .map(|(block, entry)| (block, u64::from(entry) * SECTOR))
    }

    /// The same table at another place, for as many blocks or more: those that are new take no space.
    pub(super) fn rebuilt(&self, blocks: u64, offset: u64) -> Result<Self> {
        let count = round_up(blocks.max(self.blocks), PER_SECTOR);
        let bat = Self::unallocated_table(count, blocks.max(self.blocks), offset, self.shape)?;
        for (index, entry) in self.set(0..self.kept(blocks)) {
            bat.store(index, entry);
        }
        Ok(bat)
    }

    /// The bytes of the table from its sector `first` on, as they are now, in whole sectors up to the last one that says
    /// anything. For a disk of more blocks, only those of the blocks that there are: what a foreign file says behind
    /// the end of the disk is not kept where it would become part of it.
    pub(super) fn bytes_from(&self, first: u64, blocks: u64) -> Vec<u8> {
        let start = first * PER_SECTOR;
        let mut bytes = Vec::new();
        for (index, entry) in self.set(start..self.kept(blocks).max(start)) {
            let at = to_usize((index - start) * 4);
            bytes.resize(to_usize(round_up(at as u64 + 4, SECTOR)), 0xFF);
            bytes[at..at + 4].copy_from_slice(&entry.to_be_bytes());
        }
        bytes
    }

    /// How many entries stay if the disk gets so many blocks.
    fn kept(&self, blocks: u64) -> u64 {
        if blocks > self.blocks {
            self.blocks
        } else {
            self.entries.len() as u64
        }
    }

    /// How many blocks from `first` up to `end` are unallocated in a row.
    pub(super) fn unallocated_run(&self, first: u64, end: u64) -> u64 {
        let next = self.set(first..end).next();
        next.map_or(end, |(index, _)| index) - first
    }

    /// How many blocks take no space.
    pub(super) fn unallocated(&self) -> u64 {
        self.blocks - self.of_blocks().count() as u64
    }

    /// End of the last block in the file; 0 if there is none.
    pub(super) fn end(&self) -> u64 {
        self.of_blocks()
            .map(|(_, entry)| entry)
            .filter(|&entry| entry < INVALID)
            .max()
            .map_or(0, |entry| block_range(entry, self.shape).end)
    }

    /// The first block with an invalid entry.
    pub(super) fn first_invalid(&self) -> Option<u64> {
        self.of_blocks()
            .find_map(|(index, entry)| (entry == INVALID).then_some(index))
    }

    /// Two offsets of the file where blocks lie over each other.
    pub(super) fn first_overlap(&self) -> Option<(u64, u64)> {
        let starts = self.of_blocks().map(|(_, entry)| entry);
        let mut starts: Vec<u32> = starts.filter(|&entry| entry < INVALID).collect();
        // Mostly in order already, which the sort takes advantage of.
        starts.sort_unstable();
        starts
            .windows(2)
            .find(|pair| u64::from(pair[1] - pair[0]) * SECTOR < self.shape.total())
            .map(|pair| (u64::from(pair[0]) * SECTOR, u64::from(pair[1]) * SECTOR))
    }

    /// The bytes of a sector of the table as they are now.
    pub(super) fn sector(&self, index: u64, bytes: &mut [u8]) {
        let first = to_usize(index * PER_SECTOR);
        for (bytes, entry) in bytes.chunks_exact_mut(4).zip(&self.entries[first..]) {
            bytes.copy_from_slice(&load(entry).to_be_bytes());
        }
    }
}

fn load(entry: &AtomicU32) -> u32 {
    !entry.load(Ordering::Acquire)
}

/// Writes entries of which none is allocated to a range of the file.
pub(super) fn write_unallocated(storage: &dyn Storage, range: Range<u64>) -> Result<()> {
    let entries = vec![0xFF; to_usize((range.end.saturating_sub(range.start)).min(64 * 1024))];
    let mut at = range.start;
    while at < range.end {
        let part = &entries[..to_usize((range.end - at).min(entries.len() as u64))];
        storage.write_at(at, part)?;
        at += part.len() as u64;
    }
    Ok(())
}

/// As [`write_unallocated`], for a table that nobody reads soon: 4 MiB for 2040 GiB take a barrier less time if it does
/// not find them in the page cache.
pub(super) fn write_unallocated_bulk(storage: &dyn Storage, range: Range<u64>) -> Result<()> {
    const ALIGNMENT: u64 = AlignedBuffer::ALIGNMENT as u64;
    let bulk = round_up(range.start, ALIGNMENT)..round_down(range.end, ALIGNMENT);
    if bulk.end.saturating_sub(bulk.start) < MIB {
        return write_unallocated(storage, range);
    }
    storage.reserve_bulk(bulk.start, bulk.end - bulk.start)?;
    let mut entries = AlignedBuffer::new(to_usize(MIB));
    entries.fill(0xFF);
    let mut at = bulk.start;
    while at < bulk.end {
        let part = &entries[..to_usize((bulk.end - at).min(MIB))];
        storage.write_bulk(at, part)?;
        at += part.len() as u64;
    }
    // Pages that other structures share.
    write_unallocated(storage, range.start..bulk.start)?;
    write_unallocated(storage, bulk.end..range.end)
}

/// The range of the file that a block with this entry takes.
pub(super) fn block_range(entry: u32, shape: BlockShape) -> Range<u64> {
    let start = u64::from(entry) * SECTOR;
    start..start + shape.total()
}

/// The structures that no block may touch.
pub(super) struct Front<'a> {
    ranges: &'a [Range<u64>],
    end: u64,
}

impl<'a> Front<'a> {
    pub(super) fn new(ranges: &'a [Range<u64>]) -> Self {
        let end = ranges.iter().map(|r| r.end).max().unwrap_or(0);
        Self { ranges, end }
    }

    pub(super) fn allows(&self, block: Range<u64>, limit: u64) -> bool {
        block.end <= limit
            && (block.start >= self.end
                || self
                    .ranges
                    .iter()
                    .all(|r| block.end <= r.start || block.start >= r.end))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::MemoryStorage;

    fn empty(blocks: u64) -> Bat {
        let count = round_up(blocks, PER_SECTOR);
        Bat::unallocated_table(count, blocks, 1536, BlockShape::new(2 * MIB)).unwrap()
    }

    #[test]
    fn entries_are_found_wherever_they_are_and_what_was_never_set_is_unallocated() {
        let blocks = 10 * GROUP + 5;
        let bat = empty(blocks);
        assert_eq!((bat.unallocated(), bat.end()), (blocks, 0));
        let places = [0, GROUP - 1, GROUP, 7 * GROUP + 3, blocks - 1];
        for (number, block) in (1..).zip(places) {
            bat.publish(block, number * 4 * MIB);
        }
        assert!(bat.placed().map(|(block, _)| block).eq(places));
        assert_eq!(bat.unallocated(), blocks - 5);
        assert_eq!(bat.end(), 20 * MIB + bat.shape.total());
        assert_eq!(bat.next_placed(1), Some((GROUP - 1, 8 * MIB)));
        assert_eq!(bat.next_placed(GROUP + 1), Some((7 * GROUP + 3, 16 * MIB)));
        assert_eq!(bat.next_placed(blocks), None);
        assert_eq!(bat.unallocated_run(GROUP + 1, blocks), 6 * GROUP + 2);
        assert_eq!(bat.unallocated_run(GROUP + 1, GROUP + 9), 8);
        assert_eq!(bat.unallocated_run(0, blocks), 0);
        bat.release(7 * GROUP + 3);
        assert_eq!(bat.next_placed(GROUP + 1), Some((blocks - 1, 20 * MIB)));
        assert_eq!((bat.first_invalid(), bat.first_overlap()), (None, None));
        let larger = bat.rebuilt(20 * GROUP, 4096).unwrap();
        assert!(larger.placed().eq(bat.placed()));
        assert_eq!(larger.unallocated(), 20 * GROUP - 4);
    }

    #[test]
    fn the_bytes_of_a_table_end_with_the_last_sector_that_says_anything() {
        let bat = empty(1000);
        assert!(bat.bytes_from(0, 1000).is_empty());
        bat.publish(130, 4 * MIB);
        let bytes = bat.bytes_from(1, 1000);
        assert_eq!(bytes.len(), 512);
        assert_eq!(bytes[8..12], (8192_u32).to_be_bytes());
        assert!(is_all(&bytes[..8], 0xFF) && is_all(&bytes[12..], 0xFF));
        assert_eq!(bat.bytes_from(0, 1000).len(), 1024);
        assert!(bat.bytes_from(2, 1000).is_empty());
    }

    #[test]
    fn unallocated_entries_fill_exactly_their_range() {
        for (start, end) in [
            (1536, 1536),
            (1536, 2048),
            (1536, 3 * MIB + 512),
            (512, MIB),
        ] {
            for write in [write_unallocated, write_unallocated_bulk] {
                let storage = MemoryStorage::new();
                storage.set_len(4 * MIB).unwrap();
                write(&storage, start..end).unwrap();
                let mut bytes = vec![1; to_usize(4 * MIB)];
                storage.read_at(0, &mut bytes).unwrap();
                let (start, end) = (to_usize(start), to_usize(end));
                assert!(is_all(&bytes[..start], 0) && is_all(&bytes[end..], 0));
                assert!(is_all(&bytes[start..end], 0xFF));
            }
        }
    }
}
