//! The host: a process that may be killed at any step, over a machine that may crash.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};

use p2pfs::id::{Epoch, HandleId, HostRun, NodeId, Seq, SessionId};
use p2pfs::proto::lease::grantor::{self, Grantor, Standing, Use, User};
use p2pfs::proto::lease::uses::uses;
use p2pfs::proto::redo::applier::{self, Applier};
use p2pfs::proto::redo::execute::{How, execute};
use p2pfs::proto::redo::opens::{self, Opens};
use p2pfs::proto::redo::record::{self, Header, Piece, Slot};
use p2pfs::wire::call::Access;
use p2pfs::wire::errno::Errno;
use p2pfs::wire::log::{Change, LogAck, Outcome, Reason, Refused};

use super::dice::Dice;
use super::disk::Disk;
use super::net::{Call, Down, Lane, Reply, Up};
use super::posix::Body;
use super::tree::{Ledger, View};
use super::world::{Event, World};

/// The machine, and the process if it runs.
#[derive(Debug, Default)]
pub(crate) struct Host {
    pub(crate) disk: RefCell<Disk>,
    pub(crate) run: u64,
    pub(crate) epoch: Epoch,
    boots: u64,
    pub(crate) process: Option<Process>,
    /// What a kill leaves of the sessions' records.
    pub(crate) records: BTreeMap<usize, RefCell<Vec<u8>>>,
    /// What a crash of the machine leaves of them.
    kept: BTreeMap<usize, Vec<u8>>,
    /// What was open, as recorded.
    opened: Opened,
    /// Sessions that it has ever seen.
    known: BTreeSet<usize>,
    /// How many steps the process still lives.
    pub(crate) fuse: Cell<u32>,
}

#[derive(Debug)]
pub(crate) struct Process {
    pub(crate) sessions: BTreeMap<usize, Session>,
    pub(crate) grantor: Grantor<u64>,
    pub(crate) opens: RefCell<Opens>,
    jobs: BTreeMap<u64, Job>,
    next: u64,
    /// Jobs that wait for what another epoch's sessions do again.
    parked: Vec<u64>,
    /// Jobs that wait for what their own session does again, or claims.
    held: Vec<u64>,
}

#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) applier: Applier<Body, u64>,
    pub(crate) connection: Option<u64>,
    redone: bool,
}

#[derive(Clone, Debug)]
struct Job {
    client: usize,
    uses: Vec<(NodeId, Use)>,
    /// When everything before it was applied; in another epoch it has to wait for that again.
    reached: Epoch,
    what: Work,
}

#[expect(clippy::large_enum_variant, reason = "a simulation moves few of them")]
#[derive(Clone, Debug)]
enum Work {
    Entry { seq: Seq, change: Change, body: Body, how: How, poisons: bool },
    Call { request: u64, call: Call },
}

pub(crate) fn session_id(client: usize) -> SessionId {
    SessionId([client as u8 + 1; 16])
}

type Opened = BTreeMap<usize, Vec<(HandleId, NodeId, Access)>>;

fn record_opens(opened: &mut Opened, opens: &Opens, clients: usize) {
    for client in 0..clients {
        opened.insert(client, opens.of(session_id(client)).collect());
    }
}

/// Writes a piece of a record, whole or in part.
pub(super) fn write_piece(record: &mut Vec<u8>, piece: &Piece) {
    let at = piece.offset as usize;
    if record.len() < at + piece.bytes.len() {
        record.resize(at + record::SLOT_BYTES, 0);
    }
    record[at..at + piece.bytes.len()].copy_from_slice(&piece.bytes);
}

impl Host {
    fn new_epoch(&mut self) -> Epoch {
        self.boots += 1;
        let mut epoch = [0; 16];
        epoch[..8].copy_from_slice(&self.boots.to_be_bytes());
        self.epoch = Epoch(epoch);
        self.epoch
    }

