//! `compact`: gives back the space of blocks that hold nothing, and moves the others together.
//!
//! In place and in small steps, each of which leaves a whole disk: requests of others run between them, a cancelled or
//! killed compaction leaves a disk that reads as before and can be run again, and no second copy's space is needed.

use std::ops::{Range, RangeInclusive};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use crate::disk::{Chain, VirtualDisk};
use crate::error::{Context, Error, ErrorKind, Result};
use crate::image::{AllocatedBlock, DiskType, Format};
use crate::num::{MIB, to_usize};
use crate::operation::{Monitor, Operation};
use crate::storage::AlignedBuffer;
use crate::zeros::is_zero;

/// How hard to look for blocks that hold nothing.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[expect(clippy::exhaustive_enums, reason = "there is no third way")]
pub enum CompactMode {
    /// Reads every block until its first byte that is not zero.
    #[default]
    Full,
    /// Reads no block: only what the tables call unused is given back.
    Quick,
}

/// What to do.
#[derive(Clone, Debug, Default)]
#[expect(clippy::exhaustive_structs, reason = "a plain request")]
pub struct CompactOptions {
    /// How hard to look.
    pub mode: CompactMode,
    /// Predict only: nothing is written.
    pub dry_run: bool,
    /// Ranges of the disk that its user says are free: they read as zeros or as before afterwards. Unlike all else
    /// that compaction does this changes content, and so the identity that children have recorded.
    pub free: Vec<Range<u64>>,
}

/// What was done, or would be. Sizes are in bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[non_exhaustive]
pub struct CompactReport {
    /// Length of the file before.
    pub size_before: u64,
    /// Length of the file afterwards.
    pub size_after: u64,
    /// Space of blocks that were given back.
    pub released: u64,
    /// Bytes moved; 0 in a prediction.
    pub moved: u64,
    /// Of the file afterwards: blocks with content.
    pub payload: u64,
    /// Of the file afterwards: headers, tables, logs, bitmaps, metadata.
    pub structures: u64,
    /// Of the file afterwards: gaps that no block fits.
    pub gaps: u64,
}

/// What the first step of packing moves, in bytes. Requests of others wait for a step, and progress moves with it, so
/// the next one is larger or smaller by how long it took.
const FIRST_STEP: u64 = 32 * MIB;
const STEPS: RangeInclusive<u64> = FIRST_STEP..=256 * MIB;
const STEP_TIME: Duration = Duration::from_millis(100);

/// What is read at a time when looking for zeros, in bytes.
const READ: usize = 256 * 1024;

/// What looking at a block costs besides what is read of it, in bytes that could have been read meanwhile.
const LOOK_COST: u64 = 16 * 1024;

/// A byte that is moved is read and written.
const MOVE_COST: u64 = 2;

/// Compacts the leaf of a disk that was opened for writing (or, to predict, in any way). What the disk reads does not
/// change, nor do the identities that its children have recorded. Units of progress: bytes to be read, twice those to be moved.
///
/// A fixed VHDX succeeds without shrinking.
///
/// # Errors
/// Through the operation: [`ErrorKind::InvalidType`] for a fixed VHD and formats without blocks,
/// [`ErrorKind::WriteProtected`], [`ErrorKind::Busy`], and what reading and writing can fail with.
pub fn compact(disk: Arc<VirtualDisk>, options: CompactOptions) -> Operation<CompactReport> {
    Operation::start("compact", move |monitor| {
        let path = disk.path();
        run(&disk, &options, monitor)
            .at_path(&path)
            .while_doing("cannot compact")
    })
}

fn run(disk: &VirtualDisk, options: &CompactOptions, monitor: &Monitor) -> Result<CompactReport> {
    let _reserved = disk.reserve()?;
    let info = disk.info();
    match (info.format, info.disk_type) {
        (Format::Vhd | Format::Vhdx, DiskType::Dynamic | DiskType::Differencing)
        | (Format::Vhdx, DiskType::Fixed) => {}
        (format, _) => {
            return Err(Error::new(
                ErrorKind::InvalidType,
                format!(
                    "a {} {} disk keeps all its space",
                    info.disk_type.name(),
                    format.name()
                ),
            )
            .with_hint("convert it to a dynamic VHDX, which leaves out what is zero"));
        }
    }
    if !options.dry_run {
        disk.with_chain(|chain| chain.check_writable(0))?;
        for range in &options.free {
            monitor.checkpoint()?;
            disk.discard(range.start, range.end.saturating_sub(range.start))?;
        }
        disk.flush()?;
    }
    let mut compaction = Compaction {
        disk,
        options,
        monitor,
        buffer: AlignedBuffer::new(READ),
        done: 0,
        payload: 0,
        free: 0,
        looked_at: 0,
        empty: 0,
        moves: 0,
        blocks: 0,
        structures: 0,
        report: CompactReport::default(),
    };
    let usage = disk.with_chain(|chain| chain.leaf().image().usage())?;
    compaction.report.size_before = usage.file_size;
    monitor.set(0, usage.payload.max(1));
    compaction.payload = usage.payload;
    compaction.free = usage.free;
    compaction.release_blocks()?;
    if options.dry_run {
        let block = usage.payload / usage.allocated_blocks.max(1);
        let (blocks, structures) = (compaction.blocks, compaction.structures);
        let report = &mut compaction.report;
        report.payload = usage.payload - (blocks * block).min(usage.payload);
        report.structures = usage.structures - structures.min(usage.structures);
        report.size_after = usage.packed_size - report.released.min(usage.packed_size);
        report.gaps = report
            .size_after
            .saturating_sub(report.payload + report.structures);
        return Ok(compaction.report);
    }
    compaction.pack()?;
    let usage = disk.with_chain(|chain| chain.leaf().image().usage())?;
    Ok(CompactReport {
        size_after: usage.file_size,
        payload: usage.payload,
        structures: usage.structures,
        gaps: usage.free,
        ..compaction.report
    })
}

