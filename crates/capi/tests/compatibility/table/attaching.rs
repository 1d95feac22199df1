//! Attaching, devices, dependencies, SCSI.

use std::mem::zeroed;

use virtdisk::codes::*;
use virtdisk::constants::*;
use virtdisk::types::*;
use virtdisk::*;

use super::{Group, Here, INVALID, REFUSED, Row, SAME};
use crate::lab::{Code, Lab, MIB};
use crate::versioned;

const RAW: u32 = ATTACH_VIRTUAL_DISK_FLAG_NO_LOCAL_HOST;
const HOSTS: u32 = GET_STORAGE_DEPENDENCY_FLAG_HOST_VOLUMES;

pub fn groups() -> Vec<Group> {
    vec![attach(), detach(), paths(), depends(), scsi()]
}

/// Attaches with further flags and reads.
fn attaches(lab: &Lab, flags: u32) -> Code {
    let handle = lab.dynamic("a.vhdx");
    let code = lab.attach(handle, flags);
    if code == 0 {
        assert_eq!(lab.get(handle, 0), Ok(0));
    }
    code
}

/// Attaches as a device, looks, and detaches; nothing where there are no devices.
fn on_device(lab: &Lab, flags: u32, look: impl FnOnce(HANDLE)) -> Code {
    if !crate::has_devices() {
        return 0;
    }
    let handle = lab.dynamic("device.vhdx");
    let code = lab.attach(handle, flags);
    if code == 0 {
        look(handle);
        assert_eq!(lab.detach(handle), 0);
    }
    code
}

