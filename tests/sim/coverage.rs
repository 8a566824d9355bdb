//! How often each machine met each event in each state.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use p2pfs::proto::redo::execute::How;
use p2pfs::wire::lease::{LeaseKind, LeaseRequest, Notice};
use p2pfs::wire::log::{LogAck, LogEntry, Mutation, Outcome, Promise, Reason, Refused, Sent};

use super::world::World;

/// A machine, its state, and what happened to it.
pub(crate) type Pair = (&'static str, &'static str, &'static str);

/// Counts by machine, state and event.
#[derive(Clone, Debug, Default)]
pub(crate) struct Coverage(BTreeMap<Pair, u64>);

impl Coverage {
    pub(crate) fn count(
        &mut self,
        machine: &'static str,
        state: &'static str,
        event: &'static str,
    ) {
        *self.0.entry((machine, state, event)).or_default() += 1;
    }

    pub(crate) fn add(&mut self, other: &Self) {
        for (key, count) in &other.0 {
            *self.0.entry(*key).or_default() += count;
        }
    }

    /// Which of these never happened.
    pub(crate) fn missing<'a>(&self, expected: &'a [Pair]) -> Vec<&'a Pair> {
        expected.iter().filter(|pair| !self.0.contains_key(*pair)).collect()
    }

    pub(crate) fn table(&self) -> String {
        let mut table = String::new();
        for ((machine, state, event), count) in &self.0 {
            let _ = writeln!(table, "{machine:10} {state:12} {event:18} {count:>10}");
        }
        table
    }
}

pub(crate) fn how(how: &How) -> &'static str {
    match how {
        How::First => "first",
        How::Resumed { .. } => "resumed",
        How::Again { told: None } => "again",
        How::Again { told: Some(_) } => "again, told",
        How::Passed { .. } => "passed",
        How::Refused(_) => "refused",
    }
}

pub(crate) fn outcome(result: &Result<Outcome, Refused>) -> &'static str {
    match result {
        Ok(_) => "done",
        Err(Refused { reason: Reason::System, .. }) => "system",
        Err(Refused { reason: Reason::Conflict, .. }) => "conflict",
        Err(Refused { reason: Reason::SetAside { .. }, .. }) => "set aside",
        Err(Refused { reason: Reason::Unknown, .. }) => "unknown",
    }
}

pub(crate) fn sent(entry: &LogEntry) -> &'static str {
    match (&entry.sent, &entry.change.mutation, entry.promise) {
        (_, Mutation::Nothing, _) => "nothing",
        (Sent::First, _, Promise::Accepted) => "first, accepted",
        (Sent::First, _, Promise::Awaited) => "first, awaited",
        (Sent::Again { .. }, ..) => "again",
        (Sent::Passed { .. }, ..) => "passed",
    }
}

impl World {
    /// A log hears of one of its entries.
    pub(crate) fn count_ack(&mut self, client: usize, ack: &LogAck) {
        let log = &self.clients[client].log;
        let (seq, event) = match ack {
            LogAck::Applied { seq, result } => (*seq, outcome(result)),
            LogAck::Stable { upto } => (*upto, "stable"),
            LogAck::Lost { stable, .. } => (stable.next(), "lost"),
        };
        let state = log.state_of(seq);
        self.coverage("log", state, event);
    }

    /// A holder hears of the lease of a node.
    pub(crate) fn count_notice(&mut self, client: usize, notice: &Notice) {
        let holder = &self.clients[client].holder;
        let (state, event) = match notice {
            Notice::Run { standing: true, .. } => ("any", "run"),
            Notice::Run { standing: false, .. } => ("any", "run, not standing"),
            Notice::Granted { lease, .. } => (holder.state_of(lease.node), "granted"),
            Notice::Changed { node, .. } => (holder.state_of(*node), "changed"),
            Notice::Recall { keep: None, .. } => ("any", "recall"),
            Notice::Recall { keep: Some(_), .. } => ("any", "recall, keep"),
            Notice::Refused { .. } => ("any", "refused"),
            Notice::Void { .. } => ("any", "void"),
            Notice::Reclaimed { held: true, .. } => ("any", "reclaimed"),
            Notice::Reclaimed { held: false, .. } => ("any", "not reclaimed"),
            _ => return,
        };
        self.coverage("holder", state, event);
    }

    /// A grantor is asked about a node.
    pub(crate) fn count_request(&mut self, request: &LeaseRequest) {
        let Some(process) = &self.host.process else { return };
        let (state, event) = match request {
            LeaseRequest::Acquire { node, kind: LeaseKind::Shared, .. } => {
                (process.grantor.state_of(*node), "acquire shared")
            }
            LeaseRequest::Acquire { node, .. } => {
                (process.grantor.state_of(*node), "acquire exclusive")
            }
            LeaseRequest::Return { keep: None, .. } => ("any", "return"),
            LeaseRequest::Return { keep: Some(_), .. } => ("any", "return, keep"),
            LeaseRequest::Reclaim { .. } => ("any", "reclaim"),
            _ => return,
        };
        self.coverage("grantor", state, event);
    }
}
