//! What a process takes of the machine's memory.

use std::fs;

use rustix::process::Pid;

/// A process before and after something.
#[derive(Clone, Copy, Debug)]
pub(super) struct Memory {
    /// Now, KiB.
    pub(super) resident: u64,
    /// The most so far, KiB.
    pub(super) peak: u64,
}

impl Memory {
    /// Of a process that lives.
    #[track_caller]
    pub(super) fn of(pid: Pid) -> Self {
        let path = format!("/proc/{}/status", pid.as_raw_pid());
        let status = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"));
        let kib = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            let line = line.unwrap_or_else(|| panic!("{path} has no {name}: it has ended"));
            line.trim().trim_end_matches(" kB").parse().unwrap()
        };
        Self { resident: kib("VmRSS:"), peak: kib("VmHWM:") }
    }

    /// Prints a line of the table, and fails past the bound.
    #[track_caller]
    pub(super) fn grown(self, pid: Pid, what: &str, max_kib: u64) {
        let after = Self::of(pid);
        println!(
            "{what:<44} resident {:>7} -> {:>7} KiB, peak {:>7} -> {:>7} KiB",
            self.resident, after.resident, self.peak, after.peak
        );
        let grown = after.peak.saturating_sub(self.resident);
        assert!(grown <= max_kib, "{what}: {grown} KiB grown");
    }
}
