//! The commands that change a disk in place, or copy it while it is in use.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};
use uuid::Uuid;

use super::{ChainArgs, ConvertType, FormatName, OutputArgs, ProgressArgs, parse_guid};
use crate::size;

const COMPACT_EXAMPLES: &str = "\
Examples:
  vhdkit compact disk.vhdx
  vhdkit compact disk.vhdx --dry-run
  vhdkit compact disk.avhdx --mode quick";

/// Give back space that a disk no longer needs
///
/// Blocks that are all zeros or were discarded by the guest are dropped, the others
/// moved together, and the file is cut off behind them: in place, without the space
/// of a second copy. What the disk reads and what its children know of it stay as
/// they are. Stopped or killed at any moment, the disk is whole, and the command
/// can be run again. Fixed disks keep their space.
///
/// Zeros come from the guest: 'fstrim' through a device that passes discards on, or
/// a tool that overwrites free space with zeros.
#[derive(Args, Debug)]
#[command(after_help = COMPACT_EXAMPLES, arg_required_else_help = true)]
pub(crate) struct CompactArgs {
    /// The disk
    pub(crate) path: PathBuf,

    /// How hard to look: full reads blocks to find zeros, quick believes the tables
    #[arg(long, value_enum, default_value_t = Mode::Full)]
    pub(crate) mode: Mode,

    /// Say what would be saved, and what holds the rest; nothing is written
    #[arg(long)]
    pub(crate) dry_run: bool,

    #[command(flatten)]
    pub(crate) parents: ChainArgs,

    #[command(flatten)]
    pub(crate) output: OutputArgs,

    #[command(flatten)]
    pub(crate) progress: ProgressArgs,
}

/// How hard `compact` looks for blocks that hold nothing.
#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Mode {
    Full,
    Quick,
}

const EXPAND_EXAMPLES: &str = "\
Examples:
  vhdkit expand disk.vhdx 80G
  vhdkit expand disk.vhd +10G";

/// Make a fixed or dynamic disk larger
///
/// What is added reads as zeros. Partitions and file systems inside are left as they
/// are. Children of the disk become invalid.
#[derive(Args, Debug)]
#[command(after_help = EXPAND_EXAMPLES, arg_required_else_help = true)]
pub(crate) struct ExpandArgs {
    /// The disk
    pub(crate) path: PathBuf,

    /// The new size, or how much to add: 80G, +10G
    #[arg(value_parser = size::parse_change)]
    pub(crate) size: size::Change,

    /// Move the second copy of a GUID partition table to the new end
    #[arg(long)]
    pub(crate) fix_gpt: bool,

    /// Check only; nothing is written
    #[arg(long)]
    pub(crate) dry_run: bool,

    #[command(flatten)]
    pub(crate) parents: ChainArgs,

    #[command(flatten)]
    pub(crate) output: OutputArgs,

    #[command(flatten)]
    pub(crate) progress: ProgressArgs,
}

const RESIZE_EXAMPLES: &str = "\
Examples:
  vhdkit resize disk.vhdx 80G --fix-gpt
  vhdkit resize disk.vhdx --to-smallest
  vhdkit resize disk.vhdx 20G --dry-run";

/// Make a disk larger or smaller
///
/// A size that would cut off a partition is refused. What is added reads as zeros,
/// also where the disk was larger before. VHD files can only grow, and differencing
/// VHD files not at all; VHDX files can do both. Children of the disk become invalid.
#[derive(Args, Debug)]
#[command(after_help = RESIZE_EXAMPLES, arg_required_else_help = true)]
#[group(id = "new_size", required = true, multiple = false, args = ["size", "to_smallest"])]
pub(crate) struct ResizeArgs {
    /// The disk
    pub(crate) path: PathBuf,

    /// The new size, or how much to add: 80G, +10G
    #[arg(value_parser = size::parse_change)]
    pub(crate) size: Option<size::Change>,

    /// As small as the partitions allow
    #[arg(long)]
    pub(crate) to_smallest: bool,

    /// Cut off partitions if the size demands it: what they hold there is lost
    #[arg(long = "unsafe")]
    pub(crate) allow_unsafe: bool,

    /// Move the second copy of a GUID partition table to the new end
    #[arg(long)]
    pub(crate) fix_gpt: bool,

    /// Check only; nothing is written
    #[arg(long)]
    pub(crate) dry_run: bool,

