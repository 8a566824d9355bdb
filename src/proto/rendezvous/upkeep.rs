//! The repeated registration, the same for both sides.

use std::time::{Duration, Instant};

use crate::identity::{Hidden, hmac};
use crate::limits::{RENDEZVOUS_IDLE_INTERVAL, RENDEZVOUS_INTERVAL};
use crate::proto::PeerMisbehaved;

/// After this long without a confirmation the connection is taken for dead.
const SILENCE: Duration = Duration::from_secs(10);

/// When to refresh, and whether the server still answers.
#[derive(Debug)]
pub(super) struct Upkeep {
    in_use: bool,
    link: Option<Link>,
}

#[derive(Debug)]
struct Link {
    sent: u64,
    confirmed: u64,
    next: Instant,
    /// The end of the server's time for the oldest refresh that it has not confirmed.
    silent_at: Option<Instant>,
}

/// What is due.
#[derive(Debug, Eq, PartialEq)]
pub(super) enum Due {
    Refresh(u64),
    Silent,
}

impl Upkeep {
    pub(super) fn new(in_use: bool) -> Self {
        Self { in_use, link: None }
    }

    pub(super) fn connected(&mut self, now: Instant) {
        self.link = Some(Link { sent: 0, confirmed: 0, next: now, silent_at: None });
    }

    pub(super) fn disconnected(&mut self) {
        self.link = None;
    }

    pub(super) fn is_connected(&self) -> bool {
        self.link.is_some()
    }

    pub(super) fn set_in_use(&mut self, in_use: bool, now: Instant) {
        self.in_use = in_use;
        let interval = self.interval();
        if let Some(link) = &mut self.link {
            link.next = link.next.min(now + interval);
        }
    }

    /// Refreshes now, since there is something new to say.
    pub(super) fn hurry(&mut self, now: Instant) {
        if let Some(link) = &mut self.link {
            link.next = link.next.min(now);
        }
    }

    pub(super) fn handle_confirmed(
        &mut self,
        number: u64,
        now: Instant,
    ) -> Result<(), PeerMisbehaved> {
        let link = self.link.as_mut().ok_or(PeerMisbehaved::Unasked)?;
        if number <= link.confirmed || number > link.sent {
            return Err(PeerMisbehaved::Unasked);
        }
        link.confirmed = number;
        link.silent_at = (number < link.sent).then(|| now + SILENCE);
        Ok(())
    }

    /// What is due now; to be asked until `None`.
    pub(super) fn due(&mut self, now: Instant) -> Option<Due> {
        let interval = self.interval();
        let link = self.link.as_mut()?;
        if link.silent_at.is_some_and(|at| at <= now) {
            self.link = None;
            return Some(Due::Silent);
        }
        if link.next > now {
            return None;
        }
        link.sent += 1;
        link.next = now + interval;
        link.silent_at.get_or_insert(now + SILENCE);
        Some(Due::Refresh(link.sent))
    }

    pub(super) fn wake(&self) -> Option<Instant> {
        let link = self.link.as_ref()?;
        Some(link.silent_at.map_or(link.next, |at| at.min(link.next)))
    }

    fn interval(&self) -> Duration {
        if self.in_use { RENDEZVOUS_INTERVAL } else { RENDEZVOUS_IDLE_INTERVAL }
    }
}

/// Numbers that are used once: a keyed hash of a counter.
#[derive(Debug)]
pub(super) struct Draw {
    seed: Hidden,
    drawn: u64,
}

impl Draw {
    pub(super) fn new(seed: [u8; 32]) -> Self {
        Self { seed: Hidden(seed), drawn: 0 }
    }

    pub(super) fn bytes<const N: usize>(&mut self) -> [u8; N] {
        self.drawn += 1;
        let mut bytes = [0; N];
        bytes.copy_from_slice(&hmac(&self.seed.0, &self.drawn.to_le_bytes())[..N]);
        bytes
    }
}
