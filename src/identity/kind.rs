//! What tells a client from others, beside its key: the kinds of identifier.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::wire::session::DeviceId;

/// A kind of identifier. **Append only**: it stands in tickets and files.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// A stick, by its serial number, vendor and product.
    #[default]
    Stick,
    /// An identification code, which the client made for itself.
    Code,
    /// A serial number alone: of the stick, or of the client machine.
    Serial,
    /// A MAC address of the client machine.
    Mac,
    /// A user name and a password.
    Login,
}

/// Addresses that a client names: more do not fit into an identifier.
pub const MAC_ADDRESSES_MAX: usize = 7;

const RECOVERED: &str = "recovery";

impl Kind {
    /// As printed and typed.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Stick => "stick",
            Self::Code => "code",
            Self::Serial => "serial",
            Self::Mac => "mac",
            Self::Login => "login",
        }
    }

    /// An identifier of this kind, in the form in which host and client compare it. `user`: whose
    /// it is, where it belongs to one.
    pub fn identifier(self, value: &str, user: &str) -> DeviceId {
        DeviceId {
            serial: self.normal(value),
            vendor: user.to_owned(),
            product: self.as_str().to_owned(),
        }
    }

    /// A value as it is compared: how people group and write codes and addresses does not count.
    pub fn normal(self, value: &str) -> String {
        let value = value.trim();
        match self {
            Self::Code => super::base32::normal(value),
            Self::Mac => value.replace('-', ":").to_ascii_lowercase(),
            Self::Stick | Self::Serial | Self::Login => value.to_owned(),
        }
    }
}

/// What a key that was recovered from paper shows instead of its device.
pub fn recovered(proof: &str) -> DeviceId {
    DeviceId { serial: proof.to_owned(), vendor: String::new(), product: RECOVERED.to_owned() }
}

/// The proof, if this is what a recovered key shows.
pub fn recovery_proof(device: &DeviceId) -> Option<&str> {
    (device.product == RECOVERED && device.vendor.is_empty()).then_some(device.serial.as_str())
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Kind {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        [Self::Stick, Self::Code, Self::Serial, Self::Mac, Self::Login]
            .into_iter()
            .find(|kind| kind.as_str() == text)
            .ok_or_else(|| "it is code, serial, mac or login".into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn how_a_value_is_written_does_not_count() {
        assert_eq!(Kind::Mac.normal(" 02-AA-00-00-00-0F\n"), "02:aa:00:00:00:0f");
        assert_eq!(Kind::Code.normal("abcd-ol1x"), Kind::Code.normal("ABCD 0L1X"));
        assert_ne!(Kind::Serial.normal("abc"), Kind::Serial.normal("ABC"));
    }

    #[test]
    fn kinds_are_read_as_they_are_printed() {
        for kind in [Kind::Stick, Kind::Code, Kind::Serial, Kind::Mac, Kind::Login] {
            assert_eq!(kind.as_str().parse(), Ok(kind));
        }
        assert!("colour".parse::<Kind>().is_err());
    }
}
