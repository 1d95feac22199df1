//! Building and running C and C++ programs against the header and the library.

#![allow(dead_code, unreachable_pub, reason = "each test uses a part")]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use vhdkit_testkit::require::require;

/// What a program is written in.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Language {
    C,
    Cpp,
}

/// The folder of the header.
pub fn include() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("include")
}

/// The folder of the shared library that was built with this test.
pub fn library() -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let deps = test.parent().unwrap();
    // Cargo puts it beside the tests; with some versions only one folder above.
    for folder in [deps, deps.parent().unwrap()] {
        if folder.join("libvirtdisk.so").exists() {
            return folder.to_path_buf();
        }
    }
    panic!("libvirtdisk.so was not built beside {}", test.display());
}

/// The names that the shared library exports; `None` without `nm`.
pub fn exported_symbols() -> Option<Vec<String>> {
    let output = Command::new("nm")
        .args(["-D", "--defined-only", "--format=posix"])
        .arg(library().join("libvirtdisk.so"))
        .output()
        .ok()?;
    let text = String::from_utf8(output.stdout).unwrap();
    Some(
        text.lines()
            .filter_map(|line| line.split(' ').next().map(str::to_owned))
            .collect(),
    )
}

/// The command that serves devices, if everything is there that they take.
pub fn server() -> Option<PathBuf> {
    use std::os::unix::fs::MetadataExt;
    let command = library()
        .ancestors()
        .take(2)
        .map(|f| f.join("vhdkit"))
        .find(|p| p.exists());
    let is_root = std::fs::metadata("/proc/self").is_ok_and(|process| process.uid() == 0);
    let there = is_root
        && ["/dev/fuse", "/dev/loop-control"]
            .iter()
            .all(|d| Path::new(d).exists());
    let reason = "devices take root, /dev/fuse, /dev/loop-control and a vhdkit that was built (cargo build -p vhdkit-cli)";
    require(there && command.is_some(), reason).then_some(command?)
}

/// A compiler and its options.
pub struct Compiler {
    language: Language,
    options: Vec<String>,
    linked_statically: bool,
    variables: Vec<(String, PathBuf)>,
    folder: tempfile::TempDir,
}

impl Compiler {
    pub fn new(language: Language) -> Self {
        Self {
            language,
            options: Vec::new(),
            linked_statically: false,
            variables: Vec::new(),
            folder: tempfile::tempdir().unwrap(),
        }
        .with_library()
    }

    pub fn options(mut self, options: &[&str]) -> Self {
        self.options.extend(options.iter().map(ToString::to_string));
        self
    }

    /// Where programs are built, and the library is found by its name.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Puts the shared library into the folder under the name that the loader looks for.
    fn with_library(self) -> Self {
        let name = self.folder.path().join("libvirtdisk.so.0");
        let _ = std::os::unix::fs::symlink(library().join("libvirtdisk.so"), name);
        self
    }

    /// A variable of the environment that programs run with.
    pub fn variable(mut self, name: &str, value: PathBuf) -> Self {
        self.variables.push((name.to_owned(), value));
        self
    }

    /// The library becomes part of the program.
    pub fn linked_statically(mut self) -> Self {
        self.linked_statically = true;
        self
    }

    fn command(&self, source: &str) -> Command {
        let (compiler, standard, extension) = match self.language {
            Language::C => ("gcc", "-std=c11", "c"),
            Language::Cpp => ("g++", "-std=c++17", "cpp"),
        };
        let file = self.folder.path().join(format!("program.{extension}"));
        std::fs::write(&file, source).unwrap();
        let mut command = Command::new(compiler);
        command
            .args([standard, "-Wall", "-Wextra", "-Werror", "-pedantic", "-g"])
            .args(&self.options)
            .arg("-I")
            .arg(include())
            .arg("-I")
            .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/c"))
            .arg(&file);
        command
    }

    /// Compiles without linking.
    pub fn check(&self, source: &str) {
        let mut command = self.command(source);
        let object = self.folder.path().join("program.o");
        succeed(command.arg("-c").arg("-o").arg(object));
    }

    /// Compiles and links with the shared library, as a program of its users would.
    pub fn build(&self, source: &str) -> PathBuf {
        let program = self.folder.path().join("program");
        let mut command = self.command(source);
        command.arg("-o").arg(&program);
        if self.linked_statically {
            command.arg(library().join("libvirtdisk.a"));
            command.args(["-lpthread", "-ldl", "-lm"]);
        } else {
            command
                .arg("-L")
                .arg(library())
                .args(["-lvirtdisk", "-lpthread"]);
        }
        succeed(&mut command);
        program
    }

    /// Runs a program that was built, under a tool if one is given. It succeeds.
    pub fn execute(&self, program: &Path, tool: &[&str], arguments: &[&Path]) {
        let mut command = match tool.split_first() {
            Some((tool, options)) => {
                let mut command = Command::new(tool);
                command.args(options).arg(program);
                command
            }
            None => Command::new(program),
        };
        command
            .args(arguments)
            .envs(self.variables.clone())
            .env("LD_LIBRARY_PATH", self.folder.path());
        succeed(&mut command);
    }

    /// Compiles, links and runs.
    pub fn run(&self, source: &str, arguments: &[&Path]) {
        let program = self.build(source);
        self.execute(&program, &[], arguments);
    }
}

fn succeed(command: &mut Command) {
    let Output {
        status,
        stdout,
        stderr,
    } = command
        .output()
        .unwrap_or_else(|e| panic!("{command:?}: {e}"));
    assert!(
        status.success(),
        "{command:?}: {status}\n{}\n{}",
        String::from_utf8_lossy(&stdout),
        String::from_utf8_lossy(&stderr)
    );
}
