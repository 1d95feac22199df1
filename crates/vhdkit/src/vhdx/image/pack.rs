//! Packing: blocks from the end of the file into free space before them (format sheet 8.7).

use std::sync::OnceLock;

use super::VhdxImage;
use crate::error::{Context, Result};
use crate::image::{Image, Packed, Told};
use crate::storage::{CopyRun, copy_runs};
use crate::vhdx::bat::Slot;
use crate::vhdx::layout::{BAT_OFFSET_MASK, Guid, REGION_BAT, REGION_METADATA};
use crate::vhdx::pages::PagedTable;
use crate::vhdx::plan::{Movable, Move, Plan};
use crate::vhdx::region::{self, Region};
use crate::vhdx::space::Span;

impl VhdxImage {
    /// See [`Image::pack`].
    pub(super) fn pack_step(&mut self, budget: u64, told: Told<'_>) -> Result<Packed> {
        self.check_writable()?;
        // What was freed is free only once that is durable.
        self.flush()?;
        let survey = self.survey()?;
        if survey.unplaced > 0 {
            // A fixed disk some of whose blocks have no place yet needs what is free for these.
            return Ok(Packed::default());
        }
        let plan = self.plan(&survey)?;
        if plan.moves.is_empty() && self.storage.len()? <= plan.end {
            return Ok(Packed::default());
        }
        self.begin_structure()?;
        let (now, later) = plan.moves.split_at(batch(&plan.moves, budget));
        match now {
            [step] if step.what == Movable::Bat => self.move_region(REGION_BAT, step),
            [step] if step.what == Movable::Metadata => self.move_region(REGION_METADATA, step),
            steps => self.move_blocks(steps, told),
        }
        .while_doing("pack")?;
        if later.is_empty() {
            // Not where the plan says, but where the file says that its last byte in use is.
            let end = self.survey()?.used.end();
            self.journal.set_keep(0)?;
            self.journal.trim(&*self.storage, end)?;
        }
        Ok(Packed {
            moved: Plan::left(now),
            left: Plan::left(later),
        })
    }

    fn move_blocks(&mut self, moves: &[Move], told: Told<'_>) -> Result<()> {
        if moves.is_empty() {
            return Ok(());
        }
        let moves = &in_order(moves);
        let (mut claimed, mut runs) = (Vec::new(), Vec::new());
        let copied = moves.iter().try_for_each(|step| {
            let Movable::Entry(index) = step.what else {
                return Ok(());
            };
            self.bat.prepare(&*self.storage, index)?;
            let entry = self.bat.get(&*self.storage, index)?;
            let has_content = self.held(index, entry)?.is_some_and(|h| h.has_content);
            self.claim((step.to, step.length), &mut claimed)?;
            if has_content {
                runs.extend(self.data_inside((step.from, step.length), step.to)?);
            }
            Ok(())
        });
        let copied = copied.and_then(|()| copy_runs(&*self.storage, &*self.storage, runs, told));
        if let Err(e) = copied {
            self.abandon(&claimed);
            return Err(e);
        }
        self.journal.data_barrier(&*self.storage)?;
        for step in moves {
            let Movable::Entry(index) = step.what else {
                continue;
            };
            let entry = self.bat.get(&*self.storage, index)?;
            self.set_entry(index, entry & !BAT_OFFSET_MASK | step.to)?;
            match self.geometry.slot(index) {
                Slot::Payload(_) => self.journal.free((step.from, step.length)),
                Slot::Bitmap(_) => self.journal.free_logged((step.from, step.length)),
            }
        }
        let flushed = self.flush();
        // They may have moved.
        self.bitmaps = OnceLock::new();
        flushed
    }

    /// Takes free space that a plan chose and makes it zero, if it is not known to be.
    pub(super) fn claim(&self, span: Span, claimed: &mut Vec<Span>) -> Result<()> {
        let known = self.journal.claim_space(span)?;
        claimed.push(span);
        if !known {
            self.storage.punch_hole(span.0, span.1)?;
        }
        Ok(())
    }

