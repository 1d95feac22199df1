//! Floor 2: [`VirtualDisk`], a chain of images from the leaf to the base.
//!
//! Reads and extents resolve through the chain, iteratively, so that its length costs no stack; writes go to the leaf.

mod chain;
mod detect;
mod gate;
mod locate;
mod mirror;
mod pace;
mod reopen;

pub(crate) use chain::{MAX_DEPTH, file_id};
pub use chain::{OpenOptions, Parents};
pub use detect::{detect_format, open_image};
pub use locate::{ParentMap, find_parents, relative_windows_path};
pub(crate) use mirror::{DirtyMap, Mirror, Mirroring};
pub use pace::Pace;

use std::io::{PipeReader, PipeWriter};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::error::{Context, Error, ErrorKind, Result};
use crate::image::{Backing, ExtentKind, Image, ImageInfo, ZeroMode};
use crate::num::to_usize;
use crate::storage::Storage;
use gate::Gate;

/// A virtual disk: one image, or a differencing image with all its ancestors.
///
/// All methods may be called from any number of threads at once, also while an operation changes the structure of the
/// disk. Dropping a writable disk closes it as [`VirtualDisk::close`] does, but cannot report an error: call `close`
/// where it matters.
pub struct VirtualDisk {
    chain: Gate<Chain>,
    /// An operation that changes the structure is running.
    busy: AtomicBool,
}

/// What the disk is made of. Operations change it while no request runs.
pub(crate) struct Chain {
    /// The leaf first. Never empty.
    layers: Vec<Layer>,
    /// The leaf is being merged: nobody may write to it.
    frozen: bool,
    /// What writes mean for a copy that is being made.
    mirroring: Option<Mirroring>,
}

/// One image of a chain.
pub struct Layer {
    image: Box<dyn Image>,
    path: PathBuf,
    writable: bool,
}

impl Layer {
    /// An image and the name under which messages speak of it.
    pub fn new(image: Box<dyn Image>, path: impl Into<PathBuf>) -> Self {
        Self {
            image,
            path: path.into(),
            writable: false,
        }
    }

    /// Says that the image was opened for writing. [`VirtualDisk`] writes only to the leaf; operations may write to
    /// other layers.
    #[must_use]
    pub fn writable(mut self, writable: bool) -> Self {
        self.writable = writable;
        self
    }

    /// The image.
    pub fn image(&self) -> &dyn Image {
        &*self.image
    }

    /// The image, to change its structure.
    pub(crate) fn image_mut(&mut self) -> &mut dyn Image {
        &mut *self.image
    }

    /// Its file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// True if it was opened for writing.
    pub fn is_writable(&self) -> bool {
        self.writable
    }
}

/// What one image of a chain is, at the moment of asking.
#[derive(Clone)]
#[non_exhaustive]
pub struct LayerInfo {
    /// Its file.
    pub path: PathBuf,
    /// What the image says about itself.
    pub info: ImageInfo,
    /// Where the bytes of its extents are.
    pub storage: Arc<dyn Storage>,
}

/// A run of the disk that has one answer, resolved through the chain. Lengths and offsets are in bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[expect(clippy::exhaustive_structs, reason = "a plain answer")]
pub struct DiskExtent {
    /// How long the run is.
    pub length: u64,
    /// Where it is; `None` if it reads as zeros.
    pub data: Option<DataLocation>,
}

/// Where data is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[expect(clippy::exhaustive_structs, reason = "a plain answer")]
pub struct DataLocation {
    /// Index into [`VirtualDisk::layers`]: 0 is the leaf.
    pub layer: usize,
    /// Byte offset in that layer's file.
    pub storage_offset: u64,
}

