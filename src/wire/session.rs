//! The first stream of a connection: authentication 120 (steps 121-123), and what it opens.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::id::{HostRun, Seq, SessionId};
use crate::limits::{LABEL_BYTES_MAX, LOG_ENTRIES_UNAPPLIED_MAX, SHARES_MAX, SHOWN_BYTES_MAX};
use crate::wire::log::Cursor;

/// Request 21: the client says who it is. The connection has proved its key already. The message's
/// body is the rung that it goes over, a byte ([`crate::proto::path::Rung::to_byte`]), or nothing.
/// **Append only.**
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Identify {
    /// The session to open or to resume.
    pub session: SessionId,
    /// What was read from the attached device.
    pub device: DeviceId,
    /// The share that is wanted; without it the only one.
    pub share: Option<String>,
    /// The client machine's name, for the owner's list of keys.
    pub client_name: String,
    /// The first entry that the client still holds: a host that does not know the session begins
    /// with it.
    pub held: Seq,
    /// The first entry without an answer: a host that knows the session says again what came of
    /// this one and of later ones.
    pub unanswered: Seq,
}

impl Identify {
    /// Whether every text keeps its bound.
    pub fn is_bounded(&self) -> bool {
        let DeviceId { serial, vendor, product } = &self.device;
        let shown = [serial, vendor, product].into_iter();
        shown
            .chain(&self.share)
            .chain([&self.client_name])
            .all(|text| text.len() <= SHOWN_BYTES_MAX)
    }
}

/// The device's own identifiers (claims 9 and 18), compared with what the host recorded at pairing.
#[derive(Clone, Deserialize, Eq, PartialEq, Serialize)]
pub struct DeviceId {
    /// Serial number.
    pub serial: String,
    /// Vendor id, as the device says it.
    pub vendor: String,
    /// Product id, as the device says it.
    pub product: String,
}

/// Not the serial number: a code or what proves a password may stand there.
impl fmt::Debug for DeviceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DeviceId({}:{})", self.vendor, self.product)
    }
}

/// The host's answer. **Append only.**
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub enum Verdict {
    /// Step 123: approved.
    Approved(Grant),
    /// Step 123: denied; the client may ask again (507).
    Denied(Denial),
    /// Approved, and the host acts as whoever asks on the client: each change names its caller, and
    /// so does each call that depends on it ([`crate::wire::call::Call::As`]).
    ApprovedIdentity(Grant),
}

impl Verdict {
    /// Whether every text and list keeps its bound, and no text moves a terminal's cursor.
    pub fn is_bounded(&self) -> bool {
        match self {
            Self::Approved(grant) | Self::ApprovedIdentity(grant) => {
                let Grant { share, host_name, cursor, .. } = grant;
                let ahead = cursor.ahead.len() <= LOG_ENTRIES_UNAPPLIED_MAX;
                ahead && is_label(share) && is_label(host_name)
            }
            Self::Denied(Denial::ShareUnknown(shares)) => {
                shares.len() <= SHARES_MAX && shares.iter().all(|share| is_label(share))
            }
            Self::Denied(_) => true,
        }
    }
}

fn is_label(text: &str) -> bool {
    text.len() <= LABEL_BYTES_MAX && !text.contains(char::is_control)
}

/// What an approved session may use.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Grant {
    /// The share; at most 64 bytes.
    pub share: String,
    /// Whether changes are refused.
    pub read_only: bool,
    /// Which run of hostd answers.
    pub run: HostRun,
    /// How far the session's entries are.
    pub cursor: Cursor,
    /// The host's name; at most 64 bytes.
    pub host_name: String,
    /// The host's MAC address, as it was recorded at pairing (R22).
    pub host_mac: [u8; 6],
}

/// Why a session is refused. **Append only.**
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub enum Denial {
    /// Recorded, but nobody has authorised it.
    Unauthorised,
    /// Authorised once, and taken back.
    Revoked,
    /// The device is not the one that was paired.
    DeviceMismatch,
    /// No such share; the ones there are for this key, at most 64, of at most 64 bytes.
    ShareUnknown(Vec<String>),
    /// The share is not for this key.
    ShareDenied,
    /// The host has as many sessions as it can hold.
    Busy,
    /// The time for which the owner authorised it is over.
    Expired,
    /// Authorised, but the client's identifier (code, serial number, MAC address, user name and
    /// password) is not the one that the owner typed in.
    OtherIdentifier,
    /// Too many wrong passwords or identifiers: it may try again after a while.
    TooManyTries,
}

/// What a stream is for: its first byte.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum StreamKind {
    /// [`Identify`], answered by a [`Verdict`]; the first stream of a connection.
    Identify,
    /// One [`crate::wire::call::Call`] and its reply.
    Call,
    /// Log entries one way, acknowledgements the other; as long as the connection.
    Log,
    /// Lease requests one way, notices the other; as long as the connection.
    Lease,
    /// A lane: calls with numbers ([`crate::wire::call::Ask`]) one way, their answers
    /// ([`crate::wire::call::Answer`]) in any order the other; as long as the connection.
    Calls,
    /// As [`Self::Identify`], because the host asked for it (authentication 140).
    IdentifyAsked,
}

impl StreamKind {
    /// As sent.
    pub fn to_byte(self) -> u8 {
        match self {
            Self::Identify => 0,
            Self::Call => 1,
            Self::Log => 2,
            Self::Lease => 3,
            Self::Calls => 4,
            Self::IdentifyAsked => 5,
        }
    }

    /// As received.
    pub fn from_byte(byte: u8) -> Option<Self> {
        match byte {
            0 => Some(Self::Identify),
            1 => Some(Self::Call),
            2 => Some(Self::Log),
            3 => Some(Self::Lease),
            4 => Some(Self::Calls),
            5 => Some(Self::IdentifyAsked),
            _ => None,
        }
    }
}

/// Why a side closed a connection: QUIC's application error code.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum CloseReason {
    /// The session is over; nothing is wrong.
    Done,
    /// The host's owner revoked or removed the key: no use in coming back.
    Revoked,
    /// This connection was replaced by a newer one of the same session.
    Replaced,
    /// The peer broke the protocol.
    Misbehaved,
    /// The session could not be opened: the verdict says why.
    Denied,
    /// The client ends the session: nobody comes back to what it had open.
    Ended,
    /// The time for which the owner authorised the key is over.
    Expired,
}

impl CloseReason {
    /// As sent.
    pub fn to_code(self) -> u32 {
        match self {
            Self::Done => 0,
            Self::Revoked => 1,
            Self::Replaced => 2,
            Self::Misbehaved => 3,
            Self::Denied => 4,
            Self::Ended => 5,
            Self::Expired => 6,
        }
    }

    /// As received; an unknown code is [`Self::Done`].
    pub fn from_code(code: u64) -> Self {
        match code {
            1 => Self::Revoked,
            2 => Self::Replaced,
            3 => Self::Misbehaved,
            4 => Self::Denied,
            5 => Self::Ended,
            6 => Self::Expired,
            _ => Self::Done,
        }
    }
}