fn attach() -> Group {
    Group {
        title: "AttachVirtualDisk",
        about: "As a device of the system, or with NO_LOCAL_HOST: the handle is for ReadFile and WriteFile. Attached already: 32. As long as there is a device, functions that change the disk, and raw SCSI, are 0xC03A001C, and questions are answered as of the moment when it was attached. `SecurityDescriptor` is not used.",
        rows: rows! {
            "AttachVirtualDisk": SAME, "with NO_LOCAL_HOST" => |lab| attaches(lab, RAW);
            "ATTACH_VIRTUAL_DISK_VERSION_UNSPECIFIED": INVALID, "" => |lab| { let h = lab.dynamic("a.vhdx"); lab.attach_with(h, RAW, &versioned!(ATTACH_VIRTUAL_DISK_PARAMETERS, 0)) };
            "ATTACH_VIRTUAL_DISK_VERSION_1": SAME, "Reserved is never looked at, since headers put it into different places; NULL parameters: the same" => |lab| {
                let h = lab.dynamic("a.vhdx");
                let mut p = versioned!(ATTACH_VIRTUAL_DISK_PARAMETERS, ATTACH_VIRTUAL_DISK_VERSION_1);
                p.Anonymous.Version1.Reserved = 5;
                lab.attach_with(h, RAW, &p)
            };
            "ATTACH_VIRTUAL_DISK_VERSION_2": SAME, "zeros without RESTRICTED_RANGE" => |lab| {
                let h = lab.dynamic("a.vhdx");
                lab.attach_with(h, RAW, &versioned!(ATTACH_VIRTUAL_DISK_PARAMETERS, ATTACH_VIRTUAL_DISK_VERSION_2))
            };
            "ATTACH_VIRTUAL_DISK_FLAG_NONE": Here::Differs, "a block device (`/dev/loop0`, `/dev/ublkb0`) that is served by a process of the `vhdkit` command (`$VHDKIT_SERVER`, beside the program, or in `$PATH`; without it: 50); takes root (else 1314)" => |lab| on_device(lab, 0, |handle| {
                assert_eq!(lab.compact(handle, 0), ERROR_VHD_INVALID_STATE);
                assert_eq!(lab.get(handle, 0), Err(ERROR_NOT_READY));
            });
            "ATTACH_VIRTUAL_DISK_FLAG_READ_ONLY": SAME, "writing: 19" => |lab| {
                on_device(&Lab::new(), ATTACH_VIRTUAL_DISK_FLAG_READ_ONLY, |_| ());
                let handle = lab.dynamic("a.vhdx");
                let code = lab.attach(handle, RAW | ATTACH_VIRTUAL_DISK_FLAG_READ_ONLY);
                assert_eq!(lab.put(handle, 0, 1), ERROR_WRITE_PROTECT);
                code
            };
            "ATTACH_VIRTUAL_DISK_FLAG_NO_DRIVE_LETTER": SAME, "there are no drive letters" => |lab| attaches(lab, RAW | ATTACH_VIRTUAL_DISK_FLAG_NO_DRIVE_LETTER);
            "ATTACH_VIRTUAL_DISK_FLAG_PERMANENT_LIFETIME": Here::Differs, "until DetachVirtualDisk, as there; with NO_LOCAL_HOST no longer than the process" => |lab| {
                let handle = lab.dynamic("a.vhdx");
                let code = lab.attach(handle, RAW | ATTACH_VIRTUAL_DISK_FLAG_PERMANENT_LIFETIME);
                lab.close(handle);
                let asks = lab.asks("a.vhdx");
                let (_, info) = lab.info(asks, GET_VIRTUAL_DISK_INFO_IS_LOADED);
                // SAFETY: the arm of this kind.
                assert_eq!(unsafe { info.Anonymous.IsLoaded }, 1);
                let (_, other) = lab.v1("a.vhdx", VIRTUAL_DISK_ACCESS_DETACH, 0);
                assert_eq!(lab.detach(other), 0);
                code
            };
            "ATTACH_VIRTUAL_DISK_FLAG_NO_LOCAL_HOST": SAME, "an ISO: 50" => |lab| {
                let handle = lab.attached("b.vhdx");
                assert_eq!(lab.put(handle, 512, 1), 0);
                assert_eq!(lab.get(handle, 512), Ok(1));
                attaches(lab, RAW)
            };
            "ATTACH_VIRTUAL_DISK_FLAG_NO_SECURITY_DESCRIPTOR": SAME, "descriptors are not used" => |lab| attaches(lab, RAW | ATTACH_VIRTUAL_DISK_FLAG_NO_SECURITY_DESCRIPTOR);
            "ATTACH_VIRTUAL_DISK_FLAG_BYPASS_DEFAULT_ENCRYPTION_POLICY": SAME, "there is no such policy" => |lab| attaches(lab, RAW | ATTACH_VIRTUAL_DISK_FLAG_BYPASS_DEFAULT_ENCRYPTION_POLICY);
            "ATTACH_VIRTUAL_DISK_FLAG_NON_PNP": REFUSED, "" => |lab| attaches(lab, RAW | ATTACH_VIRTUAL_DISK_FLAG_NON_PNP);
            "ATTACH_VIRTUAL_DISK_FLAG_RESTRICTED_RANGE": SAME, "with NO_LOCAL_HOST (else 50): whole sectors inside the disk; nothing: 87" => |lab| {
                let handle = lab.attached("a.vhdx");
                assert_eq!(lab.put(handle, 1 << 20, 9), 0);
                assert_eq!(lab.detach(handle), 0);
                let mut p = versioned!(ATTACH_VIRTUAL_DISK_PARAMETERS, ATTACH_VIRTUAL_DISK_VERSION_2);
                let flags = RAW | ATTACH_VIRTUAL_DISK_FLAG_RESTRICTED_RANGE;
                assert_eq!(lab.attach_with(handle, flags, &p), ERROR_INVALID_PARAMETER);
                p.Anonymous.Version2 = ATTACH_VIRTUAL_DISK_PARAMETERS_0_1 { RestrictedOffset: MIB, RestrictedLength: 4096 };
                let code = lab.attach_with(handle, flags, &p);
                assert_eq!(lab.get(handle, 0), Ok(9));
                assert_eq!(lab.get(handle, 4096), Err(ERROR_HANDLE_EOF));
                code
            };
            "ATTACH_VIRTUAL_DISK_FLAG_SINGLE_PARTITION": REFUSED, "" => |lab| attaches(lab, RAW | ATTACH_VIRTUAL_DISK_FLAG_SINGLE_PARTITION);
            "ATTACH_VIRTUAL_DISK_FLAG_REGISTER_VOLUME": REFUSED, "" => |lab| attaches(lab, RAW | ATTACH_VIRTUAL_DISK_FLAG_REGISTER_VOLUME);
            "ATTACH_VIRTUAL_DISK_FLAG_AT_BOOT": REFUSED, "" => |lab| attaches(lab, RAW | ATTACH_VIRTUAL_DISK_FLAG_AT_BOOT);
        },
    }
}

