//! Drivers: a history of guest operations, crashed or failed at every point of it, held against the promise.
//!
//! The promise: after a crash the file opens; every sector holds what it held at the last completed flush of the guest
//! or a value written to it since; a read-only open reads the same as a writable one and writes nothing; `check` finds
//! nothing that a writable open does not put right, and after that nothing at all.

use std::sync::Arc;

use vhdkit::image::{Finding, Severity};
use vhdkit::storage::{MemoryStorage, Storage};
use vhdkit::verbs::check::check_storage;
use vhdkit::{ErrorKind, Result, VirtualDisk};

use crate::crash::{CrashStorage, Epoch, Fate, Sampling};
use crate::fault::{Call, Fault, FaultStorage};
use crate::guest::{GuestOp, follow_discard};
use crate::model::{CrashModel, assert_reads, content_of, first_difference};
use crate::rng::Rng;
use crate::variant::TestDisk;

/// How to run a crash history.
#[derive(Clone, Copy, Debug)]
pub struct CrashOptions {
    /// How many images of each epoch to look at.
    pub sampling: Sampling,
    /// Seed of the samples; printed when something is wrong.
    pub seed: u64,
    /// One in this many images is crashed again while it is being opened and closed; 0 is none.
    pub crash_recovery: u64,
    /// Worst finding of a check of the file as the crash left it.
    pub raw_findings: Severity,
    /// The flush of this number is lost: to see that the test would notice if it were forgotten.
    pub lost_flush: Option<usize>,
}

impl Default for CrashOptions {
    fn default() -> Self {
        Self {
            sampling: Sampling::from_environment(),
            seed: 1,
            crash_recovery: 24,
            raw_findings: Severity::Warning,
            lost_flush: None,
        }
    }
}

/// What a crash history looked at.
#[derive(Clone, Copy, Default, Debug)]
pub struct CrashReport {
    /// Storage operations recorded.
    pub operations: usize,
    /// Flushes of the storage among them.
    pub flushes: usize,
    /// Stretches between two barriers.
    pub epochs: usize,
    /// Crash images that were opened and compared.
    pub images: usize,
    /// Of these, images in which a check found a warning before they were opened for writing.
    pub warnings: usize,
}

/// What happened to the disk, in terms of the model, and when (in recorded storage operations).
enum Event {
    /// A change that began here; the whole disk after it.
    Changed(usize, MemoryStorage),
    /// A flush that had ended here.
    Flushed(usize),
}

/// Runs operations on the disk's leaf, then looks at what a crash could leave at every point of the history.
///
/// Panics with the seed, the operations pending and their fates if the promise is broken.
pub fn run_crash_history(disk: &TestDisk, ops: &[GuestOp], options: &CrashOptions) -> CrashReport {
    let storage = CrashStorage::losing_a_flush(&disk.layers[0], options.lost_flush);
    let events = record(disk, &storage, ops);
    let recording = storage.recording();
    let mut report = CrashReport {
        operations: recording.ops().len(),
        flushes: storage.flushes(),
        ..CrashReport::default()
    };
    let mut rng = Rng::new(options.seed);
    for epoch in recording.epochs() {
        report.epochs += 1;
        let model = model_at(disk, &events, epoch.position);
        for fates in epoch.fates(&options.sampling, &mut rng) {
            report.images += 1;
            let image = epoch.image(&fates);
            let again = options.crash_recovery > 0 && rng.one_in(options.crash_recovery);
            match verify(disk, &image, &model, options, again) {
                Ok(found) => report.warnings += usize::from(found >= Severity::Warning),
                Err(wrong) => panic!("{}", story(disk, ops, options, &epoch, &fates, &wrong)),
            }
        }
    }
    report
}

fn story(
    disk: &TestDisk,
    ops: &[GuestOp],
    options: &CrashOptions,
    epoch: &Epoch,
    fates: &[Fate],
    wrong: &str,
) -> String {
    format!(
        "{}: {wrong}\nseed {}\n{}guest: {ops:#?}",
        disk.variant.name(),
        options.seed,
        epoch.describe(fates)
    )
}

