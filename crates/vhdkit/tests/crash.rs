//! The durability promise, at every point of a history: what a crash or a failing disk can leave.
//!
//! `VHDKIT_CRASH=thorough` looks at every subset of up to eight unflushed storage operations and takes more samples.

use vhdkit::image::DiskType;
use vhdkit_testkit::fault::Fault;
use vhdkit_testkit::guest::GuestOp;
use vhdkit_testkit::history::{CrashOptions, CrashReport, run_crash_history, run_fault_sweep};
use vhdkit_testkit::rng::Rng;
use vhdkit_testkit::variant::Variant;

fn histories(variants: &[Variant], count: u64, length: usize) {
    for variant in variants {
        let Some(disk) = variant.make(5) else {
            continue;
        };
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
        let Some(disk) = variant.make(6) else {
            continue;
        };
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

fn sweep(fault: Fault) {
    for variant in Variant::small() {
        let Some(disk) = variant.make(8) else {
            continue;
        };
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
