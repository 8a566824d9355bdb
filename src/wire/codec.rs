//! The only importer of bincode: a hard limit, and every byte consumed.

use bincode::config::{Configuration, Fixint, Limit, LittleEndian};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::limits::HEADER_BYTES_MAX;

/// Why bytes are not a value.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum DecodeError {
    /// The bytes are not an encoding of this type.
    #[error("bytes are not a valid message")]
    Malformed,
    /// The value ended before the bytes did.
    #[error("bytes follow the message")]
    Trailing,
    /// Longer than the limit of this kind of message.
    #[error("message is too long")]
    TooLong,
}

/// Why a value cannot be encoded: it is longer than any message may be.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("message is too long to encode")]
pub struct EncodeError;

fn config() -> Configuration<LittleEndian, Fixint, Limit<HEADER_BYTES_MAX>> {
    bincode::config::standard()
        .with_little_endian()
        .with_fixed_int_encoding()
        .with_limit::<HEADER_BYTES_MAX>()
}

/// Encodes a value.
///
/// # Errors
///
/// [`EncodeError`] if it is longer than [`HEADER_BYTES_MAX`].
pub fn encode<T: Serialize>(value: &T) -> Result<Vec<u8>, EncodeError> {
    let bytes = bincode::serde::encode_to_vec(value, config()).map_err(|_| EncodeError)?;
    if bytes.len() > HEADER_BYTES_MAX {
        return Err(EncodeError);
    }
    Ok(bytes)
}

/// Decodes a value that uses all of `bytes`.
///
/// # Errors
///
/// [`DecodeError`] if the bytes are too many, not a value, or more than a value.
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, DecodeError> {
    if bytes.len() > HEADER_BYTES_MAX {
        return Err(DecodeError::TooLong);
    }
    let (value, used) =
        bincode::serde::decode_from_slice(bytes, config()).map_err(|_| DecodeError::Malformed)?;
    if used != bytes.len() {
        return Err(DecodeError::Trailing);
    }
    Ok(value)
}
