//! What a disk must read.

use vhdkit::storage::{MemoryStorage, Storage};
use vhdkit::{Result, VirtualDisk};

use crate::crash::SECTOR;

const CHUNK: u64 = 256 * 1024;

/// True if every byte is zero; by comparing memory, which is fast without optimisation too.
pub fn is_zero(bytes: &[u8]) -> bool {
    const ZEROS: [u8; 4096] = [0; 4096];
    bytes.chunks(ZEROS.len()).all(|c| *c == ZEROS[..c.len()])
}

/// An empty model of a disk of this size: every byte is zero.
pub fn blank(virtual_size: u64) -> MemoryStorage {
    let content = MemoryStorage::new();
    content.set_len(virtual_size).expect("memory");
    content
}

/// The ranges of two contents (or of one) that hold data, merged, in chunks of at most 256 KiB.
fn data_ranges(contents: &[&MemoryStorage]) -> Vec<(u64, u64)> {
    let mut chunks = std::collections::BTreeSet::new();
    for content in contents {
        let end = content.len().expect("memory");
        let mut at = 0;
        while let Some(run) = content.next_data(at..end).expect("memory") {
            chunks.extend((run.start / CHUNK..run.end.div_ceil(CHUNK)).map(|c| c * CHUNK));
            at = run.end;
        }
    }
    let end = contents
        .iter()
        .map(|c| c.len().expect("memory"))
        .min()
        .unwrap_or(0);
    chunks
        .into_iter()
        .filter(|&at| at < end)
        .map(|at| (at, CHUNK.min(end - at)))
        .collect()
}

/// The whole content of a disk. Disks above 64 MiB are read by their extents only.
///
/// # Errors
/// What reading fails with.
pub fn content_of(disk: &VirtualDisk) -> Result<MemoryStorage> {
    const SMALL: u64 = 64 << 20;
    let size = disk.virtual_size();
    let content = blank(size);
    let mut buf = vec![0; CHUNK as usize];
    let mut copy = |start: u64, end: u64| -> Result<()> {
        let mut at = start;
        while at < end {
            let n = CHUNK.min(end - at);
            let part = &mut buf[..n as usize];
            disk.read_at(at, part)?;
            for (i, page) in part.chunks(4096).enumerate() {
                if !is_zero(page) {
                    content.write_at(at + i as u64 * 4096, page)?;
                }
            }
            at += n;
        }
        Ok(())
    };
    if size <= SMALL {
        copy(0, size)?;
    } else {
        for extent in disk.extents(0..size) {
            let (at, extent) = extent?;
            if extent.data.is_some() {
                copy(at, at + extent.length)?;
            }
        }
    }
    Ok(content)
}

/// The first byte in which two contents differ: its offset, what the first and what the second holds.
pub fn first_difference(a: &MemoryStorage, b: &MemoryStorage) -> Option<(u64, u8, u8)> {
    let (mut left, mut right) = (vec![0; CHUNK as usize], vec![0; CHUNK as usize]);
    for (at, n) in data_ranges(&[a, b]) {
        let (left, right) = (&mut left[..n as usize], &mut right[..n as usize]);
        a.read_at(at, left).expect("memory");
        b.read_at(at, right).expect("memory");
        if left != right {
            let i = left.iter().zip(&*right).position(|(x, y)| x != y)?;
            return Some((at + i as u64, left[i], right[i]));
        }
    }
    None
}

/// Panics with offset and bytes if a disk does not read as expected, or its extents do not fit what it reads.
pub fn assert_reads(disk: &VirtualDisk, expected: &MemoryStorage, what: &str) {
    let content = content_of(disk).unwrap_or_else(|e| panic!("{what}: {e}"));
    assert_eq!(
        disk.virtual_size(),
        expected.len().expect("memory"),
        "{what}: virtual size"
    );
    if let Some((at, found, wanted)) = first_difference(&content, expected) {
        panic!("{what}: byte {at:#x} is {found:#04x}, not {wanted:#04x}");
    }
    assert_extents(disk, expected, what);
}