    pub(super) fn abandon(&self, spans: &[Span]) {
        for &span in spans {
            self.journal.abandon_space(&*self.storage, span);
        }
    }

    /// Copies within the file to where zeros are. Holes stay holes.
    pub(super) fn copy_inside(&self, from: Span, to: u64) -> Result<()> {
        let runs = self.data_inside(from, to)?;
        copy_runs(&*self.storage, &*self.storage, runs, &|_| ())
    }

    /// What there is to copy.
    fn data_inside(&self, (from, length): Span, to: u64) -> Result<Vec<CopyRun>> {
        let (mut at, end) = (from, from + length);
        let mut runs = Vec::new();
        while let Some(data) = self.storage.next_data(at..end)? {
            runs.push(CopyRun {
                from: data.start,
                to: to + (data.start - from),
                length: data.end - data.start,
            });
            at = data.end;
        }
        Ok(runs)
    }

    fn move_region(&mut self, guid: Guid, step: &Move) -> Result<()> {
        let (from, to) = ((step.from, step.length), (step.to, step.length));
        let regions = self.with_region(guid, step.to, step.length);
        let mut claimed = Vec::new();
        let copied = self
            .claim(to, &mut claimed)
            .and_then(|()| self.copy_inside(from, step.to))
            .and_then(|()| region::changed_pages(&*self.storage, &regions));
        let pages = match copied {
            Ok(pages) => pages,
            Err(e) => {
                self.abandon(&claimed);
                return Err(e);
            }
        };
        self.commit_pages(pages, &[], &[from])?;
        self.adopt_regions(regions);
        // What is free may be cut off next.
        self.flush()
    }

    /// The regions with one of them somewhere else.
    pub(super) fn with_region(&self, guid: Guid, offset: u64, length: u64) -> Vec<Region> {
        let mut regions = self.regions.all.clone();
        for region in &mut regions {
            if region.guid == guid {
                (region.offset, region.length) = (offset, length);
            }
        }
        regions
    }

    /// The region table in the file says this now.
    pub(super) fn adopt_regions(&mut self, regions: Vec<Region>) {
        for &region in &regions {
            if region.guid == REGION_BAT {
                self.regions.bat = region;
            } else if region.guid == REGION_METADATA {
                self.regions.metadata = region;
            }
        }
        self.regions.all = regions;
        self.forget_tables();
    }

    /// The BAT or what it refers to was changed in the file, past the pages in memory, all of which were clean.
    pub(super) fn forget_tables(&mut self) {
        let entries = self.geometry.entries_used(self.metadata.has_parent);
        self.bat = PagedTable::new(self.regions.bat.offset, entries);
        self.bitmaps = OnceLock::new();
    }
}

/// The same blocks and the same places, but each side in the order of the file: what lies together stays together. A
/// plan takes the last block first and the first place first, so all of its places for one length end before all
/// blocks that go there.
fn in_order(moves: &[Move]) -> Vec<Move> {
    let mut moves = moves.to_vec();
    moves.sort_unstable_by_key(|step| (step.length, step.from));
    for same in moves.chunk_by_mut(|a, b| a.length == b.length) {
        let mut places: Vec<u64> = same.iter().map(|step| step.to).collect();
        places.sort_unstable();
        for (step, to) in same.iter_mut().zip(places) {
            step.to = to;
        }
    }
    moves
}

/// How many of the moves fit the budget, at least one; a region moves alone.
fn batch(moves: &[Move], budget: u64) -> usize {
    let mut taken = 0;
    let blocks = moves
        .iter()
        .take_while(|step| {
            let first = taken == 0;
            taken += step.length;
            matches!(step.what, Movable::Entry(_)) && (first || taken <= budget)
        })
        .count();
    blocks.max(1).min(moves.len())
}