impl VirtualDisk {
    /// Opens a disk read-only, with its parents found as its own records say.
    ///
    /// # Errors
    /// See [`OpenOptions::open`].
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        OpenOptions::new().open(path)
    }

    /// A disk of images that are already open: the leaf first, then its parent, and so on. With `writable` the leaf
    /// was opened for writing. Linkage is not verified.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidParameter`] if there is no layer.
    pub fn from_layers(mut layers: Vec<Layer>, writable: bool) -> Result<Self> {
        let Some(leaf) = layers.first_mut() else {
            return Err(Error::new(
                ErrorKind::InvalidParameter,
                "a disk needs at least one image",
            ));
        };
        leaf.writable = writable;
        Ok(Self {
            chain: Gate::new(Chain {
                layers,
                frozen: false,
                mirroring: None,
            }),
            busy: AtomicBool::new(false),
        })
    }

    /// The images, leaf first, as they are now.
    pub fn layers(&self) -> Vec<LayerInfo> {
        self.chain
            .read()
            .layers
            .iter()
            .map(|layer| LayerInfo {
                path: layer.path.clone(),
                info: layer.image.info(),
                storage: layer.image.storage().clone(),
            })
            .collect()
    }

    /// What the leaf says about itself.
    pub fn info(&self) -> ImageInfo {
        self.chain.read().leaf().image.info()
    }

    /// The leaf's file.
    pub fn path(&self) -> PathBuf {
        self.chain.read().leaf().path.clone()
    }

    /// Size of the disk in bytes.
    pub fn virtual_size(&self) -> u64 {
        self.chain.read().virtual_size()
    }

    /// True if it was opened for writing.
    pub fn is_writable(&self) -> bool {
        self.chain.read().leaf().writable
    }

    /// Fills `buf` from `offset`, a range of any alignment.
    ///
    /// # Errors
    /// [`ErrorKind::BeyondEnd`] if the range reaches past the end; [`ErrorKind::ReadFault`] and what a damaged image
    /// gives.
    pub fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        self.chain.read().read_at(offset, buf)
    }

    /// Puts the first bytes of a range into a pipe without copying them, for those who send them on (`splice`): the pages
    /// of the system's cache themselves. Returns how many went in; 0 if that is not possible for the first of them, which
    /// is no error: [`VirtualDisk::read_at`] is.
    ///
    /// What comes out of the pipe, whenever that is, is what the range held at the time of this call or what was written
    /// to it since, for each byte by itself; never anything else.
    ///
    /// # Errors
    /// [`ErrorKind::BeyondEnd`], and what a damaged image gives.
    pub fn lend(&self, offset: u64, length: u64, pipe: &PipeWriter) -> Result<u64> {
        self.chain.read().lend(offset, length, pipe)
    }

    /// Writes `data` at `offset`, a range of any alignment.
    ///
    /// # Errors
    /// [`ErrorKind::BeyondEnd`], [`ErrorKind::WriteProtected`], [`ErrorKind::DiskFull`], [`ErrorKind::WriteFault`];
    /// [`ErrorKind::InvalidState`] after an error that made the file untrustworthy until it is opened again.
    pub fn write_at(&self, offset: u64, data: &[u8]) -> Result<()> {
        self.modify(offset, data.len() as u64, |leaf, ancestors| {
            leaf.write_at(offset, data, ancestors)
        })
    }

    /// Writes the first bytes of a range out of a pipe that has `length` of them, without copying them through the
    /// program, for those who receive them into one (`splice`). Returns how many were written, and so taken out; if fewer,
    /// [`VirtualDisk::write_at`] is for the next ones, and says what is wrong if anything is.
    ///
    /// # Errors
    /// As [`VirtualDisk::write_at`]; nothing was taken out then.
    pub fn write_pipe(&self, offset: u64, length: u64, pipe: &PipeReader) -> Result<u64> {
        let chain = self.chain.read();
        chain.check_write(offset, length)?;
        let leaf = chain.leaf();
        if length == 0 || chain.mirroring.is_some() {
            return Ok(0);
        }
        leaf.image
            .write_pipe(offset, length, pipe)
            .at_path(&leaf.path)
    }

    /// Makes a range read as zeros.
    ///
    /// # Errors
    /// As [`VirtualDisk::write_at`].
    pub fn zero(&self, offset: u64, length: u64, mode: ZeroMode) -> Result<()> {
        self.modify(offset, length, |leaf, ancestors| {
            leaf.zero(offset, length, mode, ancestors)
        })
    }

    /// Tells that the range is no longer needed: each of its sectors then reads as zeros or as before, never as data
    /// of a parent that had been overwritten.
    ///
    /// # Errors
    /// As [`VirtualDisk::write_at`].
    pub fn discard(&self, offset: u64, length: u64) -> Result<()> {
        self.modify(offset, length, |leaf, ancestors| {
            leaf.discard(offset, length, ancestors)
        })
    }

    fn modify(
        &self,
        offset: u64,
        length: u64,
        change: impl Fn(&dyn Image, &dyn Backing) -> Result<()>,
    ) -> Result<()> {
        let chain = self.chain.read();
        chain.check_write(offset, length)?;
        if length == 0 {
            return Ok(());
        }
        let leaf = chain.leaf();
        let source = || change(&*leaf.image, &chain.ancestors(0)).at_path(&leaf.path);
        match &chain.mirroring {
            None => source(),
            Some(mirroring) => mirroring.modify(&(offset..offset + length), source, &change),
        }
    }

    /// Returns when everything written before would survive a crash or a power cut.
    ///
    /// # Errors
    /// As [`VirtualDisk::write_at`].
    pub fn flush(&self) -> Result<()> {
        let chain = self.chain.read();
        let leaf = chain.leaf();
        if leaf.writable {
            leaf.image.flush().at_path(&leaf.path)?;
            if let Some(mirroring) = &chain.mirroring {
                mirroring.flush();
            }
        }
        Ok(())
    }

    /// Flushes and leaves the files clean.
    ///
    /// # Errors
    /// As [`VirtualDisk::write_at`].
    pub fn close(self) -> Result<()> {
        self.chain.change(Chain::close)
    }

    /// The longest run starting at `offset`, at most `length` bytes, that has one answer.
    ///
    /// # Errors
    /// [`ErrorKind::BeyondEnd`], [`ErrorKind::InvalidParameter`] if `length` is zero, and what a damaged image gives.
    pub fn map(&self, offset: u64, length: u64) -> Result<DiskExtent> {
        self.chain.read().map(offset, length)
    }

    /// The runs of a range, one after the other. Neighbouring runs of zeros come as one.
    pub fn extents(&self, range: Range<u64>) -> Extents<'_> {
        Extents { disk: self, range }
    }

    /// The chain as it is, for looking. Not to be held across another call of this disk.
    pub(crate) fn with_chain<R>(&self, look: impl FnOnce(&Chain) -> R) -> R {
        look(&self.chain.read())
    }

    /// The chain, to change it while no request runs. Meant to be short: requests wait meanwhile.
    pub(crate) fn change_chain<R>(&self, change: impl FnOnce(&mut Chain) -> R) -> R {
        self.chain.change(change)
    }

    /// Reserves the disk for one operation that changes its structure, until the result is dropped.
    ///
    /// # Errors
    /// [`ErrorKind::Busy`] if there is one already.
    pub(crate) fn reserve(&self) -> Result<Reserved<'_>> {
        if self.busy.swap(true, Ordering::AcqRel) {
            return Err(
                Error::new(ErrorKind::Busy, "another operation is running on this disk")
                    .with_path(self.path())
                    .with_hint("wait for its end, or cancel it"),
            );
        }
        Ok(Reserved(self))
    }
}

