//! `resize` and `expand`: another virtual size, in place.

use std::sync::Arc;

use crate::disk::VirtualDisk;
use crate::error::{Context, Error, ErrorKind, Result};
use crate::image::{DiskType, Format};
use crate::num::MIB;
use crate::operation::{Monitor, Operation};
use crate::volume::{self, GptMove, Medium, PartitionTable, Scheme, Step};
use crate::{vhd, vhdx};

/// Which size.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[expect(clippy::exhaustive_enums, reason = "there is no third way")]
pub enum NewSize {
    /// So many bytes.
    Bytes(u64),
    /// The smallest that does not cut off a partition, see [`smallest_safe_size`].
    Smallest,
}

/// What to do.
#[derive(Clone, Copy, Debug)]
#[expect(clippy::exhaustive_structs, reason = "a plain request")]
pub struct ResizeOptions {
    /// Which size.
    pub size: NewSize,
    /// Cut off partitions if the size demands it.
    pub allow_unsafe: bool,
    /// Move the second copy of a GUID partition table to the new end of the disk. Without it a guest finds that copy
    /// in the wrong place after growing, or not at all after shrinking, and has to put it right itself.
    pub fix_gpt: bool,
    /// Only what `ExpandVirtualDisk` does: larger, and not a differencing disk.
    pub expand_only: bool,
    /// Check only; nothing is written.
    pub dry_run: bool,
}

/// What was done, or would be. Sizes are in bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[non_exhaustive]
pub struct ResizeReport {
    /// Virtual size before.
    pub size_before: u64,
    /// Virtual size afterwards.
    pub size_after: u64,
    /// The smallest size that does not cut off a partition, if the disk has a readable partition table.
    pub smallest_safe_size: Option<u64>,
    /// Length of the file afterwards; before, in a prediction.
    pub file_size: u64,
    /// True if the second copy of the partition table was moved.
    pub gpt_moved: bool,
    /// True if the second copy of the partition table lay behind the new end and was not moved: the guest has to write
    /// it anew.
    pub gpt_cut_off: bool,
}

/// Resizes the leaf of a disk that was opened for writing. What is added reads as zeros, also where the disk was larger
/// before. Children of the disk lose their parent (the identity that they have recorded changes in a VHDX). Units of
/// progress: bytes of tables to be read or written, and a small part of those to be allocated.
///
/// | | fixed | dynamic | differencing |
/// |---|---|---|---|
/// | VHD | larger | larger | never |
/// | VHDX | larger, smaller | larger, smaller | larger, smaller |
/// | raw | larger, smaller | | |
///
/// A VHDX does not become smaller than 3 MiB, the least that Windows knows.
///
/// # Errors
/// Through the operation: [`ErrorKind::InvalidType`] and [`ErrorKind::InvalidSize`] outside this table and the format's
/// limits, [`ErrorKind::WouldTruncateData`] if a partition would be cut off, [`ErrorKind::NoSmallestSize`] and
/// [`ErrorKind::AlreadySmallest`] when the smallest size is asked for, [`ErrorKind::InvalidParameter`] for expanding to
/// a smaller size, [`ErrorKind::WriteProtected`], [`ErrorKind::Busy`], and what reading and writing can fail with.
pub fn resize(disk: Arc<VirtualDisk>, options: ResizeOptions) -> Operation<ResizeReport> {
    let name = if options.expand_only {
        "expand"
    } else {
        "resize"
    };
    Operation::start(name, move |monitor| {
        let path = disk.path();
        run(&disk, &options, monitor)
            .at_path(&path)
            .while_doing(if options.expand_only {
                "cannot expand"
            } else {
                "cannot resize"
            })
    })
}

/// The lowest size in bytes that does not cut off a partition: the end of the last one, with room for the second copy
/// of a GUID partition table.
///
/// # Errors
/// [`ErrorKind::NoSmallestSize`] if the disk has no readable partition table; what reading can fail with.
pub fn smallest_safe_size(disk: &VirtualDisk) -> Result<u64> {
    smallest_of(disk, partitions(disk)?.as_ref())
}

fn smallest_of(disk: &VirtualDisk, table: Option<&PartitionTable>) -> Result<u64> {
    table
        .and_then(PartitionTable::smallest_safe_size)
        .ok_or_else(|| {
            Error::new(
                ErrorKind::NoSmallestSize,
                "it has no partition table that says where its last partition ends",
            )
            .with_path(disk.path())
            .with_hint("give the size; --unsafe skips the check of partitions")
        })
}

fn partitions(disk: &VirtualDisk) -> Result<Option<PartitionTable>> {
    let info = disk.info();
    if !matches!(info.logical_sector_size, 512 | 4096) {
        return Ok(None);
    }
    let read = |offset, buf: &mut [u8]| disk.read_at(offset, buf);
    volume::partitions(&Medium::new(
        info.virtual_size,
        info.logical_sector_size,
        &read,
    )?)
}

