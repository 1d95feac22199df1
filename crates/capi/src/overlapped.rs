//! Operations, known by the handle and the address of the OVERLAPPED that they were started with (contract, 2.0.6 and 6).
//!
//! The end of an operation is one moment: under the record's lock its status is set, `InternalHigh` and then `Internal`
//! are written, and the event is signalled. Nothing touches the caller's memory after that, so it may be freed by
//! whoever saw the end in any of the three ways. Closing the handle cancels its operations and waits for their ends.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::ThreadId;
use std::time::Duration;

use vhdkit::Operation;
use vhdkit::operation::{Observer, Status};

use crate::codes::*;
use crate::disk::DiskHandle;
use crate::event::Event;
use crate::guard::{Answer, Code, INVALID, caught, code_of, guard, require, require_or};
use crate::handles;
use crate::sync::{Condvar, Mutex, MutexGuard, Order, spawn};
use crate::types::{HANDLE, OVERLAPPED, VIRTUAL_DISK_PROGRESS};

/// `STATUS_PENDING`.
const STATUS_PENDING: usize = 0x103;
/// `STATUS_CANCELLED`.
const STATUS_CANCELLED: u32 = 0xC000_0120;
/// Facility of NTSTATUS codes that carry a Win32 code.
const FACILITY_WIN32: u32 = 0xC007_0000;

/// The operations of one handle.
pub(crate) struct Operations(Mutex<Inner>);

impl Default for Operations {
    fn default() -> Self {
        Self(Mutex::new(Order::Operations, Inner::default()))
    }
}

#[derive(Default)]
struct Inner {
    closed: bool,
    records: HashMap<usize, Arc<Record>>,
}

/// One operation. It stays after its end, until its OVERLAPPED is used again or the handle is closed (P-21).
pub(crate) struct Record {
    overlapped: Memory,
    thread: ThreadId,
    event: Option<Arc<Event>>,
    state: Mutex<State>,
    over: Condvar,
}

struct State {
    /// ERROR_IO_PENDING, then the result.
    status: u32,
    /// Somebody has cancelled it, perhaps before there was an observer to tell.
    is_cancelled: bool,
    observer: Option<Observer>,
}

/// The address of a caller's OVERLAPPED.
#[derive(Clone, Copy)]
struct Memory(*mut OVERLAPPED);

// SAFETY: the address is only used to store to `Internal` and `InternalHigh`, atomically, while the caller keeps the
// structure valid for the system: from the start of an operation to its end.
unsafe impl Send for Memory {}
// SAFETY: as above.
unsafe impl Sync for Memory {}

impl Memory {
    /// ERROR_INVALID_PARAMETER for NULL and for what is not aligned.
    fn new(overlapped: *mut OVERLAPPED) -> Answer<Self> {
        require(!overlapped.is_null() && overlapped.is_aligned())?;
        Ok(Self(overlapped))
    }

    fn address(self) -> usize {
        self.0.addr()
    }

    fn store(self, internal: usize, transferred: usize) {
        // SAFETY: the structure is valid until its operation is over, which is not before this store, and aligned
        // (checked by `new`). The system alone writes to these two members, here always atomically.
        let (low, high) = unsafe {
            (
                AtomicUsize::from_ptr(&raw mut (*self.0).Internal),
                AtomicUsize::from_ptr(&raw mut (*self.0).InternalHigh),
            )
        };
        high.store(transferred, Ordering::Release);
        low.store(internal, Ordering::Release);
    }

    fn load(self) -> (usize, usize) {
        // SAFETY: as in `store`; the caller of GetOverlappedResult keeps the structure valid for the call.
        let (low, high) = unsafe {
            (
                AtomicUsize::from_ptr(&raw mut (*self.0).Internal),
                AtomicUsize::from_ptr(&raw mut (*self.0).InternalHigh),
            )
        };
        let internal = low.load(Ordering::Acquire);
        (internal, high.load(Ordering::Acquire))
    }

    /// The event to be signalled. The lowest bit of `hEvent` is a mark for completion ports and not part of it.
    fn event(self) -> Answer<Option<Arc<Event>>> {
        // SAFETY: the caller of the function that got this OVERLAPPED keeps it valid for the call.
        let handle: HANDLE = unsafe { (&raw const (*self.0).hEvent).read() };
        let handle = handle.map_addr(|number| number & !1);
        if handle.is_null() {
            return Ok(None);
        }
        handles::event(handle).map(Some)
    }
}

