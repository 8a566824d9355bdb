//! Ways to a peer, and what an owner may want of them.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

/// A TCP stream that carries a connection's datagrams; numbered by the socket's owner.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct StreamId(pub u32);

/// One way to a peer.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Path {
    /// Straight to its address.
    Udp(SocketAddr),
    /// In frames over a TCP stream.
    Tcp(StreamId),
    /// Through the server, by UDP or over the registration's connection.
    Relay,
}

/// What kind of path it is; better ones first.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Rung {
    /// UDP inside one network.
    UdpPrivate,
    /// UDP over IPv6.
    UdpIpv6,
    /// UDP through the NATs.
    UdpPublic,
    /// TCP inside one network.
    TcpPrivate,
    /// TCP to the public address of the registration.
    TcpPublic,
    /// Through the server.
    Relay,
}

/// In which order rungs are tried (`paths=`).
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Order {
    /// All at once, the best that answers.
    #[default]
    Auto,
    /// UDP public, TCP private, TCP public, relay: one by one (Fig. 6).
    UdpFirst,
    /// TCP private, TCP public, UDP public, relay: one by one.
    TcpFirst,
}

/// When the relay may be used (`relay=`).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum RelayUse {
    /// At once, until there is a direct path.
    First,
    /// When nothing direct works.
    Last,
    /// Not at all.
    Never,
}

/// Which side of a TCP path a daemon may be (`role=`, `--role`).
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Side {
    /// Either.
    #[default]
    Both,
    /// The one that connects.
    Connect,
    /// The one that listens.
    Listen,
}

/// Where a client's request 21 goes (`auth-to=`; claims 6-8).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum AuthTo {
    /// The host's private address.
    Private,
    /// Its public TCP address.
    TcpPublic,
    /// Its public UDP address.
    UdpPublic,
}

/// What an owner wants of the paths.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Wanted {
    /// `paths=`
    pub order: Order,
    /// `relay=`; without it first with [`Order::Auto`], else last.
    pub relay: Option<RelayUse>,
    /// `role=`
    pub side: Side,
    /// `auth-to=`; without it wherever there is a path first.
    pub auth_to: Option<AuthTo>,
}

/// A word that is none of those wanted.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("wanted: {0}")]
pub struct UnknownWord(pub &'static str);

impl Rung {
    /// As `status` prints it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::UdpPrivate => "udp-private",
            Self::UdpIpv6 => "udp-ipv6",
            Self::UdpPublic => "udp-public",
            Self::TcpPrivate => "tcp-private",
            Self::TcpPublic => "tcp-public",
            Self::Relay => "relay",
        }
    }

    /// As a client tells its host behind [`crate::wire::session::Identify`].
    pub fn to_byte(self) -> u8 {
        match self {
            Self::UdpPrivate => 0,
            Self::UdpIpv6 => 1,
            Self::UdpPublic => 2,
            Self::TcpPrivate => 3,
            Self::TcpPublic => 4,
            Self::Relay => 5,
        }
    }

    /// As received.
    pub fn from_byte(byte: u8) -> Option<Self> {
        match byte {
            0 => Some(Self::UdpPrivate),
            1 => Some(Self::UdpIpv6),
            2 => Some(Self::UdpPublic),
            3 => Some(Self::TcpPrivate),
            4 => Some(Self::TcpPublic),
            5 => Some(Self::Relay),
            _ => None,
        }
    }

    /// The transport, as `status` prints it.
    pub fn kind(self) -> &'static str {
        match self {
            Self::UdpPrivate | Self::UdpIpv6 | Self::UdpPublic => "udp",
            Self::TcpPrivate | Self::TcpPublic => "tcp",
            Self::Relay => "relay",
        }
    }

    /// The rung that UDP to an address is.
    pub fn of_udp(address: SocketAddr) -> Self {
        match address.ip() {
            ip if is_private(ip) => Self::UdpPrivate,
            IpAddr::V4(_) => Self::UdpPublic,
            IpAddr::V6(_) => Self::UdpIpv6,
        }
    }

    /// The rung that TCP to an address is.
    pub fn of_tcp(address: SocketAddr) -> Self {
        if is_private(address.ip()) { Self::TcpPrivate } else { Self::TcpPublic }
    }

    /// Whether a request over it goes where `auth-to=` says.
    pub fn leads_to(self, to: AuthTo) -> bool {
        match to {
            AuthTo::Private => matches!(self, Self::UdpPrivate | Self::TcpPrivate),
            AuthTo::TcpPublic => self == Self::TcpPublic,
            AuthTo::UdpPublic => matches!(self, Self::UdpPublic | Self::UdpIpv6),
        }
    }
}

/// Whether an address means something inside one network only.
pub fn is_private(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => ip.is_private() || ip.is_loopback() || ip.is_link_local(),
        IpAddr::V6(ip) => ip.is_loopback() || ip.is_unique_local() || ip.is_unicast_link_local(),
    }
}

impl Order {
    /// The rungs that are tried one by one; none where all are tried at once.
    pub fn rungs(self) -> &'static [Rung] {
        match self {
            Self::Auto => &[],
            Self::UdpFirst => &[Rung::UdpPublic, Rung::TcpPrivate, Rung::TcpPublic, Rung::Relay],
            Self::TcpFirst => &[Rung::TcpPrivate, Rung::TcpPublic, Rung::UdpPublic, Rung::Relay],
        }
    }
}

impl Side {
    /// Whether it connects.
    pub fn connects(self) -> bool {
        self != Self::Listen
    }

    /// Whether it listens.
    pub fn listens(self) -> bool {
        self != Self::Connect
    }
}

impl Wanted {
    /// When the relay may be used.
    pub fn relay_use(&self) -> RelayUse {
        self.relay.unwrap_or(match self.order {
            Order::Auto => RelayUse::First,
            Order::UdpFirst | Order::TcpFirst => RelayUse::Last,
        })
    }
}

impl FromStr for Order {
    type Err = UnknownWord;

    fn from_str(word: &str) -> Result<Self, UnknownWord> {
        match word {
            "auto" => Ok(Self::Auto),
            "udp-first" => Ok(Self::UdpFirst),
            "tcp-first" => Ok(Self::TcpFirst),
            _ => Err(UnknownWord("auto, udp-first, tcp-first")),
        }
    }
}

impl FromStr for RelayUse {
    type Err = UnknownWord;

    fn from_str(word: &str) -> Result<Self, UnknownWord> {
        match word {
            "first" => Ok(Self::First),
            "last" => Ok(Self::Last),
            "never" => Ok(Self::Never),
            _ => Err(UnknownWord("first, last, never")),
        }
    }
}

impl FromStr for Side {
    type Err = UnknownWord;

    fn from_str(word: &str) -> Result<Self, UnknownWord> {
        match word {
            "both" => Ok(Self::Both),
            "connect" => Ok(Self::Connect),
            "listen" => Ok(Self::Listen),
            _ => Err(UnknownWord("both, connect, listen")),
        }
    }
}

impl FromStr for AuthTo {
    type Err = UnknownWord;

    fn from_str(word: &str) -> Result<Self, UnknownWord> {
        match word {
            "private" => Ok(Self::Private),
            "tcp-public" => Ok(Self::TcpPublic),
            "udp-public" => Ok(Self::UdpPublic),
            _ => Err(UnknownWord("private, tcp-public, udp-public")),
        }
    }
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Udp(address) => write!(f, "udp {address}"),
            Self::Tcp(stream) => write!(f, "tcp stream {}", stream.0),
            Self::Relay => f.write_str("relay"),
        }
    }
}
