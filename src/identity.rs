//! Keys: who is who.
//!
//! A public key *is* an identity. Secrets have no `Display`, a redacted `Debug`, and are wiped.

pub mod base32;
pub mod kind;
pub mod passphrase;
pub mod recovery;
pub mod sealed;
pub mod sealing;
pub mod ticket;
pub mod wrapping;

use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ed25519_dalek::{Signature, Signer, SigningKey, VerifyingKey};
use hkdf::Hkdf;
use hmac::{Hmac, KeyInit, Mac};
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sha2::{Digest, Sha256};
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

use self::passphrase::{Passphrase, Stretch};

/// An Ed25519 public key.
#[derive(Clone, Copy, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
pub struct PeerId(pub [u8; 32]);

/// An Ed25519 private key, as its seed.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct SecretKey([u8; 32]);

/// The secret that a host and one key share since they were paired: it blinds the MAC address
/// towards the server, seals routing information and authenticates probes.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct PairKey([u8; 32]);

/// 32 bytes that no log shows: keys of one occasion, seeds.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct Hidden(pub [u8; 32]);

/// A MAC address as the server sees it: `HMAC-SHA256(pair key, "p2pfs mac 1" | MAC)`, 16 bytes.
#[derive(Clone, Copy, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
pub struct BlindedMac(pub [u8; 16]);

/// A hardware address.
#[derive(Clone, Copy, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct MacAddress(pub [u8; 6]);

impl PeerId {
    /// The key as base64url, without padding: 43 characters.
    pub fn to_text(self) -> String {
        URL_SAFE_NO_PAD.encode(self.0)
    }

    /// Reads [`Self::to_text`]'s form.
    pub fn from_text(text: &str) -> Option<Self> {
        URL_SAFE_NO_PAD.decode(text).ok()?.try_into().ok().map(Self)
    }

    /// SHA-256 of the key: what a server's address carries.
    pub fn fingerprint(self) -> [u8; 32] {
        Sha256::digest(self.0).into()
    }

    /// Whether this is a key that only its owner can sign with: a point of small order is not.
    pub fn is_strong(self) -> bool {
        VerifyingKey::from_bytes(&self.0).is_ok_and(|key| !key.is_weak())
    }

    /// Whether `signature` is this key's, over `domain` and `message`.
    pub fn verify(self, domain: &str, message: &[u8], signature: &[u8; 64]) -> bool {
        VerifyingKey::from_bytes(&self.0).is_ok_and(|key| {
            key.verify_strict(&framed(domain, message), &Signature::from_bytes(signature)).is_ok()
        })
    }
}

impl SecretKey {
    /// From 32 random bytes.
    pub fn from_seed(seed: [u8; 32]) -> Self {
        Self(seed)
    }

    /// The seed, to be sealed or written to a file of mode 0600.
    pub fn seed(&self) -> &[u8; 32] {
        &self.0
    }

    /// The public half.
    pub fn peer_id(&self) -> PeerId {
        PeerId(SigningKey::from_bytes(&self.0).verifying_key().to_bytes())
    }

    /// Signs `message` for one purpose.
    pub fn sign(&self, domain: &str, message: &[u8]) -> [u8; 64] {
        SigningKey::from_bytes(&self.0).sign(&framed(domain, message)).to_bytes()
    }
}

impl PairKey {
    /// From 32 random bytes.
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The bytes, to be sealed or written to a file of mode 0600.
    pub fn bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// The host's MAC address as the server sees it.
    pub fn blind(&self, mac: MacAddress) -> BlindedMac {
        let mut index = [0; 16];
        index.copy_from_slice(&hmac(&self.0, &framed("p2pfs mac 1", &mac.0))[..16]);
        BlindedMac(index)
    }

    /// A key for one purpose and one occasion.
    pub fn derive(&self, purpose: &str, occasion: &[u8]) -> [u8; 32] {
        let mut key = [0; 32];
        let expanded =
            Hkdf::<Sha256>::new(Some(occasion), &self.0).expand(purpose.as_bytes(), &mut key);
        debug_assert!(expanded.is_ok(), "32 bytes are within HKDF's bound");
        key
    }
}

impl MacAddress {
    /// Reads `aa:bb:cc:dd:ee:ff`.
    pub fn from_text(text: &str) -> Option<Self> {
        let mut bytes = [0; 6];
        let mut parts = text.trim().split(':');
        for byte in &mut bytes {
            let part = parts.next().filter(|part| part.len() == 2)?;
            *byte = u8::from_str_radix(part, 16).ok()?;
        }
        parts.next().is_none().then_some(Self(bytes))
    }
}

/// What a client shows of its password, inside the session's encryption: what Argon2id made of it.
pub fn login_proof(stretch: &Stretch, password: &Passphrase) -> Zeroizing<String> {
    Zeroizing::new(URL_SAFE_NO_PAD.encode(stretch.derive(password).0))
}

/// HMAC-SHA256.
pub fn hmac(key: &[u8; 32], message: &[u8]) -> [u8; 32] {
    // RFC 2104: a key shorter than the hash's block is filled up with zeros
    let mut block = [0; 64];
    block[..32].copy_from_slice(key);
    let mut mac = Hmac::<Sha256>::new(&block.into());
    mac.update(message);
    mac.finalize().into_bytes().into()
}

fn framed(domain: &str, message: &[u8]) -> Vec<u8> {
    let mut framed = Vec::with_capacity(domain.len() + 1 + message.len());
    framed.extend_from_slice(domain.as_bytes());
    framed.push(0);
    framed.extend_from_slice(message);
    framed
}

/// Six bytes on the wire, `aa:bb:cc:dd:ee:ff` where people read it.
impl Serialize for MacAddress {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if serializer.is_human_readable() {
            serializer.collect_str(self)
        } else {
            self.0.serialize(serializer)
        }
    }
}

impl<'de> Deserialize<'de> for MacAddress {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        if deserializer.is_human_readable() {
            let text = String::deserialize(deserializer)?;
            Self::from_text(&text).ok_or_else(|| D::Error::custom("not a MAC address"))
        } else {
            <[u8; 6]>::deserialize(deserializer).map(Self)
        }
    }
}

impl fmt::Display for PeerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.to_text())
    }
}

impl fmt::Debug for PeerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PeerId({})", &self.to_text()[..8])
    }
}

impl fmt::Display for MacAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for MacAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "MacAddress({self})")
    }
}

impl fmt::Debug for BlindedMac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "BlindedMac({:02x}{:02x}..)", self.0[0], self.0[1])
    }
}

impl fmt::Debug for SecretKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SecretKey(..)")
    }
}

impl fmt::Debug for Hidden {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Hidden(..)")
    }
}

impl fmt::Debug for PairKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PairKey(..)")
    }
}
