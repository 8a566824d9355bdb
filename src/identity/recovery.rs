//! A key on paper, for when its stick is lost.
//!
//! A key's secrets come of 16 random bytes; the paper has these and what a client must know to find
//! the host from anywhere: its key, its MAC address, one server. That is why it is long. It is
//! typed once in the life of a key, so each line checks itself and a typing error is told by its
//! line.
//!
//! Who comes with it shows a proof instead of a device. From then on the host takes nothing else
//! for this key: the lost stick, if somebody finds it, is locked out.

use hkdf::Hkdf;
use sha2::{Digest, Sha256};
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

use crate::address::ServerAddress;
use crate::identity::kind::{self, Kind};
use crate::identity::sealed::{KeyContents, KeyId};
use crate::identity::{MacAddress, PairKey, PeerId, SecretKey, base32};
use crate::limits::RECOVERY_BYTES_MAX;

/// Digits of one line; one more checks them.
const LINE_DIGITS: usize = 23;
const VERSION: u8 = 1;
const CHECK_BYTES: usize = 4;

/// What a key's secrets come of.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct Origin([u8; 16]);

/// Why a text is no recovery code.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum NoRecovery {
    /// A line does not check; counted from 1.
    #[error("there is a typing error in line {0}")]
    Line(usize),
    /// Each line is right, but not all of them together.
    #[error("a line is missing, or they are not in order")]
    Whole,
}

impl Origin {
    /// From random bytes.
    pub fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    /// The client's private key.
    pub fn secret(&self) -> SecretKey {
        SecretKey::from_seed(*self.derive(b"p2pfs origin seed 1"))
    }

    /// What the key and the host share.
    pub fn pair_key(&self) -> PairKey {
        PairKey::from_bytes(*self.derive(b"p2pfs origin pair 1"))
    }

    /// What is shown to the host in place of a device.
    pub fn proof(&self) -> Zeroizing<String> {
        Zeroizing::new(base32::encode(&*self.derive(b"p2pfs origin recovery 1")))
    }

    fn derive(&self, purpose: &[u8]) -> Zeroizing<[u8; 32]> {
        let mut derived = Zeroizing::new([0; 32]);
        let expanded = Hkdf::<Sha256>::new(None, &self.0).expand(purpose, derived.as_mut_slice());
        debug_assert!(expanded.is_ok(), "32 bytes are within HKDF's bound");
        derived
    }
}

/// What the host keeps to know the proof again.
pub fn verifier(proof: &str) -> String {
    base32::encode(&Sha256::digest([b"p2pfs recovery proof 1\0", proof.as_bytes()].concat()))
}

/// The lines for the paper; `None` for a key without a server.
pub fn write(origin: &Origin, contents: &KeyContents) -> Option<Zeroizing<String>> {
    let server = contents.servers.first()?;
    let mut bytes = Zeroizing::new(Vec::with_capacity(RECOVERY_BYTES_MAX));
    bytes.push(VERSION);
    bytes.extend_from_slice(&origin.0);
    bytes.extend_from_slice(&contents.host.0);
    bytes.extend_from_slice(&contents.host_mac.0);
    bytes.extend_from_slice(&server.fingerprint);
    bytes.push(contents.portable.into());
    bytes.extend_from_slice(server.authority().as_bytes());
    let check = Sha256::digest(&*bytes);
    bytes.extend_from_slice(&check[..CHECK_BYTES]);
    let digits = Zeroizing::new(base32::encode(&bytes));
    let mut text = Zeroizing::new(String::with_capacity(2 * digits.len()));
    let mut rest = digits.as_str();
    let mut number = 0;
    while !rest.is_empty() {
        let (line, behind) = rest.split_at(LINE_DIGITS.min(rest.len()));
        number += 1;
        text.push_str(&base32::grouped(&format!("{line}{}", check_digit(number, line))));
        text.push('\n');
        rest = behind;
    }
    Some(text)
}

/// Reads what [`write()`] wrote, typed in one line or in several.
///
/// # Errors
///
/// [`NoRecovery`], which says where the typing error is.
pub fn read(text: &str) -> Result<KeyContents, NoRecovery> {
    if text.len() > 4 * RECOVERY_BYTES_MAX {
        return Err(NoRecovery::Whole);
    }
    let typed = Zeroizing::new(base32::normal(text));
    if !typed.is_ascii() {
        return Err(NoRecovery::Whole);
    }
    let mut digits = Zeroizing::new(String::with_capacity(typed.len()));
    let mut rest = typed.as_str();
    let mut number = 0;
    while !rest.is_empty() {
        let (line, behind) = rest.split_at((LINE_DIGITS + 1).min(rest.len()));
        number += 1;
        let (line, check) = line.split_at(line.len() - 1);
        if check_digit(number, line) != check {
            return Err(NoRecovery::Line(number));
        }
        digits.push_str(line);
        rest = behind;
    }
    let bytes = Zeroizing::new(base32::decode(&digits).ok_or(NoRecovery::Whole)?);
    parse(&bytes).ok_or(NoRecovery::Whole)
}

