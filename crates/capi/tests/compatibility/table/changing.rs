//! Information, metadata, progress, and the operations.

use std::mem::zeroed;
use std::ptr::{null, null_mut};

use virtdisk::codes::*;
use virtdisk::constants::*;
use virtdisk::types::*;
use virtdisk::*;

use super::{Group, Here, INVALID, REFUSED, Row, SAME};
use crate::lab::{Code, Lab, MIB, guid, same};
use crate::versioned;

pub fn groups() -> Vec<Group> {
    vec![
        get(),
        set(),
        metadata(),
        progress(),
        compact(),
        merge(),
        expand(),
        resize(),
        mirror(),
        parent(),
    ]
}

/// A question to a new dynamic VHDX.
fn ask(lab: &Lab, kind: u32) -> (Code, GET_VIRTUAL_DISK_INFO) {
    lab.info(lab.dynamic("a.vhdx"), kind)
}

/// The number that is the answer.
fn number(answer: &(Code, GET_VIRTUAL_DISK_INFO)) -> u32 {
    // SAFETY: an arm of one number.
    unsafe { answer.1.Anonymous.ProviderSubtype }
}

fn get() -> Group {
    Group {
        title: "GetVirtualDiskInformation",
        about: "What does not fit the disk (a parent's, for one without): 0xC03A001B. Too small a buffer: 122 with the size needed.",
        rows: rows! {
            "GetVirtualDiskInformation": SAME, "" => |lab| ask(lab, GET_VIRTUAL_DISK_INFO_SIZE).0;
            "GET_VIRTUAL_DISK_INFO_UNSPECIFIED": INVALID, "" => |lab| ask(lab, 0).0;
            "GET_VIRTUAL_DISK_INFO_SIZE": SAME, "BlockSize of a fixed VHD: 0" => |lab| {
                let (code, info) = ask(lab, GET_VIRTUAL_DISK_INFO_SIZE);
                // SAFETY: the arm of this kind.
                let size = unsafe { info.Anonymous.Size };
                assert_eq!((size.VirtualSize, size.BlockSize, size.SectorSize), (8 * MIB, 32 << 20, 512));
                assert!(size.PhysicalSize >= 3 * MIB);
                code
            };
            "GET_VIRTUAL_DISK_INFO_IDENTIFIER": SAME, "of a VHD its unique id; of a VHDX what its children record, which changes when it is written to" => |lab| {
                let child = lab.chain();
                let (_, expected) = lab.info(child, GET_VIRTUAL_DISK_INFO_PARENT_IDENTIFIER);
                let (code, found) = lab.info(lab.asks("base.vhdx"), GET_VIRTUAL_DISK_INFO_IDENTIFIER);
                // SAFETY: the arms of these kinds.
                unsafe { assert!(same(found.Anonymous.Identifier, expected.Anonymous.ParentIdentifier)) };
                code
            };
            "GET_VIRTUAL_DISK_INFO_PARENT_LOCATION": SAME, "resolved: a path of this system; not resolved: all recorded paths as they are" => |lab| {
                let child = lab.chain();
                let (code, resolved, paths) = lab.long_info(child, GET_VIRTUAL_DISK_INFO_PARENT_LOCATION);
                assert_eq!(resolved, 1);
                assert_eq!(paths, [lab.path("base.vhdx").to_str().unwrap()]);
                lab.close(child);
                std::fs::rename(lab.path("base.vhdx"), lab.path("away.vhdx")).unwrap();
                let (_, alone) = lab.open("child.vhdx", OPEN_VIRTUAL_DISK_FLAG_NO_PARENTS);
                let (again, resolved, paths) = lab.long_info(alone, GET_VIRTUAL_DISK_INFO_PARENT_LOCATION);
                assert_eq!((again, resolved), (0, 0));
                assert_eq!(paths[0], r".\base.vhdx");
                code
            };
            "GET_VIRTUAL_DISK_INFO_PARENT_IDENTIFIER": SAME, "" => |lab| lab.info(lab.chain(), GET_VIRTUAL_DISK_INFO_PARENT_IDENTIFIER).0;
            "GET_VIRTUAL_DISK_INFO_PARENT_TIMESTAMP": SAME, "seconds since 2000; of a VHDX 0" => |lab| {
                lab.close(lab.dynamic("base.vhd"));
                let (_, child) = lab.create("child.vhd", 0, 0, |p| lab.parent(p, "base.vhd"));
                assert!(number(&lab.info(child, GET_VIRTUAL_DISK_INFO_PARENT_TIMESTAMP)) > 800_000_000);
                let vhdx = lab.info(lab.chain(), GET_VIRTUAL_DISK_INFO_PARENT_TIMESTAMP);
                assert_eq!(number(&vhdx), 0);
                vhdx.0
            };
            "GET_VIRTUAL_DISK_INFO_VIRTUAL_STORAGE_TYPE": SAME, "" => |lab| { let a = ask(lab, GET_VIRTUAL_DISK_INFO_VIRTUAL_STORAGE_TYPE); assert_eq!(number(&a), VIRTUAL_STORAGE_TYPE_DEVICE_VHDX); a.0 };
            "GET_VIRTUAL_DISK_INFO_PROVIDER_SUBTYPE": SAME, "2 fixed, 3 dynamic, 4 differencing" => |lab| { let a = ask(lab, GET_VIRTUAL_DISK_INFO_PROVIDER_SUBTYPE); assert_eq!(number(&a), 3); a.0 };
            "GET_VIRTUAL_DISK_INFO_IS_4K_ALIGNED": SAME, "" => |lab| { let a = ask(lab, GET_VIRTUAL_DISK_INFO_IS_4K_ALIGNED); assert_eq!(number(&a), 1); a.0 };
            "GET_VIRTUAL_DISK_INFO_PHYSICAL_DISK": SAME, "of the disk that the file lies on; 512 and 4096 if the system does not say" => |lab| {
                let (code, info) = ask(lab, GET_VIRTUAL_DISK_INFO_PHYSICAL_DISK);
                // SAFETY: the arm of this kind.
                let host = unsafe { info.Anonymous.PhysicalDisk };
                assert!(host.LogicalSectorSize >= 512 && host.PhysicalSectorSize >= host.LogicalSectorSize && host.IsRemote == 0);
                code
            };
            "GET_VIRTUAL_DISK_INFO_VHD_PHYSICAL_SECTOR_SIZE": SAME, "" => |lab| { let a = ask(lab, GET_VIRTUAL_DISK_INFO_VHD_PHYSICAL_SECTOR_SIZE); assert_eq!(number(&a), 4096); a.0 };
            "GET_VIRTUAL_DISK_INFO_SMALLEST_SAFE_VIRTUAL_SIZE": Here::Same(ERROR_VHD_COULD_NOT_COMPUTE_MINIMUM_VIRTUAL_SIZE), "of a disk with partitions (MBR or GPT) what keeps them all; of one without, this code" => |lab| ask(lab, GET_VIRTUAL_DISK_INFO_SMALLEST_SAFE_VIRTUAL_SIZE).0;
            "GET_VIRTUAL_DISK_INFO_FRAGMENTATION": SAME, "blocks that do not follow their predecessor in the file, in percent" => |lab| { let a = ask(lab, GET_VIRTUAL_DISK_INFO_FRAGMENTATION); assert_eq!(number(&a), 0); a.0 };
            "GET_VIRTUAL_DISK_INFO_IS_LOADED": SAME, "attached by this process" => |lab| { let a = lab.info(lab.attached("a.vhdx"), GET_VIRTUAL_DISK_INFO_IS_LOADED); assert_eq!(number(&a), 1); a.0 };
            "GET_VIRTUAL_DISK_INFO_VIRTUAL_DISK_ID": SAME, "of a VHDX the id of SCSI page 83, of a VHD its unique id" => |lab| {
                let (_, handle) = lab.create("a.vhdx", 0, 0, |p| p.Anonymous.Version2.UniqueId = guid(5));
                let (code, info) = lab.info(handle, GET_VIRTUAL_DISK_INFO_VIRTUAL_DISK_ID);
                // SAFETY: the arm of this kind.
                assert!(same(unsafe { info.Anonymous.VirtualDiskId }, guid(5)));
                code
            };
            "GET_VIRTUAL_DISK_INFO_CHANGE_TRACKING_STATE": SAME, "off; 50 if Windows' files of tracked changes (`.rct`, `.mrt`) lie beside the disk" => |lab| {
                let (code, info) = ask(lab, GET_VIRTUAL_DISK_INFO_CHANGE_TRACKING_STATE);
                // SAFETY: the arm of this kind.
                let state = unsafe { info.Anonymous.ChangeTrackingState };
                assert_eq!((state.Enabled, state.NewerChanges, state.MostRecentId[0]), (0, 0, 0));
                code
            };
        },
    }
}

