//! Which footer counts, what of it counts, and what a check says about it.

use super::*;
use crate::error::ErrorKind;
use crate::image::NoBacking;
use crate::vhd::{detect, is_exact_fixed};

/// What can be done to a footer.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Damage {
    None,
    Erased,
    Checksum,
    Short,
    Differs,
}

fn damage(storage: &MemoryStorage, at: u64, how: Damage) {
    let mut footer = footer_at(storage, at);
    match how {
        Damage::None => return,
        Damage::Erased => footer = Footer::read_from_bytes(&[0; 512]).unwrap(),
        Damage::Checksum => footer.checksum = 1.into(),
        Damage::Differs => {
            footer.original_size = 512.into();
            footer.sign();
        }
        Damage::Short => {
            storage.set_len(at + 511).unwrap();
            return;
        }
    }
    storage.write_at(at, footer.as_bytes()).unwrap();
}

#[test]
fn either_footer_of_a_dynamic_disk_is_enough() {
    use Damage::{Checksum, Differs, Erased, None, Short};
    for disk_type in [DiskType::Dynamic, DiskType::Differencing] {
        for end in [None, Erased, Checksum, Short, Differs] {
            for copy in [None, Erased, Checksum, Differs] {
                let case = format!("end {end:?}, copy {copy:?}");
                let clean = create(&parameters(disk_type, 3 * MIB));
                let image = open(&clean, true).unwrap();
                image.write_at(MIB, &[5; 1000], &NoBacking).unwrap();
                image.close().unwrap();
                let clean = image.storage().clone();
                let mut bytes = vec![0; to_usize(clean.len().unwrap())];
                clean.read_at(0, &mut bytes).unwrap();
                let storage = MemoryStorage::from_bytes(&bytes);
                damage(&storage, storage.len().unwrap() - 512, end);
                damage(&storage, 0, copy);
                let lost = |d| matches!(d, Erased | Checksum);
                if lost(end) && lost(copy) {
                    let error = open(&storage, false).err().expect("no footer left");
                    let expected = if end == Erased && copy == Erased {
                        ErrorKind::FooterMissing
                    } else {
                        ErrorKind::FooterChecksumMismatch
                    };
                    assert_eq!(error.kind(), expected, "{case}");
                    assert_eq!(worst(&findings(&storage)), Some(Severity::Fatal), "{case}");
                    let seen = detect(&storage).unwrap();
                    assert_eq!(seen, expected == ErrorKind::FooterChecksumMismatch);
                    continue;
                }
                assert!(detect(&storage).unwrap());
                assert!(!is_exact_fixed(&storage).unwrap());
                let bad = findings(&storage);
                assert!(worst(&bad) <= Some(Severity::Warning), "{case}: {bad:?}");
                assert_eq!(bad.is_empty(), end == copy, "{case}: {bad:?}");

                let before = storage.to_vec();
                let shared = Arc::new(storage);
                let image = VhdImage::open(shared.clone(), false).unwrap();
                let expected = read_all(&image, &NoBacking);
                assert_eq!(expected[to_usize(MIB)..][..1000], [5; 1000]);
                image.close().unwrap();
                let image = VhdImage::open(shared.clone(), true).unwrap();
                assert_eq!(read_all(&image, &NoBacking), expected);
                image.flush().unwrap();
                image.close().unwrap();
                assert!(shared.to_vec() == before, "{case}: nothing was changed");

                let image = VhdImage::open(shared.clone(), true).unwrap();
                image.write_at(MIB, &[5; 1000], &NoBacking).unwrap();
                image.close().unwrap();
                assert_eq!(codes(&shared), [""; 0], "{case}: put right");
                assert_eq!(shared.len().unwrap() % 512, 0);
                assert_eq!(read_all(&image, &NoBacking), expected);
            }
        }
    }
}

#[test]
fn a_short_footer_of_a_fixed_disk_becomes_whole() {
    let storage = Arc::new(create(&parameters(DiskType::Fixed, MIB)));
    storage.set_len(MIB + 511).unwrap();
    assert!(detect(&*storage).unwrap());
    let image = VhdImage::open(storage.clone(), true).unwrap();
    assert_eq!(image.virtual_size(), MIB);
    assert_eq!(storage.len().unwrap(), MIB + 511);
    image.write_at(MIB - 1, &[1], &NoBacking).unwrap();
    image.close().unwrap();
    assert_eq!(codes(&storage), [""; 0]);
    assert_eq!(storage.len().unwrap(), MIB + 512);
}

#[test]
fn a_guest_cannot_turn_a_damaged_fixed_disk_into_another() {
    let storage = create(&parameters(DiskType::Fixed, 4 * MIB));
    // A whole differencing disk as guest data, then the real footer loses a bit.
    let nested = create(&parameters(DiskType::Differencing, 3 * MIB)).to_vec();
    storage.write_at(0, &nested).unwrap();
    assert!(is_exact_fixed(&storage).unwrap());
    damage(&storage, 4 * MIB, Damage::Checksum);
    let error = open(&storage, false).err().expect("refused");
    assert_eq!(error.kind(), ErrorKind::FooterChecksumMismatch);
    assert!(error.hint().unwrap().contains("raw"));
    assert!(detect(&storage).unwrap());
}

