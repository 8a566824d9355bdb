//! What one address, one key, and all who look for one host can do to a server and to the others.

use std::net::{IpAddr, Ipv6Addr};

use super::*;
use crate::identity::PeerId;
use crate::limits::{
    ASKS_UNANSWERED_MAX, SERVER_INDICES_PER_KEY_MAX, SERVER_PEERS_PER_ADDRESS_MAX,
    SERVER_PEERS_PER_KEY_MAX, SERVER_PEERS_PER_SITE_MAX,
};
use crate::proto::rendezvous::matcher::Full;

const HOME: Link = Link(1);
const INDEX: BlindedMac = BlindedMac([7; 16]);

/// A server that is driven by hand; one host is registered, and answers when it is told to.
struct Crowd {
    matcher: Matcher,
    now: Instant,
    /// What the host has not answered yet.
    asked: Vec<(MatchId, PeerId)>,
    introduced: Vec<Link>,
    closed: Vec<Link>,
    refused: Vec<BlindedMac>,
}

impl Crowd {
    fn new() -> Self {
        let mut crowd = Self {
            matcher: Matcher::new(Vec::new(), true, [1; 32]),
            now: Instant::now(),
            asked: Vec::new(),
            introduced: Vec::new(),
            closed: Vec::new(),
            refused: Vec::new(),
        };
        crowd.connect(HOME, key(0), address(1, 1).ip()).unwrap();
        crowd.say(HOME, ToServer::Hello { role: Role::Host }).unwrap();
        crowd
    }

    fn connect(&mut self, link: Link, key: PeerId, from: IpAddr) -> Result<(), Full> {
        self.matcher.handle_connected(link, key, (from, 9).into(), self.now)
    }

    fn say(&mut self, link: Link, message: ToServer) -> Result<(), PeerMisbehaved> {
        self.matcher.handle_message(link, message, self.now)?;
        self.drain();
        Ok(())
    }

    fn drain(&mut self) {
        while let Some(output) = self.matcher.poll_output() {
            match output {
                MatcherOutput::Send(HOME, FromServer::Sought { match_id, client, .. }) => {
                    self.asked.push((match_id, client));
                }
                MatcherOutput::Send(link, FromServer::Introduced { .. }) => {
                    self.introduced.push(link);
                }
                MatcherOutput::Send(_, FromServer::Full { indices }) => {
                    self.refused.extend(indices);
                }
                MatcherOutput::Close(link) => self.closed.push(link),
                _ => {}
            }
        }
    }

    fn register(&mut self, indices: Vec<BlindedMac>) {
        self.say(HOME, ToServer::Register { indices }).unwrap();
    }

    /// Clients of their own keys, each elsewhere, that look for an index.
    fn seekers(&mut self, links: std::ops::Range<u64>, index: BlindedMac) {
        for link in links {
            let from = IpAddr::V4(u32::try_from(0x0b00_0000 + link).unwrap().into());
            self.connect(Link(link), key(link), from).unwrap();
            self.say(Link(link), ToServer::Hello { role: Role::Client }).unwrap();
            self.seek(Link(link), index).unwrap();
        }
    }

    fn seek(&mut self, link: Link, index: BlindedMac) -> Result<(), PeerMisbehaved> {
        self.say(link, ToServer::Seek { index, sealed: sealed(9) })
    }

    /// The host accepts the one that it was asked about first.
    fn accept(&mut self) {
        let (match_id, _) = self.asked.remove(0);
        self.say(HOME, ToServer::Accept { match_id, sealed: sealed(9) }).unwrap();
    }

    fn wait(&mut self, time: Duration) {
        let end = self.now + time;
        while let Some(at) = self.matcher.poll_timeout().filter(|at| *at <= end) {
            self.now = self.now.max(at);
            self.matcher.handle_timeout(self.now);
            self.drain();
        }
        self.now = end;
    }
}

fn key(name: u64) -> PeerId {
    let mut key = [0xaa; 32];
    key[..8].copy_from_slice(&name.to_le_bytes());
    PeerId(key)
}

