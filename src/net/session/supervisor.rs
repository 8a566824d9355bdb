//! The task that keeps a session: registers, finds paths, makes and replaces connections.

mod first;

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use quinn::{Connection, ConnectionError, TransportErrorCode};
use tokio::sync::{mpsc, oneshot, watch};

use crate::failure::{Code, Failure};
use crate::id::{ConnectionId, SessionId};
use crate::limits::HANDSHAKE;
use crate::net::daemon;
use crate::net::endpoint::{Auth, Endpoint, Meet, PathEvent, PathInfo};
use crate::net::pathmux::Virtual;
use crate::net::quic;
use crate::net::rendezvous::{
    Dialler, FirstFlight, Introduction, Registration, RegistrationConfig, RendezvousError,
    RendezvousEvent, ServerLink, Side, usual_stun,
};
use crate::net::session::core::Core;
use crate::net::session::link::{self, Link, LinkError};
use crate::net::session::loans::{Loans, loans_of};
use crate::net::session::{ClientConfig, Phase, PutAway};
use crate::proto::PeerMisbehaved;
use crate::proto::redo::log::Log;
use crate::proto::session::{End, Output, Session, State};
use crate::wire::probe::Role;
use crate::wire::session::{CloseReason, Identify, Verdict};

use self::first::First;

/// How often `status` is brought up to date where nothing else happens.
const TICK: Duration = Duration::from_secs(1);
/// A network may be silent for so long without anybody calling that a failure.
const SILENCE_MIN: Duration = Duration::from_secs(1);
/// A loop that turns at every [`TICK`] and has not for so long was not let run.
const STOPPED: Duration = Duration::from_secs(3);
/// How long a host may be silent while a change may be on its way to it for which nobody waits any
/// more; at least so many round trips.
const STRUCK_SILENCE: Duration = Duration::from_millis(500);
const STRUCK_TRIPS: u32 = 4;
/// The TLS alert (RFC 8446, 6) with which our verifier refuses a key that is not the host's.
const ACCESS_DENIED: u8 = 49;

/// The task's state.
pub(super) struct Supervisor {
    pub(super) core: Arc<Core>,
    config: ClientConfig,
    quic: quinn::ClientConfig,
    endpoint: Endpoint,
    pub(super) registrations: Vec<Registration>,
    pub(super) machine: Session,
    session: SessionId,
    phase: watch::Sender<Phase>,
    events: mpsc::Receiver<RendezvousEvent>,
    paths: mpsc::UnboundedReceiver<(Virtual, PathEvent)>,
    path_events: mpsc::UnboundedSender<(Virtual, PathEvent)>,
    progress: mpsc::UnboundedReceiver<Progress>,
    report: mpsc::UnboundedSender<Progress>,
    /// The peer of the newest match that answered, and of one that is being tried.
    peer: Option<Virtual>,
    trying: Option<Virtual>,
    /// A handshake whose beginning went along with our request to be introduced.
    first: Option<First>,
    connection: Option<(ConnectionId, Connection)>,
    /// The connection that is being lost was replaced by us.
    renewed: bool,
    /// The peers whose host has asked us to identify ourselves (authentication 140).
    asked: Vec<Virtual>,
    /// How the identification under way goes.
    auth: Option<Auth>,
    /// What the host's last verdict says: whether it acts as whoever asks.
    identity: bool,
    pub(super) loans: Loans,
    /// How many packets of the host have come on it, and when that was last seen to grow.
    heard: (u64, Instant),
    /// Since when a change is to be recalled, and how many packets had come by then.
    recall: Option<(u64, Instant)>,
}

/// What the tasks of a connection report.
enum Progress {
    /// A registration is about to ask for an introduction.
    Dial(oneshot::Sender<FirstFlight>),
    Connected(ConnectionId, Connection),
    /// Request 21 is on its way, and the lanes are open.
    Opened(ConnectionId, Link),
    Verdict(ConnectionId, Verdict),
    WrongHost(ConnectionId),
    Lost(ConnectionId, CloseReason),
}

