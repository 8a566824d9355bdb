//! A daemon's network side: the mux, quinn above it, and the driver that runs STUN, matches and TCP
//! streams.

mod candidates;
mod driver;
mod meeting;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot, watch};
use tokio::task::JoinHandle;

use crate::failure::{Code, Failure};
use crate::limits::COMMANDS_WAITING_MAX;
use crate::net::congestion::PathEpoch;
use crate::net::direct::DirectRuntime;
use crate::net::pathmux::PathMux;
pub use crate::net::pathmux::Virtual;
use crate::net::quic;
use crate::net::rendezvous::{FirstFlight, Introduction, RelayInbox, ServerLink};
use crate::proto::ladder::Tried;
use crate::proto::path::{Path, Rung, Wanted};
use crate::wire::probe::Role;
use crate::wire::rendezvous::{MatchId, Public, Routing};

use self::driver::Driver;

/// The network side.
#[derive(Debug)]
pub struct Endpoint {
    /// QUIC over the paths; peers have [`Virtual`] addresses.
    pub quic: quinn::Endpoint,
    mux: Arc<PathMux>,
    /// What peers and servers decide the rate of comes in turns.
    commands: mpsc::UnboundedSender<Command>,
    turns: Arc<Semaphore>,
    routing: watch::Receiver<Routing>,
    driver: JoinHandle<()>,
}

/// What happens to a peer's path.
#[derive(Clone, Debug)]
pub enum PathEvent {
    /// There is one, or another one.
    Up(PathInfo),
    /// There is none any more.
    Down,
    /// The host asks us to identify ourselves.
    Asked,
    /// What was tried so far.
    Tried(Vec<Tried>),
}

/// A path.
#[derive(Clone, Debug)]
pub struct PathInfo {
    /// Which kind.
    pub rung: Rung,
    /// The peer's address, or the relay's.
    pub address: Option<SocketAddr>,
    /// How long a probe took there and back.
    pub rtt: Option<Duration>,
    /// What was tried before it.
    pub tried: Vec<Tried>,
}

/// How a client identified itself (R7, R8, R21).
#[derive(Clone, Copy, Debug)]
pub(crate) struct Auth {
    /// 120: the client asked; 140: the host did.
    pub(crate) process: u16,
    /// The rung that its request went over.
    pub(crate) over: Rung,
}

impl Auth {
    /// Over this rung, because the host `asked` or not.
    pub(crate) fn over(rung: Rung, asked: bool) -> Self {
        let process = if asked { 140 } else { 120 };
        Self { process, over: rung }
    }

    /// Where request 21 went, in the patent's terms: what the relay brings comes from the server,
    /// as does all that the host's registration brings.
    fn to(self) -> &'static str {
        match self.over {
            Rung::UdpPrivate | Rung::TcpPrivate => "private",
            Rung::UdpIpv6 | Rung::UdpPublic => "udp-public",
            Rung::TcpPublic | Rung::Relay => "tcp-public",
        }
    }

    /// As `status` shows it.
    pub(crate) fn to_json(self) -> Value {
        json!({ "process": self.process, "to": self.to(), "over": self.over.as_str() })
    }
}

/// How we meet a peer.
#[derive(Debug)]
pub struct Meet {
    /// The match.
    pub introduction: Introduction,
    /// The connection that it came over.
    pub link: ServerLink,
    /// Which side we are.
    pub role: Role,
    /// What the owner wants of the paths.
    pub wanted: Wanted,
    /// As a host: when to ask the client to identify itself.
    pub ask_after: Option<Duration>,
    /// The peer, if QUIC knows it already.
    pub peer: Option<Virtual>,
}

impl PathInfo {
    /// As `status` shows it.
    pub(crate) fn to_json(&self) -> Value {
        json!({
            "kind": self.rung.kind(),
            "rung": self.rung.as_str(),
            "address": self.address.map(|address| address.to_string()),
            "rtt_ms": self.rtt.map(|rtt| rtt.as_secs_f64() * 1000.0),
            "tried": tried_json(&self.tried),
        })
    }
}

/// A peer's path as `status` shows it, also while there is none.
pub(crate) fn path_json(path: Option<&PathInfo>, tried: &[Tried]) -> Value {
    let nothing =
        || json!({ "kind": null, "rung": null, "rtt_ms": null, "tried": tried_json(tried) });
    path.map_or_else(nothing, PathInfo::to_json)
}

fn tried_json(tried: &[Tried]) -> Value {
    let line = |tried: &Tried| {
        let after = u64::try_from(tried.after.as_millis()).unwrap_or(u64::MAX);
        json!({ "rung": tried.rung.as_str(), "result": tried.result, "after_ms": after })
    };
    tried.iter().map(line).collect()
}

#[derive(Debug)]
enum Command {
    Stun(Vec<SocketAddr>),
    InUse(bool),
    Meet {
        meet: Box<Meet>,
        peer: Virtual,
        events: mpsc::UnboundedSender<PathEvent>,
    },
    Moved(MatchId, Public),
    Authenticated(Virtual),
    Remove(Virtual),
    /// What came before has been looked at.
    Turn(Turn),
}

/// A place among the commands that wait.
#[derive(Debug)]
pub(crate) struct Turn {
    _place: OwnedSemaphorePermit,
}

