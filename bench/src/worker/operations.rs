//! Workers of the rows about long operations: what they are measured on, and what a command cannot do.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};
use vhdkit::disk::VirtualDisk;
use vhdkit::image::{CreateParameters, DiskType, Format, IdentifierSource};
use vhdkit::operation::{Subject, Unit};
use vhdkit::storage::AlignedBuffer;
use vhdkit::verbs::compact::{CompactOptions, compact};
use vhdkit::verbs::convert::{ConvertOptions, convert};
use vhdkit::verbs::mirror::{MirrorOptions, break_mirror, is_mirrored, mirror};
use vhdkit::{OpenOptions, Status};

use crate::Result;
use crate::images::Random;

const MIB: u64 = 1 << 20;

/// What is dead or alive as a whole.
const PART: u64 = 8 * MIB;

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
    CreateParameters {
        format,
        disk_type: DiskType::Dynamic,
        virtual_size: 0,
        block_size: None,
        logical_sector_size: None,
        physical_sector_size: None,
        identifier: None,
        parent: None,
        identifiers: IdentifierSource::random(),
        created: 0,
    }
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
