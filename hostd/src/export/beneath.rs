//! The system calls that find things: one name at a time, never out of the share.
//!
//! A name is resolved by `openat2` beneath an open directory, without following symlinks, without
//! magic links and without crossing into another mount. What is found is held by an `O_PATH`
//! descriptor, so no race can put something else in its place. Only listings look at entries
//! without holding them: they tell what is there, and nothing is done to it.

use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use p2pfs::wire::name::Name;
use rustix::fs::{AtFlags, CWD, Mode, OFlags, ResolveFlags};
use rustix::io;

use super::quiet;

/// Never out of the share.
const BENEATH: ResolveFlags =
    ResolveFlags::BENEATH.union(ResolveFlags::NO_MAGICLINKS).union(ResolveFlags::NO_XDEV);
/// `openat2` answers EAGAIN while somebody renames nearby.
const RACES_MAX: u32 = 16;

/// What names an inode of one file system for ever: `struct file_handle`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct FileHandle {
    kind: libc::c_int,
    bytes: Box<[u8]>,
}

/// `struct file_handle` with room for the largest.
#[repr(C)]
struct RawHandle {
    bytes: libc::c_uint,
    kind: libc::c_int,
    handle: [u8; MAX_HANDLE_SZ],
}

/// Where in a file system's handles the parts of an identity are, bytes.
struct Layout {
    number: usize,
    number_bytes: usize,
    generation: usize,
}

const MAX_HANDLE_SZ: usize = 128;
/// How often a lease of ours may be in the way of one opening.
const LEASES: u32 = 10;

/// Holds the entry `name` of `dir`; a symlink itself, not what it points to.
pub(super) fn hold(dir: BorrowedFd<'_>, name: &Name) -> io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    open_beneath(dir, name, flags, Mode::empty())
}

/// Opens or makes a regular file `name` in `dir`.
pub(super) fn create(
    dir: BorrowedFd<'_>,
    name: &Name,
    flags: OFlags,
    mode: Mode,
) -> io::Result<OwnedFd> {
    // Not blocking: where it opens what is there, that may be a FIFO
    let flags = flags | OFlags::CREATE | OFlags::NONBLOCK | OFlags::NOCTTY;
    let open = || open_beneath(dir, name, flags | OFlags::NOFOLLOW | OFlags::CLOEXEC, mode);
    for _ in 0..LEASES {
        match open() {
            // what is there is being looked at
            Err(io::Errno::AGAIN) => quiet::wait(),
            opened => return opened,
        }
    }
    open()
}

/// Opens a directory that a descriptor holds once more, to read it.
pub(super) fn reopen_dir(fd: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    match rustix::fs::openat(fd, c".", flags, Mode::empty()) {
        // This way is shorter, but takes the right to go through it, too
        Err(io::Errno::ACCESS) => reopen(fd, OFlags::RDONLY | OFlags::DIRECTORY),
        opened => opened,
    }
}

/// Opens what a descriptor holds once more, with other rights.
pub(super) fn reopen(fd: BorrowedFd<'_>, flags: OFlags) -> io::Result<OwnedFd> {
    let flags = flags | OFlags::CLOEXEC | OFlags::NOCTTY;
    rustix::fs::openat(CWD, proc_path(fd), flags, Mode::empty())
}

/// A path to what a descriptor holds, for calls that take no descriptor. They follow this link and
/// land on the held inode itself, even on a symlink.
pub(super) fn proc_path(fd: BorrowedFd<'_>) -> CString {
    CString::new(format!("/proc/self/fd/{}", fd.as_raw_fd())).expect("digits hold no NUL")
}

/// A name as system calls take it.
pub(super) fn c_name(name: &Name) -> io::Result<CString> {
    CString::new(name.as_bytes()).map_err(|_| io::Errno::INVAL)
}

/// As [`hold`], from what the kernel remembers: `EAGAIN` if it would have to ask the disk.
pub(super) fn hold_cached(dir: BorrowedFd<'_>, name: &Name) -> io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let resolve = BENEATH | ResolveFlags::CACHED;
    rustix::fs::openat2(dir, &*c_name(name)?, flags, Mode::empty(), resolve)
}

fn open_beneath(
    dir: BorrowedFd<'_>,
    name: &Name,
    flags: OFlags,
    mode: Mode,
) -> io::Result<OwnedFd> {
    let name = c_name(name)?;
    for _ in 1..RACES_MAX {
        match rustix::fs::openat2(dir, &*name, flags, mode, BENEATH) {
            Err(io::Errno::AGAIN | io::Errno::INTR) => {}
            result => return result,
        }
    }
    rustix::fs::openat2(dir, &*name, flags, mode, BENEATH)
}

