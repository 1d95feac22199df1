//! Servers to be tested, and the clients that test them.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tempfile::TempDir;
use vhdkit::image::{CreateParameters, DiskType, Format};
use vhdkit::verbs::create::{CreateOptions, create};
use vhdkit::{Error, ErrorKind, OpenOptions, Result, VirtualDisk};
use vhdkit_nbd::{
    BlockSizes, Catalog, DiskExport, Export, Limits, Listener, Server, Status, TlsIdentity,
};
use vhdkit_testkit::require::require;

pub(crate) const MIB: u64 = 1 << 20;

/// An export in memory that can be slow, damaged, and change by a second context.
pub(crate) struct Memory {
    pub(crate) bytes: Mutex<Vec<u8>>,
    /// What each read and write takes.
    pub(crate) delay: Duration,
    /// Once this is set, a read waits until so many have been underway at once.
    pub(crate) together: Arc<AtomicUsize>,
    /// Reads and writes of this byte fail.
    pub(crate) damaged: Option<u64>,
    pub(crate) read_only: bool,
    pub(crate) fails_with: Option<ErrorKind>,
    pub(crate) minimum: u32,
    pub(crate) flushes: Arc<AtomicUsize>,
    /// Reads that are being answered, and the most that there were at once.
    reading: AtomicUsize,
    pub(crate) most_reading: Arc<AtomicUsize>,
}

/// What [`Memory`] holds at the beginning: no two sectors alike, up to a point.
pub(crate) fn byte_at(i: usize) -> u8 {
    (i / 512).to_le_bytes()[0] ^ i.to_le_bytes()[0]
}

impl Memory {
    pub(crate) fn new(size: u64) -> Self {
        let bytes = (0..usize::try_from(size).unwrap()).map(byte_at);
        Self {
            bytes: Mutex::new(bytes.collect()),
            delay: Duration::ZERO,
            together: Arc::default(),
            damaged: None,
            read_only: false,
            fails_with: None,
            minimum: 1,
            flushes: Arc::default(),
            reading: AtomicUsize::new(0),
            most_reading: Arc::default(),
        }
    }

    fn is_damaged(&self, offset: u64, length: u64) -> bool {
        self.damaged
            .is_some_and(|at| (offset..offset + length).contains(&at))
    }

    fn change(&self, offset: u64, length: u64, act: impl FnOnce(&mut [u8])) -> Result<()> {
        std::thread::sleep(self.delay);
        if let Some(kind) = self.fails_with {
            return Err(Error::new(kind, "as the test wants it"));
        }
        let start = usize::try_from(offset).unwrap();
        act(&mut self.bytes.lock().unwrap()[start..start + usize::try_from(length).unwrap()]);
        Ok(())
    }
}

impl Export for Memory {
    fn size(&self) -> u64 {
        self.bytes.lock().unwrap().len() as u64
    }
    fn is_read_only(&self) -> bool {
        self.read_only
    }
    fn block_sizes(&self) -> BlockSizes {
        BlockSizes {
            minimum: self.minimum,
            ..BlockSizes::default()
        }
    }
    fn contexts(&self) -> Vec<String> {
        vec!["base:allocation".into(), "vhdkit:changed".into()]
    }
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        let reading = self.reading.fetch_add(1, Ordering::SeqCst) + 1;
        self.most_reading.fetch_max(reading, Ordering::SeqCst);
        std::thread::sleep(self.delay);
        let begun = Instant::now();
        while self.most_reading.load(Ordering::SeqCst) < self.together.load(Ordering::SeqCst)
            && begun.elapsed() < Duration::from_mins(1)
        {
            std::thread::sleep(Duration::from_millis(1));
        }
        self.reading.fetch_sub(1, Ordering::SeqCst);
        if self.is_damaged(offset, buf.len() as u64) {
            return Err(Error::new(ErrorKind::ReadFault, "the medium is damaged"));
        }
        let start = usize::try_from(offset).unwrap();
        buf.copy_from_slice(&self.bytes.lock().unwrap()[start..start + buf.len()]);
        Ok(())
    }
    fn write_at(&self, offset: u64, data: &[u8]) -> Result<()> {
        if self.is_damaged(offset, data.len() as u64) {
            return Err(Error::new(ErrorKind::WriteFault, "the medium is damaged"));
        }
        self.change(offset, data.len() as u64, |bytes| {
            bytes.copy_from_slice(data);
        })
    }
    fn zero(&self, offset: u64, length: u64, _may_unmap: bool) -> Result<()> {
        self.change(offset, length, |bytes| bytes.fill(0))
    }
    fn zeroes_fast(&self, _offset: u64, _length: u64, may_unmap: bool) -> bool {
        may_unmap
    }
    fn trim(&self, offset: u64, length: u64) -> Result<()> {
        self.change(offset, length, |_| {})
    }
    fn flush(&self) -> Result<()> {
        self.flushes.fetch_add(1, Ordering::SeqCst);
        self.change(0, 0, |_| {})
    }
    /// Of the second context every other MiB is changed.
    fn status(&self, context: usize, offset: u64, length: u64) -> Result<Status> {
        let left = MIB - offset % MIB;
        Ok(match context {
            0 => Status { length, flags: 0 },
            _ => Status {
                length: left.min(length),
                flags: u32::from(offset / MIB % 2 == 1),
            },
        })
    }
}

