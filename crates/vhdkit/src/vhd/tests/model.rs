//! Random requests against a plain array of bytes.

use proptest::prelude::*;

use super::*;
use crate::image::{ExtentKind, NoBacking, ZeroMode};

#[derive(Clone, Debug)]
pub(super) enum Request {
    Write(u64, u64, u8),
    Zero(u64, u64, bool),
    Discard(u64, u64),
    Flush,
    /// Flush, and open again without closing.
    Abandon,
    Reopen,
}

/// A range of a disk of `size` bytes: often aligned, often small, sometimes long.
pub(super) fn range(size: u64) -> impl Strategy<Value = (u64, u64)> {
    (0..size, 1_u64..6000, any::<bool>()).prop_map(move |(offset, length, aligned)| {
        if aligned {
            let offset = offset / 512 * 512;
            (offset, length.next_multiple_of(512).min(size - offset))
        } else {
            (offset, length.min(size - offset))
        }
    })
}

pub(super) fn request(size: u64) -> impl Strategy<Value = Request> {
    prop_oneof![
        6 => (range(size), 1_u8..).prop_map(|((o, l), b)| Request::Write(o, l, b)),
        3 => (range(size), any::<bool>()).prop_map(|((o, l), keep)| Request::Zero(o, l, keep)),
        2 => range(size).prop_map(|(o, l)| Request::Discard(o, l)),
        2 => Just(Request::Flush),
        1 => Just(Request::Abandon),
        1 => Just(Request::Reopen),
    ]
}

/// The bytes of a write: not all equal, so that misplaced parts show.
pub(super) fn payload(offset: u64, length: u64, byte: u8) -> Vec<u8> {
    (offset..offset + length)
        .map(|i| byte.wrapping_add(u8::try_from(i / 512 % 7).unwrap()))
        .collect()
}

/// Zeros, then data, then zeros: what `is_zero` can tell and what not.
pub(super) fn parent(size: u64) -> Pattern {
    let mut bytes = vec![0; to_usize(size) - 3000];
    for (i, byte) in bytes.iter_mut().enumerate().skip(9000).take(20_000) {
        *byte = u8::try_from(i % 251).unwrap();
    }
    Pattern { bytes }
}

pub(super) fn backing_of(disk_type: DiskType, size: u64) -> Box<dyn Backing + Send + Sync> {
    if disk_type == DiskType::Differencing {
        Box::new(parent(size))
    } else {
        Box::new(NoBacking)
    }
}

/// After a discard each sector is as before or zero; takes what it is.
pub(super) fn settle_discard(model: &mut [u8], seen: &[u8], offset: u64, length: u64) {
    for (at, (old, new)) in model.chunks_mut(512).zip(seen.chunks(512)).enumerate() {
        let start = at as u64 * 512;
        if old != new {
            assert!(start >= offset && start + 512 <= offset + length);
            assert!(new.iter().all(|&b| b == 0), "discarded sectors are zero");
            old.fill(0);
        }
    }
}

fn verify_map(image: &VhdImage, backing: &dyn Backing, model: &[u8]) {
    let mut at = 0;
    while at < image.virtual_size() {
        let extent = image.map(at, image.virtual_size() - at).unwrap();
        let mut bytes = vec![0; to_usize(extent.length)];
        match extent.kind {
            ExtentKind::Data { storage_offset } => {
                image.storage().read_at(storage_offset, &mut bytes).unwrap();
            }
            ExtentKind::Zero => {}
            ExtentKind::Absent => backing.read_at(at, &mut bytes).unwrap(),
        }
        assert_eq!(bytes, model[to_usize(at)..to_usize(at + extent.length)]);
        at += extent.length;
    }
}

