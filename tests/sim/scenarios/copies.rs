//! Conflicts: what is kept, what is dropped, and what nobody touches.

use p2pfs::id::NodeId;
use p2pfs::wire::log::{Mutation, Occupant, RenameMode};

use crate::sim::apps::name;
use crate::sim::script::{ROOT, Script, create, rename, unlink, write};

/// What a copy holds.
fn copied(script: &Script, text: &str) -> Option<Vec<u64>> {
    let disk = script.world.host.disk.borrow();
    let node = disk.now.lookup(disk.now.conflicts()?, &name(text))?;
    Some(disk.now.nodes[&node].data.clone())
}

fn full(script: &mut Script, full: bool) {
    script.world.excuses.full = true;
    script.world.host.disk.borrow_mut().full = full;
}

/// Rule 5. The disk is full, and has room again later: what was accepted in between lies in a copy,
/// over what the file held. Without copies it stays aside for ever.
#[test]
fn what_did_not_fit_is_copied_when_there_is_room() {
    let mut script = Script::new();
    let file = script.create("file");
    script.write(file, 0, &[1, 2]);
    script.stable();
    full(&mut script, true);
    script.write(file, 1, &[3, 4]);
    script.answered();
    assert_eq!(script.asides().len(), 1);
    script.until(|world| world.clients[0].copies.waiting().any(|copy| copy.refused.is_some()));
    assert_eq!(copied(&script, "file"), None, "there is no room");
    full(&mut script, false);
    script.rest();
    assert_eq!(copied(&script, "file"), Some(vec![1, 3, 4]));
    assert_eq!(script.data("file"), Some(vec![1, 2]), "nothing is written over");
}

/// Rule 14, changed here and deleted there: returns as a copy. Without copies the data is nowhere
/// that anybody sees.
#[test]
fn what_was_deleted_there_returns_as_a_copy() {
    let mut script = Script::new();
    let file = script.create("file");
    script.stable();
    script.interfered();
    script.process(&unlink("file"), &[]);
    script.write(file, 0, &[7]);
    script.answered();
    script.rest();
    assert_eq!((script.data("file"), copied(&script, "file")), (None, Some(vec![7])));
}

/// Rules 12 and 14. Both have made `index.lock`: theirs stays, ours is a copy. Without copies what
/// was accepted is dropped.
#[test]
fn both_lock_files_are_kept() {
    let mut script = Script::new();
    script.interfered();
    let ours = script.create("index.lock");
    script.write(ours, 0, &[5]);
    let theirs = create(&mut script.world, "index.lock");
    let theirs = script.process(&theirs, &[]);
    script.answered();
    script.rest();
    assert_eq!(script.named("index.lock"), Some(theirs));
    assert_eq!(copied(&script, "index.lock"), Some(vec![5]));
}

/// Rule 14. A process has put something into the directory that is to be removed: both stay.
/// Without the host's refusal it would be gone with what is in it.
#[test]
fn a_directory_that_is_no_longer_empty_is_not_removed() {
    let mut script = Script::new();
    let dir = script.mkdir("d");
    script.stable();
    script.interfered();
    let inside = Mutation::Create {
        parent: dir.into(),
        name: name("theirs"),
        mode: 0o600,
        exclusive: true,
        premade: None,
        open: None,
    };
    let theirs = script.process(&inside, &[]);
    let occupant = Occupant::Any;
    script.accept(Mutation::Rmdir { parent: ROOT.into(), name: name("d"), occupant }, &[]);
    script.answered();
    script.rest();
    let there = script.world.host.disk.borrow().now.lookup(dir, &name("theirs"));
    assert_eq!((script.named("d"), there), (Some(dir), Some(theirs)));
    assert_eq!(script.asides().len(), 1, "it was dropped, and not told");
}

/// Rule 14. Moved here and moved there: the log's move is dropped. Without the expectation of who
/// has the old name, what a process has put there since is moved.
#[test]
fn what_was_moved_twice_stays_where_it_was_moved_there() {
    let mut script = Script::new();
    let file = script.create("f");
    script.stable();
    script.interfered();
    script.process(&rename((ROOT, "f"), (ROOT, "theirs"), RenameMode::Replace), &[]);
    let other = create(&mut script.world, "f");
    let other = script.process(&other, &[]);
    script.rename("f", "ours");
    script.answered();
    script.rest();
    let named = |text| script.named(text);
    let found: [Option<NodeId>; 3] = [named("theirs"), named("f"), named("ours")];
    assert_eq!(found, [Some(file), Some(other), None]);
}

/// Rule 1. A link is there already when it is made again. Without the look at whose name it is, it
/// fails with EEXIST, and is set aside.
#[test]
fn a_link_that_is_there_is_not_made_again() {
    let mut script = Script::new();
    let file = script.create("file");
    script.stable();
    let (node, parent) = (file.into(), ROOT.into());
    script.accept(Mutation::Link { node, parent, name: name("link") }, &[]);
    script.accept(write(file, 0, &[]), &[4]);
    script.answered();
    script.crash_with_everything();
    script.rest();
    assert_eq!(script.named("link"), Some(file));
    assert!(script.asides().is_empty(), "{:?}", script.asides());
}