impl Supervisor {
    pub(super) fn new(
        mut config: ClientConfig,
    ) -> Result<(Arc<Core>, Self, watch::Receiver<Phase>), Failure> {
        if config.servers.is_empty() {
            return Err(Failure::new(
                Code::ServerUnreachable,
                "the key names no rendezvous server",
                "pair it again on a host that has one: p2pfs-hostd pair --server ADDRESS ...",
            ));
        }
        let quic = quic::client_config(&config.secret, config.host)?;
        let endpoint = Endpoint::start(None, None, Some(config.host_mac))?;
        let (events_in, events) = mpsc::channel(64);
        let (report, progress) = mpsc::unbounded_channel();
        let loans = loans_of(&config);
        let register = |server| {
            let side = Side::Client {
                pair_key: config.pair_key.clone(),
                mac: config.host_mac,
                host: config.host,
                loans: loans.clone(),
                first: Some(Dialler::new({
                    let report = report.clone();
                    move |first| drop(report.send(Progress::Dial(first)))
                })),
            };
            let secret = config.secret.clone();
            let routing = endpoint.routing();
            let relayed = Some(endpoint.relay_inbox());
            let config = RegistrationConfig { secret, server, side, routing, relayed };
            Registration::start(config, events_in.clone())
        };
        // a round trip sooner than the server can say where: mostly it is there
        endpoint.set_stun_servers(config.servers.iter().filter_map(usual_stun).collect());
        let registrations = config.servers.iter().cloned().map(register).collect();
        let (session, log) = match config.resume.take() {
            Some(away) => {
                let PutAway { session, kept, entries } = *away;
                (session, Log::restore(&kept, entries, Bytes::len))
            }
            None => (SessionId(daemon::random()), Log::new()),
        };
        let journal = config.journal.as_ref().map(|journals| journals.open(session));
        let core = Core::new(config.grace, config.host.to_text(), session, log, journal);
        let (phase, phase_out) = watch::channel(Phase::default());
        let (path_events, paths) = mpsc::unbounded_channel();
        let supervisor = Self {
            core: Arc::clone(&core),
            machine: Session::new(config.wait),
            session,
            config,
            quic,
            endpoint,
            registrations,
            phase,
            events,
            paths,
            path_events,
            progress,
            report,
            peer: None,
            trying: None,
            first: None,
            connection: None,
            renewed: false,
            asked: Vec::new(),
            auth: None,
            identity: false,
            loans: Loans::default(),
            heard: (0, Instant::now()),
            recall: None,
        };
        Ok((core, supervisor, phase_out))
    }

    pub(super) async fn run(mut self) {
        let core = Arc::clone(&self.core);
        let mut tick = tokio::time::interval(TICK);
        let mut routing = self.endpoint.routing();
        let mut turned = Instant::now();
        while !matches!(self.machine.state(), State::Ended(_)) {
            let recall = self.recall_at();
            let timers = [self.machine.poll_timeout(), core.poll_timeout(), recall];
            let wake = timers.into_iter().flatten().min().unwrap_or_else(|| Instant::now() + TICK);
            tokio::select! {
                Some(event) = self.events.recv() => self.handle_rendezvous(event),
                Some((peer, event)) = self.paths.recv() => self.handle_path(peer, event),
                Some(progress) = self.progress.recv() => self.handle_progress(progress),
                () = tokio::time::sleep_until(wake.into()) => {}
                () = core.wake.notified() => {}
                Ok(()) = routing.changed() => {}
                _ = tick.tick() => {}
            }
            self.refresh_view();
            if core.is_closing() {
                self.machine.close();
            }
            let now = Instant::now();
            if now > turned + STOPPED {
                tracing::info!("this process was stopped for a while: the grace begins anew");
                self.heard.1 = now;
            }
            turned = now;
            self.end_silence(now);
            self.machine.handle_timeout(now);
            core.handle_timeout(now);
            self.drive();
            self.see_to_loans(now);
        }
        // while another process may take over
        self.lend(false);
        // QUIC sends the farewell; without waiting for it the host would keep the session
        let farewell = self.endpoint.quic.wait_idle();
        let _ = tokio::time::timeout(Duration::from_millis(500), farewell).await;
    }

    fn handle_rendezvous(&mut self, event: RendezvousEvent) {
        match event {
            RendezvousEvent::Connected { stun, .. } => {
                self.endpoint.set_stun_servers(stun);
                self.phase.send_modify(|phase| phase.server_connected = true);
            }
            RendezvousEvent::Lost { error: RendezvousError::ServerChanged } => {
                tracing::warn!("the server has another key than the one that was pinned");
                self.phase.send_modify(|phase| phase.server_changed = true);
            }
            RendezvousEvent::Lost { error } => tracing::debug!(%error, "server lost"),
            RendezvousEvent::NoMatch => tracing::debug!("the server knows no such host now"),
            RendezvousEvent::Introduced(introduction, link) => {
                self.handle_introduced(introduction, link);
            }
            RendezvousEvent::Moved(match_id, public) => {
                self.endpoint.moved(match_id, public);
                self.core.update(|view| {
                    view.peer.udp_public = public.udp.or(view.peer.udp_public);
                    view.peer.tcp_public = public.tcp.or(view.peer.tcp_public);
                });
            }
        }
    }

