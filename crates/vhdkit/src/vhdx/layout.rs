//! What is on disk in a VHDX file: constants and structures, no behaviour. All integers are little-endian.
//!
//! Section numbers are those of the VHDX format sheet.

use uuid::Uuid;
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::num::{GIB, KIB, MIB, TIB};

/// Alignment of every object after the first MiB.
pub(super) const ALIGNMENT: u64 = MIB;
/// Length of the area that holds identifier, headers and region tables.
pub(super) const HEADER_AREA: u64 = MIB;

/// File type identifier (2.1).
pub(super) const SIGNATURE: &[u8; 8] = b"vhdxfile";
/// Offset and length of the creator text: UTF-16, NUL padded.
pub(super) const CREATOR_OFFSET: u64 = 8;
pub(super) const CREATOR_LENGTH: usize = 512;

/// Offsets of the two headers (2.2).
pub(super) const HEADER_OFFSETS: [u64; 2] = [64 * KIB, 128 * KIB];
pub(super) const HEADER_LENGTH: usize = 4096;
pub(super) const HEADER_SIGNATURE: [u8; 4] = *b"head";
pub(super) const LOG_VERSION: u16 = 0;
pub(super) const VERSION: u16 = 1;
/// Longest log that is accepted; keeps ring arithmetic in 32 bits.
pub(super) const MAX_LOG_LENGTH: u64 = GIB;

/// Offsets of the two region tables (2.3).
pub(super) const REGION_TABLE_OFFSETS: [u64; 2] = [192 * KIB, 256 * KIB];
pub(super) const REGION_TABLE_LENGTH: usize = 64 * 1024;
pub(super) const REGION_SIGNATURE: [u8; 4] = *b"regi";
pub(super) const MAX_REGIONS: u32 = 2047;
pub(super) const REGION_REQUIRED: u32 = 1;

/// The log and its entries (3).
pub(super) const LOG_SECTOR: u64 = 4096;
pub(super) const ENTRY_SIGNATURE: [u8; 4] = *b"loge";
pub(super) const ZERO_SIGNATURE: [u8; 4] = *b"zero";
pub(super) const DATA_SIGNATURE: [u8; 4] = *b"desc";
pub(super) const DATA_SECTOR_SIGNATURE: [u8; 4] = *b"data";
/// Nothing that is logged lies below: identifier and headers never go through the log.
pub(super) const FIRST_LOGGED_OFFSET: u64 = 192 * KIB;

/// BAT entries (4.2).
pub(super) const BAT_STATE_MASK: u64 = 7;
pub(super) const BAT_RESERVED_MASK: u64 = 0xF_FFF8;
pub(super) const BAT_OFFSET_MASK: u64 = !0xF_FFFF;

/// Limits (6).
pub(super) const MIN_BLOCK_SIZE: u64 = MIB;
pub(super) const MAX_BLOCK_SIZE: u64 = 256 * MIB;
pub(crate) const MAX_VIRTUAL_SIZE: u64 = 64 * TIB;
/// Longest file that is accepted: 2^28 units of 1 MiB.
pub(super) const MAX_FILE_SIZE: u64 = 256 * TIB;
/// Sectors that one sector bitmap block describes.
pub(super) const SECTORS_PER_BITMAP: u64 = 1 << 23;
/// Length of a sector bitmap block.
pub(super) const BITMAP_BLOCK: u64 = MIB;

/// The metadata region (5).
pub(super) const METADATA_SIGNATURE: [u8; 8] = *b"metadata";
pub(super) const METADATA_TABLE_LENGTH: usize = 64 * 1024;
pub(super) const MAX_METADATA_ENTRIES: u16 = 2047;
pub(super) const MAX_USER_ITEMS: usize = 1024;
pub(super) const MAX_METADATA_ITEM: u32 = 1024 * 1024;
/// All user items together.
pub(super) const MAX_USER_METADATA: u64 = 40 * MIB;
/// Longest metadata region that is made.
pub(super) const MAX_METADATA_REGION: u64 = 128 * MIB;
pub(super) const METADATA_IS_USER: u32 = 1;
pub(super) const METADATA_IS_VIRTUAL_DISK: u32 = 2;
pub(super) const METADATA_IS_REQUIRED: u32 = 4;

/// A GUID in Microsoft's binary form.
#[derive(Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(transparent)]
pub(super) struct Guid([u8; 16]);

impl Guid {
    pub(super) const fn of(value: u128) -> Self {
        Self(Uuid::from_u128(value).to_bytes_le())
    }
}

impl From<Uuid> for Guid {
    fn from(id: Uuid) -> Self {
        Self(id.to_bytes_le())
    }
}

impl From<Guid> for Uuid {
    fn from(guid: Guid) -> Self {
        Uuid::from_bytes_le(guid.0)
    }
}

