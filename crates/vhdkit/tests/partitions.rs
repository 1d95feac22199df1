//! Partition tables: made by hand, made by other programs, damaged, hostile.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::cast_possible_truncation,
    reason = "helpers of tests: a failure is a failed test"
)]

use std::cell::Cell;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use vhdkit::volume::{
    Gpt, Medium, Partition, PartitionTable, PartitionType, Scheme, Step, partitions,
};
use vhdkit::{Error, ErrorKind};
use vhdkit_testkit::partitions::{PartitionedDisk, probe_partitions};
use vhdkit_testkit::require::require;

const PARTS: [(u64, u64); 2] = [(40, 99), (120, 200)];

fn table(disk: &PartitionedDisk) -> PartitionTable {
    disk.read().unwrap().unwrap()
}

fn gpt(table: &PartitionTable) -> &Gpt {
    match &table.scheme {
        Scheme::Gpt(gpt) => gpt,
        Scheme::Mbr => panic!("an MBR"),
    }
}

/// Number, start and length in sectors.
fn places(table: &PartitionTable) -> Vec<(u32, u64, u64)> {
    let sector = u64::from(table.sector_size);
    let of = |p: &Partition| (p.number, p.start / sector, p.length / sector);
    table.partitions.iter().map(of).collect()
}

#[test]
fn a_gpt_is_read_in_both_sizes_of_sectors() {
    for (sector, backup) in [(512, 33), (4096, 5)] {
        let disk = PartitionedDisk::gpt(sector, 300, &PARTS);
        let table = table(&disk);
        assert_eq!(places(&table), [(1, 40, 60), (2, 120, 81)]);
        assert!(gpt(&table).has_primary() && table.complete && table.hybrid.is_empty());
        assert_eq!(gpt(&table).backup_header(), Some(299 * sector as u64));
        assert_eq!(gpt(&table).disk_id().as_bytes(), &[0x11; 16]);
        let smallest = (201 + backup) * sector as u64;
        assert_eq!(table.smallest_safe_size(), Some(smallest));
        // Without partitions there is still the table itself.
        let empty = PartitionedDisk::gpt(sector, 300, &[]);
        let smallest = (2 + 2 * backup - 1) * sector as u64;
        assert_eq!(self::table(&empty).smallest_safe_size(), Some(smallest));
    }
}

#[test]
fn either_copy_is_enough() {
    for sector in [512, 4096] {
        let whole = PartitionedDisk::gpt(sector, 300, &PARTS);
        let array = 16384 / sector;
        // The header, and the array.
        for offset in [60, sector + 33] {
            let mut disk = whole.clone();
            disk.bytes[sector + offset] ^= 1;
            let damaged = table(&disk);
            assert!(!gpt(&damaged).has_primary());
            assert_eq!(damaged.partitions, table(&whole).partitions);
            assert_eq!(
                damaged.smallest_safe_size(),
                table(&whole).smallest_safe_size()
            );
        }
        for at in [299 * sector + 60, (299 - array) * sector + 33] {
            let mut disk = whole.clone();
            disk.bytes[at] ^= 1;
            assert_eq!(gpt(&table(&disk)).backup_header(), None);
            assert_eq!(table(&disk).partitions, table(&whole).partitions);
            // And without either nobody knows.
            disk.bytes[sector + 60] ^= 1;
            assert_eq!(disk.read().unwrap(), None);
        }
    }
}

fn with_logical() -> PartitionedDisk {
    let mut disk = PartitionedDisk::blank(512, 300);
    disk.put_boot_record(0, &[(0x07, 8, 50), (0, 0, 0), (0x0F, 64, 160)]);
    disk.put_boot_record(64, &[(0x83, 8, 20), (0x05, 40, 60)]);
    disk.put_boot_record(104, &[(0x82, 8, 30)]);
    disk
}

