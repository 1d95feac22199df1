//! Blocks, chunks and the entries of the block allocation table (format sheet 4).

use super::layout::{
    BAT_OFFSET_MASK, BAT_RESERVED_MASK, BAT_STATE_MASK, HEADER_AREA, SECTORS_PER_BITMAP,
};
use crate::error::{Error, ErrorKind, Result};

/// The numbers that follow from block size, sector size and disk size (4.1).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Geometry {
    pub(super) block_size: u64,
    pub(super) sector_size: u64,
    pub(super) virtual_size: u64,
    /// Payload blocks that one sector bitmap block describes.
    pub(super) chunk_ratio: u64,
    /// Payload blocks of the disk.
    pub(super) block_count: u64,
    /// Chunks of the disk.
    pub(super) chunk_count: u64,
}

impl Geometry {
    pub(super) fn new(block_size: u64, sector_size: u32, virtual_size: u64) -> Self {
        let sector_size = u64::from(sector_size);
        let chunk_ratio = SECTORS_PER_BITMAP * sector_size / block_size;
        let block_count = virtual_size.div_ceil(block_size);
        Self {
            block_size,
            sector_size,
            virtual_size,
            chunk_ratio,
            block_count,
            chunk_count: block_count.div_ceil(chunk_ratio),
        }
    }

    /// Index in the BAT of a payload block.
    pub(super) fn payload_index(&self, block: u64) -> u64 {
        block + block / self.chunk_ratio
    }

    /// Index in the BAT of a chunk's sector bitmap block.
    pub(super) fn bitmap_index(&self, chunk: u64) -> u64 {
        (chunk + 1) * self.chunk_ratio + chunk
    }

    /// What a BAT index stands for.
    pub(super) fn slot(&self, index: u64) -> Slot {
        let (chunk, within) = (
            index / (self.chunk_ratio + 1),
            index % (self.chunk_ratio + 1),
        );
        if within == self.chunk_ratio {
            Slot::Bitmap(chunk)
        } else {
            Slot::Payload(chunk * self.chunk_ratio + within)
        }
    }

    /// Entries that a file of this kind must have.
    pub(super) fn entries_used(&self, has_parent: bool) -> u64 {
        if has_parent {
            self.entries_allocated()
        } else {
            self.block_count + (self.block_count.saturating_sub(1)) / self.chunk_ratio
        }
    }

    /// Entries that a new file gets: whole chunks.
    pub(super) fn entries_allocated(&self) -> u64 {
        self.chunk_count * (self.chunk_ratio + 1)
    }

    /// Sectors of one block.
    pub(super) fn sectors_per_block(&self) -> u64 {
        self.block_size / self.sector_size
    }

    /// The chunk of a block and the number of the block's first bit in the chunk's bitmap.
    pub(super) fn bitmap_place(&self, block: u64) -> (u64, u64) {
        (
            block / self.chunk_ratio,
            block % self.chunk_ratio * self.sectors_per_block(),
        )
    }
}

/// What a place in the BAT is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Slot {
    Payload(u64),
    Bitmap(u64),
}

/// What a payload entry says. Offsets are in bytes of the file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Block {
    /// State 0: the parent decides; zeros without one.
    NotPresent,
    /// States 1, 2 and 3: zeros, whatever the parent has.
    Zero,
    /// State 6: all of it is here.
    Present(u64),
    /// State 7: the sector bitmap decides.
    Partial(u64),
}

/// Raw states.
pub(super) const NOT_PRESENT: u64 = 0;
pub(super) const UNDEFINED: u64 = 1;
pub(super) const ZERO: u64 = 2;
pub(super) const UNMAPPED: u64 = 3;
pub(super) const UNMAPPED_DRAFT: u64 = 5;
pub(super) const PRESENT: u64 = 6;
pub(super) const PARTIAL: u64 = 7;

pub(super) fn state(entry: u64) -> u64 {
    entry & BAT_STATE_MASK
}

pub(super) fn offset(entry: u64) -> u64 {
    entry & BAT_OFFSET_MASK
}

pub(super) fn has_reserved_bits(entry: u64) -> bool {
    entry & BAT_RESERVED_MASK != 0
}

/// An entry with an offset, which is a multiple of 1 MiB.
pub(super) fn entry(state: u64, offset: u64) -> u64 {
    debug_assert_eq!(offset & !BAT_OFFSET_MASK, 0);
    state | offset
}

/// Space that an entry keeps besides its meaning: states 1 and 3 may hold on to their old block (a soft anchor).
pub(super) fn soft_anchor(entry: u64) -> Option<u64> {
    (matches!(state(entry), UNDEFINED | UNMAPPED) && offset(entry) >= HEADER_AREA)
        .then(|| offset(entry))
}

