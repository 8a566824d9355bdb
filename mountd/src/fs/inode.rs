//! What is known of a node: changes under way, versions of its data, and who still refers to it.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use p2pfs::id::{NodeId, Seq};
use p2pfs::net::remote::Submitted;
use p2pfs::wire::call::{Attr, DataVersion, ReadVersion};
use p2pfs::wire::errno::Errno;
use tokio::sync::Notify;

use crate::fs::Kernel;
use crate::fs::errors::{At, Errors, Marks};
use crate::lock::lock;

/// setuid and setgid.
const PRIVILEGES: u32 = 0o6000;
/// How long the attributes that came with a directory's opening are an answer: as long as a program
/// takes from opening to `fstat`.
const OPENED: Duration = Duration::from_millis(5);

/// What a change that is under way will do to a file's length.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Effect {
    /// Nothing.
    None,
    /// It is at least so long afterwards.
    Extend(u64),
    /// It is exactly so long afterwards.
    Truncate(u64),
}

/// A node that the kernel knows, or that is open.
#[derive(Debug)]
pub(crate) struct Inode {
    pub(crate) node: NodeId,
    /// Grows whenever blocks that are being fetched must not be kept.
    epoch: AtomicU64,
    /// The directory where it was last seen, for `..`.
    parent: AtomicU64,
    settled: Notify,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// Changes that are shipped and not yet applied.
    pending: BTreeMap<Seq, Effect>,
    /// The last change.
    last: Seq,
    /// Of what was accepted.
    errors: Errors,
    /// What the host said after the latest of our changes.
    newest: Option<Newest>,
    /// The file system's tick when a change was last settled.
    settled: u64,
    /// The tick when the directory's names last changed by us.
    names: u64,
    /// What came with the opening of the directory, until anything else is asked or done.
    opened: Option<(Attr, Instant)>,
    /// The length as last seen.
    size: u64,
    /// Whether a write takes setuid or setgid away, as last seen.
    privileged: bool,
    /// When it was last seen to have no extended attributes.
    no_xattrs: Option<Instant>,
    /// The version that cached blocks belong to.
    cached: Option<DataVersion>,
    /// The version that the kernel's pages belong to.
    paged: Option<DataVersion>,
    /// Pages may hold data from before their version.
    loose: bool,
    /// So may what is read now.
    reads_loose: bool,
    /// The version that the kernel was last told of.
    told: Option<DataVersion>,
}

/// A node after one of our changes.
#[derive(Clone, Copy, Debug)]
struct Newest {
    seq: Seq,
    attr: Attr,
    tick: u64,
}

/// What came of looking at fresh attributes.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) struct Seen {
    /// Our own changes are still moving: the kernel must not keep these attributes.
    pub(crate) moving: bool,
    /// Somebody else changed the data: cached blocks are void.
    pub(crate) changed: bool,
}

/// What came of a read's version.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Checked {
    /// The data may be older than its version: it is not kept, and joined with nothing.
    pub(crate) loose: bool,
    /// Somebody else changed the data: what was cached before is void.
    pub(crate) changed: bool,
}

/// What an open tells the kernel.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct OpenCheck {
    /// The kernel's pages are still right.
    pub(crate) keep_pages: bool,
    /// The kernel's attributes are not.
    pub(crate) drop_attributes: bool,
}

impl Effect {
    fn on(self, size: u64) -> u64 {
        match self {
            Self::None => size,
            Self::Extend(end) => size.max(end),
            Self::Truncate(end) => end,
        }
    }
}

impl Inode {
    fn new(node: NodeId) -> Self {
        Self {
            node,
            epoch: AtomicU64::new(0),
            parent: AtomicU64::new(NodeId::ROOT.ino),
            settled: Notify::new(),
            state: Mutex::new(State::new()),
        }
    }

    pub(crate) fn epoch(&self) -> u64 {
        self.epoch.load(Ordering::SeqCst)
    }

    /// Voids what is being fetched; cached blocks must be dropped *after* this.
    pub(crate) fn next_epoch(&self) {
        self.epoch.fetch_add(1, Ordering::SeqCst);
    }

    pub(crate) fn parent(&self) -> u64 {
        self.parent.load(Ordering::Relaxed)
    }

    pub(crate) fn set_parent(&self, ino: u64) {
        self.parent.store(ino, Ordering::Relaxed);
    }

