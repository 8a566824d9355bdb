use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use p2pfs::address::ServerAddress;
use p2pfs::identity::kind::Kind;
use p2pfs::identity::passphrase::{Passphrase, Stretch};
use p2pfs::identity::sealed::{
    self, DEVICE_TEXT_BYTES_MAX, KEY_SERVERS_MAX, KeyContents, PublicPart,
};
use p2pfs::identity::{MacAddress, PairKey, PeerId, SecretKey, base32, recovery, ticket, wrapping};
use p2pfs::limits::{LABEL_BYTES_MAX, PASSPHRASE_BYTES_MAX};
use p2pfs::proto::pairing::{Code, Handshake, Side};
use p2pfs::usb;
use p2pfs::wire::pairing::{Offer, Request};
use p2pfs::wire::session::DeviceId;
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

/// As text, and as what is in one whose checksum is right.
pub(super) fn ticket(bytes: &[u8]) {
    let check = Sha256::digest(bytes);
    let inner = [bytes, &check[..4]].concat();
    let good = format!("{}{}", ticket::TICKET_START, URL_SAFE_NO_PAD.encode(inner));
    for text in [String::from_utf8_lossy(bytes).as_ref(), &good] {
        if let Ok(contents) = ticket::read(text) {
            bounded(&contents);
            let again = ticket::read(&ticket::write(&contents)).expect("our own ticket");
            assert_eq!((again.id, again.servers), (contents.id, contents.servers));
        }
    }
}

/// As text, and as what is in one that was typed without an error.
pub(super) fn recovery(bytes: &[u8]) {
    let check = Sha256::digest(bytes);
    let digits = base32::encode(&[bytes, &check[..4]].concat());
    let mut good = String::new();
    for (number, line) in digits.as_bytes().chunks(23).enumerate() {
        let line = str::from_utf8(line).expect("digits");
        let check = Sha256::digest(format!("{} {line}", number + 1));
        good.extend([line, &base32::encode(&check[..1])[..1]]);
    }
    for text in [String::from_utf8_lossy(bytes).as_ref(), &good] {
        recovery::is_like(text);
        if let Ok(contents) = recovery::read(text) {
            bounded(&contents);
        }
    }
}

/// As a host gets it, and what it holds when it is unwrapped.
pub(super) fn wrapped(bytes: &[u8]) {
    let secret = SecretKey::from_seed([1; 32]);
    let wrapped = wrapping::ForHost { writer: secret.peer_id(), sealed: bytes.to_vec() };
    let _ = wrapped.open(&secret).expect_err("nobody has wrapped this");
    if let Ok((_, subject)) = wrapping::parse(bytes) {
        assert!(subject.share.len() <= LABEL_BYTES_MAX);
    }
}

/// As a file, and as the readable part of one that nobody has damaged.
pub(super) fn key(bytes: &[u8]) {
    let mut file = bytes.to_vec();
    file.extend(b"sealed = \"AAAA\"\n");
    let checksum = URL_SAFE_NO_PAD.encode(Sha256::digest(&file));
    file.extend(format!("checksum = \"{checksum}\"\n").bytes());
    for file in [bytes, &file] {
        if let Ok(public) = sealed::read_public(file) {
            public_is_bounded(&public);
        }
        let _ = sealed::open(file, &a_device(), None);
    }
}

pub(super) fn device(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    if let Ok(device) = usb::parse_device(&text) {
        for part in [&device.serial, &device.vendor, &device.product] {
            assert!(part.len() <= DEVICE_TEXT_BYTES_MAX && !part.contains(char::is_control));
        }
        let DeviceId { serial, vendor, product } = &device;
        let again = format!("serial={serial}\nvendor={vendor}\nproduct={product}\n");
        assert_eq!(usb::parse_device(&again), Ok(device));
    }
}

/// What people type, and what stands in files.
pub(super) fn texts(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let text: &str = &text;
    if let Ok(address) = text.parse::<ServerAddress>() {
        assert_eq!(address.to_string().parse(), Ok(address));
    }
    if let Ok(code) = text.parse::<Code>() {
        assert!(Code::is_like(&code.to_text()));
    }
    if let Some(mac) = MacAddress::from_text(text) {
        assert_eq!(MacAddress::from_text(&mac.to_string()), Some(mac));
    }
    if let Some(peer) = PeerId::from_text(text) {
        peer.is_strong();
        assert_eq!(PeerId::from_text(&peer.to_text()), Some(peer));
    }
    if let Ok(stretch) = text.parse::<Stretch>() {
        assert_eq!(stretch.to_string().parse(), Ok(stretch));
    }
    if let Ok(kind) = text.parse::<Kind>() {
        assert_eq!(kind.as_str().parse(), Ok(kind));
    }
    if let Some(passphrase) = Passphrase::from_text(text) {
        assert!((1..=PASSPHRASE_BYTES_MAX).contains(&passphrase.expose().len()));
    }
    for kind in [Kind::Stick, Kind::Code, Kind::Serial, Kind::Mac, Kind::Login] {
        let normal = kind.normal(text);
        assert_eq!(kind.normal(&normal), normal);
    }
    sealed::serial_weakness(text);
    if let Some(bytes) = base32::decode(text) {
        assert_eq!(base32::decode(&base32::encode(&bytes)), Some(bytes));
    }
}

/// The first 33 bytes are the peer's half of SPAKE2, the rest is its first sealed message.
pub(super) fn handshake(bytes: &[u8]) {
    let code = Code::from_random([1, 2, 3, 4, 5, 6, 7]);
    let (first, sealed) = bytes.split_at(bytes.len().min(33));
    for side in [Side::Client, Side::Host] {
        let (handshake, _) = Handshake::start(&code, side, Zeroizing::new([5; 64]));
        if let Ok(mut channel) = handshake.handle_message(first) {
            channel.open::<Request>(sealed).expect_err("nobody has sealed this");
            channel.open::<Offer>(sealed).expect_err("nobody has sealed this");
        }
    }
}

fn bounded(contents: &KeyContents) {
    assert!(contents.host_name.len() <= LABEL_BYTES_MAX);
    assert!(contents.servers.len() <= KEY_SERVERS_MAX);
    let _ = PairKey::from_bytes(*contents.pair_key.bytes());
}

fn public_is_bounded(public: &PublicPart) {
    assert!(public.host_name.len() <= LABEL_BYTES_MAX);
    assert!(public.servers.len() <= KEY_SERVERS_MAX);
}

fn a_device() -> DeviceId {
    DeviceId { serial: "0123456789".into(), vendor: "0951".into(), product: "1666".into() }
}