/// The NTSTATUS that `Internal` holds for a Win32 code (contract, 5.4).
fn status_of(code: u32) -> usize {
    let status = match code {
        ERROR_SUCCESS => 0,
        ERROR_OPERATION_ABORTED => STATUS_CANCELLED,
        ERROR_VHD_RESIZE_WOULD_TRUNCATE_DATA => 0xC03A_0031,
        ERROR_VHD_COULD_NOT_COMPUTE_MINIMUM_VIRTUAL_SIZE => 0xC03A_0032,
        ERROR_VHD_ALREADY_AT_OR_BELOW_MINIMUM_VIRTUAL_SIZE => 0xC03A_0033,
        code if code > 0xFFFF => code,
        code => FACILITY_WIN32 | code,
    };
    status as usize
}

/// The Win32 code of what `Internal` holds.
fn code_of_status(internal: usize) -> u32 {
    match u32::try_from(internal).unwrap_or(STATUS_CANCELLED) {
        STATUS_CANCELLED => ERROR_OPERATION_ABORTED,
        0xC03A_0031 => ERROR_VHD_RESIZE_WOULD_TRUNCATE_DATA,
        0xC03A_0032 => ERROR_VHD_COULD_NOT_COMPUTE_MINIMUM_VIRTUAL_SIZE,
        0xC03A_0033 => ERROR_VHD_ALREADY_AT_OR_BELOW_MINIMUM_VIRTUAL_SIZE,
        status if status & 0xFFFF_0000 == FACILITY_WIN32 => status & 0xFFFF,
        status => status,
    }
}

