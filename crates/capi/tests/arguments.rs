//! Every function with every kind of bad argument: the documented code, and nothing has changed.

#![allow(
    unsafe_code,
    unused_unsafe,
    clippy::wildcard_imports,
    clippy::borrow_as_ptr,
    clippy::cast_ptr_alignment,
    clippy::unwrap_used,
    reason = "the functions of the interface are called as C does; some are safe"
)]

use std::collections::BTreeMap;
use std::mem::zeroed;
use std::path::Path;
use std::ptr::{null, null_mut, without_provenance_mut};

use virtdisk::codes::*;
use virtdisk::constants::*;
use virtdisk::types::*;
use virtdisk::*;

fn wide(text: &str) -> Vec<u16> {
    text.encode_utf16().chain([0]).collect()
}

/// Names, lengths and contents of all files of a folder.
fn state(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| {
            let entry = entry.unwrap();
            let name = entry.file_name().into_string().unwrap();
            (name, std::fs::read(entry.path()).unwrap())
        })
        .collect()
}

struct Files {
    folder: tempfile::TempDir,
}

impl Files {
    fn path(&self, name: &str) -> Vec<u16> {
        wide(self.folder.path().join(name).to_str().unwrap())
    }

    fn create(&self, name: &str, parent: Option<&str>) {
        let mut handle = null_mut();
        let parent = parent.map(|parent| self.path(parent));
        // SAFETY: an all-zero structure is valid; pointers live as long as the call.
        unsafe {
            let mut p: CREATE_VIRTUAL_DISK_PARAMETERS = zeroed();
            p.Version = CREATE_VIRTUAL_DISK_VERSION_2;
            match &parent {
                Some(parent) => p.Anonymous.Version2.ParentPath = parent.as_ptr(),
                None => p.Anonymous.Version2.MaximumSize = 8 << 20,
            }
            let path = self.path(name);
            let code = CreateVirtualDisk(
                &zeroed(),
                path.as_ptr(),
                0,
                null_mut(),
                0,
                0,
                &p,
                null_mut(),
                &mut handle,
            );
            assert_eq!(code, 0, "{name}");
            assert_eq!(CloseHandle(handle), 1);
        }
    }

    fn open(&self, name: &str, access: Opened) -> HANDLE {
        let mut handle = null_mut();
        // SAFETY: as above.
        unsafe {
            let mut p: OPEN_VIRTUAL_DISK_PARAMETERS = zeroed();
            let mask = match access {
                Opened::V1(mask) => {
                    p.Version = OPEN_VIRTUAL_DISK_VERSION_1;
                    p.Anonymous.Version1.RWDepth = 1;
                    mask
                }
                Opened::V2 {
                    info_only,
                    read_only,
                } => {
                    p.Version = OPEN_VIRTUAL_DISK_VERSION_2;
                    p.Anonymous.Version2.GetInfoOnly = info_only.into();
                    p.Anonymous.Version2.ReadOnly = read_only.into();
                    0
                }
            };
            let path = self.path(name);
            assert_eq!(
                OpenVirtualDisk(&zeroed(), path.as_ptr(), mask, 0, &p, &mut handle),
                0,
                "{name}"
            );
        }
        handle
    }
}

#[derive(Clone, Copy)]
enum Opened {
    V1(u32),
    V2 { info_only: bool, read_only: bool },
}

/// Rows of a table: what is wrong, the code, the call.
macro_rules! table {
    ($folder:expr; $($what:literal => $code:ident: $call:expr;)*) => {
        let before = state($folder);
        $(
            // SAFETY: the arguments are NULL, or live as long as the call; what is wrong with them is for the function to
            // see.
            let code = unsafe { $call };
            assert_eq!(code, $code, "{} ({})", $what, stringify!($call));
        )*
        assert!(before == state($folder), "files have changed");
    };
}

/// A structure of zeros with a version.
macro_rules! versioned {
    ($type:ident, $version:expr) => {{
        // SAFETY: numbers and pointers, for which zeros are valid.
        let mut value: $type = unsafe { zeroed() };
        value.Version = $version;
        value
    }};
}

