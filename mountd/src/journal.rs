//! What a running mount has accepted, so that the next mount with the key delivers it if this
//! process is killed.
//!
//! `STATE/journals/KEY-SESSION`: a magic line, a salt, and chunks that only the key's own
//! secret opens: first whose it is, then each note of the session's log with its
//! data. It is as long as what is not on the host's disk, and some more; it is never synced, as it
//! is there for the end of a process. Its end may be missing: what was not written whole had not
//! been accepted. Who runs it holds a lock on it.

mod cipher;
#[cfg(test)]
mod tests;

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufReader, Read, Seek, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use p2pfs::failure::Failure;
use p2pfs::id::SessionId;
use p2pfs::identity::sealed::{KeyContents, KeyId};
use p2pfs::identity::{PeerId, SecretKey};
use p2pfs::limits::{BODY_BYTES_MAX, LOG_ENTRIES_UNSTABLE_MAX};
use p2pfs::net::daemon;
use p2pfs::net::session::PutAway;
use p2pfs::net::session::journal::{Journal, Journals};
use p2pfs::proto::redo::log::{KeptWhat, Note, Notes};
use p2pfs::wire::codec;
use p2pfs::wire::log::Promise;
use rustix::fs::{CWD, FlockOperation, RenameFlags, flock, renameat_with};
use serde::{Deserialize, Serialize};

use self::cipher::Chunks;

const MAGIC: &[u8] = b"p2pfs journal 1\n";
const SALT_BYTES: usize = 32;
/// Numbers of which nothing is known, at most: all are noted.
const NUMBERS_MAX: u64 = LOG_ENTRIES_UNSTABLE_MAX as u64;
const UNNAMED: &str = "unnamed";
/// Notes that nobody waits for are written when there are so many, bytes.
const BUFFER_BYTES: usize = 64 << 10;
/// Data is sealed in pieces that fit the processor's nearer caches. They are long, as a new file's
/// pages come in larger units then.
const PIECE_BYTES: usize = 128 << 10;
/// It begins anew when it is so long, bytes, and nothing in it is needed; and in any case.
const EMPTY_BYTES_MAX: u64 = 1 << 20;
const BYTES_MAX: u64 = 64 << 20;
/// Between those, when only one of so many parts is needed: little is written again then, and into
/// pages that are still in the processor's caches.
const NEEDED_PARTS: u64 = 4;
/// What an entry takes beside its data, about.
const ENTRY_BYTES: usize = 512;

/// The first chunk: whose the notes are.
#[derive(Debug, Deserialize, PartialEq, Serialize)]
pub struct Head {
    session: SessionId,
    host: PeerId,
    share: Option<String>,
}

/// Journals of sessions with one key.
#[derive(Debug)]
pub(crate) struct JournalDir {
    dir: PathBuf,
    key: KeyId,
    secret: SecretKey,
    host: PeerId,
}

impl JournalDir {
    /// In a folder of the state directory, which is made.
    pub(crate) fn new(state: &Path, key: &KeyContents) -> Result<Self, Failure> {
        let dir = daemon::state_dir(Some(folder(state)), "mountd")?;
        let KeyContents { id, secret, host, .. } = key;
        Ok(Self { dir, key: id.clone(), secret: secret.clone(), host: *host })
    }
}

impl Journals for JournalDir {
    fn open(&self, session: SessionId) -> Box<dyn Journal> {
        let path = self.dir.join(format!("{}-{session}", self.key));
        let head = Head { session, host: self.host, share: None };
        Box::new(FileJournal { path, secret: self.secret.clone(), head, now: None, spare: None })
    }
}

/// One session's.
struct FileJournal {
    path: PathBuf,
    secret: SecretKey,
    head: Head,
    /// Since it has begun.
    now: Option<Writing>,
    /// The file before, to be written over.
    spare: Option<File>,
}

/// A file that is being written.
struct Writing {
    file: File,
    chunks: Chunks,
    /// What is to be written.
    buffer: Vec<u8>,
    /// What was written, bytes.
    length: u64,
    /// What it began with, bytes.
    began_with: u64,
    /// Somebody counts on what is in the buffer.
    urgent: bool,
}

impl std::fmt::Debug for FileJournal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FileJournal").field("path", &self.path).finish_non_exhaustive()
    }
}

impl Writing {
    fn begin(mut file: File, secret: &SecretKey, head: &Head) -> io::Result<Self> {
        // what was in it cannot be read any more, as its key is another
        file.rewind()?;
        let salt: [u8; SALT_BYTES] = daemon::random();
        let mut chunks = Chunks::new(secret, &salt);
        let mut buffer = Vec::with_capacity(2 * BUFFER_BYTES);
        buffer.extend_from_slice(MAGIC);
        buffer.extend_from_slice(&salt);
        chunks.seal(&mut buffer, &[&codec::encode(head).map_err(too_long)?]);
        Ok(Self { file, chunks, buffer, length: 0, began_with: 0, urgent: false })
    }

