//! How a client and a host find each other: the server's [`matcher`], the [`host`]'s and the
//! [`client`]'s side of a registration.
//!
//! A connection to the server is an input here: it is made, it carries messages in order, it is
//! lost.

use std::fmt;
use std::time::Duration;

use crate::identity::{PairKey, PeerId};
use crate::wire::relay::RelayGrant;
use crate::wire::rendezvous::{FirstFlight, MatchId, Public, Routing, ToServer};

mod asks;
pub mod client;
pub mod host;
pub mod matcher;
mod peers;
mod registry;
mod upkeep;

#[cfg(test)]
mod tests;

/// How long a host that does not know its UDP public address waits for it before it registers: an
/// introduction without it would be worth little.
pub const MAPPING_PATIENCE: Duration = Duration::from_millis(400);

/// A key that a host has recorded, authorised or not.
#[derive(Clone, Debug)]
pub struct RecordedKey {
    /// The client's public key.
    pub peer: PeerId,
    /// What was made at the pairing.
    pub pair_key: PairKey,
}

/// The other side of a match.
#[derive(Clone, Eq, PartialEq)]
pub struct Introduction {
    /// The same on both sides.
    pub match_id: MatchId,
    /// Who it is; still to be proved, by QUIC.
    pub peer: PeerId,
    /// Where it may be reached.
    pub routing: Routing,
    /// Authenticates probes; the same on both sides, fresh for every match.
    pub probe_key: [u8; 32],
    /// What the relay may be used by, if the server has one.
    pub relay: Option<RelayGrant>,
    /// What the client's QUIC has said along with its request to be introduced.
    pub first: Option<FirstFlight>,
}

impl fmt::Debug for Introduction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Introduction")
            .field("match_id", &self.match_id)
            .field("peer", &self.peer)
            .field("routing", &self.routing)
            .finish_non_exhaustive()
    }
}

/// What a daemon's side of a registration wants done.
#[expect(
    clippy::large_enum_variant,
    reason = "few wait at once, and an introduction is the usual one"
)]
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Output {
    /// Send this over the connection, in order.
    Send(ToServer),
    /// The server has confirmed the registration.
    Confirmed,
    /// The other side of a match.
    Introduced(Introduction),
    /// The other side of a match is seen elsewhere now.
    Moved(MatchId, Public),
    /// Nobody answers, for now; as a client only.
    NoMatch,
    /// The server has gone silent: make a new connection.
    Silent,
}
