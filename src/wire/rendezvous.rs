//! Registration and matching: what daemons and the server say to each other under TLS.
//!
//! A message is `u32 length | value`, little-endian, at most [`CONTROL_BYTES_MAX`]. The server sees
//! blinded MACs, keys and public addresses; the rest travels [`Sealed`] from end to end.

use std::net::{IpAddr, SocketAddr};

use chacha20poly1305::aead::{Aead, Payload};
use chacha20poly1305::{KeyInit, XChaCha20Poly1305};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::identity::{BlindedMac, MacAddress, PairKey, PeerId};
use crate::limits::{
    CANDIDATES_MAX, CONTROL_BYTES_MAX, FIRST_FLIGHT_BYTES_MAX, RELAYED_BYTES_MAX, SEALED_BYTES_MAX,
};
use crate::wire::branch::Branch;
use crate::wire::codec::{self, DecodeError, EncodeError};
use crate::wire::nat::NatBehaviour;
use crate::wire::relay::{RelayGrant, RelayId};

/// Blinded MACs in one message: what fits into [`CONTROL_BYTES_MAX`], four times over.
pub const INDICES_PER_MESSAGE: usize = 256;
/// STUN addresses that a server may name.
pub const STUN_ADDRESSES_MAX: usize = 4;

/// Where a peer can be reached, as far as it knows; each list holds at most [`CANDIDATES_MAX`].
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct Routing {
    /// The host's hardware address (R22); a client names the one that it looks for.
    pub mac: Option<MacAddress>,
    /// Where its registration comes from, on its side of the NAT.
    pub tcp_private: Vec<SocketAddr>,
    /// The same on the public side, as the server sees it.
    pub tcp_public: Option<SocketAddr>,
    /// Its UDP socket, on its side of the NAT.
    pub udp_private: Vec<SocketAddr>,
    /// The same on the public side, as STUN sees it.
    pub udp_public: Option<SocketAddr>,
    /// How the NAT in between behaves; follows the rest under the seal, where it is known.
    #[serde(skip)]
    pub nat: Option<NatBehaviour>,
}

/// One introduction of a client to a host; chosen by the server.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
pub struct MatchId(pub [u8; 16]);

/// What a daemon is to the server.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub enum Role {
    /// It waits for clients.
    Host,
    /// It looks for a host.
    Client,
}

/// The public addresses of a peer, which the server may know.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct Public {
    /// As the server sees the registration.
    pub tcp: Option<SocketAddr>,
    /// As the peer was told by STUN.
    pub udp: Option<SocketAddr>,
}

/// Routing information that only the other side of a pairing can read.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Sealed {
    /// Never used twice.
    pub nonce: [u8; 24],
    /// Ciphertext and tag, at most [`SEALED_BYTES_MAX`].
    #[serde(with = "serde_bytes")]
    pub bytes: Vec<u8>,
}

/// The first datagram of a client's QUIC connection, which rides with its routing information under
/// the seal: the host's answer is then the first that comes over the relay. It is what the relay
/// would carry as well, so that whoever replays it gains nothing.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct FirstFlight(
    /// At most [`FIRST_FLIGHT_BYTES_MAX`].
    #[serde(with = "serde_bytes")]
    pub Vec<u8>,
);

