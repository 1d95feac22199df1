//! Zeros and space: UNMAP, WRITE SAME, GET LBA STATUS (SBC-3, sections 4.7 and 5).
//!
//! UNMAP is a [discard](crate::VirtualDisk::discard): it never needs space, and what it gives back reads as zeros. WRITE
//! SAME of zeros is a [zero](crate::VirtualDisk::zero): with the UNMAP bit space may be given back, without it the blocks
//! have space afterwards, as after any other write.

use super::inquiry::MAX_UNMAP_DESCRIPTORS;
use super::sense::{Failure, Sense};
use super::transfer::PIECE;
use super::{Blocks, Data, Done, Outcome, Request, ScsiTarget, is_thin};
use crate::image::ZeroMode;
use crate::num::{round_down, to_usize};
use crate::zeros::is_zero;

/// Most descriptors that GET LBA STATUS answers with, and most extents that it looks at.
const MAX_STATUS_DESCRIPTORS: usize = 1024;
const MAX_EXTENTS: usize = 16 * 1024;

impl ScsiTarget {
    /// UNMAP, 42h. Nothing is done if anything in the list is wrong.
    pub(super) fn unmap(&self, request: &Request, data: Data<'_>) -> Outcome {
        const HEADER: usize = 8;
        const DESCRIPTOR: usize = 16;
        let cdb = &request.cdb;
        // ANCHOR: blocks cannot be anchored.
        cdb.refuse_bit(1, 0)?;
        self.check_writable()?;
        let expected = u64::from(cdb.u16(7));
        let list = data.output(expected, Sense::LIST_LENGTH)?;
        if list.is_empty() {
            return Ok(Done::NOTHING);
        }
        if list.len() < HEADER {
            return Err(Sense::LIST_LENGTH.into());
        }
        let field = |at: usize| usize::from(u16::from_be_bytes([list[at], list[at + 1]]));
        let (all, descriptors) = (field(0), field(2));
        if all + 2 > list.len() || descriptors + HEADER > list.len() {
            return Err(Sense::LIST_LENGTH.into());
        }
        // A last descriptor that is not whole does not count.
        let (descriptors, _) = list[HEADER..HEADER + descriptors].as_chunks::<DESCRIPTOR>();
        if descriptors.len() > usize::from(MAX_UNMAP_DESCRIPTORS) {
            return Err(Sense::in_list(2, None).into());
        }
        let mut ranges = Vec::with_capacity(descriptors.len());
        for d in descriptors {
            let [l0, l1, l2, l3, l4, l5, l6, l7, c0, c1, c2, c3, ..] = *d;
            ranges.push(self.bytes_of(Blocks {
                lba: u64::from_be_bytes([l0, l1, l2, l3, l4, l5, l6, l7]),
                count: u64::from(u32::from_be_bytes([c0, c1, c2, c3])),
                count_at: 0,
            })?);
        }
        for (offset, length) in ranges {
            self.disk
                .discard(offset, length)
                .map_err(|e| Failure::of_write(&e))?;
        }
        Ok(Done {
            transferred: list.len(),
            expected,
        })
    }