    #[command(flatten)]
    pub(crate) parents: ChainArgs,

    #[command(flatten)]
    pub(crate) output: OutputArgs,

    #[command(flatten)]
    pub(crate) progress: ProgressArgs,
}

const MERGE_EXAMPLES: &str = "\
Examples:
  vhdkit merge snapshot.avhdx                        into its parent
  vhdkit merge snapshot.avhdx --delete-merged        and delete it
  vhdkit merge leaf.avhdx --source 2 --target 4      of a chain of four or more
  vhdkit merge leaf.avhdx --all --delete-merged      the whole chain into its base";

/// Fold a differencing disk, or several, into a disk behind it
///
/// Depths count from PATH, which is 1. All disks from the source up to, but not
/// including, the target are written into the target in one pass, in place. Until
/// they are deleted the merged disks keep what they hold: stopped or killed at any
/// moment, the chain reads as before, and the command can be run again.
///
/// Other children of the target become invalid: those found beside the files are
/// named in a warning.
#[derive(Args, Debug)]
#[command(after_help = MERGE_EXAMPLES, arg_required_else_help = true)]
pub(crate) struct MergeArgs {
    /// The leaf of the chain
    pub(crate) path: PathBuf,

    /// Depth of the first disk to be merged
    #[arg(long, value_name = "DEPTH", default_value_t = 1)]
    pub(crate) source: usize,

    /// Depth of the disk that takes it all [default: the parent of the source]
    #[arg(long, value_name = "DEPTH", conflicts_with = "all")]
    pub(crate) target: Option<usize>,

    /// Merge everything from the source on into the base of the chain
    #[arg(long)]
    pub(crate) all: bool,

    /// Delete the merged files at the end; children of the first of them (in the
    /// chain, or beside the files) get the target as their parent before
    #[arg(long)]
    pub(crate) delete_merged: bool,

    /// Say what would be copied and who would be concerned; nothing is written
    #[arg(long)]
    pub(crate) dry_run: bool,

    #[command(flatten)]
    pub(crate) parents: ChainArgs,

    #[command(flatten)]
    pub(crate) output: OutputArgs,

    #[command(flatten)]
    pub(crate) progress: ProgressArgs,
}

const MIRROR_EXAMPLES: &str = "\
Examples:
  vhdkit mirror disk.vhdx /other/disk.vhdx
  vhdkit mirror disk.vhdx backup.vhd --existing
  vhdkit mirror disk.vhdx copy.vhdx --wait      until 'vhdkit cancel' or Ctrl-C";

/// Copy a disk to another file, and keep both in step
///
/// The disk is opened for writing, so that nobody else changes it. When both are the
/// same the command ends; with --wait it stays. Stopped, it deletes the copy that it
/// made; a disk given with --existing stays, with what it has got so far.
#[derive(Args, Debug)]
#[command(after_help = MIRROR_EXAMPLES, arg_required_else_help = true)]
pub(crate) struct MirrorArgs {
    /// The disk
    #[arg(value_name = "SRC")]
    pub(crate) source: PathBuf,

    /// The file to make, or with --existing to fill
    #[arg(value_name = "DST")]
    pub(crate) target: PathBuf,

    /// Fill a disk that exists and is at least as large
    #[arg(long)]
    pub(crate) existing: bool,

    /// Format of the new file [default: by the extension of DST]
    #[arg(long, value_enum, conflicts_with = "existing")]
    pub(crate) format: Option<FormatName>,

    /// How the new file takes space [default: dynamic]
    #[arg(
        long = "type",
        value_enum,
        value_name = "TYPE",
        conflicts_with = "existing"
    )]
    pub(crate) disk_type: Option<ConvertType>,

    /// Unit of allocation of the new file [default: the format's]
    #[arg(long, value_name = "SIZE", value_parser = size::parse_positive, conflicts_with = "existing")]
    pub(crate) block_size: Option<u64>,

    /// Stay when both are the same, until stopped
    #[arg(long)]
    pub(crate) wait: bool,

    #[command(flatten)]
    pub(crate) parents: ChainArgs,

    #[command(flatten)]
    pub(crate) output: OutputArgs,

    #[command(flatten)]
    pub(crate) progress: ProgressArgs,
}

const SET_PARENT_EXAMPLES: &str = "\
Examples:
  vhdkit set-parent child.avhdx /new/place/base.vhdx
  vhdkit set-parent leaf.avhdx base.vhdx --depth 2
  vhdkit set-parent child.avhdx copy-of-base.vhdx --ignore-id";

