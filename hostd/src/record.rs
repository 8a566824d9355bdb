//! What this host remembers of its sessions when it is killed: a file for each.
//!
//! `sessions/` in the state directory. A process that is killed leaves every write that it made, so
//! the files are written and hardly ever synced: after a crash of the machine another epoch begins,
//! which only asks what was stable. That is synced where another session's data depends on it. What
//! is open is another matter (`opens`).

pub mod clients;
mod opens;

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use p2pfs::failure::{Code, Failure};
use p2pfs::id::{Epoch, Seq, SessionId};
use p2pfs::limits::{SESSION_RECORD, SESSIONS_MAX};
use p2pfs::net::daemon;
use p2pfs::proto::redo::execute::Seen;
use p2pfs::proto::redo::record::{self, Begun, Header, Recovered, Slot};
use p2pfs::proto::shares::Tally;
use p2pfs::wire::errno::Errno;
use p2pfs::wire::log::{Outcome, Refused};

use crate::export::Disk;
pub use opens::OpensRecord;

const DIR: &str = "sessions";
const EXTENSION: &str = "record";
const UNNAMED: &str = "unnamed";
/// Changes when the machine boots.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// All sessions' records, and the epochs of the disks.
#[derive(Debug)]
pub struct Records {
    dir: PathBuf,
    boot: u128,
    /// How often each disk failed to take data.
    failures: Mutex<BTreeMap<Disk, u64>>,
    /// The sessions that are served now, and by how many views: their records stay.
    live: Mutex<Tally<SessionId>>,
}

/// One session's record.
#[derive(Debug)]
pub struct Record {
    records: Arc<Records>,
    session: SessionId,
    disk: Disk,
    /// As soon as the session has begun or gone on, until it ends.
    kept: Mutex<Option<Kept>>,
    /// Whether the session is over. Held while the record begins or ends.
    ended: Mutex<bool>,
}

/// A record as one entry finds it when it begins: what comes of it is not of an epoch that has
/// begun meanwhile.
#[derive(Debug)]
pub struct Writer(Option<Kept>);

#[derive(Clone, Debug)]
struct Kept {
    file: Arc<File>,
    header: Header,
    /// A sync of it has failed: the kernel does not say so again.
    damaged: bool,
    /// Its name is on the disk.
    is_named: bool,
}

impl Kept {
    fn new(file: File, header: Header) -> Self {
        Self { file: Arc::new(file), header, damaged: false, is_named: false }
    }

    fn write_header(&self) -> io::Result<()> {
        self.file.write_all_at(&record::encode_header(&self.header), 0)
    }
}

impl Records {
    /// The records in a state directory. Those that nobody has used for long are removed.
    ///
    /// # Errors
    ///
    /// The directory cannot be made or read.
    pub fn open(state: &Path) -> Result<Arc<Self>, Failure> {
        let dir = state.join(DIR);
        let opened = (|| {
            DirBuilder::new().recursive(true).mode(0o700).create(&dir)?;
            let (failures, live) = (Mutex::default(), Mutex::default());
            let records = Self { boot: boot()?, dir: dir.clone(), failures, live };
            records.remove_unnamed()?;
            records.sweep()?;
            Ok(records)
        })();
        opened.map(Arc::new).map_err(|error: io::Error| {
            Failure::new(
                Code::Internal,
                format!("cannot keep records in {}: {error}", dir.display()),
                "check the owner of the state directory and the space on its disk",
            )
        })
    }

    /// The record of a session with a share on `disk`; nothing is read or written yet.
    pub fn of(self: &Arc<Self>, session: SessionId, disk: Disk) -> Record {
        let (kept, ended) = (Mutex::default(), Mutex::new(false));
        Record { records: Arc::clone(self), session, disk, kept, ended }
    }

    /// What was not named yet when a run was killed.
    fn remove_unnamed(&self) -> io::Result<()> {
        let mut files = self.files()?;
        files.retain(|(_, path)| ends(path, UNNAMED));
        files.into_iter().try_for_each(|(_, path)| fs::remove_file(path))
    }

    /// Removes the records of sessions that nobody has used for long.
    ///
    /// # Errors
    ///
    /// What the system says.
    pub fn sweep(&self) -> io::Result<()> {
        let mut files = self.files()?;
        files.retain(|(used, path)| {
            let unused = SystemTime::now().duration_since(*used).unwrap_or_default();
            let all = [EXTENSION, opens::EXTENSION, clients::EXTENSION];
            let is_record = all.iter().any(|extension| ends(path, extension));
            is_record && unused > SESSION_RECORD && !self.is_used(path)
        });
        files.into_iter().try_for_each(|(_, path)| fs::remove_file(path))
    }

