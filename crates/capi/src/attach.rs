//! AttachVirtualDisk, DetachVirtualDisk and the device paths (contract, 2.3 to 2.6).
//!
//! Attached without a local host, a disk has no device: its handles are for ReadFile and WriteFile. Otherwise it becomes a
//! device of the system (see `device`).

use vhdkit::image::{DiskType, Format};

use crate::access::Right;
use crate::codes::*;
use crate::constants::*;
use crate::device;
use crate::disk::{Attachment, Disk};
use crate::guard::{Answer, Code, INVALID, guard, read, require, require_flags, require_or, write};
use crate::handles;
use crate::overlapped::{guard_start, run_now};
use crate::strings::{length, wide_path};
use crate::types::{ATTACH_VIRTUAL_DISK_PARAMETERS, HANDLE, OVERLAPPED, PWSTR};

/// All flags that exist.
const KNOWN_FLAGS: u32 = 0x7FF;

/// Flags about devices that are refused.
const REFUSED_FLAGS: u32 = ATTACH_VIRTUAL_DISK_FLAG_NON_PNP
    | ATTACH_VIRTUAL_DISK_FLAG_SINGLE_PARTITION
    | ATTACH_VIRTUAL_DISK_FLAG_REGISTER_VOLUME
    | ATTACH_VIRTUAL_DISK_FLAG_AT_BOOT;

/// Attaches a disk.
///
/// | flag | here |
/// |---|---|
/// | none | a device of the system |
/// | NO_LOCAL_HOST | no device: the handle is for ReadFile and WriteFile |
/// | READ_ONLY | honoured |
/// | RESTRICTED_RANGE | honoured with NO_LOCAL_HOST |
/// | PERMANENT_LIFETIME | honoured; with NO_LOCAL_HOST until the process ends |
/// | NO_DRIVE_LETTER, NO_SECURITY_DESCRIPTOR, BYPASS_DEFAULT_ENCRYPTION_POLICY | so it always is |
/// | others | ERROR_NOT_SUPPORTED |
///
/// ERROR_SHARING_VIOLATION if it is attached; ERROR_VHD_PARENT_VHD_NOT_FOUND if parents are missing because the disk
/// was opened without; ERROR_NOT_SUPPORTED for an ISO with NO_LOCAL_HOST, and for a device if there is no program that
/// serves it; ERROR_PRIVILEGE_NOT_HELD for a device without root.
///
/// # Safety
/// Pointers are NULL or lead to what their types say, `parameters` to as much as its version has.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn AttachVirtualDisk(
    handle: HANDLE,
    _security_descriptor: *mut std::ffi::c_void,
    flags: ATTACH_VIRTUAL_DISK_FLAG,
    provider_specific_flags: u32,
    parameters: *const ATTACH_VIRTUAL_DISK_PARAMETERS,
    overlapped: *mut OVERLAPPED,
) -> u32 {
    guard_start(handle, overlapped, || {
        require_flags(flags, KNOWN_FLAGS)?;
        require(provider_specific_flags == 0)?;
        // SAFETY: as this function's.
        let (offset, length) = unsafe { window(parameters) }?;
        let has = |flag| flags & flag != 0;
        let restricted = has(ATTACH_VIRTUAL_DISK_FLAG_RESTRICTED_RANGE);
        require(restricted == (length != 0) && (restricted || offset == 0))?;
        let handle = handles::disk(handle)?;
        let read_only = has(ATTACH_VIRTUAL_DISK_FLAG_READ_ONLY);
        handle.access.require(if read_only {
            Right::AttachReadOnly
        } else {
            Right::AttachWritable
        })?;
        let disk = handle.disk()?;
        let info = disk.disk().info();
        let end = offset.checked_add(length).ok_or(INVALID)?;
        let sector = u64::from(info.logical_sector_size);
        require(end <= info.virtual_size)?;
        require(offset.is_multiple_of(sector) && length.is_multiple_of(sector))?;
        let is_device = !has(ATTACH_VIRTUAL_DISK_FLAG_NO_LOCAL_HOST);
        let is_supported = if is_device {
            !restricted
        } else {
            info.format != Format::Iso
        };
        require_or(is_supported && !has(REFUSED_FLAGS), ERROR_NOT_SUPPORTED)?;
        require_or(disk.attachment().is_none(), ERROR_SHARING_VIOLATION)?;
        require_whole(disk)?;
        let permanent = has(ATTACH_VIRTUAL_DISK_FLAG_PERMANENT_LIFETIME);
        let depends = |flag, dependent: u32| if has(flag) { dependent } else { 0 };
        let attachment = Attachment {
            device: None,
            read_only,
            permanent,
            window: restricted.then_some(offset..end),
            dependent_flags: depends(
                ATTACH_VIRTUAL_DISK_FLAG_NO_LOCAL_HOST,
                DEPENDENT_DISK_FLAG_NO_HOST_DISK,
            ) | depends(
                ATTACH_VIRTUAL_DISK_FLAG_READ_ONLY,
                DEPENDENT_DISK_FLAG_READ_ONLY,
            ) | depends(
                ATTACH_VIRTUAL_DISK_FLAG_NO_DRIVE_LETTER,
                DEPENDENT_DISK_FLAG_NO_DRIVE_LETTER,
            ) | depends(
                ATTACH_VIRTUAL_DISK_FLAG_PERMANENT_LIFETIME,
                DEPENDENT_DISK_FLAG_PERMANENT_LIFETIME,
            ),
        };
        run_now(&handle, overlapped, || {
            let _reserved = disk.reserve()?;
            if is_device {
                disk.attach_device(attachment)
            } else {
                disk.attach(attachment)
            }
        })
    })
}

