use std::net::SocketAddr;
use std::time::{Duration, Instant};

use p2pfs::id::{ConnectionId, Epoch, HostRun, NodeId, Seq, SessionId};
use p2pfs::identity::{MacAddress, PairKey, PeerId};
use p2pfs::proto::lease::grantor::Grantor;
use p2pfs::proto::lease::holder::Holder;
use p2pfs::proto::redo::applier::{self, Applier};
use p2pfs::proto::redo::log::Log;
use p2pfs::proto::rendezvous::client::{ClientConfig, ClientSide};
use p2pfs::proto::rendezvous::host::HostSide;
use p2pfs::proto::rendezvous::matcher::{Link, Matcher};
use p2pfs::proto::stun::StunClient;
use p2pfs::wire::codec::decode;
use p2pfs::wire::lease::{LeaseRequest, Notice};
use p2pfs::wire::log::{Change, Cursor, LogAck, LogEntry, Mutation, Outcome, Promise};
use p2pfs::wire::name::Name;
use p2pfs::wire::rendezvous::{FromServer, ToServer};

/// What two daemons say to the server, in turn.
pub(super) fn server(bytes: &[u8]) {
    let start = Instant::now();
    let mut matcher = Matcher::new(Vec::new(), true, [1; 32]);
    for number in [1, 2] {
        let (link, key) = (Link(number), PeerId([2; 32]));
        matcher.handle_connected(link, key, an_address(), start).expect("there is room");
    }
    for (number, message) in messages(bytes).enumerate() {
        let now = start + Duration::from_millis(10 * number as u64);
        if let Ok(message) = decode::<ToServer>(message) {
            let link = Link(1 + number as u64 % 2);
            let _ = matcher.handle_message(link, message, now);
        }
        matcher.handle_timeout(now);
        while matcher.poll_output().is_some() {}
    }
    matcher.handle_disconnected(Link(1), start);
}

/// What a client says to a host, once it is let in: changes and lease requests.
pub(super) fn host(bytes: &[u8]) {
    let now = Instant::now();
    let session = SessionId([1; 16]);
    let mut grantor: Grantor<()> = Grantor::new(HostRun(1), [], now);
    let mut applier: Applier<(), ()> = Applier::new(Epoch([1; 16]), Seq(1));
    grantor.handle_connected(session, now);
    for message in messages(bytes) {
        if let Ok(request) = decode::<LeaseRequest>(message) {
            let _ = grantor.handle_request(session, request, now);
        }
        if let Ok(entry) = decode::<LogEntry>(message) {
            let _ = applier.handle_entry(entry, (), message.len(), now);
        }
        while let Some(output) = applier.poll_output() {
            if let applier::Output::Apply { seq, .. } = output {
                applier.handle_result(seq, Ok(Outcome::Done), now);
            }
        }
        while grantor.poll_output().is_some() {}
    }
    grantor.handle_lost(session, now);
    grantor.handle_timeout(now + Duration::from_secs(60));
    while grantor.poll_output().is_some() {}
}

/// What a host and a server say to a client, and a server to a host.
pub(super) fn client(bytes: &[u8]) {
    let now = Instant::now();
    let mut holder = Holder::new(now);
    holder.handle_connected(now);
    let mut log = a_log();
    let pair_key = PairKey::from_bytes([3; 32]);
    let mac = MacAddress([2, 0, 0, 0, 0, 1]);
    let peer = PeerId([2; 32]);
    let config = ClientConfig { peer, host: PeerId([4; 32]), mac, pair_key };
    let mut seeker = ClientSide::new(config, [1; 32], now);
    seeker.handle_connected(now);
    let mut registrar = HostSide::new(mac, [1; 32]);
    registrar.handle_connected(now);
    for message in messages(bytes) {
        if let Ok(notice) = decode::<Notice>(message) {
            let _ = holder.handle_notice(notice, now);
        }
        if let Ok(ack) = decode::<LogAck>(message) {
            let _ = log.handle_ack(ack);
        }
        if let Ok(cursor) = decode::<Cursor>(message) {
            let _ = log.handle_connected(ConnectionId(2), &cursor);
        }
        if let Ok(told) = decode::<FromServer>(message) {
            let _ = seeker.handle_message(told.clone(), now);
            let _ = registrar.handle_message(told, now);
        }
        while holder.poll_output().is_some() {}
        while log.poll_output().is_some() {}
        while seeker.poll_output().is_some() {}
        while registrar.poll_output().is_some() {}
    }
    holder.handle_lost(now);
}

/// What comes back from where a STUN server may be.
pub(super) fn stun(bytes: &[u8]) {
    let now = Instant::now();
    let mut client = StunClient::new([1; 32], Duration::from_secs(5));
    client.set_servers(&[an_address()], now);
    while client.poll_output().is_some() {}
    for message in messages(bytes) {
        client.handle_datagram(message, an_address(), now);
        while client.poll_output().is_some() {}
    }
    client.handle_timeout(now + Duration::from_secs(60));
}

/// Two changes under way.
fn a_log() -> Log<()> {
    let mut log = Log::new();
    let epoch = Epoch([1; 16]);
    let cursor =
        Cursor { epoch, known: false, applied: Seq::ZERO, ahead: Vec::new(), stable: Seq::ZERO };
    log.handle_connected(ConnectionId(1), &cursor).expect("nothing is there yet");
    for name in [b"a", b"b"] {
        let name = Name::new(*name).expect("a name");
        let parent = NodeId::ROOT.into();
        let at = p2pfs::wire::log::Occupant::Any;
        let unlink = Mutation::Unlink { parent, name, occupant: at };
        log.append(Change::new(unlink), (), 0, Promise::Accepted);
    }
    while log.poll_output().is_some() {}
    log
}

/// A byte says how long each is.
fn messages(mut rest: &[u8]) -> impl Iterator<Item = &[u8]> {
    std::iter::from_fn(move || {
        let (length, behind) = rest.split_first()?;
        let (message, behind) = behind.split_at(behind.len().min(usize::from(*length)));
        rest = behind;
        Some(message)
    })
}

fn an_address() -> SocketAddr {
    ([203, 0, 113, 7], 50_000).into()
}
