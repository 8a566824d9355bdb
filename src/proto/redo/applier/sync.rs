//! When what is applied is put on the disk.

use std::collections::BTreeSet;
use std::ops::Bound;
use std::time::{Duration, Instant};

use super::{Applied, Applier, Output};
use crate::id::{NodeId, Seq};
use crate::wire::log::LogAck;

/// How long applied entries may wait for the disk before the host syncs on its own: what ext4 does
/// for a local program (its `commit=5`).
const SYNC_AFTER: Duration = Duration::from_secs(5);
/// Applied entries that are not stable: with more, the client's bound of 8,192 would come near.
const ENTRIES_MAX: u64 = 2048;
/// Their data: a quarter of what the client may hold.
const BYTES_MAX: usize = 16 << 20;

/// The sync of a session's entries: one at a time.
#[derive(Debug, Default)]
pub(super) struct Sync {
    stage: Stage,
    /// Data that a sync would make stable, bytes.
    bytes: usize,
    /// Entries whose nodes somebody else has changed.
    urgent: BTreeSet<Seq>,
}

#[derive(Debug, Default)]
enum Stage {
    #[default]
    Idle,
    Due(Instant),
    Running {
        upto: Seq,
    },
}

impl Sync {
    /// What was under way has failed.
    pub(super) fn forget(&mut self) {
        self.stage = Stage::Idle;
        self.bytes = 0;
    }

    /// The cursor has passed an entry with so much data.
    pub(super) fn cover(&mut self, bytes: usize) {
        self.bytes += bytes;
    }
}

impl<B, W> Applier<B, W> {
    /// Somebody else has changed a node: what this session changed of it must reach the disk soon,
    /// so that a crash does not make it change the node again. True if there is such a change.
    pub fn handle_foreign_change(&mut self, node: NodeId, now: Instant) -> bool {
        let Some(last) = self.last_unstable(Some(node)) else {
            return false;
        };
        // earlier ones may have touched it too
        self.sync.urgent.extend([last.min(self.cursor), last].iter().filter(|s| **s > self.stable));
        self.schedule_sync(now);
        true
    }

    /// The last entry, not stable, that changes the node, or any. Before it is stable a crash makes
    /// this session change that again.
    pub fn last_unstable(&self, node: Option<NodeId>) -> Option<Seq> {
        let untold = (self.untold > self.stable).then_some(self.untold);
        let touched = match node {
            Some(node) => self.touched.get(&node).copied(),
            None => self.touched.values().copied().max(),
        };
        touched.max(untold)
    }

    /// The driver has synced everything that was applied when entry `upto` was the cursor.
    pub fn handle_synced(&mut self, upto: Seq, now: Instant) {
        match self.sync.stage {
            Stage::Running { upto: running } if running == upto => {}
            Stage::Idle | Stage::Due(_) | Stage::Running { .. } => return,
        }
        self.sync.stage = Stage::Idle;
        self.note_synced(upto);
        self.schedule_sync(now);
    }

    /// As [`Self::handle_synced`], in the epoch of now, by a sync that [`Output::Sync`] did not ask
    /// for.
    pub fn handle_synced_unasked(&mut self, upto: Seq, now: Instant) {
        self.note_synced(upto);
        self.schedule_sync(now);
    }

    fn note_synced(&mut self, upto: Seq) {
        if upto > self.stable && upto <= self.cursor {
            self.stable = upto;
            self.sync.bytes = self.unstable().map(|applied| applied.bytes).sum();
            self.touched.retain(|_, last| *last > upto);
            self.sync.urgent.retain(|seq| *seq > upto);
            self.outputs.push_back(Output::Ack(LogAck::Stable { upto }));
        }
    }

    /// A sync may be due.
    pub fn handle_timeout(&mut self, now: Instant) {
        if let Stage::Due(at) = self.sync.stage
            && at <= now
        {
            self.begin_sync();
        }
    }

    /// When [`Self::handle_timeout`] wants to be called.
    pub fn poll_timeout(&self) -> Option<Instant> {
        match self.sync.stage {
            Stage::Due(at) => Some(at),
            Stage::Idle | Stage::Running { .. } => None,
        }
    }

    /// What a sync would make stable.
    fn unstable(&self) -> impl Iterator<Item = &Applied> {
        let range = (Bound::Excluded(self.stable), Bound::Included(self.cursor));
        self.results.range(range).map(|(_, applied)| applied)
    }

    pub(super) fn begin_sync(&mut self) {
        self.sync.stage = Stage::Running { upto: self.cursor };
        self.outputs.push_back(Output::Sync { upto: self.cursor });
    }

    /// Looks at what a sync would make stable: entries beyond the cursor do not count.
    pub(super) fn schedule_sync(&mut self, now: Instant) {
        if matches!(self.sync.stage, Stage::Running { .. }) {
            return;
        }
        if self.cursor == self.stable {
            self.sync.stage = Stage::Idle;
            return;
        }
        let urgent = self.sync.urgent.first().is_some_and(|seq| *seq <= self.cursor);
        let entries = self.cursor.0 - self.stable.0;
        if urgent || entries > ENTRIES_MAX || self.sync.bytes > BYTES_MAX {
            self.begin_sync();
        } else if let Stage::Idle = self.sync.stage {
            let since = self.unstable().filter_map(|applied| applied.at).min();
            self.sync.stage = Stage::Due(since.unwrap_or(now) + SYNC_AFTER);
        }
    }
}
