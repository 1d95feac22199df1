//! Writing entries to the log, and the barriers between them (rules J2 to J4).

use uuid::Uuid;

use super::{Journal, State, lock};
use crate::error::Result;
use crate::num::{MIB, round_down, to_usize};
use crate::storage::Storage;
use crate::vhdx::header::corrupt;
use crate::vhdx::layout::{ALIGNMENT, LOG_SECTOR};
use crate::vhdx::log::{self, Change, EntryFields};

/// Where the log is being written. Offsets are within the log.
///
/// What a reader needs after a crash reaches from the tail that the last durable entry records to the head: none of it
/// is overwritten before a later entry is durable.
pub(super) struct Writer {
    /// Where the next entry goes.
    pub(super) head: u64,
    /// What the next entry records as tail: the oldest entry whose pages may not be durable in place, or itself.
    pub(super) tail: u64,
    /// What the last entry recorded as tail.
    pub(super) recorded: u64,
    /// Bytes up to the head that must not be overwritten.
    pub(super) used: u64,
    /// Length of the last entry.
    pub(super) last: u64,
    pub(super) sequence_number: u64,
}

impl Journal {
    /// Starts the log: its first entry, then the header that makes it count (J2) and has the identity (J1).
    pub(super) fn open_log(
        &self,
        storage: &dyn Storage,
        state: &mut State,
        changes: &[Change],
    ) -> Result<()> {
        if state.headers.log_length == 0 {
            state.headers.log_offset = self.take_space(storage, LOG_LENGTH)?;
            state.headers.log_length = LOG_LENGTH;
            *lock(&self.log_span) = (state.headers.log_offset, LOG_LENGTH);
        }
        state.headers.log_guid = Uuid::new_v4();
        state.writer = Some(Writer {
            head: 0,
            tail: 0,
            used: 0,
            recorded: 0,
            last: 0,
            sequence_number: 1,
        });
        self.append(storage, state, changes)?;
        self.barrier_of_entry(storage, state)?;
        state.headers.update(storage)?;
        self.identity_is_durable(state);
        Ok(())
    }

    /// The most pages that one entry takes.
    pub(super) fn pages_per_entry(state: &State) -> usize {
        pages_per_entry(match state.headers.log_length {
            0 => LOG_LENGTH,
            length => length,
        })
    }

    /// Writes an entry at the head, making room first if need be.
    pub(super) fn append(
        &self,
        storage: &dyn Storage,
        state: &mut State,
        changes: &[Change],
    ) -> Result<()> {
        let length = log::entry_length(changes.len() as u64);
        if !has_room(state, length) {
            self.seal(storage, state)?;
        }
        if !has_room(state, length) {
            return Err(corrupt(format!(
                "a log of {} bytes cannot hold an entry of {length}",
                state.headers.log_length
            )));
        }
        self.write_entry(storage, state, changes)
    }

    pub(super) fn write_entry(
        &self,
        storage: &dyn Storage,
        state: &mut State,
        changes: &[Change],
    ) -> Result<()> {
        let length = log::entry_length(changes.len() as u64);
        let log_length = state.headers.log_length;
        let (flushed, file_length) = (
            state.flushed_length,
            self.with_space(|space| Ok(space.file_length()))?,
        );
        let State {
            headers,
            writer: Some(writer),
            ..
        } = state
        else {
            return Err(corrupt("the log is not open"));
        };
        let fields = EntryFields {
            log_guid: headers.log_guid,
            sequence_number: writer.sequence_number,
            tail: writer.tail,
            flushed_file_offset: round_down(flushed, ALIGNMENT),
            last_file_offset: file_length,
        };
        let bytes = log::encode(&fields, changes)?;
        let before_wrap = to_usize(length.min(log_length - writer.head));
        storage.write_at(headers.log_offset + writer.head, &bytes[..before_wrap])?;
        if before_wrap < bytes.len() {
            storage.write_at(headers.log_offset, &bytes[before_wrap..])?;
        }
        writer.head = (writer.head + length) % log_length;
        writer.used += length;
        writer.recorded = writer.tail;
        writer.last = length;
        writer.sequence_number += 1;
        Ok(())
    }

    /// The barrier that commits the entry just appended; all entries before it are in place, durably (J4).
    pub(super) fn barrier_of_entry(&self, storage: &dyn Storage, state: &mut State) -> Result<()> {
        self.plain_barrier(storage, state)?;
        let length = state.headers.log_length;
        if let Some(writer) = &mut state.writer {
            // A reader now starts at the tail that this entry records.
            writer.used = (writer.head + length - writer.recorded) % length;
            // It is the only one whose pages are not yet in place.
            writer.tail = (writer.head + length - writer.last) % length;
        }
        Ok(())
    }

    /// A barrier while every entry's pages have been written in place: the next entry needs none before it.
    pub(super) fn barrier(&self, storage: &dyn Storage, state: &mut State) -> Result<()> {
        self.plain_barrier(storage, state)?;
        if let Some(writer) = &mut state.writer {
            writer.tail = writer.head;
        }
        Ok(())
    }

    pub(super) fn plain_barrier(&self, storage: &dyn Storage, state: &mut State) -> Result<()> {
        let (length, punched) =
            self.with_space(|space| Ok((space.file_length(), space.punched())))?;
        storage.flush()?;
        state.flushed_length = length;
        self.with_space(|space| {
            space.flushed(punched);
            Ok(())
        })
    }
}

/// Length of a log that is made for a file without one.
const LOG_LENGTH: u64 = MIB;

/// True if an entry of `length` bytes fits behind the head. One sector stays free, since a head that has caught up with
/// the tail would be ambiguous, and one more for the empty entry that makes room.
fn has_room(state: &State, length: u64) -> bool {
    state
        .writer
        .as_ref()
        .is_some_and(|w| w.used + length + 2 * LOG_SECTOR <= state.headers.log_length)
}

/// The most pages that one entry of a log can carry behind an empty entry.
fn pages_per_entry(log_length: u64) -> usize {
    let sectors = log_length / LOG_SECTOR;
    let pages = (0..sectors)
        .rev()
        .find(|&pages| log::entry_length(pages) + 3 * LOG_SECTOR <= log_length);
    to_usize(pages.unwrap_or(1).max(1))
}

/// Writes pages in place, neighbours together.
pub(in crate::vhdx) fn write_pages(
    storage: &dyn Storage,
    pages: &[(u64, Box<[u8]>)],
) -> Result<()> {
    let mut rest = pages;
    while let Some((offset, first)) = rest.first() {
        let run = rest
            .iter()
            .enumerate()
            .take_while(|(i, (at, _))| *at == offset + *i as u64 * LOG_SECTOR)
            .count();
        if run == 1 {
            storage.write_at(*offset, first)?;
        } else {
            let bytes: Vec<u8> = rest[..run]
                .iter()
                .flat_map(|(_, page)| page.iter().copied())
                .collect();
            storage.write_at(*offset, &bytes)?;
        }
        rest = &rest[run..];
    }
    Ok(())
}
