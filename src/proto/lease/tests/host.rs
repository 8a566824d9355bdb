//! The host of a world: carries out reads and changes, and checks what nobody may see.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use crate::id::{HostRun, LeaseId, NodeId, Seq};
use crate::limits::{LEASE_RECALL, LEASE_TERM};
use crate::proto::lease::grantor::{Grantor, Output, Standing, Use, User};
use crate::wire::lease::{Claim, Lease, LeaseKind, LeaseRequest, Notice};

use super::world::{Entry, ToClient, ToHost, World, node, session, version};

#[derive(Debug)]
pub(super) enum Event {
    Up,
    Redone { client: usize, run: u64 },
    Perform { ticket: u64 },
    Finish { ticket: u64 },
    Look { node: NodeId, run: u64, report: Duration },
    Watched { node: NodeId, run: u64, value: Option<u64> },
    Compare { client: usize, claim: Claim, run: u64 },
    Compared { client: usize, lease: LeaseId, same: bool, run: u64 },
}

#[derive(Debug)]
struct Op {
    client: usize,
    connection: u64,
    what: What,
    since: Duration,
    gone: bool,
    value: u64,
    /// What an entry's answer tells of the object.
    answer: Option<u64>,
}

#[derive(Debug)]
enum What {
    Read { node: NodeId, began: u64, under: Option<LeaseId>, want: LeaseKind },
    Entry(Entry),
}

pub(super) struct Host {
    pub(super) grantor: Grantor<u64>,
    pub(super) run: u64,
    pub(super) up: bool,
    /// Who changed each node, in order.
    changes: BTreeMap<NodeId, Vec<User>>,
    /// Who began to change each node, in order.
    begun: BTreeMap<NodeId, Vec<User>>,
    known: BTreeSet<usize>,
    redone: BTreeSet<usize>,
    applied: BTreeMap<usize, BTreeMap<Seq, Option<u64>>>,
    pending: BTreeMap<usize, BTreeMap<Seq, Entry>>,
    busy: BTreeSet<usize>,
    ops: BTreeMap<u64, Op>,
    next_ticket: u64,
    last_look: Duration,
    /// Each lease with the changes that others had begun before it was given.
    granted: BTreeMap<(usize, LeaseId), (NodeId, usize)>,
    /// Those of this run, and those that it was convinced of.
    given: BTreeSet<(usize, LeaseId)>,
    /// Leases that a process has ended: their holders may not know it yet.
    exempt: BTreeSet<(usize, LeaseId)>,
    grace_over: Option<Duration>,
    excused: bool,
}

impl Host {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            grantor: Grantor::new(HostRun(1), [], now),
            run: 1,
            up: true,
            changes: BTreeMap::new(),
            begun: BTreeMap::new(),
            known: BTreeSet::new(),
            redone: BTreeSet::new(),
            applied: BTreeMap::new(),
            pending: BTreeMap::new(),
            busy: BTreeSet::new(),
            ops: BTreeMap::new(),
            next_ticket: 0,
            last_look: Duration::ZERO,
            granted: BTreeMap::new(),
            given: BTreeSet::new(),
            exempt: BTreeSet::new(),
            grace_over: None,
            excused: false,
        }
    }

    fn value(&self, node: NodeId) -> u64 {
        self.changes.get(&node).map_or(0, |changes| changes.len() as u64)
    }

    /// Changes by others than `user` after the first `from`.
    pub(super) fn foreign(&self, user: User, node: NodeId, from: u64) -> usize {
        let changes = self.changes.get(&node).into_iter().flatten();
        changes.skip(usize::try_from(from).unwrap()).filter(|by| **by != user).count()
    }

    fn foreign_begun(&self, client: usize, node: NodeId) -> usize {
        let user = User::Session(session(client));
        self.begun.get(&node).into_iter().flatten().filter(|by| **by != user).count()
    }

    pub(super) fn is_idle(&self) -> bool {
        self.ops.is_empty() && self.pending.values().all(BTreeMap::is_empty)
    }

    fn exempt_all(&mut self, changed: Option<NodeId>) {
        for (&lease, &(node, _)) in &self.granted {
            if changed.is_none_or(|changed| changed == node) {
                self.exempt.insert(lease);
            }
        }
    }
}