#[test]
fn an_mbr_is_read_with_its_logical_partitions() {
    let table = table(&with_logical());
    assert_eq!(
        places(&table),
        [(1, 8, 50), (3, 64, 160), (5, 72, 20), (6, 112, 30)]
    );
    let kinds: Vec<_> = table.partitions.iter().map(|p| p.kind).collect();
    assert_eq!(
        kinds,
        [0x07, 0x0F, 0x83, 0x82].map(PartitionType::Mbr),
        "in the order of the table"
    );
    assert!(table.complete);
    assert_eq!(table.smallest_safe_size(), Some(224 * 512));
    assert_eq!(table.backup_gpt(300 * 512), None);
}

#[test]
fn a_broken_chain_of_logical_partitions_is_told() {
    let mut circle = with_logical();
    circle.put_boot_record(104, &[(0x82, 8, 30), (0x05, 0, 9)]);
    let mut outside = with_logical();
    outside.put_boot_record(104, &[(0x82, 8, 30), (0x05, 160, 9)]);
    let mut beyond = with_logical();
    beyond.put_boot_record(0, &[(0x05, 64, u32::MAX)]);
    beyond.put_boot_record(64, &[(0x83, 8, 20), (0x05, u32::MAX - 70, 60)]);
    let mut no_record = with_logical();
    no_record.put(104 * 512 + 510, &[0]);
    for disk in [circle, outside, beyond, no_record] {
        let table = table(&disk);
        assert!(!table.complete);
        assert_eq!(table.smallest_safe_size(), None);
        assert!(table.partitions.iter().any(|p| p.number == 5));
    }
    // A chain that goes on for as long as there is room.
    let mut long = PartitionedDisk::blank(512, 9000);
    long.put_boot_record(0, &[(0x05, 1, 8999)]);
    for lba in 1..9000_u32 {
        long.put_boot_record(lba as usize, &[(0x83, 0, 1), (0x05, lba, 1)]);
    }
    assert_eq!(table(&long).partitions.len(), 1 + 1024);
}

#[test]
fn what_is_no_table_is_none() {
    let blank = PartitionedDisk::blank(512, 300);
    assert_eq!(blank.read().unwrap(), None);
    assert_eq!(PartitionedDisk::blank(512, 0).read().unwrap(), None);
    let mut short = PartitionedDisk::blank(512, 1);
    short.bytes.truncate(100);
    assert_eq!(short.read().unwrap(), None);
    // A file system's boot sector, with code where the table would be.
    let mut boot = blank.clone();
    boot.put(446, &[0xB4; 64]);
    boot.put(510, &[0x55, 0xAA]);
    assert_eq!(boot.read().unwrap(), None);
    // One with zeros there looks like a table without partitions, and tells nothing.
    let mut zeros = blank.clone();
    zeros.put(510, &[0x55, 0xAA]);
    assert_eq!(table(&zeros).smallest_safe_size(), None);
    // A protective MBR and nothing that it protects.
    let mut lost = blank.clone();
    lost.put_boot_record(0, &[(0xEE, 1, 299)]);
    assert_eq!(lost.read().unwrap(), None);
    // Windows' dynamic disks have their database behind the partitions.
    let mut dynamic = blank;
    dynamic.put_boot_record(0, &[(0x42, 63, 100)]);
    assert_eq!(table(&dynamic).smallest_safe_size(), None);
}

#[test]
fn the_mbr_decides_which_table_counts() {
    // A GPT left over from an earlier life.
    let mut stale = PartitionedDisk::gpt(512, 300, &PARTS);
    stale.put_boot_record(0, &[(0x83, 34, 100)]);
    assert_eq!(places(&table(&stale)), [(1, 34, 100)]);
    // One whose protective MBR was wiped.
    let mut wiped = PartitionedDisk::gpt(512, 300, &PARTS);
    wiped.put(0, &[0; 512]);
    assert_eq!(places(&table(&wiped)).len(), 2);
    // A hybrid one, whose other partition reaches further.
    let mut hybrid = PartitionedDisk::gpt(512, 300, &PARTS);
    hybrid.put_boot_record(0, &[(0xEE, 1, 39), (0x07, 40, 200)]);
    let table = table(&hybrid);
    assert_eq!(table.hybrid.len(), 1);
    assert_eq!(table.smallest_safe_size(), Some((240 + 33) * 512));
    let change = table.backup_gpt(300 * 512).unwrap();
    let touched = |step: &Step| matches!(step, Step::Write { offset: 0, .. });
    assert!(!change.steps.iter().any(touched), "its MBR is not ours");
}

