//! A POSIX tree in memory: what a disk holds, what a client believes, and what ought to be.
//!
//! Data is words of 8 bytes, so that every write can be told from every other.

use std::collections::{BTreeMap, BTreeSet};

use p2pfs::id::NodeId;
use p2pfs::proto::redo::copies::CONFLICTS;
use p2pfs::wire::call::{Attr, Entry, Time};
use p2pfs::wire::errno::Errno;
use p2pfs::wire::log::{Mutation, NodeRef, Outcome, RenameMode, SetTime};
use p2pfs::wire::name::Name;

/// Bytes of a word.
pub(crate) const WORD: u64 = 8;
/// `FALLOC_FL_COLLAPSE_RANGE`
pub(crate) const COLLAPSE: u32 = 0x08;

/// An entry's data.
pub(crate) type Body = Vec<u64>;

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Kind {
    File,
    Dir,
}

#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Node {
    pub(crate) kind: Kind,
    pub(crate) data: Vec<u64>,
    pub(crate) names: BTreeMap<Name, NodeId>,
    pub(crate) xattrs: BTreeMap<Vec<u8>, Vec<u64>>,
    pub(crate) mode: u32,
    pub(crate) nlink: u32,
    pub(crate) mtime: Time,
    /// Grows with every change.
    pub(crate) changes: u64,
}

impl Node {
    pub(crate) fn new(kind: Kind, mode: u32) -> Self {
        Self {
            kind,
            data: Vec::new(),
            names: BTreeMap::new(),
            xattrs: BTreeMap::new(),
            mode,
            nlink: 0,
            mtime: Time::default(),
            changes: 0,
        }
    }

    pub(crate) fn attr(&self) -> Attr {
        let kind = if self.kind == Kind::Dir { 0o040_000 } else { 0o100_000 };
        let change = Time { seconds: self.changes as i64, nanos: 0 };
        Attr {
            size: self.data.len() as u64 * WORD,
            blocks: 0,
            atime: Time::default(),
            mtime: self.mtime,
            ctime: change,
            btime: Time::default(),
            mode: kind | self.mode,
            nlink: self.nlink,
            uid: 0,
            gid: 0,
            rdev: 0,
            blksize: 4096,
        }
    }
}

/// One step of a file system. Each is done as a whole or not at all, but for the words of a write.
#[derive(Clone, Debug)]
pub(crate) enum Op {
    /// Makes a node under cover.
    Make {
        node: NodeId,
        kind: Kind,
        mode: u32,
    },
    /// Gives a node a name.
    Name {
        parent: NodeId,
        name: Name,
        node: NodeId,
    },
    /// Takes a name away.
    Unname {
        parent: NodeId,
        name: Name,
    },
    Rename {
        parent: NodeId,
        name: Name,
        new_parent: NodeId,
        new_name: Name,
        exchange: bool,
    },
    Mode {
        node: NodeId,
        mode: u32,
    },
    Size {
        node: NodeId,
        words: usize,
    },
    Mtime {
        node: NodeId,
        at: Time,
    },
    Xattr {
        node: NodeId,
        name: Vec<u8>,
        value: Option<Vec<u64>>,
    },
    Collapse {
        node: NodeId,
        at: usize,
        words: usize,
    },
    Write {
        node: NodeId,
        at: usize,
        words: Vec<u64>,
    },
    /// A node without a name goes.
    Remove {
        node: NodeId,
    },
    /// Notes that an entry of a client has had its effect.
    Mark {
        client: usize,
        seq: u64,
    },
}

#[derive(Clone, Debug)]
pub(crate) struct Posix {
    pub(crate) nodes: BTreeMap<NodeId, Node>,
    /// Which entries of which clients have had their effect.
    pub(crate) marks: BTreeSet<(usize, u64)>,
}

impl Default for Posix {
    fn default() -> Self {
        let mut root = Node::new(Kind::Dir, 0o755);
        root.nlink = 1;
        Self { nodes: BTreeMap::from([(NodeId::ROOT, root)]), marks: BTreeSet::new() }
    }
}

impl Posix {
    pub(crate) fn node(&self, node: NodeId) -> Result<&Node, Errno> {
        self.nodes.get(&node).ok_or(Errno::ESTALE)
    }

    fn dir(&self, node: NodeId) -> Result<&Node, Errno> {
        let found = self.nodes.get(&node).filter(|dir| dir.nlink > 0).ok_or(Errno::ENOENT)?;
        if found.kind == Kind::Dir { Ok(found) } else { Err(Errno::ENOTDIR) }
    }

