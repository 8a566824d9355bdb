//! kill -9 of each of the three programs at random moments of `rsync` and `git clone` on the mount
//! (N1): what `fsync` confirmed is on the host's disk, no file is torn, and the mount works
//! afterwards.
//!
//! `P2PFS_KILL_ROUNDS=50` for the long run; `P2PFS_SEED` for the moments of a run that failed.

use std::env;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rustix::process::{Pid, Signal, kill_process};

use crate::world::outcome::{tool, wait};
use crate::world::{Home, Outcome, eventually, is_mounted, need_mount, need_root, programs, skip};

/// Rounds of an ordinary run.
const ROUNDS: u64 = 5;
/// The latest moment at which a program is killed: most jobs take longer.
const MOMENT_MS: u64 = 500;
/// How long a job may take, with a program killed under it.
const JOB: Duration = Duration::from_secs(90);
/// Longer than a program is away.
const OPTIONS: &str = "timeout=20,grace=60,allow_other";

/// Makes files, one after the other, and notes the number of each that `fsync` has confirmed, until
/// its input ends.
const CONFIRMED: &str = r#"
import os, select, sys
log = os.open(sys.argv[2], os.O_CREAT | os.O_WRONLY | os.O_APPEND)
number = 0
while not select.select([sys.stdin], [], [], 0)[0]:
    file = os.open("%s/%d" % (sys.argv[1], number), os.O_CREAT | os.O_EXCL | os.O_WRONLY)
    rest = (b"%08d\n" % number) * (1 + number % 7 * 3000)
    while rest:
        rest = rest[os.write(file, rest):]
    os.fsync(file)
    os.write(log, b"%d\n" % number)
    os.close(file)
    number += 1
"#;

#[derive(Clone, Copy, Debug)]
enum Victim {
    Mountd,
    Hostd,
    Server,
}

#[derive(Clone, Copy, Debug)]
enum Job {
    Rsync,
    /// Object by object, each written under its own name.
    Clone,
    /// As from another machine: one pack, which has its name when it is whole.
    Fetch,
}

/// What the jobs copy.
struct Origin {
    tree: PathBuf,
    repository: PathBuf,
}

#[test]
fn nothing_is_torn_and_nothing_confirmed_is_lost_whoever_is_killed() {
    need_mount!();
    need_root!();
    if let Some(reason) = programs::missing(&["python3", "rsync", "git"]) {
        return skip(&reason);
    }
    let number = |name: &str| env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos() as u64;
    let seed = number("P2PFS_SEED").unwrap_or(now);
    let rounds = number("P2PFS_KILL_ROUNDS").unwrap_or(ROUNDS);
    println!("P2PFS_SEED={seed} P2PFS_KILL_ROUNDS={rounds}");
    let mut dice = Dice(seed);
    let mut home = Home::on_loopback();
    let origin = Origin::make(&home);
    home.mount(OPTIONS);
    let (first_victim, first_job) = (dice.roll() % 3, dice.roll() % 4);
    for round in 0..rounds {
        // each of them in three rounds; in five, two of rsync's at least and two of git's
        let at = ((first_victim + round) % 3) as usize;
        let victim = [Victim::Mountd, Victim::Hostd, Victim::Server][at];
        let at = ((first_job + round) % 4) as usize;
        let job = [Job::Rsync, Job::Clone, Job::Rsync, Job::Fetch][at];
        let moment = Duration::from_millis(dice.roll() % MOMENT_MS);
        killed(&mut home, &origin, round, victim, job, moment);
    }
    home.unmount();
}

