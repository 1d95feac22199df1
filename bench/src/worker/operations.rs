//! Workers of the rows about long operations: what they are measured on, and what a command cannot do.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};
use vhdkit::disk::VirtualDisk;
use vhdkit::image::{CreateParameters, DiskType, Format, IdentifierSource};
use vhdkit::operation::{Subject, Unit};
use vhdkit::storage::{Access, AlignedBuffer, FileStorage, Storage};
use vhdkit::verbs::compact::{CompactOptions, compact};
use vhdkit::verbs::convert::{ConvertOptions, convert};
use vhdkit::verbs::mirror::{MirrorOptions, break_mirror, is_mirrored, mirror};
use vhdkit::{OpenOptions, Status};

use crate::Result;
use crate::images::Random;

const MIB: u64 = 1 << 20;

/// What is dead or alive as a whole.
const PART: u64 = 8 * MIB;

/// What is read at a time to look for zeros.
const PIECE: u64 = 256 * 1024;

fn writable(path: &str) -> Result<VirtualDisk> {
    Ok(OpenOptions::new().writable(true).open(path)?)
}

/// Makes parts of a full disk dead, as a guest does: `alternate` fills every second one with zeros; `freed` discards the
/// first three quarters.
pub(super) fn deaden(path: &str, shape: &str) -> Result<()> {
    let disk = writable(path)?;
    let (size, zeros) = (disk.virtual_size(), AlignedBuffer::new(1 << 20));
    for part in 0..size / PART {
        let at = part * PART;
        if shape == "freed" {
            if at < size / 4 * 3 {
                disk.discard(at, PART)?;
            }
        } else if part.is_multiple_of(2) {
            for piece in 0..PART / MIB {
                disk.write_at(at + piece * MIB, &zeros)?;
            }
        }
    }
    Ok(disk.close()?)
}

/// Writes all of one disk to another, through the library.
pub(super) fn fill(path: &str, from: &str) -> Result<()> {
    let (disk, source) = (writable(path)?, VirtualDisk::open(Path::new(from))?);
    let mut buffer = AlignedBuffer::new(1 << 20);
    let size = source.virtual_size();
    let mut at = 0;
    while at < size {
        let part = &mut buffer[..usize::try_from((size - at).min(MIB))?];
        source.read_at(at, part)?;
        disk.write_at(at, part)?;
        at += part.len() as u64;
    }
    Ok(disk.close()?)
}

/// Compacts. Prints the bytes that it says it moved; those that are somewhere else now; and those that had to be, since
/// they were behind the file's new end.
pub(super) fn compacted(path: &str) -> Result<()> {
    let before = places(path)?;
    let disk = Arc::new(writable(path)?);
    let report = compact(disk.clone(), CompactOptions::default()).wait()?;
    Arc::into_inner(disk)
        .ok_or("the disk is still in use")?
        .close()?;
    let (mut moved, mut needed) = (0, 0);
    for (offset, place) in places(path)? {
        let old = before.get(&offset).ok_or("a block came from nowhere")?;
        moved += if *old == place { 0 } else { MIB };
        needed += if old + MIB > report.size_after {
            MIB
        } else {
            0
        };
    }
    println!("{} {moved} {needed}", report.moved);
    Ok(())
}

