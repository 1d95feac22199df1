//! CreateVirtualDisk (contract, 2.1).

use std::path::{Path, PathBuf};
use std::sync::Arc;

use uuid::Uuid;
use vhdkit::OpenOptions;
use vhdkit::disk::Parents;
use vhdkit::image::{CreateParameters, DiskType, Format};
use vhdkit::verbs::convert::{ConvertOptions, convert};
use vhdkit::verbs::create::{CreateOptions, create};
use vhdkit::verbs::set;

use crate::access::Access;
use crate::codes::*;
use crate::constants::*;
use crate::disk::{Disk, DiskHandle, Opening};
use crate::guard::{Answer, Code, INVALID, guard, read, require, require_flags, require_or, write};
use crate::handles::{self, Object};
use crate::open;
use crate::overlapped::run;
use crate::storage_type;
use crate::strings::{optional_full_path, path};
use crate::types::{
    CREATE_VIRTUAL_DISK_PARAMETERS, CREATE_VIRTUAL_DISK_PARAMETERS_0_1, GUID, HANDLE, OVERLAPPED,
    PCWSTR, VIRTUAL_STORAGE_TYPE,
};

/// All flags that exist.
const KNOWN_FLAGS: u32 = 0x7FF;

/// Flags that are refused: VHD Sets, change tracking, sparse fixed disks, persistent memory.
const REFUSED_FLAGS: u32 = CREATE_VIRTUAL_DISK_FLAG_CREATE_BACKING_STORAGE
    | CREATE_VIRTUAL_DISK_FLAG_USE_CHANGE_TRACKING_SOURCE_LIMIT
    | CREATE_VIRTUAL_DISK_FLAG_PRESERVE_PARENT_CHANGE_TRACKING_STATE
    | CREATE_VIRTUAL_DISK_FLAG_VHD_SET_USE_ORIGINAL_BACKING_STORAGE
    | CREATE_VIRTUAL_DISK_FLAG_SPARSE_FILE
    | CREATE_VIRTUAL_DISK_FLAG_PMEM_COMPATIBLE;

const MIB: u32 = 1 << 20;
const SMALLEST: u64 = 3 << 20;

/// What is asked for, whatever the version.
struct Request {
    access: Access,
    unique_id: Option<Uuid>,
    size: u64,
    block_size: u32,
    sector_size: u32,
    physical_sector_size: u32,
    parent: Option<PathBuf>,
    source: Option<PathBuf>,
    open_flags: u32,
    parent_type: VIRTUAL_STORAGE_TYPE,
    source_type: VIRTUAL_STORAGE_TYPE,
    resiliency: Option<Uuid>,
    /// A source limit or a type of a backing file was given.
    has_later_parts: bool,
    /// Alignment of blocks in bytes.
    alignment: u64,
}

/// Makes a disk and opens it.
///
/// Fixed, dynamic and differencing disks, empty or (`SourcePath`) with the content of another disk. The file has its
/// name only when it is complete; a cancelled or failed creation leaves none.
///
/// | flag | here |
/// |---|---|
/// | FULL_PHYSICAL_ALLOCATION, DO_NOT_COPY_METADATA_FROM_PARENT | honoured |
/// | SUPPORT_COMPRESSED_VOLUMES, SUPPORT_SPARSE_FILES_ANY_FS | nothing to do |
/// | PREVENT_WRITES_TO_SOURCE_DISK | without effect on files; ERROR_NOT_SUPPORTED with a device as source |
/// | others | ERROR_NOT_SUPPORTED |
///
/// ERROR_FILE_EXISTS if there is a file; ERROR_NOT_SUPPORTED for ISO, VHD Sets, a source limit, a type of a backing file
/// and blocks aligned to more than 1 MiB; ERROR_ACCESS_DENIED if a mask lacks CREATE; ERROR_VHD_PARENT_VHD_NOT_FOUND;
/// what the verbs can fail with.
///
/// # Safety
/// Pointers are NULL or lead to what their types say, `parameters` to as much as its version has; strings end with a
/// zero; `overlapped` stays valid until the operation is over.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn CreateVirtualDisk(
    storage_type: *const VIRTUAL_STORAGE_TYPE,
    file: PCWSTR,
    mask: VIRTUAL_DISK_ACCESS_MASK,
    _security_descriptor: *mut std::ffi::c_void,
    flags: CREATE_VIRTUAL_DISK_FLAG,
    provider_specific_flags: u32,
    parameters: *const CREATE_VIRTUAL_DISK_PARAMETERS,
    overlapped: *mut OVERLAPPED,
    handle: *mut HANDLE,
) -> u32 {
    guard(|| {
        // SAFETY: as this function's.
        let (storage_type, file) = unsafe { (read(storage_type).ok_or(INVALID)?, path(file)?) };
        require(!parameters.is_null() && !handle.is_null())?;
        require_flags(mask, VIRTUAL_DISK_ACCESS_ALL)?;
        require_flags(flags, KNOWN_FLAGS)?;
        require(provider_specific_flags == 0)?;
        // SAFETY: as this function's.
        let request = unsafe { arms(parameters, mask) }?;
        let format = storage_type::format(storage_type, &file)?;
        request.check(flags, format)?;
        request.check_supported(flags, format, mask)?;
        let plan = request.plan(flags, format, file)?;
        require_or(plan.file.symlink_metadata().is_err(), ERROR_FILE_EXISTS)?;
        // SAFETY: not NULL, and the caller's to be written.
        run_plan(plan, overlapped, |made| unsafe { write(handle, made) })
    })
}

