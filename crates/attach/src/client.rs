//! What any program may call: attach, detach, list. None of this serves; servers are processes of their own.

use std::ffi::OsStr;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal};
use uuid::Uuid;
use vhdkit::error::Context;
use vhdkit::image::Format;
use vhdkit::runtime::RuntimeFolder;
use vhdkit::{Error, ErrorKind, Result};

use crate::backend::{self, BackendKind};
use crate::mounting::unmount_own;
use crate::partitions::{self, Partition};
use crate::protocol::{Answer, Command, Line, Request, format_name};
use crate::record::{self, Record};
use crate::usage::{self, Mount};
use crate::{locate, server, sys, ublk};

/// How long the last writes of a device that is being detached may take.
const PATIENCE: Duration = Duration::from_mins(1);
/// How often, and after which time each, a device that is in use is looked at again before it is said to be.
const LOOKS: u32 = 10;
const LOOK: Duration = Duration::from_millis(20);

/// How long an attachment lasts.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[expect(clippy::exhaustive_enums, reason = "there is no third way")]
pub enum Lifetime {
    /// As long as the [`Attached`] lives, at most as long as the process; however that ends.
    #[default]
    Caller,
    /// Until it is detached.
    Permanent,
}

/// How to attach a disk.
#[derive(Clone, Debug, Default)]
pub struct AttachOptions {
    read_only: bool,
    lifetime: Lifetime,
    folder: Option<PathBuf>,
    format: Option<Format>,
    parents: Vec<PathBuf>,
    parent_map: Vec<String>,
    server: Option<PathBuf>,
}

impl AttachOptions {
    /// As a device, for reading and writing, bound to the caller; format and parents as the file says.
    pub fn new() -> Self {
        Self::default()
    }

    /// Nobody can write to the device, and the file is not changed.
    #[must_use]
    pub fn read_only(mut self, read_only: bool) -> Self {
        self.read_only = read_only;
        self
    }

    /// How long it lasts.
    #[must_use]
    pub fn lifetime(mut self, lifetime: Lifetime) -> Self {
        self.lifetime = lifetime;
        self
    }

    /// Shows the disk as the file `disk.img` in this folder instead of as a device; that takes no root, but
    /// `fusermount3`.
    #[must_use]
    pub fn folder(mut self, folder: impl Into<PathBuf>) -> Self {
        self.folder = Some(folder.into());
        self
    }

    /// Takes the file as this format instead of looking.
    #[must_use]
    pub fn format(mut self, format: Format) -> Self {
        self.format = Some(format);
        self
    }

    /// The parents, the direct one first, instead of the recorded ones.
    #[must_use]
    pub fn parents(mut self, parents: Vec<PathBuf>) -> Self {
        self.parents = parents;
        self
    }

    /// Where folders of the system that made the disk are here, each as `WINDOWS=LOCAL`.
    #[must_use]
    pub fn parent_map(mut self, pairs: Vec<String>) -> Self {
        self.parent_map = pairs;
        self
    }

    /// The program that becomes the server: the `vhdkit` command, or one that calls
    /// [`serve_if_asked`](crate::serve_if_asked). Without it `$VHDKIT_SERVER` is used, or `vhdkit` from beside the
    /// running program, its `../libexec`, `$PATH`, `/usr/local/bin` or `/usr/bin`.
    #[must_use]
    pub fn server(mut self, program: impl Into<PathBuf>) -> Self {
        self.server = Some(program.into());
        self
    }

    /// Attaches a disk. When this returns, the device and its partitions can be used.
    ///
    /// The caller must not have the file open itself in a way that excludes others.
    ///
    /// # Errors
    /// [`ErrorKind::AccessDenied`] without root, unless a folder was named; [`ErrorKind::SharingViolation`] if the disk
    /// is in use or attached already; what opening it fails with; what the operating system says.
    pub fn attach(&self, path: impl AsRef<Path>) -> Result<Attached> {
        let path = path.as_ref();
        self.start(path).at_path(path).while_doing("cannot attach")
    }

