//! TCP paths: streams between two peers that carry datagrams in frames.
//!
//! Both sides use the port of their registration (`SO_REUSEPORT`), whose mapping the server has
//! seen, and connect to each other at once, which opens both NATs (simultaneous open); where one
//! side is not behind a NAT, the other's connection is accepted. A stream that is accepted says
//! first which match it belongs to.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use socket2::SockRef;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::mpsc;
use tokio::time::timeout;

use crate::limits::FRAMES_QUEUED_MAX;
use crate::net::pathmux::{Frame, PathMux};
use crate::proto::path::StreamId;
use crate::wire::datagrams::{self, FRAME_HEADER_BYTES};
use crate::wire::probe::PROBE_BYTES;

/// For one attempt to connect: the kernel repeats what was lost after 1 s, and then not for long.
const ATTEMPT: Duration = Duration::from_millis(1400);
/// Attempts behind each other, without a gap in which the peer's own would be refused.
const ATTEMPTS: usize = 3;
/// For an accepted stream to say which match it belongs to.
const FIRST_FRAME: Duration = Duration::from_secs(2);
/// For the peer to acknowledge what was sent.
const UNACKNOWLEDGED_MAX: Duration = Duration::from_secs(10);
/// Connections that wait to be accepted.
const BACKLOG: u32 = 16;
/// Read at once, bytes.
const READ_BYTES: usize = 256 << 10;

/// Connects from a local port that others use too.
pub(crate) async fn dial(port: u16, to: SocketAddr) -> io::Result<TcpStream> {
    for _ in 0..ATTEMPTS {
        let socket = open(any(to.ip()), port)?;
        if let Ok(connected) = timeout(ATTEMPT, socket.connect(to)).await {
            let stream = connected?;
            prepare(&stream)?;
            return Ok(stream);
        }
    }
    Err(io::ErrorKind::TimedOut.into())
}

/// Listens on a local port that others use too.
pub(crate) fn listen(local: SocketAddr) -> io::Result<TcpListener> {
    open(any(local.ip()), local.port())?.listen(BACKLOG)
}

/// The first frame of an accepted stream: a probe, not verified yet.
pub(crate) async fn first_frame(stream: &mut TcpStream) -> io::Result<Bytes> {
    prepare(stream)?;
    let read = async {
        let mut header = [0; FRAME_HEADER_BYTES];
        stream.read_exact(&mut header).await?;
        let (length, _) = datagrams::parse(header).map_err(invalid)?;
        if length != PROBE_BYTES {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let mut probe = [0; PROBE_BYTES];
        stream.read_exact(&mut probe).await?;
        Ok(Bytes::copy_from_slice(&probe))
    };
    timeout(FIRST_FRAME, read).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

/// Carries a stream's frames until either side ends it or it is removed from the mux; then says so.
pub(crate) fn carry(
    stream: TcpStream,
    mux: &Arc<PathMux>,
    closed: impl FnOnce(StreamId) + Send + 'static,
) -> StreamId {
    let (frames, outgoing) = mpsc::channel(FRAMES_QUEUED_MAX);
    let id = mux.add_stream(frames);
    let mux = Arc::clone(mux);
    tokio::spawn(async move {
        let (read, write) = stream.into_split();
        let ended = tokio::select! {
            ended = read_frames(read, id, &mux) => ended,
            ended = write_frames(write, outgoing) => ended,
        };
        if let Err(error) = ended {
            tracing::debug!(%error, stream = id.0, "TCP path ended");
        }
        mux.remove_stream(id);
        closed(id);
    });
    id
}

async fn read_frames(mut read: OwnedReadHalf, id: StreamId, mux: &PathMux) -> io::Result<()> {
    let mut buffer = BytesMut::with_capacity(READ_BYTES);
    loop {
        while let Some(header) = buffer.first_chunk::<FRAME_HEADER_BYTES>() {
            let (length, segment) = datagrams::parse(*header).map_err(invalid)?;
            if buffer.len() < FRAME_HEADER_BYTES + length {
                break;
            }
            let _ = buffer.split_to(FRAME_HEADER_BYTES);
            mux.handle_frame(id, segment, buffer.split_to(length).freeze());
        }
        buffer.reserve(READ_BYTES);
        if read.read_buf(&mut buffer).await? == 0 {
            return Ok(());
        }
    }
}

async fn write_frames(
    mut write: OwnedWriteHalf,
    mut frames: mpsc::Receiver<Frame>,
) -> io::Result<()> {
    let (mut batch, mut buffer) = (Vec::new(), BytesMut::new());
    while frames.recv_many(&mut batch, FRAMES_QUEUED_MAX).await > 0 {
        for Frame { segment, bytes } in batch.drain(..) {
            if let Some(header) = datagrams::header(bytes.len(), segment) {
                buffer.extend_from_slice(&header);
                buffer.extend_from_slice(&bytes);
            }
        }
        write.write_all(&buffer).await?;
        buffer.clear();
    }
    Ok(())
}

fn open(ip: IpAddr, port: u16) -> io::Result<TcpSocket> {
    let socket = if ip.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    socket.set_reuseaddr(true)?;
    socket.set_reuseport(true)?;
    socket.bind((ip, port).into())?;
    Ok(socket)
}

fn any(like: IpAddr) -> IpAddr {
    match like {
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    }
}

fn prepare(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    SockRef::from(stream).set_tcp_user_timeout(Some(UNACKNOWLEDGED_MAX))
}

fn invalid(error: impl std::error::Error + Send + Sync + 'static) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}
