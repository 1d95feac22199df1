//! Layouts and numbers, both ways: of the Rust side against the Windows metadata (`windows-sys`), and of the header
//! against both, by static assertions that gcc and g++ compile (contract, 3 to 5).

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod common;

use std::mem::offset_of;

use common::{Compiler, Language};
use virtdisk::{codes, constants, types};
use windows_sys::Win32::Foundation as foundation;
use windows_sys::Win32::Storage::Vhd as vhd;
use windows_sys::Win32::System::IO as io;

/// Compares structures with those of a module, and notes what C has to say about them.
macro_rules! structures {
    ($c:ident, $module:ident: $($name:ident { $($($part:ident).+),* })*) => {
        $(
            let size = size_of::<types::$name>();
            assert_eq!(size, size_of::<$module::$name>(), stringify!($name));
            assert_eq!(align_of::<types::$name>(), align_of::<$module::$name>(), stringify!($name));
            $c.push(sized(stringify!($name), size));
            $(
                let offset = offset_of!(types::$name, $($part).+);
                let text = stringify!($($part).+);
                assert_eq!(offset, offset_of!($module::$name, $($part).+), "{} {text}", stringify!($name));
                $c.push(placed(stringify!($name), text, offset));
            )*
        )*
    };
}

/// Compares numbers.
macro_rules! numbers {
    ($c:ident, $ours:ident, $theirs:ident: $($name:ident)*) => {
        $(
            let value = u64::from($ours::$name);
            #[allow(clippy::unnecessary_cast, clippy::cast_sign_loss, trivial_numeric_casts, reason = "of several types")]
            let known = u64::from($theirs::$name as u32);
            assert_eq!(value, known, stringify!($name));
            $c.push(format!("CHECK((unsigned long long){} == {value}ull);", stringify!($name)));
        )*
    };
}

fn sized(name: &str, size: usize) -> String {
    // The arrays at its end have no elements in C.
    let size = if name == "STORAGE_DEPENDENCY_INFO" {
        8
    } else {
        size
    };
    format!("CHECK(sizeof({name}) == {size});")
}

fn placed(name: &str, field: &str, offset: usize) -> String {
    let field = field.replace(' ', "").replace("Anonymous.", "");
    format!("CHECK(offsetof({name}, {field}) == {offset});")
}

