//! Entries of the log on the disk: what `proto::redo::execute` looks at and carries out.
//!
//! A creation has no identity before it is made. Its intent says when it was written instead, and a
//! node that took the free name since is the entry's own if it is of the right kind and was born no
//! earlier.

use std::cell::RefCell;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use bytes::Bytes;
use p2pfs::id::{Epoch, NodeId, Seq};
use p2pfs::proto::redo::execute::{Held, How, Recorder, Seen, Tree, execute};
use p2pfs::wire::call::{Attr, Time};
use p2pfs::wire::errno::Errno;
use p2pfs::wire::log::{Change, Mutation, NodeRef, Opening, Outcome, Refused};
use p2pfs::wire::name::{Name, Target};
use rustix::io;
use rustix::time::{ClockId, clock_gettime};

use super::change::{node_id, stamp};
use super::{OpenFile, View, access_flags, beneath, errno, late, meta, owned};
use crate::record::Writer;

/// Collapse and insert: what is behind moves.
const MOVES_DATA: u32 =
    libc::FALLOC_FL_COLLAPSE_RANGE.cast_unsigned() | libc::FALLOC_FL_INSERT_RANGE.cast_unsigned();
const NANOS_PER_SECOND: u64 = 1_000_000_000;

/// Who had an entry's names a moment ago.
#[derive(Debug, Default)]
pub(super) struct Found {
    pub(super) name: Option<Occupant>,
    pub(super) new_name: Option<Occupant>,
}

/// Who has a name; held, so that it can be asked afterwards.
#[derive(Debug)]
pub(super) struct Occupant {
    pub(super) node: NodeId,
    pub(super) fd: OwnedFd,
    attr: Attr,
}

/// One entry that is being carried out.
struct Carrying<'a> {
    view: &'a View,
    /// A killed run had begun it: nobody else has come between.
    resumed: bool,
    /// It may have been carried out before: its rights were looked at then.
    again: bool,
    found: RefCell<Found>,
}

/// Where its intent and its result go.
struct Recording {
    record: Option<Writer>,
    makes: bool,
}

impl View {
    /// Carries an entry out, so that a run that comes after a kill knows how far it came.
    pub(super) fn carry_out(
        &self,
        (epoch, seq): (Epoch, Seq),
        change: &Change,
        body: &Bytes,
        how: &How,
        poisons: bool,
    ) -> Result<Outcome, Refused> {
        let (makes, premade) = match &change.mutation {
            Mutation::Create { premade, .. } | Mutation::Mkdir { premade, .. } => (true, *premade),
            Mutation::Mknod { .. } | Mutation::Symlink { .. } => (true, None),
            _ => (false, None),
        };
        let how = match how {
            How::Refused(_) => *how,
            // This host makes nothing in advance: it was another one
            _ if premade.is_some() => How::Refused(Refused::conflict(Errno::ESTALE)),
            How::Resumed { before } if makes => self.resumed(&change.mutation, *before),
            how => *how,
        };
        let resumed = matches!(how, How::Resumed { .. });
        let again = !matches!(how, How::First | How::Refused(_));
        let tree = Carrying { view: self, resumed, again, found: RefCell::default() };
        let record = self.record.as_ref().map(|record| record.writer(epoch));
        let recorder = Recording { record, makes };
        let result = execute(&tree, &recorder, seq, change, body, &how, poisons);
        let Found { name, new_name } = tree.found.into_inner();
        let removed = match &result {
            Ok(Outcome::Removed { linked: false, .. }) => name,
            Ok(Outcome::Renamed { replaced: Some(_), .. }) => new_name,
            _ => None,
        };
        if let Some(removed) = removed
            && self.space().is_ok_and(|space| late::may_wait(&removed.attr, &space))
        {
            self.share.late.close(removed.fd);
        }
        result
    }

    /// A creation that a killed run had begun: finds out whether it came to the end.
    fn resumed(&self, mutation: &Mutation, before: Seen) -> How {
        let Seen { name, size: begun, .. } = before;
        let before = Seen { size: None, ..before };
        let made = match (names_of(mutation), name, begun) {
            ((Some((parent, name)), None), None, Some(begun)) => {
                let found = self.occupant(*parent, name).ok().flatten();
                found.filter(|found| is_made_by(mutation, found, begun)).map(|found| found.node)
            }
            _ => None,
        };
        How::Resumed { before: Seen { made, ..before } }
    }

