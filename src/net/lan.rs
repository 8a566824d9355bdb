//! Pairing over the local network: sockets around [`crate::proto::pairing`].
//!
//! The client calls a code's number out on every link, by broadcast and IPv6 multicast; the host
//! that has it out answers with a TCP port. All of it has a TTL of 1: no router passes it on.

mod join;
mod offer;

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::limits::PAIRING_BYTES_MAX;
use crate::proto::pairing::{Channel, PairingError};

pub use self::join::{Join, join};
pub use self::offer::{Offering, Refusal};

/// How long one step of the exchange may take.
const STEP: Duration = Duration::from_secs(10);
/// One hop: the packets stay on the link.
const TTL: u32 = 1;
/// Datagrams of this protocol are shorter.
const DATAGRAM_BYTES_MAX: usize = 64;

/// Why the exchange broke off.
#[derive(Debug, thiserror::Error)]
enum ExchangeError {
    #[error("the connection broke: {0}")]
    Io(#[from] io::Error),
    #[error(transparent)]
    Pairing(#[from] PairingError),
    #[error("the other side took too long")]
    Slow(#[from] tokio::time::error::Elapsed),
}

/// The connection, message by message.
#[derive(Debug)]
struct Wire(TcpStream);

impl Wire {
    async fn send(&mut self, message: &[u8]) -> Result<(), ExchangeError> {
        let length = u16::try_from(message.len()).map_err(|_| PairingError::Malformed)?;
        let framed = [&length.to_le_bytes(), message].concat();
        tokio::time::timeout(STEP, self.0.write_all(&framed)).await??;
        Ok(())
    }

    async fn receive(&mut self) -> Result<Vec<u8>, ExchangeError> {
        let receive = async {
            let mut length = [0; 2];
            self.0.read_exact(&mut length).await?;
            let length = usize::from(u16::from_le_bytes(length));
            if length > PAIRING_BYTES_MAX {
                return Err(ExchangeError::Pairing(PairingError::Malformed));
            }
            let mut message = vec![0; length];
            self.0.read_exact(&mut message).await?;
            Ok(message)
        };
        tokio::time::timeout(STEP, receive).await?
    }

    async fn send_sealed<T: Serialize>(
        &mut self,
        channel: &mut Channel,
        message: &T,
    ) -> Result<(), ExchangeError> {
        let sealed = channel.seal(message)?;
        self.send(&sealed).await
    }

    async fn receive_sealed<T: DeserializeOwned>(
        &mut self,
        channel: &mut Channel,
    ) -> Result<T, ExchangeError> {
        let sealed = self.receive().await?;
        Ok(channel.open(&sealed)?)
    }
}

/// A UDP socket of this family, whose packets stay on the link.
fn udp(domain: Domain, bind: SocketAddr) -> io::Result<tokio::net::UdpSocket> {
    let socket = Socket::new(domain, Type::DGRAM, Some(Protocol::UDP))?;
    // Several hosts may have codes out on one machine
    socket.set_reuse_address(true)?;
    if domain == Domain::IPV4 {
        socket.set_broadcast(true)?;
        socket.set_ttl_v4(TTL)?;
    } else {
        socket.set_only_v6(true)?;
        socket.set_unicast_hops_v6(TTL)?;
        socket.set_multicast_hops_v6(TTL)?;
    }
    socket.set_nonblocking(true)?;
    socket.bind(&bind.into())?;
    tokio::net::UdpSocket::from_std(socket.into())
}

fn any(domain: Domain, port: u16) -> SocketAddr {
    let ip: IpAddr = if domain == Domain::IPV4 {
        std::net::Ipv4Addr::UNSPECIFIED.into()
    } else {
        std::net::Ipv6Addr::UNSPECIFIED.into()
    };
    SocketAddr::new(ip, port)
}
