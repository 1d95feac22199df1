//! Progress that any process of the same user may ask for, and requests to stop from there.
//!
//! A published operation has a file of its own, its entry, in the user's runtime folder (`$XDG_RUNTIME_DIR/vhdkit`; see
//! `runtime.rs`). The work itself never touches it: a thread looks at the operation now and then and writes what changed.
//!
//! 1. The owner holds an exclusive lock on the entry from before its first byte until after its last. A lock that is free
//!    means that the owner is gone, however it ended; whoever notices takes the entry away: whoever lists operations, and
//!    every publisher when it begins. No process number is trusted.
//! 2. An entry's name is never used twice, so taking away a dead entry cannot hit a living one.
//! 3. The first state is there when [`Observer::publish`] returns. When the operation is over the final state is
//!    written, and only then the entry loses its name: it never shows up as pending any more, but whoever has it open
//!    ([`PublishedOperation`]) still reads how it ended.
//! 4. A request to stop is one byte in the entry, written by anyone and never taken back.
//!
//! A crashed machine leaves nothing that matters: the folder is on memory, or its entries are found dead.

mod record;

use std::fs::{File, TryLockError};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::{Builder, JoinHandle};
use std::time::{Duration, SystemTime};

use uuid::Uuid;

use super::{Observer, Progress, Status};
use crate::error::{Context, Error, ErrorKind, Result};
use crate::runtime::RuntimeFolder;
use record::{ENTRY_LENGTH, Origin, REQUEST_OFFSET};

/// What the names of entries end with.
const EXTENSION: &str = ".operation";
/// Time between two looks at a published operation: how old a state can be, and how long a request to stop can take to
/// be noticed.
const INTERVAL: Duration = Duration::from_millis(50);
/// How often a name that a passing reader took for dead is replaced. One reader can do it once.
const ATTEMPTS: usize = 64;

/// What an operation counts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Unit {
    /// Bytes: a size and a rate make sense.
    Bytes,
    /// Bytes of which nobody knows how many will come: a size and a rate make sense, the proportion does not.
    BytesSoFar,
    /// Anything else: only the proportion makes sense.
    Steps,
}

/// What an operation is published as being about.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Subject {
    path: PathBuf,
    other: Option<PathBuf>,
    unit: Unit,
}

impl Subject {
    /// The disk that is worked on: the one that changes or is made, if there is one. It counts steps until said
    /// otherwise.
    pub fn disk(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            other: None,
            unit: Unit::Steps,
        }
    }

    /// A second disk that takes part: the source of a conversion, the other one of a comparison, the parent of a merge.
    #[must_use]
    pub fn and(mut self, other: impl Into<PathBuf>) -> Self {
        self.other = Some(other.into());
        self
    }

    /// What the operation counts.
    #[must_use]
    pub fn counted_in(mut self, unit: Unit) -> Self {
        self.unit = unit;
        self
    }

    /// What the operation counts.
    pub fn unit(&self) -> Unit {
        self.unit
    }

    /// Both paths as every process would name them.
    fn canonical(&self) -> Self {
        Self {
            path: canonical(&self.path),
            other: self.other.as_deref().map(canonical),
            unit: self.unit,
        }
    }
}

/// The same path for everybody, whether the file is there already or not.
fn canonical(path: &Path) -> PathBuf {
    if let Ok(whole) = path.canonicalize() {
        return whole;
    }
    let absolute = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    match (
        absolute.parent().map(Path::canonicalize),
        absolute.file_name(),
    ) {
        (Some(Ok(folder)), Some(name)) => folder.join(name),
        _ => absolute,
    }
}

/// Keeps an operation published; dropping it takes the entry away.
///
/// The entry goes by itself when the operation is over; dropping this then, or after [`Operation::wait`], makes sure
/// that it is gone and waits for nothing but that.
///
/// [`Operation::wait`]: super::Operation::wait
#[must_use = "dropping it takes the entry away"]
pub struct Published {
    /// Dropped to end the publisher.
    stop: Option<Sender<()>>,
    publisher: Option<JoinHandle<()>>,
}

impl Observer {
    /// Shows the operation to all processes of this user, and takes their requests to stop, until it is over or the
    /// result is dropped.
    ///
    /// The operation itself is not touched: a caller that publishes for others' sake ignores a failure.
    ///
    /// # Errors
    /// [`ErrorKind::AccessDenied`] if the runtime folder cannot be believed (another user's, open to others, a link);
    /// [`ErrorKind::NotSupported`] if a path is too long; else what making the folder or the file failed with.
    pub fn publish(&self, subject: &Subject) -> Result<Published> {
        RuntimeFolder::make()
            .and_then(|folder| self.publish_in(&folder, subject))
            .while_doing("cannot publish the operation")
    }

