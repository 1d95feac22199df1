//! Changes of structure: pages that are seen all or none, moves, a shorter file (rules J8 to J10).

use uuid::Uuid;

use super::{DirtyPage, Journal, State, lock};
use crate::error::Result;
use crate::storage::{Storage, cut_in_steps};
use crate::vhdx::header::corrupt;
use crate::vhdx::space::Span;

/// A page and where it goes.
pub(in crate::vhdx) type PlacedPage = (u64, Box<[u8]>);

type TakePage<'a> = &'a dyn Fn(DirtyPage) -> Option<PlacedPage>;

impl Journal {
    /// Makes a header durable with a chosen DataWriteGuid, which later writes of the session keep. The session has
    /// begun.
    pub(in crate::vhdx) fn set_data_write_guid(
        &self,
        storage: &dyn Storage,
        identifier: Uuid,
    ) -> Result<()> {
        let mut state = lock(&self.state);
        self.check()?;
        if state.headers.data_write_guid != identifier {
            state.headers.data_write_guid = identifier;
            state.identity_is_due = true;
        }
        state.data_guid_is_new = true;
        let result = self.settle_identity(storage, &mut state);
        self.remember(&result);
        result
    }

    /// The most pages that [`Journal::transact`] takes.
    pub(in crate::vhdx) fn transaction_limit(&self) -> usize {
        Self::pages_per_entry(&lock(&self.state))
    }

    /// J8: makes everything durable that was written or changed before, then these pages in one entry, then gives back
    /// what they no longer refer to. Who calls this has the image to itself.
    pub(in crate::vhdx) fn transact(
        &self,
        storage: &dyn Storage,
        take_page: TakePage<'_>,
        pages: Vec<PlacedPage>,
        freed: &[Span],
    ) -> Result<()> {
        self.exclusively(|state| {
            // Opening the log is a barrier behind all that was written, before the entry counts.
            if state.writer.is_some() || self.has_changes() {
                self.commit(storage, state, take_page)?;
            }
            if !state.repairs.is_empty() {
                self.log_pages(storage, state, &[], take_page)?;
            }
            self.log_together(storage, state, pages)?;
            self.give_back(storage, state, freed, &[])
        })
    }

    fn has_changes(&self) -> bool {
        !(lock(&self.dirty).is_empty()
            && lock(&self.freed).is_empty()
            && lock(&self.freed_logged).is_empty())
    }

    fn log_together(
        &self,
        storage: &dyn Storage,
        state: &mut State,
        mut pages: Vec<PlacedPage>,
    ) -> Result<()> {
        if pages.len() > Self::pages_per_entry(state) {
            return Err(corrupt(format!(
                "a log of {} bytes cannot hold a change of {} pages",
                state.headers.log_length,
                pages.len()
            ))
            .with_hint("convert the disk to a new file, which gets a larger log"));
        }
        self.log_entry(storage, state, &mut pages)
    }

    /// J9: after this no replay writes anywhere, until something is logged again.
    pub(in crate::vhdx) fn seal_log(&self, storage: &dyn Storage) -> Result<()> {
        self.exclusively(|state| self.seal(storage, state))
    }

    pub(super) fn seal(&self, storage: &dyn Storage, state: &mut State) -> Result<()> {
        // Everything is put in place, durably; then an empty entry, for which a sector is always kept free, says so,
        // and all before it is free.
        self.barrier(storage, state)?;
        if state.writer.is_some() {
            self.write_entry(storage, state, &[])?;
            self.barrier_of_entry(storage, state)?;
        }
        Ok(())
    }

    /// J10: cuts the file off at `end`, durably. Nothing durable refers to what lies behind. `cut` hears of further bytes
    /// that are gone.
    pub(in crate::vhdx) fn trim(
        &self,
        storage: &dyn Storage,
        end: u64,
        cut: &mut dyn FnMut(u64),
    ) -> Result<()> {
        self.exclusively(|state| {
            let (before, end) =
                self.with_space(|space| Ok((space.file_length(), space.cut(end))))?;
            if before <= end {
                return self.barrier(storage, state);
            }
            self.settle_identity(storage, state)?;
            state.flushed_length = state.flushed_length.min(end);
            self.seal(storage, state)?;
            cut_in_steps(storage, (before, end), |_| Ok(true), cut)?;
            self.barrier(storage, state)
        })
    }

    /// Takes a free range for a mover; true if it reads as zeros, durably.
    pub(in crate::vhdx) fn claim_space(&self, span: Span) -> Result<bool> {
        self.with_space(|space| Ok(space.claim(span)))
    }

    /// From now on the file does not become shorter than this.
    pub(in crate::vhdx) fn set_keep(&self, keep: u64) -> Result<()> {
        self.with_space(|space| {
            space.set_keep(keep);
            Ok(())
        })
    }

    fn exclusively(&self, f: impl FnOnce(&mut State) -> Result<()>) -> Result<()> {
        let mut state = lock(&self.state);
        self.check()?;
        let result = f(&mut state);
        self.remember(&result);
        result
    }
}
