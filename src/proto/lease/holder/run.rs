//! The host's greeting, its renewals, and claims after its restart.

use std::time::{Duration, Instant};

use crate::id::{HostRun, LeaseId};
use crate::limits::{LEASE_BATCH_MAX, LEASES_MAX};
use crate::proto::PeerMisbehaved;
use crate::wire::lease::{Claim, Lease, LeaseKind, LeaseRequest, Version};

use super::{Held, Holder, Link, Output, Settled, State};

impl Holder {
    /// The host says which run it is: leases of another one are claimed.
    ///
    /// Every run gets [`LeaseRequest::ReclaimDone`] before a lease is asked of it, so that it gives
    /// no number that the session has had; and again on the next connection, until a renewal that
    /// was sent after it is answered.
    pub(super) fn greet(&mut self, run: HostRun, term_ms: u32, standing: bool, now: Instant) {
        self.link = Link::Up;
        self.term.set_length(Duration::from_millis(term_ms.into()));
        if self.run != Some(run) {
            self.begin_run(run, now);
        } else if !standing {
            self.give_up(|held| !held.claimed, now);
            self.dead.insert_all();
        }
        if self.settled != Settled::Yes {
            self.claim();
            self.settled = Settled::By(self.term.next());
        }
        let proof = self.term.next();
        for index in 0..self.returned.len() {
            self.returned[index].proof = proof;
            let again = self.returned[index];
            self.send(LeaseRequest::Return { lease: again.lease, keep: again.keep });
        }
        self.renew(now);
        let asked: Vec<_> = self.asked.iter().map(|(&request, &asked)| (request, asked)).collect();
        for (request, (node, kind)) in asked {
            self.send(LeaseRequest::Acquire { request, node, kind });
        }
    }

    fn begin_run(&mut self, run: HostRun, now: Instant) {
        if !self.term.is_valid(now) {
            // never confirmed by the run that gave them
            self.give_up(|held| !held.claimed, now);
        }
        let until = self.term.end();
        self.claims_until = self.claims_until.or(until);
        for held in self.leases.values_mut() {
            held.claimed = true;
        }
        for lost in self.lost.values_mut() {
            lost.claimed = true;
        }
        // the new run knows of none of them
        self.returned.clear();
        self.dead.insert_all();
        self.run = Some(run);
        self.settled = Settled::No;
    }

    /// Claims what an earlier run gave. What has lapsed here is claimed for the entries that were
    /// accepted under it, not to be used.
    fn claim(&mut self) {
        let held = self.leases.iter().filter(|(_, held)| held.claimed).map(|(&id, held)| Claim {
            lease: Lease { id, node: held.node, kind: held.kind },
            version: held.version,
            lapsed: false,
        });
        let lost = self.lost.iter().filter(|(_, lost)| lost.claimed).map(|(&id, lost)| Claim {
            lease: Lease { id, node: lost.node, kind: lost.kind },
            version: lost.version,
            lapsed: true,
        });
        let claims: Vec<Claim> = held.chain(lost).collect();
        for batch in claims.chunks(LEASE_BATCH_MAX) {
            self.send(LeaseRequest::Reclaim { claims: batch.to_vec() });
        }
        let next = self.dead.next();
        self.send(LeaseRequest::ReclaimDone { next });
    }

    pub(super) fn reclaimed(&mut self, lease: LeaseId, held: bool, now: Instant) {
        if let Some(claimed) = self.leases.get_mut(&lease) {
            let open = std::mem::replace(&mut claimed.claimed, false);
            if held {
                self.finish_drained(lease, now);
            } else if open {
                self.end(lease);
            }
        } else if let Some(lost) = self.lost.get_mut(&lease) {
            lost.claimed = false;
        } else if held {
            self.give_back(lease, None, now);
        }
        self.end_claims();
    }

    /// When nothing is claimed any more, there is nothing to lapse.
    pub(super) fn end_claims(&mut self) {
        if self.claims_until.is_some() && !self.leases.values().any(|held| held.claimed) {
            self.claims_until = None;
        }
    }

    pub(super) fn renewed(&mut self, number: u64) -> Result<(), PeerMisbehaved> {
        if number >= self.term.next() {
            return Err(PeerMisbehaved::Unasked);
        }
        self.term.answered(number);
        if let Settled::By(proof) = self.settled
            && number >= proof
        {
            self.settled = Settled::Yes;
        }
        while self.returned.front().is_some_and(|returned| returned.proof <= number) {
            self.returned.pop_front();
        }
        Ok(())
    }

    /// A lease arrives: what is held of the number or the node afterwards.
    pub(super) fn arrive(
        &mut self,
        lease: Lease,
        version: Version,
        now: Instant,
    ) -> Result<Option<Lease>, PeerMisbehaved> {
        if self.link == Link::Down {
            return Ok(None);
        }
        if let Some(held) = self.leases.get(&lease.id) {
            if held.node != lease.node {
                return Err(PeerMisbehaved::Unasked);
            }
            // said again; what it permits may be less by now
            return Ok(Some(Lease { kind: held.kind, ..lease }));
        }
        if self.lost.contains_key(&lease.id) {
            return Ok(None);
        }
        self.dead.see(lease.id);
        let known = self.dead.contains(lease.id);
        if known || self.link == Link::Greeting || !self.replaces(&lease) {
            self.give_back(lease.id, None, now);
            return Ok(self.has(lease.node, LeaseKind::Shared, now));
        }
        self.replace(&lease, version, now);
        if !self.term.is_valid(now) {
            self.renew_if_due(now);
        }
        Ok(Some(lease))
    }

    /// Whether it is more, or newer, than what is held of its node. An exclusive lease stays:
    /// entries count on its number.
    fn replaces(&self, lease: &Lease) -> bool {
        let Some(old) = self.nodes.get(&lease.node) else {
            return self.leases.len() < LEASES_MAX;
        };
        let Some(held) = self.leases.get(old) else {
            return true;
        };
        held.kind == LeaseKind::Shared
            && !held.claimed
            && (lease.kind == LeaseKind::Exclusive || lease.id > *old)
    }

    fn replace(&mut self, lease: &Lease, version: Version, now: Instant) {
        if let Some(old) = self.nodes.remove(&lease.node)
            && let Some(held) = self.leases.remove(&old)
        {
            if held.version != version {
                // the old one ended unnoticed
                self.outputs.push_back(Output::Drop { node: lease.node });
            }
            self.give_back(old, None, now);
        }
        self.nodes.insert(lease.node, lease.id);
        let held = Held {
            node: lease.node,
            kind: lease.kind,
            version,
            state: State::Usable,
            claimed: false,
            pending: std::collections::BTreeSet::new(),
        };
        self.leases.insert(lease.id, held);
    }
}
