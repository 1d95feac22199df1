//! A new file that appears under its name only when it is complete.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{AtFlags, CWD, OFlags, RenameFlags};
use rustix::io::Errno;

use super::{Access, FileStorage, Storage};
use crate::error::{Error, ErrorKind, Result};

/// A file being made. Until [`NewFile::publish`] it has no name where the file system can do that (`O_TMPFILE`), so
/// that even a killed process leaves nothing behind; elsewhere it has a temporary name beside the target, removed on
/// drop.
pub struct NewFile {
    storage: Arc<FileStorage>,
    target: PathBuf,
    /// The temporary name, if the file has one.
    temporary: Option<PathBuf>,
    overwrite: bool,
    replaced: Replaced,
}

/// The file that is to be replaced. It is kept from others until it is: what they wrote to it would be lost.
enum Replaced {
    Nothing,
    /// Open for writing here.
    Kept(FileStorage),
    /// Open for writing elsewhere in this process.
    CallersOwn,
}

impl NewFile {
    /// Starts a file that will be called `target`.
    ///
    /// # Errors
    /// [`ErrorKind::AlreadyExists`] if the target exists and `overwrite` is false; [`ErrorKind::SharingViolation`] if
    /// it is to be replaced while somebody has it open; what opening a file can fail with.
    pub fn create(target: &Path, overwrite: bool) -> Result<Self> {
        if target.file_name().is_none() {
            return Err(
                Error::new(ErrorKind::InvalidParameter, "it has no file name").with_path(target),
            );
        }
        Self::start(target, overwrite, false)
    }

    /// Starts a file that will take the place of `target`, which the caller has open for writing, so that nobody else
    /// uses it.
    ///
    /// # Errors
    /// As for [`NewFile::create`].
    pub fn replacing(target: &Path) -> Result<Self> {
        Self::start(target, true, true)
    }

    fn start(target: &Path, overwrite: bool, is_mine: bool) -> Result<Self> {
        let resolved = resolve_link(target)?;
        let target = resolved.as_path();
        let replaced = match std::fs::metadata(target) {
            Ok(_) if !overwrite => return Err(exists(target)),
            // Somebody reading or writing the old file must not be surprised by a new one.
            Ok(m) if m.is_file() && is_mine => Replaced::CallersOwn,
            Ok(m) if m.is_file() => Replaced::Kept(old_file(target)?),
            Ok(m) => {
                let what = if m.is_dir() { "a folder" } else { "not a file" };
                return Err(
                    Error::new(ErrorKind::AlreadyExists, format!("it is {what}")).with_path(target),
                );
            }
            // Before the work is done, not when it is to get its name.
            Err(e) if e.kind() == io::ErrorKind::InvalidFilename => {
                return Err(Error::io("create", e)
                    .with_path(target)
                    .with_hint("choose a shorter name"));
            }
            Err(_) => Replaced::Nothing,
        };
        let (file, temporary) = match unnamed(folder_of(target)) {
            Ok(file) => (file, None),
            Err(e) if no_unnamed_files(&e) => {
                let (file, name) = named(target)?;
                (file, Some(name))
            }
            Err(e) => return Err(folder_error(target, e)),
        };
        let storage = match FileStorage::from_file(file, target, Access::ReadWrite) {
            Ok(storage) => Arc::new(storage),
            Err(e) => {
                if let Some(name) = &temporary {
                    let _ = std::fs::remove_file(name);
                }
                return Err(e);
            }
        };
        storage.set_nameless(temporary.is_none());
        Ok(Self {
            storage,
            target: target.to_path_buf(),
            temporary,
            overwrite,
            replaced,
        })
    }

    /// The file's bytes.
    pub fn storage(&self) -> Arc<dyn Storage> {
        self.storage.clone()
    }

