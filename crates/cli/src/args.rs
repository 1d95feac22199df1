//! The command line: one definition, from which parsing, help, completions and manual pages all come.
//!
//! What is here is what was typed. Each command turns it into a typed request of the library before anything is done.

mod attach;
mod operations;
mod serve;

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;
use uuid::Uuid;
use vhdkit::disk::{OpenOptions, ParentMap, Parents};
use vhdkit::image::{DiskType, Format};
use vhdkit::verbs::profile::Profile;

use crate::failure::Failure;
use crate::size;
pub(crate) use attach::{AttachArgs, DetachArgs, ListArgs, MountArgs, UnmountArgs};
pub(crate) use operations::{
    CompactArgs, ExpandArgs, MergeArgs, MetadataAction, MetadataArgs, MirrorArgs, Mode, ResizeArgs,
    SetArgs, SetParentArgs,
};
pub(crate) use serve::ServeArgs;

const EXIT_CODES: &str = "\
Exit codes:
  0    done (compare: the disks read the same; check: nothing above info)
  1    failed (compare: the disks differ; check: could not be checked)
  2    wrong arguments (compare: any failure)
  3    check found something
  130  stopped by Ctrl-C, SIGTERM or vhdkit cancel";

/// Virtual disks without Hyper-V: VHD, VHDX, raw and ISO
///
/// Creates, inspects, converts, compares, checks, reads and writes the virtual
/// disks of Windows on any system. Differencing disks are read through their
/// whole chain of parents.
///
/// The format of an existing file is found by its content, never by its name.
/// The format of a new file follows from its extension, or from --format.
#[derive(Parser, Debug)]
#[command(
    name = "vhdkit",
    version,
    arg_required_else_help = true,
    subcommand_required = true,
    after_help = EXIT_CODES,
    max_term_width = 100
)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Subcommand, Debug)]
pub(crate) enum Command {
    Create(CreateArgs),
    Info(InfoArgs),
    Map(MapArgs),
    Convert(ConvertArgs),
    Compare(CompareArgs),
    Check(CheckArgs),
    Compact(CompactArgs),
    Expand(ExpandArgs),
    Resize(ResizeArgs),
    Merge(MergeArgs),
    Mirror(MirrorArgs),
    SetParent(SetParentArgs),
    Set(SetArgs),
    Metadata(MetadataArgs),
    Read(ReadArgs),
    Write(WriteArgs),
    Serve(ServeArgs),
    Attach(AttachArgs),
    Detach(DetachArgs),
    List(ListArgs),
    Mount(MountArgs),
    Unmount(UnmountArgs),
    Progress(PendingArgs),
    Cancel(CancelArgs),
    Completions(CompletionsArgs),
    Man(ManArgs),
}

impl Command {
    /// True if results and errors are to be JSON.
    pub(crate) fn json(&self) -> bool {
        match self {
            Command::Create(a) => a.output.json,
            Command::Info(a) => a.output.json,
            Command::Map(a) => a.output.json,
            Command::Convert(a) => a.output.json,
            Command::Compare(a) => a.output.json,
            Command::Check(a) => a.output.json,
            Command::Compact(a) => a.output.json,
            Command::Expand(a) => a.output.json,
            Command::Resize(a) => a.output.json,
            Command::Merge(a) => a.output.json,
            Command::Mirror(a) => a.output.json,
            Command::SetParent(a) => a.output.json,
            Command::Set(a) => a.output.json,
            Command::Metadata(a) => {
                let (MetadataAction::List { output, .. }
                | MetadataAction::Get { output, .. }
                | MetadataAction::Set { output, .. }
                | MetadataAction::Delete { output, .. }) = &a.action;
                output.json
            }
            Command::Read(a) => a.output.json,
            Command::Write(a) => a.output.json,
            Command::Serve(a) => a.output.json,
            Command::Attach(a) => a.output.json,
            Command::Detach(a) => a.output.json,
            Command::List(a) => a.output.json,
            Command::Mount(a) => a.output.json,
            Command::Unmount(a) => a.output.json,
            Command::Progress(a) => a.output.json,
            Command::Cancel(a) => a.output.json,
            Command::Completions(_) | Command::Man(_) => false,
        }
    }
}

