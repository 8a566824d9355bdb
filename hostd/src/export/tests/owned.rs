//! What is done again to files that their own mode protects by now.

use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::Path;

use bytes::Bytes;
use p2pfs::id::{HandleId, Seq};
use p2pfs::net::serve::Export;
use p2pfs::proto::redo::execute::How;
use p2pfs::wire::call::{Access, XattrName};
use p2pfs::wire::errno::Errno;
use p2pfs::wire::log::{AttrChange, Change, Mutation, NodeRef, Opening, Outcome, Refused};
use rustix::fs::Uid;
use rustix::process::geteuid;
use rustix::thread::set_thread_res_uid;

use super::calls::{call, made, name, release};
use super::{ROOT, lacks_root};
use crate::export::{Share, View};

const OWNER: u32 = 4711;
const AGAIN: How = How::Again { told: None };

#[test]
fn a_host_of_root_writes_an_owners_read_only_file_again() {
    if lacks_root() {
        return;
    }
    each_change(&owned_dir(OWNER));
}

#[test]
fn a_host_of_an_ordinary_user_writes_a_read_only_file_again() {
    if !geteuid().is_root() {
        return each_change(&owned_dir(geteuid().as_raw()));
    }
    let dir = owned_dir(OWNER);
    let user = || {
        // For good: the thread ends with the test
        set_thread_res_uid(None, Uid::from_raw(OWNER), None).unwrap();
        each_change(&dir);
    };
    std::thread::scope(|scope| scope.spawn(user).join().unwrap());
}

#[test]
fn nobody_else_writes_what_its_mode_protects() {
    if lacks_root() {
        return;
    }
    let dir = owned_dir(OWNER);
    let view = Share::open(dir.path()).unwrap().view();
    let node = made(&view, create()).node.into();
    call(&view, release(1)).unwrap();
    chown(dir.path().join("object"), Some(OWNER + 1), None).unwrap();
    for mutation in [write(node), truncate(node, None)] {
        let refused = carry_out(&view, mutation, &AGAIN).unwrap_err();
        assert_eq!(refused, Refused::by_system(Errno::EACCES));
    }
}

/// As git, tar and rsync make files that nobody is to write.
fn each_change(dir: &tempfile::TempDir) {
    let file = dir.path().join("object");
    let view = Share::open(dir.path()).unwrap().view();
    let node = made(&view, create()).node.into();
    carry_out(&view, write(node), &How::First).unwrap();
    call(&view, release(1)).unwrap();
    let mode = |path: &Path| fs::metadata(path).unwrap().mode() & 0o7777;

    // a program that opens it now is told no
    for mutation in [truncate(node, None), set_xattr(node)] {
        let refused = carry_out(&view, mutation, &How::First).unwrap_err();
        assert_eq!(refused, Refused::by_system(Errno::EACCES));
    }
    let closed = Some(HandleId(1));
    for mutation in [truncate(node, None), truncate(node, closed), write(node), set_xattr(node)] {
        let again = carry_out(&view, mutation.clone(), &AGAIN);
        assert!(again.is_ok(), "{mutation:?}: {again:?}");
        assert_eq!(mode(&file), 0o444);
    }
    // the first time, but behind a loss of the handle
    carry_out(&view, write(node), &How::First).unwrap();
    // not even to be read
    fs::set_permissions(&file, Permissions::from_mode(0o0)).unwrap();
    let append = Mutation::Append { node, handle: closed, size: 0 };
    let appended = carry_out(&view, append, &AGAIN);
    assert!(matches!(appended, Ok(Outcome::Appended { offset: 0, .. })), "{appended:?}");
    assert_eq!(mode(&file), 0);
    fs::set_permissions(&file, Permissions::from_mode(0o400)).unwrap();
    assert_eq!(fs::read(&file).unwrap(), b"data");
}

fn owned_dir(owner: u32) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    chown(dir.path(), Some(owner), None).unwrap();
    dir
}

fn create() -> Mutation {
    Mutation::Create {
        parent: ROOT,
        name: name("object"),
        mode: 0o444,
        exclusive: true,
        premade: None,
        open: Some(Opening { handle: HandleId(1), access: Access::Write }),
    }
}

fn write(node: NodeRef) -> Mutation {
    Mutation::Write { node, handle: Some(HandleId(1)), offset: 0 }
}

fn truncate(node: NodeRef, handle: Option<HandleId>) -> Mutation {
    let change = AttrChange { size: Some(0), ..AttrChange::default() };
    Mutation::SetAttr { node, handle, change }
}

fn set_xattr(node: NodeRef) -> Mutation {
    Mutation::SetXattr { node, name: XattrName(b"user.word".to_vec()), flags: 0 }
}

fn carry_out(view: &View, mutation: Mutation, how: &How) -> Result<Outcome, Refused> {
    view.apply(
        view.epoch(),
        Seq(1),
        &Change::new(mutation),
        &Bytes::from_static(b"data"),
        how,
        false,
    )
}
