//! What a connection sends and receives through: a socket, with TLS or without.

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::Instant;

use crate::socket::Socket;
use crate::tls::{Tls, TlsIdentity, Wait};

pub(crate) struct Channel {
    socket: Arc<Socket>,
    tls: Option<Tls>,
    /// See [`Channel::widen`].
    is_wide: bool,
}

impl Channel {
    pub(crate) fn new(socket: Arc<Socket>) -> Self {
        Self {
            socket,
            tls: None,
            is_wide: false,
        }
    }

    /// Begins TLS. `early` is what was received of it already.
    pub(crate) fn start_tls(
        &mut self,
        identity: &TlsIdentity,
        early: &[u8],
        deadline: Instant,
    ) -> io::Result<()> {
        self.tls = Some(Tls::accept(identity, &self.socket, early, deadline)?);
        Ok(())
    }

    /// What is there already; `None` if nothing is. Zero at the end.
    pub(crate) fn try_recv(&self, buf: &mut [u8]) -> io::Result<Option<usize>> {
        match &self.tls {
            None => self.socket.try_recv(buf),
            Some(tls) => tls.recv(&self.socket, buf, Wait::Not),
        }
    }

    /// At least one byte, or zero at the end.
    pub(crate) fn recv(&self, buf: &mut [u8], deadline: Option<Instant>) -> io::Result<usize> {
        match &self.tls {
            None => self.socket.recv(buf, deadline),
            Some(tls) => {
                let count = tls.recv(&self.socket, buf, Wait::Until(deadline))?;
                Ok(count.unwrap_or(0))
            }
        }
    }

    /// All of it. Threads that send at the same time do so one after the other only if the caller sees to it.
    pub(crate) fn send(&self, bytes: &[u8], deadline: Option<Instant>) -> io::Result<()> {
        match &self.tls {
            None => self.socket.send(bytes, deadline),
            Some(tls) => tls.send(&self.socket, bytes, deadline),
        }
    }

    /// True if sending pages is faster: where the client has to wait for each of them it is not.
    pub(crate) fn sends_pages(&self) -> bool {
        self.has_pages() && self.is_wide
    }

    /// All of what is in a pipe, which are so many bytes. Only where [`Channel::sends_pages`].
    pub(crate) fn send_pipe(&self, pipe: BorrowedFd<'_>, length: usize) -> io::Result<()> {
        match &self.tls {
            None => self.socket.send_pipe(pipe, length),
            Some(_) => Err(io::ErrorKind::Unsupported.into()),
        }
    }

    /// True if the system can send and receive pages by itself. With TLS they have to be encrypted.
    pub(crate) fn has_pages(&self) -> bool {
        self.tls.is_none()
    }

    /// See [`Socket::try_recv_pipe`]. Only where [`Channel::has_pages`].
    pub(crate) fn try_recv_pipe(
        &self,
        pipe: BorrowedFd<'_>,
        length: usize,
    ) -> io::Result<Option<usize>> {
        match &self.tls {
            None => self.socket.try_recv_pipe(pipe, length),
            Some(_) => Err(io::ErrorKind::Unsupported.into()),
        }
    }

    /// See [`Socket::wait_to_recv`].
    pub(crate) fn wait_to_recv(&self) -> io::Result<()> {
        self.socket.wait_to_recv()
    }

    /// See [`Socket::widen`].
    pub(crate) fn widen(&mut self) {
        self.is_wide = self.socket.widen();
    }

    /// Ends the connection in order.
    pub(crate) fn close(&self, deadline: Instant) {
        if let Some(tls) = &self.tls {
            tls.close(&self.socket, deadline);
        }
        self.socket.hang_up();
    }

    /// Ends the connection, whatever waits for it.
    pub(crate) fn hang_up(&self) {
        self.socket.hang_up();
    }
}
