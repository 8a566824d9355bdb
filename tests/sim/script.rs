//! A world in which a script says what happens, and when.

use p2pfs::id::{NodeId, Seq};
use p2pfs::wire::call::Access;
use p2pfs::wire::log::{Change as LogChange, Mutation, Occupant, Opening, Promise, RenameMode};

use super::apps::name;
use super::client::Change;
use super::model::Who;
use super::posix::{COLLAPSE, Kind, WORD};
use super::world::{Config, World};

pub(crate) const ROOT: NodeId = NodeId::ROOT;

/// One client, which owns the share, and nothing by chance.
#[derive(Debug)]
pub(crate) struct Script {
    pub(crate) world: World,
    processes: u64,
}

impl Script {
    pub(crate) fn new() -> Self {
        let config = Config { ops: 0, faults: 0, ..Config::alone() };
        let mut script = Self { world: World::new(1, config), processes: 0 };
        script.until(|world| world.clients[0].connected);
        script.world.clients[0].known.insert(ROOT);
        script.world.premake(0);
        script.until(|world| !world.clients[0].pool.0.is_empty());
        script
    }

    /// Goes on until something is so.
    pub(crate) fn until(&mut self, so: impl Fn(&World) -> bool) {
        for _ in 0..10_000 {
            if so(&self.world) {
                return;
            }
            self.world.step();
        }
        panic!("it never comes to that");
    }

    /// Goes on until every entry has an answer.
    pub(crate) fn answered(&mut self) {
        self.until(|world| world.clients[0].connected && world.clients[0].log.unapplied().0 == 0);
    }

    /// Goes on until everything is on the disk, and the client knows.
    pub(crate) fn stable(&mut self) {
        self.until(|world| world.clients[0].log.stable() == world.clients[0].log.last());
    }

    /// No more trouble: everything comes to rest, and the disk is what it ought to be.
    pub(crate) fn rest(&mut self) {
        self.world.heal();
    }

    /// An application is told at once that it is done.
    pub(crate) fn accept(&mut self, mutation: Mutation, body: &[u64]) -> Seq {
        assert!(self.world.accept(0, &mutation, body, &[], &[]), "nothing made in advance");
        self.world.clients[0].log.last()
    }

    /// An application waits.
    pub(crate) fn ask(&mut self, mutation: Mutation, body: &[u64]) -> Seq {
        let side = &mut self.world.clients[0];
        let change = LogChange::new(mutation.clone());
        let seq = side.log.append(change, body.to_vec(), body.len() * 8, Promise::Awaited);
        let (body, busy) = (body.to_vec(), Vec::new());
        let waits = Change { app: None, mutation, body, busy, at: self.world.now };
        side.waiting.insert(seq.0, waits);
        self.world.pump_client(0);
        seq
    }

    /// Creates and opens a file; it is accepted.
    pub(crate) fn create(&mut self, text: &str) -> NodeId {
        let create = create(&mut self.world, text);
        self.accept(create, &[]);
        self.world.clients[0].view.lookup(ROOT, &name(text)).expect("it was created")
    }

    pub(crate) fn mkdir(&mut self, text: &str) -> NodeId {
        let mkdir =
            Mutation::Mkdir { parent: ROOT.into(), name: name(text), mode: 0o700, premade: None };
        self.accept(mkdir, &[]);
        self.world.clients[0].view.lookup(ROOT, &name(text)).expect("it was made")
    }

    pub(crate) fn write(&mut self, node: NodeId, at: u64, body: &[u64]) -> Seq {
        self.accept(write(node, at, body), body)
    }

    pub(crate) fn rename(&mut self, from: &str, to: &str) -> Seq {
        self.accept(rename((ROOT, from), (ROOT, to), RenameMode::Replace), &[])
    }

    pub(crate) fn unlink(&mut self, text: &str) -> Seq {
        self.accept(unlink(text), &[])
    }

    /// The machine loses power; so many steps survive, and all of the data or none.
    pub(crate) fn crash(&mut self, steps: usize, data: bool) {
        self.world.crash_host_after(steps, data);
    }

    /// The machine loses power, but the disk has it all; only nobody has said so.
    pub(crate) fn crash_with_everything(&mut self) {
        self.crash(usize::MAX, true);
    }

    /// A process comes in between: accepted entries may be set aside.
    pub(crate) fn interfered(&mut self) {
        self.world.excuses.passed = true;
    }

    /// A process on the host changes something.
    pub(crate) fn process(&mut self, mutation: &Mutation, body: &[u64]) -> NodeId {
        self.processes += 1;
        let mut disk = self.world.host.disk.borrow_mut();
        let made = disk.make(Kind::File).expect("there is room");
        disk.mutate(None, mutation, body, Some(made), |_| false).expect("a process may do that");
        drop(disk);
        let who = Who::Process(self.processes);
        let _ = self.world.model.count(who, mutation, body, Some(made));
        made
    }

    /// Who has a name on the disk.
    pub(crate) fn named(&self, text: &str) -> Option<NodeId> {
        self.world.host.disk.borrow().now.lookup(ROOT, &name(text))
    }

    /// What a name on the disk holds.
    pub(crate) fn data(&self, text: &str) -> Option<Vec<u64>> {
        let disk = self.world.host.disk.borrow();
        let node = disk.now.lookup(ROOT, &name(text))?;
        Some(disk.now.nodes[&node].data.clone())
    }

    pub(crate) fn asides(&self) -> Vec<u64> {
        self.world.clients[0].asides.keys().copied().collect()
    }
}

pub(crate) fn create(world: &mut World, text: &str) -> Mutation {
    let handle = world.clients[0].new_handle();
    Mutation::Create {
        parent: ROOT.into(),
        name: name(text),
        mode: 0o600,
        exclusive: true,
        premade: None,
        open: Some(Opening { handle, access: Access::ReadWrite }),
    }
}

pub(crate) fn unlink(text: &str) -> Mutation {
    Mutation::Unlink { parent: ROOT.into(), name: name(text), occupant: Occupant::Any }
}

pub(crate) fn write(node: NodeId, at: u64, _body: &[u64]) -> Mutation {
    Mutation::Write { node: node.into(), handle: None, offset: at * WORD }
}

pub(crate) fn append(node: NodeId) -> Mutation {
    Mutation::Append { node: node.into(), handle: None, size: 0 }
}

pub(crate) fn copy(source: NodeId, node: NodeId, words: u64) -> Mutation {
    Mutation::CopyRange {
        source: source.into(),
        source_handle: None,
        source_offset: 0,
        node: node.into(),
        handle: None,
        offset: 0,
        len: words * WORD,
    }
}

pub(crate) fn collapse(node: NodeId, at: u64) -> Mutation {
    let (offset, len) = (at * WORD, WORD);
    Mutation::Fallocate { node: node.into(), handle: None, offset, len, mode: COLLAPSE }
}

pub(crate) fn rename(from: (NodeId, &str), to: (NodeId, &str), mode: RenameMode) -> Mutation {
    Mutation::Rename {
        parent: from.0.into(),
        name: name(from.1),
        occupant: Occupant::Any,
        new_parent: to.0.into(),
        new_name: name(to.1),
        new_occupant: Occupant::Any,
        mode,
    }
}
