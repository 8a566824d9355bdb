//! Somebody who answers QUIC with a key of his own where daemons were led, and keeps what he hears.

use std::fmt;
use std::io::{self, IoSliceMut};
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};

use p2pfs::identity::SecretKey;
use p2pfs::net::quic;
use p2pfs::wire::rendezvous::Public;
use quinn::udp::{RecvMeta, Transmit};
use quinn::{AsyncUdpSocket, Connection, Runtime, TokioRuntime, UdpPoller};
use tokio::io::AsyncReadExt;
use tokio::net::TcpListener;

use super::secrets::{Heard, Recorded};

/// A running one; he lives as long as his runtime.
#[derive(Clone)]
pub(super) struct Attacker {
    /// Where he is.
    pub(super) public: Public,
    pub(super) heard: Heard,
    /// Who has shaken hands with him.
    guests: Arc<AtomicUsize>,
}

/// A socket of which every datagram that comes is kept.
pub(super) struct Tapped {
    socket: Arc<dyn AsyncUdpSocket>,
    heard: Heard,
}

impl Attacker {
    /// On a free port of each protocol; within a runtime.
    pub(super) fn start(ip: IpAddr) -> Self {
        let heard = Heard::default();
        let guests = Arc::new(AtomicUsize::new(0));
        let socket = Tapped::bind((ip, 0).into(), &heard);
        let udp = socket.local_addr().unwrap();
        let config = quic::server_config(&SecretKey::from_seed([0xa7; 32])).unwrap();
        let endpoint = socket.endpoint(Some(config));
        let tcp = std::net::TcpListener::bind((ip, 0)).unwrap();
        tcp.set_nonblocking(true).unwrap();
        let public = Public { tcp: Some(tcp.local_addr().unwrap()), udp: Some(udp) };
        let attacker = Self { public, heard, guests };
        tokio::spawn(attacker.clone().answer_quic(endpoint));
        tokio::spawn(attacker.clone().answer_tcp(TcpListener::from_std(tcp).unwrap()));
        attacker
    }

    /// Where his QUIC is.
    pub(super) fn at(&self) -> SocketAddr {
        self.public.udp.unwrap()
    }

    /// How many have proved a key to him, and taken his for the right one.
    pub(super) fn guests(&self) -> usize {
        self.guests.load(Ordering::SeqCst)
    }

    async fn answer_quic(self, endpoint: quinn::Endpoint) {
        while let Some(incoming) = endpoint.accept().await {
            let (heard, guests) = (self.heard.clone(), Arc::clone(&self.guests));
            tokio::spawn(async move {
                if let Ok(connection) = incoming.await {
                    guests.fetch_add(1, Ordering::SeqCst);
                    listen(connection, heard).await;
                }
            });
        }
    }

    async fn answer_tcp(self, listener: TcpListener) {
        while let Ok((tcp, _)) = listener.accept().await {
            let mut stream = Recorded::new(tcp, &self.heard);
            tokio::spawn(async move { stream.read_to_end(&mut Vec::new()).await });
        }
    }
}

async fn listen(connection: Connection, heard: Heard) {
    while let Ok((_send, receive)) = connection.accept_bi().await {
        let mut stream = Recorded::new(receive, &heard);
        tokio::spawn(async move { stream.read_to_end(&mut Vec::new()).await });
    }
}

impl Tapped {
    /// Within a runtime.
    pub(super) fn bind(at: SocketAddr, heard: &Heard) -> Self {
        let socket = std::net::UdpSocket::bind(at).unwrap();
        let socket = TokioRuntime.wrap_udp_socket(socket).unwrap();
        Self { socket, heard: heard.clone() }
    }

    /// QUIC over it.
    pub(super) fn endpoint(self, server: Option<quinn::ServerConfig>) -> quinn::Endpoint {
        let (config, runtime) = (quinn::EndpointConfig::default(), Arc::new(TokioRuntime));
        let socket = Arc::new(self);
        quinn::Endpoint::new_with_abstract_socket(config, server, socket, runtime).unwrap()
    }
}

impl AsyncUdpSocket for Tapped {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Arc::clone(&self.socket).create_io_poller()
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        self.socket.try_send(transmit)
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        buffers: &mut [IoSliceMut<'_>],
        metas: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        let polled = self.socket.poll_recv(cx, buffers, metas);
        if let Poll::Ready(Ok(count)) = polled {
            for (buffer, meta) in buffers.iter().zip(metas.iter()).take(count) {
                self.heard.keep(&buffer[..meta.len]);
            }
        }
        polled
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()
    }

    fn max_receive_segments(&self) -> usize {
        self.socket.max_receive_segments()
    }
}

impl fmt::Debug for Tapped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tapped").finish_non_exhaustive()
    }
}
