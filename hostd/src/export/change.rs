//! Changes. Each answers with what the disk says afterwards.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use p2pfs::id::{HandleId, NodeId};
use p2pfs::limits::HANDLES_MAX;
use p2pfs::wire::call::{Access, Attr, Entry, Time};
use p2pfs::wire::errno::Errno;
use p2pfs::wire::log::{
    AttrChange, Change, Mutation, NodeRef, Opening, Outcome, RenameMode, SetTime,
};
use p2pfs::wire::name::Name;
use rustix::fs::{
    AtFlags, CWD, FileType, Gid, Mode, OFlags, RenameFlags, Timespec, Timestamps, UTIME_NOW,
    UTIME_OMIT, Uid,
};
use rustix::io;

use super::redo::{Found, Occupant};
use super::{OpenFile, View, access_flags, acting, beneath, errno, meta, owned, xattr};

/// Permission bits with setuid, setgid and sticky.
const PERMISSIONS: u32 = 0o7777;
const NANOS_PER_SECOND: u32 = 1_000_000_000;

/// Where something is made, and when.
struct Place<'a> {
    parent: NodeId,
    name: &'a Name,
    at: Option<Time>,
}

impl View {
    /// Carries a change out. `found` is who had its names a moment ago. `again`: it may have been
    /// carried out before, and what comes after it may have changed rights since.
    pub(super) fn change(
        &self,
        change: &Change,
        body: &[u8],
        found: &Found,
        again: bool,
    ) -> Result<Outcome, Errno> {
        let at = change.at;
        match &change.mutation {
            Mutation::Nothing => Ok(Outcome::Done),
            Mutation::Create { parent, name, mode, exclusive, open, .. } => {
                let place = Place { parent: node_id(*parent)?, name, at };
                self.create(place, *mode, *exclusive, *open, found).map(Outcome::Entry)
            }
            Mutation::Mkdir { parent, name, mode, .. } => self
                .make(Place { parent: node_id(*parent)?, name, at }, |dir, name| {
                    acting::masked(*mode, |mode| rustix::fs::mkdirat(dir, name, mode))
                }),
            Mutation::Mknod { parent, name, mode, rdev } => {
                self.make(Place { parent: node_id(*parent)?, name, at }, |dir, name| {
                    let kind = file_type(*mode);
                    let make = |mode| rustix::fs::mknodat(dir, name, kind, mode, *rdev);
                    acting::masked(*mode, make)
                })
            }
            Mutation::Symlink { parent, name, target } => self
                .make(Place { parent: node_id(*parent)?, name, at }, |dir, name| {
                    rustix::fs::symlinkat(target.as_bytes(), dir, name)
                }),
            Mutation::Link { node, parent, name } => {
                let place = Place { parent: node_id(*parent)?, name, at: None };
                self.link(node_id(*node)?, place)
            }
            Mutation::Unlink { parent, name, .. } => {
                self.remove(node_id(*parent)?, name, AtFlags::empty(), found)
            }
            Mutation::Rmdir { parent, name, .. } => {
                self.remove(node_id(*parent)?, name, AtFlags::REMOVEDIR, found)
            }
            Mutation::Rename { parent, name, new_parent, new_name, mode, .. } => {
                let from = (node_id(*parent)?, name);
                self.rename(from, (node_id(*new_parent)?, new_name), *mode, found)
            }
            Mutation::SetAttr { node, handle, change } => {
                self.set_attr(node_id(*node)?, *handle, change, (at, again)).map(Outcome::Attr)
            }
            Mutation::SetXattr { node, name, flags } => {
                self.set_xattr(node_id(*node)?, name, *flags, body, again).map(|()| Outcome::Done)
            }
            Mutation::RemoveXattr { node, name } => {
                self.remove_xattr(node_id(*node)?, name, again).map(|()| Outcome::Done)
            }
            Mutation::Write { .. }
            | Mutation::Append { .. }
            | Mutation::Fallocate { .. }
            | Mutation::CopyRange { .. } => self.change_data(&change.mutation, body, at, again),
        }
    }

    fn create(
        &self,
        place: Place<'_>,
        mode: u32,
        exclusive: bool,
        open: Option<Opening>,
        found: &Found,
    ) -> Result<Entry, Errno> {
        let Place { parent, name, at } = place;
        let dir = self.dir(parent, name)?;
        let mut flags = open.map_or(OFlags::RDONLY, |open| access_flags(open.access));
        if exclusive {
            flags |= OFlags::EXCL;
        }
        if open.is_some() && self.handles().len() >= HANDLES_MAX {
            return Err(Errno::EMFILE);
        }
        // The creator's descriptor may do what the mode forbids to everybody else
        let make = |mode| beneath::create(dir.as_fd(), name, flags, mode);
        let file = acting::masked(mode, make).map_err(errno)?;
        // Not the open file itself: nodes are held longer than files are open
        let path = beneath::reopen(file.as_fd(), OFlags::PATH).map_err(errno)?;
        if found.name.is_none() {
            stamp(path.as_fd(), at);
        }
        let path = Arc::new(path);
        let entry = self.enter(&path, parent, name)?;
        if !entry.attr.is_file() {
            return Err(Errno::EEXIST);
        }
        if let Some(Opening { handle, access }) = open {
            self.admit(handle, OpenFile::new(entry.node, path, file, access))?;
        }
        Ok(entry)
    }

