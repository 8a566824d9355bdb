//! What an entry comes after (rule: per node, per name, parents first, data before its name).
//!
//! ```text
//!  node        every entry that changes it, or gives or takes a name of it, one after the other
//!  name        every entry that changes who has it, one after the other
//!  directory   names in it come after the entry that made it; what removes it comes after them
//!  crossing    what moves into another directory, one after the other: whether that lies within
//!              what moves depends on all such moves before
//! ```
//!
//! Also translates: a node whose creation is not stable yet is named by the entry that made it, so
//! that a host that must make it again under another identity still finds what belongs to it. Both
//! names of a node lead to the same place here.
//!
//! An entry that is set aside leaves the order, and what it touches is closed until it is settled.

mod known;
mod passed;
mod touches;

use std::collections::{BTreeMap, BTreeSet};

use self::known::{Holder, Known, Places};
pub use self::touches::Touches;
pub(in crate::proto::redo) use self::touches::each_node;
use crate::id::{NodeId, Seq};
use crate::wire::log::{Mutation, NodeRef, Occupant, Outcome, RenameMode};
use crate::wire::name::Name;

/// How long after it is stable an entry that made a node still stands for it, in entries. Whoever
/// has heard of the node's identity by then uses that.
const MAKERS_KEPT: u64 = 65_536;

/// A node has fewer names than this, each of which leads to the next.
const ALIASES_MAX: usize = 16;

/// Which entries touched what, of those that are not stable.
#[derive(Debug, Default)]
pub struct Order {
    stable: Seq,
    /// By the name that [`Self::canonical`] gives.
    nodes: BTreeMap<NodeRef, Known>,
    makers: BTreeMap<Seq, Maker>,
    /// Which entry made it. A node that is stable under this very identity is not here.
    ids: BTreeMap<NodeId, Seq>,
    touches: BTreeMap<Seq, Touches>,
    /// What moves something into another directory.
    crossings: BTreeSet<Seq>,
    asides: BTreeMap<Seq, Touches>,
}

/// An entry that made, opened or linked a node.
#[derive(Debug)]
struct Maker {
    /// Another name for the same node, which goes before `MadeBy`.
    alias: Option<NodeRef>,
    told: Option<NodeId>,
    /// All identities that lead here.
    ids: Vec<NodeId>,
}

impl Order {
    /// Names in `mutation` every node whose creation is not stable by the entry that made it, and
    /// every other by its identity.
    pub fn translate(&self, mutation: &mut Mutation) {
        each_node(mutation, |node| *node = self.canonical(*node));
    }

    /// Names in `mutation` every node by its identity whose creation is stable by now: a host that
    /// does not know the session knows no other name for it.
    pub fn settle_names(&self, mutation: &mut Mutation) {
        each_node(mutation, |node| {
            if matches!(node, NodeRef::MadeBy(seq) if *seq <= self.stable) {
                *node = self.canonical(*node);
            }
        });
    }

    /// Names in `mutation` every node by its identity whose creation is known to be carried out,
    /// but for those that `is_kept`: who goes on with the log elsewhere knows no other makers.
    pub fn name_for_good(&self, mutation: &mut Mutation, is_kept: impl Fn(Seq) -> bool) {
        each_node(mutation, |node| {
            if let NodeRef::MadeBy(seq) = *node
                && !is_kept(seq)
                && let Some(told) = self.makers.get(&seq).and_then(|maker| maker.told)
            {
                *node = NodeRef::Node(told);
            }
        });
    }

    /// Names in `mutation` every node by its identity, if it is known: for eyes outside of the log.
    pub fn identify(&self, mutation: &mut Mutation) {
        each_node(mutation, |node| {
            if let NodeRef::MadeBy(seq) = self.canonical(*node) {
                let told = self.makers.get(&seq).and_then(|maker| maker.told);
                *node = told.map_or(NodeRef::MadeBy(seq), NodeRef::Node);
            }
        });
    }

    /// Every identity that a node has had, as far as it is known: an application may know an older
    /// one.
    pub fn identities(&self, node: NodeRef) -> Vec<NodeId> {
        match self.canonical(node) {
            NodeRef::Node(node) => vec![node],
            NodeRef::MadeBy(seq) => self.makers.get(&seq).map_or_else(Vec::new, |maker| {
                maker.ids.iter().copied().chain(maker.told).collect()
            }),
        }
    }

