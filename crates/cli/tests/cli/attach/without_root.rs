//! The disk as a file, and what is said to those who may do less.

use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;

use super::{Attached, can_attach, eventually, has, refused_for, sh, sleeper};
use crate::support::{Folder, Ran};

#[test]
fn a_disk_can_be_shown_as_a_file() {
    if !can_attach() || !has(&["mkfs.ext4", "e2fsck", "fusermount3"]) {
        return;
    }
    let folder = Folder::new();
    folder.ok("create disk.vhdx 64M");
    std::fs::create_dir(folder.path("d")).unwrap();
    let attached = Attached::new(&folder, "disk.vhdx --file d");
    let file = folder.path("d").join("disk.img");
    assert_eq!(attached.device(), file.to_str().unwrap());
    assert_eq!(attached.row["backend"], "file");
    sh(
        &folder,
        "d/disk.img",
        "test $(stat -c %s $D) = 67108864; mkfs.ext4 -q $D; e2fsck -fn $D; ls d | cmp - <(echo disk.img)",
    );
    // In use it stays.
    let reader = sleeper(&folder, ":", "< d/disk.img");
    refused_for(&folder, "detach d", reader);
    folder.ok("detach d");
    attached.gone();
    assert_eq!(std::fs::read_dir(folder.path("d")).unwrap().count(), 0);
    // A dead server leaves nothing that is seen, without anybody looking.
    let attached = Attached::new(&folder, "disk.vhdx --file d");
    sh(&folder, "", &format!("kill -9 {}", attached.pid()));
    eventually("the mount to go", || {
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        !mounts.contains(folder.path("d").to_str().unwrap())
    });
    // The first to look is told; that may have been somebody else.
    eventually("its death to be seen", || {
        attached.now().is_none_or(|row| row["state"] == "dead")
    });
    attached.gone();
    // Where even that was killed, the next to come clears up.
    let attached = Attached::new(&folder, "disk.vhdx --file d");
    sh(
        &folder,
        "",
        &format!("pkill -9 -P {0}; kill -9 {0}", attached.pid()),
    );
    let attached = Attached::new(&folder, "disk.vhdx --file d");
    sh(&folder, "", "test -s d/disk.img");
    folder.ok("detach d");
    attached.gone();
    assert_eq!(std::fs::read_dir(folder.path("d")).unwrap().count(), 0);
    // And an ordinary umount ends it.
    let attached = Attached::new(&folder, "disk.vhdx --file d");
    sh(
        &folder,
        "d/disk.img",
        "head -c 1M /dev/urandom | dd of=$D conv=notrunc,fsync status=none; umount d",
    );
    attached.gone();
    folder.sound("disk.vhdx");
}

#[test]
fn those_who_are_not_root_are_told_what_they_can_do() {
    if !can_attach() {
        return;
    }
    // In a folder that everybody may enter.
    let place = tempfile::tempdir().unwrap();
    std::fs::set_permissions(place.path(), PermissionsExt::from_mode(0o777)).unwrap();
    // Theirs, as a runtime folder has to be: else there would be one for all time in the folder for temporary files.
    let runtime = place.path().join("run");
    std::fs::create_dir(&runtime).unwrap();
    std::os::unix::fs::chown(&runtime, Some(12345), None).unwrap();
    let program = place.path().join("vhdkit");
    std::fs::copy(env!("CARGO_BIN_EXE_vhdkit"), &program).unwrap();
    let run = |words: &str| {
        let mut command = std::process::Command::new(&program);
        command.args(words.split(' ')).current_dir(place.path());
        command
            .env("XDG_RUNTIME_DIR", &runtime)
            .uid(12345)
            .gid(12345);
        Ran::of(&command.output().unwrap())
    };
    assert_eq!(run("create disk.vhdx 64M").code, Some(0));
    let ran = run("attach disk.vhdx");
    ran.failed(1, "devices take root");
    for cure in ["sudo", "--file", "vhdkit serve"] {
        assert!(ran.err.contains(cure), "{ran:?}");
    }
    // Who may not even open it for writing is not told of --read-only: that takes root as well.
    std::fs::set_permissions(
        place.path().join("disk.vhdx"),
        PermissionsExt::from_mode(0o444),
    )
    .unwrap();
    assert!(run("attach disk.vhdx").err.contains("sudo"));
    std::fs::set_permissions(
        place.path().join("disk.vhdx"),
        PermissionsExt::from_mode(0o644),
    )
    .unwrap();
    run("mount disk.vhdx /mnt").failed(1, "devices take root");
    assert!(!run("list").out.contains(place.path().to_str().unwrap()));
    std::fs::create_dir(place.path().join("d")).unwrap();
    // /dev/fuse is not for everybody everywhere, and a user without a name cannot use fusermount3.
    let ran = run("attach disk.vhdx --file d");
    if ran.code == Some(0) {
        assert_eq!(run("detach d").code, Some(0));
    } else {
        let told = [
            (
                "open /dev/fuse failed: permission denied",
                "has to be open to you",
            ),
            ("mounting failed", "fusermount3"),
        ];
        let is_told =
            |(what, cure): &(&str, &str)| ran.err.contains(what) && ran.err.contains(cure);
        assert!(told.iter().any(is_told), "{ran:?}");
    }
}
