//! How a NAT behaves, in the terms of RFC 4787: part of the routing information.

use serde::{Deserialize, Serialize};

/// What is known of the NAT between a socket and the world.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct NatBehaviour {
    /// What the outside address depends on.
    pub mapping: Option<Mapping>,
    /// Who may answer.
    pub filtering: Option<Filtering>,
    /// Whether the outside port is the inside port.
    pub keeps_port: Option<bool>,
}

/// What the outside address of a socket depends on. **Append only.**
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub enum Mapping {
    /// There is none: the socket is seen where it is.
    Unmapped,
    /// On the socket only: a peer can be told where to send.
    EndpointIndependent,
    /// On the address that is sent to.
    AddressDependent,
    /// On the address and the port that are sent to.
    AddressAndPortDependent,
}

/// Whose datagrams get in. **Append only.**
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub enum Filtering {
    /// Anybody's.
    EndpointIndependent,
    /// Those of an address that was sent to.
    AddressDependent,
    /// Those of an address and port that were sent to.
    AddressAndPortDependent,
}

impl Mapping {
    /// For `status --json` and `doctor --json`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Unmapped => "none",
            Self::EndpointIndependent => "endpoint-independent",
            Self::AddressDependent => "address-dependent",
            Self::AddressAndPortDependent => "address-and-port-dependent",
        }
    }
}

impl Filtering {
    /// For `status --json` and `doctor --json`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::EndpointIndependent => "endpoint-independent",
            Self::AddressDependent => "address-dependent",
            Self::AddressAndPortDependent => "address-and-port-dependent",
        }
    }
}
