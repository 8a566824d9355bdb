//! While the key is away: the program waits for it, and mounts again.
//!
//! A mount whose key was pulled ends by starting this program anew in its own process, which leaves
//! nothing in its memory of what was read before.

use std::ffi::OsString;
use std::future::Future;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::time::Duration;

use p2pfs::failure::{Code, Failure};
use p2pfs::net::admin::Control;
use p2pfs::net::daemon;
use serde_json::{Value, json};
use tokio::sync::mpsc;

use crate::control;
use crate::gate::watch::KeyWatch;
use crate::mounted::{End, Mount, MountRequest, run_with};
use crate::store;

/// How long to wait after an attempt with the key that failed.
const RETRY: Duration = Duration::from_secs(1);

/// What the program is told when it starts anew.
#[derive(Clone, Debug)]
pub(crate) struct Again {
    pub(crate) options: String,
    pub(crate) sloppy: bool,
}

/// Goes on after a mount has ended: where the key was pulled, the program begins anew and waits.
pub(crate) fn follow(end: End, request: &MountRequest, again: &Again) -> Result<(), Failure> {
    if end == End::Unmounted {
        return Ok(());
    }
    let mut arguments: Vec<OsString> = vec!["mount".into(), "--locked".into()];
    arguments.push(request.spec.absolute());
    arguments.push(request.mountpoint.clone().into());
    arguments.extend(["-o".into(), again.options.clone().into(), "--state".into()]);
    arguments.push(request.state.clone().into());
    if again.sloppy {
        arguments.push("--sloppy".into());
    }
    let cannot = |error: std::io::Error| {
        let hint = "mount it again when the key is back";
        Failure::new(Code::Internal, format!("cannot wait for the key: {error}"), hint)
    };
    let program = std::env::current_exe().map_err(cannot)?;
    // returns only if it fails
    Err(cannot(Command::new(program).arg0(PROGRAM).args(arguments).exec()))
}

/// The name that this program goes by, whatever name started it.
const PROGRAM: &str = "p2pfs-mountd";

/// Waits for the key, mounts, and serves until the mount is gone.
pub(crate) fn run(request: MountRequest, again: &Again) -> Result<(), Failure> {
    let end = run_with(live(&request))?;
    follow(end, &request, again)
}

async fn live(request: &MountRequest) -> Result<End, Failure> {
    let watch = KeyWatch::new(&store::locate(&request.state, &request.spec));
    loop {
        match until_ended(request, wait(&watch)).await? {
            Some(()) => {}
            None => return Ok(End::Unmounted),
        }
        let started = tokio::select! {
            started = Mount::start(request) => started,
            () = daemon::terminated() => return Ok(End::Unmounted),
        };
        let ended = match started {
            Ok(mut mount) => {
                tracing::info!("the key is back: mounted again");
                return mount.serve().await;
            }
            Err(failure) => {
                tracing::error!("{}", failure.report());
                match failure.code {
                    // nobody is there to type it: whoever mounts again takes this one's place
                    Code::Passphrase => until_ended(request, gone(&watch)).await?,
                    _ => until_ended(request, tokio::time::sleep(RETRY)).await?,
                }
            }
        };
        if ended.is_none() {
            return Ok(End::Unmounted);
        }
    }
}

async fn wait(watch: &KeyWatch) {
    while !watch.has_any().await {
        watch.stir(None).await;
    }
}

async fn gone(watch: &KeyWatch) {
    while watch.has_any().await {
        watch.stir(None).await;
    }
}

/// `None`: somebody ended the program, or unmounted what is not mounted, before `done`.
async fn until_ended(
    request: &MountRequest,
    done: impl Future<Output = ()>,
) -> Result<Option<()>, Failure> {
    let dir = control::mount_dir(&request.state, &request.mountpoint);
    daemon::state_dir(Some(dir.clone()), "mountd")?;
    let (unmount, mut unmounts) = mpsc::channel(1);
    let status = json!({
        "mountpoint": request.mountpoint.to_string_lossy(),
        "share": request.spec.share,
        "state": "locked",
        "connection_id": null,
        "pending": { "entries": 0, "bytes": 0, "eta_s": 0, "errors": 0 },
    });
    let control = Control::listen(&dir, move |command| {
        Box::pin(answer(command, status.clone(), unmount.clone()))
    })
    .await?;
    let ended = tokio::select! {
        () = done => Some(()),
        () = daemon::terminated() => None,
        _ = unmounts.recv() => None,
    };
    drop(control);
    if ended.is_none() {
        // another mount may have begun here
        let _ = std::fs::remove_file(dir.join("control.lock"));
        let _ = std::fs::remove_dir(&dir);
    }
    Ok(ended)
}

async fn answer(
    command: Value,
    status: Value,
    unmount: mpsc::Sender<()>,
) -> Result<Value, Failure> {
    match command["command"].as_str() {
        Some("status") => Ok(status),
        Some("sync") => Ok(json!({"done": true})),
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
