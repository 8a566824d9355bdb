//! What a host puts behind its sessions.

use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;

use serde_json::{Value, json};

use crate::id::{Epoch, HandleId, NodeId, Seq, SessionId};
use crate::identity::PeerId;
use crate::identity::wrapping::Subject;
use crate::net::outbox::Outbox;
use crate::proto::PeerMisbehaved;
use crate::proto::redo::execute::How;
use crate::proto::redo::record::{Begun, Recovered, Slot};
use crate::wire::call::{Backlog, Call, Reply};
use crate::wire::errno::Errno;
use crate::wire::lease::{LeaseRequest, Notice};
use crate::wire::log::{Change, Mutation, Outcome, Refused};
use crate::wire::session::{CloseReason, Denial, DeviceId, Identify};

/// The owner's rules: who may use what.
pub trait Policy: Send + Sync {
    /// Decides on request 21 of a key that has been proved (step 122). Called on every connection
    /// and every resume; quick, and never waits for the network.
    fn authorise(
        &self,
        peer: PeerId,
        from: SocketAddr,
        request: &Identify,
    ) -> Result<Authorised, Denial>;

    /// What the rules say now of a session that they approved before: asked again and again, and
    /// after each change of the rules.
    fn review(&self, peer: PeerId, rights: &Rights) -> Review;

    /// Whether a key may change a share; `identity`: with changes that name who makes them.
    fn may_change(&self, peer: PeerId, share: &str, identity: bool) -> bool {
        let _ = (peer, share, identity);
        false
    }

    /// Whether a key could make these changes when it did, also one that was removed since. May
    /// wait for a disk.
    fn could_change(&self, writer: PeerId, subject: &Subject) -> bool {
        let _ = (writer, subject);
        false
    }

    /// What was noted by [`Export::note_client`], of sessions that are not over. May wait for a
    /// disk.
    fn absent(&self) -> Vec<AbsentClient> {
        Vec::new()
    }

    /// The one of a session. May wait for a disk.
    fn client(&self, session: SessionId) -> Option<AbsentClient> {
        let _ = session;
        None
    }

    /// A session that nobody serves is over, with nothing left. May wait for a disk.
    fn forget(&self, session: SessionId) {
        let _ = session;
    }

    /// Called once an hour, where a disk may be waited for: what is kept for clients that have
    /// stayed away for long may go.
    fn sweep(&self) {}
}

/// The client of a session that may make changes, as it is told to others when it is away.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct AbsentClient {
    /// The session.
    pub session: SessionId,
    /// The key that has begun it.
    pub peer: PeerId,
    /// The client machine's name.
    pub client: String,
    /// The share's name.
    pub share: String,
    /// Whether its changes name who made them.
    pub identity: bool,
    /// Whether it has made changes.
    pub has_changed: bool,
    /// When it was heard last, in seconds since 1970; at least then.
    pub since: u64,
    /// What it said that it keeps.
    pub keeps: Option<Backlog>,
}

impl AbsentClient {
    /// As `status --json` shows it.
    pub(crate) fn to_json(&self, now: u64) -> Value {
        json!({
            "key": self.peer.to_text(),
            "client": self.client,
            "share": self.share,
            "away_s": now.saturating_sub(self.since),
            "entries": self.keeps.map(|keeps| keeps.entries),
            "bytes": self.keeps.map(|keeps| keeps.bytes),
        })
    }
}

/// What an approved session may do.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Rights {
    /// The share's name.
    pub share: String,
    /// Whether changes are refused (the session refuses them with EROFS).
    pub read_only: bool,
    /// Whether the host acts as whoever asks, and so must be told.
    pub identity: bool,
    /// What the client's identifier was found to be the same as.
    pub known_by: DeviceId,
}

/// What [`Policy::review`] finds.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Review {
    /// It would be approved as it is.
    Stands,
    /// It may only read now.
    ReadOnly,
    /// It is over; [`CloseReason::Denied`]: the client may ask whether there is another one for it.
    Over(CloseReason),
}

/// What an approved session gets.
#[derive(Clone)]
pub struct Authorised {
    /// What it may do.
    pub rights: Rights,
    /// The session's own view of the share: its open files, its nodes.
    pub export: Arc<dyn Export>,
}

impl std::fmt::Debug for Authorised {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Authorised").field("rights", &self.rights).finish_non_exhaustive()
    }
}

/// See [`Export::rest`].
pub struct Rest(Box<dyn FnOnce() + Send>);

impl Rest {
    /// Work that waits for a disk.
    pub fn new(work: impl FnOnce() + Send + 'static) -> Self {
        Self(Box::new(work))
    }

