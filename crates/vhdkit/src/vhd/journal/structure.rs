//! Changes of the file's structure: who calls these has the image to itself.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use zerocopy::IntoBytes;

use super::{Journal, PER_SECTOR, READY, SETTLED, Tables, lock};
use crate::error::{Error, ErrorKind, Result};
use crate::image::Pace;
use crate::num::round_up;
use crate::storage::{cut_in_steps, in_steps};
use crate::vhd::bat::write_unallocated_bulk;
use crate::vhd::layout::{FOOTER_SIZE, Footer, Header, SECTOR};

/// A header that takes the place of another.
pub(in crate::vhd) struct NewHeader<'a> {
    /// Signed.
    pub(in crate::vhd) header: &'a Header,
    /// Bytes in free space that it refers to and the old one does not: where they go, and what they are.
    pub(in crate::vhd) parts: &'a [(u64, Vec<u8>)],
    /// Where the old header is.
    pub(in crate::vhd) from: u64,
    /// Where the new one belongs: free space, or the old one's place.
    pub(in crate::vhd) home: u64,
    /// Free space for a header.
    pub(in crate::vhd) spare: u64,
    /// The footer as it is.
    pub(in crate::vhd) footer: &'a Footer,
}

/// A dynamic disk that becomes larger.
pub(in crate::vhd) struct Growth<'a> {
    /// What has to become zero: behind the old end, in the last block.
    pub(in crate::vhd) zero: Option<Range<u64>>,
    /// Where the table ends.
    pub(in crate::vhd) end: u64,
    /// Entries: where they go, and what they are. From there to the table's end none is allocated.
    pub(in crate::vhd) table: (u64, Vec<u8>),
    /// The first sector of the header and where it is, if it changes.
    pub(in crate::vhd) header: Option<(u64, &'a [u8])>,
    /// The footer with the new size.
    pub(in crate::vhd) footer: &'a Footer,
}

impl Journal {
    /// Where the footer at the end is, once [`Journal::begin`] has returned.
    pub(in crate::vhd) fn limit(&self) -> u64 {
        lock(&self.space).file_size.saturating_sub(FOOTER_SIZE)
    }

    /// End of what is in use or was: beyond it nothing was written yet.
    pub(in crate::vhd) fn end(&self) -> u64 {
        lock(&self.space).end
    }

    /// Another number whenever a place was taken or given back.
    pub(in crate::vhd) fn generation(&self) -> u64 {
        lock(&self.space).generation
    }

    /// Clears a block's entry; its place is free when the next flush has told the file.
    pub(in crate::vhd) fn release(&self, tables: &Tables, block: u64, at: u64) {
        let mut changes = lock(&self.changes);
        tables.bat.release(block);
        tables.bitmaps.forget(block);
        changes.bat_sectors.insert(block / PER_SECTOR);
        changes.released.push(at);
        lock(&self.space).generation += 1;
    }

    /// Returns when what was released is free on the media too.
    pub(in crate::vhd) fn settle(&self) -> Result<()> {
        self.begin()?;
        if lock(&self.changes).released.is_empty() {
            return Ok(());
        }
        self.flush()
    }

    /// Returns when the tables in the file are those in memory.
    pub(in crate::vhd) fn tell(&self) -> Result<()> {
        self.begin()?;
        let changes = lock(&self.changes);
        let is_told = changes.bat_sectors.is_empty() && changes.bitmaps.is_empty();
        drop(changes);
        if is_told { Ok(()) } else { self.flush() }
    }

    /// From now on free places below the end are used only by who asks for them: no write may get one.
    pub(in crate::vhd) fn keep_holes(&self) {
        lock(&self.space).returned.clear();
    }

    /// Zeroed room behind all that is in use.
    pub(in crate::vhd) fn room(&self, length: u64) -> Result<u64> {
        let mut space = lock(&self.space);
        let at = round_up(space.end, SECTOR);
        self.take(&mut space, at..at + round_up(length, SECTOR), 0)?;
        Ok(at)
    }

    /// Blocks were copied; from now on they are at their new places. Each is number, old place, new place. The next
    /// flush makes the copies durable, then the entries; only then are the old places free.
    pub(in crate::vhd) fn move_blocks(&self, tables: &Tables, moves: &[(u64, u64, u64)]) {
        let mut changes = lock(&self.changes);
        for &(block, from, to) in moves {
            tables.bat.publish(block, to);
            changes.bat_sectors.insert(block / PER_SECTOR);
            changes.released.push(from);
        }
    }

