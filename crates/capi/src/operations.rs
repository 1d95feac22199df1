//! CompactVirtualDisk, MergeVirtualDisk, ExpandVirtualDisk, ResizeVirtualDisk (contract, 2.12 to 2.15).

use std::sync::Arc;

use vhdkit::verbs::compact::{CompactMode, CompactOptions, compact};
use vhdkit::verbs::merge::{MergeOptions, merge};
use vhdkit::verbs::resize::{NewSize, ResizeOptions, resize};
use vhdkit::{OpenOptions, VirtualDisk};

use crate::access::{Access, Right};
use crate::codes::{ERROR_ACCESS_DENIED, ERROR_NOT_SUPPORTED};
use crate::constants::*;
use crate::disk::Reserved;
use crate::guard::{Answer, INVALID, read, require, require_flags, require_or};
use crate::handles;
use crate::overlapped::{guard_start, run};
use crate::types::{
    COMPACT_VIRTUAL_DISK_PARAMETERS, EXPAND_VIRTUAL_DISK_PARAMETERS, HANDLE,
    MERGE_VIRTUAL_DISK_PARAMETERS, OVERLAPPED, RESIZE_VIRTUAL_DISK_PARAMETERS,
};

/// The end of an operation of which only success or failure is told.
fn end<T>(reserved: Reserved) -> impl FnOnce(vhdkit::Result<T>) -> Answer + Send + 'static {
    move |result| {
        // Before anybody can see the end: the next operation may start then.
        drop(reserved);
        result?;
        Ok(())
    }
}

/// Shrinks the file of a dynamic or differencing disk, which is not attached or attached read-only.
///
/// NO_ZERO_SCAN: only what the tables call unused is given back. ERROR_NOT_SUPPORTED for NO_BLOCK_MOVES;
/// ERROR_VHD_INVALID_STATE if attached for writing; ERROR_VHD_INVALID_TYPE for a fixed VHD.
///
/// # Safety
/// Pointers are NULL or lead to what their types say; `overlapped` stays valid until the operation is over.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn CompactVirtualDisk(
    handle: HANDLE,
    flags: COMPACT_VIRTUAL_DISK_FLAG,
    parameters: *const COMPACT_VIRTUAL_DISK_PARAMETERS,
    overlapped: *mut OVERLAPPED,
) -> u32 {
    guard_start(handle, overlapped, || {
        require_flags(
            flags,
            COMPACT_VIRTUAL_DISK_FLAG_NO_ZERO_SCAN | COMPACT_VIRTUAL_DISK_FLAG_NO_BLOCK_MOVES,
        )?;
        // SAFETY: as this function's.
        if let Some(parameters) = unsafe { read(parameters) } {
            require(parameters.Version == COMPACT_VIRTUAL_DISK_VERSION_1)?;
            // SAFETY: the arm that Version selects, of plain numbers.
            require(unsafe { parameters.Anonymous.Version1.Reserved } == 0)?;
        }
        let handle = handles::disk(handle)?;
        handle.access.require(Right::Change)?;
        let no_moves = flags & COMPACT_VIRTUAL_DISK_FLAG_NO_BLOCK_MOVES != 0;
        require_or(!no_moves, ERROR_NOT_SUPPORTED)?;
        let disk = handle.disk()?;
        disk.require_unwritten()?;
        let reserved = disk.reserve()?;
        let options = CompactOptions {
            mode: if flags & COMPACT_VIRTUAL_DISK_FLAG_NO_ZERO_SCAN != 0 {
                CompactMode::Quick
            } else {
                CompactMode::Full
            },
            ..CompactOptions::default()
        };
        let target = disk.disk();
        run(
            &handle,
            overlapped,
            || compact(target, options),
            end(reserved),
        )
    })
}

