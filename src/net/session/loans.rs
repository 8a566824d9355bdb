//! When a session lends its registration to others, and when it needs one of its own.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use super::ClientConfig;
use super::supervisor::Supervisor;
use crate::net::rendezvous::ServerLink;
use crate::proto::path::{Order, Rung, Side};
use crate::proto::session::State;

/// How long there may be no direct path for what was introduced over a loan: most likely UDP is
/// blocked now, and TCP needs a registration of our own.
const RELAYED_MAX: Duration = Duration::from_secs(5);

/// What a session knows of its loan.
#[derive(Debug, Default)]
pub(super) struct Loans {
    /// Whether ours is lent.
    lent: bool,
    /// Whether the match in use was made over another process's registration.
    borrowed: bool,
    /// Since when that has no direct path, or a match of our own was asked for.
    relayed: Option<Instant>,
    /// Whether a match of our own replaces it.
    afresh: bool,
}

/// Where to borrow and to lend, for who wants no more than the usual paths.
pub(super) fn loans_of(config: &ClientConfig) -> Option<PathBuf> {
    let wanted = &config.wanted;
    let usual =
        wanted.order == Order::Auto && wanted.side == Side::Both && wanted.auth_to.is_none();
    config.loans.clone().filter(|_| usual)
}

impl Loans {
    /// Whether a match over this connection is better than one that works.
    pub(super) fn wants(&self, link: &ServerLink) -> bool {
        self.afresh && link.local.is_some()
    }

    /// A match is tried.
    pub(super) fn introduced(&mut self, link: &ServerLink) {
        self.borrowed = link.local.is_none();
        (self.relayed, self.afresh) = (None, false);
    }
}

impl Supervisor {
    /// Lends while the host is reached over UDP, so that borrowers will reach it so as well, and
    /// the key is there.
    pub(super) fn see_to_loans(&mut self, now: Instant) {
        let is_up = matches!(self.machine.state(), State::Up(_));
        let rung = self.core.path().map(|path| path.rung);
        let lends = is_up && rung.is_some_and(|rung| rung.kind() == "udp") && !self.core.is_shut();
        self.lend(lends);
        if !self.loans.borrowed || rung.is_some_and(|rung| rung != Rung::Relay) {
            self.loans.relayed = None;
            return;
        }
        let since = *self.loans.relayed.get_or_insert(now);
        if now.duration_since(since) >= RELAYED_MAX {
            tracing::debug!("no direct path: asking for a match of our own");
            self.loans.relayed = Some(now);
            self.loans.afresh = true;
            for registration in &self.registrations {
                registration.stand_alone();
            }
        }
    }

    /// Lends, or ends what is lent.
    pub(super) fn lend(&mut self, lends: bool) {
        if lends != self.loans.lent {
            self.loans.lent = lends;
            for registration in &self.registrations {
                registration.set_lending(lends);
            }
        }
    }
}
