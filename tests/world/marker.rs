//! What must be left nowhere when the key is pulled: ways into the mount, and a marker that was
//! read and written through it.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::looker::Looker;
use super::{Side, World, eventually, is_mounted};

/// How soon nothing may be read any more (D3).
pub(crate) const GONE: Duration = Duration::from_secs(1);
/// How soon it must be mounted again.
pub(crate) const BACK: Duration = Duration::from_secs(2);

const ELSEWHERE: &str = "another mount namespace";
/// How much memory is looked at at once; no page is smaller than the other.
const BLOCK: usize = 1 << 20;
const PAGE: u64 = 4096;

/// What was measured, and how long it took.
#[derive(Default)]
pub(crate) struct Times(Vec<(String, Duration)>);

impl Times {
    pub(crate) fn add(&mut self, row: &str, took: Duration) {
        self.0.push((row.to_owned(), took));
    }

    /// Adds a row; it must have taken less than `limit`.
    #[track_caller]
    pub(crate) fn add_within(&mut self, limit: Duration, row: &str, took: Duration) {
        self.add(row, took);
        if took >= limit {
            self.print("too late");
        }
        assert!(took < limit, "{row}: {took:?}, not within {limit:?}");
    }

    /// As a table, in one piece: other tests print, too.
    pub(crate) fn print(&self, what: &str) {
        let mut table = format!("{what:<44} {:>8}\n", "ms");
        for (row, took) in &self.0 {
            table += &format!("{row:<44} {:>8}\n", took.as_millis());
        }
        println!("{table}");
    }
}

/// All ways into a mount that somebody may keep when the key is pulled.
pub(crate) struct Ways {
    holder: Looker,
    elsewhere: Looker,
    mountpoints: Vec<PathBuf>,
}

impl Ways {
    /// Those to `file`, which has `marker` in it; all are open. Needs root, python3 and unshare.
    #[track_caller]
    pub(crate) fn to(file: &Path, marker: &str, mountpoints: &[PathBuf]) -> Self {
        let mut holder = Looker::holder(file, marker);
        let mut elsewhere = Looker::elsewhere(file);
        assert_eq!(holder.look(), Looker::EVERY_WAY);
        assert!(elsewhere.look().contains(marker));
        Self { holder, elsewhere, mountpoints: mountpoints.to_owned() }
    }

    /// Waits until none is open, and says when each was found closed after `pulled`: within a
    /// second.
    #[track_caller]
    pub(crate) fn closed(&mut self, pulled: Instant) -> Times {
        let names = Looker::EVERY_WAY.split(',').chain([ELSEWHERE, "mount"]);
        let mut closed: Vec<(&str, Option<Duration>)> = names.map(|name| (name, None)).collect();
        eventually("nothing to be left to read", Duration::from_secs(10), || {
            let open = self.open();
            for (name, at) in &mut closed {
                if open.iter().any(|way| way == name) {
                    *at = None;
                } else {
                    at.get_or_insert_with(|| pulled.elapsed());
                }
            }
            open.is_empty()
        });
        let mut times = Times::default();
        for (name, at) in closed {
            times.add_within(GONE, &format!("{name} closed"), at.unwrap());
        }
        times
    }

    fn open(&mut self) -> Vec<String> {
        let held = self.holder.look();
        let mut open: Vec<String> =
            held.split(',').filter(|way| !way.is_empty()).map(str::to_owned).collect();
        if !self.elsewhere.look().is_empty() {
            open.push(ELSEWHERE.to_owned());
        }
        if self.mountpoints.iter().any(|mountpoint| is_mounted(mountpoint)) {
            open.push("mount".to_owned());
        }
        open
    }

    /// Whether what was open before is, though it may be mounted again.
    pub(crate) fn old_are_closed(&mut self) -> bool {
        self.holder.look().is_empty()
    }
}

/// Waits until the mount is locked after `pulled`; then `marker` is nowhere.
#[track_caller]
pub(crate) fn is_locked_up(world: &World, marker: &str, pulled: Instant, times: &mut Times) {
    eventually("the mount to be locked", Duration::from_secs(10), || world.is_locked());
    times.add("locked", pulled.elapsed());
    is_nowhere(world, marker);
}

/// `marker` is neither in a file of the client's nor in the memory of what runs there.
#[track_caller]
pub(crate) fn is_nowhere(world: &World, marker: &str) {
    assert_eq!(in_files(world, marker), Vec::<PathBuf>::new());
    assert_eq!(in_memory(world, marker), Vec::<String>::new());
}

/// The files below the client's state directory in which `marker` stands. There is no other
/// directory of the client's.
pub(crate) fn in_files(world: &World, marker: &str) -> Vec<PathBuf> {
    let (mut found, mut dirs) = (Vec::new(), vec![world.state(Side::Client)]);
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(&dir).unwrap() {
            let path = entry.unwrap().path();
            let kind = fs::symlink_metadata(&path).unwrap().file_type();
            if kind.is_dir() {
                dirs.push(path);
            } else if kind.is_file() && holds(&fs::read(&path).unwrap(), marker) {
                found.push(path);
            }
        }
    }
    found
}

/// The mappings of mountd and its guards in which `marker` stands; needs root.
pub(crate) fn in_memory(world: &World, marker: &str) -> Vec<String> {
    let processes = [&b"mountd"[..], b"guard"].map(|name| world.processes_of(name)).concat();
    assert!(!processes.is_empty(), "nothing runs");
    let mut found = Vec::new();
    for pid in processes {
        let proc = format!("/proc/{}", pid.as_raw_nonzero());
        let maps = fs::read_to_string(format!("{proc}/maps")).unwrap();
        let memory = File::open(format!("{proc}/mem")).unwrap();
        for line in maps.lines() {
            let (range, rest) = line.split_once(' ').unwrap();
            let (start, end) = range.split_once('-').unwrap();
            let [start, end] = [start, end].map(|at| u64::from_str_radix(at, 16).unwrap());
            let is_kernels = line.ends_with("[vsyscall]") || line.contains("[vvar");
            if rest.starts_with('r') && !is_kernels && is_mapped(&memory, start, end, marker) {
                found.push(format!("{pid:?}: {line}"));
            }
        }
    }
    found
}

fn is_mapped(memory: &File, start: u64, end: u64, marker: &str) -> bool {
    let mut block = vec![0; BLOCK];
    // what was read, from just before the last block
    let mut seen = Vec::new();
    let mut at = start;
    while at < end {
        let length = BLOCK.min((end - at) as usize);
        match memory.read_at(&mut block[..length], at) {
            Ok(read @ 1..) => {
                seen.extend_from_slice(&block[..read]);
                if holds(&seen, marker) {
                    return true;
                }
                seen.drain(..seen.len().saturating_sub(marker.len() - 1));
                at += read as u64;
            }
            // this page cannot be read
            _ => {
                seen.clear();
                at = (at / PAGE + 1) * PAGE;
            }
        }
    }
    false
}

fn holds(bytes: &[u8], marker: &str) -> bool {
    let marker = marker.as_bytes();
    bytes.windows(marker.len()).any(|window| window[0] == marker[0] && window == marker)
}
