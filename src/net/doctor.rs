//! `doctor`: what works from here, what does not, and what to do about it.
//!
//! ```text
//!  a daemon's own checks (FUSE, shares, ...) --\
//!  network   each server over TLS, STUN by UDP  > Report -> text for people, JSON for programs
//!  rungs     which of the ladder can work       |
//!  second    what `stun-client` says, apart  --/
//! ```

pub mod machine;
mod network;
mod rungs;
mod second;

use std::fmt::Write;
use std::net::SocketAddr;

use serde_json::{Value, json};

use crate::address::ServerAddress;
use crate::failure::{Code, Failure};

pub use self::network::Network;

/// The subcommand by which `doctor` starts its own program as the second opinion; not for people.
pub const SECOND_OPINION: &str = "second-opinion";

/// Looks at the servers and at the network in between, for the program called `program`.
///
/// # Errors
///
/// The process cannot start.
pub fn examine(servers: &[ServerAddress], program: &str) -> Result<Network, Failure> {
    Ok(runtime()?.block_on(network::examine(servers, program)))
}

/// Prints the second opinion: what `stun-client` says, in this process and nothing else.
///
/// # Errors
///
/// The process cannot start.
pub fn second_opinion(server: SocketAddr) -> Result<(), Failure> {
    println!("{}", runtime()?.block_on(second::answer(server)));
    Ok(())
}

fn runtime() -> Result<tokio::runtime::Runtime, Failure> {
    tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|error| {
        let hint = "see that this user may open files (ulimit -n)";
        Failure::new(Code::Internal, format!("cannot start: {error}"), hint)
    })
}

/// One thing that was looked at.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Check {
    /// For programs.
    pub name: &'static str,
    /// How it is.
    pub state: State,
    /// What was found, in plain words.
    pub what: String,
    /// What to do, where there is something to do.
    pub hint: Option<String>,
}

/// How a thing is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum State {
    /// As it should be.
    Works,
    /// Worth knowing; things work without.
    Note,
    /// Needed, and not there.
    Missing,
}

/// All that was found.
#[derive(Clone, Debug)]
pub struct Report {
    checks: Vec<Check>,
    network: Value,
    daemon: Value,
}

impl Check {
    /// It is as it should be.
    pub fn works(name: &'static str, what: impl Into<String>) -> Self {
        Self { name, state: State::Works, what: what.into(), hint: None }
    }

    /// It is worth knowing.
    pub fn note(name: &'static str, what: impl Into<String>, hint: impl Into<String>) -> Self {
        let hint = Some(hint.into()).filter(|hint| !hint.is_empty());
        Self { name, state: State::Note, what: what.into(), hint }
    }

    /// It is missing.
    pub fn missing(name: &'static str, what: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { state: State::Missing, ..Self::note(name, what, hint) }
    }
}

impl State {
    fn as_str(self) -> &'static str {
        match self {
            Self::Works => "ok",
            Self::Note => "note",
            Self::Missing => "missing",
        }
    }
}

impl Report {
    /// The daemon's own checks, then the network's; `daemon`: the status of a running one.
    pub fn new(mut checks: Vec<Check>, network: Network, daemon: Value) -> Self {
        checks.extend(network.checks);
        Self { checks, network: network.facts, daemon }
    }

    /// Whether nothing that is needed is missing.
    pub fn is_healthy(&self) -> bool {
        self.checks.iter().all(|check| check.state != State::Missing)
    }

    /// For programs.
    pub fn to_json(&self) -> Value {
        let checks: Vec<Value> = self
            .checks
            .iter()
            .map(|check| {
                json!({
                    "name": check.name,
                    "state": check.state.as_str(),
                    "what": check.what,
                    "hint": check.hint,
                })
            })
            .collect();
        json!({
            "ok": self.is_healthy(),
            "checks": checks,
            "network": self.network,
            "daemon": self.daemon,
        })
    }

    /// For people.
    pub fn to_text(&self) -> String {
        let mut text = String::new();
        for check in &self.checks {
            let _ = writeln!(text, "{:8} {}", check.state.as_str(), check.what);
            if let Some(hint) = &check.hint {
                let _ = writeln!(text, "{:8} -> {hint}", "");
            }
        }
        text.push_str(if self.is_healthy() {
            "nothing that is needed is missing\n"
        } else {
            "something that is needed is missing: see the lines that begin so\n"
        });
        text
    }

    /// Prints it, and ends the program with 1 if something that is needed is missing.
    pub fn finish(&self, as_json: bool) {
        use std::io::Write;

        let text = if as_json { format!("{:#}\n", self.to_json()) } else { self.to_text() };
        // nobody may be reading
        let _ = std::io::stdout().lock().write_all(text.as_bytes());
        if !self.is_healthy() {
            std::process::exit(1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_said_with_a_next_step_and_fails() {
        let network = Network { checks: Vec::new(), facts: Value::Null };
        let fine = Check::works("a", "a works");
        let note = Check::note("b", "b is slow", "");
        let report = Report::new(vec![fine.clone(), note.clone()], network.clone(), Value::Null);
        assert!(report.is_healthy());
        assert_eq!(
            report.to_text(),
            "ok       a works\nnote     b is slow\nnothing that is needed is missing\n"
        );
        let missing = Check::missing("c", "no c", "buy one");
        let report = Report::new(vec![fine, note, missing], network, Value::Null);
        assert!(!report.is_healthy());
        assert!(report.to_text().contains("missing  no c\n         -> buy one\n"));
        assert_eq!(report.to_json()["ok"], false);
        assert_eq!(report.to_json()["checks"][2]["hint"], "buy one");
    }
}