impl World {
    pub(super) fn host_hears(&mut self, client: usize, message: ToHost) {
        let now = self.now();
        self.host.known.insert(client);
        match message {
            ToHost::Lease(request) => {
                if matches!(request, LeaseRequest::Reclaim { .. }) {
                    self.see("reclaim");
                }
                self.host.grantor.handle_request(session(client), request, now).unwrap();
            }
            ToHost::Entry(entry) => {
                let applied = self.host.applied.entry(client).or_default();
                if let Some(&value) = applied.get(&entry.seq) {
                    let version = value.map(version);
                    self.send_to_client(client, ToClient::Applied { seq: entry.seq, version });
                } else {
                    self.host.pending.entry(client).or_default().insert(entry.seq, entry);
                }
            }
            ToHost::Read { node, began, under, want } => {
                self.want(client, What::Read { node, began, under, want });
            }
        }
    }

    fn want(&mut self, client: usize, what: What) {
        let now = self.now();
        let ticket = self.host.next_ticket;
        self.host.next_ticket += 1;
        let uses = what.uses();
        let connection = self.clients[client].connection;
        let op =
            Op { client, connection, what, since: self.time, gone: false, value: 0, answer: None };
        self.host.ops.insert(ticket, op);
        self.host.grantor.wants(User::Session(session(client)), &uses, ticket, now);
    }

    /// Begins the next entry of each session that may go on.
    fn pump(&mut self) {
        for client in 0..self.clients.len() {
            let Some(entry) = self.host.pending.get(&client).and_then(|p| p.values().next()) else {
                continue;
            };
            let before = self.host.applied.get(&client).map_or(0, BTreeMap::len) as u64;
            let reclaiming =
                entry.lease.is_some() && self.host.grantor.is_reclaiming(session(client));
            if self.host.busy.contains(&client)
                || entry.seq.0 != before + 1
                || reclaiming
                || !self.host.redone.contains(&client)
            {
                continue;
            }
            let entry = entry.clone();
            self.host.busy.insert(client);
            self.want(client, What::Entry(entry));
        }
    }

    pub(super) fn host_output(&mut self, output: Output<u64>) {
        match output {
            Output::Send { session: to, notice } => {
                let client = (0..self.clients.len()).find(|&c| session(c) == to).unwrap();
                match &notice {
                    Notice::Granted { lease, .. } => self.note_grant(client, lease),
                    Notice::Recall { .. } => self.see("recall"),
                    Notice::Changed { .. } => self.see("changed"),
                    Notice::Void { .. } => self.see("void"),
                    Notice::Reclaimed { held: true, .. } => self.see("reclaimed"),
                    Notice::Reclaimed { held: false, .. } => self.see("not reclaimed"),
                    _ => {}
                }
                if self.clients[client].alive {
                    self.send_to_client(client, ToClient::Notice(notice));
                }
            }
            Output::Go(ticket) => {
                let op = self.host.ops.get_mut(&ticket).unwrap();
                assert!(!op.gone, "let go twice");
                op.gone = true;
                if let What::Entry(entry) = &op.what {
                    let user = User::Session(session(op.client));
                    self.host.begun.entry(entry.node).or_default().push(user);
                }
                let delay = self.dice.millis(100);
                self.after(delay, super::world::Event::Host(Event::Perform { ticket }));
            }
            Output::Compare { session: of, claim } => {
                let client = (0..self.clients.len()).find(|&c| session(c) == of).unwrap();
                let delay = self.dice.millis(200);
                let run = self.host.run;
                let event = Event::Compare { client, claim, run };
                self.after(delay, super::world::Event::Host(event));
            }
            Output::Watch { node } => {
                let look = self.host.last_look.max(self.time) + self.dice.millis(10);
                let report = look + self.dice.millis(50);
                self.host.last_look = report;
                let event = Event::Look { node, run: self.host.run, report };
                self.after(look - self.time, super::world::Event::Host(event));
            }
            Output::Unwatch { .. } => {}
        }
    }

    fn note_grant(&mut self, client: usize, lease: &Lease) {
        let foreign = self.host.foreign_begun(client, lease.node);
        let key = (client, lease.id);
        if self.host.given.insert(key) {
            // a number that the holder has never seen may be used again by another run
            self.host.granted.insert(key, (lease.node, foreign));
            self.host.exempt.remove(&key);
        }
        assert!(
            !self.host.exempt.contains(&key),
            "{lease:?} of client {client} is given again after it was ended"
        );
    }

