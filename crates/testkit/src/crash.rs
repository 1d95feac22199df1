//! Storage that records its history, and what a crash could leave of it.
//!
//! The world it simulates is the durability contract at the head of `vhdkit::storage`: after `flush` everything
//! earlier is on the medium; before that, each 512-byte sector of each unflushed operation is there or not, whatever
//! happened to the others. What follows from it:
//!
//! 1. Reordering needs no case of its own: of several unflushed writes to one sector, any may be the last that
//!    survived, because each later one may be lost.
//! 2. A sector holds what the whole sector held in memory when it was written: parts of a sector do not tear.
//! 3. The length is metadata of a journalling file system: changes of length happen or do not, in their order; a
//!    write that survived makes the file reach to its end; bytes nobody wrote are zeros.
//! 4. It is enough to look at the ends of epochs (just before a flush takes effect): what a crash in the middle of an
//!    epoch leaves is also left by one at its end that loses the later operations.

use std::fmt::Write as _;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vhdkit::Result;
use vhdkit::storage::{MemoryStorage, Storage};

use crate::rng::{Rng, mix};

/// The unit that is written as a whole or not at all, in bytes.
pub const SECTOR: u64 = 512;

/// One recorded operation.
#[derive(Clone, Debug)]
pub enum Op {
    /// Whole sectors from `offset` on; the file reaches at least to `end` afterwards.
    Write {
        /// Multiple of 512.
        offset: u64,
        /// What the sectors hold; a multiple of 512 long.
        data: Arc<[u8]>,
        /// Where the bytes that were asked for end.
        end: u64,
    },
    /// Whole sectors made zero; never changes the length.
    Zero {
        /// Multiple of 512.
        offset: u64,
        /// Multiple of 512.
        length: u64,
    },
    /// The file's new length.
    SetLen(u64),
    /// The file is at least this long.
    Allocate(u64),
    /// The barrier.
    Flush,
}

impl Op {
    /// In how many parts it can be torn.
    fn sectors(&self) -> u64 {
        match self {
            Op::Write { data, .. } => data.len() as u64 / SECTOR,
            Op::Zero { length, .. } => length / SECTOR,
            Op::SetLen(_) | Op::Allocate(_) | Op::Flush => 1,
        }
    }
}

impl std::fmt::Display for Op {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Op::Write { offset, data, end } => {
                let head: String = data
                    .iter()
                    .take(8)
                    .map(|&b| if b.is_ascii_graphic() { b as char } else { '.' })
                    .collect();
                write!(
                    f,
                    "write {offset:#x}+{:#x} (to {end:#x}) \"{head}\"",
                    data.len()
                )
            }
            Op::Zero { offset, length } => write!(f, "zero {offset:#x}+{length:#x}"),
            Op::SetLen(length) => write!(f, "set_len {length:#x}"),
            Op::Allocate(end) => write!(f, "allocate to {end:#x}"),
            Op::Flush => write!(f, "flush"),
        }
    }
}

/// What became of an unflushed operation.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fate {
    /// It never reached the medium.
    Lost,
    /// All of it did.
    Whole,
    /// Only the sectors before this one did.
    Before(u64),
    /// Only this sector and those after it did.
    From(u64),
    /// Only this sector did.
    Only(u64),
    /// Each sector did or did not, by the toss of a coin.
    Tossed(u64),
}

impl Fate {
    fn spares(self, sector: u64) -> bool {
        match self {
            Fate::Lost => false,
            Fate::Whole => true,
            Fate::Before(n) => sector < n,
            Fate::From(n) => sector >= n,
            Fate::Only(n) => sector == n,
            Fate::Tossed(seed) => mix(seed ^ sector) & 1 == 0,
        }
    }
}

/// A file in memory that remembers everything that was done to it.
pub struct CrashStorage {
    state: Mutex<State>,
}

struct State {
    live: MemoryStorage,
    base: MemoryStorage,
    ops: Vec<Op>,
    /// When each operation was recorded.
    times: Vec<u64>,
    clock: Arc<AtomicU64>,
    flushes: usize,
    /// This flush is reported as done but is none.
    lost_flush: Option<usize>,
}

impl CrashStorage {
    /// A file whose content so far is durable.
    pub fn new(durable: &MemoryStorage) -> Arc<Self> {
        Self::losing_a_flush(durable, None)
    }

