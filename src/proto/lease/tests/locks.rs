use std::time::{Duration, Instant};

use crate::id::{HandleId, LeaseId, RequestId, SessionId};
use crate::limits::{LEASE_TERM, LOCKS_MAX};
use crate::proto::lease::locks::{ClientOutput, Locks, Output, Table};
use crate::wire::errno::Errno;
use crate::wire::lease::{LeaseRequest, Lock, LockFamily, LockKind, Notice};

use super::world::{Dice, node, session};

fn lock(owner: u64, start: u64, end: u64, kind: LockKind) -> Lock {
    let family = LockFamily::Range;
    Lock { node: node(1), handle: HandleId(owner), owner, start, end, kind, family }
}

fn exclusive(owner: u64, start: u64, end: u64) -> Lock {
    lock(owner, start, end, LockKind::Exclusive)
}

/// A table whose kernel gives everything, unless it is told not to.
struct Desk {
    now: Instant,
    table: Table,
    refuses: bool,
    notices: Vec<(SessionId, Notice)>,
    freed: Vec<Lock>,
    stopped: Vec<Lock>,
}

impl Desk {
    fn new(expected: &[usize]) -> Self {
        let now = Instant::now();
        let table = Table::new(expected.iter().map(|&client| session(client)), now);
        let (notices, freed, stopped) = (Vec::new(), Vec::new(), Vec::new());
        Self { now, table, refuses: false, notices, freed, stopped }
    }

    fn ask(&mut self, client: usize, request: LeaseRequest) {
        self.table.handle_request(session(client), request, self.now).unwrap();
        self.drain();
    }

    fn lock(&mut self, client: usize, request: u64, lock: Lock, wait: bool) {
        self.ask(client, LeaseRequest::Lock { request: RequestId(request), lock, wait });
    }

    fn drain(&mut self) {
        while let Some(output) = self.table.poll_output() {
            match output {
                Output::Send { session, notice } => self.notices.push((session, notice)),
                Output::Take { session, lock } => {
                    self.table.handle_taken(session, lock, !self.refuses, self.now);
                }
                Output::Free { lock, .. } => self.freed.push(lock),
                Output::Stop { lock, .. } => self.stopped.push(lock),
            }
        }
    }

    /// What was answered since the last time.
    fn told(&mut self) -> Vec<(usize, u64, Result<(), Errno>)> {
        let notices = std::mem::take(&mut self.notices).into_iter();
        notices
            .filter_map(|(to, notice)| match notice {
                Notice::Locked { request, result } => {
                    Some((usize::from(to.0[0]), request.0, result))
                }
                _ => None,
            })
            .collect()
    }
}

#[test]
fn two_clients_lock_different_bytes_but_not_the_same() {
    let mut desk = Desk::new(&[]);
    desk.lock(0, 1, exclusive(1, 0, 9), false);
    desk.lock(1, 1, exclusive(1, 10, 19), false);
    desk.lock(1, 2, exclusive(1, 9, 9), false);
    assert_eq!(desk.told(), [(0, 1, Ok(())), (1, 1, Ok(())), (1, 2, Err(Errno::EAGAIN))]);
    let blocker = desk.table.blocker(session(1), &exclusive(1, 0, u64::MAX));
    assert_eq!(blocker, Some(exclusive(1, 0, 9)));
}

#[test]
fn readers_share_and_the_families_do_not_see_each_other() {
    let mut desk = Desk::new(&[]);
    desk.lock(0, 1, lock(1, 0, 9, LockKind::Shared), false);
    desk.lock(1, 1, lock(1, 5, 9, LockKind::Shared), false);
    let whole = Lock { family: LockFamily::Whole, ..exclusive(1, 3, 4) };
    desk.lock(1, 2, whole, false);
    assert_eq!(desk.told(), [(0, 1, Ok(())), (1, 1, Ok(())), (1, 2, Ok(()))]);
    let elsewhere = Lock { start: 100, end: 100, ..whole };
    assert!(desk.table.blocker(session(0), &elsewhere).is_some(), "flock is of the whole file");
}

#[test]
fn unlocking_the_middle_leaves_both_ends_locked() {
    let mut desk = Desk::new(&[]);
    desk.lock(0, 1, exclusive(1, 0, u64::MAX), false);
    desk.ask(0, LeaseRequest::Unlock { lock: exclusive(1, 10, 19) });
    let blocker = |start, end| desk.table.blocker(session(1), &exclusive(1, start, end));
    assert_eq!(blocker(10, 19), None);
    assert_eq!(blocker(0, 10), Some(exclusive(1, 0, 9)));
    assert_eq!(blocker(19, 20), Some(exclusive(1, 20, u64::MAX)));
}

