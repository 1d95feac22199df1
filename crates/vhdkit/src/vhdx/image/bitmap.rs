//! Sector bitmaps: which sectors of partially present blocks are in this file (format sheet 4.4).

use std::ops::Range;
use std::sync::{OnceLock, PoisonError};

use super::VhdxImage;
use crate::error::{Error, ErrorKind, Result};
use crate::num::to_usize;
use crate::vhdx::bat;
use crate::vhdx::journal::DirtyPage;
use crate::vhdx::layout::{BITMAP_BLOCK, SECTORS_PER_BITMAP};
use crate::vhdx::pages::{PagedTable, WORDS};
use std::sync::atomic::Ordering;

impl VhdxImage {
    pub(super) fn bitmap_slot(&self, chunk: u64) -> &OnceLock<PagedTable> {
        let slots = self.bitmaps.get_or_init(|| {
            (0..self.geometry.chunk_count)
                .map(|_| OnceLock::new())
                .collect()
        });
        &slots[to_usize(chunk)]
    }

    /// The sector bitmap of a chunk, if it has one.
    pub(super) fn bitmap(&self, chunk: u64) -> Result<Option<&PagedTable>> {
        let slot = self.bitmap_slot(chunk);
        if let Some(table) = slot.get() {
            return Ok(Some(table));
        }
        let entry = self
            .bat
            .get(&*self.storage, self.geometry.bitmap_index(chunk))?;
        Ok(
            bat::bitmap(chunk, entry, self.file_end.load(Ordering::Relaxed))?.map(|offset| {
                slot.get_or_init(|| PagedTable::new(offset, SECTORS_PER_BITMAP / 64))
            }),
        )
    }

    /// The sector bitmap that a partially present block must have.
    pub(super) fn bitmap_of(&self, block: u64) -> Result<(&PagedTable, u64)> {
        let (chunk, first_bit) = self.geometry.bitmap_place(block);
        let table = self.bitmap(chunk)?.ok_or_else(|| {
            Error::new(
                ErrorKind::BitmapMismatch,
                format!(
                    "block {block} is partially present but chunk {chunk} has no sector bitmap"
                ),
            )
            .with_hint("which of its sectors are valid is lost; restore the file from a backup")
        })?;
        Ok((table, first_bit))
    }

    /// As [`Self::bitmap`], made if it is missing.
    pub(super) fn ensure_bitmap(&self, chunk: u64) -> Result<&PagedTable> {
        if let Some(table) = self.bitmap(chunk)? {
            return Ok(table);
        }
        let _guard = self
            .bitmap_allocation
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(table) = self.bitmap(chunk)? {
            return Ok(table);
        }
        let offset = self.journal.take_space(&*self.storage, BITMAP_BLOCK)?;
        self.set_entry(
            self.geometry.bitmap_index(chunk),
            bat::entry(bat::PRESENT, offset),
        )?;
        Ok(self
            .bitmap_slot(chunk)
            .get_or_init(|| PagedTable::new(offset, SECTORS_PER_BITMAP / 64)))
    }

    /// The value of a bit and how many of the `max` bits from it on have the same.
    pub(super) fn bit_run(&self, table: &PagedTable, bit: u64, max: u64) -> Result<(bool, u64)> {
        let mut word = table.get(&*self.storage, bit / 64)? >> (bit % 64);
        let value = word & 1 == 1;
        let mut run = 0;
        let mut available = 64 - bit % 64;
        loop {
            let same = u64::from(if value {
                word.trailing_ones()
            } else {
                word.trailing_zeros()
            });
            run += same.min(available);
            if same < available || run >= max {
                return Ok((value, run.min(max)));
            }
            word = table.get(&*self.storage, (bit + run) / 64)?;
            available = 64;
        }
    }

    /// Sets bits `from..to` and clears the rest of `all`, which contains it. Works on whole words.
    pub(super) fn change_bits(
        &self,
        chunk: u64,
        table: &PagedTable,
        all: Range<u64>,
        set: Range<u64>,
    ) -> Result<()> {
        let mask = |range: &Range<u64>, word: u64| {
            let (start, end) = (range.start.max(word * 64), range.end.min(word * 64 + 64));
            if start >= end {
                return 0;
            }
            (u64::MAX >> (64 - (end - start))) << (start % 64)
        };
        let words = all.start / 64..all.end.div_ceil(64);
        let pages = words.start / WORDS..words.end.div_ceil(WORDS);
        // Whatever can fail comes first.
        for page in pages.clone() {
            table.prepare(&*self.storage, page * WORDS)?;
        }
        for word in words {
            let (inside, ones) = (mask(&all, word), mask(&set, word));
            table.change_bits(&*self.storage, word, inside & !ones, ones)?;
        }
        for page in pages {
            self.journal
                .note(DirtyPage::Bitmap { chunk, page }, || table.mark(page));
        }
        Ok(())
    }
}
