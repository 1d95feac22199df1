//! Which parts of the file are free, and when they may be used (format sheet 8.2, 8.3).
//!
//! S1 Space that is handed out reads as zeros, and still does after a crash: either it lies beyond everything that was
//!    ever used (the file was made longer, with zeros), or it was punched and a flush has made that durable.
//! S2 Space that a BAT entry referred to is punched only after the log entry that removes the reference is durable,
//!    and handed out only after the next flush. So there is one class of space, and no order between a block's data
//!    and its BAT entry is needed for blocks that read as zeros before.
//!    A packer defers the punching: most of what becomes free while it works is written over or cut off soon.
//! S3 Handed out twice is impossible: space is in exactly one of the lists, or in use.

use std::collections::BTreeMap;

use super::layout::{ALIGNMENT, MAX_FILE_SIZE};
use crate::error::{Error, ErrorKind, Result};
use crate::num::{MIB, round_down, round_up, to_usize};
use crate::storage::Storage;

/// The file grows by at least this, so that not every new block changes its length.
const GROWTH: u64 = 64 * MIB;

/// A part of the file: offset and length, multiples of 1 MiB.
pub(super) type Span = (u64, u64);

/// See the module.
pub(super) struct Space {
    /// Length of the file as far as this session made it.
    file_length: u64,
    /// Everything from here on was never used.
    end: u64,
    /// Free, zero, durably so: offset to length.
    ready: BTreeMap<u64, u64>,
    /// Punched, waiting for a flush.
    punched: Vec<Span>,
    /// Free, content unknown, only for a mover that knows what it writes: offset to length.
    unpunched: BTreeMap<u64, u64>,
    /// True while what is given back stays [`Space::unpunched`].
    deferring: bool,
    /// The file does not become shorter than this.
    keep: u64,
}

impl Space {
    /// `used` is what the file's structures and blocks take. The file is cut off behind the last of them; holes
    /// between them are punched and become available with the next flush, or stay as they are for a packer if `defer`
    /// says so. With `keep` above 0 (a fixed disk some of
    /// whose blocks have no place yet) so many bytes behind them stay part of the file if they are there, and are
    /// zeroed, for these blocks.
    pub(super) fn new(
        storage: &dyn Storage,
        used: &UsedMap,
        keep: u64,
        defer: bool,
    ) -> Result<Self> {
        let end = used.end();
        let length = storage.len()?;
        if keep > 0 && length >= end {
            let whole = round_down(length, ALIGNMENT).min(end.saturating_add(keep));
            if length > whole {
                storage.set_len(whole)?;
            }
            storage.zero_range(end, whole - end)?;
            storage.flush()?;
            let ready = (whole > end).then_some((end, whole - end));
            return Ok(Self {
                file_length: whole,
                end: whole,
                keep: whole,
                ready: ready.into_iter().collect(),
                punched: Vec::new(),
                unpunched: BTreeMap::new(),
                deferring: defer,
            });
        }
        // A last block cut short by another writer is made whole; a tail that nobody refers to goes.
        if length != end {
            storage.set_len(end)?;
        }
        let mut space = Self {
            file_length: end,
            end,
            ready: BTreeMap::new(),
            punched: Vec::new(),
            unpunched: BTreeMap::new(),
            deferring: defer,
            keep: 0,
        };
        space.give_back(storage, &used.holes(MAX_HOLES))?;
        Ok(space)
    }

    /// Takes `length` bytes that read as zeros; makes the file longer if needed.
    pub(super) fn take(&mut self, storage: &dyn Storage, length: u64) -> Result<u64> {
        if let Some((&offset, &free)) = self.ready.iter().find(|&(_, &free)| free >= length) {
            self.ready.remove(&offset);
            if free > length {
                self.ready.insert(offset + length, free - length);
            }
            return Ok(offset);
        }
        let (offset, end) = (self.end, self.end + length);
        if end > MAX_FILE_SIZE {
            return Err(Error::new(
                ErrorKind::BlockAllocationFailure,
                "the file cannot grow beyond 256 TiB",
            ));
        }
        if end > self.file_length {
            let longer = round_up(end, GROWTH);
            self.file_length = grow(storage, longer, end)?;
        }
        self.end = end;
        Ok(offset)
    }

