//! One entry, as the log holds it.

use crate::id::{NodeId, Seq};
use crate::wire::log::{Change, LogEntry, Mutation, NodeRef, Occupant, Outcome, Promise, Sent};

/// `FALLOC_FL_COLLAPSE_RANGE`
const COLLAPSE: u32 = 0x08;
/// `FALLOC_FL_INSERT_RANGE`
const INSERT: u32 = 0x20;

/// An entry that is not stable, or has no answer.
#[derive(Debug)]
pub(super) struct Held<B> {
    /// All that it comes directly after; at most 8.
    pub(super) after: Vec<Seq>,
    pub(super) promise: Promise,
    /// A host that cannot remember may have carried it out.
    pub(super) again: bool,
    /// Bytes of data that a host may hold for it, also since it was struck.
    pub(super) flying: usize,
    pub(super) life: Life<B>,
}

#[derive(Debug)]
pub(super) enum Life<B> {
    Live(Box<Work<B>>),
    /// Nobody waits any longer.
    Struck {
        /// The host had answered it as what it was.
        answered: bool,
        /// It was shipped as nothing since.
        shipped: bool,
    },
    /// Refused, and an application was told so.
    Failed,
    /// Refused, or after one that was, and kept elsewhere.
    Aside,
    /// Never anything but a knot of predecessors, for one that has more than 8.
    Knot,
}

/// What an entry is there for.
#[derive(Debug)]
pub(super) struct Work<B> {
    pub(super) change: Change,
    pub(super) body: B,
    pub(super) bytes: usize,
    /// What an application was told.
    pub(super) told: Option<Outcome>,
}

impl<B> Held<B> {
    pub(super) fn bytes(&self) -> usize {
        match &self.life {
            Life::Live(work) => work.bytes,
            Life::Struck { .. } | Life::Failed | Life::Aside | Life::Knot => 0,
        }
    }

    /// The file that it made, as far as it is known.
    pub(super) fn made_file(&self) -> Option<NodeId> {
        let Life::Live(work) = &self.life else { return None };
        match (work.told, &work.change.mutation) {
            (Some(Outcome::Entry(entry)), Mutation::Create { .. }) => Some(entry.node),
            (None, Mutation::Create { premade, .. }) => *premade,
            _ => None,
        }
    }

    /// Nobody has been told what became of it.
    pub(super) fn is_untold(&self) -> bool {
        matches!(&self.life, Life::Live(work) if work.told.is_none())
    }
}

impl<B: Clone + Default> Held<B> {
    /// As it goes over the wire.
    pub(super) fn entry(&self, seq: Seq, settled: Seq, passed: bool) -> (LogEntry, B) {
        let (change, body, told) = match &self.life {
            Life::Live(work) => (work.change.clone(), work.body.clone(), work.told),
            Life::Struck { .. } | Life::Failed | Life::Aside | Life::Knot => {
                (Change::new(Mutation::Nothing), B::default(), None)
            }
        };
        let after = self.after.iter().copied().filter(|seq| *seq > settled).collect();
        let sent = match self.again {
            false => Sent::First,
            true if passed => Sent::Passed { told },
            true => Sent::Again { told },
        };
        (LogEntry { seq, after, promise: self.promise, sent, change }, body)
    }
}

/// Whoever was to be met at a name is known now.
pub(super) fn expect(mutation: &mut Mutation, outcome: &Outcome) {
    let known = |occupant: &mut Occupant, node: Option<NodeId>| {
        if *occupant == Occupant::Any {
            *occupant = node.map_or(Occupant::Nobody, |node| Occupant::Node(node.into()));
        }
    };
    match (mutation, outcome) {
        (
            Mutation::Unlink { occupant, .. } | Mutation::Rmdir { occupant, .. },
            Outcome::Removed { node, .. },
        ) => known(occupant, Some(*node)),
        (Mutation::Rename { occupant, new_occupant, .. }, Outcome::Renamed { node, replaced }) => {
            known(occupant, Some(*node));
            known(new_occupant, *replaced);
        }
        _ => {}
    }
}

impl<B> Work<B> {
    /// Under which identity an application knows what the entry made.
    pub(super) fn known_as(&self, promise: Promise) -> Option<NodeId> {
        match (self.told, &self.change.mutation) {
            (Some(Outcome::Entry(entry)), _) => Some(entry.node),
            (None, Mutation::Create { premade, .. } | Mutation::Mkdir { premade, .. })
                if promise == Promise::Accepted =>
            {
                *premade
            }
            _ => None,
        }
    }
}

impl Mutation {
    /// The file whose data or length it changes.
    pub(super) fn data_of(&self) -> Option<NodeRef> {
        match self {
            Self::SetAttr { node, .. }
            | Self::Write { node, .. }
            | Self::Append { node, .. }
            | Self::Fallocate { node, .. }
            | Self::CopyRange { node, .. } => Some(*node),
            _ => None,
        }
    }

    /// The file in which it moves data that no entry holds.
    pub(super) fn moves_data_in(&self) -> Option<NodeRef> {
        match self {
            Self::CopyRange { node, .. } => Some(*node),
            Self::Fallocate { node, mode, .. } if mode & (COLLAPSE | INSERT) != 0 => Some(*node),
            _ => None,
        }
    }
}
