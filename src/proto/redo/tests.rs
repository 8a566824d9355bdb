//! Both halves, a bad network between them, and a host that is killed, crashes, and has a disk that
//! fails: what was told stays true.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use super::applier::{self, Applier};
use super::execute::How;
use super::log::{self, Kept, Log, Notes};
use super::record::{Header, Recovered};
use crate::id::{ConnectionId, Epoch, NodeId, Seq, SessionId};
use crate::wire::call::{Attr, Entry, Time};
use crate::wire::errno::Errno;
use crate::wire::log::{
    Change, LogAck, LogEntry, Mutation, NodeRef, Outcome, Promise, Reason, Refused,
};
use crate::wire::name::Name;

const LANES: usize = 2;
const BYTES: usize = 4096;

/// SplitMix64: the same numbers from the same seed, everywhere.
struct Dice(u64);

impl Dice {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % bound
    }

    fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.below(of.len() as u64) as usize]
    }
}

/// What a session does to files that hold one number each: the entry that wrote it last.
struct Disk {
    /// By identity: what it held since the last sync, oldest first.
    files: BTreeMap<NodeId, Vec<u64>>,
    names: BTreeMap<Name, NodeId>,
    /// Names since the last sync.
    fresh: BTreeSet<Name>,
    next: u64,
    /// The newest entry that wrote a file in this epoch.
    newest: BTreeMap<NodeId, u64>,
}

impl Disk {
    fn perform(
        &mut self,
        seq: Seq,
        change: &Change,
        how: &How,
        fresh: bool,
    ) -> Result<Outcome, Errno> {
        match &change.mutation {
            Mutation::Create { name, .. } => {
                let node = match (self.names.get(name), how) {
                    (Some(_), How::First) => return Err(Errno::EEXIST),
                    (Some(node), _) => *node,
                    (None, _) => {
                        self.next += 1;
                        NodeId { ino: self.next, generation: 1 }
                    }
                };
                self.names.insert(name.clone(), node);
                self.fresh.insert(name.clone());
                self.files.entry(node).or_insert_with(|| vec![seq.0]);
                Ok(Outcome::Entry(Entry { node, attr: attr() }))
            }
            Mutation::Write { node: NodeRef::Node(node), .. } => {
                let values = self.files.get_mut(node).ok_or(Errno::ESTALE)?;
                let newest = self.newest.entry(*node).or_default();
                // what ran when the disk failed is carried out again
                if fresh {
                    assert!(*newest <= seq.0, "{seq} of {node:?} after {newest}");
                    *newest = seq.0;
                }
                values.push(seq.0);
                Ok(Outcome::Attr(attr()))
            }
            Mutation::Nothing => Ok(Outcome::Done),
            other => panic!("{other:?}"),
        }
    }

    fn sync(&mut self) {
        for values in self.files.values_mut() {
            values.drain(..values.len() - 1);
        }
        self.fresh.clear();
    }

    /// What was not synced is there or not, each by itself.
    fn forget(&mut self, dice: &mut Dice) {
        for name in std::mem::take(&mut self.fresh) {
            if dice.below(2) == 0
                && let Some(node) = self.names.remove(&name)
            {
                self.files.remove(&node);
            }
        }
        for values in self.files.values_mut() {
            let kept = dice.below(values.len() as u64) as usize;
            *values = vec![values[kept]];
        }
        self.newest.clear();
    }
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

/// A file, as an application knows it.
#[derive(Clone, Copy)]
struct File {
    node: NodeRef,
    maker: u64,
}

/// An entry that the host carries out just now.
struct Running {
    seq: Seq,
    change: Change,
    how: How,
    poisons: bool,
    epochs: u64,
}

struct World {
    dice: Dice,
    seed: u64,
    now: Instant,
    epochs: u64,
    log: Log<u64>,
    connection: Option<u64>,
    connections: u64,
    lanes: [VecDeque<(LogEntry, u64)>; LANES],
    /// Of connections that are gone.
    late: VecDeque<(LogEntry, u64)>,
    acks: VecDeque<LogAck>,
    applier: Option<Applier<u64, u64>>,
    record: Option<Recovered>,
    running: Vec<Running>,
    syncing: Option<Seq>,
    disk: Disk,
    files: BTreeMap<u64, File>,
    /// Which file an entry wrote, by its maker.
    wrote: BTreeMap<u64, u64>,
    told: BTreeMap<u64, Result<Outcome, Errno>>,
    asides: BTreeMap<u64, Refused>,
    struck_applied: BTreeSet<u64>,
    failures: bool,
    /// Whether the client is, too.
    restarts: bool,
    /// What the log notes, if a restart is a kill.
    notes: Option<Notes<u64>>,
    healing: bool,
}

impl World {
    fn new(seed: u64) -> Self {
        let disk = Disk {
            files: BTreeMap::new(),
            names: BTreeMap::new(),
            fresh: BTreeSet::new(),
            next: 100,
            newest: BTreeMap::new(),
        };
        Self {
            dice: Dice(seed),
            seed,
            now: Instant::now(),
            epochs: 1,
            log: Log::new(),
            connection: None,
            connections: 0,
            lanes: [VecDeque::new(), VecDeque::new()],
            late: VecDeque::new(),
            acks: VecDeque::new(),
            applier: None,
            record: None,
            running: Vec::new(),
            syncing: None,
            disk,
            files: BTreeMap::new(),
            wrote: BTreeMap::new(),
            told: BTreeMap::new(),
            asides: BTreeMap::new(),
            struck_applied: BTreeSet::new(),
            failures: !seed.is_multiple_of(3),
            restarts: false,
            notes: None,
            healing: false,
        }
    }