/// See [`VirtualDisk::reserve`].
pub(crate) struct Reserved<'a>(&'a VirtualDisk);

impl Drop for Reserved<'_> {
    fn drop(&mut self) {
        self.0.busy.store(false, Ordering::Release);
    }
}

impl Chain {
    pub(crate) fn layers(&self) -> &[Layer] {
        &self.layers
    }

    pub(crate) fn layers_mut(&mut self) -> &mut Vec<Layer> {
        &mut self.layers
    }

    /// While it is frozen, writes of others fail.
    pub(crate) fn set_frozen(&mut self, frozen: bool) {
        self.frozen = frozen;
    }

    /// The second copy, if there is one.
    pub(crate) fn mirror(&self) -> Option<&Mirror> {
        match &self.mirroring {
            Some(Mirroring::Both(mirror)) => Some(mirror),
            _ => None,
        }
    }

    pub(crate) fn set_mirroring(&mut self, mirroring: Option<Mirroring>) {
        self.mirroring = mirroring;
    }

    /// Goes on with another image, alone. The others are closed.
    pub(crate) fn replace(&mut self, leaf: Layer) -> Result<()> {
        let result = self.close();
        self.layers = vec![leaf];
        result
    }

    pub(crate) fn leaf(&self) -> &Layer {
        &self.layers[0]
    }

