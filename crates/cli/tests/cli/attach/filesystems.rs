//! Real file systems on attached disks, verified by their own tools, by QEMU and by us.

use super::{Attached, can_attach, eventually, has, sh};
use crate::support::Folder;

/// Copies a real tree, this one, and notes the sums of its files.
const COPY: &str = "for i in 1 2 3; do mkdir m/$i; cp -a $SOURCE/crates $SOURCE/docs $SOURCE/fuzz/corpus $SOURCE/bench m/$i; done; \
    (cd m; find . -type f -print0 | sort -z | xargs -0 sha256sum) > sums; test $(wc -l < sums) -gt 500";

struct Case {
    make: &'static str,
    mkfs: &'static str,
    fsck: &'static str,
}

/// mkfs, a tree, a large file that is removed again, trim, fsck, detach; then what is in the file is what was written.
fn lives_on(case: &Case, disk: &str) {
    if !can_attach() || !has(&["mkfs.ext4", "mkfs.xfs", "mkfs.btrfs", "fstrim", "qemu-img"]) {
        return;
    }
    let folder = Folder::new();
    for command in case.make.split(';') {
        folder.ok(command.trim());
    }
    let attached = Attached::new(&folder, disk);
    let device = attached.device().to_owned();
    sh(
        &folder,
        &device,
        &format!("mkdir m; {} $D; mount $D m", case.mkfs),
    );
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/../..");
    sh(&folder, &device, &format!("SOURCE={source}; {COPY}"));
    sh(
        &folder,
        &device,
        "head -c 128M /dev/urandom > m/large; sync -f m; rm m/large; sync -f m; umount m; mount $D m",
    );
    let large = folder.path(disk).metadata().unwrap().len();
    assert!(large > 128 << 20, "it is all in the file: {large}");
    sh(
        &folder,
        &device,
        &format!("fstrim m; umount m; {} $D", case.fsck),
    );
    folder.ok(&format!("detach {disk}"));
    attached.gone();

    folder.sound(disk);
    folder.ok(&format!("compact {disk}"));
    let small = folder.path(disk).metadata().unwrap().len();
    assert!(
        small + (100 << 20) < large,
        "what was trimmed is given back: {large} to {small}"
    );
    // What others read in it, where they can, and what we read.
    folder.ok(&format!("convert {disk} ours.img"));
    // (QEMU reads neither children nor VHDX with sectors of 4096 bytes.)
    if !disk.starts_with("child") && !case.make.contains("4096") {
        let format = if disk == "disk.vhd" { "vpc" } else { "vhdx" };
        let compare = format!("qemu-img compare -f raw -F {format} ours.img {disk}");
        let ran = folder.shell(&compare);
        assert_eq!(ran.code, Some(0), "{ran:?}");
    }
    let again = Attached::new(&folder, &format!("{disk} --read-only"));
    let options = if case.mkfs.contains("xfs") {
        "ro,norecovery"
    } else {
        "ro"
    };
    sh(
        &folder,
        again.device(),
        &format!("mount -o {options} $D m; (cd m; sha256sum --quiet -c ../sums); umount m"),
    );
    folder.ok(&format!("detach {}", again.id()));
    again.gone();
}

const EXT4: (&str, &str) = ("mkfs.ext4 -q", "e2fsck -fn");
const XFS: (&str, &str) = ("mkfs.xfs -q", "xfs_repair -n");
const BTRFS: (&str, &str) = ("mkfs.btrfs -q", "btrfs check");

fn case(make: &'static str, (mkfs, fsck): (&'static str, &'static str)) -> Case {
    Case { make, mkfs, fsck }
}

#[test]
fn ext4_on_a_dynamic_vhdx() {
    lives_on(&case("create disk.vhdx 700M", EXT4), "disk.vhdx");
}

#[test]
fn xfs_on_a_dynamic_vhd() {
    lives_on(&case("create disk.vhd 700M", XFS), "disk.vhd");
}

