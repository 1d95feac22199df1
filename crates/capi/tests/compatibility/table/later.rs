//! Change tracking, VHD Sets, forks: checked, then refused.

use std::mem::zeroed;

use virtdisk::constants::*;
use virtdisk::types::*;
use virtdisk::*;

use super::{Group, INVALID, REFUSED, Row};
use crate::lab::{Code, Lab, guid};
use crate::versioned;

pub fn groups() -> Vec<Group> {
    vec![changes(), sets(), forks()]
}

fn query(lab: &Lab, flags: u32) -> Code {
    let handle = lab.dynamic("a.vhdx");
    // SAFETY: zeros are valid; pointers live as long as the call.
    unsafe {
        let mut range = zeroed();
        QueryChangesVirtualDisk(
            handle,
            lab.text("rctX:1"),
            0,
            512,
            flags,
            &mut range,
            &mut 1,
            &mut 0,
        )
    }
}

fn changes() -> Group {
    Group {
        title: "QueryChangesVirtualDisk",
        about: "Arguments, handle and rights are checked first.",
        rows: rows! {
            "QueryChangesVirtualDisk": REFUSED, "" => |lab| query(lab, 0);
            "QUERY_CHANGES_VIRTUAL_DISK_FLAG_NONE": REFUSED, "others: 87" => |lab| { assert_eq!(query(&Lab::new(), 1), 87); query(lab, QUERY_CHANGES_VIRTUAL_DISK_FLAG_NONE) };
        },
    }
}

/// A call of one of the three functions of snapshots.
macro_rules! snapshot {
    ($lab:expr, $name:ident, $type:ident, $version:expr, $flags:expr) => {{
        let handle = $lab.dynamic("a.vhdx");
        let mut p = versioned!($type, $version);
        p.Anonymous.Version1.SnapshotId = guid(1);
        // SAFETY: pointers live as long as the call.
        unsafe { $name(handle, &p, $flags) }
    }};
}

fn take(lab: &Lab, version: u32, flags: u32) -> Code {
    snapshot!(
        lab,
        TakeSnapshotVhdSet,
        TAKE_SNAPSHOT_VHDSET_PARAMETERS,
        version,
        flags
    )
}

fn delete(lab: &Lab, version: u32, flags: u32) -> Code {
    snapshot!(
        lab,
        DeleteSnapshotVhdSet,
        DELETE_SNAPSHOT_VHDSET_PARAMETERS,
        version,
        flags
    )
}

fn apply(lab: &Lab, version: u32, flags: u32) -> Code {
    snapshot!(
        lab,
        ApplySnapshotVhdSet,
        APPLY_SNAPSHOT_VHDSET_PARAMETERS,
        version,
        flags
    )
}

fn modify(lab: &Lab, kind: u32, flags: u32) -> Code {
    let handle = lab.dynamic("a.vhdx");
    let mut p = versioned!(MODIFY_VHDSET_PARAMETERS, kind);
    match kind {
        MODIFY_VHDSET_SNAPSHOT_PATH => {
            p.Anonymous.SnapshotPath = MODIFY_VHDSET_PARAMETERS_0_0 {
                SnapshotId: guid(1),
                SnapshotFilePath: lab.wide("b.avhdx"),
            };
        }
        MODIFY_VHDSET_REMOVE_SNAPSHOT => p.Anonymous.SnapshotId = guid(1),
        _ => p.Anonymous.DefaultFilePath = lab.wide("b.avhdx"),
    }
    // SAFETY: pointers live as long as the lab.
    unsafe { ModifyVhdSet(handle, &p, flags) }
}

