//! FUSE: converts the kernel's requests, and hands them to tasks.
//!
//! The only place (with `fuse/`) that knows fuser. No thread of it ever waits for the network: a
//! handler copies what it was given and starts a task, which answers. What fuser 0.18 lacks is worked
//! around here: mounting and unmounting, times before 1970.

mod convert;
pub mod mount;
pub mod notify;

use std::ffi::OsStr;
use std::future::Future;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use fuser::{
    AccessFlags, BsdFileFlags, Errno, FileHandle, Filesystem, FopenFlags, Generation, INodeNo,
    InitFlags, KernelConfig, LockOwner, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData,
    ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyOpen, ReplyStatfs, ReplyWrite,
    ReplyXattr, Request, Session, SessionACL, TimeOrNow, WriteFlags,
};
use p2pfs::id::HandleId;
use p2pfs::limits::BODY_BYTES_MAX;
use p2pfs::wire::log::{AttrChange, Mutation, RenameMode};
use p2pfs::wire::name::Target;
use tokio::runtime::Handle;
use tokio::sync::oneshot;

use crate::fs::{COOKIE_DOT, COOKIE_DOT_DOT, Found, Fs, Opened};
pub use convert::Presentation;
use convert::{access, error, file_attr, kind, name, set_time};
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

impl Filesystem for Adaptor {
    fn init(&mut self, _request: &Request, config: &mut KernelConfig) -> io::Result<()> {
        // no ATOMIC_O_TRUNC: the kernel then truncates by SETATTR under its own locks; no
        // WRITEBACK_CACHE: it would hide the host's changes; no AUTO_INVAL_DATA: opens check
        for wanted in [
            InitFlags::FUSE_ASYNC_READ,
            InitFlags::FUSE_PARALLEL_DIROPS,
            InitFlags::FUSE_DO_READDIRPLUS | InitFlags::FUSE_READDIRPLUS_AUTO,
            InitFlags::FUSE_BIG_WRITES,
            InitFlags::FUSE_CACHE_SYMLINKS,
        ] {
            if let Err(missing) = config.add_capabilities(wanted) {
                tracing::debug!(?missing, "the kernel's FUSE lacks something that is optional");
            }
        }
        let refused = |nearest| io::Error::other(format!("the kernel allows {nearest}"));
        config.set_max_write(BODY_BYTES_MAX as u32).map_err(refused)?;
        let refused = |nearest| io::Error::other(format!("the kernel allows {nearest}"));
        config.set_max_background(BACKGROUND_MAX).map_err(refused)?;
        Ok(())
    }

    fn lookup(&self, _request: &Request, parent: INodeNo, entry: &OsStr, reply: ReplyEntry) {
        let entry = name(entry);
        self.answer_entry(|fs| async move { fs.lookup(parent.0, entry?).await }, reply);
    }

    fn forget(&self, _request: &Request, ino: INodeNo, count: u64) {
        self.fs.forget(ino.0, count);
    }

    fn getattr(
        &self,
        _request: &Request,
        ino: INodeNo,
        handle: Option<FileHandle>,
        reply: ReplyAttr,
    ) {
        let handle = handle.map(|handle| HandleId(handle.0));
        self.answer_attr(|fs| async move { fs.getattr(ino.0, handle).await }, reply);
    }

    fn setattr(
        &self,
        _request: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        handle: Option<FileHandle>,
        _birth: Option<SystemTime>,
        _changed: Option<SystemTime>,
        _backup: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let change = AttrChange {
            mode: mode.map(|mode| mode & 0o7777),
            uid: self.presentation.uid_to_host(uid),
            gid: self.presentation.gid_to_host(gid),
            size,
            atime: atime.map(set_time),
            mtime: mtime.map(set_time),
        };
        let handle = handle.map(|handle| HandleId(handle.0));
        self.answer_attr(|fs| async move { fs.setattr(ino.0, handle, change).await }, reply);
    }

