//! What a driver sees of the log.

mod order;
mod poison;

use super::*;
use crate::wire::call::{Attr, Entry, Time};
use crate::wire::log::{AttrChange, Mutation, Occupant, Reason, RenameMode, Sent};
use crate::wire::name::Name;

const EPOCH: Epoch = Epoch([1; 16]);
const OTHER: Epoch = Epoch([2; 16]);

fn node(ino: u64) -> NodeId {
    NodeId { ino, generation: 7 }
}

fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

fn made(ino: u64) -> Result<Outcome, Refused> {
    Ok(Outcome::Entry(Entry { node: node(ino), attr: attr() }))
}

fn attr() -> Attr {
    let time = Time::default();
    Attr {
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
    }
}

fn create_in(parent: impl Into<NodeRef>, text: &str) -> Mutation {
    let (parent, name) = (parent.into(), name(text));
    Mutation::Create { parent, name, mode: 0, exclusive: true, premade: None, open: None }
}

fn create(text: &str) -> Mutation {
    create_in(NodeId::ROOT, text)
}

fn write(node: impl Into<NodeRef>) -> Mutation {
    Mutation::Write { node: node.into(), handle: None, offset: 0 }
}

fn set_attr(node: impl Into<NodeRef>) -> Mutation {
    Mutation::SetAttr { node: node.into(), handle: None, change: AttrChange::default() }
}

fn unlink(text: &str) -> Mutation {
    Mutation::Unlink { parent: NodeId::ROOT.into(), name: name(text), occupant: Occupant::Any }
}

fn rmdir(text: &str, dir: impl Into<NodeRef>) -> Mutation {
    let occupant = Occupant::Node(dir.into());
    Mutation::Rmdir { parent: NodeId::ROOT.into(), name: name(text), occupant }
}

fn rename(from: &str, to: &str) -> Mutation {
    Mutation::Rename {
        parent: NodeId::ROOT.into(),
        name: name(from),
        occupant: Occupant::Any,
        new_parent: NodeId::ROOT.into(),
        new_name: name(to),
        new_occupant: Occupant::Any,
        mode: RenameMode::Replace,
    }
}

/// A log, and what came out of it.
struct Client {
    log: Log<u64>,
    shipped: Vec<LogEntry>,
    told: Vec<(u64, Result<Outcome, Errno>)>,
    rest: Vec<Output<u64>>,
}

impl Client {
    fn new() -> Self {
        Self { log: Log::new(), shipped: Vec::new(), told: Vec::new(), rest: Vec::new() }
    }

    fn up() -> Self {
        let mut client = Self::new();
        client.connect(EPOCH, true, 0);
        client
    }

    fn connect(&mut self, epoch: Epoch, known: bool, applied: u64) {
        let cursor = Cursor { epoch, known, applied: Seq(applied), ..Cursor::default() };
        self.connect_at(&cursor).unwrap();
    }

    fn connect_at(&mut self, cursor: &Cursor) -> Result<(), PeerMisbehaved> {
        let result = self.log.handle_connected(ConnectionId(1), cursor);
        self.drain();
        result
    }

    fn lose(&mut self) {
        self.log.handle_lost(ConnectionId(1));
    }

    fn accept(&mut self, mutation: Mutation) -> u64 {
        self.append(mutation, Promise::Accepted)
    }

    fn wait(&mut self, mutation: Mutation) -> u64 {
        self.append(mutation, Promise::Awaited)
    }

    fn append(&mut self, mutation: Mutation, promise: Promise) -> u64 {
        let seq = self.log.append(Change::new(mutation), 0, 10, promise);
        self.drain();
        seq.0
    }

    fn ack(&mut self, seq: u64, result: Result<Outcome, Refused>) {
        self.log.handle_ack(LogAck::Applied { seq: Seq(seq), result }).unwrap();
        self.drain();
    }

    fn done(&mut self, seqs: impl IntoIterator<Item = u64>) {
        seqs.into_iter().for_each(|seq| self.ack(seq, Ok(Outcome::Done)));
    }

    fn stable(&mut self, upto: u64) {
        self.log.handle_ack(LogAck::Stable { upto: Seq(upto) }).unwrap();
        self.drain();
    }