    fn handle_introduced(&mut self, introduction: Introduction, link: ServerLink) {
        self.phase.send_modify(|phase| phase.introduced = true);
        let stands = self.core.has_path() && matches!(self.machine.state(), State::Up(_));
        if stands && !self.loans.wants(&link) {
            return;
        }
        self.loans.introduced(&link);
        if let Some(trying) = self.trying.take() {
            self.endpoint.remove(trying);
        }
        let routing = introduction.routing.clone();
        self.core.update(|view| view.peer = routing);
        let (role, wanted) = (Role::Client, self.config.wanted);
        let peer = self.first_peer(&introduction);
        let meet = Meet { introduction, link, role, wanted, ask_after: None, peer };
        let (peer, mut events) = self.endpoint.meet(meet);
        self.trying = Some(peer);
        let path_events = self.path_events.clone();
        tokio::spawn(async move {
            while let Some(event) = events.recv().await {
                if path_events.send((peer, event)).is_err() {
                    return;
                }
            }
            // it is over: without a path for long, or given up here
            let _ = path_events.send((peer, PathEvent::Down));
        });
    }

    fn handle_path(&mut self, peer: Virtual, event: PathEvent) {
        match event {
            PathEvent::Up(path) if self.trying == Some(peer) => {
                self.trying = None;
                if let Some(old) = self.peer.replace(peer) {
                    self.endpoint.remove(old);
                    self.asked.retain(|asked| *asked != old);
                    // A new match is a new peer to QUIC: its connection is replaced
                    if let Some((_, connection)) = self.connection.take() {
                        link::close(&connection, CloseReason::Replaced);
                        self.renewed = matches!(self.machine.state(), State::Up(_));
                    }
                    self.give_up_attempt();
                }
                self.set_path(Some(path));
            }
            PathEvent::Up(path) if self.peer == Some(peer) => self.set_path(Some(path)),
            PathEvent::Down if self.peer == Some(peer) => self.set_path(None),
            PathEvent::Down if self.trying == Some(peer) => {
                self.trying = None;
                if !self.core.has_path() {
                    self.seek_again();
                }
            }
            PathEvent::Asked if !self.asked.contains(&peer) => self.asked.push(peer),
            PathEvent::Tried(tried) if [self.peer, self.trying].contains(&Some(peer)) => {
                self.core.update(|view| {
                    if let Some(path) = &mut view.path {
                        path.tried.clone_from(&tried);
                    }
                    view.tried = tried;
                });
            }
            PathEvent::Up(_) | PathEvent::Down | PathEvent::Asked | PathEvent::Tried(_) => {}
        }
    }

    /// A handshake with a peer that was replaced leads nowhere.
    fn give_up_attempt(&mut self) {
        if let State::Connecting(id) | State::Identifying(id) = *self.machine.state() {
            self.machine.handle_lost(id, CloseReason::Replaced, Instant::now());
        }
    }

    fn set_path(&mut self, path: Option<PathInfo>) {
        let is_up = path.is_some();
        self.core.update(|view| view.path = path);
        if is_up {
            self.phase.send_modify(|phase| phase.path = true);
            self.machine.handle_path_up();
        } else {
            self.machine.handle_path_down();
            self.seek_again();
        }
    }

    fn handle_progress(&mut self, progress: Progress) {
        match progress {
            Progress::Dial(first) => self.begin_first(first),
            Progress::Connected(id, connection) => {
                self.connection = Some((id, connection));
                self.heard = (0, Instant::now());
                self.recall = None;
                self.machine.handle_connected(id);
            }
            Progress::Verdict(id, verdict) => {
                if let Verdict::Denied(denial) = &verdict {
                    let denial = denial.clone();
                    self.phase.send_modify(|phase| phase.denied = Some(denial));
                }
                let identity = matches!(verdict, Verdict::ApprovedIdentity(_));
                let approved = !matches!(verdict, Verdict::Denied(_));
                let auth = self.auth.filter(|_| approved);
                self.core.update(|view| view.auth = auth.or(view.auth));
                self.identity = identity;
                if let Some(peer) = self.peer.filter(|_| approved) {
                    self.endpoint.authenticated(peer);
                }
                self.machine.handle_verdict(id, verdict, Instant::now());
            }
            Progress::Opened(id, link) => {
                if *self.machine.state() == State::Identifying(id) {
                    // not in a session that stands: what is denied must not stop the grace
                    let at_once = !self.phase.borrow().up;
                    self.core.opened(id, link, at_once);
                }
            }
            Progress::WrongHost(id) => {
                self.phase.send_modify(|phase| phase.wrong_host = true);
                self.machine.handle_lost(id, CloseReason::Done, Instant::now());
            }
            Progress::Lost(id, why) => {
                self.listen(Instant::now());
                self.connection.take_if(|(current, _)| *current == id);
                self.machine.handle_lost(id, why, Instant::now());
            }
        }
    }

