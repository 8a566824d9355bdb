//! Who waits for an answer of ours, as `/proc` tells.
//!
//! fuser answers the kernel's INTERRUPT requests with ENOSYS, so nobody tells us that a caller has
//! got a signal. Whoever waits for long is looked at again and again instead: an answer, whatever
//! it says, is what frees it.

use std::fs;
use std::time::Duration;

use p2pfs::wire::lease::LockFamily;

/// How long a caller waits before it is looked at, and how often then.
const LOOK: Duration = Duration::from_millis(100);
/// How often a caller is asked what it does before it has come to rest.
const LOOKS_MAX: usize = 50;
/// `flock` of a 32-bit program.
const FLOCK_32: i64 = 143;
const SIGKILL: u64 = 1 << 8;

/// Which signals end a wait.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Signals {
    /// Any that the caller would take: as for a lock.
    Any,
    /// Those that end the caller: reading a file is not interrupted otherwise.
    Fatal,
}

/// Resolves when a caller (a thread's number; 0 is nobody) has a signal to see to, or is gone.
pub(super) async fn interrupted(caller: u32, signals: Signals) {
    if caller == 0 {
        return std::future::pending().await;
    }
    loop {
        tokio::time::sleep(LOOK).await;
        match fs::read_to_string(format!("/proc/{caller}/status")) {
            Ok(status) if !is_signalled(&status, signals) => {}
            // Another user's, in a `/proc` that hides them
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return std::future::pending().await;
            }
            _ => return,
        }
    }
}

fn is_signalled(status: &str, signals: Signals) -> bool {
    let mask = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        line.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or_default()
    };
    let pending = mask("SigPnd:") | mask("ShdPnd:");
    match signals {
        // The kernel turns a signal that ends a process into this one for each of its threads
        Signals::Fatal => pending & SIGKILL != 0,
        Signals::Any => pending & (!mask("SigBlk:") | SIGKILL) != 0,
    }
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

    #[test]
    fn a_signal_counts_unless_it_is_blocked() {
        let status = |pending: u64, blocked: u64| {
            format!("Name:\tcat\nSigPnd:\t{pending:016x}\nShdPnd:\t0\nSigBlk:\t{blocked:016x}\n")
        };
        let both = |status: &str| {
            (is_signalled(status, Signals::Any), is_signalled(status, Signals::Fatal))
        };
        assert_eq!(both(&status(0, 0)), (false, false));
        assert_eq!(both(&status(2, 0)), (true, false));
        assert_eq!(both(&status(2, 2)), (false, false));
        assert_eq!(both(&status(SIGKILL, 0)), (true, true));
    }
}
