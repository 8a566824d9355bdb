//! The client's session: it outlives its connections, and knows when it is over.
//!
//! ```text
//!             path up             connected            approved
//!  Searching ---------> Connecting --------> Identifying --------> Up
//!      ^                    | failed              | lost            | lost
//!      +--------------------+---------------------+-----------------+
//!                                      denied for good, revoked --> Ended
//! ```
//!
//! A denial may be answered by asking again (507): the driver says whether it `wait`s.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crate::id::ConnectionId;
use crate::wire::session::{CloseReason, Denial, Grant, Verdict};

/// How long to wait before the same path is tried again.
const RETRY: Duration = Duration::from_millis(250);
/// How long to wait before a denied request is made again (507).
const ASK_AGAIN: Duration = Duration::from_secs(2);

/// The machine.
#[derive(Debug)]
pub struct Session {
    state: State,
    path: bool,
    wait: bool,
    /// Whether the host acts as whoever asks: what it said first.
    identity: Option<bool>,
    next: ConnectionId,
    retry_at: Option<Instant>,
    outputs: VecDeque<Output>,
}

/// Where the session stands.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum State {
    /// No connection, and none being made.
    Searching,
    /// A QUIC handshake is under way.
    Connecting(ConnectionId),
    /// Request 21 is under way.
    Identifying(ConnectionId),
    /// Calls and entries flow.
    Up(ConnectionId),
    /// Over for good.
    Ended(End),
}

/// Why a session is over for good.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum End {
    /// Our side closed it.
    Closed,
    /// The host refused it.
    Denied(Denial),
    /// The host's owner revoked the key while the session ran.
    Revoked,
    /// The host's owner changed as whom the session acts, which it was built on.
    Remapped,
}

/// What the driver is to do.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Output {
    /// Make a QUIC connection over the path.
    Connect(ConnectionId),
    /// Send request 21 on it and report the verdict.
    Identify(ConnectionId),
    /// Let calls and entries use it.
    Up(ConnectionId, Grant),
    /// Calls and entries have no connection now.
    Down(ConnectionId),
    /// The session is over.
    Ended(End),
}

impl Session {
    /// Without a path yet. `wait`: ask again after a denial that the owner can lift.
    pub fn new(wait: bool) -> Self {
        Self {
            state: State::Searching,
            path: false,
            wait,
            identity: None,
            next: ConnectionId(1),
            retry_at: None,
            outputs: VecDeque::new(),
        }
    }

    /// There is a path to the host.
    pub fn handle_path_up(&mut self) {
        self.path = true;
        if self.state == State::Searching && self.retry_at.is_none() {
            self.connect();
        }
    }

    /// There is none; a connection may still outlive this.
    pub fn handle_path_down(&mut self) {
        self.path = false;
    }

    /// The handshake succeeded.
    pub fn handle_connected(&mut self, connection: ConnectionId) {
        if self.state == State::Connecting(connection) {
            self.transition(State::Identifying(connection), "connected");
            self.outputs.push_back(Output::Identify(connection));
        }
    }

    /// The host has decided (step 123).
    pub fn handle_verdict(&mut self, connection: ConnectionId, verdict: Verdict, now: Instant) {
        if self.state != State::Identifying(connection) {
            return;
        }
        let identity = matches!(verdict, Verdict::ApprovedIdentity(_));
        match verdict {
            Verdict::Approved(_) | Verdict::ApprovedIdentity(_)
                if *self.identity.get_or_insert(identity) != identity =>
            {
                self.finish(End::Remapped);
            }
            Verdict::Approved(grant) | Verdict::ApprovedIdentity(grant) => {
                self.transition(State::Up(connection), "approved");
                self.outputs.push_back(Output::Up(connection, grant));
            }
            Verdict::Denied(
                Denial::Unauthorised
                | Denial::Revoked
                | Denial::Expired
                | Denial::TooManyTries
                | Denial::Busy,
            ) if self.wait => {
                self.transition(State::Searching, "denied; asking again");
                self.retry_at = Some(now + ASK_AGAIN);
            }
            Verdict::Denied(denial) => self.finish(End::Denied(denial)),
        }
    }

    /// The connection failed or died.
    pub fn handle_lost(&mut self, connection: ConnectionId, why: CloseReason, now: Instant) {
        let was_up = match self.state {
            State::Up(current) if current == connection => true,
            State::Connecting(current) | State::Identifying(current) if current == connection => {
                false
            }
            _ => return,
        };
        if was_up {
            self.outputs.push_back(Output::Down(connection));
        }
        match why {
            CloseReason::Revoked => self.finish(End::Revoked),
            CloseReason::Expired => self.finish(End::Denied(Denial::Expired)),
            CloseReason::Done
            | CloseReason::Replaced
            | CloseReason::Misbehaved
            | CloseReason::Denied
            | CloseReason::Ended => {
                self.transition(State::Searching, "connection lost");
                self.retry_at = Some(now + RETRY);
            }
        }
    }

    /// Our side ends the session.
    pub fn close(&mut self) {
        if let State::Up(connection) = self.state {
            self.outputs.push_back(Output::Down(connection));
        }
        self.finish(End::Closed);
    }