fn run(disk_type: DiskType, block_size: u64, size: u64, requests: &[Request]) {
    let backing = backing_of(disk_type, size);
    let storage = Arc::new(create_small(disk_type, size, block_size));
    let mut image = VhdImage::open(storage.clone(), true).unwrap();
    let mut model = read_all(&image, &*backing);
    for request in requests {
        match *request {
            Request::Write(offset, length, byte) => {
                let data = payload(offset, length, byte);
                image.write_at(offset, &data, &*backing).unwrap();
                model[to_usize(offset)..to_usize(offset + length)].copy_from_slice(&data);
            }
            Request::Zero(offset, length, keep) => {
                let mode = if keep {
                    ZeroMode::KeepAllocated
                } else {
                    ZeroMode::MayUnmap
                };
                let before = storage.len().unwrap();
                image.zero(offset, length, mode, &*backing).unwrap();
                model[to_usize(offset)..to_usize(offset + length)].fill(0);
                if !keep && disk_type == DiskType::Dynamic {
                    assert!(storage.len().unwrap() <= before, "zeros take no space");
                }
            }
            Request::Discard(offset, length) => {
                let before = storage.len().unwrap();
                image.discard(offset, length, &*backing).unwrap();
                let seen = read_all(&image, &*backing);
                settle_discard(&mut model, &seen, offset, length);
                assert!(storage.len().unwrap() <= before);
            }
            Request::Flush => image.flush().unwrap(),
            Request::Abandon => {
                image.flush().unwrap();
                image = VhdImage::open(storage.clone(), true).unwrap();
            }
            Request::Reopen => {
                image.close().unwrap();
                assert!(worst(&findings(&storage)) <= Some(Severity::Info));
                let read_only = VhdImage::open(storage.clone(), false).unwrap();
                assert_eq!(read_all(&read_only, &*backing), model);
                image = VhdImage::open(storage.clone(), true).unwrap();
            }
        }
        assert!(read_all(&image, &*backing) == model, "after {request:?}");
        verify_map(&image, &*backing, &model);
    }
    image.close().unwrap();
    // Spare space stays if the disk was abandoned and then not changed any more.
    assert!(codes(&storage).iter().all(|&code| code == "vhd-unused-end"));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(120))]

    #[test]
    fn every_type_behaves_as_an_array(
        disk_type in prop_oneof![
            Just(DiskType::Fixed), Just(DiskType::Dynamic), Just(DiskType::Differencing),
            Just(DiskType::Differencing),
        ],
        block_size in prop_oneof![Just(512_u64), Just(2048), Just(4096), Just(16_384)],
        requests in prop::collection::vec(request(60 * 512 + 33_280), 1..40),
    ) {
        let size = 60 * 512 + 33_280;
        // One sector of the table has 128 entries.
        run(disk_type, block_size.max(1024), size, &requests);
        if block_size == 512 {
            let small: Vec<_> = requests.iter().filter(|r| match r {
                Request::Write(o, l, _) | Request::Zero(o, l, _) | Request::Discard(o, l) => o + l <= 60_928,
                _ => true,
            }).cloned().collect();
            run(disk_type, 512, 60_928, &small);
        }
    }
}

#[test]
fn zeros_written_to_a_child_hide_the_parent_whatever_the_bitmap() {
    let size = 64 * 1024;
    let backing = parent(size);
    for (offset, length) in [
        (0, size),
        (9000, 1),
        (10_240, 512),
        (8192, 4096),
        (9001, 20_001),
    ] {
        for present in [false, true] {
            for mode in [ZeroMode::MayUnmap, ZeroMode::KeepAllocated] {
                let storage = Arc::new(create_small(DiskType::Differencing, size, 4096));
                let image = VhdImage::open(storage.clone(), true).unwrap();
                if present {
                    image.write_at(10_000, &[9; 3000], &backing).unwrap();
                }
                let mut model = read_all(&image, &backing);
                image.zero(offset, length, mode, &backing).unwrap();
                model[to_usize(offset)..to_usize(offset + length)].fill(0);
                image.discard(0, size, &backing).unwrap();
                let seen = read_all(&image, &backing);
                for (i, (old, new)) in model.iter().zip(&seen).enumerate() {
                    assert!(old == new || *new == 0, "byte {i}");
                }
                image.close().unwrap();
                let again = VhdImage::open(storage, false).unwrap();
                assert_eq!(read_all(&again, &backing), seen);
            }
        }
    }
}

#[test]
fn what_a_crash_left_under_a_clear_bit_is_never_shown() {
    let size = 64 * 1024;
    let backing = Pattern {
        bytes: vec![5; to_usize(size)],
    };
    for mode in [ZeroMode::MayUnmap, ZeroMode::KeepAllocated] {
        let storage = Arc::new(create_small(DiskType::Differencing, size, 4096));
        let image = VhdImage::open(storage.clone(), true).unwrap();
        image.write_at(0, &[1; 512], &backing).unwrap();
        let ExtentKind::Data { storage_offset } = image.map(0, 512).unwrap().kind else {
            panic!("the sector is here");
        };
        storage
            .write_at(storage_offset + 512, &[0x66; 3584])
            .unwrap();
        assert_eq!(read_range(&image, &backing, 512..4096), [5; 3584]);
        // A sector that is written in part takes its rest from the parent.
        image.write_at(700, &[2; 10], &backing).unwrap();
        assert_eq!(read_range(&image, &backing, 512..700), [5; 188]);
        assert_eq!(read_range(&image, &backing, 710..1024), [5; 314]);
        image.zero(1000, 3000, mode, &backing).unwrap();
        assert_eq!(read_range(&image, &backing, 1000..4000), [0; 3000]);
        assert_eq!(read_range(&image, &backing, 4000..4096), [5; 96]);
        image.close().unwrap();
    }
}
