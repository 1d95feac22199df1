//! A new VHDX file: payload first, then metadata, the signature last (format sheet 7).

use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use uuid::Uuid;

use super::bat::{self, Geometry};
use super::header::Headers;
use super::layout::{
    CREATOR_OFFSET, HEADER_OFFSETS, REGION_BAT, REGION_METADATA, REGION_TABLE_OFFSETS, SIGNATURE,
};
use super::locator;
use super::metadata::{self, Metadata};
use super::region::{self, Region};
use super::space::grow;
use crate::error::{Error, ErrorKind, Result};
use crate::image::{CreateParameters, DiskType, ImageBuilder, Pace};
use crate::num::{MIB, round_up, to_usize};
use crate::storage::{Storage, in_steps};

/// 2 MiB: discards of a guest give space back, scattered data does not inflate the file.
const DEFAULT_BLOCK_SIZE: u64 = 2 * MIB;
const LOG_OFFSET: u64 = MIB;
const LOG_LENGTH: u64 = MIB;
const METADATA_OFFSET: u64 = 2 * MIB;
const METADATA_LENGTH: u64 = MIB;
const BAT_OFFSET: u64 = 3 * MIB;
/// The file is made longer in such steps while payload is placed.
const GROWTH: u64 = 256 * MIB;
/// If it is known how long it will become: in such steps, with the space reserved.
const RESERVE: u64 = 1024 * MIB;

/// See the module.
pub struct VhdxBuilder {
    storage: Arc<dyn Storage>,
    geometry: Geometry,
    metadata: Metadata,
    locator: Option<Vec<u8>>,
    bat_length: u64,
    ids: [Uuid; 2],
    fixed: bool,
    blocks: Mutex<Blocks>,
}

struct Blocks {
    /// Pages of the BAT that hold anything, by their number: 512 entries each.
    pages: std::collections::BTreeMap<u64, Box<[u64]>>,
    next: u64,
    file_length: u64,
    /// Where the file is expected to end.
    expected_end: u64,
    /// What was reserved ahead of its use.
    reserved: Option<Range<u64>>,
}

impl VhdxBuilder {
    /// Starts a file on an empty storage. `pace` is told how much of the space of a fixed disk is reserved, in bytes, and
    /// may stop it.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidSize`], [`ErrorKind::InvalidBlockSize`], [`ErrorKind::UnsupportedSectorSize`],
    /// [`ErrorKind::InvalidType`], [`ErrorKind::HostLimitation`], [`ErrorKind::DiskFull`].
    pub fn new(
        storage: Arc<dyn Storage>,
        parameters: &CreateParameters,
        pace: Pace<'_>,
    ) -> Result<Self> {
        if !storage.grows_with_zeros() {
            return Err(Error::new(
                ErrorKind::HostLimitation,
                "a VHDX cannot be made on a block device",
            )
            .with_hint("make a file, or choose the raw format"));
        }
        let sector = parameters.logical_sector_size.unwrap_or(512);
        let physical = parameters.physical_sector_size.unwrap_or(4096);
        metadata::check_sector_size(sector)?;
        metadata::check_sector_size(physical)?;
        metadata::check_virtual_size(parameters.virtual_size, sector)?;
        let block_size = parameters.block_size.unwrap_or(DEFAULT_BLOCK_SIZE);
        metadata::check_block_size(block_size)?;
        let parent = match (parameters.disk_type, &parameters.parent) {
            (DiskType::Differencing, Some(parent)) => Some(parent),
            (DiskType::Fixed | DiskType::Dynamic, None) => None,
            _ => {
                return Err(Error::new(
                    ErrorKind::InvalidType,
                    "a differencing disk has a parent, any other has none",
                ));
            }
        };
        let ids = [parameters.identifiers.next(), parameters.identifiers.next()];
        let virtual_disk_id = parameters
            .identifier
            .or(parent.and_then(|p| p.disk_identifier))
            .unwrap_or_else(|| parameters.identifiers.next());
        let geometry = Geometry::new(block_size, sector, parameters.virtual_size);
        let bat_length = round_up(geometry.entries_allocated() * 8, MIB);
        let fixed = parameters.disk_type == DiskType::Fixed;
        let start = BAT_OFFSET + bat_length;
        let builder = Self {
            geometry,
            metadata: Metadata {
                block_size,
                leave_blocks_allocated: fixed,
                has_parent: parent.is_some(),
                virtual_size: parameters.virtual_size,
                virtual_disk_id,
                logical_sector_size: sector,
                physical_sector_size: physical,
                parent: None,
            },
            locator: parent.map(locator::encode).transpose()?,
            bat_length,
            ids,
            fixed,
            blocks: Mutex::new(Blocks {
                pages: std::collections::BTreeMap::new(),
                next: start,
                file_length: start,
                expected_end: start,
                reserved: None,
            }),
            storage,
        };
        // The log and metadata are really allocated, so that a full host disk cannot stop a log write later. The BAT
        // may stay a hole: zeros are valid entries.
        builder.storage.set_len(start)?;
        builder
            .storage
            .allocate(LOG_OFFSET, LOG_LENGTH + METADATA_LENGTH)?;
        if fixed {
            builder.place_all(pace)?;
        }
        Ok(builder)
    }

    /// Fixed: every block has its place, in order.
    fn place_all(&self, pace: Pace<'_>) -> Result<()> {
        let mut blocks = self.lock();
        let start = blocks.next;
        let length = self.geometry.block_count * self.geometry.block_size;
        in_steps(start..start + length, pace, |at, n| {
            self.storage.allocate(at, n)
        })?;
        if self.storage.len()? < start + length {
            self.storage.set_len(start + length)?;
        }
        for block in 0..self.geometry.block_count {
            let at = start + block * self.geometry.block_size;
            blocks.set(
                self.geometry.payload_index(block),
                bat::entry(bat::PRESENT, at),
            );
        }
        blocks.next = start + length;
        blocks.file_length = blocks.next;
        Ok(())
    }

