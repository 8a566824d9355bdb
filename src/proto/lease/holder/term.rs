//! How long the session's leases last, as the holder may count it.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// The holder's clock may be so much slower than the grantor's: one part in 128 of the term.
const MARGIN: u32 = 128;
/// Renewals without an answer that are remembered: more than are sent within a term.
const UNANSWERED_MAX: usize = 16;

/// The term of one run of the host.
#[derive(Debug)]
pub(super) struct Term {
    length: Duration,
    next: u64,
    last_sent: Option<Instant>,
    unanswered: BTreeMap<u64, Instant>,
    until: Option<Instant>,
}

impl Term {
    pub(super) fn new(length: Duration) -> Self {
        Self { length, next: 1, last_sent: None, unanswered: BTreeMap::new(), until: None }
    }

    /// The host says how long its terms are.
    pub(super) fn set_length(&mut self, length: Duration) {
        self.length = length.max(Duration::from_millis(1));
    }

    /// The number of the renewal that is sent next.
    pub(super) fn next(&self) -> u64 {
        self.next
    }

    /// A renewal is sent: its number.
    pub(super) fn begin(&mut self, now: Instant) -> u64 {
        let number = self.next;
        self.next += 1;
        self.last_sent = Some(now);
        self.unanswered.insert(number, now);
        if self.unanswered.len() > UNANSWERED_MAX {
            self.unanswered.pop_first();
        }
        number
    }

    /// A renewal is answered: everything lasts for a term from its sending.
    pub(super) fn answered(&mut self, number: u64) {
        let Some(sent) = self.unanswered.remove(&number) else {
            return;
        };
        self.unanswered = self.unanswered.split_off(&number);
        let until = sent + (self.length - self.length / MARGIN);
        self.until = Some(self.until.map_or(until, |old| old.max(until)));
    }

    /// Answers cannot come any more.
    pub(super) fn disconnect(&mut self) {
        self.unanswered.clear();
        self.last_sent = None;
    }

    /// Ends the term; until when it would have lasted.
    pub(super) fn end(&mut self) -> Option<Instant> {
        self.until.take()
    }

    pub(super) fn until(&self) -> Option<Instant> {
        self.until
    }

    pub(super) fn is_valid(&self, now: Instant) -> bool {
        self.until.is_some_and(|until| now < until)
    }

    /// When the next renewal is due; `None`: at once.
    pub(super) fn due(&self) -> Option<Instant> {
        self.last_sent.map(|sent| sent + self.length / 3)
    }
}
