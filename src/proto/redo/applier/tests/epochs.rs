//! A host that was killed, a disk that failed, a machine that forgot.

use super::*;
use crate::proto::redo::record::Recovered;

/// A killed run's record.
fn recovered(stable: u64, done: &[u64], intents: &[u64]) -> Recovered {
    let header = Header {
        session: crate::id::SessionId([0; 16]),
        epoch: EPOCH,
        first: Seq(1),
        stable: Seq(stable),
        fsid: 1,
        inode: 2,
    };
    let result = (Ok(Outcome::Done), true);
    Recovered {
        header,
        done: done.iter().map(|seq| (Seq(*seq), result)).collect(),
        intents: intents.iter().map(|seq| (Seq(*seq), Seen::default())).collect(),
    }
}

fn fail(host: &mut Host) {
    host.applier.handle_disk_failed(NEXT, host.now);
    host.drain();
}

#[test]
fn a_sync_for_another_reason_counts_beside_the_one_that_is_asked_for() {
    let mut host = Host::of(Applier::new(EPOCH, Seq(1)));
    host.apply(1..=3, 1);
    host.applier.handle_synced_unasked(Seq(2), host.now);
    host.drain();
    assert_eq!((host.stable(), host.applier.stable()), (Some(2), Seq(2)));
    host.pass(Duration::from_secs(5));
    assert_eq!(host.syncs, [3]);
    host.apply(4..=4, 1);
    host.applier.handle_synced_unasked(Seq(4), host.now);
    host.sync();
    assert_eq!(host.stable(), Some(4), "what was asked for comes late");
    // what the disk forgot since is not stable by a sync of before
    host.apply(5..=5, 1);
    fail(&mut host);
    host.applier.handle_synced_unasked(Seq(5), host.now);
    assert_eq!(host.applier.stable(), Seq(4));
}

#[test]
fn a_session_that_the_host_does_not_know_begins_where_the_client_holds() {
    let mut host = Host::of(Applier::new(EPOCH, Seq(8)));
    let unknown =
        Cursor { epoch: EPOCH, known: false, applied: Seq(7), ahead: Vec::new(), stable: Seq(7) };
    assert_eq!(host.applier.resume(Seq(8)), unknown);
    // the answer may not have arrived
    assert_eq!(host.applier.resume(Seq(8)), unknown);
    host.apply(8..=8, 1);
    assert!(host.applier.resume(Seq(8)).known);
}

#[test]
fn what_was_told_is_expected_again_from_a_host_that_does_not_know_it() {
    let mut host = Host::of(Applier::new(EPOCH, Seq(1)));
    host.applier.resume(Seq(3));
    host.applier.wait_for(Seq(1), "one");
    assert!(host.applier.is_redoing());
    host.send(again(write(1, &[]), Some(Outcome::Done))).unwrap();
    assert_eq!(host.running[&1], How::Again { told: Some(Outcome::Done) });
    host.send(again(write(3, &[]), None)).unwrap();
    host.done(1);
    host.send(again(write(2, &[]), None)).unwrap();
    host.done(2);
    assert!(host.applier.is_redoing(), "the third came again too");
    assert!(host.reached.is_empty());
    host.done(3);
    assert!(!host.applier.is_redoing());
    assert_eq!(host.reached, ["one"]);
}

#[test]
fn a_killed_run_s_results_are_answered_and_its_intents_are_resolved() {
    let mut host = Host::of(Applier::recover(recovered(1, &[1, 2, 3, 5], &[4, 7])));
    assert_eq!(host.syncs, [3], "what it applied reaches the disk first");
    let cursor = host.applier.resume(Seq(3));
    host.drain();
    assert_eq!((cursor.known, cursor.applied, cursor.ahead), (true, Seq(3), vec![Seq(5)]));
    assert_eq!((host.result(3), host.result(2)), (Some(Ok(Outcome::Done)), None));
    let resumed = How::Resumed { before: Seen::default() };
    host.send(write(4, &[])).unwrap();
    host.send(write(6, &[])).unwrap();
    host.send(again(write(7, &[]), None)).unwrap();
    assert_eq!(host.running[&4], resumed);
    assert_eq!(host.running[&6], How::First);
    assert_eq!(host.running[&7], resumed);
    host.done(4);
    assert_eq!(host.applier.cursor(), Seq(5));
    let unknown = host.applier.handle_foreign_change(FILE, host.now);
    assert!(unknown, "nobody knows what the killed run touched");
    host.sync();
    assert_eq!(host.syncs, [5]);
}

