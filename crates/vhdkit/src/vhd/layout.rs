//! The bytes of a VHD file, as structures. No behaviour.
//!
//! All integers are big-endian; offsets and lengths are in bytes unless a field says sectors. A sector has 512 bytes.

use std::mem::offset_of;

use zerocopy::big_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// The unit of everything in the format.
pub(super) const SECTOR: u64 = 512;

/// First eight bytes of a footer.
pub(super) const FOOTER_COOKIE: [u8; 8] = *b"conectix";
/// First eight bytes of a dynamic header.
pub(super) const HEADER_COOKIE: [u8; 8] = *b"cxsparse";
/// The only version of footer and header: 1.0.
pub(super) const VERSION: u32 = 0x0001_0000;
/// "No further structure".
pub(super) const NO_OFFSET: u64 = u64::MAX;

/// Features: the file may be deleted at shutdown.
pub(super) const FEATURE_TEMPORARY: u32 = 1;
/// Features: always set.
pub(super) const FEATURE_RESERVED: u32 = 2;

pub(super) const TYPE_FIXED: u32 = 2;
pub(super) const TYPE_DYNAMIC: u32 = 3;
pub(super) const TYPE_DIFFERENCING: u32 = 4;

/// A BAT entry of a block that takes no space.
pub(super) const UNALLOCATED: u32 = u32::MAX;

/// Seconds from 1970-01-01 to 2000-01-01 UTC, the zero of all time stamps.
pub(super) const EPOCH: i64 = 946_684_800;

/// Size of a footer in all files but those of Virtual PC before 2004.
pub(super) const FOOTER_SIZE: u64 = size_of::<Footer>() as u64;
/// Size of the footer of Virtual PC before 2004: the last reserved byte is missing.
pub(super) const SHORT_FOOTER_SIZE: u64 = FOOTER_SIZE - 1;
/// Size of a dynamic header.
pub(super) const HEADER_SIZE: u64 = size_of::<Header>() as u64;

/// The last sector of every file, and a copy of it in the first sector of dynamic and differencing files.
#[derive(Clone, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(super) struct Footer {
    /// [`FOOTER_COOKIE`].
    pub(super) cookie: [u8; 8],
    /// [`FEATURE_RESERVED`], perhaps with [`FEATURE_TEMPORARY`].
    pub(super) features: U32,
    /// [`VERSION`]; another minor version is compatible.
    pub(super) version: U32,
    /// Where the dynamic header is; [`NO_OFFSET`] in fixed files.
    pub(super) data_offset: U64,
    /// Creation, in seconds since 2000.
    pub(super) timestamp: U32,
    /// ASCII, padded with spaces or NULs.
    pub(super) creator_application: [u8; 4],
    /// Major and minor version, 16 bits each.
    pub(super) creator_version: U32,
    /// ASCII: `Wi2k`, `Mac `, or zero.
    pub(super) creator_host_os: [u8; 4],
    /// Size of the disk when it was made; informational.
    pub(super) original_size: U64,
    /// Size of the disk.
    pub(super) current_size: U64,
    /// Cylinders of the geometry, see [`super::geometry`].
    pub(super) cylinders: U16,
    /// Heads of the geometry.
    pub(super) heads: u8,
    /// Sectors per track of the geometry.
    pub(super) sectors_per_track: u8,
    /// [`TYPE_FIXED`], [`TYPE_DYNAMIC`] or [`TYPE_DIFFERENCING`].
    pub(super) disk_type: U32,
    /// One's complement of the sum of all other bytes.
    pub(super) checksum: U32,
    /// The disk's identifier, in the order of its text.
    pub(super) unique_id: [u8; 16],
    /// 1 if the disk belongs to a machine in saved state.
    pub(super) saved_state: u8,
    /// Zero; XenServer keeps a flag in the first byte.
    pub(super) reserved: [u8; 427],
}

/// What the last reserved bytes of a fixed disk's footer hold while the disk grows: this library's own, for a VHD has no
/// log and a fixed one no second footer. Other programs ignore it.
#[derive(Clone, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(super) struct GrowMark {
    /// [`GROW_COOKIE`].
    pub(super) cookie: [u8; 8],
    /// From here...
    pub(super) start: U64,
    /// ... to here the new space of the disk still holds bytes that were not the guest's: it reads as zeros.
    pub(super) end: U64,
}