    /// Ships a change behind the ones that are under way.
    pub(crate) fn submit(&self, effect: Effect, ship: impl FnOnce() -> Submitted) -> Submitted {
        let mut state = lock(&self.state);
        let submitted = ship();
        state.opened = None;
        state.pending.insert(submitted.seq, effect);
        state.last = state.last.max(submitted.seq);
        submitted
    }

    /// Ships an append: the end of the file is where the changes under way will leave it.
    pub(crate) fn submit_append(
        &self,
        len: u64,
        ship: impl FnOnce(u64) -> Submitted,
    ) -> (u64, Submitted) {
        let mut state = lock(&self.state);
        let offset = state.expected_size(state.size);
        let submitted = ship(offset);
        let effect = Effect::Extend(offset.saturating_add(len));
        state.pending.insert(submitted.seq, effect);
        state.last = state.last.max(submitted.seq);
        (offset, submitted)
    }

    /// Notes what came of a change. `tick` is the file system's clock.
    pub(crate) fn settle(&self, seq: Seq, result: Result<Option<Attr>, Errno>, tick: u64) {
        let mut state = lock(&self.state);
        state.pending.remove(&seq);
        state.opened = None;
        state.settled = tick;
        match result {
            Ok(Some(attr)) if state.newest.is_none_or(|newest| newest.seq < seq) => {
                // pages that were right before our own change are right after it
                let right = state.paged.is_some() && state.paged == state.cached;
                let version = Some(attr.data_version());
                state.cached = version;
                state.paged = version.filter(|_| right);
                state.size = attr.size;
                state.privileged = attr.mode & PRIVILEGES != 0;
                state.newest = Some(Newest { seq, attr, tick });
            }
            _ => {}
        }
        drop(state);
        self.settled.notify_waiters();
    }

    /// Keeps the error of what was accepted, for the next call of each open file that can report
    /// it.
    pub(crate) fn keep_error(&self, error: Errno) {
        lock(&self.state).errors.keep(error);
    }

    /// Of which errors a file that is opened now needs not be told.
    pub(crate) fn error_marks(&self) -> Marks {
        lock(&self.state).errors.marks()
    }

    pub(crate) fn tell_error(&self, marks: &mut Marks, at: At) -> Result<(), Errno> {
        lock(&self.state).errors.tell(marks, at)
    }

    /// The last change of this node that was shipped.
    pub(crate) fn last(&self) -> Seq {
        lock(&self.state).last
    }

    pub(crate) fn is_settled(&self) -> bool {
        lock(&self.state).pending.is_empty()
    }

    /// Waits until all changes up to `upto` are applied or refused.
    pub(crate) async fn applied(&self, upto: Seq) {
        loop {
            let settled = self.settled.notified();
            tokio::pin!(settled);
            settled.as_mut().enable();
            if self.is_applied(upto) {
                return;
            }
            settled.await;
        }
    }

    pub(crate) fn is_applied(&self, upto: Seq) -> bool {
        let state = lock(&self.state);
        state.pending.keys().next().is_none_or(|first| *first > upto)
    }

    /// The length as last seen, with what is under way.
    pub(crate) fn size(&self) -> u64 {
        let state = lock(&self.state);
        state.expected_size(state.size)
    }

    /// Looks at attributes that the host gave to a question asked at tick `asked`, and puts our own
    /// changes on top of them.
    pub(crate) fn observe(&self, attr: &mut Attr, asked: u64) -> Seen {
        let mut state = lock(&self.state);
        let mut seen = Seen { moving: !state.pending.is_empty(), changed: false };
        if state.settled > asked {
            // the answer may be older than what our own change brought back
            seen.moving = true;
            if let Some(newest) = state.newest.filter(|newest| newest.tick > asked) {
                *attr = newest.attr;
            }
        }
        if !seen.moving && attr.is_file() {
            let version = Some(attr.data_version());
            seen.changed = state.cached.is_some() && state.cached != version;
            state.cached = version;
        }
        state.no_xattrs = (attr.lacks_xattrs() && !seen.moving).then(Instant::now);
        state.privileged = attr.mode & PRIVILEGES != 0;
        state.size = attr.size;
        attr.size = state.expected_size(attr.size);
        state.told = Some(attr.data_version());
        seen
    }

