//! Virtual disks in the formats of Windows, anywhere: VHD, VHDX, raw and ISO.
//!
//! See `ARCHITECTURE.md` for the map of the modules.

mod block_lock;
pub mod disk;
pub mod error;
mod findings;
pub mod image;
pub mod iso;
mod native_path;
mod num;
pub mod operation;
pub mod raw;
pub mod runtime;
pub mod scsi;
pub mod storage;
pub mod verbs;
pub mod vhd;
pub mod vhdx;
pub mod volume;
mod zeros;

pub use disk::{OpenOptions, VirtualDisk};
pub use error::{Error, ErrorKind, Result};
pub use operation::{Operation, Progress, Status};
