//! Percentages are honest: every operation that does real work, on a disk of a known speed. See `testkit::honest`.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::cast_possible_truncation,
    reason = "helpers of tests: a failure is a failed test"
)]

use std::sync::Arc;
use std::time::Duration;

use vhdkit::disk::{Layer, OpenOptions, open_image};
use vhdkit::image::{CreateParameters, DiskType, Format};
use vhdkit::storage::MemoryStorage;
use vhdkit::verbs::compact::{CompactMode, CompactOptions, compact};
use vhdkit::verbs::compare::compare;
use vhdkit::verbs::convert::convert_disk;
use vhdkit::verbs::create::create_disk;
use vhdkit::verbs::merge::{MergeOptions, merge};
use vhdkit::verbs::mirror::{MirrorOptions, break_mirror, is_mirrored, mirror, mirror_onto};
use vhdkit::verbs::resize::{NewSize, ResizeOptions, resize};
use vhdkit::{Operation, VirtualDisk};
use vhdkit_testkit::contract::Running;
use vhdkit_testkit::guest::GuestOp;
use vhdkit_testkit::honest::Drive;
use vhdkit_testkit::patch::{self, vhdx};
use vhdkit_testkit::variant::{TestDisk, Variant, new_image};

const MIB: u64 = 1 << 20;
/// Data of the disks: more than a second of reading.
const DATA: u64 = 224 * MIB;

/// Dynamic, or a child whose parent holds nothing, and full of data but for its end.
fn full(format: Format, disk_type: DiskType, block_size: u64) -> TestDisk {
    let variant = Variant {
        format,
        disk_type,
        virtual_size: DATA + 8 * MIB,
        block_size: Some(block_size),
        sector_size: 512,
        depth: 1,
    };
    let mut disk = if disk_type == DiskType::Differencing {
        let base = Variant {
            disk_type: DiskType::Dynamic,
            ..variant.clone()
        };
        let mut disk = base.make(1);
        disk.variant = Variant {
            depth: 2,
            ..variant
        };
        disk.add_child().unwrap();
        disk
    } else {
        variant.make(1)
    };
    let step = 8 * MIB;
    let writes: Vec<GuestOp> = (0..DATA / step)
        .map(|i| GuestOp::write(i * step, step, i as u32))
        .collect();
    disk.fill(&writes).unwrap();
    disk
}

fn open_on(drive: &Arc<Drive>, disk: &TestDisk) -> Arc<VirtualDisk> {
    let layers = disk
        .layers
        .iter()
        .map(|bytes| {
            let file = drive.file(MemoryStorage::clone(bytes));
            let image = open_image(file, disk.variant.format, true).unwrap();
            Layer::new(image, "image").writable(true)
        })
        .collect();
    Arc::new(VirtualDisk::from_layers(layers, true).unwrap())
}

/// Both formats, with small blocks and large ones.
const KINDS: [(Format, u64); 3] = [
    (Format::Vhd, 2 * MIB),
    (Format::Vhdx, MIB),
    (Format::Vhdx, 32 * MIB),
];

fn name(verb: &str, (format, block): (Format, u64)) -> String {
    format!(
        "{verb} {} with blocks of {} MiB",
        format.name(),
        block / MIB
    )
}

fn into_parent() -> MergeOptions {
    MergeOptions {
        source_depth: 1,
        target_depth: 2,
        delete_merged: false,
        open: OpenOptions::new(),
        dry_run: false,
    }
}

#[test]
fn merge_says_half_when_half_is_merged() {
    for kind in KINDS {
        let disk = full(kind.0, DiskType::Differencing, kind.1);
        let drive = Arc::new(Drive::default());
        let open = open_on(&drive, &disk);
        drive.assert_honest(&name("merge", kind), || {
            Running::of(merge(open.clone(), into_parent()))
        });
    }
}

fn compacting(disk: &Arc<VirtualDisk>, mode: CompactMode, dry_run: bool) -> Running {
    Running::of(compact(
        disk.clone(),
        CompactOptions {
            mode,
            dry_run,
            ..CompactOptions::default()
        },
    ))
}

