//! How a file's space is used, and giving back what is not needed: [`VhdImage`]'s part of compacting.
//!
//! Blocks are moved by copy, barrier, entry, barrier, with one pair of barriers (a flush) for as many of them as there
//! is between two flushes; holes of the file stay holes. Only what is last in the file moves,
//! and always to a lower place, so each move makes the file shorter. A table or a parent locator that comes to be last
//! is moved down too, so growing or a new parent does not keep a file long.

use std::ops::Range;
use std::sync::Arc;

use zerocopy::IntoBytes;

use super::bat::Entry;
use super::bitmap::BitmapCache;
use super::header::SparseHeader;
use super::image::{VhdImage, end_of_structures, structures};
use super::journal::{NewHeader, Tables};
use super::layout::{FOOTER_SIZE, HEADER_SIZE, SECTOR};
use super::space::{Kind, Move, Plan, Structure, between, covered, displaced, holes, plan};
use super::sparse::Sparse;
use crate::error::Result;
use crate::image::{AllocatedBlock, Backing, Packed, PackingStep, PackingTold, Usage};
use crate::num::{round_up, to_usize};
use crate::storage::{AlignedBuffer, CopyRun, copies_past_the_cache, copy_runs};

impl VhdImage {
    /// See [`crate::image::Image::length_with`].
    pub(super) fn longest(&self, size: u64, blocks: u64) -> Result<u64> {
        let file_size = self.storage.len()?;
        let longer = size.saturating_sub(self.virtual_size);
        let Some(sparse) = &self.sparse else {
            return Ok(file_size + longer);
        };
        let shape = sparse.tables.bat.shape;
        // A block's data starts at a multiple of 4096, so there may be a gap before its bitmap.
        let block = round_up(shape.bitmap_size + shape.block_size, 4096);
        let table = if longer > 0 {
            round_up(size.div_ceil(shape.block_size) * 4, SECTOR)
        } else {
            0
        };
        Ok(file_size + table + 4096 + blocks * block)
    }

    /// Bitmaps count as structures; gaps that alignment leaves count as free. `packed_size` is what packing reaches.
    pub(super) fn space_usage(&self) -> Result<Usage> {
        let file_size = self.storage.len()?;
        let Some(sparse) = &self.sparse else {
            let payload = self.virtual_size;
            let structures = file_size.saturating_sub(payload).min(FOOTER_SIZE);
            return Ok(Usage {
                file_size,
                payload,
                structures,
                free: file_size.saturating_sub(payload + structures),
                packed_size: file_size,
                ..Usage::default()
            });
        };
        let shape = sparse.tables.bat.shape;
        let blocks: Vec<(u64, u64)> = sparse.tables.bat.placed().collect();
        let count = blocks.len() as u64;
        let mut ranges: Vec<Range<u64>> =
            sparse.structures.iter().map(|s| s.range.clone()).collect();
        ranges.sort_unstable_by_key(|range| range.start);
        let payload = count * shape.block_size;
        let structures = covered(&ranges) + count * shape.bitmap_size + FOOTER_SIZE;
        let packed_size = if self.storage.grows_with_zeros() {
            plan(&blocks, &sparse.structures, shape).end + FOOTER_SIZE
        } else {
            file_size
        };
        Ok(Usage {
            file_size,
            payload,
            structures,
            free: file_size.saturating_sub(payload + structures),
            packed_size,
            allocated_blocks: count,
            displaced_blocks: displaced(&blocks, shape),
        })
    }

    /// A block of a dynamic disk is without content if the file has a hole in its place; one of a differencing disk, if
    /// none of its sectors is here (then the parent shows through it).
    pub(super) fn next_allocated_block(&self, offset: u64) -> Result<Option<AllocatedBlock>> {
        let Some(sparse) = self.sparse.as_ref().filter(|_| offset < self.virtual_size) else {
            return Ok(None);
        };
        let shape = sparse.tables.bat.shape;
        let Some((block, at)) = sparse.tables.bat.next_placed(offset / shape.block_size) else {
            return Ok(None);
        };
        let start = block * shape.block_size;
        let data = at + shape.bitmap_size;
        let has_content = if sparse.differencing {
            !is_empty(sparse, block, at)?
        } else {
            let end = data + shape.block_size;
            sparse.storage.next_data(data..end)?.is_some()
        };
        Ok(Some(AllocatedBlock {
            range: start..(start + shape.block_size).min(self.virtual_size),
            // With the gap behind it that aligns the next one, if this one is aligned itself.
            space: if data.is_multiple_of(shape.block_size.min(4096)) {
                shape.place_behind(at + shape.total()) - at
            } else {
                shape.total()
            },
            structures: shape.bitmap_size,
            has_content,
        }))
    }

