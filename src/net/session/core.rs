//! What calls, entries and the supervisor share: the machines, under one lock.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use serde_json::Value;
use tokio::sync::{Notify, oneshot, watch};
use tokio::task::AbortHandle;

use crate::id::{ConnectionId, HandleId, NodeId, RequestId, Seq, SessionId};
use crate::limits::LOG_BYTES_UNAPPLIED_MAX;
use crate::net::direct::directly;
use crate::net::endpoint::PathInfo;
use crate::net::remote::Submitted;
use crate::net::session::PutAway;
use crate::net::session::journal::{Journal, Noted};
use crate::net::session::link::Link;
use crate::net::session::locks::{AnyLost, LockDesk};
use crate::net::session::view::{Pending, View};
use crate::proto::PeerMisbehaved;
use crate::proto::calls::{self, Caller};
use crate::proto::redo::log::{self, Log};
use crate::wire::call::{Call, Reply};
use crate::wire::errno::Errno;
use crate::wire::log::{Change, LogAck, LogEntry, Mutation, Outcome, Promise, Sent};
use crate::wire::session::Grant;

/// Beside so many others under way, what is asked or changed is sent by the caller's own thread;
/// beside more, many are sent at once by the network's.
const QUIET: usize = 2;
/// What is longer is sent by the network's thread, bytes.
const DIRECT_BYTES: usize = 4096;

type Answer = Result<(Reply, Bytes), Errno>;
type Applied = Result<Outcome, Errno>;

/// Shared by everything that uses a session.
#[derive(Debug)]
pub(crate) struct Core {
    inner: Mutex<Inner>,
    /// The supervisor looks at timers and commands again.
    pub(crate) wake: Notify,
    /// Why nothing is to be expected of the host now.
    refusal: watch::Sender<Option<Errno>>,
    lost: AnyLost,
    /// There is something in [`Inner::undone`], or never will be again.
    any_undone: Notify,
}

#[derive(Debug)]
struct Inner {
    session: SessionId,
    caller: Caller<Call, (Reply, Bytes)>,
    log: Log<Bytes>,
    /// The log was another run's, whose callers are gone.
    resumed: bool,
    answers: HashMap<RequestId, (oneshot::Sender<Answer>, Option<AbortHandle>)>,
    /// Who is told of an entry.
    applied: HashMap<Seq, oneshot::Sender<Applied>>,
    rooms: VecDeque<(usize, oneshot::Sender<Result<(), Errno>>)>,
    /// Who waits for the answers up to an entry.
    heard: Vec<(Seq, oneshot::Sender<Result<(), Errno>>)>,
    /// Of these nodes a change was refused that was told to be done.
    undone: BTreeMap<NodeId, Errno>,
    link: Option<Link>,
    /// A connection whose lanes are open, and that the host has not approved yet.
    opened: Option<(ConnectionId, Link)>,
    locks: LockDesk,
    closing: bool,
    /// Not for good.
    parting: bool,
    /// See [`Core::take_struck`].
    struck: bool,
    /// Handles that are closed, and the last entry of their nodes, until that is stable.
    closed: BTreeMap<HandleId, Seq>,
    /// What is asked is refused so; what was accepted is still delivered.
    shut: Option<Errno>,
    /// What was left when the session ended.
    left: Option<PutAway>,
    /// As long as the session lasts.
    journal: Option<Noted>,
    left_journal: Option<Noted>,
    view: View,
}

impl Core {
    /// `log`: empty, or one that was put away before.
    pub(crate) fn new(
        grace: Option<Duration>,
        host: String,
        session: SessionId,
        mut log: Log<Bytes>,
        journal: Option<Box<dyn Journal>>,
    ) -> Arc<Self> {
        // by earlier runs that could not bring all of it
        let view = View::new(host, log.aside().count() as u64);
        let inner = Inner {
            session,
            caller: Caller::new(grace, Instant::now()),
            resumed: log.last() != Seq::ZERO,
            journal: journal.map(|journal| Noted::new(journal, &mut log)),
            log,
            answers: HashMap::new(),
            applied: HashMap::new(),
            rooms: VecDeque::new(),
            heard: Vec::new(),
            undone: BTreeMap::new(),
            link: None,
            opened: None,
            locks: LockDesk::default(),
            closing: false,
            parting: false,
            struck: false,
            closed: BTreeMap::new(),
            shut: None,
            left: None,
            left_journal: None,
            view,
        };
        let refusal = watch::Sender::new(None);
        let (inner, lost) = (Mutex::new(inner), AnyLost::default());
        let (wake, any_undone) = (Notify::new(), Notify::new());
        Arc::new(Self { inner, wake, refusal, lost, any_undone })
    }

