//! The host's half: applies entries in the order that they ask for, each once.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use crate::id::Seq;
use crate::limits::{LOG_AFTER_MAX, LOG_ENTRIES_UNAPPLIED_MAX};
use crate::proto::PeerMisbehaved;
use crate::wire::errno::Errno;

/// How long applied entries may wait for the disk before the host syncs on its own: what ext4 does
/// for a local program (its `commit=5`).
const SYNC_AFTER: Duration = Duration::from_secs(5);

/// How many results are kept for entries that are shipped again: the client never has more than
/// 1,024 numbers under way, so older ones were acknowledged.
const RESULTS_MAX: usize = LOG_ENTRIES_UNAPPLIED_MAX * 2;

/// The applier; `P` is what an entry carries, `R` its result, `W` names somebody who waits.
#[derive(Debug)]
pub struct Applier<P, R, W> {
    /// All entries up to here are applied.
    cursor: Seq,
    /// Entries beyond the cursor that are applied.
    ahead: BTreeSet<Seq>,
    stable: Seq,
    waiting: BTreeMap<Seq, Waiting<P>>,
    /// Who waits for an entry that is not applied.
    dependents: BTreeMap<Seq, Vec<Seq>>,
    running: BTreeSet<Seq>,
    results: BTreeMap<Seq, Result<R, Errno>>,
    barriers: BTreeMap<Seq, Vec<W>>,
    sync: Sync,
    outputs: VecDeque<Output<P, R, W>>,
}

/// What the driver is to do.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Output<P, R, W> {
    /// Carry the entry out, then report.
    Apply {
        /// Which.
        seq: Seq,
        /// What.
        payload: P,
    },
    /// Tell the client.
    Applied {
        /// Which.
        seq: Seq,
        /// The result, also for an entry that came again.
        result: Result<R, Errno>,
    },
    /// Everything that this one waited for is applied.
    Reached(W),
    /// Sync the share's file system, then report with the same number.
    Sync {
        /// The last entry that will be stable.
        upto: Seq,
    },
    /// Tell the client.
    Stable {
        /// The last entry that is.
        upto: Seq,
    },
}

#[derive(Debug)]
struct Waiting<P> {
    missing: usize,
    payload: P,
}

#[derive(Debug)]
enum Sync {
    Idle,
    Due(Instant),
    Running,
}

impl<P, R: Clone, W> Applier<P, R, W> {
    /// For a new session, whose first entry will be `next`.
    pub fn new(next: Seq) -> Self {
        let before = Seq(next.0.saturating_sub(1));
        Self {
            cursor: before,
            ahead: BTreeSet::new(),
            stable: before,
            waiting: BTreeMap::new(),
            dependents: BTreeMap::new(),
            running: BTreeSet::new(),
            results: BTreeMap::new(),
            barriers: BTreeMap::new(),
            sync: Sync::Idle,
            outputs: VecDeque::new(),
        }
    }

    /// An entry arrived, perhaps not for the first time.
    ///
    /// # Errors
    ///
    /// [`PeerMisbehaved::Sequence`] for a number out of the window or a predecessor that is not
    /// before it, [`PeerMisbehaved::TooMany`] for more than 4 predecessors.
    pub fn handle_entry(
        &mut self,
        seq: Seq,
        after: Vec<Seq>,
        payload: P,
    ) -> Result<(), PeerMisbehaved> {
        if after.len() > LOG_AFTER_MAX {
            return Err(PeerMisbehaved::TooMany);
        }
        let window = LOG_ENTRIES_UNAPPLIED_MAX as u64;
        if seq == Seq::ZERO
            || seq.0 > self.cursor.0.saturating_add(window)
            || after.iter().any(|a| *a >= seq)
        {
            return Err(PeerMisbehaved::Sequence);
        }
        if let Some(result) = self.results.get(&seq) {
            let result = result.clone();
            self.outputs.push_back(Output::Applied { seq, result });
            return Ok(());
        }
        if self.is_applied(seq) {
            return Err(PeerMisbehaved::Sequence);
        }
        if !self.running.contains(&seq) && !self.waiting.contains_key(&seq) {
            self.admit(seq, after, payload);
        }
        Ok(())
    }

