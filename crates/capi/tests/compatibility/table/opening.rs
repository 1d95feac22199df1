//! Handles, OpenVirtualDisk, CreateVirtualDisk.

use std::ptr::null;

use virtdisk::OpenVirtualDisk;
use virtdisk::codes::*;
use virtdisk::constants::*;
use virtdisk::types::*;

use super::{Group, Here, INVALID, REFUSED, Row, SAME};
use crate::lab::{Code, Lab, MIB, any, guid, same};

const RAW: u32 = ATTACH_VIRTUAL_DISK_FLAG_NO_LOCAL_HOST;
const RAW_READ_ONLY: u32 = RAW | ATTACH_VIRTUAL_DISK_FLAG_READ_ONLY;

pub fn groups() -> Vec<Group> {
    vec![types(), open(), masks(), create()]
}

fn typed(lab: &Lab, device: u32, name: &str) -> Code {
    let kind = VIRTUAL_STORAGE_TYPE {
        DeviceId: device,
        ..any()
    };
    let mut handle = std::ptr::null_mut();
    // SAFETY: pointers live as long as the call.
    unsafe {
        OpenVirtualDisk(
            &kind,
            lab.wide(name),
            VIRTUAL_DISK_ACCESS_READ,
            0,
            null(),
            &mut handle,
        )
    }
}

/// 40 KiB of which sector 16 is a volume descriptor.
fn write_iso(lab: &Lab) {
    let mut iso = vec![0_u8; 40 * 1024];
    iso[16 * 2048..16 * 2048 + 7].copy_from_slice(b"\x01CD001\x01");
    std::fs::write(lab.path("a.iso"), iso).unwrap();
}

fn types() -> Group {
    Group {
        title: "Storage types",
        about: "`VIRTUAL_STORAGE_TYPE` of OpenVirtualDisk and CreateVirtualDisk. Other vendors than Microsoft (or none) and other numbers: 0xC03A0014.",
        rows: rows! {
            "VIRTUAL_STORAGE_TYPE_DEVICE_UNKNOWN": SAME, "the extension decides: .vhd, .avhd, .vhdx, .avhdx, .iso; another one: 0xC03A0014" => |lab| {
                lab.close(lab.dynamic("a.avhdx"));
                assert_eq!(lab.create("a.img", 0, 0, |_| ()).0, ERROR_VIRTDISK_PROVIDER_NOT_FOUND);
                typed(lab, 0, "a.avhdx")
            };
            "VIRTUAL_STORAGE_TYPE_DEVICE_ISO": SAME, "opened by version 1 with rights of READ; the file is a multiple of 2048 bytes, at least 34,816, with a volume descriptor, else 1392. Attached as a device: see there" => |lab| {
                write_iso(lab);
                assert_eq!(lab.open("a.iso", 0).0, ERROR_NOT_SUPPORTED);
                typed(lab, 1, "a.iso")
            };
            "VIRTUAL_STORAGE_TYPE_DEVICE_VHD": SAME, "" => |lab| { lab.close(lab.dynamic("a.vhd")); typed(lab, 2, "a.vhd") };
            "VIRTUAL_STORAGE_TYPE_DEVICE_VHDX": SAME, "" => |lab| { lab.close(lab.dynamic("a.vhdx")); typed(lab, 3, "a.vhdx") };
            "VIRTUAL_STORAGE_TYPE_DEVICE_VHDSET": REFUSED, "and so are files with the extension .vhds" => |lab| {
                assert_eq!(lab.create("a.vhds", 0, 0, |_| ()).0, ERROR_NOT_SUPPORTED);
                typed(lab, 4, "a.vhds")
            };
        },
    }
}

/// Opens a disk with a flag and reads what was written to it.
fn opens(lab: &Lab, flag: u32) -> Code {
    let handle = lab.attached("a.vhdx");
    assert_eq!(lab.put(handle, 512, 7), 0);
    lab.close(handle);
    let (code, handle) = lab.open("a.vhdx", flag);
    if code == 0 {
        assert_eq!(lab.attach(handle, RAW), 0);
        assert_eq!(lab.get(handle, 512), Ok(7));
        assert_eq!(lab.put(handle, 1024, 8), 0);
        assert_eq!(lab.get(handle, 1024), Ok(8));
    }
    code
}

