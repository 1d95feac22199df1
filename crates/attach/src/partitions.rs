//! Nodes for the partitions of a device: by the kernel where it reads partition tables, and by us where it does not.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::io::Errno;
use vhdkit::volume::{self, Medium, PartitionType};
use vhdkit::{Error, Result};

use crate::sys;

/// How long a node may take to appear; udev may have to make it.
const PATIENCE: Duration = Duration::from_secs(2);

/// A partition that has a node.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct Partition {
    /// Its place in the table, from 1.
    pub number: u32,
    /// Its node, such as `/dev/loop0p1`.
    pub device: PathBuf,
    /// Where it starts on the disk, in bytes.
    pub start: u64,
    /// How long it is, in bytes.
    pub length: u64,
}

/// The partitions of a device that the kernel knows now, in the order of their numbers.
pub(crate) fn known(device: &Path) -> Vec<Partition> {
    let Some(name) = device.file_name() else {
        return Vec::new();
    };
    let Ok(entries) = std::fs::read_dir(Path::new("/sys/block").join(name)) else {
        return Vec::new();
    };
    let number_in =
        |path: PathBuf| -> Option<u64> { std::fs::read_to_string(path).ok()?.trim().parse().ok() };
    let mut found = Vec::new();
    for entry in entries.flatten() {
        let folder = entry.path();
        // Sizes are in units of 512 bytes, whatever the sectors are.
        let (Some(number), Some(start), Some(length)) = (
            number_in(folder.join("partition")),
            number_in(folder.join("start")),
            number_in(folder.join("size")),
        ) else {
            continue;
        };
        found.push(Partition {
            number: u32::try_from(number).unwrap_or_default(),
            device: Path::new("/dev").join(entry.file_name()),
            start: start * 512,
            length: length * 512,
        });
    }
    found.sort_by_key(|partition| partition.number);
    found
}

/// Makes the kernel know the partitions that the table on the device has, and no others: what is in use stays.
///
/// # Errors
/// What opening or reading the device fails with.
pub(crate) fn refresh(device: &Path, sector_size: u32) -> Result<()> {
    let failed = |action: &str, e| Error::io(action, e).with_path(device);
    let file = open(device).map_err(|e| failed("open", e))?;
    let size = rustix::fs::seek(&file, rustix::fs::SeekFrom::End(0))
        .map_err(|e| failed("read the size", e.into()))?;
    let read = |offset: u64, buf: &mut [u8]| {
        file.read_exact_at(buf, offset)
            .map_err(|e| failed("read", e))
    };
    let table = volume::partitions(&Medium::new(size, sector_size, &read)?)?;
    let mut wanted: Vec<(i32, i64, i64)> = Vec::new();
    for partition in table.iter().flat_map(|table| &table.partitions) {
        let number = i32::try_from(partition.number).unwrap_or(i32::MAX);
        // As the kernel does it: of an extended partition only as much as a boot loader needs, so that nobody takes it
        // for a file system.
        let length = match partition.kind {
            PartitionType::Mbr(0x05 | 0x0F | 0x85) => {
                partition.length.min(sector_size.max(1024).into())
            }
            _ => partition.length.min(size.saturating_sub(partition.start)),
        };
        if let (Ok(start), Ok(length)) = (i64::try_from(partition.start), i64::try_from(length))
            && length > 0
        {
            wanted.push((number, start, length));
        }
    }
    let known = known(device);
    for old in &known {
        let same = |&(number, start, length): &(i32, i64, i64)| {
            old.number.cast_signed() == number
                && old.start.cast_signed() == start
                && old.length.cast_signed() == length
        };
        if !wanted.iter().any(same) {
            // EBUSY: somebody uses it.
            let _ = sys::remove_partition(&file, old.number.cast_signed());
        }
    }
    for (number, start, length) in wanted {
        match sys::add_partition(&file, number, start, length) {
            // It is there already (the kernel was faster), or it overlaps one in use.
            Ok(()) | Err(Errno::BUSY) => {}
            // The kernel does not take all that a table may say; the others are as good as before.
            Err(Errno::INVAL | Errno::NOSPC | Errno::OVERFLOW) => {}
            Err(e) => return Err(failed("add a partition", e.into())),
        }
    }
    let deadline = Instant::now() + PATIENCE;
    for partition in self::known(device) {
        while !partition.device.exists() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(5));
        }
    }
    Ok(())
}

/// Opens a device that has only just appeared.
fn open(device: &Path) -> std::io::Result<File> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match OpenOptions::new().read(true).open(device) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound && Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(5));
            }
            other => return other,
        }
    }
}
