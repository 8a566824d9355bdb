//! What applications do: whatever POSIX lets them, on few names, so that they meet.

use p2pfs::id::{LeaseId, NodeId};
use p2pfs::wire::call::{Access, Time, XattrName};
use p2pfs::wire::lease::LeaseKind;
use p2pfs::wire::log::{
    AttrChange, Change as LogChange, Mutation, NodeRef, Occupant, Opening, Promise, RenameMode,
    SetTime,
};
use p2pfs::wire::name::Name;

use super::client::Change;
use super::net::Call;
use super::posix::{COLLAPSE, Kind, WORD};
use super::world::{Event, World};

const NAMES: [&str; 5] = ["a", "b", "c", "d", "e"];

pub(crate) fn name(text: &str) -> Name {
    Name::new(text.as_bytes()).expect("a name")
}

/// Whether a name is not one of ours.
pub(crate) fn is_own(name: &&Name) -> bool {
    !name.as_bytes().starts_with(b".p2pfs")
}

impl World {
    /// An application may go on.
    pub(crate) fn wake(&mut self, client: usize, app: usize) {
        let think = self.dice.delay(self.config.think);
        self.schedule(think, Event::App { client, app });
    }

    /// An application does something.
    pub(crate) fn act(&mut self, client: usize, app: usize) {
        if self.healing || self.ops >= self.config.ops {
            return;
        }
        self.ops += 1;
        match self.dice.below(100) {
            0..13 => self.act_create(client, app),
            13..18 => self.act_mkdir(client, app),
            18..26 => self.act_remove(client, app, false),
            26..29 => self.act_remove(client, app, true),
            29..41 => self.act_rename(client, app),
            41..45 => self.act_link(client, app),
            45..88 => self.act_file(client, app),
            88..96 => self.act_read(client, app),
            _ => {
                self.premake(client);
                self.wake(client, app);
            }
        }
    }

    fn pick_dir(&mut self, client: usize) -> NodeId {
        let view = &self.clients[client].view;
        let dirs: Vec<NodeId> = view
            .nodes
            .iter()
            .filter(|&(&id, node)| {
                node.kind == Kind::Dir && node.nlink > 0 && Some(id) != view.conflicts()
            })
            .map(|(&id, _)| id)
            .collect();
        if self.dice.percent(50) { NodeId::ROOT } else { *self.dice.pick(&dirs).expect("a root") }
    }

    pub(crate) fn pick_name(&mut self) -> Name {
        name(self.dice.pick(&NAMES).expect("there are names"))
    }

    /// A name in a directory that is likely there.
    fn pick_entry(&mut self, client: usize) -> (NodeId, Name) {
        let parent = self.pick_dir(client);
        let names: Vec<Name> =
            self.clients[client].view.nodes[&parent].names.keys().filter(is_own).cloned().collect();
        let some = self.dice.pick(&names).cloned();
        let name = match some {
            Some(name) if self.dice.percent(90) => name,
            _ => self.pick_name(),
        };
        (parent, name)
    }

    fn pick_file(&mut self, client: usize) -> Option<NodeId> {
        let side = &self.clients[client];
        let is_file =
            |id: &NodeId| side.view.nodes.get(id).is_some_and(|node| node.kind == Kind::File);
        let open: Vec<NodeId> = side.handles.keys().copied().filter(is_file).collect();
        self.dice.pick(&open).copied()
    }

    fn act_create(&mut self, client: usize, app: usize) {
        let (parent, name) = (self.pick_dir(client), self.pick_name());
        let handle = self.clients[client].new_handle();
        let mutation = Mutation::Create {
            parent: parent.into(),
            name,
            mode: 0o600 + self.dice.below(8) as u32,
            exclusive: self.dice.percent(70),
            premade: None,
            open: Some(Opening { handle, access: Access::ReadWrite }),
        };
        self.submit(client, app, mutation, Vec::new(), vec![parent], false);
    }

    fn act_mkdir(&mut self, client: usize, app: usize) {
        let (parent, name) = (self.pick_dir(client), self.pick_name());
        let mutation = Mutation::Mkdir { parent: parent.into(), name, mode: 0o700, premade: None };
        self.submit(client, app, mutation, Vec::new(), vec![parent], false);
    }

