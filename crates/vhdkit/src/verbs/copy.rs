//! The pipeline under `convert`: the source's data, read once, into the places that a new image gives it.
//!
//! A few threads take pieces of the source in the order of the disk. Each reads its piece, looks for zeros while the
//! bytes are in the cache, asks the target for places when it is its turn (so that the new file lies in the order of
//! the disk, whatever the threads do), and writes. Where the file system can share blocks between the two files,
//! nothing is read and one thread does it all.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use super::look::{LONGEST, Looks};
use super::new_builder_telling;
use crate::disk::{DataLocation, DiskExtent, VirtualDisk};
use crate::error::{Error, ErrorKind, Result};
use crate::image::{CreateParameters, ImageBuilder};
use crate::num::{round_down, round_up, to_usize};
use crate::operation::Monitor;
use crate::storage::{AlignedBuffer, Storage};
use crate::zeros::data_runs;

/// What a thread copies at a time, in bytes.
const PIECE: u64 = 2 * 1024 * 1024;
/// What is cloned at a time: more, since nothing is moved.
const CLONE_PIECE: u64 = 64 * 1024 * 1024;
/// What is read at a time: small enough to be in the cache when it is looked at for zeros.
const READ: usize = 256 * 1024;
/// Zeros shorter than this are written like data.
const ZERO_GRAIN: usize = 64 * 1024;
/// File systems share whole blocks; none has larger ones than it has pages.
const CLONE_ALIGNMENT: u64 = 4096;
/// More than there are processors, so that some write while others read.
const THREADS: usize = 4;
/// So many extents are remembered from the plan: some MiB at most.
const MAX_EXTENTS: usize = 32 * 1024;

/// What was done, in bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Copied {
    /// Written.
    pub(super) copied: u64,
    /// Shared by the file system.
    pub(super) cloned: u64,
}

/// So many nanoseconds of reserving space count as copying a byte. Mostly that takes no time at all; a file system in
/// memory writes zeros.
const NANOS_PER_UNIT: u128 = 2;

/// Starts the new image, and with it reserves its space if it is fixed. Returns the units of progress that this took, too.
pub(super) fn new_target(
    source: &VirtualDisk,
    target: Arc<dyn Storage>,
    parameters: &CreateParameters,
    monitor: &Monitor,
) -> Result<(Box<dyn ImageBuilder>, u64)> {
    // Nobody knows yet how much will have to be copied.
    let copies = source.with_chain(|chain| {
        chain.layers().iter().try_fold(0_u64, |sum, layer| {
            Ok::<_, Error>(sum.saturating_add(layer.image().storage().len()?))
        })
    })?;
    let begun = Instant::now();
    let mut units = 0;
    let builder = new_builder_telling(target, parameters, &mut |done, all| {
        let spent = begun.elapsed().as_nanos() / NANOS_PER_UNIT;
        let whole = spent * u128::from(all) / u128::from(done.max(1));
        let saturated = |units| u64::try_from(units).unwrap_or(u64::MAX);
        units = saturated(spent);
        monitor.set(units, saturated(whole + u128::from(copies.max(1))));
        monitor.checkpoint()
    })?;
    Ok((builder, units))
}

/// What there is to copy.
pub(super) struct Plan {
    /// Bytes that the maps call data.
    pub(super) data: u64,
    /// Blocks of the target that data falls into.
    blocks: u64,
    range: Range<u64>,
    /// The first extents with data, last one first; what follows is looked up again.
    extents: Vec<(u64, DataLocation, u64)>,
    /// The end of what `extents` describes.
    known_until: u64,
}