#[test]
fn hostile_headers_are_not_believed() {
    let fields: [(usize, &[u8]); 12] = [
        (0, b"EFI PARK"),
        (8, &0x20000_u32.to_le_bytes()),
        (12, &91_u32.to_le_bytes()),
        (12, &513_u32.to_le_bytes()),
        (24, &2_u64.to_le_bytes()),
        (72, &0_u64.to_le_bytes()),
        (72, &1_u64.to_le_bytes()),
        (72, &u64::MAX.to_le_bytes()),
        (80, &0_u32.to_le_bytes()),
        (80, &u32::MAX.to_le_bytes()),
        (84, &0_u32.to_le_bytes()),
        (84, &129_u32.to_le_bytes()),
    ];
    for (at, bytes) in fields {
        let mut disk = PartitionedDisk::gpt(512, 300, &PARTS);
        disk.put(512 + at, bytes);
        disk.seal_gpt(1);
        probe_partitions(&disk);
        let table = table(&disk);
        assert!(!gpt(&table).has_primary(), "{at}: {bytes:?}");
        assert_eq!(places(&table).len(), 2, "by the other copy");
    }
    for (first, last) in [
        (40, u64::MAX),
        (u64::MAX, u64::MAX),
        (99, 40),
        (0, u64::MAX),
    ] {
        let disk = PartitionedDisk::gpt(512, 300, &[(first, last)]);
        probe_partitions(&disk);
        let table = table(&disk);
        assert_eq!(table.partitions.is_empty(), last < first);
        assert!(table.smallest_safe_size().is_none_or(|size| size > 0));
    }
}

#[test]
fn reading_is_bounded_and_its_failures_are_passed_on() {
    let read = Cell::new(0);
    let count = |_: u64, buffer: &mut [u8]| {
        read.set(read.get() + buffer.len());
        buffer.fill(0xFF);
        Ok(())
    };
    let medium = Medium::new(u64::MAX, 4096, &count).unwrap();
    assert_eq!(partitions(&medium).unwrap(), None);
    assert!(read.get() <= 4 * 4096);
    let fail = |_: u64, _: &mut [u8]| Err(Error::new(ErrorKind::ReadFault, "no"));
    let medium = Medium::new(1 << 20, 512, &fail).unwrap();
    assert_eq!(
        partitions(&medium).unwrap_err().kind(),
        ErrorKind::ReadFault
    );
    let error = Medium::new(1 << 20, 2048, &fail).err().unwrap();
    assert_eq!(error.kind(), ErrorKind::UnsupportedSectorSize);
}

#[test]
fn the_second_copy_moves_with_the_end_of_the_disk() {
    for sector in [512, 4096] {
        let disk = PartitionedDisk::gpt(sector, 300, &PARTS);
        let before = table(&disk);
        let smallest = before.smallest_safe_size().unwrap();
        let size = disk.bytes.len() as u64;
        let unit = sector as u64;
        for new_size in [
            smallest,
            size - 3 * unit,
            size,
            size + unit,
            size + 10 * unit,
            3 * size,
        ] {
            let change = before.backup_gpt(new_size).unwrap();
            let moved = disk.moved(&change, new_size);
            let after = table(&moved);
            assert_eq!(after.partitions, before.partitions);
            assert_eq!(gpt(&after).backup_header(), Some(new_size - unit));
            let expected = PartitionedDisk::gpt(sector, (new_size / unit) as usize, &PARTS);
            assert!(moved == expected, "{sector}, {new_size}: as if made so");
            assert!(change.steps.ends_with(&[Step::Flush]));
        }
        assert_eq!(before.backup_gpt(smallest - unit), None);
        assert_eq!(before.backup_gpt(size + 1), None);
    }
}

