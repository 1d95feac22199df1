//! Packing: blocks from the end of the file into free space before them (format sheet 8.7).

use std::sync::OnceLock;
use std::sync::atomic::Ordering;

use super::VhdxImage;
use crate::error::{Context, Result};
use crate::image::{Image, Packed, PackingStep, PackingTold};
use crate::storage::{CopyRun, copy_runs};
use crate::vhdx::bat::Slot;
use crate::vhdx::journal::Session;
use crate::vhdx::layout::{BAT_OFFSET_MASK, Guid, REGION_BAT, REGION_METADATA};
use crate::vhdx::pages::PagedTable;
use crate::vhdx::plan::{Movable, Move, Plan};
use crate::vhdx::region::{self, Region};
use crate::vhdx::space::Span;

/// What packing has still to do, as long as nobody else changes the BAT.
pub(super) struct Packing {
    plan: Plan,
    /// So many of its moves were made.
    made: usize,
    /// What else the plan knows: [`VhdxImage::changes`] and the log's place.
    known: (u64, Span),
}

impl VhdxImage {
    /// See [`Image::pack`]. Blocks are copied to free space and have their new places in memory only; the next flush
    /// makes the copies durable, then the entries, and only then are the old places free.
    pub(super) fn pack_step(&mut self, budget: u64, told: PackingTold<'_>) -> Result<Packed> {
        self.check_writable()?;
        let known = self
            .packing
            .take()
            .filter(|packing| packing.known == self.taken());
        let Some(mut packing) = known.map_or_else(|| self.new_packing(told), |p| Ok(Some(p)))?
        else {
            return Ok(Packed::default());
        };
        self.journal.defer_punching(true);
        self.plan_session(Session::Structure, &mut |bytes| {
            told(PackingStep::Read(bytes))
        })?;
        let moves = &packing.plan.moves[packing.made..];
        let (now, later) = moves.split_at(batch(moves, budget));
        match now {
            [step] if step.what == Movable::Bat => self.move_region(REGION_BAT, step),
            [step] if step.what == Movable::Metadata => self.move_region(REGION_METADATA, step),
            steps => self.move_blocks(steps, told),
        }
        .while_doing("pack")?;
        let packed = Packed {
            moved: Plan::left(now),
            left: Plan::left(later),
        };
        if later.is_empty() {
            self.flush()?;
            // Not where the plan says, but where the file says that its last byte in use is.
            let survey = self.survey_telling(&mut |bytes| told(PackingStep::Read(bytes)))?;
            self.journal.set_keep(0)?;
            self.journal
                .trim(&*self.storage, survey.used.end(), &mut |bytes| {
                    let _ = told(PackingStep::CutOff(bytes));
                })?;
        } else {
            packing.made += now.len();
            packing.known = self.taken();
            self.packing = Some(packing);
        }
        Ok(packed)
    }

    fn new_packing(&self, told: PackingTold<'_>) -> Result<Option<Packing>> {
        // What was freed is free only once that is durable.
        self.flush()?;
        let mut told = |bytes| told(PackingStep::Read(bytes));
        let survey = self.survey_telling(&mut told)?;
        if survey.unplaced > 0 {
            // A fixed disk some of whose blocks have no place yet needs what is free for these.
            return Ok(None);
        }
        let plan = self.plan_telling(&survey, &mut told)?;
        let is_packed = plan.moves.is_empty() && self.storage.len()? <= plan.end;
        Ok((!is_packed).then(|| Packing {
            plan,
            made: 0,
            known: self.taken(),
        }))
    }

    /// Something else as soon as anybody has taken space or given it back.
    fn taken(&self) -> (u64, Span) {
        (
            self.changes.load(Ordering::Relaxed),
            self.journal.log_span(),
        )
    }

    fn move_blocks(&mut self, moves: &[Move], told: PackingTold<'_>) -> Result<()> {
        let moves = &in_order(moves);
        let is_bitmap = |step: &Move| match step.what {
            Movable::Entry(index) => matches!(self.geometry.slot(index), Slot::Bitmap(_)),
            _ => false,
        };
        let bitmaps_move = moves.iter().any(is_bitmap);
        if bitmaps_move {
            // What memory knows and the file does not would be missing in the new place.
            self.flush()?;
        }
        let (mut claimed, mut runs) = (Vec::new(), Vec::new());
        let copied = moves.iter().try_for_each(|step| {
            let Movable::Entry(index) = step.what else {
                return Ok(());
            };
            self.bat.prepare(&*self.storage, index)?;
            let entry = self.bat.get(&*self.storage, index)?;
            let has_content = self.held(index, entry)?.is_some_and(|h| h.has_content);
            let (from, to) = ((step.from, step.length), (step.to, step.length));
            if has_content {
                let data = self.data_inside(from, step.to)?;
                self.claim_around(to, &data, &mut claimed)?;
                runs.extend(data);
                Ok(())
            } else {
                self.claim(to, &mut claimed)
            }
        });
        let moved = |bytes| {
            let _ = told(PackingStep::Moved(bytes));
        };
        let copied = copied.and_then(|()| copy_runs(&*self.storage, &*self.storage, runs, &moved));
        if let Err(e) = copied {
            self.abandon(&claimed);
            return Err(e);
        }
        self.journal.note_moved();
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
        if bitmaps_move {
            self.bitmaps = OnceLock::new();
        }
        Ok(())
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

    /// As [`Self::claim`], but that what is written to next need not be zero. `data` lies within, in order.
    fn claim_around(&self, span: Span, data: &[CopyRun], claimed: &mut Vec<Span>) -> Result<()> {
        if self.has_lent.load(Ordering::Relaxed) {
            return self.claim(span, claimed);
        }
        let known = self.journal.claim_space(span)?;
        claimed.push(span);
        if known {
            return Ok(());
        }
        let end = span.0 + span.1;
        let mut at = span.0;
        let behind = [(end, end)];
        for (start, next) in data
            .iter()
            .map(|run| (run.to, run.to + run.length))
            .chain(behind)
        {
            if start > at {
                self.storage.punch_hole(at, start - at)?;
            }
            at = next;
        }
        Ok(())
    }

    pub(super) fn abandon(&self, spans: &[Span]) {
        for &span in spans {
            self.journal.abandon_space(&*self.storage, span);
        }
    }

    /// See [`Image::end_packing`].
    pub(super) fn stop_packing(&mut self) {
        self.packing = None;
        self.journal.defer_punching(false);
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
        // The tables are read from the file again afterwards.
        self.flush()?;
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
        self.packing = None;
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
