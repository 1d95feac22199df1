//! `vhdkit convert`: any disk, its chain flattened, into a new file.

use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use serde::Serialize;
use vhdkit::image::{DiskType, Format, IdentifierSource};
use vhdkit::operation::{Subject, Unit};
use vhdkit::verbs::convert::{ConvertOptions, ConvertReport, convert};
use vhdkit::verbs::in_place::{InPlaceOptions, convert_in_place};
use vhdkit::verbs::profile::Profile;

use super::{Session, text};
use crate::args::{ConvertArgs, ProgressChoice};
use crate::failure::{DONE, Failure};
use crate::progress::{follow, stopped};
use crate::{formats, size};

pub(crate) fn run(args: ConvertArgs, session: &mut Session) -> Result<u8, Failure> {
    let (json, progress) = (args.output.json, args.progress.progress);
    if args.in_place {
        return in_place(&args, session);
    }
    let done = Conversion::run(request(args)?, progress, session)?;
    if json {
        session.out.json(&done)?;
    } else {
        session.out.line(done.sentence())?;
    }
    Ok(DONE)
}

/// The fields of the JSON output of a conversion in place.
#[derive(Serialize)]
struct Rewrapped {
    path: String,
    format: &'static str,
    virtual_size: u64,
    file_size: u64,
}

fn in_place(args: &ConvertArgs, session: &mut Session) -> Result<u8, Failure> {
    let profile = args.profile.map(Profile::from);
    let name = args.target.as_deref().unwrap_or(&args.source);
    let format = match (args.format, &args.target, profile) {
        (None, None, None) => {
            return Err(Failure::usage("the new format is missing")
                .hint("say --format vhd or --format raw, or the file's new name"));
        }
        (None, None, Some(profile)) => profile.format(),
        (asked, ..) => formats::of_new_file_for(name, asked, profile)?,
    };
    if let Some(target) = &args.target
        && target.exists()
    {
        return Err(Failure::Disk(
            vhdkit::Error::new(vhdkit::ErrorKind::AlreadyExists, "it exists already")
                .with_path(target)
                .with_hint("choose another name"),
        ));
    }
    if let Some(target) = &args.target {
        check_rename(&args.source, target)?;
    }
    let options = InPlaceOptions {
        path: args.source.clone(),
        format,
        profile,
        identifier: None,
        identifiers: IdentifierSource::random(),
        created: vhdkit::image::now(),
    };
    follow(
        convert_in_place(options),
        &Subject::disk(&args.source),
        args.progress.progress,
        Some(&session.interrupt),
    )
    .map_err(|e| stopped(e, "the file is as it was"))?;
    if args.target.is_some() {
        std::fs::rename(&args.source, name).map_err(|e| {
            vhdkit::Error::io("rename", e)
                .with_path(&args.source)
                .with_hint(format!(
                    "it is a {} disk now; only its name is the old one",
                    format.name()
                ))
        })?;
    }
    let info = super::info::open_alone(name)?.info();
    let done = Rewrapped {
        path: text(name),
        format: info.format.name(),
        virtual_size: info.virtual_size,
        file_size: info.file_size,
    };
    if args.output.json {
        session.out.json(&done)?;
    } else {
        session.out.line(format!(
            "{} is now a {} disk of {}",
            done.path,
            formats::describe(info.format, info.disk_type),
            size::describe(done.virtual_size)
        ))?;
    }
    Ok(DONE)
}

/// Before anything is changed: can the file get this name?
fn check_rename(from: &Path, to: &Path) -> vhdkit::Result<()> {
    let folder = |path: &Path| match path.parent() {
        Some(folder) if folder != Path::new("") => folder.to_path_buf(),
        _ => PathBuf::from("."),
    };
    let look = |path: &Path| {
        std::fs::metadata(folder(path)).map_err(|e| {
            vhdkit::Error::io("look at the folder", e)
                .with_path(to)
                .with_hint("make the folder first, or choose another name")
        })
    };
    let source = std::fs::symlink_metadata(from).map_err(|e| vhdkit::Error::open(from, e))?;
    let reason = if source.is_symlink() {
        "it is a link, which would get the name instead of the file"
    } else if look(from)?.dev() != look(to)?.dev() {
        "the new name is on another file system"
    } else {
        return Ok(());
    };
    Err(
        vhdkit::Error::new(vhdkit::ErrorKind::InvalidParameter, reason)
            .with_path(from)
            .while_doing("cannot convert in place")
            .with_hint("leave the new name out and say --format, then move the file"),
    )
}

