//! The life of one mount: meet the host, mount, serve, deliver, unmount.

pub(crate) mod absent;
mod ending;
pub(crate) mod meet;

use std::ffi::OsString;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use p2pfs::failure::{Code, Failure};
use p2pfs::id::Seq;
use p2pfs::net::admin::Control;
use p2pfs::net::daemon;
use p2pfs::net::remote::BoxFuture;
use p2pfs::net::session::ClientSession;
use p2pfs::wire::errno::Errno;
use serde_json::{Value, json};
use tokio::runtime::{Builder, Handle};
use tokio::sync::{mpsc, oneshot};

use self::absent::Absentees;
use self::ending::{Asked, Key};
use self::meet::Met;

use crate::daemonise::Parent;
use crate::fs::Fs;
use crate::fuse::mount::{MountId, MountSettings, Mounted, mount, mount_in_place_of};
use crate::fuse::notify::KernelLink;
use crate::fuse::{abort_on_panic, serve};
use crate::gate::{valve::Valve, watch::KeyWatch};
use crate::guard::Guard;
use crate::options::MountOptions;
use crate::secrets::Secrets;
use crate::spec::Spec;
use crate::{control, key, store};

/// How long one answer to `sync` may take; who asks goes on asking.
const SYNC_ANSWER: Duration = Duration::from_secs(20);

/// What is to be mounted where.
#[derive(Clone, Debug)]
pub(crate) struct MountRequest {
    pub(crate) spec: Spec,
    /// Absolute.
    pub(crate) mountpoint: PathBuf,
    pub(crate) options: MountOptions,
    /// The state directory.
    pub(crate) state: PathBuf,
    /// What was typed for it.
    pub(crate) secrets: Secrets,
    /// How it was asked for.
    pub(crate) words: Words,
    /// The process before this one was killed, and left this mount.
    pub(crate) after_crash: Option<MountId>,
    /// The share that the host granted, as soon as it has: a mount that names none stays with it.
    pub(crate) granted: Arc<OnceLock<String>>,
    /// The id of the key that it was mounted with.
    pub(crate) key: Arc<OnceLock<String>>,
}

/// Options, as they were given.
#[derive(Clone, Debug, Default)]
pub(crate) struct Words {
    /// With commas between them.
    pub(crate) options: String,
    /// Unknown ones pass.
    pub(crate) sloppy: bool,
    /// Where relative paths in them begin, if not in the working directory.
    pub(crate) from: Option<PathBuf>,
}

impl Words {
    /// The arguments with which this program gets them again, in another working directory.
    pub(crate) fn arguments(&self) -> Vec<OsString> {
        let mut arguments = vec!["-o".into(), self.options.clone().into()];
        if self.sloppy {
            arguments.push("--sloppy".into());
        }
        if let Some(from) = &self.from {
            arguments.extend(["--from".into(), from.clone().into()]);
        }
        arguments
    }
}

impl MountRequest {
    /// Makes the state directory; the mount point is still to be looked at.
    pub(crate) fn new(
        spec: Spec,
        mountpoint: PathBuf,
        mut options: MountOptions,
        mut words: Words,
    ) -> Result<Self, Failure> {
        if options.has_relative_files() {
            let from = words.from.take().map_or_else(std::env::current_dir, Ok);
            let from = from.map_err(|error| {
                let hint = "name the file by its whole path";
                Failure::new(Code::Usage, format!("no working directory: {error}"), hint)
            })?;
            options.find_files_in(&from);
            words.from = Some(from);
        }
        let state = daemon::state_dir(options.state.clone(), "mountd")?;
        let state = std::path::absolute(&state).map_err(|error| {
            let hint = "choose another one with --state DIR";
            Failure::new(Code::Internal, format!("{}: {error}", state.display()), hint)
        })?;
        let (secrets, after_crash) = (Secrets::default(), None);
        let (granted, key) = Default::default();
        Ok(Self { spec, mountpoint, options, state, secrets, words, after_crash, granted, key })
    }

    /// The share that is named, or was granted before.
    pub(crate) fn share(&self) -> Option<&String> {
        self.spec.share.as_ref().or_else(|| self.granted.get())
    }

    /// Checks the mount point. An earlier mount there may end first.
    pub(crate) fn check(mut self) -> Result<Self, Failure> {
        self.mountpoint = control::make_way(&self.state, &self.mountpoint, self.options.timeout)?;
        Ok(self)
    }