/// Panics if the extents of a disk leave gaps, point to the wrong bytes, or call data zero.
pub fn assert_extents(disk: &VirtualDisk, expected: &MemoryStorage, what: &str) {
    let size = disk.virtual_size();
    let mut next = 0;
    for extent in disk.extents(0..size) {
        let (at, extent) = extent.unwrap_or_else(|e| panic!("{what}: map: {e}"));
        assert_eq!(at, next, "{what}: extents follow one another");
        assert!(extent.length > 0, "{what}: an extent is not empty");
        next = at + extent.length;
        match extent.data {
            None => {
                // What the model holds as a page may still be zeros.
                let mut from = at;
                while let Some(run) = expected.next_data(from..next).expect("memory") {
                    let end = run.end.min(run.start + CHUNK);
                    let mut bytes = vec![0; (end - run.start) as usize];
                    expected.read_at(run.start, &mut bytes).expect("memory");
                    if let Some(i) = bytes.iter().position(|&b| b != 0) {
                        panic!(
                            "{what}: map says zeros at {:#x}, which is data",
                            run.start + i as u64
                        );
                    }
                    from = end;
                }
            }
            Some(location) => {
                let storage = disk.layers()[location.layer].storage.clone();
                // Both ends of the run are enough to see that it is the right place.
                for (offset, n) in [
                    (0, extent.length.min(4096)),
                    (
                        extent.length - extent.length.min(4096),
                        extent.length.min(4096),
                    ),
                ] {
                    let (mut there, mut wanted) = (vec![0; n as usize], vec![0; n as usize]);
                    storage
                        .read_at(location.storage_offset + offset, &mut there)
                        .unwrap_or_else(|e| panic!("{what}: extent at {at:#x}: {e}"));
                    expected.read_at(at + offset, &mut wanted).expect("memory");
                    assert!(
                        there == wanted,
                        "{what}: the extent at {at:#x} (file offset {:#x}) points to other bytes near {:#x}",
                        location.storage_offset,
                        at + offset
                    );
                }
            }
        }
    }
    assert_eq!(next, size, "{what}: extents reach to the end");
}

/// What a disk may read after a crash: each sector what it held at the last completed flush of the guest, or any value
/// that it was given since.
#[derive(Clone)]
pub struct CrashModel {
    durable: MemoryStorage,
    since: Vec<MemoryStorage>,
}

impl CrashModel {
    /// Everything so far is durable.
    pub fn new(content: &MemoryStorage) -> Self {
        Self {
            durable: content.clone(),
            since: Vec::new(),
        }
    }

    /// The whole disk after a change.
    pub fn changed(&mut self, content: &MemoryStorage) {
        self.since.push(content.clone());
    }

    /// A flush of the guest was completed: what the disk holds now is what it will hold.
    pub fn flushed(&mut self) {
        if let Some(last) = self.since.pop() {
            self.durable = last;
            self.since.clear();
        }
    }

    /// What is wrong with this content, in words.
    pub fn violation(&self, content: &MemoryStorage) -> Option<String> {
        let newest = self.since.last().unwrap_or(&self.durable);
        let mut compared: Vec<&MemoryStorage> = vec![content, &self.durable];
        compared.extend(&self.since);
        let (mut found, mut wanted) = (vec![0; CHUNK as usize], vec![0; CHUNK as usize]);
        for (at, n) in data_ranges(&compared) {
            let (found, wanted) = (&mut found[..n as usize], &mut wanted[..n as usize]);
            content.read_at(at, found).expect("memory");
            newest.read_at(at, wanted).expect("memory");
            if found == wanted {
                continue;
            }
            for sector in (0..n).step_by(SECTOR as usize) {
                let end = (sector + SECTOR).min(n);
                let range = sector as usize..end as usize;
                if found[range.clone()] == wanted[range.clone()] {
                    continue;
                }
                let mut other = vec![0; range.len()];
                let allowed = compared[1..].iter().any(|version| {
                    version.read_at(at + sector, &mut other).expect("memory");
                    other == found[range.clone()]
                });
                if !allowed {
                    self.durable
                        .read_at(at + sector, &mut other)
                        .expect("memory");
                    return Some(format!(
                        "sector at {:#x} reads {:02x?}.., neither the flushed {:02x?}.., nor the newest {:02x?}.., nor any value between",
                        at + sector,
                        &found[range.clone()][..8],
                        &other[..8],
                        &wanted[range][..8],
                    ));
                }
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn after_a_crash_old_and_new_are_allowed_and_nothing_else() {
        let content = blank(4096);
        let mut model = CrashModel::new(&content);
        content.write_at(0, &[1; 1024]).unwrap();
        model.changed(&content);
        content.write_at(0, &[2; 1024]).unwrap();
        model.changed(&content);
        let seen = blank(4096);
        assert_eq!(model.violation(&seen), None);
        seen.write_at(0, &[1; 512]).unwrap();
        seen.write_at(512, &[2; 512]).unwrap();
        assert_eq!(model.violation(&seen), None);
        model.flushed();
        assert!(model.violation(&seen).is_some(), "1 is no longer allowed");
        seen.write_at(0, &[2; 512]).unwrap();
        assert_eq!(model.violation(&seen), None);
        seen.write_at(2048, &[2]).unwrap();
        assert!(model.violation(&seen).is_some(), "another sector's data");
    }
}
