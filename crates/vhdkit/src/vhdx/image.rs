//! An open VHDX file: reading, writing, zeroing, mapping (format sheet 4.3).

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use uuid::Uuid;

use super::bat::{self, Block, Geometry, Slot};
use super::header::{Headers, corrupt};
use super::journal::{DirtyPage, Journal};
use super::layout::{
    BITMAP_BLOCK, CREATOR_LENGTH, CREATOR_OFFSET, HEADER_AREA, MAX_FILE_SIZE, SECTORS_PER_BITMAP,
};
use super::log;
use super::metadata::Metadata;
use super::pages::{PagedTable, Peek, WORDS};
use super::region::Regions;
use super::space::UsedMap;
use crate::block_lock::BlockLocks;
use crate::error::{Error, ErrorKind, Result};
use crate::image::{Backing, DiskType, Extent, ExtentKind, Format, Image, ImageInfo, ZeroMode};
use crate::num::{round_down, round_up, to_usize};
use crate::storage::Storage;

/// See the module.
pub struct VhdxImage {
    storage: Arc<dyn Storage>,
    metadata: Metadata,
    geometry: Geometry,
    regions: Regions,
    headers: Headers,
    creator: Option<String>,
    log_replayed: bool,
    writable: bool,
    bat: PagedTable,
    /// The sector bitmap of each chunk, once it is known where it is.
    bitmaps: OnceLock<Box<[OnceLock<PagedTable>]>>,
    /// Held while a chunk gets its bitmap block.
    bitmap_allocation: Mutex<()>,
    locks: BlockLocks,
    /// Bytes from here on are not in the file and read as zeros: a last block that its writer cut short.
    file_end: AtomicU64,
    journal: Journal,
}

impl VhdxImage {
    /// Opens a VHDX file by the checklist of section 9. A log that is in use is replayed: into the file if it is opened
    /// for writing, else in memory.
    ///
    /// # Errors
    /// [`ErrorKind::FileCorrupt`], [`ErrorKind::InvalidFileSize`], [`ErrorKind::UnsupportedVersion`],
    /// [`ErrorKind::InvalidState`] (a file that was never finished), [`ErrorKind::InvalidBlockSize`],
    /// [`ErrorKind::InvalidSize`], [`ErrorKind::UnsupportedSectorSize`], [`ErrorKind::BlockAllocationTableCorrupt`];
    /// [`ErrorKind::HostLimitation`] for writing to a block device.
    pub fn open(storage: Arc<dyn Storage>, writable: bool) -> Result<Self> {
        let mut file_length = storage.len()?;
        if file_length < HEADER_AREA {
            return Err(Error::new(
                ErrorKind::InvalidFileSize,
                format!("a VHDX file has at least 1 MiB, this one {file_length} bytes"),
            )
            .with_hint("copy the file again from its source"));
        }
        if !super::detect(&*storage)? {
            return Err(Error::new(
                ErrorKind::FormatUnknown,
                "it does not start with 'vhdxfile'",
            ));
        }
        if writable && !storage.grows_with_zeros() {
            return Err(Error::new(
                ErrorKind::HostLimitation,
                "a VHDX on a block device cannot be written, since the file cannot grow",
            )
            .with_hint("open it read-only, or copy it to a file first"));
        }
        let mut headers = Headers::read(&*storage, file_length)?;
        let log_replayed = !headers.log_guid.is_nil();
        let storage = if !log_replayed {
            storage
        } else if writable {
            log::replay(&*storage, &mut headers, Uuid::new_v4())?;
            storage
        } else {
            log::replay_in_memory(&storage, &headers)?
        };
        if log_replayed {
            file_length = storage.len()?;
        }
        if writable && file_length > MAX_FILE_SIZE {
            return Err(Error::new(
                ErrorKind::InvalidFileSize,
                format!("a file of {file_length} bytes is too long to be written"),
            ));
        }
        let regions = Regions::read(&*storage, &headers, file_length)?;
        let metadata = Metadata::read(&*storage, &regions.metadata)?;
        let geometry = Geometry::new(
            metadata.block_size,
            metadata.logical_sector_size,
            metadata.virtual_size,
        );
        let entries = geometry.entries_used(metadata.has_parent);
        if regions.bat.length / 8 < entries {
            return Err(corrupt(format!(
                "the BAT region holds {} entries, the disk needs {entries}",
                regions.bat.length / 8
            )));
        }
        let creator = read_creator(&*storage)?;
        let journal = Journal::new(
            headers.clone(),
            log_replayed && writable,
            file_length,
            metadata.has_parent,
        );
        Ok(Self {
            bat: PagedTable::new(regions.bat.offset, entries),
            bitmaps: OnceLock::new(),
            bitmap_allocation: Mutex::default(),
            locks: BlockLocks::new(),
            file_end: AtomicU64::new(file_length),
            storage,
            metadata,
            geometry,
            regions,
            headers,
            creator,
            log_replayed,
            writable,
            journal,
        })
    }

