//! What was accepted and could not be delivered: sealed in the state directory until the same key
//! is there again, or another key of its owner, and the host.
//!
//! `STATE/sealed/KEY-SESSION`: an [`Envelope`], a salt, and chunks that only the key in the
//! envelope opens ([`Sealing`]): first what the session was, then each entry of its log with its
//! data.

pub(crate) mod deliver;
pub(crate) mod others;

use std::fs::{self, File};
use std::io::{self, BufReader, Read};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use p2pfs::id::SessionId;
use p2pfs::identity::PeerId;
use p2pfs::identity::sealing::Sealing;
use p2pfs::identity::wrapping::{FileKey, NotWrapped, Subject, Wraps};
use p2pfs::limits::{LOG_BYTES_UNSTABLE_MAX, LOG_ENTRIES_UNSTABLE_MAX};
use p2pfs::net::daemon;
use p2pfs::net::session::PutAway;
use p2pfs::proto::redo::log::{Kept, KeptEntry};
use p2pfs::wire::codec;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::envelope::{self, Envelope, damaged};

const MAGIC: &[u8] = b"p2pfs sealed 2\n";
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

/// A file that was opened.
#[derive(Debug)]
pub struct Opened {
    envelope: Envelope,
    head: Head,
    /// What it keeps.
    pub away: PutAway,
}

impl Opened {
    fn is_of(&self, subject: &Subject) -> bool {
        (self.head.session, &self.head.share) == (subject.session, &subject.share)
    }
}

/// Where it is sealed what a session has left. `name`: the key and the session.
pub(crate) fn path(state: &Path, name: &str) -> PathBuf {
    folder(state).join(name)
}

/// Seals there what a session with a share of a host has left; on the disk when this returns.
pub(crate) fn seal(
    path: &Path,
    envelope: &Envelope,
    host: PeerId,
    share: &str,
    away: &PutAway,
) -> io::Result<()> {
    let salt: [u8; SALT_BYTES] = daemon::random();
    let mut sealing = Sealing::new(envelope.key().bytes(), &salt);
    let mut file = envelope.start(MAGIC);
    file.extend(salt);
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
    let folder = path.parent().map(Path::to_owned);
    daemon::state_dir(folder, "mountd").map_err(io::Error::other)?;
    daemon::write_private(path, &file)
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
    envelope::read(&mut file, MAGIC)?;
    file.seek_relative(SALT_BYTES as i64)?;
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
    all_in(&folder(state)).into_iter().filter(|path| name_of(path).starts_with(&start)).collect()
}

/// The files of a folder whose names have no ending: those that are being written, or that nothing
/// is to be done with, have one.
pub(crate) fn all_in(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let mut found: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
    found.retain(|path| !name_of(path).contains('.'));
    found.sort();
    found
}

/// The key and the session, as a file is named for them.
pub(crate) fn name_of(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

fn open(
    mut file: &File,
    unwrap: impl FnOnce(&Wraps) -> Result<FileKey, NotWrapped>,
) -> io::Result<Opened> {
    if file.metadata()?.len() > FILE_BYTES_MAX {
        return Err(damaged());
    }
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    parse(&bytes, unwrap)
}

/// A file of these chunks, whatever they hold: for tests of [`parse`].
pub fn of_chunks(envelope: &Envelope, chunks: &[&[u8]]) -> Vec<u8> {
    let salt = [2; SALT_BYTES];
    let mut sealing = Sealing::new(envelope.key().bytes(), &salt);
    let mut file = [envelope.start(MAGIC), salt.to_vec()].concat();
    for (index, chunk) in chunks.iter().enumerate() {
        file.extend(sealing.seal(chunk, index + 1 == chunks.len()));
    }
    file
}

/// Reads a file whose key `unwrap` finds.
///
/// # Errors
///
/// It is damaged, of another version, or sealed for others.
pub fn parse(
    file: &[u8],
    unwrap: impl FnOnce(&Wraps) -> Result<FileKey, NotWrapped>,
) -> io::Result<Opened> {
    let invalid = |_| damaged();
    let mut rest = file;
    let envelope = Envelope::open(envelope::read(&mut rest, MAGIC)?, unwrap)?;
    let (salt, mut rest) = rest.split_first_chunk::<SALT_BYTES>().ok_or_else(damaged)?;
    let mut sealing = Sealing::new(envelope.key().bytes(), salt);
    let (head, mut ended) = sealing.open(&mut rest).map_err(|_| damaged())?;
    let head: Head = codec::decode(&head).map_err(invalid)?;
    if head.entries > ENTRIES_MAX {
        return Err(damaged());
    }
    let mut entries = Vec::new();
    while !ended {
        let (chunk, is_last) = sealing.open(&mut rest).map_err(|_| damaged())?;
        ended = is_last;
        let (length, behind) = chunk.split_first_chunk::<4>().ok_or_else(damaged)?;
        let length = u32::from_le_bytes(*length) as usize;
        let (header, body) = behind.split_at_checked(length).ok_or_else(damaged)?;
        let entry: KeptEntry = codec::decode(header).map_err(invalid)?;
        entries.push((entry, Bytes::copy_from_slice(body)));
    }
    if entries.len() as u64 != head.entries {
        return Err(damaged());
    }
    let away = PutAway { session: head.session, kept: head.kept.clone(), entries };
    Ok(Opened { envelope, head, away })
}
