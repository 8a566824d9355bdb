//! The nodes that clients know: how each is found again.
//!
//! One table for all sessions of a share. A node is found by a descriptor that is still open, else
//! by its file handle where the process may open handles, else by its last known place, and then
//! only if what is there is still the same node. So what a client has looked up stays within its
//! reach when somebody moves it elsewhere on the host, even out of the share, as with NFS. A handle
//! is also made again from an identity, so that a host that was killed finds what clients know.

use std::num::NonZeroUsize;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use lru::LruCache;
use p2pfs::id::NodeId;
use p2pfs::wire::call::Attr;
use p2pfs::wire::errno::Errno;
use p2pfs::wire::name::Name;
use rustix::fs::Statx;
use rustix::io;
use rustix::process::{Resource, getrlimit};

use super::beneath::{self, FileHandle};
use super::{Disk, acting, errno, meta, xattr};

/// Descriptors kept for nodes that were used last, and which part of this process's limit they may
/// be: open files need theirs, and so do other shares.
const HELD_MAX: usize = 4096;
const HELD_PART: usize = 16;
/// Nodes that clients know at once, at about 250 bytes; beyond it the one used least is ESTALE.
const KNOWN_MAX: NonZeroUsize = NonZeroUsize::new(1 << 20).unwrap();
/// Forgotten nodes that are kept a while: a `Forget` may cross an answer that names the node again.
const FORGOTTEN_MAX: NonZeroUsize = NonZeroUsize::new(1 << 14).unwrap();
/// How long the answer to a wrong identity takes.
const WRONG: Duration = Duration::from_millis(1);
/// How far a place is followed upwards; renames on the host can leave a circle of stale places.
const DEPTH_MAX: usize = 1024;

/// The share's root and the nodes below it.
#[derive(Debug)]
pub(super) struct Nodes {
    root: Arc<OwnedFd>,
    root_ino: u64,
    device: u64,
    fsid: u64,
    /// Which plugging in of the disk it is on.
    sequence: u64,
    /// The root's, if this process may open file handles (`CAP_DAC_READ_SEARCH`).
    handle: Option<FileHandle>,
    /// Held while a wrong identity is answered.
    wrong: Mutex<()>,
    /// Never held over a system call.
    table: Mutex<Table>,
}

#[derive(Debug)]
struct Table {
    known: LruCache<NodeId, Known>,
    forgotten: LruCache<NodeId, Known>,
    held: LruCache<NodeId, Arc<OwnedFd>>,
}

#[derive(Debug)]
struct Known {
    trail: Trail,
    /// How many sessions know it.
    sessions: u32,
    /// Whatever still holds it: `held`, or an open file of a session.
    fd: Weak<OwnedFd>,
}

/// How a node is found again without a descriptor.
#[derive(Clone, Debug)]
enum Trail {
    Handle(FileHandle),
    Place { parent: NodeId, name: Name },
}

/// A node that was just found on the disk.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) id: NodeId,
    pub(super) attr: Attr,
    handle: Option<FileHandle>,
}

impl Found {
    /// Tells in the attributes whether the node has extended ones.
    pub(super) fn look_for_xattrs(&mut self, fd: BorrowedFd<'_>) {
        self.note_xattrs(xattr::is_without(fd));
    }

    fn note_xattrs(&mut self, without: bool) {
        if without {
            self.attr.mode |= Attr::NO_XATTRS;
        }
    }
}

impl Nodes {
    pub(super) fn new(root: OwnedFd, handles: bool) -> io::Result<Self> {
        let stat = meta::stat(root.as_fd())?;
        let handle = FileHandle::of(root.as_fd())
            .filter(|handle| handles && handle.hold(root.as_fd()).is_ok());
        Ok(Self {
            root_ino: stat.stx_ino,
            device: rustix::fs::makedev(stat.stx_dev_major, stat.stx_dev_minor),
            sequence: meta::disk_sequence(&stat),
            fsid: rustix::fs::fstatvfs(&root)?.f_fsid,
            root: Arc::new(root),
            handle,
            wrong: Mutex::default(),
            table: Mutex::new(Table {
                known: LruCache::unbounded(),
                forgotten: LruCache::new(FORGOTTEN_MAX),
                held: LruCache::new(held_max()),
            }),
        })
    }

