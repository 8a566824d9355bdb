//! Clients with clocks of their own, a host, and connections that are late, lost and made again.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use crate::id::{LeaseId, NodeId, Seq, SessionId};
use crate::proto::lease::holder::Holder;
use crate::wire::lease::{Lease, LeaseKind, LeaseRequest, Notice, Version};

use super::host::Host;

pub(super) const NODES: u64 = 4;
/// The host notices a dead connection after so long at most, and so does the client.
const NOTICED: u64 = 10_000;

pub(super) fn node(number: u64) -> NodeId {
    NodeId { ino: number + 2, generation: 1 }
}

pub(super) fn session(client: usize) -> SessionId {
    SessionId([u8::try_from(client).unwrap(); 16])
}

pub(super) fn version(value: u64) -> Version {
    Version { size: value, ..Version::default() }
}

/// splitmix64
#[derive(Debug)]
pub(super) struct Dice(pub(super) u64);

impl Dice {
    pub(super) fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % end
    }

    pub(super) fn one_in(&mut self, times: u64) -> bool {
        self.below(times) == 0
    }

    pub(super) fn millis(&mut self, end: u64) -> Duration {
        Duration::from_micros(self.below(end * 1000) + 1)
    }
}

/// What may go wrong in a world.
#[derive(Clone, Copy, Debug)]
pub(super) struct Chaos {
    pub(super) losses: bool,
    pub(super) restarts: bool,
    pub(super) freezes: bool,
    pub(super) processes: bool,
    pub(super) stuck_flushes: bool,
}

#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) seq: Seq,
    pub(super) node: NodeId,
    pub(super) lease: Option<LeaseId>,
    /// Changes by others when it was accepted.
    pub(super) foreign: usize,
}

#[derive(Clone, Debug)]
pub(super) enum ToHost {
    Lease(LeaseRequest),
    Entry(Entry),
    Read { node: NodeId, began: u64, under: Option<LeaseId>, want: LeaseKind },
}

#[derive(Clone, Debug)]
pub(super) enum ToClient {
    Notice(Notice),
    Applied { seq: Seq, version: Option<Version> },
    Data { node: NodeId, value: u64, lease: Option<Lease>, began: u64, under: Option<LeaseId> },
}

#[derive(Debug)]
pub(super) enum Event {
    ToHost { client: usize, connection: u64, run: u64, message: ToHost },
    ToClient { client: usize, connection: u64, message: ToClient },
    Connect { client: usize },
    ClientNotices { client: usize, connection: u64 },
    HostNotices { client: usize, connection: u64 },
    Thaw { client: usize, woken: bool },
    Flushed { client: usize, lease: LeaseId, node: NodeId },
    Act { client: usize },
    Mishap,
    Host(super::host::Event),
}

pub(super) struct Client {
    pub(super) holder: Holder,
    rate: f64,
    offset: Duration,
    /// The connection that both sides believe in, or one that is dead without notice.
    pub(super) connection: u64,
    pub(super) alive: bool,
    pub(super) believes: bool,
    pub(super) frozen: bool,
    queue: Vec<Event>,
    /// The last arrival on each ordered lane.
    lanes: [Duration; 4],
    /// What was cached, of nodes without changes under way.
    pub(super) cache: BTreeMap<NodeId, (LeaseId, u64)>,
    /// Counts what makes an answer on the way too old to be cached.
    pub(super) touched: BTreeMap<NodeId, u64>,
    pub(super) entries: BTreeMap<Seq, Entry>,
    pub(super) next_seq: Seq,
    pub(super) lost: BTreeSet<LeaseId>,
}

pub(super) struct World {
    base: Instant,
    pub(super) time: Duration,
    pub(super) dice: Dice,
    pub(super) chaos: Chaos,
    pub(super) clients: Vec<Client>,
    pub(super) host: Host,
    events: BTreeMap<(Duration, u64), Event>,
    serial: u64,
    pub(super) seen: BTreeMap<&'static str, usize>,
    /// Nobody does anything any more.
    pub(super) quiet: bool,
}

