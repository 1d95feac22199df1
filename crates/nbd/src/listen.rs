//! Where clients come in: Unix sockets for their owner alone, TCP ports, and sockets that somebody else has opened.

use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use listenfd::ListenFd;
use nix::sys::socket::getsockopt;
use nix::sys::socket::sockopt::PeerCredentials;
use rustix::fs::{Mode, fchmod};
use rustix::net::sockopt;
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, listen, socket_with,
};
use vhdkit::{Error, ErrorKind, Result};

/// Clients that wait to be let in.
const BACKLOG: i32 = 64;
/// How long a client over TCP may be silent before its machine is asked whether it is still there, how often it is
/// asked, and at which intervals. The system's defaults would keep the place of one that is gone for two hours.
const SILENCE: Duration = Duration::from_mins(1);
const QUESTIONS: u32 = 6;
const INTERVAL: Duration = Duration::from_secs(10);

/// A place where clients come in.
pub struct Listener {
    socket: Listening,
    /// The file of a socket that we made, and which it was.
    file: Option<(PathBuf, u64, u64)>,
}

enum Listening {
    Unix(UnixListener),
    Tcp(TcpListener),
}

/// Who a client is, as far as fairness goes: connections of one peer share what one may have.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Peer {
    /// A process of this system; zero for all that are outside this container.
    Process(i32),
    /// A machine. Of an IPv6 address only the network, in which anybody has as many addresses as they like.
    Machine(IpAddr),
    /// It cannot be found out.
    Unknown,
}

impl From<IpAddr> for Peer {
    fn from(address: IpAddr) -> Self {
        Peer::Machine(match address.to_canonical() {
            IpAddr::V6(six) if !six.is_loopback() => {
                Ipv6Addr::from_bits(six.to_bits() >> 64 << 64).into()
            }
            other => other,
        })
    }
}

/// Where a listener is.
#[derive(Clone, PartialEq, Eq, Debug)]
#[expect(clippy::exhaustive_enums, reason = "there are no other sockets here")]
pub enum Address {
    /// A Unix socket with its file, if it has one.
    Unix(Option<PathBuf>),
    /// An address and a port.
    Tcp(SocketAddr),
}

impl Listener {
    /// A new Unix socket that only its owner can connect to. A socket that a server which is gone has left is
    /// replaced. The file is removed when the listener is dropped.
    ///
    /// # Errors
    /// [`ErrorKind::SharingViolation`] if a server is there, [`ErrorKind::AlreadyExists`] if something else is,
    /// [`ErrorKind::InvalidParameter`] if the path is too long for a socket, and what the system says.
    pub fn unix(path: &Path) -> Result<Self> {
        Self::unix_here(path).map_err(|e| e.with_path(path).while_doing("cannot listen at"))
    }

    fn unix_here(path: &Path) -> Result<Self> {
        remove_stale(path)?;
        let address = SocketAddrUnix::new(path).map_err(|_| {
            Error::new(
                ErrorKind::InvalidParameter,
                format!(
                    "the path of a socket has at most 107 bytes, this one has {}",
                    path.as_os_str().len()
                ),
            )
            .with_hint("choose a shorter path, or one relative to the current folder")
        })?;
        let failed = |e: rustix::io::Errno| {
            Error::io("making the socket", e.into())
                .with_better_hint("choose a path in a folder that is there and can be written to")
        };
        let socket = socket_with(
            AddressFamily::UNIX,
            SocketType::STREAM,
            SocketFlags::CLOEXEC,
            None,
        )
        .map_err(failed)?;
        // The file takes its permissions from the socket, so that at no moment others can connect.
        fchmod(&socket, Mode::RUSR | Mode::WUSR).map_err(failed)?;
        bind(&socket, &address).map_err(failed)?;
        let metadata =
            std::fs::symlink_metadata(path).map_err(|e| Error::io("looking at it", e))?;
        let listener = Self {
            socket: Listening::Unix(UnixListener::from(socket)),
            file: Some((path.to_owned(), metadata.dev(), metadata.ino())),
        };
        listen(listener.as_fd(), BACKLOG).map_err(failed)?;
        Ok(listener)
    }

    /// A TCP port; with port 0 any that is free.
    ///
    /// # Errors
    /// [`ErrorKind::SharingViolation`] if the port is taken, and what the system says.
    pub fn tcp(address: SocketAddr) -> Result<Self> {
        let listener = TcpListener::bind(address).map_err(|e| {
            let kind = e.kind();
            let error = Error::io(&format!("listening at {address}"), e);
            match kind {
                io::ErrorKind::AddrInUse => error
                    .with_kind(ErrorKind::SharingViolation)
                    .with_hint("choose another port; 0 takes any that is free"),
                io::ErrorKind::PermissionDenied => error.with_better_hint(
                    "ports below 1024 are for root: choose a higher one, such as 10809, which is NBD's own",
                ),
                _ => error.with_hint("choose an address of this machine, and a port that may be used"),
            }
        })?;
        Ok(Self {
            socket: Listening::Tcp(listener),
            file: None,
        })
    }