/// # Safety
/// `parameters` leads to a structure as long as its version says; its strings end with a zero.
unsafe fn arms(parameters: *const CREATE_VIRTUAL_DISK_PARAMETERS, mask: u32) -> Answer<Request> {
    // SAFETY: every version has the member Version; the other reads are of the arm that it selects, and the arms of
    // versions 3 and 4 start with that of version 2.
    unsafe {
        let version = read(&raw const (*parameters).Version).ok_or(INVALID)?;
        let union = &raw const (*parameters).Anonymous;
        if version == CREATE_VIRTUAL_DISK_VERSION_1 {
            let arm = read(&raw const (*union).Version1).ok_or(INVALID)?;
            require(mask != VIRTUAL_DISK_ACCESS_NONE)?;
            return Ok(Request {
                access: Access::V1 { mask, rw_depth: 1 },
                unique_id: arm.UniqueId.given(),
                size: arm.MaximumSize,
                block_size: arm.BlockSizeInBytes,
                sector_size: arm.SectorSizeInBytes,
                physical_sector_size: 0,
                parent: optional_full_path(arm.ParentPath)?,
                source: optional_full_path(arm.SourcePath)?,
                open_flags: OPEN_VIRTUAL_DISK_FLAG_NONE,
                parent_type: UNKNOWN_TYPE,
                source_type: UNKNOWN_TYPE,
                resiliency: None,
                has_later_parts: false,
                alignment: 0,
            });
        }
        require(matches!(
            version,
            CREATE_VIRTUAL_DISK_VERSION_2..=CREATE_VIRTUAL_DISK_VERSION_4
        ))?;
        require(mask == VIRTUAL_DISK_ACCESS_NONE)?;
        let mut request = version2(read(&raw const (*union).Version2).ok_or(INVALID)?)?;
        if version >= CREATE_VIRTUAL_DISK_VERSION_3 {
            let arm = read(&raw const (*union).Version3).ok_or(INVALID)?;
            let limit = optional_full_path(arm.SourceLimitPath)?;
            request.has_later_parts = limit.is_some() || !is_unknown(arm.BackingStorageType);
        }
        if version == CREATE_VIRTUAL_DISK_VERSION_4 {
            let arm = read(&raw const (*union).Version4).ok_or(INVALID)?;
            require(arm.PmemAddressAbstractionType.given().is_none())?;
            require(arm.DataAlignment == 0 || arm.DataAlignment.is_power_of_two())?;
            request.alignment = arm.DataAlignment;
        }
        Ok(request)
    }
}

const UNKNOWN_TYPE: VIRTUAL_STORAGE_TYPE = VIRTUAL_STORAGE_TYPE {
    DeviceId: VIRTUAL_STORAGE_TYPE_DEVICE_UNKNOWN,
    VendorId: GUID::ZERO,
};

fn is_unknown(given: VIRTUAL_STORAGE_TYPE) -> bool {
    given.DeviceId == VIRTUAL_STORAGE_TYPE_DEVICE_UNKNOWN && given.VendorId.given().is_none()
}

/// # Safety
/// The arm's strings end with a zero.
unsafe fn version2(arm: CREATE_VIRTUAL_DISK_PARAMETERS_0_1) -> Answer<Request> {
    require_flags(arm.OpenFlags, open::KNOWN_FLAGS)?;
    open::require_flags_together(arm.OpenFlags)?;
    // SAFETY: as this function's.
    let (parent, source) = unsafe {
        (
            optional_full_path(arm.ParentPath)?,
            optional_full_path(arm.SourcePath)?,
        )
    };
    Ok(Request {
        access: Access::V2 {
            get_info_only: false,
            read_only: false,
        },
        unique_id: arm.UniqueId.given(),
        size: arm.MaximumSize,
        block_size: arm.BlockSizeInBytes,
        sector_size: arm.SectorSizeInBytes,
        physical_sector_size: arm.PhysicalSectorSizeInBytes,
        parent,
        source,
        open_flags: arm.OpenFlags,
        parent_type: arm.ParentVirtualStorageType,
        source_type: arm.SourceVirtualStorageType,
        resiliency: arm.ResiliencyGuid.given(),
        has_later_parts: false,
        alignment: 0,
    })
}

