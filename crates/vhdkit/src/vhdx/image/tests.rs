//! Rules of an open file that need to look inside it.

use super::*;
use crate::image::{CreateParameters, IdentifierSource, ImageBuilder, NoBacking};
use crate::num::{GIB, MIB};
use crate::storage::MemoryStorage;
use crate::vhdx::VhdxBuilder;
use crate::vhdx::layout::{REGION_TABLE_LENGTH, REGION_TABLE_OFFSETS};

fn new_disk(virtual_size: u64) -> Arc<MemoryStorage> {
    let storage = Arc::new(MemoryStorage::new());
    let parameters = CreateParameters {
        format: Format::Vhdx,
        disk_type: DiskType::Dynamic,
        virtual_size,
        block_size: Some(MIB),
        logical_sector_size: None,
        physical_sector_size: None,
        identifier: None,
        parent: None,
        identifiers: IdentifierSource::seeded(1),
        created: 0,
    };
    VhdxBuilder::new(storage.clone(), &parameters)
        .unwrap()
        .finish()
        .unwrap();
    storage
}

fn guids(storage: &Arc<MemoryStorage>) -> (Uuid, Uuid, Uuid) {
    let headers = Headers::read(&**storage, storage.len().unwrap()).unwrap();
    (
        headers.file_write_guid,
        headers.data_write_guid,
        headers.log_guid,
    )
}

#[test]
fn the_identity_changes_once_per_session_that_changes_data_and_not_otherwise() {
    let storage = new_disk(64 * MIB);
    let first = guids(&storage);
    let before = storage.to_vec();
    let image = VhdxImage::open(storage.clone(), true).unwrap();
    image
        .zero(0, 64 * MIB, ZeroMode::MayUnmap, &NoBacking)
        .unwrap();
    image.discard(0, 64 * MIB, &NoBacking).unwrap();
    image.flush().unwrap();
    image.close().unwrap();
    assert!(
        storage.to_vec() == before,
        "what changes nothing writes nothing"
    );
    let image = VhdxImage::open(storage.clone(), true).unwrap();
    image.write_at(5, b"x", &NoBacking).unwrap();
    let second = guids(&storage);
    assert!(second.0 != first.0 && second.1 != first.1);
    image.flush().unwrap();
    image.write_at(MIB, b"y", &NoBacking).unwrap();
    image.flush().unwrap();
    let logging = guids(&storage);
    assert_eq!((logging.0, logging.1), (second.0, second.1));
    assert!(!logging.2.is_nil(), "the log is in use");
    image.close().unwrap();
    assert_eq!(
        guids(&storage),
        (second.0, second.1, Uuid::nil()),
        "a clean close empties the log"
    );
}

#[test]
fn a_damaged_region_table_is_repaired_through_the_log_by_the_next_writer() {
    for damaged in [0, 1] {
        let storage = new_disk(64 * MIB);
        storage
            .write_at(REGION_TABLE_OFFSETS[damaged] + 20, &[0xEE; 9])
            .unwrap();
        let image = VhdxImage::open(storage.clone(), true).unwrap();
        image.write_at(0, &[7; 512], &NoBacking).unwrap();
        image.close().unwrap();
        let mut copies = [vec![0; REGION_TABLE_LENGTH], vec![0; REGION_TABLE_LENGTH]];
        for (copy, offset) in copies.iter_mut().zip(REGION_TABLE_OFFSETS) {
            storage.read_at(offset, copy).unwrap();
        }
        assert!(copies[0] == copies[1]);
        let shared: Arc<dyn Storage> = storage;
        assert!(
            crate::vhdx::check(&shared)
                .unwrap()
                .iter()
                .all(|f| f.code != "vhdx-region-table-invalid")
        );
    }
}

#[test]
fn a_doubly_owned_block_can_be_read_but_not_written() {
    let storage = new_disk(64 * MIB);
    let image = VhdxImage::open(storage.clone(), true).unwrap();
    image.write_at(0, &[1; 512], &NoBacking).unwrap();
    image.write_at(MIB, &[2; 512], &NoBacking).unwrap();
    image.close().unwrap();
    let bat = image.regions.bat.offset;
    let mut entry = [0; 8];
    storage.read_at(bat, &mut entry).unwrap();
    storage.write_at(bat + 8, &entry).unwrap();
    let image = VhdxImage::open(storage.clone(), true).unwrap();
    let mut buf = [0; 4];
    image.read_at(MIB, &mut buf, &mut Vec::new()).unwrap();
    assert_eq!(buf, [1; 4]);
    let before = storage.to_vec();
    let error = image.write_at(5 * MIB, &[1], &NoBacking).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::BlockAllocationTableCorrupt);
    assert!(storage.to_vec() == before);
}

#[test]
fn opening_reads_no_bat_and_mapping_an_empty_disk_reads_none_of_its_holes() {
    let storage = new_disk(64 * 1024 * GIB);
    let resident = storage.resident();
    let image = VhdxImage::open(storage.clone(), true).unwrap();
    let size = image.virtual_size();
    assert_eq!(
        image.map(0, size).unwrap(),
        Extent {
            length: size,
            kind: ExtentKind::Zero
        }
    );
    image.zero(0, size, ZeroMode::MayUnmap, &NoBacking).unwrap();
    image.write_at(size - 1, &[9], &NoBacking).unwrap();
    let last = image.map(size - MIB, MIB).unwrap();
    assert!(matches!(
        last.kind,
        ExtentKind::Zero | ExtentKind::Data { .. }
    ));
    image.close().unwrap();
    assert!(
        storage.resident() < resident + 64 * 1024,
        "one page of the BAT, one of data"
    );
}

#[test]
fn space_freed_in_a_session_is_used_again_after_two_flushes() {
    let storage = new_disk(64 * MIB);
    let image = VhdxImage::open(storage.clone(), true).unwrap();
    for round in 0..20 {
        image.write_at(0, &[round; 4096], &NoBacking).unwrap();
        image.flush().unwrap();
        image.zero(0, MIB, ZeroMode::MayUnmap, &NoBacking).unwrap();
        image.flush().unwrap();
        image.flush().unwrap();
    }
    image.write_at(0, &[99; 4096], &NoBacking).unwrap();
    image.close().unwrap();
    assert!(
        storage.len().unwrap() <= 7 * MIB,
        "{}",
        storage.len().unwrap()
    );
    let image = VhdxImage::open(storage, false).unwrap();
    let mut buf = vec![0; to_usize(MIB)];
    image.read_at(0, &mut buf, &mut Vec::new()).unwrap();
    assert!(buf[..4096].iter().all(|&b| b == 99) && buf[4096..].iter().all(|&b| b == 0));
}
