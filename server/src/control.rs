//! The TCP side: one TLS connection for each daemon, one matcher for all.

mod branches;

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use p2pfs::identity::{PeerId, SecretKey};
use p2pfs::limits::{RELAYED_BYTES_MAX, SERVER_PEERS_MAX};
use p2pfs::net::daemon::random;
use p2pfs::net::rendezvous::{Acceptor, receive, send};
use p2pfs::proto::rendezvous::matcher::{Link, Matcher, MatcherOutput, MatcherStats};
use p2pfs::proto::shares::Shares;
use p2pfs::wire::rendezvous::{FromServer, StunAddress, ToServer};
use tokio::net::TcpListener;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio::task::JoinSet;

use self::branches::{Branches, Links};
use crate::quota::Quota;
use crate::relay::Relay;

/// For TLS: who is slower is dropped.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// Handshakes under way at once: what they cost in memory and work is bounded.
const HANDSHAKES_MAX: usize = 1024;
/// Of those, how many one address may have, and how many one site's IPv6 networks: who does not
/// finish them holds up nobody else.
const HANDSHAKES_OF_ONE: (usize, usize) = (64, 128);
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
                    let Some(outbox) = outboxes.get(&to) else { continue };
                    // peers decide how often they move: what else there is keeps its room
                    if matches!(message, FromServer::Moved { .. })
                        && outbox.capacity() <= OUTBOX / 2
                    {
                        tracing::debug!(link = to.0, "its peers move too often");
                    } else if outbox.try_send(message).is_err() {
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
                Err(error) => {
                    tracing::debug!(%error, %observed, "a connection is refused");
                    // an outbox that is empty has room
                    let _ = outbox.try_send(FromServer::Full { indices: Vec::new() });
                }
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
    let handshakes = Handshakes::new();
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
                    let Some(turn) = handshakes.begin(observed.ip()) else {
                        tracing::debug!(%observed, "too many handshakes");
                        continue;
                    };
                    connections.spawn(async move {
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

/// The handshakes that are under way.
struct Handshakes {
    all: Arc<Semaphore>,
    shares: Arc<Mutex<Shares>>,
}

/// One of them, until it is dropped.
struct Handshake {
    _turn: OwnedSemaphorePermit,
    from: IpAddr,
    shares: Arc<Mutex<Shares>>,
}

impl Handshakes {
    fn new() -> Self {
        let (of_address, of_site) = HANDSHAKES_OF_ONE;
        let all = Arc::new(Semaphore::new(HANDSHAKES_MAX));
        Self { all, shares: Arc::new(Mutex::new(Shares::new(of_address, of_site))) }
    }

    /// One more, if there may be.
    fn begin(&self, from: IpAddr) -> Option<Handshake> {
        let turn = Arc::clone(&self.all).try_acquire_owned().ok()?;
        let taken = lock(&self.shares).take(from);
        taken.then(|| Handshake { _turn: turn, from, shares: Arc::clone(&self.shares) })
    }
}

impl Drop for Handshake {
    fn drop(&mut self) {
        lock(&self.shares).give_back(self.from);
    }
}

/// Counters are changed in whole steps, so a panic elsewhere does not spoil them.
fn lock(shares: &Mutex<Shares>) -> MutexGuard<'_, Shares> {
    shares.lock().unwrap_or_else(PoisonError::into_inner)
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

#[cfg(test)]
mod tests {
    use super::*;
    use p2pfs::identity::BlindedMac;
    use p2pfs::limits::RELAYS_PER_CLIENT_MAX;
    use p2pfs::wire::rendezvous::{Role, Sealed};

    const HOST: Link = Link(1);
    const CLIENT: Link = Link(2);

    #[test]
    fn half_open_handshakes_of_one_network_leave_room_for_others() {
        let handshakes = Handshakes::new();
        let begin = |from: &str, tries: usize| -> Vec<Handshake> {
            let from = from.parse().unwrap();
            (0..tries).filter_map(|_| handshakes.begin(from)).collect()
        };
        let theirs = begin("203.0.113.1", 2000);
        assert_eq!(theirs.len(), 64);
        let networks: Vec<_> =
            (0..256).map(|net| begin(&format!("2001:db8:0:{net:x}::1"), 64)).collect();
        assert_eq!(networks.iter().flatten().count(), 128);
        assert_eq!(begin("203.0.113.2", 2000).len(), 64);
        drop(theirs);
        assert_eq!(begin("203.0.113.1", 9).len(), 9);
    }

    async fn connect(hub: &Hub, link: Link, role: Role) -> mpsc::Receiver<FromServer> {
        let (outbox, out) = mpsc::channel(OUTBOX);
        let key = SecretKey::from_seed([u8::try_from(link.0).unwrap(); 32]).peer_id();
        let observed = ([203, 0, 113, 7], 9).into();
        let connected = Input::Connected { link, key, observed, outbox };
        assert!(hub.0.send(connected).await.is_ok());
        say(hub, link, ToServer::Hello { role }).await;
        out
    }

    async fn say(hub: &Hub, link: Link, message: ToServer) {
        assert!(hub.0.send(Input::Message(link, message)).await.is_ok());
    }

    #[tokio::test]
    async fn a_client_that_moves_without_end_does_not_push_its_host_out() {
        let mut tasks = JoinSet::new();
        let hub = Hub::start(Vec::new(), None, &mut tasks);
        let mut host = connect(&hub, HOST, Role::Host).await;
        let mut client = connect(&hub, CLIENT, Role::Client).await;
        let index = BlindedMac([7; 16]);
        say(&hub, HOST, ToServer::Register { indices: vec![index] }).await;
        let sealed = Sealed { nonce: [0; 24], bytes: vec![0; 9] };
        for _ in 0..RELAYS_PER_CLIENT_MAX {
            say(&hub, CLIENT, ToServer::Seek { index, sealed: sealed.clone() }).await;
            let match_id = loop {
                if let FromServer::Sought { match_id, .. } = host.recv().await.unwrap() {
                    break match_id;
                }
            };
            say(&hub, HOST, ToServer::Accept { match_id, sealed: sealed.clone() }).await;
            while !matches!(client.recv().await.unwrap(), FromServer::Introduced { .. }) {}
        }
        for port in 1..=40 {
            let udp_public = Some(([203, 0, 113, 7], port).into());
            say(&hub, CLIENT, ToServer::Refresh { number: 1, udp_public }).await;
        }
        say(&hub, HOST, ToServer::Refresh { number: 77, udp_public: None }).await;
        assert!(hub.stats().await.is_some_and(|stats| stats.hosts == 1));
        let mut moved = 0;
        while let Some(message) = host.recv().await {
            match message {
                FromServer::Confirmed { number: 77 } => break,
                FromServer::Moved { .. } => moved += 1,
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(moved, OUTBOX / 2);
    }

    #[tokio::test]
    async fn who_is_one_too_many_is_told() {
        let mut tasks = JoinSet::new();
        let hub = Hub::start(Vec::new(), None, &mut tasks);
        let key = SecretKey::from_seed([9; 32]).peer_id();
        let observed = ([203, 0, 113, 7], 9).into();
        let mut all = Vec::new();
        let refused = loop {
            let link = Link(u64::try_from(all.len()).unwrap());
            let (outbox, mut out) = mpsc::channel(OUTBOX);
            assert!(hub.0.send(Input::Connected { link, key, observed, outbox }).await.is_ok());
            assert!(hub.stats().await.is_some());
            match out.try_recv() {
                Ok(message) => break (message, out.recv().await),
                Err(_) => all.push(out),
            }
        };
        assert_eq!(refused, (FromServer::Full { indices: Vec::new() }, None));
        assert_eq!(all.len(), p2pfs::limits::SERVER_PEERS_PER_KEY_MAX);
    }
}