    fn file(&self, node: NodeId) -> Result<&Node, Errno> {
        let found = self.node(node)?;
        if found.kind == Kind::File { Ok(found) } else { Err(Errno::EISDIR) }
    }

    /// The directory of the conflict copies.
    pub(crate) fn conflicts(&self) -> Option<NodeId> {
        self.lookup(NodeId::ROOT, &super::apps::name(CONFLICTS))
    }

    pub(crate) fn lookup(&self, parent: NodeId, name: &Name) -> Option<NodeId> {
        self.nodes.get(&parent)?.names.get(name).copied()
    }

    fn is_below(&self, node: NodeId, above: NodeId) -> bool {
        node == above
            || self.nodes.get(&above).is_some_and(|dir| {
                dir.names.values().any(|&child| {
                    self.nodes.get(&child).is_some_and(|child| child.kind == Kind::Dir)
                        && self.is_below(node, child)
                })
            })
    }

    fn change(&mut self, node: NodeId) -> Option<&mut Node> {
        let node = self.nodes.get_mut(&node)?;
        node.changes += 1;
        Some(node)
    }

    fn unlink(&mut self, node: NodeId) {
        if let Some(node) = self.change(node) {
            // a client may not know all names of what it has seen
            node.nlink = node.nlink.saturating_sub(1);
        }
    }

    /// Carries a step out; one that does not fit changes nothing.
    pub(crate) fn apply(&mut self, op: &Op) {
        match op {
            Op::Make { node, kind, mode } => {
                self.nodes.insert(*node, Node::new(*kind, *mode));
            }
            Op::Name { parent, name, node } => {
                if let Some(dir) = self.change(*parent) {
                    dir.names.insert(name.clone(), *node);
                }
                if let Some(node) = self.change(*node) {
                    node.nlink += 1;
                }
            }
            Op::Unname { parent, name } => {
                if let Some(node) = self.change(*parent).and_then(|dir| dir.names.remove(name)) {
                    self.unlink(node);
                }
            }
            Op::Rename { parent, name, new_parent, new_name, exchange } => {
                self.rename((*parent, name), (*new_parent, new_name), *exchange);
            }
            Op::Remove { node } => {
                self.nodes.remove(node);
            }
            Op::Mark { client, seq } => {
                self.marks.insert((*client, *seq));
            }
            Op::Mode { node, .. }
            | Op::Size { node, .. }
            | Op::Mtime { node, .. }
            | Op::Xattr { node, .. }
            | Op::Collapse { node, .. }
            | Op::Write { node, .. } => {
                if let Some(node) = self.change(*node) {
                    change_node(node, op);
                }
            }
        }
    }

    fn rename(&mut self, from: (NodeId, &Name), to: (NodeId, &Name), exchange: bool) {
        let Some(moved) = self.lookup(from.0, from.1) else { return };
        let other = self.lookup(to.0, to.1);
        if let Some(dir) = self.change(from.0) {
            dir.names.remove(from.1);
        }
        if let Some(dir) = self.change(to.0) {
            dir.names.insert(to.1.clone(), moved);
        }
        let Some(other) = other else { return };
        if exchange {
            if let Some(dir) = self.change(from.0) {
                dir.names.insert(from.1.clone(), other);
            }
        } else {
            self.unlink(other);
        }
    }

    /// What has to be done for a mutation, and whom it is about. `fresh`: who is to be made.
    pub(crate) fn plan(
        &self,
        mutation: &Mutation,
        body: &[u64],
        fresh: NodeId,
    ) -> Result<(Vec<Op>, NodeId), Errno> {
        match mutation {
            Mutation::Nothing => Ok((Vec::new(), NodeId::ROOT)),
            Mutation::Create { parent, name, mode, exclusive, .. } => {
                let dir = self.dir(id(parent))?;
                let Some(&found) = dir.names.get(name) else {
                    return Ok(self.make(id(parent), name, fresh, Kind::File, *mode));
                };
                if *exclusive {
                    return Err(Errno::EEXIST);
                }
                self.file(found)?;
                Ok((Vec::new(), found))
            }
            Mutation::Mkdir { parent, name, mode, .. } => {
                let dir = self.dir(id(parent))?;
                if dir.names.contains_key(name) {
                    return Err(Errno::EEXIST);
                }
                Ok(self.make(id(parent), name, fresh, Kind::Dir, *mode))
            }
            Mutation::Link { node, parent, name } => self.plan_link(id(node), id(parent), name),
            Mutation::Unlink { parent, name, .. } => self.plan_remove(id(parent), name, Kind::File),
            Mutation::Rmdir { parent, name, .. } => self.plan_remove(id(parent), name, Kind::Dir),
            Mutation::Rename { parent, name, new_parent, new_name, mode, .. } => {
                self.plan_rename((id(parent), name), (id(new_parent), new_name), *mode)
            }
            _ => self.plan_node(mutation, body),
        }
    }

