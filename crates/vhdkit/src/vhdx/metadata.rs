//! The metadata region: its table and the items that say what the disk is (format sheet 5).

use std::collections::HashSet;

use uuid::Uuid;
use zerocopy::{FromBytes, IntoBytes};

use super::header::corrupt;
use super::layout::{
    Guid, ITEM_CHS_PARAMETERS, ITEM_FILE_PARAMETERS, ITEM_INCOMPLETE_FILE,
    ITEM_LOGICAL_SECTOR_SIZE, ITEM_PARENT_LOCATOR, ITEM_PHYSICAL_SECTOR_SIZE, ITEM_PMEM_LABELS,
    ITEM_VIRTUAL_DISK_ID, ITEM_VIRTUAL_DISK_SIZE, MAX_BLOCK_SIZE, MAX_METADATA_ENTRIES,
    MAX_METADATA_ITEM, MAX_USER_ITEMS, MAX_VIRTUAL_SIZE, METADATA_IS_REQUIRED, METADATA_IS_USER,
    METADATA_IS_VIRTUAL_DISK, METADATA_SIGNATURE, METADATA_TABLE_LENGTH, MIN_BLOCK_SIZE,
    MetadataTableEntry, MetadataTableHeader,
};
use super::locator;
use super::region::Region;
use crate::error::{Error, ErrorKind, Result};
use crate::image::ParentReference;
use crate::num::to_usize;
use crate::storage::Storage;

const LEAVE_BLOCKS_ALLOCATED: u32 = 1;
const HAS_PARENT: u32 = 2;

/// What the metadata says of the disk. Sizes are in bytes.
#[derive(Clone, Debug)]
pub(super) struct Metadata {
    pub(super) block_size: u64,
    /// Fixed: blocks are never given back.
    pub(super) leave_blocks_allocated: bool,
    pub(super) has_parent: bool,
    pub(super) virtual_size: u64,
    pub(super) virtual_disk_id: Uuid,
    pub(super) logical_sector_size: u32,
    pub(super) physical_sector_size: u32,
    pub(super) parent: Option<ParentReference>,
}

/// One entry of the table, its place checked.
#[derive(Clone, Copy, Debug)]
pub(super) struct Item {
    pub(super) id: Guid,
    /// From the start of the region.
    pub(super) offset: u64,
    pub(super) length: u32,
    pub(super) flags: u32,
}

impl Item {
    pub(super) fn is_user(&self) -> bool {
        self.flags & METADATA_IS_USER != 0
    }
}

/// Reads the table and checks every entry (checklist 9.5).
pub(super) fn read_table(storage: &dyn Storage, region: &Region) -> Result<Vec<Item>> {
    if region.length < METADATA_TABLE_LENGTH as u64 {
        return Err(corrupt("the metadata region is too short"));
    }
    let mut table = vec![0; METADATA_TABLE_LENGTH];
    storage.read_at(region.offset, &mut table)?;
    let (header, rest) = MetadataTableHeader::ref_from_prefix(&table)
        .map_err(|_| corrupt("the metadata table is too short"))?;
    if header.signature != METADATA_SIGNATURE {
        return Err(corrupt("the metadata table has no signature"));
    }
    if header.reserved.get() != 0 || header.reserved2 != [0; 20] {
        return Err(corrupt("the metadata table has reserved bits set"));
    }
    let count = header.entry_count.get();
    if count > MAX_METADATA_ENTRIES {
        return Err(corrupt(format!(
            "the metadata table claims {count} entries"
        )));
    }
    let (entries, _) = <[MetadataTableEntry]>::ref_from_prefix_with_elems(rest, count.into())
        .map_err(|_| corrupt(format!("a metadata table cannot hold {count} entries")))?;
    let mut items = Vec::with_capacity(entries.len());
    let mut seen = HashSet::new();
    for entry in entries {
        let item = check_entry(entry, region)?;
        if !seen.insert((Uuid::from(item.id), item.is_user())) {
            return Err(corrupt(format!(
                "metadata item {:?} is listed twice",
                item.id
            )));
        }
        items.push(item);
    }
    let user = items.iter().filter(|item| item.is_user()).count();
    if user > MAX_USER_ITEMS {
        return Err(corrupt(format!(
            "the metadata holds {user} user items, {MAX_USER_ITEMS} are possible"
        )));
    }
    let mut ranges: Vec<(u64, u64)> = items
        .iter()
        .filter(|item| item.length > 0)
        .map(|item| (item.offset, item.offset + u64::from(item.length)))
        .collect();
    ranges.sort_unstable();
    if let Some(pair) = ranges.windows(2).find(|pair| pair[0].1 > pair[1].0) {
        return Err(corrupt(format!(
            "two metadata items overlap at offset {}",
            pair[1].0
        )));
    }
    Ok(items)
}