    fn act_remove(&mut self, client: usize, app: usize, dir: bool) {
        let (parent, name) = self.pick_entry(client);
        let mut nodes = vec![parent];
        nodes.extend(self.clients[client].view.lookup(parent, &name));
        let (parent, occupant) = (parent.into(), Occupant::Any);
        let mutation = if dir {
            Mutation::Rmdir { parent, name, occupant }
        } else {
            Mutation::Unlink { parent, name, occupant }
        };
        self.submit(client, app, mutation, Vec::new(), nodes, false);
    }

    fn act_rename(&mut self, client: usize, app: usize) {
        let (parent, name) = self.pick_entry(client);
        let across = self.dice.percent(30);
        let new_parent = if across { self.pick_dir(client) } else { parent };
        let new_name = self.pick_name();
        let mode = match self.dice.below(10) {
            0..6 => RenameMode::Replace,
            6..8 => RenameMode::NoReplace,
            _ => RenameMode::Exchange,
        };
        let view = &self.clients[client].view;
        let mut nodes = vec![parent, new_parent];
        nodes.extend(view.lookup(parent, &name));
        nodes.extend(view.lookup(new_parent, &new_name));
        let mutation = Mutation::Rename {
            parent: parent.into(),
            name,
            occupant: Occupant::Any,
            new_parent: new_parent.into(),
            new_name,
            new_occupant: Occupant::Any,
            mode,
        };
        self.submit(client, app, mutation, Vec::new(), nodes, false);
    }

    fn act_link(&mut self, client: usize, app: usize) {
        let Some(node) = self.pick_file(client) else { return self.wake(client, app) };
        let (parent, name) = (self.pick_dir(client), self.pick_name());
        let mutation = Mutation::Link { node: node.into(), parent: parent.into(), name };
        self.submit(client, app, mutation, Vec::new(), vec![parent, node], true);
    }

    pub(crate) fn unique(&mut self, words: u64) -> Vec<u64> {
        self.written += 1;
        vec![self.written; words as usize]
    }

    fn act_file(&mut self, client: usize, app: usize) {
        let Some(file) = self.pick_file(client) else { return self.wake(client, app) };
        let node: NodeRef = file.into();
        let handle = self.clients[client].handles.get(&file).copied();
        let size = self.clients[client].view.nodes[&file].data.len() as u64;
        let mut nodes = vec![file];
        let at = self.dice.below(size.min(6) + 1) * WORD;
        let words = self.dice.range(1, 3);
        let mut awaited = false;
        let mut body = Vec::new();
        let mutation = match self.dice.below(40) {
            0..20 => {
                body = self.unique(words);
                Mutation::Write { node, handle, offset: at }
            }
            20..25 => {
                body = self.unique(words);
                awaited = true;
                Mutation::Append { node, handle, size: size * WORD }
            }
            25..29 => {
                let mut change = AttrChange::default();
                if self.dice.percent(60) {
                    change.size = Some(self.dice.below(6) * WORD);
                } else {
                    change.mode = Some(0o600 + self.dice.below(64) as u32);
                    let seconds = self.dice.below(1000) as i64;
                    change.mtime = Some(SetTime::At(Time { seconds, nanos: 0 }));
                }
                Mutation::SetAttr { node, handle, change }
            }
            29..32 => {
                body = self.unique(1);
                let name = XattrName(b"user.x".to_vec());
                Mutation::SetXattr { node, name, flags: self.dice.below(3) as u8 }
            }
            32..34 => Mutation::RemoveXattr { node, name: XattrName(b"user.x".to_vec()) },
            34..36 => {
                let Some(source) = self.pick_file(client) else { return };
                awaited = true;
                nodes.push(source);
                Mutation::CopyRange {
                    source: source.into(),
                    source_handle: self.clients[client].handles.get(&source).copied(),
                    source_offset: 0,
                    node,
                    handle,
                    offset: at,
                    len: words * WORD,
                }
            }
            36..37 => {
                awaited = true;
                Mutation::Fallocate { node, handle, offset: at, len: WORD, mode: COLLAPSE }
            }
            37..38 => return self.release(client, app, file),
            _ => {
                let upto = self.clients[client].log.last_of(file);
                let upto = upto.unwrap_or(p2pfs::id::Seq::ZERO);
                return self.call(client, app, Call::Sync { node: file, upto });
            }
        };
        self.submit(client, app, mutation, body, nodes, awaited);
    }

