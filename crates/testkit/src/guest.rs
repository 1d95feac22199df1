//! Operations of a guest: what a property test or a crash history does to a disk.

use std::fmt;

use proptest::prelude::*;
use vhdkit::image::ZeroMode;
use vhdkit::storage::{MemoryStorage, Storage};
use vhdkit::{Result, VirtualDisk};

use crate::crash::SECTOR;
use crate::rng::{Rng, mix};

/// One operation. Offsets and lengths are in bytes, of any alignment, inside the disk.
#[derive(Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs, reason = "named as the methods of the disk")]
pub enum GuestOp {
    /// Writes the pattern of `seed`; see [`fill`].
    Write {
        offset: u64,
        length: u64,
        seed: u32,
    },
    Zero {
        offset: u64,
        length: u64,
        keep: bool,
    },
    Discard {
        offset: u64,
        length: u64,
    },
    Flush,
    /// Closes the disk and opens it again.
    Reopen,
}

impl fmt::Debug for GuestOp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            GuestOp::Write {
                offset,
                length,
                seed,
            } => write!(
                f,
                "Write {{ offset: {offset:#x}, length: {length:#x}, seed: {seed} }}"
            ),
            GuestOp::Zero {
                offset,
                length,
                keep,
            } => write!(
                f,
                "Zero {{ offset: {offset:#x}, length: {length:#x}, keep: {keep} }}"
            ),
            GuestOp::Discard { offset, length } => {
                write!(f, "Discard {{ offset: {offset:#x}, length: {length:#x} }}")
            }
            GuestOp::Flush => f.write_str("Flush"),
            GuestOp::Reopen => f.write_str("Reopen"),
        }
    }
}

impl GuestOp {
    /// Writes the pattern of `seed`.
    pub fn write(offset: u64, length: u64, seed: u32) -> Self {
        GuestOp::Write {
            offset,
            length,
            seed,
        }
    }

    /// Zeroes a range, giving space back where possible.
    pub fn zero(offset: u64, length: u64) -> Self {
        GuestOp::Zero {
            offset,
            length,
            keep: false,
        }
    }

    /// Discards a range.
    pub fn discard(offset: u64, length: u64) -> Self {
        GuestOp::Discard { offset, length }
    }

    /// The same operation, shortened where it reaches past the end of a disk of this size.
    #[must_use]
    pub fn within(mut self, virtual_size: u64) -> Self {
        if let GuestOp::Write { offset, length, .. }
        | GuestOp::Zero { offset, length, .. }
        | GuestOp::Discard { offset, length } = &mut self
        {
            *offset = (*offset).min(virtual_size);
            *length = (*length).min(virtual_size - *offset);
        }
        self
    }

    /// The range that the operation changes.
    pub fn range(&self) -> Option<(u64, u64)> {
        match *self {
            GuestOp::Write { offset, length, .. }
            | GuestOp::Zero { offset, length, .. }
            | GuestOp::Discard { offset, length } => Some((offset, length)),
            GuestOp::Flush | GuestOp::Reopen => None,
        }
    }

    /// Does it to a disk. [`GuestOp::Reopen`] only flushes here: whoever holds the storage reopens.
    ///
    /// # Errors
    /// What the disk says.
    pub fn run(&self, disk: &VirtualDisk) -> Result<()> {
        match *self {
            GuestOp::Write {
                offset,
                length,
                seed,
            } => disk.write_at(offset, &pattern(seed, offset, length)),
            GuestOp::Zero {
                offset,
                length,
                keep,
            } => {
                let mode = if keep {
                    ZeroMode::KeepAllocated
                } else {
                    ZeroMode::MayUnmap
                };
                disk.zero(offset, length, mode)
            }
            GuestOp::Discard { offset, length } => disk.discard(offset, length),
            GuestOp::Flush | GuestOp::Reopen => disk.flush(),
        }
    }