impl Endpoint {
    /// Binds and starts. A host gives `server`; a client dials with a configuration of its own.
    ///
    /// # Errors
    ///
    /// The UDP socket cannot be opened.
    pub fn start(
        listen: Option<SocketAddr>,
        server: Option<quinn::ServerConfig>,
        mac: Option<crate::identity::MacAddress>,
    ) -> Result<Self, Failure> {
        let at = listen.map_or_else(|| "a free port".to_owned(), |address| address.to_string());
        let no_socket = |error: std::io::Error| {
            Failure::new(
                Code::Internal,
                format!("cannot open a UDP socket on {at}: {error}"),
                "choose another address or port (--listen), or end the program that has it",
            )
        };
        let (mux, controls) = PathMux::bind(listen).map_err(no_socket)?;
        let quic = quinn::Endpoint::new_with_abstract_socket(
            quic::endpoint_config(),
            server,
            Arc::clone(&mux) as Arc<dyn quinn::AsyncUdpSocket>,
            Arc::new(DirectRuntime::current()),
        )
        .map_err(no_socket)?;
        let (routing, routing_out) = watch::channel(Routing { mac, ..Routing::default() });
        let (commands, commands_in) = mpsc::unbounded_channel();
        let driver = Driver::new(Arc::clone(&mux), quic.clone(), routing);
        let driver = tokio::spawn(driver.run(controls, commands_in));
        let turns = Arc::new(Semaphore::new(COMMANDS_WAITING_MAX));
        Ok(Self { quic, mux, commands, turns, routing: routing_out, driver })
    }

    /// Where we are, as far as we know; kept up to date.
    pub fn routing(&self) -> watch::Receiver<Routing> {
        self.routing.clone()
    }

    /// Where registrations put what the relay brings over their connections.
    pub fn relay_inbox(&self) -> RelayInbox {
        let mux = Arc::clone(&self.mux);
        RelayInbox::new(move |relayed| mux.handle_relayed(relayed))
    }

    /// Asks these servers again and again where our socket is seen.
    pub fn set_stun_servers(&self, servers: Vec<SocketAddr>) {
        let _ = self.commands.send(Command::Stun(servers));
    }

    /// Whether a session stands: mappings are then looked at more often.
    pub(crate) fn set_in_use(&self, in_use: bool) {
        let _ = self.commands.send(Command::InUse(in_use));
    }

    /// Looks for a path to a peer; the peer is known to quinn by the address of what is returned.
    pub fn meet(&self, meet: Meet) -> (Virtual, mpsc::UnboundedReceiver<PathEvent>) {
        let peer = meet.peer.unwrap_or_else(|| self.mux.add_peer());
        let (events, events_out) = mpsc::unbounded_channel();
        let _ = self.commands.send(Command::Meet { meet: Box::new(meet), peer, events });
        (peer, events_out)
    }

    /// A peer that is not met yet; what QUIC says to it first goes to `first`.
    pub(crate) fn expect(&self, first: oneshot::Sender<FirstFlight>) -> Virtual {
        self.mux.add_peer_with(first)
    }

    /// Waits until few enough commands wait for one more match.
    pub(crate) async fn turn(&self) -> Option<Turn> {
        // it is never closed
        Arc::clone(&self.turns).acquire_owned().await.ok().map(|place| Turn { _place: place })
    }

    /// What was said since [`Self::turn`] is what the turn was for.
    pub(crate) fn end_turn(&self, turn: Option<Turn>) {
        let _ = turn.map(|turn| self.commands.send(Command::Turn(turn)));
    }

    /// The server sees the peer of a match elsewhere; in vain while too much else is to be done.
    pub(crate) fn moved(&self, match_id: MatchId, public: Public) {
        let Ok(place) = Arc::clone(&self.turns).try_acquire_owned() else {
            tracing::debug!("peers move too often");
            return;
        };
        let _ = self.commands.send(Command::Moved(match_id, public));
        self.end_turn(Some(Turn { _place: place }));
    }

    /// The host has approved the client.
    pub(crate) fn authenticated(&self, peer: Virtual) {
        let _ = self.commands.send(Command::Authenticated(peer));
    }

    /// What a peer's data goes over, also before a path is chosen.
    pub(crate) fn first_path(&self, peer: Virtual) -> Option<PathInfo> {
        let (rung, address) = match self.mux.path(peer)? {
            Path::Relay => (Rung::Relay, None),
            Path::Udp(address) => (Rung::of_udp(address), Some(address)),
            Path::Tcp(_) => (Rung::TcpPublic, None),
        };
        Some(PathInfo { rung, address, rtt: None, tried: Vec::new() })
    }

    /// Counts a peer's paths, for the congestion state of its connections.
    pub(crate) fn epoch(&self, peer: Virtual) -> Arc<PathEpoch> {
        self.mux.epoch(peer)
    }

    /// Ends everything at once, without a farewell.
    pub(crate) fn stop(&self) {
        self.driver.abort();
        self.quic.close(0_u32.into(), b"");
    }

    /// Forgets a peer: its datagrams are a stranger's from now on.
    pub(crate) fn remove(&self, peer: Virtual) {
        let _ = self.commands.send(Command::Remove(peer));
    }
}

impl Drop for Endpoint {
    fn drop(&mut self) {
        self.stop();
    }
}

fn now() -> Instant {
    Instant::now()
}
