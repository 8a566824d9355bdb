//! The host's table.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Instant;

use crate::id::{HandleId, NodeId, RequestId, SessionId};
use crate::limits::{LEASE_BATCH_MAX, LEASE_TERM, LOCKS_MAX};
use crate::proto::PeerMisbehaved;
use crate::wire::errno::Errno;
use crate::wire::lease::{Blocker, LeaseRequest, Lock, LockFamily, Notice};

use super::ranges::{Ranges, conflict, normal};

/// Locks and requests of one session; a client stops much earlier.
const SESSION_MAX: usize = 4 * LOCKS_MAX;

/// The locks of one share. Locks of processes on the host are not here: the driver asks the host's
/// kernel for each one that this table would give.
///
/// Requests that wait get their turn in order. After a restart new locks wait until every session
/// that is expected has reclaimed its own, or for a term: also those that nothing known keeps back.
#[derive(Debug)]
pub struct Table {
    files: BTreeMap<(NodeId, LockFamily), File>,
    grace: Option<Grace>,
    outputs: VecDeque<Output>,
}

/// What the driver is to do.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Output {
    /// Put it on the lease stream of the session's connection, if it has one.
    Send {
        /// Whose.
        session: SessionId,
        /// What.
        notice: Notice,
    },
    /// Lock the host's file for the session's owner, then [`Table::handle_taken`].
    Take {
        /// Whose.
        session: SessionId,
        /// Which.
        lock: Lock,
    },
    /// Unlock the host's file.
    Free {
        /// Whose.
        session: SessionId,
        /// Which.
        lock: Lock,
    },
    /// Try no longer for a lock that was not to be had: what the owner has otherwise stays.
    Stop {
        /// Whose.
        session: SessionId,
        /// Which.
        lock: Lock,
    },
}

#[derive(Debug)]
struct Grace {
    expected: BTreeSet<SessionId>,
    /// Those that have asked for everything.
    done: BTreeSet<SessionId>,
    until: Instant,
}

#[derive(Debug, Default)]
struct File {
    held: BTreeMap<(SessionId, u64), Ranges>,
    queue: VecDeque<Request>,
}