#[test]
fn a_killed_run_s_failures_still_set_aside_what_comes_after_them() {
    let mut record = recovered(0, &[1], &[]);
    record.done.insert(Seq(2), (failed(), true));
    let mut host = Host::of(Applier::recover(record));
    host.send(write(3, &[2])).unwrap();
    assert_eq!(host.result(3), Some(aside(2)));
}

#[test]
fn what_was_stable_before_the_machine_forgot_is_not_done_again() {
    let outlive = |held, unanswered| {
        Applier::outlive(recovered(4, &[1, 2, 3, 4, 6], &[7]), NEXT, Seq(held), Seq(unanswered))
    };
    let mut host = Host::of(outlive(1, 3).unwrap());
    let cursor = host.applier.resume(Seq(3));
    host.drain();
    let (applied, ahead, stable) = (Seq(4), Vec::new(), Seq(4));
    assert_eq!(cursor, Cursor { epoch: NEXT, known: true, applied, ahead, stable });
    let answers = [3, 4].map(|seq| LogAck::Applied { seq: Seq(seq), result: Ok(Outcome::Done) });
    assert_eq!(host.acks, answers);
    assert!(host.applier.is_redoing(), "six was done, and seven begun");
    host.send(again(write(5, &[]), None)).unwrap();
    host.done(5);
    host.send(again(write(6, &[]), None)).unwrap();
    assert_eq!(host.running[&6], How::Again { told: None });
    host.done(6);
    assert!(host.applier.is_redoing());
    host.send(again(write(7, &[]), None)).unwrap();
    host.done(7);
    assert!(!host.applier.is_redoing());
    // the client knows as much
    assert!(outlive(5, 5).is_none());
    assert!(outlive(9, 9).is_none());
    // but for what came of the last one
    assert_eq!(outlive(5, 4).unwrap().results().count(), 1);
}

#[test]
fn what_cannot_be_answered_does_not_count_as_stable_once_the_machine_forgot() {
    let outlive = |held, unanswered| {
        Applier::outlive(recovered(4, &[1, 2, 4], &[]), NEXT, Seq(held), Seq(unanswered))
            .map(|applier: Applier<u64, &str>| applier.stable().0)
    };
    assert_eq!(outlive(1, 1), Some(2));
    assert_eq!(outlive(1, 4), Some(4), "the third was answered");
    assert_eq!(outlive(3, 3), None);
    assert_eq!(outlive(5, 3), None);
}

#[test]
fn a_record_without_entries_knows_nothing() {
    let mut host = Host::of(Applier::recover(recovered(0, &[], &[])));
    assert!(!host.applier.resume(Seq(1)).known);
    assert!(host.syncs.is_empty());
}

#[test]
fn a_disk_that_failed_loses_what_is_not_stable_and_it_is_done_again() {
    let mut host = Host::new();
    host.apply(1..=2, 1);
    host.pass(Duration::from_secs(5));
    host.sync();
    host.apply(3..=4, 1);
    host.send(write(6, &[5])).unwrap();
    host.pass(Duration::from_secs(5));
    host.applier.wait_for(Seq(5), "five");
    fail(&mut host);
    assert_eq!(host.acks.last(), Some(&LogAck::Lost { epoch: NEXT, stable: Seq(2) }));
    assert_eq!((host.applier.cursor(), host.applier.waiting()), (Seq(2), (0, 0)));
    assert!(host.applier.is_redoing());
    // a sync of the epoch that ended
    host.sync();
    assert_eq!(host.applier.stable(), Seq(2));
    host.send(again(write(3, &[]), Some(made(FILE)))).unwrap();
    assert_eq!(host.running[&3], How::Again { told: Some(Outcome::Done) }, "what it said last");
    host.done(3);
    assert!(host.applier.is_redoing());
    // a frame from before: it was carried out all the same
    host.send(write(4, &[])).unwrap();
    assert_eq!(host.running[&4], How::Again { told: Some(Outcome::Done) });
    host.done(4);
    assert!(!host.applier.is_redoing());
    host.send(write(5, &[])).unwrap();
    assert_eq!(host.running[&5], How::First);
    assert!(host.reached.is_empty());
    host.done(5);
    assert_eq!(host.reached, ["five"]);
    host.pass(Duration::from_secs(5));
    host.sync();
    assert_eq!(host.stable(), Some(5));
}

