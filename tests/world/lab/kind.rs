//! The kinds of NAT that the lab builds, and what each does to a packet (terms of RFC 4787).
//!
//! Facts only: what two kinds can do together is for an oracle to say.

/// How one side is attached to the WAN.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Kind {
    /// Public addresses, nothing in between.
    None,
    /// Public addresses behind a stateful firewall.
    Fw,
    /// Full cone.
    Full,
    /// Address-restricted cone.
    Addr,
    /// Port-restricted cone that keeps ports.
    Port,
    /// Port-restricted cone that does not keep ports.
    Portr,
    /// Another port for each address that is talked to.
    Adm,
    /// Symmetric, random ports.
    Sym,
    /// Symmetric, one port after the other.
    SymSeq,
    /// A home's `Port` behind a carrier's `Port`.
    Cgn,
    /// A home's `Port` behind a carrier's `Sym`.
    CgnSym,
    /// TCP only.
    UdpBlock,
    /// TCP to port 443 only.
    Tcp443,
    /// IPv6 only, behind a stateful firewall.
    V6Only,
    /// For the client only: in the host's own LAN.
    SameNat,
}

/// What a flow's outside port depends on.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Mapping {
    /// Nothing is mapped: the outside sees the machine's own address.
    Unmapped,
    Endpoint,
    Address,
    AddressAndPort,
}

/// Who may answer.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Filtering {
    Endpoint,
    Address,
    AddressAndPort,
}

/// What happens to UDP, where it passes at all.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Udp {
    pub(crate) mapping: Mapping,
    pub(crate) filtering: Filtering,
    pub(crate) keeps_port: bool,
}

/// What happens to TCP.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Tcp {
    /// Nothing: anybody may connect.
    Open,
    /// The port is kept, and only who was called may call.
    Kept,
    /// Another port for each connection, and only who was called may call.
    Random,
    /// As `Kept`, and only to port 443.
    Only443,
}

impl Kind {
    /// Those that either side can have.
    pub(crate) const ALL: [Self; 14] = [
        Self::None,
        Self::Fw,
        Self::Full,
        Self::Addr,
        Self::Port,
        Self::Portr,
        Self::Adm,
        Self::Sym,
        Self::SymSeq,
        Self::Cgn,
        Self::CgnSym,
        Self::UdpBlock,
        Self::Tcp443,
        Self::V6Only,
    ];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Fw => "fw",
            Self::Full => "full",
            Self::Addr => "addr",
            Self::Port => "port",
            Self::Portr => "portr",
            Self::Adm => "adm",
            Self::Sym => "sym",
            Self::SymSeq => "symseq",
            Self::Cgn => "cgn",
            Self::CgnSym => "cgnsym",
            Self::UdpBlock => "udpblock",
            Self::Tcp443 => "tcp443",
            Self::V6Only => "v6only",
            Self::SameNat => "same-nat",
        }
    }

    /// What happens to UDP; `None`: it is dropped.
    pub(crate) fn udp(self) -> Option<Udp> {
        use Filtering as F;
        use Mapping as M;

        let (mapping, filtering, keeps_port) = match self {
            Self::None => (M::Unmapped, F::Endpoint, true),
            Self::Fw | Self::V6Only => (M::Unmapped, F::AddressAndPort, true),
            Self::Full => (M::Endpoint, F::Endpoint, true),
            Self::Addr => (M::Endpoint, F::Address, true),
            Self::Port | Self::Cgn | Self::SameNat => (M::Endpoint, F::AddressAndPort, true),
            Self::Portr => (M::Endpoint, F::AddressAndPort, false),
            Self::Adm => (M::Address, F::AddressAndPort, false),
            Self::Sym | Self::SymSeq | Self::CgnSym => {
                (M::AddressAndPort, F::AddressAndPort, false)
            }
            Self::UdpBlock | Self::Tcp443 => return None,
        };
        Some(Udp { mapping, filtering, keeps_port })
    }

    /// What happens to TCP.
    pub(crate) fn tcp(self) -> Tcp {
        match self {
            Self::None => Tcp::Open,
            Self::Sym | Self::SymSeq | Self::CgnSym => Tcp::Random,
            Self::Tcp443 => Tcp::Only443,
            Self::Fw
            | Self::Full
            | Self::Addr
            | Self::Port
            | Self::Portr
            | Self::Adm
            | Self::Cgn
            | Self::UdpBlock
            | Self::V6Only
            | Self::SameNat => Tcp::Kept,
        }
    }

    /// Whether there is IPv4.
    pub(crate) fn has_v4(self) -> bool {
        self != Self::V6Only
    }

    /// Whether there is IPv6.
    pub(crate) fn has_v6(self) -> bool {
        matches!(self, Self::V6Only | Self::None)
    }
}
