//! The order in which a VHDX file is written: the one place that decides what is durable before what.
//!
//! ```text
//!  clean ──begin──▶ modified ──flush──▶ logging ──close──▶ clean
//!    │                          ▲         ▲ │
//!    ├──plan──▶ planned ──change──────────┘ │
//!    └── any error of a header, log or flush ──▶ failed (until the file is opened again)
//! ```
//!
//! J1 Before anything changes in place, a header with a new FileWriteGuid is durable; before anything changes that the
//!    guest reads, one with a new DataWriteGuid. A session that moves, releases or relinks keeps the DataWriteGuid.
//!    A change that the log brings into the file needs no header of its own for it: the one that makes the log count
//!    (J2) carries the identity too. Written before it is only what nothing refers to: free space, and the log.
//! J2 LogGuid is set only after the log holds a valid entry, durably: the first one, which has the first changes, counts
//!    from then on. It is cleared only after every page is in place, durably. The second slot follows without a barrier
//!    of its own, and so does a spare end that is cut off: losing them does no harm.
//! J3 Changed pages of the BAT and of sector bitmaps reach the file only through a log entry that is durable before.
//!    One flush of the guest is one entry for all of them (several, if they do not fit the log; every prefix of these
//!    is a valid state because bitmaps go before the BAT, and the BAT goes from its end to its start).
//! J4 A page in place is not flushed for its own sake: the next barrier makes it durable, and only then the tail of the
//!    log moves past its entry.
//! J5 Data goes without a barrier before its BAT entry if the space was zero and the block read as zeros: a crash shows
//!    zeros or data. In a disk with a parent it would show zeros in place of the parent's data, so there the data is
//!    made durable first. So it is if blocks were moved, whose new places were no zeros.
//! J6 The steady state (nothing allocated since the last flush) costs one barrier; allocations without a parent too,
//!    but for the first, which opens the log with a second one.
//! J7 After an error that leaves memory and file possibly different, writing ends: every later call repeats the error.
//! J8 A change of structure is one log entry: its pages are seen all or none, and everything written before is durable
//!    before it (`structure`).
//! J9 Space that had logged pages (a region, a sector bitmap) is given back only once no entry that a replay would start
//!    from describes it: the log is sealed first, with an empty entry that is its own tail. Nor is anything written in
//!    place, past the log, where a replay could write.
//! J10 The file becomes shorter only after an entry is durable that asks for no more than the new length.
//! J11 What a session found is durable before it writes anything, also to free space or the log: a killed process may
//!    have left a header that nobody flushed, and on the media one that names the log. Two slots that agree say that it
//!    is (H2: the older one was durable before the newer one was written); else there is a barrier.

mod structure;
mod writer;

pub(super) use structure::PlacedPage;
pub(super) use writer::write_pages;

use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use uuid::Uuid;

use super::header::Headers;
use super::log::Change;
use super::space::{Space, Span, UsedMap};
use crate::error::{Error, ErrorKind, Result};
use crate::storage::Storage;
use writer::Writer;

/// A changed page that the journal has been told of.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum DirtyPage {
    /// Page of a chunk's sector bitmap.
    Bitmap { chunk: u64, page: u64 },
    /// Page of the BAT.
    Bat { page: u64 },
}

/// What a session has changed, or is about to change (J1).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
#[repr(u8)]
pub(super) enum Session {
    /// Where things are in the file, or what it says of itself: children stay valid.
    Structure = 1,
    /// What the guest reads.
    Data = 2,
}

/// See the module.
pub(super) struct Journal {
    /// 0, or a [`Session`].
    session: AtomicU8,
    closed: AtomicBool,
    failed: OnceLock<Error>,
    dirty: Mutex<Vec<DirtyPage>>,
    freed: Mutex<Vec<Span>>,
    /// Freed, and had logged pages (J9).
    freed_logged: Mutex<Vec<Span>>,
    space: Mutex<Option<Space>>,
    /// Where the log is; apart from the state, so that it can be asked for while that is locked.
    log_span: Mutex<Span>,
    state: Mutex<State>,
    /// Flushes started and the last one completed: who waited for the lock may find its work done.
    started: AtomicU64,
    completed: AtomicU64,
    /// J5: data before metadata.
    data_first: bool,
    /// J5: so it is for the next flush, too.
    moved: AtomicBool,
    /// See [`Journal::defer_punching`].
    deferring: AtomicBool,
}

