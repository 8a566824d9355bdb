//! Which host is behind which index: the matcher's store, and all that servers would have to share.

use std::collections::{BTreeMap, VecDeque};
use std::net::IpAddr;
use std::time::Instant;

use crate::identity::{BlindedMac, PeerId};
use crate::limits::{
    SERVER_INDICES_MAX, SERVER_INDICES_PER_ADDRESS_MAX, SERVER_INDICES_PER_KEY_MAX,
    SERVER_INDICES_PER_SITE_MAX,
};
use crate::proto::rendezvous::matcher::{Link, REGISTRATION_LIFE};
use crate::proto::shares::{Shares, Tally};

#[derive(Debug)]
pub(super) struct Registry {
    bindings: BTreeMap<BlindedMac, Binding>,
    /// Bindings without a connection, in the order of their end.
    lingering: VecDeque<(Instant, BlindedMac)>,
    /// What hosts at one address have of the bindings.
    shares: Shares,
    /// What one host's key has of them.
    of_host: Tally<PeerId>,
}

#[derive(Debug)]
struct Binding {
    host: PeerId,
    /// Where it was registered from first.
    from: IpAddr,
    state: State,
}

#[derive(Debug, Eq, PartialEq)]
enum State {
    Linked(Link),
    /// The host is gone, but nobody else gets the index before this.
    Lingering(Instant),
}

/// What became of a registration.
#[derive(Debug, Eq, PartialEq)]
pub(super) enum Registered {
    /// It stands; before, this other connection of the same host had it.
    Bound { before: Option<Link> },
    /// Another host has it.
    Taken,
    /// There is no room, or none for that host.
    Full,
}

impl Registry {
    pub(super) fn new() -> Self {
        Self {
            bindings: BTreeMap::new(),
            lingering: VecDeque::new(),
            shares: Shares::new(SERVER_INDICES_PER_ADDRESS_MAX, SERVER_INDICES_PER_SITE_MAX),
            of_host: Tally::default(),
        }
    }

    /// The host at `link`, whose connection comes `from` there, wants to be found by an index.
    pub(super) fn register(
        &mut self,
        index: BlindedMac,
        host: PeerId,
        (link, from): (Link, IpAddr),
        now: Instant,
    ) -> Registered {
        if let Some(binding) = self.bindings.get_mut(&index)
            && !binding.is_over(now)
        {
            if binding.host != host {
                return Registered::Taken;
            }
            let before = match binding.state {
                State::Linked(before) if before != link => Some(before),
                State::Linked(_) | State::Lingering(_) => None,
            };
            binding.state = State::Linked(link);
            return Registered::Bound { before };
        }
        self.remove(index);
        if self.bindings.len() >= SERVER_INDICES_MAX
            || self.of_host.of(&host) >= SERVER_INDICES_PER_KEY_MAX
            || !self.shares.take(from)
        {
            return Registered::Full;
        }
        self.of_host.add(host);
        let state = State::Linked(link);
        self.bindings.insert(index, Binding { host, from, state });
        Registered::Bound { before: None }
    }

    /// The host gives the index up: anybody may have it.
    pub(super) fn withdraw(&mut self, index: BlindedMac, link: Link) {
        if self.find(index) == Some(link) {
            self.remove(index);
        }
    }

    /// The host's connection is gone.
    pub(super) fn release(&mut self, index: BlindedMac, link: Link, now: Instant) {
        if let Some(binding) = self.bindings.get_mut(&index)
            && binding.state == State::Linked(link)
        {
            let end = now + REGISTRATION_LIFE;
            binding.state = State::Lingering(end);
            self.lingering.push_back((end, index));
        }
    }

    pub(super) fn find(&self, index: BlindedMac) -> Option<Link> {
        match self.bindings.get(&index)?.state {
            State::Linked(link) => Some(link),
            State::Lingering(_) => None,
        }
    }

    /// Forgets what has lingered long enough.
    pub(super) fn expire(&mut self, now: Instant) {
        while let Some((end, index)) = self.lingering.front().copied()
            && end <= now
        {
            self.lingering.pop_front();
            if self.bindings.get(&index).is_some_and(|it| it.is_over(now)) {
                self.remove(index);
            }
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.bindings.is_empty() && self.lingering.is_empty()
    }

    fn remove(&mut self, index: BlindedMac) {
        let Some(Binding { host, from, .. }) = self.bindings.remove(&index) else {
            return;
        };
        self.shares.give_back(from);
        self.of_host.take_back(&host);
    }
}

impl Binding {
    fn is_over(&self, now: Instant) -> bool {
        matches!(self.state, State::Lingering(end) if end <= now)
    }
}
