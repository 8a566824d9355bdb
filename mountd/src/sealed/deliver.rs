//! What earlier mounts of a key have left is delivered before a new one begins.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::time::Duration;

use p2pfs::failure::{Code, Failure};
use p2pfs::id::SessionId;
use p2pfs::identity::sealed::KeyContents;
use p2pfs::identity::wrapping::{FileKey, NotWrapped, Subject, Wraps};
use p2pfs::net::session::{ClientConfig, ClientSession};
use p2pfs::wire::errno::Errno;
use rustix::fs::{FlockOperation, flock};

use super::{Opened, name_of, of_key, open, seal};
use crate::envelope::is_damage;
use crate::journal::{self, Left};

/// A session whose process is gone with nothing left: its journal is of use until the host knows.
#[derive(Debug)]
pub(crate) struct Over {
    session: SessionId,
    journal: PathBuf,
}

/// What came of what earlier mounts have left.
#[derive(Debug, Default)]
pub(crate) struct Delivered {
    /// Sessions with nothing left.
    pub(crate) over: Vec<Over>,
    /// Shares of sessions that may only read now, and where what they have left is.
    waits: Vec<(String, PathBuf)>,
}

impl Delivered {
    /// Before a share is used that may be changed.
    ///
    /// # Errors
    ///
    /// Earlier changes of it would come later, and over newer ones.
    pub(crate) fn check(&self, share: &str) -> Result<(), Failure> {
        match self.waits.iter().find(|(of, _)| of == share) {
            Some((_, path)) => {
                Err(undelivered(path, "the host only let this key read; try again in two minutes"))
            }
            None => Ok(()),
        }
    }
}

/// Tells the host which sessions are over.
pub(crate) async fn tell(over: &[Over], session: &ClientSession) {
    if over.is_empty() {
        return;
    }
    let sessions: Vec<SessionId> = over.iter().map(|over| over.session).collect();
    match session.are_over(&sessions).await {
        Ok(()) => over.iter().for_each(|over| journal::forget(&over.journal)),
        Err(error) => tracing::debug!(%error, "the host was not told what is over"),
    }
}

/// Delivers what earlier mounts of this key have left, before anything else is read or written.
/// Tells which are over with nothing left.
///
/// # Errors
///
/// The host is not reachable, or takes nothing of it for as long as mounting may take: the rest
/// stays sealed. What is damaged or refused is told in the log, and left where it is.
pub(crate) async fn deliver(
    state: &Path,
    key: &KeyContents,
    config: &ClientConfig,
) -> Result<Delivered, Failure> {
    let over = adopt(state, key, config.timeout).await?;
    let mut delivered = Delivered { over, waits: Vec::new() };
    for path in of_key(state, key.id.as_str()) {
        // none: another mount of the key has delivered it
        if let Some(file) = take(&path, config.timeout).await? {
            let unwrap = |wraps: &Wraps| wraps.open(&key.secret);
            let waits = deliver_one((state, &path), &file, (unwrap, None), config).await?;
            delivered.waits.extend(waits.map(|share| (share, path)));
        }
    }
    Ok(delivered)
}

/// Seals what processes have left that were killed. One after the other: who finds nothing left
/// must find it sealed.
async fn adopt(state: &Path, key: &KeyContents, limit: Duration) -> Result<Vec<Over>, Failure> {
    let (owned, key) = (state.to_owned(), key.clone());
    within(limit, &journal::folder(state), move || adopt_all(&owned, &key)).await
}

fn adopt_all(state: &Path, key: &KeyContents) -> io::Result<Vec<Over>> {
    let mut over = Vec::new();
    let Some(_lock) = journal::lock(state)? else { return Ok(over) };
    let start = format!("{}-", key.id);
    for path in journal::all(state) {
        if name_of(&path).starts_with(&start) {
            over.extend(adopt_one(state, &path, (|wraps: &Wraps| wraps.open(&key.secret), None))?);
        }
    }
    Ok(over)
}

/// Seals what is in a journal, if its process is gone; or tells that its session is over with
/// nothing left. Whoever calls has the lock on all journals.
pub(super) fn adopt_one(
    state: &Path,
    path: &Path,
    (unwrap, said): (impl FnOnce(&Wraps) -> Result<FileKey, NotWrapped>, Option<&Subject>),
) -> io::Result<Option<Over>> {
    let is_of = |left: &Left, said: &Subject| {
        (left.away.session, &left.share) == (said.session, &said.share)
    };
    let left = match journal::take(path, unwrap) {
        Ok(Some(left)) if said.is_none_or(|said| is_of(&left, said)) => left,
        Ok(Some(_)) => {
            tracing::error!(path = %path.display(), "another session's journal: not delivered");
            return Ok(None);
        }
        Ok(None) => return Ok(None),
        Err(error) if is_damage(&error) => {
            tracing::error!(path = %path.display(), %error, "a journal cannot be read");
            return Ok(None);
        }
        Err(error) => return Err(io::Error::other(format!("{}: {error}", path.display()))),
    };
    let sealed = super::path(state, &name_of(path));
    if sealed.exists() {
        // it was killed after it had sealed all
    } else if left.is_empty() {
        return Ok(Some(Over { session: left.away.session, journal: path.to_owned() }));
    } else {
        let Left { envelope, host, share, away, .. } = &left;
        seal(&sealed, envelope, *host, share, away)?;
    }
    journal::forget(path);
    Ok(None)
}

