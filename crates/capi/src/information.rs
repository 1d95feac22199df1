//! GetVirtualDiskInformation: fifteen kinds of questions (contract, 2.8 and 3.7).

use vhdkit::image::{DiskType, Format, ImageInfo, ParentReference};
use vhdkit::verbs::information::{
    ParentLocation, change_tracking_files, fragmentation, is_4k_aligned, parent_location,
};
use vhdkit::verbs::resize::smallest_safe_size;

use crate::access::Right;
use crate::codes::*;
use crate::constants::*;
use crate::disk::Disk;
use crate::guard::{Answer, Code, INVALID, guard, read, require, write};
use crate::handles;
use crate::storage_type;
use crate::strings::{length, wide, wide_path};
use crate::types::{BOOL, GET_VIRTUAL_DISK_INFO, GUID, HANDLE};

/// Where the answers start in the structure: behind `Version` and padding.
const ARM: u32 = 8;
/// 2000-01-01 00:00 UTC in seconds since 1970: where a VHD's time stamps start.
const VHD_EPOCH: i64 = 946_684_800;

/// Tells one thing of a disk. Only the arm that `Version` selects is written.
///
/// ERROR_INSUFFICIENT_BUFFER with the size needed in `size`; ERROR_VHD_INVALID_TYPE for a question that does not fit
/// the disk (a parent's, for one without; an identifier, for an ISO); ERROR_VHD_COULD_NOT_COMPUTE_MINIMUM_VIRTUAL_SIZE;
/// ERROR_NOT_SUPPORTED for the state of change tracking if Windows has tracked the disk's changes (in `.rct` and `.mrt`
/// files beside it); else it is off.
///
/// # Safety
/// Pointers are NULL or lead to what their types say, `info` to `size` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn GetVirtualDiskInformation(
    handle: HANDLE,
    size: *mut u32,
    info: *mut GET_VIRTUAL_DISK_INFO,
    size_used: *mut u32,
) -> u32 {
    guard(|| {
        // SAFETY: as this function's.
        let room = unsafe { read(size) }.ok_or(INVALID)?;
        require(!info.is_null())?;
        if room < ARM {
            // Too short for a question.
            // SAFETY: not NULL, and the caller's to be written.
            unsafe { write(size, length(size_of::<GET_VIRTUAL_DISK_INFO>())?) };
            return Err(Code(ERROR_INSUFFICIENT_BUFFER));
        }
        // SAFETY: `info` has at least 8 bytes.
        let kind = unsafe { read(&raw const (*info).Version) }.ok_or(INVALID)?;
        require(matches!(
            kind,
            GET_VIRTUAL_DISK_INFO_SIZE..=GET_VIRTUAL_DISK_INFO_CHANGE_TRACKING_STATE
        ))?;
        let handle = handles::disk(handle)?;
        handle.access.require(Right::GetInfo)?;
        let arm = answer(handle.disk()?, kind)?;
        let needed = ARM + length(arm.len())?;
        if room < needed {
            // SAFETY: not NULL, and the caller's to be written.
            unsafe { write(size, needed) };
            return Err(Code(ERROR_INSUFFICIENT_BUFFER));
        }
        let target = info.cast::<u8>();
        for (i, byte) in arm.iter().enumerate() {
            // SAFETY: within the `room` bytes of the caller's buffer.
            unsafe { write(target.add(ARM as usize + i), *byte) };
        }
        // SAFETY: NULL, or the caller's to be written.
        unsafe { write(size_used, needed) };
        Ok(())
    })
}

