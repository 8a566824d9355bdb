//! A client's session on the host: its view of the share, its log, its connection of the moment.

use std::net::SocketAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use bytes::Bytes;
use quinn::{Connection, RecvStream, SendStream};
use serde_json::{Value, json};
use tokio::sync::{Notify, oneshot};

use crate::id::{Epoch, HostRun, Seq, SessionId};
use crate::identity::PeerId;
use crate::limits::{ACKS_UNSENT_MAX, LABEL_BYTES_MAX, LEASE_TERM, NOTICES_UNSENT_MAX};
use crate::net::direct::directly;
use crate::net::endpoint::Auth;
use crate::net::host::Shared;
use crate::net::host::connection::close;
use crate::net::host::others::{Farewell, Holder, is_for_others};
use crate::net::host::redoing::Redoing;
use crate::net::host::syncing::Neighbours;
use crate::net::host::work::Work;
use crate::net::nat::routing_json;
use crate::net::outbox::Outbox;
use crate::net::serve::{AbsentClient, Authorised, Export, Notices, Rights};
use crate::net::stream::{self, ReceiveError};
use crate::proto::redo::applier::{Applier, Output};
use crate::proto::redo::execute::How;
use crate::proto::redo::record::{Begun, Slot};
use crate::wire::call::{Call, Reply};
use crate::wire::errno::Errno;
use crate::wire::lease::{LeaseRequest, Notice};
use crate::wire::log::{Change, Cursor, LogAck, LogEntry, Outcome, Reason, Refused};
use crate::wire::rendezvous::Routing;
use crate::wire::session::{CloseReason, Identify};

/// How often a sync is tried whose data a failing disk takes away meanwhile.
const SYNCS_MAX: usize = 3;

/// Of an entry that the client hears more of, or that nobody can say more of.
const NOT_CARRIED_OUT: Refused = Refused { errno: Errno::EIO, reason: Reason::Unknown };

pub(super) type SessionApplier = Applier<Bytes, oneshot::Sender<()>>;

/// A session.
pub(super) struct HostSession {
    id: SessionId,
    /// The key that has begun it.
    pub(super) writer: PeerId,
    pub(super) client_name: String,
    pub(super) authorised: Authorised,
    /// Changes are refused; once that is so it stays so.
    read_only: AtomicBool,
    began: Instant,
    work: Work,
    /// Of all sessions.
    redoing: Redoing,
    pub(super) neighbours: Neighbours,
    pub(super) shared: Weak<Shared>,
    /// Held while it asks about others, so it does one after the other.
    pub(super) asking: tokio::sync::Mutex<()>,
    /// Held while others are told about it.
    pub(super) noting: Mutex<()>,
    /// Up to here the record that outlives a crash says that entries are stable.
    pub(super) kept: AtomicU64,
    /// Held while another epoch begins.
    pub(super) failing: Mutex<()>,
    /// More entries are applied.
    pub(super) progress: Notify,
    /// Where entries are missing that somebody has waited for in vain: behind this one.
    pub(super) gap: AtomicU64,
    state: Mutex<State>,
}

pub(super) struct State {
    pub(super) applier: SessionApplier,
    /// The one that the applier is in, or will be in as soon as its record has begun anew: nothing
    /// of the one before is carried out any more.
    pub(super) epoch: Epoch,
    /// Entries that were not carried out because the applier's epoch is about to end. Nobody is
    /// told so before that: they come again.
    pub(super) stale: Vec<Seq>,
    pub(super) acks: Outbox,
    /// Whether the first lane of the connection is there, which carries all acknowledgements.
    acks_open: bool,
    connection: Connection,
    connections: u64,
    auth: Option<Auth>,
    quiet_since: Option<Instant>,
    timer: bool,
    /// Whether others know that it redoes.
    redoes: bool,
    pub(super) farewell: Farewell,
    pub(super) holder: Holder,
}

