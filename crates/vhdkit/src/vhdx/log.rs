//! Log entries: building, validating, finding the active sequence, replaying (format sheet 3).
//!
//! Nothing here decides *when* to write; that is the journal's.

use std::collections::HashMap;
use std::sync::Arc;

use uuid::Uuid;
use zerocopy::{FromBytes, FromZeros, IntoBytes};

use super::header::{Headers, corrupt};
use super::layout::{
    ALIGNMENT, DATA_SECTOR_SIGNATURE, DATA_SIGNATURE, ENTRY_SIGNATURE, FIRST_LOGGED_OFFSET,
    LOG_SECTOR, LogDataSector, LogDescriptor, LogEntryHeader, MAX_FILE_SIZE, ZERO_SIGNATURE,
    checksum,
};
use crate::error::{Error, ErrorKind, Result};
use crate::num::{round_up, to_usize};
use crate::storage::{OverlayStorage, Storage};

const HEADER: u64 = size_of::<LogEntryHeader>() as u64;
const DESCRIPTOR: u64 = size_of::<LogDescriptor>() as u64;

/// One change that an entry describes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Change {
    /// These 4096 bytes at this offset.
    Page { file_offset: u64, page: Box<[u8]> },
    /// Zeros.
    Zeros { file_offset: u64, length: u64 },
}

/// What an entry says besides its changes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct EntryFields {
    pub(super) log_guid: Uuid,
    pub(super) sequence_number: u64,
    /// Offset within the log.
    pub(super) tail: u64,
    pub(super) flushed_file_offset: u64,
    pub(super) last_file_offset: u64,
}

/// Length of an entry with this many pages and no zero ranges.
pub(super) fn entry_length(pages: u64) -> u64 {
    round_up(HEADER + DESCRIPTOR * pages, LOG_SECTOR) + LOG_SECTOR * pages
}

/// The bytes of an entry.
pub(super) fn encode(fields: &EntryFields, changes: &[Change]) -> Result<Vec<u8>> {
    let pages = changes
        .iter()
        .filter(|c| matches!(c, Change::Page { .. }))
        .count();
    let descriptors = round_up(HEADER + DESCRIPTOR * changes.len() as u64, LOG_SECTOR);
    let length = descriptors + LOG_SECTOR * pages as u64;
    let small = |value: u64| {
        u32::try_from(value).map_err(|_| corrupt(format!("{value} does not fit a log entry")))
    };
    let header = LogEntryHeader {
        signature: ENTRY_SIGNATURE,
        checksum: 0.into(),
        entry_length: small(length)?.into(),
        tail: small(fields.tail)?.into(),
        sequence_number: fields.sequence_number.into(),
        descriptor_count: small(changes.len() as u64)?.into(),
        reserved: 0.into(),
        log_guid: fields.log_guid.into(),
        flushed_file_offset: fields.flushed_file_offset.into(),
        last_file_offset: fields.last_file_offset.into(),
    };
    let mut bytes = Vec::with_capacity(to_usize(length));
    bytes.extend_from_slice(header.as_bytes());
    for change in changes {
        bytes.extend_from_slice(descriptor(change, fields.sequence_number).as_bytes());
    }
    bytes.resize(to_usize(descriptors), 0);
    let sequence = fields.sequence_number.to_le_bytes();
    for change in changes {
        if let Change::Page { page, .. } = change {
            bytes.extend_from_slice(&DATA_SECTOR_SIGNATURE);
            bytes.extend_from_slice(&sequence[4..]);
            bytes.extend_from_slice(&page[8..4092]);
            bytes.extend_from_slice(&sequence[..4]);
        }
    }
    let sum = checksum(&bytes);
    bytes[4..8].copy_from_slice(&sum.to_le_bytes());
    Ok(bytes)
}

fn descriptor(change: &Change, sequence_number: u64) -> LogDescriptor {
    let mut descriptor = LogDescriptor::new_zeroed();
    descriptor.sequence_number = sequence_number.into();
    match change {
        Change::Page { file_offset, page } => {
            assert_eq!(page.len() as u64, LOG_SECTOR, "a page is 4096 bytes");
            descriptor.signature = DATA_SIGNATURE;
            descriptor.leading_bytes.copy_from_slice(&page[..8]);
            descriptor.trailing_bytes.copy_from_slice(&page[4092..]);
            descriptor.file_offset = (*file_offset).into();
        }
        Change::Zeros {
            file_offset,
            length,
        } => {
            descriptor.signature = ZERO_SIGNATURE;
            descriptor.leading_bytes = length.to_le_bytes();
            descriptor.file_offset = (*file_offset).into();
        }
    }
    descriptor
}

