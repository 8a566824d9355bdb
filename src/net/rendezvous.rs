//! One side's registration with one server: kept for ever, made again when it is lost.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;

use crate::address::ServerAddress;
use crate::identity::{MacAddress, PairKey, PeerId, SecretKey};
pub(crate) use crate::net::rendezvous::inquiry::{Inquiry, inquire};
pub use crate::net::rendezvous::link::{Acceptor, receive, send};
pub use crate::proto::rendezvous::{Introduction, RecordedKey};
pub use crate::wire::rendezvous::FirstFlight;
use crate::wire::rendezvous::{MatchId, Public, Relayed, Routing, STUN_ADDRESSES_MAX};

mod driver;
mod inquiry;
mod link;
mod loan;

/// How long QUIC may take to say something: more would cost what is saved.
const FIRST_FLIGHT: Duration = Duration::from_millis(20);
/// STUN's own port (RFC 8489).
const STUN_PORT: u16 = 3478;

/// Where a server's STUN usually is; it says itself where, once it is reached. Only for a server
/// that is known by its IP address.
pub(crate) fn usual_stun(server: &ServerAddress) -> Option<SocketAddr> {
    Some((server.host.parse::<IpAddr>().ok()?, STUN_PORT).into())
}

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
        /// Makes what goes along with the first request.
        first: Option<Dialler>,
        /// Where processes of this user lend each other registrations.
        loans: Option<PathBuf>,
    },
}

/// Has QUIC begin a connection, and catches what it says first.
#[derive(Clone)]
pub struct Dialler(Arc<dyn Fn(oneshot::Sender<FirstFlight>) + Send + Sync>);

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
    /// Takes what the relay brings over the connection.
    pub relayed: Option<RelayInbox>,
}

/// Takes what the relay brings; never waits.
#[derive(Clone)]
pub struct RelayInbox(Arc<dyn Fn(Relayed) + Send + Sync>);

/// The connection that an introduction came over.
#[derive(Clone, Debug)]
pub struct ServerLink {
    /// Our end; TCP paths share its port. `None`: the connection is another process's.
    pub local: Option<SocketAddr>,
    /// Where the server sees that connection.
    pub public: Option<SocketAddr>,
    /// The server's end.
    pub server: SocketAddr,
    /// What is put here goes to the relay; closed with the connection.
    pub relayed: mpsc::Sender<Relayed>,
}

/// What happens to a registration.
#[expect(
    clippy::large_enum_variant,
    reason = "few wait at once, and an introduction is the usual one"
)]
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
    Introduced(Introduction, ServerLink),
    /// The other side of a match is seen elsewhere now.
    Moved(MatchId, Public),
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
    /// Whether that is another process's.
    pub borrowed: bool,
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
    commands: mpsc::UnboundedSender<Command>,
    known: Arc<Mutex<Known>>,
    server: ServerAddress,
}

#[derive(Clone, Copy, Debug)]
enum Command {
    SeekAgain,
    SetInUse(bool),
    Lend(bool),
    StandAlone,
}

/// What the status tells.
#[derive(Debug, Default)]
struct Known {
    connected: bool,
    borrowed: bool,
    confirmed: Option<Instant>,
    tcp_public: Option<SocketAddr>,
    tcp_private: Option<SocketAddr>,
    stun: Vec<SocketAddr>,
}

impl Dialler {
    /// Has `dial` do it; it never waits.
    pub fn new(dial: impl Fn(oneshot::Sender<FirstFlight>) + Send + Sync + 'static) -> Self {
        Self(Arc::new(dial))
    }

    /// What QUIC says; `None` if it does not at once.
    async fn dial(&self) -> Option<FirstFlight> {
        let (said, first) = oneshot::channel();
        (self.0)(said);
        tokio::time::timeout(FIRST_FLIGHT, first).await.ok()?.ok()
    }
}

impl fmt::Debug for Dialler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Dialler")
    }
}

impl RelayInbox {
    /// Hands everything to `take`.
    pub fn new(take: impl Fn(Relayed) + Send + Sync + 'static) -> Self {
        Self(Arc::new(take))
    }

    fn put(&self, relayed: Relayed) {
        (self.0)(relayed);
    }
}

impl fmt::Debug for RelayInbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RelayInbox")
    }
}

impl Registration {
    /// Registers, and goes on doing so; what happens arrives at `events`, which has to be read.
    pub fn start(config: RegistrationConfig, events: mpsc::Sender<RendezvousEvent>) -> Self {
        let known = Arc::new(Mutex::new(Known::default()));
        let server = config.server.clone();
        // each command is a word of our own process, and is taken at once
        let (commands, inbox) = mpsc::unbounded_channel();
        let task = tokio::spawn(driver::run(config, events, inbox, known.clone()));
        Self { task, commands, known, server }
    }

    /// How it is doing.
    pub fn status(&self) -> RegistrationStatus {
        let known = lock(&self.known);
        RegistrationStatus {
            server: self.server.clone(),
            connected: known.connected,
            borrowed: known.borrowed,
            age: known.confirmed.map(|at| at.elapsed()),
            // that of another process's connection does not lead here
            tcp_public: known.tcp_public.filter(|_| !known.borrowed),
            tcp_private: known.tcp_private,
            stun: known.stun.clone(),
        }
    }

    /// As a client: asks for a new match now; a lost server is tried at once too.
    pub fn seek_again(&self) {
        // without a task there is nobody to ask
        let _ = self.commands.send(Command::SeekAgain);
    }

    /// Whether a session stands: the registration is then repeated every 5 s, else every 20 s. A
    /// client starts in use, a host idle.
    pub fn set_in_use(&self, in_use: bool) {
        let _ = self.commands.send(Command::SetInUse(in_use));
    }

    /// As a client: whether other processes may use this registration; at first not. It is for
    /// who reaches its host over UDP: TCP needs a connection of its own.
    pub fn set_lending(&self, lends: bool) {
        let _ = self.commands.send(Command::Lend(lends));
    }

    /// As a client: asks for a new match over a connection of our own.
    pub fn stand_alone(&self) {
        let _ = self.commands.send(Command::StandAlone);
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn lock(known: &Mutex<Known>) -> MutexGuard<'_, Known> {
    // plain values: whoever panicked left nothing half done
    known.lock().unwrap_or_else(PoisonError::into_inner)
}
