//! A daemon's UDP side: the mux, quinn above it, and the driver that runs STUN and probes.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use quinn::TokioRuntime;
use serde_json::{Value, json};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

use crate::failure::{Code, Failure};
use crate::limits::{RENDEZVOUS_IDLE_INTERVAL, RENDEZVOUS_INTERVAL};
use crate::net::daemon;
use crate::net::interfaces;
use crate::net::pathmux::{Control, PathMux, Virtual};
use crate::net::quic;
use crate::net::rendezvous::Introduction;
use crate::proto::punch::{self, Punch, Rung};
use crate::proto::stun::{StunClient, StunOutput};
use crate::wire::probe::{Probe, ProbeTag, Role};
use crate::wire::rendezvous::Routing;

/// How often this machine's own addresses are read again.
const INTERFACES_INTERVAL: Duration = Duration::from_secs(5);
/// A match that never got a path is forgotten after this.
const PATHLESS_MAX: Duration = Duration::from_secs(60);

/// The UDP side.
#[derive(Debug)]
pub(crate) struct Endpoint {
    pub(crate) quic: quinn::Endpoint,
    mux: Arc<PathMux>,
    commands: mpsc::UnboundedSender<Command>,
    routing: watch::Receiver<Routing>,
    driver: JoinHandle<()>,
}

/// What happens to a peer's path.
#[derive(Clone, Copy, Debug)]
pub(crate) enum PathEvent {
    Up(PathInfo),
    Down,
}

/// A path.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PathInfo {
    pub(crate) address: SocketAddr,
    pub(crate) rung: Rung,
    pub(crate) rtt: Duration,
    /// Since the search began.
    pub(crate) after: Duration,
}

impl PathInfo {
    /// As `status` shows it.
    pub(crate) fn to_json(self) -> Value {
        let rung = self.rung.as_str();
        json!({
            "kind": "udp",
            "rung": rung,
            "address": self.address.to_string(),
            "rtt_ms": self.rtt.as_secs_f64() * 1000.0,
            "tried": [{ "rung": rung, "result": "up", "after_ms": self.after.as_millis() }],
        })
    }

    /// Where request 21 went, in the patent's terms.
    pub(crate) fn auth_to(self) -> &'static str {
        match self.rung {
            Rung::UdpPrivate => "private",
            Rung::UdpIpv6 | Rung::UdpPublic => "udp-public",
        }
    }
}

#[derive(Debug)]
enum Command {
    Stun(Vec<SocketAddr>),
    InUse(bool),
    Punch { introduction: Box<Introduction>, role: Role, peer: Virtual, events: PathEvents },
    Remove(Virtual),
}

type PathEvents = mpsc::UnboundedSender<PathEvent>;

