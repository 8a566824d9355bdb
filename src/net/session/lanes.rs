//! The lanes of small calls: long-lived streams, so that a call costs one packet each way.
//!
//! A call goes to the lane with the fewest under way. Answers come in any order, and a packet that
//! is lost holds up its own lane only.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use quinn::{Connection, RecvStream};

use crate::id::ConnectionId;
use crate::limits::CALL_LANES;
use crate::net::outbox::Outbox;
use crate::net::session::core::Core;
use crate::net::session::link::{self, LinkError};
use crate::net::stream::{self, SendError};
use crate::wire::call::{Answer, Ask};
use crate::wire::session::{CloseReason, StreamKind};

/// The lanes of one connection; they end with it.
#[derive(Debug)]
pub(super) struct CallLanes {
    lanes: Vec<Lane>,
    /// Where answers come from, until somebody listens.
    receives: Vec<RecvStream>,
}

#[derive(Debug)]
struct Lane {
    /// As long as the table of calls lets it become.
    asks: Outbox,
    under_way: Arc<AtomicUsize>,
}

impl CallLanes {
    pub(super) async fn open(connection: &Connection) -> Result<Self, LinkError> {
        let mut lanes = Vec::with_capacity(CALL_LANES);
        let mut receives = Vec::with_capacity(CALL_LANES);
        for _ in 0..CALL_LANES {
            let (mut send, receive) = connection.open_bi().await?;
            send.write_all(&[StreamKind::Calls.to_byte()]).await.map_err(SendError::from)?;
            let asks = Outbox::new();
            asks.open(send);
            lanes.push(Lane { asks, under_way: Arc::default() });
            receives.push(receive);
        }
        Ok(Self { lanes, receives })
    }

    /// Hands answers to `core`.
    pub(super) fn listen(&mut self, connection: &Connection, id: ConnectionId, core: &Arc<Core>) {
        for (lane, receive) in self.lanes.iter().zip(self.receives.drain(..)) {
            let under_way = Arc::clone(&lane.under_way);
            tokio::spawn(read(connection.clone(), id, receive, Arc::clone(core), under_way));
        }
    }

    /// A lane that is gone went with the connection: the call is sent again on the next one.
    pub(super) fn ask(&self, ask: Ask) {
        let emptiest = self.lanes.iter().min_by_key(|lane| lane.under_way.load(Ordering::Relaxed));
        if let Some(lane) = emptiest {
            lane.under_way.fetch_add(1, Ordering::Relaxed);
            if let Err((error, ())) = lane.asks.put(&ask, Bytes::new(), ()) {
                tracing::error!(%error, "a call that is no message");
            }
        }
    }
}

async fn read(
    connection: Connection,
    connection_id: ConnectionId,
    mut receive: RecvStream,
    core: Arc<Core>,
    under_way: Arc<AtomicUsize>,
) {
    loop {
        match stream::receive::<Answer>(&mut receive).await {
            Ok((Answer { id, reply }, body)) => {
                // An answer that nobody asked for must not make the lane look full
                let less = |count: usize| count.checked_sub(1);
                let _ = under_way.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less);
                core.answered(id, reply.map(|reply| (reply, body)));
            }
            Err(error) if error.is_misbehaviour() => {
                return link::misbehaved(&connection, connection_id, &core, &error.to_string());
            }
            Err(error) => {
                tracing::debug!(%error, "a lane of calls ended");
                if connection.close_reason().is_none() {
                    // What was asked on it would wait for ever
                    link::close(&connection, CloseReason::Misbehaved);
                }
                return;
            }
        }
    }
}
