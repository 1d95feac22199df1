//! What can go wrong around the command: files, folders, file systems, pipes.

use vhdkit_testkit::require::require;

use crate::support::{Folder, real_disk};

#[test]
fn a_missing_file_is_told_in_two_lines() {
    let folder = Folder::new();
    for words in [
        "info none.vhdx",
        "info --chain none.vhdx",
        "map none.vhdx",
        "convert none.vhdx b.img",
        "create b.vhdx --from none.img",
        "check none.vhdx",
        "read none.vhdx",
        "write none.vhdx --offset 0",
        "create b.vhdx --parent none.vhdx",
        "compact none.vhdx",
        "expand none.vhdx 1G",
        "expand none.vhdx +1G",
        "resize none.vhdx --to-smallest",
        "merge none.vhdx",
        "mirror none.vhdx b.vhdx",
        "mirror none.vhdx none.vhd --existing",
        "set-parent none.vhdx b.vhdx",
        "set none.vhdx --new-id",
        "metadata list none.vhdx",
        "metadata get none.vhdx 6ba7b810-9dad-41d1-80b4-00c04fd430c8",
        "metadata set none.vhdx 6ba7b810-9dad-41d1-80b4-00c04fd430c8",
        "metadata delete none.vhdx 6ba7b810-9dad-41d1-80b4-00c04fd430c8",
        "convert none.img --in-place --format vhd",
        "convert none.img b.vhd --profile azure",
    ] {
        let ran = folder.run(words);
        ran.failed(1, "none.");
        assert!(ran.err.contains("does not exist"), "{words}: {ran:?}");
        assert!(folder.names().is_empty(), "{words}");
    }
    folder
        .run("compare none.vhdx none.img")
        .failed(2, "none.vhdx");
    folder
        .run("create nowhere/a.img 1M")
        .failed(1, "the folder does not exist");
    for words in ["info .", "compact .", "resize . 1G", "convert . a.vhd"] {
        folder.run(words).failed(1, "it is a folder");
    }
}

#[test]
fn errors_are_json_where_results_are() {
    let folder = Folder::new();
    let ran = folder.run("info none.vhdx --json");
    assert_eq!(ran.code, Some(1));
    let error: serde_json::Value = serde_json::from_str(&ran.err).unwrap();
    assert_eq!(
        error,
        serde_json::json!({ "error": {
            "kind": "not_found",
            "win32_code": 2,
            "message": "cannot open none.vhdx: the file does not exist",
            "path": "none.vhdx",
            "reason": "the file does not exist",
            "hint": "check the spelling of the path",
        }})
    );
    let ran = folder.run("create a.vhdx --json");
    assert_eq!(ran.code, Some(2));
    let error: serde_json::Value = serde_json::from_str(&ran.err).unwrap();
    assert_eq!(error["error"]["kind"], "usage");
}

#[test]
fn a_read_only_folder_takes_nothing() {
    let folder = Folder::new();
    folder.fill("a.img", 1 << 20);
    let script = "mkdir m; mount -t tmpfs none m; cp a.img m; mount -o remount,ro m
        $V create m/b.img 1M; echo $?; $V convert a.img m/b.vhdx; echo $?
        $V create m/a.img 1M --force; echo $?; $V convert a.img m/a.img --force; echo $?
        $V write m/a.img --offset 0 < a.img; echo $?
        $V info m/a.img > /dev/null; echo $?; ls -A m";
    if let Some(ran) = folder.shell_with_mounts(script) {
        assert_eq!(ran.out, "1\n1\n1\n1\n1\n0\na.img\n", "{ran:?}");
        assert!(ran.err.matches("read-only").count() >= 5, "{ran:?}");
        assert_eq!(ran.err.matches("hint: ").count(), 5, "{ran:?}");
        // Whoever makes a file cannot open it read-only instead.
        let place = "hint: choose a place that can be written to";
        assert_eq!(ran.err.matches(place).count(), 4, "{ran:?}");
    }
}

