//! `vhdkit set`, `set-parent` and `metadata`: what a disk says about itself.

use std::io::Read;
use std::path::{Path, PathBuf};

use serde::Serialize;
use uuid::Uuid;
use vhdkit::disk::{OpenOptions, Parents};
use vhdkit::verbs::information::{ParentLocation, parent_location};
use vhdkit::verbs::set;
use vhdkit::verbs::set_parent::{SetParentOptions, set_parent};
use vhdkit::{Error, ErrorKind, VirtualDisk};

use super::{Session, text};
use crate::args::{MetadataAction, MetadataArgs, SetArgs, SetParentArgs};
use crate::failure::{DONE, Failure};
use crate::size;

/// The file alone; its parents may be missing.
fn alone(path: &Path, writable: bool) -> Result<VirtualDisk, Failure> {
    let open = OpenOptions::new()
        .parents(Parents::Ignored)
        .writable(writable);
    Ok(open.open(path)?)
}

/// The fields of the JSON output of `set-parent`.
#[derive(Serialize)]
struct NewParent {
    path: String,
    parent: String,
    depth: usize,
    dry_run: bool,
}

pub(crate) fn parent(args: &SetParentArgs, session: &mut Session) -> Result<u8, Failure> {
    let open = args.parents.open_options()?;
    let depth = if args.dry_run { 0 } else { args.depth };
    let whole = match args.depth {
        1 => None,
        _ => match open.clone().write_depth(depth).open(&args.path) {
            Ok(disk) => Some(disk),
            // It may be the very link that is to be put right.
            Err(error) => match file_at_depth(args) {
                Some(_) if error.kind() == ErrorKind::SharingViolation => return Err(error.into()),
                Some(path) => return set_alone(&path, args, session),
                None => return Err(error.into()),
            },
        },
    };
    let Some(disk) = whole else {
        return set_alone(&args.path, args, session);
    };
    let path = disk
        .layers()
        .get(args.depth.saturating_sub(1))
        .map_or_else(|| args.path.clone(), |layer| layer.path.clone());
    give_parent(&disk, args.depth, args)?;
    disk.close()?;
    tell(&path, args, session)
}

/// The file at this depth, if what lies before it leads there. What lies behind it is not looked at.
fn file_at_depth(args: &SetParentArgs) -> Option<PathBuf> {
    let map = args.parents.map().ok()?;
    let mut path = args.path.clone();
    for depth in 1..args.depth {
        path = if args.parents.names_parents() {
            args.parents.parent.get(depth - 1)?.clone()
        } else {
            match parent_location(&alone(&path, false).ok()?, &map) {
                Some(ParentLocation::Resolved(parent)) => parent,
                _ => return None,
            }
        };
    }
    (args.depth > 0).then_some(path)
}

fn set_alone(path: &Path, args: &SetParentArgs, session: &mut Session) -> Result<u8, Failure> {
    let disk = alone(path, !args.dry_run)?;
    give_parent(&disk, 1, args)?;
    disk.close()?;
    tell(path, args, session)
}

fn give_parent(disk: &VirtualDisk, depth: usize, args: &SetParentArgs) -> Result<(), Failure> {
    let options = SetParentOptions {
        parent: args.new_parent.clone(),
        depth,
        open: OpenOptions::new().parent_map(args.parents.map()?),
        ignore_identifier: args.ignore_id,
        dry_run: args.dry_run,
    };
    Ok(set_parent(disk, &options)?)
}

fn tell(path: &Path, args: &SetParentArgs, session: &mut Session) -> Result<u8, Failure> {
    let done = NewParent {
        path: text(path),
        parent: text(&args.new_parent),
        depth: args.depth,
        dry_run: args.dry_run,
    };
    if args.output.json {
        session.out.json(&done)?;
    } else {
        let verb = if args.dry_run { "would have" } else { "has" };
        session.out.line(format!(
            "{} {verb} {} as its parent",
            done.path, done.parent
        ))?;
    }
    Ok(DONE)
}

