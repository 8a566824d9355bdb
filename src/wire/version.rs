//! Protocol versions, negotiated by ALPN.

/// The file protocol over QUIC. `p2pfs/0`: the first; its redo-log entries are not settled yet.
pub const FILES_ALPN: &[u8] = b"p2pfs/0";

/// The rendezvous protocol over TLS. `p2pfs-rendezvous/1`: registration and matching.
pub const RENDEZVOUS_ALPN: &[u8] = b"p2pfs-rendezvous/1";
