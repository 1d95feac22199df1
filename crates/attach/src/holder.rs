//! The holder: a process of its own that puts a file under a loop device, keeps the device open, and waits for the end
//! of its server. Meanwhile, when told, it looks at the partition table.
//!
//! It is there because a server must not have the device of its own disk open: when the server is killed, the kernel
//! closes the device on its behalf and writes what is dirty, to the very process that is going. The holder has nothing
//! to do with serving, so whatever it waits for, the server can answer or is dead; and with its end the device, which
//! clears itself when nobody has it open, is gone.
//!
//! Other ways to show a disk need no holder, but the kernel leaves something of them when their server dies: the rest of a
//! device of ublk, or a folder in which every access fails. A [`Reaper`] takes that away.

use std::ffi::{OsStr, OsString};
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use vhdkit::{Error, ErrorKind, Result};

use crate::protocol::Line;
use crate::sys::{self, LoopSettings};
use crate::{backend, partitions, ublk, usage};

/// The word by which a program knows that it is to be a holder.
pub(crate) const WORD: &str = "attach-holder";
/// How often a device that somebody else has taken meanwhile is no matter.
const ATTEMPTS: usize = 64;

/// When the partition table is looked at after it was written, each time after the one before: whoever wrote it may yet
/// ask the kernel to forget the partitions and look, which takes ours away where the kernel cannot read tables. On a machine
/// with much else to do that may be a while later.
const LOOKS: [Duration; 6] = [
    Duration::from_millis(20),
    Duration::from_millis(200),
    Duration::from_secs(1),
    Duration::from_secs(5),
    Duration::from_secs(20),
    Duration::from_mins(1),
];

/// What a holder says.
#[derive(Serialize, Deserialize, Debug)]
enum Said {
    Device(u32),
    Failed { action: String, errno: i32 },
}

/// A running holder, as its server sees it.
pub(crate) struct Holder {
    child: Child,
    /// Its end is what the holder waits for.
    line: Option<Line>,
    device: PathBuf,
}

impl Holder {
    /// Puts a file under a new loop device.
    pub(crate) fn start(
        file: OwnedFd,
        disk: &Path,
        sector_size: u32,
        read_only: bool,
    ) -> Result<Self> {
        let failed = |e| Error::io("start the holder of the device", e);
        let (ours, theirs) = UnixStream::pair().map_err(failed)?;
        let child = Command::new("/proc/self/exe")
            .arg0("vhdkit")
            .arg(WORD)
            .arg(sector_size.to_string())
            .arg(if read_only { "ro" } else { "rw" })
            .arg(disk)
            .stdin(OwnedFd::from(theirs))
            .stdout(file)
            .stderr(Stdio::null())
            .spawn()
            .map_err(failed)?;
        let mut holder = Self {
            child,
            line: None,
            device: PathBuf::new(),
        };
        let mut line = Line::new(ours);
        match line.receive::<Said>() {
            Ok(Some(Said::Device(number))) => {
                holder.device = PathBuf::from(format!("/dev/loop{number}"));
                holder.line = Some(line);
                Ok(holder)
            }
            Ok(Some(Said::Failed { action, errno })) => {
                Err(loop_failed(&action, io::Error::from_raw_os_error(errno)))
            }
            Ok(None) => Err(Error::new(
                ErrorKind::Io,
                "the holder of the device ended at once",
            )),
            Err(e) => Err(failed(e)),
        }
    }

    pub(crate) fn device(&self) -> &Path {
        &self.device
    }

    /// Has it look at the partition table.
    pub(crate) fn refresh_partitions(&mut self) {
        if let Some(line) = &mut self.line {
            let _ = line.send(&());
        }
    }

    /// Lets go of the device, which is gone when nobody else has it open.
    pub(crate) fn release(&mut self) {
        self.line = None;
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        self.release();
        // It has nothing left to do but to close the device; what that writes, serving threads answer.
        let _ = self.child.wait();
    }
}

fn loop_failed(action: &str, e: io::Error) -> Error {
    let hint = match e.raw_os_error().map(Errno::from_raw_os_error) {
        Some(Errno::ACCESS | Errno::PERM) => crate::NOT_ROOT,
        Some(Errno::NOENT | Errno::NXIO | Errno::NODEV) => {
            "devices take loop devices: modprobe loop; in a container, /dev/loop-control and the devices have to be passed in; vhdkit attach --file and vhdkit serve need none"
        }
        Some(Errno::INVAL | Errno::NOTTY) => "this takes Linux 5.8 or later",
        _ => "vhdkit attach --file and vhdkit serve need no device",
    };
    Error::io(action, e).with_better_hint(hint)
}

/// A process that waits for the end of its server and takes away what the kernel leaves of what showed the disk.
///
/// When this is dropped it ends by itself, which nobody needs to wait for.
pub(crate) struct Reaper {
    /// Its end is what the reaper waits for.
    _line: UnixStream,
}

/// In place of the size of sectors, these tell a process that it is to be a reaper: of a device of ublk by its number, or
/// of a folder. The identifier of the attachment follows.
const REAP_UBLK: &str = "ublk";
const REAP_FOLDER: &str = "folder";
/// How long the kernel may take to stop what a dead server has served.
const DYING: Duration = Duration::from_secs(10);

impl Reaper {
    /// For the device of ublk of this number.
    pub(crate) fn of_ublk(number: u32, id: &str) -> io::Result<Self> {
        Self::start(REAP_UBLK, number.to_string().as_ref(), id)
    }

