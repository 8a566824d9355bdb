//! What strangers are answered by UDP, counted: STUN, and what they have heard others say.

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use p2pfs::identity::sealed::KeyContents;
use p2pfs::net::rendezvous::{
    Introduction, Registration, RegistrationConfig, RendezvousEvent, Side as Registers,
};
use p2pfs::usb;
use p2pfs::wire::codec::decode;
use p2pfs::wire::probe::{Probe, ProbeKind, ProbeTag, Role};
use p2pfs::wire::relay::{BIND_BYTES, Bind, BindKind, RelayGrant};
use p2pfs::wire::rendezvous::Routing;
use p2pfs::wire::session::Verdict;
use p2pfs::wire::stun::{Transaction, binding_request, binding_response, change_request};
use quinn::Connection;
use tokio::runtime::Runtime;
use tokio::sync::{mpsc, watch};

use crate::world::{Home, Side, World, eventually};

use super::clients::{ask, request, runtime};
use super::peer::Peer;
use super::strangers::{ANSWER, datagrams, ports, udp_sockets};

/// How long what must come may take.
const PATIENCE: Duration = Duration::from_secs(20);
/// A binding request without attributes (RFC 8489).
const BARE: [u8; 20] = [0, 1, 0, 0, 0x21, 0x12, 0xa4, 0x42, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9];
/// No datagram.
const NOTHING: Vec<Vec<u8>> = Vec::new();
/// What an answer may be longer than a stranger's question, bytes.
const MORE_MAX: usize = 32;

#[test]
fn stun_answers_requests_alone_and_hardly_longer_than_they_are() {
    let world = World::on_loopback();
    for (alt, bare_max) in [(None, 32), (Some("127.0.0.2:0"), 44)] {
        let state = world.path("state").join(format!("stun {bare_max}"));
        let mut args = vec!["run", "--listen", "127.0.0.1:0", "--stun", "127.0.0.1:0"];
        args.extend(alt.into_iter().flat_map(|alt| ["--stun-alt", alt]));
        let server = world.start_in(Side::Server, &state, &args);
        let mut sockets = udp_sockets(server.pid());
        sockets.retain(|socket| *socket.ip() == Ipv4Addr::LOCALHOST);
        let at = SocketAddr::V4(sockets[0]);

        let id = Transaction([7; 12]);
        for ours in [binding_request(id), change_request(id, true, true)] {
            let (_, answers) = asked(at, &ours);
            assert_eq!(answers.len(), 1, "{alt:?}");
            assert!(answers[0].len() <= ours.len(), "{alt:?}: {} bytes", answers[0].len());
        }
        let (from, answers) = asked(at, &BARE);
        assert_eq!(answers.len(), 1, "{alt:?}");
        assert!(answers[0].len() <= bare_max, "{alt:?}: {} bytes", answers[0].len());
        assert_eq!(binding_response(&answers[0]).unwrap().mapped, Some(from));
        // CHANGE-REQUEST, what nobody has defined, once and often
        for more in [[0, 3, 0, 4, 0, 0, 0, 6], [0x7f, 0xf0, 0, 4, 0, 0, 0, 0]] {
            for times in [1, 2, 9, 100] {
                let question = with_attributes(&more.repeat(times));
                let (_, answers) = asked(at, &question);
                assert_eq!(answers.len(), 1, "{alt:?} {more:?} {times} times");
                let (length, most) = (answers[0].len(), question.len() + MORE_MAX);
                assert!(length <= most, "{alt:?} {more:?} {times} times: {length} bytes");
            }
        }
        for nothing in no_requests() {
            let (_, answers) = asked(at, &nothing);
            assert!(answers.is_empty(), "{alt:?} {nothing:?}: {answers:?}");
        }
    }
}

#[test]
fn a_replayed_bind_binds_nobody() {
    let mut home = Home::on_loopback();
    let (_runtime, _registration, introduction) = introduced(&home);
    let grant = introduction.relay.unwrap();
    let (at, heard, cookie) = bound(&grant);

    // whose address changes says the same: he is asked to prove the new one, and nobody else can
    let (_, answers) = asked(at, &heard);
    assert!(answers.concat().len() <= BIND_BYTES, "{answers:?}");
    for answer in answers {
        let answer = Bind::open(&answer, &grant.token.0).unwrap();
        assert_eq!(answer.kind, BindKind::Challenge);
        assert_ne!(answer.cookie, cookie);
        let unproved = Bind { kind: BindKind::Bind, ..answer }.seal(&[0; 32]);
        assert_eq!(asked(at, &unproved).1, NOTHING);
    }

    // of a match that is over
    home.restart_server();
    let (_, stun) = ports(&home);
    assert_eq!(asked((Ipv4Addr::LOCALHOST, stun).into(), &heard).1, NOTHING);
}

