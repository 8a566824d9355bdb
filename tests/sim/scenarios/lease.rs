//! The rules of the leases, one at a time. Each test says what happens without its rule.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use p2pfs::id::{HandleId, HostRun, LeaseId, NodeId, Seq, SessionId};
use p2pfs::limits::LEASE_TERM;
use p2pfs::proto::lease::grantor::{self, Grantor, Standing, Use, User};
use p2pfs::proto::lease::holder::{self, Holder};
use p2pfs::proto::lease::locks::{self, ClientOutput, Locks, Table};
use p2pfs::wire::lease::{LeaseKind, LeaseRequest, Lock, LockFamily, LockKind, Notice, Version};

const FILE: NodeId = NodeId { ino: 7, generation: 1 };
const ONE: usize = 0;
const TWO: usize = 1;

fn session(client: usize) -> SessionId {
    SessionId([client as u8 + 1; 16])
}

/// Two clients and a host, which hear each other at once.
struct Pair {
    now: Instant,
    grantor: Grantor<u32>,
    holders: [Holder; 2],
    cached: [BTreeSet<NodeId>; 2],
    flushes: Vec<LeaseId>,
    gone: Vec<u32>,
    /// Uses that went on while another client still had the object in its cache.
    stale: Vec<u32>,
}

impl Pair {
    fn new() -> Self {
        let now = Instant::now();
        let mut pair = Self {
            now,
            grantor: Grantor::new(HostRun(1), [], now),
            holders: [Holder::new(now), Holder::new(now)],
            cached: [BTreeSet::new(), BTreeSet::new()],
            flushes: Vec::new(),
            gone: Vec::new(),
            stale: Vec::new(),
        };
        for client in [ONE, TWO] {
            pair.holders[client].handle_connected(now);
            pair.grantor.handle_connected(session(client), now);
        }
        pair.talk();
        pair
    }

    /// The client has a lease, and what it read under it in its cache.
    fn leased(&mut self, client: usize, kind: LeaseKind) -> LeaseId {
        self.holders[client].acquire(FILE, kind, self.now);
        self.talk();
        self.cached[client].insert(FILE);
        self.holders[client].may_read(FILE, self.now).expect("nobody minds")
    }

    /// Connects to a host that was restarted; nothing is to be done again.
    fn back(&mut self, client: usize) {
        self.holders[client].handle_connected(self.now);
        self.grantor.handle_connected(session(client), self.now);
        self.talk();
        self.grantor.handle_redone(session(client), self.now);
        self.talk();
    }

    fn wants(&mut self, client: usize, usage: Use, ticket: u32) {
        self.grantor.wants(User::Session(session(client)), &[(FILE, usage)], ticket, self.now);
        self.talk();
    }

    fn applied(&mut self, client: usize, seq: Seq) {
        self.holders[client].handle_applied(seq, None, self.now);
        self.talk();
    }

    fn flushed(&mut self, client: usize, lease: LeaseId) {
        self.holders[client].handle_flushed(lease, self.now);
        self.talk();
    }

    /// Everybody hears everything.
    fn talk(&mut self) {
        loop {
            let mut quiet = true;
            for client in [ONE, TWO] {
                while let Some(output) = self.holders[client].poll_output() {
                    quiet = false;
                    self.do_for_holder(client, output);
                }
            }
            while let Some(output) = self.grantor.poll_output() {
                quiet = false;
                self.do_for_grantor(output);
            }
            if quiet {
                return;
            }
        }
    }

    fn do_for_holder(&mut self, client: usize, output: holder::Output) {
        match output {
            holder::Output::Send(request) => {
                self.grantor.handle_request(session(client), request, self.now).expect("agreed");
                // whoever waited goes on at once
                while let Some(output) = self.grantor.poll_output() {
                    self.do_for_grantor(output);
                }
            }
            holder::Output::Flush { lease, .. } => self.flushes.push(lease),
            holder::Output::Drop { node } => {
                self.cached[client].remove(&node);
            }
            holder::Output::Answered { .. } | holder::Output::Lost { .. } => {}
        }
    }

    fn do_for_grantor(&mut self, output: grantor::Output<u32>) {
        match output {
            grantor::Output::Send { session: to, notice } => {
                let client = usize::from(to.0[0]) - 1;
                self.holders[client].handle_notice(notice, self.now).expect("agreed");
            }
            grantor::Output::Go(ticket) => {
                if self.cached.iter().any(|cached| cached.contains(&FILE)) {
                    self.stale.push(ticket);
                }
                self.gone.push(ticket);
            }
            grantor::Output::Watch { node } => {
                self.grantor.handle_watched(node, Some(Version::default()), self.now);
            }
            grantor::Output::Compare { session, claim } => {
                self.grantor.handle_compared(session, claim.lease.id, true, self.now);
            }
            grantor::Output::Unwatch { .. } => {}
        }
    }
}

