//! What ought to be: every change at the moment that counts, in the order of those moments.
//!
//! An accepted change counts from when an application was told; one that is awaited from when the
//! host has carried it out. What is set aside or struck is taken out again. Nodes have numbers of
//! their own here, since a crash may give a node another identity.

use std::collections::{BTreeMap, BTreeSet};

use p2pfs::id::NodeId;
use p2pfs::wire::errno::Errno;
use p2pfs::wire::log::{Mutation, NodeRef};
use p2pfs::wire::name::Name;

use super::posix::{Node, Posix, id};

/// Who changed something: a client's entry, or the host's own process.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(crate) enum Who {
    Client(usize, u64),
    Process(u64),
}

#[derive(Clone, Debug)]
struct Step {
    who: Who,
    mutation: Mutation,
    body: Vec<u64>,
    made: NodeId,
}

#[derive(Debug, Default)]
pub(crate) struct Model {
    pub(crate) tree: Posix,
    steps: Vec<Step>,
    known_as: BTreeMap<NodeId, NodeId>,
    next: u64,
    /// Two have changed these without knowing of each other: rules of conflicts decide.
    pub(crate) contested: BTreeSet<NodeId>,
    /// Directories' names, likewise.
    pub(crate) contested_names: BTreeSet<(NodeId, Name)>,
    /// How often a node was changed.
    pub(crate) touched: BTreeMap<NodeId, u64>,
}

impl Model {
    /// The model's number for a node.
    pub(crate) fn own(&self, node: NodeId) -> NodeId {
        self.known_as.get(&node).copied().unwrap_or(node)
    }

    pub(crate) fn node(&self, node: NodeId) -> Option<&Node> {
        self.tree.nodes.get(&self.own(node))
    }

    /// A node has another identity since a crash.
    pub(crate) fn remade(&mut self, old: NodeId, new: NodeId) {
        let own = self.own(old);
        self.known_as.insert(new, own);
    }

    pub(crate) fn has(&self, who: Who) -> bool {
        self.steps.iter().any(|step| step.who == who)
    }

    /// What would come of a change now.
    pub(crate) fn predict(&self, mutation: &Mutation, body: &[u64]) -> Result<NodeId, Errno> {
        let fresh = NodeId { ino: u64::MAX, generation: 7 };
        self.tree.plan(&self.translate(mutation), body, fresh).map(|(_, node)| node)
    }

    /// A change counts from now on; `made`: what the world calls the node that it makes.
    pub(crate) fn count(
        &mut self,
        who: Who,
        mutation: &Mutation,
        body: &[u64],
        made: Option<NodeId>,
    ) -> Result<NodeId, Errno> {
        self.next += 1;
        let fresh = NodeId { ino: 1_000_000 + self.next, generation: 7 };
        let mutation = self.translate(mutation);
        let (ops, node) = self.tree.plan(&mutation, body, fresh)?;
        for touched in self.touches(&mutation) {
            *self.touched.entry(touched).or_default() += 1;
        }
        for op in &ops {
            self.tree.apply(op);
        }
        if let Some(made) = made
            && node == fresh
        {
            // the host only opened what ought not to be there any more
            if let Some(had) = self.known_as.insert(made, fresh) {
                self.contested.extend([had, fresh]);
            }
        }
        self.steps.push(Step { who, mutation, body: body.to_vec(), made: fresh });
        Ok(node)
    }

    /// The result of an entry that makes a node names it; before, only the entry did.
    pub(crate) fn named(&mut self, who: Who, node: NodeId) {
        if let Some(step) = self.steps.iter().find(|step| step.who == who)
            && self.tree.nodes.contains_key(&step.made)
        {
            self.known_as.insert(node, step.made);
        }
    }

