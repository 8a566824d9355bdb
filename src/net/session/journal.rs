//! Where a session keeps what happens to its log, so that another process goes on with it if this
//! one is killed.

use std::fmt;
use std::io;
use std::time::{Duration, Instant};

use bytes::Bytes;

use crate::id::SessionId;
use crate::proto::redo::log::{Log, Note};

/// How long to wait before a journal that could not be written is tried again.
const RETRY: Duration = Duration::from_secs(1);

/// Makes the journals of sessions.
pub trait Journals: Send + Sync + fmt::Debug {
    /// One for a session; [`Journal::begin`] comes first.
    fn open(&self, session: SessionId) -> Box<dyn Journal>;
}

/// The journal of one session. What was flushed outlives the process.
pub trait Journal: Send + fmt::Debug {
    /// The share that the session has, and whether changes name who made them; true if that is
    /// news, which takes [`Self::begin`].
    fn granted(&mut self, share: &str, identity: bool) -> bool;

    /// Adds a note and its data.
    ///
    /// # Errors
    ///
    /// What the system says; then it is of no use until it begins anew.
    fn note(&mut self, note: &Note, body: &[u8]) -> io::Result<()>;

    /// Returns when everything is there that somebody may count on.
    ///
    /// # Errors
    ///
    /// As for [`Self::note`].
    fn flush(&mut self) -> io::Result<()>;

    /// Whether it should begin anew, with so many entries and bytes of data.
    fn is_long(&self, needed: (usize, usize)) -> bool;

    /// Forgets what was noted, and begins with these.
    ///
    /// # Errors
    ///
    /// As for [`Self::note`].
    fn begin(&mut self, notes: Vec<(Note, Bytes)>) -> io::Result<()>;

    /// Nothing of it is needed any more.
    fn forget(&mut self);
}

/// A session's journal, and whether it can be written.
#[derive(Debug)]
pub(super) struct Noted {
    journal: Box<dyn Journal>,
    /// What was accepted last is not in it.
    broken: bool,
    /// It could not begin anew: not to be tried before.
    not_before: Option<Instant>,
}

impl Noted {
    pub(super) fn new(journal: Box<dyn Journal>, log: &mut Log<Bytes>) -> Self {
        log.begin_notes();
        // nothing is accepted before the host has granted something
        Self { journal, broken: false, not_before: None }
    }

    /// Whether what is accepted is in it.
    pub(super) fn is_kept(&self) -> bool {
        !self.broken
    }

    pub(super) fn granted(&mut self, share: &str, identity: bool, log: &Log<Bytes>) {
        if self.journal.granted(share, identity) {
            // until it has
            self.broken = true;
            self.begin(log);
        }
    }

    pub(super) fn note(&mut self, note: &Note, body: &[u8]) {
        if !self.broken {
            let noted = self.journal.note(note, body);
            self.check(noted);
        }
    }

    pub(super) fn flush(&mut self) {
        if !self.broken {
            let flushed = self.journal.flush();
            self.check(flushed);
        }
    }

    /// Begins anew where that is due.
    pub(super) fn tidy(&mut self, log: &Log<Bytes>) {
        let is_due = self.broken || self.journal.is_long(log.unstable());
        if is_due && self.not_before.is_none_or(|at| at <= Instant::now()) {
            self.begin(log);
        }
    }

    pub(super) fn forget(&mut self) {
        self.journal.forget();
    }

    fn check(&mut self, done: io::Result<()>) {
        if let Err(error) = done {
            tracing::debug!(%error, "the journal must begin anew");
            self.broken = true;
        }
    }

    fn begin(&mut self, log: &Log<Bytes>) {
        match self.journal.begin(log.notes_anew()) {
            Ok(()) => {
                if self.not_before.take().is_some() && self.broken {
                    tracing::info!("what is accepted is kept in the journal again");
                }
                self.broken = false;
            }
            Err(error) => {
                if self.broken {
                    // what is in it would be delivered without what came after
                    self.journal.forget();
                    if self.not_before.is_none() {
                        tracing::warn!(%error, "no journal: writes wait for the host meanwhile");
                    }
                }
                self.not_before = Some(Instant::now() + RETRY);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Debug, Default)]
    struct Disk {
        is_full: bool,
        is_long: bool,
        begun: usize,
        forgotten: usize,
    }

    #[derive(Debug)]
    struct OnDisk(Arc<Mutex<Disk>>);

    impl OnDisk {
        fn take(&self) -> io::Result<()> {
            match self.0.lock().unwrap().is_full {
                true => Err(io::ErrorKind::StorageFull.into()),
                false => Ok(()),
            }
        }
    }

    impl Journal for OnDisk {
        fn granted(&mut self, _: &str, _: bool) -> bool {
            true
        }

        fn note(&mut self, _: &Note, _: &[u8]) -> io::Result<()> {
            self.take()
        }

        fn flush(&mut self) -> io::Result<()> {
            self.take()
        }

        fn is_long(&self, _: (usize, usize)) -> bool {
            self.0.lock().unwrap().is_long
        }

        fn begin(&mut self, _: Vec<(Note, Bytes)>) -> io::Result<()> {
            self.take()?;
            self.0.lock().unwrap().begun += 1;
            Ok(())
        }

        fn forget(&mut self) {
            self.0.lock().unwrap().forgotten += 1;
        }
    }

    #[test]
    fn a_journal_is_given_up_only_where_it_lacks_something_and_cannot_begin_anew() {
        let disk = Arc::new(Mutex::new(Disk::default()));
        let mut log = Log::new();
        let mut noted = Noted::new(Box::new(OnDisk(Arc::clone(&disk))), &mut log);
        noted.granted("disk", false, &log);
        let tidy = |noted: &mut Noted, is_full, is_long| {
            let mut now = disk.lock().unwrap();
            (now.is_full, now.is_long) = (is_full, is_long);
            drop(now);
            noted.tidy(&log);
            let now = disk.lock().unwrap();
            (noted.is_kept(), now.begun, now.forgotten)
        };
        assert_eq!(tidy(&mut noted, false, false), (true, 1, 0));
        assert_eq!(tidy(&mut noted, true, true), (true, 1, 0), "it is whole");
        noted.note(&Note::Stable { upto: crate::id::Seq(1) }, b"");
        assert_eq!(tidy(&mut noted, false, false), (false, 1, 0), "not at once");
        noted.not_before = None;
        assert_eq!(tidy(&mut noted, true, false), (false, 1, 1));
        noted.not_before = None;
        assert_eq!(tidy(&mut noted, false, false), (true, 2, 1));
    }
}