    /// Does it to a model. After a discard the model is asked to follow the disk: see [`follow_discard`].
    pub fn run_on_model(&self, content: &MemoryStorage) {
        match *self {
            GuestOp::Write {
                offset,
                length,
                seed,
            } => content
                .write_at(offset, &pattern(seed, offset, length))
                .expect("memory"),
            GuestOp::Zero { offset, length, .. } => {
                content.zero_range(offset, length).expect("memory");
            }
            GuestOp::Discard { .. } | GuestOp::Flush | GuestOp::Reopen => {}
        }
    }
}

/// The bytes that a seed stands for at a place of the disk: every place has other bytes, so that nothing can be put in
/// the wrong place unseen. Seed 0 stands for zeros, 1 for bytes that are all 0xff.
pub fn pattern(seed: u32, offset: u64, length: u64) -> Vec<u8> {
    let mut bytes = vec![0; length as usize];
    fill(seed, offset, &mut bytes);
    bytes
}

/// Fills `buf` as [`pattern`] does.
pub fn fill(seed: u32, offset: u64, buf: &mut [u8]) {
    match seed {
        0 => buf.fill(0),
        1 => buf.fill(0xff),
        _ => {
            let mut at = offset;
            let mut rest = buf;
            while !rest.is_empty() {
                // The seed is in every word, so that a hexdump shows whose data it is.
                let word = (u64::from(seed) << 48
                    | (mix((at / 8) ^ (u64::from(seed) << 40)) >> 16))
                    .to_be_bytes();
                let within = (at % 8) as usize;
                let n = rest.len().min(8 - within);
                rest[..n].copy_from_slice(&word[within..within + n]);
                rest = &mut rest[n..];
                at += n as u64;
            }
        }
    }
}

/// Puts into the model what the disk reads after a discard, and says what is wrong if a 512-byte sector holds neither
/// what it held before nor zeros.
///
/// # Errors
/// What reading fails with.
pub fn follow_discard(
    disk: &VirtualDisk,
    content: &MemoryStorage,
    offset: u64,
    length: u64,
) -> Result<Option<String>> {
    const PART: u64 = 1 << 20;
    let end = offset + length;
    let mut at = offset;
    while at < end {
        let n = (PART - at % PART).min(end - at);
        let mut now = vec![0; n as usize];
        let mut before = vec![0; n as usize];
        disk.read_at(at, &mut now)?;
        content.read_at(at, &mut before)?;
        let mut from = 0;
        while from < n {
            let to = (from + SECTOR - (at + from) % SECTOR).min(n);
            let range = from as usize..to as usize;
            if now[range.clone()] != before[range.clone()]
                && now[range.clone()].iter().any(|&b| b != 0)
            {
                return Ok(Some(format!(
                    "after a discard the sector at {:#x} reads {:02x?}.., neither zeros nor {:02x?}.. as before",
                    at + from,
                    &now[range.clone()][..8.min(range.len())],
                    &before[range.clone()][..8.min(range.len())],
                )));
            }
            if now[range.clone()] != before[range.clone()] {
                content.zero_range(at + from, to - from)?;
            }
            from = to;
        }
        at += n;
    }
    Ok(None)
}

/// The shape of a disk, to choose interesting places by. Sizes are in bytes.
#[derive(Clone, Debug)]
pub struct Shape {
    /// Size of the disk.
    pub virtual_size: u64,
    /// Unit of allocation.
    pub block_size: u64,
    /// Logical sectors.
    pub sector_size: u64,
    /// Longest range of one operation.
    pub longest: u64,
}

impl Shape {
    /// Places where something begins or ends: the disk, blocks, chunks of sector bitmaps, and the offsets at which
    /// 32-bit arithmetic breaks.
    pub fn edges(&self) -> Vec<u64> {
        let chunk = (1 << 23) * self.sector_size;
        let mut edges = vec![0, self.virtual_size];
        for k in [1, 2, 3, 4, 7] {
            edges.push(k * self.block_size);
        }
        for big in [1 << 31, 1 << 32, 1 << 40, chunk, 2 * chunk] {
            edges.push(big);
            edges.push(big + self.block_size);
        }
        edges.push(self.virtual_size / self.block_size * self.block_size);
        edges.retain(|&e| e <= self.virtual_size);
        edges.sort_unstable();
        edges.dedup();
        edges
    }