    /// Does it.
    pub fn run(self) {
        (self.0)();
    }
}

impl std::fmt::Debug for Rest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Rest").finish_non_exhaustive()
    }
}

/// One session's view of a share. All methods may block: they are called on threads for that, or,
/// where they say that it is brief, where it can be told that they do.
///
/// Order is the session's business: a `Sync`, `SyncAll` or `Release` arrives when the entries that
/// it names are applied, and an entry when those it comes after are. Everything else runs in
/// parallel.
pub trait Export: Send + Sync {
    /// Answers a call; the body is empty but for [`Reply::Data`].
    fn call(&self, call: Call) -> Result<(Reply, Bytes), Errno>;

    /// Answers a call if nothing in it can wait for a disk or another machine: quick, and called on
    /// the network's thread. `None`: [`Self::call`] is to answer it.
    fn try_call(&self, call: &Call) -> Option<Result<(Reply, Bytes), Errno>> {
        let _ = call;
        None
    }

    /// Whether [`Self::call`] takes some microseconds for it while nothing waits for a disk.
    fn is_brief_call(&self, call: &Call) -> bool {
        let _ = call;
        false
    }

    /// Whether [`Self::apply`] takes some microseconds for it, with so long a body, while nothing
    /// waits for a disk.
    fn is_brief_change(&self, mutation: &Mutation, body_bytes: usize) -> bool {
        let _ = (mutation, body_bytes);
        false
    }

    /// Carries out a change; `body` is the data of a write or the value of an attribute. What comes
    /// of it is recorded if the record is still of `epoch`.
    fn apply(
        &self,
        epoch: Epoch,
        seq: Seq,
        change: &Change,
        body: &Bytes,
        how: &How,
        poisons: bool,
    ) -> Result<Outcome, Refused>;

    /// What [`Self::apply`] left to do that nobody waits for, and that waits for a disk; asked when
    /// the answer is on its way.
    fn rest(&self) -> Option<Rest> {
        None
    }

    /// Makes all that was applied stable (`syncfs` of the share).
    fn sync_all(&self) -> Result<(), Errno>;

    /// The time in which this machine has forgotten nothing: another one after a reboot, or after
    /// the disk failed to take data.
    fn epoch(&self) -> Epoch;

    /// The directory that is served, by numbers that hold until the next boot: what one session has
    /// synced is stable for all sessions with it, and so is it lost for all of them when the disk
    /// fails. `None` if it is not known.
    fn root(&self) -> Option<(u64, u64)> {
        None
    }

    /// What this host has recorded of the session on this disk: a killed run of the same epoch, or
    /// one of an epoch that has ended.
    fn recover(&self) -> Option<Recovered>;

    /// Begins the session's record anew, in an epoch, with entries that were done before.
    fn begin(&self, begun: Begun, done: &[(Seq, Slot)]) -> Result<(), Errno>;

    /// Whom an open file of the session is.
    fn node_of(&self, handle: HandleId) -> Option<NodeId> {
        let _ = handle;
        None
    }

    /// All entries up to `upto` are on the disk: for the record.
    fn note_stable(&self, upto: Seq);

    /// Puts on the disk what the record says of entries that are stable, so that it outlives a
    /// crash of the machine.
    fn keep_record(&self) -> Result<(), Errno> {
        Ok(())
    }

    /// Notes whose session it is, until it is over.
    fn note_client(&self, client: &AbsentClient) {
        let _ = client;
    }

    /// From now on what this host says of the session's locks goes to `notices`.
    fn attend_locks(&self, notices: Notices);

    /// The session asks about locks. What one connection carried does not come here any more once
    /// there is a newer one.
    ///
    /// # Errors
    ///
    /// The client breaks the protocol.
    fn ask_lock(&self, request: LeaseRequest) -> Result<(), PeerMisbehaved>;

    /// The client has stayed away for long, or is not to come back: its locks are free.
    fn leave(&self);

    /// The session is over for good: nobody comes back to what it had open.
    fn end(&self);

    /// The rules end it: nobody comes back to what it had open, but what its client has left may
    /// still be brought.
    fn cut_off(&self) {
        self.leave();
    }
}

/// The way to a session's client for what it is told unasked.
#[derive(Clone, Debug)]
pub struct Notices(pub(crate) Outbox);

impl Notices {
    /// Tells; in vain if the connection is gone.
    pub fn send(&self, notice: Notice) {
        if let Err((error, ())) = self.0.put(&notice, Bytes::new(), ()) {
            tracing::error!(%error, "a notice that is no message");
        }
    }
}
