//! What sessions have open: a file for each, beside its record, which outlives a boot too.
//!
//! Written with every open and close, and synced before a node depends on it: one that is kept only
//! because somebody has it open.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use p2pfs::id::{HandleId, NodeId, SessionId};
use p2pfs::proto::redo::opens::record::{self, HEADER_BYTES, Header, LINE_BYTES, Line, Recovered};
use p2pfs::wire::call::Access;

use super::{Records, UNNAMED};
use crate::export::Disk;

pub(super) const EXTENSION: &str = "opens";
/// Lines after which a file is written anew, if most of them say nothing any more. That waits for
/// the disk, so it is seldom: with 1.3 MB.
const LINES_MIN: u64 = 1 << 15;

/// One session's file.
#[derive(Debug)]
pub struct OpensRecord {
    path: PathBuf,
    file: File,
    header: Header,
    /// Where the next line goes, bytes.
    end: u64,
    /// With more, it is written anew.
    lines_max: u64,
    locks: bool,
}

impl Records {
    /// Begins, or goes on with, what a session has open.
    ///
    /// # Errors
    ///
    /// What the system says.
    pub fn opens_of(&self, session: SessionId, disk: Disk) -> io::Result<OpensRecord> {
        let path = self.opens_path(session);
        let header = Header { session, fsid: disk.fsid, inode: disk.inode };
        if let Some(recovered) = read(&path).filter(|found| found.header == header) {
            let file = OpenOptions::new().write(true).open(&path)?;
            file.set_modified(SystemTime::now())?;
            let lines = file.metadata()?.len().saturating_sub(HEADER_BYTES as u64);
            let end = HEADER_BYTES as u64 + lines.div_ceil(LINE_BYTES as u64) * LINE_BYTES as u64;
            return Ok(OpensRecord {
                path,
                file,
                header,
                end,
                lines_max: LINES_MIN,
                locks: recovered.locks,
            });
        }
        self.make_room(EXTENSION)?;
        let (file, end) = write_anew(&path, &header, [].into_iter())?;
        Ok(OpensRecord { path, file, header, end, lines_max: LINES_MIN, locks: false })
    }

    /// What all sessions had open on a disk when a run ended.
    pub fn all_opens(&self, disk: Disk) -> Vec<Recovered> {
        let files = self.files().inspect_err(|error| {
            tracing::warn!(%error, "what was open cannot be read");
        });
        let of_disk =
            |found: &Recovered| found.header.fsid == disk.fsid && found.header.inode == disk.inode;
        let paths = files.unwrap_or_default().into_iter().map(|(_, path)| path);
        let paths = paths.filter(|path| path.extension().is_some_and(|is| is == EXTENSION));
        paths.filter_map(|path| read(&path)).filter(of_disk).collect()
    }

    /// A session is over: nobody comes back to what it had open.
    pub fn forget_opens(&self, session: SessionId) {
        match fs::remove_file(self.opens_path(session)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(%error, "what a session had open stays on record");
            }
            _ => {}
        }
    }

    /// Whether there is a record of what a session has open.
    pub(crate) fn has_opens(&self, session: SessionId) -> bool {
        self.opens_path(session).exists()
    }

    fn opens_path(&self, session: SessionId) -> PathBuf {
        self.dir.join(session.digits()).with_extension(EXTENSION)
    }
}

impl OpensRecord {
    /// A node was opened.
    ///
    /// # Errors
    ///
    /// What the system says; then the open must not be told.
    pub fn opened(&mut self, handle: HandleId, node: NodeId, access: Access) -> io::Result<()> {
        self.write(&Line::Opened { handle, node, access })
    }

    /// A handle was closed; what is still open goes into a new file when the old one is long.
    pub fn closed(
        &mut self,
        handle: HandleId,
        left: impl FnOnce() -> Vec<(HandleId, NodeId, Access)>,
    ) {
        let lines = (self.end - HEADER_BYTES as u64) / LINE_BYTES as u64;
        let written = if lines < self.lines_max {
            self.write(&Line::Closed(handle))
        } else {
            self.write_anew(left())
        };
        if let Err(error) = written {
            // It counts as open until the session is over
            tracing::warn!(%error, "a close could not be recorded");
        }
    }

    /// Whether the session has locks: then a restarted host waits for it before it locks for
    /// others.
    pub fn note_locks(&mut self, any: bool) {
        if any == self.locks {
            return;
        }
        self.locks = any;
        if let Err(error) = self.write(&Line::Locks(any)) {
            tracing::warn!(%error, "locks could not be recorded");
        }
    }

