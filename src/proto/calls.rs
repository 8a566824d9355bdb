//! Calls: the client's table of requests.
//!
//! Every call completes exactly once: with the host's answer, or with an error when the host has
//! been silent for the grace, or the session ends. A call that was under way when its connection
//! died is sent again on the next one, which is harmless because calls change nothing
//! ([`crate::wire::call`]).

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use crate::id::{ConnectionId, RequestId};
use crate::limits::CALLS_IN_FLIGHT_MAX;
use crate::wire::errno::Errno;

/// The table; `C` is a call, `R` its reply.
#[derive(Debug)]
pub struct Caller<C, R> {
    grace: Option<Duration>,
    link: Link,
    next: RequestId,
    calls: BTreeMap<RequestId, C>,
    /// Those of `calls` that wait for the host however long it is silent.
    patient: BTreeSet<RequestId>,
    /// Those of `calls` that are not on the current connection.
    unsent: BTreeSet<RequestId>,
    outputs: VecDeque<Output<C, R>>,
}

/// What the driver is to do.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Output<C, R> {
    /// Put the call on the connection, and report the answer or the failure.
    Send {
        /// Where.
        connection: ConnectionId,
        /// Which.
        id: RequestId,
        /// What.
        call: C,
    },
    /// Give the answer to whoever waits.
    Complete {
        /// Which.
        id: RequestId,
        /// The host's answer, or why there is none.
        result: Result<R, Errno>,
    },
}

#[derive(Debug)]
enum Link {
    Up(ConnectionId),
    Down {
        since: Instant,
    },
    /// Down for longer than the grace: whoever asks is told at once.
    Silent,
    Ended,
}

impl<C: Clone, R> Caller<C, R> {
    /// Without a connection yet. `grace`: how long calls wait for a host that is silent; `None` for
    /// ever.
    pub fn new(grace: Option<Duration>, now: Instant) -> Self {
        Self {
            grace,
            link: Link::Down { since: now },
            next: RequestId(1),
            calls: BTreeMap::new(),
            patient: BTreeSet::new(),
            unsent: BTreeSet::new(),
            outputs: VecDeque::new(),
        }
    }

    /// Takes a call; it is sent when a connection is up and fewer than 512 are under way.
    pub fn call(&mut self, call: C) -> RequestId {
        let id = self.next;
        self.next = RequestId(id.0 + 1);
        if let Some(errno) = self.refusal() {
            self.outputs.push_back(Output::Complete { id, result: Err(errno) });
            return id;
        }
        self.calls.insert(id, call);
        self.unsent.insert(id);
        self.fill();
        id
    }

    /// As [`Self::call`], for what the host must hear some time though nobody waits for it: also of
    /// a silent host it waits for the next connection, and fails only when the session ends.
    pub fn call_patiently(&mut self, call: C) -> RequestId {
        if !matches!(self.link, Link::Silent) {
            let id = self.call(call);
            if self.calls.contains_key(&id) {
                self.patient.insert(id);
            }
            return id;
        }
        let id = self.next;
        self.next = RequestId(id.0 + 1);
        self.calls.insert(id, call);
        self.unsent.insert(id);
        self.patient.insert(id);
        id
    }

    /// Nobody waits for this call any more.
    pub fn cancel(&mut self, id: RequestId) {
        self.remove(id);
        self.fill();
    }

    /// Calls may use a connection; said again of the same one, nothing is sent twice.
    pub fn handle_connected(&mut self, connection: ConnectionId) {
        match self.link {
            Link::Ended => return,
            Link::Up(current) if current == connection => return,
            Link::Up(_) | Link::Down { .. } | Link::Silent => {}
        }
        self.unsent = self.calls.keys().copied().collect();
        self.link = Link::Up(connection);
        self.fill();
    }

    /// The connection is gone; a report about an older one changes nothing.
    pub fn handle_lost(&mut self, connection: ConnectionId, now: Instant) {
        if matches!(self.link, Link::Up(current) if current == connection) {
            self.link = Link::Down { since: now };
        }
    }

    /// The host broke the protocol on a connection, which is closed: what it was asked there would
    /// be answered so again, and fails with EPROTO.
    pub fn handle_misbehaved(&mut self, connection: ConnectionId) {
        if !matches!(self.link, Link::Up(current) if current == connection) {
            return;
        }
        let unsent = &self.unsent;
        let failed: Vec<_> =
            self.calls.extract_if(.., |id, _| !unsent.contains(id)).map(|(id, _)| id).collect();
        self.patient.retain(|id| unsent.contains(id));
        let result = |id| Output::Complete { id, result: Err(Errno::EPROTO) };
        self.outputs.extend(failed.into_iter().map(result));
    }

