//! A client: its log and its leases, what it caches, and who waits for what.

use std::collections::{BTreeMap, BTreeSet};

use p2pfs::id::{ConnectionId, HandleId, NodeId, RequestId, Seq};
use p2pfs::proto::lease::holder::{self, Holder};
use p2pfs::proto::redo::copies::Copies;
use p2pfs::proto::redo::log::{self, Log};
use p2pfs::wire::errno::Errno;
use p2pfs::wire::lease::{Lease, LeaseKind, LeaseRequest, Notice};
use p2pfs::wire::log::{Cursor, Mutation, Outcome, Refused};

use super::clock::Clock;
use super::model::Who;
use super::net::{Call, Down, Lane, Reply, Up};
use super::posix::{Body, Node, Posix};
use super::world::{Event, GRACE, World};

/// A change that somebody waits for, or that was accepted.
#[derive(Clone, Debug)]
pub(crate) struct Change {
    /// Which application waits.
    pub(crate) app: Option<usize>,
    pub(crate) mutation: Mutation,
    pub(crate) body: Body,
    /// What must not be used before it is answered.
    pub(crate) busy: Vec<NodeId>,
    /// When it was asked for.
    pub(crate) at: u64,
}

#[derive(Clone, Debug)]
pub(crate) struct PendingCall {
    pub(crate) app: usize,
    pub(crate) call: Call,
    /// How often its node was changed when it was made.
    pub(crate) touched: u64,
    /// The lease under which what it brings is cached.
    pub(crate) lease: Option<p2pfs::id::LeaseId>,
    /// Something was changed meanwhile: what it brings may be older.
    pub(crate) stale: bool,
}

#[derive(Debug)]
pub(crate) struct Client {
    pub(crate) clock: Clock,
    pub(crate) log: Log<Body>,
    pub(crate) holder: Holder,
    pub(crate) connection: Option<u64>,
    /// The host has said how far it is.
    pub(crate) connected: bool,
    early: Vec<Down>,
    /// No connection comes up before.
    pub(crate) outage: u64,
    losses: u64,
    next: u64,
    pub(crate) calls: BTreeMap<u64, PendingCall>,
    pub(crate) asked: BTreeMap<RequestId, (usize, NodeId)>,
    /// Awaited, by number.
    pub(crate) waiting: BTreeMap<u64, Change>,
    /// Accepted, by number.
    pub(crate) accepted: BTreeMap<u64, Change>,
    /// What came of awaited entries that did not fail.
    pub(crate) told: BTreeMap<u64, Mutation>,
    /// Their applications were told an error.
    pub(crate) told_failed: BTreeSet<u64>,
    pub(crate) asides: BTreeMap<u64, Refused>,
    /// Of these, what is kept in a copy, or has nothing to keep.
    pub(crate) settled: BTreeSet<u64>,
    pub(crate) copies: Copies<Body>,
    /// Its machine sleeps until then.
    pub(crate) asleep: u64,
    pub(crate) busy: BTreeMap<NodeId, u32>,
    /// What it believes.
    pub(crate) view: Posix,
    /// Of these it knows everything.
    pub(crate) known: BTreeSet<NodeId>,
    pub(crate) handles: BTreeMap<NodeId, HandleId>,
    pub(crate) pool: (Vec<NodeId>, Vec<NodeId>),
    pub(crate) premaking: bool,
    renamed: BTreeMap<NodeId, NodeId>,
    /// Calls that a host has carried out: one that was sent again means nothing the second time.
    pub(crate) carried_out: BTreeSet<u64>,
}

impl Client {
    pub(crate) fn new(clock: Clock) -> Self {
        Self {
            clock,
            log: Log::new(),
            holder: Holder::new(clock.at(0)),
            connection: None,
            connected: false,
            early: Vec::new(),
            outage: 0,
            losses: 0,
            next: 0,
            calls: BTreeMap::new(),
            asked: BTreeMap::new(),
            waiting: BTreeMap::new(),
            accepted: BTreeMap::new(),
            told: BTreeMap::new(),
            told_failed: BTreeSet::new(),
            asides: BTreeMap::new(),
            settled: BTreeSet::new(),
            copies: Copies::new(),
            asleep: 0,
            busy: BTreeMap::new(),
            view: Posix::default(),
            known: BTreeSet::new(),
            handles: BTreeMap::new(),
            pool: (Vec::new(), Vec::new()),
            premaking: false,
            renamed: BTreeMap::new(),
            carried_out: BTreeSet::new(),
        }
    }

    pub(crate) fn new_handle(&mut self) -> HandleId {
        self.next += 1;
        HandleId(self.next)
    }

