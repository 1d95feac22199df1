//! The three images that everything is measured with, made from a fixed seed, and the hash that outputs are held
//! against.

use std::os::unix::fs::FileExt;
use std::path::Path;

use vhdkit::VirtualDisk;
use vhdkit::storage::AlignedBuffer;

use crate::Result;

const MIB: u64 = 1024 * 1024;

/// What an image contains.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) enum Kind {
    /// Random bytes everywhere.
    Rand,
    /// A quarter of the 2 MiB pieces, chosen at random, with random bytes.
    Sp25,
    /// As a file system leaves it: about 60 % allocated in runs of all sizes, zeros of a few KiB to MiB between data.
    Fs,
}

impl Kind {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Kind::Rand => "rand",
            Kind::Sp25 => "sp25",
            Kind::Fs => "fs",
        }
    }
}

/// SplitMix64.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// From `low` to `high`, each power of two as likely as the next.
    fn length(&mut self, low: u64, high: u64) -> u64 {
        let octave = self.next() % u64::from((high / low).ilog2());
        let base = low << octave;
        (base + self.next() % base) / 4096 * 4096
    }

    pub(crate) fn fill(&mut self, bytes: &mut [u8]) {
        for word in bytes.chunks_exact_mut(8) {
            word.copy_from_slice(&self.next().to_le_bytes());
        }
    }
}

/// Makes an image; returns the bytes of data in it.
pub(crate) fn make(path: &str, kind: Kind, size: u64) -> Result<u64> {
    let file = std::fs::File::create_new(path)?;
    file.set_len(size)?;
    let mut random = Random(0x7668_646B_6974 ^ kind as u64);
    let mut written = 0;
    match kind {
        Kind::Rand => written = write_run(&file, &mut random, 0, size, false)?,
        Kind::Sp25 => {
            for piece in 0..size / (2 * MIB) {
                if random.next().is_multiple_of(4) {
                    written += write_run(&file, &mut random, piece * 2 * MIB, 2 * MIB, false)?;
                }
            }
        }
        Kind::Fs => {
            let mut at = 0;
            while at < size {
                let run = random.length(64 * 1024, 128 * MIB).min(size - at);
                written += write_run(&file, &mut random, at, run, true)?;
                at += run + random.length(64 * 1024, 96 * MIB);
            }
        }
    }
    Ok(written)
}

/// Random bytes; with `gaps` some of it stays zero, written all the same in pieces below 64 KiB.
fn write_run(
    file: &std::fs::File,
    random: &mut Random,
    offset: u64,
    length: u64,
    gaps: bool,
) -> Result<u64> {
    let mut buffer = vec![0; 64 * 1024];
    let (mut at, end, mut written) = (offset, offset + length, 0);
    while at < end {
        let n = (end - at).min(buffer.len() as u64);
        let part = &mut buffer[..usize::try_from(n)?];
        random.fill(part);
        match random.next() % 64 {
            0 if gaps => {}
            1..4 if gaps => {
                let zeros = part.len() / 2;
                part[..zeros].fill(0);
                file.write_all_at(part, at)?;
                written += n;
            }
            _ => {
                file.write_all_at(part, at)?;
                written += n;
            }
        }
        at += n;
    }
    Ok(written)
}

/// Hash of what a disk reads as, by our own reader: of its pieces of 64 KiB that are not zero, and where they are. The
/// same for a raw image and anything it was converted to.
pub(crate) fn hash(path: &str) -> Result<u64> {
    const PIECE: usize = 64 * 1024;
    let disk = VirtualDisk::open(Path::new(path))?;
    let mut buffer = AlignedBuffer::new(PIECE);
    let mut hash = 0_u64;
    let mut done = 0;
    for extent in disk.extents(0..disk.virtual_size()) {
        let (offset, extent) = extent?;
        if extent.data.is_none() {
            continue;
        }
        let mut at = (offset / PIECE as u64 * PIECE as u64).max(done);
        while at < offset + extent.length {
            let n = usize::try_from(disk.virtual_size() - at)?.min(PIECE);
            let part = &mut buffer[..n];
            disk.read_at(at, part)?;
            if part.iter().any(|&byte| byte != 0) {
                let piece = at ^ (u64::from(crc32c::crc32c(part)) << 20);
                hash = hash.rotate_left(5) ^ Random(piece).next();
            }
            at += n as u64;
        }
        done = at;
    }
    Ok(hash)
}