fn detach() -> Group {
    Group {
        title: "DetachVirtualDisk",
        about: "What was written is durable when it returns. Not attached: 0xC03A001C.",
        rows: rows! {
            "DetachVirtualDisk": Here::Differs, "any handle with the right detaches, also one that was opened for that, in whatever process the device was attached; other handles may stay open. A device in use: 170" => |lab| {
                let handle = lab.attached("a.vhdx");
                let (_, other) = lab.v1("a.vhdx", VIRTUAL_DISK_ACCESS_DETACH, 0);
                let code = lab.detach(other);
                assert_eq!(lab.get(handle, 0), Err(ERROR_NOT_READY));
                assert_eq!(lab.detach(handle), ERROR_VHD_INVALID_STATE);
                code
            };
            "DETACH_VIRTUAL_DISK_FLAG_NONE": SAME, "" => |lab| lab.detach(lab.attached("a.vhdx"));
        },
    }
}

fn paths() -> Group {
    Group {
        title: "Device paths",
        about: "",
        rows: rows! {
            "GetVirtualDiskPhysicalPath": Here::Differs, "`/dev/loop0` or `/dev/ublkb0`; attached without a local host: 55; too small a buffer: 122 with the size needed" => |lab| {
                on_device(&Lab::new(), 0, |handle| {
                    let mut size = 2;
                    let mut room = [0_u16; 64];
                    // SAFETY: pointers live as long as the call.
                    unsafe {
                        assert_eq!(GetVirtualDiskPhysicalPath(handle, &mut size, room.as_mut_ptr()), ERROR_INSUFFICIENT_BUFFER);
                        assert_eq!(GetVirtualDiskPhysicalPath(handle, &mut size, room.as_mut_ptr()), 0);
                    }
                    assert!(String::from_utf16_lossy(&room).starts_with("/dev/"));
                });
                let handle = lab.attached("a.vhdx");
                let mut room = [0_u16; 64];
                // SAFETY: pointers live as long as the call.
                assert_eq!(unsafe { GetVirtualDiskPhysicalPath(handle, &mut 128, room.as_mut_ptr()) }, ERROR_DEV_NOT_EXIST);
                0
            };
            "GetAllAttachedVirtualDiskPhysicalPaths": SAME, "devices of all processes; disks that are attached without a local host have none" => |_lab| {
                let mut room = [7_u16; 4096];
                // SAFETY: pointers live as long as the call.
                unsafe { GetAllAttachedVirtualDiskPhysicalPaths(&mut 8192, room.as_mut_ptr()) }
            };
        },
    }
}

/// Reported for an attached disk of its own kind, or never.
fn reported(lab: &Lab, handle: HANDLE, flag: u32, is: bool) -> Code {
    assert_eq!(lab.dependent_flags(handle) & flag != 0, is);
    0
}

