//! RawSCSIVirtualDisk (contract, 2.20).
//!
//! The target itself belongs to the library; [`execute`] is where it is called.

use vhdkit::VirtualDisk;

use crate::codes::ERROR_NOT_SUPPORTED;
use crate::constants::*;
use crate::guard::{Answer, Code, INVALID, guard, read, require, require_or, write};
use crate::handles;
use crate::types::{
    HANDLE, RAW_SCSI_VIRTUAL_DISK_PARAMETERS, RAW_SCSI_VIRTUAL_DISK_PARAMETERS_0_0,
    RAW_SCSI_VIRTUAL_DISK_RESPONSE, RAW_SCSI_VIRTUAL_DISK_RESPONSE_0_0,
};

/// Longest command in bytes.
const MAX_CDB: u8 = 16;

/// Sends one command to the disk. ERROR_SUCCESS says that it arrived; what became of it is in the response.
///
/// ERROR_NOT_SUPPORTED for RSVD handles, and as long as there is no target.
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
        let writable = disk.disk().is_writable()
            && disk
                .attachment()
                .is_none_or(|attachment| !attachment.read_only);
        // SAFETY: checked above as far as it can be; the rest is this function's contract.
        let outcome = unsafe { execute(&disk.disk(), &request, writable) }?;
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
    _disk: &VirtualDisk,
    _request: &RAW_SCSI_VIRTUAL_DISK_PARAMETERS_0_0,
    _writable: bool,
) -> Answer<RAW_SCSI_VIRTUAL_DISK_RESPONSE_0_0> {
    Err(Code(ERROR_NOT_SUPPORTED))
}
