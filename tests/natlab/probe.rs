//! Who sees what through a NAT: echoes on the server, flows from a side.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};

use crate::world::lab::{Filtering, Kind, Lab, Mapping, SERVER, SERVER_V6, Tcp};

const PORTS: [u16; 2] = [3478, 3479];
const TCP_PORTS: [u16; 2] = [443, 3478];
/// Sends of one question, and the wait for an answer to each.
const TRIES: usize = 3;
const WAIT: Duration = Duration::from_millis(300);

/// What a NAT was seen to do.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Seen {
    udp: Option<UdpSeen>,
    /// Whether TCP reaches ports 443 and 3478.
    tcp: [bool; 2],
    /// Whether two TCP connections from one port are seen at one port; as far as both can be made.
    tcp_kept: Option<bool>,
    /// Whether the server, uncalled, can connect to where it saw a connection come from.
    tcp_open: bool,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct UdpSeen {
    mapping: Mapping,
    filtering: Filtering,
    keeps_port: bool,
}

impl Seen {
    /// What a kind is meant to do.
    pub(crate) fn expected(kind: Kind) -> Self {
        let udp = kind.udp().map(|udp| UdpSeen {
            // with one address nobody can tell these apart
            mapping: udp.mapping,
            filtering: udp.filtering,
            keeps_port: udp.keeps_port,
        });
        Self {
            udp,
            tcp: [true, kind.tcp() != Tcp::Only443],
            tcp_kept: (kind.tcp() != Tcp::Only443).then(|| kind.tcp() != Tcp::Random),
            tcp_open: kind.tcp() == Tcp::Open,
        }
    }
}

/// Answers on the server's addresses.
pub(crate) struct Echo {
    ips: [IpAddr; 2],
}

impl Echo {
    /// Answers until the test's process ends; the sockets go with the lab.
    pub(crate) fn start(lab: &Lab, v6: bool) -> Self {
        let ips: [IpAddr; 2] = if v6 {
            [SERVER_V6.parse().unwrap(), "2001:db8::6".parse().unwrap()]
        } else {
            SERVER.map(|ip| ip.parse().unwrap())
        };
        if v6 {
            let mut add = lab.command_at("server", "ip");
            add.args("-6 addr add 2001:db8::6/64 dev eth0 nodad".split(' '));
            assert!(add.status().unwrap().success());
        }
        let (udp, tcp) = lab.inside("server", || {
            let all =
                |ports: [u16; 2]| ips.into_iter().flat_map(move |ip| ports.map(|port| (ip, port)));
            let udp: Vec<_> = all(PORTS).map(|at| UdpSocket::bind(at).unwrap()).collect();
            let tcp: Vec<_> = all(TCP_PORTS).map(|at| TcpListener::bind(at).unwrap()).collect();
            (Arc::new(udp), tcp)
        });
        for place in 0..udp.len() {
            let udp = Arc::clone(&udp);
            thread::spawn(move || answer_udp(&udp, place));
        }
        for listener in tcp {
            thread::spawn(move || {
                for mut stream in listener.incoming().flatten() {
                    let peer = stream.peer_addr().unwrap();
                    let _ = stream.write_all(format!("{peer}\n").as_bytes());
                }
            });
        }
        Self { ips }
    }

    fn udp(&self, ip: usize, port: usize) -> SocketAddr {
        (self.ips[ip], PORTS[port]).into()
    }
}

/// A question is `other IP, other port, number`; the answer the number and where it came from.
fn answer_udp(all: &[UdpSocket], place: usize) {
    let mut question = [0; 16];
    while let Ok((length, from)) = all[place].recv_from(&mut question) {
        if let [ip, port, number] = question[..length] {
            let other = place ^ (usize::from(ip) << 1) ^ usize::from(port);
            let answer = [&[number], from.to_string().as_bytes()].concat();
            let _ = all[other].send_to(&answer, from);
        }
    }
}

/// A UDP socket on a side.
pub(crate) struct Flow {
    socket: UdpSocket,
    server: SocketAddr,
}

impl Flow {
    pub(crate) fn new(lab: &Lab, node: &str, echo: &Echo) -> Self {
        let any = if echo.ips[0].is_ipv6() { "[::]:0" } else { "0.0.0.0:0" };
        let socket = lab.inside(node, || UdpSocket::bind(any).unwrap());
        Self { socket, server: echo.udp(0, 0) }
    }

    /// Where the server sees it.
    pub(crate) fn seen_at(&self) -> Option<SocketAddr> {
        self.ask(self.server, false, false)
    }

    /// Waits.
    pub(crate) fn hears_nothing_for(&self, time: Duration) {
        self.socket.set_read_timeout(Some(time)).unwrap();
        assert!(self.socket.recv(&mut [0; 64]).is_err());
    }

