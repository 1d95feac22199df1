//! What is served: an [`Export`] is a disk as the protocol sees it, a [`Catalog`] the exports of a server by name.

use std::io::{PipeReader, PipeWriter};
use std::sync::Arc;

use vhdkit::{Error, ErrorKind, Result};

/// The context that says what is allocated and what reads as zeros.
pub const BASE_ALLOCATION: &str = "base:allocation";

/// Status flags of [`BASE_ALLOCATION`].
pub mod allocation {
    /// Not allocated: a write may need space.
    pub const HOLE: u32 = 1 << 0;
    /// Reads as zeros.
    pub const ZERO: u32 = 1 << 1;
}

/// A disk as the protocol sees it. All methods may be called from any number of threads; what one call wrote, every
/// later call on any connection sees, and a flush covers all writes that were answered, whoever made them.
///
/// Ranges have been checked against [`Export::size`] and are never empty.
pub trait Export: Send + Sync {
    /// Size in bytes.
    fn size(&self) -> u64;

    /// True if it cannot be written to.
    fn is_read_only(&self) -> bool;

    /// What requests have to be multiples of, and how large they should be.
    fn block_sizes(&self) -> BlockSizes {
        BlockSizes::default()
    }

    /// A sentence for people.
    fn description(&self) -> String {
        String::new()
    }

    /// Names of what [`Export::status`] can be asked for; the first one is [`BASE_ALLOCATION`]. A change of the list
    /// does not reach clients that are connected.
    fn contexts(&self) -> Vec<String> {
        vec![BASE_ALLOCATION.into()]
    }

    /// Fills `buf` from `offset`.
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()>;

    /// Puts the first bytes of a range into a pipe without copying them; how many. What comes out of the pipe is what the
    /// range held at this time or what was written to it since. 0 if that cannot be done, or fails, which
    /// [`Export::read_at`] will tell.
    fn lend(&self, offset: u64, length: u64, pipe: &PipeWriter) -> u64 {
        let _ = (offset, length, pipe);
        0
    }

    /// Writes `data` at `offset`.
    fn write_at(&self, offset: u64, data: &[u8]) -> Result<()>;

    /// Writes the first bytes of a range out of a pipe that has `length` of them, without copying them; how many, which
    /// are out of the pipe then. Fewer if that cannot be done, or fails, which [`Export::write_at`] will tell.
    fn write_pipe(&self, offset: u64, length: u64, pipe: &PipeReader) -> u64 {
        let _ = (offset, length, pipe);
        0
    }

    /// Makes a range read as zeros; with `may_unmap` its space may be given back, else it stays or becomes allocated.
    fn zero(&self, offset: u64, length: u64, may_unmap: bool) -> Result<()>;

    /// True if [`Export::zero`] of the range costs clearly less than writing zeros.
    fn zeroes_fast(&self, offset: u64, length: u64, may_unmap: bool) -> bool;

    /// The range is no longer needed.
    fn trim(&self, offset: u64, length: u64) -> Result<()>;

    /// Returns when everything written before is on stable media.
    fn flush(&self) -> Result<()>;

    /// The longest run at `offset`, at most `length` bytes, with one status in a context, given by its place in
    /// [`Export::contexts`].
    fn status(&self, context: usize, offset: u64, length: u64) -> Result<Status>;
}

/// A run with one status.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[expect(clippy::exhaustive_structs, reason = "a plain answer")]
pub struct Status {
    /// How long it is, in bytes; not zero.
    pub length: u64,
    /// Flags as the context defines them.
    pub flags: u32,
}

/// Sizes of requests in bytes, all powers of two but the last, which is a multiple of the first.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[expect(clippy::exhaustive_structs, reason = "three numbers")]
pub struct BlockSizes {
    /// Offsets and lengths of clients that ask about it have to be multiples of this. The others know nothing of it, and
    /// are served with any.
    pub minimum: u32,
    /// Smaller requests are slower than they need to be.
    pub preferred: u32,
    /// Larger reads and writes are refused.
    pub maximum: u32,
}

impl Default for BlockSizes {
    fn default() -> Self {
        Self {
            minimum: 1,
            preferred: 4096,
            maximum: MAX_REQUEST,
        }
    }
}

/// The largest read or write: what all clients count on.
pub const MAX_REQUEST: u32 = 32 << 20;

/// The exports of a server. Names are unique.
#[derive(Default)]
pub struct Catalog {
    entries: Vec<Entry>,
}

pub(crate) struct Entry {
    pub(crate) name: String,
    pub(crate) export: Arc<dyn Export>,
}

/// Longest name that the protocol allows.
pub const MAX_NAME: usize = 4096;

impl Catalog {
    /// No exports.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds an export.
    ///
    /// # Errors
    /// [`ErrorKind::AlreadyExists`] if the name is taken, [`ErrorKind::InvalidParameter`] if it is longer than
    /// [`MAX_NAME`] or has a NUL in it.
    pub fn add(&mut self, name: impl Into<String>, export: Arc<dyn Export>) -> Result<()> {
        let name = name.into();
        if name.len() > MAX_NAME || name.contains('\0') {
            return Err(Error::new(
                ErrorKind::InvalidParameter,
                format!("a name of an export has at most {MAX_NAME} bytes and no NUL"),
            ));
        }
        if self.entries.iter().any(|entry| entry.name == name) {
            return Err(Error::new(
                ErrorKind::AlreadyExists,
                format!("there is an export called {name:?} already"),
            ));
        }
        self.entries.push(Entry { name, export });
        Ok(())
    }

    /// The names, in the order in which they were added.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.entries.iter().map(|entry| entry.name.as_str())
    }

    pub(crate) fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// The place of an export. A server with one export has it under the empty name too: the default.
    pub(crate) fn find(&self, name: &str) -> Option<usize> {
        if name.is_empty() && self.entries.len() == 1 {
            return Some(0);
        }
        self.entries.iter().position(|entry| entry.name == name)
    }
}
