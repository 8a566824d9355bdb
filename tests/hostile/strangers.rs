//! Strangers: a scan of the server, a captured registration, QUIC and TLS clients of any kind.

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::{
    Ipv4Addr, Shutdown, SocketAddr, SocketAddrV4, TcpListener, TcpStream, ToSocketAddrs, UdpSocket,
};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use p2pfs::address::ServerAddress;
use p2pfs::identity::sealed::KeyContents;
use p2pfs::identity::{MacAddress, PairKey, SecretKey};
use p2pfs::net::quic;
use p2pfs::net::rendezvous::{
    Registration, RegistrationConfig, RendezvousEvent, Side as Registers,
};
use p2pfs::net::tls::{self, Expected};
use p2pfs::usb;
use p2pfs::wire::relay::{Bind, BindKind, RelayId, data_header};
use p2pfs::wire::rendezvous::Routing;
use p2pfs::wire::stun::{Transaction, binding_request, is_stun};
use p2pfs::wire::version::RENDEZVOUS_ALPN;
use quinn::crypto::rustls::QuicClientConfig;
use rustix::process::Pid;
use rustls::SignatureScheme;
use rustls::client::ResolvesClientCert;
use rustls::sign::CertifiedKey;
use tokio::sync::{mpsc, watch};

use crate::world::{Home, Side, eventually};

use super::attacker::Tapped;
use super::memory::Memory;
use super::secrets::Heard;

/// How long an answer may take to come.
pub(super) const ANSWER: Duration = Duration::from_millis(1500);
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
    let (through, exchanges) = tap((Ipv4Addr::LOCALHOST, key.servers[0].port).into());
    let server = ServerAddress { port: through.port(), ..key.servers[0].clone() };
    let mut said = Vec::new();
    for (number, (what, secret, pair_key, mac)) in looks.into_iter().enumerate() {
        let (pair_key, host) = (pair_key.clone(), key.host);
        let side = Registers::Client { pair_key, mac, host, first: None, loans: None };
        let heard = look(secret, &server, side);
        let sizes = records(&exchanges.lock().unwrap()[number].answered);
        println!("{what:<32} {heard:?} {sizes:?}");
        said.push((heard, sizes));
    }
    let known = said.pop().unwrap().0;
    assert!(known.contains(&Said::Introduced), "{known:?}");
    // to the byte: what is sealed in the records is as long
    for one in &said {
        assert_eq!(one.0, [Said::Connected, Said::NoMatch]);
        assert_eq!(one, &said[0]);
    }
    let replayed: Vec<_> = exchanges
        .lock()
        .unwrap()
        .iter()
        .map(|exchange| records(&say((Ipv4Addr::LOCALHOST, key.servers[0].port), &exchange.said)))
        .collect();
    println!("{:<32} {replayed:?}", "what they said, said again");
    assert_eq!(replayed.len(), 6);
    assert_eq!(replayed, vec![replayed[0].clone(); 6]);
    eventually("nobody to look for the host", Duration::from_secs(20), || {
        home.world.status(Side::Server)["clients"] == 0
    });
}