    fn drive(&mut self) {
        // before its streams end, which would look as if the host had ended them
        if matches!(self.machine.state(), State::Ended(_)) {
            self.say_farewell();
        }
        while let Some(output) = self.machine.poll_output() {
            match output {
                Output::Connect(id) => self.connect(id),
                Output::Identify(id) => self.identify(id),
                Output::Up(id, grant) => {
                    // a match that was asked for meanwhile would only replace what works
                    if let Some(trying) = self.trying.take() {
                        self.endpoint.remove(trying);
                        self.asked.retain(|asked| *asked != trying);
                    }
                    self.renewed = false;
                    self.set_in_use(true);
                    let identity = self.identity;
                    self.core.update(|view| view.identity = identity);
                    match self.core.connected(id, grant) {
                        Ok(true) => self.phase.send_modify(|phase| phase.up = true),
                        // lost meanwhile, which is being reported
                        Ok(false) => {}
                        Err(error) => self.misbehaved(error),
                    }
                }
                Output::Down(id) => {
                    // the grace counts from the last that was heard
                    self.core.lost(id, self.heard.1);
                    self.set_in_use(false);
                    // one that we have replaced is no reason for yet another match
                    if !std::mem::take(&mut self.renewed) {
                        self.seek_again();
                    }
                }
                Output::Ended(end) => self.end(end),
            }
        }
        let current = match self.machine.state() {
            State::Identifying(id) | State::Up(id) => Some(*id),
            State::Searching | State::Connecting(_) | State::Ended(_) => None,
        };
        self.core.keep_opened(current, Instant::now());
    }

    /// Looks whether the host has said anything.
    fn listen(&mut self, now: Instant) {
        if let Some((_, connection)) = &self.connection {
            let packets = connection.stats().udp_rx.datagrams;
            if packets != self.heard.0 {
                self.heard = (packets, now);
            }
        }
    }

    /// A connection on which somebody waits for a host that has been silent for the grace is given
    /// up, before QUIC does that. So is one on which a change was sent that nobody waits for any
    /// more, if nothing is heard of the host for a while: QUIC would go on sending it, and it would
    /// happen when the network is back.
    fn end_silence(&mut self, now: Instant) {
        self.listen(now);
        if self.core.take_struck() {
            self.recall = Some((self.heard.0, now));
        }
        self.recall.take_if(|(packets, _)| *packets != self.heard.0);
        let Some((_, connection)) = &self.connection else {
            self.recall = None;
            return;
        };
        let silence = now.duration_since(self.heard.1);
        let is_over = |grace: Duration| silence >= grace.max(SILENCE_MIN);
        let gives_up = self.config.grace.is_some_and(is_over) && self.core.is_waiting();
        let recalls = self.recall_at().is_some_and(|at| at <= now);
        if gives_up || recalls {
            tracing::debug!(?silence, recalls, "the host is silent: giving the connection up");
            self.recall = None;
            link::close(connection, CloseReason::Done);
        }
    }

    fn recall_at(&self) -> Option<Instant> {
        let patience = STRUCK_SILENCE.max(self.core.round_trip() * STRUCK_TRIPS);
        self.recall.map(|(_, since)| since + patience)
    }

    fn connect(&mut self, id: ConnectionId) {
        let Some(peer) = self.peer else { return };
        let report = self.report.clone();
        let begun = self.first.take().and_then(|first| first.into_handshake(peer));
        let dialled = begun.map_or_else(|| self.dial(peer), Ok);
        tokio::spawn(async move {
            let connected = match dialled {
                Ok(connecting) => tokio::time::timeout(HANDSHAKE, connecting).await,
                Err(error) => {
                    tracing::warn!(%error, "cannot dial");
                    let _ = report.send(Progress::Lost(id, CloseReason::Done));
                    return;
                }
            };
            let _ = report.send(match connected {
                Ok(Ok(connection)) => Progress::Connected(id, connection),
                Ok(Err(error)) if is_wrong_key(&error) => Progress::WrongHost(id),
                Ok(Err(error)) => {
                    tracing::debug!(%error, "handshake failed");
                    Progress::Lost(id, CloseReason::Done)
                }
                Err(_) => Progress::Lost(id, CloseReason::Done),
            });
        });
    }

