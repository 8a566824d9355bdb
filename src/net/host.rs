//! The host's side: registered with its servers, it answers the clients that they introduce.

mod connection;
mod lane;
mod matches;
mod others;
mod redoing;
mod session;
mod syncing;
mod work;

use std::collections::{BTreeMap, HashSet};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::runtime::Handle;
use tokio::sync::{mpsc, watch};
use tokio::task::{JoinHandle, JoinSet};

use crate::address::ServerAddress;
use crate::failure::Failure;
use crate::id::{HostRun, SessionId};
use crate::identity::{MacAddress, SecretKey};
use crate::limits::SESSION_LINGER;
use crate::net::daemon;
use crate::net::endpoint::{Endpoint, Meet, PathEvent, PathInfo, path_json};
use crate::net::nat::routing_json;
use crate::net::quic;
use crate::net::rendezvous::{
    Introduction, RecordedKey, Registration, RegistrationConfig, RendezvousEvent, ServerLink, Side,
};
use crate::net::serve::{Policy, Review};
use crate::proto::path::{self, Wanted};
use crate::wire::probe::Role;
use crate::wire::session::CloseReason;

use self::matches::{Introduced, Matches};
use self::redoing::Redoing;
use self::session::HostSession;
use self::syncing::Neighbours;
use self::work::Work;

/// How often sessions without a connection are looked for.
const TICK: Duration = Duration::from_secs(1);

/// How often what is kept for clients that stay away is looked at.
const SWEEP: Duration = Duration::from_hours(1);
/// How long the end of a host waits for the disk, and for clients to hear of it.
const SETTLE_MAX: Duration = Duration::from_secs(5);

/// What a host needs to run.
pub struct HostConfig {
    /// The host's own key.
    pub secret: SecretKey,
    /// Its MAC address (R22).
    pub mac: MacAddress,
    /// Its name, for people.
    pub name: String,
    /// The UDP address to bind; any free port without.
    pub listen: Option<SocketAddr>,
    /// Which side of a TCP path it may be.
    pub role: path::Side,
    /// When a client that has not come is asked to identify itself (authentication 140).
    pub auth_wait: Duration,
    /// Where clients ask for it.
    pub servers: Vec<ServerAddress>,
    /// The recorded keys, authorised or not; kept up to date.
    pub keys: watch::Receiver<Vec<RecordedKey>>,
    /// The owner's rules.
    pub policy: Arc<dyn Policy>,
    /// Whether brief work for the disk is done on the runtime's own threads. One of them is kept in
    /// reserve for when the disk makes another wait, so there must be one more than the network
    /// needs.
    pub reserve: bool,
}

/// A running host.
pub struct Host {
    shared: Arc<Shared>,
    tasks: Vec<JoinHandle<()>>,
}

/// What connections and the host share.
struct Shared {
    secret: SecretKey,
    name: String,
    mac: MacAddress,
    run: HostRun,
    policy: Arc<dyn Policy>,
    endpoint: Endpoint,
    quic: quinn::ServerConfig,
    role: path::Side,
    auth_wait: Duration,
    work: Work,
    redoing: Redoing,
    neighbours: Neighbours,
    registrations: Mutex<Vec<Registration>>,
    state: Mutex<HostState>,
}

struct HostState {
    matches: Matches,
    sessions: BTreeMap<SessionId, Arc<HostSession>>,
}

impl Host {
    /// Opens the socket and registers with the servers, which need not be reachable.
    ///
    /// # Errors
    ///
    /// The UDP socket cannot be opened.
    pub fn start(config: HostConfig) -> Result<Self, Failure> {
        let quic = quic::server_config(&config.secret)?;
        let endpoint = Endpoint::start(config.listen, Some(quic.clone()), Some(config.mac))?;
        let (events_in, events) = mpsc::channel(64);
        let register = |server| {
            let side = Side::Host { mac: config.mac, keys: config.keys.clone() };
            let secret = config.secret.clone();
            let routing = endpoint.routing();
            let relayed = Some(endpoint.relay_inbox());
            let config = RegistrationConfig { secret, server, side, routing, relayed };
            Registration::start(config, events_in.clone())
        };
        let registrations = config.servers.iter().cloned().map(register).collect();
        let shared = Arc::new(Shared {
            secret: config.secret,
            name: config.name,
            mac: config.mac,
            run: HostRun(u64::from_be_bytes(daemon::random())),
            policy: config.policy,
            endpoint,
            quic,
            role: config.role,
            auth_wait: config.auth_wait,
            work: if config.reserve { Work::here(&Handle::current()) } else { Work::elsewhere() },
            redoing: Redoing::new(Instant::now()),
            neighbours: Neighbours::default(),
            registrations: Mutex::new(registrations),
            state: Mutex::new(HostState {
                matches: Matches::new(config.auth_wait),
                sessions: BTreeMap::new(),
            }),
        });
        let tasks = vec![
            tokio::spawn(Arc::clone(&shared).follow_rendezvous(events)),
            tokio::spawn(Arc::clone(&shared).accept()),
            tokio::spawn(Arc::clone(&shared).tidy()),
        ];
        Ok(Self { shared, tasks })
    }