impl HostSession {
    pub(super) fn new(
        peer: PeerId,
        request: &Identify,
        authorised: Authorised,
        (connection, auth): (Connection, Option<Auth>),
        (shared, noted): (&Arc<Shared>, Option<AbsentClient>),
    ) -> (Arc<Self>, Cursor) {
        let applier = applier(request, &authorised);
        let holder = Holder { peer, known_by: authorised.rights.known_by.clone() };
        let state = State {
            // another may have begun meanwhile: the first sync heeds that
            epoch: applier.epoch(),
            applier,
            stale: Vec::new(),
            acks: Outbox::new(),
            acks_open: false,
            connection,
            connections: 1,
            auth,
            quiet_since: None,
            timer: false,
            redoes: false,
            farewell: noted.as_ref().map(Farewell::from).unwrap_or_default(),
            holder,
        };
        let session = Arc::new(Self {
            id: request.session,
            writer: noted.as_ref().map_or(peer, |noted| noted.peer),
            client_name: label(&request.client_name),
            read_only: authorised.rights.read_only.into(),
            authorised,
            began: Instant::now(),
            work: shared.work.clone(),
            redoing: shared.redoing.clone(),
            neighbours: shared.neighbours.clone(),
            shared: Arc::downgrade(shared),
            asking: tokio::sync::Mutex::default(),
            noting: Mutex::default(),
            kept: AtomicU64::new(0),
            failing: Mutex::new(()),
            progress: Notify::new(),
            gap: AtomicU64::new(u64::MAX),
            state: Mutex::new(state),
        });
        session.neighbours.join(&session);
        session.note();
        let cursor = session.change(|applier| applier.resume(request.unanswered));
        (session, cursor)
    }

    /// A new connection takes the place of the one before, for a client that lacks the answers from
    /// `unanswered` on.
    pub(super) fn resume(
        self: &Arc<Self>,
        connection: Connection,
        auth: Option<Auth>,
        unanswered: Seq,
    ) -> Cursor {
        let mut state = self.lock();
        state.acks = Outbox::new();
        state.acks_open = false;
        state.connections += 1;
        state.auth = auth.or(state.auth);
        state.quiet_since = None;
        state.farewell.resume();
        let old = std::mem::replace(&mut state.connection, connection);
        close(&old, CloseReason::Replaced);
        drop(state);
        self.await_gap();
        self.change(|applier| applier.resume(unanswered))
    }

    /// What is missing may come now: others wait for it once more.
    pub(super) fn await_gap(&self) {
        self.gap.store(u64::MAX, Relaxed);
    }

    pub(super) fn close(&self, reason: CloseReason) {
        close(&self.lock().connection, reason);
    }

    pub(super) fn handle_closed(self: &Arc<Self>, connection: &Connection) {
        let mut state = self.lock();
        if state.connection.stable_id() == connection.stable_id() {
            state.quiet_since = Some(Instant::now());
            self.note();
            self.tell_redoing(&mut state);
        }
    }

    /// Whose it is now, and as its rights were approved for that key.
    pub(super) fn rights(&self) -> (PeerId, Rights) {
        let Holder { peer, known_by } = self.holder();
        (peer, Rights { known_by, ..self.authorised.rights.clone() })
    }

    /// Whose it is now.
    pub(super) fn holder(&self) -> Holder {
        self.lock().holder.clone()
    }

    pub(super) fn share(&self) -> &str {
        &self.authorised.rights.share
    }

    pub(super) fn is_read_only(&self) -> bool {
        self.read_only.load(Relaxed)
    }

    /// From now on it may only read. What it may do is never more than when it began: the client
    /// was told then.
    pub(super) fn restrict(&self) {
        if !self.read_only.swap(true, Relaxed) {
            tracing::info!(peer = ?self.holder().peer, "a session may only read from now on");
        }
    }

    pub(super) fn is_identity(&self) -> bool {
        self.authorised.rights.identity
    }

    pub(super) fn is_connected(&self) -> bool {
        self.lock().quiet_since.is_none()
    }

