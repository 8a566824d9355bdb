//! Both ends on one virtual clock, behind modelled NATs, from seeds.

use std::collections::BTreeMap;

use super::*;
use crate::proto::path::{AuthTo, Order, Side};

const KEY: [u8; 32] = [9; 32];
const TAG: ProbeTag = ProbeTag([3; 8]);

/// What the network between the two lets through.
#[derive(Clone, Copy)]
struct Net {
    udp: bool,
    tcp: bool,
    relay: bool,
    /// Both NATs are port-restricted: only who was sent to may send.
    restricts: [bool; 2],
    loss_percent: u64,
    hop: Duration,
}

struct Peer {
    ladder: Ladder,
    public: SocketAddr,
    opened: Vec<SocketAddr>,
    dials: bool,
    stream: Option<StreamId>,
    path: Option<Path>,
    asked: bool,
    /// How often its way to the relay was looked after.
    checked: u32,
}

struct World {
    now: Instant,
    seed: u64,
    net: Net,
    peers: [Peer; 2],
    flying: BTreeMap<(Instant, u64), (usize, Path, [u8; PROBE_BYTES])>,
    sent: u64,
    relayed: u64,
    streams: u32,
    steps: u64,
}

const ALL: Net = Net {
    udp: true,
    tcp: true,
    relay: true,
    restricts: [true; 2],
    loss_percent: 0,
    hop: Duration::from_millis(35),
};

impl World {
    fn new(seed: u64, net: Net, wanted: Wanted) -> Self {
        Self::asking(seed, net, wanted, None)
    }

    fn asking(seed: u64, net: Net, wanted: Wanted, ask_after: Option<Duration>) -> Self {
        let now = Instant::now();
        let public: [SocketAddr; 2] =
            ["198.51.100.1:4000", "203.0.113.1:5000"].map(|address| address.parse().unwrap());
        let peer = |own: usize, role| {
            let other = public[1 - own];
            let tcp = SocketAddr::new(other.ip(), other.port() + 1);
            let candidates = Candidates {
                udp: vec![(other, Rung::UdpPublic)],
                tcp: vec![(tcp, Rung::TcpPublic)],
                tcp_at_once: !net.udp,
            };
            let (wanted, ask_after) = match role {
                Role::Client => (wanted, None),
                Role::Host => (Wanted::default(), ask_after),
            };
            let config = Config { role, tag: TAG, key: KEY, first_nonce: seed, wanted, ask_after };
            Peer {
                ladder: Ladder::new(config, &candidates, net.relay, now),
                public: public[own],
                opened: Vec::new(),
                dials: false,
                stream: None,
                path: None,
                asked: false,
                checked: 0,
            }
        };
        let peers = [peer(0, Role::Client), peer(1, Role::Host)];
        let flying = BTreeMap::new();
        let (sent, relayed, streams, steps) = (0, 0, 0, 0);
        Self { now, seed, net, peers, flying, sent, relayed, streams, steps }
    }

    fn draw(&mut self) -> u64 {
        self.seed = self.seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        self.seed >> 33
    }

    fn run(&mut self, duration: Duration) {
        let end = self.now + duration;
        loop {
            self.collect();
            let timers = self.peers.iter().filter_map(|peer| peer.ladder.poll_timeout());
            let arrivals = self.flying.keys().next().map(|(at, _)| *at);
            match timers.chain(arrivals).min() {
                Some(at) if at <= end => self.now = self.now.max(at),
                _ => break,
            }
            self.steps += 1;
            assert!(self.steps < 1_000_000, "a timer that is always due");
            self.deliver();
            let now = self.now;
            self.peers.iter_mut().for_each(|peer| peer.ladder.handle_timeout(now));
        }
        self.now = end;
    }

