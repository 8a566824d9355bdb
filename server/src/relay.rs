//! The relay: forwards datagrams between the two sides of a match, whichever way each is reached.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Instant;

use p2pfs::limits::{FRAMES_QUEUED_MAX, RELAYED_BYTES_MAX};
use p2pfs::net::batch::BatchSocket;
use p2pfs::net::daemon::random;
use p2pfs::proto::relay::table::{Place, Route, Table};
use p2pfs::proto::rendezvous::matcher::{Link, RelaySide};
use p2pfs::wire::datagrams;
use p2pfs::wire::relay::{RELAY_HEADER_BYTES, RelayId, data_header, data_id};
use p2pfs::wire::rendezvous::{MatchId, Relayed};
use tokio::sync::mpsc;

/// The largest datagram that is forwarded, with its header, bytes: Ethernet's.
const DATAGRAM_MAX: usize = 1472;

/// The shortest of several datagrams in one message, bytes: on the network they then cost at most
/// twice what is paid for. QUIC sends long ones together.
const SEGMENT_MIN: u16 = 64;

/// The relay.
#[derive(Debug)]
pub(crate) struct Relay {
    table: Mutex<Table>,
    links: Mutex<BTreeMap<Link, Registered>>,
    sockets: OnceLock<Vec<Arc<BatchSocket>>>,
}

#[derive(Debug)]
struct Registered {
    address: IpAddr,
    outbox: mpsc::Sender<Relayed>,
}

impl Relay {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self {
            table: Mutex::new(Table::new(random(), Instant::now())),
            links: Mutex::default(),
            sockets: OnceLock::new(),
        })
    }

    /// The sockets that UDP comes from; their order is their [`Place`].
    pub(crate) fn serve_from(&self, sockets: Vec<Arc<BatchSocket>>) {
        // set once, at the start
        let _ = self.sockets.set(sockets);
    }

    /// A registration, which may be reached over its connection; what is for it comes out.
    pub(crate) fn join(&self, link: Link, address: IpAddr) -> mpsc::Receiver<Relayed> {
        let (outbox, relayed) = mpsc::channel(FRAMES_QUEUED_MAX);
        lock(&self.links).insert(link, Registered { address, outbox });
        relayed
    }

    pub(crate) fn leave(&self, link: Link) {
        lock(&self.links).remove(&link);
        lock(&self.table).handle_disconnected(link, Instant::now());
    }

    pub(crate) fn open(&self, match_id: MatchId, sides: [RelaySide; 2]) {
        let addresses = {
            let links = lock(&self.links);
            let address = |side: &RelaySide| links.get(&side.link).map(|known| known.address);
            match [address(&sides[0]), address(&sides[1])] {
                [Some(client), Some(host)] => [client, host],
                _ => return,
            }
        };
        lock(&self.table).open(match_id, sides, addresses, Instant::now());
    }

    pub(crate) fn close(&self, match_id: MatchId) {
        lock(&self.table).close(match_id);
    }

    /// How many matches are relayed, and the bytes so far.
    pub(crate) fn stats(&self) -> (usize, u64) {
        let mut table = lock(&self.table);
        table.handle_timeout(Instant::now());
        table.stats()
    }

    /// Datagrams of the relay that arrived on a socket, of `stride` bytes each.
    pub(crate) fn handle_batch(
        &self,
        place: Place,
        from: SocketAddr,
        batch: &mut [u8],
        stride: usize,
    ) {
        let mut rest = batch;
        while !rest.is_empty() {
            let id = data_id(&rest[..stride.min(rest.len())]);
            let same = rest.chunks(stride).take_while(|one| data_id(one) == id).count();
            let (run, after) = rest.split_at_mut((same * stride).min(rest.len()));
            match id {
                Some(id) => self.forward(id, Route::Udp(place, from), run, stride),
                None => self.bind(place, from, run, stride),
            }
            rest = after;
        }
    }

    fn bind(&self, place: Place, from: SocketAddr, run: &[u8], stride: usize) {
        for datagram in run.chunks(stride) {
            let now = Instant::now();
            let answer = {
                let mut table = lock(&self.table);
                table.handle_timeout(now);
                table.handle_bind(datagram, place, from, now)
            };
            if let (Some(answer), Some(socket)) = (answer, self.socket(place)) {
                socket.send(from, &answer, 0);
            }
        }
    }

    /// Datagrams of one side, each behind its header. What is longer than any of ours is dropped:
    /// it would fit neither into a message nor onto the network.
    fn forward(&self, id: RelayId, from: Route, run: &mut [u8], stride: usize) {
        if stride.min(run.len()) > DATAGRAM_MAX {
            return;
        }
        let count = run.chunks(stride).count();
        let bytes = run.len().saturating_sub(count * RELAY_HEADER_BYTES);
        let Some((to, id)) = lock(&self.table).route(id, from, bytes, Instant::now()) else {
            return;
        };
        match to {
            Route::Udp(place, address) => {
                for datagram in run.chunks_mut(stride) {
                    datagram[..RELAY_HEADER_BYTES].copy_from_slice(&data_header(id));
                }
                if let Some(socket) = self.socket(place) {
                    socket.send(address, run, stride);
                }
            }
            Route::Tls(link) => {
                let size = stride - RELAY_HEADER_BYTES;
                let most = (RELAYED_BYTES_MAX / size.max(1)).max(1);
                for part in run.chunks(most * stride) {
                    let datagrams =
                        part.chunks(stride).filter_map(|one| one.get(RELAY_HEADER_BYTES..));
                    let bytes = datagrams.flatten().copied().collect();
                    let segment = u16::try_from(size).unwrap_or_default();
                    self.hand_over(link, Relayed { relay: id, segment, bytes });
                }
            }
        }
    }

    /// Datagrams that came over a registration. Many tiny ones are dropped: what is paid for is
    /// less than what they cost on the network.
    pub(crate) fn handle_relayed(&self, link: Link, relayed: Relayed) {
        let Relayed { relay, segment, bytes } = relayed;
        if (1..SEGMENT_MIN).contains(&segment) && bytes.len() > usize::from(segment) {
            return;
        }
        let routed = lock(&self.table).route(relay, Route::Tls(link), bytes.len(), Instant::now());
        let Some((to, relay)) = routed else { return };
        match to {
            Route::Tls(link) => self.hand_over(link, Relayed { relay, segment, bytes }),
            Route::Udp(place, address) => {
                let Some(socket) = self.socket(place) else { return };
                let mut wrapped = Vec::with_capacity(bytes.len() * 2);
                for datagram in datagrams::split(&bytes, segment) {
                    if datagram.len() + RELAY_HEADER_BYTES > DATAGRAM_MAX {
                        return;
                    }
                    wrapped.extend_from_slice(&data_header(relay));
                    wrapped.extend_from_slice(datagram);
                }
                // nothing that would be cut into more pieces than the system takes at once
                let size = usize::from(segment) + RELAY_HEADER_BYTES;
                if segment == 0 {
                    socket.send(address, &wrapped, 0);
                } else {
                    for part in wrapped.chunks(size * 10) {
                        socket.send(address, part, size);
                    }
                }
            }
        }
    }

    fn hand_over(&self, link: Link, relayed: Relayed) {
        // what is no message would end the connection of who is to get it
        if relayed.bytes.len() > RELAYED_BYTES_MAX {
            return;
        }
        if let Some(known) = lock(&self.links).get(&link) {
            // a full queue drops, as a network would
            let _ = known.outbox.try_send(relayed);
        }
    }

    fn socket(&self, place: Place) -> Option<&Arc<BatchSocket>> {
        self.sockets.get()?.get(place.0)
    }
}