    /// What `status --json` shows of the network: routing, servers, peers, sessions. May wait for a
    /// disk.
    pub fn status(&self) -> Value {
        self.shared.status()
    }

    /// Has the owner's rules look at all sessions: those that they would not approve now are over.
    /// May wait for a disk.
    pub fn review(&self) {
        self.shared.review();
    }

    /// Puts what clients changed on the disk, as far as that takes no longer than five seconds,
    /// and says goodbye to them.
    pub async fn shutdown(&self) {
        let mut settling: JoinSet<()> = {
            let state = self.shared.lock();
            state.sessions.values().map(|session| Arc::clone(session).settle()).collect()
        };
        let settled = async { while settling.join_next().await.is_some() {} };
        if tokio::time::timeout(SETTLE_MAX, settled).await.is_err() {
            tracing::warn!("the disk is slow: what it did not take is sent again after a boot");
        }
        for (_, session) in std::mem::take(&mut self.shared.lock().sessions) {
            session.close(CloseReason::Done);
        }
        let farewell = self.shared.endpoint.quic.wait_idle();
        let _ = tokio::time::timeout(Duration::from_millis(500), farewell).await;
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
        // Connections and matches hold on to what is shared: without socket and server they end
        self.shared.registrations().clear();
        self.shared.endpoint.stop();
        self.shared.work.end();
    }
}

impl Shared {
    async fn follow_rendezvous(self: Arc<Self>, mut events: mpsc::Receiver<RendezvousEvent>) {
        while let Some(event) = events.recv().await {
            // a server that introduces faster than we can look at it waits
            let turn = self.endpoint.turn().await;
            match event {
                RendezvousEvent::Connected { .. } => {
                    let all: Vec<SocketAddr> =
                        self.registrations().iter().flat_map(|one| one.status().stun).collect();
                    self.endpoint.set_stun_servers(all);
                }
                RendezvousEvent::Lost { error } => tracing::warn!(%error, "not registered"),
                RendezvousEvent::Introduced(introduction, link) => {
                    Arc::clone(&self).meet(introduction, link);
                }
                RendezvousEvent::Moved(match_id, public) => self.endpoint.moved(match_id, public),
                RendezvousEvent::NoMatch => {}
            }
            self.endpoint.end_turn(turn);
        }
    }

    /// A client is looking for a path to us: so do we.
    fn meet(self: Arc<Self>, introduction: Introduction, link: ServerLink) {
        let (peer, routing) = (introduction.peer, introduction.routing.clone());
        let wanted = Wanted { side: self.role, ..Wanted::default() };
        let (role, ask_after) = (Role::Host, Some(self.auth_wait));
        let meet = Meet { introduction, link, role, wanted, ask_after, peer: None };
        // what it has said already is looked at when it is known
        let mut state = self.lock();
        let in_use = state.in_use();
        for over in state.matches.make_room(peer, &in_use) {
            self.endpoint.remove(over);
        }
        let (handle, mut events) = self.endpoint.meet(meet);
        state.matches.insert(Introduced::new(peer, handle, routing, Instant::now()));
        drop(state);
        tokio::spawn(async move {
            while let Some(event) = events.recv().await {
                let mut state = self.lock();
                let Some(one) = state.matches.find_mut(handle.address()) else {
                    break;
                };
                match event {
                    PathEvent::Up(path) => one.path = Some(path),
                    PathEvent::Down => one.path = None,
                    PathEvent::Tried(tried) => one.tried = tried,
                    PathEvent::Asked => {}
                }
                one.quiet_since = Instant::now();
            }
            self.lock().matches.remove(handle.address());
        });
    }

    /// See [`Host::review`].
    fn review(&self) {
        let sessions: Vec<_> = self.lock().sessions.values().cloned().collect();
        for session in sessions {
            let (peer, rights) = session.rights();
            match self.policy.review(peer, &rights) {
                Review::Stands => {}
                Review::ReadOnly => session.restrict(),
                Review::Over(why) => {
                    tracing::info!(?peer, ?why, "the rules end a session");
                    let mut state = self.lock();
                    state.sessions.retain(|_, one| !Arc::ptr_eq(one, &session));
                    state.matches.disapprove(peer, Instant::now());
                    drop(state);
                    session.end_for(why);
                }
            }
        }
    }

