//! Running a program and learning what it cost.

use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use wait4::Wait4;

use crate::Result;

/// Set by Ctrl-C: whatever runs next is an error instead, so that all scratch is removed on the way out.
pub(crate) static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// A program with its arguments.
#[derive(Clone, Debug)]
pub(crate) struct Argv(pub(crate) Vec<String>);

impl Argv {
    pub(crate) fn new(parts: &[&str]) -> Self {
        Self(parts.iter().map(|&part| part.to_owned()).collect())
    }

    pub(crate) fn line(&self) -> String {
        self.0.join(" ")
    }

    pub(crate) fn command(&self) -> Command {
        let mut command = Command::new(self.0.first().map_or("", String::as_str));
        command.args(self.0.get(1..).unwrap_or_default());
        command.stdin(Stdio::null());
        command
    }
}

/// What a finished program cost and said.
#[derive(Clone, Debug, Default)]
pub(crate) struct Finished {
    pub(crate) wall: Duration,
    /// User and system time of the program and its children.
    pub(crate) cpu: Duration,
    /// Largest memory of one process, in bytes.
    pub(crate) memory: u64,
    pub(crate) output: String,
}

/// Runs a program to its end; its failure is an error that shows what it said.
pub(crate) fn run(argv: &Argv) -> Result<Finished> {
    if INTERRUPTED.load(Ordering::SeqCst) {
        return Err("interrupted".into());
    }
    let started = Instant::now();
    let mut child = argv
        .command()
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|e| format!("{}: {e}", argv.line()))?;
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    // Both are read while it runs, so that it never waits for a full pipe.
    let errors = std::thread::spawn(move || read(stderr));
    let output = read(stdout);
    let used = child.wait4().map_err(|e| format!("{}: {e}", argv.line()))?;
    let wall = started.elapsed();
    let errors = errors.join().unwrap_or_default();
    if !used.status.success() {
        let status = used.status;
        return Err(format!("{} failed ({status}): {output}{errors}", argv.line()).into());
    }
    Ok(Finished {
        wall,
        cpu: used.rusage.utime + used.rusage.stime,
        memory: used.rusage.maxrss,
        output,
    })
}

fn read(pipe: Option<impl std::io::Read>) -> String {
    let mut bytes = Vec::new();
    if let Some(mut pipe) = pipe {
        let _ = pipe.read_to_end(&mut bytes);
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Where a program is, if it is installed.
pub(crate) fn find(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path)
        .chain(["/usr/sbin".into(), "/sbin".into()])
        .map(|folder| folder.join(name))
        .find(|file| file.is_file())
}

pub(crate) fn is_root() -> bool {
    use std::os::unix::fs::MetadataExt;
    std::fs::metadata("/proc/self").is_ok_and(|m| m.uid() == 0)
}
