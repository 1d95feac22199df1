//! Any sequence of reads, writes, zeros, discards, flushes and reopens reads as a plain array of bytes would.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::cast_possible_truncation,
    reason = "helpers of tests: a failure is a failed test"
)]

use std::sync::Arc;

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use vhdkit::storage::Storage;
use vhdkit::verbs::check::check_storage;
use vhdkit_testkit::guest::{GuestOp, follow_discard, pattern};
use vhdkit_testkit::history::assert_clean;
use vhdkit_testkit::model::assert_reads;
use vhdkit_testkit::rng::Rng;
use vhdkit_testkit::variant::{TestDisk, Variant};

/// `PROPTEST_CASES` says how many; few enough by default that the whole suite stays short.
fn cases(default: u32) -> Config {
    let cases = std::env::var("PROPTEST_CASES")
        .ok()
        .and_then(|n| n.parse().ok())
        .unwrap_or(default);
    Config {
        cases,
        failure_persistence: None,
        max_shrink_iters: 400,
        ..Config::default()
    }
}

fn run(disk: &TestDisk, ops: &[GuestOp]) -> Result<(), TestCaseError> {
    let fork = disk.fork();
    let content = fork.content.clone();
    let name = fork.variant.name();
    let fail = |e: vhdkit::Error, op: &GuestOp| TestCaseError::fail(format!("{name}: {op:?}: {e}"));
    let mut open = fork.open(true).unwrap();
    for op in ops {
        op.run(&open).map_err(|e| fail(e, op))?;
        op.run_on_model(&content);
        if let GuestOp::Discard { offset, length } = *op {
            let wrong = follow_discard(&open, &content, offset, length).map_err(|e| fail(e, op))?;
            prop_assert_eq!(wrong, None);
        }
        if *op == GuestOp::Reopen {
            open.close().map_err(|e| fail(e, op))?;
            open = fork.open(true).map_err(|e| fail(e, op))?;
        }
        // The neighbourhood of what was changed, at once: the whole disk is read at the end.
        if let Some((offset, length)) = op.range() {
            let start = offset.saturating_sub(600);
            let end = (offset + length + 600).min(open.virtual_size());
            let (mut is, mut should) = (
                vec![0; (end - start) as usize],
                vec![0; (end - start) as usize],
            );
            open.read_at(start, &mut is).map_err(|e| fail(e, op))?;
            content.read_at(start, &mut should).unwrap();
            if let Some(i) = is.iter().zip(&should).position(|(a, b)| a != b) {
                return Err(TestCaseError::fail(format!(
                    "{name}: after {op:?} byte {:#x} reads {:#04x}, not {:#04x}",
                    start + i as u64,
                    is[i],
                    should[i]
                )));
            }
        }
    }
    assert_reads(&open, &content, &format!("{name}: before close"));
    open.close()
        .map_err(|e| TestCaseError::fail(e.to_string()))?;
    let file: Arc<dyn Storage> = fork.layers[0].clone();
    assert_clean(&file, &name);
    let reopened = fork.open(false).unwrap();
    assert_reads(&reopened, &content, &format!("{name}: reopened"));
    Ok(())
}

fn run_variants(variants: &[Variant], config: &Config) {
    for (i, variant) in variants.iter().enumerate() {
        let Some(disk) = variant.make(i as u64) else {
            continue;
        };
        TestRunner::new(config.clone())
            .run(&variant.shape().ops(1..40), |ops| run(&disk, &ops))
            .unwrap_or_else(|e| panic!("{}: {e}", variant.name()));
    }
}

#[test]
fn small_disks_of_every_kind_read_as_an_array_of_bytes() {
    run_variants(&Variant::small(), &cases(24));
}

#[test]
fn large_disks_read_as_an_array_of_bytes_up_to_their_last_byte() {
    run_variants(&Variant::large(), &cases(6));
}

