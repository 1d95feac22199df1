//! Whether a disk answers from memory.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

/// Whether a disk answers from memory or has to wait, by what requests took lately: whoever serves it does requests
/// itself while it is quick, and has several threads wait at once while it is not.
#[derive(Default, Debug)]
pub struct Pace {
    /// Moving average in nanoseconds.
    average: AtomicU32,
    slow: AtomicBool,
}

impl Pace {
    /// Handing a request to another thread costs about as much.
    const SLOW: u32 = 60_000;
    const FAST: u32 = 30_000;
    /// One request that was interrupted for long says little about the next.
    const MOST: u32 = 1_000_000;

    /// Notes what one piece took.
    pub fn note(&self, took: Duration) {
        let took = u32::try_from(took.as_nanos()).map_or(Self::MOST, |n| n.min(Self::MOST));
        // Notes of others that come in between are lost, which does not matter.
        let old = self.average.load(Ordering::Relaxed);
        let new = old - old / 8 + took / 8;
        self.average.store(new, Ordering::Relaxed);
        let slow = self.slow.load(Ordering::Relaxed);
        if new > Self::SLOW && !slow {
            self.slow.store(true, Ordering::Relaxed);
        } else if new < Self::FAST && slow {
            self.slow.store(false, Ordering::Relaxed);
        }
    }

    /// True if requests are better done by several threads at once.
    pub fn is_slow(&self) -> bool {
        self.slow.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_interruption_is_forgotten_and_a_slow_disk_is_noticed() {
        let pace = Pace::default();
        let (quick, slow) = (Duration::from_micros(3), Duration::from_micros(150));
        pace.note(Duration::from_secs(5));
        for _ in 0..32 {
            pace.note(quick);
        }
        assert!(!pace.is_slow());
        for _ in 0..32 {
            pace.note(slow);
        }
        assert!(pace.is_slow());
        for _ in 0..32 {
            pace.note(quick);
        }
        assert!(!pace.is_slow());
    }
}
