//! A run: events in the order of one virtual time, first with faults, then without, until all rest.

use std::collections::BTreeMap;
use std::time::Instant;

use p2pfs::id::{NodeId, Seq};
use p2pfs::wire::lease::{LeaseRequest, Notice, Version};
use p2pfs::wire::log::{Outcome, Refused};

use super::client::Client;
use super::clock::Clock;
use super::coverage::Coverage;
use super::dice::Dice;
use super::host::{Host, session_id};
use super::model::Model;
use super::net::{Connection, Down, Frame, Lane, Up};
use super::posix::Kind;

/// How long applications wait for a host that is away, microseconds.
pub(crate) const GRACE: u64 = 45_000_000;
/// So long after something went wrong a lease may have lapsed with changes under way: an outage, a
/// term, and the wait of a restarted host, microseconds.
pub(crate) const LAPSE: u64 = 250_000_000;
/// Within this everything comes to rest once the faults are over, microseconds.
const REST: u64 = 300_000_000;
const SECOND: u64 = 1_000_000;

/// What kind of run it is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Config {
    pub(crate) clients: usize,
    /// Applications of each client.
    pub(crate) apps: usize,
    /// Whether clients need leases; without them there is one client, which owns the share.
    pub(crate) leases: bool,
    /// What applications ask for, in all.
    pub(crate) ops: u64,
    /// How many things go wrong.
    pub(crate) faults: u64,
    /// How often a process on the host changes something.
    pub(crate) processes: u64,
    /// How long an application thinks, microseconds.
    pub(crate) think: u64,
}

impl Config {
    pub(crate) fn alone() -> Self {
        Self { clients: 1, apps: 2, leases: false, ops: 60, faults: 4, processes: 0, think: 40_000 }
    }

    /// Clients that share, and nothing goes wrong.
    pub(crate) fn calm() -> Self {
        Self { faults: 0, ..Self::leased() }
    }

    /// Clients that share, while connections, processes and machines fail.
    pub(crate) fn leased() -> Self {
        Self { clients: 2, apps: 2, leases: true, ops: 60, faults: 2, processes: 0, think: 40_000 }
    }

    /// The same, and processes on the host change things, machines sleep, and events are lost.
    pub(crate) fn watched() -> Self {
        Self { processes: 8, ..Self::leased() }
    }

    /// Nobody else changes anything.
    pub(crate) fn is_alone(&self) -> bool {
        self.clients == 1 && self.processes == 0
    }
}

/// What may excuse that a promise is broken.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Excuses {
    /// The disk was full.
    pub(crate) full: bool,
    /// Somebody gave up, and something was struck.
    pub(crate) struck: bool,
    /// A crash or a failed sync hit names that had been through many hands: the state alone cannot
    /// always tell how far they had come.
    pub(crate) passed: bool,
}

