//! [`VhdBuilder`]: new VHD files.

use std::collections::HashMap;
use std::num::NonZeroU32;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use zerocopy::{FromZeros, IntoBytes};

use super::bat::{PER_SECTOR, write_unallocated, write_unallocated_bulk};
use super::bitmap::SectorBitmap;
use super::geometry;
use super::header::{BlockShape, MAX_BLOCKS};
use super::layout::{
    EPOCH, FEATURE_RESERVED, FOOTER_COOKIE, FOOTER_SIZE, Footer, HEADER_COOKIE, HEADER_SIZE,
    Header, NO_OFFSET, SECTOR, TYPE_DIFFERENCING, TYPE_DYNAMIC, TYPE_FIXED, UNALLOCATED, VERSION,
};
use super::locator;
use crate::error::{Error, ErrorKind, Result};
use crate::image::{CreateParameters, DiskType, ImageBuilder, Pace};
use crate::num::{GIB, KIB, MIB, round_down, round_up, to_usize};
use crate::storage::{Storage, in_steps};

/// Largest disk: the limit of Microsoft's products, for all three types.
pub(crate) const MAX_SIZE: u64 = 2040 * GIB;
/// Block sizes that all readers accept.
const BLOCK_SIZES: std::ops::RangeInclusive<u64> = 64 * KIB..=2 * MIB;
const DEFAULT_BLOCK_SIZE: u64 = 2 * MIB;

/// Room for each parent locator, so that another path can be stored in its place.
pub(super) const LOCATOR_ROOM: u64 = 4096;

/// Where the BAT of new files is: behind the footer's copy and the header.
const TABLE_OFFSET: u64 = FOOTER_SIZE + HEADER_SIZE;

/// If it is known how long the file will become it is made longer in such steps, with the space reserved.
const RESERVE: u64 = GIB;

/// Makes a VHD file: payload first, tables at the end, footers last.
///
/// The disk has exactly the size that was asked for: it is not rounded to a geometry.
pub struct VhdBuilder {
    storage: Arc<dyn Storage>,
    footer: Footer,
    /// `None` for fixed disks.
    sparse: Option<SparseBuilder>,
}

struct SparseBuilder {
    shape: BlockShape,
    differencing: bool,
    header: Box<Header>,
    /// Locator data and where in the file it goes.
    locators: Vec<(u64, Vec<u8>)>,
    state: Mutex<State>,
}

struct State {
    /// Where blocks are, in sectors. `None` is zero in memory: what nobody has touched takes none.
    entries: Vec<Option<NonZeroU32>>,
    /// The blocks that have a place are among these.
    placed: Range<u64>,
    /// Of blocks of a differencing disk that are here in part.
    bitmaps: HashMap<u64, SectorBitmap>,
    end: u64,
    /// Where the file is expected to end.
    expected_end: u64,
    /// What the file was made longer by, ahead of its use.
    reserved: Range<u64>,
    /// With space, at least in part.
    is_reserved: bool,
}

impl VhdBuilder {
    /// Everything else is durable before a footer is written, so that no crash leaves half a disk that opens.
    fn order(&self) -> Result<()> {
        if self.storage.survives_crash() {
            self.storage.flush()?;
        }
        Ok(())
    }

    /// Starts a VHD file on an empty storage. The space of a fixed disk is reserved here; `pace` is told how much of it is,
    /// in bytes, and may stop it.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidSize`], [`ErrorKind::InvalidBlockSize`], [`ErrorKind::UnsupportedSectorSize`],
    /// [`ErrorKind::InvalidType`] or [`ErrorKind::InvalidParameter`] if a parent is missing or too many;
    /// [`ErrorKind::HostLimitation`] on a block device; [`ErrorKind::DiskFull`].
    pub fn new(
        storage: Arc<dyn Storage>,
        parameters: &CreateParameters,
        pace: Pace<'_>,
    ) -> Result<Self> {
        let size = parameters.virtual_size;
        check_parameters(parameters)?;
        if !storage.grows_with_zeros() {
            return Err(Error::new(
                ErrorKind::HostLimitation,
                "a VHD file cannot be made on a block device",
            )
            .with_hint("choose a file, or the raw format"));
        }
        if !storage.is_empty()? {
            return Err(Error::new(
                ErrorKind::AlreadyExists,
                "the file to make is not empty",
            ));
        }
        let footer = new_footer(parameters);
        let sparse = match parameters.disk_type {
            DiskType::Fixed => {
                storage.set_len(size)?;
                in_steps(0..size + FOOTER_SIZE, pace, |at, n| storage.allocate(at, n))?;
                None
            }
            DiskType::Dynamic | DiskType::Differencing => Some(SparseBuilder::new(parameters)?),
        };
        Ok(Self {
            storage,
            footer,
            sparse,
        })
    }
}