    /// Gives up space that nothing durable refers to, content unknown.
    pub(super) fn give_back(&mut self, storage: &dyn Storage, spans: &[Span]) -> Result<()> {
        for &(offset, length) in spans {
            insert(&mut self.unpunched, offset, length);
        }
        if self.deferring {
            return Ok(());
        }
        self.punch(storage)
    }

    fn punch(&mut self, storage: &dyn Storage) -> Result<()> {
        // Neighbours cost one call.
        while let Some((&offset, &length)) = self.unpunched.first_key_value() {
            storage.punch_hole(offset, length)?;
            self.unpunched.remove(&offset);
            self.punched.push((offset, length));
        }
        Ok(())
    }

    /// From now on (or no longer) what is given back keeps its content, until it is claimed or the file is cut off.
    /// What has not been punched in the end is when something is given back later, or at the close.
    pub(super) fn defer_punching(&mut self, defer: bool) {
        self.deferring = defer;
    }

    /// Makes ready what has not been punched: before the file is cut off at [`Space::trimmed_end`] and closed, so what
    /// is cut off then need not be punched.
    pub(super) fn settle(&mut self, storage: &dyn Storage) -> Result<()> {
        let mut end = self.end;
        loop {
            if let Some((&offset, &length)) = self.unpunched.last_key_value()
                && offset + length == end
                && offset >= self.keep
            {
                self.unpunched.remove(&offset);
                insert(&mut self.ready, offset, length);
                end = offset;
            } else if let Some((&offset, _)) = self
                .ready
                .range(..end)
                .next_back()
                .filter(|&(&offset, &length)| offset + length == end)
            {
                end = offset;
            } else {
                return self.punch(storage);
            }
        }
    }

    /// Takes a given range out of what is free, for a mover that will write all of it. True if it reads as zeros,
    /// durably; else nobody knows what it holds (or holes beyond [`MAX_HOLES`] were never looked at).
    pub(super) fn claim(&mut self, (offset, length): Span) -> bool {
        let end = offset + length;
        let known = self
            .ready
            .range(..=offset)
            .next_back()
            .is_some_and(|(&start, &free)| start + free >= end);
        remove(&mut self.ready, offset, end);
        remove(&mut self.unpunched, offset, end);
        self.punched = without(&self.punched, offset, end);
        known
    }

    /// Everything from `end` on is free: the file is about to be cut off there, but not below what has to be kept.
    /// Returns where.
    pub(super) fn cut(&mut self, end: u64) -> u64 {
        let end = end.max(self.keep);
        remove(&mut self.ready, end, u64::MAX);
        remove(&mut self.unpunched, end, u64::MAX);
        self.punched = without(&self.punched, end, u64::MAX);
        self.end = end;
        self.file_length = end;
        end
    }

    /// From now on the file does not become shorter than this.
    pub(super) fn set_keep(&mut self, keep: u64) {
        self.keep = keep;
    }

    /// What was punched so far; to be handed to [`Space::flushed`] after a flush that starts now.
    pub(super) fn punched(&self) -> usize {
        self.punched.len()
    }

    /// A flush has made the first `count` punched spans durable.
    pub(super) fn flushed(&mut self, count: usize) {
        for (offset, length) in self.punched.drain(..count) {
            insert(&mut self.ready, offset, length);
        }
    }

    /// Length of the file now.
    pub(super) fn file_length(&self) -> u64 {
        self.file_length
    }

    /// Where the file may be cut off when nothing is pending: behind the last space in use.
    pub(super) fn trimmed_end(&self) -> u64 {
        match self.ready.last_key_value() {
            Some((&offset, &length)) if offset + length == self.end => offset.max(self.keep),
            _ => self.end,
        }
    }

    /// The file was cut off at [`Space::trimmed_end`].
    pub(super) fn trimmed(&mut self) {
        let end = self.trimmed_end();
        self.ready.split_off(&end);
        self.end = end;
        self.file_length = end;
    }
}

/// Adds a span, as one with its neighbours.
fn insert(spans: &mut BTreeMap<u64, u64>, offset: u64, length: u64) {
    let (mut start, mut end) = (offset, offset + length);
    if let Some((&before, &free)) = spans.range(..start).next_back()
        && before + free == start
    {
        spans.remove(&before);
        start = before;
    }
    if let Some(free) = spans.remove(&end) {
        end += free;
    }
    spans.insert(start, end - start);
}