#[derive(Clone, Debug)]
pub(crate) enum Event {
    App {
        client: usize,
        app: usize,
    },
    Frame {
        connection: u64,
        lane: Lane,
    },
    ClientNotices {
        client: usize,
        connection: u64,
    },
    HostNotices {
        client: usize,
        connection: u64,
    },
    Connect {
        client: usize,
    },
    GiveUp {
        client: usize,
        losses: u64,
    },
    StartHost,
    Execute {
        run: u64,
        job: u64,
    },
    Executed {
        run: u64,
        client: usize,
        seq: Seq,
        result: Result<Outcome, Refused>,
    },
    Synced {
        run: u64,
        client: usize,
        upto: Seq,
    },
    Fault(Fault),
    /// The host's process hears what another one has changed, unless too much has happened.
    Noticed {
        run: u64,
        nodes: Vec<NodeId>,
        lost: bool,
    },
    Wakes {
        client: usize,
    },
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum Fault {
    Cut,
    /// No connection for so long.
    Outage(u64),
    Kill,
    /// The process is killed after so many more steps.
    KillAt(u32),
    Crash,
    /// The next sync fails.
    SyncFails,
    Full,
    NotFull,
    /// A process on the host changes something.
    Process,
    /// A client's machine sleeps so long; its clock stands still.
    Suspend(u64),
}

#[derive(Debug)]
pub(crate) struct World {
    pub(crate) config: Config,
    pub(crate) dice: Dice,
    base: Instant,
    pub(crate) now: u64,
    events: BTreeMap<(u64, u64), Event>,
    serial: u64,
    pub(crate) connections: BTreeMap<u64, Connection>,
    pub(crate) host: Host,
    pub(crate) clients: Vec<Client>,
    pub(crate) model: Model,
    /// Nodes of the model that were confirmed to be on the disk, and how often they had changed.
    pub(crate) fsynced: BTreeMap<NodeId, u64>,
    pub(crate) excuses: Excuses,
    pub(crate) processes: super::process::Processes,
    /// What the host has carried out, and has not lost since.
    pub(crate) executed: std::collections::BTreeSet<(usize, u64)>,
    /// When something last went wrong.
    pub(crate) trouble: Option<u64>,
    pub(crate) counts: Coverage,
    pub(crate) healing: bool,
    pub(crate) ops: u64,
    pub(crate) steps: u64,
    pub(crate) written: u64,
    pub(crate) trace: bool,
}

impl World {
    pub(crate) fn new(seed: u64, config: Config) -> Self {
        let base = Instant::now();
        let mut dice = Dice::new(seed);
        let clients = (0..config.clients)
            .map(|_| Client::new(Clock::new(base, dice.below(SECOND), dice.below(50))))
            .collect();
        let mut world = Self {
            config,
            dice,
            base,
            now: 0,
            events: BTreeMap::new(),
            serial: 0,
            connections: BTreeMap::new(),
            host: Host::default(),
            clients,
            model: Model::default(),
            fsynced: BTreeMap::new(),
            excuses: Excuses::default(),
            processes: super::process::Processes::default(),
            executed: std::collections::BTreeSet::new(),
            trouble: None,
            counts: Coverage::default(),
            healing: false,
            ops: 0,
            steps: 0,
            written: 0,
            trace: std::env::var_os("P2PFS_TRACE").is_some(),
        };
        world.start_host();
        for client in 0..config.clients {
            world.connect(client);
        }
        world
    }

    /// Draws what will go wrong, and lets the applications begin.
    pub(crate) fn begin(&mut self) {
        for client in 0..self.config.clients {
            for app in 0..self.config.apps {
                self.wake(client, app);
            }
        }
        let span = self.config.think * self.config.ops / 2 + 3 * SECOND;
        for _ in 0..self.dice.below(self.config.faults + 1) {
            let at = self.dice.below(span);
            let fault = match self.dice.below(20) {
                0..4 => Fault::Cut,
                4 => Fault::Outage(self.dice.below(2 * GRACE)),
                5..8 => Fault::Kill,
                8..12 => Fault::KillAt(self.dice.range(1, 12) as u32),
                12..17 => Fault::Crash,
                17 => Fault::SyncFails,
                _ => Fault::Full,
            };
            if matches!(fault, Fault::Full) {
                let until = self.dice.delay(3 * SECOND);
                self.schedule(at + until, Event::Fault(Fault::NotFull));
            }
            self.schedule(at, Event::Fault(fault));
        }
        if self.config.processes > 0 {
            for _ in 0..self.dice.below(self.config.processes + 1) {
                let at = self.dice.below(span);
                self.schedule(at, Event::Fault(Fault::Process));
            }
            if self.dice.percent(30) {
                let (at, long) = (self.dice.below(span), self.dice.delay(100 * SECOND));
                self.schedule(at, Event::Fault(Fault::Suspend(long)));
            }
        }
    }

    /// A whole run.
    pub(crate) fn run(&mut self) {
        self.begin();
        while self.ops < self.config.ops && self.now < 1_000 * SECOND {
            self.step();
        }
        self.heal();
    }

    /// No more faults: everything must come to rest, and be right.
    pub(crate) fn heal(&mut self) {
        self.note(|| "no more faults".to_owned());
        self.healing = true;
        self.events.retain(|_, event| !matches!(event, Event::Fault(_)));
        self.host.fuse.set(u32::MAX);
        let mut disk = self.host.disk.borrow_mut();
        (disk.full, disk.failing) = (false, false);
        drop(disk);
        for client in 0..self.clients.len() {
            let side = &mut self.clients[client];
            side.outage = 0;
            let now = side.clock.at(self.now.max(side.asleep));
            side.copies.retry(now);
        }
        let (until, steps) = (self.now + REST, self.steps + 50_000);
        while !self.rests() {
            assert!(
                self.now < until && self.steps < steps,
                "it does not come to rest: {} steps, {:?}",
                self.steps,
                self.clients.iter().map(|c| (c.log.unstable(), &c.waiting)).collect::<Vec<_>>()
            );
            self.step();
        }
        self.check_converged();
    }