pub(super) fn check_parameters(parameters: &CreateParameters) -> Result<()> {
    let size = parameters.virtual_size;
    if size == 0 || !size.is_multiple_of(SECTOR) {
        return Err(Error::new(
            ErrorKind::InvalidSize,
            format!("a size of {size} bytes is not a positive multiple of 512"),
        ));
    }
    if size > MAX_SIZE {
        return Err(Error::new(
            ErrorKind::InvalidSize,
            format!("a VHD disk has at most 2040 GiB ({MAX_SIZE} bytes), not {size}"),
        )
        .with_hint("use the VHDX format, which reaches to 64 TiB"));
    }
    for sector in [
        parameters.logical_sector_size,
        parameters.physical_sector_size,
    ] {
        if let Some(sector) = sector
            && sector != 512
        {
            return Err(Error::new(
                ErrorKind::UnsupportedSectorSize,
                format!("a VHD disk has sectors of 512 bytes, not {sector}"),
            )
            .with_hint("use the VHDX format for sectors of 4096 bytes"));
        }
    }
    match (parameters.disk_type, &parameters.parent) {
        (DiskType::Differencing, None) => Err(Error::new(
            ErrorKind::InvalidParameter,
            "a differencing disk needs a parent",
        )),
        (DiskType::Fixed | DiskType::Dynamic, Some(_)) => Err(Error::new(
            ErrorKind::InvalidType,
            format!("a {} disk has no parent", parameters.disk_type.name()),
        )),
        _ => Ok(()),
    }
}

fn block_shape(parameters: &CreateParameters) -> Result<BlockShape> {
    let block_size = parameters.block_size.unwrap_or(DEFAULT_BLOCK_SIZE);
    if !block_size.is_power_of_two() || !BLOCK_SIZES.contains(&block_size) {
        return Err(Error::new(
            ErrorKind::InvalidBlockSize,
            format!(
                "a block size of {block_size} bytes is not a power of two from {} to {}",
                BLOCK_SIZES.start(),
                BLOCK_SIZES.end()
            ),
        )
        .with_hint("2 MiB is usual; Windows also offers 512 KiB"));
    }
    debug_assert!(parameters.virtual_size.div_ceil(block_size) <= MAX_BLOCKS);
    Ok(BlockShape::new(block_size))
}

/// The format's time stamps begin in 2000 and end in 2136.
pub(super) fn timestamp(unix: i64) -> u32 {
    u32::try_from(unix.saturating_sub(EPOCH).max(0)).unwrap_or(u32::MAX)
}

pub(super) fn new_footer(parameters: &CreateParameters) -> Footer {
    let mut footer = Footer::new_zeroed();
    let size = parameters.virtual_size;
    let (cylinders, heads, sectors_per_track) = geometry::of_size(size);
    footer.cookie = FOOTER_COOKIE;
    footer.features = FEATURE_RESERVED.into();
    footer.version = VERSION.into();
    footer.data_offset = NO_OFFSET.into();
    footer.timestamp = timestamp(parameters.created).into();
    sign_as_creator(&mut footer);
    footer.original_size = size.into();
    footer.current_size = size.into();
    footer.cylinders = cylinders.into();
    footer.heads = heads;
    footer.sectors_per_track = sectors_per_track;
    footer.disk_type = match parameters.disk_type {
        DiskType::Fixed => TYPE_FIXED,
        DiskType::Dynamic => TYPE_DYNAMIC,
        DiskType::Differencing => TYPE_DIFFERENCING,
    }
    .into();
    if parameters.disk_type != DiskType::Fixed {
        footer.data_offset = FOOTER_SIZE.into();
    }
    let identifier = parameters
        .identifier
        .unwrap_or_else(|| parameters.identifiers.next());
    footer.unique_id = identifier.into_bytes();
    footer.sign();
    footer
}

