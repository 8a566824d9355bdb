//! The key of a file that others may have to open than who wrote it: wrapped for the key that wrote
//! it, and for the host, which unwraps it for another key of the same owner.
//!
//! For the key: XChaCha20-Poly1305 under HKDF-SHA256 of its secret and a random salt. For the host:
//! HPKE (RFC 9180) in auth mode, with DHKEM(X25519, HKDF-SHA256), HKDF-SHA256 and
//! ChaCha20-Poly1305, from the key to the host, both Ed25519 keys as points of Curve25519
//! (RFC 7748, 4.1). With it goes whose changes are in the file. So nobody but the key's holder (or
//! the host) can make a file that another key would deliver, or have one unwrapped as another's.

use std::fmt;

use chacha20poly1305::aead::{Aead, KeyInit};
use chacha20poly1305::{Key, XChaCha20Poly1305, XNonce};
use ed25519_dalek::{SigningKey, VerifyingKey};
use hkdf::Hkdf;
use hpke::aead::ChaCha20Poly1305;
use hpke::kdf::HkdfSha256;
use hpke::kem::X25519HkdfSha256;
use hpke::{Deserializable, Kem, OpModeR, OpModeS, Serializable};
use serde::{Deserialize, Serialize};
use sha2::Sha256;
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

use crate::id::SessionId;
use crate::identity::{PeerId, SecretKey};
use crate::limits::{LABEL_BYTES_MAX, WRAPPED_BYTES_MAX};
use crate::wire::codec;

type Curve = X25519HkdfSha256;

const FOR_KEY: &[u8] = b"p2pfs file key for a key 1";
const FOR_HOST: &[u8] = b"p2pfs file key for a host 1";

/// The key of a file.
#[derive(Clone, Deserialize, Serialize, Zeroize, ZeroizeOnDrop)]
pub struct FileKey([u8; 32]);

/// Whose changes are in a file. **Append only.**
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Subject {
    /// The session that has accepted them.
    pub session: SessionId,
    /// Its share; at most [`LABEL_BYTES_MAX`] bytes.
    pub share: String,
    /// Whether they name who made them on the client.
    pub identity: bool,
}

/// The key of a file, wrapped; nothing in it is secret. **Append only.**
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Wraps {
    /// Who unwraps [`Self::for_host`].
    pub host: PeerId,
    /// For the host.
    pub for_host: ForHost,
    salt: [u8; 32],
    #[serde(with = "serde_bytes")]
    for_key: Vec<u8>,
}

/// A file's key, and whose changes are in the file, wrapped for a host. **Append only.**
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct ForHost {
    /// The key that has written the file: proved, once this is opened.
    pub writer: PeerId,
    /// The encapsulated key, and what is sealed; at most [`WRAPPED_BYTES_MAX`] bytes.
    #[serde(with = "serde_bytes")]
    pub sealed: Vec<u8>,
}

/// Nobody has wrapped this for whom it was opened; or it was to be wrapped for what is no key.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("damaged, or wrapped for another key")]
pub struct NotWrapped;

/// What is wrapped for a host.
#[derive(Deserialize, Serialize)]
struct Told {
    subject: Subject,
    key: FileKey,
}

impl FileKey {
    /// From 32 random bytes.
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The bytes.
    pub fn bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// Wraps it for the key with this secret and for a host. `salt`: fresh random bytes.
    ///
    /// # Errors
    ///
    /// The host's key is not one.
    pub fn wrap(
        &self,
        (secret, salt): (&SecretKey, [u8; 32]),
        host: PeerId,
        subject: &Subject,
    ) -> Result<Wraps, NotWrapped> {
        let told = Zeroizing::new(write(self, subject)?);
        let writer = secret.peer_id();
        let mode = OpModeS::Auth((private(secret)?, public(writer)?));
        let sealed = hpke::single_shot_seal::<ChaCha20Poly1305, HkdfSha256, Curve>(
            &mode,
            &public(host)?,
            FOR_HOST,
            &told,
            b"",
        );
        let (encapsulated, sealed) = sealed.map_err(|_| NotWrapped)?;
        let sealed = [encapsulated.to_bytes().as_slice(), &sealed].concat();
        let for_host = ForHost { writer, sealed };
        let sealed = cipher(secret, &salt).encrypt(&XNonce::default(), self.0.as_slice());
        let for_key = sealed.map_err(|_| NotWrapped)?;
        Ok(Wraps { host, for_host, salt, for_key })
    }
}

impl Wraps {
    /// Unwraps the key with the secret of the key that has written the file.
    ///
    /// # Errors
    ///
    /// [`NotWrapped`].
    pub fn open(&self, secret: &SecretKey) -> Result<FileKey, NotWrapped> {
        let opened = cipher(secret, &self.salt).decrypt(&XNonce::default(), &*self.for_key);
        let opened = Zeroizing::new(opened.map_err(|_| NotWrapped)?);
        opened.as_slice().try_into().map(FileKey).map_err(|_| NotWrapped)
    }
}

impl ForHost {
    /// Unwraps the key with the host's secret.
    ///
    /// # Errors
    ///
    /// [`NotWrapped`].
    pub fn open(&self, secret: &SecretKey) -> Result<(FileKey, Subject), NotWrapped> {
        if self.sealed.len() > WRAPPED_BYTES_MAX {
            return Err(NotWrapped);
        }
        let (encapsulated, sealed) = self.sealed.split_first_chunk::<32>().ok_or(NotWrapped)?;
        let encapsulated = <Curve as Kem>::EncappedKey::from_bytes(encapsulated);
        let told = hpke::single_shot_open::<ChaCha20Poly1305, HkdfSha256, Curve>(
            &OpModeR::Auth(public(self.writer)?),
            &private(secret)?,
            &encapsulated.map_err(|_| NotWrapped)?,
            FOR_HOST,
            sealed,
            b"",
        );
        parse(&Zeroizing::new(told.map_err(|_| NotWrapped)?))
    }
}