    /// How long it has had no connection.
    pub(super) fn idle(&self, now: Instant) -> Option<Duration> {
        self.lock().quiet_since.map(|since| now.saturating_duration_since(since))
    }

    pub(super) fn remote(&self) -> Option<SocketAddr> {
        let state = self.lock();
        state.quiet_since.is_none().then(|| state.connection.remote_address())
    }

    pub(super) fn status(&self, path: Value, routing: Option<&Routing>) -> Value {
        let state = self.lock();
        json!({
            "key": state.holder.peer.to_text(),
            "client": self.client_name,
            "share": self.share(),
            "read_only": self.is_read_only(),
            "map": if self.is_identity() { "identity" } else { "squash" },
            "state": if state.quiet_since.is_none() { "connected" } else { "reconnecting" },
            "connections": state.connections,
            "age_s": self.began.elapsed().as_secs(),
            "path": path,
            "auth": state.auth.map(Auth::to_json),
            "routing": { "peer": routing.map(routing_json) },
            "applied": state.applier.cursor().0,
            "stable": state.applier.stable().0,
        })
    }

    /// One call and its answer.
    pub(super) async fn serve_call(
        self: &Arc<Self>,
        mut send: SendStream,
        mut receive: RecvStream,
    ) -> Result<(), ReceiveError> {
        let (call, _) = stream::receive::<Call>(&mut receive).await?;
        let Some(answer) = self.answer(&call).await else { return Ok(()) };
        let (reply, body): (Result<Reply, Errno>, Bytes) = match answer {
            Ok((reply, body)) => (Ok(reply), body),
            Err(errno) => (Err(errno), Bytes::new()),
        };
        // The client may have given up
        if stream::send(&mut send, &[], &reply, body).await.is_ok() {
            let _ = send.finish();
        }
        Ok(())
    }

    /// Answers a call here and now, if it waits neither for entries nor for a disk.
    pub(super) fn try_answer(&self, call: &Call) -> Option<Result<(Reply, Bytes), Errno>> {
        let upto = upto(call).unwrap_or_default();
        {
            let state = self.lock();
            if upto > state.applier.cursor() || state.applier.is_redoing() {
                return None;
            }
        }
        if self.redoing.holds_up(self.id, self.share(), Instant::now) {
            return None;
        }
        self.authorised.export.try_call(call)
    }

    /// Whether a call comes after entries: those that it names, or those that are carried out again
    /// because this machine or its disk forgot them. So does one that no share answers.
    pub(super) fn must_wait(&self, call: &Call) -> bool {
        upto(call).is_some()
            || is_for_others(call)
            || self.lock().applier.is_redoing()
            || self.redoing.holds_up(self.id, self.share(), Instant::now)
    }

    /// Answers a call that comes after no entries, where the disk may be waited for.
    pub(super) fn answer_elsewhere(
        self: &Arc<Self>,
        call: Call,
        tell: impl FnOnce(Result<(Reply, Bytes), Errno>) + Send + 'static,
    ) {
        let export = Arc::clone(&self.authorised.export);
        self.work.run(export.is_brief_call(&call), move || {
            let call = || export.call(call);
            let answer = catch_unwind(AssertUnwindSafe(call)).unwrap_or(Err(Errno::EIO));
            directly(|| (tell(answer), true));
        });
    }

    /// Carries a call out, behind the entries that it names, and those that are carried out again;
    /// `None` if they never come.
    pub(super) async fn answer(
        self: &Arc<Self>,
        call: &Call,
    ) -> Option<Result<(Reply, Bytes), Errno>> {
        if let Some(answer) = self.answer_for_others(call).await {
            return Some(answer);
        }
        let upto = upto(call).unwrap_or_default();
        for _ in 0..SYNCS_MAX {
            let (reached, is_reached) = oneshot::channel();
            self.change(|applier| applier.wait_for(upto, reached));
            is_reached.await.ok()?;
            self.redoing.wait(self.id, self.share()).await;
            if !matches!(call, Call::Sync { .. } | Call::SyncAll { .. }) {
                let (export, call) = (Arc::clone(&self.authorised.export), call.clone());
                return Some(blocking(move || export.call(call)).await);
            }
            self.wait_for_neighbours(call).await;
            let (session, same) = (Arc::clone(self), call.clone());
            let answer = blocking(move || session.carry_out_sync(same, upto)).await;
            if let Some(answer) = answer.transpose() {
                return Some(answer);
            }
        }
        Some(Err(Errno::EIO))
    }

