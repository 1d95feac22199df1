//! `create`: a new, empty disk, or a differencing child of an existing one.

use std::path::PathBuf;
use std::sync::Arc;

use super::profile::Profile;
use super::set_parent::{check_kinds, link_to};
use crate::disk::{OpenOptions, VirtualDisk};
use crate::error::{Context, Error, ErrorKind, Result};
use crate::image::{CreateParameters, DiskType, Format};
use crate::num::MIB;
use crate::operation::{Monitor, Operation};
use crate::storage::{NewFile, Storage};

/// What to create and where.
#[derive(Clone, Debug)]
#[expect(clippy::exhaustive_structs, reason = "a plain request")]
pub struct CreateOptions {
    /// The file to make.
    pub path: PathBuf,
    /// What it is to be. For a differencing disk a `virtual_size` of 0, and sector sizes and identifiers that are
    /// `None`, are taken from the parent; `parent` is filled in from `parent_path`.
    pub parameters: CreateParameters,
    /// The parent of a differencing disk.
    pub parent_path: Option<PathBuf>,
    /// The place where the disk is to be used.
    pub profile: Option<Profile>,
    /// How to open the parent: where its own parents come from.
    pub open_parent: OpenOptions,
    /// Replace an existing file (only when the new one is complete).
    pub overwrite: bool,
}

impl CreateOptions {
    /// A new file, for no certain place; nothing is replaced.
    pub fn new(path: impl Into<PathBuf>, parameters: CreateParameters) -> Self {
        Self {
            path: path.into(),
            parameters,
            parent_path: None,
            profile: None,
            open_parent: OpenOptions::new(),
            overwrite: false,
        }
    }
}

/// Reserving the space of a fixed disk is a step for each of so many bytes, with these behind it.
const STEP: u64 = MIB;
const LAST_STEPS: u64 = 3;

/// Creates a disk. Units of progress: steps. A cancelled or failed creation leaves no file. The result says what was made:
/// the parameters, completed by the profile and the parent.
///
/// # Errors
/// Through the operation: [`ErrorKind::AlreadyExists`], [`ErrorKind::InvalidSize`], [`ErrorKind::InvalidBlockSize`],
/// [`ErrorKind::UnsupportedSectorSize`], [`ErrorKind::InvalidType`], [`ErrorKind::DiskFull`], and what opening the
/// parent can fail with.
pub fn create(options: CreateOptions) -> Operation<CreateParameters> {
    Operation::start("create", move |monitor| {
        run(&options, monitor).while_doing("cannot create")
    })
}

/// As [`create`], in a storage that is empty: a disk that is complete as `parameters` say. A cancelled creation leaves no
/// image in the storage; a failed one none or, if only its last steps failed, one that reads as it should.
///
/// # Errors
/// Through the operation: as for [`create`].
pub fn create_disk(target: Arc<dyn Storage>, parameters: CreateParameters) -> Operation<()> {
    Operation::start("create", move |monitor| {
        monitor.set_completion(LAST_STEPS);
        write(target, &parameters, None, monitor).while_doing("cannot create")
    })
}

fn write(
    target: Arc<dyn Storage>,
    parameters: &CreateParameters,
    profile: Option<Profile>,
    monitor: &Monitor,
) -> Result<()> {
    let builder = super::new_builder_telling(target, parameters, &mut |done, all| {
        monitor.set(done / STEP, all / STEP + LAST_STEPS);
        monitor.checkpoint()
    })?;
    monitor.advance(1);
    monitor.checkpoint()?;
    builder.finish()?;
    if let Some(profile) = profile {
        profile.verify(&**builder.storage(), parameters.virtual_size)?;
    }
    monitor.advance(1);
    Ok(())
}

fn run(options: &CreateOptions, monitor: &Monitor) -> Result<CreateParameters> {
    monitor.set_completion(LAST_STEPS);
    // The parent is kept open: nobody changes it before its child is there.
    let (parameters, _parent) = complete(options)?;
    monitor.checkpoint()?;
    let file = NewFile::create(&options.path, options.overwrite)?;
    write(file.storage(), &parameters, options.profile, monitor).at_path(&options.path)?;
    monitor.checkpoint()?;
    file.publish()?;
    monitor.advance(1);
    Ok(parameters)
}

/// Fills in what the parent decides.
fn complete(options: &CreateOptions) -> Result<(CreateParameters, Option<VirtualDisk>)> {
    let mut parameters = options.parameters.clone();
    if let Some(profile) = options.profile {
        profile.apply(&mut parameters).at_path(&options.path)?;
    }
    let Some(parent_path) = &options.parent_path else {
        if parameters.disk_type == DiskType::Differencing {
            return Err(Error::new(
                ErrorKind::InvalidParameter,
                "a differencing disk needs a parent",
            )
            .with_path(&options.path)
            .with_hint("name it with --parent FILE"));
        }
        return Ok((parameters, None));
    };
    if parameters.disk_type != DiskType::Differencing {
        return Err(Error::new(
            ErrorKind::InvalidType,
            format!("a {} disk has no parent", parameters.disk_type.name()),
        )
        .with_path(&options.path)
        .with_hint("leave --parent out, or create a differencing disk"));
    }
    // The whole chain is opened, so that a child of a broken chain is never made.
    let parent = options
        .open_parent
        .clone()
        .writable(false)
        .open(parent_path)?;
    super::refuse_own_file(&options.path, &parent)?;
    let info = parent.info();
    let sector_size = parameters
        .logical_sector_size
        .get_or_insert(info.logical_sector_size);
    check_kinds(parameters.format, *sector_size, &info, parent_path).at_path(&options.path)?;
    if parameters.virtual_size == 0 {
        parameters.virtual_size = info.virtual_size;
    }
    if parameters.format == Format::Vhd && parameters.virtual_size != info.virtual_size {
        return Err(Error::new(
            ErrorKind::ParentSizeMismatch,
            format!(
                "a VHD child has the size of its parent {}: {} bytes, not {}",
                parent_path.display(),
                info.virtual_size,
                parameters.virtual_size
            ),
        )
        .with_path(&options.path)
        .with_hint("leave the size out, or use the VHDX format"));
    }
    parameters
        .physical_sector_size
        .get_or_insert(info.physical_sector_size);
    parameters.parent = Some(link_to(
        &options.path,
        parent_path,
        &info,
        &options.open_parent,
    )?);
    Ok((parameters, Some(parent)))
}