    fn make(
        &self,
        parent: NodeId,
        name: &Name,
        node: NodeId,
        kind: Kind,
        mode: u32,
    ) -> (Vec<Op>, NodeId) {
        let mut ops = Vec::new();
        if !self.nodes.contains_key(&node) {
            ops.push(Op::Make { node, kind, mode });
        }
        ops.push(Op::Mode { node, mode });
        ops.push(Op::Name { parent, name: name.clone(), node });
        (ops, node)
    }

    fn plan_link(
        &self,
        node: NodeId,
        parent: NodeId,
        name: &Name,
    ) -> Result<(Vec<Op>, NodeId), Errno> {
        let found = self.node(node)?;
        let dir = self.dir(parent)?;
        if found.kind == Kind::Dir {
            return Err(Errno::EPERM);
        }
        if dir.names.contains_key(name) {
            return Err(Errno::EEXIST);
        }
        if found.nlink == 0 {
            return Err(Errno::ENOENT);
        }
        Ok((vec![Op::Name { parent, name: name.clone(), node }], node))
    }

    fn plan_remove(
        &self,
        parent: NodeId,
        name: &Name,
        kind: Kind,
    ) -> Result<(Vec<Op>, NodeId), Errno> {
        let found = *self.dir(parent)?.names.get(name).ok_or(Errno::ENOENT)?;
        let node = self.node(found)?;
        match (kind, node.kind) {
            (Kind::File, Kind::Dir) => return Err(Errno::EISDIR),
            (Kind::Dir, Kind::File) => return Err(Errno::ENOTDIR),
            (Kind::Dir, Kind::Dir) if !node.names.is_empty() => return Err(Errno::ENOTEMPTY),
            _ => {}
        }
        Ok((vec![Op::Unname { parent, name: name.clone() }], found))
    }

    fn plan_rename(
        &self,
        from: (NodeId, &Name),
        to: (NodeId, &Name),
        mode: RenameMode,
    ) -> Result<(Vec<Op>, NodeId), Errno> {
        let moved = *self.dir(from.0)?.names.get(from.1).ok_or(Errno::ENOENT)?;
        let other = self.dir(to.0)?.names.get(to.1).copied();
        let exchange = mode == RenameMode::Exchange;
        if self.is_below(to.0, moved)
            || exchange && other.is_some_and(|other| self.is_below(from.0, other))
        {
            return Err(Errno::EINVAL);
        }
        match (mode, other) {
            (RenameMode::NoReplace, Some(_)) => return Err(Errno::EEXIST),
            (RenameMode::Exchange, None) => return Err(Errno::ENOENT),
            (_, Some(other)) if other == moved => return Ok((Vec::new(), moved)),
            (RenameMode::Replace, Some(other)) => {
                match (self.node(moved)?.kind, self.node(other)?.kind) {
                    (Kind::Dir, Kind::File) => return Err(Errno::ENOTDIR),
                    (Kind::File, Kind::Dir) => return Err(Errno::EISDIR),
                    _ if !self.node(other)?.names.is_empty() => return Err(Errno::ENOTEMPTY),
                    _ => {}
                }
            }
            _ => {}
        }
        let (name, new_name) = (from.1.clone(), to.1.clone());
        let op = Op::Rename { parent: from.0, name, new_parent: to.0, new_name, exchange };
        Ok((vec![op], moved))
    }

