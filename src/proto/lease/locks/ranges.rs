//! The locks of one owner on one file, as `fcntl` keeps them.

use crate::wire::lease::{Lock, LockFamily, LockKind};

/// Locks that do not overlap, in order.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(super) struct Ranges(Vec<Lock>);

/// A `flock` is of the whole file.
pub(super) fn normal(lock: Lock) -> Lock {
    match lock.family {
        LockFamily::Range => lock,
        LockFamily::Whole => Lock { start: 0, end: u64::MAX, ..lock },
    }
}

pub(super) fn overlap(one: &Lock, other: &Lock) -> bool {
    one.start <= other.end && other.start <= one.end
}

/// Whether two owners cannot have both.
pub(super) fn conflict(one: &Lock, other: &Lock) -> bool {
    overlap(one, other) && (one.kind == LockKind::Exclusive || other.kind == LockKind::Exclusive)
}

impl Ranges {
    pub(super) fn iter(&self) -> impl Iterator<Item = &Lock> {
        self.0.iter()
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// What is locked of these bytes is locked no more.
    pub(super) fn remove(&mut self, gone: &Lock) {
        let mut rest = Vec::with_capacity(self.0.len() + 1);
        for lock in self.0.drain(..) {
            if !overlap(&lock, gone) {
                rest.push(lock);
                continue;
            }
            if lock.start < gone.start {
                rest.push(Lock { end: gone.start - 1, ..lock });
            }
            if lock.end > gone.end {
                rest.push(Lock { start: gone.end + 1, ..lock });
            }
        }
        self.0 = rest;
    }

    /// Locks bytes; what the owner had of them is replaced, and equal neighbours become one.
    pub(super) fn insert(&mut self, lock: Lock) {
        self.remove(&lock);
        let at = self.0.partition_point(|other| other.start < lock.start);
        self.0.insert(at, lock);
        let mut merged: Vec<Lock> = Vec::with_capacity(self.0.len());
        for lock in self.0.drain(..) {
            match merged.last_mut() {
                Some(last)
                    if last.end.checked_add(1) == Some(lock.start)
                        && last.kind == lock.kind
                        && last.handle == lock.handle =>
                {
                    last.end = lock.end;
                }
                _ => merged.push(lock),
            }
        }
        self.0 = merged;
    }

    /// Keeps what is wanted; what is not comes back.
    pub(super) fn split_off(&mut self, gone: impl Fn(&Lock) -> bool) -> Vec<Lock> {
        self.0.extract_if(.., |lock| gone(lock)).collect()
    }

    /// Whether all these bytes are locked at least as the lock says.
    pub(super) fn cover(&self, lock: &Lock) -> bool {
        self.gaps(lock).is_empty()
            && self
                .0
                .iter()
                .filter(|held| overlap(held, lock))
                .all(|held| held.kind == LockKind::Exclusive || lock.kind == LockKind::Shared)
    }

    /// The parts of these bytes that are not locked.
    pub(super) fn gaps(&self, within: &Lock) -> Vec<Lock> {
        let mut gaps = Vec::new();
        let mut start = Some(within.start);
        for held in self.0.iter().filter(|held| overlap(held, within)) {
            let Some(from) = start else {
                return gaps;
            };
            if held.start > from {
                gaps.push(Lock { start: from, end: held.start - 1, ..*within });
            }
            start = held.end.checked_add(1);
        }
        if let Some(start) = start.filter(|&start| start <= within.end) {
            gaps.push(Lock { start, ..*within });
        }
        gaps
    }
}