    fn block(&self, block: u64) -> Result<Block> {
        let entry = self
            .bat
            .get(&*self.storage, self.geometry.payload_index(block))?;
        self.decode(block, entry)
    }

    fn decode(&self, block: u64, entry: u64) -> Result<Block> {
        let file_end = self.file_end.load(Ordering::Relaxed);
        bat::payload(block, entry, self.metadata.has_parent, file_end)
    }

    /// Cuts a range of the disk at block boundaries: block, offset in it, length.
    fn portion(&self, offset: u64, length: u64) -> (u64, u64, u64) {
        let (block, within) = (
            offset / self.geometry.block_size,
            offset % self.geometry.block_size,
        );
        (block, within, length.min(self.geometry.block_size - within))
    }

    /// Bytes of the block that belong to the disk: all but for the last block.
    fn block_length(&self, block: u64) -> u64 {
        (self.geometry.virtual_size - block * self.geometry.block_size)
            .min(self.geometry.block_size)
    }

    /// Reads from the file; what a cut-off last block lacks is zero.
    fn read_file(&self, at: u64, buf: &mut [u8]) -> Result<()> {
        let end = self.file_end.load(Ordering::Relaxed);
        if at + buf.len() as u64 <= end {
            return self.storage.read_at(at, buf);
        }
        let (real, past) = buf.split_at_mut(to_usize(end.saturating_sub(at)));
        past.fill(0);
        if real.is_empty() {
            Ok(())
        } else {
            self.storage.read_at(at, real)
        }
    }

    // --- sector bitmaps -------------------------------------------------------------------------------------------

    fn bitmap_slot(&self, chunk: u64) -> &OnceLock<PagedTable> {
        let slots = self.bitmaps.get_or_init(|| {
            (0..self.geometry.chunk_count)
                .map(|_| OnceLock::new())
                .collect()
        });
        &slots[to_usize(chunk)]
    }

