//! Reading and writing the blocks of dynamic and differencing disks.
//!
//! Reads take no lock: blocks never move or go away while the disk is open, an entry of the BAT appears after its
//! block's content, and a bit of a bitmap appears after its sector's data.
//!
//! Writes to blocks whose sectors are all here take no lock either. Other writes hold the block's lock: shared while
//! they write whole sectors and set bits, exclusively while they allocate the block or complete a sector with bytes
//! of the parent.

mod copying;
mod zeroing;

use std::io::PipeReader;
use std::ops::Range;
use std::sync::Arc;

use super::bat::Entry;
use super::bitmap::SectorBitmap;
use super::header::SparseHeader;
use super::journal::{Journal, Tables};
use super::layout::SECTOR;
use super::space::Structure;
use crate::block_lock::BlockLocks;
use crate::error::{Error, ErrorKind, Result};
use crate::image::{Backing, Extent, ExtentKind, ZeroMode};
use crate::num::{round_down, round_up, to_usize};
use crate::storage::Storage;

/// A dynamic or differencing disk.
pub(super) struct Sparse {
    pub(super) storage: Arc<dyn Storage>,
    pub(super) tables: Arc<Tables>,
    pub(super) locks: BlockLocks,
    /// What is not here is in a parent; otherwise it is zero, and bitmaps do not matter for reading.
    pub(super) differencing: bool,
    pub(super) header: SparseHeader,
    /// Everything in the file but blocks and the footer at the end.
    pub(super) structures: Vec<Structure>,
}

/// The part of a request that falls into one block.
#[derive(Clone, Copy)]
struct Piece {
    block: u64,
    /// Offset in the block's data.
    within: u64,
    length: u64,
    /// Offset in the request.
    at: u64,
}

impl Piece {
    /// Sectors of the block that the piece touches.
    fn sectors(self) -> Range<u64> {
        self.within / SECTOR..(self.within + self.length).div_ceil(SECTOR)
    }
}

impl Sparse {
    fn shape_size(&self) -> u64 {
        self.tables.bat.shape.block_size
    }

    fn data(&self, at: u64) -> u64 {
        at + self.tables.bat.shape.bitmap_size
    }

    fn pieces(&self, offset: u64, length: u64) -> impl Iterator<Item = Piece> + use<> {
        let size = self.shape_size();
        let end = offset + length;
        let mut next = offset;
        std::iter::from_fn(move || {
            (next < end).then(|| {
                let block = next / size;
                let stop = ((block + 1) * size).min(end);
                let piece = Piece {
                    block,
                    within: next % size,
                    length: stop - next,
                    at: next - offset,
                };
                next = stop;
                piece
            })
        })
    }

    /// The bitmap that decides over a block at `at`; `None` if all of it is here.
    pub(super) fn bitmap(&self, block: u64, at: u64) -> Result<Option<Arc<SectorBitmap>>> {
        self.tables.bitmaps.get(block, &*self.storage, at)
    }

    pub(super) fn read_at(
        &self,
        offset: u64,
        buf: &mut [u8],
        absent: &mut Vec<Range<u64>>,
    ) -> Result<()> {
        for piece in self.pieces(offset, buf.len() as u64) {
            let part = &mut buf[to_usize(piece.at)..to_usize(piece.at + piece.length)];
            match self.tables.bat.get(piece.block) {
                Entry::At(at) => {
                    let data = self.data(at);
                    let bitmap = if self.differencing {
                        self.bitmap(piece.block, at)?
                    } else {
                        None
                    };
                    match bitmap {
                        None => self.storage.read_at(data + piece.within, part)?,
                        Some(bitmap) => {
                            self.read_partial(piece, offset, data, &bitmap, part, absent)?;
                        }
                    }
                }
                Entry::Unallocated if self.differencing => {
                    push(absent, offset + piece.at, piece.length);
                }
                Entry::Unallocated => part.fill(0),
                Entry::Invalid => return Err(self.invalid(piece.block)),
            }
        }
        Ok(())
    }

    fn read_partial(
        &self,
        piece: Piece,
        offset: u64,
        data: u64,
        bitmap: &SectorBitmap,
        buf: &mut [u8],
        absent: &mut Vec<Range<u64>>,
    ) -> Result<()> {
        let mut done = 0;
        while done < piece.length {
            let from = piece.within + done;
            let (here, run) = run_of(bitmap, from, piece.length - done);
            if here {
                self.storage
                    .read_at(data + from, &mut buf[to_usize(done)..to_usize(done + run)])?;
            } else {
                push(absent, offset + piece.at + done, run);
            }
            done += run;
        }
        Ok(())
    }

