//! The client's half: gives numbers, ships, keeps until *stable*, sets aside what fails.
//!
//! ```text
//!  waiting --> shipped --> applied --> stable (forgotten)
//!     |           |           |
//!     |           +-----------+--> failed    awaited, and refused: its number goes as nothing
//!     +-----------+-----------+--> aside     accepted, and refused, or after such a one
//!     +-----------+--------------> struck    awaited, and nobody waits any longer
//! ```
//!
//! A host that has forgotten takes every entry that is not stable back to *waiting*. What an
//! application was told stays told: from then on the entry counts as accepted.
//!
//! An entry names all that it comes after and that is not stable, also what is applied: entries
//! that are on their way while the host loses what it applied must not overtake what comes again.
//! What is stable and not answered is named too: it may have been refused.

mod answer;
mod held;
mod kept;
mod note;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use self::held::{Held, Life, Work};
pub use self::kept::{Kept, KeptEntry, KeptWhat};
pub use self::note::{Note, Notes};
use crate::id::{ConnectionId, Epoch, NodeId, Seq};
use crate::limits::{
    LOG_AFTER_MAX, LOG_BYTES_UNAPPLIED_MAX, LOG_BYTES_UNSTABLE_MAX, LOG_ENTRIES_UNAPPLIED_MAX,
    LOG_ENTRIES_UNSTABLE_MAX,
};
use crate::proto::PeerMisbehaved;
use crate::proto::redo::order::{Order, Touches, each_node};
use crate::wire::errno::Errno;
use crate::wire::log::{
    Change, Cursor, LogAck, LogEntry, Mutation, NodeRef, Outcome, Promise, Refused, Sent,
};

/// What an entry that is set aside costs beside its data, so that there is an end to those without.
const ASIDE_BYTES: usize = 512;

/// The log; `B` is an entry's body (file data), cheap to clone.
#[derive(Debug)]
pub struct Log<B> {
    link: Link,
    /// The epoch of the last connection's host.
    epoch: Option<Epoch>,
    last: Seq,
    stable: Seq,
    /// The first entry that was never put on any connection.
    unseen: Seq,
    /// The next entry to put on this one.
    next_to_ship: Seq,
    /// Not put on this one: the host had them when it came up, up to here and beyond.
    there: (Seq, BTreeSet<Seq>),
    /// Everything after `stable`, and what has no answer.
    entries: BTreeMap<Seq, Held<B>>,
    /// By the host of this epoch.
    unanswered: BTreeSet<Seq>,
    unanswered_bytes: usize,
    /// What the host may hold of those that were put on this connection.
    flying_bytes: usize,
    held_bytes: usize,
    order: Order,
    asides: BTreeMap<Seq, (Aside<B>, usize)>,
    aside_bytes: usize,
    /// What happens is noted.
    notes: bool,
    outputs: VecDeque<Output<B>>,
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
#[expect(clippy::large_enum_variant, reason = "most are entries, and each is used at once")]
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
    /// An accepted entry failed, or comes after one that did: it is kept aside, and does not hold
    /// up the log.
    Aside {
        /// Which.
        seq: Seq,
        /// Why.
        refused: Refused,
    },
    /// An entry that was struck (its application was told an error) turns out to have been applied.
    /// An extended attribute is only known to be set where the host had answered before the strike.
    StruckApplied {
        /// Which.
        seq: Seq,
        /// What came of it.
        outcome: Outcome,
    },
    /// A node that an application knows had to be made again after a crash of the host's machine,
    /// or is not the pre-made one under which it was accepted.
    Remade {
        /// The entry that made it.
        seq: Seq,
        /// What it was called.
        old: NodeId,
        /// What it is called now.
        new: NodeId,
    },
    /// Keep this, in order, before what comes after it is done ([`Log::begin_notes`]).
    Note {
        /// What happened.
        note: Note,
        /// The data of an entry.
        body: B,
    },
    /// There is room again, or more is stable: look again.
    Progress,
}

/// An entry that was set aside. Its change is as it was appended, but names every node by its
/// identity whose identity is known.
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
    /// How much data, bytes.
    pub bytes: usize,
    /// What an application was told that it had made.
    pub made: Option<NodeId>,
}

impl<B: Clone + Default> Default for Log<B> {
    fn default() -> Self {
        Self::new()
    }
}

