//! Who uses a device or a folder: mounts, swap, other devices on top, and processes that have it open.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use vhdkit::{Error, ErrorKind, Result};

/// Where a file system of a device is mounted.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct Mount {
    /// The device or partition.
    pub device: PathBuf,
    /// The folder.
    pub folder: PathBuf,
}

/// One line of /proc/self/mountinfo.
struct MountLine {
    device: String,
    folder: PathBuf,
    source: PathBuf,
}

fn mount_table() -> Vec<MountLine> {
    let text = std::fs::read("/proc/self/mountinfo").unwrap_or_default();
    text.split(|&byte| byte == b'\n')
        .filter_map(|line| {
            let mut fields = line.split(|&byte| byte == b' ');
            let device = String::from_utf8(fields.nth(2)?.to_vec()).ok()?;
            let folder = unescape(fields.nth(1)?);
            let mut rest = fields.skip_while(|field| *field != b"-");
            let source = unescape(rest.nth(2)?);
            Some(MountLine {
                device,
                folder: folder.into(),
                source: source.into(),
            })
        })
        .collect()
}

/// The name that tables of mounts have for what is there.
#[expect(
    clippy::disallowed_methods,
    reason = "only of what exists, to be compared with what the kernel says"
)]
pub(crate) fn real_path(path: &Path) -> std::io::Result<PathBuf> {
    std::fs::canonicalize(path)
}

/// The same of what has to be a folder.
pub(crate) fn real_folder(path: &Path) -> Result<PathBuf> {
    let fails = |reason| Err(Error::new(ErrorKind::PathNotFound, reason).with_path(path));
    match real_path(path) {
        Ok(folder) if folder.is_dir() => Ok(folder),
        Ok(_) => fails("it is not a folder"),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => fails("the folder does not exist"),
        Err(e) => Err(Error::open(path, e)),
    }
}

/// Blanks and the like are octal in tables of mounts.
fn unescape(field: &[u8]) -> OsString {
    let mut out = Vec::with_capacity(field.len());
    let mut rest = field;
    while let [first, tail @ ..] = rest {
        let code = tail
            .get(..3)
            .filter(|_| *first == b'\\')
            .and_then(|digits| std::str::from_utf8(digits).ok())
            .and_then(|digits| u8::from_str_radix(digits, 8).ok());
        out.push(code.unwrap_or(*first));
        rest = if code.is_some() { &tail[3..] } else { tail };
    }
    OsString::from_vec(out)
}

/// "major:minor" of a block device, as tables of mounts have it.
fn numbers(device: &Path) -> Option<String> {
    let metadata = std::fs::metadata(device).ok()?;
    let number = metadata.rdev();
    metadata.file_type().is_block_device().then(|| {
        format!(
            "{}:{}",
            rustix::fs::major(number),
            rustix::fs::minor(number)
        )
    })
}

/// The mounts of these devices that this process can see, in the order in which they were made.
pub(crate) fn mounts(devices: &[PathBuf]) -> Vec<Mount> {
    let numbered: Vec<(Option<String>, &PathBuf)> = devices
        .iter()
        .map(|device| (numbers(device), device))
        .collect();
    let mut found = Vec::new();
    for line in mount_table() {
        // btrfs shows a number of its own; there the source tells.
        let device = numbered.iter().find(|(number, device)| {
            number.as_ref() == Some(&line.device) || line.source == **device
        });
        if let Some((_, device)) = device {
            found.push(Mount {
                device: (*device).clone(),
                folder: line.folder,
            });
        }
    }
    found
}

/// The mounts of a device that the kernel has taken away under them, and of its partitions.
pub(crate) fn mounts_of_gone(device: &Path) -> Vec<Mount> {
    let is_part = |source: &Path| {
        let rest = source
            .as_os_str()
            .as_bytes()
            .strip_prefix(device.as_os_str().as_bytes());
        match rest {
            Some([b'p', digits @ ..]) => {
                !digits.is_empty() && digits.iter().all(u8::is_ascii_digit)
            }
            Some(rest) => rest.is_empty(),
            None => false,
        }
    };
    let lines = mount_table()
        .into_iter()
        .filter(|line| is_part(&line.source));
    lines
        .map(|line| Mount {
            device: line.source,
            folder: line.folder,
        })
        .collect()
}

/// True if nothing else is mounted over a mount.
pub(crate) fn is_on_top(mount: &Mount) -> bool {
    let own = numbers(&mount.device);
    mount_table()
        .iter()
        .rfind(|line| line.folder == mount.folder)
        .is_some_and(|line| own.as_ref() == Some(&line.device) || line.source == mount.device)
}

