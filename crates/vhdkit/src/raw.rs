//! Raw: the bytes of the disk and nothing else. Holes are known through [`Storage::next_data`].

use std::io::{PipeReader, PipeWriter};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use crate::error::{Error, ErrorKind, Result};
use crate::image::{
    Backing, CreateParameters, DiskType, Extent, ExtentKind, Format, Image, ImageBuilder,
    ImageInfo, Pace, SourceRun, Told, ZeroMode, copy_placed,
};
use crate::num::{round_up, to_usize};
use crate::storage::{Storage, in_steps};

/// A raw disk. Its size is the file's length, rounded up to a whole sector of 512 bytes (the missing bytes read as
/// zeros and are added to the file by the first write to them).
pub struct RawImage {
    storage: Arc<dyn Storage>,
    /// Of the file, when it was opened.
    length: u64,
    virtual_size: u64,
    writable: bool,
    closed: AtomicBool,
}

const SECTOR: u64 = 512;

impl RawImage {
    /// Opens any bytes as a raw disk.
    pub fn open(storage: Arc<dyn Storage>, writable: bool) -> Result<Self> {
        let length = storage.len()?;
        let virtual_size = round_up(length, SECTOR);
        Ok(Self {
            storage,
            length,
            virtual_size,
            writable,
            closed: AtomicBool::new(false),
        })
    }

    fn writable(&self) -> Result<()> {
        if !self.writable {
            return Err(Error::new(
                ErrorKind::WriteProtected,
                "the disk was opened read-only",
            ));
        }
        if self.closed.load(Relaxed) {
            return Err(Error::new(ErrorKind::InvalidState, "the disk was closed"));
        }
        Ok(())
    }

    /// The end of the file, which may be within the last sector.
    fn end(&self) -> Result<u64> {
        if self.writable {
            Ok(self.storage.len()?.min(self.virtual_size))
        } else {
            Ok(self.length)
        }
    }
}

impl Image for RawImage {
    fn info(&self) -> ImageInfo {
        ImageInfo {
            format: Format::Raw,
            disk_type: DiskType::Fixed,
            virtual_size: self.virtual_size,
            logical_sector_size: 512,
            physical_sector_size: 512,
            block_size: None,
            identifier: None,
            link_identifier: None,
            creator: None,
            created: None,
            geometry: None,
            file_size: self.storage.len().unwrap_or(self.virtual_size),
            log_replayed: false,
            parent: None,
        }
    }

    fn virtual_size(&self) -> u64 {
        self.virtual_size
    }

    fn storage(&self) -> &Arc<dyn Storage> {
        &self.storage
    }

    fn map(&self, offset: u64, length: u64) -> Result<Extent> {
        let (end, file_end) = (offset + length, self.end()?);
        if offset >= file_end {
            return Ok(Extent {
                length,
                kind: ExtentKind::Zero,
            });
        }
        Ok(match self.storage.next_data(offset..end.min(file_end))? {
            Some(data) if data.start <= offset => Extent {
                length: data.end - offset,
                kind: ExtentKind::Data {
                    storage_offset: offset,
                },
            },
            Some(data) => Extent {
                length: data.start - offset,
                kind: ExtentKind::Zero,
            },
            None => Extent {
                length,
                kind: ExtentKind::Zero,
            },
        })
    }

    fn read_at(&self, offset: u64, buf: &mut [u8], _absent: &mut Vec<Range<u64>>) -> Result<()> {
        let end = offset + buf.len() as u64;
        // Only the last sector can reach past the file's end.
        if end + SECTOR <= self.virtual_size {
            return self.storage.read_at(offset, buf);
        }
        let inside = self.end()?.saturating_sub(offset).min(buf.len() as u64);
        let (real, past) = buf.split_at_mut(to_usize(inside));
        if !real.is_empty() {
            self.storage.read_at(offset, real)?;
        }
        past.fill(0);
        Ok(())
    }

    fn lend(&self, offset: u64, length: u64, pipe: &PipeWriter) -> Result<u64> {
        // Every byte has its place for ever. What the last sector lacks is not in the file, and so not lent.
        Ok(self.storage.lend(offset, length, pipe))
    }

    fn write_at(&self, offset: u64, data: &[u8], _backing: &dyn Backing) -> Result<()> {
        self.writable()?;
        self.storage.write_at(offset, data)
    }

    fn write_pipe(&self, offset: u64, length: u64, pipe: &PipeReader) -> Result<u64> {
        self.writable()?;
        Ok(self.storage.write_pipe(offset, length, pipe))
    }

    fn zero(&self, offset: u64, length: u64, mode: ZeroMode, _backing: &dyn Backing) -> Result<()> {
        self.writable()?;
        let length = length.min(self.end()?.saturating_sub(offset));
        match mode {
            ZeroMode::MayUnmap => self.storage.punch_hole(offset, length),
            ZeroMode::KeepAllocated => self.storage.zero_range(offset, length),
        }
    }