impl<B: Clone + Default> Log<B> {
    /// An empty log, without a connection.
    pub fn new() -> Self {
        Self {
            link: Link::Down,
            epoch: None,
            last: Seq::ZERO,
            stable: Seq::ZERO,
            unseen: Seq::ZERO.next(),
            next_to_ship: Seq::ZERO.next(),
            there: (Seq::ZERO, BTreeSet::new()),
            entries: BTreeMap::new(),
            unanswered: BTreeSet::new(),
            unanswered_bytes: 0,
            flying_bytes: 0,
            held_bytes: 0,
            order: Order::default(),
            asides: BTreeMap::new(),
            aside_bytes: 0,
            notes: false,
            outputs: VecDeque::new(),
        }
    }

    /// Numbers a change with `bytes` bytes of data; it is shipped when a connection is up and no
    /// more than 1,024 numbers and 32 MiB are on their way. Where it touches what was set aside,
    /// it is set aside too (accepted) or fails with EIO (awaited). One that comes after more than
    /// 8 others takes further numbers, before its own, that nobody hears of.
    pub fn append(&mut self, mut change: Change, body: B, bytes: usize, promise: Promise) -> Seq {
        if self.link == Link::Ended {
            self.last = self.last.next();
            self.tell(self.last, Err(Errno::ENOTCONN));
            return self.last;
        }
        self.order.translate(&mut change.mutation);
        let touches = self.order.touches(&change.mutation);
        let work = Work { change, body, bytes, told: None };
        if let Some(because) = self.order.blocked(&touches) {
            let seq = self.push(Vec::new(), promise, Life::Live(Box::new(work)));
            if promise == Promise::Accepted {
                self.order.place_aside(seq, touches);
            }
            self.set_aside(seq, self.because(because));
            self.ship();
            return seq;
        }
        self.append_open(work, touches, promise)
    }

    /// As [`Self::append`], for a change that belongs to a copy of what was set aside: awaited, and
    /// not held back by what is aside. It may read a file that is closed to others.
    pub fn append_copy(&mut self, mut change: Change, body: B, bytes: usize) -> Seq {
        if self.link == Link::Ended {
            return self.append(change, body, bytes, Promise::Awaited);
        }
        self.order.translate(&mut change.mutation);
        let touches = self.order.touches(&change.mutation);
        let work = Work { change, body, bytes, told: None };
        self.append_open(work, touches, Promise::Awaited)
    }

    fn append_open(&mut self, work: Work<B>, touches: Touches, promise: Promise) -> Seq {
        if self.link == Link::Silent && promise == Promise::Awaited {
            let struck = Life::Struck { answered: false, shipped: false };
            let seq = self.push(Vec::new(), promise, struck);
            self.tell(seq, Err(Errno::ETIMEDOUT));
            return seq;
        }
        let before = self.order.before(&touches);
        let after = self.knot(before);
        let seq = self.push(after, promise, Life::Live(Box::new(work)));
        self.order.place(seq, touches);
        self.ship();
        seq
    }

    /// Whether `bytes` more fit: 8,192 numbers and 64 MiB may be unstable, 1,024 numbers and 32 MiB
    /// unapplied, 64 MiB set aside. One entry always fits a log that is otherwise empty.
    pub fn has_room(&self, bytes: usize) -> bool {
        if self.link == Link::Ended {
            return true;
        }
        let next = self.last.next().0;
        let (unapplied, unstable) = (next - self.unanswered().0, next - self.held().0);
        let fits = |held: usize, max: usize| held.saturating_add(bytes) <= max;
        self.aside_bytes <= LOG_BYTES_UNSTABLE_MAX
            && unapplied < LOG_ENTRIES_UNAPPLIED_MAX as u64
            && unstable < LOG_ENTRIES_UNSTABLE_MAX as u64
            && (unapplied == 0 || fits(self.unanswered_bytes, LOG_BYTES_UNAPPLIED_MAX))
            && (unstable == 0 || fits(self.held_bytes, LOG_BYTES_UNSTABLE_MAX))
    }

    /// A connection is up, to a host that is as far as `cursor` says. A host that does not know the
    /// session, or is in another epoch, gets everything since *stable* again.
    ///
    /// # Errors
    ///
    /// [`PeerMisbehaved::Unasked`] if the cursor names entries that were never shipped,
    /// [`PeerMisbehaved::Sequence`] if it lacks some that were stable.
    pub fn handle_connected(
        &mut self,
        connection: ConnectionId,
        cursor: &Cursor,
    ) -> Result<(), PeerMisbehaved> {
        if self.link == Link::Ended {
            return Ok(());
        }
        let remembers = cursor.known && self.epoch.is_none_or(|epoch| epoch == cursor.epoch);
        if cursor.known {
            let ahead = cursor.ahead.iter().copied();
            let newest = ahead.chain([cursor.applied, cursor.stable]).max();
            if newest.is_some_and(|newest| newest >= self.unseen) {
                return Err(PeerMisbehaved::Unasked);
            }
            if cursor.applied < self.stable {
                return Err(PeerMisbehaved::Sequence);
            }
            self.advance(cursor.stable);
        }
        if !remembers {
            self.forget_answers(cursor.known);
        }
        self.note(Note::Epoch(cursor.epoch));
        self.epoch = Some(cursor.epoch);
        self.link = Link::Up(connection);
        self.there = (Seq::ZERO, BTreeSet::new());
        if remembers {
            self.there = (cursor.applied, cursor.ahead.iter().copied().collect());
            self.note_struck();
        }
        self.ship_anew();
        Ok(())
    }

