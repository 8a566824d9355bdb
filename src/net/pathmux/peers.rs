//! Who is behind which path.

use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, oneshot};

use super::{Frame, Virtual};
use crate::net::congestion::PathEpoch;
use crate::proto::ladder::Activity;
use crate::proto::path::{Path, StreamId};
use crate::wire::relay::RelayId;
use crate::wire::rendezvous::{FirstFlight, Relayed};

/// Frames that are kept for a match that is not known yet.
const EARLY_MAX: usize = 16;

#[derive(Debug, Default)]
pub(super) struct Peers {
    next: u32,
    next_stream: u32,
    peers: HashMap<Virtual, Peer>,
    by_address: HashMap<SocketAddr, Virtual>,
    by_relay: HashMap<RelayId, Virtual>,
    streams: HashMap<StreamId, Stream>,
    /// What the relay brought before its match was heard of.
    early: VecDeque<Relayed>,
}

#[derive(Debug, Default)]
pub(super) struct Peer {
    pub(super) active: Option<Path>,
    pub(super) hedge: Option<Path>,
    /// Where data came from while no path had been chosen yet.
    fallback: Option<Path>,
    pub(super) relay: Option<RelayWay>,
    pub(super) flow: Flow,
    /// Takes the first datagram that is for no path yet.
    pub(super) first: Mutex<Option<oneshot::Sender<FirstFlight>>>,
    pub(super) epoch: Arc<PathEpoch>,
}

#[derive(Debug)]
pub(super) struct RelayWay {
    pub(super) id: RelayId,
    pub(super) server: Option<SocketAddr>,
    pub(super) bound: bool,
    pub(super) link: mpsc::Sender<Relayed>,
}

#[derive(Debug)]
struct Stream {
    frames: mpsc::Sender<Frame>,
    peer: Option<Virtual>,
}

/// What data does on a peer's path.
#[derive(Debug, Default)]
pub(super) struct Flow {
    /// Milliseconds since the mux began, and one; 0 for nothing.
    unanswered: AtomicU64,
    heard: AtomicBool,
    elsewhere: AtomicBool,
}

impl Peers {
    pub(super) fn add(&mut self) -> Virtual {
        self.next += 1;
        let peer = Virtual(self.next);
        self.peers.insert(peer, Peer::default());
        peer
    }

    /// The same; what is sent to it before it has a path goes to `first`, once.
    pub(super) fn add_with(&mut self, first: oneshot::Sender<FirstFlight>) -> Virtual {
        let peer = self.add();
        if let Some(one) = self.peers.get_mut(&peer) {
            one.first = Mutex::new(Some(first));
        }
        peer
    }

    pub(super) fn peer(&self, peer: Virtual) -> Option<&Peer> {
        self.peers.get(&peer)
    }

    pub(super) fn peer_mut(&mut self, peer: Virtual) -> Option<&mut Peer> {
        self.peers.get_mut(&peer)
    }

    pub(super) fn accept(&mut self, peer: Virtual, path: Path) {
        match path {
            Path::Udp(address) => {
                self.by_address.insert(address, peer);
            }
            Path::Tcp(stream) => {
                if let Some(stream) = self.streams.get_mut(&stream) {
                    stream.peer = Some(peer);
                }
            }
            // accepted with its grant
            Path::Relay => {}
        }
    }

    pub(super) fn set_relay(&mut self, peer: Virtual, way: RelayWay) {
        let Some(known) = self.peers.get_mut(&peer) else {
            return;
        };
        self.by_relay.insert(way.id, peer);
        if let Some(old) = known.relay.replace(way) {
            self.by_relay.remove(&old.id);
        }
    }

    /// Keeps what the relay brought a moment too early.
    pub(super) fn keep_early(&mut self, relayed: Relayed) {
        if self.early.len() == EARLY_MAX {
            self.early.pop_front();
        }
        self.early.push_back(relayed);
    }

    /// What was kept for an id.
    pub(super) fn take_early(&mut self, id: RelayId) -> Vec<Relayed> {
        let early = std::mem::take(&mut self.early);
        let (mine, others): (Vec<_>, Vec<_>) = early.into_iter().partition(|one| one.relay == id);
        self.early = others.into();
        mine
    }