fn check_entry(entry: &MetadataTableEntry, region: &Region) -> Result<Item> {
    let (offset, length, flags) = (entry.offset.get(), entry.length.get(), entry.flags.get());
    let id = entry.item_id;
    if Uuid::from(id).is_nil() {
        return Err(corrupt("a metadata item has no identifier"));
    }
    let placed = (offset == 0 && length == 0)
        || (u64::from(offset) >= METADATA_TABLE_LENGTH as u64
            && u64::from(offset) + u64::from(length) <= region.length
            && length <= MAX_METADATA_ITEM);
    if !placed {
        return Err(corrupt(format!(
            "metadata item {id:?} of {length} bytes at offset {offset} is misplaced"
        )));
    }
    if entry.reserved2.get() != 0 {
        return Err(corrupt(format!(
            "metadata item {id:?} has reserved bits set"
        )));
    }
    let item = Item {
        id,
        offset: offset.into(),
        length,
        flags,
    };
    if !has_possible_flags(&item) {
        return Err(corrupt(format!(
            "metadata item {id:?} has impossible flags {flags:#x}"
        )));
    }
    if flags & METADATA_IS_REQUIRED != 0 && !is_known(&item) {
        return Err(Error::new(
            ErrorKind::UnsupportedVersion,
            format!("metadata item {id:?} is required but not known"),
        )
        .with_hint("the file was made by a newer program; use that one"));
    }
    if id == ITEM_INCOMPLETE_FILE && !item.is_user() {
        return Err(Error::new(
            ErrorKind::InvalidState,
            "the file was never finished by the program that was making it",
        ));
    }
    Ok(item)
}

/// No unknown ones; users cannot require anything; and of the items that every file has, only the file parameters are
/// the file's own instead of the disk's.
fn has_possible_flags(item: &Item) -> bool {
    let known = METADATA_IS_USER | METADATA_IS_VIRTUAL_DISK | METADATA_IS_REQUIRED;
    let of_disk = item.flags & METADATA_IS_VIRTUAL_DISK != 0;
    item.flags & !known == 0
        && match item.id {
            _ if item.is_user() => item.flags & METADATA_IS_REQUIRED == 0,
            ITEM_FILE_PARAMETERS => !of_disk,
            id if MANDATORY_ITEMS.contains(&id) => of_disk,
            _ => true,
        }
}

/// The bytes of a table with these items.
pub(super) fn encode_table(items: &[Item]) -> Vec<u8> {
    let mut bytes = MetadataTableHeader {
        signature: METADATA_SIGNATURE,
        reserved: 0.into(),
        entry_count: u16::try_from(items.len()).unwrap_or(u16::MAX).into(),
        reserved2: [0; 20],
    }
    .as_bytes()
    .to_vec();
    for item in items {
        let entry = MetadataTableEntry {
            item_id: item.id,
            offset: u32::try_from(item.offset).unwrap_or(u32::MAX).into(),
            length: item.length.into(),
            flags: item.flags.into(),
            reserved2: 0.into(),
        };
        bytes.extend_from_slice(entry.as_bytes());
    }
    bytes.resize(METADATA_TABLE_LENGTH, 0);
    bytes
}

