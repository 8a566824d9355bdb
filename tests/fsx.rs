//! fsx, the File System eXerciser, on the mount: a file is changed in every way there is, from a
//! seed, and each read is compared with what it must be (D1, D2).
//!
//! `P2PFS_FSX_OPS=100000` makes the runs longer, `P2PFS_FSX_SEED=N` repeats one.

use std::env;
use std::fs::{self, File};
use std::io::Read;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::world::{Home, Outcome, need_mount, programs, skip};

/// Operations of one run.
const OPS: u64 = 5_000;
/// How long a run of as many operations as anybody asks for may take.
const LIMIT: Duration = Duration::from_secs(3600);

/// A file four times as large as the cache, so that blocks are evicted all the time.
const LARGE: &str = "flen = 33554432\n";
/// A file of a few blocks, where operations meet.
const SMALL: &str = "flen = 262144\n";
/// Every operation that fsx has; those that cost much more than others more rarely.
const WEIGHTS: &str = "
[opsize]
min = 1
max = 65536

[weights]
close_open = 3
invalidate = 3
mapread = 10
mapwrite = 10
read = 10
write = 10
truncate = 5
fsync = 1
fdatasync = 1
posix_fallocate = 5
punch_hole = 10
sendfile = 5
posix_fadvise = 10
copy_file_range = 5
";

#[test]
fn a_file_larger_than_the_cache_is_what_it_must_be() {
    exercise(LARGE);
}

#[test]
fn a_small_file_is_what_it_must_be() {
    exercise(SMALL);
}

fn exercise(size: &str) {
    need_mount!();
    let Some(fsx) = programs::installed("fsx") else {
        return skip("fsx is not installed; tests/run installs it");
    };
    let ops = number("P2PFS_FSX_OPS").unwrap_or(OPS).to_string();
    let seed = number("P2PFS_FSX_SEED").unwrap_or_else(by_the_clock).to_string();
    let home = Home::on_loopback();
    home.mount("timeout=20,cache=8M");
    let config = home.world.path("fsx.toml");
    fs::write(&config, format!("{size}{WEIGHTS}")).unwrap();

    let mut command = Command::new(fsx);
    command.args(["-q", "-N", &ops, "-S", &seed, "-f"]).arg(&config);
    command.arg("-P").arg(home.world.directory("artifacts")).arg(home.mountpoint.join("file"));
    let run = Outcome::of(command, LIMIT);
    assert_eq!(run.code, Some(0), "P2PFS_FSX_SEED={seed} P2PFS_FSX_OPS={ops}: {run:#?}");

    home.sync();
    let same = same(&home.mountpoint.join("file"), &home.disk.join("file"));
    assert!(same, "the host's file is another one: P2PFS_FSX_SEED={seed}");
    home.unmount();
}

fn number(variable: &str) -> Option<u64> {
    Some(env::var(variable).ok()?.parse().unwrap_or_else(|_| panic!("{variable} is no number")))
}

fn by_the_clock() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    u64::from(now.subsec_nanos())
}

fn same(one: &Path, other: &Path) -> bool {
    let mut files = [File::open(one).unwrap(), File::open(other).unwrap()];
    let [one, other] = files.each_mut().map(|file| {
        let mut data = Vec::new();
        file.read_to_end(&mut data).unwrap();
        data
    });
    one == other
}
