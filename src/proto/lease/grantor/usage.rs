//! Uses: waiting for leases of others, and what they forbid while they last.

use std::collections::BTreeSet;
use std::time::Instant;

use crate::id::{LeaseId, NodeId, SessionId};
use crate::wire::lease::{LeaseKind, Notice};

use super::state::{Recall, blocks};
use super::{Grantor, Output, Use, User};

/// A use that waits.
#[derive(Debug)]
pub(super) struct Waiting<T> {
    user: User,
    uses: Vec<(NodeId, Use)>,
    ticket: T,
}

impl<T> Grantor<T> {
    pub(super) fn enqueue(&mut self, user: User, uses: &[(NodeId, Use)], ticket: T, now: Instant) {
        if self.clear(user, uses, now) {
            self.begin(user, uses);
            self.outputs.push_back(Output::Go(ticket));
            return;
        }
        let number = self.next_waiting;
        self.next_waiting += 1;
        for &(node, _) in uses {
            self.nodes.entry(node).or_default().waiting.insert(number);
        }
        self.waiting.insert(number, Waiting { user, uses: uses.to_vec(), ticket });
    }

    /// Recalls what stands in the way; whether nothing does.
    fn clear(&mut self, user: User, uses: &[(NodeId, Use)], now: Instant) -> bool {
        let User::Session(session) = user else {
            return true;
        };
        if !self.is_let_in(user, uses) {
            return false;
        }
        let mut clear = true;
        for &(node, usage) in uses {
            let keep = if usage == Use::Read { Some(LeaseKind::Shared) } else { None };
            let Some(known) = self.nodes.get(&node) else {
                continue;
            };
            let others = known.leases.iter().filter(|(holder, _)| *holder != session);
            let others: Vec<(SessionId, LeaseId)> = others.copied().collect();
            for (holder, lease) in others {
                clear &= !self.recall_for(holder, lease, usage, keep, now);
            }
        }
        clear
    }

    /// Whether the lease blocks the use; then it is recalled, once, or again if less may be kept.
    fn recall_for(
        &mut self,
        holder: SessionId,
        lease: LeaseId,
        usage: Use,
        keep: Option<LeaseKind>,
        now: Instant,
    ) -> bool {
        let Some(known) = self.sessions.get_mut(&holder) else {
            return false;
        };
        let Some(held) = known.leases.get_mut(&lease) else {
            return false;
        };
        if !blocks(held.kind, usage) {
            return false;
        }
        let at = held.recall.map_or(now, |recall| recall.at);
        if held.recall.is_none_or(|recall| keep < recall.keep) {
            held.recall = Some(Recall { at, keep });
            known.recalls.insert((at, lease));
            self.notify(holder, Notice::Recall { lease, keep });
        }
        true
    }

    /// A use begins: what others have read meanwhile is old, and so are leases of theirs that have
    /// lapsed, claims that are being compared, and looks that were to bring leases.
    fn begin(&mut self, user: User, uses: &[(NodeId, Use)]) {
        for &(id, usage) in uses {
            self.nodes.entry(id).or_default().begin(user, usage);
            if usage == Use::Change {
                self.overtake(id, user);
            }
        }
    }

    pub(super) fn overtake(&mut self, id: NodeId, by: User) {
        let Some(node) = self.nodes.get_mut(&id) else {
            return;
        };
        let is_other = |session: SessionId| User::Session(session) != by;
        let lapsed: Vec<_> = node.lapsed.extract_if(.., |(other, _)| is_other(*other)).collect();
        let claims: Vec<_> =
            node.claims.iter().filter(|(other, _)| is_other(*other)).copied().collect();
        let mut refused = Vec::new();
        for look in &mut node.looks {
            look.fresh = false;
            refused.extend(look.asked.extract_if(.., |asked| is_other(asked.session)));
        }
        for (session, lease) in lapsed {
            if let Some(known) = self.sessions.get_mut(&session) {
                known.lapsed.remove(&lease);
            }
        }
        for (session, lease) in claims {
            self.take_claim(session, lease);
            self.notify(session, Notice::Reclaimed { lease, held: false });
        }
        for asked in refused {
            self.notify(asked.session, Notice::Refused { request: asked.request });
        }
    }

    /// Whether a use of somebody else waits that would have to wait for the lease, too.
    pub(super) fn waiting_forbids(&self, session: SessionId, id: NodeId, kind: LeaseKind) -> bool {
        let waiting = self.nodes.get(&id).into_iter().flat_map(|node| &node.waiting);
        waiting.filter_map(|number| self.waiting.get(number)).any(|waiting| {
            waiting.user != User::Session(session)
                && waiting.uses.iter().any(|&(node, usage)| node == id && blocks(kind, usage))
        })
    }

    /// Something that stood in the way of uses of the object may be gone.
    pub(super) fn retry(&mut self, node: NodeId, now: Instant) {
        let waiting = self.nodes.get(&node).map(|node| node.waiting.clone()).unwrap_or_default();
        self.retry_these(&waiting, now);
        self.tidy(node);
    }

    pub(super) fn retry_all(&mut self, now: Instant) {
        let waiting = self.waiting.keys().copied().collect();
        self.retry_these(&waiting, now);
    }

    fn retry_these(&mut self, numbers: &BTreeSet<u64>, now: Instant) {
        for &number in numbers {
            let Some(waiting) = self.waiting.remove(&number) else {
                continue;
            };
            if self.clear(waiting.user, &waiting.uses, now) {
                self.leave_queues(number, &waiting.uses);
                self.begin(waiting.user, &waiting.uses);
                self.outputs.push_back(Output::Go(waiting.ticket));
            } else {
                self.waiting.insert(number, waiting);
            }
        }
    }

    fn leave_queues(&mut self, number: u64, uses: &[(NodeId, Use)]) {
        for (node, _) in uses {
            if let Some(node) = self.nodes.get_mut(node) {
                node.waiting.remove(&number);
            }
        }
    }

    /// Drops the uses of a session that wait.
    pub(super) fn drop_waiting(&mut self, session: SessionId) {
        let gone = |waiting: &Waiting<T>| waiting.user == User::Session(session);
        let numbers: Vec<u64> = self
            .waiting
            .iter()
            .filter(|(_, waiting)| gone(waiting))
            .map(|(&number, _)| number)
            .collect();
        for number in numbers {
            if let Some(waiting) = self.waiting.remove(&number) {
                self.leave_queues(number, &waiting.uses);
                for (node, _) in waiting.uses {
                    self.tidy(node);
                }
            }
        }
    }
}