/// A valid entry, where it was found.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    /// Within the log.
    pub(super) offset: u64,
    pub(super) length: u64,
    pub(super) fields: EntryFields,
}

/// The log area of a file, read as a ring.
pub(super) struct Ring<'a> {
    storage: &'a dyn Storage,
    offset: u64,
    length: u64,
    guid: Uuid,
    file_length: u64,
}

impl<'a> Ring<'a> {
    pub(super) fn new(storage: &'a dyn Storage, headers: &Headers, file_length: u64) -> Self {
        Self {
            storage,
            offset: headers.log_offset,
            length: headers.log_length,
            guid: headers.log_guid,
            file_length,
        }
    }

    fn read(&self, at: u64, length: u64) -> Result<Vec<u8>> {
        let mut bytes = vec![0; to_usize(length)];
        let first = length.min(self.length - at);
        let (head, wrapped) = bytes.split_at_mut(to_usize(first));
        self.storage.read_at(self.offset + at, head)?;
        if !wrapped.is_empty() {
            self.storage.read_at(self.offset, wrapped)?;
        }
        Ok(bytes)
    }

    /// The entry at `at` if it is valid in every respect (3.2).
    fn entry(&self, at: u64, budget: &mut u64) -> Result<Option<Entry>> {
        let head = self.read(at, HEADER)?;
        let Ok(header) = LogEntryHeader::read_from_bytes(&head) else {
            return Ok(None);
        };
        let length = u64::from(header.entry_length.get());
        let tail = u64::from(header.tail.get());
        let plausible = header.signature == ENTRY_SIGNATURE
            && Uuid::from(header.log_guid) == self.guid
            && header.sequence_number.get() > 0
            && length.is_multiple_of(LOG_SECTOR)
            && length >= LOG_SECTOR
            && length < self.length
            && tail.is_multiple_of(LOG_SECTOR)
            && tail < self.length
            && HEADER + DESCRIPTOR * u64::from(header.descriptor_count.get()) <= length;
        if !plausible {
            return Ok(None);
        }
        // Entries do not overlap in an honest log; many that do would take for ever to check.
        *budget = budget
            .checked_sub(length)
            .ok_or_else(|| corrupt("the log is full of overlapping entries"))?;
        let bytes = self.read(at, length)?;
        if header.checksum.get() != checksum(&bytes) || self.decode(&header, &bytes).is_none() {
            return Ok(None);
        }
        Ok(Some(Entry {
            offset: at,
            length,
            fields: EntryFields {
                log_guid: self.guid,
                sequence_number: header.sequence_number.get(),
                tail,
                flushed_file_offset: header.flushed_file_offset.get(),
                last_file_offset: header.last_file_offset.get(),
            },
        }))
    }

    /// The changes of an entry whose checksum was right, or `None` if one of them is not allowed.
    fn decode(&self, header: &LogEntryHeader, bytes: &[u8]) -> Option<Vec<Change>> {
        let count = to_usize(header.descriptor_count.get().into());
        let (descriptors, _) =
            <[LogDescriptor]>::ref_from_prefix_with_elems(bytes.get(to_usize(HEADER)..)?, count)
                .ok()?;
        let area = round_up(HEADER + DESCRIPTOR * count as u64, LOG_SECTOR);
        let mut sectors = bytes
            .get(to_usize(area)..)?
            .chunks_exact(to_usize(LOG_SECTOR));
        let sequence = header.sequence_number.get();
        let mut changes = Vec::with_capacity(count);
        for descriptor in descriptors {
            let file_offset = descriptor.file_offset.get();
            if descriptor.sequence_number.get() != sequence {
                return None;
            }
            let change = match descriptor.signature {
                ZERO_SIGNATURE => {
                    let length = u64::from_le_bytes(descriptor.leading_bytes);
                    Change::Zeros {
                        file_offset,
                        length,
                    }
                }
                DATA_SIGNATURE => {
                    let sector = LogDataSector::ref_from_bytes(sectors.next()?).ok()?;
                    let whole = u64::from(sector.sequence_high.get()) << 32
                        | u64::from(sector.sequence_low.get());
                    if sector.signature != DATA_SECTOR_SIGNATURE || whole != sequence {
                        return None;
                    }
                    let page = [
                        &descriptor.leading_bytes[..],
                        &sector.data[..],
                        &descriptor.trailing_bytes[..],
                    ]
                    .concat();
                    Change::Page {
                        file_offset,
                        page: page.into(),
                    }
                }
                _ => return None,
            };
            if !self.allowed(&change) {
                return None;
            }
            changes.push(change);
        }
        // No sector may be left over: the length must be the one computed from the descriptors.
        sectors.next().is_none().then_some(changes)
    }