    fn note_stable(&mut self, client: usize, upto: Seq) {
        let first = record::recover(&self.records[&client].borrow());
        let first = first.expect("a record of this run").header.first;
        self.write_header(client, first, upto);
    }

    /// Begins a session's record anew, in the epoch of now.
    fn begin_record(&mut self, client: usize, applier: &Applier<Body, u64>) {
        self.records.remove(&client);
        let stable = applier.stable();
        let done: Vec<_> = applier.results().filter(|(seq, ..)| *seq <= stable).collect();
        let first = done.first().map_or_else(|| stable.next(), |(seq, ..)| *seq);
        self.write_header(client, first, stable);
        let mut record = self.records[&client].borrow_mut();
        for &(seq, result, poisons) in &done {
            let slot = Slot::Done { result, poisons };
            write_piece(&mut record, &record::encode_slot(self.epoch, seq, &slot));
        }
        if !done.is_empty() {
            self.kept.insert(client, record.clone());
        }
    }

    /// What is left of the records when the machine loses power: what was synced, and of some of
    /// the others all. By its own dice, so that the seeds that failed once stay what they are.
    fn forget_records(&mut self, dice: &Dice) {
        let mut dice = dice.clone();
        for (client, record) in std::mem::take(&mut self.records) {
            if dice.percent(40) {
                self.records.insert(client, record);
            } else if let Some(kept) = self.kept.get(&client) {
                self.records.insert(client, kept.clone().into());
            }
        }
    }

    fn write_header(&mut self, client: usize, first: Seq, stable: Seq) {
        let (session, epoch) = (session_id(client), self.epoch);
        let header = Header { session, epoch, first, stable, fsid: 1, inode: 2 };
        let bytes = record::encode_header(&header);
        let mut record = self.records.entry(client).or_default().borrow_mut();
        if record.len() < bytes.len() {
            record.resize(bytes.len(), 0);
        }
        record[..bytes.len()].copy_from_slice(&bytes);
    }
}

impl World {
    /// The process begins, with what an earlier run in this epoch has left.
    pub(crate) fn start_host(&mut self) {
        let now = self.host_now();
        let host = &mut self.host;
        if host.run == 0 {
            host.new_epoch();
        }
        host.run += 1;
        host.fuse.set(u32::MAX);
        let expected: Vec<SessionId> = host.known.iter().map(|&known| session_id(known)).collect();
        let mut opens = Opens::default();
        for (&client, opened) in &host.opened {
            for &(handle, node, access) in opened {
                opens.open(session_id(client), handle, node, access);
                if host.disk.borrow().is_covered(node) {
                    opens.handle_held(node);
                }
            }
        }
        let mut sessions = BTreeMap::new();
        for (&client, bytes) in &host.records {
            let recovered = record::recover(&bytes.borrow());
            let Ok(recovered) = recovered else { continue };
            if recovered.header.epoch == host.epoch {
                let applier = Applier::recover(recovered);
                sessions.insert(client, Session { applier, connection: None, redone: false });
            }
        }
        host.process = Some(Process {
            sessions,
            grantor: Grantor::new(HostRun(host.run), expected, now),
            opens: RefCell::new(opens),
            jobs: BTreeMap::new(),
            next: 0,
            parked: Vec::new(),
            held: Vec::new(),
        });
        self.pump_host();
    }

    /// The process is gone at once; the machine stays.
    pub(crate) fn kill_host(&mut self) {
        if self.host.process.take().is_some() {
            self.host_is_gone();
        }
    }

    fn host_is_gone(&mut self) {
        let run = self.host.run;
        let hit: Vec<u64> =
            self.connections.iter().filter(|(_, c)| c.run == run).map(|(&id, _)| id).collect();
        for connection in hit {
            self.cut(connection);
        }
        let delay = self.dice.delay(3_000_000);
        self.schedule(delay, Event::StartHost);
    }

