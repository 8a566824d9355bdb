//! One short visit to a server: is it there, where does it see us, where does its STUN answer?

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use tokio::time::timeout;

use crate::address::ServerAddress;
use crate::identity::SecretKey;
use crate::net::daemon::random;
use crate::net::rendezvous::RendezvousError;
use crate::net::rendezvous::link::{self, Link};
use crate::wire::rendezvous::{FromServer, Role, ToServer};

/// For the server to answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// What a server says to whoever comes.
#[derive(Clone, Debug)]
pub(crate) struct Inquiry {
    /// How long it took until it had answered.
    pub(crate) took: Duration,
    /// Our end of the connection.
    pub(crate) local: SocketAddr,
    /// The same as the server sees it.
    pub(crate) observed: SocketAddr,
    /// Where its STUN answers.
    pub(crate) stun: Vec<SocketAddr>,
}

/// Asks, under a key that nobody knows.
pub(crate) async fn inquire(server: &ServerAddress) -> Result<Inquiry, RendezvousError> {
    let start = Instant::now();
    let secret = SecretKey::from_seed(random());
    let Link { server, local, mut read, mut write } = link::connect(server, &secret).await?;
    let welcome = async {
        link::send(&mut write, &ToServer::Hello { role: Role::Client }).await?;
        link::receive::<FromServer>(&mut read).await
    };
    let unreachable = |why: String| RendezvousError::Unreachable(why);
    let local = local.ok_or_else(|| unreachable("no connection of our own".to_owned()))?;
    let welcome = timeout(ANSWER_TIMEOUT, welcome)
        .await
        .map_err(|_| unreachable("it does not answer".to_owned()))?
        .map_err(|error| unreachable(link::why(&error)))?;
    match welcome {
        FromServer::Welcome { observed, stun } if stun.len() <= super::STUN_ADDRESSES_MAX => {
            let ip = server.ip().to_canonical();
            let stun = stun.iter().map(|one| (one.ip.unwrap_or(ip), one.port).into()).collect();
            Ok(Inquiry { took: start.elapsed(), local, observed, stun })
        }
        _ => Err(unreachable("it does not speak as a p2pfs server does".to_owned())),
    }
}
