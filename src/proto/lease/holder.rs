//! The client's half: what may be answered and accepted here, and giving it back.
//!
//! # The term
//!
//! All leases are valid until the sending of the last answered renewal, plus a term, minus a 128th
//! of it for clocks that do not run alike. A renewal is sent as soon as a connection's
//! [`Notice::Run`] has come, before the first [`LeaseRequest::Acquire`], and every third of a term
//! while leases are held or asked for. A lease that arrives before a renewal is answered is not
//! used until then.
//!
//! # Numbers
//!
//! A number lives once: unknown, held, dead. Leases come along with answers, in any order with the
//! notices; so a number that is recalled before it is known is dead, the recall is answered at
//! once, and the lease, when it arrives, is given back. What a number permits never grows: more is
//! another number, which replaces the old one here (and the old one is returned).
//!
//! # Giving back
//!
//! Every [`LeaseRequest::Return`] is said again on the next connection until a renewal that was
//! sent after it is answered. [`Notice::Changed`] and [`Notice::Void`] are confirmed by a `Return`
//! of the number that they name, so that the grantor can say them again.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Instant;

use crate::id::{HostRun, LeaseId, NodeId, RequestId, Seq};
use crate::limits::LEASE_TERM;
use crate::proto::PeerMisbehaved;
use crate::wire::lease::{Lease, LeaseKind, LeaseRequest, Notice, Version};

mod back;
mod dead;
mod run;
mod term;

use dead::Dead;
use term::Term;

/// Requests without an answer.
const ASKED_MAX: usize = 1024;

/// The leases of one session.
#[derive(Debug)]
pub struct Holder {
    link: Link,
    /// Whose numbers and term these are.
    run: Option<HostRun>,
    /// Whether that run is known to have got everything that is reclaimed from it.
    settled: Settled,
    term: Term,
    /// Until when leases of an earlier run last, while they are claimed.
    claims_until: Option<Instant>,
    leases: BTreeMap<LeaseId, Held>,
    nodes: BTreeMap<NodeId, LeaseId>,
    /// Over, but with entries on the way that were accepted under them.
    lost: BTreeMap<LeaseId, LostLease>,
    entries: BTreeMap<Seq, Vec<LeaseId>>,
    dead: Dead,
    /// Returns that the host may not have got: with the renewal whose answer proves it.
    returned: VecDeque<Returned>,
    asked: BTreeMap<RequestId, (NodeId, LeaseKind)>,
    next_request: u64,
    outputs: VecDeque<Output>,
}

