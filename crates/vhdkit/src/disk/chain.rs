//! Opening a disk with all its ancestors.

use std::collections::HashSet;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::locate::{ParentMap, find_absolute_parents, find_parents};
use super::{Layer, VirtualDisk, detect_format, open_image};
use crate::error::{Context, Error, ErrorKind, Result};
use crate::image::{Format, ImageInfo};
use crate::native_path;
use crate::storage::{Access, FileStorage, Storage};

/// Longest chain that is followed; each image of it is an open file.
pub(crate) const MAX_DEPTH: usize = 1024;

/// Where the parents of a differencing disk come from.
#[derive(Clone, Debug, Default)]
#[expect(clippy::exhaustive_enums, reason = "there is no fourth way")]
pub enum Parents {
    /// As the images' own records say.
    #[default]
    Recorded,
    /// These files, the direct parent first; what lies behind the last one comes from its records.
    Given(Vec<PathBuf>),
    /// None: only the leaf is opened, and what it does not hold reads as zeros. For looking at one file.
    Ignored,
}

/// How to open a disk.
#[derive(Clone, Debug, Default)]
pub struct OpenOptions {
    /// Images opened for writing, from the leaf on.
    write_depth: usize,
    format: Option<Format>,
    parents: Parents,
    parent_map: ParentMap,
    pub(super) direct: bool,
    cached_parents: bool,
    absolute_only: bool,
    native_paths: bool,
    unlocked: bool,
}

impl OpenOptions {
    /// Read-only, format by content, parents as recorded.
    pub fn new() -> Self {
        Self::default()
    }

    /// Opens the leaf for writing and its parents read-only.
    #[must_use]
    pub fn writable(self, writable: bool) -> Self {
        self.write_depth(usize::from(writable))
    }

    /// Opens this many images of the chain for writing, the leaf first: for operations that change parents. Writes to
    /// the disk go to the leaf all the same.
    #[must_use]
    pub fn write_depth(mut self, images: usize) -> Self {
        self.write_depth = images;
        self
    }

    /// Bypasses the host's page cache where a request's offset, length and address allow it (see
    /// [`FileStorage::with_direct_io`]).
    #[must_use]
    pub fn direct(mut self, direct: bool) -> Self {
        self.direct = direct;
        self
    }

    /// With [`OpenOptions::direct`]: only the leaf bypasses the page cache.
    #[must_use]
    pub fn cached_parents(mut self, cached: bool) -> Self {
        self.cached_parents = cached;
        self
    }

    /// Looks for parents only where their absolute paths say, neither relative to the child nor beside it.
    #[must_use]
    pub fn ignore_relative_paths(mut self, ignore: bool) -> Self {
        self.absolute_only = ignore;
        self
    }

    /// Read-only and without a lock, for a look at a disk that somebody else has open for writing: what it says of itself is
    /// as it was at that moment, at best; what is read of its content may be anything.
    #[must_use]
    pub fn unlocked(mut self, unlocked: bool) -> Self {
        self.unlocked = unlocked;
        self
    }

    /// Where a parent is recorded (by `create`, `set_parent`, `merge`), its absolute path on this system is recorded, too:
    /// the child finds it after it was moved alone. Otherwise only the relative path is, which means the same everywhere.
    #[must_use]
    pub fn record_native_paths(mut self, record: bool) -> Self {
        self.native_paths = record;
        self
    }

    /// Takes the file as this format instead of looking. Use [`Format::Raw`] for raw disks whose guest is not
    /// trusted: it could write another format's signature.
    #[must_use]
    pub fn format(mut self, format: Format) -> Self {
        self.format = Some(format);
        self
    }

    /// Where parents come from.
    #[must_use]
    pub fn parents(mut self, parents: Parents) -> Self {
        self.parents = parents;
        self
    }

    /// Where folders of the system that made the disk are on this one.
    #[must_use]
    pub fn parent_map(mut self, map: ParentMap) -> Self {
        self.parent_map = map;
        self
    }

    /// The folders of the system that made the disks.
    pub(crate) fn mapped(&self) -> &ParentMap {
        &self.parent_map
    }

    /// The absolute path to record of a file: what it is called on the system that made the disks, or this one's.
    pub(crate) fn windows_path(&self, local: &Path) -> Option<String> {
        let mapped = self.parent_map.windows_path(local);
        mapped.or_else(|| {
            let absolute = std::path::absolute(local)
                .ok()
                .filter(|_| self.native_paths)?;
            native_path::to_windows(absolute.to_str()?)
        })
    }

