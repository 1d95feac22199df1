//! Data that goes from the system's cache to the client without being copied, or from the client's socket to the cache
//! with one copy instead of two.
//!
//! The pages go through a pipe: into it while the disk is asked, which takes their content for good (see
//! [`Export::lend`]), and out of it while nothing of the disk is held, so that a client which does not read keeps nobody
//! waiting. Whether the data can be read is known before anything is sent. In the other direction they come into the pipe
//! while nothing is held, and what is not written out of it is written like anything else.

use std::io::{self, PipeReader, PipeWriter, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Instant;

use crate::buffer::Buffer;
use crate::export::Export;
use crate::link::{Link, PIECE};

/// A piece at any place of its pages, and what goes before it.
const CAPACITY: usize = PIECE * 2;
/// Less is faster copied.
pub(crate) const LEAST: usize = 64 << 10;
/// Most of other replies that goes before: what fits into a page, with a head.
pub(crate) const MOST_BEFORE: usize = 4000;

/// What should be written at once: with less of a page the rest of it might have to be read.
const PAGE: u64 = 4096;

/// The pipe of a connection's own thread. It is empty between any two calls but [`Pages::take`] and what sends it.
pub(crate) struct Pages {
    pipe: Option<(PipeReader, PipeWriter)>,
    sending: Patience,
    receiving: Patience,
}

/// What was in vain is not even tried for some time.
#[derive(Default)]
struct Patience {
    /// So many requests are not tried.
    skip: u32,
    in_vain: u32,
}

impl Patience {
    const MOST: u32 = 64;

    fn may_try(&mut self) -> bool {
        let may = self.skip == 0;
        self.skip = self.skip.saturating_sub(1);
        may
    }

    fn note(&mut self, was_in_vain: bool) {
        self.in_vain = if was_in_vain {
            (self.in_vain * 2 + 1).min(Self::MOST)
        } else {
            0
        };
        self.skip = self.in_vain;
    }
}

impl Pages {
    pub(crate) fn new() -> Self {
        Self {
            pipe: None,
            sending: Patience::default(),
            receiving: Patience::default(),
        }
    }

    /// Puts `before` and then up to `length` bytes of an export into the pipe; how many of the latter. If that is 0, or
    /// there is no pipe to be had, nothing is in it.
    pub(crate) fn take(
        &mut self,
        before: &[u8],
        export: &dyn Export,
        offset: u64,
        length: u64,
    ) -> usize {
        if !self.sending.may_try() {
            return 0;
        }
        let lent = self
            .try_take(before, export, offset, length)
            .unwrap_or_else(|_| {
                self.discard();
                0
            });
        self.sending.note(lent == 0);
        lent
    }

    fn pipe(&mut self) -> io::Result<&mut (PipeReader, PipeWriter)> {
        if self.pipe.is_none() {
            let (reader, writer) = io::pipe()?;
            // Users have a limit on all their pipes together; a small one is of no use.
            if rustix::pipe::fcntl_setpipe_size(&writer, CAPACITY)? < CAPACITY {
                return Err(io::ErrorKind::QuotaExceeded.into());
            }
            self.pipe = Some((reader, writer));
        }
        self.pipe.as_mut().ok_or(io::ErrorKind::NotFound.into())
    }

    fn try_take(
        &mut self,
        before: &[u8],
        export: &dyn Export,
        offset: u64,
        length: u64,
    ) -> io::Result<usize> {
        let (reader, writer) = self.pipe()?;
        writer.write_all(before)?;
        let lent = export.lend(offset, length, writer);
        if lent == 0 {
            reader.read_exact(&mut vec![0; before.len()])?;
        }
        Ok(usize::try_from(lent).unwrap_or(0))
    }

    /// True if [`Pages::receive`] is worth being tried for the next write.
    pub(crate) fn may_receive(&mut self) -> bool {
        self.receiving.may_try()
    }

    /// Has the next `length` bytes of the client written to the export, through the pipe, until that cannot be done or
    /// fails; how many were. What has been received besides is added to `rest`, at most what the pipe holds.
    pub(crate) fn receive(
        &mut self,
        link: &Link,
        offset: u64,
        length: u64,
        rest: &mut Buffer,
    ) -> io::Result<u64> {
        let Ok((reader, writer)) = self.pipe() else {
            self.receiving.note(true);
            return Ok(0);
        };
        let (mut written, mut held) = (0, 0);
        // There is something to be received, or nothing will come.
        let mut is_ready = false;
        while written < length {
            // Pages in a pipe can be large, so this is less than what it could hold.
            let most = (length - written).min(CAPACITY as u64);
            while held < most {
                let left = usize::try_from(most - held).unwrap_or(CAPACITY);
                match link.channel().try_recv_pipe(writer.as_fd(), left)? {
                    Some(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                    Some(count) => held += count as u64,
                    None => break,
                }
                is_ready = false;
            }
            let is_all = written + held == length;
            // There is something and no room for it: the client sends in the smallest parts.
            let is_full = is_ready && held > 0;
            let whole = if is_all || is_full {
                held
            } else {
                held.saturating_sub((offset + written + held) % PAGE)
            };
            // Connections that write by and by keep each other from the file.
            if !is_all && !is_full && whole < LEAST as u64 {
                link.channel().wait_to_recv()?;
                is_ready = true;
                continue;
            }
            is_ready = false;
            let started = Instant::now();
            let count = link.export.write_pipe(offset + written, whole, reader);
            link.note_write(started, whole);
            written += count;
            held -= count;
            if count == 0 {
                let held = usize::try_from(held).unwrap_or(usize::MAX);
                reader.read_exact(rest.room(held))?;
                break;
            }
        }
        self.receiving.note(written == 0);
        Ok(written)
    }

    /// Where it comes out.
    pub(crate) fn end(&self) -> Option<BorrowedFd<'_>> {
        self.pipe.as_ref().map(|(reader, _)| reader.as_fd())
    }

    /// Drops what is in the pipe.
    pub(crate) fn discard(&mut self) {
        self.pipe = None;
    }
}
