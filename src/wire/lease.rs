//! Leases and locks: what a client asks of the host, and what the host tells it unasked. Settled
//! since version 1 of the protocol.
//!
//! Both directions share one stream of a connection, in order. Leases may also come along with
//! answers, which arrive in any order; so a holder remembers leases that were recalled before they
//! arrived. See [`crate::proto::lease`] for the rules.

use serde::{Deserialize, Serialize};

use crate::id::{HandleId, HostRun, LeaseId, NodeId, RequestId};
use crate::wire::call::Time;
use crate::wire::errno::Errno;

/// A permission to answer for the host.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Lease {
    /// Its number.
    pub id: LeaseId,
    /// For which object.
    pub node: NodeId,
    /// To do what.
    pub kind: LeaseKind,
}

/// What a lease permits. **Append only: the order is the format.**
///
/// A lease of a file covers its data, attributes and extended attributes; one of a directory also
/// its names, those that are not there too.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Ord, PartialEq, PartialOrd, Serialize)]
pub enum LeaseKind {
    /// To answer reads from the cache.
    Shared,
    /// To accept changes, too. Nobody else holds one.
    Exclusive,
}

/// What the object was when the client last knew it: equal versions, equal content.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct Version {
    /// Last change of the node.
    pub ctime: Time,
    /// Last change of the data.
    pub mtime: Time,
    /// Length, bytes.
    pub size: u64,
}

/// A lease that a restarted host is asked to grant again.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Claim {
    /// As it was.
    pub lease: Lease,
    /// What it covered.
    pub version: Version,
    /// Its term is over: only the entries that were accepted under it count on it.
    pub lapsed: bool,
}

/// A lock on a file, for one owner of one client.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Lock {
    /// The file.
    pub node: NodeId,
    /// Through which it is locked.
    pub handle: HandleId,
    /// Who: as FUSE's `lock_owner`, of one session.
    pub owner: u64,
    /// From this byte.
    pub start: u64,
    /// To this byte, it included; `u64::MAX` is the end, wherever it is.
    pub end: u64,
    /// Shared or exclusive.
    pub kind: LockKind,
    /// Which family: they do not see each other.
    pub family: LockFamily,
}

/// Whom a lock keeps out. **Append only: the order is the format.**
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub enum LockKind {
    /// `F_RDLCK`, `LOCK_SH`
    Shared,
    /// `F_WRLCK`, `LOCK_EX`
    Exclusive,
}

/// How a lock was made. **Append only: the order is the format.**
#[derive(Clone, Copy, Debug, Deserialize, Eq, Ord, PartialEq, PartialOrd, Serialize)]
pub enum LockFamily {
    /// `fcntl`: bytes.
    Range,
    /// `flock`: the whole file, by the open file.
    Whole,
}

/// What a client asks. **Append only: the order is the format.**
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub enum LeaseRequest {
    /// All leases of the session for another term, counted from the sending of this.
    /// -> [`Notice::Renewed`]
    Renew {
        /// Which one is answered.
        number: u64,
    },
    /// A lease. -> [`Notice::Granted`] or [`Notice::Refused`]
    Acquire {
        /// Which one is answered.
        request: RequestId,
        /// For which object.
        node: NodeId,
        /// To do what.
        kind: LeaseKind,
    },
    /// Lets a lease go, after everything that was accepted under it is applied; or confirms a
    /// [`Notice::Changed`] or a [`Notice::Void`].
    Return {
        /// Which; the number that the notice names.
        lease: LeaseId,
        /// What is kept of it. Of a `Void`: something if entries still count on leases before it.
        keep: Option<LeaseKind>,
    },
    /// Leases from before a restart of the host; at most 256. -> [`Notice::Reclaimed`] for each
    Reclaim {
        /// As they were.
        claims: Vec<Claim>,
    },
    /// Locks from before a restart of the host; at most 256. -> [`Notice::LockReclaimed`] for each
    ReclaimLocks {
        /// As they were.
        locks: Vec<Lock>,
    },
    /// Everything from before the restart was asked for.
    ReclaimDone {
        /// The first number that no lease of the session has had.
        next: LeaseId,
    },
    /// A lock. -> [`Notice::Locked`]
    Lock {
        /// Which one is answered.
        request: RequestId,
        /// Which.
        lock: Lock,
        /// Whether to wait for it.
        wait: bool,
    },
    /// Lets go what the owner has locked of these bytes.
    Unlock {
        /// The file, the owner, the bytes and the family; the kind does not matter.
        lock: Lock,
    },
    /// The lock that is waited for is no longer wanted. -> [`Notice::Locked`]
    CancelLock {
        /// The one that asked.
        request: RequestId,
    },
    /// Pre-made nodes for files or directories to come. -> [`Notice::Premade`]
    Premake {
        /// How many files are wanted; at most 256.
        files: u16,
        /// How many directories are wanted; at most 256.
        directories: u16,
    },
    /// Who keeps this lock from being had (`F_GETLK`). -> [`Notice::LockTested`]
    TestLock {
        /// Which one is answered.
        request: RequestId,
        /// Which.
        lock: Lock,
    },
}

