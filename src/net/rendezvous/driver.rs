//! Drives a registration's machine: connections, messages, time.

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::io::AsyncRead;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

use crate::limits::{FRAMES_QUEUED_MAX, RENDEZVOUS_INTERVAL};
use crate::net::daemon::random;
use crate::net::rendezvous::link::{self, Link};
use crate::net::rendezvous::loan::Loan;
use crate::net::rendezvous::loan::lend::{Lender, Loans};
use crate::net::rendezvous::{
    Command, Known, RecordedKey, RegistrationConfig, RelayInbox, RendezvousError, RendezvousEvent,
    ServerLink, Side, lock,
};
use crate::proto::PeerMisbehaved;
use crate::proto::rendezvous::Output;
use crate::proto::rendezvous::client::{ClientConfig, ClientSide};
use crate::proto::rendezvous::host::HostSide;
use crate::wire::rendezvous::{FromServer, Relayed, Routing, ToServer};

/// Between two attempts to connect: the first, and the longest.
const BACK_OFF: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(10));
/// Messages that have arrived and are not handled yet.
const INBOX: usize = 16;

/// Either side's machine.
enum Machine {
    Host(HostSide),
    Client(ClientSide),
}

struct Driver {
    config: RegistrationConfig,
    keys: watch::Receiver<Vec<RecordedKey>>,
    events: mpsc::Sender<RendezvousEvent>,
    commands: mpsc::UnboundedReceiver<Command>,
    known: Arc<Mutex<Known>>,
    machine: Machine,
    loan: Option<Arc<Loan>>,
    /// Not after the first connection: who has lost a loan registers itself.
    may_borrow: bool,
    lends: watch::Sender<bool>,
}

/// Nobody listens to our events any more.
struct Unwanted;

/// Why a connection ended.
enum End {
    Unwanted,
    /// It was another process's, and is not lent any longer.
    Alone,
    Lost(String),
}

pub(super) async fn run(
    config: RegistrationConfig,
    events: mpsc::Sender<RendezvousEvent>,
    commands: mpsc::UnboundedReceiver<Command>,
    known: Arc<Mutex<Known>>,
) {
    let (machine, keys) = match &config.side {
        Side::Host { mac, keys } => (Machine::Host(HostSide::new(*mac, random())), keys.clone()),
        Side::Client { pair_key, mac, host, .. } => {
            let client = ClientConfig {
                peer: config.secret.peer_id(),
                pair_key: pair_key.clone(),
                mac: *mac,
                host: *host,
            };
            (
                Machine::Client(ClientSide::new(client, random(), Instant::now())),
                watch::channel(Vec::new()).1,
            )
        }
    };
    let loan = loan_of(&config).map(Arc::new);
    let (may_borrow, lends) = (true, watch::channel(false).0);
    let mut driver =
        Driver { config, keys, events, commands, known, machine, loan, may_borrow, lends };
    // it ends only when nobody wants it
    let Unwanted = driver.keep_registered().await;
}

impl Driver {
    async fn keep_registered(&mut self) -> Unwanted {
        let mut pause = BACK_OFF.0;
        loop {
            let error = match self.connect().await {
                Ok(link) => {
                    let since = Instant::now();
                    match self.use_link(link).await {
                        End::Unwanted => return Unwanted,
                        End::Alone => continue,
                        End::Lost(why) => {
                            if since.elapsed() > RENDEZVOUS_INTERVAL {
                                pause = BACK_OFF.0;
                            }
                            RendezvousError::Unreachable(why)
                        }
                    }
                }
                Err(error) => error,
            };
            tracing::debug!(server = %self.config.server.host, %error, "no registration");
            if self.tell(RendezvousEvent::Lost { error }).await.is_err() {
                return Unwanted;
            }
            // everybody who lost a server would otherwise come back at the same instant
            let spread = f64::from(u16::from_le_bytes(random())) / f64::from(u16::MAX);
            self.rest(pause.mul_f64(0.75 + 0.5 * spread)).await;
            pause = (pause * 2).min(BACK_OFF.1);
        }
    }

    /// Over another process's connection, the first time, if one is lent; else over our own.
    async fn connect(&mut self) -> Result<Link, RendezvousError> {
        if let Some(loan) = &self.loan
            && std::mem::take(&mut self.may_borrow)
            && let Some(link) = loan.borrow().await
        {
            return Ok(link);
        }
        link::connect(&self.config.server, &self.config.secret).await
    }

    /// Waits for the next attempt, or until somebody is in a hurry.
    async fn rest(&mut self, pause: Duration) {
        let deadline = tokio::time::Instant::now() + pause;
        while let Ok(command) = tokio::time::timeout_at(deadline, next(&mut self.commands)).await {
            self.obey(command);
            if matches!(command, Command::SeekAgain | Command::StandAlone) {
                return;
            }
        }
    }

