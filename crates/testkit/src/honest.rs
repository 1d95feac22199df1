//! Is the percentage of an operation honest? Told by the work that a disk of a known speed has done, not by the clock of
//! the machine, which may be busy with anything.
//!
//! A [`Drive`] stands behind any number of files in memory. Each of their calls takes the time that it would take on a
//! disk of 200 MB/s with a page cache before it: reads and direct writes by their length; other writes next to nothing,
//! and a flush what they left to it. It sleeps that long, so that work which paces itself by time does so here, and
//! keeps count of it; the observer is asked at every call.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, ThreadId};
use std::time::Duration;

use vhdkit::operation::Observer;
use vhdkit::storage::{MemoryStorage, Storage};
use vhdkit::{ErrorKind, Result, Status};

use crate::contract::Running;

/// Of a read, or a write past the cache.
const DISK_NANOS: u64 = 5;
/// Writes into the page cache, in bytes per nanosecond.
const CACHE_BYTES: u64 = 4;
/// What every flush takes besides.
const BARRIER: Duration = Duration::from_micros(500);
/// Calls that only change what the file system knows of a file.
const METADATA: Duration = Duration::from_micros(20);

/// Of the contract: progress moves at least so often.
const LONGEST: Duration = Duration::from_millis(200);
/// Of the contract: share of the time that has gone when the percentage says half.
const HALF: Range<f64> = 0.35..0.65;
/// Less work than this shows nothing.
const ENOUGH: Duration = Duration::from_secs(1);

/// See the module.
#[derive(Default)]
pub struct Drive {
    /// Reserving space writes zeros; else it takes next to nothing.
    reserves_with_zeros: bool,
    /// Giving back space takes as long as writing it to a cache; else next to nothing.
    discards: bool,
    /// Everything takes so much longer.
    slower: u32,
    log: Mutex<Log>,
    /// An operation that is being started has its observer.
    observed: Condvar,
}

#[derive(Default)]
struct Log {
    observer: Option<Observer>,
    /// Who is starting an operation. Others wait, so that nothing is done unseen however late this thread gets its turn.
    starting: Option<ThreadId>,
    /// Work so far.
    spent: Duration,
    /// Of it: not slept yet.
    owed: Duration,
    /// Work when the percentage last rose, and how far it had risen.
    last: (Duration, f64),
    longest: Duration,
    /// Where the longest pause began.
    longest_at: f64,
    half: Option<Duration>,
    /// The operation is cancelled after so much work.
    until: Option<Duration>,
}

impl Log {
    fn assert_moves(&self, name: &str) {
        assert!(
            self.longest <= LONGEST,
            "{name}: no move for {:?} of {:?}, at {:.1} %",
            self.longest,
            self.spent,
            self.longest_at
        );
    }

    fn look(&mut self) {
        let Some(observer) = &self.observer else {
            return;
        };
        let seen = observer.progress();
        if seen.status != Status::Pending {
            return;
        }
        if self.until.is_some_and(|until| self.spent >= until) {
            observer.cancel();
        }
        let percent = seen.percent();
        if percent > self.last.1 {
            self.pause_ends();
            self.last = (self.spent, percent);
        }
        if percent >= 50.0 && self.half.is_none() {
            self.half = Some(self.spent);
        }
    }

    fn pause_ends(&mut self) {
        let pause = self.spent.saturating_sub(self.last.0);
        if pause > self.longest {
            (self.longest, self.longest_at) = (pause, self.last.1);
        }
    }
}

impl Drive {
    /// As it is with a file system in memory: reserving space writes zeros.
    pub fn reserving_with_zeros() -> Self {
        Self {
            reserves_with_zeros: true,
            ..Self::default()
        }
    }

    /// As it is in memory, and on a disk that discards what files give up: giving back takes time.
    pub fn discarding() -> Self {
        Self {
            discards: true,
            ..Self::default()
        }
    }

    /// Everything takes so much longer: small tables are as large ones.
    pub fn slower(factor: u32) -> Self {
        Self {
            slower: factor,
            ..Self::default()
        }
    }

    /// A file on this disk.
    pub fn file(self: &Arc<Self>, bytes: MemoryStorage) -> Arc<dyn Storage> {
        Arc::new(DriveFile {
            drive: self.clone(),
            below: bytes,
            dirty: AtomicU64::new(0),
        })
    }

    fn log(&self) -> MutexGuard<'_, Log> {
        self.log.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One disk: who comes second waits.
    fn work(&self, takes: Duration) {
        let takes = takes * self.slower.max(1);
        let mut log = self
            .observed
            .wait_while(self.log(), |log| {
                let starting = log.starting;
                starting.is_some_and(|thread| thread != thread::current().id())
            })
            .unwrap_or_else(PoisonError::into_inner);
        log.look();
        log.spent += takes;
        log.owed += takes;
        if log.owed > Duration::from_millis(1) {
            thread::sleep(log.owed);
            log.owed = Duration::ZERO;
        }
        log.look();
    }

