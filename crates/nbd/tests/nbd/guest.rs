//! A real Linux kernel as the client: its own NBD driver, and a virtual machine that starts from a disk that we serve.

use std::net::SocketAddr;
use std::sync::Arc;

use vhdkit::OpenOptions;
use vhdkit_nbd::{Address, Catalog, DiskExport, Limits, Listener, Server};
use vhdkit_testkit::vm::Guest;

use crate::support::{MIB, Served, folder, has, make};

#[test]
fn linux_connects_twice_partitions_trims_and_keeps_every_byte() {
    if !has(&["nbd-client", "sfdisk", "mkfs.ext4", "e2fsck", "fstrim"]) {
        return;
    }
    let Some(guest) = Guest::new() else { return };
    let folder = folder();
    let path = folder.path().join("a.vhdx");
    make(&path, 256 * MIB);
    let disk = Arc::new(OpenOptions::new().writable(true).open(&path).unwrap());
    let mut catalog = Catalog::new();
    catalog
        .add("a.vhdx", Arc::new(DiskExport::new(disk.clone(), false)))
        .unwrap();
    let listener = Listener::tcp("127.0.0.1:0".parse::<SocketAddr>().unwrap()).unwrap();
    let Address::Tcp(address) = listener.address() else {
        panic!("a port was asked for");
    };
    let server = Server::start(catalog, None, Limits::default(), vec![listener]).unwrap();
    let port = address.port();
    let said = guest
        .network()
        .modules(&["nbd max_part=8"])
        .programs(&[
            "nbd-client",
            "sfdisk",
            "mkfs.ext4",
            "e2fsck",
            "fstrim",
            "sha256sum",
        ])
        .run(&format!(
            r"set -e
nbd-client -N a.vhdx 10.0.2.2 {port} /dev/nbd0 -C 2
[ $(cat /sys/block/nbd0/queue/discard_max_bytes) != 0 ]
printf 'label: gpt\nsize=200MiB\nsize=20MiB\n' | sfdisk -q /dev/nbd0
for i in $(seq 60); do [ -b /dev/nbd0p2 ] && break; sleep 1; done
mkfs.ext4 -q /dev/nbd0p1
mount -t ext4 -o discard /dev/nbd0p1 /mnt
head -c 30000000 /dev/urandom > /mnt/noise
sha256sum /mnt/noise > /tmp/sum
sync
umount /mnt
nbd-client -d /dev/nbd0
for i in $(seq 60); do [ -e /sys/block/nbd0/pid ] || break; sleep 1; done
nbd-client -N a.vhdx 10.0.2.2 {port} /dev/nbd0 -C 2
for i in $(seq 60); do [ -b /dev/nbd0p1 ] && break; sleep 1; done
mount -t ext4 /dev/nbd0p1 /mnt
sha256sum -c /tmp/sum
rm /mnt/noise; sync
fstrim -v /mnt
umount /mnt
e2fsck -fn /dev/nbd0p1
nbd-client -d /dev/nbd0
"
        ));
    assert!(said.succeeded, "{}", said.console);
    server.close(std::time::Duration::from_mins(1));
    Arc::into_inner(disk).unwrap().close().unwrap();
    let disk = vhdkit::VirtualDisk::open(&path).unwrap();
    let extents = disk.extents(0..disk.virtual_size()).map(|e| e.unwrap().1);
    let data: u64 = extents.filter(|e| e.data.is_some()).map(|e| e.length).sum();
    assert!(data < 28 * MIB, "{data} bytes are left after the trim");
}

#[test]
fn a_virtual_machine_starts_from_a_vhdx_that_we_serve() {
    if !has(&["mkfs.ext4", "qemu-img", "e2fsck"]) {
        return;
    }
    let Some(guest) = Guest::new() else { return };
    let mut served = Served::disks(&["root.vhdx"], 128 * MIB);
    // A small system of its own: busybox, and something to be read and changed.
    let script = r#"set -eu
mkdir -p r/bin r/sbin r/dev r/proc r/sys r/etc
cp "$(command -v busybox)" r/bin/busybox
for name in sh mount umount sha256sum poweroff sync cat echo dd; do ln -s busybox r/bin/$name; done
head -c 20M /dev/urandom > r/etc/noise
(cd r && sha256sum etc/noise > etc/sum)
cat > r/sbin/init <<'S'
#!/bin/sh
export PATH=/bin
mount -t proc proc /proc
cd / && sha256sum -c etc/sum && echo written > /etc/changed && sync && echo "THE-ROOT-WORKS"
umount /proc
mount -o remount,ro /
echo; echo "GUEST-ENDS-WITH 0"
poweroff -f
S
chmod +x r/sbin/init
truncate -s 128M root.img
mkfs.ext4 -q -d r root.img
"#;
    served.ok("bash", &["-c", script]);
    let uri = served.uri("root.vhdx");
    served.ok(
        "qemu-img",
        &["convert", "-n", "-f", "raw", "-O", "raw", "root.img", &uri],
    );
    let said = guest
        .nbd_disk(&served.socket(), "root.vhdx")
        .switch_root("/new")
        .run("mkdir /new && mount -t ext4 /dev/vda /new && mount -t devtmpfs dev /new/dev");
    assert!(
        said.succeeded && said.console.contains("THE-ROOT-WORKS"),
        "{}",
        said.console
    );
    served.ok(
        "qemu-img",
        &["convert", "-f", "raw", "-O", "raw", &uri, "after.img"],
    );
    served.ok("e2fsck", &["-fn", "after.img"]);
    let changed = served.ok("debugfs", &["-R", "cat /etc/changed", "after.img"]);
    assert!(changed.contains("written"), "{changed}");
    served.close();
}
