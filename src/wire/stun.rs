//! STUN (RFC 8489): binding requests and what answers them, nothing else.
//!
//! A datagram is ours to look at when its first byte is 0..=3 (RFC 9443); the codec is
//! `stun-types`.

use std::net::{IpAddr, SocketAddr};

use stun_types::attribute::{
    Attribute, AttributeStaticType, AttributeType, ErrorCode, Fingerprint, RawAttribute, Software,
    UnknownAttributes, XorMappedAddress,
};
use stun_types::message::{
    BINDING, Message, MessageClass, MessageWrite, MessageWriteExt, MessageWriteVec, TransactionId,
};

/// A STUN message longer than this is not for us, bytes: the smallest MTU that IPv6 allows.
pub const STUN_BYTES_MAX: usize = 1280;
/// A message without attributes, bytes.
const HEADER_BYTES: usize = 20;
const CHANGE_REQUEST: AttributeType = AttributeType::new(0x0003);
const UNKNOWN_ATTRIBUTE: u16 = 420;
const OTHER_ADDRESS: AttributeType = AttributeType::new(0x802c);
const MAGIC_COOKIE: [u8; 4] = [0x21, 0x12, 0xa4, 0x42];
/// Fills our requests up to what the longest answer takes (IPv6, with a fingerprint), 52 bytes.
const SOFTWARE: &str = "p2pfs, a disk at home";

/// The number of a transaction.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Transaction(pub [u8; 12]);

/// What a server sends back.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Answer {
    /// The message.
    pub bytes: Vec<u8>,
    /// From the server's other IP address (RFC 5780).
    pub change_ip: bool,
    /// From the server's other port (RFC 5780).
    pub change_port: bool,
}

/// Whether a datagram may be STUN: by its first byte, its length and the magic cookie.
pub fn is_stun(datagram: &[u8]) -> bool {
    (HEADER_BYTES..=STUN_BYTES_MAX).contains(&datagram.len())
        && datagram[0] < 4
        && datagram[4..8] == MAGIC_COOKIE
}

/// What an answer to a binding request says.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Answered {
    /// Whose answer it is.
    pub transaction: Transaction,
    /// Where the server sees us, if it granted the request.
    pub mapped: Option<SocketAddr>,
    /// The server's other address (RFC 5780), if it has one.
    pub other: Option<SocketAddr>,
}

/// A binding request.
pub fn binding_request(transaction: Transaction) -> Vec<u8> {
    request(transaction, None)
}

/// A binding request that wants its answer from the server's other IP address, its other port, or
/// both (RFC 5780).
pub fn change_request(transaction: Transaction, ip: bool, port: bool) -> Vec<u8> {
    request(transaction, Some(u8::from(ip) << 2 | u8::from(port) << 1))
}

fn request(transaction: Transaction, change: Option<u8>) -> Vec<u8> {
    let mut request = Message::builder(
        stun_types::message::MessageType::from_class_method(MessageClass::Request, BINDING),
        transaction_id(transaction),
        MessageWriteVec::new(),
    );
    // neither can fail on a message that has no attribute yet; without them it is a request too
    if let Ok(software) = Software::new(SOFTWARE) {
        let _ = request.add_attribute(&software);
    }
    if let Some(flags) = change {
        let _ = request.add_attribute(&RawAttribute::new(CHANGE_REQUEST, &[0, 0, 0, flags]));
    }
    let _ = request.add_fingerprint();
    request.finish()
}

/// Reads the answer to a binding request.
pub fn binding_response(datagram: &[u8]) -> Option<Answered> {
    let message = parse(datagram)?;
    if !message.has_method(BINDING) || !message.is_response() {
        return None;
    }
    let id = message.transaction_id();
    let granted = message.class() == MessageClass::Success;
    let mapped = granted
        .then(|| message.attribute::<XorMappedAddress>().ok())
        .flatten()
        .map(|mapped| mapped.addr(id));
    let other = granted
        .then(|| message.raw_attribute(OTHER_ADDRESS))
        .flatten()
        .and_then(|other| read_plain_address(&other.value));
    let usable = |address: &SocketAddr| address.port() != 0 && !address.ip().is_unspecified();
    let mut number = [0; 12];
    number.copy_from_slice(&datagram[8..20]);
    Some(Answered {
        transaction: Transaction(number),
        mapped: mapped.filter(usable),
        other: other.filter(usable),
    })
}

