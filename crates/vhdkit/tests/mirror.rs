//! Mirrors of disks that are in use.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::cast_possible_truncation,
    reason = "helpers of tests: a failure is a failed test"
)]

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use uuid::Uuid;
use vhdkit::disk::{Layer, OpenOptions, open_image};
use vhdkit::image::{CreateParameters, DiskType, Format, ZeroMode};
use vhdkit::operation::Operation;
use vhdkit::storage::{MemoryStorage, NewFile, Storage};
use vhdkit::verbs::mirror::{
    MirrorOptions, MirrorReport, break_mirror, is_mirrored, mirror, mirror_onto,
};
use vhdkit::verbs::{new_builder, set};
use vhdkit::{ErrorKind, Status, VirtualDisk};
use vhdkit_testkit::fault::{Call, Fault, FaultStorage};
use vhdkit_testkit::model::assert_reads;
use vhdkit_testkit::rng::Rng;

const MIB: u64 = 1 << 20;
const SIZE: u64 = 48 * MIB;

/// A folder in memory if there is one: hundreds of files are made there.
fn folder() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").unwrap_or_else(|_| tempfile::tempdir().unwrap())
}

fn parameters(format: Format, disk_type: DiskType) -> CreateParameters {
    CreateParameters::new(format, disk_type, 0)
}

fn source(path: &Path, format: Format) -> Arc<VirtualDisk> {
    let file = NewFile::create(path, false).unwrap();
    let mut wanted = parameters(format, DiskType::Dynamic);
    wanted.virtual_size = SIZE;
    new_builder(file.storage(), &wanted)
        .unwrap()
        .finish()
        .unwrap();
    file.publish().unwrap();
    Arc::new(OpenOptions::new().writable(true).open(path).unwrap())
}

fn to(path: &Path, format: Format, disk_type: DiskType) -> MirrorOptions {
    MirrorOptions {
        target: path.to_path_buf(),
        existing: false,
        parameters: parameters(format, disk_type),
    }
}

