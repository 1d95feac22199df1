//! The commands themselves: what they say, refuse and show.

use std::os::unix::fs::MetadataExt;

use super::{Attached, can_attach, eventually, has, refused_for, sh, sleeper};
use crate::support::Folder;

#[test]
fn a_disk_in_use_stays_unless_it_is_let_go() {
    if !can_attach() || !has(&["mkfs.ext4"]) {
        return;
    }
    let folder = Folder::new();
    folder.ok("create disk.vhdx 64M");
    let attached = Attached::new(&folder, "disk.vhdx");
    let device = attached.device().to_owned();
    sh(
        &folder,
        &device,
        "mkfs.ext4 -q $D; mkdir m; mount $D m; echo hello > m/file",
    );
    let ran = folder.run("detach disk.vhdx");
    ran.failed(
        1,
        &format!("{device} is mounted at {}", folder.path("m").display()),
    );
    assert!(ran.err.contains("--lazy"), "{ran:?}");
    assert_eq!(
        attached.now().unwrap()["mounts"][0]["device"],
        device.as_str()
    );
    // A second attachment of the same file is refused, under any name.
    sh(&folder, &device, "ln disk.vhdx other.vhdx");
    for words in [
        "attach disk.vhdx",
        "attach disk.vhdx --read-only",
        "attach other.vhdx",
    ] {
        let ran = folder.run(words);
        ran.failed(1, &format!("attached already, as {device}"));
    }
    let ran = folder.run("attach disk.vhdx --json");
    assert!(ran.err.contains("\"win32_code\":32"), "{ran:?}");

    let told = folder.ok("detach disk.vhdx --lazy");
    assert!(told.contains("last user"), "{told}");
    assert_eq!(attached.now().unwrap()["state"], "leaving");
    sh(&folder, &device, "echo more >> m/file; umount m");
    attached.gone();
    // A process that has it open is named too.
    let again = Attached::new(&folder, "disk.vhdx");
    let reader = sleeper(&folder, ":", &format!("< {}", again.device()));
    refused_for(&folder, "detach disk.vhdx", reader);
    folder.ok(&format!("detach {}", again.device()));
    again.gone();
}

#[test]
fn what_is_not_there_is_said_as_by_every_command() {
    if !can_attach() {
        return;
    }
    let folder = Folder::new();
    folder.ok("create disk.vhdx 8M");
    sh(&folder, "", "mkdir m");
    for (words, reason) in [
        (
            "attach no.vhdx",
            "cannot attach no.vhdx: the file does not exist",
        ),
        (
            "attach no/a.vhdx",
            "cannot attach no/a.vhdx: the folder does not exist",
        ),
        (
            "mount no.vhdx m",
            "cannot attach no.vhdx: the file does not exist",
        ),
        (
            "mount disk.vhdx no",
            "cannot mount on no: the folder does not exist",
        ),
        (
            "mount disk.vhdx disk.vhdx",
            "cannot mount on disk.vhdx: it is not a folder",
        ),
        (
            "attach disk.vhdx --file no",
            "cannot attach no: the folder does not exist",
        ),
        ("attach disk.vhdx --file disk.vhdx", "it is not a folder"),
    ] {
        folder.run(words).failed(1, reason);
    }
}

#[test]
fn a_name_that_is_no_text_is_a_name_like_any_other() {
    if !can_attach() || !has(&["mkfs.ext4"]) {
        return;
    }
    let folder = Folder::new();
    sh(
        &folder,
        "",
        "N=$'bad\\xff.vhdx'; P=$'base\\xfe.vhdx'; M=$'m\\xff'; mkdir \"$M\"; \
         $V create base.vhdx 64M; $V create \"$N\" --parent base.vhdx; mv base.vhdx \"$P\"; \
         D=$($V attach \"$N\" --parent \"$P\"); mkfs.ext4 -q $D; \
         $V list | grep -q \"^$D .*bad.*vhdx\"; ! $V attach \"$N\" --parent \"$P\"; $V detach \"$N\"; \
         $V mount \"$N\" \"$M\" --parent \"$P\"; echo hello > \"$M/file\"; $V unmount \"$M\"; \
         $V attach \"$N\" --parent \"$P\" --file \"$M\"; test -s \"$M/disk.img\"; $V detach \"$M\"",
    );
    let ran = folder.shell("$V attach $'gone\\xff.vhdx'");
    ran.failed(1, "the file does not exist");
}

