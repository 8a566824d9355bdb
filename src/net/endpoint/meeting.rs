//! One match: its ladder, its way to the relay, its TCP streams.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use tokio::sync::mpsc;

use super::candidates::{candidates, stream_rung};
use super::driver::Surroundings;
use super::{Meet, PathEvent, PathInfo};
use crate::net::daemon;
use crate::net::pathmux::{Control, PathMux, Virtual};
use crate::proto::ladder::{Config, Ladder, Output};
use crate::proto::path::{Order, Path, Rung, StreamId};
use crate::proto::relay::binding::{self, Binding};
use crate::wire::probe::{Probe, ProbeTag, Role};
use crate::wire::relay::{Bind, RelayId};
use crate::wire::rendezvous::{MatchId, Public, Relayed, Routing};

/// A match that never got a path is forgotten after this.
const PATHLESS_MAX: Duration = Duration::from_secs(60);
/// How soon data that waits for an answer is looked at again.
pub(super) const WATCH_INTERVAL: Duration = Duration::from_millis(25);
/// Data that waits longer than this is watched by the path's own pings.
const WATCH_MAX: Duration = Duration::from_secs(2);

pub(super) struct Meeting {
    pub(super) match_id: MatchId,
    pub(super) peer: Virtual,
    key: [u8; 32],
    order: Order,
    routing: Routing,
    /// The registration's end, whose port TCP paths share, if it is our own.
    pub(super) local: Option<SocketAddr>,
    ladder: Ladder,
    relay: Option<Relay>,
    streams: BTreeMap<StreamId, SocketAddr>,
    events: mpsc::UnboundedSender<PathEvent>,
    began: Instant,
    ever_up: bool,
    pub(super) listening: bool,
    tried: usize,
    last: Option<Path>,
}

struct Relay {
    id: RelayId,
    server: Option<SocketAddr>,
    link: mpsc::Sender<Relayed>,
    binding: Option<Binding>,
    ready: bool,
}

impl Meeting {
    pub(super) fn new(
        meet: Meet,
        peer: Virtual,
        events: mpsc::UnboundedSender<PathEvent>,
        around: &Surroundings<'_>,
        now: Instant,
    ) -> Self {
        let Meet { introduction, link, role, wanted, ask_after, peer: _ } = meet;
        let relay = introduction.relay.as_ref().map(|grant| {
            let server = grant
                .udp
                .map(|udp| (udp.ip.unwrap_or_else(|| link.server.ip().to_canonical()), udp.port))
                .map(SocketAddr::from);
            around.mux.set_relay(peer, grant.id, server, link.relayed.clone());
            let binding = server.map(|_| Binding::new(grant, now));
            if let Some(first) = introduction.first.filter(|_| role == Role::Host) {
                around.mux.handle_first(peer, first);
            }
            Relay { id: grant.id, server, link: link.relayed, binding, ready: true }
        });
        let own = Routing { tcp_public: link.public, ..around.routing.clone() };
        let found = candidates(&introduction.routing, &own, wanted.order);
        tracing::debug!(?found, relay = relay.is_some(), "looking for a path");
        let config = Config {
            role,
            tag: tag_of(introduction.match_id),
            key: introduction.probe_key,
            first_nonce: u64::from_be_bytes(daemon::random()),
            wanted,
            ask_after,
        };
        Self {
            match_id: introduction.match_id,
            peer,
            key: introduction.probe_key,
            order: wanted.order,
            routing: introduction.routing,
            local: link.local,
            ladder: Ladder::new(config, &found, relay.is_some(), now),
            relay,
            streams: BTreeMap::new(),
            events,
            began: now,
            ever_up: false,
            listening: false,
            tried: 0,
            last: None,
        }
    }