    /// As [`CrashStorage::new`], but the flush of this number does nothing, as on a disk that lies: what the tests would
    /// see if the format had forgotten it.
    pub fn losing_a_flush(durable: &MemoryStorage, lost: Option<usize>) -> Arc<Self> {
        Self::with_clock(durable, lost, Arc::default())
    }

    /// Several files of one machine: a crash meets all of them at the same moment, a flush only its own file.
    pub fn together(durable: &[&MemoryStorage]) -> Vec<Arc<Self>> {
        let clock = Arc::<AtomicU64>::default();
        durable
            .iter()
            .map(|file| Self::with_clock(file, None, clock.clone()))
            .collect()
    }

    fn with_clock(
        durable: &MemoryStorage,
        lost: Option<usize>,
        clock: Arc<AtomicU64>,
    ) -> Arc<Self> {
        Arc::new(Self {
            state: Mutex::new(State {
                live: durable.clone(),
                base: durable.clone(),
                ops: Vec::new(),
                times: Vec::new(),
                clock,
                flushes: 0,
                lost_flush: lost,
            }),
        })
    }

    /// How many flushes were asked for.
    pub fn flushes(&self) -> usize {
        self.lock().flushes
    }

    /// How many operations were recorded so far.
    pub fn position(&self) -> usize {
        self.lock().ops.len()
    }

    /// The history up to now.
    pub fn recording(&self) -> Recording {
        let state = self.lock();
        Recording {
            base: state.base.clone(),
            ops: state.ops.clone(),
            times: state.times.clone(),
        }
    }

    /// The file as its user sees it now.
    pub fn live(&self) -> MemoryStorage {
        self.lock().live.clone()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn record(&mut self, op: Op) {
        self.ops.push(op);
        self.times.push(self.clock.fetch_add(1, SeqCst));
    }

    /// Records the sectors that a change of `start..end` touched, as they are now.
    fn record_write(&mut self, start: u64, end: u64) -> Result<()> {
        let offset = start - start % SECTOR;
        let aligned_end = end.next_multiple_of(SECTOR);
        let mut data = vec![0; (aligned_end - offset) as usize];
        let inside = self.live.len()?.min(aligned_end) - offset;
        self.live.read_at(offset, &mut data[..inside as usize])?;
        self.record(Op::Write {
            offset,
            data: data.into(),
            end,
        });
        Ok(())
    }

    fn zero(&mut self, offset: u64, length: u64) -> Result<()> {
        let end = (offset + length).min(self.live.len()?);
        if offset >= end {
            return Ok(());
        }
        self.live.zero_range(offset, end - offset)?;
        let first = offset.next_multiple_of(SECTOR);
        let last = end - end % SECTOR;
        if first > last {
            return self.record_write(offset, end);
        }
        if offset < first {
            self.record_write(offset, first)?;
        }
        if first < last {
            self.record(Op::Zero {
                offset: first,
                length: last - first,
            });
        }
        if last < end {
            self.record_write(last, end)?;
        }
        Ok(())
    }
}

impl Storage for CrashStorage {
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        self.lock().live.read_at(offset, buf)
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> Result<()> {
        if data.is_empty() {
            return Ok(());
        }
        let mut state = self.lock();
        state.live.write_at(offset, data)?;
        state.record_write(offset, offset + data.len() as u64)
    }

    fn flush(&self) -> Result<()> {
        let mut state = self.lock();
        if state.lost_flush != Some(state.flushes) {
            state.record(Op::Flush);
        }
        state.flushes += 1;
        Ok(())
    }

    fn len(&self) -> Result<u64> {
        self.lock().live.len()
    }

    fn set_len(&self, length: u64) -> Result<()> {
        let mut state = self.lock();
        state.live.set_len(length)?;
        state.record(Op::SetLen(length));
        Ok(())
    }

    fn allocate(&self, offset: u64, length: u64) -> Result<()> {
        let mut state = self.lock();
        state.live.allocate(offset, length)?;
        state.record(Op::Allocate(offset + length));
        Ok(())
    }

    fn punch_hole(&self, offset: u64, length: u64) -> Result<()> {
        self.lock().zero(offset, length)
    }

    fn zero_range(&self, offset: u64, length: u64) -> Result<()> {
        self.lock().zero(offset, length)
    }

