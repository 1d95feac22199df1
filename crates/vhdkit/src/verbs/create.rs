//! `create`: a new, empty disk, or a differencing child of an existing one.

use std::path::{Path, PathBuf};
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

/// The space of a fixed disk is reserved in such steps, in bytes: some file systems write zeros for it.
const STEP: u64 = 256 * MIB;

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
        monitor.set_completion(2);
        write(target, &parameters, None, monitor).while_doing("cannot create")
    })
}

/// Two steps, and those of reserving.
fn write(
    target: Arc<dyn Storage>,
    parameters: &CreateParameters,
    profile: Option<Profile>,
    monitor: &Monitor,
) -> Result<()> {
    let storage = reserving(target, parameters, monitor);
    let builder = super::new_builder(storage, parameters)?;
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
    monitor.set_completion(3);
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

/// A new file whose space is reserved step by step, between which the work may stop.
struct InSteps {
    below: Arc<dyn Storage>,
    monitor: Monitor,
}

fn reserving(
    file: Arc<dyn Storage>,
    parameters: &CreateParameters,
    monitor: &Monitor,
) -> Arc<dyn Storage> {
    if parameters.disk_type != DiskType::Fixed {
        return file;
    }
    monitor.add_completion(parameters.virtual_size.div_ceil(STEP));
    Arc::new(InSteps {
        below: file,
        monitor: monitor.clone(),
    })
}

impl Storage for InSteps {
    fn allocate(&self, offset: u64, length: u64) -> Result<()> {
        let mut done = 0;
        while done < length {
            self.monitor.checkpoint()?;
            let n = (length - done).min(STEP);
            self.below.allocate(offset + done, n)?;
            if n == STEP {
                self.monitor.advance(1);
            }
            done += n;
        }
        Ok(())
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        self.below.read_at(offset, buf)
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> Result<()> {
        self.below.write_at(offset, data)
    }

    fn flush(&self) -> Result<()> {
        self.below.flush()
    }

    fn len(&self) -> Result<u64> {
        self.below.len()
    }

    fn set_len(&self, length: u64) -> Result<()> {
        self.below.set_len(length)
    }

    fn zero_range(&self, offset: u64, length: u64) -> Result<()> {
        self.below.zero_range(offset, length)
    }

    fn grows_with_zeros(&self) -> bool {
        self.below.grows_with_zeros()
    }

    fn survives_crash(&self) -> bool {
        self.below.survives_crash()
    }

    fn path(&self) -> Option<&Path> {
        self.below.path()
    }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind::Aborted;
    use crate::image::{Format, IdentifierSource};
    use crate::storage::MemoryStorage;
    use std::sync::Mutex;

    /// Notes how far the work said it was when space was asked for; stops it there if it is to.
    struct Asked {
        monitor: Monitor,
        progress: Arc<Mutex<Vec<f64>>>,
        bytes: MemoryStorage,
    }

    impl Storage for Asked {
        fn allocate(&self, _: u64, length: u64) -> Result<()> {
            assert!(length <= STEP);
            let progress = self.monitor.observer().progress().percent();
            self.progress.lock().unwrap().push(progress);
            Ok(())
        }
        fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
            self.bytes.read_at(offset, buf)
        }
        fn write_at(&self, offset: u64, data: &[u8]) -> Result<()> {
            self.bytes.write_at(offset, data)
        }
        fn flush(&self) -> Result<()> {
            Ok(())
        }
        fn len(&self) -> Result<u64> {
            self.bytes.len()
        }
        fn set_len(&self, length: u64) -> Result<()> {
            self.bytes.set_len(length)
        }
    }

    #[test]
    fn the_space_of_a_fixed_disk_is_reserved_with_an_honest_percentage_and_can_be_cancelled() {
        for format in [Format::Vhd, Format::Vhdx, Format::Raw] {
            let parameters = CreateParameters {
                format,
                disk_type: DiskType::Fixed,
                virtual_size: 100 * STEP,
                block_size: None,
                logical_sector_size: None,
                physical_sector_size: None,
                identifier: None,
                parent: None,
                identifiers: IdentifierSource::seeded(1),
                created: 0,
            };
            let monitor = Monitor::unobserved();
            let progress = Arc::new(Mutex::new(Vec::new()));
            let storage = || {
                reserving(
                    Arc::new(Asked {
                        monitor: monitor.clone(),
                        progress: progress.clone(),
                        bytes: MemoryStorage::new(),
                    }),
                    &parameters,
                    &monitor,
                )
            };
            super::super::new_builder(storage(), &parameters).unwrap();
            {
                let seen = progress.lock().unwrap();
                let half = seen.iter().filter(|&&percent| percent < 50.0).count() * 100;
                assert!(
                    (45..55).contains(&(half / seen.len())),
                    "{format:?}: {seen:?}"
                );
                assert!(seen.is_sorted() && seen.len() >= 100);
            }
            monitor.observer().cancel();
            let stopped = super::super::new_builder(storage(), &parameters);
            assert_eq!(stopped.map(drop).unwrap_err().kind(), Aborted);
        }
    }
}