/// What was the first half of the disk is given back, and the other half moves.
#[test]
fn compact_says_half_when_half_is_moved() {
    for kind in KINDS {
        let mut disk = full(kind.0, DiskType::Dynamic, kind.1);
        disk.fill(&[GuestOp::discard(0, DATA / 2)]).unwrap();
        let drive = Arc::new(Drive::default());
        let open = open_on(&drive, &disk);
        drive.assert_honest(&name("compact --quick", kind), || {
            compacting(&open, CompactMode::Quick, false)
        });
    }
}

/// The first half of the disk is zeros, which have to be read; then the other half moves.
#[test]
fn compact_says_half_when_half_is_looked_at_and_moved() {
    for kind in KINDS {
        let mut disk = full(kind.0, DiskType::Dynamic, kind.1);
        write_zeros(&mut disk, DATA / 2);
        let drive = Arc::new(Drive::default());
        let open = open_on(&drive, &disk);
        drive.assert_honest(&name("compact of half zeros", kind), || {
            compacting(&open, CompactMode::Full, false)
        });
    }
}

/// As such, over data, so that only a look shows what they are.
fn write_zeros(disk: &mut TestDisk, length: u64) {
    let zeros = vec![0; 8 * MIB as usize];
    let plain = disk.open(true).unwrap();
    for at in (0..length).step_by(zeros.len()) {
        plain.write_at(at, &zeros).unwrap();
    }
    plain.close().unwrap();
}

/// Nothing but zeros, all of which have to be read.
#[test]
fn compact_says_half_when_half_is_looked_at() {
    for kind in KINDS {
        let mut disk = full(kind.0, DiskType::Dynamic, kind.1);
        write_zeros(&mut disk, DATA);
        for dry_run in [true, false] {
            let drive = Arc::new(Drive::default());
            let open = open_on(&drive, &disk);
            drive.assert_honest(&name("compact of zeros", kind), || {
                compacting(&open, CompactMode::Full, dry_run)
            });
        }
    }
}

#[test]
fn convert_says_half_when_half_is_converted() {
    let targets = [
        (Format::Raw, DiskType::Fixed),
        (Format::Vhd, DiskType::Fixed),
        (Format::Vhd, DiskType::Dynamic),
        (Format::Vhdx, DiskType::Dynamic),
    ];
    for kind in KINDS {
        let disk = full(kind.0, DiskType::Dynamic, kind.1);
        for (format, disk_type) in targets {
            let drive = Arc::new(Drive::default());
            let open = open_on(&drive, &disk);
            let what = format!("{} to {}", name("convert", kind), format.name());
            drive.assert_honest(&what, || {
                let target = drive.file(MemoryStorage::new());
                Running::of(convert_disk(
                    open.clone(),
                    target,
                    CreateParameters::new(format, disk_type, 0),
                ))
            });
        }
    }
}

/// Half of the disk is a hole, which takes no time.
#[test]
fn compare_says_half_when_half_of_the_data_is_compared() {
    let disk = full(Format::Vhdx, DiskType::Dynamic, 2 * MIB);
    let drive = Arc::new(Drive::default());
    let longer = |disk: &TestDisk| {
        let open = open_on(&drive, disk);
        resizing(&open, 3 * DATA).wait().unwrap();
        Arc::into_inner(open).unwrap()
    };
    let (a, b) = (longer(&disk), longer(&disk));
    drive.assert_honest("compare", || Running::of(compare(a, b)));
}

/// Only the source is on the slow disk.
#[test]
fn mirror_says_half_when_half_is_copied() {
    let folder = tempfile::tempdir_in("/dev/shm").unwrap_or_else(|_| tempfile::tempdir().unwrap());
    let disk = full(Format::Vhdx, DiskType::Dynamic, 2 * MIB);
    for existing in [false, true] {
        let drive = Arc::new(Drive::default());
        let open = open_on(&drive, &disk);
        let options = MirrorOptions {
            target: folder.path().join(format!("existing {existing}")),
            existing,
            parameters: CreateParameters::new(Format::Vhdx, DiskType::Dynamic, 0),
        };
        if existing {
            let bytes = new_image(&CreateParameters::new(
                Format::Vhdx,
                DiskType::Dynamic,
                2 * DATA,
            ))
            .unwrap();
            std::fs::write(&options.target, bytes.to_vec()).unwrap();
        }
        drive.assert_honest(&format!("mirror, existing: {existing}"), || {
            let operation = mirror(open.clone(), options);
            break_when_equal(&operation, &open);
            Running::of(operation)
        });
    }
}

