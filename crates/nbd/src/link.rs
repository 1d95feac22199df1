//! The second half of a connection, as far as all its threads share it.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::buffer::Buffer;
use crate::channel::Channel;
use crate::export::Export;
use crate::handshake::Session;
use crate::reply::Replies;
use crate::request::Rules;

/// What one thread reads, writes or sends at a time. Fits into the processor's second cache, where it is filled by one
/// system call and emptied by the next.
pub(crate) const PIECE: usize = 256 << 10;
/// Most of a reply in one chunk that is put together before any of it is sent, so that an error can still be told.
pub(crate) const ASSEMBLY: usize = 2 << 20;

pub(crate) struct Link {
    channel: Channel,
    /// Whoever sends has it. Holds replies in one chunk that are larger than a piece.
    output: Mutex<Buffer>,
    pub(crate) export: Arc<dyn Export>,
    pub(crate) session: Session,
    pub(crate) rules: Rules,
    pub(crate) replies: Replies,
    pub(crate) pace: Pace,
    /// The server is going away.
    stopping: Arc<AtomicBool>,
}

impl Link {
    pub(crate) fn new(
        channel: Channel,
        export: Arc<dyn Export>,
        session: Session,
        stopping: Arc<AtomicBool>,
    ) -> Self {
        Self {
            channel,
            output: Mutex::default(),
            rules: Rules::new(&session, &*export),
            replies: Replies(session.dialect),
            export,
            session,
            pace: Pace::default(),
            stopping,
        }
    }

    pub(crate) fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Acquire)
    }

    pub(crate) fn channel(&self) -> &Channel {
        &self.channel
    }

    /// Sends whole replies.
    pub(crate) fn send(&self, replies: &[u8]) -> io::Result<()> {
        let _output = self.output();
        self.channel.send(replies, None)
    }

    /// For sending in several steps with nothing of others in between.
    pub(crate) fn output(&self) -> MutexGuard<'_, Buffer> {
        self.output.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether the export answers from memory or has to wait, by what requests took lately.
#[derive(Default, Debug)]
pub(crate) struct Pace {
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
    pub(crate) fn note(&self, took: Duration) {
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
    pub(crate) fn is_slow(&self) -> bool {
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
