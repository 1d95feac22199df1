//! What a differencing disk records of its parent: `set-parent`, and who the children of a disk are.

use std::path::{Path, PathBuf};

use uuid::Uuid;

use super::information::{ParentLocation, parent_location};
use crate::disk::{MAX_DEPTH, OpenOptions, Parents, VirtualDisk, relative_windows_path};
use crate::error::{Context, Error, ErrorKind, Result};
use crate::image::{DiskType, Format, ImageInfo, ParentLink};

/// What to record.
#[derive(Clone, Debug)]
#[expect(clippy::exhaustive_structs, reason = "a plain request")]
pub struct SetParentOptions {
    /// The new parent.
    pub parent: PathBuf,
    /// Which image of the chain gets it: 1 is the leaf.
    pub depth: usize,
    /// How to open the parent: where its own parents come from, and what its folders are called on Windows.
    pub open: OpenOptions,
    /// Take the parent even if it is not the one that the disk was made for. What the disk reads then changes, to
    /// nonsense unless the two parents read the same.
    pub ignore_identifier: bool,
    /// Check only; nothing is written.
    pub dry_run: bool,
}

/// Makes a differencing disk point to another file as its parent, durably.
///
/// `disk` may be opened without its parents ([`Parents::Ignored`]) if the leaf is meant; the image that is changed has
/// been opened for writing.
///
/// # Errors
/// [`ErrorKind::InvalidType`] if the disk has no parent or the formats differ, [`ErrorKind::ParentIdMismatch`] if the
/// parent is not the one that the disk was made for, [`ErrorKind::ParentSizeMismatch`] for different sectors,
/// [`ErrorKind::ChainCycle`] if the parent's own chain leads through the disk, [`ErrorKind::InvalidParameter`] for a
/// depth that the chain has not, and what opening the parent can fail with.
pub fn set_parent(disk: &VirtualDisk, options: &SetParentOptions) -> Result<()> {
    let path = disk.path();
    run(disk, options)
        .at_path(&path)
        .while_doing("cannot set the parent of")
}

fn run(disk: &VirtualDisk, options: &SetParentOptions) -> Result<()> {
    let _reserved = disk.reserve()?;
    let layers = disk.layers();
    let Some((index, child)) = options
        .depth
        .checked_sub(1)
        .and_then(|index| Some((index, layers.get(index)?)))
    else {
        return Err(Error::new(
            ErrorKind::InvalidParameter,
            format!(
                "there is no image at depth {} in a chain of {}",
                options.depth,
                layers.len()
            ),
        )
        .with_hint("depths count from the leaf, which is 1"));
    };
    let parent_path = &options.parent;
    let Some(reference) = &child.info.parent else {
        return Err(Error::new(
            ErrorKind::InvalidType,
            format!("a {} disk has no parent", child.info.disk_type.name()),
        )
        .with_path(&child.path)
        .with_hint("only differencing disks have one; make one with 'vhdkit create --parent'"));
    };
    let is_child = |path: &Path| same_file(path, &child.path);
    if is_child(parent_path) {
        return Err(cycle(&child.path, parent_path));
    }
    let parent = options
        .open
        .clone()
        .writable(false)
        .open(parent_path)
        .map_err(|e| match e.kind() {
            // Somewhere behind the parent is the disk itself, which is open for writing.
            ErrorKind::SharingViolation if leads_to(parent_path, &child.path, &options.open) => {
                cycle(&child.path, parent_path)
            }
            _ => e,
        })?;
    if parent.layers().iter().any(|layer| is_child(&layer.path)) {
        return Err(cycle(&child.path, parent_path));
    }
    let info = parent.info();
    check_kinds(
        child.info.format,
        child.info.logical_sector_size,
        &info,
        parent_path,
    )?;
    let fits = info
        .link_identifier
        .is_some_and(|id| reference.identifiers.contains(&id));
    if !fits && !options.ignore_identifier {
        return Err(Error::new(
            ErrorKind::ParentIdMismatch,
            format!(
                "{} is not the parent that it was made for: identifier {}, expected {}",
                parent_path.display(),
                text(info.link_identifier),
                text(reference.identifiers.first().copied())
            ),
        )
        .with_hint(
            "name the right parent; --ignore-id takes this one, which is right only if it reads the same",
        ));
    }
    if options.dry_run {
        return Ok(());
    }
    let link = link_to(&child.path, parent_path, &info, &options.open)?;
    disk.change_chain(|chain| {
        chain.check_writable(index)?;
        chain.split(index).0.image_mut().set_parent(&link)
    })
}

/// Writes a parent's identifier and path as given, durably, whether or not there is such a parent.
///
/// # Errors
/// [`ErrorKind::InvalidType`] if the disk has no parent; [`ErrorKind::InvalidParameter`] for a path that is not
/// absolute; what writing can fail with.
pub fn set_parent_locator(disk: &VirtualDisk, identifier: Uuid, parent: &Path) -> Result<()> {
    let path = disk.path();
    let set = || {
        let _reserved = disk.reserve()?;
        if disk.info().parent.is_none() {
            return Err(Error::new(
                ErrorKind::InvalidType,
                format!("a {} disk has no parent", disk.info().disk_type.name()),
            ));
        }
        let open = OpenOptions::new().record_native_paths(true);
        let link = ParentLink {
            identifier,
            relative_path: relative_windows_path(&path, parent)?,
            absolute_path: open.windows_path(parent).unwrap_or_default(),
            // Without the file there is no time to record.
            modified: modified(parent).unwrap_or(0),
            disk_identifier: None,
        };
        disk.change_chain(|chain| {
            chain.check_writable(0)?;
            chain.split(0).0.image_mut().set_parent(&link)
        })
    };
    set().at_path(&path).while_doing("cannot set the parent of")
}

