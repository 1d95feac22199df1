//! A disk that is being copied while it is in use: what was written meanwhile, and the second copy of every write.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::Sender;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use super::Layer;
use crate::error::{Context, Error, Result};
use crate::image::{Backing, Image, NoBacking};
use crate::num::to_usize;

/// Which parts of a disk have been written to: one bit for each granule.
pub(crate) struct DirtyMap {
    /// Bytes of the disk that one bit stands for: a power of two.
    granule: u64,
    size: u64,
    words: Box<[AtomicU64]>,
    /// Bits that are set; for a moment more, never fewer.
    count: AtomicU64,
}

/// At most so many bits: half a megabyte.
const MAX_GRANULES: u64 = 1 << 22;
const MIN_GRANULE: u64 = 64 * 1024;

impl DirtyMap {
    /// Nothing of a disk of `size` bytes has been written.
    pub(crate) fn new(size: u64) -> Self {
        let granule = (size.div_ceil(MAX_GRANULES))
            .next_power_of_two()
            .max(MIN_GRANULE);
        let words = size.div_ceil(granule).div_ceil(64);
        Self {
            granule,
            size,
            words: (0..words).map(|_| AtomicU64::new(0)).collect(),
            count: AtomicU64::new(0),
        }
    }

    fn granules(&self, range: &Range<u64>) -> Range<u64> {
        range.start / self.granule..range.end.min(self.size).div_ceil(self.granule)
    }

    /// Marks a range.
    pub(crate) fn mark(&self, range: &Range<u64>) {
        for bit in self.granules(range) {
            // Counted before it can be taken, so that the count never falls below nothing.
            self.count.fetch_add(1, Ordering::AcqRel);
            let before = self.words[to_usize(bit / 64)].fetch_or(1 << (bit % 64), Ordering::AcqRel);
            if before & (1 << (bit % 64)) != 0 {
                self.count.fetch_sub(1, Ordering::AcqRel);
            }
        }
    }

    /// Bytes that are marked, rounded up to granules.
    pub(crate) fn marked(&self) -> u64 {
        self.count.load(Ordering::Acquire) * self.granule
    }

    /// The next marked range from `from` on, at most `limit` bytes long (but at least a granule), which is clean from
    /// now on.
    pub(crate) fn take(&self, from: u64, limit: u64) -> Option<Range<u64>> {
        let total = self.size.div_ceil(self.granule);
        let mut bit = from / self.granule;
        let mut found: Option<Range<u64>> = None;
        while bit < total {
            let word = &self.words[to_usize(bit / 64)];
            if found.is_none() && word.load(Ordering::Acquire) >> (bit % 64) == 0 {
                bit = (bit / 64 + 1) * 64;
                continue;
            }
            let mask = 1 << (bit % 64);
            let set = word.load(Ordering::Acquire) & mask != 0;
            let full = found
                .as_ref()
                .is_some_and(|r| (r.end - r.start) * self.granule >= limit);
            if found.is_some() && (!set || full) {
                break;
            }
            if set {
                word.fetch_and(!mask, Ordering::AcqRel);
                self.count.fetch_sub(1, Ordering::AcqRel);
                let start = found.map_or(bit, |r: Range<u64>| r.start);
                found = Some(start..bit + 1);
            }
            bit += 1;
        }
        found.map(|r| r.start * self.granule..(r.end * self.granule).min(self.size))
    }
}

/// What happens to writes of a disk that is being copied.
#[derive(Clone)]
pub(crate) enum Mirroring {
    /// The copy is being made: what is written is noted, to be copied again.
    Noting(Arc<DirtyMap>),
    /// The copy is an open image: every write goes to both.
    Both(Arc<Mirror>),
}

/// The second copy.
pub(crate) struct Mirror {
    target: Layer,
    /// What differs: to be copied.
    pub(crate) dirty: Arc<DirtyMap>,
    /// One lock per granule: held while a range is changed in both copies.
    locks: Box<[Mutex<()>]>,
    has_failed: AtomicBool,
    state: Mutex<State>,
    changed: Condvar,
}

/// What the users of the disk and the operation tell each other.
#[derive(Default)]
pub(crate) struct State {
    /// Why the target is of no use any more.
    pub(crate) failure: Option<Error>,
    /// Both copies are the same, apart from writes that are under way.
    pub(crate) is_equal: bool,
    /// Somebody wants the disk to go on with the target, and waits for that.
    pub(crate) break_requested: Option<Sender<()>>,
}

impl State {
    pub(crate) fn can_break(&self) -> bool {
        self.is_equal && self.failure.is_none()
    }
}

const LOCKS: u64 = 64;

impl Mirror {
    pub(crate) fn new(target: Layer, dirty: Arc<DirtyMap>) -> Self {
        Self {
            target,
            dirty,
            locks: (0..LOCKS).map(|_| Mutex::new(())).collect(),
            has_failed: AtomicBool::new(false),
            state: Mutex::default(),
            changed: Condvar::new(),
        }
    }

    pub(crate) fn target(&self) -> &Layer {
        &self.target
    }