    fn invalid(&self, block: u64) -> Error {
        Error::new(
            ErrorKind::BlockAllocationTableCorrupt,
            format!(
                "the entry of block {block} (from {} of the disk) in the block allocation table leads outside the file's data",
                block * self.shape_size()
            ),
        )
        .with_hint("the file was cut off or damaged; check lists all such blocks")
    }

    pub(super) fn map(&self, offset: u64, length: u64) -> Result<Extent> {
        let size = self.shape_size();
        let (block, within, end) = (offset / size, offset % size, offset + length);
        let nothing = if self.differencing {
            ExtentKind::Absent
        } else {
            ExtentKind::Zero
        };
        let at = match self.tables.bat.get(block) {
            Entry::Unallocated => {
                let run = self.tables.bat.unallocated_run(block, end.div_ceil(size));
                // An entry may have appeared since it was looked at; at least this block was unallocated.
                let stop = ((block + run.max(1)) * size).min(end);
                return Ok(Extent {
                    length: stop - offset,
                    kind: nothing,
                });
            }
            Entry::Invalid => return Err(self.invalid(block)),
            Entry::At(at) => at,
        };
        let mut length = length.min(size - within);
        if self.differencing
            && let Some(bitmap) = self.bitmap(block, at)?
        {
            let (here, run) = run_of(&bitmap, within, length);
            length = run;
            if !here {
                return Ok(Extent {
                    length: self.join_absent(offset, length, end),
                    kind: ExtentKind::Absent,
                });
            }
        }
        let start = self.data(at) + within;
        // Holes that a discard left in the file.
        Ok(match self.storage.next_data(start..start + length)? {
            Some(found) if found.start <= start => Extent {
                length: (found.end - start).min(length),
                kind: ExtentKind::Data {
                    storage_offset: start,
                },
            },
            found => Extent {
                length: found.map_or(length, |found| found.start - start),
                kind: ExtentKind::Zero,
            },
        })
    }

    /// Makes an absent run longer by the unallocated blocks that follow it.
    fn join_absent(&self, offset: u64, length: u64, end: u64) -> u64 {
        let size = self.shape_size();
        let stop = offset + length;
        if !stop.is_multiple_of(size) || stop >= end {
            return length;
        }
        let run = self
            .tables
            .bat
            .unallocated_run(stop / size, end.div_ceil(size));
        (stop + run * size).min(end) - offset
    }

    pub(super) fn write_at(
        &self,
        journal: &Journal,
        offset: u64,
        data: &[u8],
        backing: &dyn Backing,
    ) -> Result<()> {
        journal.begin()?;
        for piece in self.pieces(offset, data.len() as u64) {
            let part = &data[to_usize(piece.at)..to_usize(piece.at + piece.length)];
            self.write_piece(journal, offset + piece.at, piece, part, backing)?;
        }
        Ok(())
    }

    /// See [`crate::image::Image::write_pipe`]: to blocks that are here in whole.
    pub(super) fn write_pipe(
        &self,
        journal: &Journal,
        offset: u64,
        length: u64,
        pipe: &PipeReader,
    ) -> Result<u64> {
        journal.begin()?;
        let Some(piece) = self.pieces(offset, length).next() else {
            return Ok(0);
        };
        match self.tables.bat.get(piece.block) {
            Entry::At(at) if self.tables.bitmaps.is_full(piece.block) => {
                let at = self.data(at) + piece.within;
                Ok(self.storage.write_pipe(at, piece.length, pipe))
            }
            _ => Ok(0),
        }
    }

    fn write_piece(
        &self,
        journal: &Journal,
        offset: u64,
        piece: Piece,
        data: &[u8],
        backing: &dyn Backing,
    ) -> Result<()> {
        if let Entry::At(at) = self.tables.bat.get(piece.block) {
            if self.tables.bitmaps.is_full(piece.block) {
                return self.storage.write_at(self.data(at) + piece.within, data);
            }
            let shared = self.locks.read(piece.block);
            let Some(bitmap) = self.bitmap(piece.block, at)? else {
                drop(shared);
                return self.storage.write_at(self.data(at) + piece.within, data);
            };
            if !self.differencing || !needs_parent(piece, &bitmap) {
                self.storage.write_at(self.data(at) + piece.within, data)?;
                let many = self.mark(journal, piece.block, &bitmap, piece.sectors());
                drop(shared);
                return if many { journal.flush() } else { Ok(()) };
            }
        }
        let exclusive = self.locks.write(piece.block);
        // The disk may have been closed while this waited.
        journal.begin()?;
        let many = match self.tables.bat.get(piece.block) {
            Entry::At(at) => {
                let data_at = self.data(at);
                match self.bitmap(piece.block, at)? {
                    None => {
                        self.storage.write_at(data_at + piece.within, data)?;
                        false
                    }
                    Some(bitmap) => {
                        self.write_completed(data_at, offset, piece, data, Some(&bitmap), backing)?;
                        self.mark(journal, piece.block, &bitmap, piece.sectors())
                    }
                }
            }
            Entry::Unallocated => {
                self.allocate(journal, piece, ZeroMode::MayUnmap, |data_at| {
                    self.write_completed(data_at, offset, piece, data, None, backing)
                })?;
                false
            }
            Entry::Invalid => return Err(self.invalid(piece.block)),
        };
        drop(exclusive);
        if many { journal.flush() } else { Ok(()) }
    }

