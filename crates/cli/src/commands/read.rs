//! `vhdkit read`: a range of a disk's content to standard output.

use std::ops::Range;

use vhdkit::operation::{Monitor, Subject, Unit};
use vhdkit::{Error, ErrorKind, Operation, VirtualDisk};

use super::Session;
use crate::args::{ProgressChoice, ReadArgs};
use crate::failure::{DONE, Failure};
use crate::formats;
use crate::output::{self, Output};
use crate::progress::{follow, stopped};

/// Most that is held in memory.
const CHUNK: usize = 1 << 20;

pub(crate) fn run(args: &ReadArgs, session: &mut Session) -> Result<u8, Failure> {
    formats::warn_if_unlike_its_name(&args.path);
    let disk = args.parents.open_options()?.open(&args.path)?;
    let range = range(&disk, args.offset, args.length)?;
    let progress = match args.progress.progress {
        // A bar would end up between the data.
        ProgressChoice::Auto if output::is_terminal() => ProgressChoice::None,
        choice => choice,
    };
    let work = move |monitor: &Monitor| copy(&disk, range, monitor);
    // Nothing has to be put in order when a reader is interrupted, so a signal ends it at once.
    let subject = Subject::disk(&args.path).counted_in(Unit::Bytes);
    follow(Operation::start("read", work), &subject, progress, None)
        .map_err(|e| stopped(e, "the range was not read to its end"))??;
    session.out.flush()?;
    Ok(DONE)
}

/// The range asked for, if it is inside the disk.
fn range(disk: &VirtualDisk, offset: u64, length: Option<u64>) -> Result<Range<u64>, Error> {
    let size = disk.virtual_size();
    let beyond = |reason: String| {
        Error::new(ErrorKind::BeyondEnd, reason)
            .with_path(disk.path())
            .while_doing("cannot read")
            .with_hint(format!("the disk has {size} bytes"))
    };
    if offset > size {
        return Err(beyond(format!(
            "offset {offset} is past the end of the disk"
        )));
    }
    let length = length.unwrap_or(size - offset);
    match offset.checked_add(length).filter(|end| *end <= size) {
        Some(end) => Ok(offset..end),
        None => Err(beyond(format!(
            "{length} bytes at {offset} reach past the end of the disk"
        ))),
    }
}

/// The outer result is the disk's, the inner one the reader's.
fn copy(
    disk: &VirtualDisk,
    range: Range<u64>,
    monitor: &Monitor,
) -> Result<Result<(), Failure>, Error> {
    monitor.set_completion(range.end - range.start);
    let mut out = Output::new();
    let mut buffer = vec![0_u8; CHUNK];
    let mut zeroed = true;
    for extent in disk.extents(range) {
        let (start, extent) = extent?;
        let end = start + extent.length;
        let mut at = start;
        while at < end {
            // Somebody else may ask to stop, if not a signal.
            monitor.checkpoint()?;
            let length = usize::try_from(end - at).map_or(CHUNK, |left| left.min(CHUNK));
            let part = &mut buffer[..length];
            if extent.data.is_some() {
                disk.read_at(at, part)?;
                zeroed = false;
            } else if !zeroed {
                buffer.fill(0);
                zeroed = true;
            }
            if let Err(failure) = out.bytes(&buffer[..length]) {
                return Ok(Err(failure));
            }
            if out.is_closed() {
                return Ok(Ok(()));
            }
            at += length as u64;
            monitor.advance(length as u64);
        }
    }
    Ok(out.flush())
}