    fn start(&self, named: &Path) -> Result<Attached> {
        if self.folder.is_none() && !rustix::process::geteuid().is_root() {
            return Err(
                Error::new(ErrorKind::AccessDenied, "devices take root").with_hint(crate::NOT_ROOT)
            );
        }
        let absolute = |path: &Path| {
            std::path::absolute(path).map_err(|e| Error::io("find the current folder", e))
        };
        let path = absolute(named)?;
        let folder = match &self.folder {
            Some(folder) => Some(checked_folder(folder)?),
            None => None,
        };
        let mut parents = Vec::new();
        for parent in &self.parents {
            parents.push(absolute(parent)?);
        }
        let mut parent_map = Vec::new();
        for pair in &self.parent_map {
            parent_map.push(match pair.split_once('=') {
                Some((windows, local)) if !local.is_empty() => {
                    let local = absolute(Path::new(local))?;
                    let local = local.to_str().ok_or_else(|| unsayable(&local))?;
                    format!("{windows}={local}")
                }
                // The server says what is wrong with it.
                _ => pair.clone(),
            });
        }
        let request = Request {
            id: Uuid::new_v4().simple().to_string()[..8].to_owned(),
            path,
            read_only: self.read_only,
            permanent: self.lifetime == Lifetime::Permanent,
            folder,
            format: self.format.and_then(format_name),
            parents,
            parent_map,
        };
        let mut line = start_server(self.server.as_deref(), &request)?;
        let record = match line.receive() {
            Ok(Some(Answer::Serving(record))) => *record,
            Ok(Some(Answer::Failed(failure))) => {
                return Err(failure.named(&request.path, named).into());
            }
            Ok(_) => {
                return Err(Error::new(
                    ErrorKind::Io,
                    "the server ended without a word (was it killed?)",
                ));
            }
            Err(e) => return Err(Error::io("talk to the server", e)),
        };
        if record.folder.is_none()
            && let Err(error) = partitions::refresh(&record.device, record.sector_size)
        {
            let _ = ask(&record, &Command::Detach { lazy: true });
            return Err(error);
        }
        Ok(Attached {
            attachment: describe(record, true),
            // With its end the server ends, unless it is permanent: then that is no matter.
            _line: line,
        })
    }
}

/// Pairs of folders are text.
fn unsayable(folder: &Path) -> Error {
    Error::new(ErrorKind::InvalidParameter, "its name is no valid Unicode")
        .with_path(folder)
        .with_hint("give it another name, or name the parents themselves")
}

/// True if the server of a folder in which every access fails was only just killed: the kernel closes its files one after
/// the other, and that of its record is not the first.
fn is_dying(folder: &Path) -> Result<bool> {
    let absolute = std::path::absolute(folder).unwrap_or_default();
    let (Some(parent), Some(name)) = (absolute.parent(), absolute.file_name()) else {
        return Ok(false);
    };
    let real = usage::real_path(parent)
        .ok()
        .map(|parent| parent.join(name));
    let is_it = |one: &Attachment| one.alive && one.folder.is_some() && one.folder == real;
    Ok(list()?.iter().any(is_it))
}

/// An absolute path of a folder that a file system can be mounted on.
fn checked_folder(folder: &Path) -> Result<PathBuf> {
    let until = Instant::now() + PATIENCE;
    // It may be ours, and nobody has looked since: looking clears up.
    while usage::is_dead(folder) && is_dying(folder)? && Instant::now() < until {
        std::thread::sleep(Duration::from_millis(5));
    }
    if usage::is_dead(folder) {
        return Err(Error::new(
            ErrorKind::SharingViolation,
            "the file system that is mounted there has lost its server",
        )
        .with_path(folder)
        .with_hint(format!(
            "unmount it first: fusermount3 -u {}",
            folder.display()
        )));
    }
    let folder = usage::real_folder(folder).map_err(|e| {
        e.with_hint("name an empty folder of yours: the disk appears in it as disk.img")
    })?;
    if usage::is_mount_point(&folder) {
        return Err(Error::new(
            ErrorKind::SharingViolation,
            "something is mounted there already",
        )
        .with_path(folder)
        .with_hint("name another folder, or unmount that first"));
    }
    Ok(folder)
}