/// From a daemon. **Append only.**
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub enum ToServer {
    /// The first message.
    Hello {
        /// What the daemon is.
        role: Role,
    },
    /// The registration, again and again (R3, R20): it expires without.
    Refresh {
        /// Comes back in [`FromServer::Confirmed`].
        number: u64,
        /// What STUN said last.
        udp_public: Option<SocketAddr>,
    },
    /// A host: find me by these too; at most [`INDICES_PER_MESSAGE`].
    Register {
        /// The host's MAC, blinded with one pair key each.
        indices: Vec<BlindedMac>,
    },
    /// A host: no longer by these; at most [`INDICES_PER_MESSAGE`].
    Withdraw {
        /// As registered.
        indices: Vec<BlindedMac>,
    },
    /// A client: introduce me to the host behind this index, now or as soon as it comes.
    Seek {
        /// The host's MAC, blinded with the pair key.
        index: BlindedMac,
        /// The client's routing information.
        sealed: Sealed,
    },
    /// A host: the client is known.
    Accept {
        /// Of [`FromServer::Sought`].
        match_id: MatchId,
        /// The host's routing information.
        sealed: Sealed,
    },
    /// A host: the client is not known.
    Decline {
        /// Of [`FromServer::Sought`].
        match_id: MatchId,
    },
    /// For the other side of a match, where UDP does not reach the relay.
    Relayed(Relayed),
    /// A client: of another registration with the same key, a [`ToServer`].
    Branch(Branch),
    /// A client: that registration is over.
    EndBranch {
        /// Which.
        branch: u32,
    },
}

/// Datagrams for a peer, or from it, over the connection to the server.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Relayed {
    /// The id of the daemon's side.
    pub relay: RelayId,
    /// How long each datagram is; the last may be shorter. 0: there is one.
    pub segment: u16,
    /// The datagrams, at most [`RELAYED_BYTES_MAX`].
    #[serde(with = "serde_bytes")]
    pub bytes: Vec<u8>,
}

/// From the server. **Append only.**
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub enum FromServer {
    /// The answer to [`ToServer::Hello`].
    Welcome {
        /// Where the connection comes from, as the server sees it.
        observed: SocketAddr,
        /// Where its STUN answers; at most [`STUN_ADDRESSES_MAX`].
        stun: Vec<StunAddress>,
    },
    /// The answer to [`ToServer::Refresh`].
    Confirmed {
        /// As asked.
        number: u64,
    },
    /// To a host: another host has registered these indices.
    Taken {
        /// The ones that were not registered; at most [`INDICES_PER_MESSAGE`].
        indices: Vec<BlindedMac>,
    },
    /// To a host: a client looks for you.
    Sought {
        /// For the answer.
        match_id: MatchId,
        /// What it looked for.
        index: BlindedMac,
        /// The key that the client has proved to the server.
        client: PeerId,
        /// The client's public addresses.
        public: Public,
        /// The client's routing information.
        sealed: Sealed,
    },
    /// To a client: the host has accepted.
    Introduced {
        /// The same on both sides.
        match_id: MatchId,
        /// The key that the host has proved to the server.
        host: PeerId,
        /// The host's public addresses.
        public: Public,
        /// The host's routing information.
        sealed: Sealed,
    },
    /// To a client: nobody yet who would answer; it stays registered.
    NoMatch,
    /// To both, before [`Self::Sought`] and [`Self::Introduced`]: this match may use the relay.
    Relay {
        /// Of the message that follows.
        match_id: MatchId,
        /// For this side.
        grant: RelayGrant,
    },
    /// From the other side of a match.
    Relayed(Relayed),
    /// To both: the other side of a match is seen elsewhere now.
    Moved {
        /// Which.
        match_id: MatchId,
        /// Where.
        public: Public,
    },
    /// To a client: for another registration with the same key, a [`FromServer`].
    Branch(Branch),
    /// To a client: that registration is refused, or over.
    EndBranch {
        /// Which.
        branch: u32,
    },
    /// There is no room. To a host: for these indices, of which it may try again later. Without
    /// any: for the registration, whose connection ends.
    Full {
        /// The ones that were not registered; at most [`INDICES_PER_MESSAGE`].
        indices: Vec<BlindedMac>,
    },
}

/// One of the server's UDP addresses.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct StunAddress {
    /// Without it: the one that the server was reached at.
    pub ip: Option<IpAddr>,
    /// The UDP port.
    pub port: u16,
}

impl Routing {
    /// The same without what would break the bounds.
    pub fn bounded(mut self) -> Self {
        self.tcp_private.truncate(CANDIDATES_MAX);
        self.udp_private.truncate(CANDIDATES_MAX);
        self
    }

