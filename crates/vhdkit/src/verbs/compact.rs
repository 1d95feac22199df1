//! `compact`: gives back the space of blocks that hold nothing, and moves the others together.
//!
//! In place and in small steps, each of which leaves a whole disk: requests of others run between them, a cancelled or
//! killed compaction leaves a disk that reads as before and can be run again, and no second copy's space is needed.

mod look;

use std::ops::{Range, RangeInclusive};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use crate::disk::VirtualDisk;
use crate::error::{Context, Error, ErrorKind, Result};
use crate::image::{DiskType, Format, Image, PackingStep, Usage};
use crate::num::{GIB, MIB};
use crate::operation::{Monitor, Operation};
use look::{Look, Seen};

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

/// The same for looking at blocks, in bytes to be read of them.
const FIRST_LOOK: u64 = 32 * look::COST;
const LOOKS: RangeInclusive<u64> = look::COST..=64 * MIB;
const LOOK_TIME: Duration = Duration::from_millis(20);

/// So many bytes are moved, or so much time goes by, before they are made durable: more would be done again if the
/// process were killed, and less would let the disk wait more often.
const COMMIT: u64 = GIB;
const COMMIT_TIME: Duration = Duration::from_secs(2);

/// A byte of a table takes so much longer than one of a block: each word of it is looked at.
const TABLE_COST: u64 = 64;

/// A byte that is moved is read and written.
const MOVE_COST: u64 = 2;

/// Cutting off takes so much less time than reading.
const CUT_GAIN: u64 = 8;

/// The tables are read so often again once it is known what is in use, of the two times that this takes: before the first
/// change, for the plan of what moves (twice), to cut off the rest, and for the report.
const READINGS: u64 = 5;

/// Compacts the leaf of a disk that was opened for writing (or, to predict, in any way). What the disk reads does not
/// change, nor do the identities that its children have recorded. Units of progress: bytes to be read, twice those to be
/// moved, a part of those to be cut off.
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
    let (mut tables, mut reading) = (0, 0);
    let readings = if options.dry_run { 0 } else { READINGS };
    let usage = disk.with_chain(|chain| {
        let image = chain.leaf().image();
        let file_size = image.storage().len()?;
        // Nobody knows yet which blocks are there, how much of each will have to be read, and what will go.
        let looks = info
            .block_size
            .map_or(1, |block| file_size / block * look::LEAST);
        let cuts = if options.dry_run {
            0
        } else {
            file_size / CUT_GAIN
        };
        image.usage_telling(&mut |read, all| {
            tables = read.saturating_mul(TABLE_COST);
            reading = all.saturating_mul(TABLE_COST) / 2;
            let all = reading.saturating_mul(2 + readings);
            monitor.set(
                tables,
                all.saturating_add(looks.max(1)).saturating_add(cuts),
            );
            monitor.checkpoint()
        })
    })?;
    let seen = Seen {
        payload: usage.payload,
        free: usage.free,
        tables,
        later: reading.saturating_mul(readings),
        moves: !options.dry_run,
        ..Seen::default()
    };
    let looks = usage.allocated_blocks.saturating_mul(look::LEAST).max(1);
    let all = looks.saturating_add(seen.left().all());
    monitor.set(tables, tables.saturating_add(all));
    let mut compaction = Compaction {
        disk,
        options,
        monitor,
        seen,
        done: 0,
        left: Left::default(),
        is_prepared: false,
        blocks: 0,
        structures: 0,
        report: CompactReport {
            size_before: usage.file_size,
            ..CompactReport::default()
        },
    };
    if options.dry_run {
        compaction.release_blocks()?;
        let block = usage.payload / usage.allocated_blocks.max(1);
        let (blocks, structures) = (compaction.blocks, compaction.structures);
        let report = &mut compaction.report;
        report.payload = usage.payload - (blocks * block).min(usage.payload);
        report.structures = usage.structures - structures.min(usage.structures);
        // Gaps that align blocks go with them, also one that packing would have closed.
        let least = report.payload + report.structures;
        report.size_after = usage.packed_size.saturating_sub(report.released).max(least);
        report.gaps = report.size_after - least;
        return Ok(compaction.report);
    }
    let packed = compaction.release_blocks().and_then(|()| {
        let gains = compaction.report.released > 0 || usage.packed_size < usage.file_size;
        if gains {
            compaction.pack()?;
        } else {
            monitor.set(compaction.done, compaction.done);
        }
        Ok(gains)
    });
    disk.change_chain(|chain| chain.split(0).0.image_mut().end_packing());
    let usage = if packed? {
        compaction.report_usage()?
    } else {
        usage
    };
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
    seen: Seen,
    /// Units done: bytes read, also of tables, for bytes moved [`MOVE_COST`], and a part of those cut off.
    done: u64,
    left: Left,
    /// The image has been told that blocks will be given back.
    is_prepared: bool,
    /// Blocks that were given back, and the bytes of their bitmaps.
    blocks: u64,
    structures: u64,
    report: CompactReport,
}

/// Units of each kind: those that are expected to come.
#[derive(Clone, Copy, Default)]
struct Left {
    moves: u64,
    cuts: u64,
    tables: u64,
}

impl Left {
    fn all(self) -> u64 {
        self.moves
            .saturating_add(self.cuts)
            .saturating_add(self.tables)
    }

    fn at_least(self, other: Self) -> Self {
        Self {
            moves: self.moves.max(other.moves),
            cuts: self.cuts.max(other.cuts),
            tables: self.tables.max(other.tables),
        }
    }
}

