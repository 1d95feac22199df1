//! The rows of the table: who runs what against whom, and what ours has to reach.

pub(crate) mod attached;
mod conversions;
mod in_place;
mod requests;
pub(crate) mod serving;
mod small;

use std::collections::HashMap;

use crate::Result;
use crate::images::{self, Kind};
use crate::process::{Argv, find, run};
use crate::rounds::{Against, Reading, Row, RowResult, Side, Target, measure};
use crate::scratch::Scratch;

/// All rows, in the order in which they run.
pub(crate) const ALL: [&str; 31] = [
    "C1", "C2", "C3", "C4", "C5", "C6", "C7", "C8", "C9", "C10", "A1", "A2", "A3", "W1", "W2",
    "W3", "W4", "K", "K3", "K4", "O1", "O2", "O3", "N1", "N2", "N3", "N4", "N5", "F1", "F2", "F3",
];

/// What rows are made with.
pub(crate) struct Bench<'a> {
    pub(crate) scratch: &'a Scratch,
    /// The `vhdkit` command.
    pub(crate) vhdkit: String,
    /// Another build of it, as a further side.
    pub(crate) baseline: Option<String>,
    /// Size of the images in bytes.
    pub(crate) size: u64,
    pub(crate) rounds: usize,
    /// Seconds of each run at a fixed depth.
    pub(crate) seconds: f64,
    /// The images that are there, and the bytes of data in each.
    pub(crate) images: HashMap<Kind, u64>,
    pub(crate) report: &'a mut dyn FnMut(RowResult) -> Result<()>,
}

const MIB: u64 = 1 << 20;

impl Bench<'_> {
    /// Runs the rows of one group.
    pub(crate) fn run(&mut self, id: &str) -> Result<()> {
        match id {
            "C1" => {
                for kind in [Kind::Rand, Kind::Fs] {
                    self.in_memory("C1", kind, "raw", "vhdx")?;
                }
                Ok(())
            }
            "C2" => {
                for (from, to) in [("vhdx", "raw"), ("vhd", "raw"), ("vhdx", "vhdx")] {
                    self.in_memory("C2", Kind::Fs, from, to)?;
                }
                Ok(())
            }
            "C3" => {
                for (kind, goal, moonshot) in [
                    (Kind::Sp25, 2.3, 2.7),
                    (Kind::Fs, 1.8, 2.2),
                    (Kind::Rand, 1.6, 1.9),
                ] {
                    self.durable(
                        "C3",
                        kind,
                        "raw",
                        "vhdx",
                        &[],
                        limit(&[qemu(goal, moonshot)]),
                    )?;
                }
                Ok(())
            }
            "C4" => {
                for (kind, moonshot) in [(Kind::Sp25, 6.0), (Kind::Rand, 7.0)] {
                    let targets = limit(&[qemu(5.0, moonshot)]);
                    self.durable("C4", kind, "raw", "vhdx", &["--block-size", "1M"], targets)?;
                }
                Ok(())
            }
            "C5" => {
                for (kind, moonshot) in [(Kind::Sp25, 2.2), (Kind::Fs, 3.2), (Kind::Rand, 2.5)] {
                    self.durable("C5", kind, "raw", "vhd", &[], vec![qemu(1.9, moonshot)])?;
                }
                Ok(())
            }
            "C6" => {
                let targets = || {
                    let cpu = Target {
                        against: Against::Cpu(QEMU_DIRECT),
                        goal: 1.0 / 0.7,
                        moonshot: 2.0,
                    };
                    vec![qemu(1.0, 1.0), cpu]
                };
                for from in ["vhdx", "vhd"] {
                    self.durable("C6", Kind::Sp25, from, "raw", &[], targets())?;
                }
                self.durable(
                    "C6",
                    Kind::Sp25,
                    "raw",
                    "vhd",
                    &["--type", "fixed"],
                    targets(),
                )
            }
            "C7" => self.durable("C7", Kind::Sp25, "vhdx", "vhdx", &[], vec![qemu(2.2, 2.6)]),
            "C8" => self.shared_blocks(),
            "C9" => self.footers(),
            "C10" => self.extraction(),
            "A1" => self.first_touch("A1", "vhdx", 16),
            "A2" => self.first_touch("A2", "vhdx", 1),
            "A3" => self.first_touch("A3", "vhd", 16),
            "W1" => self.random("W1", &["vhd"], "write"),
            "W2" => self.random("W2", &["vhdx"], "write"),
            "W3" => self.random("W3", &["vhd", "vhdx"], "read"),
            "W4" => self.cache_hits(),
            "K" => self.small_things(),
            "K3" => self.compactions(),
            "K4" => self.expansions(),
            "O1" => self.merges(),
            "O2" => self.mirrors(),
            "O3" => self.watched(),
            "N1" => {
                for depth in ["16", "64"] {
                    self.served("N1", "randread", "4k", depth, [(1.3, 1.6), (3.0, 4.5)])?;
                }
                Ok(())
            }
            "N2" => self.served("N2", "randwrite", "4k", "16", [(0.9, 1.1), (3.0, 4.0)]),
            "N3" => {
                for operation in ["randread", "randwrite"] {
                    self.served("N3", operation, "4k", "1", [(1.5, 2.0), (2.5, 3.7)])?;
                }
                Ok(())
            }
            "N4" => {
                self.served("N4", "read", "128k", "8", [(2.0, 2.4), (3.0, 4.3)])?;
                self.served("N4", "read", "1m", "4", [(2.0, 2.4), (3.0, 4.3)])
            }
            "N5" => {
                self.served("N5", "write", "128k", "8", [(1.2, 1.4), (2.3, 2.9)])?;
                self.copied_in()
            }
            "F1" => self.fuse_files(),
            "F2" => self.devices(),
            "F3" => self.file_systems(),
            _ => Err(format!("there is no row {id}; there are {}", ALL.join(", ")).into()),
        }
    }

    // --- sources ---

    /// The raw image of a kind, on tmpfs.
    pub(crate) fn image(&mut self, kind: Kind) -> Result<String> {
        let path = self.scratch.in_memory(&format!("{}.raw", kind.name()));
        if !self.images.contains_key(&kind) {
            let data = images::make(&path, kind, self.size)?;
            self.images.insert(kind, data);
        }
        Ok(path)
    }

    /// The same in another format, made by somebody else where there is somebody. For one row: removed by the caller.
    pub(crate) fn source(&mut self, kind: Kind, format: &str) -> Result<String> {
        let raw = self.image(kind)?;
        if format == "raw" {
            return Ok(raw);
        }
        let path = self.scratch.in_memory(&format!("{}.{format}", kind.name()));
        remove(&path);
        if has_qemu() {
            run(&Argv::new(&[
                "qemu-img",
                "convert",
                "-O",
                qemu_name(format),
                &raw,
                &path,
            ]))?;
        } else {
            run(&Argv::new(&[&self.vhdkit, "convert", &raw, &path]))?;
        }
        Ok(path)
    }

    pub(crate) fn data(&self, kind: Kind) -> u64 {
        self.images.get(&kind).copied().unwrap_or(self.size)
    }

    fn finish(&mut self, row: Row) -> Result<()> {
        eprintln!("{} {}", row.id, row.what);
        let result = measure(row, self.rounds)?;
        (self.report)(result)
    }

    /// Ours and, if asked for, another build of ours, which comes last.
    fn ours(&self, arguments: &[&str], output: Option<&str>, ballast: u64) -> (Side, Option<Side>) {
        let side = |name, program: &str| {
            let mut argv = Argv::new(&[program]);
            argv.0.extend(arguments.iter().map(|&part| part.to_owned()));
            Side {
                name,
                argv,
                reading: Reading::Wall,
                output: output.map(str::to_owned),
                before: Vec::new(),
                ballast,
            }
        };
        let other = self
            .baseline
            .as_ref()
            .map(|path| side("vhdkit, other build", path));
        (side("vhdkit", &self.vhdkit), other)
    }
}

