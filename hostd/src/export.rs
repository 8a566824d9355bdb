//! A directory of this machine, as sessions see it.
//!
//! [`Share`] is the directory with the nodes that its sessions know; [`View`] is one session's open
//! files. Everything goes by descriptors and single names (`beneath`): no path from the network is
//! ever handed to the kernel. Errors are the kernel's own.
//!
//! Lock order: a view's `known`, then the share's node table. Neither is held over a system call.

pub(crate) mod acting;
mod beneath;
mod change;
mod data;
mod dir;
mod late;
mod locked;
mod locks;
mod meta;
mod node;
mod opens;
mod owned;
mod quick;
mod quiet;
mod read;
mod redo;
#[cfg(test)]
mod tests;
mod xattr;

use std::collections::{HashMap, HashSet};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use p2pfs::id::{Epoch, HandleId, NodeId, Seq, SessionId};
use p2pfs::limits::{FORGET_NODES_MAX, HANDLES_MAX};
use p2pfs::net::daemon;
use p2pfs::net::serve::{AbsentClient, Export, Notices, Rest};
use p2pfs::proto::PeerMisbehaved;
use p2pfs::proto::redo::execute::How;
use p2pfs::proto::redo::record::{Begun, Recovered, Slot};
use p2pfs::wire::call::{Access, Call, Entry, ReadVersion, Reply};
use p2pfs::wire::errno::Errno;
use p2pfs::wire::lease::LeaseRequest;
use p2pfs::wire::log::{Change, Mutation, Outcome, Refused};
use p2pfs::wire::name::Name;
use rustix::fs::{CWD, Mode, OFlags};
use rustix::io;
use rustix::process::geteuid;
use serde::{Deserialize, Serialize};

use acting::Acting;
use late::Late;
use locks::LockTable;
use node::{Found, Nodes};
use opens::OpenTable;

use crate::accounts;
use crate::keys::Map;
use crate::record::{Record, Records};

/// Ours, in the root of a share: clients neither see nor touch it.
const OURS: &[u8] = b".p2pfs";

/// A directory that is served.
#[derive(Debug)]
pub struct Share {
    nodes: Nodes,
    /// As whom `map=squash` acts.
    squash: Acting,
    /// Whether what the kernel has in memory is answered at once.
    quick: bool,
    opens: OpenTable,
    locks: LockTable,
    late: Late,
    /// Held while the disk is synced, and until a failure is counted.
    syncing: Mutex<()>,
}

/// How a share knows its disk again.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct RootIdentity {
    /// The file system's id (`f_fsid`), in hexadecimal.
    #[serde(with = "hexadecimal")]
    pub fsid: u64,
    /// The root's inode number, likewise.
    #[serde(with = "hexadecimal")]
    pub inode: u64,
}

/// The disk under a share, as it is plugged in.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct Disk {
    /// The file system's id.
    pub fsid: u64,
    /// The share's inode number.
    pub inode: u64,
    /// The kernel's number for a disk since it was plugged in; 0 where there is none.
    pub sequence: u64,
}

/// One session's view of a share.
#[derive(Debug)]
pub struct View {
    share: Arc<Share>,
    acting: Acting,
    handles: Mutex<HashMap<HandleId, Arc<OpenFile>>>,
    /// The nodes that the session was told.
    known: Mutex<HashSet<NodeId>>,
    session: SessionId,
    /// Without them a killed host forgets the session.
    record: Option<Record>,
    records: Option<Arc<Records>>,
}

/// An open file or directory.
#[derive(Debug)]
struct OpenFile {
    node: NodeId,
    /// Keeps the node within reach, also when its last name is gone.
    path: Arc<OwnedFd>,
    file: OwnedFd,
    access: Access,
    /// The position is moved by one at a time: a listing, an append.
    position: Mutex<()>,
}

impl Share {
    /// Opens the directory.
    ///
    /// # Errors
    ///
    /// What the kernel says; `ENOSYS` where it has no `openat2` (before Linux 5.6).
    pub fn open(dir: &Path) -> io::Result<Arc<Self>> {
        Self::open_with(dir, true)
    }

