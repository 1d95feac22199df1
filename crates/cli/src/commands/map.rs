//! `vhdkit map`: where the content of a disk is.
//!
//! Rows are written as they are found: the map of a large disk is never held in memory.

use serde::Serialize;
use vhdkit::VirtualDisk;
use vhdkit::disk::DiskExtent;

use super::{Session, text};
use crate::args::MapArgs;
use crate::failure::{DONE, Failure};
use crate::formats;
use crate::output::Output;

pub(crate) fn run(args: &MapArgs, session: &mut Session) -> Result<u8, Failure> {
    formats::warn_if_unlike_its_name(&args.path);
    let disk = args.parents.open_options()?.open(&args.path)?;
    let files: Vec<String> = disk.layers().iter().map(|l| text(&l.path)).collect();
    let out = &mut session.out;
    if args.output.json {
        json(&disk, &files, out)?;
    } else {
        table(&disk, &files, out)?;
    }
    Ok(DONE)
}

fn table(disk: &VirtualDisk, files: &[String], out: &mut Output) -> Result<(), Failure> {
    // As wide as the largest number of this disk.
    let width = disk.virtual_size().to_string().len().max("length".len());
    let row = |start: &str, length: &str, kind: &str, offset: &str, file: &str| {
        let line =
            format!("{start:>width$}  {length:>width$}  {kind:<4}  {offset:>width$}  {file}");
        line.trim_end().to_string()
    };
    out.line(row("start", "length", "type", "offset", "file"))?;
    for extent in disk.extents(0..disk.virtual_size()) {
        if out.is_closed() {
            break;
        }
        let (start, DiskExtent { length, data }) = extent?;
        let (start, length) = (start.to_string(), length.to_string());
        out.line(match data {
            Some(at) => {
                let offset = at.storage_offset.to_string();
                let file = files.get(at.layer).map_or("", String::as_str);
                row(&start, &length, "data", &offset, file)
            }
            None => row(&start, &length, "zero", "", ""),
        })?;
    }
    Ok(())
}

/// One extent; the fields are those of the JSON output.
#[derive(Serialize)]
struct Row<'a> {
    start: u64,
    length: u64,
    #[serde(rename = "type")]
    kind: &'static str,
    layer: Option<usize>,
    file: Option<&'a str>,
    offset: Option<u64>,
}

fn json(disk: &VirtualDisk, files: &[String], out: &mut Output) -> Result<(), Failure> {
    let head = format!(
        "{{\n  \"path\": {},\n  \"virtual_size\": {},\n  \"extents\": [\n",
        encode(&files[0])?,
        disk.virtual_size()
    );
    out.bytes(head.as_bytes())?;
    let mut separator = "";
    for extent in disk.extents(0..disk.virtual_size()) {
        if out.is_closed() {
            break;
        }
        let (start, DiskExtent { length, data }) = extent?;
        let row = Row {
            start,
            length,
            kind: if data.is_some() { "data" } else { "zero" },
            layer: data.map(|at| at.layer),
            file: data.and_then(|at| files.get(at.layer)).map(String::as_str),
            offset: data.map(|at| at.storage_offset),
        };
        out.bytes(format!("{separator}    {}", encode(&row)?).as_bytes())?;
        separator = ",\n";
    }
    out.bytes(b"\n  ]\n}\n")
}

/// A value as one line of JSON.
fn encode(value: &impl Serialize) -> Result<String, Failure> {
    serde_json::to_string(value).map_err(|e| Failure::Output(e.into()))
}
