//! The locks of one client.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use crate::id::{HandleId, NodeId, RequestId};
use crate::limits::{LEASE_BATCH_MAX, LOCKS_MAX};
use crate::proto::PeerMisbehaved;
use crate::wire::errno::Errno;
use crate::wire::lease::{Blocker, LeaseRequest, Lock, LockFamily, LockKind, Notice};

use super::ranges::{Ranges, normal, overlap};

/// Owners whose unlocking the host may not have heard of, before it is asked how far it is.
const UNPROVEN_MAX: usize = 256;

/// The locks of one client.
///
/// Unlocking is not answered. So the owners that unlocked are remembered until the host has
/// answered something later, and on the next connection they are set to what they hold.
#[derive(Debug, Default)]
pub struct Locks {
    held: BTreeMap<Key, Ranges>,
    asked: BTreeMap<RequestId, Asked>,
    /// Asked for again, without an answer: after a restart, and after a lock that nobody wanted may
    /// have replaced them.
    reclaiming: Vec<Lock>,
    restoring: BTreeMap<RequestId, Lock>,
    tests: BTreeMap<RequestId, Lock>,
    broken: BTreeSet<HandleId>,
    /// Since the host was last asked how far it is, and before.
    unproven: BTreeSet<Key>,
    asked_about: Option<BTreeSet<Key>>,
    newest: u64,
    outputs: VecDeque<ClientOutput>,
}

/// An owner on a file.
type Key = (NodeId, LockFamily, u64);

#[derive(Clone, Copy, Debug)]
struct Asked {
    /// What whoever asked knows it by.
    request: RequestId,
    lock: Lock,
    wait: bool,
    /// Nobody waits for it.
    cancelled: bool,
    /// Bytes of it were let go after it was sent: nobody here knows what the host did first.
    crossed: bool,
    /// The host may have given it before.
    again: bool,
}

/// What the client's driver is to do.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum ClientOutput {
    /// Put it on the lease stream of the connection, if there is one.
    Send(LeaseRequest),
    /// Tell who asked for the lock.
    Locked {
        /// Which request.
        request: RequestId,
        /// EAGAIN: somebody else has it. ENOLCK: too many.
        result: Result<(), Errno>,
    },
    /// Tell who asked for the lock's blocker.
    Tested {
        /// Which request.
        request: RequestId,
        /// Nobody: the lock is free.
        blocker: Option<Blocker>,
    },
    /// A lock could not be had again: everything through its handle fails with EIO until it is
    /// closed.
    Broken(HandleId),
}

fn key(lock: &Lock) -> Key {
    (lock.node, lock.family, lock.owner)
}

/// No byte: what the host answers tells only that it has come so far.
fn nothing() -> Lock {
    Lock {
        node: NodeId::ROOT,
        handle: HandleId(0),
        owner: 0,
        start: 1,
        end: 0,
        kind: LockKind::Shared,
        family: LockFamily::Range,
    }
}

impl Locks {
    /// Asks for a lock.
    pub fn lock(&mut self, lock: Lock, wait: bool) -> RequestId {
        let request = self.number();
        let lock = normal(lock);
        if self.count() >= LOCKS_MAX {
            let result = Err(Errno::ENOLCK);
            self.outputs.push_back(ClientOutput::Locked { request, result });
            return request;
        }
        let (cancelled, crossed, again) = (false, false, false);
        self.ask(request, Asked { request, lock, wait, cancelled, crossed, again });
        request
    }

    /// Asks who keeps a lock from being had.
    pub fn test(&mut self, lock: Lock) -> RequestId {
        let request = self.number();
        let lock = normal(lock);
        self.tests.insert(request, lock);
        self.send(LeaseRequest::TestLock { request, lock });
        request
    }

    /// Nobody waits for the answer to [`Self::test`] any longer.
    pub fn cancel_test(&mut self, request: RequestId) {
        self.tests.remove(&request);
    }

    /// Lets bytes go. Where that leaves too many pieces, all are let go, and the handle is broken.
    pub fn unlock(&mut self, lock: Lock) {
        let mut lock = normal(lock);
        let key = key(&lock);
        if self.count() >= 2 * LOCKS_MAX {
            lock = Lock { start: 0, end: u64::MAX, ..lock };
            self.break_handle(lock.handle);
        }
        if let Some(held) = self.held.get_mut(&key) {
            held.remove(&lock);
            if held.is_empty() {
                self.held.remove(&key);
            }
        }
        self.unproven.insert(key);
        self.cross(&lock);
        self.send(LeaseRequest::Unlock { lock });
        if self.unproven.len() >= UNPROVEN_MAX && self.asked_about.is_none() {
            self.ask_how_far();
        }
    }

