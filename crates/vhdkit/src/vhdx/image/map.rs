//! Extents: what the BAT and the sector bitmaps say, joined over blocks.

use super::VhdxImage;
use crate::error::Result;
use crate::image::{Extent, ExtentKind};
use crate::num::GIB;
use crate::vhdx::bat::{Block, Slot};
use crate::vhdx::header::corrupt;
use crate::vhdx::pages::Peek;

/// In bytes; see [`VhdxImage::map_blocks`].
const LONGEST_JOIN: u64 = GIB;

impl VhdxImage {
    /// What one BAT entry says of `length` bytes from `within` on; a partially present block's first run only.
    pub(super) fn portion_kind(
        &self,
        block: u64,
        entry: u64,
        within: u64,
        length: u64,
    ) -> Result<Extent> {
        let absent = if self.metadata.has_parent {
            ExtentKind::Absent
        } else {
            ExtentKind::Zero
        };
        Ok(match self.decode(block, entry)? {
            Block::NotPresent => Extent {
                length,
                kind: absent,
            },
            Block::Zero => Extent {
                length,
                kind: ExtentKind::Zero,
            },
            Block::Present(at) => Extent {
                length,
                kind: ExtentKind::Data {
                    storage_offset: at + within,
                },
            },
            Block::Partial(at) => {
                let (table, first_bit) = self.bitmap_of(block)?;
                let sector = self.geometry.sector_size;
                let first = within / sector;
                let count = (within + length).div_ceil(sector) - first;
                let (here, run) = self.bit_run(table, first_bit + first, count)?;
                let length = length.min((first + run) * sector - within);
                let kind = if here {
                    ExtentKind::Data {
                        storage_offset: at + within,
                    }
                } else {
                    ExtentKind::Absent
                };
                Extent { length, kind }
            }
        })
    }

    /// Joins what several entries say as long as it continues. Runs of zeros may be as long as the disk; others end
    /// after [`LONGEST_JOIN`], since whoever asked may use only the start of them (up to a hole of the file, or of the
    /// parent's answer) and then ask again.
    pub(super) fn map_blocks(&self, offset: u64, length: u64) -> Result<Extent> {
        let end = offset + length;
        let mut found: Option<Extent> = None;
        let mut at = offset;
        'walk: while at < end {
            if found.is_some_and(|f| f.kind != ExtentKind::Zero && f.length >= LONGEST_JOIN) {
                break;
            }
            let index = self.geometry.payload_index(at / self.geometry.block_size);
            match self.bat.peek(&*self.storage, index)? {
                Peek::Zeros(count) => {
                    // A run of entries that are not present; it may contain bitmap entries, which count no blocks.
                    let last = index + count;
                    let next = match self.geometry.slot(last) {
                        Slot::Payload(block) => block,
                        Slot::Bitmap(chunk) => (chunk + 1) * self.geometry.chunk_ratio,
                    };
                    let mut until = (next * self.geometry.block_size).min(end);
                    if self.metadata.has_parent {
                        until = until.min(at.saturating_add(LONGEST_JOIN));
                    }
                    let extent =
                        self.portion_kind(at / self.geometry.block_size, 0, 0, until - at)?;
                    if !join(&mut found, extent) {
                        break 'walk;
                    }
                    at = until;
                }
                Peek::Words(words) => {
                    for (entry, index) in words.into_iter().zip(index..) {
                        let Slot::Payload(_) = self.geometry.slot(index) else {
                            continue;
                        };
                        if at >= end {
                            break 'walk;
                        }
                        let (block, within, n) = self.portion(at, end - at);
                        let extent = self.portion_kind(block, entry, within, n)?;
                        if !join(&mut found, extent) {
                            break 'walk;
                        }
                        at += extent.length;
                        if extent.length < n {
                            break 'walk;
                        }
                    }
                }
            }
        }
        found.ok_or_else(|| corrupt("the extent query found nothing"))
    }
}

/// Makes `found` longer by `next` if that continues it; false if it does not.
fn join(found: &mut Option<Extent>, next: Extent) -> bool {
    let Some(run) = found else {
        *found = Some(next);
        return true;
    };
    let continues = match (run.kind, next.kind) {
        (ExtentKind::Data { storage_offset: a }, ExtentKind::Data { storage_offset: b }) => {
            a + run.length == b
        }
        (a, b) => a == b,
    };
    if continues {
        run.length += next.length;
    }
    continues
}
