//! `convert`: any disk, its chain flattened, into a new file of any writable format.

use std::os::unix::fs::FileTypeExt;
use std::path::PathBuf;
use std::sync::Arc;

use uuid::Uuid;

use super::copy::{Copied, Plan, copy, new_target};
use super::profile::Profile;
use crate::disk::{OpenOptions, VirtualDisk};
use crate::error::{Context, Error, ErrorKind, Result};
use crate::image::{CreateParameters, DiskType, Format, IdentifierSource, ImageInfo};
use crate::num::round_up;
use crate::operation::{Monitor, Operation};
use crate::storage::{Access, FileStorage, NewFile, Storage};

/// What to convert into what. Sizes are in bytes; `None` takes the format's default.
#[derive(Clone, Debug)]
#[expect(clippy::exhaustive_structs, reason = "a plain request")]
pub struct ConvertOptions {
    /// The disk to read; its parents are read through it.
    pub source: PathBuf,
    /// How to open it.
    pub open: OpenOptions,
    /// The file (or, for raw, block device) to make.
    pub target: PathBuf,
    /// The target's format.
    pub format: Format,
    /// How the target takes space; never differencing. Raw ignores it: holes stay holes.
    pub disk_type: DiskType,
    /// Size of the target; `None` takes the source's. What it has more reads as zeros.
    pub virtual_size: Option<u64>,
    /// The place where the target is to be used.
    pub profile: Option<Profile>,
    /// The target's unit of allocation.
    pub block_size: Option<u64>,
    /// The target's sectors; `None` takes the source's where the format allows it.
    pub logical_sector_size: Option<u32>,
    /// The target's physical sectors.
    pub physical_sector_size: Option<u32>,
    /// The target's identifier.
    pub identifier: Option<Uuid>,
    /// Where identifiers come from.
    pub identifiers: IdentifierSource,
    /// Seconds since 1970 to store as time of creation.
    pub created: i64,
    /// Replace an existing file (only when the new one is complete).
    pub overwrite: bool,
}

/// What a conversion did. Sizes are in bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[non_exhaustive]
pub struct ConvertReport {
    /// Size of the virtual disk.
    pub virtual_size: u64,
    /// Bytes written as data.
    pub copied: u64,
    /// Bytes shared with the source by the file system instead of being copied.
    pub cloned: u64,
    /// Bytes that are zero and take no space in a target that can leave them out.
    pub zero: u64,
    /// Length of the new file.
    pub file_size: u64,
}

/// Converts. Units of progress: bytes of the source that hold data, and some for looking for them and for the time that
/// reserving the space of a fixed disk takes. A cancelled or failed conversion leaves no file and never touches the source.
///
/// # Errors
/// Through the operation: what opening the source and creating the target can fail with, and
/// [`ErrorKind::ReadFault`], [`ErrorKind::WriteFault`], [`ErrorKind::DiskFull`].
pub fn convert(options: ConvertOptions) -> Operation<ConvertReport> {
    Operation::start("convert", move |monitor| run(&options, monitor))
}

fn run(options: &ConvertOptions, monitor: &Monitor) -> Result<ConvertReport> {
    if options.disk_type == DiskType::Differencing {
        return Err(Error::new(
            ErrorKind::InvalidType,
            "a conversion makes a disk without a parent",
        )
        .with_path(&options.target)
        .while_doing("cannot convert to")
        .with_hint("to make a differencing disk, use create with a parent"));
    }
    let source = options.open.open(&options.source)?;
    super::refuse_own_file(&options.target, &source).while_doing("cannot convert to")?;
    let parameters = parameters(options, &source.info())
        .at_path(&options.target)
        .while_doing("cannot convert to")?;
    let target = Target::create(options).while_doing("cannot create")?;
    let result = fill(
        &source,
        target.storage(),
        &parameters,
        options.profile,
        monitor,
    );
    let report = result
        .at_path(&options.target)
        .while_doing("cannot convert to")?;
    target.publish().while_doing("cannot convert to")?;
    Ok(report)
}