    /// WRITE SAME (10), 41h, and (16), 93h.
    pub(super) fn write_same(&self, request: &Request, data: Data<'_>) -> Outcome {
        const ANCHOR: u8 = 4;
        const UNMAP: u8 = 3;
        let cdb = &request.cdb;
        cdb.refuse_protection()?;
        cdb.refuse_bit(1, ANCHOR)?;
        // PBDATA and LBDATA are obsolete.
        cdb.refuse_bit(1, 2)?;
        cdb.refuse_bit(1, 1)?;
        let unmap = cdb.bit(1, UNMAP);
        if unmap && !is_thin(&self.disk.info()) {
            return Err(Sense::in_cdb(1, Some(UNMAP)).into());
        }
        let no_data = cdb.u8(0) == 0x93 && cdb.bit(1, 0);
        if !no_data {
            // In the form of ten bytes the bit is obsolete.
            cdb.refuse_bit(1, 0)?;
        }
        self.check_writable()?;
        let mut blocks = cdb.blocks();
        if blocks.count == 0 {
            // To the end, where there must be something.
            let rest = self.capacity().checked_sub(blocks.lba);
            blocks.count = rest.filter(|&n| n > 0).ok_or(Sense::OUT_OF_RANGE)?;
        }
        let (offset, length) = self.bytes_of(blocks)?;
        let expected = if no_data { 0 } else { self.sector };
        let pattern = data.output(expected, Sense::in_cdb(blocks.count_at, None))?;
        if is_zero(pattern) {
            let mode = if unmap {
                ZeroMode::MayUnmap
            } else {
                ZeroMode::KeepAllocated
            };
            self.disk
                .zero(offset, length, mode)
                .map_err(|e| Failure::of_write(&e))?;
        } else {
            self.repeat(pattern, offset, length)?;
        }
        Ok(Done {
            transferred: pattern.len(),
            expected,
        })
    }

    fn repeat(&self, pattern: &[u8], offset: u64, length: u64) -> Result<(), Failure> {
        let piece = pattern.repeat(to_usize(length.min(PIECE).div_ceil(self.sector)));
        let mut done = 0;
        while done < length {
            let n = (length - done).min(piece.len() as u64);
            self.disk
                .write_at(offset + done, &piece[..to_usize(n)])
                .map_err(|e| Failure::of_write(&e))?;
            done += n;
        }
        Ok(())
    }

    /// GET LBA STATUS, 9Eh/12h: which runs of blocks have space. The answer may stop before the end of the disk; the
    /// initiator goes on from there.
    pub(super) fn get_lba_status(&self, request: &Request, data: Data<'_>) -> Outcome {
        let cdb = &request.cdb;
        let (lba, allocation) = (cdb.u64(2), cdb.u32(10));
        let capacity = self.capacity();
        if lba >= capacity {
            return Err(Sense::OUT_OF_RANGE.into());
        }
        let room = (to_usize(u64::from(allocation)).saturating_sub(8) / 16)
            .clamp(1, MAX_STATUS_DESCRIPTORS);
        let mut answer = vec![0; 8];
        let (mut at, mut looked) = (lba, 0);
        for _ in 0..room {
            if at == capacity {
                break;
            }
            let (end, mapped) = self.status_run(at, capacity, &mut looked)?;
            answer.extend(at.to_be_bytes());
            let count = u32::try_from(end - at).unwrap_or(u32::MAX);
            answer.extend(count.to_be_bytes());
            // Deallocated is 1.
            answer.extend([u8::from(!mapped), 0, 0, 0]);
            at += u64::from(count);
            if looked >= MAX_EXTENTS {
                break;
            }
        }
        let rest = u32::try_from(answer.len() - 4).unwrap_or(0);
        answer[..4].copy_from_slice(&rest.to_be_bytes());
        data.answer(&answer, allocation)
    }

    /// Where the run of blocks of one status ends that begins at `start`, and whether it is mapped. A block that is
    /// mapped in part is mapped.
    fn status_run(
        &self,
        start: u64,
        capacity: u64,
        looked: &mut usize,
    ) -> Result<(u64, bool), Failure> {
        let end = capacity * self.sector;
        let (mut at, mut mapped) = (start * self.sector, None);
        while at < end && (mapped.is_none() || *looked < MAX_EXTENTS) {
            *looked += 1;
            let run = self
                .disk
                .map(at, end - at)
                .map_err(|e| Failure::of_read(&e))?;
            let whole = round_down(run.length, self.sector);
            let is_mapped = run.data.is_some() || whole == 0;
            if *mapped.get_or_insert(is_mapped) != is_mapped {
                break;
            }
            at += if is_mapped {
                run.length.next_multiple_of(self.sector)
            } else {
                whole
            };
        }
        Ok((at.min(end) / self.sector, mapped.unwrap_or(true)))
    }
}