/// Reads a payload entry; `file_length` bounds where a block may start (checklist 9.9).
pub(super) fn payload(block: u64, entry: u64, has_parent: bool, file_length: u64) -> Result<Block> {
    let place = offset(entry);
    let here = || {
        if place < HEADER_AREA || place >= file_length || has_reserved_bits(entry) {
            Err(damaged(
                block,
                entry,
                "points outside the file or has reserved bits set",
            ))
        } else {
            Ok(place)
        }
    };
    match state(entry) {
        NOT_PRESENT => Ok(Block::NotPresent),
        UNDEFINED | ZERO | UNMAPPED | UNMAPPED_DRAFT => Ok(Block::Zero),
        PRESENT => Ok(Block::Present(here()?)),
        PARTIAL if has_parent => Ok(Block::Partial(here()?)),
        PARTIAL => Err(damaged(
            block,
            entry,
            "is partially present in a disk without a parent",
        )),
        _ => Err(damaged(block, entry, "has a reserved state")),
    }
}

/// Where a chunk's bitmap block is.
pub(super) fn bitmap(chunk: u64, entry: u64, file_length: u64) -> Result<Option<u64>> {
    let place = offset(entry);
    match state(entry) {
        NOT_PRESENT => Ok(None),
        PRESENT
            if place >= HEADER_AREA
                && place
                    .checked_add(super::layout::BITMAP_BLOCK)
                    .is_some_and(|e| e <= file_length)
                && !has_reserved_bits(entry) =>
        {
            Ok(Some(place))
        }
        _ => Err(Error::new(
            ErrorKind::BlockAllocationTableCorrupt,
            format!("the sector bitmap entry of chunk {chunk} is invalid ({entry:#x})"),
        )),
    }
}

/// The error for a block that shares space with a structure.
pub(super) fn over_structures(block: u64, entry: u64) -> Error {
    damaged(block, entry, "leads into the log or a region of the file")
}

fn damaged(block: u64, entry: u64, why: &str) -> Error {
    Error::new(
        ErrorKind::BlockAllocationTableCorrupt,
        format!("the entry of block {block} ({entry:#x}) {why}"),
    )
    .with_hint("run 'vhdkit check' for the whole picture")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::num::{GIB, MIB, TIB};

    #[test]
    fn the_chunk_ratio_is_that_of_the_table() {
        for (sector, block, ratio) in [
            (512, 1, 4096),
            (512, 2, 2048),
            (512, 32, 128),
            (512, 256, 16),
            (4096, 1, 32768),
            (4096, 256, 128),
        ] {
            assert_eq!(Geometry::new(block * MIB, sector, TIB).chunk_ratio, ratio);
        }
    }

    #[test]
    fn bitmap_entries_lie_behind_the_payload_entries_of_their_chunk() {
        let geometry = Geometry::new(MIB, 512, 5 * TIB);
        assert_eq!(
            [0, 1, 2].map(|chunk| geometry.bitmap_index(chunk)),
            [4096, 8193, 12290]
        );
        assert_eq!(geometry.payload_index(4095), 4095);
        assert_eq!(geometry.payload_index(4096), 4097);
        for index in 0..20_000 {
            match geometry.slot(index) {
                Slot::Payload(block) => assert_eq!(geometry.payload_index(block), index),
                Slot::Bitmap(chunk) => assert_eq!(geometry.bitmap_index(chunk), index),
            }
        }
    }

    #[test]
    fn the_last_bitmap_entry_is_used_only_with_a_parent() {
        let geometry = Geometry::new(32 * MIB, 512, 10 * GIB);
        assert_eq!((geometry.block_count, geometry.chunk_count), (320, 3));
        assert_eq!(geometry.entries_used(false), 322);
        assert_eq!(geometry.entries_used(true), 3 * 129);
        let one = Geometry::new(32 * MIB, 512, 4 * GIB);
        assert_eq!(one.entries_used(false), 128);
    }

    #[test]
    fn t12_an_entry_that_is_not_present_never_points_anywhere() {
        for offset in [0, 5 * MIB] {
            for (raw, expected) in [
                (NOT_PRESENT, Block::NotPresent),
                (UNDEFINED, Block::Zero),
                (ZERO, Block::Zero),
                (UNMAPPED, Block::Zero),
                (UNMAPPED_DRAFT, Block::Zero),
            ] {
                assert_eq!(
                    payload(0, entry(raw, offset), true, 9 * MIB).unwrap(),
                    expected
                );
            }
        }
        assert!(payload(0, entry(PRESENT, 0), false, 9 * MIB).is_err());
        assert!(payload(0, entry(PRESENT, 9 * MIB), false, 9 * MIB).is_err());
        assert!(payload(0, entry(PARTIAL, MIB), false, 9 * MIB).is_err());
        assert!(payload(0, entry(4, MIB), true, 9 * MIB).is_err());
        assert!(payload(0, entry(PRESENT, MIB) | 8, false, 9 * MIB).is_err());
    }
}