    /// Asks and waits; dropping the future cancels the call.
    pub(crate) async fn call(core: Arc<Self>, call: Call) -> Answer {
        let behind = match &call {
            Call::Sync { upto, .. } => Some(*upto),
            _ => None,
        };
        let (answer, answered) = oneshot::channel();
        let id = directly(|| {
            let mut inner = core.lock();
            if let Some(errno) = inner.shut
                && !matches!(call, Call::SyncAll { .. } | Call::Leave(_))
            {
                return (Err(errno), false);
            }
            // nobody waits for closing: it travels with the next call
            let closes = matches!(call, Call::Release { .. });
            let is_alone = inner.is_quiet() && !closes;
            inner.note_closed(&call);
            // what the host never hears of stays open there
            let id = match closes {
                true => inner.caller.call_patiently(call),
                false => inner.caller.call(call),
            };
            inner.answers.insert(id, (answer, None));
            inner.pump(&core);
            (Ok(id), is_alone)
        })?;
        let guard = CancelOnDrop { core: &core, id: Some(id) };
        // The supervisor keeps the grace's time
        if !core.lock().caller_is_up() {
            core.wake.notify_one();
        }
        let answer = answered.await.unwrap_or(Err(Errno::ENOTCONN));
        guard.defuse();
        if let (Ok(_), Some(upto)) = (&answer, behind) {
            core.hear(upto).await?;
        }
        answer
    }

    /// Waits until it is known what came of the entries up to `upto`. The host has said so before
    /// it answers, but on another stream.
    async fn hear(&self, upto: Seq) -> Result<(), Errno> {
        let (all, all_heard) = oneshot::channel();
        {
            let mut inner = self.lock();
            if inner.log.unanswered() > upto {
                return Ok(());
            }
            inner.heard.push((upto, all));
        }
        all_heard.await.unwrap_or(Err(Errno::ENOTCONN))
    }

    /// See [`Remote::undone`](crate::net::remote::Remote::undone).
    pub(crate) fn undone(&self) -> Vec<(NodeId, Errno)> {
        std::mem::take(&mut self.lock().undone).into_iter().collect()
    }

    /// See [`Remote::any_undone`](crate::net::remote::Remote::any_undone).
    pub(crate) async fn any_undone(core: Arc<Self>) -> bool {
        core.any_undone.notified().await;
        let inner = core.lock();
        !inner.undone.is_empty() || inner.left.is_none()
    }

    /// Numbers a change and ships it.
    pub(crate) fn submit(self: &Arc<Self>, change: Change, body: Bytes) -> Submitted {
        let (done, applied) = oneshot::channel();
        let bytes = body.len();
        let promise = match change.mutation {
            Mutation::Write { .. } => Promise::Accepted,
            _ => Promise::Awaited,
        };
        directly(|| {
            let mut inner = self.lock();
            let is_alone = inner.is_quiet() && bytes <= DIRECT_BYTES;
            let seq = inner.log.append(change, body, bytes, promise);
            inner.applied.insert(seq, done);
            inner.pump(self);
            (Submitted { seq, applied }, is_alone)
        })
    }

    /// Whoever waited for a change has stopped waiting.
    pub(crate) fn strike(self: &Arc<Self>, seq: Seq) {
        let mut inner = self.lock();
        if inner.log.strike(seq) {
            inner.struck = true;
            self.wake.notify_one();
        }
        inner.pump(self);
    }

    /// Whether a change was struck, since this was asked last, that the present connection may
    /// still bring to the host.
    pub(crate) fn take_struck(&self) -> bool {
        std::mem::take(&mut self.lock().struck)
    }

