//! Attaches virtual disks to Linux as block devices.
//!
//! ```no_run
//! use vhdkit_attach::AttachOptions;
//!
//! let attached = AttachOptions::new().attach("disk.vhdx")?;
//! println!("{}", attached.attachment().device.display());
//! attached.detach(false)?;
//! # Ok::<(), vhdkit::Error>(())
//! ```
//!
//! Each attached disk has a server, a process of its own (see `server.rs`; docs/decisions says why). It is the `vhdkit`
//! command, or any program that calls [`serve_if_asked`]. Everything else here may be called by any program, from any
//! thread.

mod backend;
mod client;
mod fuse;
mod holder;
mod locate;
mod mounting;
mod partitions;
mod paths;
mod protocol;
mod record;
mod server;
mod sys;
pub mod ublk;
mod usage;

pub use backend::BackendKind;
pub use client::{AttachOptions, Attached, Attachment, Lifetime, find, list};
pub use mounting::{mount, unmount};
pub use partitions::Partition;
pub use server::serve_if_asked;
pub use usage::Mount;

/// What those can do who may not make devices.
const NOT_ROOT: &str = "run it with sudo; without root, vhdkit attach --file DIR shows the disk as a file (with fusermount3), and vhdkit serve hands it to other programs over NBD";
