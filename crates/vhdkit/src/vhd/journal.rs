//! The order of writes. VHD has no log, so what reaches the file when is decided here and nowhere else.
//!
//! ```text
//! first write      both footers are put right; what an interrupted writer left behind the last block is cut off
//! new block        room is reserved at the end, bitmap and data are written, then the entry is stored in memory
//!                  (the file grows in large steps, or at once by what is expected: footer at the new end, barrier, old
//!                  footer zeroed)
//! flush            barrier; changed BAT sectors and bitmaps; barrier
//! close            flush; footer behind the last block; barrier; the rest is cut off; barrier
//! release          the entry is cleared in memory; its place is used again only after the flush that tells the file
//! ```
//!
//! What changes the structure of a file (`journal/structure.rs`) has the image to itself:
//!
//! ```text
//! move blocks      copies in free space, then as a release: the flush makes the copies durable before the entries
//! cut off          as in close
//! change a footer  the one at the end; barrier; the copy at the start; barrier
//! first half of    one sector, with the checksum: written in place; barrier
//!   the header
//! whole header     written to free space together with the locators or the table that it names; barrier; footers
//!                  that point to it; then the same at its old place, which nothing refers to any more
//! grow, sparse     zeros behind the old end, new entries (a new table goes to free space; if there is none, footer at a
//!                  new end, and the table over the old footer); barrier; first half of the header if the table became
//!                  longer or moved; barrier; footers with the new size
//! grow, fixed      footer at the new end, with a mark that names the range in which stale bytes are; barrier; space is
//!                  reserved (if there is none: the new end is cut off; barrier); the range is zeroed; barrier; the
//!                  footer without the mark; barrier. Whoever finds the mark reads zeros in its range
//! ```
//!
//! What follows from it:
//! - No BAT entry and no bit of a differencing disk's bitmap is on stable media before the data that it exposes.
//! - A valid footer is at the end of the file, or, while it grows, at least in the copy at its start, which is durable
//!   then: also if a killed process wrote it, so a session has a barrier before it first relies on it. Data of the guest
//!   is never the last sector of the file, so a guest cannot pass its own bytes off as the footer.
//! - Blocks behind the last one that the BAT on the media knows are free; their bytes are never shown.
//!
//! After a failed barrier, or a failed write of a table, memory and file may differ: the image is *failed*, and all
//! further writes and flushes say so. A failed write of data, or a file that cannot grow, changes nothing.

mod structure;

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use super::bat::{Bat, Entry, PER_SECTOR};
use super::bitmap::{BitmapCache, SectorBitmap};
use super::layout::{FOOTER_SIZE, SECTOR};
use crate::error::{Error, ErrorKind, Result};
use crate::num::{GIB, MIB, round_up};
use crate::storage::Storage;

pub(super) use structure::{Growth, NewHeader};

/// BAT and bitmaps of a dynamic or differencing disk, as they are in memory.
pub(super) struct Tables {
    pub(super) bat: Bat,
    pub(super) bitmaps: BitmapCache,
}

/// How the file was found, and what it has to become before its first change.
pub(super) struct Found {
    /// Length of the file.
    pub(super) file_size: u64,
    /// Where the footer at the end starts; `None` if it is missing or short.
    pub(super) footer_at: Option<u64>,
    /// True if the copy at the start is as it should be (or, for fixed disks, should not be).
    pub(super) copy_is_right: bool,
    /// Where the footer belongs: behind everything that is in use.
    pub(super) end: u64,
    /// End of the structures, without the blocks: the footer never belongs before it.
    pub(super) structures_end: u64,
    /// Of a fixed disk whose growing was interrupted: what has to be zeroed before the footer is put right.
    pub(super) stale: Option<Range<u64>>,
}

