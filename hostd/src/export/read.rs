//! Calls that change nothing.

use std::os::fd::AsFd;
use std::sync::Arc;

use bytes::Bytes;
use p2pfs::id::{HandleId, NodeId};
use p2pfs::limits::BODY_BYTES_MAX;
use p2pfs::wire::call::{Access, Attr, Entry, StatFs};
use p2pfs::wire::errno::Errno;
use p2pfs::wire::name::{Name, Target};
use rustix::buffer::spare_capacity;
use rustix::fs::OFlags;
use rustix::io;

use super::{OpenFile, View, access_flags, beneath, errno, meta};

/// "No such device or address": what opening a socket says.
const ENXIO: i32 = 6;

impl View {
    pub(super) fn lookup(&self, parent: NodeId, name: &Name) -> Result<Entry, Errno> {
        let dir = self.dir(parent, name)?;
        let fd = beneath::hold(dir.as_fd(), name).map_err(errno)?;
        self.enter(&Arc::new(fd), parent, name)
    }

    pub(super) fn attr(&self, node: NodeId, handle: Option<HandleId>) -> Result<Attr, Errno> {
        let fd = self.holder(node, handle)?;
        let attr = meta::attr(fd.as_fd()).map_err(errno)?;
        Ok(self.shown(node, attr))
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
        if matches!(self.handle(handle), Ok(open) if open.node == node) {
            return Ok(attr);
        }
        let mut flags = access_flags(access);
        if attr.is_dir() {
            flags |= OFlags::DIRECTORY;
        }
        let file = beneath::reopen(path.as_fd(), flags).map_err(errno)?;
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