/// A BAT of 96 MiB, all of it in use, that has to move because it becomes longer.
#[test]
fn resize_says_half_when_half_of_the_table_is_moved() {
    let size = 12 << 40;
    let bytes = new_image(&CreateParameters {
        block_size: Some(MIB),
        ..CreateParameters::new(Format::Vhdx, DiskType::Fixed, size)
    })
    .unwrap();
    let drive = Arc::new(Drive::default());
    let image = open_image(drive.file(MemoryStorage::clone(&bytes)), Format::Vhdx, true).unwrap();
    let open = Arc::new(
        VirtualDisk::from_layers(vec![Layer::new(image, "image").writable(true)], true).unwrap(),
    );
    drive.assert_honest("resize of 12 TiB", || resizing(&open, size + (1 << 40)));
}

fn resizing(disk: &Arc<VirtualDisk>, size: u64) -> Running {
    Running::of(resize(
        disk.clone(),
        ResizeOptions {
            size: NewSize::Bytes(size),
            allow_unsafe: true,
            fix_gpt: false,
            expand_only: false,
            dry_run: false,
        },
    ))
}

/// The target's table of 96 MiB, all of it in use, has to move because the child is larger.
#[test]
fn merge_says_half_when_half_is_done_also_where_the_target_grows() {
    let mut disk = Variant {
        format: Format::Vhdx,
        disk_type: DiskType::Fixed,
        virtual_size: 12 << 40,
        block_size: Some(MIB),
        sector_size: 512,
        depth: 1,
    }
    .make(1);
    disk.variant.virtual_size = 13 << 40;
    disk.add_child().unwrap();
    let open = disk.open(true).unwrap();
    let step = 8 * MIB;
    for at in (0..DATA).step_by(step as usize) {
        open.write_at(at, &vec![7; step as usize]).unwrap();
    }
    open.close().unwrap();
    let drive = Arc::new(Drive::default());
    let open = open_on(&drive, &disk);
    drive.assert_honest("merge into a smaller disk of 12 TiB", || {
        Running::of(merge(open.clone(), into_parent()))
    });
}

/// A table of 96 MiB, all of it in use, that has to be read before anybody knows how much there is to do.
fn large_table(drive: &Arc<Drive>, disk_type: DiskType) -> Arc<VirtualDisk> {
    let bytes = new_image(&CreateParameters {
        block_size: Some(MIB),
        ..CreateParameters::new(Format::Vhdx, disk_type, 12 << 40)
    })
    .unwrap();
    let image = open_image(drive.file(MemoryStorage::clone(&bytes)), Format::Vhdx, true).unwrap();
    let layers = vec![Layer::new(image, "image").writable(true)];
    Arc::new(VirtualDisk::from_layers(layers, true).unwrap())
}

/// A disk whose space takes two seconds to fill with zeros.
const LARGE: u64 = 8 << 30;

/// Reading the table takes half a second of work: it moves during that, too.
const TABLE_READ: Duration = Duration::from_millis(400);

