//! A client and a driver play, in memory.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::*;
use crate::proto::redo::record::Header;
use crate::wire::call::{Attr, Entry, Time};
use crate::wire::errno::Errno;
use crate::wire::log::{NodeRef, Occupant};
use crate::wire::name::Name;

mod epochs;

const EPOCH: Epoch = Epoch([1; 16]);
const NEXT: Epoch = Epoch([2; 16]);
const FILE: NodeId = NodeId { ino: 9, generation: 9 };

/// An applier, and what it was told to do and has not done.
struct Host {
    applier: Applier<u64, &'static str>,
    now: Instant,
    running: BTreeMap<u64, How>,
    changes: BTreeMap<u64, Change>,
    acks: Vec<LogAck>,
    reached: Vec<&'static str>,
    syncs: Vec<u64>,
}

impl Host {
    fn new() -> Self {
        Self::of(Applier::new(EPOCH, Seq(1)))
    }

    fn of(applier: Applier<u64, &'static str>) -> Self {
        let mut host = Self {
            applier,
            now: Instant::now(),
            running: BTreeMap::new(),
            changes: BTreeMap::new(),
            acks: Vec::new(),
            reached: Vec::new(),
            syncs: Vec::new(),
        };
        host.drain();
        host
    }

    /// Does what the applier wants, but carries out only what must not be.
    fn drain(&mut self) {
        while let Some(output) = self.applier.poll_output() {
            match output {
                Output::Apply { seq, how: How::Refused(refused), .. } => {
                    self.applier.handle_result(seq, Err(refused), self.now);
                }
                Output::Apply { seq, change, how, .. } => {
                    assert_eq!(self.running.insert(seq.0, how), None, "{seq} runs twice at once");
                    self.changes.insert(seq.0, change);
                }
                Output::Ack(ack) => self.acks.push(ack),
                Output::Reached(waiter) => self.reached.push(waiter),
                Output::Sync { upto } => self.syncs.push(upto.0),
            }
        }
    }

    fn send(&mut self, entry: LogEntry) -> Result<(), PeerMisbehaved> {
        self.send_bytes(entry, 1)
    }

    fn send_bytes(&mut self, entry: LogEntry, bytes: usize) -> Result<(), PeerMisbehaved> {
        let sent = self.applier.handle_entry(entry, 0, bytes, self.now);
        self.drain();
        sent
    }

    /// The driver carries it out.
    fn finish(&mut self, seq: u64, result: Result<Outcome, Refused>) {
        assert!(self.running.remove(&seq).is_some(), "{seq} does not run");
        self.applier.handle_result(Seq(seq), result, self.now);
        self.drain();
    }

    fn done(&mut self, seq: u64) {
        self.finish(seq, Ok(Outcome::Done));
    }

    /// Entries come, and are carried out.
    fn apply(&mut self, seqs: impl Iterator<Item = u64>, bytes: usize) {
        for seq in seqs {
            self.send_bytes(write(seq, &[]), bytes).unwrap();
            self.done(seq);
        }
    }

    fn sync(&mut self) {
        let upto = self.syncs.remove(0);
        self.applier.handle_synced(Seq(upto), self.now);
        self.drain();
    }

    fn pass(&mut self, time: Duration) {
        self.now += time;
        self.applier.handle_timeout(self.now);
        self.drain();
    }

    fn running(&self) -> Vec<u64> {
        self.running.keys().copied().collect()
    }

    fn result(&self, seq: u64) -> Option<Result<Outcome, Refused>> {
        self.acks.iter().rev().find_map(|ack| match ack {
            LogAck::Applied { seq: of, result } if of.0 == seq => Some(*result),
            _ => None,
        })
    }

    fn stable(&self) -> Option<u64> {
        self.acks.iter().rev().find_map(|ack| match ack {
            LogAck::Stable { upto } => Some(upto.0),
            _ => None,
        })
    }
}

fn entry(seq: u64, after: &[u64], promise: Promise, mutation: Mutation) -> LogEntry {
    LogEntry {
        seq: Seq(seq),
        after: after.iter().copied().map(Seq).collect(),
        promise,
        sent: Sent::First,
        change: Change::new(mutation),
    }
}

fn write_to(node: NodeRef) -> Mutation {
    Mutation::Write { node, handle: None, offset: 0 }
}

/// An accepted write.
fn write(seq: u64, after: &[u64]) -> LogEntry {
    entry(seq, after, Promise::Accepted, write_to(FILE.into()))
}