#[test]
fn a_host_for_which_many_wait_is_asked_as_fast_as_it_answers_and_gets_them_all() {
    let mut crowd = Crowd::new();
    crowd.seekers(100..400, INDEX);
    crowd.register(vec![INDEX]);
    let mut turns = 0;
    while crowd.introduced.len() < 300 {
        assert!(crowd.asked.len() <= ASKS_UNANSWERED_MAX);
        if crowd.asked.is_empty() {
            crowd.wait(Duration::from_millis(10));
        } else {
            crowd.accept();
        }
        turns += 1;
        assert!(turns < 2000, "{} introduced", crowd.introduced.len());
    }
    let mut introduced = crowd.introduced.clone();
    introduced.sort();
    assert_eq!(introduced, (100..400).map(Link).collect::<Vec<_>>());
    assert_eq!(crowd.closed, []);
}

#[test]
fn who_asks_for_a_host_without_end_neither_floods_it_nor_makes_others_wait() {
    let mut crowd = Crowd::new();
    let other = BlindedMac([8; 16]);
    crowd.register(vec![INDEX, other]);
    crowd.seekers(100..400, INDEX);
    for _ in 0..50 {
        for link in (100..400).map(Link) {
            crowd.seek(link, INDEX).unwrap();
        }
    }
    // the host has answered nothing yet, and most of them have asked anew since
    assert_eq!(crowd.asked.len(), ASKS_UNANSWERED_MAX);
    // an honest client is next but one at most
    crowd.seekers(777..778, other);
    for _ in 0..2 {
        crowd.accept();
    }
    assert!(crowd.asked.iter().any(|(_, client)| *client == key(777)));

    // answers are no talk of the host's own: it may give as many as it is asked for
    let mut answered = 0;
    for _ in 0..20 {
        for link in (100..400).map(Link) {
            crowd.wait(Duration::from_millis(1));
            let _ = crowd.seek(link, INDEX);
            while !crowd.asked.is_empty() {
                crowd.accept();
                answered += 1;
            }
        }
    }
    // 6 s at one in 10 ms, and the burst
    assert!((500..750).contains(&answered), "{answered}");
    assert!(crowd.introduced.contains(&Link(777)));
}

#[test]
fn a_client_that_leaves_is_not_named_and_a_host_that_leaves_keeps_nobody() {
    let mut crowd = Crowd::new();
    crowd.register(vec![INDEX]);
    let many = ASKS_UNANSWERED_MAX as u64;
    crowd.seekers(100..100 + many + 2, INDEX);
    let [left, stays] = [Link(100 + many), Link(101 + many)];
    crowd.matcher.handle_disconnected(left, crowd.now);
    crowd.accept();
    let last = crowd.asked.last().map(|(_, client)| *client);
    assert_eq!(last, Some(key(stays.0)));
    // the host comes again over another connection: all but the first are still to be had
    crowd.matcher.handle_disconnected(HOME, crowd.now);
    crowd.asked.clear();
    crowd.connect(HOME, key(0), address(1, 1).ip()).unwrap();
    crowd.say(HOME, ToServer::Hello { role: Role::Host }).unwrap();
    crowd.register(vec![INDEX]);
    assert_eq!(crowd.asked.len(), ASKS_UNANSWERED_MAX);
    while !crowd.asked.is_empty() {
        crowd.accept();
    }
    assert_eq!(crowd.introduced.len(), ASKS_UNANSWERED_MAX + 1);
}

#[test]
fn no_address_and_no_key_fills_the_server() {
    let mut crowd = Crowd::new();
    let mut link = 1000;
    let mut come = |crowd: &mut Crowd, key, from: IpAddr, tries: usize| {
        let come = |_: &usize| {
            link += 1;
            crowd.connect(Link(link), key, from).is_ok()
        };
        (0..tries).filter(come).count()
    };
    let here = address(9, 1).ip();
    assert_eq!(come(&mut crowd, key(5), here, 400), SERVER_PEERS_PER_KEY_MAX);
    let rest = SERVER_PEERS_PER_ADDRESS_MAX - SERVER_PEERS_PER_KEY_MAX;
    let keys = (6..9).map(|name| come(&mut crowd, key(name), here, 256)).sum::<usize>();
    assert_eq!((keys, come(&mut crowd, key(9), here, 9)), (rest, 0));
    // nobody else is touched
    assert_eq!(come(&mut crowd, key(9), address(10, 1).ip(), 9), 9);
    let network = |number: u16| IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 1, number, 0, 0, 0, 1));
    let of_site: usize = (0..40)
        .map(|number| come(&mut crowd, key(100 + u64::from(number)), network(number), 256))
        .sum();
    assert_eq!(of_site, SERVER_PEERS_PER_SITE_MAX);
    // who leaves gives it back
    crowd.matcher.handle_disconnected(Link(1001), crowd.now);
    assert_eq!(come(&mut crowd, key(5), here, 9), 1);
}

