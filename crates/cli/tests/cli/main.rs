//! The command as people use it: the built binary, real files, real signals.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test that cannot go on fails"
)]

mod arguments;
mod chain;
mod convert;
mod disks;
mod failures;
mod generated;
mod interrupt;
mod json;
mod published;
mod support;