#[test]
fn open() {
    let files = Files {
        folder: tempfile::tempdir().unwrap(),
    };
    files.create("a.vhdx", None);
    std::fs::write(files.folder.path().join("a.iso"), [0; 100]).unwrap();
    let path = files.path("a.vhdx");
    let (iso, set, none) = (
        files.path("a.iso"),
        files.path("a.vhds"),
        files.path("a.img"),
    );
    let missing = files.path("missing.vhdx");
    let (long, long_name) = (vec![u16::from(b'a'); 40_000], files.path(&"x".repeat(300)));
    let invalid = [0x2F, 0xDC00, 0];
    let empty = [0];
    // SAFETY: numbers, for which zeros are valid.
    let any: VIRTUAL_STORAGE_TYPE = unsafe { zeroed() };
    let kind = |device| VIRTUAL_STORAGE_TYPE {
        DeviceId: device,
        ..any
    };
    let vendor = VIRTUAL_STORAGE_TYPE {
        VendorId: GUID {
            Data1: 1,
            Data2: 0,
            Data3: 0,
            Data4: [0; 8],
        },
        ..any
    };
    let v1 = versioned!(OPEN_VIRTUAL_DISK_PARAMETERS, 1);
    let v2 = versioned!(OPEN_VIRTUAL_DISK_PARAMETERS, 2);
    let mut v3 = versioned!(OPEN_VIRTUAL_DISK_PARAMETERS, 3);
    v3.Anonymous.Version3 = OPEN_VIRTUAL_DISK_PARAMETERS_0_2 {
        GetInfoOnly: 0,
        ReadOnly: 0,
        ResiliencyGuid: any.VendorId,
        SnapshotId: vendor.VendorId,
    };
    let (v0, v4) = (
        versioned!(OPEN_VIRTUAL_DISK_PARAMETERS, 0),
        versioned!(OPEN_VIRTUAL_DISK_PARAMETERS, 4),
    );
    let mut h = null_mut();
    let info = VIRTUAL_DISK_ACCESS_GET_INFO;
    table! { files.folder.path();
        "no type" => ERROR_INVALID_PARAMETER: OpenVirtualDisk(null(), path.as_ptr(), 0, 0, &v2, &mut h);
        "no path" => ERROR_INVALID_PARAMETER: OpenVirtualDisk(&any, null(), 0, 0, &v2, &mut h);
        "no handle" => ERROR_INVALID_PARAMETER: OpenVirtualDisk(&any, path.as_ptr(), 0, 0, &v2, null_mut());
        "version 0" => ERROR_INVALID_PARAMETER: OpenVirtualDisk(&any, path.as_ptr(), 0, 0, &v0, &mut h);
        "version 4" => ERROR_INVALID_PARAMETER: OpenVirtualDisk(&any, path.as_ptr(), 0, 0, &v4, &mut h);
        "a bit outside ALL" => ERROR_INVALID_PARAMETER: OpenVirtualDisk(&any, path.as_ptr(), 0x0040_0000, 0, &v1, &mut h);
        "a mask with version 2" => ERROR_INVALID_PARAMETER: OpenVirtualDisk(&any, path.as_ptr(), info, 0, &v2, &mut h);
        "no mask with version 1" => ERROR_INVALID_PARAMETER: OpenVirtualDisk(&any, path.as_ptr(), 0, 0, &v1, &mut h);
        "no mask without parameters" => ERROR_INVALID_PARAMETER: OpenVirtualDisk(&any, path.as_ptr(), 0, 0, null(), &mut h);
        "an unknown flag" => ERROR_INVALID_PARAMETER: OpenVirtualDisk(&any, path.as_ptr(), 0, 0x1000, &v2, &mut h);
        "flags that exclude each other" => ERROR_INVALID_PARAMETER: OpenVirtualDisk(&any, path.as_ptr(), 0, 0x11, &v2, &mut h);
        "a reserved flag" => ERROR_NOT_SUPPORTED: OpenVirtualDisk(&any, path.as_ptr(), 0, OPEN_VIRTUAL_DISK_FLAG_BOOT_DRIVE, &v2, &mut h);
        "a blank file" => ERROR_NOT_SUPPORTED: OpenVirtualDisk(&any, path.as_ptr(), 0, OPEN_VIRTUAL_DISK_FLAG_BLANK_FILE, &v2, &mut h);
        "a set's file" => ERROR_NOT_SUPPORTED: OpenVirtualDisk(&any, path.as_ptr(), 0, OPEN_VIRTUAL_DISK_FLAG_VHDSET_FILE_ONLY, &v2, &mut h);
        "a snapshot" => ERROR_NOT_SUPPORTED: OpenVirtualDisk(&any, path.as_ptr(), 0, 0, &v3, &mut h);
        "another vendor" => ERROR_VIRTDISK_PROVIDER_NOT_FOUND: OpenVirtualDisk(&vendor, path.as_ptr(), 0, 0, &v2, &mut h);
        "an unknown device" => ERROR_VIRTDISK_PROVIDER_NOT_FOUND: OpenVirtualDisk(&kind(5), path.as_ptr(), 0, 0, &v2, &mut h);
        "an unknown extension" => ERROR_VIRTDISK_PROVIDER_NOT_FOUND: OpenVirtualDisk(&any, none.as_ptr(), 0, 0, &v2, &mut h);
        "a set by type" => ERROR_NOT_SUPPORTED: OpenVirtualDisk(&kind(4), path.as_ptr(), 0, 0, &v2, &mut h);
        "a set by extension" => ERROR_NOT_SUPPORTED: OpenVirtualDisk(&any, set.as_ptr(), 0, 0, &v2, &mut h);
        "an ISO with version 2" => ERROR_NOT_SUPPORTED: OpenVirtualDisk(&any, iso.as_ptr(), 0, 0, &v2, &mut h);
        "an ISO for writing" => ERROR_NOT_SUPPORTED: OpenVirtualDisk(&any, iso.as_ptr(), VIRTUAL_DISK_ACCESS_ALL, 0, &v1, &mut h);
        "a short ISO" => ERROR_FILE_CORRUPT: OpenVirtualDisk(&any, iso.as_ptr(), VIRTUAL_DISK_ACCESS_READ, 0, &v1, &mut h);
        "an overlong path" => ERROR_FILENAME_EXCED_RANGE: OpenVirtualDisk(&any, long.as_ptr(), 0, 0, &v2, &mut h);
        "an overlong name" => ERROR_FILENAME_EXCED_RANGE: OpenVirtualDisk(&any, long_name.as_ptr(), 0, 0, &v2, &mut h);
        "invalid UTF-16" => ERROR_INVALID_NAME: OpenVirtualDisk(&any, invalid.as_ptr(), 0, 0, &v2, &mut h);
        "an empty path" => ERROR_INVALID_NAME: OpenVirtualDisk(&any, empty.as_ptr(), 0, 0, &v2, &mut h);
        "no file" => ERROR_FILE_NOT_FOUND: OpenVirtualDisk(&any, missing.as_ptr(), 0, 0, &v2, &mut h);
        "another format" => ERROR_VHD_DRIVE_FOOTER_MISSING: OpenVirtualDisk(&kind(2), path.as_ptr(), 0, 0, &v2, &mut h);
    }
    assert!(h.is_null(), "no handle was given out");
}

