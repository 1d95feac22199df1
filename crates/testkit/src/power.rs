//! A real file system of its own whose power can be cut: what it was not made to keep is lost.
//!
//! The cut is the file system's own shutdown: from then on every access fails, and neither what waits in the page cache
//! nor the part of its journal that is not on the disk will ever be written. Mounting it again recovers the rest.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use crate::require::require;

/// A file system in a file, mounted until this is dropped.
pub struct Volume {
    folder: tempfile::TempDir,
}

impl Volume {
    /// Makes one (`"xfs"` or `"ext4"`) of `mebibytes` in the folder `at`; `None` where that is not possible, which is an
    /// error where all tests must run.
    pub fn new(kind: &str, mebibytes: u64, at: &Path) -> Option<Self> {
        let folder = tempfile::tempdir_in(at).unwrap();
        let volume = Self { folder };
        std::fs::create_dir(volume.root()).unwrap();
        let image = std::fs::File::create(volume.image()).unwrap();
        image.set_len(mebibytes << 20).unwrap();
        let made = ran(Command::new(format!("mkfs.{kind}"))
            .arg("-q")
            .arg(volume.image()))
        .and_then(|()| ran(Command::new("xfs_io").arg("-V")))
        .and_then(|()| volume.mount());
        if let Err(reason) = made {
            require(
                false,
                &format!("needs root, loop devices, mkfs.{kind} and xfs_io: {reason}"),
            );
            return None;
        }
        Some(volume)
    }

    /// Where it is mounted.
    pub fn root(&self) -> PathBuf {
        self.folder.path().join("mounted")
    }

    fn image(&self) -> PathBuf {
        self.folder.path().join("image")
    }

    fn mount(&self) -> Result<(), String> {
        ran(Command::new("mount")
            .args(["-o", "loop"])
            .args([self.image(), self.root()]))
    }

    /// Makes all that was written so far survive.
    pub fn sync(&self) {
        ran(Command::new("sync").arg("-f").arg(self.root())).unwrap();
    }

    /// Cuts the power.
    pub fn cut(&self) {
        ran(Command::new("xfs_io")
            .args(["-x", "-F", "-c", "shutdown"])
            .arg(self.root()))
        .unwrap();
    }

    /// Starts again after a cut. Nobody has a file open.
    pub fn restore(&self) {
        ran(Command::new("umount").arg(self.root())).unwrap();
        // Whoever has a mount namespace made meanwhile has a mount of its own there, which keeps the dead file system
        // and its device until that namespace ends.
        let begun = Instant::now();
        while self.has_device() {
            assert!(
                begun.elapsed() < Duration::from_mins(2),
                "still in use after it was unmounted"
            );
            std::thread::sleep(Duration::from_millis(2));
        }
        self.mount().unwrap();
    }

    fn has_device(&self) -> bool {
        let devices = Command::new("losetup")
            .arg("-j")
            .arg(self.image())
            .output()
            .unwrap();
        !devices.stdout.is_empty()
    }
}

impl Drop for Volume {
    fn drop(&mut self) {
        if let Err(error) = ran(Command::new("umount").arg(self.root())) {
            // Better a mount that is taken away when its last file is closed than one that stays.
            if ran(Command::new("umount").arg("-l").arg(self.root())).is_ok() {
                eprintln!("{error}");
            }
        }
    }
}

fn ran(command: &mut Command) -> Result<(), String> {
    let output = command.output().map_err(|e| format!("{command:?}: {e}"))?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!(
        "{command:?}: {}",
        String::from_utf8_lossy(&output.stderr).trim()
    ))
}
