//! Who was introduced, and for how long the host keeps that in mind: a recorded key may ask for
//! matches without end.

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::identity::PeerId;
use crate::limits::{
    HANDSHAKE, KNOCKS_MAX, KNOCKS_PER_KEY_MAX, KNOCKS_TOTAL_MAX, MATCHES_PER_KEY_MAX,
    PATHLESS_PER_KEY_MAX, SESSION_LINGER,
};
use crate::net::endpoint::PathInfo;
use crate::net::pathmux::Virtual;
use crate::proto::ladder::Tried;
use crate::wire::rendezvous::Routing;

/// How long a client may have a path and say nothing of who it is, beside the time in which it is
/// asked: several handshakes on a bad line.
const UNIDENTIFIED_MAX: Duration = HANDSHAKE.saturating_mul(6);

/// A client that was introduced.
#[derive(Clone)]
pub(super) struct Introduced {
    pub(super) peer: PeerId,
    pub(super) handle: Virtual,
    pub(super) routing: Routing,
    pub(super) path: Option<PathInfo>,
    pub(super) tried: Vec<Tried>,
    pub(super) quiet_since: Instant,
    /// Since when no session is connected over it, and nobody asked for one.
    idle_since: Instant,
    /// Whether one ever was.
    approved: bool,
    /// For connections that have not identified themselves yet.
    knocks: Arc<Semaphore>,
}

/// The place of a connection among those that nobody has approved yet: of its match, of its key, of
/// all.
pub(super) struct Knock {
    _places: [OwnedSemaphorePermit; 3],
}

/// All that were introduced, by the address that quinn knows.
pub(super) struct Matches {
    all: HashMap<SocketAddr, Introduced>,
    knocks: Arc<Semaphore>,
    knocks_of_key: HashMap<PeerId, Arc<Semaphore>>,
    /// When a client that has not come is asked who it is.
    auth_wait: Duration,
}

impl Introduced {
    pub(super) fn new(peer: PeerId, handle: Virtual, routing: Routing, now: Instant) -> Self {
        Self {
            peer,
            handle,
            routing,
            path: None,
            tried: Vec::new(),
            quiet_since: now,
            idle_since: now,
            approved: false,
            knocks: Arc::new(Semaphore::new(KNOCKS_MAX)),
        }
    }
}

impl Matches {
    pub(super) fn new(auth_wait: Duration) -> Self {
        let knocks = Arc::new(Semaphore::new(KNOCKS_TOTAL_MAX));
        Self { all: HashMap::new(), knocks, knocks_of_key: HashMap::new(), auth_wait }
    }

    pub(super) fn insert(&mut self, one: Introduced) {
        self.all.insert(one.handle.address(), one);
    }

    pub(super) fn find(&self, at: SocketAddr) -> Option<&Introduced> {
        self.all.get(&at)
    }

    pub(super) fn find_mut(&mut self, at: SocketAddr) -> Option<&mut Introduced> {
        self.all.get_mut(&at)
    }

    pub(super) fn remove(&mut self, at: SocketAddr) {
        self.all.remove(&at);
    }

    /// A connection knocks; `None` if there are too many that have not identified themselves. Who
    /// is denied may ask again over the same match.
    pub(super) fn knock(&mut self, one: &Introduced, now: Instant) -> Option<Knock> {
        let of_key = self.knocks_of_key.entry(one.peer);
        let of_key = of_key.or_insert_with(|| Arc::new(Semaphore::new(KNOCKS_PER_KEY_MAX)));
        let place = |knocks: &Arc<Semaphore>| Arc::clone(knocks).try_acquire_owned().ok();
        let places = [place(&one.knocks)?, place(of_key)?, place(&self.knocks)?];
        if let Some(known) = self.all.get_mut(&one.handle.address()) {
            known.idle_since = now;
        }
        Some(Knock { _places: places })
    }

    /// One more of this key comes: the one goes that has found no path for the longest time, and
    /// the one that no session has used for the longest time, each if there are too many. `in_use`:
    /// what sessions are connected over.
    pub(super) fn make_room(&mut self, peer: PeerId, in_use: &HashSet<SocketAddr>) -> Vec<Virtual> {
        let idle = |one: &&Introduced| one.peer == peer && !in_use.contains(&one.handle.address());
        let mut over = Vec::new();
        let pathless: Vec<_> =
            self.all.values().filter(|one| one.peer == peer && one.path.is_none()).collect();
        if pathless.len() >= PATHLESS_PER_KEY_MAX {
            over.extend(pathless.iter().min_by_key(|one| one.quiet_since).map(|one| one.handle));
        }
        let idle: Vec<_> = self.all.values().filter(idle).collect();
        if over.is_empty() && idle.len() >= MATCHES_PER_KEY_MAX {
            over.extend(idle.iter().min_by_key(|one| one.idle_since).map(|one| one.handle));
        }
        for one in &over {
            self.all.remove(&one.address());
        }
        over
    }