#[test]
fn a_detach_that_takes_long_says_what_it_waits_for_and_can_be_interrupted() {
    if !can_attach() {
        return;
    }
    let folder = Folder::new();
    folder.ok("create disk.vhdx 8M");
    let attached = Attached::new(&folder, "disk.vhdx");
    let pid = attached.pid();
    sh(&folder, "", &format!("kill -STOP {pid}"));
    let mut waiting = folder.shell_child("exec $V detach disk.vhdx > out 2> err");
    let said = sh(
        &folder,
        "",
        "for i in $(seq 1200); do [ -s err ] && break; sleep 0.1; done; cat err",
    );
    sh(&folder, "", &format!("kill -INT {}", waiting.id()));
    let code = waiting.wait().unwrap().code();
    // What was asked for stays so.
    sh(&folder, "", &format!("kill -CONT {pid}"));
    attached.gone();
    assert_eq!(code, Some(130), "{said}");
    let expected = format!("waiting for its server (process {pid})");
    assert!(said.contains(&expected), "{said:?}");
}

/// How many servers have a file open.
fn openers(path: &std::path::Path) -> usize {
    let has_it = |process: &std::path::Path| {
        let words = std::fs::read(process.join("cmdline")).unwrap_or_default();
        let mut files = std::fs::read_dir(process.join("fd")).into_iter().flatten();
        String::from_utf8_lossy(&words).contains("attach-server\0serve")
            && files.any(|file| {
                file.is_ok_and(|file| std::fs::read_link(file.path()).is_ok_and(|to| to == path))
            })
    };
    let processes = std::fs::read_dir("/proc").unwrap().flatten();
    processes.filter(|process| has_it(&process.path())).count()
}

/// Attaches that begin at the same time, as far as that goes: both wait for their parent, which lies on a file system
/// whose server has stopped.
#[test]
fn of_two_that_attach_a_disk_at_once_one_gets_it_also_if_both_only_read() {
    if !can_attach() {
        return;
    }
    let folder = Folder::new();
    folder.ok("create base.vhdx 8M");
    sh(&folder, "", "mv base.vhdx base.img; mkdir d");
    let below = Attached::new(&folder, "base.img --format raw --file d");
    folder.ok("create child.vhdx --parent d/disk.img");
    let signal = |name: &str| sh(&folder, "", &format!("kill -{name} {}", below.pid()));
    signal("STOP");
    let mut both: Vec<_> = (0..2)
        .map(|i| {
            let words = format!("exec $V attach child.vhdx --read-only > out{i} 2> err{i}");
            folder.shell_child(&words)
        })
        .collect();
    let child = folder.path("child.vhdx").canonicalize().unwrap();
    eventually("both to have the child open", || openers(&child) == 2);
    signal("CONT");
    let codes: Vec<_> = both
        .iter_mut()
        .map(|child| child.wait().unwrap().code())
        .collect();
    let said = sh(&folder, "", "cat out* err*");
    folder.ok("detach child.vhdx");
    let second = folder.run("detach child.vhdx");
    folder.ok("detach d");
    below.gone();
    assert!(
        codes.contains(&Some(0)) && codes.contains(&Some(1)),
        "{codes:?}: {said}"
    );
    second.failed(1, "it is not attached");
    assert!(said.contains("attached"), "{said}");
}

#[test]
fn what_was_mounted_over_a_disk_is_left_alone() {
    if !can_attach() || !has(&["mkfs.ext4"]) {
        return;
    }
    let folder = Folder::new();
    for name in ["a", "b"] {
        let disk = format!("{name}.vhdx");
        folder.ok(&format!("create {disk} 64M"));
        let attached = Attached::new(&folder, &disk);
        sh(&folder, attached.device(), "mkfs.ext4 -q $D; mkdir -p m");
        folder.ok(&format!("detach {disk}"));
        attached.gone();
    }
    folder.ok("mount a.vhdx m");
    sh(&folder, "", "mount -t tmpfs none m; echo precious > m/file");
    for target in ["a.vhdx", "m"] {
        let ran = folder.run(&format!("unmount {target}"));
        ran.failed(1, "something else is mounted over");
        sh(&folder, "", "grep -q precious m/file");
    }
    sh(&folder, "", "umount m");
    // Of two disks on one folder, the folder means the one that is seen.
    sh(&folder, "", "echo a > m/a; $V mount b.vhdx m; echo b > m/b");
    folder
        .run("unmount a.vhdx")
        .failed(1, "something else is mounted over");
    folder.ok("unmount m");
    sh(&folder, "", "grep -q a m/a");
    folder.ok("unmount m");
    let own = folder.path("").display().to_string();
    assert!(!folder.ok("list").contains(&own));
}

