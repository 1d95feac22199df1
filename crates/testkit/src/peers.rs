//! Other programs that read the same formats, each asked for the whole disk. They are given copies: some write to what
//! they read. Whom to believe about what: QEMU and 7-Zip on everything but chains; on chains of VHD 7-Zip, on chains of
//! VHDX 7-Zip and libvhdi; QEMU alone on logs, after `qemu-img check -r all`.

use std::ffi::OsStr;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use vhdkit::image::Format;
use vhdkit::storage::{Access, FileStorage};

use crate::hash::{Content, QuickHasher, content_of_storage};

/// A program, or why there is none.
fn find(names: &[&str], argument: &str) -> Option<PathBuf> {
    names.iter().map(PathBuf::from).find(|name| {
        Command::new(name)
            .arg(argument)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .is_ok()
    })
}

/// The name under which QEMU knows a format.
pub fn qemu_format(format: Format) -> &'static str {
    match format {
        Format::Vhd => "vpc",
        Format::Vhdx => "vhdx",
        _ => "raw",
    }
}

/// True if qemu-img and qemu-io are installed.
pub fn has_qemu() -> bool {
    static THERE: OnceLock<bool> = OnceLock::new();
    *THERE.get_or_init(|| {
        find(&["qemu-img"], "--version").is_some() && find(&["qemu-io"], "--version").is_some()
    })
}

/// Runs a program; its output, or all it said if it failed.
///
/// # Errors
/// What the program said.
pub fn run<S: AsRef<OsStr>>(
    program: &str,
    arguments: impl IntoIterator<Item = S>,
) -> Result<String, String> {
    let output = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .map_err(|e| format!("{program}: {e}"))?;
    let text = format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    if output.status.success() {
        Ok(text)
    } else {
        Err(format!("{program}: {}: {text}", output.status))
    }
}

/// What QEMU reads.
///
/// # Errors
/// What it said instead.
pub fn read_with_qemu(copy: &Path, format: Format) -> Result<Content, String> {
    let raw = copy.with_extension("qemu.raw");
    let (from, to) = (copy.as_os_str(), raw.as_os_str());
    run(
        "qemu-img",
        [
            OsStr::new("convert"),
            OsStr::new("-f"),
            OsStr::new(qemu_format(format)),
            OsStr::new("-O"),
            OsStr::new("raw"),
            from,
            to,
        ],
    )?;
    let storage = FileStorage::open(&raw, Access::ReadOnly).map_err(|e| e.to_string())?;
    let content = content_of_storage(&storage).map_err(|e| e.to_string());
    drop(storage);
    let _ = std::fs::remove_file(&raw);
    content
}

/// Runs commands of qemu-io on a disk.
///
/// # Errors
/// What it said if it failed, or if a pattern was not as expected.
pub fn qemu_io(disk: &Path, format: Format, commands: &[String]) -> Result<String, String> {
    let mut arguments = vec!["-f".to_owned(), qemu_format(format).to_owned()];
    for command in commands {
        arguments.extend(["-c".to_owned(), command.clone()]);
    }
    arguments.push(disk.display().to_string());
    let text = run("qemu-io", arguments)?;
    if text.contains("verification failed") || text.contains("failed:") {
        return Err(text);
    }
    Ok(text)
}

fn seven_zip() -> Option<&'static Path> {
    static PROGRAM: OnceLock<Option<PathBuf>> = OnceLock::new();
    PROGRAM
        .get_or_init(|| find(&["7zz", "7z"], "--help"))
        .as_deref()
}

/// True if 7-Zip is installed.
pub fn has_seven_zip() -> bool {
    seven_zip().is_some()
}

/// What 7-Zip reads; it looks for parents in the same folder.
///
/// # Errors
/// What it said instead.
pub fn read_with_seven_zip(copy: &Path, format: Format) -> Result<Content, String> {
    let program = seven_zip().ok_or("7-Zip is not installed")?;
    let kind = format!("-t{}", format.name());
    let mut child = Command::new(program)
        .args([OsStr::new("x"), OsStr::new(&kind), OsStr::new("-so")])
        .arg(copy)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|e| e.to_string())?;
    let mut hasher = QuickHasher::default();
    let mut output = child.stdout.take().expect("piped");
    let mut buf = vec![0; 1 << 20];
    loop {
        match output.read(&mut buf) {
            Ok(0) => break,
            Ok(n) => hasher.update(&buf[..n]),
            Err(e) => return Err(e.to_string()),
        }
    }
    let rest = child.wait_with_output().map_err(|e| e.to_string())?;
    if rest.status.success() {
        Ok(hasher.finish())
    } else {
        Err(format!(
            "7-Zip: {}: {}",
            rest.status,
            String::from_utf8_lossy(&rest.stderr)
        ))
    }
}

const PYTHON: &str = "/usr/bin/python3";

/// True if libvhdi can be used from Python.
pub fn has_libvhdi() -> bool {
    static THERE: OnceLock<bool> = OnceLock::new();
    *THERE.get_or_init(|| run(PYTHON, ["-c", "import pyvhdi"]).is_ok())
}

/// What libvhdi reads of a chain, the leaf first.
///
/// # Errors
/// What it said instead.
pub fn read_with_libvhdi(chain: &[PathBuf]) -> Result<Content, String> {
    const SCRIPT: &str = r"
import hashlib, pyvhdi, struct, sys
files = []
for path in sys.argv[1:]:
    f = pyvhdi.file()
    f.open(path)
    if files:
        files[-1].set_parent(f)
    files.append(f)
leaf, size, at, chunks, h = files[0], files[0].get_media_size(), 0, 0, hashlib.sha256()
zero = bytes(65536)
while at < size:
    want = min(65536, size - at)
    data = b''
    while len(data) < want:
        part = leaf.read_buffer_at_offset(want - len(data), at + len(data))
        if not part:
            raise Exception('short read at %d' % at)
        data += part
    if data != zero[:want]:
        h.update(struct.pack('<Q', at) + data)
        chunks += 1
    at += want
print(size, h.hexdigest(), chunks)
";
    let mut arguments = vec!["-c".to_owned(), SCRIPT.to_owned()];
    arguments.extend(chain.iter().map(|p| p.display().to_string()));
    let text = run(PYTHON, arguments)?;
    let words: Vec<&str> = text.split_whitespace().collect();
    match words[..] {
        [size, hash, chunks] => Ok(Content {
            size: size.parse().map_err(|_| text.clone())?,
            nz_sha256: hash.to_owned(),
            nz_chunks: chunks.parse().map_err(|_| text.clone())?,
        }),
        _ => Err(text),
    }
}