/// The server's side: answers a binding request from `source`; `None` for everything that is none.
///
/// A server with a second address names it as `other`, the one that differs in IP and port, and
/// then grants `CHANGE-REQUEST` (RFC 5780). A request with an attribute that we would have to
/// understand is answered with error 420, as the RFC wants it. Without `other` an answer is at most
/// 32 bytes longer than its question, and never longer than one of our own questions.
pub fn answer(datagram: &[u8], source: SocketAddr, other: Option<SocketAddr>) -> Option<Answer> {
    let message = parse(datagram)?;
    if !message.has_class(MessageClass::Request) || !message.has_method(BINDING) {
        return None;
    }
    let mut unknown: Vec<AttributeType> = message
        .iter_attributes()
        .map(|(_, attribute)| attribute.get_type())
        .filter(|kind| kind.comprehension_required())
        .filter(|kind| other.is_none() || *kind != CHANGE_REQUEST)
        .collect();
    unknown.truncate(8);
    let change = match other.and_then(|_| message.raw_attribute(CHANGE_REQUEST)) {
        Some(attribute) => <[u8; 4]>::try_from(&*attribute.value).ok()?[3],
        None => 0,
    };
    let mut answer = if unknown.is_empty() {
        let mut answer = Message::builder_success(&message, MessageWriteVec::new());
        let mapped = XorMappedAddress::new(canonical(source), message.transaction_id());
        answer.add_attribute(&mapped).ok()?;
        if let Some(other) = other {
            let other = plain_address(canonical(other));
            let other = RawAttribute::new(OTHER_ADDRESS, &other);
            answer.add_attribute(&other).ok()?;
        }
        answer
    } else {
        // the codec's own names itself and the reason in words: too long an answer to a stranger
        let mut answer = Message::builder_error(&message, MessageWriteVec::new());
        answer.add_attribute(&ErrorCode::new(UNKNOWN_ATTRIBUTE, "").ok()?).ok()?;
        answer.add_attribute(&UnknownAttributes::new(&unknown)).ok()?;
        answer
    };
    if message.has_attribute(Fingerprint::TYPE) {
        answer.add_fingerprint().ok()?;
    }
    Some(Answer {
        bytes: answer.finish(),
        change_ip: unknown.is_empty() && change & 4 != 0,
        change_port: unknown.is_empty() && change & 2 != 0,
    })
}

/// A `MAPPED-ADDRESS` value (RFC 8489, 14.1).
fn plain_address(address: SocketAddr) -> Vec<u8> {
    let (family, ip) = match address.ip() {
        IpAddr::V4(ip) => (1, ip.octets().to_vec()),
        IpAddr::V6(ip) => (2, ip.octets().to_vec()),
    };
    let mut value = vec![0, family];
    value.extend(address.port().to_be_bytes());
    value.extend(ip);
    value
}

fn read_plain_address(value: &[u8]) -> Option<SocketAddr> {
    let (head, ip) = value.split_at_checked(4)?;
    let port = u16::from_be_bytes([head[2], head[3]]);
    match head[1] {
        1 => Some((<[u8; 4]>::try_from(ip).ok()?, port).into()),
        2 => Some((<[u8; 16]>::try_from(ip).ok()?, port).into()),
        _ => None,
    }
}

/// A dual-stack socket reports IPv4 as mapped IPv6.
fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

fn parse(datagram: &[u8]) -> Option<Message<'_>> {
    // a fingerprint, where there is one, is checked by the codec
    is_stun(datagram).then(|| Message::from_bytes(datagram).ok()).flatten()
}

