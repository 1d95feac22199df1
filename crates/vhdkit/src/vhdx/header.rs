//! The two headers: which one is current, and how they are changed (format sheet 2.2).
//!
//! H1 At every instant at least one header is valid on disk.
//! H2 Only the slot that is not current is written, and it becomes current only by a flush.
//! H3 Both slots end up with the same identifiers.

use uuid::Uuid;
use zerocopy::{FromBytes, FromZeros, IntoBytes};

use super::layout::{
    ALIGNMENT, HEADER_AREA, HEADER_LENGTH, HEADER_OFFSETS, HEADER_SIGNATURE, Header, LOG_VERSION,
    MAX_LOG_LENGTH, VERSION, checksum,
};
use crate::error::{Error, ErrorKind, Result};
use crate::storage::Storage;

/// What the current header says, and which slot it is in.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Headers {
    /// 0 or 1.
    pub(super) current: usize,
    /// Whether the other slot holds a valid header with the same content but the sequence number.
    pub(super) other_agrees: bool,
    pub(super) sequence_number: u64,
    pub(super) file_write_guid: Uuid,
    pub(super) data_write_guid: Uuid,
    pub(super) log_guid: Uuid,
    pub(super) log_offset: u64,
    pub(super) log_length: u64,
}

/// One slot as it was read: its header if signature and checksum are right.
pub(super) fn read_slot(storage: &dyn Storage, slot: usize) -> Result<Option<Box<Header>>> {
    let mut bytes = [0; HEADER_LENGTH];
    storage.read_at(HEADER_OFFSETS[slot], &mut bytes)?;
    Ok(parse(&bytes).map(Box::new))
}

fn parse(bytes: &[u8]) -> Option<Header> {
    let header = Header::read_from_bytes(bytes).ok()?;
    (header.signature == HEADER_SIGNATURE && header.checksum.get() == checksum(bytes))
        .then_some(header)
}

/// Which of two slots is current.
pub(super) fn select(slots: [Option<&Header>; 2]) -> Result<usize> {
    match slots {
        [None, None] => Err(corrupt("both headers are invalid")
            .with_hint("restore the file from a backup; its structure is lost")),
        [Some(_), None] => Ok(0),
        [None, Some(_)] => Ok(1),
        [Some(a), Some(b)] => match a.sequence_number.get().cmp(&b.sequence_number.get()) {
            std::cmp::Ordering::Greater => Ok(0),
            std::cmp::Ordering::Less => Ok(1),
            // Disk2vhd writes two identical headers with one number.
            std::cmp::Ordering::Equal if a.as_bytes() == b.as_bytes() => Ok(0),
            std::cmp::Ordering::Equal => Err(corrupt(
                "the two headers differ but have the same sequence number",
            )),
        },
    }
}

impl Headers {
    /// Reads both slots, takes the current one and checks its fields.
    pub(super) fn read(storage: &dyn Storage, file_length: u64) -> Result<Self> {
        let slots = [read_slot(storage, 0)?, read_slot(storage, 1)?];
        let current = select([slots[0].as_deref(), slots[1].as_deref()])?;
        let [Some(header), other] = (match current {
            0 => [slots[0].as_deref(), slots[1].as_deref()],
            _ => [slots[1].as_deref(), slots[0].as_deref()],
        }) else {
            return Err(corrupt("both headers are invalid"));
        };
        if header.version.get() != VERSION {
            return Err(Error::new(
                ErrorKind::UnsupportedVersion,
                format!("VHDX version {} is not supported", header.version.get()),
            ));
        }
        let headers = Self {
            current,
            other_agrees: other.is_some_and(|o| {
                o.as_bytes()[16..80] == header.as_bytes()[16..80]
                    && o.sequence_number.get() < header.sequence_number.get()
            }),
            sequence_number: header.sequence_number.get(),
            file_write_guid: header.file_write_guid.into(),
            data_write_guid: header.data_write_guid.into(),
            log_guid: header.log_guid.into(),
            log_offset: header.log_offset.get(),
            log_length: header.log_length.get().into(),
        };
        headers.check_log(header.log_version.get(), file_length)?;
        Ok(headers)
    }

    fn check_log(&self, log_version: u16, file_length: u64) -> Result<()> {
        let (offset, length) = (self.log_offset, self.log_length);
        if log_version != LOG_VERSION && !self.log_guid.is_nil() {
            return Err(Error::new(
                ErrorKind::UnsupportedVersion,
                format!("log version {log_version} is not supported"),
            ));
        }
        if length == 0 {
            return if self.log_guid.is_nil() {
                Ok(())
            } else {
                Err(corrupt("the log is in use but has no length"))
            };
        }
        if !offset.is_multiple_of(ALIGNMENT)
            || !length.is_multiple_of(ALIGNMENT)
            || length > MAX_LOG_LENGTH
            || offset < HEADER_AREA
            || offset
                .checked_add(length)
                .is_none_or(|end| end > file_length)
        {
            return Err(corrupt(format!(
                "the log of {length} bytes at {offset} is misplaced in a file of {file_length} bytes"
            )));
        }
        Ok(())
    }

