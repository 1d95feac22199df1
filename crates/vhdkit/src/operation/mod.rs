//! Floor 2: long work with progress that anyone may ask for, at any moment, and with safe cancellation.
//!
//! The contract is that of `VIRTUAL_DISK_PROGRESS`: one question gives one consistent answer (status, current,
//! completion); only the status says that the work is over; the numbers mean something only while it is pending, and
//! then only as a proportion; 100 % while pending is legal; a cancelled operation ends as aborted (995).

mod progress;
mod publish;
mod sync;

use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use crate::error::{Error, ErrorKind, Result};
use progress::ProgressCell;
pub use publish::{
    Published, PublishedOperation, Standing, Subject, Unit, pending, pending_on, request_cancel,
};
use sync::{Arc, AtomicBool, AtomicU32, Condvar, Mutex, MutexGuard, Ordering};

/// ERROR_IO_PENDING: the status of an operation that is not over.
const PENDING: u32 = 997;

/// How an operation stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[expect(clippy::exhaustive_enums, reason = "the contract knows these three")]
pub enum Status {
    /// Running.
    Pending,
    /// Over, and it did what it was for.
    Succeeded,
    /// Over, and it did not; [`ErrorKind::Aborted`] if it was cancelled.
    Failed(ErrorKind),
}

impl Status {
    /// The Win32 code: 997 while pending, 0 for success, else the error's.
    pub fn win32_code(self) -> u32 {
        match self {
            Status::Pending => PENDING,
            Status::Succeeded => 0,
            Status::Failed(kind) => kind.win32_code(),
        }
    }

    fn from_code(code: u32) -> Self {
        match code {
            PENDING => Status::Pending,
            0 => Status::Succeeded,
            code => Status::Failed(
                ErrorKind::ALL
                    .iter()
                    .copied()
                    .find(|kind| kind.win32_code() == code)
                    .unwrap_or(ErrorKind::Io),
            ),
        }
    }
}

/// One consistent answer to "how far is it?".
///
/// While [`Status::Pending`], `current / completion` is the proportion done: `completion` is never zero and `current`
/// never exceeds it, but both may change from one answer to the next. Afterwards the numbers mean nothing.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct Progress {
    /// How it stands; the only sign that it is over.
    pub status: Status,
    /// Units done.
    pub current: u64,
    /// Units in all.
    pub completion: u64,
}

impl Progress {
    /// The proportion done, 0 to 100.
    #[expect(clippy::cast_precision_loss, reason = "a percentage")]
    pub fn percent(&self) -> f64 {
        self.current as f64 * 100.0 / self.completion.max(1) as f64
    }
}

struct Shared<T> {
    handle: Arc<Handle>,
    outcome: Mutex<Outcome<T>>,
    over: Condvar,
}

struct Outcome<T> {
    result: Option<Result<T>>,
    over: bool,
    waker: Option<Waker>,
}

/// Apart from everything else in memory: whoever watches takes its cache line from the workers again and again.
#[repr(align(128))]
struct Handle {
    name: &'static str,
    progress: ProgressCell,
    status: AtomicU32,
    cancelled: AtomicBool,
}

impl Handle {
    fn progress(&self) -> Progress {
        // The status first: an answer that says "pending" must carry numbers from while it was.
        let status = Status::from_code(self.status.load(Ordering::Acquire));
        let (current, completion) = self.progress.read();
        Progress {
            status,
            current,
            completion,
        }
    }
}

/// A running or finished piece of work that will give a `T`.
///
/// Dropping the handle cancels the work and waits until it has stopped, so that no file is touched afterwards.
#[must_use = "dropping an operation cancels it"]
pub struct Operation<T> {
    shared: Arc<Shared<T>>,
}

/// A view of an operation that can be cloned and sent to other threads: it sees the progress and may cancel.
#[derive(Clone)]
pub struct Observer {
    handle: Arc<Handle>,
}

/// What the work itself sees: it reports progress and asks whether it should stop.
#[derive(Clone)]
pub struct Monitor {
    handle: Arc<Handle>,
}

impl<T: Send + 'static> Operation<T> {
    /// Starts `work` on a thread of its own and returns at once.
    ///
    /// The work reports through the [`Monitor`] and calls [`Monitor::checkpoint`] wherever it may stop, that is,
    /// wherever files are consistent.
    pub fn start(
        name: &'static str,
        work: impl FnOnce(&Monitor) -> Result<T> + Send + 'static,
    ) -> Self {
        let (operation, finish) = Self::pending(name);
        let monitor = Monitor {
            handle: operation.shared.handle.clone(),
        };
        let run = move || {
            let result = catch_unwind(AssertUnwindSafe(|| work(&monitor))).unwrap_or_else(|_| {
                Err(
                    Error::new(ErrorKind::Io, "internal error: the operation panicked")
                        .with_hint("please report it with the message above"),
                )
            });
            finish(result);
        };
        if let Err(e) = sync::spawn(name, run) {
            operation
                .shared
                .finish(Err(Error::io("start of a thread", e)));
        }
        operation
    }

    fn pending(name: &'static str) -> (Self, impl FnOnce(Result<T>) + Send + 'static) {
        let shared = Arc::new(Shared {
            handle: Arc::new(Handle {
                name,
                progress: ProgressCell::new(),
                status: AtomicU32::new(PENDING),
                cancelled: AtomicBool::new(false),
            }),
            outcome: Mutex::new(Outcome {
                result: None,
                over: false,
                waker: None,
            }),
            over: Condvar::new(),
        });
        let finisher = shared.clone();
        (Self { shared }, move |result| finisher.finish(result))
    }

    /// Waits for the end and gives the result.
    ///
    /// # Errors
    /// What the work failed with; [`ErrorKind::Aborted`] if it was cancelled.
    pub fn wait(self) -> Result<T> {
        let mut outcome = self.shared.lock();
        loop {
            if let Some(result) = outcome.result.take() {
                return result;
            }
            outcome = self
                .shared
                .over
                .wait(outcome)
                .unwrap_or_else(std::sync::PoisonError::into_inner);
        }
    }
}

