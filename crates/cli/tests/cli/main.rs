//! The command as people use it: the built binary, real files, real signals.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test that cannot go on fails"
)]

mod arguments;
mod attach;
mod chain;
mod compact;
mod convert;
mod disks;
mod failures;
mod full;
mod generated;
mod guest;
mod identity;
mod in_place;
mod interrupt;
mod json;
mod killed;
mod merge;
mod mirror;
mod pace;
mod published;
mod resize;
mod serve;
mod support;
