//! After a restart: nothing is given away before those who may hold it are back.

use std::collections::BTreeMap;
use std::time::Instant;

use crate::id::{LeaseId, NodeId, SessionId};
use crate::limits::{LEASE_BATCH_MAX, LEASE_TERM, LEASES_MAX};
use crate::proto::PeerMisbehaved;
use crate::wire::lease::{Claim, Lease, LeaseKind, Notice};

use super::state::Held;
use super::{Grantor, Output, Use, User};

/// Terms that sessions which came back in time may take after the first.
const MORE_TERMS: u32 = 5;
/// Numbers beyond this leave too little room.
const NUMBER_MAX: u64 = 1 << 62;

/// The wait after a restart.
#[derive(Debug)]
pub(super) struct Grace {
    expected: BTreeMap<SessionId, Back>,
    until: Instant,
    last: Instant,
}

/// How far a session is.
#[derive(Debug, Default)]
struct Back {
    reclaimed: bool,
    redone: bool,
}

impl Grace {
    pub(super) fn new(expected: impl IntoIterator<Item = SessionId>, now: Instant) -> Option<Self> {
        let expected: BTreeMap<_, _> =
            expected.into_iter().map(|session| (session, Back::default())).collect();
        let until = now + LEASE_TERM;
        let last = until + LEASE_TERM * MORE_TERMS;
        (!expected.is_empty()).then_some(Self { expected, until, last })
    }

    pub(super) fn until(&self) -> Instant {
        self.until
    }

    pub(super) fn expects(&self, session: SessionId) -> bool {
        self.expected.contains_key(&session)
    }

    /// Whether what the session does may be what it had done before.
    pub(super) fn is_redoing(&self, session: SessionId) -> bool {
        self.expected.get(&session).is_some_and(|back| !back.redone)
    }

    pub(super) fn redone(&mut self, session: SessionId) {
        if let Some(back) = self.expected.get_mut(&session) {
            back.redone = true;
        }
    }

    pub(super) fn forget(&mut self, session: SessionId) {
        self.expected.remove(&session);
    }
}

impl<T> Grantor<T> {
    /// Ends the grace when everybody is back, or has had the time; sessions that are not connected
    /// when a term is over are not waited for any longer.
    pub(super) fn check_grace(&mut self, now: Instant) {
        let Some(grace) = &mut self.grace else {
            return;
        };
        let sessions = &self.sessions;
        grace.expected.retain(|session, back| {
            let comparing = sessions.get(session).is_some_and(|known| !known.claims.is_empty());
            !(back.reclaimed && back.redone) || comparing
        });
        if grace.until <= now {
            grace
                .expected
                .retain(|session, _| sessions.get(session).is_some_and(|known| known.linked));
            while grace.until <= now {
                grace.until += LEASE_TERM;
            }
        }
        if grace.expected.is_empty() || grace.last <= now {
            self.grace = None;
            self.retry_all(now);
        }
    }

    /// Whether the grace lets a use go on: what a session does again, and what its claimed leases
    /// cover.
    pub(super) fn is_let_in(&self, user: User, uses: &[(NodeId, Use)]) -> bool {
        let Some(grace) = &self.grace else {
            return true;
        };
        let User::Session(session) = user else {
            return true;
        };
        grace.is_redoing(session)
            || uses.iter().all(|&(node, usage)| self.covers(session, node, usage))
    }

    fn covers(&self, session: SessionId, node: NodeId, usage: Use) -> bool {
        let Some(known) = self.sessions.get(&session) else {
            return false;
        };
        let leases = self.nodes.get(&node).into_iter().flat_map(|node| &node.leases);
        leases.filter(|(holder, _)| *holder == session).any(|(_, lease)| {
            let kind = known.leases.get(lease).map(|held| held.kind);
            kind == Some(LeaseKind::Exclusive) || (kind.is_some() && usage == Use::Read)
        })
    }

    pub(super) fn reclaim(
        &mut self,
        session: SessionId,
        claims: Vec<Claim>,
        now: Instant,
    ) -> Result<(), PeerMisbehaved> {
        let Some(known) = self.sessions.get_mut(&session) else {
            return Ok(());
        };
        if claims.len() > LEASE_BATCH_MAX || known.count() + claims.len() > 2 * LEASES_MAX {
            return Err(PeerMisbehaved::TooMany);
        }
        if claims.iter().any(|claim| claim.lease.id.0 > NUMBER_MAX) {
            return Err(PeerMisbehaved::Sequence);
        }
        // the renewal follows; until then they last as if this were one
        known.expires = known.expires.max(Some(now + LEASE_TERM));
        for claim in claims {
            self.claim(session, claim);
        }
        Ok(())
    }