/// A server in a folder of its own.
pub(crate) struct Served {
    pub(crate) folder: TempDir,
    pub(crate) server: Option<Server>,
    pub(crate) disks: Vec<Arc<VirtualDisk>>,
}

pub(crate) fn folder() -> TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap()
}

/// Makes an empty dynamic disk.
pub(crate) fn make(path: &Path, size: u64) {
    let format = match path.extension().unwrap().to_str().unwrap() {
        "vhd" => Format::Vhd,
        "vhdx" => Format::Vhdx,
        _ => {
            std::fs::File::create(path).unwrap().set_len(size).unwrap();
            return;
        }
    };
    let parameters = CreateParameters::new(format, DiskType::Dynamic, size);
    create(CreateOptions::new(path, parameters)).wait().unwrap();
}

impl Served {
    /// Serves new disks under these names.
    pub(crate) fn disks(names: &[&str], size: u64) -> Self {
        Self::disks_in(folder(), names, size, None)
    }

    pub(crate) fn disks_in(
        folder: TempDir,
        names: &[&str],
        size: u64,
        tls: Option<TlsIdentity>,
    ) -> Self {
        let mut disks = Vec::new();
        let mut catalog = Catalog::new();
        for name in names {
            let path = folder.path().join(name);
            make(&path, size);
            let disk = Arc::new(OpenOptions::new().writable(true).open(&path).unwrap());
            let export = DiskExport::new(disk.clone(), false);
            catalog.add(*name, Arc::new(export)).unwrap();
            disks.push(disk);
        }
        Self::start(folder, catalog, tls, Limits::default(), disks)
    }

    /// Serves anything under the default name.
    pub(crate) fn export(export: impl Export + 'static) -> Self {
        Self::export_with(export, Limits::default())
    }

    pub(crate) fn export_with(export: impl Export + 'static, limits: Limits) -> Self {
        let mut catalog = Catalog::new();
        catalog.add("test", Arc::new(export)).unwrap();
        Self::start(folder(), catalog, None, limits, Vec::new())
    }

    fn start(
        folder: TempDir,
        catalog: Catalog,
        tls: Option<TlsIdentity>,
        limits: Limits,
        disks: Vec<Arc<VirtualDisk>>,
    ) -> Self {
        let listener = Listener::unix(&folder.path().join("s")).unwrap();
        let server = Server::start(catalog, tls, limits, vec![listener]).unwrap();
        Self {
            folder,
            server: Some(server),
            disks,
        }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.path("s")
    }

    pub(crate) fn uri(&self, name: &str) -> String {
        format!("nbd+unix:///{name}?socket={}", self.socket().display())
    }

    /// Runs a program in the folder; what it wrote, and whether it was content.
    pub(crate) fn run(&self, program: &str, arguments: &[&str]) -> (bool, String) {
        let output = Command::new(program)
            .args(arguments)
            .current_dir(self.folder.path())
            .stdin(Stdio::null())
            .output()
            .unwrap();
        let text = [output.stdout, output.stderr].concat();
        (
            output.status.success(),
            String::from_utf8_lossy(&text).into_owned(),
        )
    }

    pub(crate) fn ok(&self, program: &str, arguments: &[&str]) -> String {
        let (ok, text) = self.run(program, arguments);
        assert!(ok, "{program} {arguments:?}: {text}");
        text
    }

    /// Runs a Python script of libnbd, with `h` connected to the export and `uri` its address.
    pub(crate) fn nbdsh(&self, name: &str, script: &str) -> String {
        let prelude = format!("import nbd, os, sys, errno\nuri = '{}'\n", self.uri(name));
        std::fs::write(
            self.path("script.py"),
            format!("{prelude}{SCRIPT_HELP}{script}\nprint('end')\n"),
        )
        .unwrap();
        let said = self.ok("/usr/bin/python3", &["script.py"]);
        assert!(said.ends_with("end\n"), "{said}");
        said
    }

    /// Ends the server and closes the disks.
    pub(crate) fn close(&mut self) {
        if let Some(server) = self.server.take() {
            server.close(Duration::from_mins(1));
        }
        for disk in self.disks.drain(..) {
            Arc::into_inner(disk).unwrap().close().unwrap();
        }
    }
}

/// `fails(errno, call)` expects an error of the server.
const SCRIPT_HELP: &str = r#"
def connect(**options):
    h = nbd.NBD()
    h.add_meta_context("base:allocation")
    h.set_strict_mode(0)
    for name, value in options.items():
        getattr(h, name)(value)
    h.connect_uri(uri)
    return h

def fails(code, call):
    try:
        call()
    except nbd.Error as e:
        assert e.errnum == code, (errno.errorcode.get(e.errnum), str(e))
        return str(e)
    raise AssertionError("it did not fail")

h = connect()
"#;

pub(crate) fn has_libnbd() -> bool {
    let python = Command::new("/usr/bin/python3")
        .args(["-c", "import nbd"])
        .output();
    require(
        python.is_ok_and(|o| o.status.success()) && there("nbdinfo"),
        "needs libnbd-bin and python3-libnbd",
    )
}

pub(crate) fn has(programs: &[&str]) -> bool {
    programs
        .iter()
        .all(|program| require(there(program), &format!("needs {program}")))
}

pub(crate) fn there(program: &str) -> bool {
    let folders = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&folders)
        .chain(["/usr/sbin".into(), "/sbin".into()])
        .any(|folder| folder.join(program).is_file())
}