fn run(disk: &VirtualDisk, options: &ResizeOptions, monitor: &Monitor) -> Result<ResizeReport> {
    let _reserved = disk.reserve()?;
    let before = disk.info();
    let old = before.virtual_size;
    let table = partitions(disk)?;
    let smallest = smallest_of(disk, table.as_ref());
    let size = match (options.size, &smallest) {
        (NewSize::Bytes(size), _) => size,
        (NewSize::Smallest, Ok(smallest)) if *smallest < old => *smallest,
        (NewSize::Smallest, Ok(_)) => {
            return Err(Error::new(
                ErrorKind::AlreadySmallest,
                format!("it has {old} bytes, and its partitions need all of them"),
            )
            .with_hint("make the partitions smaller first"));
        }
        (NewSize::Smallest, Err(e)) => return Err(e.duplicate()),
    };
    check_kind(before.format, before.disk_type, size, old, options)?;
    let sector = u64::from(before.logical_sector_size);
    if !size.is_multiple_of(sector) {
        return Err(Error::new(
            ErrorKind::InvalidSize,
            format!("{size} bytes are not a whole number of sectors of {sector}"),
        )
        .with_hint(format!(
            "the next sizes are {} and {}",
            size - size % sector,
            (size - size % sector).saturating_add(sector)
        )));
    }
    if let Ok(smallest) = &smallest
        && size < *smallest
        && size < old
        && !options.allow_unsafe
    {
        return Err(Error::new(
            ErrorKind::WouldTruncateData,
            format!("its partitions reach to {smallest} bytes, the new size is {size}"),
        )
        .with_hint(
            "make the partitions smaller first; --unsafe cuts them off, and what they hold there is lost",
        ));
    }
    let moved = table
        .as_ref()
        .filter(|_| options.fix_gpt && size != old)
        .and_then(|table| table.backup_gpt(size));
    let mut report = ResizeReport {
        size_before: old,
        size_after: size,
        smallest_safe_size: smallest.ok(),
        file_size: before.file_size,
        gpt_moved: moved.is_some(),
        gpt_cut_off: moved.is_none() && table.as_ref().is_some_and(|table| cuts_gpt(table, size)),
    };
    if options.dry_run {
        return Ok(report);
    }
    disk.with_chain(|chain| chain.check_writable(0))?;
    monitor.checkpoint()?;
    // Growing, the new place has to be there first; shrinking, the old place must not be needed any more.
    if let Some(moved) = moved.as_ref().filter(|_| size < old) {
        write_gpt(disk, moved)?;
    }
    disk.change_chain(|chain| {
        let (leaf, ancestors) = chain.split(0);
        leaf.image_mut().resize(size, &ancestors, &mut |done, all| {
            monitor.set(done, all.max(1));
            monitor.checkpoint()
        })
    })?;
    if let Some(moved) = moved.as_ref().filter(|_| size > old) {
        write_gpt(disk, moved)?;
    }
    report.file_size = disk.info().file_size;
    Ok(report)
}

/// True if the second copy of a GPT does not lie before this end of the disk as a whole; it ends with its header.
fn cuts_gpt(table: &PartitionTable, end: u64) -> bool {
    let Scheme::Gpt(gpt) = &table.scheme else {
        return false;
    };
    let header = gpt.backup_header();
    header.is_some_and(|header| header + u64::from(table.sector_size) > end)
}

/// No disk is made smaller than this, in bytes: Windows could not have made it.
const MIN_SIZE: u64 = 3 * MIB;

fn check_kind(
    format: Format,
    disk_type: DiskType,
    size: u64,
    old: u64,
    options: &ResizeOptions,
) -> Result<()> {
    let unable = |what: &str, hint: &str| {
        Err(Error::new(
            ErrorKind::InvalidType,
            format!(
                "a {} {} disk cannot {what}",
                disk_type.name(),
                format.name()
            ),
        )
        .with_hint(hint))
    };
    if options.expand_only && size < old {
        return Err(Error::new(
            ErrorKind::InvalidParameter,
            format!("it has {old} bytes already, the new size is {size}"),
        )
        .with_hint("'vhdkit resize' makes disks smaller"));
    }
    if format == Format::Vhdx && size < old && size < MIN_SIZE {
        return Err(Error::new(
            ErrorKind::InvalidSize,
            format!("{size} bytes are too few: Windows knows no disk of less than 3 MiB"),
        )
        .with_hint("give a larger size"));
    }
    match (format, disk_type) {
        (Format::Iso, _) => unable("be resized", "only disks that can be written can"),
        (Format::Vhd, DiskType::Differencing) => unable(
            "be resized",
            "merge it into its parent first, or convert it to VHDX",
        ),
        (_, DiskType::Differencing) if options.expand_only => unable(
            "be expanded",
            "'vhdkit resize' changes the size of differencing VHDX disks",
        ),
        (Format::Vhd, _) if size < old => unable("become smaller", "convert it to VHDX first"),
        (Format::Vhd, _) if size > vhd::MAX_SIZE => Err(Error::new(
            ErrorKind::InvalidSize,
            format!("a VHD disk has at most 2040 GiB, not {size} bytes"),
        )
        .with_hint("convert it to VHDX, which reaches to 64 TiB")),
        (Format::Vhdx, _) if size > vhdx::MAX_VIRTUAL_SIZE => Err(Error::new(
            ErrorKind::InvalidSize,
            format!("a VHDX disk has at most 64 TiB, not {size} bytes"),
        )
        .with_hint("give a smaller size")),
        _ => Ok(()),
    }
}

/// Writes the tables in their order.
fn write_gpt(disk: &VirtualDisk, moved: &GptMove) -> Result<()> {
    for step in &moved.steps {
        match step {
            Step::Write { offset, bytes } => disk.write_at(*offset, bytes)?,
            Step::Flush => disk.flush()?,
        }
    }
    disk.flush()
}
