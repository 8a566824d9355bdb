//! What a session may ask and tell for the sake of its owner's other keys and machines: who is away
//! with changes that have not arrived, and how another key delivers them.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;

use super::Shared;
use super::session::{HostSession, State, blocking};
use crate::id::SessionId;
use crate::identity::PeerId;
use crate::identity::wrapping::{self, ForHost, Subject};
use crate::limits::ABSENT_MAX;
use crate::net::serve::{AbsentClient, Rights};
use crate::wire::call::{Absent, Backlog, Call, Reply};
use crate::wire::errno::Errno;
use crate::wire::session::{CloseReason, DeviceId};

/// Whose a session is now.
#[derive(Clone, Debug)]
pub(super) struct Holder {
    pub(super) peer: PeerId,
    /// See [`Rights::known_by`].
    pub(super) known_by: DeviceId,
}

/// What others are told of a session's client.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Farewell {
    /// It has made changes: others are told if it stays away.
    has_changed: bool,
    /// It keeps this, and ends.
    keeps: Option<Backlog>,
}

impl From<&AbsentClient> for Farewell {
    /// It is back.
    fn from(noted: &AbsentClient) -> Self {
        Self { has_changed: noted.has_changed || noted.keeps.is_some(), keeps: None }
    }
}

impl Farewell {
    /// The client is back.
    pub(super) fn resume(&mut self) {
        self.keeps = None;
    }
}

impl HostSession {
    /// Answers what no share can; `None`: a share is to be asked.
    pub(super) async fn answer_for_others(
        self: &Arc<Self>,
        call: &Call,
    ) -> Option<Result<(Reply, Bytes), Errno>> {
        if !is_for_others(call) {
            return None;
        }
        // so many files are read, and so often
        let _one = self.asking.lock().await;
        let answer = match call {
            Call::Unwrap(wrapped) => {
                let unwrapped = self.unwrap_key(wrapped.clone()).await;
                unwrapped.map(|told| (Reply::Data, told.into()))
            }
            Call::Absent => {
                self.absent_others().await.map(|all| (Reply::Absent(all), Bytes::new()))
            }
            Call::Over(sessions) => {
                self.are_over(sessions).await.map(|()| (Reply::Done, Bytes::new()))
            }
            Call::Leave(keeps) => self.leaves(*keeps).await.map(|()| (Reply::Done, Bytes::new())),
            _ => Err(Errno::EINVAL),
        };
        Some(answer)
    }

    /// Unwraps for this key what another one's client could not deliver.
    async fn unwrap_key(&self, wrapped: ForHost) -> Result<Vec<u8>, Errno> {
        let shared = self.shared.upgrade().ok_or(Errno::EIO)?;
        let peer = self.holder().peer;
        blocking(move || {
            let unwrapped = wrapped.open(&shared.secret).map_err(|_| Errno::EINVAL)?;
            let Subject { session, share, identity } = &unwrapped.1;
            let may_change = shared.policy.may_change(peer, share, *identity);
            if !may_change || !shared.policy.could_change(wrapped.writer, &unwrapped.1) {
                return Err(Errno::EACCES);
            }
            let known = shared.lock().sessions.get(session).cloned();
            match known.filter(|known| known.holder().peer != peer) {
                Some(known) if !known.is_left() => Err(Errno::EBUSY),
                _ => wrapping::write(&unwrapped.0, &unwrapped.1).map_err(|_| Errno::EINVAL),
            }
        })
        .await
    }

    /// Whether nobody but another process of its client, or another key, can go on with it.
    pub(super) fn is_left(&self) -> bool {
        let has_left = self.lock().farewell.keeps.is_some();
        has_left || !self.is_connected()
    }

    /// Another key goes on with it, which could make the same changes.
    pub(super) fn hand_over(&self, to: PeerId, rights: &Rights) {
        let holder = Holder { peer: to, known_by: rights.known_by.clone() };
        tracing::info!(from = ?self.holder().peer, ?to, "a key goes on with another's session");
        self.lock().holder = holder;
    }