    /// Who has a name.
    fn occupant(&self, parent: NodeRef, name: &Name) -> Result<Option<Occupant>, Errno> {
        let held = match self.dir(node_id(parent)?, name) {
            Ok(dir) => beneath::hold(dir.as_fd(), name),
            // Nothing has a name in a directory that is gone
            Err(Errno::ESTALE) => return Ok(None),
            Err(error) => return Err(error),
        };
        let fd = match held {
            Ok(fd) => fd,
            Err(io::Errno::NOENT) => return Ok(None),
            Err(error) => return Err(errno(error)),
        };
        let found = self.nodes().look(&fd).map_err(errno)?;
        Ok(Some(Occupant { node: found.id, attr: found.attr, fd }))
    }

    /// The entry that a creation made, and its handle.
    fn made(
        &self,
        (parent, name): (NodeRef, &Name),
        made: Option<NodeId>,
        open: Option<Opening>,
        at: Option<Time>,
    ) -> Result<Outcome, Errno> {
        let path = match (self.occupant(parent, name)?, made) {
            (Some(found), made) if made.is_none_or(|made| made == found.node) => Arc::new(found.fd),
            // It has another name now
            (_, Some(made)) => self.nodes().find(made)?,
            (_, None) => return Err(Errno::ENOENT),
        };
        stamp(path.as_fd(), at);
        let entry = self.enter(&path, node_id(parent)?, name)?;
        if let Some(Opening { handle, access }) = open {
            let file = owned::reopen(path.as_fd(), access_flags(access)).map_err(errno)?;
            self.admit(handle, OpenFile::new(entry.node, path, file, access))?;
        }
        Ok(Outcome::Entry(entry))
    }
}

impl Tree<Bytes> for Carrying<'_> {
    fn look(&self, change: &Change) -> Result<Seen, Errno> {
        let (name, new_name) = names_of(&change.mutation);
        let who = |place: Option<(&NodeRef, &Name)>| match place {
            Some((parent, name)) => self.view.occupant(*parent, name),
            None => Ok(None),
        };
        let found = Found { name: who(name)?, new_name: who(new_name)? };
        let node = |occupant: &Option<Occupant>| occupant.as_ref().map(|occupant| occupant.node);
        let seen = Seen {
            name: node(&found.name),
            new_name: node(&found.new_name),
            made: None,
            size: self.size(&change.mutation)?,
        };
        self.found.replace(found);
        Ok(seen)
    }

    fn perform(&self, _: Seq, change: &Change, body: &Bytes, _: &Seen) -> Result<Outcome, Errno> {
        let _acts = self.view.acting.begin(change.caller.as_ref())?;
        let found = self.found.borrow();
        let outcome = match self.view.change(change, body, &found, self.again) {
            // What was removed a moment ago may count against somebody's quota still
            Err(Errno::EDQUOT | Errno::ENOSPC)
                if is_repeatable(&change.mutation) && self.view.share.late.finish() =>
            {
                self.view.change(change, body, &found, self.again)
            }
            outcome => outcome,
        };
        let outcome = outcome?;
        Ok(self.view.shown_in(&change.mutation, outcome))
    }

    fn outcome(&self, _: Seq, change: &Change, _: &Bytes, seen: &Seen) -> Result<Outcome, Errno> {
        let view = self.view;
        // The kill may have come before the time was set
        let at = change.at.filter(|_| self.resumed);
        let attr = |node: &NodeRef| {
            let fd = view.nodes().find(node_id(*node)?)?;
            stamp(fd.as_fd(), at);
            let attr = meta::attr(fd.as_fd()).map_err(errno)?;
            Ok(view.shown(node_id(*node)?, attr))
        };
        match &change.mutation {
            Mutation::Nothing | Mutation::SetXattr { .. } | Mutation::RemoveXattr { .. } => {
                Ok(Outcome::Done)
            }
            Mutation::Create { parent, name, open, .. } => {
                view.made((*parent, name), seen.made, *open, at)
            }
            Mutation::Mkdir { parent, name, .. }
            | Mutation::Mknod { parent, name, .. }
            | Mutation::Symlink { parent, name, .. } => {
                view.made((*parent, name), seen.made, None, at)
            }
            Mutation::Link { node, parent, name } => {
                view.made((*parent, name), Some(node_id(*node)?), None, None)
            }
            Mutation::Unlink { .. } | Mutation::Rmdir { .. } => {
                let node = seen.name.ok_or(Errno::ENOENT)?;
                let linked =
                    view.attr(node, None).is_ok_and(|attr| !attr.is_dir() && attr.nlink > 0);
                Ok(Outcome::Removed { node, linked })
            }
            Mutation::Rename { .. } => {
                let node = seen.name.ok_or(Errno::ENOENT)?;
                Ok(Outcome::Renamed { node, replaced: seen.new_name })
            }
            Mutation::SetAttr { node, handle, .. } => {
                view.attr(node_id(*node)?, *handle).map(Outcome::Attr)
            }
            Mutation::Write { node, .. } | Mutation::Fallocate { node, .. } => {
                attr(node).map(Outcome::Attr)
            }
            Mutation::Append { node, size, .. } => {
                let offset = seen.size.unwrap_or(*size);
                Ok(Outcome::Appended { offset, attr: attr(node)? })
            }
            Mutation::CopyRange { node, len, .. } => {
                Ok(Outcome::Copied { len: *len, attr: attr(node)? })
            }
        }
    }

    fn holds(&self, node: NodeId, offset: u64, body: &Bytes) -> Result<Held, Errno> {
        self.view.holds_data(node, offset, body)
    }

    fn is_named(&self, node: NodeId) -> Result<bool, Errno> {
        // One that is kept because somebody has it open counts: it can be written
        let found = self.view.nodes().find(node);
        match found.and_then(|fd| meta::attr(fd.as_fd()).map_err(errno)) {
            Ok(attr) => Ok(attr.nlink > 0),
            Err(Errno::ESTALE) => Ok(false),
            Err(other) => Err(other),
        }
    }

    fn sync(&self) -> Result<(), Errno> {
        self.view.sync_share()
    }
}

