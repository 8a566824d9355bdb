//! What was set aside, by the file that it is about.

use std::time::{Duration, Instant};

use super::{CONFLICTS, Copies, GATHER, Output};
use crate::id::{NodeId, Seq};
use crate::proto::redo::log::Aside;
use crate::wire::log::{Change, Mutation, NodeRef, Occupant, Reason, RenameMode};
use crate::wire::name::Name;

/// Directories that a path may name; of a longer one the end is kept.
const DEPTH_MAX: usize = 128;
/// Entries whose reason is remembered, for what is set aside because of them.
const CAUSES_MAX: usize = 8192;

/// One copy that is to be made.
#[derive(Clone, Debug)]
pub(super) struct Group<B> {
    /// Where it was to be.
    pub(super) path: Vec<Name>,
    pub(super) kind: Kind,
    /// What is done to it, in the order of the log.
    pub(super) pieces: Vec<Piece<B>>,
    /// All that is settled with it.
    pub(super) seqs: Vec<Seq>,
    /// Whose content is beneath the data.
    pub(super) base: Option<NodeId>,
    /// The entry that was to make the node.
    pub(super) maker: Option<Seq>,
    pub(super) bytes: usize,
    /// Which copy of this name it will be.
    pub(super) number: u32,
    pub(super) due: Instant,
    pub(super) delay: Duration,
    pub(super) refused: Option<crate::wire::errno::Errno>,
}

/// What is made first.
#[derive(Clone, Debug)]
pub(super) enum Kind {
    File {
        mode: u32,
    },
    Directory {
        mode: u32,
    },
    /// A symlink, a device: made by the change itself, elsewhere.
    Special(Mutation),
}

#[derive(Clone, Debug)]
pub(super) struct Piece<B> {
    pub(super) change: Change,
    pub(super) body: B,
    pub(super) bytes: usize,
}

impl<B> Group<B> {
    /// Whether there is anything in it that would be lost.
    pub(super) fn is_worth_it(&self) -> bool {
        self.maker.is_some() || self.bytes > 0
    }

    /// Whether what is beneath does not show.
    pub(super) fn begins_empty(&self) -> bool {
        let first = self.pieces.iter().find(|piece| {
            !matches!(
                piece.change.mutation,
                Mutation::SetXattr { .. } | Mutation::RemoveXattr { .. }
            )
        });
        first.is_some_and(|piece| match &piece.change.mutation {
            Mutation::SetAttr { change, .. } => change.size == Some(0),
            _ => false,
        })
    }
}

impl<B: Clone + Default> Copies<B> {
    /// An entry was set aside. `path`: where a node is, from the share's
    /// root, as applications believe; the root's is empty.
    pub fn handle_aside(
        &mut self,
        aside: &Aside<B>,
        path: impl Fn(NodeRef) -> Option<Vec<Name>>,
        now: Instant,
    ) {
        let seq = aside.seq;
        let cause = match aside.refused.reason {
            Reason::SetAside { because } => {
                self.causes.get(&because).copied().unwrap_or(Reason::Conflict)
            }
            reason => reason,
        };
        let named = |parent: &NodeRef, name: &Name| {
            let mut path = path(*parent).or_else(|| self.path_of(*parent)).unwrap_or_default();
            path.push(name.clone());
            path
        };
        let making = match &aside.change.mutation {
            Mutation::Create { parent, name, mode, premade, .. } => {
                Some((named(parent, name), Kind::File { mode: *mode }, *premade))
            }
            Mutation::Mkdir { parent, name, mode, premade } => {
                Some((named(parent, name), Kind::Directory { mode: *mode }, *premade))
            }
            mutation @ (Mutation::Symlink { parent, name, .. }
            | Mutation::Mknod { parent, name, .. }) => {
                Some((named(parent, name), Kind::Special(mutation.clone()), None))
            }
            _ => None,
        };
        if let Some((path, kind, premade)) = making {
            self.remember(seq, cause);
            let names = [Some(NodeRef::MadeBy(seq)), premade.map(NodeRef::Node)];
            let names = names.into_iter().chain([aside.made.map(NodeRef::Node)]).flatten();
            for name in names {
                self.of.entry(name).or_insert(seq);
            }
            let mut group = Group::new(path, kind, now);
            (group.maker, group.seqs) = (Some(seq), vec![seq]);
            self.groups.insert(seq, group);
            return;
        }
        let node = match &aside.change.mutation {
            Mutation::SetAttr { node, .. }
            | Mutation::Write { node, .. }
            | Mutation::Append { node, .. }
            | Mutation::SetXattr { node, .. }
            | Mutation::RemoveXattr { node, .. }
            | Mutation::Fallocate { node, .. }
            | Mutation::CopyRange { node, .. } => *node,
            mutation => {
                let renamed = renamed(mutation, named);
                self.rename(renamed);
                self.remove(mutation);
                self.remember(seq, cause);
                self.outputs.push_back(Output::Dropped { seq });
                return;
            }
        };
        self.remember(seq, cause);
        let first = self.group_of(node, seq, cause, &path, now);
        let Some(group) = self.groups.get_mut(&first) else { return };
        if cause != Reason::System {
            group.base = None;
        }
        group.bytes += aside.bytes;
        if first != seq {
            group.seqs.push(seq);
        }
        let (change, body) = (aside.change.clone(), aside.body.clone());
        group.pieces.push(Piece { change, body, bytes: aside.bytes });
    }