    fn release(&mut self, client: usize, app: usize, node: NodeId) {
        let side = &mut self.clients[client];
        if side.busy.contains_key(&node) {
            return self.wake(client, app);
        }
        let handle = side.handles.remove(&node).expect("it is open");
        side.known.remove(&node);
        let upto = side.log.last();
        self.call(client, app, Call::Release { handle, upto });
    }

    fn act_read(&mut self, client: usize, app: usize) {
        let node = match self.pick_file(client) {
            Some(file) if self.dice.percent(60) => file,
            _ => self.pick_dir(client),
        };
        let side = &self.clients[client];
        if side.busy.contains_key(&node) {
            return self.wake(client, app);
        }
        let now = side.clock.at(self.now);
        let leased = !self.config.leases || side.holder.may_read(node, now).is_some();
        if leased && side.known.contains(&node) && self.dice.percent(60) {
            self.check_cached(client, node);
            self.wake(client, app);
        } else if self.config.leases && !leased && self.dice.percent(60) {
            self.acquire(client, app, node, LeaseKind::Shared);
        } else {
            self.fetch(client, app, node);
        }
    }

    /// The leases under which changes of all of these may be accepted now; `None`: they may not.
    fn leases_for(&self, client: usize, nodes: &[NodeId]) -> Option<Vec<LeaseId>> {
        if !self.config.leases {
            return Some(Vec::new());
        }
        let side = &self.clients[client];
        let now = side.clock.at(self.now);
        nodes.iter().map(|&node| side.holder.may_write(node, now)).collect()
    }

    /// An application asks for a change.
    pub(crate) fn submit(
        &mut self,
        client: usize,
        app: usize,
        mutation: Mutation,
        body: Vec<u64>,
        nodes: Vec<NodeId>,
        awaited: bool,
    ) {
        let side = &self.clients[client];
        if !side.log.has_room(body.len() * 8) || side.is_locked(&mutation) {
            return self.wake(client, app);
        }
        let busy = nodes.iter().any(|node| side.busy.contains_key(node));
        let unknown = nodes.iter().find(|node| !side.known.contains(node)).copied();
        let leases = self.leases_for(client, &nodes);
        if let Some(leases) = &leases
            && !awaited
            && !busy
            && unknown.is_none()
            && self.dice.percent(80)
            && self.accept(client, &mutation, &body, &nodes, leases)
        {
            return self.wake(client, app);
        }
        if leases.is_none() && !busy && self.dice.percent(60) {
            let side = &self.clients[client];
            let now = side.clock.at(self.now);
            let unleased = nodes.iter().find(|&&node| side.holder.may_write(node, now).is_none());
            if let Some(&node) = unleased {
                return self.acquire(client, app, node, LeaseKind::Exclusive);
            }
        }
        if let Some(node) = unknown
            && !busy
            && self.dice.percent(70)
        {
            return self.fetch(client, app, node);
        }
        self.submit_awaited(client, app, mutation, body, nodes);
    }

    pub(crate) fn submit_awaited(
        &mut self,
        client: usize,
        app: usize,
        mut mutation: Mutation,
        body: Vec<u64>,
        nodes: Vec<NodeId>,
    ) {
        let side = &mut self.clients[client];
        // only a name that is known to be free, or has to be, is for a node made in advance
        if let Mutation::Create { premade, exclusive: true, .. } = &mut mutation {
            *premade = side.pool.0.pop();
        }
        if let Mutation::Mkdir { premade, .. } = &mut mutation {
            *premade = side.pool.1.pop();
        }
        side.hold(&nodes);
        let change = LogChange::new(mutation.clone());
        let seq = side.log.append(change, body.clone(), body.len() * 8, Promise::Awaited);
        let waits = Change { app: Some(app), mutation, body, busy: nodes, at: self.now };
        side.waiting.insert(seq.0, waits);
        self.note(|| format!("client {client} awaits {seq}"));
        self.pump_client(client);
    }

