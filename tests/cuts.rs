//! The network is cut (N6): nobody waits without end, nobody who is told to end waits on, and what
//! was accepted arrives.

use std::fs::{self, OpenOptions};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use p2pfs_mountd::options::MountOptions;
use rustix::process::{Pid, Signal, kill_process};

use crate::world::lab::{Kind, Lab, need_lab};
use crate::world::outcome::wait;
use crate::world::{Home, Outcome, Side, eventually, need_mount, programs, skip};

const TIMED_OUT: i32 = rustix::io::Errno::TIMEDOUT.raw_os_error();
const CALLER: &str = include_str!("cuts/caller.py");
/// A read through a mapping: no call, so that it cannot fail with an error.
const FAULT: &str = "page fault";
/// Every kind of call that waits for the host; the last fills the log for all that write.
const KINDS: [&str; 22] = [
    "read",
    "direct read",
    FAULT,
    "msync",
    "open",
    "create",
    "stat",
    "readdir",
    "mkdir",
    "rename",
    "link",
    "unlink",
    "chmod",
    "xattr",
    "exec",
    "truncate",
    "lock",
    "flock",
    "append",
    "fsync",
    "close",
    "write",
];
/// Those that write something first, which must arrive.
const ACCEPTED: [&str; 2] = ["fsync", "close"];
/// Those that must not happen after they failed.
const MAKES: [&str; 4] = ["create", "mkdir", "rename", "link"];

/// Leaves the test, saying why, unless the network can be cut here.
macro_rules! need_cut {
    () => {
        need_mount!();
        need_lab!();
        if let Some(missing) = programs::missing(&["python3", "dd", "df", "bash"]) {
            return skip(&missing);
        }
    };
}

/// How a caller meets what it is sent.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum How {
    /// `kill -9`
    Killed,
    /// Ctrl-C, not caught.
    Default,
    /// Ctrl-C, caught: Python makes an exception of it.
    Caught,
}

impl How {
    const ALL: [Self; 3] = [Self::Killed, Self::Default, Self::Caught];

    fn word(self) -> &'static str {
        match self {
            Self::Killed => "killed",
            Self::Default => "default",
            Self::Caught => "caught",
        }
    }

    fn signal(self) -> Signal {
        match self {
            Self::Killed => Signal::KILL,
            Self::Default | Self::Caught => Signal::INT,
        }
    }
}

/// A process that makes one call when it is told to.
struct Caller {
    child: Child,
    said: BufReader<ChildStdout>,
}

impl Caller {
    /// Starts it; its file and directory must be there on the host.
    fn start(home: &Home, kind: &str, how: &str, name: &str) -> Self {
        let mut command = Command::new("python3");
        command.args(["-c", CALLER, kind, how]).arg(&home.mountpoint).arg(name);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = command.spawn().unwrap();
        let said = BufReader::new(child.stdout.take().unwrap());
        Self { child, said }
    }

    fn is_ready(&mut self) {
        assert_eq!(self.line(), "ready");
    }

    fn go(&mut self) {
        self.child.stdin.as_mut().unwrap().write_all(b"go\n").unwrap();
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.said.read_line(&mut line).unwrap();
        line.trim().to_owned()
    }

    /// Waits until it waits in the kernel.
    fn hangs(&self, what: &str) {
        let of =
            |file: &str| fs::read_to_string(format!("/proc/{}/{file}", self.child.id())).unwrap();
        eventually(what, Duration::from_secs(5), || {
            let is_in_disk_sleep =
                of("stat").rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('D'));
            // before the kernel knows that nobody wants to hear of interrupts, it sleeps lightly
            is_in_disk_sleep || of("wchan") == "request_wait_answer"
        });
    }

    fn send(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// Sends it a signal; how long it takes to end.
    fn end(&mut self, signal: Signal) -> Duration {
        let start = Instant::now();
        self.send(signal);
        wait(&mut self.child, Duration::from_secs(20));
        start.elapsed()
    }

    /// Waits until it has ended; the signal that ended it.
    fn signal(&mut self) -> Option<i32> {
        wait(&mut self.child, Duration::from_secs(20));
        self.child.wait().unwrap().signal()
    }
}