/// Folds images of the chain into one behind them. Merged files stay as they are, and valid.
///
/// Version 1: the leaf and `MergeDepth` - 1 of its parents; the disk is not attached, and was opened with an RWDepth
/// greater than `MergeDepth` (else ERROR_ACCESS_DENIED). Version 2: any two depths of a handle of version 2, attached or
/// not; the parents are opened for writing as long as it takes.
///
/// ERROR_INVALID_PARAMETER for depths that the chain has not.
///
/// # Safety
/// As CompactVirtualDisk.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn MergeVirtualDisk(
    handle: HANDLE,
    flags: MERGE_VIRTUAL_DISK_FLAG,
    parameters: *const MERGE_VIRTUAL_DISK_PARAMETERS,
    overlapped: *mut OVERLAPPED,
) -> u32 {
    guard_start(handle, overlapped, || {
        require(flags == MERGE_VIRTUAL_DISK_FLAG_NONE)?;
        // SAFETY: as this function's.
        let (version, source, target) = unsafe { merge_depths(parameters) }?;
        let handle = handles::disk(handle)?;
        handle.access.require(Right::Change)?;
        let disk = handle.disk()?;
        let opened = handle.access.write_depth();
        let is_v1 = matches!(handle.access, Access::V1 { .. });
        if version == MERGE_VIRTUAL_DISK_VERSION_1 {
            require(target <= disk.disk().layers().len())?;
            require_or(!is_v1 || opened >= target, ERROR_ACCESS_DENIED)?;
            disk.require_detached()?;
        } else {
            require_or(!is_v1, ERROR_ACCESS_DENIED)?;
            require(target <= disk.disk().layers().len())?;
        }
        let reserved = disk.reserve()?;
        let options = MergeOptions {
            source_depth: source,
            target_depth: target,
            delete_merged: false,
            open: OpenOptions::new().record_native_paths(true),
            dry_run: false,
        };
        let merged = disk.disk();
        let deeper = Deeper::new(merged.clone(), disk.opening().options(), opened, target)?;
        let end = end(reserved);
        run(
            &handle,
            overlapped,
            || merge(merged, options),
            move |result| {
                let restored = deeper.end();
                end(result.and_then(|report| restored.map(|()| report)))
            },
        )
    })
}

/// Parents that are open for writing as long as this lives.
struct Deeper {
    disk: Arc<VirtualDisk>,
    open: OpenOptions,
    /// How many images are to be writable afterwards; `None` if nothing was changed or it was put right.
    before: Option<usize>,
}

impl Deeper {
    fn new(
        disk: Arc<VirtualDisk>,
        open: OpenOptions,
        opened: usize,
        wanted: usize,
    ) -> Answer<Self> {
        let before = (opened < wanted).then_some(opened);
        if before.is_some() {
            open.set_write_depth(&disk, wanted)?;
        }
        Ok(Self { disk, open, before })
    }

    fn end(mut self) -> vhdkit::Result<()> {
        self.restore()
    }

    fn restore(&mut self) -> vhdkit::Result<()> {
        match self.before.take() {
            Some(before) => self.open.set_write_depth(&self.disk, before),
            None => Ok(()),
        }
    }
}

impl Drop for Deeper {
    fn drop(&mut self) {
        // Only if the operation did not start, whose error is told instead.
        let _ = self.restore();
    }
}

/// Version, first merged depth and target depth.
///
/// # Safety
/// `parameters` is NULL or leads to a structure as long as its version says.
unsafe fn merge_depths(
    parameters: *const MERGE_VIRTUAL_DISK_PARAMETERS,
) -> Answer<(u32, usize, usize)> {
    require(!parameters.is_null())?;
    // SAFETY: every version has the member Version; the other reads are of the arm that it selects.
    let (version, source, target) = unsafe {
        match read(&raw const (*parameters).Version) {
            Some(MERGE_VIRTUAL_DISK_VERSION_1) => {
                let arm = read(&raw const (*parameters).Anonymous.Version1).ok_or(INVALID)?;
                let target = arm.MergeDepth.checked_add(1).ok_or(INVALID)?;
                (MERGE_VIRTUAL_DISK_VERSION_1, 1, target)
            }
            Some(MERGE_VIRTUAL_DISK_VERSION_2) => {
                let arm = read(&raw const (*parameters).Anonymous.Version2).ok_or(INVALID)?;
                let (source, target) = (arm.MergeSourceDepth, arm.MergeTargetDepth);
                (MERGE_VIRTUAL_DISK_VERSION_2, source, target)
            }
            _ => return Err(INVALID),
        }
    };
    require(source >= 1 && target > source)?;
    Ok((version, source as usize, target as usize))
}

