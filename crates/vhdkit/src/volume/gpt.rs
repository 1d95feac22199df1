//! The GUID partition table (UEFI 2.10, section 5.3): a header and an array of entries near the start of the disk, and a
//! copy of both at its end. A copy counts only if both its checksums are right.

use uuid::Uuid;
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::{Medium, Partition, PartitionType};
use crate::error::Result;
use crate::num::{MIB, to_usize};

const SIGNATURE: [u8; 8] = *b"EFI PART";
const REVISION: u32 = 0x0001_0000;
/// The sector of the first header.
pub(super) const PRIMARY: u64 = 1;
/// Longest array of entries that is read; the usual one has 16 KiB.
const MAX_ARRAY: u64 = MIB;
/// Entries have 128 bytes times a power of two.
const MIN_ENTRY: u32 = 128;

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, PartialEq, Eq, Debug)]
#[repr(C)]
pub(super) struct Header {
    signature: [u8; 8],
    revision: U32,
    /// Of the checksummed part: 92, or more up to a sector.
    pub(super) length: U32,
    /// CRC-32 of that part, with zero here.
    checksum: U32,
    reserved: U32,
    pub(super) own_lba: U64,
    pub(super) alternate_lba: U64,
    pub(super) first_usable: U64,
    pub(super) last_usable: U64,
    disk: [u8; 16],
    pub(super) entries_lba: U64,
    entry_count: U32,
    entry_length: U32,
    entries_checksum: U32,
}

pub(super) const HEADER_LENGTH: usize = size_of::<Header>();
const _: () = assert!(HEADER_LENGTH == 92);

#[derive(FromBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct Entry {
    kind: [u8; 16],
    id: [u8; 16],
    first: U64,
    last: U64,
}

/// One of the two copies, whole.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Table {
    pub(super) header: Header,
    /// What of the header's checksummed part lies behind the known fields.
    pub(super) header_tail: Vec<u8>,
    pub(super) entries: Vec<u8>,
}

/// A GUID partition table as it is on the disk.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Gpt {
    pub(super) table: Table,
    /// The sector of the second copy, if it is whole.
    pub(super) backup: Option<Backup>,
    pub(super) primary_is_whole: bool,
    /// The first sector of the disk.
    pub(super) first_sector: Vec<u8>,
}

/// Where the second copy is, in sectors.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Backup {
    pub(super) header: u64,
    pub(super) entries: u64,
}

impl Gpt {
    /// The table by its first copy, or by the second one at the end of the disk if the first is damaged.
    pub(super) fn read(medium: &Medium<'_>, first_sector: Vec<u8>) -> Result<Option<Self>> {
        let primary = Table::read(medium, PRIMARY)?;
        let backup_lba = match &primary {
            Some(table) => table.header.alternate_lba.get(),
            None => medium.sectors().saturating_sub(1),
        };
        // The first copy may name anything as the second, even itself.
        let backup = if backup_lba > PRIMARY {
            Table::read(medium, backup_lba)?
        } else {
            None
        };
        let place = backup.as_ref().map(|table| Backup {
            header: backup_lba,
            entries: table.header.entries_lba.get(),
        });
        let primary_is_whole = primary.is_some();
        Ok(primary.or(backup).map(|table| Self {
            table,
            backup: place,
            primary_is_whole,
            first_sector,
        }))
    }

    /// The identifier of the disk.
    pub fn disk_id(&self) -> Uuid {
        Uuid::from_bytes_le(self.table.header.disk)
    }

    /// False if the first copy is damaged, so that all is known from the second.
    pub fn has_primary(&self) -> bool {
        self.primary_is_whole
    }

    /// Offset in bytes of the second copy's header; `None` if it is damaged or not on the disk.
    pub fn backup_header(&self) -> Option<u64> {
        let sector = self.first_sector.len() as u64;
        self.backup.map(|backup| backup.header * sector)
    }

    /// The first sector that a partition may use.
    pub(super) fn first_usable(&self) -> u64 {
        self.table.header.first_usable.get()
    }