fn awaited(seq: u64, after: &[u64]) -> LogEntry {
    LogEntry { promise: Promise::Awaited, ..write(seq, after) }
}

fn nothing(seq: u64) -> LogEntry {
    entry(seq, &[], Promise::Awaited, Mutation::Nothing)
}

fn again(entry: LogEntry, told: Option<Outcome>) -> LogEntry {
    LogEntry { sent: Sent::Again { told }, ..entry }
}

fn made(node: NodeId) -> Outcome {
    let time = Time::default();
    let attr = Attr {
        size: 0,
        blocks: 0,
        atime: time,
        mtime: time,
        ctime: time,
        btime: time,
        mode: 0o100_644,
        nlink: 1,
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: 4096,
    };
    Outcome::Entry(Entry { node, attr })
}

fn aside(because: u64) -> Result<Outcome, Refused> {
    Err(Refused { errno: Errno::EIO, reason: Reason::SetAside { because: Seq(because) } })
}

fn failed() -> Result<Outcome, Refused> {
    Err(Refused::by_system(Errno::ENOSPC))
}

#[test]
fn entries_run_when_their_predecessors_are_applied_and_not_in_the_order_of_arrival() {
    let mut host = Host::new();
    host.send(write(3, &[1, 2])).unwrap();
    host.send(write(4, &[])).unwrap();
    host.send(write(2, &[1])).unwrap();
    assert_eq!(host.running(), [4]);
    assert_eq!(host.applier.waiting(), (2, 2));
    host.send(write(1, &[])).unwrap();
    assert_eq!(host.running(), [1, 4]);
    host.done(1);
    host.done(4);
    assert_eq!(host.running(), [2]);
    host.done(2);
    assert_eq!((host.running(), host.applier.cursor()), (vec![3], Seq(2)));
    host.done(3);
    assert_eq!(host.applier.cursor(), Seq(4));
    assert_eq!(host.applier.waiting(), (0, 0));
}

#[test]
fn an_entry_that_comes_again_is_answered_and_not_applied() {
    let mut host = Host::new();
    host.send(awaited(1, &[])).unwrap();
    host.send(awaited(1, &[])).unwrap();
    host.finish(1, failed());
    host.acks.clear();
    host.send(awaited(1, &[])).unwrap();
    host.send(nothing(1)).unwrap();
    assert_eq!(host.acks.len(), 2);
    assert_eq!(host.result(1), Some(failed()));
    assert!(host.running.is_empty());
}

#[test]
fn numbers_out_of_the_window_are_refused_and_change_nothing() {
    let mut host = Host::new();
    host.apply(1..=2, 1);
    for entry in [write(0, &[]), write(2 + 1025, &[]), write(5, &[5]), write(5, &[6])] {
        assert_eq!(host.send(entry), Err(PeerMisbehaved::Sequence));
    }
    let maker = entry(5, &[], Promise::Accepted, write_to(NodeRef::MadeBy(Seq(5))));
    assert_eq!(host.send(maker), Err(PeerMisbehaved::Sequence));
    assert_eq!(host.send(write(20, &[1; 9])), Err(PeerMisbehaved::TooMany));
    assert_eq!(host.applier.waiting(), (0, 0));
    host.send(write(2 + 1024, &[1; 8])).unwrap();
    assert_eq!(host.running(), [1026]);
}

#[test]
fn more_data_than_agreed_is_refused_until_some_is_applied() {
    let mut host = Host::new();
    for seq in 1..=33 {
        host.send_bytes(write(seq, &[]), 1 << 20).unwrap();
    }
    assert_eq!(host.send_bytes(write(34, &[]), 1), Err(PeerMisbehaved::TooMany));
    assert_eq!(host.send_bytes(write(34, &[]), 2 << 20), Err(PeerMisbehaved::TooMany));
    // one that is known already is no more data
    host.send_bytes(write(33, &[]), 1 << 20).unwrap();
    host.done(1);
    host.send_bytes(write(34, &[]), 1 << 20).unwrap();
    assert_eq!(host.applier.state_of(Seq(34)), "running");
}