fn record(disk: &TestDisk, storage: &Arc<CrashStorage>, ops: &[GuestOp]) -> Vec<Event> {
    let name = disk.variant.name();
    let open = || -> VirtualDisk {
        disk.open_leaf(storage.clone(), true)
            .unwrap_or_else(|e| panic!("{name}: {e}"))
    };
    let content = disk.content.clone();
    let mut events = Vec::new();
    let mut open_disk = open();
    for op in ops {
        let begun = storage.position();
        let done = |result: Result<()>| result.unwrap_or_else(|e| panic!("{name}: {op:?}: {e}"));
        match *op {
            GuestOp::Reopen => {
                done(open_disk.close());
                events.push(Event::Flushed(storage.position()));
                open_disk = open();
            }
            GuestOp::Flush => {
                done(open_disk.flush());
                events.push(Event::Flushed(storage.position()));
            }
            GuestOp::Discard { offset, length } => {
                let zeroed = content.clone();
                zeroed.zero_range(offset, length).expect("memory");
                events.push(Event::Changed(begun, zeroed));
                done(op.run(&open_disk));
                let wrong = follow_discard(&open_disk, &content, offset, length)
                    .unwrap_or_else(|e| panic!("{name}: {op:?}: {e}"));
                assert_eq!(wrong, None, "{name}: {op:?}");
                events.push(Event::Changed(begun, content.clone()));
            }
            GuestOp::Write { .. } | GuestOp::Zero { .. } => {
                op.run_on_model(&content);
                events.push(Event::Changed(begun, content.clone()));
                done(op.run(&open_disk));
            }
        }
    }
    assert_reads(&open_disk, &content, &format!("{name}: before the crash"));
    open_disk
        .close()
        .unwrap_or_else(|e| panic!("{name}: close: {e}"));
    events.push(Event::Flushed(storage.position()));
    events
}

fn model_at(disk: &TestDisk, events: &[Event], position: usize) -> CrashModel {
    let mut model = CrashModel::new(&disk.content);
    for event in events {
        match event {
            Event::Changed(begun, content) if *begun <= position => model.changed(content),
            Event::Flushed(ended) if *ended <= position => model.flushed(),
            _ => {}
        }
    }
    model
}

/// What the worst finding is, or what is wrong.
fn verify(
    disk: &TestDisk,
    image: &MemoryStorage,
    model: &CrashModel,
    options: &CrashOptions,
    crash_again: bool,
) -> Result<Severity, String> {
    let as_left: Arc<dyn Storage> = Arc::new(image.clone());
    let worst = worst_finding(&as_left, options.raw_findings)?;

    let watched = FaultStorage::new(Arc::new(image.clone()));
    let opened = disk
        .open_leaf(watched.clone(), false)
        .map_err(|e| format!("does not open read-only: {e}"))?;
    let content = content_of(&opened).map_err(|e| format!("does not read: {e}"))?;
    drop(opened);
    let changing = watched.counts().total(Call::CHANGING);
    if changing > 0 {
        return Err(format!(
            "a read-only open made {changing} calls that change the file"
        ));
    }
    if let Some(wrong) = model.violation(&content) {
        return Err(wrong);
    }

    let repaired = CrashStorage::new(image);
    let same = |when: &str, opened: &VirtualDisk| -> Result<(), String> {
        let now = content_of(opened).map_err(|e| format!("{when}: does not read: {e}"))?;
        match first_difference(&content, &now) {
            None => Ok(()),
            Some((at, was, is)) => Err(format!(
                "{when}: byte {at:#x} reads {is:#04x}, but a read-only open of the crashed file read {was:#04x}"
            )),
        }
    };
    let opened = disk
        .open_leaf(repaired.clone(), true)
        .map_err(|e| format!("does not open for writing: {e}"))?;
    same("opened for writing", &opened)?;
    opened
        .close()
        .map_err(|e| format!("does not close after the crash: {e}"))?;
    let clean = repaired.live();
    let as_closed: Arc<dyn Storage> = Arc::new(clean.clone());
    worst_finding(&as_closed, Severity::Info).map_err(|e| format!("after open and close: {e}"))?;
    let opened = disk
        .open_leaf(as_closed, false)
        .map_err(|e| format!("does not open after open and close: {e}"))?;
    same("after open and close", &opened)?;
    drop(opened);

    if crash_again {
        let settled = CrashModel::new(&content);
        let mut rng = Rng::new(options.seed);
        let few = Sampling {
            exhaustive: 3,
            random: 4,
            torn: 4,
        };
        for epoch in repaired.recording().epochs() {
            for fates in epoch.fates(&few, &mut rng) {
                verify(disk, &epoch.image(&fates), &settled, options, false).map_err(|e| {
                    format!(
                        "after a second crash, during recovery: {e}\n{}first:",
                        epoch.describe(&fates)
                    )
                })?;
            }
        }
    }
    Ok(worst)
}

