//! `docs/virtdisk-compatibility.md`: every function, flag, version and kind of the header, and what becomes of it here.
//!
//! The page is written from the table in this folder, each row of which is a call: what the page says is what the
//! library did. `VHDKIT_UPDATE=1` writes the page.

#![allow(
    unsafe_code,
    unused_unsafe,
    unreachable_pub,
    clippy::wildcard_imports,
    clippy::borrow_as_ptr,
    clippy::cast_possible_truncation,
    clippy::unused_self,
    clippy::unwrap_used,
    clippy::panic,
    reason = "the functions of the interface are called as C does; some are safe"
)]

#[path = "../common/mod.rs"]
mod common;
mod lab;
mod table;

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use lab::Lab;
use table::{Group, Here, groups};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

const HEAD: &str = "\
# What is the same, what differs, what is refused

Every function of `virtdisk.h` with its flags, versions and kinds. This page is made from the table of
`crates/capi/tests/compatibility`, which calls the library for each row.

- **same**: as on Windows, as far as Microsoft's pages, header and sample say. With a code: that code, as there.
- **differs**: it works, but not quite so; the remark says how.
- **refused**: exists on Windows and not here; the code that is returned.

What holds for all functions (which code when, threads, paths) and what Microsoft leaves open is in
[libvirtdisk.md](libvirtdisk.md).
";

fn page(groups: &[Group]) -> String {
    let mut page = HEAD.to_owned();
    for group in groups {
        write!(page, "\n## {}\n\n{}\n", group.title, group.about).unwrap();
        if !group.rows.is_empty() {
            page.push_str("\n| name | here | remarks |\n|---|---|---|\n");
        }
        for row in &group.rows {
            let here = match row.here {
                Here::Same(0) => "same".into(),
                Here::Same(code) => format!("same: {}", code_text(code)),
                Here::Differs => "differs".into(),
                Here::Refused(code) => format!("refused: {}", code_text(code)),
            };
            writeln!(page, "| `{}` | {here} | {} |", row.name, row.remark).unwrap();
        }
    }
    page
}

fn code_text(code: u32) -> String {
    if code > 0xFFFF {
        format!("0x{code:X}")
    } else {
        code.to_string()
    }
}

/// True if disks can become devices here, served by the command that was built with this test.
fn has_devices() -> bool {
    use std::sync::OnceLock;
    static THERE: OnceLock<bool> = OnceLock::new();
    *THERE.get_or_init(|| {
        let Some(server) = common::server() else {
            return false;
        };
        // SAFETY: no other thread of this process is at its environment.
        unsafe { std::env::set_var("VHDKIT_SERVER", server) };
        true
    })
}

#[test]
fn every_row_is_what_the_library_does() {
    let mut wrong = Vec::new();
    for group in groups() {
        for row in &group.rows {
            let expected = match row.here {
                Here::Same(code) | Here::Refused(code) => code,
                Here::Differs => 0,
            };
            let run = || (row.run)(&Lab::new());
            match std::panic::catch_unwind(run) {
                Ok(code) if code == expected => {}
                Ok(code) => wrong.push(format!(
                    "{}: {}, not {}",
                    row.name,
                    code_text(code),
                    code_text(expected)
                )),
                Err(_) => wrong.push(format!("{}: its effect is not there", row.name)),
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn the_page_is_the_table() {
    let file = root().join("docs/virtdisk-compatibility.md");
    let page = page(&groups());
    if std::env::var("VHDKIT_UPDATE").is_ok_and(|value| value == "1") {
        std::fs::write(&file, &page).unwrap();
    }
    let there = std::fs::read_to_string(&file).unwrap_or_default();
    assert!(
        there == page,
        "docs/virtdisk-compatibility.md is not up to date: VHDKIT_UPDATE=1 cargo test -p vhdkit-capi --test compatibility"
    );
}

/// Names of the header: its functions, and what its enumerations have.
fn names_of_the_header() -> BTreeSet<String> {
    let header = std::fs::read_to_string(root().join("crates/capi/include/virtdisk.h")).unwrap();
    let mut names = BTreeSet::new();
    for line in header.lines() {
        let line = line.trim();
        if let Some(rest) = line.strip_prefix("DWORD WINAPI ") {
            names.insert(rest.split('(').next().unwrap().to_owned());
        } else if let Some((name, _)) = line.split_once(" = ") {
            names.insert(name.to_owned());
        } else if let Some(rest) = line.strip_prefix("#define VIRTUAL_STORAGE_TYPE_DEVICE_") {
            let name = rest.split(' ').next().unwrap();
            names.insert(format!("VIRTUAL_STORAGE_TYPE_DEVICE_{name}"));
        }
    }
    names.retain(|name| !name.starts_with("vhdkit_"));
    names
}

#[test]
fn nothing_of_the_header_is_left_out() {
    let groups = groups();
    let rows: BTreeSet<String> = groups
        .iter()
        .flat_map(|group| group.rows.iter().map(|row| row.name.to_owned()))
        .collect();
    let names = names_of_the_header();
    assert!(names.len() > 180, "{}", names.len());
    let left_out: Vec<_> = names.difference(&rows).collect();
    assert!(left_out.is_empty(), "{left_out:#?}");
}