const CREATE_EXAMPLES: &str = "\
Examples:
  vhdkit create disk.vhdx 40G
  vhdkit create azure.vhd 30G --type fixed
  vhdkit create child.vhdx --parent base.vhdx
  vhdkit create copy.vhdx --from disk.img --block-size 1M
  vhdkit create same.vhdx 1G --reproducible 7      always the same bytes";

/// Create a disk: an empty one, a child of another, or a copy
///
/// The new file appears under its name only when it is complete: a cancelled,
/// failed or killed command leaves nothing behind.
#[derive(Args, Debug)]
#[command(after_help = CREATE_EXAMPLES, arg_required_else_help = true)]
pub(crate) struct CreateArgs {
    /// The file to make
    pub(crate) path: PathBuf,

    /// Size of the disk: 40G, 512MiB or a number of bytes [with --parent: the
    /// parent's; with --from: at least the source's]
    #[arg(value_parser = size::parse_positive)]
    pub(crate) size: Option<u64>,

    /// Format of the file [default: by the extension of PATH]
    #[arg(long, value_enum, help_heading = "Disk")]
    pub(crate) format: Option<FormatName>,

    /// How the file takes space [default: dynamic; with --parent: differencing]
    #[arg(long = "type", value_enum, value_name = "TYPE", help_heading = "Disk")]
    pub(crate) disk_type: Option<CreateType>,

    /// The parent of a differencing disk; repeat it for the parent's own parents
    #[arg(
        long,
        value_name = "FILE",
        help_heading = "Disk",
        conflicts_with = "from"
    )]
    pub(crate) parent: Vec<PathBuf>,

    /// Where folders of the system that made the disks are here (C:\Disks=/mnt/disks)
    #[arg(long, value_name = "WINDOWS=LOCAL", value_parser = parse_pair, help_heading = "Disk")]
    pub(crate) parent_map: Vec<String>,

    /// Fill the new disk with the content of this one, its chain flattened
    #[arg(long, value_name = "SRC", help_heading = "Disk")]
    pub(crate) from: Option<PathBuf>,

    /// Unit of allocation [default: the format's]
    #[arg(long, value_name = "SIZE", value_parser = size::parse_positive, help_heading = "Disk")]
    pub(crate) block_size: Option<u64>,

    /// Size of the sectors that a guest sees: 512 or 4096
    #[arg(long, value_name = "BYTES", value_parser = size::parse_sector, help_heading = "Disk")]
    pub(crate) sector_size: Option<u32>,

    /// Size of the sectors that the disk claims to write in: 512 or 4096
    #[arg(long, value_name = "BYTES", value_parser = size::parse_sector, help_heading = "Disk")]
    pub(crate) physical_sector_size: Option<u32>,

    /// Make it fit a place: azure (fixed VHD of whole MiB), hyperv or wsl (VHDX)
    #[arg(long, value_enum, help_heading = "Disk")]
    pub(crate) profile: Option<ProfileName>,

    /// The disk's identifier [default: a random one]
    #[arg(long, value_name = "GUID", value_parser = parse_guid, help_heading = "Disk")]
    pub(crate) id: Option<Uuid>,

    /// Draw all identifiers from this number and store a fixed time of creation, so
    /// that the same request makes the same bytes (a VHD child also holds the time
    /// of its parent's last change)
    #[arg(long, value_name = "SEED", help_heading = "Disk")]
    pub(crate) reproducible: Option<u64>,

    /// Replace an existing file, when the new one is complete
    #[arg(long)]
    pub(crate) force: bool,

    #[command(flatten)]
    pub(crate) output: OutputArgs,

    #[command(flatten)]
    pub(crate) progress: ProgressArgs,
}

const INFO_EXAMPLES: &str = "\
Examples:
  vhdkit info disk.vhdx
  vhdkit info --chain child.avhdx
  vhdkit info disk.vhdx --json | jq .virtual_size";

/// Show what a file says about itself
///
/// Without --chain only this one file is opened; its parents may be missing.
#[derive(Args, Debug)]
#[command(after_help = INFO_EXAMPLES, arg_required_else_help = true)]
pub(crate) struct InfoArgs {
    /// The disk
    pub(crate) path: PathBuf,

    /// Open all parents too and show each of them [implied by --parent]
    #[arg(long)]
    pub(crate) chain: bool,