    fn put(&mut self, note: &Note, body: &[u8]) -> io::Result<()> {
        let header = codec::encode(note).map_err(too_long)?;
        let lengths = [header.len(), body.len()].map(|length| (length as u32).to_le_bytes());
        let (first, rest) = body.split_at(body.len().min(PIECE_BYTES));
        self.chunks.seal(&mut self.buffer, &[lengths.as_flattened(), &header, first]);
        for piece in rest.chunks(PIECE_BYTES) {
            self.write()?;
            self.chunks.seal(&mut self.buffer, &[piece]);
        }
        self.urgent |= matches!(note, Note::Entry(_) | Note::Stable { .. });
        if self.buffer.len() > BUFFER_BYTES { self.write() } else { Ok(()) }
    }

    fn write(&mut self) -> io::Result<()> {
        self.file.write_all(&self.buffer)?;
        self.length += self.buffer.len() as u64;
        self.buffer.clear();
        self.urgent = false;
        Ok(())
    }
}

impl FileJournal {
    fn write_anew(&mut self, notes: Vec<(Note, Bytes)>) -> io::Result<Writing> {
        let unnamed = self.path.with_extension(UNNAMED);
        let file = self.spare.take().map_or_else(|| create(&unnamed), Ok)?;
        let mut anew = Writing::begin(file, &self.secret, &self.head)?;
        notes.into_iter().try_for_each(|(note, body)| anew.put(&note, &body))?;
        anew.write()?;
        anew.began_with = anew.length;
        let exchanged = match self.now {
            Some(_) => renameat_with(CWD, &unnamed, CWD, &self.path, RenameFlags::EXCHANGE),
            None => Err(rustix::io::Errno::NOENT),
        };
        match exchanged {
            // its pages are there already: most of the cost of a file that is written is those
            Ok(()) => self.spare = self.now.take().map(|before| before.file),
            Err(_) => fs::rename(&unnamed, &self.path)?,
        }
        Ok(anew)
    }
}

impl Journal for FileJournal {
    fn granted(&mut self, share: &str) -> bool {
        let is_new = self.head.share.as_deref() != Some(share);
        self.head.share = Some(share.to_owned());
        is_new
    }

    fn note(&mut self, note: &Note, body: &[u8]) -> io::Result<()> {
        self.now.as_mut().map_or(Ok(()), |now| now.put(note, body))
    }

    fn flush(&mut self) -> io::Result<()> {
        match &mut self.now {
            Some(now) if now.urgent => now.write(),
            // what only says more of what was noted is written with what comes next
            _ => Ok(()),
        }
    }

    fn is_long(&self, (entries, bytes): (usize, usize)) -> bool {
        let needed = (bytes + entries * ENTRY_BYTES) as u64;
        self.now.as_ref().is_some_and(|now| {
            // it is not written again and again where the entries are longer than that
            let least = if entries == 0 { 0 } else { 2 * now.began_with };
            now.length > (EMPTY_BYTES_MAX + NEEDED_PARTS * needed).min(BYTES_MAX).max(least)
        })
    }

    fn begin(&mut self, notes: Vec<(Note, Bytes)>) -> io::Result<()> {
        let anew = self.write_anew(notes).inspect_err(|_| {
            let _ = fs::remove_file(self.path.with_extension(UNNAMED));
        })?;
        self.now = Some(anew);
        Ok(())
    }

    fn forget(&mut self) {
        let _ = fs::remove_file(self.path.with_extension(UNNAMED));
        if let Err(error) = fs::remove_file(&self.path)
            && error.kind() != io::ErrorKind::NotFound
        {
            let path = self.path.display();
            tracing::error!(%path, %error, "what has arrived stays in the journal");
        }
        // locked until it has no name any more
        (self.now, self.spare) = (None, None);
    }
}

fn too_long(_: codec::EncodeError) -> io::Error {
    io::Error::other("too long")
}

fn create(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    let file = options.write(true).create(true).truncate(true).mode(0o600).open(path)?;
    flock(&file, FlockOperation::NonBlockingLockExclusive)?;
    Ok(file)
}

pub(crate) fn folder(state: &Path) -> PathBuf {
    state.join("journals")
}

/// What a process that is gone has left.
pub(crate) struct Left {
    pub(crate) path: PathBuf,
    pub(crate) host: PeerId,
    /// None was ever granted: then nothing was accepted either.
    pub(crate) share: Option<String>,
    pub(crate) away: PutAway,
    /// Held as long as it is looked at.
    _file: File,
}

