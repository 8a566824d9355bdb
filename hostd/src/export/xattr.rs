//! Extended attributes, POSIX ACLs among them.

use std::ffi::CString;
use std::os::fd::{AsFd, BorrowedFd};

use bytes::Bytes;
use p2pfs::id::NodeId;
use p2pfs::limits::XATTR_BYTES_MAX;
use p2pfs::wire::call::XattrName;
use p2pfs::wire::errno::Errno;
use rustix::buffer::spare_capacity;
use rustix::fs::XattrFlags;

use super::{View, acting, beneath, errno};

/// The longest name, bytes (`XATTR_NAME_MAX`).
const XATTR_NAME_BYTES_MAX: usize = 255;
/// "Numerical result out of range": what a name that is empty or too long gets.
const ERANGE: i32 = 34;

impl View {
    /// A value, or with an empty name the list of names.
    pub(super) fn read_xattr(&self, node: NodeId, name: &XattrName) -> Result<Bytes, Errno> {
        let fd = self.nodes().find(node)?;
        let path = beneath::proc_path(fd.as_fd());
        let mut value = Vec::with_capacity(XATTR_BYTES_MAX);
        let result = if name.0.is_empty() {
            rustix::fs::listxattr(path, spare_capacity(&mut value))
        } else {
            rustix::fs::getxattr(path, c_name(name)?, spare_capacity(&mut value))
        };
        result.map_err(errno)?;
        Ok(Bytes::copy_from_slice(&value))
    }

    pub(super) fn set_xattr(
        &self,
        node: NodeId,
        name: &XattrName,
        flags: u8,
        value: &[u8],
    ) -> Result<(), Errno> {
        let flags = XattrFlags::from_bits(flags.into()).ok_or(Errno::EINVAL)?;
        let fd = self.nodes().find(node)?;
        let path = beneath::proc_path(fd.as_fd());
        rustix::fs::setxattr(path, c_name(name)?, value, flags).map_err(errno)
    }

    pub(super) fn remove_xattr(&self, node: NodeId, name: &XattrName) -> Result<(), Errno> {
        let fd = self.nodes().find(node)?;
        let path = beneath::proc_path(fd.as_fd());
        rustix::fs::removexattr(path, c_name(name)?).map_err(errno)
    }
}

/// Whether a node has no attributes at all, also none that only root sees.
pub(super) fn is_without(fd: BorrowedFd<'_>) -> bool {
    let path = beneath::proc_path(fd);
    let size = acting::as_itself(|| rustix::fs::listxattr_query(path));
    matches!(size, Ok(0) | Err(rustix::io::Errno::OPNOTSUPP))
}

fn c_name(name: &XattrName) -> Result<CString, Errno> {
    if name.0.len() > XATTR_NAME_BYTES_MAX {
        return Err(Errno::from_number(ERANGE));
    }
    CString::new(name.0.as_slice()).map_err(|_| Errno::EINVAL)
}