#[test]
fn a_disk_on_a_read_only_file_system_is_not_changed() {
    let folder = Folder::new();
    let id = "6ba7b810-9dad-41d1-80b4-00c04fd430c8";
    for extension in ["vhd", "vhdx"] {
        let script = format!(
            "set -e; mkdir -p m; mount -t tmpfs none m; $V create m/a.{extension} 8M
            $V create m/b.{extension} --parent m/a.{extension}
            $V create m/c.img 8M; mount -o remount,ro m; set +e; exec > out 2> err
            $V compact m/a.{extension}; echo $?
            $V expand m/a.{extension} 16M; echo $?
            $V resize m/a.{extension} 16M; echo $?
            $V merge m/b.{extension}; echo $?
            $V mirror m/a.{extension} z.img; echo $?
            $V mirror m/a.{extension} m/z.img; echo $?
            $V set-parent m/b.{extension} m/a.{extension}; echo $?
            $V set m/a.{extension} --new-id; echo $?
            $V metadata set m/a.{extension} {id}; echo $?
            $V metadata delete m/a.{extension} {id}; echo $?
            $V convert m/c.img --in-place --format vhd; echo $?
            ls -A m z.img >> ls 2> /dev/null
            $V compact m/a.{extension} --dry-run > /dev/null; echo $?
            $V expand m/a.{extension} 16M --dry-run > /dev/null; echo $?
            $V merge m/b.{extension} --dry-run > /dev/null; echo $?
            $V set-parent m/b.{extension} m/a.{extension} --dry-run > /dev/null; echo $?"
        );
        let Some(ran) = folder.shell_with_mounts(&script) else {
            return;
        };
        let read = |name: &str| std::fs::read_to_string(folder.path(name)).unwrap();
        let (out, err) = (read("out"), read("err"));
        let expected = format!("{}{}", "1\n".repeat(11), "0\n".repeat(4));
        assert_eq!(out, expected, "{ran:?}\n{err}");
        assert_eq!(err.matches("file system is read-only").count(), 11, "{err}");
        assert_eq!(err.matches("hint: ").count(), 11, "{err}");
        assert!(!folder.path("z.img").exists());
    }
}

#[test]
fn a_full_file_system_is_told_and_leaves_nothing() {
    let folder = Folder::new();
    folder.fill("a.img", 16 << 20);
    let script = "mkdir m; mount -t tmpfs -o size=4m none m
        $V create m/a.img 8M --type fixed; echo $?
        $V create m/a.vhdx 8M --type fixed; echo $?
        for to in b.img b.vhd b.vhdx; do $V convert a.img m/$to; echo $?; done
        ls -A m
        $V create m/c.vhdx 64M --block-size 1M > /dev/null; $V write m/c.vhdx --offset 0 < a.img; echo $?
        $V check m/c.vhdx";
    if let Some(ran) = folder.shell_with_mounts(script) {
        let out = ran.out.replace("m/c.vhdx: nothing found\n", "");
        assert_eq!(out, "1\n1\n1\n1\n1\n1\n", "{ran:?}");
        assert_eq!(ran.err.matches("no space left").count(), 6, "{ran:?}");
        assert_eq!(ran.err.matches("hint: ").count(), 6, "{ran:?}");
    }
}

#[test]
fn a_file_in_use_is_left_alone() {
    let folder = Folder::new();
    folder.ok("create a.vhdx 8M");
    let held = std::fs::File::open(folder.path("a.vhdx")).unwrap();
    held.lock().unwrap();
    folder
        .run("info a.vhdx")
        .failed(1, "open for writing elsewhere");
    held.unlock().unwrap();
    held.lock_shared().unwrap();
    folder.ok("info a.vhdx");
    folder.run("write a.vhdx --offset 0").failed(1, "in use");
    folder.run("create a.vhdx 9M --force").failed(1, "in use");
}

/// `create p --parent p --force` once made an empty disk of the only copy.
#[test]
fn a_new_disk_never_takes_the_place_of_what_it_is_made_from() {
    for extension in ["vhd", "vhdx"] {
        let folder = Folder::new();
        folder.fill("word", 4096);
        folder.ok(&format!("create base.{extension} 8M"));
        folder.put(&format!("base.{extension}"), "0", "word");
        folder.ok(&format!("create c.{extension} --parent base.{extension}"));
        std::os::unix::fs::symlink(
            format!("base.{extension}"),
            folder.path(&format!("link.{extension}")),
        )
        .unwrap();
        let before = folder.files();
        for words in [
            "create base.EXT --parent base.EXT --force",
            "create link.EXT --parent base.EXT --force",
            "create base.EXT --parent c.EXT --force",
            "create base.EXT --from c.EXT --force",
            "convert c.EXT base.EXT --force",
            "convert base.EXT base.EXT --force",
            "convert base.EXT link.EXT --force",
        ] {
            folder
                .run(&words.replace("EXT", extension))
                .failed(1, "made from");
            assert!(folder.files() == before, "{words}");
        }
    }
}

