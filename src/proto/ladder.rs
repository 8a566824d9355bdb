//! The ladder: finding, choosing and keeping a path to a peer (R18, R19).
//!
//! Both peers run this machine at once, so that each side's probes open its own NAT for the other's
//! (RFC 5128, 3.3). A path works when it has answered an authenticated ping of this match, so that
//! QUIC's datagrams may be taken from it, and has asked us in turn, so that the peer takes ours.
//! The relay works as soon as there is one: both sides proved themselves to it.
//!
//! The client chooses, and says so (`Chosen`); the host follows. With `paths=auto` everything is
//! tried at once and the best path that works is used; else one rung after the other, each for
//! [`RUNG_TIME`], and the one that won is kept until it dies. Either side leaves a path that is
//! silent: see `active`.

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use crate::identity::Hidden;
use crate::limits::CANDIDATES_MAX;
use crate::proto::path::{Path, RelayUse, Rung, StreamId, Wanted};
use crate::wire::probe::{PROBE_BYTES, Probe, ProbeKind, ProbeTag, Role};

mod active;
mod search;

use active::Active;
use search::{Search, Stage, Target};

/// How long each rung is tried that is tried on its own (Fig. 6).
pub const RUNG_TIME: Duration = Duration::from_secs(2);
/// Pings remembered for each path.
const PINGS_MAX: usize = 40;
/// Paths of one match at most: candidates, TCP streams, the relay.
const PATHS_MAX: usize = CANDIDATES_MAX + 8;
/// Questions of the peer remembered: those of a minute of searching, of an hour on a path.
const HEARD_MAX: usize = 1024;
/// Lines that `tried` has at most.
const TRIED_MAX: usize = 16;
/// After a path was left it is not returned to for so long: the first time, and the longest.
const HOLD: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(160));
/// Between two requests of authentication 140.
const ASK_INTERVAL: Duration = Duration::from_millis(250);
/// The same, when the client has not come for a while.
const ASK_SLOWLY: Duration = Duration::from_secs(2);
/// Requests of authentication 140 that are made quickly.
const ASKS_QUICK: u32 = 20;

/// What a ladder needs to know.
#[derive(Debug)]
pub struct Config {
    /// Our side: the client chooses, the host follows.
    pub role: Role,
    /// The match.
    pub tag: ProbeTag,
    /// Authenticates its probes.
    pub key: [u8; 32],
    /// Random.
    pub first_nonce: u64,
    /// What our owner wants.
    pub wanted: Wanted,
    /// As a host: when to ask the client to identify itself (authentication 140).
    pub ask_after: Option<Duration>,
}

/// Where the peer may be.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Candidates {
    /// Addresses to probe.
    pub udp: Vec<(SocketAddr, Rung)>,
    /// Addresses to connect to.
    pub tcp: Vec<(SocketAddr, Rung)>,
    /// One side has not found out where its UDP comes from: most likely it is blocked there, and
    /// TCP does not wait for it.
    pub tcp_at_once: bool,
}

/// What data did since the last look.
#[derive(Clone, Copy, Debug, Default)]
pub struct Activity {
    /// When the first datagram was sent on the path in use since something came from there.
    pub unanswered: Option<Instant>,
    /// Whether something came from the path in use.
    pub heard: bool,
    /// Whether something came from another path.
    pub elsewhere: bool,
}

/// A rung that was tried.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Tried {
    /// Which.
    pub rung: Rung,
    /// `up` or `timeout`.
    pub result: &'static str,
    /// Since it was begun.
    pub after: Duration,
}

/// One match's ladder.
#[derive(Debug)]
pub struct Ladder {
    config: Config,
    key: Hidden,
    next_nonce: u64,
    /// The peer's questions, so that nobody is answered who plays one back.
    heard: VecDeque<u64>,
    paths: BTreeMap<Path, Candidate>,
    targets: BTreeMap<SocketAddr, Target>,
    relay_ready: bool,
    active: Option<Active>,
    unanswered: Option<Instant>,
    search: Search,
    stage: Option<Stage>,
    listening: bool,
    /// What the client has chosen, as far as we know, before it works for us.
    chosen: Option<Path>,
    /// As a client: not approved yet.
    auth_pending: bool,
    /// Where the host's request came from.
    asked_over: Option<Path>,
    ask_at: Option<Instant>,
    asks: u32,
    tried: Vec<Tried>,
    outputs: VecDeque<Output>,
}

