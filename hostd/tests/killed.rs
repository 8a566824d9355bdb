//! A host that is killed at any of its system calls, and started again, leaves what one leaves that
//! was never killed.
//!
//! The test binary runs itself as the host: a script of entries goes through the applier and the
//! export to a directory. `strace` kills it as it enters the N-th of its calls of one name, for
//! every N and for every name of a call that changes something, so that it stops in every state
//! that it can leave. The next run goes on from the record.

#![expect(clippy::unwrap_used, reason = "what fails here fails the test")]

/// The entries.
#[path = "killed/script.rs"]
mod script;
/// What a directory holds.
#[path = "killed/tree.rs"]
mod tree;

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::Write as _;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use bytes::Bytes;
use p2pfs::id::{Seq, SessionId};
use p2pfs::net::serve::Export;
use p2pfs::proto::redo::applier::{self, Applier};
use p2pfs::proto::redo::record::Begun;
use p2pfs::wire::log::{LogAck, Outcome, Refused};
use p2pfs_hostd::export::Share;
use p2pfs_hostd::keys::Map;
use p2pfs_hostd::record::Records;
use tempfile::TempDir;

use tree::Node;

/// Where the host that is killed works.
const WORK: &str = "P2PFS_KILLED_WORK";
/// What the client was told, a line for each answer; and that it has no more to ask.
const TOLD: &str = "told";
const ENDED: &str = "ended";
const SESSION: SessionId = SessionId([7; 16]);
/// What the host calls to change something, its record included.
const CALLS: [&str; 20] = [
    "copy_file_range",
    "fallocate",
    "fchmodat",
    "fchownat",
    "ftruncate",
    "linkat",
    "mkdir",
    "mkdirat",
    "mknodat",
    "openat",
    "openat2",
    "pwrite64",
    "pwritev2",
    "rename",
    "renameat2",
    "removexattr",
    "setxattr",
    "symlinkat",
    "unlinkat",
    "utimensat",
];
/// What it calls to reach the disk.
const SYNCS: &str = "fdatasync,fsync,syncfs";

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
    let expected = (undisturbed.told(), undisturbed.tree());
    let same = |world: &World, what: &str| {
        for (answer, other) in world.told().iter().zip(&expected.0) {
            assert_eq!(answer, other, "{what}: another answer");
        }
        assert_eq!(world.told().len(), expected.0.len(), "{what}");
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
    // Each entry has an intent and a result
    assert!(points > 2 * script::entries().len(), "only {points} kill points");
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

    /// Runs a host to the end.
    fn finish(&self) {
        assert!(!self.run(&["--trace", SYNCS]));
    }

    /// Runs a host until it enters its `at`-th `call`; false if it came to the end before.
    fn kill(&self, call: &str, at: usize) -> bool {
        let inject = format!("--inject={call}:signal=SIGKILL:when={at}");
        self.run(&["--trace", &format!("{call},{SYNCS}"), &inject])
    }

    /// Runs a host under strace; true if it was killed.
    fn run(&self, args: &[&str]) -> bool {
        let mut strace = strace();
        // A killed process leaves to the kernel what it wrote: the disk has no part in this
        strace.arg(format!("--inject={SYNCS}:retval=0")).args(args);
        strace.arg(std::env::current_exe().unwrap());
        strace.args(["host", "--exact", "--ignored", "--test-threads=1"]);
        let output = strace.env(WORK, self.dir.path()).stdin(Stdio::null()).output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        // strace ends as what it ran did
        let killed = output.status.signal() == Some(9);
        assert!(killed || output.status.success(), "{output:?}\n{said}");
        assert_ne!(killed, self.dir.path().join(ENDED).exists());
        killed
    }

    fn told(&self) -> BTreeMap<u64, String> {
        told(self.dir.path())
    }

    fn tree(&self) -> BTreeMap<PathBuf, Node> {
        tree::read(&self.dir.path().join("share"))
    }
}

/// A host and its client in one: sends every entry that the host has not seen.
fn serve(work: &Path) {
    rustix::process::umask(rustix::fs::Mode::empty());
    let records = Records::open(&work.join("state")).unwrap();
    let view = Share::open(&work.join("share")).unwrap().view_for(SESSION, &records, Map::Squash);
    let mut applier = match view.recover() {
        Some(recovered) => Applier::recover(recovered),
        None => {
            let epoch = view.epoch();
            view.begin(Begun { epoch, first: Seq(1), stable: Seq::ZERO, outlives: false }, &[])
                .unwrap();
            Applier::new(epoch, Seq(1))
        }
    };
    let mut client = Client::open(work);
    let cursor = applier.resume(client.unanswered());
    assert_eq!(cursor.epoch, view.epoch());
    drain(&mut applier, &*view, &mut client);
    for (entry, body) in script::entries() {
        if entry.seq > cursor.applied && !cursor.ahead.contains(&entry.seq) {
            let bytes = body.len();
            applier.handle_entry(entry, body, bytes, Instant::now()).unwrap();
            drain(&mut applier, &*view, &mut client);
        }
    }
    fs::write(work.join(ENDED), "").unwrap();
}

fn drain(applier: &mut Applier<Bytes, ()>, export: &dyn Export, client: &mut Client) {
    while let Some(output) = applier.poll_output() {
        match output {
            applier::Output::Apply { seq, change, body, how, poisons } => {
                let result = export.apply(export.epoch(), seq, &change, &body, &how, poisons);
                applier.handle_result(seq, result, Instant::now());
            }
            applier::Output::Ack(LogAck::Applied { seq, result }) => client.told(seq, &result),
            applier::Output::Ack(LogAck::Stable { upto }) => export.note_stable(upto),
            applier::Output::Sync { upto } => {
                export.sync_all().unwrap();
                applier.handle_synced(upto, Instant::now());
            }
            other => panic!("{other:?}"),
        }
    }
}

/// What the client was told; it is on another machine, and remembers.
struct Client {
    told: BTreeMap<u64, String>,
    file: File,
}

impl Client {
    fn open(work: &Path) -> Self {
        let told = told(work);
        let file = OpenOptions::new().append(true).create(true).open(work.join(TOLD)).unwrap();
        Self { told, file }
    }

    fn unanswered(&self) -> Seq {
        Seq((1..).find(|seq| !self.told.contains_key(seq)).unwrap())
    }

    fn told(&mut self, seq: Seq, result: &Result<Outcome, Refused>) {
        // Inode numbers and times of birth are others in each run
        let told = match result {
            Ok(_) => "done".to_owned(),
            Err(refused) => format!("{} {:?}", refused.errno, refused.reason),
        };
        writeln!(self.file, "{seq} {told}").unwrap();
        let before = self.told.insert(seq.0, told.clone());
        assert!(before.is_none_or(|before| before == told), "{seq}: first it was another answer");
    }
}

fn told(work: &Path) -> BTreeMap<u64, String> {
    let text = fs::read_to_string(work.join(TOLD)).unwrap_or_default();
    let line = |line: &str| {
        let (seq, told) = line.split_once(' ').unwrap();
        (seq.parse().unwrap(), told.to_owned())
    };
    text.lines().map(line).collect()
}

/// Says nothing itself, and sees threads.
fn strace() -> Command {
    let mut strace = Command::new("strace");
    strace.args(["--quiet=all", "--output=/dev/null", "--follow-forks"]);
    strace
}

/// Why nothing can be killed here.
fn obstacle(parent: &Path) -> Option<String> {
    let world = World::new(parent);
    let mut strace = strace();
    strace.arg("true");
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
