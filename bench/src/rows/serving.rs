//! Rows N: disks served over NBD at a Unix socket, in memory, with fio and nbdcopy as clients.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
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
        while UnixStream::connect(socket).is_err() {
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

/// Waits for a server, and takes its only export, so that it is not idle while the result is there.
pub(crate) fn hold(socket: &str) -> Result<UnixStream> {
    let begun = Instant::now();
    let mut stream = loop {
        match UnixStream::connect(socket) {
            Ok(stream) => break stream,
            Err(e) if begun.elapsed() > Duration::from_mins(2) => return Err(e.into()),
            Err(_) => std::thread::sleep(Duration::from_millis(20)),
        }
    };
    // The shortest way in: flags, and the export without a name (protocol: NBD_OPT_EXPORT_NAME).
    stream.write_all(b"\0\0\0\x03IHAVEOPT\0\0\0\x01\0\0\0\0")?;
    stream.read_exact(&mut [0; 18 + 10])?;
    Ok(stream)
}

/// Asks for 16 pages with one call and takes all replies, `rounds` times.
pub(crate) fn read_in_batches(mut stream: UnixStream, rounds: u64) -> Result<()> {
    const DEPTH: u64 = 16;
    let mut replies = vec![0; 16 * (16 + 4096)];
    for round in 0..rounds {
        let mut requests = Vec::new();
        for i in 0..DEPTH {
            requests.extend(0x2560_9513_u32.to_be_bytes());
            requests.extend(0_u32.to_be_bytes());
            requests.extend(i.to_be_bytes());
            requests.extend(((round * DEPTH + i) * 4096).to_be_bytes());
            requests.extend(4096_u32.to_be_bytes());
        }
        stream.write_all(&requests)?;
        stream.read_exact(&mut replies)?;
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
