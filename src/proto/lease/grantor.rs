//! The host's half: who may answer for which object, and getting it back.
//!
//! # The term
//!
//! A session's leases last until a term after the arrival of its last renewal; the holder counts
//! from the sending. A session that does not renew gets no lease, and neither does one that has not
//! yet said [`LeaseRequest::ReclaimDone`] to this run, so that no number is used twice.
//!
//! # Uses
//!
//! Uses never wait for each other, only for leases of other sessions. So there is no order in which
//! they could block each other, and none starves: while a use waits, nothing that it would wait for
//! is granted. While a use is under way, and has not [`finished`](Grantor::finished), nobody else
//! gets a lease that it conflicts with; and whoever read while somebody else changed gets none with
//! that answer. A lease takes nothing from others: [`LeaseRequest::Acquire`] is refused where
//! another session holds the object, or uses it; only uses recall.
//!
//! # Numbers
//!
//! A number never permits more than it did. A session that asks for more gets another number, and
//! returns the old one when that has arrived; until then it has both. What it has is offered again
//! under the same number, for the answer that brought it may be lost.
//!
//! # What may be lost on the way
//!
//! Recalls are said again on the next connection, and so are ends of leases ([`Notice::Changed`],
//! [`Notice::Void`]) until the holder has confirmed them by a [`LeaseRequest::Return`] of the
//! number that they name. The number that a `Void` names is no lease's, so that its return can mean
//! nothing else; it says by what it keeps whether entries still count on leases before it. Until
//! then, or the end of its term, what the holder may still believe in keeps others from *leases*,
//! though not from uses: so no two holders ever believe in what excludes each other, and no restart
//! of the host finds two that do.

use std::collections::{BTreeMap, VecDeque};
use std::time::Instant;

use crate::id::{HostRun, LeaseId, NodeId, SessionId};
use crate::limits::LEASE_TERM;
use crate::proto::PeerMisbehaved;
use crate::wire::lease::{Claim, Lease, LeaseKind, LeaseRequest, Notice, Version};

mod end;
mod grace;
mod grant;
mod state;
mod usage;

use grace::Grace;
use state::{Node, Session};
use usage::Waiting;

/// The leases of one share; `T` names a use that waits.
#[derive(Debug)]
pub struct Grantor<T> {
    run: HostRun,
    sessions: BTreeMap<SessionId, Session>,
    nodes: BTreeMap<NodeId, Node>,
    waiting: BTreeMap<u64, Waiting<T>>,
    next_waiting: u64,
    grace: Option<Grace>,
    outputs: VecDeque<Output<T>>,
}

/// Who uses an object.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum User {
    /// A session.
    Session(SessionId),
    /// A process on the host; it cannot be made to wait.
    Process,
}

/// How an object is used.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Use {
    /// It is read: nobody else may have accepted changes of it.
    Read,
    /// It is changed: nobody else may answer for it.
    Change,
}

/// What an entry that was accepted under a lease may count on.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Standing {
    /// The lease stands, or nobody has changed the object since it lapsed: the entry is applied.
    Good,
    /// Somebody else has changed the object since, or the lease was never heard of: a conflict.
    Overtaken,
}

/// What the driver is to do.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Output<T> {
    /// Put it on the lease stream of the session's connection, if it has one.
    Send {
        /// Whose.
        session: SessionId,
        /// What.
        notice: Notice,
    },
    /// The use that waited may go on.
    Go(T),
    /// Watch the object, compare what it is with what the claim says, then
    /// [`Grantor::handle_compared`].
    Compare {
        /// Whose.
        session: SessionId,
        /// What it says.
        claim: Claim,
    },
    /// Watch the object for changes by processes on the host, look at it, then
    /// [`Grantor::handle_watched`]. It may be watched already.
    Watch {
        /// Which.
        node: NodeId,
    },
    /// Nobody has a lease on it any more.
    Unwatch {
        /// Which.
        node: NodeId,
    },
}

impl<T> Grantor<T> {
    /// For a run of the host; `expected`: the sessions of an earlier run that may still believe in
    /// their leases. Until they are back, or a term has passed, nothing is given away. A session
    /// that is connected at the end of that term, and not done, gets another, five times at most.
    pub fn new(run: HostRun, expected: impl IntoIterator<Item = SessionId>, now: Instant) -> Self {
        Self {
            run,
            sessions: BTreeMap::new(),
            nodes: BTreeMap::new(),
            waiting: BTreeMap::new(),
            next_waiting: 0,
            grace: Grace::new(expected, now),
            outputs: VecDeque::new(),
        }
    }

