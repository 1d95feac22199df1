//! `merge`: folds the images of a chain from one depth on into one behind them, in place and in one pass.
//!
//! ```text
//! 1  the image before the target learns the identity that the target is about to get (it accepts old and new)
//! 2  the target gets that identity
//! 3  the target is made longer if need be; every range that a merged image decides is written to it; flush
//! 4  the image before the target forgets the old identity
//! 5  if asked for: disks whose parent was the first merged image get the target as parent, and so does, at last, the
//!    image before it, or if it is the leaf that image itself; merged files are deleted, the leaf last (`leftovers`)
//! ```
//!
//! The merged images keep all they hold until 5, so the chain reads the same at every moment: cancelled, killed or out
//! of space anywhere, it opens, reads as before, and the merge can be run again.

mod leftovers;

use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use uuid::Uuid;

use super::look::{LONGEST, Looks};
use super::set_parent::{differencing_disks_near, link_to};
use crate::disk::{Chain, Layer, OpenOptions, Parents, VirtualDisk};
use crate::error::{Context, Error, ErrorKind, Result};
use crate::image::{DiskType, ExtentKind, Image, ImageInfo, SourceRun, ZeroMode};
use crate::num::{MIB, to_usize};
use crate::operation::{Monitor, Operation};
use crate::storage::AlignedBuffer;

/// What to fold into what. Depths count from the leaf, which is 1.
#[derive(Clone, Debug)]
#[expect(clippy::exhaustive_structs, reason = "a plain request")]
pub struct MergeOptions {
    /// The first image to be merged.
    pub source_depth: usize,
    /// The image that takes it all; images between are merged as well, earlier ones win.
    pub target_depth: usize,
    /// Give the children of the first merged image (those in the chain and those found beside the files) the target as
    /// parent, and then delete the files of the merged images.
    pub delete_merged: bool,
    /// How to open such children, and what folders are called on Windows.
    pub open: OpenOptions,
    /// Predict only: nothing is written.
    pub dry_run: bool,
}

/// What was done, or would be. Sizes are in bytes.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct MergeReport {
    /// The file that took it all.
    pub target: PathBuf,
    /// The files that were merged, first the one nearest to the leaf.
    pub merged: Vec<PathBuf>,
    /// Bytes written as data, or shared by the file system.
    pub copied: u64,
    /// Bytes that became zeros.
    pub zeroed: u64,
    /// Length of the target before.
    pub size_before: u64,
    /// Length of the target afterwards; in a prediction the most that it can become.
    pub size_after: u64,
    /// Other children of the target and of merged images, as far as found beside the files: what they show has
    /// changed, so they are no longer valid.
    pub orphaned: Vec<PathBuf>,
    /// Children of the first merged image that have the target as parent now.
    pub relinked: Vec<PathBuf>,
    /// Files that were deleted, with those that an earlier merge was stopped at deleting. If nothing else was left to do,
    /// `merged` is empty.
    pub deleted: Vec<PathBuf>,
}

/// The longest run that is looked at between two points where the work may stop, in bytes.
const STEP: u64 = 16 * MIB;

/// What is gathered before it is copied, so that what lies together in both files goes together.
const BATCH: u64 = 32 * MIB;

/// Bytes of tables are read or written; what is copied is both.
const TABLE_GAIN: u64 = 2;

/// Merges images of a chain. All images from the one before the first merged one to the target have been opened for
/// writing ([`OpenOptions::write_depth`]). Units of progress: bytes to be copied, and
/// some for looking for them.
///
/// While the leaf is being merged, writes to the disk fail with [`ErrorKind::Busy`]; while others are, the disk can be
/// read and written. After a merge of the leaf with `delete_merged` the disk goes on with the target as its leaf.
///
/// # Errors
/// Through the operation: [`ErrorKind::InvalidParameter`] for depths that the chain has not,
/// [`ErrorKind::WriteProtected`], [`ErrorKind::Busy`], [`ErrorKind::DiskFull`], and what reading and writing can fail
/// with. [`ErrorKind::InvalidSize`] if the sizes differ and the target's cannot be changed.
pub fn merge(disk: Arc<VirtualDisk>, options: MergeOptions) -> Operation<MergeReport> {
    Operation::start("merge", move |monitor| {
        let path = disk.path();
        run(&disk, &options, monitor)
            .at_path(&path)
            .while_doing("cannot merge")
    })
}

