//! Opening images of a disk again, for writing or read-only, while the disk is in use.

use std::path::Path;
use std::sync::Arc;

use super::chain::open_layer;
use super::{Chain, Layer, OpenOptions, VirtualDisk, open_image};
use crate::error::{Context, Error, ErrorKind, Result};
use crate::image::Format;
use crate::storage::Storage;

impl OpenOptions {
    /// Opens so many images of a disk for writing, the leaf first, and the others read-only, whatever they were opened
    /// for: for an operation on parents of a disk that is in use. If one cannot be opened for writing, all are as they
    /// were.
    ///
    /// # Errors
    /// [`ErrorKind::SharingViolation`] if somebody else uses one of the files, and what opening can fail with.
    pub fn set_write_depth(&self, disk: &VirtualDisk, images: usize) -> Result<()> {
        disk.change_chain(|chain| {
            let before: Vec<bool> = chain.layers().iter().map(Layer::is_writable).collect();
            for index in 0..before.len() {
                let result = self.reopen_layer(chain, index, index < images);
                if result.is_err() {
                    for (index, &writable) in before.iter().enumerate().take(index + 1) {
                        self.reopen_layer(chain, index, writable)?;
                    }
                    return result;
                }
            }
            Ok(())
        })
    }

    fn reopen_layer(&self, chain: &mut Chain, index: usize, writable: bool) -> Result<()> {
        let layers = chain.layers_mut();
        let layer = &layers[index];
        if layer.is_writable() == writable {
            return Ok(());
        }
        let path = layer.path().to_path_buf();
        let format = layer.image().info().format;
        let direct = if index == 0 {
            self.direct
        } else {
            self.direct_parents()
        };
        if layer.is_writable() {
            layer.image().close().at_path(&path)?;
        }
        // A file has one writer and nobody else, or readers: what is open goes before the other is opened.
        let size = layer.image().virtual_size();
        layers[index] = closed(&path, size)?;
        let open = |writable| open_layer(&path, Some(format), writable, direct);
        match open(writable) {
            Ok((layer, _)) => {
                layers[index] = layer;
                Ok(())
            }
            Err(e) => {
                layers[index] = open(!writable)?.0;
                Err(e)
            }
        }
    }
}

/// Stands for an image between closing and opening it. Should it not open again, all requests to it fail.
fn closed(path: &Path, size: u64) -> Result<Layer> {
    let image = open_image(Arc::new(Closed(size)), Format::Raw, false)?;
    Ok(Layer::new(image, path))
}

/// A file that is not open, and its length.
struct Closed(u64);

impl Closed {
    fn error<T>() -> Result<T> {
        Err(
            Error::new(ErrorKind::InvalidState, "the file is not open any more")
                .with_hint("close the disk and open it again"),
        )
    }
}

impl Storage for Closed {
    fn read_at(&self, _offset: u64, _buf: &mut [u8]) -> Result<()> {
        Self::error()
    }
    fn write_at(&self, _offset: u64, _data: &[u8]) -> Result<()> {
        Self::error()
    }
    fn flush(&self) -> Result<()> {
        Self::error()
    }
    fn len(&self) -> Result<u64> {
        Ok(self.0)
    }
    fn set_len(&self, _length: u64) -> Result<()> {
        Self::error()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_whose_file_is_gone_gives_errors_not_zeros() {
        let layer = closed(Path::new("a.vhd"), 4096).unwrap();
        let disk = VirtualDisk::from_layers(vec![layer], false).unwrap();
        assert_eq!(disk.virtual_size(), 4096);
        let read = disk.read_at(0, &mut [0; 512]);
        assert_eq!(read.unwrap_err().kind(), ErrorKind::InvalidState);
    }
}
