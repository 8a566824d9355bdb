//! A lane of calls: they come in with numbers, and their answers go out as they are ready.

use std::sync::Arc;

use bytes::Bytes;
use quinn::{RecvStream, SendStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::id::RequestId;
use crate::net::host::session::HostSession;
use crate::net::outbox::Outbox;
use crate::net::stream::{self, ReceiveError};
use crate::wire::call::{Answer, Ask, Reply};
use crate::wire::errno::Errno;

/// Answers, each with its place among the calls under way.
type Answers = Outbox<OwnedSemaphorePermit>;

/// Serves a lane until it ends. `room`: the calls that the connection may have under way; a lane
/// takes no more while there is none, so answers that nobody reads are bounded too.
pub(super) async fn serve(
    session: &Arc<HostSession>,
    room: Arc<Semaphore>,
    send: SendStream,
    mut receive: RecvStream,
) -> Result<(), ReceiveError> {
    let answers = Answers::new();
    answers.open(send);
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
            put(&answers, id, result, place);
            continue;
        }
        let answers = answers.clone();
        if !session.must_wait(&call) {
            session.answer_elsewhere(call, move |result| put(&answers, id, result, place));
            continue;
        }
        let session = Arc::clone(session);
        tokio::spawn(async move {
            if let Some(result) = session.answer(&call).await {
                put(&answers, id, result, place);
            }
        });
    }
}

fn put(
    answers: &Answers,
    id: RequestId,
    result: Result<(Reply, Bytes), Errno>,
    place: OwnedSemaphorePermit,
) {
    let (reply, body) = match result {
        Ok((reply, body)) => (Ok(reply), body),
        Err(errno) => (Err(errno), Bytes::new()),
    };
    if let Err((error, place)) = answers.put(&Answer { id, reply }, body, place) {
        // longer than any answer may be: the lane goes on
        tracing::error!(%error, "an answer that is no message");
        let _ = answers.put(&Answer { id, reply: Err(Errno::EIO) }, Bytes::new(), place);
    }
}
