//! Serves virtual disks over NBD, the network block device protocol: to QEMU, libnbd and its tools, and Linux' own
//! client.
//!
//! ```no_run
//! use std::path::Path;
//! use std::sync::Arc;
//! use std::time::Duration;
//! use vhdkit::OpenOptions;
//! use vhdkit_nbd::{Catalog, DiskExport, Limits, Listener, Server};
//!
//! # fn main() -> vhdkit::Result<()> {
//! let disk = Arc::new(OpenOptions::new().writable(true).open("disk.vhdx")?);
//! let mut catalog = Catalog::new();
//! catalog.add("disk.vhdx", Arc::new(DiskExport::new(disk, false)))?;
//! let listener = Listener::unix(Path::new("disk.sock"))?;
//! let server = Server::start(catalog, None, Limits::default(), vec![listener])?;
//! server.wait(true); // until the last client has gone
//! server.close(Duration::from_secs(5));
//! # Ok(())
//! # }
//! ```
//!
//! | module | what |
//! |---|---|
//! | `wire` | numbers and integers of the protocol, no behaviour |
//! | `handshake` | the first half, up to the choice of an export: bytes in, bytes out |
//! | `request`, `reply` | the second half: bytes in, commands out; replies in, bytes out |
//! | `work`, `errno` | what commands do with an [`Export`], and what its errors are called |
//! | `connection`, `helpers`, `link`, `input` | the threads of a connection |
//! | `channel`, `socket`, `tls` | what it sends and receives through |
//! | `server`, `listen` | who is let in, where, and how it all ends |
//! | `export`, `disk` | what is served |
//!
//! The protocol is a pure state machine in `handshake`, `request` and `reply`; [`replay`] runs it on any bytes.
//! Fixed newstyle, structured replies and extended headers, `base:allocation`, TLS. The bounds on what a client can
//! take are at the head of `server` and `helpers`.

mod buffer;
mod channel;
mod connection;
mod disk;
mod errno;
mod export;
mod handshake;
mod helpers;
mod input;
mod link;
mod listen;
mod pages;
mod replay;
mod reply;
mod request;
mod server;
mod socket;
mod tls;
mod wire;
mod work;

pub use disk::DiskExport;
pub use export::{
    BASE_ALLOCATION, BlockSizes, Catalog, Export, MAX_NAME, MAX_REQUEST, Status, allocation,
};
pub use listen::{Address, Listener};
pub use replay::{Replayed, replay};
pub use server::{Limits, Server, Stopper};
pub use tls::TlsIdentity;