impl Drop for Caller {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn home() -> Home {
    let home = Home::in_lab(Lab::new(Kind::None, Kind::None));
    eventually("the host at the server", Duration::from_secs(20), || {
        home.world.status(Side::Server)["hosts"] == 1
    });
    home
}

fn prepare(home: &Home, name: &str) {
    fs::write(home.disk.join(name), "#!/bin/sh\n".repeat(1000)).unwrap();
    fs::create_dir(home.disk.join(format!("{name}.dir"))).unwrap();
}

fn name(kind: &str, how: &str) -> String {
    format!("{}-{how}", kind.replace(' ', "-"))
}

#[test]
fn whoever_waits_for_a_host_that_is_cut_off_ends_when_told_to() {
    need_cut!();
    let home = home();
    let (late, early): (Vec<_>, Vec<_>) = KINDS.into_iter().partition(|kind| *kind == "stat");
    let prepare_all = |kinds: Vec<&str>| {
        for (kind, how) in kinds.iter().flat_map(|kind| How::ALL.map(|how| (kind, how))) {
            prepare(&home, &name(kind, how.word()));
        }
    };
    prepare_all(early);
    prepare(&home, "exit");
    home.mount("timeout=30,grace=100,allow_other");
    // of what is newer than the mount nothing is known that could be served without the host
    prepare_all(late);
    let mut exits = Caller::start(&home, "exit", "caught", "exit");
    exits.is_ready();
    let mut callers = Vec::new();
    for kind in KINDS {
        let of =
            How::ALL.map(|how| Caller::start(&home, kind, how.word(), &name(kind, how.word())));
        callers.push((kind, of));
    }
    callers.iter_mut().flat_map(|(_, of)| of).for_each(Caller::is_ready);

    home.lab().cut(Side::Client);
    df_answers(&home);
    println!(
        "{:<12} {:>12} {:>12} {:>12}  (ms until it has ended)",
        "call", "kill -9", "Ctrl-C", "caught"
    );
    let mut slow = Vec::new();
    for (kind, of) in &mut callers {
        let took = std::array::from_fn::<_, 3, _>(|at| {
            let (caller, how) = (&mut of[at], How::ALL[at]);
            caller.go();
            if ACCEPTED.contains(kind) {
                assert_eq!(caller.line(), "accepted");
            }
            caller.hangs(&format!("{kind} to wait"));
            if (*kind, how) == (FAULT, How::Caught) {
                caller.send(how.signal());
                return None;
            }
            Some(caller.end(how.signal()))
        });
        let [killed, default, caught] = took.map(|took| {
            took.map_or_else(|| "goes on".to_owned(), |took| took.as_millis().to_string())
        });
        println!("{kind:<12} {killed:>12} {default:>12} {caught:>12}");
        let is_slow = |took: &&Duration| **took >= Duration::from_secs(1);
        slow.extend(took.iter().flatten().filter(is_slow).map(|_| *kind));
    }
    assert_eq!(slow, Vec::<&str>::new());
    shells_end(&home);
    exits.go();
    assert_eq!(exits.line(), "accepted");
    let took = exits.end(Signal::KILL);
    println!("{:<12} {:>12}", "exit", took.as_millis());
    assert!(took < Duration::from_secs(1), "{took:?}");

    home.lab().heal(Side::Client);
    // it could only have been SIGBUS before
    let faults = callers.iter_mut().find(|(kind, _)| *kind == FAULT);
    assert_eq!(faults.unwrap().1[2].signal(), Some(Signal::INT.as_raw()));
    home.sync();
    nothing_happens_later(&home);
    home.unmount();
}

/// Whoever has caught Ctrl-C and exits has files open, too.
#[test]
fn a_process_that_exits_does_not_wait_for_each_of_its_files() {
    need_cut!();
    let home = home();
    ["exit", "many"].into_iter().for_each(|name| prepare(&home, name));
    home.mount("timeout=30,grace=100");
    let mut callers = [("exit", "exit"), ("exit many", "many")]
        .map(|(kind, name)| (kind, Caller::start(&home, kind, "caught", name)));
    callers.iter_mut().for_each(|(_, caller)| caller.is_ready());
    home.lab().cut(Side::Client);
    let took = callers.each_mut().map(|(kind, caller)| {
        caller.go();
        assert_eq!(caller.line(), "accepted");
        let start = Instant::now();
        assert_eq!(wait(&mut caller.child, Duration::from_secs(20)), Some(0));
        println!("{kind:<12} {:>12}", start.elapsed().as_millis());
        start.elapsed()
    });
    assert!(took.iter().all(|took| *took < Duration::from_secs(1)), "{took:?}");
    home.lab().heal(Side::Client);
    home.sync();
    for name in ["exit", "many"] {
        let text = fs::read_to_string(home.disk.join(name)).unwrap();
        assert!(text.starts_with("accepted\n"), "what was accepted is not there: {text:.40}");
    }
    home.unmount();
}

fn df_answers(home: &Home) {
    // once while it is to be found out that the host is late, and once when that is known
    let answers = [(); 2].map(|()| {
        let mut command = Command::new("df");
        command.arg(&home.mountpoint);
        Outcome::of(command, Duration::from_secs(20)).ok().took
    });
    println!("df answers after {answers:?}");
    assert!(answers.iter().all(|took| *took < Duration::from_secs(2)), "{answers:?}");
}

/// Also what was on its way when the network was cut, and nobody had noticed, does not happen when
/// the network is back at once.
#[test]
fn what_was_interrupted_on_its_way_does_not_arrive_later() {
    need_cut!();
    let home = home();
    prepare(&home, "kept");
    home.mount("timeout=30,grace=100,allow_other");
    let mut caller = Caller::start(&home, "fchmod", "default", "kept");
    caller.is_ready();
    home.lab().cut(Side::Client);
    caller.go();
    caller.hangs("it to wait");
    // before, the kernel would only take it back
    eventually("it to be on its way", Duration::from_secs(5), || {
        home.world.mount_status()["pending"]["unapplied"] == 1
    });
    let took = caller.end(Signal::INT);
    assert!(took < Duration::from_secs(1), "{took:?}");
    eventually("the connection to be given up", Duration::from_secs(5), || {
        home.world.mount_status()["state"] == "reconnecting"
    });
    home.lab().heal(Side::Client);
    home.sync();
    let mode = fs::metadata(home.disk.join("kept")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o644, "chmod happened after it was interrupted");
    home.unmount();
}

/// What was interrupted has not happened; what was accepted has.
fn nothing_happens_later(home: &Home) {
    for kind in MAKES {
        for how in How::ALL {
            let made = home.disk.join(format!("{}.made", name(kind, how.word())));
            assert!(!made.exists(), "{kind} happened after it was interrupted");
        }
    }
    for how in How::ALL {
        let kept = home.disk.join(name("unlink", how.word()));
        assert!(kept.exists(), "unlink happened after it was interrupted");
        for kind in ACCEPTED {
            let text = fs::read_to_string(home.disk.join(name(kind, how.word()))).unwrap();
            let kept = text.starts_with("accepted\n");
            assert!(kept, "what {kind} ({how:?}) had accepted is not there: {:.40}", text);
        }
        let mapped = fs::read_to_string(home.disk.join(name("msync", how.word()))).unwrap();
        assert!(mapped.starts_with("mapped\n"), "what was mapped is not there: {mapped:.40}");
        let text = fs::read_to_string(home.disk.join(name("append", how.word()))).unwrap();
        assert!(!text.contains("appended"), "append happened after it was interrupted");
    }
}

/// `dd` and `bash` catch what Ctrl-C sends.
fn shells_end(home: &Home) {
    let other = home.mountpoint.join("hello");
    let path = other.to_str().unwrap();
    let trap = format!("trap 'echo caught; exit 3' INT; echo set; read x < {path}; echo went on");
    for (program, arguments) in [
        ("dd", vec![format!("if={path}"), "of=/dev/null".to_owned()]),
        ("cat", vec![path.to_owned()]),
        ("bash", vec!["-c".to_owned(), trap]),
    ] {
        // whoever starts the tests in the background ignores it, and a shell cannot change that
        let mut command = Command::new("env");
        command.args(["--default-signal=INT", program]).args(arguments);
        command.stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = command.spawn().unwrap();
        let said = BufReader::new(child.stdout.take().unwrap());
        let mut caller = Caller { child, said };
        if program == "bash" {
            // it sleeps also while it is read from a slow disk itself
            assert_eq!(caller.line(), "set");
        }
        caller.hangs(&format!("{program} to wait"));
        let took = caller.end(Signal::INT);
        println!("{program:<12} {:>25}", took.as_millis());
        assert!(took < Duration::from_secs(1), "{program}: {took:?}");
        let mut said = String::new();
        caller.said.read_to_string(&mut said).unwrap();
        assert_eq!(said, if program == "bash" { "caught\n" } else { "" });
    }
}

#[test]
fn after_the_grace_calls_fail_with_a_plain_error() {
    need_cut!();
    let home = home();
    for kind in KINDS.into_iter().filter(|kind| *kind != "stat") {
        prepare(&home, &name(kind, "grace"));
    }
    home.mount("timeout=30,grace=2");
    // of what is newer than the mount nothing is known that could be served without the host
    prepare(&home, &name("stat", "grace"));
    let mut callers: Vec<(&str, Caller)> = KINDS
        .map(|kind| (kind, Caller::start(&home, kind, "caught", &name(kind, "grace"))))
        .into_iter()
        .collect();
    callers.iter_mut().for_each(|(_, caller)| caller.is_ready());
    // the grace counts from the last that was heard: an open asks the host
    let heard = monotonic_ms();
    fs::File::open(home.mountpoint.join("hello")).unwrap();
    home.lab().cut(Side::Client);
    let cut = monotonic_ms();
    println!("cut {} ms after the host was asked", cut - heard);
    callers.iter_mut().for_each(|(_, caller)| caller.go());
    println!("{:<12} {:>12} {:>12} {:>12}", "call", "error", "after ms", "of the cut");
    let mut early = Vec::new();
    for (kind, caller) in &mut callers {
        if ACCEPTED.contains(kind) {
            assert_eq!(caller.line(), "accepted");
        }
        if *kind == FAULT {
            assert_eq!(caller.signal(), Some(Signal::BUS.as_raw()));
            println!("{kind:<12} {:>12}", "SIGBUS");
            continue;
        }
        let line = caller.line();
        let [error, after, end] = line.split(' ').collect::<Vec<_>>().try_into().unwrap();
        let (after, end) = (after.parse::<u64>().unwrap(), end.parse::<u64>().unwrap());
        println!("{kind:<12} {error:>12} {after:>12} {:>12}", end - cut);
        assert_eq!(error, "ETIMEDOUT", "{kind}");
        assert!(after < 6000, "{kind}: {after} ms");
        if end < heard + 2000 {
            early.push((*kind, end - heard));
        }
    }
    assert!(early.is_empty(), "before the grace was over: {early:?}");
    let start = Instant::now();
    let error = fs::read(home.mountpoint.join("hello")).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(TIMED_OUT));
    assert!(start.elapsed() < Duration::from_secs(1), "known to be away: {:?}", start.elapsed());

