//! The structures of virtdisk.h, in their layout on 64-bit Windows (contract, section 3).
//!
//! Names are those of the SDK. Of a union only the arm that `Version` selects may be read or written: a caller that was
//! built with an older header passes a shorter structure.

#![expect(
    missing_docs,
    non_snake_case,
    reason = "names of the SDK, which documents them"
)]

use std::ffi::c_void;

use crate::constants::*;

/// `BOOL`: zero or not.
pub type BOOL = i32;
/// `HANDLE`.
pub type HANDLE = *mut c_void;
/// `PCWSTR`: UTF-16 up to a zero.
pub type PCWSTR = *const u16;
/// `PWSTR`.
pub type PWSTR = *mut u16;

macro_rules! layouts {
    ($($kind:tt $name:ident { $($field:ident: $type:ty,)* })*) => {
        $(
            #[repr(C)]
            #[derive(Clone, Copy)]
            pub $kind $name { $(pub $field: $type,)* }
        )*
    };
}

layouts! {
    struct GUID {
        Data1: u32,
        Data2: u16,
        Data3: u16,
        Data4: [u8; 8],
    }

    struct OVERLAPPED {
        Internal: usize,
        InternalHigh: usize,
        Anonymous: OVERLAPPED_0,
        hEvent: HANDLE,
    }

    union OVERLAPPED_0 {
        Anonymous: OVERLAPPED_0_0,
        Pointer: *mut c_void,
    }

    struct OVERLAPPED_0_0 {
        Offset: u32,
        OffsetHigh: u32,
    }

    struct APPLY_SNAPSHOT_VHDSET_PARAMETERS {
        Version: APPLY_SNAPSHOT_VHDSET_VERSION,
        Anonymous: APPLY_SNAPSHOT_VHDSET_PARAMETERS_0,
    }

    union APPLY_SNAPSHOT_VHDSET_PARAMETERS_0 {
        Version1: APPLY_SNAPSHOT_VHDSET_PARAMETERS_0_0,
    }

    struct APPLY_SNAPSHOT_VHDSET_PARAMETERS_0_0 {
        SnapshotId: GUID,
        LeafSnapshotId: GUID,
    }

    struct ATTACH_VIRTUAL_DISK_PARAMETERS {
        Version: ATTACH_VIRTUAL_DISK_VERSION,
        Anonymous: ATTACH_VIRTUAL_DISK_PARAMETERS_0,
    }

    union ATTACH_VIRTUAL_DISK_PARAMETERS_0 {
        Version1: ATTACH_VIRTUAL_DISK_PARAMETERS_0_0,
        Version2: ATTACH_VIRTUAL_DISK_PARAMETERS_0_1,
    }

    struct ATTACH_VIRTUAL_DISK_PARAMETERS_0_0 {
        Reserved: u32,
    }

    struct ATTACH_VIRTUAL_DISK_PARAMETERS_0_1 {
        RestrictedOffset: u64,
        RestrictedLength: u64,
    }

    struct COMPACT_VIRTUAL_DISK_PARAMETERS {
        Version: COMPACT_VIRTUAL_DISK_VERSION,
        Anonymous: COMPACT_VIRTUAL_DISK_PARAMETERS_0,
    }

    union COMPACT_VIRTUAL_DISK_PARAMETERS_0 {
        Version1: COMPACT_VIRTUAL_DISK_PARAMETERS_0_0,
    }

    struct COMPACT_VIRTUAL_DISK_PARAMETERS_0_0 {
        Reserved: u32,
    }

    struct CREATE_VIRTUAL_DISK_PARAMETERS {
        Version: CREATE_VIRTUAL_DISK_VERSION,
        Anonymous: CREATE_VIRTUAL_DISK_PARAMETERS_0,
    }

    union CREATE_VIRTUAL_DISK_PARAMETERS_0 {
        Version1: CREATE_VIRTUAL_DISK_PARAMETERS_0_0,
        Version2: CREATE_VIRTUAL_DISK_PARAMETERS_0_1,
        Version3: CREATE_VIRTUAL_DISK_PARAMETERS_0_2,
        Version4: CREATE_VIRTUAL_DISK_PARAMETERS_0_3,
    }

    struct CREATE_VIRTUAL_DISK_PARAMETERS_0_0 {
        UniqueId: GUID,
        MaximumSize: u64,
        BlockSizeInBytes: u32,
        SectorSizeInBytes: u32,
        ParentPath: PCWSTR,
        SourcePath: PCWSTR,
    }

    struct CREATE_VIRTUAL_DISK_PARAMETERS_0_1 {
        UniqueId: GUID,
        MaximumSize: u64,
        BlockSizeInBytes: u32,
        SectorSizeInBytes: u32,
        PhysicalSectorSizeInBytes: u32,
        ParentPath: PCWSTR,
        SourcePath: PCWSTR,
        OpenFlags: OPEN_VIRTUAL_DISK_FLAG,
        ParentVirtualStorageType: VIRTUAL_STORAGE_TYPE,
        SourceVirtualStorageType: VIRTUAL_STORAGE_TYPE,
        ResiliencyGuid: GUID,
    }

    struct CREATE_VIRTUAL_DISK_PARAMETERS_0_2 {
        UniqueId: GUID,
        MaximumSize: u64,
        BlockSizeInBytes: u32,
        SectorSizeInBytes: u32,
        PhysicalSectorSizeInBytes: u32,
        ParentPath: PCWSTR,
        SourcePath: PCWSTR,
        OpenFlags: OPEN_VIRTUAL_DISK_FLAG,
        ParentVirtualStorageType: VIRTUAL_STORAGE_TYPE,
        SourceVirtualStorageType: VIRTUAL_STORAGE_TYPE,
        ResiliencyGuid: GUID,
        SourceLimitPath: PCWSTR,
        BackingStorageType: VIRTUAL_STORAGE_TYPE,
    }

    struct CREATE_VIRTUAL_DISK_PARAMETERS_0_3 {
        UniqueId: GUID,
        MaximumSize: u64,
        BlockSizeInBytes: u32,
        SectorSizeInBytes: u32,
        PhysicalSectorSizeInBytes: u32,
        ParentPath: PCWSTR,
        SourcePath: PCWSTR,
        OpenFlags: OPEN_VIRTUAL_DISK_FLAG,
        ParentVirtualStorageType: VIRTUAL_STORAGE_TYPE,
        SourceVirtualStorageType: VIRTUAL_STORAGE_TYPE,
        ResiliencyGuid: GUID,
        SourceLimitPath: PCWSTR,
        BackingStorageType: VIRTUAL_STORAGE_TYPE,
        PmemAddressAbstractionType: GUID,
        DataAlignment: u64,
    }

    struct DELETE_SNAPSHOT_VHDSET_PARAMETERS {
        Version: DELETE_SNAPSHOT_VHDSET_VERSION,
        Anonymous: DELETE_SNAPSHOT_VHDSET_PARAMETERS_0,
    }

    union DELETE_SNAPSHOT_VHDSET_PARAMETERS_0 {
        Version1: DELETE_SNAPSHOT_VHDSET_PARAMETERS_0_0,
    }

    struct DELETE_SNAPSHOT_VHDSET_PARAMETERS_0_0 {
        SnapshotId: GUID,
    }

    struct EXPAND_VIRTUAL_DISK_PARAMETERS {
        Version: EXPAND_VIRTUAL_DISK_VERSION,
        Anonymous: EXPAND_VIRTUAL_DISK_PARAMETERS_0,
    }

    union EXPAND_VIRTUAL_DISK_PARAMETERS_0 {
        Version1: EXPAND_VIRTUAL_DISK_PARAMETERS_0_0,
    }

    struct EXPAND_VIRTUAL_DISK_PARAMETERS_0_0 {
        NewSize: u64,
    }

    struct FORK_VIRTUAL_DISK_PARAMETERS {
        Version: FORK_VIRTUAL_DISK_VERSION,
        Anonymous: FORK_VIRTUAL_DISK_PARAMETERS_0,
    }

    union FORK_VIRTUAL_DISK_PARAMETERS_0 {
        Version1: FORK_VIRTUAL_DISK_PARAMETERS_0_0,
    }

    struct FORK_VIRTUAL_DISK_PARAMETERS_0_0 {
        ForkedVirtualDiskPath: PCWSTR,
    }

    struct GET_VIRTUAL_DISK_INFO {
        Version: GET_VIRTUAL_DISK_INFO_VERSION,
        Anonymous: GET_VIRTUAL_DISK_INFO_0,
    }

    union GET_VIRTUAL_DISK_INFO_0 {
        Size: GET_VIRTUAL_DISK_INFO_0_0,
        Identifier: GUID,
        ParentLocation: GET_VIRTUAL_DISK_INFO_0_1,
        ParentIdentifier: GUID,
        ParentTimestamp: u32,
        VirtualStorageType: VIRTUAL_STORAGE_TYPE,
        ProviderSubtype: u32,
        Is4kAligned: BOOL,
        IsLoaded: BOOL,
        PhysicalDisk: GET_VIRTUAL_DISK_INFO_0_2,
        VhdPhysicalSectorSize: u32,
        SmallestSafeVirtualSize: u64,
        FragmentationPercentage: u32,
        VirtualDiskId: GUID,
        ChangeTrackingState: GET_VIRTUAL_DISK_INFO_0_3,
    }

    struct GET_VIRTUAL_DISK_INFO_0_3 {
        Enabled: BOOL,
        NewerChanges: BOOL,
        MostRecentId: [u16; 1],
    }

    struct GET_VIRTUAL_DISK_INFO_0_1 {
        ParentResolved: BOOL,
        ParentLocationBuffer: [u16; 1],
    }

    struct GET_VIRTUAL_DISK_INFO_0_2 {
        LogicalSectorSize: u32,
        PhysicalSectorSize: u32,
        IsRemote: BOOL,
    }

    struct GET_VIRTUAL_DISK_INFO_0_0 {
        VirtualSize: u64,
        PhysicalSize: u64,
        BlockSize: u32,
        SectorSize: u32,
    }

    struct MERGE_VIRTUAL_DISK_PARAMETERS {
        Version: MERGE_VIRTUAL_DISK_VERSION,
        Anonymous: MERGE_VIRTUAL_DISK_PARAMETERS_0,
    }

    union MERGE_VIRTUAL_DISK_PARAMETERS_0 {
        Version1: MERGE_VIRTUAL_DISK_PARAMETERS_0_0,
        Version2: MERGE_VIRTUAL_DISK_PARAMETERS_0_1,
    }

    struct MERGE_VIRTUAL_DISK_PARAMETERS_0_0 {
        MergeDepth: u32,
    }

    struct MERGE_VIRTUAL_DISK_PARAMETERS_0_1 {
        MergeSourceDepth: u32,
        MergeTargetDepth: u32,
    }

    struct MIRROR_VIRTUAL_DISK_PARAMETERS {
        Version: MIRROR_VIRTUAL_DISK_VERSION,
        Anonymous: MIRROR_VIRTUAL_DISK_PARAMETERS_0,
    }

    union MIRROR_VIRTUAL_DISK_PARAMETERS_0 {
        Version1: MIRROR_VIRTUAL_DISK_PARAMETERS_0_0,
    }

    struct MIRROR_VIRTUAL_DISK_PARAMETERS_0_0 {
        MirrorVirtualDiskPath: PCWSTR,
    }

    struct MODIFY_VHDSET_PARAMETERS {
        Version: MODIFY_VHDSET_VERSION,
        Anonymous: MODIFY_VHDSET_PARAMETERS_0,
    }

    union MODIFY_VHDSET_PARAMETERS_0 {
        SnapshotPath: MODIFY_VHDSET_PARAMETERS_0_0,
        SnapshotId: GUID,
        DefaultFilePath: PCWSTR,
    }

    struct MODIFY_VHDSET_PARAMETERS_0_0 {
        SnapshotId: GUID,
        SnapshotFilePath: PCWSTR,
    }

    struct OPEN_VIRTUAL_DISK_PARAMETERS {
        Version: OPEN_VIRTUAL_DISK_VERSION,
        Anonymous: OPEN_VIRTUAL_DISK_PARAMETERS_0,
    }

    union OPEN_VIRTUAL_DISK_PARAMETERS_0 {
        Version1: OPEN_VIRTUAL_DISK_PARAMETERS_0_0,
        Version2: OPEN_VIRTUAL_DISK_PARAMETERS_0_1,
        Version3: OPEN_VIRTUAL_DISK_PARAMETERS_0_2,
    }

    struct OPEN_VIRTUAL_DISK_PARAMETERS_0_0 {
        RWDepth: u32,
    }

    struct OPEN_VIRTUAL_DISK_PARAMETERS_0_1 {
        GetInfoOnly: BOOL,
        ReadOnly: BOOL,
        ResiliencyGuid: GUID,
    }

    struct OPEN_VIRTUAL_DISK_PARAMETERS_0_2 {
        GetInfoOnly: BOOL,
        ReadOnly: BOOL,
        ResiliencyGuid: GUID,
        SnapshotId: GUID,
    }

    struct QUERY_CHANGES_VIRTUAL_DISK_RANGE {
        ByteOffset: u64,
        ByteLength: u64,
        Reserved: u64,
    }

    struct RAW_SCSI_VIRTUAL_DISK_PARAMETERS {
        Version: RAW_SCSI_VIRTUAL_DISK_VERSION,
        Anonymous: RAW_SCSI_VIRTUAL_DISK_PARAMETERS_0,
    }

    union RAW_SCSI_VIRTUAL_DISK_PARAMETERS_0 {
        Version1: RAW_SCSI_VIRTUAL_DISK_PARAMETERS_0_0,
    }

    struct RAW_SCSI_VIRTUAL_DISK_PARAMETERS_0_0 {
        RSVDHandle: BOOL,
        DataIn: u8,
        CdbLength: u8,
        SenseInfoLength: u8,
        SrbFlags: u32,
        DataTransferLength: u32,
        DataBuffer: *mut c_void,
        SenseInfo: *mut u8,
        Cdb: *mut u8,
    }

    struct RAW_SCSI_VIRTUAL_DISK_RESPONSE {
        Version: RAW_SCSI_VIRTUAL_DISK_VERSION,
        Anonymous: RAW_SCSI_VIRTUAL_DISK_RESPONSE_0,
    }

    union RAW_SCSI_VIRTUAL_DISK_RESPONSE_0 {
        Version1: RAW_SCSI_VIRTUAL_DISK_RESPONSE_0_0,
    }

    struct RAW_SCSI_VIRTUAL_DISK_RESPONSE_0_0 {
        ScsiStatus: u8,
        SenseInfoLength: u8,
        DataTransferLength: u32,
    }

    struct RESIZE_VIRTUAL_DISK_PARAMETERS {
        Version: RESIZE_VIRTUAL_DISK_VERSION,
        Anonymous: RESIZE_VIRTUAL_DISK_PARAMETERS_0,
    }

    union RESIZE_VIRTUAL_DISK_PARAMETERS_0 {
        Version1: RESIZE_VIRTUAL_DISK_PARAMETERS_0_0,
    }

    struct RESIZE_VIRTUAL_DISK_PARAMETERS_0_0 {
        NewSize: u64,
    }

    struct SET_VIRTUAL_DISK_INFO {
        Version: SET_VIRTUAL_DISK_INFO_VERSION,
        Anonymous: SET_VIRTUAL_DISK_INFO_0,
    }

    union SET_VIRTUAL_DISK_INFO_0 {
        ParentFilePath: PCWSTR,
        UniqueIdentifier: GUID,
        ParentPathWithDepthInfo: SET_VIRTUAL_DISK_INFO_0_0,
        VhdPhysicalSectorSize: u32,
        VirtualDiskId: GUID,
        ChangeTrackingEnabled: BOOL,
        ParentLocator: SET_VIRTUAL_DISK_INFO_0_1,
    }

    struct SET_VIRTUAL_DISK_INFO_0_1 {
        LinkageId: GUID,
        ParentFilePath: PCWSTR,
    }

    struct SET_VIRTUAL_DISK_INFO_0_0 {
        ChildDepth: u32,
        ParentFilePath: PCWSTR,
    }

    struct STORAGE_DEPENDENCY_INFO {
        Version: STORAGE_DEPENDENCY_INFO_VERSION,
        NumberEntries: u32,
        Anonymous: STORAGE_DEPENDENCY_INFO_0,
    }

    union STORAGE_DEPENDENCY_INFO_0 {
        Version1Entries: [STORAGE_DEPENDENCY_INFO_TYPE_1; 1],
        Version2Entries: [STORAGE_DEPENDENCY_INFO_TYPE_2; 1],
    }

    struct STORAGE_DEPENDENCY_INFO_TYPE_1 {
        DependencyTypeFlags: DEPENDENT_DISK_FLAG,
        ProviderSpecificFlags: u32,
        VirtualStorageType: VIRTUAL_STORAGE_TYPE,
    }

    struct STORAGE_DEPENDENCY_INFO_TYPE_2 {
        DependencyTypeFlags: DEPENDENT_DISK_FLAG,
        ProviderSpecificFlags: u32,
        VirtualStorageType: VIRTUAL_STORAGE_TYPE,
        AncestorLevel: u32,
        DependencyDeviceName: PWSTR,
        HostVolumeName: PWSTR,
        DependentVolumeName: PWSTR,
        DependentVolumeRelativePath: PWSTR,
    }

    struct TAKE_SNAPSHOT_VHDSET_PARAMETERS {
        Version: TAKE_SNAPSHOT_VHDSET_VERSION,
        Anonymous: TAKE_SNAPSHOT_VHDSET_PARAMETERS_0,
    }

    union TAKE_SNAPSHOT_VHDSET_PARAMETERS_0 {
        Version1: TAKE_SNAPSHOT_VHDSET_PARAMETERS_0_0,
    }

    struct TAKE_SNAPSHOT_VHDSET_PARAMETERS_0_0 {
        SnapshotId: GUID,
    }

    struct VIRTUAL_DISK_PROGRESS {
        OperationStatus: u32,
        CurrentValue: u64,
        CompletionValue: u64,
    }

    struct VIRTUAL_STORAGE_TYPE {
        DeviceId: u32,
        VendorId: GUID,
    }
}