/// Maps are changed in whole steps, so a panic elsewhere does not spoil them.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use p2pfs::identity::SecretKey;
    use p2pfs::limits::MTU_MAX;
    use p2pfs::wire::relay::{Bind, BindKind, RelayGrant, RelayToken};

    const HERE: Place = Place(0);

    fn grant(name: u8) -> RelayGrant {
        RelayGrant { id: RelayId([name; 8]), token: RelayToken([name; 32]), udp: None }
    }

    /// A client, 1, and a host, 2, that are introduced; what comes for the host, whose connection
    /// it is reached over, and where the client is bound.
    fn introduced() -> (Arc<Relay>, mpsc::Receiver<Relayed>, SocketAddr) {
        let relay = Relay::new();
        let at = |name: u8| SocketAddr::from(([203, 0, 113, name], 4000));
        let [_, host] = [1, 2].map(|name: u8| relay.join(Link(name.into()), at(name).ip()));
        let side = |name: u8| RelaySide {
            link: Link(name.into()),
            key: SecretKey::from_seed([name; 32]).peer_id(),
            grant: grant(name),
        };
        relay.open(MatchId([7; 16]), [side(1), side(2)]);
        let mut cookie = [0; 16];
        for expected in [BindKind::Challenge, BindKind::Bound] {
            let bind = Bind { kind: BindKind::Bind, id: grant(1).id, cookie }.seal(&[1; 32]);
            let answer =
                lock(&relay.table).handle_bind(&bind, HERE, at(1), Instant::now()).unwrap();
            let answer = Bind::open(&answer, &[1; 32]).unwrap();
            assert_eq!(answer.kind, expected);
            cookie = answer.cookie;
        }
        (relay, host, at(1))
    }

    #[test]
    fn a_datagram_that_is_no_message_ends_nobodys_connection() {
        let (relay, mut host, from) = introduced();
        let datagram = |length: usize| {
            let mut datagram = data_header(grant(1).id).to_vec();
            datagram.resize(length, 0x5a);
            datagram
        };
        for length in [DATAGRAM_MAX + 1, 20_000, 60_000] {
            relay.handle_batch(HERE, from, &mut datagram(length), length);
            assert!(host.try_recv().is_err(), "{length} bytes");
        }
        let longest = usize::from(MTU_MAX) + RELAY_HEADER_BYTES;
        let mut many = datagram(longest).repeat(40);
        relay.handle_batch(HERE, from, &mut many, longest);
        let mut bytes = 0;
        while let Ok(relayed) = host.try_recv() {
            assert!(relayed.bytes.len() <= RELAYED_BYTES_MAX);
            assert!(p2pfs::wire::rendezvous::frame(&relayed).is_ok());
            bytes += relayed.bytes.len();
        }
        assert_eq!(bytes, 40 * usize::from(MTU_MAX));
    }

    #[test]
    fn a_message_of_tiny_datagrams_is_forwarded_to_nobody() {
        let (relay, _host, _from) = introduced();
        let say = |segment, length: usize| {
            let before = relay.stats().1;
            let bytes = vec![0x5a; length];
            relay.handle_relayed(Link(2), Relayed { relay: grant(2).id, segment, bytes });
            relay.stats().1 - before
        };
        assert_eq!(say(1, 15_000), 0);
        assert_eq!(say(SEGMENT_MIN - 1, 15_000), 0);
        assert_eq!(say(1200, 15_000), 15_000);
        assert_eq!([say(0, 9), say(9, 9)], [9, 9]);
    }
}
