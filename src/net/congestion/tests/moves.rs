//! A QUIC connection whose path changes from a fast link to a slow one and back: two ends of
//! quinn's machine and the links between them, on one virtual clock.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use bytes::{Bytes, BytesMut};
use quinn_proto::{
    Connection, ConnectionHandle, DatagramEvent, Dir, Endpoint, ServerConfig, StreamId,
};

use super::*;
use crate::identity::SecretKey;
use crate::limits::KEEP_ALIVE;
use crate::net::quic;

const GIGABIT: u64 = 1_000_000_000;
const TEN_MEGABIT: u64 = 10_000_000;
/// What a datagram takes over a link that is not busy.
const DELAY: Duration = Duration::from_millis(20);
/// What the bottleneck of a link holds.
const QUEUE: Duration = Duration::from_millis(100);
/// Time that a line of the table is about.
const LINE: Duration = Duration::from_millis(500);
/// When a link is to be used well.
const SETTLED: Duration = Duration::from_secs(2);
/// How well, as a part of its rate.
const WELL: f64 = 0.7;
/// What a slow link may be offered, in parts of what it carries.
const FLOOD: f64 = 1.25;
/// Datagrams that are sent at once.
const BATCH: usize = 10;

/// One direction of a path: a bottleneck with a queue.
struct Link {
    bits_per_s: u64,
    free_at: Instant,
    offered: u64,
    longest: Duration,
}

struct End {
    endpoint: Endpoint,
    connection: Option<(ConnectionHandle, Connection)>,
    epoch: Arc<PathEpoch>,
    arriving: BTreeMap<(Instant, u64), Vec<u8>>,
}

/// `ends[0]` dials and reads, `ends[1]` writes as fast as it may.
struct World {
    now: Instant,
    ends: [End; 2],
    /// By path, then by who sends.
    links: [[Link; 2]; 2],
    path: usize,
    server: Arc<ServerConfig>,
    stream: Option<StreamId>,
    block: Bytes,
    sent: u64,
    received: u64,
}

impl Link {
    fn new(bits_per_s: u64, now: Instant) -> Self {
        Self { bits_per_s, free_at: now, offered: 0, longest: Duration::ZERO }
    }

    /// When a datagram arrives, if it does.
    fn carry(&mut self, bytes: usize, now: Instant) -> Option<Instant> {
        self.offered += bytes as u64;
        let begins = self.free_at.max(now);
        self.longest = self.longest.max(begins - now);
        if begins - now > QUEUE {
            return None;
        }
        let takes = bytes as u64 * 8 * 1_000_000_000 / self.bits_per_s;
        self.free_at = begins + Duration::from_nanos(takes);
        Some(self.free_at + DELAY)
    }
}

impl World {
    fn new() -> Self {
        let now = Instant::now();
        let epochs = [Arc::new(PathEpoch::default()), Arc::new(PathEpoch::default())];
        let [client, host] = [1, 2].map(|seed| SecretKey::from_seed([seed; 32]));
        let server = quic::server_config(&host).unwrap();
        let server = quic::server_on(&server, Arc::clone(&epochs[1]));
        let dial = quic::client_config(&client, host.peer_id()).unwrap();
        let dial = quic::client_on(&dial, Arc::clone(&epochs[0]), KEEP_ALIVE);
        let mut seed = 0;
        let mut ends = epochs.map(|epoch| {
            seed += 1;
            let listens = (seed == 2).then(|| Arc::clone(&server));
            let config = Arc::new(quic::endpoint_config());
            let endpoint = Endpoint::new(config, listens, true, Some([seed; 32]));
            End { endpoint, connection: None, epoch, arriving: BTreeMap::new() }
        });
        let dialled = ends[0].endpoint.connect(now, dial, address(1), "host").unwrap();
        ends[0].connection = Some(dialled);
        let pair = |rate| [Link::new(rate, now), Link::new(rate, now)];
        Self {
            now,
            ends,
            links: [pair(GIGABIT), pair(TEN_MEGABIT)],
            path: 0,
            server,
            stream: None,
            block: vec![7; 1 << 20].into(),
            sent: 0,
            received: 0,
        }
    }

    /// The mux has moved on both ends. `dies`: what is on its way is lost.
    fn change(&mut self, path: usize, dies: bool) {
        self.path = path;
        for end in &mut self.ends {
            end.epoch.advance();
            if dies {
                end.arriving.clear();
            }
        }
    }

    fn run(&mut self, time: Duration) {
        let end = self.now + time;
        loop {
            (0..2).for_each(|own| self.drive(own));
            let next = self.ends.iter_mut().filter_map(End::wake).min();
            match next.filter(|next| *next <= end) {
                Some(next) => self.now = self.now.max(next),
                None => break,
            }
            (0..2).for_each(|own| self.deliver(own));
        }
        self.now = end;
    }