    /// The target alone.
    pub(crate) fn into_target(self) -> Layer {
        self.target
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    /// Tells the other side that the state has changed.
    pub(crate) fn notify(&self) {
        self.changed.notify_all();
    }

    /// Waits for a notice, but not for long: a request to cancel comes without one.
    pub(crate) fn wait(&self) {
        let state = self.state();
        drop(
            self.changed
                .wait_timeout(state, std::time::Duration::from_millis(20)),
        );
    }

    pub(crate) fn fail(&self, error: Error) {
        self.has_failed.store(true, Ordering::Release);
        self.state().failure.get_or_insert(error);
        self.notify();
    }

    /// Keeps everybody else from changing a range. Locks are taken in their own order, so that two ranges never wait
    /// for each other.
    fn hold(&self, range: &Range<u64>) -> Vec<MutexGuard<'_, ()>> {
        let granules = self.dirty.granules(range);
        let mut indices: Vec<u64> = if granules.end - granules.start >= LOCKS {
            (0..LOCKS).collect()
        } else {
            granules.map(|granule| granule % LOCKS).collect()
        };
        indices.sort_unstable();
        indices
            .into_iter()
            .map(|i| lock(&self.locks[to_usize(i)]))
            .collect()
    }

    /// Changes a range of the source, then of the target. What the target does not take ends the mirror, not the
    /// request.
    fn change_both(
        &self,
        range: &Range<u64>,
        source: impl FnOnce() -> Result<()>,
        target: impl FnOnce(&dyn Image, &dyn Backing) -> Result<()>,
    ) -> Result<()> {
        let _held = self.hold(range);
        let result = source();
        if self.has_failed.load(Ordering::Acquire) {
            return result;
        }
        if result.is_err() {
            // Part of it may have been written.
            self.dirty.mark(range);
            self.state().is_equal = false;
            self.notify();
            return result;
        }
        if let Err(error) = target(&*self.target.image, &NoBacking).at_path(&self.target.path) {
            self.fail(error);
        }
        Ok(())
    }

    /// Brings a range of the target up to date, with the source and the target to itself.
    pub(crate) fn copy<R>(
        &self,
        range: &Range<u64>,
        copy: impl FnOnce(&dyn Image) -> Result<R>,
    ) -> Result<R> {
        let _held = self.hold(range);
        copy(&*self.target.image)
    }

    fn flush(&self) {
        if !self.has_failed.load(Ordering::Acquire)
            && let Err(error) = self.target.image.flush().at_path(&self.target.path)
        {
            self.fail(error);
        }
    }
}

impl Mirroring {
    /// A change of the source, and what it means for the copy.
    pub(super) fn modify(
        &self,
        range: &Range<u64>,
        source: impl FnOnce() -> Result<()>,
        target: impl FnOnce(&dyn Image, &dyn Backing) -> Result<()>,
    ) -> Result<()> {
        match self {
            Mirroring::Noting(dirty) => {
                let result = source();
                // Afterwards, so that a copy made meanwhile is made again; after an error too, for part of it may have
                // been written.
                dirty.mark(range);
                result
            }
            Mirroring::Both(mirror) => mirror.change_both(range, source, target),
        }
    }

    /// A flush of the source has succeeded.
    pub(super) fn flush(&self) {
        if let Mirroring::Both(mirror) = self {
            mirror.flush();
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_marked_is_taken_once_in_runs() {
        let map = DirtyMap::new(1 << 30);
        assert_eq!(map.take(0, u64::MAX), None);
        map.mark(&(100..200));
        map.mark(&(65_536..3 * 65_536 + 1));
        map.mark(&((1 << 30) - 1..1 << 30));
        assert_eq!(map.marked(), 5 * 65_536);
        assert_eq!(map.take(0, 2 * 65_536), Some(0..2 * 65_536));
        assert_eq!(map.take(0, u64::MAX), Some(2 * 65_536..4 * 65_536));
        assert_eq!(map.take(0, u64::MAX), Some((1 << 30) - 65_536..1 << 30));
        assert_eq!((map.take(0, u64::MAX), map.marked()), (None, 0));
    }

    #[test]
    fn what_is_marked_while_it_is_taken_is_never_counted_below_nothing() {
        let size = 8 * MIN_GRANULE;
        let map = DirtyMap::new(size);
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let taker = scope.spawn(|| {
                while !done.load(Ordering::Acquire) {
                    let _ = map.take(0, u64::MAX);
                    // Twice as much while all of it is being marked again.
                    assert!(map.marked() <= 2 * size);
                }
            });
            for _ in 0..3_000_000 {
                map.mark(&(0..size));
            }
            done.store(true, Ordering::Release);
            taker.join().unwrap();
        });
        let _ = map.take(0, u64::MAX);
        assert_eq!(map.marked(), 0);
    }

    #[test]
    fn the_map_of_the_largest_disk_is_small_and_its_end_is_exact() {
        let map = DirtyMap::new((64 << 40) - 512);
        assert!(map.words.len() * 8 <= 512 * 1024);
        map.mark(&((64 << 40) - 1024..(64 << 40) - 512));
        let last = map.take(0, u64::MAX).unwrap();
        assert_eq!(last.end, (64 << 40) - 512);
    }
}
