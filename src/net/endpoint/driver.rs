//! The task that runs STUN and the matches, and owns the TCP listeners.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::net::TcpStream;
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::task::AbortHandle;

use super::meeting::{Meeting, WATCH_INTERVAL, tag_of};
use super::{Command, now};
use crate::limits::{RENDEZVOUS_IDLE_INTERVAL, RENDEZVOUS_INTERVAL};
use crate::net::pathmux::{Control, PathMux};
use crate::net::{daemon, interfaces, tcp};
use crate::proto::path::{Path, Rung, StreamId};
use crate::proto::stun::{StunClient, StunOutput};
use crate::wire::probe::{Probe, ProbeTag};
use crate::wire::rendezvous::Routing;

/// How often this machine's own addresses are read again.
const INTERFACES_INTERVAL: Duration = Duration::from_secs(5);
/// Accepted streams that have not said yet which match they belong to.
const UNKNOWN_STREAMS_MAX: usize = 16;

pub(super) struct Driver {
    mux: Arc<PathMux>,
    quic: quinn::Endpoint,
    stun: StunClient,
    routing: watch::Sender<Routing>,
    meetings: BTreeMap<ProbeTag, Meeting>,
    streams: mpsc::UnboundedSender<StreamEvent>,
    stream_events: mpsc::UnboundedReceiver<StreamEvent>,
    listeners: BTreeMap<u16, AbortHandle>,
    unknown: Arc<Semaphore>,
    watching: bool,
    watch_at: Instant,
}

/// What a meeting acts on.
pub(super) struct Surroundings<'a> {
    pub(super) mux: &'a Arc<PathMux>,
    pub(super) routing: &'a Routing,
    quic: &'a quinn::Endpoint,
}

/// What happens to TCP streams.
enum StreamEvent {
    Dialled { tag: ProbeTag, to: SocketAddr, rung: Rung, stream: TcpStream },
    Failed { tag: ProbeTag, to: SocketAddr },
    Came { port: u16, from: SocketAddr, stream: TcpStream },
    Named { from: SocketAddr, stream: TcpStream, probe: Bytes },
    Closed(StreamId),
}

impl Surroundings<'_> {
    /// Makes QUIC say something now: a socket that changes does that, even to the same one.
    pub(super) fn kick(&self) {
        let mux = Arc::clone(self.mux);
        if let Err(error) = self.quic.rebind_abstract(mux) {
            tracing::debug!(%error, "QUIC cannot be woken");
        }
    }
}

impl Driver {
    pub(super) fn new(
        mux: Arc<PathMux>,
        quic: quinn::Endpoint,
        routing: watch::Sender<Routing>,
    ) -> Self {
        let (streams, stream_events) = mpsc::unbounded_channel();
        let mut driver = Self {
            mux,
            quic,
            stun: StunClient::new(daemon::random(), RENDEZVOUS_IDLE_INTERVAL),
            routing,
            meetings: BTreeMap::new(),
            streams,
            stream_events,
            listeners: BTreeMap::new(),
            unknown: Arc::new(Semaphore::new(UNKNOWN_STREAMS_MAX)),
            watching: false,
            watch_at: now(),
        };
        driver.read_interfaces();
        driver
    }

    pub(super) async fn run(
        mut self,
        mut controls: mpsc::Receiver<Control>,
        mut commands: mpsc::UnboundedReceiver<Command>,
    ) {
        let mut interfaces = tokio::time::interval(INTERFACES_INTERVAL);
        let mux = Arc::clone(&self.mux);
        loop {
            let wake = self.next_wake();
            tokio::select! {
                control = controls.recv() => match control {
                    Some(control) => self.handle_control(&control, now()),
                    None => return,
                },
                command = commands.recv() => match command {
                    Some(command) => self.handle_command(command, now()),
                    None => return,
                },
                Some(event) = self.stream_events.recv() => self.handle_stream(event, now()),
                () = mux.stirred() => {
                    if !self.watching {
                        self.watching = true;
                        self.watch_at = now() + WATCH_INTERVAL;
                    }
                }
                () = tokio::time::sleep_until(wake.into()) => {}
                _ = interfaces.tick() => self.read_interfaces(),
            }
            self.drive(now());
        }
    }

    fn next_wake(&self) -> Instant {
        let meetings = self.meetings.values().filter_map(Meeting::poll_timeout);
        let watch = self.watching.then_some(self.watch_at);
        let far = now() + INTERFACES_INTERVAL;
        meetings.chain(self.stun.poll_timeout()).chain(watch).min().unwrap_or(far)
    }

