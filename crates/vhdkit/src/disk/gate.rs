//! Who may use the images of a disk: any number of requests at once, or one change of the structure.

use std::cell::Cell;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};

const SHARDS: usize = 16;

/// A value that many threads read at the same time, and one may change while nobody reads.
///
/// Each thread has its own shard and no thread touches another's, so requests on several processors do not slow each
/// other down. Whoever changes the value takes all shards. A thread never holds the gate twice: a change that waits
/// between the two would never come.
pub(super) struct Gate<T>(Box<[Shard<T>]>);

/// Alone on its cache line (two, for processors that fetch pairs). `None` only while the value is being changed.
#[repr(align(128))]
struct Shard<T>(RwLock<Option<Arc<T>>>);

/// See [`Gate::read`].
pub(super) struct Passed<'a, T>(RwLockReadGuard<'a, Option<Arc<T>>>);

impl<T> std::ops::Deref for Passed<'_, T> {
    type Target = T;

    #[expect(
        clippy::expect_used,
        reason = "the value is missing only while all shards are held exclusively"
    )]
    fn deref(&self) -> &T {
        self.0
            .as_ref()
            .expect("present whenever a shard can be read")
    }
}

impl<T> Gate<T> {
    pub(super) fn new(value: T) -> Self {
        let value = Arc::new(value);
        Self(
            (0..SHARDS)
                .map(|_| Shard(RwLock::new(Some(value.clone()))))
                .collect(),
        )
    }

    /// The value, which stays as it is while the result lives.
    pub(super) fn read(&self) -> Passed<'_, T> {
        Passed(
            self.0[shard_of_thread()]
                .0
                .read()
                .unwrap_or_else(PoisonError::into_inner),
        )
    }

    /// Waits until nobody reads, and lets `change` have the value to itself.
    #[expect(
        clippy::expect_used,
        reason = "all owners of the value are in this function"
    )]
    pub(super) fn change<R>(&self, change: impl FnOnce(&mut T) -> R) -> R {
        let mut guards: Vec<_> = self
            .0
            .iter()
            .map(|shard| shard.0.write().unwrap_or_else(PoisonError::into_inner))
            .collect();
        /// Puts the value back, also if the change panics.
        struct Return<'a, 'b, T> {
            guards: &'a mut [std::sync::RwLockWriteGuard<'b, Option<Arc<T>>>],
            value: Option<Arc<T>>,
        }
        impl<T> Drop for Return<'_, '_, T> {
            fn drop(&mut self) {
                for guard in self.guards.iter_mut() {
                    (**guard).clone_from(&self.value);
                }
            }
        }
        let mut value = None;
        for guard in &mut guards {
            value = guard.take();
        }
        let mut held = Return {
            guards: &mut guards,
            value,
        };
        let value = held.value.as_mut().and_then(Arc::get_mut);
        change(value.expect("nobody else has the value"))
    }
}

fn shard_of_thread() -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    thread_local! {
        static SHARD: Cell<usize> = Cell::new(NEXT.fetch_add(1, Ordering::Relaxed) % SHARDS);
    }
    SHARD.with(Cell::get)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_has_the_value_to_itself_and_everybody_sees_it() {
        let gate = Gate::new((0_u64, 0_u64));
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..2_000 {
                        let (a, b) = *gate.read();
                        assert_eq!(a, b);
                    }
                });
            }
            for _ in 0..2 {
                scope.spawn(|| {
                    for _ in 0..500 {
                        gate.change(|pair| {
                            pair.0 += 1;
                            std::thread::yield_now();
                            pair.1 += 1;
                        });
                    }
                });
            }
        });
        assert_eq!(*gate.read(), (1_000, 1_000));
    }

    #[test]
    fn a_change_that_panics_leaves_the_value_in_place() {
        let gate = Gate::new(5);
        let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            gate.change(|value| {
                *value = 6;
                std::panic::resume_unwind(Box::new("stop"));
            });
        }));
        assert!(panicked.is_err());
        assert_eq!(*gate.read(), 6);
    }
}
