//! Floor 0: positional, thread-safe bytes on stable media.
//!
//! [`Storage`] is everything the formats know of the world below them. [`FileStorage`] is the only place with
//! operating-system calls; [`MemoryStorage`] serves tests and examples; [`OverlayStorage`] puts changed pages in
//! memory over a file that must not be written.
//!
//! Durability contract, on which every format's ordering rules stand:
//!
//! 1. After `flush` returns, every earlier `write_at`, `set_len`, `zero_range`, `punch_hole` and `allocate` is on
//!    stable media.
//! 2. Before that, each 512-byte sector of an unflushed write is on the media either entirely or not at all, in any
//!    order with other unflushed writes.
//! 3. Bytes between the old and the new end of a file that `set_len` made longer read as zeros, also after a crash.

mod aligned;
mod file;
mod lock;
mod memory;
mod overlay;
mod sys;
mod target;

pub use aligned::AlignedBuffer;
pub use file::{Access, FileStorage, HostDisk};
pub use memory::MemoryStorage;
pub use overlay::OverlayStorage;
pub use target::NewFile;
pub(crate) use target::sync_names;

use std::io::{PipeReader, PipeWriter};
use std::ops::{Range, RangeInclusive};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crate::error::{Error, ErrorKind, Result};
use crate::image::{Pace, Told};
use crate::num::{GIB, MIB};

/// Positional bytes on stable media, shared by any number of threads.
///
/// Offsets and lengths are in bytes. All methods may be called from several threads at once; calls on ranges that do
/// not overlap do not disturb each other.
pub trait Storage: Send + Sync {
    /// Fills `buf` from `offset`. Fails with [`ErrorKind::ReadFault`] if the file ends before.
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()>;

    /// Writes all of `data` at `offset`, making the file longer if needed.
    fn write_at(&self, offset: u64, data: &[u8]) -> Result<()>;

    /// Puts up to `length` bytes from `offset` into a pipe without copying them, as many as it has room for. What comes
    /// out at its other end are the pages of the system's cache: it shows what was written to that place of the file
    /// meanwhile, until the place was emptied (`punch_hole`, `set_len`). Returns how many bytes went in: 0 if the
    /// storage or the system cannot do it here, or if reading fails, which [`Storage::read_at`] will tell.
    fn lend(&self, offset: u64, length: u64, pipe: &PipeWriter) -> u64 {
        let _ = (offset, length, pipe);
        0
    }

    /// As [`Storage::write_at`] with the next `length` bytes of a pipe, which has as many, without copying them through
    /// the program. Returns how many were taken out and written: fewer if the storage or the system cannot do it here, or
    /// if writing fails, which [`Storage::write_at`] will tell.
    fn write_pipe(&self, offset: u64, length: u64, pipe: &PipeReader) -> u64 {
        let _ = (offset, length, pipe);
        0
    }

    /// The barrier: returns when everything written before is on stable media.
    fn flush(&self) -> Result<()>;

    /// Length in bytes.
    fn len(&self) -> Result<u64>;

    /// True if the length is zero.
    fn is_empty(&self) -> Result<bool> {
        Ok(self.len()? == 0)
    }

    /// Makes the file longer (with zeros) or shorter.
    fn set_len(&self, length: u64) -> Result<()>;

    /// Reserves space for a range (extending the file if it reaches past the end) so that writes to it cannot run out
    /// of space. Contents do not change. Where the file system cannot, the file is only made long enough.
    fn allocate(&self, offset: u64, length: u64) -> Result<()> {
        let end = end_of(offset, length)?;
        if self.len()? < end {
            self.set_len(end)
        } else {
            Ok(())
        }
    }

    /// Makes a range inside the file read as zeros and gives its space back where the file system can.
    fn punch_hole(&self, offset: u64, length: u64) -> Result<()> {
        self.zero_range(offset, length)
    }

    /// Makes a range inside the file read as zeros; its space stays reserved.
    fn zero_range(&self, offset: u64, length: u64) -> Result<()> {
        let zeros = vec![0_u8; 64 * 1024];
        let (mut at, end) = (offset, end_of(offset, length)?);
        while at < end {
            let n = (end - at).min(zeros.len() as u64);
            self.write_at(at, &zeros[..crate::num::to_usize(n)])?;
            at += n;
        }
        Ok(())
    }

    /// The first range inside `range` that may hold anything but zeros; `None` if all of it is a hole.
    /// The default knows nothing and answers the whole range.
    fn next_data(&self, range: Range<u64>) -> Result<Option<Range<u64>>> {
        Ok((range.start < range.end).then_some(range))
    }

    /// True if the file system can share blocks between the source and this file. Asks without changing anything.
    fn can_clone_from(&self, source: &dyn Storage) -> bool {
        let _ = source;
        false
    }

