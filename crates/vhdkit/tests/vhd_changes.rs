//! Changes of a VHD file's structure, cut off at every barrier and failing at every call, on the test kit's storages;
//! and what other programs read afterwards.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::cast_possible_truncation,
    reason = "helpers of tests: a failure is a failed test"
)]

use std::sync::Arc;

use uuid::Uuid;
use vhdkit::image::{DiskType, Format, Image, NoBacking, ParentLink, Severity, ZeroMode};
use vhdkit::storage::{MemoryStorage, Storage};
use vhdkit::vhd::{VhdImage, append_footer, strip_footer};
use vhdkit::{ErrorKind, Result};
use vhdkit_testkit::crash::{CrashStorage, Sampling};
use vhdkit_testkit::fault::{Call, Fault, FaultStorage};
use vhdkit_testkit::history::assert_clean;
use vhdkit_testkit::peers::{self, has_qemu};
use vhdkit_testkit::rng::Rng;
use vhdkit_testkit::variant::{Variant, new_image};

const BLOCK: u64 = 64 * 1024;
const SIZE: u64 = 12 * BLOCK + 512;

fn variant(disk_type: DiskType) -> Variant {
    Variant {
        format: Format::Vhd,
        disk_type,
        virtual_size: SIZE,
        block_size: (disk_type != DiskType::Fixed).then_some(BLOCK),
        sector_size: 512,
        depth: 1,
    }
}

fn link(n: u128) -> ParentLink {
    ParentLink {
        identifier: Uuid::from_u128(n),
        relative_path: format!(r".\{}.vhd", "p".repeat(240)),
        absolute_path: format!(r"C:\{n}\{}.vhd", "p".repeat(240)),
        modified: 1_750_000_000,
        disk_identifier: None,
    }
}

/// A disk with blocks out of order, some of them zeros.
fn disk(disk_type: DiskType) -> MemoryStorage {
    let parent = (disk_type == DiskType::Differencing).then(|| link(1));
    let file = new_image(&variant(disk_type).parameters(disk_type, parent)).unwrap();
    let image = VhdImage::open(file.clone(), true).unwrap();
    for (i, block) in [7_u64, 2, 10, 5, 0, 8, 12].into_iter().enumerate() {
        let byte = if i % 3 == 1 { 0 } else { i as u8 + 1 };
        let data = vec![byte; if block == 12 { 512 } else { 3000 }];
        image.write_at(block * BLOCK, &data, &NoBacking).unwrap();
    }
    image.close().unwrap();
    MemoryStorage::clone(&file)
}

/// What is seen of a disk from outside.
type View = (Vec<u8>, Option<Uuid>, String);

fn view(image: &VhdImage) -> Result<View> {
    let mut bytes = vec![0; image.virtual_size() as usize];
    image.read_at(0, &mut bytes, &mut Vec::new())?;
    let info = image.info();
    Ok((bytes, info.identifier, format!("{:?}", info.parent)))
}

type Change = fn(&mut VhdImage) -> Result<()>;

fn compact(image: &mut VhdImage) -> Result<()> {
    let mut at = 0;
    while let Some(block) = image.next_allocated(at)? {
        at = block.range.end;
        let mut bytes = vec![0; (block.range.end - block.range.start) as usize];
        image.read_at(block.range.start, &mut bytes, &mut Vec::new())?;
        if bytes.iter().all(|&b| b == 0) {
            image.release(&block, &NoBacking)?;
        }
    }
    while image.pack(BLOCK)?.left > 0 {}
    image.flush()
}

fn grow_a_little(image: &mut VhdImage) -> Result<()> {
    image.resize(SIZE + 512, &NoBacking, &mut |_, _| Ok(()))
}

fn grow_a_lot(image: &mut VhdImage) -> Result<()> {
    image.resize(1100 * BLOCK, &NoBacking, &mut |_, _| Ok(()))
}

