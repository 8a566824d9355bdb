//! The client against servers and NATs that answer as these tests say.

use crate::wire::nat::Filtering;

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
                StunOutput::Mapped(_) | StunOutput::Behaves(_) => None,
            })
            .collect()
    }

    fn mapped(&mut self) -> Vec<SocketAddr> {
        std::iter::from_fn(|| self.client.poll_output())
            .filter_map(|output| match output {
                StunOutput::Mapped(address) => Some(address),
                StunOutput::Transmit { .. } | StunOutput::Behaves(_) => None,
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

/// A NAT, as RFC 4787 describes them, in front of one socket.
struct NatModel {
    mapping: Mapping,
    filtering: Filtering,
    sent_to: Vec<SocketAddr>,
}

impl NatModel {
    /// Where a server at `to` sees the socket.
    fn seen(&self, to: SocketAddr) -> SocketAddr {
        let [.., last] = match to.ip() {
            std::net::IpAddr::V4(ip) => ip.octets(),
            std::net::IpAddr::V6(_) => [0; 4],
        };
        let port = match self.mapping {
            Mapping::Unmapped => return address("192.0.2.1:4000"),
            Mapping::EndpointIndependent => 5000,
            Mapping::AddressDependent => 5000 + u16::from(last),
            Mapping::AddressAndPortDependent => 5000 + u16::from(last) + to.port(),
        };
        SocketAddr::from(([198, 51, 100, 1], port))
    }

    fn lets_in(&self, from: SocketAddr) -> bool {
        self.sent_to.iter().any(|to| match self.filtering {
            Filtering::EndpointIndependent => true,
            Filtering::AddressDependent => to.ip() == from.ip(),
            Filtering::AddressAndPortDependent => *to == from,
        })
    }
}

/// Runs a client behind `nat` until nothing more is said within a discovery's time.
fn discovered(mapping: Mapping, filtering: Filtering) -> (NatBehaviour, usize) {
    let mut world = World::new();
    world.client.set_own(&[address("192.0.2.1:4000")]);
    let mut nat = NatModel { mapping, filtering, sent_to: Vec::new() };
    let other = address("203.0.113.6:3479");
    let end = world.now + INTERVAL;
    let (mut found, mut requests) = (Vec::new(), 0);
    while world.now < end {
        while let Some(output) = world.client.poll_output() {
            match output {
                StunOutput::Behaves(behaviour) => found.push(behaviour),
                StunOutput::Mapped(_) => {}
                StunOutput::Transmit { to, bytes } => {
                    requests += 1;
                    nat.sent_to.push(to);
                    let its_other = SocketAddr::new(
                        if to.ip() == other.ip() { world.server.ip() } else { other.ip() },
                        if to.port() == other.port() { world.server.port() } else { other.port() },
                    );
                    let answer = stun::answer(&bytes, nat.seen(to), Some(its_other)).unwrap();
                    let ip = if answer.change_ip { its_other.ip() } else { to.ip() };
                    let port = if answer.change_port { its_other.port() } else { to.port() };
                    let from = SocketAddr::new(ip, port);
                    if nat.lets_in(from) {
                        assert!(world.client.handle_datagram(&answer.bytes, from, world.now));
                    }
                }
            }
        }
        world.wait();
    }
    assert_eq!(found.len(), 1, "told once");
    (found[0], requests)
}

#[test]
fn every_behaviour_is_found_and_told_once() {
    for mapping in [
        Mapping::Unmapped,
        Mapping::EndpointIndependent,
        Mapping::AddressDependent,
        Mapping::AddressAndPortDependent,
    ] {
        for filtering in [
            Filtering::EndpointIndependent,
            Filtering::AddressDependent,
            Filtering::AddressAndPortDependent,
        ] {
            let (found, requests) = discovered(mapping, filtering);
            let keeps_port = Some(mapping == Mapping::Unmapped);
            let expected =
                NatBehaviour { mapping: Some(mapping), filtering: Some(filtering), keeps_port };
            assert_eq!(found, expected);
            assert!(requests <= 13, "{requests} requests");
        }
    }
}

#[test]
fn a_server_with_one_address_tells_little_and_a_forged_answer_nothing() {
    let mut world = World::new();
    world.client.set_own(&[address("192.0.2.1:4000")]);
    let request = world.requests().pop().unwrap();
    assert!(world.answer(&request, "198.51.100.1:4000", world.server));
    let told: Vec<_> = std::iter::from_fn(|| world.client.poll_output()).collect();
    let behaviour = NatBehaviour { keeps_port: Some(true), ..NatBehaviour::default() };
    assert_eq!(told.last(), Some(&StunOutput::Behaves(behaviour)));

    // with an address that differs in the port only, nothing can be found out
    let mut world = World::new();
    let request = world.requests().pop().unwrap();
    let seen = address("198.51.100.1:4000");
    let near = stun::answer(&request, seen, Some(address("203.0.113.5:3479"))).unwrap();
    assert!(world.client.handle_datagram(&near.bytes, world.server, world.now));
    assert!(world.requests().is_empty());

    // nobody but the server's other address answers the filter's question
    let mut world = World::new();
    let request = world.requests().pop().unwrap();
    let other = address("203.0.113.6:3479");
    let answer = stun::answer(&request, seen, Some(other)).unwrap();
    assert!(world.client.handle_datagram(&answer.bytes, world.server, world.now));
    let question = world.requests().pop().unwrap();
    let answer = stun::answer(&question, seen, Some(other)).unwrap();
    assert!(!world.client.handle_datagram(&answer.bytes, world.server, world.now));
    assert!(world.client.handle_datagram(&answer.bytes, other, world.now));
}