fn wait_until_equal(disk: &VirtualDisk, operation: &Operation<MirrorReport>) {
    let begun = Instant::now();
    while !is_mirrored(disk) {
        assert!(begun.elapsed() < Duration::from_mins(5), "never equal");
        let progress = operation.progress();
        assert_eq!(progress.status, Status::Pending, "{progress:?}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Writes all over the disk until told to stop; the model follows.
fn scribble(disk: &VirtualDisk, model: &MemoryStorage, rng: &mut Rng, times: u64) {
    for _ in 0..times {
        let offset = rng.below(SIZE - 1);
        let length = (1 + rng.below(200_000)).min(SIZE - offset);
        match rng.below(6) {
            0 => {
                disk.zero(offset, length, ZeroMode::MayUnmap).unwrap();
                model.write_at(offset, &vec![0; length as usize]).unwrap();
            }
            1 => disk.flush().unwrap(),
            _ => {
                let data = vec![1 + rng.below(255) as u8; length as usize];
                disk.write_at(offset, &data).unwrap();
                model.write_at(offset, &data).unwrap();
            }
        }
    }
}

fn model() -> MemoryStorage {
    let model = MemoryStorage::new();
    model.set_len(SIZE).unwrap();
    model
}

#[test]
fn a_disk_that_is_written_meanwhile_and_its_mirror_end_up_the_same() {
    let folder = folder();
    for (i, (from, format, disk_type)) in [
        (Format::Vhdx, Format::Vhdx, DiskType::Dynamic),
        (Format::Vhdx, Format::Vhdx, DiskType::Fixed),
        (Format::Vhdx, Format::Vhd, DiskType::Dynamic),
        (Format::Vhd, Format::Vhd, DiskType::Fixed),
        (Format::Vhd, Format::Raw, DiskType::Fixed),
    ]
    .into_iter()
    .enumerate()
    {
        let what = format!("{from:?} to {disk_type:?} {format:?}");
        let from_path = folder.path().join(format!("source{i}"));
        let path = folder.path().join(format!("target{i}"));
        let disk = source(&from_path, from);
        let model = model();
        let mut rng = Rng::new(i as u64);
        scribble(&disk, &model, &mut rng, 100);
        let operation = mirror(disk.clone(), to(&path, format, disk_type));
        // While it copies, while it catches up, and when it is equal.
        scribble(&disk, &model, &mut rng, 200);
        wait_until_equal(&disk, &operation);
        scribble(&disk, &model, &mut rng, 50);
        wait_until_equal(&disk, &operation);
        // P-40: equal, and pending all the same.
        let progress = operation.progress();
        assert_eq!(progress.status, Status::Pending, "{what}");
        assert_eq!(progress.current, progress.completion, "{what}");
        break_mirror(&disk).unwrap();
        let report = operation.wait().unwrap();
        assert_eq!(report.target, path);
        assert_eq!(
            disk.path(),
            path,
            "{what}: the disk goes on with the target"
        );
        assert_reads(&disk, &model, &what);
        // P-43: writes go to the target now, and only there.
        let before = model.clone();
        scribble(&disk, &model, &mut rng, 30);
        disk.flush().unwrap();
        assert_reads(&disk, &model, &what);
        drop(disk);
        assert_reads(&VirtualDisk::open(&path).unwrap(), &model, &what);
        assert_reads(&VirtualDisk::open(&from_path).unwrap(), &before, &what);
    }
}

#[test]
fn threads_that_write_the_same_places_leave_both_copies_the_same() {
    let folder = folder();
    let path = folder.path().join("target");
    let disk = source(&folder.path().join("source"), Format::Vhdx);
    let operation = mirror(disk.clone(), to(&path, Format::Vhdx, DiskType::Dynamic));
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for thread in 0..3_u64 {
            let (disk, stop) = (&disk, &stop);
            scope.spawn(move || {
                let mut rng = Rng::new(thread);
                while !stop.load(Ordering::Relaxed) {
                    let data = vec![1 + rng.below(255) as u8; 1 + rng.below(9000) as usize];
                    disk.write_at(rng.below(2 * MIB), &data).unwrap();
                }
            });
        }
        wait_until_equal(&disk, &operation);
        std::thread::sleep(Duration::from_millis(300));
        stop.store(true, Ordering::Relaxed);
    });
    let mut original = vec![0; SIZE as usize];
    disk.read_at(0, &mut original).unwrap();
    break_mirror(&disk).unwrap();
    operation.wait().unwrap();
    let mut copy = vec![0; SIZE as usize];
    disk.read_at(0, &mut copy).unwrap();
    assert!(original == copy);
}

#[test]
fn p42_a_cancelled_mirror_leaves_the_disk_as_it_was_and_no_file() {
    let folder = folder();
    let from_path = folder.path().join("source");
    let path = folder.path().join("target");
    let disk = source(&from_path, Format::Vhdx);
    let model = model();
    let mut rng = Rng::new(3);
    scribble(&disk, &model, &mut rng, 50);
    for when_equal in [false, true] {
        let operation = mirror(disk.clone(), to(&path, Format::Vhdx, DiskType::Dynamic));
        if when_equal {
            wait_until_equal(&disk, &operation);
            assert!(path.exists(), "a whole copy has its name");
        }
        operation.cancel();
        let error = operation.wait().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Aborted, "{error}");
        assert!(!path.exists());
        assert_eq!(disk.path(), from_path);
        scribble(&disk, &model, &mut rng, 10);
        assert_reads(&disk, &model, "after the mirror");
    }
}

#[test]
fn breaking_what_is_not_mirrored_is_refused_and_changes_nothing() {
    let folder = folder();
    let disk = source(&folder.path().join("source"), Format::Vhdx);
    let error = break_mirror(&disk).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidState);
    assert!(!is_mirrored(&disk));
}