    fn ask(&self, server: SocketAddr, other_ip: bool, other_port: bool) -> Option<SocketAddr> {
        static NUMBERS: std::sync::atomic::AtomicU8 = std::sync::atomic::AtomicU8::new(0);
        let number = NUMBERS.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        self.socket.set_read_timeout(Some(WAIT)).unwrap();
        for _ in 0..TRIES {
            let _ = self.socket.send_to(&[other_ip.into(), other_port.into(), number], server);
            let mut answer = [0; 64];
            while let Ok(length) = self.socket.recv(&mut answer) {
                if answer[0] == number {
                    let text = str::from_utf8(&answer[1..length]).unwrap();
                    return Some(text.parse().unwrap());
                }
            }
        }
        None
    }
}

/// Finds out what is between `node` and the server.
pub(crate) fn look(lab: &Lab, node: &str, echo: &Echo) -> Seen {
    let flow = Flow::new(lab, node, echo);
    let udp = flow.seen_at().map(|first| {
        // the filter first: whoever was spoken to may answer
        let filtering = if flow.ask(flow.server, true, true).is_some() {
            Filtering::Endpoint
        } else if flow.ask(flow.server, false, true).is_some() {
            Filtering::Address
        } else {
            Filtering::AddressAndPort
        };
        let other_port = flow.ask(echo.udp(0, 1), false, false).unwrap();
        let elsewhere = [0, 1].map(|port| flow.ask(echo.udp(1, port), false, false).unwrap());
        let is_own = lab.inside(node, || UdpSocket::bind((first.ip(), 0)).is_ok());
        let mapping = if is_own {
            Mapping::Unmapped
        } else if first == elsewhere[1] {
            Mapping::Endpoint
        } else if first == other_port && elsewhere[0] == elsewhere[1] {
            Mapping::Address
        } else {
            Mapping::AddressAndPort
        };
        let own_port = flow.socket.local_addr().unwrap().port();
        UdpSeen { mapping, filtering, keeps_port: first.port() == own_port }
    });
    let reach =
        |ip: usize, port: u16, from: u16| connect(lab, node, (echo.ips[ip], port).into(), from);
    let tcp = TCP_PORTS.map(|port| reach(0, port, 0).is_some());
    let first = reach(0, 443, 0);
    let second = first.as_ref().and_then(|(_, from, _)| reach(1, 3478, *from));
    let tcp_kept = first.as_ref().zip(second.as_ref()).map(|(one, two)| one.2 == two.2);
    let tcp_open = first.as_ref().is_some_and(|(_, from, seen)| {
        // where the connection came from, somebody listens
        let _listener = lab.inside(node, || listen((echo.ips[0].is_ipv6(), *from)));
        connect(lab, "server", *seen, 0).is_some()
    });
    Seen { udp, tcp, tcp_kept, tcp_open }
}

/// Whether a datagram to `address` arrives there.
pub(crate) fn hears(lab: &Lab, from: &str, node: &str, address: IpAddr) -> bool {
    let there = lab.inside(node, || UdpSocket::bind((address, 0)).unwrap());
    let here = lab.inside(from, || UdpSocket::bind("0.0.0.0:0").unwrap());
    here.send_to(b"hello", there.local_addr().unwrap()).unwrap();
    there.set_read_timeout(Some(WAIT)).unwrap();
    there.recv(&mut [0; 8]).is_ok()
}

/// Connects from a port; says from which, and where the server sees it.
fn connect(
    lab: &Lab,
    node: &str,
    to: SocketAddr,
    from: u16,
) -> Option<(TcpStream, u16, SocketAddr)> {
    let socket = lab.inside(node, || socket(to.is_ipv6(), from));
    socket.connect_timeout(&to.into(), TRIES as u32 * WAIT).ok()?;
    let mut stream = TcpStream::from(socket);
    let from = stream.local_addr().unwrap().port();
    if node == "server" {
        return Some((stream, from, to));
    }
    stream.set_read_timeout(Some(WAIT * 3)).unwrap();
    let mut said = String::new();
    stream.read_to_string(&mut said).ok()?;
    let seen = said.trim().parse().unwrap();
    Some((stream, from, seen))
}

fn listen((v6, port): (bool, u16)) -> TcpListener {
    let socket = socket(v6, port);
    socket.listen(1).unwrap();
    socket.into()
}

fn socket(v6: bool, port: u16) -> Socket {
    let (domain, any): (_, SocketAddr) = if v6 {
        (Domain::IPV6, ([0; 16], port).into())
    } else {
        (Domain::IPV4, ([0; 4], port).into())
    };
    let socket = Socket::new(domain, Type::STREAM, Some(Protocol::TCP)).unwrap();
    socket.set_reuse_address(true).unwrap();
    socket.set_reuse_port(true).unwrap();
    socket.bind(&any.into()).unwrap();
    socket
}
