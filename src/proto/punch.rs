//! Finding and keeping a path: probes to every candidate, the first answer moves the connection.
//!
//! Both peers run this machine at once, so that each side's probes open its own NAT for the other's
//! (RFC 5128, 3.3). An address is proved when it has answered an authenticated ping of this match:
//! only then are QUIC's datagrams taken from it. A path is up when its address is proved and has
//! asked us in turn, so that the peer, too, takes what we send. Afterwards pings keep the NAT's
//! mapping alive (R6), and silence brings the search back.

use std::collections::{BTreeMap, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use crate::identity::Hidden;
use crate::limits::{CANDIDATES_MAX, KEEP_ALIVE, PROBE_INTERVAL, PUNCH_ROUND};
use crate::wire::probe::{PROBE_BYTES, Probe, ProbeKind, ProbeTag, Role};

/// After a round without an answer, candidates are probed this often.
const SLOW_INTERVAL: Duration = Duration::from_secs(1);
/// While a ping of the path in use is unanswered, it is repeated this often.
const DOUBT_INTERVAL: Duration = Duration::from_millis(250);
/// A path whose pings stay unanswered this long is down.
const SILENCE_MAX: Duration = Duration::from_secs(2);
/// Pings remembered for each address: the pings of [`SILENCE_MAX`] at [`PROBE_INTERVAL`].
const PINGS_MAX: usize = 40;

/// What kind of path an address gives; better ones first.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Rung {
    /// UDP inside one network.
    UdpPrivate,
    /// UDP over IPv6.
    UdpIpv6,
    /// UDP through the NATs.
    UdpPublic,
}

impl Rung {
    /// As `status` prints it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::UdpPrivate => "udp-private",
            Self::UdpIpv6 => "udp-ipv6",
            Self::UdpPublic => "udp-public",
        }
    }

    /// The rung that an address gives.
    pub fn of(address: SocketAddr) -> Self {
        match address.ip() {
            IpAddr::V4(ip) if ip.is_private() || ip.is_loopback() || ip.is_link_local() => {
                Self::UdpPrivate
            }
            IpAddr::V4(_) => Self::UdpPublic,
            IpAddr::V6(ip) if ip.is_loopback() || ip.is_unique_local() => Self::UdpPrivate,
            IpAddr::V6(_) => Self::UdpIpv6,
        }
    }
}

/// One match's search for a path.
#[derive(Debug)]
pub struct Punch {
    role: Role,
    tag: ProbeTag,
    key: Hidden,
    next_nonce: u64,
    candidates: BTreeMap<SocketAddr, Candidate>,
    active: Option<Active>,
    round_ends: Instant,
    next_probe: Instant,
    outputs: VecDeque<Output>,
}

/// What the driver is to do.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Output {
    /// Send a probe.
    Transmit {
        /// Where.
        to: SocketAddr,
        /// What.
        bytes: [u8; PROBE_BYTES],
    },
    /// Datagrams of the connection may come from here from now on.
    Proved {
        /// The address that answered.
        address: SocketAddr,
    },
    /// Datagrams of the connection go here from now on.
    PathUp {
        /// The address that answered.
        address: SocketAddr,
        /// What kind it is.
        rung: Rung,
        /// Round-trip time of the ping.
        rtt: Duration,
    },
    /// The path is silent; the search goes on.
    PathDown {
        /// The address that no longer answers.
        address: SocketAddr,
    },
}

#[derive(Debug, Default)]
struct Candidate {
    pings: VecDeque<(u64, Instant)>,
    /// The round-trip time of its last answer.
    proved: Option<Duration>,
    /// Whether it has asked us.
    asked: bool,
}

#[derive(Debug)]
struct Active {
    address: SocketAddr,
    rtt: Duration,
    next_ping: Instant,
    /// The first ping since something was heard.
    asked: Option<Instant>,
}

impl Punch {
    /// Starts to probe `candidates`: at most 16, the rest is left out. `first_nonce` is random.
    pub fn new(
        role: Role,
        tag: ProbeTag,
        key: [u8; 32],
        candidates: impl IntoIterator<Item = SocketAddr>,
        first_nonce: u64,
        now: Instant,
    ) -> Self {
        let mut punch = Self {
            role,
            tag,
            key: Hidden(key),
            next_nonce: first_nonce,
            candidates: BTreeMap::new(),
            active: None,
            round_ends: now + PUNCH_ROUND,
            next_probe: now,
            outputs: VecDeque::new(),
        };
        for address in candidates {
            punch.learn(address);
        }
        punch.handle_timeout(now);
        punch
    }

    /// A probe of this match arrived; what does not verify changes nothing.
    pub fn handle_probe(&mut self, datagram: &[u8], from: SocketAddr, now: Instant) {
        let Some(probe) = Probe::open(datagram, &self.key.0) else {
            return;
        };
        if probe.tag != self.tag || probe.role != self.role.peer() {
            return;
        }
        match probe.kind {
            ProbeKind::Ping => {
                let pong = Probe { kind: ProbeKind::Pong, role: self.role, ..probe };
                self.outputs
                    .push_back(Output::Transmit { to: from, bytes: pong.seal(&self.key.0) });
                // Perhaps a NAT gave the peer an address that it does not know itself
                self.learn(from);
                self.handle_asked(from, now);
            }
            ProbeKind::Pong => self.handle_pong(probe.nonce, from, now),
        }
    }

