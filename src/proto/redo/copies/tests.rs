use std::collections::BTreeMap;
use std::time::Instant;

use super::{Copies, Output};
use crate::id::{NodeId, Seq};
use crate::proto::redo::log::Aside;
use crate::wire::call::{Attr, Entry};
use crate::wire::errno::Errno;
use crate::wire::log::{
    AttrChange, Change, Mutation, NodeRef, Occupant, Outcome, Reason, Refused, RenameMode,
};
use crate::wire::name::Name;

const FILE: NodeId = NodeId { ino: 7, generation: 1 };
const ROOT: NodeRef = NodeRef::Node(NodeId::ROOT);

fn name(text: &str) -> Name {
    Name::new(text.as_bytes()).unwrap()
}

/// A host that keeps what it is told, and a driver.
struct Desk {
    now: Instant,
    copies: Copies<Vec<u8>>,
    nodes: BTreeMap<NodeId, (bool, Vec<u8>)>,
    names: BTreeMap<(NodeId, Name), NodeId>,
    next: u64,
    /// How much data still fits.
    room: usize,
    made: Vec<(String, Vec<u64>)>,
    dropped: Vec<u64>,
}

impl Desk {
    fn new() -> Self {
        Self {
            now: Instant::now(),
            copies: Copies::new(),
            nodes: BTreeMap::from([(NodeId::ROOT, (true, Vec::new()))]),
            names: BTreeMap::new(),
            next: 100,
            room: 1000,
            made: Vec::new(),
            dropped: Vec::new(),
        }
    }

    /// An entry is set aside; files are called by their numbers unless `path` says otherwise.
    fn aside(&mut self, seq: u64, reason: Reason, mutation: Mutation, body: &[u8]) {
        let aside = Aside {
            seq: Seq(seq),
            refused: Refused { errno: Errno::ENOSPC, reason },
            change: Change::new(mutation),
            body: body.to_vec(),
            bytes: body.len(),
            made: None,
        };
        let path = |node| match node {
            ROOT => Some(Vec::new()),
            NodeRef::Node(FILE) => Some(vec![name("dir"), name("file")]),
            _ => None,
        };
        self.copies.handle_aside(&aside, path, self.now);
        self.pump();
    }

    /// Time passes until nothing is due within it.
    fn wait(&mut self, seconds: u64) {
        self.now += std::time::Duration::from_secs(seconds);
        while self.copies.poll_timeout().is_some_and(|at| at <= self.now) {
            self.copies.handle_timeout(self.now);
            self.pump();
        }
    }

    fn pump(&mut self) {
        while let Some(output) = self.copies.poll_output() {
            match output {
                Output::Append { step, change, body, bytes } => {
                    self.next += 1;
                    let seq = Seq(self.next);
                    self.copies.handle_appended(step, seq);
                    let result = self.apply(&change.mutation, &body, bytes);
                    assert!(self.copies.handle_applied(seq, &result, self.now));
                }
                Output::Find { step, parent, name } => {
                    let found = self.names.get(&(parent, name));
                    let found = found.map(|node| (*node, self.nodes[node].0));
                    self.copies.handle_found(step, Ok(found), self.now);
                }
                Output::Made { path, settled } => {
                    let path: Vec<_> =
                        path.iter().map(|name| String::from_utf8_lossy(name.as_bytes())).collect();
                    let settled = settled.into_iter().map(|seq| seq.0).collect();
                    self.made.push((path.join("/"), settled));
                }
                Output::Dropped { seq } => self.dropped.push(seq.0),
            }
        }
    }

    fn make(&mut self, parent: NodeId, name: &Name, dir: bool) -> Result<Outcome, Errno> {
        if self.names.contains_key(&(parent, name.clone())) {
            return Err(Errno::EEXIST);
        }
        self.next += 1;
        let node = NodeId { ino: self.next, generation: 1 };
        self.nodes.insert(node, (dir, Vec::new()));
        self.names.insert((parent, name.clone()), node);
        Ok(Outcome::Entry(Entry { node, attr: attr() }))
    }

