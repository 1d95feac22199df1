//! `vhdkit info`: what a file, or each file of a chain, says about itself.

use std::path::Path;
use std::time::{Duration, UNIX_EPOCH};

use serde::Serialize;
use vhdkit::VirtualDisk;
use vhdkit::disk::{LayerInfo, OpenOptions, Parents};
use vhdkit::image::{DiskType, ImageInfo, ParentReference};
use vhdkit::storage::{Access, FileStorage};
use vhdkit::verbs::information::{self, ParentLocation};
use vhdkit::verbs::resize::smallest_safe_size;

use super::{Session, text};
use crate::args::InfoArgs;
use crate::failure::{DONE, Failure};
use crate::output::Output;
use crate::{formats, size};

pub(crate) fn run(args: &InfoArgs, session: &mut Session) -> Result<u8, Failure> {
    formats::warn_if_unlike_its_name(&args.path);
    let with_parents = args.chain || args.parents.names_parents();
    let disk = if with_parents {
        args.parents.open_options()?.open(&args.path)?
    } else {
        open_alone(&args.path)?
    };
    let mut images: Vec<Image> = disk.layers().iter().map(Image::of).collect();
    let details = args.details.then(|| Details::of(&disk, args)).transpose()?;
    if args.output.json {
        let chain = with_parents.then(|| images.clone());
        let leaf = images.swap_remove(0);
        session.out.json(&Report {
            leaf,
            details,
            chain,
        })?;
        return Ok(DONE);
    }
    let count = images.len();
    for (i, image) in images.iter().enumerate() {
        if i > 0 {
            session.out.line("")?;
        }
        if count > 1 {
            let place = match i {
                0 => "the disk itself",
                _ if i + 1 == count => "the base",
                _ => "its parent",
            };
            session
                .out
                .line(format!("[{} of {count}, {place}]", i + 1))?;
        }
        image.print(&mut session.out)?;
        if let Some(details) = details.as_ref().filter(|_| i == 0) {
            details.print(&mut session.out)?;
        }
    }
    Ok(DONE)
}

/// Opens one file without its parents.
pub(super) fn open_alone(path: &Path) -> Result<VirtualDisk, Failure> {
    Ok(OpenOptions::new().parents(Parents::Ignored).open(path)?)
}

/// The JSON output: the disk's own fields, and with `--chain` all images.
#[derive(Serialize)]
struct Report {
    #[serde(flatten)]
    leaf: Image,
    #[serde(skip_serializing_if = "Option::is_none")]
    details: Option<Details>,
    #[serde(skip_serializing_if = "Option::is_none")]
    chain: Option<Vec<Image>>,
}

/// What costs more than a look at the headers; the fields are those of the JSON output. Sizes are in bytes.
#[derive(Serialize)]
struct Details {
    payload: u64,
    structures: u64,
    free: u64,
    packed_size: u64,
    allocated_blocks: u64,
    fragmentation_percent: u32,
    is_4k_aligned: bool,
    /// Nothing without a partition table that can be read.
    smallest_safe_size: Option<u64>,
    /// Nothing if there is no parent, or none is found.
    parent_location: Option<String>,
    /// Windows', beside the disk.
    change_tracking_files: Vec<String>,
    host_logical_sector_size: u32,
    host_physical_sector_size: u32,
    host_is_remote: bool,
}

impl Details {
    fn of(disk: &VirtualDisk, args: &InfoArgs) -> Result<Self, Failure> {
        let usage = information::usage(disk)?;
        let host = FileStorage::open(disk.path(), Access::ReadOnly)?.host_disk()?;
        // A child is read with its parents, if they are there.
        let read = match disk.info().disk_type {
            DiskType::Differencing if disk.layers().len() == 1 => {
                args.parents.open_options()?.open(disk.path()).ok()
            }
            _ => None,
        };
        // Many disks have no table.
        let smallest = smallest_safe_size(read.as_ref().unwrap_or(disk)).ok();
        Ok(Self {
            payload: usage.payload,
            structures: usage.structures,
            free: usage.free,
            packed_size: usage.packed_size,
            allocated_blocks: usage.allocated_blocks,
            fragmentation_percent: information::fragmentation(disk)?,
            is_4k_aligned: information::is_4k_aligned(disk)?,
            smallest_safe_size: smallest,
            parent_location: match information::parent_location(disk, &args.parents.map()?) {
                Some(ParentLocation::Resolved(path)) => Some(text(&path)),
                _ => None,
            },
            change_tracking_files: information::change_tracking_files(disk)
                .iter()
                .map(|path| text(path))
                .collect(),
            host_logical_sector_size: host.logical_sector_size,
            host_physical_sector_size: host.physical_sector_size,
            host_is_remote: host.is_remote,
        })
    }

    fn print(&self, out: &mut Output) -> Result<(), Failure> {
        let mut row = |label: &str, value: String| out.line(format!("{label:<18}{value}"));
        row("blocks", size::short(self.payload))?;
        row("tables", size::short(self.structures))?;
        row("unused", size::short(self.free))?;
        row("fragmentation", format!("{} %", self.fragmentation_percent))?;
        row(
            "smallest size",
            match self.smallest_safe_size {
                Some(size) => size::describe(size),
                None => "unknown: no readable partition table".into(),
            },
        )?;
        row(
            "4 KiB aligned",
            if self.is_4k_aligned { "yes" } else { "no" }.into(),
        )?;
        if let Some(path) = &self.parent_location {
            row("parent found", path.clone())?;
        }
        row(
            "change tracking",
            if self.change_tracking_files.is_empty() {
                "off".into()
            } else {
                format!(
                    "by Windows, in {}",
                    self.change_tracking_files.join(" and ")
                )
            },
        )?;
        row(
            "host sectors",
            format!(
                "{} bytes (physical {} bytes){}",
                self.host_logical_sector_size,
                self.host_physical_sector_size,
                if self.host_is_remote {
                    ", on another machine"
                } else {
                    ""
                }
            ),
        )
    }
}