    /// The machine loses power.
    pub(crate) fn crash_host(&mut self) {
        self.kill_host();
        self.host.forget_records(&self.dice);
        self.host.disk.borrow_mut().crash(&mut self.dice);
        self.host.new_epoch();
        self.check_fsynced();
        self.drop_struck();
    }

    /// The machine loses power, and what survives is known.
    pub(crate) fn crash_host_after(&mut self, steps: usize, data: bool) {
        self.kill_host();
        self.host.forget_records(&self.dice);
        self.host.disk.borrow_mut().crash_after(steps, data);
        self.host.new_epoch();
    }

    /// Data was lost while the machine ran.
    fn disk_failed(&mut self) {
        let now = self.host_now();
        let epoch = self.host.new_epoch();
        self.check_fsynced();
        self.drop_struck();
        let Some(process) = &mut self.host.process else { return };
        let mut sessions = std::mem::take(&mut process.sessions);
        for (&client, session) in &mut sessions {
            session.applier.handle_disk_failed(epoch, now);
            session.redone = false;
            self.host.begin_record(client, &session.applier);
        }
        if let Some(process) = &mut self.host.process {
            process.sessions = sessions;
        }
    }

    /// A frame arrived at the host.
    pub(crate) fn host_receives(&mut self, connection: u64, client: usize, frame: Up) {
        let now = self.host_now();
        let session = self.host.process.as_mut().and_then(|p| p.sessions.get_mut(&client));
        match (frame, session) {
            (Up::Identify { held, unanswered }, _) => {
                self.adopt(connection, client, held, unanswered);
            }
            (Up::Entry { entry, body }, Some(session)) => {
                let state = session.applier.state_of(entry.seq);
                self.counts.count("applier", state, super::coverage::sent(&entry));
                let bytes = body.len() * 8;
                let taken = session.applier.handle_entry(entry.clone(), body, bytes, now);
                assert!(taken.is_ok(), "the host refused {entry:?}: {taken:?}");
            }
            (Up::Call { request, call }, Some(session)) => {
                let upto = match &call {
                    Call::Fetch { upto, .. }
                    | Call::Sync { upto, .. }
                    | Call::Release { upto, .. } => *upto,
                };
                if session.connection != Some(connection) {
                    return;
                }
                let job = self.new_job(client, Work::Call { request, call });
                let session = self.session(client);
                session.applier.wait_for(upto, job);
            }
            (Up::Lease(request), Some(session)) => {
                if session.connection != Some(connection) {
                    return;
                }
                self.count_request(&request);
                self.handle_lease_request(client, request);
            }
            (_, None) => {}
        }
        self.pump_host();
    }

    pub(crate) fn session(&mut self, client: usize) -> &mut Session {
        let process = self.host.process.as_mut().expect("the host runs");
        process.sessions.get_mut(&client).expect("the host knows the session")
    }

    fn adopt(&mut self, connection: u64, client: usize, held: Seq, unanswered: Seq) {
        let now = self.host_now();
        let epoch = self.host.epoch;
        let Some(process) = &mut self.host.process else { return };
        if !process.sessions.contains_key(&client) {
            let recorded = self.host.records.get(&client);
            let recorded = recorded.and_then(|bytes| record::recover(&bytes.borrow()).ok());
            let outlived =
                recorded.and_then(|recorded| Applier::outlive(recorded, epoch, held, unanswered));
            let applier = outlived.unwrap_or_else(|| Applier::new(epoch, held));
            self.host.begin_record(client, &applier);
            let process = self.host.process.as_mut().expect("it was there");
            process.sessions.insert(client, Session { applier, connection: None, redone: false });
            self.host.known.insert(client);
        }
        let session = self.session(client);
        if session.connection.is_some_and(|had| had >= connection) {
            return;
        }
        session.connection = Some(connection);
        let cursor = session.applier.resume(unanswered);
        self.note(|| format!("host: client {client} is back, {cursor:?}"));
        self.send_down(client, Lane::Acks, Down::Cursor(cursor));
        let process = self.host.process.as_mut().expect("it was there");
        if self.config.leases {
            process.grantor.handle_connected(session_id(client), now);
        }
    }

