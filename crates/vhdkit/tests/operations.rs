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
            let files: Vec<Arc<dyn Storage>> = copy
                .layers
                .iter()
                .map(|layer| -> Arc<dyn Storage> { layer.clone() })
                .collect();
            let mut layers = Vec::new();
            for (i, file) in files.iter().enumerate() {
                let image = vhdkit::disk::open_image(file.clone(), variant.format, true).unwrap();
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
