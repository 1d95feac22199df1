//! Events: what `OVERLAPPED.hEvent` and `WaitForSingleObject` are about.

use std::time::Duration;

use crate::sync::{Condvar, Mutex, Order};

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
            signalled: Mutex::new(Order::Event, signalled),
            changed: Condvar::new(),
        }
    }

    pub(crate) fn set(&self) {
        *self.signalled.lock() = true;
        if self.manual_reset {
            self.changed.notify_all();
        } else {
            self.changed.notify_one();
        }
    }

    pub(crate) fn reset(&self) {
        *self.signalled.lock() = false;
    }

    /// Waits for the signal, `None` for ever. False if the time was over first.
    pub(crate) fn wait(&self, timeout: Option<Duration>) -> bool {
        let signalled = self.signalled.lock();
        let mut signalled = self
            .changed
            .wait_until(signalled, timeout, |signalled| *signalled);
        let taken = *signalled;
        if !self.manual_reset {
            *signalled = false;
        }
        taken
    }
}