    fn apply(&mut self, mutation: &Mutation, body: &[u8], bytes: usize) -> Result<Outcome, Errno> {
        self.room = self.room.checked_sub(bytes).ok_or(Errno::ENOSPC)?;
        match mutation {
            Mutation::Mkdir { parent, name, .. } => self.make(id(parent), name, true),
            Mutation::Create { parent, name, exclusive: true, .. } => {
                self.make(id(parent), name, false)
            }
            Mutation::Write { node, offset, .. } => {
                let data = &mut self.nodes.get_mut(&id(node)).unwrap().1;
                let at = *offset as usize;
                data.resize(data.len().max(at + body.len()), 0);
                data[at..at + body.len()].copy_from_slice(body);
                Ok(Outcome::Attr(attr()))
            }
            Mutation::SetAttr { node, change, .. } => {
                let data = &mut self.nodes.get_mut(&id(node)).unwrap().1;
                data.resize(change.size.unwrap_or(data.len() as u64) as usize, 0);
                Ok(Outcome::Attr(attr()))
            }
            Mutation::CopyRange { source, source_offset, node, .. } => {
                let data = self.nodes.get(&id(source)).ok_or(Errno::ESTALE)?.1.clone();
                let data = data.get(*source_offset as usize..).unwrap_or_default();
                self.nodes.get_mut(&id(node)).unwrap().1.extend(data);
                Ok(Outcome::Copied { len: data.len() as u64, attr: attr() })
            }
            Mutation::Unlink { parent, name, .. } => {
                let node = self.names.remove(&(id(parent), name.clone())).ok_or(Errno::ENOENT)?;
                Ok(Outcome::Removed { node, linked: false })
            }
            other => panic!("no copy needs {other:?}"),
        }
    }

    fn data(&self, path: &str) -> Option<&[u8]> {
        let mut node = NodeId::ROOT;
        for part in path.split('/') {
            node = *self.names.get(&(node, name(part)))?;
        }
        Some(&self.nodes[&node].1)
    }
}

fn id(node: &NodeRef) -> NodeId {
    match node {
        NodeRef::Node(node) => *node,
        NodeRef::MadeBy(seq) => panic!("the copy of {seq} is called by its identity"),
    }
}

fn attr() -> Attr {
    Attr { mode: 0o100_600, nlink: 1, ..crate::proto::redo::execute::GONE }
}

fn create(text: &str) -> Mutation {
    Mutation::Create {
        parent: ROOT,
        name: name(text),
        mode: 0o600,
        exclusive: true,
        premade: None,
        open: None,
    }
}

fn write(node: impl Into<NodeRef>, offset: u64) -> Mutation {
    Mutation::Write { node: node.into(), handle: None, offset }
}

fn truncate(node: impl Into<NodeRef>, size: u64) -> Mutation {
    let change = AttrChange { size: Some(size), ..AttrChange::default() };
    Mutation::SetAttr { node: node.into(), handle: None, change }
}

fn rename(node: NodeRef, from: &str, to: &str) -> Mutation {
    Mutation::Rename {
        parent: ROOT,
        name: name(from),
        occupant: Occupant::Node(node),
        new_parent: ROOT,
        new_name: name(to),
        new_occupant: Occupant::Node(FILE.into()),
        mode: RenameMode::Replace,
    }
}

const BECAUSE: Reason = Reason::SetAside { because: Seq(1) };

#[test]
fn a_save_that_was_refused_is_one_copy_and_called_like_the_document() {
    let mut desk = Desk::new();
    let made = NodeRef::MadeBy(Seq(1));
    desk.aside(1, Reason::System, create("t"), &[]);
    desk.aside(2, BECAUSE, write(made, 0), b"new");
    desk.aside(3, BECAUSE, rename(made, "t", "document"), &[]);
    assert_eq!(desk.dropped, [3], "nothing is moved");
    desk.wait(1);
    assert_eq!(desk.made, [(".p2pfs-conflicts/document".to_owned(), vec![1, 2])]);
    assert_eq!(desk.data(".p2pfs-conflicts/document"), Some(&b"new"[..]));
    assert!(desk.copies.is_empty());
}

#[test]
fn what_is_written_after_the_copy_goes_into_it() {
    let mut desk = Desk::new();
    let made = NodeRef::MadeBy(Seq(1));
    desk.aside(1, Reason::System, create("film"), &[]);
    desk.aside(2, BECAUSE, write(made, 0), b"one");
    desk.wait(1);
    desk.aside(3, Reason::Conflict, write(made, 3), b"two");
    desk.wait(1);
    assert_eq!(desk.data(".p2pfs-conflicts/film"), Some(&b"onetwo"[..]));
    assert_eq!(desk.data(".p2pfs-conflicts/film.2"), None);
}

