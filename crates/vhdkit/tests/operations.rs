//! Every operation that changes a disk, held against one contract: progress, cancelling, failing, power cuts.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::cast_possible_truncation,
    reason = "helpers of tests: a failure is a failed test"
)]

use std::sync::Arc;

use vhdkit::VirtualDisk;
use vhdkit::disk::OpenOptions;
use vhdkit::image::{DiskType, Format};
use vhdkit::storage::{MemoryStorage, Storage};
use vhdkit::verbs::compact::{CompactMode, CompactOptions, compact};
use vhdkit::verbs::merge::{MergeOptions, merge};
use vhdkit::verbs::resize::{NewSize, ResizeOptions, resize};
use vhdkit_testkit::contract::{Running, Trial};
use vhdkit_testkit::fault::Fault;
use vhdkit_testkit::guest::GuestOp;
use vhdkit_testkit::rng::Rng;
use vhdkit_testkit::variant::{TestDisk, Variant};

const MIB: u64 = 1 << 20;

/// A disk that has been used: data, zeros, discarded blocks.
fn used(variant: &Variant, seed: u64) -> TestDisk {
    let mut disk = variant.make(seed);
    let shape = variant.shape();
    let mut rng = Rng::new(seed);
    disk.fill(&shape.random_ops(10, &mut rng)).unwrap();
    let block = shape.block_size;
    let more = [
        GuestOp::write(0, block + 5000, 21),
        GuestOp::write(2 * block, block, 22),
        GuestOp::write(3 * block, 512, 23),
        GuestOp::Flush,
        GuestOp::zero(block, block),
        GuestOp::discard(0, block),
        GuestOp::Reopen,
        GuestOp::write(block - 700, 900, 24),
    ]
    .map(|op| op.within(shape.virtual_size));
    disk.fill(&more).unwrap();
    // Zeros that were written as such: only a look at them shows that they are.
    let open = disk.open(true).unwrap();
    let at = shape.virtual_size / block / 2 * block;
    let length = block.min(shape.virtual_size - at);
    open.write_at(at, &vec![0; length as usize]).unwrap();
    open.close().unwrap();
    disk.content.zero_range(at, length).unwrap();
    disk
}

fn sparse() -> Vec<Variant> {
    Variant::small()
        .into_iter()
        .filter(|v| {
            matches!(v.format, Format::Vhd | Format::Vhdx) && v.disk_type != DiskType::Fixed
        })
        .collect()
}

fn all(trial: &Trial<'_>) {
    trial.works();
    trial.keeps_the_contract();
    trial.stops_when_dropped();
    trial.runs_alone();
    let aborted = trial.can_be_cancelled_anywhere(24);
    let crashes = trial.survives_crashes(7);
    let faults = trial.survives_faults(Fault::InputOutput) + trial.survives_faults(Fault::NoSpace);
    println!(
        "{}: aborted {aborted} times, {crashes} crash images, {faults} faults",
        trial.name
    );
}

fn compacting(disk: &Arc<VirtualDisk>, mode: CompactMode) -> Running {
    Running::of(compact(
        disk.clone(),
        CompactOptions {
            mode,
            ..CompactOptions::default()
        },
    ))
}

/// T22: compaction never alters content, whatever happens to it.
#[test]
fn t22_compact_keeps_the_contract_and_every_byte() {
    for variant in sparse() {
        let disk = used(&variant, 3);
        for mode in [CompactMode::Full, CompactMode::Quick] {
            all(&Trial {
                name: format!("compact {mode:?} {}", variant.name()),
                disk: &disk,
                depth: 1,
                start: &|disk| compacting(disk, mode),
                after: &disk.content,
            });
        }
    }
}