    /// Puts it on the disk.
    ///
    /// # Errors
    ///
    /// What the system says.
    pub fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn write_anew(&mut self, left: Vec<(HandleId, NodeId, Access)>) -> io::Result<()> {
        self.lines_max = LINES_MIN + 2 * left.len() as u64;
        let opened =
            left.into_iter().map(|(handle, node, access)| Line::Opened { handle, node, access });
        let lines = opened.chain([Line::Locks(self.locks)]);
        (self.file, self.end) = write_anew(&self.path, &self.header, lines)?;
        Ok(())
    }

    fn write(&mut self, line: &Line) -> io::Result<()> {
        self.file.write_all_at(&record::encode_line(line), self.end)?;
        self.end += LINE_BYTES as u64;
        Ok(())
    }
}

fn read(path: &Path) -> Option<Recovered> {
    let bytes = fs::read(path).ok()?;
    record::recover(&bytes)
        .inspect_err(|error| tracing::warn!(%error, "a record of open files is of no use"))
        .ok()
}

fn write_anew(
    path: &Path,
    header: &Header,
    lines: impl Iterator<Item = Line>,
) -> io::Result<(File, u64)> {
    let mut bytes = record::encode_header(header);
    lines.for_each(|line| bytes.extend(record::encode_line(&line)));
    let unnamed = path.with_extension(UNNAMED);
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(true).mode(0o600);
    let file = options.open(&unnamed)?;
    file.write_all_at(&bytes, 0)?;
    // What others depend on was on the disk before
    file.sync_data()?;
    fs::rename(&unnamed, path)?;
    Ok((file, bytes.len() as u64))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SESSION: SessionId = SessionId([0xcd; 16]);
    const DISK: Disk = Disk { fsid: 1, inode: 2, sequence: 3 };
    const NODE: NodeId = NodeId { ino: 5, generation: 6 };

    #[test]
    fn what_is_open_outlives_a_run_and_a_boot() {
        let state = tempfile::tempdir().unwrap();
        let records = Records::open(state.path()).unwrap();
        let mut opens = records.opens_of(SESSION, DISK).unwrap();
        opens.opened(HandleId(1), NODE, Access::Read).unwrap();
        opens.opened(HandleId(2), NODE, Access::ReadWrite).unwrap();
        opens.closed(HandleId(1), Vec::new);
        opens.note_locks(true);
        drop(opens);
        let rebooted = Disk { sequence: 4, ..DISK };
        let records = Records::open(state.path()).unwrap();
        let found = records.all_opens(rebooted);
        assert_eq!(found.len(), 1);
        assert!(found[0].locks);
        let open = (&HandleId(2), &(NODE, Access::ReadWrite));
        assert_eq!(found[0].opens.iter().collect::<Vec<_>>(), [open]);
        assert!(records.all_opens(Disk { inode: 9, ..DISK }).is_empty());
        // it goes on behind a line that was cut short
        let path = records.opens_path(SESSION);
        let file = OpenOptions::new().append(true).open(&path).unwrap();
        file.write_all_at(b"cut", file.metadata().unwrap().len()).unwrap();
        let mut opens = records.opens_of(SESSION, rebooted).unwrap();
        opens.opened(HandleId(3), NODE, Access::Write).unwrap();
        assert_eq!(records.all_opens(DISK)[0].opens.len(), 2);
        records.forget_opens(SESSION);
        assert!(records.all_opens(DISK).is_empty());
    }

    #[test]
    fn a_long_record_is_written_anew() {
        let state = tempfile::tempdir().unwrap();
        let records = Records::open(state.path()).unwrap();
        let mut opens = records.opens_of(SESSION, DISK).unwrap();
        opens.opened(HandleId(1), NODE, Access::Read).unwrap();
        let left = [(HandleId(1), NODE, Access::Read)];
        for handle in 2..LINES_MIN {
            opens.opened(HandleId(handle), NODE, Access::Read).unwrap();
            opens.closed(HandleId(handle), || left.to_vec());
        }
        let len = fs::metadata(records.opens_path(SESSION)).unwrap().len();
        assert!(len <= LINES_MIN * LINE_BYTES as u64 + HEADER_BYTES as u64, "{len}");
        assert_eq!(records.all_opens(DISK)[0].opens.len(), 1);
    }
}
