//! Strangers: a scan of the server, a captured registration, QUIC and TLS clients of any kind.

use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use p2pfs::address::ServerAddress;
use p2pfs::identity::{MacAddress, PairKey, SecretKey};
use p2pfs::net::quic;
use p2pfs::net::rendezvous::{
    Registration, RegistrationConfig, RendezvousEvent, Side as Registers,
};
use p2pfs::usb;
use p2pfs::wire::relay::{Bind, BindKind, RelayId, data_header};
use p2pfs::wire::rendezvous::Routing;
use p2pfs::wire::stun::{Transaction, binding_request};
use tokio::sync::{mpsc, watch};

use crate::world::{Home, Side, eventually};

use super::memory::Memory;

/// How long an answer may take to come.
const ANSWER: Duration = Duration::from_millis(1500);
const DAEMON_KIB_MAX: u64 = 32 << 10;

/// What the server says to somebody who looks for a host.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Said {
    Connected,
    NoMatch,
    Introduced,
}

#[test]
fn a_stranger_who_knows_half_is_told_what_one_is_told_who_knows_nothing() {
    let home = Home::on_loopback();
    let key = usb::open_key(&home.key.dir, None).unwrap().contents;
    eventually("the host at the server", Duration::from_secs(20), || {
        home.world.status(Side::Server)["hosts"] == 1
    });
    let (wrong_key, wrong_mac) = (PairKey::from_bytes([9; 32]), MacAddress([2, 9, 9, 9, 9, 9]));
    let stranger = SecretKey::from_seed([0x99; 32]);
    let looks = [
        ("neither", &stranger, &wrong_key, wrong_mac),
        ("the MAC, not the pair key", &stranger, &wrong_key, key.host_mac),
        ("the pair key, not the MAC", &stranger, &key.pair_key, wrong_mac),
        ("both, not the client's key", &stranger, &key.pair_key, key.host_mac),
        ("the client's key alone", &key.secret, &wrong_key, key.host_mac),
        ("all of it", &key.secret, &key.pair_key, key.host_mac),
    ];
    let mut said = Vec::new();
    for (what, secret, pair_key, mac) in looks {
        let (pair_key, host) = (pair_key.clone(), key.host);
        let side = Registers::Client { pair_key, mac, host, first: None, loans: None };
        let heard = look(secret, &key.servers[0], side);
        println!("{what:<32} {heard:?}");
        said.push(heard);
    }
    let known = said.pop().unwrap();
    assert!(known.contains(&Said::Introduced), "{known:?}");
    for heard in said {
        assert_eq!(heard, [Said::Connected, Said::NoMatch]);
    }
}

#[test]
fn a_captured_registration_registers_nobody() {
    let home = Home::on_loopback();
    let server: ServerAddress = home.server.ready.parse().unwrap();
    let at: SocketAddr = (Ipv4Addr::LOCALHOST, server.port).into();
    let captured = Arc::new(Mutex::new(Vec::new()));
    let tap = tap(at, &captured);
    // another host, whose way to the server somebody listens to
    let through = home.server.ready.replace(&at.to_string(), &tap.to_string());
    let state = home.world.path("state").join("heard");
    let share = format!("disk={}", home.disk.display());
    let args = ["serve", "--server", &through, "--share", &share];
    let host = home.world.start_in(Side::Host, &state, &args);
    eventually("two hosts at the server", Duration::from_secs(20), || {
        home.world.status(Side::Server)["hosts"] == 2
    });
    host.stop();
    eventually("one host at the server", Duration::from_secs(20), || {
        home.world.status(Side::Server)["hosts"] == 1
    });
    let registration = captured.lock().unwrap().clone();
    assert!(registration.len() > 300, "{} bytes captured", registration.len());
    let whole = say(at, &registration);
    let hello = say(at, &registration[..1500.min(registration.len())]);
    println!(
        "{} bytes replayed: {} bytes of handshake come back, {} to its beginning alone",
        registration.len(),
        whole.len(),
        hello.len()
    );
    // the server's half of a handshake, and an alert: keys are fresh each time
    assert!(whole.len() < 2000, "{} bytes", whole.len());
    assert_eq!(home.world.status(Side::Server)["hosts"], 1);
    assert_eq!(home.world.status(Side::Server)["clients"], 0);
}