/// A second compaction has nothing to do, nor has one of a fixed disk.
#[test]
fn a_compaction_that_gains_nothing_leaves_the_file_as_it_is() {
    for variant in Variant::small() {
        let disk = used(&variant, 4);
        let compacted = |mode| {
            let open = Arc::new(disk.open(true).unwrap());
            let result = compacting(&open, mode).wait();
            assert!(result.is_ok() || variant.disk_type == DiskType::Fixed);
            Arc::into_inner(open).unwrap().close().unwrap();
            disk.layers[0].to_vec()
        };
        let first = compacted(CompactMode::Full);
        for mode in [CompactMode::Quick, CompactMode::Full] {
            assert!(compacted(mode) == first, "{}", variant.name());
        }
    }
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

fn resized(content: &MemoryStorage, size: u64) -> MemoryStorage {
    let after = content.clone();
    after.set_len(size).unwrap();
    after
}

#[test]
fn growing_keeps_the_contract_and_adds_zeros() {
    for variant in Variant::small() {
        if variant.format == Format::Vhd && variant.disk_type == DiskType::Differencing {
            continue;
        }
        let disk = used(&variant, 4);
        let size = variant.virtual_size + 7 * MIB + 8192;
        let size = size - size % u64::from(variant.sector_size);
        let after = resized(&disk.content, size);
        all(&Trial {
            name: format!("grow {}", variant.name()),
            disk: &disk,
            depth: 1,
            start: &|disk| resizing(disk, size),
            after: &after,
        });
    }
}

#[test]
fn shrinking_keeps_the_contract_and_cuts_off_the_end() {
    for variant in Variant::small() {
        if variant.format == Format::Vhd {
            continue;
        }
        let disk = used(&variant, 5);
        let size = variant.virtual_size - MIB / 2;
        let size = (size - size % u64::from(variant.sector_size)).max(3 * MIB);
        let after = resized(&disk.content, size);
        all(&Trial {
            name: format!("shrink {}", variant.name()),
            disk: &disk,
            depth: 1,
            start: &|disk| resizing(disk, size),
            after: &after,
        });
    }
}

#[test]
fn no_disk_becomes_smaller_than_windows_knows() {
    for variant in Variant::small() {
        let disk = used(&variant, 5);
        let open = Arc::new(disk.open(true).unwrap());
        let unit = u64::from(variant.sector_size);
        let resized = resizing(&open, 3 * MIB - unit).wait();
        if variant.format == Format::Raw {
            resized.unwrap();
            continue;
        }
        // A VHD becomes no smaller at all.
        let expected = match variant.format {
            Format::Vhdx => vhdkit::ErrorKind::InvalidSize,
            _ => vhdkit::ErrorKind::InvalidType,
        };
        assert_eq!(resized.unwrap_err().kind(), expected, "{}", variant.name());
        if variant.format == Format::Vhdx {
            resizing(&open, 3 * MIB).wait().unwrap();
        }
    }
}

#[test]
fn what_was_cut_off_does_not_come_back() {
    for variant in Variant::small() {
        if variant.format == Format::Vhd {
            continue;
        }
        let disk = used(&variant, 6);
        let open = Arc::new(disk.open(true).unwrap());
        let old = variant.virtual_size;
        let unit = u64::from(variant.sector_size);
        let small = (old / 2 - old / 2 % unit).max(3 * MIB);
        resizing(&open, small).wait().unwrap();
        resizing(&open, old + MIB).wait().unwrap();
        let after = resized(&resized(&disk.content, small), old + MIB);
        vhdkit_testkit::model::assert_reads(&open, &after, &variant.name());
    }
}

fn merging(disk: &Arc<VirtualDisk>, source: usize, target: usize) -> Running {
    Running::of(merge(
        disk.clone(),
        MergeOptions {
            source_depth: source,
            target_depth: target,
            delete_merged: false,
            open: OpenOptions::new(),
            dry_run: false,
        },
    ))
}

/// T18: out of space or interrupted anywhere, the chain reads as before, and the merge can be run again.
#[test]
fn t18_merge_keeps_the_contract_and_the_chain() {
    for variant in sparse() {
        if variant.disk_type != DiskType::Differencing {
            continue;
        }
        let disk = used(&variant, 8);
        let depths: &[(usize, usize)] = if variant.depth == 4 {
            &[(1, 2), (1, 4), (2, 4), (3, 4)]
        } else {
            &[(1, 2)]
        };
        for &(source, target) in depths {
            all(&Trial {
                name: format!("merge {source} into {target} of {}", variant.name()),
                disk: &disk,
                depth: target,
                start: &|disk| merging(disk, source, target),
                after: &disk.content,
            });
        }
    }
}

/// Full blocks of a VHD that lie one after the other are taken over with the bitmaps between them. Among them are such
/// as are here in part, out of order, and in the parent already.
fn neighbours(base: DiskType, block: u64) -> TestDisk {
    const BLOCKS: u64 = 8;
    let mut variant = Variant::small()
        .into_iter()
        .find(|v| v.format == Format::Vhd && v.disk_type == DiskType::Differencing)
        .unwrap();
    variant.block_size = Some(block);
    variant.virtual_size = BLOCKS * block - block / 2;
    variant.depth = 1;
    let mut disk = variant.make(0);
    let mut parameters = variant.parameters(base, None);
    if base == DiskType::Fixed {
        parameters.block_size = None;
    }
    disk.layers = vec![vhdkit_testkit::variant::new_image(&parameters).unwrap()];
    let write = |block_number: u64, seed: u32| {
        GuestOp::write(block_number * block, block, seed).within(variant.virtual_size)
    };
    disk.fill(&[write(2, 1), write(3, 2), write(6, 3)]).unwrap();
    disk.add_child().unwrap();
    // The end of the first block comes from the parent of its parent.
    let part = GuestOp::write(0, block - 512, 4);
    disk.fill(&[part, write(1, 5), write(5, 6)]).unwrap();
    disk.add_child().unwrap();
    let part = GuestOp::write(4 * block + 1024, 5000, 7);
    let in_order = [1, 2, 3].map(|n| write(n, 8 + n as u32));
    disk.fill(&in_order).unwrap();
    disk.fill(&[part, write(7, 20), write(5, 21), write(6, 22)])
        .unwrap();
    disk.variant.depth = 3;
    disk
}

#[test]
fn merging_neighbours_keeps_the_contract_and_the_chain() {
    for (base, block) in [
        (DiskType::Dynamic, 512 << 10),
        (DiskType::Dynamic, 2 * MIB),
        (DiskType::Fixed, 512 << 10),
    ] {
        let disk = neighbours(base, block);
        for (source, target) in [(1, 2), (1, 3), (2, 3)] {
            let name = format!("merge {source} into {target}, {base:?}, blocks of {block}");
            let trial = Trial {
                name: name.clone(),
                disk: &disk,
                depth: target,
                start: &|disk| merging(disk, source, target),
                after: &disk.content,
            };
            if block == 2 * MIB {
                trial.works();
            } else {
                all(&trial);
            }
            let mut alone = disk.clone();
            for layer in &mut alone.layers {
                *layer = Arc::new(MemoryStorage::clone(layer));
            }
            let layers = alone.layers.iter().map(|file| {
                let image = vhdkit::disk::open_image(file.clone(), Format::Vhd, true).unwrap();
                vhdkit::disk::Layer::new(image, "image").writable(true)
            });
            let open = Arc::new(VirtualDisk::from_layers(layers.collect(), true).unwrap());
            merging(&open, source, target).wait().unwrap();
            drop(open);
            alone.layers.drain(source - 1..target - 1);
            let left = alone.open(false).unwrap();
            vhdkit_testkit::model::assert_reads(&left, &disk.content, &name);
        }
    }
}

/// What the target shows alone is what the chain showed from the source on.
#[test]
fn the_target_of_a_merge_shows_what_the_source_showed() {
    for variant in sparse() {
        if variant.disk_type != DiskType::Differencing {
            continue;
        }
        for target in 2..=variant.depth {
            let disk = used(&variant, 9);
            let mut copy = disk.clone();
            for layer in &mut copy.layers {
                *layer = Arc::new(MemoryStorage::clone(layer));
            }
            let mut layers = Vec::new();
            for (i, file) in copy.layers.iter().enumerate() {
                let file: Arc<dyn Storage> = file.clone();
                let image = vhdkit::disk::open_image(file, variant.format, true).unwrap();
                layers.push(vhdkit::disk::Layer::new(image, format!("{i}")).writable(true));
            }
            let open = Arc::new(VirtualDisk::from_layers(layers, true).unwrap());
            merging(&open, 1, target).wait().unwrap();
            drop(open);
            copy.layers.drain(..target - 1);
            let alone = copy.open(false).unwrap();
            let what = format!("{} into {target}", variant.name());
            vhdkit_testkit::model::assert_reads(&alone, &disk.content, &what);
        }
    }
}

/// Parent and child of different sizes: the target ends up with the child's size, and the child's content.
#[test]
fn merge_gives_the_target_the_size_of_the_source() {
    let variant = Variant::small()
        .into_iter()
        .find(|v| v.format == Format::Vhdx && v.depth == 2 && v.sector_size == 512)
        .unwrap();
    for size in [
        variant.virtual_size + 5 * MIB,
        variant.virtual_size - 70 * 512,
    ] {
        let mut disk = used(&variant, 12);
        let open = Arc::new(disk.open(true).unwrap());
        resizing(&open, size).wait().unwrap();
        open.write_at(size - 1000, &[9; 1000]).unwrap();
        drop(open);
        disk.content = resized(&disk.content, size);
        disk.content.write_at(size - 1000, &[9; 1000]).unwrap();
        all(&Trial {
            name: format!("merge a child of {size} bytes, {}", variant.name()),
            disk: &disk,
            depth: 2,
            start: &|disk| merging(disk, 1, 2),
            after: &disk.content,
        });
        // The target alone.
        let layers: Vec<_> = disk
            .layers
            .iter()
            .map(|layer| Arc::new(MemoryStorage::clone(layer)))
            .collect();
        let chain = layers
            .iter()
            .map(|file| {
                let image = vhdkit::disk::open_image(file.clone(), Format::Vhdx, true).unwrap();
                vhdkit::disk::Layer::new(image, "image").writable(true)
            })
            .collect();
        let open = Arc::new(VirtualDisk::from_layers(chain, true).unwrap());
        merging(&open, 1, 2).wait().unwrap();
        drop(open);
        let mut alone = disk.clone();
        alone.layers = vec![layers[1].clone()];
        let target = alone.open(false).unwrap();
        assert_eq!(target.virtual_size(), size);
        vhdkit_testkit::model::assert_reads(&target, &disk.content, "the target");
    }
}

/// While its leaf is being merged a disk can be read, and writes are refused or in the result.
#[test]
fn a_merge_of_the_leaf_keeps_writers_out_and_readers_in() {
    let variant = Variant::small()
        .into_iter()
        .find(|v| v.format == Format::Vhdx && v.depth == 2 && v.sector_size == 512)
        .unwrap();
    let disk = used(&variant, 13);
    let mut refused = 0;
    for round in 0..200_u8 {
        let chain: Vec<_> = disk
            .layers
            .iter()
            .map(|layer| {
                let file = Arc::new(MemoryStorage::clone(layer));
                let image = vhdkit::disk::open_image(file, Format::Vhdx, true).unwrap();
                vhdkit::disk::Layer::new(image, "image").writable(true)
            })
            .collect();
        let open = Arc::new(VirtualDisk::from_layers(chain, true).unwrap());
        let content = disk.content.clone();
        let operation = merging(&open, 1, 2);
        let (mut buf, mut seen) = ([0; 4096], [0; 4096]);
        while operation.observer.progress().status == vhdkit::Status::Pending {
            match open.write_at(700, &[round; 512]) {
                Ok(()) => content.write_at(700, &[round; 512]).unwrap(),
                Err(e) => {
                    assert_eq!(e.kind(), vhdkit::ErrorKind::Busy, "{e}");
                    refused += 1;
                }
            }
            open.read_at(8192, &mut buf).unwrap();
            content.read_at(8192, &mut seen).unwrap();
            assert!(buf == seen);
        }
        operation.wait().unwrap();
        vhdkit_testkit::model::assert_reads(&open, &content, "after the merge");
        if refused > 3 {
            return;
        }
    }
    panic!("no write ever met a merge");
}

/// Mirrors, breaks the mirror when both copies are the same, and ends.
fn mirroring(disk: &Arc<VirtualDisk>, folder: &std::path::Path) -> Running {
    use vhdkit::verbs::mirror::{MirrorOptions, break_mirror, is_mirrored, mirror};
    static NUMBER: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(0);
    let number = NUMBER.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    let operation = mirror(
        disk.clone(),
        MirrorOptions {
            target: folder.join(format!("target {number}")),
            existing: false,
            parameters: vhdkit::image::CreateParameters {
                format: Format::Vhdx,
                disk_type: DiskType::Dynamic,
                virtual_size: 0,
                block_size: Some(MIB),
                logical_sector_size: None,
                physical_sector_size: None,
                identifier: None,
                parent: None,
                identifiers: vhdkit::image::IdentifierSource::random(),
                created: 0,
            },
        },
    );
    let observer = operation.observer();
    let disk = Arc::downgrade(disk);
    let breaker = std::thread::spawn(move || {
        while observer.progress().status == vhdkit::Status::Pending {
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

/// A folder in memory if there is one: the hundreds of files that are made there need not reach a disk.
fn folder() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").unwrap_or_else(|_| tempfile::tempdir().unwrap())
}

#[test]
fn mirror_keeps_the_contract_and_the_source() {
    let folder = folder();
    for variant in Variant::small() {
        // One of each kind: what mirrors is the same for all of them.
        if variant.depth > 2 || variant.disk_type == DiskType::Fixed || variant.sector_size != 512 {
            continue;
        }
        if variant.format == Format::Vhd && variant.disk_type == DiskType::Dynamic {
            continue;
        }
        let disk = used(&variant, 14);
        let trial = Trial {
            name: format!("mirror {}", variant.name()),
            disk: &disk,
            depth: 1,
            start: &|disk| mirroring(disk, folder.path()),
            after: &disk.content,
        };
        trial.keeps_the_contract();
        trial.stops_when_dropped();
        trial.runs_alone();
        trial.can_be_cancelled_anywhere(16);
        trial.survives_faults(Fault::InputOutput);
    }
}

fn converting(disk: &Arc<VirtualDisk>, target: Arc<dyn Storage>, format: Format) -> Running {
    Running::of(vhdkit::verbs::convert::convert_disk(
        disk.clone(),
        target,
        vhdkit::image::CreateParameters {
            format,
            disk_type: DiskType::Dynamic,
            virtual_size: 0,
            block_size: None,
            logical_sector_size: None,
            physical_sector_size: None,
            identifier: None,
            parent: None,
            identifiers: vhdkit::image::IdentifierSource::random(),
            created: 0,
        },
    ))
}

#[test]
fn convert_keeps_the_contract_the_source_and_leaves_no_half_made_image() {
    use vhdkit_testkit::fault::{Call, FaultStorage};
    for variant in Variant::small() {
        if variant.depth > 2 {
            continue;
        }
        let disk = used(&variant, 16);
        let trial = Trial {
            name: format!("convert {}", variant.name()),
            disk: &disk,
            depth: 1,
            start: &|disk| converting(disk, Arc::new(MemoryStorage::new()), Format::Vhdx),
            after: &disk.content,
        };
        trial.works();
        trial.keeps_the_contract();
        trial.stops_when_dropped();
        trial.can_be_cancelled_anywhere(16);
        trial.survives_faults(Fault::InputOutput);
        for format in [Format::Vhd, Format::Vhdx] {
            if format == Format::Vhd && variant.sector_size != 512 {
                continue;
            }
            for fault in [Fault::InputOutput, Fault::NoSpace] {
                for k in 0.. {
                    let bytes = Arc::new(MemoryStorage::new());
                    let target = FaultStorage::new(bytes.clone());
                    target.fail_once(Call::CHANGING, k, fault);
                    let open = Arc::new(disk.open(false).unwrap());
                    let result = converting(&open, target.clone(), format).wait();
                    if target.injected() == 0 {
                        result.unwrap();
                        let image = vhdkit::disk::open_image(bytes, format, false).unwrap();
                        let layer = vhdkit::disk::Layer::new(image, "copy");
                        let copy = VirtualDisk::from_layers(vec![layer], false).unwrap();
                        vhdkit_testkit::model::assert_reads(&copy, &disk.content, &trial.name);
                        break;
                    }
                    // What makes the file faster may fail; what makes it an image may not.
                    if result.is_err() && k < 3 {
                        assert!(vhdkit::disk::open_image(bytes, format, false).is_err());
                    }
                }
            }
        }
    }
}

#[test]
fn compare_tells_every_error_of_reading() {
    use vhdkit_testkit::fault::{Call, FaultStorage};
    let disk = used(&Variant::small()[7], 17);
    let open = |file: Arc<dyn Storage>| {
        let image = vhdkit::disk::open_image(file, disk.variant.format, false).unwrap();
        VirtualDisk::from_layers(vec![vhdkit::disk::Layer::new(image, "image")], false).unwrap()
    };
    for k in 0.. {
        let faulty = FaultStorage::new(disk.layers[0].clone());
        let (a, b) = (open(faulty.clone()), open(disk.layers[0].clone()));
        faulty.fail_once(&[Call::Read], k, Fault::InputOutput);
        let result = vhdkit::verbs::compare::compare(a, b).wait();
        if faulty.injected() == 0 {
            assert_eq!(result.unwrap().first_difference, None);
            assert!(k > 5);
            return;
        }
        assert_eq!(result.unwrap_err().kind(), vhdkit::ErrorKind::ReadFault);
    }
}

/// Verbs that make files of their own: nobody sees more than the contract allows, and none stays half done.
#[test]
fn create_convert_and_compare_keep_the_contract() {
    use vhdkit::image::{CreateParameters, IdentifierSource};
    let folder = folder();
    let disk = used(&Variant::small()[9], 15);
    let source = folder.path().join("source.vhdx");
    let flat = Arc::new(disk.open(false).unwrap());
    let bytes = vec![7; 5 * MIB as usize];
    std::fs::write(&source, &bytes).unwrap();
    drop(flat);
    let next = std::sync::atomic::AtomicU64::new(0);
    let target = || {
        let number = next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        folder.path().join(format!("{number}.vhdx"))
    };
    let parameters = CreateParameters::new(Format::Vhdx, DiskType::Fixed, 20 * MIB);
    let create = || {
        Running::of(vhdkit::verbs::create::create(
            vhdkit::verbs::create::CreateOptions {
                path: target(),
                parameters: parameters.clone(),
                parent_path: None,
                profile: None,
                open_parent: OpenOptions::new(),
                overwrite: false,
            },
        ))
    };
    let convert = || {
        Running::of(vhdkit::verbs::convert::convert(
            vhdkit::verbs::convert::ConvertOptions {
                source: source.clone(),
                open: OpenOptions::new(),
                target: target(),
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
            },
        ))
    };
    let create_in_memory = || {
        Running::of(vhdkit::verbs::create::create_disk(
            Arc::new(MemoryStorage::new()),
            parameters.clone(),
        ))
    };
    let in_place = || {
        let path = target();
        std::fs::write(&path, &bytes).unwrap();
        Running::of(vhdkit::verbs::in_place::convert_in_place(
            vhdkit::verbs::in_place::InPlaceOptions {
                path,
                format: Format::Vhd,
                profile: None,
                identifier: None,
                identifiers: IdentifierSource::random(),
                created: 0,
            },
        ))
    };
    let compare = || {
        let open = || VirtualDisk::open(&source).unwrap();
        Running::of(vhdkit::verbs::compare::compare(open(), open()))
    };
    for (name, start) in [
        ("create", &create as &(dyn Fn() -> Running + Sync)),
        ("create in memory", &create_in_memory),
        ("convert", &convert),
        ("convert in place", &in_place),
        ("compare", &compare),
    ] {
        let trial = Trial {
            name: name.into(),
            disk: &disk,
            depth: 1,
            start: &|_| start(),
            after: &disk.content,
        };
        trial.keeps_the_contract();
        trial.stops_when_dropped();
        for delay in 0..30_u64 {
            let running = start();
            let observer = running.observer.clone();
            std::thread::sleep(std::time::Duration::from_micros(delay * 200));
            observer.cancel();
            if let Err(e) = running.wait() {
                assert_eq!(e.kind(), vhdkit::ErrorKind::Aborted, "{name}: {e}");
            }
        }
    }
    // Whatever got a name is whole, and nothing else is there.
    for entry in std::fs::read_dir(folder.path()).unwrap() {
        let path = entry.unwrap().path();
        let open = VirtualDisk::open(&path).unwrap_or_else(|e| panic!("{e}"));
        assert!([5 * MIB, 20 * MIB].contains(&open.virtual_size()));
    }
    assert!(std::fs::read(&source).unwrap() == bytes);
}

mod mixture {
    use super::*;
    use proptest::prelude::*;
    use proptest::test_runner::{Config, TestRunner};
    use vhdkit::storage::Storage;
    use vhdkit_testkit::guest::follow_discard;

    /// A guest's request, or an operation.
    #[derive(Clone, Debug)]
    enum Step {
        Guest(GuestOp),
        Compact(bool),
        /// By so many eighths of the first size.
        Resize(u64),
        Merge(usize, usize),
        Mirror,
        Metadata(u128, usize),
        NewId(u128),
    }

    fn steps(variant: &Variant) -> BoxedStrategy<Vec<Step>> {
        let vhdx = variant.format == Format::Vhdx;
        let depth = variant.depth;
        let operation = prop_oneof![
            any::<bool>().prop_map(Step::Compact),
            (4_u64..14).prop_map(Step::Resize),
            (1..=depth, 1..=depth).prop_map(|(a, b)| Step::Merge(a.min(b), a.max(b))),
            Just(Step::Mirror),
            (1_u128..4, 0_usize..9000).prop_map(|(id, n)| Step::Metadata(id, n)),
            (1_u128..u128::MAX).prop_map(Step::NewId),
        ];
        let guest = variant
            .shape()
            .ops(1..6)
            .prop_map(|ops| ops.into_iter().map(Step::Guest).collect::<Vec<_>>());
        let one = operation.prop_map(|step| vec![step]);
        prop::collection::vec(prop_oneof![3 => guest, 2 => one], 1..14)
            .prop_map(move |all| {
                all.into_iter()
                    .flatten()
                    .filter(|step| vhdx || !matches!(step, Step::Metadata(..)))
                    .collect()
            })
            .boxed()
    }

    /// A disk whose images are all open for writing, over copies of a test disk's files.
    fn open(disk: &TestDisk) -> Arc<VirtualDisk> {
        let chain = disk
            .layers
            .iter()
            .map(|file| {
                let file: Arc<dyn Storage> = file.clone();
                let image = vhdkit::disk::open_image(file, disk.variant.format, true).unwrap();
                vhdkit::disk::Layer::new(image, "image").writable(true)
            })
            .collect();
        Arc::new(VirtualDisk::from_layers(chain, true).unwrap())
    }

    fn check_clean(disk: &TestDisk, what: &str) {
        for file in &disk.layers {
            let file: Arc<dyn Storage> = file.clone();
            vhdkit_testkit::history::assert_clean(&file, what);
        }
    }

    fn run(start: &TestDisk, steps: &[Step]) -> Result<(), TestCaseError> {
        let mut disk = start.clone();
        for layer in &mut disk.layers {
            *layer = Arc::new(MemoryStorage::clone(layer));
        }
        disk.content = start.content.clone();
        let format = disk.variant.format;
        let name = disk.variant.name();
        let child_vhd = format == Format::Vhd && disk.variant.depth > 1;
        let mut current = open(&disk);
        let fail =
            |step: &Step, e: &vhdkit::Error| TestCaseError::fail(format!("{name}: {step:?}: {e}"));
        for step in steps {
            let size = current.virtual_size();
            match step {
                Step::Guest(op) => {
                    let op = op.within(size);
                    op.run(&current).map_err(|e| fail(step, &e))?;
                    op.run_on_model(&disk.content);
                    if let GuestOp::Discard { offset, length } = op {
                        let wrong = follow_discard(&current, &disk.content, offset, length)
                            .map_err(|e| fail(step, &e))?;
                        prop_assert_eq!(wrong, None);
                    }
                    if op == GuestOp::Reopen {
                        drop(current);
                        check_clean(&disk, &format!("{name}: reopened"));
                        current = open(&disk);
                    }
                }
                Step::Compact(full) => {
                    let mode = if *full {
                        CompactMode::Full
                    } else {
                        CompactMode::Quick
                    };
                    compacting(&current, mode)
                        .wait()
                        .map_err(|e| fail(step, &e))?;
                }
                Step::Resize(eighths) => {
                    let unit = u64::from(disk.variant.sector_size);
                    let wanted = disk.variant.virtual_size / 8 * eighths / unit * unit;
                    // The least that a disk becomes by being made smaller.
                    let wanted = wanted.max(size.min(3 * MIB));
                    if child_vhd || (format == Format::Vhd && wanted < size) {
                        continue;
                    }
                    resizing(&current, wanted)
                        .wait()
                        .map_err(|e| fail(step, &e))?;
                    disk.content.set_len(wanted).unwrap();
                }
                Step::Merge(source, target) => {
                    if source == target {
                        continue;
                    }
                    merging(&current, *source, *target)
                        .wait()
                        .map_err(|e| fail(step, &e))?;
                }
                Step::Mirror => {
                    let folder = folder();
                    let options = vhdkit::verbs::mirror::MirrorOptions {
                        target: folder.path().join("copy"),
                        existing: false,
                        parameters: vhdkit::image::CreateParameters {
                            virtual_size: 0,
                            ..disk.variant.parameters(DiskType::Dynamic, None)
                        },
                    };
                    let operation = vhdkit::verbs::mirror::mirror(current.clone(), options.clone());
                    while !vhdkit::verbs::mirror::is_mirrored(&current) {
                        if operation.progress().status != vhdkit::Status::Pending {
                            return Err(fail(step, &operation.wait().unwrap_err()));
                        }
                        std::thread::yield_now();
                    }
                    // The file is in use: its bytes are looked at.
                    let bytes = MemoryStorage::new();
                    bytes
                        .write_at(0, &std::fs::read(&options.target).unwrap())
                        .unwrap();
                    let copy = VirtualDisk::from_layers(
                        vec![vhdkit::disk::Layer::new(
                            vhdkit::disk::open_image(Arc::new(bytes), format, false).unwrap(),
                            "copy",
                        )],
                        false,
                    )
                    .unwrap();
                    vhdkit_testkit::model::assert_reads(&copy, &disk.content, "the mirror");
                    operation.cancel();
                    prop_assert!(operation.wait().is_err());
                }
                Step::Metadata(id, length) => {
                    let id = uuid::Uuid::from_u128(*id);
                    let value = vec![*length as u8; *length];
                    vhdkit::verbs::set::write_user_metadata(&current, id, Some(&value))
                        .map_err(|e| fail(step, &e))?;
                    let read = vhdkit::verbs::set::read_user_metadata(&current, id).unwrap();
                    prop_assert!(read == value);
                }
                Step::NewId(id) => {
                    vhdkit::verbs::set::set_identifier(&current, uuid::Uuid::from_u128(*id))
                        .map_err(|e| fail(step, &e))?;
                }
            }
            vhdkit_testkit::model::assert_reads(
                &current,
                &disk.content,
                &format!("{name}: {step:?}"),
            );
        }
        drop(current);
        check_clean(&disk, &name);
        let again = open(&disk);
        vhdkit_testkit::model::assert_reads(&again, &disk.content, &format!("{name}: at the end"));
        for pair in again.layers().windows(2) {
            let parent = pair[0].info.parent.as_ref().unwrap();
            let id = pair[1].info.link_identifier.unwrap();
            prop_assert!(parent.identifiers.contains(&id), "{}: linkage", name);
        }
        Ok(())
    }

    #[test]
    fn operations_and_writes_in_any_order_read_as_an_array_of_bytes() {
        let cases = std::env::var("PROPTEST_CASES")
            .ok()
            .and_then(|n| n.parse().ok())
            .unwrap_or(12);
        for variant in sparse() {
            let disk = used(&variant, 20);
            let config = Config {
                cases,
                failure_persistence: None,
                max_shrink_iters: 200,
                ..Config::default()
            };
            TestRunner::new(config)
                .run(&steps(&variant), |steps| run(&disk, &steps))
                .unwrap_or_else(|e| panic!("{}: {e}", variant.name()));
        }
    }
}