#[test]
fn a_captured_registration_registers_nobody() {
    let home = Home::on_loopback();
    let server: ServerAddress = home.server.ready.parse().unwrap();
    let at: SocketAddr = (Ipv4Addr::LOCALHOST, server.port).into();
    let (tap, exchanges) = tap(at);
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
    let registration = exchanges.lock().unwrap()[0].said.clone();
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
    // what a host said is worth as much as what nobody said
    let key = usb::open_key(&home.key.dir, None).unwrap().contents;
    let through = ServerAddress { port: tap.port(), ..server };
    let (pair_key, mac) = (PairKey::from_bytes([9; 32]), key.host_mac);
    let side = Registers::Client { pair_key, mac, host: key.host, first: None, loans: None };
    look(&SecretKey::from_seed([0x99; 32]), &through, side);
    let stranger = exchanges.lock().unwrap().last().unwrap().said.clone();
    assert_eq!(records(&whole), records(&say(at, &stranger)));
    eventually("nobody to look for the host", Duration::from_secs(20), || {
        home.world.status(Side::Server)["clients"] == 0
    });
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
    for (what, config) in tls_clients() {
        let (told, ended) = talk_tls(tcp, config);
        println!("TLS, {what:<32} {told:?} {ended}");
        assert_eq!(told, b"", "{what}");
    }
    let (host_port, stun_port) = ports(&home);
    let key = usb::open_key(&home.key.dir, None).unwrap().contents;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    for port in [host_port, stun_port] {
        let at = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        for config in quic_clients(&key) {
            let heard = Heard::default();
            let refused = runtime.block_on(async {
                let socket = Tapped::bind((Ipv4Addr::LOCALHOST, 0).into(), &heard);
                let endpoint = socket.endpoint(None);
                let dialled = endpoint.connect_with(config, at, "host.p2pfs").unwrap();
                tokio::time::timeout(ANSWER, dialled).await
            });
            assert!(refused.is_err(), "{refused:?}");
            assert_eq!(heard.bytes(), b"");
        }
        let is_server = port == stun_port;
        for datagram in datagrams() {
            let answer = send(at, &datagram);
            let first = datagram.first().copied().unwrap_or_default();
            assert!(answer.len() <= datagram.len(), "{first:#x}: {} bytes", answer.len());
            let is_asked = is_server && is_stun(&datagram);
            assert!(answer.is_empty() || is_asked, "{first:#x}: {answer:?}");
        }
        flood(at);
    }
    for (pid, memory) in before {
        memory.grown(pid, "a daemon that strangers knock at", DAEMON_KIB_MAX);
    }
    home.world.pair("later", &["--authorise"]);
    assert_eq!(home.world.status(Side::Server)["hosts"], 1);
    assert_eq!(home.world.status(Side::Server)["clients"], 0);
    assert_eq!(home.world.status(Side::Host)["sessions"], serde_json::json!([]));
}

/// QUIC of any key, of the right one without a match, and of another protocol.
fn quic_clients(key: &KeyContents) -> [quinn::ClientConfig; 3] {
    let stranger = SecretKey::from_seed([0x99; 32]);
    let tls = tls::client_config(&stranger, Expected::Anyone, b"h3");
    let other = QuicClientConfig::try_from(tls).unwrap();
    [
        quic::client_config(&stranger, key.host).unwrap(),
        quic::client_config(&key.secret, key.host).unwrap(),
        quinn::ClientConfig::new(Arc::new(other)),
    ]
}

/// TLS of another protocol, without a key, and as the Web has it.
fn tls_clients() -> [(&'static str, rustls::ClientConfig); 3] {
    let stranger = SecretKey::from_seed([0x99; 32]);
    let other = tls::client_config(&stranger, Expected::Anyone, b"h2");
    let mut keyless = tls::client_config(&stranger, Expected::Anyone, RENDEZVOUS_ALPN);
    keyless.client_auth_cert_resolver = Arc::new(NoKey);
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut web = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_no_client_auth();
    web.alpn_protocols = vec![b"http/1.1".to_vec()];
    [("another protocol", other), ("no key", keyless), ("no raw public key", web)]
}

/// A client that has no key to show.
#[derive(Debug)]
struct NoKey;

impl ResolvesClientCert for NoKey {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        None
    }

    fn only_raw_public_keys(&self) -> bool {
        true
    }

    fn has_certs(&self) -> bool {
        false
    }
}