    /// The connection is gone; a report about an older one changes nothing.
    pub fn handle_lost(&mut self, connection: ConnectionId) {
        if self.link == Link::Up(connection) {
            self.link = Link::Down;
        }
    }

    /// Nobody waits for the host any longer: entries that are awaited are struck and fail with
    /// ETIMEDOUT, also those to come until the next connection. What was accepted stays.
    pub fn give_up(&mut self) {
        self.give_up_with(Errno::ETIMEDOUT);
    }

    /// The host broke the protocol on a connection, which is closed: what is awaited fails with
    /// EPROTO, as in [`Self::give_up`].
    pub fn handle_misbehaved(&mut self, connection: ConnectionId) {
        self.handle_lost(connection);
        self.give_up_with(Errno::EPROTO);
    }

    fn give_up_with(&mut self, errno: Errno) {
        if self.link != Link::Down {
            return;
        }
        self.link = Link::Silent;
        let awaited = |seq: &Seq| {
            let held = self.entries.get(seq);
            held.is_some_and(|held| held.is_untold() && held.promise == Promise::Awaited)
        };
        let struck: Vec<Seq> = self.unanswered.iter().copied().filter(awaited).collect();
        for seq in struck {
            self.strike_with(seq, errno);
        }
        self.progress();
    }

    /// The host of the connection that is up said something about entries. A second acknowledgement
    /// changes nothing.
    ///
    /// # Errors
    ///
    /// [`PeerMisbehaved::Unasked`] for an entry that was never shipped,
    /// [`PeerMisbehaved::Sequence`] for the loss of one that was stable.
    pub fn handle_ack(&mut self, ack: LogAck) -> Result<(), PeerMisbehaved> {
        let (LogAck::Applied { seq, .. }
        | LogAck::Stable { upto: seq }
        | LogAck::Lost { stable: seq, .. }) = ack;
        if seq >= self.unseen {
            return Err(PeerMisbehaved::Unasked);
        }
        match ack {
            LogAck::Applied { seq: Seq::ZERO, .. } => return Err(PeerMisbehaved::Unasked),
            LogAck::Applied { seq, result } => self.answered(seq, result),
            LogAck::Stable { upto } => self.advance(upto),
            LogAck::Lost { epoch, .. } if Some(epoch) == self.epoch => return Ok(()),
            LogAck::Lost { stable, .. } if stable < self.stable => {
                return Err(PeerMisbehaved::Sequence);
            }
            LogAck::Lost { epoch, stable } => {
                self.advance(stable);
                self.forget_answers(true);
                self.note(Note::Epoch(epoch));
                self.epoch = Some(epoch);
                self.there = (Seq::ZERO, BTreeSet::new());
                self.ship_anew();
            }
        }
        self.ship();
        Ok(())
    }

    /// The session has ended: nothing is applied any more (ENOTCONN). What was set aside stays.
    pub fn end(&mut self) {
        self.link = Link::Ended;
        for (seq, held) in std::mem::take(&mut self.entries) {
            if held.is_untold() {
                self.tell(seq, Err(Errno::ENOTCONN));
            }
        }
        self.unanswered.clear();
        (self.unanswered_bytes, self.held_bytes) = (0, 0);
        self.order = Order::default();
        self.progress();
    }

    /// What to do next.
    pub fn poll_output(&mut self) -> Option<Output<B>> {
        self.outputs.pop_front()
    }

    /// The first entry that is not stable: a host that does not know the session begins here.
    pub fn held(&self) -> Seq {
        self.stable.next()
    }

    /// The first entry without an answer: the host says again what came of this one and later ones.
    pub fn unanswered(&self) -> Seq {
        self.unanswered.first().copied().unwrap_or_else(|| self.last.next())
    }

    /// The newest entry; [`Seq::ZERO`] before the first.
    pub fn last(&self) -> Seq {
        self.last
    }