impl World {
    pub(super) fn new(seed: u64, clients: usize, chaos: Chaos) -> Self {
        let base = Instant::now();
        let mut dice = Dice(seed);
        let clients = (0..clients).map(|_| Client::new(&mut dice, base)).collect::<Vec<_>>();
        let mut world = Self {
            base,
            time: Duration::ZERO,
            dice,
            chaos,
            clients,
            host: Host::new(base),
            events: BTreeMap::new(),
            serial: 0,
            seen: BTreeMap::new(),
            quiet: false,
        };
        for client in 0..world.clients.len() {
            world.after(Duration::from_millis(1), Event::Connect { client });
            world.after(Duration::from_millis(500), Event::Act { client });
        }
        world.after(Duration::from_secs(3), Event::Mishap);
        world
    }

    pub(super) fn now(&self) -> Instant {
        self.base + self.time
    }

    pub(super) fn local(&self, client: usize) -> Instant {
        let client = &self.clients[client];
        self.base + client.offset + self.time.mul_f64(client.rate)
    }

    pub(super) fn see(&mut self, what: &'static str) {
        *self.seen.entry(what).or_default() += 1;
    }

    pub(super) fn after(&mut self, delay: Duration, event: Event) {
        self.at(self.time + delay, event);
    }

    fn at(&mut self, time: Duration, event: Event) {
        self.serial += 1;
        self.events.insert((time, self.serial), event);
    }

    /// Some time on the way; now and then very long.
    pub(super) fn transit(&mut self) -> Duration {
        if self.dice.one_in(30) { self.dice.millis(8000) } else { self.dice.millis(60) }
    }

    fn in_order(&mut self, client: usize, lane: usize) -> Duration {
        let arrival = self.time + self.transit();
        let last = &mut self.clients[client].lanes[lane];
        *last = arrival.max(*last + Duration::from_nanos(1));
        *last
    }

    pub(super) fn send_to_host(&mut self, client: usize, message: ToHost) {
        let arrival = match &message {
            ToHost::Lease(_) => self.in_order(client, 0),
            ToHost::Entry(_) => self.in_order(client, 1),
            ToHost::Read { .. } => self.time + self.transit(),
        };
        let connection = self.clients[client].connection;
        let run = self.host.run;
        self.at(arrival, Event::ToHost { client, connection, run, message });
    }

    pub(super) fn send_to_client(&mut self, client: usize, message: ToClient) {
        let arrival = match &message {
            ToClient::Notice(_) => self.in_order(client, 2),
            ToClient::Applied { .. } => self.in_order(client, 3),
            ToClient::Data { .. } => self.time + self.transit(),
        };
        let connection = self.clients[client].connection;
        self.at(arrival, Event::ToClient { client, connection, message });
    }

    /// Runs until `end`, and checks after every step.
    pub(super) fn run_until(&mut self, end: Duration) {
        loop {
            let queued = self.events.first_key_value().map(|(&(time, _), _)| time);
            let timer = self.next_timer();
            let Some(next) = queued.into_iter().chain(timer).min() else {
                break;
            };
            if next > end {
                break;
            }
            self.time = self.time.max(next);
            if queued.is_some_and(|queued| queued <= next) {
                let (_, event) = self.events.pop_first().unwrap();
                self.step(event);
            }
            self.timers();
            self.drain();
            self.check();
        }
        self.time = end;
    }

    fn next_timer(&self) -> Option<Duration> {
        let host = self.host.grantor.poll_timeout().filter(|_| self.host.up);
        let host = host.map(|at| at.saturating_duration_since(self.base));
        let clients = self.clients.iter().filter(|client| !client.frozen).filter_map(|client| {
            let at = client.holder.poll_timeout()?;
            let local = at.saturating_duration_since(self.base + client.offset);
            Some(local.div_f64(client.rate) + Duration::from_micros(1))
        });
        clients.chain(host).min()
    }

    fn timers(&mut self) {
        let now = self.now();
        if self.host.up && self.host.grantor.poll_timeout().is_some_and(|at| at <= now) {
            self.host.grantor.handle_timeout(now);
        }
        for client in 0..self.clients.len() {
            let local = self.local(client);
            let holder = &mut self.clients[client];
            if !holder.frozen && holder.holder.poll_timeout().is_some_and(|at| at <= local) {
                holder.holder.handle_timeout(local);
            }
        }
    }

