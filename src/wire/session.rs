//! The first stream of a connection: authentication 120 (steps 121-123), and what it opens.

use serde::{Deserialize, Serialize};

use crate::id::{HostRun, Seq, SessionId};

/// Request 21: the client says who it is. The connection has proved its key already. **Append only.**
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
}

/// The device's own identifiers (claims 9 and 18), compared with what the host recorded at pairing.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct DeviceId {
    /// Serial number.
    pub serial: String,
    /// Vendor id, as the device says it.
    pub vendor: String,
    /// Product id, as the device says it.
    pub product: String,
}

/// The host's answer. **Append only.**
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub enum Verdict {
    /// Step 123: approved.
    Approved(Grant),
    /// Step 123: denied; the client may ask again (507).
    Denied(Denial),
}

/// What an approved session may use.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Grant {
    /// The share.
    pub share: String,
    /// Whether changes are refused.
    pub read_only: bool,
    /// Which run of hostd answers.
    pub run: HostRun,
    /// Whether this run knows the session already.
    pub resumed: bool,
    /// The last entry of the session such that it and all before it are applied.
    pub applied: Seq,
    /// The host's name.
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
    /// No such share; the ones there are for this key.
    ShareUnknown(Vec<String>),
    /// The share is not for this key.
    ShareDenied,
    /// The host has as many sessions as it can hold.
    Busy,
}
