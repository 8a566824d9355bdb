//! How the NAT behaves (RFC 5780), found on the socket that is used.
//!
//! ```text
//!  FilterBoth   change IP and port: an answer gets in     -> endpoint-independent filtering
//!  FilterPort   change the port: an answer gets in        -> address-dependent, else both
//!  MapIp        the other IP, the same port: same mapping -> endpoint-independent mapping
//!  MapBoth      the other IP, the other port: as before   -> address-dependent, else both
//! ```
//!
//! The filter comes first: whoever was sent to may answer from then on, until the NAT forgets.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use crate::limits::STUN_RTO;
use crate::wire::nat::{Filtering, Mapping, NatBehaviour};
use crate::wire::stun::{self, Answered, Transaction};

/// Requests of one step; that all answers are lost by chance is then rare.
const REQUESTS_MAX: u32 = 4;
/// The longest pause within a step.
const RTO_MAX: Duration = Duration::from_millis(500);

/// One discovery.
#[derive(Debug)]
pub(super) struct Discovery {
    server: SocketAddr,
    /// Differs from `server` in IP and port.
    other: SocketAddr,
    mapped: SocketAddr,
    found: NatBehaviour,
    step: Step,
    transaction: Transaction,
    requests: u32,
    next: Instant,
    rto: Duration,
}

/// What is asked.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Step {
    FilterBoth,
    FilterPort,
    MapIp,
    /// With what the step before was answered.
    MapBoth(SocketAddr),
}

/// What comes of a step.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Next {
    /// Nothing was due, or it was not ours.
    Wait,
    /// The next step wants a transaction of its own.
    Step,
    /// This is all.
    Done(NatBehaviour),
}

impl Discovery {
    /// A discovery from a first answer on: `server` sees us at `mapped`. `filtering`: what is known
    /// already, where a new mapping is no new NAT.
    pub(super) fn new(
        server: SocketAddr,
        other: SocketAddr,
        mapped: SocketAddr,
        filtering: Option<Filtering>,
        transaction: Transaction,
        now: Instant,
    ) -> Self {
        let step = if filtering.is_none() { Step::FilterBoth } else { Step::MapIp };
        let found = NatBehaviour { filtering, ..NatBehaviour::default() };
        let (requests, rto) = (0, STUN_RTO);
        Self { server, other, mapped, found, step, transaction, requests, next: now, rto }
    }

    /// Begins the step that the last one led to.
    pub(super) fn begin(&mut self, transaction: Transaction, now: Instant) {
        self.transaction = transaction;
        (self.requests, self.next, self.rto) = (0, now, STUN_RTO);
    }

    pub(super) fn wake(&self) -> Instant {
        self.next
    }

    /// The request that is due; a step that stays without an answer ends in [`Self::give_up`].
    pub(super) fn due(&mut self, now: Instant) -> Option<(SocketAddr, Vec<u8>)> {
        if self.next > now || self.requests == REQUESTS_MAX {
            return None;
        }
        self.requests += 1;
        self.next = now + self.rto;
        self.rto = (self.rto * 2).min(RTO_MAX);
        let change = |ip| stun::change_request(self.transaction, ip, true);
        let other_ip = SocketAddr::new(self.other.ip(), self.server.port());
        Some(match self.step {
            Step::FilterBoth => (self.server, change(true)),
            Step::FilterPort => (self.server, change(false)),
            Step::MapIp => (other_ip, stun::binding_request(self.transaction)),
            Step::MapBoth(_) => (self.other, stun::binding_request(self.transaction)),
        })
    }

    /// Takes an answer.
    pub(super) fn handle_answer(&mut self, answered: &Answered, from: SocketAddr) -> Next {
        let expected = match self.step {
            Step::FilterBoth | Step::MapBoth(_) => self.other,
            Step::FilterPort => SocketAddr::new(self.server.ip(), self.other.port()),
            Step::MapIp => SocketAddr::new(self.other.ip(), self.server.port()),
        };
        if answered.transaction != self.transaction || from != expected {
            return Next::Wait;
        }
        match (self.step, answered.mapped) {
            (Step::FilterBoth, _) => self.filters(Filtering::EndpointIndependent),
            (Step::FilterPort, _) => self.filters(Filtering::AddressDependent),
            (Step::MapIp, Some(mapped)) if mapped != self.mapped => {
                self.step = Step::MapBoth(mapped);
                Next::Step
            }
            (Step::MapIp, Some(_)) => self.maps(Some(Mapping::EndpointIndependent)),
            (Step::MapBoth(before), Some(mapped)) if mapped == before => {
                self.maps(Some(Mapping::AddressDependent))
            }
            (Step::MapBoth(_), Some(_)) => self.maps(Some(Mapping::AddressAndPortDependent)),
            // the server refused: it has no other address after all
            (Step::MapIp | Step::MapBoth(_), None) => self.maps(None),
        }
    }

    /// Ends a step that stayed without an answer.
    pub(super) fn give_up(&mut self, now: Instant) -> Next {
        if self.requests < REQUESTS_MAX || self.next > now {
            return Next::Wait;
        }
        match self.step {
            Step::FilterBoth => {
                self.step = Step::FilterPort;
                Next::Step
            }
            Step::FilterPort => self.filters(Filtering::AddressAndPortDependent),
            Step::MapIp | Step::MapBoth(_) => self.maps(None),
        }
    }

    fn filters(&mut self, filtering: Filtering) -> Next {
        self.found.filtering = Some(filtering);
        self.step = Step::MapIp;
        Next::Step
    }

    fn maps(&mut self, mapping: Option<Mapping>) -> Next {
        self.found.mapping = mapping;
        Next::Done(self.found)
    }
}
