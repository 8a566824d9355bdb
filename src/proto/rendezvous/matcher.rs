//! The server's half: who is registered, and who looks for whom.
//!
//! Whether an index is unknown, its host away or the client refused, the client hears the same
//! after the same time, and stays registered: it is matched as soon as a host accepts it.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use crate::identity::{BlindedMac, PeerId};
use crate::limits::{INDICES_MAX, RELAYS_PER_CLIENT_MAX};
use crate::proto::PeerMisbehaved;
use crate::proto::rendezvous::asks::Asks;
use crate::proto::rendezvous::peers::{Peer, Peers, RoleState, Seek, Stage};
use crate::proto::rendezvous::registry::{Registered, Registry};
use crate::proto::rendezvous::upkeep::Draw;
use crate::wire::relay::{RelayGrant, RelayId, RelayToken};
use crate::wire::rendezvous::{FromServer, MatchId, Public, Role, Sealed, StunAddress, ToServer};

/// A registration that is not refreshed for so long is over; an index stays with its host as long.
pub const REGISTRATION_LIFE: Duration = Duration::from_secs(60);
/// When a client hears that there is no match, whatever the reason.
const NO_MATCH_AFTER: Duration = Duration::from_secs(1);
/// Between two looks at who has gone silent.
const SWEEP: Duration = Duration::from_secs(5);
/// A registration that branches from another one's connection costs that one so many messages: it
/// may send a burst of its own.
const BRANCH_COST: u32 = 3;

/// One daemon's connection, numbered by the server.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct Link(pub u64);

/// The server holds as many registrations as it can, or as many of one key or one address.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("there are too many registrations, or too many of this key or address")]
pub struct Full;

/// What to do next.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum MatcherOutput {
    /// Send a message to a daemon, in order.
    Send(Link, FromServer),
    /// The registration is over: close the connection.
    Close(Link),
    /// Two daemons may be introduced: the relay is to know them.
    OpenRelay {
        /// The match.
        match_id: MatchId,
        /// The client's side and the host's.
        sides: [RelaySide; 2],
    },
    /// They were not introduced after all.
    CloseRelay(MatchId),
}

/// One side of a relayed match.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct RelaySide {
    /// Its registration.
    pub link: Link,
    /// Its key.
    pub key: PeerId,
    /// What it may use the relay by.
    pub grant: RelayGrant,
}

/// How many there are.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct MatcherStats {
    /// Registered hosts.
    pub hosts: usize,
    /// Registered clients.
    pub clients: usize,
    /// Introductions since the start.
    pub matches: u64,
}

/// All registrations of a server.
#[derive(Debug)]
pub struct Matcher {
    stun: Vec<StunAddress>,
    /// Whether matches may be relayed.
    relays: bool,
    draw: Draw,
    peers: Peers,
    registry: Registry,
    /// Clients by what they look for.
    waiting: BTreeSet<(BlindedMac, Link)>,
    matches: BTreeMap<MatchId, Match>,
    /// Those that were introduced, while both are there: each hears where the other moves.
    made: BTreeMap<MatchId, Made>,
    /// Clients that have to hear [`FromServer::NoMatch`].
    unanswered: BTreeSet<(Instant, Link)>,
    /// Hosts that are to be asked about the next client then.
    paced: BTreeSet<(Instant, Link)>,
    sweep_at: Option<Instant>,
    introductions: u64,
    outputs: VecDeque<MatcherOutput>,
}

/// A client and a host that were introduced to each other.
#[derive(Debug)]
struct Made {
    host: Link,
    client: Link,
}

/// A client was named to a host, which has not answered yet.
#[derive(Debug)]
struct Match {
    client: Link,
    /// What the host was told.
    told: Public,
    /// The client's, for when it is introduced.
    grant: Option<RelayGrant>,
}

impl Matcher {
    /// An empty server, whose STUN and, if it `relays`, relay answers at `stun`; match numbers come
    /// from `seed`.
    pub fn new(stun: Vec<StunAddress>, relays: bool, seed: [u8; 32]) -> Self {
        Self {
            stun,
            relays,
            draw: Draw::new(seed),
            peers: Peers::new(),
            registry: Registry::new(),
            waiting: BTreeSet::new(),
            matches: BTreeMap::new(),
            made: BTreeMap::new(),
            unanswered: BTreeSet::new(),
            paced: BTreeSet::new(),
            sweep_at: None,
            introductions: 0,
            outputs: VecDeque::new(),
        }
    }

