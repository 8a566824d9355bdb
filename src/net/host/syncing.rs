//! When what sessions changed is put on the disk, and what is stable then.
//!
//! A sync is for all sessions of the share, whoever asked for it. A session does again, after a
//! power cut, what was not stable: that must not write over what another one was told is on the
//! disk. So before this is said, what others changed before of the same nodes is stable too, and
//! recorded where no power cut takes it away, as far as the state directory's disk takes it: their
//! clients may not have heard of it.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use bytes::Bytes;

use crate::id::{Epoch, Seq};
use crate::net::host::session::{HostSession, SessionApplier, begin_record, blocking, record_of};
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

    /// Other sessions that change the same share.
    fn of(&self, session: &HostSession) -> Vec<Arc<HostSession>> {
        let Some(root) = session.authorised.export.root() else { return Vec::new() };
        let all: Vec<_> = {
            let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            all.iter().filter_map(Weak::upgrade).collect()
        };
        let is_one = |one: &Arc<HostSession>| {
            // nothing is ever carried out for one that only reads
            let writes = !one.authorised.rights.read_only;
            writes && one.id() != session.id() && one.authorised.export.root() == Some(root)
        };
        all.into_iter().filter(is_one).collect()
    }
}

/// Another session, as far as it is before a sync.
struct Neighbour {
    session: Arc<HostSession>,
    epoch: Epoch,
    cursor: Seq,
    /// Its last entry, not stable, that changes what is synced.
    shared: Option<Seq>,
}

impl Neighbour {
    /// The share is synced.
    fn synced(&self) {
        let cursor = self.cursor;
        self.session.synced(self.epoch, |applier, now| applier.handle_synced_unasked(cursor, now));
    }

    /// What is stable stays so in a crash, though its client may not have heard of it. Best effort:
    /// without a record that can be written a host that is killed forgets more than that.
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

    /// The entry that must be applied before the shared ones can be made stable, if entries before
    /// it are still on their way, and have not been waited for in vain.
    fn gap(&self) -> Option<Seq> {
        let gap = self.shared.filter(|shared| *shared > self.cursor)?;
        let in_vain = self.session.gap.load(Ordering::SeqCst) == self.cursor.0;
        (self.session.is_connected() && !in_vain).then_some(gap)
    }

    async fn reaches(&self, seq: Seq) {
        loop {
            let progress = self.session.progress.notified();
            tokio::pin!(progress);
            progress.as_mut().enable();
            if self.session.lock().applier.cursor() >= seq {
                return;
            }
            progress.await;
        }
    }
}

impl HostSession {
    /// Carries out a sync that comes after the entries up to `upto`, with what it depends on.
    /// `None`: what was to be synced may be lost, and is to be applied again first. May wait for a
    /// disk.
    pub(super) fn carry_out_sync(
        self: &Arc<Self>,
        call: Call,
        upto: Seq,
    ) -> Result<Option<(Reply, Bytes)>, Errno> {
        let export = &self.authorised.export;
        // also one that somebody else just heeds
        self.heed_failure();
        let (epoch, cursor) = {
            let state = self.lock();
            let (epoch, cursor) = (state.applier.epoch(), state.applier.cursor());
            if cursor < upto || state.applier.is_redoing() {
                return Ok(None);
            }
            (epoch, cursor)
        };
        let is_all = matches!(call, Call::SyncAll { .. });
        let neighbours = self.neighbours_now(&call);
        let shares = neighbours.iter().any(|one| one.shared.is_some());
        let answer = (|| {
            if shares && !is_all {
                export.sync_all()?;
            }
            export.call(call)
        })();
        if epoch != export.epoch() {
            self.heed_failure();
            return answer.map(|_| None);
        }
        let answer = answer?;
        if is_all {
            self.synced(epoch, |applier, now| applier.handle_synced_unasked(cursor, now));
        }
        if is_all || shares {
            neighbours.iter().for_each(Neighbour::synced);
        }
        neighbours.iter().for_each(Neighbour::keep);
        Ok(Some(answer))
    }