    /// The host notices that a connection is gone.
    pub(crate) fn host_notices(&mut self, connection: u64, client: usize) {
        let now = self.host_now();
        let leases = self.config.leases;
        let Some(process) = &mut self.host.process else { return };
        let Some(session) = process.sessions.get_mut(&client) else { return };
        if session.connection == Some(connection) {
            session.connection = None;
            if leases {
                process.grantor.handle_lost(session_id(client), now);
            }
        }
        self.pump_host();
    }

    fn new_job(&mut self, client: usize, what: Work) -> u64 {
        let process = self.host.process.as_mut().expect("the host runs");
        process.next += 1;
        process
            .jobs
            .insert(process.next, Job { client, uses: Vec::new(), reached: self.host.epoch, what });
        process.next
    }

    /// Carries out what the machines ask for.
    pub(crate) fn pump_host(&mut self) {
        loop {
            let Some(process) = &mut self.host.process else { return };
            let clients: Vec<usize> = process.sessions.keys().copied().collect();
            let mut quiet = true;
            for client in clients {
                while let Some(output) =
                    self.host.process.as_mut().and_then(|process| {
                        process.sessions.get_mut(&client)?.applier.poll_output()
                    })
                {
                    quiet = false;
                    self.do_for_applier(client, output);
                }
            }
            while self.config.leases
                && let Some(output) =
                    self.host.process.as_mut().and_then(|process| process.grantor.poll_output())
            {
                quiet = false;
                self.do_for_grantor(output);
            }
            if quiet {
                break;
            }
        }
        self.after_pump();
    }

    fn after_pump(&mut self) {
        let now = self.host_now();
        let Some(process) = &mut self.host.process else { return };
        while let Some(opens::Output::Remove(node)) = process.opens.get_mut().poll_output() {
            self.host.disk.borrow_mut().remove(node);
        }
        record_opens(&mut self.host.opened, &process.opens.borrow(), self.clients.len());
        for (&client, session) in &mut process.sessions {
            if !session.redone && session.connection.is_some() && !session.applier.is_redoing() {
                session.redone = true;
                if self.config.leases {
                    process.grantor.handle_redone(session_id(client), now);
                }
            }
        }
        let redoing = process.sessions.values().any(|session| session.applier.is_redoing());
        let (run, parked) = (self.host.run, std::mem::take(&mut process.parked));
        for id in parked {
            // one that is to be done again by now waits for nobody: all would wait for it
            let process = self.host.process.as_ref().expect("the host runs");
            let again = process.jobs.get(&id).is_some_and(|job| self.is_again(job));
            if again || !redoing {
                self.schedule(1, Event::Execute { run, job: id });
            } else if let Some(process) = &mut self.host.process {
                process.parked.push(id);
            }
        }
        self.retry_held();
    }

    fn retry_held(&mut self) {
        let Some(process) = &mut self.host.process else { return };
        let held = std::mem::take(&mut process.held);
        let before = held.len();
        for job in held {
            self.clear(job);
        }
        if self.host.process.as_ref().is_some_and(|process| process.held.len() < before) {
            self.pump_host();
        }
    }

    /// Whether a job is what a session has, or may have, done before.
    fn is_again(&self, job: &Job) -> bool {
        let process = self.host.process.as_ref().expect("the host runs");
        let redoes = |seq| process.sessions.get(&job.client).is_some_and(|s| s.applier.redoes(seq));
        match &job.what {
            Work::Entry { seq, how, .. } => {
                *how != How::First || job.reached != self.host.epoch || redoes(*seq)
            }
            Work::Call { .. } => false,
        }
    }