    /// `handles`: whether file handles are used where the process may open them.
    fn open_with(dir: &Path, handles: bool) -> io::Result<Arc<Self>> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = rustix::fs::openat(CWD, dir, flags, Mode::empty())?;
        let probe = Name::new(OURS).map_err(|_| io::Errno::INVAL)?;
        match beneath::hold(root.as_fd(), &probe) {
            Ok(_) | Err(io::Errno::NOENT) => {}
            Err(error) => return Err(error),
        }
        let owner = rustix::fs::fstat(&root)?;
        // What is made here belongs to the one whose directory it is
        let squash = match geteuid().is_root() && owner.st_uid != 0 && acting::possible() {
            true => Acting::Owner(accounts::account(owner.st_uid, owner.st_gid)),
            false => Acting::Itself,
        };
        let quick = quick::is_quick(root.as_fd());
        let nodes = Nodes::new(root, handles)?;
        let (opens, locks) = (OpenTable::default(), LockTable::default());
        let (late, syncing) = (Late::default(), Mutex::default());
        Ok(Arc::new(Self { nodes, squash, quick, opens, locks, late, syncing }))
    }

    /// How the share will know its disk again.
    pub fn root_identity(&self) -> RootIdentity {
        let (fsid, inode) = self.nodes.root_identity();
        RootIdentity { fsid, inode }
    }

    /// Whether nodes are found by their identity alone, as a host must that was killed: not without
    /// `CAP_DAC_READ_SEARCH`, and not on every file system.
    pub fn finds_by_identity(&self) -> bool {
        self.nodes.finds_by_identity()
    }

    /// A new session's view, which nobody remembers.
    pub fn view(self: &Arc<Self>) -> Arc<View> {
        self.view_with(SessionId(daemon::random()), None, None, Map::Squash)
    }

    /// The view of a session that is remembered when this host is killed.
    pub fn view_for(
        self: &Arc<Self>,
        session: SessionId,
        records: &Arc<Records>,
        map: Map,
    ) -> Arc<View> {
        self.recover_opens(records);
        let record = records.of(session, self.nodes.disk());
        self.view_with(session, Some(record), Some(Arc::clone(records)), map)
    }

    fn view_with(
        self: &Arc<Self>,
        session: SessionId,
        record: Option<Record>,
        records: Option<Arc<Records>>,
        map: Map,
    ) -> Arc<View> {
        if let Some(records) = &records {
            records.attach(session);
        }
        Arc::new(View {
            share: Arc::clone(self),
            acting: match map {
                Map::Squash => self.squash.clone(),
                Map::Identity => Acting::Caller,
            },
            handles: Mutex::default(),
            known: Mutex::default(),
            session,
            record,
            records,
        })
    }
}

impl Export for View {
    fn call(&self, call: Call) -> Result<(Reply, Bytes), Errno> {
        let (caller, call) = match call {
            Call::As { caller, asked } => (Some(caller), asked.into()),
            call => (None, call),
        };
        let _acts = match call {
            Call::Lookup { .. }
            | Call::Open { .. }
            | Call::OpenRead { .. }
            | Call::OpenDir { .. }
            | Call::GetXattr { .. } => Some(self.acting.begin(caller.as_ref())?),
            // Their rights were looked at when the file was opened, or they need none
            _ => None,
        };
        let reply = match call {
            // The session answers those
            Call::As { .. } | Call::Unwrap(_) | Call::Absent | Call::Leave(_) | Call::Over(_) => {
                return Err(Errno::EINVAL);
            }
            Call::Lookup { parent, name } => Reply::Entry(self.lookup(parent, &name)?),
            Call::GetAttr { node, handle } => Reply::Attr(self.attr(node, handle)?),
            Call::ReadLink { node } => Reply::Target(self.read_link(node)?),
            Call::ReadDir { node, handle, cookie, entries_max } => {
                Reply::Dir(self.read_dir(node, handle, cookie, entries_max)?)
            }
            Call::Open { node, handle, access } => Reply::Attr(self.open(node, handle, access)?),
            Call::OpenRead { node, handle, len } => {
                let attr = self.open(node, handle, Access::Read)?;
                // Whoever reads is told what is wrong, and what moves is read with its version
                let read = self.read_version(handle, 0, len);
                let same = |found: &(ReadVersion, Bytes)| found.0.is(&attr);
                let data = read.ok().filter(same).map(|found| found.1).unwrap_or_default();
                return Ok((Reply::Attr(attr), data));
            }
            Call::OpenDir { node, handle, entries_max } => {
                let attr = self.open(node, handle, Access::Read)?;
                Reply::OpenDir(attr, self.read_dir(node, handle, 0, entries_max)?)
            }
            Call::Read { handle, offset, len } => {
                return Ok((Reply::Data, self.read(handle, offset, len)?));
            }
            Call::StatFs => {
                self.share.late.finish();
                Reply::StatFs(self.space()?)
            }
            Call::Sync { handle, data_only, .. } => {
                self.sync(handle, data_only).map(|()| Reply::Done)?
            }
            Call::SyncAll { .. } => self.sync_share().map(|()| Reply::Done)?,
            Call::Release { handle, .. } => {
                let open = self.handles().remove(&handle);
                self.close(handle, open);
                Reply::Done
            }
            Call::Forget { nodes } => self.forget(&nodes).map(|()| Reply::Done)?,
            Call::GetXattr { node, name } => {
                return Ok((Reply::Data, self.read_xattr(node, &name)?));
            }
            Call::Seek { handle, offset, what } => Reply::Offset(self.seek(handle, offset, what)?),
            Call::ReadVersion { handle, offset, len } => {
                let (version, data) = self.read_version(handle, offset, len)?;
                return Ok((Reply::Version(version), data));
            }
        };
        Ok((reply, Bytes::new()))
    }

