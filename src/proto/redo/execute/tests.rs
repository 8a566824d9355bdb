//! Every kind of change, in every state, before and after.

mod killed;

use super::*;
use crate::id::HandleId;
use crate::wire::call::{Attr, Entry, Time, XattrName};
use crate::wire::log::{AttrChange, NodeRef, RenameMode};
use crate::wire::name::{Name, Target};

const DIR: NodeRef = NodeRef::Node(NodeId::ROOT);
const X: NodeId = NodeId { ino: 10, generation: 1 };
const Y: NodeId = NodeId { ino: 11, generation: 1 };
const Z: NodeId = NodeId { ino: 12, generation: 1 };

fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

fn attr(size: u64) -> Attr {
    let time = Time::default();
    Attr {
        size,
        blocks: 0,
        atime: time,
        mtime: time,
        ctime: time,
        btime: time,
        mode: 0o100_644,
        nlink: 1,
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: 4096,
    }
}

fn entry(node: NodeId) -> Outcome {
    Outcome::Entry(Entry { node, attr: attr(0) })
}

fn create(exclusive: bool, premade: Option<NodeId>) -> Mutation {
    Mutation::Create { parent: DIR, name: name("a"), mode: 0o644, exclusive, premade, open: None }
}

fn mkdir(premade: Option<NodeId>) -> Mutation {
    Mutation::Mkdir { parent: DIR, name: name("a"), mode: 0o755, premade }
}

fn mknod() -> Mutation {
    Mutation::Mknod { parent: DIR, name: name("a"), mode: 0o010_644, rdev: 0 }
}

fn symlink() -> Mutation {
    Mutation::Symlink { parent: DIR, name: name("a"), target: Target::new("t").unwrap() }
}

fn link() -> Mutation {
    Mutation::Link { node: X.into(), parent: DIR, name: name("a") }
}

fn unlink(occupant: Occupant) -> Mutation {
    Mutation::Unlink { parent: DIR, name: name("a"), occupant }
}

fn rmdir(occupant: Occupant) -> Mutation {
    Mutation::Rmdir { parent: DIR, name: name("a"), occupant }
}

fn rename(occupant: Occupant, new_occupant: Occupant, mode: RenameMode) -> Mutation {
    Mutation::Rename {
        parent: DIR,
        name: name("a"),
        occupant,
        new_parent: DIR,
        new_name: name("b"),
        new_occupant,
        mode,
    }
}

fn is(node: NodeId) -> Occupant {
    Occupant::Node(node.into())
}

fn write() -> Mutation {
    Mutation::Write { node: X.into(), handle: None, offset: 3 }
}

fn append(size: u64) -> Mutation {
    Mutation::Append { node: X.into(), handle: Some(HandleId(1)), size }
}

fn fallocate(mode: u32) -> Mutation {
    Mutation::Fallocate { node: X.into(), handle: None, offset: 0, len: 10, mode }
}

fn copy() -> Mutation {
    Mutation::CopyRange {
        source: Y.into(),
        source_handle: None,
        source_offset: 0,
        node: X.into(),
        handle: None,
        offset: 0,
        len: 10,
    }
}

fn at(name: Option<NodeId>) -> Seen {
    Seen { name, ..Seen::default() }
}

fn both(name: Option<NodeId>, new_name: Option<NodeId>) -> Seen {
    Seen { name, new_name, ..Seen::default() }
}

fn long(size: u64) -> Seen {
    Seen { size: Some(size), ..Seen::default() }
}

fn covered(name: Option<NodeId>, made: NodeId) -> Seen {
    Seen { name, made: Some(made), ..Seen::default() }
}

fn resumed(before: Seen) -> How {
    How::Resumed { before }
}

fn again(told: Outcome) -> How {
    How::Again { told: Some(told) }
}

const UNTOLD: How = How::Again { told: None };

fn by_system(errno: Errno) -> Step {
    Step::Refuse(Refused::by_system(errno))
}

fn conflict(errno: Errno) -> Step {
    Step::Refuse(Refused::conflict(errno))
}

fn unknown(errno: Errno) -> Step {
    Step::Refuse(Refused { errno, reason: Reason::Unknown })
}

fn check(table: Vec<(Mutation, How, Seen, Step)>) {
    for (line, (mutation, how, now, step)) in table.into_iter().enumerate() {
        let decided = decide(&Change::new(mutation.clone()), &how, &now);
        assert_eq!(decided, step, "line {line}: {mutation:?}\n{how:?}\n{now:?}");
    }
}

