//! The table and the JSON.

use std::fmt::Write;

use serde::Serialize;

use crate::rounds::{RowResult, SideResult, Spread, Verdict};

/// Everything that was measured, and where.
#[derive(Serialize)]
pub(crate) struct Report {
    pub(crate) vhdkit: String,
    pub(crate) image_bytes: u64,
    pub(crate) disk: String,
    pub(crate) kernel: String,
    pub(crate) processors: usize,
    pub(crate) peers: Vec<String>,
    pub(crate) rows: Vec<RowResult>,
}

/// A row for people.
pub(crate) fn show(row: &RowResult) -> String {
    let mut text = String::new();
    let _ = writeln!(
        text,
        "{} [{:?}] {} ({} rounds, load {:.1} to {:.1}{}{}{})",
        row.id,
        row.regime,
        row.what,
        row.rounds,
        row.load[0],
        row.load[1],
        row.fdatasync
            .map_or(String::new(), |count| format!(", {count} fdatasync")),
        if row.verified == Some(true) {
            ", verified"
        } else {
            ""
        },
        if row.dropped_caches {
            ", CACHES WERE DROPPED"
        } else {
            ""
        },
    );
    for side in &row.sides {
        let _ = writeln!(
            text,
            "  {:28} {:>12} cpu {:>8.3} s  {:>6.1} MiB  {}",
            side.name,
            value(side),
            side.cpu_seconds.median,
            side.peak_memory_mib,
            side.ours_faster.map_or(String::new(), |faster| format!(
                "ours x{} in {}, x{:.2} in CPU",
                spread(faster),
                if side.is_rate { "rate" } else { "time" },
                side.ours_cpu.map_or(f64::NAN, |cpu| cpu.median)
            )),
        );
    }
    for verdict in &row.verdicts {
        let _ = writeln!(text, "  {}", judgement(verdict));
    }
    for note in &row.notes {
        let _ = writeln!(text, "  {note}");
    }
    text
}

fn value(side: &SideResult) -> String {
    let median = side.value.median;
    if side.is_rate {
        format!("{:.1} k/s", median / 1000.0)
    } else if median < 0.1 {
        format!("{:.2} ms", median * 1000.0)
    } else {
        format!("{median:.3} s")
    }
}

fn spread(spread: Spread) -> String {
    format!(
        "{:.2} [{:.2}..{:.2}]",
        spread.median, spread.min, spread.max
    )
}

fn judgement(verdict: &Verdict) -> String {
    let Verdict {
        against,
        measured,
        goal,
        moonshot,
        ..
    } = verdict;
    let relation = if verdict.at_most {
        "at most"
    } else {
        "at least"
    };
    let outcome = match (verdict.met, verdict.moonshot_met) {
        (_, true) => "moonshot reached",
        (true, false) => "reached",
        (false, false) => "MISSED",
    };
    format!(
        "{against}: {measured:.3}, target {relation} {goal:.3}, moonshot {moonshot:.3}: {outcome}"
    )
}