    /// Opens the disk.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`], [`ErrorKind::AccessDenied`], [`ErrorKind::SharingViolation`]; the format's own kinds
    /// for damage; [`ErrorKind::ParentNotFound`], [`ErrorKind::ParentAccessDenied`], [`ErrorKind::ParentIdMismatch`],
    /// [`ErrorKind::ParentSizeMismatch`], [`ErrorKind::ChainCycle`] and [`ErrorKind::ErrorInParent`] for the chain.
    pub fn open(&self, path: impl AsRef<Path>) -> Result<VirtualDisk> {
        self.open_chain(path.as_ref()).while_doing("cannot open")
    }

    fn open_chain(&self, path: &Path) -> Result<VirtualDisk> {
        let mut layers = Vec::new();
        let mut seen: HashSet<(u64, u64)> = HashSet::new();
        let (mut layer, mut info) =
            self.open_layer(path, self.format, self.write_depth > 0, self.direct)?;
        seen.extend(file_id(path));
        loop {
            let depth = layers.len();
            let candidates = match (&self.parents, &info.parent) {
                (Parents::Ignored, _) | (_, None) => Vec::new(),
                (Parents::Given(given), Some(_)) if depth < given.len() => {
                    vec![given[depth].clone()]
                }
                (_, Some(reference)) => {
                    let find = if self.absolute_only {
                        find_absolute_parents
                    } else {
                        find_parents
                    };
                    find(layer.path(), reference, &self.parent_map).at_path(layer.path())?
                }
            };
            let child_path = layer.path().to_path_buf();
            layers.push(layer);
            let Some((likeliest, others)) = candidates.split_first() else {
                if let Parents::Given(given) = &self.parents
                    && let Some(surplus) = given.get(depth)
                {
                    return Err(Error::new(
                        ErrorKind::InvalidParameter,
                        format!(
                            "it has no parent, but {} is named as such",
                            surplus.display()
                        ),
                    )
                    .with_path(&child_path)
                    .with_hint("name no more parents than there are"));
                }
                break;
            };
            if depth + 1 >= MAX_DEPTH {
                return Err(Error::new(
                    ErrorKind::ChainCycle,
                    format!("the chain is longer than {MAX_DEPTH} disks"),
                )
                .with_path(path));
            }
            let open = |parent: &PathBuf| {
                let id = file_id(parent);
                if id.is_some_and(|id| seen.contains(&id)) {
                    return Err(cycle(&child_path, parent));
                }
                let writable = self.write_depth > depth + 1;
                let (next, next_info) = self
                    .open_layer(parent, None, writable, self.direct_parents())
                    .map_err(|e| in_parent(&e, &child_path, parent))?;
                verify(&info, &child_path, &next_info, parent)?;
                Ok((next, next_info, id))
            };
            // Another disk may have come to a place that was recorded, and the parent be in the next one. If it is in
            // none, the likeliest place is the one to tell of.
            let mut found = open(likeliest);
            for parent in others {
                found = found.or_else(|error| open(parent).map_err(|_| error));
            }
            let (next, next_info, id) = found?;
            seen.extend(id);
            (layer, info) = (next, next_info);
        }
        VirtualDisk::from_layers(layers, self.write_depth > 0 && !self.unlocked)
    }

    fn open_layer(
        &self,
        path: &Path,
        format: Option<Format>,
        writable: bool,
        direct: bool,
    ) -> Result<(Layer, ImageInfo)> {
        if self.unlocked {
            return layer_of(FileStorage::look(path)?, path, format, false);
        }
        open_layer(path, format, writable, direct)
    }

    pub(super) fn direct_parents(&self) -> bool {
        self.direct && !self.cached_parents
    }

    /// Puts a file behind the last image of a disk that was opened without its parents ([`Parents::Ignored`]): a chain
    /// made by hand, one image after the other. No file is changed; the new one is opened read-only.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidType`] if the last image has no parent, otherwise as [`OpenOptions::open`] for the chain.
    pub fn append_parent(&self, disk: &VirtualDisk, parent: impl AsRef<Path>) -> Result<()> {
        let parent = parent.as_ref();
        let _reserved = disk.reserve()?;
        let layers = disk.layers();
        let Some(child) = layers.last() else {
            return Err(Error::new(
                ErrorKind::Io,
                "internal error: a disk without images",
            ));
        };
        if child.info.parent.is_none() {
            return Err(Error::new(
                ErrorKind::InvalidType,
                format!("a {} disk has no parent", child.info.disk_type.name()),
            )
            .with_path(&child.path));
        }
        let id = file_id(parent);
        if id.is_some() && layers.iter().any(|layer| file_id(&layer.path) == id) {
            return Err(cycle(&child.path, parent));
        }
        let (layer, info) = open_layer(parent, None, false, self.direct_parents())
            .map_err(|e| in_parent(&e, &child.path, parent))?;
        verify(&child.info, &child.path, &info, parent)?;
        disk.change_chain(|chain| chain.layers_mut().push(layer));
        Ok(())
    }
}