    /// Probes may be due, or a path dead.
    pub fn handle_timeout(&mut self, now: Instant) {
        self.check_active(now);
        if self.next_probe > now {
            return;
        }
        let better: Vec<SocketAddr> =
            self.candidates.keys().copied().filter(|to| self.is_wanted(*to)).collect();
        for to in better {
            self.ping(to, now);
        }
        let interval = if now < self.round_ends { PROBE_INTERVAL } else { SLOW_INTERVAL };
        self.next_probe = now + interval;
    }

    /// When [`Self::handle_timeout`] wants to be called.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let searching =
            self.candidates.keys().any(|to| self.is_wanted(*to)).then_some(self.next_probe);
        let keeping = self.active.as_ref().map(|active| match active.asked {
            Some(asked) => active.next_ping.min(asked + SILENCE_MAX),
            None => active.next_ping,
        });
        [searching, keeping].into_iter().flatten().min()
    }

    /// What to do next.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// The path in use, with its round-trip time.
    pub fn path(&self) -> Option<(SocketAddr, Rung, Duration)> {
        self.active.as_ref().map(|path| (path.address, Rung::of(path.address), path.rtt))
    }

    fn handle_asked(&mut self, from: SocketAddr, now: Instant) {
        let Some(candidate) = self.candidates.get_mut(&from) else { return };
        candidate.asked = true;
        match candidate.proved {
            Some(rtt) => self.consider(from, rtt, now),
            None => self.ping(from, now),
        }
    }

    fn handle_pong(&mut self, nonce: u64, from: SocketAddr, now: Instant) {
        let Some(candidate) = self.candidates.get_mut(&from) else { return };
        let Some(at) = candidate.pings.iter().position(|(asked, _)| *asked == nonce) else {
            return;
        };
        let rtt = now.saturating_duration_since(candidate.pings[at].1);
        candidate.pings.clear();
        let asked = candidate.asked;
        if candidate.proved.replace(rtt).is_none() {
            self.outputs.push_back(Output::Proved { address: from });
        }
        self.hear(from, now);
        if asked {
            self.consider(from, rtt, now);
        }
    }

    /// Takes an address that works both ways, unless the path in use is as good.
    fn consider(&mut self, address: SocketAddr, rtt: Duration, now: Instant) {
        let rung = Rung::of(address);
        match &mut self.active {
            Some(active) if active.address == address => active.rtt = rtt,
            Some(active) if Rung::of(active.address) <= rung => {}
            _ => {
                let next_ping = now + KEEP_ALIVE;
                self.active = Some(Active { address, rtt, next_ping, asked: None });
                self.outputs.push_back(Output::PathUp { address, rung, rtt });
            }
        }
    }

    fn check_active(&mut self, now: Instant) {
        let Some(active) = &mut self.active else {
            return;
        };
        if active.asked.is_some_and(|asked| now >= asked + SILENCE_MAX) {
            let address = active.address;
            self.active = None;
            self.candidates.insert(address, Candidate::default());
            self.round_ends = now + PUNCH_ROUND;
            self.next_probe = now;
            self.outputs.push_back(Output::PathDown { address });
            self.fall_back(now);
            return;
        }
        if now >= active.next_ping {
            active.next_ping = now + DOUBT_INTERVAL;
            active.asked.get_or_insert(now);
            let address = active.address;
            self.ping(address, now);
        }
    }

    /// Another address that works both ways takes the place of one that is silent.
    fn fall_back(&mut self, now: Instant) {
        let works = |(address, candidate): (&SocketAddr, &Candidate)| {
            let rtt = candidate.proved.filter(|_| candidate.asked)?;
            Some((Rung::of(*address), rtt, *address))
        };
        if let Some((_, rtt, address)) = self.candidates.iter().filter_map(works).min() {
            self.consider(address, rtt, now);
        }
    }

    /// Only addresses that would be better than the path in use are probed.
    fn is_wanted(&self, address: SocketAddr) -> bool {
        self.active.as_ref().is_none_or(|path| Rung::of(address) < Rung::of(path.address))
    }

    fn hear(&mut self, from: SocketAddr, now: Instant) {
        if let Some(active) = &mut self.active
            && active.address == from
        {
            active.asked = None;
            active.next_ping = now + KEEP_ALIVE;
        }
    }

    fn learn(&mut self, address: SocketAddr) {
        if self.candidates.len() < CANDIDATES_MAX {
            self.candidates.entry(address).or_default();
        }
    }

    fn ping(&mut self, to: SocketAddr, now: Instant) {
        let nonce = self.next_nonce;
        self.next_nonce = self.next_nonce.wrapping_add(1);
        let Some(candidate) = self.candidates.get_mut(&to) else {
            return;
        };
        if candidate.pings.len() == PINGS_MAX {
            candidate.pings.pop_front();
        }
        candidate.pings.push_back((nonce, now));
        let probe = Probe { kind: ProbeKind::Ping, role: self.role, tag: self.tag, nonce };
        self.outputs.push_back(Output::Transmit { to, bytes: probe.seal(&self.key.0) });
    }
}

#[cfg(test)]
mod tests;
