//! Another size (format sheet 8.5, 8.6).
//!
//! BAT indices do not depend on the size of the disk, so the BAT at the new size is the old one with what lies beyond
//! cleared and what is new filled in. If the pages that differ fit one log entry, they go into the one that changes the
//! size; else (or if the region is too small) a new region is written and that entry switches to it. So no crash leaves
//! entries beyond the end of the disk.

use std::collections::BTreeSet;
use std::ops::Range;

use super::VhdxImage;
use crate::error::Result;
use crate::image::{Backing, Image, Pace};
use crate::num::{MIB, round_up, to_usize};
use crate::storage::in_steps;
use crate::vhdx::bat::{self, Block, Geometry, Slot};
use crate::vhdx::journal::{PlacedPage, Session, write_pages};
use crate::vhdx::layout::{ITEM_VIRTUAL_DISK_SIZE, REGION_BAT};
use crate::vhdx::metadata;
use crate::vhdx::pages::{PAGE, WORDS};
use crate::vhdx::region::{self, Region};
use crate::vhdx::space::Span;

type Page = Box<[u8]>;
/// Pages of a new BAT that are written together.
const PAGES_AT_ONCE: usize = 256;

/// The table is made durable in such steps, in bytes, so that no barrier has much to do.
const DURABLE_STEP: u64 = 16 * MIB;

/// Allocating takes the time of reading so much less.
const ALLOCATION_GAIN: u64 = 16 * 1024;

/// So does cutting off.
const CUT_GAIN: u64 = 32;

/// Tells how far it is. Units: bytes of the BAT read or written, and of what is allocated or cut off a part.
struct Meter<'a> {
    pace: Pace<'a>,
    done: u64,
    all: u64,
}

impl Meter<'_> {
    fn tell(&mut self, units: u64) -> Result<()> {
        self.done += units;
        (self.pace)(self.done.min(self.all), self.all)
    }
}

/// What the BAT says beyond the old end of the disk.
struct Added {
    old: Geometry,
    new: Geometry,
    /// Where the new blocks of a fixed disk are.
    fixed: Option<u64>,
    /// New blocks that hide data of the parent: ranges of numbers, ascending.
    hiding: Vec<Range<u64>>,
}

impl Added {
    /// The entry at the new size.
    fn entry(&self, index: u64, present: u64) -> u64 {
        match self.new.slot(index) {
            Slot::Payload(block) if block >= self.new.block_count => 0,
            Slot::Payload(block) if block < self.old.block_count => present,
            Slot::Payload(block) => match self.fixed {
                Some(start) => {
                    let at = start + (block - self.old.block_count) * self.new.block_size;
                    bat::entry(bat::PRESENT, at)
                }
                None if self.hides(block) => bat::entry(bat::ZERO, 0),
                None => 0,
            },
            Slot::Bitmap(chunk) if chunk < self.old.chunk_count.min(self.new.chunk_count) => {
                present
            }
            Slot::Bitmap(_) => 0,
        }
    }

    fn hides(&self, block: u64) -> bool {
        let after = self.hiding.partition_point(|range| range.end <= block);
        self.hiding.get(after).is_some_and(|r| r.contains(&block))
    }

    /// Index of the first entry that differs from the old BAT.
    fn first(&self) -> u64 {
        self.new
            .payload_index(self.old.block_count.min(self.new.block_count))
    }

    /// The new blocks whose entries are not zero.
    fn filled(&self) -> Vec<Range<u64>> {
        let mut filled = self.hiding.clone();
        if self.fixed.is_some() {
            filled.push(self.old.block_count..self.new.block_count);
        }
        filled
    }
}

impl VhdxImage {
    /// See [`Image::resize`].
    pub(super) fn resize_disk(
        &mut self,
        size: u64,
        backing: &dyn Backing,
        pace: Pace<'_>,
    ) -> Result<()> {
        self.check_writable()?;
        metadata::check_virtual_size(size, self.metadata.logical_sector_size)?;
        let old = self.geometry;
        if size == old.virtual_size {
            return Ok(());
        }
        let new = Geometry::new(old.block_size, self.metadata.logical_sector_size, size);
        if self.journal.is_modified() {
            self.flush()?;
        }
        // Most of what a smaller disk gives back is cut off.
        self.journal
            .defer_punching(new.block_count < old.block_count);
        let resized = self.resize_from(old, new, backing, pace);
        self.journal.defer_punching(false);
        resized
    }