impl FileHandle {
    /// The handle of what `fd` holds; `None` where the file system has none.
    pub(super) fn of(fd: BorrowedFd<'_>) -> Option<Self> {
        Self::at(fd, c"")
    }

    /// The handle of the entry `name` of `dir`, as [`Self::of`].
    #[expect(unsafe_code, reason = "rustix has no name_to_handle_at")]
    pub(super) fn at(dir: BorrowedFd<'_>, name: &CStr) -> Option<Self> {
        let mut raw =
            RawHandle { bytes: MAX_HANDLE_SZ as libc::c_uint, kind: 0, handle: [0; MAX_HANDLE_SZ] };
        let mut mount = 0;
        // SAFETY: the path is a C string, and `raw` has the layout of `struct file_handle` followed
        // by the `bytes` bytes that it announces.
        let result = unsafe {
            libc::name_to_handle_at(
                dir.as_raw_fd(),
                name.as_ptr(),
                (&raw mut raw).cast(),
                &raw mut mount,
                AtFlags::EMPTY_PATH.bits().cast_signed(),
            )
        };
        let bytes = raw.handle.get(..raw.bytes as usize)?;
        (result == 0).then(|| Self { kind: raw.kind, bytes: bytes.into() })
    }

    /// Holds what the handle names; `root` is any open file of the same file system. Takes
    /// `CAP_DAC_READ_SEARCH`; ESTALE if it is gone.
    #[expect(unsafe_code, reason = "rustix has no open_by_handle_at")]
    pub(super) fn hold(&self, root: BorrowedFd<'_>) -> io::Result<OwnedFd> {
        use std::os::fd::FromRawFd;

        let mut raw = RawHandle {
            bytes: self.bytes.len() as libc::c_uint,
            kind: self.kind,
            handle: [0; MAX_HANDLE_SZ],
        };
        raw.handle[..self.bytes.len()].copy_from_slice(&self.bytes);
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        // SAFETY: `raw` has the layout of `struct file_handle` followed by its bytes, which are at
        // most MAX_HANDLE_SZ since `of` read them.
        let fd = unsafe {
            libc::open_by_handle_at(
                root.as_fd().as_raw_fd(),
                (&raw mut raw).cast(),
                flags.bits().cast_signed(),
            )
        };
        if fd < 0 {
            let error = std::io::Error::last_os_error();
            return Err(io::Errno::from_io_error(&error).unwrap_or(io::Errno::STALE));
        }
        // SAFETY: the call has just made this descriptor, and nobody else knows it.
        Ok(unsafe { OwnedFd::from_raw_fd(fd) })
    }

    /// The generation in it: what an inode's number lacks to make its handle again.
    pub(super) fn generation(&self) -> Option<u32> {
        let layout = self.layout()?;
        let bytes = self.bytes[layout.generation..][..4].try_into().ok()?;
        Some(u32::from_ne_bytes(bytes))
    }

    /// Whether it is the handle of an inode with this number; not if that cannot be told.
    pub(super) fn is_of(&self, ino: u64) -> bool {
        let generation = self.generation();
        generation.and_then(|generation| self.of_other(ino, generation)).as_ref() == Some(self)
    }

    /// The handle of another inode of the same file system.
    pub(super) fn of_other(&self, ino: u64, generation: u32) -> Option<Self> {
        let Layout { number, number_bytes, generation: at } = self.layout()?;
        if number_bytes == 4 && u32::try_from(ino).is_err() {
            return None;
        }
        let mut bytes = self.bytes.clone();
        let low = if cfg!(target_endian = "big") { 8 - number_bytes } else { 0 };
        bytes[number..][..number_bytes].copy_from_slice(&ino.to_ne_bytes()[low..][..number_bytes]);
        bytes[at..][..4].copy_from_slice(&generation.to_ne_bytes());
        Some(Self { kind: self.kind, bytes })
    }

    fn layout(&self) -> Option<Layout> {
        let layout = |number, number_bytes, generation| Layout { number, number_bytes, generation };
        match (self.kind, self.bytes.len()) {
            // FILEID_INO32_GEN: ext4, f2fs, xfs with small numbers
            (0x01, 8) => Some(layout(0, 4, 4)),
            // tmpfs
            (0x01, 12) if cfg!(target_endian = "little") => Some(layout(4, 8, 0)),
            // xfs
            (0x81, 12) => Some(layout(0, 8, 8)),
            // btrfs, with the subvolume between
            (0x4d, 20) => Some(layout(0, 8, 16)),
            _ => None,
        }
    }

    /// The bytes that make up the identity.
    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes
    }
}
