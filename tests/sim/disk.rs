//! The host's disk: what the page cache shows, what would survive, and the steps between the two.
//!
//! A crash of the machine keeps any prefix of the steps on names and attributes since the last
//! sync, and any subset of the words written. A kill of the process keeps everything.

use p2pfs::id::NodeId;
use p2pfs::wire::errno::Errno;
use p2pfs::wire::log::{Mutation, Outcome};

use super::dice::Dice;
use super::posix::{Extent, Kind, Op, Posix, WORD};

#[derive(Debug, Default)]
pub(crate) struct Disk {
    /// As processes see it.
    pub(crate) now: Posix,
    /// As of the last sync.
    pub(crate) durable: Posix,
    /// What had survived before the last crash or failure.
    pub(crate) before: Posix,
    journal: Vec<Op>,
    next: u64,
    /// Nothing new fits.
    pub(crate) full: bool,
    /// The next sync fails.
    pub(crate) failing: bool,
}

impl Disk {
    fn run(&mut self, op: Op) {
        self.now.apply(&op);
        self.journal.push(op);
    }

    fn fresh(&mut self) -> NodeId {
        self.next += 1;
        NodeId { ino: 100 + self.next, generation: 9 }
    }

    /// Makes a node under cover.
    pub(crate) fn make(&mut self, kind: Kind) -> Result<NodeId, Errno> {
        if self.full {
            return Err(Errno::ENOSPC);
        }
        let node = self.fresh();
        self.run(Op::Make { node, kind, mode: 0 });
        Ok(node)
    }

    /// Whether a node waits for a name.
    pub(crate) fn is_covered(&self, node: NodeId) -> bool {
        self.now.nodes.get(&node).is_some_and(|node| node.nlink == 0)
    }

    /// Carries a change out. `who`: the client and the entry, for what a client changes; `keep`:
    /// whether a node that loses its last name stays under cover.
    pub(crate) fn mutate(
        &mut self,
        who: Option<(usize, u64)>,
        mutation: &Mutation,
        body: &[u64],
        made: Option<NodeId>,
        keep: impl Fn(NodeId) -> bool,
    ) -> Result<Outcome, Errno> {
        let fresh = match made {
            Some(node) => node,
            None => self.fresh(),
        };
        let (ops, node) = self.now.plan(mutation, body, fresh)?;
        if self.full && ops.iter().any(|op| self.grows(op)) {
            return Err(Errno::ENOSPC);
        }
        let before = self.extent(mutation, node);
        for op in ops {
            self.run(op);
        }
        if let Some((client, seq)) = who {
            self.run(Op::Mark { client, seq });
        }
        let outcome = self.now.outcome(mutation, node, &before);
        for lost in before.replaced.into_iter().chain([node]) {
            if self.is_covered(lost) && Some(lost) != made && !keep(lost) {
                self.run(Op::Remove { node: lost });
            }
        }
        Ok(outcome)
    }

    /// Whether a node was made under cover, and never got a mode: nobody else can have opened it.
    pub(crate) fn is_blank(&self, node: NodeId) -> bool {
        self.now.nodes.get(&node).is_some_and(|node| node.mode == 0)
    }

    /// A node that gets no name any more is still made as it was.
    pub(crate) fn finish(&mut self, node: NodeId, mode: u32) {
        if self.is_covered(node) {
            self.run(Op::Mode { node, mode });
        }
    }

    /// The last name of a node went, and nobody has it open any more.
    pub(crate) fn remove(&mut self, node: NodeId) {
        if self.is_covered(node) {
            self.run(Op::Remove { node });
        }
    }

    pub(crate) fn extent(&self, mutation: &Mutation, node: NodeId) -> Extent {
        let size = self.now.nodes.get(&node).map_or(0, |node| node.data.len() as u64 * WORD);
        let replaced = match mutation {
            Mutation::Rename { new_parent, new_name, .. } => {
                self.now.lookup(super::posix::id(new_parent), new_name).filter(|&had| had != node)
            }
            _ => None,
        };
        Extent { size, replaced }
    }

    fn grows(&self, op: &Op) -> bool {
        match op {
            Op::Make { .. } | Op::Name { .. } => true,
            Op::Write { node, at, words } => {
                self.now.nodes.get(node).is_none_or(|node| node.data.len() < at + words.len())
            }
            _ => false,
        }
    }

    /// Puts everything where it survives. A failed sync drops some of the data, and does not say so
    /// again.
    pub(crate) fn sync(&mut self, dice: &mut Dice) -> Result<(), Errno> {
        if self.failing {
            self.failing = false;
            self.replay(usize::MAX, dice);
            return Err(Errno::EIO);
        }
        self.durable = self.now.clone();
        self.journal.clear();
        Ok(())
    }

    /// The machine loses power.
    pub(crate) fn crash(&mut self, dice: &mut Dice) {
        let steps = dice.below(self.journal.len() as u64 + 1) as usize;
        let steps = if dice.percent(30) { self.journal.len() } else { steps };
        self.replay(steps, dice);
        self.durable = self.now.clone();
        self.journal.clear();
        self.failing = false;
    }

    /// The machine loses power; so many steps survive, and all of the data or none.
    pub(crate) fn crash_after(&mut self, steps: usize, data: bool) {
        let mut tree = self.durable.clone();
        for (number, op) in self.journal.drain(..).enumerate() {
            let kept = if matches!(op, Op::Write { .. }) { data } else { number < steps };
            if kept {
                tree.apply(&op);
            }
        }
        (self.now, self.durable) = (tree.clone(), tree);
    }

    /// What becomes of the tree if steps behind `steps` are lost, and some of the data.
    fn replay(&mut self, steps: usize, dice: &mut Dice) {
        let lossy = dice.below(3) * 50;
        self.before = self.durable.clone();
        let marked = |at: usize| matches!(self.journal.get(at), Some(Op::Mark { .. }));
        let steps = if marked(steps) { steps + 1 } else { steps };
        let mut kept = Vec::new();
        let mut tree = self.durable.clone();
        for (number, op) in std::mem::take(&mut self.journal).into_iter().enumerate() {
            match op {
                Op::Write { node, at, words } => {
                    for (word, &value) in words.iter().enumerate() {
                        if !dice.percent(lossy) {
                            kept.push(Op::Write { node, at: at + word, words: vec![value] });
                        }
                    }
                }
                op if number < steps => kept.push(op),
                _ => {}
            }
        }
        for op in &kept {
            tree.apply(op);
        }
        self.now = tree;
        self.journal = kept;
    }
}