    fn stable_after_done(&mut self, upto: u64) {
        self.done(self.log.unanswered().0..=upto);
        self.stable(upto);
    }

    fn drain(&mut self) {
        while let Some(output) = self.log.poll_output() {
            match output {
                Output::Ship { entry, .. } => self.shipped.push(entry),
                Output::Applied { seq, result } => self.told.push((seq.0, result)),
                Output::Note { .. } | Output::Progress => {}
                rest => self.rest.push(rest),
            }
        }
    }

    /// What was shipped since the last time.
    fn takes(&mut self) -> Vec<LogEntry> {
        std::mem::take(&mut self.shipped)
    }

    fn after(&self, seq: u64) -> Vec<u64> {
        let entry = self.shipped.iter().rfind(|entry| entry.seq == Seq(seq)).unwrap();
        entry.after.iter().map(|seq| seq.0).collect()
    }

    fn mutation(&self, seq: u64) -> Mutation {
        let entry = self.shipped.iter().rfind(|entry| entry.seq == Seq(seq)).unwrap();
        entry.change.mutation.clone()
    }

    fn aside(&self) -> Vec<u64> {
        self.log.aside().map(|aside| aside.seq.0).collect()
    }

    fn states(&self, seqs: impl IntoIterator<Item = u64>) -> Vec<&'static str> {
        seqs.into_iter().map(|seq| self.log.state_of(Seq(seq))).collect()
    }
}

fn refused(errno: Errno) -> Result<Outcome, Refused> {
    Err(Refused::by_system(errno))
}

fn after_failed(because: u64) -> Result<Outcome, Refused> {
    Err(Refused { errno: Errno::EIO, reason: Reason::SetAside { because: Seq(because) } })
}

#[test]
fn a_host_that_remembers_gets_only_what_it_has_not() {
    let mut client = Client::up();
    for _ in 0..4 {
        client.accept(write(node(5)));
    }
    client.lose();
    client.takes();
    let ahead = vec![Seq(3)];
    let cursor = Cursor { epoch: EPOCH, known: true, applied: Seq(1), ahead, stable: Seq::ZERO };
    client.connect_at(&cursor).unwrap();
    let shipped: Vec<(Seq, Sent)> =
        client.takes().into_iter().map(|entry| (entry.seq, entry.sent)).collect();
    assert_eq!(shipped, [(Seq(2), Sent::First), (Seq(4), Sent::First)]);
    assert_eq!(client.log.unanswered(), Seq(1));
    client.done(1..=4);
    assert_eq!(client.told.len(), 4);
}

#[test]
fn a_host_that_forgot_gets_everything_since_stable_with_what_was_told() {
    let mut client = Client::up();
    client.accept(create("a"));
    client.wait(write(node(5)));
    client.wait(write(node(6)));
    client.ack(1, made(4));
    client.stable(1);
    client.done([2]);
    client.lose();
    client.accept(write(node(7)));
    client.takes();
    assert_eq!(client.log.held(), Seq(2));
    client.connect(OTHER, false, 0);
    let sent: Vec<Sent> = client.takes().into_iter().map(|entry| entry.sent).collect();
    let told = Some(Outcome::Done);
    assert_eq!(sent, [Sent::Again { told }, Sent::Again { told: None }, Sent::First]);
    assert_eq!(client.log.unapplied(), (3, 30));
    client.done(2..=4);
    assert_eq!(client.told.len(), 4, "each once");
    assert_eq!(client.states(1..=4), ["stable", "applied", "applied", "applied"]);
}

#[test]
fn the_loss_of_what_was_applied_ships_it_again_on_the_same_connection() {
    let mut client = Client::up();
    for _ in 0..3 {
        client.accept(write(node(5)));
    }
    client.done(1..=2);
    client.stable(1);
    client.takes();
    let lost = LogAck::Lost { epoch: OTHER, stable: Seq(1) };
    client.log.handle_ack(lost).unwrap();
    client.drain();
    let sent: Vec<(Seq, Sent)> =
        client.takes().into_iter().map(|entry| (entry.seq, entry.sent)).collect();
    let told = Some(Outcome::Done);
    assert_eq!(sent, [(Seq(2), Sent::Again { told }), (Seq(3), Sent::Again { told: None })]);
    client.log.handle_ack(lost).unwrap();
    client.drain();
    assert_eq!(client.takes(), [], "heard before");
    client.lose();
    client.connect(OTHER, true, 1);
    assert_eq!(client.takes().len(), 2, "the same epoch");
}

