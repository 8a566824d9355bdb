//! The beginning of a file that keeps what was accepted: by whom it can be opened.
//!
//! ```text
//! magic line   length (2, little endian)   the file's key, wrapped ([`Wraps`])
//! ```

use std::io::{self, Read};

use p2pfs::identity::wrapping::{FileKey, NotWrapped, Subject, Wraps};
use p2pfs::identity::{PeerId, SecretKey};
use p2pfs::net::daemon;
use p2pfs::wire::codec;

/// The longest wraps, bytes.
const WRAPS_BYTES_MAX: usize = 1024;

/// The key of a file, and how it stands at the file's beginning.
#[derive(Clone, Debug)]
pub struct Envelope {
    key: FileKey,
    wraps: Wraps,
}

impl Envelope {
    /// With a fresh key, for whoever has `secret`, and for the host.
    ///
    /// # Errors
    ///
    /// The host's key is not one.
    pub fn new(secret: &SecretKey, host: PeerId, subject: &Subject) -> io::Result<Self> {
        let key = FileKey::from_bytes(daemon::random());
        let wraps = key.wrap((secret, daemon::random()), host, subject);
        Ok(Self { key, wraps: wraps.map_err(io::Error::other)? })
    }

    /// Opens the envelope of a file.
    ///
    /// # Errors
    ///
    /// Damage: `open` cannot.
    pub fn open(
        wraps: Wraps,
        open: impl FnOnce(&Wraps) -> Result<FileKey, NotWrapped>,
    ) -> io::Result<Self> {
        let key = open(&wraps);
        let key = key.map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
        Ok(Self { key, wraps })
    }

    pub(crate) fn key(&self) -> &FileKey {
        &self.key
    }

    /// What a file of this kind begins with.
    pub(crate) fn start(&self, magic: &[u8]) -> Vec<u8> {
        let wraps = codec::encode(&self.wraps).expect("wraps are far below the bound");
        [magic, &(wraps.len() as u16).to_le_bytes(), &wraps].concat()
    }
}

/// Reads the beginning of a file of one kind.
///
/// # Errors
///
/// What the system says, or [`is_damage`].
pub(crate) fn read(file: &mut impl Read, magic: &[u8]) -> io::Result<Wraps> {
    let mut start = vec![0; magic.len() + 2];
    file.read_exact(&mut start)?;
    let length = start.strip_prefix(magic).and_then(|length| length.try_into().ok());
    let length = usize::from(u16::from_le_bytes(length.ok_or_else(damaged)?));
    if length > WRAPS_BYTES_MAX {
        return Err(damaged());
    }
    let mut wraps = vec![0; length];
    file.read_exact(&mut wraps)?;
    codec::decode(&wraps).map_err(|_| damaged())
}

pub(crate) fn damaged() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "damaged, or written by another version")
}

/// Whether a file will never be read, as what is in it is not what was written.
pub(crate) fn is_damage(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof)
}
