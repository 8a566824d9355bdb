//! Leases that end without being returned.

use std::collections::BTreeSet;
use std::time::Instant;

use crate::id::{LeaseId, NodeId, SessionId};
use crate::limits::LEASES_MAX;
use crate::wire::lease::{LeaseKind, Notice};

use super::state::{Ended, Held};
use super::{Grantor, User};

impl<T> Grantor<T> {
    /// Terms that are over, and the grace.
    pub(super) fn expire(&mut self, now: Instant) {
        let over = self
            .sessions
            .iter()
            .filter(|(_, known)| known.expires.is_some_and(|expires| expires <= now));
        let over: Vec<SessionId> = over.map(|(&session, _)| session).collect();
        let mut free = BTreeSet::new();
        for session in over {
            free.append(&mut self.lapse(session));
        }
        for node in free {
            self.retry(node, now);
        }
        if self.grace.as_ref().is_some_and(|grace| grace.until() <= now) {
            self.check_grace(now);
        }
    }

    /// The session's term is over. Its holder has stopped before; entries that it had accepted are
    /// good until somebody else changes the object.
    fn lapse(&mut self, session: SessionId) -> BTreeSet<NodeId> {
        let mut free = BTreeSet::new();
        let Some(known) = self.sessions.get_mut(&session) else {
            return free;
        };
        known.expires = None;
        known.recalls.clear();
        if known.leases.is_empty() && known.ended.is_empty() {
            return free;
        }
        for (lease, held) in std::mem::take(&mut known.leases) {
            let node = self.nodes.entry(held.node).or_default();
            node.leases.remove(&(session, lease));
            if held.kind == LeaseKind::Exclusive {
                known.lapsed.insert(lease, held.node);
                node.lapsed.insert((session, lease));
            }
            free.insert(held.node);
        }
        while known.lapsed.len() > LEASES_MAX {
            let Some((lease, id)) = known.lapsed.pop_first() else {
                break;
            };
            if let Some(node) = self.nodes.get_mut(&id) {
                node.lapsed.remove(&(session, lease));
            }
            free.insert(id);
        }
        let upto = known.number();
        known.void = Some(upto);
        self.notify(session, Notice::Void { upto });
        self.confirm(session, |_| true);
        free
    }

    /// A process on the host has changed an object.
    pub(super) fn change(&mut self, id: NodeId, now: Instant) {
        let Some(node) = self.nodes.get_mut(&id) else {
            return;
        };
        node.taint(None);
        let leases = node.leases.clone();
        self.overtake(id, User::Process);
        for (session, lease) in leases {
            self.end(session, lease);
            self.notify(session, Notice::Changed { lease, node: id });
        }
        self.retry(id, now);
    }

    /// A lease is over before its holder knows it.
    fn end(&mut self, session: SessionId, lease: LeaseId) {
        let Some(Held { node, kind, .. }) = self.remove(session, lease) else {
            return;
        };
        if let Some(known) = self.sessions.get_mut(&session) {
            known.ended.insert(lease, Ended { node, kind });
            self.nodes.entry(node).or_default().ended.insert((session, lease));
        }
    }

    /// Nobody knows what has changed.
    pub(super) fn void_everything(&mut self, now: Instant) {
        let nodes: Vec<NodeId> = self.nodes.keys().copied().collect();
        for id in nodes {
            if let Some(node) = self.nodes.get_mut(&id) {
                node.taint(None);
            }
            self.overtake(id, User::Process);
        }
        let sessions: Vec<SessionId> = self.sessions.keys().copied().collect();
        for session in sessions {
            let Some(known) = self.sessions.get_mut(&session) else {
                continue;
            };
            if known.leases.is_empty() {
                continue;
            }
            let upto = known.number();
            known.void = Some(upto);
            let leases: Vec<LeaseId> = known.leases.keys().copied().collect();
            for lease in leases {
                self.end(session, lease);
            }
            self.notify(session, Notice::Void { upto });
        }
        self.retry_all(now);
        let nodes: Vec<NodeId> = self.nodes.keys().copied().collect();
        for node in nodes {
            self.tidy(node);
        }
    }

    pub(super) fn drop_session(&mut self, session: SessionId, now: Instant) {
        if let Some(grace) = &mut self.grace {
            grace.forget(session);
        }
        self.drop_waiting(session);
        let Some(known) = self.sessions.remove(&session) else {
            return;
        };
        let held = known.leases.values().map(|held| held.node);
        let ended = known.ended.values().map(|ended| ended.node);
        let claimed = known.claims.values().map(|claim| claim.lease.node);
        let nodes: BTreeSet<NodeId> =
            held.chain(claimed).chain(known.lapsed.values().copied()).chain(ended).collect();
        for id in nodes {
            if let Some(node) = self.nodes.get_mut(&id) {
                node.leases.retain(|(holder, _)| *holder != session);
                node.lapsed.retain(|(holder, _)| *holder != session);
                node.claims.retain(|(holder, _)| *holder != session);
                node.ended.retain(|(holder, _)| *holder != session);
            }
            self.retry(id, now);
        }
        let looked: Vec<NodeId> = self.nodes.keys().copied().collect();
        for id in looked {
            if let Some(node) = self.nodes.get_mut(&id) {
                for look in &mut node.looks {
                    look.asked.retain(|asked| asked.session != session);
                }
            }
            self.tidy(id);
        }
    }
}
