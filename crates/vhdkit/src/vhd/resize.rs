//! Making a disk larger (specification notes, section 9, "expand").
//!
//! As on Windows, a VHD never becomes smaller, and one with a parent keeps its size: VHDX can do both.

use zerocopy::IntoBytes;

use super::create::{MAX_SIZE, sign_as_creator};
use super::geometry;
use super::header::{MAX_BLOCKS, SparseHeader};
use super::image::VhdImage;
use super::journal::Growth;
use super::layout::{FOOTER_SIZE, Footer, SECTOR};
use crate::error::{Error, ErrorKind, Result};
use crate::image::{DiskType, Pace};
use crate::num::{round_up, to_usize};

impl VhdImage {
    /// See [`crate::image::Image::resize`].
    pub(super) fn grow_to(&mut self, size: u64, pace: Pace<'_>) -> Result<()> {
        self.check_growth(size)?;
        if size == self.virtual_size {
            return Ok(());
        }
        self.journal.begin()?;
        let footer = self.footer_of_size(size);
        if self.sparse.is_some() {
            pace(0, 1)?;
            self.grow_sparse(size, footer)?;
        } else {
            self.grow_fixed(size, footer, pace)?;
        }
        self.virtual_size = size;
        self.info.virtual_size = size;
        self.info.geometry = Some((
            self.footer.cylinders.get(),
            self.footer.heads,
            self.footer.sectors_per_track,
        ));
        self.info.creator = super::footer::creator(&self.footer);
        Ok(())
    }

    fn check_growth(&self, size: u64) -> Result<()> {
        self.journal.check()?;
        if size == 0 || !size.is_multiple_of(SECTOR) {
            return Err(Error::new(
                ErrorKind::InvalidSize,
                format!("a size of {size} bytes is not a positive multiple of 512"),
            ));
        }
        if size == self.virtual_size {
            return Ok(());
        }
        if self.info.disk_type == DiskType::Differencing {
            return Err(Error::new(
                ErrorKind::InvalidType,
                "a differencing VHD has the size of its parent and cannot be resized",
            )
            .with_hint("merge it into its parent first, or convert the disk to VHDX"));
        }
        if size < self.virtual_size {
            return Err(Error::new(
                ErrorKind::InvalidType,
                format!(
                    "a VHD cannot be made smaller, from {} bytes to {size}",
                    self.virtual_size
                ),
            )
            .with_hint("convert it to VHDX, which can be made smaller"));
        }
        if size > MAX_SIZE {
            return Err(Error::new(
                ErrorKind::InvalidSize,
                format!("a VHD disk has at most 2040 GiB ({MAX_SIZE} bytes), not {size}"),
            )
            .with_hint("convert it to VHDX, which reaches to 64 TiB"));
        }
        self.refuse_saved_state("be resized")
    }

    /// The footer of the larger disk. The original size stays what it was.
    fn footer_of_size(&self, size: u64) -> Footer {
        let mut footer = (*self.footer).clone();
        let shape = geometry::of_size(size);
        // Of these creators' disks other programs show only what the geometry describes.
        let is_bounded = [*b"vpc ", *b"qemu"].contains(&footer.creator_application);
        if is_bounded && geometry::size_of(shape) != size {
            sign_as_creator(&mut footer);
        }
        footer.current_size = size.into();
        footer.cylinders = shape.0.into();
        (footer.heads, footer.sectors_per_track) = (shape.1, shape.2);
        footer.sign();
        footer
    }

    fn grow_fixed(&mut self, size: u64, footer: Footer, pace: Pace<'_>) -> Result<()> {
        let limit = self.journal.limit();
        if !limit.is_multiple_of(SECTOR) {
            return Err(Error::new(
                ErrorKind::InvalidFileSize,
                format!("the footer at {limit} is not at a multiple of 512"),
            )
            .with_hint("convert the disk to a new file, which can be resized"));
        }
        let stale = self.virtual_size..size.min(limit + FOOTER_SIZE);
        let marked = footer.clone().with_grow_mark(Some(stale));
        self.journal
            .grow_fixed(self.virtual_size, &marked, &footer, pace)?;
        *self.footer = footer;
        Ok(())
    }

    fn grow_sparse(&mut self, size: u64, footer: Footer) -> Result<()> {
        // What was not yet told to the file must not be lost with the old table.
        self.journal.tell()?;
        let Some(sparse) = &self.sparse else {
            return Ok(());
        };
        let old = &sparse.header;
        let shape = old.shape;
        let blocks = size.div_ceil(shape.block_size);
        if blocks > MAX_BLOCKS {
            return Err(Error::new(
                ErrorKind::InvalidSize,
                format!(
                    "{size} bytes in blocks of {} are {blocks} blocks; at most {MAX_BLOCKS} are supported",
                    shape.block_size
                ),
            )
            .with_hint("convert the disk to one with larger blocks"));
        }
        let entries = blocks.max(old.max_entries);
        let length = round_up(entries * 4, SECTOR);
        let in_place = self
            .next_behind_table()
            .is_none_or(|next| old.table_offset + length <= next);
        let table_offset = if in_place {
            old.table_offset
        } else {
            self.free_hole(&[], length)
                .unwrap_or_else(|| round_up(self.journal.end(), SECTOR))
        };
        let mut raw = old.raw.clone();
        raw.table_offset = table_offset.into();
        raw.max_table_entries = u32::try_from(entries).unwrap_or(u32::MAX).into();
        raw.sign();
        let header = SparseHeader {
            raw,
            table_offset,
            max_entries: entries,
            blocks,
            ..old.clone()
        };
        // In place only what is new, with the sector in which it begins.
        let first = if in_place {
            old.blocks / super::bat::PER_SECTOR
        } else {
            0
        };
        let bytes = sparse.tables.bat.bytes_from(first, blocks);
        let end = round_up(table_offset + entries * 4, SECTOR);
        let start = table_offset + first * SECTOR;
        let sector = &header.raw.as_bytes()[..to_usize(SECTOR)];
        let is_same = header.raw == old.raw;
        self.journal.grow_sparse(&Growth {
            zero: self.tail_of_last_block()?,
            end,
            table: (start, bytes),
            header: (!is_same).then_some((header.offset, sector)),
            footer: &footer,
        })?;
        *self.footer = footer;
        self.adopt_header(header)
    }

    /// Where the table ends growing in its place; `None` if nothing but the footer lies behind it.
    fn next_behind_table(&self) -> Option<u64> {
        let sparse = self.sparse.as_ref()?;
        let table = sparse.header.table_offset;
        let blocks = sparse.tables.bat.placed().map(|(_, at)| at);
        let structures = sparse.structures.iter().map(|s| s.range.start);
        blocks
            .chain(structures)
            .filter(|&start| start > table)
            .min()
    }

    /// The bytes behind the old end in its block, if the file has any: they are about to be seen.
    fn tail_of_last_block(&self) -> Result<Option<std::ops::Range<u64>>> {
        let Some(sparse) = &self.sparse else {
            return Ok(None);
        };
        let shape = sparse.tables.bat.shape;
        let (block, within) = (
            self.virtual_size / shape.block_size,
            self.virtual_size % shape.block_size,
        );
        if within == 0 {
            return Ok(None);
        }
        let super::bat::Entry::At(at) = sparse.tables.bat.get(block) else {
            return Ok(None);
        };
        let data = at + shape.bitmap_size;
        let tail = data + within..data + shape.block_size;
        Ok(self.storage.next_data(tail.clone())?.map(|_| tail))
    }
}
