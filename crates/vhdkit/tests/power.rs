//! The power of a real file system is cut while guests write: what they flushed is there.
//!
//! `VHDKIT_POWER_CUTS` is the number of cuts, `VHDKIT_SEED` where their moments come from.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::cast_possible_truncation,
    reason = "helpers of tests: a failure is a failed test"
)]

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use vhdkit::disk::OpenOptions;
use vhdkit::image::{CreateParameters, DiskType, Format, Severity, ZeroMode};
use vhdkit::verbs::check::check_file;
use vhdkit::verbs::create::{CreateOptions, create};
use vhdkit::{Result, VirtualDisk};
use vhdkit_testkit::power::Volume;
use vhdkit_testkit::rng::Rng;

const SECTOR: usize = 512;
const SIZE: u64 = 96 << 20;
const GUESTS: u64 = 3;

/// What one guest knows of its part of the disk.
struct Guest {
    first: u64,
    /// For each sector what it may hold: the number of the write that was there at the last flush, and of those since.
    /// The number of zeros is 0.
    values: Vec<Vec<u64>>,
    /// Sectors that were written since the last flush.
    touched: Vec<usize>,
    number: u64,
}

impl Guest {
    fn new(index: u64, value: u64) -> Self {
        let sectors = SIZE / SECTOR as u64 / GUESTS;
        Self {
            first: index * sectors,
            values: vec![vec![value]; sectors as usize],
            touched: Vec::new(),
            number: value,
        }
    }

    /// Writes, zeroes and flushes until the power is `off`. Returns how often it flushed.
    fn run(&mut self, disk: &VirtualDisk, rng: &mut Rng, off: &AtomicBool) -> u32 {
        let mut flushes = 0;
        while let Ok(flushed) = self.step(disk, rng, off) {
            flushes += u32::from(flushed);
        }
        flushes
    }

    fn step(&mut self, disk: &VirtualDisk, rng: &mut Rng, off: &AtomicBool) -> Result<bool> {
        if rng.one_in(12) {
            disk.flush()?;
            // Without power nobody would have heard of it. (XFS on Linux 6.18 can say of what its shutdown discards
            // that it was synced.)
            let was_heard = !off.load(Ordering::Acquire);
            if was_heard {
                self.settle();
            }
            return Ok(was_heard);
        }
        let sectors = self.values.len() as u64;
        let most = if rng.one_in(8) { 1024 } else { 64 };
        let count = 1 + rng.below(most);
        let at = rng.below(sectors - count);
        let range = at as usize..(at + count) as usize;
        let offset = (self.first + at) * SECTOR as u64;
        let zeros = rng.one_in(10);
        self.number += 1;
        let number = if zeros { 0 } else { self.number };
        for values in &mut self.values[range.clone()] {
            values.push(number);
        }
        self.touched.extend(range);
        if zeros {
            disk.zero(offset, count * SECTOR as u64, ZeroMode::MayUnmap)?;
        } else {
            let mut bytes = vec![0; count as usize * SECTOR];
            for (lba, sector) in (self.first + at..).zip(bytes.chunks_mut(SECTOR)) {
                fill(sector, lba, number);
            }
            disk.write_at(offset, &bytes)?;
        }
        Ok(false)
    }

    /// What was written last is what is there.
    fn settle(&mut self) {
        for sector in self.touched.drain(..) {
            let values = &mut self.values[sector];
            values.drain(..values.len() - 1);
        }
    }

    /// Compares what is there with what may be there.
    fn verify(&self, bytes: &[u8]) {
        let part = &bytes[self.first as usize * SECTOR..][..self.values.len() * SECTOR];
        for ((lba, values), sector) in (self.first..).zip(&self.values).zip(part.chunks(SECTOR)) {
            let found = number_of(sector);
            let mut whole = [0; SECTOR];
            if found > 0 {
                fill(&mut whole, lba, found);
            }
            assert!(
                sector == whole && values.contains(&found),
                "sector {lba} holds {found}, allowed: {values:?}"
            );
        }
    }

    /// Goes on from what is there.
    fn adopt(&mut self, bytes: &[u8]) {
        for sector in self.touched.drain(..) {
            let at = (self.first as usize + sector) * SECTOR;
            self.values[sector] = vec![number_of(&bytes[at..at + SECTOR])];
        }
    }
}

