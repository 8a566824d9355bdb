//! Which objects a change or a call uses: what the host clears with [`super::grantor`] first.

use crate::id::NodeId;
use crate::proto::lease::grantor::Use;
use crate::proto::redo::execute::Seen;
use crate::wire::log::Mutation;

/// What a change uses; `seen`: who has its names now. Every node is named by its identity.
pub fn uses(mutation: &Mutation, seen: &Seen) -> Vec<(NodeId, Use)> {
    let _ = (mutation, seen);
    unimplemented!()
}