    /// A session is served, and its records stay, until [`Self::detach`].
    pub fn attach(&self, session: SessionId) {
        lock(&self.live).add(session);
    }

    /// One view less serves a session.
    pub fn detach(&self, session: SessionId) {
        lock(&self.live).take_back(&session);
    }

    pub(crate) fn is_live(&self, session: SessionId) -> bool {
        lock(&self.live).of(&session) > 0
    }

    fn is_used(&self, path: &Path) -> bool {
        let live = lock(&self.live);
        live.holders().any(|session| path.file_stem().is_some_and(|is| is == &*session.digits()))
    }

    /// Makes room for one more: of those that nobody uses now the one goes that was not used for
    /// longest.
    fn make_room(&self, extension: &str) -> io::Result<()> {
        let mut files = self.files()?;
        files.retain(|(_, path)| ends(path, extension));
        let used = files.len();
        files.retain(|(_, path)| !self.is_used(path));
        let used = used - files.len();
        files.sort();
        let many = (used + files.len() + 1).saturating_sub(SESSIONS_MAX).min(files.len());
        files.drain(..many).try_for_each(|(_, path)| fs::remove_file(path))
    }

    /// What is there, and when it was used last.
    fn files(&self) -> io::Result<Vec<(SystemTime, PathBuf)>> {
        let mut files = Vec::new();
        for entry in fs::read_dir(&self.dir)? {
            let entry = entry?;
            files.push((entry.metadata()?.modified()?, entry.path()));
        }
        Ok(files)
    }

    fn epoch(&self, disk: Disk) -> Epoch {
        let mut failures = lock(&self.failures);
        let failures = *failures.entry(disk).or_insert_with(|| self.count(disk));
        // The boot's id is random, so these two cannot make one epoch into another
        let disk = u128::from(disk.sequence) << 64 | u128::from(failures);
        Epoch((self.boot ^ disk).to_be_bytes())
    }

    fn handle_failure(&self, disk: Disk) {
        let mut failures = lock(&self.failures);
        let count = failures.entry(disk).or_insert_with(|| self.count(disk));
        *count += 1;
        let written = daemon::write_private(&self.counter(disk), count.to_string().as_bytes());
        if let Err(error) = written {
            tracing::warn!(%error, "a failure of the disk could not be noted");
        }
    }

    fn count(&self, disk: Disk) -> u64 {
        let text = fs::read_to_string(self.counter(disk)).unwrap_or_default();
        text.trim().parse().unwrap_or_default()
    }

    fn counter(&self, disk: Disk) -> PathBuf {
        self.dir.join(format!("{:x}-{:x}.failures", disk.fsid, disk.inode))
    }
}

impl Record {
    /// The epoch of the session's disk.
    pub fn epoch(&self) -> Epoch {
        self.records.epoch(self.disk)
    }

    /// The disk failed to take data: another epoch begins, for all sessions with it.
    pub fn handle_disk_failed(&self) {
        self.records.handle_failure(self.disk);
    }

    /// What a killed run has recorded; if it did so in this epoch it is written on from here.
    pub fn recover(&self) -> Option<Recovered> {
        let path = self.path();
        let bytes = fs::read(&path).ok()?;
        let recovered = record::recover(&bytes)
            .inspect_err(|error| tracing::warn!(%error, "a session's record is of no use"))
            .ok()?;
        let header = recovered.header;
        if header.session != self.session {
            return None;
        }
        if header.epoch == self.epoch() {
            let file = OpenOptions::new().write(true).open(&path).ok()?;
            *lock(&self.kept) = Some(Kept::new(file, header));
            return Some(recovered);
        }
        let same_disk = (header.fsid, header.inode) == (self.disk.fsid, self.disk.inode);
        same_disk.then_some(recovered)
    }

