//! Storages that count, fail and crash.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use crate::error::{Error, ErrorKind, Result};
use crate::num::to_usize;
use crate::storage::{MemoryStorage, Storage};

/// One change of a file that is not yet behind a barrier.
#[derive(Clone, Debug)]
pub(super) enum Change {
    Write { offset: u64, data: Vec<u8> },
    Length(u64),
    Zero(Range<u64>),
}

/// Records what happens to a file, counts calls, and fails the one it is told to.
#[derive(Default)]
pub(super) struct Recorder {
    pub(super) now: MemoryStorage,
    /// The file as of the last barrier, and what came since.
    pub(super) media: Mutex<(MemoryStorage, Vec<Change>)>,
    pub(super) flushes: AtomicU64,
    pub(super) writes: AtomicU64,
    pub(super) reads: AtomicU64,
    pub(super) calls: AtomicU64,
    /// The call that fails, counted from 1.
    pub(super) fail_at: AtomicU64,
    /// Called before each barrier takes effect.
    pub(super) on_flush: Mutex<Option<Hook>>,
}

type Hook = Box<dyn FnMut(&MemoryStorage, &[Change]) + Send>;

impl Recorder {
    pub(super) fn new(start: &MemoryStorage) -> Arc<Self> {
        Arc::new(Self {
            now: start.clone(),
            media: Mutex::new((start.clone(), Vec::new())),
            ..Self::default()
        })
    }

    fn call(&self) -> Result<()> {
        let call = self.calls.fetch_add(1, Ordering::SeqCst) + 1;
        if call == self.fail_at.load(Ordering::SeqCst) {
            return Err(Error::new(ErrorKind::DiskFull, "write failed: as told"));
        }
        Ok(())
    }

    fn change(&self, change: Change) -> Result<()> {
        self.call()?;
        self.writes.fetch_add(1, Ordering::SeqCst);
        let mut media = self.media.lock().unwrap();
        apply(&self.now, &change);
        media.1.push(change);
        Ok(())
    }
}

/// Makes a change whole.
pub(super) fn apply(storage: &MemoryStorage, change: &Change) {
    match change {
        Change::Write { offset, data } => storage.write_at(*offset, data).unwrap(),
        Change::Length(length) => storage.set_len(*length).unwrap(),
        Change::Zero(range) => storage
            .zero_range(range.start, range.end - range.start)
            .unwrap(),
    }
}

/// Makes a change as a crash does: of a write or zeroing, only the sectors that `keep` says.
pub(super) fn apply_torn(storage: &MemoryStorage, change: &Change, mut keep: impl FnMut() -> bool) {
    let (offset, length) = match change {
        Change::Length(length) => {
            if keep() {
                storage.set_len(*length).unwrap();
            }
            return;
        }
        Change::Write { offset, data } => (*offset, data.len() as u64),
        Change::Zero(range) => (range.start, range.end - range.start),
    };
    let mut at = offset;
    while at < offset + length {
        let stop = (at / 512 * 512 + 512).min(offset + length);
        if keep() {
            match change {
                Change::Write { data, .. } => storage
                    .write_at(at, &data[to_usize(at - offset)..to_usize(stop - offset)])
                    .unwrap(),
                _ => storage.zero_range(at, stop - at).unwrap(),
            }
        }
        at = stop;
    }
}

impl Storage for Recorder {
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        self.reads.fetch_add(1, Ordering::SeqCst);
        self.call()?;
        self.now.read_at(offset, buf)
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> Result<()> {
        self.change(Change::Write {
            offset,
            data: data.to_vec(),
        })
    }

    fn flush(&self) -> Result<()> {
        self.call()?;
        self.flushes.fetch_add(1, Ordering::SeqCst);
        let mut media = self.media.lock().unwrap();
        if let Some(hook) = &mut *self.on_flush.lock().unwrap() {
            hook(&media.0, &media.1);
        }
        let changes = std::mem::take(&mut media.1);
        for change in &changes {
            apply(&media.0, change);
        }
        Ok(())
    }

    fn len(&self) -> Result<u64> {
        self.now.len()
    }

    fn set_len(&self, length: u64) -> Result<()> {
        self.change(Change::Length(length))
    }

    fn punch_hole(&self, offset: u64, length: u64) -> Result<()> {
        self.zero_range(offset, length)
    }

    fn zero_range(&self, offset: u64, length: u64) -> Result<()> {
        self.change(Change::Zero(offset..offset + length))
    }

    fn next_data(&self, range: Range<u64>) -> Result<Option<Range<u64>>> {
        self.now.next_data(range)
    }
}