    /// What is new in this epoch waits until its session has done again what it had done, or the
    /// grace of the leases does not keep it; what was accepted under a lease, for the claims.
    fn is_held(&self, job: &Job, leased: bool) -> bool {
        let process = self.host.process.as_ref().expect("the host runs");
        let redone = process.sessions.get(&job.client).is_some_and(|session| session.redone);
        let reclaiming = leased && process.grantor.is_reclaiming(session_id(job.client));
        !self.is_again(job) && (!redone || reclaiming)
    }

    fn do_for_applier(&mut self, client: usize, output: applier::Output<Body, u64>) {
        match output {
            applier::Output::Apply { seq, change, body, how, poisons } => {
                let job = self.new_job(client, Work::Entry { seq, change, body, how, poisons });
                self.clear(job);
            }
            applier::Output::Reached(job) => {
                let epoch = self.host.epoch;
                let process = self.host.process.as_mut().expect("the host runs");
                if let Some(job) = process.jobs.get_mut(&job) {
                    job.reached = epoch;
                }
                self.clear(job);
            }
            applier::Output::Ack(ack) => {
                if let LogAck::Stable { upto } = ack {
                    self.host.note_stable(client, upto);
                }
                self.send_down(client, Lane::Acks, Down::Ack(ack));
            }
            applier::Output::Sync { upto } => {
                let delay = self.dice.delay(200_000);
                let run = self.host.run;
                self.schedule(delay, Event::Synced { run, client, upto });
            }
        }
    }

    /// Asks the leases whether a job may go on.
    fn clear(&mut self, id: u64) {
        let now = self.host_now();
        let leases = self.config.leases;
        let uses = self.uses_of(id);
        let process = self.host.process.as_ref().expect("the host runs");
        let Some(job) = process.jobs.get(&id).cloned() else { return };
        let leased = matches!(&job.what, Work::Entry { change, .. } if change.lease.is_some());
        let held = leases && !uses.is_empty() && self.is_held(&job, leased);
        let process = self.host.process.as_mut().expect("the host runs");
        if held {
            process.held.push(id);
            return;
        }
        let Some(job) = process.jobs.get_mut(&id) else { return };
        if leases && !leased && !uses.is_empty() {
            job.uses = uses.clone();
            let user = User::Session(session_id(job.client));
            process.grantor.wants(user, &uses, id, now);
        } else {
            self.go(id);
        }
    }

    pub(crate) fn go(&mut self, job: u64) {
        let delay = self.dice.delay(20_000);
        let run = self.host.run;
        self.schedule(delay, Event::Execute { run, job });
    }

    fn uses_of(&self, id: u64) -> Vec<(NodeId, Use)> {
        let process = self.host.process.as_ref().expect("the host runs");
        match process.jobs.get(&id).map(|job| &job.what) {
            Some(Work::Entry { change, .. }) if self.config.leases => {
                let seen = self.host.disk.borrow().seen(&change.mutation);
                uses(&change.mutation, &seen)
            }
            Some(Work::Call { call: Call::Fetch { node, .. }, .. }) => vec![(*node, Use::Read)],
            _ => Vec::new(),
        }
    }

