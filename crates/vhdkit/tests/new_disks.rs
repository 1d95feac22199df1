//! Verbs that make or fill disks: whatever fails, stops or cuts the power, there is a whole disk or none, and the disk that
//! it is made from is as it was.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "helpers of tests: a failure is a failed test"
)]

use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, OnceLock};

use vhdkit::disk::{Layer, open_image};
use vhdkit::image::{CreateParameters, DiskType, Format, ParentLink, Severity};
use vhdkit::operation::{Observer, Operation};
use vhdkit::storage::{MemoryStorage, Storage};
use vhdkit::verbs::check::check_storage;
use vhdkit::verbs::compare::compare;
use vhdkit::verbs::convert::convert_disk;
use vhdkit::verbs::create::create_disk;
use vhdkit::verbs::mirror::{break_mirror, is_mirrored, mirror_onto};
use vhdkit::{ErrorKind, Status, VirtualDisk};
use vhdkit_testkit::contract::Running;
use vhdkit_testkit::crash::{CrashStorage, Sampling};
use vhdkit_testkit::fault::{Call, Fault, FaultStorage};
use vhdkit_testkit::history::assert_clean;
use vhdkit_testkit::model::assert_reads;
use vhdkit_testkit::rng::Rng;
use vhdkit_testkit::variant::{TestDisk, Variant, new_image};

/// A new leaf for a disk of which only the parents count, and what it takes to make it.
fn wanted(variant: &Variant) -> (TestDisk, CreateParameters) {
    let disk = variant.make(3);
    let parent = (variant.depth > 1).then(|| {
        let open = disk.open(false).unwrap();
        let info = &open.layers()[1].info;
        ParentLink {
            identifier: info.link_identifier.unwrap(),
            relative_path: ".\\parent".into(),
            absolute_path: String::new(),
            modified: 0,
            disk_identifier: info.identifier,
        }
    });
    let parameters = variant.parameters(variant.disk_type, parent);
    (disk, parameters)
}

/// One for each way of making a file.
fn variants() -> Vec<Variant> {
    let mut all = Variant::small();
    all.retain(|variant| variant.depth <= 2);
    all
}

/// It is the disk that was asked for.
fn assert_whole(disk: &TestDisk, file: &Arc<dyn Storage>, what: &str) {
    assert_clean(file, what);
    assert_reads_as_wanted(disk, file, what);
}

fn assert_reads_as_wanted(disk: &TestDisk, file: &Arc<dyn Storage>, what: &str) {
    let open = disk
        .open_leaf(file.clone(), false)
        .unwrap_or_else(|e| panic!("{what}: {e}"));
    assert_reads(&open, &disk.content, what);
}

/// It is either that, though perhaps without the second copy of a footer, or nothing that could be taken for a disk. (Any
/// file is a raw disk.)
fn assert_whole_or_none(disk: &TestDisk, file: &Arc<dyn Storage>, what: &str) -> bool {
    let format = disk.variant.format;
    let is_image = format != Format::Raw && open_image(file.clone(), format, false).is_ok();
    if is_image {
        for finding in check_storage(file).unwrap() {
            assert!(finding.severity < Severity::Error, "{what}: {finding:?}");
        }
        assert_reads_as_wanted(disk, file, what);
    }
    is_image
}

fn status_agrees(observer: &Observer, result: &vhdkit::Result<()>) {
    let code = result.as_ref().err().map_or(0, |e| e.kind().win32_code());
    assert_eq!(observer.progress().status.win32_code(), code);
}

#[test]
fn a_creation_that_fails_anywhere_says_so_and_leaves_a_whole_disk_or_none() {
    for variant in variants() {
        let (disk, parameters) = wanted(&variant);
        for (fault, calls) in [
            (Fault::InputOutput, Call::FALLIBLE),
            (
                Fault::NoSpace,
                &[Call::Write, Call::SetLen, Call::Allocate, Call::ZeroRange],
            ),
        ] {
            let mut failed = 0;
            for k in 0.. {
                let what = format!("{}: {fault:?} at call {k}", variant.name());
                let bytes: Arc<dyn Storage> = Arc::new(MemoryStorage::new());
                let faulty = FaultStorage::new(bytes.clone());
                faulty.fail_once(calls, k, fault);
                let operation = create_disk(faulty.clone(), parameters.clone());
                let observer = operation.observer();
                let result = operation.wait();
                status_agrees(&observer, &result);
                let met = faulty.injected() > 0;
                match &result {
                    Err(e) => {
                        assert!(met, "{what}: {e}");
                        assert_ne!(e.kind(), ErrorKind::Aborted, "{what}: {e}");
                        assert_whole_or_none(&disk, &bytes, &what);
                        failed += 1;
                        // With the space there, it works.
                        bytes.set_len(0).unwrap();
                        create_disk(bytes.clone(), parameters.clone())
                            .wait()
                            .unwrap();
                        assert_whole(&disk, &bytes, &what);
                    }
                    Ok(()) => assert_whole(&disk, &bytes, &what),
                }
                if !met {
                    break;
                }
            }
            assert!(failed > 0, "{}: {fault:?}", variant.name());
        }
    }
}

