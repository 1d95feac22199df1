//! Any bytes: never a panic, an endless loop or an unbounded allocation.

use proptest::prelude::*;

use super::*;
use crate::error::ErrorKind;
use crate::image::{NoBacking, ZeroMode};
use crate::vhd::{detect, is_exact_fixed};

/// Does everything that can be done to a file.
fn exercise(storage: &MemoryStorage) -> Option<ErrorKind> {
    let _ = detect(storage).unwrap();
    let _ = is_exact_fixed(storage).unwrap();
    let found = findings(storage);
    for writable in [false, true] {
        // Each in its own copy.
        let image = match open(&storage.clone(), writable) {
            Ok(image) => image,
            Err(error) if writable => return Some(error.kind()),
            Err(error) => {
                assert_eq!(worst(&found), Some(Severity::Fatal), "{error}: {found:?}");
                continue;
            }
        };
        assert!(worst(&found) < Some(Severity::Fatal), "{found:?}");
        let size = image.virtual_size();
        for offset in [0, size / 2, size - 512] {
            let mut buf = [0; 512];
            let _ = image.read_at(offset, &mut buf, &mut Vec::new());
            if let Ok(extent) = image.map(offset, size - offset) {
                assert!(extent.length > 0 && extent.length <= size - offset);
            }
            if writable {
                let _ = image.write_at(offset + 1, &[3; 100], &NoBacking);
                let _ = image.zero(offset, 512, ZeroMode::KeepAllocated, &NoBacking);
                let _ = image.discard(offset, 512, &NoBacking);
            }
        }
        let _ = image.close();
    }
    None
}

const EDGES: [u64; 26] = [
    0,
    1,
    2,
    3,
    4,
    5,
    511,
    512,
    513,
    1023,
    1024,
    1536,
    2048,
    4096,
    0x7FFF_FFFF,
    0x8000_0000,
    0xFFFF_FE00,
    0xFFFF_FFFE,
    0xFFFF_FFFF,
    0x1_0000_0000,
    1 << 40,
    1 << 62,
    1 << 63,
    u64::MAX - 511,
    u64::MAX - 1,
    u64::MAX,
];

/// A disk with a block, so that there is something to misplace.
fn sample(disk_type: DiskType) -> MemoryStorage {
    let storage = Arc::new(create_small(disk_type, 64 * 1024, 4096));
    let image = VhdImage::open(storage.clone(), true).unwrap();
    image.write_at(5000, &[1; 3000], &NoBacking).unwrap();
    image.close().unwrap();
    (*storage).clone()
}

#[test]
fn every_field_at_its_edges() {
    let footer_fields: &[(usize, usize)] = &[
        (8, 4),
        (12, 4),
        (16, 8),
        (24, 4),
        (28, 4),
        (40, 8),
        (48, 8),
        (56, 4),
        (60, 4),
        (84, 1),
    ];
    let header_fields: &[(usize, usize)] = &[
        (8, 8),
        (16, 8),
        (24, 4),
        (28, 4),
        (32, 4),
        (40, 8),
        (56, 4),
        (576, 4),
        (580, 4),
        (584, 4),
        (592, 8),
        (608, 4),
        (616, 8),
    ];
    for disk_type in [DiskType::Fixed, DiskType::Dynamic, DiskType::Differencing] {
        let clean = sample(disk_type);
        let put = |bytes: &mut [u8], (offset, width): (usize, usize), value: u64| {
            bytes[offset..offset + width].copy_from_slice(&value.to_be_bytes()[8 - width..]);
        };
        for &field in footer_fields {
            for value in EDGES {
                let storage = clean.clone();
                change_footers(&storage, |f| put(f.as_mut_bytes(), field, value));
                exercise(&storage);
            }
        }
        if disk_type == DiskType::Fixed {
            continue;
        }
        for &field in header_fields {
            for value in EDGES {
                let storage = clean.clone();
                let mut header = header(&storage);
                put(header.as_mut_bytes(), field, value);
                put_header(&storage, header);
                exercise(&storage);
            }
        }
        for value in EDGES {
            for block in [0, 1, 15, 16, 127] {
                let storage = clean.clone();
                let bytes = u32::try_from(value & 0xFFFF_FFFF).unwrap().to_be_bytes();
                storage.write_at(1536 + block * 4, &bytes).unwrap();
                exercise(&storage);
            }
        }
    }
}

#[test]
fn a_large_file_of_nothing_does_not_ask_for_its_size_in_memory() {
    // A table of 2^32 - 1 entries fits into a sparse file of 2^40 bytes.
    for (entries, block_size, size) in [
        (u32::MAX, 512_u32, 2040_u64 << 30),
        (u32::MAX, 512, u64::MAX - 511),
        (1_073_741_825, 512, 34_816),
        (u32::MAX, 1 << 31, 1 << 62),
    ] {
        let storage = create(&parameters(DiskType::Dynamic, MIB));
        storage.set_len(1 << 40).unwrap();
        let mut header = header(&storage);
        header.max_table_entries = entries.into();
        header.block_size = block_size.into();
        put_header(&storage, header);
        let mut footer = footer_at(&storage, 0);
        footer.current_size = size.into();
        footer.sign();
        storage.write_at(0, footer.as_bytes()).unwrap();
        let opened = open(&storage, false);
        let fits = size == 34_816;
        assert_eq!(opened.is_ok(), fits, "{entries} {block_size} {size}");
    }
}

#[test]
fn a_table_that_is_not_in_the_file_is_refused() {
    let storage = create(&parameters(DiskType::Dynamic, MIB));
    let mut header = header(&storage);
    header.max_table_entries = 1_073_741_825.into();
    put_header(&storage, header);
    let error = open(&storage, false).err().expect("refused");
    assert_eq!(error.kind(), ErrorKind::SparseHeaderCorrupt);
}

#[test]
fn a_file_cut_anywhere_is_refused_or_read() {
    for disk_type in [DiskType::Fixed, DiskType::Dynamic, DiskType::Differencing] {
        let clean = sample(disk_type);
        for length in (0..clean.len().unwrap()).step_by(37) {
            let storage = clean.clone();
            storage.set_len(length).unwrap();
            exercise(&storage);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn flipped_bytes_with_right_checksums(
        differencing: bool,
        changes in prop::collection::vec((0_usize..2560, any::<u8>()), 1..6),
    ) {
        let disk_type = if differencing { DiskType::Differencing } else { DiskType::Dynamic };
        let storage = sample(disk_type);
        for (offset, byte) in changes {
            storage.write_at(offset as u64, &[byte]).unwrap();
        }
        let mut footer = footer_at(&storage, 0);
        footer.sign();
        storage.write_at(0, footer.as_bytes()).unwrap();
        storage.write_at(storage.len().unwrap() - 512, footer.as_bytes()).unwrap();
        let header = header(&storage);
        put_header(&storage, header);
        exercise(&storage);
    }
}