impl Operations {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock()
    }

    fn find(&self, overlapped: *const OVERLAPPED) -> Option<Arc<Record>> {
        self.lock().records.get(&overlapped.addr()).cloned()
    }

    /// Starts the life of an operation: its event is reset, `Internal` says pending (P-32).
    ///
    /// ERROR_INVALID_PARAMETER if the OVERLAPPED has an operation under way (P-26), ERROR_INVALID_HANDLE if its event
    /// is none, or if this handle was closed meanwhile.
    pub(crate) fn begin(&self, overlapped: *mut OVERLAPPED) -> Answer<Arc<Record>> {
        let memory = Memory::new(overlapped)?;
        self.begin_with(memory, memory.event()?)
    }

    fn begin_with(&self, memory: Memory, event: Option<Arc<Event>>) -> Answer<Arc<Record>> {
        let mut inner = self.lock();
        inner.forget(memory)?;
        if let Some(event) = &event {
            event.reset();
        }
        memory.store(STATUS_PENDING, 0);
        let record = Arc::new(Record {
            overlapped: memory,
            thread: std::thread::current().id(),
            event,
            state: Mutex::new(
                Order::Record,
                State {
                    status: ERROR_IO_PENDING,
                    is_cancelled: false,
                    observer: None,
                },
            ),
            over: Condvar::new(),
        });
        inner.records.insert(memory.address(), record.clone());
        Ok(record)
    }

    /// Takes back what `begin` did, for an operation that did not start (P-30): its event is not used. Whoever has found
    /// the record meanwhile, and waits for it, waits no longer.
    pub(crate) fn withdraw(&self, record: &Record, code: Code) {
        self.lock().records.remove(&record.overlapped.address());
        record.end(code.0, None);
    }

    /// True if an operation with this OVERLAPPED is under way.
    fn is_pending(&self, overlapped: *const OVERLAPPED) -> bool {
        self.find(overlapped)
            .is_some_and(|record| record.lock().status == ERROR_IO_PENDING)
    }

    /// Does a piece of work at once that has an OVERLAPPED but no progress (reading and writing).
    pub(crate) fn inline(
        &self,
        overlapped: *mut OVERLAPPED,
        work: impl FnOnce() -> Answer<u32>,
    ) -> Answer<u32> {
        let memory = Memory::new(overlapped)?;
        let event = memory.event()?;
        self.lock().forget(memory)?;
        if let Some(event) = &event {
            event.reset();
        }
        let result = caught(work);
        match result {
            Ok(transferred) => memory.store(0, transferred as usize),
            Err(Code(code)) => memory.store(status_of(code), 0),
        }
        if let Some(event) = &event
            && result.is_ok()
        {
            event.set();
        }
        result
    }

    fn forget_finished(&self, overlapped: *const OVERLAPPED) {
        self.lock().records.retain(|address, record| {
            *address != overlapped.addr() || record.lock().status == ERROR_IO_PENDING
        });
    }

    /// How far an operation is (P-01 to P-22).
    pub(crate) fn progress(&self, overlapped: *const OVERLAPPED) -> Answer<VIRTUAL_DISK_PROGRESS> {
        let record = self.find(overlapped).ok_or(INVALID)?;
        Ok(record.progress())
    }

    /// The end of an operation and the bytes transferred: ERROR_IO_INCOMPLETE if it is not over and nobody waits.
    pub(crate) fn result(&self, overlapped: *mut OVERLAPPED, wait: bool) -> Answer<u32> {
        let memory = Memory::new(overlapped)?;
        if let Some(record) = self.find(overlapped) {
            let status = record.wait(if wait { None } else { Some(Duration::ZERO) });
            return match status {
                ERROR_SUCCESS => Ok(0),
                ERROR_IO_PENDING => Err(Code(ERROR_IO_INCOMPLETE)),
                code => Err(Code(code)),
            };
        }
        match memory.load() {
            (STATUS_PENDING, _) => Err(Code(ERROR_IO_INCOMPLETE)),
            (0, transferred) => Ok(u32::try_from(transferred).unwrap_or(u32::MAX)),
            (internal, _) => Err(Code(code_of_status(internal))),
        }
    }

    /// Cancels what is under way: all, or what has this OVERLAPPED, or what this thread started. ERROR_NOT_FOUND if
    /// that is nothing.
    pub(crate) fn cancel(&self, which: Which) -> Answer {
        let records: Vec<_> = self.lock().records.values().cloned().collect();
        let mut found = false;
        for record in records {
            let meant = match which {
                Which::All => true,
                Which::One(overlapped) => record.overlapped.address() == overlapped.addr(),
                Which::OfThread => record.thread == std::thread::current().id(),
            };
            found |= meant && record.cancel();
        }
        if found {
            Ok(())
        } else {
            Err(Code(ERROR_NOT_FOUND))
        }
    }

    /// Waits until nothing is under way. False if the time was over first.
    pub(crate) fn wait_idle(&self, timeout: Option<Duration>) -> bool {
        let until = timeout.map(|timeout| std::time::Instant::now() + timeout);
        let records: Vec<_> = self.lock().records.values().cloned().collect();
        records.iter().all(|record| {
            let left =
                until.map(|until| until.saturating_duration_since(std::time::Instant::now()));
            record.wait(left) != ERROR_IO_PENDING
        })
    }

    /// Cancels all and waits for their ends (P-25). Nothing starts afterwards.
    pub(crate) fn close(&self) {
        self.lock().closed = true;
        // Nothing to cancel is as good.
        let _ = self.cancel(Which::All);
        self.wait_idle(None);
    }
}

impl Inner {
    /// The OVERLAPPED is about to be used again.
    fn forget(&mut self, memory: Memory) -> Answer {
        if self.closed {
            return Err(Code(ERROR_INVALID_HANDLE));
        }
        if let Some(record) = self.records.get(&memory.address()) {
            require(record.lock().status != ERROR_IO_PENDING)?;
        }
        self.records.remove(&memory.address());
        Ok(())
    }
}

/// Which operations are meant.
#[derive(Clone, Copy)]
pub(crate) enum Which {
    All,
    One(*const OVERLAPPED),
    OfThread,
}

