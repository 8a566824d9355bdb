//! The socket under quinn: one UDP socket that STUN, probes and QUIC share, and beside it TCP
//! streams and the relay.
//!
//! Towards quinn every peer is one *virtual address* that never changes; the mux sends its
//! datagrams over the peer's path of the moment. What arrives is told apart by its first byte (RFC
//! 9443): STUN and probes go to the endpoint's driver, QUIC goes to quinn, and only from paths that
//! answered an authenticated ping of a match, or from the relay, where both sides proved
//! themselves. A received batch may hold all of them, so each segment is looked at.

mod peers;
mod pending;
mod receive;
mod udp;

use std::fmt;
use std::future::Future;
use std::io::{self, IoSliceMut};
use std::net::{IpAddr, Ipv6Addr, SocketAddr, SocketAddrV6, UdpSocket};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::task::{Context, Poll};
use std::time::Instant;

use bytes::Bytes;
use quinn::udp::{RecvMeta, Transmit, UdpSocketState};
use quinn::{AsyncUdpSocket, UdpPoller};
use tokio::sync::{Notify, mpsc, oneshot};

use self::udp::Udp;
use crate::net::congestion::PathEpoch;
use crate::proto::ladder::Activity;
use crate::proto::path::{Path, StreamId};
use crate::wire::relay::{RELAY_HEADER_BYTES, RelayId, data_header};
use crate::wire::rendezvous::{FirstFlight, Relayed};

use self::peers::{Peer, Peers, RelayWay};
use self::pending::Pending;

/// Control datagrams that may wait for the driver; more are dropped, as a network would.
const CONTROL_QUEUE: usize = 1024;

/// The address that quinn knows a peer by.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Virtual(u32);

/// A datagram that is not QUIC.
#[derive(Debug)]
pub(crate) struct Control {
    pub(crate) from: Path,
    pub(crate) bytes: Bytes,
}

/// Datagrams for a stream: of `segment` bytes each, or one.
#[derive(Debug)]
pub(crate) struct Frame {
    pub(crate) segment: u16,
    pub(crate) bytes: Bytes,
}

/// The socket.
pub(crate) struct PathMux {
    socket: Udp,
    /// The socket had no room the last time.
    full: AtomicBool,
    state: UdpSocketState,
    dual_stack: bool,
    control: mpsc::Sender<Control>,
    peers: RwLock<Peers>,
    pending: Mutex<Pending>,
    began: Instant,
    /// Data waits for an answer, and nobody watches yet.
    stirred: Notify,
    watched: AtomicBool,
}

impl Virtual {
    /// In a range that no network routes (RFC 4193), told apart by its last bits.
    pub fn address(self) -> SocketAddr {
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
        let (socket, dual_stack) = udp::open(listen)?;
        let socket = Udp::new(socket)?;
        let state = UdpSocketState::new(socket.get().into())?;
        let (control, controls) = mpsc::channel(CONTROL_QUEUE);
        let mux = Self {
            socket,
            full: AtomicBool::new(false),
            state,
            dual_stack,
            control,
            peers: RwLock::default(),
            pending: Mutex::default(),
            began: Instant::now(),
            stirred: Notify::new(),
            watched: AtomicBool::new(false),
        };
        Ok((Arc::new(mux), controls))
    }

    /// The port that private candidates name.
    pub(crate) fn port(&self) -> io::Result<u16> {
        Ok(self.socket.get().local_addr()?.port())
    }

    /// The address that was bound: unspecified for any.
    pub(crate) fn bound_ip(&self) -> io::Result<IpAddr> {
        Ok(self.socket.get().local_addr()?.ip())
    }

    /// A new peer, without a path.
    pub(crate) fn add_peer(&self) -> Virtual {
        self.write().add()
    }

    /// The same; the first datagram for it goes to `first`.
    pub(crate) fn add_peer_with(&self, first: oneshot::Sender<FirstFlight>) -> Virtual {
        self.write().add_with(first)
    }

    /// What a peer's QUIC has said before there was any path: as if the relay had brought it.
    pub(crate) fn handle_first(&self, peer: Virtual, first: FirstFlight) {
        self.sort_frame(Some(peer), Path::Relay, 0, first.0.into());
    }

    /// Counts the peer's paths, for its connections' congestion state.
    pub(crate) fn epoch(&self, peer: Virtual) -> Arc<PathEpoch> {
        self.read().peer(peer).map(|peer| Arc::clone(&peer.epoch)).unwrap_or_default()
    }

    /// Datagrams from `path` are the peer's from now on, until it is removed.
    pub(crate) fn accept(&self, peer: Virtual, path: Path) {
        self.write().accept(peer, path);
    }

    /// Where the peer's datagrams go.
    pub(crate) fn path(&self, peer: Virtual) -> Option<Path> {
        self.read().peer(peer).and_then(Peer::path)
    }