    fn collect(&mut self) {
        for own in 0..2 {
            while let Some(output) = self.peers[own].ladder.poll_output() {
                match output {
                    Output::Transmit { path, bytes } => self.send(own, path, bytes),
                    Output::Use { path, .. } => self.peers[own].path = Some(path),
                    Output::Down => self.peers[own].path = None,
                    Output::Asked => self.peers[own].asked = true,
                    Output::Dial { to, .. } => self.dial(own, to),
                    Output::CheckRelay => self.peers[own].checked += 1,
                    _ => {}
                }
            }
        }
    }

    fn send(&mut self, own: usize, path: Path, bytes: [u8; PROBE_BYTES]) {
        self.sent += 1;
        let open = match path {
            Path::Udp(to) => {
                self.peers[own].opened.push(to);
                self.net.udp && to == self.peers[1 - own].public
            }
            Path::Tcp(stream) => self.net.tcp && self.peers[own].stream == Some(stream),
            Path::Relay => {
                self.relayed += 1;
                self.net.relay
            }
        };
        let lost = !matches!(path, Path::Tcp(_)) && self.draw() % 100 < self.net.loss_percent;
        if open && !lost {
            // reordered, too
            let late = Duration::from_micros(self.draw() % 5000);
            self.flying.insert((self.now + self.net.hop + late, self.sent), (own, path, bytes));
        }
    }

    /// Simultaneous open: both connect, and one stream comes of it.
    fn dial(&mut self, own: usize, to: SocketAddr) {
        self.peers[own].dials = true;
        if !self.net.tcp {
            self.peers[own].ladder.handle_dial_failed(to, self.now);
            self.peers[own].dials = false;
            return;
        }
        if self.peers.iter().all(|peer| peer.dials) {
            self.add_stream();
        }
    }

    fn add_stream(&mut self) {
        self.streams += 1;
        let stream = StreamId(self.streams);
        for peer in &mut self.peers {
            peer.stream = Some(stream);
            peer.dials = false;
            peer.ladder.handle_stream(stream, Rung::TcpPublic, self.now);
        }
    }

    /// Both send something on the path in use, and wait for an answer.
    fn send_data(&mut self) {
        let activity = Activity { unanswered: Some(self.now), ..Activity::default() };
        for peer in &mut self.peers {
            peer.ladder.handle_activity(activity, self.now);
        }
    }

    fn cut_tcp(&mut self) {
        self.net.tcp = false;
        for peer in &mut self.peers {
            if let Some(stream) = peer.stream.take() {
                peer.ladder.handle_stream_closed(stream, self.now);
            }
        }
    }

    fn deliver(&mut self) {
        while let Some(entry) = self.flying.first_entry()
            && entry.key().0 <= self.now
        {
            let (from, path, bytes) = entry.remove();
            let source = self.peers[from].public;
            let target = &mut self.peers[1 - from];
            let path = match path {
                Path::Udp(_) => {
                    let open = !self.net.restricts[1 - from] || target.opened.contains(&source);
                    if !open {
                        continue;
                    }
                    Path::Udp(source)
                }
                other => other,
            };
            target.ladder.handle_probe(&bytes, path, self.now);
        }
    }

    fn rungs(&self) -> [Option<Rung>; 2] {
        [0, 1].map(|own| self.peers[own].ladder.path().map(|path| path.1))
    }

    fn client_tried(&self) -> Vec<(Rung, &'static str, u128)> {
        let tried = self.peers[0].ladder.tried().iter();
        tried.map(|tried| (tried.rung, tried.result, tried.after.as_millis())).collect()
    }
}

fn wanted(order: Order) -> Wanted {
    Wanted { order, ..Wanted::default() }
}

/// 2,000 where nobody says otherwise.
fn seeds() -> u64 {
    std::env::var("P2PFS_LADDER_SEEDS").ok().and_then(|text| text.parse().ok()).unwrap_or(2000)
}