    fn rests(&self) -> bool {
        self.host.process.is_some()
            && self.clients.iter().all(|client| {
                client.connected
                    && client.copies.is_empty()
                    && client.waiting.is_empty()
                    && client.calls.is_empty()
                    && client.log.unstable().0 == 0
            })
    }

    pub(crate) fn schedule(&mut self, delay: u64, event: Event) {
        self.serial += 1;
        self.events.insert((self.now + delay, self.serial), event);
    }

    pub(crate) fn host_now(&self) -> Instant {
        Clock::new(self.base, 0, 0).at(self.now)
    }

    /// The earliest event, or the earliest timer.
    pub(crate) fn step(&mut self) {
        self.steps += 1;
        let event = self.events.first_key_value().map_or(u64::MAX, |(&(at, _), _)| at);
        match self.next_timer() {
            Some((at, who)) if at <= event => {
                self.now = self.now.max(at);
                self.timer(who);
            }
            _ => {
                let ((at, _), event) = self.events.pop_first().expect("something is to come");
                self.now = at;
                self.handle(event);
            }
        }
    }

    /// When a machine wants to be called, and whose: `None` is the host.
    fn next_timer(&self) -> Option<(u64, Option<usize>)> {
        let mut soonest: Option<(u64, Option<usize>)> = None;
        let mut offer = |at: Option<u64>, who| {
            if let Some(at) = at
                && soonest.is_none_or(|(soonest, _)| at < soonest)
            {
                soonest = Some((at, who));
            }
        };
        let clock = Clock::new(self.base, 0, 0);
        if let Some(process) = &self.host.process {
            for session in process.sessions.values() {
                offer(session.applier.poll_timeout().map(|at| clock.when(at)), None);
            }
            if self.config.leases {
                offer(process.grantor.poll_timeout().map(|at| clock.when(at)), None);
            }
        }
        for (number, client) in self.clients.iter().enumerate() {
            if client.asleep > self.now {
                continue;
            }
            if self.config.leases {
                let at = client.holder.poll_timeout();
                offer(at.map(|at| client.clock.when(at)), Some(number));
            }
            offer(client.copies.poll_timeout().map(|at| client.clock.when(at)), Some(number));
        }
        soonest
    }

    fn timer(&mut self, who: Option<usize>) {
        if let Some(client) = who {
            let side = &mut self.clients[client];
            let now = side.clock.at(self.now);
            if self.config.leases {
                side.holder.handle_timeout(now);
            }
            side.copies.handle_timeout(now);
            return self.pump_client(client);
        }
        let now = self.host_now();
        let leases = self.config.leases;
        let process = self.host.process.as_mut().expect("a timer of the host");
        for session in process.sessions.values_mut() {
            session.applier.handle_timeout(now);
        }
        if leases {
            process.grantor.handle_timeout(now);
        }
        self.pump_host();
    }

    fn handle(&mut self, event: Event) {
        let here = |run: u64, world: &Self| world.host.process.is_some() && world.host.run == run;
        if let Some(wakes) = self.sleeper(&event) {
            // behind the waking
            let delay = wakes - self.now + 1;
            return self.schedule(delay, event);
        }
        match event {
            Event::App { client, app } => self.act(client, app),
            Event::Frame { connection, lane } => self.frame(connection, lane),
            Event::ClientNotices { client, connection } => {
                self.client_notices(client, connection);
            }
            Event::HostNotices { client, connection } => self.host_notices(connection, client),
            Event::Connect { client } => self.connect(client),
            Event::GiveUp { client, losses } => self.give_up(client, losses),
            Event::StartHost if self.host.process.is_none() => self.start_host(),
            Event::Execute { run, job } if here(run, self) => self.execute_job(job),
            Event::Executed { run, client, seq, result } if here(run, self) => {
                self.executed(client, seq, result);
            }
            Event::Synced { run, client, upto } if here(run, self) => self.synced(client, upto),
            Event::Fault(fault) => self.fault(fault),
            Event::Noticed { run, nodes, lost } if here(run, self) => self.noticed(&nodes, lost),
            Event::Wakes { client } => self.wakes(client),
            _ => {}
        }
    }

