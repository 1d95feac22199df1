//! Chains that are put together, and opened again, while they are in use.
#![allow(
    clippy::unwrap_used,
    reason = "helpers of tests: a failure is a failed test"
)]

use std::path::Path;

use uuid::Uuid;
use vhdkit::disk::{OpenOptions, Parents};
use vhdkit::image::{CreateParameters, DiskType, Format};
use vhdkit::verbs::create::{CreateOptions, create};
use vhdkit::verbs::merge::{MergeOptions, orphans};
use vhdkit::verbs::set_parent::set_parent_locator;
use vhdkit::{ErrorKind, VirtualDisk};

const SIZE: u64 = 8 << 20;

fn make(folder: &Path, name: &str, parent: Option<&str>) {
    let path = folder.join(name);
    let (disk_type, size) = match parent {
        Some(_) => (DiskType::Differencing, 0),
        None => (DiskType::Dynamic, SIZE),
    };
    let options = CreateOptions {
        parent_path: parent.map(|parent| folder.join(parent)),
        ..CreateOptions::new(&path, CreateParameters::new(Format::Vhdx, disk_type, size))
    };
    create(options).wait().unwrap();
    let disk = OpenOptions::new().writable(true).open(&path).unwrap();
    let number = u8::try_from(name.len()).unwrap();
    disk.write_at(u64::from(number) * 4096, &[number; 512])
        .unwrap();
    disk.close().unwrap();
}

/// base, then middle, then the leaf: each with a sector of its own.
fn chain() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    make(folder.path(), "a.vhdx", None);
    make(folder.path(), "bb.vhdx", Some("a.vhdx"));
    make(folder.path(), "ccc.vhdx", Some("bb.vhdx"));
    folder
}

fn check(disk: &VirtualDisk) {
    for number in 6..=8_u8 {
        let mut sector = [0; 512];
        disk.read_at(u64::from(number) * 4096, &mut sector).unwrap();
        assert_eq!(sector, [number; 512]);
    }
}

#[test]
fn a_chain_can_be_put_together_by_hand() {
    let folder = chain();
    let at = |name: &str| folder.path().join(name);
    let options = OpenOptions::new().parents(Parents::Ignored);
    let disk = options.open(at("ccc.vhdx")).unwrap();
    let kind = |parent: &str| {
        options
            .append_parent(&disk, at(parent))
            .map_err(|e| e.kind())
    };
    assert_eq!(kind("a.vhdx"), Err(ErrorKind::ParentIdMismatch));
    assert_eq!(kind("none.vhdx"), Err(ErrorKind::ParentNotFound));
    assert_eq!(kind("ccc.vhdx"), Err(ErrorKind::ChainCycle));
    assert_eq!(kind("bb.vhdx"), Ok(()));
    assert_eq!(kind("a.vhdx"), Ok(()));
    assert_eq!(kind("a.vhdx"), Err(ErrorKind::InvalidType));
    check(&disk);
}

#[test]
fn a_recorded_place_with_another_disk_in_it_does_not_hide_the_parent_in_the_next_one() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    std::fs::create_dir_all(at("old/sub")).unwrap();
    std::fs::create_dir_all(at("new")).unwrap();
    make(folder.path(), "old/a.vhdx", None);
    make(folder.path(), "old/sub/b.vhdx", Some("old/a.vhdx"));
    // Moved beside its parent, where `..\\a.vhdx` leads to a stranger.
    std::fs::rename(at("old/a.vhdx"), at("new/a.vhdx")).unwrap();
    std::fs::rename(at("old/sub/b.vhdx"), at("new/b.vhdx")).unwrap();
    make(folder.path(), "a.vhdx", None);
    let disk = VirtualDisk::open(at("new/b.vhdx")).unwrap();
    assert_eq!(disk.layers()[1].path, at("new/a.vhdx"));
    drop(disk);

    // With nothing better behind it, the stranger is what the error tells of.
    std::fs::remove_file(at("new/a.vhdx")).unwrap();
    let error = VirtualDisk::open(at("new/b.vhdx")).err().unwrap();
    assert_eq!(error.kind(), ErrorKind::ParentIdMismatch);
    assert!(error.to_string().contains("../a.vhdx"), "{error}");
}

