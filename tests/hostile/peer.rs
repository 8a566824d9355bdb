//! A peer with the protocol's own parts, who does not keep to the protocol: real matches, real
//! paths and real QUIC, and then streams with whatever he likes on them.

use std::net::SocketAddr;
use std::time::Duration;

use p2pfs::address::ServerAddress;
use p2pfs::identity::sealed::{KeyContents, KeyId};
use p2pfs::identity::{MacAddress, PairKey, PeerId, SecretKey};
use p2pfs::net::endpoint::{Endpoint, Meet, PathEvent, Virtual};
use p2pfs::net::quic;
use p2pfs::net::rendezvous::{
    RecordedKey, Registration, RegistrationConfig, RendezvousEvent, Side,
};
use p2pfs::proto::path::Wanted;
use p2pfs::wire::codec::encode;
use p2pfs::wire::frame::FrameHead;
use p2pfs::wire::probe::Role;
use p2pfs::wire::rendezvous::Routing;
use p2pfs::wire::session::{DeviceId, Identify};
use quinn::{Connection, RecvStream};
use serde::Serialize;
use tokio::sync::{mpsc, watch};

pub(super) const MAC: MacAddress = MacAddress([2, 0, 0, 0, 0, 9]);

/// One end: registered, and with a socket that finds paths.
pub(super) struct Peer {
    endpoint: Endpoint,
    events: mpsc::Receiver<RendezvousEvent>,
    _registration: Registration,
    role: Role,
    through: Option<SocketAddr>,
    /// Of the last match.
    pub(super) probe_key: [u8; 32],
}

impl Peer {
    /// As the client that has this key.
    pub(super) fn client(key: &KeyContents) -> Self {
        Self::client_through(key, None)
    }

    /// The same; if there is an address, it looks for its host at that UDP address only, and says
    /// nothing of itself.
    pub(super) fn client_through(key: &KeyContents, through: Option<SocketAddr>) -> Self {
        let endpoint = Endpoint::start(None, None, None).unwrap();
        let (pair_key, mac, host) = (key.pair_key.clone(), key.host_mac, key.host);
        let side = Side::Client { pair_key, mac, host, first: None, loans: None };
        Self::register(endpoint, &key.secret, &key.servers[0], side, Role::Client, through)
    }

    /// As a host that has recorded one key; to a client it proves `shown`, which may be another key
    /// than its own.
    pub(super) fn host(
        secret: &SecretKey,
        shown: &SecretKey,
        server: &ServerAddress,
        key: RecordedKey,
    ) -> Self {
        let config = quic::server_config(shown).unwrap();
        let endpoint = Endpoint::start(None, Some(config), Some(MAC)).unwrap();
        let side = Side::Host { mac: MAC, keys: watch::channel(vec![key]).1 };
        Self::register(endpoint, secret, server, side, Role::Host, None)
    }

    fn register(
        endpoint: Endpoint,
        secret: &SecretKey,
        server: &ServerAddress,
        side: Side,
        role: Role,
        through: Option<SocketAddr>,
    ) -> Self {
        let (events_in, events) = mpsc::channel(64);
        let (secret, server) = (secret.clone(), server.clone());
        let unsaid = || watch::channel(Routing::default()).1;
        let routing = through.map_or_else(|| endpoint.routing(), |_| unsaid());
        let relayed = Some(endpoint.relay_inbox());
        let config = RegistrationConfig { secret, server, side, routing, relayed };
        let registration = Registration::start(config, events_in);
        Self { endpoint, events, _registration: registration, role, through, probe_key: [0; 32] }
    }

    /// Waits for a match and for its path.
    pub(super) async fn meet(&mut self) -> Virtual {
        loop {
            match self.events.recv().await.expect("a registration that lives") {
                RendezvousEvent::Connected { stun, .. } => self.endpoint.set_stun_servers(stun),
                RendezvousEvent::Introduced(mut introduction, link) => {
                    self.probe_key = introduction.probe_key;
                    if self.through.is_some() {
                        let udp_public = self.through;
                        introduction.routing = Routing { udp_public, ..Routing::default() };
                        introduction.relay = None;
                    }
                    let (role, wanted) = (self.role, Wanted::default());
                    let meet =
                        Meet { introduction, link, role, wanted, ask_after: None, peer: None };
                    let (peer, mut events) = self.endpoint.meet(meet);
                    let (up, is_up) = tokio::sync::oneshot::channel();
                    tokio::spawn(async move {
                        let mut up = Some(up);
                        while let Some(event) = events.recv().await {
                            if let PathEvent::Up(_) = event
                                && let Some(up) = up.take()
                            {
                                let _ = up.send(());
                            }
                        }
                    });
                    if self.role == Role::Client {
                        is_up.await.expect("a path");
                    }
                    return peer;
                }
                _ => {}
            }
        }
    }

