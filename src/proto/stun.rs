//! The STUN client: asks each server again and again where our socket is seen (R2).
//!
//! Pure: it shares its socket with QUIC and probes, so datagrams are handed in and out.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use crate::identity::{Hidden, hmac};
use crate::limits::STUN_RTO;
use crate::wire::stun::{self, Transaction};

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
        let Some((answered, mapped)) = stun::binding_response(datagram) else {
            return false;
        };
        let from = canonical(from);
        let asked = |server: &&mut Server| match server.state {
            State::Asking { transaction, .. } => server.address == from && transaction == answered,
            State::Resting { .. } => false,
        };
        let Some(server) = self.servers.iter_mut().find(asked) else {
            return false;
        };
        server.state = State::Resting { until: now + self.interval };
        if let Some(mapped) = mapped.map(canonical)
            && server.mapped != Some(mapped)
        {
            server.mapped = Some(mapped);
            self.outputs.push_back(StunOutput::Mapped(mapped));
        }
        true
    }

    /// Sends what is due.
    pub fn handle_timeout(&mut self, now: Instant) {
        for index in 0..self.servers.len() {
            if self.servers[index].wake() <= now {
                self.advance(index, now);
            }
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
        self.servers.iter().map(Server::wake).min()
    }
}

/// A dual-stack socket reports IPv4 as mapped IPv6.
fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

#[cfg(test)]
mod tests {
    use super::*;

    const INTERVAL: Duration = Duration::from_secs(5);

    fn address(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    struct World {
        client: StunClient,
        now: Instant,
        server: SocketAddr,
    }

    impl World {
        fn new() -> Self {
            let now = Instant::now();
            let server = address("203.0.113.5:3478");
            let mut client = StunClient::new([1; 32], INTERVAL);
            client.set_servers(&[server], now);
            Self { client, now, server }
        }

        fn requests(&mut self) -> Vec<Vec<u8>> {
            std::iter::from_fn(|| self.client.poll_output())
                .filter_map(|output| match output {
                    StunOutput::Transmit { bytes, .. } => Some(bytes),
                    StunOutput::Mapped(_) => None,
                })
                .collect()
        }

        fn mapped(&mut self) -> Vec<SocketAddr> {
            std::iter::from_fn(|| self.client.poll_output())
                .filter_map(|output| match output {
                    StunOutput::Mapped(address) => Some(address),
                    StunOutput::Transmit { .. } => None,
                })
                .collect()
        }

        fn answer(&mut self, request: &[u8], seen: &str, from: SocketAddr) -> bool {
            let answer = stun::answer(request, address(seen), None).unwrap();
            self.client.handle_datagram(&answer.bytes, from, self.now)
        }

        fn wait(&mut self) {
            self.now = self.client.poll_timeout().unwrap();
            self.client.handle_timeout(self.now);
        }
    }

    #[test]
    fn a_mapping_is_told_once_and_again_when_it_changes() {
        let mut world = World::new();
        for (seen, told) in
            [("198.51.100.1:4000", true), ("198.51.100.1:4000", false), ("198.51.100.1:4001", true)]
        {
            let request = world.requests().pop().unwrap();
            assert!(world.answer(&request, seen, world.server));
            let expected: Vec<_> = told.then(|| address(seen)).into_iter().collect();
            assert_eq!(world.mapped(), expected);
            let rested = world.now + INTERVAL;
            world.wait();
            assert_eq!(world.now, rested);
        }
    }

    #[test]
    fn an_answer_from_elsewhere_or_to_nothing_or_twice_changes_nothing() {
        let mut world = World::new();
        let request = world.requests().pop().unwrap();
        let elsewhere = address("203.0.113.6:3478");
        assert!(!world.answer(&request, "198.51.100.1:4000", elsewhere));
        let unasked = stun::binding_request(Transaction([9; 12]));
        assert!(!world.answer(&unasked, "198.51.100.1:4000", world.server));
        assert!(world.mapped().is_empty());
        let as_mapped = address("[::ffff:203.0.113.5]:3478");
        assert!(world.answer(&request, "198.51.100.1:4000", as_mapped));
        assert!(!world.answer(&request, "198.51.100.1:4001", world.server));
        assert_eq!(world.mapped(), [address("198.51.100.1:4000")]);
    }

    #[test]
    fn a_silent_server_is_asked_with_growing_pauses_then_anew() {
        let mut world = World::new();
        let first = world.requests().pop().unwrap();
        let start = world.now;
        let mut pauses = Vec::new();
        for _ in 1..REQUESTS_MAX {
            let before = world.now;
            world.wait();
            pauses.push((world.now - before).as_millis());
            assert_eq!(world.requests(), std::slice::from_ref(&first));
        }
        assert_eq!(pauses, [250, 500, 1000, 2000, 2000, 2000]);
        world.wait();
        assert!(world.requests().is_empty());
        world.wait();
        assert_ne!(world.requests().pop().unwrap(), first);
        assert!(world.now - start < Duration::from_secs(20));
    }

    #[test]
    fn servers_come_and_go_without_disturbing_the_others() {
        let mut world = World::new();
        let request = world.requests().pop().unwrap();
        let other = address("203.0.113.6:3478");
        world.client.set_servers(&[other, world.server, other], world.now);
        assert_eq!(world.requests().len(), 1);
        assert!(world.answer(&request, "198.51.100.1:4000", world.server));
        world.client.set_servers(&[], world.now);
        assert_eq!(world.client.poll_timeout(), None);
    }
}
