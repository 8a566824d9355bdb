//! What the host cannot answer for a while holds up nothing else (D1).

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::world::outcome::wait;
use crate::world::{Home, eventually, need_mount, programs, skip};

/// Has a lease on a file of the host's and does not give it back: whoever opens the file waits, for
/// 45 s (`/proc/sys/fs/lease-break-time`).
const HOLDER: &str = r#"
import fcntl, os, signal, sys
signal.signal(signal.SIGIO, signal.SIG_IGN)
file = os.open(sys.argv[1], os.O_RDWR)
fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_WRLCK)
print("held", flush=True)
sys.stdin.read()
"#;

/// How long the ones that waited may take in the end.
const SOON: Duration = Duration::from_secs(20);
const ROUNDS: usize = 100;

/// A child that is killed when the test ends.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn one_slow_file_does_not_slow_the_others() {
    need_mount!();
    if let Some(reason) = programs::missing(&["python3"]) {
        return skip(&reason);
    }
    let home = Home::on_loopback();
    for name in ["slow", "quick"] {
        fs::write(home.disk.join(name), "data\n").unwrap();
    }
    home.mount("timeout=20");
    let mut holder = hold(&home.disk.join("slow"));
    let read = ["cat slow", "cat slow", "head -c 1 slow"];
    let write = ["echo more >> slow", "echo more >> slow", "echo >> slow"];
    let mut waiting: Vec<_> = read.iter().chain(&write).map(|line| at(&home, line)).collect();
    eventually("the host to be asked", SOON, || is_being_broken(&home.disk.join("slow")));

    let dir = home.mountpoint.join("dir");
    fs::create_dir(&dir).unwrap();
    for round in 0..ROUNDS {
        let (one, two) = (dir.join(format!("{round}")), dir.join("two"));
        fs::write(&one, vec![b'x'; 10_000]).unwrap();
        fs::rename(&one, &two).unwrap();
        assert_eq!(fs::read(&two).unwrap().len(), 10_000);
        assert_eq!(fs::read_to_string(home.mountpoint.join("quick")).unwrap(), "data\n");
        assert_eq!(fs::metadata(home.mountpoint.join("slow")).unwrap().len(), 5);
        fs::remove_file(&two).unwrap();
        assert_eq!(fs::read_dir(&dir).unwrap().count(), 0);
    }
    for child in &mut waiting {
        assert_eq!(child.0.try_wait().unwrap(), None, "it did not wait: nothing was shown");
    }

    holder.0.kill().unwrap();
    for mut child in waiting {
        assert_eq!(wait(&mut child.0, SOON), Some(0));
    }
    home.sync();
    assert_eq!(fs::read_to_string(home.disk.join("slow")).unwrap().lines().count(), 4);
    home.unmount();
}

fn hold(path: &Path) -> Running {
    let mut holder = Command::new("python3");
    holder.args(["-c", HOLDER]).arg(path).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut holder = Running(holder.spawn().unwrap());
    let mut line = String::new();
    BufReader::new(holder.0.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line, "held\n", "the file system has no leases");
    holder
}

fn at(home: &Home, line: &str) -> Running {
    let mut command = Command::new("sh");
    command.args(["-c", line]).current_dir(&home.mountpoint).stdout(Stdio::null());
    Running(command.spawn().unwrap())
}

/// Whether somebody waits for the lease.
fn is_being_broken(path: &Path) -> bool {
    let inode = std::os::unix::fs::MetadataExt::ino(&fs::metadata(path).unwrap());
    let locks = fs::read_to_string("/proc/locks").unwrap();
    let of_file = |line: &&str| line.contains(&format!(":{inode} "));
    locks.lines().filter(of_file).any(|line| line.contains("LEASE") && line.contains("BREAKING"))
}