/// One image; the fields are those of the JSON output.
#[derive(Serialize, Clone)]
pub(super) struct Image {
    path: String,
    format: &'static str,
    #[serde(rename = "type")]
    disk_type: &'static str,
    /// Both of them, for people.
    #[serde(skip)]
    kind: String,
    virtual_size: u64,
    file_size: u64,
    allocated_size: Option<u64>,
    logical_sector_size: u32,
    physical_sector_size: u32,
    block_size: Option<u64>,
    identifier: Option<String>,
    link_identifier: Option<String>,
    creator: Option<String>,
    created: Option<String>,
    geometry: Option<Geometry>,
    log_replayed: bool,
    parent: Option<Parent>,
}

#[derive(Serialize, Clone)]
struct Geometry {
    cylinders: u16,
    heads: u8,
    sectors_per_track: u8,
}

#[derive(Serialize, Clone)]
struct Parent {
    identifiers: Vec<String>,
    paths: Vec<ParentPath>,
    modified: Option<String>,
}

#[derive(Serialize, Clone)]
struct ParentPath {
    kind: &'static str,
    path: String,
}

impl Image {
    pub(super) fn of(layer: &LayerInfo) -> Self {
        let info: ImageInfo = layer.info.clone();
        let allocated = FileStorage::open(&layer.path, Access::ReadOnly)
            .and_then(|file| file.allocated())
            .ok();
        Self {
            path: text(&layer.path),
            format: info.format.name(),
            disk_type: info.disk_type.name(),
            kind: formats::describe(info.format, info.disk_type),
            virtual_size: info.virtual_size,
            file_size: info.file_size,
            allocated_size: allocated,
            logical_sector_size: info.logical_sector_size,
            physical_sector_size: info.physical_sector_size,
            block_size: info.block_size,
            identifier: info.identifier.map(|id| id.to_string()),
            link_identifier: info.link_identifier.map(|id| id.to_string()),
            creator: info.creator,
            created: info.created.and_then(time),
            geometry: info
                .geometry
                .map(|(cylinders, heads, sectors_per_track)| Geometry {
                    cylinders,
                    heads,
                    sectors_per_track,
                }),
            log_replayed: info.log_replayed,
            parent: info.parent.map(Parent::of),
        }
    }

    fn print(&self, out: &mut Output) -> Result<(), Failure> {
        let mut row = |label: &str, value: String| out.line(format!("{label:<18}{value}"));
        row("file", self.path.clone())?;
        row("format", self.kind.clone())?;
        row("virtual size", size::describe(self.virtual_size))?;
        row("file size", size::describe(self.file_size))?;
        if let Some(allocated) = self.allocated_size {
            row("space used", size::describe(allocated))?;
        }
        if let Some(block_size) = self.block_size {
            row("block size", size::describe(block_size))?;
        }
        row(
            "sector size",
            format!(
                "{} bytes (physical {} bytes)",
                self.logical_sector_size, self.physical_sector_size
            ),
        )?;
        if let Some(id) = &self.identifier {
            row("identifier", id.clone())?;
        }
        if let Some(id) = &self.link_identifier
            && self.link_identifier != self.identifier
        {
            row("link identifier", id.clone())?;
        }
        if let Some(creator) = &self.creator {
            row("creator", creator.clone())?;
        }
        if let Some(created) = &self.created {
            row("created", created.clone())?;
        }
        if let Some(g) = &self.geometry {
            row(
                "geometry",
                format!(
                    "{} cylinders, {} heads, {} sectors per track",
                    g.cylinders, g.heads, g.sectors_per_track
                ),
            )?;
        }
        if self.log_replayed {
            row(
                "log",
                "holds changes that are not yet in place (taken into account)".into(),
            )?;
        }
        if let Some(parent) = &self.parent {
            for path in &parent.paths {
                row("parent", format!("{} ({})", path.path, path.kind))?;
            }
            for id in &parent.identifiers {
                row("parent identifier", id.clone())?;
            }
            if let Some(modified) = &parent.modified {
                row("parent modified", modified.clone())?;
            }
        }
        Ok(())
    }
}

impl Parent {
    fn of(reference: ParentReference) -> Self {
        Self {
            identifiers: reference
                .identifiers
                .iter()
                .map(ToString::to_string)
                .collect(),
            paths: reference
                .paths
                .into_iter()
                .map(|p| ParentPath {
                    kind: p.kind.name(),
                    path: p.path,
                })
                .collect(),
            modified: reference.modified.and_then(time),
        }
    }
}

/// Seconds since 1970 as `2016-02-25T16:51:27Z`; nothing for times that have no such form.
fn time(seconds: i64) -> Option<String> {
    // Years with four digits.
    let seconds = u64::try_from(seconds)
        .ok()
        .filter(|s| *s < 253_402_300_800)?;
    let time = UNIX_EPOCH + Duration::from_secs(seconds);
    Some(humantime::format_rfc3339_seconds(time).to_string())
}

#[cfg(test)]
mod tests {
    use super::time;

    #[test]
    fn times_are_utc() {
        assert_eq!(time(946_684_800).as_deref(), Some("2000-01-01T00:00:00Z"));
        assert_eq!(time(1_456_419_087).as_deref(), Some("2016-02-25T16:51:27Z"));
        assert_eq!(time(-1), None);
        assert_eq!(time(i64::MAX), None);
    }
}
