//! Scenarios of both sides and the matcher, with connections that come and go.

mod bounds;
mod world;

use std::time::{Duration, Instant};

use proptest::prelude::*;

use super::host::HostSide;
use super::matcher::{Link, Matcher, MatcherOutput, REGISTRATION_LIFE};
use super::{Output, RecordedKey};
use crate::identity::{BlindedMac, hmac};
use crate::limits::INDICES_MAX;
use crate::proto::PeerMisbehaved;
use crate::wire::rendezvous::{
    FirstFlight, FromServer, INDICES_PER_MESSAGE, MatchId, Public, Role, Routing, Sealed, ToServer,
};
use world::{DELAY, MAC, Machine, World, address, pair_key, peer, routing};

const HOST: u8 = 1;
const CLIENT: u8 = 2;
const STRANGER: u8 = 3;

fn soon() -> Duration {
    Duration::from_secs(2)
}

#[test]
fn host_first_or_client_first_both_are_introduced_within_four_flights() {
    for host_first in [true, false] {
        let mut world = World::new();
        let (host, client) = (world.host(HOST, CLIENT), world.client(CLIENT, HOST));
        let order = if host_first { [host, client] } else { [client, host] };
        world.connect(order[0]);
        world.run(soon());
        world.connect(order[1]);
        world.run(DELAY * 4);
        world.assert_introduced(host, client);
        assert_eq!(world.daemons[client].no_match, usize::from(!host_first));
        assert_eq!(world.matcher.stats().matches, 1);
    }
}

#[test]
fn a_first_flight_goes_along_with_one_request() {
    let mut world = World::new();
    let (host, client) = (world.host(HOST, CLIENT), world.client(CLIENT, HOST));
    let first = FirstFlight(vec![0xc0; 1200]);
    if let Machine::Client(client) = &mut world.daemons[client].machine {
        client.set_first_flight(first.clone());
    }
    world.connect(host);
    world.connect(client);
    world.run(soon());
    world.seek_again(client);
    world.run(soon());
    world.assert_introduced(host, client);
    for daemon in [host, client] {
        let introduced = world.daemons[daemon].introduced.iter();
        let rode: Vec<_> = introduced.map(|introduction| introduction.first.clone()).collect();
        assert_eq!(rode, [Some(first.clone()), None]);
    }
}

#[test]
fn registrations_are_repeated_by_themselves_and_nothing_else_happens() {
    let mut world = World::new();
    let (host, client) = (world.host(HOST, CLIENT), world.client(CLIENT, HOST));
    world.connect(host);
    world.connect(client);
    world.run(Duration::from_secs(600));
    let stats = world.matcher.stats();
    assert_eq!((stats.hosts, stats.clients, stats.matches), (1, 1, 1));
    assert!((119..=121).contains(&world.daemons[client].confirmed));
    assert!((30..=31).contains(&world.daemons[host].confirmed));
}

#[test]
fn a_restarted_server_knows_everybody_again_and_makes_no_new_match() {
    let mut world = World::new();
    let (host, client) = (world.host(HOST, CLIENT), world.client(CLIENT, HOST));
    world.connect(host);
    world.connect(client);
    world.run(soon());
    world.restart_server();
    world.connect(client);
    world.connect(host);
    world.run(soon());
    assert_eq!(world.daemons[client].introduced.len(), 1);
    world.seek_again(client);
    world.run(soon());
    assert_eq!(world.daemons[client].introduced.len(), 2);
    world.assert_introduced(host, client);
    let keys: Vec<_> = world.daemons[client]
        .introduced
        .iter()
        .map(|introduction| introduction.probe_key)
        .collect();
    assert_ne!(keys[0], keys[1]);
}

#[test]
fn another_client_key_hears_what_it_would_hear_of_an_unknown_index_and_when() {
    let mut told = Vec::new();
    for recorded in [Some(CLIENT), None] {
        let mut world = World::new();
        if let Some(recorded) = recorded {
            let host = world.host(HOST, recorded);
            world.connect(host);
        }
        world.run(soon());
        let stranger = world.client(STRANGER, HOST);
        world.connect(stranger);
        let start = world.now;
        while world.daemons[stranger].no_match == 0 {
            world.now = world.next().unwrap();
            world.step();
        }
        told.push(world.now - start);
        world.run(Duration::from_secs(300));
        assert_eq!(world.daemons[stranger].no_match, 1);
        assert!(world.daemons.iter().all(|it| it.introduced.is_empty()));
    }
    assert_eq!(told[0], told[1]);
}