impl Request {
    fn disk_type(&self, flags: u32) -> DiskType {
        if self.parent.is_some() {
            DiskType::Differencing
        } else if flags & CREATE_VIRTUAL_DISK_FLAG_FULL_PHYSICAL_ALLOCATION != 0 {
            DiskType::Fixed
        } else {
            DiskType::Dynamic
        }
    }

    /// The rules whose breach is ERROR_INVALID_PARAMETER.
    fn check(&self, flags: u32, format: Format) -> Answer {
        let fixed = flags & CREATE_VIRTUAL_DISK_FLAG_FULL_PHYSICAL_ALLOCATION != 0;
        require(self.parent.is_none() || (self.source.is_none() && !fixed && self.size == 0))?;
        let vhd = format == Format::Vhd;
        require(match self.block_size {
            0 => true,
            _ if fixed => false,
            size if vhd => matches!(size, 0x8_0000 | 0x20_0000),
            size => size.is_power_of_two() && (MIB..=256 * MIB).contains(&size),
        })?;
        let is_sector = |size| size == 0 || size == 512 || (size == 4096 && !vhd);
        require(is_sector(self.sector_size) && is_sector(self.physical_sector_size))?;
        let sector = u64::from(self.sector_size.max(512));
        require(self.size.is_multiple_of(sector))?;
        let may_be_zero = self.parent.is_some() || self.source.is_some();
        require(self.size >= SMALLEST || (self.size == 0 && may_be_zero))
    }

    /// What exists and is not for this library, and what the mask forbids.
    fn check_supported(&self, flags: u32, format: Format, mask: u32) -> Answer {
        require_or(
            format != Format::Iso
                && flags & REFUSED_FLAGS == 0
                && self.open_flags & OPEN_REFUSED == 0
                && !self.has_later_parts
                && self.alignment <= u64::from(if format == Format::Vhd { 4096 } else { MIB }),
            ERROR_NOT_SUPPORTED,
        )?;
        let is_v1 = matches!(self.access, Access::V1 { .. });
        require_or(
            !is_v1 || mask & VIRTUAL_DISK_ACCESS_CREATE != 0,
            ERROR_ACCESS_DENIED,
        )
    }

    fn plan(self, flags: u32, format: Format, file: PathBuf) -> Answer<Plan> {
        if let Some(path) = &self.parent {
            let parent = storage_type::format(self.parent_type, path)?;
            require_or(parent == format, ERROR_VHD_INVALID_TYPE)?;
            require_or(path.exists(), ERROR_VHD_PARENT_VHD_NOT_FOUND)?;
        }
        let source = match &self.source {
            None => None,
            Some(path) => Some((path.clone(), self.source_format(path, flags)?)),
        };
        let given = |size: u32| (size != 0).then_some(size);
        let keep_metadata = flags & CREATE_VIRTUAL_DISK_FLAG_DO_NOT_COPY_METADATA_FROM_PARENT == 0;
        let identifier = match self.unique_id {
            None if self.parent.is_some() && !keep_metadata => Some(Uuid::new_v4()),
            given => given,
        };
        let opening = Opening {
            format,
            access: self.access,
            flags: self.open_flags,
            resiliency: self.resiliency,
        };
        Ok(Plan {
            parameters: CreateParameters {
                block_size: given(self.block_size)
                    .map(u64::from)
                    .or_else(|| self.default_block_size(format, flags)),
                logical_sector_size: given(self.sector_size),
                physical_sector_size: given(self.physical_sector_size),
                identifier,
                ..CreateParameters::new(format, self.disk_type(flags), self.size)
            },
            copied_metadata: self
                .parent
                .clone()
                .filter(|_| keep_metadata && format == Format::Vhdx),
            parent: self.parent,
            source,
            opening,
            file,
        })
    }