impl Carrying<'_> {
    /// How long the file is, for what depends on it.
    fn size(&self, mutation: &Mutation) -> Result<Option<u64>, Errno> {
        let (node, handle) = match mutation {
            Mutation::Append { node, handle, .. } => (node, handle),
            Mutation::Fallocate { node, handle, mode, .. } if mode & MOVES_DATA != 0 => {
                (node, handle)
            }
            _ => return Ok(None),
        };
        self.view.attr(node_id(*node)?, *handle).map(|attr| Some(attr.size))
    }
}

impl Recorder for Recording {
    fn intent(&self, seq: Seq, seen: &Seen) -> Result<(), Errno> {
        let Some(record) = &self.record else { return Ok(()) };
        // A creation changes no length: the time stands there
        let size = if self.makes { Some(now()) } else { seen.size };
        record.intent(seq, &Seen { size, ..*seen })
    }

    fn done(&self, seq: Seq, result: &Result<Outcome, Refused>, poisons: bool) {
        if let Some(record) = &self.record {
            record.done(seq, result, poisons);
        }
    }
}

/// Whether a change that failed for want of space can be made once more.
fn is_repeatable(mutation: &Mutation) -> bool {
    // A part of it may be there
    !matches!(mutation, Mutation::Append { .. })
}

/// An entry's names: the one that it gives or takes, and a rename's new one.
#[expect(clippy::type_complexity, reason = "two places")]
fn names_of(mutation: &Mutation) -> (Option<(&NodeRef, &Name)>, Option<(&NodeRef, &Name)>) {
    match mutation {
        Mutation::Create { parent, name, .. }
        | Mutation::Mkdir { parent, name, .. }
        | Mutation::Mknod { parent, name, .. }
        | Mutation::Symlink { parent, name, .. }
        | Mutation::Link { parent, name, .. }
        | Mutation::Unlink { parent, name, .. }
        | Mutation::Rmdir { parent, name, .. } => (Some((parent, name)), None),
        Mutation::Rename { parent, name, new_parent, new_name, .. } => {
            (Some((parent, name)), Some((new_parent, new_name)))
        }
        _ => (None, None),
    }
}

/// Whether a node that took a free name after `begun` can be the one that the entry made.
fn is_made_by(mutation: &Mutation, found: &Occupant, begun: u64) -> bool {
    let kind = match mutation {
        Mutation::Create { .. } => libc::S_IFREG,
        Mutation::Mkdir { .. } => libc::S_IFDIR,
        Mutation::Symlink { .. } => libc::S_IFLNK,
        Mutation::Mknod { mode, .. } if mode & libc::S_IFMT != 0 => mode & libc::S_IFMT,
        Mutation::Mknod { .. } => libc::S_IFREG,
        _ => return false,
    };
    let says = |target: &Target| {
        let said = rustix::fs::readlinkat(&found.fd, c"", Vec::new());
        said.is_ok_and(|said| said.as_bytes() == target.as_bytes())
    };
    let fits = match mutation {
        Mutation::Symlink { target, .. } => says(target),
        _ => true,
    };
    found.attr.kind() == kind && nanos(found.attr.btime) >= begun && fits
}

/// Now, by the clock that gives nodes their time of birth: it ticks in milliseconds.
pub(super) fn now() -> u64 {
    let now = clock_gettime(ClockId::RealtimeCoarse);
    nanos(Time { seconds: now.tv_sec, nanos: u32::try_from(now.tv_nsec).unwrap_or_default() })
}

/// Nanoseconds since 1970.
pub(super) fn nanos(time: Time) -> u64 {
    let seconds = u64::try_from(time.seconds).unwrap_or_default();
    seconds.saturating_mul(NANOS_PER_SECOND).saturating_add(time.nanos.into())
}
