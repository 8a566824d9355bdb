//! The borrower's side.

use std::io;
use std::time::Duration;

use tokio::net::UnixStream;
use tokio::time::timeout;

use super::{Ask, Loan, Offer};
use crate::net::daemon::random;
use crate::net::rendezvous::link::{Link, receive, send};

/// How long a lender may take to answer: to register oneself would soon be as quick.
const PATIENCE: Duration = Duration::from_millis(30);

impl Loan {
    /// Another process's registration, if one lends.
    pub(in super::super) async fn borrow(&self) -> Option<Link> {
        let asked = timeout(PATIENCE, self.ask()).await;
        let asked = asked.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
        asked.inspect_err(|error| tracing::debug!(%error, "no registration to borrow")).ok()
    }

    async fn ask(&self) -> io::Result<Link> {
        let stream = UnixStream::connect(self.socket()).await?;
        let (mut read, mut write) = stream.into_split();
        let ask = Ask { nonce: random() };
        send(&mut write, &ask).await?;
        let offer: Offer = receive(&mut read).await?;
        if !self.is_offer(&ask, &offer) {
            return Err(io::ErrorKind::PermissionDenied.into());
        }
        send(&mut write, &self.take(&ask, &offer)).await?;
        let (read, write) = (Box::new(read), Box::new(write));
        Ok(Link { server: offer.server, local: None, read, write })
    }
}