fn set() -> Group {
    Group {
        title: "SetVirtualDiskInformation",
        about: "The disk is not attached (0xC03A001C), except for PARENT_PATH_WITH_DEPTH. What its format or type does not have: 0xC03A001B.",
        rows: rows! {
            "SetVirtualDiskInformation": SAME, "durable when it returns" => |lab| {
                let handle = lab.attached("a.vhdx");
                let set = |handle| lab.set(handle, SET_VIRTUAL_DISK_INFO_VIRTUAL_DISK_ID, |i| i.Anonymous.VirtualDiskId = guid(3));
                assert_eq!(set(handle), ERROR_VHD_INVALID_STATE);
                lab.detach(handle);
                set(handle)
            };
            "SET_VIRTUAL_DISK_INFO_UNSPECIFIED": INVALID, "" => |lab| lab.set(lab.dynamic("a.vhdx"), 0, |_| ());
            "SET_VIRTUAL_DISK_INFO_PARENT_PATH": SAME, "another identifier than expected: 0xC03A000E" => |lab| {
                lab.close(lab.chain());
                lab.close(lab.dynamic("other.vhdx"));
                std::fs::rename(lab.path("base.vhdx"), lab.path("moved.vhdx")).unwrap();
                let (_, child) = lab.open("child.vhdx", OPEN_VIRTUAL_DISK_FLAG_NO_PARENTS);
                let to = |name| lab.set(child, SET_VIRTUAL_DISK_INFO_PARENT_PATH, |i| i.Anonymous.ParentFilePath = lab.wide(name));
                assert_eq!(to("gone.vhdx"), ERROR_VHD_PARENT_VHD_NOT_FOUND);
                assert_eq!(to("other.vhdx"), ERROR_VHD_CHILD_PARENT_ID_MISMATCH);
                let code = to("moved.vhdx");
                lab.close(child);
                assert_eq!(lab.open("child.vhdx", 0).0, 0);
                code
            };
            "SET_VIRTUAL_DISK_INFO_IDENTIFIER": SAME, "VHD only; children lose their parent" => |lab| {
                let set = |handle| lab.set(handle, SET_VIRTUAL_DISK_INFO_IDENTIFIER, |i| i.Anonymous.UniqueIdentifier = guid(3));
                assert_eq!(set(lab.dynamic("a.vhdx")), ERROR_VHD_INVALID_TYPE);
                set(lab.dynamic("a.vhd"))
            };
            "SET_VIRTUAL_DISK_INFO_PARENT_PATH_WITH_DEPTH": SAME, "also while attached" => |lab| {
                let child = lab.chain();
                assert_eq!(lab.attach(child, ATTACH_VIRTUAL_DISK_FLAG_NO_LOCAL_HOST), 0);
                let at = |depth| lab.set(child, SET_VIRTUAL_DISK_INFO_PARENT_PATH_WITH_DEPTH, |i| {
                    i.Anonymous.ParentPathWithDepthInfo = SET_VIRTUAL_DISK_INFO_0_0 { ChildDepth: depth, ParentFilePath: lab.wide("base.vhdx") };
                });
                assert_eq!(at(0), ERROR_INVALID_PARAMETER);
                assert_eq!(at(3), ERROR_INVALID_PARAMETER);
                at(1)
            };
            "SET_VIRTUAL_DISK_INFO_PHYSICAL_SECTOR_SIZE": SAME, "VHDX only; 512 or 4096" => |lab| {
                let set = |handle, size| lab.set(handle, SET_VIRTUAL_DISK_INFO_PHYSICAL_SECTOR_SIZE, |i| i.Anonymous.VhdPhysicalSectorSize = size);
                assert_eq!(set(lab.dynamic("a.vhd"), 512), ERROR_VHD_INVALID_TYPE);
                let handle = lab.dynamic("a.vhdx");
                assert_eq!(set(handle, 1024), ERROR_INVALID_PARAMETER);
                let code = set(handle, 512);
                assert_eq!(number(&lab.info(handle, GET_VIRTUAL_DISK_INFO_VHD_PHYSICAL_SECTOR_SIZE)), 512);
                code
            };
            "SET_VIRTUAL_DISK_INFO_VIRTUAL_DISK_ID": SAME, "VHDX only; zeros: 87" => |lab| {
                let set = |handle, n| lab.set(handle, SET_VIRTUAL_DISK_INFO_VIRTUAL_DISK_ID, |i| i.Anonymous.VirtualDiskId = guid(n));
                assert_eq!(set(lab.dynamic("a.vhd"), 1), ERROR_VHD_INVALID_TYPE);
                let handle = lab.dynamic("a.vhdx");
                assert_eq!(set(handle, 0), ERROR_INVALID_PARAMETER);
                set(handle, 1)
            };
            "SET_VIRTUAL_DISK_INFO_CHANGE_TRACKING_STATE": REFUSED, "" => |lab| lab.set(lab.dynamic("a.vhdx"), SET_VIRTUAL_DISK_INFO_CHANGE_TRACKING_STATE, |i| i.Anonymous.ChangeTrackingEnabled = 1);
            "SET_VIRTUAL_DISK_INFO_PARENT_LOCATOR": SAME, "written as given, whether or not there is such a parent" => |lab| {
                let child = lab.chain();
                let code = lab.set(child, SET_VIRTUAL_DISK_INFO_PARENT_LOCATOR, |i| {
                    i.Anonymous.ParentLocator = SET_VIRTUAL_DISK_INFO_0_1 { LinkageId: guid(8), ParentFilePath: lab.wide("gone.vhdx") };
                });
                let (_, info) = lab.info(child, GET_VIRTUAL_DISK_INFO_PARENT_IDENTIFIER);
                // SAFETY: the arm of this kind.
                assert!(same(unsafe { info.Anonymous.ParentIdentifier }, guid(8)));
                code
            };
        },
    }
}

