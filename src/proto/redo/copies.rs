//! Conflict copies: what was accepted and then refused is kept below `.p2pfs-conflicts/PATH`, at
//! the share's root.
//!
//! ```text
//!  set aside --> gathered --> directories --> created --> base --> written --> made, settled
//!                    ^             |             |          |         |
//!                    +---- later --+-------------+----------+---------+  refused
//! ```
//!
//! What becomes of an entry that was set aside:
//!
//! * data, also an attribute's value: is written to a copy of its file, at its place;
//! * what makes something: makes the copy;
//! * a truncation, a mode, a time: done to the copy, if there is one, and else dropped;
//! * a rename: the copy is called so; it moves nothing;
//! * a link, a removal: dropped. What is there stays.
//!
//! # Driving it
//!
//! For each [`log::Output::Aside`](super::log::Output::Aside) the driver finds the entry in
//! [`Log::aside`](super::log::Log::aside), says it to [`Copies::handle_aside`], and leaves it in
//! the log: until it is settled, nothing that comes after it is carried out, and its data counts
//! against the log's bound. Then it polls:
//!
//! * [`Output::Append`]: gives the change to [`Log::append_copy`](super::log::Log::append_copy),
//!   and its number to [`Copies::handle_appended`]. Every
//!   [`log::Output::Applied`](super::log::Output::Applied) goes to [`Copies::handle_applied`]
//!   first.
//! * [`Output::Find`]: looks a name up on the host, then [`Copies::handle_found`].
//! * [`Output::Made`] and [`Output::Dropped`]: settles these in the log, and tells the user.
//!
//! When the host cannot take a copy (no space, read-only, nobody there) what it is made of stays
//! set aside and is listed by [`Copies::waiting`]; it is tried again after a second, then less and
//! less often up to every five minutes, and as soon as a connection comes up. One copy is made at a
//! time. A copy that is begun and not finished is removed; one that is there is never written over,
//! the next one has a number. Entries of a copy are redone after a crash like all others; should
//! the host refuse them then, they are set aside, and copied again.

mod gather;
mod make;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use self::gather::Group;
use self::make::Making;
use crate::id::{NodeId, Seq};
use crate::wire::errno::Errno;
use crate::wire::log::{Change, NodeRef, Outcome, Reason};
use crate::wire::name::Name;

/// The directory of the copies, in the share's root.
pub const CONFLICTS: &str = ".p2pfs-conflicts";

/// How long after the first of its entries a copy is begun: what was set aside with it, and tells
/// how it is called, comes at once.
const GATHER: Duration = Duration::from_secs(1);
/// The longest time between two attempts.
const RETRY_MAX: Duration = Duration::from_secs(300);
/// Copies that are remembered for what is set aside later.
const MADE_MAX: usize = 1024;

/// The copies of one session's log; `B` is an entry's body.
#[derive(Clone, Debug)]
pub struct Copies<B> {
    /// By the first entry of each.
    groups: BTreeMap<Seq, Group<B>>,
    /// Whose copy it is, by every name of the node.
    of: BTreeMap<NodeRef, Seq>,
    /// Why an entry is aside, or the one because of which it is.
    causes: BTreeMap<Seq, Reason>,
    /// Nodes that were never made, and their copies.
    made: BTreeMap<Seq, NodeId>,
    making: Option<Making>,
    next_step: u64,
    outputs: VecDeque<Output<B>>,
}

/// What the driver is to do.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Output<B> {
    /// Append it to the log, then [`Copies::handle_appended`].
    Append {
        /// Which step this is.
        step: u64,
        /// What to change.
        change: Change,
        /// Its data.
        body: B,
        /// So many bytes of it.
        bytes: usize,
    },
    /// Look the name up, then [`Copies::handle_found`].
    Find {
        /// Which step this is.
        step: u64,
        /// The directory.
        parent: NodeId,
        /// The name.
        name: Name,
    },
    /// A copy is there: these are kept in it, and are settled.
    Made {
        /// Where, from the share's root.
        path: Vec<Name>,
        /// Whose data it holds.
        settled: Vec<Seq>,
    },
    /// There is nothing of it to keep: it is settled.
    Dropped {
        /// Which.
        seq: Seq,
    },
}

