//! Whole programs.

use vhdkit_testkit::require::require;

use crate::support::{MIB, Served, has, has_libnbd, there};

/// Noise and holes.
fn source(served: &Served, length: u64) {
    let script = format!(
        "import os\nwith open('r.img', 'wb') as f:\n f.truncate({length})\n for i in range(0, {length}, 3 << 20):\n  f.seek(i)\n  f.write(os.urandom(1 << 20))\n f.truncate({length})\n"
    );
    served.ok("/usr/bin/python3", &["-c", &script]);
}

#[test]
fn nbdcopy_copies_both_ways() {
    if !has_libnbd() {
        return;
    }
    for disk in ["a.vhdx", "a.vhd"] {
        let mut served = Served::disks(&[disk], 96 * MIB);
        source(&served, 96 * MIB);
        let uri = served.uri(disk);
        served.ok("nbdcopy", &["--flush", "--connections=4", "r.img", &uri]);
        served.ok("nbdcopy", &["--connections=4", &uri, "out.img"]);
        served.ok("cmp", &["r.img", "out.img"]);
        served.ok(
            "nbdcopy",
            &["--connections=1", "--synchronous", &uri, "again.img"],
        );
        served.ok("cmp", &["r.img", "again.img"]);
        served.close();
    }
}

#[test]
fn qemu_converts_compares_and_maps() {
    if !has(&["qemu-img", "qemu-io"]) {
        return;
    }
    let mut served = Served::disks(&["a.vhdx"], 96 * MIB);
    source(&served, 96 * MIB);
    let uri = served.uri("a.vhdx");
    served.ok(
        "qemu-img",
        &["convert", "-n", "-f", "raw", "-O", "raw", "r.img", &uri],
    );
    served.ok(
        "qemu-img",
        &["compare", "-f", "raw", "-F", "raw", "r.img", &uri],
    );
    served.ok(
        "qemu-img",
        &["convert", "-f", "raw", "-O", "qcow2", &uri, "out.qcow2"],
    );
    served.ok(
        "qemu-img",
        &["compare", "-f", "raw", "-F", "qcow2", "r.img", "out.qcow2"],
    );
    let map = served.ok("qemu-img", &["map", "--output=json", "-f", "raw", &uri]);
    assert!(
        map.contains(r#""zero": true, "data": false"#) && map.contains(r#""data": true"#),
        "{map}"
    );
    let io = [
        "-f",
        "raw",
        "-c",
        "write -P 0x5a 1000 3000",
        "-c",
        "read -P 0x5a 1000 3000",
        "-c",
        "write -z -u 64k 1M",
        "-c",
        "read -P 0 64k 1M",
        "-c",
        "write -z 2M 1M",
        "-c",
        "discard 4M 8M",
        "-c",
        "write -f -P 1 8M 2M",
        "-c",
        "read -P 1 8M 2M",
        "-c",
        "flush",
        &uri,
    ];
    let said = served.ok("qemu-io", &io);
    assert!(!said.contains("failed"), "{said}");
    served.close();
}

/// QEMU agrees on extended headers, where a status has 64 bits.
#[test]
fn a_disk_of_64_tib_is_mapped_through_extended_headers() {
    if !has(&["qemu-img"]) {
        return;
    }
    let mut served = Served::disks(&["a.vhdx"], 60 << 40);
    let uri = served.uri("a.vhdx");
    served.ok(
        "qemu-io",
        &[
            "-f",
            "raw",
            "-c",
            "write -P 7 40T 64k",
            "-c",
            "write -z -u -n 0 30T",
            &uri,
        ],
    );
    let map = served.ok("qemu-img", &["map", "--output=json", "-f", "raw", &uri]);
    assert!(
        map.lines().count() < 20 && map.contains(r#""data": true"#),
        "{map}"
    );
    served.close();
}

#[test]
fn fio_finds_every_checksum_at_any_depth() {
    if !has(&["fio"]) {
        return;
    }
    for disk in ["a.vhdx", "a.vhd"] {
        let mut served = Served::disks(&[disk], 64 * MIB);
        let uri = format!("--uri={}", served.uri(disk));
        for (depth, size) in [("16", "4k"), ("32", "64k"), ("4", "1m")] {
            let (depth, size) = (format!("--iodepth={depth}"), format!("--bs={size}"));
            served.ok(
                "fio",
                &[
                    "--name=v",
                    "--ioengine=nbd",
                    &uri,
                    "--rw=randwrite",
                    &size,
                    &depth,
                    "--size=64M",
                    "--verify=crc32c",
                    "--verify_fatal=1",
                ],
            );
        }
        served.close();
    }
}

/// A real kernel's block layer over our server, with nothing of ours in between.
#[test]
fn linux_keeps_a_file_system_on_it() {
    if !has_libnbd() || !has(&["nbdfuse", "mkfs.ext4", "losetup", "fstrim"]) {
        return;
    }
    let root = rustix::process::geteuid().is_root();
    let fuse = std::path::Path::new("/dev/fuse").exists();
    if !require(
        root && fuse && there("fusermount3"),
        "needs root, /dev/fuse and fuse3",
    ) {
        return;
    }
    let mut served = Served::disks(&["a.vhdx"], 256 * MIB);
    let uri = served.uri("a.vhdx");
    std::fs::create_dir(served.path("m")).unwrap();
    std::fs::create_dir(served.path("f")).unwrap();
    let before = std::fs::metadata(served.path("a.vhdx")).unwrap().len();
    let script = format!(
        r#"set -eu
cleanup() {{
  umount m 2>/dev/null || true
  [ -z "${{L:-}}" ] || losetup -d $L || true
  fusermount3 -u f 2>/dev/null || true
  wait
}}
trap cleanup EXIT
nbdfuse f/disk.img '{uri}' &
for i in $(seq 1200); do [ -e f/disk.img ] && break; sleep 0.1; done
L=$(losetup -f --show --direct-io=on f/disk.img)
mkfs.ext4 -q $L
mount $L m
head -c 100M /dev/urandom > m/noise
sha256sum m/noise | cut -d' ' -f1 > sum
mkdir m/many; for i in $(seq 500); do echo $i > m/many/$i; done
sync
umount m; mount $L m
[ "$(sha256sum m/noise | cut -d' ' -f1)" = "$(cat sum)" ]
rm m/noise; sync
fstrim -v m
umount m
e2fsck -fn $L
"#
    );
    let said = served.ok("bash", &["-c", &script]);
    assert!(said.contains("trimmed"), "{said}");
    served.close();
    let disk = vhdkit::VirtualDisk::open(served.path("a.vhdx")).unwrap();
    let data: u64 = disk
        .extents(0..disk.virtual_size())
        .map(|e| e.unwrap().1)
        .filter(|e| e.data.is_some())
        .map(|e| e.length)
        .sum();
    assert!(
        data < 80 * MIB,
        "{data} bytes of data are left, of a file of {before}"
    );
}