/// QEMU before version 10 takes the size from the geometry, which is smaller, unless the creator is one of a few that it
/// knows. Windows' own code is among them, and is what a program compatible with it may call itself.
pub(super) fn sign_as_creator(footer: &mut Footer) {
    footer.creator_application = *b"win ";
    footer.creator_version = 0x000A_0000.into();
    footer.creator_host_os = *b"Wi2k";
}

impl SparseBuilder {
    fn new(parameters: &CreateParameters) -> Result<Self> {
        let shape = block_shape(parameters)?;
        let blocks = parameters.virtual_size.div_ceil(shape.block_size);
        let mut header = Box::new(Header::new_zeroed());
        header.cookie = HEADER_COOKIE;
        header.data_offset = NO_OFFSET.into();
        header.table_offset = TABLE_OFFSET.into();
        header.version = VERSION.into();
        header.max_table_entries = u32::try_from(blocks).unwrap_or(u32::MAX).into();
        header.block_size = u32::try_from(shape.block_size).unwrap_or(u32::MAX).into();
        let mut end = TABLE_OFFSET + round_up(blocks * 4, SECTOR);
        let mut locators = Vec::new();
        if let Some(parent) = &parameters.parent {
            header.parent_unique_id = parent.identifier.into_bytes();
            header.parent_timestamp = timestamp(parent.modified).into();
            header.parent_unicode_name = locator::encode_name(parent);
            for (slot, (code, bytes)) in header
                .parent_locators
                .iter_mut()
                .zip(locator::encode(parent))
            {
                let length = bytes.len() as u64;
                let room = round_up(length, LOCATOR_ROOM);
                slot.platform_code = code;
                slot.platform_data_space = u32::try_from(room).unwrap_or(u32::MAX).into();
                slot.platform_data_length = u32::try_from(length).unwrap_or(u32::MAX).into();
                slot.platform_data_offset = end.into();
                locators.push((end, bytes));
                end += room;
            }
        }
        header.sign();
        Ok(Self {
            shape,
            differencing: parameters.parent.is_some(),
            header,
            locators,
            state: Mutex::new(State {
                // Whole sectors: what is behind the last entry is padding.
                entries: vec![None; to_usize(round_up(blocks, PER_SECTOR))],
                placed: 0..0,
                bitmaps: HashMap::new(),
                end,
                expected_end: end,
                reserved: end..end,
                is_reserved: false,
            }),
        })
    }