/// Shakes hands and asks for something: all that is told under TLS, and how it ends.
fn talk_tls(at: SocketAddr, config: rustls::ClientConfig) -> (Vec<u8>, std::io::Error) {
    let mut tcp = TcpStream::connect(at).unwrap();
    tcp.set_read_timeout(Some(ANSWER)).unwrap();
    let mut tls = rustls::ClientConnection::new(Arc::new(config), tls::server_name()).unwrap();
    let mut stream = rustls::Stream::new(&mut tls, &mut tcp);
    let mut told = Vec::new();
    let asked = stream.write_all(b"GET / HTTP/1.1\r\n\r\n");
    let ended = asked.and_then(|()| stream.read_to_end(&mut told)).unwrap_err();
    // a server that waited for more would not have refused
    assert!(!matches!(ended.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut), "{ended}");
    (told, ended)
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

/// What went over one connection to the server, each way.
#[derive(Default)]
struct Exchange {
    said: Vec<u8>,
    answered: Vec<u8>,
}

/// A way to the server on which everything is kept, by connection.
fn tap(server: SocketAddr) -> (SocketAddr, Arc<Mutex<Vec<Exchange>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let at = listener.local_addr().unwrap();
    let exchanges = Arc::new(Mutex::new(Vec::new()));
    let kept = Arc::clone(&exchanges);
    thread::spawn(move || {
        for (number, client) in listener.incoming().map_while(Result::ok).enumerate() {
            let Ok(there) = TcpStream::connect(server) else { return };
            kept.lock().unwrap().push(Exchange::default());
            let ways = [
                (client.try_clone().unwrap(), there.try_clone().unwrap(), true),
                (there, client, false),
            ];
            for (from, to, is_said) in ways {
                let kept = Arc::clone(&kept);
                thread::spawn(move || {
                    carry(from, to, |bytes| {
                        let exchange = &mut kept.lock().unwrap()[number];
                        let way = if is_said { &mut exchange.said } else { &mut exchange.answered };
                        way.extend_from_slice(bytes);
                    });
                });
            }
        }
    });
    (at, exchanges)
}

/// Carries what is said one way, and shows it, until that ends.
fn carry(mut from: TcpStream, mut to: TcpStream, mut show: impl FnMut(&[u8])) {
    let mut buffer = [0; 4096];
    while let Ok(length @ 1..) = from.read(&mut buffer) {
        show(&buffer[..length]);
        if to.write_all(&buffer[..length]).is_err() {
            break;
        }
    }
    let _ = to.shutdown(Shutdown::Both);
}

/// The kinds and lengths of TLS records.
fn records(mut bytes: &[u8]) -> Vec<(u8, usize)> {
    let mut all = Vec::new();
    while let [kind, _, _, high, low, rest @ ..] = bytes {
        let length = usize::from(u16::from_be_bytes([*high, *low]));
        all.push((*kind, length));
        // the last may be cut: whoever listens does so while more is said
        bytes = rest.get(length..).unwrap_or_default();
    }
    all
}

/// Says something to a TCP port; everything that comes back.
fn say(at: impl ToSocketAddrs, bytes: &[u8]) -> Vec<u8> {
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
pub(super) fn datagrams() -> Vec<Vec<u8>> {
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
pub(super) fn ports(home: &Home) -> (u16, u16) {
    let status = home.world.status(Side::Host);
    let own = status["routing"]["own"]["udp_private"][0].as_str();
    let own: SocketAddr = own.unwrap_or_else(|| panic!("{status:#}")).parse().unwrap();
    (own.port(), udp_sockets(home.server.pid())[0].port())
}

/// The IPv4 UDP sockets of a process.
pub(super) fn udp_sockets(pid: Pid) -> Vec<SocketAddrV4> {
    let pid = pid.as_raw_pid();
    let sockets = fs::read_to_string(format!("/proc/{pid}/net/udp")).unwrap();
    let inodes: Vec<String> = fs::read_dir(format!("/proc/{pid}/fd"))
        .unwrap()
        .filter_map(|fd| fs::read_link(fd.ok()?.path()).ok())
        .filter_map(|link| {
            Some(link.to_str()?.strip_prefix("socket:[")?.trim_end_matches(']').into())
        })
        .collect();
    let found = sockets.lines().skip(1).filter_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let (ip, port) = fields[1].split_once(':')?;
        // the kernel prints the address as the number that its bytes are here
        let ip = u32::from_str_radix(ip, 16).ok()?.to_ne_bytes();
        let at = SocketAddrV4::new(ip.into(), u16::from_str_radix(port, 16).ok()?);
        inodes.iter().any(|inode| inode == fields[9]).then_some(at)
    });
    let found: Vec<_> = found.collect();
    assert!(!found.is_empty(), "the process has a UDP socket");
    found
}
