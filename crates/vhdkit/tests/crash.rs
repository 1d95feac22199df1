//! The durability promise, at every point of a history: what a crash or a failing disk can leave.
//!
//! `VHDKIT_CRASH=thorough` looks at every subset of up to eight unflushed storage operations and takes more samples.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::cast_possible_truncation,
    reason = "helpers of tests: a failure is a failed test"
)]

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use vhdkit::disk::OpenOptions;
use vhdkit::image::{DiskType, Format, IdentifierSource};
use vhdkit::storage::{MemoryStorage, NewFile, Storage};
use vhdkit::verbs::convert::{ConvertOptions, convert};
use vhdkit::verbs::new_builder;
use vhdkit::{Error, ErrorKind};
use vhdkit_testkit::crash::{CrashStorage, Sampling};
use vhdkit_testkit::fault::Fault;
use vhdkit_testkit::fault::{Call, FaultStorage};
use vhdkit_testkit::guest::GuestOp;
use vhdkit_testkit::history::{CrashOptions, CrashReport, run_crash_history, run_fault_sweep};
use vhdkit_testkit::model::{assert_reads, blank};
use vhdkit_testkit::rng::Rng;
use vhdkit_testkit::variant::{TestDisk, Variant};

fn histories(variants: &[Variant], count: u64, length: usize) {
    for variant in variants {
        let disk = variant.make(5);
        let mut total = CrashReport::default();
        for seed in 0..count {
            let mut rng = Rng::new(seed);
            let ops = variant.shape().random_ops(length, &mut rng);
            let options = CrashOptions {
                seed,
                ..CrashOptions::default()
            };
            let report = run_crash_history(&disk, &ops, &options);
            total.epochs += report.epochs;
            total.images += report.images;
            total.warnings += report.warnings;
            total.operations += report.operations;
        }
        println!("{}: {total:?}", variant.name());
    }
}

fn of_type(disk_type: DiskType) -> Vec<Variant> {
    Variant::small()
        .into_iter()
        .filter(|v| v.disk_type == disk_type)
        .collect()
}

#[test]
fn fixed_disks_keep_the_promise_after_a_crash() {
    histories(&of_type(DiskType::Fixed), 3, 12);
}

#[test]
fn dynamic_disks_keep_the_promise_after_a_crash() {
    histories(&of_type(DiskType::Dynamic), 3, 12);
}

#[test]
fn differencing_disks_keep_the_promise_after_a_crash() {
    histories(&of_type(DiskType::Differencing), 2, 12);
}

/// The shortest histories in which something can go wrong, every crash image of which is looked at.
#[test]
fn short_histories_keep_the_promise_exhaustively() {
    for variant in Variant::small() {
        let disk = variant.make(6);
        let shape = variant.shape();
        let (block, sector) = (shape.block_size, shape.sector_size);
        let near_end = shape.virtual_size - sector;
        let options = CrashOptions::default();
        for ops in [
            vec![GuestOp::write(0, sector, 2), GuestOp::Flush],
            vec![
                GuestOp::write(block - sector, 2 * sector, 2),
                GuestOp::Flush,
            ],
            vec![
                GuestOp::write(sector, sector, 2),
                GuestOp::Flush,
                GuestOp::write(sector, sector, 3),
                GuestOp::write(3 * sector, sector, 4),
                GuestOp::Flush,
            ],
            vec![
                GuestOp::write(block, block, 2),
                GuestOp::Flush,
                GuestOp::discard(block, block),
                GuestOp::write(0, sector, 3),
                GuestOp::Flush,
                GuestOp::write(block + sector, sector, 4),
                GuestOp::Flush,
            ],
            vec![
                GuestOp::zero(0, block),
                GuestOp::Flush,
                GuestOp::write(7, 5, 2),
            ],
            vec![GuestOp::write(near_end, sector, 2), GuestOp::Reopen],
        ] {
            let ops: Vec<_> = ops.iter().map(|op| op.within(shape.virtual_size)).collect();
            run_crash_history(&disk, &ops, &options);
        }
    }
}