    fn expect_blocks(&self, count: u64) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let first = self.shape.place_behind(state.end);
        let stride = self.shape.place_behind(first + self.shape.total()) - first;
        state.expected_end = first.saturating_add(count.saturating_mul(stride));
    }

    fn place(&self, storage: &dyn Storage, offset: u64, length: u64) -> Result<u64> {
        let (block, within) = (
            offset / self.shape.block_size,
            offset % self.shape.block_size,
        );
        // The last sector of a raw disk may be short: what it lacks reads as zeros.
        if within + length > self.shape.block_size || !offset.is_multiple_of(SECTOR) {
            return Err(Error::new(
                ErrorKind::InvalidParameter,
                format!("{length} bytes at {offset} are not sectors of one block"),
            ));
        }
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let end = state.end;
        let Some(entry) = state
            .entries
            .get_mut(to_usize(block))
            .filter(|_| block < u64::from(self.header.max_table_entries.get()))
        else {
            return Err(Error::new(
                ErrorKind::BeyondEnd,
                format!("offset {offset} is past the end of the disk"),
            ));
        };
        let is_new = entry.is_none();
        let at = if let Some(sector) = *entry {
            u64::from(sector.get()) * SECTOR
        } else {
            let at = self.shape.place_behind(end);
            let sector = u32::try_from(at / SECTOR)
                .ok()
                .filter(|&e| e < UNALLOCATED - 1)
                .and_then(NonZeroU32::new)
                .ok_or_else(|| {
                    Error::new(
                        ErrorKind::BlockAllocationFailure,
                        format!("a block at {at} is past the 2 TiB that a VHD file can address"),
                    )
                })?;
            *entry = Some(sector);
            state.placed = match state.placed.clone() {
                none if none.is_empty() => block..block + 1,
                placed => placed.start.min(block)..placed.end.max(block + 1),
            };
            at
        };
        if is_new {
            state.end = at + self.shape.total();
            if state.end > state.reserved.end && state.end <= state.expected_end {
                let (from, to) = (
                    state.reserved.end,
                    state.expected_end.min(state.end + RESERVE),
                );
                // Not asked again if it is of no use here.
                state.reserved.end = to;
                if storage.set_len(to).is_ok() {
                    state.is_reserved |= storage.reserve_bulk(from, to - from)?;
                }
            }
            if self.differencing {
                let bitmap = SectorBitmap::empty(self.shape.bitmap_size);
                state.bitmaps.insert(block, bitmap);
            }
        }
        if let Some(bitmap) = state.bitmaps.get(&block) {
            bitmap.set(within / SECTOR..(within + length).div_ceil(SECTOR));
            if bitmap.all(0..self.shape.sectors()) {
                // No bitmap means all sectors, and takes no memory.
                state.bitmaps.remove(&block);
            }
        }
        Ok(at + self.shape.bitmap_size + within)
    }

    /// Writes everything but the footers; returns where the one at the end goes.
    fn write_tables(&self, storage: &dyn Storage) -> Result<u64> {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let full = vec![0xFF; to_usize(self.shape.bitmap_size)];
        let used = to_usize(state.placed.start)..to_usize(state.placed.end);
        for (block, entry) in (state.placed.start..).zip(&state.entries[used]) {
            if let Some(sector) = entry {
                let at = u64::from(sector.get()) * SECTOR;
                match state.bitmaps.get(&block) {
                    Some(bitmap) => storage.write_at(at, &bitmap.to_bytes())?,
                    None => storage.write_at(at, &full)?,
                }
            }
        }
        // Behind the bitmaps, so that only what is really unused is found.
        if state.is_reserved {
            storage.release_unwritten(state.reserved.start..state.reserved.end.min(state.end))?;
        }
        // Most of a new disk's table is unallocated.
        let placed =
            round_down(state.placed.start, PER_SECTOR)..round_up(state.placed.end, PER_SECTOR);
        let place = |entry: u64| TABLE_OFFSET + entry * 4;
        const CHUNK: usize = 64 * 1024;
        let mut at = place(placed.start);
        let mut bytes = Vec::new();
        for entries in state.entries[to_usize(placed.start)..to_usize(placed.end)].chunks(CHUNK) {
            bytes.clear();
            bytes.extend(
                entries
                    .iter()
                    .flat_map(|entry| entry.map_or(UNALLOCATED, NonZeroU32::get).to_be_bytes()),
            );
            storage.write_at(at, &bytes)?;
            at += bytes.len() as u64;
        }
        write_unallocated(storage, TABLE_OFFSET..place(placed.start))?;
        write_unallocated_bulk(storage, at..place(state.entries.len() as u64))?;
        storage.write_at(FOOTER_SIZE, self.header.as_bytes())?;
        for (offset, bytes) in &self.locators {
            storage.write_at(*offset, bytes)?;
        }
        Ok(state.end)
    }
}

impl ImageBuilder for VhdBuilder {
    fn storage(&self) -> &Arc<dyn Storage> {
        &self.storage
    }

    fn placement_unit(&self) -> u64 {
        match &self.sparse {
            Some(sparse) => sparse.shape.block_size,
            None => 1 << 40,
        }
    }

    fn expect_blocks(&self, count: u64) {
        if let Some(sparse) = &self.sparse {
            sparse.expect_blocks(count);
        }
    }

    fn place(&self, offset: u64, length: u64) -> Result<u64> {
        match &self.sparse {
            Some(sparse) => sparse.place(&*self.storage, offset, length),
            None => Ok(offset),
        }
    }

    fn finish(&self) -> Result<()> {
        let footer = self.footer.as_bytes();
        match &self.sparse {
            None => {
                self.order()?;
                self.storage
                    .write_at(self.footer.current_size.get(), footer)?;
            }
            Some(sparse) => {
                let end = sparse.write_tables(&*self.storage)?;
                self.storage.set_len(end + FOOTER_SIZE)?;
                self.order()?;
                self.storage.write_at(end, footer)?;
                self.storage.write_at(0, footer)?;
            }
        }
        self.storage.flush()
    }
}
