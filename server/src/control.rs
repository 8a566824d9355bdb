//! The TCP side: one TLS connection for each daemon, one matcher for all.

mod branches;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use p2pfs::identity::{PeerId, SecretKey};
use p2pfs::limits::{RELAYED_BYTES_MAX, SERVER_PEERS_MAX};
use p2pfs::net::daemon::random;
use p2pfs::net::rendezvous::{Acceptor, receive, send};
use p2pfs::proto::rendezvous::matcher::{Link, Matcher, MatcherOutput, MatcherStats};
use p2pfs::wire::rendezvous::{FromServer, StunAddress, ToServer};
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::task::JoinSet;

use self::branches::{Branches, Links};
use crate::quota::Quota;
use crate::relay::Relay;

/// For TLS: who is slower is dropped.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// Handshakes under way at once: what they cost in memory and work is bounded.
const HANDSHAKES_MAX: usize = 1024;
/// Connections of one address at once, and the time in which it may make one more.
const CONNECTIONS: (u32, Duration) = (64, Duration::from_millis(200));
/// After `accept` failed, for want of file descriptors mostly.
const PAUSE: Duration = Duration::from_millis(100);
/// What has arrived from all and is not handled yet; who sends then waits.
const INBOX: usize = 1024;
/// What is to be sent to one daemon; who is slower than that is dropped.
const OUTBOX: usize = 256;

/// The way to the task that owns the matcher.
#[derive(Clone, Debug)]
pub(crate) struct Hub(mpsc::Sender<Input>);

enum Input {
    Connected { link: Link, key: PeerId, observed: SocketAddr, outbox: mpsc::Sender<FromServer> },
    Branched { link: Link, trunk: Link, outbox: mpsc::Sender<FromServer> },
    Message(Link, ToServer),
    Disconnected(Link),
    Stats(oneshot::Sender<MatcherStats>),
}

impl Hub {
    /// Starts the matcher; `stun` is what the daemons are told, `relay` what they may use.
    pub(crate) fn start(
        stun: Vec<StunAddress>,
        relay: Option<Arc<Relay>>,
        tasks: &mut JoinSet<()>,
    ) -> Self {
        let (hub, inbox) = mpsc::channel(INBOX);
        let matcher = Matcher::new(stun, relay.is_some(), random());
        tasks.spawn(match_all(matcher, inbox, relay));
        Self(hub)
    }

    /// `None` while the server ends.
    pub(crate) async fn stats(&self) -> Option<MatcherStats> {
        let (answer, stats) = oneshot::channel();
        self.0.send(Input::Stats(answer)).await.ok()?;
        stats.await.ok()
    }
}

/// Owns the matcher: inputs in, outputs to the connections' outboxes.
async fn match_all(
    mut matcher: Matcher,
    mut inbox: mpsc::Receiver<Input>,
    relay: Option<Arc<Relay>>,
) {
    // dropping an outbox closes its connection
    let mut outboxes: BTreeMap<Link, mpsc::Sender<FromServer>> = BTreeMap::new();
    loop {
        let wake = matcher.poll_timeout();
        tokio::select! {
            input = inbox.recv() => match input {
                Some(input) => handle(input, &mut matcher, &mut outboxes),
                None => return,
            },
            () = until(wake) => matcher.handle_timeout(Instant::now()),
        }
        while let Some(output) = matcher.poll_output() {
            match output {
                MatcherOutput::Send(to, message) => {
                    if outboxes.get(&to).is_some_and(|outbox| outbox.try_send(message).is_err()) {
                        tracing::debug!(link = to.0, "too slow, or gone");
                        outboxes.remove(&to);
                        matcher.handle_disconnected(to, Instant::now());
                    }
                }
                MatcherOutput::Close(link) => {
                    outboxes.remove(&link);
                }
                MatcherOutput::OpenRelay { match_id, sides } => {
                    if let Some(relay) = &relay {
                        relay.open(match_id, sides);
                    }
                }
                MatcherOutput::CloseRelay(match_id) => {
                    if let Some(relay) = &relay {
                        relay.close(match_id);
                    }
                }
            }
        }
    }
}

fn handle(
    input: Input,
    matcher: &mut Matcher,
    outboxes: &mut BTreeMap<Link, mpsc::Sender<FromServer>>,
) {
    let now = Instant::now();
    match input {
        Input::Connected { link, key, observed, outbox } => {
            match matcher.handle_connected(link, key, observed, now) {
                Ok(()) => {
                    outboxes.insert(link, outbox);
                }
                Err(error) => tracing::warn!(%error, "a connection is refused"),
            }
        }
        // dropping its outbox tells the client
        Input::Branched { link, trunk, outbox } => {
            match matcher.handle_branched(link, trunk, now) {
                Ok(()) => {
                    outboxes.insert(link, outbox);
                }
                Err(error) => tracing::debug!(trunk = trunk.0, %error, "no branch"),
            }
        }
        Input::Message(link, message) => {
            if let Err(error) = matcher.handle_message(link, message, now) {
                tracing::debug!(link = link.0, %error, "closed");
                outboxes.remove(&link);
                matcher.handle_disconnected(link, now);
            }
        }
        Input::Disconnected(link) => {
            outboxes.remove(&link);
            matcher.handle_disconnected(link, now);
        }
        // who asked may have left
        Input::Stats(answer) => drop(answer.send(matcher.stats())),
    }
}

