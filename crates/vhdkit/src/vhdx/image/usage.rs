//! What takes space in the file, and giving it back (format sheet 8.3).

use super::VhdxImage;
use crate::error::{Error, ErrorKind, Result};
use crate::image::{AllocatedBlock, Pace, Usage};
use crate::num::{MIB, round_up};
use crate::vhdx::bat::{self, Block, Geometry, Slot};
use crate::vhdx::layout::{BITMAP_BLOCK, HEADER_AREA, REGION_BAT, REGION_METADATA};
use crate::vhdx::pages::Peek;
use crate::vhdx::plan::{Movable, Plan};
use crate::vhdx::space::UsedMap;
use std::sync::atomic::Ordering;

/// Space that a BAT entry refers to.
#[derive(Clone, Copy)]
pub(super) struct Held {
    pub(super) index: u64,
    pub(super) slot: Slot,
    /// In the file.
    pub(super) at: u64,
    pub(super) length: u64,
    /// False: it reads as zeros whatever is there.
    pub(super) has_content: bool,
}

/// What of the file is in use.
pub(super) struct Survey {
    pub(super) used: UsedMap,
    /// Blocks with space.
    pub(super) allocated: u64,
    /// Of these, how many are not right behind the one before.
    pub(super) displaced: u64,
    /// Bytes that a fixed disk still needs for blocks without a place.
    pub(super) unplaced: u64,
}

impl VhdxImage {
    /// The space that an entry holds, if it holds any.
    pub(super) fn held(&self, index: u64, entry: u64) -> Result<Option<Held>> {
        let held = |slot, at, length, has_content| {
            Some(Held {
                index,
                slot,
                at,
                length,
                has_content,
            })
        };
        let size = self.geometry.block_size;
        Ok(match self.geometry.slot(index) {
            slot @ Slot::Payload(block) if block < self.geometry.block_count => {
                match self.decode(block, entry)? {
                    Block::Present(at) | Block::Partial(at) => held(slot, at, size, true),
                    _ => self
                        .anchor(block, entry)?
                        .and_then(|at| held(slot, at, size, false)),
                }
            }
            // Padding means nothing.
            Slot::Payload(_) => None,
            slot @ Slot::Bitmap(chunk) if self.metadata.has_parent => {
                bat::bitmap(chunk, entry, self.file_end.load(Ordering::Relaxed))?
                    .and_then(|at| held(slot, at, BITMAP_BLOCK, true))
            }
            Slot::Bitmap(_) => None,
        })
    }

    /// Walks the entries that hold space from `index` on, until `found` says that it is enough. Loads nothing of a
    /// large BAT and skips its holes.
    pub(super) fn walk_held(
        &self,
        index: u64,
        found: &mut dyn FnMut(Held) -> Result<bool>,
    ) -> Result<()> {
        self.walk_held_telling(index, &mut |_| Ok(()), found)
    }

    /// As [`Self::walk_held`]; `told` hears of further bytes of the BAT that were read, and may stop the walk.
    fn walk_held_telling(
        &self,
        mut index: u64,
        told: &mut dyn FnMut(u64) -> Result<()>,
        found: &mut dyn FnMut(Held) -> Result<bool>,
    ) -> Result<()> {
        while index < self.bat.words() {
            match self.bat.peek(&*self.storage, index)? {
                Peek::Zeros(count) => index += count,
                Peek::Words(words) => {
                    told(words.len() as u64 * 8)?;
                    for entry in words {
                        if let Some(held) = self.held(index, entry)?
                            && !found(held)?
                        {
                            return Ok(());
                        }
                        index += 1;
                    }
                }
            }
        }
        Ok(())
    }

    /// What of the file is in use; a place used twice makes the disk unfit for writing.
    pub(super) fn survey(&self) -> Result<Survey> {
        self.survey_telling(&mut |_| Ok(()))
    }

    /// As [`Self::survey`]; `told` hears of further bytes of the BAT that were read, and may stop it.
    pub(super) fn survey_telling(&self, told: &mut dyn FnMut(u64) -> Result<()>) -> Result<Survey> {
        let mut used = UsedMap::default();
        used.mark(0, HEADER_AREA);
        let (log_offset, log_length) = self.journal.log_span();
        used.mark(log_offset, log_length);
        for region in &self.regions.all {
            used.mark(region.offset, region.length);
        }
        let (mut allocated, mut displaced, mut before) = (0, 0, None);
        self.walk_held_telling(0, told, &mut |held| {
            if !used.mark(held.at, held.length) {
                return Err(shared(&held));
            }
            if matches!(held.slot, Slot::Payload(_)) {
                allocated += 1;
                displaced += u64::from(before.is_some_and(|end| end != held.at));
                before = Some(held.at + held.length);
            }
            Ok(true)
        })?;
        let unplaced = if self.metadata.leave_blocks_allocated {
            (self.geometry.block_count - allocated) * self.geometry.block_size
        } else {
            0
        };
        Ok(Survey {
            used,
            allocated,
            displaced,
            unplaced,
        })
    }

    /// What reading the whole BAT means, in bytes: without its holes.
    pub(super) fn table_length(&self) -> Result<u64> {
        let region = self.regions.bat;
        let (mut length, mut at) = (0, region.offset);
        while let Some(data) = self.storage.next_data(at..region.end())? {
            length += data.end - data.start;
            at = data.end;
        }
        Ok(length)
    }

