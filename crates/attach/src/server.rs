//! The server of one attachment: a process that lives as long as the disk can be seen.
//!
//! It is started by whoever attaches (see `client.rs`) in two steps: the first process only starts the second and ends,
//! so that a server is nobody's child. Standard input is the line to the caller. All that happens reaches one thread as
//! an [`Event`]; requests of the kernel never do: they are answered by threads that wait for nothing but the disk.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{ExitCode, Stdio};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use vhdkit::disk::detect_format;
use vhdkit::error::Context;
use vhdkit::image::Format;
use vhdkit::storage::{Access, FileStorage};
use vhdkit::verbs::resize::{NewSize, ResizeOptions, resize};
use vhdkit::{Error, ErrorKind, Result, VirtualDisk};

use crate::backend::{Backend, Plan};
use crate::fuse::Notice;
use crate::protocol::{Answer, Command, Line, Request};
use crate::record::{self, Entry, Record};
use crate::{holder, sys};

/// The word by which a program knows that it is to be a server.
pub(crate) const WORD: &str = "attach-server";
/// The first of the two steps.
pub(crate) const START: &str = "start";
const SERVE: &str = "serve";

/// Makes this process a server of an attachment, or a part of one, if that is what it was started for; `None` if not.
///
/// A program that attaches disks and is to be its own server (instead of the `vhdkit` command) calls this before it does
/// anything else and ends with the result; see [`AttachOptions::server`](crate::AttachOptions::server).
pub fn serve_if_asked() -> Option<ExitCode> {
    let mut arguments = std::env::args_os().skip(1);
    let word = arguments.next()?;
    if word == holder::WORD {
        let rest: Vec<OsString> = arguments.collect();
        return Some(holder::run(&rest));
    }
    if word != WORD {
        return None;
    }
    Some(match arguments.next() {
        Some(step) if step == START => start(arguments),
        Some(step) if step == SERVE => serve(),
        _ => ExitCode::FAILURE,
    })
}