    /// A child's block can go only if the parent shows zeros there, or if it has none of its sectors.
    pub(super) fn release_block(
        &mut self,
        block: &AllocatedBlock,
        backing: &dyn Backing,
    ) -> Result<bool> {
        self.journal.check()?;
        self.refuse_saved_state("be compacted")?;
        let Some(sparse) = self
            .sparse
            .as_ref()
            .filter(|_| block.range.start < self.virtual_size)
        else {
            return Ok(false);
        };
        let number = block.range.start / sparse.tables.bat.shape.block_size;
        let Entry::At(at) = sparse.tables.bat.get(number) else {
            return Ok(false);
        };
        if sparse.differencing {
            // XenServer's map may say of the block that all of it is here, also after it has come back in part.
            if sparse.has_batmap() {
                return Ok(false);
            }
            let (start, length) = (block.range.start, block.range.end - block.range.start);
            if !is_empty(sparse, number, at)? && !backing.is_zero(start, length)? {
                return Ok(false);
            }
        }
        self.journal.begin()?;
        self.journal.release(&sparse.tables, number, at);
        Ok(true)
    }

    /// One step of packing. Fixed disks and block devices stay as they are.
    pub(super) fn pack_some(&mut self, budget: u64, told: PackingTold<'_>) -> Result<Packed> {
        self.journal.check()?;
        self.refuse_saved_state("be compacted")?;
        let Some(sparse) = self.sparse.as_ref() else {
            return Ok(Packed::default());
        };
        if !self.storage.grows_with_zeros() {
            self.journal.settle()?;
            return Ok(Packed::default());
        }
        let total = sparse.tables.bat.shape.total();
        let mut plan = match self.plan.take() {
            Some((known, plan)) if known == self.journal.generation() => plan,
            _ => {
                self.journal.settle()?;
                let blocks: Vec<(u64, u64)> = sparse.tables.bat.placed().collect();
                plan(&blocks, &sparse.structures, sparse.tables.bat.shape)
            }
        };
        let count = to_usize((budget / total).max(1)).min(plan.moves.len());
        let mut batch: Vec<Move> = plan.moves.iter().rev().take(count).copied().collect();
        in_order(&mut batch);
        if !batch.is_empty() {
            self.journal.begin()?;
            self.journal.keep_holes();
            let mut runs = Vec::new();
            let joins = !copies_past_the_cache(&*sparse.storage, &*sparse.storage);
            let mut before = None;
            for step in &batch {
                copy_block(sparse, step, before, &mut runs)?;
                before = joins.then_some(step);
            }
            copy_runs(&*sparse.storage, &*sparse.storage, runs, &|bytes| {
                let _ = told(PackingStep::Moved(bytes));
            })?;
            let moves: Vec<_> = batch.iter().map(|m| (m.block, m.from, m.to)).collect();
            self.journal.move_blocks(&sparse.tables, &moves);
            plan.moves.truncate(plan.moves.len() - count);
        }
        let mut moved = count as u64 * total;
        let left = plan.moves.len() as u64 * total;
        if left == 0 {
            self.journal.settle()?;
            moved += self.move_structures(&plan)?;
            self.journal.shorten(&mut |bytes| {
                let _ = told(PackingStep::CutOff(bytes));
            })?;
        } else {
            self.plan = Some((self.journal.generation(), plan));
        }
        Ok(Packed { moved, left })
    }