fn text(id: Option<Uuid>) -> String {
    id.map_or_else(|| "none".into(), |id| id.to_string())
}

fn cycle(child: &Path, parent: &Path) -> Error {
    Error::new(
        ErrorKind::ChainCycle,
        format!("the chain of {} leads back to the disk", parent.display()),
    )
    .with_path(child)
    .with_hint("name a parent that is not one of its own children")
}

/// True if `to` is among the parents that are recorded from `from` on, as far as they can be opened.
fn leads_to(from: &Path, to: &Path, open: &OpenOptions) -> bool {
    let mut at = from.to_path_buf();
    for _ in 0..MAX_DEPTH {
        let alone = open.clone().parents(Parents::Ignored).writable(false);
        let Ok(image) = alone.open(&at) else {
            return false;
        };
        match parent_location(&image, open.mapped()) {
            Some(ParentLocation::Resolved(parent)) if same_file(&parent, to) => return true,
            Some(ParentLocation::Resolved(parent)) => at = parent,
            _ => return false,
        }
    }
    false
}

/// True if both paths lead to one file.
pub(crate) fn same_file(a: &Path, b: &Path) -> bool {
    match (resolved(a), resolved(b)) {
        (Some(a), Some(b)) => a == b,
        _ => a == b,
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "a file that does not exist has no other name either"
)]
fn resolved(path: &Path) -> Option<PathBuf> {
    std::fs::canonicalize(path).ok()
}

/// Fails unless a disk of this format with sectors of this size can be a child of the other.
pub(crate) fn check_kinds(
    format: Format,
    sector_size: u32,
    parent: &ImageInfo,
    path: &Path,
) -> Result<()> {
    if format != parent.format {
        return Err(Error::new(
            ErrorKind::InvalidType,
            format!(
                "a {} disk cannot be a child of the {} disk {}",
                format.name(),
                parent.format.name(),
                path.display()
            ),
        )
        .with_hint("child and parent have the same format"));
    }
    if sector_size != parent.logical_sector_size {
        return Err(Error::new(
            ErrorKind::ParentSizeMismatch,
            format!(
                "it has sectors of {sector_size} bytes, the parent {} of {}",
                path.display(),
                parent.logical_sector_size
            ),
        )
        .with_hint("child and parent have sectors of the same size"));
    }
    Ok(())
}

/// What a child records of a parent with this `info`.
pub(crate) fn link_to(
    child: &Path,
    parent: &Path,
    info: &ImageInfo,
    open: &OpenOptions,
) -> Result<ParentLink> {
    let Some(identifier) = info.link_identifier else {
        return Err(
            Error::new(ErrorKind::InvalidType, "its format has no identity").with_path(parent),
        );
    };
    Ok(ParentLink {
        identifier,
        relative_path: relative_windows_path(child, parent)?,
        // Windows understands only its own absolute paths; the map knows what the parent is called there.
        absolute_path: match open.windows_path(parent) {
            Some(path) => path,
            None => std::path::absolute(parent)
                .map_err(|e| Error::io("resolve", e).with_path(parent))?
                .to_string_lossy()
                .into_owned(),
        },
        modified: modified(parent)?,
        disk_identifier: info.identifier,
    })
}

fn modified(path: &Path) -> Result<i64> {
    let metadata = std::fs::metadata(path).map_err(|e| Error::io("look at", e).with_path(path))?;
    Ok(std::os::unix::fs::MetadataExt::mtime(&metadata))
}

/// A differencing disk and the identifiers that it accepts as its parent's.
#[derive(Clone, Debug)]
pub(crate) struct Child {
    pub(crate) path: PathBuf,
    pub(crate) parents: Vec<Uuid>,
}

/// What a file says of itself, read without a lock: whoever wants to write to it must not fail for it.
fn look(path: &Path) -> Result<ImageInfo> {
    let options = OpenOptions::new().parents(Parents::Ignored);
    Ok(options.unlocked(true).open(path)?.info())
}

/// The differencing disks in the folders of `near`, these themselves left out, in use or not. Files that cannot be read
/// as disks (any more, or at this moment) are skipped.
pub(crate) fn differencing_disks_near(near: &[PathBuf]) -> Vec<Child> {
    let mut folders: Vec<PathBuf> = near
        .iter()
        .filter_map(|path| resolved(path)?.parent().map(Path::to_path_buf))
        .collect();
    folders.sort_unstable();
    folders.dedup();
    let mut found = Vec::new();
    for entry in folders
        .iter()
        .filter_map(|folder| std::fs::read_dir(folder).ok())
        .flatten()
        .filter_map(Result::ok)
    {
        let path = entry.path();
        let is_disk = path.extension().is_some_and(|extension| {
            ["vhd", "avhd", "vhdx", "avhdx"]
                .iter()
                .any(|known| extension.eq_ignore_ascii_case(known))
        });
        if !is_disk
            || !entry.file_type().is_ok_and(|kind| kind.is_file())
            || near.iter().any(|known| same_file(known, &path))
        {
            continue;
        }
        let Ok(info) = look(&path) else { continue };
        if info.disk_type == DiskType::Differencing
            && let Some(parent) = info.parent
        {
            found.push(Child {
                path,
                parents: parent.identifiers,
            });
        }
    }
    found.sort_by(|a, b| a.path.cmp(&b.path));
    found
}