    pub(super) fn root(&self) -> &Arc<OwnedFd> {
        &self.root
    }

    /// The disk that the share is on.
    pub(super) fn disk(&self) -> Disk {
        Disk { fsid: self.fsid, inode: self.root_ino, sequence: self.sequence }
    }

    /// The numbers of the device that the share is on, and of its root there: until the next boot.
    pub(super) fn root_numbers(&self) -> (u64, u64) {
        (self.device, self.root_ino)
    }

    /// The file system's id and the root's inode number: how a share knows its disk.
    pub(super) fn root_identity(&self) -> (u64, u64) {
        (self.fsid, self.root_ino)
    }

    /// A descriptor that holds the node.
    pub(super) fn find(&self, id: NodeId) -> Result<Arc<OwnedFd>, Errno> {
        // Whoever names it was told of it; what may be done with it is another question
        acting::as_itself(|| self.find_within(id, DEPTH_MAX))
    }

    /// As [`Self::find`], without a system call.
    pub(super) fn find_held(&self, id: NodeId) -> Option<Arc<OwnedFd>> {
        if id == NodeId::ROOT {
            return Some(Arc::clone(&self.root));
        }
        let mut table = self.table();
        match table.held.get(&id) {
            Some(fd) => Some(Arc::clone(fd)),
            None => table.get(id)?.fd.upgrade(),
        }
    }

    fn find_within(&self, id: NodeId, depth: usize) -> Result<Arc<OwnedFd>, Errno> {
        if id == NodeId::ROOT {
            return Ok(Arc::clone(&self.root));
        }
        let depth = depth.checked_sub(1).ok_or(Errno::ESTALE)?;
        let trail = {
            let mut table = self.table();
            if let Some(fd) = table.held.get(&id) {
                return Ok(Arc::clone(fd));
            }
            match table.get(id) {
                Some(known) => match known.fd.upgrade() {
                    Some(fd) => return Ok(fd),
                    None => known.trail.clone(),
                },
                None => {
                    drop(table);
                    return self.find_again(id);
                }
            }
        };
        let fd = match trail {
            Trail::Handle(handle) => handle.hold(self.root.as_fd()).map_err(errno)?,
            Trail::Place { parent, name } => {
                let parent = self.find_within(parent, depth)?;
                beneath::hold(parent.as_fd(), &name).map_err(|_| Errno::ESTALE)?
            }
        };
        if self.look(&fd).map_err(errno)?.id != id {
            return Err(Errno::ESTALE);
        }
        let fd = Arc::new(fd);
        self.table().hold(id, &fd);
        Ok(fd)
    }

    /// Whether a node is found that was never looked up.
    pub(super) fn finds_by_identity(&self) -> bool {
        self.handle.as_ref().is_some_and(|handle| handle.generation().is_some())
    }

    /// A node that a client knows from a run of this host that was killed. Its identity must be
    /// right as a whole, and guessing is slow: the file system is larger than the share.
    fn find_again(&self, id: NodeId) -> Result<Arc<OwnedFd>, Errno> {
        let root = self.handle.as_ref().ok_or(Errno::ESTALE)?;
        let handle = meta::handle_of(id, root).ok_or(Errno::ESTALE)?;
        let right = handle.hold(self.root.as_fd()).and_then(|fd| Ok((self.look(&fd)?.id, fd)));
        let fd = match right {
            Ok((found, fd)) if found == id => Arc::new(fd),
            _ => {
                let _one_at_a_time = self.wrong.lock().unwrap_or_else(PoisonError::into_inner);
                std::thread::sleep(WRONG);
                return Err(Errno::ESTALE);
            }
        };
        let mut table = self.table();
        // No session was told of it in this run
        let known = Known { trail: Trail::Handle(handle), sessions: 0, fd: Weak::new() };
        table.forgotten.put(id, known);
        table.hold(id, &fd);
        Ok(fd)
    }

    /// Who it is that a descriptor holds.
    pub(super) fn look(&self, fd: &OwnedFd) -> io::Result<Found> {
        let stat = meta::stat(fd.as_fd())?;
        let handle = FileHandle::of(fd.as_fd());
        Ok(self.found(&stat, handle))
    }

