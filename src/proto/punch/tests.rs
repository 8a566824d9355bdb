//! Both peers behind modelled NATs, on one virtual clock, from seeds.

use std::collections::BTreeMap;

use super::*;

const KEY: [u8; 32] = [9; 32];
const TAG: ProbeTag = ProbeTag([3; 8]);
const HOP: Duration = Duration::from_millis(35);

/// A port-restricted NAT that keeps ports, or none: who may send to the peer behind it.
struct Nat {
    public: SocketAddr,
    restricts: bool,
    opened: Vec<SocketAddr>,
}

struct Peer {
    punch: Punch,
    nat: Nat,
    path: Option<SocketAddr>,
}

struct World {
    now: Instant,
    seed: u64,
    loss_percent: u64,
    cut: bool,
    peers: [Peer; 2],
    flying: BTreeMap<(Instant, u64), (usize, SocketAddr, [u8; PROBE_BYTES])>,
    sent: u64,
}

impl World {
    fn new(seed: u64, restricts: [bool; 2], loss_percent: u64) -> Self {
        let now = Instant::now();
        let public: [SocketAddr; 2] =
            ["198.51.100.1:4000", "203.0.113.1:5000"].map(|address| address.parse().unwrap());
        let peer = |own: usize, role| Peer {
            punch: Punch::new(role, TAG, KEY, [public[1 - own]], seed, now),
            nat: Nat { public: public[own], restricts: restricts[own], opened: Vec::new() },
            path: None,
        };
        let peers = [peer(0, Role::Client), peer(1, Role::Host)];
        let flying = BTreeMap::new();
        Self { now, seed, loss_percent, cut: false, peers, flying, sent: 0 }
    }

    fn draw(&mut self) -> u64 {
        self.seed = self.seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        self.seed >> 33
    }

    fn run(&mut self, duration: Duration) {
        let end = self.now + duration;
        loop {
            self.collect();
            let timers = self.peers.iter().filter_map(|peer| peer.punch.poll_timeout());
            let arrivals = self.flying.keys().next().map(|(at, _)| *at);
            match timers.chain(arrivals).min() {
                Some(at) if at <= end => self.now = self.now.max(at),
                _ => break,
            }
            self.deliver();
            let now = self.now;
            self.peers.iter_mut().for_each(|peer| peer.punch.handle_timeout(now));
        }
        self.now = end;
    }

    fn collect(&mut self) {
        for own in 0..2 {
            while let Some(output) = self.peers[own].punch.poll_output() {
                match output {
                    Output::Transmit { to, bytes } => {
                        self.peers[own].nat.opened.push(to);
                        self.sent += 1;
                        if !self.cut && self.draw() % 100 >= self.loss_percent {
                            self.flying.insert((self.now + HOP, self.sent), (own, to, bytes));
                        }
                    }
                    Output::PathUp { address, .. } => self.peers[own].path = Some(address),
                    Output::PathDown { .. } => self.peers[own].path = None,
                    Output::Proved { .. } => {}
                }
            }
        }
    }

    fn deliver(&mut self) {
        while let Some(entry) = self.flying.first_entry()
            && entry.key().0 <= self.now
        {
            let (from, to, bytes) = entry.remove();
            let source = self.peers[from].nat.public;
            let target = &mut self.peers[1 - from];
            let open = !target.nat.restricts || target.nat.opened.contains(&source);
            if to == target.nat.public && open {
                target.punch.handle_probe(&bytes, source, self.now);
            }
        }
    }

    fn paths(&self) -> [Option<SocketAddr>; 2] {
        [self.peers[0].path, self.peers[1].path]
    }
}

#[test]
fn two_port_restricted_nats_are_opened_within_a_second_under_loss() {
    for seed in 0..200 {
        let mut world = World::new(seed, [true, true], 20);
        world.run(Duration::from_secs(1));
        let [client, host] = [0, 1].map(|peer| world.peers[peer].nat.public);
        assert_eq!(world.paths(), [Some(host), Some(client)], "seed {seed}");
    }
}

