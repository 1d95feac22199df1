//! Changes to the fields of VHD and VHDX files, with the checksums put right: what a hostile or unlucky writer could
//! have left. Knows the formats by their specifications, not through the library.

use vhdkit::storage::Storage;

/// Bytes from a storage.
pub fn get(storage: &dyn Storage, offset: u64, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    storage
        .read_at(offset, &mut bytes)
        .unwrap_or_else(|e| panic!("patch: {e}"));
    bytes
}

/// Bytes into a storage.
pub fn put(storage: &dyn Storage, offset: u64, bytes: &[u8]) {
    storage
        .write_at(offset, bytes)
        .unwrap_or_else(|e| panic!("patch: {e}"));
}

/// VHDX: little-endian, CRC-32C at byte 4 of each checked structure.
pub mod vhdx {
    use super::{Storage, get, put};

    /// Where the two headers are.
    pub const HEADERS: [u64; 2] = [0x1_0000, 0x2_0000];
    /// Where the two region tables are.
    pub const REGION_TABLES: [u64; 2] = [0x3_0000, 0x4_0000];
    /// Bytes of a header.
    pub const HEADER_LENGTH: usize = 4096;
    /// Bytes of a region table.
    pub const REGION_TABLE_LENGTH: usize = 65536;
    /// 2DC27766-F623-4200-9D64-115E9BFD4A08.
    pub const BAT: [u8; 16] = guid(
        0x2DC2_7766,
        0xF623,
        0x4200,
        [0x9D, 0x64, 0x11, 0x5E, 0x9B, 0xFD, 0x4A, 0x08],
    );
    /// 8B7CA206-4790-4B9A-B8FE-575F050F886E.
    pub const METADATA: [u8; 16] = guid(
        0x8B7C_A206,
        0x4790,
        0x4B9A,
        [0xB8, 0xFE, 0x57, 0x5F, 0x05, 0x0F, 0x88, 0x6E],
    );
    /// CAA16737-FA36-4D43-B3B6-33F0AA44E76B.
    pub const FILE_PARAMETERS: [u8; 16] = guid(
        0xCAA1_6737,
        0xFA36,
        0x4D43,
        [0xB3, 0xB6, 0x33, 0xF0, 0xAA, 0x44, 0xE7, 0x6B],
    );
    /// 2FA54224-CD1B-4876-B211-5DBED83BF4B8.
    pub const DISK_SIZE: [u8; 16] = guid(
        0x2FA5_4224,
        0xCD1B,
        0x4876,
        [0xB2, 0x11, 0x5D, 0xBE, 0xD8, 0x3B, 0xF4, 0xB8],
    );
    /// BECA12AB-B2E6-4523-93EF-C309E000C746.
    pub const DISK_ID: [u8; 16] = guid(
        0xBECA_12AB,
        0xB2E6,
        0x4523,
        [0x93, 0xEF, 0xC3, 0x09, 0xE0, 0x00, 0xC7, 0x46],
    );
    /// 8141BF1D-A96F-4709-BA47-F233A8FAAB5F.
    pub const LOGICAL_SECTOR: [u8; 16] = guid(
        0x8141_BF1D,
        0xA96F,
        0x4709,
        [0xBA, 0x47, 0xF2, 0x33, 0xA8, 0xFA, 0xAB, 0x5F],
    );
    /// CDA348C7-445D-4471-9CC9-E9885251C556.
    pub const PHYSICAL_SECTOR: [u8; 16] = guid(
        0xCDA3_48C7,
        0x445D,
        0x4471,
        [0x9C, 0xC9, 0xE9, 0x88, 0x52, 0x51, 0xC5, 0x56],
    );
    /// A8D35F2D-B30B-454D-ABF7-D3D84834AB0C.
    pub const PARENT_LOCATOR: [u8; 16] = guid(
        0xA8D3_5F2D,
        0xB30B,
        0x454D,
        [0xAB, 0xF7, 0xD3, 0xD8, 0x48, 0x34, 0xAB, 0x0C],
    );

