//! The UDP socket.

use std::io;
use std::net::{Ipv6Addr, SocketAddr, UdpSocket};
use std::task::{Context, Poll, ready};

use rustix::net::sockopt;
use socket2::{Domain, Protocol, SockRef, Socket, Type};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::limits::SOCKET_BUFFER_BYTES;

/// A socket of the runtime that is only told when something arrives.
///
/// One that is also told when there is room, as tokio's own, is woken up by every datagram that
/// leaves: far more often than there was none.
#[derive(Debug)]
pub(super) struct Udp(AsyncFd<UdpSocket>);

impl Udp {
    pub(super) fn new(socket: Socket) -> io::Result<Self> {
        told_of(socket.into(), Interest::READABLE).map(Self)
    }

    pub(super) fn get(&self) -> &UdpSocket {
        self.0.get_ref()
    }

    /// How many datagrams `receive` took once something was there. It must not block, and takes
    /// fewer than `room` only if there are no more: then the socket is not asked once again.
    pub(super) fn poll_receive(
        &self,
        context: &mut Context<'_>,
        room: usize,
        mut receive: impl FnMut(&UdpSocket) -> io::Result<usize>,
    ) -> Poll<io::Result<usize>> {
        loop {
            let mut ready = ready!(self.0.poll_read_ready(context))?;
            if let Ok(received) = ready.try_io(|socket| receive(socket.get_ref())) {
                if received.as_ref().is_ok_and(|count| *count < room) {
                    ready.clear_ready();
                }
                return Poll::Ready(received);
            }
        }
    }

    /// Resolves when there is room for datagrams.
    pub(super) async fn writable(&self) -> io::Result<()> {
        // the runtime knows a descriptor once only
        let same = self.get().try_clone()?;
        let same = told_of(same, Interest::WRITABLE)?;
        same.writable().await.map(drop)
    }
}

#[expect(deprecated, reason = "sound for a descriptor that is owned and never exchanged")]
fn told_of(socket: UdpSocket, interest: Interest) -> io::Result<AsyncFd<UdpSocket>> {
    AsyncFd::with_interest(socket, interest)
}

/// The socket, and whether it takes both IPv6 and IPv4.
pub(super) fn open(listen: Option<SocketAddr>) -> io::Result<(Socket, bool)> {
    Ok(match listen {
        Some(address) => (bind(address, false)?, false),
        None => match bind(SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0)), true) {
            Ok(socket) => (socket, true),
            Err(_) => (bind(SocketAddr::from(([0, 0, 0, 0], 0)), false)?, false),
        },
    })
}

fn bind(address: SocketAddr, dual_stack: bool) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::DGRAM, Some(Protocol::UDP))?;
    if dual_stack {
        socket.set_only_v6(false)?;
    }
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    // Only root may go past net.core.rmem_max; others get what the system allows
    let fd = SockRef::from(&socket);
    if sockopt::set_socket_recv_buffer_size_force(&*fd, SOCKET_BUFFER_BYTES).is_err() {
        let _ = socket.set_recv_buffer_size(SOCKET_BUFFER_BYTES);
    }
    let _ = socket.set_send_buffer_size(SOCKET_BUFFER_BYTES);
    Ok(socket)
}