    /// Looks at the version that a read has found, of which no change of ours came between.
    pub(crate) fn check_read(&self, found: &ReadVersion) -> Checked {
        let mut state = lock(&self.state);
        if !state.pending.is_empty() {
            return Checked { loose: true, changed: false };
        }
        // after a change of ours nobody else's is under way
        let ours = state.newest.is_some_and(|newest| newest.attr.data_version() == found.version);
        let loose = found.recent && !ours;
        let changed = state.cached.is_some_and(|cached| cached != found.version);
        state.cached = Some(found.version);
        state.size = found.version.size;
        state.loose |= loose;
        state.reads_loose = loose;
        if changed {
            state.paged = None;
        }
        Checked { loose, changed }
    }

    /// Whether the last read has found data that may be older than its version.
    pub(crate) fn reads_loose(&self) -> bool {
        lock(&self.state).reads_loose
    }

    /// The close-to-open check, after [`Self::observe`] of the open's attributes; `before` is what
    /// the kernel had been told until then.
    pub(crate) fn check_open(&self, before: Option<DataVersion>) -> OpenCheck {
        let mut state = lock(&self.state);
        let keep_pages = state.paged.is_some() && state.paged == state.cached && !state.loose;
        state.loose = false;
        state.paged = state.cached;
        OpenCheck { keep_pages, drop_attributes: before != state.told }
    }

    /// Which version the kernel was last told of.
    pub(crate) fn told(&self) -> Option<DataVersion> {
        lock(&self.state).told
    }

    /// Whether the kernel may have pages that are right, as far as is known.
    pub(crate) fn has_pages(&self) -> bool {
        let state = lock(&self.state);
        state.paged.is_some() && state.paged == state.cached
    }

    /// The kernel's pages are no longer what the host has: the next open must not keep them.
    pub(crate) fn void_pages(&self) {
        lock(&self.state).paged = None;
    }

    /// Whether a write takes setuid or setgid away: the kernel then has the wrong mode.
    pub(crate) fn is_privileged(&self) -> bool {
        lock(&self.state).privileged
    }

    /// Whether it has no extended attributes, as far as attributes are kept.
    pub(crate) fn lacks_xattrs(&self, fresh: Duration) -> bool {
        lock(&self.state).no_xattrs.is_some_and(|at| at.elapsed() < fresh)
    }

    /// An attribute is being set.
    pub(crate) fn may_have_xattrs(&self) {
        lock(&self.state).no_xattrs = None;
    }

    /// Our own change of the directory's names, at `tick`.
    pub(crate) fn rename_tick(&self, tick: u64) {
        let mut state = lock(&self.state);
        state.names = tick;
        state.opened = None;
    }

    /// Attributes that came with the opening of a directory.
    pub(crate) fn note_opened(&self, attr: Attr) {
        lock(&self.state).opened = Some((attr, Instant::now()));
    }

    /// Those, once: whoever walks a tree asks for them right after the opening.
    pub(crate) fn take_opened(&self) -> Option<Attr> {
        let (attr, at) = lock(&self.state).opened.take()?;
        (at.elapsed() < OPENED).then_some(attr)
    }

    /// They are as old as what comes next.
    pub(crate) fn forget_opened(&self) {
        lock(&self.state).opened = None;
    }

    /// When the directory's names last changed by us.
    pub(crate) fn names(&self) -> u64 {
        lock(&self.state).names
    }
}

impl State {
    fn new() -> Self {
        Self {
            pending: BTreeMap::new(),
            last: Seq::ZERO,
            errors: Errors::default(),
            newest: None,
            settled: 0,
            names: 0,
            opened: None,
            size: 0,
            privileged: false,
            no_xattrs: None,
            cached: None,
            paged: None,
            loose: false,
            reads_loose: false,
            told: None,
        }
    }

    fn expected_size(&self, size: u64) -> u64 {
        let effects = self.pending.values();
        effects.fold(size, |size, effect| effect.on(size))
    }
}

/// The nodes that the kernel refers to by their inode numbers.
///
/// The kernel counts its references per number, whatever generation the number has; a number that
/// the host uses again is the newer node from then on, and old open files go on by their handles.
pub(crate) struct InodeTable {
    slots: Mutex<HashMap<u64, Slot>>,
    /// Told of each number that comes or goes.
    kernel: Arc<dyn Kernel>,
}

#[derive(Debug)]
struct Slot {
    inode: Arc<Inode>,
    lookups: u64,
}

