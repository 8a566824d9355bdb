//! Nodes that somebody has open stay, whatever becomes of their names.
//!
//! One for each share. A node that is unlinked or replaced while it is open is moved under cover
//! (the *held* directory) instead, and removed there when the last handle is closed: so a host that
//! was killed finds it again.

pub mod record;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use crate::id::{HandleId, NodeId, SessionId};
use crate::wire::call::Access;

/// Who has which node open.
#[derive(Debug, Default)]
pub struct Opens {
    sessions: BTreeMap<SessionId, BTreeMap<HandleId, (NodeId, Access)>>,
    /// How many handles a node has.
    handles: BTreeMap<NodeId, usize>,
    /// Nodes under cover.
    held: BTreeSet<NodeId>,
    outputs: VecDeque<Output>,
}

/// What the driver is to do.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Output {
    /// Nobody has the held node open any more: remove it.
    Remove(NodeId),
}

impl Opens {
    /// A session opens a node; rights were checked, and are not checked again when a restarted host
    /// opens it by identity. The same handle again is the same open.
    pub fn open(&mut self, session: SessionId, handle: HandleId, node: NodeId, access: Access) {
        // counted before the old one is closed: the node may be the same, and held
        *self.handles.entry(node).or_default() += 1;
        let opened = self.sessions.entry(session).or_default();
        if let Some((before, _)) = opened.insert(handle, (node, access)) {
            self.let_go(before);
        }
    }

    /// A handle is closed.
    pub fn close(&mut self, session: SessionId, handle: HandleId) {
        let Some(opened) = self.sessions.get_mut(&session) else {
            return;
        };
        let closed = opened.remove(&handle);
        if opened.is_empty() {
            self.sessions.remove(&session);
        }
        if let Some((node, _)) = closed {
            self.let_go(node);
        }
    }

    /// A session is over: all its handles are closed.
    pub fn forget(&mut self, session: SessionId) {
        for (node, _) in self.sessions.remove(&session).unwrap_or_default().into_values() {
            self.let_go(node);
        }
    }

    /// Whether a node must be held when it loses its last name.
    pub fn is_open(&self, node: NodeId) -> bool {
        self.handles.contains_key(&node)
    }

    /// Whether a node is under cover: it has one name more than anybody is to see.
    pub fn is_held(&self, node: NodeId) -> bool {
        self.held.contains(&node)
    }

    /// What a session's handle is of; rights were checked when it was opened.
    pub fn find(&self, session: SessionId, handle: HandleId) -> Option<(NodeId, Access)> {
        self.sessions.get(&session)?.get(&handle).copied()
    }

    /// A node has lost its last name and was moved under cover. If nobody has it open any more, it
    /// goes at once: so a restarted host names what it finds under cover, after the opens.
    pub fn handle_held(&mut self, node: NodeId) {
        if self.is_open(node) {
            self.held.insert(node);
        } else {
            self.outputs.push_back(Output::Remove(node));
        }
    }

    /// What a session has open: for its record.
    pub fn of(&self, session: SessionId) -> impl Iterator<Item = (HandleId, NodeId, Access)> {
        let opened = self.sessions.get(&session).into_iter().flatten();
        opened.map(|(handle, (node, access))| (*handle, *node, *access))
    }

    /// What to do next.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    fn let_go(&mut self, node: NodeId) {
        let Some(handles) = self.handles.get_mut(&node) else {
            return;
        };
        *handles -= 1;
        if *handles == 0 {
            self.handles.remove(&node);
            if self.held.remove(&node) {
                self.outputs.push_back(Output::Remove(node));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: SessionId = SessionId([1; 16]);
    const TWO: SessionId = SessionId([2; 16]);
    const FILE: NodeId = NodeId { ino: 7, generation: 7 };
    const OTHER: NodeId = NodeId { ino: 8, generation: 8 };

    #[test]
    fn a_held_node_is_removed_when_its_last_handle_is_closed() {
        let mut opens = Opens::default();
        opens.open(ONE, HandleId(1), FILE, Access::Read);
        opens.open(TWO, HandleId(1), FILE, Access::Write);
        assert!(opens.is_open(FILE));
        opens.handle_held(FILE);
        opens.close(ONE, HandleId(1));
        opens.close(ONE, HandleId(1));
        assert!(opens.is_open(FILE));
        assert_eq!(opens.poll_output(), None);
        opens.close(TWO, HandleId(1));
        assert_eq!(opens.poll_output(), Some(Output::Remove(FILE)));
        assert_eq!(opens.poll_output(), None);
        assert!(!opens.is_open(FILE));
    }

    #[test]
    fn a_node_that_keeps_a_name_is_not_removed() {
        let mut opens = Opens::default();
        opens.open(ONE, HandleId(1), FILE, Access::Read);
        opens.close(ONE, HandleId(1));
        assert_eq!(opens.poll_output(), None);
    }

    #[test]
    fn a_node_that_is_closed_while_it_goes_under_cover_is_removed_at_once() {
        let mut opens = Opens::default();
        opens.open(ONE, HandleId(1), FILE, Access::Read);
        opens.close(ONE, HandleId(1));
        opens.handle_held(FILE);
        assert_eq!(opens.poll_output(), Some(Output::Remove(FILE)));
    }

    #[test]
    fn an_open_that_is_sent_again_is_one_open() {
        let mut opens = Opens::default();
        opens.open(ONE, HandleId(1), FILE, Access::Read);
        opens.handle_held(FILE);
        opens.open(ONE, HandleId(1), FILE, Access::Read);
        assert_eq!(opens.poll_output(), None);
        assert_eq!(opens.of(ONE).collect::<Vec<_>>(), [(HandleId(1), FILE, Access::Read)]);
        opens.close(ONE, HandleId(1));
        assert_eq!(opens.poll_output(), Some(Output::Remove(FILE)));
    }

    #[test]
    fn a_session_that_is_over_closes_everything_that_it_had_open() {
        let mut opens = Opens::default();
        opens.open(ONE, HandleId(1), FILE, Access::Read);
        opens.open(ONE, HandleId(2), OTHER, Access::Read);
        opens.open(TWO, HandleId(1), OTHER, Access::Read);
        opens.handle_held(FILE);
        opens.handle_held(OTHER);
        opens.forget(ONE);
        assert_eq!(opens.poll_output(), Some(Output::Remove(FILE)));
        assert_eq!(opens.poll_output(), None);
        assert_eq!(opens.of(ONE).count(), 0);
        opens.forget(TWO);
        assert_eq!(opens.poll_output(), Some(Output::Remove(OTHER)));
    }
}
