//! The server's half: who may send to whom, and how much.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use crate::identity::{Hidden, PeerId, hmac};
use crate::limits::{
    RELAY_BURST_BYTES, RELAY_BYTES_PER_SECOND, RELAY_LIFE, RELAYS_PER_CLIENT_MAX, SERVER_PEERS_MAX,
};
use crate::proto::rendezvous::matcher::{Link, RelaySide};
use crate::wire::relay::{BIND_BYTES, Bind, BindKind, RelayId};
use crate::wire::rendezvous::MatchId;

/// How long a cookie is good, at least; then a side is challenged anew.
const COOKIE_LIFE: Duration = Duration::from_secs(120);
/// Between two looks at what is over.
const SWEEP: Duration = Duration::from_secs(5);
/// What one address may send is this many keys' share: a household's machines are behind one.
const KEYS_PER_ADDRESS: u64 = 4;

/// A socket of the relay, by its place in the server's list.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Place(pub usize);

/// Where a side is reached.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Route {
    /// By UDP, from the socket that it bound to.
    Udp(Place, SocketAddr),
    /// Over its registration.
    Tls(Link),
}

/// Relayed matches, by both sides' ids.
#[derive(Debug)]
pub struct Table {
    secret: Hidden,
    began: Instant,
    sides: BTreeMap<RelayId, Side>,
    /// With the client's place among [`Self::clients`].
    matches: BTreeMap<MatchId, ([RelayId; 2], PeerId, u64)>,
    /// Sides by the registration that they may be reached over.
    links: BTreeSet<(Link, RelayId)>,
    /// Matches by client and age, so that the oldest goes first.
    clients: BTreeSet<(PeerId, u64, MatchId)>,
    keys: BTreeMap<PeerId, Bucket>,
    addresses: BTreeMap<IpAddr, Bucket>,
    opened: u64,
    sweep_at: Instant,
    bytes: u64,
}

#[derive(Debug)]
struct Side {
    peer: RelayId,
    key: PeerId,
    token: Hidden,
    address: IpAddr,
    link: Option<Link>,
    bound: Option<(Place, SocketAddr)>,
    /// Whether it was heard last over its registration.
    prefers_link: bool,
    heard: Instant,
    carried: bool,
}

/// When what was sent will have been paid for.
#[derive(Clone, Copy, Debug)]
struct Bucket {
    paid_at: Instant,
}

impl Table {
    /// An empty one; cookies come from `secret`, which must be fresh.
    pub fn new(secret: [u8; 32], now: Instant) -> Self {
        Self {
            secret: Hidden(secret),
            began: now,
            sides: BTreeMap::new(),
            matches: BTreeMap::new(),
            links: BTreeSet::new(),
            clients: BTreeSet::new(),
            keys: BTreeMap::new(),
            addresses: BTreeMap::new(),
            opened: 0,
            sweep_at: now + SWEEP,
            bytes: 0,
        }
    }

    /// Two daemons may send to each other from now on; `addresses` are those of their
    /// registrations.
    pub fn open(
        &mut self,
        match_id: MatchId,
        sides: [RelaySide; 2],
        addresses: [IpAddr; 2],
        now: Instant,
    ) {
        // where nobody binds this is when time passes
        self.handle_timeout(now);
        if self.matches.len() >= SERVER_PEERS_MAX {
            return;
        }
        let client = sides[0].key;
        let ids = [sides[0].grant.id, sides[1].grant.id];
        for ((side, peer), address) in sides.into_iter().zip([ids[1], ids[0]]).zip(addresses) {
            let new = Side {
                peer,
                key: side.key,
                token: side.grant.token.hidden(),
                address,
                link: Some(side.link),
                bound: None,
                prefers_link: true,
                heard: now,
                carried: false,
            };
            self.links.insert((side.link, side.grant.id));
            self.sides.insert(side.grant.id, new);
        }
        self.opened += 1;
        self.matches.insert(match_id, (ids, client, self.opened));
        self.clients.insert((client, self.opened, match_id));
        let from = (client, 0, MatchId([0; 16]));
        let to = (client, u64::MAX, MatchId([0xff; 16]));
        let mine: Vec<_> = self.clients.range(from..=to).map(|(.., id)| *id).collect();
        if mine.len() > RELAYS_PER_CLIENT_MAX {
            self.close(mine[0]);
        }
    }

