//! Attaches virtual disks to Linux as block devices.

#[cfg(target_os = "linux")]
pub mod ublk;
