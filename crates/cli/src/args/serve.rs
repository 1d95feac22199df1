//! The command that hands disks to other programs.

use std::net::IpAddr;
use std::path::PathBuf;

use clap::Args;

use super::{ChainArgs, FormatName, OutputArgs};

const SERVE_EXAMPLES: &str = "\
Examples:
  vhdkit serve disk.vhdx
  vhdkit serve base.vhd child.avhdx --socket /run/disks.sock
  vhdkit serve disk.vhdx --port 10809 --read-only
  vhdkit serve disk.vhdx --port 10809 --bind 0.0.0.0 --tls-dir /etc/pki/nbd
  nbdinfo [ vhdkit serve disk.vhdx ]
  qemu-img convert nbd+unix:///disk.vhdx?socket=disk.sock disk.qcow2";

/// Serve disks over NBD to QEMU, libnbd's tools, Linux and others
///
/// Each disk is an export with the name of its file; a single one is the default
/// export too. Clients come in through a Unix socket that only you can connect to,
/// or, with --port, through TCP on this machine. Sockets passed in the manner of
/// systemd (LISTEN_FDS) are used instead of an own one; then nothing is written
/// about where the disks are.
///
/// Serves until Ctrl-C or SIGTERM: what is underway is finished, then the disks are
/// flushed and closed. The URIs are written when clients can connect.
#[derive(Args, Debug)]
#[command(after_help = SERVE_EXAMPLES, arg_required_else_help = true)]
pub(crate) struct ServeArgs {
    /// The disks
    #[arg(value_name = "PATH", required = true)]
    pub(crate) paths: Vec<PathBuf>,

    /// Names of the exports, in the order of the disks [default: the names of the files]
    #[arg(long, value_name = "NAME")]
    pub(crate) name: Vec<String>,

    /// Refuse all changes; the files are not changed either
    #[arg(long)]
    pub(crate) read_only: bool,

    /// Take the files as this format instead of looking: raw for disks whose guests
    /// are not trusted
    #[arg(long, value_enum)]
    pub(crate) format: Option<FormatName>,

    /// End when the last client has gone, also one that only asked for the list; one
    /// that says nothing is none
    #[arg(long)]
    pub(crate) exit_when_idle: bool,

    /// The Unix socket; one that a dead server has left is replaced [default: a new one
    /// in $XDG_RUNTIME_DIR or the folder for temporary files]
    #[arg(long, value_name = "PATH", help_heading = "Network")]
    pub(crate) socket: Option<PathBuf>,

    /// The TCP port; 0 takes any that is free
    #[arg(long, value_name = "PORT", help_heading = "Network")]
    pub(crate) port: Option<u16>,

    /// The address to listen at
    #[arg(
        long,
        value_name = "ADDRESS",
        default_value = "127.0.0.1",
        requires = "port",
        help_heading = "Network"
    )]
    pub(crate) bind: IpAddr,

    /// Talk TLS only, with server-cert.pem and server-key.pem of this folder; with a
    /// ca-cert.pem in it, only to clients that have a certificate of that authority
    #[arg(long, value_name = "DIR", help_heading = "Network")]
    pub(crate) tls_dir: Option<PathBuf>,

    #[command(flatten)]
    pub(crate) parents: ChainArgs,

    #[command(flatten)]
    pub(crate) output: OutputArgs,
}