/// Disks that a merge makes invalid, as far as they are found beside the files: children of the target and of merged
/// images, other than the first one's. For a warning beforehand; [`MergeReport::orphaned`] names them afterwards.
///
/// # Errors
/// [`ErrorKind::InvalidParameter`] for depths that the chain has not.
pub fn orphans(disk: &VirtualDisk, options: &MergeOptions) -> Result<Vec<PathBuf>> {
    let (first, target) = depths(disk, options).at_path(disk.path())?;
    Ok(Family::find(disk, first, target).orphaned)
}

fn run(disk: &VirtualDisk, options: &MergeOptions, monitor: &Monitor) -> Result<MergeReport> {
    let _reserved = disk.reserve()?;
    let mut deleted = if options.delete_merged {
        finish_earlier(disk, options.dry_run)?
    } else {
        Vec::new()
    };
    let (first, target) = match depths(disk, options) {
        // Only deleting was left of the merge that these depths were for.
        Err(_) if !deleted.is_empty() => {
            return Ok(MergeReport {
                deleted,
                ..MergeReport::default()
            });
        }
        depths => depths?,
    };
    let mut merge = Merge {
        disk,
        monitor,
        first,
        target,
        read: 0,
        resizing: 0,
        buffer: AlignedBuffer::new(to_usize(MIB)),
    };
    if !options.dry_run {
        disk.with_chain(|chain| {
            (first.max(1) - 1..=target).try_for_each(|i| chain.check_writable(i))
        })?;
        merge.prepare()?;
    }
    let family = Family::find(disk, first, target);
    let (plan, new_blocks) = merge.plan()?;
    let mut report = MergeReport {
        orphaned: family.orphaned,
        ..plan
    };
    let relink: Vec<PathBuf> = if options.delete_merged {
        family.children
    } else {
        Vec::new()
    };
    if options.dry_run {
        report.relinked = relink;
        if options.delete_merged {
            deleted.extend(report.merged.iter().cloned());
        }
        report.deleted = deleted;
        return Ok(report);
    }
    report.deleted = deleted;
    let _frozen = (first == 0).then(|| Frozen::new(disk));
    let (copied, zeroed) = merge.copy(new_blocks)?;
    report.copied = copied;
    report.zeroed = zeroed;
    report.size_after = disk.with_chain(|chain| chain.layers()[target].image().storage().len())?;
    if options.delete_merged {
        merge.replace_merged(&relink, options, &mut report)?;
    }
    Ok(report)
}

/// Deletes (or names) what an earlier merge of the disk was stopped at deleting.
fn finish_earlier(disk: &VirtualDisk, dry_run: bool) -> Result<Vec<PathBuf>> {
    let leaf = disk.path();
    let left = disk.with_chain(|chain| leftovers::find(&leaf, chain.layers()));
    if dry_run {
        return Ok(left);
    }
    let mut deleted = Vec::new();
    leftovers::delete(&left, &mut deleted)?;
    leftovers::forget(&leaf)?;
    Ok(deleted)
}

/// Depths as indices: the first image to be merged and the target.
fn depths(disk: &VirtualDisk, options: &MergeOptions) -> Result<(usize, usize)> {
    let images = disk.with_chain(|chain| chain.layers().len());
    let (source, target) = (options.source_depth, options.target_depth);
    if source < 1 || target <= source || target > images {
        let reason = if images == 1 {
            "it has no parent to be merged into".to_owned()
        } else {
            format!(
                "depth {source} cannot be merged into depth {target} of a chain of {images} images"
            )
        };
        return Err(Error::new(ErrorKind::InvalidParameter, reason).with_hint(
            "depths count from the leaf, which is 1; the target lies behind the source",
        ));
    }
    Ok((source - 1, target - 1))
}

/// Keeps others from writing to the disk.
struct Frozen<'a>(&'a VirtualDisk);

impl<'a> Frozen<'a> {
    fn new(disk: &'a VirtualDisk) -> Self {
        disk.change_chain(|chain| chain.set_frozen(true));
        Self(disk)
    }
}