/// Takes away what lies in `from..to`.
fn remove(spans: &mut BTreeMap<u64, u64>, from: u64, to: u64) {
    while let Some((&offset, &length)) = spans.range(..to).next_back()
        && offset + length > from
    {
        spans.remove(&offset);
        spans.extend(without(&[(offset, length)], from, to));
        if offset <= from {
            break;
        }
    }
}

/// These spans but for what lies in `from..to`.
fn without(spans: &[Span], from: u64, to: u64) -> Vec<Span> {
    let mut rest = Vec::with_capacity(spans.len());
    for &(offset, length) in spans {
        let end = offset + length;
        if offset < from.min(end) {
            rest.push((offset, end.min(from) - offset));
        }
        if to.max(offset) < end {
            rest.push((to.max(offset), end - to.max(offset)));
        }
    }
    rest
}

/// Makes the file longer: to `wanted`, or if that is not possible (a limit of the file size may lie between) to
/// `needed`. Returns the new length.
pub(super) fn grow(storage: &dyn Storage, wanted: u64, needed: u64) -> Result<u64> {
    if storage.set_len(wanted).is_ok() {
        return Ok(wanted);
    }
    storage.set_len(needed)?;
    Ok(needed)
}

/// So many holes are taken up at the start of a session; further ones wait for a compaction.
const MAX_HOLES: usize = 4096;

/// Which units of 1 MiB of a file are in use: a bitmap in pieces, so that its memory follows what is used and not what
/// the file's length claims.
#[derive(Default)]
pub(super) struct UsedMap {
    pieces: BTreeMap<u64, Box<[u64]>>,
    end: u64,
}

/// Units per piece.
const PIECE: u64 = 32 * 1024;

impl UsedMap {
    /// Marks a range, rounded out to whole units. False if part of it was marked before.
    pub(super) fn mark(&mut self, offset: u64, length: u64) -> bool {
        if length == 0 {
            return true;
        }
        let end = offset.saturating_add(length);
        let (first, last) = (offset / ALIGNMENT, end.div_ceil(ALIGNMENT));
        self.end = self.end.max(last * ALIGNMENT);
        let mut free = true;
        for unit in first..last {
            let piece = self
                .pieces
                .entry(unit / PIECE)
                .or_insert_with(|| vec![0; to_usize(PIECE / 64)].into());
            let word = &mut piece[to_usize(unit % PIECE / 64)];
            let bit = 1 << (unit % 64);
            free &= *word & bit == 0;
            *word |= bit;
        }
        free
    }

    /// End of the last marked range.
    pub(super) fn end(&self) -> u64 {
        self.end
    }

    /// Bytes before the end that are not marked.
    pub(super) fn free(&self) -> u64 {
        let units: u64 = self
            .pieces
            .values()
            .flat_map(|p| p.iter())
            .map(|w| u64::from(w.count_ones()))
            .sum();
        self.end - units * ALIGNMENT
    }