/// The bytes of the arm.
fn answer(disk: &Disk, kind: u32) -> Answer<Vec<u8>> {
    let target = disk.disk();
    let info = target.info();
    let number = |value: u32| Ok(value.to_le_bytes().to_vec());
    let flag = |value: bool| number(BOOL::from(value).cast_unsigned());
    match kind {
        GET_VIRTUAL_DISK_INFO_SIZE => Ok(sizes(&info)),
        GET_VIRTUAL_DISK_INFO_IDENTIFIER => identifier(match info.format {
            // In a VHDX this is what children record (contract, 7 row 9).
            Format::Vhdx => info.link_identifier,
            _ => info.identifier,
        }),
        GET_VIRTUAL_DISK_INFO_PARENT_LOCATION => {
            let found = parent_location(&target, &vhdkit::disk::ParentMap::new());
            Ok(location(&found.ok_or(Code(ERROR_VHD_INVALID_TYPE))?))
        }
        GET_VIRTUAL_DISK_INFO_PARENT_IDENTIFIER => {
            identifier(parent(&info)?.identifiers.first().copied())
        }
        GET_VIRTUAL_DISK_INFO_PARENT_TIMESTAMP => {
            let modified = parent(&info)?.modified.unwrap_or(VHD_EPOCH);
            number(u32::try_from(modified - VHD_EPOCH).unwrap_or(0))
        }
        GET_VIRTUAL_DISK_INFO_VIRTUAL_STORAGE_TYPE => {
            let kind = storage_type::of(info.format);
            Ok([&kind.DeviceId.to_le_bytes()[..], &bytes_of(kind.VendorId)].concat())
        }
        GET_VIRTUAL_DISK_INFO_PROVIDER_SUBTYPE => number(match info.disk_type {
            DiskType::Fixed => 2,
            DiskType::Dynamic => 3,
            DiskType::Differencing => 4,
        }),
        GET_VIRTUAL_DISK_INFO_IS_4K_ALIGNED => flag(is_4k_aligned(&target)?),
        GET_VIRTUAL_DISK_INFO_PHYSICAL_DISK => host_disk(&target),
        GET_VIRTUAL_DISK_INFO_VHD_PHYSICAL_SECTOR_SIZE => number(info.physical_sector_size),
        GET_VIRTUAL_DISK_INFO_SMALLEST_SAFE_VIRTUAL_SIZE => {
            Ok(smallest_safe_size(&target)?.to_le_bytes().to_vec())
        }
        GET_VIRTUAL_DISK_INFO_FRAGMENTATION => number(fragmentation(&target)?),
        GET_VIRTUAL_DISK_INFO_IS_LOADED => flag(disk.attachment().is_some()),
        GET_VIRTUAL_DISK_INFO_VIRTUAL_DISK_ID => identifier(info.identifier),
        // Not enabled, no newer changes, and an empty string.
        GET_VIRTUAL_DISK_INFO_CHANGE_TRACKING_STATE
            if change_tracking_files(&target).is_empty() =>
        {
            Ok(vec![0; 4 + 4 + 2])
        }
        _ => Err(Code(ERROR_NOT_SUPPORTED)),
    }
}

fn sizes(info: &ImageInfo) -> Vec<u8> {
    // A fixed VHD has no blocks.
    let block_size = info.block_size.unwrap_or(0);
    let mut bytes = info.virtual_size.to_le_bytes().to_vec();
    bytes.extend(info.file_size.to_le_bytes());
    bytes.extend(u32::try_from(block_size).unwrap_or(0).to_le_bytes());
    bytes.extend(info.logical_sector_size.to_le_bytes());
    bytes
}

fn parent(info: &ImageInfo) -> Answer<&ParentReference> {
    info.parent.as_ref().ok_or(Code(ERROR_VHD_INVALID_TYPE))
}

fn identifier(id: Option<uuid::Uuid>) -> Answer<Vec<u8>> {
    let id = id.ok_or(Code(ERROR_VHD_INVALID_TYPE))?;
    Ok(bytes_of(id.into()).to_vec())
}

/// A GUID as it is in memory.
fn bytes_of(id: GUID) -> [u8; 16] {
    id.uuid().to_bytes_le()
}

/// One path, or all candidates and an empty string.
fn location(found: &ParentLocation) -> Vec<u8> {
    let (resolved, units) = match found {
        ParentLocation::Resolved(path) => {
            let path = std::path::absolute(path).unwrap_or_else(|_| path.clone());
            (1_u32, wide_path(&path))
        }
        ParentLocation::Candidates(paths) => {
            let mut units: Vec<u16> = paths.iter().flat_map(|path| wide(&path.path)).collect();
            units.push(0);
            (0, units)
        }
    };
    let mut bytes = resolved.to_le_bytes().to_vec();
    bytes.extend(units.into_iter().flat_map(u16::to_le_bytes));
    bytes
}

/// The disk that the leaf's file lies on.
fn host_disk(disk: &vhdkit::VirtualDisk) -> Answer<Vec<u8>> {
    let layers = disk.layers();
    let file = layers.first().and_then(|leaf| leaf.storage.as_file());
    let (logical, physical, is_remote) = match file {
        Some(file) => {
            let host = file.host_disk()?;
            (
                host.logical_sector_size,
                host.physical_sector_size,
                host.is_remote,
            )
        }
        None => (512, 4096, false),
    };
    let numbers = [logical, physical, u32::from(is_remote)];
    Ok(numbers.into_iter().flat_map(u32::to_le_bytes).collect())
}
