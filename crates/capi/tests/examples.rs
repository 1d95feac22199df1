//! The examples and the README: what it shows is run, in its order, and has to print what it says.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod common;

use std::path::{Path, PathBuf};
use std::process::Command;

use common::{Compiler, Language};
use vhdkit::OpenOptions;
use vhdkit::image::{CreateParameters, DiskType, Format, IdentifierSource};
use vhdkit::verbs::create::{CreateOptions, create};
use vhdkit_testkit::require::require;

fn crate_folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

const C: [&str; 5] = ["create", "compact", "mirror", "merge", "metadata"];

/// A disk of 256 MiB of which nearly all was written once, and most is zeros again.
fn make_used_disk(path: &Path) {
    const MIB: u64 = 1 << 20;
    let options = CreateOptions {
        path: path.to_path_buf(),
        parameters: CreateParameters {
            format: Format::Vhdx,
            disk_type: DiskType::Dynamic,
            virtual_size: 256 * MIB,
            block_size: Some(MIB),
            logical_sector_size: None,
            physical_sector_size: None,
            identifier: None,
            parent: None,
            identifiers: IdentifierSource::random(),
            created: 0,
        },
        parent_path: None,
        open_parent: OpenOptions::new(),
        profile: None,
        overwrite: false,
    };
    create(options).wait().unwrap();
    let disk = OpenOptions::new().writable(true).open(path).unwrap();
    let zeros = vec![0; 1 << 20];
    let data = vec![0xA5; 1 << 20];
    for i in 0..240 {
        let content = if i % 8 == 7 { &data } else { &zeros };
        disk.write_at(i * MIB, content).unwrap();
    }
}

/// A command of the README and what it prints.
struct Step {
    command: String,
    output: String,
}

/// All that is in blocks of ```console.
fn steps() -> Vec<Step> {
    let readme = std::fs::read_to_string(crate_folder().join("README.md")).unwrap();
    let mut steps: Vec<Step> = Vec::new();
    for block in readme.split("```console\n").skip(1) {
        let block = block.split("```").next().unwrap();
        for line in block.lines() {
            if let Some(command) = line.strip_prefix("$ ") {
                steps.push(Step {
                    command: command.to_owned(),
                    output: String::new(),
                });
            } else {
                let step = steps.last_mut().unwrap();
                step.output.push_str(line);
                step.output.push('\n');
            }
        }
    }
    steps
}

/// Numbers differ from run to run, and so does how often a percentage is printed. The examples' codes do not.
fn without_numbers(output: &str) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for line in output.lines() {
        let mut shape = String::new();
        let numbers = line.contains(" MB") || line.contains('%');
        for c in line.trim().chars() {
            match c {
                '0'..='9' if numbers && shape.ends_with('#') => {}
                '0'..='9' if numbers => shape.push('#'),
                _ => shape.push(c),
            }
        }
        if lines.last() != Some(&shape) {
            lines.push(shape);
        }
    }
    lines
}

/// Runs those of the README's commands that `chosen` accepts, with the programs of `bin`.
fn run(chosen: impl Fn(&str) -> bool, bin: &Compiler) {
    let folder = tempfile::tempdir().unwrap();
    make_used_disk(&folder.path().join("used.vhdx"));
    make_used_disk(&folder.path().join("another.vhdx"));
    for name in [
        "python/note.py",
        "csharp/Shrink.cs",
        "csharp/Shrink.exe.config",
    ] {
        let from = crate_folder().join("examples").join(name);
        std::fs::copy(&from, folder.path().join(from.file_name().unwrap())).unwrap();
    }
    let mut ran = 0;
    for step in steps() {
        if !chosen(step.command.split(' ').next().unwrap()) {
            continue;
        }
        let path = std::env::var("PATH").unwrap();
        let output = Command::new("sh")
            .args(["-c", &step.command])
            .current_dir(folder.path())
            .env("PATH", format!("{}:{path}", bin.folder().display()))
            .env("LD_LIBRARY_PATH", bin.folder())
            .output()
            .unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        assert_eq!(
            without_numbers(&text),
            without_numbers(&step.output),
            "{}\nprints\n{text}{}",
            step.command,
            String::from_utf8_lossy(&output.stderr)
        );
        ran += 1;
    }
    assert!(ran > 0, "the README has no such command");
}

fn c_examples_print_what_the_readme_says(language: Language) {
    let shim = common::include().join("vhdkit-windows");
    let examples = crate_folder().join("examples/c");
    let compiler = Compiler::new(language).options(&[
        "-fshort-wchar",
        "-I",
        shim.to_str().unwrap(),
        "-I",
        examples.to_str().unwrap(),
    ]);
    for name in C {
        let source = std::fs::read_to_string(examples.join(format!("{name}.c"))).unwrap();
        let program = compiler.build(&source);
        std::fs::rename(program, compiler.folder().join(name)).unwrap();
    }
    run(|command| C.contains(&command), &compiler);
}

#[test]
fn examples_in_c_print_what_the_readme_says() {
    c_examples_print_what_the_readme_says(Language::C);
}

#[test]
fn examples_as_cpp_print_what_the_readme_says() {
    c_examples_print_what_the_readme_says(Language::Cpp);
}

fn is_there(tool: &str) -> bool {
    Command::new(tool).arg("--version").output().is_ok()
}

#[test]
fn python_calls_it_by_ctypes() {
    if !require(is_there("python3"), "python3 is not installed") {
        return;
    }
    let library = Compiler::new(Language::C);
    run(|command| command == "python3", &library);
}

#[test]
fn csharp_calls_it_as_virtdisk_dll() {
    if !require(is_there("mcs") && is_there("mono"), "Mono is not installed") {
        return;
    }
    let library = Compiler::new(Language::C);
    run(|command| ["mcs", "mono"].contains(&command), &library);
}