    /// As [`Self::look`] and [`Found::look_for_xattrs`], without holding the entry `name` of `dir`;
    /// `None` if that cannot be done here.
    pub(super) fn look_at(&self, dir: BorrowedFd<'_>, name: &Name) -> Option<Found> {
        let name = beneath::c_name(name).ok()?;
        let handle = FileHandle::at(dir, &name)?;
        let without = xattr::is_without_at(dir, &name)?;
        let stat = meta::stat_at(dir, &name).ok()??;
        // The name has not passed to another one meanwhile
        if !handle.is_of(stat.stx_ino) {
            return None;
        }
        let mut found = self.found(&stat, Some(handle));
        found.note_xattrs(without);
        Some(found)
    }

    fn found(&self, stat: &Statx, handle: Option<FileHandle>) -> Found {
        let id = meta::identity(self.fsid, stat, handle.as_ref());
        Found { id, attr: meta::attr_of(stat), handle }
    }

    /// Remembers where a node is. `new`: the session does not know it yet.
    pub(super) fn remember(&self, found: &Found, parent: NodeId, name: &Name, new: bool) {
        let trail = match &found.handle {
            Some(handle) if self.handle.is_some() => Trail::Handle(handle.clone()),
            _ => Trail::Place { parent, name: name.clone() },
        };
        let mut table = self.table();
        let Table { known, forgotten, .. } = &mut *table;
        if let Some(node) = forgotten.pop(&found.id) {
            known.put(found.id, node);
        }
        let node = known.get_or_insert_mut(found.id, || Known {
            trail: trail.clone(),
            sessions: 0,
            fd: Weak::new(),
        });
        node.trail = trail;
        node.sessions += u32::from(new);
        if known.len() > KNOWN_MAX.get() {
            known.pop_lru();
        }
    }

    /// Keeps a descriptor at hand for a node that is remembered.
    pub(super) fn hold(&self, id: NodeId, fd: &Arc<OwnedFd>) {
        self.table().hold(id, fd);
    }

    /// A node has no name any more: its space is free when the last one has closed it.
    pub(super) fn let_go(&self, id: NodeId) {
        let held = self.table().held.pop(&id);
        drop(held);
    }

    /// A node has another place now: its name moved.
    pub(super) fn moved(&self, parent: NodeId, dir: &OwnedFd, name: &Name) {
        if self.handle.is_some() {
            return;
        }
        let found = beneath::hold(dir.as_fd(), name).and_then(|fd| self.look(&fd));
        if let Ok(found) = found
            && let Some(node) = self.table().get(found.id)
        {
            node.trail = Trail::Place { parent, name: name.clone() };
        }
    }

    /// One session less knows these nodes.
    pub(super) fn forget(&self, ids: impl IntoIterator<Item = NodeId>) {
        let mut table = self.table();
        for id in ids {
            let Some(node) = table.known.peek_mut(&id) else {
                continue;
            };
            node.sessions = node.sessions.saturating_sub(1);
            if node.sessions == 0 {
                table.held.pop(&id);
                if let Some(node) = table.known.pop(&id) {
                    table.forgotten.put(id, node);
                }
            }
        }
    }

    /// As if many other nodes had been used since.
    #[cfg(test)]
    pub(super) fn drop_descriptors(&self) {
        self.table().held.clear();
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        // Every change of the table is whole before anything can panic
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn held_max() -> NonZeroUsize {
    let limit = getrlimit(Resource::Nofile).current;
    let limit = limit.map_or(usize::MAX, |limit| usize::try_from(limit).unwrap_or(usize::MAX));
    NonZeroUsize::new(HELD_MAX.min(limit / HELD_PART)).unwrap_or(NonZeroUsize::MIN)
}

impl Table {
    fn get(&mut self, id: NodeId) -> Option<&mut Known> {
        if self.known.contains(&id) {
            return self.known.get_mut(&id);
        }
        self.forgotten.get_mut(&id)
    }

    fn hold(&mut self, id: NodeId, fd: &Arc<OwnedFd>) {
        if let Some(known) = self.get(id) {
            // One that an open file keeps alive outlives the cache: it stays the one to find
            let fd = known.fd.upgrade().unwrap_or_else(|| Arc::clone(fd));
            known.fd = Arc::downgrade(&fd);
            self.held.put(id, fd);
        }
    }
}
