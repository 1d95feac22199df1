//! The C programs of `tests/c`, each built by gcc and g++ with all warnings as errors, and run in a folder of its own.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod common;

use std::path::Path;
use std::process::Command;

use common::{Compiler, Language};
use vhdkit_testkit::require::require;

fn run(source: &str) {
    for language in [Language::C, Language::Cpp] {
        let folder = tempfile::tempdir().unwrap();
        let compiler = Compiler::new(language);
        let program = compiler.build(source);
        compiler.execute(&program, &[], &[folder.path()]);
    }
}

/// Under valgrind: no error, and nothing that nobody points to any more.
fn run_checked(source: &str, arguments: &[&Path]) {
    let found = Command::new("valgrind").arg("--version").output().is_ok();
    if !require(found, "valgrind is not installed") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let compiler = Compiler::new(Language::C).options(&["-D_GNU_SOURCE"]);
    let program = compiler.build(source);
    let tool = [
        "valgrind",
        "--quiet",
        "--error-exitcode=9",
        "--leak-check=full",
        "--show-leak-kinds=definite",
        "--errors-for-leak-kinds=definite",
        "--fair-sched=yes",
    ];
    let all: Vec<&Path> = [folder.path()].iter().chain(arguments).copied().collect();
    compiler.execute(&program, &tool, &all);
}

macro_rules! programs {
    ($($name:ident)*) => {
        $(
            #[test]
            fn $name() {
                run(include_str!(concat!("c/", stringify!($name), ".c")));
            }
        )*

        mod under_valgrind {
            $(
                #[test]
                fn $name() {
                    super::run_checked(include_str!(concat!("c/", stringify!($name), ".c")), &[]);
                }
            )*

            /// Eight threads, five seconds of time that goes twenty times as slowly.
            #[test]
            fn random() {
                let (seconds, seed) = ("5".as_ref(), "1".as_ref());
                super::run_checked(include_str!("c/random.c"), &[seconds, seed]);
            }
        }
    };
}

programs! { cancel disks progress mirror information operations scsi threads }

#[test]
fn source_written_for_windows_compiles_unchanged() {
    for language in [Language::C, Language::Cpp] {
        let folder = tempfile::tempdir().unwrap();
        let shim = common::include().join("vhdkit-windows");
        Compiler::new(language)
            .options(&["-fshort-wchar", "-I", shim.to_str().unwrap()])
            .run(include_str!("c/windows_source.c"), &[folder.path()]);
    }
}

#[test]
fn programs_link_statically_as_well() {
    let folder = tempfile::tempdir().unwrap();
    let compiler = Compiler::new(Language::C).linked_statically();
    compiler.run(include_str!("c/information.c"), &[folder.path()]);
}

#[test]
fn disks_become_devices() {
    let Some(server) = common::server() else {
        return;
    };
    for language in [Language::C, Language::Cpp] {
        let folder = tempfile::tempdir().unwrap();
        Compiler::new(language)
            .options(&["-D_GNU_SOURCE"])
            .variable("VHDKIT_SERVER", server.clone())
            .run(include_str!("c/device.c"), &[folder.path()]);
    }
}
