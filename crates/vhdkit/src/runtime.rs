//! The folder in which a user's running operations and attached disks are listed: found, made, and believed only if
//! nobody else can write there.
//!
//! Everything inside is reached through the folder's own descriptor, so what was verified is what is used. An entry is a
//! file; what its name ends with says what it is about.

use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags};
use rustix::io::Errno;

use crate::error::{Error, ErrorKind, Result};

/// See the module.
#[derive(Debug)]
pub struct RuntimeFolder {
    handle: OwnedFd,
    path: PathBuf,
}

impl RuntimeFolder {
    /// The user's folder, made if it is not there: `$XDG_RUNTIME_DIR/vhdkit`, or another where that is not usable.
    ///
    /// # Errors
    /// [`ErrorKind::AccessDenied`] if it cannot be believed: it is another user's, open to others, or a link.
    pub fn make() -> Result<Self> {
        Self::make_at(&standard_path())
    }

    /// The user's folder; `None` if it was never made.
    ///
    /// # Errors
    /// As [`RuntimeFolder::make`].
    pub fn existing() -> Result<Option<Self>> {
        Self::existing_at(&standard_path())
    }

    /// A folder of this name, made if it is not there.
    ///
    /// # Errors
    /// As [`RuntimeFolder::make`].
    pub fn make_at(path: &Path) -> Result<Self> {
        match rustix::fs::mkdir(path, Mode::RWXU) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(e) => return Err(Error::io("making the folder", e.into()).with_path(path)),
        }
        Self::open(path).map_err(|e| Error::io("open", e.into()).with_path(path))?
    }

    /// A folder of this name; `None` if there is none.
    ///
    /// # Errors
    /// As [`RuntimeFolder::make`].
    pub fn existing_at(path: &Path) -> Result<Option<Self>> {
        match Self::open(path) {
            Ok(folder) => folder.map(Some),
            Err(Errno::NOENT) => Ok(None),
            Err(e) => Err(Error::io("open", e.into()).with_path(path)),
        }
    }

    /// The outer result is the operating system's, the inner one says whether the folder may be believed.
    fn open(path: &Path) -> rustix::io::Result<Result<Self>> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let handle = match rustix::fs::open(path, flags, Mode::empty()) {
            // With O_DIRECTORY a link is told as either.
            Err(Errno::NOTDIR | Errno::LOOP) => {
                return Ok(Err(refused(path, "it is not a folder, or a link to one")));
            }
            other => other?,
        };
        let stat = rustix::fs::fstat(&handle)?;
        if stat.st_uid != user() {
            return Ok(Err(refused(path, "it belongs to another user")));
        }
        if stat.st_mode & 0o077 != 0 {
            return Ok(Err(refused(path, "other users have access to it")));
        }
        Ok(Ok(Self {
            handle,
            path: path.to_owned(),
        }))
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A second way in, for another thread.
    ///
    /// # Errors
    /// What the operating system says.
    pub fn duplicate(&self) -> Result<Self> {
        let handle = self.handle.try_clone();
        Ok(Self {
            handle: handle.map_err(|e| Error::io("open", e).with_path(&self.path))?,
            path: self.path.clone(),
        })
    }

    /// A new empty file that only this user can open.
    ///
    /// # Errors
    /// What the operating system says, also if there is one of that name.
    pub fn create_entry(&self, name: &str) -> Result<File> {
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        rustix::fs::openat(&self.handle, name, flags, Mode::RUSR | Mode::WUSR)
            .map(File::from)
            .map_err(|e| Error::io("write", e.into()).with_path(&self.path))
    }

    /// The names of all entries that end with `extension`, dead or alive.
    ///
    /// # Errors
    /// What the operating system says.
    pub fn entries(&self, extension: &str) -> Result<Vec<String>> {
        let failed = |e: Errno| Error::io("read", e.into()).with_path(&self.path);
        let mut names = Vec::new();
        for entry in Dir::read_from(&self.handle).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let name = OsStr::from_bytes(entry.file_name().to_bytes()).to_str();
            if let Some(name) = name.filter(|name| name.ends_with(extension)) {
                names.push(name.to_owned());
            }
        }
        Ok(names)
    }

    /// Opens an entry; `None` if it is gone by now, or is no ordinary file.
    pub fn open_entry(&self, name: &str) -> Option<File> {
        let flags = OFlags::RDWR | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let handle = rustix::fs::openat(&self.handle, name, flags, Mode::empty()).ok()?;
        let stat = rustix::fs::fstat(&handle).ok()?;
        (FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile).then(|| File::from(handle))
    }

    /// Waits for its turn, which ends when the result is dropped, or with the process: for what must not be done by two at
    /// once.
    ///
    /// # Errors
    /// What the operating system says.
    pub fn take_turn(&self) -> Result<File> {
        let failed = |e| Error::io("lock", e).with_path(&self.path);
        // Opened anew: descriptors that are copies of each other share a lock.
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let folder = rustix::fs::openat(&self.handle, ".", flags, Mode::empty())
            .map_err(|e| failed(e.into()))?;
        let folder = File::from(folder);
        folder.lock().map_err(failed)?;
        Ok(folder)
    }

    /// Takes an entry away; one that is gone already is no matter.
    pub fn remove_entry(&self, name: &str) {
        let _ = rustix::fs::unlinkat(&self.handle, name, AtFlags::empty());
    }
}