    /// Nobody waits for the lock any longer. If it comes all the same it is let go, and what the
    /// owner had of its bytes before is asked for again.
    pub fn cancel(&mut self, request: RequestId) {
        let mut asked = self.asked.iter_mut();
        if let Some((&number, asked)) =
            asked.find(|(_, asked)| asked.request == request && !asked.cancelled)
        {
            asked.cancelled = true;
            self.send(LeaseRequest::CancelLock { request: number });
        }
    }

    /// A handle is closed.
    pub fn close(&mut self, handle: HandleId) {
        self.broken.remove(&handle);
        self.reclaiming.retain(|lock| lock.handle != handle);
        let mut gone = Vec::new();
        for ranges in self.held.values_mut() {
            gone.append(&mut ranges.split_off(|lock| lock.handle == handle));
        }
        for lock in gone {
            self.unlock(lock);
        }
        let asked: Vec<RequestId> = self
            .asked
            .values()
            .filter(|asked| asked.lock.handle == handle && !asked.cancelled)
            .map(|asked| asked.request)
            .collect();
        for request in asked {
            self.cancel(request);
        }
    }

    /// The host's [`Notice::Run`] came: `restarted` if it is another run. Requests without an
    /// answer are sent again; after a restart locks are asked for again first. What this sends goes
    /// before the [`LeaseRequest::ReclaimDone`] of [`super::super::holder`].
    pub fn handle_run(&mut self, restarted: bool) {
        if restarted {
            self.reclaiming = self.held.values().flat_map(Ranges::iter).copied().collect();
            self.unproven.clear();
            self.asked_about = None;
        }
        for batch in self.reclaiming.chunks(LEASE_BATCH_MAX) {
            let locks = batch.to_vec();
            self.outputs.push_back(ClientOutput::Send(LeaseRequest::ReclaimLocks { locks }));
        }
        self.restoring.clear();
        let mut unproven = self.asked_about.take().unwrap_or_default();
        unproven.append(&mut self.unproven);
        for &key in &unproven {
            self.let_go(&Self::whole(key));
        }
        if !unproven.is_empty() {
            self.ask_how_far();
        }
        // under another number: an answer to the old one may be on its way already, and must not be
        // taken for one to what is asked now
        for (number, asked) in std::mem::take(&mut self.asked) {
            let asked = Asked { again: !restarted, ..asked };
            if !restarted {
                self.send(LeaseRequest::CancelLock { request: number });
                self.asked.insert(number, Asked { cancelled: true, ..asked });
            }
            if !asked.cancelled {
                let number = self.number();
                self.ask(number, asked);
            }
        }
        self.test_again();
    }

    /// Tests without an answer are asked again: what was sent went with the connection.
    fn test_again(&mut self) {
        let tests: Vec<_> = self.tests.iter().map(|(&request, &lock)| (request, lock)).collect();
        for (request, lock) in tests {
            self.send(LeaseRequest::TestLock { request, lock });
        }
    }