#[test]
fn an_owner_replaces_its_own_locks() {
    let mut desk = Desk::new(&[]);
    desk.lock(0, 1, exclusive(1, 0, 9), false);
    desk.lock(0, 2, lock(1, 5, 14, LockKind::Shared), false);
    let shared = |start, end| lock(1, start, end, LockKind::Shared);
    assert_eq!(desk.table.blocker(session(1), &shared(0, 14)), Some(exclusive(1, 0, 4)));
    let owner = |who| desk.table.blocker_told(session(who), &shared(0, 4)).map(|by| by.owner);
    assert_eq!(owner(1), Some(None), "whoever has it is another session's");
    assert_eq!(desk.table.blocker(session(1), &shared(5, 14)), None);
}

#[test]
fn who_waits_gets_its_turn_in_order() {
    let mut desk = Desk::new(&[]);
    desk.lock(0, 1, lock(1, 0, 9, LockKind::Shared), true);
    desk.lock(1, 1, exclusive(1, 0, 9), true);
    desk.lock(2, 1, lock(1, 0, 9, LockKind::Shared), true);
    assert_eq!(desk.told(), [(0, 1, Ok(()))], "the reader does not overtake the writer");
    desk.ask(0, LeaseRequest::Unlock { lock: exclusive(1, 0, 9) });
    assert_eq!(desk.told(), [(1, 1, Ok(()))]);
    desk.table.close(session(1), HandleId(1), desk.now);
    desk.drain();
    assert_eq!(desk.told(), [(2, 1, Ok(()))]);
}

#[test]
fn what_a_process_on_the_host_has_is_waited_for_and_may_be_given_up() {
    let mut desk = Desk::new(&[]);
    desk.refuses = true;
    desk.lock(0, 1, exclusive(1, 0, 9), false);
    assert_eq!(desk.told(), [(0, 1, Err(Errno::EAGAIN))]);
    desk.lock(0, 2, exclusive(1, 0, 9), true);
    assert_eq!(desk.told(), []);
    desk.table.handle_taken(session(0), exclusive(1, 0, 9), true, desk.now);
    desk.drain();
    assert_eq!(desk.told(), [(0, 2, Ok(()))]);
    desk.lock(0, 3, exclusive(1, 20, 29), true);
    desk.ask(0, LeaseRequest::CancelLock { request: RequestId(3) });
    assert_eq!(desk.stopped, [exclusive(1, 20, 29)]);
    // the kernel gave it just then
    desk.table.handle_taken(session(0), exclusive(1, 20, 29), true, desk.now);
    desk.drain();
    assert_eq!(desk.freed, [exclusive(1, 20, 29)]);
    assert_eq!(desk.told(), [(0, 3, Err(Errno::EINTR))]);
}

#[test]
fn after_a_restart_nobody_locks_before_those_who_had_locks_are_back() {
    let mut desk = Desk::new(&[0, 1]);
    desk.lock(2, 1, exclusive(1, 0, 9), false);
    desk.lock(2, 2, exclusive(1, 50, 59), true);
    desk.ask(0, LeaseRequest::ReclaimLocks { locks: vec![exclusive(1, 0, 9)] });
    desk.ask(0, LeaseRequest::ReclaimDone { next: LeaseId(1) });
    let lock = exclusive(1, 0, 9);
    assert_eq!(desk.notices, [(session(0), Notice::LockReclaimed { lock, held: true })]);
    desk.table.forget(session(1), desk.now);
    desk.drain();
    assert_eq!(desk.told(), [(2, 1, Err(Errno::EAGAIN)), (2, 2, Ok(()))]);
    desk.ask(1, LeaseRequest::ReclaimLocks { locks: vec![exclusive(1, 70, 79)] });
    let (lock, held) = (exclusive(1, 70, 79), false);
    assert_eq!(desk.notices, [(session(1), Notice::LockReclaimed { lock, held })], "too late");
}

#[test]
fn the_wait_for_those_who_had_locks_ends_with_the_term() {
    let mut desk = Desk::new(&[0]);
    desk.lock(1, 1, exclusive(1, 0, 9), true);
    assert_eq!(desk.table.poll_timeout(), Some(desk.now + LEASE_TERM));
    desk.now += LEASE_TERM;
    desk.table.handle_timeout(desk.now);
    desk.drain();
    assert_eq!(desk.told(), [(1, 1, Ok(()))]);
}

fn drain(locks: &mut Locks) -> Vec<ClientOutput> {
    std::iter::from_fn(|| locks.poll_output()).collect()
}