    /// The driver has carried an entry out.
    pub fn handle_result(&mut self, seq: Seq, result: Result<R, Errno>, now: Instant) {
        if !self.running.remove(&seq) {
            return;
        }
        self.results.insert(seq, result.clone());
        while self.results.len() > RESULTS_MAX {
            self.results.pop_first();
        }
        self.ahead.insert(seq);
        while self.ahead.remove(&self.cursor.next()) {
            self.cursor = self.cursor.next();
        }
        self.outputs.push_back(Output::Applied { seq, result });
        self.start_dependents(seq);
        self.release_barriers();
        if matches!(self.sync, Sync::Idle) && self.cursor > self.stable {
            self.sync = Sync::Due(now + SYNC_AFTER);
        }
    }

    /// `waiter` wants to know when all entries up to `upto` are applied.
    pub fn wait_for(&mut self, upto: Seq, waiter: W) {
        self.barriers.entry(upto).or_default().push(waiter);
        self.release_barriers();
    }

    /// The driver has synced everything that was applied when entry `upto` was the cursor.
    pub fn handle_synced(&mut self, upto: Seq, ok: bool, now: Instant) {
        if ok && upto > self.stable && upto <= self.cursor {
            self.stable = upto;
            self.outputs.push_back(Output::Stable { upto });
        }
        self.sync =
            if self.cursor > self.stable { Sync::Due(now + SYNC_AFTER) } else { Sync::Idle };
    }

    /// A sync may be due.
    pub fn handle_timeout(&mut self, now: Instant) {
        if let Sync::Due(at) = self.sync
            && at <= now
        {
            self.sync = Sync::Running;
            self.outputs.push_back(Output::Sync { upto: self.cursor });
        }
    }

    /// When [`Self::handle_timeout`] wants to be called.
    pub fn poll_timeout(&self) -> Option<Instant> {
        match self.sync {
            Sync::Due(at) => Some(at),
            Sync::Idle => None,
            Sync::Running => None,
        }
    }

    /// What to do next.
    pub fn poll_output(&mut self) -> Option<Output<P, R, W>> {
        self.outputs.pop_front()
    }

    /// The newest entry such that it and all before it are applied.
    pub fn cursor(&self) -> Seq {
        self.cursor
    }

    /// The newest entry that is stable with all before it.
    pub fn stable(&self) -> Seq {
        self.stable
    }

    fn is_applied(&self, seq: Seq) -> bool {
        seq <= self.cursor || self.ahead.contains(&seq)
    }

    fn admit(&mut self, seq: Seq, mut after: Vec<Seq>, payload: P) {
        after.sort_unstable();
        after.dedup();
        after.retain(|seq| !self.is_applied(*seq));
        if after.is_empty() {
            self.start(seq, payload);
            return;
        }
        self.waiting.insert(seq, Waiting { missing: after.len(), payload });
        for needed in after {
            self.dependents.entry(needed).or_default().push(seq);
        }
    }

    fn start(&mut self, seq: Seq, payload: P) {
        self.running.insert(seq);
        self.outputs.push_back(Output::Apply { seq, payload });
    }

    fn start_dependents(&mut self, applied: Seq) {
        for seq in self.dependents.remove(&applied).unwrap_or_default() {
            let Some(entry) = self.waiting.get_mut(&seq) else {
                continue;
            };
            entry.missing -= 1;
            if entry.missing == 0
                && let Some(entry) = self.waiting.remove(&seq)
            {
                self.start(seq, entry.payload);
            }
        }
    }

    fn release_barriers(&mut self) {
        while let Some(entry) = self.barriers.first_entry()
            && *entry.key() <= self.cursor
        {
            self.outputs.extend(entry.remove().into_iter().map(Output::Reached));
        }
    }
}