/// The fields of the JSON output of `set`.
#[derive(Serialize)]
struct Changed {
    path: String,
    identifier: Option<String>,
    physical_sector_size: u32,
}

pub(crate) fn run(args: &SetArgs, session: &mut Session) -> Result<u8, Failure> {
    let disk = alone(&args.path, true)?;
    let id = args.id.or_else(|| args.new_id.then(Uuid::new_v4));
    if let Some(size) = args.physical_sector_size {
        set::set_physical_sector_size(&disk, size)?;
    }
    if let Some(id) = id {
        set::set_identifier(&disk, id)?;
    }
    let info = disk.info();
    disk.close()?;
    let changed = Changed {
        path: text(&args.path),
        identifier: info.identifier.map(|id| id.to_string()),
        physical_sector_size: info.physical_sector_size,
    };
    if args.output.json {
        session.out.json(&changed)?;
    } else {
        session.out.line(format!(
            "{}: identifier {}, physical sectors of {} bytes",
            changed.path,
            changed.identifier.as_deref().unwrap_or("none"),
            changed.physical_sector_size
        ))?;
    }
    Ok(DONE)
}

/// One item of the JSON output of `metadata list`, and that of `metadata set`.
#[derive(Serialize)]
struct Item {
    item: String,
    length: u64,
}

impl Item {
    fn new(item: Uuid, length: u64) -> Self {
        Self {
            item: item.to_string(),
            length,
        }
    }
}

/// The JSON output of `metadata delete`.
#[derive(Serialize)]
struct Deleted {
    item: String,
}

/// Longest item in bytes; so much and a byte is read from standard input.
const MAX_ITEM: u64 = 1 << 20;

pub(crate) fn metadata(args: &MetadataArgs, session: &mut Session) -> Result<u8, Failure> {
    match &args.action {
        MetadataAction::List { path, output } => {
            let items: Vec<Item> = set::user_metadata(&alone(path, false)?)?
                .into_iter()
                .map(|(item, length)| Item::new(item, length.into()))
                .collect();
            if output.json {
                session.out.json(&items)?;
            } else {
                for item in items {
                    let length = size::plural(item.length, "byte");
                    session.out.line(format!("{}  {length}", item.item))?;
                }
            }
        }
        MetadataAction::Get { path, item, .. } => {
            let value = set::read_user_metadata(&alone(path, false)?, *item)?;
            session.out.bytes(&value)?;
        }
        MetadataAction::Set { path, item, output } => {
            if set::is_system_item(*item) {
                return Err(Failure::Disk(
                    Error::new(
                        ErrorKind::InvalidParameter,
                        "its own metadata has this identifier, and QEMU, libvhdi and 7-Zip would not tell them apart",
                    )
                    .with_path(path)
                    .while_doing("cannot change the metadata of")
                    .with_hint("choose any other GUID"),
                ));
            }
            let disk = alone(path, true)?;
            let mut value = Vec::new();
            std::io::stdin()
                .lock()
                .take(MAX_ITEM + 1)
                .read_to_end(&mut value)
                .map_err(Failure::Input)?;
            if value.len() as u64 > MAX_ITEM {
                return Err(Failure::Disk(
                    Error::new(ErrorKind::MetadataFull, "an item holds at most 1 MiB")
                        .with_path(path)
                        .while_doing("cannot change the metadata of")
                        .with_hint("keep what is larger in a file of its own"),
                ));
            }
            set::write_user_metadata(&disk, *item, Some(&value))?;
            disk.close()?;
            if output.json {
                session.out.json(&Item::new(*item, value.len() as u64))?;
            }
        }
        MetadataAction::Delete { path, item, output } => {
            let disk = alone(path, true)?;
            set::write_user_metadata(&disk, *item, None)?;
            disk.close()?;
            if output.json {
                session.out.json(&Deleted {
                    item: item.to_string(),
                })?;
            }
        }
    }
    Ok(DONE)
}