#[test]
fn a_lock_that_cannot_be_had_again_breaks_its_handle_until_it_is_closed() {
    let mut locks = Locks::default();
    let mine = exclusive(1, 0, 9);
    let request = locks.lock(mine, false);
    locks.handle_notice(&Notice::Locked { request, result: Ok(()) }).unwrap();
    drain(&mut locks);
    locks.handle_run(true);
    let again = LeaseRequest::ReclaimLocks { locks: vec![mine] };
    assert_eq!(drain(&mut locks), [ClientOutput::Send(again)]);
    locks.handle_notice(&Notice::LockReclaimed { lock: mine, held: false }).unwrap();
    assert_eq!(drain(&mut locks), [ClientOutput::Broken(HandleId(1))]);
    assert!(locks.is_broken(HandleId(1)));
    locks.close(HandleId(1));
    assert!(!locks.is_broken(HandleId(1)));
}

#[test]
fn a_client_with_too_many_locks_is_told_so_and_an_answer_to_nothing_ends_the_session() {
    let mut locks = Locks::default();
    for byte in 0..LOCKS_MAX as u64 {
        locks.lock(exclusive(1, 2 * byte, 2 * byte), false);
    }
    drain(&mut locks);
    let request = locks.lock(exclusive(1, 0, 0), false);
    let result = Err(Errno::ENOLCK);
    assert_eq!(drain(&mut locks), [ClientOutput::Locked { request, result }]);
    let notice = Notice::Locked { request: RequestId(request.0 + 1), result: Ok(()) };
    assert!(locks.handle_notice(&notice).is_err());
}

/// Clients lock and unlock at random, and lose connections with everything on the way. In the end
/// the host holds what the clients believe that they hold, and nothing was held by two.
#[test]
fn host_and_clients_agree_whatever_is_lost() {
    for seed in 0..500 {
        let mut dice = Dice(seed);
        let mut desk = Desk::new(&[]);
        let mut clients: Vec<Locks> = (0..3).map(|_| Locks::default()).collect();
        for step in 0..200 {
            let client = usize::try_from(dice.below(3)).unwrap();
            let (start, len) = (dice.below(30), dice.below(10));
            let kind = if dice.one_in(2) { LockKind::Shared } else { LockKind::Exclusive };
            let bytes = lock(1 + dice.below(2), start, start + len, kind);
            let known = &mut clients[client];
            match dice.below(6) {
                0 | 1 => {
                    let wait = dice.one_in(2);
                    let request = known.lock(bytes, wait);
                    if wait && dice.one_in(3) {
                        known.cancel(request);
                    }
                }
                2 => known.unlock(bytes),
                3 if dice.one_in(3) => known.close(bytes.handle),
                4 => known.handle_run(false),
                _ => {}
            }
            // now and then everything is lost on the way there, or back, and the client is told
            let (there, back) = (!dice.one_in(8), !dice.one_in(8));
            exchange(&mut desk, &mut clients, there, back);
            if !there || !back || step == 199 {
                clients.iter_mut().for_each(|locks| locks.handle_run(false));
                exchange(&mut desk, &mut clients, true, true);
            }
        }
        compare(seed, &mut desk, &mut clients);
    }
}

fn exchange(desk: &mut Desk, clients: &mut [Locks], there: bool, back: bool) {
    loop {
        let mut idle = true;
        for (client, locks) in clients.iter_mut().enumerate() {
            for output in drain(locks) {
                if let ClientOutput::Send(request) = output
                    && there
                {
                    idle = false;
                    desk.ask(client, request);
                }
            }
        }
        for (to, notice) in std::mem::take(&mut desk.notices) {
            idle = false;
            if back {
                clients[usize::from(to.0[0])].handle_notice(&notice).unwrap();
            }
        }
        if idle {
            return;
        }
    }
}

fn compare(seed: u64, desk: &mut Desk, clients: &mut [Locks]) {
    // nobody waits any more
    for locks in clients.iter_mut() {
        for request in 1..1000 {
            locks.cancel(RequestId(request));
        }
    }
    exchange(desk, clients, true, true);
    clients.iter_mut().for_each(|locks| locks.handle_run(false));
    exchange(desk, clients, true, true);
    let later = desk.now + Duration::from_secs(1);
    desk.table.handle_timeout(later);
    for (client, locks) in clients.iter().enumerate() {
        for owner in 1..=2 {
            let held = locks.held_by(node(1), LockFamily::Range, owner);
            let given: Vec<_> =
                desk.table.owned(session(client), &exclusive(owner, 0, 0)).collect();
            assert_eq!(held, given, "seed {seed}: owner {owner} of client {client}");
        }
    }
}
