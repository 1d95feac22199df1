//! Which data of a disk may leave it without being copied, or come to it through a pipe.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test that cannot go on fails"
)]

use std::io::{Read, Write};
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

/// How much of `data` is taken out of a pipe and written; the rest of the pipe is as it was.
fn written(disk: &VirtualDisk, offset: u64, data: &[u8]) -> usize {
    let (mut reader, mut writer) = std::io::pipe().unwrap();
    writer.write_all(data).unwrap();
    drop(writer);
    let count = disk.write_pipe(offset, data.len() as u64, &reader).unwrap();
    let count = usize::try_from(count).unwrap();
    let (mut rest, mut read) = (Vec::new(), vec![0; count]);
    reader.read_to_end(&mut rest).unwrap();
    assert!(rest == data[count..], "at {offset}");
    disk.read_at(offset, &mut read).unwrap();
    assert!(read == data[..count], "at {offset}");
    count
}

#[test]
fn what_has_its_place_in_the_file_is_written_from_a_pipe() {
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let data: Vec<u8> = (0..65_536_u32).map(|i| (i / 7).to_le_bytes()[0]).collect();
    for (name, disk_type, size_of_block) in [
        ("a.raw", DiskType::Fixed, SIZE),
        ("a.vhd", DiskType::Fixed, SIZE),
        ("b.vhd", DiskType::Dynamic, 2 * MIB),
        ("a.vhdx", DiskType::Fixed, 32 * MIB),
        ("b.vhdx", DiskType::Dynamic, 32 * MIB),
    ] {
        let path = folder.path().join(name);
        make(&path, disk_type, None);
        let disk = OpenOptions::new().writable(true).open(&path).unwrap();
        let empty = written(&disk, 4 * MIB, &data);
        let expected = if disk_type == DiskType::Fixed {
            65_536
        } else {
            0
        };
        assert_eq!(empty, expected, "{name}");
        disk.write_at(4 * MIB, &vec![1; 2 << 20]).unwrap();
        disk.flush().unwrap();
        assert_eq!(written(&disk, 4 * MIB + 777, &data), 65_536, "{name}");
        // To the end of a block; the next one is not here.
        if size_of_block == 2 * MIB {
            assert_eq!(written(&disk, 6 * MIB - 1000, &data), 1000, "{name}");
        }
        let mut end = vec![0; 1000];
        disk.write_at(SIZE - 1000, &data[..1000]).unwrap();
        assert_eq!(written(&disk, SIZE - 1000, &data[1..1001]), 1000, "{name}");
        let pipe = std::io::pipe().unwrap();
        assert!(disk.write_pipe(SIZE - 512, 1024, &pipe.0).is_err());
        disk.close().unwrap();
        let disk = OpenOptions::new().open(&path).unwrap();
        assert!(disk.write_pipe(0, 512, &pipe.0).is_err(), "{name}");
        disk.read_at(SIZE - 1000, &mut end).unwrap();
        assert!(end == data[1..1001], "{name}");
    }
}

#[test]
fn a_child_takes_from_a_pipe_what_its_own_blocks_have_place_for() {
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    for extension in ["vhd", "vhdx"] {
        let parent = folder.path().join("p").with_extension(extension);
        let child = folder.path().join("c").with_extension(extension);
        make(&parent, DiskType::Dynamic, None);
        let disk = OpenOptions::new().writable(true).open(&parent).unwrap();
        disk.write_at(0, &vec![7; 4 << 20]).unwrap();
        disk.close().unwrap();
        make(&child, DiskType::Differencing, Some(&parent));
        let disk = OpenOptions::new().writable(true).open(&child).unwrap();
        assert_eq!(written(&disk, 4096, &[9; 8192]), 0, "{extension}");
        // A block of which the parent still has a part.
        disk.write_at(4096, &[8; 4096]).unwrap();
        assert_eq!(written(&disk, 4096, &[9; 8192]), 0, "{extension}");
        let mut read = vec![0; 12288];
        disk.read_at(0, &mut read).unwrap();
        let expected = [[7; 4096], [8; 4096], [7; 4096]].concat();
        assert!(read == expected, "{extension}");
    }
}
