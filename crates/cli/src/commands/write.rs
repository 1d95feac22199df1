//! `vhdkit write`: standard input over a range of a disk.

use std::io::{self, ErrorKind as Io, Read, Seek};
use std::os::fd::AsFd;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::thread;
use std::time::Duration;

use serde::Serialize;
use vhdkit::operation::{Monitor, Subject, Unit};
use vhdkit::{Error, ErrorKind, Operation, VirtualDisk};

use super::{Session, text};
use crate::args::WriteArgs;
use crate::failure::{DONE, Failure};
use crate::formats;
use crate::progress::follow;
use crate::size::plural;

/// Unit of reading and writing; a few of them are held in memory.
const CHUNK: u64 = 1 << 20;
/// So much is made durable at a time, in bytes: the end has not all of it to wait for, which nobody sees move or can stop.
const DURABLE: u64 = 64 << 20;
/// Longest wait for input before looking whether to stop.
const PATIENCE: Duration = Duration::from_millis(50);

/// The fields of the JSON output.
#[derive(Serialize)]
struct Written {
    path: String,
    offset: u64,
    length: u64,
}

pub(crate) fn run(args: &WriteArgs, session: &mut Session) -> Result<u8, Failure> {
    formats::refuse_without_signature(&args.path)?;
    let open = args.parents.open_options()?.writable(true);
    let disk = open.open(&args.path)?;
    let known = input_length().map_err(Failure::Input)?;
    check_range(&disk, args.offset, known)?;

    let offset = args.offset;
    let (chunks, input) = sync_channel(2);
    thread::Builder::new()
        .name("input".into())
        .spawn(move || read_input(offset, &chunks))
        .map_err(Failure::Input)?;
    // Of what comes through a pipe nobody knows how much it is, only that it has to fit.
    let unit = known.map_or(Unit::BytesSoFar, |_| Unit::Bytes);
    let room = disk.virtual_size() - offset;
    let work = move |monitor: &Monitor| {
        monitor.set_completion(known.unwrap_or(room));
        copy(disk, offset, &input, monitor)
    };
    let length = follow(
        Operation::start("write", work),
        &Subject::disk(&args.path).counted_in(unit),
        args.progress.progress,
        Some(&session.interrupt),
    )??;
    let written = Written {
        path: text(&args.path),
        offset,
        length,
    };
    if args.output.json {
        session.out.json(&written)?;
    } else {
        session.out.line(format!(
            "wrote {} at offset {offset} of {}",
            plural(length, "byte"),
            written.path
        ))?;
    }
    Ok(DONE)
}

/// How much will come, if standard input is a file.
fn input_length() -> io::Result<Option<u64>> {
    let mut input = std::fs::File::from(io::stdin().as_fd().try_clone_to_owned()?);
    let metadata = input.metadata()?;
    if !metadata.is_file() {
        return Ok(None);
    }
    Ok(Some(
        metadata.len().saturating_sub(input.stream_position()?),
    ))
}

fn check_range(disk: &VirtualDisk, offset: u64, length: Option<u64>) -> Result<(), Error> {
    let size = disk.virtual_size();
    if offset > size {
        return Err(beyond(
            disk,
            format!("offset {offset} is past the end of the disk"),
        ));
    }
    match length {
        Some(length) if length > size - offset => Err(beyond(
            disk,
            format!("{length} bytes at {offset} reach past the end of the disk"),
        )),
        _ => Ok(()),
    }
}

fn beyond(disk: &VirtualDisk, reason: String) -> Error {
    Error::new(ErrorKind::BeyondEnd, reason)
        .with_path(disk.path())
        .while_doing("cannot write to")
        .with_hint(format!("the disk has {} bytes", disk.virtual_size()))
}

/// Reads ahead, so that reading and writing overlap, and so that waiting for input does not keep anybody from
/// stopping. Chunks end at multiples of their size on the disk.
fn read_input(mut offset: u64, chunks: &SyncSender<io::Result<Vec<u8>>>) {
    let mut input = io::stdin().lock();
    loop {
        let wanted = CHUNK - offset % CHUNK;
        let mut chunk = Vec::new();
        let result = loop {
            // `take` and `read_to_end` fill the chunk however small the pieces are.
            match input
                .by_ref()
                .take(wanted - chunk.len() as u64)
                .read_to_end(&mut chunk)
            {
                Err(e) if e.kind() == Io::Interrupted => {}
                other => break other,
            }
        };
        let message = result.map(|_| chunk);
        let last = message.as_ref().map_or(true, |c| (c.len() as u64) < wanted);
        offset += wanted;
        if chunks.send(message).is_err() || last {
            return;
        }
    }
}

/// Writes what comes, makes it durable and says how much it was. The outer result is the disk's, the inner one the
/// input's.
fn copy(
    disk: VirtualDisk,
    offset: u64,
    input: &Receiver<io::Result<Vec<u8>>>,
    monitor: &Monitor,
) -> Result<Result<u64, Failure>, Error> {
    let mut done = 0;
    let so_far = |done: u64| format!("{} at offset {offset} were written", plural(done, "byte"));
    loop {
        if monitor.is_cancelled() {
            disk.close()?;
            return Err(Error::new(
                ErrorKind::Aborted,
                format!("cancelled; {}", so_far(done)),
            ));
        }
        let chunk = match input.recv_timeout(PATIENCE) {
            Ok(Ok(chunk)) => chunk,
            Ok(Err(e)) => {
                disk.close()?;
                return Ok(Err(Failure::Input(e)));
            }
            Err(RecvTimeoutError::Timeout) => continue,
            Err(RecvTimeoutError::Disconnected) => break,
        };
        let length = chunk.len() as u64;
        if length > disk.virtual_size() - offset - done {
            let error = beyond(
                &disk,
                format!(
                    "the input reaches past the end of the disk; {}",
                    so_far(done)
                ),
            );
            disk.close()?;
            return Err(error);
        }
        disk.write_at(offset + done, &chunk)?;
        done += length;
        monitor.advance(length);
        if done / DURABLE != (done - length) / DURABLE {
            disk.flush()?;
        }
    }
    disk.close()?;
    Ok(Ok(done))
}
