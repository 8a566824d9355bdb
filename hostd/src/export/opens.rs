//! What sessions have open: it outlives this process, and its nodes outlive their names.
//!
//! A node that somebody has open and that loses its last name is kept under one in `.p2pfs/held`,
//! which nobody sees, until the last handle is closed. A handle of a run that was killed is opened
//! again by the node's identity when it is used next.

use std::collections::HashMap;
use std::ffi::CString;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use p2pfs::id::{HandleId, NodeId, SessionId};
use p2pfs::proto::redo::opens::{Opens, Output};
use p2pfs::wire::call::{Access, Attr};
use p2pfs::wire::errno::Errno;
use p2pfs::wire::log::{Mutation, Outcome};
use rustix::fs::{AtFlags, CWD, Dir, Mode, OFlags};
use rustix::io;

use super::change::node_id;
use super::redo::Occupant;
use super::{OURS, OpenFile, View, access_flags, acting, beneath, errno, meta, owned};
use crate::record::{OpensRecord, Records};

const HELD: &str = "held";

/// One for each share.
#[derive(Debug, Default)]
pub(super) struct OpenTable {
    table: Mutex<Table>,
    recovered: OnceLock<()>,
    /// Said once: nothing can be kept on this disk.
    unkept: OnceLock<()>,
}

#[derive(Debug, Default)]
struct Table {
    opens: Opens,
    records: HashMap<SessionId, OpensRecord>,
    /// Where nodes are kept, as soon as there is one.
    held: Option<Arc<OwnedFd>>,
}

impl super::Share {
    /// Takes over what sessions had open when the run before was ended, and removes what nobody has
    /// open any more. Once for each share; before anybody uses it.
    pub fn recover_opens(&self, records: &Records) {
        self.opens.recovered.get_or_init(|| {
            let found = records.all_opens(self.nodes.disk());
            let mut table = self.opens.lock();
            let mut expected = Vec::new();
            for found in found {
                let session = found.header.session;
                for (handle, (node, access)) in found.opens {
                    table.opens.open(session, handle, node, access);
                }
                // also what is closed before anything is opened must be recorded
                if let Ok(record) = records.opens_of(session, self.nodes.disk()) {
                    table.records.insert(session, record);
                    if found.locks {
                        expected.push(session);
                    }
                }
            }
            self.expect_locks(expected);
            if let Ok(held) = open_held(self.nodes.root().as_fd()) {
                let held = table.held.insert(Arc::new(held));
                for node in list_held(&Arc::clone(held)) {
                    table.opens.handle_held(node);
                }
            }
            table.tidy();
        });
    }

    /// Closes what sessions have open that nobody serves, and whose record is gone: it was too old,
    /// or made room for another.
    pub fn forget_unrecorded(&self, records: &Records) {
        self.opens.forget_unrecorded(records);
    }
}

impl OpenTable {
    fn forget_unrecorded(&self, records: &Records) {
        let mut table = self.lock();
        let gone = |session: &SessionId| !records.is_live(*session) && !records.has_opens(*session);
        let gone: Vec<SessionId> = table.records.keys().copied().filter(gone).collect();
        for session in gone {
            tracing::info!(?session, "what a client had open that stays away is closed");
            table.records.remove(&session);
            table.opens.forget(session);
        }
        table.tidy();
    }

    pub(super) fn find(&self, session: SessionId, handle: HandleId) -> Option<(NodeId, Access)> {
        self.lock().opens.find(session, handle)
    }

    /// Records an open, before it is told.
    fn open(
        &self,
        session: SessionId,
        (handle, node, access): (HandleId, NodeId, Access),
        record: impl FnOnce() -> std::io::Result<Option<OpensRecord>>,
    ) -> std::io::Result<()> {
        let mut table = self.lock();
        if !table.records.contains_key(&session)
            && let Some(record) = record()?
        {
            table.records.insert(session, record);
        }
        if let Some(record) = table.records.get_mut(&session) {
            record.opened(handle, node, access)?;
        }
        table.opens.open(session, handle, node, access);
        Ok(())
    }

    pub(super) fn close(&self, session: SessionId, handle: HandleId) {
        let mut table = self.lock();
        let Table { opens, records, .. } = &mut *table;
        if opens.find(session, handle).is_none() {
            return;
        }
        opens.close(session, handle);
        if let Some(record) = records.get_mut(&session) {
            record.closed(handle, || opens.of(session).collect());
        }
        table.tidy();
    }