    /// Runs an operation whose work is all done by this disk, and fails unless its percentage is honest: it moves at
    /// least every 200 ms, and with half of the work done it shows about half.
    pub fn assert_honest(&self, name: &str, start: impl FnOnce() -> Running) {
        let half = self.assert_steady(name, start);
        assert!(
            HALF.contains(&half),
            "{name}: the percentage says half after {half:.2} of the work"
        );
    }

    /// Runs an operation whose work is in part that of a processor, and fails unless its percentage moves at least every
    /// 200 ms. The result is the share of the disk's work after which it says half.
    pub fn assert_steady(&self, name: &str, start: impl FnOnce() -> Running) -> f64 {
        let running = self.start(Log::default(), start);
        running.wait().unwrap_or_else(|e| panic!("{name}: {e}"));
        let log = self.finished();
        let all = log.spent;
        assert!(all >= ENOUGH, "{name}: only {all:?} of work");
        let half = log.half.unwrap_or(all).as_secs_f64() / all.as_secs_f64();
        println!(
            "{name}: half after {half:.2} of {all:?}; longest pause {:?} at {:.1} %",
            log.longest, log.longest_at
        );
        log.assert_moves(name);
        half
    }

    /// Runs an operation that would take for ever until so much work is done, cancels it, and fails unless its percentage
    /// has moved all the time, from the start on.
    pub fn assert_moves(&self, name: &str, until: Duration, start: impl FnOnce() -> Running) {
        let log = Log {
            until: Some(until),
            ..Log::default()
        };
        let running = self.start(log, start);
        let result = running.wait();
        assert_eq!(
            result.map_err(|e| e.kind()),
            Err(ErrorKind::Aborted),
            "{name}: it should have been cancelled"
        );
        let log = self.finished();
        println!(
            "{name}: longest pause {:?} at {:.1} %",
            log.longest, log.longest_at
        );
        assert!(log.spent >= until, "{name}: only {:?} of work", log.spent);
        log.assert_moves(name);
    }

    fn start(&self, log: Log, start: impl FnOnce() -> Running) -> Running {
        *self.log() = Log {
            starting: Some(thread::current().id()),
            ..log
        };
        let running = start();
        let mut log = self.log();
        log.observer = Some(running.observer.clone());
        // What was done before it could be asked.
        log.pause_ends();
        log.starting = None;
        self.observed.notify_all();
        running
    }

    fn finished(&self) -> MutexGuard<'_, Log> {
        let mut log = self.log();
        log.observer = None;
        log.pause_ends();
        log
    }
}

struct DriveFile {
    drive: Arc<Drive>,
    below: MemoryStorage,
    /// Bytes in the page cache that are not on the disk.
    dirty: AtomicU64,
}

impl Storage for DriveFile {
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        self.drive
            .work(Duration::from_nanos(buf.len() as u64 * DISK_NANOS));
        self.below.read_at(offset, buf)
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> Result<()> {
        let length = data.len() as u64;
        self.drive.work(Duration::from_nanos(length / CACHE_BYTES));
        self.dirty.fetch_add(length, SeqCst);
        self.below.write_at(offset, data)
    }

    fn write_bulk(&self, offset: u64, data: &[u8]) -> Result<()> {
        self.drive
            .work(Duration::from_nanos(data.len() as u64 * DISK_NANOS));
        self.below.write_at(offset, data)
    }

    fn flush(&self) -> Result<()> {
        let dirty = self.dirty.swap(0, SeqCst);
        self.drive
            .work(BARRIER + Duration::from_nanos(dirty * DISK_NANOS));
        self.below.flush()
    }

    fn len(&self) -> Result<u64> {
        self.below.len()
    }

    fn set_len(&self, length: u64) -> Result<()> {
        let cut = self.below.len()?.saturating_sub(length);
        let freed = if self.drive.discards { cut } else { 0 };
        self.drive
            .work(METADATA + Duration::from_nanos(freed / CACHE_BYTES));
        self.below.set_len(length)
    }

    fn allocate(&self, offset: u64, length: u64) -> Result<()> {
        let zeros = if self.drive.reserves_with_zeros {
            length
        } else {
            0
        };
        self.drive
            .work(METADATA + Duration::from_nanos(zeros / CACHE_BYTES));
        self.below.allocate(offset, length)
    }

    fn punch_hole(&self, offset: u64, length: u64) -> Result<()> {
        let freed = if self.drive.discards { length } else { 0 };
        self.drive
            .work(METADATA + Duration::from_nanos(freed / CACHE_BYTES));
        self.below.punch_hole(offset, length)
    }

    fn zero_range(&self, offset: u64, length: u64) -> Result<()> {
        self.drive.work(METADATA);
        self.below.zero_range(offset, length)
    }

    fn next_data(&self, range: Range<u64>) -> Result<Option<Range<u64>>> {
        self.below.next_data(range)
    }
}