/// Whether a text is long enough to be one.
pub fn is_like(text: &str) -> bool {
    base32::normal(text).len() > 3 * LINE_DIGITS
}

fn parse(bytes: &[u8]) -> Option<KeyContents> {
    let (bytes, check) = bytes.split_at_checked(bytes.len().checked_sub(CHECK_BYTES)?)?;
    if Sha256::digest(bytes)[..CHECK_BYTES] != *check {
        return None;
    }
    let (&VERSION, rest) = bytes.split_first()? else { return None };
    let (origin, rest) = rest.split_first_chunk::<16>()?;
    let (host, rest) = rest.split_first_chunk::<32>()?;
    let (host_mac, rest) = rest.split_first_chunk::<6>()?;
    let (fingerprint, rest) = rest.split_first_chunk::<32>()?;
    let (portable, authority) = rest.split_first()?;
    let authority = std::str::from_utf8(authority).ok()?;
    let fingerprint = PeerId(*fingerprint).to_text();
    let server: ServerAddress = format!("p2pfs://{authority}#{fingerprint}").parse().ok()?;
    let origin = Origin(*origin);
    let secret = origin.secret();
    Some(KeyContents {
        id: KeyId::of(secret.peer_id()),
        secret,
        pair_key: origin.pair_key(),
        host: PeerId(*host),
        host_mac: MacAddress(*host_mac),
        host_name: "home".to_owned(),
        servers: vec![server],
        portable: *portable == 1,
        kind: Kind::Stick,
        login: None,
        shows: Some(kind::recovered(&origin.proof())),
    })
}

fn check_digit(number: usize, line: &str) -> String {
    let digest = Sha256::digest(format!("{number} {line}"));
    base32::encode(&digest[..1])[..1].to_owned()
}

impl std::fmt::Debug for Origin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Origin(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_on_paper_opens_the_same_key_elsewhere() {
        let (origin, contents) = (Origin::from_bytes([7; 16]), contents());
        let paper = write(&origin, &contents).unwrap();
        assert_eq!(paper.lines().count(), 8, "{}", *paper);
        assert!(paper.lines().all(|line| line.len() <= 29));
        for typed in [paper.to_string(), paper.to_lowercase().replace('\n', " ")] {
            let read = read(&typed).unwrap();
            assert_eq!(read.id, contents.id);
            assert_eq!(read.pair_key.bytes(), contents.pair_key.bytes());
            assert_eq!((read.host, read.servers), (contents.host, contents.servers.clone()));
            let shows = read.shows.unwrap();
            assert_eq!(kind::recovery_proof(&shows), Some(origin.proof().as_str()));
        }
    }

    #[test]
    fn a_typing_error_is_told_by_its_line() {
        let paper = write(&Origin::from_bytes([7; 16]), &contents()).unwrap();
        assert!(is_like(&paper));
        let mut noticed = 0;
        for at in 0..paper.len() {
            let mut bad = paper.as_bytes().to_vec();
            if matches!(bad[at], b'-' | b'\n') {
                continue;
            }
            bad[at] = if bad[at] == b'7' { b'8' } else { b'7' };
            let line = 1 + paper[..at].matches('\n').count();
            match read(std::str::from_utf8(&bad).unwrap()).unwrap_err() {
                NoRecovery::Line(told) => {
                    assert_eq!(told, line);
                    noticed += 1;
                }
                NoRecovery::Whole => {}
            }
        }
        assert!(noticed > 150, "{noticed}");
        let missing: Vec<&str> = paper.lines().skip(1).collect();
        assert!(read(&missing.join("\n")).is_err());
        assert!(read("").is_err());
        assert!(read(&"\u{e9}".repeat(50)).is_err());
    }

    fn contents() -> KeyContents {
        let origin = Origin::from_bytes([7; 16]);
        let fingerprint = PeerId([9; 32]).to_text();
        let server = format!("p2pfs://home.example:443#{fingerprint}");
        let secret = origin.secret();
        KeyContents {
            id: KeyId::of(secret.peer_id()),
            secret,
            pair_key: origin.pair_key(),
            host: PeerId([3; 32]),
            host_mac: MacAddress([2, 0, 0, 0, 0, 1]),
            host_name: "home".into(),
            servers: vec![server.parse().unwrap()],
            portable: false,
            kind: Kind::Stick,
            login: None,
            shows: None,
        }
    }
}
