//! libvirtdisk: the functions of virtdisk.h over vhdkit, for programs in C and C++ (or anything that can call them).
//!
//! The header is `include/virtdisk.h`; what the functions do, and answer, is the contract that the tests name by section.
//!
//! | module | idea |
//! |---|---|
//! | `types`, `constants`, `codes` | layouts and numbers of the SDK |
//! | `guard` | the boundary: results become codes, panics stay inside |
//! | `strings` | UTF-16 and paths |
//! | `sync` | locks, in one order |
//! | `handles`, `event` | handles are numbers that may name an object, never pointers |
//! | `disk`, `device` | what a virtual disk handle stands for, and what it may be used for; disks that are devices |
//! | `overlapped`, `progress` | operations by the address of their OVERLAPPED |
//! | one file for each group of functions | arguments are checked completely, then the library is called |
//! | `win32`, `prefixed`, `io` | the Win32 calls that such programs need |
//!
//! Order of checks in every function: arguments (87, 123, 206), handle (6), rights (5), state.

#![expect(
    unsafe_code,
    reason = "the boundary to C: callers' pointers, and names that the SDK chose"
)]
#![allow(
    clippy::wildcard_imports,
    reason = "constants, codes and types of the SDK have names of their own kind"
)]
#![warn(clippy::undocumented_unsafe_blocks)]

mod access;
mod attach;
pub mod codes;
pub mod constants;
mod create;
mod dependency;
mod device;
mod disk;
mod event;
mod guard;
mod handles;
mod information;
mod io;
mod later;
mod metadata;
mod mirror;
mod open;
mod operations;
mod overlapped;
mod parents;
mod prefixed;
mod progress;
mod scsi;
mod settings;
mod storage_type;
mod strings;
mod sync;
pub mod types;
mod win32;

// For tests and for other crates in Rust.
pub use attach::*;
pub use create::*;
pub use dependency::*;
pub use information::*;
pub use later::*;
pub use metadata::*;
pub use mirror::*;
pub use open::*;
pub use operations::*;
pub use parents::*;
pub use prefixed::*;
pub use progress::*;
pub use scsi::*;
pub use settings::*;
pub use storage_type::*;
pub use win32::*;
