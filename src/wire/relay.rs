//! The relay's datagrams: QUIC packets and probes in a thin wrapper, and how an address proves
//! itself.
//!
//! ```text
//!  0     1          9
//!  | 21 | relay id | datagram ...                    data, both ways
//!  0     1          9            25           41
//!  | 22 | relay id | cookie (16) | HMAC (16) |       bind: "send me what comes for this id"
//!  | 23 | relay id | cookie (16) | HMAC (16) |       challenge: "say that again with this cookie"
//!  | 24 | relay id | cookie (16) | HMAC (16) |       bound
//! ```
//!
//! Each side of a match has an id and a token of its own, both from the server, under TLS. No
//! answer is longer than its question, and nothing is forwarded to an address that has not shown
//! the cookie which was sent there.

use serde::{Deserialize, Serialize};
use subtle::ConstantTimeEq;

use crate::identity::{Hidden, hmac};
use crate::wire::rendezvous::StunAddress;

/// Bytes before a relayed datagram.
pub const RELAY_HEADER_BYTES: usize = 9;
/// Bytes of everything but data.
pub const BIND_BYTES: usize = 41;

const DATA: u8 = 0x21;
const BIND: u8 = 0x22;
const CHALLENGE: u8 = 0x23;
const BOUND: u8 = 0x24;
const SIGNED_BYTES: usize = 25;

/// Names one side of one relayed match; chosen by the server.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
pub struct RelayId(pub [u8; 8]);

/// What a side needs to use the relay.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct RelayGrant {
    /// This side's id.
    pub id: RelayId,
    /// Proves an address, known to this side and the server.
    pub token: RelayToken,
    /// Where the relay answers by UDP; without it only over the registration's connection.
    pub udp: Option<StunAddress>,
}

/// The key of one side's binds.
#[derive(Clone, Deserialize, Serialize)]
pub struct RelayToken(pub [u8; 32]);

/// What a bind, or an answer to one, says.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum BindKind {
    /// From a daemon.
    Bind,
    /// From the relay: it does not know this address yet.
    Challenge,
    /// From the relay: data comes to this address from now on.
    Bound,
}

/// A bind, or an answer to one.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Bind {
    /// Which.
    pub kind: BindKind,
    /// Whose.
    pub id: RelayId,
    /// Zero until there was a challenge.
    pub cookie: [u8; 16],
}

impl RelayToken {
    /// In the form that is wiped.
    pub fn hidden(&self) -> Hidden {
        Hidden(self.0)
    }
}

impl PartialEq for RelayToken {
    fn eq(&self, other: &Self) -> bool {
        self.0.ct_eq(&other.0).into()
    }
}

impl Eq for RelayToken {}

impl std::fmt::Debug for RelayToken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("RelayToken")
    }
}

/// Whether a datagram's first byte is that of the relay.
pub fn is_relay(first: u8) -> bool {
    matches!(first, 0x20..=0x2f)
}

/// What stands before a datagram of this side.
pub fn data_header(id: RelayId) -> [u8; RELAY_HEADER_BYTES] {
    let mut header = [DATA; RELAY_HEADER_BYTES];
    header[1..].copy_from_slice(&id.0);
    header
}

/// The id of a datagram that carries data, and something in it.
pub fn data_id(datagram: &[u8]) -> Option<RelayId> {
    if datagram.len() <= RELAY_HEADER_BYTES || datagram[0] != DATA {
        return None;
    }
    datagram[1..RELAY_HEADER_BYTES].try_into().ok().map(RelayId)
}

impl Bind {
    /// The datagram.
    pub fn seal(self, token: &[u8; 32]) -> [u8; BIND_BYTES] {
        let mut bytes = [0; BIND_BYTES];
        bytes[0] = match self.kind {
            BindKind::Bind => BIND,
            BindKind::Challenge => CHALLENGE,
            BindKind::Bound => BOUND,
        };
        bytes[1..9].copy_from_slice(&self.id.0);
        bytes[9..SIGNED_BYTES].copy_from_slice(&self.cookie);
        let proof = hmac(token, &bytes[..SIGNED_BYTES]);
        bytes[SIGNED_BYTES..].copy_from_slice(&proof[..BIND_BYTES - SIGNED_BYTES]);
        bytes
    }

    /// Whose bind a datagram claims to be, before anything is verified.
    pub fn claimed_id(datagram: &[u8]) -> Option<RelayId> {
        if datagram.len() != BIND_BYTES || !matches!(datagram[0], BIND | CHALLENGE | BOUND) {
            return None;
        }
        datagram[1..9].try_into().ok().map(RelayId)
    }

    /// Verifies and reads; `None` for whatever this token did not make.
    pub fn open(datagram: &[u8], token: &[u8; 32]) -> Option<Self> {
        let id = Self::claimed_id(datagram)?;
        let proof = hmac(token, &datagram[..SIGNED_BYTES]);
        let given = &datagram[SIGNED_BYTES..];
        if !bool::from(proof[..given.len()].ct_eq(given)) {
            return None;
        }
        let kind = match datagram[0] {
            BIND => BindKind::Bind,
            CHALLENGE => BindKind::Challenge,
            BOUND => BindKind::Bound,
            _ => return None,
        };
        let cookie = datagram[9..SIGNED_BYTES].try_into().ok()?;
        Some(Self { kind, id, cookie })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOUND_HERE: Bind = Bind { kind: BindKind::Bound, id: RelayId([7; 8]), cookie: [9; 16] };

    #[test]
    fn a_bind_survives_its_bytes_and_nothing_else_does() {
        let bytes = BOUND_HERE.seal(&[1; 32]);
        assert!(is_relay(bytes[0]));
        assert_eq!(Bind::open(&bytes, &[1; 32]), Some(BOUND_HERE));
        assert_eq!(Bind::open(&bytes, &[2; 32]), None);
        assert_eq!(Bind::open(&bytes[..40], &[1; 32]), None);
        for at in 0..bytes.len() {
            let mut flipped = bytes;
            flipped[at] ^= 1;
            assert_eq!(Bind::open(&flipped, &[1; 32]), None, "byte {at}");
        }
    }

    #[test]
    fn data_has_an_id_and_something_in_it() {
        let header = data_header(RelayId([3; 8]));
        assert_eq!(data_id(&header), None);
        assert_eq!(data_id(&[&header[..], b"x"].concat()), Some(RelayId([3; 8])));
        assert_eq!(data_id(&BOUND_HERE.seal(&[1; 32])), None);
        assert_eq!(data_id(b""), None);
    }
}
