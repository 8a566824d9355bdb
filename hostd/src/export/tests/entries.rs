//! Entries of the log: what a host that was restarted or raced must get right.

use std::collections::BTreeSet;
use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::MetadataExt;
use std::thread;

use bytes::Bytes;
use p2pfs::id::{HandleId, NodeId, Seq, SessionId};
use p2pfs::net::serve::Export;
use p2pfs::proto::redo::execute::{How, Seen};
use p2pfs::wire::call::{Access, Time};
use p2pfs::wire::errno::Errno;
use p2pfs::wire::log::{Change, Mutation, NodeRef, Occupant, Outcome, Refused, RenameMode};
use p2pfs::wire::name::Target;

use super::ROOT;
use super::calls::{
    apply, apply_with, attr, create, each_way, lookup, made, name, open, read, rename, write,
};
use crate::export::{Share, View, redo};
use crate::keys::Map;
use crate::record::Records;

#[test]
fn an_append_lands_behind_what_others_wrote() {
    each_way(|dir, view| {
        let node = create(view, NodeId::ROOT, "log", 1).unwrap().node;
        assert_eq!(append(view, node, Some(1), b"one").unwrap(), 0);
        fs::write(dir.join("log"), "longer than that").unwrap();
        assert_eq!(append(view, node, Some(1), b"two").unwrap(), 16);
        assert_eq!(append(view, node, None, b"").unwrap(), 19);
        assert_eq!(append(view, node, None, b"three").unwrap(), 19);
        assert_eq!(fs::read(dir.join("log")).unwrap(), b"longer than thattwothree");
        open(view, node, 2, Access::Read).unwrap();
        assert_eq!(append(view, node, Some(2), b"no").unwrap_err(), Errno::EBADF);
    });
}

#[test]
fn all_who_append_at_once_are_told_where() {
    each_way(|dir, view| {
        let node = create(view, NodeId::ROOT, "log", 1).unwrap().node;
        let path = dir.join("log");
        let record = |who: u8, at: u8| [who, at, b'\n'];
        let offsets = thread::scope(|scope| {
            scope.spawn(|| {
                let mut file = OpenOptions::new().append(true).open(&path).unwrap();
                for at in 0..100 {
                    file.write_all(&record(9, at)).unwrap();
                }
            });
            let append = |who| {
                let appended = move |at| {
                    let offset = append(view, node, Some(1), &record(who, at)).unwrap();
                    (offset, record(who, at))
                };
                scope.spawn(move || (0..100).map(appended).collect::<Vec<_>>())
            };
            let threads = [append(1), append(2)];
            threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect::<Vec<_>>()
        });
        let log = fs::read(&path).unwrap();
        assert_eq!(log.len(), 3 * 300);
        for (offset, record) in &offsets {
            let offset = usize::try_from(*offset).unwrap();
            assert_eq!(log[offset..][..3], *record);
        }
        let different: BTreeSet<u64> = offsets.iter().map(|(offset, _)| *offset).collect();
        assert_eq!(different.len(), 200);
    });
}

#[test]
fn a_file_is_written_by_its_identity_where_the_handle_is_gone() {
    each_way(|dir, view| {
        let node = create(view, NodeId::ROOT, "file", 1).unwrap().node;
        let other = create(view, NodeId::ROOT, "other", 2).unwrap().node;
        fs::rename(dir.join("file"), dir.join("moved")).unwrap();
        for handle in [Some(1), None, Some(7), Some(2)] {
            let handle = handle.map(HandleId);
            let write = Mutation::Write { node: node.into(), handle, offset: 0 };
            let written = apply_with(view, write, b"data");
            // Without handles of the file system, what others moved is only found while it is open
            assert!(written.is_ok(), "{handle:?}: {written:?}");
        }
        assert_eq!(fs::read(dir.join("moved")).unwrap(), b"data");
        assert_eq!(attr(view, other).unwrap().size, 0);
        let write = |node| Mutation::Write { node, handle: None, offset: 0 };
        assert_eq!(apply(view, write(ROOT)).unwrap_err(), Errno::EISDIR);
        assert_eq!(apply(view, write(NodeRef::MadeBy(Seq(3)))).unwrap_err(), Errno::EIO);
    });
}