    /// Moves the table and the parent locators that the plan names; bytes moved.
    fn move_structures(&mut self, plan: &Plan) -> Result<u64> {
        let Some(sparse) = self.sparse.as_ref().filter(|_| !plan.structures.is_empty()) else {
            return Ok(0);
        };
        // What memory knows and the file does not would be missing in the table's new place.
        self.journal.flush()?;
        let mut raw = sparse.header.raw.clone();
        let mut parts = Vec::new();
        let mut table_offset = sparse.header.table_offset;
        let mut only_table = true;
        let mut moved = 0;
        for (structure, to) in &plan.structures {
            let length = structure.range.end - structure.range.start;
            let mut bytes = vec![0; to_usize(round_up(length, SECTOR))];
            self.storage
                .read_at(structure.range.start, &mut bytes[..to_usize(length)])?;
            moved += length;
            parts.push((*to, bytes));
            match structure.kind {
                Kind::Table => {
                    table_offset = *to;
                    raw.table_offset = table_offset.into();
                }
                Kind::Locator(slot) => {
                    raw.parent_locators[slot].platform_data_offset = (*to).into();
                    only_table = false;
                }
                Kind::Pinned => {}
            }
        }
        raw.sign();
        self.journal.keep_holes();
        let header = SparseHeader {
            raw,
            table_offset,
            ..sparse.header.clone()
        };
        if only_table {
            let sector = &header.raw.as_bytes()[..to_usize(SECTOR)];
            self.journal.switch_parts(&parts, header.offset, sector)?;
            self.adopt_header(header)?;
        } else {
            self.put_header(header, &parts)?;
        }
        Ok(moved)
    }

    /// Makes a header of which anything may have changed the image's, with the parts that it refers to.
    pub(super) fn put_header(
        &mut self,
        mut header: SparseHeader,
        parts: &[(u64, Vec<u8>)],
    ) -> Result<()> {
        let taken: Vec<Range<u64>> = parts
            .iter()
            .map(|(at, bytes)| *at..at + bytes.len() as u64)
            .collect();
        let Some(sparse) = &self.sparse else {
            return Ok(());
        };
        // An earlier change that was interrupted may have left the header elsewhere.
        let usual = FOOTER_SIZE..FOOTER_SIZE + HEADER_SIZE;
        let from = header.offset;
        let is_free = |range: &Range<u64>| {
            let used = used_ranges(sparse, &taken);
            used.iter()
                .all(|u| u.end <= range.start || u.start >= range.end)
        };
        let home = if from != usual.start && is_free(&usual) {
            usual.start
        } else {
            from
        };
        let spare = if home == from {
            self.free_place(&taken, HEADER_SIZE)?
        } else {
            home
        };
        *self.footer = self.journal.replace_header(&NewHeader {
            header: &header.raw,
            parts,
            from,
            home,
            spare,
            footer: &self.footer,
        })?;
        header.offset = home;
        self.adopt_header(header)
    }

    /// A place for a structure: the lowest hole, or behind everything else.
    pub(super) fn free_place(&self, taken: &[Range<u64>], length: u64) -> Result<u64> {
        match self.free_hole(taken, length) {
            Some(hole) => Ok(hole),
            None => self.journal.room(length),
        }
    }

    /// The lowest hole of this length.
    pub(super) fn free_hole(&self, taken: &[Range<u64>], length: u64) -> Option<u64> {
        let mut used = used_ranges(self.sparse.as_ref()?, taken);
        // What is behind the last of them was written to before, up to here.
        let end = self.journal.end();
        used.push(end..end);
        let hole = holes(&used)
            .into_iter()
            .find(|hole| hole.end - hole.start >= length)?;
        self.journal.keep_holes();
        Some(hole.start)
    }

    /// Takes over in memory what the file's header says now.
    pub(super) fn adopt_header(&mut self, header: SparseHeader) -> Result<()> {
        let Some(sparse) = &mut self.sparse else {
            return Ok(());
        };
        self.plan = None;
        let limit = self.journal.limit();
        sparse.structures = structures(&*self.storage, &self.footer, &header, limit);
        let end = end_of_structures(&sparse.structures);
        let bat = &sparse.tables.bat;
        if header.table_offset == bat.offset && header.blocks == sparse.header.blocks {
            self.journal.set_structures_end(end);
        } else {
            let shape = header.shape;
            sparse.tables = Arc::new(Tables {
                bat: bat.rebuilt(header.blocks, header.table_offset)?,
                bitmaps: BitmapCache::new(header.blocks, shape.sectors(), shape.bitmap_size),
            });
            self.journal.replace_tables(sparse.tables.clone(), end);
        }
        sparse.header = header;
        Ok(())
    }
}