#[test]
fn no_client_of_another_kind_gets_anything() {
    let home = Home::on_loopback();
    let server: ServerAddress = home.server.ready.parse().unwrap();
    let tcp: SocketAddr = (Ipv4Addr::LOCALHOST, server.port).into();
    eventually("the host at the server", Duration::from_secs(20), || {
        home.world.status(Side::Server)["hosts"] == 1
    });
    let before = [&home.server, &home.host].map(|daemon| (daemon.pid(), Memory::of(daemon.pid())));
    let http = b"GET / HTTP/1.1\r\nHost: home\r\n\r\n";
    for said in [&http[..], &[0x16, 3, 1, 0xff, 0xff], &[0; 3000], b"SSH-2.0-x\r\n", b""] {
        let answer = say(tcp, said);
        assert!(answer.len() <= said.len().max(7), "{answer:?} to {said:?}");
    }
    let (host_port, stun_port) = ports(&home);
    let key = usb::open_key(&home.key.dir, None).unwrap().contents;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    for port in [host_port, stun_port] {
        let at = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        // QUIC, of any key, and of the right one without a match
        for secret in [&SecretKey::from_seed([0x99; 32]), &key.secret] {
            let config = quic::client_config(secret, key.host).unwrap();
            let refused = runtime.block_on(async {
                let any = (Ipv4Addr::LOCALHOST, 0).into();
                let endpoint = quinn::Endpoint::client(any).unwrap();
                let dialled = endpoint.connect_with(config, at, "host.p2pfs").unwrap();
                tokio::time::timeout(ANSWER, dialled).await
            });
            assert!(refused.is_err(), "{refused:?}");
        }
        let is_server = port == stun_port;
        for datagram in datagrams() {
            let answer = send(at, &datagram);
            let first = datagram.first().copied().unwrap_or_default();
            assert!(answer.len() <= datagram.len(), "{first:#x}: {} bytes", answer.len());
            assert!(answer.is_empty() || is_server && first < 4, "{first:#x}: {answer:?}");
        }
        flood(at);
    }
    for (pid, memory) in before {
        memory.grown(pid, "a daemon that strangers knock at", DAEMON_KIB_MAX);
    }
    home.world.pair("later", &["--authorise"]);
    assert_eq!(home.world.status(Side::Server)["hosts"], 1);
}

/// Looks for a host for a while; what the server says, each thing once.
fn look(secret: &SecretKey, server: &ServerAddress, side: Registers) -> Vec<Said> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let (events_in, mut events) = mpsc::channel(64);
        let (secret, server) = (secret.clone(), server.clone());
        let (routing_in, routing) = watch::channel(Routing::default());
        let config = RegistrationConfig { secret, server, side, routing, relayed: None };
        let _registration = Registration::start(config, events_in);
        // as soon as somebody knows where it is, it asks
        let udp_public = Some("203.0.113.77:4000".parse().unwrap());
        routing_in.send_modify(|routing| routing.udp_public = udp_public);
        let mut said = Vec::new();
        let listen = async {
            while let Some(event) = events.recv().await {
                said.extend(match event {
                    RendezvousEvent::Connected { .. } => Some(Said::Connected),
                    RendezvousEvent::NoMatch => Some(Said::NoMatch),
                    RendezvousEvent::Introduced(..) => Some(Said::Introduced),
                    RendezvousEvent::Moved(..) | RendezvousEvent::Lost { .. } => None,
                });
            }
        };
        let _ = tokio::time::timeout(2 * ANSWER, listen).await;
        said.dedup();
        said
    })
}