    /// One of the log's lanes: entries come in, acknowledgements go out on the first.
    pub(super) async fn serve_log(
        self: &Arc<Self>,
        connection: &Connection,
        send: SendStream,
        mut receive: RecvStream,
    ) -> Result<(), ReceiveError> {
        self.open_acks(connection, send);
        loop {
            // Who does not read what became of the entries may send no more
            if let Some(acks) = self.crowded_acks() {
                tokio::select! {
                    () = acks.room(ACKS_UNSENT_MAX) => {}
                    _ = connection.closed() => return Ok(()),
                }
            }
            let (entry, body) = match stream::receive::<LogEntry>(&mut receive).await {
                Ok(entry) => entry,
                Err(ReceiveError::Ended) => return Ok(()),
                Err(error) => return Err(error),
            };
            let bytes = body.len();
            let taken =
                self.change(|applier| applier.handle_entry(entry, body, bytes, Instant::now()));
            if let Err(error) = taken {
                tracing::warn!(%error, "a client misbehaved: closing its connection");
                close(connection, CloseReason::Misbehaved);
                return Ok(());
            }
        }
    }

    /// The stream of leases and locks: requests come in, notices go out.
    pub(super) async fn serve_lease(
        self: &Arc<Self>,
        connection: &Connection,
        run: HostRun,
        send: SendStream,
        mut receive: RecvStream,
    ) -> Result<(), ReceiveError> {
        let notices = Outbox::new();
        let standing = {
            let state = self.lock();
            if state.connection.stable_id() != connection.stable_id() {
                return Ok(());
            }
            state.connections > 1
        };
        let term_ms = u32::try_from(LEASE_TERM.as_millis()).unwrap_or(u32::MAX);
        notices.open(send);
        let notices = Notices(notices);
        notices.send(Notice::Run { run, term_ms, standing });
        self.authorised.export.attend_locks(notices.clone());
        loop {
            // Who does not read the answers may ask no more
            notices.0.room(NOTICES_UNSENT_MAX).await;
            let request = match stream::receive::<LeaseRequest>(&mut receive).await {
                Ok((request, _)) => request,
                Err(ReceiveError::Ended) => return Ok(()),
                Err(error) => return Err(error),
            };
            if self.lock().connection.stable_id() != connection.stable_id() {
                return Ok(());
            }
            let export = Arc::clone(&self.authorised.export);
            let asked = tokio::task::spawn_blocking(move || export.ask_lock(request)).await;
            if let Ok(Err(error)) = asked {
                tracing::warn!(%error, "a client misbehaved: closing its connection");
                close(connection, CloseReason::Misbehaved);
                return Ok(());
            }
        }
    }

    /// Nobody comes back: neither to what is open nor to locks.
    pub(super) fn end(&self) {
        let export = Arc::clone(&self.authorised.export);
        tokio::task::spawn_blocking(move || export.end());
    }

    /// The rules say that it is over. Who may ask for another session finds nothing left of this
    /// one; what else its client has left may still be brought, if it is let in again or by another
    /// key.
    pub(super) fn end_for(self: &Arc<Self>, why: CloseReason) {
        if why != CloseReason::Denied {
            self.close(why);
            let export = Arc::clone(&self.authorised.export);
            tokio::task::spawn_blocking(move || export.cut_off());
            return;
        }
        let session = Arc::clone(self);
        tokio::task::spawn_blocking(move || {
            session.authorised.export.end();
            session.close(why);
        });
    }

