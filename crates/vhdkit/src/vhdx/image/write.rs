//! Writing, zeroing and discarding: the write rules of the format sheet, 4.3.

use std::ops::Range;
use std::sync::atomic::Ordering;

use super::VhdxImage;
use crate::error::{Error, ErrorKind, Result};
use crate::image::{Backing, ExtentKind, Pace, SourceRun, ZeroMode};
use crate::num::{round_down, round_up, to_usize};
use crate::vhdx::bat::{self, Block};
use crate::vhdx::journal::{DirtyPage, Session};
use crate::vhdx::layout::MAX_FILE_SIZE;
use crate::vhdx::pages::WORDS;
use crate::vhdx::space::UsedMap;

impl VhdxImage {
    pub(super) fn check_writable(&self) -> Result<()> {
        if !self.writable {
            return Err(Error::new(
                ErrorKind::WriteProtected,
                "the disk was opened read-only",
            ));
        }
        self.journal.check()
    }

    /// Called right before the first change: a request that changes nothing leaves the file and its identity alone.
    pub(super) fn begin(&self) -> Result<()> {
        self.journal.begin(
            &*self.storage,
            || self.in_use(&mut |_| Ok(())),
            || self.now_grows(),
        )
    }

    /// As [`Self::begin`], before a change that the guest does not see, and that goes through the log.
    pub(super) fn begin_structure(&self) -> Result<()> {
        self.plan_session(Session::Structure, &mut |_| Ok(()))
    }

    /// As [`Self::begin`], before changes that go through the log. `told` hears of further bytes of the BAT that were
    /// read, and may stop it before anything has changed.
    pub(super) fn plan_session(
        &self,
        session: Session,
        told: &mut dyn FnMut(u64) -> Result<()>,
    ) -> Result<()> {
        self.journal.plan(
            session,
            &*self.storage,
            || self.in_use(told),
            || self.now_grows(),
        )
    }

    /// As [`Self::begin_structure`]; see [`crate::image::Image::prepare`].
    pub(super) fn begin_telling(&self, pace: Pace<'_>) -> Result<()> {
        self.check_writable()?;
        let (mut read, all) = (0, self.table_length()?);
        self.plan_session(Session::Structure, &mut |bytes| {
            read += bytes;
            pace(read, all.max(read))
        })
    }

    fn in_use(&self, told: &mut dyn FnMut(u64) -> Result<()>) -> Result<(UsedMap, u64)> {
        let survey = self.survey_telling(told)?;
        Ok((survey.used, survey.unplaced))
    }

    /// Every block lies within the file from now on.
    fn now_grows(&self) {
        self.file_end.store(MAX_FILE_SIZE, Ordering::Relaxed);
    }

    /// The space that an entry without content holds on to.
    pub(super) fn anchor(&self, block: u64, entry: u64) -> Result<Option<u64>> {
        let Some(at) = bat::soft_anchor(entry) else {
            return Ok(None);
        };
        if at >= self.file_end.load(Ordering::Relaxed) {
            return Err(Error::new(
                ErrorKind::BlockAllocationTableCorrupt,
                format!("block {block} holds on to space at {at}, outside the file"),
            )
            .with_hint(
                "the disk can be read, but not written; 'vhdkit check' lists what is wrong",
            ));
        }
        Ok(Some(at))
    }

    pub(super) fn set_entry(&self, index: u64, entry: u64) -> Result<()> {
        self.bat.set(&*self.storage, index, entry)?;
        self.changes.fetch_add(1, Ordering::Relaxed);
        let page = index / WORDS;
        self.journal
            .note(DirtyPage::Bat { page }, || self.bat.mark(page));
        Ok(())
    }

    /// Gives a block a new entry and frees the space of its old one.
    pub(super) fn replace_entry(&self, block: u64, entry: u64) -> Result<()> {
        let index = self.geometry.payload_index(block);
        let old = self.bat.get(&*self.storage, index)?;
        self.set_entry(index, entry)?;
        let held = match self.decode(block, old)? {
            Block::Present(at) | Block::Partial(at) => Some(at),
            _ => bat::soft_anchor(old),
        };
        if let Some(at) = held
            && at != bat::offset(entry)
        {
            self.journal.free((at, self.geometry.block_size));
        }
        Ok(())
    }

    /// Writes within one block whose place or bitmap has to change. The block is locked exclusively.
    pub(super) fn write_changing(
        &self,
        block: u64,
        within: u64,
        data: &[u8],
        backing: &dyn Backing,
    ) -> Result<()> {
        match self.block(block)? {
            Block::Present(at) => self.storage.write_at(at + within, data),
            Block::Zero => self.write_new(block, within, data),
            Block::NotPresent if !self.metadata.has_parent => self.write_new(block, within, data),
            Block::NotPresent if data.len() as u64 == self.block_length(block) => {
                self.write_new(block, within, data)
            }
            Block::NotPresent => self.write_new_partial(block, within, data, backing),
            Block::Partial(at) => self.write_partial(block, at, within, data, backing),
        }
    }

