//! A guest with a real kernel, for what the system under the tests has not got: drivers (nbd, ublk, device-mapper) and
//! partition parsers.
//!
//! The kernel is Debian's for clouds, fetched by `scripts/guest-kernel.sh`; it is emulated (TCG), so it needs neither
//! KVM nor root, and boots in five to fifteen seconds. The root file system is made anew for each guest from busybox and
//! programs of this system, in memory.
//!
//! ```no_run
//! use vhdkit_testkit::vm::Guest;
//!
//! # fn main() {
//! let Some(guest) = Guest::new() else { return }; // it has said what is missing
//! let said = guest
//!     .modules(&["nbd"])
//!     .programs(&["sfdisk"])
//!     .run("ls /dev/nbd0 && sfdisk --version");
//! assert!(said.succeeded, "{}", said.console);
//! # }
//! ```

use std::collections::BTreeSet;
use std::fs;
use std::io::Read;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::require::require;

/// Longest time for a guest. It boots in seconds; a machine with much else to do needs more.
const PATIENCE: Duration = Duration::from_mins(15);
/// What the guest says last: followed by the exit code of its script.
const END: &str = "GUEST-ENDS-WITH ";

/// A guest to be run once.
pub struct Guest {
    kernel: PathBuf,
    version: String,
    modules: Vec<String>,
    programs: Vec<PathBuf>,
    files: Vec<(PathBuf, String)>,
    machine: Vec<String>,
    memory_mib: u32,
    network: bool,
    root: Option<String>,
}

/// What became of it.
#[derive(Debug)]
pub struct Said {
    /// True if the script ended with 0.
    pub succeeded: bool,
    /// All that came over the serial line.
    pub console: String,
}

impl Guest {
    /// A guest, or nothing where something is missing: see [`require`].
    pub fn new() -> Option<Self> {
        let target = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target");
        let target = std::env::var_os("CARGO_TARGET_DIR").map_or(target, PathBuf::from);
        let kernel = target.join("guest-kernel");
        let version = fs::read_to_string(kernel.join("version")).unwrap_or_default();
        let tools = ["qemu-system-x86_64", "busybox", "cpio", "modprobe", "xz"];
        let missing: Vec<_> = tools.iter().filter(|t| program(t).is_none()).collect();
        let there = require(
            missing.is_empty(),
            &format!(
                "a guest needs {missing:?} (packages qemu-system-x86, busybox-static, cpio, kmod, xz-utils)"
            ),
        ) && require(
            !version.is_empty(),
            "a guest needs a kernel: run scripts/guest-kernel.sh",
        );
        there.then(|| Self {
            kernel,
            version: version.trim().to_owned(),
            modules: Vec::new(),
            programs: Vec::new(),
            files: Vec::new(),
            machine: Vec::new(),
            memory_mib: 512,
            network: false,
            root: None,
        })
    }

    /// Loads modules, with what they depend on, before the script runs: in this order, with parameters after a blank.
    #[must_use]
    pub fn modules(mut self, names: &[&str]) -> Self {
        self.modules.extend(names.iter().map(|&n| n.to_owned()));
        self
    }

    /// Takes programs of this system along, with their libraries, under the same paths. Busybox has most small ones
    /// under `/bin`; where both have one, the script finds this system's.
    #[must_use]
    pub fn programs(mut self, names: &[&str]) -> Self {
        self.programs.extend(
            names
                .iter()
                .map(|name| program(name).unwrap_or_else(|| panic!("{name} is not installed"))),
        );
        self
    }

    /// Takes a program along that was built here.
    #[must_use]
    pub fn program_file(mut self, path: &Path, name: &str) -> Self {
        self.files
            .push((path.to_owned(), format!("usr/local/bin/{name}")));
        self
    }

    /// Takes a file along.
    #[must_use]
    pub fn file(mut self, path: &Path, inside: &str) -> Self {
        self.files
            .push((path.to_owned(), inside.trim_start_matches('/').to_owned()));
        self
    }

    /// Further arguments of QEMU.
    #[must_use]
    pub fn machine(mut self, arguments: &[&str]) -> Self {
        self.machine.extend(arguments.iter().map(|&a| a.to_owned()));
        self
    }

    /// Memory, which holds the root file system too [512 MiB].
    #[must_use]
    pub fn memory_mib(mut self, size: u32) -> Self {
        self.memory_mib = size;
        self
    }