    /// Shares the source's blocks with this file instead of copying (reflink). `Ok(false)` means that these two files
    /// cannot share this range; nothing was changed then.
    fn clone_range_from(
        &self,
        source: &dyn Storage,
        source_offset: u64,
        offset: u64,
        length: u64,
    ) -> Result<bool> {
        let _ = (source, source_offset, offset, length);
        Ok(false)
    }

    /// Copies bytes from another storage by the cheapest means there is: reflink, then a copy inside the kernel, then
    /// through memory.
    fn copy_range_from(
        &self,
        source: &dyn Storage,
        source_offset: u64,
        offset: u64,
        length: u64,
    ) -> Result<()> {
        if self.clone_range_from(source, source_offset, offset, length)? {
            return Ok(());
        }
        copy_through_memory(self, source, source_offset, offset, length)
    }

    /// As [`Storage::write_at`], for large runs that nobody will read back soon: may bypass the page cache when
    /// `offset`, the length and the buffer's address are multiples of [`AlignedBuffer::ALIGNMENT`].
    fn write_bulk(&self, offset: u64, data: &[u8]) -> Result<()> {
        self.write_at(offset, data)
    }

    /// Reserves space for writes by [`Storage::write_bulk`] where that makes them faster; `false` if it does not, or
    /// there is not enough space. Contents do not change; the range lies inside the file.
    fn reserve_bulk(&self, offset: u64, length: u64) -> Result<bool> {
        let _ = (offset, length);
        Ok(false)
    }

    /// Gives back what [`Storage::reserve_bulk`] reserved in a range and nobody has written to.
    fn release_unwritten(&self, range: Range<u64>) -> Result<()> {
        let _ = range;
        Ok(())
    }

    /// True if bytes past the end of the file, once the file is made longer, are zeros even after a crash. Block
    /// devices cannot promise that, nor be made longer.
    fn grows_with_zeros(&self) -> bool {
        true
    }

    /// False if a crash takes all of it, as a file that has no name yet: the order in which its bytes become durable
    /// does not matter then.
    fn survives_crash(&self) -> bool {
        true
    }

    /// The file's path, for messages and for finding a parent beside it.
    fn path(&self) -> Option<&Path> {
        None
    }

    /// The file behind this storage, if it is one, so that two files can be cloned or copied by the kernel.
    fn as_file(&self) -> Option<&FileStorage> {
        None
    }
}

/// Reserving or clearing this much takes a moment where it means writing zeros; the next step is larger or smaller by how
/// long the last one took. In bytes.
const FIRST_STEP: u64 = 16 * MIB;
const STEPS: RangeInclusive<u64> = FIRST_STEP..=256 * MIB;
const STEP_TIME: Duration = Duration::from_millis(25);

/// Calls `step` with an offset and a length for one part of the range after the other. `pace` is told in between how many
/// bytes are done, and may stop it.
pub(crate) fn in_steps(
    range: Range<u64>,
    pace: Pace<'_>,
    mut step: impl FnMut(u64, u64) -> Result<()>,
) -> Result<()> {
    let (mut at, mut length, all) = (range.start, FIRST_STEP, range.end - range.start);
    while at < range.end {
        pace(at - range.start, all)?;
        let begun = Instant::now();
        let n = length.min(range.end - at);
        step(at, n)?;
        at += n;
        length = match begun.elapsed() {
            time if time < STEP_TIME / 2 => length * 2,
            time if time > STEP_TIME * 2 => length / 2,
            _ => length,
        }
        .clamp(*STEPS.start(), *STEPS.end());
    }
    pace(all, all)
}

/// Cutting off this much takes a moment where the file system discards it or it lies in memory. In bytes.
const FIRST_CUT: u64 = if cfg!(test) { 12 * 1024 } else { 512 * MIB };
const CUTS: RangeInclusive<u64> = if cfg!(test) {
    FIRST_CUT..=FIRST_CUT
} else {
    64 * MIB..=64 * GIB
};
const CUT_TIME: Duration = Duration::from_millis(100);

/// Cuts a file of `length` bytes off at `end`, in steps that each take a moment. `before` does what a step to its new
/// length needs, or says that it is not possible; what comes then is one step. `cut` hears of further bytes that are gone.
pub(crate) fn cut_in_steps(
    storage: &dyn Storage,
    (length, end): (u64, u64),
    mut before: impl FnMut(u64) -> Result<bool>,
    cut: &mut dyn FnMut(u64),
) -> Result<()> {
    let (mut at, mut step) = (length, FIRST_CUT);
    while at > end {
        let mut shorter = end.max(at.saturating_sub(step));
        if !before(shorter)? {
            shorter = end;
            before(end)?;
        }
        let begun = Instant::now();
        storage.set_len(shorter)?;
        step = match begun.elapsed() {
            time if time < CUT_TIME / 2 => step * 2,
            time if time > CUT_TIME => step / 2,
            _ => step,
        }
        .clamp(*CUTS.start(), *CUTS.end());
        cut(at - shorter);
        at = shorter;
    }
    Ok(())
}

