//! Converting without copying: a raw disk and a fixed VHD differ by a footer; a raw disk and a VHDX by where their data
//! lies, which a file system that shares blocks can change (docs/decisions/0007).

use std::path::PathBuf;
use std::sync::Arc;

use uuid::Uuid;

use super::convert::fill;
use super::profile::Profile;
use crate::disk::{Layer, VirtualDisk, detect_format, open_image};
use crate::error::{Context, Error, ErrorKind, Result};
use crate::image::{CreateParameters, DiskType, Format, IdentifierSource};
use crate::num::round_up;
use crate::operation::{Monitor, Operation};
use crate::storage::{Access, FileStorage, NewFile, Storage};
use crate::vhd;

/// What to turn into what.
#[derive(Clone, Debug)]
#[expect(clippy::exhaustive_structs, reason = "a plain request")]
pub struct InPlaceOptions {
    /// The file.
    pub path: PathBuf,
    /// What it is to be: a fixed VHD or a dynamic VHDX from a raw disk, or a raw disk from a fixed VHD or a VHDX.
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
/// Between a raw disk and a VHDX without a parent: a new file shares the data's blocks with the old one and then takes its
/// place, in one step. That needs a file system that can share blocks (XFS, btrfs). Units of progress: bytes of data.
///
/// # Errors
/// Through the operation: [`ErrorKind::NotSupported`] for any other pair of formats, and where blocks cannot be shared, [`ErrorKind::InvalidType`] if the
/// file is already what it is to be or would be taken for something else, [`ErrorKind::InvalidSize`] for a raw file
/// that is empty or too large (one that ends within a sector is filled up with zeros), and what opening and writing can fail with.
pub fn convert_in_place(options: InPlaceOptions) -> Operation<()> {
    Operation::start("convert", move |monitor| {
        run(&options, monitor)
            .at_path(&options.path)
            .while_doing("cannot convert in place")
    })
}

fn run(options: &InPlaceOptions, monitor: &Monitor) -> Result<()> {
    monitor.set_completion(1);
    let storage = Arc::new(FileStorage::open(&options.path, Access::ReadWrite)?);
    let found = detect_format(&*storage)?;
    monitor.checkpoint()?;
    match (found, options.format) {
        (Format::Raw, Format::Vhd) => append(&storage, options)?,
        (Format::Vhd, Format::Raw) => vhd::strip_footer(&*storage)?,
        (Format::Raw, Format::Vhdx) | (Format::Vhdx, Format::Raw) => {
            return share(&storage, found, options, monitor);
        }
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

/// Puts a new file in the place of the old one, with the same blocks.
fn share(
    storage: &Arc<FileStorage>,
    found: Format,
    options: &InPlaceOptions,
    monitor: &Monitor,
) -> Result<()> {
    let image = open_image(storage.clone(), found, true)?;
    let info = image.info();
    if info.disk_type == DiskType::Differencing {
        return Err(Error::new(
            ErrorKind::InvalidType,
            "what it does not hold itself is in its parent",
        )
        .with_hint("leave --in-place out and name a new file"));
    }
    let file = NewFile::replacing(&options.path)?;
    if !file.storage().can_clone_from(&**storage) {
        return Err(Error::new(
            ErrorKind::NotSupported,
            "its file system cannot share blocks between two files",
        )
        .with_hint("leave --in-place out and name a new file; XFS and btrfs can share blocks"));
    }
    let mut parameters = CreateParameters {
        disk_type: DiskType::Dynamic,
        ..parameters(options, info.virtual_size)
    };
    if let Some(profile) = options.profile {
        profile.apply(&mut parameters)?;
    }
    let disk =
        VirtualDisk::from_layers(vec![Layer::new(image, &options.path).writable(true)], true)?;
    fill(&disk, file.storage(), &parameters, options.profile, monitor)?;
    monitor.checkpoint()?;
    disk.close()?;
    file.publish()
}

fn parameters(options: &InPlaceOptions, virtual_size: u64) -> CreateParameters {
    CreateParameters {
        format: options.format,
        disk_type: DiskType::Fixed,
        virtual_size: round_up(virtual_size, 512),
        block_size: None,
        logical_sector_size: None,
        physical_sector_size: None,
        identifier: options.identifier,
        parent: None,
        identifiers: options.identifiers.clone(),
        created: options.created,
    }
}

fn append(storage: &FileStorage, options: &InPlaceOptions) -> Result<()> {
    let length = storage.len()?;
    let mut parameters = parameters(options, length);
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