#[test]
fn a_cookie_alone_does_not_make_a_raw_disk_a_vhd() {
    let storage = MemoryStorage::from_bytes(&vec![0x5A; 1 << 20]);
    storage.write_at(0, b"conectix").unwrap();
    storage.write_at((1 << 20) - 512, b"conectix").unwrap();
    assert!(!detect(&storage).unwrap());
    assert!(!detect(&MemoryStorage::new()).unwrap());
    assert!(!detect(&MemoryStorage::from_bytes(&[0; 511])).unwrap());
}

#[test]
fn the_size_is_the_current_size_whoever_made_the_file() {
    // Creators and geometries as in the table of QEMU's test 146, and ours.
    for creator in [
        b"vpc ",
        b"vs  ",
        b"win ",
        b"d2v ",
        b"d2v\0",
        b"qemu",
        b"qem2",
        b"tap\0",
        b"CTXS",
        b"dutl",
        b"????",
        b"\0\0\0\0",
        b"\xFF\xFF\xFF\xFF",
    ] {
        for geometry in [
            (0, 0, 0),
            (1003, 12, 17),
            (65_535, 16, 255),
            (65_535, 255, 255),
        ] {
            let storage = create(&parameters(DiskType::Dynamic, 100 * MIB));
            change_footers(&storage, |footer| {
                footer.creator_application = *creator;
                footer.original_size = 512.into();
                footer.cylinders = geometry.0.into();
                footer.heads = geometry.1;
                footer.sectors_per_track = geometry.2;
            });
            let image = open(&storage, false).unwrap();
            assert_eq!(image.virtual_size(), 100 * MIB);
            assert_eq!(image.info().geometry, Some(geometry));
            let hides = codes(&storage).contains(&"vhd-geometry-hides-data");
            let small = matches!(geometry.0, 0 | 1003);
            assert_eq!(
                hides,
                creator == b"vpc " && small,
                "{creator:?} {geometry:?}"
            );
        }
    }
    let image = open(&create(&parameters(DiskType::Fixed, MIB)), false).unwrap();
    assert_eq!(image.info().creator.as_deref(), Some("win 10.0"));
    assert_eq!(image.info().created, Some(NOW));
}

