//! Reading and writing an attached disk through its handle (contract, 2.3: NO_LOCAL_HOST).

use crate::access::Right;
use crate::codes::*;
use crate::constants::*;
use crate::disk::Disk;
use crate::guard::{Answer, Code, require, require_or};
use crate::handles;
use crate::types::{HANDLE, OVERLAPPED};

/// What to do with which memory.
#[derive(Clone, Copy)]
pub(crate) enum Transfer {
    /// Fill it from the disk.
    Read(*mut u8),
    /// Write it to the disk.
    Write(*const u8),
}

/// Moves `length` bytes at the offset that the OVERLAPPED has. The number of bytes moved.
///
/// ERROR_INVALID_PARAMETER without an OVERLAPPED, for NULL, and for what is not a whole number of sectors;
/// ERROR_ACCESS_DENIED for handles that only ask, and for writing through those that only read;
/// ERROR_NOT_READY unless attached; ERROR_HANDLE_EOF past the end; ERROR_WRITE_PROTECT if attached read-only.
///
/// # Safety
/// The memory is `length` bytes long; the OVERLAPPED is NULL or valid.
pub(crate) unsafe fn transfer(
    handle: HANDLE,
    transfer: Transfer,
    length: u32,
    overlapped: *mut OVERLAPPED,
) -> Answer<u32> {
    let is_null = match transfer {
        Transfer::Read(memory) => memory.is_null(),
        Transfer::Write(memory) => memory.is_null(),
    };
    require(!overlapped.is_null() && overlapped.is_aligned() && (!is_null || length == 0))?;
    // SAFETY: not NULL, aligned, and valid by this function's contract.
    let place = unsafe { (&raw const (*overlapped).Anonymous.Anonymous).read() };
    let offset = u64::from(place.OffsetHigh) << 32 | u64::from(place.Offset);
    let handle = handles::disk(handle)?;
    handle.access.require(match transfer {
        Transfer::Read(_) => Right::ReadBytes,
        Transfer::Write(_) => Right::WriteBytes,
    })?;
    let disk = handle.disk()?;
    let bytes = length as usize;
    handle.operations.inline(overlapped, || {
        let offset = locate(disk, offset, length, matches!(transfer, Transfer::Write(_)))?;
        if length == 0 {
            return Ok(0);
        }
        let target = disk.disk();
        match transfer {
            Transfer::Read(memory) => {
                // SAFETY: not NULL and of this length by this function's contract. Nobody else may use the memory of
                // a read while it is under way.
                let memory = unsafe { std::slice::from_raw_parts_mut(memory, bytes) };
                target.read_at(offset, memory)?;
            }
            Transfer::Write(memory) => {
                // SAFETY: not NULL and of this length by this function's contract.
                let memory = unsafe { std::slice::from_raw_parts(memory, bytes) };
                target.write_at(offset, memory)?;
                let unhardened =
                    OPEN_VIRTUAL_DISK_FLAG_CACHED_IO | OPEN_VIRTUAL_DISK_FLAG_NO_WRITE_HARDENING;
                if disk.opening().flags & unhardened == 0 {
                    target.flush()?;
                }
            }
        }
        Ok(length)
    })
}

/// The place on the disk of a place in the attached window.
fn locate(disk: &Disk, offset: u64, length: u32, write: bool) -> Answer<u64> {
    let attachment = disk.attachment().filter(|a| a.device.is_none());
    let attachment = attachment.ok_or(Code(ERROR_NOT_READY))?;
    let target = disk.disk();
    let sector = u64::from(target.info().logical_sector_size);
    require(offset.is_multiple_of(sector) && u64::from(length).is_multiple_of(sector))?;
    let window = attachment.window.unwrap_or(0..target.virtual_size());
    let end = offset.checked_add(u64::from(length));
    require_or(
        end.is_some_and(|end| end <= window.end - window.start),
        ERROR_HANDLE_EOF,
    )?;
    require_or(!write || !attachment.read_only, ERROR_WRITE_PROTECT)?;
    Ok(window.start + offset)
}

/// What was written is durable when this returns, unless the disk was opened with NO_WRITE_HARDENING.
pub(crate) fn flush(handle: HANDLE) -> Answer {
    let handle = handles::disk(handle)?;
    let disk = handle.disk()?;
    if disk.opening().flags & OPEN_VIRTUAL_DISK_FLAG_NO_WRITE_HARDENING == 0 {
        disk.disk().flush()?;
    }
    Ok(())
}