pub(super) const REGION_BAT: Guid = Guid::of(0x2DC27766_F623_4200_9D64_115E9BFD4A08);
pub(super) const REGION_METADATA: Guid = Guid::of(0x8B7CA206_4790_4B9A_B8FE_575F050F886E);

pub(super) const ITEM_FILE_PARAMETERS: Guid = Guid::of(0xCAA16737_FA36_4D43_B3B6_33F0AA44E76B);
pub(super) const ITEM_VIRTUAL_DISK_SIZE: Guid = Guid::of(0x2FA54224_CD1B_4876_B211_5DBED83BF4B8);
pub(super) const ITEM_VIRTUAL_DISK_ID: Guid = Guid::of(0xBECA12AB_B2E6_4523_93EF_C309E000C746);
pub(super) const ITEM_LOGICAL_SECTOR_SIZE: Guid = Guid::of(0x8141BF1D_A96F_4709_BA47_F233A8FAAB5F);
pub(super) const ITEM_PHYSICAL_SECTOR_SIZE: Guid = Guid::of(0xCDA348C7_445D_4471_9CC9_E9885251C556);
pub(super) const ITEM_PARENT_LOCATOR: Guid = Guid::of(0xA8D35F2D_B30B_454D_ABF7_D3D84834AB0C);
pub(super) const ITEM_INCOMPLETE_FILE: Guid = Guid::of(0x71CC85F0_1B69_4E28_9558_C3BF83AE75D3);
/// Items that other implementations mark as required and that do not change how the disk reads.
pub(super) const ITEM_CHS_PARAMETERS: Guid = Guid::of(0xDA02D7BC_3D3A_423C_AC88_2A36AB21479B);
pub(super) const ITEM_PMEM_LABELS: Guid = Guid::of(0x10E1AE8A_4B7E_4169_A40F_CD70DE928393);

pub(super) const LOCATOR_TYPE_VHDX: Guid = Guid::of(0xB04AEFB7_D19E_4A81_B789_25B8E9445913);

/// Header (2.2), at 64 KiB and 128 KiB.
#[derive(Clone, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(super) struct Header {
    /// `head`.
    pub(super) signature: [u8; 4],
    /// CRC-32C of the 4096 bytes with this field zero.
    pub(super) checksum: U32,
    /// The valid header with the larger number is current.
    pub(super) sequence_number: U64,
    /// Changes with every session that writes to the file.
    pub(super) file_write_guid: Guid,
    /// Changes with every session that changes what the disk reads.
    pub(super) data_write_guid: Guid,
    /// Zero: the log is empty. Else the entries that count carry this value.
    pub(super) log_guid: Guid,
    /// 0.
    pub(super) log_version: U16,
    /// 1.
    pub(super) version: U16,
    /// Bytes, a multiple of 1 MiB.
    pub(super) log_length: U32,
    /// Bytes, a multiple of 1 MiB.
    pub(super) log_offset: U64,
    pub(super) reserved: [u8; 4016],
}

/// First 16 bytes of a region table (2.3).
#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(super) struct RegionTableHeader {
    /// `regi`.
    pub(super) signature: [u8; 4],
    /// CRC-32C of the 64 KiB with this field zero.
    pub(super) checksum: U32,
    /// At most 2047.
    pub(super) entry_count: U32,
    pub(super) reserved: U32,
}

/// Entry of a region table.
#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(super) struct RegionTableEntry {
    /// Unique in the table.
    pub(super) guid: Guid,
    /// Bytes, a multiple of 1 MiB, at least 1 MiB.
    pub(super) file_offset: U64,
    /// Bytes, a multiple of 1 MiB, not zero.
    pub(super) length: U32,
    /// Bit 0: refuse the file if the region is unknown.
    pub(super) required: U32,
}

/// Header of a log entry (3.1).
#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(super) struct LogEntryHeader {
    /// `loge`.
    pub(super) signature: [u8; 4],
    /// CRC-32C of the whole entry with this field zero.
    pub(super) checksum: U32,
    /// Bytes, a multiple of 4096.
    pub(super) entry_length: U32,
    /// Offset within the log of the oldest entry that is still needed.
    pub(super) tail: U32,
    /// Not zero; one more from entry to entry.
    pub(super) sequence_number: U64,
    pub(super) descriptor_count: U32,
    pub(super) reserved: U32,
    /// The header's LogGuid.
    pub(super) log_guid: Guid,
    /// A file length that was durable when the entry was written.
    pub(super) flushed_file_offset: U64,
    /// A file length that holds everything allocated when the entry was written.
    pub(super) last_file_offset: U64,
}

/// Descriptor of zeros or of one page (3.1). What `detail` holds depends on the signature: for `zero` four reserved
/// bytes and the length (u64), for `desc` the page's last 4 and first 8 bytes.
#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(super) struct LogDescriptor {
    /// `zero` or `desc`.
    pub(super) signature: [u8; 4],
    /// `desc`: bytes 4092 to 4095 of the page.
    pub(super) trailing_bytes: [u8; 4],
    /// `desc`: bytes 0 to 7 of the page. `zero`: length in bytes.
    pub(super) leading_bytes: [u8; 8],
    /// Multiple of 4096.
    pub(super) file_offset: U64,
    /// The entry's.
    pub(super) sequence_number: U64,
}

