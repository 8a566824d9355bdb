//! More rules of the redo log: what came by on both sides, and what is struck.

use std::time::Instant;

use p2pfs::id::{ConnectionId, Epoch, NodeId, Seq};
use p2pfs::proto::redo::applier::{self, Applier};
use p2pfs::proto::redo::log::{self, Log};
use p2pfs::wire::call::XattrName;
use p2pfs::wire::errno::Errno;
use p2pfs::wire::log::{Change, LogAck, LogEntry, Mutation, Promise, Refused, RenameMode, Sent};

use crate::sim::apps::name;
use crate::sim::script::{ROOT, Script, copy, create, rename, unlink, write};

const FILE: NodeId = NodeId { ino: 7, generation: 1 };

/// A log and an applier, and what is on the way between them.
struct Wire {
    now: Instant,
    log: Log<Vec<u64>>,
    applier: Applier<Vec<u64>, u32>,
    connections: u64,
    sent: Vec<(LogEntry, Vec<u64>)>,
    told: Vec<(Seq, bool)>,
}

impl Wire {
    fn new() -> Self {
        let mut wire = Self {
            now: Instant::now(),
            log: Log::new(),
            applier: Applier::new(Epoch([1; 16]), Seq(1)),
            connections: 0,
            sent: Vec::new(),
            told: Vec::new(),
        };
        wire.connect();
        wire
    }

    fn connect(&mut self) {
        self.connections += 1;
        let cursor = self.applier.resume(self.log.unanswered());
        self.log.handle_connected(ConnectionId(self.connections), &cursor).expect("agreed");
        self.drain();
    }

    fn lose(&mut self) {
        self.log.handle_lost(ConnectionId(self.connections));
        self.log.give_up();
        self.drain();
    }

    fn append(&mut self, mutation: Mutation, body: &[u64], promise: Promise) -> Seq {
        let seq = self.log.append(Change::new(mutation), body.to_vec(), body.len() * 8, promise);
        self.drain();
        seq
    }

    fn drain(&mut self) {
        while let Some(output) = self.log.poll_output() {
            match output {
                log::Output::Ship { entry, body, .. } => self.sent.push((entry, body)),
                log::Output::Applied { seq, result } => self.told.push((seq, result.is_ok())),
                _ => {}
            }
        }
    }

    /// The frame arrives; what the host applies because of it.
    fn arrives(&mut self, frame: &(LogEntry, Vec<u64>)) -> Vec<(Seq, Mutation)> {
        let (entry, body) = frame.clone();
        self.applier.handle_entry(entry, body, 8, self.now).expect("agreed");
        let mut applied = Vec::new();
        while let Some(output) = self.applier.poll_output() {
            if let applier::Output::Apply { seq, change, .. } = output {
                applied.push((seq, change.mutation));
                let done = Ok(p2pfs::wire::log::Outcome::Done);
                self.applier.handle_result(seq, done, self.now);
            }
        }
        applied
    }
}

/// Rule 6. An unlink waits at the host for what is before it, which is lost with its lane. By the
/// time this comes again the unlink was told to have failed. Without it the unlink is applied as
/// soon as what it waited for is.
#[test]
fn what_is_struck_does_not_happen_when_what_it_waited_for_arrives() {
    let mut wire = Wire::new();
    wire.append(rename((ROOT, "a"), (ROOT, "b"), RenameMode::Replace), &[], Promise::Accepted);
    let struck = wire.append(unlink("b"), &[], Promise::Awaited);
    let sent = std::mem::take(&mut wire.sent);
    assert!(wire.arrives(&sent[1]).is_empty(), "it does not wait");
    wire.lose();
    assert_eq!(wire.told, [(struck, false)]);
    wire.connect();
    let again = std::mem::take(&mut wire.sent);
    // both orders of the lanes, and a late frame of the dead connection
    let mut applied = Vec::new();
    for frame in again.iter().rev().chain(&sent) {
        applied.extend(wire.arrives(frame));
    }
    assert_eq!(applied.len(), 2, "{applied:?}");
    assert_eq!(applied[1], (struck, Mutation::Nothing), "it happens later");
}