    /// The group of a node, which begins with this entry if there is none.
    fn group_of(
        &mut self,
        node: NodeRef,
        seq: Seq,
        cause: Reason,
        path: &impl Fn(NodeRef) -> Option<Vec<Name>>,
        now: Instant,
    ) -> Seq {
        if let Some(first) = self.of.get(&node) {
            return *first;
        }
        let mut group = Group::new(path(node).unwrap_or_default(), Kind::File { mode: 0o600 }, now);
        if group.path.is_empty() {
            group.path = vec![nameless(node)];
        }
        group.seqs = vec![seq];
        group.base = match node {
            NodeRef::Node(node) if cause == Reason::System => Some(node),
            _ => None,
        };
        self.of.insert(node, seq);
        self.groups.insert(seq, group);
        seq
    }

    fn path_of(&self, node: NodeRef) -> Option<Vec<Name>> {
        self.groups.get(self.of.get(&node)?).map(|group| group.path.clone())
    }

    fn remember(&mut self, seq: Seq, cause: Reason) {
        self.causes.insert(seq, cause);
        while self.causes.len() > CAUSES_MAX {
            self.causes.pop_first();
        }
    }

    /// What was made here and removed again, and never held anything, leaves nothing to keep.
    fn remove(&mut self, mutation: &Mutation) {
        let (Mutation::Unlink { occupant: Occupant::Node(node), .. }
        | Mutation::Rmdir { occupant: Occupant::Node(node), .. }) = mutation
        else {
            return;
        };
        let Some(&first) = self.of.get(node) else { return };
        let empty = self.groups.get(&first).is_some_and(|group| group.bytes == 0);
        if empty && !self.makes(first) {
            self.drop_group(first);
        }
    }

    /// What had been moved is copied to where it was to be.
    fn rename(&mut self, renamed: Vec<(NodeRef, Vec<Name>)>) {
        for (node, path) in renamed {
            let group = self.of.get(&node).and_then(|first| self.groups.get_mut(first));
            if let Some(group) = group {
                group.path = below(path);
            }
        }
    }
}

impl<B> Group<B> {
    fn new(path: Vec<Name>, kind: Kind, now: Instant) -> Self {
        Self {
            path: below(path),
            kind,
            pieces: Vec::new(),
            seqs: Vec::new(),
            base: None,
            maker: None,
            bytes: 0,
            number: 1,
            due: now + GATHER,
            delay: GATHER,
            refused: None,
        }
    }
}

/// Who gets another name by a change.
fn renamed(
    mutation: &Mutation,
    named: impl Fn(&NodeRef, &Name) -> Vec<Name>,
) -> Vec<(NodeRef, Vec<Name>)> {
    let Mutation::Rename { parent, name, occupant, new_parent, new_name, new_occupant, mode } =
        mutation
    else {
        return Vec::new();
    };
    let mut renamed = Vec::new();
    if let Occupant::Node(node) = occupant {
        renamed.push((*node, named(new_parent, new_name)));
    }
    if let (Occupant::Node(node), RenameMode::Exchange) = (new_occupant, mode) {
        renamed.push((*node, named(parent, name)));
    }
    renamed
}

/// A copy of a copy lies beside it; a path that is too deep loses its beginning.
fn below(mut path: Vec<Name>) -> Vec<Name> {
    if path.len() > 1 && path[0].as_bytes() == CONFLICTS.as_bytes() {
        path.remove(0);
    }
    let long = path.len().saturating_sub(DEPTH_MAX);
    path.split_off(long)
}

/// What a node is called that has no name.
fn nameless(node: NodeRef) -> Name {
    let text = match node {
        NodeRef::Node(node) => format!("node-{}-{}", node.ino, node.generation),
        NodeRef::MadeBy(seq) => format!("node-of-{seq}"),
    };
    super::make::checked(text.into_bytes())
}