/// Accepts daemons.
pub(crate) async fn serve(listener: TcpListener, secret: SecretKey, hub: Hub, relay: Arc<Relay>) {
    let acceptor = Acceptor::new(&secret);
    let handshakes = Arc::new(Semaphore::new(HANDSHAKES_MAX));
    let mut quota = Quota::new(CONNECTIONS.0, CONNECTIONS.1);
    let mut connections = JoinSet::new();
    let links = Links::default();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((tcp, from)) => {
                    let Some(observed) = welcome(from, &mut quota, connections.len()) else {
                        continue;
                    };
                    let (link, links) = (links.next(), links.clone());
                    let (acceptor, hub, relay) = (acceptor.clone(), hub.clone(), relay.clone());
                    let handshakes = handshakes.clone();
                    connections.spawn(async move {
                        let Ok(turn) = handshakes.try_acquire_owned() else {
                            return;
                        };
                        let shaken =
                            tokio::time::timeout(HANDSHAKE_TIMEOUT, acceptor.accept(tcp)).await;
                        drop(turn);
                        match shaken {
                            Ok(Ok((key, stream))) => {
                                let daemon = Daemon { link, key, observed };
                                talk(stream, daemon, &links, &hub, &relay).await;
                            }
                            Ok(Err(error)) => tracing::debug!(%observed, %error, "no handshake"),
                            Err(_) => tracing::debug!(%observed, "too slow a handshake"),
                        }
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot accept connections");
                    tokio::time::sleep(PAUSE).await;
                }
            },
            Some(_) = connections.join_next() => {}
        }
    }
}

/// Whether somebody may come in, and as whom.
fn welcome(from: SocketAddr, quota: &mut Quota, present: usize) -> Option<SocketAddr> {
    let observed = SocketAddr::new(from.ip().to_canonical(), from.port());
    let admitted =
        present < SERVER_PEERS_MAX + HANDSHAKES_MAX && quota.admit(observed.ip(), Instant::now());
    if !admitted {
        tracing::debug!(%observed, "too many connections");
    }
    admitted.then_some(observed)
}

/// Who has connected.
struct Daemon {
    link: Link,
    key: PeerId,
    observed: SocketAddr,
}

/// One daemon's connection, until either side ends it.
async fn talk<S>(stream: S, daemon: Daemon, links: &Links, hub: &Hub, relay: &Arc<Relay>)
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
{
    let Daemon { link, key, observed } = daemon;
    let (mut read, mut write) = tokio::io::split(stream);
    let (outbox, mut outgoing) = mpsc::channel::<FromServer>(OUTBOX);
    let mut relayed = relay.join(link, observed.ip());
    let connected = Input::Connected { link, key, observed, outbox };
    if hub.0.send(connected).await.is_err() {
        relay.leave(link);
        return;
    }
    let (mut branches, mut branched) = Branches::new(link, observed.ip(), links, hub, relay);
    let reading = async {
        while let Ok(message) = receive::<ToServer>(&mut read).await {
            let taken = match message {
                ToServer::Relayed(datagrams) if datagrams.bytes.len() > RELAYED_BYTES_MAX => None,
                ToServer::Relayed(datagrams) => {
                    relay.handle_relayed(link, datagrams);
                    Some(())
                }
                ToServer::Branch(branch) => branches.handle(branch).await,
                ToServer::EndBranch { branch } => branches.end(branch).await,
                message => hub.0.send(Input::Message(link, message)).await.ok(),
            };
            if taken.is_none() {
                return;
            }
        }
    };
    let writing = async {
        loop {
            let message = tokio::select! {
                biased;
                message = outgoing.recv() => match message {
                    Some(message) => message,
                    None => return,
                },
                Some(message) = branched.recv() => message,
                Some(datagrams) = relayed.recv() => FromServer::Relayed(datagrams),
            };
            if send(&mut write, &message).await.is_err() {
                return;
            }
        }
    };
    tokio::select! {
        () = reading => {}
        () = writing => {}
    }
    branches.end_all().await;
    relay.leave(link);
    // the matcher's task is gone only when the server ends
    let _ = hub.0.send(Input::Disconnected(link)).await;
}

async fn until(wake: Option<Instant>) {
    match wake {
        Some(at) => tokio::time::sleep_until(at.into()).await,
        None => std::future::pending().await,
    }
}
