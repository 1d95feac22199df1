//! ISO: an optical disc image, read-only, 2048-byte sectors (related-formats, section 4).
//!
//! Recognised by its descriptors from byte 32768 on: `CD001` (ISO 9660) or the volume recognition sequence of UDF. The
//! size presented is the file's length rounded up to a whole sector; the missing bytes read as zeros.

use std::ops::Range;
use std::sync::Arc;

use crate::error::{Error, ErrorKind, Result};
use crate::image::{Backing, DiskType, Extent, ExtentKind, Format, Image, ImageInfo, ZeroMode};
use crate::num::{round_up, to_usize};
use crate::storage::Storage;

/// An ISO 9660 or UDF image.
pub struct IsoImage {
    storage: Arc<dyn Storage>,
    file_size: u64,
}

/// Size of a sector in bytes.
pub const SECTOR_SIZE: u32 = 2048;
const SECTOR: u64 = SECTOR_SIZE as u64;
const FIRST_DESCRIPTOR: u64 = 32768;
/// ECMA 167 volume structure descriptors are looked for in this many sectors.
const DESCRIPTORS: u64 = 16;

impl IsoImage {
    /// True if the storage starts with ISO 9660 or UDF descriptors.
    pub fn detect(storage: &dyn Storage) -> Result<bool> {
        let length = storage.len()?;
        for i in 0..DESCRIPTORS {
            let at = FIRST_DESCRIPTOR + i * SECTOR;
            if at + 7 > length {
                return Ok(false);
            }
            let mut head = [0; 7];
            storage.read_at(at, &mut head)?;
            match &head[1..6] {
                b"CD001" if i == 0 && head[6] == 1 => return Ok(true),
                b"NSR02" | b"NSR03" => return Ok(true),
                b"BEA01" | b"BOOT2" | b"CD001" => {}
                _ => return Ok(false),
            }
        }
        Ok(false)
    }

    /// Opens a detected image.
    pub fn open(storage: Arc<dyn Storage>) -> Result<Self> {
        let file_size = storage.len()?;
        Ok(Self { storage, file_size })
    }
}

impl Image for IsoImage {
    fn info(&self) -> ImageInfo {
        ImageInfo {
            format: Format::Iso,
            disk_type: DiskType::Fixed,
            virtual_size: self.virtual_size(),
            logical_sector_size: SECTOR_SIZE,
            physical_sector_size: SECTOR_SIZE,
            block_size: None,
            identifier: None,
            link_identifier: None,
            creator: None,
            created: None,
            geometry: None,
            file_size: self.file_size,
            log_replayed: false,
            parent: None,
        }
    }

    fn virtual_size(&self) -> u64 {
        round_up(self.file_size, SECTOR)
    }

    fn storage(&self) -> &Arc<dyn Storage> {
        &self.storage
    }

    fn map(&self, offset: u64, length: u64) -> Result<Extent> {
        if offset >= self.file_size {
            return Ok(Extent {
                length,
                kind: ExtentKind::Zero,
            });
        }
        let end = (offset + length).min(self.file_size);
        Ok(match self.storage.next_data(offset..end)? {
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
                length: end - offset,
                kind: ExtentKind::Zero,
            },
        })
    }

    fn read_at(&self, offset: u64, buf: &mut [u8], _absent: &mut Vec<Range<u64>>) -> Result<()> {
        let inside = self.file_size.saturating_sub(offset).min(buf.len() as u64);
        let (real, past) = buf.split_at_mut(to_usize(inside));
        if !real.is_empty() {
            self.storage.read_at(offset, real)?;
        }
        past.fill(0);
        Ok(())
    }

    fn write_at(&self, _offset: u64, _data: &[u8], _backing: &dyn Backing) -> Result<()> {
        Err(read_only())
    }

    fn zero(&self, _: u64, _: u64, _: ZeroMode, _: &dyn Backing) -> Result<()> {
        Err(read_only())
    }

    fn discard(&self, _offset: u64, _length: u64, _backing: &dyn Backing) -> Result<()> {
        Err(read_only())
    }

    fn flush(&self) -> Result<()> {
        Ok(())
    }

    fn close(&self) -> Result<()> {
        Ok(())
    }
}

fn read_only() -> Error {
    Error::new(ErrorKind::WriteProtected, "an ISO image is read-only")
        .with_hint("convert it to a .vhdx or .img to change it")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::MemoryStorage;

    fn with_descriptors(names: &[&[u8; 5]]) -> MemoryStorage {
        let storage = MemoryStorage::new();
        for (i, name) in names.iter().enumerate() {
            let at = FIRST_DESCRIPTOR + i as u64 * SECTOR;
            storage.write_at(at, &[1]).unwrap();
            storage.write_at(at + 1, *name).unwrap();
            storage.write_at(at + 6, &[1]).unwrap();
        }
        storage.set_len(storage.len().unwrap() + 100).unwrap();
        storage
    }

    #[test]
    fn an_iso_is_recognised_by_its_descriptors() {
        assert!(IsoImage::detect(&with_descriptors(&[b"CD001"])).unwrap());
        assert!(IsoImage::detect(&with_descriptors(&[b"BEA01", b"NSR02", b"TEA01"])).unwrap());
        assert!(!IsoImage::detect(&with_descriptors(&[b"BEA01", b"TEA01"])).unwrap());
        assert!(!IsoImage::detect(&MemoryStorage::new()).unwrap());
    }

    #[test]
    fn the_size_is_whole_sectors_and_the_tail_reads_as_zeros() {
        let storage = Arc::new(with_descriptors(&[b"CD001"]));
        let length = storage.len().unwrap();
        let image = IsoImage::open(storage).unwrap();
        assert_eq!(image.virtual_size(), round_up(length, 2048));
        let mut buf = vec![7; to_usize(image.virtual_size())];
        image.read_at(0, &mut buf, &mut Vec::new()).unwrap();
        assert!(buf[to_usize(length)..].iter().all(|&b| b == 0));
    }
}
