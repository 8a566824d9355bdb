//! What is claimed, and where it is looked at.

use p2pfs::id::{NodeId, Seq};
use p2pfs::limits;
use p2pfs::wire::errno::Errno;
use p2pfs::wire::log::{Change, Mutation, Outcome, Reason, Refused};

use super::model::Who;
use super::net::Reply;
use super::posix::{Body, Node, WORD};
use super::world::{Excuses, LAPSE, World};

impl World {
    /// A host has changed its disk for an entry.
    pub(crate) fn count_effect(
        &mut self,
        client: usize,
        seq: Seq,
        mutation: &Mutation,
        body: &[u64],
        outcome: Outcome,
    ) {
        let who = Who::Client(client, seq.0);
        let side = &self.clients[client];
        assert!(
            !side.told_failed.contains(&seq.0),
            "client {client} was told that {seq} failed, and it happened later: {mutation:?}"
        );
        assert!(
            !side.asides.contains_key(&seq.0),
            "client {client}: {seq} was set aside, and it happened later: {mutation:?}"
        );
        let made = match outcome {
            Outcome::Entry(entry) => Some(entry.node),
            _ => None,
        };
        self.executed.insert((client, seq.0));
        self.check_expected(client, seq, &outcome);
        self.contest_for(client, mutation);
        let side = &self.clients[client];
        if side.accepted.contains_key(&seq.0)
            || side.told.contains_key(&seq.0)
            || self.model.has(who)
        {
            if let (Some(node), false) = (made, matches!(mutation, Mutation::Link { .. })) {
                self.model.named(who, node);
            }
            return;
        }
        let end = self.model_size(mutation);
        match self.model.count(who, mutation, body, made) {
            Ok(node) => self.check_outcome(client, seq, mutation, outcome, node, end),
            Err(errno) => {
                self.stale(client, mutation, &format!("{seq} was done, but it is {errno:?}"));
                // it was made at a name in dispute: nobody else has heard of it
                self.model.contested.extend(made.filter(|&made| self.model.node(made).is_none()));
            }
        }
    }

    /// Others have been told that changes are done which the host does not have yet: while it could
    /// not reach them, it may have let somebody else go on.
    fn contest_pending(&mut self, client: usize, own: NodeId) {
        if self.trouble.is_none_or(|trouble| self.now > trouble + LAPSE) {
            return;
        }
        for mutation in self.pending_of_others(client, own) {
            self.model.contest(&mutation);
        }
    }

    pub(crate) fn pending_of_others(&self, client: usize, own: NodeId) -> Vec<Mutation> {
        let mut pending = Vec::new();
        for (other, side) in self.clients.iter().enumerate().filter(|(other, _)| *other != client) {
            let told = side.told.iter().map(|(seq, mutation)| (*seq, mutation));
            let accepted = side.accepted.iter().map(|(seq, change)| (*seq, &change.mutation));
            let waiting = side.waiting.iter().map(|(seq, change)| (*seq, &change.mutation));
            for (seq, mutation) in accepted.chain(told).chain(waiting) {
                let done = seq <= side.log.stable().0 || self.executed.contains(&(other, seq));
                if !done && self.model.concerns(mutation, own) {
                    pending.push(mutation.clone());
                }
            }
        }
        pending
    }

    fn contest_for(&mut self, client: usize, mutation: &Mutation) {
        for own in self.model.concerned(mutation) {
            self.contest_pending(client, own);
        }
    }

    fn model_size(&self, mutation: &Mutation) -> u64 {
        let nodes = super::model::nodes(mutation);
        let node = nodes.last().and_then(|&node| self.model.node(node));
        node.map_or(0, |node| node.data.len() as u64 * WORD)
    }

    /// The host has answered: is it what ought to come of it?
    fn check_outcome(
        &mut self,
        client: usize,
        seq: Seq,
        mutation: &Mutation,
        outcome: Outcome,
        node: NodeId,
        end: u64,
    ) {
        let said = match outcome {
            Outcome::Entry(entry) => Some(entry.node),
            Outcome::Removed { node, .. } | Outcome::Renamed { node, .. } => Some(node),
            _ => None,
        };
        if said.is_some_and(|said| self.model.own(said) != node) {
            self.stale(client, mutation, &format!("{seq} hit another node: {outcome:?}"));
        }
        if let Outcome::Appended { offset, .. } = outcome
            && offset != end
        {
            self.stale(client, mutation, &format!("{seq} appended at {offset}, not {end}"));
        }
    }

