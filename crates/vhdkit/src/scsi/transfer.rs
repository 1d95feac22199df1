//! Moving bytes: READ, WRITE, VERIFY, SYNCHRONIZE CACHE (SBC-3, section 5), and what only looks like moving something:
//! START STOP UNIT, PREVENT ALLOW MEDIUM REMOVAL.

use super::inquiry::MAX_TRANSFER;
use super::sense::{Failure, Sense};
use super::{Blocks, Cdb, Data, Done, Failed, Outcome, Request, ScsiTarget};
use crate::num::to_usize;

/// Longest piece of a command that needs a buffer of its own.
pub(super) const PIECE: u64 = 1 << 20;

impl ScsiTarget {
    /// The bytes of a command that moves them or looks at them.
    fn transfer(&self, blocks: Blocks) -> Result<(u64, u64), Sense> {
        if blocks.count > MAX_TRANSFER / self.sector {
            return Err(Sense::in_cdb(blocks.count_at, None));
        }
        self.bytes_of(blocks)
    }

    /// READ (6), (10), (12), (16). DPO is advice and ignored. FUA asks for what is on the medium, so what is not there
    /// yet is brought there first.
    pub(super) fn read(&self, request: &Request, data: Data<'_>) -> Outcome {
        let cdb = &request.cdb;
        let force = force_unit_access(cdb)?;
        let (offset, length) = self.transfer(cdb.blocks())?;
        let buffer = data.input()?;
        if force && length > 0 {
            self.flush()?;
        }
        let n = to_usize(length).min(buffer.len());
        self.read_exactly(offset, &mut buffer[..n])?;
        Ok(Done {
            transferred: n,
            expected: length,
        })
    }

    /// Reads; if that fails, finds the first block that cannot be read, by halves, and leaves in `buf` what is before it.
    fn read_exactly(&self, offset: u64, buf: &mut [u8]) -> Result<(), Failed> {
        let Err(error) = self.disk.read_at(offset, buf) else {
            return Ok(());
        };
        let sector = self.sector_length();
        let mut failure = Failure::of_read(&error);
        if !matches!(failure, Failure::Check(Sense::READ_ERROR)) {
            return Err(failure.into());
        }
        // The first bad block is in `start..end`; what is before has been read.
        let (mut start, mut end) = (0, buf.len());
        while end > start {
            let half = (end - start).div_ceil(2).next_multiple_of(sector);
            let middle = end.min(start + half);
            match self
                .disk
                .read_at(offset + start as u64, &mut buf[start..middle])
            {
                Ok(()) => start = middle,
                Err(error) => {
                    failure = Failure::of_read(&error);
                    if middle == end {
                        break;
                    }
                    end = middle;
                }
            }
        }
        if start == end {
            // The error went away. What is behind has not been read yet.
            return match self.disk.read_at(offset + end as u64, &mut buf[end..]) {
                Ok(()) => Ok(()),
                Err(error) => Err(Failed {
                    failure: Failure::of_read(&error),
                    transferred: end,
                }),
            };
        }
        if let Failure::Check(sense @ Sense::READ_ERROR) = failure {
            let block = (offset + start as u64) / self.sector;
            failure = sense.with_information(block).into();
        }
        Err(Failed {
            failure,
            transferred: start,
        })
    }

    /// WRITE (6), (10), (12), (16). With FUA it is safe when the command ends.
    pub(super) fn write(&self, request: &Request, data: Data<'_>) -> Outcome {
        let cdb = &request.cdb;
        let blocks = cdb.blocks();
        let force = force_unit_access(cdb)?;
        self.check_writable()?;
        let (offset, length) = self.transfer(blocks)?;
        let sent = data.output(length, Sense::in_cdb(blocks.count_at, None))?;
        if length > 0 {
            self.disk
                .write_at(offset, sent)
                .map_err(|e| Failure::of_write(&e))?;
            if force {
                self.flush()?;
            }
        }
        Ok(Done {
            transferred: sent.len(),
            expected: length,
        })
    }