struct Compaction<'a> {
    disk: &'a VirtualDisk,
    options: &'a CompactOptions,
    monitor: &'a Monitor,
    buffer: AlignedBuffer,
    /// Units done: bytes read, and for bytes moved [`MOVE_COST`].
    done: u64,
    /// Space of all blocks, and of the file that is not in use.
    payload: u64,
    free: u64,
    /// Space of the blocks that were looked at.
    looked_at: u64,
    /// Bytes read of a block that is zeros so far.
    empty: u64,
    /// Units that moving is expected to take.
    moves: u64,
    /// Blocks that were given back, and the bytes of their bitmaps.
    blocks: u64,
    structures: u64,
    report: CompactReport,
}

impl Compaction<'_> {
    /// Looks at every block that takes space, and gives back the space of those that hold nothing.
    fn release_blocks(&mut self) -> Result<()> {
        let mut next = 0;
        loop {
            self.monitor.checkpoint()?;
            let found = self
                .disk
                .with_chain(|chain| chain.leaf().image().next_allocated(next))?;
            let Some(found) = found else { break };
            next = found.range.end;
            let looked_at = self.looked_at;
            self.empty = 0;
            let (disk, dry_run) = (self.disk, self.options.dry_run);
            let released = if dry_run {
                disk.with_chain(|chain| self.is_unused(chain, &found))?
            } else {
                // Between the look and the release nobody may write to the block.
                disk.change_chain(|chain| {
                    if !self.is_unused(chain, &found)? {
                        return Ok(false);
                    }
                    let (leaf, ancestors) = chain.split(0);
                    leaf.image_mut().release(&found, &ancestors)
                })?
            };
            if released {
                self.report.released += found.space;
                self.structures += found.structures;
                self.blocks += 1;
            }
            self.done += LOOK_COST;
            self.looked_at = looked_at + found.space;
            self.empty = 0;
            self.estimate();
        }
        if self.report.released > 0 && !self.options.dry_run {
            self.disk.flush()?;
        }
        Ok(())
    }

    /// Tells how far it is while blocks are looked at: the others will cost what these did on average, and what was
    /// given back will be filled from the end of the file.
    fn estimate(&mut self) {
        let unseen = self.payload.saturating_sub(self.looked_at);
        // Of all that was not looked at yet, so much as `known` of what was.
        let of_unseen = |known: u64| {
            let all = u128::from(unseen) * u128::from(known) / u128::from(self.looked_at.max(1));
            u64::try_from(all).unwrap_or(u64::MAX)
        };
        let looks = of_unseen(self.done);
        // What comes is less likely to be like what was the further it is: three quarters of it are taken to be.
        let empty = self.report.released + self.empty;
        let released = empty + of_unseen(empty) / 4 * 3;
        self.moves = if self.options.dry_run {
            0
        } else {
            let live = self.payload.saturating_sub(released);
            MOVE_COST * live.min(self.free + released)
        };
        self.monitor
            .set(self.done, self.done + looks.saturating_add(self.moves));
    }

    fn is_unused(&mut self, chain: &Chain, block: &AllocatedBlock) -> Result<bool> {
        if !block.has_content {
            return Ok(true);
        }
        if self.options.mode == CompactMode::Quick {
            return Ok(false);
        }
        let mut at = block.range.start;
        while at < block.range.end {
            let extent = chain.map(at, block.range.end - at)?;
            if extent.data.is_some() {
                let n = extent.length.min(READ as u64);
                let part = &mut self.buffer[..to_usize(n)];
                chain.read_at(at, part)?;
                self.done += n;
                self.looked_at += n;
                let is_zero = is_zero(part);
                self.empty += if is_zero { n } else { 0 };
                // A block may be large, and have to be read to its end.
                self.estimate();
                if !is_zero {
                    return Ok(false);
                }
                at += n;
            } else {
                at += extent.length;
            }
        }
        Ok(true)
    }

    fn pack(&mut self) -> Result<()> {
        let mut budget = FIRST_STEP;
        loop {
            self.monitor.checkpoint()?;
            let begun = Instant::now();
            let (monitor, done, all) = (self.monitor, self.done, self.done + self.moves);
            let moved = AtomicU64::new(0);
            let told = |bytes: u64| {
                let now = done + MOVE_COST * (moved.fetch_add(bytes, Relaxed) + bytes);
                monitor.set(now, all.max(now));
            };
            let step = self.disk.change_chain(|chain| {
                let leaf = chain.split(0).0.image_mut();
                leaf.pack_telling(budget, &told)
            })?;
            budget = match begun.elapsed() {
                time if time < STEP_TIME / 2 => budget * 4,
                time if time > STEP_TIME * 3 / 2 => budget / 2,
                _ => budget,
            }
            .clamp(*STEPS.start(), *STEPS.end());
            self.report.moved += step.moved;
            self.done += MOVE_COST * step.moved;
            self.moves = MOVE_COST * step.left;
            self.monitor.set(self.done, self.done + self.moves);
            if step.left == 0 {
                return Ok(());
            }
        }
    }
}