    /// Whether it is still of use.
    pub(super) fn is_over(&self, now: Instant) -> bool {
        !self.ever_up && now >= self.began + PATHLESS_MAX
    }

    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        let binding = self.relay.as_ref().and_then(|relay| relay.binding.as_ref());
        let binding = binding.and_then(Binding::poll_timeout);
        self.ladder.poll_timeout().into_iter().chain(binding).min()
    }

    pub(super) fn handle_probe(&mut self, control: &Control, now: Instant) {
        self.ladder.handle_probe(&control.bytes, control.from, now);
    }

    /// A datagram of the relay; tells whether it was for this match.
    pub(super) fn handle_bind(&mut self, bytes: &[u8], from: SocketAddr, now: Instant) -> bool {
        let Some(relay) = self.relay.as_mut().filter(|relay| {
            relay.server == Some(from) && Bind::claimed_id(bytes) == Some(relay.id)
        }) else {
            return false;
        };
        if let Some(binding) = &mut relay.binding {
            binding.handle_datagram(bytes, now);
        }
        true
    }

    /// The server sees the peer elsewhere.
    pub(super) fn handle_moved(&mut self, public: Public, own: &Routing, now: Instant) {
        self.routing.udp_public = public.udp.or(self.routing.udp_public);
        self.routing.tcp_public = public.tcp.or(self.routing.tcp_public);
        self.retry(own, now);
    }

    /// Something has changed on our side or the peer's.
    pub(super) fn retry(&mut self, own: &Routing, now: Instant) {
        let found = candidates(&self.routing, own, self.order);
        self.ladder.handle_moved(&found, now);
    }

    pub(super) fn handle_authenticated(&mut self, now: Instant) {
        self.ladder.handle_authenticated(now);
    }

    pub(super) fn handle_dial_failed(&mut self, to: SocketAddr, now: Instant) {
        self.ladder.handle_dial_failed(to, now);
    }

    /// A stream that we made.
    pub(super) fn handle_dialled(
        &mut self,
        to: SocketAddr,
        stream: StreamId,
        rung: Rung,
        now: Instant,
    ) {
        self.ladder.handle_dialled(to);
        self.streams.insert(stream, to);
        self.ladder.handle_stream(stream, rung, now);
    }

    /// Whether somebody who connected from there may be the peer.
    pub(super) fn may_come_from(&self, ip: std::net::IpAddr) -> bool {
        let known = self.routing.tcp_private.iter().chain(&self.routing.udp_private);
        known
            .chain(&self.routing.tcp_public)
            .chain(&self.routing.udp_public)
            .any(|known| known.ip() == ip)
    }

    /// Whether the peer may connect to this port.
    pub(super) fn listens_at(&self, port: u16) -> bool {
        self.listening && self.local.is_some_and(|local| local.port() == port)
    }

    /// Whether a probe is the peer's.
    pub(super) fn verifies(&self, probe: &[u8]) -> bool {
        Probe::open(probe, &self.key).is_some()
    }

    /// A stream that the peer made, whose first probe verifies.
    pub(super) fn handle_accepted(
        &mut self,
        from: SocketAddr,
        stream: StreamId,
        probe: &[u8],
        now: Instant,
    ) {
        self.streams.insert(stream, from);
        self.ladder.handle_stream(stream, stream_rung(&self.routing, from), now);
        self.ladder.handle_probe(probe, Path::Tcp(stream), now);
    }

    /// A stream ended; tells whether it was one of ours.
    pub(super) fn handle_closed(&mut self, stream: StreamId, now: Instant) -> bool {
        let ours = self.streams.remove(&stream).is_some();
        if ours {
            self.ladder.handle_stream_closed(stream, now);
        }
        ours
    }

    /// Ends the streams.
    pub(super) fn close(&self, mux: &PathMux) {
        for stream in self.streams.keys() {
            mux.remove_stream(*stream);
        }
        mux.remove_peer(self.peer);
    }

    /// Looks at what data does; tells whether to look again soon.
    pub(super) fn watch(&mut self, mux: &PathMux, now: Instant) -> bool {
        let mut activity = mux.activity(self.peer);
        let answered = self.ladder.answered_at();
        // the time when it was sent is cut to a millisecond
        let before = |since| answered > Some(since + Duration::from_millis(1));
        let is_settled = |since| before(since) || now >= since + WATCH_MAX;
        if activity.unanswered.is_some_and(is_settled) {
            // it wanted no answer (an acknowledgement), or pings see to it: what comes next counts
            mux.settle(self.peer);
            activity.unanswered = None;
        }
        self.ladder.handle_activity(activity, now);
        activity.unanswered.is_some()
    }

    /// Does what the machines want; tells what is to be dialled.
    pub(super) fn drive(
        &mut self,
        around: &Surroundings<'_>,
        now: Instant,
    ) -> Vec<(SocketAddr, Rung)> {
        self.drive_relay(around.mux, now);
        self.ladder.handle_timeout(now);
        let mut dials = Vec::new();
        while let Some(output) = self.ladder.poll_output() {
            match output {
                Output::Transmit { path, bytes } => {
                    around.mux.send_probe(self.peer, path, &bytes);
                }
                Output::Dial { to, rung } => dials.push((to, rung)),
                Output::Listen(listening) => self.listening = listening,
                Output::Proved { path } => around.mux.accept(self.peer, path),
                Output::Use { path, rung, rtt } => {
                    self.ever_up = true;
                    around.mux.set_path(self.peer, path);
                    if self.last.replace(path) != Some(path) {
                        tracing::debug!(%path, rung = rung.as_str(), ?rtt, "path up");
                    }
                    self.tell(PathEvent::Up(self.info(path, rung, rtt)));
                }
                Output::Hedge(path) => around.mux.set_hedge(self.peer, path),
                Output::Kick => around.kick(),
                Output::CheckRelay => {
                    if let Some(binding) =
                        self.relay.as_mut().and_then(|relay| relay.binding.as_mut())
                    {
                        binding.check(now);
                    }
                }
                Output::Down => {
                    self.last = None;
                    self.tell(PathEvent::Down);
                }
                Output::Asked => self.tell(PathEvent::Asked),
                Output::Close(stream) => around.mux.remove_stream(stream),
            }
        }
        self.drive_relay(around.mux, now);
        if self.tried != self.ladder.tried().len() {
            self.tried = self.ladder.tried().len();
            self.tell(PathEvent::Tried(self.ladder.tried().to_vec()));
        }
        dials
    }

    fn drive_relay(&mut self, mux: &PathMux, now: Instant) {
        let Some(relay) = &mut self.relay else { return };
        if let Some(binding) = &mut relay.binding {
            binding.handle_timeout(now);
            while let Some(output) = binding.poll_output() {
                match (output, relay.server) {
                    (binding::Output::Transmit(bytes), Some(server)) => {
                        mux.send_control(server, &bytes);
                    }
                    (binding::Output::Bound(bound), _) => {
                        tracing::debug!(bound, "relay by UDP");
                        mux.set_relay_bound(self.peer, bound);
                    }
                    (binding::Output::Transmit(_), None) => {}
                }
            }
        }
        let bound = relay.binding.as_ref().is_some_and(Binding::is_bound);
        let ready = bound || !relay.link.is_closed();
        if ready != relay.ready {
            relay.ready = ready;
            self.ladder.handle_relay(ready, now);
        }
    }

    fn info(&self, path: Path, rung: Rung, rtt: Option<Duration>) -> PathInfo {
        let address = match path {
            Path::Udp(address) => Some(address),
            Path::Tcp(stream) => self.streams.get(&stream).copied(),
            Path::Relay => self.relay.as_ref().and_then(|relay| relay.server),
        };
        let tried = self.ladder.tried().to_vec();
        PathInfo { rung, address, rtt, tried }
    }

    fn tell(&self, event: PathEvent) {
        let _ = self.events.send(event);
    }
}

pub(super) fn tag_of(match_id: MatchId) -> ProbeTag {
    let mut tag = [0; 8];
    tag.copy_from_slice(&match_id.0[..8]);
    ProbeTag(tag)
}
