//! The first bytes of every frame on a file stream: two lengths, bounded before anything is read.

use crate::limits::{BODY_BYTES_MAX, HEADER_BYTES_MAX};

/// How many bytes the lengths take.
pub const HEAD_BYTES: usize = 8;

/// The lengths of a frame's two parts, in bounds.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct FrameHead {
    /// Bytes of the encoded value; at most [`HEADER_BYTES_MAX`].
    pub header_len: usize,
    /// Bytes of file data behind it; at most [`BODY_BYTES_MAX`].
    pub body_len: usize,
}

/// A frame that announces more than any frame may hold.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("frame announces more bytes than any may hold")]
pub struct FrameTooLong;

impl FrameHead {
    /// Checks both lengths.
    ///
    /// # Errors
    ///
    /// [`FrameTooLong`] past either bound.
    pub fn new(header_len: usize, body_len: usize) -> Result<Self, FrameTooLong> {
        if header_len > HEADER_BYTES_MAX || body_len > BODY_BYTES_MAX {
            return Err(FrameTooLong);
        }
        Ok(Self { header_len, body_len })
    }

    /// Reads the lengths that a peer sent.
    ///
    /// # Errors
    ///
    /// [`FrameTooLong`] past either bound.
    pub fn from_bytes(bytes: [u8; HEAD_BYTES]) -> Result<Self, FrameTooLong> {
        let [a, b, c, d, e, f, g, h] = bytes;
        let length = |bytes| usize::try_from(u32::from_le_bytes(bytes)).map_err(|_| FrameTooLong);
        Self::new(length([a, b, c, d])?, length([e, f, g, h])?)
    }

    /// The lengths as sent.
    pub fn to_bytes(self) -> [u8; HEAD_BYTES] {
        // Both are within bounds far below 2^32
        let length = |len: usize| u32::try_from(len).unwrap_or(u32::MAX).to_le_bytes();
        let ([a, b, c, d], [e, f, g, h]) = (length(self.header_len), length(self.body_len));
        [a, b, c, d, e, f, g, h]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_survive_and_too_long_ones_are_refused() {
        let head = FrameHead::new(300, BODY_BYTES_MAX).unwrap();
        assert_eq!(head.to_bytes(), [44, 1, 0, 0, 0, 0, 16, 0]);
        assert_eq!(FrameHead::from_bytes(head.to_bytes()), Ok(head));
        assert_eq!(FrameHead::from_bytes([255; 8]), Err(FrameTooLong));
        assert_eq!(FrameHead::new(0, BODY_BYTES_MAX + 1), Err(FrameTooLong));
    }
}