const LIMIT: &str = "limit, 2 direct writers";
const QEMU_DIRECT: &str = "qemu-img -m 16 -W -t none";
const SPARSE: &str = "sparse raw, same threads";
const RAW_LIBRARY: &str = "raw, same threads";
const PREAD: &str = "limit, pread";

fn command(name: &'static str, parts: &[&str], output: Option<&str>, ballast: u64) -> Side {
    Side {
        name,
        argv: Argv::new(parts),
        reading: Reading::Wall,
        output: output.map(str::to_owned),
        before: Vec::new(),
        ballast,
    }
}

fn against(side: &'static str, goal: f64, moonshot: f64) -> Target {
    Target {
        against: Against::Side(side),
        goal,
        moonshot,
    }
}

fn qemu(goal: f64, moonshot: f64) -> Target {
    against(QEMU_DIRECT, goal, moonshot)
}

/// At most 1.15 times the limit, and more.
fn limit(more: &[Target]) -> Vec<Target> {
    let mut targets = vec![against(LIMIT, 1.0 / 1.15, 1.0)];
    targets.extend_from_slice(more);
    targets
}

fn absolute(goal: f64, moonshot: f64) -> Target {
    Target {
        against: Against::Absolute,
        goal,
        moonshot,
    }
}

fn fio(path: &str, operation: &str, engine: &[&str], depth: &str, seconds: &str) -> Argv {
    let mut argv = Argv::new(&[
        "fio",
        "--name=pages",
        &format!("--filename={path}"),
        &format!("--rw=rand{operation}"),
        "--bs=4k",
        &format!("--iodepth={depth}"),
        "--time_based",
        &format!("--runtime={seconds}"),
        "--norandommap",
        "--randrepeat=0",
        "--output-format=json",
    ]);
    argv.0.extend(engine.iter().map(|&part| part.to_owned()));
    argv
}

fn has_qemu() -> bool {
    find("qemu-img").is_some()
}

pub(crate) fn qemu_name(format: &str) -> &str {
    match format {
        "vhd" => "vpc",
        other => other,
    }
}

/// Removes what was made for one row.
fn forget(raw: &str, source: &str) {
    if source != raw {
        remove(source);
    }
}

fn remove(path: &str) {
    let _ = std::fs::remove_file(path);
}
