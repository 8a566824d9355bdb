//! Nodes that somebody has open stay, whatever becomes of their names.
//!
//! One for each share. A node that is unlinked or replaced while it is open is moved under cover (the
//! *held* directory) instead, and removed there when the last handle is closed: so a host that was
//! killed finds it again.

use crate::id::{HandleId, NodeId, SessionId};
use crate::wire::call::Access;

/// Who has which node open.
#[derive(Debug, Default)]
pub struct Opens {}

/// What the driver is to do.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Output {
    /// Nobody has the held node open any more: remove it.
    Remove(NodeId),
}

impl Opens {
    /// A session opens a node; rights were checked, and are not checked again when a restarted host
    /// opens it by identity.
    pub fn open(&mut self, session: SessionId, handle: HandleId, node: NodeId, access: Access) {
        let _ = (session, handle, node, access);
        unimplemented!()
    }

    /// A handle is closed.
    pub fn close(&mut self, session: SessionId, handle: HandleId) {
        let _ = (session, handle);
        unimplemented!()
    }

    /// A session is over: all its handles are closed.
    pub fn forget(&mut self, session: SessionId) {
        let _ = session;
        unimplemented!()
    }

    /// Whether a node must be held when it loses its last name.
    pub fn is_open(&self, node: NodeId) -> bool {
        let _ = node;
        unimplemented!()
    }

    /// A node has lost its last name and was moved under cover.
    pub fn handle_held(&mut self, node: NodeId) {
        let _ = node;
        unimplemented!()
    }

    /// What a session has open: for its record.
    pub fn of(&self, session: SessionId) -> impl Iterator<Item = (HandleId, NodeId, Access)> {
        let _ = session;
        std::iter::empty()
    }

    /// What to do next.
    pub fn poll_output(&mut self) -> Option<Output> {
        unimplemented!()
    }
}
