//! convert, with its progress.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use vhdkit_testkit::require::require;

use crate::support::{Folder, real_disk};

#[test]
fn a_real_disk_survives_every_format() {
    let folder = Folder::new();
    std::fs::copy(real_disk(), folder.path("a.vhd")).unwrap();
    folder.ok("convert a.vhd b.vhdx");
    folder.ok("convert b.vhdx c.img");
    folder.ok("convert c.img d.vhd --type fixed");
    folder.ok("convert d.vhd e.vhdx --type fixed --block-size 1M");
    folder.ok("convert e.vhdx f.vhd --block-size 512K");
    for name in ["b.vhdx", "c.img", "d.vhd", "e.vhdx", "f.vhd"] {
        assert!(
            folder
                .ok(&format!("compare a.vhd {name}"))
                .starts_with("same")
        );
        let said = folder.ok(&format!("check {name}"));
        assert!(said.contains("nothing found"), "{said}");
    }
}

#[test]
fn an_existing_target_is_only_replaced_when_asked() {
    let folder = Folder::new();
    folder.fill("a.img", 1 << 20);
    std::fs::write(folder.path("b.vhdx"), "precious").unwrap();
    folder
        .run("convert a.img b.vhdx")
        .failed(1, "already exists");
    assert_eq!(std::fs::read(folder.path("b.vhdx")).unwrap(), b"precious");
    folder.ok("convert a.img b.vhdx --force");
    assert!(folder.ok("compare a.img b.vhdx").starts_with("same"));
    // Onto itself: the source is in use.
    let before = std::fs::read(folder.path("a.img")).unwrap();
    assert_eq!(folder.run("convert a.img a.img --force").code, Some(1));
    assert!(before == std::fs::read(folder.path("a.img")).unwrap());
    assert_eq!(folder.names(), ["a.img", "b.vhdx"]);
}

#[test]
fn progress_lines_begin_pending_and_end_with_the_result() {
    let folder = Folder::new();
    folder.fill("a.img", 16 << 20);
    let ran = folder.run("convert a.img b.vhdx --progress json");
    assert_eq!(ran.code, Some(0), "{ran:?}");
    let lines: Vec<Value> = ran
        .err
        .lines()
        .map(|l| serde_json::from_str(l).unwrap())
        .collect();
    let (last, before) = lines.split_last().unwrap();
    for line in before {
        assert_eq!(line["status"], 997);
        assert_eq!(line["operation"], "convert");
        assert!(line["current"].as_u64() <= line["completion"].as_u64());
    }
    assert_eq!(last["status"], 0);
    assert_eq!(last["percent"], 100.0);
    let fields: Vec<&String> = last.as_object().unwrap().keys().collect();
    assert_eq!(
        fields,
        ["completion", "current", "operation", "percent", "status"]
    );

    let ran = folder.run("convert a.img b.vhdx --progress json");
    assert_eq!(ran.code, Some(1));
    let last = ran.err.lines().find(|l| !l.contains("997")).unwrap();
    let last: Value = serde_json::from_str(last).unwrap();
    assert_eq!(last["status"], 80, "ERROR_FILE_EXISTS");
}

#[test]
fn progress_is_told_also_while_nothing_moves() {
    let folder = Folder::new();
    folder.ok("create a.img 1M");
    let started = Instant::now();
    let mut child = folder
        .command("write a.img --offset 0 --progress json")
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let input = child.stdin.take().unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    lines.next().unwrap().unwrap();
    let mut five = || {
        let begun = Instant::now();
        for _ in 0..5 {
            assert!(lines.next().unwrap().unwrap().contains("\"status\":997"));
        }
        begun.elapsed()
    };
    // Ten times a second, and not more often, whoever reads late. A busy machine is given some time, and some tries.
    let first = five();
    assert!(started.elapsed() >= Duration::from_millis(500));
    let quick = Duration::from_secs(3);
    assert!(first < quick || (0..20).any(|_| five() < quick));
    drop(input);
    assert!(lines.last().unwrap().unwrap().contains("\"status\":0"));
    assert!(child.wait().unwrap().success());
}

#[test]
fn other_programs_read_what_is_made() {
    let qemu_img = Command::new("qemu-img").arg("--version").output();
    if !require(qemu_img.is_ok(), "needs qemu-img") {
        return;
    }
    let folder = Folder::new();
    std::fs::copy(real_disk(), folder.path("a.vhd")).unwrap();
    folder.ok("convert a.vhd a.img");
    for (name, options, format) in [
        ("b.vhdx", "", "vhdx"),
        ("c.vhdx", "--type fixed", "vhdx"),
        ("d.vhd", "", "vpc"),
        ("e.vhd", "--type fixed", "vpc"),
    ] {
        folder.ok(&format!("convert a.img {name} {options}"));
        let ran = folder.shell(&format!("qemu-img compare -f {format} -F raw {name} a.img"));
        assert_eq!(ran.code, Some(0), "{name}: {ran:?}");
    }
}

#[test]
fn without_a_terminal_there_is_no_bar() {
    let folder = Folder::new();
    folder.fill("a.img", 16 << 20);
    let ran = folder.run("convert a.img b.vhdx");
    assert_eq!(ran.err, "");
    let ran = folder.run("convert a.img c.vhdx --progress bar");
    assert!(ran.err.ends_with("convert: 100%\n"), "{ran:?}");
    let ran = folder.run("convert a.img d.vhdx --progress none");
    assert_eq!(ran.err, "");
}

#[test]
fn a_block_device_is_written_in_place_when_asked() {
    let folder = Folder::new();
    std::fs::copy(real_disk(), folder.path("a.vhd")).unwrap();
    let script = "truncate -s 8M backing; D=$(losetup -f --show backing) || exit 99
        trap 'losetup -d $D' EXIT
        $V convert a.vhd $D --format raw; echo $?
        $V convert a.vhd $D --format raw --force > /dev/null; echo $?
        $V compare a.vhd $D > /dev/null; echo $?
        $V convert a.vhd $D --format vhdx --force; echo $?";
    let ran = folder.shell(script);
    if !require(ran.code != Some(99), "needs root and a loop device") {
        return;
    }
    assert_eq!(ran.out, "1\n0\n0\n1\n", "{ran:?}");
    assert_eq!(ran.err.matches("hint: ").count(), 2, "{ran:?}");
}

#[test]
fn a_raw_disk_with_half_a_sector_at_its_end_becomes_any_format() {
    let folder = Folder::new();
    folder.fill("odd.img", 1_049_000);
    for (target, options) in [
        ("d.vhd", ""),
        ("f.vhd", "--type fixed"),
        ("d.vhdx", ""),
        ("f.vhdx", "--type fixed"),
        ("r.img", ""),
    ] {
        folder.ok(&format!("convert odd.img {target} {options}"));
        let disk = folder.command(&format!("read {target}")).output().unwrap();
        let (content, rest) = disk.stdout.split_at(1_049_000);
        assert!(content == std::fs::read(folder.path("odd.img")).unwrap());
        assert!(rest.iter().all(|&byte| byte == 0), "{target}");
        folder.sound(target);
    }
}
