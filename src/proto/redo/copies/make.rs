//! Making one copy, step by step.

use std::collections::BTreeMap;
use std::time::Instant;

use super::gather::{Group, Kind, Piece};
use super::{CONFLICTS, Copies, MADE_MAX, Output, RETRY_MAX};
use crate::id::{NodeId, Seq};
use crate::limits::NAME_BYTES_MAX;
use crate::wire::errno::Errno;
use crate::wire::log::{Change, Mutation, NodeRef, Occupant, Outcome};
use crate::wire::name::Name;

/// Pieces of a copy that are under way.
const PIECES_MAX: usize = 64;
/// What is copied at once of what is beneath, bytes.
const BASE_BYTES: u64 = 1 << 40;
/// No file is longer, bytes: a host that never comes to its end is not believed.
const BASE_MAX: u64 = 1 << 60;
/// Names that are taken, in one attempt.
const TAKEN_MAX: u32 = 1000;

/// The copy that is being made.
#[derive(Clone, Debug)]
pub(super) struct Making {
    /// Whose.
    first: Seq,
    stage: Stage,
    /// Directories that are there, the share's root first.
    dirs: Vec<NodeId>,
    /// What they are called, without the root.
    path: Vec<Name>,
    /// The number of a directory whose name is taken by something else.
    dir_number: u32,
    /// Names that were taken by somebody else meanwhile.
    taken: u32,
    name: Option<Name>,
    node: Option<NodeId>,
    /// How much of what is beneath is copied.
    copied: u64,
    /// Pieces that were appended.
    sent: usize,
    failed: Option<Errno>,
    /// Steps that have no number yet.
    steps: BTreeMap<u64, Step>,
    running: BTreeMap<Seq, Step>,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Stage {
    Directories,
    Creating,
    Base,
    Pieces,
    /// What was begun is removed.
    Removing,
}

/// What is under way.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Step {
    Find,
    Mkdir,
    Create,
    Base,
    /// With data, or without.
    Piece(bool),
    Remove,
}

impl Making {
    pub(super) fn appended(&mut self, step: u64, seq: Seq) {
        if let Some(step) = self.steps.remove(&step) {
            self.running.insert(seq, step);
        }
    }

    pub(super) fn take(&mut self, seq: Seq) -> Option<Step> {
        self.running.remove(&seq)
    }

    pub(super) fn is_of(&self, first: Seq) -> bool {
        self.first == first
    }

    pub(super) fn finds(&mut self, step: u64) -> bool {
        self.steps.remove(&step).is_some()
    }

    fn parent(&self) -> NodeId {
        self.dirs.last().copied().unwrap_or(NodeId::ROOT)
    }

    fn enter(&mut self, dir: NodeId) {
        self.dirs.push(dir);
        self.path.extend(self.name.take());
        self.dir_number = 1;
    }

    fn meet(&mut self) {
        self.taken += 1;
        if self.taken > TAKEN_MAX {
            self.failed = Some(Errno::EEXIST);
        }
    }

    fn is_quiet(&self) -> bool {
        self.steps.is_empty() && self.running.is_empty()
    }
}

impl<B: Clone + Default> Copies<B> {
    pub(super) fn begin(&mut self, first: Seq, now: Instant) {
        let made = self.groups.get(&first).and_then(|group| self.made_for(group));
        self.making = Some(Making {
            first,
            stage: if made.is_some() { Stage::Pieces } else { Stage::Directories },
            dirs: Vec::new(),
            path: Vec::new(),
            dir_number: 1,
            taken: 0,
            name: None,
            node: made,
            copied: 0,
            sent: 0,
            failed: None,
            steps: BTreeMap::new(),
            running: BTreeMap::new(),
        });
        self.go_on(now);
    }

    /// The copy that holds what came before of a node that was never made.
    fn made_for(&self, group: &Group<B>) -> Option<NodeId> {
        let mut pieces = group.pieces.iter();
        pieces.find_map(|piece| match data_node(&piece.change.mutation) {
            Some(NodeRef::MadeBy(maker)) if group.maker.is_none() => self.made.get(&maker).copied(),
            _ => None,
        })
    }