    /// The client has stayed away for long.
    pub(super) fn leave(&self) {
        let export = Arc::clone(&self.authorised.export);
        tokio::task::spawn_blocking(move || export.leave());
    }

    pub(super) fn uses(&self, connection: &Connection) -> bool {
        self.lock().connection.stable_id() == connection.stable_id()
    }

    pub(super) fn id(&self) -> SessionId {
        self.id
    }

    /// The first lane of a connection carries all acknowledgements.
    fn open_acks(&self, connection: &Connection, send: SendStream) {
        let mut state = self.lock();
        if state.connection.stable_id() == connection.stable_id() && !state.acks_open {
            state.acks_open = true;
            state.acks.open(send);
        }
    }

    /// The acknowledgements, if too many of them wait for the client to read them.
    fn crowded_acks(&self) -> Option<Outbox> {
        let acks = &self.lock().acks;
        (!acks.has_room(ACKS_UNSENT_MAX)).then(|| acks.clone())
    }

    /// Changes the applier and does what it says.
    pub(super) fn change<T>(self: &Arc<Self>, change: impl FnOnce(&mut SessionApplier) -> T) -> T {
        let mut state = self.lock();
        let changed = change(&mut state.applier);
        self.carry_on(&mut state);
        changed
    }

    /// Does what the applier says.
    pub(super) fn carry_on(self: &Arc<Self>, state: &mut State) {
        while let Some(output) = state.applier.poll_output() {
            match output {
                Output::Apply { seq, change, body, how, poisons } => {
                    self.note_change(state);
                    self.apply(state.applier.epoch(), (seq, change, body), how, poisons);
                }
                Output::Ack(ack) => {
                    if let LogAck::Stable { upto } = ack {
                        self.authorised.export.note_stable(upto);
                    }
                    if let Err((error, ())) = state.acks.put(&ack, Bytes::new(), ()) {
                        tracing::error!(%error, "an acknowledgement that is no message");
                    }
                }
                Output::Reached(waiter) => {
                    let _ = waiter.send(());
                }
                Output::Sync { upto } => self.sync(state.applier.epoch(), upto),
            }
        }
        self.tell_redoing(state);
        self.progress.notify_waiters();
        if let Some(at) = state.applier.poll_timeout()
            && !state.timer
        {
            state.timer = true;
            tokio::spawn(wake(Arc::downgrade(self), at));
        }
    }

    /// Others of the share wait for what it does again, as long as it is connected.
    fn tell_redoing(&self, state: &mut State) {
        let redoes = state.applier.is_redoing() && state.quiet_since.is_none();
        if redoes != state.redoes {
            state.redoes = redoes;
            self.redoing.note(self.id, self.share(), redoes);
        }
    }

    fn apply(
        self: &Arc<Self>,
        epoch: Epoch,
        (seq, change, body): (Seq, Change, Bytes),
        how: How,
        poisons: bool,
    ) {
        let session = Arc::clone(self);
        let brief = self.authorised.export.is_brief_change(&change.mutation, body.len());
        self.work.run(brief, move || {
            // What panics must not hold up everything that comes after it
            let result = if session.is_read_only() {
                Some(Err(Refused::by_system(Errno::EROFS)))
            } else if session.lock().epoch != epoch {
                // What it comes after may be lost: it comes again behind that
                None
            } else {
                let export = &session.authorised.export;
                let apply = || export.apply(epoch, seq, &change, &body, &how, poisons);
                let applied = catch_unwind(AssertUnwindSafe(apply)).unwrap_or_else(|_| {
                    tracing::error!(%seq, "a change could not be carried out");
                    Err(NOT_CARRIED_OUT)
                });
                Some(applied)
            };
            directly(|| (session.applied(epoch, seq, result), true));
            if let Some(rest) = session.authorised.export.rest() {
                tokio::task::spawn_blocking(|| rest.run());
            }
        });
    }

