//! Events: what `OVERLAPPED.hEvent` and `WaitForSingleObject` are about.

use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Duration;

/// A flag that threads can wait for.
pub(crate) struct Event {
    /// Stays signalled until it is reset; otherwise one waiting thread takes the signal.
    manual_reset: bool,
    signalled: Mutex<bool>,
    changed: Condvar,
}

impl Event {
    pub(crate) fn new(manual_reset: bool, signalled: bool) -> Self {
        Self {
            manual_reset,
            signalled: Mutex::new(signalled),
            changed: Condvar::new(),
        }
    }

    pub(crate) fn set(&self) {
        *self
            .signalled
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = true;
        if self.manual_reset {
            self.changed.notify_all();
        } else {
            self.changed.notify_one();
        }
    }

    pub(crate) fn reset(&self) {
        *self
            .signalled
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = false;
    }

    /// Waits for the signal, `None` for ever. False if the time was over first.
    pub(crate) fn wait(&self, timeout: Option<Duration>) -> bool {
        let signalled = self
            .signalled
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let mut signalled = wait_until(&self.changed, signalled, timeout, |signalled| *signalled);
        let taken = *signalled;
        if !self.manual_reset {
            *signalled = false;
        }
        taken
    }
}

/// Waits on a condition variable until `ready`, or until the time is over; `None` for ever.
pub(crate) fn wait_until<'a, T>(
    changed: &Condvar,
    guard: std::sync::MutexGuard<'a, T>,
    timeout: Option<Duration>,
    ready: impl Fn(&T) -> bool,
) -> std::sync::MutexGuard<'a, T> {
    match timeout {
        None => changed
            .wait_while(guard, |value| !ready(value))
            .unwrap_or_else(PoisonError::into_inner),
        Some(timeout) => {
            changed
                .wait_timeout_while(guard, timeout, |value| !ready(value))
                .unwrap_or_else(PoisonError::into_inner)
                .0
        }
    }
}