fn killed(
    home: &mut Home,
    origin: &Origin,
    round: u64,
    victim: Victim,
    job: Job,
    moment: Duration,
) {
    let start = Instant::now();
    let (into, there) = (home.mountpoint.join("copy"), home.disk.join("copy"));
    let (confirmed, log) = (home.mountpoint.join("confirmed"), home.world.path("confirmed.log"));
    fs::create_dir(&confirmed).unwrap();
    let _ = fs::remove_file(&log);
    let mountd = home.world.processes_of(b"p2pfs-mountd");
    let mut writer = Command::new("python3");
    writer.args(["-c", CONFIRMED, "confirmed"]).arg(&log).stdin(Stdio::piped());
    // from within: what is not mounted at the moment is not written to
    writer.current_dir(&home.mountpoint).stderr(Stdio::null());
    let mut writer = writer.spawn().unwrap();
    let mut copier = job.start(origin, home);
    thread::sleep(moment);
    let running = copier.try_wait().unwrap().is_none();
    match victim {
        Victim::Mountd => kill_all(&mountd),
        Victim::Hostd => home.restart_host(),
        Victim::Server => home.restart_server(),
    }
    let done = wait(&mut copier, JOB);
    drop(writer.stdin.take());
    let wrote = wait(&mut writer, JOB);
    let kept = check_confirmed(&log, &home.disk.join("confirmed"));
    let shown = format!("{round:>3}: {victim:?} {moment:>5.0?} into {job:?}");
    if matches!(victim, Victim::Mountd) {
        back_again(home);
    } else {
        assert_eq!((done, wrote), (Some(0), Some(0)), "{shown}");
        home.sync();
    }
    let whole = job.check(origin, &there, done == Some(0) && !matches!(victim, Victim::Mountd));
    job.repeat(origin, &into, &there, home);
    fs::write(home.mountpoint.join("after"), &shown).unwrap();
    File::open(home.mountpoint.join("after")).unwrap().sync_all().unwrap();
    assert_eq!(fs::read_to_string(home.disk.join("after")).unwrap(), shown);
    tool("rm", &["-rf", text(&into), text(&confirmed)]);
    let ended = if running { "" } else { " (it had ended)" };
    println!(
        "{shown}{ended}: {kept} confirmed, {whole} whole, {:.1} s",
        start.elapsed().as_secs_f64()
    );
}

impl Origin {
    fn make(home: &Home) -> Self {
        let tree = home.world.directory("tree");
        for number in 0..150_usize {
            let dir = tree.join(format!("dir{}", number % 10));
            fs::create_dir_all(&dir).unwrap();
            let size = if number % 50 == 0 { 3 << 20 } else { 100 + number * 97 };
            let data: Vec<u8> = (0..size).map(|at| (at * 7 + number + at / 251) as u8).collect();
            fs::write(dir.join(format!("file{number}")), data).unwrap();
        }
        let repository = home.world.path("repository");
        tool("cp", &["-a", text(&tree), text(&repository)]);
        for args in [&["init", "-q"][..], &["add", "."], &["commit", "-q", "-m", "all"]] {
            git(&repository, args);
        }
        Self { tree, repository }
    }
}

impl Job {
    fn start(self, origin: &Origin, home: &Home) -> Child {
        let said = File::create(home.world.path("job.log")).unwrap();
        let mut command = self.command(origin, Path::new("copy"));
        command.current_dir(&home.mountpoint).stderr(said).stdin(Stdio::null()).spawn().unwrap()
    }

    fn command(self, origin: &Origin, into: &Path) -> Command {
        match self {
            Self::Rsync => {
                let mut command = Command::new("rsync");
                command.args(["-a", "--whole-file"]).arg(origin.tree.join("")).arg(into);
                command
            }
            Self::Clone | Self::Fetch => {
                let how = if matches!(self, Self::Clone) { "--no-hardlinks" } else { "--no-local" };
                let mut command = Command::new("git");
                command.args(["clone", "-q", how]).args([&origin.repository, into]);
                command
            }
        }
    }

    /// On the host's disk every file is whole or absent; how many are.
    fn check(self, origin: &Origin, there: &Path, all: bool) -> usize {
        match self {
            Self::Rsync => {
                let mut whole = 0;
                for (name, path) in files(there, there) {
                    let is_temporary = path.file_name().unwrap().to_string_lossy().starts_with('.');
                    if !is_temporary {
                        let wanted = fs::read(origin.tree.join(&name)).unwrap();
                        assert!(fs::read(&path).unwrap() == wanted, "{} is torn", path.display());
                        whole += 1;
                    }
                }
                assert!(!all || whole == files(&origin.tree, &origin.tree).len(), "{whole} files");
                whole
            }
            Self::Clone | Self::Fetch => {
                if all {
                    assert_eq!(git(there, &["fsck", "--full", "--strict"]), "");
                    assert_eq!(git(there, &["status", "--porcelain"]), "");
                }
                let (whole, torn) = cloned(origin, there);
                let found = files(&origin.tree, &origin.tree).len();
                assert!(!all || torn.is_empty() && whole >= found, "{whole} files, {torn:?}");
                // git has one file open at a time, under the name that it is to have
                assert!(torn.len() <= 1, "torn: {torn:?}");
                whole
            }
        }
    }

