//! Ctrl-C, SIGTERM, and SIGHUP of a terminal that is closed: the first one asks a running operation to stop and leaves it
//! the time to do so safely; the second one ends the program at once, as does the first where nothing needs to be put in
//! order; what is over is still told. Signals that come together are one: some senders signal a process and its group.

use std::io::{self, IsTerminal, Read, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use vhdkit::operation::Observer;

use crate::failure::INTERRUPTED;

/// The program's way of being interrupted.
#[derive(Default)]
pub(crate) struct Interrupt {
    state: Arc<State>,
}

#[derive(Default)]
struct State {
    /// How what is running is asked to stop; without it a signal ends the program.
    running: Mutex<Option<Stop>>,
    asked: AtomicBool,
    /// When it was asked.
    when: Mutex<Option<Instant>>,
}

/// Between two signals of people there is more.
const TOGETHER: Duration = Duration::from_millis(100);

type Stop = Arc<dyn Fn() + Send + Sync>;

impl Interrupt {
    /// Begins to listen.
    pub(crate) fn listen() -> io::Result<Self> {
        let interrupt = Self::default();
        let mut signals = Signals::new([SIGINT, SIGTERM])?;
        if !ignores_hangup() {
            signals.add_signal(SIGHUP)?;
        }
        let state = interrupt.state.clone();
        thread::Builder::new()
            .name("signals".into())
            .spawn(move || {
                for _ in signals.forever() {
                    state.on_signal();
                }
            })?;
        Ok(interrupt)
    }

    /// From now on the first signal asks this operation to stop.
    pub(crate) fn cancels(&self, observer: Observer) {
        self.calls(move || observer.cancel());
    }

    /// From now on the first signal does this, on another thread.
    pub(crate) fn calls(&self, stop: impl Fn() + Send + Sync + 'static) {
        *self.state.lock() = Some(Arc::new(stop));
    }

    /// The operation is over. The program ends by itself, with an exit code that tells what became of the operation: the
    /// first signal has nothing left to stop.
    pub(crate) fn lets_finish(&self) {
        self.calls(|| ());
    }
}

/// True if the program was started by `nohup` or the like: then it is to outlive its terminal.
fn ignores_hangup() -> bool {
    // Much longer than it is, and read at once.
    let mut status = [0; 8192];
    let length = std::fs::File::open("/proc/self/status")
        .and_then(|mut file| file.read(&mut status))
        .unwrap_or_default();
    let ignored = String::from_utf8_lossy(&status[..length])
        .lines()
        .find_map(|line| line.strip_prefix("SigIgn:"))
        .and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    ignored.is_some_and(|mask| mask & (1 << (SIGHUP - 1)) != 0)
}

impl State {
    fn lock(&self) -> std::sync::MutexGuard<'_, Option<Stop>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn was_just_asked(&self) -> bool {
        let when = *self.when.lock().unwrap_or_else(PoisonError::into_inner);
        when.is_some_and(|when| when.elapsed() < TOGETHER)
    }

    fn on_signal(&self) {
        let running = self.lock().clone();
        match running {
            Some(stop) if !self.asked.swap(true, Ordering::AcqRel) => {
                *self.when.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
                stop();
            }
            Some(_) if self.was_just_asked() => {}
            _ => {
                // The bar that may be there stays; what comes next begins on a line of its own.
                if self.asked.load(Ordering::Acquire) && io::stderr().is_terminal() {
                    let _ = io::stderr().write_all(b"\n");
                }
                std::process::exit(i32::from(INTERRUPTED))
            }
        }
    }
}
