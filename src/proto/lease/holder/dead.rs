//! Numbers of leases that are over, in bounded memory.

use std::collections::BTreeSet;

use crate::id::LeaseId;

/// Single numbers remembered above the floor.
const SINGLES_MAX: usize = 4096;

/// Which numbers must not be used (again): leases that were returned, and leases that were recalled
/// or voided before they arrived. Every number up to the floor is dead unless it is held; not using
/// a lease is always right, so raising the floor early costs only a lease.
#[derive(Debug, Default)]
pub(super) struct Dead {
    floor: LeaseId,
    above: BTreeSet<LeaseId>,
    newest: LeaseId,
}

impl Dead {
    /// A number was seen, dead or alive.
    pub(super) fn see(&mut self, lease: LeaseId) {
        self.newest = self.newest.max(lease);
    }

    /// The first number that was never seen.
    pub(super) fn next(&self) -> LeaseId {
        LeaseId(self.newest.0.saturating_add(1))
    }

    pub(super) fn insert(&mut self, lease: LeaseId) {
        self.see(lease);
        if lease > self.floor {
            self.above.insert(lease);
        }
        while self.above.len() > SINGLES_MAX {
            if let Some(lowest) = self.above.pop_first() {
                self.floor = lowest;
            }
        }
    }

    /// Everything up to this number is over.
    pub(super) fn insert_upto(&mut self, upto: LeaseId) {
        self.see(upto);
        self.floor = self.floor.max(upto);
        self.above = self.above.split_off(&self.floor);
        self.above.remove(&self.floor);
    }

    /// Everything that was ever seen is over.
    pub(super) fn insert_all(&mut self) {
        self.insert_upto(self.newest);
    }

    pub(super) fn contains(&self, lease: LeaseId) -> bool {
        lease <= self.floor || self.above.contains(&lease)
    }
}