#[test]
fn a_path_is_kept_warm_and_costs_little() {
    let mut world = World::new(1, [true, true], 0);
    world.run(Duration::from_secs(1));
    let before = world.sent;
    world.run(Duration::from_secs(60));
    let sent = world.sent - before;
    // A ping and a pong each way every 5 s
    assert!((12..=60).contains(&sent), "{sent} datagrams in a minute");
    assert!(world.paths().iter().all(Option::is_some));
}

#[test]
fn a_cut_is_noticed_and_the_path_comes_back() {
    for seed in 0..50 {
        let mut world = World::new(seed, [true, true], 5);
        world.run(Duration::from_secs(2));
        world.cut = true;
        world.run(Duration::from_secs(10));
        assert_eq!(world.paths(), [None, None], "seed {seed}");
        world.cut = false;
        world.run(Duration::from_secs(5));
        assert!(world.paths().iter().all(Option::is_some), "seed {seed}");
    }
}

#[test]
fn a_nat_that_maps_anew_moves_the_path() {
    let mut world = World::new(1, [true, false], 0);
    world.run(Duration::from_secs(1));
    let moved: SocketAddr = "198.51.100.1:4001".parse().unwrap();
    world.peers[0].nat.public = moved;
    world.peers[0].nat.opened.clear();
    world.run(Duration::from_secs(20));
    assert_eq!(world.peers[1].path, Some(moved));
}

#[test]
fn a_better_rung_takes_over_and_a_worse_one_does_not() {
    let now = Instant::now();
    let addresses: [SocketAddr; 2] =
        ["203.0.113.1:5000", "192.168.1.7:5000"].map(|address| address.parse().unwrap());
    let [public, private] = addresses;
    let mut punch = Punch::new(Role::Client, TAG, KEY, addresses, 0, now);
    let answer = |punch: &mut Punch, from: SocketAddr, now: Instant| {
        let mut up = Vec::new();
        let mut pongs = Vec::new();
        while let Some(output) = punch.poll_output() {
            match output {
                Output::Transmit { to, bytes } if to == from => {
                    let ping = Probe::open(&bytes, &KEY).unwrap();
                    let pong = Probe { kind: ProbeKind::Pong, role: Role::Host, ..ping };
                    pongs.push(pong.seal(&KEY));
                    pongs.push(Probe { role: Role::Host, ..ping }.seal(&KEY));
                }
                Output::PathUp { address, .. } => up.push(address),
                Output::Transmit { .. } | Output::PathDown { .. } | Output::Proved { .. } => {}
            }
        }
        // The peer answers, and asks in turn
        for pong in pongs {
            punch.handle_probe(&pong, from, now);
        }
        up
    };
    answer(&mut punch, public, now);
    assert_eq!(punch.path().map(|path| path.1), Some(Rung::UdpPublic));
    let later = now + Duration::from_millis(100);
    punch.handle_timeout(later);
    answer(&mut punch, private, later);
    assert_eq!(punch.path().map(|path| path.1), Some(Rung::UdpPrivate));
    punch.handle_timeout(later + Duration::from_millis(100));
    answer(&mut punch, public, later);
    assert_eq!(punch.path().map(|path| path.1), Some(Rung::UdpPrivate));
}

#[test]
fn a_stranger_moves_nothing_and_gets_no_answer() {
    let now = Instant::now();
    let stranger: SocketAddr = "192.0.2.66:6".parse().unwrap();
    let mut punch = Punch::new(Role::Host, TAG, KEY, [], 0, now);
    let ping = Probe { kind: ProbeKind::Ping, role: Role::Client, tag: TAG, nonce: 1 };
    punch.handle_probe(&ping.seal(&[1; 32]), stranger, now);
    punch.handle_probe(&[0x10; PROBE_BYTES], stranger, now);
    // Our own probe, played back
    punch.handle_probe(&Probe { role: Role::Host, ..ping }.seal(&KEY), stranger, now);
    assert_eq!(punch.poll_output(), None);
}
