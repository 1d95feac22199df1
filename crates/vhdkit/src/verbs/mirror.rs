//! `mirror`: copies a disk that is in use, and then keeps the copy in step until somebody decides.
//!
//! ```text
//! copying   the disk is converted into the new file while it is read and written; what is written meanwhile is noted
//! catching  the new file is an open image: every write goes to both, and what was noted is copied again
//! equal     still pending, current = completion; every write goes to both
//! end       cancelled: the disk stays as it was, a new target is deleted
//!           broken:    the disk goes on with the target; the old files stay as they are
//!           failed:    the target could not be written; the disk stays as it was
//! ```

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, mpsc};

use super::copy::{Plan, copy, new_target};
use super::look::{LONGEST, Looks};
use crate::disk::{
    DirtyMap, Layer, Mirror, Mirroring, OpenOptions, Parents, VirtualDisk, open_image,
};
use crate::error::{Context, Error, ErrorKind, Result};
use crate::image::{CreateParameters, DiskType, Format, NoBacking, ZeroMode};
use crate::num::{MIB, round_up, to_usize};
use crate::operation::{Monitor, Operation};
use crate::storage::{AlignedBuffer, NewFile};
use crate::zeros::data_runs;

/// What to copy to.
#[derive(Clone, Debug)]
#[expect(clippy::exhaustive_structs, reason = "a plain request")]
pub struct MirrorOptions {
    /// The file to make, or to fill.
    pub target: PathBuf,
    /// Fill a disk that exists instead of making one. It has no parent and is at least as large.
    pub existing: bool,
    /// What to make; a size of 0 and a logical sector size that is `None` are taken from the disk.
    pub parameters: CreateParameters,
}

/// What happened until a mirror was broken. Sizes are in bytes.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct MirrorReport {
    /// The file that the disk goes on with.
    pub target: PathBuf,
    /// Copied, including what was copied again.
    pub copied: u64,
}

/// What is copied again at a time, in bytes; writes to it wait so long.
const STEP: u64 = 4 * MIB;
/// What looking at so much takes besides, in bytes that could have been copied meanwhile.
const RANGE_COST: u64 = 4096;
/// What the target gets between two flushes, in bytes.
const BATCH: u64 = 32 * MIB;
const READ: usize = 1 << 20;
const ZERO_GRAIN: usize = 64 * 1024;

/// Starts a mirror. It stays pending, with `current` equal to `completion` once both are the same, until it is
/// cancelled, fails, or [`break_mirror`] is called. Units of progress: bytes of data; `completion` grows with what is
/// written meanwhile.
///
/// # Errors
/// Through the operation: [`ErrorKind::Aborted`] when cancelled, [`ErrorKind::Busy`], [`ErrorKind::InvalidType`] and
/// [`ErrorKind::InvalidSize`] for an existing target that does not fit, and what creating and writing the target and
/// reading the disk can fail with.
pub fn mirror(disk: Arc<VirtualDisk>, options: MirrorOptions) -> Operation<MirrorReport> {
    Operation::start("mirror", move |monitor| {
        let path = disk.path();
        run(&disk, Goal::File(&options), monitor)
            .at_path(&path)
            .while_doing("cannot mirror")
    })
}

/// As [`mirror`] with [`MirrorOptions::existing`], onto a disk that is open already, for writing and without a parent. When
/// the operation ends without success the target is closed and keeps what was copied.
///
/// # Errors
/// Through the operation: as for [`mirror`].
pub fn mirror_onto(disk: Arc<VirtualDisk>, target: VirtualDisk) -> Operation<MirrorReport> {
    Operation::start("mirror", move |monitor| {
        let path = disk.path();
        run(&disk, Goal::Onto(target), monitor)
            .at_path(&path)
            .while_doing("cannot mirror")
    })
}

/// Where to.
enum Goal<'a> {
    File(&'a MirrorOptions),
    Onto(VirtualDisk),
}

/// True once both copies of a mirrored disk are the same: every write goes to both, and [`break_mirror`] is possible.
pub fn is_mirrored(disk: &VirtualDisk) -> bool {
    disk.with_chain(|chain| {
        chain
            .mirror()
            .is_some_and(|mirror| mirror.state().can_break())
    })
}