/// Starts a server; what comes back is the line to it.
fn start_server(told: Option<&Path>, request: &Request) -> Result<Line> {
    let program = locate::server(told)?;
    let failed = |e| {
        let hint = format!("its program is {}", program.display());
        Error::io("start the server", e).with_hint(hint)
    };
    let (ours, theirs) = UnixStream::pair().map_err(failed)?;
    let mut first = std::process::Command::new(&program)
        .args([OsStr::new(server::WORD), OsStr::new(server::START)])
        // For people who look at lists of processes.
        .arg(&request.id)
        .arg(&request.path)
        .stdin(std::os::fd::OwnedFd::from(theirs))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .map_err(failed)?;
    // It only starts the server. A caller that waits for any child may have taken it away: no matter.
    let _ = first.wait();
    let mut line = Line::new(ours);
    line.send(request).map_err(failed)?;
    Ok(line)
}

/// A disk that was just attached.
#[derive(Debug)]
pub struct Attached {
    attachment: Attachment,
    _line: Line,
}

impl Attached {
    /// What it is.
    pub fn attachment(&self) -> &Attachment {
        &self.attachment
    }

    /// Detaches it; see [`Attachment::detach`].
    ///
    /// # Errors
    /// See [`Attachment::detach`].
    pub fn detach(self, lazy: bool) -> Result<()> {
        self.attachment.detach(lazy)
    }

    /// True while its server runs.
    pub fn is_alive(&self) -> bool {
        self.attachment.is_alive()
    }