/// The first step: what is left over from the caller ends here.
fn start(arguments: impl Iterator<Item = OsString>) -> ExitCode {
    sys::keep_inherited();
    let child = std::process::Command::new("/proc/self/exe")
        .arg0("vhdkit")
        .args([OsStr::new(WORD), OsStr::new(SERVE)])
        .args(arguments)
        .stdin(Stdio::inherit())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .current_dir("/")
        .spawn();
    match child {
        Ok(_) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

/// The second step.
fn serve() -> ExitCode {
    // It is no leader of a group, so this cannot fail; from here on no terminal has a say.
    let _ = rustix::process::setsid();
    let _ = rustix::thread::set_name(c"vhdkit-attach");
    // The kernel may need memory that only we can free. Not everybody may say so.
    let _ = rustix::process::configure_io_flusher_behavior(true);
    let Ok(stream) = io::stdin().as_fd().try_clone_to_owned() else {
        return ExitCode::FAILURE;
    };
    if let Ok(null) = std::fs::File::open("/dev/null") {
        let _ = rustix::stdio::dup2_stdin(null);
    }
    let mut caller = Line::new(UnixStream::from(stream));
    let Ok(Some(request)) = caller.receive::<Request>() else {
        return ExitCode::FAILURE;
    };
    let (events, inbox) = channel();
    match Server::start(&request, &events) {
        Ok(server) => server.run(caller, &events, &inbox),
        Err(error) => {
            let error = error.while_doing("cannot attach").with_path(&request.path);
            // The caller may have gone.
            let _ = caller.send(&Answer::failed(&error));
            ExitCode::FAILURE
        }
    }
}

/// What happens to a server.
enum Event {
    /// SIGTERM, SIGINT; the caller has gone to which it was bound.
    Leave,
    /// Somebody asks for something.
    Command(Command, Line),
    /// A request of the kernel failed.
    Trouble(String),
    /// There may be another partition table.
    Table,
    /// Nobody can see the disk any more.
    Gone,
}

struct Server {
    disk: Arc<VirtualDisk>,
    backend: Backend,
    record: Record,
    entry: Entry,
}

/// What whoever detaches is told if something failed meanwhile. The kernel writes much of what was written only now, when
/// nobody waits for it, so this is the last chance to tell.
fn losses(record: &Record) -> Result<()> {
    let Some(trouble) = &record.last_error else {
        return Ok(());
    };
    Err(Error::new(
        ErrorKind::WriteFault,
        format!("it is detached, but while it was used: {trouble}; what was written may not all be there"),
    )
    .with_path(&record.path)
    .while_doing("losses on")
    .with_hint("look at the disk (vhdkit check, fsck) before it is used again"))
}

impl Server {
    fn start(request: &Request, events: &Sender<Event>) -> Result<Self> {
        listen_to_signals(events)?;
        let file = identity(&request.path)?;
        refuse_second(file)?;
        let disk = Arc::new(open(request)?);
        let info = disk.info();
        let mut record = Record {
            id: request.id.clone(),
            path: request.path.clone(),
            file,
            device: std::path::PathBuf::new(),
            folder: request.folder.clone(),
            backend: crate::BackendKind::Loop,
            pid: std::process::id(),
            read_only: !disk.is_writable(),
            permanent: request.permanent,
            virtual_size: disk.virtual_size(),
            sector_size: info.logical_sector_size,
            leaving: false,
            last_error: None,
        };
        // Two that only read can both have come so far.
        let folder = record::folder()?;
        let turn = folder.take_turn()?;
        refuse_second(file)?;
        // Before there is a device: whoever finds the device finds the record.
        let mut entry = Entry::make(folder, &record)?;
        drop(turn);
        listen_to_commands(&entry.socket(), events)?;
        let notices = events.clone();
        let gone = events.clone();
        let plan = Plan {
            disk: &disk,
            path: &request.path,
            id: &request.id,
            folder: request.folder.as_deref(),
            watcher: Arc::new(move |notice| {
                let _ = notices.send(match notice {
                    Notice::Trouble(error) => Event::Trouble(error.to_string()),
                    Notice::Table => Event::Table,
                });
            }),
        };
        let backend = Backend::start(plan, move || {
            let _ = gone.send(Event::Gone);
        })?;
        record.device = backend.device();
        record.backend = backend.kind();
        entry.write(&record)?;
        Ok(Self {
            disk,
            backend,
            record,
            entry,
        })
    }

    fn run(
        mut self,
        mut caller: Line,
        events: &Sender<Event>,
        inbox: &Receiver<Event>,
    ) -> ExitCode {
        let told = caller.send(&Answer::Serving(Box::new(self.record.clone())));
        if told.is_err() {
            // Nobody knows of it.
            self.leave(true).ok();
        } else if !self.record.permanent {
            let events = events.clone();
            thread::spawn(move || {
                // The caller says nothing; it only goes.
                let _ = caller.receive::<()>();
                let _ = events.send(Event::Leave);
            });
        } else {
            drop(caller);
        }
        let mut waiting = Vec::new();
        loop {
            match inbox.recv() {
                Ok(Event::Leave) => {
                    self.leave(true).ok();
                }
                Ok(Event::Command(Command::Detach { lazy }, mut line)) => match self.leave(lazy) {
                    Ok(()) if !lazy => waiting.push(line),
                    Ok(()) => {
                        let _ = line.send(&Answer::Done);
                    }
                    Err(e) => {
                        let _ = line.send(&Answer::failed(&e));
                    }
                },
                Ok(Event::Command(Command::Resize { size }, mut line)) => {
                    let answer = match self.resize(size) {
                        Ok(()) => Answer::Serving(Box::new(self.record.clone())),
                        Err(e) => Answer::failed(&e),
                    };
                    let _ = line.send(&answer);
                }
                Ok(Event::Trouble(text)) => {
                    if self.record.last_error.as_ref() != Some(&text) {
                        self.record.last_error = Some(text);
                        let _ = self.entry.write(&self.record);
                    }
                }
                Ok(Event::Table) => self.backend.refresh_partitions(),
                Ok(Event::Gone) | Err(_) => break,
            }
        }
        self.end(waiting)
    }

    /// Everything so far becomes durable, and the disk goes out of sight: at once, or with its last user.
    fn leave(&mut self, lazy: bool) -> Result<()> {
        let flushed = self.disk.flush();
        self.backend.release(lazy)?;
        self.record.leaving = true;
        let _ = self.entry.write(&self.record);
        flushed
    }

    /// Makes the disk larger while it is used.
    fn resize(&mut self, size: u64) -> Result<()> {
        self.backend.check_can_grow()?;
        let options = ResizeOptions {
            size: NewSize::Bytes(size),
            allow_unsafe: false,
            fix_gpt: false,
            expand_only: true,
            dry_run: false,
        };
        resize(self.disk.clone(), options).wait()?;
        self.record.virtual_size = self.disk.virtual_size();
        self.backend.grow(self.record.virtual_size)?;
        self.entry.write(&self.record)
    }

    fn end(self, waiting: Vec<Line>) -> ExitCode {
        let Self {
            disk,
            backend,
            entry,
            record,
        } = self;
        // The holder has ended or is about to.
        drop(backend);
        let closed = match Arc::into_inner(disk) {
            Some(disk) => disk.close().and_then(|()| losses(&record)),
            None => Err(Error::new(
                ErrorKind::InvalidState,
                "the disk is still in use",
            )),
        };
        drop(entry);
        let code = match closed {
            Ok(()) => ExitCode::SUCCESS,
            Err(_) => ExitCode::FAILURE,
        };
        let closed = closed.at_path(&record.path).while_doing("cannot detach");
        for mut line in waiting {
            let _ = line.send(&match &closed {
                Ok(()) => Answer::Done,
                Err(e) => Answer::failed(e),
            });
        }
        code
    }
}

fn open(request: &Request) -> Result<VirtualDisk> {
    let options = request.open_options()?;
    // Nobody writes to an ISO.
    let is_iso = FileStorage::open(&request.path, Access::ReadOnly)
        .and_then(|storage| detect_format(&storage))
        .is_ok_and(|format| format == Format::Iso);
    let writable = !request.read_only && !is_iso;
    options.writable(writable).open(&request.path).map_err(|e| {
        let refused = matches!(
            e.kind(),
            ErrorKind::AccessDenied | ErrorKind::WriteProtected
        );
        let is_about_it = e.path() == Some(request.path.as_path());
        if writable && refused && is_about_it && std::fs::File::open(&request.path).is_ok() {
            e.with_better_hint("to attach it without changing it, use --read-only")
        } else {
            e
        }
    })
}

/// Device and inode.
fn identity(path: &Path) -> Result<(u64, u64)> {
    let metadata = std::fs::metadata(path).map_err(|e| Error::open(path, e))?;
    Ok((metadata.dev(), metadata.ino()))
}

/// A disk is attached once, also if both only read.
fn refuse_second(file: (u64, u64)) -> Result<()> {
    let Some(folder) = record::existing_folder()? else {
        return Ok(());
    };
    let all = record::all(&folder)?;
    match all
        .iter()
        .find(|(other, alive)| *alive && other.file == file)
    {
        Some((other, _)) => Err(already_attached(other)),
        None => Ok(()),
    }
}

fn already_attached(record: &Record) -> Error {
    let place = record.device.display();
    let reason = if record.device.as_os_str().is_empty() {
        "it is just being attached".to_owned()
    } else {
        format!("it is attached already, as {place}")
    };
    Error::new(ErrorKind::SharingViolation, reason)
        .with_path(&record.path)
        .with_hint("use that, or detach it first: vhdkit detach")
}

fn listen_to_signals(events: &Sender<Event>) -> Result<()> {
    let failed = |e| Error::io("listen for signals", e);
    let mut signals = Signals::new([SIGTERM, SIGINT, SIGHUP]).map_err(failed)?;
    let events = events.clone();
    thread::Builder::new()
        .name("signals".into())
        .spawn(move || {
            for signal in signals.forever() {
                // A terminal that is closed is no reason.
                if signal != SIGHUP && events.send(Event::Leave).is_err() {
                    return;
                }
            }
        })
        .map_err(failed)?;
    Ok(())
}

fn listen_to_commands(socket: &Path, events: &Sender<Event>) -> Result<()> {
    let failed = |e| Error::io("listen", e).with_path(socket);
    let listener = UnixListener::bind(socket).map_err(failed)?;
    let events = events.clone();
    thread::Builder::new()
        .name("commands".into())
        .spawn(move || {
            for stream in listener.incoming().flatten() {
                let events = events.clone();
                // Each has a thread, so that none can keep the others waiting.
                thread::spawn(move || {
                    let mut line = Line::new(stream);
                    if let Ok(Some(command)) = line.receive() {
                        let _ = events.send(Event::Command(command, line));
                    }
                });
            }
        })
        .map_err(failed)?;
    Ok(())
}
