//! Rows N: disks served over NBD at a Unix socket, in memory, with fio and nbdcopy as clients.

use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::{Bench, against, command, has_qemu, remove};
use crate::Result;
use crate::images::Kind;
use crate::process::{Argv, find, run};
use crate::rounds::{Reading, Regime, Row, Side};

const NBDKIT: &str = "nbdkit file";
const QEMU_NBD: &str = "qemu-nbd raw";

/// A server, ended with the value.
struct Serving {
    child: Child,
    socket: String,
}

impl Serving {
    fn start(argv: &[&str], socket: &str) -> Result<Self> {
        remove(socket);
        let mut parts = Argv::new(argv).command();
        let child = parts.stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
        let mut serving = Self {
            child,
            socket: socket.to_owned(),
        };
        let begun = Instant::now();
        while std::os::unix::net::UnixStream::connect(socket).is_err() {
            if begun.elapsed() > Duration::from_secs(20) || serving.child.try_wait()?.is_some() {
                return Err(format!("{} does not listen", argv.join(" ")).into());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(serving)
    }

    fn uri(&self) -> String {
        format!("nbd+unix:///?socket={}", self.socket)
    }
}

/// A server and who it is.
type Named = (&'static str, Serving);

impl Drop for Serving {
    fn drop(&mut self) {
        let id = self.child.id().to_string();
        // In order, so that files and sockets are left as they should be.
        let _ = Command::new("kill").arg(&id).status();
        let begun = Instant::now();
        while matches!(self.child.try_wait(), Ok(None)) {
            if begun.elapsed() > Duration::from_secs(10) {
                let _ = self.child.kill();
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        remove(&self.socket);
    }
}

/// Waits for a server to listen.
pub(crate) fn await_socket(socket: &str) -> Result<()> {
    let begun = Instant::now();
    while !std::path::Path::new(socket).exists() {
        if begun.elapsed() > Duration::from_secs(20) {
            return Err(format!("nobody listens at {socket}").into());
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

/// One fio run against a server.
fn fio_nbd(uri: &str, operation: &str, block: &str, depth: &str, seconds: &str) -> Argv {
    Argv::new(&[
        "fio",
        "--name=nbd",
        "--ioengine=nbd",
        &format!("--uri={uri}"),
        &format!("--rw={operation}"),
        &format!("--bs={block}"),
        &format!("--iodepth={depth}"),
        "--time_based",
        &format!("--runtime={seconds}"),
        "--norandommap",
        "--randrepeat=0",
        "--output-format=json",
    ])
}

/// So many random reads of 4 KiB at depth 16.
pub(crate) fn fio_requests(socket: &str, count: u64) -> Argv {
    Argv::new(&[
        "fio",
        "--name=nbd",
        "--ioengine=nbd",
        &format!("--uri=nbd+unix:///?socket={socket}"),
        "--rw=randread",
        "--bs=4k",
        "--iodepth=16",
        "--norandommap",
        &format!("--io_size={}", count * 4096),
    ])
}

impl Bench<'_> {
    /// Reads and writes of fixed size and depth.
    pub(super) fn served(
        &mut self,
        id: &'static str,
        operation: &str,
        block: &str,
        depth: &str,
        goals: [(f64, f64); 2],
    ) -> Result<()> {
        if find("fio").is_none() {
            eprintln!("{id} skipped: peer missing: fio");
            return Ok(());
        }
        let (servers, notes) = self.servers()?;
        let seconds = self.seconds.to_string();
        let sides = servers
            .iter()
            .map(|(name, server)| Side {
                argv: fio_nbd(&server.uri(), operation, block, depth, &seconds),
                reading: Reading::Fio,
                ..command(name, &[], None, 0)
            })
            .collect();
        let [kit, qemu] = goals;
        self.finish(Row {
            id,
            what: format!("NBD {block} {operation}, depth {depth}, cached raw"),
            regime: Regime::M,
            sides,
            targets: vec![
                against(NBDKIT, kit.0, kit.1),
                against(QEMU_NBD, qemu.0, qemu.1),
            ],
            same_as: None,
            notes,
        })
    }

    /// A whole disk into the server.
    pub(super) fn copied_in(&mut self) -> Result<()> {
        if find("nbdcopy").is_none() {
            eprintln!("N5 skipped: peer missing: nbdcopy");
            return Ok(());
        }
        let source = self.image(Kind::Rand)?;
        let (servers, notes) = self.servers()?;
        let sides = servers
            .iter()
            .map(|(name, server)| {
                let parts = ["nbdcopy", "--connections=4", &source, &server.uri()];
                command(name, &parts, None, 0)
            })
            .collect();
        self.finish(Row {
            id: "N5",
            what: "NBD nbdcopy in, 4 connections, raw".into(),
            regime: Regime::M,
            sides,
            targets: vec![against(NBDKIT, 1.2, 1.4), against(QEMU_NBD, 2.3, 2.9)],
            same_as: None,
            notes,
        })
    }

    /// Ours first; each with a copy of its own, which is there already.
    fn servers(&mut self) -> Result<(Vec<Named>, Vec<String>)> {
        let source = self.image(Kind::Rand)?;
        let mut servers = Vec::new();
        let mut notes = Vec::new();
        let path = |name: &str| -> Result<(String, String)> {
            let image = self.scratch.in_memory(&format!("served-{name}.raw"));
            if !std::path::Path::new(&image).exists() {
                run(&Argv::new(&["cp", &source, &image]))?;
            }
            Ok((image, self.scratch.in_memory(&format!("{name}.sock"))))
        };
        let (image, socket) = path("vhdkit")?;
        let ours = [
            &*self.vhdkit,
            "serve",
            &image,
            "--format",
            "raw",
            "--socket",
            &socket,
        ];
        servers.push(("vhdkit", Serving::start(&ours, &socket)?));
        if find("nbdkit").is_some() {
            let (image, socket) = path("nbdkit")?;
            let theirs = ["nbdkit", "-f", "-U", &socket, "file", &image];
            servers.push((NBDKIT, Serving::start(&theirs, &socket)?));
        } else {
            notes.push("peer missing: nbdkit".into());
        }
        if has_qemu() && find("qemu-nbd").is_some() {
            let (image, socket) = path("qemu")?;
            let theirs = [
                "qemu-nbd",
                "-t",
                "-e",
                "8",
                "-f",
                "raw",
                "-k",
                &socket,
                "--cache=writeback",
                "--aio=io_uring",
                &image,
            ];
            servers.push((QEMU_NBD, Serving::start(&theirs, &socket)?));
        } else {
            notes.push("peer missing: qemu-nbd".into());
        }
        if let Some(baseline) = self.baseline.clone() {
            let (image, socket) = path("baseline")?;
            let other = [
                &*baseline, "serve", &image, "--format", "raw", "--socket", &socket,
            ];
            servers.push(("vhdkit, other build", Serving::start(&other, &socket)?));
        }
        Ok((servers, notes))
    }
}
