//! The UDP side: STUN.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use p2pfs::wire::stun::{self, Request};
use tokio::net::UdpSocket;

use crate::quota::Quota;

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

/// Answers binding requests, each from the socket that it came to.
pub(crate) async fn serve(socket: UdpSocket, counter: std::sync::Arc<StunCounter>) {
    let mut quota = Quota::new(BURST, REQUEST_EVERY);
    let mut buffer = [0; stun::STUN_BYTES_MAX + 1];
    loop {
        let (length, source) = match socket.recv_from(&mut buffer).await {
            Ok(received) => received,
            Err(error) => {
                tracing::debug!(%error, "the STUN socket");
                tokio::time::sleep(PAUSE).await;
                continue;
            }
        };
        let Request::Answer(answer) = stun::answer(&buffer[..length], source) else {
            continue;
        };
        if !quota.admit(source.ip(), Instant::now()) {
            continue;
        }
        counter.0.fetch_add(1, Ordering::Relaxed);
        // never wait for one who asks: a lost answer is asked for again
        if let Err(error) = socket.try_send_to(&answer, source) {
            tracing::debug!(%error, "a STUN answer");
        }
    }
}
