//! vhdx.

use std::ops::Range;
use std::sync::Arc;

use crate::error::{Error, ErrorKind, Result};
use crate::image::{
    Backing, CreateParameters, Extent, Finding, Image, ImageBuilder, ImageInfo, ZeroMode,
};
use crate::storage::Storage;

/// True if the file is of this format.
pub fn detect(_storage: &dyn Storage) -> Result<bool> {
    Ok(false)
}

/// Findings of a check of one file.
pub fn check(_storage: &Arc<dyn Storage>) -> Result<Vec<Finding>> {
    Ok(Vec::new())
}

/// An open image.
pub struct VhdxImage {
    storage: Arc<dyn Storage>,
}

impl VhdxImage {
    /// Opens it.
    pub fn open(_storage: Arc<dyn Storage>, _writable: bool) -> Result<Self> {
        Err(Error::new(ErrorKind::NotSupported, "not yet"))
    }
}

impl Image for VhdxImage {
    fn info(&self) -> ImageInfo {
        unreachable!()
    }
    fn virtual_size(&self) -> u64 {
        0
    }
    fn storage(&self) -> &Arc<dyn Storage> {
        &self.storage
    }
    fn map(&self, _offset: u64, _length: u64) -> Result<Extent> {
        unreachable!()
    }
    fn read_at(&self, _offset: u64, _buf: &mut [u8], _absent: &mut Vec<Range<u64>>) -> Result<()> {
        Ok(())
    }
    fn write_at(&self, _offset: u64, _data: &[u8], _backing: &dyn Backing) -> Result<()> {
        Ok(())
    }
    fn zero(&self, _: u64, _: u64, _: ZeroMode, _: &dyn Backing) -> Result<()> {
        Ok(())
    }
    fn discard(&self, _offset: u64, _length: u64, _backing: &dyn Backing) -> Result<()> {
        Ok(())
    }
    fn flush(&self) -> Result<()> {
        Ok(())
    }
    fn close(&self) -> Result<()> {
        Ok(())
    }
}

/// Makes a new file.
pub struct VhdxBuilder {
    storage: Arc<dyn Storage>,
}

impl VhdxBuilder {
    /// Starts on an empty storage.
    pub fn new(_storage: Arc<dyn Storage>, _parameters: &CreateParameters) -> Result<Self> {
        Err(Error::new(ErrorKind::NotSupported, "not yet"))
    }
}

impl ImageBuilder for VhdxBuilder {
    fn storage(&self) -> &Arc<dyn Storage> {
        &self.storage
    }
    fn placement_unit(&self) -> u64 {
        1
    }
    fn place(&self, _offset: u64, _length: u64) -> Result<u64> {
        Ok(0)
    }
    fn finish(&self) -> Result<()> {
        Ok(())
    }
}