fn store(handle: HANDLE, value: &[u8]) -> Code {
    // SAFETY: pointers live as long as the call.
    unsafe { SetVirtualDiskMetadata(handle, &guid(7), value.len() as u32, value.as_ptr().cast()) }
}

fn metadata() -> Group {
    Group {
        title: "User metadata",
        about: "VHDX only (0xC03A001B), handles of version 2 only (5), at most 1024 items of at most 1 MB (0xC03A0028). Too small a buffer: 122 with what is needed and the beginning of the data, as the page says (Microsoft's sample tests for 234).",
        rows: rows! {
            "EnumerateVirtualDiskMetadata": SAME, "without a buffer: success and the number" => |lab| {
                let handle = lab.dynamic("a.vhdx");
                store(handle, b"text");
                let mut n = 0;
                // SAFETY: pointers live as long as the call.
                let code = unsafe { EnumerateVirtualDiskMetadata(handle, &mut n, null_mut()) };
                assert_eq!(n, 1);
                code
            };
            "GetVirtualDiskMetadata": SAME, "no such item: 1168" => |lab| {
                let handle = lab.dynamic("a.vhdx");
                let mut data = [0_u8; 8];
                let mut get = |n: &mut u32| {
                    // SAFETY: pointers live as long as the call.
                    unsafe { GetVirtualDiskMetadata(handle, &guid(7), n, data.as_mut_ptr().cast()) }
                };
                assert_eq!(get(&mut 8), ERROR_NOT_FOUND);
                store(handle, b"text");
                let mut n = 2;
                assert_eq!(get(&mut n), ERROR_INSUFFICIENT_BUFFER);
                assert_eq!(n, 4);
                let code = get(&mut n);
                assert_eq!(&data[..4], b"text");
                code
            };
            "SetVirtualDiskMetadata": SAME, "durable when it returns" => |lab| { assert_eq!(store(lab.dynamic("a.vhd"), b"x"), ERROR_VHD_INVALID_TYPE); store(lab.dynamic("a.vhdx"), b"text") };
            "DeleteVirtualDiskMetadata": SAME, "" => |lab| {
                let handle = lab.dynamic("a.vhdx");
                store(handle, b"text");
                // SAFETY: pointers live as long as the call.
                unsafe { DeleteVirtualDiskMetadata(handle, &guid(7)) }
            };
        },
    }
}