    /// Waits until what others changed of the same can be made stable.
    pub(super) async fn wait_for_neighbours(self: &Arc<Self>, call: &Call) {
        let end = tokio::time::Instant::now() + GAP_MAX;
        for neighbour in self.neighbours_now(call) {
            let Some(gap) = neighbour.gap() else { continue };
            if tokio::time::timeout_at(end, neighbour.reaches(gap)).await.is_err() {
                let cursor = neighbour.session.lock().applier.cursor();
                neighbour.session.gap.store(cursor.0, Ordering::SeqCst);
            }
        }
    }

    /// Who else may have changed what is synced.
    fn neighbours_now(&self, call: &Call) -> Vec<Neighbour> {
        let others = self.neighbours.of(self);
        if others.is_empty() {
            return Vec::new();
        }
        let node = match call {
            Call::Sync { handle, .. } => self.authorised.export.node_of(*handle),
            _ => None,
        };
        let now = |session: Arc<Self>| {
            let state = session.lock();
            let (epoch, cursor) = (state.applier.epoch(), state.applier.cursor());
            let shared = state.applier.last_unstable(node);
            drop(state);
            Neighbour { session, epoch, cursor, shared }
        };
        others.into_iter().map(now).collect()
    }

    /// Syncs the share, for all sessions with it but this one, which reports itself. May wait
    /// for a disk.
    fn sync_disk(&self, upto: Seq) -> Result<(), Errno> {
        let neighbours = self.neighbours_now(&Call::SyncAll { upto });
        self.authorised.export.sync_all()?;
        neighbours.iter().for_each(Neighbour::synced);
        Ok(())
    }

    /// The applier wants everything up to `upto` stable.
    pub(super) fn sync(self: &Arc<Self>, epoch: Epoch, upto: Seq) {
        let session = Arc::clone(self);
        tokio::task::spawn_blocking(move || match session.sync_disk(upto) {
            Ok(()) => session.synced(epoch, |applier, now| applier.handle_synced(upto, now)),
            Err(error) => {
                tracing::warn!(%error, "the disk could not be synced");
                session.heed_failure();
            }
        });
    }

    /// This host ends: what was applied goes to the disk, and the client hears of it. Else another
    /// boot of the machine would have all of that carried out again, over what others did since.
    pub(super) async fn settle(self: Arc<Self>) {
        let session = Arc::clone(&self);
        let settled = blocking(move || {
            let (epoch, cursor) = session.applied_now();
            if cursor <= session.lock().applier.stable() {
                return Ok(());
            }
            let synced = session.sync_disk(cursor).inspect_err(|_| session.heed_failure());
            synced.map(|()| {
                session.synced(epoch, |applier, now| applier.handle_synced_unasked(cursor, now));
            })
        });
        if let Err(error) = settled.await {
            tracing::warn!(%error, "the disk could not be synced");
        }
        let acks = self.lock().acks.clone();
        if self.is_connected() {
            acks.finish().await;
        }
    }

    /// A sync has ended that began in `epoch`. The kernel tells a failure to one of those who sync:
    /// another session may have heard of it. May wait for a disk.
    pub(super) fn synced(
        self: &Arc<Self>,
        epoch: Epoch,
        change: impl FnOnce(&mut SessionApplier, Instant),
    ) {
        if epoch != self.authorised.export.epoch() {
            return self.heed_failure();
        }
        let mut state = self.lock();
        // what was applied when it began may be lost
        if (state.epoch, state.applier.epoch()) == (epoch, epoch) {
            change(&mut state.applier, Instant::now());
            self.carry_on(&mut state);
        }
    }

    /// The epoch, and the entry up to which all are applied in it.
    fn applied_now(&self) -> (Epoch, Seq) {
        let state = self.lock();
        (state.applier.epoch(), state.applier.cursor())
    }

    /// If the disk has failed, what is not on it yet may be lost: the client sends it again. May
    /// wait for a disk, but nobody waits for that who only changes the session.
    pub(super) fn heed_failure(self: &Arc<Self>) {
        let export = &self.authorised.export;
        let _one_at_a_time = self.failing.lock().unwrap_or_else(PoisonError::into_inner);
        let epoch = export.epoch();
        let record = {
            let mut state = self.lock();
            if state.epoch == epoch {
                return;
            }
            state.epoch = epoch;
            record_of(&state.applier, epoch, true)
        };
        // before anything of the new epoch comes
        begin_record(export, record);
        self.begin_epoch(epoch);
        self.await_gap();
    }
}