/// Sector that holds the middle of a page (3.1).
#[derive(Clone, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(super) struct LogDataSector {
    /// `data`.
    pub(super) signature: [u8; 4],
    /// Upper half of the entry's sequence number.
    pub(super) sequence_high: U32,
    /// Bytes 8 to 4091 of the page.
    pub(super) data: [u8; 4084],
    /// Lower half of the entry's sequence number.
    pub(super) sequence_low: U32,
}

/// Header of the metadata table (5).
#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(super) struct MetadataTableHeader {
    /// `metadata`.
    pub(super) signature: [u8; 8],
    pub(super) reserved: U16,
    /// At most 2047.
    pub(super) entry_count: U16,
    pub(super) reserved2: [u8; 20],
}

/// Entry of the metadata table (5).
#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(super) struct MetadataTableEntry {
    pub(super) item_id: Guid,
    /// From the start of the region; at least 65536, or 0 if the length is 0.
    pub(super) offset: U32,
    /// At most 1 MiB.
    pub(super) length: U32,
    /// Bit 0 user, bit 1 virtual disk, bit 2 required.
    pub(super) flags: U32,
    pub(super) reserved2: U32,
}

/// Header of a parent locator (5.1).
#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(super) struct ParentLocatorHeader {
    pub(super) locator_type: Guid,
    pub(super) reserved: U16,
    pub(super) key_value_count: U16,
}

/// Entry of a parent locator (5.1). Offsets are from the start of the item, lengths in bytes.
#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(super) struct ParentLocatorEntry {
    pub(super) key_offset: U32,
    pub(super) value_offset: U32,
    pub(super) key_length: U16,
    pub(super) value_length: U16,
}

macro_rules! assert_layout {
    ($type:ty, $size:expr, $($field:ident at $offset:expr),* $(,)?) => {
        const _: () = {
            assert!(size_of::<$type>() == $size);
            $(assert!(std::mem::offset_of!($type, $field) == $offset);)*
        };
    };
}

assert_layout!(Header, 4096, checksum at 4, sequence_number at 8, file_write_guid at 16,
    data_write_guid at 32, log_guid at 48, log_version at 64, version at 66, log_length at 68,
    log_offset at 72, reserved at 80);
assert_layout!(RegionTableHeader, 16, checksum at 4, entry_count at 8);
assert_layout!(RegionTableEntry, 32, file_offset at 16, length at 24, required at 28);
assert_layout!(LogEntryHeader, 64, checksum at 4, entry_length at 8, tail at 12,
    sequence_number at 16, descriptor_count at 24, log_guid at 32, flushed_file_offset at 48,
    last_file_offset at 56);
assert_layout!(LogDescriptor, 32, trailing_bytes at 4, leading_bytes at 8, file_offset at 16,
    sequence_number at 24);
assert_layout!(LogDataSector, 4096, sequence_high at 4, data at 8, sequence_low at 4092);
assert_layout!(MetadataTableHeader, 32, entry_count at 10);
assert_layout!(MetadataTableEntry, 32, offset at 16, length at 20, flags at 24);
assert_layout!(ParentLocatorHeader, 20, reserved at 16, key_value_count at 18);
assert_layout!(ParentLocatorEntry, 12, value_offset at 4, key_length at 8, value_length at 10);

/// CRC-32C of `bytes` with the four bytes at `offset 4`, where every VHDX structure has its checksum, taken as zero.
pub(super) fn checksum(bytes: &[u8]) -> u32 {
    let (head, rest) = bytes.split_at(4.min(bytes.len()));
    let crc = crc32c::crc32c_append(crc32c::crc32c(head), &[0; 4]);
    crc32c::crc32c_append(crc, rest.get(4..).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_is_castagnoli_and_leaves_its_own_field_out() {
        assert_eq!(crc32c::crc32c(b"123456789"), 0xE306_9283);
        assert_eq!(crc32c::crc32c(&[0; 32]), 0x8A91_36AA);
        assert_eq!(crc32c::crc32c(&[0xFF; 32]), 0x62A8_AB43);
        let mut page = [0_u8; 4096];
        assert_eq!(checksum(&page), 0x98F9_4189);
        page[4..8].copy_from_slice(&[1, 2, 3, 4]);
        assert_eq!(checksum(&page), 0x98F9_4189);
    }

    #[test]
    fn a_guid_is_stored_in_the_mixed_order() {
        let bytes = REGION_BAT.as_bytes();
        assert_eq!(bytes[..6], [0x66, 0x77, 0xC2, 0x2D, 0x23, 0xF6]);
    }
}