    async fn absent_others(&self) -> Result<Vec<Absent>, Errno> {
        let shared = self.shared.upgrade().ok_or(Errno::EIO)?;
        let (own, peer) = (self.id(), self.holder().peer);
        blocking(move || {
            let mut all = shared.absent();
            all.retain(|one| {
                let AbsentClient { session, share, identity, .. } = one;
                *session != own && shared.policy.may_change(peer, share, *identity)
            });
            all.sort_by_key(|one| std::cmp::Reverse(one.since));
            all.truncate(ABSENT_MAX);
            let now = now();
            let tell = |one: AbsentClient| Absent {
                client: one.client,
                share: one.share,
                away_s: now.saturating_sub(one.since),
                keeps: one.keeps,
            };
            Ok(all.into_iter().map(tell).collect())
        })
        .await
    }

    /// The processes of these sessions' clients are gone, and nothing of them is left.
    async fn are_over(&self, sessions: &[SessionId]) -> Result<(), Errno> {
        let shared = self.shared.upgrade().ok_or(Errno::EIO)?;
        if sessions.len() > ABSENT_MAX {
            return Err(Errno::EINVAL);
        }
        let (own, peer, sessions) = (self.id(), self.holder().peer, sessions.to_vec());
        blocking(move || {
            for session in sessions.into_iter().filter(|session| *session != own) {
                shared.is_over(session, peer);
            }
            Ok(())
        })
        .await
    }

    async fn leaves(self: &Arc<Self>, keeps: Backlog) -> Result<(), Errno> {
        self.lock().farewell = Farewell { has_changed: true, keeps: Some(keeps) };
        let session = Arc::clone(self);
        blocking(move || {
            session.note_client();
            Ok(())
        })
        .await
    }

    /// It makes a change.
    pub(super) fn note_change(self: &Arc<Self>, state: &mut State) {
        if !std::mem::replace(&mut state.farewell.has_changed, true) {
            self.note();
        }
    }

    /// It begins, or its client is away.
    pub(super) fn note(self: &Arc<Self>) {
        if self.authorised.rights.read_only {
            return;
        }
        let session = Arc::clone(self);
        tokio::task::spawn_blocking(move || session.note_client());
    }

    /// May wait for a disk.
    fn note_client(&self) {
        // whoever comes last writes what was so last
        let _one = self.noting.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let Farewell { has_changed, keeps } = self.lock().farewell;
        self.authorised.export.note_client(&AbsentClient {
            session: self.id(),
            peer: self.writer,
            client: self.client_name.clone(),
            share: self.share().to_owned(),
            identity: self.is_identity(),
            has_changed,
            since: now(),
            keeps,
        });
    }
}

impl Shared {
    /// Clients that are away now and may have changes, whatever they may use. May wait for a disk.
    pub(super) fn absent(&self) -> Vec<AbsentClient> {
        let mut all = self.policy.absent();
        let state = self.lock();
        let is_here =
            |session: &SessionId| state.sessions.get(session).is_some_and(|known| !known.is_left());
        let keeps = |one: &AbsentClient| match one.keeps {
            Some(keeps) => keeps.entries > 0,
            None => one.has_changed,
        };
        all.retain(|one| keeps(one) && !is_here(&one.session));
        all
    }

    /// `peer` says that the client of a session is gone with nothing left. May wait for a disk.
    fn is_over(&self, session: SessionId, peer: PeerId) {
        let may_end = |writer, share: &str, identity| {
            writer == peer || self.policy.may_change(peer, share, identity)
        };
        let known = {
            let known = self.lock().sessions.get(&session).cloned();
            let ends = |known: &Arc<HostSession>| {
                let holder = known.holder().peer;
                // only its own key knows better than this host that a client is gone
                (holder == peer || known.is_left())
                    && may_end(holder, known.share(), known.is_identity())
            };
            known.filter(ends)
        };
        if let Some(known) = known {
            self.lock().sessions.retain(|_, one| !Arc::ptr_eq(one, &known));
            known.close(CloseReason::Done);
            known.authorised.export.end();
        } else if let Some(one) = self.policy.client(session)
            && may_end(one.peer, &one.share, one.identity)
        {
            self.policy.forget(session);
        }
    }
}

/// Whether the session answers it, and no share.
pub(super) fn is_for_others(call: &Call) -> bool {
    matches!(call, Call::Unwrap(_) | Call::Absent | Call::Leave(_) | Call::Over(_))
}

/// Seconds since 1970.
pub(super) fn now() -> u64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    now.as_ref().map_or(0, Duration::as_secs)
}