#[test]
fn whatever_the_network_lets_through_is_found_and_agreed_upon() {
    for seed in 0..seeds() {
        let bit = |place: u32| seed >> place & 1 == 1;
        let net = Net {
            udp: bit(0),
            tcp: bit(1),
            relay: bit(2),
            restricts: [bit(3), bit(4)],
            loss_percent: (seed >> 5) % 25,
            hop: Duration::from_millis(1 + (seed >> 7) % 100),
        };
        let orders = [Order::Auto, Order::UdpFirst, Order::TcpFirst];
        let order = orders[usize::try_from(seed % 3).unwrap()];
        let mut world = World::new(seed, net, wanted(order));
        world.run(Duration::from_secs(30));
        let found = world.rungs();
        let possible = net.udp || net.tcp || net.relay;
        assert_eq!(found[0].is_some(), possible, "seed {seed}: {found:?}");
        if net.loss_percent == 0 {
            assert_eq!(found[0], found[1], "seed {seed}");
        }
        if possible && order == Order::Auto && net.loss_percent == 0 {
            let best = match (net.udp, net.tcp) {
                (true, _) => Rung::UdpPublic,
                (false, true) => Rung::TcpPublic,
                (false, false) => Rung::Relay,
            };
            assert_eq!(found, [Some(best); 2], "seed {seed}");
        }
    }
}

#[test]
fn the_relay_carries_at_once_and_then_no_more() {
    let mut world = World::new(1, ALL, wanted(Order::Auto));
    world.collect();
    assert_eq!(world.rungs()[0], Some(Rung::Relay));
    world.run(Duration::from_millis(300));
    assert_eq!(world.rungs(), [Some(Rung::UdpPublic); 2]);
    world.run(Duration::from_secs(1));
    let relayed = world.relayed;
    world.run(Duration::from_secs(60));
    assert_eq!(world.relayed, relayed, "the relay rests");
}

#[test]
fn tcp_does_not_wait_for_udp_that_is_known_to_be_blocked() {
    let mut world = World::new(1, Net { udp: false, ..ALL }, wanted(Order::Auto));
    world.run(Duration::from_millis(250));
    assert!(world.peers.iter().all(|peer| matches!(peer.path, Some(Path::Tcp(_)))));
}

#[test]
fn each_rung_has_its_two_seconds_and_a_dead_winner_brings_the_first_one_back() {
    let net = Net { udp: false, tcp: false, ..ALL };
    let mut world = World::new(1, net, wanted(Order::UdpFirst));
    world.run(Duration::from_secs(7));
    let failed = |rung| (rung, "timeout", 2000);
    let all = [failed(Rung::UdpPublic), failed(Rung::TcpPrivate), failed(Rung::TcpPublic)];
    assert_eq!(world.client_tried()[..3], all);
    assert_eq!(world.client_tried()[3], (Rung::Relay, "up", 0));

    let mut world = World::new(1, Net { udp: false, ..ALL }, wanted(Order::UdpFirst));
    world.run(Duration::from_secs(5));
    assert_eq!(world.client_tried()[..2], all[..2]);
    assert_eq!(world.rungs()[0], Some(Rung::TcpPublic));
    world.cut_tcp();
    world.run(Duration::from_millis(2500));
    assert_eq!(world.client_tried(), all[..1]);
    world.run(Duration::from_secs(4));
    assert_eq!(world.rungs(), [Some(Rung::Relay); 2]);

    let mut world = World::new(1, net, wanted(Order::TcpFirst));
    world.run(Duration::from_secs(7));
    let other = [failed(Rung::TcpPrivate), failed(Rung::TcpPublic), failed(Rung::UdpPublic)];
    assert_eq!(world.client_tried()[..3], other);

    let never = Wanted { relay: Some(RelayUse::Never), ..wanted(Order::UdpFirst) };
    let mut world = World::new(1, net, never);
    world.run(Duration::from_secs(20));
    assert_eq!((world.rungs(), world.relayed), ([None; 2], 0));
}

