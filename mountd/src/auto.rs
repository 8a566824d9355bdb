//! `auto`: watches for keys, and mounts what they open (D7).
//!
//! Each share that a key opens gets a process of its own, the one that waits for its key and mounts
//! again whenever that is back: once a key was seen, pulling and plugging it in is its matter.

mod places;

use std::collections::HashMap;
use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use p2pfs::failure::{Code, Failure};
use p2pfs::identity::sealed::KeyId;
use p2pfs::net::daemon;
use p2pfs::usb::read_public;
use tokio::runtime::Builder;

use crate::fuse::mount::resolve;
use crate::mounted::{MountRequest, Words, meet};
use crate::options::MountOptions;
use crate::secrets::Secrets;
use crate::spec::Spec;
use crate::{control, daemonise, locked};

use self::places::Places;

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
    /// Its directory: another one, or one that was moved, is a key that was plugged in again.
    place: Option<(u64, u64, i64, i64)>,
    mounts: Vec<Running>,
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
    runtime.block_on(async {
        tokio::select! {
            () = watcher.watch() => {}
            () = daemon::terminated() => {}
        }
    });
    // what still looks at a key that does not answer must not keep the process
    runtime.shutdown_background();
    watcher.end()
}

struct Watcher {
    request: Request,
    seen: HashMap<PathBuf, Seen>,
}

impl Watcher {
    async fn watch(&mut self) {
        tracing::info!(under = %self.request.under.display(), "waiting for keys");
        loop {
            let places = self.request.places.clone();
            // one that is dying may take for ever
            let keys = tokio::task::spawn_blocking(move || places.keys()).await;
            let keys = keys.unwrap_or_default();
            self.forget(&keys);
            for dir in keys {
                self.look(dir).await;
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// A key that went away and whose mounts were ended by hand is new when it comes back.
    fn forget(&mut self, keys: &[PathBuf]) {
        for seen in self.seen.values_mut() {
            // a process that was killed is followed by another, which answers
            let state = &self.request.state;
            seen.mounts.retain_mut(|running| running.is_there(state));
        }
        self.seen.retain(|dir, seen| keys.contains(dir) || !seen.mounts.is_empty());
    }

    async fn look(&mut self, dir: PathBuf) {
        let Ok(public) = read_public(&dir) else { return };
        let place = identity(&dir);
        let earlier = self.seen.remove(&dir);
        let is_same =
            |seen: &Seen| seen.id == public.id && (seen.place == place || !seen.mounts.is_empty());
        let mut seen = match earlier {
            Some(seen) if is_same(&seen) => Seen { place, ..seen },
            other => {
                // another key in the same place
                for running in other.into_iter().flat_map(|seen| seen.mounts) {
                    if let Err(failure) = running.end(&self.request.state) {
                        tracing::error!("{}", failure.report());
                    }
                }
                tracing::info!(key = %dir.display(), host = public.host_name, "a key");
                let retry = Some(Instant::now());
                Seen { id: public.id, place, mounts: Vec::new(), retry, said: None }
            }
        };
        if seen.retry.is_some_and(|at| at <= Instant::now()) {
            match self.mount_all(&dir, &public.host_name).await {
                Ok(mounts) => (seen.mounts, seen.retry, seen.said) = (mounts, None, None),
                Err(failure) => {
                    seen.retry = Some(Instant::now() + RETRY);
                    if seen.said.as_ref() != Some(&failure) {
                        tracing::error!(key = %dir.display(), "{}", failure.report());
                        seen.said = Some(failure);
                    }
                }
            }
        }
        self.seen.insert(dir, seen);
    }

    async fn mount_all(&self, dir: &Path, host: &str) -> Result<Vec<Running>, Failure> {
        let request = self.mount_request(dir.into(), self.request.under.clone())?;
        let shares = meet::shares(&request).await?;
        let mut mounts = Vec::new();
        for share in shares {
            let mut source = dir.as_os_str().to_owned();
            source.push(":");
            source.push(&share);
            let under = self.request.under.join(folder_name(host));
            let mountpoint = under.join(folder_name(&share));
            fs::create_dir_all(&mountpoint).map_err(|error| cannot_make(&mountpoint, &error))?;
            let mountpoint = resolve(&mountpoint).map_err(|error| cannot_make(&under, &error))?;
            mounts.push(match control::is_there(&self.request.state, &mountpoint) {
                true => Running { mountpoint, child: None },
                false => Running::start(&self.mount_request(source, mountpoint)?.check()?)?,
            });
        }
        Ok(mounts)
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
    fn end(self) -> Result<(), Failure> {
        let state = self.request.state;
        let mut result = Ok(());
        // one that cannot be ended does not keep the others
        for running in self.seen.into_values().flat_map(|seen| seen.mounts) {
            if let Err(failure) = running.end(&state) {
                result = Err(failure);
            }
        }
        result
    }
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

    fn end(mut self, state: &Path) -> Result<(), Failure> {
        let ended = match self.is_there(state) {
            true => control::unmount(state, &self.mountpoint),
            false => Ok(()),
        };
        if ended.is_ok() {
            let _ = self.child.as_mut().map(Child::wait);
            // somebody else's files may be in them
            let _ = fs::remove_dir(&self.mountpoint);
            let _ = self.mountpoint.parent().map(fs::remove_dir);
        }
        ended
    }
}

/// Device, number and change of a directory.
fn identity(dir: &Path) -> Option<(u64, u64, i64, i64)> {
    let found = fs::metadata(dir).ok()?;
    Some((found.dev(), found.ino(), found.ctime(), found.ctime_nsec()))
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