#[test]
fn layouts_and_numbers_are_those_of_windows() {
    let mut c = Vec::new();
    structures! { c, io:
        OVERLAPPED { Internal, InternalHigh, Anonymous.Anonymous.Offset, Anonymous.Anonymous.OffsetHigh, Anonymous.Pointer, hEvent }
    }
    structures! { c, vhd:
        APPLY_SNAPSHOT_VHDSET_PARAMETERS { Version, Anonymous.Version1, Anonymous.Version1.SnapshotId, Anonymous.Version1.LeafSnapshotId }
        ATTACH_VIRTUAL_DISK_PARAMETERS { Version, Anonymous.Version1, Anonymous.Version1.Reserved, Anonymous.Version2, Anonymous.Version2.RestrictedOffset, Anonymous.Version2.RestrictedLength }
        COMPACT_VIRTUAL_DISK_PARAMETERS { Version, Anonymous.Version1, Anonymous.Version1.Reserved }
        CREATE_VIRTUAL_DISK_PARAMETERS { Version, Anonymous.Version1, Anonymous.Version1.UniqueId, Anonymous.Version1.MaximumSize, Anonymous.Version1.BlockSizeInBytes, Anonymous.Version1.SectorSizeInBytes, Anonymous.Version1.ParentPath, Anonymous.Version1.SourcePath, Anonymous.Version2, Anonymous.Version2.UniqueId, Anonymous.Version2.MaximumSize, Anonymous.Version2.BlockSizeInBytes, Anonymous.Version2.SectorSizeInBytes, Anonymous.Version2.PhysicalSectorSizeInBytes, Anonymous.Version2.ParentPath, Anonymous.Version2.SourcePath, Anonymous.Version2.OpenFlags, Anonymous.Version2.ParentVirtualStorageType, Anonymous.Version2.ParentVirtualStorageType.DeviceId, Anonymous.Version2.ParentVirtualStorageType.VendorId, Anonymous.Version2.SourceVirtualStorageType, Anonymous.Version2.SourceVirtualStorageType.DeviceId, Anonymous.Version2.SourceVirtualStorageType.VendorId, Anonymous.Version2.ResiliencyGuid, Anonymous.Version3, Anonymous.Version3.UniqueId, Anonymous.Version3.MaximumSize, Anonymous.Version3.BlockSizeInBytes, Anonymous.Version3.SectorSizeInBytes, Anonymous.Version3.PhysicalSectorSizeInBytes, Anonymous.Version3.ParentPath, Anonymous.Version3.SourcePath, Anonymous.Version3.OpenFlags, Anonymous.Version3.ParentVirtualStorageType, Anonymous.Version3.ParentVirtualStorageType.DeviceId, Anonymous.Version3.ParentVirtualStorageType.VendorId, Anonymous.Version3.SourceVirtualStorageType, Anonymous.Version3.SourceVirtualStorageType.DeviceId, Anonymous.Version3.SourceVirtualStorageType.VendorId, Anonymous.Version3.ResiliencyGuid, Anonymous.Version3.SourceLimitPath, Anonymous.Version3.BackingStorageType, Anonymous.Version3.BackingStorageType.DeviceId, Anonymous.Version3.BackingStorageType.VendorId, Anonymous.Version4, Anonymous.Version4.UniqueId, Anonymous.Version4.MaximumSize, Anonymous.Version4.BlockSizeInBytes, Anonymous.Version4.SectorSizeInBytes, Anonymous.Version4.PhysicalSectorSizeInBytes, Anonymous.Version4.ParentPath, Anonymous.Version4.SourcePath, Anonymous.Version4.OpenFlags, Anonymous.Version4.ParentVirtualStorageType, Anonymous.Version4.ParentVirtualStorageType.DeviceId, Anonymous.Version4.ParentVirtualStorageType.VendorId, Anonymous.Version4.SourceVirtualStorageType, Anonymous.Version4.SourceVirtualStorageType.DeviceId, Anonymous.Version4.SourceVirtualStorageType.VendorId, Anonymous.Version4.ResiliencyGuid, Anonymous.Version4.SourceLimitPath, Anonymous.Version4.BackingStorageType, Anonymous.Version4.BackingStorageType.DeviceId, Anonymous.Version4.BackingStorageType.VendorId, Anonymous.Version4.PmemAddressAbstractionType, Anonymous.Version4.DataAlignment }
        DELETE_SNAPSHOT_VHDSET_PARAMETERS { Version, Anonymous.Version1, Anonymous.Version1.SnapshotId }
        EXPAND_VIRTUAL_DISK_PARAMETERS { Version, Anonymous.Version1, Anonymous.Version1.NewSize }
        FORK_VIRTUAL_DISK_PARAMETERS { Version, Anonymous.Version1, Anonymous.Version1.ForkedVirtualDiskPath }
        GET_VIRTUAL_DISK_INFO { Version, Anonymous.Size, Anonymous.Size.VirtualSize, Anonymous.Size.PhysicalSize, Anonymous.Size.BlockSize, Anonymous.Size.SectorSize, Anonymous.Identifier, Anonymous.ParentLocation, Anonymous.ParentLocation.ParentResolved, Anonymous.ParentLocation.ParentLocationBuffer, Anonymous.ParentIdentifier, Anonymous.ParentTimestamp, Anonymous.VirtualStorageType, Anonymous.VirtualStorageType.DeviceId, Anonymous.VirtualStorageType.VendorId, Anonymous.ProviderSubtype, Anonymous.Is4kAligned, Anonymous.IsLoaded, Anonymous.PhysicalDisk, Anonymous.PhysicalDisk.LogicalSectorSize, Anonymous.PhysicalDisk.PhysicalSectorSize, Anonymous.PhysicalDisk.IsRemote, Anonymous.VhdPhysicalSectorSize, Anonymous.SmallestSafeVirtualSize, Anonymous.FragmentationPercentage, Anonymous.VirtualDiskId, Anonymous.ChangeTrackingState, Anonymous.ChangeTrackingState.Enabled, Anonymous.ChangeTrackingState.NewerChanges, Anonymous.ChangeTrackingState.MostRecentId }
        MERGE_VIRTUAL_DISK_PARAMETERS { Version, Anonymous.Version1, Anonymous.Version1.MergeDepth, Anonymous.Version2, Anonymous.Version2.MergeSourceDepth, Anonymous.Version2.MergeTargetDepth }
        MIRROR_VIRTUAL_DISK_PARAMETERS { Version, Anonymous.Version1, Anonymous.Version1.MirrorVirtualDiskPath }
        MODIFY_VHDSET_PARAMETERS { Version, Anonymous.SnapshotPath, Anonymous.SnapshotPath.SnapshotId, Anonymous.SnapshotPath.SnapshotFilePath, Anonymous.SnapshotId, Anonymous.DefaultFilePath }
        OPEN_VIRTUAL_DISK_PARAMETERS { Version, Anonymous.Version1, Anonymous.Version1.RWDepth, Anonymous.Version2, Anonymous.Version2.GetInfoOnly, Anonymous.Version2.ReadOnly, Anonymous.Version2.ResiliencyGuid, Anonymous.Version3, Anonymous.Version3.GetInfoOnly, Anonymous.Version3.ReadOnly, Anonymous.Version3.ResiliencyGuid, Anonymous.Version3.SnapshotId }
        QUERY_CHANGES_VIRTUAL_DISK_RANGE { ByteOffset, ByteLength, Reserved }
        RAW_SCSI_VIRTUAL_DISK_PARAMETERS { Version, Anonymous.Version1, Anonymous.Version1.RSVDHandle, Anonymous.Version1.DataIn, Anonymous.Version1.CdbLength, Anonymous.Version1.SenseInfoLength, Anonymous.Version1.SrbFlags, Anonymous.Version1.DataTransferLength, Anonymous.Version1.DataBuffer, Anonymous.Version1.SenseInfo, Anonymous.Version1.Cdb }
        RAW_SCSI_VIRTUAL_DISK_RESPONSE { Version, Anonymous.Version1, Anonymous.Version1.ScsiStatus, Anonymous.Version1.SenseInfoLength, Anonymous.Version1.DataTransferLength }
        RESIZE_VIRTUAL_DISK_PARAMETERS { Version, Anonymous.Version1, Anonymous.Version1.NewSize }
        SET_VIRTUAL_DISK_INFO { Version, Anonymous.ParentFilePath, Anonymous.UniqueIdentifier, Anonymous.ParentPathWithDepthInfo, Anonymous.ParentPathWithDepthInfo.ChildDepth, Anonymous.ParentPathWithDepthInfo.ParentFilePath, Anonymous.VhdPhysicalSectorSize, Anonymous.VirtualDiskId, Anonymous.ChangeTrackingEnabled, Anonymous.ParentLocator, Anonymous.ParentLocator.LinkageId, Anonymous.ParentLocator.ParentFilePath }
        STORAGE_DEPENDENCY_INFO { Version, NumberEntries, Anonymous.Version1Entries, Anonymous.Version2Entries }
        STORAGE_DEPENDENCY_INFO_TYPE_1 { DependencyTypeFlags, ProviderSpecificFlags, VirtualStorageType, VirtualStorageType.DeviceId, VirtualStorageType.VendorId }
        STORAGE_DEPENDENCY_INFO_TYPE_2 { DependencyTypeFlags, ProviderSpecificFlags, VirtualStorageType, VirtualStorageType.DeviceId, VirtualStorageType.VendorId, AncestorLevel, DependencyDeviceName, HostVolumeName, DependentVolumeName, DependentVolumeRelativePath }
        TAKE_SNAPSHOT_VHDSET_PARAMETERS { Version, Anonymous.Version1, Anonymous.Version1.SnapshotId }
        VIRTUAL_DISK_PROGRESS { OperationStatus, CurrentValue, CompletionValue }
        VIRTUAL_STORAGE_TYPE { DeviceId, VendorId }
    }
    numbers! { c, constants, vhd:
        APPLY_SNAPSHOT_VHDSET_FLAG_NONE
        APPLY_SNAPSHOT_VHDSET_FLAG_WRITEABLE
        APPLY_SNAPSHOT_VHDSET_VERSION_1
        APPLY_SNAPSHOT_VHDSET_VERSION_UNSPECIFIED
        ATTACH_VIRTUAL_DISK_FLAG_AT_BOOT
        ATTACH_VIRTUAL_DISK_FLAG_BYPASS_DEFAULT_ENCRYPTION_POLICY
        ATTACH_VIRTUAL_DISK_FLAG_NONE
        ATTACH_VIRTUAL_DISK_FLAG_NON_PNP
        ATTACH_VIRTUAL_DISK_FLAG_NO_DRIVE_LETTER
        ATTACH_VIRTUAL_DISK_FLAG_NO_LOCAL_HOST
        ATTACH_VIRTUAL_DISK_FLAG_NO_SECURITY_DESCRIPTOR
        ATTACH_VIRTUAL_DISK_FLAG_PERMANENT_LIFETIME
        ATTACH_VIRTUAL_DISK_FLAG_READ_ONLY
        ATTACH_VIRTUAL_DISK_FLAG_REGISTER_VOLUME
        ATTACH_VIRTUAL_DISK_FLAG_RESTRICTED_RANGE
        ATTACH_VIRTUAL_DISK_FLAG_SINGLE_PARTITION
        ATTACH_VIRTUAL_DISK_VERSION_1
        ATTACH_VIRTUAL_DISK_VERSION_2
        ATTACH_VIRTUAL_DISK_VERSION_UNSPECIFIED
        COMPACT_VIRTUAL_DISK_FLAG_NONE
        COMPACT_VIRTUAL_DISK_FLAG_NO_BLOCK_MOVES
        COMPACT_VIRTUAL_DISK_FLAG_NO_ZERO_SCAN
        COMPACT_VIRTUAL_DISK_VERSION_1
        COMPACT_VIRTUAL_DISK_VERSION_UNSPECIFIED
        CREATE_VIRTUAL_DISK_FLAG_CREATE_BACKING_STORAGE
        CREATE_VIRTUAL_DISK_FLAG_DO_NOT_COPY_METADATA_FROM_PARENT
        CREATE_VIRTUAL_DISK_FLAG_FULL_PHYSICAL_ALLOCATION
        CREATE_VIRTUAL_DISK_FLAG_NONE
        CREATE_VIRTUAL_DISK_FLAG_PMEM_COMPATIBLE
        CREATE_VIRTUAL_DISK_FLAG_PRESERVE_PARENT_CHANGE_TRACKING_STATE
        CREATE_VIRTUAL_DISK_FLAG_PREVENT_WRITES_TO_SOURCE_DISK
        CREATE_VIRTUAL_DISK_FLAG_SPARSE_FILE
        CREATE_VIRTUAL_DISK_FLAG_SUPPORT_COMPRESSED_VOLUMES
        CREATE_VIRTUAL_DISK_FLAG_SUPPORT_SPARSE_FILES_ANY_FS
        CREATE_VIRTUAL_DISK_FLAG_USE_CHANGE_TRACKING_SOURCE_LIMIT
        CREATE_VIRTUAL_DISK_FLAG_VHD_SET_USE_ORIGINAL_BACKING_STORAGE
        CREATE_VIRTUAL_DISK_PARAMETERS_DEFAULT_BLOCK_SIZE
        CREATE_VIRTUAL_DISK_PARAMETERS_DEFAULT_SECTOR_SIZE
        CREATE_VIRTUAL_DISK_VERSION_1
        CREATE_VIRTUAL_DISK_VERSION_2
        CREATE_VIRTUAL_DISK_VERSION_3
        CREATE_VIRTUAL_DISK_VERSION_4
        CREATE_VIRTUAL_DISK_VERSION_UNSPECIFIED
        DELETE_SNAPSHOT_VHDSET_FLAG_NONE
        DELETE_SNAPSHOT_VHDSET_FLAG_PERSIST_RCT
        DELETE_SNAPSHOT_VHDSET_VERSION_1
        DELETE_SNAPSHOT_VHDSET_VERSION_UNSPECIFIED
        DEPENDENT_DISK_FLAG_ALWAYS_ALLOW_SPARSE
        DEPENDENT_DISK_FLAG_FULLY_ALLOCATED
        DEPENDENT_DISK_FLAG_MULT_BACKING_FILES
        DEPENDENT_DISK_FLAG_NONE
        DEPENDENT_DISK_FLAG_NO_DRIVE_LETTER
        DEPENDENT_DISK_FLAG_NO_HOST_DISK
        DEPENDENT_DISK_FLAG_PARENT
        DEPENDENT_DISK_FLAG_PERMANENT_LIFETIME
        DEPENDENT_DISK_FLAG_READ_ONLY
        DEPENDENT_DISK_FLAG_REMOTE
        DEPENDENT_DISK_FLAG_REMOVABLE
        DEPENDENT_DISK_FLAG_SUPPORT_COMPRESSED_VOLUMES
        DEPENDENT_DISK_FLAG_SUPPORT_ENCRYPTED_FILES
        DEPENDENT_DISK_FLAG_SYSTEM_VOLUME
        DEPENDENT_DISK_FLAG_SYSTEM_VOLUME_PARENT
        DETACH_VIRTUAL_DISK_FLAG_NONE
        EXPAND_VIRTUAL_DISK_FLAG_NONE
        EXPAND_VIRTUAL_DISK_FLAG_NOTIFY_CHANGE
        EXPAND_VIRTUAL_DISK_VERSION_1
        EXPAND_VIRTUAL_DISK_VERSION_UNSPECIFIED
        FORK_VIRTUAL_DISK_FLAG_EXISTING_FILE
        FORK_VIRTUAL_DISK_FLAG_NONE
        FORK_VIRTUAL_DISK_VERSION_1
        FORK_VIRTUAL_DISK_VERSION_UNSPECIFIED
        GET_STORAGE_DEPENDENCY_FLAG_DISK_HANDLE
        GET_STORAGE_DEPENDENCY_FLAG_HOST_VOLUMES
        GET_STORAGE_DEPENDENCY_FLAG_NONE
        GET_VIRTUAL_DISK_INFO_CHANGE_TRACKING_STATE
        GET_VIRTUAL_DISK_INFO_FRAGMENTATION
        GET_VIRTUAL_DISK_INFO_IDENTIFIER
        GET_VIRTUAL_DISK_INFO_IS_4K_ALIGNED
        GET_VIRTUAL_DISK_INFO_IS_LOADED
        GET_VIRTUAL_DISK_INFO_PARENT_IDENTIFIER
        GET_VIRTUAL_DISK_INFO_PARENT_LOCATION
        GET_VIRTUAL_DISK_INFO_PARENT_TIMESTAMP
        GET_VIRTUAL_DISK_INFO_PHYSICAL_DISK
        GET_VIRTUAL_DISK_INFO_PROVIDER_SUBTYPE
        GET_VIRTUAL_DISK_INFO_SIZE
        GET_VIRTUAL_DISK_INFO_SMALLEST_SAFE_VIRTUAL_SIZE
        GET_VIRTUAL_DISK_INFO_UNSPECIFIED
        GET_VIRTUAL_DISK_INFO_VHD_PHYSICAL_SECTOR_SIZE
        GET_VIRTUAL_DISK_INFO_VIRTUAL_DISK_ID
        GET_VIRTUAL_DISK_INFO_VIRTUAL_STORAGE_TYPE
        MERGE_VIRTUAL_DISK_DEFAULT_MERGE_DEPTH
        MERGE_VIRTUAL_DISK_FLAG_NONE
        MERGE_VIRTUAL_DISK_VERSION_1
        MERGE_VIRTUAL_DISK_VERSION_2
        MERGE_VIRTUAL_DISK_VERSION_UNSPECIFIED
        MIRROR_VIRTUAL_DISK_FLAG_ENABLE_SMB_COMPRESSION
        MIRROR_VIRTUAL_DISK_FLAG_EXISTING_FILE
        MIRROR_VIRTUAL_DISK_FLAG_IS_LIVE_MIGRATION
        MIRROR_VIRTUAL_DISK_FLAG_NONE
        MIRROR_VIRTUAL_DISK_FLAG_SKIP_MIRROR_ACTIVATION
        MIRROR_VIRTUAL_DISK_VERSION_1
        MIRROR_VIRTUAL_DISK_VERSION_UNSPECIFIED
        MODIFY_VHDSET_DEFAULT_SNAPSHOT_PATH
        MODIFY_VHDSET_FLAG_NONE
        MODIFY_VHDSET_FLAG_WRITEABLE_SNAPSHOT
        MODIFY_VHDSET_REMOVE_SNAPSHOT
        MODIFY_VHDSET_SNAPSHOT_PATH
        MODIFY_VHDSET_UNSPECIFIED
        OPEN_VIRTUAL_DISK_FLAG_BLANK_FILE
        OPEN_VIRTUAL_DISK_FLAG_BOOT_DRIVE
        OPEN_VIRTUAL_DISK_FLAG_CACHED_IO
        OPEN_VIRTUAL_DISK_FLAG_CUSTOM_DIFF_CHAIN
        OPEN_VIRTUAL_DISK_FLAG_IGNORE_RELATIVE_PARENT_LOCATOR
        OPEN_VIRTUAL_DISK_FLAG_NONE
        OPEN_VIRTUAL_DISK_FLAG_NO_PARENTS
        OPEN_VIRTUAL_DISK_FLAG_NO_WRITE_HARDENING
        OPEN_VIRTUAL_DISK_FLAG_PARENT_CACHED_IO
        OPEN_VIRTUAL_DISK_FLAG_SUPPORT_COMPRESSED_VOLUMES
        OPEN_VIRTUAL_DISK_FLAG_SUPPORT_ENCRYPTED_FILES
        OPEN_VIRTUAL_DISK_FLAG_SUPPORT_SPARSE_FILES_ANY_FS
        OPEN_VIRTUAL_DISK_FLAG_VHDSET_FILE_ONLY
        OPEN_VIRTUAL_DISK_RW_DEPTH_DEFAULT
        OPEN_VIRTUAL_DISK_VERSION_1
        OPEN_VIRTUAL_DISK_VERSION_2
        OPEN_VIRTUAL_DISK_VERSION_3
        OPEN_VIRTUAL_DISK_VERSION_UNSPECIFIED
        QUERY_CHANGES_VIRTUAL_DISK_FLAG_NONE
        RAW_SCSI_VIRTUAL_DISK_FLAG_NONE
        RAW_SCSI_VIRTUAL_DISK_VERSION_1
        RAW_SCSI_VIRTUAL_DISK_VERSION_UNSPECIFIED
        RESIZE_VIRTUAL_DISK_FLAG_ALLOW_UNSAFE_VIRTUAL_SIZE
        RESIZE_VIRTUAL_DISK_FLAG_NONE
        RESIZE_VIRTUAL_DISK_FLAG_RESIZE_TO_SMALLEST_SAFE_VIRTUAL_SIZE
        RESIZE_VIRTUAL_DISK_VERSION_1
        RESIZE_VIRTUAL_DISK_VERSION_UNSPECIFIED
        SET_VIRTUAL_DISK_INFO_CHANGE_TRACKING_STATE
        SET_VIRTUAL_DISK_INFO_IDENTIFIER
        SET_VIRTUAL_DISK_INFO_PARENT_LOCATOR
        SET_VIRTUAL_DISK_INFO_PARENT_PATH
        SET_VIRTUAL_DISK_INFO_PARENT_PATH_WITH_DEPTH
        SET_VIRTUAL_DISK_INFO_PHYSICAL_SECTOR_SIZE
        SET_VIRTUAL_DISK_INFO_UNSPECIFIED
        SET_VIRTUAL_DISK_INFO_VIRTUAL_DISK_ID
        STORAGE_DEPENDENCY_INFO_VERSION_1
        STORAGE_DEPENDENCY_INFO_VERSION_2
        STORAGE_DEPENDENCY_INFO_VERSION_UNSPECIFIED
        TAKE_SNAPSHOT_VHDSET_FLAG_NONE
        TAKE_SNAPSHOT_VHDSET_FLAG_WRITEABLE
        TAKE_SNAPSHOT_VHDSET_VERSION_1
        TAKE_SNAPSHOT_VHDSET_VERSION_UNSPECIFIED
        VIRTUAL_DISK_ACCESS_ALL
        VIRTUAL_DISK_ACCESS_ATTACH_RO
        VIRTUAL_DISK_ACCESS_ATTACH_RW
        VIRTUAL_DISK_ACCESS_CREATE
        VIRTUAL_DISK_ACCESS_DETACH
        VIRTUAL_DISK_ACCESS_GET_INFO
        VIRTUAL_DISK_ACCESS_METAOPS
        VIRTUAL_DISK_ACCESS_NONE
        VIRTUAL_DISK_ACCESS_READ
        VIRTUAL_DISK_ACCESS_WRITABLE
        VIRTUAL_DISK_MAXIMUM_CHANGE_TRACKING_ID_LENGTH
        VIRTUAL_STORAGE_TYPE_DEVICE_ISO
        VIRTUAL_STORAGE_TYPE_DEVICE_UNKNOWN
        VIRTUAL_STORAGE_TYPE_DEVICE_VHD
        VIRTUAL_STORAGE_TYPE_DEVICE_VHDSET
        VIRTUAL_STORAGE_TYPE_DEVICE_VHDX
    }
    numbers! { c, codes, foundation:
        ERROR_SUCCESS
        ERROR_FILE_NOT_FOUND
        ERROR_PATH_NOT_FOUND
        ERROR_ACCESS_DENIED
        ERROR_INVALID_HANDLE
        ERROR_NOT_ENOUGH_MEMORY
        ERROR_OUTOFMEMORY
        ERROR_WRITE_PROTECT
        ERROR_NOT_READY
        ERROR_BAD_COMMAND
        ERROR_WRITE_FAULT
        ERROR_READ_FAULT
        ERROR_GEN_FAILURE
        ERROR_SHARING_VIOLATION
        ERROR_HANDLE_EOF
        ERROR_NOT_SUPPORTED
        ERROR_DEV_NOT_EXIST
        ERROR_FILE_EXISTS
        ERROR_INVALID_PARAMETER
        ERROR_DISK_FULL
        ERROR_INSUFFICIENT_BUFFER
        ERROR_INVALID_NAME
        ERROR_BUSY
        ERROR_ALREADY_EXISTS
        ERROR_FILENAME_EXCED_RANGE
        ERROR_FILE_TOO_LARGE
        ERROR_MORE_DATA
        ERROR_UNSUPPORTED_COMPRESSION
        ERROR_FILE_SYSTEM_LIMITATION
        ERROR_OPERATION_ABORTED
        ERROR_IO_INCOMPLETE
        ERROR_IO_PENDING
        ERROR_INVALID_FLAGS
        ERROR_NO_UNICODE_TRANSLATION
        ERROR_NOT_FOUND
        ERROR_CANCELLED
        ERROR_PRIVILEGE_NOT_HELD
        ERROR_INTERNAL_ERROR
        ERROR_FILE_CORRUPT
        ERROR_INVALID_STATE
        ERROR_FILE_ENCRYPTED
        ERROR_QUERY_STORAGE_ERROR
        ERROR_VHD_DRIVE_FOOTER_MISSING
        ERROR_VHD_DRIVE_FOOTER_CHECKSUM_MISMATCH
        ERROR_VHD_DRIVE_FOOTER_CORRUPT
        ERROR_VHD_FORMAT_UNKNOWN
        ERROR_VHD_FORMAT_UNSUPPORTED_VERSION
        ERROR_VHD_SPARSE_HEADER_CHECKSUM_MISMATCH
        ERROR_VHD_SPARSE_HEADER_UNSUPPORTED_VERSION
        ERROR_VHD_SPARSE_HEADER_CORRUPT
        ERROR_VHD_BLOCK_ALLOCATION_FAILURE
        ERROR_VHD_BLOCK_ALLOCATION_TABLE_CORRUPT
        ERROR_VHD_INVALID_BLOCK_SIZE
        ERROR_VHD_BITMAP_MISMATCH
        ERROR_VHD_PARENT_VHD_NOT_FOUND
        ERROR_VHD_CHILD_PARENT_ID_MISMATCH
        ERROR_VHD_CHILD_PARENT_TIMESTAMP_MISMATCH
        ERROR_VHD_METADATA_READ_FAILURE
        ERROR_VHD_METADATA_WRITE_FAILURE
        ERROR_VHD_INVALID_SIZE
        ERROR_VHD_INVALID_FILE_SIZE
        ERROR_VIRTDISK_PROVIDER_NOT_FOUND
        ERROR_VIRTDISK_NOT_VIRTUAL_DISK
        ERROR_VHD_PARENT_VHD_ACCESS_DENIED
        ERROR_VHD_CHILD_PARENT_SIZE_MISMATCH
        ERROR_VHD_DIFFERENCING_CHAIN_CYCLE_DETECTED
        ERROR_VHD_DIFFERENCING_CHAIN_ERROR_IN_PARENT
        ERROR_VIRTUAL_DISK_LIMITATION
        ERROR_VHD_INVALID_TYPE
        ERROR_VHD_INVALID_STATE
        ERROR_VIRTDISK_UNSUPPORTED_DISK_SECTOR_SIZE
        ERROR_VIRTDISK_DISK_ALREADY_OWNED
        ERROR_VIRTDISK_DISK_ONLINE_AND_WRITABLE
        ERROR_CTLOG_TRACKING_NOT_INITIALIZED
        ERROR_CTLOG_LOGFILE_SIZE_EXCEEDED_MAXSIZE
        ERROR_CTLOG_VHD_CHANGED_OFFLINE
        ERROR_CTLOG_INVALID_TRACKING_STATE
        ERROR_CTLOG_INCONSISTENT_TRACKING_FILE
        ERROR_VHD_RESIZE_WOULD_TRUNCATE_DATA
        ERROR_VHD_COULD_NOT_COMPUTE_MINIMUM_VIRTUAL_SIZE
        ERROR_VHD_ALREADY_AT_OR_BELOW_MINIMUM_VIRTUAL_SIZE
        ERROR_VHD_METADATA_FULL
        ERROR_VHD_INVALID_CHANGE_TRACKING_ID
        ERROR_VHD_CHANGE_TRACKING_DISABLED
        ERROR_VHD_MISSING_CHANGE_TRACKING_INFORMATION
        ERROR_VHD_UNEXPECTED_ID
        ERROR_VHD_SHARED
        ERROR_VHDSET_BACKING_STORAGE_NOT_FOUND
    }
    assert_eq!(size_of::<types::GUID>(), 16);
    assert_eq!(align_of::<types::GUID>(), 4);
    c.push("CHECK(sizeof(GUID) == 16); CHECK(sizeof(WCHAR) == 2); CHECK(sizeof(HANDLE) == sizeof(void *));".into());
    for language in [Language::C, Language::Cpp] {
        let check = match language {
            Language::C => "_Static_assert",
            Language::Cpp => "static_assert",
        };
        let source = format!(
            "#include <virtdisk.h>\n#define CHECK(x) {check}(x, #x)\n{}\n",
            c.join("\n")
        );
        for options in [&[][..], &["-fshort-wchar"], &["-DINITGUID"]] {
            Compiler::new(language).options(options).check(&source);
        }
    }
}

