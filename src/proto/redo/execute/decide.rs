//! What is to be done about an entry, by what is seen now.
//!
//! ```text
//!  First     not carried out yet: whoever is expected must be there
//!  Resumed   as the intent saw it: do it; as it leaves it: done; neither: conflict
//!  Again     the same, but what it saw is known only from what it expects and what was told
//!  Passed    the same; but where it is neither, later entries of the session have come by: done
//! ```

use super::{How, Seen, Step};
use crate::id::NodeId;
use crate::wire::errno::Errno;
use crate::wire::log::{Change, Mutation, NodeRef, Occupant, Outcome, Reason, Refused, RenameMode};

/// `FALLOC_FL_COLLAPSE_RANGE`
const COLLAPSE: u32 = 0x08;
/// `FALLOC_FL_INSERT_RANGE`
const INSERT: u32 = 0x20;

const UNKNOWN: Step = Step::Refuse(Refused { errno: Errno::EIO, reason: Reason::Unknown });

/// Decides by what is seen now.
///
/// An append is decided by the file's data too: that is left to [`super::execute`].
pub fn decide(change: &Change, how: &How, now: &Seen) -> Step {
    if let How::Again { told: Some(Outcome::Done) } | How::Passed { told: Some(Outcome::Done) } =
        how
        && matches!(
            change.mutation,
            Mutation::Unlink { .. } | Mutation::Rmdir { .. } | Mutation::Rename { .. }
        )
    {
        // it had nothing left to do even then
        return Step::Done;
    }
    let How::Passed { told } = *how else { return decide_alone(change, how, now) };
    match decide_alone(change, &How::Again { told }, now) {
        // later entries of the session explain why neither state is there
        Step::Refuse(Refused { reason: Reason::Conflict, .. }) => Step::Done,
        step => step,
    }
}

fn decide_alone(change: &Change, how: &How, now: &Seen) -> Step {
    if let How::Refused(refused) = how {
        return Step::Refuse(*refused);
    }
    match &change.mutation {
        Mutation::Nothing => Step::Done,
        Mutation::Create { exclusive, premade, .. } => creation(*exclusive, *premade, how, now),
        Mutation::Mkdir { premade, .. } => creation(true, *premade, how, now),
        Mutation::Mknod { .. } | Mutation::Symlink { .. } => creation(true, None, how, now),
        Mutation::Link { node, .. } => link(node, how, now),
        Mutation::Unlink { occupant, .. } | Mutation::Rmdir { occupant, .. } => {
            removal(occupant, how, now)
        }
        Mutation::Rename { occupant, new_occupant, mode, .. } => {
            rename(occupant, new_occupant, *mode, how, now)
        }
        Mutation::Fallocate { len, mode, .. } if mode & (COLLAPSE | INSERT) != 0 => {
            shift(*mode, *len, how, now)
        }
        Mutation::CopyRange { .. } => copy(how),
        // absolute: twice is as good as once
        Mutation::SetAttr { .. }
        | Mutation::Write { .. }
        | Mutation::Append { .. }
        | Mutation::SetXattr { .. }
        | Mutation::RemoveXattr { .. }
        | Mutation::Fallocate { .. } => Step::Perform,
    }
}

/// Whether it moves data that is not in the entry.
pub(in crate::proto::redo) fn moves_data(mutation: &Mutation) -> bool {
    match mutation {
        Mutation::CopyRange { .. } => true,
        Mutation::Fallocate { mode, .. } => mode & (COLLAPSE | INSERT) != 0,
        _ => false,
    }
}

/// The node; none for a reference that the applier has not replaced.
pub(super) fn node_of(node: &NodeRef) -> Option<NodeId> {
    match node {
        NodeRef::Node(node) => Some(*node),
        NodeRef::MadeBy(_) => None,
    }
}

fn conflict(errno: Errno) -> Step {
    Step::Refuse(Refused::conflict(errno))
}