/// Offset and length of version 2. Version 1 has nothing that may be read: its place moved between headers.
///
/// # Safety
/// `parameters` is NULL or leads to a structure as long as its version says.
unsafe fn window(parameters: *const ATTACH_VIRTUAL_DISK_PARAMETERS) -> Answer<(u64, u64)> {
    if parameters.is_null() {
        return Ok((0, 0));
    }
    // SAFETY: every version has the member Version; the other read is of the arm that it selects.
    unsafe {
        match read(&raw const (*parameters).Version) {
            Some(ATTACH_VIRTUAL_DISK_VERSION_1) => Ok((0, 0)),
            Some(ATTACH_VIRTUAL_DISK_VERSION_2) => {
                let arm = read(&raw const (*parameters).Anonymous.Version2).ok_or(INVALID)?;
                Ok((arm.RestrictedOffset, arm.RestrictedLength))
            }
            _ => Err(INVALID),
        }
    }
}

/// A differencing disk without its parents would show zeros in place of their bytes.
fn require_whole(disk: &Disk) -> Answer {
    let layers = disk.disk().layers();
    let whole = layers
        .last()
        .is_some_and(|base| base.info.disk_type != DiskType::Differencing);
    require_or(whole, ERROR_VHD_PARENT_VHD_NOT_FOUND)
}

/// Ends an attachment, whichever handle made it. What was written is durable then.
///
/// ERROR_VHD_INVALID_STATE if the disk is not attached, ERROR_BUSY while an operation is under way or the device is in use.
#[unsafe(no_mangle)]
pub extern "C" fn DetachVirtualDisk(
    handle: HANDLE,
    flags: DETACH_VIRTUAL_DISK_FLAG,
    provider_specific_flags: u32,
) -> u32 {
    guard(|| {
        require(flags == DETACH_VIRTUAL_DISK_FLAG_NONE && provider_specific_flags == 0)?;
        let handle = handles::disk(handle)?;
        handle.access.require(Right::Detach)?;
        let disk = handle.disk()?;
        let _reserved = disk.reserve_attached()?;
        disk.detach()
    })
}

/// The device path of an attached disk, `/dev/loop0`, with a zero. ERROR_DEV_NOT_EXIST if it has no device;
/// ERROR_INSUFFICIENT_BUFFER with the bytes needed in `size`.
///
/// # Safety
/// Pointers are NULL or lead to what their types say, `path` to `size` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn GetVirtualDiskPhysicalPath(
    handle: HANDLE,
    size: *mut u32,
    path: PWSTR,
) -> u32 {
    guard(|| {
        // SAFETY: as this function's.
        let given = unsafe { read(size) }.ok_or(INVALID)?;
        require(!path.is_null() || given == 0)?;
        let handle = handles::disk(handle)?;
        handle.access.require(Right::GetInfo)?;
        let attachment = handle.disk()?.attachment();
        let device = attachment
            .and_then(|attachment| attachment.device)
            .ok_or(Code(ERROR_DEV_NOT_EXIST))?;
        // SAFETY: as this function's.
        unsafe { hand_out(&wide_path(device.node()), size, given, path) }
    })
}

/// The device paths of all attached disks of all processes, each with a zero and a further zero at the end.
/// ERROR_INSUFFICIENT_BUFFER with the bytes needed in `size`; disks come and go, so that the next call may need more.
///
/// # Safety
/// Pointers are NULL or lead to what their types say, `paths` to `size` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn GetAllAttachedVirtualDiskPhysicalPaths(
    size: *mut u32,
    paths: PWSTR,
) -> u32 {
    guard(|| {
        // SAFETY: as this function's.
        let given = unsafe { read(size) }.ok_or(INVALID)?;
        require(!paths.is_null() || given == 0)?;
        let devices = device::all()?;
        let mut list: Vec<u16> = devices.iter().flat_map(|path| wide_path(path)).collect();
        if list.is_empty() {
            // An empty list ends with as many zeros as fit.
            list.resize(((given / 2).min(2)) as usize, 0);
        } else {
            list.push(0);
        }
        // SAFETY: as this function's.
        unsafe { hand_out(&list, size, given, paths) }
    })
}

/// Writes text of which `size` says the length in bytes, if that is not more than was `given`.
///
/// # Safety
/// `size` may be written, `to` has room for `given` bytes.
unsafe fn hand_out(text: &[u16], size: *mut u32, given: u32, to: PWSTR) -> Answer {
    let needed = length(text.len() * 2)?;
    // SAFETY: as this function's.
    unsafe { write(size, needed) };
    require_or(needed <= given, ERROR_INSUFFICIENT_BUFFER)?;
    for (i, unit) in text.iter().enumerate() {
        // SAFETY: within the `given` bytes of the caller's buffer.
        unsafe { write(to.add(i), *unit) };
    }
    Ok(())
}