/// True if a folder is where something is mounted.
pub(crate) fn is_mount_point(folder: &Path) -> bool {
    mount_table().iter().any(|line| line.folder == folder)
}

/// True if the server of the file system that is mounted in a folder has died.
pub(crate) fn is_dead(folder: &Path) -> bool {
    matches!(rustix::fs::stat(folder), Err(rustix::io::Errno::NOTCONN))
}

/// What else uses these devices, in words: swap, devices on top of them, processes that have them open. `except` are
/// processes that do not count.
pub(crate) fn other_users(devices: &[PathBuf], except: &[u32]) -> Vec<String> {
    let mut users = Vec::new();
    let swaps = std::fs::read_to_string("/proc/swaps").unwrap_or_default();
    for device in devices {
        let is_it = |line: &str| line.split_whitespace().next() == device.to_str();
        if swaps.lines().any(is_it) {
            users.push(format!("swap on {}", device.display()));
        }
        for holder in holders(device) {
            users.push(format!("{} on top of {}", holder, device.display()));
        }
    }
    for (pid, name) in openers(devices) {
        if !except.contains(&pid) {
            users.push(format!("process {pid} ({name})"));
        }
    }
    users
}

/// Processes that are in a folder or below, or have something open there, in words.
pub(crate) fn visitors(folder: &Path) -> Vec<String> {
    let is_there = |target: PathBuf| target.starts_with(folder);
    let found = processes(|process| {
        let links = ["cwd", "root"].map(|name| process.join(name));
        links
            .into_iter()
            .chain(descriptors(process))
            .any(|link| std::fs::read_link(link).is_ok_and(is_there))
    });
    found
        .into_iter()
        .map(|(pid, name)| format!("process {pid} ({name})"))
        .collect()
}

/// Devices on top: device-mapper, RAID.
fn holders(device: &Path) -> Vec<String> {
    let Some(name) = device.file_name() else {
        return Vec::new();
    };
    let folder = Path::new("/sys/class/block").join(name).join("holders");
    let Ok(entries) = std::fs::read_dir(folder) else {
        return Vec::new();
    };
    entries
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect()
}

/// Processes that have one of these files open, and what they are called.
fn openers(files: &[PathBuf]) -> Vec<(u32, String)> {
    let is_one = |target: PathBuf| files.contains(&target);
    processes(|process| descriptors(process).any(|link| std::fs::read_link(link).is_ok_and(is_one)))
}

/// Processes, by their folders in /proc, of which something is true, and what they are called.
fn processes(is_meant: impl Fn(&Path) -> bool) -> Vec<(u32, String)> {
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    entries
        .filter_map(|entry| Some((number(&entry.file_name())?, entry.path())))
        .filter(|(_, path)| is_meant(path))
        .map(|(pid, _)| (pid, process_name(pid)))
        .collect()
}

/// Links to what a process has open.
fn descriptors(process: &Path) -> impl Iterator<Item = PathBuf> + use<> {
    let entries = std::fs::read_dir(process.join("fd"));
    entries
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path())
}

fn process_name(pid: u32) -> String {
    std::fs::read_to_string(format!("/proc/{pid}/comm"))
        .unwrap_or_default()
        .trim_end()
        .to_owned()
}

fn number(name: &OsStr) -> Option<u32> {
    std::str::from_utf8(name.as_bytes()).ok()?.parse().ok()
}

/// The holders of the device of a server: processes that have it open on behalf of the attachment itself.
pub(crate) fn children(pid: u32) -> Vec<u32> {
    let mut found = Vec::new();
    let Ok(tasks) = std::fs::read_dir(format!("/proc/{pid}/task")) else {
        return found;
    };
    for task in tasks.flatten() {
        let text = std::fs::read_to_string(task.path().join("children")).unwrap_or_default();
        found.extend(
            text.split_whitespace()
                .filter_map(|word| word.parse::<u32>().ok()),
        );
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_with_blanks_are_read_as_they_are() {
        assert_eq!(unescape(br"/mnt/a\040b\134c"), OsStr::new(r"/mnt/a b\c"));
        assert_eq!(unescape(br"/mnt/x\"), OsStr::new(r"/mnt/x\"));
    }

    #[test]
    fn a_process_that_has_a_file_open_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().canonicalize().unwrap().join("file");
        let file = std::fs::File::create(&path).unwrap();
        let own = std::process::id();
        let files = [path];
        assert!(openers(&files).iter().any(|(pid, _)| *pid == own));
        assert!(other_users(&files, &[own]).is_empty());
        let real = folder.path().canonicalize().unwrap();
        let said = visitors(&real).join(" ");
        assert!(said.contains(&format!("process {own} (")), "{said}");
        drop(file);
        assert!(openers(&files).is_empty());
    }
}
