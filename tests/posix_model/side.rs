//! One of the two directories: carries operations out, and tells what came of them.

use std::ffi::OsString;
use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, CWD, FallocateFlags, FileType, Mode, OFlags, RenameFlags, SeekFrom, Timespec,
    Timestamps, UTIME_OMIT, XattrFlags,
};
use rustix::io::{Errno, Result};

use super::operation::{How, Operation, Place, SLOTS, Slot};

/// The names; the long ones are the longest that there may be, and one byte more.
const NAMES: [&str; 9] = ["a", "b", "c", "d", "d/a", "d/b", "d/e", "d/e/a", "a/x"];
const XATTRS: [&str; 4] = ["user.one", "user.two", "trusted.three", "other.four"];
/// Times from before this second were set; later ones are the moment's.
const SET: i64 = 1_000_000;

/// A directory and its open files.
pub(super) struct Side {
    root: PathBuf,
    open: [Option<OwnedFd>; SLOTS],
    written: u8,
}

/// What an operation tells.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum Told {
    Nothing,
    Number(u64),
    Bytes(Vec<u8>),
    Names(Vec<(OsString, String)>),
    Stat(Stat),
}

/// What `stat` says that does not depend on the moment or the place.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Stat {
    mode: u32,
    links: u64,
    owner: (u32, u32),
    /// Of a directory it depends on what was there before.
    size: u64,
    modified: Option<(i64, i64)>,
}

/// A node of a tree.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Node {
    path: PathBuf,
    stat: Stat,
    /// A symlink's target, or a hash of a file's bytes.
    content: u64,
    xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

impl Side {
    /// A new directory.
    pub(super) fn new(root: PathBuf) -> Self {
        fs::create_dir(&root).unwrap();
        Self::at(root)
    }

    /// A directory that is there.
    pub(super) fn at(root: PathBuf) -> Self {
        Self { root, open: [const { None }; SLOTS], written: 0 }
    }

    fn path(&self, Place(place): Place) -> PathBuf {
        match NAMES.get(place) {
            Some(name) => self.root.join(name),
            None => self.root.join("n".repeat(255 + place - NAMES.len())),
        }
    }

    fn file(&self, slot: Slot) -> Result<&OwnedFd> {
        self.open[slot.0].as_ref().ok_or(Errno::BADF)
    }

    /// Bytes that tell where they are from.
    fn bytes(&mut self, len: usize) -> Vec<u8> {
        self.written = self.written.wrapping_add(1).max(1);
        (0..len).map(|at| self.written ^ (at / 7) as u8).collect()
    }

    pub(super) fn carry_out(&mut self, operation: &Operation) -> Result<Told> {
        match *operation {
            Operation::Open { slot, place, how, mode } => {
                self.open[slot.0] = None;
                let mode = Mode::from_raw_mode(mode);
                let file = rustix::fs::open(self.path(place), flags(how), mode)?;
                self.open[slot.0] = Some(file);
            }
            Operation::Close(slot) => self.open[slot.0] = None,
            Operation::Read { slot, offset, len } => {
                let mut data = vec![0; len];
                let read = rustix::io::pread(self.file(slot)?, &mut data, offset)?;
                data.truncate(read);
                return Ok(Told::Bytes(data));
            }
            Operation::ReadOn { slot, len } => {
                let mut data = vec![0; len];
                let read = rustix::io::read(self.file(slot)?, &mut data)?;
                data.truncate(read);
                return Ok(Told::Bytes(data));
            }
            Operation::Write { slot, offset, len } => {
                let data = self.bytes(len);
                let written = rustix::io::pwrite(self.file(slot)?, &data, offset)?;
                return Ok(Told::Number(written as u64));
            }
            Operation::WriteOn { slot, len } => {
                let data = self.bytes(len);
                let written = rustix::io::write(self.file(slot)?, &data)?;
                return Ok(Told::Number(written as u64));
            }
            Operation::Truncate { slot, size } => rustix::fs::ftruncate(self.file(slot)?, size)?,
            Operation::Allocate { slot, mode, offset, len } => {
                let mode = FallocateFlags::from_bits_retain(mode);
                rustix::fs::fallocate(self.file(slot)?, mode, offset, len)?;
            }
            Operation::Seek { slot, data, offset } => {
                let kind = FileType::from_raw_mode(rustix::fs::fstat(self.file(slot)?)?.st_mode);
                if kind == FileType::Directory {
                    // where a directory ends is each file system's own, and never asked of ours
                    return Ok(Told::Nothing);
                }
                let from = if data { SeekFrom::Data(offset) } else { SeekFrom::Hole(offset) };
                return rustix::fs::seek(self.file(slot)?, from).map(Told::Number);
            }
            Operation::Copy { from, mut from_offset, to, mut offset, len } => {
                let (from, to) = (self.file(from)?, self.file(to)?);
                let (source, target) = (Some(&mut from_offset), Some(&mut offset));
                let copied = rustix::fs::copy_file_range(from, source, to, target, len)?;
                return Ok(Told::Number(copied as u64));
            }
            Operation::Sync { slot, data_only: true } => rustix::fs::fdatasync(self.file(slot)?)?,
            Operation::Sync { slot, data_only: false } => rustix::fs::fsync(self.file(slot)?)?,
            Operation::StatOpen(slot) => {
                return Ok(Told::Stat(Stat::of(&rustix::fs::fstat(self.file(slot)?)?)));
            }
            _ => return self.change_names(operation),
        }
        Ok(Told::Nothing)
    }

