//! File locks (D1): two clients and the host's own processes keep each other out, on real mounts.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::world::home::Second;
use crate::world::{Home, need_mount, need_root, programs, skip};

/// How long an answer may take that does not wait for anybody.
const SOON: Duration = Duration::from_secs(20);
/// How long it takes to be sure that somebody waits.
const WHILE: Duration = Duration::from_millis(700);

/// A process that locks: told on its standard input, tells on its standard output.
const LOCKER: &str = r#"
import errno, fcntl, os, signal, struct, sys
# whoever starts the tests in the background ignores it
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGUSR1, lambda *_: None)
file = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT, 0o644)
kinds = {"shared": fcntl.LOCK_SH, "exclusive": fcntl.LOCK_EX, "free": fcntl.LOCK_UN}
for line in sys.stdin:
    what, *rest = line.split()
    try:
        if what == "range" or what == "whole":
            now = "wait" not in rest and rest[0] != "free"
            kind = kinds[rest[0]] | (fcntl.LOCK_NB if now else 0)
            if what == "range":
                fcntl.lockf(file, kind, int(rest[2]), int(rest[1]))
            else:
                fcntl.flock(file, kind)
            said = "ok"
        elif what == "who":
            ask = struct.pack("hhqqi4x", fcntl.F_WRLCK, 0, 0, 0, 0)
            found = fcntl.fcntl(file, fcntl.F_GETLK, ask)
            kind, _, start, length, pid = struct.unpack("hhqqi4x", found)
            said = "nobody" if kind == fcntl.F_UNLCK else f"{start} {length}"
        elif what == "read":
            said = "read " + os.pread(file, 100, 0).decode()
        elif what == "write":
            os.pwrite(file, rest[0].encode(), 0)
            said = "ok"
        elif what == "reopen":
            os.close(file)
            file = os.open(sys.argv[1], os.O_RDWR)
            said = "ok"
    except OSError as error:
        said = errno.errorcode[error.errno]
    print(said, flush=True)
"#;

struct Locker {
    child: Child,
    told: ChildStdin,
    says: mpsc::Receiver<String>,
}

impl Locker {
    fn of(path: &Path) -> Self {
        let mut child = Command::new("python3")
            .args(["-c", LOCKER])
            .arg(path)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let (line, says) = mpsc::channel();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        thread::spawn(move || stdout.lines().map_while(Result::ok).try_for_each(|l| line.send(l)));
        let told = child.stdin.take().unwrap();
        Self { child, told, says }
    }

    fn tell(&mut self, what: &str) {
        writeln!(self.told, "{what}").unwrap();
    }

    #[track_caller]
    fn said(&self) -> String {
        self.says.recv_timeout(SOON).expect("an answer")
    }

    #[track_caller]
    fn ask(&mut self, what: &str) -> String {
        self.tell(what);
        self.said()
    }

    #[track_caller]
    fn waits(&self) {
        assert!(self.says.recv_timeout(WHILE).is_err(), "it does not wait");
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// How long it takes to end after a signal.
    #[track_caller]
    fn ends_by(&mut self, signal: Signal) -> Duration {
        let start = Instant::now();
        self.signal(signal);
        crate::world::eventually("the process to end", SOON, || {
            self.child.try_wait().unwrap().is_some()
        });
        start.elapsed()
    }
}

impl Drop for Locker {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Two mounts, and a file that everybody may lock.
struct Bench {
    home: Home,
    second: Second,
}

impl Bench {
    fn new() -> Self {
        let home = Home::on_loopback();
        home.mount("timeout=20,grace=60");
        let second = home.second_mount("timeout=20,grace=60");
        fs::write(home.disk.join("file"), "x".repeat(100)).unwrap();
        Self { home, second }
    }

    /// Somebody on each mount, and on the host.
    fn lockers(&self) -> [Locker; 3] {
        [&self.home.mountpoint, &self.second.mountpoint, &self.home.disk]
            .map(|dir| Locker::of(&dir.join("file")))
    }

