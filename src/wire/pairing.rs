//! Pairing over the local network: who is looked for, and what is told once both know the code.
//!
//! Datagrams: [`Seek`], to everybody on a link, answered by [`Here`], which is no longer. Then over
//! TCP: messages with their length before them (`u16`, little-endian): a SPAKE2 message each way,
//! then [`Request`], [`Offer`] and [`Done`], sealed.

use serde::{Deserialize, Serialize};

use crate::identity::kind::Kind;
use crate::identity::sealed::{DEVICE_TEXT_BYTES_MAX, KEY_SERVERS_MAX};
use crate::identity::{MacAddress, PeerId};
use crate::limits::LABEL_BYTES_MAX;
use crate::wire::session::DeviceId;

/// The UDP port on which a host listens while it has a code out.
pub const PORT: u16 = 41_652;

/// What datagrams begin with; the last byte is the version.
pub const MAGIC: [u8; 8] = *b"p2pfsLN\x01";

/// Who has a code out with this number?
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Seek {
    /// [`MAGIC`]
    pub magic: [u8; 8],
    /// The code's number, which is no secret.
    pub number: u16,
    /// To know the answer by.
    pub token: [u8; 16],
}

/// This host has.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Here {
    /// [`MAGIC`]
    pub magic: [u8; 8],
    /// The TCP port on which it listens.
    pub port: u16,
    /// From the question.
    pub token: [u8; 16],
}

/// The client, which has proved that it knows the code.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Request {
    /// Its new public key.
    pub peer: PeerId,
    /// What tells it from others beside its key.
    pub kind: Kind,
    /// Its identifier of that kind.
    pub device: DeviceId,
    /// Its machine's name, for the owner's list of keys.
    pub client_name: String,
}

/// The host, which has too.
#[derive(Clone, Deserialize, Serialize)]
pub struct Offer {
    /// Its public key.
    pub host: PeerId,
    /// Its MAC address.
    pub host_mac: MacAddress,
    /// Its name.
    pub host_name: String,
    /// Where it registers, as text.
    pub servers: Vec<String>,
    /// The secret of both.
    pub pair_key: [u8; 32],
    /// Whether the client may keep the identity without the stick.
    pub portable: bool,
}

/// The client has written it down.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Done {
    /// The key that it now has.
    pub peer: PeerId,
}

impl Request {
    /// Whether every field is within its bound.
    pub fn is_within_bounds(&self) -> bool {
        let texts = [&self.device.serial, &self.device.vendor, &self.device.product];
        self.peer.is_strong()
            && texts.iter().all(|text| text.len() <= DEVICE_TEXT_BYTES_MAX)
            && matches!(self.kind, Kind::Stick | Kind::Code)
            && self.client_name.len() <= LABEL_BYTES_MAX
            && !self.client_name.contains(char::is_control)
    }
}

impl Offer {
    /// Whether every field is within its bound.
    pub fn is_within_bounds(&self) -> bool {
        self.host_name.len() <= LABEL_BYTES_MAX
            && (1..=KEY_SERVERS_MAX).contains(&self.servers.len())
            && self.servers.iter().all(|server| server.len() <= 512)
    }
}

impl Drop for Offer {
    fn drop(&mut self) {
        zeroize::Zeroize::zeroize(&mut self.pair_key);
    }
}

impl std::fmt::Debug for Offer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Offer").field("host", &self.host).finish_non_exhaustive()
    }
}