    const fn guid(a: u32, b: u16, c: u16, d: [u8; 8]) -> [u8; 16] {
        let (a, b, c) = (a.to_le_bytes(), b.to_le_bytes(), c.to_le_bytes());
        [
            a[0], a[1], a[2], a[3], b[0], b[1], c[0], c[1], d[0], d[1], d[2], d[3], d[4], d[5],
            d[6], d[7],
        ]
    }

    fn u32_at(bytes: &[u8], at: usize) -> u32 {
        u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
    }

    fn u64_at(bytes: &[u8], at: usize) -> u64 {
        u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
    }

    /// Puts the checksum at byte 4 right.
    pub fn seal(bytes: &mut [u8]) {
        bytes[4..8].fill(0);
        let sum = crc32c::crc32c(bytes);
        bytes[4..8].copy_from_slice(&sum.to_le_bytes());
    }

    /// Changes bytes of a checked structure and puts its checksum right.
    pub fn edit(storage: &dyn Storage, at: u64, length: usize, change: impl FnOnce(&mut [u8])) {
        let mut bytes = get(storage, at, length);
        change(&mut bytes);
        seal(&mut bytes);
        put(storage, at, &bytes);
    }

    /// Changes both headers alike (but for what the closure does not touch).
    pub fn edit_headers(storage: &dyn Storage, change: impl Fn(&mut [u8])) {
        for at in HEADERS {
            edit(storage, at, HEADER_LENGTH, &change);
        }
    }

    /// Changes both region tables alike.
    pub fn edit_region_tables(storage: &dyn Storage, change: impl Fn(&mut [u8])) {
        for at in REGION_TABLES {
            edit(storage, at, REGION_TABLE_LENGTH, &change);
        }
    }

    /// Which header counts: valid, with the larger sequence number.
    pub fn current_header(storage: &dyn Storage) -> u64 {
        let valid = |at: u64| {
            let bytes = get(storage, at, HEADER_LENGTH);
            let mut sealed = bytes.clone();
            seal(&mut sealed);
            (sealed == bytes && &bytes[..4] == b"head").then(|| u64_at(&bytes, 8))
        };
        if valid(HEADERS[1]) > valid(HEADERS[0]) {
            HEADERS[1]
        } else {
            HEADERS[0]
        }
    }

    /// Offset and length of a region.
    pub fn region(storage: &dyn Storage, id: [u8; 16]) -> (u64, u64) {
        let table = get(storage, REGION_TABLES[0], REGION_TABLE_LENGTH);
        (0..u32_at(&table, 8) as usize)
            .map(|i| 16 + 32 * i)
            .find(|&at| table[at..at + 16] == id)
            .map(|at| (u64_at(&table, at + 16), u64::from(u32_at(&table, at + 24))))
            .expect("the region")
    }

    /// Where the metadata table's entry of an item is.
    pub fn metadata_entry(storage: &dyn Storage, item: [u8; 16]) -> Option<u64> {
        let (start, _) = region(storage, METADATA);
        let table = get(storage, start, 65536);
        let count = u16::from_le_bytes([table[10], table[11]]) as usize;
        (0..count)
            .map(|i| 32 + 32 * i)
            .find(|&at| table[at..at + 16] == item)
            .map(|at| start + at as u64)
    }

    /// Where the bytes of an item are, and how many.
    pub fn metadata_item(storage: &dyn Storage, item: [u8; 16]) -> (u64, u64) {
        let (start, _) = region(storage, METADATA);
        let entry = metadata_entry(storage, item).expect("the item");
        let bytes = get(storage, entry, 32);
        (
            start + u64::from(u32_at(&bytes, 16)),
            u64::from(u32_at(&bytes, 20)),
        )
    }