#[derive(Debug)]
struct Request {
    session: SessionId,
    lock: Lock,
    what: What,
    state: State,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum What {
    Lock { request: RequestId, wait: bool },
    Reclaim,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum State {
    Waiting,
    /// The host's kernel is asked.
    Taking,
    /// The host's kernel did not give it, and the driver goes on trying.
    Trying,
}

impl Request {
    fn owner(&self) -> (SessionId, u64) {
        (self.session, self.lock.owner)
    }

    fn excludes(&self, session: SessionId, lock: &Lock) -> bool {
        self.owner() != (session, lock.owner) && conflict(&self.lock, lock)
    }
}

impl File {
    fn holds_against(&self, session: SessionId, lock: &Lock) -> Option<(SessionId, &Lock)> {
        let others = self.held.iter().filter(|(owner, _)| **owner != (session, lock.owner));
        let mut held = others.flat_map(|(owner, held)| held.iter().map(|lock| (owner.0, lock)));
        held.find(|(_, held)| conflict(held, lock))
    }

    /// Whether the request at `index` has to wait for what others have, or asked for before.
    fn is_blocked(&self, index: usize) -> bool {
        let Request { session, lock, what, .. } = &self.queue[index];
        let patient = matches!(what, What::Lock { wait: true, .. });
        let asked = self.queue.iter().enumerate().any(|(other, request)| {
            let before = match request.state {
                State::Waiting => patient && other < index,
                State::Taking => true,
                State::Trying => false,
            };
            before && request.excludes(*session, lock)
        });
        asked || self.holds_against(*session, lock).is_some()
    }

    fn held_of(&mut self, session: SessionId, lock: &Lock) -> &mut Ranges {
        self.held.entry((session, lock.owner)).or_default()
    }
}

impl Table {
    /// For a run of the host; `expected` as for [`super::super::grantor::Grantor::new`].
    pub fn new(expected: impl IntoIterator<Item = SessionId>, now: Instant) -> Self {
        let expected: BTreeSet<SessionId> = expected.into_iter().collect();
        let grace = (!expected.is_empty()).then(|| Grace {
            expected,
            done: BTreeSet::new(),
            until: now + LEASE_TERM,
        });
        Self { files: BTreeMap::new(), grace, outputs: VecDeque::new() }
    }

    /// A session asks about locks. [`LeaseRequest::ReclaimDone`] is for this machine as for the
    /// grantor. A request that is under way and comes again changes nothing.
    ///
    /// # Errors
    ///
    /// [`PeerMisbehaved::TooMany`] for more locks than agreed, [`PeerMisbehaved::Unasked`] for what
    /// is none of this machine's business.
    pub fn handle_request(
        &mut self,
        session: SessionId,
        request: LeaseRequest,
        now: Instant,
    ) -> Result<(), PeerMisbehaved> {
        self.handle_timeout(now);
        match request {
            LeaseRequest::Lock { request, lock, wait } => self.lock(session, request, lock, wait),
            LeaseRequest::Unlock { lock } => self.unlock(session, normal(lock)),
            LeaseRequest::CancelLock { request } => {
                self.cancel(|asked| {
                    asked.session == session
                        && matches!(asked.what, What::Lock { request: r, .. } if r == request)
                });
                // so that the client knows that it has arrived
                let result = Err(Errno::EINTR);
                self.send(session, Notice::Locked { request, result });
                Ok(())
            }
            LeaseRequest::ReclaimLocks { locks } => self.reclaim(session, locks),
            LeaseRequest::ReclaimDone { .. } => {
                if let Some(grace) = &mut self.grace {
                    grace.done.insert(session);
                }
                self.check_grace(now);
                Ok(())
            }
            LeaseRequest::Renew { .. }
            | LeaseRequest::Acquire { .. }
            | LeaseRequest::Return { .. }
            | LeaseRequest::Reclaim { .. }
            | LeaseRequest::Premake { .. }
            // the driver's own: the host's kernel must be asked too
            | LeaseRequest::TestLock { .. } => Err(PeerMisbehaved::Unasked),
        }
    }

    /// The host's kernel has (not) given a lock. One that is waited for and was not given is not
    /// forgotten: the driver goes on trying, and says so here when it has it, until
    /// [`Output::Stop`].
    pub fn handle_taken(&mut self, session: SessionId, lock: Lock, taken: bool, now: Instant) {
        let key = (lock.node, lock.family);
        let file = self.files.entry(key).or_default();
        let asked = |request: &Request| request.session == session && request.lock == lock;
        let at = [State::Taking, State::Trying].into_iter().find_map(|state| {
            file.queue.iter().position(|request| asked(request) && request.state == state)
        });
        let patient = at.is_some_and(|at| {
            matches!(file.queue[at].what, What::Lock { wait: true, .. }) && !taken
        });
        if let (Some(at), true) = (at, patient) {
            file.queue[at].state = State::Trying;
        } else if let Some(request) = at.and_then(|at| file.queue.remove(at)) {
            if taken {
                file.held_of(session, &lock).insert(lock);
            }
            self.answer(session, lock, request.what, taken);
        } else if taken {
            self.take_back(session, &lock);
        }
        self.pump(key);
        self.check_grace(now);
    }

    /// A handle is closed: its locks are free.
    pub fn close(&mut self, session: SessionId, handle: HandleId, now: Instant) {
        self.release(|of, lock| of == session && lock.handle == handle);
        self.check_grace(now);
    }

    /// The session is over: its locks are free.
    pub fn forget(&mut self, session: SessionId, now: Instant) {
        self.release(|of, _| of == session);
        if let Some(grace) = &mut self.grace {
            grace.expected.remove(&session);
        }
        self.check_grace(now);
    }

    /// Who keeps the owner from having this lock (`F_GETLK`).
    pub fn blocker(&self, session: SessionId, lock: &Lock) -> Option<Lock> {
        self.blocking(session, lock).map(|(_, lock)| lock)
    }

    /// As [`Self::blocker`], as `session` may know of it.
    pub fn blocker_told(&self, session: SessionId, lock: &Lock) -> Option<Blocker> {
        let (of, Lock { start, end, kind, owner, .. }) = self.blocking(session, lock)?;
        Some(Blocker { start, end, kind, owner: (of == session).then_some(owner) })
    }

    fn blocking(&self, session: SessionId, lock: &Lock) -> Option<(SessionId, Lock)> {
        let lock = normal(*lock);
        let file = self.files.get(&(lock.node, lock.family))?;
        file.holds_against(session, &lock).map(|(of, held)| (of, *held))
    }

    /// Whether a session has locks.
    pub fn has_locks(&self, session: SessionId) -> bool {
        let owners = (session, 0)..=(session, u64::MAX);
        let mut held = self.files.values().flat_map(|file| file.held.range(owners.clone()));
        held.any(|(_, ranges)| !ranges.is_empty())
    }

    /// What the owner of a lock has of the file, in the same family.
    pub fn owned(&self, session: SessionId, lock: &Lock) -> impl Iterator<Item = Lock> {
        let file = self.files.get(&(lock.node, lock.family));
        let held = file.and_then(|file| file.held.get(&(session, lock.owner)));
        held.into_iter().flat_map(Ranges::iter).copied()
    }

    /// Whether the owner of a lock waits for one of the file, in the same family.
    pub fn is_asking(&self, session: SessionId, lock: &Lock) -> bool {
        let file = self.files.get(&(lock.node, lock.family));
        let mut asked = file.into_iter().flat_map(|file| &file.queue);
        asked.any(|request| request.owner() == (session, lock.owner))
    }

    /// The wait after a restart may be over.
    pub fn handle_timeout(&mut self, now: Instant) {
        self.check_grace(now);
    }

    /// When [`Self::handle_timeout`] wants to be called.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.grace.as_ref().map(|grace| grace.until)
    }

    /// What to do next.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    fn count(&self, session: SessionId) -> usize {
        let of = |file: &File| {
            let held = file.held.range((session, 0)..=(session, u64::MAX));
            let asked = file.queue.iter().filter(|request| request.session == session);
            held.map(|(_, ranges)| ranges.len()).sum::<usize>() + asked.count()
        };
        self.files.values().map(of).sum()
    }

