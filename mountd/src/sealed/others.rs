//! What other keys have left on this machine, and cannot deliver themselves: the host unwraps it
//! for a key that could make the same changes.

use std::fs::File;
use std::io::{self, BufReader};
use std::path::{Path, PathBuf};
use std::time::Duration;

use p2pfs::failure::Failure;
use p2pfs::identity::PeerId;
use p2pfs::identity::sealed::KeyId;
use p2pfs::identity::wrapping::{FileKey, Subject, Wraps};
use p2pfs::limits::CONNECTION_IDLE;
use p2pfs::net::session::{ClientConfig, ClientSession};
use p2pfs::wire::errno::Errno;
use tokio::time::Instant;

use super::deliver::{Over, adopt_one, deliver_one, take, within};
use super::{MAGIC, all_in, folder, name_of};
use crate::envelope;
use crate::journal;

/// How often the host is asked whether it has noticed by now that a client is gone.
const RETRY: Duration = Duration::from_millis(500);
/// A host notices within this time that a client is gone.
const GONE: Duration = CONNECTION_IDLE.saturating_add(Duration::from_secs(5));

/// What other keys of the same owner have left for the host of a session.
pub(crate) struct Others<'a> {
    state: &'a Path,
    key: &'a KeyId,
    config: ClientConfig,
    session: &'a ClientSession,
    /// How long the host has to notice that clients are gone.
    until: Instant,
}

impl<'a> Others<'a> {
    pub(crate) fn new(
        state: &'a Path,
        key: &'a KeyId,
        config: ClientConfig,
        session: &'a ClientSession,
    ) -> Self {
        // the key was approved a moment ago
        let config = ClientConfig { wait: false, ..config };
        Self { state, key, config, session, until: Instant::now() + GONE }
    }

    /// Whether there is anything.
    pub(crate) fn are_there(&self) -> bool {
        let all = [all_in(&folder(self.state)), journal::all(self.state)].concat();
        !self.of_others(all).is_empty()
    }

    /// Delivers it, as far as the host lets this key. The rest stays for the keys that it is of.
    /// Tells which sessions are over with nothing left.
    pub(crate) async fn deliver(&self) -> Vec<Over> {
        let mut over = Vec::new();
        match self.adopt().await {
            Ok(nothing_left) => over = nothing_left,
            Err(failure) => tracing::warn!("{failure}"),
        }
        for path in self.of_others(all_in(&folder(self.state))) {
            if let Err(failure) = self.deliver_file(&path).await {
                tracing::warn!("{failure}");
            }
        }
        over
    }

    /// Seals what is in their journals.
    async fn adopt(&self) -> Result<Vec<Over>, Failure> {
        let (limit, folder) = (self.config.timeout, journal::folder(self.state));
        let paths = self.of_others(journal::all(self.state));
        if paths.is_empty() {
            return Ok(Vec::new());
        }
        let (state, host) = (self.state.to_owned(), self.config.host);
        let look = move || {
            let _lock = journal::lock(&state)?;
            let wraps = |path: PathBuf| {
                let wraps = readable(&path, journal::wraps(&path), host)?;
                Some((path, wraps))
            };
            Ok(paths.into_iter().filter_map(wraps).collect::<Vec<_>>())
        };
        let mut over = Vec::new();
        for (path, wraps) in within(limit, &folder, look).await? {
            let Some((file_key, said)) = self.unwrap(&path, &wraps).await else { continue };
            let (state, journal) = (self.state.to_owned(), path.clone());
            let adopt = move || {
                let _lock = journal::lock(&state)?;
                adopt_one(&state, &journal, (|_: &Wraps| Ok(file_key), Some(&said)))
            };
            match within(limit, &path, adopt).await {
                Ok(nothing_left) => over.extend(nothing_left),
                Err(failure) => tracing::warn!("{failure}"),
            }
        }
        Ok(over)
    }

    async fn deliver_file(&self, path: &Path) -> Result<(), Failure> {
        let host = self.config.host;
        let wraps = || -> io::Result<Option<Wraps>> {
            envelope::read(&mut BufReader::new(File::open(path)?), MAGIC).map(Some)
        };
        if readable(path, wraps(), host).is_none() {
            return Ok(());
        }
        let Some(file) = take(path, self.config.timeout).await? else { return Ok(()) };
        // it may have been sealed anew
        let Some(wraps) = readable(path, wraps(), host) else { return Ok(()) };
        match self.unwrap(path, &wraps).await {
            Some((key, said)) => {
                let unwrap = (|_: &Wraps| Ok(key), Some(&said));
                deliver_one((self.state, path), &file, unwrap, &self.config).await.map(drop)
            }
            None => Ok(()),
        }
    }

    fn of_others(&self, mut paths: Vec<PathBuf>) -> Vec<PathBuf> {
        let start = format!("{}-", self.key);
        paths.retain(|path| !name_of(path).starts_with(&start));
        paths
    }

    /// Asks the host; where its connection with the client that is gone still stands, once more.
    async fn unwrap(&self, path: &Path, wraps: &Wraps) -> Option<(FileKey, Subject)> {
        let path = path.display();
        loop {
            let asked = self.session.unwrap_key(&wraps.for_host);
            let asked = tokio::time::timeout(self.config.timeout, asked).await;
            match asked.unwrap_or(Err(Errno::ETIMEDOUT)) {
                Ok(unwrapped) => return Some(unwrapped),
                Err(Errno::EBUSY) if Instant::now() < self.until => {
                    tokio::time::sleep(RETRY).await;
                }
                Err(Errno::EACCES) => {
                    tracing::info!(%path, "another key's changes, which this one may not deliver");
                    return None;
                }
                Err(error) => {
                    tracing::warn!(%path, %error, "another key's changes stay here");
                    return None;
                }
            }
        }
    }
}

/// How the key of a file is wrapped that `host` can unwrap.
fn readable(path: &Path, wraps: io::Result<Option<Wraps>>, host: PeerId) -> Option<Wraps> {
    let wraps = wraps.inspect_err(|error| {
        if error.kind() != io::ErrorKind::NotFound {
            let path = path.display();
            tracing::warn!(%path, %error, "what another key has left cannot be read");
        }
    });
    wraps.ok().flatten().filter(|wraps| wraps.host == host)
}
