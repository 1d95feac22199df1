//! Publishing, in a folder of the test's own.
#![allow(
    clippy::unwrap_used,
    reason = "helpers of tests: a failure is a failed test"
)]

use super::*;
use crate::operation::{Monitor, Operation};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

struct Place {
    _base: tempfile::TempDir,
    folder: RuntimeFolder,
    path: PathBuf,
}

impl Place {
    fn new() -> Self {
        let base = tempfile::tempdir().unwrap();
        let path = base.path().join("vhdkit");
        Self {
            folder: RuntimeFolder::make_at(&path).unwrap(),
            _base: base,
            path,
        }
    }

    fn pending(&self) -> Vec<PublishedOperation> {
        pending_in(&self.folder).unwrap()
    }

    fn publish<T>(&self, operation: &Operation<T>, disk: &str) -> Published {
        let subject = Subject::disk(disk).counted_in(Unit::Bytes);
        operation
            .observer()
            .publish_in(&self.folder, &subject)
            .unwrap()
    }

    fn files(&self) -> usize {
        self.path.read_dir().unwrap().count()
    }
}

/// Runs until it is cancelled.
fn endless(monitor: &Monitor) -> Result<()> {
    monitor.set(1, 4);
    loop {
        monitor.checkpoint()?;
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn eventually(mut holds: impl FnMut() -> bool) {
    let started = Instant::now();
    while !holds() {
        assert!(started.elapsed() < Duration::from_mins(2));
        std::thread::sleep(Duration::from_millis(2));
    }
}

#[test]
fn an_operation_is_seen_while_it_runs_and_its_end_by_whoever_watches() {
    let place = Place::new();
    // To the millisecond, as it is written down.
    let before = SystemTime::now() - Duration::from_millis(1);
    let operation = Operation::start("test", endless);
    let published = place.publish(&operation, "/no/such/disk.vhdx");
    let mut all = place.pending();
    assert_eq!(all.len(), 1, "it is there as soon as publish returns");
    let seen = &mut all[0];
    assert_eq!(seen.name(), "test");
    assert_eq!(seen.path(), Path::new("/no/such/disk.vhdx"));
    assert_eq!((seen.other(), seen.unit()), (None, Unit::Bytes));
    assert_eq!(seen.pid(), std::process::id());
    assert!((before..=SystemTime::now()).contains(&seen.started()));
    eventually(|| seen.refresh() == Standing::Running && seen.progress().completion == 4);
    assert_eq!(seen.progress().current, 1);

    operation.cancel();
    assert_eq!(operation.wait().unwrap_err().kind(), ErrorKind::Aborted);
    drop(published);
    assert!(place.pending().is_empty());
    assert_eq!(place.files(), 0);
    assert_eq!(seen.refresh(), Standing::Over);
    let aborted = Status::Failed(ErrorKind::Aborted);
    assert_eq!(seen.progress().status, aborted);
    assert_eq!(seen.refresh(), Standing::Over, "and again");
}

#[test]
fn the_entry_goes_with_the_operation_though_the_guard_is_kept() {
    let place = Place::new();
    let operation = Operation::start("test", |_| Ok(()));
    let _published = place.publish(&operation, "/a");
    operation.wait().unwrap();
    eventually(|| place.files() == 0);
}

#[test]
fn unpublishing_does_not_touch_the_operation() {
    let place = Place::new();
    let operation = Operation::start("test", endless);
    drop(place.publish(&operation, "/a"));
    assert_eq!(place.files(), 0);
    assert_eq!(operation.progress().status, Status::Pending);
}

#[test]
fn a_request_from_elsewhere_reaches_the_operation() {
    let place = Place::new();
    let operation = Operation::start("test", endless);
    let _published = place.publish(&operation, "/a/disk");
    let other = Operation::start("test", endless);
    let _other = place.publish(&other, "/another/disk");

    let path = Path::new("/a/disk");
    let mut asked = cancel_all(only_on(place.pending(), path), path).unwrap();
    assert_eq!(asked.len(), 1);
    assert_eq!(operation.wait().unwrap_err().kind(), ErrorKind::Aborted);
    assert!(asked[0].is_cancel_requested());
    eventually(|| asked[0].refresh() == Standing::Over);

    assert_eq!(other.progress().status, Status::Pending);
    let nothing = Path::new("/a");
    let error = cancel_all(only_on(place.pending(), nothing), nothing).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ItemNotFound);
    assert!(error.hint().is_some());
}

#[test]
fn the_disk_that_is_made_comes_before_the_one_that_is_read() {
    let place = Place::new();
    let convert = Operation::start("convert", endless);
    let subject = Subject::disk("/new").and("/old");
    let _convert = convert.observer().publish_in(&place.folder, &subject);
    let on = |path: &str| -> Vec<String> {
        let found = only_on(place.pending(), Path::new(path));
        found.iter().map(|o| o.name().to_owned()).collect()
    };
    assert_eq!(on("/new"), ["convert"]);
    assert_eq!(on("/old"), ["convert"]);
    let compact = Operation::start("compact", endless);
    let _compact = place.publish(&compact, "/old");
    assert_eq!(on("/old"), ["compact"]);
}

#[test]
fn paths_are_the_same_for_everybody() {
    let base = tempfile::tempdir().unwrap();
    let real = base.path().canonicalize().unwrap().join("real");
    std::fs::create_dir(&real).unwrap();
    let link = base.path().join("link");
    std::os::unix::fs::symlink(&real, &link).unwrap();
    let odd = OsStr::from_bytes(b"\xFF.vhdx");
    // The disk need not be there yet.
    assert_eq!(canonical(&link.join(odd)), real.join(odd));
    std::fs::write(real.join(odd), "").unwrap();
    assert_eq!(canonical(&link.join(".").join(odd)), real.join(odd));

    let place = Place::new();
    let operation = Operation::start("test", endless);
    let subject = Subject::disk(link.join(odd));
    let _published = operation.observer().publish_in(&place.folder, &subject);
    let found = only_on(place.pending(), &real.join(odd));
    assert_eq!(found[0].path(), real.join(odd));
}

#[test]
fn what_a_dead_owner_left_is_taken_away() {
    let place = Place::new();
    let origin = Origin {
        verb: "test".into(),
        subject: Subject::disk("/a"),
        // Alive, and still not the owner.
        pid: std::process::id(),
        started: SystemTime::now(),
    };
    let progress = Progress {
        status: Status::Pending,
        current: 1,
        completion: 2,
    };
    let bytes = record::encode(&origin, progress).unwrap();
    for (i, content) in [&bytes[..], &bytes[..100], &[], &[0xFF; 9000]]
        .iter()
        .enumerate()
    {
        std::fs::write(place.path.join(format!("{i}.operation")), content).unwrap();
    }
    std::fs::write(place.path.join("notes"), "mine").unwrap();
    assert!(place.pending().is_empty());
    assert_eq!(place.files(), 1);
    // Also if nobody ever asks.
    std::fs::write(place.path.join("0.operation"), &bytes).unwrap();
    let operation = Operation::start("test", endless);
    let _published = place.publish(&operation, "/a");
    eventually(|| place.files() == 2);
}

#[test]
fn what_is_held_but_no_entry_is_left_alone() {
    let place = Place::new();
    let empty = place.folder.create_entry("empty.operation").unwrap();
    empty.try_lock().unwrap();
    let garbage = place.folder.create_entry("garbage.operation").unwrap();
    garbage.try_lock().unwrap();
    garbage.write_all_at(&[0xAA; ENTRY_LENGTH], 0).unwrap();
    assert!(place.pending().is_empty());
    assert_eq!(place.files(), 2);
}

#[test]
fn an_owner_that_dies_under_the_eyes_of_a_watcher_is_lost() {
    let place = Place::new();
    let operation = Operation::start("test", endless);
    let entry = Entry::make(
        &place.folder,
        &Origin {
            verb: "test".into(),
            subject: Subject::disk("/a"),
            pid: 1,
            started: SystemTime::now(),
        },
        operation.progress(),
    )
    .unwrap();
    let mut seen = place.pending();
    assert_eq!(seen[0].refresh(), Standing::Running);
    drop(entry);
    assert_eq!(seen[0].refresh(), Standing::Lost);
    assert_eq!(seen[0].refresh(), Standing::Lost);
}

#[test]
fn a_hundred_at_once_come_and_go_while_others_look() {
    let place = Arc::new(Place::new());
    let done = Arc::new(AtomicBool::new(false));
    let readers: Vec<_> = (0..3)
        .map(|_| {
            let (place, done) = (place.clone(), done.clone());
            std::thread::spawn(move || {
                while !done.load(Ordering::Acquire) {
                    for seen in place.pending() {
                        let p = seen.progress();
                        assert!(p.current == 0 || p.completion == p.current * 3, "{p:?}");
                    }
                }
            })
        })
        .collect();
    let busy = |monitor: &Monitor| -> Result<()> {
        let mut n = 0;
        loop {
            n += 1;
            monitor.set(n, n * 3);
            monitor.checkpoint()?;
            std::thread::sleep(Duration::from_millis(5));
        }
    };
    let running: Vec<_> = (0..100)
        .map(|i| {
            let operation = Operation::start("test", busy);
            let published = place.publish(&operation, &format!("/disks/{i}"));
            (operation, published)
        })
        .collect();
    let all = place.pending();
    assert_eq!(all.len(), 100);
    assert!(all.is_sorted_by_key(PublishedOperation::started));
    for seen in &all {
        seen.request_cancel().unwrap();
    }
    for (operation, published) in running {
        assert_eq!(operation.wait().unwrap_err().kind(), ErrorKind::Aborted);
        drop(published);
    }
    done.store(true, Ordering::Release);
    for reader in readers {
        reader.join().unwrap();
    }
    assert!(place.pending().is_empty());
    assert_eq!(place.files(), 0);
}

#[test]
fn what_cannot_be_published_says_why() {
    let place = Place::new();
    let operation = Operation::start("test", endless);
    let subject = Subject::disk("/".to_owned() + &"x".repeat(10_000));
    let error = operation
        .observer()
        .publish_in(&place.folder, &subject)
        .err()
        .unwrap();
    assert_eq!(error.kind(), ErrorKind::NotSupported);
    assert_eq!(place.files(), 0);
    assert_eq!(operation.progress().status, Status::Pending);
}