/// Tell a differencing disk where its parent is
///
/// The parent must be the one that the disk was made for. Only the record in the disk
/// changes; the parent is not touched.
#[derive(Args, Debug)]
#[command(after_help = SET_PARENT_EXAMPLES, arg_required_else_help = true)]
pub(crate) struct SetParentArgs {
    /// The differencing disk
    pub(crate) path: PathBuf,

    /// Its parent
    #[arg(value_name = "PARENT")]
    pub(crate) new_parent: PathBuf,

    /// Which disk of the chain gets it; PATH is 1
    #[arg(long, default_value_t = 1)]
    pub(crate) depth: usize,

    /// Take the parent even if it is not the one that the disk was made for; right
    /// only if it reads the same
    #[arg(long)]
    pub(crate) ignore_id: bool,

    /// Check only; nothing is written
    #[arg(long)]
    pub(crate) dry_run: bool,

    #[command(flatten)]
    pub(crate) parents: ChainArgs,

    #[command(flatten)]
    pub(crate) output: OutputArgs,
}

const SET_EXAMPLES: &str = "\
Examples:
  vhdkit set disk.vhdx --physical-sector-size 512
  vhdkit set disk.vhdx --id 6ba7b810-9dad-41d1-80b4-00c04fd430c8
  vhdkit set copy.vhd --new-id";

/// Change what a disk says about itself
///
/// Its content stays as it is. The identifier of a VHD is what its children have
/// recorded: they lose their parent when it changes.
#[derive(Args, Debug)]
#[command(
    after_help = SET_EXAMPLES,
    arg_required_else_help = true,
    override_usage = "vhdkit set [OPTIONS] <PATH>"
)]
#[group(id = "change", required = true, multiple = true, args = ["id", "new_id", "physical_sector_size"])]
pub(crate) struct SetArgs {
    /// The disk
    pub(crate) path: PathBuf,

    /// The disk's identifier
    #[arg(long, value_name = "GUID", value_parser = parse_guid)]
    pub(crate) id: Option<Uuid>,

    /// A new random identifier: for a copy that is to live beside its original
    #[arg(long, conflicts_with = "id")]
    pub(crate) new_id: bool,

    /// Size of the sectors that the disk claims to write in: 512 or 4096 (VHDX)
    #[arg(long, value_name = "BYTES", value_parser = size::parse_sector)]
    pub(crate) physical_sector_size: Option<u32>,

    #[command(flatten)]
    pub(crate) output: OutputArgs,
}

const METADATA_EXAMPLES: &str = "\
Examples:
  vhdkit metadata list disk.vhdx
  echo backup-42 | vhdkit metadata set disk.vhdx 6ba7b810-9dad-41d1-80b4-00c04fd430c8
  vhdkit metadata get disk.vhdx 6ba7b810-9dad-41d1-80b4-00c04fd430c8
  vhdkit metadata delete disk.vhdx 6ba7b810-9dad-41d1-80b4-00c04fd430c8";

/// Keep small items of your own in a VHDX file: at most 1024 of at most 1 MiB each
#[derive(Args, Debug)]
#[command(after_help = METADATA_EXAMPLES, arg_required_else_help = true)]
pub(crate) struct MetadataArgs {
    #[command(subcommand)]
    pub(crate) action: MetadataAction,
}

/// What to do with metadata items.
#[derive(Subcommand, Debug)]
pub(crate) enum MetadataAction {
    /// Show identifiers and lengths
    List {
        /// The disk
        path: PathBuf,
        #[command(flatten)]
        output: OutputArgs,
    },
    /// Write an item to standard output
    Get {
        /// The disk
        path: PathBuf,
        /// The item
        #[arg(value_parser = parse_guid)]
        item: Uuid,
        #[command(flatten)]
        output: OutputArgs,
    },
    /// Write standard input to an item, a new one or in place of its old content
    Set {
        /// The disk
        path: PathBuf,
        /// The item
        #[arg(value_parser = parse_guid)]
        item: Uuid,
        #[command(flatten)]
        output: OutputArgs,
    },
    /// Delete an item
    Delete {
        /// The disk
        path: PathBuf,
        /// The item
        #[arg(value_parser = parse_guid)]
        item: Uuid,
        #[command(flatten)]
        output: OutputArgs,
    },
}
