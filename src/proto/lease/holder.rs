//! The client's half: what may be answered and accepted here, and giving it back.

use std::time::Instant;

use crate::id::{LeaseId, NodeId, RequestId, Seq};
use crate::proto::PeerMisbehaved;
use crate::wire::lease::{Lease, LeaseKind, LeaseRequest, Notice, Version};

/// The leases of one session.
#[derive(Debug)]
pub struct Holder {}

/// What the driver is to do.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Output {
    /// Put it on the lease stream of the connection.
    Send(LeaseRequest),
    /// A lease is there, or not: whoever asked looks again.
    Answered {
        /// Which request.
        request: RequestId,
        /// What came.
        lease: Option<Lease>,
    },
    /// Have the kernel hand over what it holds dirty of the node, then
    /// [`Holder::handle_flushed`]; what it hands over is still accepted under the lease.
    Flush {
        /// Which lease.
        lease: LeaseId,
        /// Which node.
        node: NodeId,
    },
    /// Forget what was cached under the lease, here and in the kernel.
    Drop {
        /// Which node.
        node: NodeId,
    },
    /// The lease is over before everything that was accepted under it was applied: the host decides
    /// by what has become of the object.
    Lost {
        /// Which lease.
        lease: LeaseId,
        /// Which node.
        node: NodeId,
    },
}

impl Holder {
    /// Without leases, without a connection.
    pub fn new(now: Instant) -> Self {
        let _ = now;
        unimplemented!()
    }

    /// A connection is up; the host's [`Notice::Run`] follows.
    pub fn handle_connected(&mut self, now: Instant) {
        let _ = now;
        unimplemented!()
    }

    /// The connection is gone. Leases last until the end of their term.
    pub fn handle_lost(&mut self, now: Instant) {
        let _ = now;
        unimplemented!()
    }

    /// The host said something.
    ///
    /// # Errors
    ///
    /// [`PeerMisbehaved`] for an answer to nothing or more leases than agreed.
    pub fn handle_notice(&mut self, notice: Notice, now: Instant) -> Result<(), PeerMisbehaved> {
        let _ = (notice, now);
        unimplemented!()
    }

    /// A lease came along with an answer.
    ///
    /// # Errors
    ///
    /// As [`Self::handle_notice`].
    pub fn handle_lease(
        &mut self,
        lease: Lease,
        version: Version,
        now: Instant,
    ) -> Result<(), PeerMisbehaved> {
        let _ = (lease, version, now);
        unimplemented!()
    }

    /// Asks for a lease, or for more than is held.
    pub fn acquire(&mut self, node: NodeId, kind: LeaseKind, now: Instant) -> RequestId {
        let _ = (node, kind, now);
        unimplemented!()
    }

    /// Whether reads of the node may be answered from the cache now.
    pub fn may_read(&self, node: NodeId, now: Instant) -> Option<LeaseId> {
        let _ = (node, now);
        unimplemented!()
    }

    /// Whether changes of the node may be accepted now: held exclusively, not being returned, within
    /// the term.
    pub fn may_write(&self, node: NodeId, now: Instant) -> Option<LeaseId> {
        let _ = (node, now);
        unimplemented!()
    }

    /// As [`Self::may_write`], for what the kernel hands over while the lease is being returned.
    pub fn may_flush(&self, node: NodeId, now: Instant) -> Option<LeaseId> {
        let _ = (node, now);
        unimplemented!()
    }

    /// Entry `seq` was accepted under the lease.
    pub fn accepted(&mut self, lease: LeaseId, seq: Seq) {
        let _ = (lease, seq);
        unimplemented!()
    }

    /// The host has answered entry `seq`; `version`: what the object is since, where that is known.
    pub fn handle_applied(&mut self, seq: Seq, version: Option<Version>, now: Instant) {
        let _ = (seq, version, now);
        unimplemented!()
    }

    /// The kernel has handed over what it held of the lease's node.
    pub fn handle_flushed(&mut self, lease: LeaseId, now: Instant) {
        let _ = (lease, now);
        unimplemented!()
    }

    /// Lets a lease go that is not used.
    pub fn release(&mut self, lease: LeaseId, now: Instant) {
        let _ = (lease, now);
        unimplemented!()
    }

    /// The machine is about to sleep, or has woken: all leases are dropped.
    pub fn handle_suspend(&mut self, now: Instant) {
        let _ = now;
        unimplemented!()
    }

    /// A renewal may be due, or the term over.
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

    /// Leases held.
    pub fn len(&self) -> usize {
        unimplemented!()
    }

    /// Whether none is held.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Where the node's lease stands, for status and for tests of coverage: `"none"`, `"asked"`,
    /// `"shared"`, `"exclusive"`, `"flushing"`, `"draining"`, `"claimed"`.
    pub fn state_of(&self, node: NodeId) -> &'static str {
        let _ = node;
        unimplemented!()
    }
}