    fn is_bounded(&self) -> bool {
        self.tcp_private.len() <= CANDIDATES_MAX && self.udp_private.len() <= CANDIDATES_MAX
    }
}

impl FirstFlight {
    /// Whether it keeps its bound.
    pub fn is_bounded(&self) -> bool {
        !self.0.is_empty() && self.0.len() <= FIRST_FLIGHT_BYTES_MAX
    }
}

impl Relayed {
    fn is_bounded(&self) -> bool {
        !self.bytes.is_empty() && self.bytes.len() <= RELAYED_BYTES_MAX
    }
}

impl ToServer {
    /// Whether every part keeps its bound.
    pub fn is_bounded(&self) -> bool {
        match self {
            Self::Register { indices } | Self::Withdraw { indices } => {
                indices.len() <= INDICES_PER_MESSAGE
            }
            Self::Seek { sealed, .. } | Self::Accept { sealed, .. } => {
                sealed.bytes.len() <= SEALED_BYTES_MAX
            }
            Self::Relayed(relayed) => relayed.is_bounded(),
            Self::Branch(branch) => branch.is_bounded(),
            Self::Hello { .. }
            | Self::Refresh { .. }
            | Self::Decline { .. }
            | Self::EndBranch { .. } => true,
        }
    }
}

impl FromServer {
    /// Whether every part keeps its bound.
    pub fn is_bounded(&self) -> bool {
        match self {
            Self::Welcome { stun, .. } => stun.len() <= STUN_ADDRESSES_MAX,
            Self::Taken { indices } | Self::Full { indices } => {
                indices.len() <= INDICES_PER_MESSAGE
            }
            Self::Sought { sealed, .. } | Self::Introduced { sealed, .. } => {
                sealed.bytes.len() <= SEALED_BYTES_MAX
            }
            Self::Relayed(relayed) => relayed.is_bounded(),
            Self::Branch(branch) => branch.is_bounded(),
            Self::Confirmed { .. }
            | Self::NoMatch
            | Self::Relay { .. }
            | Self::Moved { .. }
            | Self::EndBranch { .. } => true,
        }
    }
}

/// The sealing of routing information, one purpose for each direction, so that nobody can send a
/// peer its own words back.
#[derive(Clone, Copy, Debug)]
pub enum Seal<'a> {
    /// From the client: bound to its key.
    Client(PeerId),
    /// From the host: bound to the match and to the client's [`Sealed::nonce`], so that no older
    /// answer fits.
    Host(MatchId, &'a [u8; 24]),
}