/// What the driver is to do.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Output {
    /// Send a probe.
    Transmit {
        /// Over what.
        path: Path,
        /// What.
        bytes: [u8; PROBE_BYTES],
    },
    /// Connect by TCP, and say how it went.
    Dial {
        /// Where.
        to: SocketAddr,
        /// What it would be.
        rung: Rung,
    },
    /// Accept TCP connections of the peer, or no longer.
    Listen(bool),
    /// Datagrams of the connection may come from here from now on.
    Proved {
        /// What answered.
        path: Path,
    },
    /// Datagrams of the connection go here from now on. Comes again when the time changes.
    Use {
        /// Where.
        path: Path,
        /// What kind it is.
        rung: Rung,
        /// Round-trip time of the last ping, if there was one.
        rtt: Option<Duration>,
    },
    /// Datagrams go here as well, or no longer.
    Hedge(Option<Path>),
    /// QUIC should say something at once.
    Kick,
    /// The relay is wanted now: see that it still knows our address.
    CheckRelay,
    /// No path works; the search goes on.
    Down,
    /// The host asks us to identify ourselves (authentication 140).
    Asked,
    /// A stream is of no use any more.
    Close(StreamId),
}

#[derive(Debug)]
struct Candidate {
    rung: Rung,
    pings: VecDeque<(u64, Instant)>,
    /// The round-trip time of its last answer.
    proved: Option<Duration>,
    /// Whether it has asked us.
    asked: bool,
    answered_at: Option<Instant>,
    /// It was silent, and has not answered since.
    suspect: bool,
    not_before: Option<Instant>,
    hold: Duration,
}

impl Ladder {
    /// Starts to look for `candidates`; `relay_ready`: the relay can be used at once.
    pub fn new(config: Config, candidates: &Candidates, relay_ready: bool, now: Instant) -> Self {
        let key = Hidden(config.key);
        let rungs = match config.role {
            Role::Client => config.wanted.order.rungs(),
            Role::Host => &[],
        };
        let stage = (!rungs.is_empty()).then(|| Stage::new(config.wanted.relay_use(), rungs, now));
        let mut ladder = Self {
            key,
            next_nonce: config.first_nonce,
            heard: VecDeque::new(),
            paths: BTreeMap::new(),
            targets: BTreeMap::new(),
            relay_ready,
            active: None,
            unanswered: None,
            search: Search::new(now, candidates.tcp_at_once),
            stage,
            listening: false,
            chosen: None,
            auth_pending: config.role == Role::Client,
            asked_over: None,
            ask_at: config.ask_after.map(|after| now + after),
            asks: 0,
            tried: Vec::new(),
            outputs: VecDeque::new(),
            config,
        };
        ladder.paths.insert(Path::Relay, Candidate::new(Rung::Relay));
        ladder.learn_all(candidates, now);
        ladder.consider(now);
        ladder.handle_timeout(now);
        ladder
    }

    /// A probe of this match arrived; what does not verify changes nothing.
    pub fn handle_probe(&mut self, datagram: &[u8], from: Path, now: Instant) {
        let Some(probe) = Probe::open(datagram, &self.key.0) else {
            return;
        };
        if probe.tag != self.config.tag || probe.role != self.config.role.peer() {
            return;
        }
        if probe.kind != ProbeKind::Pong && !self.is_new(probe.nonce) {
            return;
        }
        match probe.kind {
            ProbeKind::Ping | ProbeKind::Chosen => {
                let role = self.config.role;
                let pong = Probe { kind: ProbeKind::Pong, role, ..probe };
                self.transmit(from, pong);
                // Perhaps a NAT gave the peer an address that it does not know itself
                if let Path::Udp(address) = from {
                    self.learn(from, Rung::of_udp(address));
                }
                if probe.kind == ProbeKind::Chosen && role == Role::Host {
                    self.chosen = Some(from);
                }
                // a client that has left this path waits to be asked on it again
                if probe.kind == ProbeKind::Ping && role == Role::Host && self.works(from) {
                    self.ping(from, now);
                }
                self.handle_asked(from, now);
            }
            ProbeKind::Pong => self.handle_pong(probe.nonce, from, now),
            ProbeKind::Search if self.config.role == Role::Host => self.search_now(now),
            ProbeKind::Ask if self.config.role == Role::Client && self.auth_pending => {
                self.asked_over = Some(from);
                self.outputs.push_back(Output::Asked);
                self.consider(now);
            }
            ProbeKind::Search | ProbeKind::Ask => {}
        }
    }