    /// What a translated mutation touches.
    pub fn touches(&self, mutation: &Mutation) -> Touches {
        let mut touches = Touches::default();
        match mutation {
            Mutation::Nothing => {}
            Mutation::Create { parent, name, premade, exclusive, .. } => {
                touches.make(*parent, name, *premade);
                let holder = self.holder(*parent, name);
                if let Holder::Node(node) = holder
                    && !exclusive
                {
                    touches.nodes.push(node);
                    touches.names[0].2 = holder;
                }
            }
            Mutation::Mkdir { parent, name, premade, .. } => {
                touches.make(*parent, name, *premade);
            }
            Mutation::Mknod { parent, name, .. } | Mutation::Symlink { parent, name, .. } => {
                touches.make(*parent, name, None);
            }
            Mutation::Link { node, parent, name } => {
                touches.nodes.push(*node);
                touches.name(*parent, name, Holder::Node(*node));
                touches.makes = true;
                touches.linked = Some(*node);
            }
            Mutation::Unlink { parent, name, occupant } => {
                touches.nodes.extend(self.occupant(*parent, name, *occupant));
                touches.name(*parent, name, Holder::Nobody);
            }
            Mutation::Rmdir { parent, name, occupant } => {
                touches.emptied = self.occupant(*parent, name, *occupant);
                touches.nodes.extend(touches.emptied);
                touches.name(*parent, name, Holder::Nobody);
            }
            Mutation::Rename {
                parent,
                name,
                occupant,
                new_parent,
                new_name,
                new_occupant,
                mode,
            } => {
                let moved = self.occupant(*parent, name, *occupant);
                let other = self.occupant(*new_parent, new_name, *new_occupant);
                touches.nodes.extend(moved.into_iter().chain(other));
                let behind = match mode {
                    RenameMode::Replace | RenameMode::NoReplace => Holder::Nobody,
                    RenameMode::Exchange => other.map_or(Holder::Unknown, Holder::Node),
                };
                touches.name(*parent, name, behind);
                touches.name(*new_parent, new_name, moved.map_or(Holder::Unknown, Holder::Node));
                touches.emptied = other.filter(|_| *mode == RenameMode::Replace);
                touches.crosses = self.canonical(*parent) != self.canonical(*new_parent);
            }
            Mutation::SetAttr { node, .. }
            | Mutation::Write { node, .. }
            | Mutation::Append { node, .. }
            | Mutation::SetXattr { node, .. }
            | Mutation::RemoveXattr { node, .. }
            | Mutation::Fallocate { node, .. } => touches.nodes.push(*node),
            Mutation::CopyRange { source, node, .. } => touches.nodes.extend([*source, *node]),
        }
        touches
    }

    /// An entry that is set aside, if a mutation comes after one: it cannot be carried out either.
    pub fn blocked(&self, touches: &Touches) -> Option<Seq> {
        let nodes = touches.nodes.iter().filter_map(|node| self.nodes.get(node)?.aside.first());
        let names = touches
            .names
            .iter()
            .filter_map(|(parent, name, _)| self.nodes.get(parent)?.names.get(name)?.aside.first());
        let parents = touches.parents.iter().filter_map(|parent| {
            let known = self.nodes.get(parent)?;
            known.unmade.as_ref()
        });
        nodes.chain(names).chain(parents).min().copied()
    }

    /// The entries, not yet stable, that a mutation comes directly after; oldest first. There are
    /// more than 8 only where a directory goes that had many names.
    pub fn before(&self, touches: &Touches) -> Vec<Seq> {
        let mut before = Vec::new();
        for node in &touches.nodes {
            let Some(known) = self.nodes.get(node) else { continue };
            before.extend(known.touched.back());
            before.extend(known.ends.range(self.stable.next()..));
        }
        for (parent, name, _) in &touches.names {
            let places = self.nodes.get(parent).and_then(|known| known.names.get(name));
            before.extend(places.and_then(Places::last));
        }
        for parent in &touches.parents {
            before.extend(self.nodes.get(parent).and_then(|known| known.emptied));
            if let NodeRef::MadeBy(maker) = parent {
                before.extend((*maker > self.stable).then_some(*maker));
            }
        }
        if let Some(known) = touches.emptied.and_then(|node| self.nodes.get(&node)) {
            before.extend(known.names.values().filter_map(Places::last));
        }
        if touches.crosses {
            before.extend(self.crossings.last());
        }
        before.sort_unstable();
        before.dedup();
        before
    }