/// What the driver is to do, in this order: what comes after a [`Output::Drop`] is not sent before
/// the drop is complete.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Output {
    /// Put it on the lease stream of the connection.
    Send(LeaseRequest),
    /// A lease is there, or not: whoever asked looks again.
    Answered {
        /// Which request.
        request: RequestId,
        /// What came.
        lease: Option<Lease>,
    },
    /// Have the kernel hand over what it holds dirty of the node, then
    /// [`Holder::handle_flushed`]; what it hands over is still accepted under the lease.
    Flush {
        /// Which lease.
        lease: LeaseId,
        /// Which node.
        node: NodeId,
    },
    /// Forget what was cached under the lease, here and in the kernel.
    Drop {
        /// Which node.
        node: NodeId,
    },
    /// The lease is over before everything that was accepted under it was applied: the host decides
    /// by what has become of the object.
    Lost {
        /// Which lease.
        lease: LeaseId,
        /// Which node.
        node: NodeId,
    },
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Link {
    Down,
    /// The host has not said yet which run it is.
    Greeting,
    Up,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Settled {
    No,
    /// When this renewal is answered.
    By(u64),
    Yes,
}

#[derive(Debug)]
struct Held {
    node: NodeId,
    kind: LeaseKind,
    version: Version,
    state: State,
    /// Of an earlier run, which this one has not confirmed.
    claimed: bool,
    pending: BTreeSet<Seq>,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum State {
    Usable,
    /// Recalled; the kernel still hands over.
    Flushing {
        keep: Option<LeaseKind>,
    },
    /// Recalled; entries are on the way.
    Draining {
        keep: Option<LeaseKind>,
    },
}

#[derive(Debug)]
struct LostLease {
    node: NodeId,
    kind: LeaseKind,
    version: Version,
    claimed: bool,
    pending: BTreeSet<Seq>,
}

#[derive(Clone, Copy, Debug)]
struct Returned {
    proof: u64,
    lease: LeaseId,
    keep: Option<LeaseKind>,
}

impl Holder {
    /// Without leases, without a connection.
    pub fn new(_now: Instant) -> Self {
        Self {
            link: Link::Down,
            run: None,
            settled: Settled::No,
            term: Term::new(LEASE_TERM),
            claims_until: None,
            leases: BTreeMap::new(),
            nodes: BTreeMap::new(),
            lost: BTreeMap::new(),
            entries: BTreeMap::new(),
            dead: Dead::default(),
            returned: VecDeque::new(),
            asked: BTreeMap::new(),
            next_request: 1,
            outputs: VecDeque::new(),
        }
    }

    /// A connection is up; the host's [`Notice::Run`] follows.
    pub fn handle_connected(&mut self, now: Instant) {
        if self.link != Link::Down {
            self.handle_lost(now);
        }
        self.lapse(now);
        self.link = Link::Greeting;
    }

    /// The connection is gone. Leases last until the end of their term; requests without an answer
    /// are answered with nothing.
    pub fn handle_lost(&mut self, now: Instant) {
        self.lapse(now);
        self.link = Link::Down;
        self.term.disconnect();
        if let Settled::By(_) = self.settled {
            self.settled = Settled::No;
        }
        for request in std::mem::take(&mut self.asked).into_keys() {
            self.outputs.push_back(Output::Answered { request, lease: None });
        }
        if !self.term.is_valid(now) {
            self.give_up(|held| !held.claimed, now);
        }
    }

    /// The host said something. Notices that belong to locks and to pre-made nodes are not heeded.
    ///
    /// # Errors
    ///
    /// [`PeerMisbehaved::Unasked`] for an answer to nothing, or before [`Notice::Run`].
    pub fn handle_notice(&mut self, notice: Notice, now: Instant) -> Result<(), PeerMisbehaved> {
        self.lapse(now);
        if self.link == Link::Down {
            return Ok(());
        }
        let greeting = matches!(notice, Notice::Run { .. });
        if greeting != (self.link == Link::Greeting) {
            return Err(PeerMisbehaved::Unasked);
        }
        match notice {
            Notice::Run { run, term_ms, standing } => {
                self.greet(run, term_ms, standing, now);
                Ok(())
            }
            Notice::Renewed { number } => self.renewed(number),
            Notice::Granted { request, lease, version } => {
                self.check_asked(request)?;
                let lease = self.arrive(lease, version, now)?;
                self.answer(request, lease);
                Ok(())
            }
            Notice::Refused { request } => {
                self.check_asked(request)?;
                self.answer(request, None);
                Ok(())
            }
            Notice::Recall { lease, keep } => {
                self.recall(lease, keep, now);
                Ok(())
            }
            Notice::Changed { lease, node } => {
                self.changed(lease, node, now);
                Ok(())
            }
            Notice::Void { upto } => {
                self.void(upto, now);
                Ok(())
            }
            Notice::Reclaimed { lease, held } => {
                self.reclaimed(lease, held, now);
                Ok(())
            }
            Notice::LockReclaimed { .. }
            | Notice::LockTested { .. }
            | Notice::Locked { .. }
            | Notice::Premade { .. }
            | Notice::Working => Ok(()),
        }
    }

    /// A lease came along with an answer: to be said before the answer is cached, and the outputs
    /// drained, because what was cached of an older version goes first.
    ///
    /// # Errors
    ///
    /// [`PeerMisbehaved::Unasked`] for a number that another node has.
    pub fn handle_lease(
        &mut self,
        lease: Lease,
        version: Version,
        now: Instant,
    ) -> Result<(), PeerMisbehaved> {
        self.lapse(now);
        self.arrive(lease, version, now).map(|_| ())
    }

    /// Asks for a lease, or for more than is held. Without a connection the answer is nothing, at
    /// once.
    pub fn acquire(&mut self, node: NodeId, kind: LeaseKind, now: Instant) -> RequestId {
        self.lapse(now);
        let request = RequestId(self.next_request);
        self.next_request += 1;
        if let Some(lease) = self.has(node, kind, now) {
            self.outputs.push_back(Output::Answered { request, lease: Some(lease) });
            return request;
        }
        if self.link == Link::Down || self.asked.len() >= ASKED_MAX {
            self.outputs.push_back(Output::Answered { request, lease: None });
            return request;
        }
        self.asked.insert(request, (node, kind));
        if self.link == Link::Up {
            self.renew_if_due(now);
            self.send(LeaseRequest::Acquire { request, node, kind });
        }
        request
    }

    /// Calls are made whose answers may bring leases: sees to it that the term runs, because a host
    /// gives none to a session that does not renew.
    pub fn expect(&mut self, now: Instant) {
        self.lapse(now);
        if self.link == Link::Up {
            self.renew_if_due(now);
        }
    }

    /// Whether reads of the node may be answered from the cache now.
    pub fn may_read(&self, node: NodeId, now: Instant) -> Option<LeaseId> {
        self.usable(node, now).map(|(lease, _)| lease)
    }

    /// Whether changes of the node may be accepted now: held exclusively, not being returned,
    /// within the term.
    pub fn may_write(&self, node: NodeId, now: Instant) -> Option<LeaseId> {
        let (lease, held) = self.usable(node, now)?;
        (held.kind == LeaseKind::Exclusive && held.state == State::Usable).then_some(lease)
    }

    /// As [`Self::may_write`], for what the kernel hands over while the lease is being returned.
    pub fn may_flush(&self, node: NodeId, now: Instant) -> Option<LeaseId> {
        let (lease, held) = self.usable(node, now)?;
        let flushing = matches!(held.state, State::Usable | State::Flushing { .. });
        (held.kind == LeaseKind::Exclusive && flushing).then_some(lease)
    }

    /// Entry `seq` was accepted under the lease; under several, where it changes several objects.
    pub fn accepted(&mut self, lease: LeaseId, seq: Seq) {
        let pending = if let Some(held) = self.leases.get_mut(&lease) {
            &mut held.pending
        } else if let Some(lost) = self.lost.get_mut(&lease) {
            &mut lost.pending
        } else {
            return;
        };
        if pending.insert(seq) {
            self.entries.entry(seq).or_default().push(lease);
        }
    }

    /// The host has answered entry `seq`; `version`: what the object was then, if the
    /// entry was carried out and that is known. An answer that is said again says what it said
    /// before: claims rest on it, and what somebody else has done since must not be in it.
    pub fn handle_applied(&mut self, seq: Seq, version: Option<Version>, now: Instant) {
        self.lapse(now);
        let leases = self.entries.remove(&seq).unwrap_or_default();
        // of two objects nobody knows which one it is
        let version = version.filter(|_| leases.len() == 1);
        for lease in leases {
            self.settle(lease, seq, version, now);
        }
    }

    /// The kernel has handed over what it held of the lease's node.
    pub fn handle_flushed(&mut self, lease: LeaseId, now: Instant) {
        self.lapse(now);
        let Some(held) = self.leases.get_mut(&lease) else {
            return;
        };
        if let State::Flushing { keep } = held.state {
            held.state = State::Draining { keep };
            self.finish_drained(lease, now);
        }
    }

    /// Lets a lease go that is not used.
    pub fn release(&mut self, lease: LeaseId, now: Instant) {
        self.lapse(now);
        if self.leases.contains_key(&lease) {
            self.recall(lease, None, now);
        }
    }

    /// The machine is about to sleep, or has woken: all leases are dropped.
    pub fn handle_suspend(&mut self, now: Instant) {
        self.give_up(|_| true, now);
        self.term.end();
        self.claims_until = None;
    }

    /// A renewal may be due, or the term over.
    pub fn handle_timeout(&mut self, now: Instant) {
        self.lapse(now);
        if self.link == Link::Up && self.is_used() {
            self.renew_if_due(now);
        }
    }

    /// When [`Self::handle_timeout`] wants to be called.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let over = if self.leases.is_empty() { None } else { self.term.until() };
        let claims = self.claims_until;
        let renewal = if self.link == Link::Up && self.is_used() { self.term.due() } else { None };
        [over, claims, renewal].into_iter().flatten().min()
    }

    /// What to do next.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// Leases held.
    pub fn len(&self) -> usize {
        self.leases.len()
    }

    /// Whether none is held.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Where the node's lease stands, for status and for tests of coverage: `"none"`, `"asked"`,
    /// `"shared"`, `"exclusive"`, `"flushing"`, `"draining"`, `"claimed"`.
    pub fn state_of(&self, node: NodeId) -> &'static str {
        let held = self.nodes.get(&node).and_then(|lease| self.leases.get(lease));
        match held {
            Some(Held { claimed: true, .. }) => "claimed",
            Some(Held { state: State::Flushing { .. }, .. }) => "flushing",
            Some(Held { state: State::Draining { .. }, .. }) => "draining",
            Some(Held { kind: LeaseKind::Exclusive, .. }) => "exclusive",
            Some(_) => "shared",
            None if self.asked.values().any(|&(asked, _)| asked == node) => "asked",
            None => "none",
        }
    }

    /// A lease that is confirmed and within the term.
    fn usable(&self, node: NodeId, now: Instant) -> Option<(LeaseId, &Held)> {
        let lease = *self.nodes.get(&node)?;
        let held = self.leases.get(&lease)?;
        (!held.claimed && self.term.is_valid(now)).then_some((lease, held))
    }

    fn has(&self, node: NodeId, kind: LeaseKind, now: Instant) -> Option<Lease> {
        let (id, held) = self.usable(node, now)?;
        let enough = held.kind >= kind && held.state == State::Usable;
        enough.then_some(Lease { id, node, kind: held.kind })
    }

    fn is_used(&self) -> bool {
        !self.leases.is_empty() || !self.asked.is_empty() || !self.lost.is_empty()
    }

    fn send(&mut self, request: LeaseRequest) {
        self.outputs.push_back(Output::Send(request));
    }

    fn renew(&mut self, now: Instant) {
        let number = self.term.begin(now);
        self.send(LeaseRequest::Renew { number });
    }

    fn renew_if_due(&mut self, now: Instant) {
        if self.term.due().is_none_or(|due| due <= now) {
            self.renew(now);
        }
    }

    fn check_asked(&self, request: RequestId) -> Result<(), PeerMisbehaved> {
        if request.0 >= self.next_request { Err(PeerMisbehaved::Unasked) } else { Ok(()) }
    }

    /// An answer that comes again, or after the request was given up, is for nobody.
    fn answer(&mut self, request: RequestId, lease: Option<Lease>) {
        if self.asked.remove(&request).is_some() {
            self.outputs.push_back(Output::Answered { request, lease });
        }
    }
}

#[cfg(test)]
impl Holder {
    /// Whether nothing of any lease is remembered but that its number is dead.
    pub(super) fn is_clean(&self) -> bool {
        self.is_empty()
            && self.lost.is_empty()
            && self.entries.is_empty()
            && self.asked.is_empty()
            && self.nodes.is_empty()
    }
}