    fn resize_from(
        &mut self,
        old: Geometry,
        new: Geometry,
        backing: &dyn Backing,
        pace: Pace<'_>,
    ) -> Result<()> {
        let allocates = self.metadata.leave_blocks_allocated && new.block_count > old.block_count;
        let surveys = self.metadata.leave_blocks_allocated || new.virtual_size < old.virtual_size;
        let mut meter = Meter {
            pace,
            done: 0,
            all: self.units(&old, &new, allocates, surveys)?,
        };
        meter.tell(0)?;
        // What takes space may be given up, and then the data has not changed: children stay valid.
        self.plan_session(Session::Structure, &mut |bytes| meter.tell(bytes))?;
        let fixed = if allocates {
            Some(self.allocate_blocks(new.block_count - old.block_count, &mut meter)?)
        } else {
            None
        };
        let added = Added {
            old,
            new,
            fixed,
            hiding: Vec::new(),
        };
        let resized = self.resize_to(added, backing, &mut meter);
        if let Err(e) = resized {
            let length = new.block_count.saturating_sub(old.block_count) * new.block_size;
            self.give_up(fixed.map(|at| (at, length)));
            return Err(e);
        }
        if surveys {
            self.flush()?;
            let survey = self.survey_telling(&mut |bytes| {
                // It is done: who asks to stop comes too late.
                let _ = meter.tell(bytes);
                Ok(())
            })?;
            let end = survey.used.end();
            // What a fixed disk needs for blocks without a place stays.
            let keep = match survey.unplaced {
                0 => 0,
                unplaced => self.storage.len()?.min(end + unplaced),
            };
            self.journal.set_keep(keep)?;
            let cut = self.storage.len()?.saturating_sub(end.max(keep));
            meter.all = meter.done + cut / CUT_GAIN;
            self.journal.trim(&*self.storage, end, &mut |bytes| {
                let _ = meter.tell(bytes / CUT_GAIN);
            })?;
        }
        Ok(())
    }

    /// What there is to do, in the units of [`Meter`].
    fn units(&self, old: &Geometry, new: &Geometry, allocates: bool, surveys: bool) -> Result<u64> {
        let table = self.table_length()?;
        let mut units = if self.journal.is_modified() { 0 } else { table };
        if new.entries_used(self.metadata.has_parent) * 8 > self.regions.bat.length {
            units += 2 * table;
        }
        let added = new.block_count.saturating_sub(old.block_count);
        if allocates {
            units += added * new.block_size / ALLOCATION_GAIN + 2 * 8 * added;
        }
        if surveys {
            units += table + if allocates { 8 * added } else { 0 };
            if self.metadata.leave_blocks_allocated {
                let removed = old.block_count.saturating_sub(new.block_count);
                units += removed * new.block_size / CUT_GAIN;
            }
        }
        Ok(units.max(1))
    }

    /// Reserves space for new blocks of a fixed disk: zeros, one after the other.
    fn allocate_blocks(&self, count: u64, meter: &mut Meter<'_>) -> Result<u64> {
        let total = count * self.geometry.block_size;
        let at = self.journal.take_space(&*self.storage, total)?;
        let mut told = 0;
        let mut pace = |done, _| {
            let more = (done - told) / ALLOCATION_GAIN;
            told = done;
            meter.tell(more)
        };
        match in_steps(at..at + total, &mut pace, |at, n| {
            self.storage.allocate(at, n)
        }) {
            Ok(()) => Ok(at),
            Err(e) => {
                self.give_up(Some((at, total)));
                Err(e)
            }
        }
    }

    /// Gives back space that nothing refers to, and the file's length if it was made longer for it. That it failed
    /// matters to nobody: the next session does it again.
    fn give_up(&self, span: Option<Span>) {
        if self.journal.check().is_err() {
            // What became durable is known only when the file is opened again.
            return;
        }
        if let Some(span) = span {
            self.journal.abandon_space(&*self.storage, span);
        }
        if let Ok(survey) = self.survey()
            && survey.unplaced == 0
        {
            let _ = self.journal.set_keep(0);
            let end = survey.used.end();
            let _ = self.journal.trim(&*self.storage, end, &mut |_| ());
        }
    }

