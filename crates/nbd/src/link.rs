//! The second half of a connection, as far as all its threads share it.

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use vhdkit::disk::Pace;

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

    /// Notes what a write of so many bytes took, without copying them: other threads would not do that any faster.
    pub(crate) fn note_write(&self, started: Instant, length: u64) {
        // 1 GiB/s.
        let copying = Duration::from_nanos(length);
        self.pace.note(started.elapsed().saturating_sub(copying));
    }

    pub(crate) fn channel(&self) -> &Channel {
        &self.channel
    }

    /// Sends whole replies.
    pub(crate) fn send(&self, replies: &[u8]) -> io::Result<()> {
        let _output = self.output();
        self.channel.send(replies, None)
    }

    /// Sends what is in a pipe, `length` bytes, and then `rest`.
    pub(crate) fn send_pipe(
        &self,
        pipe: BorrowedFd<'_>,
        length: usize,
        rest: &[u8],
    ) -> io::Result<()> {
        let _output = self.output();
        self.channel.send_pipe(pipe, length)?;
        self.channel.send(rest, None)
    }

    /// For sending in several steps with nothing of others in between.
    pub(crate) fn output(&self) -> MutexGuard<'_, Buffer> {
        self.output.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
