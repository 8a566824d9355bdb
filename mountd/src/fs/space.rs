//! `statfs`, which never hangs: desktops ask it all the time; and whether there is room for data.

use std::future::Future;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use p2pfs::id::NodeId;
use p2pfs::limits::LOG_BYTES_UNAPPLIED_MAX;
use p2pfs::wire::call::{Attr, Call, Reply, StatFs};
use p2pfs::wire::errno::Errno;
use tokio::task::JoinHandle;

use super::{Found, Fs};
use crate::lock::lock;

/// How long an answer is told again.
const FRESH: Duration = Duration::from_secs(1);
/// How long a host may take before the last answer is told once more; until it answers again, that
/// is done at once.
const PATIENCE: Duration = Duration::from_millis(500);

/// With less free space than this, beyond what may be on its way, writes wait for the host's
/// answer, bytes.
const MARGIN: u64 = 64 << 20;
/// How long writes wait for the host's answer after it refused one for want of space, quota or
/// length.
const DOUBT: Duration = Duration::from_secs(5);

/// What is known of the host's space.
#[derive(Debug, Default)]
pub(crate) struct Space {
    /// The last answer.
    last: Mutex<Option<(Instant, StatFs)>>,
    /// Accepted since that was asked, bytes.
    accepted: AtomicU64,
    asking: AtomicBool,
    /// A host that was asked has not answered within [`PATIENCE`], nor since.
    late: AtomicBool,
    /// The last known attributes of the share's root.
    root: Mutex<Option<Attr>>,
    doubtful_until: Mutex<Option<Instant>>,
}

impl Fs {
    /// Space and limits: at most a second old, or what was last known if the host is silent.
    pub async fn statfs(self: &Arc<Self>) -> Result<StatFs, Errno> {
        let known = *lock(&self.space.last);
        match known {
            None => self.ask_space().await,
            Some((at, space)) if at.elapsed() < FRESH => Ok(space),
            Some((_, space)) => {
                let fs = Arc::clone(self);
                let asked = self.soon(async move { fs.ask_space().await });
                Ok(asked.await.unwrap_or(space))
            }
        }
    }

    async fn ask_space(&self) -> Result<StatFs, Errno> {
        let accepted = self.space.accepted.load(Ordering::Relaxed);
        let (Reply::StatFs(space), _) = self.remote.call(Call::StatFs).await? else {
            return Err(Errno::EPROTO);
        };
        *lock(&self.space.last) = Some((Instant::now(), space));
        self.space.accepted.fetch_sub(accepted, Ordering::Relaxed);
        Ok(space)
    }

    /// Attributes of the root, which whoever lists mounts asks for: as [`Self::statfs`].
    pub(super) async fn root(self: &Arc<Self>) -> Result<Found, Errno> {
        let inode = self.inodes.get(NodeId::ROOT.ino)?;
        if let Some(found) = self.glanced_root(&inode) {
            return Ok(found);
        }
        let known = *lock(&self.space.root);
        let fs = Arc::clone(self);
        let ask = async move {
            let found = fs.ask_attributes(NodeId::ROOT.ino, None).await?;
            *lock(&fs.space.root) = Some(found.attr);
            Ok(found)
        };
        match known {
            None => ask.await,
            Some(attr) => match self.soon(ask).await {
                Some(found) => Ok(found),
                None => Ok(Found { node: inode.node, attr, keep: Duration::ZERO }),
            },
        }
    }

    /// What the host says, if it says so soon.
    async fn soon<T: Send + 'static>(
        self: &Arc<Self>,
        ask: impl Future<Output = Result<T, Errno>> + Send + 'static,
    ) -> Option<T> {
        if self.space.late.load(Ordering::Relaxed) {
            return None;
        }
        self.in_time(tokio::spawn(ask)).await?.ok()
    }

    /// What comes of `asked` if it comes soon; if not, the host is late until it does.
    pub(super) async fn in_time<T: Send + 'static>(
        self: &Arc<Self>,
        mut asked: JoinHandle<Result<T, Errno>>,
    ) -> Option<Result<T, Errno>> {
        let is_late = self.space.late.load(Ordering::Relaxed);
        let patience = if is_late { Duration::ZERO } else { PATIENCE };
        if let Ok(answer) = tokio::time::timeout(patience, &mut asked).await {
            return answer.ok();
        }
        self.space.late.store(true, Ordering::Relaxed);
        let fs = Arc::clone(self);
        tokio::spawn(async move {
            let _ = asked.await;
            fs.space.late.store(false, Ordering::Relaxed);
        });
        None
    }

    /// Whether the host may well have no room for `len` more bytes, as far as is known; keeps that
    /// knowledge fresh while data is written.
    pub(super) fn is_tight(self: &Arc<Self>, len: u32) -> bool {
        let (space, now) = (&self.space, Instant::now());
        let accepted = space.accepted.fetch_add(len.into(), Ordering::Relaxed);
        let last = *lock(&space.last);
        if last.is_none_or(|(at, _)| at.elapsed() >= FRESH)
            && !space.asking.swap(true, Ordering::Relaxed)
        {
            let fs = Arc::clone(self);
            tokio::spawn(async move {
                // without an answer the next write asks again
                let _ = fs.statfs().await;
                fs.space.asking.store(false, Ordering::Relaxed);
            });
        }
        if lock(&space.doubtful_until).is_some_and(|until| now < until) {
            return true;
        }
        let needed = accepted + u64::from(len) + LOG_BYTES_UNAPPLIED_MAX as u64 + MARGIN;
        last.is_some_and(|(_, space)| {
            space.blocks > 0 && space.bavail.saturating_mul(space.frsize.into()) < needed
        })
    }

    /// A write was refused: the next ones wait for the host's answer.
    pub(super) fn doubt(&self, error: Errno) {
        let doubtful = [Errno::ENOSPC, Errno::EDQUOT, Errno::EFBIG, Errno::EROFS];
        if doubtful.contains(&error) {
            *lock(&self.space.doubtful_until) = Some(Instant::now() + DOUBT);
        }
    }
}
