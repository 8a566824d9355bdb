//! A world of one test: state directories, daemons, keys and mounts below one temporary directory,
//! all gone when the test ends, however it ends.

pub(crate) mod daemon;
pub(crate) mod home;
pub(crate) mod lab;
pub(crate) mod looker;
pub(crate) mod marker;
pub(crate) mod outcome;
pub(crate) mod programs;

use std::ffi::{OsStr, OsString};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;

pub(crate) use daemon::Daemon;
pub(crate) use home::Home;
pub(crate) use outcome::Outcome;

/// How long a command may take before the test gives up on it.
const COMMAND: Duration = Duration::from_secs(90);

/// Which of the three machines.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Side {
    Server,
    Host,
    Client,
}

/// One test's directory, and where its machines are.
pub(crate) struct World {
    dir: Arc<TempDir>,
    lab: Option<lab::Lab>,
}

/// What `pair` printed.
#[derive(Clone, Debug)]
pub(crate) struct Paired {
    /// The key directory.
    pub(crate) dir: PathBuf,
    pub(crate) id: String,
    pub(crate) state: String,
    pub(crate) mac: String,
}

impl Side {
    fn program(self) -> &'static str {
        match self {
            Self::Server => "p2pfs-server",
            Self::Host => "p2pfs-hostd",
            Self::Client => "p2pfs-mountd",
        }
    }

    /// The word of the ready line, and the name of the state directory.
    fn word(self) -> &'static str {
        match self {
            Self::Server => "server",
            Self::Host => "hostd",
            Self::Client => "mountd",
        }
    }
}

impl World {
    /// All three machines are this one.
    pub(crate) fn on_loopback() -> Self {
        Self::new(None)
    }

    /// Each machine has its place in `lab`.
    pub(crate) fn in_lab(lab: lab::Lab) -> Self {
        Self::new(Some(lab))
    }

    fn new(lab: Option<lab::Lab>) -> Self {
        let dir = tempfile::Builder::new().prefix("p2pfs-test.").tempdir().unwrap();
        Self { dir: Arc::new(dir), lab }
    }

