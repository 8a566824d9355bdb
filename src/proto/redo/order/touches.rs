//! What one entry touches, and every node that a mutation names.

use super::known::Holder;
use crate::id::NodeId;
use crate::wire::log::{Mutation, NodeRef, Occupant};
use crate::wire::name::Name;

/// What an entry touches.
#[derive(Debug, Default)]
pub struct Touches {
    pub(super) nodes: Vec<NodeRef>,
    pub(super) names: Vec<(NodeRef, Name, Holder)>,
    /// Directories that must be there.
    pub(super) parents: Vec<NodeRef>,
    /// What must be empty, if it is a directory.
    pub(super) emptied: Option<NodeRef>,
    pub(super) makes: bool,
    /// The node that gets another name.
    pub(super) linked: Option<NodeRef>,
    pub(super) premade: Option<NodeId>,
    /// It moves something into another directory.
    pub(super) crosses: bool,
}

impl Touches {
    pub(super) fn make(&mut self, parent: NodeRef, name: &Name, premade: Option<NodeId>) {
        self.name(parent, name, Holder::Made);
        self.makes = true;
        self.premade = premade;
    }

    pub(super) fn name(&mut self, parent: NodeRef, name: &Name, holder: Holder) {
        self.names.push((parent, name.clone(), holder));
        self.parents.push(parent);
    }
}

/// Every node that a mutation names.
pub(in crate::proto::redo) fn each_node(
    mutation: &mut Mutation,
    mut visit: impl FnMut(&mut NodeRef),
) {
    match mutation {
        Mutation::Nothing => {}
        Mutation::Create { parent, .. }
        | Mutation::Mkdir { parent, .. }
        | Mutation::Mknod { parent, .. }
        | Mutation::Symlink { parent, .. } => visit(parent),
        Mutation::Link { node, parent, .. } => {
            visit(node);
            visit(parent);
        }
        Mutation::Unlink { parent, occupant, .. } | Mutation::Rmdir { parent, occupant, .. } => {
            visit(parent);
            each_occupant(occupant, &mut visit);
        }
        Mutation::Rename { parent, occupant, new_parent, new_occupant, .. } => {
            visit(parent);
            visit(new_parent);
            each_occupant(occupant, &mut visit);
            each_occupant(new_occupant, &mut visit);
        }
        Mutation::SetAttr { node, .. }
        | Mutation::Write { node, .. }
        | Mutation::Append { node, .. }
        | Mutation::SetXattr { node, .. }
        | Mutation::RemoveXattr { node, .. }
        | Mutation::Fallocate { node, .. } => visit(node),
        Mutation::CopyRange { source, node, .. } => {
            visit(source);
            visit(node);
        }
    }
}

fn each_occupant(occupant: &mut Occupant, visit: &mut impl FnMut(&mut NodeRef)) {
    if let Occupant::Node(node) = occupant {
        visit(node);
    }
}
