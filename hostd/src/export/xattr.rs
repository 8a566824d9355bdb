//! Extended attributes, POSIX ACLs among them.

use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use p2pfs::id::NodeId;
use p2pfs::limits::XATTR_BYTES_MAX;
use p2pfs::wire::call::XattrName;
use p2pfs::wire::errno::Errno;
use rustix::buffer::spare_capacity;
use rustix::fs::XattrFlags;

use super::{View, acting, beneath, errno, owned};

/// The longest name, bytes (`XATTR_NAME_MAX`).
const XATTR_NAME_BYTES_MAX: usize = 255;
/// "Numerical result out of range": what a name that is empty or too long gets.
const ERANGE: i32 = 34;
/// `listxattrat`, the same number on every machine.
const LISTXATTRAT: libc::c_long = 465;

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
        again: bool,
    ) -> Result<(), Errno> {
        let flags = XattrFlags::from_bits(flags.into()).ok_or(Errno::EINVAL)?;
        let fd = self.nodes().find(node)?;
        let path = beneath::proc_path(fd.as_fd());
        let name = c_name(name)?;
        let set = || rustix::fs::setxattr(&*path, &*name, value, flags);
        let done = if again { owned::despite_mode(&fd, set) } else { set() };
        done.map_err(errno)
    }

    pub(super) fn remove_xattr(
        &self,
        node: NodeId,
        name: &XattrName,
        again: bool,
    ) -> Result<(), Errno> {
        let fd = self.nodes().find(node)?;
        let path = beneath::proc_path(fd.as_fd());
        let name = c_name(name)?;
        let remove = || rustix::fs::removexattr(&*path, &*name);
        let done = if again { owned::despite_mode(&fd, remove) } else { remove() };
        done.map_err(errno)
    }
}

/// Whether a node has no attributes at all, also none that only root sees.
pub(super) fn is_without(fd: BorrowedFd<'_>) -> bool {
    let path = beneath::proc_path(fd);
    let size = acting::as_itself(|| rustix::fs::listxattr_query(path));
    matches!(size, Ok(0) | Err(rustix::io::Errno::OPNOTSUPP))
}

/// As [`is_without`], for the entry `name` of `dir`; `None` where the kernel has no call for that
/// (before 6.13).
#[expect(unsafe_code, reason = "rustix has no listxattrat")]
pub(super) fn is_without_at(dir: BorrowedFd<'_>, name: &CStr) -> Option<bool> {
    static MISSING: AtomicBool = AtomicBool::new(false);
    if MISSING.load(Ordering::Relaxed) {
        return None;
    }
    let list = || {
        // SAFETY: the name is a C string, and a buffer of no bytes is not written to: the call
        // tells how many it would take.
        let size = unsafe {
            libc::syscall(
                LISTXATTRAT,
                dir.as_raw_fd(),
                name.as_ptr(),
                libc::AT_SYMLINK_NOFOLLOW,
                std::ptr::null_mut::<libc::c_char>(),
                0_usize,
            )
        };
        (size, std::io::Error::last_os_error().raw_os_error())
    };
    match acting::as_itself(list) {
        (-1, Some(libc::EOPNOTSUPP)) => Some(true),
        // EPERM: a filter of system calls that does not know it
        (-1, Some(libc::ENOSYS | libc::EPERM)) => {
            MISSING.store(true, Ordering::Relaxed);
            None
        }
        (size, _) => Some(size == 0),
    }
}

fn c_name(name: &XattrName) -> Result<CString, Errno> {
    if name.0.len() > XATTR_NAME_BYTES_MAX {
        return Err(Errno::from_number(ERANGE));
    }
    CString::new(name.0.as_slice()).map_err(|_| Errno::EINVAL)
}
