//! The only error that crosses the wire for file operations.

use serde::{Deserialize, Serialize};

/// A POSIX error, by its number in Linux's `asm-generic/errno.h`, whatever machine speaks.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, PartialEq, Serialize)]
#[serde(from = "u16")]
pub struct Errno(u16);

impl Errno {
    /// Operation not permitted.
    pub const EPERM: Self = Self(1);
    /// No such file or directory.
    pub const ENOENT: Self = Self(2);
    /// Interrupted.
    pub const EINTR: Self = Self(4);
    /// Input/output error.
    pub const EIO: Self = Self(5);
    /// Bad file descriptor.
    pub const EBADF: Self = Self(9);
    /// Try again.
    pub const EAGAIN: Self = Self(11);
    /// Permission denied.
    pub const EACCES: Self = Self(13);
    /// In use.
    pub const EBUSY: Self = Self(16);
    /// File exists.
    pub const EEXIST: Self = Self(17);
    /// Links across file systems.
    pub const EXDEV: Self = Self(18);
    /// Not a directory.
    pub const ENOTDIR: Self = Self(20);
    /// Is a directory.
    pub const EISDIR: Self = Self(21);
    /// Invalid argument.
    pub const EINVAL: Self = Self(22);
    /// Too many open files.
    pub const EMFILE: Self = Self(24);
    /// File too large.
    pub const EFBIG: Self = Self(27);
    /// No space left on device.
    pub const ENOSPC: Self = Self(28);
    /// Read-only file system.
    pub const EROFS: Self = Self(30);
    /// File name too long.
    pub const ENAMETOOLONG: Self = Self(36);
    /// No locks available.
    pub const ENOLCK: Self = Self(37);
    /// Function not implemented.
    pub const ENOSYS: Self = Self(38);
    /// Directory not empty.
    pub const ENOTEMPTY: Self = Self(39);
    /// No such attribute.
    pub const ENODATA: Self = Self(61);
    /// Protocol error: the peer's bytes made no sense.
    pub const EPROTO: Self = Self(71);
    /// Operation not supported.
    pub const EOPNOTSUPP: Self = Self(95);
    /// Connection timed out: the host did not answer within the grace.
    pub const ETIMEDOUT: Self = Self(110);
    /// Required key not available: the key is pulled.
    pub const ENOKEY: Self = Self(126);
    /// Disk quota exceeded.
    pub const EDQUOT: Self = Self(122);
    /// The node is gone.
    pub const ESTALE: Self = Self(116);
    /// Transport endpoint is not connected: the session is over.
    pub const ENOTCONN: Self = Self(107);

    /// The largest number that Linux uses (`EHWPOISON`).
    const MAX: u16 = 133;

    /// The number; 1 to 133.
    pub fn number(self) -> i32 {
        i32::from(self.0)
    }

    /// From what a system call said; a number that Linux does not use becomes EIO.
    pub fn from_number(number: i32) -> Self {
        u16::try_from(number).map_or(Self::EIO, Self::from)
    }
}

impl From<u16> for Errno {
    fn from(number: u16) -> Self {
        if number == 0 || number > Self::MAX { Self::EIO } else { Self(number) }
    }
}

impl From<std::io::Error> for Errno {
    fn from(error: std::io::Error) -> Self {
        error.raw_os_error().map_or(Self::EIO, Self::from_number)
    }
}

impl std::fmt::Display for Errno {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", std::io::Error::from_raw_os_error(self.number()))
    }
}