#[test]
fn creations_expect_a_free_name_and_know_what_they_made() {
    use Errno as E;
    let mut table = Vec::new();
    // the same for everything that makes a node exclusively and has none in advance
    for mutation in [create(true, None), mkdir(None), mknod(), symlink()] {
        table.extend([
            (mutation.clone(), How::First, at(None), Step::Perform),
            (mutation.clone(), How::First, at(Some(Y)), by_system(E::EEXIST)),
            (mutation.clone(), resumed(covered(None, X)), at(None), Step::Perform),
            (mutation.clone(), resumed(covered(None, X)), at(Some(X)), Step::Done),
            (mutation.clone(), resumed(covered(None, X)), at(Some(Y)), conflict(E::EEXIST)),
            (mutation.clone(), resumed(at(None)), at(Some(Y)), unknown(E::EEXIST)),
            (mutation.clone(), again(entry(X)), at(None), Step::Perform),
            (mutation.clone(), again(entry(X)), at(Some(X)), Step::Done),
            (mutation.clone(), again(entry(X)), at(Some(Y)), conflict(E::EEXIST)),
            (mutation.clone(), UNTOLD, at(None), Step::Perform),
            (mutation, UNTOLD, at(Some(Y)), unknown(E::EEXIST)),
        ]);
    }
    for mutation in [create(true, Some(X)), create(false, Some(X)), mkdir(Some(X))] {
        table.extend([
            (mutation.clone(), How::First, at(None), Step::Perform),
            (mutation.clone(), How::First, at(Some(Y)), conflict(E::EEXIST)),
            (mutation.clone(), resumed(covered(None, X)), at(None), Step::Perform),
            (mutation.clone(), resumed(covered(None, X)), at(Some(X)), Step::Done),
            (mutation.clone(), resumed(covered(None, X)), at(Some(Y)), conflict(E::EEXIST)),
            (mutation.clone(), UNTOLD, at(None), Step::Perform),
            (mutation.clone(), UNTOLD, at(Some(X)), Step::Done),
            (mutation.clone(), UNTOLD, at(Some(Y)), conflict(E::EEXIST)),
            // the premade one was lost, and another one made
            (mutation.clone(), again(entry(Z)), at(Some(Z)), Step::Done),
            (mutation, again(entry(Z)), at(Some(Y)), conflict(E::EEXIST)),
        ]);
    }
    check(table);
}

#[test]
fn a_creation_that_is_not_exclusive_opens_whoever_is_there() {
    let open = create(false, None);
    check(vec![
        (open.clone(), How::First, at(None), Step::Perform),
        (open.clone(), How::First, at(Some(Y)), Step::Perform),
        (open.clone(), resumed(at(Some(Y))), at(Some(Y)), Step::Perform),
        (open.clone(), resumed(at(Some(Y))), at(None), conflict(Errno::ESTALE)),
        (open.clone(), resumed(covered(None, X)), at(Some(X)), Step::Done),
        (open.clone(), resumed(covered(None, X)), at(Some(Y)), Step::Perform),
        (open.clone(), UNTOLD, at(Some(Y)), Step::Perform),
        (open.clone(), UNTOLD, at(None), Step::Perform),
        (open.clone(), again(entry(X)), at(Some(X)), Step::Done),
        // the data that follows is for another file
        (open, again(entry(X)), at(Some(Y)), conflict(Errno::EEXIST)),
    ]);
}

#[test]
fn a_link_is_done_if_the_node_has_the_name() {
    let linked = again(entry(X));
    check(vec![
        (link(), How::First, at(None), Step::Perform),
        (link(), How::First, at(Some(X)), by_system(Errno::EEXIST)),
        (link(), How::First, at(Some(Y)), by_system(Errno::EEXIST)),
        (link(), resumed(at(None)), at(None), Step::Perform),
        (link(), resumed(at(None)), at(Some(X)), Step::Done),
        (link(), resumed(at(None)), at(Some(Y)), conflict(Errno::EEXIST)),
        (link(), UNTOLD, at(None), Step::Perform),
        (link(), UNTOLD, at(Some(X)), Step::Done),
        (link(), UNTOLD, at(Some(Y)), conflict(Errno::EEXIST)),
        (link(), linked, at(Some(X)), Step::Done),
    ]);
}

