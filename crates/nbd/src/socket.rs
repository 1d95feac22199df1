//! A connected socket of any family, with deadlines.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, Shutdown, recv, send, sockopt};
use rustix::pipe::{SpliceFlags, splice};

/// What a Unix socket holds for a client.
const UNDERWAY: usize = 1 << 20;

/// Who may read and write at the same time: any number of threads.
pub(crate) struct Socket(OwnedFd);

impl From<OwnedFd> for Socket {
    fn from(fd: OwnedFd) -> Self {
        Self(fd)
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl Socket {
    /// Lets more be underway to the client: a Unix socket holds so little by itself that client and server would work in
    /// turns instead of at the same time. False if the system does not allow as much (`net.core.wmem_max`). TCP adapts by
    /// itself.
    pub(crate) fn widen(&self) -> bool {
        if sockopt::socket_domain(&self.0) != Ok(AddressFamily::UNIX) {
            return true;
        }
        sockopt::set_socket_send_buffer_size_force(&self.0, UNDERWAY)
            .or_else(|_| sockopt::set_socket_send_buffer_size(&self.0, UNDERWAY))
            .and_then(|()| sockopt::socket_send_buffer_size(&self.0))
            // Linux doubles it, for what it needs besides.
            .is_ok_and(|size| size >= 2 * UNDERWAY)
    }

    /// What is there already; `None` if nothing is. Zero at the end.
    pub(crate) fn try_recv(&self, buf: &mut [u8]) -> io::Result<Option<usize>> {
        loop {
            match recv(&self.0, &mut *buf, RecvFlags::DONTWAIT) {
                Ok((count, _)) => return Ok(Some(count)),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return Ok(None),
                Err(e) => return Err(e.into()),
            }
        }
    }

    /// At least one byte, or zero at the end.
    pub(crate) fn recv(&self, buf: &mut [u8], deadline: Option<Instant>) -> io::Result<usize> {
        if deadline.is_some() {
            loop {
                self.wait(PollFlags::IN, deadline)?;
                if let Some(count) = self.try_recv(buf)? {
                    return Ok(count);
                }
            }
        }
        loop {
            match recv(&self.0, &mut *buf, RecvFlags::empty()) {
                Ok((count, _)) => return Ok(count),
                Err(Errno::INTR) => {}
                Err(e) => return Err(e.into()),
            }
        }
    }

    /// Moves what is there already, at most `length` bytes, into a pipe, the pages themselves; `None` if nothing is, or
    /// the pipe has no room. Zero at the end.
    pub(crate) fn try_recv_pipe(
        &self,
        pipe: BorrowedFd<'_>,
        length: usize,
    ) -> io::Result<Option<usize>> {
        loop {
            match splice(&self.0, None, pipe, None, length, SpliceFlags::NONBLOCK) {
                Ok(count) => return Ok(Some(count)),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return Ok(None),
                Err(e) => return Err(e.into()),
            }
        }
    }

    /// Until something is there, or the end.
    pub(crate) fn wait_to_recv(&self) -> io::Result<()> {
        self.wait(PollFlags::IN, None)
    }

    /// All of it.
    pub(crate) fn send(&self, mut bytes: &[u8], deadline: Option<Instant>) -> io::Result<()> {
        while !bytes.is_empty() {
            let mut flags = SendFlags::NOSIGNAL;
            if deadline.is_some() {
                self.wait(PollFlags::OUT, deadline)?;
                flags |= SendFlags::DONTWAIT;
            }
            match send(&self.0, bytes, flags) {
                Ok(count) => bytes = &bytes[count..],
                Err(Errno::INTR | Errno::AGAIN) => {}
                Err(e) => return Err(e.into()),
            }
        }
        Ok(())
    }

    /// All of what is in a pipe, which are so many bytes. The pages themselves go: they are not copied before the client
    /// reads them. (If nobody is there any more this is a SIGPIPE, which programs in Rust ignore.)
    pub(crate) fn send_pipe(&self, pipe: BorrowedFd<'_>, mut length: usize) -> io::Result<()> {
        while length > 0 {
            match splice(pipe, None, &self.0, None, length, SpliceFlags::empty()) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(count) => length -= count,
                Err(Errno::INTR | Errno::AGAIN) => {}
                Err(e) => return Err(e.into()),
            }
        }
        Ok(())
    }

    fn wait(&self, what: PollFlags, deadline: Option<Instant>) -> io::Result<()> {
        let mut fds = [PollFd::new(&self.0, what)];
        loop {
            let left = match deadline {
                None => None,
                Some(deadline) => match deadline.checked_duration_since(Instant::now()) {
                    Some(left) if !left.is_zero() => Some(left),
                    _ => return Err(io::ErrorKind::TimedOut.into()),
                },
            };
            match poll(&mut fds, left.map(timespec).as_ref()) {
                Ok(0) | Err(Errno::INTR) => {}
                Ok(_) => return Ok(()),
                Err(e) => return Err(e.into()),
            }
        }
    }

    /// Nothing more comes in; what is underway in the other direction still arrives.
    pub(crate) fn stop_receiving(&self) {
        let _ = rustix::net::shutdown(&self.0, Shutdown::Read);
    }

    /// Ends all reading and writing, also that which waits now.
    pub(crate) fn hang_up(&self) {
        let _ = rustix::net::shutdown(&self.0, Shutdown::Both);
    }
}

pub(crate) fn timespec(duration: Duration) -> Timespec {
    Timespec {
        tv_sec: i64::try_from(duration.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: duration.subsec_nanos().into(),
    }
}