    /// A match is over.
    pub fn close(&mut self, match_id: MatchId) {
        let Some((ids, client, number)) = self.matches.remove(&match_id) else {
            return;
        };
        for id in ids {
            if let Some(link) = self.sides.remove(&id).and_then(|side| side.link) {
                self.links.remove(&(link, id));
            }
        }
        self.clients.remove(&(client, number, match_id));
    }

    /// A registration is gone: its sides are reached by UDP or not at all.
    pub fn handle_disconnected(&mut self, link: Link, now: Instant) {
        let all = (link, RelayId([0; 8]))..=(link, RelayId([0xff; 8]));
        let ids: Vec<_> = self.links.range(all).copied().collect();
        for (link, id) in ids {
            self.links.remove(&(link, id));
            if let Some(side) = self.sides.get_mut(&id) {
                side.link = None;
                side.heard = now;
            }
        }
    }

    /// A side says where it is: the answer, which is no longer than the question. Without proof
    /// there is none.
    pub fn handle_bind(
        &mut self,
        datagram: &[u8],
        place: Place,
        from: SocketAddr,
        now: Instant,
    ) -> Option<[u8; BIND_BYTES]> {
        let id = Bind::claimed_id(datagram)?;
        let epoch = self.epoch(now);
        let good = [epoch, epoch.wrapping_sub(1)].map(|epoch| self.cookie(id, from, epoch));
        let side = self.sides.get_mut(&id)?;
        let bind = Bind::open(datagram, &side.token.0)?;
        if bind.kind != BindKind::Bind {
            return None;
        }
        let (kind, cookie) = if good.contains(&bind.cookie) {
            side.bound = Some((place, from));
            side.heard = now;
            (BindKind::Bound, bind.cookie)
        } else {
            (BindKind::Challenge, good[0])
        };
        Some(Bind { kind, id, cookie }.seal(&side.token.0))
    }

    /// Where datagrams of a side, `bytes` together, are to go, and with which id; `None` drops
    /// them: not its address, too much, or nobody there.
    pub fn route(
        &mut self,
        id: RelayId,
        from: Route,
        bytes: usize,
        now: Instant,
    ) -> Option<(Route, RelayId)> {
        let side = self.sides.get_mut(&id)?;
        match from {
            Route::Udp(place, address) => {
                if side.bound != Some((place, address)) {
                    return None;
                }
                side.prefers_link = false;
                side.address = address.ip();
            }
            Route::Tls(link) => {
                if side.link != Some(link) {
                    return None;
                }
                side.prefers_link = true;
            }
        }
        side.heard = now;
        side.carried = true;
        let (peer, key, address) = (side.peer, side.key, side.address);
        let to = self.sides.get(&peer)?.route()?;
        let bytes = u64::try_from(bytes).ok()?;
        let per_address = bytes / KEYS_PER_ADDRESS;
        let key = self.keys.entry(key).or_insert(Bucket { paid_at: now });
        let address = self.addresses.entry(address).or_insert(Bucket { paid_at: now });
        if !key.has_room(bytes, now) || !address.has_room(per_address, now) {
            return None;
        }
        key.take(bytes, now);
        address.take(per_address, now);
        self.bytes += bytes;
        Some((to, peer))
    }

    /// How many matches were relayed and are still kept, and the bytes of all there ever were.
    pub fn stats(&self) -> (usize, u64) {
        let carried = |(ids, ..): &&([RelayId; 2], PeerId, u64)| {
            ids.iter().any(|id| self.sides.get(id).is_some_and(|side| side.carried))
        };
        (self.matches.values().filter(carried).count(), self.bytes)
    }

