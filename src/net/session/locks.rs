//! File locks of a session: who waits for which, and what goes over the connection of the moment.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::oneshot;

use super::core::Core;
use super::link::Link;
use crate::id::{HandleId, HostRun, LeaseId, RequestId};
use crate::proto::PeerMisbehaved;
use crate::proto::lease::locks::{ClientOutput, Locks};
use crate::wire::errno::Errno;
use crate::wire::lease::{Blocker, LeaseRequest, Lock, Notice};

/// The locks of a session.
#[derive(Debug, Default)]
pub(super) struct LockDesk {
    locks: Locks,
    waiting: HashMap<RequestId, oneshot::Sender<Result<(), Errno>>>,
    tests: HashMap<RequestId, oneshot::Sender<Option<Blocker>>>,
    /// The run of the host that knows them.
    run: Option<HostRun>,
    /// Whether the connection's host has said which run it is: what is asked before would be asked
    /// twice.
    open: bool,
}

/// Whether any handle has lost a lock: asked with every read.
#[derive(Debug, Default)]
pub(super) struct AnyLost(AtomicBool);

impl LockDesk {
    /// The connection is another one, or gone.
    pub(super) fn handle_link(&mut self) {
        self.open = false;
    }

    pub(super) fn end(&mut self) {
        self.waiting.clear();
        self.tests.clear();
    }

    fn handle_notice(&mut self, notice: &Notice) -> Result<(), PeerMisbehaved> {
        if let Notice::Run { run, standing, .. } = notice {
            let known = self.run.replace(*run);
            let restarted = known.is_some_and(|known| known != *run || !*standing);
            self.open = true;
            self.locks.handle_run(restarted);
            return Ok(());
        }
        self.locks.handle_notice(notice)
    }

    /// Does what the machine says. Quick: nothing here waits.
    fn pump(&mut self, link: Option<&Link>, lost: &AnyLost) {
        while let Some(output) = self.locks.poll_output() {
            match output {
                ClientOutput::Send(request) => {
                    if let Some(link) = link.filter(|_| self.open) {
                        link.ask(request);
                    }
                }
                ClientOutput::Locked { request, result } => {
                    if let Some(waits) = self.waiting.remove(&request) {
                        let _ = waits.send(result);
                    }
                }
                ClientOutput::Tested { request, blocker } => {
                    if let Some(waits) = self.tests.remove(&request) {
                        let _ = waits.send(blocker);
                    }
                }
                ClientOutput::Broken(handle) => {
                    tracing::warn!(%handle, "a lock was lost: its file fails until it is closed");
                    lost.0.store(true, Ordering::Release);
                }
            }
        }
    }
}

impl Core {
    /// Locks, and waits for the answer; dropping the future cancels it.
    pub(crate) async fn lock_file(core: Arc<Self>, lock: Lock, wait: bool) -> Result<(), Errno> {
        let (answer, answered) = oneshot::channel();
        let request = core.change_locks(|desk| {
            let request = desk.locks.lock(lock, wait);
            desk.waiting.insert(request, answer);
            request
        });
        let _cancelled = OnDrop(|| {
            core.change_locks(|desk| {
                if desk.waiting.remove(&request).is_some() {
                    desk.locks.cancel(request);
                }
            });
        });
        answered.await.unwrap_or(Err(Errno::ENOTCONN))
    }

    /// Who keeps a lock from being had.
    pub(crate) async fn test_lock(core: Arc<Self>, lock: Lock) -> Result<Option<Blocker>, Errno> {
        let (answer, answered) = oneshot::channel();
        let request = core.change_locks(|desk| {
            let request = desk.locks.test(lock);
            desk.tests.insert(request, answer);
            request
        });
        let _cancelled = OnDrop(|| {
            core.change_locks(|desk| {
                desk.tests.remove(&request);
                desk.locks.cancel_test(request);
            });
        });
        answered.await.map_err(|_| Errno::ENOTCONN)
    }

    pub(crate) fn unlock_file(&self, lock: Lock) {
        self.change_locks(|desk| desk.locks.unlock(lock));
    }

    pub(crate) fn close_locks(&self, handle: HandleId) {
        self.change_locks(|desk| desk.locks.close(handle));
    }

    pub(crate) fn has_lost_lock(&self, handle: HandleId) -> bool {
        let any = self.lost_locks().0.load(Ordering::Acquire);
        any && self.change_locks(|desk| desk.locks.is_broken(handle))
    }

    /// The host said something about locks.
    pub(crate) fn noticed(
        &self,
        connection: crate::id::ConnectionId,
        notice: &Notice,
    ) -> Result<(), PeerMisbehaved> {
        self.with_locks(|desk, link, current| {
            // What an older connection still says is from before the present one's first notice
            if current != connection {
                return Ok(());
            }
            desk.handle_notice(notice)?;
            desk.pump(link, self.lost_locks());
            if let (Notice::Run { .. }, Some(link)) = (notice, link) {
                link.ask(LeaseRequest::ReclaimDone { next: LeaseId(1) });
            }
            Ok(())
        })
    }

    fn change_locks<T>(&self, change: impl FnOnce(&mut LockDesk) -> T) -> T {
        self.with_locks(|desk, link, _| {
            let changed = change(desk);
            desk.pump(link, self.lost_locks());
            changed
        })
    }
}

struct OnDrop<F: FnMut()>(F);

impl<F: FnMut()> Drop for OnDrop<F> {
    fn drop(&mut self) {
        (self.0)();
    }
}