#[test]
fn an_index_stays_with_its_first_host_until_that_is_long_gone() {
    let mut world = World::new();
    let (host, squatter) = (world.host(HOST, CLIENT), world.host(STRANGER, CLIENT));
    let client = world.client(CLIENT, HOST);
    world.connect(host);
    world.run(soon());
    world.connect(squatter);
    world.connect(client);
    world.run(soon());
    world.assert_introduced(host, client);
    assert!(world.daemons[squatter].introduced.is_empty());

    // the host is away for a moment: the index is still its own
    world.disconnect(host);
    world.disconnect(squatter);
    world.connect(squatter);
    world.seek_again(client);
    world.run(soon());
    assert!(world.daemons[squatter].introduced.is_empty());
    world.connect(host);
    world.run(soon());
    assert_eq!(world.daemons[client].introduced.len(), 2);
    world.assert_introduced(host, client);

    // for long: somebody else gets it, and the client still believes nobody but its host
    world.disconnect(host);
    world.disconnect(squatter);
    world.run(REGISTRATION_LIFE + Duration::from_secs(1));
    world.connect(squatter);
    world.seek_again(client);
    world.run(soon());
    assert_eq!(world.daemons[squatter].introduced.len(), 1);
    assert_eq!(world.daemons[client].introduced.len(), 2);
    assert!(world.daemons[client].no_match > 0);
}

#[test]
fn a_half_dead_connection_gives_way_to_the_hosts_new_one_and_expires() {
    let mut world = World::new();
    let (host, client) = (world.host(HOST, CLIENT), world.client(CLIENT, HOST));
    world.connect(host);
    world.run(soon());
    let old = world.lose(host).unwrap();
    world.connect(host);
    world.connect(client);
    world.run(soon());
    world.assert_introduced(host, client);
    assert_eq!(world.matcher.stats().hosts, 2);
    world.run(REGISTRATION_LIFE + Duration::from_secs(10));
    assert_eq!(world.matcher.stats().hosts, 1);
    world.matcher.handle_disconnected(old, world.now);
    world.seek_again(client);
    world.run(soon());
    assert_eq!(world.daemons[client].introduced.len(), 2);
}

#[test]
fn keys_that_come_and_go_reach_the_server_at_once() {
    let mut world = World::new();
    let (host, client) = (world.host(HOST, CLIENT), world.client(CLIENT, HOST));
    let set = |world: &mut World, keys: &[RecordedKey]| {
        let now = world.now;
        let Machine::Host(machine) = &mut world.daemons[host].machine else {
            panic!("not a host");
        };
        machine.set_keys(keys, now);
        world.settle();
        world.run(soon());
    };
    let key = |name| RecordedKey { peer: peer(name), pair_key: pair_key() };
    world.connect(host);
    world.connect(client);
    world.run(soon());
    set(&mut world, &[]);
    world.seek_again(client);
    world.run(soon());
    assert_eq!(world.daemons[client].introduced.len(), 1);
    set(&mut world, &[key(STRANGER)]);
    assert_eq!(world.daemons[client].introduced.len(), 1);
    set(&mut world, &[key(CLIENT)]);
    assert_eq!(world.daemons[client].introduced.len(), 2);
    world.assert_introduced(host, client);
}

#[test]
fn a_client_without_a_mapping_does_not_wait_and_the_host_hears_of_it_later() {
    let mut world = World::new();
    let (host, client) = (world.host(HOST, CLIENT), world.client(CLIENT, HOST));
    world.connect(host);
    world.run(soon());
    let set = |world: &mut World, routing: Routing| {
        let now = world.now;
        let Machine::Client(machine) = &mut world.daemons[client].machine else {
            panic!("not a client");
        };
        machine.set_routing(routing, now);
        world.settle();
    };
    set(&mut world, Routing { udp_public: None, ..routing(CLIENT) });
    world.connect(client);
    world.run(Duration::from_millis(100));
    let introduced = world.daemons[client].introduced[0].match_id;
    assert!(world.daemons[host].moved.is_empty());
    set(&mut world, routing(CLIENT));
    world.run(soon());
    let public = Public { tcp: Some(address(CLIENT, 50_000)), udp: Some(address(CLIENT, 4000)) };
    assert_eq!(world.daemons[host].moved, [(introduced, public)]);
    assert!(world.daemons[client].moved.is_empty());
}