#[test]
fn the_check_knows_its_catalogue() {
    use Severity::{Error as Bad, Info, Warning};
    let made = |disk_type, change: &dyn Fn(&MemoryStorage)| {
        let storage = create_small(disk_type, 64 * 1024, 4096);
        let shared = Arc::new(storage);
        if disk_type != DiskType::Fixed {
            let image = VhdImage::open(shared.clone(), true).unwrap();
            for block in 0..4 {
                image
                    .write_at(block * 4096, &[1; 4096], &NoBacking)
                    .unwrap();
            }
            image.close().unwrap();
        }
        change(&shared);
        (*shared).clone()
    };
    let entry = |s: &MemoryStorage, block: u64, value: u32| {
        s.write_at(1536 + block * 4, &value.to_be_bytes()).unwrap();
    };
    let get = |s: &MemoryStorage, block: u64| {
        let mut bytes = [0; 4];
        s.read_at(1536 + block * 4, &mut bytes).unwrap();
        u32::from_be_bytes(bytes)
    };
    type Change<'a> = Box<dyn Fn(&MemoryStorage) + 'a>;
    let dynamic = DiskType::Dynamic;
    let differencing = DiskType::Differencing;
    let cases: Vec<(&str, Severity, DiskType, Change<'_>)> = vec![
        (
            "vhd-fixed-extra-bytes",
            Warning,
            DiskType::Fixed,
            Box::new(|s| change_footers(s, |f| f.current_size = 512.into())),
        ),
        (
            "vhd-fixed-data-offset",
            Info,
            DiskType::Fixed,
            Box::new(|s| change_footers(s, |f| f.data_offset = 512.into())),
        ),
        (
            "vhd-footer-features",
            Warning,
            dynamic,
            Box::new(|s| change_footers(s, |f| f.features = 0.into())),
        ),
        (
            "vhd-temporary",
            Info,
            dynamic,
            Box::new(|s| change_footers(s, |f| f.features = 3.into())),
        ),
        (
            "vhd-timestamp-future",
            Info,
            dynamic,
            Box::new(|s| change_footers(s, |f| f.timestamp = u32::MAX.into())),
        ),
        (
            "vhd-creator-unknown",
            Info,
            dynamic,
            Box::new(|s| change_footers(s, |f| f.creator_application = *b"none")),
        ),
        (
            "vhd-saved-state",
            Info,
            dynamic,
            Box::new(|s| change_footers(s, |f| f.saved_state = 1)),
        ),
        (
            "vhd-identifier-zero",
            Info,
            dynamic,
            Box::new(|s| change_footers(s, |f| f.unique_id = [0; 16])),
        ),
        (
            "vhd-geometry-differs",
            Info,
            dynamic,
            Box::new(|s| change_footers(s, |f| f.heads = 3)),
        ),
        (
            "vhd-parent-unexpected",
            Warning,
            dynamic,
            Box::new(|s| {
                let mut h = header(s);
                h.parent_unique_id = [1; 16];
                put_header(s, h);
            }),
        ),
        (
            "vhd-parent-identifier-zero",
            Bad,
            differencing,
            Box::new(|s| {
                let mut h = header(s);
                h.parent_unique_id = [0; 16];
                put_header(s, h);
            }),
        ),
        (
            "vhd-locator-invalid",
            Warning,
            differencing,
            Box::new(|s| {
                let mut h = header(s);
                h.parent_locators[0].platform_data_offset = u64::MAX.into();
                put_header(s, h);
            }),
        ),
        (
            "vhd-locator-space",
            Info,
            differencing,
            Box::new(|s| {
                let mut h = header(s);
                h.parent_locators[0].platform_data_space = 700.into();
                put_header(s, h);
            }),
        ),
        (
            "vhd-locator-unknown",
            Info,
            differencing,
            Box::new(|s| {
                let mut h = header(s);
                h.parent_locators[5].platform_code = *b"abcd";
                put_header(s, h);
            }),
        ),
        (
            "vhd-parent-path-missing",
            Bad,
            differencing,
            Box::new(|s| {
                let mut h = header(s);
                h.parent_locators = Default::default();
                h.parent_unicode_name = [zerocopy::big_endian::U16::ZERO; 256];
                put_header(s, h);
            }),
        ),
        (
            "vhd-block-beyond-end",
            Bad,
            dynamic,
            Box::new(|s| entry(s, 0, 0x00FF_FFFF)),
        ),
        (
            "vhd-block-over-structures",
            Bad,
            dynamic,
            Box::new(|s| entry(s, 0, 1)),
        ),
        (
            "vhd-blocks-overlap",
            Bad,
            dynamic,
            Box::new(|s| entry(s, 0, get(s, 1) + 1)),
        ),
        (
            "vhd-bat-padding",
            Warning,
            dynamic,
            Box::new(|s| entry(s, 127, 5)),
        ),
        (
            "vhd-bat-surplus",
            Info,
            dynamic,
            Box::new(|s| {
                let mut h = header(s);
                h.max_table_entries = 20.into();
                put_header(s, h);
                entry(s, 19, 5);
            }),
        ),
        (
            "vhd-blocks-leaked",
            Info,
            dynamic,
            Box::new(|s| entry(s, 1, u32::MAX)),
        ),
        (
            "vhd-unused-end",
            Info,
            dynamic,
            Box::new(|s| entry(s, 3, u32::MAX)),
        ),
        (
            "vhd-data-under-clear-bit",
            Warning,
            dynamic,
            Box::new(|s| s.write_at(u64::from(get(s, 2)) * 512, &[0; 512]).unwrap()),
        ),
    ];
    for (code, severity, disk_type, change) in cases {
        let storage = made(disk_type, &*change);
        let found = findings(&storage);
        let hit = found.iter().find(|f| f.code == code);
        let hit = hit.unwrap_or_else(|| panic!("{code} not in {found:?}"));
        assert_eq!(hit.severity, severity, "{code}");
        let opens_for_writing = open(&storage, true).is_ok();
        let broken_table = code.starts_with("vhd-block-") || code == "vhd-blocks-overlap";
        assert_eq!(opens_for_writing, !broken_table, "{code}");
        let image = open(&storage, false).expect("opens read-only");
        let read = image.read_at(0, &mut [0; 512], &mut Vec::new());
        assert_eq!(
            read.err().map(|e| e.kind()),
            code.starts_with("vhd-block-")
                .then_some(ErrorKind::BlockAllocationTableCorrupt),
            "{code}"
        );
    }
}

#[test]
fn what_a_dynamic_disk_hides_under_clear_bits_is_shown() {
    let storage = Arc::new(create_small(DiskType::Dynamic, 64 * 1024, 4096));
    let image = VhdImage::open(storage.clone(), true).unwrap();
    image.write_at(0, &[1; 4096], &NoBacking).unwrap();
    image.close().unwrap();
    let at = storage.len().unwrap() - 512 - 4096 - 512;
    storage.write_at(at, &[0; 512]).unwrap();
    let image = VhdImage::open(storage.clone(), true).unwrap();
    assert_eq!(read_range(&image, &NoBacking, 0..4096), [1; 4096]);
    // A write sets the bits of its own sectors and no others.
    image.write_at(700, &[2; 1000], &NoBacking).unwrap();
    image.close().unwrap();
    let mut bitmap = [0; 2];
    storage.read_at(at, &mut bitmap).unwrap();
    assert_eq!(bitmap, [0b0111_0000, 0]);
    assert_eq!(read_range(&image, &NoBacking, 0..700), [1; 700]);
}
