//! The host's half: applies entries in the order that they ask for, each once.

use std::time::Instant;

use crate::id::{Epoch, NodeId, Seq};
use crate::proto::PeerMisbehaved;
use crate::proto::redo::execute::How;
use crate::proto::redo::record::Recovered;
use crate::wire::log::{Change, Cursor, LogAck, LogEntry, Outcome, Refused};

/// The applier of one session; `B` is an entry's body, `W` names somebody who waits.
#[derive(Debug)]
pub struct Applier<B, W> {
    body: std::marker::PhantomData<(B, W)>,
}

/// What the driver is to do.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Output<B, W> {
    /// Carry the entry out with [`super::execute::execute`], then report.
    Apply {
        /// Which.
        seq: Seq,
        /// What; every node is named by its identity.
        change: Change,
        /// Its data.
        body: B,
        /// Whether it may have been carried out before.
        how: How,
        /// Whether its failure sets aside what comes after it: for the record.
        poisons: bool,
    },
    /// Tell the client.
    Ack(LogAck),
    /// Everything that this one waited for is applied.
    Reached(W),
    /// Sync the share's file system, then report with the same number.
    Sync {
        /// The last entry that will be stable.
        upto: Seq,
    },
}

impl<B, W> Applier<B, W> {
    /// For a session that this host does not know; its first entry will be `held`.
    pub fn new(epoch: Epoch, held: Seq) -> Self {
        let _ = (epoch, held);
        unimplemented!()
    }

    /// For a session that a killed run of this host has recorded in the same epoch.
    pub fn recover(recovered: Recovered) -> Self {
        let _ = recovered;
        unimplemented!()
    }

    /// A connection of the session is up: tells how far its entries are, and says again what came of
    /// `unanswered` and later ones.
    pub fn resume(&mut self, unanswered: Seq) -> Cursor {
        let _ = unanswered;
        unimplemented!()
    }

    /// An entry with `bytes` bytes of data arrived, perhaps not for the first time.
    ///
    /// # Errors
    ///
    /// [`PeerMisbehaved::Sequence`] for a number out of the window, a predecessor or a maker that is
    /// not before it; [`PeerMisbehaved::TooMany`] for more than 8 predecessors, too many groups or
    /// more data than agreed.
    pub fn handle_entry(
        &mut self,
        entry: LogEntry,
        body: B,
        bytes: usize,
        now: Instant,
    ) -> Result<(), PeerMisbehaved> {
        let _ = (entry, body, bytes, now);
        unimplemented!()
    }

    /// The driver has carried an entry out.
    pub fn handle_result(&mut self, seq: Seq, result: Result<Outcome, Refused>, now: Instant) {
        let _ = (seq, result, now);
        unimplemented!()
    }

    /// `waiter` wants to know when all entries up to `upto` are applied.
    pub fn wait_for(&mut self, upto: Seq, waiter: W) {
        let _ = (upto, waiter);
        unimplemented!()
    }

    /// Somebody else has changed a node: what this session changed of it must reach the disk soon,
    /// so that a crash does not make it change the node again. True if there is such a change.
    pub fn handle_foreign_change(&mut self, node: NodeId, now: Instant) -> bool {
        let _ = (node, now);
        unimplemented!()
    }

    /// The driver has synced everything that was applied when entry `upto` was the cursor.
    pub fn handle_synced(&mut self, upto: Seq, now: Instant) {
        let _ = (upto, now);
        unimplemented!()
    }

    /// The disk failed to take data: what is not stable may be lost. Begins another epoch.
    pub fn handle_disk_failed(&mut self, epoch: Epoch, now: Instant) {
        let _ = (epoch, now);
        unimplemented!()
    }

    /// A sync may be due.
    pub fn handle_timeout(&mut self, now: Instant) {
        let _ = now;
        unimplemented!()
    }

    /// When [`Self::handle_timeout`] wants to be called.
    pub fn poll_timeout(&self) -> Option<Instant> {
        unimplemented!()
    }

    /// What to do next.
    pub fn poll_output(&mut self) -> Option<Output<B, W>> {
        unimplemented!()
    }

    /// All entries up to here are carried out or refused.
    pub fn cursor(&self) -> Seq {
        unimplemented!()
    }

    /// The newest entry that is stable with all before it.
    pub fn stable(&self) -> Seq {
        unimplemented!()
    }

    /// Entries and bytes that wait here for others.
    pub fn waiting(&self) -> (usize, usize) {
        unimplemented!()
    }

    /// Whether entries that may have been carried out before an epoch ended are still to come: until
    /// then what the session changed is served to nobody else.
    pub fn is_redoing(&self) -> bool {
        unimplemented!()
    }

    /// Where an entry stands, for status and for tests of coverage: `"unseen"`, `"waiting"`,
    /// `"running"`, `"applied"`, `"failed"`, `"aside"`, `"stable"`.
    pub fn state_of(&self, seq: Seq) -> &'static str {
        let _ = seq;
        unimplemented!()
    }
}