#[test]
fn what_was_heard_of_a_session_opens_no_way_to_the_host() {
    let mut home = Home::on_loopback();
    let session = Overheard::new(&home);
    let (host, stun) = ports(&home);
    let at = SocketAddr::from((Ipv4Addr::LOCALHOST, host));
    let server = SocketAddr::from((Ipv4Addr::LOCALHOST, stun));
    let (probes, quic) = (session.probes(), session.quic());
    assert!(!probes.is_empty() && !quic.is_empty(), "{} {}", probes.len(), quic.len());

    assert_eq!(replayed(at, &quic), NOTHING);
    assert_eq!(replayed(at, &probes), NOTHING);
    assert_eq!(replayed(server, &[probes.clone(), quic.clone()].concat()), NOTHING);
    assert_eq!(session.connection.close_reason(), None);
    let status = home.world.status(Side::Host);
    assert_eq!(status["sessions"].as_array().map(Vec::len), Some(1), "{status:#}");

    // of a match that is over
    home.restart_host();
    eventually("the host at the server", PATIENCE, || {
        home.world.status(Side::Server)["hosts"] == 1
    });
    let again = SocketAddr::from((Ipv4Addr::LOCALHOST, ports(&home).0));
    assert_eq!(replayed(again, &[probes, quic].concat()), NOTHING);
}

#[test]
fn a_replayed_probe_gets_no_byte_back() {
    let home = Home::on_loopback();
    let (_runtime, _registration, introduction) = introduced(&home);
    let host = SocketAddr::from((Ipv4Addr::LOCALHOST, ports(&home).0));
    let mut tag = [0; 8];
    tag.copy_from_slice(&introduction.match_id.0[..8]);
    let (kind, role) = (ProbeKind::Ping, Role::Client);
    let ping = Probe { kind, role, tag: ProbeTag(tag), nonce: 9 }.seal(&introduction.probe_key);
    assert_ne!(replayed(host, &[ping.to_vec()]), NOTHING, "whose it is gets an answer");
    assert_eq!(replayed(host, &[ping.to_vec()]), NOTHING, "while there is no path");
    let session = Overheard::new(&home);
    assert_eq!(replayed(host, &session.probes()[..1]), NOTHING, "in a session");
}

/// A client's session with a host, the way to which somebody listens at.
struct Overheard {
    peer: Peer,
    connection: Connection,
    heard: Arc<Mutex<Vec<Vec<u8>>>>,
    _runtime: Runtime,
}

impl Overheard {
    fn new(home: &Home) -> Self {
        let runtime = runtime();
        let host = SocketAddr::from((Ipv4Addr::LOCALHOST, ports(home).0));
        let (through, heard) = forwarder(host);
        let key = usb::open_key(&home.key.dir, None).unwrap();
        let (peer, connection) = runtime.block_on(async {
            let mut peer = Peer::client_through(&key.contents, Some(through));
            let met = tokio::time::timeout(PATIENCE, peer.meet()).await;
            let connection = peer.dial(&key.contents, met.unwrap()).await;
            let verdict = ask(&connection, &[&[0], &*request(&key)].concat()).await;
            assert!(matches!(decode::<Verdict>(&verdict[8..]), Ok(Verdict::Approved(_))));
            (peer, connection)
        });
        Self { peer, connection, heard, _runtime: runtime }
    }

    fn probes(&self) -> Vec<Vec<u8>> {
        self.of_kind(|datagram| Probe::open(datagram, &self.peer.probe_key).is_some())
    }

    fn quic(&self) -> Vec<Vec<u8>> {
        self.of_kind(|datagram| datagram[0] & 0x40 != 0)
    }

    fn of_kind(&self, is: impl Fn(&[u8]) -> bool) -> Vec<Vec<u8>> {
        let heard = self.heard.lock().unwrap();
        heard.iter().filter(|datagram| is(datagram)).cloned().collect()
    }
}

/// Carries datagrams to the host and back; keeps those to the host.
fn forwarder(host: SocketAddr) -> (SocketAddr, Arc<Mutex<Vec<Vec<u8>>>>) {
    let (front, back) = (socket(), socket());
    back.connect(host).unwrap();
    let at = front.local_addr().unwrap();
    let heard = Arc::new(Mutex::new(Vec::new()));
    let kept = Arc::clone(&heard);
    thread::spawn(move || {
        let mut datagram = [0; 2000];
        while let Ok((length, from)) = front.recv_from(&mut datagram) {
            // it has one client
            if front.peer_addr().is_err() {
                front.connect(from).unwrap();
                let (front, back) = (front.try_clone().unwrap(), back.try_clone().unwrap());
                thread::spawn(move || {
                    let mut datagram = [0; 2000];
                    while let Ok(length) = back.recv(&mut datagram) {
                        let _ = front.send(&datagram[..length]);
                    }
                });
            }
            kept.lock().unwrap().push(datagram[..length].to_vec());
            let _ = back.send(&datagram[..length]);
        }
    });
    (at, heard)
}

