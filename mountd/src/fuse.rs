//! FUSE: converts the kernel's requests, and hands them to tasks.
//!
//! The only place (with `fuse/`) that knows fuser. No thread of it ever waits for the network: a
//! handler copies what it was given and starts a task, which answers. What fuser 0.18 lacks is
//! worked around here: mounting and unmounting, times before 1970.

mod convert;
mod listing;
mod locks;
pub mod mount;
pub mod notify;
mod parked;
mod requests;
mod waiting;

use std::future::Future;
use std::io;
use std::os::fd::OwnedFd;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use fuser::{
    Errno, FileHandle, FopenFlags, Generation, ReplyAttr, ReplyData, ReplyEmpty, ReplyEntry,
    ReplyXattr, Request, Session, SessionACL,
};
use p2pfs::wire::call::StatFs;
use p2pfs::wire::lease::Blocker;
use p2pfs::wire::name::Target;
use tokio::runtime::Handle;
use tokio::sync::oneshot;

use crate::caller::{Asking, Wait};
use crate::fs::{COPY_BYTES, Found, Fs, Opened, Portion};
use crate::gate::valve::{Pass, Shut, Valve};
pub use convert::Presentation;
use convert::{error, file_attr};
use notify::KernelLink;
use parked::Parking;
use waiting::Signals;

/// Requests of the kernel's own (read-ahead, writing back) under way at once.
const BACKGROUND_MAX: u16 = 512;
/// What is asked when the key is pulled: "required key not available".
const PULLED: p2pfs::wire::errno::Errno = p2pfs::wire::errno::Errno::ENOKEY;
/// How long an answer may take that is on its way when whoever asked is interrupted.
const LAST_MOMENT: Duration = Duration::from_millis(20);
/// Threads that read requests.
const THREADS: usize = 2;

/// A panic must not leave a mount that hangs: after it, the process is gone and the mount answers
/// with errors.
pub fn abort_on_panic() {
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        report(info);
        std::process::abort();
    }));
}

/// Answers the kernel's requests on `device` until it is unmounted; then the receiver resolves.
///
/// `acls`: the kernel checks permissions, by ACLs too.
///
/// Waits for the kernel's first request: not for a thread that must not block.
pub fn serve(
    fs: Arc<Fs>,
    link: &KernelLink,
    device: OwnedFd,
    presentation: Presentation,
    valve: Arc<Valve>,
    acls: bool,
    runtime: Handle,
) -> io::Result<oneshot::Receiver<io::Result<()>>> {
    let mut config = fuser::Config::default();
    config.n_threads = Some(THREADS);
    config.acl = SessionACL::All;
    let parking = {
        let _runtime = runtime.enter();
        Parking::new()
    };
    let adaptor = Adaptor {
        parking,
        fs,
        runtime,
        presentation,
        valve,
        acls,
        asking: None,
        signals: Signals::default(),
    };
    // who may use the mount is the kernel's decision (`allow_other`), so all requests are answered
    let session = Session::from_fd(adaptor, device, SessionACL::All, config)?;
    link.connect(session.notifier());
    let (ended, end) = oneshot::channel();
    std::thread::Builder::new().name("fuse".to_owned()).spawn(move || {
        // nobody listens if the process is ending by itself
        let _ = ended.send(session.run());
    })?;
    Ok(end)
}

#[derive(Clone)]
struct Adaptor {
    parking: Arc<Parking>,
    fs: Arc<Fs>,
    runtime: Handle,
    presentation: Presentation,
    valve: Arc<Valve>,
    /// The kernel checks permissions, and so must know the ACLs.
    acls: bool,
    /// Whose request is being answered.
    asking: Option<Asking>,
    /// What ends its wait.
    signals: Signals,
}

/// What answers a request.
trait Answer: Send + 'static {
    /// Nobody is told: what the kernel would have given back is taken back.
    fn abandon(self, _fs: &Arc<Fs>)
    where
        Self: Sized,
    {
    }
}

impl Answer for () {}
impl Answer for u32 {}
impl Answer for u64 {}
impl Answer for Bytes {}
impl Answer for Found {}
impl Answer for Portion {}
impl Answer for Option<(Blocker, u32)> {}
impl Answer for StatFs {}
impl Answer for Target {}

impl Answer for Opened {
    fn abandon(self, fs: &Arc<Fs>) {
        fs.release(self.handle);
    }
}

/// A node that the kernel would have known once more.
struct Referred(Found);

impl Answer for Referred {
    fn abandon(self, fs: &Arc<Fs>) {
        fs.forget(self.0.node.ino, 1);
    }
}

impl Answer for (Referred, Opened) {
    fn abandon(self, fs: &Arc<Fs>) {
        self.0.abandon(fs);
        self.1.abandon(fs);
    }
}

impl Adaptor {
    /// Answers for the process that asks. For everything that the host decides by its rights, or
    /// that belongs to it afterwards.
    fn by(&self, request: &Request) -> Self {
        let asking = Asking { uid: request.uid(), gid: request.gid(), pid: request.pid() };
        Self { asking: Some(asking), ..self.clone() }
    }

    /// With other signals that end the wait than those of most requests.
    fn heeding(self, signals: Signals) -> Self {
        Self { signals, ..self }
    }