/// As [`convert`], for a disk that is open already and a storage that is empty. A `virtual_size` of 0 and a logical
/// sector size that is `None` are taken from the disk. A cancelled or failed conversion leaves no image in the storage.
///
/// # Errors
/// Through the operation: as for [`convert`].
pub fn convert_disk(
    source: Arc<VirtualDisk>,
    target: Arc<dyn Storage>,
    parameters: CreateParameters,
) -> Operation<ConvertReport> {
    Operation::start("convert", move |monitor| {
        let mut parameters = parameters;
        let info = source.info();
        if parameters.format == Format::Vhdx && matches!(info.logical_sector_size, 512 | 4096) {
            parameters
                .logical_sector_size
                .get_or_insert(info.logical_sector_size);
        }
        if parameters.virtual_size == 0 {
            let sector = u64::from(parameters.logical_sector_size.unwrap_or(512));
            parameters.virtual_size = round_up(info.virtual_size, sector);
        }
        fill(&source, target, &parameters, None, monitor).while_doing("cannot convert")
    })
}

pub(super) fn fill(
    source: &VirtualDisk,
    target: Arc<dyn Storage>,
    parameters: &CreateParameters,
    profile: Option<Profile>,
    monitor: &Monitor,
) -> Result<ConvertReport> {
    let (builder, reserved) = new_target(source, target, parameters, monitor)?;
    let size = source.virtual_size();
    let unit = builder.placement_unit();
    let plan = Plan::new(source, 0..size, unit, reserved, monitor)?;
    let Copied { copied, cloned } = copy(source, plan, &*builder, monitor)?;
    monitor.checkpoint()?;
    builder.finish()?;
    if let Some(profile) = profile {
        profile.verify(&**builder.storage(), parameters.virtual_size)?;
    }
    Ok(ConvertReport {
        virtual_size: parameters.virtual_size,
        copied,
        cloned,
        zero: parameters.virtual_size - (copied + cloned).min(parameters.virtual_size),
        file_size: builder.storage().len()?,
    })
}

fn parameters(options: &ConvertOptions, source: &ImageInfo) -> Result<CreateParameters> {
    let vhdx = options.format == Format::Vhdx;
    // A VHDX can have the source's sectors, if they are of a size it knows; nothing else has a choice.
    let sector = options.logical_sector_size.or_else(|| {
        (vhdx && matches!(source.logical_sector_size, 512 | 4096))
            .then_some(source.logical_sector_size)
    });
    let unit = u64::from(sector.unwrap_or(512));
    let virtual_size = options.virtual_size.unwrap_or(source.virtual_size);
    if virtual_size < source.virtual_size {
        return Err(Error::new(
            ErrorKind::InvalidSize,
            format!(
                "{virtual_size} bytes are less than the source's {}",
                source.virtual_size
            ),
        )
        .with_hint("make the source smaller first"));
    }
    let mut parameters = CreateParameters {
        format: options.format,
        disk_type: options.disk_type,
        virtual_size: round_up(virtual_size, unit),
        block_size: options.block_size,
        logical_sector_size: sector,
        physical_sector_size: options.physical_sector_size,
        identifier: options.identifier,
        parent: None,
        identifiers: options.identifiers.clone(),
        created: options.created,
    };
    if let Some(profile) = options.profile {
        profile.apply(&mut parameters)?;
    }
    Ok(parameters)
}

/// A new file, or an existing block device.
enum Target {
    File(NewFile),
    Device(Arc<FileStorage>),
}

impl Target {
    fn create(options: &ConvertOptions) -> Result<Self> {
        let path = &options.target;
        if !std::fs::metadata(path).is_ok_and(|m| m.file_type().is_block_device()) {
            return Ok(Target::File(NewFile::create(path, options.overwrite)?));
        }
        if !options.overwrite {
            return Err(Error::new(
                ErrorKind::AlreadyExists,
                "it is a block device with content",
            )
            .with_path(path)
            .with_hint("overwrite it with --force"));
        }
        Ok(Target::Device(Arc::new(FileStorage::open(
            path,
            Access::ReadWrite,
        )?)))
    }

    fn storage(&self) -> Arc<dyn Storage> {
        match self {
            Target::File(file) => file.storage(),
            Target::Device(device) => device.clone(),
        }
    }

    fn publish(self) -> Result<()> {
        match self {
            Target::File(file) => file.publish(),
            Target::Device(device) => device.flush(),
        }
    }
}
