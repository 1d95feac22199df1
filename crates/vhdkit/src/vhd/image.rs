//! [`VhdImage`]: an open VHD file.

use std::io::{PipeReader, PipeWriter};
use std::ops::Range;
use std::sync::Arc;

use uuid::Uuid;
use zerocopy::{FromBytes, IntoBytes};

use super::bat::Bat;
use super::bitmap::BitmapCache;
use super::footer::{self, Place, Places};
use super::header::SparseHeader;
use super::journal::{Found, Journal, Tables};
use super::layout::{
    BATMAP_COOKIE, Batmap, EPOCH, FOOTER_SIZE, Footer, HEADER_SIZE, Locator, SECTOR,
};
use super::locator;
use super::space::{Kind, Plan, Structure};
use super::sparse::Sparse;
use crate::block_lock::BlockLocks;
use crate::error::{Error, ErrorKind, Result};
use crate::image::{
    AllocatedBlock, Backing, DiskType, Extent, ExtentKind, Format, Image, ImageInfo, Pace, Packed,
    PackingTold, ParentLink, ParentReference, SourceRun, Told, Usage, ZeroMode, copy_placed,
};
use crate::num::{round_up, to_usize};
use crate::storage::Storage;

/// An open VHD file: fixed, dynamic or differencing.
///
/// The size of the disk is the footer's CurrentSize, whatever program made the file; the geometry is information
/// only. Memory: 4 bytes and one bit for each block of the disk (4 MiB for 2040 GiB in blocks of 2 MiB), and at most
/// about 48 MiB of sector bitmaps, for differencing disks and for those that other programs filled in part.
pub struct VhdImage {
    pub(super) storage: Arc<dyn Storage>,
    pub(super) virtual_size: u64,
    pub(super) info: ImageInfo,
    pub(super) journal: Journal,
    /// The footer as it is in the file, or will be after the first change.
    pub(super) footer: Box<Footer>,
    /// Of an interrupted growing of a fixed disk: reads as zeros until the first change has made it so.
    stale: Option<Range<u64>>,
    /// `None` for fixed disks.
    pub(super) sparse: Option<Sparse>,
    /// What packing has still to do, and the journal's generation for which that is true.
    pub(super) plan: Option<(u64, Plan)>,
}

impl VhdImage {
    /// Opens a VHD file.
    ///
    /// The footer at the end counts; where it is missing or damaged, the copy at the start takes its place
    /// (specification, "footer copies"). Nothing is written: a file that needs it is put right by the first change.
    /// Entries of the block allocation table that lead nowhere are met when their block is read, so that what is left
    /// of a truncated file can be saved; such a file is not opened for writing.
    ///
    /// # Errors
    /// [`ErrorKind::FooterMissing`], [`ErrorKind::FooterChecksumMismatch`], [`ErrorKind::UnsupportedVersion`],
    /// [`ErrorKind::InvalidType`], [`ErrorKind::InvalidSize`], [`ErrorKind::InvalidFileSize`] for the footer;
    /// [`ErrorKind::SparseHeaderChecksumMismatch`], [`ErrorKind::SparseHeaderUnsupportedVersion`],
    /// [`ErrorKind::SparseHeaderCorrupt`], [`ErrorKind::InvalidBlockSize`] for the dynamic header;
    /// [`ErrorKind::BlockAllocationTableCorrupt`] if it is to be written and its table is damaged.
    pub fn open(storage: Arc<dyn Storage>, writable: bool) -> Result<Self> {
        let places = Places::read(&*storage)?;
        let (footer, place) = places.choose()?;
        let disk_type = footer::validate(footer)?;
        let limit = places.limit(place);
        let virtual_size = footer.current_size.get();
        let stale = footer.grow_mark();
        let clean = match &stale {
            Some(_) => Box::new(footer.clone().with_grow_mark(None)),
            None => Box::new(footer.clone()),
        };
        let mut bytes = [0; 512];
        bytes.copy_from_slice(clean.as_bytes());
        let mut info = info(footer, disk_type, places.file_size);
        let mut found = Found {
            file_size: places.file_size,
            footer_at: (place == Place::End).then_some(limit),
            copy_is_right: true,
            end: limit,
            structures_end: limit,
            stale: stale.clone(),
        };
        if disk_type == DiskType::Fixed {
            if virtual_size > limit {
                return Err(Error::new(
                    ErrorKind::InvalidFileSize,
                    format!("the disk has {virtual_size} bytes, the file holds only {limit}"),
                )
                .with_hint("the file was cut off; restore it from a backup, or open it with the raw format"));
            }
            let journal = Journal::new(storage.clone(), &bytes, found, None, writable);
            return Ok(Self {
                storage,
                virtual_size,
                info,
                journal,
                footer: clean,
                stale,
                sparse: None,
                plan: None,
            });
        }
        let header = SparseHeader::read(&*storage, footer, limit)?;
        let differencing = disk_type == DiskType::Differencing;
        let reserved = reserved_ranges(&*storage, footer, &header, limit);
        let structures = structures(&*storage, footer, &header, limit);
        let bat = Bat::read(&*storage, &header, &reserved, limit)?;
        if writable {
            refuse_damaged(&bat)?;
        }
        if differencing {
            info.parent = Some(parent_reference(&*storage, &header, limit));
        }
        info.block_size = Some(header.shape.block_size);
        found.structures_end = end_of_structures(&structures);
        found.end = round_up(found.structures_end.max(bat.end()), SECTOR);
        found.copy_is_right = places.start.signed() == Some(footer);
        let shape = header.shape;
        let tables = Arc::new(Tables {
            bat,
            bitmaps: BitmapCache::new(header.blocks, shape.sectors(), shape.bitmap_size),
        });
        Ok(Self {
            journal: Journal::new(
                storage.clone(),
                &bytes,
                found,
                Some(tables.clone()),
                writable,
            ),
            sparse: Some(Sparse {
                storage: storage.clone(),
                tables,
                locks: BlockLocks::new(),
                differencing,
                header,
                structures,
            }),
            footer: clean,
            stale: None,
            plan: None,
            storage,
            virtual_size,
            info,
        })
    }
}