#[test]
fn a_copy_that_is_there_is_never_written_over() {
    let mut desk = Desk::new();
    for seq in [1, 11] {
        desk.aside(seq, Reason::Conflict, write(FILE, 0), format!("{seq}").as_bytes());
        desk.wait(1);
    }
    assert_eq!(desk.data(".p2pfs-conflicts/dir/file"), Some(&b"1"[..]));
    assert_eq!(desk.data(".p2pfs-conflicts/dir/file.2"), Some(&b"11"[..]));
}

#[test]
fn a_directory_whose_name_a_file_has_gets_a_number() {
    let mut desk = Desk::new();
    desk.aside(1, Reason::Conflict, create("dir"), &[]);
    desk.wait(1);
    desk.aside(2, Reason::Conflict, write(FILE, 0), b"data");
    desk.wait(1);
    assert_eq!(desk.data(".p2pfs-conflicts/dir.2/file"), Some(&b"data"[..]));
}

/// While the host has no room, nothing is lost and nothing half made is left.
#[test]
fn what_does_not_fit_stays_aside_and_is_tried_again() {
    let mut desk = Desk::new();
    desk.room = 4;
    desk.aside(1, Reason::Conflict, write(FILE, 0), b"abc");
    desk.aside(2, BECAUSE, write(FILE, 3), b"def");
    desk.wait(1);
    assert_eq!(desk.data(".p2pfs-conflicts/dir/file"), None, "half of it is left");
    let waiting: Vec<_> = desk.copies.waiting().map(|w| (w.bytes, w.refused)).collect();
    assert_eq!(waiting, [(6, Some(Errno::ENOSPC))]);
    desk.room = 1000;
    desk.wait(4);
    assert_eq!(desk.data(".p2pfs-conflicts/dir/file"), Some(&b"abcdef"[..]));
    assert_eq!(desk.made[0].1, [1, 2]);
}

#[test]
fn a_file_that_nobody_else_has_changed_is_beneath_what_was_refused() {
    let cases: [(Reason, bool, &[u8]); 3] = [
        (Reason::System, false, b"oldXY"),
        (Reason::System, true, b"\0\0\0XY"),
        (Reason::Conflict, false, b"\0\0\0XY"),
    ];
    for (reason, changed, copy) in cases {
        let mut desk = Desk::new();
        desk.nodes.insert(FILE, (false, b"older".to_vec()));
        desk.aside(1, reason, write(FILE, 3), b"XY");
        if changed {
            desk.copies.handle_foreign_change(FILE);
        }
        desk.wait(1);
        let expected =
            copy.strip_prefix(b"old").map_or_else(|| copy.to_vec(), |end| [b"old", end].concat());
        assert_eq!(desk.data(".p2pfs-conflicts/dir/file"), Some(&expected[..]), "{reason:?}");
    }
}

#[test]
fn a_file_that_was_emptied_first_has_nothing_beneath() {
    let mut desk = Desk::new();
    desk.nodes.insert(FILE, (false, b"older".to_vec()));
    desk.aside(1, Reason::System, truncate(FILE, 0), &[]);
    desk.aside(2, BECAUSE, write(FILE, 0), b"new");
    desk.wait(1);
    assert_eq!(desk.data(".p2pfs-conflicts/dir/file"), Some(&b"new"[..]));
}

#[test]
fn what_holds_no_data_is_dropped() {
    let mut desk = Desk::new();
    let lock = NodeRef::MadeBy(Seq(1));
    desk.aside(1, Reason::Conflict, create("index.lock"), &[]);
    let (parent, occupant) = (ROOT, Occupant::Node(lock));
    desk.aside(2, BECAUSE, Mutation::Unlink { parent, name: name("index.lock"), occupant }, &[]);
    let (parent, occupant) = (ROOT, Occupant::Node(FILE.into()));
    let rmdir = Mutation::Rmdir { parent, name: name("dir"), occupant };
    desk.aside(3, Reason::System, rmdir, &[]);
    desk.aside(4, Reason::Conflict, truncate(FILE, 0), &[]);
    desk.wait(1);
    desk.dropped.sort_unstable();
    assert_eq!(desk.dropped, [1, 2, 3, 4]);
    assert!(desk.made.is_empty() && desk.names.is_empty());
}