impl Sparse {
    /// True if XenServer's map of full blocks is there.
    fn has_batmap(&self) -> bool {
        // Footer's copy, header, and what of table and locators cannot be moved.
        self.structures
            .iter()
            .any(|s| s.kind == Kind::Pinned && s.range.start == self.header.table_offset)
    }
}

/// Everything in use, by place.
fn used_ranges(sparse: &Sparse, taken: &[Range<u64>]) -> Vec<Range<u64>> {
    let total = sparse.tables.bat.shape.total();
    let structures = sparse
        .structures
        .iter()
        .map(|s: &Structure| s.range.clone());
    let blocks = sparse.tables.bat.placed().map(|(_, at)| at..at + total);
    let mut used: Vec<Range<u64>> = structures
        .chain(blocks)
        .chain(taken.iter().cloned())
        .collect();
    used.sort_unstable_by_key(|range| range.start);
    used
}

/// True if no sector of a differencing disk's block is here.
fn is_empty(sparse: &Sparse, block: u64, at: u64) -> Result<bool> {
    let sectors = sparse.tables.bat.shape.sectors();
    Ok(match sparse.bitmap(block, at)? {
        Some(bitmap) => bitmap.run(0..sectors) == (false, sectors),
        None => false,
    })
}

/// Gives the same places to the same blocks in the order of the file, which disks like better, if any block fits any of
/// the places: all are aligned as the others, and all places are before all blocks.
fn in_order(moves: &mut [Move]) {
    const ALIGNMENT: u64 = AlignedBuffer::ALIGNMENT as u64;
    let mut places: Vec<u64> = moves.iter().map(|step| step.to).collect();
    places.sort_unstable();
    let Some(first) = moves.first().copied() else {
        return;
    };
    let alike = moves
        .iter()
        .all(|step| ((step.from ^ first.from) | (step.to ^ first.to)).is_multiple_of(ALIGNMENT));
    let lowest = moves.iter().map(|step| step.from).min();
    if alike && places.last().copied() < lowest {
        moves.sort_unstable_by_key(|step| step.from);
        for (step, to) in moves.iter_mut().zip(places) {
            step.to = to;
        }
    }
}

/// Copies a block's bitmap to free space, and says what of its data is to follow. Holes stay holes.
///
/// Where a block follows the one `before` in both places, with nothing but a gap for alignment between them, bitmap and
/// gap are data like all else: so they go with their neighbours, in one piece.
fn copy_block(
    sparse: &Sparse,
    step: &Move,
    before: Option<&Move>,
    runs: &mut Vec<CopyRun>,
) -> Result<()> {
    let (storage, shape) = (&*sparse.storage, sparse.tables.bat.shape);
    let (from, to) = (step.from, step.to);
    let end = from + shape.total();
    let joins = |before: &&Move| {
        step.from.checked_sub(before.from) == step.to.checked_sub(before.to)
            && between(shape, &sparse.structures, before.to, step.to).is_some()
    };
    let mut at = if let Some(before) = before.filter(joins) {
        before.from + shape.total()
    } else {
        let mut bitmap = vec![0; to_usize(shape.bitmap_size)];
        storage.read_at(from, &mut bitmap)?;
        storage.write_at(to, &bitmap)?;
        from + shape.bitmap_size
    };
    let place = |at: u64| to + at - from;
    while at < end {
        let data = storage.next_data(at..end)?.unwrap_or(end..end);
        if at < data.start {
            storage.punch_hole(place(at), data.start - at)?;
        }
        if data.start < data.end {
            runs.push(CopyRun {
                from: data.start,
                to: place(data.start),
                length: data.end - data.start,
            });
        }
        at = data.end;
    }
    Ok(())
}