    /// Entry `seq` has its place, behind all before it.
    pub fn place(&mut self, seq: Seq, mut touches: Touches) {
        self.begin(seq, &mut touches);
        for node in &touches.nodes {
            let known = self.nodes.entry(*node).or_default();
            known.ends.clear();
            if known.touched.back() != Some(&seq) {
                known.touched.push_back(seq);
            }
        }
        for (parent, name, holder) in &touches.names {
            let names = &mut self.nodes.entry(*parent).or_default().names;
            names.entry(name.clone()).or_default().chain.push_back((seq, Some(*holder)));
        }
        if let Some(node) = touches.emptied {
            self.nodes.entry(node).or_default().emptied = Some(seq);
        }
        if touches.crosses {
            self.crossings.insert(seq);
        }
        self.touches.insert(seq, touches);
    }

    /// Entry `seq` never gets a place: it comes after what is set aside, and is set aside, too.
    pub fn place_aside(&mut self, seq: Seq, mut touches: Touches) {
        self.begin(seq, &mut touches);
        self.close(seq, touches);
    }

    /// Entry `seq` is set aside: what it touches is closed.
    pub fn set_aside(&mut self, seq: Seq) {
        if let Some(touches) = self.unplace(seq) {
            self.close(seq, touches);
        }
    }

    /// Nothing comes after entry `seq` any more.
    pub fn cut(&mut self, seq: Seq) {
        if let Some(touches) = self.unplace(seq) {
            self.sweep(&touches);
        }
    }

    /// What entry `seq`, which is set aside, touches may be changed again.
    pub fn settle(&mut self, seq: Seq) {
        let Some(touches) = self.asides.remove(&seq) else { return };
        for node in &touches.nodes {
            if let Some(known) = self.nodes.get_mut(node) {
                known.aside.remove(&seq);
                known.unmade = known.unmade.filter(|maker| *maker != seq);
            }
        }
        for (parent, name, _) in &touches.names {
            if let Some(places) = self.places_mut(parent, name) {
                places.aside.remove(&seq);
            }
        }
        self.sweep(&touches);
    }

    /// The host refused entry `seq`: names are as before. It keeps its place.
    pub fn handle_failed(&mut self, seq: Seq) {
        let Some(touches) = self.touches.get(&seq) else { return };
        for (parent, name, _) in &touches.names {
            let parent = canonical(&self.ids, &self.makers, *parent);
            let places = self.nodes.get_mut(&parent).and_then(|known| known.names.get_mut(name));
            if let Some(places) = places
                && let Ok(at) = places.chain.binary_search_by_key(&seq, |place| place.0)
            {
                places.chain[at].1 = None;
            }
        }
    }

    /// The host carried entry `seq` out, perhaps again and with another outcome.
    pub fn handle_applied(&mut self, seq: Seq, outcome: &Outcome) {
        let Outcome::Entry(entry) = outcome else { return };
        let Some(maker) = self.makers.get_mut(&seq) else { return };
        maker.told = Some(entry.node);
        if matches!(maker.alias, Some(NodeRef::Node(_))) {
            maker.alias = Some(NodeRef::Node(entry.node));
            return;
        }
        let own = self.canonical(NodeRef::MadeBy(seq));
        let other = self.canonical(NodeRef::Node(entry.node));
        let known_before = |known: &Known| known.touched.front().is_some_and(|first| *first < seq);
        if own != other {
            match other {
                // it was there, and was only opened
                NodeRef::Node(_) if self.nodes.get(&other).is_some_and(known_before) => {
                    self.rename_node(own, other);
                }
                NodeRef::Node(node) => {
                    self.lead(node, seq);
                    self.move_known(other, own);
                }
                NodeRef::MadeBy(first) if first < seq => self.rename_node(own, other),
                NodeRef::MadeBy(_) => self.rename_node(other, own),
            }
        }
    }