    fn change_names(&self, operation: &Operation) -> Result<Told> {
        match *operation {
            Operation::Rename { from, to, flags } => {
                let flags = RenameFlags::from_bits_retain(flags);
                let (from, to) = (self.path(from), self.path(to));
                rustix::fs::renameat_with(CWD, from, CWD, to, flags)?;
            }
            Operation::Link { from, to } => rustix::fs::link(self.path(from), self.path(to))?,
            Operation::Unlink(place) => rustix::fs::unlink(self.path(place))?,
            Operation::Symlink { target: Place(target), place } => {
                let target = NAMES.get(target).copied().unwrap_or("nowhere");
                rustix::fs::symlink(target, self.path(place))?;
            }
            Operation::ReadLink(place) => {
                let target = rustix::fs::readlink(self.path(place), Vec::new())?;
                return Ok(Told::Bytes(target.into_bytes()));
            }
            Operation::MakeDir { place, mode } => {
                rustix::fs::mkdir(self.path(place), Mode::from_raw_mode(mode))?;
            }
            Operation::MakeFifo { place, mode } => {
                let mode = Mode::from_raw_mode(mode);
                rustix::fs::mknodat(CWD, self.path(place), FileType::Fifo, mode, 0)?;
            }
            Operation::RemoveDir(place) => rustix::fs::rmdir(self.path(place))?,
            Operation::List(place) => return list(&self.path(place)).map(Told::Names),
            Operation::Stat(place) => {
                return Ok(Told::Stat(Stat::of(&rustix::fs::lstat(self.path(place))?)));
            }
            _ => return self.change_attributes(operation),
        }
        Ok(Told::Nothing)
    }

    fn change_attributes(&self, operation: &Operation) -> Result<Told> {
        match *operation {
            Operation::TruncatePlace { place, size } => {
                let flags = OFlags::WRONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
                let file = rustix::fs::open(self.path(place), flags, Mode::empty())?;
                rustix::fs::ftruncate(file, size)?;
            }
            Operation::SetMode { place, mode } => {
                rustix::fs::chmod(self.path(place), Mode::from_raw_mode(mode))?;
            }
            Operation::SetTimes { place, seconds, nanos } => {
                let times = Timestamps {
                    last_access: Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
                    last_modification: Timespec { tv_sec: seconds, tv_nsec: nanos },
                };
                let flags = AtFlags::SYMLINK_NOFOLLOW;
                rustix::fs::utimensat(CWD, self.path(place), &times, flags)?;
            }
            Operation::SetXattr { place, name, len, flags } => {
                let flags = XattrFlags::from_bits_retain(flags);
                rustix::fs::lsetxattr(self.path(place), XATTRS[name], &vec![7; len], flags)?;
            }
            Operation::GetXattr { place, name } => {
                let mut value = vec![0; 1000];
                let len = rustix::fs::lgetxattr(self.path(place), XATTRS[name], &mut value)?;
                value.truncate(len);
                return Ok(Told::Bytes(value));
            }
            Operation::RemoveXattr { place, name } => {
                rustix::fs::lremovexattr(self.path(place), XATTRS[name])?;
            }
            Operation::ListXattrs(place) => {
                return Ok(Told::Bytes(xattr_names(&self.path(place))?.concat()));
            }
            _ => {}
        }
        Ok(Told::Nothing)
    }

