//! What the mount does, without FUSE: nodes, open files, caching, write-behind.
//!
//! * Reading is close to open: an open asks the host for fresh attributes, and what is cached of an
//!   older version is dropped.
//! * A `write` is accepted when the log has room for it; everything else waits until the host has
//!   applied it. Errors of accepted writes come back with the file's next write, sync or close.
//! * Attributes that the kernel is told always include the writes that were accepted before.

mod dir;
mod errors;
mod glance;
mod handle;
mod inode;
mod lock;
mod open;
mod read;
mod space;
#[cfg(test)]
mod tests;
mod write;
mod xattr;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use p2pfs::id::{HandleId, NodeId, Seq};
use p2pfs::limits::FORGET_NODES_MAX;
use p2pfs::net::remote::{BoxFuture, Remote, Submitted};
use p2pfs::wire::call::{Access, Asked, Attr, Call, Entry, Reply};
use p2pfs::wire::errno::Errno;
use p2pfs::wire::log::{
    AttrChange, Change, Mutation, NodeRef, Occupant, Opening, Outcome, RenameMode,
};
use p2pfs::wire::name::{Name, Target};

use tokio::sync::watch;

use crate::cache::BlockCache;
use crate::caller;
use crate::lock::lock;

pub use dir::{COOKIE_DOT, COOKIE_DOT_DOT, Portion};
use glance::Glance;
use handle::{Handle, HandleTable};
pub(crate) use inode::Inode;
use inode::{Effect, InodeTable};
use lock::LockBook;
pub use lock::LockedBytes;
pub(crate) use read::COPY_BYTES;
use space::Space;
pub use write::{Until, WriteMode};

/// How long a node that the kernel let go stays known: directories are often walked twice.
const FORGET_AFTER: Duration = Duration::from_secs(1);

/// How long the kernel may keep names and attributes at least, and at most: over a long link, where
/// asking again takes its time, [`KEEP_ROUND_TRIPS`].
const KEEP_MIN: Duration = Duration::from_secs(1);
const KEEP_MAX: Duration = Duration::from_secs(5);
const KEEP_ROUND_TRIPS: u32 = 100;

/// What the file system tells the kernel by itself.
pub trait Kernel: Send + Sync {
    /// From now on the kernel may keep something of this node.
    fn knows(&self, _ino: u64) {}

    /// The kernel has let go of this node.
    fn forgot(&self, _ino: u64) {}

    /// Attributes of this node are out of date. Never waits; may be called while a request of the
    /// node is being answered.
    fn drop_attributes(&self, ino: u64);

    /// Pages of this node are out of date. Only queues.
    fn drop_pages(&self, ino: u64);

    /// As [`Self::drop_pages`]; resolves when it is done.
    fn pages_dropped(&self, ino: u64) -> BoxFuture<()> {
        self.drop_pages(ino);
        Box::pin(std::future::ready(()))
    }
}

/// A share as a file system.
pub struct Fs {
    remote: Arc<dyn Remote>,
    kernel: Arc<dyn Kernel>,
    cache: Arc<BlockCache>,
    inodes: InodeTable,
    handles: HandleTable,
    locks: LockBook,
    /// Grows with every change that is settled: tells answers from before and after it apart.
    ticks: AtomicU64,
    /// The last entry of the log.
    last: AtomicU64,
    idle: Mutex<Vec<u64>>,
    /// Handles that the host is to be told of.
    closed: Mutex<Vec<Arc<Handle>>>,
    /// How many of them it has not answered.
    unreleased: watch::Sender<usize>,
    space: Space,
    /// Held while refusals that came late are noted.
    undoing: Mutex<()>,
    /// What was seen of the root when the mount began.
    glance: Mutex<Option<Glance>>,
    /// How long the kernel may keep what it is told, milliseconds.
    keep: AtomicU64,
    /// Whether the host is told who asks (`map=identity`).
    tells_caller: AtomicBool,
    /// Whether the kernel asks for `security.capability` before each write: not if it leaves to the
    /// host what a write takes away.
    asks_capability: AtomicBool,
}

/// A node as the kernel is told of it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Found {
    /// The node.
    pub node: NodeId,
    /// Its attributes, with the writes that are under way.
    pub attr: Attr,
    /// How long the kernel may keep them: not while changes of ours are under way.
    pub keep: Duration,
}

