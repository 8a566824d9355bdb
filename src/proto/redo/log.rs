//! The client's half: gives numbers, ships, waits for *applied* and *stable*.

use std::collections::{BTreeMap, VecDeque};

use crate::id::{ConnectionId, HostRun, Seq};
use crate::limits::{LOG_AFTER_MAX, LOG_BYTES_UNAPPLIED_MAX, LOG_ENTRIES_UNAPPLIED_MAX};
use crate::proto::PeerMisbehaved;
use crate::wire::errno::Errno;

/// The log; `P` is what an entry carries, `R` its result.
#[derive(Debug)]
pub struct Log<P, R> {
    last: Seq,
    stable: Seq,
    /// The next entry to put on the connection.
    next_to_ship: Seq,
    unapplied: BTreeMap<Seq, Unapplied<P>>,
    unapplied_bytes: usize,
    link: Option<ConnectionId>,
    run: Option<HostRun>,
    ended: bool,
    outputs: VecDeque<Output<P, R>>,
}

/// What the driver is to do.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Output<P, R> {
    /// Put the entry on the connection.
    Ship {
        /// Where.
        connection: ConnectionId,
        /// Which.
        seq: Seq,
        /// After which others.
        after: Vec<Seq>,
        /// What.
        payload: P,
    },
    /// Give the result to whoever waits.
    Applied {
        /// Which.
        seq: Seq,
        /// What the host said, or why it cannot say any more.
        result: Result<R, Errno>,
    },
    /// There is room again, or everything up to here is stable: look again.
    Progress,
}

#[derive(Debug)]
struct Unapplied<P> {
    after: Vec<Seq>,
    payload: P,
    bytes: usize,
}

impl<P: Clone, R> Log<P, R> {
    /// An empty log, without a connection.
    pub fn new() -> Self {
        Self {
            last: Seq::ZERO,
            stable: Seq::ZERO,
            next_to_ship: Seq::ZERO.next(),
            unapplied: BTreeMap::new(),
            unapplied_bytes: 0,
            link: None,
            run: None,
            ended: false,
            outputs: VecDeque::new(),
        }
    }

    /// Numbers an entry of `bytes` bytes of data; it is shipped when a connection is up and no more
    /// than 1,024 numbers are under way. Of `after` (at most 4) only what is not applied is sent.
    pub fn append(&mut self, payload: P, bytes: usize, after: &[Seq]) -> Seq {
        let seq = self.last.next();
        self.last = seq;
        if self.ended {
            self.outputs.push_back(Output::Applied { seq, result: Err(Errno::ENOTCONN) });
            return seq;
        }
        let mut after: Vec<Seq> =
            after.iter().copied().filter(|seq| self.unapplied.contains_key(seq)).collect();
        after.sort_unstable();
        after.dedup();
        debug_assert!(after.len() <= LOG_AFTER_MAX, "callers name at most 4 predecessors");
        self.unapplied_bytes += bytes;
        self.unapplied.insert(seq, Unapplied { after, payload, bytes });
        self.ship();
        seq
    }

    /// Whether `bytes` more fit into what may be under way. One entry always fits an empty log.
    pub fn has_room(&self, bytes: usize) -> bool {
        let span = self.last.next().0 - self.first_unapplied().0;
        let entries_max = LOG_ENTRIES_UNAPPLIED_MAX as u64;
        let fits = self.unapplied_bytes + bytes <= LOG_BYTES_UNAPPLIED_MAX;
        self.ended || span == 0 || (span < entries_max && fits)
    }

    /// A connection is up. A host that is another run than before has forgotten the session's open
    /// files and its record of results, so entries under way cannot be sent again safely: they fail
    /// with EIO.
    pub fn handle_connected(&mut self, connection: ConnectionId, run: HostRun) {
        let same = self.run.is_none_or(|known| known == run);
        self.run = Some(run);
        self.link = Some(connection);
        if !same {
            self.fail_all(Errno::EIO);
            return;
        }
        self.next_to_ship = self.first_unapplied();
        self.ship();
    }

    /// The connection is gone; a report about an older one changes nothing.
    pub fn handle_lost(&mut self, connection: ConnectionId) {
        if self.link == Some(connection) {
            self.link = None;
        }
    }

    /// The host carried an entry out or refused it. A second acknowledgement changes nothing.
    ///
    /// # Errors
    ///
    /// [`PeerMisbehaved::Unasked`] for an entry that was never made.
    pub fn handle_applied(
        &mut self,
        seq: Seq,
        result: Result<R, Errno>,
    ) -> Result<(), PeerMisbehaved> {
        if seq > self.last {
            return Err(PeerMisbehaved::Unasked);
        }
        if let Some(entry) = self.unapplied.remove(&seq) {
            self.unapplied_bytes -= entry.bytes;
            self.outputs.push_back(Output::Applied { seq, result });
            self.outputs.push_back(Output::Progress);
            self.ship();
        }
        Ok(())
    }

    /// All entries up to `upto` are on the host's disk, also those whose acknowledgement of being
    /// applied was lost with a connection and is still to come again.
    ///
    /// # Errors
    ///
    /// [`PeerMisbehaved::Unasked`] for entries that were never made.
    pub fn handle_stable(&mut self, upto: Seq) -> Result<(), PeerMisbehaved> {
        if upto > self.last {
            return Err(PeerMisbehaved::Unasked);
        }
        if upto > self.stable {
            self.stable = upto;
            self.outputs.push_back(Output::Progress);
        }
        Ok(())
    }

    /// The session has ended: nothing is applied any more.
    pub fn end(&mut self) {
        self.ended = true;
        self.link = None;
        self.fail_all(Errno::ENOTCONN);
    }

    /// What to do next.
    pub fn poll_output(&mut self) -> Option<Output<P, R>> {
        self.outputs.pop_front()
    }

    /// The newest entry; [`Seq::ZERO`] before the first.
    pub fn last(&self) -> Seq {
        self.last
    }

    /// The newest entry that is stable with all before it, as far as the host has said.
    pub fn stable(&self) -> Seq {
        self.stable
    }

    /// Entries not yet applied, and their data in bytes.
    pub fn unapplied(&self) -> (usize, usize) {
        (self.unapplied.len(), self.unapplied_bytes)
    }

    fn first_unapplied(&self) -> Seq {
        self.unapplied.keys().next().copied().unwrap_or_else(|| self.last.next())
    }

    fn ship(&mut self) {
        let Some(connection) = self.link else { return };
        let end = Seq(self.first_unapplied().0 + LOG_ENTRIES_UNAPPLIED_MAX as u64);
        for (&seq, entry) in self.unapplied.range(self.next_to_ship..end) {
            let (after, payload) = (entry.after.clone(), entry.payload.clone());
            self.outputs.push_back(Output::Ship { connection, seq, after, payload });
            self.next_to_ship = seq.next();
        }
    }

    fn fail_all(&mut self, errno: Errno) {
        self.unapplied_bytes = 0;
        for seq in std::mem::take(&mut self.unapplied).into_keys() {
            self.outputs.push_back(Output::Applied { seq, result: Err(errno) });
        }
        self.outputs.push_back(Output::Progress);
    }
}

impl<P: Clone, R> Default for Log<P, R> {
    fn default() -> Self {
        Self::new()
    }
}