#[test]
fn an_entry_that_ran_when_the_epoch_ended_does_not_run_twice_at_once() {
    let mut host = Host::new();
    host.send(write(1, &[])).unwrap();
    host.send(write(2, &[])).unwrap();
    host.send(write(3, &[])).unwrap();
    fail(&mut host);
    host.send(again(write(1, &[]), None)).unwrap();
    host.send(again(write(1, &[]), None)).unwrap();
    assert_eq!(host.applier.waiting(), (1, 1));
    host.finish(1, Ok(made(FILE)));
    assert_eq!(host.result(1), None, "it may be lost");
    assert_eq!(host.running[&1], How::Again { told: Some(made(FILE)) });
    host.finish(1, Ok(made(FILE)));
    assert_eq!(host.result(1), Some(Ok(made(FILE))));
    // nobody sent it again yet
    host.done(2);
    assert_eq!((host.result(2), host.applier.cursor()), (None, Seq(1)));
    host.send(again(write(2, &[]), None)).unwrap();
    host.done(2);
    assert_eq!(host.applier.cursor(), Seq(2));
    // struck meanwhile: its application was told an error, and the user what came of it
    host.send(nothing(3)).unwrap();
    host.finish(3, Ok(made(FILE)));
    assert_eq!(host.changes[&3].mutation, Mutation::Nothing);
    assert_eq!(host.running[&3], How::Again { told: Some(made(FILE)) });
}

#[test]
fn a_failed_run_from_before_the_epoch_is_no_reason_to_doubt() {
    let mut host = Host::new();
    host.send(write(1, &[])).unwrap();
    fail(&mut host);
    host.send(write(1, &[])).unwrap();
    host.finish(1, failed());
    assert_eq!(host.running[&1], How::First);
}

#[test]
fn a_disk_that_fails_forgets_the_intents_of_a_killed_run() {
    let mut host = Host::of(Applier::recover(recovered(0, &[1], &[2])));
    fail(&mut host);
    host.send(again(write(1, &[]), None)).unwrap();
    host.send(again(write(2, &[]), None)).unwrap();
    assert_eq!(host.running[&1], How::Again { told: Some(Outcome::Done) });
    assert_eq!(host.running[&2], How::Again { told: None });
}

/// An entry was on its way when the disk failed: it runs for the first time, and comes again. If it
/// waited for what another session does again, and that one had such an entry, too, both would wait
/// for ever.
#[test]
fn regression_an_entry_on_its_way_when_the_epoch_began_waits_for_no_other_session() {
    let mut host = Host::new();
    fail(&mut host);
    host.send(write(1, &[])).unwrap();
    assert!(!host.applier.is_redoing() && !host.applier.redoes(Seq(1)));
    host.send(again(write(1, &[]), None)).unwrap();
    host.send(write(2, &[])).unwrap();
    assert!(host.applier.is_redoing(), "others wait for it");
    assert!(host.applier.redoes(Seq(1)) && !host.applier.redoes(Seq(2)));
    host.done(1);
    assert!(!host.applier.is_redoing());
}

/// The connection is lost between an entry and the one before it; their application gives up, and
/// is told an error. When the one before it is struck, and done, the other must not begin: it was
/// struck too, and only comes behind.
#[test]
fn regression_what_waits_when_the_client_comes_back_is_not_done_before_it_comes_again() {
    let mut host = Host::new();
    host.send(awaited(2, &[1])).unwrap();
    host.applier.resume(Seq(1));
    assert_eq!(host.applier.waiting(), (0, 0));
    host.send(nothing(1)).unwrap();
    host.done(1);
    assert!(host.running.is_empty(), "an application was told that it failed");
    host.send(nothing(2)).unwrap();
    assert_eq!(host.changes[&2].mutation, Mutation::Nothing);
}

/// A copy was carried out, and its client was not told before the disk failed: so it sends what was
/// written there before once more.
#[test]
fn regression_a_copy_whose_client_was_not_told_of_it_is_not_called_done() {
    let copy = Mutation::CopyRange {
        source: FILE.into(),
        source_handle: None,
        source_offset: 0,
        node: FILE.into(),
        handle: None,
        offset: 8,
        len: 8,
    };
    let copy = entry(1, &[], Promise::Awaited, copy);
    for sent in [copy.clone(), again(copy.clone(), None)] {
        let mut host = Host::new();
        host.send(copy.clone()).unwrap();
        host.done(1);
        fail(&mut host);
        host.send(sent).unwrap();
        assert_eq!(host.running[&1], How::Again { told: None });
    }
}