impl Found {
    /// Whether the kernel may keep it for a while.
    pub fn is_settled(&self) -> bool {
        !self.keep.is_zero()
    }
}

/// An open file.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Opened {
    /// Its number.
    pub handle: HandleId,
    /// The kernel's pages of the file are still right.
    pub keep_pages: bool,
    /// The kernel keeps no pages for this handle: where its data goes is not known beforehand.
    pub direct: bool,
}

/// How a file is opened.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct OpenMode {
    /// Directions.
    pub access: Access,
    /// `O_APPEND`
    pub append: bool,
    /// `O_EXCL`, where the file is made.
    pub exclusive: bool,
    /// `O_TRUNC`, where the file is made.
    pub truncate: bool,
}

impl Fs {
    /// A file system on a share, with a block cache of `budget` bytes.
    pub fn new(remote: Arc<dyn Remote>, kernel: Arc<dyn Kernel>, budget: u64) -> Arc<Self> {
        Arc::new(Self {
            remote,
            inodes: InodeTable::new(Arc::clone(&kernel)),
            kernel,
            cache: Arc::new(BlockCache::new(budget)),
            handles: HandleTable::default(),
            locks: LockBook::default(),
            ticks: AtomicU64::new(0),
            last: AtomicU64::new(0),
            idle: Mutex::default(),
            closed: Mutex::default(),
            unreleased: watch::Sender::new(0),
            space: Space::default(),
            undoing: Mutex::default(),
            glance: Mutex::default(),
            keep: AtomicU64::new(KEEP_MIN.as_millis() as u64),
            tells_caller: AtomicBool::new(false),
            asks_capability: AtomicBool::new(true),
        })
    }

    /// From now on the host is told who asks: it acts as that user.
    pub fn tell_callers(&self) {
        self.tells_caller.store(true, Ordering::Relaxed);
    }

    /// Whether the host is told who asks.
    pub fn tells_callers(&self) -> bool {
        self.tells_caller.load(Ordering::Relaxed)
    }

    /// The block cache, for its counters.
    pub fn cache(&self) -> &BlockCache {
        &self.cache
    }

    /// The entry `name` of a directory; counts a reference of the kernel.
    pub async fn lookup(&self, parent: u64, name: Name) -> Result<Found, Errno> {
        let directory = self.inodes.get(parent)?;
        if let Some(found) = self.glanced(&directory, &name) {
            return Ok(found);
        }
        let asked = self.tick();
        let call = Asked::Lookup { parent: directory.node, name };
        match self.remote.call(self.by_caller(call)).await?.0 {
            Reply::Entry(entry) => Ok(self.found(entry, parent, asked)),
            _ => Err(Errno::EPROTO),
        }
    }

    /// Attributes. Waits for the writes that were accepted before: `fstat` shows their times too.
    pub async fn getattr(
        self: &Arc<Self>,
        ino: u64,
        handle: Option<HandleId>,
    ) -> Result<Found, Errno> {
        match handle {
            None if ino == NodeId::ROOT.ino => self.root().await,
            _ => self.ask_attributes(ino, handle).await,
        }
    }

    async fn ask_attributes(&self, ino: u64, handle: Option<HandleId>) -> Result<Found, Errno> {
        let inode = self.node(ino, handle)?;
        if let Some(attr) = inode.take_opened() {
            return Ok(Found { node: inode.node, attr, keep: self.keep() });
        }
        self.applied(&inode, inode.last()).await?;
        let asked = self.tick();
        let call = Call::GetAttr { node: inode.node, handle };
        match self.remote.call(call).await?.0 {
            Reply::Attr(attr) => Ok(self.seen(&inode, attr, asked)),
            _ => Err(Errno::EPROTO),
        }
    }

    /// Changes attributes.
    pub async fn setattr(
        self: &Arc<Self>,
        ino: u64,
        handle: Option<HandleId>,
        change: AttrChange,
    ) -> Result<Found, Errno> {
        let inode = self.node(ino, handle)?;
        let effect = change.size.map_or(Effect::None, Effect::Truncate);
        let mutation = Mutation::SetAttr { node: inode.node.into(), handle, change };
        match self.change(&inode, effect, mutation, Bytes::new()).await? {
            Outcome::Attr(attr) => Ok(self.seen(&inode, attr, self.tick())),
            _ => Err(Errno::EPROTO),
        }
    }

