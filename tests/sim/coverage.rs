//! How often each machine met each event in each state.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use p2pfs::proto::redo::execute::How;
use p2pfs::wire::log::{Outcome, Reason, Refused};

/// Counts by machine, state and event.
#[derive(Clone, Debug, Default)]
pub(crate) struct Coverage(BTreeMap<(&'static str, &'static str, &'static str), u64>);

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

    pub(crate) fn table(&self) -> String {
        let mut table = String::new();
        for ((machine, state, event), count) in &self.0 {
            let _ = writeln!(table, "{machine:10} {state:12} {event:12} {count:>10}");
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
