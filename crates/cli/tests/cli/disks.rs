//! create, info, map, read, write, compare and check on single files.

use std::io::Write;
use std::process::Stdio;

use crate::support::{Folder, Ran, real_disk};

#[test]
fn every_format_is_created_written_and_read() {
    for name in ["a.img", "a.raw", "a.vhd", "a.AVHD", "a.vhdx", "a.avhdx"] {
        let folder = Folder::new();
        let said = folder.ok(&format!("create {name} 64M"));
        assert!(said.contains("64 MiB (67108864 bytes)"), "{said}");
        std::fs::write(folder.path("word"), "hello").unwrap();
        let ran = folder.run_with_input(&format!("write {name} --offset 0x200005"), "word");
        assert_eq!(ran.code, Some(0), "{ran:?}");
        assert_eq!(
            folder.ok(&format!("read {name} --offset 2097157 --length 5")),
            "hello"
        );
        let zeros = folder.ok(&format!("read {name} --offset 63M --length 1M"));
        assert!(zeros.len() == 1 << 20 && zeros.bytes().all(|b| b == 0));
        let said = folder.ok(&format!("check {name}"));
        assert!(said.contains("nothing found"), "{name}: {said}");
    }
}

#[test]
fn types_and_sizes_are_as_asked() {
    let folder = Folder::new();
    for (words, expected) in [
        ("f.vhd 8M --type fixed", "vhd, fixed"),
        ("f.vhdx 8M --type fixed", "vhdx, fixed"),
        ("d.vhdx 1T --block-size 1M", "1 MiB (1048576 bytes)"),
        (
            "s.vhdx 1G --sector-size 4096 --physical-sector-size 4K",
            "4096 bytes (physical 4096 bytes)",
        ),
        (
            "i.vhdx 1G --id {6BA7B810-9DAD-41D1-80B4-00C04FD430C8}",
            "6ba7b810-9dad-41d1-80b4-00c04fd430c8",
        ),
    ] {
        folder.ok(&format!("create {words}"));
        let name = words.split(' ').next().unwrap();
        let said = folder.ok(&format!("info {name}"));
        assert!(said.contains(expected), "{words}: {said}");
    }
}

#[test]
fn a_seed_makes_the_same_bytes_again() {
    for name in ["vhd", "vhdx"] {
        let folder = Folder::new();
        folder.ok(&format!("create a.{name} 1G --reproducible 7"));
        folder.ok(&format!("create b.{name} 1G --reproducible 7"));
        folder.ok(&format!("create c.{name} 1G --reproducible 8"));
        let read = |n: &str| std::fs::read(folder.path(&format!("{n}.{name}"))).unwrap();
        assert!(read("a") == read("b"), "{name}");
        assert!(read("a") != read("c"), "{name}");
    }
}

#[test]
fn an_existing_file_is_only_replaced_when_asked() {
    let folder = Folder::new();
    folder.ok("create a.img 1M");
    folder.run("create a.img 2M").failed(1, "already exists");
    assert_eq!(
        std::fs::metadata(folder.path("a.img")).unwrap().len(),
        1 << 20
    );
    folder.ok("create a.img 2M --force");
    assert_eq!(
        std::fs::metadata(folder.path("a.img")).unwrap().len(),
        2 << 20
    );
    assert_eq!(folder.names(), ["a.img"]);
}

#[test]
fn a_copy_has_the_content_of_its_source() {
    let folder = Folder::new();
    folder.fill("a.img", 3 << 20);
    folder.ok("create b.vhdx --from a.img --reproducible 1");
    folder.ok("create c.vhdx --from a.img --reproducible 1");
    assert!(folder.ok("compare a.img b.vhdx").starts_with("same"));
    let read = |name| std::fs::read(folder.path(name)).unwrap();
    assert!(read("b.vhdx") == read("c.vhdx"));
}

#[test]
fn ranges_past_the_end_are_refused_before_anything_is_done() {
    let folder = Folder::new();
    folder.ok("create a.img 1M");
    folder.fill("large", (1 << 20) + 1);
    let before = std::fs::read(folder.path("a.img")).unwrap();
    let ran = folder.run_with_input("write a.img --offset 0", "large");
    ran.failed(1, "past the end of the disk");
    let ran = folder.run_with_input("write a.img --offset 2M", "large");
    ran.failed(1, "offset 2097152 is past the end of the disk");
    assert!(before == std::fs::read(folder.path("a.img")).unwrap());
    folder
        .run("read a.img --length 1048577")
        .failed(1, "past the end of the disk");
    folder
        .run("read a.img --offset 2M")
        .failed(1, "past the end of the disk");
    assert_eq!(folder.ok("read a.img --offset 1M"), "");
    assert_eq!(folder.ok("read a.img --length 0"), "");
}

#[test]
fn input_without_a_known_length_stops_at_the_end_of_the_disk() {
    let folder = Folder::new();
    folder.ok("create a.img 2M");
    let ran = folder.shell("yes | $V write a.img --offset 1M");
    assert_eq!(ran.code, Some(1));
    assert!(
        ran.err
            .contains("1048576 bytes at offset 1048576 were written"),
        "{ran:?}"
    );
    assert_eq!(folder.ok("read a.img --offset 1M --length 4"), "y\ny\n");
}

#[test]
fn input_in_small_pieces_is_written_whole() {
    let folder = Folder::new();
    folder.ok("create a.vhdx 8M");
    let mut child = folder
        .command("write a.vhdx --offset 1048570")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut input = child.stdin.take().unwrap();
    for i in 0..1000 {
        writeln!(input, "{i:07}").unwrap();
        input.flush().unwrap();
    }
    drop(input);
    let ran = Ran::of(&child.wait_with_output().unwrap());
    assert_eq!(ran.code, Some(0));
    assert_eq!(ran.out, "wrote 8000 bytes at offset 1048570 of a.vhdx\n");
    let read = folder.ok("read a.vhdx --offset 1048570 --length 8000");
    assert!(read.starts_with("0000000\n0000001\n") && read.ends_with("0000999\n"));
}