#[test]
fn progress_moves_while_it_is_found_out_how_much_there_is_to_do() {
    let drive = Arc::new(Drive::default());
    let open = large_table(&drive, DiskType::Fixed);
    drive.assert_moves("convert of 12 TiB", TABLE_READ, || {
        let target = drive.file(MemoryStorage::new());
        Running::of(convert_disk(
            open.clone(),
            target,
            CreateParameters::new(Format::Vhdx, DiskType::Dynamic, 0),
        ))
    });
    let (a, b) = (
        large_table(&drive, DiskType::Fixed),
        large_table(&drive, DiskType::Dynamic),
    );
    let [a, b] = [a, b].map(|disk| Arc::into_inner(disk).unwrap());
    drive.assert_moves("compare of 12 TiB", TABLE_READ, || {
        Running::of(compare(a, b))
    });
    let open = large_table(&drive, DiskType::Fixed);
    let target = large_table(&drive, DiskType::Dynamic);
    drive.assert_moves("mirror of 12 TiB", TABLE_READ, || {
        Running::of(mirror_onto(open.clone(), Arc::into_inner(target).unwrap()))
    });
    for dry_run in [true, false] {
        let open = large_table(&drive, DiskType::Fixed);
        drive.assert_moves("compact of 12 TiB", TABLE_READ, || {
            compacting(&open, CompactMode::Full, dry_run)
        });
    }
}

/// Reserving the space of a fixed disk takes two seconds where that means writing zeros.
#[test]
fn progress_moves_while_space_is_reserved() {
    let source = full(Format::Vhdx, DiskType::Dynamic, 2 * MIB);
    for format in [Format::Raw, Format::Vhd, Format::Vhdx] {
        let parameters = |size| CreateParameters::new(format, DiskType::Fixed, size);
        let drive = Arc::new(Drive::reserving_with_zeros());
        let open = open_on(&drive, &source);
        let what = format!("fixed {}", format.name());
        drive.assert_moves(&format!("convert to {what}"), TABLE_READ, || {
            let target = drive.file(MemoryStorage::new());
            Running::of(convert_disk(open.clone(), target, parameters(LARGE)))
        });
        drive.assert_moves(&format!("create {what}"), TABLE_READ, || {
            let target = drive.file(MemoryStorage::new());
            Running::of(create_disk(target, parameters(LARGE)))
        });
        if format == Format::Raw {
            continue;
        }
        let bytes = new_image(&parameters(64 * MIB)).unwrap();
        let image = open_image(drive.file(MemoryStorage::clone(&bytes)), format, true).unwrap();
        let layers = vec![Layer::new(image, "image").writable(true)];
        let open = Arc::new(VirtualDisk::from_layers(layers, true).unwrap());
        drive.assert_moves(&format!("resize {what}"), TABLE_READ, || {
            resizing(&open, LARGE)
        });
    }
}

/// What is copied to a disk that exists reaches it through a cache: the last flush has not all of it to do. And what is a
/// hole in the source takes no time, wherever it is.
#[test]
fn mirror_onto_a_disk_that_exists_says_half_when_half_is_copied() {
    for front in [true, false] {
        let mut disk = Variant {
            format: Format::Vhdx,
            disk_type: DiskType::Dynamic,
            virtual_size: 4 * DATA,
            block_size: Some(2 * MIB),
            sector_size: 512,
            depth: 1,
        }
        .make(1);
        let step = 8 * MIB;
        let first = if front { 0 } else { 3 * DATA };
        let writes: Vec<GuestOp> = (0..DATA / step)
            .map(|i| GuestOp::write(first + i * step, step, i as u32))
            .collect();
        disk.fill(&writes).unwrap();
        let drive = Arc::new(Drive::default());
        let open = open_on(&drive, &disk);
        let bytes = new_image(&CreateParameters::new(
            Format::Vhdx,
            DiskType::Dynamic,
            4 * DATA,
        ))
        .unwrap();
        let image =
            open_image(drive.file(MemoryStorage::clone(&bytes)), Format::Vhdx, true).unwrap();
        let target =
            VirtualDisk::from_layers(vec![Layer::new(image, "copy").writable(true)], true).unwrap();
        drive.assert_honest(&format!("mirror, data in front: {front}"), || {
            let operation = mirror_onto(open.clone(), target);
            break_when_equal(&operation, &open);
            Running::of(operation)
        });
    }
}

