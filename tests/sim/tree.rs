//! What the executor sees of the disk and of the record, while its process lives.

use std::cell::{Cell, RefCell};

use p2pfs::id::{NodeId, Seq};
use p2pfs::proto::redo::execute::{Held, Recorder, Seen, Tree};
use p2pfs::proto::redo::opens::Opens;
use p2pfs::proto::redo::record::{self, Slot};
use p2pfs::wire::call::Access;
use p2pfs::wire::errno::Errno;
use p2pfs::wire::log::{Change, Mutation, Outcome, Refused};

use super::dice::Dice;
use super::disk::Disk;
use super::host::{Host, session_id, write_piece};
use super::posix::{Body, Kind, WORD, id};

/// What an execution did.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    pub(crate) done: RefCell<Vec<(Mutation, Outcome)>>,
    pub(crate) disk_failed: Cell<bool>,
}

/// The share as one session changes it.
#[derive(Debug)]
pub(crate) struct View<'a> {
    pub(crate) host: &'a Host,
    pub(crate) opens: &'a RefCell<Opens>,
    pub(crate) dice: RefCell<Dice>,
    pub(crate) client: usize,
    pub(crate) ledger: &'a Ledger,
    /// The process was killed in an earlier step.
    pub(crate) dead: Cell<bool>,
    /// The entry may have been carried out before.
    pub(crate) again: bool,
}

impl View<'_> {
    /// One step of the process; a killed one does nothing.
    fn step(&self) -> Result<(), Errno> {
        let left = self.host.fuse.get();
        if left == 0 {
            self.dead.set(true);
            return Err(Errno::EIO);
        }
        self.host.fuse.set(left - 1);
        Ok(())
    }

    /// A process that is killed just now has written some of it.
    fn write_slot(&self, seq: Seq, slot: &Slot) -> Result<(), Errno> {
        let Some(record) = self.host.records.get(&self.client) else { return Err(Errno::EIO) };
        let mut record = record.borrow_mut();
        let mut piece = record::encode_slot(self.host.epoch, seq, slot);
        let first = !self.dead.get();
        let alive = self.step();
        if alive.is_err() {
            let whole = if first { piece.bytes.len() as u64 } else { 0 };
            piece.bytes.truncate(self.dice.borrow_mut().below(whole + 1) as usize);
        }
        write_piece(&mut record, &piece);
        alive
    }

    fn opened(&self, mutation: &Mutation, outcome: &Outcome) {
        if let (Mutation::Create { open: Some(open), .. }, Outcome::Entry(entry)) =
            (mutation, outcome)
        {
            let session = session_id(self.client);
            self.opens.borrow_mut().open(session, open.handle, entry.node, Access::ReadWrite);
        }
    }
}

impl Disk {
    /// Who has a mutation's names, and how long its file is.
    pub(crate) fn seen(&self, mutation: &Mutation) -> Seen {
        let mut seen = Seen::default();
        match mutation {
            Mutation::Create { parent, name, .. }
            | Mutation::Mkdir { parent, name, .. }
            | Mutation::Link { parent, name, .. }
            | Mutation::Unlink { parent, name, .. }
            | Mutation::Rmdir { parent, name, .. } => {
                seen.name = self.now.lookup(id(parent), name);
            }
            Mutation::Rename { parent, name, new_parent, new_name, .. } => {
                seen.name = self.now.lookup(id(parent), name);
                seen.new_name = self.now.lookup(id(new_parent), new_name);
            }
            Mutation::Append { node, .. }
            | Mutation::Fallocate { node, .. }
            | Mutation::CopyRange { node, .. } => {
                let node = self.now.nodes.get(&id(node));
                seen.size = node.map(|node| node.data.len() as u64 * WORD);
            }
            _ => {}
        }
        seen
    }
}

