//! The file of a key, `p2pfs/key` on a stick: a part that anyone may read and secrets that only
//! open beside the device they were sealed to.
//!
//! ```text
//! version = 2 ... salt = ".."     the readable part, authenticated as associated data
//! sealed = ".."                   XChaCha20-Poly1305 of the client's seed and the pair key
//! checksum = ".."                 SHA-256 of every byte before it
//! ```
//!
//! Version 1 knows sticks without a passphrase only, and is still written for them. In version 2
//! the sealed part may be sealed once more, inside, to a passphrase (Argon2id): so a wrong
//! passphrase is told from a wrong device.
//!
//! The sealing key and its nonce are HKDF-SHA256 of the device's serial number, vendor and product
//! under the file's random salt. That binds a plain copy of the folder to its stick. It does not
//! stop a determined cloner: a device can be made that says the same. The checksum only tells a
//! damaged file from a copied one.

use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use chacha20poly1305::aead::{Aead, KeyInit, Payload};
use chacha20poly1305::{Key, XChaCha20Poly1305, XNonce};
use hkdf::Hkdf;
use serde::Deserialize;
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

use crate::address::ServerAddress;
use crate::identity::kind::Kind;
use crate::identity::passphrase::{Passphrase, Stretch};
use crate::identity::{MacAddress, PairKey, PeerId, SecretKey};
use crate::limits::LABEL_BYTES_MAX;
use crate::wire::codec;
use crate::wire::session::DeviceId;

/// The largest file of a key, bytes.
pub const KEY_FILE_BYTES_MAX: usize = 8 << 10;
/// Servers that a key may name.
pub const KEY_SERVERS_MAX: usize = 8;
/// The longest serial number, vendor or product id, bytes: a USB string descriptor holds 126 units.
pub const DEVICE_TEXT_BYTES_MAX: usize = 126;

/// The newest version.
const VERSION: u32 = 2;
const PURPOSE: &[u8] = b"p2pfs key 1";
const PASSPHRASE_PURPOSE: &[u8] = b"p2pfs key passphrase 1";
const SEALED_LINE: &str = "sealed = ";
const CHECKSUM_LINE: &str = "checksum = ";
/// Room enough that no secret is left behind where a longer buffer is made.
const SECRETS_BYTES_MAX: usize = 1 << 10;

/// What a key holds, opened.
#[derive(Clone, Debug)]
pub struct KeyContents {
    /// What people call the key.
    pub id: KeyId,
    /// The client's private key.
    pub secret: SecretKey,
    /// What this key and the host share since they were paired.
    pub pair_key: PairKey,
    /// The host's public key.
    pub host: PeerId,
    /// The host's MAC address (R22).
    pub host_mac: MacAddress,
    /// The host's name; at most [`LABEL_BYTES_MAX`] bytes.
    pub host_name: String,
    /// Where the host registers; at most [`KEY_SERVERS_MAX`].
    pub servers: Vec<ServerAddress>,
    /// Whether the owner allows the identity to be kept without the stick.
    pub portable: bool,
    /// What tells this client from others beside its key.
    pub kind: Kind,
    /// How the password of a login is stretched.
    pub login: Option<Stretch>,
    /// What is shown to the host instead of the device that this is sealed to.
    pub shows: Option<DeviceId>,
}

#[cfg(test)]
impl KeyContents {
    /// A stick's, for tests.
    pub(crate) fn example() -> Self {
        let secret = SecretKey::from_seed([1; 32]);
        let fingerprint = URL_SAFE_NO_PAD.encode([7; 32]);
        let server = format!("p2pfs://home.example:443#{fingerprint}");
        Self {
            id: KeyId::of(secret.peer_id()),
            secret,
            pair_key: PairKey::from_bytes([2; 32]),
            host: PeerId([3; 32]),
            host_mac: MacAddress([2, 0, 0, 0, 0, 1]),
            host_name: "home".into(),
            servers: vec![server.parse().expect("an address")],
            portable: false,
            kind: Kind::Stick,
            login: None,
            shows: None,
        }
    }
}

/// What anyone may read in a key's file, before and without the device.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct PublicPart {
    /// What people call the key.
    pub id: KeyId,
    /// The host's public key.
    pub host: PeerId,
    /// The host's MAC address.
    pub host_mac: MacAddress,
    /// The host's name.
    pub host_name: String,
    /// Where the host registers.
    pub servers: Vec<ServerAddress>,
    /// Whether the owner allows the identity to be kept without the stick.
    pub portable: bool,
    /// What tells this client from others beside its key.
    pub kind: Kind,
    /// Whether a passphrase is needed to open it, and how that is stretched.
    pub passphrase: Option<Stretch>,
    /// How the password of a login is stretched.
    pub login: Option<Stretch>,
}