impl VhdImage {
    /// What of a fixed disk reads as zeros whatever the file has there.
    fn stale(&self) -> Option<&Range<u64>> {
        self.stale.as_ref().filter(|_| !self.journal.is_prepared())
    }

    /// Refuses what must not be done while a machine's saved memory knows the disk as it is.
    pub(super) fn refuse_saved_state(&self, what: &str) -> Result<()> {
        if self.footer.saved_state == 0 {
            return Ok(());
        }
        Err(Error::new(
            ErrorKind::InvalidState,
            format!("the disk belongs to a virtual machine in saved state and cannot {what}"),
        )
        .with_hint("start the machine and shut it down first"))
    }
}

/// A table with damage is not written to: what a new block would be put over is not known.
fn refuse_damaged(bat: &Bat) -> Result<()> {
    let hint = "open it read-only and convert what can be read; check lists all damage";
    if let Some(block) = bat.first_invalid() {
        return Err(Error::new(
            ErrorKind::BlockAllocationTableCorrupt,
            format!("the entry of block {block} in the block allocation table leads outside the file's data"),
        )
        .with_hint(hint));
    }
    if let Some((a, b)) = bat.first_overlap() {
        return Err(Error::new(
            ErrorKind::BlockAllocationTableCorrupt,
            format!("two blocks share the same place in the file, at {a} and {b}"),
        )
        .with_hint(hint));
    }
    Ok(())
}

/// What no block may touch: the footer's copy, the header, the BAT, the locators and XenServer's batmap.
pub(super) fn reserved_ranges(
    storage: &dyn Storage,
    footer: &Footer,
    header: &SparseHeader,
    limit: u64,
) -> Vec<Range<u64>> {
    let mut ranges = vec![
        0..FOOTER_SIZE,
        header.offset..header.offset + HEADER_SIZE,
        header.table_offset..header.table_end().min(round_up(limit, SECTOR)),
    ];
    ranges.extend(
        header
            .raw
            .parent_locators
            .iter()
            .filter_map(Locator::range)
            .filter(|range| range.end <= limit),
    );
    if footer.creator_application.starts_with(b"tap") {
        ranges.extend(
            batmap(storage, header.table_end(), limit)
                .into_iter()
                .flatten(),
        );
    }
    ranges
}