/// Rule 11. What the kernel hands over during the recall is accepted, and the lease comes back when
/// all of it is applied. Without it the other client reads before the last entries are applied.
#[test]
fn a_recalled_lease_comes_back_after_what_was_accepted_under_it() {
    let mut pair = Pair::new();
    let lease = pair.leased(ONE, LeaseKind::Exclusive);
    pair.holders[ONE].accepted(lease, Seq(1));
    pair.wants(TWO, Use::Read, 1);
    assert_eq!(pair.flushes, [lease]);
    assert_eq!(pair.holders[ONE].may_write(FILE, pair.now), None);
    assert_eq!(pair.holders[ONE].may_flush(FILE, pair.now), Some(lease));
    pair.holders[ONE].accepted(lease, Seq(2));
    pair.flushed(ONE, lease);
    assert!(pair.gone.is_empty(), "it was read before everything was applied");
    pair.applied(ONE, Seq(1));
    assert!(pair.gone.is_empty(), "it was read before everything was applied");
    pair.applied(ONE, Seq(2));
    assert_eq!(pair.gone, [1]);
}

/// Rule 11. The holder's own call is not queued behind the recall, which waits for it. Without it
/// the two wait for each other, and neither goes on.
#[test]
fn a_holders_own_calls_pass_its_recall() {
    let mut pair = Pair::new();
    let lease = pair.leased(ONE, LeaseKind::Exclusive);
    pair.holders[ONE].accepted(lease, Seq(1));
    pair.wants(TWO, Use::Change, 1);
    pair.wants(ONE, Use::Read, 2);
    assert_eq!(pair.gone, [2]);
}

/// Rule 15. No answer mixes old and new: what was cached goes before the lease does. Without it the
/// other client changes what is still in the cache here.
#[test]
fn what_was_cached_is_dropped_before_anybody_changes_it() {
    for kind in [LeaseKind::Shared, LeaseKind::Exclusive] {
        let mut pair = Pair::new();
        let lease = pair.leased(ONE, kind);
        pair.wants(TWO, Use::Change, 1);
        if kind == LeaseKind::Exclusive {
            pair.flushed(ONE, lease);
        }
        assert_eq!((&pair.gone[..], &pair.stale[..]), (&[1][..], &[][..]));
    }
}

/// Rule 10. The machine sleeps with a lease, and while it does another one changes the object.
/// Without it changes are accepted on wake, and another one may have the lease by now.
#[test]
fn nothing_is_accepted_on_wake() {
    let mut pair = Pair::new();
    pair.leased(ONE, LeaseKind::Exclusive);
    pair.holders[ONE].handle_suspend(pair.now);
    pair.now += Duration::from_secs(1);
    assert_eq!(pair.holders[ONE].may_write(FILE, pair.now), None);
    assert_eq!(pair.holders[ONE].may_flush(FILE, pair.now), None);
    assert_eq!(pair.holders[ONE].may_read(FILE, pair.now), None);
    pair.talk();
    assert!(pair.cached[ONE].is_empty());
    pair.wants(TWO, Use::Change, 1);
    assert_eq!(pair.gone, [1], "it waits for one that sleeps");
}

/// Rule 7. The host restarts, and another client is back first: it gets nothing that the one with
/// the lease may still count on. Without the grace it changes what that one has in its cache.
#[test]
fn after_a_restart_nothing_is_given_away_before_its_holder_is_back() {
    let mut pair = Pair::new();
    let lease = pair.leased(ONE, LeaseKind::Exclusive);
    pair.grantor = Grantor::new(HostRun(2), [session(ONE), session(TWO)], pair.now);
    for client in [ONE, TWO] {
        pair.holders[client].handle_lost(pair.now);
    }
    pair.back(TWO);
    pair.wants(TWO, Use::Change, 1);
    assert!(pair.gone.is_empty(), "the other one still believes in its lease");
    pair.back(ONE);
    assert_eq!(pair.flushes, [lease]);
    pair.flushed(ONE, lease);
    assert_eq!((&pair.gone[..], &pair.stale[..]), (&[1][..], &[][..]));
}

/// Rule 10. Nobody renews: the term ends here before it does there, and nothing is accepted after.
/// Without it a flush is accepted under a lease that the host may have given to another.
#[test]
fn a_lapsed_lease_accepts_nothing() {
    let mut pair = Pair::new();
    pair.leased(ONE, LeaseKind::Exclusive);
    pair.wants(TWO, Use::Change, 1);
    let over = pair.now + LEASE_TERM;
    let early = over - LEASE_TERM / 128;
    assert_eq!(pair.holders[ONE].may_flush(FILE, early), None, "the host may give it to another");
    assert_eq!(pair.holders[ONE].may_read(FILE, early), None);
    pair.now = over;
    pair.grantor.handle_timeout(over);
    assert_eq!(pair.holders[ONE].may_write(FILE, over), None);
    pair.talk();
    assert_eq!(pair.gone, [1]);
}

