//! The C programs of `tests/c`, each built by gcc and g++ with all warnings as errors, and run in a folder of its own.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod common;

use common::{Compiler, Language};

fn run(source: &str) {
    for language in [Language::C, Language::Cpp] {
        let folder = tempfile::tempdir().unwrap();
        let compiler = Compiler::new(language);
        let program = compiler.build(source);
        compiler.execute(&program, &[], &[folder.path()]);
    }
}

macro_rules! programs {
    ($($name:ident)*) => {
        $(
            #[test]
            fn $name() {
                run(include_str!(concat!("c/", stringify!($name), ".c")));
            }
        )*

        /// Slow, and the library is not built for it: once, in the run of ignored tests.
        #[test]
        #[ignore = "needs valgrind, takes a minute"]
        fn valgrind_finds_nothing() {
            for source in [$(include_str!(concat!("c/", stringify!($name), ".c"))),*] {
                let folder = tempfile::tempdir().unwrap();
                let compiler = Compiler::new(Language::C);
                let program = compiler.build(source);
                let tool = ["valgrind", "--quiet", "--error-exitcode=9", "--leak-check=full", "--errors-for-leak-kinds=definite"];
                compiler.execute(&program, &tool, &[folder.path()]);
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