    pub(crate) fn hold(&mut self, nodes: &[NodeId]) {
        for &node in nodes {
            *self.busy.entry(node).or_default() += 1;
        }
    }

    fn let_go(&mut self, nodes: &[NodeId]) {
        for node in nodes {
            let node = self.current(*node);
            if let Some(count) = self.busy.get_mut(&node) {
                *count -= 1;
            }
            self.busy.retain(|_, count| *count > 0);
        }
    }

    /// What a node is called now.
    pub(crate) fn current(&self, node: NodeId) -> NodeId {
        let mut node = node;
        while let Some(&new) = self.renamed.get(&node) {
            node = new;
        }
        node
    }

    fn remade(&mut self, old: NodeId, new: NodeId) {
        let old = self.current(old);
        if old == new {
            return;
        }
        self.renamed.insert(old, new);
        if let Some(node) = self.view.nodes.remove(&old) {
            self.view.nodes.insert(new, node);
        }
        for node in self.view.nodes.values_mut() {
            for child in node.names.values_mut().filter(|child| **child == old) {
                *child = new;
            }
        }
        if let Some(handle) = self.handles.remove(&old) {
            self.handles.insert(new, handle);
        }
        if let Some(count) = self.busy.remove(&old) {
            self.busy.insert(new, count);
        }
        if self.known.remove(&old) {
            self.known.insert(new);
        }
    }

    /// A mutation with the names that its nodes have now.
    pub(crate) fn renamed(&self, mutation: &Mutation) -> Mutation {
        let mut mutation = mutation.clone();
        super::model::for_each_ref(&mut mutation, |node| {
            *node = self.current(super::posix::id(node)).into();
        });
        mutation
    }

    /// What it believes of these is no longer sure.
    pub(crate) fn doubt(&mut self, nodes: &[NodeId]) {
        for &node in nodes {
            let node = self.current(node);
            self.known.remove(&node);
        }
    }
}

impl World {
    /// Tries to reach the host.
    pub(crate) fn connect(&mut self, client: usize) {
        let now = self.now;
        let side = &mut self.clients[client];
        if side.connection.is_some() {
            return;
        }
        if self.host.process.is_none() || side.outage > now {
            let delay = 50_000 + self.dice.delay(400_000);
            self.schedule(delay, Event::Connect { client });
            return;
        }
        let (held, unanswered) = (side.log.held(), side.log.unanswered());
        let connection = self.new_connection(client);
        self.clients[client].connection = Some(connection);
        self.send_up(client, Lane::Calls, Up::Identify { held, unanswered });
    }

    /// The client notices that its connection is gone.
    pub(crate) fn client_notices(&mut self, client: usize, connection: u64) {
        let side = &mut self.clients[client];
        if side.connection != Some(connection) {
            return;
        }
        let now = side.clock.at(self.now);
        side.connection = None;
        side.early.clear();
        if side.connected {
            side.connected = false;
            side.losses += 1;
            side.log.handle_lost(ConnectionId(connection));
            if self.config.leases {
                side.holder.handle_lost(now);
            }
            let losses = side.losses;
            self.schedule(GRACE, Event::GiveUp { client, losses });
        }
        self.schedule(1_000, Event::Connect { client });
        self.pump_client(client);
    }

    /// Nobody waits for the host any longer.
    pub(crate) fn give_up(&mut self, client: usize, losses: u64) {
        let side = &mut self.clients[client];
        if side.connected || side.losses != losses {
            return;
        }
        side.log.give_up();
        let calls = std::mem::take(&mut side.calls);
        self.note(|| format!("client {client} gives up"));
        for call in calls.into_values() {
            self.called(client, call, Err(Errno::ETIMEDOUT));
        }
        self.pump_client(client);
    }

    /// A frame arrived at the client.
    pub(crate) fn client_receives(&mut self, client: usize, connection: u64, frame: Down) {
        let side = &mut self.clients[client];
        if side.connection != Some(connection) {
            return;
        }
        let now = side.clock.at(self.now);
        match frame {
            Down::Cursor(cursor) => self.connected(client, connection, &cursor),
            frame if !side.connected => side.early.push(frame),
            Down::Ack(ack) => {
                self.count_ack(client, &ack);
                self.note(|| format!("client {client}: {ack:?}"));
                let taken = self.clients[client].log.handle_ack(ack);
                assert!(taken.is_ok(), "an acknowledgement was refused: {taken:?}");
            }
            Down::Reply { request, reply } => {
                if let Some(call) = side.calls.remove(&request) {
                    self.called(client, call, reply);
                }
            }
            Down::Notice(Notice::Premade { files, directories }) => {
                side.premaking = false;
                side.pool.0.extend(files);
                side.pool.1.extend(directories);
            }
            Down::Notice(notice) => {
                self.note(|| format!("client {client}: {notice:?}"));
                self.count_notice(client, &notice);
                let taken = self.clients[client].holder.handle_notice(notice, now);
                assert!(taken.is_ok(), "a notice was refused: {taken:?}");
            }
        }
        self.pump_client(client);
    }