/// The limit of a compaction of what [`deaden`] left, in the places of `stash`: the dead bytes read, what is behind the
/// new end moved to what is free before it, a barrier, the file cut off, a barrier. No table is kept. Prints the seconds.
pub(super) fn packed(path: &str, stash: &str, shape: &str) -> Result<()> {
    const BLOCK: u64 = 2 * MIB;
    let disk = VirtualDisk::open(Path::new(stash))?;
    let size = disk.virtual_size();
    let is_alive = |at: u64| match shape {
        "freed" => at >= size / 4 * 3,
        _ => !(at / PART).is_multiple_of(2),
    };
    let (mut alive, mut dead) = (Vec::new(), Vec::new());
    for at in (0..size).step_by(usize::try_from(BLOCK)?) {
        if let Some(data) = disk.map(at, BLOCK)?.data {
            let places = if is_alive(at) { &mut alive } else { &mut dead };
            places.push(data.storage_offset);
        }
    }
    disk.close()?;
    alive.sort_unstable();
    let gap = |pair: &[u64]| pair[1] - pair[0];
    let stride = alive.windows(2).map(gap).min().ok_or("nothing is alive")?;
    // Blocks lie one behind the other from here on; in a VHD there are bitmaps between them.
    let base = if stride == BLOCK {
        4 * MIB
    } else {
        alive[0] % stride
    };
    let end = base + alive.len() as u64 * stride;
    let low: std::collections::HashSet<u64> =
        alive.iter().copied().filter(|&at| at < end).collect();
    let free = (base..end)
        .step_by(usize::try_from(stride)?)
        .filter(|place| !low.contains(place));
    let moves: Vec<(u64, u64)> = alive
        .iter()
        .copied()
        .filter(|&at| at >= end)
        .zip(free)
        .collect();
    let mut runs: Vec<(u64, u64, u64)> = Vec::new();
    for &(from, to) in &moves {
        match runs.last_mut() {
            Some((start, place, length))
                if *start + *length + (stride - BLOCK) == from && to - *place == from - *start =>
            {
                *length = from + BLOCK - *start;
            }
            _ => runs.push((from, to, BLOCK)),
        }
    }
    let file = FileStorage::open(path, Access::ReadWrite)?;
    let started = Instant::now();
    if shape != "freed" {
        in_threads(2, &dead, |&at, buffer| {
            for part in 0..BLOCK / PIECE {
                let piece = &mut buffer[..usize::try_from(PIECE)?];
                file.read_at(at + part * PIECE, piece)?;
                if piece.iter().fold(0, |all, byte| all | byte) != 0 {
                    return Err("what is dead is not zero".into());
                }
            }
            Ok(())
        })?;
    }
    if file.can_clone_from(&file) {
        for &(from, to, length) in &runs {
            if !file.clone_range_from(&file, from, to, length)? {
                return Err("blocks cannot be shared".into());
            }
        }
    } else {
        for &(_, to, length) in &runs {
            file.reserve_bulk(to, length)?;
        }
        in_threads(4, &moves, |&(from, to), buffer| {
            file.read_at(from, buffer)?;
            Ok(file.write_bulk(to, buffer)?)
        })?;
    }
    file.flush()?;
    file.set_len(end)?;
    file.flush()?;
    println!("{}", started.elapsed().as_secs_f64());
    Ok(())
}

/// Has threads do something with each of these, with 2 MiB of memory each.
fn in_threads<T: Sync>(
    threads: usize,
    things: &[T],
    work: impl Fn(&T, &mut [u8]) -> Result<()> + Sync,
) -> Result<()> {
    let next = AtomicUsize::new(0);
    let failed = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                let mut buffer = AlignedBuffer::new(2 << 20);
                while let Some(thing) = things.get(next.fetch_add(1, Ordering::Relaxed)) {
                    if let Err(e) = work(thing, &mut buffer) {
                        eprintln!("{e}");
                        failed.store(true, Ordering::Relaxed);
                    }
                }
            });
        }
    });
    if failed.load(Ordering::Relaxed) {
        return Err("a thread failed".into());
    }
    Ok(())
}

/// Where in the file each MiB of the disk with data is.
fn places(path: &str) -> Result<HashMap<u64, u64>> {
    let disk = VirtualDisk::open(Path::new(path))?;
    let mut places = HashMap::new();
    for at in (0..disk.virtual_size()).step_by(usize::try_from(MIB)?) {
        if let Some(data) = disk.map(at, MIB)?.data {
            places.insert(at, data.storage_offset);
        }
    }
    Ok(places)
}

fn parameters(format: Format) -> CreateParameters {
    CreateParameters::new(format, DiskType::Dynamic, 0)
}

fn format_of(path: &str) -> Format {
    match path.rsplit('.').next() {
        Some("vhdx") => Format::Vhdx,
        Some("vhd") => Format::Vhd,
        _ => Format::Raw,
    }
}