    fn allowed(&self, change: &Change) -> bool {
        let (start, length) = match change {
            Change::Page { file_offset, .. } => (*file_offset, LOG_SECTOR),
            Change::Zeros {
                file_offset,
                length,
            } => (*file_offset, *length),
        };
        let Some(end) = start.checked_add(length) else {
            return false;
        };
        start.is_multiple_of(LOG_SECTOR)
            && length.is_multiple_of(LOG_SECTOR)
            && start >= FIRST_LOGGED_OFFSET
            && end <= MAX_FILE_SIZE
            && (end <= self.offset || start >= self.offset + self.length)
    }

    /// The active sequence, tail first (3.4).
    ///
    /// Every offset is looked at once: a walk that reaches an entry of an earlier walk ends at that walk's head, so
    /// that no arrangement of bytes makes the search slow.
    pub(super) fn active_sequence(&self) -> Result<Vec<Entry>> {
        let mut search = Search {
            ring: self,
            known: HashMap::new(),
            budget: self.length * 16,
        };
        // The head that each entry leads to.
        let mut heads: HashMap<u64, Entry> = HashMap::new();
        let mut best: Option<(u64, Entry)> = None;
        let mut start = 0;
        while start < self.length {
            if !heads.contains_key(&start)
                && let Some(first) = search.entry(start)?
            {
                let mut run = vec![first];
                let head = loop {
                    let last = &run[run.len() - 1];
                    match search.following(last)? {
                        Some(next) => match heads.get(&next.offset) {
                            Some(head) => break head.clone(),
                            None => run.push(next),
                        },
                        None => break last.clone(),
                    }
                };
                let tail = head.fields.tail;
                let complete = run.iter().any(|entry| entry.offset == tail);
                if complete
                    && best
                        .as_ref()
                        .is_none_or(|(_, b)| b.fields.sequence_number < head.fields.sequence_number)
                {
                    best = Some((tail, head.clone()));
                }
                heads.extend(run.into_iter().map(|entry| (entry.offset, head.clone())));
            }
            start += LOG_SECTOR;
        }
        let Some((tail, head)) = best else {
            return Ok(Vec::new());
        };
        let mut entries: Vec<Entry> = search.entry(tail)?.into_iter().collect();
        while let Some(last) = entries.last()
            && last.offset != head.offset
            && let Some(next) = search.following(last)?
        {
            entries.push(next);
        }
        Ok(entries)
    }

    /// The changes of a valid entry, read again.
    fn changes(&self, entry: &Entry) -> Result<Vec<Change>> {
        let bytes = self.read(entry.offset, entry.length)?;
        LogEntryHeader::ref_from_prefix(&bytes)
            .ok()
            .and_then(|(header, _)| self.decode(header, &bytes))
            .ok_or_else(|| corrupt("a log entry changed while it was being read"))
    }

    /// The active sequence of a log that is in use, checked against the file's length (3.5, steps 1 and 2).
    pub(super) fn replayable(&self) -> Result<Vec<Entry>> {
        let entries = self.active_sequence()?;
        let Some(head) = entries.last() else {
            return Err(corrupt("the log is in use but holds no valid entry")
                .with_hint("the last changes are lost; restore the file from a backup"));
        };
        let needed = head.fields.flushed_file_offset;
        if self.file_length < needed {
            return Err(Error::new(
                ErrorKind::InvalidFileSize,
                format!(
                    "the file has {} bytes but had {needed} when its log was written: it was cut off",
                    self.file_length
                ),
            )
            .with_hint("copy the file again from its source"));
        }
        Ok(entries)
    }
}

/// The entries found so far, and how many more bytes may be read to find others.
struct Search<'a> {
    ring: &'a Ring<'a>,
    known: HashMap<u64, Option<Entry>>,
    budget: u64,
}

impl Search<'_> {
    fn entry(&mut self, at: u64) -> Result<Option<Entry>> {
        if let Some(known) = self.known.get(&at) {
            return Ok(known.clone());
        }
        let entry = self.ring.entry(at, &mut self.budget)?;
        self.known.insert(at, entry.clone());
        Ok(entry)
    }

    /// The entry right behind `last`, if it continues the sequence.
    fn following(&mut self, last: &Entry) -> Result<Option<Entry>> {
        let at = (last.offset + last.length) % self.ring.length;
        let expected = last.fields.sequence_number.checked_add(1);
        Ok(self
            .entry(at)?
            .filter(|next| Some(next.fields.sequence_number) == expected))
    }
}