/// Another mount may be delivering this file: waits until it has. The file is ours as long as it is
/// open.
pub(super) async fn take(path: &Path, limit: Duration) -> Result<Option<File>, Failure> {
    let wanted = path.to_owned();
    let take = move || {
        loop {
            let file = match File::open(&wanted) {
                Ok(file) => file,
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
                Err(error) => return Err(error),
            };
            flock(&file, FlockOperation::LockExclusive)?;
            // what could not be delivered is sealed anew
            let inode = |found: io::Result<fs::Metadata>| found.ok().map(|found| found.ino());
            if inode(fs::metadata(&wanted)) == inode(file.metadata()) {
                return Ok(Some(file));
            }
        }
    };
    within(limit, path, take).await
}

/// Work on the files at `path` that waits for other mounts.
pub(super) async fn within<T: Send + 'static>(
    limit: Duration,
    path: &Path,
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> Result<T, Failure> {
    let done = tokio::time::timeout(limit, tokio::task::spawn_blocking(work)).await;
    let done = done.map_err(|_| undelivered(path, "another mount is at it"))?;
    done.map_err(io::Error::other).flatten().map_err(|error| unreadable(path, &error))
}

/// Delivers what is sealed in a file of the state directory; of another key's it must be what the
/// host has said. Tells the share if it may only be read now: then it waits.
pub(super) async fn deliver_one(
    (state, path): (&Path, &Path),
    file: &File,
    (unwrap, said): (impl FnOnce(&Wraps) -> Result<FileKey, NotWrapped>, Option<&Subject>),
    config: &ClientConfig,
) -> Result<Option<String>, Failure> {
    let Opened { envelope, head, away } = match open(file, unwrap) {
        Ok(opened) if opened.head.host != config.host => return Ok(None),
        Ok(opened) if said.is_none_or(|said| opened.is_of(said)) => opened,
        Ok(_) => {
            tracing::error!(path = %path.display(), "another session's changes: not delivered");
            return Ok(None);
        }
        Err(error) if is_damage(&error) => {
            tracing::error!(path = %path.display(), %error, "what is sealed here cannot be read");
            return Ok(None);
        }
        Err(error) => return Err(unreadable(path, &error)),
    };
    let resume = Some(Box::new(away));
    let share = Some(head.share.clone());
    let session = ClientSession::establish(ClientConfig { share, resume, ..config.clone() });
    let session = match session.await {
        Ok(session) => session,
        Err(failure) if matches!(failure.code, Code::ShareUnknown | Code::ShareDenied) => {
            tracing::error!(path = %path.display(), "{failure}");
            return Ok(None);
        }
        Err(failure) => return Err(failure),
    };
    if session.grant().read_only {
        let path = path.display();
        tracing::error!(%path, share = head.share, "what is sealed waits: it may only be read now");
        session.part().await;
        return Ok(Some(head.share));
    }
    let arrived = arrive(&session, config.timeout).await;
    // while it is connected: a farewell may be lost on its way
    session.leave().await;
    if arrived.is_err() || session.refused() > 0 {
        let away = session.put_away();
        if let Err(error) = seal(path, &envelope, head.host, &head.share, &away) {
            tracing::warn!(%error, "what has arrived stays sealed with what has not");
        }
    }
    if let Err(errno) = arrived {
        session.part().await;
        return Err(undelivered(path, &errno.to_string()));
    }
    // if it was killed after it had sealed all
    journal::forget(&journal::path(state, &name_of(path)));
    let settled = if session.refused() == 0 {
        tracing::info!(share = head.share, "what was sealed is delivered");
        fs::remove_file(path)
    } else {
        let refused = path.with_extension("refused");
        tracing::error!(path = %refused.display(), "the host refused some of what was sealed");
        fs::rename(path, refused)
    };
    // what comes again once the host has forgotten the session is written over what is newer
    let folder = path.parent().unwrap_or_else(|| Path::new("/"));
    let settled = settled.and_then(|()| File::open(folder)?.sync_all());
    settled.map_err(|error| undelivered(path, &error.to_string()))?;
    session.close().await;
    Ok(None)
}

/// Waits until all of it is on the host's disk; `limit` begins anew whenever some of it is.
async fn arrive(session: &ClientSession, limit: Duration) -> Result<(), Errno> {
    let pending = || session.status()["pending"].clone();
    let mut before = pending();
    let mut delivered = pin!(session.delivered());
    loop {
        if let Ok(delivered) = tokio::time::timeout(limit, &mut delivered).await {
            return delivered;
        }
        let now = pending();
        if now == before {
            return Err(Errno::ETIMEDOUT);
        }
        before = now;
    }
}

fn unreadable(path: &Path, error: &io::Error) -> Failure {
    Failure::new(
        Code::Internal,
        format!("what was written before cannot be read in {}: {error}", path.display()),
        "look after that disk; to mount without it, move the file away",
    )
}

fn undelivered(path: &Path, why: &str) -> Failure {
    Failure::new(
        Code::HostOffline,
        format!("what was written before is not delivered yet: {why}"),
        format!("try again when the host is there; until then it is kept in {}", path.display()),
    )
}