    home.lab().heal(Side::Client);
    let start = Instant::now();
    eventually("the host to be there again", Duration::from_secs(30), || {
        fs::read(home.mountpoint.join("hello")).is_ok()
    });
    println!("there again after {} ms", start.elapsed().as_millis());
    home.sync();
    home.unmount();
}

#[test]
fn the_grace_is_half_a_minute_if_nothing_is_said() {
    assert_eq!(MountOptions::default().grace, Some(Duration::from_secs(30)));
}

#[test]
#[ignore = "takes half a minute"]
fn a_call_waits_for_half_a_minute_if_nothing_is_said() {
    need_cut!();
    let home = home();
    prepare(&home, "open");
    home.mount("timeout=30");
    let mut caller = Caller::start(&home, "open", "caught", "open");
    caller.is_ready();
    let heard = monotonic_ms();
    fs::File::open(home.mountpoint.join("hello")).unwrap();
    home.lab().cut(Side::Client);
    caller.go();
    let line = caller.line();
    let end: u64 = line.rsplit_once(' ').unwrap().1.parse().unwrap();
    println!("{line}: {} ms after the host was heard", end - heard);
    assert!(line.starts_with("ETIMEDOUT ") && (30_000..36_000).contains(&(end - heard)), "{line}");
    home.lab().heal(Side::Client);
    home.unmount();
}

