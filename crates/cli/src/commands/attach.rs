//! `vhdkit attach`, `detach`, `list`, `mount` and `unmount`: disks as devices of this system.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;

use serde::Serialize;
use vhdkit_attach::{AttachOptions, Attachment, Lifetime};

use super::{Session, text};
use crate::args::{
    AttachArgs, ChainArgs, DetachArgs, FormatName, ListArgs, MountArgs, UnmountArgs,
};
use crate::failure::{DONE, Failure};
use crate::{formats, output, size};

/// People wait so long without asking what for.
const SILENCE: Duration = Duration::from_secs(2);

/// The fields of the JSON output. Sizes are in bytes.
#[derive(Serialize)]
struct Row {
    id: String,
    path: String,
    device: String,
    folder: Option<String>,
    backend: &'static str,
    pid: u32,
    state: &'static str,
    read_only: bool,
    permanent: bool,
    virtual_size: u64,
    sector_size: u32,
    partitions: Vec<PartitionRow>,
    mounts: Vec<MountRow>,
    last_error: Option<String>,
}

#[derive(Serialize)]
struct PartitionRow {
    number: u32,
    device: String,
    start: u64,
    length: u64,
}

#[derive(Serialize)]
struct MountRow {
    device: String,
    folder: String,
}

/// What was detached.
#[derive(Serialize)]
struct Detached {
    id: String,
    path: String,
    device: String,
    /// False if it goes with its last user.
    done: bool,
}

pub(crate) fn run(args: &AttachArgs, session: &mut Session) -> Result<u8, Failure> {
    let lifetime = if args.foreground {
        Lifetime::Caller
    } else {
        Lifetime::Permanent
    };
    let mut options = options(&args.path, args.read_only, args.format, &args.parents)?;
    if let Some(folder) = &args.file {
        options = options.folder(folder);
    }
    let attached = options.lifetime(lifetime).attach(&args.path)?;
    let asked = Arc::new(AtomicBool::new(false));
    if args.foreground {
        // Before it is said that the device is there: whoever reads that may be quick.
        let told = asked.clone();
        session
            .interrupt
            .calls(move || told.store(true, Ordering::Release));
    }
    let attachment = attached.attachment();
    if args.output.json {
        session.out.json(&Row::of(attachment))?;
    } else {
        session.out.line(text(&attachment.device))?;
        for partition in &attachment.partitions {
            let size = size::short(partition.length);
            session
                .out
                .line(format!("{}  {size}", text(&partition.device)))?;
        }
    }
    session.out.flush()?;
    if args.foreground {
        while !asked.load(Ordering::Acquire) && attached.is_alive() {
            std::thread::sleep(Duration::from_millis(50));
        }
        if attached.is_alive() {
            // Of what is in use the end is waited for, but a second signal ends the waiting.
            attached.attachment().detach(true)?;
            attached.wait();
        }
    }
    Ok(DONE)
}

fn options(
    path: &Path,
    read_only: bool,
    format: Option<FormatName>,
    parents: &ChainArgs,
) -> Result<AttachOptions, Failure> {
    let mut options = AttachOptions::new()
        .read_only(read_only)
        .parents(parents.parent.clone())
        .parent_map(parents.parent_map.clone())
        // Whatever is beside us or in $PATH: the server is this very program.
        .server("/proc/self/exe");
    // What is wrong with the arguments is said before anything is started.
    parents.map()?;
    if let Some(format) = format {
        options = options.format(format.into());
    } else if read_only {
        formats::warn_if_unlike_its_name(path);
    } else {
        formats::refuse_without_signature(path)?;
    }
    Ok(options)
}

pub(crate) fn detach(args: &DetachArgs, session: &mut Session) -> Result<u8, Failure> {
    let attachment = vhdkit_attach::find(&args.target)?;
    saying_what_it_waits_for(&attachment, || attachment.detach(args.lazy))?;
    let done = !args.lazy || !attachment.is_alive();
    told(&attachment, done, args.output.json, session)
}

pub(crate) fn unmount(args: &UnmountArgs, session: &mut Session) -> Result<u8, Failure> {
    let attachment = vhdkit_attach::find(&args.target)?;
    saying_what_it_waits_for(&attachment, || vhdkit_attach::unmount(&attachment))?;
    told(&attachment, true, args.output.json, session)
}

