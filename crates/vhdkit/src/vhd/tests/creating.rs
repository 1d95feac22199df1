//! What new files are.

use super::*;
use crate::error::ErrorKind;
use crate::image::ExtentKind;
use crate::num::{GIB, KIB};
use crate::vhd::{geometry, is_exact_fixed};

#[test]
fn every_size_is_made_exactly() {
    for mib in 1..=4096 {
        let size = mib * MIB;
        let image = open(&create(&parameters(DiskType::Dynamic, size)), false).unwrap();
        assert_eq!(image.virtual_size(), size);
        let geometry = image.info().geometry.unwrap();
        assert_eq!(geometry, geometry::of_size(size));
    }
    for size in [512, 1024, MIB - 512, MIB + 512, 100 * MIB] {
        let storage = create(&parameters(DiskType::Fixed, size));
        assert_eq!(storage.len().unwrap(), size + 512);
        assert!(is_exact_fixed(&storage).unwrap());
        assert_eq!(open(&storage, false).unwrap().virtual_size(), size);
    }
}

#[test]
fn the_largest_disk_is_quick_and_small() {
    let start = std::time::Instant::now();
    let storage = create(&parameters(DiskType::Dynamic, 2040 * GIB));
    let image = open(&storage, true).unwrap();
    let all = image.map(0, 2040 * GIB).unwrap();
    assert_eq!((all.length, all.kind), (2040 * GIB, ExtentKind::Zero));
    assert!(storage.len().unwrap() < 5 * MIB);
    // Nothing here is proportional to the disk's bytes; a busy machine may take its time.
    assert!(start.elapsed().as_secs() < 60);
    image
        .write_at(2040 * GIB - 1, &[7], &crate::image::NoBacking)
        .unwrap();
    for offset in [1 << 31, 1 << 32, 1 << 40, (1 << 40) + 2 * MIB - 3] {
        image
            .write_at(offset, b"abcdef", &crate::image::NoBacking)
            .unwrap();
        let read = read_range(&image, &crate::image::NoBacking, offset..offset + 6);
        assert_eq!(read, b"abcdef");
    }
    image.close().unwrap();
}

#[test]
fn limits_are_refused_with_their_own_kinds() {
    use DiskType::{Differencing, Dynamic, Fixed};
    let refused = |parameters: &CreateParameters| {
        let storage = Arc::new(MemoryStorage::new());
        let error = VhdBuilder::new(storage.clone(), parameters, &mut |_, _| Ok(()))
            .err()
            .expect("refused");
        assert_eq!(storage.len().unwrap(), 0, "nothing was written");
        error.kind()
    };
    for disk_type in [Fixed, Dynamic, Differencing] {
        for size in [0, 511, 513, 2040 * GIB + 512, u64::MAX] {
            assert_eq!(
                refused(&parameters(disk_type, size)),
                ErrorKind::InvalidSize
            );
        }
    }
    for block_size in [0, 512, 32 * KIB, 3 * MIB, 4 * MIB, u64::MAX] {
        let mut p = parameters(Dynamic, MIB);
        p.block_size = Some(block_size);
        assert_eq!(refused(&p), ErrorKind::InvalidBlockSize);
    }
    let mut p = parameters(Fixed, MIB);
    p.logical_sector_size = Some(4096);
    assert_eq!(refused(&p), ErrorKind::UnsupportedSectorSize);
    let mut p = parameters(Differencing, MIB);
    p.parent = None;
    assert_eq!(refused(&p), ErrorKind::InvalidParameter);
    let mut p = parameters(Differencing, MIB);
    p.disk_type = Dynamic;
    assert_eq!(refused(&p), ErrorKind::InvalidType);
}

#[test]
fn payload_goes_where_it_is_placed_and_reads_back() {
    for disk_type in [DiskType::Fixed, DiskType::Dynamic, DiskType::Differencing] {
        let mut p = parameters(disk_type, 5 * MIB);
        p.block_size = Some(512 * KIB);
        let storage = Arc::new(MemoryStorage::new());
        let builder = VhdBuilder::new(storage.clone(), &p, &mut |_, _| Ok(())).unwrap();
        // Out of order, twice in one block, and the last sector.
        for (offset, byte) in [
            (4 * MIB, 1),
            (0, 2),
            (4 * MIB + 8 * KIB, 3),
            (5 * MIB - 512, 4),
        ] {
            let at = builder.place(offset, 512).unwrap();
            builder.storage().write_at(at, &[byte; 512]).unwrap();
            if disk_type != DiskType::Fixed {
                let block = at - offset % (512 * KIB);
                assert!(block.is_multiple_of(4096), "data of blocks is aligned");
            }
        }
        if disk_type != DiskType::Fixed {
            let error = builder.place(512 * KIB - 512, 1024).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidParameter);
            let error = builder.place(5 * MIB, 512).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::BeyondEnd);
        }
        builder.finish().unwrap();
        assert_eq!(codes(&storage), [""; 0]);
        let parent = Pattern {
            bytes: vec![9; to_usize(5 * MIB)],
        };
        let image = open(&storage, false).unwrap();
        let bytes = read_all(&image, &parent);
        let untouched = if disk_type == DiskType::Differencing {
            9
        } else {
            0
        };
        for (offset, byte) in [
            (4 * MIB, 1),
            (0, 2),
            (4 * MIB + 8 * KIB, 3),
            (5 * MIB - 512, 4),
        ] {
            assert_eq!(bytes[to_usize(offset)..][..512], [byte; 512]);
        }
        assert_eq!(bytes[512..1024], [untouched; 512]);
    }
}

#[test]
fn a_child_records_its_parent() {
    let mut p = parameters(DiskType::Differencing, 3 * MIB);
    let image = open(&create(&p), false).unwrap();
    let parent = image.info().parent.unwrap();
    assert_eq!(parent.identifiers, [Uuid::from_u128(7)]);
    assert_eq!(parent.modified, Some(NOW - 100));
    let paths: Vec<_> = parent
        .paths
        .iter()
        .map(|p| (p.kind.name(), p.path.as_str()))
        .collect();
    assert_eq!(
        paths,
        [
            ("relative", r".\parent.vhd"),
            ("url", "file://./parent.vhd"),
            ("name", "parent.vhd")
        ]
    );
    p.parent.as_mut().unwrap().absolute_path = r"C:\disks\parent.vhd".into();
    let image = open(&create(&p), false).unwrap();
    let paths = image.info().parent.unwrap().paths;
    assert_eq!(paths[1].path, r"C:\disks\parent.vhd");
}

#[test]
fn the_same_request_with_a_seed_makes_the_same_bytes() {
    let make = || create(&parameters(DiskType::Differencing, 3 * MIB)).to_vec();
    assert_eq!(make(), make());
}