/// What people call a key: 16 hexadecimal digits of its public key's SHA-256.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct KeyId(String);

/// Why a key's file does not open.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum OpenError {
    /// Not what was written.
    #[error("the key's file is damaged")]
    Corrupt,
    /// Written by another version.
    #[error("the key's file has format {0}, which this version does not know")]
    Version(u32),
    /// In order, but sealed to another device.
    #[error("the key's file was made on another device")]
    Copied,
    /// In order and on its device, but a passphrase is needed, and none was given.
    #[error("the key wants its passphrase")]
    PassphraseMissing,
    /// In order and on its device, but the passphrase is another.
    #[error("the passphrase is wrong")]
    PassphraseWrong,
}

impl KeyId {
    /// How long one is.
    pub const DIGITS: usize = 16;

    /// The id of a public key.
    pub fn of(peer: PeerId) -> Self {
        let fingerprint = peer.fingerprint();
        Self(fingerprint[..8].iter().map(|byte| format!("{byte:02x}")).collect())
    }

    /// The 16 digits.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The file of a key, sealed to `device` and, if there is one, to a passphrase. `salt`: fresh
/// random bytes for each file, since the ciphers' nonces come from it.
pub fn seal(
    contents: &KeyContents,
    device: &DeviceId,
    salt: [u8; 32],
    passphrase: Option<&Passphrase>,
) -> Vec<u8> {
    let stretch = passphrase.map(|passphrase| {
        let mut own = [0; 16];
        own.copy_from_slice(&Sha256::digest([PASSPHRASE_PURPOSE, &salt].concat())[..16]);
        (passphrase, Stretch::new(own))
    });
    let is_plain = contents.kind == Kind::Stick && contents.shows.is_none() && stretch.is_none();
    let readable = Readable {
        version: if is_plain { 1 } else { VERSION },
        id: contents.id.0.clone(),
        host: contents.host.to_text(),
        host_mac: contents.host_mac.to_string(),
        host_name: contents.host_name.clone(),
        servers: contents.servers.clone(),
        portable: contents.portable,
        kind: contents.kind,
        passphrase: stretch.as_ref().map(|(_, stretch)| stretch.to_string()),
        login: contents.login.map(|stretch| stretch.to_string()),
        salt: URL_SAFE_NO_PAD.encode(salt),
    };
    let mut text = readable.to_text();
    let mut secrets = Zeroizing::new(Vec::with_capacity(SECRETS_BYTES_MAX));
    secrets.extend_from_slice(contents.secret.seed());
    secrets.extend_from_slice(contents.pair_key.bytes());
    if !is_plain {
        let shows = codec::encode(&contents.shows).expect("three short texts are within the bound");
        let shows = Zeroizing::new(shows);
        secrets.extend_from_slice(&shows);
    }
    if let Some((passphrase, stretch)) = &stretch {
        let (cipher, nonce) = passphrase_cipher(passphrase, stretch);
        let sealed = cipher.encrypt(&nonce, secrets.as_slice());
        secrets = Zeroizing::new(sealed.expect("the secrets are within the cipher's bound"));
    }
    let (cipher, nonce) = cipher(device, &salt);
    let payload = Payload { msg: &secrets, aad: text.as_bytes() };
    let sealed = cipher.encrypt(&nonce, payload).expect("the secrets are within the bound");
    text.push_str(&line(SEALED_LINE, &sealed));
    let checksum = Sha256::digest(text.as_bytes());
    text.push_str(&line(CHECKSUM_LINE, &checksum));
    text.into_bytes()
}

/// What a key's file says without its device.
///
/// # Errors
///
/// [`OpenError::Corrupt`] or [`OpenError::Version`].
pub fn read_public(bytes: &[u8]) -> Result<PublicPart, OpenError> {
    Ok(Parts::read(bytes)?.public)
}

/// Opens a key's file beside its device.
///
/// # Errors
///
/// [`OpenError::Copied`] beside another device, [`OpenError::PassphraseMissing`] or
/// [`OpenError::PassphraseWrong`], otherwise as [`read_public`].
pub fn open(
    bytes: &[u8],
    device: &DeviceId,
    passphrase: Option<&Passphrase>,
) -> Result<KeyContents, OpenError> {
    let parts = Parts::read(bytes)?;
    let (cipher, nonce) = cipher(device, &parts.salt);
    let payload = Payload { msg: &parts.sealed, aad: parts.readable };
    let secrets = cipher.decrypt(&nonce, payload);
    let mut secrets = Zeroizing::new(secrets.map_err(|_| OpenError::Copied)?);
    if let Some(stretch) = &parts.public.passphrase {
        let passphrase = passphrase.ok_or(OpenError::PassphraseMissing)?;
        let (cipher, nonce) = passphrase_cipher(passphrase, stretch);
        let opened = cipher.decrypt(&nonce, secrets.as_slice());
        secrets = Zeroizing::new(opened.map_err(|_| OpenError::PassphraseWrong)?);
    }
    let (seed, rest) = secrets.split_first_chunk::<32>().ok_or(OpenError::Corrupt)?;
    let (pair_key, rest) = rest.split_first_chunk::<32>().ok_or(OpenError::Corrupt)?;
    let secret = SecretKey::from_seed(*seed);
    if KeyId::of(secret.peer_id()) != parts.public.id {
        return Err(OpenError::Corrupt);
    }
    let shows = match rest {
        [] => None,
        rest => codec::decode(rest).map_err(|_| OpenError::Corrupt)?,
    };
    Ok(KeyContents {
        id: parts.public.id,
        secret,
        pair_key: PairKey::from_bytes(*pair_key),
        host: parts.public.host,
        host_mac: parts.public.host_mac,
        host_name: parts.public.host_name,
        servers: parts.public.servers,
        portable: parts.public.portable,
        kind: parts.public.kind,
        login: parts.public.login,
        shows,
    })
}

/// Whether two devices say the same of themselves; takes equal time for equal lengths.
pub fn same_device(one: &DeviceId, other: &DeviceId) -> bool {
    let equal = |one: &str, other: &str| one.as_bytes().ct_eq(other.as_bytes());
    let same = equal(&one.serial, &other.serial)
        & equal(&one.vendor, &other.vendor)
        & equal(&one.product, &other.product);
    same.into()
}

/// Why a serial number tells little about its device, if so: such numbers are shared by many
/// sticks.
pub fn serial_weakness(serial: &str) -> Option<&'static str> {
    let bytes = serial.trim().as_bytes();
    if bytes.is_empty() {
        return Some("it has no serial number");
    }
    if bytes.len() < 6 {
        return Some("its serial number is very short");
    }
    let step = |by: i16| bytes.windows(2).all(|pair| i16::from(pair[1]) - i16::from(pair[0]) == by);
    if step(0) {
        return Some("its serial number is one character repeated");
    }
    // 123456789 goes on with 0 and A on many cheap sticks
    let digits = bytes.iter().position(|byte| !byte.is_ascii_digit());
    let digits = &bytes[..digits.unwrap_or(bytes.len())];
    let counts = |pair: &[u8]| pair[1] == pair[0] + 1 || (pair[0] == b'9' && pair[1] == b'0');
    if step(1) || step(-1) || (digits.len() >= 6 && digits.windows(2).all(counts)) {
        return Some("its serial number just counts");
    }
    None
}

