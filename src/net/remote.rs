//! What a client's file system talks to: calls, and a log of numbered changes.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::oneshot;

use crate::id::{HandleId, NodeId, Seq};
use crate::wire::call::{Call, Reply};
use crate::wire::errno::Errno;
use crate::wire::lease::{Blocker, Lock};
use crate::wire::log::{Change, Outcome};

/// A future that can be kept anywhere.
pub type BoxFuture<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// A share on a host, as seen over a session.
///
/// No method waits: what takes time is in the futures. Dropping a call's future cancels the call.
pub trait Remote: Send + Sync {
    /// Asks; the body is empty but for [`Reply::Data`].
    ///
    /// What is answered to [`Call::Sync`] is answered behind what came of the entries that it waits
    /// for, also to [`Self::undone`].
    ///
    /// Fails with what the host says, or `ETIMEDOUT` after the grace, or `ENOTCONN` when the
    /// session has ended; [`Call::Release`] waits longer than the grace.
    fn call(&self, call: Call) -> BoxFuture<Result<(Reply, Bytes), Errno>>;

    /// Numbers a change and ships it; it is applied after what it builds on.
    fn submit(&self, change: Change, body: Bytes) -> Submitted;

    /// Nobody waits for a change any longer: it fails with `EINTR`, and does not happen later,
    /// unless the host has carried it out by then. What was accepted is not given up.
    fn strike(&self, _seq: Seq) {}

    /// Resolves when the log has room for `bytes` more, so that writers wait for a slow link; fails
    /// as [`Self::given_up`] says.
    fn room(&self, bytes: usize) -> BoxFuture<Result<(), Errno>>;

    /// Whether a change that is accepted outlives this process before the host has it, where that
    /// was asked for.
    fn is_kept(&self) -> bool {
        true
    }

    /// Resolves when nothing is to be expected of the host now: `ETIMEDOUT` when it has been silent
    /// for the grace, `ENOTCONN` when the session has ended.
    fn given_up(&self) -> BoxFuture<Errno>;

    /// Whether [`Self::given_up`] resolves now: what is asked is refused, and never sent.
    fn is_given_up(&self) -> bool {
        false
    }

    /// How long a packet takes to the host and back, as last measured; zero where that is not
    /// known.
    fn round_trip(&self) -> Duration {
        Duration::ZERO
    }

    /// Nodes of which changes were refused after whoever made them was told that they are done;
    /// each is told here once, with the first reason.
    fn undone(&self) -> Vec<(NodeId, Errno)> {
        Vec::new()
    }

    /// Resolves when [`Self::undone`] may have something to tell; false when it never will again.
    fn any_undone(&self) -> BoxFuture<bool> {
        Box::pin(std::future::pending())
    }

    /// Locks a file; `ENOLCK` where there are no locks. `wait`: until it can be had; else `EAGAIN`
    /// if somebody else has it. Dropping
    /// the future cancels the wait.
    fn lock(&self, _lock: Lock, _wait: bool) -> BoxFuture<Result<(), Errno>> {
        Box::pin(std::future::ready(Err(Errno::ENOLCK)))
    }

    /// Who keeps a lock from being had.
    fn test_lock(&self, _lock: Lock) -> BoxFuture<Result<Option<Blocker>, Errno>> {
        Box::pin(std::future::ready(Err(Errno::ENOLCK)))
    }

    /// Lets bytes go. Not answered: the host hears of it in its turn.
    fn unlock(&self, _lock: Lock) {}

    /// A handle is closed, and its locks with it.
    fn close_locks(&self, _handle: HandleId) {}

    /// Whether a restarted host could not give a lock of the handle again: it fails until it is
    /// closed.
    fn has_lost_lock(&self, _handle: HandleId) -> bool {
        false
    }
}

/// A change that has its number.
pub struct Submitted {
    /// The number.
    pub seq: Seq,
    /// Resolves when the host has carried the change out, or refused it; the sender is dropped when
    /// the session has ended.
    pub applied: oneshot::Receiver<Result<Outcome, Errno>>,
}

impl Submitted {
    /// Waits for *applied*; the end of the session is `ENOTCONN`.
    pub async fn wait(self) -> Result<Outcome, Errno> {
        self.applied.await.unwrap_or(Err(Errno::ENOTCONN))
    }
}

impl fmt::Debug for Submitted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Submitted").field("seq", &self.seq).finish_non_exhaustive()
    }
}