    /// A layer to change, and what lies behind it.
    pub(crate) fn split(&mut self, layer: usize) -> (&mut Layer, Ancestors<'_>) {
        let (front, behind) = self.layers.split_at_mut(layer + 1);
        (&mut front[layer], Ancestors(behind))
    }

    /// What lies behind a layer.
    pub(crate) fn ancestors(&self, layer: usize) -> Ancestors<'_> {
        Ancestors(&self.layers[layer + 1..])
    }

    pub(crate) fn virtual_size(&self) -> u64 {
        self.leaf().image.virtual_size()
    }

    /// See [`VirtualDisk::read_at`].
    pub(crate) fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        self.check_range(offset, buf.len() as u64)?;
        if buf.is_empty() {
            return Ok(());
        }
        read_layers(&self.layers, offset, buf)
    }

    /// See [`VirtualDisk::map`].
    pub(crate) fn map(&self, offset: u64, length: u64) -> Result<DiskExtent> {
        self.check_range(offset, length)?;
        if length == 0 {
            return Err(Error::new(
                ErrorKind::InvalidParameter,
                "an extent query needs a length",
            ));
        }
        map_layers(&self.layers, offset, length)
    }

    /// See [`VirtualDisk::lend`].
    fn lend(&self, offset: u64, length: u64, pipe: &PipeWriter) -> Result<u64> {
        self.check_range(offset, length)?;
        if length == 0 {
            return Ok(0);
        }
        let extent = map_layers(&self.layers, offset, length)?;
        let Some(DataLocation { layer, .. }) = extent.data else {
            return Ok(0);
        };
        let layer = &self.layers[layer];
        layer
            .image
            .lend(offset, extent.length, pipe)
            .at_path(&layer.path)
    }

    /// Fails unless a layer may be written to.
    pub(crate) fn check_writable(&self, layer: usize) -> Result<()> {
        let layer = &self.layers[layer];
        if layer.writable {
            return Ok(());
        }
        Err(
            Error::new(ErrorKind::WriteProtected, "the disk was opened read-only")
                .with_path(&layer.path),
        )
    }

    fn check_range(&self, offset: u64, length: u64) -> Result<()> {
        let size = self.virtual_size();
        if offset.checked_add(length).is_none_or(|end| end > size) {
            return Err(Error::new(
                ErrorKind::BeyondEnd,
                format!("{length} bytes at {offset} reach past the end of the disk at {size}"),
            )
            .with_path(&self.leaf().path));
        }
        Ok(())
    }

    fn check_write(&self, offset: u64, length: u64) -> Result<()> {
        self.check_writable(0)?;
        if self.frozen {
            return Err(Error::new(
                ErrorKind::Busy,
                "its content is being merged into its parent",
            )
            .with_path(&self.leaf().path)
            .with_hint("wait for the end of the merge, or cancel it"));
        }
        self.check_range(offset, length)
    }

    /// Closes all layers that were opened for writing, also if one fails; the first error is returned.
    fn close(&mut self) -> Result<()> {
        let mut result = Ok(());
        for layer in self.layers.iter().filter(|layer| layer.writable) {
            result = result.and(layer.image.close().at_path(&layer.path));
        }
        result
    }
}