    /// Whether a question comes for the first time, as far as that is known.
    fn is_new(&mut self, nonce: u64) -> bool {
        if self.heard.contains(&nonce) {
            return false;
        }
        if self.heard.len() == HEARD_MAX {
            self.heard.pop_front();
        }
        self.heard.push_back(nonce);
        true
    }

    /// The peer may be somewhere else now, or we are.
    pub fn handle_moved(&mut self, candidates: &Candidates, now: Instant) {
        for path in self.paths.values_mut() {
            path.not_before = None;
        }
        self.learn_all(candidates, now);
        self.search_now(now);
        self.handle_timeout(now);
    }

    /// The relay can be used, or no longer.
    pub fn handle_relay(&mut self, ready: bool, now: Instant) {
        self.relay_ready = ready;
        if !ready && self.uses(Path::Relay) {
            self.lose(now);
        }
        self.consider(now);
    }

    /// A TCP stream to the peer was made, by either side; it carries probes from now on.
    pub fn handle_stream(&mut self, stream: StreamId, rung: Rung, now: Instant) {
        if self.paths.len() >= PATHS_MAX {
            self.outputs.push_back(Output::Close(stream));
            return;
        }
        let path = Path::Tcp(stream);
        self.paths.insert(path, Candidate::new(rung));
        self.ping(path, now);
        self.search.next = self.search.next.min(now + crate::limits::PROBE_INTERVAL);
    }

    /// A stream ended.
    pub fn handle_stream_closed(&mut self, stream: StreamId, now: Instant) {
        let path = Path::Tcp(stream);
        if self.uses(path) {
            self.lose(now);
        }
        self.paths.remove(&path);
        if let Some(active) = &mut self.active
            && active.hedge.is_some_and(|hedge| hedge.path == path)
        {
            active.hedge = None;
            self.outputs.push_back(Output::Hedge(None));
        }
    }

    /// Data was sent or came.
    pub fn handle_activity(&mut self, activity: Activity, now: Instant) {
        self.unanswered = activity.unanswered;
        let Some(active) = &mut self.active else {
            return;
        };
        if activity.heard {
            let path = active.path;
            self.hear(path, now);
        } else if activity.elsewhere && active.asked.is_none() {
            active.next_ping = now;
        }
    }

    /// As a client: the host has approved; every path may be used now. As a host: the client has
    /// identified itself.
    pub fn handle_authenticated(&mut self, now: Instant) {
        self.auth_pending = false;
        self.ask_at = None;
        self.consider(now);
    }

    /// Something may be due.
    pub fn handle_timeout(&mut self, now: Instant) {
        self.check_active(now);
        self.climb(now);
        self.look(now);
        self.dial(now);
        self.ask(now);
        self.consider(now);
    }