    fn connected(&mut self, client: usize, connection: u64, cursor: &Cursor) {
        let side = &mut self.clients[client];
        let now = side.clock.at(self.now);
        side.connected = true;
        side.premaking = false;
        side.losses += 1;
        let taken = side.log.handle_connected(ConnectionId(connection), cursor);
        assert!(taken.is_ok(), "the cursor {cursor:?} was refused: {taken:?}");
        side.copies.retry(now);
        if self.config.leases {
            side.holder.handle_connected(now);
        }
        let calls: Vec<(u64, Call)> =
            side.calls.iter().map(|(&request, call)| (request, call.call.clone())).collect();
        for (request, call) in calls {
            self.send_up(client, Lane::Calls, Up::Call { request, call });
        }
        for frame in std::mem::take(&mut self.clients[client].early) {
            self.client_receives(client, connection, frame);
        }
    }

    pub(crate) fn call(&mut self, client: usize, app: usize, call: Call) {
        let side = &mut self.clients[client];
        side.next += 1;
        let request = side.next;
        let (Call::Fetch { node, .. } | Call::Sync { node, .. }) = &call else {
            let pending =
                PendingCall { app, call: call.clone(), touched: 0, lease: None, stale: false };
            side.calls.insert(request, pending);
            self.send_up(client, Lane::Calls, Up::Call { request, call });
            return;
        };
        if matches!(call, Call::Fetch { .. }) {
            side.hold(&[*node]);
        }
        let now = side.clock.at(self.now);
        let lease = if self.config.leases { side.holder.may_read(*node, now) } else { None };
        let touched = self.model.touched.get(&self.model.own(*node)).copied().unwrap_or_default();
        let pending = PendingCall { app, call: call.clone(), touched, lease, stale: false };
        side.calls.insert(request, pending);
        self.send_up(client, Lane::Calls, Up::Call { request, call });
    }

    /// A call is answered.
    fn called(&mut self, client: usize, pending: PendingCall, reply: Result<Reply, Errno>) {
        let now = self.clients[client].clock.at(self.now);
        let leases = self.config.leases;
        let side = &mut self.clients[client];
        match (&pending.call, reply) {
            (Call::Fetch { node, handle, .. }, reply) => {
                side.let_go(&[*node]);
                let asked = *node;
                let node = side.current(asked);
                let pending_change = side.busy.contains_key(&node);
                match reply {
                    Ok(Reply::Node { node: content, children }) => {
                        let fresh = !leases
                            || pending.lease.is_some()
                                && side.holder.may_read(node, now) == pending.lease;
                        if let Some(handle) = handle {
                            side.handles.insert(node, *handle);
                        }
                        if fresh && !pending.stale && !pending_change && asked == node {
                            side.learn(node, content, children);
                        }
                    }
                    Ok(Reply::Done) => panic!("a fetch is answered with a node"),
                    Err(_) => side.known.clear(),
                }
            }
            (Call::Sync { node, .. }, Ok(_)) if !pending.stale => {
                let node = *node;
                self.fsynced(client, node, pending.touched);
            }
            _ => {}
        }
        self.wake(client, pending.app);
    }

    /// Carries out what the client's machines ask for.
    pub(crate) fn pump_client(&mut self, client: usize) {
        loop {
            if let Some(output) = self.clients[client].log.poll_output() {
                self.do_for_log(client, output);
            } else if let Some(output) = self.clients[client].copies.poll_output() {
                self.do_for_copies(client, output);
            } else if self.config.leases
                && let Some(output) = self.clients[client].holder.poll_output()
            {
                self.do_for_holder(client, output);
            } else {
                break;
            }
        }
        self.check_bounds(client);
    }