    fn readlink(&self, _request: &Request, ino: INodeNo, reply: ReplyData) {
        self.answer(
            |fs| async move { fs.readlink(ino.0).await },
            move |result| match result {
                Ok(target) => reply.data(target.as_bytes()),
                Err(errno) => reply.error(errno),
            },
        );
    }

    fn mknod(
        &self,
        _request: &Request,
        parent: INodeNo,
        entry: &OsStr,
        mode: u32,
        umask: u32,
        rdev: u32,
        reply: ReplyEntry,
    ) {
        let entry = name(entry);
        let make = |fs: Arc<Fs>| async move {
            let name = entry?;
            let (mode, rdev) = (mode & !umask, u64::from(rdev));
            let mutation = |parent| Mutation::Mknod { parent, name, mode, rdev };
            fs.make(parent.0, mutation).await
        };
        self.answer_entry(make, reply);
    }

    fn mkdir(
        &self,
        _request: &Request,
        parent: INodeNo,
        entry: &OsStr,
        mode: u32,
        umask: u32,
        reply: ReplyEntry,
    ) {
        let entry = name(entry);
        let make = |fs: Arc<Fs>| async move {
            let name = entry?;
            let mode = mode & 0o7777 & !umask;
            fs.make(parent.0, |parent| Mutation::Mkdir { parent, name, mode }).await
        };
        self.answer_entry(make, reply);
    }

    fn unlink(&self, _request: &Request, parent: INodeNo, entry: &OsStr, reply: ReplyEmpty) {
        let entry = name(entry);
        self.answer_empty(|fs| async move { fs.unlink(parent.0, entry?).await }, reply);
    }

    fn rmdir(&self, _request: &Request, parent: INodeNo, entry: &OsStr, reply: ReplyEmpty) {
        let entry = name(entry);
        self.answer_empty(|fs| async move { fs.rmdir(parent.0, entry?).await }, reply);
    }

    fn symlink(
        &self,
        _request: &Request,
        parent: INodeNo,
        entry: &OsStr,
        target: &Path,
        reply: ReplyEntry,
    ) {
        let entry = name(entry);
        let target = Target::new(target.as_os_str().as_bytes());
        let make = |fs: Arc<Fs>| async move {
            let (name, target) = (entry?, target?);
            let mutation = |parent| Mutation::Symlink { parent, name, target };
            fs.make(parent.0, mutation).await
        };
        self.answer_entry(make, reply);
    }

    fn rename(
        &self,
        _request: &Request,
        parent: INodeNo,
        entry: &OsStr,
        new_parent: INodeNo,
        new_entry: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let mode = if flags.is_empty() {
            RenameMode::Replace
        } else if flags == RenameFlags::RENAME_NOREPLACE {
            RenameMode::NoReplace
        } else if flags == RenameFlags::RENAME_EXCHANGE {
            RenameMode::Exchange
        } else {
            return reply.error(Errno::EINVAL);
        };
        let (from, to) = (name(entry), name(new_entry));
        let rename = |fs: Arc<Fs>| async move {
            fs.rename((parent.0, from?), (new_parent.0, to?), mode).await
        };
        self.answer_empty(rename, reply);
    }

    fn link(
        &self,
        _request: &Request,
        ino: INodeNo,
        new_parent: INodeNo,
        new_entry: &OsStr,
        reply: ReplyEntry,
    ) {
        let entry = name(new_entry);
        self.answer_entry(|fs| async move { fs.link(ino.0, new_parent.0, entry?).await }, reply);
    }

    fn open(&self, _request: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let mode = access(flags.0);
        self.answer(
            move |fs| async move { fs.open(ino.0, mode).await },
            move |result| match result {
                Ok(handle) => {
                    let (handle, flags) = opened(handle);
                    reply.opened(handle, flags);
                }
                Err(errno) => reply.error(errno),
            },
        );
    }

    fn read(
        &self,
        _request: &Request,
        _ino: INodeNo,
        handle: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        self.answer(
            move |fs| async move { fs.read(HandleId(handle.0), offset, size).await },
            move |result| match result {
                Ok(data) => reply.data(&data),
                Err(errno) => reply.error(errno),
            },
        );
    }

