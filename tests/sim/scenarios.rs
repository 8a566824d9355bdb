//! The rules of the redo log, one at a time. Each test says what happens without its rule.

mod copies;
mod lease;
mod redo;
mod shared;

use p2pfs::wire::call::XattrName;
use p2pfs::wire::log::{Mutation, RenameMode};

use super::net::Call;
use super::posix::WORD;
use super::script::{ROOT, Script, append, collapse, copy, create, rename, unlink, write};
use super::world::GRACE;

/// Rule 1. Every editor's save, then the next one begins: by names alone, the redone rename puts
/// the second new file in the place of the document.
#[test]
fn a_save_that_is_done_again_does_not_move_the_next_ones_file() {
    let mut script = Script::new();
    let first = script.create("t");
    script.write(first, 0, &[1, 1]);
    script.rename("t", "document");
    let second = script.create("t");
    script.write(second, 0, &[2]);
    script.answered();
    script.crash_with_everything();
    script.rest();
    assert_eq!(script.data("document"), Some(vec![1, 1]));
    assert_eq!(script.data("t"), Some(vec![2]));
}

/// Saves of one document, all still on the way to the disk: what the first save left was removed by
/// the second one. Without [`p2pfs::wire::log::Sent::Passed`] the first rename is a conflict, and
/// is set aside with what comes after it.
#[test]
fn regression_saves_whose_files_were_replaced_since_are_no_conflict() {
    let mut script = Script::new();
    for value in 1..=3 {
        let file = script.create("t");
        script.write(file, 0, &[value]);
        script.rename("t", "document");
    }
    script.answered();
    script.crash_with_everything();
    script.rest();
    assert_eq!(script.data("document"), Some(vec![3]));
    assert_eq!(script.data("t"), None);
    assert!(script.asides().is_empty(), "{:?}", script.asides());
}

/// A lock file that comes and goes: its name is taken by its successor when its creation is done
/// again. Without [`p2pfs::wire::log::Sent::Passed`] that is a conflict, and all three are set
/// aside.
#[test]
fn regression_a_lock_file_that_comes_and_goes_is_no_conflict() {
    let mut script = Script::new();
    script.create("lock");
    script.unlink("lock");
    script.create("lock");
    script.answered();
    script.crash_with_everything();
    script.rest();
    assert!(script.data("lock").is_some());
    assert!(script.asides().is_empty(), "{:?}", script.asides());
}

/// Rule 1. An unlink was applied, but not acknowledged, and a process has made the name anew. By
/// name alone, the unlink that is done again deletes the newcomer.
#[test]
fn an_unlink_that_is_done_again_spares_a_newcomer() {
    let mut script = Script::new();
    script.create("file");
    script.unlink("file");
    script.answered();
    script.crash_with_everything();
    let newcomer = create(&mut script.world, "file");
    let newcomer = script.process(&newcomer, &[]);
    script.until(|world| !world.clients[0].connected);
    script.answered();
    assert_eq!(script.named("file"), Some(newcomer), "the newcomer was deleted");
}

/// Rule 1. Sent twice, an exchange without the identities of the two undoes itself.
#[test]
fn an_exchange_that_is_sent_twice_is_done_once() {
    let mut script = Script::new();
    let (one, two) = (script.create("one"), script.create("two"));
    script.write(one, 0, &[1]);
    script.write(two, 0, &[2]);
    script.accept(rename((ROOT, "one"), (ROOT, "two"), RenameMode::Exchange), &[]);
    script.answered();
    script.crash_with_everything();
    script.rest();
    assert_eq!((script.data("one"), script.data("two")), (Some(vec![2]), Some(vec![1])));
}

/// Rule 4. Without the order of parents before children the file has no directory to be made in; if
/// it is not named by the entry that made it, the old name of the directory stays.
#[test]
fn what_is_made_in_a_new_directory_moves_with_it_and_leaves_its_name_free() {
    let mut script = Script::new();
    let old = script.mkdir("d");
    let inside = Mutation::Create {
        parent: old.into(),
        name: super::apps::name("f"),
        mode: 0o600,
        exclusive: true,
        premade: None,
        open: None,
    };
    script.accept(inside, &[]);
    script.rename("d", "e");
    script.answered();
    script.crash(0, false);
    script.rest();
    let disk = script.world.host.disk.borrow();
    let moved = disk.now.lookup(ROOT, &super::apps::name("e")).expect("it is called e");
    assert!(disk.now.lookup(moved, &super::apps::name("f")).is_some());
    assert_eq!(disk.now.lookup(ROOT, &super::apps::name("d")), None);
}

