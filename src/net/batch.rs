//! A UDP socket that receives and sends several datagrams of one peer at once (GRO, GSO).

use std::fmt;
use std::io::{self, IoSliceMut};
use std::net::SocketAddr;

use quinn::udp::{BATCH_SIZE, RecvMeta, Transmit, UdpSocketState};
use rustix::net::sockopt;
use socket2::SockRef;
use tokio::io::Interest;
use tokio::net::UdpSocket;

use crate::limits::SOCKET_BUFFER_BYTES;

/// What one receive can bring, bytes.
pub const BATCH_BYTES: usize = 64 << 10;

/// The socket.
pub struct BatchSocket {
    socket: UdpSocket,
    state: UdpSocketState,
}

/// Datagrams that arrived together, from one sender.
#[derive(Clone, Copy, Debug)]
pub struct Batch {
    /// The sender.
    pub from: SocketAddr,
    /// Bytes of them all.
    pub length: usize,
    /// Bytes of each, but perhaps the last.
    pub stride: usize,
}

impl BatchSocket {
    /// Binds.
    ///
    /// # Errors
    ///
    /// Those of the socket.
    pub async fn bind(address: SocketAddr) -> io::Result<Self> {
        let socket = UdpSocket::bind(address).await?;
        let fd = SockRef::from(&socket);
        if sockopt::set_socket_recv_buffer_size_force(&*fd, SOCKET_BUFFER_BYTES).is_err() {
            let _ = fd.set_recv_buffer_size(SOCKET_BUFFER_BYTES);
        }
        let _ = fd.set_send_buffer_size(SOCKET_BUFFER_BYTES);
        let state = UdpSocketState::new((&socket).into())?;
        Ok(Self { socket, state })
    }

    /// Where it is.
    ///
    /// # Errors
    ///
    /// Those of the socket.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()
    }

    /// Waits for datagrams; `buffer` has [`BATCH_BYTES`].
    ///
    /// # Errors
    ///
    /// Those of the socket.
    pub async fn receive(&self, buffer: &mut [u8]) -> io::Result<Batch> {
        const { assert!(BATCH_SIZE >= 1, "one buffer is enough for one receive") };
        loop {
            self.socket.readable().await?;
            let mut metas = [RecvMeta::default()];
            let mut buffers = [IoSliceMut::new(buffer)];
            let received = self.socket.try_io(Interest::READABLE, || {
                self.state.recv((&self.socket).into(), &mut buffers, &mut metas)
            });
            match received {
                Ok(_) => {
                    let RecvMeta { addr, len, stride, .. } = metas[0];
                    let from = SocketAddr::new(addr.ip().to_canonical(), addr.port());
                    return Ok(Batch { from, length: len, stride: stride.max(1) });
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Sends datagrams of `segment` bytes each, or one; dropped where there is no room.
    pub fn send(&self, to: SocketAddr, bytes: &[u8], segment: usize) {
        let segment_size = (segment > 0 && segment < bytes.len()).then_some(segment);
        let transmit =
            Transmit { destination: to, ecn: None, contents: bytes, segment_size, src_ip: None };
        let sent = self
            .socket
            .try_io(Interest::WRITABLE, || self.state.send((&self.socket).into(), &transmit));
        if let Err(error) = sent {
            tracing::trace!(%to, %error, "not sent");
        }
    }
}

impl fmt::Debug for BatchSocket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("BatchSocket").field(&self.socket).finish()
    }
}