const CHANGES: [(DiskType, Change); 11] = [
    (DiskType::Dynamic, compact),
    (DiskType::Differencing, compact),
    (DiskType::Dynamic, grow_a_little),
    (DiskType::Dynamic, grow_a_lot),
    (DiskType::Fixed, grow_a_little),
    (DiskType::Fixed, |image| {
        image.resize(2 * SIZE, &NoBacking, &mut |_, _| Ok(()))
    }),
    (DiskType::Differencing, |image| image.set_parent(&link(2))),
    (DiskType::Differencing, |image| {
        image.set_parent_identifiers(&[Uuid::from_u128(3)])
    }),
    (DiskType::Differencing, |image| {
        image.set_identifier(Uuid::from_u128(4))
    }),
    (DiskType::Dynamic, |image| {
        image.set_identifier(Uuid::from_u128(4))
    }),
    (DiskType::Fixed, |image| {
        image.set_identifier(Uuid::from_u128(4))
    }),
];

fn open(file: Arc<dyn Storage>, writable: bool) -> VhdImage {
    VhdImage::open(file, writable).unwrap_or_else(|e| panic!("does not open: {e}"))
}

#[test]
fn every_change_is_whole_or_not_at_all_after_a_crash() {
    let mut rng = Rng::new(7);
    for (number, (disk_type, change)) in CHANGES.into_iter().enumerate() {
        let start = disk(disk_type);
        let storage = CrashStorage::new(&start);
        let mut image = open(storage.clone(), true);
        let before = view(&image).unwrap();
        change(&mut image).unwrap();
        let after = view(&image).unwrap();
        drop(image);
        for epoch in storage.recording().epochs() {
            for fates in epoch.fates(&Sampling::from_environment(), &mut rng) {
                let what = format!("change {number}: {}", epoch.describe(&fates));
                let crashed: Arc<dyn Storage> = Arc::new(epoch.image(&fates));
                assert_clean(&crashed, &what);
                let seen = view(&open(crashed.clone(), false)).unwrap();
                assert!(seen == before || seen == after, "{what}");
                let image = open(crashed.clone(), true);
                image
                    .zero(0, 1, ZeroMode::KeepAllocated, &NoBacking)
                    .unwrap();
                image.close().unwrap();
                assert_clean(&crashed, &what);
                let now = view(&open(crashed, false)).unwrap();
                assert!(now.0[1..] == seen.0[1..] && now.1 == seen.1, "{what}");
            }
        }
    }
}

/// The power fails after a process was killed anywhere and another one has changed the disk.
#[test]
fn what_a_killed_process_left_unflushed_is_not_built_upon() {
    let changes: [(DiskType, Change); 5] = [
        (DiskType::Dynamic, compact),
        (DiskType::Dynamic, grow_a_little),
        (DiskType::Dynamic, |image| {
            image.set_identifier(Uuid::from_u128(4))
        }),
        (DiskType::Differencing, |image| image.set_parent(&link(2))),
        (DiskType::Differencing, |image| {
            image.set_identifier(Uuid::from_u128(4))
        }),
    ];
    let mut rng = Rng::new(8);
    for (number, (disk_type, change)) in changes.into_iter().enumerate() {
        let first = CrashStorage::new(&disk(disk_type));
        let mut image = open(first.clone(), true);
        let mut allowed = vec![view(&image).unwrap()];
        change(&mut image).unwrap();
        allowed.push(view(&image).unwrap());
        image.close().unwrap();
        let recording = first.recording();
        for killed in 0..=recording.ops().len() {
            let storage = recording.killed_at(killed);
            let mut image = open(storage.clone(), true);
            let mut allowed = allowed.clone();
            if disk_type == DiskType::Differencing {
                image.set_identifier(Uuid::from_u128(9)).unwrap();
            } else {
                // The table needs a further sector, and moves.
                image
                    .resize(130 * BLOCK, &NoBacking, &mut |_, _| Ok(()))
                    .unwrap();
            }
            allowed.push(view(&image).unwrap());
            image.close().unwrap();
            let few = Sampling {
                exhaustive: 2,
                random: 1,
                torn: 2,
            };
            for epoch in storage.recording().epochs() {
                for fates in epoch.fates(&few, &mut rng) {
                    let what = format!("change {number}, {killed}: {}", epoch.describe(&fates));
                    let crashed: Arc<dyn Storage> = Arc::new(epoch.image(&fates));
                    assert_clean(&crashed, &what);
                    let seen = view(&open(crashed, false)).unwrap();
                    assert!(allowed.contains(&seen), "{what}");
                }
            }
        }
    }
}

