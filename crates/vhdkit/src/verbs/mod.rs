//! Floor 3: what can be done with disks, one file per verb. Each verb is an [`crate::Operation`].

pub mod check;
pub mod compact;
pub mod compare;
pub mod convert;
mod copy;
pub mod create;
pub mod in_place;
pub mod information;
mod look;
pub mod merge;
pub mod mirror;
pub mod profile;
pub mod resize;
pub mod set;
pub mod set_parent;

use crate::disk::{VirtualDisk, file_id};
use crate::error::Result;
use crate::image::{CreateParameters, Format, ImageBuilder, Pace};
use crate::raw::RawBuilder;
use crate::storage::Storage;
use crate::vhd::VhdBuilder;
use crate::vhdx::VhdxBuilder;
use crate::{Error, ErrorKind};
use std::path::Path;
use std::sync::Arc;

/// Fails if a file to be made is one that the new disk is to be made of: it would be lost.
pub(crate) fn refuse_own_file(target: &Path, source: &VirtualDisk) -> Result<()> {
    let Some(there) = file_id(target) else {
        return Ok(());
    };
    let layers = source.layers();
    if !layers
        .iter()
        .any(|layer| file_id(&layer.path) == Some(there))
    {
        return Ok(());
    }
    Err(Error::new(
        ErrorKind::SharingViolation,
        "the new disk would take the place of one that it is made from",
    )
    .with_path(target)
    .with_hint("choose another name"))
}

/// Starts an image of any writable format on an empty storage.
///
/// # Errors
/// The format's own kinds for parameters outside its limits; [`ErrorKind::NotSupported`] for ISO.
pub fn new_builder(
    storage: Arc<dyn Storage>,
    parameters: &CreateParameters,
) -> Result<Box<dyn ImageBuilder>> {
    new_builder_telling(storage, parameters, &mut |_, _| Ok(()))
}

/// As [`new_builder`]; `pace` is told how much of the space of a fixed disk is reserved, in bytes, and may stop it.
pub(crate) fn new_builder_telling(
    storage: Arc<dyn Storage>,
    parameters: &CreateParameters,
    pace: Pace<'_>,
) -> Result<Box<dyn ImageBuilder>> {
    Ok(match parameters.format {
        Format::Raw => Box::new(RawBuilder::new(storage, parameters, pace)?),
        Format::Vhd => Box::new(VhdBuilder::new(storage, parameters, pace)?),
        Format::Vhdx => Box::new(VhdxBuilder::new(storage, parameters, pace)?),
        Format::Iso => {
            return Err(
                Error::new(ErrorKind::NotSupported, "ISO images cannot be made")
                    .with_hint("choose vhdx, vhd or raw"),
            );
        }
    })
}
