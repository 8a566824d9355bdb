//! The peer's addresses that we may send to: a peer that lies about them must not make us probe
//! strangers.

use std::net::{IpAddr, SocketAddr};

use crate::proto::ladder::Candidates;
use crate::proto::path::{Order, Rung, is_private};
use crate::wire::rendezvous::Routing;

/// What of a peer's routing may be tried. Loopback only if we are seen there ourselves, private
/// addresses only if both sides are behind the same public address or we have an address in the
/// same network.
///
/// Rung by rung an address is what the peer calls it; else it is what it looks like.
pub(super) fn candidates(peer: &Routing, own: &Routing, order: Order) -> Candidates {
    let may = Rules::new(peer, own);
    let tcp_at_once = peer.udp_public.is_none() || own.udp_public.is_none();
    let mut found = Candidates { tcp_at_once, ..Candidates::default() };
    let udp = peer.udp_public.iter().chain(&peer.udp_private);
    let udp = udp.map(canonical).enumerate();
    for (place, address) in udp.filter(|(_, address)| may.try_it(*address)) {
        let is_public = place == 0 && peer.udp_public.is_some();
        let rung = match order {
            Order::UdpFirst | Order::TcpFirst if is_public => Rung::UdpPublic,
            _ => Rung::of_udp(address),
        };
        push(&mut found.udp, address, rung);
    }
    for address in peer.tcp_private.iter().map(canonical).filter(|address| may.try_it(*address)) {
        push(&mut found.tcp, address, Rung::TcpPrivate);
    }
    for address in peer.tcp_public.iter().map(canonical).filter(|address| may.try_it(*address)) {
        push(&mut found.tcp, address, Rung::TcpPublic);
    }
    found
}

/// What a stream from an address is.
pub(super) fn stream_rung(peer: &Routing, from: SocketAddr) -> Rung {
    if peer.tcp_private.iter().any(|private| private.ip() == from.ip()) {
        return Rung::TcpPrivate;
    }
    Rung::of_tcp(from)
}

fn push(all: &mut Vec<(SocketAddr, Rung)>, address: SocketAddr, rung: Rung) {
    if all.iter().all(|(known, _)| *known != address) {
        all.push((address, rung));
    }
}

/// An IPv4 address as such, also where it is written as an IPv6 one: the socket takes either.
fn canonical(address: &SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

struct Rules<'a> {
    own: &'a Routing,
    same_public: bool,
    own_loopback: bool,
}

impl<'a> Rules<'a> {
    fn new(peer: &Routing, own: &'a Routing) -> Self {
        let same = |peer: Option<SocketAddr>, own: Option<SocketAddr>| {
            peer.zip(own).is_some_and(|(peer, own)| peer.ip() == own.ip())
        };
        let seen = [own.udp_public, own.tcp_public];
        Self {
            own,
            same_public: same(peer.udp_public, own.udp_public)
                || same(peer.tcp_public, own.tcp_public),
            own_loopback: seen.into_iter().flatten().any(|own| own.ip().is_loopback()),
        }
    }

    fn try_it(&self, address: SocketAddr) -> bool {
        let ip = address.ip();
        if address.port() == 0 || ip.is_unspecified() || ip.is_multicast() {
            return false;
        }
        if matches!(ip, IpAddr::V4(ip) if ip.is_broadcast()) {
            return false;
        }
        if ip.is_loopback() {
            return self.own_loopback;
        }
        let near = self.own.udp_private.iter().any(|own| network(own.ip()) == network(ip));
        !is_private(ip) || near || self.same_public
    }
}

/// What two addresses of one local network have in common: 24 bits of IPv4, 64 of IPv6.
fn network(ip: IpAddr) -> u128 {
    match ip {
        IpAddr::V4(ip) => u128::from(u32::from(ip) >> 8),
        IpAddr::V6(ip) => u128::from(ip) >> 64 | 1 << 127,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    #[test]
    fn nobody_makes_us_send_to_strangers_networks() {
        let own = Routing {
            udp_private: vec![address("10.2.0.2:1")],
            udp_public: Some(address("203.0.113.20:1")),
            ..Routing::default()
        };
        let peer = Routing {
            tcp_private: vec![address("10.1.0.2:2"), address("10.2.0.9:2")],
            tcp_public: Some(address("203.0.113.10:2")),
            udp_private: ["127.0.0.1:3", "10.1.0.2:3", "224.0.0.1:3", "0.0.0.0:3", "10.2.0.9:0"]
                .map(address)
                .to_vec(),
            udp_public: Some(address("203.0.113.10:3")),
            ..Routing::default()
        };
        let found = candidates(&peer, &own, Order::Auto);
        assert_eq!(found.udp, [(address("203.0.113.10:3"), Rung::UdpPublic)]);
        assert!(!found.tcp_at_once);
        let tcp = [
            (address("10.2.0.9:2"), Rung::TcpPrivate),
            (address("203.0.113.10:2"), Rung::TcpPublic),
        ];
        assert_eq!(found.tcp, tcp);
        let behind_one_nat = Routing { udp_public: Some(address("203.0.113.20:9")), ..peer };
        let found = candidates(&behind_one_nat, &own, Order::Auto);
        assert!(found.udp.contains(&(address("10.1.0.2:3"), Rung::UdpPrivate)));
        assert_eq!(found.udp.len(), 2);
    }

    #[test]
    fn no_other_spelling_of_an_address_passes_the_rules() {
        let own = Routing {
            udp_private: vec![address("10.2.0.2:1")],
            udp_public: Some(address("203.0.113.20:1")),
            ..Routing::default()
        };
        let mapped = [
            "127.0.0.1",
            "10.1.0.2",
            "169.254.169.254",
            "224.0.0.1",
            "255.255.255.255",
            "0.0.0.0",
            "10.2.0.9",
        ];
        let mapped: Vec<_> =
            mapped.map(|ip| address(&format!("[::ffff:{ip}]:3"))).into_iter().collect();
        let peer = Routing {
            tcp_private: mapped.clone(),
            tcp_public: Some(address("[::ffff:127.0.0.1]:9")),
            udp_public: Some(address("[::ffff:203.0.113.10]:3")),
            udp_private: mapped,
            ..Routing::default()
        };
        let found = candidates(&peer, &own, Order::Auto);
        let near = address("10.2.0.9:3");
        let udp = [(address("203.0.113.10:3"), Rung::UdpPublic), (near, Rung::UdpPrivate)];
        assert_eq!(found.udp, udp);
        assert_eq!(found.tcp, [(near, Rung::TcpPrivate)]);
    }
}