/// Rule 4. The lanes deliver a save backwards. Without it the save is carried out first, and the
/// older data last.
#[test]
fn a_save_is_carried_out_in_order_whatever_the_lanes_do() {
    let mut wire = Wire::new();
    wire.append(write(FILE, 0, &[1]), &[1], Promise::Accepted);
    wire.append(write(FILE, 0, &[2]), &[2], Promise::Accepted);
    let to = p2pfs::wire::log::Occupant::Node(FILE.into());
    let mut save = rename((ROOT, "t"), (ROOT, "f"), RenameMode::Replace);
    if let Mutation::Rename { occupant, .. } = &mut save {
        *occupant = to;
    }
    wire.append(save, &[], Promise::Accepted);
    let sent = std::mem::take(&mut wire.sent);
    let mut applied = Vec::new();
    for frame in sent.iter().rev() {
        applied.extend(wire.arrives(frame).into_iter().map(|(seq, _)| seq.0));
    }
    assert_eq!(applied, [1, 2, 3]);
}

/// Rule 14, changed and changed. Somebody else has changed the object since the lease lapsed, and
/// the host says so: both versions are kept. Without it only the first write is kept, and the later
/// one changes what is somebody else's.
#[test]
fn what_was_overtaken_is_kept_aside_with_its_data() {
    let mut wire = Wire::new();
    let seq = wire.append(write(FILE, 0, &[5]), &[5], Promise::Accepted);
    let later = wire.append(write(FILE, 1, &[6]), &[6], Promise::Accepted);
    let result = Err(Refused::conflict(Errno::ESTALE));
    wire.log.handle_ack(LogAck::Applied { seq, result }).expect("agreed");
    let asides: Vec<_> = wire.log.aside().map(|aside| (aside.seq, aside.body.clone())).collect();
    assert_eq!(asides, [(seq, vec![5]), (later, vec![6])]);
}

/// Rule 3. A host that cannot remember is told so with every entry. Without it the entry is sent as
/// if for the first time.
#[test]
fn what_another_epoch_may_have_seen_is_sent_again_as_such() {
    let mut wire = Wire::new();
    let seq = wire.append(write(FILE, 0, &[5]), &[5], Promise::Accepted);
    wire.sent.clear();
    wire.lose();
    wire.applier = Applier::new(Epoch([2; 16]), wire.log.held());
    wire.connect();
    let sent: Vec<_> = wire.sent.iter().map(|(entry, _)| (entry.seq, entry.sent)).collect();
    assert_eq!(sent, [(seq, Sent::Again { told: None })]);
}

/// Rule 14, changed here and deleted there. The write ends aside. Without the conflict the write
/// counts as done, and its data are nowhere.
#[test]
fn what_was_deleted_there_does_not_come_back_by_a_write() {
    let mut script = Script::new();
    let file = script.create("file");
    script.answered();
    script.interfered();
    script.process(&unlink("file"), &[]);
    script.write(file, 0, &[1]);
    script.answered();
    assert_eq!(script.asides().len(), 1);
    assert_eq!(script.data("file"), None);
}

/// Rules 1 and 12. A process and the client make `index.lock`; the client's was accepted, as the
/// name was free to it. Taken for its own by its name, the client writes into the file of the
/// process.
#[test]
fn a_lock_file_of_a_process_is_not_replaced_by_an_accepted_one() {
    let mut script = Script::new();
    script.interfered();
    let ours = script.create("index.lock");
    script.write(ours, 0, &[5]);
    let theirs = create(&mut script.world, "index.lock");
    let theirs = script.process(&theirs, &[]);
    script.answered();
    assert_eq!(script.named("index.lock"), Some(theirs));
    assert_eq!(script.data("index.lock"), Some(Vec::new()));
    assert_eq!(script.asides().len(), 2, "both have it");
}

/// Rule 8. A rename was told, and is sent again: its answer is the same, though a crash has taken
/// it back, and whatever was made at the old name since. By the name alone the redone rename moves
/// the new one; without what was told it is set aside.
#[test]
fn a_rename_that_was_told_stays_told() {
    for (steps, data) in [(0, false), (usize::MAX, true)] {
        let mut script = Script::new();
        let made = create(&mut script.world, "a");
        script.ask(made, &[]);
        script.answered();
        script.ask(rename((ROOT, "a"), (ROOT, "b"), RenameMode::Replace), &[]);
        script.answered();
        let made = create(&mut script.world, "a");
        script.ask(made, &[]);
        script.answered();
        script.crash(steps, data);
        script.rest();
        assert!(script.data("a").is_some() && script.data("b").is_some());
        assert!(script.asides().is_empty());
        assert!(script.world.clients[0].told_failed.is_empty());
    }
}