    fn next_data(&self, range: Range<u64>) -> Result<Option<Range<u64>>> {
        self.lock().live.next_data(range)
    }
}

/// A history.
#[derive(Clone)]
pub struct Recording {
    base: MemoryStorage,
    ops: Vec<Op>,
    times: Vec<u64>,
}

/// The moments just before a flush of any of the files takes effect, and the end: what each file is then. For files
/// recorded [together](CrashStorage::together).
pub fn moments(recordings: &[Recording]) -> Vec<Vec<Epoch>> {
    let mut all: Vec<(u64, usize, &Op)> = recordings
        .iter()
        .enumerate()
        .flat_map(|(file, r)| {
            r.times
                .iter()
                .zip(&r.ops)
                .map(move |(&t, op)| (t, file, op))
        })
        .collect();
    all.sort_by_key(|&(time, _, _)| time);
    let mut files: Vec<(MemoryStorage, Vec<Op>)> = recordings
        .iter()
        .map(|r| (r.base.clone(), Vec::new()))
        .collect();
    let look = |files: &[(MemoryStorage, Vec<Op>)], position: usize| {
        files
            .iter()
            .map(|(durable, pending)| Epoch {
                durable: durable.clone(),
                pending: pending.clone(),
                position,
            })
            .collect()
    };
    let mut moments = Vec::new();
    for (position, &(_, file, op)) in all.iter().enumerate() {
        if !matches!(op, Op::Flush) {
            files[file].1.push(op.clone());
            continue;
        }
        if !files[file].1.is_empty() {
            moments.push(look(&files, position));
            let (durable, pending) = &mut files[file];
            for op in pending.drain(..) {
                apply(durable, &op, Fate::Whole);
            }
        }
    }
    moments.push(look(&files, all.len()));
    moments
}

/// The operations between two barriers.
pub struct Epoch {
    /// What is on the medium for certain.
    pub durable: MemoryStorage,
    /// What may be there or not.
    pub pending: Vec<Op>,
    /// How many operations were recorded before this point (a flush that was begun here has not ended).
    pub position: usize,
}

/// How many crash images to look at.
#[derive(Clone, Copy, Debug)]
pub struct Sampling {
    /// Epochs of up to this many operations: every subset.
    pub exhaustive: usize,
    /// Random subsets of longer epochs, and random choices per sector.
    pub random: usize,
    /// Images in which one operation is torn.
    pub torn: usize,
}

impl Sampling {
    /// Enough to find ordering bugs in seconds.
    pub const SHORT: Sampling = Sampling {
        exhaustive: 6,
        random: 16,
        torn: 24,
    };

    /// Every subset of epochs of up to eight operations, many samples beyond.
    pub const THOROUGH: Sampling = Sampling {
        exhaustive: 8,
        random: 128,
        torn: 256,
    };

    /// [`Sampling::SHORT`], or more if `VHDKIT_CRASH=thorough` is set.
    pub fn from_environment() -> Self {
        match std::env::var("VHDKIT_CRASH").as_deref() {
            Ok("thorough") => Self::THOROUGH,
            _ => Self::SHORT,
        }
    }
}

impl Recording {
    /// The recorded operations.
    pub fn ops(&self) -> &[Op] {
        &self.ops
    }

    /// The file as a process that was killed after so many operations left it to the next one: what was flushed is
    /// durable, everything later is in the system's cache and waits for somebody's flush.
    pub fn killed_at(&self, position: usize) -> Arc<CrashStorage> {
        let ops = &self.ops[..position];
        let flushed = ops
            .iter()
            .rposition(|op| matches!(op, Op::Flush))
            .map_or(0, |last| last + 1);
        let durable = self.base.clone();
        for op in &ops[..flushed] {
            apply(&durable, op, Fate::Whole);
        }
        let storage = CrashStorage::new(&durable);
        {
            let mut state = storage.lock();
            for op in &ops[flushed..] {
                apply(&state.live, op, Fate::Whole);
                state.record(op.clone());
            }
        }
        storage
    }

    /// The epochs in their order; the last one ends where the history ends. Epochs that are empty are left out, but
    /// for the last.
    pub fn epochs(&self) -> Vec<Epoch> {
        let durable = self.base.clone();
        let mut epochs = Vec::new();
        let mut pending: Vec<Op> = Vec::new();
        for (position, op) in self.ops.iter().enumerate() {
            if !matches!(op, Op::Flush) {
                pending.push(op.clone());
                continue;
            }
            if pending.is_empty() {
                continue;
            }
            let before = durable.clone();
            for op in &pending {
                apply(&durable, op, Fate::Whole);
            }
            epochs.push(Epoch {
                durable: before,
                pending: std::mem::take(&mut pending),
                position,
            });
        }
        epochs.push(Epoch {
            durable,
            pending,
            position: self.ops.len(),
        });
        epochs
    }
}

impl Epoch {
    /// What the medium holds if the pending operations met these fates.
    pub fn image(&self, fates: &[Fate]) -> MemoryStorage {
        let image = self.durable.clone();
        for (op, &fate) in self.pending.iter().zip(fates) {
            apply(&image, op, fate);
        }
        image
    }

