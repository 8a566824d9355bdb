//! Between fuser's values and ours.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fuser::{FileAttr, FileType, INodeNo, TimeOrNow};
use p2pfs::wire::call::{Access, Seek, Time};
use p2pfs::wire::errno::Errno;
use p2pfs::wire::log::SetTime;
use p2pfs::wire::name::Name;

use crate::fs::{Found, OpenMode, Until, WriteMode};

/// `uid=`, `gid=`, `umask=`: how owners and modes are shown, whatever they are on the host.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Presentation {
    /// All files belong to this user.
    pub uid: Option<u32>,
    /// All files belong to this group.
    pub gid: Option<u32>,
    /// Permission bits that are not shown.
    pub umask: Option<u32>,
}

impl Presentation {
    /// Giving a file to the user that it is shown to belong to changes nothing on the host.
    pub(super) fn uid_to_host(self, uid: Option<u32>) -> Option<u32> {
        uid.filter(|_| self.uid.is_none() || self.uid != uid)
    }

    /// As [`Self::uid_to_host`], for the group.
    pub(super) fn gid_to_host(self, gid: Option<u32>) -> Option<u32> {
        gid.filter(|_| self.gid.is_none() || self.gid != gid)
    }
}

pub(super) fn error(errno: Errno) -> fuser::Errno {
    fuser::Errno::from_i32(errno.number())
}

pub(super) fn name(name: &OsStr) -> Result<Name, Errno> {
    Name::new(name.as_bytes())
}

pub(super) fn access(flags: i32) -> OpenMode {
    OpenMode {
        access: match flags & libc::O_ACCMODE {
            libc::O_WRONLY => Access::Write,
            libc::O_RDWR => Access::ReadWrite,
            _ => Access::Read,
        },
        append: flags & libc::O_APPEND != 0,
        exclusive: flags & libc::O_EXCL != 0,
        truncate: flags & libc::O_TRUNC != 0,
    }
}

/// `cached`: pages that the kernel wrote back, for whoever changed them through a mapping.
pub(super) fn write_mode(flags: i32, cached: bool) -> WriteMode {
    let set = |flag| flags & flag == flag;
    let until = if set(libc::O_SYNC) {
        Until::Stable
    } else if set(libc::O_DSYNC) {
        Until::DataStable
    } else if set(libc::O_DIRECT) {
        Until::Applied
    } else {
        Until::Accepted
    };
    WriteMode { append: set(libc::O_APPEND) && !cached, until }
}

/// `SEEK_DATA` or `SEEK_HOLE`; everything else the kernel does by itself.
pub(super) fn seek(whence: i32) -> Result<Seek, Errno> {
    match whence {
        libc::SEEK_DATA => Ok(Seek::Data),
        libc::SEEK_HOLE => Ok(Seek::Hole),
        _ => Err(Errno::EINVAL),
    }
}

pub(super) fn kind(mode: u32) -> FileType {
    match mode & libc::S_IFMT {
        libc::S_IFDIR => FileType::Directory,
        libc::S_IFLNK => FileType::Symlink,
        libc::S_IFIFO => FileType::NamedPipe,
        libc::S_IFSOCK => FileType::Socket,
        libc::S_IFCHR => FileType::CharDevice,
        libc::S_IFBLK => FileType::BlockDevice,
        _ => FileType::RegularFile,
    }
}

pub(super) fn file_attr(found: &Found, presentation: Presentation) -> FileAttr {
    let attr = &found.attr;
    let shown = !presentation.umask.unwrap_or(0) & 0o7777;
    FileAttr {
        ino: INodeNo(found.node.ino),
        size: attr.size,
        blocks: attr.blocks,
        atime: system_time(attr.atime),
        mtime: system_time(attr.mtime),
        ctime: system_time(attr.ctime),
        crtime: system_time(attr.btime),
        kind: kind(attr.mode),
        perm: (attr.mode & shown) as u16,
        nlink: attr.nlink,
        uid: presentation.uid.unwrap_or(attr.uid),
        gid: presentation.gid.unwrap_or(attr.gid),
        // FUSE carries 32 bits: 12 of the major number, 20 of the minor
        rdev: attr.rdev as u32,
        blksize: attr.blksize,
        flags: 0,
    }
}

/// `.` and `..` in a listing.
pub(super) fn directory(ino: u64) -> FileAttr {
    FileAttr {
        ino: INodeNo(ino),
        size: 0,
        blocks: 0,
        atime: UNIX_EPOCH,
        mtime: UNIX_EPOCH,
        ctime: UNIX_EPOCH,
        crtime: UNIX_EPOCH,
        kind: FileType::Directory,
        perm: 0o700,
        nlink: 1,
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: 4096,
        flags: 0,
    }
}

fn system_time(time: Time) -> SystemTime {
    let nanos = Duration::from_nanos(time.nanos.into());
    let seconds = Duration::from_secs(time.seconds.unsigned_abs());
    let whole = if time.seconds >= 0 {
        UNIX_EPOCH.checked_add(seconds)
    } else {
        UNIX_EPOCH.checked_sub(seconds)
    };
    whole.and_then(|whole| whole.checked_add(nanos)).unwrap_or(UNIX_EPOCH)
}

pub(super) fn set_time(time: TimeOrNow) -> SetTime {
    match time {
        TimeOrNow::Now => SetTime::Now,
        TimeOrNow::SpecificTime(time) => SetTime::At(given_time(time)),
    }
}

/// A time as fuser 0.18 gives it: before 1970 it takes the nanoseconds away where they are to be
/// added.
fn given_time(time: SystemTime) -> Time {
    match time.duration_since(UNIX_EPOCH) {
        Ok(since) => Time { seconds: since.as_secs().cast_signed(), nanos: since.subsec_nanos() },
        Err(before) => {
            let before = before.duration();
            Time {
                seconds: 0_i64.saturating_sub_unsigned(before.as_secs()),
                nanos: before.subsec_nanos(),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_before_1970_keeps_its_nanoseconds() {
        let wanted = Time { seconds: -3, nanos: 250_000_000 };
        // what fuser makes of tv_sec -3, tv_nsec 250,000,000
        let mangled = UNIX_EPOCH - Duration::new(3, 250_000_000);
        assert_eq!(given_time(mangled), wanted);
        let shown = UNIX_EPOCH - Duration::new(2, 750_000_000);
        assert_eq!(system_time(wanted), shown);
    }

    #[test]
    fn only_a_change_of_the_shown_owner_reaches_the_host() {
        let shown = Presentation { uid: Some(1000), ..Presentation::default() };
        assert_eq!(shown.uid_to_host(Some(1000)), None);
        assert_eq!(shown.uid_to_host(Some(5)), Some(5));
        assert_eq!(shown.gid_to_host(Some(1000)), Some(1000));
        assert_eq!(Presentation::default().uid_to_host(None), None);
    }
}
