//! Zeroing and discarding.

use super::{Piece, Sparse, run_of};
use crate::error::Result;
use crate::image::{Backing, ZeroMode};
use crate::num::{round_down, round_up, to_usize};
use crate::vhd::bat::Entry;
use crate::vhd::journal::Journal;
use crate::vhd::layout::SECTOR;

impl Sparse {
    pub(in crate::vhd) fn zero(
        &self,
        journal: &Journal,
        offset: u64,
        length: u64,
        mode: ZeroMode,
        backing: &dyn Backing,
    ) -> Result<()> {
        journal.check()?;
        let size = self.shape_size();
        let end = offset + length;
        let mut next = offset;
        while next < end {
            let block = next / size;
            // Nothing is there and nothing has to be: skipped without looking at each block.
            if mode == ZeroMode::MayUnmap {
                let run = self.tables.bat.unallocated_run(block, end.div_ceil(size));
                let stop = ((block + run) * size).min(end);
                if run > 0 && (!self.differencing || backing.is_zero(next, stop - next)?) {
                    next = stop;
                    continue;
                }
            }
            let stop = ((block + 1) * size).min(end);
            journal.begin()?;
            self.zero_in_block(journal, next, stop - next, mode, backing)?;
            next = stop;
        }
        Ok(())
    }

    fn zero_in_block(
        &self,
        journal: &Journal,
        offset: u64,
        length: u64,
        mode: ZeroMode,
        backing: &dyn Backing,
    ) -> Result<()> {
        let Some(piece) = self.pieces(offset, length).next() else {
            return Ok(());
        };
        if !self.differencing {
            return self.zero_whole(journal, offset, piece, mode, backing);
        }
        // Of a differencing disk, sectors that are zeroed in part are written like data.
        let end = offset + length;
        let first = round_up(offset, SECTOR).min(end);
        let last = round_down(end, SECTOR).max(first);
        for (start, stop) in [(offset, first), (last, end)] {
            if let Some(piece) = self.pieces(start, stop - start).next() {
                let zeros = &[0; 512][..to_usize(piece.length)];
                let sector = round_down(start, SECTOR);
                if mode == ZeroMode::KeepAllocated
                    || self.is_here(piece)?
                    || !backing.is_zero(sector, SECTOR)?
                {
                    self.write_piece(journal, start, piece, zeros, backing)?;
                }
            }
        }
        match self.pieces(first, last - first).next() {
            Some(piece) => self.zero_whole(journal, first, piece, mode, backing),
            None => Ok(()),
        }
    }

    /// True if the sector of a piece within one sector is in this file.
    fn is_here(&self, piece: Piece) -> Result<bool> {
        Ok(match self.tables.bat.get(piece.block) {
            Entry::At(at) => self
                .bitmap(piece.block, at)?
                .is_none_or(|bitmap| bitmap.contains(piece.within / SECTOR)),
            _ => false,
        })
    }

    /// Zeros a piece: whole sectors if the disk is differencing.
    fn zero_whole(
        &self,
        journal: &Journal,
        offset: u64,
        piece: Piece,
        mode: ZeroMode,
        backing: &dyn Backing,
    ) -> Result<()> {
        if self.tables.bat.get(piece.block) == Entry::Unallocated {
            if mode == ZeroMode::MayUnmap
                && (!self.differencing || backing.is_zero(offset, piece.length)?)
            {
                return Ok(());
            }
            let _exclusive = self.locks.write(piece.block);
            journal.begin()?;
            if self.tables.bat.get(piece.block) == Entry::Unallocated {
                // A new block is zero.
                return self.allocate(journal, piece, mode, |_| Ok(()));
            }
        }
        let Entry::At(at) = self.tables.bat.get(piece.block) else {
            return Err(self.invalid(piece.block));
        };
        let data_at = self.data(at);
        if !self.differencing || self.tables.bitmaps.is_full(piece.block) {
            return self.clear(data_at + piece.within, piece.length, mode);
        }
        let shared = self.locks.read(piece.block);
        let Some(bitmap) = self.bitmap(piece.block, at)? else {
            return self.clear(data_at + piece.within, piece.length, mode);
        };
        let mut many = false;
        let mut done = 0;
        while done < piece.length {
            let from = piece.within + done;
            let (here, run) = run_of(&bitmap, from, piece.length - done);
            if here {
                self.clear(data_at + from, run, mode)?;
            } else if mode == ZeroMode::KeepAllocated || !backing.is_zero(offset + done, run)? {
                self.clear(data_at + from, run, mode)?;
                let sectors = from / SECTOR..(from + run) / SECTOR;
                many |= self.mark(journal, piece.block, &bitmap, sectors);
            }
            done += run;
        }
        drop(shared);
        if many { journal.flush() } else { Ok(()) }
    }

    fn clear(&self, at: u64, length: u64, mode: ZeroMode) -> Result<()> {
        match mode {
            ZeroMode::MayUnmap => self.storage.punch_hole(at, length),
            ZeroMode::KeepAllocated => self.storage.zero_range(at, length),
        }
    }

    /// Gives back the space of whole sectors that are here. What the parent shows stays as it is.
    pub(in crate::vhd) fn discard(
        &self,
        journal: &Journal,
        offset: u64,
        length: u64,
    ) -> Result<()> {
        journal.check()?;
        let size = self.shape_size();
        let end = round_down(offset + length, SECTOR);
        let mut next = round_up(offset, SECTOR);
        while next < end {
            let block = next / size;
            let run = self.tables.bat.unallocated_run(block, end.div_ceil(size));
            if run > 0 {
                next = (block + run) * size;
                continue;
            }
            let stop = ((block + 1) * size).min(end);
            let Entry::At(at) = self.tables.bat.get(block) else {
                return Err(self.invalid(block));
            };
            journal.begin()?;
            let data_at = self.data(at);
            let bitmap = if self.differencing {
                self.bitmap(block, at)?
            } else {
                None
            };
            while next < stop {
                let within = next % size;
                let (here, run) = match &bitmap {
                    None => (true, stop - next),
                    Some(bitmap) => run_of(bitmap, within, stop - next),
                };
                if here {
                    self.storage.punch_hole(data_at + within, run)?;
                }
                next += run;
            }
        }
        Ok(())
    }
}
