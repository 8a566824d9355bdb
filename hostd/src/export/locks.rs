//! File locks: of this share's sessions among each other, and with processes of this machine.
//!
//! The table knows what sessions have; each owner's locks on a file are also held on an open file
//! of its own, which keeps processes of this machine out. Nothing here waits: what a process of
//! this machine has is tried again and again, by one thread, while somebody waits for it.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use p2pfs::id::{HandleId, NodeId, SessionId};
use p2pfs::net::serve::Notices;
use p2pfs::proto::PeerMisbehaved;
use p2pfs::proto::lease::locks::{Output, Table};
use p2pfs::wire::errno::Errno;
use p2pfs::wire::lease::{Blocker, LeaseRequest, Lock, LockFamily, Notice};
use rustix::io;

use super::{Share, View, access_flags, locked, owned};

/// How often a lock that a process of this machine has is tried for.
const TRY: Duration = Duration::from_millis(20);

/// One for each share.
#[derive(Debug, Default)]
pub(super) struct LockTable {
    desk: Mutex<Desk>,
    /// There is something to try for.
    tries: Condvar,
}

#[derive(Debug)]
struct Desk {
    table: Table,
    /// The open files that hold what owners have.
    files: BTreeMap<(SessionId, NodeId, LockFamily, u64), OwnedFd>,
    notices: BTreeMap<SessionId, Notices>,
    trying: Vec<(SessionId, Lock)>,
    /// Whether a thread tries.
    tried: bool,
    /// Sessions that a restarted host waits for.
    expected: Vec<SessionId>,
}

impl Default for Desk {
    fn default() -> Self {
        Self {
            table: Table::new([], Instant::now()),
            files: BTreeMap::new(),
            notices: BTreeMap::new(),
            trying: Vec::new(),
            tried: false,
            expected: Vec::new(),
        }
    }
}

impl Share {
    /// Sessions that had locks when the run before was ended: they come first.
    pub(super) fn expect_locks(&self, sessions: Vec<SessionId>) {
        let mut desk = self.locks.lock();
        desk.table = Table::new(sessions.iter().copied(), Instant::now());
        desk.expected = sessions;
    }
}

impl View {
    /// From now on what the host says of locks goes to `notices`.
    pub(super) fn attend_locks(&self, notices: Notices) {
        self.share.locks.lock().notices.insert(self.session, notices);
    }

    pub(super) fn ask_lock(&self, request: LeaseRequest) -> Result<(), PeerMisbehaved> {
        let session = self.session;
        let locks = &self.share.locks;
        let mut desk = locks.lock();
        match request {
            LeaseRequest::TestLock { request, lock } => {
                let blocker = self.blocker(&desk, &lock);
                desk.send(session, Notice::LockTested { request, blocker });
                return Ok(());
            }
            LeaseRequest::Lock { request, lock, .. } if !self.has_open(&lock) => {
                desk.send(session, Notice::Locked { request, result: Err(Errno::EBADF) });
                return Ok(());
            }
            request => desk.table.handle_request(session, request, Instant::now())?,
        }
        self.settle_locks(desk);
        Ok(())
    }

    /// A handle is closed: its locks are free.
    pub(super) fn close_locks(&self, handle: HandleId) {
        let mut desk = self.share.locks.lock();
        desk.table.close(self.session, handle, Instant::now());
        self.settle_locks(desk);
    }

    /// The session is over, or its client stays away: its locks are free.
    pub(super) fn forget_locks(&self) {
        let mut desk = self.share.locks.lock();
        desk.notices.remove(&self.session);
        desk.table.forget(self.session, Instant::now());
        self.settle_locks(desk);
    }

    fn has_open(&self, lock: &Lock) -> bool {
        let found = self.share.opens.find(self.session, lock.handle);
        found.is_some_and(|(node, _)| node == lock.node)
    }

    fn blocker(&self, desk: &Desk, lock: &Lock) -> Option<Blocker> {
        let told = desk.table.blocker_told(self.session, lock);
        told.or_else(|| {
            // What the owner has itself is in nobody's way
            match desk.files.get(&(self.session, lock.node, lock.family, lock.owner)) {
                Some(file) => locked::blocker(file.as_fd(), lock).ok()?,
                None => {
                    let file = self.share.lockable(self.session, lock).ok()?;
                    locked::blocker(file.as_fd(), lock).ok()?
                }
            }
        })
    }