/// Makes a fixed or dynamic disk, which is not attached, larger. Children lose their parent.
///
/// ERROR_INVALID_PARAMETER unless the size is a whole number of sectors and larger; ERROR_NOT_SUPPORTED for
/// NOTIFY_CHANGE; ERROR_VHD_INVALID_TYPE for a differencing disk; ERROR_VHD_INVALID_SIZE beyond the format's limit;
/// ERROR_VHD_INVALID_STATE if attached.
///
/// # Safety
/// As CompactVirtualDisk.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ExpandVirtualDisk(
    handle: HANDLE,
    flags: EXPAND_VIRTUAL_DISK_FLAG,
    parameters: *const EXPAND_VIRTUAL_DISK_PARAMETERS,
    overlapped: *mut OVERLAPPED,
) -> u32 {
    guard_start(handle, overlapped, || {
        require_flags(flags, EXPAND_VIRTUAL_DISK_FLAG_NOTIFY_CHANGE)?;
        // SAFETY: as this function's.
        let parameters = unsafe { read(parameters) }.ok_or(INVALID)?;
        require(parameters.Version == EXPAND_VIRTUAL_DISK_VERSION_1)?;
        // SAFETY: the arm that Version selects, of plain numbers.
        let size = unsafe { parameters.Anonymous.Version1.NewSize };
        let options = ResizeOptions {
            size: NewSize::Bytes(size),
            allow_unsafe: false,
            fix_gpt: false,
            expand_only: true,
            dry_run: false,
        };
        require(size != 0)?;
        change_size(handle, Right::Change, options, overlapped, || {
            require_or(flags == EXPAND_VIRTUAL_DISK_FLAG_NONE, ERROR_NOT_SUPPORTED)
        })
    })
}

/// Makes a disk, which is not attached, larger or smaller. Children lose their parent.
///
/// ERROR_VHD_RESIZE_WOULD_TRUNCATE_DATA if partitions would be cut off, unless ALLOW_UNSAFE_VIRTUAL_SIZE;
/// RESIZE_TO_SMALLEST_SAFE_VIRTUAL_SIZE takes a `NewSize` of 0, and fails with
/// ERROR_VHD_COULD_NOT_COMPUTE_MINIMUM_VIRTUAL_SIZE or ERROR_VHD_ALREADY_AT_OR_BELOW_MINIMUM_VIRTUAL_SIZE.
/// ERROR_INVALID_PARAMETER unless the size is a whole number of sectors; ERROR_VHD_INVALID_TYPE for a differencing VHD
/// and for making a VHD smaller; otherwise as ExpandVirtualDisk.
///
/// # Safety
/// As CompactVirtualDisk.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ResizeVirtualDisk(
    handle: HANDLE,
    flags: RESIZE_VIRTUAL_DISK_FLAG,
    parameters: *const RESIZE_VIRTUAL_DISK_PARAMETERS,
    overlapped: *mut OVERLAPPED,
) -> u32 {
    guard_start(handle, overlapped, || {
        // The two flags contradict each other.
        require(flags <= RESIZE_VIRTUAL_DISK_FLAG_RESIZE_TO_SMALLEST_SAFE_VIRTUAL_SIZE)?;
        // SAFETY: as this function's.
        let parameters = unsafe { read(parameters) }.ok_or(INVALID)?;
        require(parameters.Version == RESIZE_VIRTUAL_DISK_VERSION_1)?;
        // SAFETY: the arm that Version selects, of plain numbers.
        let size = unsafe { parameters.Anonymous.Version1.NewSize };
        let smallest = flags == RESIZE_VIRTUAL_DISK_FLAG_RESIZE_TO_SMALLEST_SAFE_VIRTUAL_SIZE;
        require(smallest == (size == 0))?;
        let options = ResizeOptions {
            size: if smallest {
                NewSize::Smallest
            } else {
                NewSize::Bytes(size)
            },
            allow_unsafe: flags == RESIZE_VIRTUAL_DISK_FLAG_ALLOW_UNSAFE_VIRTUAL_SIZE,
            fix_gpt: false,
            expand_only: false,
            dry_run: false,
        };
        change_size(handle, Right::ChangeV2, options, overlapped, || Ok(()))
    })
}

fn change_size(
    handle: HANDLE,
    right: Right,
    options: ResizeOptions,
    overlapped: *mut OVERLAPPED,
    supported: impl FnOnce() -> Answer,
) -> Answer {
    let handle = handles::disk(handle)?;
    handle.access.require(right)?;
    supported()?;
    let disk = handle.disk()?;
    let target = disk.disk();
    let info = target.info();
    if let NewSize::Bytes(size) = options.size {
        require(size.is_multiple_of(info.logical_sector_size.into()))?;
        require(!options.expand_only || size > info.virtual_size)?;
    }
    disk.require_detached()?;
    let reserved = disk.reserve()?;
    run(
        &handle,
        overlapped,
        || resize(target, options),
        end(reserved),
    )
}