    /// Into a new block whose other bytes are zeros.
    pub(super) fn write_new(&self, block: u64, within: u64, data: &[u8]) -> Result<()> {
        let size = self.geometry.block_size;
        let at = self.journal.take_space(&*self.storage, size)?;
        let written = self
            .bat
            .prepare(&*self.storage, self.geometry.payload_index(block))
            .and_then(|()| self.storage.write_at(at + within, data));
        if let Err(e) = written {
            self.journal.abandon_space(&*self.storage, (at, size));
            return Err(e);
        }
        self.replace_entry(block, bat::entry(bat::PRESENT, at))
    }

    /// Where the bytes of a run go: its block is all here, or becomes so, with zeros, if nothing of a parent belongs
    /// there.
    pub(super) fn place(&self, run: &SourceRun) -> Result<Option<u64>> {
        let (block, within, _) = self.portion(run.offset, run.length);
        let _guard = self.locks.write(block);
        match self.block(block)? {
            Block::Present(at) => return Ok(Some(at + within)),
            _ if self.metadata.has_parent && run.length < self.block_length(block) => {
                return Ok(None);
            }
            _ => self.write_new(block, 0, &[])?,
        }
        match self.block(block)? {
            Block::Present(at) => Ok(Some(at + within)),
            _ => Ok(None),
        }
    }

    /// Into a new block whose other sectors are the parent's.
    pub(super) fn write_new_partial(
        &self,
        block: u64,
        within: u64,
        data: &[u8],
        backing: &dyn Backing,
    ) -> Result<()> {
        let (chunk, first_bit) = self.geometry.bitmap_place(block);
        let table = self.ensure_bitmap(chunk)?;
        let size = self.geometry.block_size;
        let (start, sectors) = self.whole_sectors(block, within, data, &|_| Ok(false), backing)?;
        let at = self.journal.take_space(&*self.storage, size)?;
        if let Err(e) = self.storage.write_at(at + start, &sectors) {
            self.journal.abandon_space(&*self.storage, (at, size));
            return Err(e);
        }
        let set = self.bits(first_bit, start, sectors.len() as u64);
        let all = first_bit..first_bit + self.geometry.sectors_per_block();
        self.change_bits(chunk, table, all, set)?;
        self.replace_entry(block, bat::entry(bat::PARTIAL, at))
    }

    /// Into a block of which some sectors are here and others the parent's.
    pub(super) fn write_partial(
        &self,
        block: u64,
        at: u64,
        within: u64,
        data: &[u8],
        backing: &dyn Backing,
    ) -> Result<()> {
        let (chunk, _) = self.geometry.bitmap_place(block);
        let (table, first_bit) = self.bitmap_of(block)?;
        let sector = self.geometry.sector_size;
        let present = |at: u64| Ok(self.bit_run(table, first_bit + at / sector, 1)?.0);
        let (start, sectors) = self.whole_sectors(block, within, data, &present, backing)?;
        self.storage.write_at(at + start, &sectors)?;
        let set = self.bits(first_bit, start, sectors.len() as u64);
        self.change_bits(chunk, table, set.clone(), set)?;
        self.complete(block, at)
    }

    /// A partially present block of which every sector is here becomes fully present.
    pub(super) fn complete(&self, block: u64, at: u64) -> Result<()> {
        let (table, first_bit) = self.bitmap_of(block)?;
        let sectors = self.block_length(block) / self.geometry.sector_size;
        let last = self.bit_run(table, first_bit + sectors - 1, 1)?.0;
        if last && self.bit_run(table, first_bit, sectors)? == (true, sectors) {
            self.replace_entry(block, bat::entry(bat::PRESENT, at))?;
        }
        Ok(())
    }

    pub(super) fn bits(&self, first_bit: u64, start: u64, length: u64) -> Range<u64> {
        let sector = self.geometry.sector_size;
        first_bit + start / sector..first_bit + (start + length).div_ceil(sector)
    }