    /// All entries up to `upto` are stable, and it is known what came of them: they need no order
    /// any more.
    pub fn handle_stable(&mut self, upto: Seq) {
        if upto <= self.stable {
            return;
        }
        self.crossings = self.crossings.split_off(&upto.next());
        let later = self.touches.split_off(&upto.next());
        for (_, touches) in std::mem::replace(&mut self.touches, later) {
            self.prune(&touches, upto);
        }
        let makers: Vec<Seq> =
            self.makers.range(self.stable.next()..=upto).map(|(seq, _)| *seq).collect();
        self.stable = upto;
        for maker in makers {
            self.settle_maker(maker);
        }
        while let Some(oldest) = self.makers.first_entry()
            && oldest.key().0 + MAKERS_KEPT <= self.stable.0
        {
            let (seq, maker) = oldest.remove_entry();
            for id in maker.ids {
                if self.ids.get(&id) == Some(&seq) {
                    self.ids.remove(&id);
                }
            }
        }
    }

    /// The last entry, not yet stable, that touches the node: its data, its attributes, its names.
    pub fn last_of(&self, node: NodeRef) -> Option<Seq> {
        self.nodes.get(&self.canonical(node))?.touched.back().copied()
    }

    /// The one name under which a node is kept here.
    fn canonical(&self, node: NodeRef) -> NodeRef {
        canonical(&self.ids, &self.makers, node)
    }

    fn occupant(&self, parent: NodeRef, name: &Name, expected: Occupant) -> Option<NodeRef> {
        match expected {
            Occupant::Node(node) => Some(node),
            Occupant::Nobody => None,
            Occupant::Any => match self.holder(parent, name) {
                Holder::Node(node) => Some(node),
                Holder::Unknown | Holder::Nobody | Holder::Made => None,
            },
        }
    }

    /// Who has a name after all entries so far.
    fn holder(&self, parent: NodeRef, name: &Name) -> Holder {
        let Some(places) = self.nodes.get(&parent).and_then(|known| known.names.get(name)) else {
            return Holder::Unknown;
        };
        let holder = places.chain.iter().rev().find_map(|place| place.1).unwrap_or(places.base);
        match holder {
            Holder::Node(node) => Holder::Node(self.canonical(node)),
            Holder::Unknown | Holder::Nobody | Holder::Made => holder,
        }
    }

    fn places_mut(&mut self, parent: &NodeRef, name: &Name) -> Option<&mut Places> {
        self.nodes.get_mut(parent)?.names.get_mut(name)
    }

    /// An entry that makes a node is the node's name from now on.
    fn begin(&mut self, seq: Seq, touches: &mut Touches) {
        if !touches.makes {
            return;
        }
        for (_, _, holder) in &mut touches.names {
            if *holder == Holder::Made {
                *holder = Holder::Node(NodeRef::MadeBy(seq));
            }
        }
        let alias = touches.linked;
        self.makers.insert(seq, Maker { alias, told: None, ids: Vec::new() });
        if alias.is_none() {
            touches.nodes.push(NodeRef::MadeBy(seq));
        }
        if let Some(node) = touches.premade {
            self.lead(node, seq);
        }
    }

    /// `node` is what entry `seq` made.
    fn lead(&mut self, node: NodeId, seq: Seq) {
        if self.ids.insert(node, seq) != Some(seq)
            && let Some(maker) = self.makers.get_mut(&seq)
        {
            maker.ids.push(node);
        }
    }

    /// Takes an entry out of all chains.
    fn unplace(&mut self, seq: Seq) -> Option<Touches> {
        let mut touches = self.touches.remove(&seq)?;
        self.crossings.remove(&seq);
        self.bring_up_to_date(&mut touches);
        for node in &touches.nodes {
            if let Some(known) = self.nodes.get_mut(node)
                && let Ok(at) = known.touched.binary_search(&seq)
            {
                known.touched.remove(at);
            }
        }
        for (parent, name, _) in &touches.names {
            if let Some(places) = self.places_mut(parent, name)
                && let Ok(at) = places.chain.binary_search_by_key(&seq, |place| place.0)
            {
                places.chain.remove(at);
            }
        }
        if let Some(known) = touches.emptied.and_then(|node| self.nodes.get_mut(&node)) {
            known.emptied = known.emptied.filter(|last| *last != seq);
        }
        Some(touches)
    }