    /// The contract's defaults (2.1), not the library's: they do not depend on the size of the disk.
    fn default_block_size(&self, format: Format, flags: u32) -> Option<u64> {
        const MIB: u64 = 1 << 20;
        match (format, self.disk_type(flags)) {
            (Format::Vhdx, DiskType::Dynamic) => Some(32 * MIB),
            (Format::Vhdx, DiskType::Differencing) => Some(2 * MIB),
            (Format::Vhd, DiskType::Dynamic) => Some(2 * MIB),
            (Format::Vhd, DiskType::Differencing) => {
                // What cannot be opened is reported by the operation.
                let parent = OpenOptions::new()
                    .parents(Parents::Ignored)
                    .open(self.parent.as_ref()?)
                    .ok()?;
                Some(parent.info().block_size.unwrap_or(2 * MIB))
            }
            _ => None,
        }
    }

    /// A device is read as it is; a file is what its type or name says.
    fn source_format(&self, source: &Path, flags: u32) -> Answer<Format> {
        use std::os::unix::fs::FileTypeExt;
        let is_device =
            std::fs::metadata(source).is_ok_and(|found| found.file_type().is_block_device());
        if is_device {
            let prevent = flags & CREATE_VIRTUAL_DISK_FLAG_PREVENT_WRITES_TO_SOURCE_DISK;
            require_or(prevent == 0, ERROR_NOT_SUPPORTED)?;
            return Ok(Format::Raw);
        }
        storage_type::format(self.source_type, source)
    }
}

/// `OpenFlags` that are refused.
const OPEN_REFUSED: u32 = OPEN_VIRTUAL_DISK_FLAG_BLANK_FILE
    | OPEN_VIRTUAL_DISK_FLAG_BOOT_DRIVE
    | OPEN_VIRTUAL_DISK_FLAG_VHDSET_FILE_ONLY;

/// What is to be done.
struct Plan {
    parameters: CreateParameters,
    file: PathBuf,
    parent: Option<PathBuf>,
    /// The parent, if its user metadata goes to the child.
    copied_metadata: Option<PathBuf>,
    source: Option<(PathBuf, Format)>,
    opening: Opening,
}

/// Names the disk first, so that it can be asked for its progress (P-34); what is left of a failure is no handle.
fn run_plan(plan: Plan, overlapped: *mut OVERLAPPED, hand_out: impl FnOnce(HANDLE)) -> Answer {
    let handle = Arc::new(DiskHandle::new(plan.opening.access));
    let name = handles::insert(Object::Disk(handle.clone()))?;
    let Plan {
        parameters,
        file,
        parent,
        copied_metadata,
        source,
        opening,
    } = plan;
    let target = file.clone();
    let finished = handle.clone();
    let then = move |failure: Option<vhdkit::Error>| -> Answer {
        if let Some(error) = failure {
            return Err(error.into());
        }
        let disk = Disk::open(&target, opening)?;
        if let Some(parent) = copied_metadata {
            copy_metadata(&parent, &disk)?;
        }
        finished.set_disk(disk);
        Ok(())
    };
    let answer = if let Some((source, source_format)) = source {
        let options = ConvertOptions {
            source,
            open: OpenOptions::new().format(source_format),
            target: file,
            format: parameters.format,
            disk_type: parameters.disk_type,
            virtual_size: (parameters.virtual_size != 0).then_some(parameters.virtual_size),
            profile: None,
            block_size: parameters.block_size,
            logical_sector_size: parameters.logical_sector_size,
            physical_sector_size: parameters.physical_sector_size,
            identifier: parameters.identifier,
            identifiers: parameters.identifiers,
            created: parameters.created,
            overwrite: false,
        };
        run(
            &handle,
            overlapped,
            || convert(options),
            |result| then(result.err()),
        )
    } else {
        let options = CreateOptions {
            path: file,
            open_parent: opening.options().write_depth(0),
            parameters,
            parent_path: parent,
            profile: None,
            overwrite: false,
        };
        run(
            &handle,
            overlapped,
            || create(options),
            |result| then(result.err()),
        )
    };
    match answer {
        Ok(()) | Err(Code(ERROR_IO_PENDING)) => hand_out(name),
        Err(_) => drop(handles::remove(name)),
    }
    answer
}

/// A child starts with its parent's user metadata.
fn copy_metadata(parent: &Path, child: &Disk) -> Answer {
    let parent = OpenOptions::new().parents(Parents::Ignored).open(parent);
    // The parent is open read-only behind the child, so it opens again; if the child has been opened without it and
    // the parent is gone, there is nothing to copy.
    let Ok(parent) = parent else { return Ok(()) };
    for (item, _) in set::user_metadata(&parent)? {
        let value = set::read_user_metadata(&parent, item)?;
        set::write_user_metadata(&child.disk(), item, Some(&value))?;
    }
    Ok(())
}