    /// When [`Self::handle_timeout`] wants to be called.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let timers = [self.search_wake(), self.active_wake(), self.stage_wake(), self.ask_at];
        timers.into_iter().flatten().min()
    }

    /// What to do next.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// The path in use.
    pub fn path(&self) -> Option<(Path, Rung, Option<Duration>)> {
        self.active.as_ref().map(|active| (active.path, active.rung, active.rtt))
    }

    /// When the path in use has answered a ping last.
    pub fn answered_at(&self) -> Option<Instant> {
        self.paths.get(&self.active.as_ref()?.path)?.answered_at
    }

    /// The rungs that were tried, in this order, since the search began.
    pub fn tried(&self) -> &[Tried] {
        &self.tried
    }

    fn handle_asked(&mut self, from: Path, now: Instant) {
        let Some(candidate) = self.paths.get_mut(&from) else { return };
        candidate.asked = true;
        if candidate.proved.is_none() || candidate.suspect {
            self.ping(from, now);
        }
        self.consider(now);
    }

    fn handle_pong(&mut self, nonce: u64, from: Path, now: Instant) {
        let Some(candidate) = self.paths.get_mut(&from) else { return };
        let Some(at) = candidate.pings.iter().position(|(asked, _)| *asked == nonce) else {
            return;
        };
        let rtt = now.saturating_duration_since(candidate.pings[at].1);
        candidate.pings.clear();
        candidate.suspect = false;
        candidate.answered_at = Some(now);
        if candidate.proved.replace(rtt).is_none() {
            self.outputs.push_back(Output::Proved { path: from });
        }
        if let Some(active) = &mut self.active
            && active.path == from
        {
            active.rtt = Some(rtt);
            let (path, rung) = (active.path, active.rung);
            self.outputs.push_back(Output::Use { path, rung, rtt: Some(rtt) });
        }
        self.hear(from, now);
        self.consider(now);
    }

    /// Takes the best path that works, if it is better than the one in use; a host takes what the
    /// client has chosen.
    fn consider(&mut self, now: Instant) {
        if self.config.role == Role::Host {
            if let Some(chosen) = self.chosen.filter(|chosen| self.works(*chosen)) {
                self.chosen = None;
                if !self.uses(chosen) {
                    self.take(chosen, now);
                }
            }
            return;
        }
        let Some((rung, rtt, path)) = self.best(now) else {
            return;
        };
        let better = match &self.active {
            None => true,
            Some(active) if active.path == path => false,
            Some(active) if rung != active.rung => {
                let may_leave = self.stage.is_none() || active.rung == Rung::Relay;
                may_leave && rung < active.rung
            }
            Some(active) => self.stage.is_none() && is_faster(rtt, active.rtt),
        };
        if better {
            self.take(path, now);
        }
    }

    fn best(&self, now: Instant) -> Option<(Rung, Option<Duration>, Path)> {
        let held = |candidate: &Candidate| {
            self.active.is_some() && candidate.not_before.is_some_and(|at| at > now)
        };
        self.paths
            .iter()
            .filter(|(path, candidate)| {
                self.works(**path) && self.may_use(**path, candidate.rung, now) && !held(candidate)
            })
            .map(|(path, candidate)| (candidate.rung, candidate.proved, *path))
            .min()
    }

    /// Whether datagrams go both ways.
    fn works(&self, path: Path) -> bool {
        let Some(candidate) = self.paths.get(&path) else {
            return false;
        };
        match path {
            Path::Relay => self.relay_ready && !candidate.suspect,
            Path::Udp(_) | Path::Tcp(_) => candidate.proved.is_some() && candidate.asked,
        }
    }

    /// Whether the owner lets us use it now.
    fn may_use(&self, path: Path, rung: Rung, now: Instant) -> bool {
        if self.auth_pending
            && let Some(to) = self.config.wanted.auth_to
            && !rung.leads_to(to)
            && self.asked_over != Some(path)
        {
            return false;
        }
        match (&self.stage, self.config.wanted.relay_use()) {
            (_, RelayUse::Never) if path == Path::Relay => false,
            (_, RelayUse::First) if path == Path::Relay => true,
            (None, RelayUse::Last) if path == Path::Relay => self.search.is_vain(now),
            (None, _) => true,
            (Some(stage), _) => stage.allows(rung),
        }
    }

    fn take(&mut self, path: Path, now: Instant) {
        let Some(candidate) = self.paths.get(&path) else { return };
        let (rung, rtt) = (candidate.rung, candidate.proved);
        if self.active.as_ref().is_some_and(|active| active.hedge.is_some()) {
            self.outputs.push_back(Output::Hedge(None));
        }
        self.active = Some(Active::new(path, rung, rtt, now));
        self.unanswered = None;
        self.outputs.push_back(Output::Use { path, rung, rtt });
        let after = match &self.stage {
            Some(stage) if rung != Rung::Relay || stage.allows(Rung::Relay) => {
                now.saturating_duration_since(stage.began)
            }
            _ => now.saturating_duration_since(self.search.began),
        };
        self.note(Tried { rung, result: "up", after });
        self.search.chose(now);
        // the host hears at once that it is chosen
        self.check_active(now);
    }

    fn note(&mut self, tried: Tried) {
        if self.tried.len() == TRIED_MAX {
            self.tried.remove(0);
        }
        self.tried.push(tried);
    }

    fn ask(&mut self, now: Instant) {
        if self.ask_at.is_none_or(|at| at > now) {
            return;
        }
        self.asks += 1;
        self.ask_at = Some(now + if self.asks < ASKS_QUICK { ASK_INTERVAL } else { ASK_SLOWLY });
        let over: Vec<Path> = self
            .paths
            .keys()
            .copied()
            .filter(|path| matches!(path, Path::Udp(_)) || self.works(*path))
            .collect();
        for path in over {
            let nonce = self.draw();
            let (role, tag) = (self.config.role, self.config.tag);
            self.transmit(path, Probe { kind: ProbeKind::Ask, role, tag, nonce });
        }
    }

    fn uses(&self, path: Path) -> bool {
        self.active.as_ref().is_some_and(|active| active.path == path)
    }

    fn learn_all(&mut self, candidates: &Candidates, now: Instant) {
        for (address, rung) in &candidates.udp {
            self.learn(Path::Udp(*address), *rung);
        }
        for (address, rung) in &candidates.tcp {
            if self.targets.len() < CANDIDATES_MAX {
                self.targets.entry(*address).or_insert_with(|| Target::new(*rung, now));
            }
        }
    }

    fn learn(&mut self, path: Path, rung: Rung) {
        if self.paths.contains_key(&path) {
            return;
        }
        if self.paths.len() > CANDIDATES_MAX {
            // one that has never answered makes room for one that is known to exist
            let useless = |(path, candidate): &(&Path, &Candidate)| {
                matches!(path, Path::Udp(_)) && candidate.proved.is_none() && !candidate.asked
            };
            let Some(useless) = self.paths.iter().find(useless).map(|(path, _)| *path) else {
                return;
            };
            self.paths.remove(&useless);
        }
        self.paths.insert(path, Candidate::new(rung));
    }

    fn ping(&mut self, path: Path, now: Instant) {
        let nonce = self.draw();
        let chosen = self.config.role == Role::Client && self.uses(path);
        let Some(candidate) = self.paths.get_mut(&path) else {
            return;
        };
        if candidate.pings.len() == PINGS_MAX {
            candidate.pings.pop_front();
        }
        candidate.pings.push_back((nonce, now));
        let kind = if chosen { ProbeKind::Chosen } else { ProbeKind::Ping };
        let (role, tag) = (self.config.role, self.config.tag);
        self.transmit(path, Probe { kind, role, tag, nonce });
    }

    fn draw(&mut self) -> u64 {
        let nonce = self.next_nonce;
        self.next_nonce = self.next_nonce.wrapping_add(1);
        nonce
    }

    fn transmit(&mut self, path: Path, probe: Probe) {
        self.outputs.push_back(Output::Transmit { path, bytes: probe.seal(&self.key.0) });
    }
}

impl Candidate {
    fn new(rung: Rung) -> Self {
        Self {
            rung,
            pings: VecDeque::new(),
            proved: None,
            asked: false,
            answered_at: None,
            suspect: false,
            not_before: None,
            hold: Duration::ZERO,
        }
    }

    /// It was left because it was silent.
    fn fail(&mut self, now: Instant) {
        self.hold = (self.hold * 2).clamp(HOLD.0, HOLD.1);
        self.not_before = Some(now + self.hold);
        self.forget();
    }

    /// Nothing is known of it any more.
    fn forget(&mut self) {
        self.pings.clear();
        self.proved = None;
        self.asked = false;
        self.answered_at = None;
        self.suspect = true;
    }
}

/// Between two paths of one kind: by both 5 ms and 10 %.
fn is_faster(new: Option<Duration>, old: Option<Duration>) -> bool {
    let (Some(new), Some(old)) = (new, old) else {
        return false;
    };
    new + Duration::from_millis(5) < old && new < old.mul_f64(0.9)
}

#[cfg(test)]
mod tests;
