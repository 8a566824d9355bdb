//! Changes of what files hold.

use std::io::IoSlice;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use p2pfs::id::{HandleId, NodeId};
use p2pfs::proto::redo::execute::Held;
use p2pfs::wire::call::{Access, Attr, Time};
use p2pfs::wire::errno::Errno;
use p2pfs::wire::log::{Mutation, NodeRef, Outcome};
use rustix::fs::FallocateFlags;
use rustix::io::{self, ReadWriteFlags};

use super::change::{node_id, stamp};
use super::{OpenFile, View, access_flags, acting, beneath, errno, meta, owned};

/// What one entry copies at most, bytes: an entry must end within the grace, and `copy_file_range`
/// may copy less than it was asked.
const COPY_BYTES_MAX: u64 = 1 << 30;
/// Where the kernel cannot copy: at once, and by one entry.
const BUFFER_BYTES: usize = 1 << 20;
const SLOW_COPY_BYTES_MAX: u64 = 64 << 20;

/// A file to read or write.
enum Data {
    /// The session has it open.
    Open(Arc<OpenFile>),
    /// Found by its identity: the handle went with a host that was killed, or there was none.
    Again(OwnedFd),
}

impl View {
    pub(super) fn change_data(
        &self,
        mutation: &Mutation,
        body: &[u8],
        at: Option<Time>,
        again: bool,
    ) -> Result<Outcome, Errno> {
        let write = |node: &NodeRef, handle: &Option<HandleId>| {
            self.data(node_id(*node)?, *handle, Access::Write, again)
        };
        match mutation {
            Mutation::Write { node, handle, offset } => {
                let file = write(node, handle)?;
                acting::writing(|| write_at(file.as_fd(), body, *offset))?;
                changed(&file, at).map(Outcome::Attr)
            }
            Mutation::Append { node, handle, .. } => {
                let file = write(node, handle)?;
                let offset = acting::writing(|| file.append(body))?;
                Ok(Outcome::Appended { offset, attr: changed(&file, at)? })
            }
            Mutation::Fallocate { node, handle, offset, len, mode } => {
                let file = write(node, handle)?;
                acting::writing(|| allocate(file.as_fd(), *offset, *len, *mode))?;
                changed(&file, at).map(Outcome::Attr)
            }
            Mutation::CopyRange {
                source,
                source_handle,
                source_offset,
                node,
                handle,
                offset,
                len,
            } => {
                let from = self.data(node_id(*source)?, *source_handle, Access::Read, again)?;
                let to = write(node, handle)?;
                let (from, to_at) = ((from.as_fd(), *source_offset), (to.as_fd(), *offset));
                let len = acting::writing(|| copy(from, to_at, *len))?;
                Ok(Outcome::Copied { len, attr: changed(&to, at)? })
            }
            _ => Err(Errno::EIO),
        }
    }

    /// How much of `data` the file holds at `offset`.
    pub(super) fn holds_data(&self, node: NodeId, offset: u64, data: &[u8]) -> Result<Held, Errno> {
        let file = self.data(node, None, Access::Read, true)?;
        let mut found = vec![0; data.len()];
        let mut filled = 0;
        while filled < found.len() {
            let from = offset.checked_add(filled as u64).ok_or(Errno::EFBIG)?;
            match io::pread(&file, &mut found[filled..], from) {
                Ok(0) => break,
                Ok(read) => filled += read,
                Err(io::Errno::INTR) => {}
                Err(error) => return Err(errno(error)),
            }
        }
        Ok(match found[..filled] == data[..filled] {
            true if filled == data.len() => Held::All,
            true => Held::Start,
            false => Held::Other,
        })
    }

    /// `again`: its rights were looked at before, as they were when a handle was opened.
    fn data(
        &self,
        node: NodeId,
        handle: Option<HandleId>,
        access: Access,
        again: bool,
    ) -> Result<Data, Errno> {
        if let Some(Ok(open)) = handle.map(|handle| self.handle(handle))
            && open.node == node
        {
            return Ok(Data::Open(open));
        }
        let path = self.nodes().find(node)?;
        // What is no regular file refuses, before opening it could wait
        let attr = meta::attr(path.as_fd()).map_err(errno)?;
        if !attr.is_file() {
            return Err(if attr.is_dir() { Errno::EISDIR } else { Errno::EINVAL });
        }
        let reopen = if again || handle.is_some() { owned::reopen } else { beneath::reopen };
        reopen(path.as_fd(), access_flags(access)).map(Data::Again).map_err(errno)
    }
}

