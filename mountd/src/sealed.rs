//! What was accepted and could not be delivered: sealed in the state directory until the same key
//! is there again, and the host.
//!
//! `STATE/sealed/KEY-SESSION`: a magic line, a salt, and chunks that only the key's own secret
//! opens ([`Sealing`]): first what the session was, then each entry of its log with its data.

use std::fs::{self, File};
use std::io::{self, BufReader, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::time::Duration;

use bytes::Bytes;
use p2pfs::failure::{Code, Failure};
use p2pfs::id::SessionId;
use p2pfs::identity::sealed::{KeyContents, KeyId};
use p2pfs::identity::sealing::Sealing;
use p2pfs::identity::{PeerId, SecretKey};
use p2pfs::limits::{LOG_BYTES_UNSTABLE_MAX, LOG_ENTRIES_UNSTABLE_MAX};
use p2pfs::net::daemon;
use p2pfs::net::session::{ClientConfig, ClientSession, PutAway};
use p2pfs::proto::redo::log::{Kept, KeptEntry};
use p2pfs::wire::codec;
use p2pfs::wire::errno::Errno;
use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::journal;

const MAGIC: &[u8] = b"p2pfs sealed 1\n";
const SALT_BYTES: usize = 32;
/// The largest file, bytes: a full log, set aside twice over, and its entries.
const FILE_BYTES_MAX: u64 = 4 * LOG_BYTES_UNSTABLE_MAX as u64;
/// Entries of one file: unstable ones and ones that are set aside.
const ENTRIES_MAX: u64 = 16 * LOG_ENTRIES_UNSTABLE_MAX as u64;

/// The first chunk: whose the entries are.
#[derive(Debug, Deserialize, Serialize)]
pub struct Head {
    session: SessionId,
    host: PeerId,
    share: String,
    kept: Kept,
    entries: u64,
}

/// Seals what a session has left; on the disk when this returns.
pub(crate) fn seal(
    state: &Path,
    key: &KeyId,
    secret: &SecretKey,
    host: PeerId,
    share: &str,
    away: &PutAway,
) -> io::Result<PathBuf> {
    let salt: [u8; SALT_BYTES] = daemon::random();
    let mut sealing = Sealing::new(secret, &salt);
    let mut file = [MAGIC, &salt].concat();
    let head = Head {
        session: away.session,
        host,
        share: share.to_owned(),
        kept: away.kept.clone(),
        entries: away.entries.len() as u64,
    };
    let too_long = |_| io::Error::other("too long");
    let head = codec::encode(&head).map_err(too_long)?;
    file.extend(sealing.seal(&head, away.entries.is_empty()));
    for (index, (entry, body)) in away.entries.iter().enumerate() {
        let header = codec::encode(entry).map_err(too_long)?;
        let mut chunk = Zeroizing::new(Vec::with_capacity(4 + header.len() + body.len()));
        chunk.extend_from_slice(&(header.len() as u32).to_le_bytes());
        chunk.extend_from_slice(&header);
        chunk.extend_from_slice(body);
        file.extend(sealing.seal(&chunk, index + 1 == away.entries.len()));
    }
    let path = folder(state).join(format!("{key}-{}", away.session));
    daemon::state_dir(Some(folder(state)), "mountd").map_err(io::Error::other)?;
    daemon::write_private(&path, &file)?;
    Ok(path)
}

/// Delivers what earlier mounts of this key have left, before anything else is read or written.
///
/// # Errors
///
/// The host is not reachable, or takes nothing of it for as long as mounting may take: the rest
/// stays sealed. What is damaged or refused is told in the log, and left where it is.
pub(crate) async fn deliver(
    state: &Path,
    key: &KeyContents,
    config: &ClientConfig,
) -> Result<(), Failure> {
    adopt(state, key, config.timeout).await?;
    for path in of_key(state, key.id.as_str()) {
        // none: another mount of the key has delivered it
        if let Some(file) = take(&path, config.timeout).await? {
            deliver_one(state, &path, &file, key, config).await?;
        }
    }
    Ok(())
}

/// Seals what processes have left that were killed. One after the other: who finds nothing left
/// must find it sealed.
async fn adopt(state: &Path, key: &KeyContents, limit: Duration) -> Result<(), Failure> {
    let (owned, key) = (state.to_owned(), key.clone());
    let adopted = tokio::task::spawn_blocking(move || adopt_all(&owned, &key));
    let adopted = tokio::time::timeout(limit, adopted).await;
    let adopted = adopted.map_err(|_| io::Error::other("another mount of this key is at it"));
    let adopted = adopted.and_then(|adopted| adopted.map_err(io::Error::other).flatten());
    adopted.map_err(|error| undelivered(&journal::folder(state), &error.to_string()))
}

fn adopt_all(state: &Path, key: &KeyContents) -> io::Result<()> {
    let _lock = match journal::lock(state) {
        // there never was one
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        lock => lock?,
    };
    for left in journal::left(state, &key.id, &key.secret) {
        let sealed = folder(state).join(format!("{}-{}", key.id, left.away.session));
        // else it was killed after it had sealed all
        if let Some(share) = left.share.as_deref().filter(|_| !left.is_empty())
            && !sealed.exists()
        {
            seal(state, &key.id, &key.secret, left.host, share, &left.away)?;
        }
        left.remove()?;
    }
    Ok(())
}

/// Another mount of the key may be delivering this file: waits until it has. The file is ours as
/// long as it is open.
async fn take(path: &Path, limit: Duration) -> Result<Option<File>, Failure> {
    let wanted = path.to_owned();
    let taken = tokio::task::spawn_blocking(move || {
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
    });
    let taken = tokio::time::timeout(limit, taken).await;
    let taken = taken.map_err(|_| undelivered(path, "another mount of this key is at it"))?;
    taken.map_err(io::Error::other).flatten().map_err(|error| undelivered(path, &error.to_string()))
}

async fn deliver_one(
    state: &Path,
    path: &Path,
    file: &File,
    key: &KeyContents,
    config: &ClientConfig,
) -> Result<(), Failure> {
    let (head, away) = match open(file, &key.secret) {
        Ok(opened) if opened.0.host == key.host => opened,
        Ok(_) => return Ok(()),
        Err(error) => {
            let path = path.display();
            tracing::error!(%path, %error, "what is sealed here cannot be read");
            return Ok(());
        }
    };
    let resume = Some(Box::new(away));
    let share = Some(head.share.clone());
    let session = ClientSession::establish(ClientConfig { share, resume, ..config.clone() });
    let session = match session.await {
        Ok(session) => session,
        Err(failure) if matches!(failure.code, Code::ShareUnknown | Code::ShareDenied) => {
            tracing::error!(path = %path.display(), "{failure}");
            return Ok(());
        }
        Err(failure) => return Err(failure),
    };
    let arrived = arrive(&session, config.timeout).await;
    if arrived.is_err() || session.refused() > 0 {
        let away = session.put_away();
        if let Err(error) = seal(state, &key.id, &key.secret, key.host, &head.share, &away) {
            tracing::warn!(%error, "what has arrived stays sealed with what has not");
        }
    }
    if let Err(errno) = arrived {
        return Err(undelivered(path, &errno.to_string()));
    }
    let settled = if session.refused() == 0 {
        tracing::info!(share = head.share, "what was sealed is delivered");
        fs::remove_file(path)
    } else {
        let refused = path.with_extension("refused");
        tracing::error!(path = %refused.display(), "the host refused some of what was sealed");
        fs::rename(path, refused)
    };
    // what comes again once the host has forgotten the session is written over what is newer
    let settled = settled.and_then(|()| File::open(folder(state))?.sync_all());
    settled.map_err(|error| undelivered(path, &error.to_string()))?;
    session.close().await;
    Ok(())
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

fn undelivered(path: &Path, why: &str) -> Failure {
    Failure::new(
        Code::HostOffline,
        format!("what was written before is not delivered yet: {why}"),
        format!("try again when the host is there; until then it is kept in {}", path.display()),
    )
}

fn folder(state: &Path) -> PathBuf {
    state.join("sealed")
}

/// Changes of a key that are sealed, and how long they are, bytes. Nobody needs the key for that.
pub(crate) fn waiting(state: &Path, key: &str) -> (u64, u64) {
    let count = |path: PathBuf| changes(&path).ok();
    let all = of_key(state, key).into_iter().filter_map(count);
    all.fold((0, 0), |sum, one| (sum.0 + one.0, sum.1 + one.1))
}

/// Of one file: every chunk but the first.
fn changes(path: &Path) -> io::Result<(u64, u64)> {
    let mut file = BufReader::new(File::open(path)?);
    let head = MAGIC.len() + SALT_BYTES;
    file.seek_relative(head as i64)?;
    let mut chunks = Vec::new();
    let mut length = [0; 4];
    while file.read_exact(&mut length).is_ok() {
        let length = u32::from_le_bytes(length);
        file.seek_relative(length.into())?;
        chunks.push(u64::from(length));
    }
    let entries = chunks.get(1..).unwrap_or_default();
    Ok((entries.len() as u64, entries.iter().sum()))
}

fn of_key(state: &Path, key: &str) -> Vec<PathBuf> {
    let start = format!("{key}-");
    let entries = fs::read_dir(folder(state)).into_iter().flatten().flatten();
    let mut found: Vec<PathBuf> = entries
        .filter(|entry| {
            let name = entry.file_name().to_string_lossy().into_owned();
            name.starts_with(&start) && !name.contains('.')
        })
        .map(|entry| entry.path())
        .collect();
    found.sort();
    found
}

fn open(mut file: &File, secret: &SecretKey) -> io::Result<(Head, PutAway)> {
    if file.metadata()?.len() > FILE_BYTES_MAX {
        return Err(io::Error::other("too long"));
    }
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    parse(&bytes, secret)
}

/// Reads a file that was sealed for `secret`.
///
/// # Errors
///
/// It is damaged, of another version, or sealed for another key.
pub fn parse(file: &[u8], secret: &SecretKey) -> io::Result<(Head, PutAway)> {
    let damaged = || io::Error::other("damaged, or sealed by another version");
    let rest = file.strip_prefix(MAGIC).ok_or_else(damaged)?;
    let (salt, mut rest) = rest.split_first_chunk::<SALT_BYTES>().ok_or_else(damaged)?;
    let mut sealing = Sealing::new(secret, salt);
    let (head, mut ended) = sealing.open(&mut rest).map_err(io::Error::other)?;
    let head: Head = codec::decode(&head).map_err(io::Error::other)?;
    if head.entries > ENTRIES_MAX {
        return Err(damaged());
    }
    let mut entries = Vec::new();
    while !ended {
        let (chunk, is_last) = sealing.open(&mut rest).map_err(io::Error::other)?;
        ended = is_last;
        let (length, behind) = chunk.split_first_chunk::<4>().ok_or_else(damaged)?;
        let length = u32::from_le_bytes(*length) as usize;
        let (header, body) = behind.split_at_checked(length).ok_or_else(damaged)?;
        let entry: KeptEntry = codec::decode(header).map_err(io::Error::other)?;
        entries.push((entry, Bytes::copy_from_slice(body)));
    }
    if entries.len() as u64 != head.entries {
        return Err(damaged());
    }
    let away = PutAway { session: head.session, kept: head.kept.clone(), entries };
    Ok((head, away))
}