    /// The fates to look at: every subset if the epoch is short enough, samples otherwise, and torn operations.
    pub fn fates(&self, sampling: &Sampling, rng: &mut Rng) -> Vec<Vec<Fate>> {
        let n = self.pending.len();
        let pick = |keep: &dyn Fn(usize) -> bool| -> Vec<Fate> {
            (0..n)
                .map(|i| if keep(i) { Fate::Whole } else { Fate::Lost })
                .collect()
        };
        let mut all = Vec::new();
        if n <= sampling.exhaustive {
            all.extend((0_u64..1 << n).map(|set| pick(&|i| set >> i & 1 == 1)));
        } else {
            all.push(pick(&|_| false));
            all.push(pick(&|_| true));
            let mut some = Vec::new();
            for i in 0..n {
                some.push(pick(&|j| j <= i)); // crashed in order
                some.push(pick(&|j| j != i)); // one was lost
                some.push(pick(&|j| j == i)); // one was early
            }
            thin_out(&mut some, sampling.random * 2, rng);
            all.append(&mut some);
            for _ in 0..sampling.random {
                let set = (rng.next() & rng.next()) | (rng.next() & rng.next());
                all.push(pick(&|i| mix(set ^ i as u64) & 1 == 1));
            }
        }
        let mut torn = Vec::new();
        for (i, op) in self.pending.iter().enumerate() {
            let sectors = op.sectors();
            if sectors < 2 {
                continue;
            }
            for cut in cuts(sectors) {
                for fate in [Fate::Before(cut), Fate::From(cut), Fate::Only(cut)] {
                    let mut others = match rng.below(3) {
                        0 => pick(&|j| j < i),
                        1 => pick(&|_| true),
                        _ => {
                            let seed = rng.next();
                            pick(&|j| mix(seed ^ j as u64) & 1 == 1)
                        }
                    };
                    others[i] = fate;
                    torn.push(others);
                }
            }
        }
        thin_out(&mut torn, sampling.torn, rng);
        all.append(&mut torn);
        if self.pending.iter().any(|op| op.sectors() > 1) {
            for _ in 0..sampling.random {
                all.push((0..n).map(|_| Fate::Tossed(rng.next())).collect());
            }
        }
        all
    }