#[test]
fn a_creation_killed_anywhere_leaves_a_whole_disk_or_none() {
    let mut rng = Rng::new(11);
    let sampling = Sampling::from_environment();
    for variant in variants() {
        let (disk, parameters) = wanted(&variant);
        let storage = CrashStorage::new(&MemoryStorage::new());
        create_disk(storage.clone(), parameters).wait().unwrap();
        let (mut images, mut whole) = (0, 0);
        for epoch in storage.recording().epochs() {
            for fates in epoch.fates(&sampling, &mut rng) {
                let file: Arc<dyn Storage> = Arc::new(epoch.image(&fates));
                let what = format!("{}: {}", variant.name(), epoch.describe(&fates));
                images += 1;
                whole += u32::from(assert_whole_or_none(&disk, &file, &what));
            }
        }
        println!("{}: {images} images, {whole} whole", variant.name());
        assert!(images > 2 && whole < images, "{}", variant.name());
        // When it says that it is done, it is.
        let last = storage.recording().epochs().pop().unwrap();
        let lost = vec![vhdkit_testkit::crash::Fate::Lost; last.pending.len()];
        let file: Arc<dyn Storage> = Arc::new(last.image(&lost));
        assert_whole(&disk, &file, &format!("{} at the end", variant.name()));
    }
}

#[test]
fn a_creation_can_be_cancelled_at_every_call() {
    for variant in variants() {
        let (disk, parameters) = wanted(&variant);
        let mut aborted = 0;
        for k in 0.. {
            let what = format!("{}: cancelled at call {k}", variant.name());
            let bytes: Arc<dyn Storage> = Arc::new(MemoryStorage::new());
            let faulty = FaultStorage::new(bytes.clone());
            let observer = Arc::new(OnceLock::<Observer>::new());
            let seen = observer.clone();
            faulty.at_call(k, move || {
                while seen.get().is_none() {
                    std::thread::yield_now();
                }
                seen.get().unwrap().cancel();
            });
            let operation = create_disk(faulty.clone(), parameters.clone());
            let _ = observer.set(operation.observer());
            let result = operation.wait();
            status_agrees(observer.get().unwrap(), &result);
            match result {
                Ok(()) => assert_whole(&disk, &bytes, &what),
                Err(e) => {
                    assert_eq!(e.kind(), ErrorKind::Aborted, "{what}: {e}");
                    assert!(!assert_whole_or_none(&disk, &bytes, &what), "{what}");
                    aborted += 1;
                }
            }
            if faulty.has_hook() {
                break;
            }
        }
        assert!(aborted > 0, "{}", variant.name());
    }
}

/// A file that stops whoever makes its `skip`th call until the sender is dropped. Says when it is there.
fn gated(bytes: Arc<dyn Storage>, skip: u64) -> (Arc<FaultStorage>, Receiver<()>, Sender<()>) {
    let (met, at_work) = channel();
    let (go, gate) = channel::<()>();
    let file = FaultStorage::new(bytes);
    file.at_call(skip, move || {
        let _ = met.send(());
        let _ = gate.recv();
    });
    (file, at_work, go)
}

fn used() -> TestDisk {
    let variant = Variant::small()
        .into_iter()
        .find(|v| v.format == Format::Vhdx && v.disk_type == DiskType::Dynamic)
        .unwrap();
    let mut disk = variant.make(5);
    let mut rng = Rng::new(5);
    disk.fill(&variant.shape().random_ops(20, &mut rng))
        .unwrap();
    disk
}