    /// The host said something about locks; other notices are not heeded.
    ///
    /// # Errors
    ///
    /// [`PeerMisbehaved::Unasked`] for an answer to nothing.
    pub fn handle_notice(&mut self, notice: &Notice) -> Result<(), PeerMisbehaved> {
        match notice {
            Notice::Locked { request, result } => self.locked(*request, *result),
            Notice::LockReclaimed { lock, held } => {
                self.reclaimed(lock, *held);
                Ok(())
            }
            Notice::LockTested { request, .. } if request.0 > self.newest => {
                Err(PeerMisbehaved::Unasked)
            }
            Notice::LockTested { request, blocker } => {
                if self.tests.remove(request).is_some() {
                    let (request, blocker) = (*request, *blocker);
                    self.outputs.push_back(ClientOutput::Tested { request, blocker });
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// Whether a handle lost a lock that its user counts on.
    pub fn is_broken(&self, handle: HandleId) -> bool {
        self.broken.contains(&handle)
    }

    /// What to do next.
    pub fn poll_output(&mut self) -> Option<ClientOutput> {
        self.outputs.pop_front()
    }

    fn count(&self) -> usize {
        self.held.values().map(Ranges::len).sum::<usize>() + self.asked.len()
    }

    fn send(&mut self, request: LeaseRequest) {
        self.outputs.push_back(ClientOutput::Send(request));
    }

    fn number(&mut self) -> RequestId {
        self.newest += 1;
        RequestId(self.newest)
    }

    fn ask(&mut self, number: RequestId, asked: Asked) {
        self.asked.insert(number, asked);
        let Asked { lock, wait, .. } = asked;
        self.send(LeaseRequest::Lock { request: number, lock, wait });
    }

    fn locked(
        &mut self,
        number: RequestId,
        result: Result<(), Errno>,
    ) -> Result<(), PeerMisbehaved> {
        if number.0 > self.newest {
            return Err(PeerMisbehaved::Unasked);
        }
        if let Some(lock) = self.restoring.remove(&number)
            && result.is_err()
        {
            // somebody was quicker
            self.unlock(lock);
            self.break_handle(lock.handle);
        }
        let Some(asked) = self.asked.remove(&number) else {
            return Ok(());
        };
        match (asked.cancelled, result) {
            (true, Err(_)) if !asked.again => {}
            (true, _) => self.let_go(&asked.lock),
            (false, Ok(())) if asked.crossed => {
                // asks again: that comes after what was let go, for both
                let number = self.number();
                self.ask(number, Asked { crossed: false, again: true, ..asked });
            }
            (false, result) => {
                if result.is_err() && asked.again {
                    self.let_go(&asked.lock);
                } else if result.is_ok() {
                    self.held.entry(key(&asked.lock)).or_default().insert(asked.lock);
                }
                let request = asked.request;
                self.outputs.push_back(ClientOutput::Locked { request, result });
            }
        }
        Ok(())
    }

    /// Bytes are let go while requests of their owner are on the way.
    fn cross(&mut self, lock: &Lock) {
        let asked = self.asked.values_mut();
        for asked in asked.filter(|asked| key(&asked.lock) == key(lock)) {
            asked.crossed |= overlap(&asked.lock, lock);
        }
    }

    /// The host may have given a lock that nobody wants: unlocks it, and asks for what it replaced.
    fn let_go(&mut self, lock: &Lock) {
        self.unproven.insert(key(lock));
        self.cross(lock);
        let held = self.held.get(&key(lock)).cloned().unwrap_or_default();
        for gap in held.gaps(lock) {
            self.send(LeaseRequest::Unlock { lock: gap });
        }
        for own in held.iter().filter(|own| overlap(own, lock)) {
            let request = self.number();
            let (start, end) = (own.start.max(lock.start), own.end.min(lock.end));
            let lock = Lock { start, end, ..*own };
            self.restoring.insert(request, lock);
            self.send(LeaseRequest::Lock { request, lock, wait: false });
        }
    }

    fn reclaimed(&mut self, lock: &Lock, held: bool) {
        if lock.start > lock.end {
            self.asked_about = None;
            return;
        }
        let Some(at) = self.reclaiming.iter().position(|asked| asked == lock) else {
            return;
        };
        self.reclaiming.swap_remove(at);
        if held {
            return;
        }
        let key = key(lock);
        if let Some(ranges) = self.held.get_mut(&key) {
            ranges.remove(lock);
            if ranges.is_empty() {
                self.held.remove(&key);
            }
        }
        self.break_handle(lock.handle);
    }

    fn break_handle(&mut self, handle: HandleId) {
        if self.broken.insert(handle) {
            self.outputs.push_back(ClientOutput::Broken(handle));
        }
    }

    /// The host answers in order: then it knows of everything that was unlocked before.
    fn ask_how_far(&mut self) {
        self.asked_about = Some(std::mem::take(&mut self.unproven));
        self.send(LeaseRequest::ReclaimLocks { locks: vec![nothing()] });
    }

    /// All bytes of an owner, on its file.
    fn whole(key: Key) -> Lock {
        let (node, family, owner) = key;
        Lock { node, family, owner, start: 0, end: u64::MAX, ..nothing() }
    }
}

#[cfg(test)]
impl Locks {
    pub(in super::super) fn held_by(
        &self,
        node: NodeId,
        family: LockFamily,
        owner: u64,
    ) -> Vec<Lock> {
        let held = self.held.get(&(node, family, owner));
        held.into_iter().flat_map(Ranges::iter).copied().collect()
    }
}