/// Ends the mirror as soon as both are the same.
fn break_when_equal<T: Send + 'static>(operation: &Operation<T>, disk: &Arc<VirtualDisk>) {
    let observer = operation.observer();
    let disk = Arc::downgrade(disk);
    std::thread::spawn(move || {
        while observer.progress().status == vhdkit::Status::Pending {
            let Some(disk) = disk.upgrade() else { return };
            if is_mirrored(&disk) && break_mirror(&disk).is_ok() {
                return;
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    });
}

/// A table whose reading takes a moment is read several times: before anything changes, for the plan, and at the end.
#[test]
fn progress_moves_while_a_compaction_reads_a_large_table_again() {
    let bytes = new_image(&CreateParameters {
        block_size: Some(MIB),
        ..CreateParameters::new(Format::Vhdx, DiskType::Fixed, 64 << 30)
    })
    .unwrap();
    // Dynamic, with a place for every block but the first two.
    let (at, length) = vhdx::metadata_item(&*bytes, vhdx::FILE_PARAMETERS);
    let mut parameters = patch::get(&*bytes, at, length as usize);
    parameters[4] &= !1;
    patch::put(&*bytes, at, &parameters);
    for block in 0..2 {
        vhdx::set_bat_entry(&*bytes, block, 0);
    }
    let image_on = |drive: &Arc<Drive>| {
        let file = drive.file(MemoryStorage::clone(&bytes));
        let image = open_image(file, Format::Vhdx, true).unwrap();
        let layers = vec![Layer::new(image, "image").writable(true)];
        Arc::new(VirtualDisk::from_layers(layers, true).unwrap())
    };
    let drive = Arc::new(Drive::slower(128));
    let open = image_on(&drive);
    // Looking at blocks without reading them takes the disk no time.
    drive.assert_steady("compact --quick of 64 GiB", || {
        compacting(&open, CompactMode::Quick, false)
    });
}

/// Cutting off what is no longer needed takes two seconds where that takes time.
#[test]
fn progress_moves_while_space_is_given_back() {
    let drive = Arc::new(Drive::discarding());
    let dynamic = |format, holds_on: bool| {
        let parameters = CreateParameters {
            block_size: Some(2 * MIB),
            ..CreateParameters::new(format, DiskType::Dynamic, LARGE)
        };
        let bytes = new_image(&parameters).unwrap();
        let open = |file| {
            let image = open_image(file, format, true).unwrap();
            let layers = vec![Layer::new(image, "image").writable(true)];
            Arc::new(VirtualDisk::from_layers(layers, true).unwrap())
        };
        let disk = open(bytes.clone());
        for block in 0..LARGE / (2 * MIB) {
            disk.write_at(block * 2 * MIB, &[1]).unwrap();
        }
        // The last one keeps the file as long as it is.
        if !holds_on {
            disk.discard(0, LARGE - 2 * MIB).unwrap();
        }
        Arc::into_inner(disk).unwrap().close().unwrap();
        for block in 0..LARGE / (2 * MIB) - 1 {
            if holds_on {
                // As Windows leaves blocks that were trimmed: their space is theirs until they are written to again.
                let entry = vhdx::bat_entry(&*bytes, block);
                vhdx::set_bat_entry(&*bytes, block, entry & !7 | 3);
            }
        }
        open(drive.file(MemoryStorage::clone(&bytes)))
    };
    for (format, holds_on) in [
        (Format::Vhd, false),
        (Format::Vhdx, false),
        (Format::Vhdx, true),
    ] {
        let open = dynamic(format, holds_on);
        drive.assert_honest(&format!("compact a {} of one block", format.name()), || {
            compacting(&open, CompactMode::Full, false)
        });
    }
    let parameters = CreateParameters::new(Format::Vhdx, DiskType::Fixed, LARGE);
    let bytes = new_image(&parameters).unwrap();
    let image = open_image(drive.file(MemoryStorage::clone(&bytes)), Format::Vhdx, true).unwrap();
    let layers = vec![Layer::new(image, "image").writable(true)];
    let open = Arc::new(VirtualDisk::from_layers(layers, true).unwrap());
    drive.assert_honest("shrink a fixed vhdx", || resizing(&open, 64 * MIB));
}
