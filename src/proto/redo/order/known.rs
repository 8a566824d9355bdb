//! What is known of one node: who touched it, and the names in it.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use crate::id::Seq;
use crate::wire::log::NodeRef;
use crate::wire::name::Name;

/// What is known of one node.
#[derive(Debug, Default)]
pub(super) struct Known {
    /// Oldest first.
    pub(super) touched: VecDeque<Seq>,
    /// Two nodes turned out to be this one: the last that touched each, which do not come after
    /// each other.
    pub(super) ends: BTreeSet<Seq>,
    /// The last one that removes this directory, or tries.
    pub(super) emptied: Option<Seq>,
    pub(super) names: BTreeMap<Name, Places>,
    /// Set aside, and touch it.
    pub(super) aside: BTreeSet<Seq>,
    /// The entry that was to make it is set aside.
    pub(super) unmade: Option<Seq>,
}

/// What is known of one name.
#[derive(Debug, Default)]
pub(super) struct Places {
    /// Oldest first, with who has the name afterwards; `None` is as before, for what failed.
    pub(super) chain: VecDeque<(Seq, Option<Holder>)>,
    /// Who had it before these.
    pub(super) base: Holder,
    pub(super) aside: BTreeSet<Seq>,
}

#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(super) enum Holder {
    #[default]
    Unknown,
    Nobody,
    /// What the entry itself makes.
    Made,
    Node(NodeRef),
}

impl Known {
    pub(super) fn is_idle(&self) -> bool {
        self.touched.is_empty()
            && self.emptied.is_none()
            && self.names.is_empty()
            && self.aside.is_empty()
    }

    pub(super) fn merge(&mut self, other: Self) {
        self.ends.extend(self.touched.back());
        self.ends.extend(other.touched.back());
        self.ends.extend(other.ends);
        merge(&mut self.touched, other.touched, |seq| *seq);
        self.touched.make_contiguous();
        self.emptied = self.emptied.max(other.emptied);
        for (name, places) in other.names {
            let mine = self.names.entry(name).or_default();
            merge(&mut mine.chain, places.chain, |place| place.0);
            mine.aside.extend(places.aside);
            if mine.base == Holder::Unknown {
                mine.base = places.base;
            }
        }
        self.aside.extend(other.aside);
        self.unmade = self.unmade.or(other.unmade);
    }
}

impl Places {
    pub(super) fn last(&self) -> Option<Seq> {
        self.chain.back().map(|place| place.0)
    }

    pub(super) fn is_idle(&self) -> bool {
        self.chain.is_empty() && self.aside.is_empty()
    }
}

fn merge<T>(into: &mut VecDeque<T>, from: VecDeque<T>, seq: impl Fn(&T) -> Seq) {
    into.extend(from);
    into.make_contiguous().sort_by_key(&seq);
}