/// Rule 1. An append was applied, and the host forgot it or not: without the search for its data it
/// is there twice; without the offset that was told it fails after it was told to be done.
#[test]
fn an_append_is_there_once_whatever_a_crash_keeps() {
    for (steps, data) in [(0, false), (usize::MAX, true), (usize::MAX, false)] {
        let mut script = Script::new();
        let file = script.create("log");
        for record in [11, 12, 13] {
            script.ask(append(file), &[record]);
        }
        script.answered();
        script.crash(steps, data);
        script.rest();
        assert_eq!(script.data("log"), Some(vec![11, 12, 13]), "{steps} {data}");
    }
}

/// Rule 1. A copy has no bytes in the journal. If what came before it is written once more, it is
/// lost; if it is not stable before it is acknowledged, a crash takes all of it.
#[test]
fn regression_what_came_before_a_copy_is_not_written_over_it() {
    let mut script = Script::new();
    let (from, to) = (script.create("from"), script.create("to"));
    script.write(from, 0, &[1, 2]);
    script.write(to, 0, &[7, 7, 7]);
    script.ask(copy(from, to, 2), &[]);
    script.answered();
    script.write(from, 0, &[9, 9]);
    script.answered();
    script.crash(0, false);
    script.rest();
    assert_eq!(script.data("to"), Some(vec![1, 2, 7]));
    assert_eq!(script.data("from"), Some(vec![9, 9]));
}

/// Collapsed twice, two words are gone; and a write from before would be one word too far behind.
#[test]
fn regression_what_was_collapsed_is_not_collapsed_or_written_again() {
    for data in [true, false] {
        let mut script = Script::new();
        let file = script.create("file");
        script.write(file, 0, &[1, 2, 3, 4]);
        script.ask(collapse(file, 1), &[]);
        script.answered();
        script.crash(0, data);
        script.rest();
        assert_eq!(script.data("file"), Some(vec![1, 3, 4]));
    }
}

/// Rule 5. The disk is full, and the new version is not there: a rename that comes through replaces
/// the old version with nothing.
#[test]
fn what_could_not_be_written_replaces_nothing() {
    let mut script = Script::new();
    let old = script.create("document");
    script.write(old, 0, &[1]);
    script.answered();
    let new = script.create("t");
    script.answered();
    script.world.excuses.full = true;
    script.world.host.disk.borrow_mut().full = true;
    script.write(new, 0, &[2]);
    script.rename("t", "document");
    script.answered();
    assert_eq!(script.data("document"), Some(vec![1]));
    assert_eq!(script.asides().len(), 2);
    script.rest();
}

/// Rule 6. A sync failed and dropped data. If what it covered counts as stable, the next `fsync`
/// says yes to an empty file; if the client does not heed the loss, none of it is ever sent again.
#[test]
fn an_fsync_after_a_failed_one_says_yes_only_when_it_is_so() {
    let mut script = Script::new();
    let file = script.create("file");
    script.write(file, 0, &[1, 2, 3]);
    script.answered();
    script.world.host.disk.borrow_mut().failing = true;
    for _ in 0..3 {
        let upto = script.world.clients[0].log.last_of(file).expect("it is not stable");
        script.world.call(0, 0, Call::Sync { node: file, upto });
    }
    script.until(|world| world.clients[0].calls.is_empty());
    assert!(!script.world.fsynced.is_empty(), "none of them said yes");
    script.crash(0, false);
    script.rest();
    assert_eq!(script.data("file"), Some(vec![1, 2, 3]));
}

/// The disk loses the end of a file while an append is on its way. If it is put behind what is
/// left, it is in the place of what comes again, and one of the two is lost.
#[test]
fn regression_an_append_does_not_begin_on_what_a_failed_disk_has_left() {
    for turns in 0..8 {
        let mut script = Script::new();
        let file = script.create("file");
        script.stable();
        script.write(file, 0, &[1]);
        script.answered();
        let append = Mutation::Append { node: file.into(), handle: None, size: WORD };
        let seq = script.ask(append, &[2]);
        script.until(|world| {
            let process = world.host.process.as_ref().expect("it runs");
            process.sessions[&0].applier.state_of(seq) == "running"
        });
        for _ in 0..turns {
            script.world.dice.below(2);
        }
        script.world.host.disk.borrow_mut().failing = true;
        script.world.synced(0, seq);
        script.rest();
        assert_eq!(script.data("file"), Some(vec![1, 2]));
    }
}

/// Rule 7. A file is open, unlinked, and written: the host restarts. If it does not know what is
/// open, the write is set aside with ESTALE.
#[test]
fn what_is_open_and_unlinked_outlives_a_host() {
    let mut script = Script::new();
    let file = script.create("file");
    script.unlink("file");
    script.answered();
    script.world.kill_host();
    script.until(|world| world.clients[0].connected && world.host.process.is_some());
    script.write(file, 0, &[5]);
    script.answered();
    assert_eq!(script.world.host.disk.borrow().now.nodes[&file].data, [5]);
    assert!(script.asides().is_empty());
    script.rest();
}

