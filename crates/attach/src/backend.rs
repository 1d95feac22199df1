//! How a disk becomes visible: the one place that knows which ways there are, and which one is taken.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::UnmountFlags;
use serde::{Deserialize, Serialize};
use vhdkit::{Error, ErrorKind, Result, VirtualDisk};

use crate::fuse::{self, Notice, Watcher};
use crate::holder::{Holder, Reaper};
use crate::{partitions, ublk, usage};

/// Name of the file that `attach --file` shows.
pub(crate) const FILE_NAME: &str = "disk.img";

/// How often a device that is to go is looked at for whether somebody uses it.
const UNUSED_CHECK: std::time::Duration = std::time::Duration::from_millis(100);

/// A way to make a disk visible.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Debug)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum BackendKind {
    /// A loop device over a file of our own file system (FUSE).
    Loop,
    /// A device of ublk.
    Ublk,
    /// A file in a folder (FUSE), without a device.
    File,
}

impl BackendKind {
    /// Its name in words for programs: `loop`, `ublk`, `file`.
    pub fn name(self) -> &'static str {
        match self {
            BackendKind::Loop => "loop",
            BackendKind::Ublk => "ublk",
            BackendKind::File => "file",
        }
    }
}

/// What is to be shown.
pub(crate) struct Plan<'a> {
    pub(crate) disk: &'a Arc<VirtualDisk>,
    /// Absolute; for people.
    pub(crate) path: &'a Path,
    pub(crate) id: &'a str,
    /// Show a file in this folder instead of a device.
    pub(crate) folder: Option<&'a Path>,
    /// Hears of everything that fails.
    pub(crate) watcher: Watcher,
}

/// A disk that can be seen.
pub(crate) enum Backend {
    Loop(Holder),
    // Without a reaper, where none could be started, the next look at what is attached clears up.
    Ublk {
        device: Arc<ublk::Device>,
        _reaper: Option<Reaper>,
    },
    File {
        folder: PathBuf,
        _reaper: Option<Reaper>,
    },
}

impl Backend {
    /// Makes the disk visible. `gone` is called, on another thread, when it no longer is.
    pub(crate) fn start(plan: Plan<'_>, gone: impl FnOnce() + Send + 'static) -> Result<Self> {
        let (backend, serving) = if let Some(folder) = plan.folder {
            let disk = plan.disk.clone();
            let serving = fuse::serve_in(disk, FILE_NAME, folder, plan.watcher)?;
            let reaper = Reaper::of_folder(folder, plan.id).ok();
            let backend = Backend::File {
                folder: folder.to_owned(),
                _reaper: reaper,
            };
            (backend, serving)
        } else if let Some(device) = start_ublk(&plan) {
            let device = Arc::new(device);
            let served = device.clone();
            thread::Builder::new()
                .name("end".into())
                .spawn(move || {
                    let _ = served.wait();
                    // What is left of it goes before the process does.
                    let _ = served.stop();
                    gone();
                })
                .map_err(|e| Error::io("start a thread", e))?;
            let reaper = Reaper::of_ublk(device.number(), plan.id).ok();
            return Ok(Backend::Ublk {
                device,
                _reaper: reaper,
            });
        } else {
            let sector_size = plan.disk.info().logical_sector_size;
            let read_only = !plan.disk.is_writable();
            let name = file_name(plan.id, plan.path);
            let (serving, file) = fuse::serve_detached(plan.disk.clone(), &name, plan.watcher)?;
            let holder = Holder::start(file, plan.path, sector_size, read_only)?;
            (Backend::Loop(holder), serving)
        };
        thread::Builder::new()
            .name("end".into())
            .spawn(move || {
                // However it ended, nobody can see the disk any more.
                let _ = serving.wait();
                gone();
            })
            .map_err(|e| Error::io("start a thread", e))?;
        Ok(backend)
    }

    pub(crate) fn kind(&self) -> BackendKind {
        match self {
            Backend::Loop(_) => BackendKind::Loop,
            Backend::Ublk { .. } => BackendKind::Ublk,
            Backend::File { .. } => BackendKind::File,
        }
    }

    /// The device, or the file.
    pub(crate) fn device(&self) -> PathBuf {
        match self {
            Backend::Loop(holder) => holder.device().to_owned(),
            Backend::Ublk { device, .. } => device.device_path().to_owned(),
            Backend::File { folder, .. } => folder.join(FILE_NAME),
        }
    }

    /// Fails if the disk would become larger, but not what shows it.
    pub(crate) fn check_can_grow(&self) -> Result<()> {
        match self {
            Backend::Ublk { device, .. } if !device.can_grow() => Err(Error::new(
                ErrorKind::NotSupported,
                "its device cannot get another size while it is used: that takes Linux 6.16",
            )
            .with_path(device.device_path())
            .with_hint("detach the disk, expand it, and attach it again")),
            _ => Ok(()),
        }
    }

    /// The disk has become larger. A loop device is told by whoever asked for it.
    pub(crate) fn grow(&self, size: u64) -> Result<()> {
        match self {
            Backend::Ublk { device, .. } => device.grow(size),
            _ => Ok(()),
        }
    }

    /// The table may have changed: the kernel learns of its partitions.
    pub(crate) fn refresh_partitions(&mut self) {
        match self {
            Backend::Loop(holder) => holder.refresh_partitions(),
            // The kernel sees what is written to it, and who writes partition tables tells it.
            Backend::Ublk { .. } | Backend::File { .. } => {}
        }
    }

