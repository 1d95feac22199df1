//! Looking for blocks that hold nothing, by several threads, and what that says of the work to come.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};

use super::{CUT_GAIN, CompactMode, Left, MOVE_COST};
use crate::disk::Chain;
use crate::error::{Error, ErrorKind, Result};
use crate::image::AllocatedBlock;
use crate::num::to_usize;
use crate::operation::Monitor;
use crate::storage::AlignedBuffer;
use crate::zeros::is_zero;

/// What is read of a block first, in bytes: most that hold something show it there.
const FIRST_READ: u64 = 4096;

/// What is read at a time of the rest: so little that it stays in the processor's cache until it has been looked at.
const READ: u64 = 256 * 1024;

/// What looking at a block costs besides what is read of it, in bytes that could have been read meanwhile.
pub(super) const COST: u64 = 16 * 1024;

/// What looking at a block that holds something takes at least.
pub(super) const LEAST: u64 = COST + FIRST_READ;

/// Threads that look. The data comes from memory or one disk, so more would gain little.
const THREADS: usize = 4;

/// Less is not worth a further thread.
const MANY: u64 = 4 << 20;

/// What was seen so far, in bytes: as much as tells how far the whole compaction is.
#[derive(Clone, Copy, Default)]
pub(super) struct Seen {
    /// Space of all blocks, and of the file that is not in use.
    pub(super) payload: u64,
    pub(super) free: u64,
    /// What was read of tables before, which is done too.
    pub(super) tables: u64,
    /// Units that reading them again will take.
    pub(super) later: u64,
    /// True if blocks will be moved.
    pub(super) moves: bool,
    /// Units done.
    pub(super) done: u64,
    /// Space of the blocks that were looked at.
    pub(super) looked_at: u64,
    /// Of blocks that are about to be given back, or zeros so far.
    pub(super) empty: u64,
    /// Space of blocks that were given back.
    pub(super) released: u64,
}

impl Seen {
    /// Of all that was not looked at yet, so much as `known` of what was.
    fn of_unseen(&self, known: u64) -> u64 {
        let unseen = self.payload.saturating_sub(self.looked_at);
        let all = u128::from(unseen) * u128::from(known) / u128::from(self.looked_at.max(1));
        u64::try_from(all).unwrap_or(u64::MAX)
    }

    /// What is expected to come: what is given back will be filled from the end of the file, and the file cut off.
    pub(super) fn left(&self) -> Left {
        if !self.moves {
            return Left::default();
        }
        // What comes is less likely to be like what was the further it is: three quarters of it are taken to be.
        let empty = self.released + self.empty;
        let released = empty + self.of_unseen(empty) / 4 * 3;
        let live = self.payload.saturating_sub(released);
        let gaps = self.free + released;
        Left {
            moves: MOVE_COST * live.min(gaps),
            cuts: gaps / CUT_GAIN,
            tables: self.later,
        }
    }

    /// Units done, those of tables with it.
    pub(super) fn done(&self) -> u64 {
        self.tables.saturating_add(self.done)
    }

    /// Units in all. The other blocks will cost what these did on average.
    pub(super) fn all(&self) -> u64 {
        self.done()
            .saturating_add(self.of_unseen(self.done))
            .saturating_add(self.left().all())
    }

    /// Tells how far it is while blocks are looked at.
    pub(super) fn tell(&self, monitor: &Monitor) {
        monitor.set(self.done(), self.all());
    }
}

/// What a look found.
pub(super) struct Batch {
    /// Blocks that hold nothing.
    pub(super) unused: Vec<AllocatedBlock>,
    /// Where the next look starts, if there is more.
    pub(super) next: Option<u64>,
}

/// See the module.
#[derive(Clone, Copy)]
pub(super) struct Look<'a> {
    pub(super) monitor: &'a Monitor,
    pub(super) mode: CompactMode,
    pub(super) threads: usize,
}

/// How many threads look at a time.
pub(super) fn threads() -> usize {
    std::thread::available_parallelism().map_or(1, |count| count.get().min(THREADS))
}