    /// Writes the present values to the slot that is not current; the caller flushes before anything relies on it.
    pub(super) fn write_other(&mut self, storage: &dyn Storage) -> Result<()> {
        let Some(sequence_number) = self.sequence_number.checked_add(1) else {
            return Err(corrupt("the header sequence number is exhausted"));
        };
        let slot = 1 - self.current;
        storage.write_at(HEADER_OFFSETS[slot], &self.encode(sequence_number)?)?;
        self.sequence_number = sequence_number;
        self.current = slot;
        self.other_agrees = false;
        Ok(())
    }

    /// Changes both slots: one is durable when this returns, the other becomes so with the next flush (H1: it is
    /// rewritten only after the first is durable).
    pub(super) fn update(&mut self, storage: &dyn Storage) -> Result<()> {
        self.write_other(storage)?;
        storage.flush()?;
        self.write_other(storage)?;
        self.other_agrees = true;
        Ok(())
    }

    pub(super) fn encode(&self, sequence_number: u64) -> Result<Vec<u8>> {
        let mut header = Header::new_zeroed();
        header.signature = HEADER_SIGNATURE;
        header.sequence_number = sequence_number.into();
        header.file_write_guid = self.file_write_guid.into();
        header.data_write_guid = self.data_write_guid.into();
        header.log_guid = self.log_guid.into();
        header.log_version = LOG_VERSION.into();
        header.version = VERSION.into();
        header.log_length = u32::try_from(self.log_length)
            .map_err(|_| corrupt(format!("log length {} is too large", self.log_length)))?
            .into();
        header.log_offset = self.log_offset.into();
        header.checksum = checksum(header.as_bytes()).into();
        Ok(header.as_bytes().to_vec())
    }
}

/// A VHDX structure is damaged.
pub(super) fn corrupt(reason: impl Into<String>) -> Error {
    Error::new(ErrorKind::FileCorrupt, reason)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::num::MIB;
    use crate::storage::MemoryStorage;

    fn headers() -> Headers {
        Headers {
            current: 1,
            other_agrees: false,
            sequence_number: 7,
            file_write_guid: Uuid::from_u128(1),
            data_write_guid: Uuid::from_u128(2),
            log_guid: Uuid::nil(),
            log_offset: MIB,
            log_length: MIB,
        }
    }

    #[test]
    fn the_larger_sequence_number_is_current_and_updates_alternate() {
        let storage = MemoryStorage::new();
        storage.set_len(4 * MIB).unwrap();
        let mut written = headers();
        written.write_other(&storage).unwrap();
        assert_eq!((written.current, written.sequence_number), (0, 8));
        written.log_guid = Uuid::from_u128(9);
        written.update(&storage).unwrap();
        assert_eq!((written.current, written.sequence_number), (0, 10));
        let read = Headers::read(&storage, 4 * MIB).unwrap();
        assert_eq!(read.sequence_number, 10);
        assert!(read.other_agrees);
        // One damaged byte in the current slot: the other one counts.
        storage.write_at(HEADER_OFFSETS[0] + 3000, &[1]).unwrap();
        assert_eq!(Headers::read(&storage, 4 * MIB).unwrap().sequence_number, 9);
        storage.write_at(HEADER_OFFSETS[1] + 3000, &[1]).unwrap();
        let error = Headers::read(&storage, 4 * MIB).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::FileCorrupt);
    }

    #[test]
    fn equal_sequence_numbers_are_accepted_only_for_identical_headers() {
        let storage = MemoryStorage::new();
        storage.set_len(4 * MIB).unwrap();
        let bytes = headers().encode(5).unwrap();
        storage.write_at(HEADER_OFFSETS[0], &bytes).unwrap();
        storage.write_at(HEADER_OFFSETS[1], &bytes).unwrap();
        assert_eq!(Headers::read(&storage, 4 * MIB).unwrap().current, 0);
        let mut different = headers();
        different.data_write_guid = Uuid::from_u128(77);
        storage
            .write_at(HEADER_OFFSETS[1], &different.encode(5).unwrap())
            .unwrap();
        assert!(Headers::read(&storage, 4 * MIB).is_err());
    }

    #[test]
    fn the_sequence_number_never_wraps() {
        let storage = MemoryStorage::new();
        let mut last = headers();
        last.sequence_number = u64::MAX;
        assert!(last.write_other(&storage).is_err());
    }
}
