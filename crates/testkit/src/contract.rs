//! One harness for every operation on a disk: the progress contract, cancelling and failing at every storage call, power
//! cuts at every moment. What holds for one verb holds for all.

use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use vhdkit::disk::{Layer, open_image};
use vhdkit::operation::{Observer, Operation};
use vhdkit::storage::{MemoryStorage, Storage};
use vhdkit::{ErrorKind, Result, Status, VirtualDisk};

use crate::crash::{CrashStorage, Fate, Sampling, moments};
use crate::fault::{Call, Fault, FaultStorage};
use crate::history::assert_clean;
use crate::model::{content_of, first_difference};
use crate::rng::Rng;
use crate::variant::TestDisk;

/// An operation whose result does not matter here. Dropping it cancels it.
pub struct Running {
    /// A view of it.
    pub observer: Observer,
    wait: Box<dyn FnOnce() -> Result<()>>,
}

impl Running {
    /// Any operation.
    pub fn of<T: Send + 'static>(operation: Operation<T>) -> Self {
        Self {
            observer: operation.observer(),
            wait: Box::new(move || operation.wait().map(drop)),
        }
    }

    /// An operation and a thread that ends soon after it, and is waited for also when the operation is dropped.
    pub fn with<T: Send + 'static>(operation: Operation<T>, thread: JoinHandle<()>) -> Self {
        struct Joined(Option<JoinHandle<()>>);
        impl Drop for Joined {
            fn drop(&mut self) {
                if let Some(thread) = self.0.take() {
                    assert!(thread.join().is_ok() || std::thread::panicking());
                }
            }
        }
        // Dropped in this order.
        struct Both<T>(Operation<T>, Joined);
        let both = Both(operation, Joined(Some(thread)));
        Self {
            observer: both.0.observer(),
            wait: Box::new(move || {
                // As a whole, so that a closure that is never called drops it in its order.
                let both = both;
                let Both(operation, _joined) = both;
                operation.wait().map(drop)
            }),
        }
    }

    /// Waits for the end.
    ///
    /// # Errors
    /// What the operation ends with.
    pub fn wait(self) -> Result<()> {
        (self.wait)()
    }
}

/// An operation, the disk it is for, and what the disk reads afterwards.
pub struct Trial<'a> {
    /// For messages.
    pub name: String,
    /// The disk; it is not changed.
    pub disk: &'a TestDisk,
    /// Images of the chain, leaf first, that are opened for writing.
    pub depth: usize,
    /// Starts the operation.
    pub start: &'a (dyn Fn(&Arc<VirtualDisk>) -> Running + Sync),
    /// What the disk reads when it has succeeded.
    pub after: &'a MemoryStorage,
}

