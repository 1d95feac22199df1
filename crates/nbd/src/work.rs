//! Doing what a request asks for, and its reply.

use std::io;
use std::sync::Arc;
use std::time::Instant;

use vhdkit::Error;

use crate::buffer::Buffer;
use crate::errno::Errno;
use crate::export::{Status, allocation};
use crate::handshake::{Dialect, context_id};
use crate::link::{ASSEMBLY, Link, PIECE};
use crate::pages::{self, Pages};
use crate::reply::MAX_HEAD;
use crate::request::{Command, ReplyTo};

/// Smaller reads are not worth a look at the map.
const SPARSE: u64 = 64 << 10;
/// Most runs of a status reply. Clients ask again from where it ends.
const MAX_RUNS: usize = 4096;
/// Most questions to the map for one context of a status request.
const MAX_QUESTIONS: usize = 16 << 10;
/// Zeroing and trimming of large ranges is done in steps, between which the connection may end. A multiple of every
/// block size.
const STEP: u64 = 1 << 30;
/// Most that one CACHE request reads.
const MAX_CACHED: u64 = 64 << 20;

/// Replies that are sent with one system call at most, and bytes after which no further reply is waited for: while the
/// client works on these, the next are made.
const BATCH: usize = 8;
const BATCH_BYTES: usize = 64 << 10;

/// What one thread works with. Replies are collected and sent when they are many, or when asked to.
pub(crate) struct Worker {
    link: Arc<Link>,
    out: Buffer,
    /// Requests whose replies are in `out`.
    batch: usize,
    runs: Vec<Status>,
    /// For data that need not be copied.
    pages: Option<Pages>,
    /// What of a reply comes behind its pages.
    rest: Buffer,
}

impl Worker {
    pub(crate) fn new(link: Arc<Link>) -> Self {
        Self {
            link,
            out: Buffer::default(),
            batch: 0,
            runs: Vec::new(),
            pages: None,
            rest: Buffer::default(),
        }
    }

    /// One that sends and receives pages, where the channel can: a pipe is not for every thread, since a user can have few
    /// of that size.
    pub(crate) fn with_pages(link: Arc<Link>) -> Self {
        let pages = link.channel().has_pages().then(Pages::new);
        Self {
            pages,
            ..Self::new(link)
        }
    }

    /// True if [`Worker::receive`] is worth being tried for the next large write.
    pub(crate) fn receives_pages(&mut self) -> bool {
        self.pages.as_mut().is_some_and(Pages::may_receive)
    }

    /// See [`Pages::receive`].
    pub(crate) fn receive(
        &mut self,
        offset: u64,
        length: u64,
        rest: &mut Buffer,
    ) -> io::Result<u64> {
        match &mut self.pages {
            Some(pages) => pages.receive(&self.link, offset, length, rest),
            None => Ok(0),
        }
    }

    /// Sends what was collected.
    pub(crate) fn flush(&mut self) -> io::Result<()> {
        if !self.out.is_empty() {
            self.link.send(self.out.filled())?;
            self.out.clear();
            self.batch = 0;
        }
        Ok(())
    }

    /// Makes place for another piece.
    fn reserve(&mut self, length: usize) -> io::Result<()> {
        if self.out.len() + length + MAX_HEAD > PIECE + 4096 {
            self.flush()?;
        }
        Ok(())
    }

    pub(crate) fn refuse(&mut self, to: ReplyTo, errno: Errno, words: &str) -> io::Result<()> {
        self.reserve(words.len())?;
        self.link.replies.error(&mut self.out, to, errno, words);
        Ok(())
    }

    fn fail(&mut self, to: ReplyTo, error: &Error) -> io::Result<()> {
        self.refuse(to, Errno::of(error.kind()), &error.to_string())
    }

    /// Does it. The payload is that of a write. An error ends the connection.
    pub(crate) fn run(&mut self, to: ReplyTo, command: Command, payload: &[u8]) -> io::Result<()> {
        if self.batch == BATCH || self.out.len() >= BATCH_BYTES {
            self.flush()?;
        }
        self.batch += 1;
        let link = self.link.clone();
        let export = &*link.export;
        let done = match command {
            Command::Read {
                offset,
                length,
                whole,
            } => {
                return self.read(to, offset, length, whole);
            }
            Command::Status {
                offset,
                length,
                one,
            } => return self.status(to, offset, length, one),
            Command::Write {
                offset, durable, ..
            } => {
                let started = Instant::now();
                let written = export.write_at(offset, payload);
                link.note_write(started, payload.len() as u64);
                written.and_then(|()| if durable { export.flush() } else { Ok(()) })
            }
            Command::Zero {
                offset,
                length,
                durable,
                may_unmap,
                fast,
            } => {
                if fast && !export.zeroes_fast(offset, length, may_unmap) {
                    let words = "zeroing the range would take as long as writing it";
                    return self.refuse(to, Errno::NotSupported, words);
                }
                let zero = |at, length| export.zero(at, length, may_unmap);
                self.in_steps(offset, length, durable, zero)
            }
            Command::Trim {
                offset,
                length,
                durable,
            } => self.in_steps(offset, length, durable, |at, length| {
                export.trim(at, length)
            }),
            Command::Flush => export.flush(),
            Command::Cache { offset, length } => self.cache(offset, length.min(MAX_CACHED)),
            Command::Disconnect => Ok(()),
        };
        match done {
            Ok(()) => self.done(to),
            Err(e) => self.fail(to, &e),
        }
    }

