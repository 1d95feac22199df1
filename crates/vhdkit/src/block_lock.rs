//! A small, fixed table of locks that stands for one lock per block of a disk.

use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

const SHARDS: usize = 64;

/// One reader-writer lock per block, shared by blocks whose numbers are equal modulo 64.
///
/// Whoever moves data of a block in a way that assumes nothing about the rest of it holds the block shared; whoever
/// allocates it, or completes a sector from what is already there, holds it exclusively. Never hold two at once, but
/// through [`BlockLocks::write_all`].
pub(crate) struct BlockLocks(Box<[Shard]>);

/// Alone on its cache line (two, for processors that fetch pairs), so that shards do not slow each other down.
#[repr(align(128))]
#[derive(Default)]
struct Shard(RwLock<()>);

impl BlockLocks {
    pub(crate) fn new() -> Self {
        Self((0..SHARDS).map(|_| Shard::default()).collect())
    }

    /// Shared with other readers of the block.
    pub(crate) fn read(&self, block: u64) -> RwLockReadGuard<'_, ()> {
        self.shard(block)
            .read()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Alone with the block.
    pub(crate) fn write(&self, block: u64) -> RwLockWriteGuard<'_, ()> {
        self.shard(block)
            .write()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Alone with all blocks.
    pub(crate) fn write_all(&self) -> Vec<RwLockWriteGuard<'_, ()>> {
        (0..SHARDS as u64).map(|block| self.write(block)).collect()
    }

    fn shard(&self, block: u64) -> &RwLock<()> {
        &self.0[crate::num::to_usize(block % SHARDS as u64)].0
    }
}