    /// A symlink's target.
    pub async fn readlink(&self, ino: u64) -> Result<Target, Errno> {
        let node = self.inodes.get(ino)?.node;
        match self.remote.call(Call::ReadLink { node }).await?.0 {
            Reply::Target(target) => Ok(target),
            _ => Err(Errno::EPROTO),
        }
    }

    /// Makes what `mutation` says in a directory: `Mkdir`, `Mknod` or `Symlink` built from the node
    /// that the directory is. Counts a reference of the kernel.
    pub async fn make(
        &self,
        parent: u64,
        mutation: impl FnOnce(NodeRef) -> Mutation,
    ) -> Result<Found, Errno> {
        let directory = self.inodes.get(parent)?;
        let asked = self.tick();
        let outcome = self.name_change(&[&directory], mutation(directory.node.into())).await?;
        match outcome {
            Outcome::Entry(entry) => Ok(self.found(entry, parent, asked)),
            _ => Err(Errno::EPROTO),
        }
    }

    /// Another name for a node; counts a reference of the kernel.
    pub async fn link(self: &Arc<Self>, ino: u64, parent: u64, name: Name) -> Result<Found, Errno> {
        let (inode, directory) = (self.inodes.get(ino)?, self.inodes.get(parent)?);
        let mutation =
            Mutation::Link { node: inode.node.into(), parent: directory.node.into(), name };
        directory.rename_tick(self.next_tick());
        let outcome = self.change(&inode, Effect::None, mutation, Bytes::new()).await;
        directory.rename_tick(self.next_tick());
        match outcome? {
            Outcome::Entry(entry) => Ok(self.found(entry, parent, self.tick())),
            _ => Err(Errno::EPROTO),
        }
    }

    /// Takes a file's name away.
    pub async fn unlink(self: &Arc<Self>, parent: u64, name: Name) -> Result<(), Errno> {
        let directory = self.inodes.get(parent)?;
        if self.is_tight(0) {
            self.released().await;
        }
        let parent = directory.node.into();
        let mutation = Mutation::Unlink { parent, name, occupant: Occupant::Any };
        self.name_change(&[&directory], mutation).await.map(drop)
    }

    /// Removes an empty directory.
    pub async fn rmdir(&self, parent: u64, name: Name) -> Result<(), Errno> {
        let directory = self.inodes.get(parent)?;
        let parent = directory.node.into();
        let mutation = Mutation::Rmdir { parent, name, occupant: Occupant::Any };
        self.name_change(&[&directory], mutation).await.map(drop)
    }

    /// Moves an entry.
    pub async fn rename(
        &self,
        from: (u64, Name),
        to: (u64, Name),
        mode: RenameMode,
    ) -> Result<(), Errno> {
        let (old, new) = (self.inodes.get(from.0)?, self.inodes.get(to.0)?);
        let mutation = Mutation::Rename {
            parent: old.node.into(),
            name: from.1,
            occupant: Occupant::Any,
            new_parent: new.node.into(),
            new_name: to.1,
            new_occupant: Occupant::Any,
            mode,
        };
        self.name_change(&[&old, &new], mutation).await.map(drop)
    }

    /// Makes a file if it is not there, and opens it; counts a reference of the kernel.
    pub async fn create(
        self: &Arc<Self>,
        parent: u64,
        name: Name,
        mode: u32,
        how: OpenMode,
    ) -> Result<(Found, Opened), Errno> {
        let directory = self.inodes.get(parent)?;
        let handle = self.handles.number()?;
        let asked = self.tick();
        let mutation = Mutation::Create {
            parent: directory.node.into(),
            name,
            mode,
            exclusive: how.exclusive,
            premade: None,
            open: Some(Opening { handle, access: how.access }),
        };
        let directories = [&directory];
        let outcome = self.opening(handle, self.name_change(&directories, mutation)).await?;
        let Outcome::Entry(entry) = outcome else {
            return Err(Errno::EPROTO);
        };
        let mut found = self.found(entry, parent, asked);
        let inode = self.inodes.get(entry.node.ino)?;
        let check = inode.check_open(inode.told());
        self.insert_handle(handle, inode, how.access);
        if how.truncate && found.attr.size > 0 {
            // somebody else made it since the kernel looked
            let change = AttrChange { size: Some(0), ..AttrChange::default() };
            found = self.setattr(entry.node.ino, Some(handle), change).await?;
        }
        let keep_pages = check.keep_pages;
        Ok((found, Opened { handle, keep_pages, direct: how.append }))
    }