/// A copy that is still to be made.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Waiting<'a> {
    /// Where the data was to be, from the share's root.
    pub path: &'a [Name],
    /// How much data, bytes.
    pub bytes: usize,
    /// Why the last attempt failed.
    pub refused: Option<Errno>,
}

impl<B: Clone + Default> Default for Copies<B> {
    fn default() -> Self {
        Self::new()
    }
}

impl<B: Clone + Default> Copies<B> {
    /// Nothing to copy.
    pub fn new() -> Self {
        Self {
            groups: BTreeMap::new(),
            of: BTreeMap::new(),
            causes: BTreeMap::new(),
            made: BTreeMap::new(),
            making: None,
            next_step: 0,
            outputs: VecDeque::new(),
        }
    }

    /// The step was given this number.
    pub fn handle_appended(&mut self, step: u64, seq: Seq) {
        if let Some(making) = &mut self.making {
            making.appended(step, seq);
        }
    }

    /// An entry has its result; whether it was one of these.
    pub fn handle_applied(
        &mut self,
        seq: Seq,
        result: &Result<Outcome, Errno>,
        now: Instant,
    ) -> bool {
        let step = self.making.as_mut().and_then(|making| making.take(seq));
        let Some(step) = step else { return false };
        self.answered(step, result, now);
        true
    }

    /// Who has the name, and whether that is a directory; or why nobody can say.
    pub fn handle_found(
        &mut self,
        step: u64,
        found: Result<Option<(NodeId, bool)>, Errno>,
        now: Instant,
    ) {
        if self.making.as_mut().is_some_and(|making| making.finds(step)) {
            self.found(found, now);
        }
    }

    /// Somebody else may have changed the node: what it holds is no base for a copy any more. To be
    /// said when its lease is over.
    pub fn handle_foreign_change(&mut self, node: NodeId) {
        if let Some(group) = self.of.get(&node.into()).and_then(|of| self.groups.get_mut(of)) {
            group.base = None;
        }
    }

    /// A connection is up, or the user asks: what was refused is tried again.
    pub fn retry(&mut self, now: Instant) {
        for group in self.groups.values_mut().filter(|group| group.refused.is_some()) {
            group.due = now;
        }
        self.begin_next(now);
    }

    /// A copy may be due.
    pub fn handle_timeout(&mut self, now: Instant) {
        self.begin_next(now);
    }

    /// When [`Self::handle_timeout`] wants to be called.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let idle = self.making.is_none();
        self.groups.values().map(|group| group.due).min().filter(|_| idle)
    }

    /// What to do next.
    pub fn poll_output(&mut self) -> Option<Output<B>> {
        self.outputs.pop_front()
    }

    /// Copies that are still to be made, oldest first.
    pub fn waiting(&self) -> impl Iterator<Item = Waiting<'_>> {
        self.groups.values().filter(|group| group.is_worth_it()).map(|group| Waiting {
            path: &group.path,
            bytes: group.bytes,
            refused: group.refused,
        })
    }

    /// Whether nothing is left to copy.
    pub fn is_empty(&self) -> bool {
        self.groups.is_empty()
    }

    /// Begins with the oldest that is due.
    fn begin_next(&mut self, now: Instant) {
        while self.making.is_none() {
            let due = self.groups.iter().find(|(_, group)| group.due <= now);
            let Some((&first, group)) = due else { return };
            if group.is_worth_it() {
                self.begin(first, now);
            } else {
                self.drop_group(first);
            }
        }
    }

    /// Whether the copy is being made.
    fn makes(&self, first: Seq) -> bool {
        self.making.as_ref().is_some_and(|making| making.is_of(first))
    }

    fn drop_group(&mut self, first: Seq) {
        let Some(group) = self.forget(first) else { return };
        for seq in group.seqs {
            self.outputs.push_back(Output::Dropped { seq });
        }
    }

    /// The group is no more; what it knew of its entries goes with it.
    fn forget(&mut self, first: Seq) -> Option<Group<B>> {
        let group = self.groups.remove(&first)?;
        self.of.retain(|_, of| *of != first);
        for seq in &group.seqs {
            self.causes.remove(seq);
        }
        Some(group)
    }
}
