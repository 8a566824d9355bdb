//! A mount in the place of one whose process has died, without a moment at which the directory
//! below both is bare: what is written to it then would be in nobody's share.
//!
//! The new mount is put beneath the dead one, which is then taken away.

use std::ffi::OsStr;
use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;

use rustix::fs::CWD;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, UnmountFlags, fsconfig_create,
    fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, move_mount,
};

use super::{DEVICE, MountId, MountSettings, Mounted, SUBTYPE};

/// Mounts beneath `dead`, and takes that away; the descriptor is where the kernel's requests come
/// from. Needs root, and Linux 6.8; nothing has changed if it fails.
pub(super) fn replace(
    dead: &Mounted,
    source: &OsStr,
    settings: &MountSettings,
) -> io::Result<OwnedFd> {
    let is_on_top = |mountpoint: &Path| {
        let device = dead.id.device.clone();
        dead.id.unique.is_some() && MountId::of(mountpoint, device) == dead.id
    };
    if !is_on_top(&dead.mountpoint) {
        return Err(io::Error::other("the mount cannot be told from others"));
    }
    let device = OpenOptions::new().read(true).write(true).open(DEVICE)?;
    let detached = make(device.as_fd(), source, settings)?;
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_BENEATH;
    move_mount(detached, "", CWD, &dead.mountpoint, flags)?;
    // somebody else may have been as quick
    if is_on_top(&dead.mountpoint) {
        let flags = UnmountFlags::DETACH | UnmountFlags::NOFOLLOW;
        rustix::mount::unmount(&dead.mountpoint, flags)?;
    }
    Ok(device.into())
}

/// A mount that is nowhere yet.
fn make(device: impl AsRawFd, source: &OsStr, settings: &MountSettings) -> io::Result<OwnedFd> {
    let new = fsopen("fuse", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_set_string(&new, "source", source)?;
    fsconfig_set_string(&new, "subtype", SUBTYPE)?;
    fsconfig_set_string(&new, "fd", device.as_raw_fd().to_string())?;
    fsconfig_set_string(&new, "rootmode", "40000")?;
    fsconfig_set_string(&new, "user_id", rustix::process::getuid().as_raw().to_string())?;
    fsconfig_set_string(&new, "group_id", rustix::process::getgid().as_raw().to_string())?;
    if settings.allow_other {
        fsconfig_set_flag(&new, "allow_other")?;
        fsconfig_set_flag(&new, "default_permissions")?;
    }
    if settings.read_only {
        fsconfig_set_flag(&new, "ro")?;
    }
    fsconfig_create(&new)?;
    let mut attributes = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV;
    attributes.set(MountAttrFlags::MOUNT_ATTR_RDONLY, settings.read_only);
    attributes.set(MountAttrFlags::MOUNT_ATTR_NOEXEC, settings.no_exec);
    Ok(fsmount(&new, FsMountFlags::FSMOUNT_CLOEXEC, attributes)?)
}
