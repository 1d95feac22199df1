//! `compare`: do two disks read the same?

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};

use super::look::{LONGEST, Looks};
use crate::disk::VirtualDisk;
use crate::error::{Error, Result};
use crate::num::to_usize;
use crate::operation::{Monitor, Operation};
use crate::storage::AlignedBuffer;
use crate::zeros::is_zero;

/// What a thread compares at a time, in bytes.
const PIECE: u64 = 256 * 1024;
const MAX_THREADS: usize = 4;

/// What a comparison found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct Comparison {
    /// Offset of the first byte that differs; `None` if the disks read the same. A longer disk whose surplus is all
    /// zeros counts as the same.
    pub first_difference: Option<u64>,
    /// True if the sizes differ (and the surplus is zeros).
    pub sizes_differ: bool,
}

/// Compares two disks. Units of progress: bytes of the larger disk that are not zero in both by their maps, and
/// some for looking for them.
///
/// # Errors
/// Through the operation: what reading can fail with.
pub fn compare(a: VirtualDisk, b: VirtualDisk) -> Operation<Comparison> {
    Operation::start("compare", move |monitor| run(&a, &b, monitor))
}

fn run(a: &VirtualDisk, b: &VirtualDisk, monitor: &Monitor) -> Result<Comparison> {
    let end = a.virtual_size().max(b.virtual_size());
    let disks = [a, b];
    let mut cursor = Cursor::new(end);
    let mut data = 0;
    let mut looks = Looks::new(monitor, end);
    while let Some(piece) = cursor.step(disks, u64::MAX)? {
        if piece.data != [false, false] {
            data += piece.range.end - piece.range.start;
        }
        looks.seen(piece.range.end, data)?;
    }
    looks.are_over(data);
    let comparer = Comparer {
        disks,
        monitor,
        cursor: Mutex::new(Cursor::new(end)),
        first_difference: AtomicU64::new(u64::MAX),
        failed: Mutex::new(None),
    };
    let threads = std::thread::available_parallelism()
        .map_or(2, usize::from)
        .clamp(1, MAX_THREADS);
    std::thread::scope(|scope| {
        for _ in 1..threads {
            let _ = std::thread::Builder::new()
                .name("compare".into())
                .spawn_scoped(scope, || comparer.run());
        }
        comparer.run();
    });
    if let Some(error) = comparer
        .failed
        .into_inner()
        .unwrap_or_else(PoisonError::into_inner)
    {
        return Err(error);
    }
    let first = comparer.first_difference.into_inner();
    Ok(Comparison {
        first_difference: (first != u64::MAX).then_some(first),
        sizes_differ: a.virtual_size() != b.virtual_size(),
    })
}

struct Comparer<'a> {
    disks: [&'a VirtualDisk; 2],
    monitor: &'a Monitor,
    cursor: Mutex<Cursor>,
    /// Pieces are handed out in order, so the smallest difference found is the first one.
    first_difference: AtomicU64,
    failed: Mutex<Option<Error>>,
}

struct Cursor {
    at: u64,
    end: u64,
    /// For each disk: up to where the extent at `at` reaches, and whether it is data.
    known_until: [u64; 2],
    data: [bool; 2],
}

/// A range, and which of the disks hold data there.
struct Piece {
    range: Range<u64>,
    data: [bool; 2],
}

impl Cursor {
    fn new(end: u64) -> Self {
        Self {
            at: 0,
            end,
            known_until: [0; 2],
            data: [false; 2],
        }
    }

    /// The next piece of at most `longest` bytes that is data in one of the disks.
    fn next(&mut self, disks: [&VirtualDisk; 2], longest: u64) -> Result<Option<Piece>> {
        while let Some(piece) = self.step(disks, longest)? {
            if piece.data != [false, false] {
                return Ok(Some(piece));
            }
        }
        Ok(None)
    }

    /// The next piece, of at most `longest` bytes if it is data in one of the disks.
    fn step(&mut self, disks: [&VirtualDisk; 2], longest: u64) -> Result<Option<Piece>> {
        let at = self.at;
        if at >= self.end {
            return Ok(None);
        }
        for (i, disk) in disks.iter().enumerate() {
            if self.known_until[i] > at {
                continue;
            }
            let size = disk.virtual_size();
            (self.known_until[i], self.data[i]) = if at >= size {
                (self.end, false)
            } else {
                let extent = disk.map(at, (size - at).min(LONGEST))?;
                (at + extent.length, extent.data.is_some())
            };
        }
        let until = self.known_until[0].min(self.known_until[1]);
        self.at = match self.data {
            [false, false] => until,
            _ => until.min(at.saturating_add(longest)),
        };
        Ok(Some(Piece {
            range: at..self.at,
            data: self.data,
        }))
    }
}

impl Comparer<'_> {
    fn run(&self) {
        let mut buffers = [
            AlignedBuffer::new(to_usize(PIECE)),
            AlignedBuffer::new(to_usize(PIECE)),
        ];
        loop {
            let stop = self.first_difference.load(Relaxed) != u64::MAX
                || self
                    .failed
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .is_some();
            if stop {
                return;
            }
            let result = match self.monitor.checkpoint().and_then(|()| self.next_piece()) {
                Ok(None) => return,
                Ok(Some(piece)) => self.compare_piece(&piece, &mut buffers),
                Err(e) => Err(e),
            };
            if let Err(error) = result {
                self.failed
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .get_or_insert(error);
            }
        }
    }

    fn next_piece(&self) -> Result<Option<Piece>> {
        let mut cursor = self.cursor.lock().unwrap_or_else(PoisonError::into_inner);
        cursor.next(self.disks, PIECE)
    }

    fn compare_piece(&self, piece: &Piece, buffers: &mut [AlignedBuffer; 2]) -> Result<()> {
        let length = to_usize(piece.range.end - piece.range.start);
        for (i, disk) in self.disks.iter().enumerate() {
            if piece.data[i] {
                disk.read_at(piece.range.start, &mut buffers[i][..length])?;
            }
        }
        let [a, b] = buffers;
        let (a, b) = (&a[..length], &b[..length]);
        let difference = match piece.data {
            [true, true] if a == b => None,
            [true, true] => a.iter().zip(b).position(|(x, y)| x != y),
            [true, false] => first_byte(a),
            _ => first_byte(b),
        };
        if let Some(at) = difference {
            self.first_difference
                .fetch_min(piece.range.start + at as u64, Relaxed);
        }
        self.monitor.advance(length as u64);
        Ok(())
    }
}

fn first_byte(bytes: &[u8]) -> Option<usize> {
    if is_zero(bytes) {
        None
    } else {
        bytes.iter().position(|&byte| byte != 0)
    }
}