struct Server {
    matcher: Matcher,
    now: Instant,
}

impl Server {
    fn with(role: Role) -> Self {
        let now = Instant::now();
        let mut matcher = Matcher::new(Vec::new(), true, [1; 32]);
        matcher.handle_connected(Link(1), peer(HOST), address(1, 1), now).unwrap();
        let mut server = Self { matcher, now };
        server.say(ToServer::Hello { role }).unwrap();
        server
    }

    fn say(&mut self, message: ToServer) -> Result<(), PeerMisbehaved> {
        self.matcher.handle_message(Link(1), message, self.now)
    }

    fn answers(&mut self) -> Vec<MatcherOutput> {
        std::iter::from_fn(|| self.matcher.poll_output()).collect()
    }
}

fn indices(from: usize, count: usize) -> Vec<BlindedMac> {
    (from..from + count).map(|n| BlindedMac(u128::try_from(n).unwrap().to_be_bytes())).collect()
}

fn sealed(bytes: usize) -> Sealed {
    Sealed { nonce: [0; 24], bytes: vec![0; bytes] }
}

#[test]
fn what_breaks_a_bound_or_the_order_is_refused_and_changes_nothing() {
    let mut host = Server::with(Role::Host);
    let all = INDICES_MAX / INDICES_PER_MESSAGE;
    for part in 0..all {
        let indices = indices(part * INDICES_PER_MESSAGE, INDICES_PER_MESSAGE);
        host.say(ToServer::Register { indices }).unwrap();
    }
    host.answers();
    let seek = ToServer::Seek { index: BlindedMac([0; 16]), sealed: sealed(9) };
    for (message, why) in [
        (ToServer::Register { indices: indices(INDICES_MAX, 1) }, PeerMisbehaved::TooMany),
        (
            ToServer::Withdraw { indices: indices(0, INDICES_PER_MESSAGE + 1) },
            PeerMisbehaved::TooMany,
        ),
        (
            ToServer::Accept { match_id: MatchId([0; 16]), sealed: sealed(9999) },
            PeerMisbehaved::TooMany,
        ),
        (seek.clone(), PeerMisbehaved::Sequence),
        (ToServer::Hello { role: Role::Host }, PeerMisbehaved::Sequence),
    ] {
        assert_eq!(host.say(message), Err(why));
        assert_eq!(host.answers(), []);
    }
    // the same ones again are no more than before
    host.say(ToServer::Register { indices: indices(0, 9) }).unwrap();

    let mut client = Server::with(Role::Client);
    let register = ToServer::Register { indices: indices(0, 1) };
    assert_eq!(client.say(register), Err(PeerMisbehaved::Sequence));
    client.say(seek).unwrap();
}

#[test]
fn who_talks_too_much_is_sent_away_and_who_says_nothing_too() {
    let mut client = Server::with(Role::Client);
    let mut said = 0;
    while client.say(ToServer::Refresh { number: 1, udp_public: None }).is_ok() {
        said += 1;
    }
    assert!((60..70).contains(&said), "{said}");

    let mut silent = Matcher::new(Vec::new(), true, [1; 32]);
    let start = Instant::now();
    silent.handle_connected(Link(1), peer(HOST), address(1, 1), start).unwrap();
    while let Some(at) = silent.poll_timeout() {
        assert!(at <= start + Duration::from_secs(15));
        silent.handle_timeout(at);
    }
    assert_eq!(silent.poll_output(), Some(MatcherOutput::Close(Link(1))));
}

#[test]
fn a_silent_server_is_noticed() {
    let mut host = HostSide::new(MAC, [1; 32]);
    let start = Instant::now();
    host.handle_connected(start);
    let mut now = start;
    loop {
        let outputs: Vec<_> = std::iter::from_fn(|| host.poll_output()).collect();
        if outputs.contains(&Output::Silent) {
            break;
        }
        now = host.poll_timeout().unwrap();
        host.handle_timeout(now);
    }
    assert_eq!(now - start, Duration::from_secs(10));
}