/// Ends a mirror: the disk goes on with the target. Returns when it does; the mirror's operation then ends with
/// success.
///
/// # Errors
/// [`ErrorKind::InvalidState`] unless both copies are the same ([`is_mirrored`]); the mirror goes on then.
pub fn break_mirror(disk: &VirtualDisk) -> Result<()> {
    let (sender, broken) = mpsc::channel();
    let asked = disk.with_chain(|chain| {
        let Some(mirror) = chain.mirror() else {
            return false;
        };
        let mut state = mirror.state();
        if !state.can_break() || state.break_requested.is_some() {
            return false;
        }
        state.break_requested = Some(sender);
        drop(state);
        mirror.notify();
        true
    });
    // The operation drops its end without a word if it fails.
    if asked && broken.recv().is_ok() {
        return Ok(());
    }
    Err(Error::new(
        ErrorKind::InvalidState,
        "the disk is not mirrored, or not completely yet",
    )
    .with_path(disk.path())
    .while_doing("cannot break the mirror of")
    .with_hint("wait until the mirror's current value equals its completion value"))
}

/// Stops noting or mirroring writes, whatever happens.
struct Started<'a>(&'a VirtualDisk);

impl Drop for Started<'_> {
    fn drop(&mut self) {
        self.0.change_chain(|chain| chain.set_mirroring(None));
    }
}

/// Deletes a new target that did not become the disk.
struct Unfinished(Option<PathBuf>);

impl Drop for Unfinished {
    fn drop(&mut self) {
        if let Some(path) = &self.0 {
            // If it cannot be deleted there is nobody to tell: the mirror ends with its own error.
            let _ = std::fs::remove_file(path);
        }
    }
}

fn run(disk: &VirtualDisk, goal: Goal<'_>, monitor: &Monitor) -> Result<MirrorReport> {
    let _reserved = disk.reserve()?;
    let size = disk.virtual_size();
    let mut work = Work {
        disk,
        monitor,
        done: 0,
        copied: 0,
        first_pass: None,
        unflushed: 0,
        buffer: AlignedBuffer::new(READ),
        file: None,
        unfinished: Unfinished(None),
    };
    let _started = Started(disk);
    let (target, dirty) = match goal {
        Goal::File(options) if options.existing => {
            work.take_target(&open_target(&options.target)?, size)?
        }
        Goal::File(options) => work.make_target(options, size)?,
        Goal::Onto(target) => work.take_target(&target, size)?,
    };
    let is_new = work.first_pass.is_none();
    let path = target.path().to_path_buf();
    let mirror = Arc::new(Mirror::new(target, dirty));
    disk.change_chain(|chain| chain.set_mirroring(Some(Mirroring::Both(mirror.clone()))));
    let mut mirror = Some(mirror);
    while let Some(both) = &mirror {
        let step = work
            .keep_in_step(both, &path)
            .and_then(|()| work.switch(&mut mirror));
        if let Err(error) = step {
            if let Some(both) = mirror.as_ref().filter(|_| !is_new) {
                // The target stays: it is to hold what was copied. The mirror ends with its own error all the same.
                let _ = both.target().image().flush();
            }
            return Err(error);
        }
    }
    Ok(MirrorReport {
        target: path,
        copied: work.copied,
    })
}

fn open_target(path: &Path) -> Result<VirtualDisk> {
    OpenOptions::new()
        .parents(Parents::Ignored)
        .writable(true)
        .open(path)
}

/// The image of a disk that can be the copy of one of `size` bytes.
fn as_target(target: &VirtualDisk, size: u64) -> Result<Layer> {
    let info = target.info();
    let path = target.path();
    if info.disk_type == DiskType::Differencing || info.format == Format::Iso {
        return Err(Error::new(
            ErrorKind::InvalidType,
            "a target of a mirror is a disk of its own, without a parent",
        )
        .with_path(path)
        .with_hint("make one with 'vhdkit create', or leave --existing out and name a new file"));
    }
    if info.virtual_size < size {
        return Err(Error::new(
            ErrorKind::InvalidSize,
            format!(
                "it has {} bytes, the disk to be mirrored {size}",
                info.virtual_size
            ),
        )
        .with_path(path)
        .with_hint("make it larger with 'vhdkit resize'"));
    }
    target
        .change_chain(|chain| chain.layers_mut().pop())
        .ok_or_else(|| Error::new(ErrorKind::Io, "internal error: a disk without images"))
}

struct Work<'a> {
    disk: &'a VirtualDisk,
    monitor: &'a Monitor,
    /// Units of progress.
    done: u64,
    /// Bytes of data copied.
    copied: u64,
    /// Units that are left of the first pass over a disk that exists. All of it is marked, but what it takes is data.
    first_pass: Option<u64>,
    /// Bytes that the target got since its last flush.
    unflushed: u64,
    buffer: AlignedBuffer,
    /// A new target that has no name yet: it gets one when it is a copy of the disk.
    file: Option<NewFile>,
    unfinished: Unfinished,
}