    /// The newest entry that is stable with all before it, as far as the host has said.
    pub fn stable(&self) -> Seq {
        self.stable
    }

    /// The last entry, not yet stable or without an answer, that touches the node: what an `fsync`
    /// of it waits for. A node that has no identity yet goes by the entry that makes it.
    pub fn last_of(&self, node: impl Into<NodeRef>) -> Option<Seq> {
        self.order.last_of(node.into())
    }

    /// Entries not yet applied, and their data in bytes.
    pub fn unapplied(&self) -> (usize, usize) {
        (self.unanswered.len(), self.unanswered_bytes)
    }

    /// Entries not yet stable, or without an answer, and their data in bytes.
    pub fn unstable(&self) -> (usize, usize) {
        (self.entries.len(), self.held_bytes)
    }

    /// What was set aside, oldest first.
    pub fn aside(&self) -> impl Iterator<Item = &Aside<B>> {
        self.asides.values().map(|(aside, _)| aside)
    }

    /// What an entry that was set aside was to change: nodes and directories, under every identity
    /// that an application may know.
    pub fn changed_by_aside(&self, seq: Seq) -> BTreeSet<NodeId> {
        let Some((aside, _)) = self.asides.get(&seq) else { return BTreeSet::new() };
        let mut nodes: BTreeSet<NodeId> = aside.made.into_iter().collect();
        let mut mutation = aside.change.mutation.clone();
        if let Mutation::CopyRange { source, node, .. } = &mut mutation {
            // that is only read
            *source = *node;
        }
        each_node(&mut mutation, |node| nodes.extend(self.order.identities(*node)));
        nodes
    }

    /// What was set aside under this number is kept elsewhere now (a conflict copy), or the user
    /// gave it up. The nodes and names that only it touched may be changed again.
    pub fn settle_aside(&mut self, seq: Seq) -> Option<Aside<B>> {
        let (aside, bytes) = self.asides.remove(&seq)?;
        self.aside_bytes -= bytes;
        self.order.settle(seq);
        self.progress();
        Some(aside)
    }