    /// The free ranges before the end, at most `limit` of them.
    pub(super) fn holes(&self, limit: usize) -> Vec<Span> {
        let mut holes = Vec::new();
        let mut free_from = 0;
        for (&number, piece) in &self.pieces {
            for (i, &word) in piece.iter().enumerate() {
                let base = number * PIECE + i as u64 * 64;
                let mut rest = word;
                while rest != 0 {
                    let unit = base + u64::from(rest.trailing_zeros());
                    if unit > free_from {
                        holes.push((free_from * ALIGNMENT, (unit - free_from) * ALIGNMENT));
                        if holes.len() == limit {
                            return holes;
                        }
                    }
                    free_from = unit + 1;
                    rest &= rest - 1;
                }
            }
        }
        holes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::MemoryStorage;

    #[test]
    fn holes_are_found_and_double_use_is_noticed() {
        let mut used = UsedMap::default();
        assert!(used.mark(0, MIB));
        assert!(used.mark(3 * MIB, 2 * MIB));
        assert!(used.mark(40_000 * MIB, 1));
        assert!(!used.mark(4 * MIB, MIB));
        assert_eq!(used.end(), 40_001 * MIB);
        assert_eq!(used.holes(9), [(MIB, 2 * MIB), (5 * MIB, 39_995 * MIB)]);
    }

    #[test]
    fn freed_space_is_handed_out_only_after_a_flush() {
        let storage = MemoryStorage::new();
        let mut used = UsedMap::default();
        used.mark(0, 4 * MIB);
        storage.set_len(9 * MIB).unwrap();
        let mut space = Space::new(&storage, &used, 0, false).unwrap();
        assert_eq!(storage.len().unwrap(), 4 * MIB, "the unused tail is gone");
        let a = space.take(&storage, 2 * MIB).unwrap();
        let b = space.take(&storage, 2 * MIB).unwrap();
        assert_eq!((a, b), (4 * MIB, 6 * MIB));
        space.give_back(&storage, &[(a, 2 * MIB)]).unwrap();
        assert_eq!(space.take(&storage, MIB).unwrap(), 8 * MIB);
        let count = space.punched();
        space.flushed(count);
        assert_eq!(space.take(&storage, MIB).unwrap(), a);
        space.give_back(&storage, &[(8 * MIB, MIB)]).unwrap();
        let count = space.punched();
        space.flushed(count);
        assert_eq!(space.trimmed_end(), 8 * MIB);
        space.trimmed();
        assert_eq!(space.file_length(), 8 * MIB);
    }

    #[test]
    fn what_is_not_punched_yet_is_only_for_movers_and_never_taken_for_zeros() {
        let storage = MemoryStorage::new();
        let mut used = UsedMap::default();
        used.mark(0, 20 * MIB);
        storage.set_len(20 * MIB).unwrap();
        storage.write_at(0, &vec![9; to_usize(20 * MIB)]).unwrap();
        let mut space = Space::new(&storage, &used, 0, false).unwrap();
        let is_zero = |at: u64| {
            let mut bytes = vec![1; to_usize(MIB)];
            storage.read_at(at * MIB, &mut bytes).unwrap();
            crate::zeros::is_zero(&bytes)
        };
        space.defer_punching(true);
        for at in [4, 5, 6, 10, 18, 19] {
            space.give_back(&storage, &[(at * MIB, MIB)]).unwrap();
        }
        assert_eq!(space.punched(), 0);
        assert!(!space.claim((5 * MIB, MIB)));
        assert_eq!(space.take(&storage, MIB).unwrap(), 20 * MIB);
        space.settle(&storage).unwrap();
        assert!([4, 6, 10].map(is_zero) == [true; 3] && !is_zero(5));
        let count = space.punched();
        space.flushed(count);
        let taken = [(); 3].map(|()| space.take(&storage, MIB).unwrap() / MIB);
        assert_eq!(taken, [4, 6, 10]);
        space.give_back(&storage, &[(8 * MIB, 2 * MIB)]).unwrap();
        assert!(!is_zero(8));
        space.defer_punching(false);
        space.give_back(&storage, &[(10 * MIB, 8 * MIB)]).unwrap();
        assert!((8..18).all(is_zero));
    }

    #[test]
    fn a_packer_finds_the_holes_of_a_file_as_they_are() {
        for defer in [false, true] {
            let storage = MemoryStorage::new();
            let mut used = UsedMap::default();
            used.mark(0, MIB);
            used.mark(4 * MIB, MIB);
            storage.write_at(0, &vec![9; to_usize(5 * MIB)]).unwrap();
            let mut space = Space::new(&storage, &used, 0, defer).unwrap();
            assert_eq!(space.punched(), usize::from(!defer));
            let mut byte = [0];
            storage.read_at(2 * MIB, &mut byte).unwrap();
            assert_eq!(byte, [if defer { 9 } else { 0 }]);
            assert!(!space.claim((MIB, MIB)));
            // Others get only what is zero.
            assert_eq!(space.take(&storage, MIB).unwrap(), 5 * MIB);
        }
    }

    #[test]
    fn the_end_of_a_file_that_is_cut_off_is_not_punched_before() {
        let storage = MemoryStorage::new();
        let mut used = UsedMap::default();
        used.mark(0, 8 * MIB);
        storage.set_len(8 * MIB).unwrap();
        let mut space = Space::new(&storage, &used, 0, false).unwrap();
        space.defer_punching(true);
        space.give_back(&storage, &[(3 * MIB, MIB)]).unwrap();
        space.give_back(&storage, &[(6 * MIB, 2 * MIB)]).unwrap();
        space.settle(&storage).unwrap();
        assert_eq!(space.trimmed_end(), 6 * MIB);
        let count = space.punched();
        assert_eq!(count, 1);
        space.flushed(count);
        space.trimmed();
        assert_eq!(
            (space.file_length(), space.take(&storage, MIB).unwrap()),
            (6 * MIB, 3 * MIB)
        );
    }
}
