//! Somebody on the WAN who tries every port.

use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};

use crate::world::lab::Lab;

/// Connections that are tried at once: sockets.
const BATCH: usize = 512;
/// Between two batches; whoever answers on this machine does so in microseconds.
const BETWEEN: Duration = Duration::from_millis(5);
/// How long an answer may take to come.
const ANSWER: Duration = Duration::from_secs(2);

/// Sends to every UDP port, calls every TCP port, and sends what might get an answer to the mapped
/// ones; how many datagrams and connections came of it.
pub(super) fn knock(lab: &Lab, node: &str, at: Ipv4Addr, udp: u16, tcp: u16) -> usize {
    lab.inside(node, || {
        let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
        for port in 1..=u16::MAX {
            send(&socket, b"anybody there?", (at, port).into());
        }
        for _ in 0..20 {
            for datagram in curious() {
                send(&socket, &datagram, (at, udp).into());
            }
        }
        let all: Vec<u16> = (1..=u16::MAX).collect();
        let connected: usize = all.chunks(BATCH).map(|ports| call(at, ports)).sum();
        let called = call(at, &[tcp; 20]);
        // a host that answers is given time to
        socket.set_read_timeout(Some(ANSWER)).unwrap();
        connected + called + usize::from(socket.recv(&mut [0; 1500]).is_ok())
    })
}

fn send(socket: &UdpSocket, bytes: &[u8], to: SocketAddr) {
    // a full queue is not the router's doing
    while let Err(error) = socket.send_to(bytes, to) {
        assert!(matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::OutOfMemory), "{error}");
    }
}

/// Calls all of these ports; how many were answered before the next ones are called.
fn call(at: Ipv4Addr, ports: &[u16]) -> usize {
    let sockets: Vec<Socket> = ports
        .iter()
        .map(|port| {
            let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP)).unwrap();
            socket.set_nonblocking(true).unwrap();
            // the call goes on by itself
            let _ = socket.connect(&SocketAddr::from((at, *port)).into());
            socket
        })
        .collect();
    std::thread::sleep(BETWEEN);
    sockets.iter().filter(|socket| socket.peer_addr().is_ok()).count()
}

/// What different programs would answer.
fn curious() -> Vec<Vec<u8>> {
    let stun = p2pfs::wire::stun::binding_request(p2pfs::wire::stun::Transaction([7; 12]));
    let mut initial = vec![0xc0, 0, 0, 0, 1, 8, 1, 2, 3, 4, 5, 6, 7, 8, 0, 0, 0x44, 0x90];
    initial.resize(1200, 0x5a);
    // a version that nobody speaks wants a version negotiation
    let mut unknown = initial.clone();
    unknown[1..5].copy_from_slice(&[0xba, 0xba, 0xba, 0xba]);
    // a connection that nobody has wants a stateless reset
    let short = vec![0x43; 1200];
    let probes = (0x10..0x20).map(|kind| vec![kind; 48]);
    let mut all = vec![stun, initial, unknown, short, vec![0; 32], vec![0xff; 64]];
    all.extend(probes);
    all
}
