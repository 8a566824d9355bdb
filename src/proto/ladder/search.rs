//! Looking for paths: which candidates are probed and dialled, and when.

use std::time::{Duration, Instant};

use super::{Ladder, Output, RUNG_TIME, Tried};
use crate::limits::{PROBE_INTERVAL, PUNCH_ROUND};
use crate::proto::path::{Path, RelayUse, Rung};
use crate::wire::probe::{Probe, ProbeKind, Role};

/// After a round without an answer, and while nothing works, candidates are probed this often.
const SLOW_INTERVAL: Duration = Duration::from_secs(1);
/// A round that looks for something better.
const RETRY_ROUND: Duration = Duration::from_millis(500);
/// When something better is looked for, after a path was taken; then again and again.
const RETRIES: [u64; 6] = [1, 2, 5, 10, 30, 60];
/// TCP is dialled when UDP has had this long.
const TCP_AFTER: Duration = Duration::from_millis(300);
/// How long TCP is dialled: a client that climbs rung by rung comes to its TCP rungs within it.
const TCP_TIME: Duration = Duration::from_secs(8);
/// How long TCP is dialled in later rounds.
const TCP_RETRY: Duration = Duration::from_secs(2);
/// Between two attempts to connect to one address.
const DIAL_AGAIN: Duration = Duration::from_millis(50);

/// When what is tried.
#[derive(Debug)]
pub(super) struct Search {
    pub(super) began: Instant,
    round_ends: Instant,
    pub(super) next: Instant,
    retries: usize,
    tcp_from: Instant,
    tcp_until: Instant,
    /// The time of TCP was over when it was looked at last.
    tcp_over: bool,
    /// Rungs whose time is over are told once.
    told: bool,
}

/// The rung of the moment, where they are tried one by one.
#[derive(Debug)]
pub(super) struct Stage {
    rungs: &'static [Rung],
    at: usize,
    pub(super) began: Instant,
}

/// An address to connect to.
#[derive(Debug)]
pub(super) struct Target {
    rung: Rung,
    dialling: bool,
    retry_at: Instant,
}

impl Search {
    pub(super) fn new(now: Instant, tcp_at_once: bool) -> Self {
        Self {
            began: now,
            round_ends: now + PUNCH_ROUND,
            next: now,
            retries: 0,
            tcp_from: if tcp_at_once { now } else { now + TCP_AFTER },
            tcp_until: now + TCP_TIME,
            tcp_over: false,
            told: false,
        }
    }

    /// Whether the first round is over: what was to be found directly would be there.
    pub(super) fn is_vain(&self, now: Instant) -> bool {
        now >= self.began + PUNCH_ROUND
    }

    /// A path was taken: better ones are looked for after a while.
    pub(super) fn chose(&mut self, now: Instant) {
        self.retries = 0;
        self.next = self.next.max(now);
    }
}

impl Stage {
    pub(super) fn new(relay: RelayUse, rungs: &'static [Rung], now: Instant) -> Self {
        let rungs = match relay {
            RelayUse::Never => &rungs[..rungs.len() - 1],
            RelayUse::First | RelayUse::Last => rungs,
        };
        Self { rungs, at: 0, began: now }
    }

    pub(super) fn rung(&self) -> Rung {
        self.rungs[self.at]
    }

    pub(super) fn allows(&self, rung: Rung) -> bool {
        let current = self.rung();
        // the relay ends as soon as anything direct works
        rung == current
            || current == Rung::Relay
            || (rung == Rung::UdpIpv6 && current == Rung::UdpPublic)
    }
}

impl Target {
    pub(super) fn new(rung: Rung, now: Instant) -> Self {
        Self { rung, dialling: false, retry_at: now }
    }
}

impl Ladder {
    /// Connecting to an address failed, or was given up.
    pub fn handle_dial_failed(&mut self, to: std::net::SocketAddr, now: Instant) {
        if let Some(target) = self.targets.get_mut(&to) {
            target.dialling = false;
            target.retry_at = now + DIAL_AGAIN;
        }
    }