    fn handle_control(&mut self, control: &Control, now: Instant) {
        if let Path::Udp(from) = control.from
            && (self.stun.handle_datagram(&control.bytes, from, now)
                || self.meetings.values_mut().any(|one| one.handle_bind(&control.bytes, from, now)))
        {
            return;
        }
        if let Some(tag) = Probe::claimed_tag(&control.bytes)
            && let Some(one) = self.meetings.get_mut(&tag)
        {
            one.handle_probe(control, now);
        }
    }

    fn handle_command(&mut self, command: Command, now: Instant) {
        match command {
            Command::Stun(servers) => self.stun.set_servers(&servers, now),
            Command::InUse(true) => self.stun.set_interval(RENDEZVOUS_INTERVAL, now),
            Command::InUse(false) => self.stun.set_interval(RENDEZVOUS_IDLE_INTERVAL, now),
            Command::Meet { meet, peer, events } => {
                let routing = self.routing.borrow().clone();
                let around = Surroundings { mux: &self.mux, routing: &routing, quic: &self.quic };
                let one = Meeting::new(*meet, peer, events, &around, now);
                self.meetings.insert(tag_of(one.match_id), one);
            }
            Command::Moved(match_id, public) => {
                let own = self.routing.borrow().clone();
                if let Some(one) = self.meetings.get_mut(&tag_of(match_id)) {
                    one.handle_moved(public, &own, now);
                }
            }
            Command::Turn(turn) => drop(turn),
            Command::Authenticated(peer) => {
                for one in self.meetings.values_mut().filter(|one| one.peer == peer) {
                    one.handle_authenticated(now);
                }
            }
            Command::Remove(peer) => {
                let mux = &self.mux;
                self.meetings.retain(|_, one| {
                    let stays = one.peer != peer;
                    if !stays {
                        one.close(mux);
                    }
                    stays
                });
                self.mux.remove_peer(peer);
            }
        }
    }

    fn handle_stream(&mut self, event: StreamEvent, now: Instant) {
        match event {
            StreamEvent::Failed { tag, to } => {
                if let Some(one) = self.meetings.get_mut(&tag) {
                    one.handle_dial_failed(to, now);
                }
            }
            StreamEvent::Dialled { tag, to, rung, stream } => {
                if self.meetings.contains_key(&tag) {
                    let id = self.carry(stream);
                    if let Some(one) = self.meetings.get_mut(&tag) {
                        one.handle_dialled(to, id, rung, now);
                    }
                }
            }
            StreamEvent::Came { port, from, stream } => self.ask_name(port, from, stream),
            StreamEvent::Named { from, stream, probe } => {
                let tag = Probe::claimed_tag(&probe);
                let known = tag.filter(|tag| {
                    self.meetings
                        .get(tag)
                        .is_some_and(|one| one.may_come_from(from.ip()) && one.verifies(&probe))
                });
                if let Some(tag) = known {
                    let id = self.carry(stream);
                    if let Some(one) = self.meetings.get_mut(&tag) {
                        one.handle_accepted(from, id, &probe, now);
                    }
                }
            }
            StreamEvent::Closed(id) => {
                let _ = self.meetings.values_mut().any(|one| one.handle_closed(id, now));
            }
        }
    }

    /// Waits for the first frame of a stream, if it may be somebody's that we look for.
    fn ask_name(&self, port: u16, from: SocketAddr, mut stream: TcpStream) {
        let expected =
            self.meetings.values().any(|one| one.listens_at(port) && one.may_come_from(from.ip()));
        let Some(turn) = Arc::clone(&self.unknown).try_acquire_owned().ok().filter(|_| expected)
        else {
            tracing::debug!("a stranger's connection is dropped");
            return;
        };
        let streams = self.streams.clone();
        tokio::spawn(async move {
            let _turn = turn;
            if let Ok(probe) = tcp::first_frame(&mut stream).await {
                let _ = streams.send(StreamEvent::Named { from, stream, probe });
            }
        });
    }

    fn carry(&self, stream: TcpStream) -> StreamId {
        let streams = self.streams.clone();
        tcp::carry(stream, &self.mux, move |id| {
            let _ = streams.send(StreamEvent::Closed(id));
        })
    }