    /// Waits until the log has room, or the host is given up.
    pub(crate) async fn room(core: Arc<Self>, bytes: usize) -> Result<(), Errno> {
        let (there, is_there) = oneshot::channel();
        {
            let mut inner = core.lock();
            if let Some(errno) = inner.caller.refusal() {
                return Err(errno);
            }
            if let Some(errno) = inner.shut
                && !inner.log.has_room(bytes)
            {
                return Err(errno);
            }
            if inner.rooms.is_empty() && inner.log.has_room(bytes) {
                return Ok(());
            }
            inner.rooms.push_back((bytes, there));
        }
        is_there.await.unwrap_or(Err(Errno::ENOTCONN))
    }

    /// Waits until nothing is to be expected of the host.
    pub(crate) async fn given_up(core: Arc<Self>) -> Errno {
        let mut refusal = core.refusal.subscribe();
        let refused = refusal.wait_for(Option::is_some).await;
        refused.ok().and_then(|errno| *errno).unwrap_or(Errno::ENOTCONN)
    }

    pub(crate) fn is_given_up(&self) -> bool {
        self.refusal.borrow().is_some()
    }

    /// The first entry that is still held, and the first without an answer.
    pub(crate) fn unfinished(&self) -> (Seq, Seq) {
        let inner = self.lock();
        (inner.log.held(), inner.log.unanswered())
    }

    /// A connection has its lanes, and is not approved yet. `at_once`: calls are put on it, which
    /// the host answers when it has approved.
    pub(crate) fn opened(
        self: &Arc<Self>,
        connection: ConnectionId,
        mut link: Link,
        at_once: bool,
    ) {
        let mut inner = self.lock();
        if at_once {
            link.listen_calls(self, connection);
        }
        inner.opened = Some((connection, link));
        if at_once {
            inner.caller.handle_connected(connection);
            inner.pump(self);
        }
    }

    /// The connection that is opened, if it is another one than `current`, comes to nothing.
    pub(crate) fn keep_opened(self: &Arc<Self>, current: Option<ConnectionId>, now: Instant) {
        let mut inner = self.lock();
        if let Some((old, _)) = inner.opened.take_if(|(id, _)| Some(*id) != current) {
            inner.caller.handle_lost(old, now);
            inner.pump(self);
        }
    }

    /// The connection that was opened is approved: what waits goes over it. Tells whether it is
    /// still there.
    ///
    /// # Errors
    ///
    /// The host speaks of entries that were never made.
    pub(crate) fn connected(
        self: &Arc<Self>,
        connection: ConnectionId,
        grant: Grant,
    ) -> Result<bool, PeerMisbehaved> {
        let mut inner = self.lock();
        let Some((_, mut link)) = inner.opened.take_if(|(id, _)| *id == connection) else {
            return Ok(false);
        };
        if inner.resumed && grant.read_only {
            // nothing of it would be carried out, nor come again
            let _ = inner.leave();
        }
        inner.log.handle_connected(connection, &grant.cursor)?;
        link.listen(self, connection);
        inner.link = Some(link);
        inner.locks.handle_link();
        inner.view.state = "connected";
        inner.view.connection = connection;
        if let Inner { journal: Some(journal), log, view, .. } = &mut *inner {
            journal.granted(&grant.share, view.identity, log);
        }
        inner.view.grant = grant;
        inner.caller.handle_connected(connection);
        inner.pump(self);
        drop(inner);
        self.refusal.send_replace(None);
        Ok(true)
    }

    /// The connection is gone.
    pub(crate) fn lost(self: &Arc<Self>, connection: ConnectionId, now: Instant) {
        let mut inner = self.lock();
        (inner.link, inner.struck) = (None, false);
        inner.locks.handle_link();
        inner.view.state = "reconnecting";
        inner.caller.handle_lost(connection, now);
        inner.log.handle_lost(connection);
        inner.pump(self);
    }