    fn epoch(&self) -> Epoch {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&self.epochs.to_le_bytes());
        Epoch(bytes)
    }

    fn header(&self, first: Seq, stable: Seq) -> Header {
        let (session, epoch) = (SessionId([0; 16]), self.epoch());
        Header { session, epoch, first, stable, fsid: 1, inode: 2 }
    }

    fn connect(&mut self) {
        if self.connection.is_some() {
            return;
        }
        self.connections += 1;
        let connection = self.connections;
        let held = self.log.held();
        if self.applier.is_none() {
            let (epoch, unanswered) = (self.epoch(), self.log.unanswered());
            self.applier = Some(match self.record.take() {
                Some(recovered) if recovered.header.epoch == epoch => {
                    self.record = Some(recovered.clone());
                    Applier::recover(recovered)
                }
                Some(recovered) => Applier::outlive(recovered, epoch, held, unanswered)
                    .unwrap_or_else(|| Applier::new(epoch, held)),
                None => Applier::new(epoch, held),
            });
            if self.record.is_none() {
                self.begin_record();
            }
        }
        self.drain();
        self.acks.clear();
        let unanswered = self.log.unanswered();
        let cursor = self.applier.as_mut().unwrap().resume(unanswered);
        self.connection = Some(connection);
        self.log.handle_connected(ConnectionId(connection), &cursor).unwrap();
        self.drain();
    }

    fn lose(&mut self) {
        if let Some(connection) = self.connection.take() {
            self.log.handle_lost(ConnectionId(connection));
            for lane in &mut self.lanes {
                self.late.extend(lane.drain(..));
            }
            self.acks.clear();
        }
    }

    fn give_up(&mut self) {
        if self.connection.is_none() {
            self.late.clear();
            self.log.give_up();
            self.drain();
        }
    }

    /// Somebody stops waiting for one entry, whether it is under way or not.
    fn interrupt(&mut self) {
        let last = self.log.last().0;
        let back = self.dice.below(8);
        self.log.strike(Seq(last.saturating_sub(back)));
        self.drain();
    }

    /// The host's process is gone: some of what ran was carried out, and not all of that recorded.
    fn kill(&mut self) {
        self.lose();
        self.late.clear();
        let stable = self.applier.as_ref().map(Applier::stable);
        for running in std::mem::take(&mut self.running) {
            let end = self.dice.below(3);
            if end > 0 {
                let result = self.carry_out(&running);
                if end > 1 {
                    self.record_done(&running, result);
                }
            }
        }
        if let (Some(record), Some(stable)) = (&mut self.record, stable) {
            record.header.stable = stable.max(record.header.stable);
        }
        self.applier = None;
        self.syncing = None;
    }

    fn crash(&mut self) {
        self.kill();
        self.epochs += 1;
        self.forget_record();
        self.disk.forget(&mut self.dice);
    }

