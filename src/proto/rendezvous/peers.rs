//! Who is connected to a server, and as what.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use crate::identity::{BlindedMac, PeerId};
use crate::limits::{
    SERVER_PEERS_MAX, SERVER_PEERS_PER_ADDRESS_MAX, SERVER_PEERS_PER_KEY_MAX,
    SERVER_PEERS_PER_SITE_MAX,
};
use crate::proto::PeerMisbehaved;
use crate::proto::rendezvous::asks::Asks;
use crate::proto::rendezvous::matcher::{Full, Link, REGISTRATION_LIFE};
use crate::proto::shares::{Shares, Tally};
use crate::wire::rendezvous::{MatchId, Public, Sealed};

/// Who has not said what it is by then is sent away.
const HELLO_TIME: Duration = Duration::from_secs(10);
/// Messages that a connection may send at once; a host with all its keys sends less.
const BURST: u32 = 64;
/// Time in which a connection may send one more message.
const MESSAGE_EVERY: Duration = Duration::from_millis(125);

/// All of them; nobody gets all the room that there is.
#[derive(Debug)]
pub(super) struct Peers {
    all: BTreeMap<Link, Peer>,
    /// What one address has of them.
    shares: Shares,
    /// What one key has of them.
    of_key: Tally<PeerId>,
}

#[derive(Debug)]
pub(super) struct Peer {
    pub(super) key: PeerId,
    /// Where its connection comes from.
    pub(super) observed: SocketAddr,
    /// Whether that is another one's.
    pub(super) branch: bool,
    pub(super) public: Public,
    pub(super) refreshed: Instant,
    /// When the burst is whole again.
    pub(super) whole_at: Instant,
    pub(super) role: Option<RoleState>,
    /// Introductions, oldest first.
    pub(super) made: VecDeque<MatchId>,
}

#[derive(Debug)]
pub(super) enum RoleState {
    Host { indices: BTreeSet<BlindedMac>, asks: Asks },
    Client { seek: Option<Seek> },
}

#[derive(Debug)]
pub(super) struct Seek {
    pub(super) index: BlindedMac,
    pub(super) sealed: Sealed,
    pub(super) stage: Stage,
    pub(super) answer_at: Instant,
}

/// How far a client's request has come.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Stage {
    /// No host has its index, or that one has declined.
    Waits,
    /// This host is to be asked.
    Queued(Link),
    /// A host was asked.
    Asked(MatchId),
}

impl Peers {
    pub(super) fn new() -> Self {
        Self {
            all: BTreeMap::new(),
            shares: Shares::new(SERVER_PEERS_PER_ADDRESS_MAX, SERVER_PEERS_PER_SITE_MAX),
            of_key: Tally::default(),
        }
    }

    pub(super) fn add(&mut self, link: Link, peer: Peer) -> Result<(), Full> {
        if self.all.len() >= SERVER_PEERS_MAX
            || self.of_key.of(&peer.key) >= SERVER_PEERS_PER_KEY_MAX
            || !self.shares.take(peer.observed.ip())
        {
            return Err(Full);
        }
        self.of_key.add(peer.key);
        self.all.insert(link, peer);
        Ok(())
    }

    pub(super) fn remove(&mut self, link: Link) -> Option<Peer> {
        let peer = self.all.remove(&link)?;
        self.shares.give_back(peer.observed.ip());
        self.of_key.take_back(&peer.key);
        Some(peer)
    }

    pub(super) fn find(&self, link: Link) -> Option<&Peer> {
        self.all.get(&link)
    }

    pub(super) fn find_mut(&mut self, link: Link) -> Option<&mut Peer> {
        self.all.get_mut(&link)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (Link, &Peer)> {
        self.all.iter().map(|(link, peer)| (*link, peer))
    }

    pub(super) fn is_empty(&self) -> bool {
        self.all.is_empty()
    }
}

impl Peer {
    pub(super) fn new(key: PeerId, observed: SocketAddr, branch: bool, now: Instant) -> Self {
        Self {
            key,
            observed,
            branch,
            public: Public { tcp: (!branch).then_some(observed), udp: None },
            refreshed: now,
            whole_at: now,
            role: None,
            made: VecDeque::new(),
        }
    }

    /// The time at which its burst is whole again after so many messages more.
    pub(super) fn charged(&self, messages: u32, now: Instant) -> Result<Instant, PeerMisbehaved> {
        let whole_at = self.whole_at.max(now) + MESSAGE_EVERY * messages;
        if whole_at - now > MESSAGE_EVERY * BURST {
            return Err(PeerMisbehaved::TooMany);
        }
        Ok(whole_at)
    }

    pub(super) fn end(&self) -> Instant {
        match self.role {
            Some(_) => self.refreshed + REGISTRATION_LIFE,
            None => self.refreshed + HELLO_TIME,
        }
    }

    pub(super) fn indices(&mut self) -> Result<&mut BTreeSet<BlindedMac>, PeerMisbehaved> {
        match &mut self.role {
            Some(RoleState::Host { indices, .. }) => Ok(indices),
            _ => Err(PeerMisbehaved::Sequence),
        }
    }

    pub(super) fn asks(&mut self) -> Result<&mut Asks, PeerMisbehaved> {
        match &mut self.role {
            Some(RoleState::Host { asks, .. }) => Ok(asks),
            _ => Err(PeerMisbehaved::Sequence),
        }
    }

    pub(super) fn wanted(&mut self) -> Result<&mut Option<Seek>, PeerMisbehaved> {
        match &mut self.role {
            Some(RoleState::Client { seek }) => Ok(seek),
            _ => Err(PeerMisbehaved::Sequence),
        }
    }
}
