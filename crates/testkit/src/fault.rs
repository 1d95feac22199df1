//! Storage that counts its calls and fails the one that it is told to.

use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::sync::{Mutex, PoisonError};

use vhdkit::storage::Storage;
use vhdkit::{Error, Result};

/// What a call asks of a storage.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[allow(missing_docs, reason = "named as the methods of the trait")]
pub enum Call {
    Read,
    Write,
    Flush,
    Len,
    SetLen,
    Allocate,
    PunchHole,
    ZeroRange,
    NextData,
}

impl Call {
    /// Every kind of call.
    pub const ALL: [Call; 9] = [
        Call::Read,
        Call::Write,
        Call::Flush,
        Call::Len,
        Call::SetLen,
        Call::Allocate,
        Call::PunchHole,
        Call::ZeroRange,
        Call::NextData,
    ];

    /// The calls that change a file or make its changes durable.
    pub const CHANGING: &'static [Call] = &[
        Call::Write,
        Call::Flush,
        Call::SetLen,
        Call::Allocate,
        Call::PunchHole,
        Call::ZeroRange,
    ];

    /// The calls that a file system can fail: all but asking for the length or the holes.
    pub const FALLIBLE: &'static [Call] = &[
        Call::Read,
        Call::Write,
        Call::Flush,
        Call::SetLen,
        Call::Allocate,
        Call::PunchHole,
        Call::ZeroRange,
    ];
}

/// How often each call was made, and the bytes that went through.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct Counts {
    calls: [u64; Call::ALL.len()],
    /// Bytes read.
    pub bytes_read: u64,
    /// Bytes written as data (not as ranges of zeros).
    pub bytes_written: u64,
}

impl Counts {
    /// How often a call was made.
    pub fn of(&self, call: Call) -> u64 {
        self.calls[call as usize]
    }

    /// How often any of these calls was made.
    pub fn total(&self, calls: &[Call]) -> u64 {
        calls.iter().map(|&c| self.of(c)).sum()
    }

    /// What was counted since an earlier look.
    #[must_use]
    pub fn since(&self, earlier: &Counts) -> Counts {
        Counts {
            calls: std::array::from_fn(|i| self.calls[i] - earlier.calls[i]),
            bytes_read: self.bytes_read - earlier.bytes_read,
            bytes_written: self.bytes_written - earlier.bytes_written,
        }
    }
}

/// The error that a failing call gives.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fault {
    /// EIO.
    InputOutput,
    /// ENOSPC.
    NoSpace,
}

impl Fault {
    fn error(self, action: &str) -> Error {
        let number = match self {
            Fault::InputOutput => 5,
            Fault::NoSpace => 28,
        };
        Error::io(action, std::io::Error::from_raw_os_error(number))
    }
}

#[derive(Clone)]
struct Plan {
    calls: &'static [Call],
    skip: u64,
    fault: Fault,
    forever: bool,
}

/// Passes every call on to another storage, counts it, and fails the one that it was told to fail.
pub struct FaultStorage {
    below: Arc<dyn Storage>,
    calls: [AtomicU64; Call::ALL.len()],
    bytes_read: AtomicU64,
    bytes_written: AtomicU64,
    plan: Mutex<Option<Plan>>,
    injected: AtomicU64,
    /// To be called once, after so many further calls.
    hook: Mutex<Option<(u64, Hook)>>,
}

type Hook = Box<dyn FnOnce() + Send>;

impl FaultStorage {
    /// Counts what is asked of `below`; fails nothing yet.
    pub fn new(below: Arc<dyn Storage>) -> Arc<Self> {
        Arc::new(Self {
            below,
            calls: std::array::from_fn(|_| AtomicU64::new(0)),
            bytes_read: AtomicU64::new(0),
            bytes_written: AtomicU64::new(0),
            plan: Mutex::new(None),
            injected: AtomicU64::new(0),
            hook: Mutex::new(None),
        })
    }

    /// Fails one call: of those in `calls` made from now on, the one after `skip` others.
    pub fn fail_once(&self, calls: &'static [Call], skip: u64, fault: Fault) {
        self.set(Some(Plan {
            calls,
            skip,
            fault,
            forever: false,
        }));
    }

    /// Fails every call in `calls` after `skip` others, until [`FaultStorage::heal`].
    pub fn fail_from(&self, calls: &'static [Call], skip: u64, fault: Fault) {
        self.set(Some(Plan {
            calls,
            skip,
            fault,
            forever: true,
        }));
    }

    /// Calls `hook` once, at the start of the call after `skip` others.
    pub fn at_call(&self, skip: u64, hook: impl FnOnce() + Send + 'static) {
        *self.hook.lock().unwrap_or_else(PoisonError::into_inner) = Some((skip, Box::new(hook)));
    }

    /// True if a hook is still waiting for its call.
    pub fn has_hook(&self) -> bool {
        self.hook
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .is_some()
    }

