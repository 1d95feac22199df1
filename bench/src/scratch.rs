//! The folders and mounts of a run. They vanish with the value, also after an error, a panic or Ctrl-C.

use std::path::{Path, PathBuf};

use crate::Result;
use crate::process::{Argv, find, is_root, run};

/// A folder in memory and one on a disk.
pub(crate) struct Scratch {
    /// On tmpfs.
    pub(crate) memory: PathBuf,
    /// On a file system with a disk under it.
    pub(crate) disk: PathBuf,
    /// What the disk's file system is called.
    pub(crate) file_system: &'static str,
}

const TMPFS: u64 = 0x0102_1994;

impl Scratch {
    pub(crate) fn new(memory: &Path, disk: &Path) -> Result<Self> {
        let name = format!("vhdkit-bench-{}", std::process::id());
        let scratch = Self {
            memory: memory.join(&name),
            disk: disk.join(&name),
            file_system: file_system(disk)?,
        };
        if scratch.file_system == "tmpfs" {
            return Err(format!(
                "{} is in memory; name a folder on a disk with --dir",
                disk.display()
            )
            .into());
        }
        if file_system(memory)? != "tmpfs" {
            return Err(
                format!("{} is not a tmpfs; name one with --tmpfs", memory.display()).into(),
            );
        }
        std::fs::create_dir_all(&scratch.memory)?;
        std::fs::create_dir_all(&scratch.disk)?;
        Ok(scratch)
    }

    pub(crate) fn in_memory(&self, name: &str) -> String {
        self.memory.join(name).to_string_lossy().into_owned()
    }

    pub(crate) fn on_disk(&self, name: &str) -> String {
        self.disk.join(name).to_string_lossy().into_owned()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        for folder in [&self.memory, &self.disk] {
            if let Err(e) = std::fs::remove_dir_all(folder)
                && folder.exists()
            {
                eprintln!("cannot remove {}: {e}", folder.display());
            }
        }
    }
}

fn file_system(folder: &Path) -> Result<&'static str> {
    std::fs::create_dir_all(folder)?;
    let found = rustix::fs::statfs(folder).map_err(std::io::Error::from)?;
    Ok(match found.f_type.cast_unsigned() {
        TMPFS => "tmpfs",
        0xEF53 => "ext4",
        0x5846_5342 => "xfs",
        0x9123_683E => "btrfs",
        0x794C_7630 => "overlay",
        _ => "another file system",
    })
}

/// An XFS in a sparse file, mounted: a file system that can share blocks.
pub(crate) struct Xfs {
    file: PathBuf,
    folder: PathBuf,
}

impl Xfs {
    /// Why there can be none here.
    pub(crate) fn missing() -> Option<&'static str> {
        if !is_root() {
            Some("needs root")
        } else if find("mkfs.xfs").is_none() {
            Some("peer missing: mkfs.xfs")
        } else {
            None
        }
    }

    pub(crate) fn mount(scratch: &Scratch, size: u64) -> Result<Self> {
        let xfs = Self {
            file: scratch.disk.join("xfs.img"),
            folder: scratch.disk.join("xfs"),
        };
        std::fs::create_dir_all(&xfs.folder)?;
        std::fs::File::create(&xfs.file)?.set_len(size)?;
        let (file, folder) = (xfs.file.to_string_lossy(), xfs.folder.to_string_lossy());
        run(&Argv::new(&["mkfs.xfs", "-q", "-m", "reflink=1", &file]))?;
        run(&Argv::new(&["mount", "-o", "loop", &file, &folder]))?;
        Ok(xfs)
    }

    pub(crate) fn path(&self, name: &str) -> String {
        self.folder.join(name).to_string_lossy().into_owned()
    }
}

impl Drop for Xfs {
    fn drop(&mut self) {
        // The loop device goes with its mount. Not through `run`, which refuses after Ctrl-C.
        for attempt in 0..20 {
            match Argv::new(&["umount", &self.folder.to_string_lossy()])
                .command()
                .output()
            {
                Ok(done) if done.status.success() => break,
                Ok(done) if attempt == 19 => {
                    eprintln!("{}", String::from_utf8_lossy(&done.stderr).trim_end());
                }
                _ => std::thread::sleep(std::time::Duration::from_millis(100)),
            }
        }
        let _ = std::fs::remove_file(&self.file);
        let _ = std::fs::remove_dir(&self.folder);
    }
}
