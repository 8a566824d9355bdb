//! Datagrams in a TCP stream: `u16 length | u16 segment | datagrams`, little-endian.
//!
//! A frame holds what one system call would have sent: datagrams of `segment` bytes each, the last
//! perhaps shorter; 0 where there is one only. The first frame of a stream is a probe of its match:
//! nothing else is looked at before.

use crate::limits::RELAYED_BYTES_MAX;
use crate::wire::codec::DecodeError;

/// Bytes before the datagrams.
pub const FRAME_HEADER_BYTES: usize = 4;

/// What stands before the datagrams; `None` if they are too many for one frame.
pub fn header(length: usize, segment: u16) -> Option<[u8; FRAME_HEADER_BYTES]> {
    let length = u16::try_from(length).ok().filter(|length| is_legal(usize::from(*length)))?;
    let ([a, b], [c, d]) = (length.to_le_bytes(), segment.to_le_bytes());
    Some([a, b, c, d])
}

/// How many bytes follow, and in which segments.
///
/// # Errors
///
/// [`DecodeError::TooLong`] for nothing, and for more than [`RELAYED_BYTES_MAX`].
pub fn parse(header: [u8; FRAME_HEADER_BYTES]) -> Result<(usize, u16), DecodeError> {
    let [a, b, c, d] = header;
    let length = usize::from(u16::from_le_bytes([a, b]));
    if !is_legal(length) {
        return Err(DecodeError::TooLong);
    }
    Ok((length, u16::from_le_bytes([c, d])))
}

/// The datagrams of a frame.
pub fn split(bytes: &[u8], segment: u16) -> impl Iterator<Item = &[u8]> {
    let segment = if segment == 0 { bytes.len() } else { usize::from(segment) };
    bytes.chunks(segment.max(1))
}

fn is_legal(length: usize) -> bool {
    (1..=RELAYED_BYTES_MAX).contains(&length)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_has_its_bytes_and_its_bounds() {
        assert_eq!(header(0x1234, 0x0578), Some([0x34, 0x12, 0x78, 0x05]));
        assert_eq!(parse([0x34, 0x12, 0x78, 0x05]), Ok((0x1234, 0x0578)));
        assert_eq!(header(0, 0), None);
        assert_eq!(header(RELAYED_BYTES_MAX + 1, 0), None);
        assert_eq!(parse([0; 4]), Err(DecodeError::TooLong));
        assert_eq!(parse([0xff; 4]), Err(DecodeError::TooLong));
        let parts: Vec<_> = split(b"abcde", 2).collect();
        assert_eq!(parts, [&b"ab"[..], b"cd", b"e"]);
        assert_eq!(split(b"abcde", 0).count(), 1);
    }
}