    /// Whether the session has locks, for its record.
    pub(super) fn note_locks(&self, session: SessionId, any: bool) {
        if let Some(record) = self.lock().records.get_mut(&session) {
            record.note_locks(any);
        }
    }

    pub(super) fn forget(&self, session: SessionId) {
        let mut table = self.lock();
        table.records.remove(&session);
        table.opens.forget(session);
        table.tidy();
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        // Every change is whole before anything can panic
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Table {
    /// Removes what nobody has open any more.
    fn tidy(&mut self) {
        while let Some(Output::Remove(node)) = self.opens.poll_output() {
            let Some(held) = &self.held else { continue };
            match rustix::fs::unlinkat(held, held_name(node), AtFlags::empty()) {
                Ok(()) | Err(io::Errno::NOENT) => {}
                Err(error) => tracing::warn!(%error, "a file that nobody has open is still there"),
            }
        }
    }
}

impl View {
    /// An open file of the session: also one of a run of this host that was killed, which is opened
    /// again by its identity. Its rights were checked when it was opened first.
    pub(super) fn handle(&self, handle: HandleId) -> Result<Arc<OpenFile>, Errno> {
        if let Some(open) = self.handles().get(&handle) {
            return Ok(Arc::clone(open));
        }
        let (node, access) = self.share.opens.find(self.session, handle).ok_or(Errno::EBADF)?;
        let (path, file) = acting::as_itself(|| {
            let path = self.nodes().find(node)?;
            let mut flags = access_flags(access);
            if meta::attr(path.as_fd()).map_err(errno)?.is_dir() {
                flags |= OFlags::DIRECTORY;
            }
            let file = owned::reopen(path.as_fd(), flags).map_err(errno)?;
            Ok::<_, Errno>((path, file))
        })?;
        let open = Arc::new(OpenFile::new(node, path, file, access));
        // Who was quicker has the one whose position is moved
        Ok(Arc::clone(self.handles().entry(handle).or_insert(open)))
    }

    /// Records an open that is about to be told.
    pub(super) fn note_open(
        &self,
        handle: HandleId,
        node: NodeId,
        access: Access,
    ) -> Result<(), Errno> {
        let disk = self.nodes().disk();
        let mut begun = false;
        let record = || match &self.records {
            Some(records) => {
                begun = true;
                records.opens_of(self.session, disk).map(Some)
            }
            None => Ok(None),
        };
        let opened = acting::as_itself(|| {
            self.share.opens.open(self.session, (handle, node, access), record)
        });
        if begun && let Some(records) = &self.records {
            // another one may have made room for it
            acting::as_itself(|| self.share.opens.forget_unrecorded(records));
        }
        opened.map_err(|error| {
            tracing::warn!(%error, "an open could not be recorded");
            Errno::from(error)
        })
    }

    /// What is about to lose its last name stays if somebody has it open. Gives what
    /// [`Self::uncover`] wants, afterwards.
    pub(super) fn cover(&self, occupant: &Occupant) -> Option<NodeId> {
        let node = occupant.node;
        let attr = meta::attr(occupant.fd.as_fd()).ok()?;
        let table = self.share.opens.lock();
        let names = attr.nlink.saturating_sub(u32::from(table.opens.is_held(node)));
        if attr.is_dir() || names != 1 || !table.opens.is_open(node) {
            return None;
        }
        drop(table);
        match acting::as_itself(|| self.link_held(occupant.fd.as_fd(), node)) {
            Ok(()) => Some(node),
            Err(error) => {
                self.share.opens.unkept.get_or_init(|| {
                    tracing::warn!(
                        %error,
                        "files that are removed while they are open are gone when hostd restarts"
                    );
                });
                None
            }
        }
    }

    /// The name that was to go is gone, or not.
    pub(super) fn uncover(&self, covered: Option<NodeId>, gone: bool) {
        let Some(node) = covered else { return };
        acting::as_itself(|| {
            let mut table = self.share.opens.lock();
            if gone {
                table.opens.handle_held(node);
            } else if let Some(held) = &table.held
                && !table.opens.is_held(node)
            {
                let _ = rustix::fs::unlinkat(held, held_name(node), AtFlags::empty());
            }
            table.tidy();
        });
    }

    fn link_held(&self, fd: BorrowedFd<'_>, node: NodeId) -> io::Result<()> {
        let held = {
            let mut table = self.share.opens.lock();
            // A node that is there only because of a record needs the record
            for record in table.records.values() {
                if let Err(error) = record.sync() {
                    tracing::warn!(%error, "what is open could not be put on the disk");
                }
            }
            match &table.held {
                Some(held) => Arc::clone(held),
                None => {
                    let made = make_held(self.nodes().root().as_fd())?;
                    Arc::clone(table.held.insert(Arc::new(made)))
                }
            }
        };
        let from = beneath::proc_path(fd);
        match rustix::fs::linkat(CWD, from, &held, held_name(node), AtFlags::SYMLINK_FOLLOW) {
            // By a run that was killed before the name went
            Err(io::Errno::EXIST) => Ok(()),
            result => result,
        }
    }

    /// Attributes as anybody may see them: the name under cover does not count.
    pub(super) fn shown(&self, node: NodeId, mut attr: Attr) -> Attr {
        if attr.nlink > 0 && !attr.is_dir() && self.share.opens.lock().opens.is_held(node) {
            attr.nlink -= 1;
        }
        attr
    }

    /// As [`Self::shown`], for a node that is to be opened. One without a name can only be opened
    /// once more; by a name, somebody else has taken it away meanwhile: `ESTALE` makes the client's
    /// kernel look the name up again.
    pub(super) fn openable(&self, node: NodeId, attr: Attr) -> Result<Attr, Errno> {
        let attr = self.shown(node, attr);
        let is_open = || {
            let table = self.share.opens.lock();
            table.opens.of(self.session).any(|(_, open, _)| open == node)
        };
        if attr.nlink == 0 && attr.is_file() && !is_open() {
            return Err(Errno::ESTALE);
        }
        Ok(attr)
    }

    /// As [`Self::shown`], in what a change tells.
    pub(super) fn shown_in(&self, mutation: &Mutation, outcome: Outcome) -> Outcome {
        let node = match mutation {
            Mutation::SetAttr { node, .. }
            | Mutation::Write { node, .. }
            | Mutation::Append { node, .. }
            | Mutation::Fallocate { node, .. }
            | Mutation::CopyRange { node, .. } => node_id(*node),
            _ => return outcome,
        };
        let Ok(node) = node else { return outcome };
        match outcome {
            Outcome::Attr(attr) => Outcome::Attr(self.shown(node, attr)),
            Outcome::Appended { offset, attr } => {
                Outcome::Appended { offset, attr: self.shown(node, attr) }
            }
            Outcome::Copied { len, attr } => Outcome::Copied { len, attr: self.shown(node, attr) },
            other => other,
        }
    }

    /// The session is over: nobody comes back.
    pub(super) fn end_opens(&self) {
        let mut handles = self.handles();
        handles.clear();
        drop(handles);
        self.share.opens.forget(self.session);
        if let Some(records) = &self.records {
            records.forget_opens(self.session);
        }
    }
}

fn held_name(node: NodeId) -> CString {
    let name = format!("{:x}-{:x}", node.ino, node.generation);
    CString::new(name).expect("digits hold no NUL")
}

fn parse_held(name: &str) -> Option<NodeId> {
    let (ino, generation) = name.split_once('-')?;
    let number = |digits| u64::from_str_radix(digits, 16).ok();
    Some(NodeId { ino: number(ino)?, generation: number(generation)? })
}

fn open_held(root: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let ours = rustix::fs::openat(root, OURS, flags, Mode::empty())?;
    rustix::fs::openat(ours, HELD, flags, Mode::empty())
}

fn make_held(root: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let make = |dir: BorrowedFd<'_>, name: &[u8]| match rustix::fs::mkdirat(dir, name, Mode::RWXU) {
        Err(io::Errno::EXIST) => Ok(()),
        made => made,
    };
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    make(root, OURS)?;
    let ours = rustix::fs::openat(root, OURS, flags, Mode::empty())?;
    make(ours.as_fd(), HELD.as_bytes())?;
    rustix::fs::openat(ours, HELD, flags, Mode::empty())
}

fn list_held(held: &OwnedFd) -> Vec<NodeId> {
    let listed = Dir::read_from(held).inspect_err(|error| {
        tracing::warn!(%error, "files that were open cannot be listed");
    });
    let entries = listed.into_iter().flatten().flatten();
    entries.filter_map(|entry| parse_held(entry.file_name().to_str().ok()?)).collect()
}
