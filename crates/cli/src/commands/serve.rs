//! `vhdkit serve`: disks over NBD.

use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use vhdkit::disk::detect_format;
use vhdkit::image::Format;
use vhdkit::storage::{Access, FileStorage};
use vhdkit::{ErrorKind, VirtualDisk};
use vhdkit_nbd::{Address, Catalog, DiskExport, Limits, Listener, Server, TlsIdentity};

use super::{Session, text};
use crate::args::ServeArgs;
use crate::failure::{DONE, Failure};
use crate::{formats, output, size};

/// How long requests that are underway may take when the server ends.
const GRACE: Duration = Duration::from_secs(10);

/// The fields of the JSON output. Sizes are in bytes.
#[derive(Serialize)]
struct Serving {
    pid: u32,
    tls: bool,
    exports: Vec<Served>,
}

#[derive(Serialize)]
struct Served {
    name: String,
    path: String,
    virtual_size: u64,
    read_only: bool,
    uris: Vec<String>,
}

pub(crate) fn run(args: &ServeArgs, session: &mut Session) -> Result<u8, Failure> {
    let names = names(args)?;
    if args.parents.names_parents() && args.paths.len() > 1 {
        return Err(
            Failure::usage("--parent belongs to one disk, and several are named")
                .hint("serve that disk with a server of its own"),
        );
    }
    let tls = match &args.tls_dir {
        Some(folder) => Some(TlsIdentity::from_folder(folder)?),
        None => None,
    };
    let mut disks = Vec::new();
    let mut catalog = Catalog::new();
    for (path, name) in args.paths.iter().zip(&names) {
        let disk = Arc::new(open(args, path)?);
        let export = DiskExport::new(disk.clone(), args.read_only);
        catalog.add(name, Arc::new(export))?;
        disks.push(disk);
    }
    let inherited = Listener::inherited()?;
    // Whoever passes sockets knows where they are, and may want standard output for something else.
    let quiet = !inherited.is_empty() && !args.output.json;
    let listeners = listeners(args, inherited)?;
    let addresses: Vec<Address> = listeners.iter().map(Listener::address).collect();
    warn_about(&addresses, tls.is_some());
    let secure = tls.is_some();
    let server = Server::start(catalog, tls, Limits::default(), listeners)?;
    let stopper = server.stopper();
    session.interrupt.calls(move || stopper.stop());

    let exports = disks.iter().zip(&names).map(|(disk, name)| Served {
        name: name.clone(),
        path: text(&disk.path()),
        virtual_size: disk.virtual_size(),
        read_only: !disk.is_writable(),
        uris: addresses
            .iter()
            .map(|address| uri(address, name, secure))
            .collect(),
    });
    let serving = Serving {
        pid: std::process::id(),
        tls: secure,
        exports: exports.collect(),
    };
    if !quiet {
        show(&serving, args.output.json, session)?;
    }

    server.wait(args.exit_when_idle);
    server.close(GRACE);
    // Each is closed, whatever becomes of the others.
    let mut failed = None;
    for disk in disks {
        let closed = disk.flush().map_err(Failure::from);
        let closed = closed.and(super::close(disk));
        failed = failed.or(closed.err());
    }
    match failed {
        Some(failure) => Err(failure),
        None => Ok(DONE),
    }
}

fn names(args: &ServeArgs) -> Result<Vec<String>, Failure> {
    let names: Vec<String> = if args.name.is_empty() {
        let own = |path: &PathBuf| {
            let name = path.file_name().unwrap_or(path.as_os_str());
            name.to_string_lossy().into_owned()
        };
        args.paths.iter().map(own).collect()
    } else {
        args.name.clone()
    };
    if names.len() != args.paths.len() {
        return Err(Failure::usage(format!(
            "there are {} names for {} disks",
            names.len(),
            args.paths.len()
        ))
        .hint("give one --name for each disk, in the same order, or none"));
    }
    for (i, name) in names.iter().enumerate() {
        if names[..i].contains(name) {
            return Err(
                Failure::usage(format!("two exports would be called {name}"))
                    .hint("tell them apart with one --name for each disk"),
            );
        }
    }
    Ok(names)
}

fn open(args: &ServeArgs, path: &Path) -> Result<VirtualDisk, Failure> {
    let mut options = args.parents.open_options()?;
    let read_only = args.read_only || is_iso(path);
    if let Some(format) = args.format {
        options = options.format(format.into());
    } else if read_only {
        formats::warn_if_unlike_its_name(path);
    } else {
        formats::refuse_without_signature(path)?;
    }
    options.writable(!read_only).open(path).map_err(|e| {
        if !read_only && may_only_be_read(&e, path) {
            return e
                .with_better_hint("to serve it without changing it, use --read-only")
                .into();
        }
        let hint = match e.kind() {
            ErrorKind::SharingViolation => {
                "wait until the other program has closed it; several can read it at once with --read-only"
            }
            _ => return e.into(),
        };
        Failure::from(e).hint(hint)
    })
}

