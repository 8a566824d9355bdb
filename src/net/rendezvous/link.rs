//! One connection to a server: TCP, TLS, frames.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::timeout;
use tokio_rustls::{TlsAcceptor, TlsConnector};

use crate::address::ServerAddress;
use crate::identity::{PeerId, SecretKey};
use crate::net::rendezvous::RendezvousError;
use crate::net::tls::{self, Expected};
use crate::wire::rendezvous::{frame, frame_length, unframe};
use crate::wire::version::RENDEZVOUS_ALPN;

/// For a name to be found, TCP and TLS, all together.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// For one address of several.
const DIAL_TIMEOUT: Duration = Duration::from_secs(4);
/// For the server to take one message, and for the network to acknowledge it.
const WRITE_TIMEOUT: Duration = Duration::from_secs(10);

/// A connection whose server has proved its key, or another process's.
pub(super) struct Link {
    pub(super) server: SocketAddr,
    /// Our end; none of a connection that is another process's.
    pub(super) local: Option<SocketAddr>,
    pub(super) read: Box<dyn AsyncRead + Send + Unpin>,
    pub(super) write: Box<dyn AsyncWrite + Send + Unpin>,
}

/// Connects to a server.
pub(super) async fn connect(
    address: &ServerAddress,
    secret: &SecretKey,
) -> Result<Link, RendezvousError> {
    timeout(CONNECT_TIMEOUT, connect_slowly(address, secret))
        .await
        .unwrap_or_else(|_| Err(RendezvousError::Unreachable("no answer".to_owned())))
}

async fn connect_slowly(
    address: &ServerAddress,
    secret: &SecretKey,
) -> Result<Link, RendezvousError> {
    let tcp = dial(address).await.map_err(|error| unreachable(&error))?;
    let server = tcp.peer_addr().map_err(|error| unreachable(&error))?;
    let local = tcp.local_addr().map_err(|error| unreachable(&error))?;
    let expected = Expected::Fingerprint(address.fingerprint);
    let config = tls::client_config(secret, expected, RENDEZVOUS_ALPN);
    let stream = TlsConnector::from(Arc::new(config))
        .connect(tls::server_name(), tcp)
        .await
        .map_err(|error| {
            if tls::is_wrong_key_io(&error) {
                RendezvousError::ServerChanged
            } else {
                unreachable(&error)
            }
        })?;
    let (read, write) = tokio::io::split(stream);
    Ok(Link { server, local: Some(local), read: Box::new(read), write: Box::new(write) })
}

async fn dial(address: &ServerAddress) -> io::Result<TcpStream> {
    let mut failure = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    for address in tokio::net::lookup_host(address.authority()).await? {
        match timeout(DIAL_TIMEOUT, dial_one(address)).await {
            Ok(Ok(stream)) => return Ok(stream),
            Ok(Err(error)) => failure = error,
            Err(_) => failure = io::ErrorKind::TimedOut.into(),
        }
    }
    Err(failure)
}

async fn dial_one(address: SocketAddr) -> io::Result<TcpStream> {
    let (socket, any): (_, SocketAddr) = if address.is_ipv4() {
        (TcpSocket::new_v4()?, ([0; 4], 0).into())
    } else {
        (TcpSocket::new_v6()?, ([0; 16], 0).into())
    };
    // the port is the one that TCP punching uses too, so that its mapping is the one that is known
    socket.set_reuseaddr(true)?;
    socket.set_reuseport(true)?;
    socket.bind(any)?;
    let stream = socket.connect(address).await?;
    stream.set_nodelay(true)?;
    SockRef::from(&stream).set_tcp_user_timeout(Some(WRITE_TIMEOUT))?;
    Ok(stream)
}

fn unreachable(error: &io::Error) -> RendezvousError {
    RendezvousError::Unreachable(why(error))
}

/// What a person is told of a broken connection; a server that was killed says no farewell.
pub(super) fn why(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::UnexpectedEof => "it closed the connection".to_owned(),
        _ => error.to_string(),
    }
}

/// The server's end: proves the server's key, and wants a daemon's.
#[derive(Clone)]
pub struct Acceptor(TlsAcceptor);

impl Acceptor {
    /// For a server with this key.
    pub fn new(secret: &SecretKey) -> Self {
        let config = tls::server_config(secret, Expected::Anyone, RENDEZVOUS_ALPN);
        Self(TlsAcceptor::from(Arc::new(config)))
    }

    /// Shakes hands; the caller sets the time for it.
    ///
    /// # Errors
    ///
    /// Those of TLS: no key, no proof, another protocol.
    pub async fn accept(
        &self,
        tcp: TcpStream,
    ) -> io::Result<(PeerId, impl AsyncRead + AsyncWrite + Send + Unpin + use<>)> {
        tcp.set_nodelay(true)?;
        SockRef::from(&tcp).set_tcp_user_timeout(Some(WRITE_TIMEOUT))?;
        let stream = self.0.accept(tcp).await?;
        let certificates = stream.get_ref().1.peer_certificates();
        let peer = certificates
            .and_then(tls::peer_of)
            .ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData))?;
        Ok((peer, stream))
    }
}

impl fmt::Debug for Acceptor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Acceptor").finish_non_exhaustive()
    }
}

/// Reads one message; to be cancelled only with its stream.
///
/// # Errors
///
/// Those of the stream, and [`io::ErrorKind::InvalidData`] for a message that is none or too long.
pub async fn receive<T: DeserializeOwned>(read: &mut (impl AsyncRead + Unpin)) -> io::Result<T> {
    unframe(&receive_bytes(read).await?).map_err(invalid)
}

/// Reads one message as it is; to be cancelled only with its stream.
pub(super) async fn receive_bytes(read: &mut (impl AsyncRead + Unpin)) -> io::Result<Vec<u8>> {
    let mut header = [0; 4];
    read.read_exact(&mut header).await?;
    let length = frame_length(header).map_err(invalid)?;
    let mut value = vec![0; length];
    read.read_exact(&mut value).await?;
    Ok(value)
}

/// Writes one message; to be cancelled only with its stream.
///
/// # Errors
///
/// Those of the stream, and [`io::ErrorKind::InvalidData`] for a message that is none or too long.
pub async fn send<T: Serialize>(
    write: &mut (impl AsyncWrite + Unpin),
    message: &T,
) -> io::Result<()> {
    write_all(write, &frame(message).map_err(invalid)?).await
}

/// Writes one message that was read as it is; to be cancelled only with its stream.
pub(super) async fn send_bytes(
    write: &mut (impl AsyncWrite + Unpin),
    value: &[u8],
) -> io::Result<()> {
    let length = u32::try_from(value.len()).map_err(invalid)?;
    write_all(write, &[&length.to_le_bytes(), value].concat()).await
}

async fn write_all(write: &mut (impl AsyncWrite + Unpin), bytes: &[u8]) -> io::Result<()> {
    timeout(WRITE_TIMEOUT, async {
        write.write_all(bytes).await?;
        write.flush().await
    })
    .await
    .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

fn invalid(error: impl std::error::Error + Send + Sync + 'static) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}
