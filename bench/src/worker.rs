//! What the benchmark itself does as one side of a row, each in a process of its own: `vhdkit-bench worker NAME ...`.

mod operations;

use std::fs::File;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rustix::fs::{FallocateFlags, OFlags};
use vhdkit::OpenOptions;
use vhdkit::disk::VirtualDisk;
use vhdkit::image::Format;
use vhdkit::storage::{Access, AlignedBuffer, FileStorage, Storage};

use crate::Result;
use crate::images::Random;

/// Runs a worker; what it prints is its result.
pub(crate) fn run(arguments: &[String]) -> Result<()> {
    let parts: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match parts[..] {
        ["ballast", bytes] => {
            ballast(bytes.parse()?);
            Ok(())
        }
        ["copy", from, to] => copy(from, to, false),
        ["copy-direct", from, to] => copy(from, to, true),
        ["pread", path, seconds] => pread(path, seconds.parse()?),
        ["random", ref rest @ ..] => random(rest),
        ["first-touch", ref rest @ ..] => first_touch(rest),
        ["commits", path, count] => commits(path, count.parse()?),
        ["deaden", path, shape] => operations::deaden(path, shape),
        ["fill", path, from] => operations::fill(path, from),
        ["compacted", path] => operations::compacted(path),
        ["packed", path, stash, shape] => operations::packed(path, stash, shape),
        ["mirrored", from, to, rate] => operations::mirrored(from, to, rate.parse()?),
        ["converted", from, to] => operations::converted(from, to),
        ["observed", from, to, count, how] => operations::observed(from, to, count.parse()?, how),
        ["footer", path, what] => operations::footer(path, what == "append"),
        _ => Err(format!("no such worker: {}", arguments.join(" ")).into()),
    }
}

/// Touches memory and gives it back, so that the host has backed it when the next process takes it.
fn ballast(bytes: usize) {
    let mut memory = vec![0_u8; bytes];
    for page in memory.chunks_mut(4096) {
        page[0] = 1;
    }
    std::hint::black_box(&memory);
}

const THREADS: usize = 2;

/// The limit of a conversion: two threads move what is data. Through the page cache in pieces of 256 KiB; or directly
/// in pieces of 2 MiB into space that is reserved first, and durable in the end.
fn copy(from: &str, to: &str, direct: bool) -> Result<()> {
    let source = FileStorage::open(from, Access::ReadOnly)?;
    let size = source.len()?;
    let plain = File::create_new(to)?;
    plain.set_len(size)?;
    let (target, piece) = if direct {
        let target = File::options()
            .write(true)
            .custom_flags(OFlags::DIRECT.bits().cast_signed())
            .open(to)?;
        (target, 2 << 20)
    } else {
        (plain.try_clone()?, 256 << 10)
    };
    let mut pieces = Vec::new();
    let mut at = 0;
    while let Some(data) = source.next_data(at..size)? {
        if direct {
            let length = data.end - data.start;
            rustix::fs::fallocate(&plain, FallocateFlags::empty(), data.start, length)
                .map_err(std::io::Error::from)?;
        }
        let mut start = data.start;
        while start < data.end {
            let end = data.end.min((start / piece + 1) * piece);
            pieces.push((start, end - start));
            start = end;
        }
        at = data.end;
    }
    let next = AtomicU64::new(0);
    let work = || -> Result<()> {
        let mut buffer = AlignedBuffer::new(usize::try_from(piece)?);
        loop {
            let taken = usize::try_from(next.fetch_add(1, Ordering::Relaxed))?;
            let Some(&(offset, length)) = pieces.get(taken) else {
                return Ok(());
            };
            let part = &mut buffer[..usize::try_from(length)?];
            source.read_at(offset, part)?;
            target.write_all_at(part, offset)?;
        }
    };
    in_threads(THREADS, &work)?;
    if direct {
        plain.sync_all()?;
    }
    Ok(())
}

fn in_threads(count: usize, work: &(impl Fn() -> Result<()> + Sync)) -> Result<()> {
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..count).map(|_| scope.spawn(work)).collect();
        threads.into_iter().try_for_each(|thread| {
            thread
                .join()
                .unwrap_or_else(|_| Err("a thread panicked".into()))
        })
    })
}

const PAGE: u64 = 4096;