    fn make(
        &self,
        Place { parent, name, at }: Place<'_>,
        make: impl FnOnce(&OwnedFd, &std::ffi::CStr) -> io::Result<()>,
    ) -> Result<Outcome, Errno> {
        let dir = self.dir(parent, name)?;
        let c_name = beneath::c_name(name).map_err(errno)?;
        make(&dir, &c_name).map_err(errno)?;
        let fd = beneath::hold(dir.as_fd(), name).map_err(errno)?;
        stamp(fd.as_fd(), at);
        self.enter(&Arc::new(fd), parent, name).map(Outcome::Entry)
    }

    fn link(&self, node: NodeId, place: Place<'_>) -> Result<Outcome, Errno> {
        let fd = self.nodes().find(node)?;
        self.make(place, |dir, name| {
            let from = beneath::proc_path(fd.as_fd());
            rustix::fs::linkat(CWD, from, dir, name, AtFlags::SYMLINK_FOLLOW)
        })
    }

    fn remove(
        &self,
        parent: NodeId,
        name: &Name,
        flags: AtFlags,
        found: &Found,
    ) -> Result<Outcome, Errno> {
        let dir = self.dir(parent, name)?;
        let occupant = found.name.as_ref().ok_or_else(|| absent(&dir, name))?;
        let name = beneath::c_name(name).map_err(errno)?;
        let covered = self.cover(occupant);
        let removed = rustix::fs::unlinkat(&dir, &*name, flags);
        self.uncover(covered, removed.is_ok());
        removed.map_err(errno)?;
        // A directory has one name
        let named = |attr| self.shown(occupant.node, attr).nlink > 0;
        let linked = flags.is_empty() && meta::attr(occupant.fd.as_fd()).is_ok_and(named);
        if !linked {
            self.let_go(occupant);
        }
        Ok(Outcome::Removed { node: occupant.node, linked })
    }

    fn rename(
        &self,
        (parent, name): (NodeId, &Name),
        (new_parent, new_name): (NodeId, &Name),
        mode: RenameMode,
        found: &Found,
    ) -> Result<Outcome, Errno> {
        let from = self.dir(parent, name)?;
        let to = self.dir(new_parent, new_name)?;
        let flags = match mode {
            RenameMode::Replace => RenameFlags::empty(),
            RenameMode::NoReplace => RenameFlags::NOREPLACE,
            RenameMode::Exchange => RenameFlags::EXCHANGE,
        };
        let Occupant { node, fd, .. } = found.name.as_ref().ok_or_else(|| absent(&from, name))?;
        if mode == RenameMode::Replace && found.new_name.is_some() {
            self.settle(fd)?;
        }
        let old = beneath::c_name(name).map_err(errno)?;
        let new = beneath::c_name(new_name).map_err(errno)?;
        let replaced = found.new_name.as_ref().filter(|replaced| replaced.node != *node);
        let covered = match mode {
            RenameMode::Replace => replaced.and_then(|replaced| self.cover(replaced)),
            RenameMode::NoReplace | RenameMode::Exchange => None,
        };
        let renamed = rustix::fs::renameat_with(&from, &*old, &to, &*new, flags);
        self.uncover(covered, renamed.is_ok());
        renamed.map_err(errno)?;
        self.nodes().moved(new_parent, &to, new_name);
        if mode == RenameMode::Exchange {
            self.nodes().moved(parent, &from, name);
        }
        let replaced = found.new_name.as_ref().map(|occupant| occupant.node);
        // Two names of one node: rename(2) does nothing
        let replaced = replaced.filter(|replaced| replaced != node);
        if let (Some(occupant), RenameMode::Replace) = (&found.new_name, mode)
            && replaced.is_some()
        {
            self.let_go(occupant);
        }
        Ok(Outcome::Renamed { node: *node, replaced })
    }

    /// A file that lost its last name is not to keep its space. What takes none stays within reach
    /// of clients that still know it: only they have FIFOs open, or stand in a directory.
    fn let_go(&self, occupant: &Occupant) {
        if meta::attr(occupant.fd.as_fd()).is_ok_and(|attr| attr.is_file()) {
            self.nodes().let_go(occupant.node);
        }
    }

    /// Puts what is about to replace another file on the disk: a crash must not leave neither of
    /// them, as it can where the name reaches the disk before the data.
    fn settle(&self, fd: &OwnedFd) -> Result<(), Errno> {
        if !meta::attr(fd.as_fd()).map_err(errno)?.is_file() {
            return Ok(());
        }
        match acting::as_itself(|| beneath::reopen(fd.as_fd(), OFlags::RDONLY)) {
            Ok(file) => rustix::fs::fdatasync(file).map_err(|error| self.disk_failed(error)),
            // Nobody may read it, this host neither
            Err(_) => Ok(()),
        }
    }

