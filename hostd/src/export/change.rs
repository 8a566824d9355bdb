//! Changes. Each answers with what the disk says afterwards.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use p2pfs::id::{HandleId, NodeId};
use p2pfs::limits::HANDLES_MAX;
use p2pfs::wire::call::{Access, Attr, Entry};
use p2pfs::wire::errno::Errno;
use p2pfs::wire::log0::{AttrChange, Mutation, Outcome, RenameMode, SetTime};
use p2pfs::wire::name::{Name, Target};
use rustix::fs::{
    AtFlags, CWD, FallocateFlags, FileType, Gid, Mode, OFlags, RenameFlags, Timespec, Timestamps,
    UTIME_NOW, UTIME_OMIT, Uid,
};
use rustix::io;

use super::{OpenFile, View, access_flags, beneath, errno, meta};

/// Permission bits with setuid, setgid and sticky.
const PERMISSIONS: u32 = 0o7777;
const NANOS_PER_SECOND: u32 = 1_000_000_000;

impl View {
    pub(super) fn change(&self, mutation: Mutation, body: &[u8]) -> Result<Outcome, Errno> {
        let done = |()| Outcome::Done;
        match mutation {
            Mutation::Create { parent, name, mode, exclusive, handle, access } => {
                self.create(parent, &name, mode, exclusive, handle, access).map(Outcome::Entry)
            }
            Mutation::Mkdir { parent, name, mode } => self
                .make(parent, &name, |dir, name| rustix::fs::mkdirat(dir, name, permissions(mode))),
            Mutation::Mknod { parent, name, mode, rdev } => {
                self.make(parent, &name, |dir, name| {
                    rustix::fs::mknodat(dir, name, file_type(mode), permissions(mode), rdev)
                })
            }
            Mutation::Symlink { parent, name, target } => self.symlink(parent, &name, &target),
            Mutation::Link { node, parent, name } => self.link(node, parent, &name),
            Mutation::Unlink { parent, name } => {
                self.remove(parent, &name, AtFlags::empty()).map(done)
            }
            Mutation::Rmdir { parent, name } => {
                self.remove(parent, &name, AtFlags::REMOVEDIR).map(done)
            }
            Mutation::Rename { parent, name, new_parent, new_name, mode } => {
                self.rename((parent, &name), (new_parent, &new_name), mode).map(done)
            }
            Mutation::SetAttr { node, handle, change } => {
                self.set_attr(node, handle, &change).map(Outcome::Attr)
            }
            Mutation::Write { handle, offset } => {
                self.write(handle, offset, body).map(Outcome::Attr)
            }
            Mutation::SetXattr { node, name, flags } => {
                self.set_xattr(node, &name, flags, body).map(done)
            }
            Mutation::RemoveXattr { node, name } => self.remove_xattr(node, &name).map(done),
            Mutation::Fallocate { handle, offset, len, mode } => {
                self.allocate(handle, offset, len, mode).map(Outcome::Attr)
            }
            Mutation::Nothing => Ok(Outcome::Done),
        }
    }

    fn create(
        &self,
        parent: NodeId,
        name: &Name,
        mode: u32,
        exclusive: bool,
        handle: HandleId,
        access: Access,
    ) -> Result<Entry, Errno> {
        let dir = self.dir(parent, name)?;
        let mut flags = access_flags(access);
        if exclusive {
            flags |= OFlags::EXCL;
        }
        if self.handles().len() >= HANDLES_MAX {
            return Err(Errno::EMFILE);
        }
        // The creator's descriptor may do what the mode forbids to everybody else
        let file = beneath::create(dir.as_fd(), name, flags, permissions(mode)).map_err(errno)?;
        // Not the open file itself: nodes are held longer than files are open
        let path = beneath::reopen(file.as_fd(), OFlags::PATH).map_err(errno)?;
        let path = Arc::new(path);
        let entry = self.enter(&path, parent, name)?;
        if !entry.attr.is_file() {
            return Err(Errno::EEXIST);
        }
        let open = OpenFile::new(entry.node, path, file, access);
        self.admit(handle, open)?;
        Ok(entry)
    }