    fn identify(&mut self, id: ConnectionId) {
        let Some((_, connection)) = self.connection.clone() else {
            return;
        };
        let (held, unanswered) = self.core.unfinished();
        // the only one there was, though there may be more by now
        let granted = Some(self.core.grant().share).filter(|share| !share.is_empty());
        let share = self.config.share.clone().or(granted);
        let request = Identify {
            session: self.session,
            device: self.config.device.clone(),
            share,
            client_name: self.config.client_name.clone(),
            held,
            unanswered,
        };
        let asked = self.peer.is_some_and(|peer| self.asked.contains(&peer));
        let over = self.core.path().map(|path| path.rung);
        self.auth = over.map(|rung| Auth::over(rung, asked));
        let report = self.report.clone();
        tokio::spawn(async move {
            // the lanes in the same flight: what is asked on them waits for the verdict at the host
            let identified = async {
                let verdict = link::identify(&connection, &request, over, asked).await?;
                let link = Link::open(connection.clone()).await?;
                let _ = report.send(Progress::Opened(id, link));
                verdict.verdict().await
            };
            match tokio::time::timeout(HANDSHAKE, identified).await {
                Ok(Ok(verdict)) => {
                    let denied = matches!(verdict, Verdict::Denied(_));
                    let _ = report.send(Progress::Verdict(id, verdict));
                    if denied {
                        link::close(&connection, CloseReason::Done);
                        return;
                    }
                    let why = reason_of(&connection.closed().await);
                    let _ = report.send(Progress::Lost(id, why));
                }
                identified => {
                    let why =
                        connection.close_reason().map_or(CloseReason::Done, |e| reason_of(&e));
                    let mut reason = CloseReason::Done;
                    if let Ok(Err(error @ LinkError::Unbounded)) = identified {
                        tracing::warn!(%error, "the host misbehaved: closing the connection");
                        reason = CloseReason::Misbehaved;
                    }
                    link::close(&connection, reason);
                    let _ = report.send(Progress::Lost(id, why));
                }
            }
        });
    }

    fn misbehaved(&self, error: PeerMisbehaved) {
        tracing::warn!(%error, "the host misbehaved: closing the connection");
        if let Some((_, connection)) = &self.connection {
            link::close(connection, CloseReason::Misbehaved);
        }
    }

    fn say_farewell(&mut self) {
        if let Some((_, connection)) = self.connection.take() {
            let reason = match self.core.is_parting() {
                true => CloseReason::Done,
                false => CloseReason::Ended,
            };
            link::close(&connection, reason);
        }
    }

    fn end(&mut self, end: End) {
        self.core.end();
        self.phase.send_modify(|phase| phase.end = Some(end));
    }

    /// Brings what `status` shows up to date.
    fn refresh_view(&self) {
        let own = self.endpoint.routing().borrow().clone();
        let statuses: Vec<_> = self.registrations.iter().map(Registration::status).collect();
        let age = statuses.iter().filter_map(|status| status.age).min();
        let borrowed = statuses.iter().any(|status| status.borrowed);
        let tcp_public = statuses.iter().find_map(|status| status.tcp_public);
        let tcp_private = statuses.iter().filter_map(|status| status.tcp_private).collect();
        self.core.update(|view| {
            view.own = own;
            view.own.tcp_public = tcp_public;
            view.own.tcp_private = tcp_private;
            view.rendezvous_age = age;
            view.borrowed = borrowed;
        });
    }

    fn set_in_use(&self, in_use: bool) {
        self.endpoint.set_in_use(in_use);
        for registration in &self.registrations {
            registration.set_in_use(in_use);
        }
    }

    fn seek_again(&self) {
        for registration in &self.registrations {
            registration.seek_again();
        }
    }
}

fn reason_of(error: &ConnectionError) -> CloseReason {
    match error {
        ConnectionError::ApplicationClosed(close) => {
            CloseReason::from_code(close.error_code.into_inner())
        }
        _ => CloseReason::Done,
    }
}

fn is_wrong_key(error: &ConnectionError) -> bool {
    let ConnectionError::TransportError(error) = error else {
        return false;
    };
    error.code == TransportErrorCode::crypto(ACCESS_DENIED)
}