/// Before the first block is given back: what that has to know is read, and that is seen.
fn prepare(image: &mut dyn Image, seen: &mut Seen, monitor: &Monitor) -> Result<()> {
    let (done, all) = (seen.done(), seen.all());
    let mut units = 0;
    image.prepare_packing(&mut |read, _| {
        units = read.saturating_mul(TABLE_COST);
        let now = done.saturating_add(units);
        monitor.set(now, all.max(now));
        monitor.checkpoint()
    })?;
    seen.tables = seen.tables.saturating_add(units);
    seen.later = seen.later.saturating_sub(units);
    Ok(())
}

/// How much to do at a time next, by how long the last took.
fn adapted(last: u64, took: Duration, wanted: Duration, bounds: &RangeInclusive<u64>) -> u64 {
    let next = match took {
        time if time < wanted / 2 => last * 4,
        time if time > wanted * 3 / 2 => last / 2,
        _ => last,
    };
    next.clamp(*bounds.start(), *bounds.end())
}

impl Compaction<'_> {
    /// Looks at every block that takes space, and gives back the space of those that hold nothing.
    fn release_blocks(&mut self) -> Result<()> {
        let (mut next, mut budget) = (Some(0), FIRST_LOOK);
        let threads = look::threads();
        while let Some(from) = next {
            self.monitor.checkpoint()?;
            let begun = Instant::now();
            let look = Look {
                monitor: self.monitor,
                mode: self.options.mode,
                threads,
            };
            let (disk, seen, monitor) = (self.disk, &mut self.seen, self.monitor);
            let batch = if self.options.dry_run {
                disk.with_chain(|chain| look.at(chain, from, budget, seen))?
            } else {
                // Between the look and the release nobody may write to the blocks.
                let is_prepared = &mut self.is_prepared;
                disk.change_chain(|chain| {
                    let mut batch = look.at(chain, from, budget, seen)?;
                    let (leaf, ancestors) = chain.split(0);
                    if !batch.unused.is_empty() && !std::mem::replace(is_prepared, true) {
                        prepare(leaf.image_mut(), seen, monitor)?;
                    }
                    let mut released = Vec::with_capacity(batch.unused.len());
                    for block in batch.unused {
                        if leaf.image_mut().release(&block, &ancestors)? {
                            released.push(block);
                        }
                    }
                    batch.unused = released;
                    Ok(batch)
                })?
            };
            for block in &batch.unused {
                self.report.released += block.space;
                self.structures += block.structures;
                self.blocks += 1;
            }
            self.seen.released = self.report.released;
            self.seen.empty = 0;
            self.seen.tell(self.monitor);
            budget = adapted(budget, begun.elapsed(), LOOK_TIME, &LOOKS);
            next = batch.next;
        }
        (self.done, self.left) = (self.seen.done(), self.seen.left());
        Ok(())
    }

    fn pack(&mut self) -> Result<()> {
        let mut budget = FIRST_STEP;
        let (mut uncommitted, mut committed) = (0, Instant::now());
        loop {
            self.monitor.checkpoint()?;
            let begun = Instant::now();
            let (monitor, done, left) = (self.monitor, self.done, self.left);
            let [read, moved, cut] = [const { AtomicU64::new(0) }; 3];
            let told = |step| {
                let (of_this, bytes) = match step {
                    PackingStep::Read(bytes) => (&read, bytes.saturating_mul(TABLE_COST)),
                    PackingStep::Moved(bytes) => (&moved, bytes.saturating_mul(MOVE_COST)),
                    PackingStep::CutOff(bytes) => (&cut, bytes / CUT_GAIN),
                };
                of_this.fetch_add(bytes, Relaxed);
                let now = Left {
                    moves: moved.load(Relaxed),
                    cuts: cut.load(Relaxed),
                    tables: read.load(Relaxed),
                };
                // There is more than was expected if others have changed the disk between two steps.
                let all = left.at_least(now).all();
                monitor.set(done.saturating_add(now.all()), done.saturating_add(all));
                monitor.checkpoint()
            };
            let step = self.disk.change_chain(|chain| {
                let leaf = chain.split(0).0.image_mut();
                leaf.pack_telling(budget, &told)
            })?;
            budget = adapted(budget, begun.elapsed(), STEP_TIME, &STEPS);
            let [read, cut] = [read, cut].map(AtomicU64::into_inner);
            self.report.moved += step.moved;
            self.done += MOVE_COST * step.moved + read + cut;
            self.left = Left {
                moves: MOVE_COST * step.left,
                cuts: left.cuts.saturating_sub(cut),
                tables: left.tables.saturating_sub(read),
            };
            self.monitor.set(self.done, self.done + self.left.all());
            if step.left == 0 {
                return Ok(());
            }
            uncommitted += step.moved;
            if uncommitted >= COMMIT || committed.elapsed() >= COMMIT_TIME {
                self.disk.flush()?;
                (uncommitted, committed) = (0, Instant::now());
            }
        }
    }

    /// What the report says of the file afterwards. It is done: who asks to stop comes too late.
    fn report_usage(&self) -> Result<Usage> {
        let (monitor, done) = (self.monitor, self.done);
        self.disk.with_chain(|chain| {
            chain.leaf().image().usage_telling(&mut |read, all| {
                // Nothing moves any more, so the second reading is for nothing.
                let [read, all] = [read, all / 2].map(|bytes| bytes.saturating_mul(TABLE_COST));
                let read = done.saturating_add(read);
                monitor.set(read, done.saturating_add(all).max(read));
                Ok(())
            })
        })
    }
}