    /// For a file system that is mounted in this folder.
    pub(crate) fn of_folder(folder: &Path, id: &str) -> io::Result<Self> {
        Self::start(REAP_FOLDER, folder.as_os_str(), id)
    }

    fn start(kind: &str, what: &OsStr, id: &str) -> io::Result<Self> {
        let (ours, theirs) = UnixStream::pair()?;
        Command::new("/proc/self/exe")
            .arg0("vhdkit")
            .args([OsStr::new(WORD), OsStr::new(kind), what, OsStr::new(id)])
            .stdin(OwnedFd::from(theirs))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        Ok(Self { _line: ours })
    }
}

/// `is_over` is asked until it says so.
fn reap(is_over: impl Fn() -> bool) -> ExitCode {
    // Nothing is ever said.
    let _ = io::copy(&mut io::stdin(), &mut io::sink());
    let until = Instant::now() + DYING;
    while !is_over() {
        if Instant::now() > until {
            return ExitCode::FAILURE;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    ExitCode::SUCCESS
}

fn reap_ublk(number: &OsStr, id: &OsStr) -> ExitCode {
    let number = number.to_str().and_then(|text| text.parse().ok());
    let tag = id.to_str().and_then(backend::tag);
    let (Some(number), Some(tag)) = (number, tag) else {
        return ExitCode::FAILURE;
    };
    reap(|| match ublk::owner(number) {
        Some(owner) if owner.tag == tag => owner.pid.is_none() && ublk::remove(number).is_ok(),
        _ => true,
    })
}

fn reap_folder(folder: &OsStr) -> ExitCode {
    let folder = Path::new(folder);
    // A server that was told to go has unmounted it. What is still mounted, and works, is about to lose its server.
    reap(|| {
        !usage::is_mount_point(folder)
            || (usage::is_dead(folder) && backend::unmount(folder, true).is_ok())
    })
}

/// The process itself: standard input is the line to the server, standard output the file.
pub(crate) fn run(arguments: &[OsString]) -> ExitCode {
    let _ = rustix::thread::set_name(c"vhdkit-holder");
    let [sector_size, access, name] = arguments else {
        return ExitCode::FAILURE;
    };
    if sector_size == REAP_UBLK {
        return reap_ublk(access, name);
    }
    if sector_size == REAP_FOLDER {
        return reap_folder(access);
    }
    let Some(sector_size) = sector_size.to_str().and_then(|s| s.parse().ok()) else {
        return ExitCode::FAILURE;
    };
    let settings = LoopSettings {
        sector_size,
        size_limit: 0,
        read_only: access == "ro",
        auto_clear: true,
        name: name.as_bytes(),
    };
    let Ok(stream) = io::stdin().as_fd().try_clone_to_owned() else {
        return ExitCode::FAILURE;
    };
    let mut line = Line::new(UnixStream::from(stream));
    let device = match configure(settings) {
        Ok((number, device)) => {
            let told = line.send(&Said::Device(number));
            told.ok().map(|()| (number, device))
        }
        Err((action, errno)) => {
            let _ = line.send(&Said::Failed {
                action: action.to_owned(),
                errno: errno.raw_os_error(),
            });
            None
        }
    };
    let Some((number, device)) = device else {
        return ExitCode::FAILURE;
    };
    let path = PathBuf::from(format!("/dev/loop{number}"));
    let mut looks: &[Duration] = &[];
    loop {
        if wait(&line, looks.first()) {
            match line.receive::<()>() {
                Ok(Some(())) => looks = &LOOKS,
                // The end of the server.
                _ => break,
            }
        } else if let [_, later @ ..] = looks {
            let _ = partitions::refresh(&path, sector_size);
            looks = later;
        }
    }
    drop(device);
    ExitCode::SUCCESS
}

/// Waits until the server says something or ends, at most so long; false if that was not it.
fn wait(line: &Line, most: Option<&Duration>) -> bool {
    let most = most.and_then(|&most| Timespec::try_from(most).ok());
    let mut entries = [PollFd::new(line.stream(), PollFlags::IN)];
    !matches!(rustix::event::poll(&mut entries, most.as_ref()), Ok(0))
}

fn configure(
    settings: LoopSettings<'_>,
) -> std::result::Result<(u32, File), (&'static str, Errno)> {
    let open = |path: &str| {
        OpenOptions::new()
            .read(true)
            .write(!settings.read_only || path == CONTROL)
            .open(path)
            .map_err(|e| Errno::from_io_error(&e).unwrap_or(Errno::IO))
    };
    let control = open(CONTROL).map_err(|e| ("open /dev/loop-control", e))?;
    let mut result = Err(("find a loop device", Errno::BUSY));
    for _ in 0..ATTEMPTS {
        let number = sys::free_loop(&control).map_err(|e| ("find a loop device", e))?;
        let device = match open(&format!("/dev/loop{number}")) {
            Ok(device) => device,
            // Somebody removed it again.
            Err(Errno::NXIO) => continue,
            Err(e) => return Err(("open the loop device", e)),
        };
        match sys::configure_loop(&device, io::stdout().as_fd(), settings) {
            Ok(()) => {
                result = Ok((number, device));
                break;
            }
            // Somebody else was faster.
            Err(Errno::BUSY) => {}
            Err(e) => return Err(("configure the loop device", e)),
        }
    }
    // The device has the file now.
    if let Ok(null) = OpenOptions::new().write(true).open("/dev/null") {
        let _ = rustix::stdio::dup2_stdout(null);
    }
    result
}

const CONTROL: &str = "/dev/loop-control";
