//! Renewing, granting and taking back.

use std::time::Instant;

use crate::id::{LeaseId, NodeId, RequestId, SessionId};
use crate::limits::{LEASE_TERM, LEASES_MAX};
use crate::wire::lease::{Lease, LeaseKind, Notice, Version};

use super::state::{Asked, Held, Look};
use super::{Grantor, Output};

/// Requests that one look at an object answers.
const ASKED_MAX: usize = 1024;
/// Looks at one object that are under way; more requests are refused.
const LOOKS_MAX: usize = 16;

impl<T> Grantor<T> {
    /// A session that takes too long to give something back is not answered until its leases have
    /// lapsed; one whose leases have lapsed is told before it is answered.
    pub(super) fn renew(&mut self, session: SessionId, number: u64, now: Instant) {
        let Some(known) = self.sessions.get_mut(&session) else {
            return;
        };
        if known.is_condemned(now) {
            return;
        }
        known.expires = known.expires.max(Some(now + LEASE_TERM));
        if let Some(upto) = known.void {
            self.notify(session, Notice::Void { upto });
        }
        self.notify(session, Notice::Renewed { number });
    }

    pub(super) fn acquire(
        &mut self,
        session: SessionId,
        request: RequestId,
        id: NodeId,
        kind: LeaseKind,
        now: Instant,
    ) {
        if !self.may_grant(session, id, kind, now) {
            self.notify(session, Notice::Refused { request });
            return;
        }
        let node = self.nodes.entry(id).or_default();
        let asked = Asked { session, request, kind };
        let full = node.looks.len() >= LOOKS_MAX;
        match node.looks.back_mut() {
            Some(look) if look.fresh && look.asked.len() < ASKED_MAX => look.asked.push(asked),
            _ if full => {
                self.notify(session, Notice::Refused { request });
            }
            _ => {
                node.looks.push_back(Look { fresh: true, asked: vec![asked] });
                self.outputs.push_back(Output::Watch { node: id });
            }
        }
    }

    pub(super) fn grant_asked(&mut self, id: NodeId, version: Option<Version>, now: Instant) {
        let Some(node) = self.nodes.get_mut(&id) else {
            return;
        };
        let Some(look) = node.looks.pop_front() else {
            return;
        };
        node.watched = version.is_some();
        for Asked { session, request, kind } in look.asked {
            let granted = version.and_then(|version| {
                self.grant(session, id, kind, now).map(|lease| (lease, version))
            });
            let notice = match granted {
                Some((lease, version)) => Notice::Granted { request, lease, version },
                None => Notice::Refused { request },
            };
            self.notify(session, notice);
        }
        self.tidy(id);
    }

    /// A lease that the object's state permits: the one that the session has, if that is enough.
    pub(super) fn grant(
        &mut self,
        session: SessionId,
        id: NodeId,
        kind: LeaseKind,
        now: Instant,
    ) -> Option<Lease> {
        if !self.may_grant(session, id, kind, now) {
            return None;
        }
        let known = self.sessions.get_mut(&session)?;
        let node = self.nodes.entry(id).or_default();
        node.watched = true;
        let own = node.leases.iter().filter(|(holder, _)| *holder == session);
        let own = own.filter_map(|(_, lease)| Some((*lease, known.leases.get(lease)?.kind)));
        if let Some((lease, kind)) = own.filter(|&(_, held)| held >= kind).max() {
            return Some(Lease { id: lease, node: id, kind });
        }
        let lease = known.number();
        known.leases.insert(lease, Held { node: id, kind, recall: None });
        node.leases.insert((session, lease));
        Some(Lease { id: lease, node: id, kind })
    }

    fn may_grant(&self, session: SessionId, id: NodeId, kind: LeaseKind, now: Instant) -> bool {
        let Some(known) = self.sessions.get(&session) else {
            return false;
        };
        let is_able = self.grace.is_none()
            && known.ready
            && known.linked
            && known.expires.is_some()
            && !known.is_condemned(now)
            && known.count() < LEASES_MAX;
        let is_recalled = |node: &super::Node| {
            node.leases
                .iter()
                .filter(|(holder, _)| *holder == session)
                .any(|(_, lease)| known.leases.get(lease).is_some_and(|held| held.recall.is_some()))
        };
        let node = self.nodes.get(&id);
        is_able
            && !node.is_some_and(is_recalled)
            && !node.is_some_and(|node| node.use_forbids(session, kind))
            && !self.waiting_forbids(session, id, kind)
            && !self.lease_forbids(session, id, kind)
    }

