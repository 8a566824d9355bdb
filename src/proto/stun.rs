//! The STUN client: asks each server again and again where our socket is seen (R2), and finds out
//! how the NAT behaves whenever it is another one.
//!
//! Pure: it shares its socket with QUIC and probes, so datagrams are handed in and out.

mod behaviour;

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use crate::identity::{Hidden, hmac};
use crate::limits::STUN_RTO;
use crate::wire::nat::{Mapping, NatBehaviour};
use crate::wire::stun::{self, Answered, Transaction};

use self::behaviour::{Discovery, Next};

/// Servers that are asked at once.
pub const SERVERS_MAX: usize = 16;
/// Requests of one transaction (RFC 8489, `Rc`).
const REQUESTS_MAX: u32 = 7;
/// The longest pause within a transaction: a lossy path is asked often enough all the same.
const RTO_MAX: Duration = Duration::from_secs(2);

/// Binding requests to a list of servers.
#[derive(Debug)]
pub struct StunClient {
    seed: Hidden,
    drawn: u64,
    interval: Duration,
    servers: Vec<Server>,
    own: Vec<SocketAddr>,
    nat: Option<Nat>,
    outputs: VecDeque<StunOutput>,
}

/// What to do next.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum StunOutput {
    /// Send a datagram.
    Transmit {
        /// The server.
        to: SocketAddr,
        /// The request.
        bytes: Vec<u8>,
    },
    /// A server sees our socket here: for the first time, or elsewhere than before.
    Mapped(SocketAddr),
    /// The NAT behaves so: after the first mapping, and after each change of it.
    Behaves(NatBehaviour),
}

/// What is known of the NAT, by one server that has two addresses.
#[derive(Debug)]
struct Nat {
    server: SocketAddr,
    mapped: SocketAddr,
    behaviour: NatBehaviour,
    discovery: Option<Discovery>,
}

#[derive(Debug)]
struct Server {
    address: SocketAddr,
    mapped: Option<SocketAddr>,
    state: State,
}

#[derive(Debug)]
enum State {
    Resting { until: Instant },
    Asking { transaction: Transaction, requests: u32, next: Instant, rto: Duration },
}

impl Server {
    fn wake(&self) -> Instant {
        match self.state {
            State::Resting { until } => until,
            State::Asking { next, .. } => next,
        }
    }
}

impl StunClient {
    /// A client without servers, which asks each every `interval`; transaction numbers come from
    /// `seed`, which must be fresh: whoever knows it can answer in a server's place.
    pub fn new(seed: [u8; 32], interval: Duration) -> Self {
        Self {
            seed: Hidden(seed),
            drawn: 0,
            interval,
            servers: Vec::new(),
            own: Vec::new(),
            nat: None,
            outputs: VecDeque::new(),
        }
    }

    /// Asks these servers from now on, at most [`SERVERS_MAX`]; those that were asked before go on.
    pub fn set_servers(&mut self, servers: &[SocketAddr], now: Instant) {
        let mut kept: Vec<Server> = Vec::new();
        for address in servers.iter().copied().map(canonical) {
            if kept.len() == SERVERS_MAX || kept.iter().any(|server| server.address == address) {
                continue;
            }
            let known = self.servers.iter().position(|known| known.address == address);
            kept.push(match known {
                Some(known) => self.servers.swap_remove(known),
                None => Server { address, mapped: None, state: State::Resting { until: now } },
            });
        }
        self.servers = kept;
        self.handle_timeout(now);
    }

    /// Our socket's addresses on this machine: one that is seen as it is has no NAT before it.
    pub fn set_own(&mut self, own: &[SocketAddr]) {
        self.own = own.to_vec();
    }

    /// Asks this often from now on.
    pub fn set_interval(&mut self, interval: Duration, now: Instant) {
        self.interval = interval;
        for server in &mut self.servers {
            if let State::Resting { until } = &mut server.state {
                *until = (*until).min(now + interval);
            }
        }
    }

    /// Asks every server now, as after a change of the network.
    pub fn ask_again(&mut self, now: Instant) {
        for server in &mut self.servers {
            server.state = State::Resting { until: now };
        }
        self.handle_timeout(now);
    }

    /// Takes a datagram; whether it was ours: an answer to what we asked, from whom we asked.
    pub fn handle_datagram(&mut self, datagram: &[u8], from: SocketAddr, now: Instant) -> bool {
        let Some(answered) = stun::binding_response(datagram) else {
            return false;
        };
        let from = canonical(from);
        if self.discovers(&answered, from, now) {
            return true;
        }
        let asked = |server: &&mut Server| match server.state {
            State::Asking { transaction, .. } => {
                server.address == from && transaction == answered.transaction
            }
            State::Resting { .. } => false,
        };
        let Some(server) = self.servers.iter_mut().find(asked) else {
            return false;
        };
        server.state = State::Resting { until: now + self.interval };
        if let Some(mapped) = answered.mapped.map(canonical) {
            if server.mapped != Some(mapped) {
                server.mapped = Some(mapped);
                self.outputs.push_back(StunOutput::Mapped(mapped));
            }
            self.notice(from, mapped, answered.other.map(canonical), now);
        }
        true
    }

