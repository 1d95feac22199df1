//! Sector bitmaps: which sectors of a block are in this file.
//!
//! Sector `i` of a block is bit `0x80 >> (i % 8)` of byte `i / 8`: the most significant bit first.

use std::collections::HashMap;
use std::collections::hash_map::Entry as Slot;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use crate::error::Result;
use crate::num::to_usize;
use crate::storage::Storage;

/// The bitmap of one block. Bits are only ever set.
pub(super) struct SectorBitmap {
    /// Eight bytes of the file each, the first byte the most significant.
    words: Box<[AtomicU64]>,
    /// Bits were set since the journal last took a copy.
    dirty: AtomicBool,
}

impl SectorBitmap {
    /// No bit set; `size` bytes.
    pub(super) fn empty(size: u64) -> Self {
        Self::from_bytes(&vec![0; to_usize(size)])
    }

    pub(super) fn from_bytes(bytes: &[u8]) -> Self {
        let words = bytes
            .chunks_exact(8)
            .map(|c| {
                AtomicU64::new(u64::from_be_bytes([
                    c[0], c[1], c[2], c[3], c[4], c[5], c[6], c[7],
                ]))
            })
            .collect();
        Self {
            words,
            dirty: AtomicBool::new(false),
        }
    }

    pub(super) fn to_bytes(&self) -> Vec<u8> {
        self.words
            .iter()
            .flat_map(|word| word.load(Ordering::Acquire).to_be_bytes())
            .collect()
    }

    pub(super) fn contains(&self, sector: u64) -> bool {
        self.words[to_usize(sector / 64)].load(Ordering::Acquire) << (sector % 64) >> 63 == 1
    }

    /// The longest run from `sectors.start` whose bits are all equal: the bit and the run's length.
    pub(super) fn run(&self, sectors: Range<u64>) -> (bool, u64) {
        let bit = self.contains(sectors.start);
        let mut at = sectors.start;
        while at < sectors.end {
            let word = self.words[to_usize(at / 64)].load(Ordering::Acquire);
            // The bits from `at` on, those that continue the run as zeros.
            let rest = (if bit { !word } else { word }) << (at % 64);
            if rest != 0 {
                at += u64::from(rest.leading_zeros());
                break;
            }
            at += 64 - at % 64;
        }
        (bit, at.min(sectors.end) - sectors.start)
    }

    /// True if all bits of the range are set.
    pub(super) fn all(&self, sectors: Range<u64>) -> bool {
        sectors.is_empty() || self.run(sectors.clone()) == (true, sectors.end - sectors.start)
    }

    /// Sets the bits of a range, whose data was written. True if the journal has to be told (once until it looks).
    pub(super) fn set(&self, sectors: Range<u64>) -> bool {
        let mut at = sectors.start;
        while at < sectors.end {
            let end = (at + 64 - at % 64).min(sectors.end);
            let mask = (u64::MAX >> (at % 64)) & (u64::MAX << (63 - (end - 1) % 64));
            self.words[to_usize(at / 64)].fetch_or(mask, Ordering::AcqRel);
            at = end;
        }
        !self.dirty.swap(true, Ordering::AcqRel)
    }

    /// Keeps the bitmap in memory for good: the file could not be brought up to it.
    pub(super) fn pin(&self) {
        self.dirty.store(true, Ordering::Release);
    }

    /// A copy for the file; bits set from now on are told to the journal again.
    pub(super) fn take(&self) -> Vec<u8> {
        self.dirty.swap(false, Ordering::AcqRel);
        self.to_bytes()
    }
}

const SHARDS: usize = 64;

/// Bitmaps by block.
type Shard = HashMap<u64, Arc<SectorBitmap>>;

/// Bitmaps of blocks that are partly here, read when they are first needed. Memory: one bit for each block of the disk
/// and at most [`BitmapCache::BUDGET`] bytes of bitmaps that are not waiting for the journal.
pub(super) struct BitmapCache {
    shards: Box<[RwLock<Shard>]>,
    /// Blocks that are known to have all bits set.
    full: Box<[AtomicU64]>,
    sectors: u64,
    size: u64,
    per_shard: usize,
}