    /// A network in which this machine's loopback is 10.0.2.2.
    #[must_use]
    pub fn network(mut self) -> Self {
        self.network = true;
        self
    }

    /// Starts a system of its own, `/sbin/init` of this folder, when the script has mounted it there. It has to switch
    /// off by itself, after a line of `GUEST-ENDS-WITH 0` if all is well.
    #[must_use]
    pub fn switch_root(mut self, folder: &str) -> Self {
        self.root = Some(folder.to_owned());
        self
    }

    /// A virtio disk `/dev/vda`, `/dev/vdb` ..., served over NBD at a Unix socket here.
    #[must_use]
    pub fn nbd_disk(self, socket: &Path, export: &str) -> Self {
        let drive = format!(
            "driver=nbd,server.type=unix,server.path={},export={export},if=none,id=nbd{},discard=unmap",
            socket.display(),
            self.machine.len()
        );
        let device = format!("virtio-blk-pci,drive=nbd{}", self.machine.len());
        self.modules(&["virtio_pci", "virtio_blk"])
            .machine(&["-drive", &drive, "-device", &device])
    }

    /// Boots, runs a script of `sh` as root and switches off.
    ///
    /// # Panics
    /// If the guest cannot be put together.
    pub fn run(mut self, script: &str) -> Said {
        if self.network {
            self = self.modules(&["virtio_pci", "virtio_net"]).machine(&[
                "-netdev",
                "user,id=net",
                "-device",
                "virtio-net-pci,netdev=net,romfile=",
            ]);
        }
        let folder = tempfile::tempdir().unwrap();
        let initrd = self.make_initrd(folder.path(), script);
        let memory = self.memory_mib.to_string();
        let mut qemu = Command::new("qemu-system-x86_64");
        qemu.args([
            "-accel", "tcg", "-cpu", "Nehalem", "-M", "pc", "-smp", "1", "-m", &memory,
        ])
        .args(["-nographic", "-no-reboot", "-vga", "none"])
        .arg("-kernel")
        .arg(self.kernel.join("vmlinuz"))
        .arg("-initrd")
        .arg(&initrd)
        .args([
            "-append",
            "console=ttyS0 quiet panic=-1 nokaslr no_timer_check",
        ])
        .args(&self.machine);
        if !self.network {
            qemu.args(["-nic", "none"]);
        }
        let console = run_for(&mut qemu, PATIENCE);
        Said {
            succeeded: console.contains(&format!("{END}0\r"))
                || console.contains(&format!("{END}0\n")),
            console,
        }
    }

    /// The root file system as a file.
    fn make_initrd(&self, folder: &Path, script: &str) -> PathBuf {
        let root = folder.join("root");
        for name in [
            "bin",
            "dev",
            "proc",
            "sys",
            "tmp",
            "mnt",
            "run",
            "etc",
            "lib/modules",
            "usr/local/bin",
        ] {
            fs::create_dir_all(root.join(name)).unwrap();
        }
        copy(&program("busybox").unwrap(), &root.join("bin/busybox"));
        symlink("busybox", root.join("bin/sh")).unwrap();
        let mut copied = BTreeSet::new();
        for path in &self.programs {
            self.copy_with_libraries(path, &root, &mut copied);
        }
        for (from, to) in &self.files {
            let inside = root.join(to);
            copy(from, &inside);
            self.copy_libraries(from, &root, &mut copied);
            // What the compiler leaves for debuggers takes ten times the space, which is memory of the guest.
            let _ = Command::new("strip")
                .arg(&inside)
                .stderr(Stdio::null())
                .status();
        }
        let loads = self.copy_modules(&root);
        let network = if self.network {
            "ip link set lo up; ip link set eth0 up; ip addr add 10.0.2.15/24 dev eth0; ip route add default via 10.0.2.2"
        } else {
            "ip link set lo up"
        };
        let switch = match &self.root {
            Some(folder) => format!("sh /script && exec switch_root {folder} /sbin/init"),
            None => "sh /script".to_owned(),
        };
        write_executable(
            &root.join("init"),
            &format!(
                "#!/bin/sh\n\
                 export PATH=/usr/local/bin:/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin\n\
                 mount() {{ /bin/busybox mount \"$@\"; }}\n\
                 mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t devtmpfs dev /dev\n\
                 /bin/busybox --install -s /bin\n\
                 {loads}\n{network}\n\
                 {switch}\n\
                 code=$?; echo; echo \"{END}$code\"\n\
                 sync; poweroff -f\n"
            ),
        );
        write_executable(&root.join("script"), script);
        let initrd = folder.join("initrd");
        // Not compressed: unpacking in the guest takes longer than reading.
        let made = Command::new("sh")
            .args(["-c", "find . | cpio -o -H newc --quiet > ../initrd"])
            .current_dir(&root)
            .stdin(Stdio::null())
            .status()
            .unwrap();
        assert!(made.success(), "cpio failed");
        initrd
    }