#[test]
fn create() {
    let files = Files {
        folder: tempfile::tempdir().unwrap(),
    };
    files.create("a.vhdx", None);
    files.create("a.vhd", None);
    let (path, vhd, there) = (
        files.path("new.vhdx"),
        files.path("new.vhd"),
        files.path("a.vhdx"),
    );
    let (iso, nowhere) = (files.path("new.iso"), files.path("no/new.vhdx"));
    let (relative, gone) = (wide("a.vhdx"), files.path("gone.vhdx"));
    // SAFETY: numbers, for which zeros are valid.
    let any: VIRTUAL_STORAGE_TYPE = unsafe { zeroed() };
    let with = |change: &dyn Fn(&mut CREATE_VIRTUAL_DISK_PARAMETERS_0_3)| {
        let mut p = versioned!(CREATE_VIRTUAL_DISK_PARAMETERS, 4);
        // SAFETY: the arm of version 4, which is all zeros.
        unsafe {
            p.Anonymous.Version4.MaximumSize = 8 << 20;
            change(&mut p.Anonymous.Version4);
        }
        p
    };
    let good = with(&|_| ());
    let mut v0 = good;
    v0.Version = 0;
    let mut v5 = good;
    v5.Version = 5;
    let v1 = versioned!(CREATE_VIRTUAL_DISK_PARAMETERS, 1);
    let mut v1_good = versioned!(CREATE_VIRTUAL_DISK_PARAMETERS, 1);
    // SAFETY: the arm of version 1, which is all zeros.
    unsafe { v1_good.Anonymous.Version1.MaximumSize = 8 << 20 };
    let (parent, source) = (there.as_ptr(), there.as_ptr());
    let mut h = null_mut();
    let h = &raw mut h;
    let make = |path: &Vec<u16>, mask, flags, p: &CREATE_VIRTUAL_DISK_PARAMETERS| {
        // SAFETY: all of it lives as long as the call.
        unsafe {
            CreateVirtualDisk(
                &any,
                path.as_ptr(),
                mask,
                null_mut(),
                flags,
                0,
                p,
                null_mut(),
                h,
            )
        }
    };
    table! { files.folder.path();
        "no type" => ERROR_INVALID_PARAMETER: CreateVirtualDisk(null(), path.as_ptr(), 0, null_mut(), 0, 0, &good, null_mut(), h);
        "no path" => ERROR_INVALID_PARAMETER: CreateVirtualDisk(&any, null(), 0, null_mut(), 0, 0, &good, null_mut(), h);
        "no parameters" => ERROR_INVALID_PARAMETER: CreateVirtualDisk(&any, path.as_ptr(), 0, null_mut(), 0, 0, null(), null_mut(), h);
        "no handle" => ERROR_INVALID_PARAMETER: CreateVirtualDisk(&any, path.as_ptr(), 0, null_mut(), 0, 0, &good, null_mut(), null_mut());
        "provider's flags" => ERROR_INVALID_PARAMETER: CreateVirtualDisk(&any, path.as_ptr(), 0, null_mut(), 0, 1, &good, null_mut(), h);
        "an OVERLAPPED that is not aligned" => ERROR_INVALID_PARAMETER: CreateVirtualDisk(&any, path.as_ptr(), 0, null_mut(), 0, 0, &good, without_provenance_mut(9), h);
        "version 0" => ERROR_INVALID_PARAMETER: make(&path, 0, 0, &v0);
        "version 5" => ERROR_INVALID_PARAMETER: make(&path, 0, 0, &v5);
        "a mask with version 2" => ERROR_INVALID_PARAMETER: make(&path, VIRTUAL_DISK_ACCESS_ALL, 0, &good);
        "a bit outside ALL" => ERROR_INVALID_PARAMETER: make(&path, 1, 0, &v1_good);
        "no mask with version 1" => ERROR_INVALID_PARAMETER: make(&path, 0, 0, &v1_good);
        "a mask without CREATE" => ERROR_ACCESS_DENIED: make(&path, VIRTUAL_DISK_ACCESS_READ, 0, &v1_good);
        "no size" => ERROR_INVALID_PARAMETER: make(&path, VIRTUAL_DISK_ACCESS_ALL, 0, &v1);
        "an unknown flag" => ERROR_INVALID_PARAMETER: make(&path, 0, 0x800, &good);
        "a set's flag" => ERROR_NOT_SUPPORTED: make(&path, 0, CREATE_VIRTUAL_DISK_FLAG_CREATE_BACKING_STORAGE, &good);
        "change tracking" => ERROR_NOT_SUPPORTED: make(&path, 0, CREATE_VIRTUAL_DISK_FLAG_USE_CHANGE_TRACKING_SOURCE_LIMIT, &good);
        "a sparse fixed disk" => ERROR_NOT_SUPPORTED: make(&path, 0, CREATE_VIRTUAL_DISK_FLAG_SPARSE_FILE, &good);
        "persistent memory" => ERROR_NOT_SUPPORTED: make(&path, 0, CREATE_VIRTUAL_DISK_FLAG_PMEM_COMPATIBLE, &good);
        "below 3 MB" => ERROR_INVALID_PARAMETER: make(&path, 0, 0, &with(&|p| p.MaximumSize = (3 << 20) - 512));
        "part of a sector" => ERROR_INVALID_PARAMETER: make(&path, 0, 0, &with(&|p| p.MaximumSize += 100));
        "part of a large sector" => ERROR_INVALID_PARAMETER: make(&path, 0, 0, &with(&|p| { p.SectorSizeInBytes = 4096; p.MaximumSize += 512; }));
        "above the format's limit" => ERROR_VHD_INVALID_SIZE: make(&path, 0, 0, &with(&|p| p.MaximumSize = 65 << 40));
        "above VHD's limit" => ERROR_VHD_INVALID_SIZE: make(&vhd, 0, 0, &with(&|p| p.MaximumSize = 3 << 40));
        "an odd block" => ERROR_INVALID_PARAMETER: make(&path, 0, 0, &with(&|p| p.BlockSizeInBytes = 3 << 20));
        "a large block" => ERROR_INVALID_PARAMETER: make(&path, 0, 0, &with(&|p| p.BlockSizeInBytes = 512 << 20));
        "a VHDX's block in a VHD" => ERROR_INVALID_PARAMETER: make(&vhd, 0, 0, &with(&|p| p.BlockSizeInBytes = 32 << 20));
        "a block of a fixed disk" => ERROR_INVALID_PARAMETER: make(&path, 0, 1, &with(&|p| p.BlockSizeInBytes = 2 << 20));
        "a sector" => ERROR_INVALID_PARAMETER: make(&path, 0, 0, &with(&|p| p.SectorSizeInBytes = 1024));
        "a VHD's sector" => ERROR_INVALID_PARAMETER: make(&vhd, 0, 0, &with(&|p| p.SectorSizeInBytes = 4096));
        "a physical sector" => ERROR_INVALID_PARAMETER: make(&path, 0, 0, &with(&|p| p.PhysicalSectorSizeInBytes = 2048));
        "parent and source" => ERROR_INVALID_PARAMETER: make(&path, 0, 0, &with(&|p| { p.MaximumSize = 0; p.ParentPath = parent; p.SourcePath = source; }));
        "parent and size" => ERROR_INVALID_PARAMETER: make(&path, 0, 0, &with(&|p| p.ParentPath = parent));
        "a fixed child" => ERROR_INVALID_PARAMETER: make(&path, 0, 1, &with(&|p| { p.MaximumSize = 0; p.ParentPath = parent; }));
        "a relative parent" => ERROR_INVALID_PARAMETER: make(&path, 0, 0, &with(&|p| { p.MaximumSize = 0; p.ParentPath = relative.as_ptr(); }));
        "a relative source" => ERROR_INVALID_PARAMETER: make(&path, 0, 0, &with(&|p| { p.MaximumSize = 0; p.SourcePath = relative.as_ptr(); }));
        "a parent of another format" => ERROR_VHD_INVALID_TYPE: make(&vhd, 0, 0, &with(&|p| { p.MaximumSize = 0; p.ParentPath = parent; }));
        "a parent that is not there" => ERROR_VHD_PARENT_VHD_NOT_FOUND: make(&path, 0, 0, &with(&|p| { p.MaximumSize = 0; p.ParentPath = gone.as_ptr(); }));
        "less than the source" => ERROR_VHD_INVALID_SIZE: make(&path, 0, 0, &with(&|p| { p.MaximumSize = 4 << 20; p.SourcePath = source; }));
        "a source limit" => ERROR_NOT_SUPPORTED: make(&path, 0, 0, &with(&|p| p.SourceLimitPath = source));
        "a backing file" => ERROR_NOT_SUPPORTED: make(&path, 0, 0, &with(&|p| p.BackingStorageType.DeviceId = 3));
        "an address abstraction" => ERROR_INVALID_PARAMETER: make(&path, 0, 0, &with(&|p| p.PmemAddressAbstractionType.Data1 = 1));
        "an odd alignment" => ERROR_INVALID_PARAMETER: make(&path, 0, 0, &with(&|p| p.DataAlignment = 3));
        "a large alignment" => ERROR_NOT_SUPPORTED: make(&path, 0, 0, &with(&|p| p.DataAlignment = 2 << 20));
        "unknown open flags" => ERROR_INVALID_PARAMETER: make(&path, 0, 0, &with(&|p| p.OpenFlags = 0x1000));
        "refused open flags" => ERROR_NOT_SUPPORTED: make(&path, 0, 0, &with(&|p| p.OpenFlags = OPEN_VIRTUAL_DISK_FLAG_BLANK_FILE));
        "an ISO" => ERROR_NOT_SUPPORTED: make(&iso, 0, 0, &good);
        "a file that is there" => ERROR_FILE_EXISTS: make(&there, 0, 0, &good);
        "a folder that is not there" => ERROR_PATH_NOT_FOUND: make(&nowhere, 0, 0, &good);
    }
}

