//! An open VHDX file (format sheet 4.3).

mod bitmap;
mod identity;
mod items;
mod map;
mod pack;
mod resize;
mod usage;
mod write;

use std::io::{PipeReader, PipeWriter};
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};

use uuid::Uuid;

use crate::block_lock::BlockLocks;
use crate::error::{Error, ErrorKind, Result};
use crate::image::{
    AllocatedBlock, Backing, DiskType, Extent, ExtentKind, Format, Image, ImageInfo, Pace, Packed,
    PackingTold, ParentLink, SourceRun, Told, Usage, ZeroMode, copy_placed,
};
use crate::num::{round_down, round_up, to_usize};
use crate::storage::Storage;
use crate::vhdx::bat::{self, Block, Geometry};
use crate::vhdx::header::{Headers, corrupt};
use crate::vhdx::journal::Journal;
use crate::vhdx::layout::{CREATOR_LENGTH, CREATOR_OFFSET, HEADER_AREA, MAX_FILE_SIZE};
use crate::vhdx::log;
use crate::vhdx::metadata::Metadata;
use crate::vhdx::pages::PagedTable;
use crate::vhdx::region::{self, Regions};

/// See the module.
pub struct VhdxImage {
    storage: Arc<dyn Storage>,
    metadata: Metadata,
    geometry: Geometry,
    regions: Regions,
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
    /// Counts the changes of BAT entries.
    changes: AtomicU64,
    packing: Option<pack::Packing>,
    /// Pages of places that may be used again were lent: they are punched before they are written over.
    has_lent: AtomicBool,
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
        if !crate::vhdx::detect(&*storage)? {
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
            headers,
            log_replayed && writable,
            file_length,
            metadata.has_parent,
            if writable {
                region::repair_pages(&*storage)?
            } else {
                Vec::new()
            },
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
            creator,
            log_replayed,
            writable,
            journal,
            changes: AtomicU64::new(0),
            packing: None,
            has_lent: AtomicBool::new(false),
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
        let found = bat::payload(block, entry, self.metadata.has_parent, file_end)?;
        match found {
            Block::Present(at) | Block::Partial(at)
                if self.regions.overlap(&(at..at + self.geometry.block_size)) =>
            {
                Err(bat::over_structures(block, entry))
            }
            _ => Ok(found),
        }
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

    fn lend(&self, offset: u64, length: u64, pipe: &PipeWriter) -> Result<u64> {
        let (block, within, n) = self.portion(offset, length);
        let _guard = self.locks.read(block);
        let Block::Present(place) = self.block(block)? else {
            return Ok(0);
        };
        let start = place + within;
        let mut end = (start + n).min(self.file_end.load(Ordering::Relaxed));
        if self.writable {
            let safe = whole_folios(&(place..place + self.geometry.block_size));
            if start < safe.start {
                return Ok(0);
            }
            end = end.min(safe.end);
            self.has_lent.store(true, Ordering::Relaxed);
        }
        if start >= end {
            return Ok(0);
        }
        Ok(self.storage.lend(start, end - start, pipe))
    }

    fn write_at(&self, offset: u64, data: &[u8], backing: &dyn Backing) -> Result<()> {
        self.check_writable()?;
        self.begin()?;
        let mut done = 0;
        while done < data.len() {
            let (block, within, n) = self.portion(offset + done as u64, (data.len() - done) as u64);
            let part = &data[done..done + to_usize(n)];
            done += to_usize(n);
            {
                let _guard = self.locks.read(block);
                // A close that this waited for is the end of all writing.
                self.journal.check()?;
                if let Block::Present(at) = self.block(block)? {
                    self.storage.write_at(at + within, part)?;
                    continue;
                }
                if self.write_in_place(block, within, part)? {
                    continue;
                }
            }
            let _guard = self.locks.write(block);
            self.journal.check()?;
            self.write_changing(block, within, part, backing)?;
        }
        Ok(())
    }

    fn write_pipe(&self, offset: u64, length: u64, pipe: &PipeReader) -> Result<u64> {
        self.check_writable()?;
        self.begin()?;
        let (block, within, n) = self.portion(offset, length);
        let _guard = self.locks.read(block);
        self.journal.check()?;
        match self.block(block)? {
            Block::Present(at) => Ok(self.storage.write_pipe(at + within, n, pipe)),
            _ => Ok(0),
        }
    }

    fn zero(&self, offset: u64, length: u64, mode: ZeroMode, backing: &dyn Backing) -> Result<()> {
        self.check_writable()?;
        let mut done = 0;
        while done < length {
            if mode == ZeroMode::MayUnmap {
                done += self.zeros_at(offset + done, length - done)?;
                if done == length {
                    break;
                }
            }
            let (block, within, n) = self.portion(offset + done, length - done);
            let _guard = self.locks.write(block);
            self.journal.check()?;
            self.zero_portion(block, within, n, mode, backing)?;
            done += n;
        }
        Ok(())
    }

    fn discard(&self, offset: u64, length: u64, _backing: &dyn Backing) -> Result<()> {
        self.check_writable()?;
        if self.metadata.leave_blocks_allocated {
            return Ok(());
        }
        let mut done = 0;
        while done < length {
            done += self.zeros_at(offset + done, length - done)?;
            if done == length {
                break;
            }
            let (block, within, n) = self.portion(offset + done, length - done);
            let _guard = self.locks.write(block);
            self.journal.check()?;
            self.discard_portion(block, within, n)?;
            done += n;
        }
        Ok(())
    }

    fn copy_from(
        &self,
        source: &dyn Storage,
        runs: Vec<SourceRun>,
        copied: Told<'_>,
    ) -> Result<Vec<SourceRun>> {
        self.check_writable()?;
        self.begin()?;
        copy_placed(&*self.storage, source, runs, copied, |run| self.place(run))
    }

    fn link_follows_content(&self) -> bool {
        true
    }

    fn flush(&self) -> Result<()> {
        self.journal
            .flush(&*self.storage, &|page| self.take_page(page))
    }

    fn close(&self) -> Result<()> {
        if !self.writable {
            return Ok(());
        }
        // No write is under way then, and none starts before it has seen that the disk is closed.
        let _alone = self.locks.write_all();
        self.journal
            .close(&*self.storage, &|page| self.take_page(page))
    }

    fn prepare(&self, pace: Pace<'_>) -> Result<()> {
        self.begin_telling(pace)
    }

    fn usage_telling(&self, pace: Pace<'_>) -> Result<Usage> {
        self.space_usage(pace)
    }

    fn length_with(&self, size: u64, blocks: u64) -> Result<u64> {
        self.longest(size, blocks)
    }

    fn allocated_blocks(&self, offset: u64, most: usize) -> Result<Vec<AllocatedBlock>> {
        self.first_held(offset, most)
    }

    fn release(&mut self, block: &AllocatedBlock, _backing: &dyn Backing) -> Result<bool> {
        self.release_block(block)
    }

    fn pack_telling(&mut self, budget: u64, told: PackingTold<'_>) -> Result<Packed> {
        self.pack_step(budget, told)
    }

    fn prepare_packing(&mut self, pace: Pace<'_>) -> Result<()> {
        self.journal.defer_punching(true);
        self.prepare(pace)
    }

    fn end_packing(&mut self) {
        self.stop_packing();
    }

    fn resize(&mut self, size: u64, backing: &dyn Backing, pace: Pace<'_>) -> Result<()> {
        self.resize_disk(size, backing, pace)
    }

    fn set_parent(&mut self, link: &ParentLink) -> Result<()> {
        self.replace_parent(link)
    }

    fn set_parent_identifiers(&mut self, identifiers: &[Uuid]) -> Result<()> {
        self.replace_parent_identifiers(identifiers)
    }

    fn set_link_identifier(&mut self, identifier: Uuid) -> Result<()> {
        self.choose_link_identifier(identifier)
    }

    fn set_identifier(&mut self, identifier: Uuid) -> Result<()> {
        self.replace_identifier(identifier)
    }

    fn set_physical_sector_size(&mut self, size: u32) -> Result<()> {
        self.replace_physical_sector_size(size)
    }

    fn user_metadata(&self) -> Result<Vec<(Uuid, u32)>> {
        self.user_items()
    }

    fn read_user_metadata(&self, item: Uuid) -> Result<Vec<u8>> {
        self.read_user_item(item)
    }

    fn write_user_metadata(&mut self, item: Uuid, value: Option<&[u8]>) -> Result<()> {
        self.write_user_item(item, value)
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
}

/// What of a place may be lent although the place may be freed and used again. A place that is freed is punched before
/// it is used again (S2 in `space.rs`), and what is punched is gone from the page cache: whoever still has its pages keeps
/// what was in them. But the cache is made of folios, and one of which only a part is punched stays, with that part zeroed
/// and then filled anew. Folios are aligned to their size, so those inside the place go entirely.
fn whole_folios(place: &Range<u64>) -> Range<u64> {
    let page = rustix::param::page_size() as u64;
    // The system's limits: what one entry of an upper page table covers, and 2048 pages.
    let largest = page * (page / 8).min(2048);
    round_up(place.start, largest)..round_down(place.end, largest)
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

#[cfg(test)]
mod tests;