impl Data {
    /// Writes behind the end, wherever processes of this machine move it meanwhile; tells where.
    fn append(&self, data: &[u8]) -> Result<u64, Errno> {
        if data.is_empty() {
            return meta::attr(self.as_fd()).map(|attr| attr.size).map_err(errno);
        }
        let _one_at_a_time = match self {
            Self::Open(open) => Some(super::lock(&open.position)),
            Self::Again(_) => None,
        };
        let mut begin = None;
        let mut left = data;
        loop {
            // At the file's position, which ends up behind what was written
            let slices = [IoSlice::new(left)];
            match io::pwritev2(self, &slices, u64::MAX, ReadWriteFlags::APPEND) {
                Ok(0) => return Err(Errno::EIO),
                Ok(written) => {
                    let end = rustix::fs::tell(self).map_err(errno)?;
                    left = &left[written..];
                    let begin = *begin.get_or_insert_with(|| end.saturating_sub(written as u64));
                    if left.is_empty() {
                        return Ok(begin);
                    }
                }
                Err(io::Errno::INTR) => {}
                Err(error) => return Err(errno(error)),
            }
        }
    }
}

impl AsFd for Data {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Open(open) => open.file.as_fd(),
            Self::Again(file) => file.as_fd(),
        }
    }
}

fn changed(file: &Data, at: Option<Time>) -> Result<Attr, Errno> {
    stamp(file.as_fd(), at);
    meta::attr(file.as_fd()).map_err(errno)
}

fn write_at(file: BorrowedFd<'_>, mut data: &[u8], offset: u64) -> Result<(), Errno> {
    let mut at = offset;
    while !data.is_empty() {
        match io::pwrite(file, data, at) {
            Ok(0) => return Err(Errno::EIO),
            Ok(written) => {
                data = &data[written..];
                at = at.checked_add(written as u64).ok_or(Errno::EFBIG)?;
            }
            Err(io::Errno::INTR) => {}
            Err(error) => return Err(errno(error)),
        }
    }
    Ok(())
}

fn allocate(file: BorrowedFd<'_>, offset: u64, len: u64, mode: u32) -> Result<(), Errno> {
    let flags = FallocateFlags::from_bits_retain(mode);
    loop {
        match rustix::fs::fallocate(file, flags, offset, len) {
            Err(io::Errno::INTR) => {}
            result => return result.map_err(errno),
        }
    }
}

/// Copies at most `len` bytes; tells how many.
fn copy(
    (from, mut source_offset): (BorrowedFd<'_>, u64),
    (to, mut offset): (BorrowedFd<'_>, u64),
    len: u64,
) -> Result<u64, Errno> {
    let len = len.min(COPY_BYTES_MAX);
    let at_once = usize::try_from(len).unwrap_or(usize::MAX);
    loop {
        match rustix::fs::copy_file_range(
            from,
            Some(&mut source_offset),
            to,
            Some(&mut offset),
            at_once,
        ) {
            Ok(copied) => return Ok(copied as u64),
            Err(io::Errno::INTR) => {}
            Err(io::Errno::XDEV | io::Errno::NOSYS | io::Errno::OPNOTSUPP) => break,
            Err(error) => return Err(errno(error)),
        }
    }
    let len = len.min(SLOW_COPY_BYTES_MAX);
    let mut buffer = vec![0; BUFFER_BYTES];
    let mut copied = 0;
    while copied < len {
        let want =
            usize::try_from(len - copied).map_or(BUFFER_BYTES, |left| left.min(BUFFER_BYTES));
        match io::pread(from, &mut buffer[..want], source_offset + copied) {
            Ok(0) => break,
            Ok(read) => {
                write_at(to, &buffer[..read], offset + copied)?;
                copied += read as u64;
            }
            Err(io::Errno::INTR) => {}
            Err(error) => return Err(errno(error)),
        }
    }
    Ok(copied)
}
