//! What is closed when nobody waits for it any more.
//!
//! Whoever closes the last descriptor of a removed file frees its blocks: on a disk that is told of
//! each (`discard`) that takes longer than the whole removal. So it is done behind the answer, as
//! long as nobody can miss the space.

use std::os::fd::OwnedFd;
use std::sync::{Mutex, MutexGuard, PoisonError, TryLockError};
use std::thread;
use std::time::Duration;

use p2pfs::wire::call::{Attr, StatFs};

/// Descriptors that wait at once; beyond it whoever removes closes his own.
const WAITING_MAX: usize = 64;
/// How long they gather.
const GATHER: Duration = Duration::from_millis(2);
/// The largest file that waits, bytes, and what is free at least then: more than all of them.
const FILE_BYTES_MAX: u64 = 16 << 20;
const FREE_BYTES_MIN: u64 = 4 << 30;
const FREE_INODES_MIN: u64 = 1 << 14;

#[derive(Debug, Default)]
pub(super) struct Late {
    waiting: Mutex<Waiting>,
    /// Held while descriptors are closed.
    closing: Mutex<()>,
}

#[derive(Debug, Default)]
struct Waiting {
    descriptors: Vec<OwnedFd>,
    /// Somebody closes them.
    attended: bool,
}

/// Whether the space of a removed file may be free a little later.
pub(super) fn may_wait(removed: &Attr, space: &StatFs) -> bool {
    let free = space.bavail.saturating_mul(space.frsize.into());
    // Some file systems do not count inodes
    let inodes = space.files == 0 || space.ffree >= FREE_INODES_MIN;
    removed.blocks.saturating_mul(512) <= FILE_BYTES_MAX && free >= FREE_BYTES_MIN && inodes
}

impl Late {
    pub(super) fn close(&self, descriptor: OwnedFd) {
        let mut waiting = self.lock();
        if waiting.descriptors.len() < WAITING_MAX {
            waiting.descriptors.push(descriptor);
        } else {
            drop(waiting);
            drop(descriptor);
        }
    }

    /// Whether [`Self::run`] is to be called: there is something, and nobody sees to it.
    pub(super) fn is_due(&self) -> bool {
        let mut waiting = self.lock();
        !waiting.descriptors.is_empty() && !std::mem::replace(&mut waiting.attended, true)
    }

    /// Closes what is there and what comes meanwhile, many at once: to wake a thread for each costs
    /// those who wait more than it saves. Waits for the disk.
    pub(super) fn run(&self) {
        loop {
            thread::sleep(GATHER);
            if !self.finish() {
                let mut waiting = self.lock();
                waiting.attended = !waiting.descriptors.is_empty();
                if !waiting.attended {
                    return;
                }
            }
        }
    }

    /// Closes what is there, now; whether there was anything, or somebody was at it.
    pub(super) fn finish(&self) -> bool {
        let (closing, was_closing) = match self.closing.try_lock() {
            Ok(closing) => (closing, false),
            Err(TryLockError::Poisoned(closing)) => (closing.into_inner(), false),
            Err(TryLockError::WouldBlock) => {
                (self.closing.lock().unwrap_or_else(PoisonError::into_inner), true)
            }
        };
        let descriptors = std::mem::take(&mut self.lock().descriptors);
        let any = was_closing || !descriptors.is_empty();
        drop(descriptors);
        drop(closing);
        any
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        // Whole between any two statements
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
