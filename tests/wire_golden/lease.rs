//! Leases, locks and notices.

use p2pfs::id::{HostRun, LeaseId, RequestId};
use p2pfs::wire::errno::Errno;
use p2pfs::wire::lease::{
    Blocker, Claim, Lease, LeaseKind, LeaseRequest, Lock, LockFamily, LockKind, Notice, Version,
};

use super::{ATTR, HANDLE, NODE, golden};

const REQUEST: RequestId = RequestId(5);
const LEASE: LeaseId = LeaseId(3);
const GRANTED: Lease = Lease { id: LEASE, node: NODE, kind: LeaseKind::Exclusive };
const VERSION: Version = Version { ctime: ATTR.ctime, mtime: ATTR.mtime, size: 9 };

fn lock(kind: LockKind, family: LockFamily) -> Lock {
    Lock { node: NODE, handle: HANDLE, owner: 99, start: 10, end: u64::MAX, kind, family }
}

const BLOCKER: Blocker = Blocker { start: 1, end: 9, kind: LockKind::Exclusive, owner: Some(7) };

#[test]
fn requests_have_their_bytes() {
    let (request, node) = (REQUEST, NODE);
    let range = lock(LockKind::Shared, LockFamily::Range);
    let whole = lock(LockKind::Exclusive, LockFamily::Whole);
    let requests = [
        ("renew", LeaseRequest::Renew { number: 4 }),
        ("acquire", LeaseRequest::Acquire { request, node, kind: LeaseKind::Shared }),
        ("return", LeaseRequest::Return { lease: LEASE, keep: None }),
        ("downgrade", LeaseRequest::Return { lease: LEASE, keep: Some(LeaseKind::Shared) }),
        (
            "reclaim",
            LeaseRequest::Reclaim {
                claims: vec![Claim { lease: GRANTED, version: VERSION, lapsed: false }],
            },
        ),
        ("reclaim_locks", LeaseRequest::ReclaimLocks { locks: vec![range, whole] }),
        ("reclaim_done", LeaseRequest::ReclaimDone { next: LeaseId(4) }),
        ("lock", LeaseRequest::Lock { request, lock: range, wait: true }),
        ("unlock", LeaseRequest::Unlock { lock: whole }),
        ("cancel_lock", LeaseRequest::CancelLock { request }),
        ("premake", LeaseRequest::Premake { files: 64, directories: 4 }),
        ("test_lock", LeaseRequest::TestLock { request, lock: range }),
    ];
    for (name, request) in requests {
        golden(&format!("lease_{name}"), &request);
    }
}

#[test]
fn notices_have_their_bytes() {
    let (request, node, lease) = (REQUEST, NODE, LEASE);
    let held = lock(LockKind::Exclusive, LockFamily::Range);
    let notices = [
        ("run", Notice::Run { run: HostRun(3), term_ms: 30_000, standing: true }),
        ("renewed", Notice::Renewed { number: 4 }),
        ("granted", Notice::Granted { request, lease: GRANTED, version: VERSION }),
        ("refused", Notice::Refused { request }),
        ("recall", Notice::Recall { lease, keep: Some(LeaseKind::Shared) }),
        ("changed", Notice::Changed { lease, node }),
        ("void", Notice::Void { upto: lease }),
        ("reclaimed", Notice::Reclaimed { lease, held: true }),
        ("lock_reclaimed", Notice::LockReclaimed { lock: held, held: false }),
        ("locked", Notice::Locked { request, result: Ok(()) }),
        ("locked_not", Notice::Locked { request, result: Err(Errno::EAGAIN) }),
        ("premade", Notice::Premade { files: vec![NODE], directories: vec![] }),
        ("working", Notice::Working),
        ("lock_free", Notice::LockTested { request, blocker: None }),
        ("lock_blocked", Notice::LockTested { request, blocker: Some(BLOCKER) }),
    ];
    for (name, notice) in notices {
        golden(&format!("notice_{name}"), &notice);
    }
}