fn progress() -> Group {
    Group {
        title: "GetVirtualDiskOperationProgress",
        about: "An operation is known by its handle and the address of its OVERLAPPED; an address that no operation of the handle was started with: 87. A status of 997 is the only sign that it goes on.",
        rows: rows! {
            "GetVirtualDiskOperationProgress": SAME, "CompletionValue is never 0 while the operation goes on" => |lab| {
                let handle = lab.dynamic("a.vhdx");
                // SAFETY: zeros are valid; all of it lives until the operation is over.
                unsafe {
                    let mut o: OVERLAPPED = zeroed();
                    let mut p: VIRTUAL_DISK_PROGRESS = zeroed();
                    assert_eq!(GetVirtualDiskOperationProgress(handle, &o, &mut p), ERROR_INVALID_PARAMETER);
                    assert_eq!(CompactVirtualDisk(handle, 0, null(), &mut o), ERROR_IO_PENDING);
                    loop {
                        let code = GetVirtualDiskOperationProgress(handle, &o, &mut p);
                        if p.OperationStatus != ERROR_IO_PENDING {
                            assert_eq!(p.OperationStatus, 0);
                            return code;
                        }
                        assert!(p.CompletionValue > 0 && p.CurrentValue <= p.CompletionValue);
                    }
                }
            };
        },
    }
}