/// What is wrapped for a host, and what it answers when it has unwrapped that.
///
/// # Errors
///
/// [`NotWrapped`]: the share's name is far too long.
pub fn write(key: &FileKey, subject: &Subject) -> Result<Vec<u8>, NotWrapped> {
    let told = Told { subject: subject.clone(), key: key.clone() };
    codec::encode(&told).map_err(|_| NotWrapped)
}

/// Reads what was wrapped for a host: every key can wrap for it whatever it likes.
///
/// # Errors
///
/// [`NotWrapped`].
pub fn parse(told: &[u8]) -> Result<(FileKey, Subject), NotWrapped> {
    let Told { subject, key } = codec::decode(told).map_err(|_| NotWrapped)?;
    let is_bounded = subject.share.len() <= LABEL_BYTES_MAX;
    is_bounded.then_some((key, subject)).ok_or(NotWrapped)
}

fn public(peer: PeerId) -> Result<<Curve as Kem>::PublicKey, NotWrapped> {
    let point = VerifyingKey::from_bytes(&peer.0).map_err(|_| NotWrapped)?.to_montgomery();
    <Curve as Kem>::PublicKey::from_bytes(point.as_bytes()).map_err(|_| NotWrapped)
}

fn private(secret: &SecretKey) -> Result<<Curve as Kem>::PrivateKey, NotWrapped> {
    let scalar = Zeroizing::new(SigningKey::from_bytes(secret.seed()).to_scalar_bytes());
    <Curve as Kem>::PrivateKey::from_bytes(&*scalar).map_err(|_| NotWrapped)
}

/// For one key alone, so its nonce is always the same.
fn cipher(secret: &SecretKey, salt: &[u8; 32]) -> XChaCha20Poly1305 {
    let mut derived = Zeroizing::new([0; 32]);
    let expanded =
        Hkdf::<Sha256>::new(Some(salt), secret.seed()).expand(FOR_KEY, derived.as_mut_slice());
    debug_assert!(expanded.is_ok(), "32 bytes are within HKDF's bound");
    let mut key = Key::default();
    key.copy_from_slice(&derived[..]);
    XChaCha20Poly1305::new(&key)
}

impl fmt::Debug for FileKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("FileKey(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn subject() -> Subject {
        Subject { session: SessionId([5; 16]), share: "disk".into(), identity: true }
    }

    #[test]
    fn a_files_key_is_unwrapped_by_its_own_key_and_by_the_host_alone() {
        let [own, host, other] = [1, 2, 3].map(|seed| SecretKey::from_seed([seed; 32]));
        let key = FileKey::from_bytes([7; 32]);
        let wraps = key.wrap((&own, [4; 32]), host.peer_id(), &subject()).unwrap();
        assert_eq!(wraps.open(&own).unwrap().bytes(), key.bytes());
        let (unwrapped, whose) = wraps.for_host.open(&host).unwrap();
        assert_eq!((unwrapped.bytes(), whose), (key.bytes(), subject()));
        for secret in [&other, &host] {
            assert_eq!(wraps.open(secret).unwrap_err(), NotWrapped);
        }
        for secret in [&other, &own] {
            assert_eq!(wraps.for_host.open(secret).unwrap_err(), NotWrapped);
        }
        let forged = ForHost { writer: other.peer_id(), ..wraps.for_host.clone() };
        assert_eq!(forged.open(&host).unwrap_err(), NotWrapped, "another key has written it");
        let again = key.wrap((&own, [4; 32]), host.peer_id(), &subject()).unwrap();
        assert_ne!(again.for_host, wraps.for_host, "it tells nobody that two are the same");
    }

    #[test]
    fn whatever_is_changed_or_cut_off_is_not_unwrapped() {
        let [own, host] = [1, 2].map(|seed| SecretKey::from_seed([seed; 32]));
        let key = FileKey::from_bytes([7; 32]);
        let subject = Subject { share: "s".repeat(LABEL_BYTES_MAX), ..subject() };
        let wraps = key.wrap((&own, [4; 32]), host.peer_id(), &subject).unwrap();
        let ForHost { writer, sealed: whole } = wraps.for_host;
        assert!(whole.len() <= WRAPPED_BYTES_MAX, "{}", whole.len());
        for at in 0..whole.len() {
            let mut bad = whole.clone();
            // the highest bit of the point is not looked at (RFC 7748, 5)
            bad[at] ^= 1 << (at % 7);
            for sealed in [bad, whole[..at].to_vec()] {
                let wrapped = ForHost { writer, sealed };
                assert_eq!(wrapped.open(&host).unwrap_err(), NotWrapped, "byte {at}");
            }
        }
    }

    #[test]
    fn a_host_that_is_no_key_is_refused() {
        let key = FileKey::from_bytes([7; 32]);
        let own = SecretKey::from_seed([1; 32]);
        let mut identity = [0; 32];
        identity[0] = 1;
        let wrapped = key.wrap((&own, [4; 32]), PeerId(identity), &subject());
        assert_eq!(wrapped.unwrap_err(), NotWrapped);
    }
}