#[test]
fn mount_and_unmount_are_one_step_each() {
    if !can_attach() || !has(&["mkfs.ext4", "sfdisk"]) {
        return;
    }
    let folder = Folder::new();
    folder.ok("create disk.vhdx 128M");
    let attached = Attached::new(&folder, "disk.vhdx");
    sh(
        &folder,
        attached.device(),
        "printf 'label: gpt\\n- 50M L\\n- - L\\n' | sfdisk -q $D; mkdir m",
    );
    let second = format!("{}p2", attached.device());
    eventually("the second partition", || {
        std::path::Path::new(&second).exists()
    });
    sh(&folder, attached.device(), "mkfs.ext4 -q ${D}p2");
    folder.ok("detach disk.vhdx");
    attached.gone();

    let ran = folder.run("mount disk.vhdx m");
    ran.failed(1, "it has several partitions: 1 (50 MiB), 2 (");
    folder
        .run("mount disk.vhdx m --partition 7")
        .failed(1, "no partition 7");
    folder
        .run("mount disk.vhdx missing --partition 2")
        .failed(1, "cannot mount on");
    folder
        .run("mount disk.vhdx disk.vhdx --partition 2")
        .failed(1, "disk.vhdx: it is not a folder");
    // Nothing that can be mounted.
    folder
        .run("mount disk.vhdx m --partition 1")
        .failed(1, "cannot mount");

    let row = folder.json("mount disk.vhdx m --partition 2 --json");
    let mounted = Attached {
        folder: &folder,
        row,
    };
    assert_eq!(
        mounted.row["mounts"][0]["folder"],
        folder.path("m").to_str().unwrap()
    );
    sh(&folder, "", "echo hello > m/file");
    // Who keeps it is told, and what to do.
    let visitor = sleeper(&folder, "cd m", "");
    let ran = refused_for(&folder, "unmount m", visitor);
    assert!(ran.err.contains("--lazy"), "{ran:?}");
    folder.ok("unmount m");
    mounted.gone();
    // Read-only means that not even a journal is replayed.
    let sum = || sh(&folder, "", "sha256sum disk.vhdx");
    let before = sum();
    let row = folder.json("mount disk.vhdx m --partition 2 --read-only --json");
    let mounted = Attached {
        folder: &folder,
        row,
    };
    assert_eq!(folder.shell("cat m/file; touch m/file").out, "hello\n");
    assert_ne!(folder.shell("touch m/file").code, Some(0));
    // Anybody's umount does it as well.
    sh(&folder, "", "umount m");
    mounted.gone();
    assert_eq!(sum(), before);
}

#[test]
fn a_read_only_device_changes_nothing() {
    if !can_attach() {
        return;
    }
    let folder = Folder::new();
    folder.ok("create base.vhdx 64M");
    folder.fill("data", 100_000);
    folder.put("base.vhdx", "12345", "data");
    folder.ok("create child.vhdx --parent base.vhdx");
    let content = folder.content("base.vhdx");
    let before = folder.files();
    let attached = Attached::new(&folder, "child.vhdx --read-only");
    assert_eq!(attached.row["read_only"], true);
    let ran = folder.shell(&format!("dd if=/dev/zero of={} count=1", attached.device()));
    assert_ne!(ran.code, Some(0));
    let sum = sh(
        &folder,
        attached.device(),
        "blockdev --getro $D; sha256sum < $D",
    );
    assert_eq!(sum, format!("1\n{content}  -\n"));
    folder.ok("detach child.vhdx");
    attached.gone();
    assert_eq!(folder.files(), before);
    // Of a chain that is written to, only the last disk changes.
    let attached = Attached::new(&folder, "child.vhdx");
    sh(
        &folder,
        attached.device(),
        "head -c 1M /dev/urandom | dd of=$D bs=1M status=none",
    );
    folder.run("attach base.vhdx").failed(1, "in use");
    folder.ok("detach child.vhdx");
    assert_eq!(folder.content("base.vhdx"), content);
    assert_ne!(folder.content("child.vhdx"), content);
}