impl Drop for Frozen<'_> {
    fn drop(&mut self) {
        self.0.change_chain(|chain| chain.set_frozen(false));
    }
}

/// Disks outside the chain that a merge concerns.
struct Family {
    /// Children of the first merged image: they read the same on top of the target.
    children: Vec<PathBuf>,
    /// Children of the target and of the other merged images: what they show changes.
    orphaned: Vec<PathBuf>,
}

impl Family {
    fn find(disk: &VirtualDisk, first: usize, target: usize) -> Self {
        let layers = disk.layers();
        let files: Vec<PathBuf> = layers.iter().map(|layer| layer.path.clone()).collect();
        let id = |layer: usize| layers[layer].info.link_identifier;
        let changed: Vec<Uuid> = (first + 1..=target).filter_map(id).collect();
        let mut family = Self {
            children: Vec::new(),
            orphaned: Vec::new(),
        };
        for child in differencing_disks_near(&files) {
            if id(first).is_some_and(|id| child.parents.contains(&id)) {
                family.children.push(child.path);
            } else if child.parents.iter().any(|id| changed.contains(id)) {
                family.orphaned.push(child.path);
            }
        }
        family
    }
}

struct Merge<'a> {
    disk: &'a VirtualDisk,
    monitor: &'a Monitor,
    /// Indices of layers: `first..target` are merged.
    first: usize,
    target: usize,
    /// Units that reading tables took, and those that giving the target another size is expected to take.
    read: u64,
    resizing: u64,
    buffer: AlignedBuffer,
}

/// Where a run of data comes from.
#[derive(Clone, Copy)]
struct Source {
    layer: usize,
    storage_offset: u64,
}

/// What the merged images together say of a run.
#[derive(Clone, Copy)]
enum Decided {
    Data(Source),
    Zero,
    ByTarget,
}

