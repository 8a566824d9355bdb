use std::fmt::Debug;

use p2pfs::identity::{PairKey, PeerId};
use p2pfs::limits::{
    BODY_BYTES_MAX, CONTROL_BYTES_MAX, HEADER_BYTES_MAX, NAME_BYTES_MAX, RELAYED_BYTES_MAX,
    TARGET_BYTES_MAX,
};
use p2pfs::wire::call::{Answer, Ask, Call, Reply};
use p2pfs::wire::codec::{decode, encode};
use p2pfs::wire::datagrams;
use p2pfs::wire::errno::Errno;
use p2pfs::wire::frame::{FrameHead, HEAD_BYTES};
use p2pfs::wire::lease::{LeaseRequest, Notice};
use p2pfs::wire::log::{LogAck, LogEntry};
use p2pfs::wire::name::{Name, Target};
use p2pfs::wire::nat::NatBehaviour;
use p2pfs::wire::pairing;
use p2pfs::wire::probe::Probe;
use p2pfs::wire::relay::{self, Bind};
use p2pfs::wire::rendezvous::{
    FromServer, MatchId, Routing, Seal, ToServer, frame_length, unframe,
};
use p2pfs::wire::session::{CloseReason, Denial, Identify, StreamKind, Verdict};
use p2pfs::wire::stun;
use serde::Serialize;
use serde::de::DeserializeOwned;

pub(super) fn session(bytes: &[u8]) {
    survives::<Identify>(bytes);
    survives::<Verdict>(bytes);
    if let Ok(Verdict::Denied(Denial::ShareUnknown(shares))) = decode(bytes) {
        let is_bounded = Verdict::Denied(Denial::ShareUnknown(shares.clone())).is_bounded();
        assert!(!is_bounded || shares.iter().map(String::len).sum::<usize>() <= 64 * 64);
    }
    if let Some((first, rest)) = bytes.split_first() {
        assert_eq!(StreamKind::from_byte(*first).map_or(*first, StreamKind::to_byte), *first);
        if let Some((code, _)) = rest.split_first_chunk() {
            let reason = CloseReason::from_code(u64::from_le_bytes(*code));
            assert_eq!(CloseReason::from_code(reason.to_code().into()), reason);
        }
    }
}

pub(super) fn call(bytes: &[u8]) {
    survives::<Call>(bytes);
    survives::<Ask>(bytes);
}

pub(super) fn reply(bytes: &[u8]) {
    survives::<Reply>(bytes);
    survives::<Answer>(bytes);
}

pub(super) fn log(bytes: &[u8]) {
    survives::<LogEntry>(bytes);
}

pub(super) fn ack(bytes: &[u8]) {
    survives::<LogAck>(bytes);
}

pub(super) fn lease(bytes: &[u8]) {
    survives::<LeaseRequest>(bytes);
}

pub(super) fn notice(bytes: &[u8]) {
    survives::<Notice>(bytes);
}

pub(super) fn to_server(bytes: &[u8]) {
    survives::<ToServer>(bytes);
    if let Ok(message) = unframe::<ToServer>(bytes) {
        message.is_bounded();
        assert!(bytes.len() <= CONTROL_BYTES_MAX);
    }
    if let Some((header, _)) = bytes.split_first_chunk()
        && let Ok(length) = frame_length(*header)
    {
        assert!(length <= CONTROL_BYTES_MAX);
    }
}

pub(super) fn from_server(bytes: &[u8]) {
    survives::<FromServer>(bytes);
    if let Ok(message) = unframe::<FromServer>(bytes) {
        message.is_bounded();
    }
}

/// Under a seal, as it comes: only who has paired can seal, and even that one may be hostile.
pub(super) fn routing(bytes: &[u8]) {
    survives::<Routing>(bytes);
    let (key, nonce) = (PairKey::from_bytes([11; 32]), [8; 24]);
    let seals = [Seal::Client(PeerId([4; 32])), Seal::Host(MatchId([3; 16]), &[6; 24])];
    for seal in seals {
        if let Ok(routing) = decode::<Routing>(bytes)
            && let Ok(sealed) = seal.seal(&key, nonce, &routing)
            && let Some(opened) = seal.open(&key, &sealed)
        {
            // what the server sees anyway is not under the seal
            let secret = Routing { tcp_public: None, udp_public: None, ..routing };
            assert_eq!(opened, secret.bounded());
        }
        if let Ok(sealed) = decode(bytes) {
            assert_eq!(seal.open(&key, &sealed), None, "nobody has sealed this");
        }
    }
}

