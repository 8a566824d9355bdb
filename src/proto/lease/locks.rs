//! File locks: the host's table over all sessions, and what a client has to ask for again.

use std::time::Instant;

use crate::id::{HandleId, RequestId, SessionId};
use crate::proto::PeerMisbehaved;
use crate::wire::errno::Errno;
use crate::wire::lease::{LeaseRequest, Lock, Notice};

/// The locks of one share. Locks of processes on the host are not here: the driver asks the host's
/// kernel for each one that this table would give.
#[derive(Debug)]
pub struct Table {}

/// What the driver is to do.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Output {
    /// Put it on the lease stream of the session's connection, if it has one.
    Send {
        /// Whose.
        session: SessionId,
        /// What.
        notice: Notice,
    },
    /// Lock the host's file for the session's owner, then [`Table::handle_taken`].
    Take {
        /// Whose.
        session: SessionId,
        /// Which.
        lock: Lock,
    },
    /// Unlock the host's file.
    Free {
        /// Whose.
        session: SessionId,
        /// Which.
        lock: Lock,
    },
}

impl Table {
    /// For a run of the host; `expected` as for [`super::grantor::Grantor::new`].
    pub fn new(expected: impl IntoIterator<Item = SessionId>, now: Instant) -> Self {
        let _ = (expected.into_iter().count(), now);
        unimplemented!()
    }

    /// A session asks about locks.
    ///
    /// # Errors
    ///
    /// [`PeerMisbehaved::TooMany`] for more locks than agreed, [`PeerMisbehaved::Unasked`] for what
    /// is none of this machine's business.
    pub fn handle_request(
        &mut self,
        session: SessionId,
        request: LeaseRequest,
        now: Instant,
    ) -> Result<(), PeerMisbehaved> {
        let _ = (session, request, now);
        unimplemented!()
    }

    /// The host's kernel has (not) given a lock.
    pub fn handle_taken(&mut self, session: SessionId, lock: Lock, taken: bool, now: Instant) {
        let _ = (session, lock, taken, now);
        unimplemented!()
    }

    /// A handle is closed: its locks are free.
    pub fn close(&mut self, session: SessionId, handle: HandleId, now: Instant) {
        let _ = (session, handle, now);
        unimplemented!()
    }

    /// The session is over: its locks are free.
    pub fn forget(&mut self, session: SessionId, now: Instant) {
        let _ = (session, now);
        unimplemented!()
    }

    /// Who keeps the owner from having this lock (`F_GETLK`).
    pub fn blocker(&self, session: SessionId, lock: &Lock) -> Option<Lock> {
        let _ = (session, lock);
        unimplemented!()
    }

    /// The wait after a restart may be over.
    pub fn handle_timeout(&mut self, now: Instant) {
        let _ = now;
        unimplemented!()
    }

    /// When [`Self::handle_timeout`] wants to be called.
    pub fn poll_timeout(&self) -> Option<Instant> {
        unimplemented!()
    }

    /// What to do next.
    pub fn poll_output(&mut self) -> Option<Output> {
        unimplemented!()
    }
}

/// The locks of one client.
#[derive(Debug, Default)]
pub struct Locks {}

/// What the client's driver is to do.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum ClientOutput {
    /// Put it on the lease stream of the connection.
    Send(LeaseRequest),
    /// Tell who asked for the lock.
    Locked {
        /// Which request.
        request: RequestId,
        /// EAGAIN: somebody else has it.
        result: Result<(), Errno>,
    },
    /// A lock could not be had again: everything through its handle fails with EIO until it is
    /// closed.
    Broken(HandleId),
}

impl Locks {
    /// Asks for a lock.
    pub fn lock(&mut self, lock: Lock, wait: bool) -> RequestId {
        let _ = (lock, wait);
        unimplemented!()
    }

    /// Lets bytes go.
    pub fn unlock(&mut self, lock: Lock) {
        let _ = lock;
        unimplemented!()
    }

    /// Nobody waits for the lock any longer.
    pub fn cancel(&mut self, request: RequestId) {
        let _ = request;
        unimplemented!()
    }

    /// A handle is closed.
    pub fn close(&mut self, handle: HandleId) {
        let _ = handle;
        unimplemented!()
    }

    /// The host's [`Notice::Run`] came: `restarted` if it is another run. Requests without an answer
    /// are sent again; after a restart locks are asked for again first.
    pub fn handle_run(&mut self, restarted: bool) {
        let _ = restarted;
        unimplemented!()
    }

    /// The host said something about locks.
    ///
    /// # Errors
    ///
    /// [`PeerMisbehaved::Unasked`] for an answer to nothing.
    pub fn handle_notice(&mut self, notice: &Notice) -> Result<(), PeerMisbehaved> {
        let _ = notice;
        unimplemented!()
    }

    /// Whether a handle lost a lock that its user counts on.
    pub fn is_broken(&self, handle: HandleId) -> bool {
        let _ = handle;
        unimplemented!()
    }

    /// What to do next.
    pub fn poll_output(&mut self) -> Option<ClientOutput> {
        unimplemented!()
    }
}
