//! `vhdkit compact`: gives back space that a disk no longer needs.

use std::sync::Arc;

use serde::Serialize;
use vhdkit::operation::{Subject, Unit};
use vhdkit::verbs::compact::{CompactMode, CompactOptions, CompactReport, compact};

use super::{Session, text};
use crate::args::{CompactArgs, Mode};
use crate::failure::{DONE, Failure};
use crate::progress::{follow, stopped};
use crate::size;

/// The fields of the JSON output. Sizes are in bytes.
#[derive(Serialize)]
struct Done {
    path: String,
    dry_run: bool,
    size_before: u64,
    size_after: u64,
    saved: u64,
    released: u64,
    moved: u64,
    payload: u64,
    structures: u64,
    gaps: u64,
}

pub(crate) fn run(args: &CompactArgs, session: &mut Session) -> Result<u8, Failure> {
    let open = args.parents.open_options()?.writable(!args.dry_run);
    let disk = Arc::new(open.open(&args.path)?);
    let options = CompactOptions {
        mode: match args.mode {
            Mode::Full => CompactMode::Full,
            Mode::Quick => CompactMode::Quick,
        },
        dry_run: args.dry_run,
        free: Vec::new(),
    };
    let report = follow(
        compact(disk.clone(), options),
        &Subject::disk(&args.path).counted_in(Unit::Bytes),
        args.progress.progress,
        Some(&session.interrupt),
    )
    .map_err(|e| {
        stopped(
            e,
            "the disk is whole, and what was saved so far stays saved",
        )
    })?;
    super::close(disk)?;
    let done = Done::new(text(&args.path), args.dry_run, report);
    if args.output.json {
        session.out.json(&done)?;
    } else {
        done.tell(session)?;
    }
    Ok(DONE)
}

impl Done {
    fn new(path: String, dry_run: bool, report: CompactReport) -> Self {
        Self {
            path,
            dry_run,
            size_before: report.size_before,
            size_after: report.size_after,
            saved: report.size_before.saturating_sub(report.size_after),
            released: report.released,
            moved: report.moved,
            payload: report.payload,
            structures: report.structures,
            gaps: report.gaps,
        }
    }

    fn tell(&self, session: &mut Session) -> Result<(), Failure> {
        let (what, saved) = if self.dry_run {
            ("would compact", "would be saved")
        } else {
            ("compacted", "saved")
        };
        session.out.line(format!(
            "{what} {}: {} to {}, {} {saved}",
            self.path,
            size::short(self.size_before),
            size::short(self.size_after),
            size::short(self.saved)
        ))?;
        let mut rest = vec![
            format!("{} of blocks with content", size::short(self.payload)),
            format!("{} of tables", size::short(self.structures)),
        ];
        if self.gaps > 0 {
            rest.push(format!("{} of gaps", size::short(self.gaps)));
        }
        session.out.line(format!("what stays: {}", rest.join(", ")))
    }
}
