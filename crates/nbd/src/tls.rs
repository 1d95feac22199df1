//! TLS: certificates from a folder, and the encryption of a connection. What TLS is, is rustls' business.

use std::io::{self, Read, Write};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig, ServerConnection};
use vhdkit::{Error, ErrorKind, Result};

use crate::socket::Socket;

/// Most that is received at once; a few records.
const RAW: usize = 64 << 10;

/// The server's side of TLS: its certificate, and whose clients are let in.
#[derive(Clone)]
pub struct TlsIdentity {
    config: Arc<ServerConfig>,
    verifies_clients: bool,
}

impl TlsIdentity {
    /// Reads `server-cert.pem` and `server-key.pem` of a folder, the names that QEMU and libnbd use. If there is a
    /// `ca-cert.pem`, only clients with a certificate of that authority are let in, and none that `ca-crl.pem` (if
    /// there) has revoked; without it any client is.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] and others of reading files; [`ErrorKind::InvalidParameter`] if a file does not hold
    /// what its name says or the two do not belong together.
    pub fn from_folder(folder: &Path) -> Result<Self> {
        let path = |name: &str| folder.join(name);
        let (certificate, key) = (path("server-cert.pem"), path("server-key.pem"));
        let chain: Vec<CertificateDer<'static>> = pem(&certificate)?;
        let private = PrivateKeyDer::from_pem_slice(&read(&key)?)
            .map_err(|e| unusable(&key, &format!("it holds no private key: {e}")))?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        provider
            .key_provider
            .load_private_key(private.clone_key())
            .map_err(|e| {
                // Of GnuTLS' ECDSA keys about half have a leading zero that does not belong there.
                unusable(&key, &e.to_string())
                    .with_hint("use an RSA or Ed25519 key, or rewrite an ECDSA key of certtool with openssl pkey")
            })?;
        let builder = ServerConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()
            .map_err(|e| unusable(&certificate, &e.to_string()))?;
        let authority = path("ca-cert.pem");
        let verifies_clients = authority.exists();
        let builder = if verifies_clients {
            let mut roots = RootCertStore::empty();
            for root in pem::<CertificateDer<'static>>(&authority)? {
                roots
                    .add(root)
                    .map_err(|e| unusable(&authority, &e.to_string()))?;
            }
            let mut verifier =
                WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
            let revoked = path("ca-crl.pem");
            if revoked.exists() {
                verifier =
                    verifier.with_crls(pem::<CertificateRevocationListDer<'static>>(&revoked)?);
            }
            let verifier = verifier
                .build()
                .map_err(|e| unusable(&authority, &e.to_string()))?;
            builder.with_client_cert_verifier(verifier)
        } else {
            builder.with_no_client_auth()
        };
        let config = builder
            .with_single_cert(chain, private)
            .map_err(|e| unusable(&certificate, &e.to_string()))?;
        Ok(Self {
            config: Arc::new(config),
            verifies_clients,
        })
    }

    /// True if clients have to show a certificate.
    pub fn verifies_clients(&self) -> bool {
        self.verifies_clients
    }

    pub(crate) fn connection(&self) -> io::Result<ServerConnection> {
        let mut connection =
            ServerConnection::new(self.config.clone()).map_err(io::Error::other)?;
        // What is written is sent at once, so it cannot pile up.
        connection.set_buffer_limit(None);
        Ok(connection)
    }
}

fn read(path: &Path) -> Result<Vec<u8>> {
    std::fs::read(path).map_err(|e| {
        Error::io("read", e)
            .with_path(path)
            .while_doing("cannot set up TLS with")
            .with_hint("the folder needs server-cert.pem and server-key.pem, and ca-cert.pem to let in only its own clients")
    })
}

/// All objects of one kind in a file; at least one.
fn pem<T: PemObject>(path: &Path) -> Result<Vec<T>> {
    let bytes = read(path)?;
    let objects: std::result::Result<Vec<T>, _> = T::pem_slice_iter(&bytes).collect();
    match objects {
        Ok(objects) if !objects.is_empty() => Ok(objects),
        Ok(_) => Err(unusable(path, "it holds nothing of the kind its name says")),
        Err(e) => Err(unusable(path, &e.to_string())),
    }
}

fn unusable(path: &Path, reason: &str) -> Error {
    Error::new(ErrorKind::InvalidParameter, reason)
        .with_path(path)
        .while_doing("cannot set up TLS with")
}

/// A connection's encryption. One thread reads, any number write.
///
/// Lock order: `outgoing`, then `connection`. Nobody waits for the network with `connection` locked.
pub(crate) struct Tls {
    connection: Mutex<ServerConnection>,
    incoming: Mutex<Incoming>,
    outgoing: Mutex<Vec<u8>>,
}