    fn call_hook(&self) {
        let mut hook = self.hook.lock().unwrap_or_else(PoisonError::into_inner);
        match &mut *hook {
            Some((0, _)) => {
                let due = hook.take();
                drop(hook);
                if let Some((_, due)) = due {
                    due();
                }
            }
            Some((skip, _)) => *skip -= 1,
            None => {}
        }
    }

    /// Fails nothing any more.
    pub fn heal(&self) {
        self.set(None);
    }

    /// Runs `f` without failing anything; the plan goes on afterwards as if nothing had been called.
    pub fn suspended<T>(&self, f: impl FnOnce() -> T) -> T {
        let plan = self
            .plan
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        let result = f();
        self.set(plan);
        result
    }

    /// How many calls were failed so far.
    pub fn injected(&self) -> u64 {
        self.injected.load(SeqCst)
    }

    /// What was counted so far, failed calls included.
    pub fn counts(&self) -> Counts {
        Counts {
            calls: std::array::from_fn(|i| self.calls[i].load(SeqCst)),
            bytes_read: self.bytes_read.load(SeqCst),
            bytes_written: self.bytes_written.load(SeqCst),
        }
    }

    fn set(&self, plan: Option<Plan>) {
        *self.plan.lock().unwrap_or_else(PoisonError::into_inner) = plan;
    }

    fn enter(&self, call: Call, action: &str) -> Result<()> {
        self.calls[call as usize].fetch_add(1, SeqCst);
        self.call_hook();
        let mut guard = self.plan.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(plan) = guard.as_mut() else {
            return Ok(());
        };
        if !plan.calls.contains(&call) {
            return Ok(());
        }
        if plan.skip > 0 {
            plan.skip -= 1;
            return Ok(());
        }
        let fault = plan.fault;
        if !plan.forever {
            *guard = None;
        }
        self.injected.fetch_add(1, SeqCst);
        Err(fault.error(action))
    }
}

impl Storage for FaultStorage {
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        self.enter(Call::Read, "read")?;
        self.bytes_read.fetch_add(buf.len() as u64, SeqCst);
        self.below.read_at(offset, buf)
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> Result<()> {
        if let Err(e) = self.enter(Call::Write, "write") {
            // A full or failing disk mostly takes the beginning of a longer write.
            let half = data.len() / 1024 * 512;
            if half > 0 {
                self.below.write_at(offset, &data[..half])?;
            }
            return Err(e);
        }
        self.bytes_written.fetch_add(data.len() as u64, SeqCst);
        self.below.write_at(offset, data)
    }

    fn flush(&self) -> Result<()> {
        self.enter(Call::Flush, "flush")?;
        self.below.flush()
    }

    fn len(&self) -> Result<u64> {
        self.enter(Call::Len, "stat")?;
        self.below.len()
    }

    fn set_len(&self, length: u64) -> Result<()> {
        self.enter(Call::SetLen, "write: change of length")?;
        self.below.set_len(length)
    }

    fn allocate(&self, offset: u64, length: u64) -> Result<()> {
        self.enter(Call::Allocate, "allocate space")?;
        self.below.allocate(offset, length)
    }

    fn punch_hole(&self, offset: u64, length: u64) -> Result<()> {
        self.enter(Call::PunchHole, "allocate space")?;
        self.below.punch_hole(offset, length)
    }

    fn zero_range(&self, offset: u64, length: u64) -> Result<()> {
        self.enter(Call::ZeroRange, "write")?;
        self.below.zero_range(offset, length)
    }

    fn next_data(&self, range: Range<u64>) -> Result<Option<Range<u64>>> {
        self.enter(Call::NextData, "seek")?;
        self.below.next_data(range)
    }

    fn grows_with_zeros(&self) -> bool {
        self.below.grows_with_zeros()
    }

    fn survives_crash(&self) -> bool {
        self.below.survives_crash()
    }

    fn path(&self) -> Option<&Path> {
        self.below.path()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vhdkit::ErrorKind;
    use vhdkit::storage::MemoryStorage;

    #[test]
    fn the_chosen_call_fails_once_and_everything_is_counted() {
        let storage = FaultStorage::new(Arc::new(MemoryStorage::new()));
        storage.fail_once(Call::CHANGING, 1, Fault::NoSpace);
        storage.write_at(0, &[1; 10]).unwrap();
        let error = storage.write_at(10, &[2; 10]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::DiskFull);
        storage.write_at(10, &[2; 10]).unwrap();
        storage.flush().unwrap();
        let counts = storage.counts();
        assert_eq!((counts.of(Call::Write), counts.of(Call::Flush)), (3, 1));
        assert_eq!((counts.bytes_written, storage.injected()), (20, 1));
    }

    #[test]
    fn from_then_on_means_until_healed() {
        let storage = FaultStorage::new(Arc::new(MemoryStorage::from_bytes(&[0; 10])));
        storage.fail_from(&[Call::Read], 0, Fault::InputOutput);
        for _ in 0..3 {
            assert_eq!(
                storage.read_at(0, &mut [0]).unwrap_err().kind(),
                ErrorKind::ReadFault
            );
        }
        storage.heal();
        storage.read_at(0, &mut [0]).unwrap();
    }
}