    /// Does what the table says, records who has locks, and tries for what is not to be had.
    fn settle_locks(&self, mut desk: MutexGuard<'_, Desk>) {
        let touched = self.share.drive(&mut desk);
        for session in touched {
            let any = desk.table.has_locks(session);
            self.share.opens.note_locks(session, any);
        }
        let starts =
            !desk.tried && (!desk.trying.is_empty() || desk.table.poll_timeout().is_some());
        desk.tried |= starts;
        drop(desk);
        self.share.locks.tries.notify_all();
        if starts {
            let share = Arc::clone(&self.share);
            let spawned = std::thread::Builder::new()
                .name("locks".to_owned())
                .spawn(move || share.try_locks());
            if let Err(error) = spawned {
                tracing::warn!(%error, "locks that processes of this machine have are not tried");
                self.share.locks.lock().tried = false;
            }
        }
    }
}

impl Share {
    /// Tries until there is nothing to try for.
    fn try_locks(&self) {
        let mut desk = self.locks.lock();
        while !desk.trying.is_empty() || desk.table.poll_timeout().is_some() {
            desk.table.handle_timeout(Instant::now());
            for (session, lock) in desk.trying.clone() {
                if self.take(&mut desk, session, &lock) {
                    desk.trying.retain(|one| *one != (session, lock));
                    desk.table.handle_taken(session, lock, true, Instant::now());
                }
            }
            for session in self.drive(&mut desk) {
                self.opens.note_locks(session, desk.table.has_locks(session));
            }
            let waited = self.locks.tries.wait_timeout(desk, TRY);
            desk = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        desk.tried = false;
        // Who has not come back until now has lost what it had
        for session in std::mem::take(&mut desk.expected) {
            self.opens.note_locks(session, desk.table.has_locks(session));
        }
    }

    /// Does what the table says; tells whose locks may be others now.
    fn drive(&self, desk: &mut Desk) -> BTreeSet<SessionId> {
        let mut touched = BTreeSet::new();
        while let Some(output) = desk.table.poll_output() {
            match output {
                Output::Send { session, notice } => desk.send(session, notice),
                Output::Take { session, lock } => {
                    let taken = self.take(desk, session, &lock);
                    desk.table.handle_taken(session, lock, taken, Instant::now());
                    let waits = !taken && desk.table.is_asking(session, &lock);
                    if waits && !desk.trying.contains(&(session, lock)) {
                        desk.trying.push((session, lock));
                    }
                    touched.insert(session);
                }
                Output::Free { session, lock } => {
                    desk.free(session, &lock);
                    touched.insert(session);
                }
                Output::Stop { session, lock } => {
                    desk.trying.retain(|one| *one != (session, lock));
                    desk.tidy(session, &lock);
                }
            }
        }
        touched
    }

    fn take(&self, desk: &mut Desk, session: SessionId, lock: &Lock) -> bool {
        let key = (session, lock.node, lock.family, lock.owner);
        let file = match desk.files.entry(key) {
            Entry::Occupied(there) => there.into_mut(),
            Entry::Vacant(free) => match self.lockable(session, lock) {
                Ok(file) => free.insert(file),
                Err(error) => {
                    tracing::warn!(%error, "a file cannot be opened to be locked");
                    return false;
                }
            },
        };
        let error = match locked::take(file.as_fd(), lock) {
            Ok(()) => return true,
            Err(error) => error,
        };
        if error != io::Errno::AGAIN {
            tracing::warn!(%error, "a file cannot be locked");
        }
        // flock(2) lets the old one go before it finds out that the new one is not to be had
        if lock.family == LockFamily::Whole
            && let Some(before) = desk.table.owned(session, lock).next()
        {
            let _ = locked::take(file.as_fd(), &before);
        }
        desk.tidy(session, lock);
        false
    }

    /// An open file of its own for an owner's locks.
    fn lockable(&self, session: SessionId, lock: &Lock) -> io::Result<OwnedFd> {
        let (node, access) = self.opens.find(session, lock.handle).ok_or(io::Errno::BADF)?;
        let stale = |_| io::Errno::STALE;
        let path = self.nodes.find(node).map_err(stale)?;
        owned::reopen(path.as_fd(), access_flags(access))
    }
}

impl Desk {
    fn send(&self, session: SessionId, notice: Notice) {
        if let Some(notices) = self.notices.get(&session) {
            notices.send(notice);
        }
    }

    fn free(&mut self, session: SessionId, lock: &Lock) {
        let key = (session, lock.node, lock.family, lock.owner);
        if let Some(file) = self.files.get(&key)
            && let Err(error) = locked::free(file.as_fd(), lock)
        {
            tracing::warn!(%error, "a file cannot be unlocked");
        }
        self.tidy(session, lock);
    }

    /// Closes the file of an owner who has nothing on it.
    fn tidy(&mut self, session: SessionId, lock: &Lock) {
        if self.table.owned(session, lock).next().is_none() && !self.table.is_asking(session, lock)
        {
            self.files.remove(&(session, lock.node, lock.family, lock.owner));
        }
    }
}

impl LockTable {
    fn lock(&self) -> MutexGuard<'_, Desk> {
        // The table is changed in whole steps
        self.desk.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