/// The test of the test: were a barrier forgotten, some crash image would show it. Barriers that nothing depends on are
/// only reported.
#[test]
fn a_forgotten_barrier_would_be_noticed() {
    for variant in Variant::small() {
        // One of each kind is enough.
        if variant.depth > 2
            || variant.disk_type == DiskType::Fixed
            || variant.sector_size != 512
            || variant.block_size.is_none()
        {
            continue;
        }
        let disk = variant.make(6);
        let shape = variant.shape();
        let (block, sector) = (shape.block_size, shape.sector_size);
        let ops = [
            GuestOp::write(sector, 3 * sector, 2),
            GuestOp::Flush,
            GuestOp::discard(0, block),
            GuestOp::write(block, block, 3),
            GuestOp::Flush,
            GuestOp::write(5 * sector, sector, 4),
            GuestOp::Flush,
            GuestOp::write(5 * sector, sector, 5),
            GuestOp::Flush,
        ]
        .map(|op| op.within(shape.virtual_size));
        let options = CrashOptions {
            crash_recovery: 0,
            ..CrashOptions::default()
        };
        let flushes = run_crash_history(&disk, &ops, &options).flushes;
        let unnoticed: Vec<usize> = (0..flushes)
            .filter(|&lost| {
                let options = CrashOptions {
                    lost_flush: Some(lost),
                    ..options
                };
                catch_unwind(AssertUnwindSafe(|| {
                    run_crash_history(&disk, &ops, &options)
                }))
                .is_ok()
            })
            .collect();
        println!(
            "{}: {flushes} barriers, nothing depends on {unnoticed:?}",
            variant.name()
        );
        assert!(flushes - unnoticed.len() >= 3, "{}", variant.name());
    }
}

fn sweep(fault: Fault) {
    for variant in Variant::small() {
        let disk = variant.make(8);
        let shape = variant.shape();
        let (block, sector) = (shape.block_size, shape.sector_size);
        let ops = [
            GuestOp::write(sector, 3 * sector, 2),
            GuestOp::write(block - 100, 300, 3),
            GuestOp::Flush,
            GuestOp::write(2 * block, block + sector, 4),
            GuestOp::zero(sector, block),
            GuestOp::discard(2 * block, block),
            GuestOp::Flush,
            GuestOp::write(5, 10, 5),
            GuestOp::Reopen,
            GuestOp::write(block, sector, 6),
        ]
        .map(|op| op.within(shape.virtual_size));
        let injected = run_fault_sweep(&disk, &ops, fault);
        println!("{}: {injected} faults", variant.name());
    }
}

#[test]
fn every_storage_call_may_fail_once() {
    sweep(Fault::InputOutput);
}

#[test]
fn the_host_may_be_full_at_every_call() {
    sweep(Fault::NoSpace);
}

fn empty(variant: &Variant, file: Arc<MemoryStorage>) -> TestDisk {
    TestDisk {
        variant: variant.clone(),
        layers: vec![file],
        content: blank(variant.virtual_size),
    }
}

fn create(variant: &Variant, storage: Arc<dyn Storage>) -> Result<(), Error> {
    new_builder(storage, &variant.parameters(variant.disk_type, None))?.finish()
}

/// What a creation that failed or was cut off leaves is not a disk of the format, or it is the whole new disk.
#[test]
fn a_creation_that_fails_or_crashes_leaves_no_half_disk() {
    for variant in Variant::small() {
        if variant.disk_type == DiskType::Differencing || variant.format == Format::Raw {
            continue;
        }
        let whole_or_nothing = |file: MemoryStorage, what: &str| {
            let disk = empty(&variant, Arc::new(file));
            let format = vhdkit::disk::detect_format(&*disk.layers[0]).unwrap();
            if format == variant.format
                && let Ok(open) = disk.open(false)
            {
                assert_reads(&open, &disk.content, &format!("{}, {what}", variant.name()));
            }
        };
        for k in 0.. {
            let file = Arc::new(MemoryStorage::new());
            let storage = FaultStorage::new(file.clone());
            storage.fail_once(Call::CHANGING, k, Fault::NoSpace);
            let made = create(&variant, storage.clone());
            if storage.injected() == 0 {
                made.unwrap();
                break;
            }
            let error = made.expect_err("the fault is reported");
            assert_eq!(
                error.kind(),
                ErrorKind::DiskFull,
                "{}: {error}",
                variant.name()
            );
            whole_or_nothing(MemoryStorage::clone(&file), &format!("call {k} failed"));
        }
        let storage = CrashStorage::new(&MemoryStorage::new());
        create(&variant, storage.clone()).unwrap();
        let mut rng = Rng::new(1);
        for epoch in storage.recording().epochs() {
            for fates in epoch.fates(&Sampling::SHORT, &mut rng) {
                whole_or_nothing(epoch.image(&fates), &epoch.describe(&fates));
            }
        }
    }
}