/// The worst of what a check finds, or the findings that are worse than allowed.
fn worst_finding(storage: &Arc<dyn Storage>, allowed: Severity) -> Result<Severity, String> {
    let findings = check_storage(storage).map_err(|e| format!("check fails: {e}"))?;
    let bad: Vec<&Finding> = findings.iter().filter(|f| f.severity > allowed).collect();
    if bad.is_empty() {
        Ok(findings
            .iter()
            .map(|f| f.severity)
            .max()
            .unwrap_or(Severity::Info))
    } else {
        Err(format!("check finds {bad:?}"))
    }
}

/// Panics if a check finds anything above [`Severity::Info`].
pub fn assert_clean(storage: &Arc<dyn Storage>, what: &str) {
    if let Err(e) = worst_finding(storage, Severity::Info) {
        panic!("{what}: {e}");
    }
}

/// Runs operations again and again, each time with another storage call failing, and panics unless the error is
/// reported, nothing that was flushed is lost, and a retry (on the disk, or after opening it again) works.
///
/// Returns how many faults were injected.
pub fn run_fault_sweep(disk: &TestDisk, ops: &[GuestOp], fault: Fault) -> u64 {
    let calls = match fault {
        Fault::InputOutput => Call::FALLIBLE,
        Fault::NoSpace => &[Call::Write, Call::SetLen, Call::Allocate, Call::ZeroRange],
    };
    let mut injected = 0;
    while fail_kth(disk, ops, fault, calls, injected) {
        injected += 1;
    }
    injected
}