    /// All that is there.
    pub(super) fn tree(&self) -> Vec<Node> {
        let mut nodes = Vec::new();
        self.walk(Path::new(""), &mut nodes);
        nodes
    }

    fn walk(&self, dir: &Path, nodes: &mut Vec<Node>) {
        for (name, kind) in list(&self.root.join(dir)).unwrap() {
            let path = dir.join(name);
            let full = self.root.join(&path);
            let stat = Stat::of(&rustix::fs::lstat(&full).unwrap());
            let content = match kind.as_str() {
                "link" => hash(rustix::fs::readlink(&full, Vec::new()).unwrap().to_bytes()),
                "file" => file_hash(&full),
                _ => 0,
            };
            let xattrs = xattr_names(&full).unwrap().into_iter().map(|name| {
                let mut value = vec![0; 1000];
                let len = rustix::fs::lgetxattr(&full, name.as_slice(), &mut value).unwrap();
                value.truncate(len);
                (name, value)
            });
            nodes.push(Node { path: path.clone(), stat, content, xattrs: xattrs.collect() });
            if kind == "dir" {
                self.walk(&path, nodes);
            }
        }
    }
}

impl Stat {
    fn of(stat: &rustix::fs::Stat) -> Self {
        let kind = FileType::from_raw_mode(stat.st_mode);
        let seconds = stat.st_mtime;
        Self {
            mode: stat.st_mode,
            links: stat.st_nlink,
            owner: (stat.st_uid, stat.st_gid),
            size: if kind == FileType::Directory { 0 } else { stat.st_size as u64 },
            // a FIFO's times are the client's own business, as over NFS
            modified: (seconds < SET && kind != FileType::Fifo)
                .then_some((seconds, stat.st_mtime_nsec as i64)),
        }
    }
}

fn flags(how: How) -> OFlags {
    let mut flags = OFlags::CLOEXEC | OFlags::NONBLOCK;
    flags |= match (how.read, how.write) {
        (true, true) => OFlags::RDWR,
        (false, true) => OFlags::WRONLY,
        (_, false) => OFlags::RDONLY,
    };
    flags.set(OFlags::CREATE, how.create);
    flags.set(OFlags::EXCL, how.exclusive && how.create);
    flags.set(OFlags::TRUNC, how.truncate && how.write);
    flags.set(OFlags::APPEND, how.append);
    flags.set(OFlags::SYNC, how.synchronous);
    flags.set(OFlags::NOFOLLOW, !how.follows);
    flags
}

fn list(dir: &Path) -> Result<Vec<(OsString, String)>> {
    let errno = |error: std::io::Error| Errno::from_io_error(&error).unwrap_or(Errno::IO);
    let mut names = Vec::new();
    for entry in fs::read_dir(dir).map_err(errno)? {
        let entry = entry.map_err(errno)?;
        let kind = entry.file_type().map_err(errno)?;
        let kind = match () {
            () if kind.is_dir() => "dir",
            () if kind.is_symlink() => "link",
            () if kind.is_fifo() => "fifo",
            () => "file",
        };
        names.push((entry.file_name(), kind.to_owned()));
    }
    names.sort();
    Ok(names)
}

fn xattr_names(path: &Path) -> Result<Vec<Vec<u8>>> {
    let mut names = vec![0; 10_000];
    let len = rustix::fs::llistxattr(path, &mut names)?;
    let names = names[..len].split_inclusive(|byte| *byte == 0);
    let mut names: Vec<_> = names.map(|name| name[..name.len() - 1].to_vec()).collect();
    names.sort();
    Ok(names)
}

/// Of the first and the last bytes, and the length: files here are up to a TiB long.
fn file_hash(path: &Path) -> u64 {
    use std::os::unix::fs::FileExt;

    let file = fs::File::open(path).unwrap();
    let len = file.metadata().unwrap().size();
    let mut data = vec![0; 400_000];
    let first = file.read_at(&mut data, 0).unwrap();
    let start = hash(&data[..first]);
    let last = file.read_at(&mut data, len.saturating_sub(200_000)).unwrap();
    start ^ hash(&data[..last]).rotate_left(1) ^ len
}

fn hash(bytes: &[u8]) -> u64 {
    use std::hash::{DefaultHasher, Hasher};

    let mut hasher = DefaultHasher::new();
    hasher.write(bytes);
    hasher.finish()
}
