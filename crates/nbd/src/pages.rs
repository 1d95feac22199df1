//! Data that goes from the system's cache to the client without being copied.
//!
//! The pages go through a pipe: into it while the disk is asked, which takes their content for good (see
//! [`Export::lend`]), and out of it while nothing of the disk is held, so that a client which does not read keeps nobody
//! waiting. Whether the data can be read is known before anything is sent.

use std::io::{self, PipeReader, PipeWriter, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};

use crate::export::Export;
use crate::link::PIECE;

/// A piece at any place of its pages, and what goes before it.
const CAPACITY: usize = PIECE * 2;
/// Less is faster copied.
pub(crate) const LEAST: usize = 64 << 10;
/// Most of other replies that goes before: what fits into a page, with a head.
pub(crate) const MOST_BEFORE: usize = 4000;

/// The pipe of a connection's own thread.
pub(crate) struct Pages {
    pipe: Option<(PipeReader, PipeWriter)>,
    /// So many requests are not even tried, since the last ones were in vain.
    skip: u32,
    in_vain: u32,
}

impl Pages {
    const PATIENCE: u32 = 64;

    pub(crate) fn new() -> Self {
        Self {
            pipe: None,
            skip: 0,
            in_vain: 0,
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
        if self.skip > 0 {
            self.skip -= 1;
            return 0;
        }
        let lent = self
            .try_take(before, export, offset, length)
            .unwrap_or_else(|_| {
                self.discard();
                0
            });
        if lent == 0 {
            self.in_vain = (self.in_vain * 2 + 1).min(Self::PATIENCE);
            self.skip = self.in_vain;
        } else {
            self.in_vain = 0;
        }
        lent
    }

    fn try_take(
        &mut self,
        before: &[u8],
        export: &dyn Export,
        offset: u64,
        length: u64,
    ) -> io::Result<usize> {
        if self.pipe.is_none() {
            let (reader, writer) = io::pipe()?;
            // Users have a limit on all their pipes together; a small one is of no use.
            if rustix::pipe::fcntl_setpipe_size(&writer, CAPACITY)? < CAPACITY {
                self.skip = u32::MAX;
                return Ok(0);
            }
            self.pipe = Some((reader, writer));
        }
        let Some((reader, writer)) = &mut self.pipe else {
            return Ok(0);
        };
        writer.write_all(before)?;
        let lent = export.lend(offset, length, writer);
        if lent == 0 {
            reader.read_exact(&mut vec![0; before.len()])?;
        }
        Ok(usize::try_from(lent).unwrap_or(0))
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