fn transaction_id(transaction: Transaction) -> TransactionId {
    let mut number = [0; 16];
    number[4..].copy_from_slice(&transaction.0);
    TransactionId::from(u128::from_be_bytes(number))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ID: Transaction = Transaction([1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12]);

    fn bare() -> Vec<u8> {
        let mut request = vec![0, 1, 0, 0];
        request.extend(MAGIC_COOKIE);
        request.extend(ID.0);
        request
    }

    fn mapped(response: &[u8]) -> Option<SocketAddr> {
        let answered = binding_response(response).unwrap();
        assert_eq!((answered.transaction, answered.other), (ID, None));
        answered.mapped
    }

    #[test]
    fn a_wish_for_another_source_is_read_as_it_was_meant() {
        let other = "[2001:db8::6]:3479".parse().unwrap();
        let source = "[2001:db8::7]:4000".parse().unwrap();
        for (ip, port) in [(false, false), (false, true), (true, true)] {
            let answer = answer(&change_request(ID, ip, port), source, Some(other)).unwrap();
            assert_eq!((answer.change_ip, answer.change_port), (ip, port));
            assert_eq!(binding_response(&answer.bytes).unwrap().other, Some(other));
        }
    }

    fn answered(request: &[u8], source: &str) -> Vec<u8> {
        let answer = answer(request, source.parse().unwrap(), None).unwrap();
        assert!(!answer.change_ip && !answer.change_port);
        answer.bytes
    }

    #[test]
    fn both_families_are_mapped_and_our_answers_are_no_longer_than_our_questions() {
        for source in ["203.0.113.7:4000", "[2001:db8::7]:4000"] {
            let request = binding_request(ID);
            let response = answered(&request, source);
            assert!(response.len() <= request.len());
            assert_eq!(mapped(&response), Some(source.parse().unwrap()));
        }
    }

    #[test]
    fn a_bare_request_of_a_stranger_is_answered_as_the_rfc_has_it() {
        // RFC 8489, 14.2: 203.0.113.7:4000 under the magic cookie
        let response = answered(&bare(), "203.0.113.7:4000");
        let mut expected = vec![1, 1, 0, 12];
        expected.extend(MAGIC_COOKIE);
        expected.extend(ID.0);
        expected.extend([0, 0x20, 0, 8, 0, 1, 0x0f ^ 0x21, 0xa0 ^ 0x12]);
        expected.extend([203 ^ 0x21, 0x12, 113 ^ 0xa4, 7 ^ 0x42]);
        assert_eq!(response, expected);
    }

    #[test]
    fn a_mapped_ipv4_address_is_told_as_ipv4() {
        let response = answered(&bare(), "[::ffff:203.0.113.7]:4000");
        assert_eq!(mapped(&response), Some("203.0.113.7:4000".parse().unwrap()));
    }

    #[test]
    fn what_must_be_understood_and_is_not_gets_error_420() {
        let mut request = bare();
        request[3] = 8;
        request.extend([0, 3, 0, 4, 0, 0, 0, 2]); // CHANGE-REQUEST
        let response = answered(&request, "203.0.113.7:4000");
        assert_eq!(mapped(&response), None);
        let error = Message::from_bytes(&response).unwrap();
        assert_eq!(error.attribute::<ErrorCode>().unwrap().code(), 420);
    }

    #[test]
    fn a_server_with_a_second_address_names_it_and_answers_from_there_when_asked() {
        let other = "203.0.113.6:3479".parse().unwrap();
        for (flags, change_ip, change_port) in
            [(0, false, false), (2, false, true), (6, true, true)]
        {
            let mut request = bare();
            request[3] = 8;
            request.extend([0, 3, 0, 4, 0, 0, 0, flags]);
            let source = "203.0.113.7:4000".parse().unwrap();
            let answer = answer(&request, source, Some(other)).unwrap();
            assert_eq!((answer.change_ip, answer.change_port), (change_ip, change_port));
            let answered = Answered { transaction: ID, mapped: Some(source), other: Some(other) };
            assert_eq!(binding_response(&answer.bytes), Some(answered));
            assert_eq!(answer.bytes[32..], [0x80, 0x2c, 0, 8, 0, 1, 0x0d, 0x97, 203, 0, 113, 6]);
        }
    }

    #[test]
    fn everything_else_gets_no_answer() {
        let source = "203.0.113.7:4000".parse().unwrap();
        let mut wrong_cookie = bare();
        wrong_cookie[4] = 0;
        let mut wrong_length = bare();
        wrong_length[3] = 4;
        let mut indication = bare();
        indication[1] = 0x11;
        let mut other_method = bare();
        other_method[1] = 3;
        let mut forged = binding_request(ID);
        *forged.last_mut().unwrap() ^= 1;
        let response = answered(&bare(), "203.0.113.7:4000");
        for datagram in [
            &[][..],
            &[0; 19],
            &[0xff; 1400],
            &wrong_cookie,
            &wrong_length,
            &indication,
            &other_method,
            &forged,
            &response,
        ] {
            assert_eq!(answer(datagram, source, None), None);
        }
    }

    proptest! {
        #[test]
        fn no_datagram_makes_either_side_panic(
            kind in 0_u8..4,
            low in any::<u8>(),
            body in prop::collection::vec(any::<u8>(), 0..200),
        ) {
            let mut datagram = vec![kind, low];
            datagram.extend(u16::try_from(body.len()).unwrap().to_be_bytes());
            datagram.extend(MAGIC_COOKIE);
            datagram.extend(ID.0);
            datagram.extend(&body);
            let source = "203.0.113.7:4000".parse().unwrap();
            if let Some(answer) = answer(&datagram, source, None) {
                prop_assert!(answer.bytes.len() <= datagram.len() + 32);
            }
            answer(&datagram, source, Some(source));
            binding_response(&datagram);
        }

        #[test]
        fn no_damaged_message_makes_either_side_panic(at in 0_usize..50, to in any::<u8>()) {
            let source = "203.0.113.7:4000".parse().unwrap();
            let mut request = binding_request(ID);
            let at = at % request.len();
            request[at] = to;
            answer(&request, source, None);
            let mut response = answered(&bare(), "203.0.113.7:4000");
            let at = at % response.len();
            response[at] = to;
            binding_response(&response);
        }
    }
}