    /// Adds an item to the metadata table; its bytes go to the region's last KiB.
    pub fn add_metadata_item(storage: &dyn Storage, item: [u8; 16], flags: u32, data: &[u8]) {
        let (start, length) = region(storage, METADATA);
        let mut table = get(storage, start, 65536);
        let count = u16::from_le_bytes([table[10], table[11]]);
        let at = 32 + 32 * count as usize;
        let place = (length - 1024) as u32;
        table[at..at + 16].copy_from_slice(&item);
        table[at + 16..at + 20]
            .copy_from_slice(&if data.is_empty() { 0 } else { place }.to_le_bytes());
        table[at + 20..at + 24].copy_from_slice(&(data.len() as u32).to_le_bytes());
        table[at + 24..at + 28].copy_from_slice(&flags.to_le_bytes());
        table[10..12].copy_from_slice(&(count + 1).to_le_bytes());
        put(storage, start, &table);
        put(storage, start + u64::from(place), data);
    }

    /// Where an entry of the BAT is.
    pub fn bat_entry_offset(storage: &dyn Storage, index: u64) -> u64 {
        region(storage, BAT).0 + 8 * index
    }

    /// An entry of the BAT.
    pub fn bat_entry(storage: &dyn Storage, index: u64) -> u64 {
        u64_at(&get(storage, bat_entry_offset(storage, index), 8), 0)
    }

    /// Changes an entry of the BAT.
    pub fn set_bat_entry(storage: &dyn Storage, index: u64, entry: u64) {
        put(
            storage,
            bat_entry_offset(storage, index),
            &entry.to_le_bytes(),
        );
    }

    /// Offset and length of the log.
    pub fn log(storage: &dyn Storage) -> (u64, u64) {
        let header = get(storage, current_header(storage), HEADER_LENGTH);
        (u64_at(&header, 72), u64::from(u32_at(&header, 68)))
    }

    /// Says that the log counts (or, with zeros, that it is empty).
    pub fn set_log_guid(storage: &dyn Storage, guid: [u8; 16]) {
        edit_headers(storage, |header| header[48..64].copy_from_slice(&guid));
    }

    /// What a log entry does.
    #[derive(Clone, Debug)]
    pub enum LogChange {
        /// A page of 4096 bytes for this file offset.
        Page(u64, Vec<u8>),
        /// Zeros: offset and length.
        Zeros(u64, u64),
    }

    /// A log entry.
    #[derive(Clone, Debug)]
    pub struct LogEntry {
        /// The log's identifier.
        pub guid: [u8; 16],
        /// Its number.
        pub sequence: u64,
        /// Where in the log the oldest entry of the sequence is.
        pub tail: u32,
        /// A length of the file that is durable.
        pub flushed_file_offset: u64,
        /// A length of the file that holds everything.
        pub last_file_offset: u64,
        /// What it does.
        pub changes: Vec<LogChange>,
    }

    impl LogEntry {
        /// Its bytes, checksum included: a multiple of 4096.
        pub fn to_bytes(&self) -> Vec<u8> {
            let descriptors = (64 + 32 * self.changes.len()).next_multiple_of(4096);
            let pages = self
                .changes
                .iter()
                .filter(|c| matches!(c, LogChange::Page(..)))
                .count();
            let mut bytes = vec![0; descriptors + 4096 * pages];
            let length = bytes.len() as u32;
            bytes[..4].copy_from_slice(b"loge");
            bytes[8..12].copy_from_slice(&length.to_le_bytes());
            bytes[12..16].copy_from_slice(&self.tail.to_le_bytes());
            bytes[16..24].copy_from_slice(&self.sequence.to_le_bytes());
            bytes[24..28].copy_from_slice(&(self.changes.len() as u32).to_le_bytes());
            bytes[32..48].copy_from_slice(&self.guid);
            bytes[48..56].copy_from_slice(&self.flushed_file_offset.to_le_bytes());
            bytes[56..64].copy_from_slice(&self.last_file_offset.to_le_bytes());
            let mut sector = descriptors;
            for (i, change) in self.changes.iter().enumerate() {
                let at = 64 + 32 * i;
                match change {
                    LogChange::Zeros(offset, length) => {
                        bytes[at..at + 4].copy_from_slice(b"zero");
                        bytes[at + 8..at + 16].copy_from_slice(&length.to_le_bytes());
                        bytes[at + 16..at + 24].copy_from_slice(&offset.to_le_bytes());
                    }
                    LogChange::Page(offset, page) => {
                        bytes[at..at + 4].copy_from_slice(b"desc");
                        bytes[at + 4..at + 8].copy_from_slice(&page[4092..]);
                        bytes[at + 8..at + 16].copy_from_slice(&page[..8]);
                        bytes[at + 16..at + 24].copy_from_slice(&offset.to_le_bytes());
                        bytes[sector..sector + 4].copy_from_slice(b"data");
                        bytes[sector + 4..sector + 8]
                            .copy_from_slice(&((self.sequence >> 32) as u32).to_le_bytes());
                        bytes[sector + 8..sector + 4092].copy_from_slice(&page[8..4092]);
                        bytes[sector + 4092..sector + 4096]
                            .copy_from_slice(&(self.sequence as u32).to_le_bytes());
                        sector += 4096;
                    }
                }
                bytes[at + 24..at + 32].copy_from_slice(&self.sequence.to_le_bytes());
            }
            seal(&mut bytes);
            bytes
        }
    }