impl Plan {
    /// Asks the maps. `unit` is the target's block size in bytes, `done` the units of progress so far. Afterwards the
    /// monitor knows how much there is to do.
    pub(super) fn new(
        source: &VirtualDisk,
        range: Range<u64>,
        unit: u64,
        done: u64,
        monitor: &Monitor,
    ) -> Result<Self> {
        let mut plan = Self {
            data: 0,
            blocks: 0,
            known_until: range.start,
            range: range.clone(),
            extents: Vec::new(),
        };
        // The first block that was not counted yet.
        let mut block = range.start / unit;
        let mut looks = Looks::new(monitor, range.end).among(done, 0);
        let mut offset = range.start;
        while offset < range.end {
            let longest = (range.end - offset).min(LONGEST);
            let DiskExtent { length, data } = source.map(offset, longest)?;
            if let Some(data) = data {
                plan.data += length;
                let end = (offset + length).div_ceil(unit);
                plan.blocks += end - block.max(offset / unit).min(end);
                block = block.max(end);
                if plan.extents.len() < MAX_EXTENTS {
                    plan.extents.push((offset, data, length));
                    plan.known_until = offset + length;
                }
            } else if plan.extents.len() < MAX_EXTENTS {
                plan.known_until = offset + length;
            }
            offset += length;
            looks.seen(offset, plan.data)?;
        }
        looks.are_over(plan.data);
        plan.extents.reverse();
        Ok(plan)
    }
}

/// Copies what was planned. Progress advances by the bytes of data dealt with.
pub(super) fn copy(
    source: &VirtualDisk,
    plan: Plan,
    target: &dyn ImageBuilder,
    monitor: &Monitor,
) -> Result<Copied> {
    let layers: Vec<Arc<dyn Storage>> = source.with_chain(|c| {
        c.layers()
            .iter()
            .map(|l| l.image().storage().clone())
            .collect()
    });
    let clone = layers
        .first()
        .is_some_and(|leaf| target.storage().can_clone_from(&**leaf));
    if !clone {
        target.expect_blocks(plan.blocks);
    }
    let copier = Copier {
        source,
        layers,
        target,
        monitor,
        piece: if clone {
            CLONE_PIECE
        } else {
            PIECE.min(target.placement_unit())
        },
        clone,
        cursor: Mutex::new(Cursor {
            at: plan.range.start,
            plan,
            extent: None,
            ticket: 0,
        }),
        turn: Mutex::default(),
        next_turn: Default::default(),
        failed: Mutex::new(None),
        stop: AtomicBool::new(false),
        copied: AtomicU64::new(0),
        cloned: AtomicU64::new(0),
    };
    std::thread::scope(|scope| {
        for _ in 1..if clone { 1 } else { THREADS } {
            // If no further thread can be started the present one does it all.
            let _ = std::thread::Builder::new()
                .name("copy".into())
                .spawn_scoped(scope, || copier.run());
        }
        copier.run();
    });
    match copier
        .failed
        .into_inner()
        .unwrap_or_else(PoisonError::into_inner)
    {
        Some(error) => Err(error),
        None => Ok(Copied {
            copied: copier.copied.into_inner(),
            cloned: copier.cloned.into_inner(),
        }),
    }
}

struct Copier<'a> {
    source: &'a VirtualDisk,
    /// Where the bytes of the source's extents are, by layer.
    layers: Vec<Arc<dyn Storage>>,
    target: &'a dyn ImageBuilder,
    monitor: &'a Monitor,
    /// Longest piece, and the multiple of the disk that it does not cross.
    piece: u64,
    clone: bool,
    cursor: Mutex<Cursor>,
    turn: Mutex<Turn>,
    /// One for each thread, by its ticket: only who is next is woken.
    next_turn: [Condvar; THREADS],
    failed: Mutex<Option<Error>>,
    stop: AtomicBool,
    copied: AtomicU64,
    cloned: AtomicU64,
}

#[derive(Default)]
struct Turn {
    /// The ticket of the piece that may ask for places now.
    ticket: u64,
    /// Whose turn is waited for, by ticket modulo [`THREADS`]: no more tickets are out at a time.
    waiting: [bool; THREADS],
}

struct Cursor {
    at: u64,
    plan: Plan,
    /// What is left of the extent at `at`.
    extent: Option<(DataLocation, u64)>,
    ticket: u64,
}

/// A run of the disk that is contiguous in one file.
struct Piece {
    ticket: u64,
    offset: u64,
    length: u64,
    from: DataLocation,
}

