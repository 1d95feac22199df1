//! Rules of an open file that need to look inside it.

use super::*;
use crate::image::{CreateParameters, IdentifierSource, ImageBuilder, NoBacking};
use crate::num::{GIB, MIB};
use crate::storage::MemoryStorage;
use crate::vhdx::VhdxBuilder;
use crate::vhdx::layout::{REGION_TABLE_LENGTH, REGION_TABLE_OFFSETS};

fn parameters(virtual_size: u64) -> CreateParameters {
    CreateParameters {
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
    }
}

fn new_disk(virtual_size: u64) -> Arc<MemoryStorage> {
    let storage = Arc::new(MemoryStorage::new());
    VhdxBuilder::new(storage.clone(), &parameters(virtual_size), &mut |_, _| {
        Ok(())
    })
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

/// A storage that remembers what the file would be if the machine had died in the middle of each write to the log.
struct TornLog {
    file: MemoryStorage,
    torn: Mutex<Vec<MemoryStorage>>,
}

impl Storage for TornLog {
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        self.file.read_at(offset, buf)
    }
    fn write_at(&self, offset: u64, data: &[u8]) -> Result<()> {
        if (MIB..2 * MIB).contains(&offset) && data.len() > 4096 {
            let copy = self.file.clone();
            copy.write_at(offset, &data[..data.len() - 512])?;
            self.torn.lock().unwrap().push(copy);
        }
        self.file.write_at(offset, data)
    }
    fn flush(&self) -> Result<()> {
        Ok(())
    }
    fn len(&self) -> Result<u64> {
        self.file.len()
    }
    fn set_len(&self, length: u64) -> Result<()> {
        self.file.set_len(length)
    }
    fn zero_range(&self, offset: u64, length: u64) -> Result<()> {
        self.file.zero_range(offset, length)
    }
    fn next_data(&self, range: Range<u64>) -> Result<Option<Range<u64>>> {
        self.file.next_data(range)
    }
}

/// An entry once overwrote the one that the last durable entry's tail pointed to: torn, it left no valid sequence.
#[test]
fn a_torn_entry_always_leaves_a_valid_sequence_however_full_the_log_is() {
    for (flushes, pages) in [(1, 300), (6, 130), (6, 90), (4, 251), (20, 40)] {
        let storage = Arc::new(TornLog {
            file: (*new_disk(1024 * GIB)).clone(),
            torn: Mutex::default(),
        });
        let image = VhdxImage::open(storage.clone(), true).unwrap();
        for flush in 0..flushes {
            for page in 0..pages {
                let at = page * 512 * MIB + flush * MIB;
                image.write_at(at, &[1], &NoBacking).unwrap();
            }
            image.flush().unwrap();
        }
        let torn = std::mem::take(&mut *storage.torn.lock().unwrap());
        assert!(torn.len() >= to_usize(flushes));
        for (i, file) in torn.into_iter().enumerate() {
            let opened = VhdxImage::open(Arc::new(file), false);
            assert!(
                opened.is_ok(),
                "{flushes} x {pages}, entry {i}: {:?}",
                opened.err()
            );
        }
        image.close().unwrap();
    }
}

#[test]
fn an_offset_of_a_log_without_length_means_nothing() {
    for offset in [1 << 46, !0xF_FFFF] {
        let storage = new_disk(64 * MIB);
        let mut headers = Headers::read(&*storage, storage.len().unwrap()).unwrap();
        headers.log_length = 0;
        headers.log_offset = offset;
        for (i, place) in crate::vhdx::layout::HEADER_OFFSETS.into_iter().enumerate() {
            storage
                .write_at(place, &headers.encode(9 + i as u64).unwrap())
                .unwrap();
        }
        let shared: Arc<dyn Storage> = storage.clone();
        crate::vhdx::check(&shared).unwrap();
        let image = VhdxImage::open(storage.clone(), true).unwrap();
        image.write_at(0, &[1], &NoBacking).unwrap();
        image.close().unwrap();
        assert!(storage.len().unwrap() < GIB);
    }
}

#[test]
fn a_soft_anchor_outside_the_file_stops_writing_but_not_reading() {
    for offset in [200 << 40, !0xF_FFFF] {
        let storage = new_disk(64 * MIB);
        let image = VhdxImage::open(storage.clone(), false).unwrap();
        let place = image.regions.bat.offset + 8;
        let entry = bat::entry(bat::UNMAPPED, offset);
        storage.write_at(place, &entry.to_le_bytes()).unwrap();
        let image = VhdxImage::open(storage.clone(), true).unwrap();
        image.read_at(MIB, &mut [0; 512], &mut Vec::new()).unwrap();
        let error = image.write_at(0, &[1], &NoBacking).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::BlockAllocationTableCorrupt);
        assert!(storage.len().unwrap() < GIB);
    }
}

/// Each of many threads writes to blocks of one BAT page and flushes; what a flush covered must be in the file then.
#[test]
fn a_flush_covers_what_the_thread_wrote_whatever_others_do() {
    let storage = new_disk(64 * GIB);
    let image = VhdxImage::open(storage.clone(), true).unwrap();
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let (image, storage) = (&image, &storage);
            scope.spawn(move || {
                for round in 0..12 {
                    let block = thread + 4 * round;
                    image.write_at(block * MIB, &[7], &NoBacking).unwrap();
                    image.flush().unwrap();
                    // The machine dies here, and everything that ever reached the storage is durable.
                    let after = VhdxImage::open(Arc::new((**storage).clone()), false);
                    // A snapshot in the middle of another thread's header or log write may not be taken at face value.
                    let Ok(after) = after else { continue };
                    let mut buf = [0];
                    after
                        .read_at(block * MIB, &mut buf, &mut Vec::new())
                        .unwrap();
                    assert_eq!(buf, [7], "block {block} was flushed, and lost");
                }
            });
        }
    });
    image.close().unwrap();
}

#[test]
fn a_fixed_file_whose_blocks_have_no_place_yet_keeps_its_length() {
    // As QEMU makes them: fixed, the space there, every entry ZERO.
    let storage = Arc::new(MemoryStorage::new());
    let parameters = CreateParameters {
        disk_type: DiskType::Fixed,
        ..parameters(8 * MIB)
    };
    VhdxBuilder::new(storage.clone(), &parameters, &mut |_, _| Ok(()))
        .unwrap()
        .finish()
        .unwrap();
    let length = storage.len().unwrap();
    let bat = VhdxImage::open(storage.clone(), false)
        .unwrap()
        .regions
        .bat
        .offset;
    for block in 0..8 {
        storage
            .write_at(bat + block * 8, &bat::entry(bat::ZERO, 0).to_le_bytes())
            .unwrap();
    }
    // Left over from something else.
    storage.write_at(length - 5 * MIB, &[0xEE; 4096]).unwrap();
    for round in 0..3 {
        let image = VhdxImage::open(storage.clone(), true).unwrap();
        image
            .write_at(round * 2 * MIB, &vec![7; to_usize(2 * MIB)], &NoBacking)
            .unwrap();
        image.close().unwrap();
        assert_eq!(storage.len().unwrap(), length);
    }
    let image = VhdxImage::open(storage.clone(), false).unwrap();
    let mut buf = vec![1; to_usize(8 * MIB)];
    image.read_at(0, &mut buf, &mut Vec::new()).unwrap();
    let (written, rest) = buf.split_at(to_usize(6 * MIB));
    assert!(written.iter().all(|&b| b == 7) && rest.iter().all(|&b| b == 0));
}
