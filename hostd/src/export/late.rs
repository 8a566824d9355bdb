//! What is closed when nobody waits for it any more.
//!
//! Whoever closes the last descriptor of a removed file frees its blocks: on a disk that is told of
//! each (`discard`) that takes longer than the whole removal. So it is done behind the answer.

use std::os::fd::OwnedFd;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

/// Descriptors that wait at once; beyond it whoever removes closes his own.
const WAITING_MAX: usize = 64;
/// How long they gather.
const GATHER: Duration = Duration::from_millis(2);

#[derive(Debug, Default)]
pub(super) struct Late {
    waiting: Mutex<Waiting>,
}

#[derive(Debug, Default)]
struct Waiting {
    descriptors: Vec<OwnedFd>,
    /// Somebody closes them.
    attended: bool,
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
            let descriptors = {
                let mut waiting = self.lock();
                waiting.attended = !waiting.descriptors.is_empty();
                if !waiting.attended {
                    return;
                }
                std::mem::take(&mut waiting.descriptors)
            };
            drop(descriptors);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        // Whole between any two statements
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