    fn answer<F, T>(
        &self,
        work: impl FnOnce(Arc<Fs>) -> F,
        reply: impl FnOnce(Result<T, Errno>) + Send + 'static,
    ) where
        F: Future<Output = Result<T, p2pfs::wire::errno::Errno>> + Send + 'static,
        T: Answer,
    {
        let _runtime = self.runtime.enter();
        let work = work(Arc::clone(&self.fs));
        match self.valve.try_enter() {
            Some(Ok(pass)) => self.answer_within(pass, work, reply),
            Some(Err(Shut)) => reply(Err(error(PULLED))),
            None => {
                let adaptor = self.clone();
                tokio::spawn(async move {
                    match adaptor.valve.enter().await {
                        Ok(pass) => adaptor.answer_within(pass, work, reply),
                        Err(Shut) => reply(Err(error(PULLED))),
                    }
                });
            }
        }
    }

    async fn asked_by<T>(asking: Option<Asking>, work: impl Future<Output = T>) -> T {
        match asking {
            Some(asking) => asking.scope(work).await,
            None => work.await,
        }
    }

    /// Answers what has come through the valve; with EINTR if the one who asks is interrupted
    /// meanwhile. Needs the runtime around it.
    fn answer_within<F, T>(
        &self,
        pass: Pass,
        work: F,
        reply: impl FnOnce(Result<T, Errno>) + Send + 'static,
    ) where
        F: Future<Output = Result<T, p2pfs::wire::errno::Errno>> + Send + 'static,
        T: Answer,
    {
        let wait = Arc::new(Wait::default());
        let work = Arc::clone(&wait).scope(Self::asked_by(self.asking, work));
        let (caller, signals) = (self.asking.map_or(0, |asking| asking.pid), self.signals);
        let fs = Arc::clone(&self.fs);
        // what waits for nothing is answered here; what waits has asked then
        self.parking.run(&self.runtime, |task| async move {
            let _pass = pass;
            let mut work = pin!(work);
            tokio::select! {
                biased;
                result = &mut work => return reply(result.map_err(error)),
                () = task.then(waiting::interrupted(caller, signals)) => fs.end_wait(&wait),
            }
            // what has happened after all is told
            if let Ok(result) = tokio::time::timeout(LAST_MOMENT, &mut work).await {
                return reply(result.map_err(error));
            }
            reply(Err(Errno::EINTR));
            // what cannot be given up is ended in order
            if let Ok(answer) = work.await {
                answer.abandon(&fs);
            }
        });
    }

    /// Answers with data; large data is copied into the kernel away from the network's thread.
    fn answer_data<F>(&self, work: impl FnOnce(Arc<Fs>) -> F, reply: ReplyData)
    where
        F: Future<Output = Result<Bytes, p2pfs::wire::errno::Errno>> + Send + 'static,
    {
        let answer = |result: Result<Bytes, Errno>, reply: ReplyData| match result {
            Ok(data) => reply.data(&data),
            Err(errno) => reply.error(errno),
        };
        let fuse_thread = std::thread::current().id();
        self.answer(work, move |result| {
            let is_large = result.as_ref().is_ok_and(|data| data.len() > COPY_BYTES as usize);
            if is_large && std::thread::current().id() != fuse_thread {
                tokio::task::spawn_blocking(move || answer(result, reply));
            } else {
                answer(result, reply);
            }
        });
    }

    /// Answers with an entry.
    fn answer_entry<F>(&self, work: impl FnOnce(Arc<Fs>) -> F, reply: ReplyEntry)
    where
        F: Future<Output = Result<Found, p2pfs::wire::errno::Errno>> + Send + 'static,
    {
        let presentation = self.presentation;
        let work = |fs| {
            let found = work(fs);
            async move { found.await.map(Referred) }
        };
        self.answer(work, move |result| match result {
            Ok(Referred(found)) => {
                let attr = file_attr(&found, presentation);
                reply.entry(&found.keep, &attr, Generation(found.node.generation));
            }
            Err(errno) => reply.error(errno),
        });
    }

    fn answer_attr<F>(&self, work: impl FnOnce(Arc<Fs>) -> F, reply: ReplyAttr)
    where
        F: Future<Output = Result<Found, p2pfs::wire::errno::Errno>> + Send + 'static,
    {
        let presentation = self.presentation;
        self.answer(work, move |result| match result {
            Ok(found) => reply.attr(&found.keep, &file_attr(&found, presentation)),
            Err(errno) => reply.error(errno),
        });
    }

    fn answer_empty<F>(&self, work: impl FnOnce(Arc<Fs>) -> F, reply: ReplyEmpty)
    where
        F: Future<Output = Result<(), p2pfs::wire::errno::Errno>> + Send + 'static,
    {
        self.answer(work, move |result| match result {
            Ok(()) => reply.ok(),
            Err(errno) => reply.error(errno),
        });
    }

    fn answer_xattr<F>(&self, work: impl FnOnce(Arc<Fs>) -> F, size: u32, reply: ReplyXattr)
    where
        F: Future<Output = Result<Bytes, p2pfs::wire::errno::Errno>> + Send + 'static,
    {
        self.answer(work, move |result| match result {
            Ok(value) if size == 0 => reply.size(value.len() as u32),
            Ok(value) if value.len() > size as usize => reply.error(Errno::ERANGE),
            Ok(value) => reply.data(&value),
            Err(errno) => reply.error(errno),
        });
    }
}

fn opened(opened: Opened) -> (FileHandle, FopenFlags) {
    let mut flags = FopenFlags::empty();
    flags.set(FopenFlags::FOPEN_KEEP_CACHE, opened.keep_pages);
    flags.set(FopenFlags::FOPEN_DIRECT_IO, opened.direct);
    (FileHandle(opened.handle.0), flags)
}
