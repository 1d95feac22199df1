//! Command descriptor blocks (SPC-4, section 4.2): fields by their place.

use super::sense::Sense;

/// Longest CDB of a command that is known.
const LONGEST: usize = 16;

/// A CDB that is as long as its command needs. What follows is not looked at.
#[derive(Clone, Copy)]
pub(super) struct Cdb([u8; LONGEST]);

/// A run of logical blocks as a CDB gives it.
#[derive(Clone, Copy)]
pub(super) struct Blocks {
    pub(super) lba: u64,
    pub(super) count: u64,
    /// Where the count is in the CDB.
    pub(super) count_at: u16,
}

impl Cdb {
    /// A CDB for a command of `length` bytes.
    ///
    /// # Errors
    /// If it is shorter.
    pub(super) fn new(bytes: &[u8], length: usize) -> Result<Self, Sense> {
        let mut copy = [0; LONGEST];
        match (bytes.get(..length), copy.get_mut(..length)) {
            (Some(bytes), Some(copy)) => copy.copy_from_slice(bytes),
            // The field that is missing.
            _ => return Err(Sense::in_cdb(u16::try_from(bytes.len()).unwrap_or(0), None)),
        }
        Ok(Self(copy))
    }

    fn array<const N: usize>(&self, at: usize) -> [u8; N] {
        std::array::from_fn(|i| self.0[at + i])
    }

    pub(super) fn u8(&self, at: usize) -> u8 {
        self.0[at]
    }

    pub(super) fn u16(&self, at: usize) -> u16 {
        u16::from_be_bytes(self.array(at))
    }

    pub(super) fn u32(&self, at: usize) -> u32 {
        u32::from_be_bytes(self.array(at))
    }

    pub(super) fn u64(&self, at: usize) -> u64 {
        u64::from_be_bytes(self.array(at))
    }

    pub(super) fn bit(&self, at: usize, bit: u8) -> bool {
        self.0[at] >> bit & 1 != 0
    }

    /// Refuses a bit that is set.
    pub(super) fn refuse_bit(&self, at: u16, bit: u8) -> Result<(), Sense> {
        if self.bit(usize::from(at), bit) {
            return Err(Sense::in_cdb(at, Some(bit)));
        }
        Ok(())
    }

    /// Refuses protection information (RDPROTECT, WRPROTECT, VRPROTECT): the disk has none.
    pub(super) fn refuse_protection(&self) -> Result<(), Sense> {
        if self.u8(1) >> 5 != 0 {
            return Err(Sense::in_cdb(1, Some(7)));
        }
        Ok(())
    }

    /// True for the commands of six bytes.
    pub(super) fn is_short(&self) -> bool {
        self.u8(0) >> 5 == 0
    }

    /// The blocks of a command that reads or writes, in the four forms that such commands have.
    pub(super) fn blocks(&self) -> Blocks {
        match self.u8(0) >> 5 {
            0 => Blocks {
                lba: u64::from(self.u32(0) & 0x1F_FFFF),
                count: match self.u8(4) {
                    0 => 256,
                    n => u64::from(n),
                },
                count_at: 4,
            },
            1 | 2 => Blocks {
                lba: u64::from(self.u32(2)),
                count: u64::from(self.u16(7)),
                count_at: 7,
            },
            5 => Blocks {
                lba: u64::from(self.u32(2)),
                count: u64::from(self.u32(6)),
                count_at: 6,
            },
            _ => Blocks {
                lba: self.u64(2),
                count: u64::from(self.u32(10)),
                count_at: 10,
            },
        }
    }
}
