//! What comes of entries: their results, and what is set aside.

use std::collections::BTreeSet;

use super::held::{Held, Life, Work, expect};
use super::note::Note;
use super::{ASIDE_BYTES, Aside, Log, Output};
use crate::id::Seq;
use crate::wire::errno::Errno;
use crate::wire::log::{Outcome, Promise, Reason, Refused};

impl<B: Clone + Default> Log<B> {
    /// The host has said what came of an entry.
    pub(super) fn answered(&mut self, seq: Seq, result: Result<Outcome, Refused>) {
        if !self.unanswered.remove(&seq) {
            return;
        }
        let Some(held) = self.entries.get(&seq) else { return };
        self.unanswered_bytes -= held.bytes();
        if seq < self.next_to_ship {
            self.flying_bytes -= held.flying;
        }
        self.note(Note::Answered { seq, told: result.ok() });
        match result {
            Ok(outcome) => self.carried_out(seq, outcome),
            Err(refused) => self.refused(seq, refused),
        }
        if seq <= self.stable {
            self.held_bytes -= self.entries.remove(&seq).map_or(0, |held| held.bytes());
            self.order.handle_stable(self.settled());
        }
        self.progress();
    }

    /// Whoever waited for an entry waits no longer: it fails with EINTR, and does not happen later
    /// unless it is happening now. What was accepted or has its answer stays as it is. Tells
    /// whether it may still be on its way, as what it was.
    pub fn strike(&mut self, seq: Seq) -> bool {
        let waits = |held: &Held<B>| held.is_untold() && held.promise == Promise::Awaited;
        let strikes = self.unanswered.contains(&seq) && self.entries.get(&seq).is_some_and(waits);
        if strikes {
            self.strike_with(seq, Errno::EINTR);
            self.progress();
        }
        strikes && seq < self.next_to_ship
    }

    /// It keeps its number and its place.
    pub(super) fn strike_with(&mut self, seq: Seq, errno: Errno) {
        self.empty(seq, Life::Struck { answered: false, shipped: false });
        self.order.handle_failed(seq);
        self.tell(seq, Err(errno));
    }

    fn carried_out(&mut self, seq: Seq, outcome: Outcome) {
        let Some(held) = self.entries.get_mut(&seq) else { return };
        match &mut held.life {
            Life::Live(work) => {
                let known_as = work.known_as(held.promise);
                let first = work.told.replace(outcome).is_none();
                // a crash may give them another identity: then they go by who made them
                expect(&mut work.change.mutation, &outcome);
                self.order.translate(&mut work.change.mutation);
                held.promise = Promise::Accepted;
                self.order.handle_applied(seq, &outcome);
                if first {
                    self.tell(seq, Ok(outcome));
                }
                if let (Some(old), Outcome::Entry(entry)) = (known_as, outcome)
                    && old != entry.node
                {
                    self.outputs.push_back(Output::Remade { seq, old, new: entry.node });
                }
            }
            Life::Struck { answered, .. } if *answered || outcome != Outcome::Done => {
                self.outputs.push_back(Output::StruckApplied { seq, outcome });
            }
            Life::Struck { .. } | Life::Failed | Life::Aside | Life::Knot => {}
        }
    }

    fn refused(&mut self, seq: Seq, refused: Refused) {
        let Some(held) = self.entries.get(&seq) else { return };
        let live = matches!(held.life, Life::Live(_));
        let because = match refused.reason {
            Reason::SetAside { because } => Some(because),
            Reason::System | Reason::Conflict | Reason::Unknown => None,
        };
        if live && (held.promise == Promise::Accepted || because.is_some()) {
            self.set_aside(seq, refused);
        } else if live {
            self.empty(seq, Life::Failed);
            self.order.handle_failed(seq);
            self.tell(seq, Err(refused.errno));
            return;
        }
        match because {
            Some(because) => self.set_aside_after(seq, because),
            None if live => self.set_aside_after(seq, seq),
            None => {}
        }
    }

    /// Sets one entry aside, if an application was told that it is done; otherwise it fails.
    pub(super) fn set_aside(&mut self, seq: Seq, refused: Refused) {
        let promise = self.entries.get(&seq).map(|held| held.promise);
        if promise != Some(Promise::Accepted) {
            self.order.cut(seq);
            if self.empty(seq, Life::Failed).is_some() {
                self.tell(seq, Err(refused.errno));
            }
            return;
        }
        self.order.set_aside(seq);
        self.keep_aside(seq, refused);
    }

    fn keep_aside(&mut self, seq: Seq, refused: Refused) {
        let Some(work) = self.empty(seq, Life::Aside) else { return };
        let Work { mut change, body, bytes, told } = *work;
        self.order.identify(&mut change.mutation);
        let made = match told {
            Some(Outcome::Entry(entry)) => Some(entry.node),
            _ => None,
        };
        self.aside_bytes += bytes + ASIDE_BYTES;
        let aside = Aside { seq, refused, change, body, bytes, made };
        self.asides.insert(seq, (aside, bytes + ASIDE_BYTES));
        self.outputs.push_back(Output::Aside { seq, refused });
        if told.is_none() {
            self.tell(seq, Err(refused.errno));
        }
    }

    /// What has no answer and comes after an entry that is out goes the same way, as on the host.
    /// It must not wait for the host to say so: another epoch's host would not know.
    fn set_aside_after(&mut self, seq: Seq, because: Seq) {
        self.order.cut(seq);
        let mut out = BTreeSet::from([seq]);
        let later: Vec<Seq> = self.unanswered.range(seq.next()..).copied().collect();
        for seq in later {
            let Some(held) = self.entries.get(&seq) else { continue };
            if !held.after.iter().any(|before| out.contains(before)) {
                continue;
            }
            out.insert(seq);
            if matches!(held.life, Life::Live(_)) {
                self.set_aside(seq, self.because(because));
            } else {
                self.order.cut(seq);
            }
        }
    }

    /// Why an entry goes that comes after one that is aside.
    pub(super) fn because(&self, seq: Seq) -> Refused {
        let because = match self.asides.get(&seq).map(|(aside, _)| aside.refused.reason) {
            Some(Reason::SetAside { because }) => because,
            _ => seq,
        };
        Refused { errno: Errno::EIO, reason: Reason::SetAside { because } }
    }

    pub(super) fn give_up_answers(&mut self) {
        let unknown = Refused { errno: Errno::EIO, reason: Reason::Unknown };
        let later = self.unanswered.split_off(&self.stable.next());
        for seq in std::mem::replace(&mut self.unanswered, later) {
            let Some(held) = self.entries.get(&seq) else { continue };
            self.unanswered_bytes -= held.bytes();
            let (untold, promise) = (held.is_untold(), held.promise);
            // what was told was carried out before, and is stable; what was accepted may have
            // failed, and is kept: what comes after it shows by itself whether it did
            if untold && promise == Promise::Accepted {
                self.order.cut(seq);
                self.keep_aside(seq, unknown);
            } else if untold {
                self.empty(seq, Life::Failed);
                self.tell(seq, Err(Errno::EIO));
            }
            self.held_bytes -= self.entries.remove(&seq).map_or(0, |held| held.bytes());
        }
        self.order.handle_stable(self.settled());
    }

    /// Which of the struck entries the host had carried out before it could hear of that.
    pub(super) fn note_struck(&mut self) {
        let (upto, ahead) = &self.there;
        for seq in &self.unanswered {
            if let Some(Held { life: Life::Struck { answered, shipped: false }, .. }) =
                self.entries.get_mut(seq)
            {
                *answered = seq <= upto || ahead.contains(seq);
            }
        }
    }
}