    /// The first sector behind everything that the table itself has at the start of the disk; `None` if it is behind
    /// all numbers.
    pub(super) fn first_free(&self, sector: u64) -> Option<u64> {
        let entries = if self.primary_is_whole {
            self.table.header.entries_lba.get()
        } else {
            PRIMARY + 1
        };
        let end = entries.checked_add(self.array_sectors(sector))?;
        Some(end.max(PRIMARY + 1).max(self.first_usable()))
    }

    /// Sectors of one array of entries.
    pub(super) fn array_sectors(&self, sector: u64) -> u64 {
        (self.table.entries.len() as u64).div_ceil(sector)
    }

    /// Sectors of a copy at the end of a disk: the array and the header.
    pub(super) fn backup_sectors(&self, sector: u64) -> u64 {
        self.array_sectors(sector) + 1
    }

    pub(super) fn partitions(&self, sector: u64) -> Vec<Partition> {
        let length = self.table.header.entry_length.get() as usize;
        let entries = (1..).zip(self.table.entries.chunks_exact(length.max(1)));
        entries
            .filter_map(|(number, bytes)| {
                let (entry, _) = Entry::read_from_prefix(bytes).ok()?;
                let kind = Uuid::from_bytes_le(entry.kind);
                let (first, last) = (entry.first.get(), entry.last.get());
                // One that ends before it starts has no sectors, and is nobody's partition.
                let sectors = last.checked_sub(first)?.saturating_add(1);
                (!kind.is_nil()).then(|| {
                    Partition::new(number, (first, sectors), sector, PartitionType::Gpt(kind))
                })
            })
            .collect()
    }
}

impl Table {
    /// The copy whose header is in this sector; `None` if it is not whole.
    fn read(medium: &Medium<'_>, lba: u64) -> Result<Option<Self>> {
        let Some(sector) = medium.read_sector(lba)? else {
            return Ok(None);
        };
        let Some((header, header_tail)) = Header::parse(&sector, lba) else {
            return Ok(None);
        };
        let Some(length) = header.array_length(medium.sector_bytes()) else {
            return Ok(None);
        };
        let entries = medium.read_sectors(header.entries_lba.get(), to_usize(length))?;
        Ok(entries
            .filter(|entries| crc32fast::hash(entries) == header.entries_checksum.get())
            .map(|entries| Self {
                header,
                header_tail,
                entries,
            }))
    }

    /// The sector of the header after `change`, its checksum right.
    pub(super) fn header_sector(&self, sector: u64, change: impl FnOnce(&mut Header)) -> Vec<u8> {
        let mut header = self.header.clone();
        change(&mut header);
        header.checksum = 0.into();
        let mut bytes = [header.as_bytes(), &self.header_tail].concat();
        header.checksum = crc32fast::hash(&bytes).into();
        bytes.splice(..HEADER_LENGTH, header.as_bytes().iter().copied());
        bytes.resize(to_usize(sector), 0);
        bytes
    }
}

impl Header {
    fn parse(sector: &[u8], lba: u64) -> Option<(Self, Vec<u8>)> {
        let (header, _) = Header::read_from_prefix(sector).ok()?;
        if header.signature != SIGNATURE
            || header.revision.get() != REVISION
            || header.own_lba.get() != lba
        {
            return None;
        }
        let tail = sector.get(HEADER_LENGTH..header.length.get() as usize)?;
        let mut blank = header.clone();
        blank.checksum = 0.into();
        let sum = crc32fast::hash(&[blank.as_bytes(), tail].concat());
        (sum == header.checksum.get()).then(|| (header.clone(), tail.to_vec()))
    }

    /// Length of the array of entries; `None` if it makes no sense, or if the array holds its own header.
    fn array_length(&self, sector: u64) -> Option<u64> {
        let (count, length) = (self.entry_count.get(), self.entry_length.get());
        if count == 0 || !length.is_power_of_two() || length < MIN_ENTRY {
            return None;
        }
        let array = u64::from(count) * u64::from(length);
        let first = self.entries_lba.get();
        let end = first.checked_add(array.div_ceil(sector))?;
        let apart = first > PRIMARY && !(first..end).contains(&self.own_lba.get());
        (array <= MAX_ARRAY && apart).then_some(array)
    }
}