impl Merge<'_> {
    /// What there is to do, from the maps alone; and how many blocks the target gets, at most.
    fn plan(&self) -> Result<(MergeReport, u64)> {
        let (size, merged, target) = self.disk.with_chain(|chain| {
            let layers = chain.layers();
            let target = &layers[self.target];
            (
                layers[self.first].image().virtual_size(),
                layers[self.first..self.target]
                    .iter()
                    .map(|layer| layer.path().to_path_buf())
                    .collect(),
                (target.path().to_path_buf(), target.image().storage().len()),
            )
        });
        let mut report = MergeReport {
            merged,
            target: target.0,
            size_before: target.1?,
            ..MergeReport::default()
        };
        let mut blocks = self
            .disk
            .with_chain(|chain| NewBlocks::new(&chain.layers()[self.target].image().info()));
        let mut looks = Looks::new(self.monitor, size).among(self.read, self.resizing);
        let mut at = 0;
        while at < size {
            let merged = self.first..self.target;
            let length = self.disk.with_chain(|chain| {
                let (length, decided) = decided(chain, merged, at, (size - at).min(LONGEST))?;
                let target = &chain.layers()[self.target];
                match decided {
                    Decided::Data(_) => {
                        report.copied += length;
                        blocks.add(target, at..at + length)?;
                    }
                    Decided::Zero => {
                        report.zeroed += length;
                        // What is zeroed in part may have to be there.
                        blocks.add(target, at..at + 1)?;
                        blocks.add(target, at + length - 1..at + length)?;
                    }
                    Decided::ByTarget => {}
                }
                Ok::<_, Error>(length)
            })?;
            at += length;
            looks.seen(at, report.copied)?;
        }
        looks.are_over(report.copied + 1);
        report.size_after = self.disk.with_chain(|chain| {
            let target = chain.layers()[self.target].image();
            target.length_with(size, blocks.count)
        })?;
        Ok((report, blocks.count))
    }

    /// Reads the tables that the first change would wait for, so that it is seen.
    fn prepare(&mut self) -> Result<()> {
        let disk = self.disk;
        // Nobody knows yet how much of the merged files will have to be copied.
        let lengths = disk.with_chain(|chain| {
            let merged = &chain.layers()[self.first..self.target];
            merged.iter().try_fold(0_u64, |sum, layer| {
                Ok::<_, Error>(sum.saturating_add(layer.image().storage().len()?))
            })
        })?;
        for index in [self.target, self.target - 1] {
            disk.with_chain(|chain| {
                let layer = &chain.layers()[index];
                let size = chain.layers()[self.first].image().virtual_size();
                let resizes = index == self.target && size != layer.image().virtual_size();
                let (before, monitor) = (self.read, self.monitor);
                let (read, resizing) = (&mut self.read, &mut self.resizing);
                let mut pace = |done, all: u64| {
                    *read = before + done / TABLE_GAIN;
                    if resizes {
                        // A table that becomes longer has to move: it is read, written, and looked through.
                        *resizing = 3 * all / TABLE_GAIN;
                    }
                    let rest = lengths.saturating_add(*resizing);
                    monitor.set(*read, rest.saturating_add(before + all / TABLE_GAIN));
                    monitor.checkpoint()
                };
                layer.image().prepare(&mut pace).at_path(layer.path())
            })?;
        }
        Ok(())
    }

    /// Steps 1 to 4. Returns the bytes copied and zeroed.
    fn copy(&mut self, new_blocks: u64) -> Result<(u64, u64)> {
        let child = self.target - 1;
        let new = self.disk.change_chain(|chain| -> Result<Option<Uuid>> {
            let target = &chain.layers()[self.target];
            if !target.image().link_follows_content() {
                return Ok(None);
            }
            let new = Uuid::new_v4();
            let ids: Vec<Uuid> = target
                .image()
                .info()
                .link_identifier
                .into_iter()
                .chain([new])
                .collect();
            change(chain, child, |image| image.set_parent_identifiers(&ids))?;
            change(chain, self.target, |image| image.set_link_identifier(new))?;
            Ok(Some(new))
        })?;
        let result = self.fill(new_blocks);
        // Also after a failure: the target may have changed, so it keeps its new identity, and the chain stays whole.
        let finished = self.disk.change_chain(|chain| {
            change(chain, self.target, |image| image.flush())?;
            match new {
                Some(new) => change(chain, child, |image| image.set_parent_identifiers(&[new])),
                None => Ok(()),
            }
        });
        let counts = result?;
        finished?;
        self.monitor.advance(1);
        Ok(counts)
    }

    /// Step 3 but for its flush.
    fn fill(&mut self, new_blocks: u64) -> Result<(u64, u64)> {
        let (first, target, disk) = (self.first, self.target, self.disk);
        let size_of = |layer: usize| {
            disk.with_chain(move |chain| chain.layers()[layer].image().virtual_size())
        };
        let (size, old) = (size_of(first), size_of(target));
        if old < size {
            self.resize_target(size)?;
        }
        let expect =
            |blocks| disk.with_chain(|chain| chain.layers()[target].image().expect_blocks(blocks));
        expect(new_blocks);
        let (mut copied, mut zeroed, mut at) = (0, 0, 0);
        let mut writer = Writer {
            target,
            unit: disk
                .with_chain(|chain| chain.layers()[target].image().info().block_size)
                .unwrap_or(STEP),
            buffer: &mut self.buffer,
            monitor: self.monitor,
            runs: Vec::new(),
            layer: None,
            gathered: 0,
            written: 0,
        };
        while at < size {
            self.monitor.checkpoint()?;
            // To the end of a block of the target, so that it can be placed as a whole.
            let step = (size - at).min(STEP.max(writer.unit - at % writer.unit));
            let (length, decided) = disk.with_chain(|chain| {
                let (length, decided) = decided(chain, first..target, at, step)?;
                match decided {
                    Decided::Data(source) => writer.write(chain, at, length, source)?,
                    Decided::Zero => {
                        let layer = &chain.layers()[target];
                        layer
                            .image()
                            .zero(at, length, ZeroMode::MayUnmap, &chain.ancestors(target))
                            .at_path(layer.path())?;
                    }
                    Decided::ByTarget => {}
                }
                Ok::<_, Error>((length, decided))
            })?;
            match decided {
                Decided::Data(_) => copied += length,
                Decided::Zero => zeroed += length,
                Decided::ByTarget => {}
            }
            at += length;
        }
        disk.with_chain(|chain| writer.finish(chain))?;
        expect(0);
        if old > size {
            self.resize_target(size)?;
        }
        Ok((copied, zeroed))
    }

    fn resize_target(&self, size: u64) -> Result<()> {
        // It was expected to take so much.
        let (mut told, mut known) = (0, self.resizing);
        let mut pace = |done: u64, all: u64| {
            let (done, all) = (done / TABLE_GAIN, all / TABLE_GAIN);
            self.monitor.add_completion(all.saturating_sub(known));
            self.monitor.advance(done.saturating_sub(told));
            (told, known) = (done.max(told), all.max(known));
            self.monitor.checkpoint()
        };
        self.disk.change_chain(|chain| {
            let (target, behind) = chain.split(self.target);
            let path = target.path().to_path_buf();
            target
                .image_mut()
                .resize(size, &behind, &mut pace)
                .at_path(&path)
        })
    }

    /// Step 5.
    fn replace_merged(
        &self,
        relink: &[PathBuf],
        options: &MergeOptions,
        report: &mut MergeReport,
    ) -> Result<()> {
        let (first, target) = (self.first, self.target);
        let leaf = self.disk.path();
        let info = self
            .disk
            .with_chain(|chain| chain.layers()[target].image().info());
        for child in relink {
            let disk = options
                .open
                .clone()
                .parents(Parents::Ignored)
                .writable(true)
                .open(child)?;
            let link = link_to(child, &report.target, &info, &options.open)?;
            disk.change_chain(|chain| change(chain, 0, |image| image.set_parent(&link)))?;
            disk.close()?;
            report.relinked.push(child.clone());
        }
        // The image that stays until nothing else is left to delete: a merge of it can be run again.
        let last = if first == 0 { 0 } else { first - 1 };
        let (gone, is_alone) = (last + 1..target, last + 1 == target);
        self.disk.change_chain(|chain| -> Result<()> {
            if is_alone {
                return Ok(());
            }
            leftovers::write(&leaf, &leftovers::of_layers(&chain.layers()[gone.clone()])?)?;
            let path = chain.layers()[last].path().to_path_buf();
            let link = link_to(&path, &report.target, &info, &options.open)?;
            change(chain, last, |image| image.set_parent(&link))?;
            if first > 0 {
                report.relinked.insert(0, path);
            }
            Ok(())
        })?;
        // From here on nobody needs the merged files. They are closed before they go.
        let merged: Vec<_> = self
            .disk
            .change_chain(|chain| chain.layers_mut().drain(first..target).collect());
        drop(merged);
        let mut paths: Vec<PathBuf> = report.merged.iter().rev().cloned().collect();
        let leaf_file = if first == 0 { paths.pop() } else { None };
        leftovers::delete(&paths, &mut report.deleted)?;
        leftovers::forget(&leaf)?;
        leftovers::delete(leaf_file.as_slice(), &mut report.deleted)
    }
}

