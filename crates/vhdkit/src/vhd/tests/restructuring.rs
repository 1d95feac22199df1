//! Guests and changes of the structure in random order, against a plain array of bytes.

use proptest::prelude::*;

use super::model::{backing_of, payload};
use super::structure::{BLOCK, SIZE, is_clean, pack_all, release_zeros};
use super::*;
use crate::image::ZeroMode;

#[derive(Clone, Debug)]
enum Deed {
    Write(u64, u64, u8),
    Zero(u64, u64),
    Flush,
    Reopen,
    Release,
    Pack(u64),
    Grow(u64),
}

fn deed() -> impl Strategy<Value = Deed> {
    let range = || (0..1_000_000_u64, 1..9000_u64);
    prop_oneof![
        6 => (range(), 1_u8..).prop_map(|((o, l), b)| Deed::Write(o, l, b)),
        4 => range().prop_map(|(o, l)| Deed::Zero(o, l * 2)),
        1 => Just(Deed::Flush),
        1 => Just(Deed::Reopen),
        2 => Just(Deed::Release),
        3 => (1..40_000_u64).prop_map(Deed::Pack),
        1 => (1..150_u64).prop_map(Deed::Grow),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    #[test]
    fn guests_and_changes_of_structure_do_not_disturb_each_other(
        disk_type in prop_oneof![Just(DiskType::Dynamic), Just(DiskType::Differencing), Just(DiskType::Fixed)],
        deeds in prop::collection::vec(deed(), 1..40),
    ) {
        let backing = backing_of(disk_type, SIZE);
        let storage = Arc::new(create_small(disk_type, SIZE, BLOCK));
        let mut image = VhdImage::open(storage.clone(), true).unwrap();
        let mut model = read_all(&image, &*backing);
        for deed in &deeds {
            let size = model.len() as u64;
            match *deed {
                Deed::Write(offset, length, byte) => {
                    let offset = offset % size;
                    let data = payload(offset, length.min(size - offset), byte);
                    image.write_at(offset, &data, &*backing).unwrap();
                    model[to_usize(offset)..][..data.len()].copy_from_slice(&data);
                }
                Deed::Zero(offset, length) => {
                    let offset = offset % size;
                    let length = length.min(size - offset);
                    image.zero(offset, length, ZeroMode::MayUnmap, &*backing).unwrap();
                    model[to_usize(offset)..to_usize(offset + length)].fill(0);
                }
                Deed::Flush => image.flush().unwrap(),
                Deed::Reopen => {
                    image.close().unwrap();
                    is_clean(&storage);
                    image = VhdImage::open(storage.clone(), true).unwrap();
                }
                Deed::Release => {
                    release_zeros(&mut image, &*backing).unwrap();
                }
                Deed::Pack(budget) => {
                    let expected = image.usage().unwrap().packed_size;
                    if image.pack(budget).unwrap().left == 0 {
                        assert_eq!(storage.len().unwrap(), expected);
                    }
                }
                Deed::Grow(blocks) => {
                    let size = size + blocks * 1536;
                    let grown = image.resize(size, &*backing, &mut |_, _| Ok(()));
                    assert_eq!(grown.is_ok(), disk_type != DiskType::Differencing);
                    if grown.is_ok() {
                        model.resize(to_usize(size), 0);
                    }
                }
            }
            assert!(read_all(&image, &*backing) == model, "after {deed:?}");
        }
        pack_all(&mut image, 1).unwrap();
        assert!(read_all(&image, &*backing) == model);
        image.close().unwrap();
        assert_eq!(codes(&storage), [""; 0]);
        assert!(read_all(&open(&storage, false).unwrap(), &*backing) == model);
    }
}
