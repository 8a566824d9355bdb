//! The host's half: who may answer for which object, and getting it back.

use std::time::Instant;

use crate::id::{HostRun, LeaseId, NodeId, SessionId};
use crate::proto::PeerMisbehaved;
use crate::wire::lease::{Claim, Lease, LeaseKind, LeaseRequest, Notice, Version};

/// The leases of one share; `T` names a use that waits.
#[derive(Debug)]
pub struct Grantor<T> {
    tickets: std::marker::PhantomData<T>,
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
    /// The lease stands, or nobody has used the object since it lapsed: the entry is applied.
    Good,
    /// Somebody else has used the object since: a conflict.
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
    /// Compare what the object is with what the claim says, then [`Grantor::handle_compared`].
    Compare {
        /// Whose.
        session: SessionId,
        /// What it says.
        claim: Claim,
    },
    /// Watch the object for changes by processes on the host, look at it, then
    /// [`Grantor::handle_watched`].
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
    /// their leases. Until they are back, or a term has passed, nothing is given away.
    pub fn new(run: HostRun, expected: impl IntoIterator<Item = SessionId>, now: Instant) -> Self {
        let _ = (run, expected.into_iter().count(), now);
        unimplemented!()
    }

    /// A connection of a session is up.
    pub fn handle_connected(&mut self, session: SessionId, now: Instant) {
        let _ = (session, now);
        unimplemented!()
    }

    /// The connection is gone; the leases last until the end of their term.
    pub fn handle_lost(&mut self, session: SessionId, now: Instant) {
        let _ = (session, now);
        unimplemented!()
    }

    /// The session is over: its leases are free at once.
    pub fn forget(&mut self, session: SessionId, now: Instant) {
        let _ = (session, now);
        unimplemented!()
    }

    /// A session asks. Locks are [`super::locks`]'s business, and pre-made nodes the tree's.
    ///
    /// # Errors
    ///
    /// [`PeerMisbehaved::TooMany`] for more leases or claims than agreed,
    /// [`PeerMisbehaved::Unasked`] for what is none of this machine's business.
    pub fn handle_request(
        &mut self,
        session: SessionId,
        request: LeaseRequest,
        now: Instant,
    ) -> Result<(), PeerMisbehaved> {
        let _ = (session, request, now);
        unimplemented!()
    }

    /// The driver watches the node, and this is what it is.
    pub fn handle_watched(&mut self, node: NodeId, version: Option<Version>, now: Instant) {
        let _ = (node, version, now);
        unimplemented!()
    }

    /// The object is (not) what the claim says.
    pub fn handle_compared(
        &mut self,
        session: SessionId,
        lease: LeaseId,
        same: bool,
        now: Instant,
    ) {
        let _ = (session, lease, same, now);
        unimplemented!()
    }

    /// What the session had applied before the restart is applied again: it is back when it has also
    /// said [`LeaseRequest::ReclaimDone`].
    pub fn handle_redone(&mut self, session: SessionId, now: Instant) {
        let _ = (session, now);
        unimplemented!()
    }

    /// A lease to send along with an answer, if nobody minds; the driver watches the node already.
    pub fn offer(
        &mut self,
        session: SessionId,
        node: NodeId,
        kind: LeaseKind,
        now: Instant,
    ) -> Option<Lease> {
        let _ = (session, node, kind, now);
        unimplemented!()
    }

    /// Somebody is about to use objects: [`Output::Go`] with the ticket when no other session's
    /// lease stands in the way; those that do are recalled. A session's own leases never do.
    pub fn wants(&mut self, user: User, uses: &[(NodeId, Use)], ticket: T, now: Instant) {
        let _ = (user, uses, ticket, now);
        unimplemented!()
    }

    /// A use that [`Output::Go`] let go on is over: what it looked at or changed may be leased again.
    pub fn finished(&mut self, user: User, uses: &[(NodeId, Use)], now: Instant) {
        let _ = (user, uses, now);
        unimplemented!()
    }

    /// What an entry of the session that was accepted under a lease may count on.
    pub fn standing(&self, session: SessionId, lease: LeaseId, node: NodeId) -> Standing {
        let _ = (session, lease, node);
        unimplemented!()
    }

    /// A process on the host has changed an object: leases of it are over.
    pub fn handle_changed(&mut self, node: NodeId, now: Instant) {
        let _ = (node, now);
        unimplemented!()
    }

    /// Events of processes on the host were missed: all leases are over.
    pub fn handle_overflow(&mut self, now: Instant) {
        let _ = now;
        unimplemented!()
    }

    /// A term or the wait after a restart may be over.
    pub fn handle_timeout(&mut self, now: Instant) {
        let _ = now;
        unimplemented!()
    }

    /// When [`Self::handle_timeout`] wants to be called.
    pub fn poll_timeout(&self) -> Option<Instant> {
        unimplemented!()
    }

    /// What to do next.
    pub fn poll_output(&mut self) -> Option<Output<T>> {
        unimplemented!()
    }

    /// Leases granted.
    pub fn len(&self) -> usize {
        unimplemented!()
    }

    /// Whether none is granted.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Where the object stands, for status and for tests of coverage: `"free"`, `"shared"`,
    /// `"exclusive"`, `"recalling"`, `"expiring"`, `"grace"`.
    pub fn state_of(&self, node: NodeId) -> &'static str {
        let _ = node;
        unimplemented!()
    }
}