pub(super) struct Journal {
    storage: Arc<dyn Storage>,
    footer: [u8; 512],
    tables: Option<Arc<Tables>>,
    state: AtomicU8,
    /// What was found to be put right was put right.
    prepared: AtomicBool,
    /// What was found is durable: a killed process may have left a footer that nobody flushed.
    found_is_durable: AtomicBool,
    failure: OnceLock<Error>,
    space: Mutex<Space>,
    changes: Mutex<Changes>,
    /// Flushes asked for.
    tickets: AtomicU64,
    /// The last ticket that a finished flush covers. Held during a flush.
    flushed: Mutex<u64>,
}

/// The end of the file.
struct Space {
    found: Found,
    /// End of what is in use; from here to the footer all is free, and zero but for `old_footer`.
    end: u64,
    /// Length of the file, its footer included.
    file_size: u64,
    /// A footer that was left behind when the file grew.
    old_footer: Option<u64>,
    /// Places of blocks that are free, contents unknown: reserved but never used, or released.
    returned: Vec<u64>,
    /// Blocks of the disk that may still come.
    unallocated: u64,
    /// Of them those that will come next, as far as that is known.
    expected: u64,
    /// Changes whenever a place is taken or given back.
    generation: u64,
}

/// What memory knows and the file does not.
#[derive(Default)]
struct Changes {
    bat_sectors: BTreeSet<u64>,
    bitmaps: Vec<u64>,
    /// Places that the BAT on the media still knows.
    released: Vec<u64>,
}

/// Changes as bytes for the file.
#[derive(Default)]
struct Copies {
    /// Offset in the file and content.
    parts: Vec<(u64, Vec<u8>)>,
    /// The bitmaps among them, held so that none is dropped from memory before the file has it.
    bitmaps: Vec<(u64, Arc<SectorBitmap>)>,
    /// Places that are free once all this is in the file.
    released: Vec<u64>,
}

const READ_ONLY: u8 = 0;
/// Writable, nothing written yet.
const UNTOUCHED: u8 = 1;
const READY: u8 = 2;
const FAILED: u8 = 3;
const CLOSED: u8 = 4;
/// Nothing was written since the last barrier.
const SETTLED: u8 = 5;

/// The file grows by half of itself within these bounds, unless it is known what comes; in tests by little, so that it
/// happens often.
const MIN_STEP: u64 = if cfg!(test) { 16 << 10 } else { 64 * MIB };
const MAX_STEP: u64 = GIB;

/// Changed bitmaps beyond this many bytes are written without waiting for a flush.
const MAX_CHANGED_BITMAPS: u64 = 8 * MIB;

impl Journal {
    pub(super) fn new(
        storage: Arc<dyn Storage>,
        footer: &[u8; 512],
        found: Found,
        tables: Option<Arc<Tables>>,
        writable: bool,
    ) -> Self {
        let unallocated = match &tables {
            Some(tables) if writable => tables.bat.unallocated(),
            _ => 0,
        };
        Self {
            storage,
            footer: *footer,
            tables,
            state: AtomicU8::new(if writable { UNTOUCHED } else { READ_ONLY }),
            prepared: AtomicBool::new(false),
            found_is_durable: AtomicBool::new(false),
            failure: OnceLock::new(),
            space: Mutex::new(Space {
                end: found.end,
                file_size: found.file_size,
                found,
                old_footer: None,
                returned: Vec::new(),
                unallocated,
                expected: 0,
                generation: 0,
            }),
            changes: Mutex::default(),
            tickets: AtomicU64::new(0),
            flushed: Mutex::new(0),
        }
    }

    /// To be called before every change of the file. One load, but for the first time.
    pub(super) fn begin(&self) -> Result<()> {
        match self.state.load(Ordering::Acquire) {
            READY => Ok(()),
            UNTOUCHED => self.prepare(),
            SETTLED => {
                // Whoever comes first; a failure or the end of all writing stays what it is.
                let _ = self.state.compare_exchange(
                    SETTLED,
                    READY,
                    Ordering::AcqRel,
                    Ordering::Acquire,
                );
                self.begin()
            }
            state => Err(self.refusal(state)),
        }
    }