#[test]
fn what_was_told_and_is_refused_when_it_is_redone_is_set_aside() {
    let mut client = Client::up();
    let maker = client.wait(create("a"));
    let data = client.accept(write(NodeRef::MadeBy(Seq(maker))));
    client.ack(maker, made(5));
    client.done([data]);
    client.lose();
    client.takes();
    client.connect(OTHER, false, 0);
    let entry = &client.shipped[0];
    assert_eq!(entry.promise, Promise::Accepted, "somebody was told");
    client.ack(maker, Err(Refused::conflict(Errno::EEXIST)));
    assert_eq!(client.aside(), [maker, data]);
    assert_eq!(client.told.len(), 2, "each once");
    let aside = client.log.aside().nth(1).unwrap();
    assert_eq!(aside.change.mutation, write(node(5)), "by the identity that was told");
    let changed = client.log.changed_by_aside(Seq(maker));
    assert_eq!(changed, BTreeSet::from([NodeId::ROOT, node(5)]));
    client.ack(data, after_failed(maker));
    client.lose();
    client.takes();
    client.connect(EPOCH, false, 0);
    assert_eq!(client.mutation(data), Mutation::Nothing, "kept elsewhere by now");
}

#[test]
fn a_node_that_is_made_again_has_its_new_identity_from_then_on() {
    let mut client = Client::up();
    let maker = client.wait(create("a"));
    client.ack(maker, made(5));
    client.lose();
    client.connect(OTHER, false, 0);
    client.ack(maker, made(6));
    assert_eq!(client.rest, [Output::Remade { seq: Seq(maker), old: node(5), new: node(6) }]);
    let data = client.accept(write(node(6)));
    let old = client.accept(write(node(5)));
    assert_eq!(client.after(old), [data]);
    client.ack(old, refused(Errno::ENOSPC));
    let changed = client.log.changed_by_aside(Seq(old));
    assert_eq!(changed, BTreeSet::from([node(5), node(6)]), "an application knows the old one");
    client.log.settle_aside(Seq(old)).unwrap();
    client.stable(maker);
    let late = client.accept(write(node(5)));
    assert_eq!(client.mutation(late), write(node(6)));
}

#[test]
fn an_entry_that_is_stable_keeps_waiting_for_its_answer() {
    let mut client = Client::up();
    client.wait(write(node(5)));
    client.accept(write(node(6)));
    client.accept(write(node(7)));
    client.lose();
    client.takes();
    let cursor =
        Cursor { epoch: EPOCH, known: true, applied: Seq(3), stable: Seq(3), ..Cursor::default() };
    client.connect_at(&cursor).unwrap();
    assert_eq!(client.log.unanswered(), Seq(1));
    assert_eq!(client.log.held(), Seq(4));
    client.ack(1, refused(Errno::EFBIG));
    client.done([2]);
    client.ack(3, refused(Errno::from_number(28)));
    assert_eq!(client.aside(), [3]);
    assert_eq!(client.log.unstable(), (0, 0));
    assert_eq!(client.takes(), []);
}

#[test]
fn nobody_can_say_what_came_of_stable_entries_when_the_host_has_forgotten() {
    let mut client = Client::up();
    client.wait(write(node(5)));
    client.accept(write(node(6)));
    let next = client.accept(write(node(6)));
    client.stable(2);
    client.lose();
    client.takes();
    client.connect(OTHER, false, 0);
    assert_eq!(client.told, [(1, Err(Errno::EIO)), (2, Err(Errno::EIO))]);
    assert_eq!(client.aside(), [2], "kept: it may have failed");
    assert_eq!(client.takes().len(), 1);
    client.done([next]);
    let later = client.accept(write(node(6)));
    assert_eq!(client.after(later), [next], "nothing is closed");
    assert_eq!(client.log.unstable(), (2, 20));
}

