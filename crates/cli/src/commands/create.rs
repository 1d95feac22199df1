//! `vhdkit create`: an empty disk, a child of another, or a copy.

use std::path::PathBuf;

use vhdkit::disk::OpenOptions;
use vhdkit::image::{CreateParameters, DiskType, Format, IdentifierSource};
use vhdkit::operation::Subject;
use vhdkit::verbs::convert::ConvertOptions;
use vhdkit::verbs::create::{CreateOptions, create};
use vhdkit::verbs::profile::Profile;

use super::{Session, convert::Conversion, info, text};
use crate::args::{CreateArgs, ProgressChoice, open_options};
use crate::failure::{DONE, Failure};
use crate::progress::{follow, stopped};
use crate::{formats, size};

/// The time of creation of reproducible disks: the start of 2000, where VHD starts to count.
const FIXED_TIME: i64 = 946_684_800;

/// What is asked for.
#[derive(Debug)]
enum Request {
    New(CreateOptions),
    Copy(ConvertOptions),
}

pub(crate) fn run(args: CreateArgs, session: &mut Session) -> Result<u8, Failure> {
    let (json, progress) = (args.output.json, args.progress.progress);
    let path = args.path.clone();
    let (format, disk_type, virtual_size, disk) = match request(args)? {
        // What was just written is not read for this: the table of a large VHD has 4 MiB.
        Request::New(options) => {
            let made = make(options, progress, session)?;
            (made.format, made.disk_type, made.virtual_size, None)
        }
        Request::Copy(options) => {
            Conversion::run(options, progress, session)?;
            let disk = info::open_alone(&path)?;
            let made = disk.info();
            (made.format, made.disk_type, made.virtual_size, Some(disk))
        }
    };
    if json {
        let disk = disk.map_or_else(|| info::open_alone(&path), Ok)?;
        session.out.json(&info::Image::of(&disk.layers()[0]))?;
    } else {
        session.out.line(format!(
            "created {}: {}, {}",
            text(&path),
            formats::describe(format, disk_type),
            size::describe(virtual_size)
        ))?;
    }
    Ok(DONE)
}

fn make(
    options: CreateOptions,
    progress: ProgressChoice,
    session: &Session,
) -> Result<CreateParameters, Failure> {
    let outcome = format!("{} was not made", text(&options.path));
    let subject = Subject::disk(&options.path);
    follow(
        create(options),
        &subject,
        progress,
        Some(&session.interrupt),
    )
    .map_err(|e| stopped(e, &outcome).into())
}

fn request(args: CreateArgs) -> Result<Request, Failure> {
    let profile = args.profile.map(Profile::from);
    let format = formats::of_new_file_for(&args.path, args.format, profile)?;
    let disk_type = disk_type(&args)?;
    // For Azure a size is made whole anyway.
    if let Some(size) = args.size
        && profile != Some(Profile::Azure)
    {
        let sector = args.sector_size.filter(|_| format == Format::Vhdx);
        size::whole_sectors(size, sector.unwrap_or(512).into())?;
    }
    if format == Format::Raw {
        refuse_for_raw(&args, disk_type)?;
    }
    let (identifiers, created) = match args.reproducible {
        Some(seed) => (IdentifierSource::seeded(seed), FIXED_TIME),
        None => (IdentifierSource::random(), vhdkit::image::now()),
    };
    if let Some(source) = args.from {
        return Ok(Request::Copy(ConvertOptions {
            source,
            open: open_options(&[], &args.parent_map)?,
            target: args.path,
            format,
            disk_type,
            virtual_size: args.size,
            profile,
            block_size: args.block_size,
            logical_sector_size: args.sector_size,
            physical_sector_size: args.physical_sector_size,
            identifier: args.id,
            identifiers,
            created,
            overwrite: args.force,
        }));
    }
    let (parent_path, open_parent) = parent(&args.parent, &args.parent_map)?;
    Ok(Request::New(CreateOptions {
        path: args.path,
        parameters: CreateParameters {
            format,
            disk_type,
            // A child takes its parent's.
            virtual_size: args.size.unwrap_or(0),
            block_size: args.block_size,
            logical_sector_size: args.sector_size,
            physical_sector_size: args.physical_sector_size,
            identifier: args.id,
            parent: None,
            identifiers,
            created,
        },
        parent_path,
        profile,
        open_parent,
        overwrite: args.force,
    }))
}

