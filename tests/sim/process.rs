//! Processes on the host that change things behind everybody's back, machines that sleep, and
//! events that are lost.

use std::collections::BTreeMap;

use p2pfs::id::{NodeId, Seq};
use p2pfs::proto::lease::grantor::Use;
use p2pfs::proto::lease::uses::uses;
use p2pfs::wire::log::{Mutation, Occupant, Outcome, RenameMode};
use p2pfs::wire::name::Name;

use super::apps::is_own;
use super::model::Who;
use super::posix::{Kind, WORD, id};
use super::world::{Event, LAPSE, World};

/// Marks of processes on the disk go by this client.
const PROCESS: usize = usize::MAX;
/// Within this everybody hears what a process has changed: two ways of the network, and the queue
/// of events, microseconds.
const HEARD: u64 = 2_000_000;

/// What processes have done.
#[derive(Debug, Default)]
pub(crate) struct Processes {
    next: u64,
    changes: BTreeMap<u64, Mutation>,
    /// What was not on the disk yet, of what they changed: a crash makes it come again.
    risky: Vec<Mutation>,
    /// When a node was last changed by one, by the model's numbers.
    touched: BTreeMap<NodeId, u64>,
    /// And when the host's process heard of it.
    heard: BTreeMap<NodeId, u64>,
}

impl World {
    /// A process changes something, somewhere in the tree.
    pub(crate) fn process_acts(&mut self) {
        let Some((mutation, body)) = self.pick_process() else { return };
        self.processes.next += 1;
        let number = self.processes.next;
        let seen = self.host.disk.borrow().seen(&mutation);
        let changed: Vec<NodeId> = uses(&mutation, &seen)
            .into_iter()
            .filter(|&(_, usage)| usage == Use::Change)
            .map(|(node, _)| node)
            .collect();
        let kind = if matches!(mutation, Mutation::Mkdir { .. }) { Kind::Dir } else { Kind::File };
        let makes = matches!(mutation, Mutation::Create { .. } | Mutation::Mkdir { .. });
        let who = Some((PROCESS, number));
        let mut disk = self.host.disk.borrow_mut();
        let made = if makes { disk.make(kind).ok() } else { None };
        let opens = self.host.process.as_ref().map(|process| &process.opens);
        let keep = |node: NodeId| {
            let open = opens.is_none_or(|opens| opens.borrow().is_open(node));
            if let (true, Some(opens)) = (open, opens) {
                opens.borrow_mut().handle_held(node);
            }
            open
        };
        let done = disk.mutate(who, &mutation, &body, made, keep);
        drop(disk);
        self.note(|| format!("process {number}: {mutation:?} -> {done:?}"));
        if done.is_err() {
            return;
        }
        self.count_process(number, &mutation, &body, made, &changed);
        self.tell_host(changed);
    }

    fn count_process(
        &mut self,
        number: u64,
        mutation: &Mutation,
        body: &[u64],
        made: Option<NodeId>,
        changed: &[NodeId],
    ) {
        for &node in changed {
            let own = self.model.own(node);
            // what is on its way there: rules of conflicts decide
            let unstable = self.unstable_of(own);
            self.processes.risky.extend(unstable);
            for pending in self.pending_of_others(PROCESS, own) {
                self.model.contest(&pending);
                self.model.contested.insert(own);
            }
            self.processes.touched.insert(own, self.now);
        }
        if self.model.count(Who::Process(number), mutation, body, made).is_err() {
            self.model.contest(mutation);
            self.model.contested.extend(made);
        }
        self.processes.changes.insert(number, mutation.clone());
    }

    /// What clients have changed of a node, and is not on the disk as far as they know.
    fn unstable_of(&self, own: NodeId) -> Vec<Mutation> {
        let mut unstable = Vec::new();
        for side in &self.clients {
            let stable = side.log.stable().0 + 1;
            let told = side.told.range(stable..).map(|(_, mutation)| mutation);
            let accepted = side.accepted.range(stable..).map(|(_, change)| &change.mutation);
            let waiting = side.waiting.range(stable..).map(|(_, change)| &change.mutation);
            let concerns = |mutation: &&Mutation| self.model.concerns(mutation, own);
            unstable.extend(told.chain(accepted).chain(waiting).filter(concerns).cloned());
        }
        unstable
    }