    /// A server sees us at `mapped`: begins to find out about a NAT that is not known yet.
    fn notice(
        &mut self,
        server: SocketAddr,
        mapped: SocketAddr,
        other: Option<SocketAddr>,
        now: Instant,
    ) {
        let asked = |nat: &&Nat| self.servers.iter().any(|one| one.address == nat.server);
        let known = self.nat.as_ref().filter(asked);
        if known.is_some_and(|nat| nat.server != server || nat.mapped == mapped) {
            return;
        }
        // another port alone is the same NAT, whose filter has opened since
        let same = known.filter(|nat| nat.mapped.ip() == mapped.ip());
        let filtering = same.and_then(|nat| nat.behaviour.filtering);
        let differs =
            |other: &SocketAddr| other.ip() != server.ip() && other.port() != server.port();
        let Some(other) = other.filter(differs) else {
            // nothing to find out by this server; another one may do
            if known.is_none() {
                self.tell(mapped, NatBehaviour::default());
            }
            return;
        };
        let transaction = self.draw();
        let discovery = Discovery::new(server, other, mapped, filtering, transaction, now);
        let behaviour = NatBehaviour { filtering, ..NatBehaviour::default() };
        self.nat = Some(Nat { server, mapped, behaviour, discovery: Some(discovery) });
        self.handle_timeout(now);
    }

    /// Whether an answer belongs to the discovery that is under way.
    fn discovers(&mut self, answered: &Answered, from: SocketAddr, now: Instant) -> bool {
        let answered = Answered { mapped: answered.mapped.map(canonical), ..*answered };
        let discovery = self.nat.as_mut().and_then(|nat| nat.discovery.as_mut());
        let Some(next) = discovery.map(|one| one.handle_answer(&answered, from)) else {
            return false;
        };
        self.proceed(next, now);
        next != Next::Wait
    }

    fn proceed(&mut self, next: Next, now: Instant) {
        let transaction = if next == Next::Step { Some(self.draw()) } else { None };
        let Some(nat) = &mut self.nat else { return };
        match (next, transaction) {
            (Next::Step, Some(transaction)) => {
                if let Some(discovery) = &mut nat.discovery {
                    discovery.begin(transaction, now);
                }
                self.handle_timeout(now);
            }
            (Next::Done(found), _) => {
                nat.discovery = None;
                nat.behaviour = found;
                let mapped = nat.mapped;
                self.tell(mapped, found);
            }
            (Next::Wait | Next::Step, _) => {}
        }
    }

    fn tell(&mut self, mapped: SocketAddr, mut behaviour: NatBehaviour) {
        if self.own.contains(&mapped) {
            behaviour.mapping = Some(Mapping::Unmapped);
        }
        behaviour.keeps_port = self.own.first().map(|own| own.port() == mapped.port());
        self.outputs.push_back(StunOutput::Behaves(behaviour));
    }

    /// Sends what is due.
    pub fn handle_timeout(&mut self, now: Instant) {
        for index in 0..self.servers.len() {
            if self.servers[index].wake() <= now {
                self.advance(index, now);
            }
        }
        let Some(discovery) = self.nat.as_mut().and_then(|nat| nat.discovery.as_mut()) else {
            return;
        };
        if let Some((to, bytes)) = discovery.due(now) {
            self.outputs.push_back(StunOutput::Transmit { to, bytes });
        } else {
            let next = discovery.give_up(now);
            self.proceed(next, now);
        }
    }

    fn advance(&mut self, index: usize, now: Instant) {
        let (transaction, requests, rto) = match self.servers[index].state {
            State::Resting { .. } => (self.draw(), 1, STUN_RTO),
            State::Asking { requests, .. } if requests >= REQUESTS_MAX => {
                self.servers[index].state = State::Resting { until: now + self.interval };
                return;
            }
            State::Asking { transaction, requests, rto, .. } => {
                (transaction, requests + 1, (rto * 2).min(RTO_MAX))
            }
        };
        let server = &mut self.servers[index];
        server.state = State::Asking { transaction, requests, next: now + rto, rto };
        self.outputs.push_back(StunOutput::Transmit {
            to: server.address,
            bytes: stun::binding_request(transaction),
        });
    }

    fn draw(&mut self) -> Transaction {
        self.drawn += 1;
        let mut number = [0; 12];
        number.copy_from_slice(&hmac(&self.seed.0, &self.drawn.to_le_bytes())[..12]);
        Transaction(number)
    }

    /// What to do next; to be drained after everything else.
    pub fn poll_output(&mut self) -> Option<StunOutput> {
        self.outputs.pop_front()
    }

    /// When [`Self::handle_timeout`] wants to be called.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let discovery = self.nat.iter().filter_map(|nat| nat.discovery.as_ref());
        self.servers.iter().map(Server::wake).chain(discovery.map(Discovery::wake)).min()
    }
}

/// A dual-stack socket reports IPv4 as mapped IPv6.
fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

#[cfg(test)]
mod tests;