#[test]
fn what_an_entry_made_is_named_by_its_identity_when_it_runs() {
    let mut host = Host::new();
    let name = Name::new("f").unwrap();
    let to = Mutation::Unlink {
        parent: NodeId::ROOT.into(),
        name,
        occupant: Occupant::Node(NodeRef::MadeBy(Seq(1))),
    };
    host.send(entry(2, &[], Promise::Accepted, write_to(NodeRef::MadeBy(Seq(1))))).unwrap();
    host.send(entry(3, &[2], Promise::Accepted, to)).unwrap();
    host.send(write(1, &[])).unwrap();
    assert_eq!(host.running(), [1]);
    host.finish(1, Ok(made(FILE)));
    assert_eq!(host.running(), [2]);
    assert_eq!(host.changes[&2].mutation, write_to(FILE.into()));
    host.done(2);
    assert!(matches!(
        host.changes[&3].mutation,
        Mutation::Unlink { occupant: Occupant::Node(NodeRef::Node(FILE)), .. }
    ));
}

#[test]
fn what_names_a_node_that_was_not_made_fails() {
    let mut host = Host::new();
    host.send(awaited(1, &[])).unwrap();
    host.send(write(2, &[])).unwrap();
    host.finish(1, failed());
    host.finish(2, failed());
    for (seq, maker) in [(3, 1), (4, 2)] {
        let change = write_to(NodeRef::MadeBy(Seq(maker)));
        host.send(entry(seq, &[], Promise::Accepted, change)).unwrap();
    }
    assert_eq!(host.result(3), Some(Err(Refused::conflict(Errno::ENOENT))));
    assert_eq!(host.result(4), Some(aside(2)));
    let mut host = Host::of(Applier::new(EPOCH, Seq(10)));
    host.send(entry(10, &[], Promise::Accepted, write_to(NodeRef::MadeBy(Seq(9))))).unwrap();
    assert_eq!(host.result(10), Some(Err(Refused::conflict(Errno::ESTALE))));
}

#[test]
fn what_comes_after_an_accepted_entry_that_failed_is_set_aside_and_nothing_else() {
    let mut host = Host::new();
    host.send(write(1, &[])).unwrap();
    host.send(awaited(2, &[1])).unwrap();
    host.send(write(3, &[2])).unwrap();
    host.send(write(4, &[])).unwrap();
    host.send(awaited(5, &[4])).unwrap();
    host.finish(1, failed());
    assert_eq!(host.result(2), Some(aside(1)));
    assert_eq!(host.result(3), Some(aside(1)), "also through one that was awaited");
    host.send(write(6, &[3])).unwrap();
    assert_eq!(host.result(6), Some(aside(1)), "also what comes later");
    host.done(4);
    host.done(5);
    assert_eq!(host.applier.cursor(), Seq(6));
    let states = [1, 2, 3, 4].map(|seq| host.applier.state_of(Seq(seq)));
    assert_eq!(states, ["failed", "aside", "aside", "applied"]);
}

#[test]
fn an_awaited_entry_that_failed_stops_nobody() {
    let mut host = Host::new();
    host.send(awaited(1, &[])).unwrap();
    host.send(write(2, &[1])).unwrap();
    host.finish(1, failed());
    host.done(2);
    assert_eq!(host.result(2), Some(Ok(Outcome::Done)));
}

#[test]
fn an_entry_that_is_struck_while_it_waits_does_not_happen_and_keeps_its_place() {
    let mut host = Host::new();
    host.send(awaited(2, &[1])).unwrap();
    host.send(write(3, &[2])).unwrap();
    host.send(nothing(2)).unwrap();
    assert!(host.running.is_empty());
    host.send(write(1, &[])).unwrap();
    host.done(1);
    assert_eq!(host.changes[&2].mutation, Mutation::Nothing);
    host.done(2);
    assert_eq!(host.running(), [3]);
}

#[test]
fn an_entry_that_is_struck_while_it_runs_tells_what_came_of_it() {
    let mut host = Host::new();
    host.send(awaited(1, &[])).unwrap();
    host.send(nothing(1)).unwrap();
    host.finish(1, Ok(made(FILE)));
    assert_eq!(host.result(1), Some(Ok(made(FILE))));
}

#[test]
fn a_waiter_is_told_when_all_before_it_is_applied() {
    let mut host = Host::new();
    host.applier.wait_for(Seq(0), "none");
    host.applier.wait_for(Seq(2), "two");
    host.drain();
    assert_eq!(host.reached, ["none"]);
    host.send(write(2, &[])).unwrap();
    host.send(write(1, &[])).unwrap();
    host.done(2);
    assert_eq!(host.reached, ["none"]);
    host.done(1);
    assert_eq!(host.reached, ["none", "two"]);
}