    fn make(
        &self,
        parent: NodeId,
        name: &Name,
        make: impl FnOnce(&OwnedFd, &std::ffi::CStr) -> io::Result<()>,
    ) -> Result<Outcome, Errno> {
        let dir = self.dir(parent, name)?;
        let c_name = beneath::c_name(name).map_err(errno)?;
        make(&dir, &c_name).map_err(errno)?;
        let fd = beneath::hold(dir.as_fd(), name).map_err(errno)?;
        self.enter(&Arc::new(fd), parent, name).map(Outcome::Entry)
    }

    fn symlink(&self, parent: NodeId, name: &Name, target: &Target) -> Result<Outcome, Errno> {
        self.make(parent, name, |dir, name| rustix::fs::symlinkat(target.as_bytes(), dir, name))
    }

    fn link(&self, node: NodeId, parent: NodeId, name: &Name) -> Result<Outcome, Errno> {
        let fd = self.nodes().find(node)?;
        self.make(parent, name, |dir, name| {
            let from = beneath::proc_path(fd.as_fd());
            rustix::fs::linkat(CWD, from, dir, name, AtFlags::SYMLINK_FOLLOW)
        })
    }

    fn remove(&self, parent: NodeId, name: &Name, flags: AtFlags) -> Result<(), Errno> {
        let dir = self.dir(parent, name)?;
        let name = beneath::c_name(name).map_err(errno)?;
        rustix::fs::unlinkat(&dir, &*name, flags).map_err(errno)
    }

    fn rename(
        &self,
        (parent, name): (NodeId, &Name),
        (new_parent, new_name): (NodeId, &Name),
        mode: RenameMode,
    ) -> Result<(), Errno> {
        let from = self.dir(parent, name)?;
        let to = self.dir(new_parent, new_name)?;
        let flags = match mode {
            RenameMode::Replace => RenameFlags::empty(),
            RenameMode::NoReplace => RenameFlags::NOREPLACE,
            RenameMode::Exchange => RenameFlags::EXCHANGE,
        };
        let old = beneath::c_name(name).map_err(errno)?;
        let new = beneath::c_name(new_name).map_err(errno)?;
        rustix::fs::renameat_with(&from, &*old, &to, &*new, flags).map_err(errno)?;
        self.nodes().moved(new_parent, &to, new_name);
        if mode == RenameMode::Exchange {
            self.nodes().moved(parent, &from, name);
        }
        Ok(())
    }

    /// Length, owner, mode, times: chown(2) takes setuid away, and all of them set times.
    fn set_attr(
        &self,
        node: NodeId,
        handle: Option<HandleId>,
        change: &AttrChange,
    ) -> Result<Attr, Errno> {
        let fd = self.holder(node, handle)?;
        let path = beneath::proc_path(fd.as_fd());
        if let Some(size) = change.size {
            self.truncate(node, handle, &fd, size)?;
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
        meta::attr(fd.as_fd()).map_err(errno)
    }

    fn truncate(
        &self,
        node: NodeId,
        handle: Option<HandleId>,
        fd: &OwnedFd,
        size: u64,
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
        let file = beneath::reopen(fd.as_fd(), OFlags::WRONLY).map_err(errno)?;
        rustix::fs::ftruncate(file, size).map_err(errno)
    }

    fn write(&self, handle: HandleId, offset: u64, mut data: &[u8]) -> Result<Attr, Errno> {
        let open = self.handle(handle)?;
        let mut at = offset;
        while !data.is_empty() {
            match io::pwrite(&open.file, data, at) {
                Ok(0) => return Err(Errno::EIO),
                Ok(written) => {
                    data = &data[written..];
                    at = at.checked_add(written as u64).ok_or(Errno::EFBIG)?;
                }
                Err(io::Errno::INTR) => {}
                Err(error) => return Err(errno(error)),
            }
        }
        meta::attr(open.file.as_fd()).map_err(errno)
    }

    fn allocate(&self, handle: HandleId, offset: u64, len: u64, mode: u32) -> Result<Attr, Errno> {
        let open = self.handle(handle)?;
        let flags = FallocateFlags::from_bits_retain(mode);
        loop {
            match rustix::fs::fallocate(&open.file, flags, offset, len) {
                Err(io::Errno::INTR) => {}
                result => break result.map_err(errno)?,
            }
        }
        meta::attr(open.file.as_fd()).map_err(errno)
    }
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