    /// Gives the file its name, durably. What was written to it has been flushed by whoever finished it.
    pub fn publish(mut self) -> Result<()> {
        let name = |e: Errno| match io::Error::from(e) {
            e if e.kind() == io::ErrorKind::AlreadyExists => exists(&self.target),
            e => Error::io("write: naming the finished file", e).with_path(&self.target),
        };
        if let Ok(there) = std::fs::metadata(&self.target)
            && self.overwrite
        {
            let is_known = match &self.replaced {
                Replaced::Nothing => false,
                Replaced::Kept(file) => file
                    .file()
                    .metadata()
                    .is_ok_and(|known| (known.dev(), known.ino()) == (there.dev(), there.ino())),
                Replaced::CallersOwn => true,
            };
            if !is_known {
                // Another file has come there meanwhile.
                let file = old_file(&self.target)?;
                self.replaced = Replaced::Kept(file);
            }
            // Who may read the old file may read the new one, and nobody else.
            let _ = self.storage.file().set_permissions(there.permissions());
        }
        self.storage.set_nameless(false);
        match self.temporary.take() {
            Some(temporary) => {
                let result = rename(&temporary, &self.target, self.overwrite);
                if result.is_err() {
                    let _ = std::fs::remove_file(&temporary);
                }
                result.map_err(name)?;
            }
            None if self.overwrite => {
                let temporary = temporary_name(&self.target);
                link(self.storage.file(), &temporary).map_err(name)?;
                if let Err(e) = std::fs::rename(&temporary, &self.target) {
                    let _ = std::fs::remove_file(&temporary);
                    return Err(Error::io("rename", e).with_path(&self.target));
                }
            }
            None => link(self.storage.file(), &self.target).map_err(name)?,
        }
        let kept = sync_names(&self.target);
        if kept.is_err() && !self.overwrite {
            // It was promised to nobody.
            let _ = std::fs::remove_file(&self.target);
        }
        kept
    }
}

impl Drop for NewFile {
    fn drop(&mut self) {
        if let Some(name) = &self.temporary {
            let _ = std::fs::remove_file(name);
        }
    }
}

/// The file to be replaced. Only who may write to it may replace it.
fn old_file(target: &Path) -> Result<FileStorage> {
    FileStorage::open(target, Access::ReadWrite).map_err(|e| match e.kind() {
        ErrorKind::WriteProtected => Error::new(e.kind(), e.reason())
            .with_path(target)
            .with_hint("choose a place that can be written to"),
        _ => e,
    })
}

/// A link is followed, so that the file behind it is replaced and not the link.
fn resolve_link(target: &Path) -> Result<PathBuf> {
    if !target.is_symlink() {
        return Ok(target.to_path_buf());
    }
    #[expect(
        clippy::disallowed_methods,
        reason = "the link exists, and what it leads to is asked for"
    )]
    std::fs::canonicalize(target).map_err(|_| {
        Error::new(ErrorKind::AlreadyExists, "it is a link that leads nowhere")
            .with_path(target)
            .with_hint("remove the link, or choose another name")
    })
}

fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    }
}

fn unnamed(folder: &Path) -> io::Result<File> {
    // Without it the file could never get a name.
    if !Path::new("/proc/self/fd").exists() {
        return Err(io::ErrorKind::Unsupported.into());
    }
    OpenOptions::new()
        .read(true)
        .write(true)
        .mode(0o666)
        .custom_flags(OFlags::TMPFILE.bits().cast_signed())
        .open(folder)
}

fn no_unnamed_files(error: &io::Error) -> bool {
    // EOPNOTSUPP from the file system; EISDIR and ENOENT from kernels that do not know the flag (the latter is also a
    // missing folder, which the named file then reports).
    error.kind() == io::ErrorKind::Unsupported || matches!(error.raw_os_error(), Some(21 | 2 | 22))
}

fn named(target: &Path) -> Result<(File, PathBuf)> {
    let name = temporary_name(target);
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .open(&name)
        .map_err(|e| folder_error(target, e))?;
    Ok((file, name))
}

/// Short whatever the target is called, since a file system limits the length of names.
fn temporary_name(target: &Path) -> PathBuf {
    let unique = uuid::Uuid::new_v4().simple().to_string();
    target.with_file_name(format!(".vhdkit-{}.tmp", &unique[..12]))
}

fn link(file: &File, target: &Path) -> rustix::io::Result<()> {
    let by_number = format!("/proc/self/fd/{}", file.as_raw_fd());
    rustix::fs::linkat(CWD, by_number, CWD, target, AtFlags::SYMLINK_FOLLOW)
}

fn rename(from: &Path, to: &Path, overwrite: bool) -> rustix::io::Result<()> {
    if overwrite {
        return rustix::fs::rename(from, to);
    }
    match rustix::fs::renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
        // A file system without the flag: a hard link refuses an existing target just as well.
        Err(Errno::INVAL | Errno::NOSYS) => {
            match rustix::fs::link(from, to) {
                Ok(()) => rustix::fs::unlink(from),
                // Neither: a look before the rename is what is left.
                Err(Errno::PERM | Errno::OPNOTSUPP | Errno::NOSYS) if !to.exists() => {
                    rustix::fs::rename(from, to)
                }
                Err(e) => Err(e),
            }
        }
        other => other,
    }
}