    async fn accept(self: Arc<Self>) {
        while let Some(incoming) = self.endpoint.quic.accept().await {
            let mut state = self.lock();
            let Some(introduced) = state.matches.find(incoming.remote_address()).cloned() else {
                incoming.ignore();
                continue;
            };
            let Some(knock) = state.matches.knock(&introduced, Instant::now()) else {
                tracing::debug!(peer = ?introduced.peer, "too many connections at once");
                incoming.refuse();
                continue;
            };
            drop(state);
            tokio::spawn(connection::serve(Arc::clone(&self), incoming, introduced, knock));
        }
    }

    /// Forgets sessions whose client stays away, and peers that have neither path nor connection.
    async fn tidy(self: Arc<Self>) {
        let mut tick = tokio::time::interval(TICK);
        let mut swept = Instant::now();
        loop {
            tick.tick().await;
            let now = Instant::now();
            if now.duration_since(swept) >= SWEEP {
                swept = now;
                let policy = Arc::clone(&self.policy);
                tokio::task::spawn_blocking(move || policy.sweep());
            }
            let mut in_use = false;
            let gone = {
                let mut state = self.lock();
                state.sessions.retain(|_, session| {
                    in_use |= session.is_connected();
                    let stays = session.idle(now).is_none_or(|idle| idle < SESSION_LINGER);
                    if !stays {
                        session.leave();
                    }
                    stays
                });
                let connected = state.in_use();
                state.matches.tidy(&connected, now)
            };
            for peer in gone {
                self.endpoint.remove(peer);
            }
            self.endpoint.set_in_use(in_use);
            for registration in self.registrations().iter() {
                registration.set_in_use(in_use);
            }
        }
    }

    fn status(&self) -> Value {
        let now = others::now();
        let absent = self.absent().into_iter().map(|one| one.to_json(now));
        let absent: Vec<Value> = absent.collect();
        let mut own = self.endpoint.routing().borrow().clone();
        let statuses: Vec<_> = self.registrations().iter().map(Registration::status).collect();
        own.tcp_public = statuses.iter().find_map(|status| status.tcp_public);
        own.tcp_private = statuses.iter().filter_map(|status| status.tcp_private).collect();
        let servers: Vec<Value> = statuses
            .iter()
            .map(|status| {
                json!({
                    "address": status.server.to_string(),
                    "connected": status.connected,
                    "age_s": status.age.map(|age| age.as_secs_f64()),
                })
            })
            .collect();
        let state = self.lock();
        let sessions: Vec<Value> = state
            .sessions
            .values()
            .map(|session| {
                let peer = session.remote().and_then(|remote| state.matches.find(remote));
                let tried = peer.map_or(&[][..], |peer| &peer.tried);
                let path = path_json(peer.and_then(|peer| peer.path.as_ref()), tried);
                session.status(path, peer.map(|peer| &peer.routing))
            })
            .collect();
        let age = statuses.iter().filter_map(|status| status.age).min();
        json!({
            "routing": { "own": routing_json(&own) },
            "servers": servers,
            "rendezvous": { "age_s": age.map(|age| age.as_secs_f64()) },
            "sessions": sessions,
            "absent": absent,
        })
    }

    /// The path of a peer now; before one is chosen, what its data came over.
    fn path_of(&self, introduced: &Introduced) -> Option<PathInfo> {
        let chosen = {
            let state = self.lock();
            state.matches.find(introduced.handle.address()).and_then(|one| one.path.clone())
        };
        chosen.or_else(|| self.endpoint.first_path(introduced.handle))
    }

    fn registrations(&self) -> MutexGuard<'_, Vec<Registration>> {
        self.registrations.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Maps are changed in whole steps, so a panic elsewhere does not spoil them.
    fn lock(&self) -> MutexGuard<'_, HostState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl HostState {
    /// The peers that sessions are connected to.
    fn in_use(&self) -> HashSet<SocketAddr> {
        self.sessions.values().filter_map(|session| session.remote()).collect()
    }
}

impl std::fmt::Debug for Host {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Host").field("name", &self.shared.name).finish_non_exhaustive()
    }
}

impl std::fmt::Debug for HostConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("HostConfig").field("name", &self.name).finish_non_exhaustive()
    }
}