    /// The host answered; a late answer over an older connection is as good.
    pub fn handle_reply(&mut self, id: RequestId, result: Result<R, Errno>) {
        if self.remove(id) {
            self.outputs.push_back(Output::Complete { id, result });
            self.fill();
        }
    }

    /// Nobody may know what is being asked any more; what is asked from now on is.
    pub fn fail_pending(&mut self, errno: Errno) {
        self.fail_all(errno);
    }

    /// No call is answered any more: the session has ended.
    pub fn end(&mut self) {
        self.link = Link::Ended;
        self.fail_all(Errno::ENOTCONN);
    }

    /// The grace may be over.
    pub fn handle_timeout(&mut self, now: Instant) {
        if self.poll_timeout().is_some_and(|at| at <= now) {
            self.link = Link::Silent;
            let patient = std::mem::take(&mut self.patient);
            let waits: BTreeMap<_, _> =
                self.calls.extract_if(.., |id, _| patient.contains(id)).collect();
            self.fail_all(Errno::ETIMEDOUT);
            self.unsent = patient.clone();
            (self.calls, self.patient) = (waits, patient);
        }
    }

    /// When [`Self::handle_timeout`] wants to be called.
    pub fn poll_timeout(&self) -> Option<Instant> {
        match (&self.link, self.grace) {
            (Link::Down { since }, Some(grace)) => Some(*since + grace),
            _ => None,
        }
    }

    /// What to do next.
    pub fn poll_output(&mut self) -> Option<Output<C, R>> {
        self.outputs.pop_front()
    }

    /// Why nothing can be asked now: the host has been silent for the grace (ETIMEDOUT), or the
    /// session has ended (ENOTCONN).
    pub fn refusal(&self) -> Option<Errno> {
        match self.link {
            Link::Up(_) | Link::Down { .. } => None,
            Link::Silent => Some(Errno::ETIMEDOUT),
            Link::Ended => Some(Errno::ENOTCONN),
        }
    }

    /// Calls that have no answer yet.
    pub fn pending(&self) -> usize {
        self.calls.len()
    }

    fn remove(&mut self, id: RequestId) -> bool {
        self.unsent.remove(&id);
        self.patient.remove(&id);
        self.calls.remove(&id).is_some()
    }

    fn fill(&mut self) {
        let Link::Up(connection) = self.link else {
            return;
        };
        while self.calls.len() - self.unsent.len() < CALLS_IN_FLIGHT_MAX {
            let Some(id) = self.unsent.pop_first() else {
                return;
            };
            let Some(call) = self.calls.get(&id).cloned() else {
                continue;
            };
            self.outputs.push_back(Output::Send { connection, id, call });
        }
    }