    /// The sockets that systemd, or whoever started this process in its manner, has passed (`LISTEN_FDS` and
    /// `LISTEN_PID`); empty if none were.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidParameter`] if one of them is not a listening stream socket.
    pub fn inherited() -> Result<Vec<Self>> {
        let mut passed = ListenFd::from_env();
        let mut listeners = Vec::new();
        for place in 0..passed.len() {
            let socket = match passed.take_unix_listener(place) {
                Ok(Some(unix)) => Some(Listening::Unix(unix)),
                Ok(None) => None,
                Err(_) => passed
                    .take_tcp_listener(place)
                    .map_err(|e| {
                        Error::new(
                            ErrorKind::InvalidParameter,
                            format!("passed socket {place} cannot be listened at: {e}"),
                        )
                        .with_hint("pass listening stream sockets (LISTEN_FDS)")
                    })?
                    .map(Listening::Tcp),
            };
            listeners.extend(socket.map(|socket| Self { socket, file: None }));
        }
        Ok(listeners)
    }

    /// Where it is.
    pub fn address(&self) -> Address {
        match &self.socket {
            Listening::Unix(unix) => {
                let address = unix.local_addr().ok();
                Address::Unix(address.and_then(|a| a.as_pathname().map(Path::to_owned)))
            }
            Listening::Tcp(tcp) => match tcp.local_addr() {
                Ok(address) => Address::Tcp(address),
                Err(_) => Address::Unix(None),
            },
        }
    }

    /// The next client.
    pub(crate) fn accept(&self) -> io::Result<(OwnedFd, Peer)> {
        match &self.socket {
            Listening::Unix(unix) => {
                let stream = unix.accept()?.0;
                let peer = match getsockopt(&stream, PeerCredentials) {
                    Ok(known) => Peer::Process(known.pid()),
                    Err(_) => Peer::Unknown,
                };
                Ok((stream.into(), peer))
            }
            Listening::Tcp(tcp) => {
                let (stream, address) = tcp.accept()?;
                // Replies are sent when they are complete, and a client whose machine is gone is noticed.
                stream.set_nodelay(true)?;
                sockopt::set_socket_keepalive(&stream, true)?;
                sockopt::set_tcp_keepidle(&stream, SILENCE)?;
                sockopt::set_tcp_keepcnt(&stream, QUESTIONS)?;
                sockopt::set_tcp_keepintvl(&stream, INTERVAL)?;
                Ok((stream.into(), address.ip().into()))
            }
        }
    }

    /// Accepting does not wait.
    pub(crate) fn set_nonblocking(&self) -> io::Result<()> {
        match &self.socket {
            Listening::Unix(unix) => unix.set_nonblocking(true),
            Listening::Tcp(tcp) => tcp.set_nonblocking(true),
        }
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match &self.socket {
            Listening::Unix(unix) => unix.as_fd(),
            Listening::Tcp(tcp) => tcp.as_fd(),
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Some((path, dev, ino)) = &self.file
            && std::fs::symlink_metadata(path).is_ok_and(|m| (m.dev(), m.ino()) == (*dev, *ino))
        {
            let _ = std::fs::remove_file(path);
        }
    }
}

/// Makes way for a new socket, if what is there is a socket that nobody listens at.
fn remove_stale(path: &Path) -> Result<()> {
    let metadata = match std::fs::symlink_metadata(path) {
        Ok(metadata) => metadata,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) => {
            return Err(Error::io("looking at it", e)
                .with_better_hint("choose another path for the socket"));
        }
    };
    if !metadata.file_type().is_socket() {
        return Err(Error::new(
            ErrorKind::AlreadyExists,
            "there is a file that is not a socket",
        )
        .with_hint("choose another path for the socket"));
    }
    match UnixStream::connect(path) {
        Err(e) if e.kind() == io::ErrorKind::ConnectionRefused => std::fs::remove_file(path)
            .map_err(|e| {
                Error::io("removing the old socket", e)
                    .with_better_hint("choose another path for the socket")
            }),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        Ok(_) => Err(
            Error::new(ErrorKind::SharingViolation, "a server is listening there")
                .with_hint("stop it, or choose another path for the socket"),
        ),
        Err(e) => Err(Error::io("connecting to the socket that is there", e)
            .with_better_hint("choose another path for the socket")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_that_is_too_long_is_told() {
        let path = Path::new("/tmp").join("x".repeat(120));
        let error = Listener::unix(&path).err().unwrap();
        assert_eq!(error.kind(), ErrorKind::InvalidParameter);
        assert!(error.to_string().contains("107"), "{error}");
    }

    #[test]
    fn a_machine_is_one_peer_under_all_its_addresses() {
        let peer = |text: &str| Peer::from(text.parse::<IpAddr>().unwrap());
        assert_eq!(peer("2001:db8::1"), peer("2001:db8::ffff:2"));
        assert_ne!(peer("2001:db8::1"), peer("2001:db8:0:1::1"));
        assert_eq!(peer("::ffff:10.0.0.1"), peer("10.0.0.1"));
        assert_ne!(peer("10.0.0.2"), peer("10.0.0.1"));
    }

    #[test]
    fn a_machine_that_is_gone_is_noticed_within_minutes() {
        let listener = Listener::tcp("127.0.0.1:0".parse().unwrap()).unwrap();
        let Address::Tcp(address) = listener.address() else {
            panic!("no address");
        };
        let _client = std::net::TcpStream::connect(address).unwrap();
        let (socket, peer) = listener.accept().unwrap();
        assert_eq!(peer, Peer::Machine(address.ip()));
        assert!(sockopt::socket_keepalive(&socket).unwrap());
        let idle = sockopt::tcp_keepidle(&socket).unwrap();
        let more =
            sockopt::tcp_keepintvl(&socket).unwrap() * sockopt::tcp_keepcnt(&socket).unwrap();
        assert!(
            idle + more <= Duration::from_mins(3),
            "{idle:?} and {more:?}"
        );
    }
}