#[test]
fn a_copy_has_the_metadata_of_the_disk_that_it_becomes() {
    let folder = folder();
    let disk = source(&folder.path().join("source.vhdx"), Format::Vhdx);
    let (item, value) = (Uuid::from_u128(7), vec![0x5A; 100_000]);
    set::write_user_metadata(&disk, item, Some(&value)).unwrap();
    for (name, format) in [("copy.vhd", Format::Vhd), ("copy.vhdx", Format::Vhdx)] {
        let path = folder.path().join(name);
        let operation = mirror(disk.clone(), to(&path, format, DiskType::Dynamic));
        wait_until_equal(&disk, &operation);
        // It cannot change between its copy and the break.
        let change = set::write_user_metadata(&disk, item, None);
        assert_eq!(change.unwrap_err().kind(), ErrorKind::Busy);
        if format == Format::Vhdx {
            break_mirror(&disk).unwrap();
            operation.wait().unwrap();
        } else {
            // A VHD has no place for it.
            operation.cancel();
            assert_eq!(operation.wait().unwrap_err().kind(), ErrorKind::Aborted);
        }
    }
    assert_eq!(set::read_user_metadata(&disk, item).unwrap(), value);
    drop(disk);
    let copy = OpenOptions::new()
        .open(folder.path().join("copy.vhdx"))
        .unwrap();
    assert_eq!(set::read_user_metadata(&copy, item).unwrap(), value);
}

#[test]
fn only_one_mirror_at_a_time() {
    let folder = folder();
    let disk = source(&folder.path().join("source"), Format::Vhdx);
    let first = mirror(
        disk.clone(),
        to(&folder.path().join("a"), Format::Vhdx, DiskType::Dynamic),
    );
    wait_until_equal(&disk, &first);
    let second = mirror(
        disk.clone(),
        to(&folder.path().join("b"), Format::Vhdx, DiskType::Dynamic),
    );
    assert_eq!(second.wait().unwrap_err().kind(), ErrorKind::Busy);
    assert!(is_mirrored(&disk), "the first one goes on");
    assert!(!folder.path().join("b").exists());
}

#[test]
fn an_existing_disk_is_filled_and_one_that_is_too_small_is_refused() {
    let folder = folder();
    let disk = source(&folder.path().join("source"), Format::Vhdx);
    let model = model();
    let mut rng = Rng::new(9);
    scribble(&disk, &model, &mut rng, 60);
    let path = folder.path().join("target");
    // It holds other things, all of which have to go.
    let target = source(&path, Format::Vhd);
    target.write_at(0, &vec![0xEE; SIZE as usize]).unwrap();
    drop(target);
    let options = MirrorOptions {
        existing: true,
        ..to(&path, Format::Vhd, DiskType::Dynamic)
    };
    let operation = mirror(disk.clone(), options);
    scribble(&disk, &model, &mut rng, 60);
    wait_until_equal(&disk, &operation);
    break_mirror(&disk).unwrap();
    operation.wait().unwrap();
    assert_reads(&disk, &model, "the existing disk");

    let small = folder.path().join("small");
    std::fs::write(&small, vec![0; 4096]).unwrap();
    let options = MirrorOptions {
        existing: true,
        ..to(&small, Format::Raw, DiskType::Fixed)
    };
    let error = mirror(disk, options).wait().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidSize, "{error}");
}

/// The source fails at one call or another: its users see that, and the copy is not wrong for it.
#[test]
fn a_write_that_fails_in_the_source_does_not_make_the_copies_differ() {
    let folder = folder();
    for k in 0..40 {
        let file = Arc::new(MemoryStorage::new());
        let mut wanted = parameters(Format::Vhdx, DiskType::Dynamic);
        wanted.virtual_size = SIZE;
        new_builder(file.clone(), &wanted)
            .unwrap()
            .finish()
            .unwrap();
        let storage = FaultStorage::new(file);
        let image = open_image(storage.clone(), Format::Vhdx, true).unwrap();
        let disk =
            Arc::new(VirtualDisk::from_layers(vec![Layer::new(image, "source")], true).unwrap());
        disk.write_at(0, &vec![7; 3 * MIB as usize]).unwrap();
        let path = folder.path().join(format!("target{k}"));
        let operation = mirror(disk.clone(), to(&path, Format::Vhdx, DiskType::Dynamic));
        wait_until_equal(&disk, &operation);
        storage.fail_once(Call::CHANGING, k, Fault::InputOutput);
        for i in 0..20 {
            let _ = disk.write_at(i * 777_777, &vec![8; 100_000]);
        }
        let mut original = vec![0; SIZE as usize];
        if disk.read_at(0, &mut original).is_err() {
            continue;
        }
        let broken = (0..2_000).any(|_| {
            std::thread::sleep(Duration::from_millis(1));
            break_mirror(&disk).is_ok()
        });
        if broken {
            let mut copy = vec![0; SIZE as usize];
            disk.read_at(0, &mut copy).unwrap();
            assert!(original == copy, "call {k}");
        }
        drop(operation);
    }
}

