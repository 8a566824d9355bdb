//! What the grantor knows of sessions and objects.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Instant;

use crate::id::{LeaseId, NodeId, RequestId, SessionId};
use crate::limits::LEASE_RECALL;
use crate::wire::lease::{Claim, LeaseKind};

use super::{Use, User};

/// One session.
#[derive(Debug, Default)]
pub(super) struct Session {
    pub(super) linked: bool,
    /// It has said which numbers it has had: none is given to it before.
    pub(super) ready: bool,
    pub(super) newest: LeaseId,
    pub(super) leases: BTreeMap<LeaseId, Held>,
    /// By when they were recalled.
    pub(super) recalls: BTreeSet<(Instant, LeaseId)>,
    /// Exclusive leases that have lapsed, and whose objects nobody else has changed since.
    pub(super) lapsed: BTreeMap<LeaseId, NodeId>,
    /// Leases ended by a change, which the holder has not confirmed: it may still believe in them.
    pub(super) ended: BTreeMap<LeaseId, Ended>,
    /// Claims that are being compared.
    pub(super) claims: BTreeMap<LeaseId, Claim>,
    /// Comparisons under way: only the last one of a lease counts.
    pub(super) comparing: BTreeMap<LeaseId, usize>,
    /// A number up to which leases are over, which the holder has not confirmed.
    pub(super) void: Option<LeaseId>,
    pub(super) expires: Option<Instant>,
}

#[derive(Debug)]
pub(super) struct Held {
    pub(super) node: NodeId,
    pub(super) kind: LeaseKind,
    pub(super) recall: Option<Recall>,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Ended {
    pub(super) node: NodeId,
    pub(super) kind: LeaseKind,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Recall {
    pub(super) at: Instant,
    pub(super) keep: Option<LeaseKind>,
}

impl Session {
    /// A number that no lease has had.
    pub(super) fn number(&mut self) -> LeaseId {
        self.newest = LeaseId(self.newest.0.saturating_add(1));
        self.newest
    }

    /// Whether it takes too long to give something back: then its term is not prolonged.
    pub(super) fn is_condemned(&self, now: Instant) -> bool {
        self.recalls.first().is_some_and(|&(at, _)| at + LEASE_RECALL <= now)
    }

    pub(super) fn deadline(&self) -> Option<Instant> {
        self.expires
    }

    /// Leases that the holder may believe in.
    pub(super) fn count(&self) -> usize {
        self.leases.len() + self.ended.len() + self.claims.len()
    }
}

/// One object.
#[derive(Debug, Default)]
pub(super) struct Node {
    /// A session may have several: a new number gives more, and the old one is returned.
    pub(super) leases: BTreeSet<(SessionId, LeaseId)>,
    pub(super) lapsed: BTreeSet<(SessionId, LeaseId)>,
    pub(super) ended: BTreeSet<(SessionId, LeaseId)>,
    pub(super) claims: BTreeSet<(SessionId, LeaseId)>,
    pub(super) uses: BTreeMap<User, UnderWay>,
    /// Numbers of uses that wait.
    pub(super) waiting: BTreeSet<u64>,
    /// What the driver is looking at the object for, in the order in which it was told.
    pub(super) looks: VecDeque<Look>,
    pub(super) watched: bool,
}

/// What a user has under way.
#[derive(Debug, Default)]
pub(super) struct UnderWay {
    pub(super) reads: usize,
    pub(super) changes: usize,
    /// Somebody else has changed the object meanwhile: what was read may be old.
    pub(super) stale: bool,
}

/// The driver looks at the object, for leases to be granted then.
#[derive(Debug)]
pub(super) struct Look {
    /// Whether nothing has changed since: another request may count on it.
    pub(super) fresh: bool,
    pub(super) asked: Vec<Asked>,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Asked {
    pub(super) session: SessionId,
    pub(super) request: RequestId,
    pub(super) kind: LeaseKind,
}

impl Node {
    pub(super) fn is_unused(&self) -> bool {
        self.needs_no_watch()
            && !self.watched
            && self.ended.is_empty()
            && self.uses.is_empty()
            && self.waiting.is_empty()
    }

    pub(super) fn needs_no_watch(&self) -> bool {
        self.leases.is_empty()
            && self.lapsed.is_empty()
            && self.claims.is_empty()
            && self.looks.is_empty()
    }

    /// Somebody's use begins. What others have under way is not to be cached if it is a change.
    pub(super) fn begin(&mut self, user: User, usage: Use) {
        let changing = self.uses.iter().any(|(&other, uses)| other != user && uses.changes > 0);
        if usage == Use::Change {
            self.taint(Some(user));
        }
        let uses = self.uses.entry(user).or_default();
        uses.stale |= changing;
        match usage {
            Use::Read => uses.reads += 1,
            Use::Change => uses.changes += 1,
        }
    }

    pub(super) fn finish(&mut self, user: User, usage: Use) {
        let Some(uses) = self.uses.get_mut(&user) else {
            return;
        };
        let count = match usage {
            Use::Read => &mut uses.reads,
            Use::Change => &mut uses.changes,
        };
        *count = count.saturating_sub(1);
        if uses.reads == 0 && uses.changes == 0 {
            self.uses.remove(&user);
        }
    }

    /// The object changes: what everybody but `by` has under way may have seen it before.
    pub(super) fn taint(&mut self, by: Option<User>) {
        for (&other, uses) in &mut self.uses {
            uses.stale |= Some(other) != by;
        }
    }

    /// Whether somebody else's use under way forbids a lease, or an own one that saw old data.
    pub(super) fn use_forbids(&self, session: SessionId, kind: LeaseKind) -> bool {
        self.uses.iter().any(|(&user, uses)| {
            if user == User::Session(session) {
                uses.stale
            } else {
                uses.changes > 0 || kind == LeaseKind::Exclusive
            }
        })
    }
}

/// Whether a lease stands in the way of somebody else's use.
pub(super) fn blocks(kind: LeaseKind, usage: Use) -> bool {
    kind == LeaseKind::Exclusive || usage == Use::Change
}
