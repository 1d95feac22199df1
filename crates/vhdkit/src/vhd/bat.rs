//! The block allocation table (BAT) in memory.

use std::ops::Range;
use std::sync::atomic::{AtomicU32, Ordering};

use zerocopy::FromZeros;

use super::header::{BlockShape, SparseHeader};
use super::layout::{SECTOR, UNALLOCATED};
use crate::error::{Error, ErrorKind, Result};
use crate::num::{round_up, to_usize};
use crate::storage::Storage;

/// Stands in memory for an entry that cannot be: it leads outside the file or over its structures.
const INVALID: u32 = UNALLOCATED - 1;

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
        let entries = unallocated(count)?;
        // What the file's table does not have is padding.
        let present = count.min(header.max_entries);
        let front = Front::new(reserved);
        let mut buffer = vec![0; to_usize((present * 4).min(256 * 1024))];
        let mut at = 0;
        while at < present {
            let n = (present - at).min(64 * 1024);
            let part = &mut buffer[..to_usize(n * 4)];
            storage.read_at(header.table_offset + at * 4, part)?;
            let is_empty = part.iter().all(|&byte| byte == 0xFF);
            let used = if is_empty { &[][..] } else { &*part };
            for (i, bytes) in (at..).zip(used.chunks_exact(4)) {
                let entry = u32::from_be_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
                if entry == UNALLOCATED {
                    continue;
                }
                let valid = i >= header.blocks
                    || (entry != INVALID && front.allows(block_range(entry, header.shape), limit));
                store(&entries[to_usize(i)], if valid { entry } else { INVALID });
            }
            at += n;
        }
        Ok(Self {
            entries,
            blocks: header.blocks,
            offset: header.table_offset,
            shape: header.shape,
        })
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
        store(&self.entries[to_usize(block)], sector);
    }

    /// Makes a block take no space.
    pub(super) fn release(&self, block: u64) {
        store(&self.entries[to_usize(block)], UNALLOCATED);
    }

    /// All blocks that have a place: number and offset, in the order of the disk.
    pub(super) fn placed(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        (0..)
            .zip(self.loaded())
            .filter(|&(_, entry)| entry < INVALID)
            .map(|(block, entry)| (block, u64::from(entry) * SECTOR))
    }

    /// The first block from `first` on that has a place, and where.
    pub(super) fn next_placed(&self, first: u64) -> Option<(u64, u64)> {
        (first..self.blocks).find_map(|block| match self.get(block) {
            Entry::At(at) => Some((block, at)),
            Entry::Unallocated | Entry::Invalid => None,
        })
    }

    /// The same table at another place, for as many blocks or more: those that are new take no space.
    pub(super) fn rebuilt(&self, blocks: u64, offset: u64) -> Result<Self> {
        let count = round_up(blocks.max(self.blocks), PER_SECTOR);
        let entries = unallocated(count)?;
        let kept = to_usize(self.kept(blocks));
        for (new, old) in entries.iter().zip(&self.entries[..kept]) {
            match load(old) {
                UNALLOCATED => {}
                entry => store(new, entry),
            }
        }
        Ok(Self {
            entries,
            blocks: blocks.max(self.blocks),
            offset,
            shape: self.shape,
        })
    }

    /// The bytes of the table from its sector `first` on, as they are now. For a disk of more blocks, only those of the
    /// blocks that there are: what a foreign file says behind the end of the disk is not kept where it would become part
    /// of it.
    pub(super) fn bytes_from(&self, first: u64, blocks: u64) -> Vec<u8> {
        let entries = &self.entries[to_usize(first * PER_SECTOR)..to_usize(self.kept(blocks))];
        let mut bytes = vec![0xFF; entries.len() * 4];
        for (bytes, entry) in bytes.chunks_exact_mut(4).zip(entries) {
            bytes.copy_from_slice(&load(entry).to_be_bytes());
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
        self.entries[to_usize(first)..to_usize(end)]
            .iter()
            .take_while(|entry| load(entry) == UNALLOCATED)
            .count() as u64
    }

    /// How many blocks take no space.
    pub(super) fn unallocated(&self) -> u64 {
        self.loaded().filter(|&e| e == UNALLOCATED).count() as u64
    }

    /// End of the last block in the file; 0 if there is none.
    pub(super) fn end(&self) -> u64 {
        self.loaded()
            .filter(|&e| e < INVALID)
            .max()
            .map_or(0, |e| block_range(e, self.shape).end)
    }

    /// The first block with an invalid entry.
    pub(super) fn first_invalid(&self) -> Option<u64> {
        (0..)
            .zip(self.loaded())
            .find_map(|(i, e)| (e == INVALID).then_some(i))
    }

    /// Two offsets of the file where blocks lie over each other.
    pub(super) fn first_overlap(&self) -> Option<(u64, u64)> {
        let mut starts: Vec<u32> = self.loaded().filter(|&e| e < INVALID).collect();
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

    fn loaded(&self) -> impl Iterator<Item = u32> + '_ {
        self.entries[..to_usize(self.blocks)].iter().map(load)
    }
}

fn load(entry: &AtomicU32) -> u32 {
    !entry.load(Ordering::Acquire)
}

fn store(entry: &AtomicU32, value: u32) {
    entry.store(!value, Ordering::Release);
}

/// A table of so many blocks that take no space.
fn unallocated(count: u64) -> Result<Vec<AtomicU32>> {
    AtomicU32::new_vec_zeroed(to_usize(count)).map_err(|_| {
        Error::new(
            ErrorKind::OutOfMemory,
            format!("no memory for a block allocation table of {count} entries"),
        )
    })
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
