//! The host's half: applies entries in the order that they ask for, each once.

mod begin;
mod order;
mod sync;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Instant;

use self::order::{check, makers, resolve, touched_by_change, touched_by_outcome};
use self::sync::Sync;
use crate::id::{Epoch, NodeId, Seq};
use crate::limits::{
    BODY_BYTES_MAX, LOG_BYTES_UNAPPLIED_MAX, LOG_ENTRIES_UNAPPLIED_MAX, LOG_ENTRIES_UNSTABLE_MAX,
};
use crate::proto::PeerMisbehaved;
use crate::proto::redo::execute::{How, Seen, moves_data};
use crate::proto::redo::record::SLOTS;
use crate::wire::log::{
    Change, Cursor, LogAck, LogEntry, Mutation, Outcome, Promise, Reason, Refused, Sent,
};

/// How far behind the cursor results are kept: for entries that come again, and for references to
/// what they made.
const RESULTS_BEHIND: u64 = 2 * LOG_ENTRIES_UNSTABLE_MAX as u64;

/// The applier of one session; `B` is an entry's body, `W` names somebody who waits.
#[derive(Debug)]
pub struct Applier<B, W> {
    epoch: Epoch,
    /// Whether any entry has come: until then the client may not know that this host has forgotten
    /// the session.
    known: bool,
    /// All entries up to here are applied.
    cursor: Seq,
    /// Where it was at most, in any epoch.
    reached: Seq,
    /// Entries beyond the cursor that are applied.
    ahead: BTreeSet<Seq>,
    stable: Seq,
    waiting: BTreeMap<Seq, Waiting<B>>,
    /// Who waits for an entry that is not applied.
    dependents: BTreeMap<Seq, Vec<Seq>>,
    running: BTreeMap<Seq, Running>,
    /// Running since before the epoch began; with what came again meanwhile.
    overtaken: BTreeMap<Seq, Option<Arrived<B>>>,
    results: BTreeMap<Seq, Applied>,
    /// What was applied in an epoch that ended: it was carried out, but may be lost.
    forgotten: BTreeMap<Seq, Outcome>,
    /// Intents of a killed run.
    intents: BTreeMap<Seq, Seen>,
    /// Data of entries that wait or run, bytes.
    bytes_held: usize,
    /// The last entry, not stable, that touches a node.
    touched: BTreeMap<NodeId, Seq>,
    /// Up to here it is not known what entries touch.
    untold: Seq,
    /// The last entry that an ended epoch may have seen.
    redo_upto: Seq,
    barriers: BTreeMap<Seq, Vec<W>>,
    sync: Sync,
    outputs: VecDeque<Output<B, W>>,
}

/// An entry as it came.
#[derive(Debug)]
struct Arrived<B> {
    /// Whom it comes after, its makers included.
    after: BTreeSet<Seq>,
    poisons: bool,
    sent: Sent,
    change: Change,
    body: B,
    bytes: usize,
}

#[derive(Debug)]
struct Waiting<B> {
    missing: usize,
    entry: Arrived<B>,
}

#[derive(Debug)]
struct Running {
    poisons: bool,
    bytes: usize,
}

/// What came of an entry.
#[derive(Debug)]
struct Applied {
    result: Result<Outcome, Refused>,
    poisons: bool,
    bytes: usize,
    /// Not known for what a killed run applied.
    at: Option<Instant>,
}