pub(super) fn open_layer(
    path: &Path,
    format: Option<Format>,
    writable: bool,
    direct: bool,
) -> Result<(Layer, ImageInfo)> {
    let access = if writable {
        Access::ReadWrite
    } else {
        Access::ReadOnly
    };
    let file = FileStorage::open(path, access)?.with_direct_io(direct);
    layer_of(file, path, format, writable)
}

fn layer_of(
    file: FileStorage,
    path: &Path,
    format: Option<Format>,
    writable: bool,
) -> Result<(Layer, ImageInfo)> {
    let storage: Arc<dyn Storage> = Arc::new(file);
    let format = match format {
        Some(format) => format,
        None => detect_format(&*storage).at_path(path)?,
    };
    let image = open_image(storage, format, writable).at_path(path)?;
    let info = image.info();
    Ok((Layer::new(image, path).writable(writable), info))
}

/// The child's records against what the parent is.
fn verify(child: &ImageInfo, child_path: &Path, parent: &ImageInfo, path: &Path) -> Result<()> {
    let Some(reference) = &child.parent else {
        return Ok(());
    };
    if parent.format != child.format {
        return Err(Error::new(
            ErrorKind::ParentIdMismatch,
            format!(
                "its parent {} is a {} file, not {}",
                path.display(),
                parent.format.name(),
                child.format.name()
            ),
        )
        .with_path(child_path)
        .with_hint("name the right parent with --parent"));
    }
    match parent.link_identifier {
        Some(id) if reference.identifiers.contains(&id) => {}
        id => {
            let expected: Vec<_> = reference
                .identifiers
                .iter()
                .map(ToString::to_string)
                .collect();
            return Err(Error::new(
                ErrorKind::ParentIdMismatch,
                format!(
                    "it was made for a parent with identifier {}, but {} has {}",
                    expected.join(" or "),
                    path.display(),
                    id.map_or_else(|| "none".into(), |id| id.to_string())
                ),
            )
            .with_path(child_path)
            .with_hint(
                "the parent was changed or replaced after this disk was made; restore the right parent, or name it with --parent",
            ));
        }
    }
    if parent.logical_sector_size != child.logical_sector_size {
        return Err(Error::new(
            ErrorKind::ParentSizeMismatch,
            format!(
                "it has sectors of {} bytes, its parent {} of {}",
                child.logical_sector_size,
                path.display(),
                parent.logical_sector_size
            ),
        )
        .with_path(child_path));
    }
    Ok(())
}

fn in_parent(error: &Error, child: &Path, parent: &Path) -> Error {
    let kind = match error.kind() {
        ErrorKind::NotFound | ErrorKind::PathNotFound => ErrorKind::ParentNotFound,
        ErrorKind::AccessDenied => ErrorKind::ParentAccessDenied,
        kind @ (ErrorKind::SharingViolation
        | ErrorKind::ReadFault
        | ErrorKind::Io
        | ErrorKind::OutOfMemory) => kind,
        _ => ErrorKind::ErrorInParent,
    };
    let hint = error.hint().map(str::to_owned);
    let error = Error::new(
        kind,
        format!(
            "its parent {} cannot be opened: {}",
            parent.display(),
            error.reason()
        ),
    )
    .with_path(child);
    match hint {
        Some(hint) => error.with_hint(hint),
        None => {
            error.with_hint("name the right parent with --parent, or its folder with --parent-map")
        }
    }
}

fn cycle(child: &Path, parent: &Path) -> Error {
    Error::new(
        ErrorKind::ChainCycle,
        format!("its parent {} is one of its own children", parent.display()),
    )
    .with_path(child)
    .with_hint("name the right parent with --parent")
}

/// Device and inode, by which a file is the same under any name.
pub(crate) fn file_id(path: &Path) -> Option<(u64, u64)> {
    std::fs::metadata(path).ok().map(|m| (m.dev(), m.ino()))
}