/// The items that every file has (5).
pub(super) const MANDATORY_ITEMS: [Guid; 5] = [
    ITEM_FILE_PARAMETERS,
    ITEM_VIRTUAL_DISK_SIZE,
    ITEM_VIRTUAL_DISK_ID,
    ITEM_LOGICAL_SECTOR_SIZE,
    ITEM_PHYSICAL_SECTOR_SIZE,
];

fn is_known(item: &Item) -> bool {
    !item.is_user()
        && [
            ITEM_FILE_PARAMETERS,
            ITEM_VIRTUAL_DISK_SIZE,
            ITEM_VIRTUAL_DISK_ID,
            ITEM_LOGICAL_SECTOR_SIZE,
            ITEM_PHYSICAL_SECTOR_SIZE,
            ITEM_PARENT_LOCATOR,
            ITEM_INCOMPLETE_FILE,
            ITEM_CHS_PARAMETERS,
            ITEM_PMEM_LABELS,
        ]
        .contains(&item.id)
}

/// The content of a system item of exactly `N` bytes.
fn item<const N: usize>(
    storage: &dyn Storage,
    region: &Region,
    items: &[Item],
    id: Guid,
    name: &str,
) -> Result<[u8; N]> {
    let item =
        find(items, id).ok_or_else(|| corrupt(format!("the metadata item {name} is missing")))?;
    if item.length as usize != N {
        return Err(corrupt(format!(
            "the metadata item {name} has {} bytes instead of {N}",
            item.length
        )));
    }
    let mut bytes = [0; N];
    storage.read_at(region.offset + item.offset, &mut bytes)?;
    Ok(bytes)
}

pub(super) fn find(items: &[Item], id: Guid) -> Option<&Item> {
    items.iter().find(|item| item.id == id && !item.is_user())
}

impl Metadata {
    /// Reads and checks the items (checklist 9.5 to 9.7).
    pub(super) fn read(storage: &dyn Storage, region: &Region) -> Result<Self> {
        let items = read_table(storage, region)?;
        let parameters = item::<8>(
            storage,
            region,
            &items,
            ITEM_FILE_PARAMETERS,
            "file parameters",
        )?;
        let [b0, b1, b2, b3, f0, f1, f2, f3] = parameters;
        let block_size = u64::from(u32::from_le_bytes([b0, b1, b2, b3]));
        let flags = u32::from_le_bytes([f0, f1, f2, f3]);
        let virtual_size = u64::from_le_bytes(item::<8>(
            storage,
            region,
            &items,
            ITEM_VIRTUAL_DISK_SIZE,
            "virtual disk size",
        )?);
        let id = item::<16>(
            storage,
            region,
            &items,
            ITEM_VIRTUAL_DISK_ID,
            "virtual disk ID",
        )?;
        let logical_sector_size = u32::from_le_bytes(item::<4>(
            storage,
            region,
            &items,
            ITEM_LOGICAL_SECTOR_SIZE,
            "logical sector size",
        )?);
        let physical_sector_size = u32::from_le_bytes(item::<4>(
            storage,
            region,
            &items,
            ITEM_PHYSICAL_SECTOR_SIZE,
            "physical sector size",
        )?);
        check_block_size(block_size)?;
        if flags & !(LEAVE_BLOCKS_ALLOCATED | HAS_PARENT) != 0 {
            return Err(corrupt(format!(
                "the file parameters have unknown flags {flags:#x}"
            )));
        }
        check_sector_size(logical_sector_size)?;
        check_sector_size(physical_sector_size)?;
        check_virtual_size(virtual_size, logical_sector_size)?;
        let has_parent = flags & HAS_PARENT != 0;
        let parent = if has_parent {
            let item = find(&items, ITEM_PARENT_LOCATOR).ok_or_else(|| {
                corrupt("the disk has a parent but the metadata has no parent locator")
            })?;
            let mut bytes = vec![0; to_usize(item.length.into())];
            storage.read_at(region.offset + item.offset, &mut bytes)?;
            Some(locator::parse(&bytes)?)
        } else {
            None
        };
        Ok(Self {
            block_size,
            leave_blocks_allocated: flags & LEAVE_BLOCKS_ALLOCATED != 0 && !has_parent,
            has_parent,
            virtual_size,
            virtual_disk_id: Uuid::from_bytes_le(id),
            logical_sector_size,
            physical_sector_size,
            parent,
        })
    }

