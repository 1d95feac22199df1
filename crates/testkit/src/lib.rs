//! Test kit of vhdkit: what the tests need and users never see.
//!
//! | module | what |
//! |---|---|
//! | [`fault`] | storage that counts its calls and fails the k-th |
//! | [`crash`] | storage that records its history and shows what a crash could leave of it |
//! | [`model`] | what a disk must read: exactly, or after a crash |
//! | [`guest`] | operations of a guest: random ones, and running them on a disk |
//! | [`history`] | the drivers of crash and fault tests |
//! | [`contract`] | the same for operations, and the progress contract |
//! | [`honest`] | is a percentage what it says? by work done on a disk of a known speed |
//! | [`variant`] | every kind of disk that is tested, made in memory |
//! | [`probe`] | opening, reading, writing and checking bytes of any origin |
//! | [`patch`] | changes to the fields of a file, checksums put right |
//! | [`partitions`] | disks with partition tables |
//! | [`corpus`] | real images and what is known of them |
//! | [`peers`] | other programs that read the same formats |
//! | [`power`] | real file systems whose power can be cut |
//! | [`fuzz`] | what the fuzz targets run |
//! | [`vm`] | a guest with a real kernel |
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::expect_used,
    reason = "test support: a failure here is a failed test"
)]
#![allow(
    clippy::cast_possible_truncation,
    reason = "test data is small and the target has 64 bits"
)]

pub mod contract;
pub mod corpus;
pub mod crash;
pub mod fault;
pub mod fuzz;
pub mod guest;
pub mod hash;
pub mod history;
pub mod honest;
pub mod model;
pub mod partitions;
pub mod patch;
pub mod peers;
pub mod power;
pub mod probe;
pub mod require;
pub mod rng;
pub mod variant;
pub mod vm;