#[test]
fn a_new_disk_is_clean_and_reads_as_zeros_or_as_its_parent() {
    for variant in Variant::small().iter().chain(&Variant::large()) {
        let Some(disk) = variant.make(7) else {
            continue;
        };
        let open = disk.open(false).unwrap();
        assert_eq!(open.virtual_size(), variant.virtual_size);
        assert_eq!(
            open.info().disk_type,
            variant.disk_type,
            "{}",
            variant.name()
        );
        assert_reads(&open, &disk.content, &variant.name());
        let new: Arc<dyn Storage> = disk.layers[0].clone();
        assert_eq!(check_storage(&new).unwrap(), [], "{}", variant.name());
        for layer in &disk.layers {
            let file: Arc<dyn Storage> = layer.clone();
            assert_clean(&file, &variant.name());
        }
    }
}

/// Threads that own bytes next to one another (interleaved, in one sector and in one block) never disturb each other,
/// and where they overlap, each sector holds the bytes of one of them.
#[test]
fn t7_many_threads_with_adjacent_and_overlapping_ranges() {
    const THREADS: u64 = 8;
    for variant in Variant::small() {
        let Some(disk) = variant.make(11) else {
            continue;
        };
        let open = disk.open(true).unwrap();
        let size = open.virtual_size();
        let shared_start = size / 2 / 4096 * 4096;
        let shared_length = 96 * 1024;
        let stripe = 384; // three quarters of a sector: neighbours share sectors
        std::thread::scope(|scope| {
            for thread in 0..THREADS {
                let open = &open;
                scope.spawn(move || {
                    let mut rng = Rng::new(thread);
                    for round in 0..150_u32 {
                        let k = rng.below(shared_start / (stripe * THREADS));
                        let at = (k * THREADS + thread) * stripe;
                        match rng.below(8) {
                            // Own bytes: always the same content, so that the last round needs no ledger.
                            0..=4 => open
                                .write_at(at, &pattern(100 + thread as u32, at, stripe))
                                .unwrap(),
                            5 => {
                                let at = shared_start + rng.below(shared_length / 4096) * 4096;
                                let data = pattern(1000 + thread as u32 * 200 + round, at, 8192);
                                let n = data.len().min((size - at) as usize);
                                open.write_at(at, &data[..n]).unwrap();
                            }
                            6 => open.flush().unwrap(),
                            _ => {
                                let mut seen = vec![0; stripe as usize];
                                open.read_at(at, &mut seen).unwrap();
                            }
                        }
                    }
                    for k in 0..shared_start / (stripe * THREADS) {
                        let at = (k * THREADS + thread) * stripe;
                        if k % 5 == 0 {
                            open.write_at(at, &pattern(100 + thread as u32, at, stripe))
                                .unwrap();
                        }
                    }
                });
            }
        });
        let written = |at: u64| {
            let thread = at / stripe % THREADS;
            (100 + thread) as u32
        };
        let check = |open: &vhdkit::VirtualDisk, when: &str| {
            for k in (0..shared_start / (stripe * THREADS)).step_by(5) {
                for thread in 0..THREADS {
                    let at = (k * THREADS + thread) * stripe;
                    let mut seen = vec![0; stripe as usize];
                    open.read_at(at, &mut seen).unwrap();
                    assert!(
                        seen == pattern(written(at), at, stripe),
                        "{} {when}: bytes at {at:#x} are not the ones of their only writer",
                        variant.name()
                    );
                }
            }
            // One writer per sector: the seed is in every word.
            for at in (shared_start..(shared_start + shared_length).min(size)).step_by(512) {
                let mut sector = vec![0; 512.min((size - at) as usize)];
                open.read_at(at, &mut sector).unwrap();
                let seed = u32::from(u16::from_be_bytes([sector[0], sector[1]]));
                let original = {
                    let mut bytes = vec![0; sector.len()];
                    disk.content.read_at(at, &mut bytes).unwrap();
                    bytes
                };
                assert!(
                    sector == original || sector == pattern(seed, at, sector.len() as u64),
                    "{} {when}: the sector at {at:#x} is a mixture",
                    variant.name()
                );
            }
        };
        check(&open, "open");
        open.close().unwrap();
        check(&disk.open(false).unwrap(), "reopened");
        let file: Arc<dyn Storage> = disk.layers[0].clone();
        assert_clean(&file, &variant.name());
    }
}