    pub(super) fn add_stream(&mut self, frames: mpsc::Sender<Frame>) -> StreamId {
        self.next_stream += 1;
        let stream = StreamId(self.next_stream);
        self.streams.insert(stream, Stream { frames, peer: None });
        stream
    }

    pub(super) fn stream(&self, stream: StreamId) -> Option<&mpsc::Sender<Frame>> {
        self.streams.get(&stream).map(|stream| &stream.frames)
    }

    pub(super) fn remove_stream(&mut self, stream: StreamId) {
        self.streams.remove(&stream);
    }

    pub(super) fn remove(&mut self, peer: Virtual) {
        if let Some(way) = self.peers.remove(&peer).and_then(|peer| peer.relay) {
            self.by_relay.remove(&way.id);
        }
        self.by_address.retain(|_, owner| *owner != peer);
        self.streams.retain(|_, stream| stream.peer != Some(peer));
    }

    /// Whose datagrams come from there, if anybody's.
    pub(super) fn at(&self, path: Path) -> Option<Virtual> {
        match path {
            Path::Udp(address) => self.by_address.get(&address).copied(),
            Path::Tcp(stream) => self.streams.get(&stream)?.peer,
            Path::Relay => None,
        }
    }

    /// Whose datagrams these are, from the relay; `from`: the address, if they came by UDP.
    pub(super) fn at_relay(&self, id: RelayId, from: Option<SocketAddr>) -> Option<Virtual> {
        let peer = self.by_relay.get(&id).copied()?;
        let server = self.peers.get(&peer)?.relay.as_ref()?.server;
        from.is_none_or(|from| server == Some(from)).then_some(peer)
    }

    /// Notes that data came; tells whether it is the first, before any path was chosen.
    pub(super) fn note(&self, peer: Virtual, path: Path) -> bool {
        let Some(peer) = self.peers.get(&peer) else {
            return false;
        };
        match peer.active {
            Some(active) if active == path => peer.flow.hear(),
            Some(_) => peer.flow.elsewhere.store(true, Ordering::Relaxed),
            None => return peer.fallback != Some(path),
        }
        false
    }

    pub(super) fn set_fallback(&mut self, peer: Virtual, path: Path) {
        if let Some(peer) = self.peers.get_mut(&peer) {
            peer.fallback = Some(path);
        }
    }
}

impl Peer {
    /// A datagram that has no way to go.
    pub(super) fn keep_first(&self, datagram: &[u8]) {
        let first = self.first.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(first) = first {
            // nobody waits for it any more
            let _ = first.send(FirstFlight(datagram.to_vec()));
        }
    }

    /// Where its datagrams go.
    pub(super) fn path(&self) -> Option<Path> {
        self.active.or(self.fallback)
    }
}

impl Flow {
    /// Tells whether it is the first datagram since something was heard.
    pub(super) fn sent(&self, began: Instant) -> bool {
        if self.unanswered.load(Ordering::Relaxed) != 0 {
            return false;
        }
        let now = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX - 1) + 1;
        self.unanswered.store(now, Ordering::Relaxed);
        true
    }

    fn hear(&self) {
        self.heard.store(true, Ordering::Relaxed);
        self.settle();
    }

    pub(super) fn settle(&self) {
        self.unanswered.store(0, Ordering::Relaxed);
    }

    pub(super) fn reset(&self) {
        self.settle();
        self.heard.store(false, Ordering::Relaxed);
        self.elsewhere.store(false, Ordering::Relaxed);
    }

    pub(super) fn look(&self, began: Instant) -> Activity {
        let unanswered = match self.unanswered.load(Ordering::Relaxed) {
            0 => None,
            millis => Some(began + Duration::from_millis(millis - 1)),
        };
        Activity {
            unanswered,
            heard: self.heard.swap(false, Ordering::Relaxed),
            elsewhere: self.elsewhere.swap(false, Ordering::Relaxed),
        }
    }
}
