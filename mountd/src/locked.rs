//! While the key is away: the program waits for it, and mounts again.
//!
//! A mount whose key was pulled ends by starting this program anew in its own process, which leaves
//! nothing in its memory of what was read before. Where its process was killed, the dead mount
//! stays until the new one is there, so that nobody writes into the directory below: but only while
//! the key is there.

use std::convert::Infallible;
use std::future::Future;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use p2pfs::failure::{Code, Failure};
use p2pfs::net::admin::Control;
use p2pfs::net::daemon;
use p2pfs::net::remote::BoxFuture;
use serde_json::{Value, json};
use tokio::sync::mpsc;

use crate::fuse::mount::Mounted;
use crate::gate::watch::KeyWatch;
use crate::mounted::{Before, End, Mount, MountRequest, run_with};
use crate::{control, daemonise, sealed, store};

/// How long a process that was killed may take to let go of its control socket.
const DYING: Duration = Duration::from_secs(2);
/// How long to wait after an attempt with the key that failed.
const RETRY: Duration = Duration::from_secs(1);

/// Goes on after a mount has ended: where the key was pulled, the program begins anew and waits.
pub(crate) fn follow(end: End, request: &MountRequest) -> Result<(), Failure> {
    if end == End::Unmounted {
        return Ok(());
    }
    let cannot = |error: std::io::Error| {
        let hint = "mount it again when the key is back";
        Failure::new(Code::Internal, format!("cannot wait for the key: {error}"), hint)
    };
    let program = daemonise::program().map_err(cannot)?;
    // returns only if it fails
    Err(cannot(Command::new(program).arg0(PROGRAM).args(request.again()).exec()))
}

/// The name that this program goes by, whatever name started it.
pub(crate) const PROGRAM: &str = "p2pfs-mountd";

/// Waits for the key, mounts, and serves until the mount is gone.
pub(crate) fn run(request: &MountRequest) -> Result<(), Failure> {
    let dead = Dead::of(request);
    let end = run_with(live(request, &dead));
    dead.clear_away();
    follow(end?, request)
}

async fn live(request: &MountRequest, dead: &Dead) -> Result<End, Failure> {
    let watch = KeyWatch::new(&store::locate(&request.state, &request.spec));
    let mut place = Place::take(request).await?;
    // whoever asked for the end finds the place empty
    let given_up = || {
        dead.clear_away();
        Ok(End::Unmounted)
    };
    loop {
        let Some(()) = place.until(wait(&watch, dead)).await else { return given_up() };
        place.key_is_there.store(true, Ordering::Relaxed);
        let started = place.start(request, &watch, dead).await;
        let Some(started) = started else { return given_up() };
        let failure = match started {
            Ok(mut mount) => {
                tracing::info!("the key is there: mounted again");
                mount.notes().iter().for_each(|note| tracing::warn!("{note}"));
                daemon::ready(&request.ready_line());
                drop(place);
                return mount.serve().await;
            }
            Err(failure) => failure,
        };
        tracing::error!("{}", failure.report());
        if place.control.is_none() {
            drop(place);
            place = Place::take(request).await?;
        }
        place.key_is_there.store(false, Ordering::Relaxed);
        let pause = async {
            match failure.code {
                // nobody is there to type it: whoever mounts again takes this one's place
                Code::Passphrase => gone(&watch, dead).await,
                // when the key goes in between, there is nothing to try
                _ => drop(tokio::time::timeout(RETRY, gone(&watch, dead)).await),
            }
        };
        if place.until(pause).await.is_none() {
            return given_up();
        }
    }
}

async fn wait(watch: &KeyWatch, dead: &Dead) {
    while !watch.has_any().await {
        dead.clear_away();
        watch.stir(None).await;
    }
}

async fn gone(watch: &KeyWatch, dead: &Dead) {
    while watch.has_any().await {
        watch.stir(None).await;
    }
    dead.clear_away();
}

/// The mount that a killed process has left, if there is one.
struct Dead(Option<Arc<Mounted>>);

impl Dead {
    fn of(request: &MountRequest) -> Self {
        let adopt = |id| Arc::new(Mounted::adopt(request.mountpoint.clone(), id));
        Self(request.after_crash.clone().map(adopt))
    }

    /// Takes it away, if nothing else has.
    fn clear_away(&self) {
        if let Some(mounted) = &self.0
            && let Err(error) = mounted.detach()
        {
            tracing::error!(%error, "the dead mount stays");
        }
    }
}