    /// The arguments with which this program waits for the key, and mounts again.
    pub(crate) fn again(&self) -> Vec<OsString> {
        let mut arguments: Vec<OsString> = vec!["mount".into(), "--locked".into()];
        arguments.push(self.spec.absolute());
        arguments.push(self.mountpoint.clone().into());
        arguments.extend(self.words.arguments());
        arguments.extend(["--state".into(), self.state.clone().into()]);
        if let Some(granted) = self.granted.get() {
            arguments.push(format!("--granted={granted}").into());
        }
        if let Some(key) = self.key.get() {
            arguments.push(format!("--key={key}").into());
        }
        arguments
    }

    /// What is printed when the mount can be used.
    pub(crate) fn ready_line(&self) -> String {
        format!("ready mountd {}", self.mountpoint.display())
    }

    /// Where a process in the background logs to.
    pub(crate) fn log_file(&self) -> PathBuf {
        let dir = control::mount_dir(&self.state, &self.mountpoint);
        let name = dir.file_name().unwrap_or_default().to_string_lossy().into_owned();
        self.state.join(format!("mountd-{name}.log"))
    }
}

/// How a mount ended.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum End {
    /// Somebody unmounted it, or ended the program.
    Unmounted,
    /// The key is pulled: it is to be mounted again when the key is back.
    KeyPulled,
}

/// Mounts, tells `parent` or standard output, and serves until the mount is gone.
pub(crate) fn run(request: MountRequest, parent: Option<Parent>) -> Result<End, Failure> {
    run_with(live(request, parent))
}

/// Runs `life` with all that a mount needs around it.
pub(crate) fn run_with(life: impl Future<Output = Result<End, Failure>>) -> Result<End, Failure> {
    abort_on_panic();
    // with one, a call is not handed over between threads on its way; large copies have their own
    let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build();
    let runtime = runtime.map_err(|error| {
        let hint = "see that this user may start threads (ulimit -u)";
        Failure::new(Code::Internal, format!("cannot start: {error}"), hint)
    })?;
    let result = runtime.block_on(life);
    // what still waits for the network must not keep the process
    runtime.shutdown_background();
    result
}

async fn live(request: MountRequest, parent: Option<Parent>) -> Result<End, Failure> {
    let parent_gone = parent.as_ref().map(Parent::gone).and_then(Result::ok);
    let mut nobody = Before::default();
    let started = tokio::select! {
        started = Mount::start(&request, &mut nobody) => started,
        () = daemon::terminated() => Err(interrupted("a signal ended it")),
        () = gone(parent_gone) => Err(interrupted("whoever started it has gone")),
    };
    let mut mount = match (started, parent) {
        (Ok(mount), None) => {
            daemon::note(&mount.notes());
            daemon::ready(&request.ready_line());
            mount
        }
        (Ok(mount), Some(parent)) => {
            if let Err(error) = parent.tell(&Ok(mount.notes())) {
                return Err(interrupted(&error.to_string()));
            }
            mount
        }
        (Err(failure), None) => return Err(failure),
        (Err(failure), Some(parent)) => {
            // the log has it too
            let _ = parent.tell(&Err(failure.clone()));
            return Err(failure);
        }
    };
    mount.serve().await
}

async fn gone(parent: Option<oneshot::Receiver<()>>) {
    if let Some(parent) = parent
        && parent.await.is_ok()
    {
        return;
    }
    std::future::pending::<()>().await;
}

fn interrupted(why: &str) -> Failure {
    let hint = "mount it again";
    Failure::new(Code::Internal, format!("mounting was interrupted: {why}"), hint)
}

/// What is at the place of a mount before it is there.
#[derive(Debug, Default)]
pub(crate) struct Before {
    /// What answers commands.
    pub(crate) control: Option<Control>,
    /// What a process that was killed has left.
    pub(crate) dead: Option<Arc<Mounted>>,
}

impl Before {
    fn mount(
        &self,
        request: &MountRequest,
        settings: &MountSettings,
    ) -> Result<(OwnedFd, Mounted), Failure> {
        let source = &request.spec.given;
        match &self.dead {
            Some(dead) => mount_in_place_of(dead, source, settings),
            None => mount(source, &request.mountpoint, settings),
        }
    }
}