    /// An error if the file cannot be changed; for requests that may turn out to change nothing.
    pub(super) fn check(&self) -> Result<()> {
        match self.state.load(Ordering::Acquire) {
            READY | UNTOUCHED | SETTLED => Ok(()),
            state => Err(self.refusal(state)),
        }
    }

    fn refusal(&self, state: u8) -> Error {
        match state {
            READ_ONLY => Error::new(ErrorKind::WriteProtected, "the disk was opened read-only"),
            CLOSED => Error::new(ErrorKind::InvalidState, "the disk was closed"),
            _ => {
                let reason = self.failure.get().map_or("unknown", Error::reason);
                Error::new(
                    ErrorKind::InvalidState,
                    format!("an earlier write of the file's tables failed ({reason})"),
                )
                .with_hint("put the cause right and open the disk again; what was flushed is safe")
            }
        }
    }

    /// Remembers the first failure that leaves memory and file different.
    fn fail(&self, error: Error) -> Error {
        let _ = self.failure.set(error.duplicate());
        self.state.store(FAILED, Ordering::Release);
        error
    }

    fn barrier(&self) -> Result<()> {
        self.storage.flush().map_err(|e| self.fail(e))?;
        self.found_is_durable.store(true, Ordering::Release);
        Ok(())
    }

    /// To be called before a footer changes while the other one is all that there is.
    fn rely_on_other_footer(&self) -> Result<()> {
        if self.found_is_durable.load(Ordering::Acquire) {
            Ok(())
        } else {
            self.barrier()
        }
    }

    /// Puts both footers right and cuts off what an interrupted writer left behind the last block.
    fn prepare(&self) -> Result<()> {
        let mut space = lock(&self.space);
        let state = self.state.load(Ordering::Acquire);
        if state != UNTOUCHED {
            return if matches!(state, READY | SETTLED) {
                Ok(())
            } else {
                Err(self.refusal(state))
            };
        }
        let found = &space.found;
        if !found.copy_is_right {
            // The one at the end is valid, or the copy would have been taken.
            self.storage.write_at(0, &self.footer)?;
            self.barrier()?;
        }
        if let Some(stale) = &found.stale {
            self.storage
                .zero_range(stale.start, stale.end - stale.start)?;
            self.barrier()?;
            self.storage.write_at(found.end, &self.footer)?;
        }
        if self.storage.grows_with_zeros() {
            if found.footer_at != Some(found.end) || found.file_size != found.end + FOOTER_SIZE {
                self.storage.write_at(found.end, &self.footer)?;
                if self.tables.is_some() {
                    self.barrier()?;
                    self.storage.set_len(found.end + FOOTER_SIZE)?;
                }
                space.file_size = found.end + FOOTER_SIZE;
            }
        } else if found.footer_at.is_none() {
            let at = found.file_size.saturating_sub(FOOTER_SIZE);
            self.storage.write_at(at, &self.footer)?;
            self.barrier()?;
        }
        self.prepared.store(true, Ordering::Release);
        self.state.store(READY, Ordering::Release);
        Ok(())
    }

    /// True once the file is as it should be: [`Found::stale`] is no more.
    pub(super) fn is_prepared(&self) -> bool {
        self.prepared.load(Ordering::Acquire)
    }

    /// See [`crate::image::Image::expect_blocks`].
    pub(super) fn expect_blocks(&self, count: u64) {
        lock(&self.space).expected = count;
    }