#[test]
fn a_server_that_says_what_it_cannot_say_is_left() {
    let now = Instant::now();
    let mut host = HostSide::new(MAC, [1; 32]);
    host.handle_connected(now);
    for wrong in [FromServer::NoMatch, FromServer::Confirmed { number: 7 }] {
        assert_eq!(host.handle_message(wrong, now), Err(PeerMisbehaved::Unasked));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Whatever is lost on the way: once the connections stay, both sides are introduced.
    #[test]
    fn connections_may_be_lost_at_any_time(seed in any::<[u8; 32]>()) {
        let mut world = World::new();
        let (host, client) = (world.host(HOST, CLIENT), world.client(CLIENT, HOST));
        for turn in 0..30_u8 {
            let [what, time, ..] = hmac(&seed, &[turn]);
            match what % 6 {
                0 | 1 => {
                    let daemon = usize::from(what % 6);
                    if world.daemons[daemon].link.is_none() {
                        world.connect(daemon);
                    }
                }
                2 | 3 => world.disconnect(usize::from(what % 6 - 2)),
                4 => world.restart_server(),
                _ => world.seek_again(client),
            }
            world.run(Duration::from_millis(u64::from(time)));
        }
        for daemon in [host, client] {
            if world.daemons[daemon].link.is_none() {
                world.connect(daemon);
            }
        }
        world.seek_again(client);
        world.run(Duration::from_secs(3));
        world.assert_introduced(host, client);
        prop_assert_eq!(world.matcher.stats().hosts, 1);
        world.disconnect(host);
        world.disconnect(client);
        world.run(REGISTRATION_LIFE * 2);
        prop_assert_eq!(world.matcher.poll_timeout(), None);
    }
}

#[test]
fn a_branch_is_a_client_of_its_own_that_tcp_does_not_reach_and_its_trunk_pays_for_it() {
    let mut host = Server::with(Role::Host);
    assert_eq!(
        host.matcher.handle_branched(Link(2), Link(1), host.now),
        Err(PeerMisbehaved::Sequence)
    );
    let mut client = Server::with(Role::Client);
    client.answers();
    let now = client.now;
    client.matcher.handle_branched(Link(2), Link(1), now).unwrap();
    let mut say = |message| client.matcher.handle_message(Link(2), message, now);
    assert_eq!(say(ToServer::Hello { role: Role::Host }), Err(PeerMisbehaved::Sequence));
    say(ToServer::Hello { role: Role::Client }).unwrap();
    // none branches from a branch
    assert_eq!(
        client.matcher.handle_branched(Link(3), Link(2), now),
        Err(PeerMisbehaved::Sequence)
    );
    let observed = address(1, 1);
    let welcome = FromServer::Welcome { observed, stun: Vec::new() };
    assert_eq!(client.answers(), [MatcherOutput::Send(Link(2), welcome)]);
    assert_eq!(client.matcher.stats().clients, 2);

    // a host hears of the key and of no TCP address
    client.matcher.handle_connected(Link(9), peer(77), address(2, 1), now).unwrap();
    let index = BlindedMac([0; 16]);
    let mut say = |link, message| client.matcher.handle_message(link, message, now).unwrap();
    say(Link(9), ToServer::Hello { role: Role::Host });
    say(Link(9), ToServer::Register { indices: vec![index] });
    say(Link(2), ToServer::Seek { index, sealed: sealed(9) });
    let public = client.answers().into_iter().find_map(|output| match output {
        MatcherOutput::Send(Link(9), FromServer::Sought { client, public, .. }) => {
            assert_eq!(client, peer(HOST));
            Some(public)
        }
        _ => None,
    });
    assert_eq!(public, Some(Public::default()));

    let opened = (10..100)
        .take_while(|link| client.matcher.handle_branched(Link(*link), Link(1), now).is_ok())
        .count();
    assert!((15..30).contains(&opened), "{opened}");
    client.matcher.handle_disconnected(Link(2), now);
    assert_eq!(client.matcher.stats().clients, 1);
}
