//! Disks attached where the kernel has what this one may lack: ublk, and partition tables read by the kernel itself.

use std::path::Path;

use vhdkit_testkit::vm::{Guest, has_programs};

/// What a device is used for, whatever it is made of: `$D` is the device and `$I` the image, with nothing in it. Leaves
/// the first partition mounted at /mnt.
const USE: &str = r#"
allocated() { sync; dd if=/dev/null of=$D conv=fsync 2>/dev/null; du -k "$I" | cut -f1; }
printf 'label: gpt\nsize=200MiB\nsize=16MiB\n' | sfdisk -q $D
[ "$(echo ${D}p*)" = "${D}p1 ${D}p2" ]
mkfs.ext4 -q ${D}p1
mount -t ext4 ${D}p1 /mnt
head -c 40000000 /dev/urandom > /mnt/noise
sha256sum /mnt/noise > /tmp/sum
full=$(allocated)
umount /mnt
mount -t ext4 ${D}p1 /mnt
sha256sum -c /tmp/sum
cp /mnt/noise /mnt/more
rm /mnt/more
sync
fstrim /mnt
[ $(allocated) -lt $((full + 4000)) ]
vhdkit list
fails vhdkit detach "$I"
fails vhdkit attach "$I"
umount /mnt
e2fsck -fn ${D}p1
# Zeroing takes space, discarding gives it back.
before=$(allocated)
/usr/sbin/blkdiscard -z ${D}p2
[ $(allocated) -ge $((before + 16000)) ]
/usr/sbin/blkdiscard ${D}p2
[ $(allocated) -lt $((before + 1000)) ]
"#;

