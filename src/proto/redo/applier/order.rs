//! What an entry says about its place: whom it names, and what it touches.

use std::collections::BTreeSet;

use super::Applier;
use crate::id::{NodeId, Seq};
use crate::limits::{CALLER_GROUPS_MAX, LOG_AFTER_MAX};
use crate::proto::PeerMisbehaved;
use crate::wire::errno::Errno;
use crate::wire::log::{LogEntry, Mutation, NodeRef, Occupant, Outcome, Reason, Refused};

/// Why an entry that names what another one made cannot be carried out.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Blocked {
    /// That one made nothing.
    NotMade,
    /// That one is too old to be remembered.
    Forgotten,
}

impl Blocked {
    pub(super) fn errno(self) -> Errno {
        match self {
            Self::NotMade => Errno::ENOENT,
            Self::Forgotten => Errno::ESTALE,
        }
    }
}

/// What an entry must be, whatever the state.
pub(super) fn check(entry: &LogEntry) -> Result<(), PeerMisbehaved> {
    let groups = entry.change.caller.as_ref().map_or(0, |caller| caller.groups.len());
    if entry.after.len() > LOG_AFTER_MAX || groups > CALLER_GROUPS_MAX {
        return Err(PeerMisbehaved::TooMany);
    }
    let late = |seq: &Seq| *seq >= entry.seq;
    if entry.seq == Seq::ZERO
        || entry.after.iter().any(late)
        || makers(&entry.change.mutation).iter().any(late)
    {
        return Err(PeerMisbehaved::Sequence);
    }
    Ok(())
}

/// The entries that made what this one names.
pub(super) fn makers(mutation: &Mutation) -> Vec<Seq> {
    let made = references(mutation).into_iter().filter_map(|node| match node {
        NodeRef::MadeBy(seq) => Some(seq),
        NodeRef::Node(_) => None,
    });
    made.collect()
}

/// Names every object by its identity.
pub(super) fn resolve(
    mutation: &mut Mutation,
    made_by: impl Fn(Seq) -> Result<NodeId, Blocked>,
) -> Result<(), Blocked> {
    for node in references_mut(mutation) {
        if let NodeRef::MadeBy(seq) = *node {
            *node = NodeRef::Node(made_by(seq)?);
        }
    }
    Ok(())
}

/// What a change, whose objects are named by their identity, touches.
pub(super) fn touched_by_change(mutation: &Mutation) -> Vec<NodeId> {
    let nodes = references(mutation).into_iter().filter_map(|node| match node {
        NodeRef::Node(node) => Some(node),
        NodeRef::MadeBy(_) => None,
    });
    nodes.collect()
}

/// What only the result tells.
pub(super) fn touched_by_outcome(outcome: &Outcome) -> Vec<NodeId> {
    match outcome {
        Outcome::Entry(entry) => vec![entry.node],
        Outcome::Removed { node, .. } => vec![*node],
        Outcome::Renamed { node, replaced } => {
            let mut nodes = vec![*node];
            nodes.extend(*replaced);
            nodes
        }
        Outcome::Done | Outcome::Attr(_) | Outcome::Appended { .. } | Outcome::Copied { .. } => {
            Vec::new()
        }
    }
}

fn references(mutation: &Mutation) -> Vec<NodeRef> {
    // one list of them, for reading and for writing
    references_mut(&mut mutation.clone()).into_iter().map(|node| *node).collect()
}

fn references_mut(mutation: &mut Mutation) -> Vec<&mut NodeRef> {
    match mutation {
        Mutation::Nothing => Vec::new(),
        Mutation::Create { parent, .. }
        | Mutation::Mkdir { parent, .. }
        | Mutation::Mknod { parent, .. }
        | Mutation::Symlink { parent, .. } => vec![parent],
        Mutation::Link { node, parent, .. } => vec![node, parent],
        Mutation::Unlink { parent, occupant, .. } | Mutation::Rmdir { parent, occupant, .. } => {
            let mut nodes = vec![parent];
            nodes.extend(occupant_mut(occupant));
            nodes
        }
        Mutation::Rename { parent, occupant, new_parent, new_occupant, .. } => {
            let mut nodes = vec![parent, new_parent];
            nodes.extend(occupant_mut(occupant));
            nodes.extend(occupant_mut(new_occupant));
            nodes
        }
        Mutation::SetAttr { node, .. }
        | Mutation::Write { node, .. }
        | Mutation::Append { node, .. }
        | Mutation::SetXattr { node, .. }
        | Mutation::RemoveXattr { node, .. }
        | Mutation::Fallocate { node, .. } => vec![node],
        Mutation::CopyRange { source, node, .. } => vec![source, node],
    }
}

fn occupant_mut(occupant: &mut Occupant) -> Option<&mut NodeRef> {
    match occupant {
        Occupant::Node(node) => Some(node),
        Occupant::Any | Occupant::Nobody => None,
    }
}

impl<B, W> Applier<B, W> {
    /// Sets aside what comes after an accepted entry that failed, or after what was set aside.
    pub(super) fn poisoned_by(&self, after: &BTreeSet<Seq>) -> Option<Refused> {
        after.iter().find_map(|seq| {
            let applied = self.results.get(seq)?;
            let because = match applied.result {
                Err(Refused { reason: Reason::SetAside { because }, .. }) => because,
                Err(_) if applied.poisons => *seq,
                _ => return None,
            };
            Some(Refused { errno: Errno::EIO, reason: Reason::SetAside { because } })
        })
    }

    pub(super) fn made_by(&self, maker: Seq) -> Result<NodeId, Blocked> {
        match self.results.get(&maker).map(|applied| &applied.result) {
            Some(Ok(Outcome::Entry(entry))) => Ok(entry.node),
            Some(_) => Err(Blocked::NotMade),
            None => Err(Blocked::Forgotten),
        }
    }
}
