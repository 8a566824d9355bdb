//! The chunks of a journal: each sealed, in an order that cannot be changed.
//!
//! ```text
//! length (4, little endian)   AES-256-GCM of the chunk
//! ```
//!
//! The key is HKDF-SHA256 of the key in the file's envelope under its random salt, so it serves one
//! file; a nonce is the chunk's number. Everything that is written through the mount goes through
//! here, which is why it is the cipher that machines have instructions for.

use std::io::{self, Read};

use p2pfs::identity::wrapping::FileKey;
use p2pfs::limits::{BODY_BYTES_MAX, HEADER_BYTES_MAX};
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::hkdf::{HKDF_SHA256, Salt};

const PURPOSE: &[u8] = b"p2pfs journal 1";
const TAG_BYTES: usize = 16;
const CHUNK_BYTES_MAX: usize = BODY_BYTES_MAX + HEADER_BYTES_MAX;

/// Seals or opens the chunks of one file, one after the other.
pub(super) struct Chunks {
    key: LessSafeKey,
    number: u64,
}

impl Chunks {
    /// Of the file with this `salt`; fresh random bytes for each file.
    pub(super) fn new(key: &FileKey, salt: &[u8]) -> Self {
        let secret = Salt::new(HKDF_SHA256, salt).extract(key.bytes());
        let key = secret.expand(&[PURPOSE], &AES_256_GCM).expect("32 bytes are within its bound");
        Self { key: LessSafeKey::new(UnboundKey::from(key)), number: 0 }
    }

    /// Puts the next chunk, in parts, behind what is in `file`.
    pub(super) fn seal(&mut self, file: &mut Vec<u8>, parts: &[&[u8]]) {
        let bytes: usize = parts.iter().map(|part| part.len()).sum();
        file.reserve(4 + bytes + TAG_BYTES);
        file.extend_from_slice(&((bytes + TAG_BYTES) as u32).to_le_bytes());
        let start = file.len();
        parts.iter().for_each(|part| file.extend_from_slice(part));
        let nonce = self.nonce();
        let tag = self.key.seal_in_place_separate_tag(nonce, Aad::empty(), &mut file[start..]);
        file.extend_from_slice(tag.expect("a chunk is far below the bound").as_ref());
    }

    /// The next chunk, if it is whole.
    ///
    /// # Errors
    ///
    /// What the system says; it may be whole then.
    pub(super) fn open(&mut self, file: &mut impl Read) -> io::Result<Option<Vec<u8>>> {
        let mut length = [0; 4];
        if !read_whole(file, &mut length)? {
            return Ok(None);
        }
        let bytes = u32::from_le_bytes(length) as usize;
        if bytes > CHUNK_BYTES_MAX + TAG_BYTES {
            return Ok(None);
        }
        let mut chunk = vec![0; bytes];
        if !read_whole(file, &mut chunk)? {
            return Ok(None);
        }
        let nonce = self.nonce();
        let Ok(opened) = self.key.open_in_place(nonce, Aad::empty(), &mut chunk) else {
            return Ok(None);
        };
        let bytes = opened.len();
        chunk.truncate(bytes);
        Ok(Some(chunk))
    }

    fn nonce(&mut self) -> Nonce {
        let mut nonce = [0; NONCE_LEN];
        nonce[..8].copy_from_slice(&self.number.to_le_bytes());
        self.number += 1;
        Nonce::assume_unique_for_key(nonce)
    }
}

/// False: the file ends before.
fn read_whole(file: &mut impl Read, bytes: &mut [u8]) -> io::Result<bool> {
    match file.read_exact(bytes) {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
        read => read.map(|()| true),
    }
}