struct State {
    headers: Headers,
    writer: Option<Writer>,
    /// A file length known to be durable.
    flushed_length: u64,
    /// Pages of a damaged copy of the region table, to go with the first entry.
    repairs: Vec<(u64, Box<[u8]>)>,
    /// The replay of this open already gave the file a new FileWriteGuid.
    file_guid_is_new: bool,
    /// This session chose the DataWriteGuid.
    data_guid_is_new: bool,
    /// No header has the identity that memory has (J1). Then the log is not open.
    identity_is_due: bool,
}

impl Journal {
    pub(super) fn new(
        headers: Headers,
        file_guid_is_new: bool,
        file_length: u64,
        data_first: bool,
        repairs: Vec<(u64, Box<[u8]>)>,
    ) -> Self {
        Self {
            session: AtomicU8::new(0),
            closed: AtomicBool::new(false),
            failed: OnceLock::new(),
            dirty: Mutex::default(),
            freed: Mutex::default(),
            freed_logged: Mutex::default(),
            space: Mutex::default(),
            log_span: Mutex::new((headers.log_offset, headers.log_length)),
            state: Mutex::new(State {
                headers,
                writer: None,
                repairs,
                flushed_length: file_length,
                file_guid_is_new,
                data_guid_is_new: false,
                identity_is_due: false,
            }),
            started: AtomicU64::new(0),
            completed: AtomicU64::new(0),
            data_first,
            moved: AtomicBool::new(false),
            deferring: AtomicBool::new(false),
        }
    }

    /// True once the session has changed the file.
    pub(super) fn is_modified(&self) -> bool {
        self.session.load(Ordering::Acquire) > 0
    }

    fn has_begun(&self, session: Session) -> bool {
        self.session.load(Ordering::Acquire) >= session as u8
    }

    /// Where the log is: offset and length in the file.
    pub(super) fn log_span(&self) -> Span {
        *lock(&self.log_span)
    }

    /// The identity of the data as the current header has it.
    pub(super) fn data_write_guid(&self) -> Uuid {
        lock(&self.state).headers.data_write_guid
    }

    /// Fails if nothing may be written any more.
    pub(super) fn check(&self) -> Result<()> {
        match self.failed.get() {
            None if self.closed.load(Ordering::Acquire) => {
                Err(Error::new(ErrorKind::InvalidState, "the disk was closed"))
            }
            None => Ok(()),
            Some(cause) => Err(Error::new(
                ErrorKind::InvalidState,
                format!("an earlier error stopped all writing ({})", cause.reason()),
            )
            .with_hint("close the disk and open it again: its log holds what was flushed")),
        }
    }

    /// Called before a session's first change in place, and of what the guest reads, by whoever comes first (J1). `used`
    /// tells what of the file is in use, and how many bytes behind it belong to the file as well; `begun` is called once,
    /// before anybody can write.
    pub(super) fn begin(
        &self,
        storage: &dyn Storage,
        used: impl FnOnce() -> Result<(UsedMap, u64)>,
        begun: impl FnOnce(),
    ) -> Result<()> {
        if self.has_begun(Session::Data) {
            return self.check();
        }
        self.plan(Session::Data, storage, used, begun)?;
        let mut state = lock(&self.state);
        self.check()?;
        let result = self.settle_identity(storage, &mut state);
        self.remember(&result);
        result
    }

    /// As [`Journal::begin`], for a session whose changes all go through the log, or first to free space: the identity
    /// goes with them.
    pub(super) fn plan(
        &self,
        session: Session,
        storage: &dyn Storage,
        used: impl FnOnce() -> Result<(UsedMap, u64)>,
        begun: impl FnOnce(),
    ) -> Result<()> {
        if self.has_begun(session) {
            return self.check();
        }
        let mut state = lock(&self.state);
        self.check()?;
        if !self.is_modified() {
            let (used, keep) = used()?;
            let result = self.plan_locked(storage, &mut state, &used, keep);
            self.remember(&result);
            result?;
            begun();
            self.session
                .store(Session::Structure as u8, Ordering::Release);
        }
        if session == Session::Data && !state.data_guid_is_new {
            state.headers.data_write_guid = Uuid::new_v4();
            state.data_guid_is_new = true;
            state.identity_is_due = true;
        }
        if state.writer.is_some() {
            let result = self.settle_identity(storage, &mut state);
            self.remember(&result);
            result?;
        }
        Ok(())
    }

    fn plan_locked(
        &self,
        storage: &dyn Storage,
        state: &mut State,
        used: &UsedMap,
        keep: u64,
    ) -> Result<()> {
        if !state.headers.other_agrees {
            storage.flush()?;
        }
        if !state.file_guid_is_new {
            state.headers.file_write_guid = Uuid::new_v4();
        }
        state.identity_is_due = true;
        let defer = self.deferring.load(Ordering::Acquire);
        let space = Space::new(storage, used, keep, defer)?;
        state.flushed_length = state.flushed_length.min(space.file_length());
        *lock(&self.space) = Some(space);
        Ok(())
    }