    fn go_on(&mut self, now: Instant) {
        let Some(making) = &self.making else { return };
        if making.failed.is_some() && making.stage != Stage::Removing {
            if making.is_quiet() {
                self.give_up(now);
            }
            return;
        }
        match making.stage {
            Stage::Directories => self.find_directory(),
            Stage::Creating => self.create(),
            Stage::Base => self.copy_base(),
            Stage::Pieces => self.write_pieces(now),
            Stage::Removing => {}
        }
    }

    /// The directories of the copy, or all of its path, if it is one itself.
    fn directories(&self) -> Vec<Name> {
        let group = self.making.as_ref().and_then(|making| self.groups.get(&making.first));
        let Some(group) = group else { return Vec::new() };
        let mut names = vec![checked(CONFLICTS.as_bytes().to_vec())];
        names.extend(group.path.iter().cloned());
        if !matches!(group.kind, Kind::Directory { .. }) {
            names.pop();
        }
        names
    }

    fn find_directory(&mut self) {
        let names = self.directories();
        let Some(making) = &mut self.making else { return };
        let Some(name) = names.get(making.dirs.len()) else {
            let is_dir = self
                .groups
                .get(&making.first)
                .is_some_and(|group| matches!(group.kind, Kind::Directory { .. }));
            if is_dir {
                making.node = making.dirs.last().copied();
                making.stage = Stage::Pieces;
                // there is nothing to wait for
                let now = None;
                return self.write_or_finish(now);
            }
            making.stage = Stage::Creating;
            return self.create();
        };
        let (parent, name) = (making.parent(), numbered(name, making.dir_number));
        self.next_step += 1;
        making.steps.insert(self.next_step, Step::Find);
        making.name = Some(name.clone());
        self.outputs.push_back(Output::Find { step: self.next_step, parent, name });
    }

    pub(super) fn found(&mut self, found: Result<Option<(NodeId, bool)>, Errno>, now: Instant) {
        let Some(making) = &mut self.making else { return };
        match found {
            Ok(Some((node, true))) => making.enter(node),
            Ok(Some((_, false))) => {
                making.dir_number += 1;
                making.meet();
            }
            Ok(None) => {
                let last = making.dirs.len() + 1 == self.directories().len();
                return self.mkdir(last);
            }
            Err(errno) => making.failed = Some(errno),
        }
        self.go_on(now);
    }

    fn mkdir(&mut self, last: bool) {
        let Some(making) = &self.making else { return };
        let own = self.groups.get(&making.first).map(|group| &group.kind);
        let mode = match own {
            Some(Kind::Directory { mode }) if last => *mode,
            _ => 0o755,
        };
        let Some(name) = making.name.clone() else { return };
        let parent = making.parent().into();
        self.append(Step::Mkdir, Mutation::Mkdir { parent, name, mode, premade: None });
    }

    fn create(&mut self) {
        let Some(making) = &mut self.making else { return };
        let Some(group) = self.groups.get(&making.first) else { return };
        let Some(last) = group.path.last() else { return };
        let (parent, name) = (making.parent().into(), numbered(last, group.number));
        making.name = Some(name.clone());
        let mutation = match &group.kind {
            Kind::File { mode } | Kind::Directory { mode } => Mutation::Create {
                parent,
                name,
                mode: *mode,
                exclusive: true,
                premade: None,
                open: None,
            },
            Kind::Special(Mutation::Symlink { target, .. }) => {
                Mutation::Symlink { parent, name, target: target.clone() }
            }
            Kind::Special(Mutation::Mknod { mode, rdev, .. }) => {
                Mutation::Mknod { parent, name, mode: *mode, rdev: *rdev }
            }
            Kind::Special(_) => return,
        };
        self.append(Step::Create, mutation);
    }

