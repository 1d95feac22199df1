//! What a handle was opened for (contract, 2.0.1 and 2.0.2).

use crate::codes::ERROR_ACCESS_DENIED;
use crate::constants::*;
use crate::guard::{Answer, require_or};

/// The two generations of handles.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Access {
    /// Rights are the bits of the mask; so many images of the chain may be written to.
    V1 { mask: u32, rw_depth: u32 },
    /// All rights but for what these exclude.
    V2 {
        get_info_only: bool,
        read_only: bool,
    },
}

/// What a function needs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Right {
    GetInfo,
    AttachReadOnly,
    AttachWritable,
    Detach,
    /// Bytes of an attached disk. Handles share disks, also with those that may do more.
    ReadBytes,
    WriteBytes,
    /// Changes of the file: compact, merge, expand, set information.
    Change,
    /// Resize, mirror, changes of metadata: version 2 only.
    ChangeV2,
    /// Looks at metadata: version 2 only.
    LookV2,
}

impl Access {
    /// ERROR_ACCESS_DENIED unless the handle was opened for it.
    pub(crate) fn require(self, right: Right) -> Answer {
        let allowed = match self {
            Access::V1 { mask, rw_depth } => match right {
                Right::GetInfo => mask & VIRTUAL_DISK_ACCESS_GET_INFO != 0,
                Right::AttachReadOnly => mask & VIRTUAL_DISK_ACCESS_ATTACH_RO != 0,
                Right::AttachWritable => mask & VIRTUAL_DISK_ACCESS_ATTACH_RW != 0 && rw_depth > 0,
                Right::Detach => mask & VIRTUAL_DISK_ACCESS_DETACH != 0,
                Right::Change => mask & VIRTUAL_DISK_ACCESS_METAOPS != 0 && rw_depth > 0,
                Right::ReadBytes => !self.only_asks(),
                Right::WriteBytes => self.write_depth() > 0,
                Right::ChangeV2 | Right::LookV2 => false,
            },
            Access::V2 {
                get_info_only,
                read_only,
            } => match right {
                Right::GetInfo | Right::LookV2 => true,
                Right::AttachReadOnly | Right::Detach | Right::ReadBytes => !get_info_only,
                Right::WriteBytes | Right::AttachWritable | Right::Change | Right::ChangeV2 => {
                    !get_info_only && !read_only
                }
            },
        };
        require_or(allowed, ERROR_ACCESS_DENIED)
    }

    /// How many images of the chain are opened for writing, the leaf first.
    pub(crate) fn write_depth(self) -> usize {
        match self {
            Access::V1 { mask, rw_depth } if mask & VIRTUAL_DISK_ACCESS_WRITABLE != 0 => {
                usize::try_from(rw_depth).unwrap_or(usize::MAX)
            }
            Access::V2 {
                get_info_only: false,
                read_only: false,
            } => 1,
            _ => 0,
        }
    }

    /// True if the handle can only ask and detach: it does not keep others from using the disk.
    pub(crate) fn only_asks(self) -> bool {
        match self {
            Access::V1 { mask, .. } => {
                mask & !(VIRTUAL_DISK_ACCESS_GET_INFO | VIRTUAL_DISK_ACCESS_DETACH) == 0
            }
            Access::V2 { get_info_only, .. } => get_info_only,
        }
    }
}
