//! A glance at the root when the mount begins: what is looked up in it first was asked for along
//! with the opening of the session, and costs no round trip of its own.

use std::sync::Arc;
use std::time::{Duration, Instant};

use p2pfs::id::NodeId;
use p2pfs::wire::call::{Access, Asked, Attr, DirEntry, Reply};
use p2pfs::wire::name::Name;

use super::inode::Inode;
use super::{Found, Fs};
use crate::lock::lock;

/// Entries that are asked for: what fits into a connection's first window with the rest.
const ENTRIES_MAX: u32 = 48;
/// How long they are an answer: as long as the kernel keeps one at least.
const FRESH: Duration = super::KEEP_MIN;

/// What was seen; each part is told once, so that whoever asks again gets what is there then.
#[derive(Debug)]
pub(super) struct Glance {
    root: Option<Attr>,
    entries: Vec<DirEntry>,
    /// The file system's tick when it was asked.
    asked: u64,
    at: Instant,
}

impl Glance {
    fn is_fresh(&self) -> bool {
        self.at.elapsed() < FRESH
    }

    fn take(&mut self, name: &Name) -> Option<DirEntry> {
        let place = self.entries.iter().position(|entry| entry.name == *name)?;
        Some(self.entries.swap_remove(place))
    }
}

impl Fs {
    /// Looks at the root. Not as anybody: where the host acts as who asks, it refuses, and each is
    /// answered for itself.
    pub(super) async fn glance(self: &Arc<Self>) {
        let (Ok(inode), Ok(handle)) = (self.inodes.get(NodeId::ROOT.ino), self.handles.number())
        else {
            return;
        };
        let asked = self.tick();
        let call = Asked::OpenDir { node: inode.node, handle, entries_max: ENTRIES_MAX };
        let Ok((Reply::OpenDir(attr, page), _)) = self.remote.call(call.into()).await else {
            return;
        };
        self.insert_handle(handle, inode, Access::Read);
        self.release(handle);
        let glance = Glance { root: Some(attr), entries: page.entries, asked, at: Instant::now() };
        *lock(&self.glance) = Some(glance);
    }

    /// The entry `name` of a directory, if it was seen; counts a reference of the kernel.
    pub(super) fn glanced(&self, directory: &Inode, name: &Name) -> Option<Found> {
        if directory.node != NodeId::ROOT || self.tells_callers() {
            return None;
        }
        let (entry, asked, age) = {
            let mut seen = lock(&self.glance);
            let glance = seen.as_mut()?;
            if !glance.is_fresh() || glance.asked < directory.names() {
                *seen = None;
                return None;
            }
            (glance.take(name)?, glance.asked, glance.at.elapsed())
        };
        let mut found = self.found(entry.entry, directory.node.ino, asked);
        found.keep = found.keep.saturating_sub(age);
        Some(found)
    }

    /// The root's own attributes, if they were seen.
    pub(super) fn glanced_root(&self, root: &Inode) -> Option<Found> {
        let (attr, asked) = {
            let mut seen = lock(&self.glance);
            let glance = seen.as_mut().filter(|glance| glance.is_fresh())?;
            (glance.root.take()?, glance.asked)
        };
        Some(self.seen(root, attr, asked)).filter(Found::is_settled)
    }
}
