//! What a connection has received and not yet understood, and how it waits for more.

use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crate::channel::Channel;
use crate::handshake::Dialect;
use crate::link::PIECE;
use crate::request::head_length;

/// A piece and the head of the next request.
const CAPACITY: usize = PIECE + 4096;

pub(crate) struct Input {
    bytes: Box<[u8]>,
    start: usize,
    end: usize,
    /// How much is received; more if less is of no use.
    limit: usize,
    eagerness: Eagerness,
}

impl Input {
    pub(crate) fn new() -> Self {
        Self {
            bytes: vec![0; CAPACITY].into_boxed_slice(),
            start: 0,
            end: 0,
            limit: CAPACITY,
            eagerness: Eagerness::default(),
        }
    }

    pub(crate) fn filled(&self) -> &[u8] {
        &self.bytes[self.start..self.end]
    }

    pub(crate) fn consume(&mut self, length: usize) {
        self.start += length;
        debug_assert!(self.start <= self.end);
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        }
    }

    /// Leaves in the socket what comes behind the next head of a request, so that it can be received elsewhere.
    pub(crate) fn expect_head(&mut self, dialect: Dialect) {
        self.limit = head_length(dialect);
    }

    /// Receives as much as there is.
    pub(crate) fn expect_anything(&mut self) {
        self.limit = CAPACITY;
    }

    /// Receives at least one byte more; false at the end. With a deadline there is no hurry.
    pub(crate) fn fill(
        &mut self,
        channel: &Channel,
        deadline: Option<Instant>,
    ) -> io::Result<bool> {
        if self.start > 0 {
            self.bytes.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
        let limit = self.limit.max(self.end + 1).min(CAPACITY);
        let space = &mut self.bytes[self.end..limit];
        if space.is_empty() {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let count = match deadline {
            Some(_) => channel.recv(space, deadline)?,
            None => self.eagerness.recv(channel, space)?,
        };
        self.end += count;
        Ok(count > 0)
    }

    /// Moves the next `into.len()` bytes out, of which what is not here yet is received.
    pub(crate) fn take(&mut self, channel: &Channel, into: &mut [u8]) -> io::Result<()> {
        let here = into.len().min(self.end - self.start);
        let (front, mut rest) = into.split_at_mut(here);
        front.copy_from_slice(&self.bytes[self.start..self.start + here]);
        self.consume(here);
        while !rest.is_empty() {
            match channel.recv(rest, None)? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                count => rest = &mut rest[count..],
            }
        }
        Ok(())
    }

    /// Drops the next `length` bytes.
    pub(crate) fn skip(&mut self, channel: &Channel, mut length: u64) -> io::Result<()> {
        loop {
            let here =
                usize::try_from(length).map_or(self.filled().len(), |n| n.min(self.filled().len()));
            self.consume(here);
            length -= here as u64;
            if length == 0 {
                return Ok(());
            }
            if !self.fill(channel, None)? {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
    }
}

/// Looking again and again for a short time is faster than being woken, if what is waited for comes within that time.
/// Whether it does is learned from how long the last waits were.
#[derive(Default)]
struct Eagerness {
    /// Above zero it is worth it.
    score: i8,
}

/// Threads of this process that look again and again at this moment.
static EAGER: AtomicUsize = AtomicUsize::new(0);

impl Eagerness {
    /// A little less than being woken costs.
    const PATIENCE: Duration = Duration::from_micros(40);

    fn recv(&mut self, channel: &Channel, buf: &mut [u8]) -> io::Result<usize> {
        if let Some(count) = channel.try_recv(buf)? {
            return Ok(count);
        }
        let begun = Instant::now();
        if self.score > 0 {
            let Some(_place) = Place::take() else {
                return channel.recv(buf, None);
            };
            while begun.elapsed() < Self::PATIENCE {
                for _ in 0..8 {
                    std::hint::spin_loop();
                }
                if let Some(count) = channel.try_recv(buf)? {
                    self.score = (self.score + 1).min(16);
                    return Ok(count);
                }
            }
            self.score -= 2;
        }
        let count = channel.recv(buf, None)?;
        // A wait that was short although it had to be woken from.
        let short = begun.elapsed() < Self::PATIENCE * 3;
        self.score = (self.score + if short { 1 } else { -1 }).clamp(-4, 16);
        Ok(count)
    }
}

/// Never all processors: somebody has to do what is waited for.
fn eager_places() -> usize {
    use std::sync::OnceLock;
    static PROCESSORS: OnceLock<usize> = OnceLock::new();
    *PROCESSORS.get_or_init(|| std::thread::available_parallelism().map_or(1, usize::from)) / 2
}

struct Place;

impl Place {
    fn take() -> Option<Self> {
        if EAGER.fetch_add(1, Ordering::Relaxed) < eager_places() {
            Some(Self)
        } else {
            EAGER.fetch_sub(1, Ordering::Relaxed);
            None
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        EAGER.fetch_sub(1, Ordering::Relaxed);
    }
}
