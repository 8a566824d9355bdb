//! What two kinds of NAT can do together, by what each does: nothing here has seen a packet.
//!
//! A path is expected to be direct wherever UDP punching or TCP can work without guessing:
//!
//! * both in one LAN; else both need IPv4, or both IPv6;
//! * UDP: each side can be told where to send, or the one that can be told lets an unexpected port
//!   in, and answers to where the datagram came from;
//! * TCP: one side takes connections, or both keep their ports, so that each knows where to call.

use crate::world::lab::{Filtering, Kind, Mapping, Tcp};

/// What carries the data in the end.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Expected {
    Direct,
    /// A relay, and anything better is welcome.
    Relay,
}

impl Expected {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Relay => "relay",
        }
    }
}

pub(crate) fn expected(host: Kind, client: Kind) -> Expected {
    let meet = host.has_v4() && client.has_v4() || host.has_v6() && client.has_v6();
    let direct = client == Kind::SameNat || meet && (udp(host, client) || tcp(host, client));
    if direct { Expected::Direct } else { Expected::Relay }
}

fn udp(one: Kind, other: Kind) -> bool {
    let (Some(one), Some(other)) = (one.udp(), other.udp()) else {
        return false;
    };
    let can_be_told = |mapping| matches!(mapping, Mapping::Unmapped | Mapping::Endpoint);
    let lets_in = |filtering| filtering != Filtering::AddressAndPort;
    match (can_be_told(one.mapping), can_be_told(other.mapping)) {
        (true, true) => true,
        (true, false) => lets_in(one.filtering),
        (false, true) => lets_in(other.filtering),
        (false, false) => false,
    }
}

fn tcp(one: Kind, other: Kind) -> bool {
    match (one.tcp(), other.tcp()) {
        (Tcp::Only443, _) | (_, Tcp::Only443) => false,
        (Tcp::Open, _) | (_, Tcp::Open) => true,
        (one, other) => one == Tcp::Kept && other == Tcp::Kept,
    }
}

#[test]
fn the_oracle_knows_the_corners() {
    for (one, other, path) in [
        (Kind::Port, Kind::Port, Expected::Direct),
        (Kind::None, Kind::Sym, Expected::Direct),
        (Kind::Addr, Kind::SymSeq, Expected::Direct),
        (Kind::Port, Kind::Sym, Expected::Relay),
        (Kind::Port, Kind::Adm, Expected::Direct),
        (Kind::Sym, Kind::CgnSym, Expected::Relay),
        (Kind::UdpBlock, Kind::Cgn, Expected::Direct),
        (Kind::UdpBlock, Kind::Sym, Expected::Relay),
        (Kind::Tcp443, Kind::None, Expected::Relay),
        (Kind::V6Only, Kind::V6Only, Expected::Direct),
        (Kind::V6Only, Kind::None, Expected::Direct),
        (Kind::V6Only, Kind::Full, Expected::Relay),
        (Kind::Port, Kind::SameNat, Expected::Direct),
    ] {
        assert_eq!(expected(one, other), path, "{} and {}", one.name(), other.name());
        if other != Kind::SameNat {
            assert_eq!(expected(other, one), path, "{} and {}", other.name(), one.name());
        }
    }
}