fn depends() -> Group {
    Group {
        title: "GetStorageDependencyInformation",
        about: "For handles of virtual disks, since there are no handles of volumes; not attached: 0xC03A0015. Entries of version 2 have `/` as the volume, the file's absolute path, and the device if there is one; the dependent volume is empty.",
        rows: rows! {
            "GetStorageDependencyInformation": Here::Differs, "the object is a virtual disk handle" => |lab| {
                assert_eq!(lab.depends(lab.dynamic("b.vhdx"), HOSTS, 1).0, ERROR_VIRTDISK_NOT_VIRTUAL_DISK);
                lab.depends(lab.attached("a.vhdx"), HOSTS, 1).0
            };
            "STORAGE_DEPENDENCY_INFO_VERSION_UNSPECIFIED": INVALID, "" => |lab| lab.depends(lab.attached("a.vhdx"), HOSTS, 0).0;
            "STORAGE_DEPENDENCY_INFO_VERSION_1": SAME, "" => |lab| { let (code, entries) = lab.depends(lab.attached("a.vhdx"), HOSTS, 1); assert_eq!(entries.len(), 1); code };
            "STORAGE_DEPENDENCY_INFO_VERSION_2": SAME, "" => |lab| { let (code, entries) = lab.depends(lab.attached("a.vhdx"), HOSTS, 2); assert_eq!(entries.len(), 1); code };
            "GET_STORAGE_DEPENDENCY_FLAG_NONE": SAME, "what depends on the disk: nothing" => |lab| { let (code, entries) = lab.depends(lab.attached("a.vhdx"), 0, 1); assert!(entries.is_empty()); code };
            "GET_STORAGE_DEPENDENCY_FLAG_HOST_VOLUMES": SAME, "the files of the chain, the leaf first" => |lab| {
                let handle = lab.chain();
                assert_eq!(lab.attach(handle, RAW), 0);
                let (code, entries) = lab.depends(handle, HOSTS, 2);
                assert_eq!(entries.len(), 2);
                code
            };
            "GET_STORAGE_DEPENDENCY_FLAG_DISK_HANDLE": Here::Differs, "without effect: every handle is one of a disk" => |lab| lab.depends(lab.attached("a.vhdx"), HOSTS | GET_STORAGE_DEPENDENCY_FLAG_DISK_HANDLE, 1).0;
            "DEPENDENT_DISK_FLAG_NONE": SAME, "" => |lab| reported(lab, lab.attached("a.vhdx"), DEPENDENT_DISK_FLAG_NONE, false);
            "DEPENDENT_DISK_FLAG_MULT_BACKING_FILES": SAME, "" => |lab| { let h = lab.chain(); lab.attach(h, RAW); reported(lab, h, DEPENDENT_DISK_FLAG_MULT_BACKING_FILES, true) };
            "DEPENDENT_DISK_FLAG_FULLY_ALLOCATED": SAME, "" => |lab| {
                let (_, h) = lab.create("a.vhdx", 0, CREATE_VIRTUAL_DISK_FLAG_FULL_PHYSICAL_ALLOCATION, |_| ());
                lab.attach(h, RAW);
                reported(lab, h, DEPENDENT_DISK_FLAG_FULLY_ALLOCATED, true)
            };
            "DEPENDENT_DISK_FLAG_READ_ONLY": SAME, "" => |lab| { let h = lab.dynamic("a.vhdx"); lab.attach(h, RAW | ATTACH_VIRTUAL_DISK_FLAG_READ_ONLY); reported(lab, h, DEPENDENT_DISK_FLAG_READ_ONLY, true) };
            "DEPENDENT_DISK_FLAG_REMOTE": SAME, "the file lies on a file system of the network" => |lab| reported(lab, lab.attached("a.vhdx"), DEPENDENT_DISK_FLAG_REMOTE, false);
            "DEPENDENT_DISK_FLAG_SYSTEM_VOLUME": Here::Differs, "never reported" => |lab| reported(lab, lab.attached("a.vhdx"), DEPENDENT_DISK_FLAG_SYSTEM_VOLUME, false);
            "DEPENDENT_DISK_FLAG_SYSTEM_VOLUME_PARENT": Here::Differs, "never reported" => |lab| reported(lab, lab.attached("a.vhdx"), DEPENDENT_DISK_FLAG_SYSTEM_VOLUME_PARENT, false);
            "DEPENDENT_DISK_FLAG_REMOVABLE": Here::Differs, "never reported" => |lab| reported(lab, lab.attached("a.vhdx"), DEPENDENT_DISK_FLAG_REMOVABLE, false);
            "DEPENDENT_DISK_FLAG_NO_DRIVE_LETTER": SAME, "if it was attached so" => |lab| { let h = lab.dynamic("a.vhdx"); lab.attach(h, RAW | ATTACH_VIRTUAL_DISK_FLAG_NO_DRIVE_LETTER); reported(lab, h, DEPENDENT_DISK_FLAG_NO_DRIVE_LETTER, true) };
            "DEPENDENT_DISK_FLAG_PARENT": SAME, "" => |lab| { let h = lab.chain(); lab.attach(h, RAW); reported(lab, h, DEPENDENT_DISK_FLAG_PARENT, true) };
            "DEPENDENT_DISK_FLAG_NO_HOST_DISK": SAME, "" => |lab| reported(lab, lab.attached("a.vhdx"), DEPENDENT_DISK_FLAG_NO_HOST_DISK, true);
            "DEPENDENT_DISK_FLAG_PERMANENT_LIFETIME": SAME, "" => |lab| {
                let h = lab.dynamic("a.vhdx");
                lab.attach(h, RAW | ATTACH_VIRTUAL_DISK_FLAG_PERMANENT_LIFETIME);
                reported(lab, h, DEPENDENT_DISK_FLAG_PERMANENT_LIFETIME, true);
                lab.detach(h)
            };
            "DEPENDENT_DISK_FLAG_SUPPORT_COMPRESSED_VOLUMES": Here::Differs, "never reported" => |lab| reported(lab, lab.attached("a.vhdx"), DEPENDENT_DISK_FLAG_SUPPORT_COMPRESSED_VOLUMES, false);
            "DEPENDENT_DISK_FLAG_ALWAYS_ALLOW_SPARSE": Here::Differs, "never reported" => |lab| reported(lab, lab.attached("a.vhdx"), DEPENDENT_DISK_FLAG_ALWAYS_ALLOW_SPARSE, false);
            "DEPENDENT_DISK_FLAG_SUPPORT_ENCRYPTED_FILES": Here::Differs, "never reported" => |lab| reported(lab, lab.attached("a.vhdx"), DEPENDENT_DISK_FLAG_SUPPORT_ENCRYPTED_FILES, false);
        },
    }
}