impl Record {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }

    fn progress(&self) -> VIRTUAL_DISK_PROGRESS {
        let state = self.lock();
        let (current, completion) = match &state.observer {
            Some(observer) if state.status == ERROR_IO_PENDING => {
                let progress = observer.progress();
                let completion = progress.completion.max(1);
                match progress.status {
                    Status::Pending => (progress.current.min(completion), completion),
                    // The library is done, what follows it is not yet.
                    _ => (completion, completion),
                }
            }
            _ => (0, 1),
        };
        VIRTUAL_DISK_PROGRESS {
            OperationStatus: state.status,
            CurrentValue: current,
            CompletionValue: completion,
        }
    }

    /// False if it is over.
    fn cancel(&self) -> bool {
        let mut state = self.lock();
        state.is_cancelled = true;
        if let Some(observer) = &state.observer {
            observer.cancel();
        }
        state.status == ERROR_IO_PENDING
    }

    /// Waits for the end; the status then, or ERROR_IO_PENDING if the time was over first.
    fn wait(&self, timeout: Option<Duration>) -> u32 {
        let is_over = |state: &State| state.status != ERROR_IO_PENDING;
        self.over.wait_until(self.lock(), timeout, is_over).status
    }

    /// From now on there is somebody to tell of a cancel.
    fn watch(&self, observer: Observer) {
        let mut state = self.lock();
        if state.is_cancelled {
            observer.cancel();
        }
        state.observer = Some(observer);
    }

    /// The end (P-20, P-22).
    pub(crate) fn finish(&self, code: u32) {
        self.end(code, self.event.as_deref());
    }

    fn end(&self, code: u32, event: Option<&Event>) {
        let mut state = self.lock();
        state.status = code;
        state.observer = None;
        self.overlapped.store(status_of(code), 0);
        if let Some(event) = event {
            event.set();
        }
        drop(state);
        self.over.notify_all();
    }
}

/// The body of a function that may start an operation. If it did not start, its OVERLAPPED is none of an operation any
/// more (P-30, P-05), unless one is still under way (P-26).
pub(crate) fn guard_start(
    handle: HANDLE,
    overlapped: *mut OVERLAPPED,
    body: impl FnOnce() -> Answer,
) -> u32 {
    guard(|| {
        if !overlapped.is_null() {
            Memory::new(overlapped)?;
            let started = handles::disk(handle);
            require(!started.is_ok_and(|handle| handle.operations.is_pending(overlapped)))?;
        }
        let answer = caught(body);
        if let Err(Code(code)) = answer
            && code != ERROR_IO_PENDING
            && !overlapped.is_null()
            && let Ok(handle) = handles::disk(handle)
        {
            handle.operations.forget_finished(overlapped);
        }
        answer
    })
}

/// Runs an operation of the library: to its end without an OVERLAPPED (P-33), else beside the caller (ERROR_IO_PENDING).
///
/// `start` is called when nothing can fail any more; `then` is given the result, and has the last word on the status.
pub(crate) fn run<T: Send + 'static>(
    handle: &Arc<DiskHandle>,
    overlapped: *mut OVERLAPPED,
    start: impl FnOnce() -> Operation<T>,
    then: impl FnOnce(vhdkit::Result<T>) -> Answer + Send + 'static,
) -> Answer {
    if overlapped.is_null() {
        return then(start().wait());
    }
    let record = handle.operations.begin(overlapped)?;
    let started = caught(|| Ok(start()));
    let started = started.and_then(|operation| follow(&record, operation, then));
    match started {
        Ok(()) => Err(Code(ERROR_IO_PENDING)),
        Err(code) => {
            handle.operations.withdraw(&record, code);
            Err(code)
        }
    }
}

/// Gives a record its operation, and its end when that is over.
fn follow<T: Send + 'static>(
    record: &Arc<Record>,
    operation: Operation<T>,
    then: impl FnOnce(vhdkit::Result<T>) -> Answer + Send + 'static,
) -> Answer {
    record.watch(operation.observer());
    let finisher = record.clone();
    let is_followed = spawn(move || finisher.finish(code_of(caught(|| then(operation.wait())))));
    require_or(is_followed, ERROR_NOT_ENOUGH_MEMORY)
}

/// Does a short piece of work at once; with an OVERLAPPED it is then an operation that is over (P-31).
pub(crate) fn run_now(
    handle: &DiskHandle,
    overlapped: *mut OVERLAPPED,
    work: impl FnOnce() -> Answer,
) -> Answer {
    if overlapped.is_null() {
        return work();
    }
    let record = handle.operations.begin(overlapped)?;
    let result = caught(work);
    match result {
        Ok(()) => record.finish(ERROR_SUCCESS),
        Err(code) => handle.operations.withdraw(&record, code),
    }
    result
}

#[cfg(all(test, loom))]
mod loom_tests;