/// How long the file has to be for the last entry; a multiple of 1 MiB.
fn required_length(entries: &[Entry], file_length: u64) -> Result<u64> {
    let last = entries
        .last()
        .map_or(0, |head| head.fields.last_file_offset);
    if last > MAX_FILE_SIZE {
        return Err(corrupt(format!("the log asks for a file of {last} bytes")));
    }
    Ok(round_up(last, ALIGNMENT).max(file_length))
}

/// Replays into memory, over a file that stays as it is.
pub(super) fn replay_in_memory(
    storage: &Arc<dyn Storage>,
    headers: &Headers,
) -> Result<Arc<dyn Storage>> {
    let file_length = storage.len()?;
    let ring = Ring::new(&**storage, headers, file_length);
    let entries = ring.replayable()?;
    let mut view = OverlayStorage::new(storage.clone(), required_length(&entries, file_length)?)?;
    for entry in &entries {
        for change in ring.changes(entry)? {
            match change {
                Change::Page { file_offset, page } => view.set_page(file_offset, page),
                Change::Zeros {
                    file_offset,
                    length,
                } => view.set_zeros(file_offset, length),
            }
        }
    }
    Ok(Arc::new(view))
}

/// Replays into the file and marks the log as empty (3.5, steps 3 to 7). Interrupted at any point, it can be repeated.
pub(super) fn replay(
    storage: &dyn Storage,
    headers: &mut Headers,
    file_write_guid: Uuid,
) -> Result<()> {
    let file_length = storage.len()?;
    let ring = Ring::new(storage, headers, file_length);
    let entries = ring.replayable()?;
    let length = required_length(&entries, file_length)?;
    let mut updated = headers.clone();
    // The current header may be one that a killed process wrote and nobody flushed: only when it is durable may the
    // other slot be touched.
    storage.flush()?;
    updated.file_write_guid = file_write_guid;
    updated.write_other(storage)?;
    storage.flush()?;
    for entry in &entries {
        for change in ring.changes(entry)? {
            match change {
                Change::Page { file_offset, page } => storage.write_at(file_offset, &page)?,
                Change::Zeros {
                    file_offset,
                    length,
                } => {
                    // What lies past the end is zero anyway, and a descriptor may claim any length.
                    let end = (file_offset + length).min(storage.len()?);
                    if file_offset < end {
                        storage.punch_hole(file_offset, end - file_offset)?;
                    }
                }
            }
        }
    }
    if storage.len()? < length {
        storage.set_len(length)?;
    }
    storage.flush()?;
    updated.log_guid = Uuid::nil();
    updated.update(storage)?;
    storage.flush()?;
    *headers = updated;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::num::MIB;
    use crate::storage::MemoryStorage;

    const LOG_LENGTH: u64 = MIB;

    fn headers(guid: u128) -> Headers {
        Headers {
            current: 0,
            other_agrees: true,
            sequence_number: 3,
            file_write_guid: Uuid::from_u128(1),
            data_write_guid: Uuid::from_u128(2),
            log_guid: Uuid::from_u128(guid),
            log_offset: MIB,
            log_length: LOG_LENGTH,
        }
    }

    fn put(
        storage: &MemoryStorage,
        at: u64,
        sequence_number: u64,
        tail: u64,
        changes: &[Change],
    ) -> u64 {
        let fields = EntryFields {
            log_guid: Uuid::from_u128(9),
            sequence_number,
            tail,
            flushed_file_offset: 4 * MIB,
            last_file_offset: 8 * MIB,
        };
        let bytes = encode(&fields, changes).unwrap();
        for (i, sector) in bytes.chunks(4096).enumerate() {
            let offset = (at + i as u64 * 4096) % LOG_LENGTH;
            storage.write_at(MIB + offset, sector).unwrap();
        }
        (at + bytes.len() as u64) % LOG_LENGTH
    }

    fn page(file_offset: u64, fill: u8) -> Change {
        Change::Page {
            file_offset,
            page: vec![fill; 4096].into(),
        }
    }

    fn file() -> MemoryStorage {
        let storage = MemoryStorage::new();
        storage.set_len(6 * MIB).unwrap();
        storage
    }

    fn sequence(storage: &MemoryStorage) -> Vec<u64> {
        let ring_headers = headers(9);
        let ring = Ring::new(storage, &ring_headers, 6 * MIB);
        ring.active_sequence()
            .unwrap()
            .iter()
            .map(|e| e.fields.sequence_number)
            .collect()
    }

    #[test]
    fn an_entry_without_changes_is_one_sector_and_valid() {
        let storage = file();
        assert_eq!(put(&storage, 0, 1, 0, &[]), 4096);
        assert_eq!(sequence(&storage), [1]);
    }

    #[test]
    fn a_sequence_that_wraps_is_found_from_its_real_start() {
        let storage = file();
        let first = LOG_LENGTH - 8192;
        let second = put(&storage, first, 5, first, &[page(3 * MIB, 1)]);
        assert_eq!(second, 0);
        let third = put(
            &storage,
            second,
            6,
            first,
            &[page(3 * MIB, 2), page(4 * MIB, 3)],
        );
        put(&storage, third, 7, first, &[]);
        assert_eq!(sequence(&storage), [5, 6, 7]);
    }

    #[test]
    fn entries_before_the_tail_and_of_another_guid_do_not_count() {
        let storage = file();
        let b = put(&storage, 0, 1, 0, &[page(3 * MIB, 1)]);
        let c = put(&storage, b, 2, b, &[page(3 * MIB, 2)]);
        put(&storage, c, 3, b, &[page(3 * MIB, 3)]);
        assert_eq!(sequence(&storage), [2, 3]);
        let other = headers(10);
        assert!(
            Ring::new(&storage, &other, 6 * MIB)
                .active_sequence()
                .unwrap()
                .is_empty()
        );
    }

    #[test]
    fn a_torn_entry_ends_the_sequence() {
        let storage = file();
        let b = put(&storage, 0, 1, 0, &[page(3 * MIB, 1)]);
        put(&storage, b, 2, 0, &[page(3 * MIB, 2)]);
        storage.write_at(MIB + b + 4096 + 100, &[0xEE]).unwrap();
        assert_eq!(sequence(&storage), [1]);
    }

    #[test]
    fn an_entry_that_would_touch_the_headers_or_the_log_is_invalid() {
        for target in [0, 64 * 1024, MIB, MIB + 4096, MAX_FILE_SIZE] {
            let storage = file();
            put(&storage, 0, 1, 0, &[page(target, 1)]);
            assert!(sequence(&storage).is_empty(), "{target}");
        }
        let storage = file();
        put(
            &storage,
            0,
            1,
            0,
            &[Change::Zeros {
                file_offset: 3 * MIB,
                length: u64::MAX - 4095,
            }],
        );
        assert!(sequence(&storage).is_empty());
    }

    #[test]
    fn replay_in_memory_and_in_the_file_agree() {
        let storage = file();
        storage.write_at(5 * MIB, &[7; 8192]).unwrap();
        let changes = [
            page(3 * MIB, 1),
            Change::Zeros {
                file_offset: 5 * MIB,
                length: 4096,
            },
            page(6 * MIB, 4),
        ];
        put(&storage, 0, 1, 0, &changes);
        let mut in_file = headers(9);
        let before = storage.to_vec();
        let shared: Arc<dyn Storage> = Arc::new(storage.clone());
        let view = replay_in_memory(&shared, &in_file).unwrap();
        replay(&storage, &mut in_file, Uuid::from_u128(77)).unwrap();
        assert!(in_file.log_guid.is_nil());
        assert_eq!(
            in_file.data_write_guid,
            Uuid::from_u128(2),
            "replay changes no data"
        );
        assert_eq!(view.len().unwrap(), 8 * MIB);
        let mut bytes = vec![0; to_usize(8 * MIB)];
        view.read_at(0, &mut bytes).unwrap();
        assert_eq!(bytes[to_usize(MIB)..], storage.to_vec()[to_usize(MIB)..]);
        let mut untouched = vec![0; before.len()];
        shared.read_at(0, &mut untouched).unwrap();
        assert!(untouched == before);
    }

    #[test]
    fn t13_a_file_cut_off_below_the_flushed_length_is_refused_and_a_short_one_extended() {
        let storage = file();
        put(&storage, 0, 1, 0, &[page(3 * MIB, 1)]);
        storage.set_len(4 * MIB - 4096).unwrap();
        let shared: Arc<dyn Storage> = Arc::new(storage.clone());
        let error = replay_in_memory(&shared, &headers(9))
            .map(drop)
            .unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidFileSize);
        storage.set_len(4 * MIB).unwrap();
        replay(&storage, &mut headers(9), Uuid::from_u128(7)).unwrap();
        assert_eq!(storage.len().unwrap(), 8 * MIB);
    }
}