/// Opens a child whose parent is gone.
fn opens_orphan(lab: &Lab, flag: u32) -> (Code, HANDLE) {
    lab.close(lab.chain());
    std::fs::rename(lab.path("base.vhdx"), lab.path("away.vhdx")).unwrap();
    assert_eq!(
        lab.read_only("child.vhdx", 0).0,
        ERROR_VHD_PARENT_VHD_NOT_FOUND
    );
    lab.read_only("child.vhdx", flag)
}

fn open() -> Group {
    Group {
        title: "OpenVirtualDisk",
        about: "A VHD, VHDX or ISO with its parents. Handles of version 1 have the rights of their mask, those of version 2 all, unless `GetInfoOnly` or `ReadOnly`.",
        rows: rows! {
            "OpenVirtualDisk": SAME, "" => |lab| opens(lab, 0);
            "OPEN_VIRTUAL_DISK_VERSION_UNSPECIFIED": INVALID, "" => |lab| { lab.close(lab.dynamic("a.vhdx")); lab.open_with("a.vhdx", 0, 0, |p| p.Version = 0).0 };
            "OPEN_VIRTUAL_DISK_VERSION_1": SAME, "RWDepth images are opened for writing if the mask has a right that writes; NULL parameters: version 1, depth 1; a mask of 0: 87" => |lab| {
                lab.close(lab.chain());
                assert_eq!(lab.v1("child.vhdx", 0, 1).0, ERROR_INVALID_PARAMETER);
                // Two deep: the parent cannot be opened by others meanwhile.
                let (code, handle) = lab.v1("child.vhdx", VIRTUAL_DISK_ACCESS_METAOPS, 2);
                assert_eq!(lab.read_only("base.vhdx", 0).0, ERROR_SHARING_VIOLATION);
                lab.close(handle);
                let (_, handle) = lab.v1("child.vhdx", VIRTUAL_DISK_ACCESS_METAOPS, 1);
                assert_eq!(lab.read_only("base.vhdx", 0).0, 0);
                lab.close(handle);
                code
            };
            "OPEN_VIRTUAL_DISK_VERSION_2": SAME, "with a mask: 87. GetInfoOnly: asking and reading metadata; ReadOnly: no change; the same ResiliencyGuid: the same open disk" => |lab| {
                lab.close(lab.dynamic("a.vhdx"));
                assert_eq!(lab.open_with("a.vhdx", VIRTUAL_DISK_ACCESS_GET_INFO, 0, |_| ()).0, ERROR_INVALID_PARAMETER);
                let asks = lab.asks("a.vhdx");
                assert_eq!(lab.info(asks, GET_VIRTUAL_DISK_INFO_SIZE).0, 0);
                assert_eq!(lab.attach(asks, RAW_READ_ONLY), ERROR_ACCESS_DENIED);
                lab.close(asks);
                let (_, reads) = lab.read_only("a.vhdx", 0);
                assert_eq!(lab.compact(reads, 0), ERROR_ACCESS_DENIED);
                assert_eq!(lab.attach(reads, RAW_READ_ONLY), 0);
                lab.close(reads);
                let shared = || lab.open_with("a.vhdx", 0, 0, |p| p.Anonymous.Version2.ResiliencyGuid = guid(1));
                let (_, first) = shared();
                let (code, second) = shared();
                assert_eq!(lab.attach(first, RAW), 0);
                assert_eq!(lab.put(second, 0, 3), 0);
                assert_eq!(lab.get(first, 0), Ok(3));
                code
            };
            "OPEN_VIRTUAL_DISK_VERSION_3": Here::Differs, "as version 2; with a SnapshotId: 50" => |lab| {
                lab.close(lab.dynamic("a.vhdx"));
                let version3 = |snapshot| lab.open_with("a.vhdx", 0, 0, |p| {
                    p.Version = OPEN_VIRTUAL_DISK_VERSION_3;
                    p.Anonymous.Version3 = OPEN_VIRTUAL_DISK_PARAMETERS_0_2 { GetInfoOnly: 0, ReadOnly: 0, ResiliencyGuid: guid(0), SnapshotId: guid(snapshot) };
                }).0;
                assert_eq!(version3(1), ERROR_NOT_SUPPORTED);
                version3(0)
            };
            "OPEN_VIRTUAL_DISK_FLAG_NONE": SAME, "the page cache is bypassed where the file system can, and WriteFile is durable when it returns" => |lab| opens(lab, 0);
            "OPEN_VIRTUAL_DISK_FLAG_NO_PARENTS": SAME, "such a disk cannot be attached: 0xC03A000D" => |lab| {
                let (code, handle) = opens_orphan(lab, OPEN_VIRTUAL_DISK_FLAG_NO_PARENTS);
                assert_eq!(lab.attach(handle, RAW_READ_ONLY), ERROR_VHD_PARENT_VHD_NOT_FOUND);
                code
            };
            "OPEN_VIRTUAL_DISK_FLAG_BLANK_FILE": REFUSED, "reserved" => |lab| opens(lab, OPEN_VIRTUAL_DISK_FLAG_BLANK_FILE);
            "OPEN_VIRTUAL_DISK_FLAG_BOOT_DRIVE": REFUSED, "reserved, for the kernel" => |lab| opens(lab, OPEN_VIRTUAL_DISK_FLAG_BOOT_DRIVE);
            "OPEN_VIRTUAL_DISK_FLAG_CACHED_IO": SAME, "the page cache is used; what was written is durable after FlushFileBuffers, detaching or closing" => |lab| opens(lab, OPEN_VIRTUAL_DISK_FLAG_CACHED_IO);
            "OPEN_VIRTUAL_DISK_FLAG_CUSTOM_DIFF_CHAIN": SAME, "see AddVirtualDiskParent; with NO_PARENTS: 87" => |lab| {
                let both = OPEN_VIRTUAL_DISK_FLAG_CUSTOM_DIFF_CHAIN | OPEN_VIRTUAL_DISK_FLAG_NO_PARENTS;
                assert_eq!(opens(lab, both), ERROR_INVALID_PARAMETER);
                opens_orphan(lab, OPEN_VIRTUAL_DISK_FLAG_CUSTOM_DIFF_CHAIN).0
            };
            "OPEN_VIRTUAL_DISK_FLAG_PARENT_CACHED_IO": SAME, "" => |lab| opens(lab, OPEN_VIRTUAL_DISK_FLAG_PARENT_CACHED_IO);
            "OPEN_VIRTUAL_DISK_FLAG_VHDSET_FILE_ONLY": REFUSED, "" => |lab| opens(lab, OPEN_VIRTUAL_DISK_FLAG_VHDSET_FILE_ONLY);
            "OPEN_VIRTUAL_DISK_FLAG_IGNORE_RELATIVE_PARENT_LOCATOR": SAME, "absolute paths of Windows mean nothing here without a map; of disks made by this library they are found" => |lab| {
                lab.close(lab.chain());
                let flag = OPEN_VIRTUAL_DISK_FLAG_IGNORE_RELATIVE_PARENT_LOCATOR;
                // The child is elsewhere, so only an absolute path leads to its parent.
                std::fs::create_dir(lab.path("sub")).unwrap();
                std::fs::rename(lab.path("child.vhdx"), lab.path("sub/child.vhdx")).unwrap();
                let (code, handle) = lab.read_only("sub/child.vhdx", flag);
                if code == 0 {
                    assert_eq!(lab.attach(handle, RAW_READ_ONLY), 0);
                }
                // The child is in its place, but not its parent: the relative path is not tried.
                std::fs::rename(lab.path("sub/child.vhdx"), lab.path("child.vhdx")).unwrap();
                std::fs::rename(lab.path("base.vhdx"), lab.path("away.vhdx")).unwrap();
                assert_eq!(lab.read_only("child.vhdx", flag).0, ERROR_VHD_PARENT_VHD_NOT_FOUND);
                code
            };
            "OPEN_VIRTUAL_DISK_FLAG_NO_WRITE_HARDENING": SAME, "nothing is flushed but by closing and detaching" => |lab| opens(lab, OPEN_VIRTUAL_DISK_FLAG_NO_WRITE_HARDENING);
            "OPEN_VIRTUAL_DISK_FLAG_SUPPORT_COMPRESSED_VOLUMES": Here::Differs, "accepted, also without the flag (618 is never returned)" => |lab| opens(lab, OPEN_VIRTUAL_DISK_FLAG_SUPPORT_COMPRESSED_VOLUMES);
            "OPEN_VIRTUAL_DISK_FLAG_SUPPORT_SPARSE_FILES_ANY_FS": Here::Differs, "accepted, also without the flag" => |lab| opens(lab, OPEN_VIRTUAL_DISK_FLAG_SUPPORT_SPARSE_FILES_ANY_FS);
            "OPEN_VIRTUAL_DISK_FLAG_SUPPORT_ENCRYPTED_FILES": Here::Differs, "accepted, also without the flag (6002 is never returned)" => |lab| opens(lab, OPEN_VIRTUAL_DISK_FLAG_SUPPORT_ENCRYPTED_FILES);
        },
    }
}