impl Work<'_> {
    /// Converts the disk into a new file while it is in use; what was written meanwhile is in the map.
    fn make_target(
        &mut self,
        options: &MirrorOptions,
        size: u64,
    ) -> Result<(Layer, Arc<DirtyMap>)> {
        let path = &options.target;
        let info = self.disk.info();
        let mut parameters = options.parameters.clone();
        if parameters.disk_type == DiskType::Differencing || parameters.parent.is_some() {
            return Err(Error::new(
                ErrorKind::InvalidType,
                "a mirror makes a disk without a parent",
            )
            .with_path(path));
        }
        if parameters.format == Format::Vhdx && matches!(info.logical_sector_size, 512 | 4096) {
            parameters
                .logical_sector_size
                .get_or_insert(info.logical_sector_size);
        }
        if parameters.virtual_size == 0 {
            let sector = parameters.logical_sector_size.unwrap_or(512);
            parameters.virtual_size = round_up(size, u64::from(sector));
        }
        if parameters.virtual_size < size {
            return Err(Error::new(
                ErrorKind::InvalidSize,
                format!("the target would be smaller than the disk of {size} bytes"),
            )
            .with_path(path));
        }
        let file = NewFile::create(path, false)
            .map_err(|e| match e.kind() {
                ErrorKind::AlreadyExists => {
                    e.with_better_hint("choose another name; --existing fills a disk that is there")
                }
                _ => e,
            })
            .while_doing("cannot create")?;
        let (builder, reserved) =
            new_target(self.disk, file.storage(), &parameters, self.monitor).at_path(path)?;
        let dirty = Arc::new(DirtyMap::new(size));
        self.disk.change_chain(|chain| {
            chain.set_mirroring(Some(Mirroring::Noting(dirty.clone())));
        });
        let unit = builder.placement_unit();
        let plan = Plan::new(self.disk, 0..size, unit, reserved, self.monitor)?;
        (self.done, self.copied) = (reserved + plan.data, plan.data);
        // Equal values would say that both disks are the same.
        self.monitor.add_completion(1);
        copy(self.disk, plan, &*builder, self.monitor).at_path(path)?;
        self.monitor.checkpoint()?;
        builder.finish().at_path(path)?;
        drop(builder);
        let image = open_image(file.storage(), parameters.format, true).at_path(path)?;
        let mut target = Layer::new(image, path).writable(true);
        self.copy_metadata(&mut target)?;
        self.file = Some(file);
        Ok((target, dirty))
    }

    /// The copy is to become the disk, with what its user keeps beside the content. Nobody changes that meanwhile: the
    /// disk is reserved.
    fn copy_metadata(&self, target: &mut Layer) -> Result<()> {
        if self.disk.info().format != Format::Vhdx || target.image().info().format != Format::Vhdx {
            return Ok(());
        }
        self.disk.with_chain(|chain| {
            let leaf = chain.leaf().image();
            for (item, _) in leaf.user_metadata()? {
                let value = leaf.read_user_metadata(item)?;
                target.image_mut().write_user_metadata(item, Some(&value))?;
            }
            Ok(())
        })
    }

    /// Copies what differs until nothing does, again and again. Ends with success when the mirror is to be broken.
    fn keep_in_step(&mut self, mirror: &Mirror, path: &Path) -> Result<()> {
        let mut next = 0;
        // What was copied is durable before both are called the same.
        let mut flushed = false;
        loop {
            self.monitor.checkpoint()?;
            if let Some(failure) = &mirror.state().failure {
                return Err(failure.duplicate());
            }
            let marked = mirror.dirty.marked();
            if marked > 0 {
                // Not equal as long as there is anything to do.
                let left = self.first_pass.unwrap_or(marked).max(1);
                self.monitor.set(self.done, self.done + left);
                flushed = false;
                let range = mirror.dirty.take(next, STEP).or_else(|| {
                    self.first_pass = None;
                    mirror.dirty.take(0, STEP)
                });
                if let Some(range) = range {
                    next = range.end;
                    let data = self.copy_range(mirror, &range)?;
                    self.copied += data;
                    self.unflushed += data;
                    match &mut self.first_pass {
                        Some(left) => {
                            let steps = (range.end - range.start).div_ceil(STEP);
                            let units = data + steps * RANGE_COST;
                            *left = left.saturating_sub(units);
                            self.done += units;
                        }
                        None => self.done += range.end - range.start,
                    }
                }
                if self.unflushed >= BATCH {
                    // So that the last flush has not all of it to do.
                    mirror.target().image().flush().at_path(path)?;
                    self.unflushed = 0;
                }
                continue;
            }
            if !flushed {
                mirror.target().image().flush().at_path(path)?;
                (flushed, self.unflushed) = (true, 0);
                continue;
            }
            if let Some(file) = self.file.take() {
                file.publish()?;
                self.unfinished.0 = Some(path.to_path_buf());
                continue;
            }
            {
                let mut state = mirror.state();
                // A request that failed in part says so under this lock.
                state.is_equal = mirror.dirty.marked() == 0;
                if state.is_equal && state.break_requested.is_some() {
                    return Ok(());
                }
            }
            self.monitor.set(self.done.max(1), self.done.max(1));
            mirror.wait();
        }
    }

    /// A disk that exists is to become the copy: all of it has to be copied.
    fn take_target(&mut self, target: &VirtualDisk, size: u64) -> Result<(Layer, Arc<DirtyMap>)> {
        let target = as_target(target, size)?;
        let all = DirtyMap::new(size);
        all.mark(&(0..size));
        self.first_pass = Some(self.cost_of_all(size)?);
        Ok((target, Arc::new(all)))
    }

    /// What copying all of the disk to one that exists takes, in units of progress.
    fn cost_of_all(&self, size: u64) -> Result<u64> {
        let mut looks = Looks::new(self.monitor, size);
        let (mut at, mut data) = (0, 0);
        while at < size {
            let extent = self.disk.map(at, (size - at).min(LONGEST))?;
            at += extent.length;
            data += extent.data.map_or(0, |_| extent.length);
            looks.seen(at, data)?;
        }
        Ok(data + size.div_ceil(STEP) * RANGE_COST)
    }

    /// Returns how many bytes of data the range had.
    fn copy_range(&mut self, mirror: &Mirror, range: &Range<u64>) -> Result<u64> {
        let buffer = &mut self.buffer;
        let path = mirror.target().path();
        self.disk.with_chain(|chain| {
            mirror.copy(range, |target| {
                let (mut runs, mut data) = (Vec::new(), 0);
                let mut at = range.start;
                while at < range.end {
                    let extent = chain.map(at, range.end - at)?;
                    if extent.data.is_none() {
                        target
                            .zero(at, extent.length, ZeroMode::MayUnmap, &NoBacking)
                            .at_path(path)?;
                        at += extent.length;
                        continue;
                    }
                    let n = extent.length.min(READ as u64);
                    data += n;
                    let part = &mut buffer[..to_usize(n)];
                    chain.read_at(at, part)?;
                    data_runs(part, ZERO_GRAIN, &mut runs);
                    let mut zero_from = 0;
                    // The zeros behind the last run, too.
                    runs.push(part.len()..part.len());
                    for run in runs.iter().cloned() {
                        let zeros = (run.start - zero_from) as u64;
                        if zeros > 0 {
                            target
                                .zero(at + zero_from as u64, zeros, ZeroMode::MayUnmap, &NoBacking)
                                .at_path(path)?;
                        }
                        zero_from = run.end;
                        if !run.is_empty() {
                            target
                                .write_at(at + run.start as u64, &part[run], &NoBacking)
                                .at_path(path)?;
                        }
                    }
                    at += n;
                }
                Ok(data)
            })
        })
    }

    /// Lets the disk go on with the target, and takes the mirror away, unless a write has failed in part meanwhile.
    fn switch(&mut self, mirror: &mut Option<Arc<Mirror>>) -> Result<()> {
        self.disk.change_chain(|chain| {
            let Some(both) = mirror.take_if(|both| both.dirty.marked() == 0) else {
                return Ok(());
            };
            let (leaf, target) = (chain.leaf(), both.target());
            if leaf.is_writable() {
                leaf.image().flush().at_path(leaf.path())?;
            }
            target.image().flush().at_path(target.path())?;
            let waiting = {
                let mut state = both.state();
                if let Some(failure) = &state.failure {
                    return Err(failure.duplicate());
                }
                state.break_requested.take()
            };
            chain.set_mirroring(None);
            // Nobody but the chain and this operation ever keeps it.
            let both = Arc::into_inner(both)
                .ok_or_else(|| Error::new(ErrorKind::Io, "internal error: the mirror is in use"))?;
            self.unfinished.0 = None;
            // The old leaf has been flushed: should closing it fail, its log says what closing would have put in place.
            let _ = chain.replace(both.into_target());
            if let Some(waiting) = waiting {
                // Who asked may have given up.
                let _ = waiting.send(());
            }
            Ok(())
        })
    }
}