    /// Blocks were copied, and their entries are told of the new places next: the flush that makes these durable makes
    /// the copies durable before.
    pub(super) fn note_moved(&self) {
        self.moved.store(true, Ordering::Release);
    }

    /// See [`Space::defer_punching`]. Before a session's first change it also holds for the holes that it begins with.
    pub(super) fn defer_punching(&self, defer: bool) {
        self.deferring.store(defer, Ordering::Release);
        if let Some(space) = &mut *lock(&self.space) {
            space.defer_punching(defer);
        }
    }

    /// Makes a header durable that has the identity, if none has it.
    fn settle_identity(&self, storage: &dyn Storage, state: &mut State) -> Result<()> {
        if state.identity_is_due {
            // The current header may be one that nobody flushed (a killed process wrote it, or an earlier update here):
            // only when it is durable may the other slot be touched.
            storage.flush()?;
            state.headers.update(storage)?;
        }
        self.identity_is_durable(state);
        Ok(())
    }

    fn identity_is_durable(&self, state: &mut State) {
        state.identity_is_due = false;
        if state.data_guid_is_new {
            self.session.store(Session::Data as u8, Ordering::Release);
        }
    }

    /// Space for a block or bitmap that reads as zeros, also after a crash (space rule S1).
    pub(super) fn take_space(&self, storage: &dyn Storage, length: u64) -> Result<u64> {
        self.with_space(|space| space.take(storage, length))
    }

    /// Space that was taken but never referred to: something may have been written to it.
    pub(super) fn abandon_space(&self, storage: &dyn Storage, span: Span) {
        // If punching fails the space is lost until the next session, nothing worse.
        let _ = self.with_space(|space| space.give_back(storage, &[span]));
    }

    /// Space that a changed BAT entry referred to: reusable once that change is durable (S2). Called after the change.
    pub(super) fn free(&self, span: Span) {
        lock(&self.freed).push(span);
    }

    /// As [`Journal::free`], for space that had logged pages (J9). Closing gives it back without sealing the log.
    pub(super) fn free_logged(&self, span: Span) {
        lock(&self.freed_logged).push(span);
    }

    /// A page has been changed: `mark` marks it as dirty and says whether it was clean. In one step with the list, so
    /// that a flush on another thread finds a marked page in the list.
    pub(super) fn note(&self, page: DirtyPage, mark: impl FnOnce() -> bool) {
        let mut dirty = lock(&self.dirty);
        if mark() {
            dirty.push(page);
        }
    }

    /// Makes everything durable that was written or changed before the call. `take_page` gives a dirty page's place
    /// and present bytes.
    pub(super) fn flush(
        &self,
        storage: &dyn Storage,
        take_page: &dyn Fn(DirtyPage) -> Option<(u64, Box<[u8]>)>,
    ) -> Result<()> {
        if !self.is_modified() || self.closed.load(Ordering::Acquire) {
            return Ok(());
        }
        // A flush that starts from now on covers this call.
        let wanted = self.started.load(Ordering::SeqCst) + 1;
        let mut state = lock(&self.state);
        self.check()?;
        if self.completed.load(Ordering::SeqCst) >= wanted {
            return Ok(());
        }
        let number = self.started.fetch_add(1, Ordering::SeqCst) + 1;
        let result = self.commit(storage, &mut state, take_page);
        self.remember(&result);
        result?;
        self.completed.store(number, Ordering::SeqCst);
        Ok(())
    }

    fn commit(
        &self,
        storage: &dyn Storage,
        state: &mut State,
        take_page: &dyn Fn(DirtyPage) -> Option<(u64, Box<[u8]>)>,
    ) -> Result<()> {
        // First the freed spans, then the pages: the change that freed a span is in the pages then, or was before.
        let freed = std::mem::take(&mut *lock(&self.freed));
        let logged = std::mem::take(&mut *lock(&self.freed_logged));
        let mut dirty = std::mem::take(&mut *lock(&self.dirty));
        if dirty.is_empty() {
            if logged.is_empty() {
                self.barrier(storage, state)?;
            } // Else the log is sealed, which has one.
        } else {
            // J3: bitmaps, then the BAT from its end.
            dirty.sort_unstable_by(|a, b| match (a, b) {
                (DirtyPage::Bat { page: a }, DirtyPage::Bat { page: b }) => b.cmp(a),
                _ => a.cmp(b),
            });
            self.log_pages(storage, state, &dirty, take_page)?;
        }
        self.give_back(storage, state, &freed, &logged)
    }