#[test]
fn names_cannot_command_the_terminal() {
    let folder = Folder::new();
    let script = "$V create $'a\\x1b[2J\\nb.vhdx' 8M; $V info $'a\\x1b[2J\\nb.vhdx'; $V info $'none\\x1b\\n.vhdx'";
    let ran = folder.shell(script);
    let commands = |text: &str| text.contains(|c: char| c.is_control() && c != '\n');
    assert!(!commands(&ran.out) && !commands(&ran.err), "{ran:?}");
    assert!(ran.out.contains(r"created a\u{1b}[2J\nb.vhdx"), "{ran:?}");
    assert_eq!(ran.err.lines().count(), 2, "{ran:?}");
}

#[test]
fn a_parent_whose_name_cannot_be_recorded_gets_no_child() {
    let folder = Folder::new();
    let ran =
        folder.shell("$V create $'bad\\xff.vhdx' 8M && $V create c.vhdx --parent $'bad\\xff.vhdx'");
    assert_eq!(ran.code, Some(1), "{ran:?}");
    assert!(ran.err.contains("no valid Unicode"), "{ran:?}");
    assert!(!folder.path("c.vhdx").exists());
}

#[test]
fn a_name_that_is_too_long_is_told_before_the_work() {
    let folder = Folder::new();
    folder.fill("a.img", 4096);
    let ran = folder.run(&format!("convert a.img {}.vhdx", "n".repeat(300)));
    ran.failed(1, "too long");
    assert!(ran.err.contains("shorter name"), "{ran:?}");
}

#[test]
fn a_reader_that_goes_away_is_no_error() {
    let folder = Folder::new();
    std::fs::copy(real_disk(), folder.path("ntfs.vhd")).unwrap();
    for script in [
        "$V read ntfs.vhd | head -c 1",
        "$V read ntfs.vhd | true",
        "$V map ntfs.vhd --json | head -n 1",
        "$V info ntfs.vhd | true",
        "$V check ntfs.vhd | true",
        "$V --help | head -n 1",
        "$V completions bash | head -n 1",
    ] {
        let ran = folder.shell(&format!("set -o pipefail; {script}"));
        assert_eq!(
            (ran.code, ran.err.as_str()),
            (Some(0), ""),
            "{script}: {ran:?}"
        );
    }
    // The verdict outlives the reader.
    folder.fill("b.img", 4 << 20);
    let ran = folder.shell("$V compare ntfs.vhd b.img | true; exit ${PIPESTATUS[0]}");
    assert_eq!((ran.code, ran.err.as_str()), (Some(1), ""), "{ran:?}");
}

#[test]
fn streams_may_be_closed_or_full() {
    let folder = Folder::new();
    std::fs::copy(real_disk(), folder.path("ntfs.vhd")).unwrap();
    let ran = folder.shell("$V read ntfs.vhd > /dev/full");
    ran.failed(1, "standard output");
    for script in [
        "$V info ntfs.vhd >&-",
        "$V info ntfs.vhd <&- 2>&-",
        "$V convert ntfs.vhd b.vhdx --progress json 2>&- >&-",
    ] {
        let ran = folder.shell(script);
        assert_eq!(
            (ran.code, ran.err.as_str()),
            (Some(0), ""),
            "{script}: {ran:?}"
        );
    }
    let ran = folder.shell("$V info none 2>/dev/full");
    assert_eq!(ran.code, Some(1));
}

#[test]
fn a_name_that_cannot_be_made_durable_is_no_success() {
    let folder = Folder::new();
    if !require(folder.shell("strace -V").code == Some(0), "needs strace") {
        return;
    }
    folder.fill("a.img", 1 << 20);
    // Only folders are synced with this call.
    let broken = "strace -f -qq -o /dev/null -e trace=fsync -e inject=fsync:error=EIO $V";
    for words in [
        "create b.vhdx 64M",
        "create b.vhd 64M --type fixed",
        "convert a.img b.vhdx",
        "mirror a.img b.vhdx",
    ] {
        let ran = folder.shell(&format!("{broken} {words}"));
        ran.failed(1, "b.vhd");
        assert_eq!(folder.names(), ["a.img"], "{words}");
    }
    folder.ok("create b.vhdx 64M");
    folder
        .shell(&format!("{broken} create b.vhdx 32M --force"))
        .failed(1, "b.vhdx");
    folder.sound("b.vhdx");
}
