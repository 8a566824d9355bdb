//! Giving leases back, and losing them.

use std::time::Instant;

use crate::id::{LeaseId, NodeId, Seq};
use crate::wire::lease::{LeaseKind, LeaseRequest, Version};

use super::{Held, Holder, Link, LostLease, Output, Returned, State};

/// Returns without proof of arrival, after which a renewal is sent for the proof alone.
const UNPROVEN: usize = 1024;

impl Holder {
    /// The host wants all of the lease but `keep`.
    pub(super) fn recall(&mut self, lease: LeaseId, keep: Option<LeaseKind>, now: Instant) {
        self.dead.see(lease);
        let Some(held) = self.leases.get_mut(&lease) else {
            // the entries that count on a lost one are still to be applied
            if !self.lost.contains_key(&lease) {
                self.give_back(lease, None, now);
            }
            return;
        };
        if keep >= Some(held.kind) {
            self.give_back(lease, keep, now);
            return;
        }
        match &mut held.state {
            State::Flushing { keep: old } | State::Draining { keep: old } => {
                *old = (*old).min(keep);
            }
            State::Usable if held.kind == LeaseKind::Exclusive => {
                held.state = State::Flushing { keep };
                let node = held.node;
                self.outputs.push_back(Output::Flush { lease, node });
            }
            State::Usable => {
                self.end(lease);
                self.give_back(lease, None, now);
            }
        }
    }

    /// Everything that was accepted under a lease that is being returned may be applied.
    pub(super) fn finish_drained(&mut self, lease: LeaseId, now: Instant) {
        let Some(held) = self.leases.get_mut(&lease) else {
            return;
        };
        let State::Draining { keep } = held.state else {
            return;
        };
        if !held.pending.is_empty() {
            return;
        }
        if keep.is_some() {
            held.kind = LeaseKind::Shared;
            held.state = State::Usable;
        } else {
            self.end(lease);
        }
        self.give_back(lease, keep, now);
    }

    /// An entry that was accepted under the lease is applied.
    pub(super) fn settle(
        &mut self,
        lease: LeaseId,
        seq: Seq,
        version: Option<Version>,
        now: Instant,
    ) {
        if let Some(held) = self.leases.get_mut(&lease) {
            held.pending.remove(&seq);
            held.version = version.unwrap_or(held.version);
            self.finish_drained(lease, now);
        } else if let Some(lost) = self.lost.get_mut(&lease) {
            lost.pending.remove(&seq);
            lost.version = version.unwrap_or(lost.version);
            if lost.pending.is_empty() {
                self.lost.remove(&lease);
                self.give_back(lease, None, now);
            }
        }
    }

    /// A process on the host has changed the object.
    pub(super) fn changed(&mut self, lease: LeaseId, node: NodeId, now: Instant) {
        if self.leases.contains_key(&lease) {
            self.end(lease);
        } else if self.nodes.contains_key(&node) {
            // what the number that replaced it found in the cache may be older than the change
            self.outputs.push_back(Output::Drop { node });
        }
        self.forget_lost(lease);
        self.give_back(lease, None, now);
        self.end_claims();
    }

    /// All leases up to a number are over.
    pub(super) fn void(&mut self, upto: LeaseId, now: Instant) {
        let over: Vec<LeaseId> = self.leases.range(..=upto).map(|(&lease, _)| lease).collect();
        for lease in over {
            self.end(lease);
        }
        self.dead.insert_upto(upto);
        self.end_claims();
        // says that this has arrived, for no lease has ever had the number; and whether entries
        // still count on leases before it
        let counted_on = self.lost.range(..=upto).next().is_some();
        let keep = counted_on.then_some(LeaseKind::Exclusive);
        self.send(LeaseRequest::Return { lease: upto, keep });
        self.renew_if_due(now);
    }

    /// Drops what has lasted for its term.
    pub(super) fn lapse(&mut self, now: Instant) {
        if self.term.until().is_some_and(|until| until <= now) {
            self.term.end();
            self.give_up(|held| !held.claimed, now);
        }
        if self.claims_until.is_some_and(|until| until <= now) {
            self.claims_until = None;
            self.give_up(|held| held.claimed, now);
        }
    }

    /// Drops leases that the host may still believe in: they are given back, those with entries on
    /// the way when these are applied.
    pub(super) fn give_up(&mut self, which: impl Fn(&Held) -> bool, now: Instant) {
        let over = self.leases.iter().filter(|(_, held)| which(held));
        let over: Vec<LeaseId> = over.map(|(&lease, _)| lease).collect();
        for lease in over {
            self.end(lease);
            if !self.lost.contains_key(&lease) {
                self.give_back(lease, None, now);
            }
        }
    }

    /// A lease is over; if entries that were accepted under it are on the way, it is lost.
    pub(super) fn end(&mut self, lease: LeaseId) {
        let Some(held) = self.leases.remove(&lease) else {
            return;
        };
        let Held { node, kind, version, claimed, pending, .. } = held;
        self.nodes.remove(&node);
        self.dead.insert(lease);
        self.outputs.push_back(Output::Drop { node });
        if !pending.is_empty() {
            self.outputs.push_back(Output::Lost { lease, node });
            self.lost.insert(lease, LostLease { node, kind, version, claimed, pending });
        }
    }

    /// The entries of a lost lease will find that they were overtaken: nothing counts on it.
    pub(super) fn forget_lost(&mut self, lease: LeaseId) {
        let Some(lost) = self.lost.remove(&lease) else {
            return;
        };
        for seq in lost.pending {
            if let Some(leases) = self.entries.get_mut(&seq) {
                leases.retain(|&other| other != lease);
                if leases.is_empty() {
                    self.entries.remove(&seq);
                }
            }
        }
    }

    pub(super) fn give_back(&mut self, lease: LeaseId, keep: Option<LeaseKind>, now: Instant) {
        if keep.is_none() {
            self.dead.insert(lease);
        }
        self.returned.push_back(Returned { proof: self.term.next(), lease, keep });
        if self.link == Link::Up {
            self.send(LeaseRequest::Return { lease, keep });
            if self.returned.len().is_multiple_of(UNPROVEN) {
                self.renew(now);
            }
        }
    }
}