    /// Whether another session has a lease that this one excludes, or may believe so.
    pub(super) fn lease_forbids(&self, session: SessionId, id: NodeId, kind: LeaseKind) -> bool {
        let Some(node) = self.nodes.get(&id) else {
            return false;
        };
        let others = node.leases.iter().chain(&node.ended).filter(|(other, _)| *other != session);
        let mut kinds = others.filter_map(|(other, lease)| {
            let other = self.sessions.get(other)?;
            let held = other.leases.get(lease).map(|held| held.kind);
            held.or_else(|| other.ended.get(lease).map(|ended| ended.kind))
        });
        kinds.any(|other| kind == LeaseKind::Exclusive || other == LeaseKind::Exclusive)
    }

    /// The session has let a lease go, or confirms that it knows that it is over.
    pub(super) fn returned(
        &mut self,
        session: SessionId,
        lease: LeaseId,
        keep: Option<LeaseKind>,
        now: Instant,
    ) {
        let Some(known) = self.sessions.get_mut(&session) else {
            return;
        };
        if known.void == Some(lease) {
            known.void = None;
            self.confirm(session, |ended| ended < lease);
            if keep.is_none() {
                self.forget_lapsed(session, lease);
            }
            return;
        }
        let node = if let Some(held) = known.leases.get_mut(&lease) {
            let node = held.node;
            match keep {
                Some(kind) => {
                    held.kind = held.kind.min(kind);
                    if let Some(recall) = held.recall.take_if(|r| r.keep >= Some(held.kind)) {
                        known.recalls.remove(&(recall.at, lease));
                    }
                }
                None => {
                    self.remove(session, lease);
                }
            }
            node
        } else if keep.is_some() {
            return;
        } else if let Some(node) = known.lapsed.remove(&lease) {
            if let Some(node) = self.nodes.get_mut(&node) {
                node.lapsed.remove(&(session, lease));
            }
            node
        } else if known.claims.contains_key(&lease) {
            let Some(claim) = self.take_claim(session, lease) else {
                return;
            };
            claim.lease.node
        } else {
            self.confirm(session, |ended| ended == lease);
            return;
        };
        self.retry(node, now);
        self.check_grace(now);
    }

    /// The holder no longer believes in leases that have ended.
    pub(super) fn confirm(&mut self, session: SessionId, which: impl Fn(LeaseId) -> bool) {
        let Some(known) = self.sessions.get_mut(&session) else {
            return;
        };
        let confirmed = known.ended.extract_if(.., |&lease, _| which(lease));
        for (lease, ended) in confirmed.collect::<Vec<_>>() {
            if let Some(node) = self.nodes.get_mut(&ended.node) {
                node.ended.remove(&(session, lease));
            }
            self.tidy(ended.node);
        }
    }

    /// No entry counts on leases before this number any more; some may never have arrived.
    fn forget_lapsed(&mut self, session: SessionId, before: LeaseId) {
        let Some(known) = self.sessions.get_mut(&session) else {
            return;
        };
        let over = known.lapsed.extract_if(..before, |_, _| true);
        for (lease, id) in over.collect::<Vec<_>>() {
            if let Some(node) = self.nodes.get_mut(&id) {
                node.lapsed.remove(&(session, lease));
            }
            self.tidy(id);
        }
    }

    /// Takes a lease out of the books.
    pub(super) fn remove(&mut self, session: SessionId, lease: LeaseId) -> Option<Held> {
        let known = self.sessions.get_mut(&session)?;
        let held = known.leases.remove(&lease)?;
        if let Some(recall) = held.recall {
            known.recalls.remove(&(recall.at, lease));
        }
        if let Some(node) = self.nodes.get_mut(&held.node) {
            node.leases.remove(&(session, lease));
        }
        Some(held)
    }

    /// Forgets an object that nobody has to do with.
    pub(super) fn tidy(&mut self, id: NodeId) {
        let Some(node) = self.nodes.get_mut(&id) else {
            return;
        };
        if node.watched && node.needs_no_watch() && node.uses.is_empty() {
            node.watched = false;
            self.outputs.push_back(Output::Unwatch { node: id });
        }
        if node.is_unused() && node.needs_no_watch() {
            self.nodes.remove(&id);
        }
    }
}
