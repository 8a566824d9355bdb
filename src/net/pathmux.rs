//! The socket under quinn: one UDP socket that STUN, probes and QUIC share.
//!
//! Towards quinn every peer is one *virtual address* that never changes; the mux sends its
//! datagrams over the peer's path of the moment. What arrives is told apart by its first byte (RFC
//! 9443): STUN and probes go to the endpoint's driver, QUIC goes to quinn, and only from addresses
//! that answered an authenticated ping of a match. A received batch may hold both, so each segment
//! is looked at.

use std::collections::HashMap;
use std::fmt;
use std::future::Future;
use std::io::{self, IoSliceMut};
use std::net::{IpAddr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::pin::Pin;
use std::sync::{Arc, RwLock};
use std::task::{Context, Poll};

use bytes::Bytes;
use quinn::udp::{RecvMeta, Transmit, UdpSocketState};
use quinn::{AsyncUdpSocket, UdpPoller};
use rustix::net::sockopt;
use socket2::{Domain, Protocol, SockRef, Socket, Type};
use tokio::io::Interest;
use tokio::net::UdpSocket;
use tokio::sync::mpsc;

use crate::limits::SOCKET_BUFFER_BYTES;
use crate::wire::probe::Probe;

/// Control datagrams that may wait for the driver; more are dropped, as a network would.
const CONTROL_QUEUE: usize = 1024;

/// The address that quinn knows a peer by.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub(crate) struct Virtual(u32);

/// A datagram that is not QUIC.
#[derive(Debug)]
pub(crate) struct Control {
    pub(crate) from: SocketAddr,
    pub(crate) bytes: Bytes,
}

/// The socket.
pub(crate) struct PathMux {
    socket: UdpSocket,
    state: UdpSocketState,
    dual_stack: bool,
    control: mpsc::Sender<Control>,
    paths: RwLock<Paths>,
}

#[derive(Debug, Default)]
struct Paths {
    next: u32,
    active: HashMap<Virtual, SocketAddr>,
    by_address: HashMap<SocketAddr, Virtual>,
}

impl Virtual {
    /// In a range that no network routes (RFC 4193), told apart by its last bits.
    pub(crate) fn address(self) -> SocketAddr {
        let [high, low] = [(self.0 >> 16) as u16, self.0 as u16];
        let ip = Ipv6Addr::new(0xfd70, 0x3270, 0x6673, 0, 0, 0, high, low);
        SocketAddr::V6(SocketAddrV6::new(ip, 1, 0, 0))
    }

    pub(crate) fn from_address(address: SocketAddr) -> Option<Self> {
        let IpAddr::V6(ip) = address.ip() else {
            return None;
        };
        let [0xfd70, 0x3270, 0x6673, 0, 0, 0, high, low] = ip.segments() else {
            return None;
        };
        Some(Self(u32::from(high) << 16 | u32::from(low)))
    }
}

impl PathMux {
    /// Binds; without an address to IPv6 and IPv4 together, or IPv4 where there is no IPv6.
    pub(crate) fn bind(
        listen: Option<SocketAddr>,
    ) -> io::Result<(Arc<Self>, mpsc::Receiver<Control>)> {
        let (socket, dual_stack) = match listen {
            Some(address) => (bind_to(address, false)?, false),
            None => match bind_to(SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0)), true) {
                Ok(socket) => (socket, true),
                Err(_) => (bind_to(SocketAddr::from(([0, 0, 0, 0], 0)), false)?, false),
            },
        };
        let socket = UdpSocket::from_std(socket.into())?;
        let state = UdpSocketState::new((&socket).into())?;
        let (control, controls) = mpsc::channel(CONTROL_QUEUE);
        let mux = Self { socket, state, dual_stack, control, paths: RwLock::default() };
        Ok((Arc::new(mux), controls))
    }

    /// The port that private candidates name.
    pub(crate) fn port(&self) -> io::Result<u16> {
        Ok(self.socket.local_addr()?.port())
    }

    /// The address that was bound: unspecified for any.
    pub(crate) fn bound_ip(&self) -> io::Result<IpAddr> {
        Ok(self.socket.local_addr()?.ip())
    }

    /// A new peer, without a path.
    pub(crate) fn add_peer(&self) -> Virtual {
        let mut paths = write(&self.paths);
        paths.next += 1;
        Virtual(paths.next)
    }

    /// Datagrams from `address` are the peer's from now on, until it is removed.
    pub(crate) fn accept(&self, peer: Virtual, address: SocketAddr) {
        write(&self.paths).by_address.insert(address, peer);
    }

    /// The peer's datagrams go to `address` from now on.
    pub(crate) fn set_path(&self, peer: Virtual, address: SocketAddr) {
        write(&self.paths).active.insert(peer, address);
    }

    /// The peer is gone.
    pub(crate) fn remove_peer(&self, peer: Virtual) {
        let mut paths = write(&self.paths);
        paths.active.remove(&peer);
        paths.by_address.retain(|_, owner| *owner != peer);
    }

    /// The peer behind an address, if one has been proved.
    pub(crate) fn peer_at(&self, address: SocketAddr) -> Option<Virtual> {
        read(&self.paths).by_address.get(&address).copied()
    }

    /// Sends a STUN message or a probe; lost if the socket is full.
    pub(crate) fn send_control(&self, to: SocketAddr, bytes: &[u8]) {
        if let Err(error) = self.socket.try_send_to(bytes, self.to_socket(to)) {
            tracing::trace!(%to, %error, "control datagram not sent");
        }
    }

    fn to_socket(&self, address: SocketAddr) -> SocketAddr {
        match address {
            SocketAddr::V4(v4) if self.dual_stack => {
                SocketAddr::from((v4.ip().to_ipv6_mapped(), v4.port()))
            }
            address => address,
        }
    }

    /// Keeps QUIC's segments of a received batch, in place; `None` if there are none.
    fn sort(&self, buffer: &mut [u8], meta: &mut RecvMeta) -> Option<()> {
        let from = SocketAddr::new(meta.addr.ip().to_canonical(), meta.addr.port());
        let peer = self.peer_at(from);
        let stride = meta.stride.max(1);
        let (mut at, mut kept) = (0, 0);
        while at < meta.len {
            let end = (at + stride).min(meta.len);
            match buffer[at] {
                first if first < 4 || Probe::is_probe(first) => {
                    let bytes = Bytes::copy_from_slice(&buffer[at..end]);
                    if self.control.try_send(Control { from, bytes }).is_err() {
                        tracing::trace!("control queue is full");
                    }
                }
                first if first & 0x40 != 0 && peer.is_some() => {
                    if kept != at {
                        buffer.copy_within(at..end, kept);
                    }
                    kept += end - at;
                }
                _ => tracing::trace!(%from, "datagram from a stranger dropped"),
            }
            at = end;
        }
        meta.len = kept;
        meta.addr = peer?.address();
        meta.ecn = None;
        meta.dst_ip = None;
        (kept > 0).then_some(())
    }
}