    /// A job's time has come.
    pub(crate) fn execute_job(&mut self, id: u64) {
        let now = self.host_now();
        let fresh_uses = self.uses_of(id);
        let process = self.host.process.as_mut().expect("the host runs");
        let Some(job) = process.jobs.get(&id).cloned() else { return };
        let redoing = |session: &Session| session.applier.is_redoing();
        let fetch = matches!(&job.what, Work::Call { call: Call::Fetch { .. }, .. });
        // what is done again waits for nobody, or two would wait for each other
        let again = self.is_again(&job);
        let others = |c: usize| c != job.client || fetch;
        let process = self.host.process.as_mut().expect("the host runs");
        if !again && process.sessions.iter().any(|(&c, s)| redoing(s) && others(c)) {
            process.parked.push(id);
            return;
        }
        let user = User::Session(session_id(job.client));
        if let Work::Call {
            call: Call::Fetch { upto, .. } | Call::Sync { upto, .. } | Call::Release { upto, .. },
            ..
        } = &job.what
            && job.reached != self.host.epoch
        {
            // the disk has lost what this one waited for
            let upto = *upto;
            self.session(job.client).applier.wait_for(upto, id);
            return self.pump_host();
        }
        let process = self.host.process.as_mut().expect("the host runs");
        if !job.uses.is_empty() && job.uses != fresh_uses {
            // the names belong to others than before: those are to be asked, too
            process.grantor.finished(user, &job.uses, now);
            self.clear(id);
            self.pump_host();
            return;
        }
        process.jobs.remove(&id);
        match job.what {
            Work::Entry { seq, .. } if job.reached != self.host.epoch => {
                // the disk has lost what it comes after: it comes again
                let (run, client) = (self.host.run, job.client);
                let refused = Refused { errno: Errno::EIO, reason: Reason::Unknown };
                self.schedule(1, Event::Executed { run, client, seq, result: Err(refused) });
            }
            Work::Entry { seq, change, body, how, poisons } => {
                self.execute_entry(job.client, seq, &change, &body, &how, poisons);
            }
            Work::Call { request, call } => self.execute_call(job.client, request, &call),
        }
        if let Some(process) = &mut self.host.process
            && !job.uses.is_empty()
        {
            process.grantor.finished(user, &job.uses, now);
        }
        self.pump_host();
    }

    fn execute_entry(
        &mut self,
        client: usize,
        seq: Seq,
        change: &Change,
        body: &Body,
        how: &How,
        poisons: bool,
    ) {
        let process = self.host.process.as_ref().expect("the host runs");
        let standing = change.lease.filter(|_| self.config.leases && *how == How::First).map_or(
            Standing::Good,
            |lease| {
                // an entry names one lease: that of the directory, or of the file that it changes
                let node = super::model::nodes(&change.mutation)[0];
                process.grantor.standing(session_id(client), lease, node)
            },
        );
        let ledger = Ledger::default();
        let view = View {
            host: &self.host,
            opens: &process.opens,
            dice: RefCell::new(self.dice.clone()),
            client,
            ledger: &ledger,
            dead: Cell::new(false),
            again: *how != How::First,
        };
        let result = if standing == Standing::Overtaken {
            let result = Err(Refused::conflict(Errno::ESTALE));
            p2pfs::proto::redo::execute::Recorder::done(&view, seq, &result, poisons);
            result
        } else {
            execute(&view, &view, seq, change, body, how, poisons)
        };
        self.dice = view.dice.into_inner();
        self.note(|| format!("host: {client}/{seq} {:?} {how:?} -> {result:?}", change.mutation));
        self.coverage("execute", super::coverage::how(how), super::coverage::outcome(&result));
        if matches!(how, How::Passed { .. }) && !super::model::names(&change.mutation).is_empty() {
            self.excuses.passed = true;
        }
        let killed = self.host.fuse.get() == 0;
        for (mutation, outcome) in ledger.done.take() {
            if *how == How::First && change.lease.is_some() {
                self.check_overtaken(client, seq);
            }
            self.count_effect(client, seq, &mutation, body, outcome);
        }
        if killed {
            // what an entry opens is recorded before its result
            let opens = self.host.process.take().expect("it ran").opens;
            record_opens(&mut self.host.opened, &opens.borrow(), self.clients.len());
            return self.host_is_gone();
        }
        self.check_result(client, seq, change, body, &result);
        if ledger.disk_failed.get() {
            self.disk_failed();
        }
        let run = self.host.run;
        let delay = self.dice.delay(5_000);
        self.schedule(delay, Event::Executed { run, client, seq, result });
    }

    /// The applier learns what came of an entry.
    pub(crate) fn executed(&mut self, client: usize, seq: Seq, result: Result<Outcome, Refused>) {
        let now = self.host_now();
        self.session(client).applier.handle_result(seq, result, now);
        self.pump_host();
    }

