//! What the host cannot answer for a while holds up nothing else (D1).

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

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

/// `dd` and the shell with a trap catch what Ctrl-C sends.
#[test]
fn whoever_waits_for_a_disk_that_hangs_ends_when_told_to() {
    need_mount!();
    if let Some(reason) = programs::missing(&["python3", "dd", "bash"]) {
        return skip(&reason);
    }
    let home = Home::on_loopback();
    fs::write(home.disk.join("slow"), "data\n").unwrap();
    home.mount("timeout=20");
    let mut holder = hold(&home.disk.join("slow"));
    println!("{:<42} {:>8} {:>8}  (ms until it has ended)", "", "kill -9", "Ctrl-C");
    let mut slow = Vec::new();
    for line in [
        "exec cat slow",
        "exec dd if=slow of=/dev/null",
        "exec dd if=/dev/zero of=slow count=1 conv=notrunc",
        "exec truncate -s 0 slow",
        "echo more >> slow",
        "trap 'exit 3' INT; echo more >> slow",
    ] {
        let took = [Signal::KILL, Signal::INT].map(|signal| {
            let mut child = waiter(&home, line);
            let start = Instant::now();
            kill_process(Pid::from_child(&child.0), signal).unwrap();
            wait(&mut child.0, SOON);
            start.elapsed()
        });
        let [killed, interrupted] = took.map(|took| took.as_millis());
        println!("{line:<42} {killed:>8} {interrupted:>8}");
        if took.iter().any(|took| *took >= Duration::from_secs(1)) {
            slow.push(line);
        }
    }
    assert!(is_being_broken(&home.disk.join("slow")), "nobody had to wait: nothing was shown");
    assert_eq!(slow, Vec::<&str>::new());
    holder.0.kill().unwrap();
    wait(&mut holder.0, SOON);
    assert_eq!(fs::read_to_string(home.mountpoint.join("slow")).unwrap(), "data\n");
    home.sync();
    assert_eq!(fs::read_to_string(home.disk.join("slow")).unwrap(), "data\n");
    home.unmount();
}

/// A shell that waits for the host.
fn waiter(home: &Home, line: &str) -> Running {
    // whoever starts the tests in the background ignores it
    let mut command = Command::new("env");
    command.args(["--default-signal=INT", "bash", "-c", line]).current_dir(&home.mountpoint);
    let child = Running(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap());
    eventually("it to wait", SOON, || {
        let of = |file: &str| fs::read_to_string(format!("/proc/{}/{file}", child.0.id())).unwrap();
        let waits = of("stat").rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('D'))
            || of("wchan") == "request_wait_answer";
        waits && is_being_broken(&home.disk.join("slow"))
    });
    child
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