    fn deliver(&mut self, own: usize) {
        let (now, end) = (self.now, &mut self.ends[own]);
        while let Some(first) = end.arriving.first_entry()
            && first.key().0 <= now
        {
            let datagram = BytesMut::from(&first.remove()[..]);
            let (from, mut answer) = (address(1 - own), Vec::new());
            match end.endpoint.handle(now, from, None, None, datagram, &mut answer) {
                Some(DatagramEvent::NewConnection(incoming)) => {
                    let server = Some(Arc::clone(&self.server));
                    let accepted = end.endpoint.accept(incoming, now, &mut answer, server);
                    end.connection = accepted.ok();
                }
                Some(DatagramEvent::ConnectionEvent(_, event)) => {
                    end.connection.as_mut().unwrap().1.handle_event(event);
                }
                Some(DatagramEvent::Response(_)) | None => {}
            }
        }
        if let Some((_, connection)) = &mut end.connection
            && connection.poll_timeout().is_some_and(|at| at <= now)
        {
            connection.handle_timeout(now);
        }
    }

    fn drive(&mut self, own: usize) {
        let Some((handle, mut connection)) = self.ends[own].connection.take() else { return };
        while connection.poll().is_some() {}
        match own {
            0 => self.read(&mut connection),
            _ => self.write(&mut connection),
        }
        while let Some(event) = connection.poll_endpoint_events() {
            if let Some(event) = self.ends[own].endpoint.handle_event(handle, event) {
                connection.handle_event(event);
            }
        }
        let mut buffer = Vec::new();
        while let Some(transmit) = connection.poll_transmit(self.now, BATCH, &mut buffer) {
            let size = transmit.segment_size.unwrap_or(transmit.size);
            for datagram in buffer[..transmit.size].chunks(size) {
                self.sent += 1;
                if let Some(at) = self.links[self.path][own].carry(datagram.len(), self.now) {
                    let arriving = &mut self.ends[1 - own].arriving;
                    arriving.insert((at, self.sent), datagram.to_vec());
                }
            }
            buffer.clear();
        }
        self.ends[own].connection = Some((handle, connection));
    }

    fn read(&mut self, connection: &mut Connection) {
        if self.stream.is_none() {
            self.stream = connection.streams().open(Dir::Bi);
            if let Some(stream) = self.stream {
                connection.send_stream(stream).write(b"?").unwrap();
            }
        }
        let Some(stream) = self.stream else { return };
        let mut reading = connection.recv_stream(stream);
        let Ok(mut chunks) = reading.read(true) else { return };
        while let Ok(Some(chunk)) = chunks.next(usize::MAX) {
            self.received += chunk.bytes.len() as u64;
        }
        let _ = chunks.finalize();
    }

    /// As much as fits; nothing before the other end has opened the stream.
    fn write(&self, connection: &mut Connection) {
        let Some(stream) = self.stream else { return };
        connection.streams().accept(Dir::Bi);
        while connection.send_stream(stream).write_chunks(&mut [self.block.clone()]).is_ok() {}
    }

    /// Lines of the table; Mbit/s of the last one.
    fn watch(&mut self, time: Duration) -> f64 {
        let mut rate = 0.0;
        for _ in 0..time.as_millis() / LINE.as_millis() {
            let before = self.received;
            self.links[self.path][1].longest = Duration::ZERO;
            self.run(LINE);
            rate = (self.received - before) as f64 * 8.0 / 1e6 / LINE.as_secs_f64();
            let (_, connection) = self.ends[1].connection.as_ref().unwrap();
            let link = &self.links[self.path][1];
            eprintln!(
                "{:>5} Mbit/s link: {rate:>7.1} Mbit/s, window {:>6} KiB, queue {:>3} ms, lost {}",
                link.bits_per_s / 1_000_000,
                connection.congestion_state().window() >> 10,
                link.longest.as_millis(),
                connection.stats().path.lost_packets,
            );
        }
        rate
    }

    /// A new path, and what becomes of it.
    fn check_move(&mut self, path: usize, dies: bool) {
        self.change(path, dies);
        let before = self.links[path][1].offered;
        let rate = self.watch(SETTLED + LINE);
        let link = &self.links[path][1];
        assert!(rate * 1e6 >= link.bits_per_s as f64 * WELL, "{rate} Mbit/s after the move");
        let room = link.bits_per_s as f64 / 8.0 * (SETTLED + LINE + QUEUE).as_secs_f64();
        let flood = (link.offered - before) as f64 / room;
        eprintln!("      offered {flood:.2} of what it carries in that time");
        assert!(flood <= FLOOD, "flooded: {flood}");
    }
}

impl End {
    fn wake(&mut self) -> Option<Instant> {
        let arrives = self.arriving.keys().next().map(|(at, _)| *at);
        let timer = self.connection.as_mut().and_then(|(_, one)| one.poll_timeout());
        arrives.into_iter().chain(timer).min()
    }
}

fn address(end: usize) -> SocketAddr {
    ([10, 0, 0, 1 + end as u8], 4000).into()
}

#[test]
fn a_move_between_a_fast_and_a_slow_link_neither_collapses_nor_floods() {
    for dies in [false, true] {
        eprintln!("what is on its way at a move {}:", if dies { "is lost" } else { "arrives" });
        let mut world = World::new();
        world.watch(Duration::from_secs(1));
        world.check_move(1, dies);
        world.check_move(0, dies);
    }
}