    /// The lab that it is in.
    #[track_caller]
    pub(crate) fn lab(&self) -> &lab::Lab {
        self.lab.as_ref().unwrap()
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A new, empty directory.
    pub(crate) fn directory(&self, name: &str) -> PathBuf {
        let path = self.path(name);
        fs::create_dir_all(&path).unwrap();
        path
    }

    pub(crate) fn state(&self, side: Side) -> PathBuf {
        self.path("state").join(side.word())
    }

    /// Whether the client's mount waits for its key. Between the mount's end and that there is a
    /// moment of neither.
    pub(crate) fn is_locked(&self) -> bool {
        self.status(Side::Client)["mounts"][0]["state"] == "locked"
    }

    /// What clients could not deliver.
    pub(crate) fn sealed_files(&self) -> Vec<PathBuf> {
        let entries = fs::read_dir(self.state(Side::Client).join("sealed"));
        entries.into_iter().flatten().flatten().map(|entry| entry.path()).collect()
    }

    /// A command on one of the machines.
    pub(crate) fn command(&self, side: Side, program: impl AsRef<OsStr>) -> Command {
        match &self.lab {
            None => Command::new(program),
            Some(lab) => lab.command(side, program),
        }
    }

    /// One of the programs, with its state directory.
    pub(crate) fn program(&self, side: Side, args: &[&str]) -> Command {
        self.program_in(side, &self.state(side), args)
    }

    /// One of the programs, with another state directory.
    pub(crate) fn program_in(&self, side: Side, state: &Path, args: &[&str]) -> Command {
        let mut command = self.command(side, programs::path(side.program()));
        command.args(args).arg("--state").arg(state);
        command
    }

    /// Starts a daemon and waits until it is ready.
    pub(crate) fn start(&self, side: Side, args: &[&str]) -> Daemon {
        self.start_in(side, &self.state(side), args)
    }

    /// The same, with another state directory.
    pub(crate) fn start_in(&self, side: Side, state: &Path, args: &[&str]) -> Daemon {
        let command = self.program_in(side, state, args);
        Daemon::start(command, side.word(), &self.dir)
    }

    /// A server on `listen`, which may have port 0.
    pub(crate) fn server(&self, listen: &str) -> Daemon {
        let (ip, _) = listen.rsplit_once(':').unwrap();
        let stun = format!("{ip}:0");
        let args = ["run", "--listen", listen, "--stun", &stun];
        self.start(Side::Server, &args)
    }

    /// A server in the lab, on the standard ports, which tells how NATs behave; for both protocols
    /// where a side has IPv6 only.
    pub(crate) fn lab_server(&self) -> Daemon {
        let [ip, alt] = lab::SERVER;
        let mut args = vec!["run".to_owned(), "--public".to_owned(), ip.to_owned()];
        let more = if self.lab().needs_v6() {
            ["--listen", "[::]:443", "--stun", "[::]:3478"].map(str::to_owned).to_vec()
        } else {
            let (listen, stun, alt) =
                (format!("{ip}:443"), format!("{ip}:3478"), format!("{alt}:3479"));
            vec![
                "--listen".to_owned(),
                listen,
                "--stun".to_owned(),
                stun,
                "--stun-alt".to_owned(),
                alt,
            ]
        };
        args.extend(more);
        self.start(Side::Server, &args.iter().map(String::as_str).collect::<Vec<_>>())
    }

    /// The server's address as a side reaches it.
    pub(crate) fn server_for(&self, server: &Daemon, side: Side) -> String {
        let ip = self.lab().server_for(side);
        let ready = server.ready.as_str();
        if ip.is_ipv4() {
            ready.to_owned()
        } else {
            ready.replace(lab::SERVER[0], &format!("[{ip}]"))
        }
    }

    /// The same, to be changed.
    pub(crate) fn lab_mut(&mut self) -> &mut lab::Lab {
        self.lab.as_mut().unwrap()
    }

    /// A host that serves `shares` (`NAME=DIR`) and registers with `server`.
    pub(crate) fn host(&self, server: &str, shares: &[String]) -> Daemon {
        let mut args = vec!["serve", "--server", server];
        for share in shares {
            args.extend(["--share", share]);
        }
        self.start(Side::Host, &args)
    }

    /// The same host, after its machine has booted again: the kernel says another boot id.
    pub(crate) fn host_after_boot(&self, server: &str, shares: &[String], more: &[&str]) -> Daemon {
        let id = self.path("boot_id");
        let last = fs::read_to_string(&id).unwrap_or_default();
        let boots = last.get(..8).map_or(0, |number| number.parse::<u32>().unwrap() + 1);
        fs::write(&id, format!("{boots:08}-1111-2222-3333-444444444444\n")).unwrap();
        let within = "mount --bind \"$0\" /proc/sys/kernel/random/boot_id && exec \"$@\"";
        let mut command = self.command(Side::Host, "unshare");
        command.args(["--mount", "sh", "-c", within]).arg(&id);
        command.arg(programs::path(Side::Host.program()));
        command.args(["serve", "--server", server]);
        for share in shares {
            command.args(["--share", share]);
        }
        command.args(more);
        command.arg("--state").arg(self.state(Side::Host));
        Daemon::start(command, Side::Host.word(), &self.dir)
    }

    /// Pairs the key directory `name` with the host.
    pub(crate) fn pair(&self, name: &str, more: &[&str]) -> Paired {
        let dir = self.directory(name);
        let mut args = vec!["pair", "--key", dir.to_str().unwrap()];
        args.extend(more);
        let outcome = self.hostd(&args).ok();
        Paired::read(&dir, &outcome.stdout)
    }

    /// A command of the host's owner.
    pub(crate) fn hostd(&self, args: &[&str]) -> Outcome {
        Outcome::of(self.program(Side::Host, args), COMMAND)
    }

    /// A command of the client's user.
    pub(crate) fn mountd(&self, args: &[&str]) -> Outcome {
        Outcome::of(self.program(Side::Client, args), COMMAND)
    }

    /// A command of the server's owner.
    pub(crate) fn server_command(&self, args: &[&str]) -> Outcome {
        Outcome::of(self.program(Side::Server, args), COMMAND)
    }

    /// `p2pfs-mountd mount SOURCE MOUNTPOINT -o OPTIONS`.
    pub(crate) fn mount(&self, source: &str, mountpoint: &Path, options: &str) -> Outcome {
        let mountpoint = mountpoint.to_str().unwrap();
        self.mountd(&["mount", source, mountpoint, "-o", options])
    }

    /// `p2pfs-mountd unmount MOUNTPOINT`; must succeed and leave nothing.
    pub(crate) fn unmount(&self, mountpoint: &Path) {
        self.mountd(&["unmount", mountpoint.to_str().unwrap()]).ok();
        self.assert_nothing_left(mountpoint);
    }

    /// Waits until everything written below `mountpoint` is on the host's disk.
    pub(crate) fn sync(&self, mountpoint: &Path) {
        self.mountd(&["sync", mountpoint.to_str().unwrap()]).ok();
    }

    /// `status --json` of a daemon.
    pub(crate) fn status(&self, side: Side) -> Value {
        let outcome = Outcome::of(self.program(side, &["status", "--json"]), COMMAND).ok();
        outcome.json()
    }

    /// The one mount of `status --json`.
    pub(crate) fn mount_status(&self) -> Value {
        let status = self.status(Side::Client);
        assert_eq!(status["mounts"].as_array().map(Vec::len), Some(1), "{status:#}");
        status["mounts"][0].clone()
    }

    /// No mount, no process and no file is left where one was mounted or refused.
    #[track_caller]
    pub(crate) fn assert_nothing_left(&self, mountpoint: &Path) {
        eventually("the mount to be gone", Duration::from_secs(5), || !is_mounted(mountpoint));
        if mountpoint.exists() {
            assert_eq!(fs::read_dir(mountpoint).unwrap().count(), 0, "files are left");
        }
        eventually("mountd and its guard to be gone", Duration::from_secs(10), || {
            self.processes_of(b"mount").is_empty() && self.processes_of(b"guard").is_empty()
        });
    }

    /// Processes of this test whose program's name contains `name`.
    pub(crate) fn processes_of(&self, name: &[u8]) -> Vec<Pid> {
        let ours = self.dir.path().as_os_str().as_encoded_bytes();
        let mut found = Vec::new();
        for entry in fs::read_dir("/proc").unwrap().flatten() {
            let Ok(number) = entry.file_name().to_string_lossy().parse::<i32>() else {
                continue;
            };
            let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
            let program = line.split(|byte| *byte == 0).next().unwrap_or_default();
            if contains(&line, ours) && contains(program, name) {
                found.extend(Pid::from_raw(number));
            }
        }
        found
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if thread::panicking() {
            let logs = fs::read_dir(self.state(Side::Client)).into_iter().flatten().flatten();
            for path in logs.map(|entry| entry.path()) {
                if path.extension().is_some_and(|extension| extension == "log") {
                    let log = fs::read(&path).unwrap_or_default();
                    eprintln!("--- {}\n{}", path.display(), String::from_utf8_lossy(&log));
                }
            }
        }
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
        let ours = self.dir.path().to_string_lossy().into_owned();
        for target in mounts.lines().filter_map(|line| line.split(' ').nth(1)) {
            if target.starts_with(&ours) {
                let unmount = if programs::is_root() {
                    Command::new("umount").args(["-l", target]).output()
                } else {
                    Command::new("fusermount3").args(["-uz", target]).output()
                };
                drop(unmount);
            }
        }
        // the guards first: they begin anew what is killed
        for program in [&b"p2pfs-guard"[..], b"p2pfs-mountd"] {
            for pid in self.processes_of(program) {
                let _ = kill_process(pid, Signal::KILL);
            }
        }
    }
}

impl Paired {
    /// From `paired ID state=... mac=...; safe to unplug`.
    #[track_caller]
    fn read(dir: &Path, printed: &str) -> Self {
        let line = printed.lines().find(|line| line.starts_with("paired "));
        let line = line.unwrap_or_else(|| panic!("no `paired` line in {printed:?}"));
        let facts = line.strip_suffix("; safe to unplug").unwrap();
        let mut words = facts.split(' ').skip(1);
        let id = words.next().unwrap().to_owned();
        let state = words.next().unwrap().strip_prefix("state=").unwrap();
        let mac = words.next().unwrap().strip_prefix("mac=").unwrap();
        Self { dir: dir.to_owned(), id, state: state.to_owned(), mac: mac.to_owned() }
    }