    fn write(
        &self,
        _request: &Request,
        _ino: INodeNo,
        handle: FileHandle,
        offset: u64,
        data: &[u8],
        _write_flags: WriteFlags,
        flags: OpenFlags,
        _owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let data = Bytes::copy_from_slice(data);
        let synchronous = flags.0 & libc::O_DSYNC != 0;
        self.answer(
            move |fs| async move { fs.write(HandleId(handle.0), offset, data, synchronous).await },
            move |result| match result {
                Ok(written) => reply.written(written),
                Err(errno) => reply.error(errno),
            },
        );
    }

    fn flush(
        &self,
        _request: &Request,
        _ino: INodeNo,
        handle: FileHandle,
        _owner: LockOwner,
        reply: ReplyEmpty,
    ) {
        self.answer_empty(|fs| async move { fs.flush(HandleId(handle.0)).await }, reply);
    }

    fn release(
        &self,
        _request: &Request,
        _ino: INodeNo,
        handle: FileHandle,
        _flags: OpenFlags,
        _owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        let _runtime = self.runtime.enter();
        self.fs.release(HandleId(handle.0));
        reply.ok();
    }

    fn fsync(
        &self,
        _request: &Request,
        _ino: INodeNo,
        handle: FileHandle,
        data_only: bool,
        reply: ReplyEmpty,
    ) {
        self.answer_empty(|fs| async move { fs.sync(HandleId(handle.0), data_only).await }, reply);
    }

    fn opendir(&self, request: &Request, ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        self.open(request, ino, OpenFlags(libc::O_RDONLY), reply);
    }

    fn readdir(
        &self,
        _request: &Request,
        _ino: INodeNo,
        handle: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        self.answer(
            move |fs| async move { fs.list(HandleId(handle.0), offset).await },
            move |result| {
                let portion = match result {
                    Ok(portion) => portion,
                    Err(errno) => return reply.error(errno),
                };
                let dots = [(portion.ino, COOKIE_DOT, "."), (portion.parent, COOKIE_DOT_DOT, "..")];
                for (ino, cookie, dot) in dots.into_iter().skip(portion.dots_from.into()) {
                    if reply.add(INodeNo(ino), cookie, fuser::FileType::Directory, dot) {
                        return reply.ok();
                    }
                }
                for entry in portion.entries() {
                    let node = INodeNo(entry.entry.node.ino);
                    let name = OsStr::from_bytes(entry.name.as_bytes());
                    if reply.add(node, entry.cookie, kind(entry.entry.attr.mode), name) {
                        break;
                    }
                }
                reply.ok();
            },
        );
    }

    fn readdirplus(
        &self,
        _request: &Request,
        _ino: INodeNo,
        handle: FileHandle,
        offset: u64,
        mut reply: ReplyDirectoryPlus,
    ) {
        let presentation = self.presentation;
        let fs = Arc::clone(&self.fs);
        self.answer(
            move |fs| async move { fs.list(HandleId(handle.0), offset).await },
            move |result| {
                let portion = match result {
                    Ok(portion) => portion,
                    Err(errno) => return reply.error(errno),
                };
                let dots = [(portion.ino, COOKIE_DOT, "."), (portion.parent, COOKIE_DOT_DOT, "..")];
                for (ino, cookie, dot) in dots.into_iter().skip(portion.dots_from.into()) {
                    // the kernel takes only the number and the type of these two
                    let attr = convert::directory(ino);
                    let none = Generation(0);
                    if reply.add(INodeNo(ino), cookie, dot, &Duration::ZERO, &attr, none) {
                        return reply.ok();
                    }
                }
                for entry in portion.entries() {
                    let found = fs.show(&portion, entry);
                    let attr = file_attr(&found, presentation);
                    let (name, ttl) = (OsStr::from_bytes(entry.name.as_bytes()), ttl(&found));
                    let generation = Generation(found.node.generation);
                    if reply.add(attr.ino, entry.cookie, name, &ttl, &attr, generation) {
                        fs.forget(found.node.ino, 1);
                        break;
                    }
                }
                reply.ok();
            },
        );
    }

