//! Sense data (SPC-4, section 4.5): why a command failed, in the words of the standard.

use crate::error::{Error, ErrorKind};

/// The kind of failure.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[expect(clippy::exhaustive_enums, reason = "the standard's list")]
pub enum SenseKey {
    /// Nothing to tell.
    NoSense = 0x0,
    /// It worked in the end.
    RecoveredError = 0x1,
    /// There is no medium.
    NotReady = 0x2,
    /// The medium could not be read or written.
    MediumError = 0x3,
    /// The device itself failed.
    HardwareError = 0x4,
    /// The command or its parameters are wrong.
    IllegalRequest = 0x5,
    /// Something changed; the command was not run.
    UnitAttention = 0x6,
    /// The medium may not be changed.
    DataProtect = 0x7,
    /// The command was ended by the device.
    AbortedCommand = 0xB,
    /// The bytes differ from those on the medium.
    Miscompare = 0xE,
}

/// Which field is wrong.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[expect(clippy::exhaustive_structs, reason = "the standard's fields")]
pub struct FieldPointer {
    /// True for the CDB, false for the parameter list.
    pub in_cdb: bool,
    /// The first byte of the field.
    pub byte: u16,
    /// Its highest bit, if it does not begin with the byte.
    pub bit: Option<u8>,
}

/// Why a command did not end well.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[expect(clippy::exhaustive_structs, reason = "the standard's fields")]
pub struct Sense {
    /// The kind of failure.
    pub key: SenseKey,
    /// Additional sense code.
    pub code: u8,
    /// Additional sense code qualifier.
    pub qualifier: u8,
    /// The logical block it is about, or an offset in bytes (miscompare).
    pub information: Option<u64>,
    /// The field it is about.
    pub field: Option<FieldPointer>,
}

/// Length of sense data in the fixed format.
pub const FIXED_LENGTH: usize = 18;

impl Sense {
    /// Nothing to tell.
    pub const NONE: Sense = Sense::new(SenseKey::NoSense, 0x00, 0x00);
    /// There is no such command.
    pub const INVALID_COMMAND: Sense = Sense::new(SenseKey::IllegalRequest, 0x20, 0x00);
    /// Logical block address out of range.
    pub const OUT_OF_RANGE: Sense = Sense::new(SenseKey::IllegalRequest, 0x21, 0x00);
    /// Invalid field in CDB.
    pub const INVALID_FIELD_IN_CDB: Sense = Sense::new(SenseKey::IllegalRequest, 0x24, 0x00);
    /// Logical unit not supported.
    pub const NO_SUCH_UNIT: Sense = Sense::new(SenseKey::IllegalRequest, 0x25, 0x00);
    /// Invalid field in parameter list.
    pub const INVALID_FIELD_IN_LIST: Sense = Sense::new(SenseKey::IllegalRequest, 0x26, 0x00);
    /// Parameter list length error.
    pub const LIST_LENGTH: Sense = Sense::new(SenseKey::IllegalRequest, 0x1A, 0x00);
    /// Saving parameters not supported.
    pub const NO_SAVING: Sense = Sense::new(SenseKey::IllegalRequest, 0x39, 0x00);
    /// Write protected.
    pub const WRITE_PROTECTED: Sense = Sense::new(SenseKey::DataProtect, 0x27, 0x00);
    /// Space allocation failed write protect: the host is full.
    pub const NO_SPACE: Sense = Sense::new(SenseKey::DataProtect, 0x27, 0x07);
    /// Unrecovered read error.
    pub const READ_ERROR: Sense = Sense::new(SenseKey::MediumError, 0x11, 0x00);
    /// Write error.
    pub const WRITE_ERROR: Sense = Sense::new(SenseKey::MediumError, 0x0C, 0x00);
    /// Miscompare during verify operation.
    pub const MISCOMPARE: Sense = Sense::new(SenseKey::Miscompare, 0x1D, 0x00);
    /// Medium not present.
    pub const NO_MEDIUM: Sense = Sense::new(SenseKey::NotReady, 0x3A, 0x00);
    /// Capacity data has changed.
    pub const CAPACITY_CHANGED: Sense = Sense::new(SenseKey::UnitAttention, 0x2A, 0x09);

    /// Sense data without information and field.
    pub const fn new(key: SenseKey, code: u8, qualifier: u8) -> Self {
        Self {
            key,
            code,
            qualifier,
            information: None,
            field: None,
        }
    }

    /// Says which block or byte.
    #[must_use]
    pub const fn with_information(mut self, information: u64) -> Self {
        self.information = Some(information);
        self
    }

    /// A field of the CDB is wrong.
    pub(super) const fn in_cdb(byte: u16, bit: Option<u8>) -> Self {
        let mut sense = Self::INVALID_FIELD_IN_CDB;
        sense.field = Some(FieldPointer {
            in_cdb: true,
            byte,
            bit,
        });
        sense
    }

    /// A field of the parameter list is wrong.
    pub(super) fn in_list(byte: usize, bit: Option<u8>) -> Self {
        let mut sense = Self::INVALID_FIELD_IN_LIST;
        sense.field = u16::try_from(byte).ok().map(|byte| FieldPointer {
            in_cdb: false,
            byte,
            bit,
        });
        sense
    }