    /// Begins anew, with entries that were done before.
    ///
    /// # Errors
    ///
    /// What the system says; then no record is kept.
    pub fn begin(&self, begun: Begun, done: &[(Seq, Slot)]) -> Result<(), Errno> {
        let ended = lock(&self.ended);
        *lock(&self.kept) = None;
        if *ended {
            return Ok(());
        }
        let path = self.path();
        let Begun { epoch, first, stable, outlives } = begun;
        let (session, Disk { fsid, inode, .. }) = (self.session, self.disk);
        let header = Header { session, epoch, first, stable, fsid, inode };
        let begin = || {
            if !path.exists() {
                self.records.make_room(EXTENSION)?;
            }
            let unnamed = path.with_extension(UNNAMED);
            let mut options = OpenOptions::new();
            options.write(true).create(true).truncate(true).mode(0o600);
            let file = options.open(&unnamed)?;
            file.write_all_at(&record::encode_header(&header), 0)?;
            for (seq, slot) in done {
                let piece = record::encode_slot(epoch, *seq, slot);
                file.write_all_at(&piece.bytes, piece.offset)?;
            }
            if outlives {
                file.sync_data()?;
            }
            fs::rename(&unnamed, &path)?;
            Ok(file)
        };
        let file: io::Result<File> = begin();
        *lock(&self.kept) = Some(Kept::new(file.map_err(Errno::from)?, header));
        Ok(())
    }

    /// What it says of stable entries outlives a crash of the machine from now on.
    ///
    /// # Errors
    ///
    /// What the system says, also of an earlier time; EIO if there is no record.
    pub fn keep(&self) -> Result<(), Errno> {
        if *lock(&self.ended) {
            return Ok(());
        }
        let kept = {
            let kept = lock(&self.kept);
            let kept = kept.as_ref().filter(|kept| !kept.damaged).ok_or(Errno::EIO)?;
            // once more, as it may not have been taken before
            kept.write_header()?;
            kept.clone()
        };
        let keep = || {
            kept.file.sync_data()?;
            match kept.is_named {
                true => Ok(()),
                false => File::open(&self.records.dir)?.sync_all(),
            }
        };
        let done: io::Result<()> = keep();
        if let Some(now) = &mut *lock(&self.kept)
            && Arc::ptr_eq(&now.file, &kept.file)
        {
            now.damaged |= done.is_err();
            now.is_named |= done.is_ok();
        }
        done.map_err(Errno::from)
    }

    /// The session is over: nobody comes back for its results.
    pub fn end(&self) {
        let mut ended = lock(&self.ended);
        *ended = true;
        *lock(&self.kept) = None;
        // Read-only sessions have none
        let _ = fs::remove_file(self.path());
        let _ = fs::remove_file(self.path().with_extension(clients::EXTENSION));
    }

    /// All entries up to `upto` are on the disk.
    pub fn note_stable(&self, upto: Seq) {
        let mut kept = lock(&self.kept);
        if let Some(kept) = &mut *kept {
            kept.header.stable = upto;
            if let Err(error) = kept.write_header() {
                // The entries before it count as not stable: they are sent again in vain
                tracing::warn!(%error, "a session's record could not be written");
            }
        }
    }

    /// For what is said of one entry, which began in an epoch.
    pub fn writer(&self, epoch: Epoch) -> Writer {
        Writer(lock(&self.kept).clone().filter(|kept| kept.header.epoch == epoch))
    }

    fn path(&self) -> PathBuf {
        self.records.dir.join(self.session.digits()).with_extension(EXTENSION)
    }
}

impl Writer {
    /// An entry is about to be carried out.
    ///
    /// # Errors
    ///
    /// What the system says.
    pub fn intent(&self, seq: Seq, seen: &Seen) -> Result<(), Errno> {
        self.write(seq, &Slot::Intent(*seen)).map_err(Errno::from)
    }

    /// An entry was carried out or refused.
    pub fn done(&self, seq: Seq, result: &Result<Outcome, Refused>, poisons: bool) {
        if let Err(error) = self.write(seq, &Slot::Done { result: *result, poisons }) {
            // The intent stays, which is as if the host had been killed here
            tracing::warn!(%error, "a session's record could not be written");
        }
    }

    fn write(&self, seq: Seq, slot: &Slot) -> io::Result<()> {
        let Some(Kept { file, header, .. }) = &self.0 else { return Ok(()) };
        let piece = record::encode_slot(header.epoch, seq, slot);
        file.write_all_at(&piece.bytes, piece.offset)
    }
}

fn ends(path: &Path, extension: &str) -> bool {
    path.extension().is_some_and(|is| is == extension)
}

