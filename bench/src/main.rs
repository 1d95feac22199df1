//! The benchmark of vhdkit: each row pairs it with other tools and with the physical limit in the same round.
//!
//! ```text
//! cargo run --release -p vhdkit-bench -- [--quick] [--rows C3,A1] [--rounds 5] [--json FILE]
//! cargo run --release -p vhdkit-bench -- --gate
//! ```

mod gate;
mod images;
mod process;
mod report;
mod rounds;
mod rows;
mod scratch;
mod trace;
mod verify;
mod worker;

use std::collections::HashMap;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::Ordering;

use clap::Parser;

use process::{Argv, INTERRUPTED, find, run};
use report::Report;
use rows::Bench;
use scratch::Scratch;

/// Any error; people read it, nothing decides by it.
pub(crate) type Result<T> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;

/// Measures vhdkit, paired with other tools and with the limit of the machine
#[derive(Parser)]
struct Arguments {
    /// Small images and short runs
    #[arg(long)]
    quick: bool,

    /// Check the counts that must hold on any machine, and nothing else
    #[arg(long)]
    gate: bool,

    /// Only these rows
    #[arg(long, value_delimiter = ',')]
    rows: Vec<String>,

    /// Measured rounds, after one that is not
    #[arg(long, default_value_t = 5)]
    rounds: usize,

    /// Size of the images in MiB
    #[arg(long)]
    size: Option<u64>,

    /// Also write everything to this file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,

    /// A folder on a disk [default: beside the program]
    #[arg(long)]
    dir: Option<PathBuf>,

    /// A folder in memory
    #[arg(long, default_value = "/dev/shm")]
    tmpfs: PathBuf,

    /// Another build of the vhdkit command, to run beside this one
    #[arg(long, value_name = "PROGRAM")]
    baseline: Option<PathBuf>,
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().collect();
    let result = match arguments.get(1).map(String::as_str) {
        Some("worker") => worker::run(&arguments[2..]).map(|()| true),
        _ => bench(&Arguments::parse()),
    };
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(e) => {
            eprintln!("error: {e}");
            ExitCode::FAILURE
        }
    }
}

/// This program as a worker.
pub(crate) fn worker(arguments: &[&str]) -> Result<Argv> {
    let program = std::env::current_exe()?.to_string_lossy().into_owned();
    Ok(Argv::new(&[&[&*program, "worker"], arguments].concat()))
}

fn bench(arguments: &Arguments) -> Result<bool> {
    // Ctrl-C also ends the program that is being measured; what follows is an orderly way out.
    let mut signals = signal_hook::iterator::Signals::new([
        signal_hook::consts::SIGINT,
        signal_hook::consts::SIGTERM,
    ])?;
    std::thread::spawn(move || {
        for _ in signals.forever() {
            INTERRUPTED.store(true, Ordering::SeqCst);
        }
    });
    let vhdkit = command_under_test()?;
    let beside = std::env::current_exe()?.with_file_name("bench-scratch");
    let disk = arguments.dir.clone().unwrap_or(beside);
    let scratch = Scratch::new(&arguments.tmpfs, &disk)?;
    if arguments.gate {
        return gate::run_all(&scratch, &vhdkit);
    }
    let size = arguments
        .size
        .unwrap_or(if arguments.quick { 256 } else { 1024 })
        << 20;
    let disk = format!("{} ({})", disk.display(), scratch.file_system);
    println!("images of {} MiB; durable rows on {disk}", size >> 20);
    let mut rows = Vec::new();
    let mut report = |row: rounds::RowResult| {
        println!("{}", report::show(&row));
        rows.push(row);
        Ok(())
    };
    let mut bench = Bench {
        scratch: &scratch,
        vhdkit: vhdkit.clone(),
        baseline: arguments
            .baseline
            .as_ref()
            .map(|path| path.to_string_lossy().into_owned()),
        size,
        rounds: arguments.rounds.max(1),
        seconds: if arguments.quick { 0.5 } else { 2.0 },
        images: HashMap::new(),
        report: &mut report,
    };
    let all = rows::ALL.map(str::to_owned);
    let wanted = if arguments.rows.is_empty() {
        &all[..]
    } else {
        &arguments.rows
    };
    let result = wanted.iter().try_for_each(|id| bench.run(id));
    let reached = rows
        .iter()
        .flat_map(|row| &row.verdicts)
        .filter(|verdict| verdict.met)
        .count();
    let targets = rows.iter().flat_map(|row| &row.verdicts).count();
    println!("{reached} of {targets} targets reached");
    if let Some(path) = &arguments.json {
        let report = Report {
            vhdkit: run(&Argv::new(&[&vhdkit, "--version"]))?
                .output
                .trim()
                .to_owned(),
            image_bytes: size,
            disk,
            kernel: std::fs::read_to_string("/proc/sys/kernel/osrelease")?
                .trim()
                .to_owned(),
            processors: std::thread::available_parallelism().map_or(1, usize::from),
            peers: peers(),
            rows,
        };
        std::fs::write(path, serde_json::to_string_pretty(&report)?)?;
    }
    result.map(|()| true)
}

/// The command beside this program, built first if cargo runs us.
fn command_under_test() -> Result<String> {
    if let Some(cargo) = std::env::var_os("CARGO") {
        run(&Argv::new(&[
            &cargo.to_string_lossy(),
            "build",
            "--quiet",
            "--release",
            "--locked",
            "--package",
            "vhdkit-cli",
        ]))?;
    }
    let program = std::env::current_exe()?.with_file_name("vhdkit");
    if !program.is_file() {
        return Err(format!(
            "there is no {}; build it with cargo build --release",
            program.display()
        )
        .into());
    }
    Ok(program.to_string_lossy().into_owned())
}

/// Versions of the other tools.
fn peers() -> Vec<String> {
    [
        ("qemu-img", "--version"),
        ("fio", "--version"),
        ("cp", "--version"),
        ("nbdkit", "--version"),
        ("nbdcopy", "--version"),
        ("7zz", "i"),
    ]
    .into_iter()
    .filter(|(name, _)| find(name).is_some())
    .filter_map(|(name, argument)| {
        let output = run(&Argv::new(&[name, argument])).ok()?.output;
        output
            .lines()
            .find(|line| !line.trim().is_empty())
            .map(str::to_owned)
    })
    .collect()
}