#[test]
fn a_silent_host_strikes_what_is_awaited_and_keeps_what_was_accepted() {
    let mut client = Client::new();
    client.accept(write(node(5)));
    client.wait(write(node(5)));
    client.log.give_up();
    client.drain();
    client.wait(write(node(5)));
    let timed_out = Err(Errno::ETIMEDOUT);
    assert_eq!(client.told, [(2, timed_out), (3, timed_out)]);
    assert_eq!(client.log.unapplied(), (3, 10));
    assert_eq!(client.states(1..=3), ["waiting", "struck", "struck"]);
    client.connect(EPOCH, false, 0);
    assert_eq!(client.mutation(1), write(node(5)));
    assert_eq!(client.mutation(2), Mutation::Nothing);
    assert_eq!(client.mutation(3), Mutation::Nothing);
    client.done(1..=3);
    assert_eq!(client.told.len(), 3, "nobody is told twice");
    assert_eq!(client.rest, [], "nothing was applied that was struck");
    assert_eq!(client.wait(write(node(5))), 4);
    assert_eq!(client.told.len(), 3, "there is somebody to wait for again");
}

#[test]
fn what_nobody_waits_for_any_longer_is_struck() {
    let mut client = Client::new();
    let accepted = client.accept(write(node(5)));
    let first = client.wait(create("a"));
    client.log.strike(Seq(accepted));
    client.log.strike(Seq(first));
    client.log.strike(Seq(9));
    client.drain();
    let interrupted = Err(Errno::EINTR);
    assert_eq!(client.told, [(first, interrupted)]);
    client.connect(EPOCH, false, 0);
    assert_eq!(client.mutation(accepted), write(node(5)));
    assert_eq!(client.mutation(first), Mutation::Nothing);
    let shipped = client.wait(create("b"));
    client.log.strike(Seq(shipped));
    client.drain();
    client.done([accepted, first]);
    client.ack(shipped, made(6));
    client.log.strike(Seq(shipped));
    client.drain();
    assert_eq!(client.told[1..], [(shipped, interrupted), (accepted, Ok(Outcome::Done))]);
    assert!(matches!(client.rest[..], [Output::StruckApplied { seq: Seq(3), .. }]));
}

#[test]
fn giving_up_while_a_connection_is_up_changes_nothing() {
    let mut client = Client::up();
    client.wait(write(node(5)));
    client.log.give_up();
    client.drain();
    assert_eq!(client.told, []);
}

