//! Pages kept in memory over a storage that must not be written (a log replayed on a read-only open).

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use super::Storage;
use crate::error::{Error, ErrorKind, Result};
use crate::num::{round_down, to_usize};

const PAGE: u64 = 4096;

/// A read-only view: some 4096-byte pages come from memory, the rest from the storage below; the view may be longer
/// than the storage below and reads as zeros there.
pub struct OverlayStorage {
    below: Arc<dyn Storage>,
    pages: BTreeMap<u64, Box<[u8]>>,
    /// Disjoint ranges that read as zeros unless a page says otherwise: start to end.
    zeros: BTreeMap<u64, u64>,
    length: u64,
}

impl OverlayStorage {
    /// A view of `below`, at least `length` bytes long.
    pub fn new(below: Arc<dyn Storage>, length: u64) -> Result<Self> {
        let length = length.max(below.len()?);
        Ok(Self {
            below,
            pages: BTreeMap::new(),
            zeros: BTreeMap::new(),
            length,
        })
    }

    /// Puts a page at `offset`, which is a multiple of 4096.
    pub fn set_page(&mut self, offset: u64, page: Box<[u8]>) {
        debug_assert!(offset.is_multiple_of(PAGE) && page.len() as u64 == PAGE);
        self.length = self.length.max(offset + PAGE);
        self.pages.insert(offset, page);
    }

    /// Makes a range of whole pages read as zeros; the part of it past the end changes nothing.
    pub fn set_zeros(&mut self, offset: u64, length: u64) {
        let (mut start, mut end) = (offset, offset.saturating_add(length).min(self.length));
        if start >= end {
            return;
        }
        let inside: Vec<u64> = self.pages.range(start..end).map(|(&at, _)| at).collect();
        for at in inside {
            self.pages.remove(&at);
        }
        // Merge with every range that touches this one.
        let touching: Vec<(u64, u64)> = self
            .zeros
            .range(..=end)
            .rev()
            .take_while(|&(_, &e)| e >= start)
            .map(|(&s, &e)| (s, e))
            .collect();
        for (s, e) in touching {
            self.zeros.remove(&s);
            start = start.min(s);
            end = end.max(e);
        }
        self.zeros.insert(start, end);
    }

    fn read_below(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        let available = self
            .below
            .len()?
            .saturating_sub(offset)
            .min(buf.len() as u64);
        let (real, past) = buf.split_at_mut(to_usize(available));
        if !real.is_empty() {
            self.below.read_at(offset, real)?;
        }
        past.fill(0);
        Ok(())
    }
}

impl Storage for OverlayStorage {
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        let end = super::end_of(offset, buf.len() as u64)?;
        if end > self.length {
            return Err(Error::new(
                ErrorKind::ReadFault,
                format!(
                    "read failed: bytes {offset} to {end} are past the end of the file at {}",
                    self.length
                ),
            ));
        }
        self.read_below(offset, buf)?;
        for (&s, &e) in self
            .zeros
            .range(..end)
            .rev()
            .take_while(|&(_, &e)| e > offset)
        {
            buf[to_usize(s.max(offset) - offset)..to_usize(e.min(end) - offset)].fill(0);
        }
        for (&page, bytes) in self.pages.range(round_down(offset, PAGE)..end) {
            let (from, to) = (page.max(offset), (page + PAGE).min(end));
            buf[to_usize(from - offset)..to_usize(to - offset)]
                .copy_from_slice(&bytes[to_usize(from - page)..to_usize(to - page)]);
        }
        Ok(())
    }

    fn write_at(&self, _offset: u64, _data: &[u8]) -> Result<()> {
        Err(read_only())
    }

    fn flush(&self) -> Result<()> {
        Ok(())
    }

    fn len(&self) -> Result<u64> {
        Ok(self.length)
    }

    fn set_len(&self, _length: u64) -> Result<()> {
        Err(read_only())
    }

    fn next_data(&self, range: Range<u64>) -> Result<Option<Range<u64>>> {
        if range.start >= range.end {
            return Ok(None);
        }
        if self
            .pages
            .range(round_down(range.start, PAGE)..range.end)
            .next()
            .is_some()
        {
            return Ok((range.start < range.end).then_some(range));
        }
        let below_end = self.below.len()?;
        if range.start >= below_end {
            return Ok(None);
        }
        self.below.next_data(range.start..range.end.min(below_end))
    }

    fn path(&self) -> Option<&Path> {
        self.below.path()
    }
}

fn read_only() -> Error {
    Error::new(ErrorKind::WriteProtected, "the file was opened read-only")
}

#[cfg(test)]
mod tests {
    use super::super::MemoryStorage;
    use super::*;

    #[test]
    fn an_empty_range_holds_no_data() {
        let below: Arc<dyn Storage> = Arc::new(MemoryStorage::from_bytes(&[1; 16384]));
        let mut view = OverlayStorage::new(below, 16384).unwrap();
        view.set_page(0, vec![3; 4096].into());
        #[expect(
            clippy::reversed_empty_ranges,
            reason = "what a caller past the end asks for"
        )]
        let past_the_end = 32768..16384;
        assert!(view.next_data(past_the_end).unwrap().is_none());
    }

    #[test]
    fn later_pages_and_zero_ranges_win_over_earlier_ones() {
        let below: Arc<dyn Storage> = Arc::new(MemoryStorage::from_bytes(&[1; 16384]));
        let mut view = OverlayStorage::new(below, 20000).unwrap();
        view.set_page(4096, vec![2; 4096].into());
        view.set_zeros(0, 8192);
        view.set_page(0, vec![3; 4096].into());
        view.set_zeros(8192, 4096);
        let mut buf = vec![9; 20000];
        view.read_at(0, &mut buf).unwrap();
        assert!(buf[..4096].iter().all(|&b| b == 3));
        assert!(buf[4096..12288].iter().all(|&b| b == 0));
        assert!(buf[12288..16384].iter().all(|&b| b == 1));
        assert!(buf[16384..].iter().all(|&b| b == 0));
        assert_eq!(view.zeros.len(), 1, "touching ranges merge");
        assert_eq!(
            view.write_at(0, &[1]).unwrap_err().kind(),
            ErrorKind::WriteProtected
        );
    }
}