impl Left {
    /// Whether anything was accepted that is not known to be on the host's disk.
    pub(crate) fn is_empty(&self) -> bool {
        let counts = |what: &KeptWhat, promise| {
            matches!(what, KeptWhat::Live { .. }) && promise == Promise::Accepted
        };
        !self.away.entries.iter().any(|(entry, _)| counts(&entry.what, entry.promise))
    }

    /// Nothing of it is needed any more.
    pub(crate) fn remove(&self) -> io::Result<()> {
        // the one before, if it had one
        let _ = fs::remove_file(self.path.with_extension(UNNAMED));
        fs::remove_file(&self.path)
    }
}

/// Waits until nobody else looks for journals, and keeps others waiting as long as it is there.
pub(crate) fn lock(state: &Path) -> io::Result<File> {
    let dir = File::open(folder(state))?;
    flock(&dir, FlockOperation::LockExclusive)?;
    Ok(dir)
}

/// The journals of a key whose processes are gone, one after the other.
pub(crate) fn left<'a>(
    state: &Path,
    key: &'a KeyId,
    secret: &'a SecretKey,
) -> impl Iterator<Item = Left> + use<'a> {
    let start = format!("{key}-");
    let entries = fs::read_dir(folder(state)).into_iter().flatten().flatten();
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
    paths.retain(|path| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        name.starts_with(&start) && path.extension().is_none()
    });
    paths.sort();
    paths.into_iter().filter_map(|path| match take(&path, secret) {
        Ok(left) => left,
        Err(error) => {
            tracing::error!(path = %path.display(), %error, "a journal cannot be read");
            None
        }
    })
}

/// `None`: its process runs.
fn take(path: &Path, secret: &SecretKey) -> io::Result<Option<Left>> {
    let file = File::open(path)?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Err(rustix::io::Errno::WOULDBLOCK) => return Ok(None),
        locked => locked?,
    }
    // another may have begun anew meanwhile, or have delivered it
    let now = fs::metadata(path).ok().map(|found| found.ino());
    if now != Some(file.metadata()?.ino()) {
        return Ok(None);
    }
    let (head, away) = read(BufReader::new(&file), secret)?;
    let Head { host, share, .. } = head;
    Ok(Some(Left { path: path.to_owned(), host, share, away, _file: file }))
}

/// A journal of these chunks, whatever they hold: for tests of [`read`].
pub fn of_chunks<'a>(secret: &SecretKey, chunks: impl IntoIterator<Item = &'a [u8]>) -> Vec<u8> {
    let salt = [2; SALT_BYTES];
    let mut file = [MAGIC, &salt].concat();
    let mut sealed = Chunks::new(secret, &salt);
    chunks.into_iter().for_each(|chunk| sealed.seal(&mut file, &[chunk]));
    file
}

/// A note and its data, which goes on in `more`.
fn read_note(chunk: &[u8], mut more: impl FnMut() -> Option<Vec<u8>>) -> Option<(Note, Bytes)> {
    let (lengths, behind) = chunk.split_first_chunk::<8>()?;
    let [header, bytes] = [0, 4].map(|at| {
        let length = [lengths[at], lengths[at + 1], lengths[at + 2], lengths[at + 3]];
        u32::from_le_bytes(length) as usize
    });
    let (header, first) = behind.split_at_checked(header)?;
    let mut body = first.to_vec();
    while body.len() < bytes && bytes <= BODY_BYTES_MAX {
        body.extend(more()?);
    }
    let note = codec::decode(header).ok()?;
    (body.len() == bytes).then(|| (note, body.into()))
}

/// Reads a journal that was written with `secret`, as far as it is whole.
///
/// # Errors
///
/// Not even its head can be read: it is damaged, of another version, or of another key.
pub fn read(mut file: impl Read, secret: &SecretKey) -> io::Result<(Head, PutAway)> {
    let damaged = || io::Error::other("damaged, or written by another version");
    let mut start = [0; MAGIC.len() + SALT_BYTES];
    file.read_exact(&mut start)?;
    let salt = start.strip_prefix(MAGIC).ok_or_else(damaged)?;
    let mut chunks = Chunks::new(secret, salt);
    let head = chunks.open(&mut file).ok_or_else(damaged)?;
    let head: Head = codec::decode(&head).map_err(io::Error::other)?;
    let mut notes = Notes::default();
    while let Some(chunk) = chunks.open(&mut file) {
        let Some((note, body)) = read_note(&chunk, || chunks.open(&mut file)) else { break };
        notes.handle(note, body);
    }
    let (kept, entries) = notes.end();
    let numbers = kept.last.0.saturating_sub(kept.stable.0);
    if numbers.saturating_sub(entries.len() as u64) > NUMBERS_MAX {
        return Err(damaged());
    }
    let session = head.session;
    Ok((head, PutAway { session, kept, entries }))
}