impl BitmapCache {
    /// Bytes of bitmaps that are kept.
    const BUDGET: u64 = if cfg!(test) { 1 } else { 32 << 20 };

    /// For `blocks` blocks of `sectors` sectors, each with a bitmap of `size` bytes.
    pub(super) fn new(blocks: u64, sectors: u64, size: u64) -> Self {
        Self {
            shards: (0..SHARDS).map(|_| RwLock::default()).collect(),
            full: (0..blocks.div_ceil(64))
                .map(|_| AtomicU64::new(0))
                .collect(),
            sectors,
            size,
            per_shard: to_usize(Self::BUDGET / size / SHARDS as u64).max(4),
        }
    }

    /// True if all sectors of the block are known to be here. Once true, always true, until the block is released.
    pub(super) fn is_full(&self, block: u64) -> bool {
        self.full[to_usize(block / 64)].load(Ordering::Acquire) >> (block % 64) & 1 == 1
    }

    /// Notes that all sectors of the block are here.
    pub(super) fn set_full(&self, block: u64) {
        self.full[to_usize(block / 64)].fetch_or(1 << (block % 64), Ordering::AcqRel);
    }

    /// The bitmap of an allocated block, which is at `offset` of the file; `None` if all sectors are here.
    pub(super) fn get(
        &self,
        block: u64,
        storage: &dyn Storage,
        offset: u64,
    ) -> Result<Option<Arc<SectorBitmap>>> {
        if self.is_full(block) {
            return Ok(None);
        }
        if let Some(bitmap) = self.cached(block) {
            return Ok(Some(bitmap));
        }
        // Read under the lock: a bitmap read before it could be older than one that came and went meanwhile.
        let mut shard = self
            .shard(block)
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(bitmap) = shard.get(&block) {
            return Ok(Some(bitmap.clone()));
        }
        if self.is_full(block) {
            return Ok(None);
        }
        let mut bytes = vec![0; to_usize(self.size)];
        storage.read_at(offset, &mut bytes)?;
        let bitmap = Arc::new(SectorBitmap::from_bytes(&bytes));
        if bitmap.all(0..self.sectors) {
            self.set_full(block);
            return Ok(None);
        }
        self.make_room(&mut shard);
        shard.insert(block, bitmap.clone());
        Ok(Some(bitmap))
    }

    /// The bitmap of a block, if it is in memory.
    pub(super) fn cached(&self, block: u64) -> Option<Arc<SectorBitmap>> {
        self.shard(block)
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .get(&block)
            .cloned()
    }

    /// Takes the bitmap of a block that is about to be published, and is in the file in the same state.
    pub(super) fn insert(&self, block: u64, bitmap: SectorBitmap) {
        if bitmap.all(0..self.sectors) {
            self.set_full(block);
            return;
        }
        let mut shard = self
            .shard(block)
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        self.make_room(&mut shard);
        shard.insert(block, Arc::new(bitmap));
    }

    /// Sets bits of a block, whose data was written. True if the journal has to be told.
    pub(super) fn set(&self, block: u64, bitmap: &SectorBitmap, sectors: Range<u64>) -> bool {
        if bitmap.all(sectors.clone()) {
            return false;
        }
        let tell = bitmap.set(sectors);
        if bitmap.all(0..self.sectors) {
            self.set_full(block);
        }
        tell
    }

    /// Forgets a bitmap that nobody needs any more: a full one whose last state is in the file.
    pub(super) fn forget_full(&self, block: u64) {
        if !self.is_full(block) {
            return;
        }
        let mut shard = self
            .shard(block)
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        if let Slot::Occupied(slot) = shard.entry(block)
            && !slot.get().dirty.load(Ordering::Acquire)
        {
            slot.remove();
        }
    }

