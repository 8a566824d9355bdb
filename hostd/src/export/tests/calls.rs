//! Calls as tests write them.

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use p2pfs::id::{HandleId, NodeId, Seq};
use p2pfs::net::serve::Export;
use p2pfs::proto::redo::execute::How;
use p2pfs::wire::call::{Access, Attr, Call, DirEntry, DirPage, Entry, Reply};
use p2pfs::wire::errno::Errno;
use p2pfs::wire::log::{AttrChange, Change, Mutation, Occupant, Opening, Outcome, RenameMode};
use p2pfs::wire::name::Name;

use crate::export::{Share, View};

/// With file handles, where this process may open them, and without.
pub(super) fn each_way(test: impl Fn(&Path, &View)) {
    rustix::process::umask(rustix::fs::Mode::empty());
    for handles in [true, false] {
        let dir = tempfile::tempdir().unwrap();
        let share: Arc<Share> = Share::open_with(dir.path(), handles).unwrap();
        test(dir.path(), &share.view());
    }
}

pub(super) fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

pub(super) fn call(view: &View, call: Call) -> Result<Reply, Errno> {
    view.call(call).map(|(reply, _)| reply)
}

pub(super) fn apply(view: &View, mutation: Mutation) -> Result<Outcome, Errno> {
    apply_with(view, mutation, b"")
}

pub(super) fn apply_with(view: &View, mutation: Mutation, body: &[u8]) -> Result<Outcome, Errno> {
    let body = Bytes::copy_from_slice(body);
    let result =
        view.apply(view.epoch(), Seq(1), &Change::new(mutation), &body, &How::First, false);
    result.map_err(|refused| refused.errno)
}

pub(super) fn made(view: &View, mutation: Mutation) -> Entry {
    match apply(view, mutation).unwrap() {
        Outcome::Entry(entry) => entry,
        other => panic!("{other:?}"),
    }
}

pub(super) fn lookup(view: &View, parent: NodeId, text: &str) -> Result<Entry, Errno> {
    let name = name(text);
    match call(view, Call::Lookup { parent, name })? {
        Reply::Entry(entry) => Ok(entry),
        other => panic!("{other:?}"),
    }
}

pub(super) fn attr(view: &View, node: NodeId) -> Result<Attr, Errno> {
    match call(view, Call::GetAttr { node, handle: None })? {
        Reply::Attr(attr) => Ok(attr),
        other => panic!("{other:?}"),
    }
}

pub(super) fn set_attr(view: &View, node: NodeId, change: AttrChange) -> Result<Attr, Errno> {
    let handle = None;
    let node = node.into();
    match apply(view, Mutation::SetAttr { node, handle, change })? {
        Outcome::Attr(attr) => Ok(attr),
        other => panic!("{other:?}"),
    }
}

pub(super) fn open(view: &View, node: NodeId, handle: u64, access: Access) -> Result<Reply, Errno> {
    let handle = HandleId(handle);
    call(view, Call::Open { node, handle, access })
}

pub(super) fn create(view: &View, parent: NodeId, text: &str, handle: u64) -> Result<Entry, Errno> {
    let create = Mutation::Create {
        parent: parent.into(),
        name: name(text),
        mode: 0o644,
        exclusive: false,
        premade: None,
        open: Some(Opening { handle: HandleId(handle), access: Access::ReadWrite }),
    };
    match apply(view, create)? {
        Outcome::Entry(entry) => Ok(entry),
        other => panic!("{other:?}"),
    }
}

pub(super) fn read(view: &View, handle: u64, offset: u64, len: u32) -> Result<Bytes, Errno> {
    let handle = HandleId(handle);
    let (_, body) = view.call(Call::Read { handle, offset, len })?;
    Ok(body)
}

pub(super) fn write(view: &View, handle: u64, offset: u64, data: &[u8]) -> Result<Attr, Errno> {
    let handle = HandleId(handle);
    let node = view.handle(handle)?.node.into();
    match apply_with(view, Mutation::Write { node, handle: Some(handle), offset }, data)? {
        Outcome::Attr(attr) => Ok(attr),
        other => panic!("{other:?}"),
    }
}

pub(super) fn release(handle: u64) -> Call {
    Call::Release { handle: HandleId(handle), upto: Seq::ZERO }
}

pub(super) fn rename(
    view: &View,
    (parent, from): (NodeId, &str),
    (new_parent, to): (NodeId, &str),
    mode: RenameMode,
) -> Result<Outcome, Errno> {
    let rename = Mutation::Rename {
        parent: parent.into(),
        name: name(from),
        occupant: Occupant::Any,
        new_parent: new_parent.into(),
        new_name: name(to),
        new_occupant: Occupant::Any,
        mode,
    };
    apply(view, rename)
}

pub(super) fn page(view: &View, node: NodeId, cookie: u64, entries_max: u32) -> DirPage {
    let handle = HandleId(1);
    let read = Call::ReadDir { node, handle, cookie, entries_max };
    match call(view, read).unwrap() {
        Reply::Dir(page) => page,
        other => panic!("{other:?}"),
    }
}

pub(super) fn list(view: &View, node: NodeId, entries_max: u32) -> Vec<DirEntry> {
    open(view, node, 1, Access::Read).unwrap();
    let (mut cookie, mut entries) = (0, Vec::new());
    loop {
        let page = page(view, node, cookie, entries_max);
        cookie = page.entries.last().map_or(cookie, |entry| entry.cookie);
        entries.extend(page.entries);
        if page.end {
            call(view, release(1)).unwrap();
            return entries;
        }
    }
}
