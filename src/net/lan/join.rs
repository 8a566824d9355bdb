//! The client's side: finds the host that has the code out, and is paired.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use socket2::{Domain, SockRef};
use tokio::net::{TcpStream, UdpSocket};
use zeroize::Zeroizing;

use crate::failure::{Code as ErrorCode, Failure};
use crate::net::{daemon, interfaces};
use crate::proto::pairing::{Code, Handshake, PairingError, Side};
use crate::wire::codec;
use crate::wire::pairing::{Done, Here, MAGIC, Offer, PORT, Request, Seek};

use super::{DATAGRAM_BYTES_MAX, ExchangeError, STEP, TTL, Wire, any, udp};

/// How often the number is called out.
const CALL: Duration = Duration::from_millis(500);

/// A host that knows the code, and waits for us to write down what it said.
#[derive(Debug)]
pub struct Join {
    wire: Wire,
    channel: crate::proto::pairing::Channel,
    peer: crate::identity::PeerId,
    /// What it said.
    pub offer: Offer,
}

/// Looks for the host, at `at` or on every link, and sends it `request`.
///
/// # Errors
///
/// `host-offline`: nobody answers; `key-unauthorised`: the code is wrong, and void now.
pub async fn join(
    code: &Code,
    request: &Request,
    at: Option<IpAddr>,
    timeout: Duration,
) -> Result<Join, Failure> {
    let found = tokio::time::timeout(timeout, seek(code.number(), at)).await;
    let found = found.map_err(|_| nobody(code, timeout))?;
    let found = found.map_err(|error| no_network(&error))?;
    tracing::debug!(%found, "a host has this code out");
    talk(code, request, found).await.map_err(|error| match error {
        // Whoever does not know it hangs up
        ExchangeError::Pairing(PairingError::WrongCode) | ExchangeError::Io(_) => Failure::new(
            ErrorCode::KeyUnauthorised,
            "the host refused the code: it is wrong, and no longer good for anything",
            "make another on the host: p2pfs-hostd pair --code",
        ),
        ExchangeError::Pairing(PairingError::Malformed) | ExchangeError::Slow(_) => Failure::new(
            ErrorCode::HostOffline,
            format!("the host broke off: {error}"),
            "try again with another code, and the same version of p2pfs on both sides",
        ),
    })
}

impl Join {
    /// The key is written down: tells the host so, and waits until it knows.
    ///
    /// # Errors
    ///
    /// `host-offline`: whether it knows is not known.
    pub async fn done(mut self) -> Result<(), Failure> {
        let done = Done { peer: self.peer };
        let mut told = self.wire.send_sealed(&mut self.channel, &done).await;
        if told.is_ok() {
            // The host closes when it has heard
            told = match self.wire.receive().await {
                Err(ExchangeError::Io(error))
                    if error.kind() == std::io::ErrorKind::UnexpectedEof =>
                {
                    Ok(())
                }
                Err(error) => Err(error),
                Ok(_) => Err(PairingError::Malformed.into()),
            };
        }
        told.map_err(|error| {
            Failure::new(
                ErrorCode::HostOffline,
                format!("the host may not know that the key arrived: {error}"),
                "look on the host: p2pfs-hostd keys list; if the key is not there, pair it again",
            )
        })
    }
}

async fn talk(code: &Code, request: &Request, to: SocketAddr) -> Result<Join, ExchangeError> {
    let stream = tokio::time::timeout(STEP, TcpStream::connect(to)).await??;
    let socket = SockRef::from(&stream);
    match to {
        SocketAddr::V4(_) => socket.set_ttl_v4(TTL)?,
        SocketAddr::V6(_) => socket.set_unicast_hops_v6(TTL)?,
    }
    let mut wire = Wire(stream);
    let (handshake, ours) =
        Handshake::start(code, Side::Client, Zeroizing::new(daemon::random::<64>()));
    wire.send(&ours).await?;
    let theirs = wire.receive().await?;
    let mut channel = handshake.handle_message(&theirs)?;
    wire.send_sealed(&mut channel, request).await?;
    let offer: Offer = wire.receive_sealed(&mut channel).await?;
    if !offer.is_within_bounds() {
        return Err(PairingError::Malformed.into());
    }
    Ok(Join { wire, channel, peer: request.peer, offer })
}

/// Calls the number out until somebody answers.
async fn seek(number: u16, at: Option<IpAddr>) -> std::io::Result<SocketAddr> {
    let token = daemon::random();
    let seek = Seek { magic: MAGIC, number, token };
    let seek = codec::encode(&seek).map_err(std::io::Error::other)?;
    let (v4, v6) =
        (udp(Domain::IPV4, any(Domain::IPV4, 0)), udp(Domain::IPV6, any(Domain::IPV6, 0)));
    let (v4, v6) = match (v4, v6) {
        (Err(error), Err(_)) => return Err(error),
        sockets => (sockets.0.ok(), sockets.1.ok()),
    };
    let mut calls = tokio::time::interval(CALL);
    loop {
        tokio::select! {
            _ = calls.tick() => {
                let everywhere = match at {
                    Some(ip) => vec![SocketAddr::new(ip, PORT)],
                    None => interfaces::everybody(PORT),
                };
                for to in everywhere {
                    let socket = if to.is_ipv4() { &v4 } else { &v6 };
                    let Some(socket) = socket else { continue };
                    // A link that is just coming up takes nothing yet
                    if let Err(error) = socket.send_to(&seek, to).await {
                        tracing::debug!(%error, %to, "cannot call there");
                    }
                }
            }
            found = hear(v4.as_ref(), token) => return Ok(found),
            found = hear(v6.as_ref(), token) => return Ok(found),
        }
    }
}

async fn hear(socket: Option<&UdpSocket>, token: [u8; 16]) -> SocketAddr {
    let Some(socket) = socket else { return std::future::pending().await };
    let mut buffer = [0; DATAGRAM_BYTES_MAX];
    loop {
        // What is refused by one neighbour says nothing of the others
        let Ok((length, mut from)) = socket.recv_from(&mut buffer).await else { continue };
        let Ok(here) = codec::decode::<Here>(&buffer[..length]) else { continue };
        if here.magic == MAGIC && here.token == token && here.port != 0 {
            from.set_port(here.port);
            return from;
        }
    }
}

fn nobody(code: &Code, waited: Duration) -> Failure {
    Failure::new(
        ErrorCode::HostOffline,
        format!(
            "no host on this network has the code {:03}-... out; waited {} s",
            code.number(),
            waited.as_secs()
        ),
        "make a code on the host (p2pfs-hostd pair --code), on the same network, and let UDP port \
         41652 pass its firewall; import --host ADDRESS asks one machine",
    )
}

fn no_network(error: &std::io::Error) -> Failure {
    let what = format!("this machine has no local network: {error}");
    Failure::new(ErrorCode::HostOffline, what, "connect both machines to the same network")
}