pub(super) fn relay(bytes: &[u8]) {
    if let Some(id) = relay::data_id(bytes) {
        assert_eq!(bytes[..relay::data_header(id).len()], relay::data_header(id));
    }
    assert_eq!(Bind::open(bytes, &[9; 32]), None, "nobody has signed this");
    if let Some(id) = Bind::claimed_id(bytes) {
        let kind = relay::BindKind::Bind;
        let bind = Bind { kind, id, cookie: [1; 16] };
        assert_eq!(Bind::open(&bind.seal(&[9; 32]), &[9; 32]), Some(bind));
    }
}

pub(super) fn probe(bytes: &[u8]) {
    Probe::claimed_tag(bytes);
    assert_eq!(Probe::open(bytes, &[9; 32]), None, "nobody has signed this");
}

pub(super) fn stun(bytes: &[u8]) {
    if let Some(answered) = stun::binding_response(bytes) {
        assert!(answered.mapped.is_none_or(|address| address.port() != 0));
    }
    let source = "[2001:db8::7]:4000".parse().expect("an address");
    let other = "203.0.113.6:3479".parse().expect("an address");
    for (other, longer) in [(None, 32), (Some(other), 44)] {
        if let Some(answer) = stun::answer(bytes, source, other) {
            let more = answer.bytes.len().saturating_sub(bytes.len());
            assert!(more <= longer, "{more} bytes longer");
            stun::binding_response(&answer.bytes).expect("our own answer");
        }
    }
}

pub(super) fn nat(bytes: &[u8]) {
    survives::<NatBehaviour>(bytes);
}

pub(super) fn pairing(bytes: &[u8]) {
    survives::<pairing::Seek>(bytes);
    survives::<pairing::Here>(bytes);
    survives::<pairing::Request>(bytes);
    survives::<pairing::Done>(bytes);
    if let Ok(request) = decode::<pairing::Request>(bytes) {
        request.is_within_bounds();
    }
    if let Ok(offer) = decode::<pairing::Offer>(bytes) {
        offer.is_within_bounds();
        assert_eq!(encode(&offer).expect("it was decoded"), bytes);
    }
}

pub(super) fn frame(bytes: &[u8]) {
    let Some((head, rest)) = bytes.split_first_chunk::<HEAD_BYTES>() else { return };
    let Ok(head) = FrameHead::from_bytes(*head) else { return };
    assert!(head.header_len <= HEADER_BYTES_MAX && head.body_len <= BODY_BYTES_MAX);
    assert_eq!(head.to_bytes(), bytes[..HEAD_BYTES]);
    // as a lane reads it: the value, then file data
    if let Some((header, _)) = rest.split_at_checked(head.header_len) {
        survives::<Ask>(header);
        survives::<LogEntry>(header);
    }
}

pub(super) fn name(bytes: &[u8]) {
    survives::<Name>(bytes);
    survives::<Target>(bytes);
    survives::<Errno>(bytes);
    if let Ok(name) = Name::new(bytes) {
        let name = name.as_bytes();
        assert!((1..=NAME_BYTES_MAX).contains(&name.len()));
        assert!(!name.contains(&b'/') && !name.contains(&0) && name != b"." && name != b"..");
    }
    if let Ok(target) = Target::new(bytes) {
        assert!((1..=TARGET_BYTES_MAX).contains(&target.as_bytes().len()));
    }
}

pub(super) fn datagrams(bytes: &[u8]) {
    let Some((header, rest)) = bytes.split_first_chunk() else { return };
    let Ok((length, segment)) = datagrams::parse(*header) else { return };
    assert!((1..=RELAYED_BYTES_MAX).contains(&length));
    assert_eq!(datagrams::header(length, segment), Some(*header));
    let all: Vec<u8> = datagrams::split(rest, segment).flatten().copied().collect();
    assert_eq!(all, rest);
}

/// What is decoded is written with the same bytes, so it holds no more than they do.
fn survives<T: DeserializeOwned + Serialize + PartialEq + Debug>(bytes: &[u8]) {
    let Ok(value) = decode::<T>(bytes) else { return };
    let again = encode(&value).expect("it was decoded");
    assert_eq!(again.len(), bytes.len(), "{value:?}");
    assert_eq!(decode::<T>(&again).as_ref(), Ok(&value));
}