    /// Writes bytes into the log at a position of the ring, wrapping at its end.
    pub fn put_in_log(storage: &dyn Storage, position: u64, bytes: &[u8]) {
        let (start, length) = log(storage);
        for (i, sector) in bytes.chunks(4096).enumerate() {
            put(
                storage,
                start + (position + i as u64 * 4096) % length,
                sector,
            );
        }
    }
}

/// VHD: big-endian, the ones' complement of the sum of the bytes.
pub mod vhd {
    use super::{Storage, get, put};

    fn seal(bytes: &mut [u8], at: usize) {
        bytes[at..at + 4].fill(0);
        let sum: u32 = bytes.iter().map(|&b| u32::from(b)).sum();
        bytes[at..at + 4].copy_from_slice(&(!sum).to_be_bytes());
    }

    /// Puts the checksum of a footer right.
    pub fn seal_footer(footer: &mut [u8]) {
        seal(footer, 64);
    }

    /// Puts the checksum of a dynamic header right.
    pub fn seal_header(header: &mut [u8]) {
        seal(header, 36);
    }

    /// Where the footers are: the one at the end, then (unless the disk is fixed) the copy.
    pub fn footers(storage: &dyn Storage) -> Vec<u64> {
        let end = storage.len().expect("length") - 512;
        let footer = get(storage, end, 512);
        if footer[60..64] == [0, 0, 0, 2] {
            vec![end]
        } else {
            vec![end, 0]
        }
    }

    /// Changes all footers alike.
    pub fn edit_footers(storage: &dyn Storage, change: impl Fn(&mut [u8])) {
        for at in footers(storage) {
            let mut footer = get(storage, at, 512);
            change(&mut footer);
            seal_footer(&mut footer);
            put(storage, at, &footer);
        }
    }

    /// Where the dynamic header is.
    pub fn header_offset(storage: &dyn Storage) -> u64 {
        let end = storage.len().expect("length") - 512;
        u64::from_be_bytes(get(storage, end + 16, 8).try_into().expect("eight bytes"))
    }

    /// Changes the dynamic header.
    pub fn edit_header(storage: &dyn Storage, change: impl FnOnce(&mut [u8])) {
        let at = header_offset(storage);
        let mut header = get(storage, at, 1024);
        change(&mut header);
        seal_header(&mut header);
        put(storage, at, &header);
    }

    /// Where an entry of the BAT is.
    pub fn bat_entry_offset(storage: &dyn Storage, index: u64) -> u64 {
        let header = get(storage, header_offset(storage), 1024);
        u64::from_be_bytes(header[16..24].try_into().expect("eight bytes")) + 4 * index
    }

    /// An entry of the BAT.
    pub fn bat_entry(storage: &dyn Storage, index: u64) -> u32 {
        let bytes = get(storage, bat_entry_offset(storage, index), 4);
        u32::from_be_bytes(bytes.try_into().expect("four bytes"))
    }

    /// Changes an entry of the BAT.
    pub fn set_bat_entry(storage: &dyn Storage, index: u64, entry: u32) {
        put(
            storage,
            bat_entry_offset(storage, index),
            &entry.to_be_bytes(),
        );
    }
}