    fn releasedir(
        &self,
        _request: &Request,
        _ino: INodeNo,
        handle: FileHandle,
        _flags: OpenFlags,
        reply: ReplyEmpty,
    ) {
        let _runtime = self.runtime.enter();
        self.fs.release(HandleId(handle.0));
        reply.ok();
    }

    fn fsyncdir(
        &self,
        request: &Request,
        ino: INodeNo,
        handle: FileHandle,
        data_only: bool,
        reply: ReplyEmpty,
    ) {
        self.fsync(request, ino, handle, data_only, reply);
    }

    fn statfs(&self, _request: &Request, _ino: INodeNo, reply: ReplyStatfs) {
        self.answer(
            |fs| async move { fs.statfs().await },
            move |result| match result {
                Ok(s) => reply.statfs(
                    s.blocks, s.bfree, s.bavail, s.files, s.ffree, s.bsize, s.namelen, s.frsize,
                ),
                Err(errno) => reply.error(errno),
            },
        );
    }

    fn setxattr(
        &self,
        _request: &Request,
        ino: INodeNo,
        attribute: &OsStr,
        value: &[u8],
        flags: i32,
        _position: u32,
        reply: ReplyEmpty,
    ) {
        let attribute = attribute.as_bytes().to_vec();
        let value = Bytes::copy_from_slice(value);
        let Ok(flags) = u8::try_from(flags) else {
            return reply.error(Errno::EINVAL);
        };
        self.answer_empty(
            |fs| async move { fs.setxattr(ino.0, attribute, value, flags).await },
            reply,
        );
    }

    fn getxattr(
        &self,
        _request: &Request,
        ino: INodeNo,
        attribute: &OsStr,
        size: u32,
        reply: ReplyXattr,
    ) {
        // asked before every write: answered here and now
        if let Some(errno) = crate::fs::local_xattr(attribute.as_bytes()) {
            return reply.error(error(errno));
        }
        let attribute = attribute.as_bytes().to_vec();
        self.answer_xattr(|fs| async move { fs.getxattr(ino.0, attribute).await }, size, reply);
    }

    fn listxattr(&self, _request: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        self.answer_xattr(|fs| async move { fs.listxattr(ino.0).await }, size, reply);
    }

    fn removexattr(&self, _request: &Request, ino: INodeNo, attribute: &OsStr, reply: ReplyEmpty) {
        let attribute = attribute.as_bytes().to_vec();
        self.answer_empty(|fs| async move { fs.removexattr(ino.0, attribute).await }, reply);
    }

    fn access(&self, _request: &Request, _ino: INodeNo, _mask: AccessFlags, reply: ReplyEmpty) {
        // the host decides, operation by operation
        reply.error(Errno::ENOSYS);
    }

    fn create(
        &self,
        _request: &Request,
        parent: INodeNo,
        entry: &OsStr,
        mode: u32,
        umask: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        let entry = name(entry);
        let how = access(flags);
        let mode = mode & 0o7777 & !umask;
        let presentation = self.presentation;
        self.answer(
            move |fs| async move { fs.create(parent.0, entry?, mode, how).await },
            move |result| match result {
                Ok((found, handle)) => {
                    let attr = file_attr(&found, presentation);
                    let generation = Generation(found.node.generation);
                    let (handle, flags) = opened(handle);
                    reply.created(&ttl(&found), &attr, generation, handle, flags);
                }
                Err(errno) => reply.error(errno),
            },
        );
    }

    fn fallocate(
        &self,
        _request: &Request,
        _ino: INodeNo,
        handle: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        let handle = HandleId(handle.0);
        let mode = mode.cast_unsigned();
        self.answer_empty(
            |fs| async move { fs.fallocate(handle, offset, length, mode).await },
            reply,
        );
    }
}
