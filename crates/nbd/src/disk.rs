//! A [`VirtualDisk`] as an export.

use std::io::{PipeReader, PipeWriter};
use std::sync::Arc;

use vhdkit::image::{DiskType, Format, ZeroMode};
use vhdkit::{Result, VirtualDisk};

use crate::export::{BlockSizes, Export, Status, allocation};

/// A virtual disk as it is served.
pub struct DiskExport {
    disk: Arc<VirtualDisk>,
    size: u64,
    read_only: bool,
    blocks: BlockSizes,
    description: String,
    /// How much zeroing costs depends on it.
    disk_type: DiskType,
}

impl DiskExport {
    /// Serves a disk: as large as it is now, and for writing if it was opened so, unless `read_only`.
    pub fn new(disk: Arc<VirtualDisk>, read_only: bool) -> Self {
        let info = disk.info();
        let description = match info.format {
            Format::Raw | Format::Iso => info.format.name().to_owned(),
            _ => format!("{}, {}", info.format.name(), info.disk_type.name()),
        };
        // Any alignment will do for disks of 512-byte sectors, as clients expect it. A disk of larger ones says so, and
        // its guests take them as the device's own.
        let minimum = match info.logical_sector_size {
            size @ 4096.. if info.virtual_size.is_multiple_of(size.into()) => size,
            _ => 1,
        };
        Self {
            size: disk.virtual_size(),
            read_only: read_only || !disk.is_writable(),
            blocks: BlockSizes {
                minimum,
                preferred: info.physical_sector_size.max(4096),
                ..BlockSizes::default()
            },
            description,
            disk_type: info.disk_type,
            disk,
        }
    }
}

impl Export for DiskExport {
    fn size(&self) -> u64 {
        self.size
    }

    fn is_read_only(&self) -> bool {
        self.read_only
    }

    fn block_sizes(&self) -> BlockSizes {
        self.blocks
    }

    fn description(&self) -> String {
        self.description.clone()
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        self.disk.read_at(offset, buf)
    }

    fn lend(&self, offset: u64, length: u64, pipe: &PipeWriter) -> u64 {
        self.disk.lend(offset, length, pipe).unwrap_or(0)
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> Result<()> {
        self.disk.write_at(offset, data)
    }

    fn write_pipe(&self, offset: u64, length: u64, pipe: &PipeReader) -> u64 {
        self.disk.write_pipe(offset, length, pipe).unwrap_or(0)
    }

    fn zero(&self, offset: u64, length: u64, may_unmap: bool) -> Result<()> {
        let mode = if may_unmap {
            ZeroMode::MayUnmap
        } else {
            ZeroMode::KeepAllocated
        };
        self.disk.zero(offset, length, mode)
    }

    fn zeroes_fast(&self, offset: u64, length: u64, may_unmap: bool) -> bool {
        match self.disk_type {
            // One call of the file system, or less.
            DiskType::Fixed => true,
            DiskType::Dynamic => may_unmap,
            // Zeros in front of a parent's data may have to be written.
            DiskType::Differencing => {
                let zero = |extent: vhdkit::disk::DiskExtent| {
                    extent.data.is_none() && extent.length == length
                };
                may_unmap && self.disk.map(offset, length).is_ok_and(zero)
            }
        }
    }

    fn trim(&self, offset: u64, length: u64) -> Result<()> {
        self.disk.discard(offset, length)
    }

    fn flush(&self) -> Result<()> {
        self.disk.flush()
    }

    fn status(&self, _context: usize, offset: u64, length: u64) -> Result<Status> {
        let extent = self.disk.map(offset, length)?;
        Ok(Status {
            length: extent.length,
            flags: match extent.data {
                Some(_) => 0,
                None => allocation::HOLE | allocation::ZERO,
            },
        })
    }
}