/// Blocks that the target has to allocate.
struct NewBlocks {
    /// The target's unit of allocation; `None` if all its space is there.
    block: Option<u64>,
    count: u64,
    /// The first byte that was not yet looked at.
    next: u64,
}

impl NewBlocks {
    fn new(target: &ImageInfo) -> Self {
        Self {
            block: target
                .block_size
                .filter(|_| target.disk_type != DiskType::Fixed),
            count: 0,
            next: 0,
        }
    }

    /// Counts those of a range. Ranges come in ascending order.
    fn add(&mut self, target: &Layer, range: Range<u64>) -> Result<()> {
        let Some(block) = self.block else {
            return Ok(());
        };
        let size = target.image().virtual_size();
        let mut at = (range.start / block * block).max(self.next);
        while at < range.end {
            let end = at + block;
            if !has_data(target, at..end.min(size))? {
                self.count += 1;
            }
            at = end;
            self.next = end;
        }
        Ok(())
    }
}

fn has_data(layer: &Layer, range: Range<u64>) -> Result<bool> {
    let mut at = range.start;
    while at < range.end {
        let extent = layer
            .image()
            .map(at, range.end - at)
            .at_path(layer.path())?;
        if matches!(extent.kind, ExtentKind::Data { .. }) {
            return Ok(true);
        }
        at += extent.length;
    }
    Ok(false)
}