    /// A daemon has connected and proved its key.
    ///
    /// # Errors
    ///
    /// [`Full`]: the connection is to be closed.
    pub fn handle_connected(
        &mut self,
        link: Link,
        key: PeerId,
        observed: SocketAddr,
        now: Instant,
    ) -> Result<(), Full> {
        self.peers.add(link, Peer::new(key, observed, false, now))?;
        self.sweep_at.get_or_insert(now + SWEEP);
        Ok(())
    }

    /// A client's connection carries another registration with its key; TCP does not reach that
    /// one where the connection comes from.
    ///
    /// # Errors
    ///
    /// [`PeerMisbehaved`]: it is refused, and nothing has changed.
    pub fn handle_branched(
        &mut self,
        link: Link,
        trunk: Link,
        now: Instant,
    ) -> Result<(), PeerMisbehaved> {
        let peer = self.peer(trunk)?;
        if peer.branch || !matches!(peer.role, Some(RoleState::Client { .. })) {
            return Err(PeerMisbehaved::Sequence);
        }
        let whole_at = peer.charged(BRANCH_COST, now)?;
        let branch = Peer::new(peer.key, peer.observed, true, now);
        self.peers.add(link, branch).map_err(|Full| PeerMisbehaved::TooMany)?;
        self.peer(trunk)?.whole_at = whole_at;
        Ok(())
    }

    /// A daemon's connection is gone.
    pub fn handle_disconnected(&mut self, link: Link, now: Instant) {
        self.drop_seek(link);
        let Some(peer) = self.peers.remove(link) else {
            return;
        };
        if let Some(RoleState::Host { indices, asks }) = peer.role {
            for index in indices {
                self.registry.release(index, link, now);
            }
            let (unanswered, waiting) = asks.into_rest();
            for match_id in unanswered {
                self.drop_match(match_id);
            }
            for client in waiting {
                if let Ok(Some(seek)) = self.peer(client).and_then(Peer::wanted) {
                    seek.stage = Stage::Waits;
                }
            }
        }
        for match_id in peer.made {
            self.forget_made(match_id);
        }
    }

    /// A daemon's message.
    ///
    /// # Errors
    ///
    /// [`PeerMisbehaved`]: nothing has changed, and the connection is to be closed.
    pub fn handle_message(
        &mut self,
        link: Link,
        message: ToServer,
        now: Instant,
    ) -> Result<(), PeerMisbehaved> {
        if !message.is_bounded() {
            return Err(PeerMisbehaved::TooMany);
        }
        let peer = self.peers.find(link).ok_or(PeerMisbehaved::Sequence)?;
        // an answer to what we asked costs nothing: others decide how often a host is asked
        let whole_at =
            if self.is_answer(link, &message) { peer.whole_at } else { peer.charged(1, now)? };
        match message {
            ToServer::Hello { role } => self.hello(link, role, now)?,
            ToServer::Refresh { number, udp_public } => {
                self.refresh(link, number, udp_public, now)?;
            }
            ToServer::Register { indices } => self.register(link, &indices, now)?,
            ToServer::Withdraw { indices } => self.withdraw(link, &indices)?,
            ToServer::Seek { index, sealed } => self.seek(link, index, sealed, now)?,
            ToServer::Accept { match_id, sealed } => self.accept(link, match_id, sealed, now)?,
            ToServer::Decline { match_id } => self.decline(link, match_id, now)?,
            // read on the way here, by the relay and by what splits a connection
            ToServer::Relayed(_) | ToServer::Branch(_) | ToServer::EndBranch { .. } => {}
        }
        if let Some(peer) = self.peers.find_mut(link) {
            peer.whole_at = whole_at;
        }
        Ok(())
    }

    /// Ends what has gone silent, and answers clients for whom nobody came.
    pub fn handle_timeout(&mut self, now: Instant) {
        while let Some((at, link)) = self.unanswered.first().copied()
            && at <= now
        {
            self.unanswered.pop_first();
            self.send(link, FromServer::NoMatch);
        }
        while let Some((at, host)) = self.paced.first().copied()
            && at <= now
        {
            self.paced.pop_first();
            self.ask_next(host, now);
        }
        if self.sweep_at.is_some_and(|at| at <= now) {
            self.sweep(now);
        }
    }