    async fn use_link(&mut self, link: Link) -> End {
        let Link { server, local, read, mut write } = link;
        let own = self.loan.as_ref().filter(|_| local.is_some());
        let mut lender =
            own.map(|loan| Lender::start(Arc::clone(loan), server, self.lends.subscribe()));
        let (arrived, mut inbox) = mpsc::channel(INBOX);
        // dropped, and with it the reader, when this connection ends
        let mut reader = JoinSet::new();
        let loans = lender.as_ref().map(Lender::loans);
        reader.spawn(read_all(read, arrived, self.config.relayed.clone(), loans));
        // closed when this connection ends: the relay is not reached over it any more
        let (relayed, mut to_relay) = mpsc::channel::<Relayed>(FRAMES_QUEUED_MAX);
        let mut relay_link = ServerLink { local, public: None, server, relayed };
        self.begin_link(local).await;
        let end = loop {
            relay_link.public = lock(&self.known).tcp_public;
            if let Err(end) = self.drain(&mut write, &relay_link).await {
                break end;
            }
            let wake = self.machine.poll_timeout();
            let to_send = tokio::select! {
                message = inbox.recv() => {
                    let message = match message {
                        Some(Ok(message)) if message.is_bounded() => message,
                        Some(Ok(_)) => break End::Lost("the server broke a bound".to_owned()),
                        Some(Err(error)) => break End::Lost(link::why(&error)),
                        None => break End::Lost("the connection ended".to_owned()),
                    };
                    if let Err(end) = self.take(message, &relay_link).await {
                        break end;
                    }
                    continue;
                }
                Some(relayed) = to_relay.recv() => ToServer::Relayed(relayed),
                message = lent(&mut lender) => message,
                () = changed(&mut self.config.routing) => {
                    self.take_news(local);
                    continue;
                }
                () = changed(&mut self.keys) => {
                    self.take_news(local);
                    continue;
                }
                command = next(&mut self.commands) => {
                    self.obey(command);
                    if matches!(command, Command::StandAlone) && local.is_none() {
                        break End::Alone;
                    }
                    continue;
                }
                () = until(wake) => {
                    self.machine.handle_timeout(Instant::now());
                    continue;
                }
                () = self.events.closed() => break End::Unwanted,
            };
            if let Err(error) = link::send(&mut write, &to_send).await {
                break End::Lost(link::why(&error));
            }
        };
        self.end_link(end, local.is_none())
    }

    /// There is no connection any more.
    fn end_link(&mut self, end: End, borrowed: bool) -> End {
        self.machine.handle_disconnected();
        {
            let mut known = lock(&self.known);
            (known.connected, known.borrowed) = (false, false);
            (known.tcp_private, known.tcp_public) = (None, None);
        }
        match end {
            End::Lost(why) if borrowed => {
                tracing::debug!(why, "the loan has ended");
                End::Alone
            }
            end => end,
        }
    }

    /// There is a connection.
    async fn begin_link(&mut self, local: Option<SocketAddr>) {
        {
            let mut known = lock(&self.known);
            (known.tcp_private, known.borrowed) = (local, local.is_none());
        }
        self.take_news(local);
        if let Machine::Client(client) = &mut self.machine
            && let Side::Client { first, .. } = &mut self.config.side
            && let Some(dialler) = first.take()
            && let Some(first) = dialler.dial().await
        {
            client.set_first_flight(first);
        }
        self.machine.handle_connected(Instant::now());
    }

    async fn take(&mut self, message: FromServer, link: &ServerLink) -> Result<(), End> {
        let welcome = match &message {
            FromServer::Welcome { observed, stun } => Some((*observed, stun.clone())),
            FromServer::Full { indices } if indices.is_empty() => {
                let why = "it is full, or has too many registrations of this key or this address";
                return Err(End::Lost(why.to_owned()));
            }
            _ => None,
        };
        self.machine
            .handle_message(message, Instant::now())
            .map_err(|error| End::Lost(error.to_string()))?;
        let Some((tcp_public, stun)) = welcome else {
            return Ok(());
        };
        let stun: Vec<_> = stun
            .into_iter()
            .map(|stun| {
                let ip = stun.ip.unwrap_or_else(|| link.server.ip().to_canonical());
                (ip, stun.port).into()
            })
            .collect();
        {
            let mut known = lock(&self.known);
            known.connected = true;
            known.tcp_public = Some(tcp_public);
            known.stun.clone_from(&stun);
        }
        self.tell(RendezvousEvent::Connected { stun, tcp_public }).await
    }

    /// Does what the machine wants.
    async fn drain(
        &mut self,
        write: &mut (impl tokio::io::AsyncWrite + Unpin),
        link: &ServerLink,
    ) -> Result<(), End> {
        while let Some(output) = self.machine.poll_output() {
            match output {
                Output::Send(message) => link::send(write, &message)
                    .await
                    .map_err(|error| End::Lost(link::why(&error)))?,
                Output::Confirmed => lock(&self.known).confirmed = Some(Instant::now()),
                Output::Introduced(introduction) => {
                    self.tell(RendezvousEvent::Introduced(introduction, link.clone())).await?;
                }
                Output::Moved(match_id, public) => {
                    self.tell(RendezvousEvent::Moved(match_id, public)).await?;
                }
                Output::NoMatch => self.tell(RendezvousEvent::NoMatch).await?,
                Output::Silent => return Err(End::Lost("the server went silent".to_owned())),
            }
        }
        Ok(())
    }