    /// Where an entry stands, for status and for tests of coverage: `"unmade"`, `"waiting"`,
    /// `"shipped"`, `"applied"`, `"stable"`, `"struck"`, `"aside"`, `"failed"`.
    pub fn state_of(&self, seq: Seq) -> &'static str {
        let Some(held) = self.entries.get(&seq) else {
            return match () {
                () if seq > self.last || seq == Seq::ZERO => "unmade",
                () if self.asides.contains_key(&seq) => "aside",
                () if self.link == Link::Ended && seq > self.stable => "failed",
                () => "stable",
            };
        };
        match &held.life {
            Life::Struck { .. } => "struck",
            Life::Failed => "failed",
            Life::Aside => "aside",
            Life::Live(_) | Life::Knot if !self.unanswered.contains(&seq) => "applied",
            Life::Live(_) | Life::Knot if seq < self.next_to_ship => "shipped",
            Life::Live(_) | Life::Knot => "waiting",
        }
    }

    fn push(&mut self, after: Vec<Seq>, promise: Promise, life: Life<B>) -> Seq {
        let seq = self.last.next();
        self.last = seq;
        let held = Held { after, promise, again: false, flying: 0, life };
        self.unanswered_bytes += held.bytes();
        self.held_bytes += held.bytes();
        self.unanswered.insert(seq);
        self.entries.insert(seq, held);
        self.note_pushed(seq);
        seq
    }

    /// Ties predecessors together until there are no more than 8.
    fn knot(&mut self, mut before: Vec<Seq>) -> Vec<Seq> {
        while before.len() > LOG_AFTER_MAX {
            let rest = before.split_off(LOG_AFTER_MAX);
            let knot = self.push(before, Promise::Accepted, Life::Knot);
            before = rest;
            before.push(knot);
        }
        before
    }

    fn ship_anew(&mut self) {
        self.next_to_ship = Seq::ZERO;
        self.flying_bytes = 0;
        // what is stable without an answer is not shipped again
        for held in self.entries.values_mut() {
            held.flying = 0;
        }
        self.ship();
    }

    fn ship(&mut self) {
        let Link::Up(connection) = self.link else { return };
        let applied = self.unanswered().0 + LOG_ENTRIES_UNAPPLIED_MAX as u64;
        let stable = self.held().0 + LOG_ENTRIES_UNSTABLE_MAX as u64;
        let from = self.next_to_ship.max(self.held());
        let end = Seq(applied.min(stable));
        if from >= end {
            return;
        }
        let settled = self.settled();
        let (upto, ahead) = &self.there;
        for &seq in self.unanswered.range(from..end) {
            let Some(held) = self.entries.get_mut(&seq) else { continue };
            let there = seq <= *upto || ahead.contains(&seq);
            let flying = if there { 0 } else { held.flying.max(held.bytes()) };
            if self.flying_bytes > 0 && self.flying_bytes + flying > LOG_BYTES_UNAPPLIED_MAX {
                return;
            }
            held.flying = flying;
            self.flying_bytes += flying;
            self.next_to_ship = seq.next();
            if there {
                continue;
            }
            let buried = self.is_buried(seq);
            let Some(held) = self.entries.get_mut(&seq) else { continue };
            if let Life::Struck { shipped, .. } = &mut held.life {
                *shipped = true;
            }
            let passed = held.again && self.order.is_passed(seq);
            let (mut entry, body) = held.entry(seq, settled, passed);
            if entry.sent != Sent::First
                && let Some(node) = held.made_file()
                && self.order.is_doomed(seq)
            {
                let told = Some(Outcome::Removed { node, linked: false });
                entry.sent = Sent::Passed { told };
            }
            self.order.settle_names(&mut entry.change.mutation);
            let body = if buried { B::default() } else { body };
            match &mut entry.change.mutation {
                Mutation::SetAttr { change, .. } if buried => change.size = None,
                mutation if buried => *mutation = Mutation::Nothing,
                _ => {}
            }
            self.outputs.push_back(Output::Ship { connection, entry, body });
            self.unseen = self.unseen.max(seq.next());
        }
    }

    /// Whether data was moved within its file since, which is stable as soon as it is answered, and
    /// what it comes after with it: written once more it would be on top.
    fn is_buried(&self, seq: Seq) -> bool {
        let live = |seq: Seq| match self.entries.get(&seq).map(|held| (held.again, &held.life)) {
            Some((true, Life::Live(work))) => Some(work),
            _ => None,
        };
        let node = live(seq).and_then(|work| work.change.mutation.data_of());
        let Some(node) = node else { return false };
        self.order.later_touches(seq, node).filter_map(live).any(|later| {
            let moved = later.change.mutation.moves_data_in();
            later.told.is_some() && moved.is_some_and(|moved| self.order.is_same(moved, node))
        })
    }

    /// All entries up to `upto` are on the host's disk. What has no answer yet stays until it
    /// comes, but is never shipped again.
    fn advance(&mut self, upto: Seq) {
        if upto <= self.stable {
            return;
        }
        self.stable = upto;
        self.note(Note::Stable { upto });
        let later = self.entries.split_off(&upto.next());
        for (seq, held) in std::mem::replace(&mut self.entries, later) {
            if self.unanswered.contains(&seq) {
                self.entries.insert(seq, held);
            } else {
                self.held_bytes -= held.bytes();
            }
        }
        self.order.handle_stable(self.settled());
        self.progress();
    }

    /// The host has another epoch: what it has answered must be answered again. If it does not even
    /// know the session, nobody can say any more what came of entries that are stable.
    fn forget_answers(&mut self, known: bool) {
        if !known {
            self.give_up_answers();
        }
        self.note(Note::Forgotten { known });
        for (seq, held) in self.entries.range_mut(self.stable.next()..) {
            held.again |= *seq < self.unseen;
            held.flying = 0;
            if self.unanswered.insert(*seq) {
                self.unanswered_bytes += held.bytes();
            }
        }
    }

    /// Leaves only the number of an entry; returns what it was there for.
    fn empty(&mut self, seq: Seq, life: Life<B>) -> Option<Box<Work<B>>> {
        let held = self.entries.get_mut(&seq)?;
        let bytes = held.bytes();
        let struck = matches!(life, Life::Struck { .. });
        let Life::Live(work) = std::mem::replace(&mut held.life, life) else { return None };
        self.note(Note::Emptied { seq, struck });
        self.held_bytes -= bytes;
        if self.unanswered.contains(&seq) {
            self.unanswered_bytes -= bytes;
        }
        Some(work)
    }

    /// Stable, and answered, with all before it: nothing needs to come after it any more. What is
    /// stable may have been refused, and then what comes after it must not be carried out.
    fn settled(&self) -> Seq {
        self.stable.min(self.unanswered().previous())
    }

    fn tell(&mut self, seq: Seq, result: Result<Outcome, Errno>) {
        self.outputs.push_back(Output::Applied { seq, result });
    }

    fn progress(&mut self) {
        if !matches!(self.outputs.back(), Some(Output::Progress)) {
            self.outputs.push_back(Output::Progress);
        }
    }
}