    /// Returns when its server has ended.
    pub fn wait(&self) {
        while self.is_alive() {
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

/// What is known about an attached disk, at the moment of asking. Sizes are in bytes.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct Attachment {
    /// Eight hexadecimal digits that no other attachment has.
    pub id: String,
    /// The disk, absolute.
    pub path: PathBuf,
    /// The block device, or the file that shows the disk.
    pub device: PathBuf,
    /// The folder of that file; `None` for devices.
    pub folder: Option<PathBuf>,
    /// By which means.
    pub backend: BackendKind,
    /// The process that serves it.
    pub pid: u32,
    /// False if that process has ended without detaching: every access to the device fails.
    pub alive: bool,
    /// True if it was told to go and goes with its last user.
    pub leaving: bool,
    /// True if nobody can write.
    pub read_only: bool,
    /// False if it goes with the process that attached it.
    pub permanent: bool,
    /// Size of the disk.
    pub virtual_size: u64,
    /// Size of its logical sectors.
    pub sector_size: u32,
    /// Its partitions.
    pub partitions: Vec<Partition>,
    /// Where it and its partitions are mounted, as far as this process can see.
    pub mounts: Vec<Mount>,
    /// The last thing that went wrong while it was used.
    pub last_error: Option<String>,
}

fn describe(record: Record, alive: bool) -> Attachment {
    let (partitions, mounts) = if record.folder.is_none() && is_ours(&record) {
        let partitions = partitions::known(&record.device);
        let mounts = usage::mounts(&devices(&record.device, &partitions));
        (partitions, mounts)
    } else if record.backend == BackendKind::Ublk && !alive && !record.device.exists() {
        (Vec::new(), usage::mounts_of_gone(&record.device))
    } else {
        (Vec::new(), Vec::new())
    };
    Attachment {
        id: record.id,
        path: record.path,
        device: record.device,
        folder: record.folder,
        backend: record.backend,
        pid: record.pid,
        alive,
        leaving: record.leaving,
        read_only: record.read_only,
        permanent: record.permanent,
        virtual_size: record.virtual_size,
        sector_size: record.sector_size,
        partitions,
        mounts,
        last_error: record.last_error,
    }
}

fn devices(device: &Path, partitions: &[Partition]) -> Vec<PathBuf> {
    let parts = partitions.iter().map(|partition| partition.device.clone());
    std::iter::once(device.to_owned()).chain(parts).collect()
}

/// True if what was written down is still what the kernel has.
fn is_ours(record: &Record) -> bool {
    match record.backend {
        BackendKind::Loop => loop_file(&record.device)
            .is_some_and(|name| name.starts_with(&backend::prefix(&record.id))),
        BackendKind::Ublk => {
            record.device.exists()
                && ublk_owner(record).is_some_and(|owner| owner.pid == Some(record.pid))
        }
        BackendKind::File => record.folder.as_deref().is_some_and(usage::is_mount_point),
    }
}

/// Whose the device of ublk is that was written down, if it is still of that attachment.
fn ublk_owner(record: &Record) -> Option<ublk::Owner> {
    let owner = ublk::owner(ublk::number_of(&record.device)?)?;
    (Some(owner.tag) == backend::tag(&record.id)).then_some(owner)
}

/// The name of the file under a loop device.
fn loop_file(device: &Path) -> Option<String> {
    let folder = Path::new("/sys/block").join(device.file_name()?);
    let name = std::fs::read_to_string(folder.join("loop/backing_file")).ok()?;
    Some(name.trim_end().trim_start_matches('/').to_owned())
}

/// All attached disks: of this user, and as root of the whole system (but for folders of others). Those whose server
/// has died are listed once more, and what can be cleared up after them is.
///
/// # Errors
/// [`ErrorKind::AccessDenied`] if the runtime folder cannot be believed; else what reading it fails with.
pub fn list() -> Result<Vec<Attachment>> {
    let folder = record::existing_folder().while_doing("cannot list attached disks")?;
    let mut found = folder.map_or_else(|| Ok(Vec::new()), |folder| recorded(&folder))?;
    for record in unrecorded(&found) {
        let alive = is_alive(record.pid);
        found.push(describe(record, alive));
    }
    Ok(found)
}

/// Those that are written down.
fn recorded(folder: &RuntimeFolder) -> Result<Vec<Attachment>> {
    let mut found = Vec::new();
    for (record, alive) in record::all(folder)? {
        if alive && record.device.as_os_str().is_empty() {
            // It has only just been started, and may yet fail.
            continue;
        }
        let attachment = describe(record.clone(), alive);
        if !alive && clean_up(&record, &attachment) {
            record::remove(folder, &record.id);
            if record.device.as_os_str().is_empty() {
                continue;
            }
        }
        found.push(attachment);
    }
    Ok(found)
}

/// Clears up after a server that has died; true if nothing is left.
fn clean_up(record: &Record, attachment: &Attachment) -> bool {
    match &record.folder {
        Some(folder) => {
            // It is there for nobody: every access fails.
            !usage::is_dead(folder) || backend::unmount(folder, true).is_ok()
        }
        None if record.backend == BackendKind::Ublk => {
            // The kernel has stopped it; this is what is left.
            let is_removed = ublk_owner(record).is_none()
                || ublk::number_of(&record.device).is_some_and(|n| ublk::remove(n).is_ok());
            is_removed && attachment.mounts.is_empty()
        }
        None if is_ours(record) => {
            if attachment.mounts.is_empty()
                && let Ok(device) = std::fs::File::open(&record.device)
            {
                let _ = sys::clear_loop(&device);
            }
            // With the last user the device goes by itself.
            !is_ours(record)
        }
        None => true,
    }
}

/// Devices of ours that nothing is written about (somebody has emptied the runtime folder): what they are is read from
/// the kernel and the list of processes.
fn unrecorded(known: &[Attachment]) -> Vec<Record> {
    let mut found = Vec::new();
    let Ok(entries) = std::fs::read_dir("/sys/block") else {
        return found;
    };
    for entry in entries.flatten() {
        let device = Path::new("/dev").join(entry.file_name());
        let Some((id, backend)) = unrecorded_id(&device) else {
            continue;
        };
        if known.iter().any(|attachment| attachment.id == id) {
            continue;
        }
        let Some((pid, path)) = find_server(&id) else {
            continue;
        };
        let value = |file: &str| -> u64 {
            std::fs::read_to_string(entry.path().join(file))
                .ok()
                .and_then(|text| text.trim().parse().ok())
                .unwrap_or_default()
        };
        found.push(Record {
            id,
            path,
            file: (0, 0),
            device,
            folder: None,
            backend,
            pid,
            read_only: value("ro") == 1,
            permanent: true,
            virtual_size: value("size") * 512,
            sector_size: u32::try_from(value("queue/logical_block_size")).unwrap_or(512),
            leaving: false,
            last_error: None,
        });
    }
    found
}

/// The identifier of the attachment that a device is of, as the kernel has it.
fn unrecorded_id(device: &Path) -> Option<(String, BackendKind)> {
    if let Some(name) = loop_file(device) {
        return Some((backend::id_in(&name)?.to_owned(), BackendKind::Loop));
    }
    let owner = ublk::owner(ublk::number_of(device)?)?;
    Some((format!("{:08x}", owner.tag), BackendKind::Ublk))
}

/// The process that serves an attachment, by its arguments, and the disk.
fn find_server(id: &str) -> Option<(u32, PathBuf)> {
    use std::os::unix::ffi::OsStringExt;
    for entry in std::fs::read_dir("/proc").ok()?.flatten() {
        let Some(pid) = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse().ok())
        else {
            continue;
        };
        let Ok(line) = std::fs::read(entry.path().join("cmdline")) else {
            continue;
        };
        let words: Vec<&[u8]> = line.split(|&byte| byte == 0).collect();
        if let [_, word, _, own, path, ..] = words[..]
            && word == server::WORD.as_bytes()
            && own == id.as_bytes()
        {
            let path = std::ffi::OsString::from_vec(path.to_vec());
            return Some((pid, path.into()));
        }
    }
    None
}

/// The attached disk that is meant by a path of a disk, a device or one of its partitions, a folder where it is mounted
/// or shown, or an identifier. Of several, one that is alive.
///
/// # Errors
/// [`ErrorKind::ItemNotFound`] if there is none; else as [`list`].
pub fn find(target: impl AsRef<OsStr>) -> Result<Attachment> {
    let target = target.as_ref();
    let path = Path::new(target);
    let real = usage::real_path(path).ok();
    let absolute = std::path::absolute(path).ok();
    let file = std::fs::metadata(path).ok().map(|m| (m.dev(), m.ino()));
    let is_meant = |attachment: &Attachment| {
        let same_path = |other: &Path| {
            other == path
                || [&real, &absolute]
                    .into_iter()
                    .flatten()
                    .any(|own| own == other)
        };
        let same_file = |other: &Path| {
            file.is_some() && std::fs::metadata(other).ok().map(|m| (m.dev(), m.ino())) == file
        };
        attachment.id.as_str() == target
            || same_path(&attachment.path)
            || same_path(&attachment.device)
            || attachment.folder.as_deref().is_some_and(same_path)
            || attachment.partitions.iter().any(|p| same_path(&p.device))
            || attachment.mounts.iter().any(|m| same_path(&m.folder))
            || (attachment.alive && same_file(&attachment.path))
    };
    let mut all = list()?;
    all.retain(is_meant);
    // Of several that are mounted on one folder, the one that can be seen.
    let is_hidden = |attachment: &Attachment| {
        let at = |mount: &&Mount| mount.folder == path || Some(&mount.folder) == real.as_ref();
        attachment
            .mounts
            .iter()
            .find(at)
            .is_some_and(|mount| !usage::is_on_top(mount))
    };
    all.sort_by_key(|attachment| (!attachment.alive, is_hidden(attachment)));
    all.into_iter().next().ok_or_else(|| {
        Error::new(ErrorKind::ItemNotFound, "it is not attached")
            .with_path(path)
            .with_hint("vhdkit list shows what is; a disk, a device, a folder or an identifier can be named")
    })
}

impl Attachment {
    /// True while its server runs now.
    pub fn is_alive(&self) -> bool {
        is_alive(self.pid)
    }