    /// Sets bits of sectors that were written. True if the journal would like to be flushed.
    fn mark(
        &self,
        journal: &Journal,
        block: u64,
        bitmap: &SectorBitmap,
        sectors: Range<u64>,
    ) -> bool {
        journal.change_bitmap(&self.tables, block, || {
            self.tables.bitmaps.set(block, bitmap, sectors)
        })
    }

    /// Writes a piece and, in front of it and behind it, what its first and last sector lack. `bitmap` is `None` for a
    /// new block, where no sector is here.
    fn write_completed(
        &self,
        data_at: u64,
        offset: u64,
        piece: Piece,
        data: &[u8],
        bitmap: Option<&SectorBitmap>,
        backing: &dyn Backing,
    ) -> Result<()> {
        let is_here =
            |sector: u64| !self.differencing || bitmap.is_some_and(|b| b.contains(sector));
        let end = piece.within + piece.length;
        // The parts that are not whole sectors: at most the first and the last.
        let head = round_up(piece.within, SECTOR).min(end) - piece.within;
        let tail = (end - round_down(end, SECTOR)).min(piece.length - head);
        let (front, rest) = data.split_at(to_usize(head));
        let (middle, back) = rest.split_at(rest.len() - to_usize(tail));
        for (part, within) in [(front, piece.within), (back, end - tail)] {
            if part.is_empty() {
                continue;
            }
            let start = round_down(within, SECTOR);
            if is_here(start / SECTOR) {
                self.storage.write_at(data_at + within, part)?;
                continue;
            }
            let mut sector = [0; 512];
            backing.read_at(
                round_down(offset - piece.within + within, SECTOR),
                &mut sector,
            )?;
            let from = to_usize(within - start);
            sector[from..from + part.len()].copy_from_slice(part);
            self.storage.write_at(data_at + start, &sector)?;
        }
        if !middle.is_empty() {
            self.storage
                .write_at(data_at + piece.within + head, middle)?;
        }
        Ok(())
    }

    /// Gives a block its place: `fill` writes the piece's data, the bitmap says what is here, and the BAT shows it.
    /// The block's lock is held exclusively.
    fn allocate(
        &self,
        journal: &Journal,
        piece: Piece,
        mode: ZeroMode,
        fill: impl FnOnce(u64) -> Result<()>,
    ) -> Result<()> {
        let shape = self.tables.bat.shape;
        let at = journal.reserve(&self.tables)?;
        let written = (|| {
            if mode == ZeroMode::KeepAllocated {
                self.storage.allocate(at, shape.total())?;
            }
            fill(self.data(at))?;
            let bitmap = SectorBitmap::empty(shape.bitmap_size);
            if self.differencing {
                bitmap.set(piece.sectors());
            } else {
                // All sectors of a dynamic disk's block are here: zeros until they are written.
                bitmap.set(0..shape.bitmap_size * 8);
            }
            self.storage.write_at(at, &bitmap.take())?;
            Ok(bitmap)
        })();
        match written {
            Ok(bitmap) => {
                self.tables.bitmaps.insert(piece.block, bitmap);
                journal.publish(&self.tables, piece.block, at);
                Ok(())
            }
            Err(error) => {
                journal.give_back(at);
                Err(error)
            }
        }
    }
}

/// How many of `length` bytes from `within` have the same bit as the first.
fn run_of(bitmap: &SectorBitmap, within: u64, length: u64) -> (bool, u64) {
    let sectors = within / SECTOR..(within + length).div_ceil(SECTOR);
    let (here, run) = bitmap.run(sectors.clone());
    (here, ((sectors.start + run) * SECTOR - within).min(length))
}

/// True if the piece has a first or last sector that it covers only in part and that is not here.
fn needs_parent(piece: Piece, bitmap: &SectorBitmap) -> bool {
    let end = piece.within + piece.length;
    (!piece.within.is_multiple_of(SECTOR) && !bitmap.contains(piece.within / SECTOR))
        || (!end.is_multiple_of(SECTOR) && !bitmap.contains(end / SECTOR))
}

/// Adds a range, joined to the last one where they touch.
fn push(ranges: &mut Vec<Range<u64>>, start: u64, length: u64) {
    match ranges.last_mut() {
        Some(last) if last.end == start => last.end += length,
        _ => ranges.push(start..start + length),
    }
}