#[test]
fn it_is_told_when_a_struck_entry_was_applied_after_all() {
    let mut client = Client::up();
    client.wait(create("a"));
    let set = Mutation::SetXattr {
        node: node(5).into(),
        name: crate::wire::call::XattrName(b"user.x".to_vec()),
        flags: 0,
    };
    client.wait(set);
    client.lose();
    client.log.give_up();
    client.drain();
    client.takes();
    let ahead = vec![Seq(2)];
    let cursor = Cursor { epoch: EPOCH, known: true, ahead, ..Cursor::default() };
    client.connect_at(&cursor).unwrap();
    assert_eq!(client.mutation(1), Mutation::Nothing);
    client.ack(1, made(5));
    client.done([2]);
    let seqs: Vec<u64> = client
        .rest
        .iter()
        .map(|output| match output {
            Output::StruckApplied { seq, .. } => seq.0,
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(seqs, [1, 2]);
}

#[test]
fn a_struck_entry_keeps_the_order_and_passes_on_what_fails() {
    let mut client = Client::up();
    let first = client.accept(write(node(5)));
    let struck = client.wait(write(node(5)));
    let last = client.accept(write(node(5)));
    client.lose();
    client.log.give_up();
    client.drain();
    client.takes();
    client.connect(EPOCH, true, 0);
    assert_eq!(client.after(struck), [first]);
    assert_eq!(client.after(last), [struck]);
    client.ack(first, refused(Errno::EIO));
    assert_eq!(client.aside(), [first, last]);
}

#[test]
fn no_more_is_shipped_than_the_window_holds() {
    let mut client = Client::up();
    for each in 0..LOG_ENTRIES_UNAPPLIED_MAX as u64 + 5 {
        client.wait(write(node(each)));
    }
    assert!(!client.log.has_room(0));
    assert_eq!(client.takes().len(), LOG_ENTRIES_UNAPPLIED_MAX);
    client.done([2]);
    assert_eq!(client.takes(), [], "the first one holds it");
    client.done([1]);
    assert_eq!(client.takes().len(), 2);
    assert_eq!(client.states([2, 3, 1029]), ["applied", "shipped", "waiting"]);
}

#[test]
fn what_is_not_stable_is_bounded_by_numbers_and_by_bytes() {
    let mut client = Client::up();
    for each in 1..=LOG_ENTRIES_UNSTABLE_MAX as u64 {
        assert!(client.log.has_room(0));
        client.accept(set_attr(node(each)));
        client.done([each]);
    }
    assert!(!client.log.has_room(0));
    client.stable(1);
    assert!(client.log.has_room(0));

    let mut log: Log<u64> = Log::new();
    assert!(log.has_room(LOG_BYTES_UNSTABLE_MAX * 2), "one always fits");
    let write = Change::new(write(node(5)));
    log.append(write, 0, LOG_BYTES_UNAPPLIED_MAX, Promise::Accepted);
    assert!(log.has_room(0) && !log.has_room(1));
}

#[test]
fn writers_wait_while_too_much_is_set_aside() {
    let mut client = Client::up();
    let write = Change::new(write(node(5)));
    client.log.append(write, 0, LOG_BYTES_UNSTABLE_MAX + 1, Promise::Accepted);
    client.drain();
    client.ack(1, refused(Errno::EIO));
    assert!(!client.log.has_room(0));
    assert_eq!(client.log.unapplied(), (0, 0));
    client.log.settle_aside(Seq(1));
    assert!(client.log.has_room(10));
}

#[test]
fn the_end_tells_everybody_who_waits_and_keeps_what_was_set_aside() {
    let mut client = Client::up();
    client.accept(write(node(5)));
    client.accept(write(node(6)));
    client.wait(write(node(7)));
    client.ack(1, refused(Errno::EIO));
    client.log.end();
    client.drain();
    client.accept(write(node(5)));
    let gone = Err(Errno::ENOTCONN);
    assert_eq!(client.told[1..], [(2, gone), (3, gone), (4, gone)]);
    assert_eq!(client.aside(), [1]);
    assert_eq!(client.log.last_of(node(6)), None);
    client.connect(EPOCH, true, 0);
    assert!(client.log.has_room(usize::MAX));
    assert_eq!(client.states([1, 2]), ["aside", "failed"]);
}

#[test]
fn what_a_host_cannot_know_is_refused_and_changes_nothing() {
    let mut client = Client::up();
    client.accept(write(node(5)));
    client.accept(write(node(5)));
    client.done([1]);
    client.stable(1);
    client.lose();
    client.accept(write(node(5)));
    let before = format!("{:?}", client.log);
    let unasked = Err(PeerMisbehaved::Unasked);
    let cursor = |applied, ahead, stable| Cursor {
        epoch: EPOCH,
        known: true,
        applied: Seq(applied),
        ahead,
        stable: Seq(stable),
    };
    assert_eq!(client.connect_at(&cursor(3, vec![], 1)), unasked, "never shipped");
    assert_eq!(client.connect_at(&cursor(1, vec![Seq(3)], 1)), unasked);
    assert_eq!(client.connect_at(&cursor(1, vec![], 3)), unasked);
    assert_eq!(client.connect_at(&cursor(0, vec![], 0)), Err(PeerMisbehaved::Sequence));
    let applied = |seq| LogAck::Applied { seq: Seq(seq), result: Ok(Outcome::Done) };
    for ack in [applied(0), applied(3), applied(4), LogAck::Stable { upto: Seq(3) }] {
        assert_eq!(client.log.handle_ack(ack), unasked);
    }
    let lost = |stable| LogAck::Lost { epoch: OTHER, stable: Seq(stable) };
    assert_eq!(client.log.handle_ack(lost(3)), unasked);
    assert_eq!(client.log.handle_ack(lost(0)), Err(PeerMisbehaved::Sequence));
    assert_eq!(format!("{:?}", client.log), before);
}

/// The run that went on with it was killed before it could put it away again.
#[test]
fn a_log_that_was_put_away_goes_on_from_where_a_killed_run_has_brought_it() {
    let mut client = Client::up();
    client.lose();
    for _ in 0..4 {
        client.accept(write(node(5)));
    }
    let (kept, entries) = client.log.keep();
    assert_eq!(kept.unseen, Seq(1), "nothing was shipped");
    client.log = Log::restore(&kept, entries, |_| 10);
    client.drain();
    let ahead = vec![Seq(3)];
    let cursor = Cursor { epoch: EPOCH, known: true, applied: Seq(1), ahead, stable: Seq(1) };
    client.connect_at(&cursor).unwrap();
    let shipped: Vec<u64> = client.takes().into_iter().map(|entry| entry.seq.0).collect();
    assert_eq!(shipped, [2, 4]);
    client.done(1..=4);
    client.stable(4);
    assert!(client.log.is_delivered());
}

/// A host that has forgotten everything gets the same of a log that was put away and of one whose
/// notes were kept.
#[test]
fn a_log_of_notes_goes_on_as_one_that_was_put_away() {
    let mut client = Client::up();
    client.log.begin_notes();
    let mut notes = Notes::default();
    let mut mutations = vec![create("tmp"), write(node(5)), write(node(5)), rename("tmp", "file")];
    mutations.extend([create("tmp"), write(node(6)), unlink("tmp"), write(node(9))]);
    let removed = |ino| Ok(Outcome::Removed { node: node(ino), linked: false });
    let renamed = Outcome::Renamed { node: node(5), replaced: Some(node(3)) };
    let (done, attr) = (Ok(Outcome::Done), Ok(Outcome::Attr(attr())));
    let results = [made(5), attr, attr, Ok(renamed), made(6), attr, removed(6), done];
    for (mutation, result) in mutations.into_iter().zip(results) {
        let seq = client.log.append(Change::new(mutation), 0, 10, Promise::Awaited);
        client.log.handle_ack(LogAck::Applied { seq, result }).unwrap();
        while let Some(output) = client.log.poll_output() {
            if let Output::Note { note, body } = output {
                notes.handle(note, body);
            }
        }
    }
    let goes_on = |(kept, entries): (Kept, Vec<(KeptEntry, u64)>)| {
        let mut client = Client { log: Log::restore(&kept, entries, |_| 10), ..Client::new() };
        client.connect(OTHER, false, 0);
        client.takes()
    };
    let noted = goes_on(notes.end());
    assert_eq!(noted, goes_on(client.log.keep()));
    assert!(matches!(
        &noted[3].change.mutation,
        Mutation::Rename { occupant: Occupant::Node(NodeRef::MadeBy(Seq(1))), .. }
    ));
}

#[test]
fn a_report_about_an_older_connection_changes_nothing() {
    let mut client = Client::up();
    client.log.handle_lost(ConnectionId(0));
    client.accept(write(node(5)));
    assert_eq!(client.takes().len(), 1);
}

#[test]
fn a_host_that_names_nodes_in_circles_holds_nobody_up() {
    let mut client = Client::up();
    let create = |text: &str, premade| Mutation::Create {
        parent: NodeId::ROOT.into(),
        name: name(text),
        mode: 0,
        exclusive: false,
        premade: Some(node(premade)),
        open: None,
    };
    client.accept(create("a", 5));
    client.accept(create("b", 6));
    client.ack(1, made(6));
    client.ack(2, made(5));
    client.accept(write(node(5)));
    client.accept(write(node(6)));
    client.done([3, 4]);
    client.stable(4);
    client.accept(write(node(5)));
    client.accept(write(node(6)));
}

#[test]
fn every_state_has_its_name() {
    let mut client = Client::new();
    assert_eq!(client.states([0, 1]), ["unmade", "unmade"]);
    client.accept(write(node(5)));
    assert_eq!(client.states([1]), ["waiting"]);
    client.connect(EPOCH, true, 0);
    assert_eq!(client.states([1]), ["shipped"]);
    client.done([1]);
    assert_eq!(client.states([1]), ["applied"]);
    client.stable(1);
    assert_eq!(client.states([1]), ["stable"]);
    client.wait(write(node(5)));
    client.ack(2, refused(Errno::EIO));
    client.accept(write(node(5)));
    client.ack(3, refused(Errno::EIO));
    client.wait(write(node(6)));
    client.lose();
    client.log.give_up();
    assert_eq!(client.states(2..=4), ["failed", "aside", "struck"]);
}