    /// The host's process hears of it at once, or later, or only that it has missed something.
    fn tell_host(&mut self, nodes: Vec<NodeId>) {
        let run = self.host.run;
        match self.dice.below(10) {
            0..6 => self.noticed(&nodes, false),
            roll => {
                let delay = self.dice.delay(HEARD / 4);
                self.schedule(delay, Event::Noticed { run, nodes, lost: roll > 8 });
            }
        }
    }

    pub(crate) fn noticed(&mut self, nodes: &[NodeId], lost: bool) {
        if !self.config.leases {
            return;
        }
        let now = self.host_now();
        let Some(process) = &mut self.host.process else { return };
        if lost {
            process.grantor.handle_overflow(now);
        }
        for &node in nodes {
            if !lost {
                process.grantor.handle_changed(node, now);
            }
            let own = self.model.own(node);
            self.processes.heard.insert(own, self.now);
            for session in process.sessions.values_mut() {
                session.applier.handle_foreign_change(node, now);
            }
        }
        self.coverage("grantor", "any", if lost { "overflow" } else { "process" });
        self.pump_host();
    }

    fn pick_process(&mut self) -> Option<(Mutation, Vec<u64>)> {
        let disk = self.host.disk.borrow();
        let conflicts = disk.now.conflicts();
        let mut dirs = vec![NodeId::ROOT];
        let mut names: Vec<(NodeId, Name, NodeId)> = Vec::new();
        let mut at = 0;
        while let Some(&dir) = dirs.get(at) {
            at += 1;
            for (name, &node) in disk.now.nodes[&dir].names.iter().filter(|(name, _)| is_own(name))
            {
                if Some(node) == conflicts {
                    continue;
                }
                names.push((dir, name.clone(), node));
                if disk.now.nodes[&node].kind == Kind::Dir {
                    dirs.push(node);
                }
            }
        }
        let is_file = |node: &NodeId| disk.now.nodes[node].kind == Kind::File;
        let files: Vec<NodeId> =
            names.iter().map(|(_, _, node)| *node).filter(|node| is_file(node)).collect();
        drop(disk);
        let dir = *self.dice.pick(&dirs)?;
        let name = self.pick_name();
        let some = self.dice.pick(&names).cloned();
        let (parent, occupant) = (dir.into(), Occupant::Any);
        let mutation = match self.dice.below(12) {
            0..4 => {
                let file = *self.dice.pick(&files)?;
                let offset = self.dice.below(4) * WORD;
                let body = self.unique(1);
                let node = file.into();
                return Some((Mutation::Write { node, handle: None, offset }, body));
            }
            4..6 => Mutation::Create {
                parent,
                name,
                mode: 0o640,
                exclusive: true,
                premade: None,
                open: None,
            },
            6 => Mutation::Mkdir { parent, name, mode: 0o750, premade: None },
            7..9 => {
                let (parent, name, node) = some?;
                let parent = parent.into();
                if files.contains(&node) {
                    Mutation::Unlink { parent, name, occupant }
                } else {
                    Mutation::Rmdir { parent, name, occupant }
                }
            }
            _ => {
                let (from, old, _) = some?;
                Mutation::Rename {
                    parent: from.into(),
                    name: old,
                    occupant,
                    new_parent: parent,
                    new_name: name,
                    new_occupant: Occupant::Any,
                    mode: RenameMode::Replace,
                }
            }
        };
        Some((mutation, Vec::new()))
    }

    /// A crash, or a disk that fails, has lost something: also what processes have done.
    pub(crate) fn drop_processes(&mut self) {
        for risky in std::mem::take(&mut self.processes.risky) {
            self.model.contest(&risky);
        }
        let disk = self.host.disk.borrow();
        let unsure = |number: &u64| !disk.before.marks.contains(&(PROCESS, *number));
        let unsure: Vec<u64> = self.processes.changes.keys().copied().filter(unsure).collect();
        let lost = |number: &u64| !disk.now.marks.contains(&(PROCESS, *number));
        let lost: Vec<u64> = unsure.iter().copied().filter(lost).collect();
        drop(disk);
        for number in unsure {
            let mutation = self.processes.changes[&number].clone();
            self.model.contest(&mutation);
        }
        for number in lost {
            self.model.withdraw(Who::Process(number));
            self.processes.changes.remove(&number);
        }
    }