    /// Also what takes a look at the tables and the partitions: how the file's space
    /// is used, fragmentation, the smallest safe size, where the parent is
    #[arg(long)]
    pub(crate) details: bool,

    #[command(flatten)]
    pub(crate) parents: ChainArgs,

    #[command(flatten)]
    pub(crate) output: OutputArgs,
}

const MAP_EXAMPLES: &str = "\
Examples:
  vhdkit map disk.vhdx
  vhdkit map child.avhdx --parent base.vhdx
  vhdkit map disk.vhdx --json | jq '[.extents[] | select(.type == \"data\") | .length] | add'";

/// Show where a disk's content is: in which file, at which offset, or zeros
///
/// Extents are resolved through the whole chain, in ascending order, without
/// gaps, from the first byte of the disk to the last.
#[derive(Args, Debug)]
#[command(after_help = MAP_EXAMPLES, arg_required_else_help = true)]
pub(crate) struct MapArgs {
    /// The disk
    pub(crate) path: PathBuf,

    #[command(flatten)]
    pub(crate) parents: ChainArgs,

    #[command(flatten)]
    pub(crate) output: OutputArgs,
}

const CONVERT_EXAMPLES: &str = "\
Examples:
  vhdkit convert disk.vhd disk.vhdx
  vhdkit convert snapshot.avhdx flat.img
  vhdkit convert disk.img azure.vhd --type fixed
  vhdkit convert disk.vhdx azure.vhd --profile azure
  vhdkit convert disk.img disk.vhd --in-place
  vhdkit convert disk.vhdx /dev/sdx --format raw --force
  vhdkit convert child.vhdx flat.vhdx --parent-map 'C:\\Disks=/mnt/disks'";

/// Convert a disk into a new file of any format, its chain flattened
///
/// The new file appears under its name only when it is complete: a cancelled,
/// failed or killed command leaves nothing behind. The source is never changed.
#[derive(Args, Debug)]
#[command(after_help = CONVERT_EXAMPLES, arg_required_else_help = true)]
pub(crate) struct ConvertArgs {
    /// The disk to read
    #[arg(value_name = "SRC")]
    pub(crate) source: PathBuf,

    /// The file to make; with --in-place the file's new name
    #[arg(value_name = "DST", required_unless_present = "in_place")]
    pub(crate) target: Option<PathBuf>,

    /// Turn a raw disk into a fixed VHD, or back, without copying: by its footer; into a VHDX, or back, where the file
    /// system shares blocks between files (XFS, btrfs)
    #[arg(long, conflicts_with_all = ["disk_type", "block_size", "force"])]
    pub(crate) in_place: bool,

    /// Format of the new file [default: by the extension of DST]
    #[arg(long, value_enum)]
    pub(crate) format: Option<FormatName>,

    /// How the new file takes space [default: dynamic]
    #[arg(long = "type", value_enum, value_name = "TYPE")]
    pub(crate) disk_type: Option<ConvertType>,

    /// Unit of allocation of the new file [default: the format's]
    #[arg(long, value_name = "SIZE", value_parser = size::parse_positive)]
    pub(crate) block_size: Option<u64>,

    /// Make it fit a place: azure (fixed VHD of whole MiB), hyperv or wsl (VHDX)
    #[arg(long, value_enum)]
    pub(crate) profile: Option<ProfileName>,

    /// Replace an existing file, when the new one is complete
    #[arg(long)]
    pub(crate) force: bool,

    #[command(flatten)]
    pub(crate) parents: ChainArgs,

    #[command(flatten)]
    pub(crate) output: OutputArgs,

    #[command(flatten)]
    pub(crate) progress: ProgressArgs,
}

const COMPARE_EXAMPLES: &str = "\
Examples:
  vhdkit compare disk.vhd disk.vhdx
  vhdkit compare before.avhdx after.avhdx --parent base.vhdx

Exit codes:
  0    the disks read the same (surplus zeros of the longer one do not count)
  1    they differ; the first differing offset is shown
  2    they could not be compared
  130  stopped by Ctrl-C, SIGTERM or vhdkit cancel";

