//! A host that is killed at any of its system calls, and started again, leaves what one leaves that
//! was never killed.
//!
//! The test binary runs itself as the host: a script of entries goes through the applier and the
//! export to a directory. `strace` kills it as it enters the N-th of its calls of one name, for every
//! N and for every name of a call that changes something, so that it stops in every state that it can
//! leave. The next run goes on from the record.

#![expect(clippy::unwrap_used, reason = "what fails here fails the test")]

/// The entries.
#[path = "killed/script.rs"]
mod script;
/// What a directory holds.
#[path = "killed/tree.rs"]
mod tree;

use std::collections::BTreeMap;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Instant;

use bytes::Bytes;
use p2pfs::id::{Seq, SessionId};
use p2pfs::net::serve::Export;
use p2pfs::proto::redo::applier::{self, Applier};
use p2pfs::proto::redo::record::Header;
use p2pfs::wire::log::{LogAck, LogEntry};
use p2pfs_hostd::export::Share;
use p2pfs_hostd::record::Records;
use tempfile::TempDir;

use tree::Node;

/// Where the host that is killed works.
const WORK: &str = "P2PFS_KILLED_WORK";
const SESSION: SessionId = SessionId([7; 16]);
/// What the host calls to change something, its record included.
const CALLS: [&str; 18] = [
    "copy_file_range",
    "fallocate",
    "fchmodat",
    "fchownat",
    "ftruncate",
    "linkat",
    "mkdirat",
    "mknodat",
    "openat",
    "openat2",
    "pwrite64",
    "pwritev2",
    "rename,renameat,renameat2",
    "removexattr",
    "setxattr",
    "symlinkat",
    "unlinkat",
    "utimensat",
];

#[test]
fn on_the_disk_a_kill_at_any_call_changes_nothing() {
    kill_everywhere(Path::new(env!("CARGO_TARGET_TMPDIR")));
}

#[test]
fn in_memory_a_kill_at_any_call_changes_nothing() {
    kill_everywhere(Path::new("/dev/shm"));
}

/// Not a test: the host, as the tests run it.
#[test]
#[ignore = "the other tests run it"]
fn host() {
    if let Some(work) = std::env::var_os(WORK) {
        serve(Path::new(&work));
    }
}

fn kill_everywhere(parent: &Path) {
    if let Some(reason) = obstacle(parent) {
        return skip(&reason);
    }
    let began = Instant::now();
    let undisturbed = World::new(parent);
    undisturbed.finish();
    let expected = (undisturbed.results(), undisturbed.tree());
    let same = |world: &World, what: &str| {
        assert_eq!(world.results(), expected.0, "{what}: other answers");
        tree::assert_same(&expected.1, &world.tree(), what);
    };
    let mut points = 0;
    for call in CALLS {
        for at in 1.. {
            let world = World::new(parent);
            let was_killed = world.kill(call, at);
            world.finish();
            same(&world, &format!("killed at {call} number {at}"));
            if !was_killed {
                break;
            }
            points += 1;
        }
    }
    // Killed again and again, also while it goes on from the record
    let mut kills = 0;
    for at in 4..12 {
        let world = World::new(parent);
        while world.kill("pwrite64", at) {
            kills += 1;
        }
        same(&world, &format!("killed at every pwrite64 number {at}"));
    }
    let places = parent.display();
    let took = began.elapsed().as_secs();
    say(&format!("{places}: {points} kill points, {kills} kills in a row, {took} s"));
}

/// A share and a state directory.
struct World {
    dir: TempDir,
}

impl World {
    fn new(parent: &Path) -> Self {
        let dir = tempfile::tempdir_in(parent).unwrap();
        fs::create_dir(dir.path().join("share")).unwrap();
        fs::create_dir(dir.path().join("state")).unwrap();
        Self { dir }
    }

    /// Runs a host until strace kills it; false if it came to the end.
    fn kill(&self, call: &str, at: usize) -> bool {
        let _ = fs::remove_file(self.dir.path().join("results"));
        let mut strace = Command::new("strace");
        strace.args(["--quiet=all", "--follow-forks", "--output=/dev/null"]);
        strace.arg(format!("--trace={call}"));
        strace.arg(format!("--inject={call}:signal=SIGKILL:when={at}"));
        strace.arg(std::env::current_exe().unwrap());
        let output = self.run(strace);
        let ended = self.dir.path().join("results").exists();
        assert_eq!(ended, output.status.success(), "{output:?}");
        !ended
    }