    /// Does it here and now; false if only the host can.
    pub(crate) fn accept(
        &mut self,
        client: usize,
        mutation: &Mutation,
        body: &[u64],
        nodes: &[NodeId],
        leases: &[LeaseId],
    ) -> bool {
        let mut mutation = mutation.clone();
        let Some(made) = self.take_premade(client, &mut mutation) else { return false };
        let side = &mut self.clients[client];
        let fresh = made.unwrap_or(NodeId { ino: u64::MAX, generation: 0 });
        let planned = side.view.plan(&mutation, body, fresh);
        let ops = match planned {
            Ok((ops, _)) if !ops.is_empty() => ops,
            Ok(_) => return true,
            Err(errno) => {
                self.check_cached_error(client, &mutation, body, errno);
                return true;
            }
        };
        expect_occupants(&mut mutation, |parent, name| side.view.lookup(parent, name));
        let mut change = LogChange::new(mutation.clone());
        change.lease = leases.first().copied();
        let seq = side.log.append(change, body.to_vec(), body.len() * 8, Promise::Accepted);
        for &lease in leases {
            side.holder.accepted(lease, seq);
        }
        for op in &ops {
            side.view.apply(op);
        }
        if let Some(made) = made {
            side.known.insert(made);
            if let Mutation::Create { open: Some(open), .. } = &mutation {
                side.handles.insert(made, open.handle);
            }
        }
        let (body, busy) = (body.to_vec(), Vec::new());
        let change = Change { app: None, mutation, body, busy, at: self.now };
        self.note(|| format!("client {client} accepts {seq} {:?}", change.mutation));
        let _ = nodes;
        self.count_accepted(client, seq, &change, made);
        self.pump_client(client);
        true
    }

    /// Takes a node that was made in advance, where one is needed: `None` if there is none.
    fn take_premade(&mut self, client: usize, mutation: &mut Mutation) -> Option<Option<NodeId>> {
        let side = &mut self.clients[client];
        let (premade, pool) = match mutation {
            Mutation::Create { premade, .. } => (premade, &mut side.pool.0),
            Mutation::Mkdir { premade, .. } => (premade, &mut side.pool.1),
            _ => return Some(None),
        };
        let now = side.clock.at(self.now);
        let leased = |node: &NodeId| side.holder.may_write(*node, now).is_some();
        if self.config.leases && !pool.last().is_some_and(leased) {
            return None;
        }
        *premade = Some(pool.pop()?);
        Some(*premade)
    }

    /// The kernel hands over what it still holds of a node.
    pub(crate) fn flush(&mut self, client: usize, node: NodeId) {
        let side = &self.clients[client];
        let now = side.clock.at(self.now);
        let is_file = side.view.nodes.get(&node).is_some_and(|node| node.kind == Kind::File);
        let Some(lease) = side.holder.may_flush(node, now) else { return };
        let handle = side.handles.get(&node).copied();
        let free = side.known.contains(&node) && !side.busy.contains_key(&node);
        if is_file && handle.is_some() && free && self.dice.percent(50) {
            let body = self.unique(1);
            let mutation = Mutation::Write { node: node.into(), handle, offset: 0 };
            self.accept(client, &mutation, &body, &[node], &[lease]);
        }
    }
}

/// Says whom an accepted change expects at its names.
fn expect_occupants(mutation: &mut Mutation, lookup: impl Fn(NodeId, &Name) -> Option<NodeId>) {
    let expect = |parent: &NodeRef, name: &Name| {
        lookup(super::posix::id(parent), name)
            .map_or(Occupant::Nobody, |node| Occupant::Node(node.into()))
    };
    match mutation {
        Mutation::Unlink { parent, name, occupant }
        | Mutation::Rmdir { parent, name, occupant } => *occupant = expect(parent, name),
        Mutation::Rename { parent, name, occupant, new_parent, new_name, new_occupant, .. } => {
            *occupant = expect(parent, name);
            *new_occupant = expect(new_parent, new_name);
        }
        _ => {}
    }
}