#[test]
fn branches_count_for_their_key_too() {
    let mut crowd = Crowd::new();
    let here = address(9, 1).ip();
    let free = SERVER_PEERS_PER_KEY_MAX as u64 - 3;
    for link in 1000..1000 + free {
        crowd.connect(Link(link), key(5), here).unwrap();
    }
    crowd.say(Link(1000), ToServer::Hello { role: Role::Client }).unwrap();
    let now = crowd.now;
    let mut branch = |link| crowd.matcher.handle_branched(Link(link), Link(1000), now);
    let branched = (1..9).map(&mut branch).filter(Result::is_ok).count();
    // the first is the host's
    assert_eq!(branched, 3, "3 of them are left");
    assert_eq!(crowd.connect(Link(4000), key(5), here), Err(Full));
}

#[test]
fn a_host_that_registers_all_there_is_hears_so_and_others_find_room() {
    let mut crowd = Crowd::new();
    let mut registered = 0;
    while crowd.refused.is_empty() {
        crowd.register(indices(registered, INDICES_PER_MESSAGE));
        registered += INDICES_PER_MESSAGE;
        if registered.is_multiple_of(INDICES_MAX) {
            // what it leaves behind is its own for a minute
            crowd.matcher.handle_disconnected(HOME, crowd.now);
            crowd.connect(HOME, key(0), address(1, 1).ip()).unwrap();
            crowd.say(HOME, ToServer::Hello { role: Role::Host }).unwrap();
        }
        assert!(registered < 4 * SERVER_INDICES_PER_KEY_MAX);
    }
    assert_eq!(registered - crowd.refused.len(), SERVER_INDICES_PER_KEY_MAX);
    crowd.connect(Link(2), key(2), address(1, 1).ip()).unwrap();
    crowd.say(Link(2), ToServer::Hello { role: Role::Host }).unwrap();
    crowd.refused.clear();
    let register = ToServer::Register { indices: indices(registered, 9) };
    crowd.say(Link(2), register).unwrap();
    assert_eq!(crowd.refused, []);
    crowd.wait(REGISTRATION_LIFE + Duration::from_secs(9));
    assert!(crowd.closed.contains(&Link(2)));
}

#[test]
fn a_host_tries_again_what_it_was_refused() {
    for full in [false, true] {
        let mut host = HostSide::new(MAC, [1; 32]);
        let mut now = Instant::now();
        let key = RecordedKey { peer: peer(CLIENT), pair_key: pair_key() };
        host.set_keys(&[key], now);
        host.set_routing(routing(HOST), now);
        host.handle_connected(now);
        let mut registered = Vec::new();
        let start = now;
        while now < start + REGISTRATION_LIFE * 3 {
            while let Some(output) = host.poll_output() {
                match output {
                    Output::Send(ToServer::Register { indices }) => {
                        registered.push(now - start);
                        let refused = match full {
                            true => FromServer::Full { indices },
                            false => FromServer::Taken { indices },
                        };
                        // somebody else has it for a while
                        if registered.len() < 3 {
                            host.handle_message(refused, now).unwrap();
                        }
                    }
                    Output::Send(ToServer::Refresh { number, .. }) => {
                        host.handle_message(FromServer::Confirmed { number }, now).unwrap();
                    }
                    _ => {}
                }
            }
            now = host.poll_timeout().unwrap();
            host.handle_timeout(now);
        }
        let times = [0, 1, 2].map(|times| REGISTRATION_LIFE * times);
        assert_eq!(registered, times);
    }
}