impl<T> Operation<T> {
    /// What is being done, in one word.
    pub fn name(&self) -> &'static str {
        self.shared.handle.name
    }

    /// How far it is, now. Never waits for the work; may be called from anywhere at any rate.
    pub fn progress(&self) -> Progress {
        self.shared.handle.progress()
    }

    /// Asks it to stop. It stops at a point of its own choosing where files are consistent, and then ends as
    /// [`ErrorKind::Aborted`]; an operation that is over, or past its last such point, is not changed.
    pub fn cancel(&self) {
        self.shared.handle.cancelled.store(true, Ordering::Release);
    }

    /// A view of it for other threads.
    pub fn observer(&self) -> Observer {
        Observer {
            handle: self.shared.handle.clone(),
        }
    }
}

impl Observer {
    /// See [`Operation::progress`].
    pub fn progress(&self) -> Progress {
        self.handle.progress()
    }

    /// See [`Operation::cancel`].
    pub fn cancel(&self) {
        self.handle.cancelled.store(true, Ordering::Release);
    }

    /// True if somebody asked it to stop.
    pub fn is_cancelled(&self) -> bool {
        self.handle.cancelled.load(Ordering::Acquire)
    }

    /// See [`Operation::name`].
    pub fn name(&self) -> &'static str {
        self.handle.name
    }
}

impl Monitor {
    /// A monitor nobody watches, for running work in the foreground.
    pub fn unobserved() -> Self {
        Self {
            handle: Arc::new(Handle {
                name: "",
                progress: ProgressCell::new(),
                status: AtomicU32::new(PENDING),
                cancelled: AtomicBool::new(false),
            }),
        }
    }

    /// A view of the operation.
    pub fn observer(&self) -> Observer {
        Observer {
            handle: self.handle.clone(),
        }
    }

    /// States how many units there are in all.
    pub fn set_completion(&self, completion: u64) {
        self.handle
            .progress
            .update(|current, _| (current, completion));
    }

    /// More units than known so far have to be done.
    pub fn add_completion(&self, units: u64) {
        self.handle
            .progress
            .update(|current, completion| (current, completion.saturating_add(units)));
    }

    /// This many more units are done.
    pub fn advance(&self, units: u64) {
        self.handle
            .progress
            .update(|current, completion| (current.saturating_add(units), completion));
    }

    /// Both numbers at once.
    pub fn set(&self, current: u64, completion: u64) {
        self.handle.progress.update(|_, _| (current, completion));
    }

    /// True if somebody asked it to stop.
    pub fn is_cancelled(&self) -> bool {
        self.handle.cancelled.load(Ordering::Acquire)
    }

    /// A point where files are consistent: fails with [`ErrorKind::Aborted`] if somebody asked it to stop.
    pub fn checkpoint(&self) -> Result<()> {
        if self.is_cancelled() {
            return Err(Error::new(ErrorKind::Aborted, "cancelled"));
        }
        Ok(())
    }
}

impl<T> Shared<T> {
    fn lock(&self) -> MutexGuard<'_, Outcome<T>> {
        self.outcome
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn finish(&self, result: Result<T>) {
        let code = match &result {
            Ok(_) => 0,
            Err(e) => e.kind().win32_code(),
        };
        let mut outcome = self.lock();
        outcome.result = Some(result);
        outcome.over = true;
        // Before anybody who waits can see the end (P-22).
        self.handle.status.store(code, Ordering::Release);
        let waker = outcome.waker.take();
        drop(outcome);
        self.over.notify_all();
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

impl<T> Future for Operation<T> {
    type Output = Result<T>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let mut outcome = self.shared.lock();
        if let Some(result) = outcome.result.take() {
            return Poll::Ready(result);
        }
        if outcome.over {
            return Poll::Ready(Err(Error::new(
                ErrorKind::InvalidState,
                "the result of the operation was already taken",
            )));
        }
        outcome.waker = Some(context.waker().clone());
        Poll::Pending
    }
}

impl<T> Drop for Operation<T> {
    fn drop(&mut self) {
        self.cancel();
        let mut outcome = self.shared.lock();
        while !outcome.over {
            outcome = self
                .shared
                .over
                .wait(outcome)
                .unwrap_or_else(std::sync::PoisonError::into_inner);
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests;

#[cfg(all(test, loom))]
mod loom_tests;