impl Drop for Chain {
    fn drop(&mut self) {
        // Whoever needs to know calls `close`, after which this does nothing.
        let _ = self.close();
    }
}

/// See [`VirtualDisk::extents`].
pub struct Extents<'a> {
    disk: &'a VirtualDisk,
    range: Range<u64>,
}

impl Iterator for Extents<'_> {
    type Item = Result<(u64, DiskExtent)>;

    fn next(&mut self) -> Option<Self::Item> {
        let start = self.range.start;
        if start >= self.range.end {
            return None;
        }
        let mut found = match self.disk.map(start, self.range.end - start) {
            Ok(extent) => extent,
            Err(e) => {
                self.range.start = self.range.end;
                return Some(Err(e));
            }
        };
        while found.data.is_none() && start + found.length < self.range.end {
            let at = start + found.length;
            match self.disk.map(at, self.range.end - at) {
                Ok(DiskExtent { length, data: None }) => found.length += length,
                // An error is met again, at its own place, by the next call.
                _ => break,
            }
        }
        self.range.start = start + found.length;
        Some(Ok((start, found)))
    }
}

/// The layers behind another.
pub(crate) struct Ancestors<'a>(&'a [Layer]);

impl Backing for Ancestors<'_> {
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        if self.0.is_empty() {
            buf.fill(0);
            return Ok(());
        }
        let inside = self.0[0]
            .image
            .virtual_size()
            .saturating_sub(offset)
            .min(buf.len() as u64);
        let (real, past) = buf.split_at_mut(to_usize(inside));
        past.fill(0);
        if real.is_empty() {
            Ok(())
        } else {
            read_layers(self.0, offset, real)
        }
    }

    fn is_zero(&self, offset: u64, length: u64) -> Result<bool> {
        let end = match self.0.first() {
            None => return Ok(true),
            Some(parent) => (offset + length).min(parent.image.virtual_size()),
        };
        let mut at = offset;
        while at < end {
            let extent = map_layers(self.0, at, end - at)?;
            if extent.data.is_some() {
                return Ok(false);
            }
            at += extent.length;
        }
        Ok(true)
    }
}

fn read_layers(layers: &[Layer], offset: u64, buf: &mut [u8]) -> Result<()> {
    // Neither vector allocates unless a parent is asked.
    let mut absent = Vec::new();
    layers[0]
        .image
        .read_at(offset, buf, &mut absent)
        .at_path(&layers[0].path)?;
    for layer in &layers[1..] {
        if absent.is_empty() {
            return Ok(());
        }
        let size = layer.image.virtual_size();
        for Range { start, end } in std::mem::take(&mut absent) {
            let part = &mut buf[to_usize(start - offset)..to_usize(end - offset)];
            let inside = size.saturating_sub(start).min(end - start);
            let (real, past) = part.split_at_mut(to_usize(inside));
            past.fill(0);
            if !real.is_empty() {
                layer
                    .image
                    .read_at(start, real, &mut absent)
                    .at_path(&layer.path)?;
            }
        }
    }
    for Range { start, end } in absent {
        buf[to_usize(start - offset)..to_usize(end - offset)].fill(0);
    }
    Ok(())
}

fn map_layers(layers: &[Layer], offset: u64, mut length: u64) -> Result<DiskExtent> {
    for (i, layer) in layers.iter().enumerate() {
        let size = layer.image.virtual_size();
        if offset >= size {
            break;
        }
        if i > 0 {
            length = length.min(size - offset);
        }
        let extent = layer.image.map(offset, length).at_path(&layer.path)?;
        debug_assert!(extent.length > 0 && extent.length <= length);
        length = extent.length;
        match extent.kind {
            ExtentKind::Data { storage_offset } => {
                let data = Some(DataLocation {
                    layer: i,
                    storage_offset,
                });
                return Ok(DiskExtent { length, data });
            }
            ExtentKind::Zero => break,
            ExtentKind::Absent => {}
        }
    }
    Ok(DiskExtent { length, data: None })
}
