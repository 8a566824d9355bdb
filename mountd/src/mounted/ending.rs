//! How a mount ends: somebody wants it, the key is pulled, or the host has ended the session.
//!
//! In every case calls fail, the kernel's pages are dropped, its connection is aborted, the mount
//! is taken away, and what was accepted is delivered, or sealed for the next mount with this key.
//! Who wants an end waits for the delivery before that; when the key is pulled it comes after.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use p2pfs::failure::{Code, Failure};
use p2pfs::identity::sealed::KeyContents;
use p2pfs::identity::wrapping::Subject;
use p2pfs::net::daemon;
use p2pfs::wire::errno::Errno;
use p2pfs::wire::session::DeviceId;
use tokio::sync::oneshot;

use super::{End, Mount, stuck, undelivered};
use crate::envelope::Envelope;
use crate::fuse::notify::KernelLink;
use crate::gate::{self, valve::Valve, watch::KeyWatch};
use crate::sealed;

/// When the key is pulled: how long requests that are being answered may take to leave, and how
/// long the kernel may take to drop its pages. Both fit, with what the gate takes, into a second.
const EMPTY: Duration = Duration::from_millis(50);
const WIPE: Duration = Duration::from_millis(150);
/// The latter where nobody pulls the key: what was changed through mappings is written first.
const WIPE_AT_EASE: Duration = Duration::from_secs(1);
/// How long the kernel may take once nothing holds its pages any more.
const REST: Duration = Duration::from_secs(30);
/// How long a session may take to say goodbye.
const GOODBYE: Duration = Duration::from_secs(2);
/// How long to wait for room in the state directory before looking again.
const ROOM: Duration = Duration::from_secs(1);

/// What the gate needs to know.
pub(super) struct Key {
    pub(super) watch: Arc<KeyWatch>,
    pub(super) owned: KeyContents,
    pub(super) device: DeviceId,
    pub(super) state: PathBuf,
    pub(super) valve: Arc<Valve>,
    pub(super) link: Arc<KernelLink>,
}

/// Who asked for an unmount, and waits for what comes of it.
pub(super) type Asked = oneshot::Sender<Result<(), Failure>>;

impl Mount {
    /// Somebody wants an end: delivers what was accepted, and takes the mount away. The key's
    /// removal, or a second signal, ends the waiting: then the rest is sealed.
    pub(super) async fn finish(
        &mut self,
        pulled: impl Future<Output = ()>,
        asked: Option<Asked>,
    ) -> Result<End, Failure> {
        self.shared.draining.store(true, Ordering::Relaxed);
        if let Some(guard) = &mut self.guard {
            guard.end_is_wanted();
        }
        let result = tokio::select! {
            result = self.leave() => result,
            () = pulled => match self.shut().await {
                Ok((_, None)) => Ok(()),
                Ok((_, Some(kept))) => Err(is_kept(&undelivered(Errno::ENOKEY), &kept)),
                Err(lost) => Err(lost),
            },
            () = daemon::terminated() => {
                tracing::info!("asked to end at once");
                let gone = self.take_away(WIPE).await;
                match self.shared.session.is_delivered() {
                    true => gone,
                    false => Err(self.keep_for_later(undelivered(Errno::EINTR)).await),
                }
            }
        };
        if let Some(asked) = asked {
            // whoever asked may have left
            let _ = asked.send(result.clone());
        }
        self.part().await;
        result.map(|()| End::Unmounted)
    }

    async fn leave(&mut self) -> Result<(), Failure> {
        let delivered = self.deliver().await;
        let gone = self.take_away(WIPE_AT_EASE).await;
        // what was accepted while the mount was still there
        match delivered.and(self.deliver().await) {
            Ok(()) => gone,
            Err(failure) => Err(self.keep_for_later(failure).await),
        }
    }

    /// The key is pulled and the valve shut: from here on nothing can be read. Delivers what was
    /// accepted, or tells where it is sealed. Somebody may want an end meanwhile.
    pub(super) async fn shut(&mut self) -> Result<(End, Option<PathBuf>), Failure> {
        let terminated = daemon::terminated();
        self.shared.session.shut(Errno::ENOKEY);
        self.shared.draining.store(true, Ordering::Relaxed);
        if let Err(failure) = self.take_away(WIPE).await {
            tracing::error!("{}", failure.report());
        }
        let mut end = End::KeyPulled;
        tokio::select! {
            // what comes of it shows below
            _ = tokio::time::timeout(self.drain, self.deliver()) => {}
            () = terminated => end = End::Unmounted,
        }
        let kept = match self.shared.session.is_delivered() {
            true => None,
            false => Some(self.put_away().await?),
        };
        if let Some(kept) = &kept {
            tracing::warn!(kept = %kept.display(), "what was written is sealed");
        }
        if let Ok(asked) = self.unmounts.try_recv() {
            end = End::Unmounted;
            let _ = asked.send(Ok(()));
        }
        self.part().await;
        Ok((end, kept))
    }

