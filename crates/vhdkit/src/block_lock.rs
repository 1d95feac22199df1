//! A small table of locks that stands for one lock per block.
//!
//! Reading and writing bytes of a block that stays where it is holds its lock shared; changing where a block is, or
//! what its sectors mean, holds it exclusively. So space is never given away under a request that is still using it.

use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

/// Enough that threads on different blocks rarely meet.
const SHARDS: u64 = 64;

/// See the module.
pub(crate) struct BlockLocks(Box<[Shard]>);

/// On a cache line of its own, so that two threads on different shards do not slow each other down.
#[repr(align(128))]
#[derive(Default)]
struct Shard(RwLock<()>);

impl BlockLocks {
    pub(crate) fn new() -> Self {
        Self((0..SHARDS).map(|_| Shard::default()).collect())
    }

    pub(crate) fn read(&self, block: u64) -> RwLockReadGuard<'_, ()> {
        self.shard(block)
            .read()
            .unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn write(&self, block: u64) -> RwLockWriteGuard<'_, ()> {
        self.shard(block)
            .write()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn shard(&self, block: u64) -> &RwLock<()> {
        &self.0[crate::num::to_usize(block % SHARDS)].0
    }
}
