//! The server: lets clients in, knows who is there, and ends in order.
//!
//! 1. Each connection has at most [`Limits::handshake_time`] until it has chosen an export. When many are at it, the
//!    one that has been at it for longest has to go, of the [`Peer`] that has most of them: clients that say nothing
//!    keep nobody out.
//! 2. At most [`Limits::clients`] are served at the same time; others are told so. One that has chosen an export may stay
//!    as long as it likes without a word, as the disk of an idle machine does. So that nobody keeps others out that way, a
//!    [`Peer`] gets another place only as long as it has no more than are free: one alone can take about half of them, the
//!    next half of the rest. To take them all takes many peers; a Unix socket is its owner's alone, and over TCP, TLS with
//!    clients' certificates decides who may come at all.
//! 3. A client that does not read its replies, or sends half a request, holds its own threads and buffers and nothing
//!    else.

use std::collections::BTreeMap;
use std::io;
use std::os::unix::net::UnixStream;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use vhdkit::{Error, Result};

use crate::connection::{Admission, Service, serve};
use crate::export::Catalog;
use crate::listen::{Listener, Peer};
use crate::socket::Socket;
use crate::tls::TlsIdentity;

/// What clients may take.
#[derive(Clone, Copy, Debug)]
#[expect(clippy::exhaustive_structs, reason = "a plain request")]
pub struct Limits {
    /// Clients that are served at the same time, of which one process or machine can have about half. Each takes up to
    /// 14 MiB of memory, 2 of them the system's, and 17 threads when it has many requests underway, and a few hundred
    /// KiB and one thread else.
    pub clients: usize,
    /// Connections that have not chosen an export yet.
    pub handshakes: usize,
    /// How long choosing one may take, TLS included.
    pub handshake_time: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            clients: 128,
            handshakes: 32,
            handshake_time: Duration::from_secs(10),
        }
    }
}

/// A running server. Dropping it ends it at once.
pub struct Server {
    shared: Arc<Shared>,
    acceptor: Option<JoinHandle<()>>,
}

/// Ends a server from anywhere, such as a signal handler's thread.
#[derive(Clone)]
pub struct Stopper(Weak<Shared>);

struct Shared {
    service: Service,
    limits: Limits,
    registry: Mutex<Registry>,
    changed: Condvar,
    /// Wakes the thread that lets clients in.
    wake: UnixStream,
}

#[derive(Default)]
struct Registry {
    next: u64,
    /// In the order in which they came.
    connections: BTreeMap<u64, Connected>,
    /// Somebody has come who meant us: one that was told something, if only the list of exports. Whoever just looks
    /// whether anybody is there is not.
    visited: bool,
}

struct Connected {
    socket: Arc<Socket>,
    peer: Peer,
    transmitting: bool,
}

impl Registry {
    fn count(&self, transmitting: bool) -> usize {
        let same = |c: &&Connected| c.transmitting == transmitting;
        self.connections.values().filter(same).count()
    }

    /// Of those at their handshake the one that has been at it for longest, of the peer that has most of them.
    fn to_be_shown_out(&self) -> Option<u64> {
        let waiting = || self.connections.iter().filter(|(_, c)| !c.transmitting);
        let of = |peer: Peer| waiting().filter(|(_, c)| c.peer == peer).count();
        // Of several the last one is taken: the oldest.
        let most = waiting().rev().max_by_key(|(_, c)| of(c.peer));
        most.map(|(&id, _)| id)
    }

    /// True if a connection may be served as well; see the module.
    fn has_place(&self, id: u64, limit: usize) -> bool {
        let Some(asking) = self.connections.get(&id) else {
            return false;
        };
        let served = self.connections.values().filter(|c| c.transmitting);
        let (own, others): (Vec<_>, Vec<_>) = served.partition(|c| c.peer == asking.peer);
        let free = limit.saturating_sub(own.len() + others.len());
        free > 0 && own.len() <= free
    }
}

impl Shared {
    fn registry(&self) -> MutexGuard<'_, Registry> {
        self.registry.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_stopping(&self) -> bool {
        self.service.stopping.load(Ordering::Acquire)
    }

    fn stop(&self) {
        self.service.stopping.store(true, Ordering::Release);
        // If the pipe is full it wakes anyway.
        let _ = io::Write::write(&mut &self.wake, &[0]);
        // Under the lock, so that nobody has looked before and waits after.
        let registry = self.registry();
        for connected in registry.connections.values() {
            if connected.transmitting {
                connected.socket.stop_receiving();
            } else {
                connected.socket.hang_up();
            }
        }
        drop(registry);
        self.changed.notify_all();
    }
}

impl Stopper {
    /// Asks it to end: no further clients, no further requests. Does not wait.
    pub fn stop(&self) {
        if let Some(shared) = self.0.upgrade() {
            shared.stop();
        }
    }
}

