//! `vhdkit merge`: folds differencing disks into a disk behind them.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Serialize;
use vhdkit::operation::{Subject, Unit};
use vhdkit::verbs::merge::{MergeOptions, MergeReport, merge, orphans};

use super::{Session, text};
use crate::args::MergeArgs;
use crate::failure::{DONE, Failure};
use crate::progress::{follow, stopped};
use crate::{output, size};

/// The fields of the JSON output. Sizes are in bytes.
#[derive(Serialize)]
struct Done {
    path: String,
    dry_run: bool,
    target: String,
    merged: Vec<String>,
    copied: u64,
    zeroed: u64,
    size_before: u64,
    size_after: u64,
    orphaned: Vec<String>,
    relinked: Vec<String>,
    deleted: Vec<String>,
}

pub(crate) fn run(args: &MergeArgs, session: &mut Session) -> Result<u8, Failure> {
    let open = args.parents.open_options()?;
    let images = open.open(&args.path)?.layers().len();
    let target = match args.target {
        Some(depth) => depth,
        None if args.all => images,
        None => args.source.saturating_add(1),
    };
    let depth = if args.dry_run { 0 } else { target.min(images) };
    let disk = Arc::new(open.clone().write_depth(depth).open(&args.path)?);
    let options = MergeOptions {
        source_depth: args.source,
        target_depth: target,
        delete_merged: args.delete_merged,
        open,
        dry_run: args.dry_run,
    };
    warn(&disk, &options);
    let report = follow(
        merge(disk.clone(), options),
        &Subject::disk(&args.path).counted_in(Unit::Bytes),
        args.progress.progress,
        Some(&session.interrupt),
    )
    .map_err(|e| {
        stopped(
            e,
            "the chain reads as before, and the merge can be run again",
        )
    })?;
    super::close(disk)?;
    let mut done = Done::new(text(&args.path), args.dry_run, &report);
    if !args.dry_run
        && let Ok(file) = std::fs::metadata(&done.target)
    {
        // Closed, it has given back what it had reserved.
        done.size_after = file.len();
    }
    if args.output.json {
        session.out.json(&done)?;
    } else {
        done.tell(session)?;
    }
    Ok(DONE)
}

/// Before anything is written: whose parent is about to change.
fn warn(disk: &vhdkit::VirtualDisk, options: &MergeOptions) {
    // What is wrong with the options is told by the merge itself.
    for orphan in orphans(disk, options).unwrap_or_default() {
        output::warn(&format!(
            "{} is a child of a disk that this changes, and becomes invalid",
            orphan.display()
        ));
    }
}

impl Done {
    fn new(path: String, dry_run: bool, report: &MergeReport) -> Self {
        let texts = |paths: &[PathBuf]| paths.iter().map(|path| text(path)).collect();
        Self {
            path,
            dry_run,
            target: text(&report.target),
            merged: texts(&report.merged),
            copied: report.copied,
            zeroed: report.zeroed,
            size_before: report.size_before,
            size_after: report.size_after,
            orphaned: texts(&report.orphaned),
            relinked: texts(&report.relinked),
            deleted: texts(&report.deleted),
        }
    }

    fn tell(&self, session: &mut Session) -> Result<(), Failure> {
        let (merged, relinked, deleted) = if self.dry_run {
            ("would merge", "would get", "would be deleted")
        } else {
            ("merged", "got", "deleted")
        };
        if !self.merged.is_empty() {
            session.out.line(format!(
                "{merged} {} into {}: {} copied, {} zero",
                self.merged.join(", "),
                self.target,
                size::short(self.copied),
                size::short(self.zeroed)
            ))?;
        }
        for child in &self.relinked {
            session
                .out
                .line(format!("{child} {relinked} {} as its parent", self.target))?;
        }
        for file in &self.deleted {
            session.out.line(format!("{deleted}: {file}"))?;
        }
        if self.deleted.is_empty() && !self.dry_run {
            session.out.line(format!(
                "no longer needed: {}",
                self.merged
                    .iter()
                    .map(|path| Path::new(path).display().to_string())
                    .collect::<Vec<_>>()
                    .join(", ")
            ))?;
        }
        Ok(())
    }
}
