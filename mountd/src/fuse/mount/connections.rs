//! The kernel's list of FUSE connections, through which one is aborted (fusectl).

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{Access, Mode, OFlags};
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsmount, fsopen};

/// Where systemd mounts it.
const PLACE: &str = "/sys/fs/fuse/connections";

/// Aborts the connection of the device with this minor number. Where nobody has mounted the list it
/// is opened without being mounted anywhere, which needs root.
pub(super) fn abort(minor: &str) -> io::Result<()> {
    let file = Path::new(minor).join("abort");
    match fs::write(Path::new(PLACE).join(&file), "1") {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let flags = OFlags::WRONLY | OFlags::CLOEXEC;
            let opened = rustix::fs::openat(unmounted()?, &file, flags, Mode::empty())?;
            File::from(opened).write_all(b"1")
        }
        written => written,
    }
}

/// Whether [`abort`] is possible for who is not root.
pub(super) fn may_abort(minor: &str) -> bool {
    rustix::fs::access(Path::new(PLACE).join(minor).join("abort"), Access::WRITE_OK).is_ok()
}

fn unmounted() -> io::Result<OwnedFd> {
    let list = fsopen("fusectl", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_create(&list)?;
    Ok(fsmount(&list, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())?)
}
