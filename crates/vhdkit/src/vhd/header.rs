//! The dynamic header: where the BAT is and how large blocks are.

use zerocopy::{FromZeros, IntoBytes};

use super::footer::checksum;
use super::layout::{FOOTER_SIZE, Footer, HEADER_COOKIE, HEADER_SIZE, Header, SECTOR, VERSION};
use crate::error::{Error, ErrorKind, Result};
use crate::num::round_up;
use crate::storage::Storage;

/// Most blocks of a disk: enough for 2040 GiB in blocks of 64 KiB. It bounds the memory of an open disk to 128 MiB
/// (4 MiB for 2040 GiB in the usual blocks of 2 MiB).
pub(super) const MAX_BLOCKS: u64 = 1 << 25;

impl Header {
    pub(super) fn computed_checksum(&self) -> u32 {
        checksum(self.as_bytes(), self.checksum.to_bytes())
    }

    /// Makes the checksum right.
    pub(super) fn sign(&mut self) {
        self.checksum = self.computed_checksum().into();
    }
}

/// The sizes that turn a virtual offset into a place in the file. All in bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct BlockShape {
    /// Data of a block.
    pub(super) block_size: u64,
    /// Sector bitmap in front of the data.
    pub(super) bitmap_size: u64,
}

impl BlockShape {
    pub(super) fn new(block_size: u64) -> Self {
        Self {
            block_size,
            bitmap_size: round_up(block_size / (SECTOR * 8), SECTOR).max(SECTOR),
        }
    }

    /// Bitmap and data.
    pub(super) fn total(self) -> u64 {
        self.bitmap_size + self.block_size
    }

    /// Sectors of data in a block.
    pub(super) fn sectors(self) -> u64 {
        self.block_size / SECTOR
    }

    /// Where a block of this shape starts (with its bitmap) that is put at or behind `end`: so that its data falls on a
    /// multiple of 4096 (of its size if that is less), for hosts and file systems with larger sectors.
    pub(super) fn place_behind(self, end: u64) -> u64 {
        round_up(end + self.bitmap_size, self.block_size.min(4096)) - self.bitmap_size
    }
}

/// A dynamic header that was checked against its file.
#[derive(Clone)]
pub(super) struct SparseHeader {
    pub(super) raw: Box<Header>,
    /// Where the header is.
    pub(super) offset: u64,
    pub(super) table_offset: u64,
    pub(super) max_entries: u64,
    /// Blocks that the disk has.
    pub(super) blocks: u64,
    pub(super) shape: BlockShape,
}

impl SparseHeader {
    /// End of the BAT, its padding included.
    pub(super) fn table_end(&self) -> u64 {
        self.table_offset + round_up(self.max_entries * 4, SECTOR)
    }

    /// Reads and checks the header that `footer` points to. Nothing of it lies at or past `limit`.
    pub(super) fn read(storage: &dyn Storage, footer: &Footer, limit: u64) -> Result<Self> {
        let offset = footer.data_offset.get();
        let raw = read_raw(storage, offset, limit)?;
        if raw.cookie != HEADER_COOKIE {
            return Err(corrupt(format!(
                "no dynamic header at {offset}: its cookie is missing"
            )));
        }
        let computed = raw.computed_checksum();
        if raw.checksum.get() != computed {
            return Err(Error::new(
                ErrorKind::SparseHeaderChecksumMismatch,
                format!(
                    "the checksum of the dynamic header is {:#010x}, its bytes give {computed:#010x}",
                    raw.checksum
                ),
            )
            .with_hint("the format keeps no second copy of this header; restore the file from a backup"));
        }
        let version = raw.version.get();
        if version >> 16 != VERSION >> 16 {
            return Err(Error::new(
                ErrorKind::SparseHeaderUnsupportedVersion,
                format!(
                    "version {}.{} of the dynamic header is not supported",
                    version >> 16,
                    version & 0xFFFF
                ),
            ));
        }
        let block_size = u64::from(raw.block_size.get());
        if block_size < SECTOR || !block_size.is_power_of_two() {
            return Err(Error::new(
                ErrorKind::InvalidBlockSize,
                format!("the block size of {block_size} bytes is not a power of two from 512 up"),
            ));
        }
        let blocks = footer.current_size.get().div_ceil(block_size);
        let max_entries = u64::from(raw.max_table_entries.get());
        let table_offset = raw.table_offset.get();
        let table_end = table_offset.checked_add(max_entries * 4);
        if max_entries < blocks {
            return Err(corrupt(format!(
                "the disk of {} bytes has {blocks} blocks, its block allocation table only {max_entries} entries",
                footer.current_size
            )));
        }
        if !table_offset.is_multiple_of(SECTOR) {
            return Err(corrupt(format!(
                "the block allocation table at {table_offset} is not at a multiple of 512"
            )));
        }
        if table_end.is_none_or(|end| end > limit) {
            return Err(corrupt(format!(
                "the block allocation table of {max_entries} entries at {table_offset} reaches past the end of the file"
            )));
        }
        let table_end = table_end.unwrap_or(limit);
        if table_offset < FOOTER_SIZE || (table_offset < offset + HEADER_SIZE && table_end > offset)
        {
            return Err(corrupt(format!(
                "the block allocation table at {table_offset} lies over the footer's copy or the dynamic header"
            )));
        }
        if blocks > MAX_BLOCKS {
            return Err(Error::new(
                ErrorKind::InvalidSize,
                format!(
                    "{} bytes in blocks of {block_size} are {blocks} blocks; at most {MAX_BLOCKS} are supported",
                    footer.current_size
                ),
            ));
        }
        Ok(Self {
            raw,
            offset,
            table_offset,
            max_entries,
            blocks,
            shape: BlockShape::new(block_size),
        })
    }
}

/// The bytes at `offset`, not checked but for their place.
fn read_raw(storage: &dyn Storage, offset: u64, limit: u64) -> Result<Box<Header>> {
    if offset < FOOTER_SIZE || !offset.is_multiple_of(SECTOR) {
        return Err(corrupt(format!(
            "the footer says that the dynamic header is at {offset}, where none can be"
        )));
    }
    if offset
        .checked_add(HEADER_SIZE)
        .is_none_or(|end| end > limit)
    {
        return Err(corrupt(format!(
            "the dynamic header at {offset} reaches past the end of the data at {limit}"
        )));
    }
    let mut raw = Box::new(Header::new_zeroed());
    storage.read_at(offset, raw.as_mut_bytes())?;
    Ok(raw)
}

fn corrupt(reason: String) -> Error {
    Error::new(ErrorKind::SparseHeaderCorrupt, reason)
}