    /// Unpacks the modules; the result are the commands that load them.
    fn copy_modules(&self, root: &Path) -> String {
        let mut loads = String::new();
        let mut loaded = BTreeSet::new();
        for wanted in &self.modules {
            let (name, parameters) = wanted.split_once(' ').unwrap_or((wanted, ""));
            let output = Command::new(program("modprobe").unwrap())
                .args(["--show-depends", "-S", &self.version, "-d"])
                .arg(&self.kernel)
                .arg(name)
                .output()
                .unwrap();
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            assert!(
                output.status.success(),
                "module {name}: {}",
                String::from_utf8_lossy(&output.stderr)
            );
            for line in text.lines() {
                // "insmod PATH", or "builtin NAME".
                let Some(path) = line
                    .strip_prefix("insmod ")
                    .map(|l| l.split(' ').next().unwrap_or(l))
                else {
                    continue;
                };
                let file = Path::new(path)
                    .file_name()
                    .unwrap()
                    .to_string_lossy()
                    .into_owned();
                let packed = file.strip_suffix(".xz");
                let plain = packed.unwrap_or(&file).to_owned();
                if !loaded.insert(plain.clone()) {
                    continue;
                }
                let to = root.join("lib/modules").join(&plain);
                if packed.is_some() {
                    let unpacked = Command::new("xz").args(["-dc", path]).output().unwrap();
                    fs::write(&to, unpacked.stdout).unwrap();
                } else {
                    copy(Path::new(path), &to);
                }
                let own = plain.trim_end_matches(".ko").replace('-', "_") == name.replace('-', "_");
                let parameters = if own { parameters } else { "" };
                loads.extend(["insmod /lib/modules/", &plain, " ", parameters, "\n"]);
            }
        }
        loads
    }

    fn copy_with_libraries(&self, path: &Path, root: &Path, copied: &mut BTreeSet<PathBuf>) {
        if copied.insert(path.to_owned()) {
            let inside = root.join(path.strip_prefix("/").unwrap());
            copy(path, &inside);
            self.copy_libraries(path, root, copied);
        }
    }

    /// What `ldd` says a program needs; nothing if it is static.
    fn copy_libraries(&self, path: &Path, root: &Path, copied: &mut BTreeSet<PathBuf>) {
        let output = Command::new("ldd").arg(path).output().unwrap();
        for word in String::from_utf8_lossy(&output.stdout).split_whitespace() {
            if word.starts_with('/') {
                self.copy_with_libraries(Path::new(word), root, copied);
            }
        }
    }
}

/// True if these programs are here to be taken along: see [`require`].
pub fn has_programs(names: &[&str]) -> bool {
    let there = |name: &&str| require(program(name).is_some(), &format!("needs {name}"));
    names.iter().all(there)
}

/// Where a program is.
fn program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin".into(), "/sbin".into()])
        .map(|folder| folder.join(name))
        .find(|file| file.is_file())
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to.parent().unwrap()).unwrap();
    fs::copy(from, to).unwrap_or_else(|e| panic!("{}: {e}", from.display()));
}

fn write_executable(path: &Path, text: &str) {
    fs::write(path, text).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
}

/// Runs a program to its end, or ends it after a time; the result is what it wrote.
fn run_for(command: &mut Command, patience: Duration) -> String {
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut errors = child.stderr.take().unwrap();
    let errors = std::thread::spawn(move || {
        let mut text = Vec::new();
        let _ = errors.read_to_end(&mut text);
        text
    });
    let mut output = child.stdout.take().unwrap();
    let console = std::thread::spawn(move || {
        let mut text = Vec::new();
        let _ = output.read_to_end(&mut text);
        text
    });
    let begun = Instant::now();
    let mut late = "";
    while child.try_wait().unwrap().is_none() {
        if begun.elapsed() > patience {
            late = "\nthe guest took too long and was switched off\n";
            let _ = child.kill();
            let _ = child.wait();
            break;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    let text = [console.join().unwrap(), errors.join().unwrap()].concat();
    String::from_utf8_lossy(&text).into_owned() + late
}
