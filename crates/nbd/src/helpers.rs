//! The threads of a connection that do what its own thread would have to wait for.
//!
//! 1. At most [`Helpers::MOST`] requests are underway; then nothing further is read from the client. That bounds the
//!    memory of a connection.
//! 2. A thread is begun when there is work and nobody to do it, and ends with the connection.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use crate::buffer::Buffer;
use crate::link::Link;
use crate::request::{Command, ReplyTo};
use crate::work::Worker;

/// A request and what it writes.
pub(crate) struct Job {
    pub(crate) to: ReplyTo,
    pub(crate) command: Command,
    pub(crate) payload: Buffer,
}

pub(crate) struct Helpers {
    queue: Arc<Queue>,
    threads: Vec<JoinHandle<()>>,
}

#[derive(Default)]
struct Queue {
    state: Mutex<State>,
    /// There is a job, or the end.
    work: Condvar,
    /// A job is done.
    done: Condvar,
}

#[derive(Default)]
struct State {
    jobs: VecDeque<Job>,
    /// Waiting for a job.
    idle: usize,
    /// Waiting or being done.
    outstanding: usize,
    closed: bool,
    /// Payloads to be used again.
    spare: Vec<Buffer>,
}

impl Queue {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Helpers {
    /// Most threads, and most requests underway.
    pub(crate) const MOST: usize = 16;

    pub(crate) fn new() -> Self {
        Self {
            queue: Arc::default(),
            threads: Vec::new(),
        }
    }

    /// True if something is underway.
    pub(crate) fn are_busy(&self) -> bool {
        !self.threads.is_empty() && self.queue.lock().outstanding > 0
    }

    /// True if [`Helpers::give`] would wait.
    pub(crate) fn are_full(&self) -> bool {
        !self.threads.is_empty() && self.queue.lock().outstanding >= Self::MOST
    }

    /// A buffer for a payload.
    pub(crate) fn buffer(&self) -> Buffer {
        let mut buffer = self.queue.lock().spare.pop().unwrap_or_default();
        buffer.clear();
        buffer
    }

    /// Not used after all, or used up.
    pub(crate) fn give_back(&self, buffer: Buffer) {
        self.queue.lock().spare.push(buffer);
    }

    /// Hands a request over, after waiting for one to be done if there are many. Gives it back if there is no thread
    /// to be had.
    pub(crate) fn give(&mut self, link: &Arc<Link>, job: Job) -> Result<(), Job> {
        let mut state = self.queue.lock();
        while state.outstanding >= Self::MOST {
            state = self
                .queue
                .done
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
        if state.idle <= state.jobs.len() && self.threads.len() < Self::MOST {
            let (queue, link) = (self.queue.clone(), link.clone());
            let started = std::thread::Builder::new()
                .name("nbd worker".into())
                .spawn(move || help(&queue, &link));
            match started {
                Ok(thread) => self.threads.push(thread),
                Err(_) if self.threads.is_empty() => return Err(job),
                Err(_) => {}
            }
        }
        state.outstanding += 1;
        state.jobs.push_back(job);
        drop(state);
        self.queue.work.notify_one();
        Ok(())
    }

    /// Waits until all is done.
    pub(crate) fn finish(mut self) {
        self.close();
        for thread in self.threads.drain(..) {
            // A panic has been reported where it happened; the connection is over.
            let _ = thread.join();
        }
    }

    fn close(&self) {
        self.queue.lock().closed = true;
        self.queue.work.notify_all();
    }
}

impl Drop for Helpers {
    fn drop(&mut self) {
        self.close();
    }
}

fn help(queue: &Queue, link: &Arc<Link>) {
    let mut worker = Worker::new(link.clone());
    let unwinding = Unwinding(queue, link);
    let mut state = queue.lock();
    loop {
        if let Some(job) = state.jobs.pop_front() {
            drop(state);
            let Job {
                to,
                command,
                payload,
            } = job;
            let ran = worker.run(to, command, payload.filled());
            // Others may be waiting for just this one.
            if ran.and_then(|()| worker.flush()).is_err() {
                link.channel().hang_up();
            }
            state = queue.lock();
            state.outstanding = state.outstanding.saturating_sub(1);
            state.spare.push(payload);
            queue.done.notify_one();
        } else if state.closed {
            break;
        } else {
            state.idle += 1;
            state = queue
                .work
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
            state.idle -= 1;
        }
    }
    drop(state);
    std::mem::forget(unwinding);
}

/// Dropped by a panic only: nobody shall wait for what will not be answered.
struct Unwinding<'a>(&'a Queue, &'a Link);

impl Drop for Unwinding<'_> {
    fn drop(&mut self) {
        self.1.channel().hang_up();
        self.0.lock().outstanding = 0;
        self.0.done.notify_all();
    }
}
