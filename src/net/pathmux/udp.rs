//! Opening the UDP socket.

use std::io;
use std::net::{Ipv6Addr, SocketAddr};

use rustix::net::sockopt;
use socket2::{Domain, Protocol, SockRef, Socket, Type};

use crate::limits::SOCKET_BUFFER_BYTES;

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