    /// How the file becomes as short as it can. `told` hears of further bytes of the BAT that were read, and may stop it.
    pub(super) fn plan_telling(
        &self,
        survey: &Survey,
        told: &mut dyn FnMut(u64) -> Result<()>,
    ) -> Result<Plan> {
        let floor = Plan::floor(&survey.used);
        let mut objects = Vec::new();
        let (log_offset, log_length) = self.journal.log_span();
        let mut pinned = HEADER_AREA;
        if log_length > 0 {
            pinned = pinned.max(log_offset + log_length);
        }
        for region in &self.regions.all {
            let span = (region.offset, region.length);
            if region.guid == REGION_BAT {
                objects.push((span, Movable::Bat));
            } else if region.guid == REGION_METADATA {
                objects.push((span, Movable::Metadata));
            } else {
                pinned = pinned.max(region.end());
            }
        }
        objects.retain(|&((at, length), _)| at + length > floor);
        if survey.used.end() > floor {
            self.walk_held_telling(0, told, &mut |held| {
                if held.at + held.length > floor {
                    objects.push(((held.at, held.length), Movable::Entry(held.index)));
                }
                Ok(true)
            })?;
        }
        Ok(Plan::new(&survey.used, pinned, objects))
    }

    /// See [`crate::image::Image::usage_telling`].
    pub(super) fn space_usage(&self, pace: Pace<'_>) -> Result<Usage> {
        // A block that moved during the walk would seem to share its space.
        let _alone = self.locks.write_all();
        // It is read once for what is in use, and once for what would move.
        let (mut read, all) = (0, 2 * self.table_length()?);
        let mut told = |bytes| {
            read += bytes;
            pace(read, all.max(read))
        };
        let survey = self.survey_telling(&mut told)?;
        let file_size = self.storage.len()?;
        let payload = survey.allocated * self.geometry.block_size;
        let in_use = Plan::floor(&survey.used);
        Ok(Usage {
            file_size,
            payload,
            structures: in_use - payload,
            free: file_size.saturating_sub(in_use),
            packed_size: if survey.unplaced > 0 {
                file_size
            } else {
                self.plan_telling(&survey, &mut told)?.end
            },
            allocated_blocks: survey.allocated,
            displaced_blocks: survey.displaced,
        })
    }

    /// See [`crate::image::Image::length_with`].
    pub(super) fn longest(&self, size: u64, blocks: u64) -> Result<u64> {
        let file_size = self.storage.len()?;
        let old = &self.geometry;
        let size = size.max(old.virtual_size);
        let sector = u32::try_from(old.sector_size).unwrap_or(u32::MAX);
        let new = Geometry::new(old.block_size, sector, size);
        if self.metadata.leave_blocks_allocated {
            return Ok(file_size + (new.block_count - old.block_count) * new.block_size);
        }
        let bitmaps = if self.metadata.has_parent {
            new.chunk_count.min(blocks)
        } else {
            0
        };
        // A table that does not fit in its place gets a new one.
        let table = if new.block_count > old.block_count {
            round_up(new.entries_allocated() * 8, MIB)
        } else {
            0
        };
        Ok(round_up(file_size, MIB) + table + blocks * new.block_size + bitmaps * BITMAP_BLOCK)
    }

    /// See [`crate::image::Image::allocated_blocks`].
    pub(super) fn first_held(&self, offset: u64, most: usize) -> Result<Vec<AllocatedBlock>> {
        let size = self.geometry.block_size;
        let mut found = Vec::new();
        if self.metadata.leave_blocks_allocated || offset >= self.geometry.virtual_size || most == 0
        {
            return Ok(found);
        }
        let first = self.geometry.payload_index(offset / size);
        self.walk_held(first, &mut |held| {
            let Slot::Payload(block) = held.slot else {
                return Ok(true);
            };
            let start = block * size;
            found.push(AllocatedBlock {
                range: start..start + self.block_length(block),
                space: held.length,
                structures: 0,
                has_content: held.has_content,
            });
            Ok(found.len() < most)
        })?;
        Ok(found)
    }

    /// See [`crate::image::Image::release`].
    pub(super) fn release_block(&mut self, block: &AllocatedBlock) -> Result<bool> {
        self.check_writable()?;
        if self.metadata.leave_blocks_allocated {
            return Ok(false);
        }
        let size = self.geometry.block_size;
        let number = block.range.start / size;
        if !block.range.start.is_multiple_of(size) || number >= self.geometry.block_count {
            return Err(Error::new(
                ErrorKind::InvalidParameter,
                format!("no block of the disk starts at {}", block.range.start),
            ));
        }
        let index = self.geometry.payload_index(number);
        let entry = self.bat.get(&*self.storage, index)?;
        if self.held(index, entry)?.is_some() {
            self.journal.defer_punching(true);
            self.begin_structure()?;
            // Reads as zeros also where a parent has data.
            self.replace_entry(number, bat::entry(bat::ZERO, 0))?;
        }
        Ok(true)
    }
}

fn shared(held: &Held) -> Error {
    Error::new(
        ErrorKind::BlockAllocationTableCorrupt,
        format!(
            "BAT entry {} claims space at {} that something else uses as well",
            held.index, held.at
        ),
    )
    .with_hint("the disk can be read, but not written; 'vhdkit check' lists what overlaps")
}