impl Endpoint {
    /// Binds and starts. A host gives `server`; a client dials with a configuration of its own.
    pub(crate) fn start(
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
            Arc::new(TokioRuntime),
        )
        .map_err(no_socket)?;
        let (routing, routing_out) = watch::channel(Routing { mac, ..Routing::default() });
        let (commands, commands_in) = mpsc::unbounded_channel();
        let mut driver = Driver {
            stun: StunClient::new(daemon::random(), RENDEZVOUS_IDLE_INTERVAL),
            mux: Arc::clone(&mux),
            routing,
            matches: BTreeMap::new(),
        };
        driver.read_interfaces();
        let driver = tokio::spawn(driver.run(controls, commands_in));
        Ok(Self { quic, mux, commands, routing: routing_out, driver })
    }

    /// Where we are, as far as we know; kept up to date.
    pub(crate) fn routing(&self) -> watch::Receiver<Routing> {
        self.routing.clone()
    }

    /// Asks these servers again and again where our socket is seen.
    pub(crate) fn set_stun_servers(&self, servers: Vec<SocketAddr>) {
        let _ = self.commands.send(Command::Stun(servers));
    }

    /// Whether a session stands: mappings are then looked at more often.
    pub(crate) fn set_in_use(&self, in_use: bool) {
        let _ = self.commands.send(Command::InUse(in_use));
    }

    /// Looks for a path to a peer; the peer is known to quinn by the address of what is returned.
    pub(crate) fn punch(
        &self,
        introduction: Introduction,
        role: Role,
    ) -> (Virtual, mpsc::UnboundedReceiver<PathEvent>) {
        let peer = self.mux.add_peer();
        let (events, events_out) = mpsc::unbounded_channel();
        let introduction = Box::new(introduction);
        let _ = self.commands.send(Command::Punch { introduction, role, peer, events });
        (peer, events_out)
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

struct Driver {
    mux: Arc<PathMux>,
    stun: StunClient,
    routing: watch::Sender<Routing>,
    matches: BTreeMap<ProbeTag, Match>,
}

struct Match {
    punch: Punch,
    peer: Virtual,
    events: PathEvents,
    began: Instant,
    ever_up: bool,
}

impl Driver {
    async fn run(
        mut self,
        mut controls: mpsc::Receiver<Control>,
        mut commands: mpsc::UnboundedReceiver<Command>,
    ) {
        let mut interfaces = tokio::time::interval(INTERFACES_INTERVAL);
        loop {
            let wake = self.next_wake();
            tokio::select! {
                control = controls.recv() => match control {
                    Some(control) => self.handle_control(&control, now()),
                    None => return,
                },
                command = commands.recv() => match command {
                    Some(command) => self.handle_command(command, now()),
                    None => return,
                },
                () = tokio::time::sleep_until(wake.into()) => {}
                _ = interfaces.tick() => self.read_interfaces(),
            }
            self.drive(now());
        }
    }

    fn next_wake(&self) -> Instant {
        let punches = self.matches.values().filter_map(|one| one.punch.poll_timeout());
        let far = now() + INTERFACES_INTERVAL;
        punches.chain(self.stun.poll_timeout()).min().unwrap_or(far)
    }

    fn handle_control(&mut self, control: &Control, now: Instant) {
        if self.stun.handle_datagram(&control.bytes, control.from, now) {
            return;
        }
        if let Some(tag) = Probe::claimed_tag(&control.bytes)
            && let Some(one) = self.matches.get_mut(&tag)
        {
            one.punch.handle_probe(&control.bytes, control.from, now);
        }
    }

    fn handle_command(&mut self, command: Command, now: Instant) {
        match command {
            Command::Stun(servers) => self.stun.set_servers(&servers, now),
            Command::InUse(true) => self.stun.set_interval(RENDEZVOUS_INTERVAL, now),
            Command::InUse(false) => self.stun.set_interval(RENDEZVOUS_IDLE_INTERVAL, now),
            Command::Punch { introduction, role, peer, events } => {
                let tag = tag_of(&introduction);
                let own = self.routing.borrow().clone();
                let candidates = candidates(&introduction.routing, &own);
                tracing::debug!(?candidates, "looking for a path");
                let nonce = u64::from_be_bytes(daemon::random());
                let key = introduction.probe_key;
                let punch = Punch::new(role, tag, key, candidates, nonce, now);
                let one = Match { punch, peer, events, began: now, ever_up: false };
                self.matches.insert(tag, one);
            }
            Command::Remove(peer) => {
                self.matches.retain(|_, one| one.peer != peer);
                self.mux.remove_peer(peer);
            }
        }
    }

    fn drive(&mut self, now: Instant) {
        self.stun.handle_timeout(now);
        while let Some(output) = self.stun.poll_output() {
            match output {
                StunOutput::Transmit { to, bytes } => self.mux.send_control(to, &bytes),
                StunOutput::Mapped(address) => {
                    tracing::debug!(%address, "the server sees our socket here");
                    self.routing.send_if_modified(|routing| {
                        let changed = routing.udp_public != Some(address);
                        routing.udp_public = Some(address);
                        changed
                    });
                }
                StunOutput::Behaves(nat) => {
                    tracing::debug!(?nat, "how the NAT behaves");
                    self.routing.send_if_modified(|routing| routing.nat.replace(nat) != Some(nat));
                }
            }
        }
        let mux = &self.mux;
        self.matches.retain(|_, one| {
            one.drive(mux, now);
            let keep = one.ever_up || now < one.began + PATHLESS_MAX;
            if !keep {
                mux.remove_peer(one.peer);
            }
            keep
        });
    }

    fn read_interfaces(&mut self) {
        let Ok(port) = self.mux.port() else { return };
        let addresses = match self.mux.bound_ip() {
            Ok(ip) if !ip.is_unspecified() => vec![ip],
            _ => interfaces::addresses(),
        };
        let private: Vec<SocketAddr> =
            addresses.into_iter().map(|ip| SocketAddr::new(ip, port)).collect();
        self.stun.set_own(&private);
        self.routing.send_if_modified(|routing| {
            let changed = routing.udp_private != private;
            routing.udp_private = private;
            changed
        });
    }
}

impl Match {
    fn drive(&mut self, mux: &PathMux, now: Instant) {
        self.punch.handle_timeout(now);
        while let Some(output) = self.punch.poll_output() {
            match output {
                punch::Output::Transmit { to, bytes } => mux.send_control(to, &bytes),
                punch::Output::Proved { address } => mux.accept(self.peer, address),
                punch::Output::PathUp { address, rung, rtt } => {
                    tracing::debug!(%address, rung = rung.as_str(), ?rtt, "path up");
                    self.ever_up = true;
                    mux.set_path(self.peer, address);
                    let after = now.saturating_duration_since(self.began);
                    let path = PathInfo { address, rung, rtt, after };
                    let _ = self.events.send(PathEvent::Up(path));
                }
                punch::Output::PathDown { address } => {
                    tracing::debug!(%address, "path silent");
                    let _ = self.events.send(PathEvent::Down);
                }
            }
        }
    }
}

fn tag_of(introduction: &Introduction) -> ProbeTag {
    let mut tag = [0; 8];
    tag.copy_from_slice(&introduction.match_id.0[..8]);
    ProbeTag(tag)
}

/// The peer's addresses that we may send to: a peer that lies about them must not make us probe
/// strangers. Loopback only if we are seen there ourselves, private addresses only if both sides
/// are behind the same public address or we have an address in the same network.
fn candidates(peer: &Routing, own: &Routing) -> Vec<SocketAddr> {
    let same_public = match (peer.udp_public, own.udp_public) {
        (Some(peer), Some(own)) => peer.ip() == own.ip(),
        _ => false,
    };
    let own_loopback = own.udp_public.is_some_and(|own| own.ip().is_loopback());
    let near = |ip: IpAddr| {
        own.udp_private.iter().any(|own| network(own.ip()) == network(ip)) || same_public
    };
    let allowed = |address: &SocketAddr| {
        let ip = address.ip();
        if address.port() == 0 || ip.is_unspecified() || ip.is_multicast() {
            return false;
        }
        if ip.is_loopback() {
            return own_loopback;
        }
        Rung::of(*address) != Rung::UdpPrivate || near(ip)
    };
    let all = peer.udp_public.iter().chain(&peer.udp_private);
    let mut found: Vec<SocketAddr> = Vec::new();
    for address in all.copied().filter(allowed) {
        if !found.contains(&address) {
            found.push(address);
        }
    }
    found
}

/// What two addresses of one local network have in common: 24 bits of IPv4, 64 of IPv6.
fn network(ip: IpAddr) -> u128 {
    match ip {
        IpAddr::V4(ip) => u128::from(u32::from(ip) >> 8),
        IpAddr::V6(ip) => u128::from(ip) >> 64 | 1 << 127,
    }
}

fn now() -> Instant {
    Instant::now()
}