    pub(crate) fn done(&mut self, to: ReplyTo) -> io::Result<()> {
        self.reserve(0)?;
        self.link.replies.done(&mut self.out, to);
        Ok(())
    }

    fn in_steps(
        &self,
        offset: u64,
        length: u64,
        durable: bool,
        change: impl Fn(u64, u64) -> vhdkit::Result<()>,
    ) -> vhdkit::Result<()> {
        let end = offset + length;
        let mut at = offset;
        while at < end {
            let next = (at - at % STEP + STEP).min(end);
            change(at, next - at)?;
            at = next;
            if at < end && self.link.is_stopping() {
                return Err(Error::new(
                    vhdkit::ErrorKind::Aborted,
                    "the server is going away",
                ));
            }
        }
        if durable {
            self.link.export.flush()
        } else {
            Ok(())
        }
    }

    /// Reads it, so that the next read finds it in the system's cache.
    fn cache(&mut self, offset: u64, length: u64) -> vhdkit::Result<()> {
        let keep = self.out.len();
        let end = offset + length;
        let mut at = offset;
        let mut result = Ok(());
        while at < end && result.is_ok() {
            let piece = piece(end - at);
            result = self.link.export.read_at(at, self.out.room(piece));
            self.out.truncate(keep);
            at += piece as u64;
        }
        result
    }

    fn read(&mut self, to: ReplyTo, offset: u64, length: u32, whole: bool) -> io::Result<()> {
        let whole = whole || self.link.replies.0 == Dialect::Simple;
        let length = u64::from(length);
        if length > PIECE as u64 && whole {
            return self.read_whole(to, offset, length);
        }
        if length < SPARSE || whole {
            return match self.read_piece(to, offset, length, true)? {
                Ok(()) => Ok(()),
                Err(e) => self.fail(to, &e),
            };
        }
        let end = offset + length;
        let mut at = offset;
        while at < end {
            // Where the map cannot be read, the data may still be.
            let run = match self.link.export.status(0, at, end - at) {
                Ok(run) => run,
                Err(_) => Status {
                    length: end - at,
                    flags: 0,
                },
            };
            let stop = at + run.length.clamp(1, end - at);
            if run.flags & allocation::ZERO != 0 {
                self.reserve(0)?;
                let length = u32::try_from(stop - at).unwrap_or(u32::MAX);
                self.link
                    .replies
                    .hole(&mut self.out, to, at, length, stop == end);
                at = stop;
                continue;
            }
            while at < stop {
                let length = piece(stop - at) as u64;
                if let Err(e) = self.read_piece(to, at, length, at + length == end)? {
                    return self.fail(to, &e);
                }
                at += length;
            }
        }
        Ok(())
    }

    /// A chunk of data, at most a piece. After an error nothing of it is left in the output.
    fn read_piece(
        &mut self,
        to: ReplyTo,
        offset: u64,
        length: u64,
        last: bool,
    ) -> io::Result<vhdkit::Result<()>> {
        let room = piece(length);
        if room >= pages::LEAST
            && let Some(done) = self.lend_piece(to, offset, length, last)?
        {
            return Ok(done);
        }
        self.reserve(room)?;
        let start = self.out.len();
        self.link
            .replies
            .data(&mut self.out, to, offset, length, last);
        let started = Instant::now();
        let read = self.link.export.read_at(offset, self.out.room(room));
        self.link.pace.note(started.elapsed());
        if read.is_err() {
            self.out.truncate(start);
        }
        Ok(read)
    }

