//! `statfs`, which never hangs: desktops ask it all the time; and whether there is room for data.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use p2pfs::limits::LOG_BYTES_UNAPPLIED_MAX;
use p2pfs::wire::call::{Call, Reply, StatFs};
use p2pfs::wire::errno::Errno;

use super::Fs;
use crate::lock::lock;

/// How long an answer is told again.
const FRESH: Duration = Duration::from_secs(1);
/// How long a host may take before the last answer is told once more.
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
    doubtful_until: Mutex<Option<Instant>>,
}

impl Fs {
    /// Space and limits: at most a second old, or what was last known if the host is silent.
    pub async fn statfs(&self) -> Result<StatFs, Errno> {
        let known = *lock(&self.space.last);
        if let Some((at, space)) = known
            && at.elapsed() < FRESH
        {
            return Ok(space);
        }
        let accepted = self.space.accepted.load(Ordering::Relaxed);
        let call = self.remote.call(Call::StatFs);
        let answer = match known {
            None => call.await,
            Some((_, space)) => match tokio::time::timeout(PATIENCE, call).await {
                Ok(answer) => answer,
                Err(_) => return Ok(space),
            },
        };
        match (answer, known) {
            (Ok((Reply::StatFs(space), _)), _) => {
                *lock(&self.space.last) = Some((Instant::now(), space));
                self.space.accepted.fetch_sub(accepted, Ordering::Relaxed);
                Ok(space)
            }
            (_, Some((_, space))) => Ok(space),
            (Ok(_), None) => Err(Errno::EPROTO),
            (Err(error), None) => Err(error),
        }
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
