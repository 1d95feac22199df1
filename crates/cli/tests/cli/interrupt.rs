//! Ctrl-C, SIGTERM and kill -9.

use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, Stdio};

use rustix::process::{Pid, Signal, kill_process};

use crate::support::{Folder, Ran};

/// Without a program in between, which on a busy machine would arrive when all is over.
pub(crate) fn signal(child: &Child, name: &str) {
    let signal = match name {
        "INT" => Signal::INT,
        "TERM" => Signal::TERM,
        "HUP" => Signal::HUP,
        "KILL" => Signal::KILL,
        other => panic!("{other} is no signal of these tests"),
    };
    kill_process(Pid::from_child(child), signal).unwrap();
}

/// Starts a conversion and returns when it is under way.
fn converting(folder: &Folder, target: &str) -> (Child, BufReader<std::process::ChildStderr>) {
    let mut child = folder
        .command(&format!("convert a.img {target} --progress json"))
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut err = BufReader::new(child.stderr.take().unwrap());
    let mut line = String::new();
    err.read_line(&mut line).unwrap();
    assert!(line.contains("\"status\":997"), "{line}");
    (child, err)
}

#[test]
fn an_interrupted_conversion_leaves_no_file() {
    let folder = Folder::new();
    folder.fill("a.img", 256 << 20);
    for (name, targets) in [
        ("INT", &["b.vhdx", "b.vhd", "b.img"][..]),
        ("TERM", &["b.vhdx"]),
        ("HUP", &["b.vhd"]),
    ] {
        for &target in targets {
            let mut stopped = false;
            // A file system with reflinks may be done before the signal arrives.
            for _ in 0..20 {
                let (mut child, mut err) = converting(&folder, target);
                signal(&child, name);
                let mut rest = String::new();
                err.read_to_string(&mut rest).unwrap();
                let code = child.wait().unwrap().code();
                if code == Some(0) {
                    std::fs::remove_file(folder.path(target)).unwrap();
                    continue;
                }
                assert_eq!(code, Some(130), "{rest}");
                assert!(rest.contains("\"status\":995"), "{rest}");
                let last = rest.lines().last().unwrap();
                assert_eq!(last, format!("vhdkit: cancelled; {target} was not made"));
                assert_eq!(folder.names(), ["a.img"], "{name}");
                stopped = true;
                break;
            }
            assert!(
                stopped || target == "b.img",
                "{target} was always done before {name}"
            );
        }
    }
}

#[test]
fn a_killed_conversion_leaves_no_file() {
    let folder = Folder::new();
    folder.fill("a.img", 64 << 20);
    for _ in 0..20 {
        let (mut child, _err) = converting(&folder, "b.vhdx");
        signal(&child, "KILL");
        child.wait().unwrap();
        if folder.names() == ["a.img"] {
            return;
        }
        // It had its name already, so it is complete.
        assert_eq!(folder.names(), ["a.img", "b.vhdx"]);
        folder.ok("compare a.img b.vhdx");
        std::fs::remove_file(folder.path("b.vhdx")).unwrap();
    }
}

#[test]
fn an_interrupted_write_says_how_far_it_came() {
    let folder = Folder::new();
    folder.ok("create a.vhdx 8M");
    let mut child = folder
        .command("write a.vhdx --offset 0 --progress json")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut input = child.stdin.take().unwrap();
    input.write_all(&vec![7; 1 << 20]).unwrap();
    input.flush().unwrap();
    // Until the first chunk is written.
    let mut err = BufReader::new(child.stderr.take().unwrap());
    let mut line = String::new();
    while !line.contains("\"current\":1048576") {
        line.clear();
        assert!(err.read_line(&mut line).unwrap() > 0);
    }
    signal(&child, "INT");
    let mut rest = String::new();
    err.read_to_string(&mut rest).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(130), "{rest}");
    assert!(
        rest.contains("cancelled; 1048576 bytes at offset 0 were written"),
        "{rest}"
    );
    drop(input);
    let ran = Ran::of(&folder.command("read a.vhdx --length 1M").output().unwrap());
    assert!(ran.out.bytes().all(|b| b == 7));
    assert!(folder.ok("check a.vhdx").contains("nothing found"));
}

#[test]
fn an_interrupted_reader_ends_at_once() {
    let folder = Folder::new();
    folder.ok("create a.img 1T");
    let mut child = folder
        .command("read a.img")
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut one = [1];
    child.stdout.as_mut().unwrap().read_exact(&mut one).unwrap();
    signal(&child, "INT");
    assert_eq!(child.wait().unwrap().code(), Some(130));
}

/// What the operation has done is told although a signal came, since it came too late: here, while the command waits for
/// somebody to read what it says.
#[test]
fn a_signal_after_the_end_changes_nothing() {
    for (words, name) in [
        ("convert a.img b.vhdx", "INT"),
        ("create c.vhdx --from a.img", "HUP"),
        ("resize d.vhdx 16M", "TERM"),
        ("compact d.vhdx", "INT"),
        ("convert a.img a.vhd --in-place --format vhd", "INT"),
    ] {
        let folder = Folder::new();
        folder.fill("a.img", 1 << 20);
        folder.ok("create d.vhdx 8M");
        let (mut reader, mut writer) = std::io::pipe().unwrap();
        let full = fill_pipe(&mut writer);
        let mut child = folder
            .command(&format!("{words} --progress json"))
            .stdout(writer)
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut err = BufReader::new(child.stderr.take().unwrap());
        let mut line = String::new();
        while !line.contains("\"status\":0") {
            line.clear();
            assert!(err.read_line(&mut line).unwrap() > 0, "{words}");
        }
        signal(&child, name);
        // Until the signal is there nothing says so: a second one would end it, so none is sent.
        std::thread::sleep(std::time::Duration::from_millis(100));
        let mut out = Vec::new();
        reader.read_to_end(&mut out).unwrap();
        let mut rest = String::new();
        err.read_to_string(&mut rest).unwrap();
        assert_eq!(child.wait().unwrap().code(), Some(0), "{words}: {rest}");
        assert!(out.len() > full, "{words}: it says what it did");
    }
}

/// Writes until nothing more fits; says how much that is.
fn fill_pipe(writer: &mut std::io::PipeWriter) -> usize {
    let size = rustix::pipe::fcntl_getpipe_size(&*writer).unwrap();
    writer.write_all(&vec![0; size]).unwrap();
    size
}
