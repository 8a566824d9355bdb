//! When the key is pulled, and whenever something cannot be delivered.
//!
//! Calls fail, the kernel's pages are dropped, its connection is aborted, the mount is taken away,
//! and what was accepted is delivered, or sealed for the next mount with this key.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use p2pfs::failure::{Code, Failure};
use p2pfs::identity::sealed::KeyContents;
use p2pfs::wire::errno::Errno;
use p2pfs::wire::session::DeviceId;

use super::{End, GOODBYE, Mount, stuck};
use crate::fuse::notify::KernelLink;
use crate::gate::{self, valve::Valve, watch::KeyWatch};
use crate::sealed;

/// When the key is pulled: how long requests that are being answered may take to leave, and how
/// long the kernel may take to drop its pages. Both fit, with what the gate takes, into a second.
const EMPTY: Duration = Duration::from_millis(50);
const WIPE: Duration = Duration::from_millis(150);

/// What the gate needs to know.
pub(super) struct Key {
    pub(super) watch: KeyWatch,
    pub(super) owned: KeyContents,
    pub(super) device: DeviceId,
    pub(super) state: PathBuf,
    pub(super) valve: Arc<Valve>,
    pub(super) link: Arc<KernelLink>,
}

impl Mount {
    /// The key is pulled and the valve shut: from here on nothing can be read. Delivers what was
    /// accepted.
    pub(super) async fn shut(&mut self) -> Result<End, Failure> {
        let (key, shared) = (&self.key, &self.shared);
        shared.session.shut(Errno::ENOKEY);
        shared.draining.store(true, Ordering::Relaxed);
        let _ = tokio::time::timeout(EMPTY, key.valve.empty()).await;
        match key.link.drop_everything(shared.fs.numbers()) {
            Ok(dropped) => {
                if tokio::time::timeout(WIPE, dropped).await.is_err() {
                    tracing::warn!("the kernel takes long to drop its pages");
                }
            }
            Err(error) => tracing::error!(%error, "the kernel's pages could not be dropped"),
        }
        if let Err(error) = self.mounted.abort() {
            tracing::debug!(%error, "the kernel's connection ends with this process");
        }
        if let Err(error) = self.mounted.detach() {
            tracing::error!("{}", stuck(&self.mounted, &error).report());
        }
        match tokio::time::timeout(self.drain, self.deliver()).await {
            Ok(Ok(())) => {
                let _ = tokio::time::timeout(GOODBYE, self.shared.session.close()).await;
            }
            Ok(Err(_)) | Err(_) => {
                let kept = self.put_away()?;
                tracing::warn!(kept = %kept.display(), "what was written is sealed");
            }
        }
        Ok(End::KeyPulled)
    }

    /// Seals what is left, and says so with what went wrong.
    pub(super) fn keep_for_later(&self, failure: Failure) -> Failure {
        if self.shared.session.is_delivered() {
            return failure;
        }
        match self.put_away() {
            Ok(kept) => {
                let what = format!("{}; it is kept in {}", failure.what, kept.display());
                Failure::new(failure.code, what, "the next mount with this key delivers it first")
            }
            Err(lost) => lost,
        }
    }

    /// Seals what cannot be delivered, for the next mount with this key.
    fn put_away(&self) -> Result<PathBuf, Failure> {
        let (key, session) = (&self.key, &self.shared.session);
        let share = session.grant().share;
        let (owned, away) = (&key.owned, session.put_away());
        sealed::seal(&key.state, &owned.id, &owned.secret, owned.host, &share, &away).map_err(
            |error| {
                Failure::new(
                    Code::Internal,
                    format!("what was written cannot be kept and is lost: {error}"),
                    format!("make room in {}", key.state.display()),
                )
            },
        )
    }
}

impl Key {
    /// Resolves when the key is pulled, and the valve is shut.
    pub(super) async fn pulled(&self) {
        // the owner allows it to be used without the stick
        if self.owned.portable {
            return std::future::pending().await;
        }
        gate::pulled(&self.watch, &self.owned.id, &self.device, &self.valve).await;
    }
}