    /// The sector bitmap of a chunk, if it has one.
    fn bitmap(&self, chunk: u64) -> Result<Option<&PagedTable>> {
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
    fn bitmap_of(&self, block: u64) -> Result<(&PagedTable, u64)> {
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
    fn ensure_bitmap(&self, chunk: u64) -> Result<&PagedTable> {
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
    fn bit_run(&self, table: &PagedTable, bit: u64, max: u64) -> Result<(bool, u64)> {
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
    fn change_bits(
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
        for word in all.start / 64..all.end.div_ceil(64) {
            let (inside, ones) = (mask(&all, word), mask(&set, word));
            if table.change_bits(&*self.storage, word, inside & !ones, ones)? {
                self.journal.note(DirtyPage::Bitmap {
                    chunk,
                    page: word / WORDS,
                });
            }
        }
        Ok(())
    }

    // --- changing -------------------------------------------------------------------------------------------------

    fn begin(&self) -> Result<()> {
        if !self.writable {
            return Err(Error::new(
                ErrorKind::WriteProtected,
                "the disk was opened read-only",
            ));
        }
        self.journal.begin(
            &*self.storage,
            || self.used_map(),
            // Every block lies within the file from then on.
            || self.file_end.store(MAX_FILE_SIZE, Ordering::Relaxed),
        )
    }

    /// What of the file is in use; a place used twice makes the disk unfit for writing.
    fn used_map(&self) -> Result<UsedMap> {
        let mut used = UsedMap::default();
        used.mark(0, HEADER_AREA);
        used.mark(self.headers.log_offset, self.headers.log_length);
        for region in &self.regions.all {
            used.mark(region.offset, region.length);
        }
        let mut index = 0;
        while index < self.bat.words() {
            match self.bat.peek(&*self.storage, index)? {
                Peek::Zeros(count) => index += count,
                Peek::Words(words) => {
                    for entry in words {
                        self.mark_entry(&mut used, index, entry)?;
                        index += 1;
                    }
                }
            }
        }
        Ok(used)
    }

    fn mark_entry(&self, used: &mut UsedMap, index: u64, entry: u64) -> Result<()> {
        let span = match self.geometry.slot(index) {
            Slot::Payload(block) if block < self.geometry.block_count => {
                match self.decode(block, entry)? {
                    Block::Present(at) | Block::Partial(at) => Some((at, self.geometry.block_size)),
                    _ => bat::soft_anchor(entry).map(|at| (at, self.geometry.block_size)),
                }
            }
            // Padding means nothing.
            Slot::Payload(_) => None,
            Slot::Bitmap(chunk) if self.metadata.has_parent => {
                bat::bitmap(chunk, entry, self.file_end.load(Ordering::Relaxed))?
                    .map(|at| (at, BITMAP_BLOCK))
            }
            Slot::Bitmap(_) => None,
        };
        match span {
            Some((at, length)) if !used.mark(at, length) => Err(Error::new(
                ErrorKind::BlockAllocationTableCorrupt,
                format!("BAT entry {index} claims space at {at} that something else uses as well"),
            )
            .with_hint(
                "the disk can be read, but not written; 'vhdkit check' lists what overlaps",
            )),
            _ => Ok(()),
        }
    }

    fn set_entry(&self, index: u64, entry: u64) -> Result<()> {
        if self.bat.set(&*self.storage, index, entry)? {
            self.journal.note(DirtyPage::Bat {
                page: index / WORDS,
            });
        }
        Ok(())
    }

    /// Gives a block a new entry and frees the space of its old one.
    fn replace_entry(&self, block: u64, entry: u64) -> Result<()> {
        let index = self.geometry.payload_index(block);
        let old = self.bat.get(&*self.storage, index)?;
        self.set_entry(index, entry)?;
        let held = match self.decode(block, old)? {
            Block::Present(at) | Block::Partial(at) => Some(at),
            _ => bat::soft_anchor(old),
        };
        if let Some(at) = held
            && at != bat::offset(entry)
        {
            self.journal.free((at, self.geometry.block_size));
        }
        Ok(())
    }

    /// Writes within one block whose place or bitmap has to change. The block is locked exclusively.
    fn write_changing(
        &self,
        block: u64,
        within: u64,
        data: &[u8],
        backing: &dyn Backing,
    ) -> Result<()> {
        match self.block(block)? {
            Block::Present(at) => self.storage.write_at(at + within, data),
            Block::Zero => self.write_new(block, within, data),
            Block::NotPresent if !self.metadata.has_parent => self.write_new(block, within, data),
            Block::NotPresent if data.len() as u64 == self.block_length(block) => {
                self.write_new(block, within, data)
            }
            Block::NotPresent => self.write_new_partial(block, within, data, backing),
            Block::Partial(at) => self.write_partial(block, at, within, data, backing),
        }
    }

    /// Into a new block whose other bytes are zeros.
    fn write_new(&self, block: u64, within: u64, data: &[u8]) -> Result<()> {
        let size = self.geometry.block_size;
        let at = self.journal.take_space(&*self.storage, size)?;
        let written = self
            .bat
            .load(&*self.storage, self.geometry.payload_index(block))
            .and_then(|()| self.storage.write_at(at + within, data));
        if let Err(e) = written {
            self.journal.abandon_space(&*self.storage, (at, size));
            return Err(e);
        }
        self.replace_entry(block, bat::entry(bat::PRESENT, at))
    }

    /// Into a new block whose other sectors are the parent's.
    fn write_new_partial(
        &self,
        block: u64,
        within: u64,
        data: &[u8],
        backing: &dyn Backing,
    ) -> Result<()> {
        let (chunk, first_bit) = self.geometry.bitmap_place(block);
        let table = self.ensure_bitmap(chunk)?;
        let size = self.geometry.block_size;
        let (start, sectors) = self.whole_sectors(block, within, data, &|_| Ok(false), backing)?;
        let at = self.journal.take_space(&*self.storage, size)?;
        if let Err(e) = self.storage.write_at(at + start, &sectors) {
            self.journal.abandon_space(&*self.storage, (at, size));
            return Err(e);
        }
        let set = self.bits(first_bit, start, sectors.len() as u64);
        let all = first_bit..first_bit + self.geometry.sectors_per_block();
        self.change_bits(chunk, table, all, set)?;
        self.replace_entry(block, bat::entry(bat::PARTIAL, at))
    }

    /// Into a block of which some sectors are here and others the parent's.
    fn write_partial(
        &self,
        block: u64,
        at: u64,
        within: u64,
        data: &[u8],
        backing: &dyn Backing,
    ) -> Result<()> {
        let (chunk, _) = self.geometry.bitmap_place(block);
        let (table, first_bit) = self.bitmap_of(block)?;
        let sector = self.geometry.sector_size;
        let present = |at: u64| Ok(self.bit_run(table, first_bit + at / sector, 1)?.0);
        let (start, sectors) = self.whole_sectors(block, within, data, &present, backing)?;
        self.storage.write_at(at + start, &sectors)?;
        let set = self.bits(first_bit, start, sectors.len() as u64);
        self.change_bits(chunk, table, set.clone(), set)?;
        self.complete(block, at)
    }

    /// A partially present block of which every sector is here becomes fully present.
    fn complete(&self, block: u64, at: u64) -> Result<()> {
        let (table, first_bit) = self.bitmap_of(block)?;
        let sectors = self.block_length(block) / self.geometry.sector_size;
        let last = self.bit_run(table, first_bit + sectors - 1, 1)?.0;
        if last && self.bit_run(table, first_bit, sectors)? == (true, sectors) {
            self.replace_entry(block, bat::entry(bat::PRESENT, at))?;
        }
        Ok(())
    }

    fn bits(&self, first_bit: u64, start: u64, length: u64) -> Range<u64> {
        let sector = self.geometry.sector_size;
        first_bit + start / sector..first_bit + (start + length).div_ceil(sector)
    }

    /// The data widened to whole sectors where the first or last sector is not here yet: their other bytes come from
    /// the parent. Returns the offset within the block and the bytes.
    fn whole_sectors<'a>(
        &self,
        block: u64,
        within: u64,
        data: &'a [u8],
        present: &dyn Fn(u64) -> Result<bool>,
        backing: &dyn Backing,
    ) -> Result<(u64, std::borrow::Cow<'a, [u8]>)> {
        let sector = self.geometry.sector_size;
        let end = within + data.len() as u64;
        let (mut start, mut stop) = (within, end);
        if !within.is_multiple_of(sector) && !present(within)? {
            start = round_down(within, sector);
        }
        if !end.is_multiple_of(sector) && !present(end)? {
            stop = round_up(end, sector);
        }
        if (start, stop) == (within, end) {
            return Ok((within, data.into()));
        }
        let base = block * self.geometry.block_size;
        let mut bytes = vec![0; to_usize(stop - start)];
        let (head, tail) = (to_usize(within - start), to_usize(end - start));
        if head > 0 {
            backing.read_at(base + start, &mut bytes[..head])?;
        }
        if stop > end {
            backing.read_at(base + end, &mut bytes[tail..])?;
        }
        bytes[head..tail].copy_from_slice(data);
        Ok((start, bytes.into()))
    }

    /// Zeros within one block, which is locked exclusively.
    fn zero_portion(
        &self,
        block: u64,
        within: u64,
        length: u64,
        mode: ZeroMode,
        backing: &dyn Backing,
    ) -> Result<()> {
        let whole = length == self.block_length(block);
        let base = block * self.geometry.block_size;
        let here = self.block(block)?;
        if mode == ZeroMode::KeepAllocated {
            return match here {
                Block::Present(at) => self.storage.zero_range(at + within, length),
                _ if whole => {
                    self.write_new(block, 0, &[])?;
                    match self.block(block)? {
                        Block::Present(at) => self.storage.allocate(at, self.geometry.block_size),
                        _ => Ok(()),
                    }
                }
                _ => self.write_zeros(block, within, length, backing),
            };
        }
        match here {
            Block::Zero => Ok(()),
            Block::NotPresent if backing.is_zero(base + within, length)? => Ok(()),
            Block::Present(at) if self.metadata.leave_blocks_allocated => {
                self.storage.zero_range(at + within, length)
            }
            _ if whole => self.replace_entry(block, bat::entry(bat::ZERO, 0)),
            Block::Present(at) => self.storage.punch_hole(at + within, length),
            _ => self.write_zeros(block, within, length, backing),
        }
    }

    fn write_zeros(
        &self,
        block: u64,
        within: u64,
        length: u64,
        backing: &dyn Backing,
    ) -> Result<()> {
        let zeros = vec![0; to_usize(length.min(256 * 1024))];
        let mut done = 0;
        while done < length {
            let n = (length - done).min(zeros.len() as u64);
            self.write_changing(block, within + done, &zeros[..to_usize(n)], backing)?;
            done += n;
        }
        Ok(())
    }

    fn take_page(&self, page: DirtyPage) -> Option<(u64, Box<[u8]>)> {
        match page {
            DirtyPage::Bat { page } => self.bat.take_page(page),
            DirtyPage::Bitmap { chunk, page } => self.bitmap_slot(chunk).get()?.take_page(page),
        }
    }

    // --- mapping --------------------------------------------------------------------------------------------------

    /// What one BAT entry says of `length` bytes from `within` on; a partially present block's first run only.
    fn portion_kind(&self, block: u64, entry: u64, within: u64, length: u64) -> Result<Extent> {
        let absent = if self.metadata.has_parent {
            ExtentKind::Absent
        } else {
            ExtentKind::Zero
        };
        Ok(match self.decode(block, entry)? {
            Block::NotPresent => Extent {
                length,
                kind: absent,
            },
            Block::Zero => Extent {
                length,
                kind: ExtentKind::Zero,
            },
            Block::Present(at) => Extent {
                length,
                kind: ExtentKind::Data {
                    storage_offset: at + within,
                },
            },
            Block::Partial(at) => {
                let (table, first_bit) = self.bitmap_of(block)?;
                let sector = self.geometry.sector_size;
                let first = within / sector;
                let count = (within + length).div_ceil(sector) - first;
                let (here, run) = self.bit_run(table, first_bit + first, count)?;
                let length = length.min((first + run) * sector - within);
                let kind = if here {
                    ExtentKind::Data {
                        storage_offset: at + within,
                    }
                } else {
                    ExtentKind::Absent
                };
                Extent { length, kind }
            }
        })
    }

    /// Joins what several entries say as long as it continues.
    fn map_blocks(&self, offset: u64, length: u64) -> Result<Extent> {
        let end = offset + length;
        let mut found: Option<Extent> = None;
        let mut at = offset;
        'walk: while at < end {
            let index = self.geometry.payload_index(at / self.geometry.block_size);
            match self.bat.peek(&*self.storage, index)? {
                Peek::Zeros(count) => {
                    // A run of entries that are not present; it may contain bitmap entries, which count no blocks.
                    let last = index + count;
                    let next = match self.geometry.slot(last) {
                        Slot::Payload(block) => block,
                        Slot::Bitmap(chunk) => (chunk + 1) * self.geometry.chunk_ratio,
                    };
                    let until = (next * self.geometry.block_size).min(end);
                    let extent =
                        self.portion_kind(at / self.geometry.block_size, 0, 0, until - at)?;
                    if !join(&mut found, extent) {
                        break 'walk;
                    }
                    at = until;
                }
                Peek::Words(words) => {
                    for (entry, index) in words.into_iter().zip(index..) {
                        let Slot::Payload(_) = self.geometry.slot(index) else {
                            continue;
                        };
                        if at >= end {
                            break 'walk;
                        }
                        let (block, within, n) = self.portion(at, end - at);
                        let extent = self.portion_kind(block, entry, within, n)?;
                        if !join(&mut found, extent) {
                            break 'walk;
                        }
                        at += extent.length;
                        if extent.length < n {
                            break 'walk;
                        }
                    }
                }
            }
        }
        found.ok_or_else(|| corrupt("the extent query found nothing"))
    }
}

/// Makes `found` longer by `next` if that continues it; false if it does not.
fn join(found: &mut Option<Extent>, next: Extent) -> bool {
    let Some(run) = found else {
        *found = Some(next);
        return true;
    };
    let continues = match (run.kind, next.kind) {
        (ExtentKind::Data { storage_offset: a }, ExtentKind::Data { storage_offset: b }) => {
            a + run.length == b
        }
        (a, b) => a == b,
    };
    if continues {
        run.length += next.length;
    }
    continues
}

impl Image for VhdxImage {
    fn info(&self) -> ImageInfo {
        ImageInfo {
            format: Format::Vhdx,
            disk_type: match (
                self.metadata.has_parent,
                self.metadata.leave_blocks_allocated,
            ) {
                (true, _) => DiskType::Differencing,
                (false, true) => DiskType::Fixed,
                (false, false) => DiskType::Dynamic,
            },
            virtual_size: self.metadata.virtual_size,
            logical_sector_size: self.metadata.logical_sector_size,
            physical_sector_size: self.metadata.physical_sector_size,
            block_size: Some(self.metadata.block_size),
            identifier: Some(self.metadata.virtual_disk_id),
            link_identifier: Some(self.journal.data_write_guid()),
            creator: self.creator.clone(),
            created: None,
            geometry: None,
            file_size: self.storage.len().unwrap_or(0),
            log_replayed: self.log_replayed,
            parent: self.metadata.parent.clone(),
        }
    }

    fn virtual_size(&self) -> u64 {
        self.metadata.virtual_size
    }

    fn storage(&self) -> &Arc<dyn Storage> {
        &self.storage
    }

    fn map(&self, offset: u64, length: u64) -> Result<Extent> {
        let mut extent = self.map_blocks(offset, length)?;
        if let ExtentKind::Data { storage_offset } = extent.kind {
            // Holes of the file inside its blocks need not be read by anybody.
            let file_end = self.file_end.load(Ordering::Relaxed);
            let end = (storage_offset + extent.length).min(file_end);
            match self.storage.next_data(storage_offset..end)? {
                Some(data) if data.start <= storage_offset => {
                    extent.length = data.end - storage_offset;
                }
                Some(data) => {
                    extent.length = data.start - storage_offset;
                    extent.kind = ExtentKind::Zero;
                }
                None => extent.kind = ExtentKind::Zero,
            }
        }
        Ok(extent)
    }

    fn read_at(&self, offset: u64, buf: &mut [u8], absent: &mut Vec<Range<u64>>) -> Result<()> {
        let mut done = 0;
        while done < buf.len() {
            let at = offset + done as u64;
            let (block, within, n) = self.portion(at, (buf.len() - done) as u64);
            let part = &mut buf[done..done + to_usize(n)];
            let _guard = self.locks.read(block);
            match self.block(block)? {
                Block::Present(place) => self.read_file(place + within, part)?,
                Block::Zero => part.fill(0),
                Block::NotPresent if self.metadata.has_parent => push(absent, at..at + n),
                Block::NotPresent => part.fill(0),
                Block::Partial(place) => {
                    self.read_partial(block, place, within, part, absent)?;
                }
            }
            done += to_usize(n);
        }
        Ok(())
    }

    fn write_at(&self, offset: u64, data: &[u8], backing: &dyn Backing) -> Result<()> {
        self.begin()?;
        let mut done = 0;
        while done < data.len() {
            let (block, within, n) = self.portion(offset + done as u64, (data.len() - done) as u64);
            let part = &data[done..done + to_usize(n)];
            done += to_usize(n);
            {
                let _guard = self.locks.read(block);
                if let Block::Present(at) = self.block(block)? {
                    self.storage.write_at(at + within, part)?;
                    continue;
                }
                if self.write_in_place(block, within, part)? {
                    continue;
                }
            }
            let _guard = self.locks.write(block);
            self.write_changing(block, within, part, backing)?;
        }
        Ok(())
    }

    fn zero(&self, offset: u64, length: u64, mode: ZeroMode, backing: &dyn Backing) -> Result<()> {
        self.begin()?;
        let mut done = 0;
        while done < length {
            let (block, within, n) = self.portion(offset + done, length - done);
            let _guard = self.locks.write(block);
            self.zero_portion(block, within, n, mode, backing)?;
            done += n;
        }
        Ok(())
    }

    fn discard(&self, offset: u64, length: u64, _backing: &dyn Backing) -> Result<()> {
        self.begin()?;
        if self.metadata.leave_blocks_allocated {
            return Ok(());
        }
        let mut done = 0;
        while done < length {
            let (block, within, n) = self.portion(offset + done, length - done);
            let _guard = self.locks.write(block);
            match self.block(block)? {
                Block::Present(_) | Block::Partial(_) if n == self.block_length(block) => {
                    self.replace_entry(block, bat::entry(bat::UNMAPPED, 0))?;
                }
                Block::Present(at) => self.storage.punch_hole(at + within, n)?,
                _ => {}
            }
            done += n;
        }
        Ok(())
    }

    fn flush(&self) -> Result<()> {
        self.journal
            .flush(&*self.storage, &|page| self.take_page(page))
    }

    fn close(&self) -> Result<()> {
        if !self.writable {
            return Ok(());
        }
        self.journal
            .close(&*self.storage, &|page| self.take_page(page))
    }
}

impl VhdxImage {
    fn read_partial(
        &self,
        block: u64,
        place: u64,
        within: u64,
        part: &mut [u8],
        absent: &mut Vec<Range<u64>>,
    ) -> Result<()> {
        let (table, first_bit) = self.bitmap_of(block)?;
        let sector = self.geometry.sector_size;
        let base = block * self.geometry.block_size;
        let end = within + part.len() as u64;
        let mut at = within;
        while at < end {
            let first = at / sector;
            let (here, run) =
                self.bit_run(table, first_bit + first, end.div_ceil(sector) - first)?;
            let until = end.min((first + run) * sector);
            if here {
                self.read_file(
                    place + at,
                    &mut part[to_usize(at - within)..to_usize(until - within)],
                )?;
            } else {
                push(absent, base + at..base + until);
            }
            at = until;
        }
        Ok(())
    }

    /// Writes to a partially present block if every touched sector is here already.
    fn write_in_place(&self, block: u64, within: u64, data: &[u8]) -> Result<bool> {
        let Block::Partial(at) = self.block(block)? else {
            return Ok(false);
        };
        let (table, first_bit) = self.bitmap_of(block)?;
        let touched = self.bits(first_bit, within, data.len() as u64);
        let count = touched.end - touched.start;
        if self.bit_run(table, touched.start, count)? != (true, count) {
            return Ok(false);
        }
        self.storage.write_at(at + within, data)?;
        Ok(true)
    }
}

/// Adds a range, joined with the last one where they touch.
fn push(absent: &mut Vec<Range<u64>>, range: Range<u64>) {
    match absent.last_mut() {
        Some(last) if last.end == range.start => last.end = range.end,
        _ => absent.push(range),
    }
}

fn read_creator(storage: &dyn Storage) -> Result<Option<String>> {
    let mut bytes = [0; CREATOR_LENGTH];
    storage.read_at(CREATOR_OFFSET, &mut bytes)?;
    let units = bytes
        .chunks_exact(2)
        .map(|unit| u16::from_le_bytes([unit[0], unit[1]]))
        .take_while(|&unit| unit != 0);
    let text: String = char::decode_utf16(units)
        .map(|c| c.unwrap_or(char::REPLACEMENT_CHARACTER))
        .filter(|c| !c.is_control())
        .collect();
    Ok((!text.is_empty()).then_some(text))
}