    fn end(self) {
        self.second.unmount(&self.home);
        self.home.unmount();
    }
}

fn obstacle() -> Option<String> {
    programs::missing(&["python3"])
}

#[test]
fn clients_and_processes_of_the_host_keep_each_other_out() {
    need_mount!();
    if let Some(reason) = obstacle() {
        return skip(&reason);
    }
    let bench = Bench::new();
    for (lock, other, free) in [
        ("range exclusive 0 10", "range shared 5 1", "range free 0 0"),
        ("whole exclusive", "whole shared", "whole free"),
    ] {
        let mut lockers = bench.lockers();
        for holder in 0..3 {
            assert_eq!(lockers[holder].ask(lock), "ok", "{lock} by {holder}");
            for next in (0..3).filter(|next| *next != holder) {
                assert_eq!(lockers[next].ask(other), "EAGAIN", "{lock} by {holder}, then {next}");
            }
            if lock.starts_with("range") {
                // other bytes are free, and the other family does not see it
                let next = (holder + 1) % 3;
                assert_eq!(lockers[next].ask("range exclusive 10 5"), "ok");
                assert_eq!(lockers[next].ask("whole exclusive"), "ok");
                assert_eq!(lockers[next].ask("who"), "0 10");
                assert_eq!(lockers[next].ask("whole free"), "ok");
                assert_eq!(lockers[next].ask("range free 0 0"), "ok");
            }
            // a waiter has it as soon as it is free
            for next in (0..3).filter(|next| *next != holder) {
                lockers[next].tell(&format!("{other} wait"));
                lockers[next].waits();
                assert_eq!(lockers[holder].ask(free), "ok");
                assert_eq!(lockers[next].said(), "ok");
                assert_eq!(lockers[next].ask(free), "ok");
                assert_eq!(lockers[holder].ask(lock), "ok");
            }
            assert_eq!(lockers[holder].ask(free), "ok");
        }
    }
    bench.end();
}

#[test]
fn who_locks_next_sees_what_was_written() {
    need_mount!();
    if let Some(reason) = obstacle() {
        return skip(&reason);
    }
    let bench = Bench::new();
    let mut lockers = bench.lockers();
    for round in 0..30_usize {
        let locker = &mut lockers[round % 3];
        assert_eq!(locker.ask("range exclusive 0 0"), "ok");
        if round > 0 {
            let read = locker.ask("read");
            assert!(read.starts_with(&format!("read {:04}", round - 1)), "{round}: {read}");
        }
        assert_eq!(locker.ask(&format!("write {round:04}")), "ok");
        assert_eq!(locker.ask("range free 0 0"), "ok");
    }
    drop(lockers);
    bench.end();
}

#[test]
fn a_process_that_ends_or_closes_lets_go_and_one_that_waits_can_be_ended() {
    need_mount!();
    if let Some(reason) = obstacle() {
        return skip(&reason);
    }
    let bench = Bench::new();
    for (lock, free) in
        [("range exclusive 0 0", "range free 0 0"), ("whole exclusive", "whole free")]
    {
        let [mut first, mut second, _third] = bench.lockers();
        assert_eq!(first.ask(lock), "ok");
        // a signal that is caught: python tries again, so it waits on
        second.tell(&format!("{lock} wait"));
        second.waits();
        second.signal(Signal::USR1);
        second.waits();
        let took = second.ends_by(Signal::INT);
        assert!(took < Duration::from_secs(1), "{took:?}");
        let [_, mut second, mut third] = bench.lockers();
        second.tell(&format!("{lock} wait"));
        second.waits();
        let took = second.ends_by(Signal::KILL);
        assert!(took < Duration::from_secs(1), "{took:?}");
        // whoever was killed does not get it in the end
        assert_eq!(first.ask(free), "ok");
        assert_eq!(third.ask(lock), "ok");
        assert_eq!(third.ask(free), "ok");
        assert_eq!(first.ask(lock), "ok");
        third.tell(&format!("{lock} wait"));
        third.waits();
        first.ends_by(Signal::KILL);
        assert_eq!(third.said(), "ok");
        assert_eq!(third.ask("reopen"), "ok");
        let [mut first, ..] = bench.lockers();
        assert_eq!(first.ask(lock), "ok");
    }
    bench.end();
}

#[test]
fn locks_outlive_the_host() {
    need_mount!();
    need_root!();
    if let Some(reason) = obstacle() {
        return skip(&reason);
    }
    let mut bench = Bench::new();
    let [mut first, mut second, mut third] = bench.lockers();
    assert_eq!(first.ask("range exclusive 0 10"), "ok");
    assert_eq!(second.ask("whole exclusive"), "ok");
    assert_eq!(second.ask("range exclusive 20 10"), "ok");
    bench.home.restart_host();
    // asks when everything was reclaimed
    assert_eq!(second.ask("range exclusive 5 1"), "EAGAIN");
    assert_eq!(first.ask("whole shared"), "EAGAIN");
    assert_eq!(third.ask("range exclusive 5 1"), "EAGAIN");
    assert_eq!(third.ask("whole shared"), "EAGAIN");
    assert_eq!(first.ask("range free 0 0"), "ok");
    assert_eq!(second.ask("whole free"), "ok");
    assert_eq!(second.ask("range exclusive 0 10 wait"), "ok");
    assert_eq!(third.ask("whole exclusive wait"), "ok");

    // one that cannot be had again: its file fails until it is closed
    bench.home.restart_host_after(|| assert_eq!(third.ask("range exclusive 20 5"), "ok"));
    crate::world::eventually("the lock to be lost", SOON, || second.ask("write x") == "EIO");
    assert_eq!(second.ask("write no"), "EIO");
    assert_eq!(second.ask("reopen"), "ok");
    assert!(second.ask("read").starts_with("read x"));
    drop((first, second, third));
    bench.end();
}

/// Two writers of one database, each on its own mount.
#[test]
fn a_database_of_two_writers_is_whole() {
    need_mount!();
    if let Some(reason) = programs::missing(&["sqlite3"]) {
        return skip(&reason);
    }
    let bench = Bench::new();
    let dirs = [bench.home.mountpoint.clone(), bench.second.mountpoint.clone()];
    let sqlite = |dir: &Path, statements: &str| {
        let mut command = Command::new("sqlite3");
        command.args(["-cmd", ".timeout 60000"]).arg(dir.join("db")).arg(statements);
        command.output().unwrap()
    };
    let made = sqlite(&dirs[0], "PRAGMA journal_mode=DELETE; CREATE TABLE t (writer, number);");
    assert!(made.status.success(), "{made:?}");
    let writers = [0, 1].map(|writer| {
        let dir = dirs[writer].clone();
        thread::spawn(move || {
            for number in 0..20 {
                let insert = format!("INSERT INTO t VALUES ({writer}, {number});");
                let done = sqlite(&dir, &insert);
                assert!(done.status.success(), "{writer}, {number}: {done:?}");
            }
        })
    });
    writers.into_iter().for_each(|writer| writer.join().unwrap());
    for dir in dirs.iter().chain([&bench.home.disk]) {
        let found = sqlite(dir, "PRAGMA integrity_check; SELECT count(*) FROM t;");
        assert_eq!(String::from_utf8_lossy(&found.stdout), "ok\n40\n", "{found:?}");
    }
    bench.end();
}