#[test]
fn growing_takes_five_barriers_and_the_table_stays_where_nothing_is_behind_it() {
    let empty = new_image(&variant(DiskType::Dynamic).parameters(DiskType::Dynamic, None)).unwrap();
    let used = disk(DiskType::Dynamic);
    for (start, is_empty) in [(&*empty, true), (&used, false)] {
        let storage = CrashStorage::new(start);
        let mut image = open(storage.clone(), true);
        let length = storage.len().unwrap();
        grow_a_lot(&mut image).unwrap();
        image.close().unwrap();
        assert_eq!(storage.flushes(), 5);
        let table = (1100 * 4_u64).next_multiple_of(512);
        let added = storage.len().unwrap() - length;
        assert_eq!(added < table, is_empty, "{added} bytes longer");
        let shared: Arc<dyn Storage> = storage;
        assert_clean(&shared, "grown");
    }
}

#[test]
fn every_call_of_a_change_may_fail() {
    for (number, (disk_type, change)) in CHANGES.into_iter().enumerate() {
        let start = disk(disk_type);
        for fault in [Fault::InputOutput, Fault::NoSpace] {
            let calls = match fault {
                Fault::InputOutput => Call::FALLIBLE,
                Fault::NoSpace => &[Call::Write, Call::SetLen, Call::Allocate, Call::ZeroRange],
            };
            for k in 0.. {
                let file = Arc::new(start.clone());
                let storage = FaultStorage::new(file.clone());
                let mut image = open(storage.clone(), true);
                let before = view(&image).unwrap();
                storage.fail_once(calls, k, fault);
                let result = change(&mut image);
                if storage.injected() == 0 {
                    result.unwrap();
                    break;
                }
                storage.heal();
                drop(image);
                let shared: Arc<dyn Storage> = file;
                let error = result.expect_err("the fault is reported");
                assert_ne!(error.kind(), ErrorKind::InvalidState, "the cause: {error}");
                assert_clean(&shared, &format!("change {number}, call {k}"));
                let mut image = open(shared.clone(), true);
                let seen = view(&image).unwrap();
                change(&mut image).unwrap();
                let after = view(&image).unwrap();
                assert!(seen == before || seen == after, "change {number}, call {k}");
                image.close().unwrap();
                assert_clean(&shared, &format!("change {number}, call {k}"));
            }
        }
    }
}

/// The test of the test: barriers that are forgotten are noticed.
#[test]
fn a_forgotten_barrier_of_a_change_would_be_noticed() {
    for (number, least) in [(0, 1), (3, 1), (5, 1), (6, 2)] {
        let (disk_type, change) = CHANGES[number];
        let mut noticed = Vec::new();
        let start = disk(disk_type);
        let whole = CrashStorage::new(&start);
        let mut image = open(whole.clone(), true);
        let before = view(&image).unwrap();
        change(&mut image).unwrap();
        let after = view(&image).unwrap();
        for lost in 0..whole.flushes() {
            let storage = CrashStorage::losing_a_flush(&start, Some(lost));
            change(&mut open(storage.clone(), true)).unwrap();
            let mut rng = Rng::new(3);
            let broken = storage.recording().epochs().into_iter().any(|epoch| {
                let fates = epoch.fates(&Sampling::SHORT, &mut rng);
                fates.iter().any(|fates| {
                    let crashed: Arc<dyn Storage> = Arc::new(epoch.image(fates));
                    let findings = vhdkit::vhd::check(&crashed).unwrap();
                    let seen = VhdImage::open(crashed, false).and_then(|i| view(&i));
                    findings.iter().any(|f| f.severity > Severity::Info)
                        || !seen.is_ok_and(|seen| seen == before || seen == after)
                })
            });
            if broken {
                noticed.push(lost);
            }
        }
        println!(
            "change {number}: {} barriers, noticed {noticed:?}",
            whole.flushes()
        );
        assert!(noticed.len() >= least, "change {number}: {noticed:?}");
    }
}

