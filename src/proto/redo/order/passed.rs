//! Whether later entries explain that neither the state before an entry nor the one after it is
//! there: they took its nodes or names further.

use super::known::Holder;
use super::{Order, Touches};
use crate::id::Seq;
use crate::wire::log::NodeRef;
use crate::wire::name::Name;

impl Order {
    /// Whether later entries, which a host may have carried out too, take what entry `seq` touches
    /// further: they give its name to somebody else, move its node on, or remove it.
    pub fn is_passed(&self, seq: Seq) -> bool {
        let Some(touches) = self.touches.get(&seq) else { return false };
        let gone = |node: &NodeRef| self.later(seq, *node, |later| later.removes(*node));
        if touches.parents.iter().any(gone) {
            return true;
        }
        let taken = |(parent, name, _): &(NodeRef, Name, Holder)| self.is_taken(seq, *parent, name);
        match touches.names.len() {
            0 => touches.nodes.iter().any(gone),
            1 if touches.makes => touches.names.iter().any(taken) || touches.nodes.iter().any(gone),
            // who has the name is not whom it removes: that is as good as done
            1 => false,
            _ => touches.nodes.iter().any(|node| self.later(seq, *node, Touches::moves)),
        }
    }

    /// Whether the file that entry `seq` makes is only moved and then removed by later entries: if
    /// it has no name, it needs none.
    pub fn is_doomed(&self, seq: Seq) -> bool {
        let node = self.canonical(NodeRef::MadeBy(seq));
        let own = self.touches.get(&seq).is_some_and(|own| own.makes && own.linked.is_none());
        let mut removed = false;
        for later in self.later_touches(seq, node).filter_map(|later| self.touches.get(&later)) {
            removed |= later.removes(node);
            let exchanged = later.names.len() == 2 && later.names[0].2 != Holder::Nobody;
            if later.makes || exchanged {
                return false;
            }
        }
        own && removed
    }

    /// Whether two names are one node's.
    pub fn is_same(&self, one: NodeRef, other: NodeRef) -> bool {
        self.canonical(one) == self.canonical(other)
    }

    /// Later entries that touch the node.
    pub fn later_touches(&self, seq: Seq, node: NodeRef) -> impl Iterator<Item = Seq> {
        let known = self.nodes.get(&self.canonical(node));
        let touched = known.into_iter().flat_map(|known| known.touched.iter().rev());
        touched.copied().take_while(move |later| *later > seq)
    }

    fn later(&self, seq: Seq, node: NodeRef, does: impl Fn(&Touches) -> bool) -> bool {
        let Some(known) = self.nodes.get(&self.canonical(node)) else { return false };
        let later = known.touched.iter().rev().take_while(|later| **later > seq);
        later.filter_map(|later| self.touches.get(later)).any(does)
    }

    fn is_taken(&self, seq: Seq, parent: NodeRef, name: &Name) -> bool {
        let known = self.nodes.get(&self.canonical(parent));
        let Some(places) = known.and_then(|known| known.names.get(name)) else { return false };
        let later = places.chain.iter().rev().take_while(|place| place.0 > seq);
        later.filter_map(|place| place.1).any(|holder| holder != Holder::Nobody)
    }
}

impl Touches {
    /// Whether a name of what it touches is taken away.
    fn moves(&self) -> bool {
        !self.makes && !self.names.is_empty()
    }

    fn removes(&self, node: NodeRef) -> bool {
        let only = self.names.len() == 1 && !self.makes;
        self.emptied == Some(node) || only && self.nodes.contains(&node)
    }
}
