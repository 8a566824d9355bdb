//! Who waits for an answer of ours, as `/proc` tells.
//!
//! fuser answers the kernel's INTERRUPT requests with ENOSYS, so nobody tells us that a caller has
//! got a signal. Whoever waits for long is looked at again and again instead: an answer, whatever
//! it says, is what frees it.

use std::collections::VecDeque;
use std::fs;
use std::io;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use p2pfs::wire::lease::LockFamily;

/// How long a caller waits before it is looked at, and how often then.
const LOOK: Duration = Duration::from_millis(100);
/// How often a caller is asked what it does before it has come to rest.
const LOOKS_MAX: usize = 50;
/// How often a process that ends is looked at before it need not wait for its files any longer:
/// nobody is there to be told how closing went.
const LOOKS_ENDING: u32 = 5;
/// Who did not have to wait for one of its files need not wait for the others, if they are closed
/// within so long of each other; so many are remembered.
const LET_GO: Duration = Duration::from_secs(1);
const LET_GO_MAX: usize = 64;

static ENDING: Mutex<VecDeque<(u32, Instant)>> = Mutex::new(VecDeque::new());
/// `flock` of a 32-bit program.
const FLOCK_32: i64 = 143;

const SIGKILL: u64 = bit(libc::SIGKILL);
/// What a user or the system ends a program with; a program that catches one wants to end, too.
const ASKED_TO_END: u64 =
    bit(libc::SIGINT) | bit(libc::SIGTERM) | bit(libc::SIGHUP) | bit(libc::SIGQUIT);
/// Where a program does not catch them, these do not end it.
const HARMLESS: u64 = bit(libc::SIGCHLD)
    | bit(libc::SIGCONT)
    | bit(libc::SIGURG)
    | bit(libc::SIGWINCH)
    | bit(libc::SIGSTOP)
    | bit(libc::SIGTSTP)
    | bit(libc::SIGTTIN)
    | bit(libc::SIGTTOU);

const fn bit(signal: i32) -> u64 {
    1 << (signal - 1)
}

/// Which signals end a wait.
///
/// Linux never answers a call on a disk with EINTR, and on other network file systems only what
/// ends the process frees it. An answer of ours cannot be restarted as `SA_RESTART` would have it,
/// so that a timer or a child's end must not look like a failed `read` or `open`. What does end a
/// wait, beside what ends the process, is what somebody sends to end it, also if it is caught.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(super) enum Signals {
    /// Those that end the caller, and those that ask it to end.
    #[default]
    Ending,
    /// As before, but a page fault must not fail for a signal that is caught: it would be SIGBUS.
    Reading,
    /// As before; and a process that is ending already does not wait for its files for long.
    Closing,
    /// Any that the caller takes: a lock is waited for without end (POSIX).
    Any,
}

/// Resolves when a caller (a thread's number; 0 is nobody) has a signal to see to, or is gone.
pub(super) async fn interrupted(caller: u32, signals: Signals) {
    if caller == 0 {
        return std::future::pending().await;
    }
    let (mut others, mut ending) = (0, 0);
    loop {
        tokio::time::sleep(LOOK).await;
        // Even to look may have to wait for what the caller holds while it waits for us
        let looked = tokio::task::spawn_blocking(move || look(caller, signals)).await;
        let (signalled, ends) = match looked {
            Ok(Ok(looked)) => looked,
            Ok(Err(error)) if error.kind() == io::ErrorKind::NotFound => return,
            // another user's, in a `/proc` that hides them
            _ => return std::future::pending().await,
        };
        match signalled {
            Signalled::No => others = 0,
            Signalled::Process if others == 0 => others = 1,
            Signalled::Process | Signalled::Thread => return,
        }
        if signals == Signals::Closing && ends {
            ending += 1;
            if ending == LOOKS_ENDING {
                return let_go(caller);
            }
        }
    }
}

/// Whether a caller that closes a file is ending, and has waited for another one for long enough.
pub(super) fn is_let_go(caller: u32) -> bool {
    let mut all = ENDING.lock().unwrap_or_else(PoisonError::into_inner);
    let now = Instant::now();
    all.retain(|(_, last)| now - *last < LET_GO);
    let found = all.iter_mut().find(|(one, _)| *one == caller);
    found.map(|(_, last)| *last = now).is_some()
}

fn let_go(caller: u32) {
    let mut all = ENDING.lock().unwrap_or_else(PoisonError::into_inner);
    if all.len() == LET_GO_MAX {
        all.pop_front();
    }
    all.push_back((caller, Instant::now()));
}

/// Whether a caller has signals to see to, and whether it is ending.
fn look(caller: u32, signals: Signals) -> io::Result<(Signalled, bool)> {
    let status = Status::parse(&fs::read_to_string(format!("/proc/{caller}/status"))?);
    let signalled = match status.signalled(signals) {
        Signalled::No => Signalled::No,
        _ if signals == Signals::Reading && !status.is_ended() && !reads(caller) => Signalled::No,
        signalled => signalled,
    };
    Ok((signalled, !status.has_memory))
}

/// What `/proc/TID/status` says of signals.
#[derive(Clone, Copy, Debug, Default)]
struct Status {
    /// Whether it is the thread to which the kernel gives its process's signals first.
    is_first: bool,
    /// A process that ends lets its memory go before its files. (`/proc/TID/stat` would say more,
    /// but waits for whoever changes that memory.)
    has_memory: bool,
    own: u64,
    shared: u64,
    blocked: u64,
    ignored: u64,
    caught: u64,
}