/// INQUIRY by a handle.
fn inquiry(lab: &Lab, version: u32, rsvd: i32) -> Code {
    let handle = lab.dynamic("a.vhdx");
    let mut cdb = [0x12, 0, 0, 0, 36, 0];
    let mut data = [0_u8; 36];
    let mut p = versioned!(RAW_SCSI_VIRTUAL_DISK_PARAMETERS, version);
    p.Anonymous.Version1 = RAW_SCSI_VIRTUAL_DISK_PARAMETERS_0_0 {
        RSVDHandle: rsvd,
        CdbLength: 6,
        DataTransferLength: 36,
        DataBuffer: data.as_mut_ptr().cast(),
        Cdb: cdb.as_mut_ptr(),
        // SAFETY: numbers and pointers, for which zeros are valid.
        ..unsafe { zeroed() }
    };
    let mut response = versioned!(RAW_SCSI_VIRTUAL_DISK_RESPONSE, version);
    // SAFETY: pointers live as long as the call.
    let code =
        unsafe { RawSCSIVirtualDisk(handle, &p, RAW_SCSI_VIRTUAL_DISK_FLAG_NONE, &mut response) };
    if code == 0 {
        assert_eq!(&data[8..13], b"Msft ");
        // SAFETY: the arm of this version.
        assert_eq!(
            unsafe { response.Anonymous.Version1.DataTransferLength },
            36
        );
    }
    code
}

fn scsi() -> Group {
    Group {
        title: "RawSCSIVirtualDisk",
        about: "A SCSI target over the disk; it need not be attached. The direction follows from the command, not from `DataIn`, about which Microsoft's pages disagree. `ScsiStatus` is SRB_STATUS_SUCCESS, _ERROR (with _AUTOSENSE_VALID) or _BUSY.",
        rows: rows! {
            "RawSCSIVirtualDisk": Here::Differs, "RSVD handles: 50" => |lab| { assert_eq!(inquiry(&Lab::new(), 1, 1), ERROR_NOT_SUPPORTED); inquiry(lab, 1, 0) };
            "RAW_SCSI_VIRTUAL_DISK_VERSION_UNSPECIFIED": INVALID, "" => |lab| inquiry(lab, 0, 0);
            "RAW_SCSI_VIRTUAL_DISK_VERSION_1": SAME, "commands of 1 to 16 bytes" => |lab| inquiry(lab, 1, 0);
            "RAW_SCSI_VIRTUAL_DISK_FLAG_NONE": SAME, "" => |lab| inquiry(lab, 1, 0);
        },
    }
}