fn masks() -> Group {
    Group {
        title: "Rights of handles of version 1",
        about: "`VIRTUAL_DISK_ACCESS_MASK`. What a mask lacks: 5. Bits outside ALL: 87.",
        rows: rows! {
            "VIRTUAL_DISK_ACCESS_NONE": SAME, "for versions 2 to 4 of opening and creating, and only there" => |lab| {
                assert_eq!(lab.create("a.vhdx", VIRTUAL_DISK_ACCESS_ALL, 0, |_| ()).0, ERROR_INVALID_PARAMETER);
                lab.create("a.vhdx", VIRTUAL_DISK_ACCESS_NONE, 0, |_| ()).0
            };
            "VIRTUAL_DISK_ACCESS_ATTACH_RO": Here::Differs, "also beside other handles that only read" => |lab| {
                let handle = lab.masked(VIRTUAL_DISK_ACCESS_ATTACH_RO);
                assert_eq!(lab.v1("masked.vhdx", VIRTUAL_DISK_ACCESS_ATTACH_RO, 0).0, 0);
                assert_eq!(lab.v1("masked.vhdx", VIRTUAL_DISK_ACCESS_ATTACH_RW, 1).0, ERROR_SHARING_VIOLATION);
                assert_eq!(lab.attach(handle, RAW), ERROR_ACCESS_DENIED);
                assert_eq!(lab.info(handle, GET_VIRTUAL_DISK_INFO_SIZE).0, ERROR_ACCESS_DENIED);
                lab.attach(handle, RAW_READ_ONLY)
            };
            "VIRTUAL_DISK_ACCESS_ATTACH_RW": SAME, "takes an RWDepth of 1 at least, as METAOPS does: 5" => |lab| {
                let handle = lab.masked(VIRTUAL_DISK_ACCESS_ATTACH_RW);
                assert_eq!(lab.v1("masked.vhdx", VIRTUAL_DISK_ACCESS_ATTACH_RW, 1).0, ERROR_SHARING_VIOLATION);
                assert_eq!(lab.attach(handle, RAW_READ_ONLY), ERROR_ACCESS_DENIED);
                assert_eq!(lab.detach(handle), ERROR_ACCESS_DENIED);
                lab.attach(handle, RAW)
            };
            "VIRTUAL_DISK_ACCESS_DETACH": SAME, "does not keep others from using the disk" => |lab| {
                let handle = lab.masked(VIRTUAL_DISK_ACCESS_DETACH);
                let (_, user) = lab.v1("masked.vhdx", VIRTUAL_DISK_ACCESS_ATTACH_RW, 1);
                assert_eq!(lab.attach(user, RAW), 0);
                lab.detach(handle)
            };
            "VIRTUAL_DISK_ACCESS_GET_INFO": SAME, "does not keep others from using the disk" => |lab| {
                let handle = lab.masked(VIRTUAL_DISK_ACCESS_GET_INFO);
                assert_eq!(lab.open("masked.vhdx", 0).0, 0);
                assert_eq!(lab.compact(handle, 0), ERROR_ACCESS_DENIED);
                lab.info(handle, GET_VIRTUAL_DISK_INFO_SIZE).0
            };
            "VIRTUAL_DISK_ACCESS_CREATE": SAME, "" => |lab| {
                let version1 = |mask| lab.create("a.vhdx", mask, 0, |p| {
                    p.Version = CREATE_VIRTUAL_DISK_VERSION_1;
                    p.Anonymous.Version1.MaximumSize = 8 * MIB;
                }).0;
                assert_eq!(version1(VIRTUAL_DISK_ACCESS_ATTACH_RW), ERROR_ACCESS_DENIED);
                version1(VIRTUAL_DISK_ACCESS_CREATE)
            };
            "VIRTUAL_DISK_ACCESS_METAOPS": SAME, "the file is opened for writing, exclusively" => |lab| {
                let handle = lab.masked(VIRTUAL_DISK_ACCESS_METAOPS);
                assert_eq!(lab.v1("masked.vhdx", VIRTUAL_DISK_ACCESS_ATTACH_RO, 0).0, ERROR_SHARING_VIOLATION);
                assert_eq!(lab.resize(handle, 0, 16 * MIB), ERROR_ACCESS_DENIED);
                lab.compact(handle, 0)
            };
            "VIRTUAL_DISK_ACCESS_READ": SAME, "ATTACH_RO, DETACH and GET_INFO" => |lab| {
                let handle = lab.masked(VIRTUAL_DISK_ACCESS_READ);
                assert_eq!(lab.attach(handle, RAW_READ_ONLY), 0);
                assert_eq!(lab.info(handle, GET_VIRTUAL_DISK_INFO_SIZE).0, 0);
                lab.detach(handle)
            };
            "VIRTUAL_DISK_ACCESS_WRITABLE": SAME, "ATTACH_RW, CREATE and METAOPS" => |lab| {
                let handle = lab.masked(VIRTUAL_DISK_ACCESS_WRITABLE);
                assert_eq!(lab.compact(handle, 0), 0);
                lab.attach(handle, RAW)
            };
            "VIRTUAL_DISK_ACCESS_ALL": SAME, "" => |lab| {
                let handle = lab.masked(VIRTUAL_DISK_ACCESS_ALL);
                assert_eq!(lab.attach(handle, RAW), 0);
                lab.detach(handle)
            };
        },
    }
}