    fn execute_call(&mut self, client: usize, request: u64, call: &Call) {
        let now = self.host_now();
        let session = session_id(client);
        let process = self.host.process.as_mut().expect("the host runs");
        let reply = match call {
            Call::Fetch { node, handle, .. } => {
                let disk = self.host.disk.borrow();
                let found = disk.now.node(*node).cloned();
                if let (Ok(_), Some(handle)) = (&found, handle) {
                    process.opens.get_mut().open(session, *handle, *node, Access::ReadWrite);
                }
                found.map(|node| {
                    let children = node.names.values();
                    let children =
                        children.filter_map(|id| Some((*id, disk.now.nodes.get(id)?.clone())));
                    Reply::Node { children: children.collect(), node }
                })
            }
            Call::Sync { node, .. } => {
                self.outdate_sync(client, request, *node);
                let upto = self.session(client).applier.cursor();
                let done = self.host.disk.borrow_mut().sync(&mut self.dice);
                match done {
                    Ok(()) => {
                        self.synced_for_neighbours(client, *node);
                        self.session(client).applier.handle_synced(upto, now);
                    }
                    Err(_) => self.disk_failed(),
                }
                done.map(|()| Reply::Done)
            }
            Call::Release { handle, .. } => {
                process.opens.get_mut().close(session, *handle);
                Ok(Reply::Done)
            }
        };
        if let Call::Fetch { node, upto, .. } = call
            && self.clients[client].carried_out.insert(request)
            && !self.clients[client].awaits_since(*node, *upto)
        {
            self.check_fetched(client, *node, &reply);
        }
        self.note(|| format!("host: {client} {call:?} -> {:?}", reply.is_ok()));
        self.send_down(client, Lane::Replies, Down::Reply { request, reply });
    }

    /// What others changed is stable too, and where one was told that its data is on the disk that
    /// outlives a crash.
    fn synced_for_neighbours(&mut self, client: usize, node: NodeId) {
        let now = self.host_now();
        let process = self.host.process.as_mut().expect("the host runs");
        let mut stable = Vec::new();
        for (&other, session) in process.sessions.iter_mut().filter(|(other, _)| **other != client)
        {
            let shared = session.applier.last_unstable(Some(node)).is_some();
            let cursor = session.applier.cursor();
            session.applier.handle_synced_unasked(cursor, now);
            stable.push((other, session.applier.stable(), shared));
        }
        for (other, upto, shared) in stable {
            self.host.note_stable(other, upto);
            if shared {
                let record = self.host.records[&other].borrow().clone();
                self.host.kept.insert(other, record);
            }
        }
    }

    /// The sync that an applier asked for is over.
    pub(crate) fn synced(&mut self, client: usize, upto: Seq) {
        let now = self.host_now();
        let done = self.host.disk.borrow_mut().sync(&mut self.dice);
        self.note(|| format!("host: sync for {client} up to {upto}: {done:?}"));
        match done {
            Ok(()) => self.session(client).applier.handle_synced(upto, now),
            Err(_) => self.disk_failed(),
        }
        self.pump_host();
    }

    fn do_for_grantor(&mut self, output: grantor::Output<u64>) {
        let now = self.host_now();
        match output {
            grantor::Output::Send { session, notice } => {
                let client = session.0[0] as usize - 1;
                self.send_down(client, Lane::Notices, Down::Notice(notice));
            }
            grantor::Output::Go(job) => self.go(job),
            grantor::Output::Compare { session, claim } => {
                let same = self.version(claim.lease.node) == Some(claim.version);
                let process = self.host.process.as_mut().expect("the host runs");
                process.grantor.handle_compared(session, claim.lease.id, same, now);
            }
            grantor::Output::Watch { node } => {
                let version = self.version(node);
                let process = self.host.process.as_mut().expect("the host runs");
                process.grantor.handle_watched(node, version, now);
            }
            grantor::Output::Unwatch { .. } => {}
        }
    }
}