impl InodeTable {
    pub(crate) fn new(kernel: Arc<dyn Kernel>) -> Self {
        kernel.knows(NodeId::ROOT.ino);
        let root = Slot { inode: Arc::new(Inode::new(NodeId::ROOT)), lookups: 1 };
        Self { slots: Mutex::new(HashMap::from([(NodeId::ROOT.ino, root)])), kernel }
    }

    /// The node behind a number that the kernel says.
    pub(crate) fn get(&self, ino: u64) -> Result<Arc<Inode>, Errno> {
        let slots = lock(&self.slots);
        slots.get(&ino).map(|slot| Arc::clone(&slot.inode)).ok_or(Errno::ESTALE)
    }

    /// The node, with one more reference of the kernel. Also gives back the node that had the
    /// number before.
    pub(crate) fn refer(&self, node: NodeId) -> (Arc<Inode>, Option<NodeId>) {
        let mut slots = lock(&self.slots);
        let slot = slots.entry(node.ino).or_insert_with(|| {
            self.kernel.knows(node.ino);
            Slot { inode: Arc::new(Inode::new(node)), lookups: 0 }
        });
        slot.lookups += 1;
        let mut replaced = None;
        if slot.inode.node != node && node.ino != NodeId::ROOT.ino {
            replaced = Some(slot.inode.node);
            slot.inode = Arc::new(Inode::new(node));
        }
        (Arc::clone(&slot.inode), replaced)
    }

    /// The numbers of all nodes, those first of which the kernel may have pages.
    pub(crate) fn numbers(&self) -> Vec<u64> {
        let slots = lock(&self.slots);
        let (mut paged, rest): (Vec<&Slot>, Vec<&Slot>) =
            slots.values().partition(|slot| lock(&slot.inode.state).paged.is_some());
        paged.extend(rest);
        paged.into_iter().map(|slot| slot.inode.node.ino).collect()
    }

    /// Takes references away; true if none is left.
    pub(crate) fn forget(&self, ino: u64, count: u64) -> bool {
        if ino == NodeId::ROOT.ino {
            return false;
        }
        let mut slots = lock(&self.slots);
        slots.get_mut(&ino).is_some_and(|slot| {
            slot.lookups = slot.lookups.saturating_sub(count);
            slot.lookups == 0
        })
    }

    /// Drops a node that nobody refers to. `Err` if it must wait for its changes, `Ok(None)` if it
    /// is in use again.
    pub(crate) fn remove_idle(&self, ino: u64) -> Result<Option<NodeId>, Moving> {
        let mut slots = lock(&self.slots);
        let Some(slot) = slots.get(&ino).filter(|slot| slot.lookups == 0) else {
            return Ok(None);
        };
        if !slot.inode.is_settled() {
            return Err(Moving);
        }
        self.kernel.forgot(ino);
        Ok(slots.remove(&ino).map(|slot| slot.inode.node))
    }
}

/// Changes of the node are still under way.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Moving;

#[cfg(test)]
mod tests {
    use super::*;

    /// A kernel that nobody needs to tell anything.
    struct Deaf;

    impl Kernel for Deaf {
        fn drop_attributes(&self, _ino: u64) {}

        fn drop_pages(&self, _ino: u64) {}
    }

    const OLD: NodeId = NodeId { ino: 7, generation: 1 };
    const NEW: NodeId = NodeId { ino: 7, generation: 2 };

    #[test]
    fn references_are_counted_over_generations_of_one_number() {
        let table = InodeTable::new(Arc::new(Deaf));
        table.refer(OLD);
        let (inode, replaced) = table.refer(NEW);
        assert_eq!((inode.node, replaced), (NEW, Some(OLD)));
        assert!(!table.forget(7, 1));
        assert!(table.forget(7, 1));
        assert_eq!(table.remove_idle(7), Ok(Some(NEW)));
        assert_eq!(table.get(7).unwrap_err(), Errno::ESTALE);
    }

    #[test]
    fn a_node_that_is_looked_up_again_is_not_removed() {
        let table = InodeTable::new(Arc::new(Deaf));
        table.refer(OLD);
        assert!(table.forget(7, 1));
        table.refer(OLD);
        assert_eq!(table.remove_idle(7), Ok(None));
    }

    #[test]
    fn the_root_is_never_forgotten() {
        let table = InodeTable::new(Arc::new(Deaf));
        assert!(!table.forget(1, 100));
        assert_eq!(table.get(1).unwrap().node, NodeId::ROOT);
    }
}