    /// Whether a process has changed what an entry is about, and the client may not know.
    pub(crate) fn is_unaware(&self, client: usize, mutation: &Mutation) -> bool {
        let concerned = self.model.concerned(mutation);
        concerned.into_iter().any(|own| self.is_unaware_of(client, own))
    }

    pub(crate) fn is_unaware_of(&self, _client: usize, own: NodeId) -> bool {
        let Some(&touched) = self.processes.touched.get(&own) else { return false };
        let troubled = self.trouble.is_some_and(|trouble| trouble + LAPSE > touched);
        let long = if troubled { LAPSE } else { HEARD };
        self.now < touched + long
    }

    /// Rules 1 and 14: what was accepted counts on who is there, and nobody else is moved, replaced
    /// or removed; and on nobody having changed the file, as far as the host knows.
    pub(crate) fn check_expected(&self, client: usize, seq: Seq, outcome: &Outcome) {
        let Some(change) = self.clients[client].accepted.get(&seq.0) else { return };
        let own = |occupant: &Occupant| match occupant {
            Occupant::Node(node) => Some(self.model.own(id(node))),
            Occupant::Nobody | Occupant::Any => None,
        };
        let (met, expected) = match (&change.mutation, outcome) {
            (
                Mutation::Unlink { occupant, .. } | Mutation::Rmdir { occupant, .. },
                Outcome::Removed { node, .. },
            ) => (vec![*node], vec![own(occupant)]),
            (
                Mutation::Rename { occupant, new_occupant, .. },
                Outcome::Renamed { node, replaced },
            ) => {
                let met = [*node].into_iter().chain(*replaced).collect();
                (met, vec![own(occupant), own(new_occupant)])
            }
            _ => return,
        };
        for (node, expected) in met.into_iter().zip(expected) {
            assert_eq!(
                Some(self.model.own(node)),
                expected,
                "client {client}: {seq} hit somebody else: {:?}",
                change.mutation
            );
        }
    }

    /// Rule 14, changed and changed: what a process has changed, and the host knows it, is not
    /// written over by what was accepted before.
    pub(crate) fn check_overtaken(&self, client: usize, seq: Seq) {
        let Some(change) = self.clients[client].accepted.get(&seq.0) else { return };
        let Mutation::Write { node, .. } = &change.mutation else { return };
        let own = self.model.own(id(node));
        let (touched, heard) = (&self.processes.touched, &self.processes.heard);
        let heard = heard.get(&own).is_some_and(|heard| touched.get(&own) <= Some(heard));
        let overtaken = touched.get(&own).is_some_and(|&touched| touched > change.at);
        assert!(
            !(heard && overtaken),
            "client {client}: {seq} was accepted before a process changed {node:?}, and done after"
        );
    }

    /// A client's machine sleeps; connections do not.
    pub(crate) fn suspend(&mut self, client: usize, long: u64) {
        let side = &mut self.clients[client];
        if side.asleep > self.now {
            return;
        }
        let now = side.clock.at(self.now);
        side.asleep = self.now + long;
        side.clock.sleep(long);
        if self.config.leases && self.dice.percent(50) {
            // it is told before it sleeps
            self.clients[client].holder.handle_suspend(now);
        }
        if let (Some(connection), true) = (self.clients[client].connection, self.dice.percent(50)) {
            self.cut(connection);
        }
        self.schedule(long, Event::Wakes { client });
    }

    pub(crate) fn wakes(&mut self, client: usize) {
        self.note(|| format!("client {client} wakes"));
        self.trouble = Some(self.now);
        let side = &mut self.clients[client];
        let now = side.clock.at(self.now);
        if self.config.leases {
            side.holder.handle_suspend(now);
        }
        self.pump_client(client);
    }

    /// When the machine wakes on which an event was to happen; `None`: it does not sleep.
    pub(crate) fn sleeper(&self, event: &Event) -> Option<u64> {
        let client = match event {
            Event::App { client, .. }
            | Event::ClientNotices { client, .. }
            | Event::Connect { client }
            | Event::GiveUp { client, .. } => *client,
            Event::Frame { connection, lane } if lane.is_down() => {
                self.connections.get(connection)?.client
            }
            _ => return None,
        };
        Some(self.clients[client].asleep).filter(|&wakes| wakes >= self.now && wakes > 0)
    }
}
