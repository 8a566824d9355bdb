//! Both sides and the matcher on one clock: connections are made, carry messages after a delay, and
//! are lost.

use std::collections::{BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use crate::identity::{MacAddress, PairKey, PeerId, SecretKey};
use crate::proto::rendezvous::client::{ClientConfig, ClientSide};
use crate::proto::rendezvous::host::HostSide;
use crate::proto::rendezvous::matcher::{Link, Matcher, MatcherOutput};
use crate::proto::rendezvous::{Introduction, Output, RecordedKey};
use crate::wire::rendezvous::{FromServer, MatchId, Public, Routing, ToServer};

pub(super) const MAC: MacAddress = MacAddress([2, 0, 0, 0, 0, 1]);
pub(super) const DELAY: Duration = Duration::from_millis(10);

pub(super) fn peer(name: u8) -> PeerId {
    SecretKey::from_seed([name; 32]).peer_id()
}

pub(super) fn pair_key() -> PairKey {
    PairKey::from_bytes([9; 32])
}

pub(super) fn address(host: u8, port: u16) -> SocketAddr {
    ([203, 0, 113, host], port).into()
}

pub(super) fn routing(name: u8) -> Routing {
    Routing {
        udp_private: vec![([192, 168, 1, name], 4000).into()],
        udp_public: Some(address(name, 4000)),
        ..Routing::default()
    }
}

pub(super) enum Machine {
    Host(HostSide),
    Client(ClientSide),
}

pub(super) struct Daemon {
    pub(super) name: u8,
    pub(super) machine: Machine,
    pub(super) link: Option<Link>,
    pub(super) outbox: VecDeque<(Instant, ToServer)>,
    pub(super) inbox: VecDeque<(Instant, FromServer)>,
    pub(super) introduced: Vec<Introduction>,
    pub(super) moved: Vec<(MatchId, Public)>,
    pub(super) no_match: usize,
    pub(super) confirmed: usize,
}

pub(super) struct World {
    pub(super) now: Instant,
    pub(super) matcher: Matcher,
    pub(super) links: u64,
    pub(super) daemons: Vec<Daemon>,
    pub(super) relayed: BTreeSet<MatchId>,
}

impl World {
    pub(super) fn new() -> Self {
        Self {
            now: Instant::now(),
            matcher: Matcher::new(Vec::new(), true, [1; 32]),
            links: 0,
            daemons: Vec::new(),
            relayed: BTreeSet::new(),
        }
    }

    pub(super) fn add(&mut self, name: u8, machine: Machine) -> usize {
        self.daemons.push(Daemon {
            name,
            machine,
            link: None,
            outbox: VecDeque::new(),
            inbox: VecDeque::new(),
            introduced: Vec::new(),
            moved: Vec::new(),
            no_match: 0,
            confirmed: 0,
        });
        self.daemons.len() - 1
    }

    /// A host that has recorded `client` under the pair key.
    pub(super) fn host(&mut self, name: u8, client: u8) -> usize {
        let mut host = HostSide::new(MAC, [name; 32]);
        let key = RecordedKey { peer: peer(client), pair_key: pair_key() };
        host.set_keys(&[key], self.now);
        host.set_routing(routing(name), self.now);
        self.add(name, Machine::Host(host))
    }

    /// A client that looks for `host`.
    pub(super) fn client(&mut self, name: u8, host: u8) -> usize {
        let config =
            ClientConfig { peer: peer(name), pair_key: pair_key(), mac: MAC, host: peer(host) };
        let mut client = ClientSide::new(config, [name; 32], self.now);
        client.set_routing(routing(name), self.now);
        self.add(name, Machine::Client(client))
    }

    pub(super) fn connect(&mut self, daemon: usize) {
        self.links += 1;
        let link = Link(self.links);
        let daemon = &mut self.daemons[daemon];
        let observed = address(daemon.name, 50_000);
        self.matcher.handle_connected(link, peer(daemon.name), observed, self.now).unwrap();
        daemon.link = Some(link);
        match &mut daemon.machine {
            Machine::Host(host) => host.handle_connected(self.now),
            Machine::Client(client) => client.handle_connected(self.now),
        }
        self.settle();
    }

    pub(super) fn disconnect(&mut self, daemon: usize) {
        if let Some(link) = self.lose(daemon) {
            self.matcher.handle_disconnected(link, self.now);
        }
        self.settle();
    }

    /// The daemon notices, the server does not.
    pub(super) fn lose(&mut self, daemon: usize) -> Option<Link> {
        let daemon = &mut self.daemons[daemon];
        daemon.outbox.clear();
        daemon.inbox.clear();
        match &mut daemon.machine {
            Machine::Host(host) => host.handle_disconnected(),
            Machine::Client(client) => client.handle_disconnected(),
        }
        daemon.link.take()
    }

    pub(super) fn restart_server(&mut self) {
        for daemon in 0..self.daemons.len() {
            self.lose(daemon);
        }
        self.matcher = Matcher::new(Vec::new(), true, [2; 32]);
        self.relayed.clear();
    }

    /// Lets time pass.
    pub(super) fn run(&mut self, time: Duration) {
        let end = self.now + time;
        while let Some(next) = self.next().filter(|next| *next <= end) {
            assert!(next >= self.now, "time runs backwards");
            self.now = next;
            self.step();
        }
        self.now = end;
    }

    pub(super) fn next(&self) -> Option<Instant> {
        let daemons = self.daemons.iter().flat_map(|daemon| {
            let timeout = match &daemon.machine {
                Machine::Host(host) => host.poll_timeout(),
                Machine::Client(client) => client.poll_timeout(),
            };
            let sent = daemon.outbox.front().map(|(at, _)| *at);
            let arriving = daemon.inbox.front().map(|(at, _)| *at);
            [timeout, sent, arriving]
        });
        daemons.flatten().chain(self.matcher.poll_timeout()).min()
    }

    pub(super) fn step(&mut self) {
        let now = self.now;
        self.matcher.handle_timeout(now);
        for daemon in &mut self.daemons {
            match &mut daemon.machine {
                Machine::Host(host) => host.handle_timeout(now),
                Machine::Client(client) => client.handle_timeout(now),
            }
            while daemon.inbox.front().is_some_and(|(at, _)| *at <= now) {
                let (_, message) = daemon.inbox.pop_front().unwrap();
                match &mut daemon.machine {
                    Machine::Host(host) => host.handle_message(message, now).unwrap(),
                    Machine::Client(client) => client.handle_message(message, now).unwrap(),
                }
            }
            while daemon.outbox.front().is_some_and(|(at, _)| *at <= now) {
                let (_, message) = daemon.outbox.pop_front().unwrap();
                let link = daemon.link.unwrap();
                self.matcher.handle_message(link, message, now).unwrap();
            }
        }
        self.settle();
    }

    /// Puts what the machines want onto the wires.
    pub(super) fn settle(&mut self) {
        let arrival = self.now + DELAY;
        while let Some(output) = self.matcher.poll_output() {
            match output {
                MatcherOutput::Send(to, message) => {
                    assert!(message.is_bounded());
                    if let Some(daemon) = self.daemons.iter_mut().find(|it| it.link == Some(to)) {
                        daemon.inbox.push_back((arrival, message));
                    }
                }
                MatcherOutput::Close(link) => {
                    assert!(
                        !self.daemons.iter().any(|daemon| daemon.link == Some(link)),
                        "a daemon that keeps its registration up is closed"
                    );
                }
                MatcherOutput::OpenRelay { match_id, .. } => {
                    assert!(self.relayed.insert(match_id));
                }
                MatcherOutput::CloseRelay(match_id) => assert!(self.relayed.remove(&match_id)),
            }
        }
        for daemon in &mut self.daemons {
            loop {
                let output = match &mut daemon.machine {
                    Machine::Host(host) => host.poll_output(),
                    Machine::Client(client) => client.poll_output(),
                };
                match output {
                    None => break,
                    Some(Output::Send(message)) => {
                        assert!(daemon.link.is_some() && message.is_bounded());
                        daemon.outbox.push_back((arrival, message));
                    }
                    Some(Output::Introduced(it)) => daemon.introduced.push(it),
                    Some(Output::Moved(match_id, public)) => daemon.moved.push((match_id, public)),
                    Some(Output::NoMatch) => daemon.no_match += 1,
                    Some(Output::Confirmed) => daemon.confirmed += 1,
                    Some(Output::Silent) => panic!("the server answers"),
                }
            }
        }
    }

    pub(super) fn seek_again(&mut self, client: usize) {
        let Machine::Client(machine) = &mut self.daemons[client].machine else {
            panic!("not a client");
        };
        machine.seek_again(self.now);
        self.settle();
    }

    /// The last match of both: the same, with the same key and each other's addresses.
    pub(super) fn assert_introduced(&self, host: usize, client: usize) {
        let (host, client) = (&self.daemons[host], &self.daemons[client]);
        let at_host = host.introduced.last().expect("the host knows of a match");
        let at_client = client.introduced.last().expect("the client knows of a match");
        assert_eq!(at_host.match_id, at_client.match_id);
        assert_eq!(at_host.probe_key, at_client.probe_key);
        let [one, other] = [at_host, at_client].map(|at| at.relay.as_ref().expect("a grant"));
        assert!(one.id != other.id && one.token != other.token);
        assert!(self.relayed.contains(&at_host.match_id));
        for (seen, of) in [(at_host, client), (at_client, host)] {
            assert_eq!(seen.peer, peer(of.name));
            assert_eq!(seen.routing.udp_private, routing(of.name).udp_private);
            assert_eq!(seen.routing.udp_public, routing(of.name).udp_public);
            assert_eq!(seen.routing.tcp_public, Some(address(of.name, 50_000)));
            assert_eq!(seen.routing.mac, Some(MAC));
        }
    }
}