/// True if that is all that is wrong.
fn may_only_be_read(error: &vhdkit::Error, disk: &Path) -> bool {
    matches!(
        error.kind(),
        ErrorKind::AccessDenied | ErrorKind::WriteProtected
    ) && error.path() == Some(disk)
        && std::fs::File::open(disk).is_ok()
}

/// Nobody writes to these.
fn is_iso(path: &Path) -> bool {
    FileStorage::open(path, Access::ReadOnly)
        .and_then(|storage| detect_format(&storage))
        .is_ok_and(|format| format == Format::Iso)
}

fn listeners(args: &ServeArgs, mut listeners: Vec<Listener>) -> Result<Vec<Listener>, Failure> {
    if let Some(path) = &args.socket {
        listeners.push(Listener::unix(path)?);
    }
    if let Some(port) = args.port {
        listeners.push(Listener::tcp(SocketAddr::new(args.bind, port))?);
    }
    if listeners.is_empty() {
        let folder = std::env::var_os("XDG_RUNTIME_DIR")
            .map(PathBuf::from)
            .filter(|folder| folder.is_dir())
            .unwrap_or_else(std::env::temp_dir);
        let path = folder.join(format!("vhdkit-nbd-{}.sock", std::process::id()));
        listeners.push(Listener::unix(&path)?);
    }
    Ok(listeners)
}

/// Says on standard error if others can come in.
fn warn_about(addresses: &[Address], tls: bool) {
    for address in addresses {
        if let Address::Tcp(address) = address
            && !address.ip().is_loopback()
            && !tls
        {
            output::warn(&format!(
                "anybody who reaches {address} can read and change the disks, and what goes there can be overheard; use --tls-dir"
            ));
        }
    }
}

fn show(serving: &Serving, json: bool, session: &mut Session) -> Result<(), Failure> {
    if json {
        session.out.json(serving)?;
    } else {
        for export in &serving.exports {
            let access = if export.read_only { ", read-only" } else { "" };
            let size = size::short(export.virtual_size);
            for uri in &export.uris {
                session
                    .out
                    .line(format!("serving {} ({size}{access}) at {uri}", export.path))?;
            }
        }
    }
    session.out.flush()
}

/// Where a client finds an export.
fn uri(address: &Address, name: &str, tls: bool) -> String {
    let scheme = if tls { "nbds" } else { "nbd" };
    let name = encode(name.as_bytes(), b"-._~/");
    match address {
        Address::Unix(Some(path)) => {
            let path = std::path::absolute(path).unwrap_or_else(|_| path.clone());
            let path = encode(path.as_os_str().as_encoded_bytes(), b"-._~/");
            format!("{scheme}+unix:///{name}?socket={path}")
        }
        Address::Unix(None) => format!("{scheme}+unix:///{name}"),
        Address::Tcp(address) => {
            let host = match address.ip() {
                // A certificate has a name, not an address.
                IpAddr::V4(Ipv4Addr::LOCALHOST) => "localhost".to_owned(),
                IpAddr::V4(ip) => ip.to_string(),
                IpAddr::V6(ip) => format!("[{ip}]"),
            };
            format!("{scheme}://{host}:{}/{name}", address.port())
        }
    }
}

/// Letters, digits and what is in `plain` as they are, everything else as %XX.
fn encode(bytes: &[u8], plain: &[u8]) -> String {
    let mut out = String::new();
    for &byte in bytes {
        if byte.is_ascii_alphanumeric() || plain.contains(&byte) {
            out.push(char::from(byte));
        } else {
            // Writing to a string cannot fail.
            let _ = write!(out, "%{byte:02X}");
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uris_say_where_and_what() {
        let unix = Address::Unix(Some("/run/a b.sock".into()));
        assert_eq!(
            uri(&unix, "my disk.vhdx", false),
            "nbd+unix:///my%20disk.vhdx?socket=/run/a%20b.sock"
        );
        let tcp = Address::Tcp("127.0.0.1:10809".parse().unwrap());
        assert_eq!(uri(&tcp, "a.vhd", true), "nbds://localhost:10809/a.vhd");
        let six = Address::Tcp("[::1]:7".parse().unwrap());
        assert_eq!(uri(&six, "a", false), "nbd://[::1]:7/a");
    }
}