/// Rule 2. The crash lost the creation: the node is made again under another identity, and all that
/// comes later must find it. By its old identity the rename is not done: the old name stays.
#[test]
fn a_creation_that_a_crash_lost_is_made_again_and_found_by_what_follows() {
    let mut script = Script::new();
    let made = create(&mut script.world, "file");
    script.ask(made, &[]);
    script.answered();
    let file = script.world.clients[0].view.lookup(ROOT, &super::apps::name("file"));
    let file = file.expect("it was created");
    script.write(file, 0, &[4, 5]);
    let name = XattrName(b"user.x".to_vec());
    script.accept(Mutation::SetXattr { node: file.into(), name, flags: 1 }, &[6]);
    script.rename("file", "moved");
    script.answered();
    script.crash(0, false);
    script.rest();
    assert_eq!(script.data("moved"), Some(vec![4, 5]));
    assert_eq!(script.data("file"), None);
}

/// Whom an awaited rename or unlink met is known only from its answer, and that names a node that a
/// crash may have given another identity. By the old one the file is not found, and stays.
#[test]
fn regression_what_was_met_at_a_name_is_found_under_its_new_identity() {
    let mut script = Script::new();
    for text in ["a", "b"] {
        let made = create(&mut script.world, text);
        script.ask(made, &[]);
    }
    script.answered();
    script.ask(unlink("a"), &[]);
    script.ask(rename((ROOT, "b"), (ROOT, "c"), RenameMode::Replace), &[]);
    script.answered();
    script.crash(0, false);
    script.rest();
    assert_eq!((script.data("a"), script.data("b")), (None, None));
    assert!(script.data("c").is_some());
}

/// Rule 6. An application was told that its unlink timed out. Without the strike it is carried out
/// when the host is back.
#[test]
fn what_was_told_to_have_failed_does_not_happen_later() {
    let mut script = Script::new();
    script.create("file");
    script.answered();
    let connection = script.world.clients[0].connection.expect("it is connected");
    script.world.clients[0].outage = script.world.now + 2 * GRACE;
    script.world.cut(connection);
    script.until(|world| world.clients[0].connection.is_none());
    let seq = script.ask(unlink("file"), &[]);
    script.until(|world| world.clients[0].told_failed.contains(&seq.0));
    script.rest();
    assert!(script.data("file").is_some(), "it was deleted later");
}

/// Rule 12. A process and the client make `index.lock`, each for itself. Taken for done because the
/// name is there, both have it.
#[test]
fn only_one_side_gets_the_lock_file() {
    let mut script = Script::new();
    let theirs = create(&mut script.world, "index.lock");
    script.process(&theirs, &[]);
    let ours = create(&mut script.world, "index.lock");
    let seq = script.ask(ours, &[]);
    script.answered();
    assert!(script.world.clients[0].told_failed.contains(&seq.0));
    script.rest();
}

/// Rule 3. The host dies at a step and comes back. Without the intent an append is done twice;
/// without the results the host takes for lost what nobody sends again.
#[test]
fn a_host_that_is_killed_at_any_step_does_everything_once() {
    for steps in 1..14 {
        let mut script = Script::new();
        let file = script.create("file");
        script.answered();
        script.world.host.fuse.set(steps);
        script.ask(append(file), &[1]);
        script.ask(append(file), &[2]);
        script.rename("file", "moved");
        script.answered();
        script.rest();
        assert_eq!(script.data("moved"), Some(vec![1, 2]), "killed after {steps} steps");
        assert_eq!(script.data("file"), None, "killed after {steps} steps");
    }
}

/// Two names of one node: a rename between them does nothing, and says so.
#[test]
fn regression_a_link_that_is_made_again_does_not_keep_the_old_name_alive() {
    let mut script = Script::new();
    let file = script.create("a");
    script.accept(
        Mutation::Link { node: file.into(), parent: ROOT.into(), name: super::apps::name("b") },
        &[],
    );
    script.rename("b", "c");
    script.answered();
    script.crash_with_everything();
    script.rest();
    assert!(script.data("a").is_some() && script.data("c").is_some());
    assert_eq!(script.data("b"), None);
}

/// What an application has written is where its file is, also if the words of a write come from
/// different lanes and connections.
#[test]
fn the_last_write_wins_over_a_cut() {
    let mut script = Script::new();
    let file = script.create("file");
    for value in 1..20 {
        script.accept(write(file, 0, &[value]), &[value]);
        if value % 5 == 0 {
            let connection = script.world.clients[0].connection;
            script.world.cut(connection.unwrap_or_default());
            script.until(|world| world.clients[0].connected);
        }
    }
    script.rest();
    assert_eq!(script.data("file"), Some(vec![19]));
}