    /// Length, owner, mode, times: chown(2) takes setuid away, and all of them set times.
    fn set_attr(
        &self,
        node: NodeId,
        handle: Option<HandleId>,
        change: &AttrChange,
        (at, again): (Option<Time>, bool),
    ) -> Result<Attr, Errno> {
        let fd = self.holder(node, handle)?;
        let path = beneath::proc_path(fd.as_fd());
        if let Some(size) = change.size {
            acting::writing(|| self.truncate(node, handle, &fd, size, again))?;
            stamp(fd.as_fd(), at);
        }
        if change.uid.is_some() || change.gid.is_some() {
            let (uid, gid) = owners(change)?;
            rustix::fs::chownat(&fd, c"", uid, gid, AtFlags::EMPTY_PATH).map_err(errno)?;
        }
        if let Some(mode) = change.mode {
            rustix::fs::chmodat(CWD, &*path, permissions(mode), AtFlags::empty()).map_err(errno)?;
        }
        if change.atime.is_some() || change.mtime.is_some() {
            let times = Timestamps {
                last_access: time(change.atime)?,
                last_modification: time(change.mtime)?,
            };
            rustix::fs::utimensat(CWD, &*path, &times, AtFlags::empty()).map_err(errno)?;
        }
        let mut attr = meta::attr(fd.as_fd()).map_err(errno)?;
        if xattr::is_without(fd.as_fd()) {
            // before the next change of an owner the client's kernel asks for one
            attr.mode |= Attr::NO_XATTRS;
        }
        Ok(attr)
    }

    fn truncate(
        &self,
        node: NodeId,
        handle: Option<HandleId>,
        fd: &OwnedFd,
        size: u64,
        again: bool,
    ) -> Result<(), Errno> {
        let writable = handle
            .and_then(|handle| self.handle(handle).ok())
            .filter(|open| open.node == node && open.access != Access::Read);
        if let Some(open) = writable {
            return rustix::fs::ftruncate(&open.file, size).map_err(errno);
        }
        // What is no regular file refuses, before opening it could wait
        let attr = meta::attr(fd.as_fd()).map_err(errno)?;
        if !attr.is_file() && !attr.is_dir() {
            return Err(Errno::EINVAL);
        }
        let reopen = if again || handle.is_some() { owned::reopen } else { beneath::reopen };
        let file = reopen(fd.as_fd(), OFlags::WRONLY).map_err(errno)?;
        rustix::fs::ftruncate(file, size).map_err(errno)
    }
}

/// Who it is that an entry names: the session knows already whom an earlier entry made.
pub(super) fn node_id(node: NodeRef) -> Result<NodeId, Errno> {
    match node {
        NodeRef::Node(node) => Ok(node),
        NodeRef::MadeBy(_) => Err(Errno::EIO),
    }
}

/// Leaves the time that the client has told its programs. They cannot be told that it failed.
pub(super) fn stamp(fd: BorrowedFd<'_>, at: Option<Time>) {
    let Some(at) = at else { return };
    if let Ok(last_modification) = time(Some(SetTime::At(at))) {
        let times = Timestamps {
            last_access: Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
            last_modification,
        };
        let path = beneath::proc_path(fd);
        // Who may write may leave a time, but not set one
        let stamped = || rustix::fs::utimensat(CWD, &*path, &times, AtFlags::empty());
        let _ = acting::as_itself(stamped);
    }
}

/// Why a name is not there: nobody has it, or the caller may not look.
fn absent(dir: &OwnedFd, name: &Name) -> Errno {
    beneath::hold(dir.as_fd(), name).map_or_else(errno, |_| Errno::ENOENT)
}

fn permissions(mode: u32) -> Mode {
    Mode::from_raw_mode(mode & PERMISSIONS)
}

fn file_type(mode: u32) -> FileType {
    match FileType::from_raw_mode(mode) {
        // mknod(2): no type is a regular file
        FileType::Unknown => FileType::RegularFile,
        known => known,
    }
}

/// The new owners; -1 is "stays" to chown(2), so nobody can be called so.
fn owners(change: &AttrChange) -> Result<(Option<Uid>, Option<Gid>), Errno> {
    if change.uid == Some(u32::MAX) || change.gid == Some(u32::MAX) {
        return Err(Errno::EINVAL);
    }
    Ok((change.uid.map(Uid::from_raw), change.gid.map(Gid::from_raw)))
}

fn time(time: Option<SetTime>) -> Result<Timespec, Errno> {
    let (tv_sec, tv_nsec) = match time {
        None => (0, UTIME_OMIT),
        Some(SetTime::Now) => (0, UTIME_NOW),
        Some(SetTime::At(time)) if time.nanos < NANOS_PER_SECOND => {
            (time.seconds, time.nanos.into())
        }
        Some(SetTime::At(_)) => return Err(Errno::EINVAL),
    };
    Ok(Timespec { tv_sec, tv_nsec })
}
