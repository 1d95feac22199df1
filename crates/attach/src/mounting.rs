//! Attach and mount in one step, and back.

use std::path::{Path, PathBuf};
use std::process::Command;

use vhdkit::error::Context;
use vhdkit::{Error, ErrorKind, Result};

use crate::backend;
use crate::client::{AttachOptions, Attachment, Lifetime, find};
use crate::usage;

/// Attaches a disk and mounts one of its partitions (or the whole disk, if it has none) in a folder. It stays attached
/// until it is unmounted, by [`unmount`] or any other program.
///
/// With `partition` unset the disk must have no more than one. `read_only` of the options holds for the mount too.
///
/// # Errors
/// [`ErrorKind::InvalidParameter`] if it is not clear which partition is meant; what `mount` says; else as
/// [`AttachOptions::attach`].
pub fn mount(
    options: &AttachOptions,
    path: impl AsRef<Path>,
    folder: impl AsRef<Path>,
    partition: Option<u32>,
) -> Result<Attachment> {
    let path = path.as_ref();
    let folder = folder.as_ref();
    let folder = usage::real_folder(folder)
        .while_doing("cannot mount on")
        .map_err(|e| e.with_hint("name an empty folder"))?;
    let attached = options.clone().lifetime(Lifetime::Permanent).attach(path)?;
    let mounted = mount_one(attached.attachment(), &folder, partition)
        .at_path(path)
        .while_doing("cannot mount");
    // Either way it is to go with its last user: the mount, or nobody.
    match mounted {
        Ok(()) => attached.attachment().detach(true)?,
        Err(error) => {
            let _ = attached.attachment().detach(false);
            return Err(error);
        }
    }
    find(&attached.attachment().id)
}

fn mount_one(attachment: &Attachment, folder: &Path, partition: Option<u32>) -> Result<()> {
    let device = choose(attachment, partition)?;
    let mut command = Command::new("mount");
    if attachment.read_only {
        command.args(["-o", "ro"]);
    }
    let output = command
        .arg(&device)
        .arg(folder)
        .output()
        .map_err(|e| Error::io("start mount", e))?;
    if output.status.success() {
        return Ok(());
    }
    let words = String::from_utf8_lossy(&output.stderr);
    let words = words.lines().map(str::trim).filter(|line| !line.is_empty());
    let words: Vec<&str> = words.filter(|line| !line.contains("dmesg(1)")).collect();
    Err(Error::new(ErrorKind::Io, words.join("; ")).with_hint(
        "attach it with vhdkit attach and look at the device (blkid, fsck) if it should have a file system",
    ))
}

fn choose(attachment: &Attachment, partition: Option<u32>) -> Result<PathBuf> {
    let partitions = &attachment.partitions;
    let wrong = |reason: String, hint: &str| {
        Err(Error::new(ErrorKind::InvalidParameter, reason).with_hint(hint.to_owned()))
    };
    let sizes = || {
        let each = partitions
            .iter()
            .map(|p| format!("{} ({} MiB)", p.number, p.length >> 20));
        each.collect::<Vec<_>>().join(", ")
    };
    match (partition, partitions.as_slice()) {
        (Some(0), _) | (None, []) => Ok(attachment.device.clone()),
        (None, [only]) => Ok(only.device.clone()),
        (Some(number), _) => match partitions.iter().find(|p| p.number == number) {
            Some(partition) => Ok(partition.device.clone()),
            None if partitions.is_empty() => wrong(
                "it has no partitions".into(),
                "leave --partition out: the whole disk is then mounted",
            ),
            None => wrong(
                format!("it has no partition {number}, but {}", sizes()),
                "name one of these with --partition",
            ),
        },
        (None, _) => wrong(
            format!("it has several partitions: {}", sizes()),
            "name one with --partition",
        ),
    }
}

/// Unmounts a file system of an attached disk, and never another that was mounted over it.
pub(crate) fn unmount_own(mount: &usage::Mount, lazy: bool) -> Result<()> {
    if !usage::is_on_top(mount) {
        return Err(Error::new(
            ErrorKind::Busy,
            format!(
                "something else is mounted over {}, where {} is mounted",
                mount.folder.display(),
                mount.device.display()
            ),
        )
        .with_path(&mount.folder)
        .while_doing("cannot unmount")
        .with_hint(format!(
            "unmount that first: umount {}",
            mount.folder.display()
        )));
    }
    backend::unmount(&mount.folder, lazy)
}

/// Unmounts all that is mounted of an attached disk, detaches it, and waits until its file is closed.
///
/// # Errors
/// [`ErrorKind::Busy`] if it is in use; else as [`Attachment::detach`].
pub fn unmount(attachment: &Attachment) -> Result<()> {
    // A disk that was mounted in one step goes by itself meanwhile; what its last writes fail with is to be heard.
    let going = attachment.leaving.then(|| attachment.tell_to_go());
    for mount in attachment.mounts.iter().rev() {
        unmount_own(mount, false)?;
    }
    if let Some(Ok(going)) = going {
        return going
            .wait()
            .at_path(&attachment.path)
            .while_doing("cannot detach");
    }
    let now = match find(&attachment.id) {
        Ok(now) => now,
        Err(e) if e.kind() == ErrorKind::ItemNotFound => return Ok(()),
        Err(e) => return Err(e),
    };
    match now.detach(false) {
        Err(e) if e.kind() == ErrorKind::Io && find(&attachment.id).is_err() => Ok(()),
        other => other,
    }
}