    /// The data widened to whole sectors where the first or last sector is not here yet: their other bytes come from
    /// the parent. Returns the offset within the block and the bytes.
    pub(super) fn whole_sectors<'a>(
        &self,
        block: u64,
        within: u64,
        data: &'a [u8],
        present: &dyn Fn(u64) -> Result<bool>,
        backing: &dyn Backing,
    ) -> Result<(u64, std::borrow::Cow<'a, [u8]>)> {
        let sector = self.geometry.sector_size;
        let end = within + data.len() as u64;
        let (mut start, mut stop) = (within, end);
        if !within.is_multiple_of(sector) && !present(within)? {
            start = round_down(within, sector);
        }
        if !end.is_multiple_of(sector) && !present(end)? {
            stop = round_up(end, sector);
        }
        if (start, stop) == (within, end) {
            return Ok((within, data.into()));
        }
        let base = block * self.geometry.block_size;
        let mut bytes = vec![0; to_usize(stop - start)];
        let (head, tail) = (to_usize(within - start), to_usize(end - start));
        if head > 0 {
            backing.read_at(base + start, &mut bytes[..head])?;
        }
        if stop > end {
            backing.read_at(base + end, &mut bytes[tail..])?;
        }
        bytes[head..tail].copy_from_slice(data);
        Ok((start, bytes.into()))
    }

    /// Zeros within one block, which is locked exclusively.
    pub(super) fn zero_portion(
        &self,
        block: u64,
        within: u64,
        length: u64,
        mode: ZeroMode,
        backing: &dyn Backing,
    ) -> Result<()> {
        let whole = length == self.block_length(block);
        let base = block * self.geometry.block_size;
        let here = self.block(block)?;
        if mode == ZeroMode::MayUnmap {
            // What changes nothing must not change the file's identity either.
            match here {
                Block::Zero => return Ok(()),
                Block::NotPresent if backing.is_zero(base + within, length)? => return Ok(()),
                _ => {}
            }
        }
        self.begin()?;
        match (mode, here) {
            (ZeroMode::KeepAllocated, Block::Present(at)) => {
                self.storage.zero_range(at + within, length)
            }
            (ZeroMode::KeepAllocated, _) if whole => {
                self.write_new(block, 0, &[])?;
                match self.block(block)? {
                    Block::Present(at) => self.storage.allocate(at, self.geometry.block_size),
                    _ => Ok(()),
                }
            }
            (ZeroMode::MayUnmap, Block::Present(at)) if self.metadata.leave_blocks_allocated => {
                self.storage.zero_range(at + within, length)
            }
            (ZeroMode::MayUnmap, _) if whole => self.replace_entry(block, bat::entry(bat::ZERO, 0)),
            (ZeroMode::MayUnmap, Block::Present(at)) => {
                self.storage.punch_hole(at + within, length)
            }
            _ => self.write_zeros(block, within, length, backing),
        }
    }

    /// How much from `offset` on reads as zeros by the BAT alone, so that nothing has to be done there.
    pub(super) fn zeros_at(&self, offset: u64, length: u64) -> Result<u64> {
        let extent = self.map_blocks(offset, length)?;
        Ok(if extent.kind == ExtentKind::Zero {
            extent.length
        } else {
            0
        })
    }

    /// Discards within one block, which is locked exclusively.
    pub(super) fn discard_portion(&self, block: u64, within: u64, length: u64) -> Result<()> {
        let whole = length == self.block_length(block);
        match self.block(block)? {
            Block::Present(_) | Block::Partial(_) if whole => {
                self.begin()?;
                self.replace_entry(block, bat::entry(bat::UNMAPPED, 0))
            }
            Block::Present(at) => {
                self.begin()?;
                self.storage.punch_hole(at + within, length)
            }
            _ => Ok(()),
        }
    }

    pub(super) fn write_zeros(
        &self,
        block: u64,
        within: u64,
        length: u64,
        backing: &dyn Backing,
    ) -> Result<()> {
        let zeros = vec![0; to_usize(length.min(256 * 1024))];
        let mut done = 0;
        while done < length {
            let n = (length - done).min(zeros.len() as u64);
            self.write_changing(block, within + done, &zeros[..to_usize(n)], backing)?;
            done += n;
        }
        Ok(())
    }

    pub(super) fn take_page(&self, page: DirtyPage) -> Option<(u64, Box<[u8]>)> {
        match page {
            DirtyPage::Bat { page } => self.bat.take_page(page),
            DirtyPage::Bitmap { chunk, page } => self.bitmap_slot(chunk).get()?.take_page(page),
        }
    }

    /// Writes to a partially present block if every touched sector is here already.
    pub(super) fn write_in_place(&self, block: u64, within: u64, data: &[u8]) -> Result<bool> {
        let Block::Partial(at) = self.block(block)? else {
            return Ok(false);
        };
        let (table, first_bit) = self.bitmap_of(block)?;
        let touched = self.bits(first_bit, within, data.len() as u64);
        let count = touched.end - touched.start;
        if self.bit_run(table, touched.start, count)? != (true, count) {
            return Ok(false);
        }
        self.storage.write_at(at + within, data)?;
        Ok(true)
    }
}