/// Makes a new name of a file durable, or that it has gone. A file system that cannot sync a folder keeps its names by
/// other means; a folder that may not be read is left to it, too.
///
/// # Errors
/// What the operating system says.
pub(crate) fn sync_names(path: &Path) -> Result<()> {
    let synced = File::open(folder_of(path)).and_then(|folder| folder.sync_all());
    match synced {
        Err(e)
            if !matches!(
                e.kind(),
                io::ErrorKind::NotFound
                    | io::ErrorKind::Unsupported
                    | io::ErrorKind::InvalidInput
                    | io::ErrorKind::PermissionDenied
            ) =>
        {
            Err(Error::io("write: keeping the change of its folder", e).with_path(path))
        }
        _ => Ok(()),
    }
}

fn exists(target: &Path) -> Error {
    Error::new(ErrorKind::AlreadyExists, "the file already exists")
        .with_path(target)
        .with_hint("choose another name, or overwrite it with --force")
}

fn folder_error(target: &Path, error: io::Error) -> Error {
    let folder = folder_of(target);
    if error.kind() == io::ErrorKind::NotFound {
        return Error::new(ErrorKind::PathNotFound, "the folder does not exist")
            .with_path(target)
            .with_hint(format!("create the folder {} first", folder.display()));
    }
    Error::io("create", error).with_path(target)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_file_appears_complete_or_not_at_all() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("disk");
        let names = || std::fs::read_dir(folder.path()).unwrap().count();
        let dropped = NewFile::create(&path, false).unwrap();
        dropped.storage().write_at(0, b"half").unwrap();
        drop(dropped);
        assert_eq!(names(), 0);
        let file = NewFile::create(&path, false).unwrap();
        file.storage().write_at(0, b"whole").unwrap();
        file.publish().unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "whole");
        assert_eq!(
            NewFile::create(&path, false).map(drop).unwrap_err().kind(),
            ErrorKind::AlreadyExists
        );
        // Somebody else was faster.
        let other = folder.path().join("other");
        let late = NewFile::create(&other, false).unwrap();
        std::fs::write(&other, "first").unwrap();
        assert_eq!(late.publish().unwrap_err().kind(), ErrorKind::AlreadyExists);
        assert_eq!(std::fs::read_to_string(&other).unwrap(), "first");
        assert_eq!(names(), 2);
    }

    #[test]
    fn replacing_keeps_the_permissions_follows_links_and_spares_what_is_no_file() {
        let folder = tempfile::tempdir().unwrap();
        let (path, link) = (folder.path().join("disk"), folder.path().join("link"));
        std::fs::write(&path, "old").unwrap();
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o600)).unwrap();
        std::os::unix::fs::symlink("disk", &link).unwrap();
        let file = NewFile::create(&link, true).unwrap();
        file.storage().write_at(0, b"new").unwrap();
        file.publish().unwrap();
        assert!(link.is_symlink());
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "new");
        assert_eq!(
            std::fs::metadata(&path).unwrap().permissions().mode() & 0o777,
            0o600
        );
        for other in [Path::new("/dev/null"), folder.path()] {
            let refused = NewFile::create(other, true).map(drop).unwrap_err();
            assert_eq!(refused.kind(), ErrorKind::AlreadyExists);
        }
        // Nobody can write what would be lost, from the start to the end.
        let file = NewFile::create(&link, true).unwrap();
        for access in [Access::ReadOnly, Access::ReadWrite] {
            let refused = FileStorage::open(&path, access).map(drop).unwrap_err();
            assert_eq!(refused.kind(), ErrorKind::SharingViolation);
        }
        // The file that it is to replace is replaced by another, which is in use.
        let other = folder.path().join("other");
        std::fs::write(&other, "other").unwrap();
        let in_use = FileStorage::open(&other, Access::ReadWrite).unwrap();
        std::fs::rename(&other, &path).unwrap();
        assert_eq!(
            file.publish().unwrap_err().kind(),
            ErrorKind::SharingViolation
        );
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "other");
        drop(in_use);
        let in_use = FileStorage::open(&path, Access::ReadOnly).unwrap();
        let refused = NewFile::create(&link, true).map(drop).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::SharingViolation);
        drop(in_use);
    }
}