    /// A range from three numbers of any size: near an edge mostly.
    fn range(&self, place: u64, shift: u64, length: u64) -> (u64, u64) {
        let edges = self.edges();
        let sector = self.sector_size;
        let length = match length % 12 {
            0 => 1,
            1 => 511,
            2 => sector - 1,
            3 | 4 => sector,
            5 => sector + 1,
            6 => 8 * sector,
            7 => 4096,
            8 => self.block_size,
            9 => self.block_size + sector,
            10 => (length / 12) % (2 * self.block_size) + 1,
            _ => (length / 12) % (64 * sector) + 1,
        };
        let anchor = if place.is_multiple_of(8) {
            (place / 8) % self.virtual_size
        } else {
            edges[(place / 8) as usize % edges.len()]
        };
        let back = match shift % 8 {
            0 => 0,
            1 => length,
            2 => length / 2,
            3 => sector,
            4 => 1,
            5 => length.saturating_sub(sector),
            6 => (shift / 8) % (4 * sector),
            _ => (shift / 8) % self.block_size,
        };
        let length = length.clamp(1, self.longest.min(self.virtual_size));
        let mut offset = anchor.saturating_sub(back);
        if shift % 16 < 12 && self.virtual_size >= sector {
            // Most guests keep to sectors.
            offset -= offset % sector;
        }
        (offset.min(self.virtual_size - length), length)
    }

    /// A random operation from random numbers.
    fn op(&self, kind: u8, place: u64, shift: u64, length: u64, seed: u32) -> GuestOp {
        let (offset, length) = self.range(place, shift, length);
        match kind % 20 {
            0..=9 => GuestOp::Write {
                offset,
                length,
                seed,
            },
            10..=11 => GuestOp::zero(offset, length),
            12 => GuestOp::Zero {
                offset,
                length,
                keep: true,
            },
            13..=14 => GuestOp::Discard { offset, length },
            15..=17 => GuestOp::Flush,
            _ => GuestOp::Reopen,
        }
    }

    /// A random history.
    pub fn random_ops(&self, count: usize, rng: &mut Rng) -> Vec<GuestOp> {
        (0..count)
            .map(|i| {
                self.op(
                    rng.next() as u8,
                    rng.next(),
                    rng.next(),
                    rng.next(),
                    2 + i as u32,
                )
            })
            .collect()
    }

    /// Histories for property tests; they shrink to fewer operations at lower places.
    pub fn ops(&self, count: std::ops::Range<usize>) -> BoxedStrategy<Vec<GuestOp>> {
        let shape = self.clone();
        // A history whose writes carry the same seed twice would hide a stale read.
        let one = (
            any::<u8>(),
            any::<u64>(),
            any::<u64>(),
            any::<u64>(),
            prop_oneof![8 => Just(2_u32), 1 => Just(0_u32), 1 => Just(1_u32)],
        );
        proptest::collection::vec(one, count)
            .prop_map(move |ops| {
                ops.into_iter()
                    .enumerate()
                    .map(|(i, (kind, place, shift, length, seed))| {
                        let seed = if seed == 2 { 2 + i as u32 } else { seed };
                        shape.op(kind, place, shift, length, seed)
                    })
                    .collect()
            })
            .boxed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_does_not_depend_on_how_it_is_cut() {
        let whole = pattern(7, 1000, 100);
        assert_eq!(whole[13..50], pattern(7, 1013, 37));
        assert_ne!(whole[..8], pattern(8, 1000, 8));
    }

    #[test]
    fn random_ranges_are_inside_the_disk_and_reach_its_end() {
        let shape = Shape {
            virtual_size: (1 << 41) + 512,
            block_size: 1 << 20,
            sector_size: 512,
            longest: 3 << 20,
        };
        let ops = shape.random_ops(5000, &mut Rng::new(3));
        let ranges: Vec<_> = ops.iter().filter_map(GuestOp::range).collect();
        assert!(ranges.iter().all(|(o, l)| o + l <= shape.virtual_size));
        assert!(ranges.iter().any(|(o, l)| o + l == shape.virtual_size));
        assert!(ranges.iter().any(|(o, l)| *o < 1 << 40 && o + l > 1 << 40));
    }
}