    /// Connecting to an address succeeded.
    pub fn handle_dialled(&mut self, to: std::net::SocketAddr) {
        if let Some(target) = self.targets.get_mut(&to) {
            target.dialling = false;
        }
    }

    /// A new round begins now.
    pub(super) fn search_now(&mut self, now: Instant) {
        self.search.round_ends = now
            + RETRY_ROUND.max(match self.active {
                Some(_) => RETRY_ROUND,
                None => PUNCH_ROUND,
            });
        self.search.next = self.search.next.min(now);
        self.search.tcp_from = self.search.tcp_from.min(now);
        self.search.tcp_until = self.search.tcp_until.max(now + TCP_RETRY);
    }

    /// The first rung again, with nothing tried.
    pub(super) fn restart(&mut self, now: Instant) {
        if let Some(stage) = &mut self.stage {
            stage.at = 0;
            stage.began = now;
            self.tried.clear();
        }
        self.search.began = now;
        self.search.tcp_from = now;
        self.search.tcp_until = now + TCP_TIME;
    }

    /// The next rung, when this one's time is over.
    pub(super) fn climb(&mut self, now: Instant) {
        if self.stage.is_none() {
            self.tell_vain(now);
            return;
        }
        while self.is_climbing()
            && let Some(stage) = &mut self.stage
            && now >= stage.began + RUNG_TIME
        {
            let tried = Tried { rung: stage.rung(), result: "timeout", after: RUNG_TIME };
            // the timer may be late, and each rung has its own time
            stage.began = (stage.began + RUNG_TIME).max(now - RUNG_TIME / 10);
            stage.at += 1;
            let again = stage.at == stage.rungs.len();
            if again {
                stage.at = 0;
                self.tried.clear();
            } else {
                self.note(tried);
            }
            self.search.next = now;
            self.search.round_ends = now + RUNG_TIME;
            self.search.tcp_until = now + TCP_TIME;
            self.consider(now);
        }
    }

    pub(super) fn stage_wake(&self) -> Option<Instant> {
        let ends = self.stage.as_ref().map(|stage| stage.began + RUNG_TIME)?;
        self.is_climbing().then_some(ends)
    }

    /// Nothing direct has won yet.
    fn is_climbing(&self) -> bool {
        let Some(stage) = &self.stage else {
            return false;
        };
        match &self.active {
            None => true,
            Some(active) => active.rung == Rung::Relay && !stage.allows(Rung::Relay),
        }
    }

    /// The patent's times, as deadlines of what is tried at once.
    fn tell_vain(&mut self, now: Instant) {
        if self.search.told || now < self.search.began + TCP_AFTER + RUNG_TIME {
            return;
        }
        self.search.told = true;
        for rung in [Rung::UdpPublic, Rung::TcpPrivate, Rung::TcpPublic] {
            let known = self.paths.values().any(|candidate| candidate.rung == rung)
                || self.targets.values().any(|target| target.rung == rung);
            let is_up = self.tried.iter().any(|tried| tried.rung <= rung);
            if known && !is_up {
                self.note(Tried { rung, result: "timeout", after: RUNG_TIME });
            }
        }
    }

    /// Probes what might become a better path.
    pub(super) fn look(&mut self, now: Instant) {
        if self.search.next > now {
            return;
        }
        let wanted: Vec<Path> =
            self.paths.keys().copied().filter(|path| self.is_wanted(*path)).collect();
        if now >= self.search.round_ends && self.active.is_some() {
            self.begin_retry(now, !wanted.is_empty() || self.may_dial_better());
        }
        for path in wanted {
            self.ping(path, now);
        }
        let in_round = now < self.search.round_ends;
        self.search.next = match &self.active {
            _ if in_round => now + PROBE_INTERVAL,
            None => now + SLOW_INTERVAL,
            Some(_) => now + self.retry_pause(),
        };
    }