    /// The device and its partitions.
    fn devices(&self) -> Vec<PathBuf> {
        devices(&self.device, &self.partitions)
    }

    /// Detaches it and waits until the disk's file is closed. With `lazy` those who use it may go on, the call returns
    /// at once, and the disk is detached with its last user.
    ///
    /// # Errors
    /// [`ErrorKind::Busy`] if it is in use, naming by whom; what the last writes fail with.
    pub fn detach(&self, lazy: bool) -> Result<()> {
        self.end(lazy)
            .at_path(&self.path)
            .while_doing("cannot detach")
    }

    fn end(&self, lazy: bool) -> Result<()> {
        if !lazy {
            self.refuse_if_used()?;
        }
        if !self.alive {
            if self.folder.is_none() && lazy {
                for mount in self.mounts.iter().rev() {
                    unmount_own(mount, true)?;
                }
            }
            // What is left of it is cleared up by looking.
            return list().map(drop);
        }
        match self.ask(&Command::Detach { lazy }) {
            Err(e) if e.kind() == ErrorKind::ItemNotFound => {
                // Its socket is gone; a signal reaches it all the same.
                let pid = Pid::from_raw(self.pid.cast_signed()).ok_or(e)?;
                rustix::process::kill_process(pid, Signal::TERM).map_err(|e| {
                    Error::io("signal its server", e.into()).with_hint("run it with sudo")
                })?;
            }
            other => {
                other?;
            }
        }
        if lazy {
            return Ok(());
        }
        let deadline = Instant::now() + PATIENCE;
        while is_alive(self.pid) {
            if Instant::now() > deadline {
                return Err(Error::new(
                    ErrorKind::Busy,
                    "its server has not ended yet; it goes with the last user of the disk",
                ));
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        Ok(())
    }

    fn refuse_if_used(&self) -> Result<()> {
        let mut users: Vec<String> = self
            .mounts
            .iter()
            .map(|mount| {
                format!(
                    "{} is mounted at {}",
                    mount.device.display(),
                    mount.folder.display()
                )
            })
            .collect();
        let mut except = usage::children(self.pid);
        except.push(self.pid);
        let devices = self.devices();
        let others = || usage::other_users(&devices, &except);
        users.extend(if users.is_empty() {
            lasting(others)
        } else {
            others()
        });
        if users.is_empty() {
            return Ok(());
        }
        let hint = match self.mounts.first() {
            Some(mount) => format!(
                "unmount it first (umount {}), or let it go with its last user: vhdkit detach --lazy",
                mount.folder.display()
            ),
            None => "wait for them, or let it go with its last user: vhdkit detach --lazy".into(),
        };
        Err(Error::new(
            ErrorKind::Busy,
            format!("it is in use: {}", users.join(", ")),
        )
        .with_hint(hint))
    }

    /// Makes the disk larger while it is used; `size` is in bytes. Partitions and file systems stay as they are.
    ///
    /// # Errors
    /// As [`vhdkit::verbs::resize::resize`] with `expand_only`.
    pub fn expand(&self, size: u64) -> Result<()> {
        self.grow(size)
            .at_path(&self.path)
            .while_doing("cannot expand")
    }

    fn grow(&self, size: u64) -> Result<()> {
        self.ask(&Command::Resize { size })?;
        if self.backend == BackendKind::Loop {
            let device = std::fs::File::open(&self.device)
                .map_err(|e| Error::io("open", e).with_path(&self.device))?;
            sys::refresh_loop_size(&device).map_err(|e| {
                Error::io("refresh the size of the device", e.into()).with_path(&self.device)
            })?;
        }
        Ok(())
    }

    fn ask(&self, command: &Command) -> Result<()> {
        tell(&self.socket()?, command)?.wait()
    }

    /// Tells it to go with its last user, and to say when it has gone.
    pub(crate) fn tell_to_go(&self) -> Result<Told> {
        tell(&self.socket()?, &Command::Detach { lazy: false })
    }

    fn socket(&self) -> Result<PathBuf> {
        match record::existing_folder()? {
            Some(folder) => Ok(record::socket_path(&folder, &self.id)),
            None => Err(Error::new(
                ErrorKind::ItemNotFound,
                "its server cannot be reached",
            )),
        }
    }
}

/// A server that was told something and has not answered yet.
pub(crate) struct Told(Line);

fn ask(record: &Record, command: &Command) -> Result<()> {
    let socket = record::socket_path(&record::folder()?, &record.id);
    tell(&socket, command)?.wait()
}

fn tell(socket: &Path, command: &Command) -> Result<Told> {
    let failed = |e| Error::io("talk to the server", e);
    let stream = UnixStream::connect(socket)
        .map_err(|_| Error::new(ErrorKind::ItemNotFound, "its server cannot be reached"))?;
    stream.set_read_timeout(Some(PATIENCE)).map_err(failed)?;
    let mut line = Line::new(stream);
    line.send(command).map_err(failed)?;
    Ok(Told(line))
}

impl Told {
    pub(crate) fn wait(mut self) -> Result<()> {
        match self.0.receive() {
            Ok(Some(Answer::Failed(failure))) => Err(failure.into()),
            Ok(Some(_)) => Ok(()),
            Ok(None) => Err(Error::new(ErrorKind::Io, "its server ended without a word")),
            Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => Err(Error::new(
                ErrorKind::Busy,
                "its server has not done it within a minute: the disk is still in use, or the server is busy or stopped; \
                 it is done as soon as that is over",
            )),
            Err(e) => Err(Error::io("talk to the server", e)),
        }
    }
}

/// Those who use it, but for whoever only has a look: udev does at every new device, and who takes the next free loop device
/// may have this one open for a moment.
fn lasting(look: impl Fn() -> Vec<String>) -> Vec<String> {
    let mut users = look();
    for _ in 0..LOOKS {
        if users.is_empty() {
            break;
        }
        std::thread::sleep(LOOK);
        users = look();
    }
    users
}

/// True while there is such a process, and it is not only waiting to be buried.
fn is_alive(pid: u32) -> bool {
    let Ok(text) = std::fs::read_to_string(format!("/proc/{pid}/stat")) else {
        return false;
    };
    let state = text
        .rsplit_once(") ")
        .and_then(|(_, rest)| rest.chars().next());
    !matches!(state, Some('Z' | 'X') | None)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn who_only_has_a_look_at_a_device_does_not_use_it() {
        let seen = std::cell::Cell::new(0);
        let look = |last: u32| {
            seen.set(seen.get() + 1);
            if seen.get() > last {
                Vec::new()
            } else {
                vec![format!("process {}", seen.get())]
            }
        };
        assert!(lasting(|| look(2)).is_empty());
        assert_eq!(seen.take(), 3);
        assert_eq!(lasting(|| look(u32::MAX)).len(), 1);
        assert_eq!(seen.take(), 1 + LOOKS);
    }

    #[test]
    fn a_disk_whose_server_has_died_is_listed_once_more() {
        let base = tempfile::tempdir().unwrap();
        let folder = RuntimeFolder::make_at(&base.path().join("vhdkit")).unwrap();
        let record = Record {
            id: "1a2b3c4d".into(),
            path: "/disks/a.vhdx".into(),
            file: (1, 2),
            device: base.path().join("disk.img"),
            folder: Some(base.path().into()),
            backend: BackendKind::File,
            pid: 1,
            read_only: false,
            permanent: true,
            virtual_size: 4096,
            sector_size: 512,
            leaving: false,
            last_error: None,
        };
        let mut file = folder.create_entry("1a2b3c4d.attachment").unwrap();
        file.write_all(&serde_json::to_vec(&record).unwrap())
            .unwrap();
        file.lock().unwrap();
        for _ in 0..2 {
            let all = recorded(&folder).unwrap();
            assert!(all.len() == 1 && all[0].alive, "{all:?}");
        }
        file.unlock().unwrap();
        let all = recorded(&folder).unwrap();
        assert!(all.len() == 1 && !all[0].alive, "{all:?}");
        assert!(recorded(&folder).unwrap().is_empty());
        assert!(
            folder
                .entries("")
                .unwrap()
                .iter()
                .all(|name| name.starts_with('.'))
        );
    }
}
