//! What a file's name promises. It decides the format of a new file; for an existing one it only leads to a warning.

use std::path::Path;

use vhdkit::disk::detect_format;
use vhdkit::image::{DiskType, Format};
use vhdkit::storage::{Access, FileStorage};
use vhdkit::verbs::profile::Profile;
use vhdkit::{Error, ErrorKind};

use crate::args::FormatName;
use crate::failure::Failure;
use crate::output;

/// The format that a name stands for.
pub(crate) fn by_name(path: &Path) -> Option<Format> {
    let extension = path.extension()?.to_str()?.to_ascii_lowercase();
    match extension.as_str() {
        "vhdx" | "avhdx" => Some(Format::Vhdx),
        "vhd" | "avhd" => Some(Format::Vhd),
        "img" | "raw" => Some(Format::Raw),
        _ => None,
    }
}

/// The format of a new file: the one asked for, else the one its name stands for.
pub(crate) fn of_new_file(path: &Path, asked: Option<FormatName>) -> Result<Format, Failure> {
    asked
        .map(Format::from)
        .or_else(|| by_name(path))
        .ok_or_else(|| {
            let shown = path.display();
            let what = match path.extension() {
                Some(extension) => {
                    format!("the extension .{} stands for no format that can be written", extension.display())
                }
                None => "it has no extension to tell the format by".into(),
            };
            Failure::usage(format!("cannot tell the format of {shown}: {what}")).hint(
                "choose one with --format vhdx, --format vhd or --format raw, or end the name in .vhdx, .avhdx, .vhd, .avhd, .img or .raw",
            )
        })
}

/// As [`of_new_file`]; where neither says it, the profile does.
pub(crate) fn of_new_file_for(
    path: &Path,
    asked: Option<FormatName>,
    profile: Option<Profile>,
) -> Result<Format, Failure> {
    match (profile, asked, by_name(path)) {
        (Some(profile), None, None) => Ok(profile.format()),
        _ => of_new_file(path, asked),
    }
}

/// A format with the way it takes space, where it has a choice.
pub(crate) fn describe(format: Format, disk_type: DiskType) -> String {
    match format {
        Format::Raw | Format::Iso => format.name().into(),
        _ => format!("{}, {}", format.name(), disk_type.name()),
    }
}

/// The format that the name promises, if the content has no signature of any format: such a file is read as raw.
pub(crate) fn missing_signature(path: &Path) -> Option<Format> {
    let promised = by_name(path).filter(|format| *format != Format::Raw)?;
    let storage = FileStorage::open(path, Access::ReadOnly).ok()?;
    matches!(detect_format(&storage), Ok(Format::Raw)).then_some(promised)
}

/// Writing into a damaged file as if it were a raw disk would finish what the damage began.
pub(crate) fn refuse_without_signature(path: &Path) -> Result<(), Error> {
    match missing_signature(path) {
        Some(promised) => Err(Error::new(
            ErrorKind::FormatUnknown,
            format!(
                "it is named like a {0} file but has no {0} signature",
                promised.name()
            ),
        )
        .with_path(path)
        .while_doing("cannot write to")
        .with_hint("look at it with vhdkit check; if it is a raw disk, rename it to .img")),
        None => Ok(()),
    }
}

/// Says on standard error if a file is not what its name promises.
pub(crate) fn warn_if_unlike_its_name(path: &Path) {
    if let Some(promised) = missing_signature(path) {
        let name = promised.name();
        output::warn(&format!(
            "{} is named like a {name} file but has no {name} signature; it is taken as a raw disk",
            path.display()
        ));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_windows_are_known_in_any_case() {
        for (name, format) in [
            ("a.vhdx", Some(Format::Vhdx)),
            ("a_1B2C.AVHDX", Some(Format::Vhdx)),
            ("a.vhd", Some(Format::Vhd)),
            ("a.avhd", Some(Format::Vhd)),
            ("a.img", Some(Format::Raw)),
            ("a.b.raw", Some(Format::Raw)),
            ("a.iso", None),
            ("vhdx", None),
            (".vhdx", None),
        ] {
            assert_eq!(by_name(Path::new(name)), format, "{name}");
        }
    }
}
