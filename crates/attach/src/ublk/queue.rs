//! One queue of a device: a thread that waits for requests, does the quick ones itself, and tells the kernel what came
//! of each.
//!
//! 1. Each of a queue's tags is either with the kernel, waiting for a request, or with us, being done. Telling the kernel
//!    the result of a request asks for the next one under its tag.
//! 2. Only the thread that asked first may do so, so helpers hand their results back to it.
//! 3. When the device is stopped each tag comes back with an error; then the queue ends. When the thread ends before,
//!    for whatever reason, the kernel stops the device.

use std::io;
use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::time::{Duration, Instant};

use super::helpers::{Finished, Helpers};
use super::perform::{Performer, Request, Work};
use super::sys::{Completion, Descriptors, Ring};
use super::wire::{IoCommand, io as command};

/// The token of the helpers' event; those of requests are tags.
const HELPED: u64 = u64::MAX;

/// Results are told to the kernel in one call as long as nobody waits for them for longer than this.
const PATIENCE: Duration = Duration::from_micros(50);

/// What all queues of a device share.
pub(super) struct Shared {
    pub(super) work: Arc<Work>,
    pub(super) helpers: Helpers,
    pub(super) depth: u16,
}

/// Runs a queue on the calling thread until the device stops. Says `ready` when it waits for requests.
pub(super) fn run(shared: &Shared, queue: u16, ready: &Sender<()>) -> io::Result<()> {
    super::in_the_path_of_memory();
    let mut queue = Queue {
        number: queue,
        descriptors: Descriptors::map(&shared.work.device, queue, shared.depth)?,
        ring: Ring::of_thread(u32::from(shared.depth) + 1)?,
        finished: Arc::new(Finished::new()?),
        helped: Vec::new(),
        with_helpers: 0,
        shared,
    };
    queue.ring.watch(queue.finished.event(), HELPED)?;
    for tag in 0..shared.depth {
        queue.send(command::FETCH, tag, 0)?;
    }
    queue.ring.submit()?;
    // Whoever wanted to know may have given up.
    let _ = ready.send(());
    queue.serve()
}

struct Queue<'a> {
    shared: &'a Shared,
    number: u16,
    ring: Ring,
    descriptors: Descriptors,
    finished: Arc<Finished>,
    /// Empty but while results are told.
    helped: Vec<(u16, i32)>,
    /// Requests that helpers have.
    with_helpers: usize,
}

impl Queue<'_> {
    fn serve(&mut self) -> io::Result<()> {
        let mut performer = Performer::new(&self.shared.work);
        let mut completions = Vec::with_capacity(usize::from(self.shared.depth) + 1);
        let mut tags = self.shared.depth;
        while tags > 0 {
            self.ring.wait()?;
            self.ring.take(&mut completions);
            let mut told = Instant::now();
            let mut waiting = completions.len();
            for Completion { token, result } in completions.drain(..) {
                waiting -= 1;
                if token == HELPED {
                    self.tell_what_helpers_did()?;
                    continue;
                }
                match result {
                    command::OK => {}
                    command::STOPPED => {
                        tags -= 1;
                        continue;
                    }
                    // Requests under this tag would wait for ever; so they end with the device.
                    _ => return Err(io::Error::from_raw_os_error(-result)),
                }
                let tag = u16::try_from(token).map_err(|_| io::ErrorKind::InvalidData)?;
                let descriptor = self
                    .descriptors
                    .get(tag)
                    .ok_or(io::ErrorKind::InvalidData)?;
                let request = Request {
                    queue: self.number,
                    tag,
                    descriptor,
                };
                if self.takes_long(&request, waiting)
                    && self.shared.helpers.give(request, &self.finished)
                {
                    self.with_helpers += 1;
                    continue;
                }
                let result = performer.run(&request);
                let ended = Instant::now();
                self.send(command::COMMIT_AND_FETCH, tag, result)?;
                if ended - told > PATIENCE {
                    self.ring.submit()?;
                    told = ended;
                }
            }
        }
        Ok(())
    }

    /// True if another thread had better do it.
    fn takes_long(&self, request: &Request, waiting: usize) -> bool {
        // A single request is done best by whoever has it.
        !request.only_moves_bytes()
            || self.shared.work.pace.is_slow() && (waiting > 0 || self.with_helpers > 0)
    }

    fn tell_what_helpers_did(&mut self) -> io::Result<()> {
        let mut helped = std::mem::take(&mut self.helped);
        self.finished.take(&mut helped);
        self.with_helpers -= helped.len();
        for (tag, result) in helped.drain(..) {
            self.send(command::COMMIT_AND_FETCH, tag, result)?;
        }
        self.helped = helped;
        self.ring.watch(self.finished.event(), HELPED)
    }

    fn send(&mut self, operation: u32, tag: u16, result: i32) -> io::Result<()> {
        let command = IoCommand::new(self.number, tag, result);
        let device = &self.shared.work.device;
        self.ring.io(device, operation, command, tag.into())
    }
}