    /// A connection of a session is up: says [`Notice::Run`], and again what an earlier connection
    /// may have lost.
    pub fn handle_connected(&mut self, session: SessionId, now: Instant) {
        self.expire(now);
        let known = self.sessions.entry(session).or_default();
        known.linked = true;
        let mut notices = vec![Notice::Run {
            run: self.run,
            term_ms: u32::try_from(LEASE_TERM.as_millis()).unwrap_or(u32::MAX),
            standing: known.void.is_none(),
        }];
        notices.extend(known.void.map(|upto| Notice::Void { upto }));
        let changed = known.ended.iter().filter(|(lease, _)| Some(**lease) > known.void);
        notices.extend(changed.map(|(&lease, ended)| Notice::Changed { lease, node: ended.node }));
        notices.extend(known.recalls.iter().filter_map(|&(_, lease)| {
            let keep = known.leases.get(&lease)?.recall?.keep;
            Some(Notice::Recall { lease, keep })
        }));
        for notice in notices {
            self.outputs.push_back(Output::Send { session, notice });
        }
    }

    /// The connection is gone; the leases last until the end of their term.
    pub fn handle_lost(&mut self, session: SessionId, now: Instant) {
        self.expire(now);
        if let Some(known) = self.sessions.get_mut(&session) {
            known.linked = false;
        }
    }

    /// The session is over: its leases are free at once. Tickets of its uses that wait are dropped.
    pub fn forget(&mut self, session: SessionId, now: Instant) {
        self.expire(now);
        self.drop_session(session, now);
        self.check_grace(now);
    }

    /// A session asks. Locks are [`super::locks`]'s business, and pre-made nodes the tree's. What
    /// comes from a session that never connected is not heeded.
    ///
    /// # Errors
    ///
    /// [`PeerMisbehaved::TooMany`] for more claims than agreed, [`PeerMisbehaved::Sequence`] for
    /// numbers that leave no room for others, [`PeerMisbehaved::Unasked`] for what is none of this
    /// machine's business.
    pub fn handle_request(
        &mut self,
        session: SessionId,
        request: LeaseRequest,
        now: Instant,
    ) -> Result<(), PeerMisbehaved> {
        self.expire(now);
        match request {
            LeaseRequest::Renew { number } => {
                self.renew(session, number, now);
                Ok(())
            }
            LeaseRequest::Acquire { request, node, kind } => {
                self.acquire(session, request, node, kind, now);
                Ok(())
            }
            LeaseRequest::Return { lease, keep } => {
                self.returned(session, lease, keep, now);
                Ok(())
            }
            LeaseRequest::Reclaim { claims } => self.reclaim(session, claims, now),
            LeaseRequest::ReclaimDone { next } => self.reclaim_done(session, next, now),
            LeaseRequest::ReclaimLocks { .. }
            | LeaseRequest::Lock { .. }
            | LeaseRequest::Unlock { .. }
            | LeaseRequest::CancelLock { .. }
            | LeaseRequest::TestLock { .. }
            | LeaseRequest::Premake { .. } => Err(PeerMisbehaved::Unasked),
        }
    }

    /// The driver watches the node, and this is what it is; `None`: it cannot be watched.
    pub fn handle_watched(&mut self, node: NodeId, version: Option<Version>, now: Instant) {
        self.expire(now);
        self.grant_asked(node, version, now);
    }

    /// The object is (not) what the claim says. What the session's own entries have changed since
    /// does not count: it had accepted them under the lease.
    pub fn handle_compared(
        &mut self,
        session: SessionId,
        lease: LeaseId,
        same: bool,
        now: Instant,
    ) {
        self.expire(now);
        self.settle_claim(session, lease, same, now);
        self.check_grace(now);
    }

    /// What the session had applied before the restart is applied again: it is back when it has
    /// also said [`LeaseRequest::ReclaimDone`] and its claims are compared. Until then its uses do
    /// not wait for the end of the grace; so what is *not* sent again has to wait for this.
    pub fn handle_redone(&mut self, session: SessionId, now: Instant) {
        self.expire(now);
        if let Some(grace) = &mut self.grace {
            grace.redone(session);
        }
        self.check_grace(now);
    }

    /// Whether the session may still claim the leases that its entries name: such an entry waits
    /// until this is false, because claims and entries come on different streams; only then
    /// [`Self::standing`] is asked.
    pub fn is_reclaiming(&self, session: SessionId) -> bool {
        match self.sessions.get(&session) {
            Some(known) => !known.ready || !known.claims.is_empty(),
            None => self.grace.as_ref().is_some_and(|grace| grace.expects(session)),
        }
    }