    /// What is left of the record: any of its pieces may not have reached the disk, and a header
    /// may be an older one.
    fn forget_record(&mut self) {
        let Some(record) = &mut self.record else { return };
        let stable = record.header.stable;
        let lost = self.dice.pick(&[0, 0, 1, 30]);
        let older = Seq(stable.0.saturating_sub(self.dice.below(3) * lost));
        record.header.stable = older;
        record.done.retain(|_, _| self.dice.below(100) >= lost);
        record.intents.retain(|_, _| self.dice.below(100) >= lost);
        if self.dice.below(5) == 0 {
            self.record = None;
        }
    }

    fn begin_record(&mut self) {
        let applier = self.applier.as_ref().unwrap();
        let done = applier.results().map(|(seq, result, poisons)| (seq, (result, poisons)));
        let done: BTreeMap<_, _> = done.collect();
        let first = done.keys().next().copied().unwrap_or_else(|| applier.stable().next());
        let header = self.header(first, applier.stable());
        self.record = Some(Recovered { header, done, intents: BTreeMap::new() });
    }

    fn fail_disk(&mut self) {
        let Some(applier) = &mut self.applier else { return };
        self.epochs += 1;
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&self.epochs.to_le_bytes());
        applier.handle_disk_failed(Epoch(bytes), self.now);
        self.disk.forget(&mut self.dice);
        self.syncing = None;
        self.begin_record();
        self.drain();
    }

    fn record_done(&mut self, running: &Running, result: Result<Outcome, Refused>) {
        if let Some(record) = &mut self.record
            && running.epochs == self.epochs
        {
            record.intents.remove(&running.seq);
            record.done.insert(running.seq, (result, running.poisons));
        }
    }

    fn carry_out(&mut self, running: &Running) -> Result<Outcome, Refused> {
        let Running { seq, change, how, .. } = running;
        match (&change.mutation, how) {
            (_, How::Refused(refused)) => return Err(*refused),
            (Mutation::Nothing, How::Again { told: Some(told) }) => return Ok(*told),
            _ => {}
        }
        // what was carried out once does not fail in the same epoch
        let may_fail = self.failures
            && !self.healing
            && change.mutation != Mutation::Nothing
            && !matches!(how, How::Resumed { .. });
        if may_fail && self.dice.below(40) == 0 {
            return Err(Refused::by_system(Errno::EFBIG));
        }
        let fresh = running.epochs == self.epochs;
        self.disk.perform(*seq, change, how, fresh).map_err(Refused::by_system)
    }

    fn append(&mut self) {
        let promise = self.dice.pick(&[Promise::Awaited, Promise::Accepted]);
        let known: Vec<u64> = self.files.keys().copied().collect();
        let next = self.log.last().next().0;
        if known.len() < 3 || self.dice.below(30) == 0 {
            let (parent, name) = (NodeId::ROOT.into(), Name::new(next.to_string()).unwrap());
            let premade = None;
            let create =
                Mutation::Create { parent, name, mode: 0, exclusive: true, premade, open: None };
            // what nobody was told of is not used
            if promise == Promise::Accepted {
                self.files.insert(next, File { node: NodeRef::MadeBy(Seq(next)), maker: next });
            }
            self.log.append(Change::new(create), 0, 0, promise);
        } else {
            let file = self.files[&self.dice.pick(&known)];
            let write = Mutation::Write { node: file.node, handle: None, offset: 0 };
            let body = next;
            self.wrote.insert(next, file.maker);
            self.log.append(Change::new(write), body, BYTES, promise);
        }
        assert_eq!(self.log.last().0, next);
        self.drain();
    }

    fn arrive(&mut self, frame: Option<(LogEntry, u64)>) {
        if let (Some((entry, body)), Some(applier)) = (frame, &mut self.applier) {
            let bytes = if body == 0 { 0 } else { BYTES };
            let seq = entry.seq;
            let result = applier.handle_entry(entry, body, bytes, self.now);
            assert_eq!(result, Ok(()), "seed {}: {seq} at {}", self.seed, applier.cursor());
        }
    }

    fn step(&mut self) {
        match self.dice.below(1000) {
            0..250 if !self.healing && self.log.has_room(BYTES) => self.append(),
            250..550 => {
                let lane = self.dice.below(LANES as u64) as usize;
                let frame = self.lanes[lane].pop_front();
                self.arrive(frame);
            }
            550..570 => {
                let frame = self.late.pop_front();
                self.arrive(frame);
            }
            570..750 if !self.running.is_empty() => {
                let at = self.dice.below(self.running.len() as u64) as usize;
                let running = self.running.swap_remove(at);
                let result = self.carry_out(&running);
                self.record_done(&running, result);
                if let Some(applier) = &mut self.applier {
                    applier.handle_result(running.seq, result, self.now);
                }
            }
            750..970 => {
                if let Some(ack) = self.acks.pop_front() {
                    self.log.handle_ack(ack).unwrap();
                }
            }
            970..978 => self.now += Duration::from_secs(3),
            978..984 => {
                if let (Some(upto), Some(applier)) = (self.syncing.take(), &mut self.applier) {
                    self.disk.sync();
                    applier.handle_synced(upto, self.now);
                }
            }
            984..988 => self.settle(),
            988..993 => self.connect(),
            fault if !self.healing => self.fault(fault),
            _ => {}
        }
        if let Some(applier) = &mut self.applier {
            applier.handle_timeout(self.now);
        }
        self.drain();
    }

    fn fault(&mut self, fault: u64) {
        match fault {
            993..995 => self.lose(),
            995 if self.dice.below(2) == 0 => self.interrupt(),
            995 => self.give_up(),
            996 => self.kill(),
            997 if self.dice.below(3) == 0 => self.crash(),
            998 if self.dice.below(3) == 0 => self.fail_disk(),
            999 if self.restarts => self.restart_client(),
            _ => {}
        }
    }

    /// The client puts its log away, and goes on with it in another run.
    fn restart_client(&mut self) {
        self.lose();
        self.late.clear();
        let noted = self.notes.take().map(Notes::end);
        let kept = self.log.keep();
        self.drain();
        let killed = noted.is_some();
        let (kept, entries) = noted.unwrap_or(kept);
        let bytes = |body: &u64| if *body == 0 { 0 } else { BYTES };
        self.log = Log::restore(&kept, entries, bytes);
        if killed {
            self.begin_notes();
            return;
        }
        let all_seen = Kept { unseen: kept.last.next(), ..kept };
        assert_eq!(self.log.keep().0, all_seen, "seed {}", self.seed);
    }

    fn begin_notes(&mut self) {
        self.log.begin_notes();
        let mut notes = Notes::default();
        self.log.notes_anew().into_iter().for_each(|(note, body)| notes.handle(note, body));
        self.notes = Some(notes);
    }

    fn settle(&mut self) {
        let first = self.log.aside().next().map(|aside| aside.seq);
        if let Some(seq) = first {
            self.log.settle_aside(seq);
        }
    }

    fn drain(&mut self) {
        while let Some(output) = self.log.poll_output() {
            match output {
                log::Output::Ship { connection, entry, body } => {
                    assert_eq!(Some(connection.0), self.connection);
                    let lane = self.dice.below(LANES as u64) as usize;
                    self.lanes[lane].push_back((entry, body));
                }
                log::Output::Applied { seq, result } => {
                    let twice = self.told.insert(seq.0, result);
                    assert_eq!(twice, None, "seed {}: {seq} told twice", self.seed);
                    self.learn(seq.0, result);
                }
                log::Output::Aside { seq, refused } => {
                    self.files.remove(&seq.0);
                    let twice = self.asides.insert(seq.0, refused);
                    assert_eq!(twice, None, "seed {}: {seq} aside twice", self.seed);
                }
                log::Output::StruckApplied { seq, .. } => {
                    self.struck_applied.insert(seq.0);
                }
                log::Output::Remade { seq, new, .. } => {
                    if let Some(file) = self.files.get_mut(&seq.0) {
                        file.node = new.into();
                    }
                }
                log::Output::Note { note, body } => {
                    if let Some(notes) = &mut self.notes {
                        notes.handle(note, body);
                    }
                }
                log::Output::Progress => {}
            }
        }
        while let Some(output) = self.applier.as_mut().and_then(Applier::poll_output) {
            match output {
                applier::Output::Apply { seq, change, how, poisons, .. } => {
                    if let Some(record) = &mut self.record {
                        record.intents.entry(seq).or_default();
                    }
                    let epochs = self.epochs;
                    self.running.push(Running { seq, change, how, poisons, epochs });
                }
                applier::Output::Ack(ack) if self.connection.is_some() => self.acks.push_back(ack),
                applier::Output::Ack(_) | applier::Output::Reached(_) => {}
                applier::Output::Sync { upto } => self.syncing = Some(upto),
            }
        }
    }

    /// What an application makes of a result.
    fn learn(&mut self, seq: u64, result: Result<Outcome, Errno>) {
        match result {
            Ok(Outcome::Entry(entry)) => {
                self.files.insert(seq, File { node: entry.node.into(), maker: seq });
            }
            Ok(_) => {}
            Err(_) => {
                self.files.remove(&seq);
            }
        }
    }

    /// Faults are over: everything must arrive.
    fn heal(&mut self) {
        self.healing = true;
        for _ in 0..400_000 {
            self.connect();
            let answered = self.log.unapplied().0 == 0 && self.running.is_empty();
            if answered && self.told.len() as u64 == self.log.last().0 {
                return;
            }
            self.step();
        }
        panic!(
            "seed {}: {} of {} entries were told; {:?} {:?}",
            self.seed,
            self.told.len(),
            self.log.last(),
            self.log.unapplied(),
            self.log.state_of(self.log.unanswered()),
        );
    }

    /// Every file holds what was last written to it, of all that was told to be done.
    fn check(&self) {
        for (maker, file) in &self.files {
            assert!(matches!(file.node, NodeRef::Node(_)), "{maker} has no identity");
            // by its name: what was made again by a host that crashed before it could say so has
            // another identity
            let node = self.disk.names[&Name::new(maker.to_string()).unwrap()];
            assert!(self.epochs > 1 || file.node == NodeRef::Node(node));
            let held = *self.disk.files[&node].last().unwrap();
            let done = |seq: &u64| {
                let applied = self.told[seq].is_ok() && !self.asides.contains_key(seq);
                applied && self.wrote[seq] == *maker
            };
            let last = self.wrote.keys().copied().filter(done).max().unwrap_or(*maker);
            let what = format!("seed {}: {node:?} holds {held}, not {last}", self.seed);
            assert!(held >= last, "{what}");
            if held == last {
                continue;
            }
            // what failed in the end may have been there before the host forgot it
            if let Some(refused) = self.asides.get(&held) {
                assert!(self.epochs > 1, "{what}: {refused:?}");
            } else {
                let reported = self.struck_applied.contains(&held) || self.epochs > 1;
                assert!(reported, "{what}: {:?}", self.told[&held]);
            }
        }
    }
}