    /// `K:SHARE`.
    pub(crate) fn source(&self, share: &str) -> String {
        format!("{}:{share}", self.dir.display())
    }

    /// Where it is when it is pulled.
    pub(crate) fn away(&self) -> PathBuf {
        self.dir.with_extension("away")
    }

    /// Pulls it; tells when.
    pub(crate) fn pull(&self) -> Instant {
        fs::rename(&self.dir, self.away()).unwrap();
        Instant::now()
    }

    /// Brings it back; tells when.
    pub(crate) fn plug_in(&self) -> Instant {
        fs::rename(self.away(), &self.dir).unwrap();
        Instant::now()
    }
}

/// Polls until `condition` holds.
///
/// # Panics
///
/// If it does not within `limit`.
#[track_caller]
pub(crate) fn eventually(what: &str, limit: Duration, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < limit, "waited {limit:?} for {what}");
        thread::sleep(Duration::from_millis(10));
    }
}

/// Whether the kernel has a mount at exactly this path.
pub(crate) fn is_mounted(path: &Path) -> bool {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    let path = path.to_str().unwrap();
    mounts.lines().any(|line| line.split(' ').nth(1) == Some(path))
}

/// Says that a test did not run, and why; with `CI=true` that is a failure.
#[track_caller]
pub(crate) fn skip(reason: &str) {
    use std::io::Write;

    let test = thread::current().name().unwrap_or("a test").to_owned();
    assert!(
        std::env::var_os("CI").is_none_or(|value| value != "true"),
        "SKIPPED {test}: {reason} (not allowed with CI=true)"
    );
    // past the capture of the test harness, which hides what a passing test prints
    let _ = writeln!(std::io::stderr(), "SKIPPED {test}: {reason}");
}

/// Why nothing can be mounted here.
pub(crate) fn mount_obstacle() -> Option<String> {
    let fuse = fs::OpenOptions::new().read(true).write(true).open("/dev/fuse");
    if let Err(error) = fuse {
        return Some(format!("/dev/fuse: {error}"));
    }
    programs::missing(&["fusermount3", "findmnt"])
}

/// Leaves the test, saying why, unless something can be mounted here.
macro_rules! need_mount {
    () => {
        if let Some(reason) = crate::world::mount_obstacle() {
            return crate::world::skip(&reason);
        }
    };
}
pub(crate) use need_mount;

/// Leaves the test, saying why, unless it runs as root.
macro_rules! need_root {
    () => {
        if !crate::world::programs::is_root() {
            return crate::world::skip("not root");
        }
    };
}
pub(crate) use need_root;

fn contains(haystack: &[u8], needle: &[u8]) -> bool {
    haystack.windows(needle.len()).any(|window| window == needle)
}

/// The arguments as a person would type them, for messages.
fn shown(command: &Command) -> OsString {
    let mut line = command.get_program().to_owned();
    for arg in command.get_args() {
        line.push(" ");
        line.push(arg);
    }
    line
}
