//! Which rungs of the ladder can work from here, by what is known of this side alone.

use std::net::{IpAddr, SocketAddr};

use serde_json::{Value, json};

use crate::wire::nat::{Filtering, Mapping, NatBehaviour};

/// What is known of this side.
#[derive(Clone, Debug, Default)]
pub(super) struct Facts {
    /// This machine's own addresses.
    pub(super) own: Vec<IpAddr>,
    /// Whether a server answered over TLS, if one was asked.
    pub(super) server: Option<bool>,
    /// Where a server sees our UDP socket, if UDP passes at all.
    pub(super) udp_public: Option<SocketAddr>,
    pub(super) nat: Option<NatBehaviour>,
    /// Our TCP connection to the server: as we see it, and as the server does.
    pub(super) tcp: Option<(SocketAddr, SocketAddr)>,
}

/// Whether a rung works, and why.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Verdict {
    pub(super) rung: &'static str,
    pub(super) works: Works,
    pub(super) why: &'static str,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Works {
    Yes,
    /// With some peers.
    Some,
    No,
    Unknown,
}

impl Verdict {
    pub(super) fn to_json(&self) -> Value {
        json!({ "rung": self.rung, "works": self.works.as_str(), "why": self.why })
    }
}

impl Works {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Yes => "yes",
            Self::Some => "some",
            Self::No => "no",
            Self::Unknown => "unknown",
        }
    }
}

/// In the order of the ladder.
pub(super) fn verdicts(facts: &Facts) -> Vec<Verdict> {
    let verdict = |rung, (works, why)| Verdict { rung, works, why };
    let same_network = match facts.own.is_empty() {
        false => (Works::Yes, "where both sides are in the same network"),
        true => (Works::No, "this machine has no network"),
    };
    vec![
        verdict("udp-private", same_network),
        verdict("udp-ipv6", ipv6(facts)),
        verdict("udp-public", udp(facts)),
        verdict("tcp-private", same_network),
        verdict("tcp-public", tcp(facts)),
        verdict(
            "relay",
            match facts.server {
                Some(true) => (Works::Yes, "unless the server's owner turned it off"),
                Some(false) => (Works::No, "no server can be reached"),
                None => (Works::Unknown, "no server was there to ask"),
            },
        ),
    ]
}

fn ipv6(facts: &Facts) -> (Works, &'static str) {
    let global = |ip: &IpAddr| match ip {
        IpAddr::V6(ip) => ip.segments()[0] & 0xe000 == 0x2000,
        IpAddr::V4(_) => false,
    };
    if facts.own.iter().any(global) {
        (Works::Some, "with peers that have IPv6 too")
    } else {
        (Works::No, "this machine has no public IPv6 address")
    }
}

fn udp(facts: &Facts) -> (Works, &'static str) {
    if facts.udp_public.is_none() {
        return match facts.server {
            Some(true) => (Works::No, "UDP does not get through to the server and back"),
            Some(false) | None => (Works::Unknown, "no server was there to ask"),
        };
    }
    let nat = facts.nat.unwrap_or_default();
    match (nat.mapping, nat.filtering) {
        (Some(Mapping::Unmapped), Some(Filtering::EndpointIndependent)) => {
            (Works::Yes, "this machine can be reached by anybody that it talks to")
        }
        (Some(Mapping::Unmapped | Mapping::EndpointIndependent), _) => {
            (Works::Yes, "with every peer but those behind a symmetric NAT, and with some of those")
        }
        (Some(Mapping::AddressDependent | Mapping::AddressAndPortDependent), _) => (
            Works::Some,
            "only with peers that anybody may answer: they cannot be told where to send",
        ),
        (None, _) => (Works::Unknown, "the server has one address only, which cannot tell"),
    }
}

fn tcp(facts: &Facts) -> (Works, &'static str) {
    match facts.tcp {
        None => (Works::Unknown, "no server was there to ask"),
        Some((local, seen)) if local == seen => {
            (Works::Yes, "this machine has a public address; a firewall before it may ask for more")
        }
        Some((local, seen)) if local.port() == seen.port() => {
            (Works::Some, "with peers whose NAT keeps ports, too")
        }
        Some(_) => {
            (Works::Some, "only with peers that take connections: the NAT changes TCP ports")
        }
    }
}

/// What a NAT is called.
pub(super) fn name(nat: NatBehaviour) -> &'static str {
    match (nat.mapping, nat.filtering) {
        (Some(Mapping::Unmapped), Some(Filtering::EndpointIndependent)) => "no NAT",
        (Some(Mapping::Unmapped), _) => "no NAT, but a firewall that lets in answers only",
        (Some(Mapping::EndpointIndependent), Some(Filtering::EndpointIndependent)) => {
            "a full-cone NAT"
        }
        (Some(Mapping::EndpointIndependent), Some(Filtering::AddressDependent)) => {
            "an address-restricted NAT"
        }
        (Some(Mapping::EndpointIndependent), _) => "a port-restricted NAT",
        (Some(Mapping::AddressDependent), _) => "a NAT with another port for each address",
        (Some(Mapping::AddressAndPortDependent), _) => "a symmetric NAT",
        (None, _) => "a NAT of a kind that this server cannot tell (it has one address only)",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn works(facts: &Facts) -> Vec<&'static str> {
        verdicts(facts).iter().map(|verdict| verdict.works.as_str()).collect()
    }

    #[test]
    fn the_rungs_follow_from_the_nat() {
        let nat = |mapping| NatBehaviour {
            mapping: Some(mapping),
            filtering: Some(Filtering::AddressAndPortDependent),
            keeps_port: Some(true),
        };
        let local = "10.1.0.2:5000".parse().unwrap();
        let seen = "203.0.113.10:5000".parse().unwrap();
        let home = Facts {
            own: vec![IpAddr::from([10, 1, 0, 2])],
            server: Some(true),
            udp_public: Some(seen),
            nat: Some(nat(Mapping::EndpointIndependent)),
            tcp: Some((local, seen)),
        };
        assert_eq!(works(&home), ["yes", "no", "yes", "yes", "some", "yes"]);
        let symmetric = Facts { nat: Some(nat(Mapping::AddressAndPortDependent)), ..home.clone() };
        assert_eq!(works(&symmetric), ["yes", "no", "some", "yes", "some", "yes"]);
        let office = Facts { udp_public: None, nat: None, ..home.clone() };
        assert_eq!(works(&office), ["yes", "no", "no", "yes", "some", "yes"]);
        let v6 = Facts { own: vec!["2001:db8::1".parse().unwrap()], ..home };
        assert_eq!(works(&v6)[1], "some");
        let nothing = ["no", "no", "unknown", "no", "unknown", "unknown"];
        assert_eq!(works(&Facts::default()), nothing);
    }
}