/// An empty disk of `size` bytes over storage that can be told to fail.
fn faulty(size: u64) -> (Arc<FaultStorage>, VirtualDisk) {
    let file = Arc::new(MemoryStorage::new());
    let mut wanted = parameters(Format::Vhdx, DiskType::Dynamic);
    wanted.virtual_size = size;
    new_builder(file.clone(), &wanted)
        .unwrap()
        .finish()
        .unwrap();
    let storage = FaultStorage::new(file);
    let image = open_image(storage.clone(), Format::Vhdx, true).unwrap();
    let layers = vec![Layer::new(image, "disk").writable(true)];
    (storage, VirtualDisk::from_layers(layers, true).unwrap())
}

/// The target fails at one call or another, while it is filled or when both were the same already: the mirror ends with
/// that error, and whoever uses the disk does not notice.
#[test]
fn p41_a_target_that_fails_ends_the_mirror_with_its_error_and_the_disk_goes_on() {
    let folder = folder();
    for (fault, kind) in [
        (Fault::NoSpace, ErrorKind::DiskFull),
        (Fault::InputOutput, ErrorKind::WriteFault),
    ] {
        let (mut met, mut equal_before) = (0, 0);
        for k in 0..20 {
            let path = folder.path().join(format!("source {fault:?} {k}"));
            let disk = source(&path, Format::Vhdx);
            let model = model();
            let mut rng = Rng::new(k);
            scribble(&disk, &model, &mut rng, 20);
            let (storage, target) = faulty(SIZE);
            if k % 2 == 0 {
                storage.fail_once(&[Call::Write], k / 2, fault);
            }
            let operation = mirror_onto(disk.clone(), target);
            let observer = operation.observer();
            while observer.progress().status == Status::Pending && !is_mirrored(&disk) {
                std::thread::yield_now();
            }
            if k % 2 == 1 && is_mirrored(&disk) {
                equal_before += 1;
                storage.fail_once(&[Call::Write], k / 2, fault);
            }
            // Every one of these writes succeeds.
            scribble(&disk, &model, &mut rng, 60);
            if storage.injected() > 0 {
                met += 1;
                let error = operation.wait().unwrap_err();
                assert_eq!(error.kind(), kind, "{error}");
                assert_eq!(observer.progress().status, Status::Failed(kind));
                assert!(!is_mirrored(&disk));
                assert_eq!(
                    break_mirror(&disk).unwrap_err().kind(),
                    ErrorKind::InvalidState
                );
            } else {
                drop(operation);
            }
            scribble(&disk, &model, &mut rng, 5);
            assert_reads(&disk, &model, "the source");
        }
        assert!(met >= 14 && equal_before >= 5, "{met} {equal_before}");
    }
}

/// P-40, P-45: both values are the same when both disks are, differ for a moment at most when the disk is written, and are
/// the same again.
#[test]
fn p45_writes_do_not_make_the_percentage_of_a_mirror_fall_for_good() {
    let folder = folder();
    let disk = source(&folder.path().join("source"), Format::Vhdx);
    let model = model();
    let mut rng = Rng::new(45);
    scribble(&disk, &model, &mut rng, 20);
    let operation = mirror(
        disk.clone(),
        to(&folder.path().join("copy"), Format::Vhdx, DiskType::Dynamic),
    );
    for _ in 0..20 {
        wait_until_equal(&disk, &operation);
        let seen = operation.progress();
        assert_eq!(seen.current, seen.completion, "{seen:?}");
        assert_eq!(seen.status, Status::Pending);
        scribble(&disk, &model, &mut rng, 20);
    }
    wait_until_equal(&disk, &operation);
    break_mirror(&disk).unwrap();
    operation.wait().unwrap();
    assert_reads(&disk, &model, "the copy");
}
