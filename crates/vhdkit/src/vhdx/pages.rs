//! A table of 64-bit words in the file (the BAT, a sector bitmap block) that is loaded page by page and changed in
//! memory until the journal writes the changed pages.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::error::Result;
use crate::num::to_usize;
use crate::storage::Storage;

/// Length of a page in bytes: what one log descriptor carries.
pub(super) const PAGE: u64 = 4096;
/// Words of a page.
pub(super) const WORDS: u64 = PAGE / 8;

/// A table up to this many words is always kept in memory once it is looked at: 256 KiB.
const SMALL: u64 = 64 * WORDS;

/// See the module. Pages never leave memory once loaded: 8 bytes for each block that was touched at random. Walks over
/// the whole table use [`PagedTable::peek`], which loads nothing.
pub(super) struct PagedTable {
    /// Where the table is in the file.
    offset: u64,
    /// Words in the table.
    words: u64,
    pages: OnceLock<Box<[OnceLock<Page>]>>,
}

struct Page {
    words: Box<[AtomicU64]>,
    /// Changed since the journal last took it.
    dirty: AtomicBool,
    /// Its place in the file is no hole.
    reserved: AtomicBool,
}

impl PagedTable {
    pub(super) fn new(offset: u64, words: u64) -> Self {
        Self {
            offset,
            words,
            pages: OnceLock::new(),
        }
    }

    pub(super) fn words(&self) -> u64 {
        self.words
    }

    fn slot(&self, page: u64) -> &OnceLock<Page> {
        let pages = self.pages.get_or_init(|| {
            (0..self.words.div_ceil(WORDS))
                .map(|_| OnceLock::new())
                .collect()
        });
        &pages[to_usize(page)]
    }

    fn page(&self, storage: &dyn Storage, page: u64) -> Result<&Page> {
        let slot = self.slot(page);
        if let Some(page) = slot.get() {
            return Ok(page);
        }
        let words = self.read_page(storage, page)?.map(AtomicU64::new).collect();
        // Of two threads that load at the same time one wins; both read the same bytes, since the file's page changes
        // only after it was loaded.
        Ok(slot.get_or_init(|| Page {
            words,
            dirty: AtomicBool::new(false),
            reserved: AtomicBool::new(false),
        }))
    }

    fn read_page(
        &self,
        storage: &dyn Storage,
        page: u64,
    ) -> Result<impl Iterator<Item = u64> + use<>> {
        let mut bytes = vec![0; to_usize(PAGE)];
        storage.read_at(self.offset + page * PAGE, &mut bytes)?;
        let words: Vec<u64> = bytes
            .chunks_exact(8)
            .map(|word| word.try_into().map_or(0, u64::from_le_bytes))
            .collect();
        Ok(words.into_iter())
    }

    /// The word at `index`; loads its page.
    pub(super) fn get(&self, storage: &dyn Storage, index: u64) -> Result<u64> {
        let page = self.page(storage, index / WORDS)?;
        Ok(page.words[to_usize(index % WORDS)].load(Ordering::Acquire))
    }

    /// Changes a word. The journal has to be told afterwards, see [`PagedTable::mark`].
    pub(super) fn set(&self, storage: &dyn Storage, index: u64, value: u64) -> Result<()> {
        self.prepare(storage, index)?;
        let page = self.page(storage, index / WORDS)?;
        page.words[to_usize(index % WORDS)].store(value, Ordering::Release);
        Ok(())
    }

    /// Sets and clears bits of a word. The journal has to be told afterwards, see [`PagedTable::mark`].
    pub(super) fn change_bits(
        &self,
        storage: &dyn Storage,
        index: u64,
        clear: u64,
        set: u64,
    ) -> Result<()> {
        self.prepare(storage, index)?;
        let page = self.page(storage, index / WORDS)?;
        let word = &page.words[to_usize(index % WORDS)];
        word.fetch_and(!clear, Ordering::AcqRel);
        word.fetch_or(set, Ordering::AcqRel);
        Ok(())
    }

    /// Marks a page as dirty; true if it was clean. To be called by the journal, under its lock.
    pub(super) fn mark(&self, page: u64) -> bool {
        // A swap, not a look: it meets the swap in `take_page`, which then sees the words changed before.
        self.slot(page)
            .get()
            .is_some_and(|page| !page.dirty.swap(true, Ordering::AcqRel))
    }