impl Seal<'_> {
    /// Seals what the server must not know: the MAC and the private addresses.
    ///
    /// # Errors
    ///
    /// [`EncodeError`] if the routing breaks its bounds.
    pub fn seal(
        self,
        pair_key: &PairKey,
        nonce: [u8; 24],
        routing: &Routing,
    ) -> Result<Sealed, EncodeError> {
        self.seal_with(pair_key, nonce, routing, None)
    }

    /// The same, and with it what the client's QUIC has to say first.
    ///
    /// # Errors
    ///
    /// [`EncodeError`] if anything breaks its bounds.
    pub fn seal_with(
        self,
        pair_key: &PairKey,
        nonce: [u8; 24],
        routing: &Routing,
        first: Option<&FirstFlight>,
    ) -> Result<Sealed, EncodeError> {
        let secret = Routing { tcp_public: None, udp_public: None, ..routing.clone().bounded() };
        let plain = match (first, secret.nat) {
            (Some(first), nat) => codec::encode(&(&secret, nat, first))?,
            (None, Some(nat)) => codec::encode(&(&secret, nat))?,
            (None, None) => codec::encode(&secret)?,
        };
        let bytes = self
            .cipher(pair_key)
            .encrypt(&nonce.into(), Payload { msg: &plain, aad: &self.occasion() })
            .map_err(|_| EncodeError)?;
        if bytes.len() > SEALED_BYTES_MAX {
            return Err(EncodeError);
        }
        Ok(Sealed { nonce, bytes })
    }

    /// Opens; `None` if it was not sealed for this occasion, or breaks a bound.
    pub fn open(self, pair_key: &PairKey, sealed: &Sealed) -> Option<Routing> {
        self.open_with(pair_key, sealed).map(|(routing, _)| routing)
    }

    /// The same, and what the client's QUIC has said with it.
    pub fn open_with(
        self,
        pair_key: &PairKey,
        sealed: &Sealed,
    ) -> Option<(Routing, Option<FirstFlight>)> {
        if sealed.bytes.len() > SEALED_BYTES_MAX {
            return None;
        }
        let plain = self
            .cipher(pair_key)
            .decrypt(&sealed.nonce.into(), Payload { msg: &sealed.bytes, aad: &self.occasion() })
            .ok()?;
        // each is longer than the one before, and all bytes are to be used
        let alone = |routing: Routing| (routing, None);
        let with_nat =
            |(routing, nat): (Routing, NatBehaviour)| (Routing { nat: Some(nat), ..routing }, None);
        let with_first = |(routing, nat, first): (Routing, Option<NatBehaviour>, FirstFlight)| {
            (Routing { nat, ..routing }, Some(first))
        };
        let opened = codec::decode(&plain)
            .map(alone)
            .or_else(|_| codec::decode(&plain).map(with_nat))
            .or_else(|_| codec::decode(&plain).map(with_first));
        opened.ok().filter(|(routing, first)| {
            routing.is_bounded() && first.as_ref().is_none_or(FirstFlight::is_bounded)
        })
    }

    fn cipher(self, pair_key: &PairKey) -> XChaCha20Poly1305 {
        let purpose = match self {
            Self::Client(_) => "p2pfs routing 1 client",
            Self::Host(..) => "p2pfs routing 1 host",
        };
        XChaCha20Poly1305::new(&pair_key.derive(purpose, b"").into())
    }

    fn occasion(self) -> Vec<u8> {
        match self {
            Self::Client(client) => client.0.to_vec(),
            Self::Host(match_id, nonce) => [&match_id.0[..], nonce].concat(),
        }
    }
}

/// The key of one match's probes, the same on both sides.
pub fn probe_key(
    pair_key: &PairKey,
    match_id: MatchId,
    client_nonce: &[u8; 24],
    host_nonce: &[u8; 24],
) -> [u8; 32] {
    let occasion = [&match_id.0[..], client_nonce, host_nonce].concat();
    pair_key.derive("p2pfs probe 1", &occasion)
}

/// A message with its length.
///
/// # Errors
///
/// [`EncodeError`] if it is longer than [`CONTROL_BYTES_MAX`].
pub fn frame<T: Serialize>(message: &T) -> Result<Vec<u8>, EncodeError> {
    let value = codec::encode(message)?;
    let length = u32::try_from(value.len()).map_err(|_| EncodeError)?;
    if value.len() > CONTROL_BYTES_MAX {
        return Err(EncodeError);
    }
    let mut frame = length.to_le_bytes().to_vec();
    frame.extend_from_slice(&value);
    Ok(frame)
}

/// The length that a frame's first four bytes announce.
///
/// # Errors
///
/// [`DecodeError::TooLong`] past [`CONTROL_BYTES_MAX`]: nothing may be allocated then.
pub fn frame_length(header: [u8; 4]) -> Result<usize, DecodeError> {
    usize::try_from(u32::from_le_bytes(header))
        .ok()
        .filter(|length| *length <= CONTROL_BYTES_MAX)
        .ok_or(DecodeError::TooLong)
}

/// A frame's value.
///
/// # Errors
///
/// [`DecodeError`] if the bytes are not exactly one message.
pub fn unframe<T: DeserializeOwned>(value: &[u8]) -> Result<T, DecodeError> {
    if value.len() > CONTROL_BYTES_MAX {
        return Err(DecodeError::TooLong);
    }
    codec::decode(value)
}

#[cfg(test)]
mod tests {
    use crate::wire::nat::Mapping;