#[test]
fn every_old_name_exists_and_guids_can_be_defined_or_linked() {
    let source = "
        #include <virtdisk.h>
        #define TEXT_OF(x) #x
        SURFACE_VIRTUAL_DISK_PARAMETERS a; PSURFACE_VIRTUAL_DISK_PARAMETERS b; SURFACE_VIRTUAL_DISK_FLAG c;
        SURFACE_VIRTUAL_DISK_VERSION d = SURFACE_VIRTUAL_DISK_VERSION_1; UNSURFACE_VIRTUAL_DISK_FLAG e;
        DWORD (*attach)(HANDLE, PSECURITY_DESCRIPTOR, SURFACE_VIRTUAL_DISK_FLAG, ULONG,
                        PSURFACE_VIRTUAL_DISK_PARAMETERS, LPOVERLAPPED) = SurfaceVirtualDisk;
        DWORD (*detach)(HANDLE, UNSURFACE_VIRTUAL_DISK_FLAG, ULONG) = UnsurfaceVirtualDisk;
        int values(void);
        int values(void) {
            return (int)VIRTUAL_DISK_ACCESS_SURFACE_RO + (int)VIRTUAL_DISK_ACCESS_SURFACE_RW
                + (int)VIRTUAL_DISK_ACCESS_UNSURFACE + (int)SURFACE_VIRTUAL_DISK_FLAG_NO_LOCAL_HOST
                + (int)UNSURFACE_VIRTUAL_DISK_FLAG_NONE + (int)GET_STORAGE_DEPENDENCY_FLAG_PARENTS
                + (int)CREATE_VIRTUAL_DISK_FLAG_USE_RCT_SOURCE_LIMIT;
        }
        DEFINE_GUID(OURS, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11);
        int main(void) { return values() == 0 || VIRTUAL_STORAGE_TYPE_VENDOR_MICROSOFT.Data1 != 0xEC984AEC; }
    ";
    for language in [Language::C, Language::Cpp] {
        for options in [&[][..], &["-DINITGUID"]] {
            Compiler::new(language).options(options).run(source, &[]);
        }
    }
}

