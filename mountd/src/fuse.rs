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
mod requests;
mod waiting;

use std::future::Future;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use fuser::{
    Errno, FileHandle, FopenFlags, Generation, ReplyAttr, ReplyEmpty, ReplyEntry, ReplyXattr,
    Session, SessionACL,
};
use tokio::runtime::Handle;
use tokio::sync::oneshot;

use crate::fs::{Found, Fs, Opened};
pub use convert::Presentation;
use convert::{error, file_attr};
use notify::KernelLink;

/// How long the kernel may keep attributes and entries.
const TTL: Duration = Duration::from_secs(1);
/// Requests of the kernel's own (read-ahead, writing back) under way at once.
const BACKGROUND_MAX: u16 = 512;
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
/// Waits for the kernel's first request: not for a thread that must not block.
pub fn serve(
    fs: Arc<Fs>,
    link: &KernelLink,
    device: OwnedFd,
    presentation: Presentation,
    runtime: Handle,
) -> io::Result<oneshot::Receiver<io::Result<()>>> {
    let mut config = fuser::Config::default();
    config.n_threads = Some(THREADS);
    config.acl = SessionACL::All;
    let adaptor = Adaptor { fs, runtime, presentation };
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

struct Adaptor {
    fs: Arc<Fs>,
    runtime: Handle,
    presentation: Presentation,
}

impl Adaptor {
    fn answer<F, T>(
        &self,
        work: impl FnOnce(Arc<Fs>) -> F,
        reply: impl FnOnce(Result<T, Errno>) + Send + 'static,
    ) where
        F: Future<Output = Result<T, p2pfs::wire::errno::Errno>> + Send + 'static,
        T: Send,
    {
        let work = work(Arc::clone(&self.fs));
        self.runtime.spawn(async move { reply(work.await.map_err(error)) });
    }

    /// Answers with an entry.
    fn answer_entry<F>(&self, work: impl FnOnce(Arc<Fs>) -> F, reply: ReplyEntry)
    where
        F: Future<Output = Result<Found, p2pfs::wire::errno::Errno>> + Send + 'static,
    {
        let presentation = self.presentation;
        self.answer(work, move |result| match result {
            Ok(found) => {
                let attr = file_attr(&found, presentation);
                reply.entry(&ttl(&found), &attr, Generation(found.node.generation));
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
            Ok(found) => reply.attr(&ttl(&found), &file_attr(&found, presentation)),
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

fn ttl(found: &Found) -> Duration {
    if found.settled { TTL } else { Duration::ZERO }
}

fn opened(opened: Opened) -> (FileHandle, FopenFlags) {
    let flags = if opened.keep_pages { FopenFlags::FOPEN_KEEP_CACHE } else { FopenFlags::empty() };
    (FileHandle(opened.handle.0), flags)
}
