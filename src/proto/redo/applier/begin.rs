//! Where a session's entries go on.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::sync::Sync;
use super::{Applied, Applier};
use crate::id::{Epoch, Seq};
use crate::proto::redo::record::Recovered;

impl<B, W> Applier<B, W> {
    /// For a session that this host does not know; its first entry will be `held`.
    pub fn new(epoch: Epoch, held: Seq) -> Self {
        Self::at(epoch, held.previous())
    }

    /// For a session that a killed run of this host has recorded in the same epoch.
    pub fn recover(recovered: Recovered) -> Self {
        let header = recovered.header;
        let begin = header.stable.max(header.first.previous());
        let mut applier = Self::at(header.epoch, begin);
        applier.known = !recovered.done.is_empty()
            || !recovered.intents.is_empty()
            || header.stable >= header.first;
        for (seq, (result, poisons)) in recovered.done {
            if seq > begin {
                applier.ahead.insert(seq);
            }
            applier.results.insert(seq, Applied { result, poisons, bytes: 0, at: None });
        }
        applier.intents = recovered.intents;
        applier.advance();
        applier.untold = applier.ahead.last().copied().unwrap_or(applier.cursor);
        if applier.cursor > applier.stable {
            applier.begin_sync();
        }
        applier
    }

    /// For a session that was recorded in an epoch that has ended: what the record calls stable is
    /// on the disk, and is not done again. The client holds the entries from `held` on, and lacks
    /// the answers from `unanswered` on. `None` if it knows as much itself, or if the machine lost
    /// answers that it needs.
    pub fn outlive(recovered: Recovered, epoch: Epoch, held: Seq, unanswered: Seq) -> Option<Self> {
        let Recovered { header, mut done, intents } = recovered;
        let answered = unanswered.previous();
        let mut stable = header.stable.min(answered);
        // no further than what can be answered
        while stable < header.stable && done.contains_key(&stable.next()) {
            stable = stable.next();
        }
        let lacks_answers = held.previous() > answered;
        if stable < held.previous() || (stable == held.previous() && !lacks_answers) {
            return None;
        }
        let mut applier = Self::at(epoch, stable);
        applier.known = true;
        let seen = done.keys().chain(intents.keys()).max().copied();
        applier.redo_upto = answered.max(seen.unwrap_or_default());
        // what was answered is not asked about again
        done.retain(|seq, _| (unanswered..=stable).contains(seq));
        let applied = |(result, poisons)| Applied { result, poisons, bytes: 0, at: None };
        applier.results = done.into_iter().map(|(seq, done)| (seq, applied(done))).collect();
        Some(applier)
    }

    fn at(epoch: Epoch, begin: Seq) -> Self {
        Self {
            epoch,
            known: false,
            cursor: begin,
            reached: begin,
            ahead: BTreeSet::new(),
            stable: begin,
            waiting: BTreeMap::new(),
            dependents: BTreeMap::new(),
            running: BTreeMap::new(),
            overtaken: BTreeMap::new(),
            results: BTreeMap::new(),
            forgotten: BTreeMap::new(),
            intents: BTreeMap::new(),
            bytes_held: 0,
            touched: BTreeMap::new(),
            untold: Seq::ZERO,
            redo_upto: Seq::ZERO,
            barriers: BTreeMap::new(),
            sync: Sync::default(),
            outputs: VecDeque::new(),
        }
    }
}