/// The type, and whether it fits the rest of what was typed.
fn disk_type(args: &CreateArgs) -> Result<DiskType, Failure> {
    let implied = match args.profile {
        _ if !args.parent.is_empty() => DiskType::Differencing,
        Some(profile) => Profile::from(profile).disk_type(),
        None => DiskType::Dynamic,
    };
    let disk_type = args.disk_type.map_or(implied, DiskType::from);
    match (disk_type, args.parent.is_empty()) {
        (DiskType::Differencing, true) if args.from.is_some() => Err(Failure::usage(
            "a copy is a dynamic or fixed disk, not a differencing one",
        )
        .hint("leave --type out; to make a child of a disk, name it with --parent instead of --from")),
        (DiskType::Differencing, true) => Err(Failure::usage(
            "a differencing disk needs a parent",
        )
        .hint("name it with --parent FILE")),
        (DiskType::Dynamic | DiskType::Fixed, false) => Err(Failure::usage(format!(
            "a {} disk has no parent",
            disk_type.name()
        ))
        .hint("leave --type out, or --parent")),
        _ if args.size.is_none() && args.from.is_none() && args.parent.is_empty() => {
            Err(Failure::usage(format!(
                "the size of {} is missing",
                text(&args.path)
            ))
            .hint("say how large the disk is to be (40G), or what it comes from (--parent FILE, --from FILE)"))
        }
        _ => Ok(disk_type),
    }
}

/// A raw file is the content of a disk and nothing else: what it cannot hold is not silently dropped.
fn refuse_for_raw(args: &CreateArgs, disk_type: DiskType) -> Result<(), Failure> {
    let impossible = [
        (disk_type == DiskType::Differencing, "a parent"),
        (args.block_size.is_some(), "a block size"),
        (
            args.sector_size.is_some() || args.physical_sector_size.is_some(),
            "a sector size",
        ),
        (args.id.is_some(), "an identifier"),
    ];
    match impossible.iter().find(|(asked, _)| *asked) {
        Some((_, what)) => Err(Failure::usage(format!("a raw disk cannot record {what}"))
            .hint("create a .vhdx or .vhd")),
        None => Ok(()),
    }
}

/// The direct parent, and how to open it: what follows it on the command line are its own parents.
fn parent(given: &[PathBuf], pairs: &[String]) -> Result<(Option<PathBuf>, OpenOptions), Failure> {
    let (first, rest) = match given.split_first() {
        Some((first, rest)) => (Some(first.clone()), rest),
        None => (None, given),
    };
    Ok((first, open_options(rest, pairs)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::{Cli, Command};
    use clap::Parser;

    fn ask(words: &str) -> Result<Request, Failure> {
        let words = ["vhdkit", "create"].into_iter().chain(words.split(' '));
        match Cli::try_parse_from(words).unwrap().command {
            Command::Create(args) => request(args),
            _ => unreachable!(),
        }
    }

    fn new(words: &str) -> CreateOptions {
        match ask(words).unwrap() {
            Request::New(options) => options,
            Request::Copy(_) => panic!("{words}: a copy"),
        }
    }

    #[test]
    fn the_name_and_the_parent_decide_what_is_not_said() {
        let plain = new("a.vhdx 40G");
        assert_eq!(plain.parameters.format, Format::Vhdx);
        assert_eq!(plain.parameters.disk_type, DiskType::Dynamic);
        assert_eq!(plain.parameters.virtual_size, 40 << 30);
        assert!(!plain.parameters.identifiers.is_seeded());
        let child = new("a.avhd --parent p.vhd --parent pp.vhd");
        assert_eq!(child.parameters.format, Format::Vhd);
        assert_eq!(child.parameters.disk_type, DiskType::Differencing);
        assert_eq!(child.parameters.virtual_size, 0);
        assert_eq!(child.parent_path, Some("p.vhd".into()));
        assert_eq!(new("a.img 1G --format vhd").parameters.format, Format::Vhd);
    }

    #[test]
    fn a_seed_fixes_identifiers_and_time() {
        let options = new("a.vhdx 1G --reproducible 7");
        assert!(options.parameters.identifiers.is_seeded());
        assert_eq!(options.parameters.created, FIXED_TIME);
    }

    #[test]
    fn from_is_a_conversion_with_the_options_of_create() {
        let Request::Copy(options) =
            ask("a.vhdx --from b.img --block-size 1M --type fixed --force").unwrap()
        else {
            panic!("not a copy")
        };
        assert_eq!(options.block_size, Some(1 << 20));
        assert_eq!(options.disk_type, DiskType::Fixed);
        assert!(options.overwrite);
    }

    #[test]
    fn what_makes_no_sense_is_said_before_anything_is_done() {
        for (words, said) in [
            ("a.vhdx", "size"),
            ("a.vhdx --type differencing", "needs a parent"),
            ("a.vhdx 1G --type fixed --parent b.vhdx", "has no parent"),
            ("a.vhdx --from b --type differencing", "not a differencing"),
            ("a.qcow2 1G", ".qcow2"),
            ("a 1G", "no extension"),
            ("a.img 1G --block-size 1M", "block size"),
            ("a.img 1G --sector-size 4096", "sector size"),
            (
                "a.img 1G --id 6ba7b810-9dad-41d1-80b4-00c04fd430c8",
                "identifier",
            ),
            ("a.img --parent b.vhdx", "a parent"),
        ] {
            match ask(words) {
                Err(Failure::Usage { message, hint }) => {
                    assert!(message.contains(said), "{words}: {message}");
                    assert!(hint.is_some(), "{words}");
                }
                other => panic!("{words}: {other:?}"),
            }
        }
    }
}
