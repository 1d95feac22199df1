//! The command as people use it: the built binary, real files, real signals.

mod arguments;
mod chain;
mod convert;
mod disks;
mod failures;
mod generated;
mod interrupt;
mod json;
mod support;