    /// The fixed format, 70h (SPC-4, 4.5.3). It has 32 bits for the information: a number that does not fit is left
    /// out.
    pub fn fixed(&self) -> [u8; FIXED_LENGTH] {
        let mut bytes = [0; FIXED_LENGTH];
        bytes[0] = 0x70;
        if let Some(information) = self.information.and_then(|n| u32::try_from(n).ok()) {
            bytes[0] |= VALID;
            bytes[3..7].copy_from_slice(&information.to_be_bytes());
        }
        bytes[2] = self.key as u8;
        bytes[7] = 10;
        bytes[12] = self.code;
        bytes[13] = self.qualifier;
        if let Some(field) = self.field {
            bytes[15..18].copy_from_slice(&field.bytes());
        }
        bytes
    }

    /// The descriptor format, 72h (SPC-4, 4.5.2).
    pub fn descriptor(&self) -> Vec<u8> {
        let mut bytes = vec![0x72, self.key as u8, self.code, self.qualifier, 0, 0, 0, 0];
        if let Some(information) = self.information {
            bytes.extend([0x00, 0x0A, VALID, 0]);
            bytes.extend(information.to_be_bytes());
        }
        if let Some(field) = self.field {
            bytes.extend([0x02, 0x06, 0, 0]);
            bytes.extend(field.bytes());
            bytes.push(0);
        }
        // Eight bytes of header, then a descriptor of 12 and one of 8 at most.
        bytes[7] = u8::try_from(bytes.len() - 8).unwrap_or(0);
        bytes
    }

    /// In the format that was asked for.
    pub(super) fn bytes(&self, descriptor: bool) -> Vec<u8> {
        if descriptor {
            self.descriptor()
        } else {
            self.fixed().to_vec()
        }
    }
}

const VALID: u8 = 0x80;

impl FieldPointer {
    /// The sense-key specific bytes (SPC-4, 4.5.2.4.2).
    fn bytes(self) -> [u8; 3] {
        let in_cdb = if self.in_cdb { 0x40 } else { 0 };
        let bit = self.bit.map_or(0, |bit| 0x08 | (bit & 7));
        let [high, low] = self.byte.to_be_bytes();
        [0x80 | in_cdb | bit, high, low]
    }
}

/// A command that did not end well.
#[derive(Clone, Copy, Debug)]
pub(super) enum Failure {
    /// CHECK CONDITION.
    Check(Sense),
    /// BUSY: the initiator may try again.
    Busy,
}

impl From<Sense> for Failure {
    fn from(sense: Sense) -> Self {
        Failure::Check(sense)
    }
}

impl Failure {
    /// What an error of the disk is called when reading.
    pub(super) fn of_read(error: &Error) -> Self {
        match error.kind() {
            ErrorKind::BeyondEnd => Sense::OUT_OF_RANGE.into(),
            ErrorKind::Busy => Failure::Busy,
            _ => Sense::READ_ERROR.into(),
        }
    }

    /// What an error of the disk is called when writing, zeroing, unmapping or flushing.
    pub(super) fn of_write(error: &Error) -> Self {
        match error.kind() {
            ErrorKind::BeyondEnd => Sense::OUT_OF_RANGE.into(),
            ErrorKind::Busy => Failure::Busy,
            ErrorKind::WriteProtected => Sense::WRITE_PROTECTED.into(),
            ErrorKind::DiskFull | ErrorKind::FileTooLarge | ErrorKind::BlockAllocationFailure => {
                Sense::NO_SPACE.into()
            }
            _ => Sense::WRITE_ERROR.into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fixed_format_is_byte_for_byte_the_standards() {
        let sense = Sense::READ_ERROR.with_information(0x0102_0304);
        assert_eq!(
            sense.fixed(),
            [0xF0, 0, 3, 1, 2, 3, 4, 10, 0, 0, 0, 0, 0x11, 0, 0, 0, 0, 0]
        );
        let field = Sense::in_cdb(2, Some(6)).fixed();
        assert_eq!((field[0], field[2], field[12]), (0x70, 5, 0x24));
        assert_eq!(field[15..18], [0xCE, 0, 2]);
        assert_eq!(Sense::in_list(300, None).fixed()[15..18], [0x80, 1, 44]);
    }

    #[test]
    fn information_that_needs_more_than_32_bits_is_only_in_the_descriptor_format() {
        let sense = Sense::READ_ERROR.with_information(1 << 40);
        assert_eq!(sense.fixed()[0], 0x70);
        assert_eq!(sense.fixed()[3..7], [0; 4]);
        assert_eq!(
            sense.descriptor(),
            [
                0x72, 3, 0x11, 0, 0, 0, 0, 12, 0, 10, 0x80, 0, 0, 0, 1, 0, 0, 0, 0, 0
            ]
        );
    }

    #[test]
    fn the_descriptor_format_tells_the_field() {
        assert_eq!(
            Sense::in_list(9, Some(2)).descriptor(),
            [0x72, 5, 0x26, 0, 0, 0, 0, 8, 2, 6, 0, 0, 0x8A, 0, 9, 0]
        );
        assert_eq!(Sense::NONE.descriptor(), [0x72, 0, 0, 0, 0, 0, 0, 0]);
    }
}
