//! One side's way to the relay by UDP: proved, kept, and given up when nothing comes back.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crate::identity::Hidden;
use crate::limits::RENDEZVOUS_INTERVAL;
use crate::wire::relay::{BIND_BYTES, Bind, BindKind, RelayGrant, RelayId};

/// Between two binds that are not answered: the first time, and the longest.
const RETRY: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));
/// A binding is no longer used when so many binds in a row stay unanswered.
const UNANSWERED_MAX: u32 = 3;

/// The machine.
#[derive(Debug)]
pub struct Binding {
    id: RelayId,
    token: Hidden,
    cookie: [u8; 16],
    bound: bool,
    unanswered: u32,
    next: Instant,
    outputs: VecDeque<Output>,
}

/// What the driver is to do.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Output {
    /// Send this to the relay.
    Transmit([u8; BIND_BYTES]),
    /// UDP reaches the relay, or no longer does.
    Bound(bool),
}

impl Binding {
    /// Starts to bind.
    pub fn new(grant: &RelayGrant, now: Instant) -> Self {
        Self {
            id: grant.id,
            token: grant.token.hidden(),
            cookie: [0; 16],
            bound: false,
            unanswered: 0,
            next: now,
            outputs: VecDeque::new(),
        }
    }

    /// A datagram of the relay; what does not verify changes nothing.
    pub fn handle_datagram(&mut self, datagram: &[u8], now: Instant) {
        let Some(bind) = Bind::open(datagram, &self.token.0).filter(|bind| bind.id == self.id)
        else {
            return;
        };
        match bind.kind {
            BindKind::Bind => {}
            BindKind::Challenge if bind.cookie == self.cookie => {}
            BindKind::Challenge => {
                self.cookie = bind.cookie;
                self.send(now);
            }
            BindKind::Bound if bind.cookie == self.cookie => {
                self.unanswered = 0;
                self.next = now + RENDEZVOUS_INTERVAL;
                if !self.bound {
                    self.bound = true;
                    self.outputs.push_back(Output::Bound(true));
                }
            }
            BindKind::Bound => {}
        }
    }

    /// The relay is wanted now, and may not know our address any more.
    pub fn check(&mut self, now: Instant) {
        self.unanswered = 0;
        self.send(now);
    }

    /// Whether UDP reaches the relay.
    pub fn is_bound(&self) -> bool {
        self.bound
    }

    /// A bind may be due.
    pub fn handle_timeout(&mut self, now: Instant) {
        if self.next > now {
            return;
        }
        if self.bound && self.unanswered >= UNANSWERED_MAX {
            self.bound = false;
            self.outputs.push_back(Output::Bound(false));
        }
        self.send(now);
    }

    /// When [`Self::handle_timeout`] wants to be called.
    pub fn poll_timeout(&self) -> Option<Instant> {
        Some(self.next)
    }

    /// What to do next.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    fn send(&mut self, now: Instant) {
        let bind = Bind { kind: BindKind::Bind, id: self.id, cookie: self.cookie };
        self.outputs.push_back(Output::Transmit(bind.seal(&self.token.0)));
        let pause = RETRY.0 * 2_u32.saturating_pow(self.unanswered.min(16));
        self.next = now + pause.min(RETRY.1);
        self.unanswered = self.unanswered.saturating_add(1);
    }
}