    fn sweep(&mut self, now: Instant) {
        let over: Vec<_> =
            self.peers.iter().filter(|(_, peer)| peer.end() <= now).map(|(link, _)| link).collect();
        for link in over {
            self.handle_disconnected(link, now);
            self.outputs.push_back(MatcherOutput::Close(link));
        }
        self.registry.expire(now);
        let idle = self.peers.is_empty() && self.registry.is_empty();
        self.sweep_at = (!idle).then(|| now + SWEEP);
    }

    /// What to do next; to be drained after everything else.
    pub fn poll_output(&mut self) -> Option<MatcherOutput> {
        self.outputs.pop_front()
    }

    /// When [`Self::handle_timeout`] wants to be called.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let first = [&self.unanswered, &self.paced].map(|all| all.first().map(|(at, _)| *at));
        first.into_iter().flatten().chain(self.sweep_at).min()
    }

    /// How many there are.
    pub fn stats(&self) -> MatcherStats {
        let mut stats = MatcherStats { matches: self.introductions, ..MatcherStats::default() };
        for (_, peer) in self.peers.iter() {
            match peer.role {
                Some(RoleState::Host { .. }) => stats.hosts += 1,
                Some(RoleState::Client { .. }) => stats.clients += 1,
                None => {}
            }
        }
        stats
    }

    fn hello(&mut self, link: Link, role: Role, now: Instant) -> Result<(), PeerMisbehaved> {
        let peer = self.peer(link)?;
        if peer.role.is_some() || (peer.branch && role == Role::Host) {
            return Err(PeerMisbehaved::Sequence);
        }
        peer.role = Some(match role {
            Role::Host => RoleState::Host { indices: BTreeSet::new(), asks: Asks::new(now) },
            Role::Client => RoleState::Client { seek: None },
        });
        let (observed, stun) = (peer.observed, self.stun.clone());
        self.send(link, FromServer::Welcome { observed, stun });
        Ok(())
    }

    fn refresh(
        &mut self,
        link: Link,
        number: u64,
        udp: Option<SocketAddr>,
        now: Instant,
    ) -> Result<(), PeerMisbehaved> {
        let peer = self.peer(link)?;
        if peer.role.is_none() {
            return Err(PeerMisbehaved::Sequence);
        }
        peer.refreshed = now;
        let moved = std::mem::replace(&mut peer.public.udp, udp) != udp;
        let public = peer.public;
        self.send(link, FromServer::Confirmed { number });
        if moved {
            self.tell_moved(link, public);
        }
        Ok(())
    }

    /// Those who were introduced to a peer hear where it is now.
    fn tell_moved(&mut self, link: Link, public: Public) {
        let made: Vec<_> =
            self.peers.find(link).into_iter().flat_map(|peer| &peer.made).copied().collect();
        for match_id in made {
            let Some(one) = self.made.get(&match_id) else {
                continue;
            };
            let other = if one.host == link { one.client } else { one.host };
            self.send(other, FromServer::Moved { match_id, public });
        }
    }

    fn register(
        &mut self,
        link: Link,
        new: &[BlindedMac],
        now: Instant,
    ) -> Result<(), PeerMisbehaved> {
        let peer = self.peer(link)?;
        let (key, from) = (peer.key, peer.observed.ip());
        let indices = peer.indices()?;
        let more = new.iter().filter(|index| !indices.contains(index)).count();
        if indices.len() + more > INDICES_MAX {
            return Err(PeerMisbehaved::TooMany);
        }
        let (mut taken, mut full) = (Vec::new(), Vec::new());
        for index in new.iter().copied() {
            match self.registry.register(index, key, (link, from), now) {
                Registered::Taken => taken.push(index),
                Registered::Full => full.push(index),
                Registered::Bound { before } => {
                    if let Some(before) = before
                        && let Ok(indices) = self.peer(before).and_then(Peer::indices)
                    {
                        indices.remove(&index);
                    }
                    self.peer(link)?.indices()?.insert(index);
                    self.introduce_waiting(index, link);
                }
            }
        }
        self.ask_next(link, now);
        if !taken.is_empty() {
            self.send(link, FromServer::Taken { indices: taken });
        }
        if !full.is_empty() {
            self.send(link, FromServer::Full { indices: full });
        }
        Ok(())
    }

    fn withdraw(&mut self, link: Link, gone: &[BlindedMac]) -> Result<(), PeerMisbehaved> {
        let indices = self.peer(link)?.indices()?;
        for index in gone {
            indices.remove(index);
        }
        for index in gone {
            self.registry.withdraw(*index, link);
        }
        Ok(())
    }

    fn seek(
        &mut self,
        link: Link,
        index: BlindedMac,
        sealed: Sealed,
        now: Instant,
    ) -> Result<(), PeerMisbehaved> {
        self.peer(link)?.wanted()?;
        self.drop_seek(link);
        let answer_at = now + NO_MATCH_AFTER;
        *self.peer(link)?.wanted()? = Some(Seek { index, sealed, stage: Stage::Waits, answer_at });
        self.waiting.insert((index, link));
        self.unanswered.insert((answer_at, link));
        if let Some(host) = self.registry.find(index) {
            self.queue(index, host, link);
            self.ask_next(host, now);
        }
        Ok(())
    }

    fn introduce_waiting(&mut self, index: BlindedMac, host: Link) {
        let clients: Vec<_> = self
            .waiting
            .range((index, Link(0))..=(index, Link(u64::MAX)))
            .map(|(_, client)| *client)
            .collect();
        for client in clients {
            self.queue(index, host, client);
        }
    }

    /// A waiting client is to be named to the host that has its index.
    fn queue(&mut self, index: BlindedMac, host: Link, client: Link) {
        let Ok(Some(seek)) = self.peer(client).and_then(Peer::wanted) else {
            return;
        };
        let before = std::mem::replace(&mut seek.stage, Stage::Queued(host));
        self.leave_stage(before, client);
        if let Ok(asks) = self.peer(host).and_then(Peer::asks) {
            asks.push(index, client);
        }
    }

    fn leave_stage(&mut self, stage: Stage, client: Link) {
        match stage {
            Stage::Waits => {}
            Stage::Queued(host) => {
                if let Ok(asks) = self.peer(host).and_then(Peer::asks) {
                    asks.remove(client);
                }
            }
            Stage::Asked(match_id) => {
                self.refuse_match(match_id);
            }
        }
    }

    /// Asks a host about as many clients as it may be asked about now.
    fn ask_next(&mut self, host: Link, now: Instant) {
        while let Ok(asks) = self.peer(host).and_then(Peer::asks) {
            let Some(client) = asks.next(now) else {
                if let Some(at) = asks.wake() {
                    self.paced.insert((at, host));
                }
                return;
            };
            self.ask(host, client);
        }
    }

    /// Names a client to the host that has its index, or had it when the client came.
    fn ask(&mut self, host: Link, client: Link) {
        let match_id = MatchId(self.draw.bytes());
        let Some(peer) = self.peers.find_mut(client) else {
            return;
        };
        let (key, public) = (peer.key, peer.public);
        let Ok(Some(seek)) = peer.wanted() else {
            return;
        };
        let (index, sealed) = (seek.index, seek.sealed.clone());
        let is_its = self.registry.find(index) == Some(host);
        seek.stage = if is_its { Stage::Asked(match_id) } else { Stage::Waits };
        if !is_its {
            return;
        }
        let (grant, for_host) = self.grants(match_id, client, key, host).unzip();
        self.matches.insert(match_id, Match { client, told: public, grant });
        if let Ok(asks) = self.peer(host).and_then(Peer::asks) {
            asks.asked(match_id);
        }
        if let Some(grant) = for_host {
            self.send(host, FromServer::Relay { match_id, grant });
        }
        self.send(host, FromServer::Sought { match_id, index, client: key, public, sealed });
    }

    /// The client's grant and the host's, if there is a relay.
    fn grants(
        &mut self,
        match_id: MatchId,
        client: Link,
        client_key: PeerId,
        host: Link,
    ) -> Option<(RelayGrant, RelayGrant)> {
        if !self.relays {
            return None;
        }
        let host_key = self.peer(host).ok()?.key;
        let udp = self.stun.first().copied();
        let [one, other] = [(), ()].map(|()| RelayGrant {
            id: RelayId(self.draw.bytes()),
            token: RelayToken(self.draw.bytes()),
            udp,
        });
        let side = |link, key, grant: &RelayGrant| RelaySide { link, key, grant: grant.clone() };
        let sides = [side(client, client_key, &one), side(host, host_key, &other)];
        self.outputs.push_back(MatcherOutput::OpenRelay { match_id, sides });
        Some((one, other))
    }

    fn accept(
        &mut self,
        link: Link,
        match_id: MatchId,
        sealed: Sealed,
        now: Instant,
    ) -> Result<(), PeerMisbehaved> {
        let peer = self.peer(link)?;
        let (host, public) = (peer.key, peer.public);
        // unknown: the client left while the host was asked
        if peer.asks()?.answered(match_id)
            && let Some(made) = self.matches.remove(&match_id)
        {
            self.drop_seek(made.client);
            self.introductions += 1;
            if let Some(grant) = made.grant {
                self.send(made.client, FromServer::Relay { match_id, grant });
            }
            let introduced = FromServer::Introduced { match_id, host, public, sealed };
            self.send(made.client, introduced);
            self.remember(match_id, link, made.client, made.told);
        }
        self.ask_next(link, now);
        Ok(())
    }

    /// Keeps an introduction, so that each side hears where the other moves.
    fn remember(&mut self, match_id: MatchId, host: Link, client: Link, told: Public) {
        let Ok(peer) = self.peer(client) else {
            return;
        };
        let public = peer.public;
        peer.made.push_back(match_id);
        let oldest =
            (peer.made.len() > RELAYS_PER_CLIENT_MAX).then(|| peer.made.pop_front()).flatten();
        if let Ok(peer) = self.peer(host) {
            peer.made.push_back(match_id);
        }
        self.made.insert(match_id, Made { host, client });
        if let Some(oldest) = oldest {
            self.forget_made(oldest);
        }
        if public != told {
            self.send(host, FromServer::Moved { match_id, public });
        }
    }

    fn forget_made(&mut self, match_id: MatchId) {
        let Some(Made { host, client }) = self.made.remove(&match_id) else {
            return;
        };
        for link in [host, client] {
            if let Ok(peer) = self.peer(link) {
                peer.made.retain(|made| *made != match_id);
            }
        }
    }

    fn decline(
        &mut self,
        link: Link,
        match_id: MatchId,
        now: Instant,
    ) -> Result<(), PeerMisbehaved> {
        if self.peer(link)?.asks()?.answered(match_id) {
            self.drop_match(match_id);
        }
        self.ask_next(link, now);
        Ok(())
    }

    /// The host will not answer this one; its client goes on waiting.
    fn drop_match(&mut self, match_id: MatchId) {
        if let Some(dropped) = self.refuse_match(match_id)
            && let Ok(Some(seek)) = self.peer(dropped.client).and_then(Peer::wanted)
            && seek.stage == Stage::Asked(match_id)
        {
            seek.stage = Stage::Waits;
        }
    }

    fn refuse_match(&mut self, match_id: MatchId) -> Option<Match> {
        let refused = self.matches.remove(&match_id)?;
        if self.relays {
            self.outputs.push_back(MatcherOutput::CloseRelay(match_id));
        }
        Some(refused)
    }

    /// The client no longer waits.
    fn drop_seek(&mut self, client: Link) {
        let wanted = self.peer(client).and_then(Peer::wanted);
        let Some(seek) = wanted.ok().and_then(Option::take) else {
            return;
        };
        self.waiting.remove(&(seek.index, client));
        self.unanswered.remove(&(seek.answer_at, client));
        self.leave_stage(seek.stage, client);
    }

    fn is_answer(&self, link: Link, message: &ToServer) -> bool {
        let (ToServer::Accept { match_id, .. } | ToServer::Decline { match_id }) = message else {
            return false;
        };
        match self.peers.find(link).and_then(|peer| peer.role.as_ref()) {
            Some(RoleState::Host { asks, .. }) => asks.is_unanswered(*match_id),
            _ => false,
        }
    }

    fn peer(&mut self, link: Link) -> Result<&mut Peer, PeerMisbehaved> {
        self.peers.find_mut(link).ok_or(PeerMisbehaved::Sequence)
    }

    fn send(&mut self, to: Link, message: FromServer) {
        self.outputs.push_back(MatcherOutput::Send(to, message));
    }
}
