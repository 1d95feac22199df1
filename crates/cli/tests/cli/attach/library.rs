//! The library, as programs use it that are not the command.

use std::os::unix::fs::FileExt;
use std::path::Path;

use vhdkit::ErrorKind;
use vhdkit_attach::{AttachOptions, Lifetime, find, list};

use super::{can_attach, eventually, has, sh};
use crate::support::Folder;

fn options() -> AttachOptions {
    AttachOptions::new().server(env!("CARGO_BIN_EXE_vhdkit"))
}

#[test]
fn an_attachment_lives_as_long_as_its_value() {
    if !can_attach() {
        return;
    }
    let folder = Folder::new();
    folder.ok("create disk.vhdx 64M");
    let path = folder.path("disk.vhdx");
    let attached = options().attach(&path).unwrap();
    let known = attached.attachment().clone();
    assert_eq!(known.path, path);
    assert_eq!(known.virtual_size, 64 << 20);
    assert!(known.alive && !known.permanent && !known.read_only);
    let device = std::fs::File::options()
        .write(true)
        .open(&known.device)
        .unwrap();
    device.write_all_at(&[7; 4096], 8192).unwrap();
    drop(device);
    assert!(list().unwrap().iter().any(|one| one.id == known.id));
    let again = options().attach(&path).err().unwrap();
    assert_eq!(again.kind(), ErrorKind::SharingViolation, "{again}");
    // Ways to name it.
    for name in [
        path.as_os_str(),
        known.device.as_os_str(),
        known.id.as_ref(),
    ] {
        assert_eq!(find(name).unwrap().id, known.id);
    }
    drop(attached);
    eventually("the server to end", || !known.is_alive());
    let gone = find(&path).err().unwrap();
    assert_eq!(gone.kind(), ErrorKind::ItemNotFound);
    assert_eq!(
        folder
            .command("read disk.vhdx --offset 8192 --length 4096")
            .output()
            .unwrap()
            .stdout,
        [7; 4096]
    );
}

#[test]
fn a_permanent_attachment_outlives_its_value_until_it_is_detached() {
    if !can_attach() {
        return;
    }
    let folder = Folder::new();
    folder.ok("create disk.vhd 64M --type fixed");
    let path = folder.path("disk.vhd");
    let attached = options()
        .lifetime(Lifetime::Permanent)
        .read_only(true)
        .attach(&path)
        .unwrap();
    let id = attached.attachment().id.clone();
    drop(attached);
    let found = find(&path).unwrap();
    assert_eq!(found.id, id);
    assert!(found.is_alive() && found.permanent && found.read_only);
    found.detach(false).unwrap();
    assert!(!found.is_alive());
    folder.sound("disk.vhd");
}

#[test]
fn a_program_that_cannot_serve_is_said_to_be_so() {
    if !can_attach() {
        return;
    }
    let folder = Folder::new();
    folder.ok("create disk.vhdx 64M");
    let path = folder.path("disk.vhdx");
    for program in ["/bin/true", "/bin/false", "/nowhere/vhdkit"] {
        let error = AttachOptions::new()
            .server(program)
            .attach(&path)
            .err()
            .unwrap();
        assert!(error.to_string().contains("cannot attach"), "{error}");
    }
    assert!(Path::new(&path).exists());
    folder.sound("disk.vhdx");
}

#[test]
fn a_full_file_system_is_told_to_the_writer_and_in_the_list() {
    if !can_attach() || !has(&["mount"]) {
        return;
    }
    let folder = Folder::new();
    sh(
        &folder,
        "",
        "mkdir s; mount -t tmpfs -o size=24M none s; $V create s/disk.vhdx 200M",
    );
    let attached = super::Attached::new(&folder, "s/disk.vhdx");
    let ran = folder.shell(&format!(
        "dd if=/dev/urandom of={} bs=1M count=40 oflag=direct",
        attached.device()
    ));
    assert!(ran.err.contains("No space left"), "{ran:?}");
    eventually("the error to be listed", || {
        let now = attached.now().unwrap();
        now["last_error"]
            .as_str()
            .is_some_and(|text| text.contains("no space left"))
    });
    // What is there can still be read, and it ends, with a word about it.
    sh(&folder, attached.device(), "head -c 10M $D > /dev/null");
    let ran = folder.run("detach s/disk.vhdx");
    ran.failed(1, "no space left");
    sh(&folder, "", "$V check s/disk.vhdx; umount s");
}

/// What the kernel writes only when the device is closed nobody waits for, and `detach` once said that all was well.
#[test]
fn what_is_lost_when_a_device_is_closed_is_told() {
    if !can_attach() || !has(&["mount", "mkfs.ext4"]) {
        return;
    }
    let folder = Folder::new();
    sh(
        &folder,
        "",
        "mkdir s m; mount -t tmpfs -o size=24M none s; $V create s/disk.vhdx 200M",
    );
    let attached = super::Attached::new(&folder, "s/disk.vhdx");
    sh(
        &folder,
        attached.device(),
        "dd if=/dev/urandom of=$D bs=1M count=40 status=none",
    );
    let ran = folder.run("detach s/disk.vhdx");
    ran.failed(1, "no space left");
    assert!(ran.err.contains("may not all be there"), "{ran:?}");
    // The same for a disk that goes with its last user.
    sh(&folder, "", "rm s/disk.vhdx; $V create s/disk.vhdx 200M");
    let attached = super::Attached::new(&folder, "s/disk.vhdx");
    sh(
        &folder,
        attached.device(),
        "mkfs.ext4 -q $D; $V detach s/disk.vhdx; $V mount s/disk.vhdx m; dd if=/dev/urandom of=m/file bs=1M count=40 status=none",
    );
    let ran = folder.run("unmount m");
    ran.failed(1, "no space left");
    sh(&folder, "", "umount s");
}
