//! What the clients of a world do, and what becomes of it.

use crate::id::{LeaseId, NodeId, Seq};
use crate::proto::lease::grantor::User;
use crate::proto::lease::holder::Output;
use crate::wire::lease::LeaseKind;

use super::world::{Entry, Event, NODES, ToClient, ToHost, World, node, session, version};

impl World {
    pub(super) fn flushed(&mut self, client: usize, lease: LeaseId, node: NodeId) {
        let local = self.local(client);
        if self.clients[client].holder.may_flush(node, local) == Some(lease) && self.dice.one_in(2)
        {
            self.accept(client, node, lease);
        }
        self.clients[client].holder.handle_flushed(lease, local);
    }

    pub(super) fn accept(&mut self, client: usize, node: NodeId, lease: LeaseId) {
        let seq = self.append(client, node, Some(lease));
        self.clients[client].holder.accepted(lease, seq);
        self.see("accepted");
    }

    pub(super) fn append(&mut self, client: usize, node: NodeId, lease: Option<LeaseId>) -> Seq {
        let foreign = self.host.foreign(User::Session(session(client)), node, 0);
        let holder = &mut self.clients[client];
        let seq = holder.next_seq;
        holder.next_seq = seq.next();
        let entry = Entry { seq, node, lease, foreign };
        holder.entries.insert(seq, entry.clone());
        *holder.touched.entry(node).or_default() += 1;
        holder.cache.remove(&node);
        if holder.alive {
            self.send_to_host(client, ToHost::Entry(entry));
        }
        seq
    }

    pub(super) fn client_hears(&mut self, client: usize, message: ToClient) {
        let local = self.local(client);
        let holder = &mut self.clients[client];
        match message {
            ToClient::Notice(notice) => holder.holder.handle_notice(notice, local).unwrap(),
            ToClient::Applied { seq, version } => {
                if let Some(entry) = holder.entries.remove(&seq) {
                    *holder.touched.entry(entry.node).or_default() += 1;
                    holder.holder.handle_applied(seq, version, local);
                }
            }
            ToClient::Data { node, value, lease, began, under } => {
                if let Some(lease) = lease {
                    holder.holder.handle_lease(lease, version(value), local).unwrap();
                }
                self.drain();
                let holder = &mut self.clients[client];
                let held = holder.holder.may_read(node, local);
                let covered =
                    held.is_some() && (held == lease.map(|lease| lease.id) || held == under);
                let busy = holder.entries.values().any(|entry| entry.node == node);
                if covered && !busy && holder.touched.get(&node).copied().unwrap_or(0) == began {
                    holder.cache.insert(node, (held.unwrap(), value));
                    self.see("cached");
                }
            }
        }
    }

    pub(super) fn client_output(&mut self, client: usize, output: Output) {
        match output {
            Output::Send(request) => {
                if self.clients[client].alive {
                    self.send_to_host(client, ToHost::Lease(request));
                }
            }
            Output::Answered { lease, .. } => {
                self.see(if lease.is_some() { "granted" } else { "refused" });
            }
            Output::Flush { lease, node } => {
                self.see("flush");
                let slow = self.dice.one_in(10);
                let delay = self.dice.millis(if slow { 30_000 } else { 500 });
                if !(self.chaos.stuck_flushes && self.dice.one_in(10)) {
                    self.after(delay, Event::Flushed { client, lease, node });
                }
            }
            Output::Drop { node } => {
                self.clients[client].cache.remove(&node);
                *self.clients[client].touched.entry(node).or_default() += 1;
            }
            Output::Lost { lease, .. } => {
                self.see("lost");
                assert!(self.clients[client].lost.insert(lease), "lost twice");
            }
        }
    }

    pub(super) fn act(&mut self, client: usize) {
        if self.quiet {
            return;
        }
        let delay = self.dice.millis(1500);
        self.after(delay, Event::Act { client });
        let local = self.local(client);
        let node = node(self.dice.below(NODES));
        let kind = if self.dice.one_in(2) { LeaseKind::Shared } else { LeaseKind::Exclusive };
        let holder = &mut self.clients[client];
        match self.dice.below(8) {
            0..=2 => {
                holder.holder.expect(local);
                let under = holder.holder.may_read(node, local);
                let began = holder.touched.get(&node).copied().unwrap_or(0);
                if holder.alive {
                    self.send_to_host(client, ToHost::Read { node, began, under, want: kind });
                }
            }
            3 => {
                holder.holder.acquire(node, kind, local);
            }
            4..=6 => match holder.holder.may_write(node, local) {
                Some(lease) => self.accept(client, node, lease),
                None if self.dice.one_in(4) => {
                    self.append(client, node, None);
                }
                None => {}
            },
            _ => {
                if let Some(lease) = holder.holder.may_read(node, local)
                    && self.dice.one_in(4)
                {
                    holder.holder.release(lease, local);
                }
            }
        }
    }
}