/// A file without a name is gone after a crash, whatever of it was durable: one barrier is enough, before it gets one.
#[test]
fn a_new_disk_takes_two_barriers_or_one_as_long_as_it_has_no_name() {
    let folder = tempfile::tempdir().unwrap();
    for variant in Variant::small() {
        if variant.disk_type == DiskType::Differencing || variant.format == Format::Raw {
            continue;
        }
        let barriers = |storage: Arc<dyn Storage>| {
            let counted = FaultStorage::new(storage);
            create(&variant, counted.clone()).unwrap();
            counted.counts().total(&[Call::Flush])
        };
        assert_eq!(barriers(Arc::new(MemoryStorage::new())), 2);
        let path = folder.path().join("disk");
        let nameless = NewFile::create(&path, true).unwrap();
        let storage = nameless.storage();
        let expected = if storage.survives_crash() { 2 } else { 1 };
        assert_eq!(barriers(storage.clone()), expected, "{}", variant.name());
        nameless.publish().unwrap();
        assert!(storage.survives_crash());
    }
}

/// A conversion from a file that ends too early fails, and leaves no target behind.
#[test]
fn a_conversion_that_fails_leaves_nothing_and_touches_nothing() {
    let folder = tempfile::tempdir().unwrap();
    for variant in Variant::small() {
        if variant.disk_type != DiskType::Dynamic {
            continue;
        }
        let mut disk = variant.make(1);
        let size = variant.virtual_size;
        disk.fill(&[GuestOp::write(0, size, 2)]).unwrap();
        let source = folder.path().join("source");
        let bytes = disk.layers[0].to_vec();
        std::fs::write(&source, &bytes).unwrap();
        let target = folder.path().join("target");
        let options = ConvertOptions {
            source: source.clone(),
            open: OpenOptions::new(),
            target: folder.path().join("no such folder/target"),
            format: Format::Vhdx,
            disk_type: DiskType::Dynamic,
            virtual_size: None,
            profile: None,
            block_size: None,
            logical_sector_size: None,
            physical_sector_size: None,
            identifier: None,
            identifiers: IdentifierSource::random(),
            created: 0,
            overwrite: false,
        };
        convert(options.clone()).wait().expect_err("no folder");
        // Cancelled at once: either it was faster, or there is nothing.
        let operation = convert(ConvertOptions {
            target: target.clone(),
            ..options.clone()
        });
        operation.cancel();
        match operation.wait() {
            Ok(_) => std::fs::remove_file(&target).unwrap(),
            Err(e) => assert_eq!(e.kind(), ErrorKind::Aborted, "{e}"),
        }
        assert!(!target.exists());
        // A target that is there is kept unless it was to be replaced.
        std::fs::write(&target, "precious").unwrap();
        let error = convert(ConvertOptions {
            target: target.clone(),
            ..options
        })
        .wait()
        .expect_err("the target exists");
        assert_eq!(error.kind(), ErrorKind::AlreadyExists);
        assert_eq!(std::fs::read(&target).unwrap(), b"precious");
        std::fs::remove_file(&target).unwrap();
        assert_eq!(std::fs::read(&source).unwrap(), bytes);
        let names: Vec<_> = std::fs::read_dir(folder.path()).unwrap().collect();
        assert_eq!(names.len(), 1, "only the source: {names:?}");
    }
}