    pub(super) fn host_event(&mut self, event: Event) {
        let now = self.now();
        let up = self.host.up;
        match event {
            Event::Up => self.start_host(),
            Event::Redone { client, run } if up && run == self.host.run => {
                self.host.redone.insert(client);
                self.host.grantor.handle_redone(session(client), now);
            }
            Event::Perform { ticket } => self.perform(ticket),
            Event::Finish { ticket } => self.finish(ticket),
            Event::Look { node, run, report } if up && run == self.host.run => {
                let value = (!self.dice.one_in(20)).then(|| self.host.value(node));
                let event = Event::Watched { node, run, value };
                self.after(report - self.time, super::world::Event::Host(event));
            }
            Event::Watched { node, run, value } if up && run == self.host.run => {
                self.host.grantor.handle_watched(node, value.map(version), now);
            }
            Event::Compare { client, claim, run } if up && run == self.host.run => {
                let user = User::Session(session(client));
                let same = self.host.foreign(user, claim.lease.node, claim.version.size) == 0;
                let lease = claim.lease.id;
                let delay = self.dice.millis(100);
                let event = Event::Compared { client, lease, same, run };
                self.after(delay, super::world::Event::Host(event));
            }
            Event::Compared { client, lease, same, run } if up && run == self.host.run => {
                self.host.grantor.handle_compared(session(client), lease, same, now);
                if self.host.grantor.has_given(session(client), lease) {
                    // nothing had changed
                    self.host.given.insert((client, lease));
                    self.host.exempt.remove(&(client, lease));
                }
            }
            _ => {}
        }
    }

    fn perform(&mut self, ticket: u64) {
        let Some(op) = self.host.ops.get(&ticket) else {
            return;
        };
        let client = op.client;
        let id = op.what.uses()[0].0;
        if let What::Entry(entry) = &op.what {
            let entry = entry.clone();
            let user = User::Session(session(client));
            let standing = entry
                .lease
                .map(|lease| self.host.grantor.standing(session(client), lease, entry.node));
            let foreign = self.host.foreign(user, entry.node, 0);
            match (standing, entry.lease) {
                (Some(Standing::Good), _) => {
                    assert_eq!(foreign, entry.foreign, "{entry:?} of {client} was overtaken");
                }
                (Some(Standing::Overtaken), Some(lease)) => {
                    self.see("overtaken");
                    let begun = self.host.foreign_begun(client, entry.node);
                    let granted = self.host.granted[&(client, lease)].1;
                    assert!(
                        self.host.excused || begun > granted,
                        "{entry:?} of client {client} failed for nothing"
                    );
                }
                _ => {}
            }
            if standing != Some(Standing::Overtaken) {
                self.host.changes.entry(entry.node).or_default().push(user);
            }
            let good = standing != Some(Standing::Overtaken);
            let value = good.then(|| self.host.value(id));
            self.host.ops.get_mut(&ticket).unwrap().answer = value;
            let applied = self.host.applied.entry(client).or_default();
            assert!(applied.insert(entry.seq, value).is_none(), "applied twice");
        }
        let value = self.host.value(id);
        self.host.ops.get_mut(&ticket).unwrap().value = value;
        let delay = self.dice.millis(100);
        self.after(delay, super::world::Event::Host(Event::Finish { ticket }));
    }

    fn finish(&mut self, ticket: u64) {
        let now = self.now();
        let Some(op) = self.host.ops.remove(&ticket) else {
            return;
        };
        let Op { client, connection, value, answer, .. } = op;
        let uses = op.what.uses();
        match op.what {
            What::Read { node, began, under, want } => {
                let lease = if self.dice.one_in(3) {
                    None
                } else {
                    self.host.grantor.offer(session(client), node, want, now)
                };
                if let Some(lease) = &lease {
                    self.note_grant(client, lease);
                    self.see("offered");
                }
                if self.clients[client].alive && self.clients[client].connection == connection {
                    let message = ToClient::Data { node, value, lease, began, under };
                    self.send_to_client(client, message);
                }
            }
            What::Entry(entry) => {
                self.host.busy.remove(&client);
                self.host.pending.entry(client).or_default().remove(&entry.seq);
                if self.clients[client].alive {
                    let version = answer.map(version);
                    self.send_to_client(client, ToClient::Applied { seq: entry.seq, version });
                }
            }
        }
        self.host.grantor.finished(User::Session(session(client)), &uses, now);
    }