/// Does what can take long if a lot has to be written, or the server hangs; then people hear why.
fn saying_what_it_waits_for<R>(attachment: &Attachment, wait: impl FnOnce() -> R) -> R {
    let (done, is_done) = mpsc::channel::<()>();
    let pid = attachment.pid;
    // Without a thread nothing is said.
    let _ = std::thread::Builder::new().spawn(move || {
        if is_done.recv_timeout(SILENCE) == Err(RecvTimeoutError::Timeout) {
            output::note(&format!(
                "waiting for its server (process {pid}) to close the disk; it does so also if this is interrupted"
            ));
        }
    });
    let result = wait();
    drop(done);
    result
}

fn told(
    attachment: &Attachment,
    done: bool,
    json: bool,
    session: &mut Session,
) -> Result<u8, Failure> {
    let (path, device) = (text(&attachment.path), text(&attachment.device));
    if json {
        session.out.json(&Detached {
            id: attachment.id.clone(),
            path,
            device,
            done,
        })?;
    } else if done {
        session.out.line(format!("detached {path} ({device})"))?;
    } else {
        session
            .out
            .line(format!("{path} ({device}) is detached with its last user"))?;
    }
    Ok(DONE)
}

pub(crate) fn list(args: &ListArgs, session: &mut Session) -> Result<u8, Failure> {
    let all = vhdkit_attach::list()?;
    if args.output.json {
        let rows: Vec<Row> = all.iter().map(Row::of).collect();
        session.out.json(&rows)?;
    } else if all.is_empty() {
        session.out.line("nothing is attached")?;
    }
    for attachment in all.iter().filter(|_| !args.output.json) {
        for line in lines(attachment) {
            session.out.line(line)?;
        }
    }
    Ok(DONE)
}

/// `/dev/loop0  40 GiB, read-only  /disks/a.vhdx  pid 4711`, and what there is to say about it.
fn lines(attachment: &Attachment) -> Vec<String> {
    let read_only = if attachment.read_only {
        ", read-only"
    } else {
        ""
    };
    let pid = attachment.pid;
    let server = match state(attachment) {
        "dead" => format!("dead: its server (pid {pid}) was killed"),
        "leaving" => format!("pid {pid}, goes with its last user"),
        _ => format!("pid {pid}"),
    };
    let first = format!(
        "{}  {}{read_only}  {}  {server}",
        text(&attachment.device),
        size::short(attachment.virtual_size),
        text(&attachment.path)
    );
    let mut lines = vec![first];
    let mounts_of = |device: &Path| {
        let places = attachment.mounts.iter().filter(|m| m.device == device);
        let places: Vec<String> = places.map(|m| text(&m.folder)).collect();
        if places.is_empty() {
            String::new()
        } else {
            format!("  at {}", places.join(", "))
        }
    };
    let whole = mounts_of(&attachment.device);
    if !whole.is_empty() {
        lines[0] += &whole;
    }
    for partition in &attachment.partitions {
        lines.push(format!(
            "  {}  {}{}",
            text(&partition.device),
            size::short(partition.length),
            mounts_of(&partition.device)
        ));
    }
    if let Some(error) = &attachment.last_error {
        lines.push(format!("  last error: {error}"));
    }
    lines
}

fn state(attachment: &Attachment) -> &'static str {
    match (attachment.alive, attachment.leaving) {
        (false, _) => "dead",
        (true, true) => "leaving",
        (true, false) => "attached",
    }
}

pub(crate) fn mount(args: &MountArgs, session: &mut Session) -> Result<u8, Failure> {
    let options = options(&args.path, args.read_only, args.format, &args.parents)?;
    let attachment = vhdkit_attach::mount(&options, &args.path, &args.folder, args.partition)?;
    if args.output.json {
        session.out.json(&Row::of(&attachment))?;
    } else {
        for mount in &attachment.mounts {
            session.out.line(format!(
                "mounted {} at {}",
                text(&mount.device),
                text(&mount.folder)
            ))?;
        }
    }
    Ok(DONE)
}

impl Row {
    fn of(attachment: &Attachment) -> Self {
        let partitions = attachment.partitions.iter().map(|p| PartitionRow {
            number: p.number,
            device: text(&p.device),
            start: p.start,
            length: p.length,
        });
        let mounts = attachment.mounts.iter().map(|m| MountRow {
            device: text(&m.device),
            folder: text(&m.folder),
        });
        Self {
            id: attachment.id.clone(),
            path: text(&attachment.path),
            device: text(&attachment.device),
            folder: attachment.folder.as_deref().map(text),
            backend: attachment.backend.name(),
            pid: attachment.pid,
            state: state(attachment),
            read_only: attachment.read_only,
            permanent: attachment.permanent,
            virtual_size: attachment.virtual_size,
            sector_size: attachment.sector_size,
            partitions: partitions.collect(),
            mounts: mounts.collect(),
            last_error: attachment.last_error.clone(),
        }
    }
}
