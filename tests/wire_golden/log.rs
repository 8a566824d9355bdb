//! Entries of the redo log and their acknowledgements.

use p2pfs::id::{Epoch, LeaseId, NodeId, Seq};
use p2pfs::wire::call::{Access, Entry, Time, XattrName};
use p2pfs::wire::errno::Errno;
use p2pfs::wire::log::{
    AttrChange, Caller, Change, LogAck, LogEntry, Mutation, NewMode, NodeRef, Occupant, Opening,
    Outcome, Promise, Reason, Refused, RenameMode, Sent, SetTime,
};
use p2pfs::wire::name::{Name, Target};

use super::{ATTR, HANDLE, NODE, UPTO, golden};

const FILE: NodeRef = NodeRef::Node(NODE);
const DIR: NodeRef = NodeRef::Node(NodeId::ROOT);

fn name(name: &str) -> Name {
    Name::new(name).unwrap()
}

#[test]
fn changes_of_names_have_their_bytes() {
    let (parent, mode, rdev) = (DIR, 0o640, 0x0103);
    let open = Some(Opening { handle: HANDLE, access: Access::ReadWrite });
    let create = Mutation::Create {
        parent,
        name: name("new"),
        mode,
        exclusive: true,
        premade: Some(NODE),
        open,
    };
    golden("mutation_create", &create);
    let create = Mutation::Create {
        parent: NodeRef::MadeBy(UPTO),
        name: name("new"),
        mode,
        exclusive: false,
        premade: None,
        open: None,
    };
    golden("mutation_create_closed", &create);
    let mkdir = Mutation::Mkdir { parent, name: name("dir"), mode, premade: None };
    golden("mutation_mkdir", &mkdir);
    let masked = NewMode::new(0o2777, 0o027);
    assert_eq!((masked.permissions(), masked.umask()), (0o2777, 0o027));
    let mkdir = Mutation::Mkdir { parent, name: name("dir"), mode: masked.0, premade: None };
    golden("mutation_mkdir_masked", &mkdir);
    golden(
        "mutation_mknod",
        &Mutation::Mknod { parent, name: name("null"), mode: 0o020_666, rdev },
    );
    let target = Target::new(*b"../there").unwrap();
    golden("mutation_symlink", &Mutation::Symlink { parent, name: name("link"), target });
    golden("mutation_link", &Mutation::Link { node: FILE, parent, name: name("other") });
    for (text, occupant) in [
        ("any", Occupant::Any),
        ("nobody", Occupant::Nobody),
        ("node", Occupant::Node(FILE)),
        ("made", Occupant::Node(NodeRef::MadeBy(UPTO))),
    ] {
        let unlink = Mutation::Unlink { parent, name: name("old"), occupant };
        golden(&format!("mutation_unlink_{text}"), &unlink);
    }
    let rmdir = Mutation::Rmdir { parent, name: name("dir"), occupant: Occupant::Any };
    golden("mutation_rmdir", &rmdir);
    for (text, mode) in [
        ("replace", RenameMode::Replace),
        ("no_replace", RenameMode::NoReplace),
        ("exchange", RenameMode::Exchange),
    ] {
        let rename = Mutation::Rename {
            parent,
            name: name("T"),
            occupant: Occupant::Node(FILE),
            new_parent: FILE,
            new_name: name("F"),
            new_occupant: Occupant::Nobody,
            mode,
        };
        golden(&format!("mutation_rename_{text}"), &rename);
    }
}

#[test]
fn changes_of_nodes_have_their_bytes() {
    let (node, handle) = (FILE, Some(HANDLE));
    golden("mutation_nothing", &Mutation::Nothing);
    let change = AttrChange {
        mode: Some(0o755),
        uid: None,
        gid: Some(100),
        size: Some(1 << 33),
        atime: Some(SetTime::Now),
        mtime: Some(SetTime::At(Time { seconds: -1, nanos: 5 })),
    };
    golden("mutation_set_attr", &Mutation::SetAttr { node, handle, change });
    let offset = 1 << 40;
    golden("mutation_write", &Mutation::Write { node, handle, offset });
    golden("mutation_write_closed", &Mutation::Write { node, handle: None, offset });
    golden("mutation_append", &Mutation::Append { node, handle, size: 77 });
    let xattr = XattrName(b"user.note".to_vec());
    golden("mutation_set_xattr", &Mutation::SetXattr { node, name: xattr.clone(), flags: 1 });
    golden("mutation_remove_xattr", &Mutation::RemoveXattr { node, name: xattr });
    golden("mutation_fallocate", &Mutation::Fallocate { node, handle, offset, len: 4096, mode: 3 });
    let copy = Mutation::CopyRange {
        source: DIR,
        source_handle: None,
        source_offset: 1,
        node,
        handle,
        offset: 2,
        len: 3,
    };
    golden("mutation_copy_range", &copy);
}

#[test]
fn entries_have_their_bytes() {
    let mutation = Mutation::Write { node: FILE, handle: None, offset: 0 };
    let first = LogEntry {
        seq: Seq(10),
        after: vec![UPTO],
        promise: Promise::Awaited,
        sent: Sent::First,
        change: Change::new(mutation.clone()),
    };
    golden("entry_first", &first);
    let caller = Some(Caller { uid: 1000, gid: 100, groups: vec![4, 24] });
    let at = Some(Time { seconds: 1_700_000_000, nanos: 9 });
    let change = Change { mutation, lease: Some(LeaseId(3)), at, caller };
    let told = Some(Outcome::Attr(ATTR));
    for (text, sent) in [
        ("again", Sent::Again { told: None }),
        ("told", Sent::Again { told }),
        ("passed", Sent::Passed { told }),
    ] {
        let again = LogEntry {
            seq: Seq(10),
            after: vec![],
            promise: Promise::Accepted,
            sent,
            change: change.clone(),
        };
        golden(&format!("entry_{text}"), &again);
    }
}

#[test]
fn acknowledgements_have_their_bytes() {
    let seq = UPTO;
    let outcomes = [
        ("done", Outcome::Done),
        ("entry", Outcome::Entry(Entry { node: NODE, attr: ATTR })),
        ("attr", Outcome::Attr(ATTR)),
        ("removed", Outcome::Removed { node: NODE, linked: true }),
        ("renamed", Outcome::Renamed { node: NODE, replaced: Some(NodeId::ROOT) }),
        ("appended", Outcome::Appended { offset: 77, attr: ATTR }),
        ("copied", Outcome::Copied { len: 3, attr: ATTR }),
    ];
    for (text, outcome) in outcomes {
        golden(&format!("ack_{text}"), &LogAck::Applied { seq, result: Ok(outcome) });
    }
    let refusals = [
        ("system", Refused::by_system(Errno::ENOSPC)),
        ("conflict", Refused::conflict(Errno::ESTALE)),
        ("set_aside", Refused { errno: Errno::EIO, reason: Reason::SetAside { because: Seq(4) } }),
        ("unknown", Refused { errno: Errno::EIO, reason: Reason::Unknown }),
    ];
    for (text, refused) in refusals {
        golden(&format!("ack_{text}"), &LogAck::Applied { seq, result: Err(refused) });
    }
    golden("ack_stable", &LogAck::Stable { upto: UPTO });
    golden("ack_lost", &LogAck::Lost { epoch: Epoch([0xe0; 16]), stable: UPTO });
}