    /// The host has ended the session: nothing can be delivered.
    pub(super) async fn cut_off(&mut self, failure: Failure) -> Failure {
        if let Err(failure) = self.take_away(WIPE).await {
            tracing::error!("{}", failure.report());
        }
        let failure = self.keep_for_later(failure).await;
        self.part().await;
        tracing::error!("{}", failure.report());
        failure
    }

    /// From here on nothing can be read, by whatever way somebody has into the mount; but for what
    /// the kernel takes longer than `limit` to drop, which [`Self::part`] waits for.
    async fn take_away(&mut self, limit: Duration) -> Result<(), Failure> {
        let key = &self.key;
        key.valve.shut();
        let _ = tokio::time::timeout(EMPTY, key.valve.empty()).await;
        match key.link.drop_everything(self.shared.fs.numbers()) {
            Ok(mut dropped) => {
                if tokio::time::timeout(limit, &mut dropped).await.is_err() {
                    tracing::warn!("the kernel takes long to drop its pages");
                    self.wiping = Some(dropped);
                }
            }
            Err(error) => tracing::error!(%error, "the kernel's pages could not be dropped"),
        }
        if let Err(error) = self.mounted.abort() {
            tracing::debug!(%error, "the kernel's connection ends with this process");
        }
        self.mounted.detach().map_err(|error| stuck(&self.mounted, &error))
    }

    /// Says goodbye to the host, and waits until the kernel has dropped everything: it goes on only
    /// as long as this process does.
    async fn part(&mut self) {
        let session = &self.shared.session;
        if session.is_delivered() {
            let heard = session.leave().await;
            let _ = tokio::time::timeout(GOODBYE, session.close()).await;
            // else the next mount tells that it is over
            if heard {
                session.forget_journal();
            }
        } else {
            // what is left comes from another process
            let _ = tokio::time::timeout(GOODBYE, session.part()).await;
        }
        if let Some(dropped) = self.wiping.take()
            && tokio::time::timeout(REST, dropped).await.is_err()
        {
            tracing::error!("the kernel has not dropped all of its pages");
        }
    }

    /// Waits until everything is on the host's disk, or the session is over.
    async fn deliver(&self) -> Result<(), Failure> {
        if self.shared.session.is_delivered() {
            return Ok(());
        }
        tokio::select! {
            synced = self.shared.fs.sync_all() => synced.map_err(undelivered),
            failure = self.shared.session.ended() => Err(failure),
        }
    }

    /// Seals what is left, and says so with what went wrong.
    async fn keep_for_later(&self, failure: Failure) -> Failure {
        if self.shared.session.is_delivered() {
            return failure;
        }
        match self.put_away().await {
            Ok(kept) => is_kept(&failure, &kept),
            Err(lost) => lost,
        }
    }

    /// Seals what cannot be delivered, for the next mount with this key. Where there is no room for
    /// it, waits for that, unless a signal says otherwise.
    async fn put_away(&self) -> Result<PathBuf, Failure> {
        let terminated = daemon::terminated();
        tokio::pin!(terminated);
        self.shared.session.leave().await;
        let mut is_told = false;
        loop {
            let error = match self.seal() {
                Ok(kept) => return Ok(kept),
                Err(error) => error,
            };
            if !std::mem::replace(&mut is_told, true) {
                let state = self.key.state.display();
                tracing::error!(%error, "what was written cannot be kept: make room in {state}");
            }
            tokio::select! {
                () = tokio::time::sleep(ROOM) => {}
                () = &mut terminated => return Err(Failure::new(
                    Code::Internal,
                    format!("what was written cannot be kept and is lost: {error}"),
                    format!("make room in {}", self.key.state.display()),
                )),
            }
        }
    }

    fn seal(&self) -> std::io::Result<PathBuf> {
        let (key, session) = (&self.key, &self.shared.session);
        let share = session.grant().share;
        let (owned, away) = (&key.owned, session.put_away());
        let identity = session.is_identity();
        let subject = Subject { session: away.session, share: share.clone(), identity };
        let envelope = Envelope::new(&owned.secret, owned.host, &subject)?;
        let path = sealed::path(&key.state, &format!("{}-{}", owned.id, away.session.digits()));
        sealed::seal(&path, &envelope, owned.host, &share, &away)?;
        session.forget_journal();
        Ok(path)
    }
}

impl Key {
    /// Resolves when the key is pulled, and the valve is shut.
    pub(super) fn pulled(&self) -> impl Future<Output = ()> + use<> {
        let (watch, valve) = (Arc::clone(&self.watch), Arc::clone(&self.valve));
        let (id, device) = (self.owned.id.clone(), self.device.clone());
        // the owner allows it to be used without the stick
        let portable = self.owned.portable;
        async move {
            match portable {
                true => std::future::pending().await,
                false => gate::pulled(&watch, &id, &device, &valve).await,
            }
        }
    }
}

fn is_kept(failure: &Failure, kept: &Path) -> Failure {
    let what = format!("{}; it is kept in {}", failure.what, kept.display());
    Failure::new(failure.code, what, "the next mount with this key delivers it first")
}