#[test]
fn removals_never_take_another_one_than_then() {
    use Errno as E;
    let told = again(Outcome::Removed { node: X, linked: false });
    let mut table = Vec::new();
    for remove in [unlink, rmdir] {
        let (one, any) = (remove(is(X)), remove(Occupant::Any));
        table.extend([
            (one.clone(), How::First, at(Some(X)), Step::Perform),
            (one.clone(), How::First, at(Some(Y)), conflict(E::ESTALE)),
            (one.clone(), How::First, at(None), conflict(E::ENOENT)),
            (any.clone(), How::First, at(Some(Y)), Step::Perform),
            (any.clone(), How::First, at(None), Step::Perform),
            (any.clone(), resumed(at(Some(X))), at(Some(X)), Step::Perform),
            (any.clone(), resumed(at(Some(X))), at(None), Step::Done),
            (any.clone(), resumed(at(Some(X))), at(Some(Y)), Step::Done),
            (any.clone(), resumed(at(None)), at(None), Step::Perform),
            (any.clone(), resumed(at(None)), at(Some(Y)), by_system(E::ENOENT)),
            (one.clone(), UNTOLD, at(Some(X)), Step::Perform),
            (one.clone(), UNTOLD, at(Some(Y)), Step::Done),
            (one.clone(), UNTOLD, at(None), Step::Done),
            (one, told, at(Some(Y)), Step::Done),
            (any.clone(), told, at(Some(X)), Step::Perform),
            (any.clone(), told, at(Some(Y)), Step::Done),
            (any.clone(), told, at(None), Step::Done),
            (any.clone(), UNTOLD, at(Some(Y)), unknown(E::EIO)),
            (any, UNTOLD, at(None), Step::Done),
        ]);
    }
    check(table);
}

#[test]
fn a_rename_moves_whom_it_means_over_whom_it_means() {
    use Errno as E;
    use RenameMode::Replace;
    let free = rename(is(X), Occupant::Nobody, Replace);
    let over = rename(is(X), is(Y), Replace);
    let any = rename(Occupant::Any, Occupant::Any, Replace);
    let told = again(Outcome::Renamed { node: X, replaced: Some(Y) });
    check(vec![
        (free.clone(), How::First, both(Some(X), None), Step::Perform),
        (free.clone(), How::First, both(Some(X), Some(Y)), conflict(E::EEXIST)),
        (free.clone(), How::First, both(Some(Y), None), conflict(E::ESTALE)),
        (free.clone(), How::First, both(None, None), conflict(E::ENOENT)),
        (over.clone(), How::First, both(Some(X), Some(Y)), Step::Perform),
        (over.clone(), How::First, both(Some(X), Some(Z)), conflict(E::ESTALE)),
        (over.clone(), How::First, both(Some(X), None), conflict(E::ENOENT)),
        (any.clone(), How::First, both(None, Some(Z)), Step::Perform),
        (free.clone(), UNTOLD, both(Some(X), None), Step::Perform),
        (free.clone(), UNTOLD, both(None, Some(X)), Step::Done),
        // an editor's next file has the old name already
        (free.clone(), UNTOLD, both(Some(Z), Some(X)), Step::Done),
        (free.clone(), UNTOLD, both(Some(X), Some(Z)), conflict(E::EEXIST)),
        (free.clone(), UNTOLD, both(Some(Z), None), conflict(E::ESTALE)),
        (free.clone(), UNTOLD, both(None, Some(Z)), conflict(E::ENOENT)),
        // two names of one node: nothing moves
        (free, UNTOLD, both(Some(X), Some(X)), Step::Perform),
        (over.clone(), UNTOLD, both(Some(X), Some(Y)), Step::Perform),
        (over.clone(), UNTOLD, both(Some(X), None), Step::Perform),
        (over.clone(), UNTOLD, both(Some(X), Some(Z)), conflict(E::EEXIST)),
        (over.clone(), UNTOLD, both(Some(Z), Some(X)), Step::Done),
        (over.clone(), told, both(None, Some(Z)), Step::Done),
        (over, told, both(Some(X), Some(Z)), conflict(E::EEXIST)),
        (any.clone(), told, both(Some(X), Some(Y)), Step::Perform),
        (any.clone(), told, both(Some(X), Some(Z)), conflict(E::EEXIST)),
        (any.clone(), told, both(None, Some(X)), Step::Done),
        (any.clone(), UNTOLD, both(Some(X), None), unknown(E::EIO)),
        (any.clone(), UNTOLD, both(None, Some(X)), Step::Done),
        (any, UNTOLD, both(None, None), by_system(E::ENOENT)),
    ]);
}