    pub(super) fn mishap(&mut self) {
        let delay = self.dice.millis(6000);
        self.after(delay, super::world::Event::Mishap);
        let client = usize::try_from(self.dice.below(self.clients.len() as u64)).unwrap();
        match self.dice.below(8) {
            0..=2 if self.chaos.losses => self.disconnect(client),
            3 if self.chaos.freezes && !self.clients[client].frozen => {
                self.clients[client].frozen = true;
                let long = if self.dice.one_in(2) { 80_000 } else { 5000 };
                let (delay, woken) = (self.dice.millis(long), !self.dice.one_in(4));
                self.after(delay, super::world::Event::Thaw { client, woken });
                if self.dice.one_in(2) {
                    self.disconnect(client);
                }
            }
            4 if self.chaos.restarts && self.host.up && self.dice.one_in(4) => self.stop_host(),
            5 | 6 if self.chaos.processes => self.process(),
            _ => {}
        }
    }

    fn process(&mut self) {
        let now = self.now();
        if self.dice.one_in(10) && self.host.up {
            self.see("overflow");
            self.host.excused = true;
            self.host.exempt_all(None);
            self.host.grantor.handle_overflow(now);
            return;
        }
        let node = node(self.dice.below(super::world::NODES));
        self.host.changes.entry(node).or_default().push(User::Process);
        self.host.begun.entry(node).or_default().push(User::Process);
        self.host.exempt_all(Some(node));
        if self.host.up {
            self.host.grantor.handle_changed(node, now);
        }
    }

    fn stop_host(&mut self) {
        self.see("restart");
        self.host.excused = true;
        self.host.up = false;
        for client in 0..self.clients.len() {
            self.disconnect(client);
        }
        self.host.ops.clear();
        self.host.busy.clear();
        self.host.redone.clear();
        self.host.pending.clear();
        let delay = if self.dice.one_in(4) { 60_000 } else { 3000 };
        let delay = self.dice.millis(delay);
        self.after(delay, super::world::Event::Host(Event::Up));
    }

    fn start_host(&mut self) {
        self.host.up = true;
        self.host.run += 1;
        let expected: Vec<_> = self.host.known.iter().map(|&client| session(client)).collect();
        self.host.grantor = Grantor::new(HostRun(self.host.run), expected, self.now());
        self.host.grace_over = None;
        self.host.given.clear();
    }

    /// What holds at every moment.
    pub(super) fn check(&mut self) {
        if self.host.up {
            self.pump();
            self.drain();
            if !self.host.grantor.is_in_grace() && self.host.grace_over.is_none() {
                self.host.grace_over = Some(self.time);
            }
            self.check_waiting();
        }
        for number in 0..super::world::NODES {
            self.check_beliefs(node(number));
        }
    }

    fn check_waiting(&self) {
        let Some(grace_over) = self.host.grace_over else {
            return;
        };
        for op in self.host.ops.values().filter(|op| !op.gone) {
            let waits = self.time - op.since.max(grace_over);
            assert!(
                waits <= LEASE_TERM + LEASE_RECALL + Duration::from_secs(1),
                "waits for {waits:?}: {op:?}"
            );
        }
    }

    fn check_beliefs(&self, node: NodeId) {
        let mut believers = 0;
        let mut writers = 0;
        for (client, known) in self.clients.iter().enumerate() {
            let local = self.local(client);
            let Some(lease) = known.holder.may_read(node, local) else {
                continue;
            };
            believers += 1;
            writers += usize::from(known.holder.may_flush(node, local).is_some());
            if self.host.exempt.contains(&(client, lease)) {
                continue;
            }
            if self.host.up && !self.host.grantor.is_in_grace() {
                assert!(
                    self.host.grantor.has_given(session(client), lease),
                    "client {client} believes in {lease:?} of {node:?}, which the host has ended"
                );
            }
            let busy = known.entries.values().any(|entry| entry.node == node);
            if let Some(&(under, value)) = known.cache.get(&node)
                && under == lease
                && !busy
            {
                assert_eq!(value, self.host.value(node), "client {client} reads old data");
            }
        }
        assert!(writers == 0 || believers == 1, "{believers} believe in {node:?}");
    }
}

impl What {
    fn uses(&self) -> Vec<(NodeId, Use)> {
        match self {
            Self::Read { node, .. } => vec![(*node, Use::Read)],
            Self::Entry(entry) => vec![(entry.node, Use::Change)],
        }
    }
}
