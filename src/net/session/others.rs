//! What a session asks and tells for the sake of its owner's other keys and machines.

use std::time::Duration;

use super::ClientSession;
use crate::id::SessionId;
use crate::identity::wrapping::{self, FileKey, ForHost, Subject};
use crate::limits::ABSENT_MAX;
use crate::net::remote::Remote;
use crate::wire::call::{Absent, Backlog, Call, Reply};
use crate::wire::errno::Errno;

/// How long a farewell may take.
const FAREWELL: Duration = Duration::from_millis(500);

impl ClientSession {
    /// Has the host unwrap the key of a file with what another session could not deliver. This
    /// key may go on with that session then, and with no other.
    ///
    /// # Errors
    ///
    /// EACCES: one of the keys could not make the changes; EBUSY: the other client is connected;
    /// EINVAL: that key has not wrapped this for this host; and as [`Remote::call`].
    pub async fn unwrap_key(&self, wrapped: &ForHost) -> Result<(FileKey, Subject), Errno> {
        let (_, body) = self.call(Call::Unwrap(wrapped.clone())).await?;
        wrapping::parse(&body).map_err(|_| Errno::EPROTO)
    }

    /// Which other clients are away, and may have changes that have not arrived.
    ///
    /// # Errors
    ///
    /// As [`Remote::call`]; EPROTO for an answer that breaks its bounds.
    pub async fn absent(&self) -> Result<Vec<Absent>, Errno> {
        match self.call(Call::Absent).await? {
            (Reply::Absent(all), _)
                if all.len() <= ABSENT_MAX && all.iter().all(Absent::is_bounded) =>
            {
                Ok(all)
            }
            _ => Err(Errno::EPROTO),
        }
    }

    /// Tells the host of sessions on this machine whose processes are gone, with nothing left.
    ///
    /// # Errors
    ///
    /// As [`Remote::call`].
    pub async fn are_over(&self, sessions: &[SessionId]) -> Result<(), Errno> {
        for sessions in sessions.chunks(ABSENT_MAX) {
            self.call(Call::Over(sessions.to_vec())).await?;
        }
        Ok(())
    }

    /// Leaves the session for another process, or another key, that goes on with it: from here on
    /// this one does not come back to the host.
    pub async fn part(&self) {
        self.core.part();
        self.close().await;
    }

    /// Tells a host that is there that this client ends, and how much it keeps for later. Best
    /// effort, for half a second: a host that hears nothing only knows that this client is gone.
    /// Tells whether it has heard.
    pub async fn leave(&self) -> bool {
        if !self.core.is_connected() {
            return false;
        }
        let (entries, bytes) = self.core.unstable();
        let told = self.call(Call::Leave(Backlog { entries, bytes }));
        matches!(tokio::time::timeout(FAREWELL, told).await, Ok(Ok(_)))
    }
}