    fn plan_node(&self, mutation: &Mutation, body: &[u64]) -> Result<(Vec<Op>, NodeId), Errno> {
        let write = |node, at: u64, words: &[u64]| {
            (vec![Op::Write { node, at: (at / WORD) as usize, words: words.to_vec() }], node)
        };
        match mutation {
            Mutation::SetAttr { node, change, .. } => {
                let node = id(node);
                self.node(node)?;
                let mut ops = Vec::new();
                if let Some(size) = change.size {
                    self.file(node)?;
                    ops.push(Op::Size { node, words: (size / WORD) as usize });
                }
                if let Some(mode) = change.mode {
                    ops.push(Op::Mode { node, mode });
                }
                if let Some(SetTime::At(at)) = change.mtime {
                    ops.push(Op::Mtime { node, at });
                }
                Ok((ops, node))
            }
            Mutation::Write { node, offset, .. } => {
                self.file(id(node))?;
                Ok(write(id(node), *offset, body))
            }
            Mutation::Append { node, .. } => {
                let end = self.file(id(node))?.data.len() as u64 * WORD;
                Ok(write(id(node), end, body))
            }
            Mutation::CopyRange { source, source_offset, node, offset, len, .. } => {
                let data = &self.file(id(source))?.data;
                self.file(id(node))?;
                let from = ((source_offset / WORD) as usize).min(data.len());
                let to = (from + (len / WORD) as usize).min(data.len());
                Ok(write(id(node), *offset, &data[from..to]))
            }
            Mutation::Fallocate { node, offset, len, mode, .. } if *mode == COLLAPSE => {
                let (at, words) = ((offset / WORD) as usize, (len / WORD) as usize);
                if at + words >= self.file(id(node))?.data.len() {
                    return Err(Errno::EINVAL);
                }
                Ok((vec![Op::Collapse { node: id(node), at, words }], id(node)))
            }
            Mutation::SetXattr { node, name, flags, .. } => {
                let had = self.node(id(node))?.xattrs.contains_key(&name.0);
                match (flags, had) {
                    (1, true) => Err(Errno::EEXIST),
                    (2, false) => Err(Errno::ENODATA),
                    _ => Ok(xattr(id(node), &name.0, Some(body.to_vec()))),
                }
            }
            Mutation::RemoveXattr { node, name } => {
                if !self.node(id(node))?.xattrs.contains_key(&name.0) {
                    return Err(Errno::ENODATA);
                }
                Ok(xattr(id(node), &name.0, None))
            }
            _ => Err(Errno::EOPNOTSUPP),
        }
    }

    /// What a mutation that has just been carried out is answered with; `before`: the tree before.
    pub(crate) fn outcome(&self, mutation: &Mutation, node: NodeId, before: &Extent) -> Outcome {
        let attr =
            self.nodes.get(&node).map_or_else(|| Node::new(Kind::File, 0).attr(), Node::attr);
        match mutation {
            Mutation::Create { .. }
            | Mutation::Mkdir { .. }
            | Mutation::Mknod { .. }
            | Mutation::Symlink { .. }
            | Mutation::Link { .. } => Outcome::Entry(Entry { node, attr }),
            Mutation::Unlink { .. } | Mutation::Rmdir { .. } => {
                Outcome::Removed { node, linked: attr.nlink > 0 }
            }
            Mutation::Rename { .. } => Outcome::Renamed { node, replaced: before.replaced },
            Mutation::SetAttr { .. } | Mutation::Write { .. } | Mutation::Fallocate { .. } => {
                Outcome::Attr(attr)
            }
            Mutation::Append { .. } => Outcome::Appended { offset: before.size, attr },
            Mutation::CopyRange { source, source_offset, len, .. } => {
                let size = self.nodes.get(&id(source)).map_or(0, |node| node.data.len() as u64);
                let len = (*len).min((size * WORD).saturating_sub(*source_offset));
                Outcome::Copied { len, attr }
            }
            Mutation::Nothing | Mutation::SetXattr { .. } | Mutation::RemoveXattr { .. } => {
                Outcome::Done
            }
        }
    }
}

/// What an outcome tells of the tree before.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Extent {
    pub(crate) size: u64,
    pub(crate) replaced: Option<NodeId>,
}

fn xattr(node: NodeId, name: &[u8], value: Option<Vec<u64>>) -> (Vec<Op>, NodeId) {
    (vec![Op::Xattr { node, name: name.to_vec(), value }], node)
}

fn change_node(node: &mut Node, op: &Op) {
    match op {
        Op::Mode { mode, .. } => node.mode = *mode & 0o7777,
        Op::Size { words, .. } => node.data.resize(*words, 0),
        Op::Mtime { at, .. } => node.mtime = *at,
        Op::Xattr { name, value: Some(value), .. } => {
            node.xattrs.insert(name.clone(), value.clone());
        }
        Op::Xattr { name, value: None, .. } => {
            node.xattrs.remove(name);
        }
        Op::Collapse { at, words, .. } => {
            let end = (at + words).min(node.data.len());
            node.data.drain((*at).min(end)..end);
        }
        Op::Write { at, words, .. } if !words.is_empty() => {
            let end = at + words.len();
            if node.data.len() < end {
                node.data.resize(end, 0);
            }
            node.data[*at..end].copy_from_slice(words);
        }
        _ => {}
    }
}

/// The identity that a reference names; what a machine hands to a driver is always one.
pub(crate) fn id(node: &NodeRef) -> NodeId {
    match node {
        NodeRef::Node(node) => *node,
        NodeRef::MadeBy(seq) => panic!("an entry names what {seq} made, not a node"),
    }
}