/// This boot of the machine.
fn boot() -> io::Result<u128> {
    let text = fs::read_to_string(BOOT_ID)?;
    let digits: String = text.trim().chars().filter(|c| *c != '-').collect();
    u128::from_str_radix(&digits, 16).map_err(|_| io::ErrorKind::InvalidData.into())
}

/// Every guarded value here is whole between any two statements.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::time::Duration;

    use super::*;

    pub(super) const SESSION: SessionId = SessionId([0xab; 16]);
    pub(super) const DISK: Disk = Disk { fsid: 1, inode: 2, sequence: 3 };

    #[test]
    fn a_restarted_host_knows_what_was_begun_and_done() {
        let state = tempfile::tempdir().unwrap();
        let record = begun(state.path(), SESSION);
        let seen = Seen { size: Some(7), ..Seen::default() };
        record.writer(record.epoch()).intent(Seq(1), &seen).unwrap();
        record.writer(record.epoch()).intent(Seq(2), &seen).unwrap();
        record.writer(record.epoch()).done(Seq(2), &Err(Refused::by_system(Errno::ENOSPC)), true);
        drop(record);
        let again = of(state.path(), SESSION);
        let recovered = again.recover().unwrap();
        assert_eq!(recovered.intents.get(&Seq(1)), Some(&seen));
        assert!(matches!(recovered.done[&Seq(2)], (Err(refused), true)
            if refused.errno == Errno::ENOSPC));
        // It goes on
        again.writer(again.epoch()).done(Seq(1), &Ok(Outcome::Done), false);
        again.note_stable(Seq(1));
        let recovered = of(state.path(), SESSION).recover().unwrap();
        assert!(recovered.intents.is_empty());
        assert_eq!(recovered.header.stable, Seq(1));
        let files: Vec<_> = fs::read_dir(state.path().join(DIR)).unwrap().collect();
        let mode = files[0].as_ref().unwrap().metadata().unwrap().permissions().mode();
        assert_eq!((files.len(), mode & 0o777), (1, 0o600));
    }

    #[test]
    fn another_epoch_recovers_what_was_stable_on_the_same_disk() {
        let state = tempfile::tempdir().unwrap();
        let record = begun(state.path(), SESSION);
        let done = Ok(Outcome::Done);
        record.writer(record.epoch()).done(Seq(1), &done, false);
        record.note_stable(Seq(1));
        record.keep().unwrap();
        record.handle_disk_failed();
        let outlived = of(state.path(), SESSION).recover().unwrap();
        assert_ne!(outlived.header.epoch, record.epoch());
        assert_eq!((outlived.header.stable, outlived.done.len()), (Seq(1), 1));
        let (epoch, slot) = (record.epoch(), Slot::Done { result: done, poisons: false });
        let again = of(state.path(), SESSION);
        // nothing is written on in an epoch that has ended
        again.writer(again.epoch()).done(Seq(2), &done, false);
        assert_eq!(again.recover().unwrap(), outlived);
        again
            .begin(
                Begun { epoch, first: Seq(1), stable: Seq(1), outlives: true },
                &[(Seq(1), slot)],
            )
            .unwrap();
        let recovered = of(state.path(), SESSION).recover().unwrap();
        assert_eq!((recovered.header.epoch, &recovered.done), (epoch, &outlived.done));
    }

    #[test]
    fn what_began_before_the_disk_failed_is_not_done_in_the_epoch_after_it() {
        let state = tempfile::tempdir().unwrap();
        let record = begun(state.path(), SESSION);
        let ended = record.epoch();
        let before = record.writer(ended);
        record.handle_disk_failed();
        let begun = |epoch| Begun { epoch, first: Seq(1), stable: Seq::ZERO, outlives: true };
        record.begin(begun(record.epoch()), &[]).unwrap();
        before.done(Seq(1), &Ok(Outcome::Done), false);
        record.writer(ended).done(Seq(1), &Ok(Outcome::Done), false);
        record.writer(record.epoch()).done(Seq(2), &Ok(Outcome::Done), false);
        let recovered = of(state.path(), SESSION).recover().unwrap();
        assert_eq!(recovered.done.keys().collect::<Vec<_>>(), [&Seq(2)]);
        // nor does a session that is over get a record again
        record.end();
        record.begin(begun(record.epoch()), &[]).unwrap();
        assert!(of(state.path(), SESSION).recover().is_none());
        record.keep().unwrap();
        // and one that has none is not said to have one on the disk
        of(state.path(), SESSION).keep().unwrap_err();
    }

    #[test]
    fn another_session_and_another_disk_recover_nothing() {
        let state = tempfile::tempdir().unwrap();
        let record = begun(state.path(), SESSION);
        assert!(of(state.path(), SessionId([1; 16])).recover().is_none());
        let records = Records::open(state.path()).unwrap();
        let elsewhere = Disk { sequence: 4, inode: 9, ..DISK };
        assert!(records.of(SESSION, elsewhere).recover().is_none());
        let before = record.epoch();
        record.handle_disk_failed();
        assert_ne!(record.epoch(), before);
        let restarted = of(state.path(), SESSION);
        assert_eq!(restarted.epoch(), record.epoch());
        assert_eq!(records.of(SESSION, Disk { inode: 9, ..DISK }).epoch(), before);
    }

    #[test]
    fn what_is_no_record_is_nothing() {
        let state = tempfile::tempdir().unwrap();
        let record = begun(state.path(), SESSION);
        fs::write(record.path(), "nonsense").unwrap();
        assert!(record.recover().is_none());
        record.writer(record.epoch()).intent(Seq(1), &Seen::default()).unwrap();
    }

    #[test]
    fn old_records_go_and_the_oldest_makes_room() {
        let state = tempfile::tempdir().unwrap();
        let records = Records::open(state.path()).unwrap();
        let age = |id: u8, age: Duration| {
            let path = records.of(SessionId([id; 16]), DISK).path();
            let file = OpenOptions::new().write(true).open(path).unwrap();
            file.set_modified(SystemTime::now() - age).unwrap();
        };
        let sessions = || {
            let id = |id: u8| records.of(SessionId([id; 16]), DISK).path().exists();
            (0..=u8::MAX).filter(|at| id(*at)).collect::<Vec<_>>()
        };
        for id in 0..=u8::MAX {
            begun(state.path(), SessionId([id; 16]));
        }
        assert_eq!(sessions().len(), SESSIONS_MAX);
        age(77, SESSION_RECORD / 2);
        let mut another = SessionId([0; 16]);
        another.0[0] = 1;
        begun(state.path(), another);
        assert!(!sessions().contains(&77));
        assert_eq!(sessions().len(), SESSIONS_MAX - 1);
        age(78, SESSION_RECORD + Duration::from_secs(60));
        fs::write(state.path().join(DIR).join("begun.unnamed"), "").unwrap();
        Records::open(state.path()).unwrap();
        assert!(!sessions().contains(&78));
        assert_eq!(fs::read_dir(state.path().join(DIR)).unwrap().count(), SESSIONS_MAX - 1);
    }

    #[test]
    fn what_is_served_keeps_its_record_however_old_it_is() {
        let state = tempfile::tempdir().unwrap();
        let records = Records::open(state.path()).unwrap();
        let old = SystemTime::now() - SESSION_RECORD - Duration::from_secs(60);
        let all = [SESSION, SessionId([1; 16])];
        let begin = |session| {
            let record = records.of(session, DISK);
            let epoch = record.epoch();
            record
                .begin(Begun { epoch, first: Seq(1), stable: Seq::ZERO, outlives: false }, &[])
                .unwrap();
        };
        for session in all {
            begin(session);
            let path = records.of(session, DISK).path();
            OpenOptions::new().write(true).open(path).unwrap().set_modified(old).unwrap();
        }
        let is_there = |session| records.of(session, DISK).path().exists();
        all.iter().for_each(|session| records.attach(*session));
        // a second view of the same session comes and goes
        records.attach(SESSION);
        records.detach(SESSION);
        records.sweep().unwrap();
        assert_eq!(all.map(is_there), [true, true]);
        records.detach(all[1]);
        records.sweep().unwrap();
        assert_eq!(all.map(is_there), [true, false]);
        // nor does it make room
        for id in 2..=u8::MAX {
            begin(SessionId([id; 16]));
        }
        records.make_room(EXTENSION).unwrap();
        records.make_room(EXTENSION).unwrap();
        assert!(is_there(SESSION));
    }

    fn of(state: &Path, session: SessionId) -> Record {
        Records::open(state).unwrap().of(session, DISK)
    }

    fn begun(state: &Path, session: SessionId) -> Record {
        let record = of(state, session);
        let epoch = record.epoch();
        record
            .begin(Begun { epoch, first: Seq(1), stable: Seq::ZERO, outlives: false }, &[])
            .unwrap();
        record
    }
}
