//! The server against clients that are not ours: libnbd, QEMU, fio, Linux.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test that cannot go on fails"
)]

mod clients;
mod commands;
mod guest;
mod hostile;
mod lent;
mod protocol;
mod raw;
mod support;
mod tls;