    use super::*;

    fn address(port: u16) -> SocketAddr {
        SocketAddr::from(([192, 168, 1, 2], port))
    }

    fn full() -> Routing {
        Routing {
            mac: Some(MacAddress([1; 6])),
            tcp_private: vec!["[2001:db8::1]:1".parse().unwrap(); CANDIDATES_MAX],
            tcp_public: Some(address(1)),
            udp_private: vec!["[2001:db8::1]:1".parse().unwrap(); CANDIDATES_MAX],
            udp_public: Some(address(2)),
            nat: Some(NatBehaviour {
                mapping: Some(Mapping::EndpointIndependent),
                filtering: None,
                keeps_port: Some(true),
            }),
        }
    }

    #[test]
    fn the_fullest_routing_fits_into_its_seal_without_the_public_half() {
        let pair_key = PairKey::from_bytes([3; 32]);
        let seal = Seal::Client(PeerId([4; 32]));
        let sealed = seal.seal(&pair_key, [5; 24], &full()).unwrap();
        let opened = seal.open(&pair_key, &sealed).unwrap();
        assert_eq!(opened.udp_private, full().udp_private);
        assert_eq!(opened.mac, full().mac);
        assert_eq!(opened.nat, full().nat);
        assert_eq!(opened.udp_public, None);
        let message = ToServer::Seek { index: BlindedMac([0; 16]), sealed };
        let framed = frame(&message).unwrap();
        assert_eq!(unframe(&framed[4..]), Ok(message));
    }

    #[test]
    fn the_first_flight_rides_under_the_seal() {
        let pair_key = PairKey::from_bytes([3; 32]);
        let seal = Seal::Client(PeerId([4; 32]));
        let first = FirstFlight(vec![0xc0; FIRST_FLIGHT_BYTES_MAX]);
        for routing in [full(), Routing { nat: None, ..full() }, Routing::default()] {
            let sealed = seal.seal_with(&pair_key, [5; 24], &routing, Some(&first)).unwrap();
            let (opened, rode) = seal.open_with(&pair_key, &sealed).unwrap();
            assert_eq!((opened.nat, opened.udp_private), (routing.nat, routing.udp_private));
            assert_eq!(rode, Some(first.clone()));
        }
        let long = FirstFlight(vec![0xc0; FIRST_FLIGHT_BYTES_MAX + 1]);
        let sealed = seal.seal_with(&pair_key, [5; 24], &Routing::default(), Some(&long)).unwrap();
        assert_eq!(seal.open_with(&pair_key, &sealed), None);
    }

    #[test]
    fn a_seal_opens_only_on_its_occasion() {
        let pair_key = PairKey::from_bytes([3; 32]);
        let ours = Seal::Host(MatchId([1; 16]), &[2; 24]);
        let sealed = ours.seal(&pair_key, [5; 24], &full()).unwrap();
        assert!(ours.open(&pair_key, &sealed).is_some());
        for other in [
            Seal::Host(MatchId([9; 16]), &[2; 24]),
            Seal::Host(MatchId([1; 16]), &[9; 24]),
            Seal::Client(PeerId([1; 32])),
        ] {
            assert_eq!(other.open(&pair_key, &sealed), None);
        }
        assert_eq!(ours.open(&PairKey::from_bytes([4; 32]), &sealed), None);
        let mut changed = sealed;
        changed.bytes[0] ^= 1;
        assert_eq!(ours.open(&pair_key, &changed), None);
    }

    #[test]
    fn a_length_past_the_bound_is_refused_before_anything_is_read() {
        assert_eq!(frame_length(u32::MAX.to_le_bytes()), Err(DecodeError::TooLong));
        assert_eq!(frame_length([0, 0x40, 0, 0]), Ok(CONTROL_BYTES_MAX));
        let most = ToServer::Register { indices: vec![BlindedMac([7; 16]); INDICES_PER_MESSAGE] };
        assert!(frame(&most).unwrap().len() < CONTROL_BYTES_MAX);
    }
}