fn request(args: ConvertArgs) -> Result<ConvertOptions, Failure> {
    let Some(target) = args.target else {
        return Err(Failure::usage("the file to make is missing"));
    };
    let profile = args.profile.map(Profile::from);
    let format = formats::of_new_file_for(&target, args.format, profile)?;
    let disk_type = args.disk_type.map_or_else(
        || profile.map_or(DiskType::Dynamic, Profile::disk_type),
        DiskType::from,
    );
    if format == Format::Raw && args.block_size.is_some() {
        return Err(
            Failure::usage("a raw disk cannot record a block size").hint("leave --block-size out")
        );
    }
    Ok(ConvertOptions {
        open: args.parents.open_options()?,
        source: args.source,
        target,
        format,
        disk_type,
        virtual_size: None,
        profile,
        block_size: args.block_size,
        logical_sector_size: None,
        physical_sector_size: None,
        identifier: None,
        identifiers: IdentifierSource::random(),
        created: vhdkit::image::now(),
        overwrite: args.force,
    })
}

/// A finished conversion; the fields are those of the JSON output.
#[derive(Serialize, Debug)]
pub(super) struct Conversion {
    source: String,
    target: String,
    format: &'static str,
    #[serde(rename = "type")]
    disk_type: &'static str,
    /// Both of them, for people.
    #[serde(skip)]
    kind: String,
    virtual_size: u64,
    copied: u64,
    cloned: u64,
    zero: u64,
    file_size: u64,
}

impl Conversion {
    /// Converts, showing progress.
    pub(super) fn run(
        options: ConvertOptions,
        progress: ProgressChoice,
        session: &Session,
    ) -> Result<Self, Failure> {
        let (source, target) = (text(&options.source), text(&options.target));
        let (format, disk_type) = (options.format, options.disk_type);
        // A device is written in place; a file has no name until it is complete.
        let outcome = match std::fs::metadata(&options.target) {
            Ok(m) if m.file_type().is_block_device() => format!("{target} is only partly written"),
            Ok(_) => format!("{target} was not replaced"),
            Err(_) => format!("{target} was not made"),
        };
        formats::warn_if_unlike_its_name(&options.source);
        let subject = Subject::disk(&options.target)
            .and(&options.source)
            .counted_in(Unit::Bytes);
        let report = follow(
            convert(options),
            &subject,
            progress,
            Some(&session.interrupt),
        )
        .map_err(|e| stopped(e, &outcome))?;
        Ok(Self::new(source, target, format, disk_type, report))
    }

    fn new(
        source: String,
        target: String,
        format: Format,
        disk_type: DiskType,
        report: ConvertReport,
    ) -> Self {
        Self {
            source,
            target,
            format: format.name(),
            // A raw file has no type of its own; it opens as fixed.
            disk_type: match format {
                Format::Raw => DiskType::Fixed.name(),
                _ => disk_type.name(),
            },
            kind: formats::describe(format, disk_type),
            virtual_size: report.virtual_size,
            copied: report.copied,
            cloned: report.cloned,
            zero: report.zero,
            file_size: report.file_size,
        }
    }

    fn sentence(&self) -> String {
        let mut parts = vec![format!("{} copied", size::short(self.copied))];
        if self.cloned > 0 {
            parts.push(format!(
                "{} shared with the source",
                size::short(self.cloned)
            ));
        }
        parts.push(format!("{} zero", size::short(self.zero)));
        format!(
            "converted {} to {}: {}, {}; {}",
            self.source,
            self.target,
            self.kind,
            size::describe(self.virtual_size),
            parts.join(", ")
        )
    }
}
