//! What `cargo xtask install` installs is what a program is built with: headers, libraries, virtdisk.pc.

#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::path::Path;
use std::process::Command;

use vhdkit_testkit::require::require;

fn succeed(command: &mut Command) -> String {
    let output = command.output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {error}");
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn a_program_is_built_with_what_was_installed() {
    let pkg_config = Command::new("pkg-config").arg("--version").output();
    if !require(pkg_config.is_ok(), "pkg-config is not installed") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let prefix = folder.path().join("usr");
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    succeed(
        Command::new(cargo)
            .current_dir(root)
            .args(["run", "--quiet", "--locked", "--package", "xtask", "--"])
            .args(["install", "--libdir", "lib/somewhere", "--built"])
            .arg(common::library())
            .arg("--prefix")
            .arg(&prefix),
    );
    let library = prefix.join("lib/somewhere");
    let flags = succeed(
        Command::new("pkg-config")
            .args(["--cflags", "--libs", "virtdisk"])
            .env("PKG_CONFIG_PATH", library.join("pkgconfig")),
    );
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/c/create.c");
    let program = folder.path().join("create");
    // As the README says.
    succeed(
        Command::new("cc")
            .arg("-fshort-wchar")
            .arg("-I")
            .arg(prefix.join("include/vhdkit-windows"))
            .arg(source)
            .args(flags.split_whitespace())
            .arg("-o")
            .arg(&program),
    );
    // The loader finds it by its soname.
    let text = succeed(
        Command::new(&program)
            .args(["new.vhdx", "8"])
            .current_dir(folder.path())
            .env("LD_LIBRARY_PATH", &library),
    );
    assert!(text.ends_with("created\n"), "{text}");
    assert!(folder.path().join("new.vhdx").exists());
}