    fn copy_base(&mut self) {
        let Some(making) = &mut self.making else { return };
        let group = self.groups.get(&making.first);
        let base = group.filter(|group| !group.begins_empty()).and_then(|group| group.base);
        let (Some(source), Some(node)) = (base, making.node) else {
            making.stage = Stage::Pieces;
            return self.write_or_finish(None);
        };
        let mutation = Mutation::CopyRange {
            source: source.into(),
            source_handle: None,
            source_offset: making.copied,
            node: node.into(),
            handle: None,
            offset: making.copied,
            len: BASE_BYTES,
        };
        self.append(Step::Base, mutation);
    }

    fn write_pieces(&mut self, now: Instant) {
        self.write_or_finish(Some(now));
    }

    /// Appends as many pieces as may be under way; all are done: the copy is made.
    fn write_or_finish(&mut self, now: Option<Instant>) {
        loop {
            let Some(making) = &mut self.making else { return };
            let Some(group) = self.groups.get(&making.first) else { return };
            let Some(node) = making.node else { return };
            if making.running.len() + making.steps.len() >= PIECES_MAX {
                return;
            }
            let Some(piece) = group.pieces.get(making.sent) else { break };
            let Piece { change, body, bytes, .. } = piece.clone();
            making.sent += 1;
            let first = making.first;
            let Some(change) = self.retarget(change, node, first) else { continue };
            let Some(making) = &mut self.making else { return };
            self.next_step += 1;
            making.steps.insert(self.next_step, Step::Piece(bytes > 0));
            self.outputs.push_back(Output::Append { step: self.next_step, change, body, bytes });
        }
        if self.making.as_ref().is_some_and(Making::is_quiet) {
            self.finish(now);
        }
    }

    /// The same change, of the copy; none if it is a copy itself of what was never made.
    fn retarget(&self, change: Change, copy: NodeId, first: Seq) -> Option<Change> {
        let mut new = Change::new(change.mutation);
        new.at = change.at;
        if let Mutation::Append { size, .. } = new.mutation {
            // there it would have been
            new.mutation = Mutation::Write { node: copy.into(), handle: None, offset: size };
        }
        match &mut new.mutation {
            Mutation::SetAttr { node, handle, .. }
            | Mutation::Write { node, handle, .. }
            | Mutation::Fallocate { node, handle, .. } => {
                (*node, *handle) = (copy.into(), None);
            }
            Mutation::SetXattr { node, flags, .. } => (*node, *flags) = (copy.into(), 0),
            Mutation::RemoveXattr { node, .. } => *node = copy.into(),
            Mutation::CopyRange { source, source_handle, node, handle, .. } => {
                match self.of.get(source) {
                    Some(of) if *of == first => *source = copy.into(),
                    Some(of) if self.groups.get(of).is_some_and(|of| of.maker.is_some()) => {
                        return None;
                    }
                    _ => {}
                }
                (*source_handle, *node, *handle) = (None, copy.into(), None);
            }
            _ => {}
        }
        Some(new)
    }

    fn append(&mut self, step: Step, mutation: Mutation) {
        let Some(making) = &mut self.making else { return };
        self.next_step += 1;
        making.steps.insert(self.next_step, step);
        let (change, body) = (Change::new(mutation), B::default());
        self.outputs.push_back(Output::Append { step: self.next_step, change, body, bytes: 0 });
    }

    pub(super) fn answered(&mut self, step: Step, result: &Result<Outcome, Errno>, now: Instant) {
        let Some(making) = &mut self.making else { return };
        match (step, result) {
            (Step::Mkdir, Ok(Outcome::Entry(entry))) => making.enter(entry.node),
            // somebody else was faster
            (Step::Mkdir, Err(Errno::EEXIST)) => making.meet(),
            (Step::Create, Ok(Outcome::Entry(entry))) => {
                making.node = Some(entry.node);
                making.stage = Stage::Base;
            }
            (Step::Create, Err(Errno::EEXIST)) => {
                making.meet();
                if let Some(group) = self.groups.get_mut(&making.first) {
                    group.number = group.number.saturating_add(1);
                }
            }
            (Step::Base, Ok(Outcome::Copied { len, .. }))
                if *len > 0 && making.copied < BASE_MAX =>
            {
                making.copied = making.copied.saturating_add(*len);
            }
            // that was the end of it
            (Step::Base, Ok(_)) => making.stage = Stage::Pieces,
            // it is gone, or cannot be read: the data stands alone
            (Step::Base, Err(errno)) if !may_pass(*errno) => making.stage = Stage::Pieces,
            (Step::Remove, _) => return self.put_off(now),
            (Step::Piece(_), Ok(_)) => {}
            // what the host's file system or user cannot do, and holds no data
            (Step::Piece(false), Err(errno)) if is_harmless(*errno) => {}
            (_, Err(errno)) => making.failed = making.failed.or(Some(*errno)),
            (Step::Find | Step::Mkdir | Step::Create, Ok(_)) => making.failed = Some(Errno::EIO),
        }
        self.go_on(now);
    }

