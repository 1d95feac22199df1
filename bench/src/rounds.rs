//! Paired measurement: every round runs all sides once, in the same order, and only ratios inside a round count.

use std::sync::atomic::Ordering;
use std::time::Duration;

use serde::Serialize;

use crate::Result;
use crate::process::{Argv, Finished, INTERRUPTED, run};

/// Which comparison a result may be used in; never mixed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
pub(crate) enum Regime {
    /// From memory to memory (tmpfs).
    M,
    /// Ends when the data is on the disk.
    D,
    /// On a file system that shares blocks (XFS).
    R,
}

/// How a side's result is read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Reading {
    /// Seconds of the whole process.
    Wall,
    /// Seconds, printed by the worker.
    WorkerSeconds,
    /// Operations per second, printed by the worker.
    WorkerRate,
    /// Operations per second, of fio's JSON.
    Fio,
    /// Seconds, of `qemu-img bench`.
    QemuSeconds,
    /// Operations per second, of `qemu-img bench` with so many operations.
    QemuRate(u32),
}

/// One competitor of a row.
pub(crate) struct Side {
    pub(crate) name: &'static str,
    pub(crate) argv: Argv,
    pub(crate) reading: Reading,
    /// Removed before each run.
    pub(crate) output: Option<String>,
    /// Run before each run, not timed.
    pub(crate) before: Vec<Argv>,
    /// Bytes of memory to touch before each run, because the host takes back what is free and its first touch is slow.
    pub(crate) ballast: u64,
}