    fn claim(&mut self, session: SessionId, claim: Claim) {
        let Lease { id, node, .. } = claim.lease;
        let conflicts = self.claim_conflicts(session, &claim);
        let Some(known) = self.sessions.get_mut(&session) else {
            return;
        };
        known.newest = known.newest.max(id);
        if known.leases.contains_key(&id) {
            self.notify(session, Notice::Reclaimed { lease: id, held: true });
        } else if known.claims.contains_key(&id) {
            // it is being compared: the answer comes then
        } else if conflicts || known.lapsed.contains_key(&id) || known.ended.contains_key(&id) {
            self.notify(session, Notice::Reclaimed { lease: id, held: false });
        } else {
            known.claims.insert(id, claim);
            *known.comparing.entry(id).or_default() += 1;
            self.nodes.entry(node).or_default().claims.insert((session, id));
            self.outputs.push_back(Output::Compare { session, claim });
        }
    }

    /// Whether somebody else has the object: then the claim is from before it was given away. One
    /// that has lapsed minds only changes.
    fn claim_conflicts(&self, session: SessionId, claim: &Claim) -> bool {
        let Lease { node, kind, .. } = claim.lease;
        if claim.lapsed {
            return self.nodes.get(&node).is_some_and(|node| {
                let mut uses = node.uses.iter();
                uses.any(|(&user, uses)| user != User::Session(session) && uses.changes > 0)
            });
        }
        let uses = self.nodes.get(&node).is_some_and(|node| {
            node.uses.iter().any(|(&user, uses)| {
                user != User::Session(session) && (uses.changes > 0 || kind == LeaseKind::Exclusive)
            })
        });
        let waits = self.grace.is_none() && self.waiting_forbids(session, node, kind);
        uses || waits || self.lease_forbids(session, node, kind)
    }

    pub(super) fn settle_claim(
        &mut self,
        session: SessionId,
        lease: LeaseId,
        same: bool,
        now: Instant,
    ) {
        if !self.is_last_comparison(session, lease) {
            return;
        }
        let Some(claim) = self.take_claim(session, lease) else {
            return;
        };
        let node = claim.lease.node;
        let held = same && !self.claim_conflicts(session, &claim);
        let now_held = held && self.hold_claim(session, &claim);
        self.notify(session, Notice::Reclaimed { lease, held: now_held });
        self.tidy(node);
        if now_held {
            self.retry(node, now);
        }
    }

    /// A claim may have been refused and made again while the first one was compared.
    fn is_last_comparison(&mut self, session: SessionId, lease: LeaseId) -> bool {
        let Some(known) = self.sessions.get_mut(&session) else {
            return false;
        };
        let Some(count) = known.comparing.get_mut(&lease) else {
            return false;
        };
        *count -= 1;
        let last = *count == 0;
        if last {
            known.comparing.remove(&lease);
        }
        last
    }

    pub(super) fn take_claim(&mut self, session: SessionId, lease: LeaseId) -> Option<Claim> {
        let claim = self.sessions.get_mut(&session)?.claims.remove(&lease)?;
        let node = claim.lease.node;
        let node = self.nodes.entry(node).or_default();
        node.claims.remove(&(session, lease));
        node.watched = true;
        Some(claim)
    }
}

impl<T> Grantor<T> {
    /// A claim that was found right stands; if its term is over, only for its entries.
    fn hold_claim(&mut self, session: SessionId, claim: &Claim) -> bool {
        let Lease { id, node, kind } = claim.lease;
        let Some(known) = self.sessions.get_mut(&session) else {
            return false;
        };
        let entry = self.nodes.entry(node).or_default();
        if known.expires.is_some() && !claim.lapsed {
            known.leases.insert(id, Held { node, kind, recall: None });
            entry.leases.insert((session, id));
            true
        } else {
            if kind == LeaseKind::Exclusive {
                known.lapsed.insert(id, node);
                entry.lapsed.insert((session, id));
            }
            false
        }
    }

    pub(super) fn reclaim_done(
        &mut self,
        session: SessionId,
        next: LeaseId,
        now: Instant,
    ) -> Result<(), PeerMisbehaved> {
        if next.0 > NUMBER_MAX {
            return Err(PeerMisbehaved::Sequence);
        }
        if let Some(known) = self.sessions.get_mut(&session) {
            known.ready = true;
            known.newest = known.newest.max(LeaseId(next.0.saturating_sub(1)));
        }
        if let Some(back) = self.grace.as_mut().and_then(|grace| grace.expected.get_mut(&session)) {
            back.reclaimed = true;
        }
        self.check_grace(now);
        Ok(())
    }
}
