//! Directory pages.

use std::os::fd::{AsFd, OwnedFd};

use p2pfs::id::{HandleId, NodeId};
use p2pfs::limits::{DIR_PAGE_ENTRIES_MAX, HEADER_BYTES_MAX, NAME_BYTES_MAX};
use p2pfs::wire::call::{DirEntry, DirPage};
use p2pfs::wire::errno::Errno;
use p2pfs::wire::name::Name;
use rustix::fs::{RawDir, SeekFrom};
use rustix::io;

use super::{OURS, View, errno};

/// What `getdents` gets; some hundred names.
const BUFFER_BYTES: usize = 32 << 10;
/// An entry on the wire without its name, bytes, rounded up.
const ENTRY_BYTES: usize = 192;
/// What a page may take of its header.
const PAGE_BYTES_MAX: usize = HEADER_BYTES_MAX - 1024;

impl View {
    /// A page from `cookie` on. Cookies are the file system's own (`d_off`), so that entries which
    /// come or go meanwhile neither repeat nor hide others.
    pub(super) fn read_dir(
        &self,
        node: NodeId,
        handle: HandleId,
        cookie: u64,
        entries_max: u32,
    ) -> Result<DirPage, Errno> {
        let open = self.handle(handle)?;
        if open.node != node {
            return Err(Errno::EBADF);
        }
        let mut from = cookie;
        loop {
            let listed = {
                let _one_at_a_time = super::lock(&open.position);
                list(&open.file, node, from, entries_max).map_err(errno)?
            };
            let mut entries = Vec::with_capacity(listed.names.len());
            for (name, cookie) in listed.names {
                from = cookie;
                // What fails has gone since, or another file system is mounted on it
                if let Ok(entry) = self.tell_at(open.path.as_fd(), node, &name) {
                    entries.push(DirEntry { name, cookie, entry });
                }
            }
            // An empty page would leave the reader without a cookie to go on from
            if listed.end || !entries.is_empty() {
                return Ok(DirPage { entries, end: listed.end });
            }
        }
    }
}

struct Listed {
    /// Names, each with the cookie behind it.
    names: Vec<(Name, u64)>,
    end: bool,
}

fn list(file: &OwnedFd, node: NodeId, from: u64, entries_max: u32) -> io::Result<Listed> {
    let entries_max = (entries_max as usize).clamp(1, DIR_PAGE_ENTRIES_MAX);
    rustix::fs::seek(file, SeekFrom::Start(from))?;
    let mut buffer = Vec::with_capacity(BUFFER_BYTES);
    let mut raw = RawDir::new(file, buffer.spare_capacity_mut());
    let mut names = Vec::new();
    let mut bytes = 0;
    while let Some(entry) = raw.next() {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if node == NodeId::ROOT && name == OURS {
            continue;
        }
        // Not `.` and `..`: a name cannot be called so
        let Ok(name) = Name::new(name) else {
            continue;
        };
        bytes += ENTRY_BYTES + name.as_bytes().len();
        names.push((name, entry.next_entry_cookie()));
        if names.len() == entries_max || bytes + ENTRY_BYTES + NAME_BYTES_MAX > PAGE_BYTES_MAX {
            return Ok(Listed { names, end: false });
        }
    }
    Ok(Listed { names, end: true })
}