    /// Cuts the file off behind everything in use. `cut` hears of further bytes that are gone.
    pub(in crate::vhd) fn shorten(&self, cut: &mut dyn FnMut(u64)) -> Result<()> {
        match &self.tables {
            Some(tables) => self.cut_off(tables, cut),
            None => Ok(()),
        }
    }

    /// Puts the footer behind everything in use and cuts off the rest: if that is much, several times, so that there
    /// always is one at the end.
    pub(super) fn cut_off(&self, tables: &Tables, cut: &mut dyn FnMut(u64)) -> Result<()> {
        let mut space = lock(&self.space);
        // Places that were given back are not in the table.
        let end = round_up(tables.bat.end().max(space.found.structures_end), SECTOR);
        if end + FOOTER_SIZE >= space.file_size || !self.storage.grows_with_zeros() {
            return Ok(());
        }
        let footer_at = |at| match self.storage.write_at(at, &self.footer) {
            Ok(()) => self.barrier().map(|()| true),
            // In the place of a block that was trimmed it may need space; at the end others can do without that.
            Err(_) if at > end => Ok(false),
            Err(e) => Err(e),
        };
        let lengths = (space.file_size, end + FOOTER_SIZE);
        let before = |length| footer_at(length - FOOTER_SIZE);
        cut_in_steps(&*self.storage, lengths, before, cut).map_err(|e| self.fail(e))?;
        self.barrier()?;
        space.end = end;
        space.file_size = end + FOOTER_SIZE;
        space.old_footer = None;
        space.returned.clear();
        space.unallocated = tables.bat.unallocated();
        Ok(())
    }

    /// Other tables in memory, and where the structures end now.
    pub(in crate::vhd) fn replace_tables(&mut self, tables: Arc<Tables>, structures_end: u64) {
        let mut space = lock(&self.space);
        space.found.structures_end = structures_end;
        space.unallocated = tables.bat.unallocated();
        space.generation += 1;
        drop(space);
        self.tables = Some(tables);
    }

    /// Where the structures end now.
    pub(in crate::vhd) fn set_structures_end(&mut self, end: u64) {
        lock(&self.space).found.structures_end = end;
    }

    /// Another footer: at the end, then (but for fixed disks) the copy.
    pub(in crate::vhd) fn change_footer(&mut self, footer: &Footer) -> Result<()> {
        self.begin()?;
        let failed = |journal: &Self, result: Result<()>| result.map_err(|e| journal.fail(e));
        if self.tables.is_some() {
            self.rely_on_other_footer()?;
        }
        let at = self.limit();
        failed(self, self.storage.write_at(at, footer.as_bytes()))?;
        self.barrier()?;
        if self.tables.is_some() {
            failed(self, self.storage.write_at(0, footer.as_bytes()))?;
            self.barrier()?;
        }
        self.footer.copy_from_slice(footer.as_bytes());
        self.settled();
        Ok(())
    }

    /// A barrier was just passed: until the next [`Journal::begin`] none is needed.
    fn settled(&self) {
        let changes = lock(&self.changes);
        if changes.bat_sectors.is_empty()
            && changes.bitmaps.is_empty()
            && changes.released.is_empty()
        {
            let _ =
                self.state
                    .compare_exchange(READY, SETTLED, Ordering::AcqRel, Ordering::Acquire);
        }
    }

    /// The first sector of the header, in which the checksum is.
    pub(in crate::vhd) fn change_header_sector(&self, at: u64, sector: &[u8]) -> Result<()> {
        self.storage
            .write_at(at, sector)
            .map_err(|e| self.fail(e))?;
        self.barrier()
    }

    /// Writes what nothing refers to yet.
    fn write_parts(&self, parts: &[(u64, Vec<u8>)]) -> Result<()> {
        for (at, bytes) in parts {
            self.storage.write_at(*at, bytes)?;
        }
        Ok(())
    }

    /// Parts in free space, and the header's first sector that refers to them.
    pub(in crate::vhd) fn switch_parts(
        &self,
        parts: &[(u64, Vec<u8>)],
        at: u64,
        sector: &[u8],
    ) -> Result<()> {
        self.write_parts(parts)?;
        self.barrier()?;
        self.change_header_sector(at, sector)
    }

