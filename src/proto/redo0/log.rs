//! The client's half: gives numbers, ships, waits for *applied* and *stable*.

use std::collections::{BTreeMap, VecDeque};

use crate::id::{ConnectionId, Seq};
use crate::limits::{LOG_AFTER_MAX, LOG_BYTES_UNAPPLIED_MAX, LOG_ENTRIES_UNAPPLIED_MAX};
use crate::proto::PeerMisbehaved;
use crate::wire::errno::Errno;

/// The log; `P` is what an entry carries, `R` its result.
#[derive(Debug)]
pub struct Log<P, R> {
    /// Carried by struck entries.
    nothing: P,
    last: Seq,
    stable: Seq,
    /// The next entry to put on the connection.
    next_to_ship: Seq,
    /// The first entry that was never put on any connection.
    unseen: Seq,
    unapplied: BTreeMap<Seq, Unapplied<P>>,
    unapplied_bytes: usize,
    link: Link,
    outputs: VecDeque<Output<P, R>>,
}

/// Who counts on an entry.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Promise {
    /// Somebody waits for the result, and is told if it does not come.
    Awaited,
    /// An application was told that it is done: it stays in the log.
    Accepted,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Link {
    Up(ConnectionId),
    Down,
    /// Down for longer than anybody waits.
    Silent,
    Ended,
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
    /// `None`: struck.
    promise: Option<Promise>,
}

impl<P: Clone, R> Log<P, R> {
    /// An empty log, without a connection. An entry that is struck is shipped as `nothing`, because
    /// its number is used.
    pub fn new(nothing: P) -> Self {
        Self {
            nothing,
            last: Seq::ZERO,
            stable: Seq::ZERO,
            next_to_ship: Seq::ZERO.next(),
            unseen: Seq::ZERO.next(),
            unapplied: BTreeMap::new(),
            unapplied_bytes: 0,
            link: Link::Down,
            outputs: VecDeque::new(),
        }
    }

    /// Numbers an entry of `bytes` bytes of data; it is shipped when a connection is up and no more
    /// than 1,024 numbers are under way. Of `after` (at most 4) only what is not applied is sent.
    pub fn append(&mut self, payload: P, bytes: usize, after: &[Seq], promise: Promise) -> Seq {
        let seq = self.last.next();
        self.last = seq;
        if self.link == Link::Ended {
            self.outputs.push_back(Output::Applied { seq, result: Err(Errno::ENOTCONN) });
            return seq;
        }
        let mut after: Vec<Seq> =
            after.iter().copied().filter(|seq| self.unapplied.contains_key(seq)).collect();
        after.sort_unstable();
        after.dedup();
        debug_assert!(after.len() <= LOG_AFTER_MAX, "callers name at most 4 predecessors");
        self.unapplied_bytes += bytes;
        let promise = Some(promise);
        self.unapplied.insert(seq, Unapplied { after, payload, bytes, promise });
        if self.link == Link::Silent {
            self.strike_awaited();
        }
        self.ship();
        seq
    }

    /// Whether `bytes` more fit into what may be under way. One entry always fits an empty log.
    pub fn has_room(&self, bytes: usize) -> bool {
        let span = self.last.next().0 - self.first_unapplied().0;
        let entries_max = LOG_ENTRIES_UNAPPLIED_MAX as u64;
        let fits = self.unapplied_bytes + bytes <= LOG_BYTES_UNAPPLIED_MAX;
        self.link == Link::Ended || span == 0 || (span < entries_max && fits)
    }

    /// A connection is up. A host that has not `resumed` the session begins with [`Self::unseen`]:
    /// what an earlier run of it may have seen cannot be sent again safely and fails with EIO.
    pub fn handle_connected(&mut self, connection: ConnectionId, resumed: bool) {
        if self.link == Link::Ended {
            return;
        }
        self.link = Link::Up(connection);
        if !resumed {
            let kept = self.unapplied.split_off(&self.unseen);
            let lost = std::mem::replace(&mut self.unapplied, kept);
            self.fail(lost, Errno::EIO);
        }
        self.next_to_ship = self.first_unapplied();
        self.ship();
    }

    /// The connection is gone; a report about an older one changes nothing.
    pub fn handle_lost(&mut self, connection: ConnectionId) {
        if self.link == Link::Up(connection) {
            self.link = Link::Down;
        }
    }

    /// Nobody waits for the host any longer: entries that are awaited are struck and fail with
    /// ETIMEDOUT, also those to come. What was accepted stays.
    pub fn give_up(&mut self) {
        if self.link == Link::Down {
            self.link = Link::Silent;
            self.strike_awaited();
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
            if entry.promise.is_some() {
                self.outputs.push_back(Output::Applied { seq, result });
            }
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
        self.link = Link::Ended;
        let lost = std::mem::take(&mut self.unapplied);
        self.fail(lost, Errno::ENOTCONN);
    }

    /// What to do next.
    pub fn poll_output(&mut self) -> Option<Output<P, R>> {
        self.outputs.pop_front()
    }

    /// The first entry that no host has seen; it stays so until the next connection is up.
    pub fn unseen(&self) -> Seq {
        self.unseen
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
        let Link::Up(connection) = self.link else { return };
        let end = Seq(self.first_unapplied().0 + LOG_ENTRIES_UNAPPLIED_MAX as u64);
        for (&seq, entry) in self.unapplied.range(self.next_to_ship..end) {
            let (after, payload) = (entry.after.clone(), entry.payload.clone());
            self.outputs.push_back(Output::Ship { connection, seq, after, payload });
            self.next_to_ship = seq.next();
            self.unseen = self.unseen.max(self.next_to_ship);
        }
    }

    fn fail(&mut self, lost: BTreeMap<Seq, Unapplied<P>>, errno: Errno) {
        for (seq, entry) in lost {
            self.unapplied_bytes -= entry.bytes;
            if entry.promise.is_some() {
                self.outputs.push_back(Output::Applied { seq, result: Err(errno) });
            }
        }
        self.outputs.push_back(Output::Progress);
    }

    fn strike_awaited(&mut self) {
        for (&seq, entry) in &mut self.unapplied {
            if entry.promise == Some(Promise::Awaited) {
                entry.promise = None;
                entry.payload = self.nothing.clone();
                self.unapplied_bytes -= std::mem::take(&mut entry.bytes);
                self.outputs.push_back(Output::Applied { seq, result: Err(Errno::ETIMEDOUT) });
            }
        }
    }
}