fn compact_version(lab: &Lab, version: u32) -> Code {
    let handle = lab.dynamic("a.vhdx");
    let p = versioned!(COMPACT_VIRTUAL_DISK_PARAMETERS, version);
    // SAFETY: pointers live as long as the call.
    unsafe { CompactVirtualDisk(handle, 0, &p, null_mut()) }
}

fn physical(lab: &Lab, handle: HANDLE) -> u64 {
    // SAFETY: the arm of this kind.
    unsafe {
        lab.info(handle, GET_VIRTUAL_DISK_INFO_SIZE)
            .1
            .Anonymous
            .Size
            .PhysicalSize
    }
}

/// A VHDX in whose second block zeros were written.
fn written_zeros(lab: &Lab) -> HANDLE {
    let (_, handle) = lab.create("zeros.vhdx", 0, 0, |p| {
        p.Anonymous.Version2.BlockSizeInBytes = 1 << 20;
    });
    lab.attach(handle, ATTACH_VIRTUAL_DISK_FLAG_NO_LOCAL_HOST);
    assert_eq!(lab.put(handle, 0, 1), 0);
    assert_eq!(lab.put(handle, 1 << 20, 1), 0);
    assert_eq!(lab.put(handle, 1 << 20, 0), 0);
    assert_eq!(lab.detach(handle), 0);
    handle
}

fn compact() -> Group {
    Group {
        title: "CompactVirtualDisk",
        about: "Of a disk that is not attached, or attached read-only (else 0xC03A001C). A fixed VHD: 0xC03A001B; a fixed VHDX: success, and nothing to do. Interrupted at any moment, the disk reads as before.",
        rows: rows! {
            "CompactVirtualDisk": SAME, "" => |lab| { let h = lab.attached("a.vhdx"); assert_eq!(lab.compact(h, 0), ERROR_VHD_INVALID_STATE); lab.detach(h); lab.compact(h, 0) };
            "COMPACT_VIRTUAL_DISK_VERSION_UNSPECIFIED": INVALID, "" => |lab| compact_version(lab, 0);
            "COMPACT_VIRTUAL_DISK_VERSION_1": SAME, "NULL parameters: the same" => |lab| compact_version(lab, 1);
            "COMPACT_VIRTUAL_DISK_FLAG_NONE": Here::Differs, "gives back blocks of zeros; a file system is not looked into, also when the disk is attached read-only" => |lab| {
                let handle = written_zeros(lab);
                let code = lab.compact(handle, COMPACT_VIRTUAL_DISK_FLAG_NONE);
                // Headers, log, tables and metadata, and one block.
                assert_eq!(physical(lab, handle), 5 * MIB);
                code
            };
            "COMPACT_VIRTUAL_DISK_FLAG_NO_ZERO_SCAN": SAME, "only what was discarded is given back" => |lab| {
                let handle = written_zeros(lab);
                let code = lab.compact(handle, COMPACT_VIRTUAL_DISK_FLAG_NO_ZERO_SCAN);
                let quick = physical(lab, handle);
                assert_eq!(lab.compact(handle, COMPACT_VIRTUAL_DISK_FLAG_NONE), 0);
                assert_eq!(physical(lab, handle), quick - MIB);
                code
            };
            "COMPACT_VIRTUAL_DISK_FLAG_NO_BLOCK_MOVES": REFUSED, "" => |lab| lab.compact(lab.dynamic("a.vhdx"), COMPACT_VIRTUAL_DISK_FLAG_NO_BLOCK_MOVES);
        },
    }
}