fn user() -> u32 {
    rustix::process::geteuid().as_raw()
}

/// `$XDG_RUNTIME_DIR/vhdkit`; without the variable, or if it is another user's (after `su`), `/run/user/UID/vhdkit`;
/// where there is no such folder either, `vhdkit-UID` in the folder for temporary files.
fn standard_path() -> PathBuf {
    let user = user();
    let told = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from);
    let usual = PathBuf::from(format!("/run/user/{user}"));
    let own = |folder: &PathBuf| {
        folder.is_absolute()
            && std::fs::metadata(folder).is_ok_and(|m| m.is_dir() && m.uid() == user)
    };
    match told.filter(own).or_else(|| Some(usual).filter(own)) {
        Some(folder) => folder.join("vhdkit"),
        None => std::env::temp_dir().join(format!("vhdkit-{user}")),
    }
}

fn refused(path: &Path, reason: &str) -> Error {
    Error::new(ErrorKind::AccessDenied, reason)
        .with_path(path)
        .while_doing("cannot use")
        .with_hint("it is where running operations and attached disks are listed and must be a folder of yours with mode 700: remove what is there, or name another place with XDG_RUNTIME_DIR")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{PermissionsExt, chown, symlink};

    fn refused_at(path: &Path) -> Error {
        let error = RuntimeFolder::make_at(path).err().unwrap();
        assert_eq!(error.kind(), ErrorKind::AccessDenied, "{error}");
        let error = RuntimeFolder::existing_at(path).err().unwrap();
        assert!(error.hint().is_some(), "{error}");
        error
    }

    #[test]
    fn only_the_owner_has_access() {
        let base = tempfile::tempdir().unwrap();
        let path = base.path().join("vhdkit");
        assert!(RuntimeFolder::existing_at(&path).unwrap().is_none());
        let folder = RuntimeFolder::make_at(&path).unwrap();
        let mode = |path: &Path| path.metadata().unwrap().permissions().mode() & 0o7777;
        assert_eq!(mode(&path), 0o700);
        let name = "0.operation";
        let _file = folder.create_entry(name).unwrap();
        assert!(folder.create_entry(name).is_err());
        assert_eq!(mode(&path.join(name)), 0o600);
        assert_eq!(folder.entries(".operation").unwrap(), [name]);
        assert!(RuntimeFolder::existing_at(&path).unwrap().is_some());
    }

    #[test]
    fn a_folder_that_others_could_have_prepared_is_refused() {
        let base = tempfile::tempdir().unwrap();
        let real = base.path().join("real");
        RuntimeFolder::make_at(&real).unwrap();
        let link = base.path().join("link");
        symlink(&real, &link).unwrap();
        assert!(refused_at(&link).reason().contains("link"));

        let file = base.path().join("file");
        std::fs::write(&file, "").unwrap();
        refused_at(&file);

        let open = base.path().join("open");
        std::fs::create_dir(&open).unwrap();
        std::fs::set_permissions(&open, PermissionsExt::from_mode(0o770)).unwrap();
        assert!(refused_at(&open).reason().contains("other users"));

        // As root any folder can be given away; nobody else owns the root folder.
        let foreign = if user() == 0 {
            chown(&real, Some(12345), None).unwrap();
            real
        } else {
            "/".into()
        };
        assert!(refused_at(&foreign).reason().contains("another user"));
    }

    #[test]
    fn turns_come_one_after_the_other() {
        let base = tempfile::tempdir().unwrap();
        let folder = RuntimeFolder::make_at(&base.path().join("vhdkit")).unwrap();
        let at_it = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..20 {
                        let turn = folder.take_turn().unwrap();
                        assert!(!at_it.swap(true, std::sync::atomic::Ordering::SeqCst));
                        std::thread::yield_now();
                        at_it.store(false, std::sync::atomic::Ordering::SeqCst);
                        drop(turn);
                    }
                });
            }
        });
    }

    #[test]
    fn what_is_no_entry_is_left_alone() {
        let base = tempfile::tempdir().unwrap();
        let path = base.path().join("vhdkit");
        let folder = RuntimeFolder::make_at(&path).unwrap();
        std::fs::write(path.join("notes"), "mine").unwrap();
        assert!(folder.entries(".operation").unwrap().is_empty());
        let link = "0.operation";
        symlink(path.join("notes"), path.join(link)).unwrap();
        assert!(folder.open_entry(link).is_none());
        std::fs::create_dir(path.join("1.operation")).unwrap();
        assert!(folder.open_entry("1.operation").is_none());
        assert!(folder.open_entry("2.operation").is_none());
        folder.remove_entry("2.operation");
    }
}
