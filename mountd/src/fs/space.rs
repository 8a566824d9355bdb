//! `statfs`, which never hangs: desktops ask it all the time.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use p2pfs::wire::call::{Call, Reply, StatFs};
use p2pfs::wire::errno::Errno;

use super::Fs;
use crate::lock::lock;

/// How long an answer is told again.
const FRESH: Duration = Duration::from_secs(1);
/// How long a host may take before the last answer is told once more.
const PATIENCE: Duration = Duration::from_millis(500);

/// The last answer.
#[derive(Debug, Default)]
pub(crate) struct Space(Mutex<Option<(Instant, StatFs)>>);

impl Fs {
    /// Space and limits: at most a second old, or what was last known if the host is silent.
    pub async fn statfs(&self) -> Result<StatFs, Errno> {
        let known = *lock(&self.space.0);
        if let Some((at, space)) = known
            && at.elapsed() < FRESH
        {
            return Ok(space);
        }
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
                *lock(&self.space.0) = Some((Instant::now(), space));
                Ok(space)
            }
            (_, Some((_, space))) => Ok(space),
            (Ok(_), None) => Err(Errno::EPROTO),
            (Err(error), None) => Err(error),
        }
    }
}