    fn lock(
        &mut self,
        session: SessionId,
        request: RequestId,
        lock: Lock,
        wait: bool,
    ) -> Result<(), PeerMisbehaved> {
        let lock = normal(lock);
        if lock.start > lock.end {
            let result = Err(Errno::EINVAL);
            self.send(session, Notice::Locked { request, result });
            return Ok(());
        }
        if self.count(session) >= SESSION_MAX {
            return Err(PeerMisbehaved::TooMany);
        }
        let what = What::Lock { request, wait };
        self.enqueue(session, lock, what);
        Ok(())
    }

    fn enqueue(&mut self, session: SessionId, lock: Lock, what: What) {
        let key = (lock.node, lock.family);
        let file = self.files.entry(key).or_default();
        let same = |other: &Request| {
            other.session == session
                && other.what == what
                && (what != What::Reclaim || other.lock == lock)
        };
        if !file.queue.iter().any(same) {
            file.queue.push_back(Request { session, lock, what, state: State::Waiting });
        }
        self.pump(key);
    }

    fn unlock(&mut self, session: SessionId, lock: Lock) -> Result<(), PeerMisbehaved> {
        if self.count(session) >= SESSION_MAX {
            return Err(PeerMisbehaved::TooMany);
        }
        let key = (lock.node, lock.family);
        if let Some(file) = self.files.get_mut(&key) {
            file.held_of(session, &lock).remove(&lock);
        }
        self.outputs.push_back(Output::Free { session, lock });
        self.pump(key);
        Ok(())
    }

    fn reclaim(&mut self, session: SessionId, locks: Vec<Lock>) -> Result<(), PeerMisbehaved> {
        if locks.len() > LEASE_BATCH_MAX || self.count(session) + locks.len() > SESSION_MAX {
            return Err(PeerMisbehaved::TooMany);
        }
        for lock in locks.into_iter().map(normal) {
            let file = self.files.get(&(lock.node, lock.family));
            let held = file.and_then(|file| file.held.get(&(session, lock.owner)));
            // no byte is locked by nobody: a client that asks wants to hear how far the host is
            let held = lock.start <= lock.end && held.is_some_and(|held| held.cover(&lock));
            let expected =
                self.grace.as_ref().is_some_and(|grace| grace.expected.contains(&session));
            let conflicts = file.is_some_and(|file| file.holds_against(session, &lock).is_some());
            if held || !expected || conflicts || lock.start > lock.end {
                self.send(session, Notice::LockReclaimed { lock, held });
            } else {
                self.enqueue(session, lock, What::Reclaim);
            }
        }
        Ok(())
    }

