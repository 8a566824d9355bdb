//! A ticket: a key for a client without a stick, as one line of text.
//!
//! It holds the client's private key, so it is a secret. It is not enough to come in: the host also
//! compares the identifier that its owner typed in.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

use crate::address::ServerAddress;
use crate::identity::kind::Kind;
use crate::identity::sealed::{KEY_SERVERS_MAX, KeyContents, KeyId};
use crate::identity::{MacAddress, PairKey, PeerId, SecretKey};
use crate::limits::{LABEL_BYTES_MAX, TICKET_BYTES_MAX};
use crate::wire::codec;

/// What a ticket begins with; the number is its version.
pub const TICKET_START: &str = "p2pfs-ticket-1:";

const CHECK_BYTES: usize = 4;

/// The text is no ticket, or a damaged one.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("not a ticket, or a part of it is missing")]
pub struct NoTicket;

#[derive(Deserialize, Serialize, Zeroize, ZeroizeOnDrop)]
struct Ticket {
    seed: [u8; 32],
    pair_key: [u8; 32],
    #[zeroize(skip)]
    host: PeerId,
    #[zeroize(skip)]
    host_mac: MacAddress,
    host_name: String,
    servers: Vec<String>,
    #[zeroize(skip)]
    kind: u8,
    portable: bool,
    login: Option<String>,
}

const KINDS: [Kind; 5] = [Kind::Stick, Kind::Code, Kind::Serial, Kind::Mac, Kind::Login];

/// The ticket that makes a client the holder of this key.
pub fn write(contents: &KeyContents) -> Zeroizing<String> {
    let kind = KINDS.iter().position(|kind| *kind == contents.kind).unwrap_or_default();
    let ticket = Ticket {
        seed: *contents.secret.seed(),
        pair_key: *contents.pair_key.bytes(),
        host: contents.host,
        host_mac: contents.host_mac,
        host_name: contents.host_name.clone(),
        servers: contents.servers.iter().map(ToString::to_string).collect(),
        kind: kind as u8,
        portable: contents.portable,
        login: contents.login.map(|stretch| stretch.to_string()),
    };
    let encoded = codec::encode(&ticket).expect("short texts and keys are within the bound");
    let mut bytes = Zeroizing::new(encoded);
    let check = Sha256::digest(&*bytes);
    bytes.extend_from_slice(&check[..CHECK_BYTES]);
    Zeroizing::new(format!("{TICKET_START}{}", URL_SAFE_NO_PAD.encode(&*bytes)))
}

/// Reads a ticket.
///
/// # Errors
///
/// [`NoTicket`].
pub fn read(text: &str) -> Result<KeyContents, NoTicket> {
    parse(text).ok_or(NoTicket)
}

fn parse(text: &str) -> Option<KeyContents> {
    let text = text.trim().strip_prefix(TICKET_START)?;
    if text.len() > TICKET_BYTES_MAX {
        return None;
    }
    let bytes = Zeroizing::new(URL_SAFE_NO_PAD.decode(text).ok()?);
    let (encoded, check) = bytes.split_at_checked(bytes.len().checked_sub(CHECK_BYTES)?)?;
    if Sha256::digest(encoded)[..CHECK_BYTES] != *check {
        return None;
    }
    let ticket: Ticket = codec::decode(encoded).ok()?;
    let fits = ticket.host_name.len() <= LABEL_BYTES_MAX && ticket.servers.len() <= KEY_SERVERS_MAX;
    let servers: Result<Vec<ServerAddress>, _> =
        ticket.servers.iter().map(|server| server.parse()).collect();
    let login = match &ticket.login {
        Some(text) => Some(text.parse().ok()?),
        None => None,
    };
    let secret = SecretKey::from_seed(ticket.seed);
    fits.then_some(KeyContents {
        id: KeyId::of(secret.peer_id()),
        secret,
        pair_key: PairKey::from_bytes(ticket.pair_key),
        host: ticket.host,
        host_mac: ticket.host_mac,
        host_name: ticket.host_name.clone(),
        servers: servers.ok()?,
        portable: ticket.portable,
        kind: *KINDS.get(usize::from(ticket.kind))?,
        login,
        shows: None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::passphrase::Stretch;

    #[test]
    fn a_ticket_says_what_it_was_made_of() {
        let contents = contents();
        let text = write(&contents);
        assert!(text.len() < 500, "{}", text.len());
        let read = read(&format!(" {}\n", *text)).unwrap();
        assert_eq!(read.secret.seed(), contents.secret.seed());
        assert_eq!(read.pair_key.bytes(), contents.pair_key.bytes());
        assert_eq!((read.kind, read.login), (contents.kind, contents.login));
        assert_eq!((read.host, read.servers), (contents.host, contents.servers));
    }

    #[test]
    fn a_damaged_ticket_is_refused_wherever_the_damage_is() {
        let text = write(&contents());
        for at in 0..text.len() {
            let mut bad = text.as_bytes().to_vec();
            bad[at] = if bad[at] == b'A' { b'B' } else { b'A' };
            let bad = String::from_utf8(bad).unwrap();
            assert_eq!(read(&bad).unwrap_err(), NoTicket, "{at}");
            assert_eq!(read(&text[..at]).unwrap_err(), NoTicket);
        }
    }

    fn contents() -> KeyContents {
        let login = Some(Stretch::new([5; 16]));
        KeyContents { kind: Kind::Login, login, ..KeyContents::example() }
    }
}
