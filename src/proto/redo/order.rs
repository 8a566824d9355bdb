//! What an entry comes after (rule: per node, per name, parents first, data before its name).
//!
//! Also translates: a node whose creation is not stable yet is named by the entry that made it.

use crate::id::{NodeId, Seq};
use crate::wire::log::{Mutation, Outcome};

/// Which entries touched what last, of those that are not stable.
#[derive(Debug, Default)]
pub struct Order {}

impl Order {
    /// Names in `mutation` every node whose creation is not stable by the entry that made it, notes
    /// what entry `seq` touches, and tells which entries it comes after: at most 8, each before
    /// `seq`.
    pub fn place(&mut self, seq: Seq, mutation: &mut Mutation) -> Vec<Seq> {
        let _ = (seq, mutation);
        unimplemented!()
    }

    /// The host said what came of an entry.
    pub fn handle_applied(&mut self, seq: Seq, outcome: &Outcome) {
        let _ = (seq, outcome);
        unimplemented!()
    }

    /// All entries up to `upto` are stable: they need no order any more.
    pub fn handle_stable(&mut self, upto: Seq) {
        let _ = upto;
        unimplemented!()
    }

    /// The last entry, not yet stable, that touches the node: its data, its attributes, its names.
    pub fn last_of(&self, node: NodeId) -> Option<Seq> {
        let _ = node;
        unimplemented!()
    }
}