/// Whether a wait is to end.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Signalled {
    No,
    /// By a signal that another thread may take.
    Process,
    Thread,
}

impl Status {
    fn parse(status: &str) -> Self {
        let word = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            line.map(str::trim).unwrap_or_default()
        };
        let mask = |name: &str| u64::from_str_radix(word(name), 16).unwrap_or_default();
        Self {
            is_first: word("Tgid:") == word("Pid:"),
            has_memory: !word("VmSize:").is_empty(),
            own: mask("SigPnd:"),
            shared: mask("ShdPnd:"),
            blocked: mask("SigBlk:"),
            ignored: mask("SigIgn:"),
            caught: mask("SigCgt:"),
        }
    }

    /// The signals that nobody outlives: the kernel turns most of them into SIGKILL for each
    /// thread, but not those that leave a core.
    fn is_ended(self) -> bool {
        let pending = self.own | self.shared;
        pending & (SIGKILL | !(self.blocked | self.ignored | self.caught | HARMLESS)) != 0
    }

    fn signalled(self, signals: Signals) -> Signalled {
        if self.is_ended() {
            return Signalled::Thread;
        }
        let heeded = match signals {
            Signals::Any => u64::MAX,
            Signals::Ending | Signals::Reading | Signals::Closing => ASKED_TO_END,
        };
        let taken = self.caught & !self.blocked & heeded;
        match (self.own & taken, self.shared & taken) {
            (0, 0) => Signalled::No,
            (0, _) if !self.is_first => Signalled::Process,
            _ => Signalled::Thread,
        }
    }
}

/// Whether a caller is in a call that reads, and not in a page fault, as far as we may know.
fn reads(caller: u32) -> bool {
    let Ok(call) = fs::read_to_string(format!("/proc/{caller}/syscall")) else { return true };
    let number = call.split(' ').next().and_then(|number| number.trim().parse().ok());
    matches!(
        number.unwrap_or(-1),
        libc::SYS_read
            | libc::SYS_pread64
            | libc::SYS_readv
            | libc::SYS_preadv
            | libc::SYS_preadv2
            | libc::SYS_sendfile
            | libc::SYS_splice
            | libc::SYS_copy_file_range
    )
}

/// Whether a caller that asks for a lock is in `flock` or in `fcntl`; `None` if it cannot be told.
/// The kernel says so in its request, but fuser does not pass it on.
pub(super) fn lock_family(caller: u32) -> Option<LockFamily> {
    for _ in 0..LOOKS_MAX {
        let call = fs::read_to_string(format!("/proc/{caller}/syscall")).ok()?;
        let Some(number) = call.split(' ').next().and_then(|number| number.trim().parse().ok())
        else {
            // "running": it has put its request in the queue, and is about to wait for the answer
            std::thread::yield_now();
            continue;
        };
        let number: i64 = number;
        return Some(match number {
            libc::SYS_flock | FLOCK_32 => LockFamily::Whole,
            _ => LockFamily::Range,
        });
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(pending: u64, blocked: u64, caught: u64) -> Status {
        Status { is_first: true, shared: pending, blocked, caught, ..Status::default() }
    }

    #[test]
    fn what_is_in_proc_is_read() {
        let text = "Name:\tcat\nTgid:\t7\nPid:\t8\nSigPnd:\t0000000000000100\nShdPnd:\t0\n\
                    SigBlk:\t0000000000000002\n";
        let status = Status::parse(text);
        assert_eq!((status.is_first, status.own, status.shared), (false, SIGKILL, 0));
        assert_eq!((status.blocked, status.caught), (2, 0));
        assert!(!status.has_memory);
        let (signalled, ends) = look(std::process::id(), Signals::Closing).unwrap();
        assert_eq!((signalled, ends), (Signalled::No, false));
    }

    #[test]
    fn what_ends_a_process_ends_its_wait() {
        for ending in [SIGKILL, bit(libc::SIGINT), bit(libc::SIGQUIT), bit(libc::SIGALRM)] {
            assert_eq!(status(ending, 0, 0).signalled(Signals::Ending), Signalled::Thread);
        }
        for harmless in [0, HARMLESS] {
            assert_eq!(status(harmless, 0, 0).signalled(Signals::Ending), Signalled::No);
        }
        let blocked = bit(libc::SIGINT);
        assert_eq!(status(blocked, blocked, 0).signalled(Signals::Any), Signalled::No);
        assert_eq!(status(SIGKILL, !0, 0).signalled(Signals::Ending), Signalled::Thread);
    }

    #[test]
    fn a_signal_that_is_caught_ends_a_wait_if_it_asks_to_end() {
        for (signal, calls, locks) in [
            (libc::SIGINT, Signalled::Thread, Signalled::Thread),
            (libc::SIGTERM, Signalled::Thread, Signalled::Thread),
            (libc::SIGALRM, Signalled::No, Signalled::Thread),
            (libc::SIGCHLD, Signalled::No, Signalled::Thread),
        ] {
            let status = status(bit(signal), 0, bit(signal));
            assert_eq!(status.signalled(Signals::Ending), calls);
            assert_eq!(status.signalled(Signals::Any), locks);
            let second = Status { is_first: false, ..status };
            assert_ne!(second.signalled(Signals::Any), Signalled::Thread, "for another thread");
        }
    }
}