/// A mount that can be used; dropping it takes the mount away.
pub(crate) struct Mount {
    shared: Arc<Shared>,
    mounted: Mounted,
    key: Key,
    drain: Duration,
    /// Resolves when somebody unmounted.
    end: oneshot::Receiver<std::io::Result<()>>,
    unmounts: mpsc::Receiver<Asked>,
    _control: Control,
    _dir: MountDir,
    /// The kernel is dropping its pages.
    wiping: Option<oneshot::Receiver<()>>,
    /// Dismissed last.
    guard: Option<Guard>,
}

/// What commands look at.
struct Shared {
    mountpoint: PathBuf,
    session: Arc<ClientSession>,
    fs: Arc<Fs>,
    draining: AtomicBool,
    after_crash: bool,
    absentees: Absentees,
}

/// The directory of the control socket; removed with the mount.
struct MountDir(PathBuf);

impl Drop for MountDir {
    fn drop(&mut self) {
        // its socket was removed before; if another mount has begun here, the directory stays
        let _ = std::fs::remove_file(self.0.join("control.lock"));
        let _ = std::fs::remove_dir(&self.0);
    }
}

impl Mount {
    /// Mounts; takes over from what was there before.
    pub(crate) async fn start(
        request: &MountRequest,
        before: &mut Before,
    ) -> Result<Self, Failure> {
        let options = &request.options;
        // before the key is opened: a removal in between is noticed
        let dir = store::locate(&request.state, &request.spec);
        let watch = Arc::new(KeyWatch::new(&dir));
        let opened = key::open(request, &dir)?;
        let link = KernelLink::new().map_err(no_threads)?;
        let Met { session, fs, absentees } = meet::meet(request, &opened, &link, &watch).await?;
        opened.follow(request, &dir);
        let (device, owned) = (opened.device, opened.contents);
        let (grant, identity) = (session.grant(), session.is_identity());
        let shared = Arc::new(Shared {
            mountpoint: request.mountpoint.clone(),
            session,
            fs: fs.clone(),
            draining: AtomicBool::new(false),
            after_crash: request.after_crash.is_some(),
            absentees,
        });
        let dir = MountDir(control::mount_dir(&request.state, &request.mountpoint));
        daemon::state_dir(Some(dir.0.clone()), "mountd")?;
        let (unmount, unmounts) = mpsc::channel(1);
        let commands = shared.clone();
        let handle = move |command| -> BoxFuture<Result<Value, Failure>> {
            Box::pin(commands.clone().command(command, unmount.clone()))
        };
        let control = match before.control.take() {
            Some(control) => {
                control.answer_with(handle);
                control
            }
            None => Control::listen(&dir.0, handle).await?,
        };
        let settings = MountSettings {
            read_only: options.read_only || grant.read_only,
            no_exec: options.no_exec,
            allow_other: options.allow_other,
        };
        let (kernel, mounted) = before.mount(request, &settings)?;
        let detach = DetachOnDrop(Some(mounted));
        let guard = detach.guard(request, kernel.as_fd(), &link);
        let presentation = options.presentation;
        // Not where owners on the host mean nothing here, and only the mounting user gets in
        let acls = options.allow_other || identity;
        let valve = Arc::new(Valve::default());
        let state = request.state.clone();
        let key = Key { watch, owned, device, state, valve: valve.clone(), link: link.clone() };
        let (task_fs, runtime) = (fs.clone(), Handle::current());
        // the handshake waits for the kernel
        let serving = tokio::task::spawn_blocking(move || {
            serve(task_fs, &link, kernel, presentation, valve, acls, runtime)
        });
        let end = serving.await.map_err(std::io::Error::other).flatten().map_err(|error| {
            let hint = "look at the kernel's log: dmesg | tail";
            Failure::new(Code::Fuse, format!("the kernel's FUSE refused: {error}"), hint)
        })?;
        fs.keep_up();
        let (mounted, drain) = (detach.keep()?, options.drain);
        Ok(Self {
            shared,
            mounted,
            key,
            drain,
            end,
            unmounts,
            _control: control,
            _dir: dir,
            wiping: None,
            guard,
        })
    }

    /// What people should know.
    pub(crate) fn notes(&self) -> Vec<String> {
        self.shared.absentees.lines()
    }