fn sets() -> Group {
    Group {
        title: "VHD Sets",
        about: "Arguments, handle and rights are checked first.",
        rows: rows! {
            "TakeSnapshotVhdSet": REFUSED, "" => |lab| take(lab, 1, 0);
            "TAKE_SNAPSHOT_VHDSET_VERSION_UNSPECIFIED": INVALID, "" => |lab| take(lab, 0, 0);
            "TAKE_SNAPSHOT_VHDSET_VERSION_1": REFUSED, "" => |lab| take(lab, 1, 0);
            "TAKE_SNAPSHOT_VHDSET_FLAG_NONE": REFUSED, "" => |lab| take(lab, 1, TAKE_SNAPSHOT_VHDSET_FLAG_NONE);
            "TAKE_SNAPSHOT_VHDSET_FLAG_WRITEABLE": REFUSED, "" => |lab| take(lab, 1, TAKE_SNAPSHOT_VHDSET_FLAG_WRITEABLE);
            "DeleteSnapshotVhdSet": REFUSED, "" => |lab| delete(lab, 1, 0);
            "DELETE_SNAPSHOT_VHDSET_VERSION_UNSPECIFIED": INVALID, "" => |lab| delete(lab, 0, 0);
            "DELETE_SNAPSHOT_VHDSET_VERSION_1": REFUSED, "" => |lab| delete(lab, 1, 0);
            "DELETE_SNAPSHOT_VHDSET_FLAG_NONE": REFUSED, "" => |lab| delete(lab, 1, DELETE_SNAPSHOT_VHDSET_FLAG_NONE);
            "DELETE_SNAPSHOT_VHDSET_FLAG_PERSIST_RCT": REFUSED, "" => |lab| delete(lab, 1, DELETE_SNAPSHOT_VHDSET_FLAG_PERSIST_RCT);
            "ApplySnapshotVhdSet": REFUSED, "" => |lab| apply(lab, 1, 0);
            "APPLY_SNAPSHOT_VHDSET_VERSION_UNSPECIFIED": INVALID, "" => |lab| apply(lab, 0, 0);
            "APPLY_SNAPSHOT_VHDSET_VERSION_1": REFUSED, "" => |lab| apply(lab, 1, 0);
            "APPLY_SNAPSHOT_VHDSET_FLAG_NONE": REFUSED, "" => |lab| apply(lab, 1, APPLY_SNAPSHOT_VHDSET_FLAG_NONE);
            "APPLY_SNAPSHOT_VHDSET_FLAG_WRITEABLE": REFUSED, "" => |lab| apply(lab, 1, APPLY_SNAPSHOT_VHDSET_FLAG_WRITEABLE);
            "ModifyVhdSet": REFUSED, "" => |lab| modify(lab, MODIFY_VHDSET_REMOVE_SNAPSHOT, 0);
            "MODIFY_VHDSET_UNSPECIFIED": INVALID, "" => |lab| modify(lab, 0, 0);
            "MODIFY_VHDSET_SNAPSHOT_PATH": REFUSED, "" => |lab| modify(lab, MODIFY_VHDSET_SNAPSHOT_PATH, 0);
            "MODIFY_VHDSET_REMOVE_SNAPSHOT": REFUSED, "" => |lab| modify(lab, MODIFY_VHDSET_REMOVE_SNAPSHOT, 0);
            "MODIFY_VHDSET_DEFAULT_SNAPSHOT_PATH": REFUSED, "" => |lab| modify(lab, MODIFY_VHDSET_DEFAULT_SNAPSHOT_PATH, 0);
            "MODIFY_VHDSET_FLAG_NONE": REFUSED, "" => |lab| modify(lab, MODIFY_VHDSET_REMOVE_SNAPSHOT, MODIFY_VHDSET_FLAG_NONE);
            "MODIFY_VHDSET_FLAG_WRITEABLE_SNAPSHOT": REFUSED, "" => |lab| modify(lab, MODIFY_VHDSET_REMOVE_SNAPSHOT, MODIFY_VHDSET_FLAG_WRITEABLE_SNAPSHOT);
        },
    }
}

fn fork(lab: &Lab, version: u32, flags: u32) -> Code {
    let handle = lab.dynamic("a.vhdx");
    let mut p = versioned!(FORK_VIRTUAL_DISK_PARAMETERS, version);
    p.Anonymous.Version1.ForkedVirtualDiskPath = lab.wide("b.vhdx");
    // SAFETY: zeros are valid; no operation starts.
    unsafe {
        let mut o: OVERLAPPED = zeroed();
        ForkVirtualDisk(handle, flags, &p, &mut o)
    }
}

fn forks() -> Group {
    Group {
        title: "ForkVirtualDisk and CompleteForkVirtualDisk",
        about: "Undocumented. Arguments, handle and rights are checked first.",
        rows: rows! {
            "ForkVirtualDisk": REFUSED, "" => |lab| fork(lab, 1, 0);
            "CompleteForkVirtualDisk": REFUSED, "" => |lab| CompleteForkVirtualDisk(lab.dynamic("a.vhdx"));
            "FORK_VIRTUAL_DISK_VERSION_UNSPECIFIED": INVALID, "" => |lab| fork(lab, 0, 0);
            "FORK_VIRTUAL_DISK_VERSION_1": REFUSED, "" => |lab| fork(lab, 1, 0);
            "FORK_VIRTUAL_DISK_FLAG_NONE": REFUSED, "" => |lab| fork(lab, 1, FORK_VIRTUAL_DISK_FLAG_NONE);
            "FORK_VIRTUAL_DISK_FLAG_EXISTING_FILE": REFUSED, "" => |lab| fork(lab, 1, FORK_VIRTUAL_DISK_FLAG_EXISTING_FILE);
        },
    }
}