fn creation(exclusive: bool, premade: Option<NodeId>, how: &How, now: &Seen) -> Step {
    let made = match how {
        How::First => return create_first(exclusive, premade, now),
        How::Resumed { before } => before.made,
        How::Again { told: Some(Outcome::Entry(entry)) }
        | How::Passed { told: Some(Outcome::Entry(entry)) } => Some(entry.node),
        How::Again { told: Some(Outcome::Removed { node, .. }) } => Some(*node),
        How::Again { .. } | How::Passed { .. } | How::Refused(_) => None,
    };
    let before = match how {
        How::Resumed { before } => before.name,
        How::First | How::Again { .. } | How::Passed { .. } | How::Refused(_) => None,
    };
    let Some(occupant) = now.name else {
        return if before.is_none() { Step::Perform } else { conflict(Errno::ESTALE) };
    };
    let told = matches!(how, How::Again { .. } | How::Passed { .. }) && made.is_some();
    if premade == Some(occupant) || made == Some(occupant) {
        Step::Done
    } else if premade.is_some() || told {
        conflict(Errno::EEXIST)
    } else if !exclusive {
        // opens whoever is there
        Step::Perform
    } else if made.is_some() {
        conflict(Errno::EEXIST)
    } else {
        // perhaps it is this entry's
        Step::Refuse(Refused { errno: Errno::EEXIST, reason: Reason::Unknown })
    }
}

fn create_first(exclusive: bool, premade: Option<NodeId>, now: &Seen) -> Step {
    if now.name.is_none() {
        Step::Perform
    } else if premade.is_some() {
        // the client knew that the name was free
        conflict(Errno::EEXIST)
    } else if exclusive {
        Step::Refuse(Refused::by_system(Errno::EEXIST))
    } else {
        Step::Perform
    }
}

fn link(node: &NodeRef, how: &How, now: &Seen) -> Step {
    let Some(occupant) = now.name else {
        return Step::Perform;
    };
    let linked = node_of(node) == Some(occupant);
    match how {
        How::First => Step::Refuse(Refused::by_system(Errno::EEXIST)),
        // the intent is only there if the name was free
        How::Resumed { .. } | How::Again { .. } | How::Passed { .. } if linked => Step::Done,
        How::Resumed { .. } | How::Again { .. } | How::Passed { .. } => conflict(Errno::EEXIST),
        How::Refused(refused) => Step::Refuse(*refused),
    }
}

fn removal(occupant: &Occupant, how: &How, now: &Seen) -> Step {
    let expected = match how {
        How::First => return expect(occupant, now.name).map_or(Step::Perform, Step::Refuse),
        How::Resumed { before } if before.name == now.name => return Step::Perform,
        // it was there, and is not
        How::Resumed { before } if before.name.is_some() => return Step::Done,
        How::Resumed { .. } => return Step::Refuse(Refused::by_system(Errno::ENOENT)),
        How::Refused(refused) => return Step::Refuse(*refused),
        How::Again { told } | How::Passed { told } => match (occupant, told) {
            (Occupant::Node(node), _) => node_of(node),
            (Occupant::Any, Some(Outcome::Removed { node, .. })) => Some(*node),
            (Occupant::Any | Occupant::Nobody, _) => None,
        },
    };
    match (expected, now.name) {
        (Some(expected), Some(occupant)) if expected == occupant => Step::Perform,
        (Some(_), _) | (None, None) => Step::Done,
        // it may be another one than then
        (None, Some(_)) => UNKNOWN,
    }
}

/// Why what is there is not what is expected.
fn expect(occupant: &Occupant, now: Option<NodeId>) -> Option<Refused> {
    match (occupant, now) {
        (Occupant::Any, _) | (Occupant::Nobody, None) => None,
        (Occupant::Nobody, Some(_)) => Some(Refused::conflict(Errno::EEXIST)),
        (Occupant::Node(_), None) => Some(Refused::conflict(Errno::ENOENT)),
        (Occupant::Node(node), Some(now)) if node_of(node) == Some(now) => None,
        (Occupant::Node(_), Some(_)) => Some(Refused::conflict(Errno::ESTALE)),
    }
}

fn rename(from: &Occupant, to: &Occupant, mode: RenameMode, how: &How, now: &Seen) -> Step {
    match how {
        How::First => match expect(from, now.name).or_else(|| expect(to, now.new_name)) {
            None => Step::Perform,
            Some(refused) => Step::Refuse(refused),
        },
        How::Resumed { before } => rename_resumed(mode, before, now),
        How::Again { told } | How::Passed { told } => {
            rename_again(from, to, mode, told.as_ref(), now)
        }
        How::Refused(refused) => Step::Refuse(*refused),
    }
}

