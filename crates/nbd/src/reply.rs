//! The second half of a connection, to the client: the bytes of replies.

use crate::buffer::Buffer;
use crate::errno::Errno;
use crate::export::Status;
use crate::handshake::Dialect;
use crate::request::ReplyTo;
use crate::wire::{EXTENDED_REPLY_MAGIC, SIMPLE_REPLY_MAGIC, STRUCTURED_REPLY_MAGIC, chunk};

/// Longest head of a reply with data: an extended chunk and its offset.
pub(crate) const MAX_HEAD: usize = 40;

/// Writes replies of one dialect.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Replies(pub(crate) Dialect);

impl Replies {
    /// It is done, and there is nothing more to say.
    pub(crate) fn done(self, out: &mut Buffer, to: ReplyTo) {
        match self.0 {
            // Shorter than an empty chunk, and legal.
            Dialect::Simple | Dialect::Structured => simple(out, to, 0),
            Dialect::Extended => self.chunk(out, to, chunk::NONE, chunk::DONE, 0),
        }
    }

    /// The last chunk of a reply whose other chunks have been sent.
    pub(crate) fn end(self, out: &mut Buffer, to: ReplyTo) {
        self.chunk(out, to, chunk::NONE, chunk::DONE, 0);
    }

    /// It failed.
    pub(crate) fn error(self, out: &mut Buffer, to: ReplyTo, errno: Errno, words: &str) {
        if self.0 == Dialect::Simple {
            return simple(out, to, errno as u32);
        }
        // The length has 16 bits; nobody reads more than a few lines.
        let words = &words.as_bytes()[..words.floor_char_boundary(1024)];
        let length = u16::try_from(words.len()).unwrap_or(0);
        self.chunk(out, to, chunk::ERROR, chunk::DONE, 6 + u64::from(length));
        out.put(&(errno as u32).to_be_bytes());
        out.put(&length.to_be_bytes());
        out.put(words);
    }

    /// The head of `length` bytes of data at `offset`, which have to follow. With `last` nothing else does.
    pub(crate) fn data(self, out: &mut Buffer, to: ReplyTo, offset: u64, length: u64, last: bool) {
        if self.0 == Dialect::Simple {
            return simple(out, to, 0);
        }
        let flags = if last { chunk::DONE } else { 0 };
        self.chunk(out, to, chunk::OFFSET_DATA, flags, 8 + length);
        out.put(&offset.to_be_bytes());
    }

    /// `length` bytes at `offset` are zeros.
    pub(crate) fn hole(self, out: &mut Buffer, to: ReplyTo, offset: u64, length: u32, last: bool) {
        let flags = if last { chunk::DONE } else { 0 };
        self.chunk(out, to, chunk::OFFSET_HOLE, flags, 12);
        out.put(&offset.to_be_bytes());
        out.put(&length.to_be_bytes());
    }

    /// The runs of one context. Compact lengths have 32 bits: longer runs are cut off, which is legal for the last one.
    pub(crate) fn status(
        self,
        out: &mut Buffer,
        to: ReplyTo,
        context: u32,
        runs: &[Status],
        last: bool,
    ) {
        let flags = if last { chunk::DONE } else { 0 };
        let count = runs.len() as u64;
        if self.0 == Dialect::Extended {
            self.chunk(out, to, chunk::BLOCK_STATUS_EXT, flags, 8 + 16 * count);
            out.put(&context.to_be_bytes());
            out.put(&u32::try_from(count).unwrap_or(0).to_be_bytes());
            for run in runs {
                out.put(&run.length.to_be_bytes());
                out.put(&u64::from(run.flags).to_be_bytes());
            }
        } else {
            self.chunk(out, to, chunk::BLOCK_STATUS, flags, 4 + 8 * count);
            out.put(&context.to_be_bytes());
            for run in runs {
                let length = u32::try_from(run.length).unwrap_or(u32::MAX);
                out.put(&length.to_be_bytes());
                out.put(&run.flags.to_be_bytes());
            }
        }
    }

    /// A chunk's head.
    fn chunk(self, out: &mut Buffer, to: ReplyTo, kind: u16, flags: u16, length: u64) {
        let magic = match self.0 {
            Dialect::Extended => EXTENDED_REPLY_MAGIC,
            _ => STRUCTURED_REPLY_MAGIC,
        };
        out.put(&magic.to_be_bytes());
        out.put(&flags.to_be_bytes());
        out.put(&kind.to_be_bytes());
        out.put(&to.cookie.to_be_bytes());
        if self.0 == Dialect::Extended {
            out.put(&to.offset.to_be_bytes());
            out.put(&length.to_be_bytes());
        } else {
            out.put(&u32::try_from(length).unwrap_or(u32::MAX).to_be_bytes());
        }
    }
}

fn simple(out: &mut Buffer, to: ReplyTo, error: u32) {
    out.put(&SIMPLE_REPLY_MAGIC.to_be_bytes());
    out.put(&error.to_be_bytes());
    out.put(&to.cookie.to_be_bytes());
}