#[test]
fn other_programs_read_what_was_changed() {
    if !has_qemu() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    for (disk_type, change) in CHANGES {
        if disk_type == DiskType::Differencing {
            continue;
        }
        let file = Arc::new(disk(disk_type));
        let mut image = open(file.clone(), true);
        change(&mut image).unwrap();
        let (bytes, ..) = view(&image).unwrap();
        image.close().unwrap();
        let size = format!("({} bytes)", bytes.len());
        let (vhd, raw) = (folder.path().join("a.vhd"), folder.path().join("a.raw"));
        std::fs::write(&vhd, file.to_vec()).unwrap();
        std::fs::write(&raw, bytes).unwrap();
        let (vhd, raw) = (vhd.display().to_string(), raw.display().to_string());
        peers::run(
            "qemu-img",
            [
                "compare",
                "-f",
                "vpc",
                "-F",
                "raw",
                vhd.as_str(),
                raw.as_str(),
            ],
        )
        .unwrap();
        let info = peers::run("qemu-img", ["info", "-f", "vpc", vhd.as_str()]).unwrap();
        assert!(info.contains(&size), "{info}");
    }
    // A disk that QEMU made, whose size QEMU takes from the geometry, grows too.
    let path = folder.path().join("q.vhd");
    let name = path.display().to_string();
    peers::run("qemu-img", ["create", "-f", "vpc", name.as_str(), "10M"]).unwrap();
    let file = Arc::new(MemoryStorage::from_bytes(&std::fs::read(&path).unwrap()));
    let mut image = open(file.clone(), true);
    image
        .resize(37 << 20, &NoBacking, &mut |_, _| Ok(()))
        .unwrap();
    image
        .write_at((37 << 20) - 512, &[9; 512], &NoBacking)
        .unwrap();
    image.close().unwrap();
    std::fs::write(&path, file.to_vec()).unwrap();
    peers::qemu_io(&path, Format::Vhd, &["read -P 9 38796800 512".to_owned()]).unwrap();
}

#[test]
fn a_file_on_a_real_file_system_is_packed_and_wrapped_in_place() {
    use vhdkit::storage::{Access, FileStorage};
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.vhd");
    std::fs::write(&path, disk(DiskType::Dynamic).to_vec()).unwrap();
    let file = Arc::new(FileStorage::open(&path, Access::ReadWrite).unwrap());
    let mut image = open(file.clone(), true);
    let before = view(&image).unwrap();
    let usage = image.usage().unwrap();
    compact(&mut image).unwrap();
    assert!(view(&image).unwrap() == before);
    image.close().unwrap();
    assert!(file.len().unwrap() < usage.file_size);
    assert_clean(&(file as Arc<dyn Storage>), "packed");

    let path = folder.path().join("a.raw");
    std::fs::write(&path, &before.0).unwrap();
    let file = FileStorage::open(&path, Access::ReadWrite).unwrap();
    append_footer(
        &file,
        &variant(DiskType::Fixed).parameters(DiskType::Fixed, None),
    )
    .unwrap();
    drop(file);
    let file: Arc<dyn Storage> = Arc::new(FileStorage::open(&path, Access::ReadWrite).unwrap());
    assert_clean(&file, "wrapped");
    assert!(view(&open(file.clone(), false)).unwrap().0 == before.0);
    strip_footer(&*file).unwrap();
    assert!(std::fs::read(&path).unwrap() == before.0);
}