    /// Once more, undisturbed: then both sides are equal.
    fn repeat(self, origin: &Origin, into: &Path, there: &Path, home: &Home) {
        match self {
            Self::Rsync => {
                let from = origin.tree.join("");
                tool("rsync", &["-a", "-c", "--delete", text(&from), text(into)]);
                home.sync();
                tool("diff", &["-r", text(&origin.tree), text(there)]);
            }
            Self::Clone | Self::Fetch => {
                tool("rm", &["-rf", text(into)]);
                let cloned = Outcome::of(self.command(origin, into), JOB);
                cloned.ok();
                assert_eq!(git(into, &["fsck", "--full", "--strict"]), "");
                home.sync();
                assert_eq!(git(there, &["fsck", "--full", "--strict"]), "");
                assert_eq!(git(there, &["status", "--porcelain"]), "");
            }
        }
    }
}

/// Compares what is there of a clone, its objects and what was checked out, with the origin: how
/// many files are whole, and the beginnings of files. Anything else is torn by us.
fn cloned(origin: &Origin, there: &Path) -> (usize, Vec<PathBuf>) {
    let (mut whole, mut begun) = (0, Vec::new());
    for (name, path) in files(there, there) {
        let file = path.file_name().unwrap().to_string_lossy();
        let in_git = name.strip_prefix(".git").ok();
        let is_object = in_git.is_some_and(|name| name.starts_with("objects"));
        if in_git.is_some() && !is_object || file.starts_with("tmp_") {
            continue;
        }
        if is_object && file.starts_with("pack-") {
            is_pack_whole(&path);
            whole += 1;
            continue;
        }
        let wanted = fs::read(origin.repository.join(&name));
        let wanted = wanted.unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let found = fs::read(&path).unwrap();
        if found == wanted {
            whole += 1;
        } else {
            assert!(wanted.starts_with(&found), "{} is torn", path.display());
            begun.push(name);
        }
    }
    (whole, begun)
}

/// Has git read a pack, or its index, which comes after it.
fn is_pack_whole(path: &Path) {
    match path.extension().and_then(|extension| extension.to_str()) {
        Some("pack") => {
            let index = tempfile::NamedTempFile::new().unwrap();
            let index = text(index.path()).to_owned() + ".idx";
            tool("git", &["index-pack", "-o", &index, text(path)]);
            fs::remove_file(index).unwrap();
        }
        Some("idx") => drop(tool("git", &["verify-pack", text(path)])),
        // made of the pack, and made again where it is missing
        _ => {}
    }
}

fn kill_all(pids: &[Pid]) {
    assert!(!pids.is_empty(), "no mountd");
    for pid in pids {
        kill_process(*pid, Signal::KILL).unwrap();
    }
}

/// The mount comes back by itself.
fn back_again(home: &Home) {
    eventually("the mount to be back", Duration::from_secs(20), || {
        is_mounted(&home.mountpoint) && home.mountpoint.join("hello").exists()
    });
}

/// What was confirmed is on the host's disk, whole; how many files that are.
fn check_confirmed(log: &Path, there: &Path) -> usize {
    let log = fs::read_to_string(log).unwrap_or_default();
    for line in log.lines() {
        let number: usize = line.parse().unwrap();
        let wanted = format!("{number:08}\n").repeat(1 + number % 7 * 3000);
        let found = fs::read_to_string(there.join(line));
        assert!(found.is_ok_and(|found| found == wanted), "file {number} was confirmed");
    }
    log.lines().count()
}

/// Every file below a directory, by its name from there; none if there is no such directory.
fn files(root: &Path, dir: &Path) -> Vec<(PathBuf, PathBuf)> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).into_iter().flatten() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(root, &path));
        } else {
            found.push((path.strip_prefix(root).unwrap().to_owned(), path));
        }
    }
    found
}

fn git(at: &Path, args: &[&str]) -> String {
    let who = ["-c", "user.name=A", "-c", "user.email=a@example", "-c", "safe.directory=*"];
    tool("git", &[&["-C", text(at)], &who[..], args].concat()).stdout.trim().to_owned()
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// SplitMix64.
struct Dice(u64);

impl Dice {
    fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ mixed >> 31
    }
}