/// What a disk of some flags says of its type: 2 fixed, 3 dynamic, 4 differencing.
fn subtype(lab: &Lab, handle: HANDLE) -> u32 {
    let (code, info) = lab.info(handle, GET_VIRTUAL_DISK_INFO_PROVIDER_SUBTYPE);
    assert_eq!(code, 0);
    // SAFETY: the arm of this kind.
    unsafe { info.Anonymous.ProviderSubtype }
}

fn creates(lab: &Lab, flag: u32) -> Code {
    lab.create("a.vhdx", 0, flag, |_| ()).0
}

fn create() -> Group {
    Group {
        title: "CreateVirtualDisk",
        about: "Fixed, dynamic and differencing disks, empty or with the content of a `SourcePath` (a disk of any format, or a block device). The file gets its name when it is complete: what was cancelled, failed or killed leaves none. Existing files: 80. `SecurityDescriptor` is not used: the file has the rights that the system gives new files.",
        rows: rows! {
            "CreateVirtualDisk": SAME, "" => |lab| { assert_eq!(creates(lab, 0), 0); assert_eq!(creates(lab, 0), ERROR_FILE_EXISTS); 0 };
            "CREATE_VIRTUAL_DISK_VERSION_UNSPECIFIED": INVALID, "" => |lab| lab.create("a.vhdx", 0, 0, |p| p.Version = 0).0;
            "CREATE_VIRTUAL_DISK_VERSION_1": SAME, "" => |lab| {
                let (code, handle) = lab.create("a.vhd", VIRTUAL_DISK_ACCESS_ALL, 0, |p| {
                    p.Version = CREATE_VIRTUAL_DISK_VERSION_1;
                    p.Anonymous.Version1 = CREATE_VIRTUAL_DISK_PARAMETERS_0_0 { UniqueId: guid(9), MaximumSize: 8 * MIB, BlockSizeInBytes: 0x8_0000, SectorSizeInBytes: 512, ParentPath: null(), SourcePath: null() };
                });
                let (_, id) = lab.info(handle, GET_VIRTUAL_DISK_INFO_IDENTIFIER);
                // SAFETY: the arm of this kind.
                assert!(same(unsafe { id.Anonymous.Identifier }, guid(9)));
                code
            };
            "CREATE_VIRTUAL_DISK_VERSION_2": SAME, "blocks of a dynamic VHDX: powers of two from 1 to 256 MB, by default 32 MB (2 MB in a child); of a VHD: 512 KB or 2 MB" => |lab| {
                let (code, handle) = lab.create("a.vhdx", 0, 0, |p| {
                    p.Anonymous.Version2.PhysicalSectorSizeInBytes = 512;
                    p.Anonymous.Version2.ResiliencyGuid = guid(1);
                });
                let (_, sector) = lab.info(handle, GET_VIRTUAL_DISK_INFO_VHD_PHYSICAL_SECTOR_SIZE);
                let (_, size) = lab.info(handle, GET_VIRTUAL_DISK_INFO_SIZE);
                // SAFETY: the arms of these kinds.
                unsafe {
                    assert_eq!(sector.Anonymous.VhdPhysicalSectorSize, 512);
                    assert_eq!(size.Anonymous.Size.BlockSize, 32 << 20);
                }
                // Its handle is shared by its ResiliencyGuid.
                assert_eq!(lab.open_with("a.vhdx", 0, 0, |p| p.Anonymous.Version2.ResiliencyGuid = guid(1)).0, 0);
                code
            };
            "CREATE_VIRTUAL_DISK_VERSION_3": Here::Differs, "as version 2; with a SourceLimitPath or a BackingStorageType: 50" => |lab| {
                let version3 = |name, device, limit| lab.create(name, 0, 0, |p| {
                    p.Version = CREATE_VIRTUAL_DISK_VERSION_3;
                    p.Anonymous.Version3.SourceLimitPath = limit;
                    p.Anonymous.Version3.BackingStorageType.DeviceId = device;
                }).0;
                assert_eq!(version3("a.vhdx", 3, null()), ERROR_NOT_SUPPORTED);
                assert_eq!(version3("a.vhdx", 0, lab.wide("b.vhdx")), ERROR_NOT_SUPPORTED);
                version3("a.vhdx", 0, null())
            };
            "CREATE_VIRTUAL_DISK_VERSION_4": Here::Differs, "as version 3; DataAlignment up to 1 MB (4 KB in a VHD) is always so, more: 50; a PmemAddressAbstractionType: 87" => |lab| {
                let version4 = |pmem, alignment| lab.create("a.vhdx", 0, 0, |p| {
                    p.Version = CREATE_VIRTUAL_DISK_VERSION_4;
                    p.Anonymous.Version4.PmemAddressAbstractionType = guid(pmem);
                    p.Anonymous.Version4.DataAlignment = alignment;
                }).0;
                assert_eq!(version4(1, 0), ERROR_INVALID_PARAMETER);
                assert_eq!(version4(0, 2 * MIB), ERROR_NOT_SUPPORTED);
                version4(0, MIB)
            };
            "CREATE_VIRTUAL_DISK_FLAG_NONE": SAME, "dynamic, or with a ParentPath differencing" => |lab| {
                let (code, handle) = lab.create("a.vhdx", 0, 0, |_| ());
                assert_eq!(subtype(lab, handle), 3);
                assert_eq!(subtype(lab, lab.chain()), 4);
                code
            };
            "CREATE_VIRTUAL_DISK_FLAG_FULL_PHYSICAL_ALLOCATION": SAME, "the space is reserved, not written, where the file system can" => |lab| {
                let (code, handle) = lab.create("a.vhdx", 0, CREATE_VIRTUAL_DISK_FLAG_FULL_PHYSICAL_ALLOCATION, |_| ());
                assert_eq!(subtype(lab, handle), 2);
                use std::os::unix::fs::MetadataExt;
                assert!(std::fs::metadata(lab.path("a.vhdx")).unwrap().blocks() * 512 >= 8 * MIB);
                code
            };
            "CREATE_VIRTUAL_DISK_FLAG_PREVENT_WRITES_TO_SOURCE_DISK": Here::Differs, "without effect when the source is a file, as on Windows; with a block device as the source: 50" => |lab| {
                lab.close(lab.dynamic("source.vhdx"));
                lab.create("a.vhdx", 0, CREATE_VIRTUAL_DISK_FLAG_PREVENT_WRITES_TO_SOURCE_DISK, |p| {
                    p.Anonymous.Version2.SourcePath = lab.wide("source.vhdx");
                    p.Anonymous.Version2.MaximumSize = 0;
                }).0
            };
            "CREATE_VIRTUAL_DISK_FLAG_DO_NOT_COPY_METADATA_FROM_PARENT": SAME, "without it, a child has its parent's user metadata" => |lab| {
                let base = lab.dynamic("base.vhdx");
                let id = guid(7);
                // SAFETY: pointers live as long as the call.
                assert_eq!(unsafe { virtdisk::SetVirtualDiskMetadata(base, &id, 1, b"x".as_ptr().cast()) }, 0);
                lab.close(base);
                let notes = |handle| {
                    let mut n = 0;
                    // SAFETY: pointers live as long as the call.
                    assert_eq!(unsafe { virtdisk::EnumerateVirtualDiskMetadata(handle, &mut n, std::ptr::null_mut()) }, 0);
                    n
                };
                assert_eq!(notes(lab.child("first.vhdx", "base.vhdx")), 1);
                let flag = CREATE_VIRTUAL_DISK_FLAG_DO_NOT_COPY_METADATA_FROM_PARENT;
                let (code, handle) = lab.create("second.vhdx", 0, flag, |p| lab.parent(p, "base.vhdx"));
                assert_eq!(notes(handle), 0);
                code
            };
            "CREATE_VIRTUAL_DISK_FLAG_CREATE_BACKING_STORAGE": REFUSED, "VHD Sets" => |lab| creates(lab, CREATE_VIRTUAL_DISK_FLAG_CREATE_BACKING_STORAGE);
            "CREATE_VIRTUAL_DISK_FLAG_USE_CHANGE_TRACKING_SOURCE_LIMIT": REFUSED, "change tracking" => |lab| creates(lab, CREATE_VIRTUAL_DISK_FLAG_USE_CHANGE_TRACKING_SOURCE_LIMIT);
            "CREATE_VIRTUAL_DISK_FLAG_PRESERVE_PARENT_CHANGE_TRACKING_STATE": REFUSED, "change tracking" => |lab| creates(lab, CREATE_VIRTUAL_DISK_FLAG_PRESERVE_PARENT_CHANGE_TRACKING_STATE);
            "CREATE_VIRTUAL_DISK_FLAG_VHD_SET_USE_ORIGINAL_BACKING_STORAGE": REFUSED, "VHD Sets" => |lab| creates(lab, CREATE_VIRTUAL_DISK_FLAG_VHD_SET_USE_ORIGINAL_BACKING_STORAGE);
            "CREATE_VIRTUAL_DISK_FLAG_SPARSE_FILE": REFUSED, "a dynamic disk is what takes no space" => |lab| creates(lab, CREATE_VIRTUAL_DISK_FLAG_SPARSE_FILE | CREATE_VIRTUAL_DISK_FLAG_FULL_PHYSICAL_ALLOCATION);
            "CREATE_VIRTUAL_DISK_FLAG_PMEM_COMPATIBLE": REFUSED, "" => |lab| creates(lab, CREATE_VIRTUAL_DISK_FLAG_PMEM_COMPATIBLE);
            "CREATE_VIRTUAL_DISK_FLAG_SUPPORT_COMPRESSED_VOLUMES": Here::Differs, "accepted, also without the flag" => |lab| creates(lab, CREATE_VIRTUAL_DISK_FLAG_SUPPORT_COMPRESSED_VOLUMES);
            "CREATE_VIRTUAL_DISK_FLAG_SUPPORT_SPARSE_FILES_ANY_FS": Here::Differs, "accepted, also without the flag" => |lab| creates(lab, CREATE_VIRTUAL_DISK_FLAG_SUPPORT_SPARSE_FILES_ANY_FS);
        },
    }
}
