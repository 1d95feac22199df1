//! Disks as devices, as people use them: real file systems, real kills. As root only, and with loop devices and FUSE.

mod commands;
mod filesystems;
mod killed;
mod library;
mod load;
mod without_root;

use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use serde_json::Value;
use vhdkit_testkit::require::require;

use crate::support::{Folder, Ran};

/// Tools without which a test says nothing.
fn has(tools: &[&str]) -> bool {
    let missing: Vec<&&str> = tools
        .iter()
        .filter(|tool| {
            let found = Command::new("sh")
                .arg("-c")
                .arg(format!("command -v {tool}"))
                .output();
            !found.is_ok_and(|output| output.status.success())
        })
        .collect();
    require(missing.is_empty(), &format!("needs {missing:?}"))
}

/// True if this machine lets us make devices.
fn can_attach() -> bool {
    let is_root = Command::new("id")
        .arg("-u")
        .output()
        .is_ok_and(|output| output.stdout == b"0\n");
    require(
        is_root && Path::new("/dev/loop-control").exists() && Path::new("/dev/fuse").exists(),
        "needs root, loop devices and FUSE",
    )
}

/// An attached disk that is detached at the end, however the test ends.
struct Attached<'a> {
    folder: &'a Folder,
    /// What `attach --json` said.
    row: Value,
}

impl<'a> Attached<'a> {
    fn new(folder: &'a Folder, words: &str) -> Self {
        let row = folder.json(&format!("attach {words} --json"));
        Self { folder, row }
    }

    fn device(&self) -> &str {
        self.row["device"].as_str().unwrap()
    }

    fn id(&self) -> &str {
        self.row["id"].as_str().unwrap()
    }

    fn pid(&self) -> u32 {
        self.row["pid"].as_u64().unwrap().try_into().unwrap()
    }

    /// What `list` says about it now; `None` if it is not there.
    fn now(&self) -> Option<Value> {
        let all = self.folder.json("list --json");
        let own = |row: &&Value| row["id"] == self.row["id"];
        all.as_array().unwrap().iter().find(own).cloned()
    }

    /// Processes of it that have not ended. One that was killed has no words any more while its threads are still at
    /// their last calls, with all its files open and locked.
    fn processes(&self) -> Vec<String> {
        let mut found = Vec::new();
        if !has_ended(self.pid()) {
            found.push(format!("the server, {}", self.pid()));
        }
        for entry in std::fs::read_dir("/proc").unwrap().flatten() {
            let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
            let line = String::from_utf8_lossy(&line).replace('\0', " ");
            let is_ours = line.contains(self.id())
                || (line.contains("attach-holder")
                    && line.contains(self.row["path"].as_str().unwrap()));
            if is_ours {
                found.push(line);
            }
        }
        found
    }

    /// Expects that nothing of it is left: no process, no device, no partition, no runtime file, no lock.
    fn gone(&self) {
        let device = self.device().trim_start_matches("/dev/");
        let block = PathBuf::from(format!("/sys/block/{device}"));
        eventually("the processes to end", || self.processes().is_empty());
        eventually("the device to go", || {
            std::fs::read_to_string(block.join("loop/backing_file"))
                .map_or(true, |name| !name.contains(self.id()))
        });
        for entry in std::fs::read_dir("/run/vhdkit").unwrap().flatten() {
            let name = entry.file_name().into_string().unwrap();
            assert!(!name.starts_with(self.id()), "{name} is left");
        }
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        let folder = self.folder.path("");
        assert!(!mounts.contains(folder.to_str().unwrap()), "{mounts}");
        // Nobody has it locked.
        let path = self.row["path"].as_str().unwrap();
        self.folder.ok(&format!("check {path}"));
    }
}

impl Drop for Attached<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let folder = self.folder.path("");
            let script = format!(
                "kill -CONT {}; grep -o '{}[^ ]*' /proc/self/mountinfo | xargs -r umount -l; $V detach --lazy {}",
                self.pid(),
                folder.display(),
                self.id()
            );
            self.folder.shell(&script);
        }
    }
}

/// True if there is no such process, or nothing but the entry that its parent has not asked for.
fn has_ended(pid: u32) -> bool {
    let process = PathBuf::from(format!("/proc/{pid}"));
    let Ok(stat) = std::fs::read_to_string(process.join("stat")) else {
        return true;
    };
    let is_dead = |text: &str| matches!(text.chars().next(), Some('Z' | 'X'));
    let threads = std::fs::read_dir(process.join("task")).map_or(0, Iterator::count);
    stat.rsplit_once(") ")
        .is_some_and(|(_, rest)| is_dead(rest))
        && threads <= 1
}

/// Waits for something that takes a moment, not for ever; how long a moment is, a busy machine says.
fn eventually(what: &str, is_so: impl Fn() -> bool) {
    let start = Instant::now();
    while !is_so() {
        assert!(
            start.elapsed() < Duration::from_mins(2),
            "waited for {what}"
        );
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A process named `sleep` that has run `before`, with `redirections`. Until it is one, nothing is asked of the disk that
/// it shall keep busy: the answer might be to let go of it.
fn sleeper(folder: &Folder, before: &str, redirections: &str) -> Child {
    let child = folder.shell_child(&format!("{before}; exec sleep 600 {redirections}"));
    let name = format!("/proc/{}/comm", child.id());
    eventually("the sleeper", || {
        std::fs::read_to_string(&name).is_ok_and(|name| name == "sleep\n")
    });
    child
}

/// Expects a command to be refused since `user` has something of the disk open, and ends `user`.
fn refused_for(folder: &Folder, words: &str, mut user: Child) -> Ran {
    let ran = folder.run(words);
    let named = format!("process {} (sleep)", user.id());
    user.kill().unwrap();
    user.wait().unwrap();
    ran.failed(1, &named);
    ran
}

/// Runs a script with `$D` the device, which must succeed.
fn sh(folder: &Folder, device: &str, script: &str) -> String {
    let ran: Ran = folder.shell(&format!("set -eu -o pipefail; D={device}; {script}"));
    assert_eq!(ran.code, Some(0), "{script}: {ran:?}");
    ran.out
}