    /// The first bytes of a new metadata region: the table and the items behind it.
    pub(super) fn encode(&self, locator: Option<&[u8]>) -> Result<Vec<u8>> {
        let flags = u32::from(self.leave_blocks_allocated) * LEAVE_BLOCKS_ALLOCATED
            + u32::from(self.has_parent) * HAS_PARENT;
        let block_size =
            u32::try_from(self.block_size).map_err(|_| bad_block_size(self.block_size))?;
        let parameters = [block_size.to_le_bytes(), flags.to_le_bytes()].concat();
        let disk = METADATA_IS_VIRTUAL_DISK | METADATA_IS_REQUIRED;
        let mut items: Vec<(Guid, u32, Vec<u8>)> = vec![
            (ITEM_FILE_PARAMETERS, METADATA_IS_REQUIRED, parameters),
            (
                ITEM_VIRTUAL_DISK_SIZE,
                disk,
                self.virtual_size.to_le_bytes().to_vec(),
            ),
            (
                ITEM_VIRTUAL_DISK_ID,
                disk,
                self.virtual_disk_id.to_bytes_le().to_vec(),
            ),
            (
                ITEM_LOGICAL_SECTOR_SIZE,
                disk,
                self.logical_sector_size.to_le_bytes().to_vec(),
            ),
            (
                ITEM_PHYSICAL_SECTOR_SIZE,
                disk,
                self.physical_sector_size.to_le_bytes().to_vec(),
            ),
        ];
        if let Some(locator) = locator {
            items.push((ITEM_PARENT_LOCATOR, METADATA_IS_REQUIRED, locator.to_vec()));
        }
        let mut offset = METADATA_TABLE_LENGTH as u64;
        let mut table = Vec::with_capacity(items.len());
        for (id, flags, content) in &items {
            table.push(Item {
                id: *id,
                offset,
                length: u32::try_from(content.len()).unwrap_or(u32::MAX),
                flags: *flags,
            });
            offset += content.len() as u64;
        }
        let mut bytes = encode_table(&table);
        for (_, _, content) in &items {
            bytes.extend_from_slice(content);
        }
        Ok(bytes)
    }
}

pub(super) fn check_block_size(block_size: u64) -> Result<()> {
    if (MIN_BLOCK_SIZE..=MAX_BLOCK_SIZE).contains(&block_size) && block_size.is_power_of_two() {
        Ok(())
    } else {
        Err(bad_block_size(block_size))
    }
}

fn bad_block_size(block_size: u64) -> Error {
    Error::new(
        ErrorKind::InvalidBlockSize,
        format!("a VHDX block of {block_size} bytes is not possible"),
    )
    .with_hint("a block is a power of two from 1 MiB to 256 MiB")
}

pub(super) fn check_sector_size(size: u32) -> Result<()> {
    if matches!(size, 512 | 4096) {
        Ok(())
    } else {
        Err(Error::new(
            ErrorKind::UnsupportedSectorSize,
            format!("a VHDX sector of {size} bytes is not possible"),
        )
        .with_hint("a sector has 512 or 4096 bytes"))
    }
}

pub(super) fn check_virtual_size(size: u64, sector: u32) -> Result<()> {
    if size > 0 && size <= MAX_VIRTUAL_SIZE && size.is_multiple_of(sector.into()) {
        Ok(())
    } else {
        Err(Error::new(
            ErrorKind::InvalidSize,
            format!("a VHDX disk of {size} bytes with sectors of {sector} is not possible"),
        )
        .with_hint("the size is a multiple of the sector size, at most 64 TiB"))
    }
}