/// What the callers tell the time by.
fn monotonic_ms() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    now.tv_sec as u64 * 1000 + now.tv_nsec as u64 / 1_000_000
}

/// Writes and reads go on over a cut of `length`: what they see is a pause.
fn goes_on_over(home: &Home, length: Duration) {
    let mut film = vec![0; 64 << 20];
    film.iter_mut().zip(0_u32..).for_each(|(byte, n)| {
        *byte = (n.wrapping_mul(2_654_435_761) >> 24) as u8;
    });
    fs::write(home.disk.join("film"), &film).unwrap();
    let before = home.world.mount_status()["connection_id"].clone();
    let mut written = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .open(home.mountpoint.join("copy"))
        .unwrap();
    let mut read = fs::File::open(home.mountpoint.join("film")).unwrap();
    std::thread::scope(|scope| {
        let copy = scope.spawn(|| {
            let mut longest = Duration::ZERO;
            let mut buffer = vec![0; 1 << 20];
            for _ in 0..64 {
                let start = Instant::now();
                read.read_exact(&mut buffer).unwrap();
                written.write_all(&buffer).unwrap();
                longest = longest.max(start.elapsed());
            }
            written.sync_all().unwrap();
            longest
        });
        eventually("some of it to be written", Duration::from_secs(20), || {
            fs::metadata(home.disk.join("copy")).is_ok_and(|copy| copy.len() > 1 << 20)
        });
        home.lab().cut(Side::Client);
        let cut = Instant::now();
        eventually("the cut to have lasted", length + Duration::from_secs(5), || {
            cut.elapsed() >= length
        });
        home.lab().heal(Side::Client);
        let longest = copy.join().unwrap();
        println!("cut for {length:?}: the longest pause of the copy was {longest:?}");
    });
    assert!(fs::read(home.disk.join("copy")).unwrap() == film);
    let after = home.world.mount_status()["connection_id"].clone();
    println!("connection {before} before, {after} after");
}

