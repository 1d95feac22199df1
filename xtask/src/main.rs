//! Tasks of the project that cargo alone cannot do.
//!
//! ```text
//! cargo xtask install --prefix DIR [--destdir DIR] [--libdir DIR] [--debug | --built DIR]
//! ```

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::{env, fs, io};

/// Of the interface: programs that were linked with another one do not run with this library.
const SOVERSION: &str = "0";
const VERSION: &str = env!("CARGO_PKG_VERSION");

const USAGE: &str = "\
usage: cargo xtask install --prefix DIR [--destdir DIR] [--libdir DIR] [--debug | --built DIR]

Builds libvirtdisk and installs it with its headers and virtdisk.pc.

  --prefix DIR   where it is to be used from, such as /usr/local
  --destdir DIR  put in front of every path that is written (for packages)
  --libdir DIR   the folder for libraries below the prefix (default: lib)
  --debug        install the debug build
  --built DIR    install what was built before, from this folder
";

fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().skip(1).collect();
    match Install::parse(&arguments).and_then(|install| install.run()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("{message}");
            ExitCode::FAILURE
        }
    }
}

struct Install {
    prefix: PathBuf,
    destdir: Option<PathBuf>,
    libdir: String,
    debug: bool,
    built: Option<PathBuf>,
}

impl Install {
    fn parse(arguments: &[String]) -> Result<Self, String> {
        let mut rest = arguments.iter();
        if rest.next().map(String::as_str) != Some("install") {
            return Err(USAGE.into());
        }
        let (mut prefix, mut destdir, mut built) = (None, None, None);
        let (mut libdir, mut debug) = ("lib".to_owned(), false);
        while let Some(argument) = rest.next() {
            let mut value = || rest.next().cloned().ok_or_else(|| USAGE.to_owned());
            match argument.as_str() {
                "--prefix" => prefix = Some(PathBuf::from(value()?)),
                "--destdir" => destdir = Some(PathBuf::from(value()?)),
                "--libdir" => libdir = value()?,
                "--debug" => debug = true,
                "--built" => built = Some(PathBuf::from(value()?)),
                _ => return Err(format!("unknown argument {argument}\n{USAGE}")),
            }
        }
        let prefix = prefix.ok_or_else(|| USAGE.to_owned())?;
        let prefix = std::path::absolute(prefix).map_err(|e| e.to_string())?;
        Ok(Self {
            prefix,
            destdir,
            libdir,
            debug,
            built,
        })
    }

    /// Where a path below the prefix is written.
    fn place(&self, below: &str) -> PathBuf {
        let path = self.prefix.join(below);
        match &self.destdir {
            Some(destdir) => destdir.join(path.strip_prefix("/").unwrap_or(&path)),
            None => path,
        }
    }

    fn run(&self) -> Result<(), String> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let built = match &self.built {
            Some(built) => built.clone(),
            None => self.build(&root)?,
        };
        let include = root.join("crates/capi/include");
        for header in [
            "virtdisk.h",
            "vhdkit_win32.h",
            "vhdkit-windows/windows.h",
            "vhdkit-windows/initguid.h",
        ] {
            copy(
                &include.join(header),
                &self.place(&format!("include/{header}")),
            )?;
        }
        let library = |name: &str| self.place(&format!("{}/{name}", self.libdir));
        copy(&built.join("libvirtdisk.a"), &library("libvirtdisk.a"))?;
        let file = format!("libvirtdisk.so.{VERSION}");
        copy(&built.join("libvirtdisk.so"), &library(&file))?;
        let soname = format!("libvirtdisk.so.{SOVERSION}");
        link(&file, &library(&soname))?;
        link(&soname, &library("libvirtdisk.so"))?;
        write(&library("pkgconfig/virtdisk.pc"), &self.pkg_config())
    }

    /// Builds the library; the folder where it is.
    fn build(&self, root: &Path) -> Result<PathBuf, String> {
        let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        command
            .current_dir(root)
            .args(["build", "--package", "vhdkit-capi"]);
        if !self.debug {
            command.arg("--release");
        }
        let status = command.status().map_err(|e| format!("cargo: {e}"))?;
        if !status.success() {
            return Err("the build failed".into());
        }
        let target = match env::var_os("CARGO_TARGET_DIR") {
            Some(target) => root.join(target),
            None => root.join("target"),
        };
        Ok(target.join(if self.debug { "debug" } else { "release" }))
    }

    fn pkg_config(&self) -> String {
        format!(
            "\
prefix={}
libdir=${{prefix}}/{}
includedir=${{prefix}}/include

Name: virtdisk
Description: The virtual disk interface of Windows (virtdisk.h) on other systems
Version: {VERSION}
Libs: -L${{libdir}} -lvirtdisk
Libs.private: -lpthread -ldl -lm
Cflags: -I${{includedir}}
",
            self.prefix.display(),
            self.libdir
        )
    }
}

fn failed(path: &Path) -> impl Fn(io::Error) -> String + '_ {
    move |e| format!("{}: {e}", path.display())
}

fn make_folder(path: &Path) -> Result<(), String> {
    match path.parent() {
        Some(folder) => fs::create_dir_all(folder).map_err(failed(folder)),
        None => Ok(()),
    }
}

fn copy(from: &Path, to: &Path) -> Result<(), String> {
    make_folder(to)?;
    // Not over a file that programs have mapped.
    let _ = fs::remove_file(to);
    fs::copy(from, to).map_err(failed(from))?;
    println!("{}", to.display());
    Ok(())
}

fn write(path: &Path, text: &str) -> Result<(), String> {
    make_folder(path)?;
    fs::write(path, text).map_err(failed(path))?;
    println!("{}", path.display());
    Ok(())
}

fn link(target: &str, path: &Path) -> Result<(), String> {
    let _ = fs::remove_file(path);
    std::os::unix::fs::symlink(target, path).map_err(failed(path))?;
    println!("{}", path.display());
    Ok(())
}