fn merge() -> Group {
    Group {
        title: "MergeVirtualDisk",
        about: "Merged files stay as they are, and valid. Depths that the chain does not have: 87.",
        rows: rows! {
            "MergeVirtualDisk": SAME, "" => |lab| {
                let mut p = versioned!(MERGE_VIRTUAL_DISK_PARAMETERS, MERGE_VIRTUAL_DISK_VERSION_1);
                p.Anonymous.Version1.MergeDepth = MERGE_VIRTUAL_DISK_DEFAULT_MERGE_DEPTH;
                assert_eq!(lab.merge(lab.dynamic("a.vhdx"), &p), ERROR_INVALID_PARAMETER);
                lab.merge(lab.chain(), &p)
            };
            "MERGE_VIRTUAL_DISK_FLAG_NONE": SAME, "" => |lab| lab.merge(lab.chain(), &{ let mut p = versioned!(MERGE_VIRTUAL_DISK_PARAMETERS, 1); p.Anonymous.Version1.MergeDepth = 1; p });
            "MERGE_VIRTUAL_DISK_VERSION_UNSPECIFIED": INVALID, "" => |lab| lab.merge(lab.chain(), &versioned!(MERGE_VIRTUAL_DISK_PARAMETERS, 0));
            "MERGE_VIRTUAL_DISK_VERSION_1": SAME, "not attached; RWDepth is greater than MergeDepth (else 5). Handles of version 2 may use it, too" => |lab| {
                lab.close(lab.chain());
                let mut p = versioned!(MERGE_VIRTUAL_DISK_PARAMETERS, MERGE_VIRTUAL_DISK_VERSION_1);
                p.Anonymous.Version1.MergeDepth = 1;
                let (_, shallow) = lab.v1("child.vhdx", VIRTUAL_DISK_ACCESS_METAOPS, 1);
                assert_eq!(lab.merge(shallow, &p), ERROR_ACCESS_DENIED);
                lab.close(shallow);
                let (_, deep) = lab.v1("child.vhdx", VIRTUAL_DISK_ACCESS_METAOPS, 2);
                lab.merge(deep, &p)
            };
            "MERGE_VIRTUAL_DISK_VERSION_2": SAME, "any two depths, attached or not; handles of version 1: 5" => |lab| {
                let mut p = versioned!(MERGE_VIRTUAL_DISK_PARAMETERS, MERGE_VIRTUAL_DISK_VERSION_2);
                p.Anonymous.Version2 = MERGE_VIRTUAL_DISK_PARAMETERS_0_1 { MergeSourceDepth: 1, MergeTargetDepth: 2 };
                let child = lab.chain();
                assert_eq!(lab.attach(child, ATTACH_VIRTUAL_DISK_FLAG_NO_LOCAL_HOST), 0);
                assert_eq!(lab.put(child, 512, 6), 0);
                let code = lab.merge(child, &p);
                lab.close(child);
                let (_, base) = lab.read_only("base.vhdx", 0);
                lab.attach(base, ATTACH_VIRTUAL_DISK_FLAG_NO_LOCAL_HOST | ATTACH_VIRTUAL_DISK_FLAG_READ_ONLY);
                assert_eq!(lab.get(base, 512), Ok(6));
                code
            };
        },
    }
}

fn expand() -> Group {
    Group {
        title: "ExpandVirtualDisk",
        about: "Fixed and dynamic disks that are not attached; children lose their parent. Not larger, or not a whole number of sectors: 87.",
        rows: rows! {
            "ExpandVirtualDisk": SAME, "" => |lab| { assert_eq!(lab.expand(lab.chain(), 0, 1), ERROR_VHD_INVALID_TYPE); lab.expand(lab.dynamic("a.vhdx"), 0, 1) };
            "EXPAND_VIRTUAL_DISK_VERSION_UNSPECIFIED": INVALID, "" => |lab| lab.expand(lab.dynamic("a.vhdx"), 0, 0);
            "EXPAND_VIRTUAL_DISK_VERSION_1": SAME, "" => |lab| lab.expand(lab.dynamic("a.vhd"), 0, 1);
            "EXPAND_VIRTUAL_DISK_FLAG_NONE": SAME, "" => |lab| lab.expand(lab.dynamic("a.vhdx"), EXPAND_VIRTUAL_DISK_FLAG_NONE, 1);
            "EXPAND_VIRTUAL_DISK_FLAG_NOTIFY_CHANGE": REFUSED, "undocumented" => |lab| lab.expand(lab.dynamic("a.vhdx"), EXPAND_VIRTUAL_DISK_FLAG_NOTIFY_CHANGE, 1);
        },
    }
}

