//! Frames on QUIC streams: a value, and file data beside it.

use bytes::{Bytes, BytesMut};
use quinn::{ReadError, RecvStream, SendStream, WriteError};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::wire::codec::{self, DecodeError, EncodeError};
use crate::wire::frame::{FrameHead, FrameTooLong, HEAD_BYTES};

/// Why no frame could be read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ReceiveError {
    #[error("the stream ended")]
    Ended,
    #[error("the stream broke")]
    Stream(#[from] ReadError),
    #[error("the peer sent a frame out of bounds")]
    TooLong(#[from] FrameTooLong),
    #[error("the peer sent bytes that are no message")]
    Decode(#[from] DecodeError),
}

/// Why a frame could not be sent.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SendError {
    #[error("the stream broke")]
    Stream(#[from] WriteError),
    #[error("the message is out of bounds")]
    Encode(#[from] EncodeError),
    #[error("the message is out of bounds")]
    TooLong(#[from] FrameTooLong),
}

impl ReceiveError {
    /// Whether the peer is to blame.
    pub(crate) fn is_misbehaviour(&self) -> bool {
        match self {
            Self::TooLong(_) | Self::Decode(_) => true,
            Self::Ended | Self::Stream(_) => false,
        }
    }
}

/// Appends a frame's lengths and value; the body follows as bytes of its own.
pub(crate) fn put_header<T: Serialize>(
    buffer: &mut BytesMut,
    value: &T,
    body_len: usize,
) -> Result<(), SendError> {
    let header = codec::encode(value)?;
    buffer.extend_from_slice(&FrameHead::new(header.len(), body_len)?.to_bytes());
    buffer.extend_from_slice(&header);
    Ok(())
}

/// Sends `prefix`, then a frame.
pub(crate) async fn send<T: Serialize>(
    stream: &mut SendStream,
    prefix: &[u8],
    value: &T,
    body: Bytes,
) -> Result<(), SendError> {
    let mut buffer = BytesMut::with_capacity(256);
    buffer.extend_from_slice(prefix);
    put_header(&mut buffer, value, body.len())?;
    stream.write_all_chunks(&mut [buffer.freeze(), body]).await?;
    Ok(())
}

/// Receives a frame; [`ReceiveError::Ended`] at a clean end between two.
pub(crate) async fn receive<T: DeserializeOwned>(
    stream: &mut RecvStream,
) -> Result<(T, Bytes), ReceiveError> {
    let mut head = [0; HEAD_BYTES];
    receive_exact(stream, &mut head).await?;
    let head = FrameHead::from_bytes(head)?;
    let header = receive_bytes(stream, head.header_len).await?;
    let body = receive_bytes(stream, head.body_len).await?;
    Ok((codec::decode(&header)?, body))
}

/// Receives the byte that says what a stream is for.
pub(crate) async fn receive_kind(stream: &mut RecvStream) -> Result<u8, ReceiveError> {
    let mut kind = [0];
    receive_exact(stream, &mut kind).await?;
    Ok(kind[0])
}

async fn receive_exact(stream: &mut RecvStream, bytes: &mut [u8]) -> Result<(), ReceiveError> {
    use quinn::ReadExactError;
    stream.read_exact(bytes).await.map_err(|error| match error {
        ReadExactError::FinishedEarly(_) => ReceiveError::Ended,
        ReadExactError::ReadError(error) => ReceiveError::Stream(error),
    })
}

async fn receive_bytes(stream: &mut RecvStream, len: usize) -> Result<Bytes, ReceiveError> {
    if len == 0 {
        return Ok(Bytes::new());
    }
    let first = stream.read_chunk(len, true).await?.ok_or(ReceiveError::Ended)?.bytes;
    if first.len() == len {
        return Ok(first);
    }
    let mut bytes = BytesMut::with_capacity(len);
    bytes.extend_from_slice(&first);
    while bytes.len() < len {
        let missing = len - bytes.len();
        let chunk = stream.read_chunk(missing, true).await?.ok_or(ReceiveError::Ended)?;
        bytes.extend_from_slice(&chunk.bytes);
    }
    Ok(bytes.freeze())
}
