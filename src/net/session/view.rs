//! What `status` shows of a session.

use std::time::Duration;

use serde_json::{Value, json};

use crate::id::{ConnectionId, HostRun};
use crate::identity::MacAddress;
use crate::net::endpoint::{Auth, PathInfo, path_json};
use crate::net::nat::routing_json;
use crate::proto::ladder::Tried;
use crate::wire::log::Cursor;
use crate::wire::rendezvous::Routing;
use crate::wire::session::Grant;

/// What `status` shows beside the machines.
#[derive(Clone, Debug)]
pub(crate) struct View {
    pub(crate) state: &'static str,
    pub(crate) connection: ConnectionId,
    pub(crate) grant: Grant,
    /// Whether the host acts as who asks.
    pub(crate) identity: bool,
    pub(crate) path: Option<PathInfo>,
    pub(crate) tried: Vec<Tried>,
    pub(crate) auth: Option<Auth>,
    pub(crate) host: String,
    pub(crate) own: Routing,
    pub(crate) peer: Routing,
    pub(crate) rendezvous_age: Option<Duration>,
    /// Whether the registration is another process's.
    pub(crate) borrowed: bool,
    pub(crate) refused_writes: u64,
}

/// What of the log is under way.
pub(super) struct Pending {
    /// Entries that are not on the host's disk.
    pub(super) unstable: usize,
    /// Of those, how many are not applied.
    pub(super) unapplied: usize,
    /// The data of these, bytes.
    pub(super) bytes: usize,
}

impl View {
    /// Of a session that has not met its host yet.
    pub(super) fn new(host: String, refused_writes: u64) -> Self {
        let grant = Grant {
            share: String::new(),
            read_only: false,
            run: HostRun(0),
            cursor: Cursor::default(),
            host_name: String::new(),
            host_mac: [0; 6],
        };
        Self {
            state: "reconnecting",
            connection: ConnectionId(0),
            grant,
            identity: false,
            path: None,
            tried: Vec::new(),
            auth: None,
            host,
            own: Routing::default(),
            peer: Routing::default(),
            rendezvous_age: None,
            borrowed: false,
            refused_writes,
        }
    }

    pub(super) fn to_json(&self, pending: Pending) -> Value {
        json!({
            "state": self.state,
            "connection_id": self.connection.0,
            "host": {
                "id": self.host,
                "name": self.grant.host_name,
                "mac": MacAddress(self.grant.host_mac).to_string(),
            },
            "map": if self.identity { "identity" } else { "squash" },
            "path": path_json(self.path.as_ref(), &self.tried),
            "auth": self.auth.map(Auth::to_json),
            "routing": { "own": routing_json(&self.own), "peer": routing_json(&self.peer) },
            "rendezvous": {
                "age_s": self.rendezvous_age.map(|age| age.as_secs_f64()),
                "borrowed": self.borrowed,
            },
            "pending": {
                "entries": pending.unstable,
                "unapplied": pending.unapplied,
                "bytes": pending.bytes,
                "eta_s": (pending.unapplied == 0).then_some(0),
                "errors": self.refused_writes,
            },
        })
    }
}