/// Rule 1. A process has put another file in the place of the one that is to move. Without the
/// expectation theirs is moved.
#[test]
fn a_rename_does_not_move_what_somebody_else_has_put_there() {
    let mut script = Script::new();
    script.interfered();
    script.create("t");
    script.answered();
    script.process(&unlink("t"), &[]);
    let theirs = create(&mut script.world, "t");
    let theirs = script.process(&theirs, &[]);
    script.rename("t", "document");
    script.answered();
    assert_eq!(script.named("t"), Some(theirs), "it was moved");
    assert_eq!(script.named("document"), None);
    assert_eq!(script.asides().len(), 1);
}

/// Rule 1. What a copy has read is not there any more when it is sent again. Made again, it copies
/// what the source was given later.
#[test]
fn a_copy_that_was_told_is_not_made_again() {
    let mut script = Script::new();
    let (from, to) = (script.create("from"), script.create("to"));
    script.write(from, 0, &[1, 2]);
    script.write(to, 0, &[7, 7, 7]);
    script.stable();
    script.ask(copy(from, to, 2), &[]);
    script.answered();
    script.write(from, 0, &[9, 9]);
    script.answered();
    script.crash_with_everything();
    script.rest();
    assert_eq!(script.data("to"), Some(vec![1, 2, 7]));
}

/// Rule 1. An attribute that must be new is there already when it is set again. With its flags it
/// fails with EEXIST, and is set aside.
#[test]
fn a_new_attribute_is_set_again_though_it_is_there() {
    let mut script = Script::new();
    let file = script.create("file");
    script.stable();
    let name = XattrName(b"user.x".to_vec());
    script.accept(Mutation::SetXattr { node: file.into(), name, flags: 1 }, &[6]);
    script.answered();
    script.crash_with_everything();
    script.rest();
    assert!(script.asides().is_empty());
}

/// Rule 1. An attribute is gone already when it is removed again. Without it the removal fails, and
/// is set aside.
#[test]
fn an_attribute_is_removed_again_though_it_is_gone() {
    let mut script = Script::new();
    let file = script.create("file");
    let name = XattrName(b"user.x".to_vec());
    script.accept(Mutation::SetXattr { node: file.into(), name: name.clone(), flags: 0 }, &[6]);
    script.stable();
    script.accept(Mutation::RemoveXattr { node: file.into(), name }, &[]);
    script.answered();
    script.crash_with_everything();
    script.rest();
    assert!(script.asides().is_empty());
}

/// Rule 4. A call comes on another lane than the changes before it. Without it the call is answered
/// from before the change.
#[test]
fn a_call_waits_for_the_changes_before_it_also_when_they_come_again() {
    let reached = |wire: &mut Wire| {
        let outputs = std::iter::from_fn(|| wire.applier.poll_output());
        outputs.filter(|output| matches!(output, applier::Output::Reached(_))).count()
    };
    let mut wire = Wire::new();
    let seq = wire.append(write(FILE, 0, &[1]), &[1], Promise::Accepted);
    let later = wire.append(write(FILE, 0, &[2]), &[2], Promise::Accepted);
    wire.applier.wait_for(seq, 1);
    assert_eq!(reached(&mut wire), 0, "it reads what was there before");
    wire.lose();
    wire.applier = Applier::new(Epoch([2; 16]), wire.log.held());
    wire.sent.clear();
    wire.connect();
    let again = std::mem::take(&mut wire.sent);
    for (entry, body) in again.iter().rev().cloned() {
        wire.applier.handle_entry(entry, body, 8, wire.now).expect("agreed");
    }
    wire.applier.wait_for(seq, 1);
    let done = Ok(p2pfs::wire::log::Outcome::Done);
    wire.applier.handle_result(seq, done, wire.now);
    assert_eq!(reached(&mut wire), 0, "it reads what is half done again");
    wire.applier.handle_result(later, done, wire.now);
    assert_eq!(reached(&mut wire), 1);
}

/// Rule 1. A file was created and renamed; a crash keeps both, and by then the disk is full. What
/// was created is found by its new name: nothing has to be made once more, which is refused, and
/// sets aside what comes after it.
#[test]
fn what_has_another_name_since_is_found_on_a_full_disk() {
    let mut script = Script::new();
    let create = create(&mut script.world, "a");
    script.ask(create, &[]);
    script.answered();
    script.ask(rename((ROOT, "a"), (ROOT, "b"), RenameMode::Replace), &[]);
    script.until(|world| world.host.disk.borrow().now.lookup(ROOT, &name("b")).is_some());
    script.crash_with_everything();
    script.world.host.disk.borrow_mut().full = true;
    script.until(|world| !world.clients[0].connected);
    script.answered();
    assert!(script.asides().is_empty(), "{:?}", script.asides());
    script.world.host.disk.borrow_mut().full = false;
    script.rest();
    assert!(script.data("b").is_some());
}
