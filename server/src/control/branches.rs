//! Registrations that share one daemon's connection: each is a daemon's of its own to the matcher
//! and to the relay, and here its messages are wrapped and unwrapped.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use p2pfs::limits::{BRANCHES_MAX, RELAYED_BYTES_MAX};
use p2pfs::proto::rendezvous::matcher::Link;
use p2pfs::wire::branch::Branch;
use p2pfs::wire::rendezvous::{FromServer, Relayed, ToServer};
use tokio::sync::mpsc;
use tokio::task::{AbortHandle, JoinSet};

use super::{Hub, Input, OUTBOX};
use crate::relay::Relay;

/// Messages of all branches that are to be sent.
const WRAPPED: usize = 16;

/// Numbers connections, and the registrations that branch from them.
#[derive(Clone, Debug, Default)]
pub(super) struct Links(Arc<AtomicU64>);

impl Links {
    pub(super) fn next(&self) -> Link {
        Link(self.0.fetch_add(1, Ordering::Relaxed))
    }
}

/// What branches from one connection.
pub(super) struct Branches {
    trunk: Link,
    address: IpAddr,
    links: Links,
    hub: Hub,
    relay: Arc<Relay>,
    /// What is to be sent over the connection.
    out: mpsc::Sender<FromServer>,
    open: BTreeMap<u32, (Link, AbortHandle)>,
    /// The greatest so far.
    newest: Option<u32>,
    /// Dropped with the connection.
    tasks: JoinSet<()>,
}

impl Branches {
    /// None yet; `address` is the connection's, and what is for it comes out.
    pub(super) fn new(
        trunk: Link,
        address: IpAddr,
        links: &Links,
        hub: &Hub,
        relay: &Arc<Relay>,
    ) -> (Self, mpsc::Receiver<FromServer>) {
        let (out, outgoing) = mpsc::channel(WRAPPED);
        let branches = Self {
            trunk,
            address,
            links: links.clone(),
            hub: hub.clone(),
            relay: relay.clone(),
            out,
            open: BTreeMap::new(),
            newest: None,
            tasks: JoinSet::new(),
        };
        (branches, outgoing)
    }

    /// A message of one; what is none ends that one only. `None` while the server ends.
    pub(super) async fn handle(&mut self, wrapped: Branch) -> Option<()> {
        let branch = wrapped.branch;
        while self.tasks.try_join_next().is_some() {}
        self.open.retain(|_, (_, task)| !task.is_finished());
        if self.newest.is_none_or(|newest| newest < branch) {
            self.newest = Some(branch);
            self.begin(branch).await?;
        }
        // an older one is over
        let Some((link, _)) = self.open.get(&branch) else {
            return Some(());
        };
        let link = *link;
        match wrapped.unwrap::<ToServer>() {
            Ok(ToServer::Relayed(datagrams)) if datagrams.bytes.len() <= RELAYED_BYTES_MAX => {
                self.relay.handle_relayed(link, datagrams);
            }
            Ok(ToServer::Relayed(_) | ToServer::Branch(_) | ToServer::EndBranch { .. })
            | Err(_) => {
                tracing::debug!(link = link.0, "no message");
                self.end(branch).await?;
                self.out.send(FromServer::EndBranch { branch }).await.ok()?;
            }
            Ok(message) => self.hub.0.send(Input::Message(link, message)).await.ok()?,
        }
        Some(())
    }

    async fn begin(&mut self, branch: u32) -> Option<()> {
        if self.open.len() >= BRANCHES_MAX {
            return self.out.send(FromServer::EndBranch { branch }).await.ok();
        }
        let link = self.links.next();
        let relayed = self.relay.join(link, self.address);
        let (outbox, outgoing) = mpsc::channel(OUTBOX);
        let (out, relay) = (self.out.clone(), self.relay.clone());
        let carried = carry(branch, outgoing, relayed, out);
        let task = self.tasks.spawn(async move {
            carried.await;
            relay.leave(link);
        });
        self.open.insert(branch, (link, task));
        self.hub.0.send(Input::Branched { link, trunk: self.trunk, outbox }).await.ok()
    }

    /// One is over.
    pub(super) async fn end(&mut self, branch: u32) -> Option<()> {
        let Some((link, task)) = self.open.remove(&branch) else {
            return Some(());
        };
        task.abort();
        self.relay.leave(link);
        self.hub.0.send(Input::Disconnected(link)).await.ok()
    }

    /// The connection is over.
    pub(super) async fn end_all(mut self) {
        while let Some((branch, _)) = self.open.first_key_value() {
            let branch = *branch;
            if self.end(branch).await.is_none() {
                return;
            }
        }
    }
}

/// What is for one, until the matcher ends it.
async fn carry(
    branch: u32,
    mut outgoing: mpsc::Receiver<FromServer>,
    mut relayed: mpsc::Receiver<Relayed>,
    out: mpsc::Sender<FromServer>,
) {
    loop {
        let message = tokio::select! {
            biased;
            message = outgoing.recv() => match message {
                Some(message) => message,
                None => break,
            },
            Some(datagrams) = relayed.recv() => FromServer::Relayed(datagrams),
        };
        let Ok(wrapped) = Branch::wrap(branch, &message) else {
            break;
        };
        if out.send(FromServer::Branch(wrapped)).await.is_err() {
            return;
        }
    }
    // with the connection gone there is nobody to tell
    let _ = out.send(FromServer::EndBranch { branch }).await;
}
