//! Answers that wait for nothing: what the kernel has in memory, on file systems of this machine.
//!
//! They are given on the network's own thread, which saves two hand-overs between threads. Whatever
//! might wait (for a disk, for a lease that somebody holds) is left to `View::call`; what is brief
//! if it does not wait is told apart from what takes its time anyway.

use std::io::IoSliceMut;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use bytes::Bytes;
use p2pfs::id::{HandleId, NodeId};
use p2pfs::wire::call::{Access, Asked, Attr, Call, Entry, ReadVersion, Reply};
use p2pfs::wire::errno::Errno;
use p2pfs::wire::log::{Mutation, Occupant, RenameMode};
use p2pfs::wire::name::Name;
use rustix::fs::{OFlags, Stat};
use rustix::io::{self, ReadWriteFlags};

use super::{OpenFile, View, beneath, errno, meta, read};

/// The largest read that is answered at once, bytes: longer copies would hold up others.
const READ_BYTES_MAX: u32 = 64 << 10;

/// The longest write that is brief, bytes.
const WRITE_BYTES_MAX: usize = 16 << 10;
/// The largest directory whose listing is brief, by the bytes that it takes on ext4: about 100
/// entries.
const DIR_BYTES_MAX: u64 = 4096;

/// `f_type` of file systems whose `statx` and `open` of an inode in memory ask nobody: ext4, xfs,
/// btrfs, f2fs, tmpfs.
const QUICK: [i64; 5] = [0xef53, 0x5846_5342, 0x9123_683e, 0xf2f5_2010, 0x0102_1994];

/// Whether a share on this file system is answered quickly.
pub(super) fn is_quick(root: BorrowedFd<'_>) -> bool {
    rustix::fs::fstatfs(root).is_ok_and(|space| QUICK.contains(&space.f_type))
}

/// Whether a change takes some microseconds, unless something waits for a disk.
pub(super) fn is_brief(mutation: &Mutation, body_bytes: usize) -> bool {
    match mutation {
        Mutation::Nothing
        | Mutation::Create { .. }
        | Mutation::Mkdir { .. }
        | Mutation::Mknod { .. }
        | Mutation::Symlink { .. }
        | Mutation::Link { .. }
        | Mutation::Unlink { .. }
        | Mutation::Rmdir { .. }
        | Mutation::SetAttr { .. }
        | Mutation::SetXattr { .. }
        | Mutation::RemoveXattr { .. } => true,
        // What replaces a file is on the disk before
        Mutation::Rename { mode, new_occupant, .. } => {
            *mode != RenameMode::Replace || *new_occupant == Occupant::Nobody
        }
        Mutation::Write { .. } | Mutation::Append { .. } => body_bytes <= WRITE_BYTES_MAX,
        Mutation::Fallocate { .. } | Mutation::CopyRange { .. } => false,
    }
}

fn is_small(dir: &Stat) -> bool {
    u64::try_from(dir.st_size).is_ok_and(|bytes| bytes <= DIR_BYTES_MAX)
}

impl View {
    /// Whether a call takes some microseconds, unless something waits for a disk.
    pub(super) fn is_brief(&self, call: &Call) -> bool {
        let listed = match call {
            Call::OpenDir { node, .. } | Call::ReadDir { node, .. } => node,
            Call::As { asked: Asked::OpenDir { node, .. }, .. } => node,
            Call::As { asked: Asked::OpenRead { .. }, .. } => return false,
            Call::Lookup { .. }
            | Call::GetAttr { .. }
            | Call::ReadLink { .. }
            | Call::Open { .. }
            | Call::StatFs
            | Call::GetXattr { .. }
            | Call::As { .. } => return true,
            _ => return false,
        };
        let small = |fd: &OwnedFd| rustix::fs::fstat(fd).is_ok_and(|stat| is_small(&stat));
        self.nodes().find_held(*listed).is_some_and(|fd| small(&fd))
    }

