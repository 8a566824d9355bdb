//! Calls that change nothing.

use std::os::fd::AsFd;
use std::sync::Arc;

use bytes::Bytes;
use p2pfs::id::{HandleId, NodeId};
use p2pfs::limits::BODY_BYTES_MAX;
use p2pfs::wire::call::{Access, Attr, Entry, ReadVersion, Seek, StatFs};
use p2pfs::wire::errno::Errno;
use p2pfs::wire::name::{Name, Target};
use rustix::buffer::spare_capacity;
use rustix::fs::SeekFrom;
use rustix::io;
use rustix::time::{ClockId, clock_gettime};

use super::{OpenFile, View, access_flags, beneath, errno, meta, quiet, xattr};

/// "No such device or address": what opening a socket says.
const ENXIO: i32 = 6;
/// How long a change of a file may take from the setting of its time to the last byte, and how far
/// the clock may be off, seconds.
const RECENT: i64 = 2;
/// How much older the time of a change may be than the change, where this kernel sets it: two ticks
/// of the slowest clock, nanoseconds.
const GRAIN: i128 = 20_000_000;

impl View {
    pub(super) fn lookup(&self, parent: NodeId, name: &Name) -> Result<Entry, Errno> {
        let dir = self.dir(parent, name)?;
        let fd = beneath::hold(dir.as_fd(), name).map_err(errno)?;
        self.enter(&Arc::new(fd), parent, name)
    }

    pub(super) fn attr(&self, node: NodeId, handle: Option<HandleId>) -> Result<Attr, Errno> {
        let fd = self.holder(node, handle)?;
        let attr = meta::attr(fd.as_fd()).map_err(errno)?;
        let mut attr = self.shown(node, attr);
        if xattr::is_without(fd.as_fd()) {
            attr.mode |= Attr::NO_XATTRS;
        }
        Ok(attr)
    }

    pub(super) fn read_link(&self, node: NodeId) -> Result<Target, Errno> {
        let fd = self.nodes().find(node)?;
        let target = rustix::fs::readlinkat(fd, c"", Vec::new()).map_err(|error| {
            // An empty path on what is no symlink says ENOENT
            errno(if error == io::Errno::NOENT { io::Errno::INVAL } else { error })
        })?;
        Target::new(target.into_bytes())
    }

    pub(super) fn open(
        &self,
        node: NodeId,
        handle: HandleId,
        access: Access,
    ) -> Result<Attr, Errno> {
        let path = self.nodes().find(node)?;
        let attr = meta::attr(path.as_fd()).map_err(errno)?;
        // Devices, FIFOs and sockets are the client's own business, and opening one may wait
        if !attr.is_file() && !attr.is_dir() {
            return Err(Errno::from_number(ENXIO));
        }
        let attr = self.openable(node, attr)?;
        if matches!(self.handle(handle), Ok(open) if open.node == node) {
            return Ok(attr);
        }
        let file = match attr.is_dir() && access == Access::Read {
            true => beneath::reopen_dir(path.as_fd()),
            false => beneath::reopen(path.as_fd(), access_flags(access)),
        };
        let file = file.map_err(errno)?;
        self.admit(handle, OpenFile::new(node, path, file, access))?;
        Ok(attr)
    }

    pub(super) fn read(&self, handle: HandleId, offset: u64, len: u32) -> Result<Bytes, Errno> {
        let len = len as usize;
        if len > BODY_BYTES_MAX {
            return Err(Errno::EINVAL);
        }
        let open = self.handle(handle)?;
        let mut data = Vec::with_capacity(len);
        while data.len() < len {
            let at = offset.checked_add(data.len() as u64).ok_or(Errno::EINVAL)?;
            match io::pread(&open.file, spare_capacity(&mut data), at) {
                Ok(0) => break,
                Ok(_) | Err(io::Errno::INTR) => {}
                Err(error) => return Err(errno(error)),
            }
        }
        // The allocator may have given more room than was asked
        data.truncate(len);
        // A short file must not keep a long buffer alive while it is on its way
        data.shrink_to_fit();
        Ok(data.into())
    }

    /// As [`Self::read`]; the version is looked at afterwards, so that data which was changed
    /// before the reading ended has a recent one.
    pub(super) fn read_version(
        &self,
        handle: HandleId,
        offset: u64,
        len: u32,
    ) -> Result<(ReadVersion, Bytes), Errno> {
        let begun = now();
        let data = self.read(handle, offset, len)?;
        let open = self.handle(handle)?;
        let found = version_after(&open, begun)?;
        if found.recent {
            let again = || self.read(handle, offset, len);
            return Ok(self.read_quietly(&open, again).unwrap_or((found, data)));
        }
        Ok((found, data))
    }

    /// Reads a file that has changed a moment ago once more, when nobody can be changing it: if its
    /// time is older than that, the data is of its version. `None`: that cannot be told.
    pub(super) fn read_quietly(
        &self,
        open: &OpenFile,
        read: impl FnOnce() -> Result<Bytes, Errno>,
    ) -> Option<(ReadVersion, Bytes)> {
        let nanos = |seconds: i64, nanos: i128| i128::from(seconds) * 1_000_000_000 + nanos;
        let quiet = clock_gettime(ClockId::RealtimeCoarse);
        // of other file systems this kernel does not know who else writes
        if !self.share.quick || !quiet::nobody_writes(open.file.as_fd()) {
            return None;
        }
        let data = read().ok()?;
        let version = meta::attr(open.file.as_fd()).ok()?.data_version();
        let changed = nanos(version.ctime.seconds, version.ctime.nanos.into());
        let recent = changed + GRAIN >= nanos(quiet.tv_sec, quiet.tv_nsec.into());
        Some((ReadVersion { version, recent }, data))
    }

    /// Where data or a hole begins: `ENXIO` behind the last one.
    pub(super) fn seek(&self, handle: HandleId, offset: u64, what: Seek) -> Result<u64, Errno> {
        // Beyond what the system call takes is beyond any file
        if i64::try_from(offset).is_err() {
            return Err(Errno::from_number(ENXIO));
        }
        let open = self.handle(handle)?;
        // Its position moves
        let _one_at_a_time = super::lock(&open.position);
        let from = match what {
            Seek::Data => SeekFrom::Data(offset),
            Seek::Hole => SeekFrom::Hole(offset),
        };
        rustix::fs::seek(&open.file, from).map_err(errno)
    }

    pub(super) fn space(&self) -> Result<StatFs, Errno> {
        meta::space(self.nodes().root().as_fd()).map_err(errno)
    }

    pub(super) fn sync(&self, handle: HandleId, data_only: bool) -> Result<(), Errno> {
        let open = self.handle(handle)?;
        let result = if data_only {
            rustix::fs::fdatasync(&open.file)
        } else {
            rustix::fs::fsync(&open.file)
        };
        result.map_err(|error| match error {
            // The kernel says so once, and forgets what it could not write
            io::Errno::IO | io::Errno::NOSPC | io::Errno::DQUOT => self.disk_failed(error),
            other => errno(other),
        })
    }
}

/// Seconds since 1970.
pub(super) fn now() -> i64 {
    clock_gettime(ClockId::RealtimeCoarse).tv_sec
}

/// The version of a file whose reading was begun at `begun` and has ended.
pub(super) fn version_after(open: &OpenFile, begun: i64) -> Result<ReadVersion, Errno> {
    let version = meta::attr(open.file.as_fd()).map_err(errno)?.data_version();
    let changed = version.ctime.seconds;
    let recent = changed >= begun - RECENT && changed <= now() + RECENT;
    Ok(ReadVersion { version, recent })
}
