//! Who does again what this machine forgot when it went down.
//!
//! Until that is done a share lacks what its users were told is there, so others wait for it: only
//! for who is connected, and only soon after the host has begun. Who comes later finds that others
//! have gone on, and nobody can hold up others for longer.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use tokio::sync::Notify;

use crate::id::SessionId;
use crate::limits::REDO_WAIT;

/// The sessions of one host.
#[derive(Clone, Debug)]
pub(super) struct Redoing(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    began: Instant,
    /// By session; its share.
    sessions: Mutex<BTreeMap<SessionId, String>>,
    /// How many there are.
    count: AtomicUsize,
    fewer: Notify,
}

impl Redoing {
    /// Of a host that begins now.
    pub(super) fn new(now: Instant) -> Self {
        Self(Arc::new(Inner {
            began: now,
            sessions: Mutex::default(),
            count: AtomicUsize::new(0),
            fewer: Notify::new(),
        }))
    }

    /// Whether a session redoes, and is connected.
    pub(super) fn note(&self, session: SessionId, share: &str, redoes: bool) {
        let mut sessions = self.0.sessions.lock().unwrap_or_else(PoisonError::into_inner);
        if redoes {
            sessions.insert(session, share.to_owned());
        } else {
            sessions.remove(&session);
            self.0.fewer.notify_waiters();
        }
        self.0.count.store(sessions.len(), Ordering::SeqCst);
    }

    /// Whether a session must wait for others of its share.
    pub(super) fn holds_up(
        &self,
        session: SessionId,
        share: &str,
        now: impl FnOnce() -> Instant,
    ) -> bool {
        if self.0.count.load(Ordering::SeqCst) == 0 || now() >= self.0.began + REDO_WAIT {
            return false;
        }
        let sessions = self.0.sessions.lock().unwrap_or_else(PoisonError::into_inner);
        sessions.iter().any(|(other, of)| *other != session && of == share)
    }

    /// Waits as long as it must.
    pub(super) async fn wait(&self, session: SessionId, share: &str) {
        if !self.holds_up(session, share, Instant::now) {
            return;
        }
        let over = tokio::time::sleep_until((self.0.began + REDO_WAIT).into());
        tokio::pin!(over);
        loop {
            let fewer = self.0.fewer.notified();
            tokio::pin!(fewer);
            fewer.as_mut().enable();
            if !self.holds_up(session, share, Instant::now) {
                return;
            }
            tokio::select! {
                () = fewer => {}
                () = &mut over => return,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: SessionId = SessionId([1; 16]);
    const OTHER: SessionId = SessionId([2; 16]);

    #[tokio::test]
    async fn others_of_the_share_wait_until_it_is_done_or_the_host_is_up_for_long() {
        let now = Instant::now();
        let redoing = Redoing::new(now);
        assert!(!redoing.holds_up(OTHER, "disk", || now));
        redoing.note(ONE, "disk", true);
        assert!(redoing.holds_up(OTHER, "disk", || now));
        assert!(!redoing.holds_up(ONE, "disk", || now), "its own calls wait for its entries");
        assert!(!redoing.holds_up(OTHER, "music", || now));
        assert!(!redoing.holds_up(OTHER, "disk", || now + REDO_WAIT));
        let waits = {
            let redoing = redoing.clone();
            tokio::spawn(async move { redoing.wait(OTHER, "disk").await })
        };
        tokio::task::yield_now().await;
        assert!(!waits.is_finished());
        redoing.note(ONE, "disk", false);
        waits.await.unwrap();
    }
}