    /// What came of an entry's execution.
    pub(crate) fn check_result(
        &mut self,
        client: usize,
        seq: Seq,
        change: &Change,
        body: &Body,
        result: &Result<Outcome, Refused>,
    ) {
        let who = Who::Client(client, seq.0);

        self.executed.insert((client, seq.0));
        let Err(refused) = result else { return };
        // what is refused with others comes without its names
        let asked = self.clients[client].waiting.get(&seq.0).map(|asked| asked.mutation.clone());
        let mutation = asked.unwrap_or_else(|| change.mutation.clone());
        self.contest_for(client, &mutation);
        let side = &self.clients[client];
        if side.accepted.contains_key(&seq.0) {
            return self.contest_after(client, seq);
        }
        if side.told_failed.contains(&seq.0) {
            return;
        }
        if let Some(promised) = side.told.get(&seq.0).cloned() {
            // promised, lost in a crash, and not to be had again; what is refused with others comes
            // without its names
            self.broken(client, seq, &promised, *refused);
            return;
        }
        if self.model.has(who) {
            if !self.has_effect(client, seq) {
                if super::model::names(&mutation).is_empty() {
                    // of data, any part may have been kept by a crash
                    self.model.contest(&mutation);
                }
                self.model.withdraw(who);
            } else if refused.reason != Reason::Unknown {
                let text = format!("{seq} was done, and then refused ({refused:?})");
                self.stale(client, &mutation, &text);
            }
            return;
        }
        let excused = matches!(refused.errno, Errno::ENOSPC | Errno::EIO)
            || refused.reason == Reason::Unknown;
        let predicted = self.model.predict(&change.mutation, body);
        if !excused && predicted != Err(refused.errno) {
            let text = format!("{seq} was refused ({refused:?}), but it is {predicted:?}");
            self.stale(client, &change.mutation, &text);
        }
    }

    /// An accepted entry has failed: it and what comes after it will be set aside.
    fn contest_after(&mut self, client: usize, seq: Seq) {
        let later = self.clients[client].accepted.range(seq.0..);
        let mutations: Vec<Mutation> = later.map(|(_, later)| later.mutation.clone()).collect();
        for mutation in mutations {
            self.model.contest(&mutation);
        }
    }

    pub(crate) fn has_effect(&self, client: usize, seq: Seq) -> bool {
        self.host.disk.borrow().now.marks.contains(&(client, seq.0))
    }

    /// Something has happened after which a promise may be broken.
    fn excused(&self) -> bool {
        let Excuses { full, struck, passed } = self.excuses;
        let shared = !self.config.is_alone();
        // of those who share, nobody overtakes another one whose lease stands
        let overtaken = self.trouble.is_some() || self.config.processes > 0;
        full || struck || passed || shared && overtaken
    }

    /// What was told done cannot be done again.
    fn broken(&mut self, client: usize, seq: Seq, mutation: &Mutation, refused: Refused) {
        let excused = self.excused();
        assert!(
            excused,
            "client {client} was told that {seq} is done, and now {refused:?}: {mutation:?}"
        );
        self.model.contest(mutation);
        self.model.withdraw(Who::Client(client, seq.0));
    }

    /// An accepted entry is kept aside.
    pub(crate) fn set_aside(&mut self, client: usize, seq: Seq, refused: Refused) {
        let known = self.clients[client].accepted.get(&seq.0).cloned();
        if let Some(change) = known {
            let excused = self.excused();
            let mutation = change.mutation;
            assert!(
                excused,
                "client {client}: {seq} was accepted, and is set aside ({refused:?}): {mutation:?}"
            );
            if self.has_effect(client, seq) {
                self.model.contest(&mutation);
            }
        }
        if let Some(mutation) = self.clients[client].told.get(&seq.0).cloned() {
            self.model.contest(&mutation);
        }
        // what nobody can tell of may have been carried out, and then it is there
        if refused.reason != Reason::Unknown || !self.has_effect(client, seq) {
            self.model.withdraw(Who::Client(client, seq.0));
        }
    }

