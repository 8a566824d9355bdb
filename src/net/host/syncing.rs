//! When what sessions changed is put on the disk, and what is stable then.
//!
//! A sync is for all sessions of the share, whoever asked for it. A session does again, after a
//! power cut, what was not stable: that must not write over what another one was told is on the
//! disk. So before this is said, what others changed before of the same nodes is stable too, and
//! recorded where no power cut takes it away: their clients may not have heard of it.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::oneshot;

use crate::id::{Epoch, Seq};
use crate::net::host::session::{HostSession, SessionApplier, begin_record, blocking};
use crate::wire::call::{Call, Reply};
use crate::wire::errno::Errno;

/// How long a sync waits for entries of others that wait for entries on their way.
const GAP_MAX: Duration = Duration::from_secs(2);

/// All sessions of a host.
#[derive(Clone, Debug, Default)]
pub(super) struct Neighbours(Arc<Mutex<Vec<Weak<HostSession>>>>);

impl Neighbours {
    pub(super) fn join(&self, session: &Arc<HostSession>) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|one| one.strong_count() > 0);
        all.push(Arc::downgrade(session));
    }

    /// Other sessions of the same share.
    fn of(&self, session: &HostSession) -> Vec<Arc<HostSession>> {
        let Some(root) = session.authorised.export.root() else { return Vec::new() };
        let all: Vec<_> = {
            let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            all.iter().filter_map(Weak::upgrade).collect()
        };
        let is_one = |one: &Arc<HostSession>| {
            one.id() != session.id() && one.authorised.export.root() == Some(root)
        };
        all.into_iter().filter(is_one).collect()
    }
}

/// Another session, as far as it is before a sync.
struct Neighbour {
    session: Arc<HostSession>,
    epoch: Epoch,
    cursor: Seq,
    /// The last entry, not stable, that changes what the syncing session changed too.
    shared: Option<Seq>,
}

impl Neighbour {
    /// The share is synced.
    fn synced(&self) {
        let cursor = self.cursor;
        self.session.synced(self.epoch, |applier, now| applier.handle_synced_unasked(cursor, now));
    }

    /// What is stable stays so in a crash, though its client may not have heard of it.
    fn keep(&self) {
        // the record says so already
        let stable = self.session.lock().applier.stable().0;
        if stable <= self.session.kept.load(Ordering::SeqCst) {
            return;
        }
        match self.session.authorised.export.keep_record() {
            Ok(()) => drop(self.session.kept.fetch_max(stable, Ordering::SeqCst)),
            Err(error) => {
                tracing::warn!(%error, "a session's record could not be put on the disk");
            }
        }
    }
}

impl HostSession {
    /// Carries out a call, a sync with what it depends on. May wait for a disk.
    pub(super) fn carry_out(self: &Arc<Self>, call: Call) -> Result<(Reply, Bytes), Errno> {
        let export = &self.authorised.export;
        match &call {
            Call::SyncAll { .. } => {
                let neighbours = self.neighbours_now();
                let answer = export.call(call)?;
                neighbours.iter().for_each(Neighbour::synced);
                neighbours.iter().for_each(Neighbour::keep);
                Ok(answer)
            }
            Call::Sync { .. } => {
                let neighbours = self.neighbours_now();
                if neighbours.iter().any(|one| one.shared.is_some()) {
                    export.sync_all()?;
                    neighbours.iter().for_each(Neighbour::synced);
                }
                neighbours.iter().for_each(Neighbour::keep);
                export.call(call)
            }
            _ => export.call(call),
        }
    }

    /// Waits until what others changed of the same nodes can be made stable: entries before it may
    /// still be on their way.
    pub(super) async fn wait_for_neighbours(self: &Arc<Self>) {
        let mut gaps = Vec::new();
        for Neighbour { session, cursor, shared, .. } in self.neighbours_now() {
            let Some(shared) = shared.filter(|shared| *shared > cursor) else { continue };
            if session.is_connected() {
                let (reached, is_reached) = oneshot::channel();
                session.change(|applier| applier.wait_for(shared, reached));
                gaps.push(is_reached);
            }
        }
        let closed = async {
            for gap in gaps {
                // it never is if the session ends
                let _ = gap.await;
            }
        };
        let _ = tokio::time::timeout(GAP_MAX, closed).await;
    }

    fn neighbours_now(&self) -> Vec<Neighbour> {
        let others = self.neighbours.of(self);
        if others.is_empty() {
            return Vec::new();
        }
        let nodes = self.lock().applier.unstable_nodes();
        let now = |session: Arc<Self>| {
            let state = session.lock();
            let (epoch, cursor) = (state.applier.epoch(), state.applier.cursor());
            let shared = state.applier.last_unstable(nodes.as_ref());
            drop(state);
            Neighbour { session, epoch, cursor, shared }
        };
        others.into_iter().map(now).collect()
    }

    /// Syncs the share, for all sessions with it but this one, which reports itself. May wait
    /// for a disk.
    fn sync_disk(&self) -> Result<(), Errno> {
        let neighbours = self.neighbours_now();
        self.authorised.export.sync_all()?;
        neighbours.iter().for_each(Neighbour::synced);
        Ok(())
    }

    /// The applier wants everything up to `upto` stable.
    pub(super) fn sync(self: &Arc<Self>, epoch: Epoch, upto: Seq) {
        let session = Arc::clone(self);
        tokio::task::spawn_blocking(move || match session.sync_disk() {
            Ok(()) => session.synced(epoch, |applier, now| applier.handle_synced(upto, now)),
            Err(error) => {
                tracing::warn!(%error, "the disk could not be synced");
                session.disk_failed();
            }
        });
    }

    /// This host ends: what was applied goes to the disk, and the client hears of it. Else another
    /// boot of the machine would have all of that carried out again, over what others did since.
    pub(super) async fn settle(self: Arc<Self>) {
        let (epoch, cursor) = self.applied_now();
        if cursor <= self.lock().applier.stable() {
            return;
        }
        let session = Arc::clone(&self);
        match blocking(move || session.sync_disk()).await {
            Ok(()) => {
                self.synced(epoch, |applier, now| applier.handle_synced_unasked(cursor, now));
                let acks = self.lock().acks.clone();
                if self.is_connected() {
                    acks.finish().await;
                }
            }
            Err(error) => {
                tracing::warn!(%error, "the disk could not be synced");
                self.disk_failed();
            }
        }
    }

    /// A sync has ended that began in `epoch`. The kernel tells a failure to one of those who sync:
    /// another session may have heard of it.
    pub(super) fn synced(
        self: &Arc<Self>,
        epoch: Epoch,
        change: impl FnOnce(&mut SessionApplier, Instant),
    ) {
        if self.lock().epoch != self.authorised.export.epoch() {
            return self.disk_failed();
        }
        self.change(|applier| {
            // what was applied when it began may be lost
            if applier.epoch() == epoch {
                change(applier, Instant::now());
            }
        });
    }

    /// The epoch, and the entry up to which all are applied in it.
    pub(super) fn applied_now(&self) -> (Epoch, Seq) {
        let state = self.lock();
        (state.applier.epoch(), state.applier.cursor())
    }

    /// What is not on the disk yet may be lost: the client sends it again.
    pub(super) fn disk_failed(self: &Arc<Self>) {
        let export = &self.authorised.export;
        let epoch = export.epoch();
        self.lock().epoch = epoch;
        self.change(|applier| {
            applier.handle_disk_failed(epoch, Instant::now());
            begin_record(export, applier);
        });
    }
}