/// Compare what two disks read, whatever their formats
#[derive(Args, Debug)]
#[command(after_help = COMPARE_EXAMPLES, arg_required_else_help = true)]
pub(crate) struct CompareArgs {
    /// One disk
    #[arg(value_name = "A")]
    pub(crate) a: PathBuf,

    /// The other disk
    #[arg(value_name = "B")]
    pub(crate) b: PathBuf,

    #[command(flatten)]
    pub(crate) parents: ChainArgs,

    /// The parents of B, where they are not those of A
    #[arg(long, value_name = "FILE", help_heading = "Chain")]
    pub(crate) parent_b: Vec<PathBuf>,

    #[command(flatten)]
    pub(crate) output: OutputArgs,

    #[command(flatten)]
    pub(crate) progress: ProgressArgs,
}

const CHECK_EXAMPLES: &str = "\
Examples:
  vhdkit check disk.vhdx
  vhdkit check --chain child.avhdx
  vhdkit check disk.vhd --json | jq '.files[].findings[]'

Exit codes:
  0    nothing above info was found
  1    the file could not be checked
  2    wrong arguments
  3    something was found";

/// Look for damage, without changing anything
///
/// Every structure of the file is looked at. Each finding has a stable code, a
/// severity (info, warning, error, fatal) and its offset in the file.
#[derive(Args, Debug)]
#[command(after_help = CHECK_EXAMPLES, arg_required_else_help = true)]
pub(crate) struct CheckArgs {
    /// The disk
    pub(crate) path: PathBuf,

    /// Check all parents too, and that they fit together [implied by --parent]
    #[arg(long)]
    pub(crate) chain: bool,

    #[command(flatten)]
    pub(crate) parents: ChainArgs,

    #[command(flatten)]
    pub(crate) output: OutputArgs,
}

const READ_EXAMPLES: &str = "\
Examples:
  vhdkit read disk.vhdx --length 512 | xxd
  vhdkit read disk.vhdx --offset 1M --length 64K > part.bin
  vhdkit read child.avhdx | sha256sum";

/// Write a range of a disk's content to standard output
#[derive(Args, Debug)]
#[command(after_help = READ_EXAMPLES, arg_required_else_help = true)]
pub(crate) struct ReadArgs {
    /// The disk
    pub(crate) path: PathBuf,

    /// Where to start
    #[arg(long, value_name = "SIZE", value_parser = size::parse, default_value = "0", hide_default_value = true)]
    pub(crate) offset: u64,

    /// How much to read [default: to the end of the disk]
    #[arg(long, value_name = "SIZE", value_parser = size::parse)]
    pub(crate) length: Option<u64>,

    #[command(flatten)]
    pub(crate) parents: ChainArgs,

    #[command(flatten)]
    pub(crate) output: OutputArgs,

    #[command(flatten)]
    pub(crate) progress: ProgressArgs,
}

const WRITE_EXAMPLES: &str = "\
Examples:
  vhdkit write disk.vhdx --offset 0 < boot.bin
  head -c 1M /dev/urandom | vhdkit write disk.vhdx --offset 512M";

/// Overwrite a range of a disk with standard input
///
/// The disk keeps its size: input that would reach past its end is refused,
/// where its length is known (a file) before anything is written. When the
/// command ends, what it wrote is on stable media.
#[derive(Args, Debug)]
#[command(after_help = WRITE_EXAMPLES, arg_required_else_help = true)]
pub(crate) struct WriteArgs {
    /// The disk
    pub(crate) path: PathBuf,

    /// Where to start
    #[arg(long, value_name = "SIZE", value_parser = size::parse)]
    pub(crate) offset: u64,

    #[command(flatten)]
    pub(crate) parents: ChainArgs,

    #[command(flatten)]
    pub(crate) output: OutputArgs,

    #[command(flatten)]
    pub(crate) progress: ProgressArgs,
}

const PROGRESS_EXAMPLES: &str = "\
Examples:
  vhdkit progress
  vhdkit progress disk.vhdx
  vhdkit progress --watch
  vhdkit progress --json | jq '.[] | select(.percent > 50)'";