/// Mirrors a disk that is written to so many times per second, a page at a time and anywhere; prints the seconds until
/// both copies are the same and stay it. Then the writer stops and the disk goes on with the copy: both files must read
/// the same.
pub(super) fn mirrored(from: &str, to: &str, rate: u32) -> Result<()> {
    let disk = Arc::new(writable(from)?);
    let stop = AtomicBool::new(false);
    let written = AtomicU64::new(0);
    std::thread::scope(|scope| -> Result<()> {
        let writer = (rate > 0).then(|| {
            scope.spawn(|| -> Result<()> {
                let mut random = Random(7);
                let mut page = AlignedBuffer::new(4096);
                let pages = disk.virtual_size() / 4096;
                let started = Instant::now();
                for number in 1.. {
                    if stop.load(Ordering::Relaxed) {
                        break;
                    }
                    random.fill(&mut page);
                    disk.write_at(random.next() % pages * 4096, &page)?;
                    written.store(number, Ordering::Relaxed);
                    let due = started + Duration::from_secs(number) / rate;
                    std::thread::sleep(due.saturating_duration_since(Instant::now()));
                }
                Ok(())
            })
        });
        let started = Instant::now();
        let operation = mirror(
            disk.clone(),
            MirrorOptions {
                target: to.into(),
                existing: false,
                parameters: parameters(format_of(to)),
            },
        );
        let wait = || {
            while operation.progress().status == Status::Pending && !is_mirrored(&disk) {
                std::thread::sleep(Duration::from_micros(500));
            }
        };
        wait();
        let elapsed = started.elapsed().as_secs_f64();
        stop.store(true, Ordering::Relaxed);
        let wrote = writer.map(std::thread::ScopedJoinHandle::join);
        wait();
        let broken = break_mirror(&disk);
        let result = operation.wait();
        broken?;
        result?;
        if let Some(wrote) = wrote {
            wrote.unwrap_or_else(|_| Err("the writer panicked".into()))?;
        }
        println!("{elapsed}");
        eprintln!("{} writes", written.load(Ordering::Relaxed));
        Ok(())
    })?;
    Ok(Arc::into_inner(disk)
        .ok_or("the disk is still in use")?
        .close()?)
}

fn conversion(from: &str, to: &str) -> ConvertOptions {
    ConvertOptions {
        source: from.into(),
        open: OpenOptions::new(),
        target: to.into(),
        format: format_of(to),
        disk_type: DiskType::Dynamic,
        virtual_size: None,
        profile: None,
        block_size: None,
        logical_sector_size: None,
        physical_sector_size: None,
        identifier: None,
        identifiers: IdentifierSource::random(),
        created: 0,
        overwrite: true,
    }
}

/// Converts through the library; prints the seconds.
pub(super) fn converted(from: &str, to: &str) -> Result<()> {
    let started = Instant::now();
    convert(conversion(from, to)).wait()?;
    println!("{}", started.elapsed().as_secs_f64());
    Ok(())
}

/// So many conversions, each watched in some way; prints the seconds of processor time that they took, without what the
/// watcher itself took.
///
/// `polled`: another thread asks for the progress without a pause; `spinning`: it does so in vain, with another
/// operation; `published`: other processes may ask; `alone`: nobody.
pub(super) fn observed(from: &str, to: &str, count: u32, how: &str) -> Result<()> {
    let mut used = Duration::ZERO;
    for _ in 0..count {
        let before = cpu(ClockId::ProcessCPUTime)?;
        let operation = convert(conversion(from, to));
        let published = (how == "published")
            .then(|| {
                let subject = Subject::disk(to).and(from).counted_in(Unit::Bytes);
                operation.observer().publish(&subject)
            })
            .transpose()?;
        let over = AtomicBool::new(false);
        let watched = std::thread::scope(|scope| -> Result<Duration> {
            let watcher = match how {
                "polled" | "spinning" => {
                    let observer = operation.observer();
                    let other = vhdkit::Operation::start("nothing", |_| Ok(()));
                    let over = &over;
                    Some(scope.spawn(move || {
                        while !over.load(Ordering::Relaxed) {
                            std::hint::black_box(if how == "polled" {
                                observer.progress()
                            } else {
                                other.progress()
                            });
                        }
                        cpu(ClockId::ThreadCPUTime)
                    }))
                }
                _ => None,
            };
            let result = operation.wait();
            over.store(true, Ordering::Relaxed);
            let watched = watcher.map_or(Ok(Duration::ZERO), |watcher| {
                watcher
                    .join()
                    .unwrap_or_else(|_| Err("the watcher panicked".into()))
            });
            result?;
            watched
        })?;
        drop(published);
        used += cpu(ClockId::ProcessCPUTime)?.saturating_sub(before + watched);
    }
    println!("{}", used.as_secs_f64());
    Ok(())
}

fn cpu(clock: ClockId) -> Result<Duration> {
    Ok(clock_gettime(clock).try_into()?)
}

/// The limit of a conversion in place: a footer appended or cut off, durable.
pub(super) fn footer(path: &str, append: bool) -> Result<()> {
    use std::os::unix::fs::FileExt;
    let file = std::fs::File::options().write(true).open(path)?;
    let length = file.metadata()?.len();
    if append {
        file.write_all_at(&[7; 512], length)?;
    } else {
        file.set_len(length - 512)?;
    }
    Ok(file.sync_data()?)
}