    /// Forgets what is over.
    pub fn handle_timeout(&mut self, now: Instant) {
        if self.sweep_at > now {
            return;
        }
        self.sweep_at = now + SWEEP;
        let alive = |id: &RelayId| {
            let side = self.sides.get(id);
            side.is_some_and(|side| side.link.is_some() || side.heard + RELAY_LIFE > now)
        };
        let over: Vec<_> = self
            .matches
            .iter()
            .filter(|(_, (ids, ..))| !ids.iter().all(alive))
            .map(|(match_id, _)| *match_id)
            .collect();
        over.into_iter().for_each(|match_id| self.close(match_id));
        self.keys.retain(|_, bucket| bucket.paid_at > now);
        self.addresses.retain(|_, bucket| bucket.paid_at > now);
    }

    fn epoch(&self, now: Instant) -> u64 {
        now.saturating_duration_since(self.began).as_secs() / COOKIE_LIFE.as_secs() + 1
    }

    fn cookie(&self, id: RelayId, address: SocketAddr, epoch: u64) -> [u8; 16] {
        let text = format!("p2pfs relay cookie 1 {:?} {address} {epoch}", id.0);
        let mut cookie = [0; 16];
        cookie.copy_from_slice(&hmac(&self.secret.0, text.as_bytes())[..16]);
        cookie
    }
}

impl Side {
    fn route(&self) -> Option<Route> {
        let udp = self.bound.map(|(place, address)| Route::Udp(place, address));
        let tls = self.link.map(Route::Tls);
        if self.prefers_link { tls.or(udp) } else { udp.or(tls) }
    }
}

impl Bucket {
    fn has_room(self, bytes: u64, now: Instant) -> bool {
        let burst = time_of(RELAY_BURST_BYTES);
        self.paid_at.max(now) + time_of(bytes) <= now + burst
    }

    fn take(&mut self, bytes: u64, now: Instant) {
        self.paid_at = self.paid_at.max(now) + time_of(bytes);
    }
}

