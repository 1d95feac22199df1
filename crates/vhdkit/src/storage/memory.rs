//! Storage in memory, sparse: pages that were never written take no space, so a 64 TiB disk can be tested.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Arc, PoisonError, RwLock};

use super::{Storage, end_of};
use crate::error::{Error, ErrorKind, Result};
use crate::num::{round_down, to_usize};

/// A sparse file in memory. `flush` does nothing: there is no crash to survive.
///
/// A clone shares its pages with the original until one of the two writes to them.
#[derive(Default)]
pub struct MemoryStorage {
    state: RwLock<State>,
}

#[derive(Default, Clone)]
struct State {
    length: u64,
    pages: BTreeMap<u64, Arc<Page>>,
}

const PAGE: u64 = 4096;
type Page = [u8; to_usize(PAGE)];

impl MemoryStorage {
    /// An empty file.
    pub fn new() -> Self {
        Self::default()
    }

    /// A file with this content.
    pub fn from_bytes(bytes: &[u8]) -> Self {
        let storage = Self::new();
        storage.with_mut(|state| state.write(0, bytes));
        storage
    }

    /// The whole content, for small files.
    pub fn to_vec(&self) -> Vec<u8> {
        self.with(|state| {
            let mut bytes = vec![0; to_usize(state.length)];
            state.read(0, &mut bytes);
            bytes
        })
    }

    /// Bytes of memory that hold data.
    pub fn resident(&self) -> u64 {
        self.with(|state| state.pages.len() as u64 * PAGE)
    }

    fn with<T>(&self, f: impl FnOnce(&State) -> T) -> T {
        f(&self.state.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn with_mut<T>(&self, f: impl FnOnce(&mut State) -> T) -> T {
        f(&mut self.state.write().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Clone for MemoryStorage {
    fn clone(&self) -> Self {
        Self {
            state: RwLock::new(self.with(State::clone)),
        }
    }
}

impl State {
    fn read(&self, offset: u64, buf: &mut [u8]) {
        buf.fill(0);
        let end = offset + buf.len() as u64;
        for (&page, bytes) in self.pages.range(round_down(offset, PAGE)..end) {
            let from = page.max(offset);
            let to = (page + PAGE).min(end);
            buf[to_usize(from - offset)..to_usize(to - offset)]
                .copy_from_slice(&bytes[to_usize(from - page)..to_usize(to - page)]);
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        let mut done = 0;
        while done < data.len() {
            let at = offset + done as u64;
            let page = round_down(at, PAGE);
            let within = to_usize(at - page);
            let n = (to_usize(PAGE) - within).min(data.len() - done);
            let bytes = self
                .pages
                .entry(page)
                .or_insert_with(|| Arc::new([0; to_usize(PAGE)]));
            Arc::make_mut(bytes)[within..within + n].copy_from_slice(&data[done..done + n]);
            done += n;
        }
        self.length = self.length.max(offset + data.len() as u64);
    }

    fn zero(&mut self, offset: u64, end: u64) {
        let end = end.min(self.length);
        if offset >= end {
            return;
        }
        let touched: Vec<u64> = self
            .pages
            .range(round_down(offset, PAGE)..end)
            .map(|(&page, _)| page)
            .collect();
        for page in touched {
            if page >= offset && page + PAGE <= end {
                self.pages.remove(&page);
            } else if let Some(bytes) = self.pages.get_mut(&page) {
                let from = to_usize(page.max(offset) - page);
                let to = to_usize((page + PAGE).min(end) - page);
                Arc::make_mut(bytes)[from..to].fill(0);
            }
        }
    }
}

impl Storage for MemoryStorage {
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        let end = end_of(offset, buf.len() as u64)?;
        self.with(|state| {
            if end > state.length {
                return Err(Error::new(
                    ErrorKind::ReadFault,
                    format!(
                        "read failed: bytes {offset} to {end} are past the end of the file at {}",
                        state.length
                    ),
                ));
            }
            state.read(offset, buf);
            Ok(())
        })
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> Result<()> {
        end_of(offset, data.len() as u64)?;
        self.with_mut(|state| state.write(offset, data));
        Ok(())
    }

    fn flush(&self) -> Result<()> {
        Ok(())
    }

    fn len(&self) -> Result<u64> {
        Ok(self.with(|state| state.length))
    }

    fn set_len(&self, length: u64) -> Result<()> {
        self.with_mut(|state| {
            if length < state.length {
                state.zero(length, state.length);
            }
            state.length = length;
        });
        Ok(())
    }

    fn zero_range(&self, offset: u64, length: u64) -> Result<()> {
        let end = end_of(offset, length)?;
        self.with_mut(|state| state.zero(offset, end));
        Ok(())
    }

    fn next_data(&self, range: Range<u64>) -> Result<Option<Range<u64>>> {
        Ok(self.with(|state| {
            let end = range.end.min(state.length);
            if range.start >= end {
                return None;
            }
            let mut found: Option<Range<u64>> = None;
            for (&page, _) in state.pages.range(round_down(range.start, PAGE)..end) {
                match &mut found {
                    None => found = Some(page.max(range.start)..(page + PAGE).min(end)),
                    Some(run) if run.end == page => run.end = (page + PAGE).min(end),
                    Some(_) => break,
                }
            }
            found
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_was_written_across_pages_and_zeros_elsewhere() {
        let storage = MemoryStorage::new();
        storage.write_at(4090, b"hello world").unwrap();
        let mut buf = [9; 20];
        storage.set_len(1 << 45).unwrap();
        storage.read_at(4086, &mut buf).unwrap();
        assert_eq!(&buf, b"\0\0\0\0hello world\0\0\0\0\0");
        assert_eq!(storage.next_data(0..1 << 45).unwrap(), Some(0..8192));
        storage.punch_hole(0, 8192).unwrap();
        assert_eq!(storage.next_data(0..1 << 45).unwrap(), None);
    }

    #[test]
    fn reading_past_the_end_is_an_error() {
        let storage = MemoryStorage::from_bytes(b"abc");
        assert_eq!(
            storage.read_at(2, &mut [0; 2]).unwrap_err().kind(),
            ErrorKind::ReadFault
        );
    }

    #[test]
    fn an_empty_range_holds_no_data() {
        let storage = MemoryStorage::from_bytes(&[7; 100]);
        assert_eq!(storage.next_data(50..200).unwrap(), Some(50..100));
        assert_eq!(storage.next_data(100..100).unwrap(), None);
        assert_eq!(storage.next_data(50..50).unwrap(), None);
        assert_eq!(storage.next_data(200..300).unwrap(), None);
    }

    #[test]
    fn a_clone_is_independent_of_its_original() {
        let storage = MemoryStorage::from_bytes(&[7; 10000]);
        let copy = storage.clone();
        storage.write_at(5000, &[8; 10]).unwrap();
        copy.zero_range(0, 10).unwrap();
        assert_eq!(storage.to_vec()[0], 7);
        assert_eq!(copy.to_vec()[5000], 7);
    }

    #[test]
    fn bytes_cut_off_do_not_come_back() {
        let storage = MemoryStorage::from_bytes(&[7; 100]);
        storage.set_len(10).unwrap();
        storage.set_len(100).unwrap();
        assert_eq!(storage.to_vec()[..12], [7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 0, 0]);
    }
}