    fn finish(&mut self, now: Option<Instant>) {
        let Some(making) = self.making.take() else { return };
        let Some(group) = self.forget(making.first) else { return };
        let mut path = making.path;
        path.extend(making.name);
        if path.is_empty() {
            // it went into the copy that was there
            path = group.path;
        }
        if let (Some(maker), Some(node), Kind::File { .. }) = (group.maker, making.node, group.kind)
        {
            self.made.insert(maker, node);
            while self.made.len() > MADE_MAX {
                self.made.pop_first();
            }
        }
        self.outputs.push_back(Output::Made { path, settled: group.seqs });
        if let Some(now) = now {
            self.begin_next(now);
        }
    }

    /// What was begun goes; what it was made of stays aside.
    fn give_up(&mut self, now: Instant) {
        let Some(making) = &mut self.making else { return };
        let whole = self
            .groups
            .get(&making.first)
            .is_some_and(|group| !matches!(group.kind, Kind::Directory { .. }));
        match (making.node, making.name.clone(), making.stage) {
            (Some(node), Some(name), Stage::Base | Stage::Pieces) if whole => {
                making.stage = Stage::Removing;
                let (parent, occupant) = (making.parent().into(), Occupant::Node(node.into()));
                self.append(Step::Remove, Mutation::Unlink { parent, name, occupant });
            }
            _ => self.put_off(now),
        }
    }

    /// Tried again later.
    fn put_off(&mut self, now: Instant) {
        let Some(making) = self.making.take() else { return };
        if let Some(group) = self.groups.get_mut(&making.first) {
            group.refused = making.failed;
            group.due = now + group.delay;
            group.delay = (group.delay * 2).min(RETRY_MAX);
        }
        // a copy that was to go on may be gone
        self.made.retain(|_, made| Some(*made) != making.node);
        self.begin_next(now);
    }
}

fn data_node(mutation: &Mutation) -> Option<NodeRef> {
    match mutation {
        Mutation::Write { node, .. }
        | Mutation::Append { node, .. }
        | Mutation::SetAttr { node, .. } => Some(*node),
        _ => None,
    }
}

/// What may be otherwise later.
fn may_pass(errno: Errno) -> bool {
    matches!(errno, Errno::ENOSPC | Errno::EROFS | Errno::EIO | Errno::ETIMEDOUT | Errno::ENOTCONN)
}

fn is_harmless(errno: Errno) -> bool {
    matches!(
        errno,
        Errno::ESTALE
            | Errno::ENOENT
            | Errno::EPERM
            | Errno::EACCES
            | Errno::EOPNOTSUPP
            | Errno::ENODATA
            | Errno::EINVAL
    )
}

/// The name of the copy with this number; the first has none.
fn numbered(name: &Name, number: u32) -> Name {
    if number < 2 {
        return name.clone();
    }
    let end = format!(".{number}").into_bytes();
    let mut bytes = name.as_bytes().to_vec();
    bytes.truncate(NAME_BYTES_MAX - end.len());
    bytes.extend(end);
    checked(bytes)
}

/// What is a name as it was made here.
pub(super) fn checked(bytes: Vec<u8>) -> Name {
    Name::new(bytes).unwrap_or_else(|_| unreachable!("a name of this module"))
}