    /// The peer's datagrams go over `path` from now on.
    pub(crate) fn set_path(&self, peer: Virtual, path: Path) {
        if let Some(peer) = self.write().peer_mut(peer)
            && peer.active.replace(path) != Some(path)
        {
            peer.flow.reset();
            peer.epoch.advance();
        }
    }

    /// The peer's datagrams go over this path as well.
    pub(crate) fn set_hedge(&self, peer: Virtual, path: Option<Path>) {
        if let Some(peer) = self.write().peer_mut(peer) {
            peer.hedge = path;
        }
    }

    /// How the relay reaches the peer: by UDP at this address, once it is bound, and over the
    /// connection to the server.
    pub(crate) fn set_relay(
        &self,
        peer: Virtual,
        id: RelayId,
        server: Option<SocketAddr>,
        link: mpsc::Sender<Relayed>,
    ) {
        let early = {
            let mut peers = self.write();
            peers.set_relay(peer, RelayWay { id, server, bound: false, link });
            peers.take_early(id)
        };
        early.into_iter().for_each(|relayed| self.handle_relayed(relayed));
    }

    /// Whether UDP reaches the relay.
    pub(crate) fn set_relay_bound(&self, peer: Virtual, bound: bool) {
        if let Some(way) = self.write().peer_mut(peer).and_then(|peer| peer.relay.as_mut()) {
            way.bound = bound;
        }
    }

    /// A TCP stream to a peer; its frames go to `frames`.
    pub(crate) fn add_stream(&self, frames: mpsc::Sender<Frame>) -> StreamId {
        self.write().add_stream(frames)
    }

    /// A stream ended, or is to end.
    pub(crate) fn remove_stream(&self, stream: StreamId) {
        self.write().remove_stream(stream);
    }

    /// The peer is gone.
    pub(crate) fn remove_peer(&self, peer: Virtual) {
        self.write().remove(peer);
    }

    /// What data did on the peer's path since the last time.
    pub(crate) fn activity(&self, peer: Virtual) -> Activity {
        self.read().peer(peer).map(|peer| peer.flow.look(self.began)).unwrap_or_default()
    }

    /// What was sent to the peer so far waits for no answer any more.
    pub(crate) fn settle(&self, peer: Virtual) {
        if let Some(peer) = self.read().peer(peer) {
            peer.flow.settle();
        }
    }

    /// Resolves when data waits for an answer; then the driver is to watch until
    /// [`Self::stop_watching`].
    pub(crate) async fn stirred(&self) {
        self.stirred.notified().await;
    }

    /// Nothing waits for an answer.
    pub(crate) fn stop_watching(&self) {
        self.watched.store(false, Ordering::Relaxed);
    }

    /// Sends a STUN message, a bind or such; lost if the socket is full.
    pub(crate) fn send_control(&self, to: SocketAddr, bytes: &[u8]) {
        if let Err(error) = self.socket.get().send_to(bytes, self.to_socket(to)) {
            tracing::trace!(%to, %error, "control datagram not sent");
        }
    }

    /// Sends a probe to a peer over one of its paths.
    pub(crate) fn send_probe(&self, peer: Virtual, path: Path, bytes: &[u8]) {
        let peers = self.read();
        let Some(peer) = peers.peer(peer) else { return };
        // lost if there is no room: it is sent again
        let _ = self.send_over(&peers, peer, path, bytes, None);
    }

    fn to_socket(&self, address: SocketAddr) -> SocketAddr {
        match address {
            SocketAddr::V4(v4) if self.dual_stack => {
                SocketAddr::from((v4.ip().to_ipv6_mapped(), v4.port()))
            }
            address => address,
        }
    }

    /// Sends datagrams of `segment` bytes each; fails only where UDP has no room now.
    fn send_over(
        &self,
        peers: &Peers,
        peer: &Peer,
        path: Path,
        bytes: &[u8],
        segment: Option<usize>,
    ) -> io::Result<()> {
        match path {
            Path::Udp(address) => self.send_udp(address, bytes, segment),
            Path::Tcp(stream) => {
                if let Some(frames) = peers.stream(stream) {
                    let bytes = Bytes::copy_from_slice(bytes);
                    // a full queue drops, as a network would
                    let _ = frames.try_send(Frame { segment: narrow(segment), bytes });
                }
                Ok(())
            }
            Path::Relay => match &peer.relay {
                Some(RelayWay { id, server: Some(server), bound: true, .. }) => {
                    let size = segment.unwrap_or(bytes.len()).max(1);
                    let header = data_header(*id);
                    let count = bytes.len().div_ceil(size);
                    let mut wrapped = Vec::with_capacity(bytes.len() + count * RELAY_HEADER_BYTES);
                    for datagram in bytes.chunks(size) {
                        wrapped.extend_from_slice(&header);
                        wrapped.extend_from_slice(datagram);
                    }
                    self.send_udp(*server, &wrapped, segment.map(|size| size + RELAY_HEADER_BYTES))
                }
                Some(way) => {
                    let (relay, segment) = (way.id, narrow(segment));
                    let _ = way.link.try_send(Relayed { relay, segment, bytes: bytes.to_vec() });
                    Ok(())
                }
                None => Ok(()),
            },
        }
    }

