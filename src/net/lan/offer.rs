//! The host's side: a code is out, and the first who comes with it is paired.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use socket2::{Domain, Protocol, SockRef, Socket, Type};
use tokio::net::{TcpListener, UdpSocket};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use zeroize::Zeroizing;

use crate::failure::{Code as ErrorCode, Failure};
use crate::net::daemon;
use crate::proto::pairing::{Channel, Code, Handshake, PairingError, Side};
use crate::wire::codec;
use crate::wire::pairing::{Done, Here, MAGIC, Offer, PORT, Request, Seek};

use super::{DATAGRAM_BYTES_MAX, ExchangeError, TTL, Wire, any, udp};

/// Connections that are heard at once.
const CONNECTIONS_MAX: usize = 8;

/// A code that is out.
#[derive(Debug)]
pub struct Offering {
    code: Code,
    sockets: Vec<UdpSocket>,
    listener: TcpListener,
}

/// Why nobody was paired.
#[derive(Debug)]
pub enum Refusal {
    /// Somebody came with another code: this one is void.
    WrongCode,
    /// Nobody came in time.
    Expired,
    /// The client did not say that it has written its key down.
    Unconfirmed,
    /// The key could not be recorded here.
    Failed(Failure),
}

/// Somebody who knows the code.
struct Guest {
    wire: Wire,
    channel: Channel,
    request: Request,
}

impl Offering {
    /// Makes a code and listens. Needs a runtime around it.
    ///
    /// # Errors
    ///
    /// No socket can be opened.
    pub fn start() -> Result<Self, Failure> {
        let open = || {
            let code = Code::from_random(daemon::random());
            // A machine may have one family only
            let sockets = [Domain::IPV4, Domain::IPV6].map(|it| udp(it, any(it, PORT)));
            let failed = sockets.iter().all(Result::is_err);
            let (mut opened, mut error) = (Vec::new(), None);
            for socket in sockets {
                match socket {
                    Ok(socket) => opened.push(socket),
                    Err(it) => error = Some(it),
                }
            }
            if let (true, Some(error)) = (failed, error) {
                return Err(error);
            }
            Ok(Self { code, sockets: opened, listener: listener()? })
        };
        open().map_err(|error: io::Error| {
            Failure::new(
                ErrorCode::Internal,
                format!("cannot listen on UDP port {PORT} of this machine: {error}"),
                "see what else uses that port: ss -ulpn",
            )
        })
    }

    /// The code, to be read out.
    pub fn code(&self) -> &Code {
        &self.code
    }

    /// Pairs the first client that knows the code: `record` records it and says what it is told,
    /// `forget` takes that back. The key's request is returned.
    ///
    /// # Errors
    ///
    /// [`Refusal`]; the code is void in any case.
    pub async fn serve(
        self,
        until: Instant,
        record: impl AsyncFnOnce(&Request) -> Result<Offer, Failure>,
        forget: impl AsyncFnOnce(&Request),
    ) -> Result<Request, Refusal> {
        let guest = tokio::time::timeout_at(until.into(), self.meet()).await;
        let mut guest = guest.map_err(|_| Refusal::Expired)?.map_err(|_| Refusal::WrongCode)?;
        let offer = record(&guest.request).await.map_err(Refusal::Failed)?;
        match confirm(&mut guest, &offer).await {
            Ok(()) => Ok(guest.request),
            Err(error) => {
                tracing::warn!(%error, "the client broke off");
                forget(&guest.request).await;
                Err(Refusal::Unconfirmed)
            }
        }
    }

    /// The first who knows the code, or an error at the first who does not.
    async fn meet(self) -> Result<Guest, PairingError> {
        let Self { code, sockets, listener } = self;
        let port = listener.local_addr().map_err(|_| PairingError::Malformed)?.port();
        let mut answering = JoinSet::new();
        for socket in sockets {
            answering.spawn(answer(socket, code.number(), port));
        }
        let mut guests = JoinSet::new();
        let room = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        loop {
            tokio::select! {
                Ok((stream, from)) = listener.accept() => {
                    let Ok(place) = Arc::clone(&room).try_acquire_owned() else { continue };
                    tracing::debug!(%from, "somebody connects");
                    let code = code.clone();
                    guests.spawn(async move {
                        let _place = place;
                        hear(&code, Wire(stream)).await
                    });
                }
                Some(Ok(heard)) = guests.join_next() => match heard {
                    Ok(guest) => return Ok(guest),
                    Err(ExchangeError::Pairing(PairingError::WrongCode)) => {
                        return Err(PairingError::WrongCode);
                    }
                    // It has not tried the code
                    Err(error) => tracing::debug!(%error, "somebody broke off"),
                },
            }
        }
    }
}

/// Waits for somebody's request, which opens only if both have the same code.
async fn hear(code: &Code, mut wire: Wire) -> Result<Guest, ExchangeError> {
    let (handshake, ours) =
        Handshake::start(code, Side::Host, Zeroizing::new(daemon::random::<64>()));
    let theirs = wire.receive().await?;
    wire.send(&ours).await?;
    let mut channel = handshake.handle_message(&theirs)?;
    let request: Request = wire.receive_sealed(&mut channel).await?;
    if !request.is_within_bounds() {
        return Err(PairingError::Malformed.into());
    }
    Ok(Guest { wire, channel, request })
}

async fn confirm(guest: &mut Guest, offer: &Offer) -> Result<(), ExchangeError> {
    guest.wire.send_sealed(&mut guest.channel, offer).await?;
    let done: Done = guest.wire.receive_sealed(&mut guest.channel).await?;
    if done.peer == guest.request.peer { Ok(()) } else { Err(PairingError::Malformed.into()) }
}

/// Answers who asks for this code's number.
async fn answer(socket: UdpSocket, number: u16, port: u16) {
    let mut buffer = [0; DATAGRAM_BYTES_MAX];
    let pause = Duration::from_millis(20);
    loop {
        let Ok((length, from)) = socket.recv_from(&mut buffer).await else {
            tokio::time::sleep(pause).await;
            continue;
        };
        let Ok(seek) = codec::decode::<Seek>(&buffer[..length]) else { continue };
        if seek.magic != MAGIC || seek.number != number {
            continue;
        }
        let here = Here { magic: MAGIC, port, token: seek.token };
        if let Ok(bytes) = codec::encode(&here)
            && let Err(error) = socket.send_to(&bytes, from).await
        {
            tracing::debug!(%error, %from, "cannot answer");
        }
    }
}

fn listener() -> io::Result<TcpListener> {
    let open = |domain: Domain| {
        let socket = Socket::new(domain, Type::STREAM, Some(Protocol::TCP))?;
        if domain == Domain::IPV6 {
            socket.set_only_v6(false)?;
        }
        socket.bind(&any(domain, 0).into())?;
        socket.listen(CONNECTIONS_MAX as i32)?;
        socket.set_nonblocking(true)?;
        let listener = TcpListener::from_std(socket.into())?;
        let socket = SockRef::from(&listener);
        socket.set_ttl_v4(TTL)?;
        if domain == Domain::IPV6 {
            socket.set_unicast_hops_v6(TTL)?;
        }
        Ok(listener)
    };
    open(Domain::IPV6).or_else(|_: io::Error| open(Domain::IPV4))
}
