//! Progress asked for by another process, and requests to stop from there.

use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::{Folder, Ran};

/// A folder whose commands have a runtime folder of their own.
pub(crate) struct Place {
    pub(crate) folder: Folder,
    runtime: tempfile::TempDir,
}

impl Place {
    pub(crate) fn new() -> Self {
        Self::with(Folder::new())
    }

    pub(crate) fn with(folder: Folder) -> Self {
        Self {
            folder,
            runtime: tempfile::tempdir().unwrap(),
        }
    }

    pub(crate) fn command(&self, words: &str) -> Command {
        let mut command = self.folder.command(words);
        command.env("XDG_RUNTIME_DIR", self.runtime.path());
        command
    }

    pub(crate) fn run(&self, words: &str) -> Ran {
        Ran::of(&self.command(words).output().unwrap())
    }

    pub(crate) fn json(&self, words: &str) -> Value {
        let ran = self.run(words);
        assert_eq!(ran.code, Some(0), "{words}: {ran:?}");
        serde_json::from_str(&ran.out).unwrap()
    }

    /// A write that has written one of its eight mebibytes and waits for more as long as the input is kept.
    fn writing(&self, disk: &str) -> (Child, ChildStdin) {
        self.folder.ok(&format!("create {disk} 8M"));
        let mut child = self
            .command(&format!("write {disk} --offset 0"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut input = child.stdin.take().unwrap();
        input.write_all(&vec![7; 1 << 20]).unwrap();
        self.until(disk, |all| all[0]["current"] == 1 << 20);
        (child, input)
    }

    /// Asks for the operations on a disk until the answer is right.
    pub(crate) fn until(&self, disk: &str, right: impl Fn(&Value) -> bool) {
        let started = Instant::now();
        loop {
            let all = self.json(&format!("progress {disk} --json"));
            if right(&all) {
                return;
            }
            assert!(started.elapsed() < Duration::from_mins(2), "{all}");
        }
    }

    pub(crate) fn entries(&self) -> usize {
        let folder = self.runtime.path().join("vhdkit");
        folder.read_dir().map_or(0, Iterator::count)
    }
}

fn text(path: &Path) -> String {
    path.canonicalize().unwrap().to_str().unwrap().to_owned()
}

#[test]
fn another_process_sees_how_far_it_is() {
    let place = Place::new();
    let (child, input) = place.writing("a.vhdx");
    let all = place.json("progress --json");
    let started = all[0]["started"].clone();
    assert!(started.as_str().unwrap().ends_with('Z'), "{all}");
    assert_eq!(
        all,
        json!([{
            "operation": "write",
            "path": text(&place.folder.path("a.vhdx")),
            "other": null,
            "pid": child.id(),
            "started": started,
            "status": 997,
            "current": 1 << 20,
            "completion": null,
            "percent": null,
        }])
    );
    let ran = place.run("progress");
    // Nobody knows how much will come through a pipe.
    let start = "write       ? [          ]  1 MiB so far  ";
    assert!(ran.out.starts_with(start), "{ran:?}");
    assert_eq!(place.json("progress ./a.vhdx --json"), all);
    assert_eq!(place.json("progress b.vhdx --json"), json!([]));
    let ran = place.run("progress b.vhdx");
    assert_eq!(ran.out, "nothing is running on b.vhdx\n");

    drop(input);
    assert!(child.wait_with_output().unwrap().status.success());
    assert_eq!(place.json("progress --json"), json!([]));
    assert_eq!(place.run("progress").out, "nothing is running\n");
    assert_eq!(place.run("progress --watch").out, "nothing is running\n");
    assert_eq!(place.run("progress --watch --json").out, "");
    assert_eq!(place.entries(), 0);
}

/// A command that watches, and has seen something.
struct Watcher {
    child: Child,
    out: BufReader<ChildStdout>,
    seen: String,
}

impl Watcher {
    fn new(place: &Place, words: &str) -> Self {
        let mut child = place.command(words).stdout(Stdio::piped()).spawn().unwrap();
        let mut out = BufReader::new(child.stdout.take().unwrap());
        let mut seen = String::new();
        out.read_line(&mut seen).unwrap();
        Self { child, out, seen }
    }

    /// All that it said.
    fn sees_the_end(mut self) -> String {
        self.out.read_to_string(&mut self.seen).unwrap();
        assert_eq!(self.child.wait().unwrap().code(), Some(0));
        self.seen
    }
}

#[test]
fn a_watcher_sees_the_end() {
    let place = Place::new();
    let (mut child, input) = place.writing("a.vhdx");
    let words = Watcher::new(&place, "progress --watch");
    let lines = Watcher::new(&place, "progress a.vhdx --watch --json");
    drop(input);
    assert!(child.wait().unwrap().success());
    let words = words.sees_the_end();
    let ending = format!("write of {}: done\n", text(&place.folder.path("a.vhdx")));
    assert!(words.ends_with(&ending), "{words:?}");
    let rows: Vec<Value> = lines
        .sees_the_end()
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let (last, before) = rows.split_last().unwrap();
    assert!(!before.is_empty());
    assert!(before.iter().all(|row| row["status"] == 997));
    assert_eq!(
        (&last["status"], &last["percent"]),
        (&json!(0), &json!(100.0))
    );
}

#[test]
fn another_process_cancels_it() {
    let place = Place::new();
    let (child, _input) = place.writing("a.vhdx");
    let ran = place.run("cancel a.vhdx");
    assert_eq!(ran.code, Some(0), "{ran:?}");
    let path = text(&place.folder.path("a.vhdx"));
    let said = format!(
        "asked the write of {path} (pid {}) to stop\nwrite of {path}: cancelled\n",
        child.id()
    );
    assert_eq!(ran.out, said);
    let ended = Ran::of(&child.wait_with_output().unwrap());
    assert_eq!(ended.code, Some(130), "{ended:?}");
    assert!(ended.err.contains("1048576 bytes at offset 0 were written"));
    place
        .run("cancel a.vhdx")
        .failed(1, "no operation is running on it");
}

#[test]
fn a_request_need_not_be_waited_for() {
    let place = Place::new();
    let (child, _input) = place.writing("a.vhdx");
    let asked = place.json("cancel a.vhdx --no-wait --json");
    assert_eq!(asked[0]["pid"], child.id());
    assert_eq!(child.wait_with_output().unwrap().status.code(), Some(130));
    let (mut child, _input) = place.writing("b.vhdx");
    let ended = place.json("cancel b.vhdx --json");
    assert_eq!(ended[0]["status"], 995);
    assert_eq!(child.wait().unwrap().code(), Some(130));
}

#[test]
fn a_conversion_is_cancelled_by_the_name_of_what_it_makes() {
    let place = Place::new();
    place.folder.fill("a.img", 256 << 20);
    // One that is done before it is asked to stop is tried again.
    for _ in 0..30 {
        let mut child = place
            .command("convert a.img b.vhdx --force")
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        while child.try_wait().unwrap().is_none() {
            let seen = place.json("progress a.img --json");
            if seen[0]["operation"] == "convert" {
                assert!(seen[0]["path"].as_str().unwrap().ends_with("/b.vhdx"));
                assert_eq!(seen[0]["other"], text(&place.folder.path("a.img")));
                place.run("cancel b.vhdx");
                break;
            }
        }
        let ended = Ran::of(&child.wait_with_output().unwrap());
        if ended.code == Some(130) {
            assert!(ended.err.contains("cancelled; b.vhdx was not"), "{ended:?}");
            assert_eq!(place.entries(), 0);
            return;
        }
    }
    panic!("it was always done before it was asked to stop");
}

#[test]
fn what_a_killed_process_left_is_taken_away() {
    let place = Place::new();
    let (mut child, _input) = place.writing("a.vhdx");
    let watcher = Watcher::new(&place, "progress --watch");
    child.kill().unwrap();
    child.wait().unwrap();
    let watched = watcher.sees_the_end();
    assert!(watched.ends_with("ended without a word\n"), "{watched:?}");
    assert_eq!(place.json("progress --json"), json!([]));
    assert_eq!(place.entries(), 0);
}

#[test]
fn a_reader_that_waits_for_its_output_to_be_taken_is_seen() {
    let place = Place::new();
    place.folder.ok("create a.img 1G");
    let mut child = place
        .command("read a.img")
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    place.until("a.img", |all| all[0]["operation"] == "read");
    place.json("cancel a.img --no-wait --json");
    // It stops when it gets to look.
    let mut out = child.stdout.take().unwrap();
    let read = std::io::copy(&mut out, &mut std::io::sink()).unwrap();
    assert!(read < 1 << 30);
    assert_eq!(child.wait().unwrap().code(), Some(130));
}

#[test]
fn work_goes_on_where_nothing_can_be_published() {
    let place = Place::new();
    let runtime = place.runtime.path().join("vhdkit");
    std::os::unix::fs::symlink("/tmp", &runtime).unwrap();
    assert_eq!(place.run("create a.vhdx 8M").code, Some(0));
    place.run("progress").failed(1, "a link to one");
    place.run("cancel a.vhdx").failed(1, "a link to one");
}