/// Show how far operations are that are running now, in any process
///
/// Every command that takes time is listed while it runs, with all programs of
/// the same user that choose to be. Asking does not slow them down.
#[derive(Args, Debug)]
#[command(after_help = PROGRESS_EXAMPLES)]
pub(crate) struct PendingArgs {
    /// Only what works on this disk, or makes it; if there is none, what reads it
    #[arg(value_name = "DISK")]
    pub(crate) path: Option<PathBuf>,

    /// Keep showing it until all of it is over
    #[arg(long)]
    pub(crate) watch: bool,

    #[command(flatten)]
    pub(crate) output: OutputArgs,
}

const CANCEL_EXAMPLES: &str = "\
Examples:
  vhdkit cancel new.vhdx
  vhdkit cancel disk.vhdx --no-wait";

/// Ask what is running on a disk, in any process, to stop, and wait until it has
///
/// It stops as with Ctrl-C: where its files are consistent. What is nearly done
/// may still succeed. With several operations on the disk all are asked.
#[derive(Args, Debug)]
#[command(after_help = CANCEL_EXAMPLES, arg_required_else_help = true)]
pub(crate) struct CancelArgs {
    /// The disk that is worked on, or made; if there is none, that is read
    #[arg(value_name = "DISK")]
    pub(crate) path: PathBuf,

    /// Only ask
    #[arg(long)]
    pub(crate) no_wait: bool,

    #[command(flatten)]
    pub(crate) output: OutputArgs,
}

const COMPLETIONS_EXAMPLES: &str = "\
Examples:
  vhdkit completions bash > ~/.local/share/bash-completion/completions/vhdkit
  vhdkit completions zsh > ~/.zfunc/_vhdkit
  vhdkit completions fish > ~/.config/fish/completions/vhdkit.fish";

/// Write completions for a shell to standard output
#[derive(Args, Debug)]
#[command(after_help = COMPLETIONS_EXAMPLES, arg_required_else_help = true)]
pub(crate) struct CompletionsArgs {
    /// The shell
    #[arg(value_enum)]
    pub(crate) shell: Shell,
}

const MAN_EXAMPLES: &str = "\
Example:
  vhdkit man ~/.local/share/man/man1";

/// Write the manual pages into a folder
#[derive(Args, Debug)]
#[command(after_help = MAN_EXAMPLES, arg_required_else_help = true)]
pub(crate) struct ManArgs {
    /// The folder; it is made if need be
    #[arg(value_name = "DIR")]
    pub(crate) folder: PathBuf,
}

/// Where the parents of a differencing disk come from.
#[derive(Args, Debug, Default)]
pub(crate) struct ChainArgs {
    /// The parent, instead of the recorded one; repeat it for the parent's own parents
    #[arg(long, value_name = "FILE", help_heading = "Chain")]
    pub(crate) parent: Vec<PathBuf>,

    /// Where folders of the system that made the disk are here (C:\Disks=/mnt/disks)
    #[arg(long, value_name = "WINDOWS=LOCAL", value_parser = parse_pair, help_heading = "Chain")]
    pub(crate) parent_map: Vec<String>,
}

impl ChainArgs {
    /// How to open a disk with its parents.
    pub(crate) fn open_options(&self) -> Result<OpenOptions, Failure> {
        open_options(&self.parent, &self.parent_map)
    }

    /// True if parents were named: then they are meant to be opened.
    pub(crate) fn names_parents(&self) -> bool {
        !self.parent.is_empty()
    }

    /// The folders of `--parent-map`.
    pub(crate) fn map(&self) -> Result<ParentMap, Failure> {
        parent_map(&self.parent_map)
    }
}

/// How to open a disk whose parents are `given`, the direct one first, or else as recorded.
pub(crate) fn open_options(given: &[PathBuf], pairs: &[String]) -> Result<OpenOptions, Failure> {
    let parents = if given.is_empty() {
        Parents::Recorded
    } else {
        Parents::Given(given.to_vec())
    };
    Ok(OpenOptions::new()
        .parents(parents)
        .parent_map(parent_map(pairs)?))
}

fn parent_map(pairs: &[String]) -> Result<ParentMap, Failure> {
    let mut map = ParentMap::new();
    for pair in pairs {
        map.add_pair(pair)?;
    }
    Ok(map)
}

/// What programs read.
#[derive(Args, Debug)]
pub(crate) struct OutputArgs {
    /// Write results and errors as JSON (described in docs/cli-json.md)
    #[arg(long, help_heading = "Output")]
    pub(crate) json: bool,
}