    pub(super) fn search_wake(&self) -> Option<Instant> {
        let looks = self.paths.keys().any(|path| self.is_wanted(*path)) || self.may_dial_better();
        let look = looks.then_some(self.search.next);
        let dials = self.targets.values().filter(|target| self.may_dial(target));
        let dial = dials.map(|target| target.retry_at.max(self.search.tcp_from)).min();
        let dial = dial.filter(|_| !self.search.tcp_over);
        let vain = self.search.began + TCP_AFTER + RUNG_TIME;
        let vain = (self.stage.is_none() && !self.search.told).then_some(vain);
        let listen = (self.listening && self.stage.is_none()).then_some(self.search.tcp_until);
        [look, dial, vain, listen].into_iter().flatten().min()
    }

    /// A round that looks for something better: the client tells the host, so that both do.
    fn begin_retry(&mut self, now: Instant, useful: bool) {
        if !useful {
            return;
        }
        self.search.retries += 1;
        self.search.round_ends = now + RETRY_ROUND;
        self.search.tcp_until = self.search.tcp_until.max(now + TCP_RETRY);
        if self.config.role == Role::Client
            && let Some(path) = self.active.as_ref().map(|active| active.path)
        {
            let nonce = self.draw();
            let (role, tag) = (self.config.role, self.config.tag);
            self.transmit(path, Probe { kind: ProbeKind::Search, role, tag, nonce });
        }
    }

    fn retry_pause(&self) -> Duration {
        Duration::from_secs(RETRIES[self.search.retries.min(RETRIES.len() - 1)])
    }

    /// Only what would be better than the path in use is probed, and only on the rung of the
    /// moment.
    fn is_wanted(&self, path: Path) -> bool {
        let Some(candidate) = self.paths.get(&path) else {
            return false;
        };
        if path == Path::Relay {
            return self.relay_ready && candidate.suspect;
        }
        !self.works(path) && self.is_better(candidate.rung) && self.is_tried(candidate.rung)
    }

    fn is_better(&self, rung: Rung) -> bool {
        self.active.as_ref().is_none_or(|active| rung < active.rung)
    }

    fn is_tried(&self, rung: Rung) -> bool {
        self.stage.as_ref().is_none_or(|stage| {
            let open = self.active.as_ref().is_none_or(|active| active.rung == Rung::Relay);
            stage.allows(rung) && open
        })
    }

    fn may_dial(&self, target: &Target) -> bool {
        let has_stream = |rung| {
            let of = |(path, one): (&Path, &super::Candidate)| {
                matches!(path, Path::Tcp(_)) && one.rung == rung
            };
            self.paths.iter().any(of)
        };
        self.config.wanted.side.connects()
            && !target.dialling
            && self.is_better(target.rung)
            && self.is_tried(target.rung)
            && !has_stream(target.rung)
    }

    fn may_dial_better(&self) -> bool {
        self.targets.values().any(|target| self.may_dial(target))
    }

    /// Connects, and lets the peer connect.
    pub(super) fn dial(&mut self, now: Instant) {
        // a client's TCP rungs have their own time
        let in_time =
            self.stage.is_some() || (self.search.tcp_from <= now && now < self.search.tcp_until);
        self.search.tcp_over = self.stage.is_none() && now >= self.search.tcp_until;
        let tries_tcp = [Rung::TcpPrivate, Rung::TcpPublic]
            .into_iter()
            .any(|rung| self.is_better(rung) && self.is_tried(rung));
        let listens = self.config.wanted.side.listens() && in_time && tries_tcp;
        if listens != self.listening {
            self.listening = listens;
            self.outputs.push_back(Output::Listen(listens));
        }
        if !in_time {
            return;
        }
        let due: Vec<_> = self
            .targets
            .iter()
            .filter(|(_, target)| target.retry_at <= now && self.may_dial(target))
            .map(|(to, target)| (*to, target.rung))
            .collect();
        for (to, rung) in due {
            if let Some(target) = self.targets.get_mut(&to) {
                target.dialling = true;
            }
            self.outputs.push_back(Output::Dial { to, rung });
        }
    }
}