    fn fail_all(&mut self, errno: Errno) {
        self.unsent.clear();
        self.patient.clear();
        for id in std::mem::take(&mut self.calls).into_keys() {
            self.outputs.push_back(Output::Complete { id, result: Err(errno) });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GRACE: Duration = Duration::from_secs(30);

    fn drain(caller: &mut Caller<u8, u8>) -> Vec<Output<u8, u8>> {
        std::iter::from_fn(|| caller.poll_output()).collect()
    }

    fn send(connection: u64, id: u64, call: u8) -> Output<u8, u8> {
        Output::Send { connection: ConnectionId(connection), id: RequestId(id), call }
    }

    fn complete(id: u64, result: Result<u8, Errno>) -> Output<u8, u8> {
        Output::Complete { id: RequestId(id), result }
    }

    #[test]
    fn a_call_waits_for_a_connection_and_is_answered_once() {
        let mut caller = Caller::new(Some(GRACE), Instant::now());
        let id = caller.call(7);
        assert_eq!(drain(&mut caller), []);
        caller.handle_connected(ConnectionId(1));
        assert_eq!(drain(&mut caller), [send(1, 1, 7)]);
        caller.handle_reply(id, Ok(70));
        caller.handle_reply(id, Ok(71));
        assert_eq!(drain(&mut caller), [complete(1, Ok(70))]);
    }

    #[test]
    fn calls_under_way_are_sent_again_on_the_next_connection() {
        let now = Instant::now();
        let mut caller = Caller::new(Some(GRACE), now);
        caller.handle_connected(ConnectionId(1));
        caller.call(7);
        caller.handle_lost(ConnectionId(1), now);
        caller.call(8);
        drain(&mut caller);
        caller.handle_connected(ConnectionId(2));
        assert_eq!(drain(&mut caller), [send(2, 1, 7), send(2, 2, 8)]);
        caller.handle_lost(ConnectionId(1), now);
        caller.call(9);
        assert_eq!(drain(&mut caller), [send(2, 3, 9)]);
    }

    #[test]
    fn a_silent_host_fails_calls_after_the_grace_and_not_before() {
        let now = Instant::now();
        let mut caller = Caller::new(Some(GRACE), now);
        caller.call(7);
        assert_eq!(caller.poll_timeout(), Some(now + GRACE));
        caller.handle_timeout(now + GRACE - Duration::from_millis(1));
        assert_eq!(drain(&mut caller), []);
        caller.handle_timeout(now + GRACE);
        assert_eq!(drain(&mut caller), [complete(1, Err(Errno::ETIMEDOUT))]);
        caller.call(8);
        assert_eq!(drain(&mut caller), [complete(2, Err(Errno::ETIMEDOUT))]);
        caller.handle_connected(ConnectionId(1));
        caller.call(9);
        assert_eq!(drain(&mut caller), [send(1, 3, 9)]);
    }

    #[test]
    fn what_the_host_must_hear_waits_for_a_silent_one() {
        let now = Instant::now();
        let mut caller = Caller::new(Some(GRACE), now);
        caller.handle_connected(ConnectionId(1));
        caller.call_patiently(6);
        caller.call(7);
        caller.handle_lost(ConnectionId(1), now);
        drain(&mut caller);
        caller.handle_timeout(now + GRACE);
        assert_eq!(drain(&mut caller), [complete(2, Err(Errno::ETIMEDOUT))]);
        caller.call_patiently(8);
        assert_eq!((drain(&mut caller), caller.pending()), (vec![], 2));
        caller.handle_connected(ConnectionId(2));
        assert_eq!(drain(&mut caller), [send(2, 1, 6), send(2, 3, 8)]);
        caller.handle_reply(RequestId(1), Ok(60));
        assert_eq!(drain(&mut caller), [complete(1, Ok(60))]);
        caller.end();
        assert_eq!(drain(&mut caller), [complete(3, Err(Errno::ENOTCONN))]);
        caller.call_patiently(9);
        assert_eq!(drain(&mut caller), [complete(4, Err(Errno::ENOTCONN))]);
    }

    #[test]
    fn what_a_host_answers_with_nonsense_is_not_asked_again() {
        let now = Instant::now();
        let mut caller = Caller::new(Some(GRACE), now);
        caller.handle_connected(ConnectionId(1));
        caller.call(7);
        drain(&mut caller);
        caller.handle_misbehaved(ConnectionId(0));
        assert_eq!(drain(&mut caller), []);
        caller.handle_misbehaved(ConnectionId(1));
        assert_eq!(drain(&mut caller), [complete(1, Err(Errno::EPROTO))]);
        caller.handle_lost(ConnectionId(1), now);
        caller.call(8);
        caller.handle_connected(ConnectionId(2));
        assert_eq!(drain(&mut caller), [send(2, 2, 8)]);
    }

    #[test]
    fn no_more_calls_are_under_way_than_the_host_allows() {
        let mut caller = Caller::new(None, Instant::now());
        caller.handle_connected(ConnectionId(1));
        for _ in 0..CALLS_IN_FLIGHT_MAX + 2 {
            caller.call(7);
        }
        assert_eq!(drain(&mut caller).len(), CALLS_IN_FLIGHT_MAX);
        caller.cancel(RequestId(1));
        assert_eq!(drain(&mut caller), [send(1, CALLS_IN_FLIGHT_MAX as u64 + 1, 7)]);
    }

    #[test]
    fn an_ended_session_answers_at_once() {
        let mut caller = Caller::new(None, Instant::now());
        caller.call(7);
        caller.end();
        caller.call(8);
        let not_connected = Err(Errno::ENOTCONN);
        assert_eq!(drain(&mut caller), [complete(1, not_connected), complete(2, not_connected)]);
    }
}