/// What is shown while a command is at work.
#[derive(Args, Debug)]
pub(crate) struct ProgressArgs {
    /// Progress on standard error: auto is a bar on a terminal and else nothing
    #[arg(
        long,
        value_enum,
        value_name = "WHEN",
        default_value_t = ProgressChoice::Auto,
        hide_default_value = true,
        help_heading = "Output"
    )]
    pub(crate) progress: ProgressChoice,
}

/// How progress is shown.
#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum ProgressChoice {
    /// A bar if standard error is a terminal, else nothing.
    Auto,
    /// A bar; lines of text if standard error is not a terminal.
    Bar,
    /// One line of JSON after the other.
    Json,
    /// Nothing.
    None,
}

/// A format that can be written.
#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
#[value(rename_all = "lower")]
pub(crate) enum FormatName {
    Vhdx,
    Vhd,
    Raw,
}

impl From<FormatName> for Format {
    fn from(name: FormatName) -> Self {
        match name {
            FormatName::Vhdx => Format::Vhdx,
            FormatName::Vhd => Format::Vhd,
            FormatName::Raw => Format::Raw,
        }
    }
}

/// A place where a disk is to be used.
#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
#[value(rename_all = "lower")]
pub(crate) enum ProfileName {
    Azure,
    HyperV,
    Wsl,
}

impl From<ProfileName> for Profile {
    fn from(name: ProfileName) -> Self {
        match name {
            ProfileName::Azure => Profile::Azure,
            ProfileName::HyperV => Profile::HyperV,
            ProfileName::Wsl => Profile::Wsl,
        }
    }
}

/// A type that can be created.
#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum CreateType {
    Dynamic,
    Fixed,
    Differencing,
}

impl From<CreateType> for DiskType {
    fn from(name: CreateType) -> Self {
        match name {
            CreateType::Dynamic => DiskType::Dynamic,
            CreateType::Fixed => DiskType::Fixed,
            CreateType::Differencing => DiskType::Differencing,
        }
    }
}

/// A type that can be the target of a conversion.
#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum ConvertType {
    Dynamic,
    Fixed,
}

impl From<ConvertType> for DiskType {
    fn from(name: ConvertType) -> Self {
        match name {
            ConvertType::Dynamic => DiskType::Dynamic,
            ConvertType::Fixed => DiskType::Fixed,
        }
    }
}

fn parse_pair(text: &str) -> Result<String, String> {
    match ParentMap::new().add_pair(text) {
        Ok(()) => Ok(text.into()),
        Err(e) => Err(match e.hint() {
            Some(hint) => format!("{} ({hint})", e.reason()),
            None => e.reason().into(),
        }),
    }
}

fn parse_guid(text: &str) -> Result<Uuid, String> {
    match Uuid::try_parse(text) {
        Ok(id) if id.is_nil() => Err("an identifier must not be all zeros".into()),
        Ok(id) => Ok(id),
        Err(_) => Err("write a GUID as 6ba7b810-9dad-41d1-80b4-00c04fd430c8".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_definition_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn identifiers_come_in_the_forms_that_windows_prints() {
        let plain = "6ba7b810-9dad-41d1-80b4-00c04fd430c8";
        for text in [
            plain.to_string(),
            plain.to_uppercase(),
            format!("{{{plain}}}"),
        ] {
            assert_eq!(parse_guid(&text).unwrap().to_string(), plain);
        }
        assert!(parse_guid("00000000-0000-0000-0000-000000000000").is_err());
        assert!(parse_guid("6ba7b810").is_err());
    }

    #[test]
    fn help_fits_a_terminal_of_80_columns() {
        let mut command = Cli::command().term_width(80);
        command.build();
        let names: Vec<String> = command
            .get_subcommands()
            .map(|c| c.get_name().to_string())
            .collect();
        for name in names {
            let sub = command.find_subcommand_mut(&name).unwrap();
            let help = sub.clone().term_width(80).render_long_help().to_string();
            // Examples are commands, which are not broken.
            let help = help.split("Example").next().unwrap();
            for line in help.lines() {
                assert!(line.chars().count() <= 80, "{name}: {line}");
            }
        }
    }
}
