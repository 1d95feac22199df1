//! A connection from the greeting to the farewell, driven by one thread of its own.
//!
//! Requests that are answered from memory are done by this thread, in batches: everything that has come with one
//! system call is answered with one. What has to wait is done by [`Helpers`], so that nothing waits for it.

use std::io;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use crate::channel::Channel;
use crate::errno::Errno;
use crate::export::Catalog;
use crate::handshake::{Handshake, Session, Step, TlsState};
use crate::helpers::{Helpers, Job};
use crate::input::Input;
use crate::link::{Link, PIECE};
use crate::pages;
use crate::request::{Command, Decoded, ReplyTo, Request, decode};
use crate::socket::Socket;
use crate::tls::TlsIdentity;
use crate::work::Worker;

/// Payload of a refused request that is still read, so that the client hears why.
const MAX_SKIPPED: u64 = 64 << 20;
/// How long saying farewell may take.
const FAREWELL: Duration = Duration::from_secs(1);

/// What all connections of a server have in common.
pub(crate) struct Service {
    pub(crate) catalog: Arc<Catalog>,
    pub(crate) tls: Option<TlsIdentity>,
    /// The server is going away.
    pub(crate) stopping: Arc<AtomicBool>,
}

/// The place of a connection among the others.
pub(crate) trait Admission {
    /// True if no further client can be served.
    fn is_full(&self) -> bool;
    /// The handshake is about to be over; false if there is no place after all.
    fn admit(&self) -> bool;
    /// The client has been told something.
    fn note_visit(&self);
}

/// Serves a client until it is gone. Errors of the connection are the client's business; nobody here needs them.
pub(crate) fn serve(
    service: &Service,
    socket: Arc<Socket>,
    deadline: Instant,
    admission: &dyn Admission,
) {
    let mut channel = Channel::new(socket);
    let mut input = Input::new();
    let agreed = shake_hands(service, &mut channel, &mut input, deadline, admission);
    match agreed {
        Ok(Some(session)) => {
            let export = service.catalog.entries()[session.export].export.clone();
            let stopping = service.stopping.clone();
            channel.widen();
            let link = Arc::new(Link::new(channel, export, session, stopping));
            let mut transmission = Transmission {
                worker: Worker::with_pages(link.clone()),
                helpers: Helpers::new(),
                input,
                link: link.clone(),
            };
            let ended = transmission.run();
            if ended.is_err() {
                link.channel().hang_up();
            }
            transmission.helpers.finish();
            link.channel().close(Instant::now() + FAREWELL);
        }
        _ => channel.close(Instant::now() + FAREWELL),
    }
}

/// The first half. `None` if the client does not want to go on.
fn shake_hands(
    service: &Service,
    channel: &mut Channel,
    input: &mut Input,
    deadline: Instant,
    admission: &dyn Admission,
) -> io::Result<Option<Session>> {
    let tls = match service.tls {
        Some(_) => TlsState::Required,
        None => TlsState::Unavailable,
    };
    let mut out = Vec::new();
    let mut handshake = Handshake::new(service.catalog.clone(), tls, &mut out);
    loop {
        handshake.set_full(admission.is_full());
        let (length, step) = handshake.advance(input.filled(), &mut out);
        input.consume(length);
        if handshake.takes_told() {
            admission.note_visit();
        }
        if step == Step::Again && out.len() < PIECE {
            continue;
        }
        // It has its place before it hears that it has.
        if matches!(step, Step::Transmit(_)) && !admission.admit() {
            return Ok(None);
        }
        channel.send(&out, Some(deadline))?;
        out.clear();
        match step {
            Step::Again => {}
            Step::More => {
                if !input.fill(channel, Some(deadline))? {
                    return Ok(None);
                }
            }
            Step::StartTls => {
                let Some(identity) = &service.tls else {
                    return Ok(None);
                };
                channel.start_tls(identity, input.filled(), deadline)?;
                input.consume(input.filled().len());
                handshake.tls_began();
            }
            Step::Transmit(session) => return Ok(Some(session)),
            Step::Close => return Ok(None),
        }
    }
}

/// The second half.
struct Transmission {
    link: Arc<Link>,
    input: Input,
    worker: Worker,
    helpers: Helpers,
}

impl Transmission {
    /// Ends without an error if the client said farewell or is gone.
    fn run(&mut self) -> io::Result<()> {
        let link = self.link.clone();
        let dialect = link.session.dialect;
        loop {
            let (request, head) = match decode(dialect, self.input.filled()) {
                Decoded::Request(request, head) => (request, head),
                Decoded::More => {
                    self.worker.flush()?;
                    if !self.input.fill(link.channel(), None)? {
                        return Ok(());
                    }
                    continue;
                }
                Decoded::Broken => return Err(io::ErrorKind::InvalidData.into()),
            };
            self.input.consume(head);
            self.input.expect_anything();
            let to = request.reply_to();
            let command = match link.rules.check(&request) {
                Ok(Command::Disconnect) => Ok(Command::Disconnect),
                _ if link.is_stopping() => Err((Errno::Shutdown, "the server is going away")),
                checked => checked,
            };
            match command {
                Err((errno, words)) => {
                    self.skip_payload(&request)?;
                    self.worker.refuse(to, errno, words)?;
                }
                Ok(Command::Disconnect) => return self.worker.flush(),
                Ok(command @ Command::Write { length, .. }) => {
                    self.write(to, command, length as usize)?;
                }
                Ok(command) => {
                    // Clients of extended headers may send a payload with anything; it says nothing here.
                    self.skip_payload(&request)?;
                    self.act(to, command)?;
                }
            }
        }
    }

