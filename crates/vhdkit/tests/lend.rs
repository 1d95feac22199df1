//! Which data of a disk may leave it without being copied.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test that cannot go on fails"
)]

use std::io::Read;
use std::path::Path;

use vhdkit::image::{CreateParameters, DiskType, Format};
use vhdkit::verbs::create::{CreateOptions, create};
use vhdkit::{OpenOptions, VirtualDisk};

const MIB: u64 = 1 << 20;
const SIZE: u64 = 32 * MIB;

fn make(path: &Path, disk_type: DiskType, parent: Option<&Path>) {
    let format = match path.extension().unwrap().to_str().unwrap() {
        "vhd" => Format::Vhd,
        "vhdx" => Format::Vhdx,
        _ => Format::Raw,
    };
    let options = CreateOptions {
        parent_path: parent.map(Path::to_owned),
        ..CreateOptions::new(path, CreateParameters::new(format, disk_type, SIZE))
    };
    create(options).wait().unwrap();
}

/// How much of a range goes into a pipe, after comparing it with what reading says.
fn lent(disk: &VirtualDisk, offset: u64, length: u64) -> u64 {
    let (mut reader, writer) = std::io::pipe().unwrap();
    let count = disk.lend(offset, length, &writer).unwrap();
    assert!(count <= length);
    drop(writer);
    let (mut out, mut read) = (Vec::new(), vec![0; usize::try_from(count).unwrap()]);
    reader.read_to_end(&mut out).unwrap();
    disk.read_at(offset, &mut read).unwrap();
    assert!(out == read, "at {offset}");
    count
}

#[test]
fn what_has_its_place_for_ever_is_lent_and_the_rest_is_not() {
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let data: Vec<u8> = (0..1_u32 << 20)
        .map(|i| (i / 7).to_le_bytes()[0] | 1)
        .collect();
    // Of a VHDX only what lies in whole folios of its block, here of 32 MiB.
    let middle = 8 * MIB;
    for (name, disk_type, writable, expected) in [
        ("a.raw", DiskType::Fixed, true, 32 << 10),
        ("a.vhd", DiskType::Fixed, true, 32 << 10),
        ("b.vhd", DiskType::Dynamic, true, 0),
        ("c.vhd", DiskType::Dynamic, false, 0),
        ("a.vhdx", DiskType::Fixed, true, 32 << 10),
        ("b.vhdx", DiskType::Dynamic, true, 32 << 10),
        ("c.vhdx", DiskType::Dynamic, false, 32 << 10),
    ] {
        let path = folder.path().join(name);
        make(&path, disk_type, None);
        let disk = OpenOptions::new().writable(true).open(&path).unwrap();
        disk.write_at(middle, &data).unwrap();
        disk.close().unwrap();
        let disk = OpenOptions::new().writable(writable).open(&path).unwrap();
        assert_eq!(lent(&disk, middle + 4096, 32 << 10), expected, "{name}");
        // The range is any, the end of the disk is the end.
        assert_eq!(
            lent(&disk, middle + 777, 1000),
            expected.min(1000),
            "{name}"
        );
        assert!(
            disk.lend(SIZE - 512, 1024, &std::io::pipe().unwrap().1)
                .is_err()
        );
        if disk_type == DiskType::Dynamic {
            assert_eq!(lent(&disk, 20 * MIB, 4096), 0, "{name}: zeros");
        }
    }
}

#[test]
fn a_child_lends_what_its_parent_has() {
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let (parent, child) = (folder.path().join("p.vhdx"), folder.path().join("c.vhdx"));
    make(&parent, DiskType::Dynamic, None);
    let disk = OpenOptions::new().writable(true).open(&parent).unwrap();
    disk.write_at(8 * MIB, &vec![7; 65536]).unwrap();
    disk.close().unwrap();
    make(&child, DiskType::Differencing, Some(&parent));
    let disk = OpenOptions::new().writable(true).open(&child).unwrap();
    assert_eq!(lent(&disk, 8 * MIB, 16384), 16384);
    disk.write_at(8 * MIB + 4096, &vec![9; 4096]).unwrap();
    assert_eq!(
        lent(&disk, 8 * MIB, 16384),
        4096,
        "up to what the child has"
    );
}
