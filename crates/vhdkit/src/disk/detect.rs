//! Which format a file is: by its content, never by its name.

use std::sync::Arc;

use crate::error::Result;
use crate::image::{Format, Image};
use crate::iso::IsoImage;
use crate::raw::RawImage;
use crate::storage::Storage;
use crate::vhd::{self, VhdImage};
use crate::vhdx::{self, VhdxImage};

/// The format of a file.
///
/// A fixed VHD holds arbitrary guest data from byte 0 on, so its footer is looked at before anything that a guest
/// could have written there: a guest must not be able to turn its disk into a differencing VHDX that names files of
/// the host. What has no signature at all is raw.
pub fn detect_format(storage: &dyn Storage) -> Result<Format> {
    if vhd::is_exact_fixed(storage)? {
        return Ok(Format::Vhd);
    }
    if vhdx::detect(storage)? {
        return Ok(Format::Vhdx);
    }
    if vhd::detect(storage)? {
        return Ok(Format::Vhd);
    }
    if IsoImage::detect(storage)? {
        return Ok(Format::Iso);
    }
    Ok(Format::Raw)
}

/// Opens one image, without its parents.
pub fn open_image(
    storage: Arc<dyn Storage>,
    format: Format,
    writable: bool,
) -> Result<Box<dyn Image>> {
    Ok(match format {
        Format::Raw => Box::new(RawImage::open(storage, writable)?),
        Format::Vhd => Box::new(VhdImage::open(storage, writable)?),
        Format::Vhdx => Box::new(VhdxImage::open(storage, writable)?),
        Format::Iso => Box::new(IsoImage::open(storage)?),
    })
}