#[test]
fn a_path_that_dies_under_data_is_left_for_the_relay_and_not_taken_again_at_once() {
    for seed in 0..50 {
        let mut world = World::new(seed, Net { tcp: false, ..ALL }, wanted(Order::Auto));
        world.run(Duration::from_secs(5));
        world.net.udp = false;
        world.send_data();
        world.run(Duration::from_millis(500));
        assert_eq!(world.rungs(), [Some(Rung::Relay); 2], "seed {seed}");
        world.net.udp = true;
        world.run(Duration::from_secs(5));
        assert_eq!(world.rungs()[0], Some(Rung::Relay), "seed {seed}: held back");
        world.run(Duration::from_secs(20));
        assert_eq!(world.rungs(), [Some(Rung::UdpPublic); 2], "seed {seed}");
    }
}

#[test]
fn an_idle_path_that_dies_is_noticed_and_comes_back() {
    for seed in 0..50 {
        let net = Net { relay: false, tcp: false, loss_percent: 5, ..ALL };
        let mut world = World::new(seed, net, wanted(Order::Auto));
        world.run(Duration::from_secs(2));
        world.net.udp = false;
        world.run(Duration::from_secs(10));
        assert!(world.peers.iter().all(|peer| peer.path.is_none()), "seed {seed}");
        world.net.udp = true;
        world.run(Duration::from_secs(5));
        assert_eq!(world.rungs(), [Some(Rung::UdpPublic); 2], "seed {seed}");
    }
}

#[test]
fn a_peer_that_is_gone_is_noticed_at_once_whatever_paths_there_are() {
    for seed in 0..50 {
        let mut world = World::new(seed, ALL, wanted(Order::Auto));
        world.run(Duration::from_secs(5));
        world.add_stream();
        world.run(Duration::from_secs(1));
        let net =
            std::mem::replace(&mut world.net, Net { udp: false, tcp: false, relay: false, ..ALL });
        world.send_data();
        world.run(Duration::from_millis(1500));
        assert_eq!(world.rungs()[0], Some(Rung::UdpPublic), "seed {seed}: too early");
        world.run(Duration::from_millis(1000));
        assert!(world.peers.iter().all(|peer| peer.path.is_none()), "seed {seed}");
        world.net = net;
        world.run(Duration::from_secs(3));
        assert_eq!(world.rungs()[0], Some(Rung::UdpPublic), "seed {seed}: held back");
    }
}

#[test]
fn a_third_path_is_found_as_soon_as_two_are_silent() {
    for seed in 0..50 {
        let mut world = World::new(seed, ALL, wanted(Order::Auto));
        world.run(Duration::from_secs(5));
        world.add_stream();
        world.run(Duration::from_secs(1));
        (world.net.udp, world.net.tcp) = (false, false);
        world.send_data();
        world.run(Duration::from_millis(1000));
        assert_eq!(world.rungs()[0], Some(Rung::Relay), "seed {seed}");
    }
}

#[test]
fn a_nat_that_maps_anew_moves_the_path() {
    let net = Net { relay: false, tcp: false, restricts: [true, false], ..ALL };
    let mut world = World::new(1, net, wanted(Order::Auto));
    world.run(Duration::from_secs(1));
    world.peers[0].public = "198.51.100.1:4001".parse().unwrap();
    world.peers[0].opened.clear();
    world.run(Duration::from_secs(20));
    assert_eq!(world.peers[1].path, Some(Path::Udp(world.peers[0].public)));
}

#[test]
fn a_silent_relay_that_is_all_there_is_is_bound_anew_before_it_is_given_up() {
    let net = Net { udp: false, tcp: false, ..ALL };
    let mut world = World::new(1, net, wanted(Order::Auto));
    world.run(Duration::from_secs(30));
    assert_eq!(world.peers[0].path, Some(Path::Relay));
    assert_eq!(world.peers[0].checked, 0);
    world.net.relay = false;
    world.send_data();
    world.run(Duration::from_millis(500));
    assert!(world.peers[0].checked > 0);
    assert_eq!(world.peers[0].path, Some(Path::Relay));
}