    /// The answer, if it waits for nothing.
    pub(super) fn answer_now(&self, call: &Call) -> Option<Result<(Reply, Bytes), Errno>> {
        if !self.share.quick {
            return None;
        }
        let asked;
        let (caller, call) = match call {
            Call::As { caller, asked: by } => {
                asked = by.clone().into();
                (Some(caller), &asked)
            }
            call => (None, call),
        };
        let _acts = match call {
            Call::Lookup { .. } | Call::Open { .. } | Call::OpenRead { .. } => {
                // As nobody else than who asks
                Some(self.acting.begin(caller).ok()?)
            }
            _ => None,
        };
        let reply = match *call {
            Call::Lookup { parent, ref name } => self.lookup_now(parent, name)?.map(Reply::Entry),
            Call::GetAttr { node, handle } => {
                let fd = self.held(node, handle)?;
                let attr = meta::attr(fd.as_fd()).map_err(errno);
                attr.map(|attr| Reply::Attr(self.shown(node, attr)))
            }
            Call::Read { handle, offset, len } => {
                return Some(Ok((Reply::Data, self.read_now(handle, offset, len)?)));
            }
            Call::ReadVersion { handle, offset, len } => {
                let (version, data) = self.read_version_now(handle, offset, len)?;
                return Some(Ok((Reply::Version(version), data)));
            }
            Call::Open { node, handle, access: Access::Read } => {
                self.open_now(node, handle)?.map(Reply::Attr)
            }
            Call::OpenRead { node, handle, len } => match self.open_now(node, handle)? {
                Ok(attr) => {
                    let (version, data) = self.read_version_now(handle, 0, len)?;
                    let data = if version.is(&attr) { data } else { Bytes::new() };
                    return Some(Ok((Reply::Attr(attr), data)));
                }
                Err(error) => Err(error),
            },
            Call::Release { handle, .. } => self.release_now(handle)?,
            _ => return None,
        };
        Some(reply.map(|reply| (reply, Bytes::new())))
    }

    fn held(&self, node: NodeId, handle: Option<HandleId>) -> Option<Arc<OwnedFd>> {
        match handle.map(|handle| self.handle(handle)) {
            Some(Ok(open)) if open.node == node => Some(Arc::clone(&open.path)),
            _ => self.nodes().find_held(node),
        }
    }

    fn lookup_now(&self, parent: NodeId, name: &Name) -> Option<Result<Entry, Errno>> {
        if parent == NodeId::ROOT && name.as_bytes() == super::OURS {
            return Some(Err(Errno::ENOENT));
        }
        let dir = self.nodes().find_held(parent)?;
        match beneath::hold_cached(dir.as_fd(), name) {
            Ok(fd) => Some(self.enter(&Arc::new(fd), parent, name)),
            Err(io::Errno::NOENT) => Some(Err(Errno::ENOENT)),
            // Not in memory, or something that only the long way can tell
            Err(_) => None,
        }
    }

    fn open_now(&self, node: NodeId, handle: HandleId) -> Option<Result<Attr, Errno>> {
        let path = self.nodes().find_held(node)?;
        let attr = meta::attr(path.as_fd()).ok().filter(Attr::is_file)?;
        let attr = match self.openable(node, attr) {
            Ok(attr) => attr,
            Err(error) => return Some(Err(error)),
        };
        if matches!(self.handle(handle), Ok(open) if open.node == node) {
            return Some(Ok(attr));
        }
        // Whoever holds a lease on it (fcntl) is not waited for here
        let flags = OFlags::RDONLY | OFlags::NONBLOCK;
        let file = beneath::reopen(path.as_fd(), flags).ok()?;
        let open = OpenFile::new(node, path, file, Access::Read);
        Some(self.admit(handle, open).map(|()| attr))
    }

    /// Closing waits for nothing where the node stays held, and nothing was written.
    fn release_now(&self, handle: HandleId) -> Option<Result<Reply, Errno>> {
        let mut handles = self.handles();
        let open = handles.get(&handle)?;
        let is_held = Arc::strong_count(&open.path) > 1 && Arc::strong_count(open) == 1;
        if open.access != Access::Read || !is_held {
            return None;
        }
        let open = handles.remove(&handle);
        drop(handles);
        self.close(handle, open);
        Some(Ok(Reply::Done))
    }

    fn read_version_now(
        &self,
        handle: HandleId,
        offset: u64,
        len: u32,
    ) -> Option<(ReadVersion, Bytes)> {
        let begun = read::now();
        let data = self.read_now(handle, offset, len)?;
        let open = self.handle(handle).ok()?;
        let found = read::version_after(&open, begun).ok()?;
        if found.recent {
            let again = || self.read_now(handle, offset, len).ok_or(Errno::EAGAIN);
            return Some(self.read_quietly(&open, again).unwrap_or((found, data)));
        }
        Some((found, data))
    }

    fn read_now(&self, handle: HandleId, offset: u64, len: u32) -> Option<Bytes> {
        if len > READ_BYTES_MAX {
            return None;
        }
        let open = self.handle(handle).ok()?;
        let mut data = vec![0; len as usize];
        let mut filled = 0;
        while filled < data.len() {
            let at = offset.checked_add(filled as u64)?;
            let mut slices = [IoSliceMut::new(&mut data[filled..])];
            match io::preadv2(&open.file, &mut slices, at, ReadWriteFlags::NOWAIT) {
                Ok(0) => break,
                Ok(read) => filled += read,
                Err(io::Errno::INTR) => {}
                Err(_) => return None,
            }
        }
        data.truncate(filled);
        Some(data.into())
    }
}