/// A bound on how many times faster ours has to be than another side.
#[derive(Clone, Debug)]
pub(crate) struct Target {
    pub(crate) against: Against,
    pub(crate) goal: f64,
    pub(crate) moonshot: f64,
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum Against {
    /// Speed of ours over speed of this side: at least the goal.
    Side(&'static str),
    /// CPU time of this side over ours: at least the goal.
    Cpu(&'static str),
    /// Ours, in the row's unit: at most the goal.
    Absolute,
    /// Peak memory of ours, in MiB: at most the goal.
    Memory,
}

/// A line of the table.
pub(crate) struct Row {
    pub(crate) id: &'static str,
    pub(crate) what: String,
    pub(crate) regime: Regime,
    /// The first one is ours.
    pub(crate) sides: Vec<Side>,
    pub(crate) targets: Vec<Target>,
    /// Ours must read the same as this, after the first and after the last round.
    pub(crate) same_as: Option<String>,
    /// Why some sides are not there.
    pub(crate) notes: Vec<String>,
}

/// Median and range.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Spread {
    pub(crate) median: f64,
    pub(crate) min: f64,
    pub(crate) max: f64,
}

impl Spread {
    pub(crate) fn of(mut values: Vec<f64>) -> Self {
        values.sort_by(f64::total_cmp);
        let middle = values.len() / 2;
        let median = if values.len().is_multiple_of(2) && middle > 0 {
            f64::midpoint(values[middle - 1], values[middle])
        } else {
            values.get(middle).copied().unwrap_or(f64::NAN)
        };
        Self {
            median,
            min: values.first().copied().unwrap_or(f64::NAN),
            max: values.last().copied().unwrap_or(f64::NAN),
        }
    }
}

/// What a side came to.
#[derive(Debug, Serialize)]
pub(crate) struct SideResult {
    pub(crate) name: &'static str,
    pub(crate) command: String,
    /// Seconds, or operations per second.
    pub(crate) value: Spread,
    pub(crate) is_rate: bool,
    pub(crate) cpu_seconds: Spread,
    pub(crate) peak_memory_mib: f64,
    /// How many times faster ours is; more than 1 is faster. None for ours.
    pub(crate) ours_faster: Option<Spread>,
    /// How many times less CPU time ours takes.
    pub(crate) ours_cpu: Option<Spread>,
}

/// What a target came to.
#[derive(Debug, Serialize)]
pub(crate) struct Verdict {
    pub(crate) against: String,
    pub(crate) measured: f64,
    pub(crate) goal: f64,
    pub(crate) moonshot: f64,
    /// True if smaller is better.
    pub(crate) at_most: bool,
    pub(crate) met: bool,
    pub(crate) moonshot_met: bool,
}

/// What a row came to.
#[derive(Debug, Serialize)]
pub(crate) struct RowResult {
    pub(crate) id: &'static str,
    pub(crate) what: String,
    pub(crate) regime: Regime,
    pub(crate) rounds: usize,
    pub(crate) sides: Vec<SideResult>,
    pub(crate) verdicts: Vec<Verdict>,
    pub(crate) fdatasync: Option<u64>,
    pub(crate) verified: Option<bool>,
    pub(crate) load: [f64; 2],
    pub(crate) dropped_caches: bool,
    pub(crate) notes: Vec<String>,
}

/// Measures a row: one warm-up, then the rounds.
pub(crate) fn measure(mut row: Row, rounds: usize) -> Result<RowResult> {
    let before = (load(), page_cache_drops());
    drop_failing_peers(&mut row)?;
    let mut values: Vec<Vec<f64>> = vec![Vec::new(); row.sides.len()];
    let mut cpu = values.clone();
    let mut memory = vec![0_u64; row.sides.len()];
    let mut verified = None;
    for round in 1..=rounds {
        for (i, side) in row.sides.iter().enumerate() {
            let finished = run_side(side)?;
            values[i].push(value(side, &finished)?);
            cpu[i].push(finished.cpu.as_secs_f64());
            memory[i] = memory[i].max(finished.memory);
            if i == 0
                && (round == 1 || round == rounds)
                && let (Some(original), Some(output)) = (&row.same_as, &side.output)
            {
                crate::verify::same(original, output)
                    .map_err(|e| format!("{}: wrong result: {e}", side.argv.line()))?;
                verified = Some(true);
            }
        }
    }
    let fdatasync = count_barriers(&row.sides[0], &mut row.notes)?;
    for side in &row.sides {
        side.clear();
    }
    let ours = (&values[0], &cpu[0]);
    let sides: Vec<SideResult> = row
        .sides
        .iter()
        .enumerate()
        .map(|(i, side)| {
            let ratio = |ours: &[f64], theirs: &[f64], rate: bool| {
                let pairs = ours.iter().zip(theirs);
                Spread::of(
                    pairs
                        .map(|(a, b)| if rate { a / b } else { b / a })
                        .collect(),
                )
            };
            SideResult {
                name: side.name,
                command: side.argv.line(),
                value: Spread::of(values[i].clone()),
                is_rate: side.reading.is_rate(),
                cpu_seconds: Spread::of(cpu[i].clone()),
                peak_memory_mib: bytes_to_mib(memory[i]),
                ours_faster: (i > 0).then(|| ratio(ours.0, &values[i], side.reading.is_rate())),
                ours_cpu: (i > 0).then(|| ratio(ours.1, &cpu[i], false)),
            }
        })
        .collect();
    Ok(RowResult {
        verdicts: row
            .targets
            .iter()
            .filter_map(|t| judge(t, &sides))
            .collect(),
        id: row.id,
        what: row.what,
        regime: row.regime,
        rounds,
        sides,
        fdatasync,
        verified,
        load: [before.0, load()],
        dropped_caches: page_cache_drops() != before.1,
        notes: row.notes,
    })
}

/// The warm-up. A peer that fails in it is left out, with what it said.
fn drop_failing_peers(row: &mut Row) -> Result<()> {
    let mut working = Vec::new();
    for side in std::mem::take(&mut row.sides) {
        match run_side(&side) {
            Ok(_) => working.push(side),
            Err(e) if working.is_empty() || INTERRUPTED.load(Ordering::SeqCst) => return Err(e),
            Err(e) => {
                side.clear();
                row.notes.push(format!("{} left out: {e}", side.name));
            }
        }
    }
    row.sides = working;
    Ok(())
}

fn judge(target: &Target, sides: &[SideResult]) -> Option<Verdict> {
    let side = |name: &str| sides.iter().find(|side| side.name == name);
    let (against, measured, at_most) = match target.against {
        Against::Side(name) => (
            format!("speed of {name}"),
            side(name)?.ours_faster?.median,
            false,
        ),
        Against::Cpu(name) => (
            format!("CPU of {name}"),
            side(name)?.ours_cpu?.median,
            false,
        ),
        Against::Absolute => ("seconds".to_owned(), sides.first()?.value.median, true),
        Against::Memory => (
            "MiB of memory".to_owned(),
            sides.first()?.peak_memory_mib,
            true,
        ),
    };
    let holds = |bound: f64| {
        if at_most {
            measured <= bound
        } else {
            measured >= bound
        }
    };
    Some(Verdict {
        against,
        measured,
        goal: target.goal,
        moonshot: target.moonshot,
        at_most,
        met: holds(target.goal),
        moonshot_met: holds(target.moonshot),
    })
}

impl Side {
    fn clear(&self) {
        if let Some(output) = &self.output {
            let path = std::path::Path::new(output);
            let _ = if path.is_dir() {
                std::fs::remove_dir_all(path)
            } else {
                std::fs::remove_file(path)
            };
        }
    }
}

/// Everything but the measuring: fresh output, preparation, memory.
fn prepare(side: &Side) -> Result<()> {
    side.clear();
    for argv in &side.before {
        run(argv)?;
    }
    if side.ballast > 0 {
        run(&crate::worker(&["ballast", &side.ballast.to_string()])?)?;
    }
    Ok(())
}

fn run_side(side: &Side) -> Result<Finished> {
    prepare(side)?;
    run(&side.argv)
}

impl Reading {
    pub(crate) fn is_rate(self) -> bool {
        matches!(self, Self::WorkerRate | Self::Fio | Self::QemuRate(_))
    }
}

fn value(side: &Side, finished: &Finished) -> Result<f64> {
    let output = finished.output.trim();
    let unreadable = || format!("{} said: {output}", side.argv.line());
    let qemu_seconds = || {
        output
            .split("completed in ")
            .nth(1)
            .and_then(|rest| rest.split_whitespace().next())
            .and_then(|seconds| seconds.parse::<f64>().ok())
            .ok_or_else(unreadable)
    };
    Ok(match side.reading {
        Reading::Wall => finished.wall.as_secs_f64(),
        Reading::WorkerSeconds | Reading::WorkerRate => output.parse().map_err(|_| unreadable())?,
        Reading::QemuSeconds => qemu_seconds()?,
        Reading::QemuRate(count) => f64::from(count) / qemu_seconds()?,
        Reading::Fio => {
            // Notes may stand before the JSON.
            let json = output.find('{').map_or("", |start| &output[start..]);
            let parsed: serde_json::Value = serde_json::from_str(json)?;
            let rate = |what: &str| parsed["jobs"][0][what]["iops"].as_f64().unwrap_or(0.0);
            rate("read") + rate("write")
        }
    })
}

fn count_barriers(ours: &Side, notes: &mut Vec<String>) -> Result<Option<u64>> {
    // Of clients of a server it would be the client's.
    if ours.reading == Reading::Fio {
        return Ok(None);
    }
    if crate::process::find("strace").is_none() {
        notes.push("peer missing: strace, so barriers are not counted".into());
        return Ok(None);
    }
    prepare(ours)?;
    Ok(Some(crate::trace::trace(&ours.argv)?.count("fdatasync")))
}

fn bytes_to_mib(bytes: u64) -> f64 {
    Duration::from_secs(bytes).as_secs_f64() / f64::from(1 << 20)
}

fn load() -> f64 {
    std::fs::read_to_string("/proc/loadavg")
        .ok()
        .and_then(|text| text.split_whitespace().next()?.parse().ok())
        .unwrap_or(f64::NAN)
}

/// How often somebody has emptied the page cache since the system started.
fn page_cache_drops() -> u64 {
    std::fs::read_to_string("/proc/vmstat")
        .ok()
        .and_then(|text| {
            let line = text
                .lines()
                .find(|line| line.starts_with("drop_pagecache "))?;
            line.split_whitespace().nth(1)?.parse().ok()
        })
        .unwrap_or(0)
}