/// A way to the server on which everything that a daemon says is kept.
fn tap(server: SocketAddr, captured: &Arc<Mutex<Vec<u8>>>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let at = listener.local_addr().unwrap();
    let captured = Arc::clone(captured);
    thread::spawn(move || {
        for (number, client) in listener.incoming().map_while(Result::ok).enumerate() {
            let Ok(there) = TcpStream::connect(server) else { return };
            let (mut back, mut forth) = (there.try_clone().unwrap(), there);
            let (mut from, mut to) = (client.try_clone().unwrap(), client);
            thread::spawn(move || {
                let _ = std::io::copy(&mut back, &mut to);
                let _ = to.shutdown(Shutdown::Both);
            });
            let captured = Arc::clone(&captured);
            thread::spawn(move || {
                let mut buffer = [0; 4096];
                while let Ok(length @ 1..) = from.read(&mut buffer) {
                    if number == 0 {
                        captured.lock().unwrap().extend_from_slice(&buffer[..length]);
                    }
                    if forth.write_all(&buffer[..length]).is_err() {
                        break;
                    }
                }
                let _ = forth.shutdown(Shutdown::Both);
            });
        }
    });
    at
}

/// Says something to a TCP port; everything that comes back.
fn say(at: SocketAddr, bytes: &[u8]) -> Vec<u8> {
    let mut tcp = TcpStream::connect(at).unwrap();
    tcp.set_read_timeout(Some(ANSWER)).unwrap();
    // it may have hung up before all was said
    let _ = tcp.write_all(bytes);
    let mut answer = Vec::new();
    let _ = tcp.read_to_end(&mut answer);
    answer
}

/// Sends a datagram; the first that comes back.
fn send(at: SocketAddr, datagram: &[u8]) -> Vec<u8> {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
    socket.send_to(datagram, at).unwrap();
    let mut answer = [0; 2000];
    let length = socket.recv(&mut answer).unwrap_or_default();
    answer[..length].to_vec()
}

/// What different programs would answer: STUN as we ask it, relay frames of nobody, probes, QUIC.
fn datagrams() -> Vec<Vec<u8>> {
    let (kind, id) = (BindKind::Bind, RelayId([7; 8]));
    let bind = Bind { kind, id, cookie: [0; 16] }.seal(&[9; 32]).to_vec();
    let data = [&data_header(id)[..], b"datagram"].concat();
    let mut initial = vec![0xc0, 0, 0, 0, 1, 8, 1, 2, 3, 4, 5, 6, 7, 8, 0, 0, 0x44, 0x90];
    initial.resize(1200, 0x5a);
    let mut unknown = initial.clone();
    unknown[1..5].copy_from_slice(&[0xba, 0xba, 0xba, 0xba]);
    let short = vec![0x43; 1200];
    let mut all = vec![binding_request(Transaction([5; 12])), bind, data, initial, unknown, short];
    all.extend((0..=0x3f_u8).map(|first| vec![first; 48]));
    all
}

/// As much as one sender can for a second.
fn flood(at: SocketAddr) {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let all = datagrams();
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(1) {
        for datagram in &all {
            // a full queue is nobody's fault
            let _ = socket.send_to(datagram, at);
        }
    }
}

/// Where the host's socket is, and where the server's STUN is.
fn ports(home: &Home) -> (u16, u16) {
    let status = home.world.status(Side::Host);
    let own = status["routing"]["own"]["udp_private"][0].as_str();
    let own: SocketAddr = own.unwrap_or_else(|| panic!("{status:#}")).parse().unwrap();
    let pid = home.server.pid().as_raw_pid();
    let sockets = fs::read_to_string(format!("/proc/{pid}/net/udp")).unwrap();
    let inodes: Vec<String> = fs::read_dir(format!("/proc/{pid}/fd"))
        .unwrap()
        .filter_map(|fd| fs::read_link(fd.ok()?.path()).ok())
        .filter_map(|link| {
            Some(link.to_str()?.strip_prefix("socket:[")?.trim_end_matches(']').into())
        })
        .collect();
    let stun = sockets.lines().skip(1).find_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let is_its = inodes.iter().any(|inode| inode == fields[9]);
        let port = fields[1].rsplit_once(':').unwrap().1;
        is_its.then(|| u16::from_str_radix(port, 16).unwrap())
    });
    (own.port(), stun.expect("the server has a UDP socket"))
}
