//! Converting without copying: a raw disk and a fixed VHD differ by a footer.

use std::path::PathBuf;

use uuid::Uuid;

use super::profile::Profile;
use crate::disk::detect_format;
use crate::error::{Context, Error, ErrorKind, Result};
use crate::image::{CreateParameters, DiskType, Format, IdentifierSource};
use crate::num::round_up;
use crate::operation::{Monitor, Operation};
use crate::storage::{Access, FileStorage, Storage};
use crate::vhd;

/// What to turn into what.
#[derive(Clone, Debug)]
#[expect(clippy::exhaustive_structs, reason = "a plain request")]
pub struct InPlaceOptions {
    /// The file.
    pub path: PathBuf,
    /// What it is to be: a fixed VHD from a raw disk, or a raw disk from a fixed VHD.
    pub format: Format,
    /// The place where it is to be used; it may demand that the disk grows by less than a MiB of zeros.
    pub profile: Option<Profile>,
    /// The identifier of a VHD.
    pub identifier: Option<Uuid>,
    /// Where identifiers come from.
    pub identifiers: IdentifierSource,
    /// Seconds since 1970 to store as time of creation.
    pub created: i64,
}

/// Turns a raw disk into a fixed VHD by appending a footer, or back by cutting it off. Nothing else is read or written,
/// and a crash leaves one or the other. The file keeps its name. Units of progress: steps.
///
/// # Errors
/// Through the operation: [`ErrorKind::NotSupported`] for any other pair of formats, [`ErrorKind::InvalidType`] if the
/// file is already what it is to be or would be taken for something else, [`ErrorKind::InvalidSize`] for a raw file
/// that is not whole sectors or too large, and what opening and writing can fail with.
pub fn convert_in_place(options: InPlaceOptions) -> Operation<()> {
    Operation::start("convert", move |monitor| {
        run(&options, monitor)
            .at_path(&options.path)
            .while_doing("cannot convert in place")
    })
}

fn run(options: &InPlaceOptions, monitor: &Monitor) -> Result<()> {
    monitor.set_completion(1);
    let storage = FileStorage::open(&options.path, Access::ReadWrite)?;
    let found = detect_format(&storage)?;
    monitor.checkpoint()?;
    match (found, options.format) {
        (Format::Raw, Format::Vhd) => append(&storage, options)?,
        (Format::Vhd, Format::Raw) => vhd::strip_footer(&storage)?,
        (found, wanted) if found == wanted => {
            return Err(Error::new(
                ErrorKind::InvalidType,
                format!("it is a {} file already", found.name()),
            )
            .with_hint("nothing has to be done"));
        }
        (found, wanted) => {
            return Err(Error::new(
                ErrorKind::NotSupported,
                format!(
                    "a {} file cannot become a {} file without being copied",
                    found.name(),
                    wanted.name()
                ),
            )
            .with_hint("leave --in-place out and name a new file"));
        }
    }
    monitor.advance(1);
    Ok(())
}

fn append(storage: &FileStorage, options: &InPlaceOptions) -> Result<()> {
    let length = storage.len()?;
    let mut parameters = CreateParameters {
        format: Format::Vhd,
        disk_type: DiskType::Fixed,
        virtual_size: round_up(length, 512),
        block_size: None,
        logical_sector_size: None,
        physical_sector_size: None,
        identifier: options.identifier,
        parent: None,
        identifiers: options.identifiers.clone(),
        created: options.created,
    };
    if let Some(profile) = options.profile {
        profile.apply(&mut parameters)?;
    }
    let size = parameters.virtual_size;
    if size != length {
        storage.set_len(size)?;
    }
    let appended = vhd::append_footer(storage, &parameters);
    if appended.is_err() && size != length {
        storage.set_len(length)?;
    }
    appended?;
    match options.profile {
        Some(profile) => profile.verify(storage, size),
        None => Ok(()),
    }
}