impl Trial<'_> {
    fn open(&self, files: &[Arc<dyn Storage>], depth: usize) -> Result<Arc<VirtualDisk>> {
        let format = self.disk.variant.format;
        let rest = shared(&self.disk.layers[files.len()..]);
        let mut layers = Vec::new();
        for (i, file) in files.iter().cloned().chain(rest).enumerate() {
            let image = open_image(file, format, i < depth)?;
            layers.push(Layer::new(image, format!("image {i}")).writable(i < depth));
        }
        VirtualDisk::from_layers(layers, depth > 0).map(Arc::new)
    }

    fn copies(&self) -> Vec<Arc<MemoryStorage>> {
        self.disk.layers[..self.depth]
            .iter()
            .map(|file| Arc::new(MemoryStorage::clone(file)))
            .collect()
    }

    /// The files are whole, fit together, and read as before or as afterwards.
    fn stands(&self, files: &[Arc<dyn Storage>], what: &dyn Fn() -> String) {
        for (i, file) in files.iter().enumerate() {
            assert_clean(file, &format!("{}, image {i}, {}", self.name, what()));
        }
        for depth in [0, files.len()] {
            let disk = self
                .open(files, depth)
                .unwrap_or_else(|e| panic!("{}: {}: {e}", self.name, what()));
            let layers = disk.layers();
            for pair in layers.windows(2) {
                let (Some(parent), Some(id)) = (&pair[0].info.parent, pair[1].info.link_identifier)
                else {
                    panic!("{}: {}: a child without a parent", self.name, what());
                };
                assert!(
                    parent.identifiers.contains(&id),
                    "{}: {}: the child {:?} does not know its parent {id}",
                    self.name,
                    what(),
                    parent.identifiers
                );
            }
            let content = content_of(&disk).unwrap_or_else(|e| panic!("{}: {e}", self.name));
            if let Some((at, ..)) = difference(&content, &self.disk.content) {
                let after = difference(&content, self.after);
                assert!(
                    after.is_none(),
                    "{}: {}: neither before (byte {at:#x}) nor after ({after:x?})",
                    self.name,
                    what()
                );
            }
        }
        for (i, file) in files.iter().enumerate() {
            assert_clean(
                file,
                &format!("{}, image {i} opened, {}", self.name, what()),
            );
        }
    }

    /// Runs it on whatever is left, and it succeeds.
    fn succeeds(&self, files: &[Arc<dyn Storage>], what: &dyn Fn() -> String) {
        let disk = self
            .open(files, self.depth)
            .unwrap_or_else(|e| panic!("{}: {}: {e}", self.name, what()));
        (self.start)(&disk)
            .wait()
            .unwrap_or_else(|e| panic!("{}: again after {}: {e}", self.name, what()));
        let content = content_of(&disk).unwrap();
        let wrong = difference(&content, self.after);
        assert!(
            wrong.is_none(),
            "{}: again after {}: {wrong:x?}",
            self.name,
            what()
        );
        close(disk).unwrap_or_else(|e| panic!("{}: {e}", self.name));
        for (i, file) in files.iter().enumerate() {
            assert_clean(
                file,
                &format!("{}, image {i}, again, {}", self.name, what()),
            );
        }
    }

    /// It does what it is for, and the files are whole.
    pub fn works(&self) {
        let files = shared(&self.copies());
        self.succeeds(&files, &|| "nothing".into());
        // Once more: there is nothing left to do, and that is no error.
        self.succeeds(&files, &|| "itself".into());
    }

    /// The power is cut at every moment. Returns how many images were looked at.
    pub fn survives_crashes(&self, seed: u64) -> usize {
        let durable: Vec<&MemoryStorage> = self.disk.layers[..self.depth]
            .iter()
            .map(|file| &**file)
            .collect();
        let storages = CrashStorage::together(&durable);
        let files = shared(&storages);
        let disk = self.open(&files, self.depth).unwrap();
        (self.start)(&disk)
            .wait()
            .unwrap_or_else(|e| panic!("{}: {e}", self.name));
        close(disk).unwrap();
        let recordings: Vec<_> = storages.iter().map(|file| file.recording()).collect();
        let mut rng = Rng::new(seed);
        let sampling = Sampling::from_environment();
        let mut images = 0;
        for moment in moments(&recordings) {
            let fates: Vec<Vec<Vec<Fate>>> = moment
                .iter()
                .map(|epoch| epoch.fates(&sampling, &mut rng))
                .collect();
            let rounds = fates.iter().map(Vec::len).max().unwrap_or(0).min(40);
            for round in 0..rounds {
                let chosen: Vec<&[Fate]> = fates
                    .iter()
                    .map(|all| {
                        let pick = if all.len() <= rounds && moment.len() == 1 {
                            round % all.len()
                        } else {
                            rng.below(all.len() as u64) as usize
                        };
                        all[pick].as_slice()
                    })
                    .collect();
                let what = || -> String {
                    let told: Vec<String> = moment
                        .iter()
                        .zip(&chosen)
                        .map(|(epoch, fates)| epoch.describe(fates))
                        .collect();
                    format!("seed {seed}, {}", told.join("and "))
                };
                let files: Vec<Arc<dyn Storage>> = moment
                    .iter()
                    .zip(&chosen)
                    .map(|(epoch, fates)| -> Arc<dyn Storage> { Arc::new(epoch.image(fates)) })
                    .collect();
                self.stands(&files, &what);
                if rng.one_in(10) {
                    self.succeeds(&files, &what);
                }
                images += 1;
            }
        }
        images
    }

    /// Every storage call fails once: that is reported, nothing is lost, and after opening the disk again it works.
    /// Returns how many faults were injected.
    pub fn survives_faults(&self, fault: Fault) -> u64 {
        let calls = match fault {
            Fault::InputOutput => Call::FALLIBLE,
            Fault::NoSpace => &[Call::Write, Call::SetLen, Call::Allocate, Call::ZeroRange],
        };
        let mut injected = 0;
        for file in 0..self.depth {
            for k in 0.. {
                let below = self.copies();
                let faults = faulty(&below);
                let files = shared(&faults);
                let disk = self.open(&files, self.depth).unwrap();
                faults[file].fail_once(calls, k, fault);
                let running = (self.start)(&disk);
                let observer = running.observer.clone();
                let result = running.wait();
                self.status_agrees(&observer, &result);
                let met = faults[file].injected() > 0;
                faults[file].heal();
                if let Err(e) = &result {
                    assert!(met, "{}: {e}", self.name);
                    assert_ne!(e.kind(), ErrorKind::Aborted, "{}: {e}", self.name);
                }
                drop(disk);
                if !met {
                    result.unwrap();
                    break;
                }
                injected += 1;
                let what = || format!("{fault:?} at call {k} of image {file}");
                let files = shared(&below);
                self.stands(&files, &what);
                self.succeeds(&files, &what);
            }
        }
        injected
    }

    /// P-01, P-20, P-23: asking works whatever became of it, and says what the wait said.
    fn status_agrees(&self, observer: &Observer, result: &Result<()>) {
        let status = observer.progress().status;
        let expected = match result {
            Ok(()) => Status::Succeeded,
            Err(e) => Status::Failed(e.kind()),
        };
        assert_eq!(status, expected, "{}", self.name);
        let code = result.as_ref().err().map_or(0, |e| e.kind().win32_code());
        assert_eq!(status.win32_code(), code, "{}", self.name);
    }

    /// P-27: while it runs, a second operation on the disk is refused as busy; each has its own progress.
    pub fn runs_alone(&self) {
        let faults = faulty(&self.copies());
        let disk = self.open(&shared(&faults), self.depth).unwrap();
        let (met, at_work) = std::sync::mpsc::channel();
        let (go, gate) = std::sync::mpsc::channel::<()>();
        faults[0].at_call(0, move || {
            let _ = met.send(());
            let _ = gate.recv();
        });
        let first = (self.start)(&disk);
        at_work
            .recv()
            .unwrap_or_else(|_| panic!("{}: no call", self.name));
        let second = (self.start)(&disk);
        let observer = second.observer.clone();
        let refused = second.wait();
        self.status_agrees(&observer, &refused);
        assert_eq!(
            refused.map_err(|e| e.kind()),
            Err(ErrorKind::Busy),
            "{}",
            self.name
        );
        assert_eq!(first.observer.progress().status, Status::Pending);
        drop(go);
        let observer = first.observer.clone();
        first
            .wait()
            .unwrap_or_else(|e| panic!("{}: {e}", self.name));
        assert_eq!(observer.progress().status, Status::Succeeded);
        close(disk).unwrap();
    }

    /// Cancelled at every storage call (or many of them): it ends as aborted or had succeeded, the disk is whole, and
    /// it can be run again. Returns how often it was aborted.
    pub fn can_be_cancelled_anywhere(&self, at_most: u64) -> u64 {
        let total = {
            let faulty = faulty(&self.copies());
            let disk = self.open(&shared(&faulty), self.depth).unwrap();
            (self.start)(&disk)
                .wait()
                .unwrap_or_else(|e| panic!("{}: {e}", self.name));
            drop(disk);
            faulty[self.depth - 1].counts().total(&Call::ALL)
        };
        let mut aborted = 0;
        let mut k = 0;
        loop {
            let below = self.copies();
            let faults = faulty(&below);
            let files = shared(&faults);
            let disk = self.open(&files, self.depth).unwrap();
            let observer = Arc::new(OnceLock::<Observer>::new());
            let seen = observer.clone();
            // All files but the leaf are counted too, by way of the last one in the chain.
            faults[self.depth - 1].at_call(k, move || {
                while seen.get().is_none() {
                    std::thread::yield_now();
                }
                if let Some(observer) = seen.get() {
                    observer.cancel();
                }
            });
            let running = (self.start)(&disk);
            let view = running.observer.clone();
            let _ = observer.set(view.clone());
            let result = running.wait();
            self.status_agrees(&view, &result);
            let last = faults[self.depth - 1].has_hook();
            match result {
                Ok(()) => {}
                Err(e) => {
                    assert_eq!(e.kind(), ErrorKind::Aborted, "{}: {e}", self.name);
                    aborted += 1;
                }
            }
            // P-24: a cancelled operation left the disk usable, without opening it again.
            let content = content_of(&disk).unwrap_or_else(|e| panic!("{}: {e}", self.name));
            drop(content);
            close(disk).unwrap_or_else(|e| panic!("{}: cancelled at {k}: {e}", self.name));
            let what = || format!("cancelled at call {k}");
            let files = shared(&below);
            self.stands(&files, &what);
            self.succeeds(&files, &what);
            if last {
                return aborted;
            }
            k += total.div_ceil(at_most).max(1);
        }
    }

    /// The rules of the progress contract that concern whoever watches, with four threads that do nothing else.
    pub fn keeps_the_contract(&self) {
        let files = shared(&self.copies());
        let disk = self.open(&files, self.depth).unwrap();
        let begun = Instant::now();
        let running = (self.start)(&disk);
        let observer = running.observer.clone();
        let first = observer.progress();
        let started = begun.elapsed();
        assert!(
            first.status != Status::Pending || first.completion > 0,
            "{}: P-16 {first:?}",
            self.name
        );
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    let mut over = false;
                    while !stop.load(SeqCst) {
                        let seen = observer.progress();
                        match seen.status {
                            Status::Pending => {
                                assert!(!over, "{}: P-10 pending after the end", self.name);
                                assert!(
                                    seen.current <= seen.completion && seen.completion > 0,
                                    "{}: P-13, P-14, P-16 {seen:?}",
                                    self.name
                                );
                                let percent = seen.percent();
                                assert!((0.0..=100.0).contains(&percent), "P-18: {percent}");
                            }
                            _ => over = true,
                        }
                    }
                });
            }
            let result = running.wait();
            // P-30: it is there at once; on a machine that is slow, before most of the work.
            let at_once = Duration::from_millis(500).max(begun.elapsed() / 2);
            // P-22: who has waited sees the end.
            let after = observer.progress();
            stop.store(true, SeqCst);
            assert!(started < at_once, "{}: P-30 {started:?}", self.name);
            result.unwrap_or_else(|e| panic!("{}: {e}", self.name));
            assert_eq!(after.status, Status::Succeeded, "{}", self.name);
            // P-21: and again; P-24: cancelling what is over changes nothing.
            observer.cancel();
            for _ in 0..3 {
                assert_eq!(observer.progress().status, Status::Succeeded);
            }
        });
        close(disk).unwrap();
    }

    /// Dropping the handle stops the work; no call reaches the files afterwards.
    pub fn stops_when_dropped(&self) {
        for delay in [0_u64, 50, 300, 1_000, 4_000] {
            let below = self.copies();
            let faults = faulty(&below);
            let files = shared(&faults);
            let disk = self.open(&files, self.depth).unwrap();
            let running = (self.start)(&disk);
            std::thread::sleep(Duration::from_micros(delay));
            drop(running);
            let calls = |all: &[Arc<FaultStorage>]| -> u64 {
                all.iter().map(|f| f.counts().total(&Call::ALL)).sum()
            };
            let then = calls(&faults);
            std::thread::sleep(Duration::from_millis(5));
            assert_eq!(calls(&faults), then, "{}: still at work", self.name);
            close(disk).unwrap();
            let files = shared(&below);
            self.stands(&files, &|| "dropped".into());
        }
    }
}

fn faulty(below: &[Arc<MemoryStorage>]) -> Vec<Arc<FaultStorage>> {
    below
        .iter()
        .map(|file| FaultStorage::new(file.clone()))
        .collect()
}

fn shared<S: Storage + 'static>(files: &[Arc<S>]) -> Vec<Arc<dyn Storage>> {
    let share = |file: &Arc<S>| -> Arc<dyn Storage> { file.clone() };
    files.iter().map(share).collect()
}

fn close(disk: Arc<VirtualDisk>) -> Result<()> {
    match Arc::into_inner(disk) {
        Some(disk) => disk.close(),
        None => panic!("the operation still has the disk"),
    }
}

/// Sizes count too.
fn difference(a: &MemoryStorage, b: &MemoryStorage) -> Option<(u64, u8, u8)> {
    let (end_a, end_b) = (a.len().unwrap(), b.len().unwrap());
    if end_a == end_b {
        first_difference(a, b)
    } else {
        Some((end_a.min(end_b), 0, 0))
    }
}