fn fail_kth(
    disk: &TestDisk,
    ops: &[GuestOp],
    fault: Fault,
    calls: &'static [Call],
    k: u64,
) -> bool {
    let name = format!("{}, {fault:?} on call {k}", disk.variant.name());
    let fork = disk.fork();
    let storage = FaultStorage::new(fork.layers[0].clone());
    let content = fork.content.clone();
    let mut model = CrashModel::new(&content);
    let open = |when: &str| -> VirtualDisk {
        fork.open_leaf(storage.clone(), true)
            .unwrap_or_else(|e| panic!("{name}: open {when}: {e}"))
    };
    storage.fail_once(calls, k, fault);
    let mut opened = match fork.open_leaf(storage.clone(), true) {
        Ok(opened) => opened,
        Err(e) => {
            expect_fault(&name, &e, fault);
            open("again after a failed open")
        }
    };
    // Takes what the disk reads now as the truth, if the promise allows it.
    let adopt = |opened: &VirtualDisk, model: &mut CrashModel, when: &str| {
        let now = content_of(opened).unwrap_or_else(|e| panic!("{name}: {when}: {e}"));
        if let Some(wrong) = model.violation(&now) {
            panic!("{name}: {when}: {wrong}\nguest: {ops:#?}");
        }
        *model = CrashModel::new(&now);
        let size = now.len().expect("memory");
        content.zero_range(0, size).expect("memory");
        copy_data(&now, &content);
    };
    for op in ops {
        if matches!(op, GuestOp::Write { .. } | GuestOp::Zero { .. }) {
            op.run_on_model(&content);
            model.changed(&content);
        }
        if let GuestOp::Discard { offset, length } = *op {
            let zeroed = content.clone();
            zeroed.zero_range(offset, length).expect("memory");
            model.changed(&zeroed);
            model.changed(&content);
        }
        let result = match op {
            GuestOp::Reopen => opened.flush(),
            _ => op.run(&opened),
        };
        if let Err(e) = result {
            assert!(storage.injected() == 1, "{name}: {op:?}: {e}");
            expect_fault(&name, &e, fault);
            let again = op.run(&opened);
            if let Err(e) = again {
                assert_eq!(
                    e.kind(),
                    ErrorKind::InvalidState,
                    "{name}: a retry works or says that the disk has to be opened again: {e}"
                );
                drop(opened);
                opened = open("after a failed operation");
                adopt(&opened, &mut model, "after opening again");
                op.run_on_model(&content);
                model.changed(&content);
                op.run(&opened)
                    .unwrap_or_else(|e| panic!("{name}: retry of {op:?} after opening again: {e}"));
            }
        }
        if let GuestOp::Discard { offset, length } = *op {
            let wrong = storage
                .suspended(|| follow_discard(&opened, &content, offset, length))
                .unwrap_or_else(|e| panic!("{name}: {e}"));
            assert_eq!(wrong, None, "{name}: {op:?}");
            model.changed(&content);
        }
        if matches!(op, GuestOp::Flush | GuestOp::Reopen) {
            model.flushed();
        }
        if *op == GuestOp::Reopen {
            let before = storage.injected();
            if let Err(e) = opened.close() {
                assert!(storage.injected() > before, "{name}: close: {e}");
                expect_fault(&name, &e, fault);
            }
            opened = match fork.open_leaf(storage.clone(), true) {
                Ok(opened) => opened,
                Err(e) => {
                    expect_fault(&name, &e, fault);
                    open("again after a failed open")
                }
            };
            storage.suspended(|| assert_reads(&opened, &content, &format!("{name}: {op:?}")));
        }
    }
    storage.suspended(|| assert_reads(&opened, &content, &format!("{name}: at the end")));
    let before = storage.injected();
    match opened.close() {
        Ok(()) => model.flushed(),
        Err(e) => {
            assert!(storage.injected() > before, "{name}: close: {e}");
            expect_fault(&name, &e, fault);
        }
    }
    let hit = storage.injected() == 1;
    storage.heal();
    let reopened = open("at the end");
    adopt(&reopened, &mut model, "opened at the end");
    reopened
        .close()
        .unwrap_or_else(|e| panic!("{name}: close at the end: {e}"));
    let file: Arc<dyn Storage> = fork.layers[0].clone();
    assert_clean(&file, &name);
    hit
}

fn expect_fault(name: &str, error: &vhdkit::Error, fault: Fault) {
    let fits = match fault {
        Fault::NoSpace => error.kind() == ErrorKind::DiskFull,
        Fault::InputOutput => matches!(
            error.kind(),
            ErrorKind::ReadFault | ErrorKind::WriteFault | ErrorKind::Io
        ),
    };
    assert!(fits, "{name}: {fault:?} was reported as {error:?}");
}

fn copy_data(from: &MemoryStorage, to: &MemoryStorage) {
    let end = from.len().expect("memory");
    let mut at = 0;
    while let Some(run) = from.next_data(at..end).expect("memory") {
        to.copy_range_from(from, run.start, run.start, run.end - run.start)
            .expect("memory");
        at = run.end;
    }
}
