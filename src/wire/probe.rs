//! Probes: small authenticated datagrams that open a NAT and prove that an address answers.
//!
//! ```text
//!  0      1      2          10         18             34
//!  | kind | role | match id | nonce    | HMAC (16)    |
//! ```
//!
//! The first byte tells probes from STUN (0-3) and QUIC (0x40 and up) on the shared socket
//! (RFC 9443). The key is fresh for each match and known to the two peers only; the role keeps one
//! side's probes from being played back to it.

use subtle::ConstantTimeEq;

use crate::identity::hmac;

/// Bytes of every probe; a pong is as long as its ping.
pub const PROBE_BYTES: usize = 34;

const PING: u8 = 0x10;
const PONG: u8 = 0x11;
const CHOSEN: u8 = 0x12;
const SEARCH: u8 = 0x13;
const ASK: u8 = 0x14;
const SIGNED_BYTES: usize = 18;

/// Which match a probe belongs to: the first 8 bytes of its id.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct ProbeTag(pub [u8; 8]);

/// The side that sent a probe.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Role {
    /// mountd
    Client,
    /// hostd
    Host,
}

/// A question, or the answer to one.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum ProbeKind {
    /// "Are you there?"
    Ping,
    /// The same nonce back.
    Pong,
    /// A ping of the path that the client uses from now on.
    Chosen,
    /// "I look for better paths now: look too."
    Search,
    /// The host's request of authentication 140: "identify yourself".
    Ask,
}

/// A probe.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Probe {
    /// Question or answer.
    pub kind: ProbeKind,
    /// Who sent it.
    pub role: Role,
    /// Its match.
    pub tag: ProbeTag,
    /// Names the question.
    pub nonce: u64,
}

impl Role {
    /// The other side.
    pub fn peer(self) -> Self {
        match self {
            Self::Client => Self::Host,
            Self::Host => Self::Client,
        }
    }
}

impl Probe {
    /// Whether a datagram's first byte is that of a probe.
    pub fn is_probe(first: u8) -> bool {
        matches!(first, 0x10..=0x1f)
    }

    /// The match that a datagram claims to belong to, before anything is verified.
    pub fn claimed_tag(datagram: &[u8]) -> Option<ProbeTag> {
        if datagram.len() != PROBE_BYTES {
            return None;
        }
        datagram[2..10].try_into().ok().map(ProbeTag)
    }

    /// The bytes to send.
    pub fn seal(self, key: &[u8; 32]) -> [u8; PROBE_BYTES] {
        let mut bytes = [0; PROBE_BYTES];
        bytes[0] = match self.kind {
            ProbeKind::Ping => PING,
            ProbeKind::Pong => PONG,
            ProbeKind::Chosen => CHOSEN,
            ProbeKind::Search => SEARCH,
            ProbeKind::Ask => ASK,
        };
        bytes[1] = match self.role {
            Role::Client => 0,
            Role::Host => 1,
        };
        bytes[2..10].copy_from_slice(&self.tag.0);
        bytes[10..SIGNED_BYTES].copy_from_slice(&self.nonce.to_be_bytes());
        let proof = hmac(key, &bytes[..SIGNED_BYTES]);
        bytes[SIGNED_BYTES..].copy_from_slice(&proof[..PROBE_BYTES - SIGNED_BYTES]);
        bytes
    }

    /// Verifies and reads a datagram; `None` for whatever this key did not make.
    pub fn open(datagram: &[u8], key: &[u8; 32]) -> Option<Self> {
        let tag = Self::claimed_tag(datagram)?;
        let proof = hmac(key, &datagram[..SIGNED_BYTES]);
        let given = &datagram[SIGNED_BYTES..];
        if !bool::from(proof[..given.len()].ct_eq(given)) {
            return None;
        }
        let kind = match datagram[0] {
            PING => ProbeKind::Ping,
            PONG => ProbeKind::Pong,
            CHOSEN => ProbeKind::Chosen,
            SEARCH => ProbeKind::Search,
            ASK => ProbeKind::Ask,
            _ => return None,
        };
        let role = match datagram[1] {
            0 => Role::Client,
            1 => Role::Host,
            _ => return None,
        };
        let nonce = datagram[10..SIGNED_BYTES].try_into().ok().map(u64::from_be_bytes)?;
        Some(Self { kind, role, tag, nonce })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PROBE: Probe =
        Probe { kind: ProbeKind::Ping, role: Role::Client, tag: ProbeTag([7; 8]), nonce: 9 };

    #[test]
    fn a_probe_survives_its_bytes() {
        let bytes = PROBE.seal(&[1; 32]);
        assert!(Probe::is_probe(bytes[0]));
        assert_eq!(Probe::claimed_tag(&bytes), Some(PROBE.tag));
        assert_eq!(Probe::open(&bytes, &[1; 32]), Some(PROBE));
    }

    #[test]
    fn another_key_a_flipped_bit_and_another_length_are_refused() {
        let bytes = PROBE.seal(&[1; 32]);
        assert_eq!(Probe::open(&bytes, &[2; 32]), None);
        assert_eq!(Probe::open(&bytes[..33], &[1; 32]), None);
        for at in 0..bytes.len() {
            let mut flipped = bytes;
            flipped[at] ^= 1;
            assert_eq!(Probe::open(&flipped, &[1; 32]), None, "byte {at}");
        }
    }
}