    /// A lease to send along with an answer, if nobody minds; the driver watches the node already,
    /// and has taken in every change that it was told of. To be asked before the answer's own use
    /// is [`finished`](Self::finished).
    pub fn offer(
        &mut self,
        session: SessionId,
        node: NodeId,
        kind: LeaseKind,
        now: Instant,
    ) -> Option<Lease> {
        self.expire(now);
        self.grant(session, node, kind, now)
    }

    /// Somebody is about to use objects: [`Output::Go`] with the ticket when no other session's
    /// lease stands in the way; those that do are recalled. A session's own leases never do. A
    /// process goes on at once, and what it changes is as if [`Self::handle_changed`] were told.
    pub fn wants(&mut self, user: User, uses: &[(NodeId, Use)], ticket: T, now: Instant) {
        self.expire(now);
        if user == User::Process {
            for &(node, usage) in uses {
                if usage == Use::Change {
                    self.change(node, now);
                }
            }
        }
        self.enqueue(user, uses, ticket, now);
    }

    /// A use that [`Output::Go`] let go on is over: what it looked at or changed may be leased
    /// again.
    pub fn finished(&mut self, user: User, uses: &[(NodeId, Use)], now: Instant) {
        self.expire(now);
        for &(id, usage) in uses {
            if let Some(node) = self.nodes.get_mut(&id) {
                node.finish(user, usage);
            }
            self.tidy(id);
        }
    }

    /// What an entry of the session that was accepted under a lease may count on: asked when the
    /// entry's use has been let go, and not while [`Self::is_reclaiming`]. An entry that is sent
    /// again does not count on its lease any more, which may have been returned since it was
    /// applied: its names and its data decide.
    pub fn standing(&self, session: SessionId, lease: LeaseId, node: NodeId) -> Standing {
        let Some(known) = self.sessions.get(&session) else {
            return Standing::Overtaken;
        };
        let held = known.leases.get(&lease).map(|held| held.node);
        let of = held.or_else(|| known.lapsed.get(&lease).copied());
        if of == Some(node) { Standing::Good } else { Standing::Overtaken }
    }

    /// A process on the host has changed an object: leases of it are over.
    pub fn handle_changed(&mut self, node: NodeId, now: Instant) {
        self.expire(now);
        self.change(node, now);
        self.check_grace(now);
    }

    /// Events of processes on the host were missed: all leases are over.
    pub fn handle_overflow(&mut self, now: Instant) {
        self.expire(now);
        self.void_everything(now);
        self.check_grace(now);
    }

    /// A term or the wait after a restart may be over.
    pub fn handle_timeout(&mut self, now: Instant) {
        self.expire(now);
    }

    /// When [`Self::handle_timeout`] wants to be called.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let terms = self.sessions.values().filter_map(Session::deadline);
        terms.chain(self.grace.as_ref().map(Grace::until)).min()
    }

    /// What to do next.
    pub fn poll_output(&mut self) -> Option<Output<T>> {
        self.outputs.pop_front()
    }

    /// Whether sessions of an earlier run are waited for: nothing is given away.
    pub fn is_in_grace(&self) -> bool {
        self.grace.is_some()
    }

    /// Leases granted.
    pub fn len(&self) -> usize {
        self.sessions.values().map(|session| session.leases.len()).sum()
    }

    /// Whether none is granted.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Where the object stands, for status and for tests of coverage: `"free"`, `"shared"`,
    /// `"exclusive"`, `"recalling"`, `"expiring"` (recalled from a session without a connection),
    /// `"grace"`.
    pub fn state_of(&self, node: NodeId) -> &'static str {
        if self.is_in_grace() {
            return "grace";
        }
        let mut state = "free";
        for (session, lease) in self.nodes.get(&node).into_iter().flat_map(|node| &node.leases) {
            let Some(known) = self.sessions.get(session) else {
                continue;
            };
            let Some(held) = known.leases.get(lease) else {
                continue;
            };
            state = match (held.recall, held.kind) {
                (Some(_), _) if known.linked => return "recalling",
                (Some(_), _) => return "expiring",
                (None, LeaseKind::Exclusive) => "exclusive",
                (None, LeaseKind::Shared) if state == "exclusive" => state,
                (None, LeaseKind::Shared) => "shared",
            };
        }
        state
    }

    fn notify(&mut self, session: SessionId, notice: Notice) {
        if self.sessions.get(&session).is_some_and(|known| known.linked) {
            self.outputs.push_back(Output::Send { session, notice });
        }
    }
}

#[cfg(test)]
impl<T> Grantor<T> {
    pub(super) fn has_given(&self, session: SessionId, lease: LeaseId) -> bool {
        self.sessions.get(&session).is_some_and(|known| known.leases.contains_key(&lease))
    }

    /// Objects that are remembered.
    pub(super) fn objects(&self) -> Vec<NodeId> {
        self.nodes.keys().copied().collect()
    }
}