    fn step(&mut self, event: Event) {
        if let Event::ToClient { client, .. }
        | Event::ClientNotices { client, .. }
        | Event::Flushed { client, .. }
        | Event::Act { client } = event
            && self.clients[client].frozen
        {
            self.clients[client].queue.push(event);
            return;
        }
        match event {
            Event::ToHost { client, connection, run, message } => {
                let known = self.host.up && self.host.run == run;
                let current =
                    self.clients[client].alive && self.clients[client].connection == connection;
                // frames of a dead connection may still arrive
                if known && (current || self.dice.one_in(2)) {
                    self.host_hears(client, message);
                }
            }
            Event::ToClient { client, connection, message } => {
                let holder = &self.clients[client];
                if holder.alive && holder.connection == connection {
                    self.client_hears(client, message);
                }
            }
            Event::Connect { client } => self.connect(client),
            Event::ClientNotices { client, connection } => self.client_notices(client, connection),
            Event::HostNotices { client, connection } => {
                if self.host.up && self.clients[client].connection == connection {
                    self.host.grantor.handle_lost(session(client), self.base + self.time);
                }
            }
            Event::Thaw { client, woken } => self.thaw(client, woken),
            Event::Flushed { client, lease, node } => self.flushed(client, lease, node),
            Event::Act { client } => self.act(client),
            Event::Mishap => self.mishap(),
            Event::Host(event) => self.host_event(event),
        }
    }

    pub(super) fn drain(&mut self) {
        loop {
            let mut idle = true;
            while let Some(output) = self.host.grantor.poll_output() {
                idle = false;
                self.host_output(output);
            }
            for client in 0..self.clients.len() {
                while let Some(output) = self.clients[client].holder.poll_output() {
                    idle = false;
                    self.client_output(client, output);
                }
            }
            if idle {
                return;
            }
        }
    }

    fn connect(&mut self, client: usize) {
        if self.clients[client].alive {
            return;
        }
        if !self.host.up || self.clients[client].frozen {
            self.after(Duration::from_secs(1), Event::Connect { client });
            return;
        }
        let local = self.local(client);
        let now = self.now();
        let holder = &mut self.clients[client];
        holder.connection += 1;
        holder.alive = true;
        holder.believes = true;
        holder.lanes = [self.time; 4];
        holder.holder.handle_connected(local);
        self.host.grantor.handle_connected(session(client), now);
        let redone = self.dice.millis(3000);
        self.after(redone, Event::Host(super::host::Event::Redone { client, run: self.host.run }));
        for entry in self.clients[client].entries.values().cloned().collect::<Vec<_>>() {
            self.send_to_host(client, ToHost::Entry(entry));
        }
    }

    pub(super) fn disconnect(&mut self, client: usize) {
        if !self.clients[client].alive {
            return;
        }
        self.clients[client].alive = false;
        let connection = self.clients[client].connection;
        let noticed = self.dice.millis(NOTICED);
        self.after(noticed, Event::HostNotices { client, connection });
        let noticed = self.dice.millis(NOTICED);
        self.after(noticed, Event::ClientNotices { client, connection });
    }

    fn client_notices(&mut self, client: usize, connection: u64) {
        let local = self.local(client);
        let holder = &mut self.clients[client];
        if holder.connection != connection || !holder.believes {
            return;
        }
        holder.believes = false;
        holder.holder.handle_lost(local);
        let delay = if self.dice.one_in(4) { 60_000 } else { 2000 };
        let delay = self.dice.millis(delay);
        self.after(delay, Event::Connect { client });
    }

    fn thaw(&mut self, client: usize, woken: bool) {
        let local = self.local(client);
        let holder = &mut self.clients[client];
        holder.frozen = false;
        let queue = std::mem::take(&mut holder.queue);
        if woken {
            holder.holder.handle_suspend(local);
            self.drain();
        }
        for event in queue {
            self.step(event);
            self.drain();
        }
    }
}

impl Client {
    fn new(dice: &mut Dice, base: Instant) -> Self {
        // 0.3 % apart from the host's at most
        let rate = 1.0 + f64::from(u32::try_from(dice.below(6000)).unwrap()) / 1e6 - 0.003;
        let offset = dice.millis(5_000_000);
        Self {
            holder: Holder::new(base + offset),
            rate,
            offset,
            connection: 0,
            alive: false,
            believes: false,
            frozen: false,
            queue: Vec::new(),
            lanes: [Duration::ZERO; 4],
            cache: BTreeMap::new(),
            touched: BTreeMap::new(),
            entries: BTreeMap::new(),
            next_seq: Seq(1),
            lost: BTreeSet::new(),
        }
    }
}
