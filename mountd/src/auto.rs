//! `auto`: watches for keys, and mounts what they open (D7).
//!
//! Each share that a key opens gets a process of its own, the one that waits for its key and mounts
//! again whenever that is back: once a key was seen, pulling and plugging it in is its matter.

mod places;

use std::collections::HashMap;
use std::ffi::OsString;
use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use p2pfs::failure::{Code, Failure};
use p2pfs::identity::sealed::KeyId;
use p2pfs::net::daemon;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use tokio::runtime::{Builder, Handle};
use tokio::task::{JoinError, JoinHandle, JoinSet};

use crate::fuse::mount::resolve;
use crate::mounted::{MountRequest, Words, meet};
use crate::options::MountOptions;
use crate::secrets::Secrets;
use crate::spec::Spec;
use crate::{control, daemonise, locked};

use self::places::{Found, Identity, Places};

/// How often to look for keys.
const LOOK: Duration = Duration::from_millis(500);
/// How long to wait before a key that opened nothing is tried again.
const RETRY: Duration = Duration::from_secs(2);

/// What is watched, and what is mounted where.
#[derive(Debug)]
pub(crate) struct Request {
    places: Places,
    under: PathBuf,
    options: String,
    state: PathBuf,
}

impl Request {
    pub(crate) fn new(
        places: Vec<PathBuf>,
        under: Option<PathBuf>,
        options: &[String],
        state: PathBuf,
    ) -> Result<Self, Failure> {
        let is_root = rustix::process::geteuid().is_root();
        let options = match options.join(",") {
            // whoever sits at the machine is not root
            none if none.is_empty() && is_root => "allow_other".to_owned(),
            given => given,
        };
        // before anything is plugged in
        MountOptions::parse(&options, false)?;
        let home = || std::env::var_os("HOME").map(|home| Path::new(&home).join("p2pfs"));
        let usual = || if is_root { Some("/media/p2pfs".into()) } else { home() };
        let under = under.or_else(usual).ok_or_else(|| {
            let hint = "say where to mount: --under DIR";
            Failure::new(Code::Usage, "HOME is not set", hint)
        })?;
        let under = std::path::absolute(&under).map_err(|error| cannot_make(&under, &error))?;
        let places = Places::new(places, &under)?;
        Ok(Self { places, under, options, state })
    }
}

/// A key that was seen.
struct Seen {
    id: KeyId,
    place: Option<Identity>,
    mounts: Vec<Running>,
    /// Its host is asked for the shares, which may take as long as mounting may.
    shares: Option<JoinHandle<Result<Vec<String>, Failure>>>,
    /// When to try again, if it opened nothing.
    retry: Option<Instant>,
    /// What was wrong with it last, so that it is said once.
    said: Option<Failure>,
}

/// The process of one mount.
struct Running {
    mountpoint: PathBuf,
    /// Not if an earlier `auto` has started it, or the guard of one that was killed.
    child: Option<Child>,
}

/// Watches until a signal ends it; then nothing of it is mounted any more.
pub(crate) fn run(request: Request) -> Result<(), Failure> {
    let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build();
    let runtime = runtime.map_err(|error| {
        let hint = "see that this user may start threads (ulimit -u)";
        Failure::new(Code::Internal, format!("cannot start: {error}"), hint)
    })?;
    let mut watcher = Watcher { request, seen: HashMap::new() };
    let ended = runtime.block_on(async {
        tokio::select! {
            () = watcher.watch() => {}
            () = daemon::terminated() => {}
        }
        watcher.end().await
    });
    // what still looks at a key that does not answer must not keep the process
    runtime.shutdown_background();
    ended
}

struct Watcher {
    request: Request,
    seen: HashMap<PathBuf, Seen>,
}

