//! A rendezvous server's address: `p2pfs://HOST:PORT#FINGERPRINT`.

use std::fmt;
use std::str::FromStr;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};

/// Where a server is, and which key it must prove.
#[derive(Clone, Deserialize, Eq, Hash, PartialEq, Serialize)]
#[serde(try_from = "String", into = "String")]
pub struct ServerAddress {
    /// A host name or an IP address (IPv6 without brackets).
    pub host: String,
    /// The TCP port of registration; the UDP ports are learned from there.
    pub port: u16,
    /// SHA-256 of the server's public key.
    pub fingerprint: [u8; 32],
}

/// Why a text is not a server's address.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error(
    "not a server's address: it looks like p2pfs://HOST:PORT#FINGERPRINT, as p2pfs-server prints it"
)]
pub struct AddressError;

impl ServerAddress {
    /// `HOST:PORT`, with brackets around IPv6, as name resolution takes it.
    pub fn authority(&self) -> String {
        if self.host.contains(':') {
            format!("[{}]:{}", self.host, self.port)
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }
}

impl FromStr for ServerAddress {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        let rest = text.trim().strip_prefix("p2pfs://").ok_or(AddressError)?;
        let (authority, fingerprint) = rest.split_once('#').ok_or(AddressError)?;
        let (host, port) = authority.rsplit_once(':').ok_or(AddressError)?;
        let host = host.strip_prefix('[').map_or(host, |host| host.trim_end_matches(']'));
        let legal = |byte: u8| byte.is_ascii_alphanumeric() || b".-:_%".contains(&byte);
        if host.is_empty() || host.len() > 253 || !host.bytes().all(legal) {
            return Err(AddressError);
        }
        let fingerprint = URL_SAFE_NO_PAD.decode(fingerprint).map_err(|_| AddressError)?;
        Ok(Self {
            host: host.to_owned(),
            port: port.parse().map_err(|_| AddressError)?,
            fingerprint: fingerprint.try_into().map_err(|_| AddressError)?,
        })
    }
}

impl fmt::Display for ServerAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let fingerprint = URL_SAFE_NO_PAD.encode(self.fingerprint);
        write!(f, "p2pfs://{}#{fingerprint}", self.authority())
    }
}

impl fmt::Debug for ServerAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl TryFrom<String> for ServerAddress {
    type Error = AddressError;

    fn try_from(text: String) -> Result<Self, AddressError> {
        text.parse()
    }
}

impl From<ServerAddress> for String {
    fn from(address: ServerAddress) -> Self {
        address.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_survives_its_text() {
        for authority in ["home.example:443", "192.0.2.1:8443", "[2001:db8::1]:443"] {
            let text = format!("p2pfs://{authority}#{}", URL_SAFE_NO_PAD.encode([7; 32]));
            assert_eq!(text.parse::<ServerAddress>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn a_malformed_address_is_refused() {
        let good = format!("p2pfs://home.example:443#{}", URL_SAFE_NO_PAD.encode([7; 32]));
        for bad in ["", "home:443", &good[..good.len() - 1], &good.replace("443", "99999")] {
            assert_eq!(bad.parse::<ServerAddress>(), Err(AddressError));
        }
    }
}