/// Says all of it from an address that nobody has seen; what comes back.
fn replayed(at: SocketAddr, datagrams: &[Vec<u8>]) -> Vec<Vec<u8>> {
    let socket = socket();
    for datagram in datagrams {
        socket.send_to(datagram, at).unwrap();
    }
    let start = Instant::now();
    let mut all = Vec::new();
    let mut datagram = [0; 2000];
    while let Some(rest) = ANSWER.checked_sub(start.elapsed()).filter(|rest| !rest.is_zero()) {
        socket.set_read_timeout(Some(rest)).unwrap();
        if let Ok(length) = socket.recv(&mut datagram) {
            all.push(datagram[..length].to_vec());
        }
    }
    all
}

/// Binds an address to the relay: where that is, the last thing said, and its cookie.
fn bound(grant: &RelayGrant) -> (SocketAddr, Vec<u8>, [u8; 16]) {
    let at = SocketAddr::from((Ipv4Addr::LOCALHOST, grant.udp.unwrap().port));
    let owner = socket();
    let (mut cookie, mut said) = ([0; 16], Vec::new());
    for expected in [BindKind::Challenge, BindKind::Bound] {
        said = Bind { kind: BindKind::Bind, id: grant.id, cookie }.seal(&grant.token.0).to_vec();
        owner.send_to(&said, at).unwrap();
        let mut answer = [0; 100];
        let length = owner.recv(&mut answer).unwrap();
        let answer = Bind::open(&answer[..length], &grant.token.0).unwrap();
        assert_eq!(answer.kind, expected);
        cookie = answer.cookie;
    }
    (at, said, cookie)
}

/// A client's match with the host of a home, as long as the registration lives.
fn introduced(home: &Home) -> (Runtime, Registration, Introduction) {
    let contents = usb::open_key(&home.key.dir, None).unwrap().contents;
    let KeyContents { secret, pair_key, host, host_mac: mac, servers, .. } = contents;
    let runtime = runtime();
    let (registration, introduction) = runtime.block_on(async {
        let (events_in, mut events) = mpsc::channel(64);
        let side = Registers::Client { pair_key, mac, host, first: None, loans: None };
        let routing = watch::channel(Routing::default()).1;
        let server = servers[0].clone();
        let config = RegistrationConfig { secret, server, side, routing, relayed: None };
        let registration = Registration::start(config, events_in);
        let introduced = async {
            loop {
                if let Some(RendezvousEvent::Introduced(introduction, _)) = events.recv().await {
                    break introduction;
                }
            }
        };
        let introduction = tokio::time::timeout(PATIENCE, introduced).await.unwrap();
        // a registration whose events nobody wants is over
        tokio::spawn(async move { while events.recv().await.is_some() {} });
        (registration, introduction)
    });
    (runtime, registration, introduction)
}

/// Who asked, and all that came before the answer to what is asked right after it: datagrams are
/// taken in their order.
fn asked(at: SocketAddr, datagram: &[u8]) -> (SocketAddr, Vec<Vec<u8>>) {
    let socket = socket();
    let last = Transaction([0xee; 12]);
    socket.send_to(datagram, at).unwrap();
    socket.send_to(&binding_request(last), at).unwrap();
    let mut answers = Vec::new();
    loop {
        let mut answer = [0; 2000];
        let length = socket.recv(&mut answer).unwrap();
        let answer = &answer[..length];
        if binding_response(answer).is_some_and(|answered| answered.transaction == last) {
            return (socket.local_addr().unwrap(), answers);
        }
        answers.push(answer.to_vec());
    }
}

fn socket() -> UdpSocket {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket
}

/// A binding request with these attributes.
fn with_attributes(attributes: &[u8]) -> Vec<u8> {
    let mut request = BARE.to_vec();
    let length = u16::try_from(attributes.len()).unwrap();
    request[2..4].copy_from_slice(&length.to_be_bytes());
    request.extend(attributes);
    request
}

/// What is no binding request, some of it by one byte.
fn no_requests() -> Vec<Vec<u8>> {
    let mut forged = binding_request(Transaction([7; 12]));
    *forged.last_mut().unwrap() ^= 1;
    // a response, an error, an indication, another method, two lengths, another cookie
    let mut all: Vec<Vec<u8>> = [
        (0, [1, 1]),
        (0, [1, 0x11]),
        (0, [0, 0x11]),
        (0, [0, 3]),
        (2, [0, 4]),
        (2, [0, 1]),
        (4, [0, 0x12]),
    ]
    .map(|(at, to)| [&BARE[..at], &to, &BARE[at + 2..]].concat())
    .into();
    all.extend([forged, BARE[..19].to_vec(), Vec::new(), with_attributes(&[0x80; 1400])]);
    all.extend(datagrams().into_iter().skip(1));
    all
}