    fn skip_payload(&mut self, request: &Request) -> io::Result<()> {
        let length = request.payload(self.link.session.dialect);
        if length > MAX_SKIPPED {
            return Err(io::ErrorKind::InvalidData.into());
        }
        if length > self.input.filled().len() as u64 {
            self.worker.flush()?;
        }
        self.input.skip(self.link.channel(), length)
    }

    /// True if another thread had better do it. `payload` bytes of the input belong to it.
    fn takes_long(&self, command: Command, payload: usize) -> bool {
        match command {
            Command::Read { .. } | Command::Write { durable: false, .. } => {
                // A single request is done best by whoever has it.
                let more = self.input.filled().len() > payload;
                self.link.pace.is_slow() && (more || self.helpers.are_busy())
            }
            _ => true,
        }
    }

    /// Does a request without payload, or has it done.
    fn act(&mut self, to: ReplyTo, command: Command) -> io::Result<()> {
        if !self.takes_long(command, 0) {
            return self.worker.run(to, command, &[]);
        }
        let payload = self.helpers.buffer();
        self.give(Job {
            to,
            command,
            payload,
        })
    }

    fn give(&mut self, job: Job) -> io::Result<()> {
        if self.helpers.are_full() {
            self.worker.flush()?;
        }
        match self.helpers.give(&self.link, job) {
            Ok(()) => Ok(()),
            Err(Job {
                to,
                command,
                payload,
            }) => {
                let ran = self.worker.run(to, command, payload.filled());
                self.helpers.give_back(payload);
                ran
            }
        }
    }

    fn write(&mut self, to: ReplyTo, command: Command, length: usize) -> io::Result<()> {
        // Received without being copied, if it comes apart from its head.
        let apart = length >= pages::LEAST && self.worker.receives_pages();
        if apart {
            self.input.expect_head(self.link.session.dialect);
        }
        let is_apart = apart && self.input.filled().is_empty() && !self.link.pace.is_slow();
        if length > PIECE || is_apart {
            return self.write_as_it_comes(to, command);
        }
        let takes_long = self.takes_long(command, length);
        if !takes_long && length <= self.input.filled().len() {
            self.worker
                .run(to, command, &self.input.filled()[..length])?;
            self.input.consume(length);
            return Ok(());
        }
        if length > self.input.filled().len() {
            self.worker.flush()?;
        }
        let mut payload = self.helpers.buffer();
        self.input.take(self.link.channel(), payload.room(length))?;
        if takes_long {
            return self.give(Job {
                to,
                command,
                payload,
            });
        }
        let ran = self.worker.run(to, command, payload.filled());
        self.helpers.give_back(payload);
        ran
    }

    /// A large write is written as it comes, so that it needs no more memory than a small one, and without copying it
    /// where that is possible. After an error the rest is read and dropped.
    fn write_as_it_comes(&mut self, to: ReplyTo, command: Command) -> io::Result<()> {
        let Command::Write {
            offset,
            length,
            durable,
        } = command
        else {
            return Ok(());
        };
        self.worker.flush()?;
        let export = self.link.export.clone();
        let mut piece = self.helpers.buffer();
        let mut result = Ok(());
        let mut done = 0_u64;
        while done < u64::from(length) {
            piece.clear();
            if result.is_ok() && self.input.filled().is_empty() {
                let left = u64::from(length) - done;
                done += self.worker.receive(offset + done, left, &mut piece)?;
            }
            // What the pipe still held, and the rest of a piece.
            let left = u64::from(length) - done - piece.len() as u64;
            let room = PIECE.saturating_sub(piece.len());
            let count = usize::try_from(left).map_or(room, |left| left.min(room));
            self.input.take(self.link.channel(), piece.room(count))?;
            if result.is_ok() && !piece.is_empty() {
                result = export.write_at(offset + done, piece.filled());
            }
            done += piece.len() as u64;
        }
        self.helpers.give_back(piece);
        match result {
            Ok(()) if durable => {
                // What is left to be done is the same as a flush.
                let payload = self.helpers.buffer();
                self.give(Job {
                    to,
                    command: Command::Flush,
                    payload,
                })
            }
            Ok(()) => self.worker.done(to),
            Err(e) => self.worker.refuse(to, Errno::of(e.kind()), &e.to_string()),
        }
    }
}