    fn close(&mut self, seq: Seq, touches: Touches) {
        for node in &touches.nodes {
            let known = self.nodes.entry(*node).or_default();
            known.aside.insert(seq);
        }
        for (parent, name, _) in &touches.names {
            let names = &mut self.nodes.entry(*parent).or_default().names;
            names.entry(name.clone()).or_default().aside.insert(seq);
        }
        if touches.makes && touches.linked.is_none() {
            let made = self.canonical(NodeRef::MadeBy(seq));
            self.nodes.entry(made).or_default().unmade = Some(seq);
        }
        self.asides.insert(seq, touches);
    }

    fn prune(&mut self, touches: &Touches, upto: Seq) {
        for node in touches.nodes.iter().chain(&touches.emptied) {
            let node = self.canonical(*node);
            if let Some(known) = self.nodes.get_mut(&node) {
                while known.touched.front().is_some_and(|first| *first <= upto) {
                    known.touched.pop_front();
                }
                known.emptied = known.emptied.filter(|last| *last > upto);
            }
        }
        for (parent, name, _) in &touches.names {
            let parent = self.canonical(*parent);
            if let Some(places) = self.places_mut(&parent, name) {
                while let Some((seq, holder)) = places.chain.front()
                    && *seq <= upto
                {
                    places.base = holder.unwrap_or(places.base);
                    places.chain.pop_front();
                }
            }
        }
        self.sweep(touches);
    }

    /// Forgets what is of no use any more.
    fn sweep(&mut self, touches: &Touches) {
        for (parent, name, _) in &touches.names {
            let parent = self.canonical(*parent);
            if let Some(known) = self.nodes.get_mut(&parent) {
                if known.names.get(name).is_some_and(Places::is_idle) {
                    known.names.remove(name);
                }
                if known.is_idle() {
                    self.nodes.remove(&parent);
                }
            }
        }
        for node in touches.nodes.iter().chain(&touches.emptied) {
            let node = self.canonical(*node);
            if self.nodes.get(&node).is_some_and(Known::is_idle) {
                self.nodes.remove(&node);
            }
        }
    }

    /// A creation is stable: the node is named by its identity.
    fn settle_maker(&mut self, seq: Seq) {
        let Some(maker) = self.makers.get_mut(&seq) else { return };
        let (None, Some(told)) = (maker.alias, maker.told) else { return };
        maker.alias = Some(NodeRef::Node(told));
        if self.ids.get(&told) == Some(&seq) {
            self.ids.remove(&told);
        }
        let to = self.canonical(NodeRef::Node(told));
        self.move_known(NodeRef::MadeBy(seq), to);
    }

    /// What was called `from`, made by an entry, turns out to be `to`.
    fn rename_node(&mut self, from: NodeRef, to: NodeRef) {
        if let NodeRef::MadeBy(seq) = from
            && let Some(maker) = self.makers.get_mut(&seq)
        {
            maker.alias = Some(to);
            self.move_known(from, to);
        }
    }

    fn move_known(&mut self, from: NodeRef, to: NodeRef) {
        if from == to {
            return;
        }
        let Some(moved) = self.nodes.remove(&from) else { return };
        let names = moved.names.values().flat_map(|places| &places.aside);
        let asides: BTreeSet<Seq> = moved.aside.iter().chain(names).copied().collect();
        for seq in asides {
            if let Some(mut touches) = self.asides.remove(&seq) {
                self.bring_up_to_date(&mut touches);
                self.asides.insert(seq, touches);
            }
        }
        self.nodes.entry(to).or_default().merge(moved);
    }

    fn bring_up_to_date(&self, touches: &mut Touches) {
        for node in touches.nodes.iter_mut().chain(&mut touches.emptied) {
            *node = self.canonical(*node);
        }
        for (parent, _, _) in &mut touches.names {
            *parent = self.canonical(*parent);
        }
    }
}

fn canonical(
    ids: &BTreeMap<NodeId, Seq>,
    makers: &BTreeMap<Seq, Maker>,
    mut node: NodeRef,
) -> NodeRef {
    // bounded, whatever a host says of nodes
    for _ in 0..ALIASES_MAX {
        let seq = match node {
            NodeRef::MadeBy(seq) => seq,
            NodeRef::Node(id) => match ids.get(&id) {
                Some(seq) => *seq,
                None => return node,
            },
        };
        match makers.get(&seq).and_then(|maker| maker.alias) {
            Some(alias) if alias != node => node = alias,
            Some(_) => return node,
            None => return NodeRef::MadeBy(seq),
        }
    }
    node
}