    fn give_back(
        &self,
        storage: &dyn Storage,
        state: &mut State,
        freed: &[Span],
        logged: &[Span],
    ) -> Result<()> {
        if !logged.is_empty() {
            self.seal(storage, state)?;
        }
        self.with_space(|space| {
            space.give_back(storage, freed)?;
            space.give_back(storage, logged)
        })
    }

    fn log_pages(
        &self,
        storage: &dyn Storage,
        state: &mut State,
        dirty: &[DirtyPage],
        take_page: &dyn Fn(DirtyPage) -> Option<(u64, Box<[u8]>)>,
    ) -> Result<()> {
        // The BAT's bytes are taken before the bitmaps': a block that becomes partially present meanwhile is then
        // missing from the BAT, never present with an old bitmap.
        let mut pages: Vec<(u64, Box<[u8]>)> = dirty
            .iter()
            .rev()
            .filter_map(|&page| take_page(page))
            .collect();
        pages.reverse();
        pages.append(&mut state.repairs);
        // A log that is opened counts only after a further barrier.
        let data_first = self.data_first || self.moved.load(Ordering::Acquire);
        if data_first && state.writer.is_some() {
            self.barrier(storage, state)?;
        }
        for batch in pages.chunks_mut(Self::pages_per_entry(state)) {
            self.log_entry(storage, state, batch)?;
        }
        self.moved.store(false, Ordering::Release);
        Ok(())
    }

    /// Commits pages in one entry and writes them in place.
    fn log_entry(
        &self,
        storage: &dyn Storage,
        state: &mut State,
        pages: &mut [PlacedPage],
    ) -> Result<()> {
        pages.sort_unstable_by_key(|&(offset, _)| offset);
        let changes: Vec<Change> = pages
            .iter()
            .map(|(file_offset, page)| Change::Page {
                file_offset: *file_offset,
                page: page.clone(),
            })
            .collect();
        if state.writer.is_none() {
            self.open_log(storage, state, &changes)?;
        } else {
            self.append(storage, state, &changes)?;
            self.barrier_of_entry(storage, state)?;
        }
        write_pages(storage, pages)
    }

    /// Flushes, empties the log, cuts off spare space (J2). Nothing can be written afterwards.
    pub(super) fn close(
        &self,
        storage: &dyn Storage,
        take_page: &dyn Fn(DirtyPage) -> Option<(u64, Box<[u8]>)>,
    ) -> Result<()> {
        let mut state = lock(&self.state);
        if self.closed.load(Ordering::Acquire) {
            return Ok(());
        }
        if self.is_modified() {
            self.check()?;
            let result = self.close_locked(storage, &mut state, take_page);
            self.remember(&result);
            result?;
        }
        self.closed.store(true, Ordering::Release);
        Ok(())
    }

    fn close_locked(
        &self,
        storage: &dyn Storage,
        state: &mut State,
        take_page: &dyn Fn(DirtyPage) -> Option<(u64, Box<[u8]>)>,
    ) -> Result<()> {
        // No log is left behind: what has to wait for a sealed one need not be sealed.
        let logged = match &state.writer {
            Some(_) => std::mem::take(&mut *lock(&self.freed_logged)),
            None => Vec::new(),
        };
        self.commit(storage, state, take_page)?;
        self.settle_identity(storage, state)?;
        if let Some(writer) = &state.writer {
            if writer.tail != writer.head {
                // The pages are in place; now durably so.
                self.barrier(storage, state)?;
            }
            state.headers.log_guid = Uuid::nil();
            state.headers.update(storage)?;
            state.writer = None;
        }
        self.with_space(|space| {
            space.give_back(storage, &logged)?;
            space.settle(storage)?;
            // Nobody takes any of it now, so it may be cut off without a flush.
            space.flushed(space.punched());
            if space.trimmed_end() != space.file_length() {
                storage.set_len(space.trimmed_end())?;
                space.trimmed();
            }
            Ok(())
        })
    }

    fn with_space<T>(&self, f: impl FnOnce(&mut Space) -> Result<T>) -> Result<T> {
        match &mut *lock(&self.space) {
            Some(space) => f(space),
            None => Err(Error::new(
                ErrorKind::InvalidState,
                "nothing has been changed yet",
            )),
        }
    }

    /// J7.
    fn remember<T>(&self, result: &Result<T>) {
        if let Err(error) = result {
            let _ = self.failed.set(error.duplicate());
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
