//! Taking over bytes of another file, of which mostly whole blocks of a child: see [`Image::copy_from`].
//!
//! New blocks get their places in the order of the disk, and are shown once they are copied. Between the data of two
//! blocks of a VHD there is a bitmap. Where two full blocks lie one after the other in both files with nothing else
//! between them, the bitmap in the source is the one that is needed here: it goes with its neighbours as if it were
//! data, so that a file system that shares blocks is asked once for each run of neighbours.
//!
//! [`Image::copy_from`]: crate::image::Image::copy_from

use super::Sparse;
use crate::error::Result;
use crate::image::{SourceRun, Told};
use crate::num::to_usize;
use crate::storage::{CopyRun, Storage, copies_past_the_cache, copy_runs};
use crate::vhd::bat::Entry;
use crate::vhd::bitmap::SectorBitmap;
use crate::vhd::journal::Journal;
use crate::vhd::space::between;

/// A block that has a place and is not shown yet.
struct NewBlock {
    block: u64,
    at: u64,
    bitmap: SectorBitmap,
    /// The bitmap comes out of the source.
    is_copied: bool,
}

/// The last run, if it ended with its block.
struct Before {
    /// Where the block is.
    at: u64,
    /// Where the run ends in the source.
    source_end: u64,
}

impl Sparse {
    /// See [`Image::copy_from`](crate::image::Image::copy_from). A block that ends with the disk, which has `size`
    /// bytes, counts as whole.
    pub(in crate::vhd) fn copy_from(
        &self,
        journal: &Journal,
        size: u64,
        source: &dyn Storage,
        runs: Vec<SourceRun>,
        copied: Told<'_>,
    ) -> Result<Vec<SourceRun>> {
        let _alone = self.locks.write_all();
        journal.begin()?;
        let mut new = Vec::new();
        match self.copy_to_places(journal, size, source, runs, copied, &mut new) {
            Ok(rest) => {
                for NewBlock {
                    block, at, bitmap, ..
                } in new
                {
                    self.tables.bitmaps.insert(block, bitmap);
                    journal.publish(&self.tables, block, at);
                }
                Ok(rest)
            }
            Err(error) => {
                // The first is the first to be used again.
                for new in new.iter().rev() {
                    journal.give_back(new.at);
                }
                Err(error)
            }
        }
    }

    /// Everything but showing the new blocks.
    fn copy_to_places(
        &self,
        journal: &Journal,
        size: u64,
        source: &dyn Storage,
        runs: Vec<SourceRun>,
        copied: Told<'_>,
        new: &mut Vec<NewBlock>,
    ) -> Result<Vec<SourceRun>> {
        let shape = self.tables.bat.shape;
        let joins = !copies_past_the_cache(&*self.storage, source);
        let (mut copies, mut rest) = (Vec::new(), Vec::new());
        let mut before: Option<Before> = None;
        for run in runs {
            let (block, within) = (run.offset / shape.block_size, run.offset % shape.block_size);
            let Some(at) = self.place(journal, size, &run, new)? else {
                rest.push(run);
                before = None;
                continue;
            };
            let mut copy = CopyRun {
                from: run.storage_offset,
                to: self.data(at) + within,
                length: run.length,
            };
            if run.length == shape.block_size
                && let Some(before) = before.as_ref().filter(|_| joins)
                && let Some(length) = between(shape, &self.structures, before.at, at)
                && before.source_end + length == run.storage_offset
                && self.is_full_bitmap(source, run.storage_offset - shape.bitmap_size)?
            {
                copy.from -= length;
                copy.to -= length;
                copy.length += length;
                if let Some(new) = new.last_mut().filter(|new| new.block == block) {
                    new.is_copied = true;
                }
            }
            copies.push(copy);
            before = (within + run.length == shape.block_size).then_some(Before {
                at,
                source_end: run.storage_offset + run.length,
            });
        }
        for new in new.iter().filter(|new| !new.is_copied) {
            self.storage.write_at(new.at, &new.bitmap.take())?;
        }
        copy_runs(&*self.storage, source, copies, copied)?;
        Ok(rest)
    }

    /// The place of a run's block: of one that is all here, or room for one that will be. What of it does not come out
    /// of the source is zero, as a dynamic disk has it.
    fn place(
        &self,
        journal: &Journal,
        size: u64,
        run: &SourceRun,
        new: &mut Vec<NewBlock>,
    ) -> Result<Option<u64>> {
        let shape = self.tables.bat.shape;
        let block = run.offset / shape.block_size;
        match self.tables.bat.get(block) {
            Entry::At(at) => Ok(self.bitmap(block, at)?.is_none().then_some(at)),
            Entry::Invalid => Err(self.invalid(block)),
            Entry::Unallocated => {
                if let Some(new) = new.last().filter(|new| new.block == block) {
                    return Ok(Some(new.at));
                }
                let bitmap = SectorBitmap::empty(shape.bitmap_size);
                if !self.differencing {
                    bitmap.set(0..shape.bitmap_size * 8);
                } else if run.length == shape.block_size.min(size - block * shape.block_size) {
                    bitmap.set(0..run.length / super::SECTOR);
                } else {
                    return Ok(None);
                }
                let at = journal.reserve(&self.tables)?;
                new.push(NewBlock {
                    block,
                    at,
                    bitmap,
                    is_copied: false,
                });
                Ok(Some(at))
            }
        }
    }

    /// True if the bytes at `offset` of another file are the bitmap of a block of which all is here.
    fn is_full_bitmap(&self, source: &dyn Storage, offset: u64) -> Result<bool> {
        let shape = self.tables.bat.shape;
        let mut bytes = vec![0; to_usize(shape.bitmap_size)];
        source.read_at(offset, &mut bytes)?;
        Ok(SectorBitmap::from_bytes(&bytes).all(0..shape.sectors()))
    }
}
