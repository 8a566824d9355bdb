//! The daemon: opens shares and sockets, answers clients and the owner, ends in order.

use std::num::NonZeroUsize;
use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use p2pfs::failure::{Code, Failure};
use p2pfs::identity::PeerId;
use p2pfs::identity::sealed::KeyId;
use p2pfs::net::admin::Control;
use p2pfs::net::daemon;
use p2pfs::net::host::{Host, HostConfig};
use p2pfs::net::remote::BoxFuture;
use rustix::fs::Mode;
use rustix::process::umask;
use serde_json::Value;

use crate::cli::ServeArgs;
use crate::config::Config;
use crate::machine;
use crate::owner::{self, Lock, Owner, Request};
use crate::policy::{House, Shares};
use crate::record::Records;

/// Threads that serve the network only while the disk makes others wait.
const RESERVE: usize = 1;
/// How long it may take until the disk knows when a key was last seen.
const FLUSH: Duration = Duration::from_secs(5);
/// How late a session may end whose key's time is over, or that was approved while its key changed.
const REVIEW: Duration = Duration::from_secs(1);
/// How long calls that are under way may take at the end.
const END: Duration = Duration::from_secs(2);

/// What requests of the owner need.
struct Daemon {
    owner: Arc<Owner>,
    shares: Arc<Shares>,
    /// Set as soon as it runs.
    host: OnceLock<Host>,
}

/// `serve`: until SIGTERM or SIGINT.
///
/// # Errors
///
/// Another daemon serves from `dir`, a share cannot be served, or a socket cannot be opened. A
/// share whose disk is missing and servers that do not answer are no errors.
pub fn run(dir: &Path, args: ServeArgs) -> Result<(), Failure> {
    let lock = Lock::take(dir)?;
    machine::raise_open_files();
    let mut config = Config::load(dir)?;
    config.update(&args)?;
    let shares = Arc::new(Shares::open(&mut config)?);
    config.save(dir)?;
    let owner = Arc::new(Owner::open(dir, lock)?);
    let records = Records::open(dir)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(network_threads() + RESERVE)
        .enable_all()
        .build()
        .map_err(|error| {
            Failure::new(
                Code::Internal,
                format!("cannot start threads: {error}"),
                "check the limits of this user: ulimit -a",
            )
        })?;
    let daemon = Arc::new(Daemon { owner, shares, host: OnceLock::new() });
    let result = runtime.block_on(serve(dir, &args, config, daemon, records));
    // A call may hang in a disk that does not answer
    runtime.shutdown_timeout(END);
    result
}

async fn serve(
    dir: &Path,
    args: &ServeArgs,
    config: Config,
    daemon: Arc<Daemon>,
    records: Arc<Records>,
) -> Result<(), Failure> {
    // Polled once, it is heard from here on: what is begun is ended in order
    let mut terminated = std::pin::pin!(daemon::terminated());
    tokio::select! {
        biased;
        () = &mut terminated => return Ok(()),
        () = std::future::ready(()) => {}
    }
    let asked = Arc::clone(&daemon);
    let _control = Control::listen(dir, move |request| {
        let daemon = Arc::clone(&asked);
        let answer: BoxFuture<_> = Box::pin(answer(daemon, request));
        answer
    })
    .await?;
    // The client's umask counts, not ours. Only now: the socket is made by our own
    umask(Mode::empty());
    let house = House::new(Arc::clone(&daemon.owner), Arc::clone(&daemon.shares), records);
    let host = Host::start(HostConfig {
        secret: daemon.owner.secret().clone(),
        mac: daemon.owner.mac(),
        name: daemon.owner.name().to_owned(),
        listen: args.listen,
        role: args.role,
        auth_wait: Duration::from_secs(args.auth_wait.into()),
        servers: config.servers,
        keys: daemon.owner.recorded(),
        policy: Arc::new(house),
        reserve: true,
    })?;
    let host = daemon.host.get_or_init(|| host);
    daemon::ready(&format!("ready hostd {}", daemon.owner.secret().peer_id()));
    let mut flush = tokio::time::interval(FLUSH);
    let mut review = tokio::time::interval(REVIEW);
    loop {
        tokio::select! {
            () = &mut terminated => break,
            _ = flush.tick() => flush_keys(&daemon).await,
            _ = review.tick() => self::review(&daemon).await?,
        }
    }
    tracing::info!("ending");
    host.shutdown().await;
    flush_keys(&daemon).await;
    Ok(())
}

/// Threads for the network. With one, nothing is handed over between threads on the way of a call,
/// which counts for more than a second core's encryption while there are few cores.
fn network_threads() -> usize {
    let cores = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
    (cores / 2).clamp(1, 4)
}

async fn answer(daemon: Arc<Daemon>, request: Value) -> Result<Value, Failure> {
    let request = owner::parse(request)?;
    let is_status = matches!(request, Request::Status);
    let changes = !is_status && !matches!(request, Request::Host | Request::List);
    let owner = Arc::clone(&daemon.owner);
    let mut answer = blocking(move || owner.answer(&request)).await?;
    if changes {
        review(&daemon).await?;
    }
    if is_status {
        answer["running"] = true.into();
        answer["shares"] = daemon.shares.status();
        let network = move || Ok(daemon.host.get().map(|host| with_key_ids(host.status())));
        let network = blocking(network).await?;
        if let (Some(Value::Object(network)), Some(all)) = (network, answer.as_object_mut()) {
            all.extend(network);
        }
    }
    Ok(answer)
}

/// Sessions follow the owner's list of keys.
async fn review(daemon: &Arc<Daemon>) -> Result<(), Failure> {
    let daemon = Arc::clone(daemon);
    blocking(move || {
        daemon.host.get().inspect(|host| host.review());
        Ok(())
    })
    .await
}

/// Sessions name their keys as `keys list` does.
fn with_key_ids(mut status: Value) -> Value {
    for list in ["sessions", "absent"] {
        for session in status[list].as_array_mut().into_iter().flatten() {
            let peer = session["key"].as_str().and_then(PeerId::from_text);
            if let Some(peer) = peer {
                session["key"] = KeyId::of(peer).as_str().into();
            }
        }
    }
    status
}

async fn flush_keys(daemon: &Daemon) {
    let owner = Arc::clone(&daemon.owner);
    if let Err(failure) = blocking(move || owner.keys().flush()).await {
        tracing::warn!("{failure}");
    }
}

/// Runs what waits for the disk.
async fn blocking<T, F>(work: F) -> Result<T, Failure>
where
    T: Send + 'static,
    F: FnOnce() -> Result<T, Failure> + Send + 'static,
{
    tokio::task::spawn_blocking(work).await.map_err(|error| {
        Failure::new(
            Code::Internal,
            format!("a task ended before its time: {error}"),
            "look at the log of p2pfs-hostd",
        )
    })?
}