    /// Serves until the mount is gone.
    pub(crate) async fn serve(&mut self) -> Result<End, Failure> {
        let pulled = self.key.pulled();
        tokio::pin!(pulled);
        let asked = tokio::select! {
            ended = &mut self.end => {
                tracing::info!(?ended, "unmounted");
                None
            }
            () = daemon::terminated() => {
                tracing::info!("asked to end");
                None
            }
            Some(asked) = self.unmounts.recv() => Some(asked),
            () = &mut pulled => return self.shut().await.map(|(end, _)| end),
            failure = self.shared.session.ended() => return Err(self.cut_off(failure).await),
        };
        self.finish(pulled, asked).await
    }
}

impl Shared {
    async fn command(
        self: Arc<Self>,
        command: Value,
        unmount: mpsc::Sender<Asked>,
    ) -> Result<Value, Failure> {
        match command["command"].as_str() {
            Some("status") => {
                self.absentees.ask(&self.session).await;
                Ok(self.status())
            }
            Some("sync") => self.sync(command["upto"].as_u64()).await,
            Some("unmount") => {
                let (asked, answer) = oneshot::channel();
                // one that is ending already does what was asked
                if unmount.send(asked).await.is_ok()
                    && let Ok(result) = answer.await
                {
                    result?;
                }
                Ok(Value::Null)
            }
            _ => Err(Failure::new(
                Code::Usage,
                "unknown command",
                "use the program of the same version as the daemon",
            )),
        }
    }

    fn status(&self) -> Value {
        let mut status = self.session.status();
        status["mountpoint"] = json!(self.mountpoint.to_string_lossy());
        status["share"] = json!(self.session.grant().share);
        status["cache"] = json!(self.fs.cache().stats());
        status["absent"] = self.absentees.to_json();
        if self.after_crash {
            status[control::AFTER_CRASH] = json!(true);
        }
        if self.draining.load(Ordering::Relaxed) {
            status["state"] = json!("draining");
        }
        status
    }

    async fn sync(&self, upto: Option<u64>) -> Result<Value, Failure> {
        // a program that is still open for writing cannot be started on the host
        self.fs.released().await;
        if self.session.is_delivered() {
            return Ok(json!({"done": true}));
        }
        let upto = upto.map_or_else(|| self.fs.last(), Seq);
        match tokio::time::timeout(SYNC_ANSWER, self.fs.sync_upto(upto)).await {
            Ok(synced) => synced.map(|()| json!({"done": true})).map_err(undelivered),
            Err(_) => Ok(json!({"done": false, "upto": upto.0})),
        }
    }
}

/// Takes a mount away again if mounting fails behind it.
struct DetachOnDrop(Option<Mounted>);

impl DetachOnDrop {
    /// Best effort: without it the mount is as good, as long as this process lives.
    fn guard(
        &self,
        request: &MountRequest,
        kernel: BorrowedFd<'_>,
        link: &KernelLink,
    ) -> Option<Guard> {
        let started = Guard::start(request, self.0.as_ref()?, kernel, link.book());
        started
            .inspect_err(|error| {
                tracing::warn!(%error, "nobody looks after the mount when this process is killed");
            })
            .ok()
    }

    fn keep(mut self) -> Result<Mounted, Failure> {
        self.0.take().ok_or_else(|| interrupted("the mount is gone"))
    }
}

impl Drop for DetachOnDrop {
    fn drop(&mut self) {
        if let Some(mounted) = &self.0
            && let Err(error) = mounted.detach()
        {
            tracing::error!("{}", stuck(mounted, &error).report());
        }
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        if let Err(error) = self.mounted.detach() {
            tracing::error!("{}", stuck(&self.mounted, &error).report());
        }
    }
}

fn no_threads(error: std::io::Error) -> Failure {
    let hint = "see that this user may start threads (ulimit -u)";
    Failure::new(Code::Internal, format!("cannot start a thread: {error}"), hint)
}

fn undelivered(error: Errno) -> Failure {
    Failure::new(
        Code::HostOffline,
        format!("not everything could be delivered to the host: {error}"),
        "when the host is back, try again; p2pfs-mountd status shows what is pending",
    )
}

fn stuck(mounted: &Mounted, error: &std::io::Error) -> Failure {
    let mountpoint = mounted.mountpoint().display();
    Failure::new(
        Code::Fuse,
        format!("cannot unmount {mountpoint}: {error}"),
        format!("run: umount -l {mountpoint}"),
    )
}