/// Bytes that were received and not yet decrypted.
struct Incoming {
    raw: Box<[u8]>,
    start: usize,
    end: usize,
}

/// How long to wait for input.
#[derive(Clone, Copy)]
pub(crate) enum Wait {
    Not,
    Until(Option<Instant>),
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Tls {
    /// Shakes hands. `early` is what was received of it already.
    pub(crate) fn accept(
        identity: &TlsIdentity,
        socket: &Socket,
        early: &[u8],
        deadline: Instant,
    ) -> io::Result<Self> {
        let mut raw = vec![0; RAW.max(early.len())].into_boxed_slice();
        raw[..early.len()].copy_from_slice(early);
        let tls = Self {
            connection: Mutex::new(identity.connection()?),
            incoming: Mutex::new(Incoming {
                raw,
                start: 0,
                end: early.len(),
            }),
            outgoing: Mutex::default(),
        };
        while lock(&tls.connection).is_handshaking() {
            tls.flush(socket, Some(deadline))?;
            let mut incoming = lock(&tls.incoming);
            if incoming.is_empty() && !incoming.receive(socket, Wait::Until(Some(deadline)))? {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            let taken = tls.decrypt(&mut incoming);
            drop(incoming);
            if let Err(e) = taken {
                // Tells the client why, if it listens.
                let _ = tls.flush(socket, Some(deadline));
                return Err(e);
            }
        }
        tls.flush(socket, Some(deadline))?;
        Ok(tls)
    }

    /// Decrypted bytes; zero at the end, `None` if there are none now and the wait is over.
    pub(crate) fn recv(
        &self,
        socket: &Socket,
        buf: &mut [u8],
        wait: Wait,
    ) -> io::Result<Option<usize>> {
        let mut incoming = lock(&self.incoming);
        loop {
            match lock(&self.connection).reader().read(buf) {
                Ok(count) => return Ok(Some(count)),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                // Without a farewell; NBD has its own.
                Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => return Ok(Some(0)),
                Err(e) => return Err(e),
            }
            if incoming.is_empty() {
                match (wait, incoming.receive(socket, wait)) {
                    (Wait::Not, Err(e)) if e.kind() == io::ErrorKind::WouldBlock => {
                        return Ok(None);
                    }
                    (_, Err(e)) => return Err(e),
                    (_, Ok(true)) => {}
                    (_, Ok(false)) => return Ok(Some(0)),
                }
            }
            self.decrypt(&mut incoming)?;
            if lock(&self.connection).wants_write() {
                self.flush(socket, None)?;
            }
        }
    }

    /// Encrypts and sends.
    pub(crate) fn send(
        &self,
        socket: &Socket,
        bytes: &[u8],
        deadline: Option<Instant>,
    ) -> io::Result<()> {
        let mut outgoing = lock(&self.outgoing);
        let mut connection = lock(&self.connection);
        connection.writer().write_all(bytes)?;
        drain(&mut connection, &mut outgoing)?;
        drop(connection);
        send_all(socket, &mut outgoing, deadline)
    }

    /// Says farewell, as far as the client can still hear it.
    pub(crate) fn close(&self, socket: &Socket, deadline: Instant) {
        lock(&self.connection).send_close_notify();
        let _ = self.flush(socket, Some(deadline));
    }

    fn flush(&self, socket: &Socket, deadline: Option<Instant>) -> io::Result<()> {
        let mut outgoing = lock(&self.outgoing);
        drain(&mut lock(&self.connection), &mut outgoing)?;
        send_all(socket, &mut outgoing, deadline)
    }

    fn decrypt(&self, incoming: &mut Incoming) -> io::Result<()> {
        let mut connection = lock(&self.connection);
        let mut raw = &incoming.raw[incoming.start..incoming.end];
        incoming.start += connection.read_tls(&mut raw)?;
        connection.process_new_packets().map_err(io::Error::other)?;
        Ok(())
    }
}

impl Incoming {
    fn is_empty(&self) -> bool {
        self.start == self.end
    }

    /// False at the end.
    fn receive(&mut self, socket: &Socket, wait: Wait) -> io::Result<bool> {
        let count = match wait {
            Wait::Until(deadline) => socket.recv(&mut self.raw, deadline)?,
            Wait::Not => socket
                .try_recv(&mut self.raw)?
                .ok_or(io::ErrorKind::WouldBlock)?,
        };
        (self.start, self.end) = (0, count);
        Ok(count > 0)
    }
}

fn drain(connection: &mut ServerConnection, outgoing: &mut Vec<u8>) -> io::Result<()> {
    while connection.wants_write() {
        connection.write_tls(outgoing)?;
    }
    Ok(())
}

fn send_all(socket: &Socket, outgoing: &mut Vec<u8>, deadline: Option<Instant>) -> io::Result<()> {
    let sent = socket.send(outgoing, deadline);
    outgoing.clear();
    sent
}