/// Rules 10 and 14. What was accepted before the lapse counts as long as nobody else has changed
/// the object. Without it the entry counts as good, and is written over what the other has changed.
#[test]
fn what_was_accepted_before_a_lapse_is_decided_by_what_has_happened_since() {
    for changed in [false, true] {
        let mut pair = Pair::new();
        let lease = pair.leased(ONE, LeaseKind::Exclusive);
        pair.holders[ONE].accepted(lease, Seq(1));
        pair.now += LEASE_TERM;
        pair.grantor.handle_timeout(pair.now);
        if changed {
            pair.wants(TWO, Use::Change, 1);
            assert_eq!(pair.gone, [1]);
        }
        let standing = pair.grantor.standing(session(ONE), lease, FILE);
        assert_eq!(standing, if changed { Standing::Overtaken } else { Standing::Good });
    }
}

/// Rule 12. A process is not kept out: it ends the lease. Without it changes are accepted on top of
/// what is no more.
#[test]
fn what_a_process_changes_is_leased_no_more() {
    let mut pair = Pair::new();
    let lease = pair.leased(ONE, LeaseKind::Exclusive);
    pair.holders[ONE].accepted(lease, Seq(1));
    pair.grantor.handle_changed(FILE, pair.now);
    pair.talk();
    assert_eq!(pair.holders[ONE].may_write(FILE, pair.now), None);
    assert!(pair.cached[ONE].is_empty());
    let standing = pair.grantor.standing(session(ONE), lease, FILE);
    assert_eq!(standing, Standing::Overtaken, "both have changed it");
}

/// Rule 13. Events were missed: nobody knows what has changed. Without it both go on answering from
/// what may be old.
#[test]
fn an_overflow_voids_all_leases() {
    let mut pair = Pair::new();
    pair.leased(ONE, LeaseKind::Shared);
    pair.leased(TWO, LeaseKind::Shared);
    pair.grantor.handle_overflow(pair.now);
    pair.talk();
    for client in [ONE, TWO] {
        assert_eq!(pair.holders[client].may_read(FILE, pair.now), None);
        assert!(pair.cached[client].is_empty());
    }
    assert!(pair.grantor.is_empty());
}

fn lock(handle: u64, start: u64) -> Lock {
    Lock {
        node: FILE,
        handle: HandleId(handle),
        owner: handle,
        start,
        end: start + 9,
        kind: LockKind::Exclusive,
        family: LockFamily::Range,
    }
}

/// Asks a host, whose kernel gives a lock or not, and hears what it says.
fn settle(table: &mut Table, locks: &mut Locks, client: usize, gives: bool, now: Instant) {
    while let Some(output) = locks.poll_output() {
        if let ClientOutput::Send(request) = output {
            table.handle_request(session(client), request, now).expect("agreed");
        }
    }
    let done = LeaseRequest::ReclaimDone { next: LeaseId(1) };
    table.handle_request(session(client), done, now).expect("agreed");
    let mut heard: Vec<Notice> = Vec::new();
    while let Some(output) = table.poll_output() {
        match output {
            locks::Output::Take { session, lock } => table.handle_taken(session, lock, gives, now),
            locks::Output::Send { session: to, notice } if to == session(client) => {
                heard.push(notice);
            }
            _ => {}
        }
    }
    for notice in heard {
        locks.handle_notice(&notice).expect("agreed");
    }
}

/// Rule 7. The host restarts: a lock is had again, or its handle is broken until it is closed.
/// Without it another client gets the same lock.
#[test]
fn locks_are_had_again_after_a_restart_or_their_handles_are_broken() {
    for gives in [true, false] {
        let now = Instant::now();
        let mut table = Table::new([], now);
        let mut mine = Locks::default();
        mine.lock(lock(1, 0), false);
        settle(&mut table, &mut mine, ONE, true, now);
        let mut table = Table::new([session(ONE)], now);
        mine.handle_run(true);
        settle(&mut table, &mut mine, ONE, gives, now);
        assert_eq!(mine.is_broken(HandleId(1)), !gives);
        let blocks = table.blocker(session(TWO), &lock(1, 5)).is_some();
        assert_eq!(blocks, gives, "two have the same lock");
        mine.close(HandleId(1));
        assert!(!mine.is_broken(HandleId(1)));
    }
}