#[test]
fn a_whole_copy_is_there_at_every_moment() {
    let disk = PartitionedDisk::gpt(512, 300, &PARTS);
    let mut no_primary = disk.clone();
    no_primary.put(512, &[0; 512]);
    let mut no_backup = disk.clone();
    no_backup.put(299 * 512, &[0; 512]);
    for (disk, sizes) in [
        (disk, [240, 290, 300, 310, 600]),
        // Of a disk that has grown the second copy alone cannot be found.
        (no_primary, [240, 250, 260, 290, 300]),
        (no_backup, [240, 290, 300, 310, 600]),
    ] {
        let before = table(&disk);
        for sectors in sizes {
            let change = before.backup_gpt(sectors * 512).unwrap();
            let mut stopped = disk.clone();
            let longer = stopped.bytes.len().max(sectors as usize * 512);
            stopped.bytes.resize(longer, 0);
            for steps in 0..=change.steps.len() {
                let mut stopped = stopped.clone();
                stopped.apply(&change, steps);
                let after = stopped.read().unwrap();
                let after = after.unwrap_or_else(|| panic!("{sectors}: gone after {steps} steps"));
                assert_eq!(after.partitions, before.partitions);
            }
            // Once more, with the first write after each barrier lost.
            for (i, step) in change.steps.iter().enumerate() {
                if *step != Step::Flush {
                    continue;
                }
                let mut lost = change.clone();
                lost.steps.truncate(change.steps.len().min(i + 3));
                if i + 1 < lost.steps.len() {
                    lost.steps.remove(i + 1);
                }
                let mut stopped = stopped.clone();
                stopped.apply(&lost, lost.steps.len());
                assert_eq!(table(&stopped).partitions, before.partitions);
            }
        }
    }
}

// --- other programs -------------------------------------------------------------------------------------------------

fn tool(name: &str) -> bool {
    let there = Command::new(name)
        .arg("--version")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok();
    require(there, &format!("{name} is not installed"))
}

fn run(program: &str, arguments: &[&str], input: &str, file: &Path) -> String {
    let mut child = Command::new(program)
        .args(arguments)
        .arg(file)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(input.as_bytes()).unwrap();
    drop(stdin);
    let output = child.wait_with_output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program}: {text}{errors}");
    text
}

fn load(file: &Path, sector: usize) -> PartitionedDisk {
    PartitionedDisk {
        bytes: std::fs::read(file).unwrap(),
        sector,
    }
}

const MIB: u64 = 1 << 20;

#[test]
fn sgdisk_agrees() {
    if !tool("sgdisk") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("disk");
    std::fs::write(&file, vec![0; 64 << 20]).unwrap();
    let make = ["-n", "1:2048:+10M", "-n", "2:0:+5M", "-t", "2:0700"];
    run("sgdisk", &make, "", &file);
    let disk = load(&file, 512);
    let table = table(&disk);
    assert_eq!(places(&table), [(1, 2048, 20480), (2, 22528, 10240)]);
    assert_eq!(table.smallest_safe_size(), Some((22528 + 10240 + 33) * 512));
    let smallest = table.smallest_safe_size().unwrap();
    for new_size in [smallest, 40 * MIB, 64 * MIB, 65 * MIB, 200 * MIB] {
        let change = table.backup_gpt(new_size).unwrap();
        std::fs::write(&file, disk.moved(&change, new_size).bytes).unwrap();
        let said = run("sgdisk", &["-v"], "", &file);
        assert!(said.contains("No problems found"), "{new_size}: {said}");
    }
    // Both copies damaged in turn, the other one used.
    let mut damaged = disk.clone();
    damaged.put(512, &[0; 512]);
    let change = self::table(&damaged).backup_gpt(80 * MIB).unwrap();
    std::fs::write(&file, damaged.moved(&change, 80 * MIB).bytes).unwrap();
    let said = run("sgdisk", &["-v"], "", &file);
    assert!(said.contains("No problems found"), "{said}");
}