    /// As [`Worker::read_piece`], without a copy. `None` if that is not possible.
    fn lend_piece(
        &mut self,
        to: ReplyTo,
        offset: u64,
        length: u64,
        last: bool,
    ) -> io::Result<Option<vhdkit::Result<()>>> {
        if self.pages.is_none() || !self.link.channel().sends_pages() {
            return Ok(None);
        }
        if self.out.len() > pages::MOST_BEFORE - MAX_HEAD {
            self.flush()?;
        }
        let start = self.out.len();
        let link = self.link.clone();
        link.replies.data(&mut self.out, to, offset, length, last);
        let started = Instant::now();
        let Some(pages) = &mut self.pages else {
            return Ok(None);
        };
        let lent = pages.take(self.out.filled(), &*link.export, offset, length);
        self.rest.clear();
        let missing = piece(length) - lent;
        if lent == 0 {
            self.out.truncate(start);
            return Ok(None);
        }
        if missing > 0 {
            let read = link
                .export
                .read_at(offset + lent as u64, self.rest.room(missing));
            if read.is_err() {
                pages.discard();
                self.out.truncate(start);
                return Ok(Some(read));
            }
        }
        link.pace.note(started.elapsed());
        let Some(pipe) = pages.end() else {
            return Ok(None);
        };
        let sent = link.send_pipe(pipe, self.out.len() + lent, self.rest.filled());
        self.out.clear();
        self.batch = 0;
        sent.map(|()| Some(Ok(())))
    }

    /// One chunk that is larger than a piece. Up to [`ASSEMBLY`] nothing is sent before all is read. Beyond it an error
    /// comes when the client has been promised data: the rest is filled with zeros and the error follows, or, in simple
    /// replies, where nothing can follow, the connection ends. So the protocol demands.
    fn read_whole(&mut self, to: ReplyTo, offset: u64, length: u64) -> io::Result<()> {
        self.flush()?;
        let link = self.link.clone();
        let mut output = link.output();
        output.clear();
        let assembled = length <= ASSEMBLY as u64;
        link.replies
            .data(&mut output, to, offset, length, assembled);
        let end = offset + length;
        let mut at = offset;
        let mut failed: Option<Error> = None;
        let mut sent = false;
        while at < end {
            let room = piece(end - at);
            let buf = output.room(room);
            match &failed {
                Some(_) => buf.fill(0),
                None => match link.export.read_at(at, buf) {
                    Ok(()) => {}
                    Err(e) if sent && link.replies.0 == Dialect::Simple => {
                        return Err(io::Error::other(e));
                    }
                    Err(e) if sent => {
                        buf.fill(0);
                        failed = Some(e);
                    }
                    Err(e) => {
                        output.clear();
                        let errno = Errno::of(e.kind());
                        link.replies.error(&mut output, to, errno, &e.to_string());
                        return send(&link, &mut output);
                    }
                },
            }
            at += room as u64;
            if output.len() + PIECE > ASSEMBLY + MAX_HEAD && at < end {
                send(&link, &mut output)?;
                sent = true;
            }
        }
        if !assembled && link.replies.0 != Dialect::Simple {
            match failed {
                Some(e) => {
                    let errno = Errno::of(e.kind());
                    link.replies.error(&mut output, to, errno, &e.to_string());
                }
                None => link.replies.end(&mut output, to),
            }
        }
        send(&link, &mut output)
    }

    fn status(&mut self, to: ReplyTo, offset: u64, length: u64, one: bool) -> io::Result<()> {
        let link = self.link.clone();
        let limit = if one { 1 } else { MAX_RUNS };
        let last = link.session.contexts.last();
        for context in &link.session.contexts {
            if let Err(e) = self.runs(*context, offset, length, limit) {
                return self.fail(to, &e);
            }
            self.reserve(self.runs.len() * 16)?;
            let id = context_id(*context);
            let is_last = Some(context) == last;
            link.replies
                .status(&mut self.out, to, id, &self.runs, is_last);
        }
        Ok(())
    }

    /// Collects runs of different status.
    fn runs(
        &mut self,
        context: usize,
        offset: u64,
        length: u64,
        limit: usize,
    ) -> vhdkit::Result<()> {
        self.runs.clear();
        let end = offset + length;
        let mut at = offset;
        for _ in 0..MAX_QUESTIONS {
            if at >= end {
                break;
            }
            let found = self.link.export.status(context, at, end - at)?;
            let length = found.length.clamp(1, end - at);
            let count = self.runs.len();
            match self.runs.last_mut() {
                Some(run) if run.flags == found.flags => run.length += length,
                _ if count == limit => break,
                _ => self.runs.push(Status { length, ..found }),
            }
            at += length;
        }
        Ok(())
    }
}

fn send(link: &Link, output: &mut Buffer) -> io::Result<()> {
    link.channel().send(output.filled(), None)?;
    output.clear();
    Ok(())
}

/// As much as is left, at most a piece.
fn piece(left: u64) -> usize {
    usize::try_from(left).map_or(PIECE, |left| left.min(PIECE))
}