/// The longest run from `offset` on, at most `length` bytes, about which the merged images say one thing.
fn decided(
    chain: &Chain,
    merged: Range<usize>,
    offset: u64,
    mut length: u64,
) -> Result<(u64, Decided)> {
    for i in merged {
        let layer = &chain.layers()[i];
        let size = layer.image().virtual_size();
        if offset >= size {
            // What lies behind the end of a merged image hides what is deeper.
            return Ok((length, Decided::Zero));
        }
        length = length.min(size - offset);
        let extent = layer.image().map(offset, length).at_path(layer.path())?;
        length = extent.length;
        match extent.kind {
            ExtentKind::Data { storage_offset } => {
                let source = Source {
                    layer: i,
                    storage_offset,
                };
                return Ok((length, Decided::Data(source)));
            }
            ExtentKind::Zero => return Ok((length, Decided::Zero)),
            ExtentKind::Absent => {}
        }
    }
    Ok((length, Decided::ByTarget))
}

/// Changes the structure of one layer, with its file in the error.
fn change<R>(
    chain: &mut Chain,
    layer: usize,
    change: impl FnOnce(&mut dyn Image) -> Result<R>,
) -> Result<R> {
    let layer = chain.split(layer).0;
    let path = layer.path().to_path_buf();
    change(layer.image_mut()).at_path(&path)
}

/// Writes data of the merged images to the target.
struct Writer<'a> {
    target: usize,
    /// The target's unit of allocation, or what stands for it in one that has none.
    unit: u64,
    buffer: &'a mut AlignedBuffer,
    monitor: &'a Monitor,
    /// Not yet copied, all of one layer, and how much that is.
    runs: Vec<SourceRun>,
    layer: Option<usize>,
    gathered: u64,
    /// Through the image, since its last flush.
    written: u64,
}

impl Writer<'_> {
    fn write(&mut self, chain: &Chain, offset: u64, length: u64, source: Source) -> Result<()> {
        let mut done = 0;
        while done < length {
            if self.layer != Some(source.layer) || self.gathered >= BATCH {
                self.finish(chain)?;
                self.layer = Some(source.layer);
            }
            let at = offset + done;
            let n = (length - done).min(self.unit - at % self.unit);
            self.runs.push(SourceRun {
                offset: at,
                storage_offset: source.storage_offset + done,
                length: n,
            });
            self.gathered += n;
            done += n;
        }
        Ok(())
    }

    /// Copies what was gathered.
    fn finish(&mut self, chain: &Chain) -> Result<()> {
        let Some(layer) = self.layer else {
            return Ok(());
        };
        let (source, target) = (&chain.layers()[layer], &chain.layers()[self.target]);
        let left = AtomicU64::new(std::mem::take(&mut self.gathered));
        // What lies between two blocks may be copied, too.
        let copied = |bytes: u64| {
            let before =
                left.fetch_update(Relaxed, Relaxed, |left| Some(left.saturating_sub(bytes)));
            self.monitor.advance(bytes.min(before.unwrap_or_default()));
        };
        let rest = target
            .image()
            .copy_from(
                &**source.image().storage(),
                std::mem::take(&mut self.runs),
                &copied,
            )
            .at_path(target.path())?;
        for run in rest {
            self.monitor.checkpoint()?;
            self.write_through(chain, source, run)?;
        }
        Ok(())
    }

    /// The bytes come to a block that is here in part: the image knows what to do.
    fn write_through(&mut self, chain: &Chain, source: &Layer, run: SourceRun) -> Result<()> {
        let layer = &chain.layers()[self.target];
        let mut done = 0;
        while done < run.length {
            let n = (run.length - done).min(self.buffer.len() as u64);
            let bytes = &mut self.buffer[..to_usize(n)];
            source
                .image()
                .storage()
                .read_at(run.storage_offset + done, bytes)
                .at_path(source.path())?;
            layer
                .image()
                .write_at(run.offset + done, bytes, &chain.ancestors(self.target))
                .at_path(layer.path())?;
            self.monitor.advance(n);
            done += n;
        }
        self.written += run.length;
        if self.written >= BATCH {
            // So that the last flush has not all of it to do.
            layer.image().flush().at_path(layer.path())?;
            self.written = 0;
        }
        Ok(())
    }
}