#[test]
fn zeroing_keeps_the_space_and_trimming_gives_it_back() {
    if !can_attach() || !has(&["blkdiscard"]) {
        return;
    }
    let folder = Folder::new();
    for name in ["disk.vhdx", "disk.vhd"] {
        folder.ok(&format!("create {name} 64M --block-size 1M"));
        // What the file takes on its file system, in whole MiB.
        let used = || (std::fs::metadata(folder.path(name)).unwrap().blocks() * 512) >> 20;
        let empty = used();
        let change = |script: &str| {
            let attached = Attached::new(&folder, name);
            sh(&folder, attached.device(), script);
            folder.ok(&format!("detach {name}"));
            attached.gone();
        };
        change(
            "head -c 32M /dev/urandom | dd of=$D bs=1M oflag=direct iflag=fullblock status=none",
        );
        let full = used();
        assert!(full >= empty + 32, "{name}: {full}");
        // Writing zeros there keeps it.
        change("blkdiscard -z -o 8M -l 8M $D; cmp -i 8388608:0 -n 8388608 $D /dev/zero");
        assert_eq!(used(), full, "{name}");
        change("blkdiscard -o 16M -l 16M $D; cmp -i 16777216:0 -n 16777216 $D /dev/zero");
        folder.ok(&format!("compact {name}"));
        let trimmed = used();
        assert!(trimmed <= full - 16 + 1, "{name}: {full} to {trimmed}");
        // Zeroing what has no space gives it some: later writes cannot run out of it.
        change("blkdiscard -z -o 48M -l 4M $D");
        assert!(used() >= trimmed + 4, "{name}: {trimmed} to {}", used());
    }
}

#[test]
fn a_disk_grows_while_it_is_used() {
    if !can_attach() || !has(&["mkfs.ext4", "resize2fs"]) {
        return;
    }
    let folder = Folder::new();
    for name in ["disk.vhdx", "disk.vhd"] {
        folder.ok(&format!("create {name} 64M"));
        let attached = Attached::new(&folder, name);
        let device = attached.device().to_owned();
        sh(
            &folder,
            &device,
            "mkdir -p m; mkfs.ext4 -q $D; mount $D m; echo hello > m/file",
        );
        folder.ok(&format!("expand {name} 200M"));
        assert_eq!(attached.now().unwrap()["virtual_size"], 200 << 20);
        let said = sh(
            &folder,
            &device,
            "blockdev --getsize64 $D; umount m; e2fsck -fp $D >&2; resize2fs $D >&2; mount $D m; head -c 100M /dev/urandom > m/large; cat m/file; umount m; e2fsck -fn $D >&2",
        );
        assert_eq!(said, format!("{}\nhello\n", 200 << 20));
        folder
            .run(&format!("expand {name} 100M"))
            .failed(1, "cannot expand");
        folder.ok(&format!("detach {name}"));
        attached.gone();
        folder.sound(name);
    }
}

#[test]
fn what_is_attached_is_known_without_anything_written_down() {
    if !can_attach() {
        return;
    }
    let folder = Folder::new();
    folder.ok("create disk.vhdx 64M");
    let attached = Attached::new(&folder, "disk.vhdx");
    let before = attached.now().unwrap();
    sh(&folder, "", &format!("rm /run/vhdkit/{}.*", attached.id()));
    let after = attached.now().unwrap();
    for field in [
        "path",
        "device",
        "pid",
        "read_only",
        "virtual_size",
        "sector_size",
    ] {
        assert_eq!(before[field], after[field], "{field}");
    }
    folder.ok("detach disk.vhdx");
    attached.gone();
}

#[test]
fn what_cannot_be_attached_is_said_with_the_reason() {
    if !can_attach() {
        return;
    }
    let folder = Folder::new();
    assert_eq!(folder.run("attach").code, Some(2));
    let ran = folder.run("attach missing.vhdx");
    assert_eq!(ran.code, Some(1));
    assert!(ran.err.contains("cannot attach missing.vhdx: "), "{ran:?}");
    folder
        .run("detach missing.vhdx")
        .failed(1, "it is not attached");
    std::fs::write(folder.path("bad.vhdx"), vec![7; 1 << 20]).unwrap();
    folder
        .run("attach bad.vhdx")
        .failed(1, "has no vhdx signature");
    folder.ok("create base.vhdx 64M");
    folder.ok("create child.vhdx --parent base.vhdx");
    std::fs::remove_file(folder.path("base.vhdx")).unwrap();
    let ran = folder.run("attach child.vhdx --json");
    assert!(ran.err.contains("parent_not_found"), "{ran:?}");
    folder.ok("create fine.vhdx 64M");
    folder
        .run("attach fine.vhdx --file missing")
        .failed(1, "cannot attach");
    folder
        .run("attach fine.vhdx --file fine.vhdx")
        .failed(1, "not a folder");
    assert!(
        !folder
            .ok("list")
            .contains(folder.path("").to_str().unwrap())
    );
}