    /// A change does not count after all.
    pub(crate) fn withdraw(&mut self, who: Who) -> bool {
        let before = self.steps.len();
        let out: Vec<Step> = self.steps.extract_if(.., |step| step.who == who).collect();
        for step in &out {
            for touched in self.touches(&step.mutation) {
                *self.touched.entry(touched).or_default() += 1;
            }
        }
        if self.steps.len() == before {
            return false;
        }
        self.tree = Posix::default();
        for step in &self.steps {
            if let Ok((ops, _)) = self.tree.plan(&step.mutation, &step.body, step.made) {
                for op in &ops {
                    self.tree.apply(op);
                }
            }
        }
        true
    }

    /// Everything that an entry touches is in dispute.
    pub(crate) fn contest(&mut self, mutation: &Mutation) {
        self.contest_names(mutation);
        let touched: Vec<NodeId> = self.concerned(mutation);
        for node in touched {
            if self.tree.nodes.get(&node).is_none_or(|node| node.names.is_empty()) {
                self.contested.insert(node);
            }
        }
    }

    /// Who has an entry's names is in dispute, and nothing else.
    pub(crate) fn contest_names(&mut self, mutation: &Mutation) {
        self.contested_names.extend(names(&self.translate(mutation)));
    }

    /// Which nodes a change is about, by the model's numbers.
    pub(crate) fn concerned(&self, mutation: &Mutation) -> Vec<NodeId> {
        self.touches(&self.translate(mutation))
    }

    pub(crate) fn concerns(&self, mutation: &Mutation, own: NodeId) -> bool {
        self.concerned(mutation).contains(&own)
    }

    /// Which nodes a change touches: those that it names, and those that have its names.
    fn touches(&self, mutation: &Mutation) -> Vec<NodeId> {
        let mut found: Vec<NodeId> = nodes(mutation);
        for (parent, name) in names(mutation) {
            found.extend(self.tree.lookup(parent, &name));
        }
        found
    }

    fn translate(&self, mutation: &Mutation) -> Mutation {
        let mut mutation = mutation.clone();
        for_each_ref(&mut mutation, |node| *node = NodeRef::Node(self.own(id(node))));
        mutation
    }
}

/// The nodes that a mutation names.
pub(crate) fn nodes(mutation: &Mutation) -> Vec<NodeId> {
    let mut found = Vec::new();
    for_each_ref(&mut mutation.clone(), |node| found.push(id(node)));
    found
}

/// The names that a mutation changes.
pub(crate) fn names(mutation: &Mutation) -> Vec<(NodeId, Name)> {
    match mutation {
        Mutation::Create { parent, name, .. }
        | Mutation::Mkdir { parent, name, .. }
        | Mutation::Link { parent, name, .. }
        | Mutation::Unlink { parent, name, .. }
        | Mutation::Rmdir { parent, name, .. } => vec![(id(parent), name.clone())],
        Mutation::Rename { parent, name, new_parent, new_name, .. } => {
            vec![(id(parent), name.clone()), (id(new_parent), new_name.clone())]
        }
        _ => Vec::new(),
    }
}

/// Every node that a mutation names, expected occupants left out.
pub(crate) fn for_each_ref(mutation: &mut Mutation, mut each: impl FnMut(&mut NodeRef)) {
    match mutation {
        Mutation::Nothing => {}
        Mutation::Create { parent, .. }
        | Mutation::Mkdir { parent, .. }
        | Mutation::Mknod { parent, .. }
        | Mutation::Symlink { parent, .. }
        | Mutation::Unlink { parent, .. }
        | Mutation::Rmdir { parent, .. } => each(parent),
        Mutation::Link { node, parent, .. } => {
            each(node);
            each(parent);
        }
        Mutation::Rename { parent, new_parent, .. } => {
            each(parent);
            each(new_parent);
        }
        Mutation::CopyRange { source, node, .. } => {
            each(source);
            each(node);
        }
        Mutation::SetAttr { node, .. }
        | Mutation::Write { node, .. }
        | Mutation::Append { node, .. }
        | Mutation::SetXattr { node, .. }
        | Mutation::RemoveXattr { node, .. }
        | Mutation::Fallocate { node, .. } => each(node),
    }
}