    /// Proves the key to the host; nothing is said yet.
    pub(super) async fn dial(&self, key: &KeyContents, host: Virtual) -> Connection {
        self.try_dial(key, host).unwrap().await.unwrap()
    }

    /// The same, whatever comes of it.
    pub(super) fn try_dial(&self, key: &KeyContents, host: Virtual) -> Option<quinn::Connecting> {
        let config = quic::client_config(&key.secret, key.host).unwrap();
        self.endpoint.quic.connect_with(config, host.address(), "host.p2pfs").ok()
    }

    /// The same; nobody listens to more than the first 16 KiB of a stream.
    pub(super) async fn dial_deaf(&self, key: &KeyContents, host: Virtual) -> Connection {
        let mut config = quic::client_config(&key.secret, key.host).unwrap();
        let mut transport = quinn::TransportConfig::default();
        transport.stream_receive_window(quinn::VarInt::from_u32(16 << 10));
        config.transport_config(std::sync::Arc::new(transport));
        let dialled = self.endpoint.quic.connect_with(config, host.address(), "host.p2pfs");
        dialled.unwrap().await.unwrap()
    }

    /// Where connections come in.
    pub(super) fn quic(&self) -> quinn::Endpoint {
        self.endpoint.quic.clone()
    }
}

/// A key as `pair` would make it.
pub(super) fn a_key(host: PeerId, server: &ServerAddress) -> KeyContents {
    let secret = SecretKey::from_seed([0x51; 32]);
    KeyContents {
        id: KeyId::of(secret.peer_id()),
        pair_key: PairKey::from_bytes([0x52; 32]),
        secret,
        host,
        host_mac: MAC,
        host_name: "hostile".into(),
        servers: vec![server.clone()],
        portable: false,
        kind: p2pfs::identity::kind::Kind::Stick,
        login: None,
        shows: None,
    }
}

/// Request 21.
pub(super) fn identify(device: &DeviceId, session: u8) -> Identify {
    let (held, unanswered) = (p2pfs::id::Seq(1), p2pfs::id::Seq(1));
    let session = p2pfs::id::SessionId([session; 16]);
    let (device, share) = (device.clone(), Some("disk".to_owned()));
    Identify { session, device, share, client_name: "guest".into(), held, unanswered }
}

/// A frame as the protocol has it.
pub(super) fn frame<T: Serialize>(value: &T, body: &[u8]) -> Vec<u8> {
    framed(&encode(value).unwrap(), body)
}

/// A frame around bytes that need not be a value.
pub(super) fn framed(header: &[u8], body: &[u8]) -> Vec<u8> {
    let head = FrameHead::new(header.len(), body.len()).unwrap();
    [&head.to_bytes(), header, body].concat()
}

/// A frame's lengths, which need not be true.
pub(super) fn lengths(header: u32, body: u32) -> Vec<u8> {
    [header.to_le_bytes(), body.to_le_bytes()].concat()
}

/// Everything that comes until the stream ends, however it ends, or for so long.
pub(super) async fn drain(receive: &mut RecvStream, limit: Duration) -> Vec<u8> {
    let mut all = Vec::new();
    let read = async {
        while let Ok(Some(chunk)) = receive.read_chunk(usize::MAX, true).await {
            all.extend_from_slice(&chunk.bytes);
        }
    };
    let _ = tokio::time::timeout(limit, read).await;
    all
}

/// Reads one frame: its value's bytes.
pub(super) async fn read_frame(receive: &mut RecvStream) -> Option<Vec<u8>> {
    let mut head = [0; 8];
    receive.read_exact(&mut head).await.ok()?;
    let head = FrameHead::from_bytes(head).ok()?;
    let mut header = vec![0; head.header_len];
    receive.read_exact(&mut header).await.ok()?;
    let mut body = vec![0; head.body_len];
    receive.read_exact(&mut body).await.ok()?;
    Some(header)
}