    async fn tell(&self, event: RendezvousEvent) -> Result<(), End> {
        self.events.send(event).await.map_err(|_| End::Unwanted)
    }

    fn obey(&mut self, command: Command) {
        let now = Instant::now();
        match (command, &mut self.machine) {
            (Command::SeekAgain | Command::StandAlone, Machine::Client(client)) => {
                client.seek_again(now);
            }
            (Command::SeekAgain | Command::StandAlone, Machine::Host(_)) => {}
            (Command::Lend(lends), _) => {
                self.lends.send_replace(lends);
            }
            (Command::SetInUse(in_use), Machine::Client(client)) => client.set_in_use(in_use, now),
            (Command::SetInUse(in_use), Machine::Host(host)) => host.set_in_use(in_use, now),
        }
    }

    /// Our routing and keys as they are now.
    fn take_news(&mut self, local: Option<SocketAddr>) {
        let now = Instant::now();
        let tcp_private = local.into_iter().collect();
        let routing = Routing { tcp_private, ..self.config.routing.borrow_and_update().clone() };
        match &mut self.machine {
            Machine::Client(client) => client.set_routing(routing, now),
            Machine::Host(host) => {
                host.set_routing(routing, now);
                host.set_keys(&self.keys.borrow_and_update(), now);
            }
        }
    }
}

impl Machine {
    fn handle_connected(&mut self, now: Instant) {
        match self {
            Self::Host(host) => host.handle_connected(now),
            Self::Client(client) => client.handle_connected(now),
        }
    }

    fn handle_disconnected(&mut self) {
        match self {
            Self::Host(host) => host.handle_disconnected(),
            Self::Client(client) => client.handle_disconnected(),
        }
    }

    fn handle_message(&mut self, message: FromServer, now: Instant) -> Result<(), PeerMisbehaved> {
        match self {
            Self::Host(host) => host.handle_message(message, now),
            Self::Client(client) => client.handle_message(message, now),
        }
    }

    fn handle_timeout(&mut self, now: Instant) {
        match self {
            Self::Host(host) => host.handle_timeout(now),
            Self::Client(client) => client.handle_timeout(now),
        }
    }

    fn poll_output(&mut self) -> Option<Output> {
        match self {
            Self::Host(host) => host.poll_output(),
            Self::Client(client) => client.poll_output(),
        }
    }

    fn poll_timeout(&self) -> Option<Instant> {
        match self {
            Self::Host(host) => host.poll_timeout(),
            Self::Client(client) => client.poll_timeout(),
        }
    }
}

/// What the server says: to us, to the relay's paths, to who has borrowed the connection.
async fn read_all(
    mut read: impl AsyncRead + Unpin,
    arrived: mpsc::Sender<io::Result<FromServer>>,
    relayed: Option<RelayInbox>,
    loans: Option<Loans>,
) {
    loop {
        let message = match (link::receive(&mut read).await, &relayed, &loans) {
            (Ok(FromServer::Relayed(datagrams)), relayed, _) => {
                if let Some(relayed) = relayed {
                    relayed.put(datagrams);
                }
                continue;
            }
            (Ok(FromServer::Branch(branch)), _, Some(loans)) => {
                loans.put(branch);
                continue;
            }
            (Ok(FromServer::EndBranch { branch }), _, Some(loans)) => {
                loans.end(branch);
                continue;
            }
            (message, ..) => message,
        };
        let ended = message.is_err();
        if arrived.send(message).await.is_err() || ended {
            return;
        }
    }
}

/// What a client lends, and borrows.
fn loan_of(config: &RegistrationConfig) -> Option<Loan> {
    let Side::Client { pair_key, loans: Some(dir), .. } = &config.side else {
        return None;
    };
    Some(Loan::new(dir, &config.secret, pair_key, &config.server))
}

/// A borrower's message; without a lender, never.
async fn lent(lender: &mut Option<Lender>) -> ToServer {
    match lender {
        Some(lender) => lender.next().await,
        None => std::future::pending().await,
    }
}

/// The next command; with the handle gone, never.
async fn next(commands: &mut mpsc::UnboundedReceiver<Command>) -> Command {
    match commands.recv().await {
        Some(command) => command,
        None => std::future::pending().await,
    }
}

/// A new value; with its sender gone, never.
async fn changed<T>(value: &mut watch::Receiver<T>) {
    if value.changed().await.is_err() {
        std::future::pending::<()>().await;
    }
}

async fn until(wake: Option<Instant>) {
    match wake {
        Some(at) => tokio::time::sleep_until(at.into()).await,
        None => std::future::pending().await,
    }
}