/// The place of a mount that is not there: it answers `status`, and `unmount` ends it.
struct Place {
    dir: PathBuf,
    /// Given up when the mount itself answers.
    control: Option<Control>,
    unmounts: mpsc::Receiver<()>,
    key_is_there: Arc<AtomicBool>,
    /// Somebody wanted an end.
    ended: bool,
}

impl Place {
    async fn take(request: &MountRequest) -> Result<Self, Failure> {
        let dir = control::mount_dir(&request.state, &request.mountpoint);
        daemon::state_dir(Some(dir.clone()), "mountd")?;
        let (unmount, unmounts) = mpsc::channel(1);
        let key_is_there = Arc::new(AtomicBool::new(false));
        let status = json!({
            "mountpoint": request.mountpoint.to_string_lossy(),
            "share": request.share(),
            "connection_id": null,
            (control::WAITS): true,
        });
        let there = Arc::clone(&key_is_there);
        let (state, key) = (request.state.clone(), Arc::clone(&request.key));
        let handle = move |command| -> BoxFuture<Result<Value, Failure>> {
            let mut status = status.clone();
            let (entries, bytes) =
                key.get().map(|key| sealed::waiting(&state, key)).unwrap_or_default();
            let eta = (entries == 0).then_some(0);
            status["pending"] =
                json!({ "entries": entries, "bytes": bytes, "eta_s": eta, "errors": 0 });
            status["state"] = match there.load(Ordering::Relaxed) {
                true => json!("reconnecting"),
                false => json!("locked"),
            };
            Box::pin(answer(command, status, unmount.clone()))
        };
        let start = Instant::now();
        let control = loop {
            match Control::listen(&dir, handle.clone()).await {
                Err(_) if start.elapsed() < DYING => tokio::time::sleep(DYING / 100).await,
                listens => break listens?,
            }
        };
        Ok(Self { dir, control: Some(control), unmounts, key_is_there, ended: false })
    }

    /// `None`: somebody ended the program, or unmounted what is not mounted, before `done`.
    async fn until<T>(&mut self, done: impl Future<Output = T>) -> Option<T> {
        let done = tokio::select! {
            done = done => Some(done),
            () = daemon::terminated() => None,
            // once the mount itself answers, nobody is left who could ask
            Some(()) = self.unmounts.recv() => None,
            () = cleared_away(&self.dir) => None,
        };
        self.ended |= done.is_none();
        done
    }

    /// Mounts; `None` as for [`Self::until`].
    async fn start(
        &mut self,
        request: &MountRequest,
        watch: &KeyWatch,
        dead: &Dead,
    ) -> Option<Result<Mount, Failure>> {
        let mut before = Before { control: self.control.take(), dead: dead.0.clone() };
        let not_without_key = async {
            gone(watch, dead).await;
            std::future::pending::<Infallible>().await
        };
        let start = async {
            tokio::select! {
                started = Mount::start(request, &mut before) => started,
                never = not_without_key => match never {},
            }
        };
        let started = self.until(start).await;
        self.control = before.control;
        // asked while the mount took over
        self.ended |= self.unmounts.try_recv().is_ok();
        started.filter(|_| !self.ended)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        drop(self.control.take());
        if self.ended {
            // another mount may have begun here
            let _ = std::fs::remove_file(self.dir.join("control.lock"));
            let _ = std::fs::remove_dir(&self.dir);
        }
    }
}

/// Resolves when somebody removes the state directory: nobody could find this process any more.
async fn cleared_away(dir: &Path) {
    while dir.exists() {
        tokio::time::sleep(RETRY).await;
    }
}

async fn answer(
    command: Value,
    status: Value,
    unmount: mpsc::Sender<()>,
) -> Result<Value, Failure> {
    match command["command"].as_str() {
        Some("status") => Ok(status),
        Some("sync") if status["pending"]["entries"] == 0 => Ok(json!({"done": true})),
        Some("sync") => Err(undelivered(&status)),
        Some("unmount") => {
            // one that is ending already does what was asked
            let _ = unmount.send(()).await;
            Ok(Value::Null)
        }
        _ => Err(Failure::new(
            Code::Usage,
            "unknown command",
            "use the program of the same version as the daemon",
        )),
    }
}

fn undelivered(status: &Value) -> Failure {
    let what = format!("{} changes are sealed on this machine", status["pending"]["entries"]);
    if status["state"] == "locked" {
        let hint = "plug the key in: they are delivered before anything else";
        return Failure::new(Code::KeyMissing, what, hint);
    }
    let hint = "they are delivered as soon as the host is there";
    Failure::new(Code::HostOffline, what, hint)
}
