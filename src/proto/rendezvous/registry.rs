//! Which host is behind which index: the matcher's store, and all that servers would have to share.

use std::collections::{BTreeMap, VecDeque};
use std::time::Instant;

use crate::identity::{BlindedMac, PeerId};
use crate::proto::rendezvous::matcher::{Link, REGISTRATION_LIFE};

/// Indices of all hosts together: about 100 MB.
const INDICES_TOTAL_MAX: usize = 1 << 20;

#[derive(Debug, Default)]
pub(super) struct Registry {
    bindings: BTreeMap<BlindedMac, Binding>,
    /// Bindings without a connection, in the order of their end.
    lingering: VecDeque<(Instant, BlindedMac)>,
}

#[derive(Debug)]
struct Binding {
    host: PeerId,
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
    /// Another host has it, or there is no room.
    Taken,
}

impl Registry {
    pub(super) fn register(
        &mut self,
        index: BlindedMac,
        host: PeerId,
        link: Link,
        now: Instant,
    ) -> Registered {
        let full = self.bindings.len() >= INDICES_TOTAL_MAX;
        let before = match self.bindings.get(&index) {
            Some(binding) if binding.host != host && !binding.is_over(now) => {
                return Registered::Taken;
            }
            Some(binding) => match binding.state {
                State::Linked(before) if before != link => Some(before),
                State::Linked(_) | State::Lingering(_) => None,
            },
            None if full => return Registered::Taken,
            None => None,
        };
        let state = State::Linked(link);
        self.bindings.insert(index, Binding { host, state });
        Registered::Bound { before }
    }

    /// The host gives the index up: anybody may have it.
    pub(super) fn withdraw(&mut self, index: BlindedMac, link: Link) {
        if self.find(index) == Some(link) {
            self.bindings.remove(&index);
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
                self.bindings.remove(&index);
            }
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.bindings.is_empty() && self.lingering.is_empty()
    }
}

impl Binding {
    fn is_over(&self, now: Instant) -> bool {
        matches!(self.state, State::Lingering(end) if end <= now)
    }
}
