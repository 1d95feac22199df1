//! The commands that make disks devices of this system.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::Args;

use super::{ChainArgs, FormatName, OutputArgs};

const ATTACH_EXAMPLES: &str = "\
Examples:
  sudo vhdkit attach disk.vhdx
  sudo vhdkit attach child.avhdx --read-only
  sudo vhdkit attach disk.vhdx --foreground        until Ctrl-C
  vhdkit attach disk.vhdx --file ~/disk            without root: ~/disk/disk.img
  dev=$(sudo vhdkit attach disk.vhdx --json | jq -r .device)";

/// Make a disk a block device of this system, with its partitions
///
/// The device can be used when the command ends, and stays until vhdkit detach.
/// What is written to it is in the file when the device has been flushed; what is
/// trimmed there, the file can give back (see vhdkit compact). Meanwhile no other
/// program may open the file.
///
/// A process serves the device. If it is killed, every access to the device fails
/// at once, and all that had been flushed is in the file.
#[derive(Args, Debug)]
#[command(after_help = ATTACH_EXAMPLES, arg_required_else_help = true)]
pub(crate) struct AttachArgs {
    /// The disk; of a differencing disk only the last one is changed
    pub(crate) path: PathBuf,

    /// Refuse all writes; the file is not changed either
    #[arg(long)]
    pub(crate) read_only: bool,

    /// Show the disk as the file disk.img in this folder instead of as a device;
    /// takes no root
    #[arg(long, value_name = "DIR")]
    pub(crate) file: Option<PathBuf>,

    /// Stay, and detach the disk with Ctrl-C or SIGTERM, or when this is killed
    #[arg(long)]
    pub(crate) foreground: bool,

    /// Take the file as this format instead of looking: raw for disks whose guests
    /// are not trusted
    #[arg(long, value_enum)]
    pub(crate) format: Option<FormatName>,

    #[command(flatten)]
    pub(crate) parents: ChainArgs,

    #[command(flatten)]
    pub(crate) output: OutputArgs,
}

const DETACH_EXAMPLES: &str = "\
Examples:
  sudo vhdkit detach disk.vhdx
  sudo vhdkit detach /dev/loop0
  sudo vhdkit detach --lazy disk.vhdx      when it is unmounted
  vhdkit detach ~/disk";

/// Take an attached disk away again
///
/// When the command ends, everything is in the file and the file is closed. A disk
/// that is in use stays, unless --lazy is given.
#[derive(Args, Debug)]
#[command(after_help = DETACH_EXAMPLES, arg_required_else_help = true)]
pub(crate) struct DetachArgs {
    /// The disk, its device, a partition, the folder of --file, or the identifier
    #[arg(value_name = "DISK")]
    pub(crate) target: OsString,

    /// Those who use it may go on; it is detached with its last user
    #[arg(long)]
    pub(crate) lazy: bool,

    #[command(flatten)]
    pub(crate) output: OutputArgs,
}

const LIST_EXAMPLES: &str = "\
Examples:
  sudo vhdkit list
  sudo vhdkit list --json | jq -r '.[] | select(.mounts == []) | .path'";

/// Show the attached disks: their devices, partitions and mounts
///
/// A disk whose server has died is shown as such once, and what is left of it is
/// cleared up, unless something is still mounted.
#[derive(Args, Debug)]
#[command(after_help = LIST_EXAMPLES)]
pub(crate) struct ListArgs {
    #[command(flatten)]
    pub(crate) output: OutputArgs,
}

const MOUNT_EXAMPLES: &str = "\
Examples:
  sudo vhdkit mount disk.vhdx /mnt
  sudo vhdkit mount disk.vhdx /mnt --partition 2 --read-only
  sudo vhdkit unmount /mnt";

/// Attach a disk and mount its file system, in one step
///
/// It stays attached until it is unmounted. vhdkit unmount does that and waits
/// until the disk's file is closed; plain umount does it as well.
#[derive(Args, Debug)]
#[command(after_help = MOUNT_EXAMPLES, arg_required_else_help = true)]
pub(crate) struct MountArgs {
    /// The disk
    pub(crate) path: PathBuf,

    /// Where to mount it
    #[arg(value_name = "DIR")]
    pub(crate) folder: PathBuf,

    /// The partition; 0 for the whole disk [default: the only one, or the whole disk
    /// if it has none]
    #[arg(long, value_name = "N")]
    pub(crate) partition: Option<u32>,

    /// Refuse all writes; the file is not changed either
    #[arg(long)]
    pub(crate) read_only: bool,

    /// Take the file as this format instead of looking
    #[arg(long, value_enum)]
    pub(crate) format: Option<FormatName>,

    #[command(flatten)]
    pub(crate) parents: ChainArgs,

    #[command(flatten)]
    pub(crate) output: OutputArgs,
}

const UNMOUNT_EXAMPLES: &str = "\
Examples:
  sudo vhdkit unmount /mnt
  sudo vhdkit unmount disk.vhdx";

/// Unmount all file systems of an attached disk, and detach it
#[derive(Args, Debug)]
#[command(after_help = UNMOUNT_EXAMPLES, arg_required_else_help = true)]
pub(crate) struct UnmountArgs {
    /// Where it is mounted, the disk, its device, a partition, or the identifier
    #[arg(value_name = "DISK")]
    pub(crate) target: OsString,

    #[command(flatten)]
    pub(crate) output: OutputArgs,
}