    fn resize_to(
        &mut self,
        mut added: Added,
        backing: &dyn Backing,
        meter: &mut Meter<'_>,
    ) -> Result<()> {
        let (old, new) = (added.old, added.new);
        let (mut freed, mut freed_logged) = (Vec::new(), Vec::new());
        if new.virtual_size > old.virtual_size {
            if self.clear_tail(new.virtual_size, backing)? {
                self.flush()?;
            }
            if self.metadata.has_parent {
                added.hiding = hiding(&new, old.block_count, backing)?;
            }
        } else {
            self.walk_held(added.first(), &mut |held| {
                match held.slot {
                    Slot::Payload(block) if block >= new.block_count => {
                        freed.push((held.at, held.length));
                    }
                    Slot::Bitmap(chunk) if chunk >= new.chunk_count => {
                        freed_logged.push((held.at, held.length));
                    }
                    _ => {}
                }
                Ok(true)
            })?;
        }
        let mut pages =
            self.patched_pages(ITEM_VIRTUAL_DISK_SIZE, &new.virtual_size.to_le_bytes())?;
        let needed = new.entries_used(self.metadata.has_parent) * 8;
        // Room is left for the pages of the metadata.
        let limit = self.journal.transaction_limit().saturating_sub(pages.len());
        let in_place = if needed <= self.regions.bat.length {
            self.changed_bat(&added, limit)?
        } else {
            None
        };
        if let Some(changed) = in_place {
            pages.extend(changed);
            self.plan_session(Session::Data, &mut |_| Ok(()))?;
            self.commit_pages(pages, &freed, &freed_logged)?;
            self.adopt_size(new);
            return Ok(());
        }
        let length = round_up(new.entries_allocated() * 8, MIB);
        let at = self.journal.take_space(&*self.storage, length)?;
        let written = self.write_bat(&added, (at, length), meter).and_then(|()| {
            let regions = self.with_region(REGION_BAT, at, length);
            pages.extend(region::changed_pages(&*self.storage, &regions)?);
            self.reserve_pages(&pages)?;
            self.plan_session(Session::Data, &mut |_| Ok(()))?;
            Ok(regions)
        });
        let regions: Vec<Region> = match written {
            Ok(regions) => regions,
            Err(e) => {
                self.journal.abandon_space(&*self.storage, (at, length));
                return Err(e);
            }
        };
        freed_logged.push((self.regions.bat.offset, self.regions.bat.length));
        self.commit_pages(pages, &freed, &freed_logged)?;
        self.adopt_size(new);
        self.adopt_regions(regions);
        Ok(())
    }

    fn adopt_size(&mut self, new: Geometry) {
        self.metadata.virtual_size = new.virtual_size;
        self.geometry = new;
        self.forget_tables();
    }