#[test]
fn sfdisk_agrees() {
    if !tool("sfdisk") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("disk");
    let blank = || std::fs::write(&file, vec![0; 64 << 20]).unwrap();
    // start= and size= of every line.
    let theirs = || -> Vec<(u64, u64)> {
        let number = |line: &str, name: &str| -> Option<u64> {
            let rest = line.split_once(name)?.1.trim_start();
            rest.split([',', ' ']).next()?.parse().ok()
        };
        let place = |l| Some((number(l, "start=")?, number(l, "size=")?));
        let dump = run("sfdisk", &["--dump"], "", &file);
        dump.lines().filter_map(place).collect()
    };
    blank();
    let script = "label: dos\n,8M,7\n,8M,L\n,,E\n,4M,L\n,4M,S\n,2M,L\n";
    run("sfdisk", &[], script, &file);
    let ours = table(&load(&file, 512));
    assert!(ours.complete);
    assert_eq!(without_numbers(&ours), theirs());
    assert_eq!(ours.partitions.len(), 6);

    blank();
    run("sfdisk", &[], "label: gpt\n,8M,L\n,4M,S\n,2M,U\n", &file);
    let disk = load(&file, 512);
    let ours = table(&disk);
    assert_eq!(without_numbers(&ours), theirs());
    for new_size in [ours.smallest_safe_size().unwrap(), 30 * MIB, 100 * MIB] {
        let change = ours.backup_gpt(new_size).unwrap();
        std::fs::write(&file, disk.moved(&change, new_size).bytes).unwrap();
        let said = run("sfdisk", &["--verify"], "", &file);
        assert!(said.contains("No errors detected"), "{said}");
        assert_eq!(theirs(), without_numbers(&ours));
    }
}

fn without_numbers(table: &PartitionTable) -> Vec<(u64, u64)> {
    places(table).iter().map(|p| (p.1, p.2)).collect()
}

#[test]
fn fdisk_agrees_on_sectors_of_4096_bytes() {
    if !tool("fdisk") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("disk");
    let blank = || std::fs::write(&file, vec![0; 64 << 20]).unwrap();
    let theirs = || -> Vec<(u64, u64)> {
        let columns = ["-b", "4096", "-o", "Start,Sectors", "-l"];
        let list = run("fdisk", &columns, "", &file);
        let place = |line: &str| {
            let (start, length) = line.trim().split_once(' ')?;
            Some((start.parse().ok()?, length.trim().parse().ok()?))
        };
        list.lines().filter_map(place).collect()
    };
    blank();
    let keys = "o\nn\np\n1\n\n+8M\nn\ne\n2\n\n\nn\nl\n\n+4M\nn\nl\n\n+2M\nw\n";
    run("fdisk", &["-b", "4096"], keys, &file);
    let ours = table(&load(&file, 4096));
    assert!(ours.complete);
    assert_eq!(without_numbers(&ours), theirs());
    assert_eq!(ours.partitions.len(), 4);

    blank();
    let keys = "g\nn\n\n\n+8M\nn\n\n\n+4M\nw\n";
    run("fdisk", &["-b", "4096"], keys, &file);
    let disk = load(&file, 4096);
    let ours = table(&disk);
    assert_eq!(without_numbers(&ours), theirs());
    assert_eq!(ours.partitions.len(), 2);
    for new_size in [ours.smallest_safe_size().unwrap(), 30 * MIB, 100 * MIB] {
        let change = ours.backup_gpt(new_size).unwrap();
        std::fs::write(&file, disk.moved(&change, new_size).bytes).unwrap();
        let said = run("fdisk", &["-b", "4096"], "v\nq\n", &file);
        assert!(said.contains("No errors detected"), "{said}");
        assert_eq!(theirs(), without_numbers(&ours));
    }
}
