//! Two numbers that are always read as a pair (P-13), without a lock for the readers: a sequence lock.
//!
//! `version` is odd while a writer is at work. A reader takes the numbers between two looks at the same even version.

use super::sync::{AtomicU64, Ordering, fence, pause};

pub(super) struct ProgressCell {
    version: AtomicU64,
    current: AtomicU64,
    completion: AtomicU64,
}

impl ProgressCell {
    pub(super) fn new() -> Self {
        Self {
            version: AtomicU64::new(0),
            current: AtomicU64::new(0),
            completion: AtomicU64::new(1),
        }
    }

    /// Changes the pair; several writers take turns. `current` is kept within `completion`, which is at least 1
    /// (P-13, P-16).
    pub(super) fn update(&self, change: impl FnOnce(u64, u64) -> (u64, u64)) {
        let version = loop {
            let version = self.version.load(Ordering::Relaxed);
            if version & 1 == 0
                && self
                    .version
                    .compare_exchange(version, version + 1, Ordering::Acquire, Ordering::Relaxed)
                    .is_ok()
            {
                break version;
            }
            pause();
        };
        fence(Ordering::Release);
        let (current, completion) = change(
            self.current.load(Ordering::Relaxed),
            self.completion.load(Ordering::Relaxed),
        );
        let completion = completion.max(1);
        self.current
            .store(current.min(completion), Ordering::Relaxed);
        self.completion.store(completion, Ordering::Relaxed);
        self.version.store(version + 2, Ordering::Release);
    }

    pub(super) fn read(&self) -> (u64, u64) {
        loop {
            let before = self.version.load(Ordering::Acquire);
            let pair = (
                self.current.load(Ordering::Relaxed),
                self.completion.load(Ordering::Relaxed),
            );
            fence(Ordering::Acquire);
            if before & 1 == 0 && self.version.load(Ordering::Relaxed) == before {
                return pair;
            }
            pause();
        }
    }
}