    fn fault(&mut self, fault: Fault) {
        self.note(|| format!("{fault:?}"));
        if !matches!(fault, Fault::Process) {
            self.trouble = Some(self.now);
        }
        let client = self.dice.below(self.clients.len() as u64) as usize;
        match fault {
            Fault::Cut | Fault::Outage(_) => {
                if let Fault::Outage(long) = fault {
                    self.clients[client].outage = self.now + long;
                }
                if let Some(connection) = self.clients[client].connection {
                    self.cut(connection);
                }
            }
            Fault::Kill => self.kill_host(),
            Fault::KillAt(steps) => self.host.fuse.set(steps),
            Fault::Crash => self.crash_host(),
            Fault::SyncFails => self.host.disk.borrow_mut().failing = true,
            Fault::Full => {
                self.excuses.full = true;
                self.host.disk.borrow_mut().full = true;
            }
            Fault::NotFull => self.host.disk.borrow_mut().full = false,
            Fault::Process => self.process_acts(),
            Fault::Suspend(long) => self.suspend(client, long),
        }
    }

    pub(crate) fn new_connection(&mut self, client: usize) -> u64 {
        self.serial += 1;
        let latency = 1_000 + self.dice.delay(100_000);
        let connection = Connection::new(client, self.host.run, latency);
        self.connections.insert(self.serial, connection);
        self.serial
    }

    /// A connection dies; both ends notice at some time.
    pub(crate) fn cut(&mut self, connection: u64) {
        let Some(found) = self.connections.get_mut(&connection) else { return };
        if found.cut {
            return;
        }
        found.cut(&mut self.dice);
        let client = found.client;
        let (here, there) = (self.dice.delay(5 * SECOND), self.dice.delay(5 * SECOND));
        self.schedule(here, Event::ClientNotices { client, connection });
        self.schedule(there, Event::HostNotices { client, connection });
    }

    fn send(&mut self, connection: u64, lane: Lane, frame: Frame) {
        let Some(found) = self.connections.get_mut(&connection) else { return };
        if let Some(at) = found.send(lane, frame, self.now, &mut self.dice) {
            self.schedule(at - self.now, Event::Frame { connection, lane });
        }
    }

    pub(crate) fn send_up(&mut self, client: usize, lane: Lane, frame: Up) {
        let side = &self.clients[client];
        let ready = side.connected || matches!(frame, Up::Identify { .. });
        if let Some(connection) = side.connection.filter(|_| ready) {
            self.send(connection, lane, Frame::Up(frame));
        }
    }

    pub(crate) fn send_down(&mut self, client: usize, lane: Lane, frame: Down) {
        if let Some(connection) = self.session(client).connection {
            self.send(connection, lane, Frame::Down(frame));
        }
    }

    fn frame(&mut self, connection: u64, lane: Lane) {
        let Some(found) = self.connections.get_mut(&connection) else { return };
        let (client, run) = (found.client, found.run);
        match found.receive(lane, self.now) {
            Some(Frame::Up(frame)) if self.host.process.is_some() && self.host.run == run => {
                self.host_receives(connection, client, frame);
            }
            Some(Frame::Down(frame)) => self.client_receives(client, connection, frame),
            _ => {}
        }
    }

    /// Leases are the grantor's business; nodes in advance are the disk's.
    pub(crate) fn handle_lease_request(&mut self, client: usize, request: LeaseRequest) {
        let now = self.host_now();
        if let LeaseRequest::Premake { files, directories } = request {
            let mut disk = self.host.disk.borrow_mut();
            let files = (0..files).filter_map(|_| disk.make(Kind::File).ok()).collect();
            let directories = (0..directories).filter_map(|_| disk.make(Kind::Dir).ok()).collect();
            drop(disk);
            let notice = Notice::Premade { files, directories };
            return self.send_down(client, Lane::Notices, Down::Notice(notice));
        }
        let process = self.host.process.as_mut().expect("the host runs");
        let taken = process.grantor.handle_request(session_id(client), request.clone(), now);
        assert!(taken.is_ok(), "{request:?} was refused: {taken:?}");
    }

    /// What a node is now, as far as times and size can tell.
    pub(crate) fn version(&self, node: NodeId) -> Option<Version> {
        let disk = self.host.disk.borrow();
        let attr = disk.now.nodes.get(&node)?.attr();
        Some(Version { ctime: attr.ctime, mtime: attr.mtime, size: attr.size })
    }

    pub(crate) fn coverage(
        &mut self,
        machine: &'static str,
        state: &'static str,
        event: &'static str,
    ) {
        self.counts.count(machine, state, event);
    }

    /// Says what goes on, where somebody looks.
    pub(crate) fn note(&self, text: impl FnOnce() -> String) {
        if self.trace {
            eprintln!("{:>12} {}", self.now, text());
        }
    }
}