/// `offset + length`, or an error instead of an overflow.
pub(crate) fn end_of(offset: u64, length: u64) -> Result<u64> {
    offset.checked_add(length).ok_or_else(|| {
        Error::new(
            ErrorKind::InvalidParameter,
            format!("range of {length} bytes at {offset} exceeds 2^64"),
        )
    })
}

/// A range of one storage and its place in another, or elsewhere in the same.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct CopyRun {
    pub(crate) from: u64,
    pub(crate) to: u64,
    pub(crate) length: u64,
}

/// True if [`copy_runs`] reads and writes a large run itself: files that cannot share blocks. A write past the page cache
/// that meets space of two kinds, reserved and written, is alone in a file of ext4, so such runs better end where
/// one kind does.
pub(crate) fn copies_past_the_cache(target: &dyn Storage, source: &dyn Storage) -> bool {
    target.as_file().is_some() && source.as_file().is_some() && !target.can_clone_from(source)
}

/// Copies runs of which none touches another's target. What is a neighbour in both places goes as one. Files share
/// blocks where they can; else several threads write past the page cache, into space that is reserved before, so that
/// little is left for a barrier to do. `copied` is told of further bytes from any thread.
pub(crate) fn copy_runs(
    target: &dyn Storage,
    source: &dyn Storage,
    mut runs: Vec<CopyRun>,
    copied: Told<'_>,
) -> Result<()> {
    /// Less is not worth a thread.
    const MANY: u64 = 8 << 20;
    const PIECE: u64 = 2 << 20;
    const CLONE_PIECE: u64 = 256 << 20;
    const THREADS: usize = 4;
    const SMALL_GAP: u64 = 4096;
    let total: u64 = runs.iter().map(|run| run.length).sum();
    runs.sort_unstable_by_key(|run| run.from);
    runs.dedup_by(|next, run| {
        let joins = run.from + run.length == next.from && run.to + run.length == next.to;
        if joins {
            run.length += next.length;
        }
        joins
    });
    let clone = target.can_clone_from(source);
    if total < MANY || !copies_past_the_cache(target, source) {
        let longest = if clone { CLONE_PIECE } else { PIECE };
        for run in &runs {
            let mut done = 0;
            while done < run.length {
                let length = (run.length - done).min(longest);
                target.copy_range_from(source, run.from + done, run.to + done, length)?;
                copied(length);
                done += length;
            }
        }
        return Ok(());
    }
    // What lies between two runs is written too, or so little that it does not matter.
    for run in runs.chunk_by(|run, next| {
        let end = run.to + run.length;
        (end..=end + SMALL_GAP).contains(&next.to)
    }) {
        if let [first, .., last] | [first @ last] = run {
            target.reserve_bulk(first.to, last.to + last.length - first.to)?;
        }
    }
    let mut pieces = Vec::new();
    for run in &runs {
        let mut done = 0;
        while done < run.length {
            let length = (run.length - done).min(PIECE);
            pieces.push((run.from + done, run.to + done, length));
            done += length;
        }
    }
    let next = AtomicUsize::new(0);
    let work = || -> Result<()> {
        let mut buffer = AlignedBuffer::new(crate::num::to_usize(PIECE));
        while let Some(&(from, to, length)) = pieces.get(next.fetch_add(1, Ordering::Relaxed)) {
            let part = &mut buffer[..crate::num::to_usize(length)];
            let result = source
                .read_at(from, part)
                .and_then(|()| target.write_bulk(to, part));
            if result.is_err() {
                // The others stop, too.
                next.store(pieces.len(), Ordering::Relaxed);
                return result;
            }
            copied(length);
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        // If no further thread can be started the present one does it all.
        let others: Vec<_> = (1..THREADS)
            .filter_map(|_| {
                std::thread::Builder::new()
                    .name("copy".into())
                    .spawn_scoped(scope, work)
                    .ok()
            })
            .collect();
        let mine = work();
        others.into_iter().fold(mine, |result, thread| {
            let other = thread.join().unwrap_or_else(|_| {
                Err(Error::new(
                    ErrorKind::Io,
                    "internal error: a thread panicked",
                ))
            });
            result.and(other)
        })
    })
}

pub(crate) fn copy_through_memory<S: Storage + ?Sized>(
    target: &S,
    source: &dyn Storage,
    source_offset: u64,
    offset: u64,
    length: u64,
) -> Result<()> {
    let mut buffer = AlignedBuffer::new(256 * 1024);
    let mut done = 0;
    while done < length {
        let n = crate::num::to_usize((length - done).min(buffer.len() as u64));
        source.read_at(source_offset + done, &mut buffer[..n])?;
        target.write_bulk(offset + done, &buffer[..n])?;
        done += n as u64;
    }
    Ok(())
}