    /// Room for a block at the end of the file: the offset of its bitmap. All of it is zero.
    pub(super) fn reserve(&self, tables: &Tables) -> Result<u64> {
        let shape = tables.bat.shape;
        let mut space = lock(&self.space);
        if let Some(&at) = space.returned.last() {
            self.storage.zero_range(at, shape.total())?;
            space.returned.pop();
            space.expected = space.expected.saturating_sub(1);
            space.generation += 1;
            return Ok(at);
        }
        let at = shape.place_behind(space.end);
        let end = at + shape.total();
        // The two largest entries have other meanings.
        if at / SECTOR >= u64::from(u32::MAX) - 1 {
            return Err(Error::new(
                ErrorKind::BlockAllocationFailure,
                format!("a block at {at} is past the 2 TiB that a VHD file can address"),
            )
            .with_hint("compact the disk, or convert it to VHDX"));
        }
        let room_for = |blocks: u64| blocks * round_up(shape.total(), 4096);
        let others = space.unallocated.saturating_sub(1);
        let further = match space.expected.checked_sub(1) {
            Some(expected) => room_for(expected.min(others)),
            None => (space.file_size / 2)
                .clamp(MIN_STEP, MAX_STEP)
                .min(room_for(others)),
        };
        self.take(&mut space, at..end, further)?;
        space.unallocated = others;
        space.expected = space.expected.saturating_sub(1);
        Ok(at)
    }

    /// Takes zeroed room for a range behind all that is in use; if the file has to grow for it, then with room for
    /// `further` bytes that follow.
    fn take(&self, space: &mut Space, range: Range<u64>, further: u64) -> Result<()> {
        let length = range.end - range.start;
        if range.end + FOOTER_SIZE > space.file_size {
            self.grow(space, range.end, length, further)?;
        }
        if let Some(old) = space.old_footer {
            self.storage.write_at(old, &[0; 512])?;
            space.old_footer = None;
        }
        if !self.storage.grows_with_zeros() {
            self.storage.zero_range(range.start, length)?;
        }
        space.end = range.end;
        space.generation += 1;
        Ok(())
    }

    /// Takes back a block that was reserved but not published.
    pub(super) fn give_back(&self, at: u64) {
        let mut space = lock(&self.space);
        space.returned.push(at);
        space.generation += 1;
    }

    /// Makes the file long enough for `length` bytes that end at `end`, and for `further` ones.
    fn grow(&self, space: &mut Space, end: u64, length: u64, further: u64) -> Result<()> {
        if !self.storage.grows_with_zeros() {
            return Err(Self::no_room(space, length));
        }
        let length = round_up(end + further, SECTOR) + FOOTER_SIZE;
        let old = space.file_size - FOOTER_SIZE;
        self.lengthen(space, length)?;
        self.barrier()?;
        space.old_footer = Some(old);
        Ok(())
    }

    fn no_room(space: &Space, length: u64) -> Error {
        Error::new(
            ErrorKind::DiskFull,
            format!(
                "the device of {} bytes has no room for a further {length} bytes",
                space.file_size
            ),
        )
    }

    /// Makes the file longer, with its footer at the new end. Until a barrier, the copy at the start may be the only one.
    fn lengthen(&self, space: &mut Space, length: u64) -> Result<()> {
        self.rely_on_other_footer()?;
        let extended = self
            .storage
            .set_len(length)
            .and_then(|()| self.storage.write_at(length - FOOTER_SIZE, &self.footer));
        if let Err(error) = extended {
            // Back to the old footer at the old end; then nothing has happened.
            self.storage
                .set_len(space.file_size)
                .map_err(|e| self.fail(e))?;
            return Err(error);
        }
        space.file_size = length;
        Ok(())
    }

    /// Shows a block whose bitmap and data are written; the file learns of it with the next flush.
    pub(super) fn publish(&self, tables: &Tables, block: u64, at: u64) {
        let mut changes = lock(&self.changes);
        tables.bat.publish(block, at);
        changes.bat_sectors.insert(block / PER_SECTOR);
    }