    fn drive(&mut self, now: Instant) {
        self.drive_stun(now);
        if self.watching && self.watch_at <= now {
            self.watch(now);
        }
        let routing = self.routing.borrow().clone();
        let around = Surroundings { mux: &self.mux, routing: &routing, quic: &self.quic };
        for (tag, one) in &mut self.meetings {
            for (to, rung) in one.drive(&around, now) {
                dial(
                    *tag,
                    one.local.map_or(0, |local| local.port()),
                    to,
                    rung,
                    self.streams.clone(),
                );
            }
        }
        let mux = &self.mux;
        self.meetings.retain(|_, one| {
            let stays = !one.is_over(now);
            if !stays {
                one.close(mux);
            }
            stays
        });
        self.drive_listeners();
    }

    fn drive_stun(&mut self, now: Instant) {
        self.stun.handle_timeout(now);
        let mut moved = false;
        while let Some(output) = self.stun.poll_output() {
            match output {
                StunOutput::Transmit { to, bytes } => self.mux.send_control(to, &bytes),
                StunOutput::Behaves(nat) => {
                    tracing::debug!(?nat, "how the NAT behaves");
                    self.routing.send_if_modified(|routing| routing.nat.replace(nat) != Some(nat));
                }
                StunOutput::Mapped(address) => {
                    tracing::debug!(%address, "the server sees our socket here");
                    moved |= self.routing.send_if_modified(|routing| {
                        let changed = routing.udp_public != Some(address);
                        routing.udp_public = Some(address);
                        changed
                    });
                }
            }
        }
        if moved {
            // what was not allowed before may be now, and what was silent may answer
            let own = self.routing.borrow().clone();
            for one in self.meetings.values_mut() {
                one.retry(&own, now);
            }
        }
    }

    /// Looks at whether data is answered.
    fn watch(&mut self, now: Instant) {
        // before the look, so that what is sent from here on is noticed
        self.mux.stop_watching();
        let mux = &self.mux;
        let mut again = false;
        for one in self.meetings.values_mut() {
            again |= one.watch(mux, now);
        }
        self.watching = again;
        self.watch_at = now + WATCH_INTERVAL;
    }

    /// Ports are open only while a match wants them.
    fn drive_listeners(&mut self) {
        let wanted: BTreeMap<u16, SocketAddr> = self
            .meetings
            .values()
            .filter(|one| one.listening)
            .filter_map(|one| one.local)
            .map(|local| (local.port(), local))
            .collect();
        self.listeners.retain(|port, task| {
            let stays = wanted.contains_key(port);
            if !stays {
                task.abort();
            }
            stays
        });
        for (port, local) in wanted {
            let streams = self.streams.clone();
            self.listeners
                .entry(port)
                .or_insert_with(|| tokio::spawn(accept(local, streams)).abort_handle());
        }
    }

    fn read_interfaces(&mut self) {
        let Ok(port) = self.mux.port() else { return };
        let addresses = match self.mux.bound_ip() {
            Ok(ip) if !ip.is_unspecified() => vec![ip],
            _ => interfaces::addresses(),
        };
        let private: Vec<SocketAddr> =
            addresses.into_iter().map(|ip| SocketAddr::new(ip, port)).collect();
        self.stun.set_own(&private);
        self.routing.send_if_modified(|routing| {
            let changed = routing.udp_private != private;
            routing.udp_private = private;
            changed
        });
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        for task in self.listeners.values() {
            task.abort();
        }
        for one in self.meetings.values() {
            one.close(&self.mux);
        }
    }
}

fn dial(
    tag: ProbeTag,
    port: u16,
    to: SocketAddr,
    rung: Rung,
    streams: mpsc::UnboundedSender<StreamEvent>,
) {
    tokio::spawn(async move {
        let event = match tcp::dial(port, to).await {
            Ok(stream) => StreamEvent::Dialled { tag, to, rung, stream },
            Err(error) => {
                tracing::trace!(%to, %error, "cannot connect");
                StreamEvent::Failed { tag, to }
            }
        };
        let _ = streams.send(event);
    });
}

async fn accept(local: SocketAddr, streams: mpsc::UnboundedSender<StreamEvent>) {
    let listener = match tcp::listen(local) {
        Ok(listener) => listener,
        Err(error) => {
            tracing::debug!(%local, %error, "cannot listen");
            return;
        }
    };
    loop {
        match listener.accept().await {
            Ok((stream, from)) => {
                let from = SocketAddr::new(from.ip().to_canonical(), from.port());
                let port = local.port();
                if streams.send(StreamEvent::Came { port, from, stream }).is_err() {
                    return;
                }
            }
            // for want of file descriptors, mostly
            Err(_) => tokio::time::sleep(WATCH_INTERVAL).await,
        }
    }
}
