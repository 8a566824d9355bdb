//! Who asks: the process whose request is being answered, where the host acts as it
//! (`map=identity`).
//!
//! It goes along with the task that answers a request, not through the signature of everything that
//! happens on the way. What forgets to say who asks is done as nobody, who may do next to nothing.

use std::future::Future;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use p2pfs::id::Seq;
use p2pfs::limits::CALLER_GROUPS_MAX;
use p2pfs::wire::log::Caller;
use tokio::sync::Notify;

use crate::lock::lock;

/// The user and the group of nobody.
const NOBODY: u32 = 65_534;

tokio::task_local! {
    static ASKING: Asking;
    static WAIT: Arc<Wait>;
}

/// What the answer to one request waits for, so that the wait can be ended.
#[derive(Debug, Default)]
pub(crate) struct Wait {
    is_over: AtomicBool,
    over: Notify,
    entries: Mutex<Vec<Seq>>,
}

impl Wait {
    /// The request waits here while `work` answers it.
    pub(crate) fn scope<F: Future>(self: Arc<Self>, work: F) -> impl Future<Output = F::Output> {
        WAIT.scope(self, work)
    }

    /// Nobody waits any longer; tells which changes were made for the request.
    pub(crate) fn end(&self) -> Vec<Seq> {
        self.is_over.store(true, Ordering::SeqCst);
        self.over.notify_waiters();
        lock(&self.entries).clone()
    }
}

/// A change is made for the request of the moment. `false`: nobody waits for it any longer.
pub(crate) fn note(seq: Seq) -> bool {
    let noted = WAIT.try_with(|wait| {
        lock(&wait.entries).push(seq);
        !wait.is_over.load(Ordering::SeqCst)
    });
    noted.unwrap_or(true)
}

/// Resolves when nobody waits for the request of the moment any longer.
pub(crate) async fn wait_is_over() {
    let Ok(wait) = WAIT.try_with(Arc::clone) else { return std::future::pending().await };
    loop {
        let over = wait.over.notified();
        tokio::pin!(over);
        over.as_mut().enable();
        if wait.is_over.load(Ordering::SeqCst) {
            return;
        }
        over.await;
    }
}

/// A process that asks, as the kernel names it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Asking {
    /// Its user, for files.
    pub uid: u32,
    /// Its group, for files.
    pub gid: u32,
    /// The thread; 0 if it is in another PID namespace.
    pub pid: u32,
}

impl Asking {
    /// What `work` does is done for this process.
    pub(crate) fn scope<F: Future>(self, work: F) -> impl Future<Output = F::Output> {
        ASKING.scope(self, work)
    }

    /// With the other groups of the thread, which waits for its answer meanwhile. They are asked
    /// every time: a process changes them as it likes. One that has more than the host takes has
    /// the rights of the first ones.
    fn caller(self) -> Caller {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid));
        let groups = status.map(|status| groups(&status)).unwrap_or_default();
        Caller { uid: self.uid, gid: self.gid, groups }
    }
}

/// Who asks now.
pub(crate) fn current() -> Caller {
    let asking = ASKING.try_with(|asking| *asking);
    asking.map_or_else(|_| Caller { uid: NOBODY, gid: NOBODY, groups: Vec::new() }, Asking::caller)
}

/// The line `Groups:` of `/proc/PID/status`.
fn groups(status: &str) -> Vec<u32> {
    let line = status.lines().find_map(|line| line.strip_prefix("Groups:"));
    let numbers = line.unwrap_or_default().split_whitespace();
    numbers.filter_map(|number| number.parse().ok()).take(CALLER_GROUPS_MAX).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_groups_of_a_process_are_read() {
        assert_eq!(groups("Name:\tcat\nGroups:\t4 24 1000 \nVmPeak:\t1 kB\n"), [4, 24, 1000]);
        assert!(groups("Groups:\t\n").is_empty());
        assert!(groups("").is_empty());
        let many: String = (0..100).map(|number| format!("{number} ")).collect();
        assert_eq!(groups(&format!("Groups:\t{many}\n")).len(), CALLER_GROUPS_MAX);
    }

    #[test]
    fn whoever_is_not_named_is_nobody() {
        assert_eq!(current().uid, NOBODY);
    }
}