#[test]
fn a_rename_that_was_under_way_is_done_or_still_to_do() {
    use Errno as E;
    for mode in [RenameMode::Replace, RenameMode::NoReplace] {
        let any = rename(Occupant::Any, Occupant::Any, mode);
        let how = resumed(both(Some(X), Some(Y)));
        check(vec![
            (any.clone(), how, both(Some(X), Some(Y)), Step::Perform),
            (any.clone(), how, both(None, Some(X)), Step::Done),
            (any.clone(), how, both(Some(Z), Some(X)), Step::Done),
            (any.clone(), how, both(Some(X), Some(Z)), conflict(E::ESTALE)),
            (any.clone(), how, both(None, Some(Y)), conflict(E::ENOENT)),
            (any, resumed(both(None, None)), both(None, None), Step::Perform),
        ]);
    }
}

#[test]
fn an_exchange_is_done_when_both_have_changed_places() {
    use Errno as E;
    let swap = rename(is(X), is(Y), RenameMode::Exchange);
    let any = rename(Occupant::Any, Occupant::Any, RenameMode::Exchange);
    let how = resumed(both(Some(X), Some(Y)));
    let told = again(Outcome::Renamed { node: X, replaced: Some(Y) });
    let mut table = vec![
        (swap.clone(), How::First, both(Some(X), Some(Y)), Step::Perform),
        (swap.clone(), How::First, both(Some(Y), Some(X)), conflict(E::ESTALE)),
        (any.clone(), UNTOLD, both(Some(Y), Some(X)), unknown(E::EIO)),
        (swap.clone(), told, both(None, None), Step::Done),
    ];
    for how in [how, told] {
        table.extend([
            (any.clone(), how, both(Some(X), Some(Y)), Step::Perform),
            (any.clone(), how, both(Some(Y), Some(X)), Step::Done),
            (any.clone(), how, both(Some(X), Some(Z)), conflict(E::ESTALE)),
        ]);
    }
    for how in [how, UNTOLD] {
        table.extend([
            (swap.clone(), how, both(Some(X), Some(Y)), Step::Perform),
            (swap.clone(), how, both(Some(Y), Some(X)), Step::Done),
            (swap.clone(), how, both(Some(Z), Some(X)), conflict(E::ESTALE)),
            (swap.clone(), how, both(Some(X), None), conflict(E::ESTALE)),
            (swap.clone(), how, both(None, Some(Y)), conflict(E::ENOENT)),
        ]);
    }
    check(table);
}

#[test]
fn what_is_absolute_is_carried_out_as_often_as_it_comes() {
    let xattr = XattrName(b"user.a".to_vec());
    let node = NodeRef::Node(X);
    let change = AttrChange { size: Some(3), ..AttrChange::default() };
    let absolute = [
        write(),
        append(0),
        fallocate(0),
        fallocate(0x13),
        Mutation::SetAttr { node, handle: None, change },
        Mutation::SetXattr { node, name: xattr.clone(), flags: 1 },
        Mutation::RemoveXattr { node, name: xattr },
    ];
    let hows = [How::First, resumed(long(1)), UNTOLD, again(Outcome::Done)];
    for how in hows {
        for mutation in absolute.clone() {
            check(vec![(mutation, how, long(2), Step::Perform)]);
        }
        check(vec![(Mutation::Nothing, how, Seen::default(), Step::Done)]);
    }
}

#[test]
fn what_moves_data_is_told_by_the_length() {
    let told = again(Outcome::Attr(attr(0)));
    let how = resumed(long(100));
    let mut table = Vec::new();
    for (mode, after) in [(0x08, 90), (0x20, 110)] {
        table.extend([
            (fallocate(mode), How::First, long(100), Step::Perform),
            (fallocate(mode), how, long(100), Step::Perform),
            (fallocate(mode), how, long(after), Step::Done),
            (fallocate(mode), how, long(95), conflict(Errno::ESTALE)),
            (fallocate(mode), told, long(5), Step::Done),
            (fallocate(mode), UNTOLD, long(100), unknown(Errno::EIO)),
        ]);
    }
    table.extend([
        (copy(), How::First, long(0), Step::Perform),
        (copy(), how, long(0), Step::Perform),
        (copy(), told, long(0), Step::Done),
        (copy(), UNTOLD, long(0), unknown(Errno::EIO)),
    ]);
    check(table);
}