    /// The kernel let go `count` references of a node.
    pub fn forget(&self, ino: u64, count: u64) {
        if self.inodes.forget(ino, count) {
            lock(&self.idle).push(ino);
        }
    }

    /// How long the kernel may keep what it is told now.
    fn keep(&self) -> Duration {
        Duration::from_millis(self.keep.load(Ordering::Relaxed))
    }

    fn note_link(&self) {
        let round_trips = self.remote.round_trip().saturating_mul(KEEP_ROUND_TRIPS);
        let keep = round_trips.clamp(KEEP_MIN, KEEP_MAX);
        self.keep.store(keep.as_millis() as u64, Ordering::Relaxed);
    }

    /// Does from now on what nobody asks for, until the file system is dropped: keeps host and
    /// kernel up with each other.
    pub fn keep_up(self: Arc<Self>) {
        tokio::spawn(Arc::clone(&self).undone_for_ever());
        tokio::spawn(self.forget_for_ever());
    }

    /// Tells the host which nodes the kernel let go, again and again until the file system is
    /// dropped.
    pub async fn forget_for_ever(self: Arc<Self>) {
        let fs = Arc::downgrade(&self);
        drop(self);
        let mut interval = tokio::time::interval(FORGET_AFTER);
        interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            interval.tick().await;
            let Some(fs) = fs.upgrade() else { return };
            fs.note_link();
            fs.forget_idle().await;
        }
    }

    async fn forget_idle(&self) {
        let mut nodes = Vec::new();
        for ino in std::mem::take(&mut *lock(&self.idle)) {
            match self.inodes.remove_idle(ino) {
                Ok(Some(node)) => nodes.push(node),
                Ok(None) => {}
                Err(inode::Moving) => lock(&self.idle).push(ino),
            }
        }
        for node in &nodes {
            self.cache.drop_node(*node);
        }
        for nodes in nodes.chunks(FORGET_NODES_MAX) {
            let nodes = nodes.to_vec();
            if let Err(error) = self.remote.call(Call::Forget { nodes }).await {
                tracing::debug!(%error, "the host did not take a forget");
            }
        }
    }

    /// Nobody waits for a request any longer: what was begun for it is given up.
    pub(crate) fn end_wait(&self, wait: &caller::Wait) {
        for seq in wait.end() {
            self.remote.strike(seq);
        }
    }

    /// The numbers of all nodes that the kernel may know, those first of which it may have pages.
    pub fn numbers(&self) -> Vec<u64> {
        self.inodes.numbers()
    }

    /// The last change that was shipped.
    pub fn last(&self) -> Seq {
        Seq(self.last.load(Ordering::SeqCst))
    }

    /// Waits until everything that was accepted is on the host's disk.
    pub async fn sync_all(&self) -> Result<(), Errno> {
        self.sync_upto(self.last()).await
    }

    /// Waits until the changes up to `upto` are on the host's disk.
    pub async fn sync_upto(&self, upto: Seq) -> Result<(), Errno> {
        self.remote.call(Call::SyncAll { upto }).await.map(drop)
    }

    /// Asks for the root and the space, so that a mount is only usable when the host answers, and
    /// `df` has something to say from then on. All in one round trip.
    pub async fn check(self: &Arc<Self>) -> Result<Found, Errno> {
        let root = self.getattr(NodeId::ROOT.ino, None);
        let (space, root, ()) = tokio::join!(self.statfs(), root, self.glance());
        space.and(root)
    }

    // ------------------------------------------------------------------ shared by the parts

    fn insert_handle(&self, id: HandleId, inode: Arc<Inode>, access: Access) -> Arc<Handle> {
        self.handles.insert(Handle::new(id, inode, access))
    }

    /// The node of a request: with a handle the one that was opened, which may be unlinked.
    fn node(&self, ino: u64, handle: Option<HandleId>) -> Result<Arc<Inode>, Errno> {
        match handle {
            Some(handle) => Ok(Arc::clone(&self.handles.get(handle)?.inode)),
            None => self.inodes.get(ino),
        }
    }

    fn tick(&self) -> u64 {
        self.ticks.load(Ordering::SeqCst)
    }

    fn next_tick(&self) -> u64 {
        self.ticks.fetch_add(1, Ordering::SeqCst) + 1
    }

    fn submit(&self, mutation: Mutation, body: Bytes) -> Submitted {
        let caller = self.tells_callers().then(caller::current);
        let change = Change { caller, ..Change::new(mutation) };
        let submitted = self.remote.submit(change, body);
        self.last.fetch_max(submitted.seq.0, Ordering::SeqCst);
        if !caller::note(submitted.seq) {
            self.remote.strike(submitted.seq);
        }
        submitted
    }

    /// A call as the host is to answer it.
    fn by_caller(&self, asked: Asked) -> Call {
        match self.tells_callers() {
            true => Call::As { caller: caller::current(), asked },
            false => asked.into(),
        }
    }

    /// Changes names in directories, and waits until it is applied.
    async fn name_change(
        &self,
        directories: &[&Arc<Inode>],
        mutation: Mutation,
    ) -> Result<Outcome, Errno> {
        // before and after: a page that was asked in between shows neither state for sure
        let submitted = self.submit(mutation, Bytes::new());
        for directory in directories {
            directory.rename_tick(self.next_tick());
        }
        let outcome = submitted.wait().await;
        for directory in directories {
            directory.rename_tick(self.next_tick());
        }
        if let Ok(Outcome::Renamed { node, .. } | Outcome::Removed { node, .. }) = outcome
            && let Ok(moved) = self.inodes.get(node.ino)
        {
            moved.forget_opened();
        }
        outcome
    }

    /// Changes a node behind its other changes, and waits until it is applied.
    async fn change(
        self: &Arc<Self>,
        inode: &Arc<Inode>,
        effect: Effect,
        mutation: Mutation,
        body: Bytes,
    ) -> Result<Outcome, Errno> {
        let resized = effect != Effect::None;
        let submitted = inode.submit(effect, || self.submit(mutation, body));
        if resized {
            self.drop_blocks(inode);
        }
        let seq = submitted.seq;
        let outcome = submitted.wait().await;
        let attr = outcome.map(|outcome| match outcome {
            Outcome::Attr(attr) | Outcome::Appended { attr, .. } | Outcome::Copied { attr, .. } => {
                Some(attr)
            }
            Outcome::Entry(entry) => Some(entry.attr),
            Outcome::Done | Outcome::Removed { .. } | Outcome::Renamed { .. } => None,
        });
        // the answer is not kept from whoever waits because older data cannot be delivered
        let _ = self.applied(inode, Seq(seq.0.saturating_sub(1))).await;
        inode.settle(seq, attr, self.next_tick());
        if resized {
            self.drop_blocks(inode);
        }
        outcome
    }

    /// Waits until the node's changes up to `upto` are applied or refused, or the host is given up.
    async fn applied(&self, inode: &Inode, upto: Seq) -> Result<(), Errno> {
        if inode.is_applied(upto) {
            return Ok(());
        }
        tokio::select! {
            () = inode.applied(upto) => Ok(()),
            errno = self.remote.given_up() => Err(errno),
        }
    }

    fn drop_blocks(&self, inode: &Inode) {
        inode.next_epoch();
        self.cache.drop_node(inode.node);
    }

    /// A node that the host told of, with one more reference.
    fn found(&self, entry: Entry, parent: u64, asked: u64) -> Found {
        let (inode, replaced) = self.inodes.refer(entry.node);
        if let Some(old) = replaced {
            self.cache.drop_node(old);
        }
        inode.set_parent(parent);
        self.seen(&inode, entry.attr, asked)
    }

    /// Attributes that the host told at tick `asked` or later, as the kernel is told of them.
    fn seen(&self, inode: &Inode, mut attr: Attr, asked: u64) -> Found {
        let seen = inode.observe(&mut attr, asked);
        if seen.changed {
            self.drop_blocks(inode);
        }
        let keep = if seen.moving { Duration::ZERO } else { self.keep() };
        Found { node: inode.node, attr, keep }
    }
}

impl std::fmt::Debug for Fs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Fs").finish_non_exhaustive()
    }
}