    /// It may be time to try again.
    pub fn handle_timeout(&mut self, now: Instant) {
        if self.retry_at.is_some_and(|at| at <= now) {
            self.retry_at = None;
            if self.path && self.state == State::Searching {
                self.connect();
            }
        }
    }

    /// When [`Self::handle_timeout`] wants to be called.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.retry_at
    }

    /// What to do next.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// Where the session stands.
    pub fn state(&self) -> &State {
        &self.state
    }

    fn connect(&mut self) {
        let connection = self.next;
        self.next = ConnectionId(connection.0 + 1);
        self.transition(State::Connecting(connection), "path up");
        self.outputs.push_back(Output::Connect(connection));
    }

    fn finish(&mut self, end: End) {
        if !matches!(self.state, State::Ended(_)) {
            self.transition(State::Ended(end.clone()), "over");
            self.retry_at = None;
            self.outputs.push_back(Output::Ended(end));
        }
    }

    fn transition(&mut self, to: State, why: &str) {
        tracing::debug!(from = ?self.state, ?to, why, "session");
        self.state = to;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::HostRun;
    use crate::wire::log::Cursor;

    fn grant() -> Grant {
        Grant {
            share: "files".to_owned(),
            read_only: false,
            run: HostRun(1),
            cursor: Cursor::default(),
            host_name: "home".to_owned(),
            host_mac: [2, 0, 0, 0, 0, 1],
        }
    }

    fn outputs(session: &mut Session) -> Vec<Output> {
        std::iter::from_fn(|| session.poll_output()).collect()
    }

    fn up(now: Instant) -> Session {
        let mut session = Session::new(false);
        session.handle_path_up();
        session.handle_connected(ConnectionId(1));
        session.handle_verdict(ConnectionId(1), Verdict::Approved(grant()), now);
        outputs(&mut session);
        session
    }

    #[test]
    fn a_path_leads_to_a_connection_and_approval() {
        let mut session = Session::new(false);
        session.handle_path_up();
        assert_eq!(outputs(&mut session), [Output::Connect(ConnectionId(1))]);
        session.handle_connected(ConnectionId(1));
        assert_eq!(outputs(&mut session), [Output::Identify(ConnectionId(1))]);
        session.handle_verdict(ConnectionId(1), Verdict::Approved(grant()), Instant::now());
        assert_eq!(outputs(&mut session), [Output::Up(ConnectionId(1), grant())]);
    }

    #[test]
    fn a_lost_connection_is_replaced_under_the_session() {
        let now = Instant::now();
        let mut session = up(now);
        session.handle_lost(ConnectionId(1), CloseReason::Done, now);
        assert_eq!(outputs(&mut session), [Output::Down(ConnectionId(1))]);
        session.handle_timeout(now + RETRY);
        assert_eq!(outputs(&mut session), [Output::Connect(ConnectionId(2))]);
        // News about the old one change nothing
        session.handle_lost(ConnectionId(1), CloseReason::Revoked, now);
        assert_eq!(*session.state(), State::Connecting(ConnectionId(2)));
    }

    #[test]
    fn without_a_path_it_waits_for_one() {
        let now = Instant::now();
        let mut session = up(now);
        session.handle_path_down();
        session.handle_lost(ConnectionId(1), CloseReason::Done, now);
        session.handle_timeout(now + RETRY);
        assert_eq!(*session.state(), State::Searching);
        session.handle_path_up();
        assert_eq!(*session.state(), State::Connecting(ConnectionId(2)));
    }

    #[test]
    fn a_denial_ends_it_unless_somebody_waits_for_the_owner() {
        let now = Instant::now();
        for wait in [false, true] {
            let mut session = Session::new(wait);
            session.handle_path_up();
            session.handle_connected(ConnectionId(1));
            let denied = Verdict::Denied(Denial::Unauthorised);
            session.handle_verdict(ConnectionId(1), denied, now);
            outputs(&mut session);
            session.handle_timeout(now + ASK_AGAIN);
            let asks = outputs(&mut session) == [Output::Connect(ConnectionId(2))];
            assert_eq!(asks, wait);
            assert_eq!(matches!(session.state(), State::Ended(End::Denied(_))), !wait);
        }
    }

    #[test]
    fn a_revocation_or_the_end_of_its_time_ends_it_for_good() {
        let now = Instant::now();
        for (why, end) in [
            (CloseReason::Revoked, End::Revoked),
            (CloseReason::Expired, End::Denied(Denial::Expired)),
        ] {
            let mut session = up(now);
            session.handle_lost(ConnectionId(1), why, now);
            let expected = [Output::Down(ConnectionId(1)), Output::Ended(end)];
            assert_eq!(outputs(&mut session), expected);
            session.handle_path_up();
            assert_eq!(outputs(&mut session), []);
        }
    }

    #[test]
    fn who_acts_as_somebody_else_now_begins_anew() {
        let now = Instant::now();
        let mut session = up(now);
        session.handle_lost(ConnectionId(1), CloseReason::Denied, now);
        session.handle_timeout(now + RETRY);
        session.handle_connected(ConnectionId(2));
        outputs(&mut session);
        session.handle_verdict(ConnectionId(2), Verdict::ApprovedIdentity(grant()), now);
        assert_eq!(outputs(&mut session), [Output::Ended(End::Remapped)]);
    }
}