/// How long bytes take at the sustained rate.
fn time_of(bytes: u64) -> Duration {
    Duration::from_nanos(bytes.saturating_mul(1_000_000_000 / RELAY_BYTES_PER_SECOND))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::SecretKey;
    use crate::proto::relay::binding::{Binding, Output};
    use crate::wire::relay::{RelayGrant, RelayToken};

    const HERE: Place = Place(0);

    fn grant(name: u8) -> RelayGrant {
        RelayGrant { id: RelayId([name; 8]), token: RelayToken([name; 32]), udp: None }
    }

    fn address(host: u8) -> SocketAddr {
        ([203, 0, 113, host], 4000).into()
    }

    /// A client, 1, and a host, 2, that are introduced.
    fn table(now: Instant) -> Table {
        let mut table = Table::new([9; 32], now);
        let side = |name: u8| RelaySide {
            link: Link(name.into()),
            key: SecretKey::from_seed([name; 32]).peer_id(),
            grant: grant(name),
        };
        let addresses = [address(1).ip(), address(2).ip()];
        table.open(MatchId([7; 16]), [side(1), side(2)], addresses, now);
        table
    }

    /// What it takes until the table answers that an address is bound.
    fn bind(table: &mut Table, name: u8, from: SocketAddr, now: Instant) -> usize {
        let mut binding = Binding::new(&grant(name), now);
        binding.handle_timeout(now);
        let mut sent = 0;
        while let Some(output) = binding.poll_output() {
            match output {
                Output::Bound(_) => break,
                Output::Transmit(bytes) => {
                    sent += 1;
                    let answer = table.handle_bind(&bytes, HERE, from, now).unwrap();
                    assert!(answer.len() <= bytes.len());
                    binding.handle_datagram(&answer, now);
                }
            }
        }
        sent
    }

    #[test]
    fn two_sides_reach_each_other_over_whatever_they_used_last() {
        let now = Instant::now();
        let mut table = table(now);
        let [one, two] = [grant(1).id, grant(2).id];
        assert_eq!(
            table.route(one, Route::Tls(Link(1)), 100, now),
            Some((Route::Tls(Link(2)), two))
        );
        // a challenge comes first
        assert_eq!(bind(&mut table, 2, address(2), now), 2);
        let by_udp = Route::Udp(HERE, address(2));
        assert_eq!(table.route(two, by_udp, 100, now), Some((Route::Tls(Link(1)), one)));
        assert_eq!(table.route(one, Route::Tls(Link(1)), 100, now), Some((by_udp, two)));
        table.handle_disconnected(Link(1), now);
        assert_eq!(table.route(two, by_udp, 100, now), None, "nobody is there");
        assert_eq!(table.stats(), (1, 300));
    }

    #[test]
    fn strangers_and_forgers_get_nothing() {
        let now = Instant::now();
        let mut table = table(now);
        let one = grant(1).id;
        let stranger = Route::Udp(HERE, address(66));
        assert_eq!(table.route(one, stranger, 100, now), None);
        assert_eq!(table.route(one, Route::Tls(Link(66)), 100, now), None);
        let forged = Bind { kind: BindKind::Bind, id: one, cookie: [0; 16] };
        assert_eq!(table.handle_bind(&forged.seal(&[66; 32]), HERE, address(66), now), None);
        // a bind that was listened to is challenged where it comes from, and changes nothing
        bind(&mut table, 1, address(1), now);
        let good = forged.seal(&[1; 32]);
        let answer = table.handle_bind(&good, HERE, address(66), now).unwrap();
        let answer = Bind::open(&answer, &[1; 32]).unwrap();
        assert_eq!(answer.kind, BindKind::Challenge);
        assert_eq!(table.route(one, stranger, 100, now), None);
        assert!(table.route(one, Route::Udp(HERE, address(1)), 100, now).is_some());
    }

    #[test]
    fn a_key_that_sends_without_measure_is_held_to_its_rate() {
        let now = Instant::now();
        let mut table = table(now);
        let mut send = |now| {
            let routed =
                |_: &u64| table.route(grant(1).id, Route::Tls(Link(1)), 1 << 20, now).is_some();
            (0..2000_u64).filter(routed).count()
        };
        assert_eq!(send(now), 1024);
        let later = send(now + Duration::from_secs(1));
        assert!((100..=130).contains(&later), "{later} MiB in a second");
    }

    #[test]
    fn what_nobody_uses_is_forgotten_and_so_are_a_clients_oldest() {
        let now = Instant::now();
        let mut table = table(now);
        let later = now + RELAY_LIFE + SWEEP;
        table.handle_timeout(later);
        assert_eq!(table.matches.len(), 1, "both are registered");
        table.handle_disconnected(Link(1), later);
        table.handle_timeout(later + RELAY_LIFE + SWEEP);
        assert!(table.matches.is_empty() && table.sides.is_empty() && table.clients.is_empty());
        assert!(table.links.is_empty());
        for number in 0..100 {
            let side = |name: u8| RelaySide {
                link: Link(u64::from(name)),
                key: SecretKey::from_seed([name; 32]).peer_id(),
                grant: RelayGrant { id: RelayId([number, name, 0, 0, 0, 0, 0, 0]), ..grant(name) },
            };
            let addresses = [address(1).ip(), address(2).ip()];
            table.open(MatchId([number; 16]), [side(1), side(2)], addresses, later);
        }
        assert_eq!(table.matches.len(), RELAYS_PER_CLIENT_MAX);
        assert_eq!(table.sides.len(), 2 * RELAYS_PER_CLIENT_MAX);
        assert_eq!(table.links.len(), table.sides.len());
        // where nobody binds, the next match is when what is over is noticed
        table.handle_disconnected(Link(1), later);
        let much_later = later + (RELAY_LIFE + SWEEP) * 2;
        let side = |name: u8| RelaySide {
            link: Link(u64::from(name)),
            key: SecretKey::from_seed([name; 32]).peer_id(),
            grant: grant(name),
        };
        let addresses = [address(5).ip(), address(6).ip()];
        table.open(MatchId([200; 16]), [side(5), side(6)], addresses, much_later);
        assert_eq!((table.matches.len(), table.links.len()), (1, 2));
    }
}