/// Everything but blocks and the footer at the end, each with what may be done with it.
pub(super) fn structures(
    storage: &dyn Storage,
    footer: &Footer,
    header: &SparseHeader,
    limit: u64,
) -> Vec<Structure> {
    let pinned = |range| Structure {
        kind: Kind::Pinned,
        range,
    };
    let mut structures = vec![
        pinned(0..FOOTER_SIZE),
        pinned(header.offset..header.offset + HEADER_SIZE),
    ];
    let maps = if footer.creator_application.starts_with(b"tap") {
        batmap(storage, header.table_end(), limit)
    } else {
        None
    };
    structures.push(Structure {
        // XenServer's map is found through the table's place.
        kind: if maps.is_some() {
            Kind::Pinned
        } else {
            Kind::Table
        },
        range: header.table_offset..header.table_end().min(round_up(limit, SECTOR)),
    });
    structures.extend(maps.into_iter().flatten().map(pinned));
    for (slot, locator) in header.raw.parent_locators.iter().enumerate() {
        let is_inside = |range: &Range<u64>| range.end <= limit;
        let path = locator.range().filter(is_inside);
        let room = locator.room().filter(is_inside);
        let end = path.iter().chain(&room).map(|range| range.end).max();
        if let (Some(end), Some(range)) = (end, path.or(room)) {
            structures.push(Structure {
                kind: Kind::Locator(slot),
                range: range.start..end,
            });
        }
    }
    structures
}

/// End of all structures.
pub(super) fn end_of_structures(structures: &[Structure]) -> u64 {
    structures.iter().map(|s| s.range.end).max().unwrap_or(0)
}

/// End of everything that is in use: where the footer belongs.
pub(super) fn end_of_use(
    header: &SparseHeader,
    reserved: &[Range<u64>],
    bat: &Bat,
    limit: u64,
) -> u64 {
    let rooms = header
        .raw
        .parent_locators
        .iter()
        .filter_map(Locator::room)
        .filter(|room| room.end <= limit);
    let end = rooms.chain(reserved.iter().cloned()).map(|r| r.end).max();
    round_up(end.unwrap_or(0).max(bat.end()), SECTOR)
}

/// The header behind the BAT and the map it points to.
fn batmap(storage: &dyn Storage, at: u64, limit: u64) -> Option<[Range<u64>; 2]> {
    let mut bytes = [0; size_of::<Batmap>()];
    if at + SECTOR > limit {
        return None;
    }
    storage.read_at(at, &mut bytes).ok()?;
    let batmap = Batmap::read_from_bytes(&bytes).ok()?;
    let start = batmap.offset.get();
    let end = start.checked_add(u64::from(batmap.sectors.get()) * SECTOR)?;
    (batmap.cookie == BATMAP_COOKIE && end <= limit).then_some([at..at + SECTOR, start..end])
}

fn parent_reference(storage: &dyn Storage, header: &SparseHeader, limit: u64) -> ParentReference {
    ParentReference {
        identifiers: vec![Uuid::from_bytes(header.raw.parent_unique_id)],
        paths: locator::parent_paths(&header.raw, storage, limit),
        modified: match header.raw.parent_timestamp.get() {
            0 => None,
            seconds => Some(EPOCH + i64::from(seconds)),
        },
    }
}

fn info(footer: &Footer, disk_type: DiskType, file_size: u64) -> ImageInfo {
    let identifier = Uuid::from_bytes(footer.unique_id);
    ImageInfo {
        format: Format::Vhd,
        disk_type,
        virtual_size: footer.current_size.get(),
        logical_sector_size: 512,
        physical_sector_size: 512,
        block_size: None,
        identifier: Some(identifier),
        link_identifier: Some(identifier),
        creator: footer::creator(footer),
        created: Some(EPOCH + i64::from(footer.timestamp.get())),
        geometry: Some((
            footer.cylinders.get(),
            footer.heads,
            footer.sectors_per_track,
        )),
        file_size,
        log_replayed: false,
        parent: None,
    }
}

impl Image for VhdImage {
    fn info(&self) -> ImageInfo {
        let mut info = self.info.clone();
        info.file_size = self.storage.len().unwrap_or(info.file_size);
        info
    }

    fn virtual_size(&self) -> u64 {
        self.virtual_size
    }

    fn storage(&self) -> &Arc<dyn Storage> {
        &self.storage
    }

    fn map(&self, offset: u64, length: u64) -> Result<Extent> {
        if let Some(sparse) = &self.sparse {
            return sparse.map(offset, length);
        }
        let mut length = length;
        if let Some(stale) = self.stale() {
            if stale.contains(&offset) {
                return Ok(Extent {
                    length: length.min(stale.end - offset),
                    kind: ExtentKind::Zero,
                });
            }
            if offset < stale.start {
                length = length.min(stale.start - offset);
            }
        }
        Ok(match self.storage.next_data(offset..offset + length)? {
            Some(data) if data.start <= offset => Extent {
                length: (data.end - offset).min(length),
                kind: ExtentKind::Data {
                    storage_offset: offset,
                },
            },
            data => Extent {
                length: data.map_or(length, |data| data.start - offset),
                kind: ExtentKind::Zero,
            },
        })
    }

