//! Names and targets: bytes, not text, checked where they arrive.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::limits::{NAME_BYTES_MAX, TARGET_BYTES_MAX};
use crate::wire::errno::Errno;

/// A name in a directory: 1 to 255 bytes, no `/`, no NUL, neither `.` nor `..`.
#[derive(Clone, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(try_from = "RawBytes", into = "RawBytes")]
pub struct Name(Vec<u8>);

/// A symlink's target: 1 to 4095 bytes, no NUL. It is data: only the client's kernel follows it.
#[derive(Clone, Deserialize, Eq, PartialEq, Serialize)]
#[serde(try_from = "RawBytes", into = "RawBytes")]
pub struct Target(Vec<u8>);

/// Bytes before they are checked.
#[derive(Deserialize, Serialize)]
struct RawBytes(#[serde(with = "serde_bytes")] Vec<u8>);

impl Name {
    /// A checked name.
    ///
    /// # Errors
    ///
    /// `ENAMETOOLONG` past 255 bytes, `EINVAL` for what no directory entry can be called.
    pub fn new(bytes: impl Into<Vec<u8>>) -> Result<Self, Errno> {
        let bytes = bytes.into();
        if bytes.len() > NAME_BYTES_MAX {
            return Err(Errno::ENAMETOOLONG);
        }
        if matches!(bytes.as_slice(), b"" | b"." | b"..")
            || bytes.iter().any(|byte| matches!(byte, b'/' | 0))
        {
            return Err(Errno::EINVAL);
        }
        Ok(Self(bytes))
    }

    /// The bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl Target {
    /// A checked target.
    ///
    /// # Errors
    ///
    /// `ENAMETOOLONG` past 4095 bytes, `ENOENT` if empty (as symlink(2) says), `EINVAL` with a NUL.
    pub fn new(bytes: impl Into<Vec<u8>>) -> Result<Self, Errno> {
        let bytes = bytes.into();
        if bytes.len() > TARGET_BYTES_MAX {
            return Err(Errno::ENAMETOOLONG);
        }
        if bytes.is_empty() {
            return Err(Errno::ENOENT);
        }
        if bytes.contains(&0) {
            return Err(Errno::EINVAL);
        }
        Ok(Self(bytes))
    }

    /// The bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl TryFrom<RawBytes> for Name {
    type Error = Errno;

    fn try_from(raw: RawBytes) -> Result<Self, Errno> {
        Self::new(raw.0)
    }
}

impl From<Name> for RawBytes {
    fn from(name: Name) -> Self {
        Self(name.0)
    }
}

impl TryFrom<RawBytes> for Target {
    type Error = Errno;

    fn try_from(raw: RawBytes) -> Result<Self, Errno> {
        Self::new(raw.0)
    }
}

impl From<Target> for RawBytes {
    fn from(target: Target) -> Self {
        Self(target.0)
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Name({:?})", String::from_utf8_lossy(&self.0))
    }
}

impl fmt::Debug for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Target({:?})", String::from_utf8_lossy(&self.0))
    }
}