#[test]
fn what_was_told_is_there_whatever_happens_to_network_host_and_disk() {
    for seed in 0..200 {
        let mut world = World::new(seed);
        for _ in 0..6_000 {
            world.step();
        }
        world.heal();
        world.check();
    }
}

#[test]
fn without_failures_nothing_is_ever_set_aside() {
    for seed in (0..150).step_by(3) {
        let mut world = World::new(seed);
        for _ in 0..6_000 {
            world.step();
        }
        world.heal();
        // a host that crashed cannot say what came of what was stable
        let unknown = |seq: &u64| {
            let refused = world.asides.get(seq);
            refused.is_some_and(|refused| refused.reason == Reason::Unknown)
        };
        let failed = |seq: &&u64| !unknown(seq) && !world.wrote.get(seq).is_some_and(unknown);
        assert_eq!(world.asides.keys().find(failed), None, "seed {seed}");
    }
}

#[test]
fn in_one_epoch_each_entry_is_carried_out_once_and_what_failed_is_not_there() {
    for seed in 0..50 {
        let mut world = World::new(seed);
        for _ in 0..6_000 {
            if world.epochs == 1 {
                world.step();
            }
        }
        world.heal();
        world.check();
    }
}

#[test]
fn a_log_that_was_put_away_goes_on_where_it_was() {
    for seed in 0..150 {
        let mut world = World::new(seed);
        world.restarts = true;
        for _ in 0..6_000 {
            world.step();
        }
        world.heal();
        world.check();
    }
}

#[test]
fn a_log_whose_client_was_killed_goes_on_from_what_it_noted() {
    for seed in 0..150 {
        let mut world = World::new(seed);
        world.restarts = true;
        world.begin_notes();
        for _ in 0..6_000 {
            world.step();
        }
        world.heal();
        world.check();
    }
}