fn fill(sector: &mut [u8], lba: u64, number: u64) {
    for (i, word) in (0..).zip(sector.chunks_mut(16)) {
        word[..8].copy_from_slice(&(number + i).to_le_bytes());
        word[8..].copy_from_slice(&lba.to_le_bytes());
    }
}

fn number_of(sector: &[u8]) -> u64 {
    u64::from_le_bytes(sector[..8].try_into().unwrap())
}

fn make(path: &Path, format: Format, parent: Option<&Path>) {
    let disk_type = if parent.is_some() {
        DiskType::Differencing
    } else {
        DiskType::Dynamic
    };
    let size = if parent.is_some() { 0 } else { SIZE };
    create(CreateOptions {
        parent_path: parent.map(Path::to_path_buf),
        ..CreateOptions::new(path, CreateParameters::new(format, disk_type, size))
    })
    .wait()
    .unwrap();
}

/// One disk in one file system, whose power is cut again and again. Returns how often the guests flushed.
fn cut_again_and_again(
    volume: &Volume,
    format: Format,
    has_parent: bool,
    cuts: u64,
    rng: &mut Rng,
) -> u32 {
    let path = volume.root().join("disk");
    let base = volume.root().join("base");
    for old in [&path, &base] {
        let _ = std::fs::remove_file(old);
    }
    if has_parent {
        make(&base, format, None);
        let disk = OpenOptions::new().writable(true).open(&base).unwrap();
        let mut bytes = vec![0; SIZE as usize];
        for (lba, sector) in (0..).zip(bytes.chunks_mut(SECTOR)) {
            fill(sector, lba, 1);
        }
        disk.write_at(0, &bytes).unwrap();
        disk.close().unwrap();
    }
    make(&path, format, has_parent.then_some(&*base));
    let mut guests: Vec<Guest> = (0..GUESTS)
        .map(|index| Guest::new(index, u64::from(has_parent)))
        .collect();
    let mut flushes = 0;
    let off = AtomicBool::new(false);
    for cut in 0..cuts {
        off.store(false, Ordering::Release);
        let disk = OpenOptions::new().writable(true).open(&path).unwrap();
        let delay = Duration::from_millis(rng.below(150));
        let seeds: Vec<u64> = guests.iter().map(|_| rng.next()).collect();
        flushes += std::thread::scope(|scope| {
            let (disk, off) = (&disk, &off);
            let running: Vec<_> = guests
                .iter_mut()
                .zip(seeds)
                .map(|(guest, seed)| scope.spawn(move || guest.run(disk, &mut Rng::new(seed), off)))
                .collect();
            std::thread::sleep(delay);
            off.store(true, Ordering::Release);
            volume.cut();
            running.into_iter().map(|r| r.join().unwrap()).sum::<u32>()
        });
        drop(disk);
        volume.restore();
        println!("cut {cut} after {delay:?}");
        for finding in check_file(&path).unwrap() {
            assert!(finding.severity <= Severity::Info, "{finding:?}");
        }
        let mut bytes = vec![0; SIZE as usize];
        for writable in [false, true] {
            let disk = OpenOptions::new().writable(writable).open(&path).unwrap();
            disk.read_at(0, &mut bytes).unwrap();
            for guest in &guests {
                guest.verify(&bytes);
            }
            disk.close().unwrap();
        }
        for guest in &mut guests {
            guest.adopt(&bytes);
        }
        for finding in check_file(&path).unwrap() {
            assert!(finding.severity <= Severity::Info, "{finding:?}");
        }
    }
    flushes
}

#[test]
fn what_was_flushed_survives_a_power_cut() {
    let number = |name: &str, default| {
        std::env::var(name).map_or(default, |text| text.parse::<u64>().unwrap())
    };
    let cuts = number("VHDKIT_POWER_CUTS", 32);
    let seed = number("VHDKIT_SEED", 1);
    let mut rng = Rng::new(seed);
    let mut flushes = 0;
    for kind in ["xfs", "ext4"] {
        let Some(volume) = Volume::new(kind, 1024, Path::new(env!("CARGO_TARGET_TMPDIR"))) else {
            return;
        };
        for format in [Format::Vhd, Format::Vhdx] {
            for has_parent in [false, true] {
                println!("{kind}, {format:?}, parent: {has_parent}, seed {seed}");
                flushes +=
                    cut_again_and_again(&volume, format, has_parent, cuts.div_ceil(8), &mut rng);
            }
        }
    }
    println!("{flushes} flushes");
    assert!(flushes > 0, "nothing was ever promised");
}
