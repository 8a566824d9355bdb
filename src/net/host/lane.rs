//! A lane of calls: they come in with numbers, and their answers go out as they are ready.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use quinn::{RecvStream, SendStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

use crate::id::RequestId;
use crate::net::host::session::HostSession;
use crate::net::stream::{self, ReceiveError, SendError};
use crate::wire::call::{Answer, Ask, Reply};
use crate::wire::errno::Errno;

/// Bodies up to this are copied behind their headers, bytes: one write for many answers.
const COPY_BYTES: usize = 16 << 10;
/// What is gathered into one write, bytes.
const GATHER_BYTES: usize = 64 << 10;

/// An answer, its data, and its place among the calls under way.
struct Ready {
    answer: Answer,
    body: Bytes,
    _place: OwnedSemaphorePermit,
}

/// Serves a lane until it ends. `room`: the calls that the connection may have under way; a lane
/// takes no more while there is none, so answers that nobody reads are bounded too.
pub(super) async fn serve(
    session: &Arc<HostSession>,
    room: Arc<Semaphore>,
    send: SendStream,
    mut receive: RecvStream,
) -> Result<(), ReceiveError> {
    let (ready, answers) = mpsc::unbounded_channel();
    tokio::spawn(write(send, answers));
    loop {
        let ask = match stream::receive::<Ask>(&mut receive).await {
            Ok((ask, _)) => ask,
            Err(ReceiveError::Ended) => return Ok(()),
            Err(error) => return Err(error),
        };
        // It is never closed
        let Ok(place) = Arc::clone(&room).acquire_owned().await else { return Ok(()) };
        let Ask { id, call } = ask;
        if let Some(result) = session.try_answer(&call) {
            let _ = ready.send(Ready::new(id, result, place));
            continue;
        }
        let (session, ready) = (Arc::clone(session), ready.clone());
        tokio::spawn(async move {
            if let Some(result) = session.answer(&call).await {
                let _ = ready.send(Ready::new(id, result, place));
            }
        });
    }
}

impl Ready {
    fn new(
        id: RequestId,
        result: Result<(Reply, Bytes), Errno>,
        place: OwnedSemaphorePermit,
    ) -> Self {
        let (reply, body) = match result {
            Ok((reply, body)) => (Ok(reply), body),
            Err(errno) => (Err(errno), Bytes::new()),
        };
        Self { answer: Answer { id, reply }, body, _place: place }
    }
}

async fn write(mut send: SendStream, mut answers: mpsc::UnboundedReceiver<Ready>) {
    let mut buffer = BytesMut::new();
    let written = async {
        while let Some(Ready { answer, body, _place }) = answers.recv().await {
            let (id, mut body) = (answer.id, body);
            if stream::put_header(&mut buffer, &answer, body.len()).is_err() {
                // Longer than any answer may be: the lane goes on
                body = Bytes::new();
                stream::put_header(&mut buffer, &Answer { id, reply: Err(Errno::EIO) }, 0)?;
            }
            if body.len() <= COPY_BYTES {
                buffer.extend_from_slice(&body);
                if !answers.is_empty() && buffer.len() < GATHER_BYTES {
                    continue;
                }
                send.write_chunk(buffer.split().freeze()).await.map_err(SendError::from)?;
            } else {
                let mut chunks = [buffer.split().freeze(), body];
                send.write_all_chunks(&mut chunks).await.map_err(SendError::from)?;
            }
        }
        Ok::<(), SendError>(())
    };
    if let Err(error) = written.await {
        tracing::debug!(%error, "a lane of calls ended");
    }
}
