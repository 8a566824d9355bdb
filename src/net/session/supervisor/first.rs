//! The first connection: its handshake begins along with the request to be introduced, so that the
//! host's answer to it comes right behind the introduction.

use std::time::{Duration, Instant};

use quinn::{ConnectError, Connecting};
use tokio::sync::oneshot;

use super::{SILENCE_MIN, Supervisor};
use crate::limits::KEEP_ALIVE;
use crate::net::pathmux::Virtual;
use crate::net::quic;
use crate::net::rendezvous::{FirstFlight, Introduction};
use crate::proto::path::{Order, RelayUse};

/// How old a handshake may be that an introduction answers: QUIC has not begun to wait longer for
/// each next try.
const FIRST_MAX: Duration = Duration::from_secs(1);

/// A handshake whose beginning went along with our request to be introduced.
pub(super) struct First {
    peer: Virtual,
    connecting: Connecting,
    at: Instant,
}

impl First {
    /// The handshake, if it is with this peer.
    pub(super) fn into_handshake(self, peer: Virtual) -> Option<Connecting> {
        (self.peer == peer).then_some(self.connecting)
    }
}

impl Supervisor {
    /// Begins a handshake with the host that we are about to be introduced to, where the relay may
    /// carry the answer.
    pub(super) fn begin_first(&mut self, said: oneshot::Sender<FirstFlight>) {
        let wanted = &self.config.wanted;
        let by_relay = wanted.order == Order::Auto && wanted.relay_use() == RelayUse::First;
        if !by_relay || wanted.auth_to.is_some() || self.first.is_some() || self.peer.is_some() {
            return;
        }
        let peer = self.endpoint.expect(said);
        match self.dial(peer) {
            Ok(connecting) => {
                self.first = Some(First { peer, connecting, at: Instant::now() });
            }
            Err(error) => {
                tracing::warn!(%error, "cannot dial");
                self.endpoint.remove(peer);
            }
        }
    }

    /// The peer that this host is, if the handshake that has begun reached it.
    pub(super) fn first_peer(&mut self, introduction: &Introduction) -> Option<Virtual> {
        let first = self.first.as_ref()?;
        let answered = introduction.first.is_some() && introduction.relay.is_some();
        if answered && first.at.elapsed() < FIRST_MAX {
            return Some(first.peer);
        }
        self.endpoint.remove(first.peer);
        self.first = None;
        None
    }

    /// Begins a handshake.
    pub(super) fn dial(&self, peer: Virtual) -> Result<Connecting, ConnectError> {
        // a host that is silent for the grace has missed two
        let keep_alive = self.config.grace.map_or(KEEP_ALIVE, |grace| grace.max(SILENCE_MIN) / 3);
        let epoch = self.endpoint.epoch(peer);
        let config = quic::client_on(&self.quic, epoch, keep_alive.min(KEEP_ALIVE));
        self.endpoint.quic.connect_with(config, peer.address(), "host.p2pfs")
    }
}