    /// The host broke the protocol on a connection: nobody waits for what it was asked there.
    pub(crate) fn misbehaved(self: &Arc<Self>, connection: ConnectionId) {
        let mut inner = self.lock();
        if inner.view.connection == connection {
            inner.caller.handle_misbehaved(connection);
            inner.log.handle_misbehaved(connection);
            inner.pump(self);
        }
    }

    /// The host said something about entries.
    pub(crate) fn acknowledged(
        self: &Arc<Self>,
        connection: ConnectionId,
        ack: LogAck,
    ) -> Result<(), PeerMisbehaved> {
        let mut inner = self.lock();
        // What an older connection still says is from before the cursor of the present one
        if inner.view.connection != connection {
            return Ok(());
        }
        inner.log.handle_ack(ack)?;
        inner.pump(self);
        Ok(())
    }

    /// The host answered a call.
    pub(crate) fn answered(self: &Arc<Self>, id: RequestId, answer: Answer) {
        let mut inner = self.lock();
        inner.caller.handle_reply(id, answer);
        inner.pump(self);
    }

    /// The grace may be over.
    pub(crate) fn handle_timeout(self: &Arc<Self>, now: Instant) {
        let mut inner = self.lock();
        inner.caller.handle_timeout(now);
        if let Some(errno) = inner.caller.refusal()
            && inner.view.state == "reconnecting"
        {
            tracing::warn!("the host has been silent for the grace");
            inner.view.state = "offline";
            inner.log.give_up();
            inner.refuse(self, errno);
        }
        inner.pump(self);
    }

    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        self.lock().caller.poll_timeout()
    }

    /// Nothing is answered any more. What was accepted is left for [`Self::put_away`].
    pub(crate) fn end(self: &Arc<Self>) {
        let mut inner = self.lock();
        inner.view.state = "offline";
        inner.caller.end();
        let _ = inner.leave();
        (inner.link, inner.opened) = (None, None);
        inner.locks.end();
        inner.refuse(self, Errno::ENOTCONN);
        inner.pump(self);
        self.any_undone.notify_one();
    }

    /// Refuses with `errno` what is asked, also what is being asked; what was accepted is still
    /// delivered, and waited for by [`Call::SyncAll`].
    pub(crate) fn shut(self: &Arc<Self>, errno: Errno) {
        let mut inner = self.lock();
        inner.shut = Some(errno);
        inner.caller.fail_pending(errno);
        for (_, there) in inner.rooms.drain(..) {
            let _ = there.send(Err(errno));
        }
        inner.pump(self);
        self.wake.notify_one();
    }

    pub(crate) fn is_shut(&self) -> bool {
        self.lock().shut.is_some()
    }

    /// Takes the log away, to be delivered by another run of the client.
    pub(crate) fn put_away(self: &Arc<Self>) -> PutAway {
        let mut inner = self.lock();
        inner.link = None;
        inner.opened = None;
        // it must not come back to the host, who may hand the session to another process by now
        (inner.closing, inner.parting) = (true, true);
        let left = inner.leave();
        inner.pump(self);
        self.wake.notify_one();
        self.any_undone.notify_one();
        left
    }

    /// Whether what is accepted outlives this process.
    pub(crate) fn is_kept(&self) -> bool {
        self.lock().journal.as_ref().is_none_or(Noted::is_kept)
    }

    /// What the session had accepted has arrived, or is kept elsewhere.
    pub(crate) fn forget_journal(&self) {
        let mut inner = self.lock();
        let left = inner.left_journal.take();
        for mut journal in inner.journal.take().into_iter().chain(left) {
            journal.forget();
        }
    }

    /// Changes that the host refused after they were accepted.
    pub(crate) fn refused(&self) -> u64 {
        self.lock().view.refused_writes
    }

    /// Another process goes on with the session, once it is closed here.
    pub(crate) fn part(&self) {
        self.lock().parting = true;
    }

    pub(crate) fn is_parting(&self) -> bool {
        self.lock().parting
    }

    /// Asks the supervisor to end the session.
    pub(crate) fn close(&self) {
        self.lock().closing = true;
        self.wake.notify_one();
        // who waits for it may be gone
        self.any_undone.notify_one();
    }

    pub(crate) fn is_closing(&self) -> bool {
        self.lock().closing
    }

    pub(crate) fn update(&self, change: impl FnOnce(&mut View)) {
        change(&mut self.lock().view);
    }

    pub(crate) fn round_trip(&self) -> Duration {
        self.lock().link.as_ref().map(Link::round_trip).unwrap_or_default()
    }

    pub(crate) fn has_path(&self) -> bool {
        self.lock().view.path.is_some()
    }

    pub(crate) fn path(&self) -> Option<PathInfo> {
        self.lock().view.path.clone()
    }

    pub(crate) fn grant(&self) -> Grant {
        self.lock().view.grant.clone()
    }

    pub(crate) fn is_identity(&self) -> bool {
        self.lock().view.identity
    }

    pub(crate) fn last_entry(&self) -> Seq {
        self.lock().log.last()
    }

    pub(crate) fn is_connected(&self) -> bool {
        self.lock().link.is_some()
    }

    /// Entries that are not known to be on the host's disk, and their data, bytes.
    pub(crate) fn unstable(&self) -> (u64, u64) {
        let (entries, bytes) = self.lock().log.unstable();
        (entries as u64, bytes as u64)
    }

    pub(crate) fn is_delivered(&self) -> bool {
        let inner = self.lock();
        inner.left.as_ref().is_none_or(|left| left.entries.is_empty()) && inner.is_empty()
    }

    /// Whether anybody waits for an answer of the host.
    pub(crate) fn is_waiting(&self) -> bool {
        let inner = self.lock();
        inner.caller.pending() > 0 || inner.log.unapplied().0 > 0
    }

    pub(crate) fn status(&self) -> Value {
        let inner = self.lock();
        let (unapplied, bytes) = inner.log.unapplied();
        let (unstable, _) = inner.log.unstable();
        inner.view.to_json(Pending { unstable, unapplied, bytes })
    }

    pub(super) fn with_locks<T>(
        &self,
        change: impl FnOnce(&mut LockDesk, Option<&Link>, ConnectionId) -> T,
    ) -> T {
        let mut inner = self.lock();
        let Inner { locks, link, view, .. } = &mut *inner;
        change(locks, link.as_ref(), view.connection)
    }

    pub(super) fn lost_locks(&self) -> &AnyLost {
        &self.lost
    }

    /// The machines are changed in whole steps, so a panic elsewhere does not spoil them.
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    /// Whether hardly anything is under way.
    fn is_quiet(&self) -> bool {
        self.answers.len() + self.applied.len() <= QUIET
    }

    fn caller_is_up(&self) -> bool {
        self.link.is_some()
    }

    fn is_empty(&self) -> bool {
        self.log.unstable().0 == 0 && self.log.unapplied().0 == 0
    }

    /// Ends the log, and keeps what it has accepted.
    fn leave(&mut self) -> PutAway {
        if let Some(left) = &self.left {
            return left.clone();
        }
        let (kept, entries) = self.log.keep();
        self.log.end();
        self.left_journal = self.journal.take();
        let left = PutAway { session: self.session, kept, entries };
        self.left = Some(left.clone());
        left
    }

    /// Does what the machines say. Quick: nothing here waits.
    fn pump(&mut self, core: &Arc<Core>) {
        while let Some(output) = self.caller.poll_output() {
            match output {
                calls::Output::Send { id, call, .. } => {
                    let opened = self.opened.as_ref().map(|(_, link)| link);
                    let Some(link) = self.link.as_ref().or(opened) else { continue };
                    let task = link.call(core, id, call);
                    if let Some((_, slot)) = self.answers.get_mut(&id) {
                        *slot = task;
                    }
                }
                calls::Output::Complete { id, result } => {
                    if let Some((answer, _)) = self.answers.remove(&id) {
                        let _ = answer.send(result);
                    }
                }
            }
        }
        while let Some(output) = self.log.poll_output() {
            match output {
                log::Output::Note { note, body } => {
                    if let Some(journal) = &mut self.journal {
                        journal.note(&note, &body);
                    }
                }
                log::Output::Ship { mut entry, body, .. } => {
                    if let Some(journal) = &mut self.journal {
                        journal.flush();
                    }
                    self.leave_closed(&mut entry);
                    if let Some(link) = &self.link {
                        link.ship(entry, body);
                    }
                }
                log::Output::Applied { seq, result } => {
                    if let Some(done) = self.applied.remove(&seq) {
                        let _ = done.send(result);
                    }
                }
                log::Output::Aside { seq, refused } => {
                    tracing::warn!(%seq, ?refused, "the host refused a change that was accepted");
                    self.view.refused_writes += 1;
                    // Whoever made it is told, and it is not kept for later; if he is still there
                    if !self.resumed {
                        self.note_undone(core, seq, refused.errno);
                        self.log.settle_aside(seq);
                    }
                }
                log::Output::StruckApplied { seq, .. } => {
                    tracing::info!(%seq, "a change that was given up had been carried out");
                }
                log::Output::Remade { old, new, .. } => {
                    tracing::info!(?old, ?new, "the host made a node again after a crash");
                }
                log::Output::Progress => {
                    self.give_room();
                    self.tell_heard();
                }
            }
        }
        if let Some(journal) = &mut self.journal {
            journal.flush();
            journal.tidy(&self.log);
        }
    }

    /// An entry was set aside. Whoever made the change is told by the entry's own answer, if that
    /// is still to come; else what it changed is noted.
    fn note_undone(&mut self, core: &Core, seq: Seq, errno: Errno) {
        if self.applied.contains_key(&seq) {
            return;
        }
        for node in self.log.changed_by_aside(seq) {
            self.undone.entry(node).or_insert(errno);
        }
        core.any_undone.notify_one();
    }

    fn tell_heard(&mut self) {
        let next = self.log.unanswered();
        for (_, all) in self.heard.extract_if(.., |(upto, _)| *upto < next) {
            let _ = all.send(Ok(()));
        }
    }

    /// A creation that is done again must not open what is closed by then.
    fn note_closed(&mut self, call: &Call) {
        if let Call::Release { handle, upto } = call {
            let stable = self.log.stable();
            self.closed.retain(|_, last| *last > stable);
            self.closed.insert(*handle, *upto);
        }
    }

    fn leave_closed(&self, entry: &mut LogEntry) {
        if let Mutation::Create { open, .. } = &mut entry.change.mutation
            && entry.sent != Sent::First
            && open.is_some_and(|open| self.closed.contains_key(&open.handle))
        {
            *open = None;
        }
    }

    /// First come, first served; who is let in has not submitted yet, so it is counted here.
    fn give_room(&mut self) {
        let mut granted = 0;
        while let Some((bytes, _)) = self.rooms.front() {
            let bytes = *bytes;
            let first = granted == 0;
            let fits = first || granted + bytes <= LOG_BYTES_UNAPPLIED_MAX;
            if !fits || !self.log.has_room(granted + bytes) {
                return;
            }
            if let Some((_, there)) = self.rooms.pop_front()
                && there.send(Ok(())).is_ok()
            {
                granted += bytes;
            }
        }
    }

    /// Whoever waits on the host is told that it is in vain.
    fn refuse(&mut self, core: &Core, errno: Errno) {
        let rooms = self.rooms.drain(..).map(|(_, there)| there);
        for waiter in rooms.chain(self.heard.drain(..).map(|(_, all)| all)) {
            let _ = waiter.send(Err(errno));
        }
        core.refusal.send_replace(Some(errno));
    }

    fn cancel(&mut self, id: RequestId) {
        if let Some((_, Some(task))) = self.answers.remove(&id) {
            task.abort();
        }
        self.caller.cancel(id);
    }
}

struct CancelOnDrop<'a> {
    core: &'a Arc<Core>,
    id: Option<RequestId>,
}

impl CancelOnDrop<'_> {
    fn defuse(mut self) {
        self.id = None;
    }
}

impl Drop for CancelOnDrop<'_> {
    fn drop(&mut self) {
        if let Some(id) = self.id {
            let mut inner = self.core.lock();
            inner.cancel(id);
            inner.pump(self.core);
        }
    }
}