/// P-27: reading operations run on one disk at once, and each has its own progress.
#[test]
fn p27_conversions_of_one_disk_run_side_by_side() {
    let disk = used();
    let open = Arc::new(disk.open(false).unwrap());
    let copy = || CreateParameters {
        virtual_size: 0,
        ..disk.variant.parameters(DiskType::Dynamic, None)
    };
    let first_bytes = Arc::new(MemoryStorage::new());
    let (first_file, at_work, go) = gated(first_bytes.clone(), 3);
    let first = convert_disk(open.clone(), first_file, copy());
    at_work.recv().unwrap();
    let before = first.progress();
    assert_eq!(before.status, Status::Pending);

    let second_bytes = Arc::new(MemoryStorage::new());
    let second = convert_disk(open.clone(), second_bytes.clone(), copy());
    let observer = second.observer();
    second.wait().unwrap();
    assert_eq!(observer.progress().status, Status::Succeeded);
    // What became of the other is not told by the first one.
    let after = first.progress();
    assert_eq!(
        (after.status, after.percent() < 100.0),
        (Status::Pending, true)
    );
    drop(go);
    let observer = first.observer();
    first.wait().unwrap();
    assert_eq!(observer.progress().status, Status::Succeeded);
    for bytes in [first_bytes, second_bytes] {
        let image = open_image(bytes, Format::Vhdx, false).unwrap();
        let copy = VirtualDisk::from_layers(vec![Layer::new(image, "copy")], false).unwrap();
        assert_reads(&copy, &disk.content, "a copy");
    }
}

#[test]
fn p27_comparisons_run_side_by_side() {
    let disk = used();
    let (file, at_work, go) = gated(disk.layers[0].clone(), 40);
    let first = compare(
        disk.open_leaf(file, false).unwrap(),
        disk.open(false).unwrap(),
    );
    at_work.recv().unwrap();
    let second = compare(disk.open(false).unwrap(), disk.open(false).unwrap());
    let observer = second.observer();
    assert_eq!(second.wait().unwrap().first_difference, None);
    assert_eq!(observer.progress().status, Status::Succeeded);
    assert_eq!(first.progress().status, Status::Pending);
    drop(go);
    assert_eq!(first.wait().unwrap().first_difference, None);
}

fn break_when_equal<T: Send + 'static>(
    operation: Operation<T>,
    disk: &Arc<VirtualDisk>,
) -> Running {
    let observer = operation.observer();
    let disk = Arc::downgrade(disk);
    let breaker = std::thread::spawn(move || {
        while observer.progress().status == Status::Pending {
            let Some(disk) = disk.upgrade() else { return };
            if is_mirrored(&disk) && break_mirror(&disk).is_ok() {
                return;
            }
            drop(disk);
            std::thread::yield_now();
        }
    });
    Running::with(operation, breaker)
}

/// P-41: a target that fails ends the mirror with its error, and the disk goes on without it.
#[test]
fn a_mirror_whose_target_fails_anywhere_ends_and_the_disk_goes_on() {
    let disk = used();
    let blank = new_image(&disk.variant.parameters(DiskType::Dynamic, None)).unwrap();
    for (fault, calls) in [
        (Fault::InputOutput, Call::FALLIBLE),
        (
            Fault::NoSpace,
            &[Call::Write, Call::SetLen, Call::Allocate, Call::ZeroRange],
        ),
    ] {
        for k in 0.. {
            let what = format!("{fault:?} at call {k} of the target");
            let source = Arc::new(MemoryStorage::clone(&disk.layers[0]));
            let open = Arc::new(disk.open_leaf(source.clone(), true).unwrap());
            let bytes: Arc<dyn Storage> = Arc::new(MemoryStorage::clone(&blank));
            let faulty = FaultStorage::new(bytes.clone());
            let image = open_image(faulty.clone(), Format::Vhdx, true).unwrap();
            let layers = vec![Layer::new(image, "copy").writable(true)];
            let target = VirtualDisk::from_layers(layers, true).unwrap();
            faulty.fail_once(calls, k, fault);
            let running = break_when_equal(mirror_onto(open.clone(), target), &open);
            let observer = running.observer.clone();
            let result = running.wait();
            status_agrees(&observer, &result);
            let met = faulty.injected() > 0;
            faulty.heal();
            if let Err(e) = &result {
                assert!(met, "{what}: {e}");
                assert_ne!(e.kind(), ErrorKind::Aborted, "{what}: {e}");
            }
            // Reads as before, and can be written: itself after a failure, the copy after a success.
            assert_reads(&open, &disk.content, &what);
            open.write_at(0, &[5; 4096])
                .unwrap_or_else(|e| panic!("{what}: {e}"));
            assert_eq!(
                result.is_ok(),
                open.path() == std::path::Path::new("copy"),
                "{what}"
            );
            drop(open);
            let source: Arc<dyn Storage> = source;
            assert_clean(&source, &what);
            assert_clean(&bytes, &what);
            if !met {
                result.unwrap();
                assert!(k > 5);
                break;
            }
        }
    }
}