    /// An application was told an error.
    pub(crate) fn check_told_failed(
        &mut self,
        client: usize,
        seq: Seq,
        errno: Errno,
        mutation: &Mutation,
    ) {
        if errno == Errno::ETIMEDOUT {
            self.excuses.struck = true;
        }
        let who = Who::Client(client, seq.0);
        if !self.model.has(who) {
            return;
        }
        if super::model::names(mutation).is_empty() {
            // of data, any part may have been kept by a crash
            self.model.contest(mutation);
        }
        if !self.has_effect(client, seq) {
            self.model.withdraw(who);
        } else if !super::model::names(mutation).is_empty()
            && !matches!(errno, Errno::ETIMEDOUT | Errno::EIO | Errno::EEXIST)
        {
            self.stale(client, mutation, &format!("{seq} was done, and told {errno:?}"));
        } else if errno == Errno::EIO {
            // nobody can tell whether it was done, and what comes before it was done once more:
            // of a rename both names may be there
            self.model.contest_names(mutation);
        }
    }

    /// What was struck and is lost stays lost.
    pub(crate) fn drop_struck(&mut self) {
        self.drop_processes();
        self.executed.retain(|(client, seq)| *seq <= self.clients[*client].log.stable().0);
        for client in 0..self.clients.len() {
            let struck: Vec<u64> = self.clients[client].told_failed.iter().copied().collect();
            for seq in struck {
                if !self.has_effect(client, Seq(seq)) {
                    self.model.withdraw(Who::Client(client, seq));
                }
            }
        }
    }

    pub(crate) fn check_struck_applied(&mut self, client: usize, seq: Seq) {
        let side = &self.clients[client];
        assert!(side.told_failed.contains(&seq.0), "{seq} was never struck");
    }

    /// Something is not as it ought to be, unless it is in dispute.
    pub(crate) fn stale(&mut self, client: usize, mutation: &Mutation, text: &str) {
        let disputed = super::model::nodes(mutation)
            .iter()
            .any(|&node| self.model.contested.contains(&self.model.own(node)))
            || super::model::names(mutation).iter().any(|(parent, name)| {
                self.model.contested_names.contains(&(self.model.own(*parent), name.clone()))
            });
        let passed = self.excuses.passed || self.is_unaware(client, mutation);
        assert!(disputed || passed, "client {client}: {text}: {mutation:?}");
        self.model.contest(mutation);
    }

    /// What differs between a node and what it ought to be; `None`: nothing that counts.
    fn difference(&self, seen: &Node, own: NodeId) -> Option<String> {
        if self.model.contested.contains(&own) {
            return None;
        }
        let Some(ought) = self.model.tree.nodes.get(&own) else {
            if self.excuses.passed {
                return None;
            }
            return Some(format!("{own:?} ought not to be"));
        };
        if (seen.kind, &seen.data, &seen.xattrs, seen.mode)
            != (ought.kind, &ought.data, &ought.xattrs, ought.mode)
        {
            return Some(format!("{seen:?}\nought to be {ought:?}"));
        }
        if self.excuses.passed {
            return None;
        }
        for name in seen.names.keys().chain(ought.names.keys()) {
            let is = seen.names.get(name).map(|&node| self.model.own(node));
            let ought = ought.names.get(name).copied();
            if is != ought && !self.model.contested_names.contains(&(own, name.clone())) {
                return Some(format!("{name:?} of {own:?} is {is:?}, ought to be {ought:?}"));
            }
        }
        None
    }

    /// The host has read a node for a client.
    pub(crate) fn check_fetched(
        &mut self,
        client: usize,
        node: NodeId,
        reply: &Result<Reply, Errno>,
    ) {
        let Ok(Reply::Node { node: content, .. }) = reply else { return };
        self.contest_pending(client, self.model.own(node));
        if let Some(difference) = self.difference(content, self.model.own(node)) {
            panic!("client {client} reads {node:?} on the host: {difference}");
        }
    }