    /// Runs a host to the end.
    fn finish(&self) {
        let output = self.run(Command::new(std::env::current_exe().unwrap()));
        assert!(output.status.success(), "{output:?}");
    }

    fn run(&self, mut command: Command) -> Output {
        command.args(["host", "--exact", "--ignored", "--test-threads=1"]);
        command.env(WORK, self.dir.path()).stdin(Stdio::null()).output().unwrap()
    }

    /// What the client was told, a line for each entry.
    fn results(&self) -> String {
        fs::read_to_string(self.dir.path().join("results")).unwrap()
    }

    fn tree(&self) -> BTreeMap<PathBuf, Node> {
        tree::read(&self.dir.path().join("share"))
    }
}

/// A host and its client in one: sends every entry that the host has not seen.
fn serve(work: &Path) {
    rustix::process::umask(rustix::fs::Mode::empty());
    let records = Records::open(&work.join("state")).unwrap();
    let view = Share::open(&work.join("share")).unwrap().view_for(SESSION, &records);
    let mut applier = match view.recover() {
        Some(recovered) => Applier::recover(recovered),
        None => {
            let epoch = view.epoch();
            let header = Header { session: SESSION, epoch, first: Seq(1), stable: Seq::ZERO };
            view.begin(&header).unwrap();
            Applier::new(epoch, Seq(1))
        }
    };
    let cursor = applier.resume(Seq(1));
    assert_eq!(cursor.epoch, view.epoch());
    let mut results = BTreeMap::new();
    drain(&mut applier, &*view, &mut results);
    for (entry, body) in script::entries() {
        if entry.seq > cursor.applied && !cursor.ahead.contains(&entry.seq) {
            send(&mut applier, entry, body);
            drain(&mut applier, &*view, &mut results);
        }
    }
    let mut lines = String::new();
    for (seq, result) in results {
        lines.push_str(&format!("{seq} {result}\n"));
    }
    fs::write(work.join("results"), lines).unwrap();
}

fn send(applier: &mut Applier<Bytes, ()>, entry: LogEntry, body: Bytes) {
    let bytes = body.len();
    applier.handle_entry(entry, body, bytes, Instant::now()).unwrap();
}

fn drain(
    applier: &mut Applier<Bytes, ()>,
    export: &dyn Export,
    results: &mut BTreeMap<Seq, String>,
) {
    while let Some(output) = applier.poll_output() {
        match output {
            applier::Output::Apply { seq, change, body, how, poisons } => {
                let result = export.apply(seq, &change, &body, &how, poisons);
                applier.handle_result(seq, result, Instant::now());
            }
            applier::Output::Ack(LogAck::Applied { seq, result }) => {
                // Inode numbers and times of birth are others in each run
                let told = match result {
                    Ok(_) => "done".to_owned(),
                    Err(refused) => format!("{} {:?}", refused.errno, refused.reason),
                };
                results.insert(seq, told);
            }
            other => panic!("{other:?}"),
        }
    }
}

/// Why nothing can be killed here.
fn obstacle(parent: &Path) -> Option<String> {
    let world = World::new(parent);
    let mut strace = Command::new("strace");
    strace.args(["--quiet=all", "--output=/dev/null", "--trace=none", "true"]);
    match strace.output() {
        Err(error) => return Some(format!("strace: {error}")),
        Ok(output) if !output.status.success() => return Some(format!("strace: {output:?}")),
        Ok(_) => {}
    }
    // A host that may not open file handles forgets the nodes that clients know when it is killed
    let share = Share::open(&world.dir.path().join("share")).unwrap();
    (!share.finds_by_identity()).then(|| "needs CAP_DAC_READ_SEARCH".to_owned())
}

/// Says that a test did not run, and why; with `CI=true` that is a failure.
#[track_caller]
fn skip(reason: &str) {
    let refused = std::env::var_os("CI").is_some_and(|value| value == "true");
    assert!(!refused, "SKIPPED: {reason} (not allowed with CI=true)");
    say(&format!("SKIPPED: {reason}"));
}

/// Past the capture of the test harness, which hides what a passing test prints.
fn say(what: &str) {
    let test = std::thread::current().name().unwrap_or("a test").to_owned();
    let _ = writeln!(std::io::stderr(), "{test}: {what}");
}