    fn do_for_log(&mut self, client: usize, output: log::Output<Body>) {
        match output {
            log::Output::Ship { connection, entry, body } => {
                if self.clients[client].connection == Some(connection.0) {
                    let lane = Lane::Entries(self.dice.below(2) as u8);
                    self.send_up(client, lane, Up::Entry { entry, body });
                }
            }
            log::Output::Applied { seq, result } => self.applied(client, seq, result),
            log::Output::Aside { seq, refused } => {
                self.note(|| format!("client {client}: {seq} set aside, {refused:?}"));
                let side = &mut self.clients[client];
                side.asides.insert(seq.0, refused);
                let change = side.accepted.get(&seq.0).cloned();
                if let Some(change) = change {
                    let mut nodes = super::model::nodes(&change.mutation);
                    nodes.extend(change.busy);
                    side.doubt(&nodes);
                    side.forget_made(&change.mutation);
                }
                self.set_aside(client, seq, refused);
                self.gather(client, seq);
            }
            log::Output::StruckApplied { seq, outcome } => {
                self.note(|| format!("client {client}: struck {seq} was applied, {outcome:?}"));
                self.check_struck_applied(client, seq);
            }
            log::Output::Remade { seq, old, new } => {
                self.note(|| format!("client {client}: {seq} made {new:?} for {old:?}"));
                self.clients[client].remade(old, new);
                self.model.remade(old, new);
            }
            log::Output::Note { .. } | log::Output::Progress => {}
        }
    }

    /// The host has said what came of an entry, or the client has given up.
    fn applied(&mut self, client: usize, seq: Seq, result: Result<Outcome, Errno>) {
        self.note(|| format!("client {client}: {seq} -> {result:?}"));
        let now = self.clients[client].clock.at(self.now);
        let side = &mut self.clients[client];
        if self.config.leases {
            side.holder.handle_applied(seq, None, now);
        }
        if side.copies.handle_applied(seq, &result, now)
            && let Ok(Outcome::Entry(entry)) = &result
        {
            // what a copy holds is looked at when all is over
            let own = self.model.own(entry.node);
            self.model.contested.insert(own);
        }
        let side = &mut self.clients[client];
        if let Some(change) = side.accepted.get(&seq.0).cloned() {
            side.let_go(&change.busy);
            return;
        }
        let Some(change) = side.waiting.remove(&seq.0) else {
            panic!("client {client}: {seq} is answered twice: {result:?}");
        };
        side.let_go(&change.busy);
        let mutation = side.renamed(&change.mutation);
        match result {
            Ok(outcome) => {
                side.told.insert(seq.0, mutation.clone());
                let mut changed = super::model::nodes(&mutation);
                changed.extend(&change.busy);
                side.outdate(&changed);
                side.believe(&mutation, &change.body, &outcome, !self.config.leases);
            }
            Err(errno) => {
                side.told_failed.insert(seq.0);
                if matches!(errno, Errno::ETIMEDOUT | Errno::EIO | Errno::ESTALE | Errno::EEXIST) {
                    let mut nodes = super::model::nodes(&mutation);
                    nodes.extend(change.busy.iter());
                    side.doubt(&nodes);
                }
                self.check_told_failed(client, seq, errno, &mutation);
            }
        }
        if let Some(app) = change.app {
            self.wake(client, app);
        }
    }

    fn do_for_holder(&mut self, client: usize, output: holder::Output) {
        let now = self.clients[client].clock.at(self.now);
        let side = &mut self.clients[client];
        match output {
            holder::Output::Send(request) => {
                self.send_up(client, Lane::Leases, Up::Lease(request));
            }
            holder::Output::Answered { request, lease } => {
                let Some((app, node)) = side.asked.remove(&request) else { return };
                self.leased(client, app, node, lease);
            }
            holder::Output::Flush { lease, node } => {
                self.flush(client, node);
                self.clients[client].holder.handle_flushed(lease, now);
            }
            holder::Output::Drop { node } | holder::Output::Lost { node, .. } => {
                side.known.remove(&node);
                side.copies.handle_foreign_change(node);
                side.pool.0.retain(|&had| had != node);
                side.pool.1.retain(|&had| had != node);
            }
        }
    }

    /// A lease was granted, or not.
    fn leased(&mut self, client: usize, app: usize, node: NodeId, lease: Option<Lease>) {
        if lease.is_some() && !self.clients[client].known.contains(&node) {
            self.fetch(client, app, node);
        } else {
            self.wake(client, app);
        }
    }

    pub(crate) fn fetch(&mut self, client: usize, app: usize, node: NodeId) {
        let side = &mut self.clients[client];
        let handle = match side.handles.get(&node) {
            _ if node == NodeId::ROOT => None,
            Some(&handle) => Some(handle),
            None => Some(side.new_handle()),
        };
        let upto = side.log.last();
        self.call(client, app, Call::Fetch { node, handle, upto });
    }

