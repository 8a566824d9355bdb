//! The kernel's requests, one by one: converted, and handed to a task.

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;
use fuser::{
    AccessFlags, BsdFileFlags, CopyFileRangeFlags, Errno, FileHandle, Filesystem, Generation,
    INodeNo, InitFlags, KernelConfig, LockOwner, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate,
    ReplyData, ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyLock, ReplyLseek,
    ReplyOpen, ReplyStatfs, ReplyWrite, ReplyXattr, Request, TimeOrNow, WriteFlags,
};
use p2pfs::id::HandleId;
use p2pfs::limits::BODY_BYTES_MAX;
use p2pfs::wire::lease::{LockFamily, LockKind};
use p2pfs::wire::log::{AttrChange, Mutation, NewMode, RenameMode};
use p2pfs::wire::name::Target;

use super::convert::{access, error, file_attr, name, seek, set_time, write_mode};
use super::waiting::{self, Signals};
use super::{Adaptor, BACKGROUND_MAX, Referred, listing, locks, opened};
use crate::fs::Fs;

/// What one request to copy may do at most, bytes.
const COPY_BYTES_MAX: u64 = 1 << 30;

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
            InitFlags::FUSE_ASYNC_DIO,
            InitFlags::FUSE_DIRECT_IO_ALLOW_MMAP,
            // the host applies the umask, or a default ACL instead of it
            InitFlags::FUSE_DONT_MASK,
            InitFlags::FUSE_POSIX_LOCKS,
            InitFlags::FUSE_FLOCK_LOCKS,
        ] {
            if let Err(missing) = config.add_capabilities(wanted) {
                tracing::debug!(?missing, "the kernel's FUSE lacks something that is optional");
            }
        }
        // what a write takes away is the host's business: it has the file
        if config.add_capabilities(InitFlags::FUSE_HANDLE_KILLPRIV_V2).is_ok() {
            self.fs.host_takes_privileges_away();
        }
        // makes the kernel check permissions, so only where it does that anyway
        if self.acls && config.add_capabilities(InitFlags::FUSE_POSIX_ACL).is_err() {
            tracing::warn!("the kernel does not heed POSIX ACLs of FUSE file systems");
        }
        let refused = |nearest| io::Error::other(format!("the kernel allows {nearest}"));
        config.set_max_write(BODY_BYTES_MAX as u32).map_err(refused)?;
        let refused = |nearest| io::Error::other(format!("the kernel allows {nearest}"));
        config.set_max_background(BACKGROUND_MAX).map_err(refused)?;
        Ok(())
    }

    fn lookup(&self, request: &Request, parent: INodeNo, entry: &OsStr, reply: ReplyEntry) {
        let entry = name(entry);
        self.by(request).answer_entry(|fs| async move { fs.lookup(parent.0, entry?).await }, reply);
    }

    fn forget(&self, _request: &Request, ino: INodeNo, count: u64) {
        self.fs.forget(ino.0, count);
    }

    fn getattr(
        &self,
        request: &Request,
        ino: INodeNo,
        handle: Option<FileHandle>,
        reply: ReplyAttr,
    ) {
        let handle = handle.map(|handle| HandleId(handle.0));
        self.by(request).answer_attr(|fs| async move { fs.getattr(ino.0, handle).await }, reply);
    }

    fn setattr(
        &self,
        request: &Request,
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
        self.by(request)
            .answer_attr(|fs| async move { fs.setattr(ino.0, handle, change).await }, reply);
    }

    fn readlink(&self, request: &Request, ino: INodeNo, reply: ReplyData) {
        self.by(request).answer(
            |fs| async move { fs.readlink(ino.0).await },
            move |result| match result {
                Ok(target) => reply.data(target.as_bytes()),
                Err(errno) => reply.error(errno),
            },
        );
    }

    fn mknod(
        &self,
        request: &Request,
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
            let (mode, rdev) = (NewMode::new(mode, umask).0, u64::from(rdev));
            let mutation = |parent| Mutation::Mknod { parent, name, mode, rdev };
            fs.make(parent.0, mutation).await
        };
        self.by(request).answer_entry(make, reply);
    }

    fn mkdir(
        &self,
        request: &Request,
        parent: INodeNo,
        entry: &OsStr,
        mode: u32,
        umask: u32,
        reply: ReplyEntry,
    ) {
        let entry = name(entry);
        let make = |fs: Arc<Fs>| async move {
            let name = entry?;
            let mode = NewMode::new(mode & 0o7777, umask).0;
            fs.make(parent.0, |parent| Mutation::Mkdir { parent, name, mode, premade: None }).await
        };
        self.by(request).answer_entry(make, reply);
    }

    fn unlink(&self, request: &Request, parent: INodeNo, entry: &OsStr, reply: ReplyEmpty) {
        let entry = name(entry);
        self.by(request).answer_empty(|fs| async move { fs.unlink(parent.0, entry?).await }, reply);
    }

    fn rmdir(&self, request: &Request, parent: INodeNo, entry: &OsStr, reply: ReplyEmpty) {
        let entry = name(entry);
        self.by(request).answer_empty(|fs| async move { fs.rmdir(parent.0, entry?).await }, reply);
    }

    fn symlink(
        &self,
        request: &Request,
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
        self.by(request).answer_entry(make, reply);
    }

    fn rename(
        &self,
        request: &Request,
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
        self.by(request).answer_empty(rename, reply);
    }

    fn link(
        &self,
        request: &Request,
        ino: INodeNo,
        new_parent: INodeNo,
        new_entry: &OsStr,
        reply: ReplyEntry,
    ) {
        let entry = name(new_entry);
        self.by(request)
            .answer_entry(|fs| async move { fs.link(ino.0, new_parent.0, entry?).await }, reply);
    }

    fn open(&self, request: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let mode = access(flags.0);
        self.by(request).answer(
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
        request: &Request,
        _ino: INodeNo,
        handle: FileHandle,
        offset: u64,
        size: u32,
        flags: OpenFlags,
        _owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let handle = HandleId(handle.0);
        let direct = flags.0 & libc::O_DIRECT != 0;
        let read = move |fs: Arc<Fs>| async move {
            if direct {
                fs.read_direct(handle, offset, size).await
            } else {
                fs.read(handle, offset, size).await
            }
        };
        self.by(request).heeding(Signals::Reading).answer_data(read, reply);
    }

    fn write(
        &self,
        request: &Request,
        _ino: INodeNo,
        handle: FileHandle,
        offset: u64,
        data: &[u8],
        write_flags: WriteFlags,
        flags: OpenFlags,
        _owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let data = Bytes::copy_from_slice(data);
        let cached = write_flags.contains(WriteFlags::FUSE_WRITE_CACHE);
        let how = write_mode(flags.0, cached);
        let write =
            move |fs: Arc<Fs>| async move { fs.write(HandleId(handle.0), offset, data, how).await };
        let answer = move |result| match result {
            Ok(written) => reply.written(written),
            Err(errno) => reply.error(errno),
        };
        let by = self.by(request);
        if cached {
            // the kernel's pages, changed through a mapping: also when the key is gone
            let work = Self::asked_by(by.asking, write(Arc::clone(&self.fs)));
            let _runtime = self.runtime.enter();
            return self.answer_within(self.valve.enter_anyway(), work, answer);
        }
        by.answer(write, answer);
    }

    fn flush(
        &self,
        request: &Request,
        _ino: INodeNo,
        handle: FileHandle,
        owner: LockOwner,
        reply: ReplyEmpty,
    ) {
        let flush = move |fs: Arc<Fs>| async move { fs.flush(HandleId(handle.0), owner.0).await };
        let by = self.by(request);
        if waiting::is_let_go(request.pid()) {
            self.runtime.spawn(Self::asked_by(by.asking, flush(Arc::clone(&self.fs))));
            return reply.ok();
        }
        by.heeding(Signals::Closing).answer_empty(flush, reply);
    }

    fn getlk(
        &self,
        request: &Request,
        _ino: INodeNo,
        handle: FileHandle,
        owner: LockOwner,
        start: u64,
        end: u64,
        kind: i32,
        _pid: u32,
        reply: ReplyLock,
    ) {
        // flock(2) has no such question
        let bytes = locks::bytes(handle, owner, start, end, LockFamily::Range);
        let kind = if kind == libc::F_RDLCK { LockKind::Shared } else { LockKind::Exclusive };
        self.by(request).answer(
            move |fs| async move { fs.blocker(bytes, kind).await },
            move |result| match result {
                Ok(found) => locks::tell(found, reply),
                Err(errno) => reply.error(errno),
            },
        );
    }

    fn setlk(
        &self,
        request: &Request,
        _ino: INodeNo,
        handle: FileHandle,
        owner: LockOwner,
        start: u64,
        end: u64,
        kind: i32,
        pid: u32,
        wait: bool,
        reply: ReplyEmpty,
    ) {
        let caller = request.pid();
        let bytes = move |family| locks::bytes(handle, owner, start, end, family);
        let family = waiting::lock_family(caller);
        let kind = match kind {
            libc::F_RDLCK => LockKind::Shared,
            libc::F_WRLCK => LockKind::Exclusive,
            libc::F_UNLCK => {
                let families = match family {
                    Some(family) => vec![family],
                    None => vec![LockFamily::Range, LockFamily::Whole],
                };
                let unlock = |fs: Arc<Fs>| async move {
                    for family in families {
                        fs.unlock(bytes(family)).await?;
                    }
                    Ok(())
                };
                return self.by(request).answer_empty(unlock, reply);
            }
            _ => return reply.error(Errno::EINVAL),
        };
        // What cannot be told is a byte range, as with NFS
        let bytes = bytes(family.unwrap_or(LockFamily::Range));
        let lock = |fs: Arc<Fs>| async move {
            tokio::select! {
                locked = fs.lock(bytes, kind, pid, wait) => locked,
                () = waiting::interrupted(caller, Signals::Any) => {
                    Err(p2pfs::wire::errno::Errno::EINTR)
                }
            }
        };
        self.answer_empty(lock, reply);
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
        request: &Request,
        _ino: INodeNo,
        handle: FileHandle,
        data_only: bool,
        reply: ReplyEmpty,
    ) {
        self.by(request)
            .answer_empty(|fs| async move { fs.sync(HandleId(handle.0), data_only).await }, reply);
    }

    fn opendir(&self, request: &Request, ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        self.by(request).answer(
            move |fs| async move { fs.open_dir(ino.0).await },
            move |result| match result {
                Ok(handle) => {
                    let (handle, flags) = opened(handle);
                    reply.opened(handle, flags);
                }
                Err(errno) => reply.error(errno),
            },
        );
    }

    fn readdir(
        &self,
        request: &Request,
        _ino: INodeNo,
        handle: FileHandle,
        offset: u64,
        reply: ReplyDirectory,
    ) {
        self.by(request).answer(
            move |fs| async move { fs.list(HandleId(handle.0), offset).await },
            move |result| match result {
                Ok(portion) => listing::names(&portion, reply),
                Err(errno) => reply.error(errno),
            },
        );
    }

    fn readdirplus(
        &self,
        request: &Request,
        _ino: INodeNo,
        handle: FileHandle,
        offset: u64,
        reply: ReplyDirectoryPlus,
    ) {
        let presentation = self.presentation;
        let fs = Arc::clone(&self.fs);
        self.by(request).answer(
            move |fs| async move { fs.list(HandleId(handle.0), offset).await },
            move |result| match result {
                Ok(portion) => listing::entries(&fs, &portion, presentation, reply),
                Err(errno) => reply.error(errno),
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

    fn statfs(&self, request: &Request, _ino: INodeNo, reply: ReplyStatfs) {
        self.by(request).answer(
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
        request: &Request,
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
        self.by(request).answer_empty(
            |fs| async move { fs.setxattr(ino.0, attribute, value, flags).await },
            reply,
        );
    }

    fn getxattr(
        &self,
        request: &Request,
        ino: INodeNo,
        attribute: &OsStr,
        size: u32,
        reply: ReplyXattr,
    ) {
        // may be asked before every write: answered here and now
        if let Some(errno) = self.fs.local_xattr(ino.0, attribute.as_bytes()) {
            return reply.error(error(errno));
        }
        let attribute = attribute.as_bytes().to_vec();
        self.by(request).answer_xattr(
            |fs| async move { fs.getxattr(ino.0, attribute).await },
            size,
            reply,
        );
    }

    fn listxattr(&self, request: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        self.by(request).answer_xattr(|fs| async move { fs.listxattr(ino.0).await }, size, reply);
    }

    fn removexattr(&self, request: &Request, ino: INodeNo, attribute: &OsStr, reply: ReplyEmpty) {
        let attribute = attribute.as_bytes().to_vec();
        self.by(request)
            .answer_empty(|fs| async move { fs.removexattr(ino.0, attribute).await }, reply);
    }

    fn access(&self, _request: &Request, _ino: INodeNo, _mask: AccessFlags, reply: ReplyEmpty) {
        // the host decides, operation by operation
        reply.error(Errno::ENOSYS);
    }

    fn create(
        &self,
        request: &Request,
        parent: INodeNo,
        entry: &OsStr,
        mode: u32,
        umask: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        let entry = name(entry);
        let how = access(flags);
        let mode = NewMode::new(mode & 0o7777, umask).0;
        let presentation = self.presentation;
        self.by(request).answer(
            move |fs| async move {
                let (found, handle) = fs.create(parent.0, entry?, mode, how).await?;
                Ok((Referred(found), handle))
            },
            move |result| match result {
                Ok((Referred(found), handle)) => {
                    let attr = file_attr(&found, presentation);
                    let generation = Generation(found.node.generation);
                    let (handle, flags) = opened(handle);
                    reply.created(&found.keep, &attr, generation, handle, flags);
                }
                Err(errno) => reply.error(errno),
            },
        );
    }

    fn fallocate(
        &self,
        request: &Request,
        _ino: INodeNo,
        handle: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        let handle = HandleId(handle.0);
        let mode = mode.cast_unsigned();
        self.by(request).answer_empty(
            |fs| async move { fs.fallocate(handle, offset, length, mode).await },
            reply,
        );
    }

    fn lseek(
        &self,
        request: &Request,
        _ino: INodeNo,
        handle: FileHandle,
        offset: i64,
        whence: i32,
        reply: ReplyLseek,
    ) {
        let what = seek(whence);
        // before the beginning is as good as beyond the end
        let offset = u64::try_from(offset).unwrap_or(u64::MAX);
        self.by(request).answer(
            move |fs| async move { fs.seek(HandleId(handle.0), offset, what?).await },
            move |result| match result {
                Ok(found) => reply.offset(found.cast_signed()),
                Err(errno) => reply.error(errno),
            },
        );
    }

    fn copy_file_range(
        &self,
        request: &Request,
        _source_ino: INodeNo,
        source: FileHandle,
        source_offset: u64,
        _ino: INodeNo,
        handle: FileHandle,
        offset: u64,
        len: u64,
        _flags: CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        let (from, to) = ((HandleId(source.0), source_offset), (HandleId(handle.0), offset));
        // the answer has 32 bits
        let len = len.min(COPY_BYTES_MAX);
        self.by(request).answer(
            move |fs| async move { fs.copy_range(from, to, len).await },
            move |result| match result {
                Ok(copied) => reply.written(copied.min(COPY_BYTES_MAX) as u32),
                Err(errno) => reply.error(errno),
            },
        );
    }
}