impl AsyncUdpSocket for PathMux {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Box::pin(WritePoller { mux: self, waiting: None })
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        let path = Virtual::from_address(transmit.destination)
            .and_then(|peer| read(&self.paths).active.get(&peer).copied());
        let Some(path) = path else { return Ok(()) };
        let real = Transmit {
            destination: self.to_socket(path),
            ecn: None,
            contents: transmit.contents,
            segment_size: transmit.segment_size,
            src_ip: None,
        };
        let sent = self
            .socket
            .try_io(Interest::WRITABLE, || self.state.send((&self.socket).into(), &real));
        match sent {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Err(error),
            Err(error) => {
                tracing::trace!(%error, "datagram not sent");
                Ok(())
            }
            Ok(()) => Ok(()),
        }
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        buffers: &mut [IoSliceMut<'_>],
        metas: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        loop {
            std::task::ready!(self.socket.poll_recv_ready(cx))?;
            let received = self.socket.try_io(Interest::READABLE, || {
                self.state.recv((&self.socket).into(), buffers, metas)
            });
            let count = match received {
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
                // A peer's port that is closed (ICMP) is no error of ours
                Err(error) => {
                    tracing::trace!(%error, "receive failed");
                    continue;
                }
            };
            let mut kept = false;
            for (buffer, meta) in buffers.iter_mut().zip(metas.iter_mut()).take(count) {
                kept |= self.sort(buffer, meta).is_some();
            }
            if kept {
                return Poll::Ready(Ok(count));
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(Virtual(0).address())
    }

    fn max_transmit_segments(&self) -> usize {
        self.state.max_gso_segments()
    }

    fn max_receive_segments(&self) -> usize {
        self.state.gro_segments()
    }

    fn may_fragment(&self) -> bool {
        self.state.may_fragment()
    }
}

impl fmt::Debug for PathMux {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PathMux").field("paths", &self.paths).finish_non_exhaustive()
    }
}

struct WritePoller {
    mux: Arc<PathMux>,
    waiting: Option<Pin<Box<dyn Future<Output = io::Result<()>> + Send + Sync>>>,
}

impl UdpPoller for WritePoller {
    fn poll_writable(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mux = Arc::clone(&self.mux);
        let waiting = self
            .waiting
            .get_or_insert_with(|| Box::pin(async move { mux.socket.writable().await }));
        let ready = waiting.as_mut().poll(cx);
        if ready.is_ready() {
            self.waiting = None;
        }
        ready
    }
}

impl fmt::Debug for WritePoller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("WritePoller")
    }
}

fn bind_to(address: SocketAddr, dual_stack: bool) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::DGRAM, Some(Protocol::UDP))?;
    if dual_stack {
        socket.set_only_v6(false)?;
    }
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    // Only root may go past net.core.rmem_max; others get what the system allows
    let fd = SockRef::from(&socket);
    if sockopt::set_socket_recv_buffer_size_force(&*fd, SOCKET_BUFFER_BYTES).is_err() {
        let _ = socket.set_recv_buffer_size(SOCKET_BUFFER_BYTES);
    }
    let _ = socket.set_send_buffer_size(SOCKET_BUFFER_BYTES);
    Ok(socket)
}

/// The maps are never left half changed, so a panic elsewhere does not spoil them.
fn read(lock: &RwLock<Paths>) -> std::sync::RwLockReadGuard<'_, Paths> {
    lock.read().unwrap_or_else(std::sync::PoisonError::into_inner)
}

fn write(lock: &RwLock<Paths>) -> std::sync::RwLockWriteGuard<'_, Paths> {
    lock.write().unwrap_or_else(std::sync::PoisonError::into_inner)
}
