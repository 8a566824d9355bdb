//! QUIC's settings: raw public keys on both sides, windows for a long fast link.

use std::sync::Arc;
use std::time::Duration;

use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn::{AckFrequencyConfig, IdleTimeout, MtuDiscoveryConfig, TransportConfig, VarInt};

use crate::failure::{Code, Failure};
use crate::identity::{PeerId, SecretKey};
use crate::limits::{
    CALL_LANES, CALLS_IN_FLIGHT_MAX, CONNECTION_IDLE, KEEP_ALIVE, KNOCK_BYTES_MAX, MTU_MAX,
};
use crate::net::congestion::{PathEpoch, PerPathConfig};
use crate::net::tls::{self, Expected};
use crate::wire::version::FILES_ALPN;

/// One stream's window, bytes: 1 Gbit/s at 130 ms.
const STREAM_WINDOW: u32 = 16 << 20;
/// A connection's window, bytes.
const CONNECTION_WINDOW: u32 = 64 << 20;
/// Packets that are acknowledged together: an acknowledgement costs both sides a system call and a
/// wake-up, and that of a small call rides on the next one.
const ACK_EVERY: u32 = 8;
/// How long an acknowledgement may wait: fewer packets than [`ACK_EVERY`] may fill a fresh window.
const ACK_WITHIN: Duration = Duration::from_millis(5);
/// Streams beside the calls: the first one, the log's two and the calls' lanes.
const OTHER_STREAMS: u32 = 3 + CALL_LANES as u32;

/// For a client that expects one host.
///
/// # Errors
///
/// Never with the ciphers that this crate is built with.
pub fn client_config(secret: &SecretKey, host: PeerId) -> Result<quinn::ClientConfig, Failure> {
    let tls = tls::client_config(secret, Expected::Peer(host), FILES_ALPN);
    let quic = QuicClientConfig::try_from(tls).map_err(no_cipher)?;
    Ok(quinn::ClientConfig::new(Arc::new(quic)))
}

/// The same, for connections whose congestion state follows the peer's paths. A host that has
/// nothing else to say acknowledges a packet that is sent every `keep_alive`.
pub(crate) fn client_on(
    config: &quinn::ClientConfig,
    epoch: Arc<PathEpoch>,
    keep_alive: Duration,
) -> quinn::ClientConfig {
    let mut config = config.clone();
    config.transport_config(transport(epoch, CONNECTION_WINDOW, keep_alive));
    config
}

/// For a host: any key may prove itself, the policy decides afterwards.
///
/// # Errors
///
/// Never with the ciphers that this crate is built with.
pub fn server_config(secret: &SecretKey) -> Result<quinn::ServerConfig, Failure> {
    let tls = tls::server_config(secret, Expected::Anyone, FILES_ALPN);
    let quic = QuicServerConfig::try_from(tls).map_err(no_cipher)?;
    let mut config = quinn::ServerConfig::with_crypto(Arc::new(quic));
    // The mux hides address changes from QUIC
    config.migration(false);
    Ok(config)
}

/// The same, for a connection whose congestion state follows the peer's paths. Until [`widen`] it
/// takes only what a client says before it is approved.
pub(crate) fn server_on(
    config: &quinn::ServerConfig,
    epoch: Arc<PathEpoch>,
) -> Arc<quinn::ServerConfig> {
    let mut config = config.clone();
    config.transport_config(transport(epoch, KNOCK_BYTES_MAX, KEEP_ALIVE));
    Arc::new(config)
}

/// Gives an approved connection the window that it needs.
pub(crate) fn widen(connection: &quinn::Connection) {
    connection.set_receive_window(VarInt::from_u32(CONNECTION_WINDOW));
}

/// No greased QUIC bit: the shared socket tells QUIC by it (RFC 9443).
pub(crate) fn endpoint_config() -> quinn::EndpointConfig {
    let mut config = quinn::EndpointConfig::default();
    config.grease_quic_bit(false);
    config
}

fn transport(epoch: Arc<PathEpoch>, window: u32, keep_alive: Duration) -> Arc<TransportConfig> {
    let streams = u32::try_from(CALLS_IN_FLIGHT_MAX).unwrap_or(u32::MAX) + OTHER_STREAMS;
    let mut discovery = MtuDiscoveryConfig::default();
    discovery.upper_bound(MTU_MAX);
    let mut acks = AckFrequencyConfig::default();
    acks.ack_eliciting_threshold(VarInt::from_u32(ACK_EVERY)).max_ack_delay(Some(ACK_WITHIN));
    let mut config = TransportConfig::default();
    config
        .max_concurrent_bidi_streams(VarInt::from_u32(streams))
        .max_concurrent_uni_streams(VarInt::from_u32(0))
        .stream_receive_window(VarInt::from_u32(STREAM_WINDOW))
        .receive_window(VarInt::from_u32(window))
        .send_window(u64::from(CONNECTION_WINDOW))
        .initial_rtt(Duration::from_millis(100))
        .keep_alive_interval(Some(keep_alive))
        .max_idle_timeout(IdleTimeout::try_from(CONNECTION_IDLE).ok())
        .mtu_discovery_config(Some(discovery))
        .congestion_controller_factory(Arc::new(PerPathConfig::new(epoch)))
        .datagram_receive_buffer_size(None)
        .ack_frequency_config(Some(acks));
    Arc::new(config)
}

fn no_cipher(error: impl std::fmt::Display) -> Failure {
    Failure::new(
        Code::Internal,
        format!("QUIC cannot use this TLS configuration: {error}"),
        "this is a fault in p2pfs: please report it",
    )
}