    /// Loads the page of `index` and reserves its place in the file, so that neither changing it nor writing it later
    /// can fail for want of space.
    pub(super) fn prepare(&self, storage: &dyn Storage, index: u64) -> Result<()> {
        let number = index / WORDS;
        let page = self.page(storage, number)?;
        if !page.reserved.load(Ordering::Acquire) {
            storage.allocate(self.offset + number * PAGE, PAGE)?;
            page.reserved.store(true, Ordering::Release);
        }
        Ok(())
    }

    /// The bytes of a page as they are now, for the journal, and from now on clean.
    pub(super) fn take_page(&self, page: u64) -> Option<(u64, Box<[u8]>)> {
        let loaded = self.slot(page).get()?;
        // Clean first: a change from now on is told again.
        // A swap, not a store: it meets the writer's swap, so that the writer's word is seen below.
        loaded.dirty.swap(false, Ordering::AcqRel);
        let bytes: Vec<u8> = loaded
            .words
            .iter()
            .flat_map(|w| w.load(Ordering::Acquire).to_le_bytes())
            .collect();
        Some((self.offset + page * PAGE, bytes.into()))
    }

    /// What the table holds from `index` on, without loading anything of a large table: the rest of its page, or the length of a hole in
    /// the file.
    pub(super) fn peek(&self, storage: &dyn Storage, index: u64) -> Result<Peek> {
        let page = index / WORDS;
        let skip = to_usize(index % WORDS);
        let count = to_usize((self.words - page * WORDS).min(WORDS));
        if self.words <= SMALL {
            // Asked for one extent after the other, the file would be asked for the same page again and again.
            self.page(storage, page)?;
        }
        if let Some(loaded) = self
            .pages
            .get()
            .and_then(|pages| pages[to_usize(page)].get())
        {
            let words = loaded.words[..count].iter().skip(skip);
            return Ok(Peek::Words(
                words.map(|w| w.load(Ordering::Acquire)).collect(),
            ));
        }
        let start = self.offset + page * PAGE;
        let end = self.offset + self.words.div_ceil(WORDS) * PAGE;
        let data = storage.next_data(start..end)?;
        if data.as_ref().is_none_or(|data| data.start >= start + PAGE) {
            // Pages in memory may hold what the file does not hold yet.
            let hole_end = data.map_or(end, |data| data.start - (data.start - start) % PAGE);
            let pages = (hole_end - start) / PAGE;
            let hole = (0..pages)
                .find(|i| self.is_loaded(page + i))
                .unwrap_or(pages);
            if hole > 0 {
                return Ok(Peek::Zeros(((page + hole) * WORDS).min(self.words) - index));
            }
        }
        let words = self
            .read_page(storage, page)?
            .take(count)
            .skip(skip)
            .collect();
        Ok(Peek::Words(words))
    }

    fn is_loaded(&self, page: u64) -> bool {
        self.pages
            .get()
            .is_some_and(|pages| pages[to_usize(page)].get().is_some())
    }
}

/// See [`PagedTable::peek`].
pub(super) enum Peek {
    /// These words, one after the other.
    Words(Vec<u64>),
    /// This many zeros.
    Zeros(u64),
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::MemoryStorage;

    #[test]
    fn holes_are_skipped_but_pages_in_memory_are_not() {
        let storage = MemoryStorage::new();
        storage.set_len(1 << 30).unwrap();
        let table = PagedTable::new(1 << 20, 1 << 25);
        assert!(matches!(table.peek(&storage, 5).unwrap(), Peek::Zeros(n) if n == (1 << 25) - 5));
        table.set(&storage, 10 * WORDS + 3, 77).unwrap();
        assert!(table.mark(10));
        table.set(&storage, 10 * WORDS + 4, 78).unwrap();
        assert!(!table.mark(10), "already told");
        assert!(matches!(table.peek(&storage, 5).unwrap(), Peek::Zeros(n) if n == 10 * WORDS - 5));
        match table.peek(&storage, 10 * WORDS + 3).unwrap() {
            Peek::Words(words) => assert_eq!(words[..3], [77, 78, 0]),
            Peek::Zeros(_) => unreachable!(),
        }
        let (offset, bytes) = table.take_page(10).unwrap();
        assert_eq!((offset, bytes[24]), ((1 << 20) + 10 * PAGE, 77));
        table.set(&storage, 10 * WORDS, 1).unwrap();
        assert!(table.mark(10), "clean again");
    }
}
