//! What the host's file system says of a node, and who the node is.

use std::ffi::CStr;
use std::os::fd::BorrowedFd;

use p2pfs::id::NodeId;
use p2pfs::wire::call::{Attr, StatFs, Time};
use rustix::fs::{AtFlags, Statx, StatxAttributes, StatxFlags, StatxTimestamp};
use rustix::io;

use super::beneath::FileHandle;

/// Where a real inode 1 goes, since the root of a share is 1.
const REMAPPED_ONE: u64 = u64::MAX - 1;

/// Attributes, fresh from the disk.
pub(super) fn attr(fd: BorrowedFd<'_>) -> io::Result<Attr> {
    Ok(attr_of(&stat(fd)?))
}

/// `statx` of what a descriptor holds.
pub(super) fn stat(fd: BorrowedFd<'_>) -> io::Result<Statx> {
    let mask = StatxFlags::BASIC_STATS | StatxFlags::BTIME;
    rustix::fs::statx(fd, c"", AtFlags::EMPTY_PATH, mask)
}

/// `statx` of the entry `name` of `dir`; `None` if another file system is mounted on it, or if this
/// kernel cannot tell (before 5.8).
pub(super) fn stat_at(dir: BorrowedFd<'_>, name: &CStr) -> io::Result<Option<Statx>> {
    let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT;
    let stat = rustix::fs::statx(dir, name, flags, StatxFlags::BASIC_STATS | StatxFlags::BTIME)?;
    let tells = stat.stx_attributes_mask.contains(StatxAttributes::MOUNT_ROOT);
    let is_root = stat.stx_attributes.contains(StatxAttributes::MOUNT_ROOT);
    Ok((tells && !is_root).then_some(stat))
}

/// The wire's form of `statx`.
pub(super) fn attr_of(stat: &Statx) -> Attr {
    let birth = StatxFlags::BTIME.bits() & stat.stx_mask != 0;
    Attr {
        size: stat.stx_size,
        blocks: stat.stx_blocks,
        atime: time(stat.stx_atime),
        mtime: time(stat.stx_mtime),
        ctime: time(stat.stx_ctime),
        btime: if birth { time(stat.stx_btime) } else { Time::default() },
        mode: u32::from(stat.stx_mode),
        nlink: stat.stx_nlink,
        uid: stat.stx_uid,
        gid: stat.stx_gid,
        rdev: rustix::fs::makedev(stat.stx_rdev_major, stat.stx_rdev_minor),
        blksize: stat.stx_blksize,
    }
}

/// Who a node is: file system, handle where there is one, and birth. A number that is used again
/// has another handle (ext4, xfs, btrfs keep a generation in it) and another birth.
pub(super) fn identity(fsid: u64, stat: &Statx, handle: Option<&FileHandle>) -> NodeId {
    let mut hash = Fnv::new();
    hash.write(&fsid.to_le_bytes());
    hash.write(handle.map_or(&[], FileHandle::bytes));
    if StatxFlags::BTIME.bits() & stat.stx_mask != 0 {
        hash.write(&stat.stx_btime.tv_sec.to_le_bytes());
        hash.write(&stat.stx_btime.tv_nsec.to_le_bytes());
    }
    let generation = match handle.and_then(FileHandle::generation) {
        // A host that was restarted finds it again by this half
        Some(generation) => (hash.0 ^ hash.0 >> 32) << 32 | u64::from(generation),
        None => hash.0,
    };
    let ino = if stat.stx_ino == NodeId::ROOT.ino { REMAPPED_ONE } else { stat.stx_ino };
    NodeId { ino, generation }
}

/// The handle of a node that nobody remembers, if `id` is one; `root` is a handle of the same file
/// system.
pub(super) fn handle_of(id: NodeId, root: &FileHandle) -> Option<FileHandle> {
    let ino = if id.ino == REMAPPED_ONE { NodeId::ROOT.ino } else { id.ino };
    // The lower half
    root.of_other(ino, id.generation as u32)
}

/// The kernel's number of the disk since it was plugged in: one that was pulled out takes along
/// what had not reached it. 0 where there is no disk or the kernel does not count (before 5.15).
pub(super) fn disk_sequence(stat: &Statx) -> u64 {
    let device = format!("/sys/dev/block/{}:{}", stat.stx_dev_major, stat.stx_dev_minor);
    // A partition's disk is the directory above
    ["diskseq", "../diskseq"]
        .iter()
        .find_map(|file| std::fs::read_to_string(format!("{device}/{file}")).ok())
        .and_then(|text| text.trim().parse().ok())
        .unwrap_or_default()
}

/// Space and limits of the file system.
pub(super) fn space(fd: BorrowedFd<'_>) -> io::Result<StatFs> {
    let space = rustix::fs::fstatvfs(fd)?;
    let narrow = |number: u64| u32::try_from(number).unwrap_or(u32::MAX);
    Ok(StatFs {
        blocks: space.f_blocks,
        bfree: space.f_bfree,
        bavail: space.f_bavail,
        files: space.f_files,
        ffree: space.f_ffree,
        bsize: narrow(space.f_bsize),
        frsize: narrow(space.f_frsize),
        namelen: narrow(space.f_namemax),
    })
}

fn time(time: StatxTimestamp) -> Time {
    Time { seconds: time.tv_sec, nanos: time.tv_nsec }
}

/// FNV-1a: the same in every build, since clients keep identities over a host's restart. Nobody
/// chooses what goes in, so it need not withstand an attacker.
struct Fnv(u64);

impl Fnv {
    fn new() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
    }
}