#[test]
fn ranges_are_copied_on_the_host() {
    each_way(|dir, view| {
        let from = create(view, NodeId::ROOT, "from", 1).unwrap().node;
        let to = create(view, NodeId::ROOT, "to", 2).unwrap().node;
        write(view, 1, 0, b"0123456789").unwrap();
        let copy = |source: NodeId, source_offset, node: NodeId, offset, len| {
            let copy = Mutation::CopyRange {
                source: source.into(),
                source_handle: None,
                source_offset,
                node: node.into(),
                handle: Some(HandleId(2)),
                offset,
                len,
            };
            match apply(view, copy)? {
                Outcome::Copied { len, attr } => Ok::<_, Errno>((len, attr.size)),
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(copy(from, 2, to, 1, 4).unwrap(), (4, 5));
        assert_eq!(copy(from, 8, to, 5, u64::MAX >> 1).unwrap(), (2, 7));
        assert_eq!(copy(from, 10, to, 0, 1).unwrap(), (0, 7));
        assert_eq!(fs::read(dir.join("to")).unwrap(), b"\x00234589");
        assert_eq!(copy(from, 0, from, 1, 4).unwrap_err(), Errno::EINVAL);
        assert_eq!(fs::read(dir.join("from")).unwrap(), b"0123456789");
    });
}

#[test]
fn who_lost_a_name_is_told() {
    each_way(|dir, view| {
        fs::write(dir.join("one"), "").unwrap();
        fs::hard_link(dir.join("one"), dir.join("two")).unwrap();
        let node = lookup(view, NodeId::ROOT, "one").unwrap().node;
        let unlink = |text| {
            let occupant = Occupant::Any;
            apply(view, Mutation::Unlink { parent: ROOT, name: name(text), occupant })
        };
        assert_eq!(unlink("one").unwrap(), Outcome::Removed { node, linked: true });
        assert_eq!(unlink("two").unwrap(), Outcome::Removed { node, linked: false });
        assert_eq!(unlink("two").unwrap_err(), Errno::ENOENT);
        let [old, new] = ["old", "new"].map(|text| {
            fs::write(dir.join(text), text).unwrap();
            lookup(view, NodeId::ROOT, text).unwrap().node
        });
        let places = ((NodeId::ROOT, "old"), (NodeId::ROOT, "new"));
        let swapped = rename(view, places.0, places.1, RenameMode::Exchange).unwrap();
        assert_eq!(swapped, Outcome::Renamed { node: old, replaced: Some(new) });
        let replaced = rename(view, places.1, places.0, RenameMode::Replace).unwrap();
        assert_eq!(replaced, Outcome::Renamed { node: old, replaced: Some(new) });
        let moved = rename(view, places.0, places.1, RenameMode::Replace).unwrap();
        assert_eq!(moved, Outcome::Renamed { node: old, replaced: None });
    });
}

#[test]
fn the_time_that_a_program_was_told_is_left() {
    each_way(|dir, view| {
        let at = Time { seconds: 1_000_000_000, nanos: 7 };
        let timed = |mutation| Change { at: Some(at), ..Change::new(mutation) };
        let apply = |mutation| {
            let body = Bytes::from_static(b"data");
            view.apply(view.epoch(), Seq(1), &timed(mutation), &body, &How::First, false).unwrap()
        };
        fs::write(dir.join("there"), "").unwrap();
        let before = fs::metadata(dir.join("there")).unwrap().mtime();
        for text in ["there", "new"] {
            apply(Mutation::Create {
                parent: ROOT,
                name: name(text),
                mode: 0o644,
                exclusive: false,
                premade: None,
                open: None,
            });
        }
        assert_eq!(fs::metadata(dir.join("there")).unwrap().mtime(), before);
        assert_eq!(lookup(view, NodeId::ROOT, "new").unwrap().attr.mtime, at);
        let node = lookup(view, NodeId::ROOT, "there").unwrap().node.into();
        let Outcome::Attr(attr) = apply(Mutation::Write { node, handle: None, offset: 0 }) else {
            panic!("no attributes");
        };
        assert_eq!(attr.mtime, at);
    });
}

#[test]
fn a_restarted_host_finds_nodes_by_their_identity() {
    let dir = tempfile::tempdir().unwrap();
    let share = Share::open(dir.path()).unwrap();
    if !share.finds_by_identity() {
        return;
    }
    let view = share.view();
    let node = create(&view, NodeId::ROOT, "file", 1).unwrap().node;
    let gone = create(&view, NodeId::ROOT, "gone", 2).unwrap().node;
    write(&view, 1, 0, b"data").unwrap();
    drop((view, share));
    fs::create_dir(dir.path().join("sub")).unwrap();
    fs::rename(dir.path().join("file"), dir.path().join("sub/moved")).unwrap();
    fs::remove_file(dir.path().join("gone")).unwrap();
    let view = Share::open(dir.path()).unwrap().view();
    open(&view, node, 1, Access::Read).unwrap();
    assert_eq!(read(&view, 1, 0, 10).unwrap(), "data");
    let guessed = NodeId { generation: node.generation ^ 1 << 40, ..node };
    for wrong in [gone, guessed, NodeId { ino: node.ino + 1, ..node }] {
        assert_eq!(attr(&view, wrong).unwrap_err(), Errno::ESTALE);
    }
}

#[test]
fn what_another_host_made_in_advance_is_not_known_here() {
    each_way(|_, view| {
        let premade = Some(NodeId { ino: 12, generation: 34 });
        let mkdir = Mutation::Mkdir { parent: ROOT, name: name("dir"), mode: 0o755, premade };
        let refused = carry_out(view, mkdir, &How::First).unwrap_err();
        assert_eq!(refused, Refused::conflict(Errno::ESTALE));
        assert_eq!(lookup(view, NodeId::ROOT, "dir").unwrap_err(), Errno::ENOENT);
    });
}

#[test]
fn a_creation_that_a_killed_host_had_carried_out_is_not_refused() {
    each_way(|dir, view| {
        let before = Seen { size: Some(redo::now()), ..Seen::default() };
        let resumed = How::Resumed { before };
        for mutation in creations() {
            let node = made(view, mutation.clone()).node;
            let Ok(Outcome::Entry(entry)) = carry_out(view, mutation, &resumed) else {
                panic!("its own node was in its way");
            };
            assert_eq!(entry.node, node);
        }
        for file in fs::read_dir(dir).unwrap() {
            let path = file.unwrap().path();
            fs::remove_file(&path).or_else(|_| fs::remove_dir(&path)).unwrap();
        }
        for mutation in creations() {
            assert!(matches!(carry_out(view, mutation, &resumed), Ok(Outcome::Entry(_))));
        }
    });
}

#[test]
fn a_creation_does_not_take_what_somebody_else_put_there() {
    each_way(|dir, view| {
        fs::write(dir.join("theirs"), "old").unwrap();
        let birth = lookup(view, NodeId::ROOT, "theirs").unwrap().attr.btime;
        let begun = redo::nanos(birth) + 1;
        for (place, mutation) in ["file", "dir", "link", "fifo"].iter().zip(creations()) {
            fs::hard_link(dir.join("theirs"), dir.join(place)).unwrap();
            for size in [begun, 0] {
                // Born before; born since, but no such thing
                if size == 0 && *place == "file" {
                    continue;
                }
                let before = Seen { size: Some(size), ..Seen::default() };
                let refused = carry_out(view, mutation.clone(), &How::Resumed { before });
                assert_eq!(refused.unwrap_err().errno, Errno::EEXIST, "{place}");
            }
            assert_eq!(fs::read(dir.join(place)).unwrap(), b"old");
        }
    });
}

#[test]
fn what_a_client_had_open_that_never_returns_is_closed_with_its_record() {
    let (dir, state) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let records = Records::open(state.path()).unwrap();
    let share = Share::open(dir.path()).unwrap();
    let [gone, served] = [1, 2].map(|id| {
        let view = share.view_for(SessionId([id; 16]), &records, Map::Squash);
        create(&view, NodeId::ROOT, &format!("file-{id}"), 1).unwrap();
        let (name, occupant) = (name(&format!("file-{id}")), Occupant::Any);
        apply(&view, Mutation::Unlink { parent: ROOT, name, occupant }).unwrap();
        view
    });
    let held = || fs::read_dir(dir.path().join(".p2pfs/held")).unwrap().count();
    assert_eq!(held(), 2);
    for id in [1, 2] {
        records.forget_opens(SessionId([id; 16]));
    }
    share.forget_unrecorded(&records);
    assert_eq!(held(), 2, "both are served");
    drop(gone);
    share.forget_unrecorded(&records);
    assert_eq!(held(), 1);
    drop(served);
}

fn creations() -> [Mutation; 4] {
    let target = Target::new("target").unwrap();
    [
        Mutation::Create {
            parent: ROOT,
            name: name("file"),
            mode: 0o644,
            exclusive: true,
            premade: None,
            open: None,
        },
        Mutation::Mkdir { parent: ROOT, name: name("dir"), mode: 0o755, premade: None },
        Mutation::Symlink { parent: ROOT, name: name("link"), target },
        Mutation::Mknod { parent: ROOT, name: name("fifo"), mode: 0o010_644, rdev: 0 },
    ]
}

fn carry_out(view: &View, mutation: Mutation, how: &How) -> Result<Outcome, Refused> {
    view.apply(view.epoch(), Seq(1), &Change::new(mutation), &Bytes::new(), how, false)
}

fn append(view: &View, node: NodeId, handle: Option<u64>, data: &[u8]) -> Result<u64, Errno> {
    let handle = handle.map(HandleId);
    let append = Mutation::Append { node: node.into(), handle, size: 0 };
    match apply_with(view, append, data)? {
        Outcome::Appended { offset, .. } => Ok(offset),
        other => panic!("{other:?}"),
    }
}
