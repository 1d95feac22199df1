//! RawSCSIVirtualDisk (contract, 2.20).
//!
//! The target itself belongs to the library; [`execute`] is where it is called.

use vhdkit::scsi::{Command, Data, Direction, Sense, Status};

use crate::access::Right;
use crate::codes::{ERROR_NOT_SUPPORTED, ERROR_VHD_INVALID_STATE};
use crate::constants::*;
use crate::disk::Disk;
use crate::guard::{INVALID, guard, read, require, require_or, write};
use crate::handles;
use crate::types::{
    HANDLE, RAW_SCSI_VIRTUAL_DISK_PARAMETERS, RAW_SCSI_VIRTUAL_DISK_PARAMETERS_0_0,
    RAW_SCSI_VIRTUAL_DISK_RESPONSE, RAW_SCSI_VIRTUAL_DISK_RESPONSE_0_0,
};

/// Longest command in bytes.
const MAX_CDB: u8 = 16;

/// Sends one command to the disk. ERROR_SUCCESS says that it arrived; what became of it is in the response.
///
/// ERROR_NOT_SUPPORTED for RSVD handles, ERROR_VHD_INVALID_STATE while the disk is attached as a device: that takes commands.
///
/// # Safety
/// Pointers are NULL or lead to what their types say, those of the request to as many bytes as it says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn RawSCSIVirtualDisk(
    handle: HANDLE,
    parameters: *const RAW_SCSI_VIRTUAL_DISK_PARAMETERS,
    flags: RAW_SCSI_VIRTUAL_DISK_FLAG,
    response: *mut RAW_SCSI_VIRTUAL_DISK_RESPONSE,
) -> u32 {
    guard(|| {
        require(flags == RAW_SCSI_VIRTUAL_DISK_FLAG_NONE && !response.is_null())?;
        // SAFETY: as this function's.
        let parameters = unsafe { read(parameters) }.ok_or(INVALID)?;
        require(parameters.Version == RAW_SCSI_VIRTUAL_DISK_VERSION_1)?;
        // SAFETY: every response has the member Version.
        let version = unsafe { read(&raw const (*response).Version) };
        require(version == Some(RAW_SCSI_VIRTUAL_DISK_VERSION_1))?;
        // SAFETY: the arm that Version selects; any bytes are valid in it.
        let request = unsafe { parameters.Anonymous.Version1 };
        require(!request.Cdb.is_null() && (1..=MAX_CDB).contains(&request.CdbLength))?;
        require(!request.DataBuffer.is_null() || request.DataTransferLength == 0)?;
        require(!request.SenseInfo.is_null() || request.SenseInfoLength == 0)?;
        let handle = handles::disk(handle)?;
        let disk = handle.disk()?;
        require_or(request.RSVDHandle == 0, ERROR_NOT_SUPPORTED)?;
        let attachment = disk.attachment();
        let has_device = attachment.as_ref().is_some_and(|a| a.device.is_some());
        require_or(!has_device, ERROR_VHD_INVALID_STATE)?;
        // The disk may be shared with a handle that may do more.
        let writable = handle.access.require(Right::WriteBytes).is_ok()
            && disk.disk().is_writable()
            && attachment.is_none_or(|a| !a.read_only);
        // SAFETY: checked above as far as it can be; the rest is this function's contract.
        let outcome = unsafe { execute(disk, &request, writable) };
        // SAFETY: not NULL, and the caller's to be written.
        unsafe { write(&raw mut (*response).Anonymous.Version1, outcome) };
        Ok(())
    })
}

/// Runs one command. `writable`: what the handle's disk may be asked for.
///
/// # Safety
/// The request's pointers lead to as many bytes as it says.
unsafe fn execute(
    disk: &Disk,
    request: &RAW_SCSI_VIRTUAL_DISK_PARAMETERS_0_0,
    writable: bool,
) -> RAW_SCSI_VIRTUAL_DISK_RESPONSE_0_0 {
    // SAFETY: not NULL (checked), and so long by the contract; nobody writes to it during the call.
    let cdb = unsafe { std::slice::from_raw_parts(request.Cdb, usize::from(request.CdbLength)) };
    let length = request.DataTransferLength as usize;
    let buffer = request.DataBuffer.cast::<u8>();
    // The direction follows from the command: pages and programs disagree about DataIn (contract, X-11).
    let data = match Direction::of(cdb) {
        _ if length == 0 => Data::None,
        Direction::None => Data::None,
        // SAFETY: not NULL (checked), and so long by the contract; the caller leaves it to this call.
        Direction::In => Data::In(unsafe { std::slice::from_raw_parts_mut(buffer, length) }),
        // SAFETY: as above.
        Direction::Out => Data::Out(unsafe { std::slice::from_raw_parts(buffer, length) }),
    };
    let (status, sense, transferred) = if !writable && changes_medium(cdb) {
        let sense = Sense::WRITE_PROTECTED.fixed().to_vec();
        (Status::CheckCondition, sense, 0)
    } else {
        let response = disk.scsi(Command::new(cdb, data));
        (
            response.status,
            response.sense_bytes(),
            response.transferred,
        )
    };
    let kept = sense.len().min(usize::from(request.SenseInfoLength));
    if kept > 0 {
        // SAFETY: not NULL (checked), and at least so long.
        unsafe { std::ptr::copy_nonoverlapping(sense.as_ptr(), request.SenseInfo, kept) };
    }
    RAW_SCSI_VIRTUAL_DISK_RESPONSE_0_0 {
        ScsiStatus: match status {
            Status::Good => SRB_STATUS_SUCCESS,
            Status::Busy => SRB_STATUS_BUSY,
            _ if kept > 0 => SRB_STATUS_ERROR | SRB_STATUS_AUTOSENSE_VALID,
            _ => SRB_STATUS_ERROR,
        },
        SenseInfoLength: u8::try_from(kept).unwrap_or(u8::MAX),
        DataTransferLength: u32::try_from(transferred).unwrap_or(u32::MAX),
    }
}

/// The documentation calls ScsiStatus a value of srb.h, not of the SCSI standard (contract, 2.20).
const SRB_STATUS_SUCCESS: u8 = 0x01;
const SRB_STATUS_ERROR: u8 = 0x04;
const SRB_STATUS_BUSY: u8 = 0x05;
const SRB_STATUS_AUTOSENSE_VALID: u8 = 0x80;

/// WRITE, WRITE SAME and UNMAP in all their lengths.
fn changes_medium(cdb: &[u8]) -> bool {
    matches!(
        cdb.first(),
        Some(0x0A | 0x2A | 0xAA | 0x8A | 0x41 | 0x93 | 0x42)
    )
}