    /// The pending operations and their fates in words, to look for the bug by.
    pub fn describe(&self, fates: &[Fate]) -> String {
        let mut text = format!("crash at storage operation {}:\n", self.position);
        for (op, fate) in self.pending.iter().zip(fates) {
            let _ = writeln!(text, "  {fate:?}: {op}");
        }
        text
    }
}

/// Where to tear an operation: everywhere if it is short, else near its ends, its middle, and at pages.
fn cuts(sectors: u64) -> Vec<u64> {
    if sectors <= 16 {
        return (1..sectors).collect();
    }
    let mut cuts = vec![
        1,
        2,
        7,
        8,
        9,
        sectors / 2,
        sectors / 2 / 8 * 8,
        sectors - 8,
        sectors - 2,
        sectors - 1,
    ];
    cuts.sort_unstable();
    cuts.dedup();
    cuts
}

fn thin_out<T>(items: &mut Vec<T>, keep: usize, rng: &mut Rng) {
    while items.len() > keep {
        let i = rng.below(items.len() as u64) as usize;
        items.swap_remove(i);
    }
}

fn apply(image: &MemoryStorage, op: &Op, fate: Fate) {
    let length = || image.len().expect("memory");
    match op {
        Op::Flush => {}
        _ if fate == Fate::Lost => {}
        Op::SetLen(new) => {
            if fate.spares(0) {
                image.set_len(*new).expect("memory");
            }
        }
        Op::Allocate(end) => {
            if fate.spares(0) && *end > length() {
                image.set_len(*end).expect("memory");
            }
        }
        Op::Zero {
            offset,
            length: bytes,
        } => {
            for run in runs(fate, bytes / SECTOR) {
                let from = offset + run.start * SECTOR;
                image
                    .zero_range(from, (run.end - run.start) * SECTOR)
                    .expect("memory");
            }
        }
        Op::Write { offset, data, end } => {
            for run in runs(fate, data.len() as u64 / SECTOR) {
                let from = offset + run.start * SECTOR;
                let to = (offset + run.end * SECTOR).min(length().max(*end));
                if from < to {
                    let part = &data[(from - offset) as usize..(to - offset) as usize];
                    image.write_at(from, part).expect("memory");
                }
            }
        }
    }
}

/// The runs of sectors that survived.
fn runs(fate: Fate, sectors: u64) -> Vec<Range<u64>> {
    if fate == Fate::Whole {
        return std::iter::once(0..sectors).collect();
    }
    let mut runs: Vec<Range<u64>> = Vec::new();
    for sector in (0..sectors).filter(|&s| fate.spares(s)) {
        match runs.last_mut() {
            Some(run) if run.end == sector => run.end += 1,
            _ => runs.push(sector..sector + 1),
        }
    }
    runs
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    fn record(f: impl FnOnce(&CrashStorage)) -> Recording {
        let storage = CrashStorage::new(&MemoryStorage::from_bytes(&[0; 2048]));
        f(&storage);
        storage.recording()
    }

    fn images(epoch: &Epoch) -> HashSet<Vec<u8>> {
        epoch
            .fates(&Sampling::THOROUGH, &mut Rng::new(1))
            .iter()
            .map(|fates| epoch.image(fates).to_vec())
            .collect()
    }

    #[test]
    fn what_was_flushed_is_in_every_image_and_the_rest_in_all_combinations() {
        let recording = record(|s| {
            s.write_at(0, &[1; 512]).unwrap();
            s.flush().unwrap();
            s.write_at(512, &[2; 512]).unwrap();
            s.write_at(1024, &[3; 512]).unwrap();
        });
        let epochs = recording.epochs();
        assert_eq!(epochs.len(), 2);
        assert_eq!(images(&epochs[0]).len(), 2);
        let second = images(&epochs[1]);
        assert_eq!(second.len(), 4);
        assert!(second.iter().all(|image| image[0] == 1));
    }

    #[test]
    fn overlapping_writes_survive_in_any_order() {
        let recording = record(|s| {
            s.write_at(0, &[1; 512]).unwrap();
            s.write_at(0, &[2; 512]).unwrap();
        });
        let first: HashSet<u8> = images(&recording.epochs()[0])
            .iter()
            .map(|image| image[0])
            .collect();
        assert_eq!(first, HashSet::from([0, 1, 2]));
    }

    #[test]
    fn sectors_tear_apart_but_not_within() {
        let recording = record(|s| s.write_at(100, &[1; 1024]).unwrap());
        let images = images(&recording.epochs()[0]);
        assert_eq!(images.len(), 8, "three sectors, each there or not");
        for image in images {
            assert_eq!(image[100], image[511]);
            assert_eq!(image[99], 0);
        }
    }

    #[test]
    fn a_length_that_is_not_durable_is_the_end_of_what_is() {
        let recording = record(|s| {
            s.set_len(8192).unwrap();
            s.write_at(4096, &[1; 512]).unwrap();
        });
        let lengths: HashSet<usize> = images(&recording.epochs()[0])
            .iter()
            .map(Vec::len)
            .collect();
        assert_eq!(lengths, HashSet::from([2048, 4608, 8192]));
    }

    #[test]
    fn a_killed_process_leaves_what_it_wrote_to_the_next_one_but_not_to_a_crash() {
        let recording = record(|s| {
            s.write_at(0, &[1; 512]).unwrap();
            s.flush().unwrap();
            s.write_at(512, &[2; 512]).unwrap();
            s.write_at(1024, &[3; 512]).unwrap();
        });
        let next = recording.killed_at(3);
        let mut seen = [0; 1536];
        next.read_at(0, &mut seen).unwrap();
        assert_eq!((seen[0], seen[512], seen[1024]), (1, 2, 0));
        let left = images(&next.recording().epochs()[0]);
        assert_eq!(left.len(), 2);
        assert!(left.iter().all(|image| image[0] == 1));
        next.flush().unwrap();
        assert_eq!(images(next.recording().epochs().last().unwrap()).len(), 1);
    }

    #[test]
    fn zeroing_an_odd_range_keeps_its_neighbours() {
        let recording = record(|s| {
            s.write_at(0, &[7; 2048]).unwrap();
            s.flush().unwrap();
            s.zero_range(100, 1500).unwrap();
        });
        for image in images(&recording.epochs()[1]) {
            assert_eq!((image[99], image[1600]), (7, 7));
        }
    }
}
