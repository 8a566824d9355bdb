//! The UDP side: STUN, from one address, or from two for a NAT's behaviour to be told (RFC 5780),
//! and the relay.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use p2pfs::failure::Failure;
use p2pfs::net::batch::{BATCH_BYTES, BatchSocket};
use p2pfs::proto::relay::table::Place;
use p2pfs::wire::relay::is_relay;
use p2pfs::wire::stun;
use tokio::task::JoinSet;

use crate::quota::Quota;
use crate::relay::Relay;

/// Requests of one address at once: a large household behind one NAT.
const BURST: u32 = 256;
/// Time in which an address may ask once more.
const REQUEST_EVERY: Duration = Duration::from_millis(10);
/// After the socket failed, so that a lasting failure does not cost a core.
const PAUSE: Duration = Duration::from_millis(50);

/// Binding requests that were answered.
#[derive(Debug, Default)]
pub(crate) struct StunCounter(AtomicU64);

impl StunCounter {
    pub(crate) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// The open sockets, each with its address.
#[derive(Debug)]
pub(crate) struct StunSockets {
    /// One; two that know nothing of each other; or four, where bit 0 of the place is the port and
    /// bit 1 the IP address.
    sockets: Vec<(Arc<BatchSocket>, SocketAddr)>,
}

impl StunSockets {
    /// Opens `first` and, if there is one, `second`. If they differ in IP address and port, the
    /// other two combinations are opened as well.
    pub(crate) async fn bind(
        first: SocketAddr,
        second: Option<SocketAddr>,
    ) -> Result<Self, Failure> {
        let mut sockets = vec![bind(first, "--stun").await?];
        if let Some(second) = second {
            let (one, two) = (sockets[0].1, bind(second, "--stun-alt").await?);
            let two_ips = one.ip() != two.1.ip()
                && !one.ip().is_unspecified()
                && !two.1.ip().is_unspecified();
            if two_ips && one.port() != two.1.port() {
                let crossed = [(one.ip(), two.1.port()), (two.1.ip(), one.port())];
                for address in crossed {
                    sockets.push(bind(address.into(), "--stun-alt").await?);
                }
            } else {
                tracing::warn!(
                    "--stun and --stun-alt do not differ in IP address and port: clients cannot \
                     tell how their NAT filters"
                );
            }
            sockets.push(two);
        }
        Ok(Self { sockets })
    }

    /// The addresses that clients are told: where the second one is named in answers (RFC 5780),
    /// they must not have sent to it when they find out how their NAT filters.
    pub(crate) fn told(&self) -> Vec<SocketAddr> {
        let mut addresses = self.addresses();
        if self.sockets.len() == 4 {
            addresses.truncate(1);
        }
        addresses
    }

    /// The addresses that were asked for.
    pub(crate) fn addresses(&self) -> Vec<SocketAddr> {
        match &self.sockets[..] {
            [one, _, _, two] => vec![one.1, two.1],
            some => some.iter().map(|(_, address)| *address).collect(),
        }
    }

    /// Answers on all of them.
    pub(crate) fn serve(
        self,
        counter: &Arc<StunCounter>,
        relay: &Arc<Relay>,
        tasks: &mut JoinSet<()>,
    ) {
        let all = Arc::new(self);
        relay.serve_from(all.sockets.iter().map(|(socket, _)| Arc::clone(socket)).collect());
        for place in 0..all.sockets.len() {
            tasks.spawn(all.clone().serve_one(place, counter.clone(), relay.clone()));
        }
    }

    async fn serve_one(
        self: Arc<Self>,
        place: usize,
        counter: Arc<StunCounter>,
        relay: Arc<Relay>,
    ) {
        let other = self.changed(place, true, true).map(|(_, other)| *other);
        let mut quota = Quota::new(BURST, REQUEST_EVERY);
        let mut buffer = vec![0; BATCH_BYTES];
        loop {
            let batch = match self.sockets[place].0.receive(&mut buffer).await {
                Ok(received) => received,
                Err(error) => {
                    tracing::debug!(%error, "the STUN socket");
                    tokio::time::sleep(PAUSE).await;
                    continue;
                }
            };
            let all = &mut buffer[..batch.length];
            if all.first().copied().is_some_and(is_relay) {
                relay.handle_batch(Place(place), batch.from, all, batch.stride);
                continue;
            }
            for datagram in all.chunks(batch.stride) {
                let Some(answer) = stun::answer(datagram, batch.from, other) else {
                    continue;
                };
                if !quota.admit(batch.from.ip(), Instant::now()) {
                    continue;
                }
                counter.0.fetch_add(1, Ordering::Relaxed);
                let from = self.changed(place, answer.change_ip, answer.change_port);
                let (from, _) = from.unwrap_or(&self.sockets[place]);
                // never wait for one who asks: a lost answer is asked for again
                from.send(batch.from, &answer.bytes, 0);
            }
        }
    }

    /// The socket that differs so from the one in `place`; only four sockets have such.
    fn changed(
        &self,
        place: usize,
        ip: bool,
        port: bool,
    ) -> Option<&(Arc<BatchSocket>, SocketAddr)> {
        let other = place ^ (usize::from(ip) << 1) ^ usize::from(port);
        self.sockets.get(other).filter(|_| self.sockets.len() == 4)
    }
}

async fn bind(address: SocketAddr, flag: &str) -> Result<(Arc<BatchSocket>, SocketAddr), Failure> {
    let bound = async {
        let socket = BatchSocket::bind(address).await?;
        let local = socket.local_addr()?;
        Ok((Arc::new(socket), local))
    };
    bound.await.map_err(|error: io::Error| crate::unusable("UDP", address, flag, &error))
}