fn rename_resumed(mode: RenameMode, before: &Seen, now: &Seen) -> Step {
    let moved = now.new_name == before.name && now.name != before.name;
    let done = match mode {
        RenameMode::Replace | RenameMode::NoReplace => moved,
        RenameMode::Exchange => moved && now.name == before.new_name,
    };
    if (now.name, now.new_name) == (before.name, before.new_name) {
        Step::Perform
    } else if done && before.name.is_some() {
        Step::Done
    } else if now.name.is_none() {
        conflict(Errno::ENOENT)
    } else {
        conflict(Errno::ESTALE)
    }
}

fn rename_again(
    from: &Occupant,
    to: &Occupant,
    mode: RenameMode,
    told: Option<&Outcome>,
    now: &Seen,
) -> Step {
    let told = match told {
        Some(Outcome::Renamed { node, replaced }) => Some((*node, *replaced)),
        _ => None,
    };
    let moved = match (from, told) {
        (Occupant::Node(node), _) => node_of(node),
        (Occupant::Any | Occupant::Nobody, Some((node, _))) => Some(node),
        (Occupant::Any | Occupant::Nobody, None) => None,
    };
    let Some(moved) = moved else {
        return match (now.name, now.new_name) {
            (Some(_), _) => UNKNOWN,
            // whoever had the old name left it
            (None, Some(_)) => Step::Done,
            (None, None) => Step::Refuse(Refused::by_system(Errno::ENOENT)),
        };
    };
    let at_old = now.name == Some(moved);
    let at_new = now.new_name == Some(moved);
    let replaced = match (to, told) {
        (Occupant::Node(node), _) => Some(node_of(node)),
        (Occupant::Nobody, _) => Some(None),
        (Occupant::Any, Some((_, replaced))) => Some(replaced),
        (Occupant::Any, None) => None,
    };
    match mode {
        RenameMode::Exchange => {
            let fits = replaced.is_none_or(|other| now.new_name == other);
            let swapped = replaced.is_none_or(|other| now.name == other);
            match (at_old, at_new) {
                (true, false) if fits => Step::Perform,
                (false, true) if swapped => Step::Done,
                (false, _) if told.is_some() => Step::Done,
                // two names of one node: nothing to see
                (true, true) => Step::Done,
                (false, false) => absent(now.name),
                (true, false) | (false, true) => conflict(Errno::ESTALE),
            }
        }
        RenameMode::Replace | RenameMode::NoReplace => {
            // a name that has become free is no reason to stay: nothing is overwritten
            let fits = at_new
                || now.new_name.is_none()
                || replaced.is_none_or(|other| now.new_name == other);
            match (at_old, at_new) {
                (false, true) => Step::Done,
                (true, _) if fits => Step::Perform,
                (true, _) => conflict(Errno::EEXIST),
                // it was there, and went on: by a later entry, or by somebody who saw it
                (false, false) if told.is_some() => Step::Done,
                (false, false) => absent(now.name),
            }
        }
    }
}

/// Who should have moved is not there.
fn absent(now: Option<NodeId>) -> Step {
    conflict(if now.is_none() { Errno::ENOENT } else { Errno::ESTALE })
}

/// Collapse and insert: only the length tells whether they were carried out.
fn shift(mode: u32, len: u64, how: &How, now: &Seen) -> Step {
    match how {
        How::First => Step::Perform,
        // it was on the disk before it was acknowledged
        How::Again { told: Some(_) } | How::Passed { told: Some(_) } => Step::Done,
        How::Again { told: None } | How::Passed { told: None } => UNKNOWN,
        How::Refused(refused) => Step::Refuse(*refused),
        How::Resumed { before } => {
            let (Some(before), Some(now)) = (before.size, now.size) else {
                return UNKNOWN;
            };
            let after = if mode & COLLAPSE != 0 {
                before.checked_sub(len)
            } else {
                before.checked_add(len)
            };
            if now == before {
                Step::Perform
            } else if Some(now) == after {
                Step::Done
            } else {
                conflict(Errno::ESTALE)
            }
        }
    }
}

/// A copy reads what the source holds now: that is what it held then, only while nothing that comes
/// after the copy can have been applied.
fn copy(how: &How) -> Step {
    match how {
        How::First | How::Resumed { .. } => Step::Perform,
        How::Again { told: Some(_) } | How::Passed { told: Some(_) } => Step::Done,
        How::Again { told: None } | How::Passed { told: None } => UNKNOWN,
        How::Refused(refused) => Step::Refuse(*refused),
    }
}