fn resize_version(lab: &Lab, version: u32) -> Code {
    let handle = lab.dynamic("a.vhdx");
    let mut p = versioned!(RESIZE_VIRTUAL_DISK_PARAMETERS, version);
    p.Anonymous.Version1.NewSize = 16 * MIB;
    // SAFETY: pointers live as long as the call.
    unsafe { ResizeVirtualDisk(handle, 0, &p, null_mut()) }
}

/// A disk of 8 MiB with an MBR whose partition ends at 4 MiB.
fn partitioned(lab: &Lab) -> HANDLE {
    let handle = lab.attached("parts.vhdx");
    let mut mbr = [0_u8; 512];
    mbr[446 + 4] = 0x83;
    mbr[446 + 8..446 + 12].copy_from_slice(&2048_u32.to_le_bytes());
    mbr[446 + 12..446 + 16].copy_from_slice(&6144_u32.to_le_bytes());
    mbr[510..].copy_from_slice(&[0x55, 0xAA]);
    // SAFETY: zeros are valid; pointers live as long as the call.
    unsafe {
        let mut o: OVERLAPPED = zeroed();
        assert_eq!(
            WriteFile(handle, mbr.as_ptr().cast(), 512, null_mut(), &mut o),
            1
        );
    }
    assert_eq!(lab.detach(handle), 0);
    handle
}

fn resize() -> Group {
    Group {
        title: "ResizeVirtualDisk",
        about: "Handles of version 2, not attached. Larger: all but differencing VHD; smaller: VHDX; else 0xC03A001B. The size it has: success, no change. Children lose their parent.",
        rows: rows! {
            "ResizeVirtualDisk": SAME, "" => |lab| { let h = lab.dynamic("a.vhdx"); assert_eq!(lab.resize(h, 0, 8 * MIB), 0); lab.resize(h, 0, 16 * MIB) };
            "RESIZE_VIRTUAL_DISK_VERSION_UNSPECIFIED": INVALID, "" => |lab| resize_version(lab, 0);
            "RESIZE_VIRTUAL_DISK_VERSION_1": SAME, "" => |lab| resize_version(lab, 1);
            "RESIZE_VIRTUAL_DISK_FLAG_NONE": SAME, "cutting off partitions: 0xC03A0025" => |lab| {
                let handle = partitioned(lab);
                assert_eq!(lab.resize(handle, 0, 3 * MIB), ERROR_VHD_RESIZE_WOULD_TRUNCATE_DATA);
                lab.resize(handle, 0, 5 * MIB)
            };
            "RESIZE_VIRTUAL_DISK_FLAG_ALLOW_UNSAFE_VIRTUAL_SIZE": SAME, "" => |lab| lab.resize(partitioned(lab), RESIZE_VIRTUAL_DISK_FLAG_ALLOW_UNSAFE_VIRTUAL_SIZE, 3 * MIB);
            "RESIZE_VIRTUAL_DISK_FLAG_RESIZE_TO_SMALLEST_SAFE_VIRTUAL_SIZE": SAME, "NewSize is 0 (else 87); nothing to compute it from: 0xC03A0026; already there: 0xC03A0027" => |lab| {
                let flag = RESIZE_VIRTUAL_DISK_FLAG_RESIZE_TO_SMALLEST_SAFE_VIRTUAL_SIZE;
                assert_eq!(lab.resize(lab.dynamic("a.vhdx"), flag, 0), ERROR_VHD_COULD_NOT_COMPUTE_MINIMUM_VIRTUAL_SIZE);
                let handle = partitioned(lab);
                assert_eq!(lab.resize(handle, flag, 8 * MIB), ERROR_INVALID_PARAMETER);
                let code = lab.resize(handle, flag, 0);
                assert_eq!(lab.resize(handle, flag, 0), ERROR_VHD_ALREADY_AT_OR_BELOW_MINIMUM_VIRTUAL_SIZE);
                code
            };
        },
    }
}