/// What a host tells. **Append only: the order is the format.**
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub enum Notice {
    /// The first on every connection: which run of the host this is. Leases of another run can be
    /// reclaimed, or are over.
    Run {
        /// Which.
        run: HostRun,
        /// How long a lease lasts, milliseconds.
        term_ms: u32,
        /// Whether the session's leases of this run still stand.
        standing: bool,
    },
    /// All leases last for a term from the sending of that renewal.
    Renewed {
        /// Which one.
        number: u64,
    },
    /// A lease.
    Granted {
        /// Which request is answered.
        request: RequestId,
        /// The lease.
        lease: Lease,
        /// What it covers.
        version: Version,
    },
    /// No lease: somebody else needs the object just now, or it cannot be watched.
    Refused {
        /// Which request is answered.
        request: RequestId,
    },
    /// Let the lease go, or all but `keep` of it: somebody else waits.
    Recall {
        /// Which.
        lease: LeaseId,
        /// What may be kept.
        keep: Option<LeaseKind>,
    },
    /// The lease is over: somebody on the host has changed the object.
    Changed {
        /// Which.
        lease: LeaseId,
        /// The object.
        node: NodeId,
    },
    /// All leases of the session are over: changes may have been missed, or the term has passed.
    Void {
        /// Leases up to this number.
        upto: LeaseId,
    },
    /// What became of a claim.
    Reclaimed {
        /// Which lease; it keeps its number.
        lease: LeaseId,
        /// Whether it stands. If not, somebody has changed the object, or holds it.
        held: bool,
    },
    /// What became of a lock from before.
    LockReclaimed {
        /// Which.
        lock: Lock,
        /// Whether it is held again.
        held: bool,
    },
    /// What became of a lock that was asked for.
    Locked {
        /// Which request is answered.
        request: RequestId,
        /// EAGAIN: somebody else has it. EINTR: it was cancelled, unless this was answered before.
        result: Result<(), Errno>,
    },
    /// Nodes that wait for a name: an entry that creates may take one.
    Premade {
        /// Regular files; at most 256.
        files: Vec<NodeId>,
        /// Directories; at most 256.
        directories: Vec<NodeId>,
    },
    /// The host works on what was asked, though it takes long (a disk that spins up).
    Working,
    /// Who keeps a lock from being had; nobody: it is free.
    LockTested {
        /// Which request is answered.
        request: RequestId,
        /// One of those who do.
        blocker: Option<Blocker>,
    },
}

/// A lock that keeps another from being had.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Blocker {
    /// From this byte.
    pub start: u64,
    /// To this byte, it included; `u64::MAX` is the end, wherever it is.
    pub end: u64,
    /// Shared or exclusive.
    pub kind: LockKind,
    /// Its owner, if it is one of the session that asks.
    pub owner: Option<u64>,
}