    fn discard(&self, offset: u64, length: u64, backing: &dyn Backing) -> Result<()> {
        self.zero(offset, length, ZeroMode::MayUnmap, backing)
    }

    fn copy_from(
        &self,
        source: &dyn Storage,
        runs: Vec<SourceRun>,
        copied: Told<'_>,
    ) -> Result<Vec<SourceRun>> {
        self.writable()?;
        copy_placed(&*self.storage, source, runs, copied, |run| {
            Ok(Some(run.offset))
        })
    }

    fn resize(&mut self, size: u64, _backing: &dyn Backing, _pace: Pace<'_>) -> Result<()> {
        self.writable()?;
        if !self.storage.grows_with_zeros() {
            return Err(
                Error::new(ErrorKind::HostLimitation, "a device keeps its size")
                    .with_hint("convert it to a file, which can be resized"),
            );
        }
        self.storage.set_len(size)?;
        self.storage.flush()?;
        (self.length, self.virtual_size) = (size, size);
        Ok(())
    }

    fn flush(&self) -> Result<()> {
        if self.writable && !self.closed.load(Relaxed) {
            self.storage.flush()
        } else {
            Ok(())
        }
    }

    fn close(&self) -> Result<()> {
        self.flush()?;
        self.closed.store(true, Relaxed);
        Ok(())
    }
}

/// Makes a raw file: payload goes where it is on the disk.
pub struct RawBuilder {
    storage: Arc<dyn Storage>,
    /// Payload will be written, not shared: space is reserved for each long run of it.
    reserve: AtomicBool,
}

impl RawBuilder {
    /// Starts a raw disk on an empty file or a block device. `pace` is told how much of the space of a fixed disk is
    /// reserved, or of a device cleared, in bytes, and may stop it.
    pub fn new(
        storage: Arc<dyn Storage>,
        parameters: &CreateParameters,
        pace: Pace<'_>,
    ) -> Result<Self> {
        let size = parameters.virtual_size;
        if parameters.disk_type == DiskType::Differencing || parameters.parent.is_some() {
            return Err(
                Error::new(ErrorKind::InvalidType, "a raw disk cannot have a parent")
                    .with_hint("create a .vhdx or .vhd"),
            );
        }
        if storage.grows_with_zeros() {
            storage.set_len(size)?;
            if parameters.disk_type == DiskType::Fixed {
                in_steps(0..size, pace, |at, n| storage.allocate(at, n))?;
            }
        } else {
            let device = storage.len()?;
            if device < size {
                return Err(Error::new(
                    ErrorKind::InvalidSize,
                    format!("the device holds {device} bytes, the disk needs {size}"),
                ));
            }
            in_steps(0..size, pace, |at, n| storage.punch_hole(at, n))?;
        }
        Ok(Self {
            storage,
            reserve: AtomicBool::new(false),
        })
    }
}

/// Shorter runs are not worth a call of their own.
const LONG_RUN: u64 = 256 * 1024;

impl ImageBuilder for RawBuilder {
    fn storage(&self) -> &Arc<dyn Storage> {
        &self.storage
    }

    fn placement_unit(&self) -> u64 {
        1 << 40
    }

    fn expect_blocks(&self, _count: u64) {
        self.reserve.store(true, Relaxed);
    }

    fn place(&self, offset: u64, length: u64) -> Result<u64> {
        if length >= LONG_RUN && self.reserve.load(Relaxed) {
            self.storage.reserve_bulk(offset, length)?;
        }
        Ok(offset)
    }

    fn finish(&self) -> Result<()> {
        self.storage.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::NoBacking;
    use crate::storage::MemoryStorage;

    #[test]
    fn holes_are_known_and_the_last_sector_is_whole() {
        let storage = Arc::new(MemoryStorage::new());
        storage.write_at(8192, &[5; 100]).unwrap();
        let image = RawImage::open(storage.clone(), true).unwrap();
        assert_eq!(image.virtual_size(), 8704);
        assert_eq!(
            image.map(0, 8704).unwrap(),
            Extent {
                length: 8192,
                kind: ExtentKind::Zero
            }
        );
        let mut buf = [1; 512];
        image.read_at(8192, &mut buf, &mut Vec::new()).unwrap();
        assert_eq!((buf[99], buf[100]), (5, 0));
        image.write_at(8600, &[6; 104], &NoBacking).unwrap();
        image.read_at(8192, &mut buf, &mut Vec::new()).unwrap();
        assert_eq!((buf[99], buf[100], buf[511]), (5, 0, 6));
        image.close().unwrap();
        assert_eq!(
            image.write_at(0, &[1], &NoBacking).unwrap_err().kind(),
            ErrorKind::InvalidState
        );
    }
}