    /// A header of which both sectors change, so that no crash can tear it; the footer that points to it.
    pub(in crate::vhd) fn replace_header(&mut self, new: &NewHeader<'_>) -> Result<Footer> {
        let mut footer = new.footer.clone();
        self.write_parts(new.parts)?;
        let mut at = if new.from == new.home {
            new.spare
        } else {
            new.home
        };
        self.storage.write_at(at, new.header.as_bytes())?;
        loop {
            self.barrier()?;
            footer.data_offset = at.into();
            footer.sign();
            self.change_footer(&footer)?;
            if at == new.home {
                return Ok(footer);
            }
            at = new.home;
            self.storage
                .write_at(at, new.header.as_bytes())
                .map_err(|e| self.fail(e))?;
        }
    }

    /// Makes a dynamic disk larger.
    pub(in crate::vhd) fn grow_sparse(&mut self, growth: &Growth<'_>) -> Result<()> {
        self.begin()?;
        // The table may grow into a place that was released.
        self.keep_holes();
        self.reach(growth.end)?;
        if let Some(range) = &growth.zero {
            self.storage
                .zero_range(range.start, range.end - range.start)?;
        }
        let (at, entries) = &growth.table;
        self.storage.write_at(*at, entries)?;
        write_unallocated_bulk(&*self.storage, at + entries.len() as u64..growth.end)?;
        self.barrier()?;
        if let Some((at, sector)) = growth.header {
            self.change_header_sector(at, sector)?;
        }
        self.change_footer(growth.footer)
    }

    /// Room up to `end`, all of which the caller writes before the next barrier: also over a footer that was the last.
    fn reach(&self, end: u64) -> Result<()> {
        let mut space = lock(&self.space);
        if end <= space.end {
            return Ok(());
        }
        if end + FOOTER_SIZE > space.file_size {
            if !self.storage.grows_with_zeros() {
                return Err(Self::no_room(&space, end - space.end));
            }
            self.lengthen(&mut space, end + FOOTER_SIZE)?;
        }
        if let Some(old) = space.old_footer {
            self.storage.write_at(old, &[0; 512])?;
            space.old_footer = None;
        }
        space.end = end;
        space.generation += 1;
        Ok(())
    }

    /// Makes a fixed disk of `size` bytes larger. `marked` is the new footer with its mark, `clean` the one without.
    /// Without the space for it, or if `pace` says so, nothing has happened.
    pub(in crate::vhd) fn grow_fixed(
        &mut self,
        size: u64,
        marked: &Footer,
        clean: &Footer,
        pace: Pace<'_>,
    ) -> Result<()> {
        self.begin()?;
        let (limit, end) = (self.limit(), clean.current_size.get());
        if !self.storage.grows_with_zeros() {
            return Err(Error::new(
                ErrorKind::HostLimitation,
                "a VHD on a block device cannot grow",
            )
            .with_hint("copy it to a file first"));
        }
        if let Err(error) = self.storage.write_at(end, marked.as_bytes()) {
            return Err(if end > limit {
                self.take_back(limit, error)
            } else {
                self.fail(error)
            });
        }
        self.barrier()?;
        let reserved = match end.checked_sub(limit) {
            Some(0) => Ok(()),
            Some(_) => in_steps(limit..end, pace, |at, n| self.storage.allocate(at, n)),
            // Foreign bytes lay behind the disk; they are more than it grows by.
            None => {
                self.storage
                    .set_len(end + FOOTER_SIZE)
                    .map_err(|e| self.fail(e))?;
                self.barrier()
            }
        };
        if let Err(error) = reserved {
            if end < limit {
                return Err(error);
            }
            let error = self.take_back(limit, error);
            self.barrier()?;
            return Err(error);
        }
        let stale = size..end.min(limit + FOOTER_SIZE);
        self.storage
            .zero_range(stale.start, stale.end - stale.start)
            .map_err(|e| self.fail(e))?;
        self.barrier()?;
        self.storage
            .write_at(end, clean.as_bytes())
            .map_err(|e| self.fail(e))?;
        self.barrier()?;
        self.footer.copy_from_slice(clean.as_bytes());
        let mut space = lock(&self.space);
        space.file_size = end + FOOTER_SIZE;
        space.end = end;
        Ok(())
    }

    /// Cuts off what was added behind the footer at `limit`.
    fn take_back(&self, limit: u64, error: Error) -> Error {
        match self.storage.set_len(limit + FOOTER_SIZE) {
            Ok(()) => error,
            Err(_) => self.fail(error),
        }
    }
}
