//! One connection: lanes of calls, streams for large reads, and the log's two lanes.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use quinn::{Connection, RecvStream, VarInt};
use tokio::sync::mpsc;
use tokio::task::AbortHandle;

use crate::id::{ConnectionId, RequestId};
use crate::net::outbox::Outbox;
use crate::net::session::core::Core;
use crate::net::session::lanes::CallLanes;
use crate::net::stream::{self, ReceiveError, SendError};
use crate::proto::path::Rung;
use crate::wire::call::{Ask, Call, Reply};
use crate::wire::errno::Errno;
use crate::wire::lease::{LeaseRequest, Notice};
use crate::wire::log::{LogAck, LogEntry};
use crate::wire::session::{CloseReason, Identify, StreamKind, Verdict};

/// Entries with data beyond this travel on the bulk lane, so that a `mkdir` does not queue behind a
/// copy. Bytes.
const BULK_BYTES: usize = 4096;
/// Reads beyond this have streams of their own, bytes: nothing waits behind them.
const LANE_READ_BYTES: usize = 64 << 10;

/// A connection with its lanes. What is put on them the host reads when it has approved.
#[derive(Debug)]
pub(crate) struct Link {
    connection: Connection,
    control: Outbox,
    bulk: Outbox,
    calls: CallLanes,
    leases: mpsc::UnboundedSender<LeaseRequest>,
    /// Where notices come from, until somebody listens.
    notices: Option<RecvStream>,
    /// Where acknowledgements come from, until somebody listens.
    receives: Vec<RecvStream>,
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum LinkError {
    #[error("the connection died")]
    Connection(#[from] quinn::ConnectionError),
    #[error("cannot send")]
    Send(#[from] SendError),
    #[error("cannot receive")]
    Receive(#[from] ReceiveError),
    #[error("the host's verdict does not keep its bounds")]
    Unbounded,
}

impl Link {
    /// Opens the lanes. They end with the connection.
    pub(crate) async fn open(connection: Connection) -> Result<Self, LinkError> {
        let (control, first) = open_lane(&connection).await?;
        let (bulk, second) = open_lane(&connection).await?;
        let (leases, notices) = open_leases(&connection).await?;
        let calls = CallLanes::open(&connection).await?;
        let (receives, notices) = (vec![first, second], Some(notices));
        Ok(Self { connection, control, bulk, calls, leases, notices, receives })
    }

    /// Hands answers to `core`.
    pub(crate) fn listen_calls(&mut self, core: &Arc<Core>, id: ConnectionId) {
        self.calls.listen(&self.connection, id, core);
    }

    /// Hands all that the host says to `core`.
    pub(crate) fn listen(&mut self, core: &Arc<Core>, id: ConnectionId) {
        for receive in self.receives.drain(..) {
            tokio::spawn(read_lane(self.connection.clone(), id, receive, Arc::clone(core)));
        }
        self.listen_calls(core, id);
        if let Some(notices) = self.notices.take() {
            tokio::spawn(read_notices(self.connection.clone(), id, notices, Arc::clone(core)));
        }
    }

    /// Starts a call; its answer goes to `core`. A call on a lane cannot be taken back.
    pub(crate) fn call(&self, core: &Arc<Core>, id: RequestId, call: Call) -> Option<AbortHandle> {
        let is_large = matches!(
            call,
            Call::Read { len, .. } | Call::ReadVersion { len, .. } if len as usize > LANE_READ_BYTES
        );
        if !is_large {
            self.calls.ask(Ask { id, call });
            return None;
        }
        let core = Arc::clone(core);
        let connection = self.connection.clone();
        let task = tokio::spawn(async move {
            match exchange(&connection, &call).await {
                Ok(answer) => core.answered(id, answer),
                // The call is sent again when the supervisor has a new connection
                Err(_) if connection.close_reason().is_some() => {}
                Err(error) => {
                    tracing::warn!(%error, "call failed on a living connection");
                    core.answered(id, Err(Errno::EPROTO));
                }
            }
        });
        Some(task.abort_handle())
    }

    /// As QUIC measures it.
    pub(crate) fn round_trip(&self) -> Duration {
        self.connection.rtt()
    }

    /// Puts an entry on its lane. A lane that is gone went with the connection: the log ships
    /// again.
    pub(crate) fn ship(&self, entry: LogEntry, body: Bytes) {
        let lane = if body.len() > BULK_BYTES { &self.bulk } else { &self.control };
        if let Err((error, ())) = lane.put(&entry, body, ()) {
            tracing::error!(%error, "an entry that is no message");
        }
    }

    /// Puts a request on the stream of leases and locks. What went with the connection is asked
    /// again.
    pub(crate) fn ask(&self, request: LeaseRequest) {
        let _ = self.leases.send(request);
    }
}

/// Where the host's verdict comes from.
pub(crate) struct Asked(RecvStream);

/// Request 21 (steps 121 and 122); `asked`: the host wanted it (141-144). The first stream of its
/// connection: the host looks at no other before it has decided. The host learns `over` which rung
/// it goes: it may answer over another one.
pub(crate) async fn identify(
    connection: &Connection,
    request: &Identify,
    over: Option<Rung>,
    asked: bool,
) -> Result<Asked, LinkError> {
    let (mut send, receive) = connection.open_bi().await?;
    let kind = if asked { StreamKind::IdentifyAsked } else { StreamKind::Identify };
    let kind = [kind.to_byte()];
    let over: Vec<u8> = over.map(Rung::to_byte).into_iter().collect();
    stream::send(&mut send, &kind, request, over.into()).await?;
    let _ = send.finish();
    Ok(Asked(receive))
}

impl Asked {
    /// The host's verdict (step 123).
    pub(crate) async fn verdict(mut self) -> Result<Verdict, LinkError> {
        let (verdict, _) = stream::receive::<Verdict>(&mut self.0).await?;
        if !verdict.is_bounded() {
            return Err(LinkError::Unbounded);
        }
        Ok(verdict)
    }
}

/// Closes with a reason that the peer understands.
pub(crate) fn close(connection: &Connection, reason: CloseReason) {
    connection.close(VarInt::from_u32(reason.to_code()), b"");
}

/// Ends a connection on which the host broke the protocol.
pub(crate) fn misbehaved(connection: &Connection, id: ConnectionId, core: &Arc<Core>, what: &str) {
    tracing::warn!(error = what, "the host misbehaved: closing the connection");
    close(connection, CloseReason::Misbehaved);
    core.misbehaved(id);
}

async fn exchange(
    connection: &Connection,
    call: &Call,
) -> Result<Result<(Reply, Bytes), Errno>, LinkError> {
    let (mut send, mut receive) = connection.open_bi().await?;
    stream::send(&mut send, &[StreamKind::Call.to_byte()], call, Bytes::new()).await?;
    let _ = send.finish();
    let (reply, body): (Result<Reply, Errno>, _) = stream::receive(&mut receive).await?;
    Ok(reply.map(|reply| (reply, body)))
}

async fn open_lane(connection: &Connection) -> Result<(Outbox, RecvStream), LinkError> {
    let (mut send, receive) = connection.open_bi().await?;
    // At once: the host has answers for a client that has nothing to send
    send.write_all(&[StreamKind::Log.to_byte()]).await.map_err(SendError::from)?;
    let lane = Outbox::new();
    lane.open(send);
    Ok((lane, receive))
}

async fn open_leases(
    connection: &Connection,
) -> Result<(mpsc::UnboundedSender<LeaseRequest>, RecvStream), LinkError> {
    let (mut send, receive) = connection.open_bi().await?;
    send.write_all(&[StreamKind::Lease.to_byte()]).await.map_err(SendError::from)?;
    let (lane, mut requests) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Some(request) = requests.recv().await {
            if stream::send(&mut send, &[], &request, Bytes::new()).await.is_err() {
                return;
            }
        }
    });
    Ok((lane, receive))
}

async fn read_notices(
    connection: Connection,
    id: ConnectionId,
    mut receive: RecvStream,
    core: Arc<Core>,
) {
    loop {
        let what = match stream::receive::<Notice>(&mut receive).await {
            Ok((notice, _)) => match core.noticed(id, &notice) {
                Ok(()) => continue,
                Err(error) => error.to_string(),
            },
            Err(error) if error.is_misbehaviour() => error.to_string(),
            Err(_) => return,
        };
        return misbehaved(&connection, id, &core, &what);
    }
}

async fn read_lane(
    connection: Connection,
    id: ConnectionId,
    mut receive: RecvStream,
    core: Arc<Core>,
) {
    loop {
        let what = match stream::receive::<LogAck>(&mut receive).await {
            Ok((ack, _)) => match core.acknowledged(id, ack) {
                Ok(()) => continue,
                Err(error) => error.to_string(),
            },
            Err(error) if error.is_misbehaviour() => error.to_string(),
            Err(_) => return,
        };
        return misbehaved(&connection, id, &core, &what);
    }
}