/// Under load, with everything so far flushed, the server is killed: whoever writes gets an error at once, and what was
/// flushed is there when the disk is attached again.
const KILL: &str = r#"
mount -t ext4 ${D}p1 /mnt
cp /mnt/noise /mnt/flushed
sync
exec 8< $D
(while dd if=/dev/zero of=/mnt/x bs=64k count=50 conv=fsync; do :; done; echo ended > /tmp/writer) 2>/dev/null &
for i in $(seq 600); do [ -s /mnt/x ] && break; sleep 0.1; done
S=$(sed -n 's/.*"pid":\([0-9]*\).*/\1/p' /run/vhdkit/*.attachment)
kill -9 $S
for i in $(seq 300); do [ -e /tmp/writer ] && break; sleep 0.2; done
[ -e /tmp/writer ]
# Whoever still has it open reads nothing, and waits for nothing.
[ $(dd bs=4k count=1 skip=5000 iflag=direct <&8 | wc -c) = 0 ]
exec 8<&-
fails dd if=/dev/zero of=/mnt/y bs=64k count=1 conv=fsync
# What is left of the device has gone without anybody looking.
for i in $(seq 120); do [ "$(echo /dev/ublk*)" = /dev/ublk-control ] && break; sleep 0.5; done
[ "$(echo /dev/ublk*)" = /dev/ublk-control ]
# What is still mounted is told, and the way out; taken for detached it must not be.
fails vhdkit detach "$I" 2> /tmp/refusal
grep 'mounted at /mnt' /tmp/refusal
grep -e '--lazy' /tmp/refusal
vhdkit list | grep 'dead.*'
umount /mnt || umount -l /mnt
vhdkit list
vhdkit list
[ "$(ls /run/vhdkit)" = "" ]
"#;

const AGAIN: &str = r#"
D=$(vhdkit attach "$I" | head -1 | cut -d' ' -f1)
e2fsck -fp ${D}p1 || [ $? -le 1 ]
mount -o ro -t ext4 ${D}p1 /mnt
sha256sum -c /tmp/sum
cmp /mnt/noise /mnt/flushed
umount /mnt
vhdkit detach $D
[ ! -e ${D}p1 ]
vhdkit check "$I"
"#;

fn run(script: &str, modules: &[&str]) {
    let programs = ["sfdisk", "mkfs.ext4", "e2fsck", "fstrim", "blkdiscard"];
    if !has_programs(&programs) {
        return;
    }
    let Some(guest) = Guest::new() else { return };
    let guest = guest
        .modules(modules)
        .memory_mib(768)
        .program_file(Path::new(env!("CARGO_BIN_EXE_vhdkit")), "vhdkit")
        .programs(&programs);
    let start = r#"set -ex
fails() { if "$@"; then echo "this did not fail: $*"; exit 1; fi; }
mount -t tmpfs -o size=500m none /tmp
I=/tmp/a.vhdx
"#;
    let said = guest.run(&format!("{start}{script}"));
    println!("{}", said.console);
    assert!(said.succeeded);
}

#[test]
fn through_ublk_a_disk_is_partitioned_trimmed_zeroed_and_survives_its_server() {
    let script = format!(
        r#"
vhdkit create $I 1G
D=$(vhdkit attach $I | head -1 | cut -d' ' -f1)
[ $D = /dev/ublkb0 ]
cd /sys/block/ublkb0/queue
[ "$(cat logical_block_size physical_block_size write_cache fua | xargs)" = "512 4096 write back 1" ]
cd /
{USE}
# Growing while in use takes a newer kernel than this test usually has.
case $(uname -r) in
6.[0-9].*|6.1[0-5].*)
  fails vhdkit expand $I 2G 2> /tmp/refusal
  grep 'Linux 6.16' /tmp/refusal
  [ $(cat /sys/block/ublkb0/size) = 2097152 ] ;;
*)
  vhdkit expand $I 2G
  [ $(cat /sys/block/ublkb0/size) = 4194304 ] ;;
esac
{KILL}
[ "$(echo /dev/ublk*)" = /dev/ublk-control ]
{AGAIN}
[ "$(echo /dev/ublk*)" = /dev/ublk-control ]
# Nothing needs to be written down.
D=$(vhdkit attach $I | head -1 | cut -d' ' -f1)
rm /run/vhdkit/*
vhdkit list | grep "^$D .*$I"
vhdkit detach $I
[ "$(echo /dev/ublk*)" = /dev/ublk-control ]
# Read-only, and with sectors of 4096 bytes.
vhdkit create /tmp/b.vhdx 64M --sector-size 4096
D=$(vhdkit attach /tmp/b.vhdx --read-only | head -1 | cut -d' ' -f1)
[ $(cat /sys/block/ublkb0/ro) = 1 ]
[ $(cat /sys/block/ublkb0/queue/logical_block_size) = 4096 ]
fails dd if=/dev/zero of=$D bs=4k count=1 conv=fsync
# A lazy detachment waits for the last user.
exec 9< $D
vhdkit detach --lazy $D
sleep 0.5
[ -e $D ]
exec 9<&-
for i in $(seq 300); do [ -e $D ] || break; sleep 0.2; done
[ ! -e $D ]
"#
    );
    run(&script, &["ublk_drv"]);
}

#[test]
fn through_a_loop_device_the_kernel_finds_the_partitions_and_each_is_there_once() {
    let script = format!(
        r#"
vhdkit create $I 1G
D=$(vhdkit attach $I | head -1 | cut -d' ' -f1)
[ $D = /dev/loop0 ]
{USE}
# Written while the device is in use, by somebody who tells nobody.
mount -t ext4 ${{D}}p1 /mnt
echo 'size=32MiB' | sfdisk -q --append --no-reread --no-tell-kernel $D
for i in $(seq 120); do [ -b ${{D}}p3 ] && break; sleep 0.5; done
[ "$(echo ${{D}}p*)" = "${{D}}p1 ${{D}}p2 ${{D}}p3" ]
umount /mnt
vhdkit detach $D
D=$(vhdkit attach $I | head -1 | cut -d' ' -f1)
[ "$(echo ${{D}}p*)" = "${{D}}p1 ${{D}}p2 ${{D}}p3" ]
mount -t ext4 ${{D}}p1 /mnt
sha256sum -c /tmp/sum
umount /mnt
vhdkit detach $D
[ "$(echo ${{D}}p*)" = "${{D}}p*" ]
[ "$(ls /run/vhdkit)" = "" ]
vhdkit check $I
"#
    );
    run(&script, &["loop", "fuse"]);
}