#[test]
fn comparing_tells_by_its_exit_code() {
    let folder = Folder::new();
    folder.fill("a.img", 2 << 20);
    folder.ok("convert a.img b.vhdx");
    assert!(folder.ok("compare a.img b.vhdx").starts_with("same"));
    std::fs::write(folder.path("x"), [0]).unwrap();
    folder.run_with_input("write b.vhdx --offset 1234567", "x");
    let ran = folder.run("compare a.img b.vhdx");
    assert_eq!(ran.code, Some(1));
    assert!(
        ran.out.contains("differ first at offset 1234567"),
        "{ran:?}"
    );
    folder.run("compare a.img none.img").failed(2, "none.img");
    // Surplus zeros are no difference.
    folder.ok("create c.img 1M");
    folder.ok("create d.img 2M");
    assert!(folder.ok("compare c.img d.img").contains("zeros"));
}

#[test]
fn the_map_covers_the_disk_without_gaps() {
    let folder = Folder::new();
    folder.ok("create a.vhdx 1G --block-size 1M");
    folder.fill("part", 3 << 20);
    folder.run_with_input("write a.vhdx --offset 500M", "part");
    let map = folder.json("map a.vhdx --json");
    let extents = map["extents"].as_array().unwrap();
    let mut at = 0;
    for extent in extents {
        assert_eq!(extent["start"], at);
        at += extent["length"].as_u64().unwrap();
        assert_eq!(extent["type"] == "data", extent["offset"].is_u64());
    }
    assert_eq!(at, 1 << 30);
    let table = folder.ok("map a.vhdx");
    assert_eq!(table.lines().count(), extents.len() + 1);
}

#[test]
fn a_real_disk_is_described() {
    let folder = Folder::new();
    std::fs::copy(real_disk(), folder.path("ntfs.vhd")).unwrap();
    let said = folder.ok("info ntfs.vhd");
    for part in ["vhd, dynamic", "4 MiB (4194304 bytes)", "created "] {
        assert!(said.contains(part), "{part}: {said}");
    }
    // The boot sector of its NTFS.
    let boot = folder
        .command("read ntfs.vhd --offset 64K --length 512")
        .output()
        .unwrap();
    assert_eq!(&boot.stdout[3..11], b"NTFS    ");
    assert_eq!(&boot.stdout[510..], [0x55, 0xAA]);
    // Nothing above info.
    folder.ok("check ntfs.vhd");
}

#[test]
fn damage_is_found_and_told_by_the_exit_code() {
    let folder = Folder::new();
    folder.ok("create a.vhdx 1G");
    let mut bytes = std::fs::read(folder.path("a.vhdx")).unwrap();
    // Both headers, at 64 and 128 KiB.
    bytes[(64 << 10) + 8] ^= 1;
    bytes[(128 << 10) + 8] ^= 1;
    std::fs::write(folder.path("a.vhdx"), bytes).unwrap();
    let ran = folder.run("check a.vhdx");
    assert_eq!(ran.code, Some(3), "{ran:?}");
    assert!(ran.out.contains("fatal"), "{ran:?}");
    folder.run("info a.vhdx").failed(1, "cannot open a.vhdx: ");
}

#[test]
fn a_lost_signature_is_not_passed_over() {
    let folder = Folder::new();
    folder.fill("a.vhdx", 1 << 20);
    let ran = folder.run("check a.vhdx");
    assert_eq!(ran.code, Some(3), "{ran:?}");
    assert!(ran.out.contains("file-signature-missing"), "{ran:?}");
    let ran = folder.run("info a.vhdx");
    assert_eq!(ran.code, Some(0));
    assert!(ran.err.contains("warning"), "{ran:?}");
    std::fs::write(folder.path("word"), "hello").unwrap();
    folder
        .run_with_input("write a.vhdx --offset 0", "word")
        .failed(1, "no vhdx signature");
    folder.ok("create b.vhdx 1M");
    for words in [
        "resize a.vhdx 2M",
        "resize a.vhdx 2M --dry-run",
        "expand a.vhdx 2M",
        "mirror b.vhdx a.vhdx --existing",
    ] {
        folder.run(words).failed(1, "no vhdx signature");
    }
    assert_eq!(
        std::fs::metadata(folder.path("a.vhdx")).unwrap().len(),
        1 << 20
    );
    let ran = folder.run("mirror a.vhdx c.vhdx");
    assert!(
        ran.code == Some(0) && ran.err.contains("warning"),
        "{ran:?}"
    );
}

#[test]
fn a_copy_may_be_larger_than_its_source_and_never_smaller() {
    for name in ["a.vhd", "f.vhd", "a.vhdx", "a.img"] {
        let folder = Folder::new();
        folder.fill("s.img", 5 << 20);
        let kind = if name.starts_with('f') {
            "--type fixed"
        } else {
            ""
        };
        let made = folder.json(&format!("create {name} 8M --from s.img {kind} --json"));
        assert_eq!(made["virtual_size"], 8 << 20, "{name}");
        let mut expected = std::fs::read(folder.path("s.img")).unwrap();
        expected.resize(8 << 20, 0);
        let read = folder.command(&format!("read {name}")).output().unwrap();
        assert!(read.stdout == expected, "{name}");
        let ran = folder.run(&format!("create b{name} 4M --from s.img {kind}"));
        ran.failed(1, "less than the source's 5242880");
        assert_eq!(folder.names().len(), 2, "{name}");
    }
}
