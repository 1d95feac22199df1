//! Locks, which are taken in one order. A panic elsewhere does not make them unusable.
//!
//! Whoever holds one lock takes only those that come later in [`Order`]. Builds with debug assertions check it at every
//! lock, so that an order that could deadlock fails the first time and not when two threads meet. When `loom` checks the
//! interleavings, the locks are loom's.

use std::ops::{Deref, DerefMut};
use std::sync::PoisonError;
use std::time::Duration;

#[cfg(not(loom))]
use std::sync as base;

#[cfg(loom)]
use loom::sync as base;

/// All locks, the outer ones first.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Order {
    /// The list of open disks.
    Open,
    /// What a disk has open.
    Opened,
    /// How a disk is attached.
    Attachment,
    /// The list of disks that stay attached.
    Permanent,
    /// The operations of a handle.
    Operations,
    /// One operation.
    Record,
    /// An event.
    Event,
    /// The table of handles.
    Handles,
}

/// A lock that this thread has.
struct Held(#[cfg(all(debug_assertions, not(loom)))] Order);

#[cfg(all(debug_assertions, not(loom)))]
mod checked {
    use std::cell::Cell;

    use super::{Held, Order};

    thread_local! {
        /// A bit for each [`Order`].
        static HELD: Cell<u32> = const { Cell::new(0) };
    }

    impl Held {
        pub(super) fn new(order: Order) -> Self {
            let held = HELD.get();
            // A second one would be a second panic.
            assert!(
                held >> order as u32 == 0 || std::thread::panicking(),
                "{order:?} is locked by a thread that has later locks: {held:#b}"
            );
            HELD.set(held | 1 << order as u32);
            Self(order)
        }
    }

    impl Drop for Held {
        fn drop(&mut self) {
            // A thread that is ending has no locks any more.
            let _ = HELD.try_with(|held| held.set(held.get() & !(1 << self.0 as u32)));
        }
    }
}

#[cfg(not(all(debug_assertions, not(loom))))]
impl Held {
    fn new(_order: Order) -> Self {
        Self()
    }
}

/// What is locked, until this is dropped.
pub(crate) struct Guard<G> {
    // Let go first.
    guard: G,
    held: Held,
}

impl<G: Deref> Deref for Guard<G> {
    type Target = G::Target;

    fn deref(&self) -> &G::Target {
        &self.guard
    }
}

impl<G: DerefMut> DerefMut for Guard<G> {
    fn deref_mut(&mut self) -> &mut G::Target {
        &mut self.guard
    }
}

pub(crate) type MutexGuard<'a, T> = Guard<base::MutexGuard<'a, T>>;

/// As std's.
pub(crate) struct Mutex<T> {
    order: Order,
    inner: base::Mutex<T>,
}

impl<T> Mutex<T> {
    #[cfg(not(loom))]
    pub(crate) const fn new(order: Order, value: T) -> Self {
        let inner = base::Mutex::new(value);
        Self { order, inner }
    }

    #[cfg(loom)]
    pub(crate) fn new(order: Order, value: T) -> Self {
        let inner = base::Mutex::new(value);
        Self { order, inner }
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, T> {
        let held = Held::new(self.order);
        let guard = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        Guard { guard, held }
    }
}

/// As std's.
pub(crate) struct RwLock<T> {
    order: Order,
    inner: base::RwLock<T>,
}

impl<T> RwLock<T> {
    pub(crate) fn new(order: Order, value: T) -> Self {
        let inner = base::RwLock::new(value);
        Self { order, inner }
    }

    pub(crate) fn read(&self) -> Guard<base::RwLockReadGuard<'_, T>> {
        let held = Held::new(self.order);
        let guard = self.inner.read().unwrap_or_else(PoisonError::into_inner);
        Guard { guard, held }
    }

    pub(crate) fn write(&self) -> Guard<base::RwLockWriteGuard<'_, T>> {
        let held = Held::new(self.order);
        let guard = self.inner.write().unwrap_or_else(PoisonError::into_inner);
        Guard { guard, held }
    }
}

/// As std's.
pub(crate) struct Condvar(base::Condvar);

impl Condvar {
    pub(crate) fn new() -> Self {
        Self(base::Condvar::new())
    }

    pub(crate) fn notify_one(&self) {
        self.0.notify_one();
    }

    pub(crate) fn notify_all(&self) {
        self.0.notify_all();
    }

    /// Waits until `ready`, or until the time is over; `None` for ever.
    pub(crate) fn wait_until<'a, T>(
        &self,
        guard: MutexGuard<'a, T>,
        timeout: Option<Duration>,
        ready: impl Fn(&T) -> bool,
    ) -> MutexGuard<'a, T> {
        let Guard { mut guard, held } = guard;
        match timeout {
            None => {
                while !ready(&guard) {
                    guard = self.0.wait(guard).unwrap_or_else(PoisonError::into_inner);
                }
            }
            Some(timeout) => guard = self.wait_no_longer(guard, timeout, ready),
        }
        Guard { guard, held }
    }

    #[cfg(not(loom))]
    fn wait_no_longer<'a, T>(
        &self,
        guard: base::MutexGuard<'a, T>,
        timeout: Duration,
        ready: impl Fn(&T) -> bool,
    ) -> base::MutexGuard<'a, T> {
        self.0
            .wait_timeout_while(guard, timeout, |value| !ready(value))
            .unwrap_or_else(PoisonError::into_inner)
            .0
    }

    /// Time does not pass there.
    #[cfg(loom)]
    fn wait_no_longer<'a, T>(
        &self,
        guard: base::MutexGuard<'a, T>,
        _timeout: Duration,
        _ready: impl Fn(&T) -> bool,
    ) -> base::MutexGuard<'a, T> {
        guard
    }
}

/// Starts a thread. False if there can be no more.
#[cfg(not(loom))]
pub(crate) fn spawn(run: impl FnOnce() + Send + 'static) -> bool {
    let thread = std::thread::Builder::new().name("virtdisk".into());
    thread.spawn(run).is_ok()
}

#[cfg(loom)]
pub(crate) fn spawn(run: impl FnOnce() + Send + 'static) -> bool {
    loom::thread::spawn(run);
    true
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    #[should_panic(expected = "Record is locked by a thread that has later locks")]
    fn a_lock_out_of_order_is_an_error_before_it_is_a_deadlock() {
        let (record, event) = (Mutex::new(Order::Record, ()), Mutex::new(Order::Event, ()));
        drop((record.lock(), event.lock()));
        let _event = event.lock();
        let _record = record.lock();
    }

    #[test]
    fn a_lock_that_was_let_go_does_not_count() {
        let (record, event) = (Mutex::new(Order::Record, ()), Mutex::new(Order::Event, ()));
        drop(event.lock());
        let both = (record.lock(), event.lock());
        drop(both);
        drop(record.lock());
    }
}
