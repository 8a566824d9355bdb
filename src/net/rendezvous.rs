//! One side's registration with one server: kept for ever, made again when it is lost.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

use crate::address::ServerAddress;
use crate::identity::{MacAddress, PairKey, PeerId, SecretKey};
pub use crate::proto::rendezvous::{Introduction, RecordedKey};
use crate::wire::rendezvous::Routing;

/// Which side of a pairing registers.
#[derive(Clone, Debug)]
pub enum Side {
    /// A host, for all its recorded keys.
    Host {
        /// The host's own hardware address.
        mac: MacAddress,
        /// The recorded keys; a change reaches the server at once.
        keys: watch::Receiver<Vec<RecordedKey>>,
    },
    /// A client, for one host.
    Client {
        /// What was made at the pairing.
        pair_key: PairKey,
        /// The host's hardware address.
        mac: MacAddress,
        /// The host's key: nobody else is introduced.
        host: PeerId,
    },
}

/// What a registration needs.
#[derive(Clone, Debug)]
pub struct RegistrationConfig {
    /// Our own key, proved to the server.
    pub secret: SecretKey,
    /// The server.
    pub server: ServerAddress,
    /// Who registers.
    pub side: Side,
    /// Where we are; the registration adds its own TCP addresses.
    pub routing: watch::Receiver<Routing>,
}

/// What happens to a registration.
#[derive(Clone, Debug)]
pub enum RendezvousEvent {
    /// The server knows us.
    Connected {
        /// Its UDP STUN addresses.
        stun: Vec<SocketAddr>,
        /// Where it sees this registration.
        tcp_public: SocketAddr,
    },
    /// The connection is gone, or could not be made; it is tried again.
    Lost {
        /// Why.
        error: RendezvousError,
    },
    /// A match.
    Introduced(Introduction),
    /// Nobody answers for that host, for now; a match may still come.
    NoMatch,
}

/// Why there is no connection to the server.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum RendezvousError {
    /// No connection.
    #[error("the server cannot be reached: {0}")]
    Unreachable(String),
    /// Somebody answers with another key.
    #[error("the server has another key than the one that was pinned")]
    ServerChanged,
}

/// How a registration is doing.
#[derive(Clone, Debug)]
pub struct RegistrationStatus {
    /// The server.
    pub server: ServerAddress,
    /// Whether there is a connection.
    pub connected: bool,
    /// Since the server last confirmed the registration.
    pub age: Option<Duration>,
    /// Where the server sees the registration.
    pub tcp_public: Option<SocketAddr>,
    /// Our end of its connection; the port may be shared (`SO_REUSEPORT`).
    pub tcp_private: Option<SocketAddr>,
    /// The server's UDP STUN addresses.
    pub stun: Vec<SocketAddr>,
}

/// A registration that lives until it is dropped.
#[derive(Debug)]
pub struct Registration {
    task: JoinHandle<()>,
}

impl Registration {
    /// Registers, and goes on doing so; what happens arrives at `events`.
    pub fn start(config: RegistrationConfig, events: mpsc::Sender<RendezvousEvent>) -> Self {
        let task = tokio::spawn(async move {
            let _ = (config, events);
        });
        Self { task }
    }

    /// How it is doing.
    pub fn status(&self) -> RegistrationStatus {
        unimplemented!("follows")
    }

    /// As a client: asks for a new match now.
    pub fn seek_again(&self) {}

    /// Whether a session stands: the registration is then repeated every 5 s instead of 20 s.
    pub fn set_in_use(&self, _in_use: bool) {}
}

impl Drop for Registration {
    fn drop(&mut self) {
        self.task.abort();
    }
}
