//! What a log says of itself while it runs, so that another run can go on with it if this one is
//! killed.
//!
//! Who keeps the notes, in order, and gives them to [`Notes`] gets what [`Log::keep`] would have
//! said after the last of them. What somebody waited for is struck then, as there.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::held::expect;
use super::kept::{Kept, KeptEntry, KeptWhat};
use super::{Log, Output};
use crate::id::{Epoch, NodeId, Seq};
use crate::proto::redo::order::each_node;
use crate::wire::log::{NodeRef, Outcome, Promise};

/// One thing that has happened to a log. **Append only: the order is the format.**
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub enum Note {
    /// The log as it is: its entries follow, and nothing before counts any more.
    Kept(Kept),
    /// An entry; its body goes beside it.
    Entry(KeptEntry),
    /// The host has said what came of one; no outcome: it was refused.
    Answered {
        /// Which.
        seq: Seq,
        /// What an application is told.
        told: Option<Outcome>,
    },
    /// Only the number of one is left: an application was told that it failed.
    Emptied {
        /// Which.
        seq: Seq,
        /// Because nobody waited for it any longer.
        struck: bool,
    },
    /// All up to this one are on the host's disk.
    Stable {
        /// The last of them.
        upto: Seq,
    },
    /// A host with this epoch is there.
    Epoch(Epoch),
    /// What the host has answered, and is not on its disk, must be answered again.
    Forgotten {
        /// The host knows the session; else nobody can say what came of what is on its disk.
        known: bool,
    },
}

impl<B: Clone + Default> Log<B> {
    /// From now on the log notes what happens to it ([`Output::Note`]).
    pub fn begin_notes(&mut self) {
        self.notes = true;
    }

    /// Notes from which nothing before is needed any more, each with its body. What was set aside
    /// is not in them.
    pub fn notes_anew(&self) -> Vec<(Note, B)> {
        let kept =
            Kept { epoch: self.epoch, last: self.last, stable: self.stable, unseen: self.unseen };
        let held = self.entries.iter().map(|(seq, held)| {
            let (entry, body) = self.keep_one(*seq, held);
            (Note::Entry(entry), body)
        });
        [(Note::Kept(kept), B::default())].into_iter().chain(held).collect()
    }

    pub(super) fn note(&mut self, note: Note) {
        self.note_with(|_| (note, B::default()));
    }

    pub(super) fn note_pushed(&mut self, seq: Seq) {
        self.note_with(|log| {
            let (entry, body) = log.keep_one(seq, &log.entries[&seq]);
            (Note::Entry(entry), body)
        });
    }

    fn note_with(&mut self, note: impl FnOnce(&Self) -> (Note, B)) {
        if self.notes {
            let (note, body) = note(self);
            self.outputs.push_back(Output::Note { note, body });
        }
    }
}

/// Puts together what notes say.
#[derive(Debug)]
pub struct Notes<B> {
    kept: Kept,
    entries: BTreeMap<Seq, (KeptEntry, B)>,
    /// What entries have made that are not here any more.
    made: BTreeMap<Seq, NodeId>,
}

impl<B: Default> Default for Notes<B> {
    fn default() -> Self {
        let kept =
            Kept { epoch: None, last: Seq::ZERO, stable: Seq::ZERO, unseen: Seq::ZERO.next() };
        Self { kept, entries: BTreeMap::new(), made: BTreeMap::new() }
    }
}

impl<B: Default> Notes<B> {
    /// The next note, and its body.
    pub fn handle(&mut self, note: Note, body: B) {
        match note {
            Note::Kept(kept) => *self = Self { kept, ..Self::default() },
            Note::Entry(entry) => {
                self.kept.last = self.kept.last.max(entry.seq);
                self.entries.insert(entry.seq, (entry, body));
            }
            Note::Answered { seq, told } => self.handle_answer(seq, told),
            Note::Emptied { seq, struck } => {
                if let Some((entry, body)) = self.entries.get_mut(&seq) {
                    let what = if struck { KeptWhat::Struck } else { KeptWhat::Number };
                    (entry.what, *body) = (what, B::default());
                }
            }
            Note::Stable { upto } => {
                self.kept.stable = self.kept.stable.max(upto);
                self.forget_settled();
            }
            Note::Epoch(epoch) => self.kept.epoch = Some(epoch),
            Note::Forgotten { known } => self.handle_forgotten(known),
        }
    }

    /// The log, as far as the notes go.
    pub fn end(mut self) -> (Kept, Vec<(KeptEntry, B)>) {
        for (entry, body) in self.entries.values_mut() {
            let waited_for = entry.promise == Promise::Awaited;
            if let KeptWhat::Live { told: None, .. } = entry.what
                && waited_for
            {
                (entry.what, *body) = (KeptWhat::Struck, B::default());
            }
        }
        let is_kept: Vec<Seq> = self.entries.keys().copied().collect();
        let made = &self.made;
        for (entry, _) in self.entries.values_mut() {
            let KeptWhat::Live { change, .. } = &mut entry.what else { continue };
            each_node(&mut change.mutation, |node| {
                if let NodeRef::MadeBy(seq) = *node
                    && is_kept.binary_search(&seq).is_err()
                    && let Some(made) = made.get(&seq)
                {
                    *node = NodeRef::Node(*made);
                }
            });
        }
        // all of it may have left since
        self.kept.unseen = self.kept.last.next();
        (self.kept, self.entries.into_values().collect())
    }

    fn handle_answer(&mut self, seq: Seq, told: Option<Outcome>) {
        let Some((entry, _)) = self.entries.get_mut(&seq) else { return };
        entry.answered = true;
        if let (Some(outcome), KeptWhat::Live { change, told }) = (told, &mut entry.what) {
            *told = Some(outcome);
            expect(&mut change.mutation, &outcome);
            entry.promise = Promise::Accepted;
        }
        if seq <= self.kept.stable {
            self.forget_settled();
        }
    }

    fn handle_forgotten(&mut self, known: bool) {
        let stable = self.kept.stable;
        if !known {
            let later = self.entries.split_off(&stable.next());
            let settled = std::mem::replace(&mut self.entries, later);
            settled.into_iter().for_each(|(seq, (entry, _))| self.forget(seq, &entry));
        }
        for (entry, _) in self.entries.values_mut().filter(|(entry, _)| entry.seq > stable) {
            (entry.again, entry.answered) = (true, false);
        }
    }

    /// What is on the host's disk and has its answer.
    fn forget_settled(&mut self) {
        let later = self.entries.split_off(&self.kept.stable.next());
        for (seq, (entry, body)) in std::mem::replace(&mut self.entries, later) {
            match entry.answered {
                true => self.forget(seq, &entry),
                false => drop(self.entries.insert(seq, (entry, body))),
            }
        }
    }

    /// One that is not here any more: others may name what it has made by it.
    fn forget(&mut self, seq: Seq, entry: &KeptEntry) {
        if let KeptWhat::Live { told: Some(Outcome::Entry(made)), .. } = entry.what {
            self.made.insert(seq, made.node);
        }
    }
}
