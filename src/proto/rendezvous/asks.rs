//! Whom a host is asked about next: those who look for it decide neither how fast it hears of them
//! nor for how long others wait.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use crate::identity::BlindedMac;
use crate::limits::ASKS_UNANSWERED_MAX;
use crate::proto::rendezvous::matcher::Link;
use crate::wire::rendezvous::MatchId;

/// Questions at once: a household's mounts after a power cut.
const BURST: u32 = 64;
/// Then one more in this time: at 4 KiB each, 3.4 Mbit/s of the host's line.
const EVERY: Duration = Duration::from_millis(10);

/// What one host was asked, and what it is still to be asked.
#[derive(Debug)]
pub(super) struct Asks {
    /// Also those whose client has left meanwhile: the host has yet to read them.
    unanswered: BTreeSet<MatchId>,
    /// By index, then in the order in which they came.
    queue: BTreeSet<(BlindedMac, u64, Link)>,
    places: BTreeMap<Link, (BlindedMac, u64)>,
    turn: u64,
    /// Each index has its turn: who knows one of them does not hold up the others.
    last: BlindedMac,
    /// When the burst is whole again.
    whole_at: Instant,
}

impl Asks {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            unanswered: BTreeSet::new(),
            queue: BTreeSet::new(),
            places: BTreeMap::new(),
            turn: 0,
            last: BlindedMac([0; 16]),
            whole_at: now,
        }
    }

    /// A client waits to be named.
    pub(super) fn push(&mut self, index: BlindedMac, client: Link) {
        self.remove(client);
        self.turn += 1;
        self.places.insert(client, (index, self.turn));
        self.queue.insert((index, self.turn, client));
    }

    /// It does not wait any more.
    pub(super) fn remove(&mut self, client: Link) {
        if let Some((index, turn)) = self.places.remove(&client) {
            self.queue.remove(&(index, turn, client));
        }
    }

    /// The client that the host is to be asked about now.
    pub(super) fn next(&mut self, now: Instant) -> Option<Link> {
        if self.unanswered.len() >= ASKS_UNANSWERED_MAX || self.ready_at() > now {
            return None;
        }
        let behind = (self.last, u64::MAX, Link(u64::MAX));
        let next = self.queue.range(behind..).next().or_else(|| self.queue.first());
        let (index, _, client) = *next?;
        self.remove(client);
        self.last = index;
        self.whole_at = self.whole_at.max(now) + EVERY;
        Some(client)
    }

    /// When [`Self::next`] has somebody, if the host need not answer first.
    pub(super) fn wake(&self) -> Option<Instant> {
        let waits = !self.queue.is_empty() && self.unanswered.len() < ASKS_UNANSWERED_MAX;
        waits.then(|| self.ready_at())
    }

    fn ready_at(&self) -> Instant {
        // the clock may not have run for that long
        self.whole_at.checked_sub(EVERY * (BURST - 1)).unwrap_or(self.whole_at)
    }

    /// The host was asked.
    pub(super) fn asked(&mut self, match_id: MatchId) {
        self.unanswered.insert(match_id);
    }

    pub(super) fn is_unanswered(&self, match_id: MatchId) -> bool {
        self.unanswered.contains(&match_id)
    }

    /// The host has answered; tells whether it was asked.
    pub(super) fn answered(&mut self, match_id: MatchId) -> bool {
        self.unanswered.remove(&match_id)
    }

    /// The host is gone: what it was asked, and who waited.
    pub(super) fn into_rest(self) -> (BTreeSet<MatchId>, impl Iterator<Item = Link>) {
        (self.unanswered, self.places.into_keys())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_index_has_its_turn_and_the_host_its_time() {
        let now = Instant::now();
        let mut asks = Asks::new(now);
        let index = |name: u8| BlindedMac([name; 16]);
        for client in 0..500 {
            asks.push(index(1), Link(client));
        }
        asks.push(index(2), Link(777));
        asks.push(index(0), Link(778));
        // who asks again goes to the end
        asks.push(index(1), Link(0));
        let first: Vec<_> = (0..4).filter_map(|_| asks.next(now)).collect();
        assert_eq!(first, [Link(1), Link(777), Link(778), Link(2)]);
        asks.remove(Link(3));
        assert_eq!(asks.next(now), Some(Link(4)));

        // nothing beyond the burst
        let burst = std::iter::from_fn(|| asks.next(now)).count();
        assert_eq!(burst + 5, usize::try_from(BURST).unwrap());
        let wake = asks.wake().unwrap();
        assert!(wake > now && wake <= now + EVERY);
        assert_eq!(std::iter::from_fn(|| asks.next(wake)).count(), 1);

        // and nothing beyond what the host has read
        let later = now + Duration::from_secs(60);
        for number in 0..ASKS_UNANSWERED_MAX {
            let mut id = [0; 16];
            id[0] = u8::try_from(number).unwrap();
            asks.asked(MatchId(id));
        }
        assert_eq!((asks.next(later), asks.wake()), (None, None));
        assert!(asks.answered(MatchId([0; 16])) && !asks.answered(MatchId([0; 16])));
        assert!(asks.next(later).is_some());
    }
}