    fn read_at(&self, offset: u64, buf: &mut [u8], absent: &mut Vec<Range<u64>>) -> Result<()> {
        if let Some(sparse) = &self.sparse {
            return sparse.read_at(offset, buf, absent);
        }
        self.storage.read_at(offset, buf)?;
        if let Some(stale) = self.stale() {
            let end = offset + buf.len() as u64;
            let (from, to) = (stale.start.max(offset), stale.end.min(end));
            if from < to {
                buf[to_usize(from - offset)..to_usize(to - offset)].fill(0);
            }
        }
        Ok(())
    }

    fn lend(&self, offset: u64, length: u64, pipe: &PipeWriter) -> Result<u64> {
        // Places of blocks that were given back are written over as they are.
        if self.sparse.is_some() || self.stale().is_some() {
            return Ok(0);
        }
        Ok(self.storage.lend(offset, length, pipe))
    }

    fn write_at(&self, offset: u64, data: &[u8], backing: &dyn Backing) -> Result<()> {
        if let Some(sparse) = &self.sparse {
            return sparse.write_at(&self.journal, offset, data, backing);
        }
        self.journal.begin()?;
        self.storage.write_at(offset, data)
    }

    fn write_pipe(&self, offset: u64, length: u64, pipe: &PipeReader) -> Result<u64> {
        if let Some(sparse) = &self.sparse {
            return sparse.write_pipe(&self.journal, offset, length, pipe);
        }
        self.journal.begin()?;
        Ok(self.storage.write_pipe(offset, length, pipe))
    }

    fn zero(&self, offset: u64, length: u64, mode: ZeroMode, backing: &dyn Backing) -> Result<()> {
        if let Some(sparse) = &self.sparse {
            return sparse.zero(&self.journal, offset, length, mode, backing);
        }
        // The space of a fixed disk stays its own, also where it may be given back.
        self.journal.begin()?;
        self.storage.zero_range(offset, length)
    }

    fn discard(&self, offset: u64, length: u64, _backing: &dyn Backing) -> Result<()> {
        match &self.sparse {
            Some(sparse) => sparse.discard(&self.journal, offset, length),
            None => self.journal.check(),
        }
    }

    fn copy_from(
        &self,
        source: &dyn Storage,
        runs: Vec<SourceRun>,
        copied: Told<'_>,
    ) -> Result<Vec<SourceRun>> {
        if let Some(sparse) = &self.sparse {
            return sparse.copy_from(&self.journal, self.virtual_size, source, runs, copied);
        }
        self.journal.begin()?;
        copy_placed(&*self.storage, source, runs, copied, |run| {
            Ok(Some(run.offset))
        })
    }

    fn expect_blocks(&self, count: u64) {
        self.journal.expect_blocks(count);
    }

    fn flush(&self) -> Result<()> {
        self.journal.flush()
    }

    fn close(&self) -> Result<()> {
        let _alone = self.sparse.as_ref().map(|sparse| sparse.locks.write_all());
        self.journal.close()
    }

    fn usage_telling(&self, _pace: Pace<'_>) -> Result<Usage> {
        self.space_usage()
    }

    fn length_with(&self, size: u64, blocks: u64) -> Result<u64> {
        self.longest(size, blocks)
    }

    fn allocated_blocks(&self, offset: u64, most: usize) -> Result<Vec<AllocatedBlock>> {
        let mut blocks: Vec<AllocatedBlock> = Vec::new();
        while blocks.len() < most {
            let at = blocks.last().map_or(offset, |block| block.range.end);
            match self.next_allocated_block(at)? {
                Some(block) => blocks.push(block),
                None => break,
            }
        }
        Ok(blocks)
    }

    fn release(&mut self, block: &AllocatedBlock, backing: &dyn Backing) -> Result<bool> {
        self.release_block(block, backing)
    }

    fn pack_telling(&mut self, budget: u64, told: PackingTold<'_>) -> Result<Packed> {
        self.pack_some(budget, told)
    }

    fn resize(&mut self, size: u64, _backing: &dyn Backing, pace: Pace<'_>) -> Result<()> {
        self.grow_to(size, pace)
    }

    fn set_parent(&mut self, link: &ParentLink) -> Result<()> {
        self.relink(link)
    }

    fn set_parent_identifiers(&mut self, identifiers: &[Uuid]) -> Result<()> {
        self.accept_parent(identifiers)
    }

    fn set_identifier(&mut self, identifier: Uuid) -> Result<()> {
        self.rename(identifier)
    }
}
