//! Protocol versions, negotiated by ALPN.

/// The file protocol over QUIC. `p2pfs/1`: the first whose redo-log entries, leases and notices are
/// settled.
pub const FILES_ALPN: &[u8] = b"p2pfs/1";

/// The rendezvous protocol over TLS. `p2pfs-rendezvous/1`: registration and matching.
pub const RENDEZVOUS_ALPN: &[u8] = b"p2pfs-rendezvous/1";