#[test]
fn functions_of_a_handle() {
    let files = Files {
        folder: tempfile::tempdir().unwrap(),
    };
    files.create("a.vhdx", None);
    files.create("b.vhdx", None);
    files.create("c.vhdx", None);
    let v2 = files.open(
        "a.vhdx",
        Opened::V2 {
            info_only: false,
            read_only: false,
        },
    );
    let asks = files.open(
        "b.vhdx",
        Opened::V2 {
            info_only: true,
            read_only: false,
        },
    );
    let reads = files.open(
        "b.vhdx",
        Opened::V2 {
            info_only: false,
            read_only: true,
        },
    );
    let v1 = files.open("c.vhdx", Opened::V1(VIRTUAL_DISK_ACCESS_GET_INFO));
    // SAFETY: no pointers.
    let event = unsafe { CreateEventW(null(), 1, 0, null()) };
    let closed = files.open(
        "b.vhdx",
        Opened::V2 {
            info_only: false,
            read_only: true,
        },
    );
    assert_eq!(CloseHandle(closed), 1);

    let mut o: OVERLAPPED = unsafe { zeroed() };
    let odd: *mut OVERLAPPED = (&raw mut o).wrapping_byte_add(1);
    let (target, relative) = (files.path("new.vhdx"), wide("new.vhdx"));
    let long = vec![u16::from(b'/'); 40_000];
    let id = GUID {
        Data1: 1,
        Data2: 2,
        Data3: 3,
        Data4: [4; 8],
    };
    let none: GUID = unsafe { zeroed() };
    let mut number = 32_u32;
    let mut bytes = [0_u8; 64];
    let data = bytes.as_mut_ptr();
    let mut info = versioned!(GET_VIRTUAL_DISK_INFO, GET_VIRTUAL_DISK_INFO_SIZE);
    let mut progress = unsafe { zeroed() };

    let compact = versioned!(COMPACT_VIRTUAL_DISK_PARAMETERS, 2);
    let mut reserved = versioned!(COMPACT_VIRTUAL_DISK_PARAMETERS, 1);
    reserved.Anonymous.Version1.Reserved = 1;
    let mut merge = versioned!(MERGE_VIRTUAL_DISK_PARAMETERS, 2);
    merge.Anonymous.Version2 = MERGE_VIRTUAL_DISK_PARAMETERS_0_1 {
        MergeSourceDepth: 1,
        MergeTargetDepth: 2,
    };
    let merge3 = versioned!(MERGE_VIRTUAL_DISK_PARAMETERS, 3);
    let mut expand = versioned!(EXPAND_VIRTUAL_DISK_PARAMETERS, 1);
    expand.Anonymous.Version1.NewSize = 16 << 20;
    let expand2 = versioned!(EXPAND_VIRTUAL_DISK_PARAMETERS, 2);
    let mut resize = versioned!(RESIZE_VIRTUAL_DISK_PARAMETERS, 1);
    resize.Anonymous.Version1.NewSize = 16 << 20;
    let resize2 = versioned!(RESIZE_VIRTUAL_DISK_PARAMETERS, 2);
    let mut mirror = versioned!(MIRROR_VIRTUAL_DISK_PARAMETERS, 1);
    mirror.Anonymous.Version1.MirrorVirtualDiskPath = target.as_ptr();
    let mut mirror_relative = mirror;
    mirror_relative.Anonymous.Version1.MirrorVirtualDiskPath = relative.as_ptr();
    let mut mirror_long = mirror;
    mirror_long.Anonymous.Version1.MirrorVirtualDiskPath = long.as_ptr();
    let mirror_null = versioned!(MIRROR_VIRTUAL_DISK_PARAMETERS, 1);
    let attach3 = versioned!(ATTACH_VIRTUAL_DISK_PARAMETERS, 3);
    let mut set = versioned!(
        SET_VIRTUAL_DISK_INFO,
        SET_VIRTUAL_DISK_INFO_PHYSICAL_SECTOR_SIZE
    );
    set.Anonymous.VhdPhysicalSectorSize = 512;
    let (set0, set8) = (
        versioned!(SET_VIRTUAL_DISK_INFO, 0),
        versioned!(SET_VIRTUAL_DISK_INFO, 8),
    );
    let set_null = versioned!(SET_VIRTUAL_DISK_INFO, SET_VIRTUAL_DISK_INFO_PARENT_PATH);
    let raw = ATTACH_VIRTUAL_DISK_FLAG_NO_LOCAL_HOST;

    macro_rules! bad_handles {
        ($($name:ident($($before:expr,)* @ $(, $after:expr)*);)*) => {
            $(
                for handle in [null_mut(), without_provenance_mut(usize::MAX), event, closed, without_provenance_mut(12)] {
                    // SAFETY: as in the table.
                    let code = unsafe { $name($($before,)* handle $(, $after)*) };
                    assert_eq!(code, ERROR_INVALID_HANDLE, "{} of {handle:?}", stringify!($name));
                }
            )*
        };
    }
    let before = state(files.folder.path());
    {
        bad_handles! {
            AttachVirtualDisk(@, null_mut(), raw, 0, null(), null_mut());
            DetachVirtualDisk(@, 0, 0);
            GetVirtualDiskPhysicalPath(@, &mut number, data.cast());
            GetVirtualDiskInformation(@, &mut number, &mut info, null_mut());
            SetVirtualDiskInformation(@, &set);
            EnumerateVirtualDiskMetadata(@, &mut number, null_mut());
            GetVirtualDiskMetadata(@, &id, &mut number, data.cast());
            SetVirtualDiskMetadata(@, &id, 1, data.cast());
            DeleteVirtualDiskMetadata(@, &id);
            GetVirtualDiskOperationProgress(@, &o, &mut progress);
            CompactVirtualDisk(@, 0, null(), null_mut());
            MergeVirtualDisk(@, 0, &merge, null_mut());
            ExpandVirtualDisk(@, 0, &expand, null_mut());
            ResizeVirtualDisk(@, 0, &resize, null_mut());
            MirrorVirtualDisk(@, 0, &mirror, &mut o);
            BreakMirrorVirtualDisk(@);
            AddVirtualDiskParent(@, target.as_ptr());
            CompleteForkVirtualDisk(@);
        }
    }
    assert!(before == state(files.folder.path()));

    table! { files.folder.path();
        "unknown flag" => ERROR_INVALID_PARAMETER: AttachVirtualDisk(v2, null_mut(), 0x800, 0, null(), null_mut());
        "provider's flags" => ERROR_INVALID_PARAMETER: AttachVirtualDisk(v2, null_mut(), raw, 1, null(), null_mut());
        "version" => ERROR_INVALID_PARAMETER: AttachVirtualDisk(v2, null_mut(), raw, 0, &attach3, null_mut());
        "OVERLAPPED" => ERROR_INVALID_PARAMETER: AttachVirtualDisk(v2, null_mut(), raw, 0, null(), odd);
        "only asks" => ERROR_ACCESS_DENIED: AttachVirtualDisk(asks, null_mut(), raw | 1, 0, null(), null_mut());
        "only reads" => ERROR_ACCESS_DENIED: AttachVirtualDisk(reads, null_mut(), raw, 0, null(), null_mut());
        "mask" => ERROR_ACCESS_DENIED: AttachVirtualDisk(v1, null_mut(), raw, 0, null(), null_mut());
        "a device in part" => ERROR_NOT_SUPPORTED: AttachVirtualDisk(v2, null_mut(), ATTACH_VIRTUAL_DISK_FLAG_SINGLE_PARTITION, 0, null(), null_mut());
        "one partition" => ERROR_NOT_SUPPORTED: AttachVirtualDisk(v2, null_mut(), raw | ATTACH_VIRTUAL_DISK_FLAG_SINGLE_PARTITION, 0, null(), null_mut());
        "flags" => ERROR_INVALID_PARAMETER: DetachVirtualDisk(v2, 1, 0);
        "provider's flags" => ERROR_INVALID_PARAMETER: DetachVirtualDisk(v2, 0, 1);
        "mask" => ERROR_ACCESS_DENIED: DetachVirtualDisk(v1, 0, 0);
        "not attached" => ERROR_VHD_INVALID_STATE: DetachVirtualDisk(v2, 0, 0);
        "NULL" => ERROR_INVALID_PARAMETER: GetVirtualDiskPhysicalPath(v2, null_mut(), data.cast());
        "NULL" => ERROR_INVALID_PARAMETER: GetVirtualDiskPhysicalPath(v2, &mut number, null_mut());
        "NULL" => ERROR_INVALID_PARAMETER: GetAllAttachedVirtualDiskPhysicalPaths(null_mut(), data.cast());
        "NULL" => ERROR_INVALID_PARAMETER: GetVirtualDiskInformation(v2, null_mut(), &mut info, null_mut());
        "NULL" => ERROR_INVALID_PARAMETER: GetVirtualDiskInformation(v2, &mut number, null_mut(), null_mut());
        "NULL" => ERROR_INVALID_PARAMETER: SetVirtualDiskInformation(v2, null());
        "kind 0" => ERROR_INVALID_PARAMETER: SetVirtualDiskInformation(v2, &set0);
        "kind 8" => ERROR_INVALID_PARAMETER: SetVirtualDiskInformation(v2, &set8);
        "no path" => ERROR_INVALID_PARAMETER: SetVirtualDiskInformation(v2, &set_null);
        "only asks" => ERROR_ACCESS_DENIED: SetVirtualDiskInformation(asks, &set);
        "only reads" => ERROR_ACCESS_DENIED: SetVirtualDiskInformation(reads, &set);
        "mask" => ERROR_ACCESS_DENIED: SetVirtualDiskInformation(v1, &set);
        "NULL" => ERROR_INVALID_PARAMETER: EnumerateVirtualDiskMetadata(v2, null_mut(), null_mut());
        "version 1" => ERROR_ACCESS_DENIED: EnumerateVirtualDiskMetadata(v1, &mut number, null_mut());
        "NULL" => ERROR_INVALID_PARAMETER: GetVirtualDiskMetadata(v2, null(), &mut number, data.cast());
        "NULL" => ERROR_INVALID_PARAMETER: GetVirtualDiskMetadata(v2, &id, null_mut(), data.cast());
        "no item" => ERROR_NOT_FOUND: GetVirtualDiskMetadata(v2, &id, &mut number, data.cast());
        "NULL" => ERROR_INVALID_PARAMETER: SetVirtualDiskMetadata(v2, null(), 1, data.cast());
        "zeros" => ERROR_INVALID_PARAMETER: SetVirtualDiskMetadata(v2, &none, 1, data.cast());
        "too long" => ERROR_VHD_METADATA_FULL: SetVirtualDiskMetadata(v2, &id, (1 << 20) + 1, data.cast());
        "only reads" => ERROR_ACCESS_DENIED: SetVirtualDiskMetadata(reads, &id, 1, data.cast());
        "NULL" => ERROR_INVALID_PARAMETER: DeleteVirtualDiskMetadata(v2, null());
        "flags" => ERROR_INVALID_PARAMETER: CompactVirtualDisk(v2, 4, null(), null_mut());
        "version" => ERROR_INVALID_PARAMETER: CompactVirtualDisk(v2, 0, &compact, null_mut());
        "reserved" => ERROR_INVALID_PARAMETER: CompactVirtualDisk(v2, 0, &reserved, null_mut());
        "OVERLAPPED" => ERROR_INVALID_PARAMETER: CompactVirtualDisk(v2, 0, null(), odd);
        "only reads" => ERROR_ACCESS_DENIED: CompactVirtualDisk(reads, 0, null(), null_mut());
        "mask" => ERROR_ACCESS_DENIED: CompactVirtualDisk(v1, 0, null(), null_mut());
        "flags" => ERROR_INVALID_PARAMETER: MergeVirtualDisk(v2, 1, &merge, null_mut());
        "NULL" => ERROR_INVALID_PARAMETER: MergeVirtualDisk(v2, 0, null(), null_mut());
        "version" => ERROR_INVALID_PARAMETER: MergeVirtualDisk(v2, 0, &merge3, null_mut());
        "no parent" => ERROR_INVALID_PARAMETER: MergeVirtualDisk(v2, 0, &merge, null_mut());
        "flags" => ERROR_INVALID_PARAMETER: ExpandVirtualDisk(v2, 2, &expand, null_mut());
        "later flags" => ERROR_NOT_SUPPORTED: ExpandVirtualDisk(v2, 1, &expand, null_mut());
        "NULL" => ERROR_INVALID_PARAMETER: ExpandVirtualDisk(v2, 0, null(), null_mut());
        "version" => ERROR_INVALID_PARAMETER: ExpandVirtualDisk(v2, 0, &expand2, null_mut());
        "mask" => ERROR_ACCESS_DENIED: ExpandVirtualDisk(v1, 0, &expand, null_mut());
        "flags" => ERROR_INVALID_PARAMETER: ResizeVirtualDisk(v2, 4, &resize, null_mut());
        "NULL" => ERROR_INVALID_PARAMETER: ResizeVirtualDisk(v2, 0, null(), null_mut());
        "version" => ERROR_INVALID_PARAMETER: ResizeVirtualDisk(v2, 0, &resize2, null_mut());
        "only asks" => ERROR_ACCESS_DENIED: ResizeVirtualDisk(asks, 0, &resize, null_mut());
        "flags" => ERROR_INVALID_PARAMETER: MirrorVirtualDisk(v2, 0x10, &mirror, &mut o);
        "later flags" => ERROR_NOT_SUPPORTED: MirrorVirtualDisk(v2, MIRROR_VIRTUAL_DISK_FLAG_IS_LIVE_MIGRATION, &mirror, &mut o);
        "NULL" => ERROR_INVALID_PARAMETER: MirrorVirtualDisk(v2, 0, null(), &mut o);
        "NULL" => ERROR_INVALID_PARAMETER: MirrorVirtualDisk(v2, 0, &mirror, null_mut());
        "OVERLAPPED" => ERROR_INVALID_PARAMETER: MirrorVirtualDisk(v2, 0, &mirror, odd);
        "no path" => ERROR_INVALID_PARAMETER: MirrorVirtualDisk(v2, 0, &mirror_null, &mut o);
        "relative" => ERROR_INVALID_PARAMETER: MirrorVirtualDisk(v2, 0, &mirror_relative, &mut o);
        "overlong" => ERROR_FILENAME_EXCED_RANGE: MirrorVirtualDisk(v2, 0, &mirror_long, &mut o);
        "version 1" => ERROR_ACCESS_DENIED: MirrorVirtualDisk(v1, 0, &mirror, &mut o);
        "no mirror" => ERROR_VHD_INVALID_STATE: BreakMirrorVirtualDisk(v2);
        "NULL" => ERROR_INVALID_PARAMETER: AddVirtualDiskParent(reads, null());
        "relative" => ERROR_INVALID_PARAMETER: AddVirtualDiskParent(reads, relative.as_ptr());
        "no chain by hand" => ERROR_VHD_INVALID_STATE: AddVirtualDiskParent(reads, target.as_ptr());
        "can write" => ERROR_ACCESS_DENIED: AddVirtualDiskParent(v2, target.as_ptr());
        "NULL" => ERROR_INVALID_PARAMETER: GetVirtualDiskOperationProgress(v2, null(), &mut progress);
        "NULL" => ERROR_INVALID_PARAMETER: GetVirtualDiskOperationProgress(v2, &o, null_mut());
        "no operation" => ERROR_INVALID_PARAMETER: GetVirtualDiskOperationProgress(v2, &o, &mut progress);
    }
    for handle in [v2, asks, reads, v1, event] {
        assert_eq!(CloseHandle(handle), 1);
    }
}

