//! `vhdkit resize` and `vhdkit expand`: another virtual size.

use std::path::Path;
use std::sync::Arc;

use serde::Serialize;
use vhdkit::VirtualDisk;
use vhdkit::operation::{Subject, Unit};
use vhdkit::verbs::resize::{NewSize, ResizeOptions, ResizeReport, resize};
use vhdkit_attach::Attachment;

use super::{Session, text};
use crate::args::{ExpandArgs, ProgressChoice, ResizeArgs};
use crate::failure::{DONE, Failure};
use crate::formats;
use crate::output;
use crate::progress::{follow, stopped};
use crate::size::{self, Change};

/// The fields of the JSON output. Sizes are in bytes.
#[derive(Serialize)]
struct Done {
    path: String,
    dry_run: bool,
    size_before: u64,
    size_after: u64,
    smallest_safe_size: Option<u64>,
    file_size: u64,
    gpt_moved: bool,
    gpt_cut_off: bool,
}

pub(crate) fn expand(args: &ExpandArgs, session: &mut Session) -> Result<u8, Failure> {
    if !args.dry_run
        && !args.fix_gpt
        && let Ok(attachment) = vhdkit_attach::find(&args.path)
        && attachment.is_alive()
    {
        return expand_attached(args, &attachment, session);
    }
    formats::refuse_without_signature(&args.path)?;
    let open = args.parents.open_options()?.writable(!args.dry_run);
    let disk = open.open(&args.path)?;
    let options = ResizeOptions {
        size: NewSize::Bytes(wanted(args.size, disk.virtual_size())?),
        allow_unsafe: false,
        fix_gpt: args.fix_gpt,
        expand_only: true,
        dry_run: args.dry_run,
    };
    perform(
        disk,
        &args.path,
        options,
        args.progress.progress,
        args.output.json,
        session,
    )
}

/// The disk is in use by its own server, which makes it larger, and the device with it.
fn expand_attached(
    args: &ExpandArgs,
    attachment: &Attachment,
    session: &mut Session,
) -> Result<u8, Failure> {
    let size_before = attachment.virtual_size;
    let size = wanted(args.size, size_before)?;
    attachment.expand(size)?;
    let done = Done {
        path: text(&args.path),
        dry_run: false,
        size_before,
        size_after: size,
        smallest_safe_size: None,
        file_size: std::fs::metadata(&args.path).map_or(0, |metadata| metadata.len()),
        gpt_moved: false,
        gpt_cut_off: false,
    };
    if args.output.json {
        session.out.json(&done)?;
    } else {
        session.out.line(done.sentence())?;
    }
    Ok(DONE)
}

pub(crate) fn run(args: &ResizeArgs, session: &mut Session) -> Result<u8, Failure> {
    formats::refuse_without_signature(&args.path)?;
    let open = args.parents.open_options()?.writable(!args.dry_run);
    let disk = open.open(&args.path)?;
    let options = ResizeOptions {
        size: match args.size {
            Some(change) => NewSize::Bytes(wanted(change, disk.virtual_size())?),
            None => NewSize::Smallest,
        },
        allow_unsafe: args.allow_unsafe,
        fix_gpt: args.fix_gpt,
        expand_only: false,
        dry_run: args.dry_run,
    };
    perform(
        disk,
        &args.path,
        options,
        args.progress.progress,
        args.output.json,
        session,
    )
}

/// The smallest there is, in bytes. What the disk's own are is known to the library.
const SECTOR: u64 = 512;

fn wanted(change: Change, size: u64) -> Result<u64, Failure> {
    match change {
        Change::To(size) => size::whole_sectors(size, SECTOR),
        Change::By(more) => size
            .checked_add(size::whole_sectors(more, SECTOR)?)
            .ok_or_else(|| Failure::usage("the size is too large")),
    }
}

fn perform(
    disk: VirtualDisk,
    path: &Path,
    options: ResizeOptions,
    progress: ProgressChoice,
    json: bool,
    session: &mut Session,
) -> Result<u8, Failure> {
    let disk = Arc::new(disk);
    let report = follow(
        resize(disk.clone(), options),
        &Subject::disk(path).counted_in(Unit::Bytes),
        progress,
        Some(&session.interrupt),
    )
    .map_err(|e| stopped(e, "the disk keeps its size"))?;
    super::close(disk)?;
    let done = Done::new(text(path), options.dry_run, report);
    if done.gpt_cut_off {
        output::warn(if options.fix_gpt {
            "the second copy of the partition table is cut off: the new end leaves no room for it"
        } else {
            "the second copy of the partition table is cut off; --fix-gpt moves it to the new end"
        });
    }
    if json {
        session.out.json(&done)?;
    } else {
        session.out.line(done.sentence())?;
    }
    Ok(DONE)
}

impl Done {
    fn new(path: String, dry_run: bool, report: ResizeReport) -> Self {
        Self {
            path,
            dry_run,
            size_before: report.size_before,
            size_after: report.size_after,
            smallest_safe_size: report.smallest_safe_size,
            file_size: report.file_size,
            gpt_moved: report.gpt_moved,
            gpt_cut_off: report.gpt_cut_off,
        }
    }

    fn sentence(&self) -> String {
        let what = if self.dry_run {
            "would resize"
        } else {
            "resized"
        };
        let mut sentence = format!(
            "{what} {}: {} to {}",
            self.path,
            size::describe(self.size_before),
            size::describe(self.size_after)
        );
        if self.gpt_moved {
            sentence += if self.dry_run {
                "; the second copy of its partition table would be moved to the end"
            } else {
                "; the second copy of its partition table was moved to the end"
            };
        }
        sentence
    }
}