#[test]
fn images_open_for_writing_and_back_while_in_use() {
    let folder = chain();
    let at = |name: &str| folder.path().join(name);
    let options = OpenOptions::new().writable(true);
    let disk = options.open(at("ccc.vhdx")).unwrap();
    let writable = || -> Vec<bool> {
        let count = disk.layers().len();
        let opens = |i: usize| VirtualDisk::open(disk.layers()[i].path.clone()).is_err();
        (0..count).map(opens).collect()
    };
    options.set_write_depth(&disk, 3).unwrap();
    assert_eq!(writable(), [true, true, true]);
    check(&disk);
    options.set_write_depth(&disk, 1).unwrap();
    assert_eq!(writable(), [true, false, false]);
    check(&disk);
    disk.write_at(0, &[1; 512]).unwrap();

    // Somebody reads the base: nothing changes.
    let other = VirtualDisk::open(at("a.vhdx")).unwrap();
    let result = options.set_write_depth(&disk, 3);
    assert_eq!(result.unwrap_err().kind(), ErrorKind::SharingViolation);
    drop(other);
    assert_eq!(writable(), [true, false, false]);
    check(&disk);
}

#[test]
fn a_locator_is_written_as_given_and_relative_ones_can_be_ignored() {
    let folder = chain();
    let at = |name: &str| folder.path().join(name);
    let strict = OpenOptions::new().ignore_relative_paths(true);
    let error = strict.open(at("bb.vhdx")).err().unwrap();
    assert_eq!(error.kind(), ErrorKind::ParentNotFound);

    let disk = OpenOptions::new()
        .parents(Parents::Ignored)
        .writable(true)
        .open(at("bb.vhdx"))
        .unwrap();
    let id = Uuid::from_u128(7);
    set_parent_locator(&disk, id, &at("elsewhere.vhdx")).unwrap();
    let parent = disk.info().parent.unwrap();
    assert_eq!(parent.identifiers, [id]);
    assert!(parent.paths[0].path.ends_with("elsewhere.vhdx"));
}

/// A merge once locked every disk beside its files for a moment, to see whose child it is, and whoever wanted to write to
/// it just then was told that it is in use.
#[test]
fn looking_for_orphans_needs_no_lock_and_keeps_nobody_out() {
    let folder = chain();
    let at = |name: &str| folder.path().join(name);
    make(folder.path(), "dddd.vhdx", Some("bb.vhdx"));
    let disk = OpenOptions::new().open(at("ccc.vhdx")).unwrap();
    let into_middle = MergeOptions {
        source_depth: 1,
        target_depth: 2,
        delete_merged: false,
        open: OpenOptions::new(),
        dry_run: false,
    };
    // The sibling is open for writing, so that no lock could be had.
    let sibling = OpenOptions::new()
        .writable(true)
        .open(at("dddd.vhdx"))
        .unwrap();
    assert_eq!(orphans(&disk, &into_middle).unwrap(), [at("dddd.vhdx")]);
    drop(sibling);
    std::thread::scope(|scope| {
        let looking = scope.spawn(|| {
            for _ in 0..50 {
                orphans(&disk, &into_middle).unwrap();
            }
        });
        while !looking.is_finished() {
            let sibling = OpenOptions::new().writable(true).open(at("dddd.vhdx"));
            sibling.expect("nobody else uses it").close().unwrap();
        }
    });
}

/// With a map of nothing, a child that was moved alone finds its parent if that was asked for when it was made.
#[test]
fn an_absolute_path_of_this_system_is_recorded_when_asked_for() {
    for (native, format) in [
        (false, "vhdx"),
        (true, "vhdx"),
        (true, "vhd"),
        (false, "vhd"),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let parent = at(&format!("Größe {native}.{format}"));
        let child = at(&format!("child.{format}"));
        for (path, parent_path) in [(&parent, None), (&child, Some(parent.clone()))] {
            let parameters = CreateParameters::new(
                if format == "vhd" {
                    Format::Vhd
                } else {
                    Format::Vhdx
                },
                match parent_path {
                    Some(_) => DiskType::Differencing,
                    None => DiskType::Dynamic,
                },
                if parent_path.is_some() { 0 } else { SIZE },
            );
            let options = CreateOptions {
                path: path.clone(),
                parameters,
                parent_path,
                profile: None,
                open_parent: OpenOptions::new().record_native_paths(native),
                overwrite: false,
            };
            create(options).wait().unwrap();
        }
        let ignoring = OpenOptions::new().ignore_relative_paths(true);
        assert_eq!(ignoring.open(&child).is_ok(), native, "{format}");
        assert!(OpenOptions::new().open(&child).is_ok());
        std::fs::create_dir(at("elsewhere")).unwrap();
        let moved = at("elsewhere").join(format!("child.{format}"));
        std::fs::rename(&child, &moved).unwrap();
        assert_eq!(OpenOptions::new().open(&moved).is_ok(), native, "{format}");
    }
}
