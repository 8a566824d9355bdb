//! Which objects a change or a call uses: what the host clears with [`super::grantor`] first.
//!
//! More than necessary costs a recall; less shows somebody what is no longer so.

use std::collections::BTreeMap;

use crate::id::NodeId;
use crate::proto::lease::grantor::Use;
use crate::proto::redo::execute::Seen;
use crate::wire::call::Call;
use crate::wire::log::{Mutation, NodeRef, Occupant};

/// What a change uses; `seen`: who has its names now. Every node is named by its identity: one that
/// is still named by the entry that made it is not leased by anybody.
pub fn uses(mutation: &Mutation, seen: &Seen) -> Vec<(NodeId, Use)> {
    let mut used = Used::default();
    match mutation {
        Mutation::Nothing => {}
        Mutation::Create { parent, premade, .. } => {
            used.change(*parent);
            used.nodes(*premade);
            used.nodes(seen.made);
            // opened instead, if it is there; its times do not change by that
            if let Some(node) = seen.name {
                used.read(node.into());
            }
        }
        Mutation::Mkdir { parent, premade, .. } => {
            used.change(*parent);
            used.nodes(*premade);
            used.nodes(seen.made);
        }
        Mutation::Mknod { parent, .. } | Mutation::Symlink { parent, .. } => {
            used.change(*parent);
            used.nodes(seen.made);
        }
        Mutation::Link { node, parent, .. } => {
            // the number of its links
            used.change(*node);
            used.change(*parent);
        }
        Mutation::Unlink { parent, occupant, .. } | Mutation::Rmdir { parent, occupant, .. } => {
            used.change(*parent);
            used.occupant(*occupant, seen.name);
        }
        Mutation::Rename { parent, occupant, new_parent, new_occupant, .. } => {
            used.change(*parent);
            used.change(*new_parent);
            // its ctime; and a directory's `..`
            used.occupant(*occupant, seen.name);
            used.occupant(*new_occupant, seen.new_name);
        }
        Mutation::SetAttr { node, .. }
        | Mutation::Write { node, .. }
        | Mutation::Append { node, .. }
        | Mutation::SetXattr { node, .. }
        | Mutation::RemoveXattr { node, .. }
        | Mutation::Fallocate { node, .. } => used.change(*node),
        Mutation::CopyRange { source, node, .. } => {
            used.read(*source);
            used.change(*node);
        }
    }
    used.0.into_iter().collect()
}

/// What a call reads. `open`: the node of the call's handle, where it names one; `seen`: the node
/// that a lookup finds. A sync needs nobody's leave: it makes the caller's own changes stable.
pub fn reads(call: &Call, open: Option<NodeId>, seen: Option<NodeId>) -> Vec<(NodeId, Use)> {
    let mut used = Used::default();
    match call {
        Call::Lookup { parent, .. } => {
            used.read((*parent).into());
            used.0.extend(seen.map(|node| (node, Use::Read)));
        }
        Call::GetAttr { node, .. }
        | Call::ReadLink { node }
        | Call::ReadDir { node, .. }
        | Call::Open { node, .. }
        | Call::OpenRead { node, .. }
        | Call::OpenDir { node, .. }
        | Call::GetXattr { node, .. } => used.read((*node).into()),
        Call::Read { .. } | Call::Seek { .. } | Call::ReadVersion { .. } => {
            used.0.extend(open.map(|node| (node, Use::Read)));
        }
        Call::As { asked, .. } => return reads(&asked.clone().into(), open, seen),
        Call::StatFs
        | Call::Sync { .. }
        | Call::SyncAll { .. }
        | Call::Release { .. }
        | Call::Forget { .. }
        | Call::Unwrap(_)
        | Call::Absent
        | Call::Leave(_)
        | Call::Over(_) => {}
    }
    used.0.into_iter().collect()
}

/// Each object once, with the stronger use.
#[derive(Default)]
struct Used(BTreeMap<NodeId, Use>);

impl Used {
    fn change(&mut self, node: NodeRef) {
        if let NodeRef::Node(node) = node {
            self.nodes(Some(node));
        }
    }

    fn nodes(&mut self, node: Option<NodeId>) {
        self.0.extend(node.map(|node| (node, Use::Change)));
    }

    fn read(&mut self, node: NodeRef) {
        if let NodeRef::Node(node) = node {
            self.0.entry(node).or_insert(Use::Read);
        }
    }

    /// Who is expected at a name, and who is there: either may lose it.
    fn occupant(&mut self, occupant: Occupant, seen: Option<NodeId>) {
        if let Occupant::Node(node) = occupant {
            self.change(node);
        }
        self.nodes(seen);
    }
}