    /// A client answers from its cache.
    pub(crate) fn check_cached(&mut self, client: usize, node: NodeId) {
        if self.is_unaware_of(client, self.model.own(node)) {
            return;
        }
        let content = &self.clients[client].view.nodes[&node];
        if let Some(difference) = self.difference(content, self.model.own(node)) {
            panic!("client {client} reads {node:?} in its cache: {difference}");
        }
    }

    /// A client says from its cache that something cannot be done.
    pub(crate) fn check_cached_error(
        &mut self,
        client: usize,
        mutation: &Mutation,
        body: &[u64],
        errno: Errno,
    ) {
        let predicted = self.model.predict(mutation, body);
        if predicted != Err(errno) {
            let text = format!("refused from the cache ({errno:?}), but it is {predicted:?}");
            self.stale(client, mutation, &text);
        }
    }

    /// A sync is about what its own client has done: what others have accepted, and the host does
    /// not have yet, need not be on the disk afterwards.
    pub(crate) fn outdate_sync(&mut self, client: usize, request: u64, node: NodeId) {
        let foreign = !self.pending_of_others(client, self.model.own(node)).is_empty();
        if foreign && let Some(call) = self.clients[client].calls.get_mut(&request) {
            call.stale = true;
        }
    }

    /// An application was told that a file is on the disk.
    pub(crate) fn fsynced(&mut self, client: usize, node: NodeId, touched: u64) {
        let own = self.model.own(node);
        if self.model.touched.get(&own).copied().unwrap_or_default() != touched {
            return;
        }
        self.fsynced.insert(own, touched);
        let text = format!("client {client} was told that {node:?} is on the disk");
        self.check_durable(own, &text);
    }

    fn check_durable(&self, own: NodeId, text: &str) {
        if self.model.contested.contains(&own) {
            return;
        }
        let disk = self.host.disk.borrow();
        let found = disk.durable.nodes.iter().find(|&(&node, _)| self.model.own(node) == own);
        let Some(ought) = self.model.tree.nodes.get(&own) else { return };
        let gone = ought.nlink == 0;
        let kept = found.is_some_and(|(_, node)| node.data == ought.data);
        assert!(gone || kept, "{text}: {found:?}, ought to be {ought:?}");
    }

    /// After a crash everything is still there that was said to be on the disk.
    pub(crate) fn check_fsynced(&mut self) {
        for (&own, &touched) in &self.fsynced {
            if self.model.touched.get(&own) == Some(&touched) {
                self.check_durable(own, "lost in a crash after fsync");
            }
        }
    }

    /// Nothing grows without end.
    pub(crate) fn check_bounds(&self, client: usize) {
        let (entries, bytes) = self.clients[client].log.unstable();
        assert!(entries <= limits::LOG_ENTRIES_UNSTABLE_MAX, "{entries} entries are kept");
        assert!(bytes <= limits::LOG_BYTES_UNSTABLE_MAX, "{bytes} bytes are kept");
        if let Some(process) = &self.host.process
            && let Some(session) = process.sessions.get(&client)
        {
            let (waiting, _) = session.applier.waiting();
            assert!(waiting <= limits::LOG_ENTRIES_UNAPPLIED_MAX, "{waiting} entries wait");
        }
    }

    /// Everything has come to rest: the disk is what it ought to be.
    pub(crate) fn check_converged(&self) {
        for (number, side) in self.clients.iter().enumerate() {
            assert!(side.waiting.is_empty(), "client {number} still waits: {:?}", side.waiting);
            assert_eq!(side.log.unstable(), (0, 0), "client {number}'s log is not empty");
            let kept: Vec<u64> = side.log.aside().map(|aside| aside.seq.0).collect();
            let settled = |seq: &&u64| !side.settled.contains(seq);
            let ought: Vec<u64> = side.asides.keys().filter(settled).copied().collect();
            assert_eq!(kept, ought, "client {number} has not kept what was set aside");
        }
        self.check_kept();
        let disk = self.host.disk.borrow();
        let mut left = vec![NodeId::ROOT];
        while let Some(node) = left.pop() {
            let content = &disk.now.nodes[&node];
            let own = self.model.own(node);
            if let Some(difference) = self.difference(content, own) {
                panic!("at last {node:?} is not as it ought to be: {difference}");
            }
            left.extend(content.names.values());
        }
    }
}