    /// What came of an entry of an epoch; `None`: it was not carried out, as that one ends.
    fn applied(self: &Arc<Self>, epoch: Epoch, seq: Seq, result: Option<Result<Outcome, Refused>>) {
        let mut state = self.lock();
        if result.is_none() && state.applier.epoch() == epoch {
            state.stale.push(seq);
            return;
        }
        let result = result.unwrap_or(Err(NOT_CARRIED_OUT));
        state.applier.handle_result(seq, result, Instant::now());
        self.carry_on(&mut state);
    }

    /// Another epoch begins, which the session's record is of already.
    pub(super) fn begin_epoch(self: &Arc<Self>, epoch: Epoch) {
        let mut state = self.lock();
        let now = Instant::now();
        state.applier.handle_disk_failed(epoch, now);
        for seq in std::mem::take(&mut state.stale) {
            state.applier.handle_result(seq, Err(NOT_CARRIED_OUT), now);
        }
        self.carry_on(&mut state);
    }

    /// The applier is changed in whole steps, so a panic elsewhere does not spoil it.
    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Where the session's entries go on: from the record of a run that was killed, or anew.
fn applier(request: &Identify, authorised: &Authorised) -> SessionApplier {
    let export = &authorised.export;
    let epoch = export.epoch();
    // Nothing is ever carried out for a session that only reads
    if authorised.rights.read_only {
        return Applier::new(epoch, request.held);
    }
    let recorded = match export.recover() {
        Some(recovered) if recovered.header.epoch == epoch => return Applier::recover(recovered),
        recorded => recorded,
    };
    let outlived = recorded
        .and_then(|recorded| Applier::outlive(recorded, epoch, request.held, request.unanswered));
    // only then something is to outlive another crash: there is no sync for a session that begins
    let outlives = outlived.is_some();
    let applier = outlived.unwrap_or_else(|| Applier::new(epoch, request.held));
    begin_record(export, record_of(&applier, epoch, outlives));
    applier
}

/// How a session's record begins in an epoch: with what is stable.
pub(super) fn record_of(
    applier: &SessionApplier,
    epoch: Epoch,
    outlives: bool,
) -> (Begun, Vec<(Seq, Slot)>) {
    let stable = applier.stable();
    let done: Vec<(Seq, Slot)> = applier
        .results()
        .filter(|(seq, ..)| *seq <= stable)
        .map(|(seq, result, poisons)| (seq, Slot::Done { result, poisons }))
        .collect();
    let first = done.first().map_or_else(|| stable.next(), |(seq, _)| *seq);
    (Begun { epoch, first, stable, outlives }, done)
}

/// Begins the session's record anew.
pub(super) fn begin_record(export: &Arc<dyn Export>, (begun, done): (Begun, Vec<(Seq, Slot)>)) {
    if let Err(error) = export.begin(begun, &done) {
        tracing::warn!(%error, "no record of the session can be kept: a restart forgets it");
    }
}

/// A name, as long as one may be.
fn label(name: &str) -> String {
    let mut label: String = name.chars().filter(|c| !c.is_control()).collect();
    label.truncate(label.floor_char_boundary(LABEL_BYTES_MAX));
    label
}

async fn wake(session: Weak<HostSession>, at: Instant) {
    tokio::time::sleep_until(at.into()).await;
    if let Some(session) = session.upgrade() {
        session.lock().timer = false;
        session.change(|applier| applier.handle_timeout(Instant::now()));
    }
}

/// The entries that a call comes after.
fn upto(call: &Call) -> Option<Seq> {
    match call {
        Call::Sync { upto, .. } | Call::SyncAll { upto } | Call::Release { upto, .. } => {
            Some(*upto)
        }
        _ => None,
    }
}

pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Errno> + Send + 'static,
) -> Result<T, Errno> {
    tokio::task::spawn_blocking(work).await.unwrap_or(Err(Errno::EIO))
}
