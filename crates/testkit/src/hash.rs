//! Hashes of the contents of disks.

use std::fmt::Write;
use std::ops::Range;

use sha2::{Digest, Sha256};
use vhdkit::storage::Storage;
use vhdkit::{Result, VirtualDisk};

/// Chunks of this many bytes are left out of the quick hash if they are zero.
const CHUNK: u64 = 64 * 1024;

/// A hash as lowercase hexadecimal digits.
pub(crate) fn hex(digest: impl AsRef<[u8]>) -> String {
    digest
        .as_ref()
        .iter()
        .fold(String::new(), |mut text, byte| {
            let _ = write!(text, "{byte:02x}");
            text
        })
}

/// SHA-256 of bytes.
pub fn sha256(bytes: &[u8]) -> String {
    hex(Sha256::digest(bytes))
}

/// The quick hash of large disks: one SHA-256 fed, for each 64 KiB-aligned chunk that holds a non-zero byte (the last
/// may be shorter), with the chunk's offset as u64 little-endian and then its bytes. Bytes come in their order, in
/// pieces of any length.
#[derive(Default)]
pub struct QuickHasher {
    hash: Sha256,
    chunk: Vec<u8>,
    position: u64,
    chunks: u64,
}

impl QuickHasher {
    /// The next bytes of the disk.
    pub fn update(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let n = bytes.len().min(CHUNK as usize - self.chunk.len());
            self.chunk.extend_from_slice(&bytes[..n]);
            bytes = &bytes[n..];
            if self.chunk.len() as u64 == CHUNK {
                self.end_chunk();
            }
        }
    }

    /// The next bytes are zeros.
    pub fn skip_zeros(&mut self, mut length: u64) {
        while length > 0 {
            if self.chunk.is_empty() && length >= CHUNK {
                let whole = length - length % CHUNK;
                self.position += whole;
                length -= whole;
                continue;
            }
            let n = length.min(CHUNK - self.chunk.len() as u64);
            self.chunk.resize(self.chunk.len() + n as usize, 0);
            length -= n;
            if self.chunk.len() as u64 == CHUNK {
                self.end_chunk();
            }
        }
    }

    fn end_chunk(&mut self) {
        if !crate::model::is_zero(&self.chunk) {
            self.hash.update(self.position.to_le_bytes());
            self.hash.update(&self.chunk);
            self.chunks += 1;
        }
        self.position += self.chunk.len() as u64;
        self.chunk.clear();
    }

    /// The hash, how many chunks went into it, and how many bytes the disk has.
    pub fn finish(mut self) -> Content {
        self.end_chunk();
        Content {
            size: self.position,
            nz_sha256: hex(self.hash.finalize()),
            nz_chunks: self.chunks,
        }
    }
}

/// What a disk holds, in short.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Content {
    /// Bytes.
    pub size: u64,
    /// See [`QuickHasher`].
    pub nz_sha256: String,
    /// Chunks that went into the hash.
    pub nz_chunks: u64,
}

/// Feeds every byte of a disk to `data`, or to `zeros` where the extents say that there are only zeros.
///
/// # Errors
/// What reading fails with.
pub fn walk(
    disk: &VirtualDisk,
    mut data: impl FnMut(&[u8]),
    mut zeros: impl FnMut(u64),
) -> Result<()> {
    let mut buf = vec![0; 1 << 20];
    for extent in disk.extents(0..disk.virtual_size()) {
        let (start, extent) = extent?;
        if extent.data.is_none() {
            zeros(extent.length);
            continue;
        }
        let mut done = 0;
        while done < extent.length {
            let n = (extent.length - done).min(buf.len() as u64) as usize;
            disk.read_at(start + done, &mut buf[..n])?;
            data(&buf[..n]);
            done += n as u64;
        }
    }
    Ok(())
}

/// The quick hash of a disk.
///
/// # Errors
/// What reading fails with.
pub fn content_of_disk(disk: &VirtualDisk) -> Result<Content> {
    let hasher = std::cell::RefCell::new(QuickHasher::default());
    walk(
        disk,
        |bytes| hasher.borrow_mut().update(bytes),
        |n| hasher.borrow_mut().skip_zeros(n),
    )?;
    Ok(hasher.into_inner().finish())
}

/// The quick hash of a file of raw bytes, its holes skipped.
///
/// # Errors
/// What reading fails with.
pub fn content_of_storage(storage: &dyn Storage) -> Result<Content> {
    let length = storage.len()?;
    let mut hasher = QuickHasher::default();
    let mut buf = vec![0; 1 << 20];
    let mut at = 0;
    while at < length {
        let Range { start, end } = storage.next_data(at..length)?.unwrap_or(length..length);
        hasher.skip_zeros(start - at);
        at = start;
        while at < end {
            let n = (end - at).min(buf.len() as u64) as usize;
            storage.read_at(at, &mut buf[..n])?;
            hasher.update(&buf[..n]);
            at += n as u64;
        }
    }
    Ok(hasher.finish())
}

/// SHA-256 of the whole disk, read from its first byte to its last, holes and all.
///
/// # Errors
/// What reading fails with.
pub fn full_sha256(disk: &VirtualDisk) -> Result<String> {
    let mut hash = Sha256::new();
    let mut buf = vec![0; 1 << 20];
    let size = disk.virtual_size();
    let mut at = 0;
    while at < size {
        let n = (size - at).min(buf.len() as u64) as usize;
        disk.read_at(at, &mut buf[..n])?;
        hash.update(&buf[..n]);
        at += n as u64;
    }
    Ok(hex(hash.finalize()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_quick_hash_does_not_depend_on_how_the_bytes_come() {
        let mut bytes = vec![0_u8; 300_000];
        bytes[70_000] = 1;
        bytes[299_999] = 2;
        let mut whole = QuickHasher::default();
        whole.update(&bytes);
        let mut pieces = QuickHasher::default();
        pieces.skip_zeros(69_999);
        pieces.update(&bytes[69_999..70_002]);
        pieces.skip_zeros(299_999 - 70_002);
        pieces.update(&[2]);
        let whole = whole.finish();
        assert_eq!(whole, pieces.finish());
        assert_eq!((whole.size, whole.nz_chunks), (300_000, 2));
    }
}
