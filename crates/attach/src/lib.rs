//! Attaches virtual disks to Linux as block devices.
