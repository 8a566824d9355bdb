//! A log that is put away, and goes on in another run of the client.
//!
//! What was accepted and has not reached the host's disk is kept with everything that redoing it
//! takes. What somebody waited for is struck: whoever waited was told an error.

use serde::{Deserialize, Serialize};

use super::held::{Held, Life, Work};
use super::{Link, Log};
use crate::id::{Epoch, NodeId, Seq};
use crate::wire::errno::Errno;
use crate::wire::log::{Change, Outcome, Promise, Refused};

/// What a log is made again from, but for its entries.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Kept {
    /// The epoch of the last connection's host.
    pub epoch: Option<Epoch>,
    /// The newest number.
    pub last: Seq,
    /// All up to here are on the host's disk.
    pub stable: Seq,
    /// The first that no host had seen when the log was put away.
    pub unseen: Seq,
}

/// One entry of it; the body goes beside it.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct KeptEntry {
    /// Its number.
    pub seq: Seq,
    /// What it comes directly after; at most 8.
    pub after: Vec<Seq>,
    /// Who counts on it.
    pub promise: Promise,
    /// A host that cannot remember may have carried it out.
    pub again: bool,
    /// The host has said what came of it.
    pub answered: bool,
    /// What is left of it.
    pub what: KeptWhat,
}

/// What is left of an entry. **Append only: the order is the format.**
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub enum KeptWhat {
    /// All.
    Live {
        /// What to change.
        change: Box<Change>,
        /// What an application was told.
        told: Option<Outcome>,
    },
    /// Its number, which goes as nothing.
    Number,
    /// The same, and nobody has told the host yet that it was struck.
    Struck,
    /// It is set aside.
    Aside {
        /// Why.
        refused: Refused,
        /// What it was to change.
        change: Box<Change>,
        /// What an application was told that it had made.
        made: Option<NodeId>,
    },
}

impl<B: Clone + Default> Log<B> {
    /// Puts the log away; nothing more happens to it. Entries come in order, each with its body.
    pub fn keep(&mut self) -> (Kept, Vec<(KeptEntry, B)>) {
        self.handle_lost_for_good();
        let kept =
            Kept { epoch: self.epoch, last: self.last, stable: self.stable, unseen: self.unseen };
        let asides = self.asides.iter().map(|(seq, (aside, _))| {
            let (refused, change) = (aside.refused, Box::new(aside.change.clone()));
            let what = KeptWhat::Aside { refused, change, made: aside.made };
            let entry = KeptEntry {
                seq: *seq,
                after: Vec::new(),
                promise: Promise::Accepted,
                again: false,
                answered: !self.unanswered.contains(seq),
                what,
            };
            (entry, aside.body.clone())
        });
        let held = self.entries.iter().filter(|(seq, _)| !self.asides.contains_key(seq));
        let held = held.map(|(seq, held)| self.keep_one(*seq, held));
        let mut entries: Vec<(KeptEntry, B)> = asides.chain(held).collect();
        entries.sort_by_key(|(entry, _)| entry.seq);
        (kept, entries)
    }

    /// Goes on with a log that was put away; `bytes` tells how much data a body is. What comes
    /// twice, out of order or from nowhere is left out. A run that went on with it before, and was
    /// killed, may have shipped all of it.
    pub fn restore(
        kept: &Kept,
        entries: impl IntoIterator<Item = (KeptEntry, B)>,
        bytes: impl Fn(&B) -> usize,
    ) -> Self {
        let mut log = Self::new();
        (log.epoch, log.last, log.stable) = (kept.epoch, kept.last, kept.stable.min(kept.last));
        log.unseen = log.last.next();
        log.order.handle_stable(log.stable);
        for (entry, body) in entries {
            if entry.seq == Seq::ZERO || entry.seq > log.last || log.knows(entry.seq) {
                continue;
            }
            let bytes = bytes(&body);
            log.restore_one(entry, body, bytes);
        }
        // a number that is missing must not hold up what is told of those behind it
        for seq in (log.stable.next().0..=log.last.0).map(Seq) {
            log.entries.entry(seq).or_insert_with(|| {
                log.unanswered.insert(seq);
                Held {
                    after: Vec::new(),
                    promise: Promise::Accepted,
                    again: true,
                    flying: 0,
                    life: Life::Failed,
                }
            });
        }
        log
    }

    fn knows(&self, seq: Seq) -> bool {
        self.entries.contains_key(&seq) || self.asides.contains_key(&seq)
    }

    fn handle_lost_for_good(&mut self) {
        if self.link != Link::Ended {
            self.link = Link::Down;
            self.give_up_with(Errno::ENOTCONN);
        }
    }

    pub(super) fn keep_one(&self, seq: Seq, held: &Held<B>) -> (KeptEntry, B) {
        let (what, body) = match &held.life {
            Life::Live(work) => {
                let mut change = work.change.clone();
                self.order
                    .name_for_good(&mut change.mutation, |maker| self.entries.contains_key(&maker));
                (KeptWhat::Live { change: Box::new(change), told: work.told }, work.body.clone())
            }
            Life::Struck { shipped: false, .. } => (KeptWhat::Struck, B::default()),
            Life::Struck { .. } | Life::Failed | Life::Aside | Life::Knot => {
                (KeptWhat::Number, B::default())
            }
        };
        let entry = KeptEntry {
            seq,
            after: held.after.clone(),
            promise: held.promise,
            again: held.again,
            answered: !self.unanswered.contains(&seq),
            what,
        };
        (entry, body)
    }

    fn restore_one(&mut self, entry: KeptEntry, body: B, bytes: usize) {
        let KeptEntry { seq, after, promise, again, answered, what } = entry;
        let life = match what {
            KeptWhat::Live { mut change, told } => {
                // notes were taken before it was known who had made what
                self.order.translate(&mut change.mutation);
                let touches = self.order.touches(&change.mutation);
                self.order.place(seq, touches);
                if let Some(told) = &told {
                    self.order.handle_applied(seq, told);
                }
                Life::Live(Box::new(Work { change: *change, body, bytes, told }))
            }
            KeptWhat::Number => Life::Failed,
            KeptWhat::Struck => Life::Struck { answered: false, shipped: false },
            KeptWhat::Aside { refused, change, made } => {
                let touches = self.order.touches(&change.mutation);
                self.order.place_aside(seq, touches);
                let cost = bytes + super::ASIDE_BYTES;
                self.aside_bytes += cost;
                let aside = super::Aside { seq, refused, change: *change, body, bytes, made };
                self.asides.insert(seq, (aside, cost));
                Life::Aside
            }
        };
        let held = Held { after, promise, again, flying: 0, life };
        if answered && seq <= self.stable {
            return;
        }
        self.held_bytes += held.bytes();
        if !answered {
            self.unanswered_bytes += held.bytes();
            self.unanswered.insert(seq);
        }
        self.entries.insert(seq, held);
    }

    /// Whether everything that was accepted is on the host's disk.
    pub fn is_delivered(&self) -> bool {
        self.unanswered.is_empty() && self.stable == self.last
    }
}
