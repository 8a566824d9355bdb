//! Telling apart what arrives.

use std::net::SocketAddr;

use bytes::Bytes;
use quinn::udp::RecvMeta;

use super::pending::Batch;
use super::{Control, PathMux, Virtual};
use crate::proto::path::{Path, StreamId};
use crate::wire::datagrams;
use crate::wire::probe::Probe;
use crate::wire::relay::{RELAY_HEADER_BYTES, data_id, is_relay};
use crate::wire::rendezvous::Relayed;

/// What a datagram is.
enum Kind {
    Control,
    Quic,
    Other,
}

impl PathMux {
    /// Keeps one peer's QUIC datagrams of a received batch, in place; tells whether there are any.
    pub(super) fn sort(&self, buffer: &mut [u8], meta: &mut RecvMeta) -> bool {
        let from = SocketAddr::new(meta.addr.ip().to_canonical(), meta.addr.port());
        let stride = meta.stride.max(1);
        let (mut at, mut kept) = (0, 0);
        let mut owner: Option<Virtual> = None;
        let mut first = None;
        let peers = self.read();
        let direct = peers.at(Path::Udp(from));
        while at < meta.len {
            let end = (at + stride).min(meta.len);
            let start = at;
            at = end;
            let datagram = &buffer[start..end];
            let (peer, path, start) = match data_id(datagram) {
                Some(id) => {
                    (peers.at_relay(id, Some(from)), Path::Relay, start + RELAY_HEADER_BYTES)
                }
                None => (direct, Path::Udp(from), start),
            };
            let datagram = &buffer[start..end];
            match (kind(datagram), peer) {
                (Kind::Control, _) if path != Path::Relay || peer.is_some() => {
                    self.control(path, datagram);
                }
                (Kind::Quic, Some(peer)) => {
                    if peers.note(peer, path) {
                        first = Some((peer, path));
                    }
                    if *owner.get_or_insert(peer) == peer {
                        let length = end - start;
                        buffer.copy_within(start..end, kept);
                        meta.stride = if kept == 0 { length } else { meta.stride };
                        kept += length;
                    } else {
                        // the relay's datagrams for several peers may come as one batch
                        let bytes = Bytes::copy_from_slice(datagram);
                        self.put_pending(Batch { peer, segment: bytes.len(), bytes });
                    }
                }
                _ => tracing::trace!(%from, "datagram from a stranger dropped"),
            }
        }
        drop(peers);
        if let Some((peer, path)) = first {
            self.write().set_fallback(peer, path);
        }
        meta.len = kept;
        meta.ecn = None;
        meta.dst_ip = None;
        if let Some(owner) = owner {
            meta.addr = owner.address();
        }
        kept > 0
    }

    /// A frame of a stream.
    pub(crate) fn handle_frame(&self, stream: StreamId, segment: u16, bytes: Bytes) {
        let peer = self.read().at(Path::Tcp(stream));
        self.sort_frame(peer, Path::Tcp(stream), segment, bytes);
    }

    /// Datagrams of the relay that came over the connection to the server.
    pub(crate) fn handle_relayed(&self, relayed: Relayed) {
        let peer = self.read().at_relay(relayed.relay, None);
        if peer.is_some() {
            self.sort_frame(peer, Path::Relay, relayed.segment, relayed.bytes.into());
        } else {
            // the introduction goes another way through the server
            self.write().keep_early(relayed);
        }
    }

    /// A frame holds probes or QUIC, never both.
    pub(super) fn sort_frame(&self, peer: Option<Virtual>, path: Path, segment: u16, bytes: Bytes) {
        let size = if segment == 0 { bytes.len() } else { usize::from(segment) };
        match (kind(&bytes), peer) {
            (Kind::Control, _) => {
                for datagram in datagrams::split(&bytes, segment) {
                    self.control(path, datagram);
                }
            }
            (Kind::Quic, Some(peer)) => {
                let first = self.read().note(peer, path);
                if first {
                    self.write().set_fallback(peer, path);
                }
                self.put_pending(Batch { peer, segment: size, bytes });
            }
            _ => tracing::trace!(%path, "datagram from a stranger dropped"),
        }
    }

    fn control(&self, from: Path, datagram: &[u8]) {
        let bytes = Bytes::copy_from_slice(datagram);
        if self.control.try_send(Control { from, bytes }).is_err() {
            tracing::trace!("control queue is full");
        }
    }
}

fn kind(datagram: &[u8]) -> Kind {
    match datagram.first() {
        Some(first) if *first < 4 || Probe::is_probe(*first) || is_relay(*first) => Kind::Control,
        Some(first) if first & 0x40 != 0 => Kind::Quic,
        _ => Kind::Other,
    }
}