impl Server {
    /// Serves the exports of a catalog. With `tls` nobody is served without.
    ///
    /// # Errors
    /// What the system says when it gives no thread or no sockets.
    pub fn start(
        catalog: Catalog,
        tls: Option<TlsIdentity>,
        limits: Limits,
        listeners: Vec<Listener>,
    ) -> Result<Self> {
        let failed = |e: io::Error| Error::io("starting the server", e);
        let (wake, woken) = UnixStream::pair().map_err(failed)?;
        wake.set_nonblocking(true).map_err(failed)?;
        for listener in &listeners {
            // Whoever connects and is gone before it is let in must not make everybody wait.
            listener.set_nonblocking().map_err(failed)?;
        }
        let shared = Arc::new(Shared {
            service: Service {
                catalog: Arc::new(catalog),
                tls,
                stopping: Arc::default(),
            },
            limits,
            registry: Mutex::default(),
            changed: Condvar::new(),
            wake,
        });
        let acceptor = {
            let shared = shared.clone();
            std::thread::Builder::new()
                .name("nbd accept".into())
                .spawn(move || accept(&shared, &listeners, &woken))
                .map_err(failed)?
        };
        Ok(Self {
            shared,
            acceptor: Some(acceptor),
        })
    }

    /// A way to end it from elsewhere.
    pub fn stopper(&self) -> Stopper {
        Stopper(Arc::downgrade(&self.shared))
    }

    /// How many clients are being served.
    pub fn clients(&self) -> usize {
        self.shared.registry().count(true)
    }

    /// Waits until it is asked to end; with `until_idle` also until a client has come and none is left. One that was told
    /// about exports has come; one that has only connected, or may not know anything (no TLS), has not.
    pub fn wait(&self, until_idle: bool) {
        let mut registry = self.shared.registry();
        let is_idle = |r: &Registry| until_idle && r.visited && r.connections.is_empty();
        while !self.shared.is_stopping() && !is_idle(&registry) {
            let waited = self.shared.changed.wait(registry);
            registry = waited.unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Ends it: what is underway is finished and answered, as long as `grace` allows; then whoever is left is
    /// disconnected. When this returns nothing touches the exports any more, and files of sockets are gone.
    pub fn close(mut self, grace: Duration) {
        self.end(grace);
    }

    fn end(&mut self, grace: Duration) {
        let Some(acceptor) = self.acceptor.take() else {
            return;
        };
        self.shared.stop();
        // A panic there has been reported.
        let _ = acceptor.join();
        // Also those that came in between.
        self.shared.stop();
        let deadline = Instant::now() + grace;
        let mut registry = self.shared.registry();
        while !registry.connections.is_empty() {
            let left = deadline.saturating_duration_since(Instant::now());
            let patience = if left.is_zero() {
                for connected in registry.connections.values() {
                    connected.socket.hang_up();
                }
                // A request of the disk that hangs is waited for.
                Duration::from_millis(100)
            } else {
                left
            };
            let waited = self.shared.changed.wait_timeout(registry, patience);
            registry = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        drop(registry);
        // A thread that has given up its place lets go of the exports in the next instant; the caller may count on
        // being the only one that has them.
        while Arc::strong_count(&self.shared) > 1 {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.end(Duration::ZERO);
    }
}

/// Lets clients in until the server ends.
fn accept(shared: &Arc<Shared>, listeners: &[Listener], woken: &UnixStream) {
    while !shared.is_stopping() {
        let mut fds: Vec<PollFd<'_>> = listeners
            .iter()
            .map(|listener| PollFd::new(listener, PollFlags::IN))
            .collect();
        fds.push(PollFd::new(woken, PollFlags::IN));
        if poll(&mut fds, None).is_err() || shared.is_stopping() {
            continue;
        }
        for (listener, fd) in listeners.iter().zip(&fds) {
            if fd.revents().is_empty() {
                continue;
            }
            match listener.accept() {
                Ok((socket, peer)) => let_in(shared, Arc::new(Socket::from(socket)), peer),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                // Out of descriptors, mostly: it would be asked again at once.
                Err(_) => std::thread::sleep(Duration::from_millis(20)),
            }
        }
    }
}

/// Begins a connection.
fn let_in(shared: &Arc<Shared>, socket: Arc<Socket>, peer: Peer) {
    let mut registry = shared.registry();
    if registry.count(false) >= shared.limits.handshakes
        && let Some(last) = registry.to_be_shown_out()
        && let Some(connected) = registry.connections.remove(&last)
    {
        connected.socket.hang_up();
    }
    let id = registry.next;
    registry.next += 1;
    let connected = Connected {
        socket: socket.clone(),
        peer,
        transmitting: false,
    };
    registry.connections.insert(id, connected);
    drop(registry);
    let place = Place {
        id,
        shared: shared.clone(),
    };
    // Without a thread the place is given up with the closure, and the socket closed.
    let _ = std::thread::Builder::new()
        .name("nbd client".into())
        .spawn(move || {
            let deadline = Instant::now() + place.shared.limits.handshake_time;
            serve(&place.shared.service, socket, deadline, &place);
        });
}

/// The place of a connection in the registry, given up when dropped.
struct Place {
    id: u64,
    shared: Arc<Shared>,
}

impl Admission for Place {
    fn is_full(&self) -> bool {
        let limit = self.shared.limits.clients;
        !self.shared.registry().has_place(self.id, limit)
    }

    fn admit(&self) -> bool {
        let mut registry = self.shared.registry();
        if !registry.has_place(self.id, self.shared.limits.clients) || self.shared.is_stopping() {
            return false;
        }
        let Some(connected) = registry.connections.get_mut(&self.id) else {
            return false;
        };
        connected.transmitting = true;
        registry.visited = true;
        true
    }

    fn note_visit(&self) {
        self.shared.registry().visited = true;
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.shared.registry().connections.remove(&self.id);
        self.shared.changed.notify_all();
    }
}