    fn answer(&mut self, session: SessionId, lock: Lock, what: What, taken: bool) {
        let notice = match what {
            What::Reclaim => Notice::LockReclaimed { lock, held: taken },
            What::Lock { request, .. } => {
                let result = if taken { Ok(()) } else { Err(Errno::EAGAIN) };
                Notice::Locked { request, result }
            }
        };
        self.send(session, notice);
    }

    /// Lets requests go on that nothing holds back.
    fn pump(&mut self, key: (NodeId, LockFamily)) {
        let Some(file) = self.files.get_mut(&key) else {
            return;
        };
        let mut refused = Vec::new();
        let mut index = 0;
        while index < file.queue.len() {
            let Request { session, lock, what, state } = file.queue[index];
            let may_ask = self.grace.is_none() || what == What::Reclaim;
            if state != State::Waiting || !may_ask {
                index += 1;
            } else if !file.is_blocked(index) {
                file.queue[index].state = State::Taking;
                self.outputs.push_back(Output::Take { session, lock });
                index += 1;
            } else if matches!(what, What::Lock { wait: true, .. }) {
                index += 1;
            } else {
                file.queue.remove(index);
                refused.push((session, lock, what));
            }
        }
        file.held.retain(|_, ranges| !ranges.is_empty());
        if file.held.is_empty() && file.queue.is_empty() {
            self.files.remove(&key);
        }
        for (session, lock, what) in refused {
            self.answer(session, lock, what, false);
        }
    }

    /// The kernel gave what nobody wants any more: the owner has what it had before.
    fn take_back(&mut self, session: SessionId, lock: &Lock) {
        let file = self.files.get(&(lock.node, lock.family));
        let held = file.and_then(|file| file.held.get(&(session, lock.owner)));
        let held = held.cloned().unwrap_or_default();
        if held.cover(lock) && held.iter().any(|own| own == lock) {
            return;
        }
        for gap in held.gaps(lock) {
            self.outputs.push_back(Output::Free { session, lock: gap });
        }
        for own in held.iter().filter(|own| super::ranges::overlap(own, lock)) {
            self.outputs.push_back(Output::Take { session, lock: *own });
        }
    }

    fn cancel(&mut self, which: impl Fn(&Request) -> bool) {
        let keys: Vec<_> = self.files.keys().copied().collect();
        for key in keys {
            let Some(file) = self.files.get_mut(&key) else {
                continue;
            };
            let mut gone = Vec::new();
            file.queue.retain(|request| {
                if !which(request) {
                    return true;
                }
                if request.state == State::Trying {
                    gone.push((request.session, request.lock));
                }
                false
            });
            for (session, lock) in gone {
                self.outputs.push_back(Output::Stop { session, lock });
            }
            self.pump(key);
        }
    }

    fn release(&mut self, which: impl Fn(SessionId, &Lock) -> bool) {
        self.cancel(|request| which(request.session, &request.lock));
        let keys: Vec<_> = self.files.keys().copied().collect();
        for key in keys {
            let Some(file) = self.files.get_mut(&key) else {
                continue;
            };
            for (&(session, _), ranges) in &mut file.held {
                for lock in ranges.split_off(|lock| which(session, lock)) {
                    self.outputs.push_back(Output::Free { session, lock });
                }
            }
            self.pump(key);
        }
    }

    fn check_grace(&mut self, now: Instant) {
        let Some(grace) = &mut self.grace else {
            return;
        };
        let files = &self.files;
        let reclaims = |session: SessionId| {
            let mut requests = files.values().flat_map(|file| &file.queue);
            requests.any(|request| request.session == session && request.what == What::Reclaim)
        };
        let done = &grace.done;
        grace.expected.retain(|&session| !done.contains(&session) || reclaims(session));
        if grace.expected.is_empty() || grace.until <= now {
            self.grace = None;
            let keys: Vec<_> = self.files.keys().copied().collect();
            for key in keys {
                self.pump(key);
            }
        }
    }

    fn send(&mut self, session: SessionId, notice: Notice) {
        self.outputs.push_back(Output::Send { session, notice });
    }
}