    fn publish_in(&self, folder: &RuntimeFolder, subject: &Subject) -> Result<Published> {
        let origin = Origin {
            verb: self.name().to_owned(),
            subject: subject.canonical(),
            pid: std::process::id(),
            started: SystemTime::now(),
        };
        let entry = Entry::make(folder, &origin, self.progress())?;
        let (stop, stopped) = channel();
        let observer = self.clone();
        let publisher = Builder::new()
            .name("publisher".into())
            .spawn(move || entry.follow(&observer, &stopped))
            .map_err(|e| Error::io("start of a thread", e))?;
        Ok(Published {
            stop: Some(stop),
            publisher: Some(publisher),
        })
    }
}

impl Drop for Published {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(publisher) = self.publisher.take() {
            // It does not panic; if it did, there would be nothing to do about it here.
            let _ = publisher.join();
        }
    }
}

/// The owner's side of an entry. The lock is the file's, and goes with it.
struct Entry {
    folder: RuntimeFolder,
    name: String,
    file: File,
    sequence: u64,
    shown: Progress,
}

impl Entry {
    fn make(folder: &RuntimeFolder, origin: &Origin, progress: Progress) -> Result<Self> {
        let bytes = record::encode(origin, progress)?;
        let own_folder = folder.duplicate()?;
        for _ in 0..ATTEMPTS {
            let name = format!("{}{EXTENSION}", Uuid::new_v4().simple());
            let file = folder.create_entry(&name)?;
            match fill(&file, &bytes) {
                Ok(true) => {
                    return Ok(Self {
                        folder: own_folder,
                        name,
                        file,
                        sequence: 0,
                        shown: progress,
                    });
                }
                Ok(false) => folder.remove_entry(&name),
                Err(error) => {
                    folder.remove_entry(&name);
                    return Err(error);
                }
            }
        }
        Err(Error::new(
            ErrorKind::Busy,
            "other processes kept taking the new entry away",
        ))
    }

    /// The publisher's thread: writes what changed and listens for requests, until it is over or nobody wants it.
    fn follow(mut self, observer: &Observer, stopped: &Receiver<()>) {
        // Here it delays nobody.
        let _ = living(&self.folder);
        let mut asked = false;
        loop {
            let stop = !matches!(
                stopped.recv_timeout(INTERVAL),
                Err(RecvTimeoutError::Timeout)
            );
            let progress = observer.progress();
            self.show(progress);
            if stop || progress.status != Status::Pending {
                return;
            }
            if !asked && is_requested(&self.file) {
                asked = true;
                observer.cancel();
            }
        }
    }

    fn show(&mut self, progress: Progress) {
        if progress == self.shown {
            return;
        }
        let (offset, bytes) = record::encode_state(self.sequence + 1, progress);
        // One that could not be written is tried again at the next look, into the same slot.
        if self.file.write_all_at(&bytes, offset).is_ok() {
            self.sequence += 1;
            self.shown = progress;
        }
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.folder.remove_entry(&self.name);
    }
}

/// Locks and fills a new entry; false if a reader that finds it without an owner has taken it away, or is about to.
fn fill(file: &File, bytes: &[u8]) -> Result<bool> {
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return Ok(false),
        Err(TryLockError::Error(e)) => return Err(Error::io("lock", e)),
    }
    file.write_all_at(bytes, 0)
        .and_then(|()| file.metadata())
        .map(|metadata| metadata.nlink() > 0)
        .map_err(|e| Error::io("write", e))
}

fn is_requested(file: &File) -> bool {
    let mut byte = [0];
    file.read_exact_at(&mut byte, REQUEST_OFFSET).is_ok() && byte != [0]
}

/// An operation that some process of this user has published, seen from any process.
///
/// It holds the entry open, so that the end is seen even if it comes between two looks.
#[derive(Debug)]
pub struct PublishedOperation {
    id: String,
    file: File,
    origin: Origin,
    progress: Progress,
}

/// Whether a published operation is still there.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[expect(clippy::exhaustive_enums, reason = "there is no fourth way")]
pub enum Standing {
    /// It is running.
    Running,
    /// It is over; [`PublishedOperation::progress`] has the final status.
    Over,
    /// Its process ended without a word (it was killed), or stopped publishing it.
    Lost,
}

/// All operations that processes of this user have published and that are running, the oldest first.
///
/// Other users' are never among them. Entries whose owners are gone are taken away on the way.
///
/// # Errors
/// [`ErrorKind::AccessDenied`] if the runtime folder cannot be believed; else what reading it failed with.
pub fn pending() -> Result<Vec<PublishedOperation>> {
    match RuntimeFolder::existing().while_doing("cannot list operations")? {
        Some(folder) => pending_in(&folder),
        None => Ok(Vec::new()),
    }
}

/// As [`pending`], only those on the disk `path`: as what they work on or, if there is none, as their other disk.
///
/// # Errors
/// As [`pending`].
pub fn pending_on(path: &Path) -> Result<Vec<PublishedOperation>> {
    Ok(only_on(pending()?, path))
}

