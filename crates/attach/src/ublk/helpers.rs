//! The threads that do what a queue's own thread would have to wait for: flushes, zeroing, and while the disk is slow
//! all requests, so that it sees as many at once as the kernel sends.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use rustix::event::EventfdFlags;

use super::perform::{Performer, Request, Work};

/// Most threads of a device.
const MOST: usize = 16;

/// What the helpers are to do. As many jobs as the queues have tags, at most.
#[derive(Default)]
struct State {
    jobs: VecDeque<(Request, Arc<Finished>)>,
    /// Threads that wait for a job.
    idle: usize,
    closed: bool,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    work: Condvar,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The helpers of a device. They begin when there is work and nobody to do it, and end when this is dropped.
pub(super) struct Helpers {
    work: Arc<Work>,
    shared: Arc<Shared>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

impl Helpers {
    pub(super) fn new(work: Arc<Work>) -> Self {
        Self {
            work,
            shared: Arc::default(),
            threads: Mutex::default(),
        }
    }

    /// Has a request done; what comes of it goes to `finished`. False if there is no thread to be had.
    pub(super) fn give(&self, request: Request, finished: &Arc<Finished>) -> bool {
        let mut state = self.shared.lock();
        if state.idle <= state.jobs.len() {
            let mut threads = self.threads.lock().unwrap_or_else(PoisonError::into_inner);
            if threads.len() < MOST {
                let (work, shared) = (self.work.clone(), self.shared.clone());
                let started = std::thread::Builder::new()
                    .name("ublk helper".into())
                    .spawn(move || help(&shared, &work));
                match started {
                    Ok(thread) => threads.push(thread),
                    Err(_) if threads.is_empty() => return false,
                    Err(_) => {}
                }
            }
        }
        state.jobs.push_back((request, finished.clone()));
        drop(state);
        self.shared.work.notify_one();
        true
    }
}

impl Drop for Helpers {
    fn drop(&mut self) {
        self.shared.lock().closed = true;
        self.shared.work.notify_all();
        let threads = self
            .threads
            .get_mut()
            .unwrap_or_else(PoisonError::into_inner);
        for thread in threads.drain(..) {
            // Requests catch their panics.
            let _ = thread.join();
        }
    }
}

fn help(shared: &Shared, work: &Work) {
    super::in_the_path_of_memory();
    let mut performer = Performer::new(work);
    let mut state = shared.lock();
    loop {
        if let Some((request, finished)) = state.jobs.pop_front() {
            drop(state);
            finished.add(request.tag, performer.run(&request));
            state = shared.lock();
        } else if state.closed {
            return;
        } else {
            state.idle += 1;
            state = shared
                .work
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
            state.idle -= 1;
        }
    }
}

/// Requests of a queue that helpers have done. Only the queue's own thread may tell the kernel.
pub(super) struct Finished {
    results: Mutex<Vec<(u16, i32)>>,
    event: OwnedFd,
}

impl Finished {
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self {
            results: Mutex::default(),
            event: rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
        })
    }

    fn add(&self, tag: u16, result: i32) {
        let mut results = self.results.lock().unwrap_or_else(PoisonError::into_inner);
        results.push((tag, result));
        if results.len() == 1 {
            // Cannot fail: the count is far from its end.
            let _ = rustix::io::write(&self.event, &1_u64.to_ne_bytes());
        }
    }

    /// Becomes readable when there is something.
    pub(super) fn event(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }

    /// Exchanges what there is for an empty list.
    pub(super) fn take(&self, into: &mut Vec<(u16, i32)>) {
        let mut results = self.results.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::swap(&mut *results, into);
        // In the lock, so that the next one to be added signals again.
        let _ = rustix::io::read(&self.event, &mut [0_u8; 8]);
    }
}