#[test]
fn what_is_not_there_yet_is_checked_and_refused() {
    let files = Files {
        folder: tempfile::tempdir().unwrap(),
    };
    files.create("a.vhdx", None);
    let h = files.open(
        "a.vhdx",
        Opened::V2 {
            info_only: false,
            read_only: false,
        },
    );
    let no = null_mut();
    let path = files.path("new.avhdx");
    let relative = wide("new.avhdx");
    let id = GUID {
        Data1: 1,
        Data2: 2,
        Data3: 3,
        Data4: [4; 8],
    };
    let tracking = wide("rctX:1");
    let (empty, long) = (wide(""), wide(&"x".repeat(257)));
    let mut range = QUERY_CHANGES_VIRTUAL_DISK_RANGE {
        ByteOffset: 0,
        ByteLength: 0,
        Reserved: 0,
    };
    let (mut count, mut processed) = (1, 0);
    let mut query = |handle, id: &[u16], offset, length, flags| {
        // SAFETY: all of it lives as long as the call.
        unsafe {
            QueryChangesVirtualDisk(
                handle,
                id.as_ptr(),
                offset,
                length,
                flags,
                &mut range,
                &mut count,
                &mut processed,
            )
        }
    };
    table! { files.folder.path();
        "good" => ERROR_NOT_SUPPORTED: query(h, &tracking, 0, 512, 0);
        "handle" => ERROR_INVALID_HANDLE: query(no, &tracking, 0, 512, 0);
        "flags" => ERROR_INVALID_PARAMETER: query(h, &tracking, 0, 512, 1);
        "empty" => ERROR_INVALID_PARAMETER: query(h, &empty, 0, 512, 0);
        "long" => ERROR_INVALID_PARAMETER: query(h, &long, 0, 512, 0);
        "no length" => ERROR_INVALID_PARAMETER: query(h, &tracking, 0, 0, 0);
        "overflow" => ERROR_INVALID_PARAMETER: query(h, &tracking, u64::MAX, 512, 0);
        "past the end" => ERROR_INVALID_PARAMETER: query(h, &tracking, 8 << 20, 512, 0);
        "NULL" => ERROR_INVALID_PARAMETER: QueryChangesVirtualDisk(h, null(), 0, 512, 0, &mut range, &mut count, &mut processed);
        "NULL" => ERROR_INVALID_PARAMETER: QueryChangesVirtualDisk(h, tracking.as_ptr(), 0, 512, 0, null_mut(), &mut count, &mut processed);
        "NULL" => ERROR_INVALID_PARAMETER: QueryChangesVirtualDisk(h, tracking.as_ptr(), 0, 512, 0, &mut range, null_mut(), &mut processed);
        "NULL" => ERROR_INVALID_PARAMETER: QueryChangesVirtualDisk(h, tracking.as_ptr(), 0, 512, 0, &mut range, &mut count, null_mut());
    }

    macro_rules! snapshots {
        ($($name:ident $type:ident;)*) => {
            $(
                let mut p = versioned!($type, 1);
                let no_id = p;
                p.Anonymous.Version1.SnapshotId = id;
                let v2 = versioned!($type, 2);
                table! { files.folder.path();
                    "good" => ERROR_NOT_SUPPORTED: $name(h, &p, 1);
                    "handle" => ERROR_INVALID_HANDLE: $name(no, &p, 0);
                    "NULL" => ERROR_INVALID_PARAMETER: $name(h, null(), 0);
                    "version" => ERROR_INVALID_PARAMETER: $name(h, &v2, 0);
                    "no id" => ERROR_INVALID_PARAMETER: $name(h, &no_id, 0);
                    "flags" => ERROR_INVALID_PARAMETER: $name(h, &p, 2);
                }
            )*
        };
    }
    snapshots! {
        TakeSnapshotVhdSet TAKE_SNAPSHOT_VHDSET_PARAMETERS;
        DeleteSnapshotVhdSet DELETE_SNAPSHOT_VHDSET_PARAMETERS;
        ApplySnapshotVhdSet APPLY_SNAPSHOT_VHDSET_PARAMETERS;
    }

    let mut modify = versioned!(MODIFY_VHDSET_PARAMETERS, MODIFY_VHDSET_SNAPSHOT_PATH);
    modify.Anonymous.SnapshotPath = MODIFY_VHDSET_PARAMETERS_0_0 {
        SnapshotId: id,
        SnapshotFilePath: path.as_ptr(),
    };
    let mut modify_relative = modify;
    modify_relative.Anonymous.SnapshotPath = MODIFY_VHDSET_PARAMETERS_0_0 {
        SnapshotId: id,
        SnapshotFilePath: relative.as_ptr(),
    };
    let no_id = versioned!(MODIFY_VHDSET_PARAMETERS, MODIFY_VHDSET_REMOVE_SNAPSHOT);
    let no_path = versioned!(
        MODIFY_VHDSET_PARAMETERS,
        MODIFY_VHDSET_DEFAULT_SNAPSHOT_PATH
    );
    let modify0 = versioned!(MODIFY_VHDSET_PARAMETERS, 0);
    let mut fork = versioned!(FORK_VIRTUAL_DISK_PARAMETERS, 1);
    fork.Anonymous.Version1.ForkedVirtualDiskPath = path.as_ptr();
    let fork2 = versioned!(FORK_VIRTUAL_DISK_PARAMETERS, 2);
    // SAFETY: numbers and pointers, for which zeros are valid.
    let mut o: OVERLAPPED = unsafe { zeroed() };
    let mut cdb = [0_u8; 16];
    let mut scsi = versioned!(RAW_SCSI_VIRTUAL_DISK_PARAMETERS, 1);
    // SAFETY: the arm of version 1, which is all zeros.
    unsafe {
        scsi.Anonymous.Version1.Cdb = cdb.as_mut_ptr();
        scsi.Anonymous.Version1.CdbLength = 6;
    }
    let with = |change: &dyn Fn(&mut RAW_SCSI_VIRTUAL_DISK_PARAMETERS_0_0)| {
        let mut request = scsi;
        // SAFETY: the arm of version 1.
        change(unsafe { &mut request.Anonymous.Version1 });
        request
    };
    let mut response = versioned!(RAW_SCSI_VIRTUAL_DISK_RESPONSE, 1);
    let mut response0 = versioned!(RAW_SCSI_VIRTUAL_DISK_RESPONSE, 0);
    table! { files.folder.path();
        "good" => ERROR_NOT_SUPPORTED: ModifyVhdSet(h, &modify, 1);
        "handle" => ERROR_INVALID_HANDLE: ModifyVhdSet(no, &modify, 0);
        "NULL" => ERROR_INVALID_PARAMETER: ModifyVhdSet(h, null(), 0);
        "flags" => ERROR_INVALID_PARAMETER: ModifyVhdSet(h, &modify, 2);
        "version" => ERROR_INVALID_PARAMETER: ModifyVhdSet(h, &modify0, 0);
        "relative" => ERROR_INVALID_PARAMETER: ModifyVhdSet(h, &modify_relative, 0);
        "no id" => ERROR_INVALID_PARAMETER: ModifyVhdSet(h, &no_id, 0);
        "no path" => ERROR_INVALID_PARAMETER: ModifyVhdSet(h, &no_path, 0);
        "good" => ERROR_NOT_SUPPORTED: ForkVirtualDisk(h, 1, &fork, &mut o);
        "flags" => ERROR_INVALID_PARAMETER: ForkVirtualDisk(h, 2, &fork, &mut o);
        "version" => ERROR_INVALID_PARAMETER: ForkVirtualDisk(h, 0, &fork2, &mut o);
        "no OVERLAPPED" => ERROR_INVALID_PARAMETER: ForkVirtualDisk(h, 0, &fork, null_mut());
        "handle" => ERROR_INVALID_HANDLE: ForkVirtualDisk(no, 0, &fork, &mut o);
        "good" => ERROR_NOT_SUPPORTED: CompleteForkVirtualDisk(h);
        "handle" => ERROR_INVALID_HANDLE: RawSCSIVirtualDisk(no, &scsi, 0, &mut response);
        "flags" => ERROR_INVALID_PARAMETER: RawSCSIVirtualDisk(h, &scsi, 1, &mut response);
        "NULL" => ERROR_INVALID_PARAMETER: RawSCSIVirtualDisk(h, null(), 0, &mut response);
        "NULL" => ERROR_INVALID_PARAMETER: RawSCSIVirtualDisk(h, &scsi, 0, null_mut());
        "version of the response" => ERROR_INVALID_PARAMETER: RawSCSIVirtualDisk(h, &scsi, 0, &mut response0);
        "no command" => ERROR_INVALID_PARAMETER: RawSCSIVirtualDisk(h, &with(&|r| r.CdbLength = 0), 0, &mut response);
        "a long command" => ERROR_INVALID_PARAMETER: RawSCSIVirtualDisk(h, &with(&|r| r.CdbLength = 17), 0, &mut response);
        "no data" => ERROR_INVALID_PARAMETER: RawSCSIVirtualDisk(h, &with(&|r| r.DataTransferLength = 512), 0, &mut response);
        "no sense" => ERROR_INVALID_PARAMETER: RawSCSIVirtualDisk(h, &with(&|r| r.SenseInfoLength = 18), 0, &mut response);
        "RSVD" => ERROR_NOT_SUPPORTED: RawSCSIVirtualDisk(h, &with(&|r| r.RSVDHandle = 1), 0, &mut response);
    }
    assert_eq!(CloseHandle(h), 1);
}