    /// Takes the disk out of sight: a device at once or, if it is in use, with its last user. A folder that is in use
    /// only if `lazy`; its users then go on.
    pub(crate) fn release(&mut self, lazy: bool) -> Result<()> {
        match self {
            Backend::Loop(holder) => {
                holder.release();
                Ok(())
            }
            Backend::Ublk { device, .. } => {
                let device = device.clone();
                thread::Builder::new()
                    .name("release".into())
                    .spawn(move || stop_when_unused(&device))
                    .map_err(|e| Error::io("start a thread", e))?;
                Ok(())
            }
            Backend::File { folder, .. } => unmount(folder, lazy),
        }
    }
}

/// A device of ublk, where the kernel has that and can make one; else a loop device will do.
fn start_ublk(plan: &Plan<'_>) -> Option<ublk::Device> {
    if !ublk::available() {
        return None;
    }
    let watcher = plan.watcher.clone();
    let options = ublk::Options {
        read_only: !plan.disk.is_writable(),
        tag: tag(plan.id)?,
        watcher: Arc::new(move |error| watcher(Notice::Trouble(error))),
    };
    ublk::Device::start(plan.disk.clone(), options).ok()
}

/// The identifier of an attachment as a number, by which a device of ublk is known again.
pub(crate) fn tag(id: &str) -> Option<u32> {
    u32::from_str_radix(id, 16).ok()
}

/// Stops a device, at once or when its last user has gone: stopping it would be the end of a file system on it.
fn stop_when_unused(device: &ublk::Device) {
    let path = device.device_path();
    let own = std::process::id();
    loop {
        // It cannot be opened so as long as it or a partition is mounted, used for swap or by another device; and as
        // long as we have it, nobody can begin to. This neither reads nor writes, so it waits for nobody.
        let alone = rustix::fs::open(
            path,
            OFlags::RDONLY | OFlags::EXCL | OFlags::CLOEXEC,
            Mode::empty(),
        );
        let is_used = match &alone {
            Ok(_) => {
                let partitions = partitions::known(path).into_iter().map(|p| p.device);
                let devices: Vec<PathBuf> =
                    std::iter::once(path.to_owned()).chain(partitions).collect();
                !usage::other_users(&devices, &[own]).is_empty()
            }
            Err(e) => *e == Errno::BUSY,
        };
        if !is_used {
            // What went wrong the kernel has told those who used it, and us.
            let _ = device.stop();
            return;
        }
        drop(alone);
        thread::sleep(UNUSED_CHECK);
    }
}

/// What the file under a loop device is called: by it the device is known again.
fn file_name(id: &str, path: &Path) -> String {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let plain = |letter: char| {
        if letter.is_control() || letter == '/' {
            '_'
        } else {
            letter
        }
    };
    let name: String = name.chars().map(plain).take(60).collect();
    format!("{}{name}", prefix(id))
}

/// What that name starts with.
pub(crate) fn prefix(id: &str) -> String {
    format!("vhdkit-{id}-")
}

/// The identifier in such a name.
pub(crate) fn id_in(name: &str) -> Option<&str> {
    let (id, _) = name.strip_prefix("vhdkit-")?.split_once('-')?;
    Some(id)
}

/// Unmounts a folder; `fusermount3` does it for those who are not root.
pub(crate) fn unmount(folder: &Path, lazy: bool) -> Result<()> {
    let flags = if lazy {
        UnmountFlags::DETACH
    } else {
        UnmountFlags::empty()
    };
    let busy = || {
        let reason = match usage::visitors(folder) {
            users if users.is_empty() => "it is in use".to_owned(),
            users => format!("it is in use: {}", users.join(", ")),
        };
        Error::new(ErrorKind::Busy, reason)
            .with_path(folder)
            .while_doing("cannot unmount")
            .with_hint("wait for them, or let it go with its last user: vhdkit detach --lazy")
    };
    match rustix::mount::unmount(folder, flags) {
        // EINVAL: it is not mounted.
        Ok(()) | Err(Errno::INVAL | Errno::NOENT) => Ok(()),
        Err(Errno::BUSY) => Err(busy()),
        Err(Errno::PERM) => {
            let run = |program: &&str| {
                let mut command = std::process::Command::new(program);
                command.arg("-u").args(lazy.then_some("-z"));
                command.arg("--").arg(folder).output().ok()
            };
            // Whoever started the server may have had an odd $PATH.
            let Some(output) = ["fusermount3", "/usr/bin/fusermount3"].iter().find_map(run) else {
                return Err(Error::new(
                    ErrorKind::NotFound,
                    "the program fusermount3 was not found, which unmounts for those who are not root",
                )
                .with_path(folder)
                .with_hint("install it (Debian: package fuse3), or unmount the folder with sudo umount"));
            };
            let words = String::from_utf8_lossy(&output.stderr);
            match output.status.success() {
                true => Ok(()),
                false if words.contains("busy") => Err(busy()),
                false => Err(Error::new(ErrorKind::Io, words.trim_end()).with_path(folder)),
            }
        }
        Err(e) => Err(Error::io("unmount", e.into()).with_path(folder)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_under_a_device_names_the_attachment_and_the_disk() {
        let name = file_name("1a2b3c4d", Path::new("/disks/my\n disk-1.vhdx"));
        assert_eq!(name, "vhdkit-1a2b3c4d-my_ disk-1.vhdx");
        assert_eq!(id_in(&name), Some("1a2b3c4d"));
        assert!(name.starts_with(&prefix("1a2b3c4d")));
        assert_eq!(id_in("disk.img"), None);
    }
}