    /// Sets bits of a block's bitmap (`set` is [`BitmapCache::set`]) and notes that in one step: a flush on another
    /// thread finds either both or neither. True if so many bitmaps have changed that they should be flushed, once no
    /// lock of a block is held.
    pub(super) fn change_bitmap(
        &self,
        tables: &Tables,
        block: u64,
        set: impl FnOnce() -> bool,
    ) -> bool {
        let mut changes = lock(&self.changes);
        if !set() {
            return false;
        }
        changes.bitmaps.push(block);
        changes.bitmaps.len() as u64 * tables.bat.shape.bitmap_size >= MAX_CHANGED_BITMAPS
    }

    /// Everything that was written before is durable when this returns.
    ///
    /// Callers that wait for each other share one flush, if it started after they came.
    pub(super) fn flush(&self) -> Result<()> {
        match self.state.load(Ordering::Acquire) {
            READY => {}
            FAILED => return Err(self.refusal(FAILED)),
            _ => return Ok(()),
        }
        let ticket = self.tickets.fetch_add(1, Ordering::AcqRel) + 1;
        let mut flushed = lock(&self.flushed);
        if *flushed >= ticket {
            return Ok(());
        }
        match self.state.load(Ordering::Acquire) {
            READY => {}
            FAILED => return Err(self.refusal(FAILED)),
            _ => return Ok(()),
        }
        let covered = self.tickets.load(Ordering::Acquire);
        self.commit()?;
        *flushed = covered;
        Ok(())
    }

    fn commit(&self) -> Result<()> {
        // The copies hold only what was written before the first barrier; what comes later waits for the next flush.
        let copies = self.copy_changes();
        let result = self.write_copies(&copies);
        if result.is_err() {
            // The file does not have these bits: memory must not forget them, for reads go on.
            copies.bitmaps.iter().for_each(|(_, bitmap)| bitmap.pin());
        }
        result
    }

    fn write_copies(&self, copies: &Copies) -> Result<()> {
        self.barrier()?;
        if copies.parts.is_empty() {
            return Ok(());
        }
        for (offset, bytes) in &copies.parts {
            self.storage
                .write_at(*offset, bytes)
                .map_err(|e| self.fail(e))?;
        }
        self.barrier()?;
        if let Some(tables) = &self.tables {
            for (block, _) in &copies.bitmaps {
                tables.bitmaps.forget_full(*block);
            }
        }
        if !copies.released.is_empty() {
            lock(&self.space).returned.extend(&copies.released);
        }
        Ok(())
    }

    /// Takes the changes, as bytes and where in the file they go.
    fn copy_changes(&self) -> Copies {
        let mut copies = Copies::default();
        let Some(tables) = &self.tables else {
            return copies;
        };
        let changes = std::mem::take(&mut *lock(&self.changes));
        copies.released = changes.released;
        for sector in changes.bat_sectors {
            let offset = tables.bat.offset + sector * SECTOR;
            let mut bytes = [0; 512];
            tables.bat.sector(sector, &mut bytes);
            match copies.parts.last_mut() {
                Some((start, run)) if *start + run.len() as u64 == offset => {
                    run.extend_from_slice(&bytes);
                }
                _ => copies.parts.push((offset, bytes.to_vec())),
            }
        }
        for block in changes.bitmaps {
            if let (Entry::At(at), Some(bitmap)) =
                (tables.bat.get(block), tables.bitmaps.cached(block))
            {
                copies.parts.push((at, bitmap.take()));
                copies.bitmaps.push((block, bitmap));
            }
        }
        copies
    }

    /// Flushes, and leaves the file as short as it can be. No block may be written meanwhile.
    pub(super) fn close(&self) -> Result<()> {
        self.flush()?;
        if matches!(self.state.load(Ordering::Acquire), READY | SETTLED)
            && let Some(tables) = &self.tables
        {
            self.cut_off(tables, &mut |_| ())?;
        }
        let _ = self
            .state
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |state| {
                (state != FAILED).then_some(CLOSED)
            });
        Ok(())
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