fn mirror() -> Group {
    Group {
        title: "MirrorVirtualDisk and BreakMirrorVirtualDisk",
        about: "Handles of version 2, an OVERLAPPED is required (87). The copy has the disk's format, identifier and user metadata, and no parent. Broken before both are the same: 0xC03A001C, and the mirror goes on.",
        rows: rows! {
            "MirrorVirtualDisk": SAME, "" => |lab| lab.mirror(lab.dynamic("a.vhdx"), 0, 1, "b.vhdx");
            "BreakMirrorVirtualDisk": SAME, "the handle goes on with the copy; the old file stays" => |lab| {
                let handle = lab.attached("a.vhdx");
                let code = lab.mirror(handle, 0, 1, "b.vhdx");
                assert_eq!(lab.put(handle, 0, 4), 0);
                lab.close(handle);
                let (_, copy) = lab.open("b.vhdx", 0);
                lab.attach(copy, ATTACH_VIRTUAL_DISK_FLAG_NO_LOCAL_HOST);
                assert_eq!(lab.get(copy, 0), Ok(4));
                assert_eq!(BreakMirrorVirtualDisk(copy), ERROR_VHD_INVALID_STATE);
                code
            };
            "MIRROR_VIRTUAL_DISK_VERSION_UNSPECIFIED": INVALID, "" => |lab| lab.mirror(lab.dynamic("a.vhdx"), 0, 0, "b.vhdx");
            "MIRROR_VIRTUAL_DISK_VERSION_1": SAME, "" => |lab| lab.mirror(lab.dynamic("a.vhd"), 0, 1, "b.vhd");
            "MIRROR_VIRTUAL_DISK_FLAG_NONE": SAME, "a file that exists: 80" => |lab| {
                lab.close(lab.dynamic("b.vhdx"));
                let handle = lab.dynamic("a.vhdx");
                assert_eq!(lab.mirror(handle, 0, 1, "b.vhdx"), ERROR_FILE_EXISTS);
                lab.mirror(handle, 0, 1, "c.vhdx")
            };
            "MIRROR_VIRTUAL_DISK_FLAG_EXISTING_FILE": SAME, "no such file: 2; one that is smaller: 0xC03A0012. Its own metadata stay" => |lab| {
                lab.close(lab.dynamic("b.vhdx"));
                let handle = lab.dynamic("a.vhdx");
                assert_eq!(lab.mirror(handle, MIRROR_VIRTUAL_DISK_FLAG_EXISTING_FILE, 1, "c.vhdx"), ERROR_FILE_NOT_FOUND);
                lab.mirror(handle, MIRROR_VIRTUAL_DISK_FLAG_EXISTING_FILE, 1, "b.vhdx")
            };
            "MIRROR_VIRTUAL_DISK_FLAG_SKIP_MIRROR_ACTIVATION": REFUSED, "undocumented" => |lab| lab.mirror(lab.dynamic("a.vhdx"), MIRROR_VIRTUAL_DISK_FLAG_SKIP_MIRROR_ACTIVATION, 1, "b.vhdx");
            "MIRROR_VIRTUAL_DISK_FLAG_ENABLE_SMB_COMPRESSION": REFUSED, "undocumented" => |lab| lab.mirror(lab.dynamic("a.vhdx"), MIRROR_VIRTUAL_DISK_FLAG_ENABLE_SMB_COMPRESSION, 1, "b.vhdx");
            "MIRROR_VIRTUAL_DISK_FLAG_IS_LIVE_MIGRATION": REFUSED, "undocumented" => |lab| lab.mirror(lab.dynamic("a.vhdx"), MIRROR_VIRTUAL_DISK_FLAG_IS_LIVE_MIGRATION, 1, "b.vhdx");
        },
    }
}

fn parent() -> Group {
    Group {
        title: "AddVirtualDiskParent",
        about: "",
        rows: rows! {
            "AddVirtualDiskParent": SAME, "for handles opened with CUSTOM_DIFF_CHAIN (else 0xC03A001C) and ReadOnly (else 5); the parent's identifier must fit (0xC03A000E). No file is changed" => |lab| {
                lab.close(lab.chain());
                lab.close(lab.dynamic("other.vhdx"));
                let (_, handle) = lab.read_only("child.vhdx", OPEN_VIRTUAL_DISK_FLAG_CUSTOM_DIFF_CHAIN);
                // SAFETY: the path lives as long as the lab.
                let add = |name| unsafe { AddVirtualDiskParent(handle, lab.wide(name)) };
                assert_eq!(add("other.vhdx"), ERROR_VHD_CHILD_PARENT_ID_MISMATCH);
                let code = add("base.vhdx");
                let read_only = ATTACH_VIRTUAL_DISK_FLAG_NO_LOCAL_HOST | ATTACH_VIRTUAL_DISK_FLAG_READ_ONLY;
                assert_eq!(lab.attach(handle, read_only), 0);
                code
            };
        },
    }
}