    fn send_udp(&self, to: SocketAddr, bytes: &[u8], segment: Option<usize>) -> io::Result<()> {
        let real = Transmit {
            destination: self.to_socket(to),
            ecn: None,
            contents: bytes,
            segment_size: segment.filter(|segment| *segment < bytes.len()),
            src_ip: None,
        };
        match self.state.send(self.socket.get().into(), &real) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                self.full.store(true, Ordering::Relaxed);
                Err(error)
            }
            Err(error) => {
                tracing::trace!(%error, "datagram not sent");
                Ok(())
            }
            Ok(()) => Ok(()),
        }
    }

    /// The maps are never left half changed, so a panic elsewhere does not spoil them.
    fn read(&self) -> RwLockReadGuard<'_, Peers> {
        self.peers.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Peers> {
        self.peers.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl AsyncUdpSocket for PathMux {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Box::pin(WritePoller { mux: self, waiting: None })
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        let peers = self.read();
        let peer = Virtual::from_address(transmit.destination).and_then(|peer| peers.peer(peer));
        let Some(peer) = peer else { return Ok(()) };
        let Some(path) = peer.path() else {
            peer.keep_first(transmit.contents);
            return Ok(());
        };
        self.send_over(&peers, peer, path, transmit.contents, transmit.segment_size)?;
        if let Some(second) = peer.hedge {
            let _ = self.send_over(&peers, peer, second, transmit.contents, transmit.segment_size);
        }
        if peer.flow.sent(self.began) && !self.watched.swap(true, Ordering::Relaxed) {
            self.stirred.notify_one();
        }
        Ok(())
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        buffers: &mut [IoSliceMut<'_>],
        metas: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        // half of the room, so that neither side starves the other
        let room = buffers.len().div_ceil(2);
        let taken = self.take_pending(cx, &mut buffers[..room], metas);
        loop {
            let (buffers, metas) = (&mut buffers[taken..], &mut metas[taken..]);
            if buffers.is_empty() {
                return Poll::Ready(Ok(taken));
            }
            let room = buffers.len();
            let receive = |socket: &UdpSocket| self.state.recv(socket.into(), buffers, metas);
            let count = match self.socket.poll_receive(cx, room, receive) {
                Poll::Ready(Ok(count)) => count,
                Poll::Pending if taken > 0 => return Poll::Ready(Ok(taken)),
                Poll::Pending => return Poll::Pending,
                // A peer's port that is closed (ICMP) is no error of ours
                Poll::Ready(Err(error)) => {
                    tracing::trace!(%error, "receive failed");
                    continue;
                }
            };
            let mut kept = false;
            for (buffer, meta) in buffers.iter_mut().zip(metas.iter_mut()).take(count) {
                kept |= self.sort(buffer, meta);
            }
            if kept || taken > 0 {
                return Poll::Ready(Ok(taken + count));
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
        // a frame of a stream holds ten datagrams, whatever the UDP socket does
        self.state.gro_segments().max(16)
    }

    fn may_fragment(&self) -> bool {
        self.state.may_fragment()
    }
}

impl fmt::Debug for PathMux {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PathMux").field("peers", &self.peers).finish_non_exhaustive()
    }
}

struct WritePoller {
    mux: Arc<PathMux>,
    waiting: Option<Pin<Box<dyn Future<Output = io::Result<()>> + Send + Sync>>>,
}

impl UdpPoller for WritePoller {
    fn poll_writable(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // asked before every datagram
        if !self.mux.full.load(Ordering::Relaxed) {
            return Poll::Ready(Ok(()));
        }
        let mux = Arc::clone(&self.mux);
        let waiting = self
            .waiting
            .get_or_insert_with(|| Box::pin(async move { mux.socket.writable().await }));
        let ready = waiting.as_mut().poll(cx);
        if ready.is_ready() {
            self.waiting = None;
            self.mux.full.store(false, Ordering::Relaxed);
        }
        ready
    }
}

impl fmt::Debug for WritePoller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("WritePoller")
    }
}

/// A segment's size as frames carry it; 0 for one datagram.
fn narrow(segment: Option<usize>) -> u16 {
    segment.and_then(|size| u16::try_from(size).ok()).unwrap_or_default()
}