/// First eight bytes of a mark.
pub(super) const GROW_COOKIE: [u8; 8] = *b"vhdkgrow";

/// The dynamic header, at [`Footer::data_offset`] of dynamic and differencing files. It has no copy.
#[derive(Clone, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(super) struct Header {
    /// [`HEADER_COOKIE`].
    pub(super) cookie: [u8; 8],
    /// [`NO_OFFSET`].
    pub(super) data_offset: U64,
    /// Where the block allocation table (BAT) is; a multiple of 512.
    pub(super) table_offset: U64,
    /// [`VERSION`].
    pub(super) version: U32,
    /// Entries of the BAT; at least the number of blocks of the disk.
    pub(super) max_table_entries: U32,
    /// Bytes of data in a block (its bitmap not counted): a power of two.
    pub(super) block_size: U32,
    /// One's complement of the sum of all other bytes.
    pub(super) checksum: U32,
    /// The parent's [`Footer::unique_id`]; zero without a parent.
    pub(super) parent_unique_id: [u8; 16],
    /// Last change of the parent's file, in seconds since 2000; zero without a parent.
    pub(super) parent_timestamp: U32,
    /// Zero.
    pub(super) reserved: U32,
    /// The parent's file name, UTF-16 big-endian, padded with NULs.
    pub(super) parent_unicode_name: [U16; 256],
    /// Where the parent may be; slots in any order, unused ones zero.
    pub(super) parent_locators: [Locator; 8],
    /// Zero.
    pub(super) reserved_end: [u8; 256],
}

/// One parent locator: where in the file a path of the parent is stored.
#[derive(
    Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Default,
)]
#[repr(C)]
pub(super) struct Locator {
    /// How the path is written: `W2ru`, `W2ku`, `MacX` and others, see [`super::locator`]; zero if unused.
    pub(super) platform_code: [u8; 4],
    /// Room for the path: bytes in all files of Microsoft's products, sectors in the text of the specification.
    pub(super) platform_data_space: U32,
    /// Length of the path in bytes, without a terminator.
    pub(super) platform_data_length: U32,
    /// Zero.
    pub(super) reserved: U32,
    /// Where the path is in the file.
    pub(super) platform_data_offset: U64,
}

/// The batmap header of XenServer, in the sector after the BAT. Only its place is of interest here.
#[derive(Clone, FromBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(super) struct Batmap {
    /// `tdbatmap`.
    pub(super) cookie: [u8; 8],
    /// Where the map is.
    pub(super) offset: U64,
    /// Length of the map in sectors.
    pub(super) sectors: U32,
}

/// First eight bytes of a batmap header.
pub(super) const BATMAP_COOKIE: [u8; 8] = *b"tdbatmap";

macro_rules! layout {
    ($type:ident, $size:expr, $($field:ident = $offset:expr),+) => {
        const _: () = assert!(size_of::<$type>() == $size);
        $(const _: () = assert!(offset_of!($type, $field) == $offset);)+
    };
}

layout!(
    Footer,
    512,
    cookie = 0,
    features = 8,
    version = 12,
    data_offset = 16,
    timestamp = 24,
    creator_application = 28,
    creator_version = 32,
    creator_host_os = 36,
    original_size = 40,
    current_size = 48,
    cylinders = 56,
    heads = 58,
    sectors_per_track = 59,
    disk_type = 60,
    checksum = 64,
    unique_id = 68,
    saved_state = 84,
    reserved = 85
);
layout!(
    Header,
    1024,
    cookie = 0,
    data_offset = 8,
    table_offset = 16,
    version = 24,
    max_table_entries = 28,
    block_size = 32,
    checksum = 36,
    parent_unique_id = 40,
    parent_timestamp = 56,
    reserved = 60,
    parent_unicode_name = 64,
    parent_locators = 576,
    reserved_end = 768
);
layout!(
    Locator,
    24,
    platform_code = 0,
    platform_data_space = 4,
    platform_data_length = 8,
    reserved = 12,
    platform_data_offset = 16
);
layout!(GrowMark, 24, cookie = 0, start = 8, end = 16);
layout!(Batmap, 20, cookie = 0, offset = 8, sectors = 16);