    pub(crate) fn acquire(&mut self, client: usize, app: usize, node: NodeId, kind: LeaseKind) {
        let side = &mut self.clients[client];
        let now = side.clock.at(self.now);
        let request = side.holder.acquire(node, kind, now);
        side.asked.insert(request, (app, node));
        self.pump_client(client);
    }

    /// Asks for nodes in advance.
    pub(crate) fn premake(&mut self, client: usize) {
        let side = &mut self.clients[client];
        if !side.premaking && side.connected {
            side.premaking = true;
            let request = LeaseRequest::Premake { files: 3, directories: 1 };
            self.send_up(client, Lane::Leases, Up::Lease(request));
        }
    }

    /// What is accepted counts from now on.
    pub(crate) fn count_accepted(
        &mut self,
        client: usize,
        seq: Seq,
        change: &Change,
        made: Option<NodeId>,
    ) {
        let who = Who::Client(client, seq.0);
        if self.is_unaware(client, &change.mutation) {
            self.model.contest(&change.mutation);
        }
        let counted = self.model.count(who, &change.mutation, &change.body, made);
        self.clients[client].accepted.insert(seq.0, change.clone());
        if let Err(errno) = counted {
            self.stale(client, &change.mutation, &format!("accepted, but it is {errno:?}"));
        }
    }
}

impl Client {
    /// Whether somebody waits for a change of names in the same directory: the kernel lets one
    /// after the other through.
    pub(crate) fn is_locked(&self, mutation: &Mutation) -> bool {
        let parents = |mutation: &Mutation| super::model::names(mutation).into_iter().map(|n| n.0);
        let mine: Vec<NodeId> = parents(mutation).collect();
        self.waiting.values().any(|other| parents(&other.mutation).any(|p| mine.contains(&p)))
    }

    /// Whether somebody waits for a change of a node that was asked for after an entry.
    pub(crate) fn awaits_since(&self, node: NodeId, upto: Seq) -> bool {
        let later = self.waiting.range(upto.0 + 1..);
        later.into_iter().any(|(_, change)| change.busy.contains(&node))
    }

    /// What is under way about these may show them as they were.
    fn outdate(&mut self, nodes: &[NodeId]) {
        for pending in self.calls.values_mut() {
            if let Call::Fetch { node, .. } = &pending.call {
                pending.stale |= nodes.contains(node);
            }
        }
    }

    /// What was to be made is not there.
    fn forget_made(&mut self, mutation: &Mutation) {
        if let Mutation::Create { premade: Some(node), .. }
        | Mutation::Mkdir { premade: Some(node), .. } = mutation
        {
            let node = self.current(*node);
            self.view.nodes.remove(&node);
            self.known.remove(&node);
            self.handles.remove(&node);
            for dir in self.view.nodes.values_mut() {
                dir.names.retain(|_, child| *child != node);
            }
        }
    }

    /// Keeps what a call has brought.
    fn learn(&mut self, node: NodeId, content: Node, children: Vec<(NodeId, Node)>) {
        self.view.nodes.insert(node, content);
        self.known.insert(node);
        for (id, child) in children {
            if !self.known.contains(&id) {
                self.view.nodes.insert(id, child);
            }
        }
    }

    /// Changes what it believes after an answer.
    fn believe(&mut self, mutation: &Mutation, body: &[u64], outcome: &Outcome, alone: bool) {
        let made = match outcome {
            Outcome::Entry(entry) => entry.node,
            _ => NodeId { ino: u64::MAX, generation: 0 },
        };
        let touched = super::model::nodes(mutation);
        if let Mutation::CopyRange { source, node, .. } = mutation
            && !self.known.contains(&super::posix::id(source))
        {
            // nobody has told what was copied
            self.doubt(&[super::posix::id(node)]);
            return;
        }
        let Ok((ops, node)) = self.view.plan(mutation, body, made) else {
            self.doubt(&touched);
            return;
        };
        if let Outcome::Entry(entry) = outcome {
            if node != entry.node {
                self.doubt(&touched);
                return;
            }
            // somebody else may already have asked for it to be moved or removed
            let busy = touched.iter().any(|node| self.busy.contains_key(node));
            if alone && !ops.is_empty() && !busy && !matches!(mutation, Mutation::Link { .. }) {
                self.known.insert(entry.node);
            }
        }
        for op in &ops {
            self.view.apply(op);
        }
        if let (Mutation::Create { open: Some(open), .. }, Outcome::Entry(entry)) =
            (mutation, outcome)
        {
            self.handles.insert(entry.node, open.handle);
        }
    }
}
