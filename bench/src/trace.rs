//! What a program asks of the kernel, counted by strace.

use std::collections::BTreeMap;

use crate::Result;
use crate::process::{Argv, run};

/// Calls of one run.
#[derive(Default, Debug)]
pub(crate) struct Trace {
    calls: BTreeMap<String, u64>,
    /// Bytes that positional reads and writes moved.
    pub(crate) bytes_read: u64,
    pub(crate) bytes_written: u64,
    /// Bytes that the kernel copied from file to file.
    pub(crate) bytes_copied: u64,
    /// Writes that begin with the signature of a VHDX log entry.
    pub(crate) log_entries: u64,
}

impl Trace {
    pub(crate) fn count(&self, call: &str) -> u64 {
        self.calls.get(call).copied().unwrap_or(0)
    }

    /// All calls but the waits of threads for each other, whose number is the scheduler's doing.
    pub(crate) fn total(&self) -> u64 {
        self.calls.values().sum::<u64>() - self.count("futex")
    }
}

/// Runs a program under strace.
pub(crate) fn trace(argv: &Argv) -> Result<Trace> {
    trace_with(&[], argv)
}

/// As [`trace`], for a few calls only (names with commas): the others run at full speed.
pub(crate) fn trace_only(calls: &str, argv: &Argv) -> Result<Trace> {
    trace_with(&["--seccomp-bpf", "-e", &format!("trace={calls}")], argv)
}

fn trace_with(options: &[&str], argv: &Argv) -> Result<Trace> {
    let log = std::env::temp_dir().join(format!("vhdkit-bench-trace-{}", std::process::id()));
    let name = log.to_string_lossy().into_owned();
    let mut traced = Argv::new(&["strace", "-f", "-qq", "-s", "4", "-o", &name]);
    traced.0.extend(options.iter().map(|&part| part.to_owned()));
    traced.0.extend(argv.0.iter().cloned());
    let result = run(&traced);
    let text = std::fs::read(&log);
    let _ = std::fs::remove_file(&log);
    result?;
    Ok(parse(&String::from_utf8_lossy(&text?)))
}

fn parse(text: &str) -> Trace {
    let mut trace = Trace::default();
    for line in text.lines() {
        // "PID call(arguments) = result", in two lines if another thread came between.
        let Some((_, rest)) = line.split_once(' ') else {
            continue;
        };
        let rest = rest.trim_start();
        let (name, begins) = match rest.strip_prefix("<... ") {
            Some(resumed) => (resumed.split(' ').next().unwrap_or(""), false),
            None => match rest.split_once('(') {
                Some((name, _)) => (name, true),
                None => continue,
            },
        };
        if begins {
            *trace.calls.entry(name.to_owned()).or_default() += 1;
            if name == "pwrite64" && rest.contains("\"loge\"") {
                trace.log_entries += 1;
            }
        }
        let moved = rest
            .rsplit_once(" = ")
            .and_then(|(_, result)| result.split(' ').next()?.parse().ok())
            .unwrap_or(0);
        match name {
            "pwrite64" | "pwritev" | "pwritev2" => trace.bytes_written += moved,
            "copy_file_range" => trace.bytes_copied += moved,
            "pread64" | "preadv" | "preadv2" => trace.bytes_read += moved,
            _ => {}
        }
    }
    trace
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_in_two_lines_count_once_and_failed_ones_move_nothing() {
        let trace = parse(
            "12 pwrite64(3, \"loge\"..., 8192, 1048576 <unfinished ...>\n\
             13 fdatasync(3)                 = 0\n\
             12 <... pwrite64 resumed>)      = 8192\n\
             13 pread64(3, 0x7f, 512, 0)     = -1 EINVAL (Invalid argument)\n\
             13 +++ exited with 0 +++\n",
        );
        assert_eq!((trace.total(), trace.count("pwrite64")), (3, 1));
        assert_eq!((trace.bytes_written, trace.bytes_read), (8192, 0));
        assert_eq!((trace.log_entries, trace.count("fdatasync")), (1, 1));
    }
}
