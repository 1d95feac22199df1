//! Identifiers and parents.

use super::model::backing_of;
use super::structure::{Shared, proves};
use super::*;
use crate::error::ErrorKind;

const SIZE: u64 = 64 * 1024;

fn child() -> MemoryStorage {
    let storage = Arc::new(create_small(DiskType::Differencing, SIZE, 4096));
    let backing = backing_of(DiskType::Differencing, SIZE);
    let image = VhdImage::open(storage.clone(), true).unwrap();
    for block in [3, 1, 9] {
        image
            .write_at(block * 4096 + 700, &[7; 900], &*backing)
            .unwrap();
    }
    image.close().unwrap();
    (*storage).clone()
}

/// A name that reaches into the header's second sector, and another path in each locator.
fn link(n: u32) -> ParentLink {
    let name = "n".repeat(240);
    ParentLink {
        identifier: Uuid::from_u128(u128::from(n)),
        relative_path: format!(r"..\{n}\{name}.vhd"),
        absolute_path: format!(r"D:\{n}\{name}.vhd"),
        modified: NOW + i64::from(n),
        disk_identifier: None,
    }
}

#[test]
fn a_new_parent_survives_every_crash_and_every_failing_call() {
    let backing: Shared = Arc::from(backing_of(DiskType::Differencing, SIZE));
    proves(&child(), &backing, &|image| image.set_parent(&link(1)));
    proves(&child(), &backing, &|image| {
        image.set_parent_identifiers(&[Uuid::from_u128(99)])
    });
    proves(&child(), &backing, &|image| {
        image.set_identifier(Uuid::from_u128(98))
    });
    for disk_type in [DiskType::Dynamic, DiskType::Fixed] {
        let start = create_small(disk_type, SIZE, 4096);
        let backing: Shared = Arc::from(backing_of(disk_type, SIZE));
        proves(&start, &backing, &|image| {
            image.set_identifier(Uuid::from_u128(97))
        });
    }
}

#[test]
fn a_new_parent_replaces_all_that_was_said_of_the_old_one() {
    let storage = Arc::new(child());
    let backing = backing_of(DiskType::Differencing, SIZE);
    let mut image = VhdImage::open(storage.clone(), true).unwrap();
    let before = read_all(&image, &*backing);
    let mut lengths = Vec::new();
    for n in 1..6 {
        image.set_parent(&link(n)).unwrap();
        let parent = image.info().parent.unwrap();
        assert_eq!(parent.identifiers, [link(n).identifier]);
        assert_eq!(parent.modified, Some(link(n).modified));
        let paths: Vec<&str> = parent.paths.iter().map(|p| p.path.as_str()).collect();
        assert_eq!(paths[..2], [link(n).relative_path, link(n).absolute_path]);
        assert!(link(n).relative_path.ends_with(paths[2]));
        // The next session sees the same, with the header where other programs look for it.
        image.close().unwrap();
        assert_eq!(codes(&storage), [""; 0]);
        assert_eq!(footer_at(&storage, 0).data_offset.get(), 512);
        image = VhdImage::open(storage.clone(), true).unwrap();
        assert_eq!(image.info().parent.unwrap().paths, parent.paths);
        assert!(read_all(&image, &*backing) == before);
        lengths.push(storage.len().unwrap());
    }
    assert!(
        lengths.iter().all(|&l| l <= lengths[0].max(lengths[1])),
        "old rooms are used again: {lengths:?}"
    );
    image.write_at(0, &[1; 4096 * 3], &*backing).unwrap();
    let usage = image.usage().unwrap();
    while image.pack(1).unwrap().left > 0 {}
    assert_eq!(storage.len().unwrap(), usage.packed_size);
    image.close().unwrap();
    assert_eq!(codes(&storage), [""; 0]);
}

#[test]
fn a_header_that_an_interrupted_change_left_elsewhere_comes_back() {
    let storage = child();
    let length = storage.len().unwrap();
    let moved = header(&storage);
    let footer = footer_at(&storage, 0);
    storage.write_at(length - 512, moved.as_bytes()).unwrap();
    storage.write_at(length + 512, footer.as_bytes()).unwrap();
    change_footers(&storage, |f| f.data_offset = (length - 512).into());
    assert_eq!(codes(&storage), [""; 0]);
    let storage = Arc::new(storage);
    let mut image = VhdImage::open(storage.clone(), true).unwrap();
    image.set_parent(&link(4)).unwrap();
    image.close().unwrap();
    assert_eq!(footer_at(&storage, 0).data_offset.get(), 512);
    assert_eq!(codes(&storage), [""; 0]);
}

#[test]
fn what_has_no_parent_or_two_is_refused() {
    for disk_type in [DiskType::Dynamic, DiskType::Fixed] {
        let mut image = open(&create_small(disk_type, SIZE, 4096), true).unwrap();
        let error = image.set_parent(&link(1)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidType, "{error}");
        let error = image.set_parent_identifiers(&[Uuid::nil()]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidType);
        assert!(image.set_physical_sector_size(4096).is_err());
    }
    let mut image = open(&child(), true).unwrap();
    for count in [0, 2] {
        let error = image
            .set_parent_identifiers(&vec![Uuid::nil(); count])
            .unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidParameter);
    }
    let mut image = open(&child(), false).unwrap();
    let error = image.set_parent(&link(1)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::WriteProtected);
    let error = image.set_identifier(Uuid::nil()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::WriteProtected);
}
