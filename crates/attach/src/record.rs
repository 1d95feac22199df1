//! What is written down about an attachment: a file in the runtime folder, locked by its server for as long as that
//! lives.
//!
//! The lock says who is alive, the kernel says which device there is; what is written here only ties the two to a disk.

use std::fs::{File, TryLockError};
use std::io::{Read, Seek, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use vhdkit::runtime::RuntimeFolder;
use vhdkit::{Error, ErrorKind, Result};

use crate::backend::BackendKind;
use crate::paths;

const EXTENSION: &str = ".attachment";
const SOCKET: &str = ".socket";
/// Records are much shorter.
const LONGEST: u64 = 1 << 20;
/// How often an entry is made again that a passing reader took for dead. One reader can do it once.
const ATTEMPTS: usize = 64;

/// See the module.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub(crate) struct Record {
    pub(crate) id: String,
    /// The disk, absolute.
    #[serde(with = "paths::one")]
    pub(crate) path: PathBuf,
    /// Device and inode of the disk's file: its name may come to mean another.
    pub(crate) file: (u64, u64),
    /// The block device; with `folder` the file in it.
    #[serde(with = "paths::one")]
    pub(crate) device: PathBuf,
    /// Where the file was mounted, instead of a device.
    #[serde(with = "paths::option")]
    pub(crate) folder: Option<PathBuf>,
    pub(crate) backend: BackendKind,
    pub(crate) pid: u32,
    pub(crate) read_only: bool,
    pub(crate) permanent: bool,
    pub(crate) virtual_size: u64,
    pub(crate) sector_size: u32,
    /// It goes as soon as nobody uses it any more.
    pub(crate) leaving: bool,
    /// The last thing that went wrong while it was used.
    pub(crate) last_error: Option<String>,
}

/// Where records are: `/run/vhdkit` for root, whose devices are everybody's, and the user's own folder otherwise.
pub(crate) fn folder() -> Result<RuntimeFolder> {
    match system_folder() {
        Some(path) => RuntimeFolder::make_at(path),
        None => RuntimeFolder::make(),
    }
}

/// The same; `None` if nothing was ever attached.
pub(crate) fn existing_folder() -> Result<Option<RuntimeFolder>> {
    match system_folder() {
        Some(path) => RuntimeFolder::existing_at(path),
        None => RuntimeFolder::existing(),
    }
}

fn system_folder() -> Option<&'static Path> {
    let is_root = rustix::process::geteuid().is_root();
    (is_root && Path::new("/run").is_dir()).then(|| Path::new("/run/vhdkit"))
}

/// A record in the folder, taken away when this is dropped.
pub(crate) struct Entry {
    folder: RuntimeFolder,
    file: File,
    id: String,
}

impl Entry {
    /// Makes an entry that is alive.
    pub(crate) fn make(folder: RuntimeFolder, record: &Record) -> Result<Self> {
        let name = format!("{}{EXTENSION}", record.id);
        for _ in 0..ATTEMPTS {
            let file = folder.create_entry(&name)?;
            let failed = |action: &str, e| Error::io(action, e).with_path(folder.path());
            file.lock().map_err(|e| failed("lock", e))?;
            let links = file.metadata().map_err(|e| failed("read", e))?.nlink();
            if links == 0 {
                // Somebody saw it between the two calls and took it for dead.
                continue;
            }
            let mut entry = Self {
                file,
                id: record.id.clone(),
                folder,
            };
            entry.write(record)?;
            return Ok(entry);
        }
        Err(Error::new(
            ErrorKind::Busy,
            "other processes kept taking the new entry away",
        )
        .with_path(folder.path()))
    }

    /// Writes what changed.
    pub(crate) fn write(&mut self, record: &Record) -> Result<()> {
        let failed = |e| Error::io("write", e).with_path(self.folder.path());
        let text = serde_json::to_vec(record)
            .map_err(std::io::Error::from)
            .map_err(failed)?;
        // A reader that meets the middle of this finds no whole record and looks again.
        self.file.rewind().map_err(failed)?;
        self.file.set_len(0).map_err(failed)?;
        self.file.write_all(&text).map_err(failed)
    }

    /// Where its server is to listen.
    pub(crate) fn socket(&self) -> PathBuf {
        socket_path(&self.folder, &self.id)
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        remove(&self.folder, &self.id);
    }
}

/// Takes away all that is written about an attachment.
pub(crate) fn remove(folder: &RuntimeFolder, id: &str) {
    folder.remove_entry(&format!("{id}{SOCKET}"));
    folder.remove_entry(&format!("{id}{EXTENSION}"));
}

/// Where the server of an attachment listens.
pub(crate) fn socket_path(folder: &RuntimeFolder, id: &str) -> PathBuf {
    folder.path().join(format!("{id}{SOCKET}"))
}

/// All records, each with whether its server is alive. What is no record and belongs to nobody is taken away.
pub(crate) fn all(folder: &RuntimeFolder) -> Result<Vec<(Record, bool)>> {
    let mut found = Vec::new();
    for name in folder.entries(EXTENSION)? {
        let id = name.strip_suffix(EXTENSION).unwrap_or(&name);
        let Some(mut file) = folder.open_entry(&name) else {
            continue;
        };
        let record = read(&mut file).or_else(|| {
            // It may just be written.
            std::thread::sleep(std::time::Duration::from_millis(20));
            read(&mut file)
        });
        let alive = matches!(file.try_lock_shared(), Err(TryLockError::WouldBlock));
        match record {
            Some(record) if record.id == id => found.push((record, alive)),
            _ if alive => {}
            _ => remove(folder, id),
        }
    }
    found.sort_by(|(a, _), (b, _)| a.device.cmp(&b.device).then(a.id.cmp(&b.id)));
    Ok(found)
}

fn read(file: &mut File) -> Option<Record> {
    let mut text = Vec::new();
    file.rewind().ok()?;
    Read::by_ref(file)
        .take(LONGEST)
        .read_to_end(&mut text)
        .ok()?;
    serde_json::from_slice(&text).ok()
}