    /// Forgets everything about a block that was released. Nobody else uses the disk.
    pub(super) fn forget(&self, block: u64) {
        self.shard(block)
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(&block);
        self.full[to_usize(block / 64)].fetch_and(!(1 << (block % 64)), Ordering::AcqRel);
    }

    fn make_room(&self, shard: &mut Shard) {
        if shard.len() < self.per_shard {
            return;
        }
        // Any will do; those that the journal waits for or somebody uses have to stay.
        let idle = shard
            .iter_mut()
            .find_map(|(&block, bitmap)| is_idle(bitmap).then_some(block));
        if let Some(block) = idle {
            shard.remove(&block);
        }
    }

    fn shard(&self, block: u64) -> &RwLock<Shard> {
        &self.shards[to_usize(block % SHARDS as u64)]
    }
}

/// True if nobody else holds the bitmap and the file has the same bits.
fn is_idle(bitmap: &mut Arc<SectorBitmap>) -> bool {
    Arc::get_mut(bitmap).is_some_and(|bitmap| !*bitmap.dirty.get_mut())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_most_significant_bit_comes_first() {
        let bitmap = SectorBitmap::empty(512);
        assert!(bitmap.set(0..1), "the journal is told");
        assert!(!bitmap.set(9..10), "but once");
        assert_eq!(bitmap.take()[..2], [0x80, 0x40]);
        assert!(bitmap.set(4095..4096));
        assert_eq!(bitmap.to_bytes()[511], 0x01);
    }

    #[test]
    fn only_bitmaps_that_the_file_has_are_forgotten() {
        let storage = crate::storage::MemoryStorage::from_bytes(&[0; 512]);
        let cache = BitmapCache::new(64 * 64, 8, 512);
        for block in 0..8 {
            let bitmap = cache.get(block * 64, &storage, 0).unwrap().unwrap();
            // Some wait for the journal, some could not be written, the others may go.
            match block {
                1 => assert!(cache.set(block * 64, &bitmap, 0..2)),
                2 => bitmap.pin(),
                _ => {}
            }
        }
        let kept = (0..8).filter(|block| cache.cached(block * 64).is_some());
        let kept: Vec<u64> = kept.collect();
        assert!(
            kept.contains(&1) && kept.contains(&2) && kept.len() <= 4,
            "{kept:?}"
        );
        let bitmap = cache.get(64, &storage, 0).unwrap().unwrap();
        assert!(!cache.set(64, &bitmap, 2..8), "still told");
        assert!(cache.is_full(64) && cache.get(64, &storage, 0).unwrap().is_none());
        cache.forget_full(64);
        assert!(cache.cached(64).is_some(), "the journal has not written it");
        bitmap.take();
        cache.forget_full(64);
        assert!(cache.cached(64).is_none());
    }

    #[test]
    fn runs_agree_with_single_bits() {
        let mut state = 1_u64;
        let bytes: Vec<u8> = (0..64)
            .map(|i| {
                state = state
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1);
                match i % 3 {
                    0 => 0xFF,
                    1 => 0,
                    _ => (state >> 56) as u8,
                }
            })
            .collect();
        let bitmap = SectorBitmap::from_bytes(&bytes);
        for start in 0..512 {
            for end in [start + 1, start + 7, 512] {
                let end = end.min(512);
                let (bit, length) = bitmap.run(start..end);
                assert!((start..start + length).all(|i| bitmap.contains(i) == bit));
                assert!(start + length == end || bitmap.contains(start + length) != bit);
            }
        }
    }

    #[test]
    fn setting_a_range_sets_exactly_it() {
        for (start, end) in [(0, 64), (3, 5), (60, 70), (0, 512), (63, 129), (128, 192)] {
            let bitmap = SectorBitmap::empty(64);
            bitmap.set(start..end);
            for i in 0..512 {
                assert_eq!(bitmap.contains(i), (start..end).contains(&i), "{i}");
            }
        }
    }
}