impl Look<'_> {
    /// Looks at blocks from `from` (of the disk) on until `budget` bytes have been read of them, [`COST`] included, but
    /// at least at one.
    pub(super) fn at(
        &self,
        chain: &Chain,
        from: u64,
        budget: u64,
        seen: &mut Seen,
    ) -> Result<Batch> {
        let most = to_usize(budget.div_ceil(COST).max(1));
        let mut blocks = chain.leaf().image().allocated_blocks(from, most)?;
        let space: u64 = blocks.iter().map(|block| block.space).sum();
        let mut next = blocks
            .last()
            .filter(|_| blocks.len() == most)
            .map(|block| block.range.end);
        let shared = Mutex::new(seen);
        // Blocks are taken in their order, so what was spent says up to where.
        let (index, spent) = (AtomicUsize::new(0), AtomicU64::new(0));
        let work = || -> Result<Vec<usize>> {
            let mut buffer = AlignedBuffer::new(to_usize(READ));
            let mut unused = Vec::new();
            while spent.load(Relaxed) < budget {
                let index = index.fetch_add(1, Relaxed);
                let Some(block) = blocks.get(index) else {
                    break;
                };
                match self.is_unused(chain, block, &mut buffer, &shared, &spent) {
                    Ok(true) => unused.push(index),
                    Ok(false) => {}
                    Err(e) => {
                        spent.store(budget, Relaxed);
                        return Err(e);
                    }
                }
            }
            Ok(unused)
        };
        let threads = if self.mode == CompactMode::Quick || space < MANY {
            1
        } else {
            self.threads.min(blocks.len())
        };
        let unused = std::thread::scope(|scope| {
            // If no further thread can be started the present one does it all.
            let others: Vec<_> = (1..threads)
                .filter_map(|_| {
                    std::thread::Builder::new()
                        .name("look".into())
                        .spawn_scoped(scope, work)
                        .ok()
                })
                .collect();
            let mut unused = work();
            for thread in others {
                let found = thread.join().unwrap_or_else(|_| {
                    Err(Error::new(
                        ErrorKind::Io,
                        "internal error: a thread panicked",
                    ))
                });
                unused = unused.and_then(|mut all| {
                    all.extend(found?);
                    Ok(all)
                });
            }
            unused
        })?;
        if let Some(first) = blocks.get(index.load(Relaxed)) {
            next = Some(first.range.start);
        }
        let mut is_unused = vec![false; blocks.len()];
        for index in unused {
            is_unused[index] = true;
        }
        let mut verdicts = is_unused.into_iter();
        blocks.retain(|_| verdicts.next() == Some(true));
        Ok(Batch {
            unused: blocks,
            next,
        })
    }

    /// True if the block holds nothing. A part of it at a time, since it may be large and have to be read to its end.
    fn is_unused(
        &self,
        chain: &Chain,
        block: &AllocatedBlock,
        buffer: &mut [u8],
        seen: &Mutex<&mut Seen>,
        spent: &AtomicU64,
    ) -> Result<bool> {
        let (mut read, mut empty) = (0, 0);
        let mut at = block.range.start;
        let mut is_unused = true;
        let looks = block.has_content && self.mode == CompactMode::Full;
        while looks && is_unused && at < block.range.end {
            self.monitor.checkpoint()?;
            let extent = chain.map(at, block.range.end - at)?;
            if extent.data.is_none() {
                at += extent.length;
                continue;
            }
            let longest = if read == 0 { FIRST_READ } else { READ };
            let n = extent.length.min(longest);
            let part = &mut buffer[..to_usize(n)];
            chain.read_at(at, part)?;
            is_unused = is_zero(part);
            at += n;
            read += n;
            spent.fetch_add(n, Relaxed);
            empty += if is_unused { n } else { 0 };
            let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
            seen.done += n;
            seen.looked_at += n;
            seen.empty += if is_unused { n } else { 0 };
            seen.tell(self.monitor);
        }
        is_unused &= looks || !block.has_content;
        spent.fetch_add(COST, Relaxed);
        let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.done += COST;
        seen.looked_at += block.space.saturating_sub(read);
        if is_unused {
            seen.empty += block.space.saturating_sub(empty);
        } else {
            seen.empty = seen.empty.saturating_sub(empty);
        }
        seen.tell(self.monitor);
        Ok(is_unused)
    }
}
