//! MirrorVirtualDisk and BreakMirrorVirtualDisk (contract, 2.16 and P-40 to P-45).

use vhdkit::image::{CreateParameters, DiskType, Format, ImageInfo};
use vhdkit::verbs::mirror::{MirrorOptions, mirror};

use crate::access::Right;
use crate::codes::*;
use crate::constants::*;
use crate::guard::{Answer, INVALID, guard, read, require, require_flags, require_or};
use crate::handles;
use crate::overlapped::{guard_start, run};
use crate::strings::full_path;
use crate::types::{HANDLE, MIRROR_VIRTUAL_DISK_PARAMETERS, OVERLAPPED};

/// All flags that exist.
const KNOWN_FLAGS: u32 = 0xF;

/// Copies a disk that may be in use, and keeps the copy in step: pending for good, equal values say that both are the
/// same. It ends when it is cancelled, broken, or fails.
///
/// The copy has the disk's format and no parent: of a differencing disk it is dynamic, with the content of its chain.
/// ERROR_FILE_EXISTS if there is a file; with EXISTING_FILE, ERROR_FILE_NOT_FOUND if there is none.
/// ERROR_NOT_SUPPORTED for the other flags.
///
/// # Safety
/// Pointers are NULL or lead to what their types say; `overlapped` stays valid until the operation is over.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn MirrorVirtualDisk(
    handle: HANDLE,
    flags: MIRROR_VIRTUAL_DISK_FLAG,
    parameters: *const MIRROR_VIRTUAL_DISK_PARAMETERS,
    overlapped: *mut OVERLAPPED,
) -> u32 {
    guard_start(handle, overlapped, || {
        require_flags(flags, KNOWN_FLAGS)?;
        // SAFETY: as this function's.
        let parameters = unsafe { read(parameters) }.ok_or(INVALID)?;
        require(parameters.Version == MIRROR_VIRTUAL_DISK_VERSION_1)?;
        // SAFETY: the arm that Version selects; its string ends with a zero.
        let target = unsafe { full_path(parameters.Anonymous.Version1.MirrorVirtualDiskPath) }?;
        // Without it nobody could see or end it (P-44).
        require(!overlapped.is_null())?;
        let handle = handles::disk(handle)?;
        handle.access.require(Right::ChangeV2)?;
        let existing = flags == MIRROR_VIRTUAL_DISK_FLAG_EXISTING_FILE;
        require_or(
            existing || flags == MIRROR_VIRTUAL_DISK_FLAG_NONE,
            ERROR_NOT_SUPPORTED,
        )?;
        let exists = target.symlink_metadata().is_ok();
        require_or(!existing || exists, ERROR_FILE_NOT_FOUND)?;
        require_or(existing || !exists, ERROR_FILE_EXISTS)?;
        let disk = handle.disk()?;
        let reserved = disk.reserve()?;
        let source = disk.disk();
        let options = MirrorOptions {
            target,
            existing,
            parameters: like(&source.info()),
        };
        run(
            &handle,
            overlapped,
            || mirror(source, options),
            move |result| {
                drop(reserved);
                result?;
                Ok(())
            },
        )
    })
}

/// A new disk like another, without its parent.
fn like(info: &ImageInfo) -> CreateParameters {
    let disk_type = match info.disk_type {
        DiskType::Differencing => DiskType::Dynamic,
        kind => kind,
    };
    CreateParameters {
        block_size: info
            .block_size
            .filter(|_| disk_type != DiskType::Fixed || info.format == Format::Vhdx),
        physical_sector_size: (info.format == Format::Vhdx).then_some(info.physical_sector_size),
        // It is to become the same disk in another file.
        identifier: info.identifier,
        ..CreateParameters::new(info.format, disk_type, 0)
    }
}

/// Ends a mirror: the disk of this handle goes on with the copy. The mirror's operation then ends with success.
///
/// ERROR_VHD_INVALID_STATE if the disk is not mirrored, or not completely yet; a mirror goes on then.
#[unsafe(no_mangle)]
pub extern "C" fn BreakMirrorVirtualDisk(handle: HANDLE) -> u32 {
    guard(|| -> Answer {
        let handle = handles::disk(handle)?;
        handle.access.require(Right::ChangeV2)?;
        handle.disk()?.break_mirror()
    })
}