#[test]
fn btrfs_on_sectors_of_4096_bytes() {
    lives_on(
        &case("create disk.vhdx 700M --sector-size 4096", BTRFS),
        "disk.vhdx",
    );
}

#[test]
fn xfs_on_a_differencing_vhdx_with_sectors_of_4096_bytes() {
    lives_on(
        &case(
            "create base.vhdx 700M --sector-size 4096; create child.vhdx --parent base.vhdx",
            XFS,
        ),
        "child.vhdx",
    );
}

#[test]
fn ext4_on_a_differencing_vhd() {
    lives_on(
        &case(
            "create base.vhd 700M; create child.vhd --parent base.vhd",
            EXT4,
        ),
        "child.vhd",
    );
}

#[test]
fn partition_tables_of_sfdisk_and_sgdisk_appear_as_devices() {
    if !can_attach() || !has(&["sfdisk", "sgdisk", "mkfs.ext4"]) {
        return;
    }
    let folder = Folder::new();
    for (name, sector) in [("a.vhdx", 512), ("b.vhdx", 4096)] {
        folder.ok(&format!("create {name} 256M --sector-size {sector}"));
        let attached = Attached::new(&folder, name);
        let device = attached.device().to_owned();
        let nodes = |numbers: &[u32]| {
            let now = attached.now().unwrap();
            let found: Vec<u64> = now["partitions"]
                .as_array()
                .unwrap()
                .iter()
                .filter(|p| std::path::Path::new(p["device"].as_str().unwrap()).exists())
                .map(|p| p["number"].as_u64().unwrap())
                .collect();
            found == numbers.iter().map(|&n| n.into()).collect::<Vec<u64>>()
        };
        // Written while it is attached.
        sh(
            &folder,
            &device,
            "printf 'label: gpt\\n- 64M L\\n- 32M L\\n- - L\\n' | sfdisk -q $D",
        );
        eventually("three partitions", || nodes(&[1, 2, 3]));
        sh(
            &folder,
            &device,
            "printf 'label: dos\\n1 : size=64M\\n2 : size=100M, type=5\\n5 : size=20M\\n6 : size=20M\\n' | sfdisk -q --wipe always $D",
        );
        eventually("logical partitions", || nodes(&[1, 2, 5, 6]));
        sh(
            &folder,
            &device,
            "sgdisk --zap-all -n 4:0:+50M -n 2:0:+20M $D >/dev/null",
        );
        eventually("the partitions of sgdisk", || nodes(&[2, 4]));
        sh(&folder, &device, "mkfs.ext4 -q ${D}p4");
        folder.ok(&format!("detach {name}"));
        attached.gone();
        // With the device the nodes go.
        let node = format!("{device}p4");
        eventually("the nodes to go", || !std::path::Path::new(&node).exists());
        // And they are there as soon as it is attached.
        let again = Attached::new(&folder, name);
        let parts = again.row["partitions"].as_array().unwrap();
        assert_eq!(parts.len(), 2, "{:?}", again.row);
        assert_eq!(parts[1]["length"], 50 << 20);
        sh(&folder, again.device(), "e2fsck -fn ${D}p4");
        folder.ok(&format!("detach {name}"));
        again.gone();
    }
}

/// Where the kernel cannot read partition tables, who asks it to look takes the partitions away; a busy machine may let a
/// tool do that long after it has written the table.
#[test]
fn partitions_are_there_again_after_the_kernel_was_asked_to_look_late() {
    if !can_attach() || !has(&["sfdisk", "blockdev"]) {
        return;
    }
    let folder = Folder::new();
    folder.ok("create disk.vhdx 64M");
    let attached = Attached::new(&folder, "disk.vhdx");
    sh(
        &folder,
        attached.device(),
        "printf 'label: gpt\n- 16M L\n' | sfdisk -q $D; sleep 2; blockdev --rereadpt $D",
    );
    let node = format!("{}p1", attached.device());
    eventually("the partition", || std::path::Path::new(&node).exists());
    folder.ok("detach disk.vhdx");
    attached.gone();
}