/// The limit of reading what is in the page cache: one thread, one system call per read, and nothing else.
fn pread(path: &str, seconds: f64) -> Result<()> {
    let file = File::open(path)?;
    let pages = file.metadata()?.len() / PAGE;
    report_rate(1, seconds, pages, &|offset, page| {
        Ok(file.read_exact_at(page, offset)?)
    })
}

/// Random pages of an allocated disk through the library, from as many threads as the depth says.
///
/// `random IMAGE FORMAT read|write THREADS SECONDS direct|cached`
fn random(arguments: &[&str]) -> Result<()> {
    let [path, format, operation, threads, seconds, cache] = arguments[..] else {
        return Err("random: wrong arguments".into());
    };
    let write = operation == "write";
    let disk = open(path, format, write, cache == "direct")?;
    let pages = disk.virtual_size() / PAGE;
    let (threads, seconds) = (threads.parse()?, seconds.parse()?);
    if write {
        report_rate(threads, seconds, pages, &|offset, page| {
            Ok(disk.write_at(offset, page)?)
        })?;
    } else {
        report_rate(threads, seconds, pages, &|offset, page| {
            Ok(disk.read_at(offset, page)?)
        })?;
    }
    Ok(disk.close()?)
}

/// Repeats an operation on random pages for some seconds and prints how many were done per second.
fn report_rate(
    threads: usize,
    seconds: f64,
    pages: u64,
    operation: &(impl Fn(u64, &mut [u8]) -> Result<()> + Sync),
) -> Result<()> {
    let (done, seeds) = (AtomicU64::new(0), AtomicU64::new(1));
    let started = Instant::now();
    let end = started + Duration::from_secs_f64(seconds);
    in_threads(threads, &|| {
        let mut random = Random(seeds.fetch_add(1, Ordering::Relaxed) << 32);
        let mut page = AlignedBuffer::new(usize::try_from(PAGE)?);
        random.fill(&mut page);
        let mut count = 0;
        // The clock is not asked each time: that would be part of what is measured.
        while Instant::now() < end {
            for _ in 0..16 {
                operation(random.next() % pages * PAGE, &mut page)?;
            }
            count += 16;
        }
        done.fetch_add(count, Ordering::Relaxed);
        Ok(())
    })?;
    let elapsed = started.elapsed().as_secs_f64();
    println!("{}", f64::from(u32::try_from(done.into_inner())?) / elapsed);
    Ok(())
}

/// Writes a page to each of many blocks that are not allocated, far apart, then flushes; prints the seconds.
///
/// `first-touch IMAGE FORMAT COUNT THREADS direct|cached end|each`, where `each` flushes after every write.
fn first_touch(arguments: &[&str]) -> Result<()> {
    let [path, format, count, threads, cache, flush] = arguments[..] else {
        return Err("first-touch: wrong arguments".into());
    };
    let disk = open(path, format, true, cache == "direct")?;
    let (count, next): (u64, _) = (count.parse()?, AtomicU64::new(0));
    let started = Instant::now();
    in_threads(threads.parse()?, &|| {
        let mut page = AlignedBuffer::new(usize::try_from(PAGE)?);
        page.fill(7);
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            if number >= count {
                return Ok(());
            }
            disk.write_at(number * FIRST_TOUCH_STEP % disk.virtual_size(), &page)?;
            if flush == "each" {
                disk.flush()?;
            }
        }
    })?;
    disk.flush()?;
    println!("{}", started.elapsed().as_secs_f64());
    Ok(disk.close()?)
}

/// Distance of the blocks that are touched, in bytes: more than the largest default block of any peer.
pub(crate) const FIRST_TOUCH_STEP: u64 = 66 << 20;

/// Allocates a block and flushes, so many times.
fn commits(path: &str, count: u64) -> Result<()> {
    let disk = OpenOptions::new().writable(true).open(path)?;
    for number in 0..count {
        disk.write_at(number * FIRST_TOUCH_STEP, &[7; 4096])?;
        disk.flush()?;
    }
    Ok(disk.close()?)
}

fn open(path: &str, format: &str, writable: bool, direct: bool) -> Result<VirtualDisk> {
    let options = OpenOptions::new().writable(writable).direct(direct);
    let options = match format {
        "raw" => options.format(Format::Raw),
        _ => options,
    };
    Ok(options.open(Path::new(path))?)
}
