//! The client's half: gives numbers, ships, keeps until *stable*, sets aside what fails.

use crate::id::{ConnectionId, NodeId, Seq};
use crate::proto::PeerMisbehaved;
use crate::wire::errno::Errno;
use crate::wire::log::{Change, Cursor, LogAck, LogEntry, Outcome, Promise, Refused};

/// The log; `B` is an entry's body (file data), cheap to clone.
#[derive(Debug)]
pub struct Log<B> {
    body: std::marker::PhantomData<B>,
}

/// What the driver is to do.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Output<B> {
    /// Put the entry on the connection.
    Ship {
        /// Where.
        connection: ConnectionId,
        /// What.
        entry: LogEntry,
        /// Its data.
        body: B,
    },
    /// Give the result to whoever waits; once for each entry.
    Applied {
        /// Which.
        seq: Seq,
        /// What the host said, or why it cannot say any more.
        result: Result<Outcome, Errno>,
    },
    /// An accepted entry failed, or comes after one that did: it is kept aside, and does not hold up
    /// the log.
    Aside {
        /// Which.
        seq: Seq,
        /// Why.
        refused: Refused,
    },
    /// An entry that was struck (its application was told an error) turns out to have been applied.
    StruckApplied {
        /// Which.
        seq: Seq,
        /// What came of it.
        outcome: Outcome,
    },
    /// A node that an application knows had to be made again after a crash of the host's machine.
    Remade {
        /// The entry that made it.
        seq: Seq,
        /// What it was called.
        old: NodeId,
        /// What it is called now.
        new: NodeId,
    },
    /// There is room again, or more is stable: look again.
    Progress,
}

/// An entry that was set aside; its change is as it was appended.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Aside<B> {
    /// Which.
    pub seq: Seq,
    /// Why.
    pub refused: Refused,
    /// What it was to change.
    pub change: Change,
    /// Its data.
    pub body: B,
}

impl<B: Clone + Default> Log<B> {
    /// An empty log, without a connection.
    pub fn new() -> Self {
        unimplemented!()
    }

    /// Numbers a change with `bytes` bytes of data; it is shipped when a connection is up and no
    /// more than 1,024 numbers are unapplied. Where it touches what was set aside, it is set aside
    /// too (accepted) or fails with EIO (awaited).
    pub fn append(&mut self, change: Change, body: B, bytes: usize, promise: Promise) -> Seq {
        let _ = (change, body, bytes, promise);
        unimplemented!()
    }

    /// Whether `bytes` more fit: 8,192 numbers and 64 MiB may be unstable, 1,024 numbers and 32 MiB
    /// unapplied. One entry always fits an empty log.
    pub fn has_room(&self, bytes: usize) -> bool {
        let _ = bytes;
        unimplemented!()
    }

    /// A connection is up, to a host that is as far as `cursor` says. A host that does not know the
    /// session, or is in another epoch, gets everything since *stable* again.
    ///
    /// # Errors
    ///
    /// [`PeerMisbehaved::Unasked`] if the cursor names entries that were never made.
    pub fn handle_connected(
        &mut self,
        connection: ConnectionId,
        cursor: &Cursor,
    ) -> Result<(), PeerMisbehaved> {
        let _ = (connection, cursor);
        unimplemented!()
    }

    /// The connection is gone; a report about an older one changes nothing.
    pub fn handle_lost(&mut self, connection: ConnectionId) {
        let _ = connection;
        unimplemented!()
    }

    /// Nobody waits for the host any longer: entries that are awaited are struck and fail with
    /// ETIMEDOUT, also those to come until the next connection. What was accepted stays.
    pub fn give_up(&mut self) {
        unimplemented!()
    }

    /// The host said something about entries. A second acknowledgement changes nothing.
    ///
    /// # Errors
    ///
    /// [`PeerMisbehaved::Unasked`] for an entry that was never made.
    pub fn handle_ack(&mut self, ack: LogAck) -> Result<(), PeerMisbehaved> {
        let _ = ack;
        unimplemented!()
    }

    /// The session has ended: nothing is applied any more (ENOTCONN).
    pub fn end(&mut self) {
        unimplemented!()
    }

    /// What to do next.
    pub fn poll_output(&mut self) -> Option<Output<B>> {
        unimplemented!()
    }

    /// The first entry that is still held: a host that does not know the session begins here.
    pub fn held(&self) -> Seq {
        unimplemented!()
    }

    /// The first entry without an answer: the host says again what came of this one and later ones.
    pub fn unanswered(&self) -> Seq {
        unimplemented!()
    }

    /// The newest entry; [`Seq::ZERO`] before the first.
    pub fn last(&self) -> Seq {
        unimplemented!()
    }

    /// The newest entry that is stable with all before it, as far as the host has said.
    pub fn stable(&self) -> Seq {
        unimplemented!()
    }

    /// The last entry, not yet stable, that touches the node: what an `fsync` of it waits for.
    pub fn last_of(&self, node: NodeId) -> Option<Seq> {
        let _ = node;
        unimplemented!()
    }

    /// Entries not yet applied, and their data in bytes.
    pub fn unapplied(&self) -> (usize, usize) {
        unimplemented!()
    }

    /// Entries not yet stable, and their data in bytes.
    pub fn unstable(&self) -> (usize, usize) {
        unimplemented!()
    }

    /// What was set aside, oldest first.
    pub fn aside(&self) -> impl Iterator<Item = &Aside<B>> {
        std::iter::empty()
    }

    /// What was set aside under this number is kept elsewhere now (a conflict copy), or the user
    /// gave it up. The nodes that only it touched may be changed again.
    pub fn settle_aside(&mut self, seq: Seq) -> Option<Aside<B>> {
        let _ = seq;
        unimplemented!()
    }

    /// Where an entry stands, for status and for tests of coverage: `"waiting"`, `"shipped"`,
    /// `"applied"`, `"stable"`, `"struck"`, `"aside"`, `"failed"`.
    pub fn state_of(&self, seq: Seq) -> &'static str {
        let _ = seq;
        unimplemented!()
    }
}