#[test]
fn dependencies() {
    let files = Files {
        folder: tempfile::tempdir().unwrap(),
    };
    files.create("a.vhdx", None);
    let h = files.open(
        "a.vhdx",
        Opened::V2 {
            info_only: false,
            read_only: true,
        },
    );
    let mut buffer = [0_u64; 8];
    let info: *mut STORAGE_DEPENDENCY_INFO = buffer.as_mut_ptr().cast();
    let hosts = GET_STORAGE_DEPENDENCY_FLAG_HOST_VOLUMES;
    let mut used = 0;
    table! { files.folder.path();
        "flags" => ERROR_INVALID_PARAMETER: GetStorageDependencyInformation(h, 4, 64, info, &mut used);
        "NULL" => ERROR_INVALID_PARAMETER: GetStorageDependencyInformation(h, hosts, 64, null_mut(), &mut used);
        "short" => ERROR_INSUFFICIENT_BUFFER: GetStorageDependencyInformation(h, hosts, 7, info, &mut used);
        "version" => ERROR_INVALID_PARAMETER: GetStorageDependencyInformation(h, hosts, 64, info, &mut used);
        "handle" => ERROR_INVALID_HANDLE: { (*info).Version = 1; GetStorageDependencyInformation(null_mut(), hosts, 64, info, &mut used) };
        "not attached" => ERROR_VIRTDISK_NOT_VIRTUAL_DISK: GetStorageDependencyInformation(h, hosts, 64, info, null_mut());
    }
    assert_eq!(CloseHandle(h), 1);
}