    /// VERIFY (10), (12), (16): can it be read (BYTCHK 0), is it what was sent (1), is every block the one that was sent
    /// (3)? A difference is told by its offset in bytes from the first block.
    pub(super) fn verify(&self, request: &Request, data: Data<'_>) -> Outcome {
        let cdb = &request.cdb;
        let blocks = cdb.blocks();
        cdb.refuse_protection()?;
        let check = cdb.u8(1) >> 1 & 3;
        if check == 2 {
            return Err(Sense::in_cdb(1, Some(2)).into());
        }
        let (offset, length) = self.transfer(blocks)?;
        let expected = match check {
            0 => 0,
            1 => length,
            _ => length.min(self.sector),
        };
        let sent = data.output(expected, Sense::in_cdb(blocks.count_at, None))?;
        if check == 0 {
            self.verify_readable(offset, length)?;
            return Ok(Done::NOTHING);
        }
        let mut buffer = vec![0; to_usize(length.min(PIECE))];
        let mut done = 0;
        while done < length {
            let n = to_usize((length - done).min(PIECE));
            let piece = &mut buffer[..n];
            self.read_exactly(offset + done, piece)
                .map_err(without_data)?;
            let same = if check == 1 {
                &sent[to_usize(done)..to_usize(done) + n]
            } else {
                sent
            };
            if let Some(at) = first_difference(piece, same) {
                return Err(Sense::MISCOMPARE.with_information(done + at as u64).into());
            }
            done += n as u64;
        }
        Ok(Done {
            transferred: sent.len(),
            expected,
        })
    }

    /// Reads what is not known to be zeros.
    fn verify_readable(&self, offset: u64, length: u64) -> Result<(), Failed> {
        let end = offset + length;
        let mut buffer = Vec::new();
        let mut at = offset;
        while at < end {
            // Where even the map fails, reading says which block it is.
            let run = match self.disk.map(at, end - at) {
                Ok(run) if run.data.is_none() => {
                    at += run.length;
                    continue;
                }
                Ok(run) => run.length,
                Err(_) => end - at,
            };
            // Whole blocks, so that an error names the right one.
            let n = run.next_multiple_of(self.sector).min(end - at).min(PIECE);
            buffer.resize(to_usize(n.max(buffer.len() as u64)), 0);
            self.read_exactly(at, &mut buffer[..to_usize(n)])
                .map_err(without_data)?;
            at += n;
        }
        Ok(())
    }

    /// SYNCHRONIZE CACHE (10), (16): all of the disk, and at once (IMMED would allow to answer before that).
    pub(super) fn synchronize_cache(&self, request: &Request, _data: Data<'_>) -> Outcome {
        self.bytes_of(request.cdb.blocks())?;
        self.flush()?;
        Ok(Done::NOTHING)
    }

    /// START STOP UNIT, 1Bh (SBC-3, 5.25). The disk is always ready: starting it does nothing, stopping it flushes it,
    /// and the medium cannot be loaded or ejected.
    pub(super) fn start_stop_unit(&self, request: &Request, _data: Data<'_>) -> Outcome {
        const START: u8 = 0;
        const LOEJ: u8 = 1;
        const NO_FLUSH: u8 = 2;
        let cdb = &request.cdb;
        let power_condition = cdb.u8(4) >> 4;
        if power_condition == 0 {
            cdb.refuse_bit(4, LOEJ)?;
            if !cdb.bit(4, START) && !cdb.bit(4, NO_FLUSH) {
                self.flush()?;
            }
        }
        Ok(Done::NOTHING)
    }

    /// PREVENT ALLOW MEDIUM REMOVAL, 1Eh: nothing ever removes it.
    #[expect(clippy::unused_self, reason = "a command of the table")]
    #[expect(clippy::unnecessary_wraps, reason = "a command of the table")]
    pub(super) fn prevent_allow_medium_removal(
        &self,
        _request: &Request,
        _data: Data<'_>,
    ) -> Outcome {
        Ok(Done::NOTHING)
    }
}

/// FUA of a READ or WRITE; the short forms have none. Refuses protection information.
fn force_unit_access(cdb: &Cdb) -> Result<bool, Sense> {
    if cdb.is_short() {
        return Ok(false);
    }
    cdb.refuse_protection()?;
    Ok(cdb.bit(1, 3))
}

/// A command that hands no data back.
fn without_data(mut failed: Failed) -> Failed {
    failed.transferred = 0;
    failed
}

/// Where `bytes` differ from `same`, repeated.
fn first_difference(bytes: &[u8], same: &[u8]) -> Option<usize> {
    let length = same.len().max(1);
    for (i, piece) in bytes.chunks(length).enumerate() {
        if *piece != same[..piece.len()] {
            let within = piece.iter().zip(same).position(|(a, b)| a != b)?;
            return Some(i * length + within);
        }
    }
    None
}
