//! Names for things: newtypes for everything that crosses a function.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A file-system object of a share: the host's inode number and a generation.
///
/// The share's root is [`NodeId::ROOT`]; a real inode 1 is remapped by the host. `generation` is a
/// hash of the object's identity (file system, handle, birth time), so a number that the host's
/// file system uses again is another node.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
pub struct NodeId {
    /// The inode number on the share's device.
    pub ino: u64,
    /// Which use of that number.
    pub generation: u64,
}

impl NodeId {
    /// The root of a share; its generation is always 0 on the wire.
    pub const ROOT: Self = Self { ino: 1, generation: 0 };
}

macro_rules! number {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, Eq, Hash, Ord, PartialEq, PartialOrd)]
        #[derive(Deserialize, Serialize)]
        pub struct $name(pub u64);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}", self.0)
            }
        }
    };
}

number! {
    /// An open file of a session; chosen by the client, so that an open that is sent again is the
    /// same open.
    HandleId
}
number! {
    /// The number of a redo-log entry; the first of a session is 1.
    Seq
}
number! {
    /// The number of a call within a session.
    RequestId
}
number! {
    /// One QUIC connection under a session; grows with each new one.
    ConnectionId
}
number! {
    /// A lease of a session; grows with each one that a run of the host grants.
    LeaseId
}
number! {
    /// One run of a hostd process: entries that another run applied may not be stable.
    HostRun
}

/// A time in which the host's machine forgot nothing: what was applied in it is on the disk or
/// still in the page cache. A reboot begins another one, and so does a disk that failed to take
/// data.
#[derive(
    Clone, Copy, Debug, Default, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize,
)]
pub struct Epoch(pub [u8; 16]);

impl Seq {
    /// Before the first entry.
    pub const ZERO: Self = Self(0);

    /// The entry after this one.
    pub fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }

    /// The entry before this one; nothing is before [`Self::ZERO`].
    pub fn previous(self) -> Self {
        Self(self.0.saturating_sub(1))
    }
}

/// A session of one key with one host; random, chosen by the client.
#[derive(Clone, Copy, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
pub struct SessionId(pub [u8; 16]);

impl fmt::Debug for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SessionId({self})")
    }
}

impl SessionId {
    /// All of it, as 32 hexadecimal digits: for the names of files.
    pub fn digits(self) -> String {
        format!("{:032x}", u128::from_be_bytes(self.0))
    }

    /// Reads [`Self::digits`]' form.
    pub fn from_digits(digits: &str) -> Option<Self> {
        let number = u128::from_str_radix(digits, 16).ok().filter(|_| digits.len() == 32)?;
        Some(Self(number.to_be_bytes()))
    }
}

impl fmt::Display for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for byte in &self.0[..4] {
            write!(f, "{byte:02x}")?;
        }
        Ok(())
    }
}
