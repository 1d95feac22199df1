//! `vhdkit mirror`: copies a disk to another file and keeps both in step.

use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use vhdkit::image::{CreateParameters, DiskType, Format};
use vhdkit::operation::{Subject, Unit};
use vhdkit::verbs::mirror::{MirrorOptions, break_mirror, is_mirrored, mirror};

use super::{Session, text};
use crate::args::MirrorArgs;
use crate::failure::{DONE, Failure};
use crate::progress::{follow, stopped};
use crate::{formats, size};

/// The fields of the JSON output. Sizes are in bytes.
#[derive(Serialize)]
struct Done {
    source: String,
    target: String,
    copied: u64,
}

pub(crate) fn run(args: &MirrorArgs, session: &mut Session) -> Result<u8, Failure> {
    let open = args.parents.open_options()?.writable(true);
    let format = if args.existing {
        Format::Raw
    } else {
        formats::of_new_file(&args.target, args.format)?
    };
    if args.existing {
        formats::refuse_without_signature(&args.target)?;
    }
    formats::warn_if_unlike_its_name(&args.source);
    let disk = Arc::new(open.open(&args.source)?);
    let options = MirrorOptions {
        target: args.target.clone(),
        existing: args.existing,
        parameters: CreateParameters {
            block_size: args.block_size,
            ..CreateParameters::new(
                format,
                args.disk_type.map_or(DiskType::Dynamic, DiskType::from),
                0,
            )
        },
    };
    let operation = mirror(disk.clone(), options);
    let mut breaker = None;
    if !args.wait {
        let disk = Arc::downgrade(&disk);
        let observer = operation.observer();
        // Ends the mirror as soon as both are the same; without the thread it would stay, as with --wait.
        let thread = std::thread::Builder::new().name("break".into());
        breaker = thread
            .spawn(move || {
                while observer.progress().status == vhdkit::Status::Pending {
                    let Some(disk) = disk.upgrade() else { return };
                    if is_mirrored(&disk) && break_mirror(&disk).is_ok() {
                        return;
                    }
                    drop(disk);
                    std::thread::sleep(Duration::from_millis(5));
                }
            })
            .ok();
    }
    let result = follow(
        operation,
        &Subject::disk(&args.source)
            .and(&args.target)
            .counted_in(Unit::Bytes),
        args.progress.progress,
        Some(&session.interrupt),
    );
    if let Some(breaker) = breaker {
        // It holds the disk, which has to be closed here.
        let _ = breaker.join();
    }
    let report = result.map_err(|e| {
        let kept = if args.existing {
            "keeps what was copied so far"
        } else {
            "was deleted"
        };
        let (source, target) = (text(&args.source), text(&args.target));
        stopped(e, &format!("{source} is as it was, {target} {kept}"))
    })?;
    super::close(disk)?;
    let done = Done {
        source: text(&args.source),
        target: text(&report.target),
        copied: report.copied,
    };
    if args.output.json {
        session.out.json(&done)?;
    } else {
        session.out.line(format!(
            "mirrored {} to {}: {} copied",
            done.source,
            done.target,
            size::short(done.copied)
        ))?;
    }
    Ok(DONE)
}
