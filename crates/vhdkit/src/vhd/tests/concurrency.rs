//! Many threads, and how many calls of the storage things cost.

use std::sync::atomic::Ordering;

use super::model::{backing_of, parent};
use super::storage::Recorder;
use super::*;
use crate::image::{ExtentKind, NoBacking, ZeroMode};

const SIZE: u64 = 64 * 1024;

#[test]
fn writers_of_neighbouring_bytes_do_not_disturb_each_other() {
    for disk_type in [DiskType::Fixed, DiskType::Dynamic, DiskType::Differencing] {
        for round in 0..10 {
            let storage = Arc::new(create_small(disk_type, SIZE, 4096));
            let image = VhdImage::open(storage.clone(), true).unwrap();
            let backing = backing_of(disk_type, SIZE);
            let (image, backing) = (&image, &*backing);
            let threads = 8;
            std::thread::scope(|scope| {
                for thread in 0..threads {
                    scope.spawn(move || {
                        // Ranges of 100 bytes, dealt out in turn: sectors and blocks are shared by many.
                        let mut index = thread;
                        while index * 100 + 100 <= SIZE {
                            let offset = (index * 100 + round * 4096) % (SIZE - 100) / 100 * 100;
                            let byte = u8::try_from(offset / 100 % 200 + 1).unwrap();
                            image.write_at(offset, &[byte; 100], backing).unwrap();
                            if index % 64 == thread {
                                image.flush().unwrap();
                            }
                            index += threads;
                        }
                    });
                }
            });
            image.close().unwrap();
            assert_eq!(codes(&storage), [""; 0]);
            let image = VhdImage::open(storage, false).unwrap();
            let bytes = read_all(&image, backing);
            let original = {
                let mut original = vec![0; to_usize(SIZE)];
                backing.read_at(0, &mut original).unwrap();
                original
            };
            for (i, part) in bytes.chunks(100).enumerate().take(to_usize(SIZE / 100)) {
                let byte = u8::try_from(i % 200 + 1).unwrap();
                let old = &original[i * 100..][..part.len()];
                assert!(part == [byte; 100] || part == old, "range {i}: {part:?}");
            }
        }
    }
}

#[test]
fn overlapping_writes_leave_whole_sectors() {
    let storage = Arc::new(create_small(DiskType::Differencing, SIZE, 4096));
    let image = VhdImage::open(storage, true).unwrap();
    let backing = parent(SIZE);
    std::thread::scope(|scope| {
        for byte in 1..=6_u8 {
            let (image, backing) = (&image, &backing);
            scope.spawn(move || {
                for _ in 0..50 {
                    image.write_at(8192, &[byte; 16_384], backing).unwrap();
                    image
                        .zero(12_288, 4096, ZeroMode::MayUnmap, backing)
                        .unwrap();
                }
            });
        }
    });
    let bytes = read_range(&image, &backing, 8192..8192 + 16_384);
    for sector in bytes.chunks(512) {
        assert!(sector.iter().all(|&b| b == sector[0]) && sector[0] <= 6);
    }
}

#[test]
fn a_flush_costs_one_barrier_or_two_with_new_blocks() {
    for disk_type in [DiskType::Dynamic, DiskType::Differencing] {
        let recorder = Recorder::new(&create_small(disk_type, SIZE, 1024));
        let image = VhdImage::open(recorder.clone(), true).unwrap();
        let flushes = || recorder.flushes.swap(0, Ordering::SeqCst);
        image.write_at(0, &[1; 12_000], &NoBacking).unwrap();
        assert!(
            flushes() <= 3,
            "one before the first growth of a session, one for each growth"
        );
        image.flush().unwrap();
        assert_eq!(flushes(), 2, "any number of new blocks");
        image.write_at(0, &[2; 12_000], &NoBacking).unwrap();
        image.flush().unwrap();
        assert_eq!(flushes(), 1, "the steady state");
        let (reads, writes) = (&recorder.reads, &recorder.writes);
        reads.store(0, Ordering::SeqCst);
        writes.store(0, Ordering::SeqCst);
        image.write_at(1500, &[3; 500], &NoBacking).unwrap();
        assert_eq!(
            (reads.load(Ordering::SeqCst), writes.load(Ordering::SeqCst)),
            (0, 1)
        );
        let _ = read_range(&image, &NoBacking, 1500..2000);
        assert_eq!(reads.load(Ordering::SeqCst), 1);
    }
}

#[test]
fn threads_that_flush_together_share_barriers() {
    let recorder = Recorder::new(&create_small(DiskType::Dynamic, SIZE, 4096));
    let image = VhdImage::open(recorder.clone(), true).unwrap();
    image.write_at(0, &[1; 4096], &NoBacking).unwrap();
    *recorder.on_flush.lock().unwrap() = Some(Box::new(|_, _| {
        std::thread::sleep(std::time::Duration::from_millis(5));
    }));
    let together = std::sync::Barrier::new(16);
    let barriers = || {
        recorder.flushes.store(0, Ordering::SeqCst);
        std::thread::scope(|scope| {
            for thread in 0..16 {
                let (image, together) = (&image, &together);
                scope.spawn(move || {
                    image.write_at(thread * 64, &[2; 64], &NoBacking).unwrap();
                    together.wait();
                    image.flush().unwrap();
                });
            }
        });
        recorder.flushes.load(Ordering::SeqCst)
    };
    // A machine with much else to do may let one thread flush after the other; never always.
    assert!((0..100).any(|_| barriers() < 14));
}

#[test]
fn a_disk_that_is_only_looked_at_is_not_written() {
    for disk_type in [DiskType::Fixed, DiskType::Dynamic, DiskType::Differencing] {
        for writable in [false, true] {
            let recorder = Recorder::new(&create(&parameters(disk_type, 3 * MIB)));
            let image = VhdImage::open(recorder.clone(), writable).unwrap();
            let _ = read_all(&image, &NoBacking);
            let _ = image.map(0, 3 * MIB).unwrap();
            if writable && disk_type != DiskType::Fixed {
                image
                    .zero(0, 3 * MIB, ZeroMode::MayUnmap, &NoBacking)
                    .unwrap();
                image.discard(0, 3 * MIB, &NoBacking).unwrap();
            }
            image.flush().unwrap();
            image.close().unwrap();
            image.close().unwrap();
            assert_eq!(recorder.writes.load(Ordering::SeqCst), 0);
            assert_eq!(recorder.flushes.load(Ordering::SeqCst), 0);
            let error = image.write_at(0, &[1], &NoBacking).unwrap_err();
            assert_eq!(error.kind(), crate::ErrorKind::InvalidState);
        }
    }
}

#[test]
fn discarded_data_becomes_a_hole_that_the_map_shows() {
    let storage = Arc::new(create(&parameters(DiskType::Dynamic, 8 * MIB)));
    let image = VhdImage::open(storage.clone(), true).unwrap();
    image
        .write_at(0, &vec![1; to_usize(4 * MIB)], &NoBacking)
        .unwrap();
    let (length, resident) = (storage.len().unwrap(), storage.resident());
    image.discard(MIB, MIB, &NoBacking).unwrap();
    assert!(storage.resident() <= resident - MIB + 8192);
    assert_eq!(storage.len().unwrap(), length);
    let extent = image.map(MIB, 3 * MIB).unwrap();
    assert_eq!((extent.length, extent.kind), (MIB, ExtentKind::Zero));
    let extent = image.map(0, 8 * MIB).unwrap();
    assert_eq!(extent.length, MIB);
    assert!(matches!(extent.kind, ExtentKind::Data { .. }));
}