/// The readable part, in the order in which it is written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Readable {
    version: u32,
    id: String,
    host: String,
    host_mac: String,
    host_name: String,
    servers: Vec<ServerAddress>,
    portable: bool,
    #[serde(default)]
    kind: Kind,
    passphrase: Option<String>,
    login: Option<String>,
    salt: String,
}

impl Readable {
    fn to_text(&self) -> String {
        let quoted = |text: &str| toml::Value::from(text).to_string();
        let servers = self.servers.iter().map(|server| server.to_string().into());
        let mut extra = String::new();
        if self.kind != Kind::Stick {
            extra.push_str(&format!("kind = {}\n", quoted(self.kind.as_str())));
        }
        for (name, value) in [("passphrase", &self.passphrase), ("login", &self.login)] {
            if let Some(value) = value {
                extra.push_str(&format!("{name} = {}\n", quoted(value)));
            }
        }
        format!(
            "# Sealed to the device beside it: a copy on another device does not open.\n\
             version = {}\nid = {}\nhost = {}\nhost_mac = {}\nhost_name = {}\nservers = {}\n\
             portable = {}\n{extra}salt = {}\n",
            self.version,
            quoted(&self.id),
            quoted(&self.host),
            quoted(&self.host_mac),
            quoted(&self.host_name),
            toml::Value::Array(servers.collect()),
            self.portable,
            quoted(&self.salt),
        )
    }
}