    /// Forgets who has neither path nor connection for long, and who has a path and has not
    /// identified itself over it.
    pub(super) fn tidy(&mut self, in_use: &HashSet<SocketAddr>, now: Instant) -> Vec<Virtual> {
        let unidentified = UNIDENTIFIED_MAX + self.auth_wait;
        let mut over = Vec::new();
        self.all.retain(|at, one| {
            if in_use.contains(at) {
                (one.idle_since, one.approved) = (now, true);
            }
            let patience = if one.approved { SESSION_LINGER } else { unidentified };
            let quiet = one.path.is_none() && now > one.quiet_since + SESSION_LINGER;
            let stays = !quiet && now <= one.idle_since + patience;
            if !stays {
                over.push(one.handle);
            }
            stays
        });
        // a place that is taken is given back to the semaphore that it came from
        self.knocks_of_key.retain(|_, knocks| knocks.available_permits() < KNOCKS_PER_KEY_MAX);
        over
    }

    /// The sessions of a key were ended: what they used is a stranger's again.
    pub(super) fn disapprove(&mut self, peer: PeerId, now: Instant) {
        for one in self.all.values_mut().filter(|one| one.peer == peer) {
            (one.idle_since, one.approved) = (now, false);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::pathmux::PathMux;
    use crate::proto::path::Rung;

    const KEY: PeerId = PeerId([1; 32]);
    const OTHER: PeerId = PeerId([2; 32]);
    const AUTH_WAIT: Duration = Duration::from_secs(2);

    struct Host {
        matches: Matches,
        mux: Arc<PathMux>,
        now: Instant,
        in_use: HashSet<SocketAddr>,
    }

    impl Host {
        fn new() -> Self {
            let (mux, _) = PathMux::bind(Some(([127, 0, 0, 1], 0).into())).unwrap();
            let matches = Matches::new(AUTH_WAIT);
            Self { matches, mux, now: Instant::now(), in_use: HashSet::new() }
        }

        /// A match that has found a path; what had to go for it.
        fn meet(&mut self, peer: PeerId) -> (Introduced, Vec<Virtual>) {
            let over = self.matches.make_room(peer, &self.in_use);
            let mut one = Introduced::new(peer, self.mux.add_peer(), Routing::default(), self.now);
            let tried = Vec::new();
            one.path = Some(PathInfo { rung: Rung::Relay, address: None, rtt: None, tried });
            self.matches.insert(one.clone());
            (one, over)
        }

        /// Lets time pass; who was forgotten.
        fn wait(&mut self, time: Duration) -> Vec<Virtual> {
            let end = self.now + time;
            let mut over = Vec::new();
            while self.now < end {
                self.now += Duration::from_secs(1);
                over.extend(self.matches.tidy(&self.in_use, self.now));
            }
            over
        }
    }

    #[tokio::test]
    async fn who_has_paths_and_never_says_who_it_is_is_bounded_and_forgotten() {
        let mut host = Host::new();
        let (session, _) = host.meet(KEY);
        let (other, _) = host.meet(OTHER);
        host.in_use = [&session, &other].map(|one| one.handle.address()).into();
        let mut gone = 0;
        for _ in 0..1000 {
            host.now += Duration::from_millis(1);
            gone += host.meet(KEY).1.len();
        }
        assert_eq!(gone, 1000 - MATCHES_PER_KEY_MAX);
        assert_eq!(host.matches.all.len(), 2 + MATCHES_PER_KEY_MAX);
        assert_eq!(host.wait(AUTH_WAIT + UNIDENTIFIED_MAX / 2), []);
        assert_eq!(host.wait(UNIDENTIFIED_MAX).len(), MATCHES_PER_KEY_MAX);

        // sessions keep theirs, and for a while after they lost their connection
        assert_eq!(host.wait(SESSION_LINGER * 2), []);
        host.in_use.clear();
        assert_eq!(host.wait(SESSION_LINGER - AUTH_WAIT), []);
        host.matches.disapprove(KEY, host.now);
        assert_eq!(host.wait(AUTH_WAIT * 2), [other.handle]);
        assert_eq!(host.wait(UNIDENTIFIED_MAX), [session.handle]);
    }

    #[tokio::test]
    async fn a_key_knocks_so_often_and_no_more_whatever_matches_it_has() {
        let mut host = Host::new();
        let mut knocks = Vec::new();
        for _ in 0..1000 {
            let (one, _) = host.meet(KEY);
            knocks.extend((0..9).filter_map(|_| host.matches.knock(&one, host.now)));
        }
        assert_eq!(knocks.len(), KNOCKS_PER_KEY_MAX);
        host.wait(Duration::from_secs(300));
        let (one, _) = host.meet(KEY);
        assert!(host.matches.knock(&one, host.now).is_none(), "they still hold their places");
        let (other, _) = host.meet(OTHER);
        let others: Vec<_> = (0..9).filter_map(|_| host.matches.knock(&other, host.now)).collect();
        assert_eq!(others.len(), KNOCKS_MAX);
        knocks.truncate(1);
        let more: Vec<_> = (0..9).filter_map(|_| host.matches.knock(&one, host.now)).collect();
        assert_eq!(more.len(), KNOCKS_MAX);
    }
}