    /// Makes the file long enough for what was just placed, and for more.
    fn grow(&self, blocks: &mut Blocks) -> Result<()> {
        let old = blocks.file_length;
        if blocks.expected_end < blocks.next {
            let longer = round_up(blocks.next, GROWTH);
            blocks.file_length = grow(&*self.storage, longer, blocks.next)?;
            return Ok(());
        }
        let longer = blocks.expected_end.min(blocks.next + RESERVE);
        blocks.file_length = grow(&*self.storage, longer, blocks.next)?;
        if self.storage.reserve_bulk(old, blocks.file_length - old)? {
            let start = blocks.reserved.as_ref().map_or(old, |range| range.start);
            blocks.reserved = Some(start..blocks.file_length);
        }
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, Blocks> {
        self.blocks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn write_metadata(&self, blocks: &Blocks) -> Result<()> {
        let storage = &*self.storage;
        storage.write_at(
            METADATA_OFFSET,
            &self.metadata.encode(self.locator.as_deref())?,
        )?;
        // Neighbouring pages of the BAT in one write.
        let mut run: Vec<u8> = Vec::new();
        let mut run_page = 0;
        for (&page, words) in &blocks.pages {
            let continues = run_page + run.len() as u64 / 4096 == page && run.len() < 1 << 20;
            if !run.is_empty() && !continues {
                storage.write_at(BAT_OFFSET + run_page * 4096, &run)?;
                run.clear();
            }
            if run.is_empty() {
                run_page = page;
            }
            run.extend(words.iter().flat_map(|word| word.to_le_bytes()));
        }
        if !run.is_empty() {
            storage.write_at(BAT_OFFSET + run_page * 4096, &run)?;
        }
        let regions = [
            Region {
                guid: REGION_BAT,
                offset: BAT_OFFSET,
                length: self.bat_length,
                required: true,
            },
            Region {
                guid: REGION_METADATA,
                offset: METADATA_OFFSET,
                length: METADATA_LENGTH,
                required: true,
            },
        ];
        let table = region::encode(&regions)?;
        for offset in REGION_TABLE_OFFSETS {
            storage.write_at(offset, &table)?;
        }
        let headers = Headers {
            current: 0,
            other_agrees: true,
            sequence_number: 0,
            file_write_guid: self.ids[0],
            data_write_guid: self.ids[1],
            log_guid: Uuid::nil(),
            log_offset: LOG_OFFSET,
            log_length: LOG_LENGTH,
        };
        for (slot, offset) in HEADER_OFFSETS.into_iter().enumerate() {
            storage.write_at(offset, &headers.encode(slot as u64 + 1)?)?;
        }
        let creator: Vec<u8> = CREATOR.encode_utf16().flat_map(u16::to_le_bytes).collect();
        storage.write_at(CREATOR_OFFSET, &creator)
    }
}

const CREATOR: &str = concat!("vhdkit ", env!("CARGO_PKG_VERSION"));

impl Blocks {
    fn get(&self, index: u64) -> u64 {
        self.pages
            .get(&(index / 512))
            .map_or(0, |page| page[to_usize(index % 512)])
    }

    fn set(&mut self, index: u64, entry: u64) {
        let page = self
            .pages
            .entry(index / 512)
            .or_insert_with(|| vec![0; 512].into());
        page[to_usize(index % 512)] = entry;
    }
}

impl ImageBuilder for VhdxBuilder {
    fn storage(&self) -> &Arc<dyn Storage> {
        &self.storage
    }

    fn placement_unit(&self) -> u64 {
        if self.fixed {
            1 << 40
        } else {
            self.geometry.block_size
        }
    }

    fn expect_blocks(&self, count: u64) {
        if !self.fixed {
            let mut blocks = self.lock();
            let payload = count.saturating_mul(self.geometry.block_size);
            blocks.expected_end = blocks.next.saturating_add(payload);
        }
    }

    fn place(&self, offset: u64, length: u64) -> Result<u64> {
        debug_assert!(offset + length <= self.geometry.virtual_size);
        let size = self.geometry.block_size;
        let (block, within) = (offset / size, offset % size);
        let index = self.geometry.payload_index(block);
        let mut blocks = self.lock();
        let known = bat::offset(blocks.get(index));
        if known != 0 {
            return Ok(known + within);
        }
        if self.metadata.has_parent {
            return Err(Error::new(
                ErrorKind::NotSupported,
                "payload cannot be placed in a new differencing disk; write to it once it is made",
            ));
        }
        let at = blocks.next;
        blocks.next += size;
        if blocks.next > blocks.file_length {
            self.grow(&mut blocks)?;
        }
        blocks.set(index, bat::entry(bat::PRESENT, at));
        Ok(at + within)
    }

    fn finish(&self) -> Result<()> {
        let mut blocks = self.lock();
        if let Some(reserved) = blocks.reserved.take() {
            self.storage
                .release_unwritten(reserved.start..reserved.end.min(blocks.next))?;
        }
        self.write_metadata(&blocks)?;
        if blocks.file_length != blocks.next {
            self.storage.set_len(blocks.next)?;
            blocks.file_length = blocks.next;
        }
        if self.storage.survives_crash() {
            self.storage.flush()?;
        }
        self.storage.write_at(0, SIGNATURE)?;
        self.storage.flush()
    }
}
