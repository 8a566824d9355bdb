//! What a running mount has accepted, so that the next mount with the key delivers it if this
//! process is killed.
//!
//! `STATE/journals/KEY-SESSION`: an [`Envelope`], a salt, and chunks that only the key in the
//! envelope opens: first whose it is, then each note of the session's log with its data. It is as
//! long as what is not on the host's disk, and some more; it is never synced, as it is there for
//! the end of a process. Its end may be missing: what was not written whole had not been accepted.
//! Who runs it holds a lock on it.

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
use p2pfs::identity::wrapping::{FileKey, NotWrapped, Subject, Wraps};
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
use crate::envelope::{self, Envelope, damaged};
use crate::sealed;

const MAGIC: &[u8] = b"p2pfs journal 2\n";
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
    share: String,
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
        let path = self.dir.join(format!("{}-{}", self.key, session.digits()));
        let (secret, host) = (self.secret.clone(), self.host);
        let (of, now, spare) = (None, None, None);
        Box::new(FileJournal { path, secret, host, session, of, now, spare })
    }
}

/// One session's.
struct FileJournal {
    path: PathBuf,
    secret: SecretKey,
    host: PeerId,
    session: SessionId,
    /// Since the host has granted something.
    of: Option<Of>,
    /// Since it has begun.
    now: Option<Writing>,
    /// The file before, to be written over.
    spare: Option<File>,
}

/// What a journal is of, and who can open it.
struct Of {
    share: String,
    identity: bool,
    envelope: Envelope,
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
    fn begin(mut file: File, envelope: &Envelope, head: &Head) -> io::Result<Self> {
        // what was in it cannot be read any more, as its salt is another
        file.rewind()?;
        let salt: [u8; SALT_BYTES] = daemon::random();
        let mut chunks = Chunks::new(envelope.key(), &salt);
        let mut buffer = Vec::with_capacity(2 * BUFFER_BYTES);
        buffer.extend(envelope.start(MAGIC));
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
        let of = self.of.as_ref().ok_or_else(|| io::Error::other("nobody could open it"))?;
        let file = self.spare.take().map_or_else(|| create(&unnamed), Ok)?;
        let (session, host, share) = (self.session, self.host, of.share.clone());
        let mut anew = Writing::begin(file, &of.envelope, &Head { session, host, share })?;
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
    fn granted(&mut self, share: &str, identity: bool) -> bool {
        if self.of.as_ref().is_some_and(|of| of.share == share && of.identity == identity) {
            return false;
        }
        let (session, share) = (self.session, share.to_owned());
        let subject = Subject { session, share: share.clone(), identity };
        let envelope = Envelope::new(&self.secret, self.host, &subject);
        self.of = envelope.ok().map(|envelope| Of { share, identity, envelope });
        true
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
        forget(&self.path);
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
    pub(crate) envelope: Envelope,
    pub(crate) host: PeerId,
    pub(crate) share: String,
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
}

/// Waits until nobody else looks for journals, and keeps others waiting as long as it is there.
/// `None`: there never was one.
pub(crate) fn lock(state: &Path) -> io::Result<Option<File>> {
    let dir = match File::open(folder(state)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        dir => dir?,
    };
    flock(&dir, FlockOperation::LockExclusive)?;
    Ok(Some(dir))
}

/// The journal of a key and a session.
pub(crate) fn path(state: &Path, name: &str) -> PathBuf {
    folder(state).join(name)
}

/// Nothing of a journal is needed any more.
pub(crate) fn forget(path: &Path) {
    // the one before, if it had one
    let _ = fs::remove_file(path.with_extension(UNNAMED));
    if let Err(error) = fs::remove_file(path)
        && error.kind() != io::ErrorKind::NotFound
    {
        let path = path.display();
        tracing::error!(%path, %error, "what has arrived stays in the journal");
    }
}

/// The journals of all keys, also of processes that run.
pub(crate) fn all(state: &Path) -> Vec<PathBuf> {
    sealed::all_in(&folder(state))
}

/// Locks a journal; false if the process runs that writes it. Whoever calls has the lock on all
/// journals: others take one that is locked for one in use.
fn is_ours(file: &File) -> io::Result<bool> {
    match flock(file, FlockOperation::NonBlockingLockExclusive) {
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(false),
        locked => Ok(locked.map(|()| true)?),
    }
}

/// How the key of a journal is wrapped; `None`: its process runs, or it is gone. Whoever calls has
/// the lock on all journals.
pub(crate) fn wraps(path: &Path) -> io::Result<Option<Wraps>> {
    let file = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        file => file?,
    };
    if !is_ours(&file)? {
        return Ok(None);
    }
    envelope::read(&mut BufReader::new(file), MAGIC).map(Some)
}

/// What is in a journal whose key `unwrap` finds; `None`: its process runs, or it is gone. Whoever
/// calls has the lock on all journals.
pub(crate) fn take(
    path: &Path,
    unwrap: impl FnOnce(&Wraps) -> Result<FileKey, NotWrapped>,
) -> io::Result<Option<Left>> {
    let file = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        file => file?,
    };
    if !is_ours(&file)? {
        return Ok(None);
    }
    // another may have begun anew meanwhile, or have delivered it
    let now = fs::metadata(path).ok().map(|found| found.ino());
    if now != Some(file.metadata()?.ino()) {
        return Ok(None);
    }
    let (envelope, head, away) = read(BufReader::new(&file), unwrap)?;
    let Head { host, share, .. } = head;
    Ok(Some(Left { envelope, host, share, away, _file: file }))
}

/// A journal of these chunks, whatever they hold: for tests of [`read`].
pub fn of_chunks<'a>(envelope: &Envelope, chunks: impl IntoIterator<Item = &'a [u8]>) -> Vec<u8> {
    let salt = [2; SALT_BYTES];
    let mut file = [envelope.start(MAGIC), salt.to_vec()].concat();
    let mut sealed = Chunks::new(envelope.key(), &salt);
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

/// Reads a journal whose key `unwrap` finds, as far as it is whole.
///
/// # Errors
///
/// Not even its head can be read: it is damaged, of another version, or of another key.
pub fn read(
    mut file: impl Read,
    unwrap: impl FnOnce(&Wraps) -> Result<FileKey, NotWrapped>,
) -> io::Result<(Envelope, Head, PutAway)> {
    let envelope = Envelope::open(envelope::read(&mut file, MAGIC)?, unwrap)?;
    let mut salt = [0; SALT_BYTES];
    file.read_exact(&mut salt)?;
    let mut chunks = Chunks::new(envelope.key(), &salt);
    let head = chunks.open(&mut file)?.ok_or_else(damaged)?;
    let head: Head = codec::decode(&head).map_err(|_| damaged())?;
    let mut notes = Notes::default();
    while let Some(chunk) = chunks.open(&mut file)? {
        let mut failed = Ok(());
        let more = || {
            chunks.open(&mut file).unwrap_or_else(|error| {
                failed = Err(error);
                None
            })
        };
        let note = read_note(&chunk, more);
        failed?;
        let Some((note, body)) = note else { break };
        notes.handle(note, body);
    }
    let (kept, entries) = notes.end();
    let numbers = kept.last.0.saturating_sub(kept.stable.0);
    if numbers.saturating_sub(entries.len() as u64) > NUMBERS_MAX {
        return Err(damaged());
    }
    let session = head.session;
    Ok((envelope, head, PutAway { session, kept, entries }))
}