    fn try_call(&self, call: &Call) -> Option<Result<(Reply, Bytes), Errno>> {
        self.answer_now(call)
    }

    fn is_brief_call(&self, call: &Call) -> bool {
        self.share.quick && self.is_brief(call)
    }

    fn is_brief_change(&self, mutation: &Mutation, body_bytes: usize) -> bool {
        self.share.quick && quick::is_brief(mutation, body_bytes)
    }

    fn apply(
        &self,
        epoch: Epoch,
        seq: Seq,
        change: &Change,
        body: &Bytes,
        how: &How,
        poisons: bool,
    ) -> Result<Outcome, Refused> {
        self.carry_out((epoch, seq), change, body, how, poisons)
    }

    fn rest(&self) -> Option<Rest> {
        let share = Arc::clone(&self.share);
        share.late.is_due().then(|| Rest::new(move || share.late.run()))
    }

    fn sync_all(&self) -> Result<(), Errno> {
        self.sync_share()
    }

    fn epoch(&self) -> Epoch {
        self.record.as_ref().map(Record::epoch).unwrap_or_default()
    }

    fn recover(&self) -> Option<Recovered> {
        self.record.as_ref()?.recover()
    }

    fn root(&self) -> Option<(u64, u64)> {
        Some(self.nodes().root_numbers())
    }

    fn node_of(&self, handle: HandleId) -> Option<NodeId> {
        self.handles().get(&handle).map(|open| open.node)
    }

    fn begin(&self, begun: Begun, done: &[(Seq, Slot)]) -> Result<(), Errno> {
        self.record.as_ref().map_or(Ok(()), |record| record.begin(begun, done))
    }

    fn note_stable(&self, upto: Seq) {
        if let Some(record) = &self.record {
            record.note_stable(upto);
        }
    }

    fn keep_record(&self) -> Result<(), Errno> {
        self.record.as_ref().map_or(Ok(()), Record::keep)
    }

    fn attend_locks(&self, notices: Notices) {
        Self::attend_locks(self, notices);
    }

    fn ask_lock(&self, request: LeaseRequest) -> Result<(), PeerMisbehaved> {
        Self::ask_lock(self, request)
    }

    fn note_client(&self, client: &AbsentClient) {
        let noted = self.record.as_ref().map_or(Ok(()), |record| record.note_client(client));
        if let Err(error) = noted {
            tracing::warn!(%error, "others cannot be told of a client that has made changes");
        }
    }

    fn leave(&self) {
        self.forget_locks();
    }

    fn cut_off(&self) {
        self.forget_locks();
        self.end_opens();
    }

    fn end(&self) {
        self.cut_off();
        if let Some(record) = &self.record {
            record.end();
        }
    }
}

impl View {
    fn nodes(&self) -> &Nodes {
        &self.share.nodes
    }

    /// The directory in which `name` is to be looked at or changed.
    fn dir(&self, parent: NodeId, name: &Name) -> Result<Arc<OwnedFd>, Errno> {
        if parent == NodeId::ROOT && name.as_bytes() == OURS {
            return Err(Errno::ENOENT);
        }
        self.nodes().find(parent)
    }

    /// Tells the session of a node: from now on it may name it.
    fn enter(&self, fd: &Arc<OwnedFd>, parent: NodeId, name: &Name) -> Result<Entry, Errno> {
        let entry = self.tell(fd, parent, name)?;
        self.nodes().hold(entry.node, fd);
        Ok(entry)
    }

    /// As [`Self::enter`], for a node that will hardly be used next: its descriptor is not kept.
    fn tell(&self, fd: &OwnedFd, parent: NodeId, name: &Name) -> Result<Entry, Errno> {
        let mut found = self.nodes().look(fd).map_err(errno)?;
        found.look_for_xattrs(fd.as_fd());
        Ok(self.told(&found, parent, name))
    }