#[test]
fn a_path_is_kept_warm_and_costs_little() {
    let mut world = World::new(1, Net { relay: false, ..ALL }, wanted(Order::Auto));
    world.run(Duration::from_secs(1));
    let before = world.sent;
    world.run(Duration::from_secs(60));
    let sent = world.sent - before;
    assert!((12..=80).contains(&sent), "{sent} datagrams in a minute");
}

#[test]
fn request_21_goes_where_it_is_to_go_unless_the_host_asks_elsewhere() {
    let to = |auth_to| Wanted { auth_to: Some(auth_to), ..Wanted::default() };
    let mut world = World::new(1, ALL, to(AuthTo::TcpPublic));
    world.run(Duration::from_secs(1));
    assert_eq!(world.rungs()[0], Some(Rung::TcpPublic));
    world.peers[0].ladder.handle_authenticated(world.now);
    world.run(Duration::from_secs(1));
    assert_eq!(world.rungs()[0], Some(Rung::UdpPublic));

    let wait = Some(Duration::from_secs(2));
    let mut world = World::asking(1, ALL, to(AuthTo::Private), wait);
    world.run(Duration::from_millis(1900));
    assert_eq!((world.rungs()[0], world.peers[0].asked), (None, false));
    world.run(Duration::from_millis(300));
    assert!(world.peers[0].asked && world.rungs()[0].is_some());

    let mut world = World::asking(1, ALL, Wanted::default(), Some(Duration::ZERO));
    world.run(Duration::from_millis(50));
    assert!(world.peers[0].asked, "at once");
    world.peers[1].ladder.handle_authenticated(world.now);
    world.peers[0].asked = false;
    world.run(Duration::from_secs(5));
}

#[test]
fn a_side_that_only_listens_does_not_dial() {
    let wanted = Wanted { side: Side::Listen, ..Wanted::default() };
    let mut world = World::new(1, Net { udp: false, ..ALL }, wanted);
    world.run(Duration::from_secs(1));
    assert!(!world.peers[0].dials && world.peers[1].dials);
}

#[test]
fn a_stranger_moves_nothing_and_gets_no_answer() {
    let now = Instant::now();
    let stranger = Path::Udp("192.0.2.66:6".parse().unwrap());
    let config = Config {
        role: Role::Host,
        tag: TAG,
        key: KEY,
        first_nonce: 0,
        wanted: Wanted::default(),
        ask_after: None,
    };
    let mut ladder = Ladder::new(config, &Candidates::default(), false, now);
    while ladder.poll_output().is_some() {}
    let ping = Probe { kind: ProbeKind::Chosen, role: Role::Client, tag: TAG, nonce: 1 };
    ladder.handle_probe(&ping.seal(&[1; 32]), stranger, now);
    ladder.handle_probe(&[0x10; PROBE_BYTES], stranger, now);
    // our own probe, played back
    ladder.handle_probe(&Probe { role: Role::Host, ..ping }.seal(&KEY), stranger, now);
    assert_eq!(ladder.poll_output(), None);
    assert_eq!(ladder.path(), None);
}

#[test]
fn who_plays_a_probe_back_gets_no_answer() {
    let now = Instant::now();
    let [peer, stranger] = ["192.0.2.7:7", "192.0.2.66:6"].map(|at| Path::Udp(at.parse().unwrap()));
    let (role, wanted) = (Role::Host, Wanted::default());
    let config = Config { role, tag: TAG, key: KEY, first_nonce: 0, wanted, ask_after: None };
    let mut ladder = Ladder::new(config, &Candidates::default(), false, now);
    while ladder.poll_output().is_some() {}
    let ping = Probe { kind: ProbeKind::Ping, role: Role::Client, tag: TAG, nonce: 1 }.seal(&KEY);
    ladder.handle_probe(&ping, peer, now);
    assert!(ladder.poll_output().is_some());
    while ladder.poll_output().is_some() {}
    for from in [stranger, peer] {
        ladder.handle_probe(&ping, from, now);
        assert_eq!(ladder.poll_output(), None);
    }
}