/// What one thread reuses from piece to piece.
struct Scratch {
    buffer: AlignedBuffer,
    runs: Vec<Range<usize>>,
    found: Vec<Range<usize>>,
    /// Offset in the target, range of the buffer.
    writes: Vec<(u64, Range<usize>)>,
}

impl Copier<'_> {
    fn run(&self) {
        /// A thread that panics would never pass its turn on.
        struct StopOnPanic<'a>(&'a Copier<'a>);
        impl Drop for StopOnPanic<'_> {
            fn drop(&mut self) {
                if std::thread::panicking() {
                    self.0.stop();
                }
            }
        }
        let _guard = StopOnPanic(self);
        let mut scratch = Scratch {
            buffer: AlignedBuffer::new(if self.clone {
                READ
            } else {
                to_usize(self.piece)
            }),
            runs: Vec::new(),
            found: Vec::new(),
            writes: Vec::new(),
        };
        while !self.stop.load(Relaxed) {
            let result = self.monitor.checkpoint().and_then(|()| self.next_piece());
            let result = match result {
                Ok(None) => return,
                Ok(Some(piece)) if self.clone => self.clone_piece(&piece, &mut scratch),
                Ok(Some(piece)) => self.copy_piece(&piece, &mut scratch),
                Err(e) => Err(e),
            };
            if let Err(error) = result {
                lock(&self.failed).get_or_insert(error);
                self.stop();
            }
        }
    }

    /// Ends the work of all threads.
    fn stop(&self) {
        self.stop.store(true, Relaxed);
        // Whoever waits for a turn that never comes has to look again.
        drop(lock(&self.turn));
        self.next_turn.iter().for_each(Condvar::notify_one);
    }

    fn next_piece(&self) -> Result<Option<Piece>> {
        let mut cursor = lock(&self.cursor);
        while cursor.extent.is_none() {
            if let Some((offset, data, length)) = cursor.plan.extents.pop() {
                cursor.at = offset;
                cursor.extent = Some((data, length));
                break;
            }
            let (at, end) = (
                cursor.at.max(cursor.plan.known_until),
                cursor.plan.range.end,
            );
            if at >= end {
                return Ok(None);
            }
            cursor.at = at;
            let extent = self.source.map(at, end - at)?;
            match extent.data {
                Some(data) => cursor.extent = Some((data, extent.length)),
                None => cursor.at += extent.length,
            }
        }
        let Some((from, left)) = cursor.extent else {
            return Ok(None);
        };
        let length = left.min(self.piece - cursor.at % self.piece);
        let piece = Piece {
            ticket: cursor.ticket,
            offset: cursor.at,
            length,
            from,
        };
        cursor.ticket += 1;
        cursor.at += length;
        cursor.extent = (left > length).then(|| {
            let storage_offset = from.storage_offset + length;
            (
                DataLocation {
                    storage_offset,
                    ..from
                },
                left - length,
            )
        });
        Ok(Some(piece))
    }

    fn copy_piece(&self, piece: &Piece, scratch: &mut Scratch) -> Result<()> {
        let Scratch {
            buffer,
            runs,
            found,
            writes,
        } = scratch;
        let from = self.storage_of(piece.from)?;
        let buffer = &mut buffer[..to_usize(piece.length)];
        runs.clear();
        for (i, part) in buffer.chunks_mut(READ).enumerate() {
            let at = i * READ;
            from.read_at(piece.from.storage_offset + at as u64, part)?;
            data_runs(part, ZERO_GRAIN, found);
            for run in found.iter() {
                match runs.last_mut() {
                    Some(last) if last.end == at + run.start => last.end = at + run.end,
                    _ => runs.push(at + run.start..at + run.end),
                }
            }
        }
        if !self.wait_for_turn(piece.ticket) {
            return Ok(());
        }
        writes.clear();
        for run in runs.iter() {
            let place = self.target.place(
                piece.offset + run.start as u64,
                (run.end - run.start) as u64,
            )?;
            writes.push((place, run.clone()));
        }
        self.pass_turn();
        for (place, run) in writes.iter() {
            self.target
                .storage()
                .write_bulk(*place, &buffer[run.clone()])?;
            self.copied.fetch_add((run.end - run.start) as u64, Relaxed);
        }
        self.monitor.advance(piece.length);
        Ok(())
    }

    fn clone_piece(&self, piece: &Piece, scratch: &mut Scratch) -> Result<()> {
        let unit = self.target.placement_unit();
        let (mut at, end) = (piece.offset, piece.offset + piece.length);
        // Neighbouring places are cloned as one.
        let mut run: Option<(u64, u64, u64)> = None;
        while at < end {
            let n = (end - at).min(unit - at % unit);
            let place = self.target.place(at, n)?;
            let source_offset = piece.from.storage_offset + (at - piece.offset);
            run = match run {
                Some((from, to, length)) if to + length == place => Some((from, to, length + n)),
                Some(whole) => {
                    self.clone_run(piece.from, whole, scratch)?;
                    Some((source_offset, place, n))
                }
                None => Some((source_offset, place, n)),
            };
            at += n;
        }
        if let Some(whole) = run {
            self.clone_run(piece.from, whole, scratch)?;
        }
        self.monitor.advance(piece.length);
        Ok(())
    }

    /// Clones the whole blocks of a run (source offset, target offset, length) and copies what is left of it.
    fn clone_run(
        &self,
        layer: DataLocation,
        (from_at, to_at, length): (u64, u64, u64),
        scratch: &mut Scratch,
    ) -> Result<()> {
        let from = self.storage_of(layer)?;
        let to = &**self.target.storage();
        let head = (round_up(from_at, CLONE_ALIGNMENT) - from_at).min(length);
        let body = round_down(length - head, CLONE_ALIGNMENT);
        let aligned = from_at % CLONE_ALIGNMENT == to_at % CLONE_ALIGNMENT;
        if aligned && body > 0 && to.clone_range_from(from, from_at + head, to_at + head, body)? {
            self.cloned.fetch_add(body, Relaxed);
            let tail = head + body;
            self.copy_run(from, to, (from_at, to_at, head), scratch)?;
            return self.copy_run(
                from,
                to,
                (from_at + tail, to_at + tail, length - tail),
                scratch,
            );
        }
        self.copy_run(from, to, (from_at, to_at, length), scratch)
    }

    fn copy_run(
        &self,
        from: &dyn Storage,
        to: &dyn Storage,
        (from_at, to_at, length): (u64, u64, u64),
        scratch: &mut Scratch,
    ) -> Result<()> {
        let mut done = 0;
        while done < length {
            self.monitor.checkpoint()?;
            let n = (length - done).min(scratch.buffer.len() as u64);
            let part = &mut scratch.buffer[..to_usize(n)];
            from.read_at(from_at + done, part)?;
            data_runs(part, ZERO_GRAIN, &mut scratch.found);
            for run in &scratch.found {
                to.write_at(to_at + done + run.start as u64, &part[run.clone()])?;
                self.copied.fetch_add((run.end - run.start) as u64, Relaxed);
            }
            done += n;
        }
        Ok(())
    }

    /// Waits until every earlier piece has its places; false if the work has failed meanwhile.
    fn wait_for_turn(&self, ticket: u64) -> bool {
        let mut turn = lock(&self.turn);
        let slot = to_usize(ticket % THREADS as u64);
        while turn.ticket != ticket {
            if self.stop.load(Relaxed) {
                return false;
            }
            turn.waiting[slot] = true;
            turn = self.next_turn[slot]
                .wait(turn)
                .unwrap_or_else(PoisonError::into_inner);
        }
        turn.waiting[slot] = false;
        true
    }

    fn pass_turn(&self) {
        let mut turn = lock(&self.turn);
        turn.ticket += 1;
        let slot = to_usize(turn.ticket % THREADS as u64);
        let waiting = turn.waiting[slot];
        drop(turn);
        if waiting {
            self.next_turn[slot].notify_one();
        }
    }

    fn storage_of(&self, from: DataLocation) -> Result<&dyn Storage> {
        match self.layers.get(from.layer) {
            Some(storage) => Ok(&**storage),
            None => Err(Error::new(
                ErrorKind::Io,
                "internal error: an extent of no layer",
            )),
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