    /// The last block's bytes beyond the end of the disk, which will be part of it: zeros, here and not in the parent.
    /// True if there was anything to change.
    fn clear_tail(&self, new_size: u64, backing: &dyn Backing) -> Result<bool> {
        let size = self.geometry.block_size;
        let end = self.geometry.virtual_size;
        let within = end % size;
        if within == 0 {
            return Ok(false);
        }
        let (block, length) = (end / size, size - within);
        let place = self.block(block)?;
        if matches!(place, Block::Present(_) | Block::Partial(_)) {
            // It changes in place.
            self.begin()?;
        }
        match place {
            Block::Present(at) if self.metadata.leave_blocks_allocated => {
                self.storage.zero_range(at + within, length)?;
            }
            Block::Present(at) => self.storage.punch_hole(at + within, length)?,
            Block::Partial(at) => {
                self.storage.punch_hole(at + within, length)?;
                let (table, first_bit) = self.bitmap_of(block)?;
                let (chunk, _) = self.geometry.bitmap_place(block);
                let tail = self.bits(first_bit, within, length);
                self.change_bits(chunk, table, tail.clone(), tail)?;
            }
            Block::NotPresent if self.metadata.has_parent => {
                if backing.is_zero(end, length.min(new_size - end))? {
                    return Ok(false);
                }
                let (chunk, first_bit) = self.geometry.bitmap_place(block);
                let table = self.ensure_bitmap(chunk)?;
                self.bat
                    .prepare(&*self.storage, self.geometry.payload_index(block))?;
                let all = first_bit..first_bit + self.geometry.sectors_per_block();
                let tail = self.bits(first_bit, within, length);
                self.change_bits(chunk, table, all, tail)?;
                let at = self.journal.take_space(&*self.storage, size)?;
                self.replace_entry(block, bat::entry(bat::PARTIAL, at))?;
            }
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// The pages of the BAT that differ at the new size, or `None` if they are more than `limit`.
    fn changed_bat(&self, added: &Added, limit: usize) -> Result<Option<Vec<PlacedPage>>> {
        let mut changed = Vec::new();
        let first = added.first() / WORDS;
        for page in self.bat_pages(added, first..self.regions.bat.length / PAGE)? {
            let (old, new) = self.bat_page(added, page)?;
            if old != new {
                if changed.len() == limit {
                    return Ok(None);
                }
                changed.push((self.regions.bat.offset + page * PAGE, new));
            }
        }
        Ok(Some(changed))
    }

    /// Writes a whole BAT into space that reads as zeros.
    fn write_bat(&self, added: &Added, (at, length): Span, meter: &mut Meter<'_>) -> Result<()> {
        let mut pages: Vec<PlacedPage> = Vec::new();
        let mut written = 0;
        for page in self.bat_pages(added, 0..length / PAGE)? {
            let (_, new) = self.bat_page(added, page)?;
            if new.iter().any(|&byte| byte != 0) {
                pages.push((at + page * PAGE, new));
            }
            if pages.len() == PAGES_AT_ONCE {
                write_pages(&*self.storage, &pages)?;
                let bytes = pages.len() as u64 * PAGE;
                pages.clear();
                written += bytes;
                if written >= DURABLE_STEP {
                    self.storage.flush()?;
                    written = 0;
                }
                meter.tell(2 * bytes)?;
            }
        }
        write_pages(&*self.storage, &pages)
    }

    /// The pages of the BAT, by number, that may hold anything now or at the new size.
    fn bat_pages(&self, added: &Added, within: Range<u64>) -> Result<BTreeSet<u64>> {
        let region = self.regions.bat;
        let mut pages = BTreeSet::new();
        let end = region.end().min(region.offset + within.end * PAGE);
        let mut at = region.offset + within.start * PAGE;
        while at < end
            && let Some(data) = self.storage.next_data(at..end)?
        {
            let (first, last) = (data.start - region.offset, data.end - region.offset);
            pages.extend(first / PAGE..last.div_ceil(PAGE));
            at = data.end;
        }
        for blocks in added.filled() {
            let first = added.new.payload_index(blocks.start) / WORDS;
            let last = added.new.payload_index(blocks.end - 1) / WORDS;
            pages.extend(first..=last);
        }
        Ok(pages)
    }

    /// A page of the BAT as the file has it, and at the new size.
    fn bat_page(&self, added: &Added, page: u64) -> Result<(Page, Page)> {
        let mut old = vec![0; to_usize(PAGE)];
        if (page + 1) * PAGE <= self.regions.bat.length {
            self.storage
                .read_at(self.regions.bat.offset + page * PAGE, &mut old)?;
        }
        let new: Vec<u8> = old
            .chunks_exact(8)
            .zip(page * WORDS..)
            .flat_map(|(word, index)| {
                let present = word.try_into().map_or(0, u64::from_le_bytes);
                added.entry(index, present).to_le_bytes()
            })
            .collect();
        Ok((old.into(), new.into()))
    }
}

/// The blocks from `first` on in which the parent has data.
fn hiding(new: &Geometry, first: u64, backing: &dyn Backing) -> Result<Vec<Range<u64>>> {
    let mut found: Vec<Range<u64>> = Vec::new();
    let mut open: Vec<Range<u64>> = (first < new.block_count)
        .then_some(first..new.block_count)
        .into_iter()
        .collect();
    while let Some(blocks) = open.pop() {
        let start = blocks.start * new.block_size;
        let end = (blocks.end * new.block_size).min(new.virtual_size);
        if backing.is_zero(start, end - start)? {
            continue;
        }
        if blocks.end - blocks.start > 1 {
            let middle = blocks.start.midpoint(blocks.end);
            open.push(middle..blocks.end);
            open.push(blocks.start..middle);
            continue;
        }
        match found.last_mut() {
            Some(last) if last.end == blocks.start => last.end = blocks.end,
            _ => found.push(blocks),
        }
    }
    Ok(found)
}
