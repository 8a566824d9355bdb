//! Files that only the holder of a key can read: chunks, each sealed, in an order that cannot be
//! changed, with an end that cannot be cut off.
//!
//! ```text
//! salt (32)   then chunks: length (4, little endian), XChaCha20-Poly1305 of the chunk
//! ```
//!
//! The cipher's key is HKDF-SHA256 of the holder's key under the file's random salt, so it serves
//! one file; a nonce is the chunk's number and whether it is the last (the STREAM construction).

use chacha20poly1305::aead::{Aead, KeyInit};
use chacha20poly1305::{Key, XChaCha20Poly1305, XNonce};
use hkdf::Hkdf;
use sha2::Sha256;
use zeroize::Zeroizing;

/// Bytes that sealing adds to a chunk, with its length.
pub const CHUNK_OVERHEAD: usize = 4 + 16;

const PURPOSE: &[u8] = b"p2pfs sealed file 1";

/// Seals or opens the chunks of one file, one after the other.
pub struct Sealing {
    cipher: XChaCha20Poly1305,
    number: u64,
}

/// The file is not what its key's holder wrote.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("damaged, or sealed with another key")]
pub struct Damaged;

impl Sealing {
    /// For the file with this `salt`; fresh random bytes for each file.
    pub fn new(key: &[u8; 32], salt: &[u8; 32]) -> Self {
        let mut derived = Zeroizing::new([0; 32]);
        let expanded = Hkdf::<Sha256>::new(Some(salt), key).expand(PURPOSE, derived.as_mut_slice());
        debug_assert!(expanded.is_ok(), "32 bytes are within HKDF's bound");
        let mut key = Key::default();
        key.copy_from_slice(&derived[..]);
        Self { cipher: XChaCha20Poly1305::new(&key), number: 0 }
    }

    /// The next chunk, with its length before it.
    pub fn seal(&mut self, chunk: &[u8], is_last: bool) -> Vec<u8> {
        let nonce = self.nonce(is_last);
        let sealed = self.cipher.encrypt(&nonce, chunk).expect("a chunk is far below the bound");
        let mut framed = Vec::with_capacity(4 + sealed.len());
        framed.extend_from_slice(&(sealed.len() as u32).to_le_bytes());
        framed.extend_from_slice(&sealed);
        framed
    }

    /// Takes the next chunk off `rest`; also tells whether it is the last.
    ///
    /// # Errors
    ///
    /// [`Damaged`].
    pub fn open(&mut self, rest: &mut &[u8]) -> Result<(Zeroizing<Vec<u8>>, bool), Damaged> {
        let (length, behind) = rest.split_first_chunk::<4>().ok_or(Damaged)?;
        let length = u32::from_le_bytes(*length) as usize;
        let (sealed, behind) = behind.split_at_checked(length).ok_or(Damaged)?;
        *rest = behind;
        let is_last = behind.is_empty();
        let nonce = self.nonce(is_last);
        let chunk = self.cipher.decrypt(&nonce, sealed).map_err(|_| Damaged)?;
        Ok((Zeroizing::new(chunk), is_last))
    }

    fn nonce(&mut self, is_last: bool) -> XNonce {
        let mut nonce = XNonce::default();
        nonce[..8].copy_from_slice(&self.number.to_le_bytes());
        nonce[8] = is_last.into();
        self.number += 1;
        nonce
    }
}

impl std::fmt::Debug for Sealing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sealing").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sealing() -> Sealing {
        Sealing::new(&[1; 32], &[2; 32])
    }

    fn file() -> Vec<u8> {
        let mut sealing = sealing();
        let mut file = sealing.seal(b"first", false);
        file.extend(sealing.seal(b"second", false));
        file.extend(sealing.seal(b"", true));
        file
    }

    fn read(mut rest: &[u8]) -> Result<Vec<Vec<u8>>, Damaged> {
        let (mut sealing, mut chunks) = (sealing(), Vec::new());
        loop {
            let (chunk, is_last) = sealing.open(&mut rest)?;
            chunks.push(chunk.to_vec());
            if is_last {
                return Ok(chunks);
            }
        }
    }

    #[test]
    fn what_was_sealed_is_read_in_its_order() {
        assert_eq!(read(&file()).unwrap(), [&b"first"[..], b"second", b""]);
    }

    #[test]
    fn whatever_is_changed_cut_off_or_moved_is_damage() {
        let file = file();
        for at in 0..file.len() {
            let mut bad = file.clone();
            bad[at] ^= 1 << (at % 8);
            assert_eq!(read(&bad), Err(Damaged), "byte {at}");
            assert_eq!(read(&file[..at]), Err(Damaged), "{at} bytes");
        }
        let first = 5 + CHUNK_OVERHEAD;
        let second = first + 6 + CHUNK_OVERHEAD;
        let swapped = [&file[first..second], &file[..first], &file[second..]].concat();
        assert_eq!(read(&swapped), Err(Damaged));
        let other = Sealing::new(&[3; 32], &[2; 32]).open(&mut &file[..]);
        assert_eq!(other.unwrap_err(), Damaged);
    }
}