    /// As [`Self::tell`], by the directory that the node is in.
    fn tell_at(&self, dir: BorrowedFd<'_>, parent: NodeId, name: &Name) -> Result<Entry, Errno> {
        if let Some(found) = self.nodes().look_at(dir, name) {
            return Ok(self.told(&found, parent, name));
        }
        let fd = beneath::hold(dir, name).map_err(errno)?;
        self.tell(&fd, parent, name)
    }

    fn told(&self, found: &Found, parent: NodeId, name: &Name) -> Entry {
        let mut known = lock(&self.known);
        let new = known.insert(found.id);
        self.nodes().remember(found, parent, name, new);
        Entry { node: found.id, attr: found.attr }
    }

    fn forget(&self, nodes: &[NodeId]) -> Result<(), Errno> {
        if nodes.len() > FORGET_NODES_MAX {
            return Err(Errno::EINVAL);
        }
        let mut known = lock(&self.known);
        let told = nodes.iter().copied().filter(|node| known.remove(node));
        self.share.nodes.forget(told);
        Ok(())
    }

    /// Puts all that was changed on the disk.
    fn sync_share(&self) -> Result<(), Errno> {
        // The kernel tells a failure once: who comes next must find it counted
        let _one_at_a_time = lock(&self.share.syncing);
        // Whatever it says, something may be lost
        rustix::fs::syncfs(self.nodes().root()).map_err(|error| self.disk_failed(error))
    }

    /// The disk failed to take data: what is not on it is not certain any more.
    fn disk_failed(&self, error: io::Errno) -> Errno {
        if let Some(record) = &self.record {
            record.handle_disk_failed();
        }
        errno(error)
    }

    fn handles(&self) -> MutexGuard<'_, HashMap<HandleId, Arc<OpenFile>>> {
        lock(&self.handles)
    }

    /// A handle of the session is closed.
    fn close(&self, handle: HandleId, open: Option<Arc<OpenFile>>) {
        self.close_locks(handle);
        self.share.opens.close(self.session, handle);
        if let Some(open) = open
            && meta::attr(open.path.as_fd()).is_ok_and(|attr| attr.nlink == 0)
        {
            self.nodes().let_go(open.node);
        }
    }

    /// What holds the node: its open file, which also reaches it unlinked, or whatever finds it.
    fn holder(&self, node: NodeId, handle: Option<HandleId>) -> Result<Arc<OwnedFd>, Errno> {
        match handle.map(|handle| self.handle(handle)) {
            Some(Ok(open)) if open.node == node => Ok(Arc::clone(&open.path)),
            _ => self.nodes().find(node),
        }
    }

    /// Gives an open file its number. One that is sent again stays the same open.
    fn admit(&self, handle: HandleId, open: OpenFile) -> Result<(), Errno> {
        match self.handle(handle) {
            Ok(same) if same.node == open.node => return Ok(()),
            Ok(_) => return Err(Errno::EINVAL),
            Err(_) => {}
        }
        if self.handles().len() >= HANDLES_MAX {
            return Err(Errno::EMFILE);
        }
        self.note_open(handle, open.node, open.access)?;
        self.handles().insert(handle, Arc::new(open));
        Ok(())
    }
}

impl Drop for View {
    fn drop(&mut self) {
        if let Some(records) = &self.records {
            records.detach(self.session);
        }
        let known = std::mem::take(&mut *lock(&self.known));
        self.share.nodes.forget(known);
    }
}

impl OpenFile {
    fn new(node: NodeId, path: Arc<OwnedFd>, file: OwnedFd, access: Access) -> Self {
        Self { node, path, file, access, position: Mutex::new(()) }
    }
}

/// The host's errno, as it crosses the wire.
fn errno(error: io::Errno) -> Errno {
    Errno::from_number(error.raw_os_error())
}

fn access_flags(access: Access) -> OFlags {
    match access {
        Access::Read => OFlags::RDONLY,
        Access::Write => OFlags::WRONLY,
        Access::ReadWrite => OFlags::RDWR,
    }
}

/// Every guarded value here is whole between any two statements.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// TOML's integers end at 2^63.
mod hexadecimal {
    use serde::{Deserialize, Deserializer, Serializer, de};

    pub(super) fn serialize<S: Serializer>(value: &u64, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&format!("{value:x}"))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<u64, D::Error> {
        let text = String::deserialize(from)?;
        u64::from_str_radix(&text, 16).map_err(de::Error::custom)
    }
}
