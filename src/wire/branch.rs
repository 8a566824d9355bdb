//! Registrations beside the first one of a connection: those of other processes of the machine,
//! with the same key.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::limits::BRANCH_BYTES_MAX;
use crate::wire::codec::{self, DecodeError, EncodeError};

/// A message of such a registration.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Branch {
    /// Chosen by the client: each is greater than the one before, and none comes back.
    pub branch: u32,
    /// What would be sent if it had a connection of its own, at most [`BRANCH_BYTES_MAX`]. Not
    /// read on the way.
    #[serde(with = "serde_bytes")]
    pub bytes: Vec<u8>,
}

impl Branch {
    /// Wraps a message.
    ///
    /// # Errors
    ///
    /// [`EncodeError`] if it is longer than [`BRANCH_BYTES_MAX`].
    pub fn wrap<T: Serialize>(branch: u32, message: &T) -> Result<Self, EncodeError> {
        let bytes = codec::encode(message)?;
        let wrapped = Self { branch, bytes };
        if wrapped.is_bounded() { Ok(wrapped) } else { Err(EncodeError) }
    }

    /// The message.
    ///
    /// # Errors
    ///
    /// [`DecodeError`] if the bytes are not exactly one.
    pub fn unwrap<T: DeserializeOwned>(&self) -> Result<T, DecodeError> {
        if !self.is_bounded() {
            return Err(DecodeError::TooLong);
        }
        codec::decode(&self.bytes)
    }

    /// Whether it keeps its bound.
    pub fn is_bounded(&self) -> bool {
        self.bytes.len() <= BRANCH_BYTES_MAX
    }
}