impl Watcher {
    async fn watch(&mut self) {
        tracing::info!(under = %self.request.under.display(), "waiting for keys");
        loop {
            let keys = self.request.places.keys().await;
            self.forget(&keys);
            for key in keys {
                self.look(key).await;
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// A key that went away and whose mounts were ended by hand is new when it comes back.
    fn forget(&mut self, keys: &[Found]) {
        for seen in self.seen.values_mut() {
            // a process that was killed is followed by another, which answers
            let state = &self.request.state;
            seen.mounts.retain_mut(|running| running.is_there(state));
        }
        let is_there = |dir: &PathBuf| keys.iter().any(|key| key.dir == *dir);
        self.seen.retain(|dir, seen| is_there(dir) || !seen.mounts.is_empty());
    }

    async fn look(&mut self, key: Found) {
        let Found { dir, public: Some((id, host)), place } = key else { return };
        let earlier = self.seen.remove(&dir);
        let is_same =
            |seen: &Seen| seen.id == id && (seen.place == place || !seen.mounts.is_empty());
        let mut seen = match earlier {
            Some(seen) if is_same(&seen) => Seen { place, ..seen },
            other => {
                // another key in the same place
                let state = self.request.state.clone();
                let others = other.map(|seen| seen.mounts).unwrap_or_default();
                if let Err(failure) = end_all(others, state).await {
                    tracing::error!("{}", failure.report());
                }
                tracing::info!(key = %dir.display(), host, "a key");
                let retry = Some(Instant::now());
                Seen { id, place, mounts: Vec::new(), shares: None, retry, said: None }
            }
        };
        if let Err(failure) = self.mount_all(&dir, &host, &mut seen).await {
            seen.retry = Some(Instant::now() + RETRY);
            if seen.said.as_ref() != Some(&failure) {
                tracing::error!(key = %dir.display(), "{}", failure.report());
                seen.said = Some(failure);
            }
        }
        self.seen.insert(dir, seen);
    }

    /// Asks the host of a key that has not opened anything, and mounts what it has answered.
    async fn mount_all(&self, dir: &Path, host: &str, seen: &mut Seen) -> Result<(), Failure> {
        if let Some(shares) = seen.shares.take_if(|asked| asked.is_finished()) {
            seen.retry = None;
            let crashed = |error: JoinError| {
                Failure::new(Code::Internal, error.to_string(), "it is tried again")
            };
            self.start_all(dir, host, &shares.await.map_err(crashed).flatten()?, &mut seen.mounts)?;
            seen.said = None;
        } else if seen.shares.is_none() && seen.retry.is_some_and(|at| at <= Instant::now()) {
            let request = self.mount_request(dir.into(), self.request.under.clone())?;
            let runtime = Handle::current();
            // a key that does not answer blocks
            seen.shares =
                Some(tokio::task::spawn_blocking(move || runtime.block_on(meet::shares(&request))));
        }
        Ok(())
    }

    fn start_all(
        &self,
        dir: &Path,
        host: &str,
        shares: &[String],
        mounts: &mut Vec<Running>,
    ) -> Result<(), Failure> {
        for share in shares {
            let mut source = dir.as_os_str().to_owned();
            source.push(":");
            source.push(share);
            let under = self.request.under.join(folder_name(host));
            let mountpoint = under.join(folder_name(share));
            fs::create_dir_all(&mountpoint).map_err(|error| cannot_make(&mountpoint, &error))?;
            let mountpoint = resolve(&mountpoint).map_err(|error| cannot_make(&under, &error))?;
            if mounts.iter().any(|running| running.mountpoint == mountpoint) {
                continue;
            }
            mounts.push(match control::is_there(&self.request.state, &mountpoint) {
                true => Running { mountpoint, child: None },
                false => Running::start(&self.mount_request(source, mountpoint)?.check()?)?,
            });
        }
        Ok(())
    }

    fn mount_request(
        &self,
        source: OsString,
        mountpoint: PathBuf,
    ) -> Result<MountRequest, Failure> {
        let spec = Spec::parse(&source)?;
        let mut options = MountOptions::parse(&self.request.options, false)?;
        options.state = Some(self.request.state.clone());
        let words = Words { options: self.request.options.clone(), ..Words::default() };
        let mut request = MountRequest::new(spec, mountpoint, options, words)?;
        // nobody is there to type it
        request.secrets = Secrets::default();
        Ok(request)
    }

    /// Takes all mounts away, and the directories that are empty then.
    async fn end(self) -> Result<(), Failure> {
        let mounts = self.seen.into_values().flat_map(|seen| seen.mounts).collect();
        end_all(mounts, self.request.state).await
    }
}

/// Ends mounts, which deliver what was written first. A signal ends the waiting for that: what is
/// left is sealed then.
async fn end_all(mounts: Vec<Running>, state: PathBuf) -> Result<(), Failure> {
    let children: Vec<OwnedFd> = mounts.iter().filter_map(Running::descriptor).collect();
    let terminate = || {
        for child in &children {
            // it may have ended
            let _ = pidfd_send_signal(child, Signal::TERM);
        }
    };
    terminate();
    let (mut ours, mut others) = (JoinSet::new(), JoinSet::new());
    for running in mounts {
        let set = if running.child.is_some() { &mut ours } else { &mut others };
        let state = state.clone();
        set.spawn_blocking(move || running.end(&state));
    }
    let mut result = Ok(());
    while !ours.is_empty() || !others.is_empty() {
        let ended = tokio::select! {
            Some(ended) = ours.join_next() => ended,
            Some(ended) = others.join_next() => ended,
            () = daemon::terminated() => {
                terminate();
                // whoever started them sees to them
                others = JoinSet::new();
                continue;
            }
        };
        // one that cannot be ended does not keep the others
        if let Ok(Err(failure)) = ended {
            result = Err(failure);
        }
    }
    result
}

impl Running {
    fn start(request: &MountRequest) -> Result<Self, Failure> {
        let cannot = |error: std::io::Error| {
            let what = format!("cannot start the daemon of a mount: {error}");
            Failure::new(Code::Internal, what, "see that this program's file is still there")
        };
        let program = daemonise::program().map_err(cannot)?;
        let child = Command::new(program)
            .arg0(locked::PROGRAM)
            .args(request.again())
            // Ctrl-C is for us, who unmount it
            .process_group(0)
            .stdin(Stdio::null())
            .spawn()
            .map_err(cannot)?;
        Ok(Self { mountpoint: request.mountpoint.clone(), child: Some(child) })
    }

    /// Whether this process, or one that followed it after a crash, still looks after the mount.
    fn is_there(&mut self, state: &Path) -> bool {
        let runs = |child: &mut Child| matches!(child.try_wait(), Ok(None));
        self.child.as_mut().is_some_and(runs) || control::is_there(state, &self.mountpoint)
    }

    /// Its process, if it is ours.
    fn descriptor(&self) -> Option<OwnedFd> {
        let child = self.child.as_ref()?;
        pidfd_open(Pid::from_child(child), PidfdFlags::empty()).ok()
    }

    /// Waits until a process of ours, which was asked to end, has; asks another one, and waits.
    fn end(mut self, state: &Path) -> Result<(), Failure> {
        let ended = match self.child.as_mut().map(Child::wait) {
            Some(Ok(status)) if status.code().is_some_and(|code| code != 0) => {
                let what = format!("{} did not end well: {status}", self.mountpoint.display());
                Err(Failure::new(Code::HostOffline, what, "what it said above tells why"))
            }
            _ => Ok(()),
        };
        // it may have been killed before, and followed by another
        let ended = ended.and_then(|()| match control::is_there(state, &self.mountpoint) {
            true => control::unmount(state, &self.mountpoint),
            false => Ok(()),
        });
        if ended.is_ok() {
            // somebody else's files may be in them
            let _ = fs::remove_dir(&self.mountpoint);
            let _ = self.mountpoint.parent().map(fs::remove_dir);
        }
        ended
    }
}

/// As the name of a directory: nothing leads elsewhere, whatever the host calls itself.
fn folder_name(name: &str) -> String {
    let kept = name.chars().map(|c| if c == '/' || c.is_control() { '_' } else { c });
    match kept.collect::<String>() {
        dots if dots.is_empty() || dots.starts_with('.') => format!("_{dots}"),
        name => name,
    }
}

fn cannot_make(dir: &Path, error: &std::io::Error) -> Failure {
    Failure::new(
        Code::Mountpoint,
        format!("cannot make {}: {error}", dir.display()),
        "choose another directory with --under DIR",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_from_a_host_is_one_directory() {
        for (name, folder) in
            [("home", "home"), ("a/../b", "a_.._b"), ("..", "_.."), ("", "_"), ("a\0", "a_")]
        {
            assert_eq!(folder_name(name), folder);
        }
    }
}