#[test]
fn entries_reach_the_disk_five_seconds_after_the_first_of_them() {
    let mut host = Host::new();
    host.apply(1..=1, 1);
    host.pass(Duration::from_secs(3));
    host.apply(2..=2, 1);
    assert!(host.syncs.is_empty());
    host.pass(Duration::from_secs(2));
    assert_eq!(host.syncs, [2]);
    host.apply(3..=3, 1);
    host.pass(Duration::from_secs(1));
    assert_eq!((host.syncs.as_slice(), host.applier.poll_timeout()), (&[2][..], None));
    host.sync();
    assert_eq!((host.stable(), host.applier.stable()), (Some(2), Seq(2)));
    assert_eq!(host.applier.poll_timeout(), Some(host.now + Duration::from_secs(4)));
    host.pass(Duration::from_secs(4));
    host.sync();
    assert_eq!((host.stable(), host.applier.poll_timeout()), (Some(3), None));
    assert_eq!(host.applier.state_of(Seq(3)), "stable");
}

#[test]
fn entries_ahead_of_a_gap_are_not_called_stable() {
    let mut host = Host::new();
    host.apply(1..=1, 1);
    host.apply(3..=3, 1);
    host.pass(Duration::from_secs(5));
    host.sync();
    assert_eq!(host.stable(), Some(1));
    host.apply(2..=2, 1);
    assert_eq!(host.applier.poll_timeout(), Some(host.now), "the third has waited long enough");
}

#[test]
fn many_entries_or_much_data_reach_the_disk_at_once_and_one_sync_runs_at_a_time() {
    let mut host = Host::new();
    host.apply(1..=2048, 1);
    assert!(host.syncs.is_empty());
    host.apply(2049..=6000, 1);
    assert_eq!(host.syncs, [2049]);
    host.sync();
    assert_eq!(host.syncs, [6000]);
    host.sync();
    host.apply(6001..=6016, 1 << 20);
    assert!(host.syncs.is_empty());
    host.apply(6017..=6017, 1);
    assert_eq!(host.syncs, [6017]);
    host.sync();
    assert!(host.syncs.is_empty());
    // what a sync cannot make stable is no reason for one
    host.apply(6019..=6040, 1 << 20);
    assert!(host.syncs.is_empty());
}

#[test]
fn somebody_else_s_change_brings_the_session_s_to_the_disk() {
    let mut host = Host::new();
    let other = NodeId { ino: 3, generation: 3 };
    host.apply(1..=1, 1);
    assert!(!host.applier.handle_foreign_change(other, host.now));
    assert!(host.applier.handle_foreign_change(FILE, host.now));
    host.drain();
    assert_eq!(host.syncs, [1]);
    host.sync();
    assert!(!host.applier.handle_foreign_change(FILE, host.now));
    // it runs: it reaches the disk when it is done
    host.send(write(3, &[])).unwrap();
    assert!(host.applier.handle_foreign_change(FILE, host.now));
    host.done(3);
    assert!(host.syncs.is_empty());
    host.send(nothing(2)).unwrap();
    host.finish(2, Ok(made(other)));
    assert_eq!(host.syncs, [3]);
    assert!(host.applier.handle_foreign_change(other, host.now), "what it made counts too");
}

#[test]
fn a_connection_that_comes_back_is_told_again_what_it_may_have_missed() {
    let mut host = Host::new();
    host.apply([1, 2, 4].into_iter(), 1);
    host.send(write(6, &[5])).unwrap();
    host.acks.clear();
    let cursor = host.applier.resume(Seq(2));
    host.drain();
    let applied = Seq(2);
    let ahead = vec![Seq(4)];
    assert_eq!(cursor, Cursor { epoch: EPOCH, known: true, applied, ahead, stable: Seq(0) });
    let told = [2, 4].map(|seq| LogAck::Applied { seq: Seq(seq), result: Ok(Outcome::Done) });
    assert_eq!(host.acks, told);
}

#[test]
fn results_are_kept_for_two_rounds_of_the_client_s_log() {
    let mut host = Host::new();
    let last = 3 * RESULTS_BEHIND;
    for seq in 1..=last {
        host.apply(seq..=seq, 0);
        if !host.syncs.is_empty() {
            host.sync();
        }
    }
    host.acks.clear();
    host.send(write(last - RESULTS_BEHIND + 1, &[])).unwrap();
    assert_eq!(host.acks.len(), 1);
    assert_eq!(host.applier.results().count() as u64, RESULTS_BEHIND);
    assert_eq!(host.send(write(1, &[])), Err(PeerMisbehaved::Sequence));
}