#[test]
fn flags_have_operators_in_cpp() {
    let source = "
        #include <virtdisk.h>
        static_assert((VIRTUAL_DISK_ACCESS_ATTACH_RO | VIRTUAL_DISK_ACCESS_DETACH | VIRTUAL_DISK_ACCESS_GET_INFO)
            == VIRTUAL_DISK_ACCESS_READ, \"a constant\");
        int main() {
            OPEN_VIRTUAL_DISK_FLAG flags = OPEN_VIRTUAL_DISK_FLAG_NO_PARENTS | OPEN_VIRTUAL_DISK_FLAG_CACHED_IO;
            flags |= OPEN_VIRTUAL_DISK_FLAG_NO_WRITE_HARDENING;
            flags &= ~OPEN_VIRTUAL_DISK_FLAG_NO_PARENTS;
            return (flags & OPEN_VIRTUAL_DISK_FLAG_CACHED_IO) == 0 || flags != OPEN_VIRTUAL_DISK_FLAG(0x108);
        }
    ";
    Compiler::new(Language::Cpp).run(source, &[]);
}

#[test]
fn a_program_may_bring_its_own_windows_h() {
    let source = "
        #include <stdint.h>
        #define _WINDOWS_
        #define WINAPI
        typedef void *HANDLE; typedef HANDLE *PHANDLE; typedef int BOOL; typedef unsigned int DWORD, ULONG;
        typedef unsigned short WCHAR; typedef const WCHAR *PCWSTR; typedef WCHAR *PWSTR; typedef void *PVOID;
        typedef unsigned long long ULONGLONG, ULONG64; typedef ULONG *PULONG; typedef ULONG64 *PULONG64;
        typedef unsigned char UCHAR; typedef void *PSECURITY_DESCRIPTOR;
        typedef struct { uint32_t Data1; uint16_t Data2, Data3; uint8_t Data4[8]; } GUID;
        #define GUID_DEFINED
        typedef struct { uintptr_t Internal, InternalHigh; uint64_t Offset; HANDLE hEvent; } OVERLAPPED, *LPOVERLAPPED;
        #define ERROR_SUCCESS 0L
        #include <virtdisk.h>
        static int CloseHandle(HANDLE h) { return h == 0 || vhdkit_CloseHandle(h); }
        int main(void) {
            return DetachVirtualDisk(0, DETACH_VIRTUAL_DISK_FLAG_NONE, 0) != ERROR_INVALID_HANDLE || !CloseHandle(0);
        }
    ";
    for language in [Language::C, Language::Cpp] {
        Compiler::new(language).run(source, &[]);
    }
}

#[test]
fn only_the_api_is_exported() {
    let Some(symbols) = common::exported_symbols() else {
        return;
    };
    let header = ["virtdisk.h", "vhdkit_win32.h"]
        .map(|name| std::fs::read_to_string(common::include().join(name)).unwrap())
        .concat();
    for symbol in &symbols {
        assert!(
            header.contains(symbol.as_str()),
            "{symbol} is not of the API"
        );
    }
    for function in [
        "OpenVirtualDisk",
        "RawSCSIVirtualDisk",
        "CompleteForkVirtualDisk",
    ] {
        assert!(
            symbols.iter().any(|symbol| symbol == function),
            "{function}"
        );
    }
    // 29 functions of the API, 2 identifiers, 16 Win32 calls, 12 of them once more.
    assert_eq!(symbols.len(), 29 + 2 + 16 + 12);
}