/// Asks all operations that [`pending_on`] gives to stop, and returns them. They end as [`ErrorKind::Aborted`], if they
/// are not past their last chance to stop.
///
/// # Errors
/// [`ErrorKind::ItemNotFound`] if there is none; else as [`pending`].
pub fn request_cancel(path: &Path) -> Result<Vec<PublishedOperation>> {
    cancel_all(pending_on(path)?, path)
}

fn cancel_all(found: Vec<PublishedOperation>, path: &Path) -> Result<Vec<PublishedOperation>> {
    if found.is_empty() {
        return Err(
            Error::new(ErrorKind::ItemNotFound, "no operation is running on it")
                .with_path(path)
                .while_doing("cannot cancel")
                .with_hint("vhdkit progress lists the operations of this user that are running"),
        );
    }
    for operation in &found {
        operation.request_cancel()?;
    }
    Ok(found)
}

fn only_on(mut all: Vec<PublishedOperation>, path: &Path) -> Vec<PublishedOperation> {
    let path = canonical(path);
    if all.iter().any(|o| o.path() == path) {
        all.retain(|o| o.path() == path);
    } else {
        all.retain(|o| o.other() == Some(&path));
    }
    all
}

fn pending_in(folder: &RuntimeFolder) -> Result<Vec<PublishedOperation>> {
    let mut found = Vec::new();
    for (name, file) in living(folder)? {
        // What is locked and not an entry is one that is just being written, or another version's.
        if let Some((origin, progress)) = read(&file)
            && progress.status == Status::Pending
        {
            found.push(PublishedOperation {
                id: name,
                file,
                origin,
                progress,
            });
        }
    }
    found.sort_by(|a, b| {
        let key = |o: &PublishedOperation| (o.origin.started, o.origin.pid);
        key(a)
            .cmp(&key(b))
            .then_with(|| a.origin.subject.path.cmp(&b.origin.subject.path))
    });
    Ok(found)
}

/// All entries that have an owner; the others are taken away.
fn living(folder: &RuntimeFolder) -> Result<Vec<(String, File)>> {
    let mut living = Vec::new();
    for name in folder.entries(EXTENSION)? {
        match folder.open_entry(&name) {
            Some(file) if is_dead(&file) => folder.remove_entry(&name),
            Some(file) => living.push((name, file)),
            None => {}
        }
    }
    Ok(living)
}

/// True if nobody holds the entry's lock. A shared lock is enough to see it, so that two readers do not take each other
/// for the owner; it goes with the file.
fn is_dead(file: &File) -> bool {
    file.try_lock_shared().is_ok()
}

fn read(file: &File) -> Option<(Origin, Progress)> {
    let mut bytes = vec![0; ENTRY_LENGTH];
    // A writer changes one slot in its time; that both are half written for one reader takes two writes during one read.
    for _ in 0..100 {
        file.read_exact_at(&mut bytes, 0).ok()?;
        if let Some(whole) = record::decode(&bytes) {
            return Some(whole);
        }
        std::thread::yield_now();
    }
    None
}

impl PublishedOperation {
    /// A text that no other operation has or ever will have.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// What is being done, in one word: the operation's name.
    pub fn name(&self) -> &str {
        &self.origin.verb
    }

    /// The disk that is worked on, absolute, links resolved.
    pub fn path(&self) -> &Path {
        &self.origin.subject.path
    }

    /// The second disk that takes part.
    pub fn other(&self) -> Option<&Path> {
        self.origin.subject.other.as_deref()
    }

    /// What it counts.
    pub fn unit(&self) -> Unit {
        self.origin.subject.unit
    }

    /// The process that runs it, as that process knows itself (in a container, by the container's numbers).
    pub fn pid(&self) -> u32 {
        self.origin.pid
    }

    /// When it was published, by the system's clock; to the millisecond.
    pub fn started(&self) -> SystemTime {
        self.origin.started
    }

    /// How far it was when last looked at.
    pub fn progress(&self) -> Progress {
        self.progress
    }

    /// True if somebody asked it to stop.
    pub fn is_cancel_requested(&self) -> bool {
        is_requested(&self.file)
    }

    /// Looks again.
    pub fn refresh(&mut self) -> Standing {
        // The lock first: what a dead owner wrote is final.
        let dead = is_dead(&self.file);
        if let Some((_, progress)) = read(&self.file) {
            self.progress = progress;
        }
        match self.progress.status {
            Status::Pending if dead => Standing::Lost,
            Status::Pending => Standing::Running,
            _ => Standing::Over,
        }
    }

    /// Asks it to stop. Its process notices within a tenth of a second, and stops where its files are consistent.
    ///
    /// # Errors
    /// What writing the request failed with.
    pub fn request_cancel(&self) -> Result<()> {
        self.file
            .write_all_at(&[1], REQUEST_OFFSET)
            .map_err(|e| Error::io("write", e).with_path(self.path()))
            .while_doing("cannot ask the operation to stop on")
    }
}

#[cfg(all(test, not(loom)))]
mod tests;