impl Tree<Body> for View<'_> {
    fn look(&self, change: &Change) -> Result<Seen, Errno> {
        self.step()?;
        let mut disk = self.host.disk.borrow_mut();
        let mut seen = disk.seen(&change.mutation);
        let (parent, premade, kind) = match &change.mutation {
            Mutation::Create { parent, premade, .. } => (parent, premade, Kind::File),
            Mutation::Mkdir { parent, premade, .. } => (parent, premade, Kind::Dir),
            _ => return Ok(seen),
        };
        if seen.name.is_none() && disk.now.node(id(parent)).is_ok() {
            seen.made = match premade {
                Some(node) if disk.is_covered(*node) => Some(*node),
                _ => Some(disk.make(kind)?),
            };
        }
        Ok(seen)
    }

    fn perform(
        &self,
        seq: Seq,
        change: &Change,
        body: &Body,
        seen: &Seen,
    ) -> Result<Outcome, Errno> {
        self.step()?;
        let who = Some((self.client, seq.0));
        let made = seen.made;
        let keep = |node: NodeId| {
            // handles of what had to be made again are not open again yet
            let open = self.opens.borrow().is_open(node);
            if open {
                self.opens.borrow_mut().handle_held(node);
            }
            open || self.again
        };
        let outcome =
            self.host.disk.borrow_mut().mutate(who, &change.mutation, body, made, keep)?;
        self.opened(&change.mutation, &outcome);
        self.ledger.done.borrow_mut().push((change.mutation.clone(), outcome));
        Ok(outcome)
    }

    fn outcome(
        &self,
        _seq: Seq,
        change: &Change,
        _body: &Body,
        seen: &Seen,
    ) -> Result<Outcome, Errno> {
        self.step()?;
        if let (Mutation::Create { mode, exclusive, premade, .. }, Some(node)) =
            (&change.mutation, seen.made)
            && (*exclusive || premade.is_some() || self.host.disk.borrow().is_blank(node))
        {
            self.host.disk.borrow_mut().finish(node, *mode);
        }
        let outcome = {
            let disk = self.host.disk.borrow();
            let node = match &change.mutation {
                Mutation::Rename { new_parent, new_name, .. } => {
                    disk.now.lookup(id(new_parent), new_name)
                }
                Mutation::Link { node, .. }
                | Mutation::SetAttr { node, .. }
                | Mutation::Write { node, .. }
                | Mutation::Append { node, .. }
                | Mutation::CopyRange { node, .. }
                | Mutation::Fallocate { node, .. } => Some(id(node)),
                _ => seen.made.or(seen.name),
            };
            let extent = super::posix::Extent {
                size: seen.size.unwrap_or_default(),
                replaced: seen.new_name,
            };
            let node = node.ok_or(Errno::ESTALE)?;
            disk.now.node(node)?;
            disk.now.outcome(&change.mutation, node, &extent)
        };
        self.opened(&change.mutation, &outcome);
        Ok(outcome)
    }

    fn holds(&self, node: NodeId, offset: u64, body: &Body) -> Result<Held, Errno> {
        self.step()?;
        let disk = self.host.disk.borrow();
        let data = &disk.now.node(node)?.data;
        let at = (offset / WORD) as usize;
        let there = data.get(at..).unwrap_or_default();
        Ok(match () {
            () if there.starts_with(body) => Held::All,
            () if body.starts_with(there) => Held::Start,
            () => Held::Other,
        })
    }

    fn is_named(&self, node: NodeId) -> Result<bool, Errno> {
        self.step()?;
        Ok(self.host.disk.borrow().now.nodes.get(&node).is_some_and(|node| node.nlink > 0))
    }

    fn sync(&self) -> Result<(), Errno> {
        self.step()?;
        let synced = self.host.disk.borrow_mut().sync(&mut self.dice.borrow_mut());
        self.ledger.disk_failed.set(synced.is_err());
        synced
    }
}

impl Recorder for View<'_> {
    fn intent(&self, seq: Seq, seen: &Seen) -> Result<(), Errno> {
        self.write_slot(seq, &Slot::Intent(*seen))
    }

    fn done(&self, seq: Seq, result: &Result<Outcome, Refused>, poisons: bool) {
        let _ = self.write_slot(seq, &Slot::Done { result: *result, poisons });
    }
}