#[test]
fn a_cut_of_five_seconds_is_a_pause() {
    need_cut!();
    let home = home();
    home.mount("timeout=30");
    goes_on_over(&home, Duration::from_secs(5));
    home.unmount();
}

#[test]
#[ignore = "takes five minutes"]
fn a_cut_of_five_minutes_is_a_pause_for_those_who_wait_for_ever() {
    need_cut!();
    let home = home();
    home.mount("timeout=30,grace=inf");
    goes_on_over(&home, Duration::from_secs(300));
    home.unmount();
}

#[test]
#[ignore = "takes five minutes"]
fn after_a_cut_of_five_minutes_a_mount_works_as_before() {
    need_cut!();
    let home = home();
    home.mount("timeout=30");
    let mut open = OpenOptions::new();
    let path = home.mountpoint.join("written");
    let mut open = open.read(true).write(true).create(true).open(&path).unwrap();
    open.write_all(b"before, ").unwrap();
    open.sync_all().unwrap();
    home.lab().cut(Side::Client);
    let cut = Instant::now();
    open.write_all(b"meanwhile, ").unwrap();
    assert_eq!(open.sync_all().unwrap_err().raw_os_error(), Some(TIMED_OUT));
    println!("fsync failed after {:?}", cut.elapsed());
    eventually("the cut to have lasted", Duration::from_secs(320), || {
        cut.elapsed() >= Duration::from_secs(300)
    });
    home.lab().heal(Side::Client);
    eventually("the host to be there again", Duration::from_secs(60), || {
        fs::read(home.mountpoint.join("hello")).is_ok()
    });
    open.write_all(b"after").unwrap();
    open.sync_all().unwrap();
    let on_disk = |path: &Path| fs::read_to_string(path).unwrap();
    assert_eq!(on_disk(&home.disk.join("written")), "before, meanwhile, after");
    drop(open);
    home.unmount();
}