/// What the driver is to do.
#[derive(Clone, Debug, Eq, PartialEq)]
#[expect(clippy::large_enum_variant, reason = "most are the large one, and none is kept for long")]
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
    /// A connection of the session is up: tells how far its entries are, and says again what came
    /// of `unanswered` and later ones. What waits for others is forgotten: the client sends it
    /// again, or what is left of it if it was struck since.
    pub fn resume(&mut self, unanswered: Seq) -> Cursor {
        self.forget_waiting();
        for (seq, applied) in self.results.range(unanswered..) {
            let ack = LogAck::Applied { seq: *seq, result: applied.result };
            self.outputs.push_back(Output::Ack(ack));
        }
        if !self.known {
            // what was answered was carried out, by a host that cannot tell
            self.redo_upto = self.redo_upto.max(unanswered.previous());
        }
        Cursor {
            epoch: self.epoch,
            known: self.known,
            applied: self.cursor,
            ahead: self.ahead.iter().copied().collect(),
            stable: self.stable,
        }
    }

    /// An entry with `bytes` bytes of data arrived, perhaps not for the first time.
    ///
    /// # Errors
    ///
    /// [`PeerMisbehaved::Sequence`] for a number out of the window, a predecessor or a maker that
    /// is not before it; [`PeerMisbehaved::TooMany`] for more than 8 predecessors, too many groups
    /// or more data than agreed.
    pub fn handle_entry(
        &mut self,
        entry: LogEntry,
        body: B,
        bytes: usize,
        _now: Instant,
    ) -> Result<(), PeerMisbehaved> {
        check(&entry)?;
        let seq = entry.seq;
        let window = LOG_ENTRIES_UNAPPLIED_MAX as u64;
        if seq.0 > self.reached.0.saturating_add(window)
            || seq.0 > self.stable.0.saturating_add(SLOTS as u64)
        {
            return Err(PeerMisbehaved::Sequence);
        }
        if seq.0 > self.cursor.0.saturating_add(window) {
            // it left before the client heard of the loss, and comes again
            return Ok(());
        }
        if let Some(applied) = self.results.get(&seq) {
            let result = applied.result;
            self.outputs.push_back(Output::Ack(LogAck::Applied { seq, result }));
            return Ok(());
        }
        if self.is_applied(seq) {
            return Err(PeerMisbehaved::Sequence);
        }
        let fits = self.bytes_held + bytes <= LOG_BYTES_UNAPPLIED_MAX + BODY_BYTES_MAX;
        if bytes > BODY_BYTES_MAX || (!fits && self.is_unseen(seq)) {
            return Err(PeerMisbehaved::TooMany);
        }
        self.known = true;
        if matches!(entry.sent, Sent::Again { .. } | Sent::Passed { .. }) {
            self.redo_upto = self.redo_upto.max(seq);
        }
        let mut after: BTreeSet<Seq> = entry.after.into_iter().collect();
        after.extend(makers(&entry.change.mutation));
        let poisons = entry.promise == Promise::Accepted;
        let arrived =
            Arrived { after, poisons, sent: entry.sent, change: entry.change, body, bytes };
        self.arrive(seq, arrived);
        Ok(())
    }

    /// The driver has carried an entry out.
    pub fn handle_result(&mut self, seq: Seq, result: Result<Outcome, Refused>, now: Instant) {
        if let Some(again) = self.overtaken.remove(&seq) {
            if let Ok(outcome) = result {
                self.forgotten.insert(seq, outcome);
            }
            if let Some(entry) = again {
                self.admit(seq, entry);
            }
        } else if let Some(running) = self.running.remove(&seq) {
            let Running { poisons, bytes } = running;
            self.finish(seq, Applied { result, poisons, bytes, at: Some(now) }, now);
        }
    }

    /// `waiter` wants to know when all entries up to `upto` are applied.
    pub fn wait_for(&mut self, upto: Seq, waiter: W) {
        self.barriers.entry(upto).or_default().push(waiter);
        self.release_barriers();
    }

    /// The disk failed to take data: what is not stable may be lost. Begins another epoch. A sync
    /// that was under way is over with this: it is not reported any more.
    ///
    /// What was to be applied and has not begun must not be carried out any more: what comes before
    /// it may be lost. It is reported as refused, whatever the reason, and comes again.
    pub fn handle_disk_failed(&mut self, epoch: Epoch, now: Instant) {
        self.epoch = epoch;
        let seen = self.results.keys().chain(self.running.keys()).max().copied();
        self.redo_upto = self.redo_upto.max(seen.unwrap_or_default());
        for (seq, applied) in self.results.split_off(&self.stable.next()) {
            if let Ok(outcome) = applied.result {
                self.forgotten.insert(seq, outcome);
            }
        }
        for (seq, _) in std::mem::take(&mut self.running) {
            self.overtaken.insert(seq, None);
        }
        // what waits comes again, as it may wait for what is forgotten
        for again in self.overtaken.values_mut() {
            *again = None;
        }
        self.waiting.clear();
        self.dependents.clear();
        self.intents.clear();
        self.ahead.clear();
        self.bytes_held = 0;
        self.cursor = self.stable;
        self.sync.forget();
        let ack = LogAck::Lost { epoch, stable: self.stable };
        self.outputs.push_back(Output::Ack(ack));
        self.schedule_sync(now);
    }

    /// What to do next.
    pub fn poll_output(&mut self) -> Option<Output<B, W>> {
        self.outputs.pop_front()
    }

    /// The epoch.
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// All entries up to here are carried out or refused.
    pub fn cursor(&self) -> Seq {
        self.cursor
    }

    /// The newest entry that is stable with all before it.
    pub fn stable(&self) -> Seq {
        self.stable
    }

    /// Results that are kept, and whether the failure sets aside what comes after: a record that is
    /// begun anew, in another epoch, begins with them.
    pub fn results(&self) -> impl Iterator<Item = (Seq, Result<Outcome, Refused>, bool)> {
        self.results.iter().map(|(seq, applied)| (*seq, applied.result, applied.poisons))
    }

    /// Entries and bytes that wait here for others.
    pub fn waiting(&self) -> (usize, usize) {
        let again = self.overtaken.values().flatten().map(|entry| entry.bytes);
        let waiting = self.waiting.values().map(|waiting| waiting.entry.bytes);
        again.chain(waiting).fold((0, 0), |(entries, sum), bytes| (entries + 1, sum + bytes))
    }

    /// Whether entries that may have been carried out before an epoch ended are still to come:
    /// until then what the session changed is served to nobody else.
    pub fn is_redoing(&self) -> bool {
        self.cursor < self.redo_upto
    }

    /// Whether [`Self::is_redoing`] lasts until the entry is carried out: so it must not wait for
    /// what other sessions do again, even if it is carried out for the first time, because it was
    /// on its way when the epoch began. Two would wait for each other. An entry that waits already
    /// is to be asked about again when something of the session arrives.
    pub fn redoes(&self, seq: Seq) -> bool {
        seq <= self.redo_upto
    }

    /// Where an entry stands, for status and for tests of coverage: `"unseen"`, `"waiting"`,
    /// `"running"`, `"applied"`, `"failed"`, `"aside"`, `"stable"`.
    pub fn state_of(&self, seq: Seq) -> &'static str {
        let result = self.results.get(&seq).map(|applied| &applied.result);
        match result {
            Some(Err(Refused { reason: Reason::SetAside { .. }, .. })) => "aside",
            Some(Err(_)) => "failed",
            _ if seq <= self.stable => "stable",
            Some(Ok(_)) => "applied",
            None if self.running.contains_key(&seq) => "running",
            None if self.waiting.contains_key(&seq) => "waiting",
            None if matches!(self.overtaken.get(&seq), Some(Some(_))) => "waiting",
            None => "unseen",
        }
    }

    fn forget_waiting(&mut self) {
        let (_, bytes) = self.waiting();
        self.bytes_held -= bytes;
        self.waiting.clear();
        self.dependents.clear();
        for again in self.overtaken.values_mut() {
            *again = None;
        }
    }

    fn is_applied(&self, seq: Seq) -> bool {
        seq <= self.cursor || self.ahead.contains(&seq)
    }

    fn is_unseen(&self, seq: Seq) -> bool {
        !self.running.contains_key(&seq)
            && !self.waiting.contains_key(&seq)
            && !matches!(self.overtaken.get(&seq), Some(Some(_)))
    }

    /// An entry that is not applied.
    fn arrive(&mut self, seq: Seq, mut entry: Arrived<B>) {
        let struck = entry.change.mutation == Mutation::Nothing;
        if let Some(again) = self.overtaken.get_mut(&seq) {
            if again.is_none() || struck {
                self.bytes_held -= again.as_ref().map_or(0, |entry| entry.bytes);
                self.bytes_held += entry.bytes;
                *again = Some(entry);
            }
        } else if let Some(waiting) = self.waiting.get_mut(&seq) {
            if struck {
                // it still waits: what comes after it counts on what is before it
                entry.after = std::mem::take(&mut waiting.entry.after);
                self.bytes_held -= waiting.entry.bytes;
                self.bytes_held += entry.bytes;
                waiting.entry = entry;
            }
        } else if !self.running.contains_key(&seq) {
            self.bytes_held += entry.bytes;
            self.admit(seq, entry);
        }
    }

    fn admit(&mut self, seq: Seq, entry: Arrived<B>) {
        let needed: Vec<Seq> =
            entry.after.iter().copied().filter(|after| !self.is_applied(*after)).collect();
        if needed.is_empty() {
            self.start(seq, entry);
            return;
        }
        self.waiting.insert(seq, Waiting { missing: needed.len(), entry });
        for after in needed {
            self.dependents.entry(after).or_default().push(seq);
        }
    }

    /// Lets an entry run whose predecessors are applied. One that must not be carried out runs too:
    /// what came of it goes into the record like everything else.
    fn start(&mut self, seq: Seq, entry: Arrived<B>) {
        let Arrived { after, poisons, sent, mut change, body, bytes } = entry;
        let made_by = |maker| self.made_by(maker);
        let refused = match self.poisoned_by(&after) {
            Some(refused) => Some(refused),
            None => resolve(&mut change.mutation, made_by)
                .err()
                .map(|blocked| Refused::conflict(blocked.errno())),
        };
        let how = match refused {
            Some(refused) => {
                change.mutation = Mutation::Nothing;
                How::Refused(refused)
            }
            None => self.how(seq, &sent, &change.mutation),
        };
        for node in touched_by_change(&change.mutation) {
            self.touch(node, seq);
        }
        self.running.insert(seq, Running { poisons, bytes });
        self.outputs.push_back(Output::Apply { seq, change, body, how, poisons });
    }

    fn how(&self, seq: Seq, sent: &Sent, mutation: &Mutation) -> How {
        let known = match sent {
            Sent::Again { told } | Sent::Passed { told } => *told,
            Sent::First => None,
        };
        let forgotten = self.forgotten.get(&seq).copied();
        let told = if moves_data(mutation) {
            // a client that was not told has sent the data before it once more, which is on top now
            known
        } else {
            forgotten.or(known)
        };
        // where it was appended says more than how long the file was
        let placed = matches!(mutation, Mutation::Append { .. }) && told.is_some();
        match (self.intents.get(&seq), sent, told) {
            (Some(before), ..) if !placed => How::Resumed { before: *before },
            (_, Sent::First, None) if forgotten.is_none() => How::First,
            (_, Sent::Passed { .. }, told) => How::Passed { told },
            (_, _, told) => How::Again { told },
        }
    }

    fn touch(&mut self, node: NodeId, seq: Seq) {
        let last = self.touched.entry(node).or_insert(seq);
        *last = seq.max(*last);
    }

    fn finish(&mut self, seq: Seq, applied: Applied, now: Instant) {
        if let Ok(outcome) = &applied.result {
            for node in touched_by_outcome(outcome) {
                self.touch(node, seq);
            }
        }
        let result = applied.result;
        self.outputs.push_back(Output::Ack(LogAck::Applied { seq, result }));
        self.bytes_held -= applied.bytes;
        self.results.insert(seq, applied);
        self.forgotten.remove(&seq);
        self.intents.remove(&seq);
        self.ahead.insert(seq);
        for dependent in self.dependents.remove(&seq).unwrap_or_default() {
            let Some(waiting) = self.waiting.get_mut(&dependent) else {
                continue;
            };
            waiting.missing -= 1;
            if waiting.missing == 0
                && let Some(waiting) = self.waiting.remove(&dependent)
            {
                self.start(dependent, waiting.entry);
            }
        }
        self.advance();
        self.release_barriers();
        self.schedule_sync(now);
    }

    fn advance(&mut self) {
        while self.ahead.remove(&self.cursor.next()) {
            self.cursor = self.cursor.next();
            self.reached = self.reached.max(self.cursor);
            self.sync.cover(self.results.get(&self.cursor).map_or(0, |applied| applied.bytes));
        }
        while let Some(oldest) = self.results.first_entry()
            && oldest.key().0.saturating_add(RESULTS_BEHIND) <= self.cursor.0
        {
            oldest.remove();
        }
    }

    fn release_barriers(&mut self) {
        while !self.is_redoing()
            && let Some(entry) = self.barriers.first_entry()
            && *entry.key() <= self.cursor
        {
            self.outputs.extend(entry.remove().into_iter().map(Output::Reached));
        }
    }
}