struct Parts<'a> {
    readable: &'a [u8],
    public: PublicPart,
    salt: [u8; 32],
    sealed: Vec<u8>,
}

impl<'a> Parts<'a> {
    fn read(bytes: &'a [u8]) -> Result<Self, OpenError> {
        Self::read_checked(bytes).ok_or(OpenError::Corrupt)?
    }

    /// `None`: corrupt.
    fn read_checked(bytes: &'a [u8]) -> Option<Result<Self, OpenError>> {
        if bytes.len() > KEY_FILE_BYTES_MAX {
            return None;
        }
        let text = std::str::from_utf8(bytes).ok()?;
        let (before, checksum) = split_line(text, CHECKSUM_LINE)?;
        if Sha256::digest(before.as_bytes())[..] != checksum[..] {
            return None;
        }
        let (readable, sealed) = split_line(before, SEALED_LINE)?;
        // The version decides how the rest is to be read
        let version: toml::Table = toml::from_str(readable).ok()?;
        let version = version.get("version")?.as_integer()?;
        if !(1..=i64::from(VERSION)).contains(&version) {
            return Some(Err(OpenError::Version(version.try_into().ok()?)));
        }
        let parsed: Readable = toml::from_str(readable).ok()?;
        if parsed.host_name.len() > LABEL_BYTES_MAX || parsed.servers.len() > KEY_SERVERS_MAX {
            return None;
        }
        let stretch = |text: Option<String>| {
            text.map(|text| text.parse().ok()).map_or(Some(None), |stretch| stretch.map(Some))
        };
        Some(Ok(Self {
            readable: readable.as_bytes(),
            salt: URL_SAFE_NO_PAD.decode(parsed.salt).ok()?.try_into().ok()?,
            sealed,
            public: PublicPart {
                id: KeyId(parsed.id),
                host: PeerId::from_text(&parsed.host)?,
                host_mac: MacAddress::from_text(&parsed.host_mac)?,
                host_name: parsed.host_name,
                servers: parsed.servers,
                portable: parsed.portable,
                kind: parsed.kind,
                passphrase: stretch(parsed.passphrase)?,
                login: stretch(parsed.login)?,
            },
        }))
    }
}

fn line(start: &str, bytes: &[u8]) -> String {
    format!("{start}\"{}\"\n", URL_SAFE_NO_PAD.encode(bytes))
}

/// Takes the last line off, which must begin with `start`; gives what is before it and its bytes.
fn split_line<'a>(text: &'a str, start: &str) -> Option<(&'a str, Vec<u8>)> {
    let body = text.strip_suffix('\n')?;
    let at = body.rfind('\n')? + 1;
    let value = body[at..].strip_prefix(start)?;
    let value = value.strip_prefix('"')?.strip_suffix('"')?;
    Some((&text[..at], URL_SAFE_NO_PAD.decode(value).ok()?))
}

fn cipher(device: &DeviceId, salt: &[u8; 32]) -> (XChaCha20Poly1305, XNonce) {
    let mut identity = Vec::new();
    for part in [&device.serial, &device.vendor, &device.product] {
        identity.extend_from_slice(&(part.len() as u64).to_le_bytes());
        identity.extend_from_slice(part.as_bytes());
    }
    let mut derived = Zeroizing::new([0; 56]);
    let expanded =
        Hkdf::<Sha256>::new(Some(salt), &identity).expand(PURPOSE, derived.as_mut_slice());
    debug_assert!(expanded.is_ok(), "56 bytes are within HKDF's bound");
    split(&derived)
}

/// The inner cipher: its key serves one file, since the stretch's salt does.
fn passphrase_cipher(passphrase: &Passphrase, stretch: &Stretch) -> (XChaCha20Poly1305, XNonce) {
    let stretched = stretch.derive(passphrase);
    let mut derived = Zeroizing::new([0; 56]);
    let expanded =
        Hkdf::<Sha256>::new(None, &stretched.0).expand(PASSPHRASE_PURPOSE, derived.as_mut_slice());
    debug_assert!(expanded.is_ok(), "56 bytes are within HKDF's bound");
    split(&derived)
}

fn split(derived: &[u8; 56]) -> (XChaCha20Poly1305, XNonce) {
    let mut key = Key::default();
    key.copy_from_slice(&derived[..32]);
    let mut nonce = XNonce::default();
    nonce.copy_from_slice(&derived[32..]);
    (XChaCha20Poly1305::new(&key), nonce)
}

#[cfg(test)]
mod tests;
