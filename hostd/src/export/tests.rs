mod calls;
mod entries;
mod owned;

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::time::{Duration, Instant};

use p2pfs::id::{HandleId, NodeId, Seq};
use p2pfs::limits::BODY_BYTES_MAX;
use p2pfs::net::serve::Export;
use p2pfs::wire::call::{Access, Attr, Call, Reply, Time, XattrName};
use p2pfs::wire::errno::Errno;
use p2pfs::wire::log::{
    AttrChange, Mutation, NodeRef, Occupant, Opening, Outcome, RenameMode, SetTime,
};
use p2pfs::wire::name::{Name, Target};

use super::Share;
use calls::{
    apply, apply_with, attr, call, create, each_way, list, lookup, made, name, open, page, read,
    release, rename, set_attr, write,
};

const ROOT: NodeRef = NodeRef::Node(NodeId::ROOT);

/// Whether a test must be left out because only root can run it; with `CI=true` that is a failure.
pub(super) fn lacks_root() -> bool {
    let lacks = !rustix::process::geteuid().is_root();
    if lacks {
        assert!(std::env::var_os("CI").is_none(), "SKIPPED: not root (not allowed with CI=true)");
        eprintln!("SKIPPED: not root");
    }
    lacks
}

#[test]
fn a_node_has_the_number_that_stat_shows() {
    each_way(|dir, view| {
        fs::write(dir.join("file"), "hello").unwrap();
        let entry = lookup(view, NodeId::ROOT, "file").unwrap();
        let stat = fs::metadata(dir.join("file")).unwrap();
        assert_eq!(entry.node.ino, stat.ino());
        assert_eq!((entry.attr.size, entry.attr.mode & 0xffff), (5, stat.mode()));
        assert!(attr(view, NodeId::ROOT).unwrap().is_dir());
    });
}

#[test]
fn hard_links_are_one_node() {
    each_way(|dir, view| {
        fs::write(dir.join("one"), "").unwrap();
        let one = lookup(view, NodeId::ROOT, "one").unwrap();
        let two =
            made(view, Mutation::Link { node: one.node.into(), parent: ROOT, name: name("two") });
        assert_eq!((two.node, two.attr.nlink), (one.node, 2));
        assert_eq!(lookup(view, NodeId::ROOT, "two").unwrap().node, one.node);
    });
}

#[test]
fn names_are_bytes() {
    each_way(|dir, view| {
        for odd in [&b"\xff\xfe"[..], b" ", b"-rf", b"a\nb", b"...", b"\\", &[b'x'; 255]] {
            let name = Name::new(odd).unwrap();
            let entry = made(
                view,
                Mutation::Mkdir { parent: ROOT, name: name.clone(), mode: 0o755, premade: None },
            );
            let listed = list(view, NodeId::ROOT, 10);
            let found = listed.iter().find(|entry| entry.name == name).unwrap();
            assert_eq!(found.entry.node, entry.node);
        }
        assert_eq!(fs::read_dir(dir).unwrap().count(), 7);
    });
}

#[test]
fn no_name_and_no_symlink_leads_out() {
    each_way(|dir, view| {
        let outside = tempfile::tempdir().unwrap();
        fs::write(outside.path().join("secret"), "s").unwrap();
        symlink(outside.path(), dir.join("way_out")).unwrap();
        symlink("..", dir.join("up")).unwrap();
        for bad in ["..", ".", "/etc", "a/b", ""] {
            assert!(Name::new(bad).is_err());
        }
        for link in ["way_out", "up"] {
            let entry = lookup(view, NodeId::ROOT, link).unwrap();
            assert_eq!(entry.attr.kind(), 0o120_000);
            assert_eq!(lookup(view, entry.node, "secret").unwrap_err(), Errno::ENOTDIR);
            let error = open(view, entry.node, 1, Access::Read).unwrap_err();
            assert_eq!(error.number(), libc::ENXIO);
            assert_eq!(create(view, entry.node, "new", 2).unwrap_err(), Errno::ENOTDIR);
        }
        let link = lookup(view, NodeId::ROOT, "up").unwrap().node;
        let Reply::Target(target) = call(view, Call::ReadLink { node: link }).unwrap() else {
            panic!("no target");
        };
        assert_eq!(target, Target::new("..").unwrap());
        assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 1);
    });
}

#[test]
fn what_is_ours_is_hidden_in_the_root_only() {
    each_way(|dir, view| {
        fs::create_dir_all(dir.join(".p2pfs")).unwrap();
        fs::create_dir_all(dir.join("sub/.p2pfs")).unwrap();
        assert_eq!(lookup(view, NodeId::ROOT, ".p2pfs").unwrap_err(), Errno::ENOENT);
        assert_eq!(list(view, NodeId::ROOT, 10).len(), 1);
        let sub = lookup(view, NodeId::ROOT, "sub").unwrap().node;
        lookup(view, sub, ".p2pfs").unwrap();
        assert_eq!(list(view, sub, 10).len(), 1);
    });
}

#[test]
fn a_listing_tells_what_a_lookup_tells() {
    each_way(|dir, view| {
        fs::write(dir.join("file"), "hello").unwrap();
        fs::create_dir(dir.join("dir")).unwrap();
        symlink("nowhere", dir.join("link")).unwrap();
        fs::write(dir.join("described"), "").unwrap();
        let flags = rustix::fs::XattrFlags::CREATE;
        rustix::fs::setxattr(dir.join("described"), "user.word", b"x", flags).unwrap();
        let listed = list(view, NodeId::ROOT, 10);
        assert_eq!(listed.len(), 4);
        for found in listed {
            let name = String::from_utf8(found.name.as_bytes().to_vec()).unwrap();
            assert_eq!(found.entry, lookup(view, NodeId::ROOT, &name).unwrap(), "{name}");
            let bare = found.entry.attr.mode & Attr::NO_XATTRS != 0;
            assert_eq!(bare, name != "described", "{name}");
        }
    });
}

#[test]
fn another_file_system_is_not_shown() {
    if lacks_root() {
        return;
    }
    each_way(|dir, view| {
        let (on, beside) = (dir.join("mounted"), dir.join("beside"));
        fs::create_dir(&on).unwrap();
        fs::create_dir(beside).unwrap();
        rustix::mount::mount_bind(dir.join("beside"), &on).unwrap();
        let listed = list(view, NodeId::ROOT, 10);
        rustix::mount::unmount(&on, rustix::mount::UnmountFlags::DETACH).unwrap();
        let names: Vec<_> = listed.iter().map(|found| found.name.as_bytes()).collect();
        assert_eq!(names, [b"beside"]);
        assert_eq!(list(view, NodeId::ROOT, 10).len(), 2);
    });
}

#[test]
fn the_space_of_what_is_removed_is_free_behind_the_answer() {
    each_way(|dir, view| {
        fs::write(dir.join("file"), "hello").unwrap();
        let file = lookup(view, NodeId::ROOT, "file").unwrap().node;
        let fd = view.nodes().find(file).unwrap();
        let gone = std::sync::Arc::downgrade(&fd);
        drop(fd);
        let name = name("file");
        let occupant = Occupant::Node(file.into());
        apply(view, Mutation::Unlink { parent: ROOT, name, occupant }).unwrap();
        assert!(gone.upgrade().is_none());
        let rest = view.rest().expect("the last descriptor is still open");
        assert!(view.rest().is_none(), "one sees to all");
        rest.run();
        assert!(view.rest().is_none());
        assert_eq!(attr(view, file).unwrap_err(), Errno::ESTALE);
    });
}

#[test]
fn a_renamed_node_stays_the_same_node() {
    each_way(|dir, view| {
        fs::create_dir_all(dir.join("a/b")).unwrap();
        fs::write(dir.join("a/b/file"), "x").unwrap();
        let a = lookup(view, NodeId::ROOT, "a").unwrap().node;
        let b = lookup(view, a, "b").unwrap().node;
        let file = lookup(view, b, "file").unwrap().node;
        rename(view, (a, "b"), (NodeId::ROOT, "moved"), RenameMode::NoReplace).unwrap();
        rename(view, (b, "file"), (b, "other"), RenameMode::Replace).unwrap();
        view.share.nodes.drop_descriptors();
        assert_eq!(attr(view, file).unwrap().size, 1);
        assert_eq!(lookup(view, b, "other").unwrap().node, file);
        fs::write(dir.join("in_the_way"), "").unwrap();
        let refused =
            rename(view, (b, "other"), (NodeId::ROOT, "in_the_way"), RenameMode::NoReplace);
        assert_eq!(refused.unwrap_err(), Errno::EEXIST);
        rename(view, (b, "other"), (NodeId::ROOT, "in_the_way"), RenameMode::Exchange).unwrap();
        view.share.nodes.drop_descriptors();
        assert_eq!(attr(view, file).unwrap().size, 1);
    });
}

#[test]
fn a_number_that_is_used_again_is_another_node() {
    each_way(|dir, view| {
        fs::write(dir.join("file"), "old").unwrap();
        let old = lookup(view, NodeId::ROOT, "file").unwrap().node;
        fs::remove_file(dir.join("file")).unwrap();
        view.share.nodes.drop_descriptors();
        fs::write(dir.join("file"), "new").unwrap();
        assert_eq!(attr(view, old).unwrap_err(), Errno::ESTALE);
        assert_ne!(lookup(view, NodeId::ROOT, "file").unwrap().node, old);
    });
}

#[test]
fn a_forgotten_node_is_found_by_a_new_lookup() {
    each_way(|dir, view| {
        fs::write(dir.join("file"), "").unwrap();
        let node = lookup(view, NodeId::ROOT, "file").unwrap().node;
        let nodes = vec![node, node];
        call(view, Call::Forget { nodes }).unwrap();
        assert_eq!(lookup(view, NodeId::ROOT, "file").unwrap().node, node);
        attr(view, node).unwrap();
        let unknown = NodeId { ino: 7, generation: 7 };
        assert_eq!(attr(view, unknown).unwrap_err(), Errno::ESTALE);
    });
}

#[test]
fn an_open_file_without_a_name_is_read_and_written() {
    each_way(|dir, view| {
        let node = create(view, NodeId::ROOT, "file", 1).unwrap().node;
        write(view, 1, 0, b"kept").unwrap();
        apply(view, Mutation::Unlink { parent: ROOT, name: name("file"), occupant: Occupant::Any })
            .unwrap();
        view.share.nodes.drop_descriptors();
        assert!(!dir.join("file").exists());
        assert_eq!(read(view, 1, 0, 100).unwrap(), "kept");
        assert_eq!(attr(view, node).unwrap().nlink, 0);
        write(view, 1, 4, b" on").unwrap();
        let handle = Some(HandleId(1));
        let Ok(Reply::Attr(attr)) = call(view, Call::GetAttr { node, handle }) else {
            panic!("no attributes");
        };
        assert_eq!(attr.size, 7);
        call(view, release(1)).unwrap();
        call(view, release(1)).unwrap();
        assert_eq!(read(view, 1, 0, 1).unwrap_err(), Errno::EBADF);
    });
}

#[test]
fn the_creator_may_write_a_file_that_is_read_only() {
    each_way(|dir, view| {
        let create = Mutation::Create {
            parent: ROOT,
            name: name("file"),
            mode: 0o444,
            exclusive: true,
            premade: None,
            open: Some(Opening { handle: HandleId(1), access: Access::Write }),
        };
        let entry = made(view, create.clone());
        assert_eq!(entry.attr.mode & 0o777, 0o444);
        assert_eq!(write(view, 1, 3, b"abc").unwrap().size, 6);
        assert_eq!(fs::read(dir.join("file")).unwrap(), b"\0\0\0abc");
        assert_eq!(apply(view, create).unwrap_err(), Errno::EEXIST);
    });
}

#[test]
fn a_create_that_is_not_exclusive_opens_what_is_there() {
    each_way(|dir, view| {
        fs::write(dir.join("file"), "there").unwrap();
        symlink("file", dir.join("link")).unwrap();
        let entry = create(view, NodeId::ROOT, "file", 1).unwrap();
        assert_eq!(entry.attr.size, 5);
        assert_eq!(read(view, 1, 1, 3).unwrap(), "her");
        let error = create(view, NodeId::ROOT, "link", 2).unwrap_err();
        assert_eq!(error.number(), libc::ELOOP);
    });
}

#[test]
fn a_read_ends_at_the_end_of_the_file_only() {
    each_way(|dir, view| {
        let data: Vec<u8> = (0..BODY_BYTES_MAX + 10).map(|at| at as u8).collect();
        fs::write(dir.join("file"), &data).unwrap();
        let node = lookup(view, NodeId::ROOT, "file").unwrap().node;
        open(view, node, 1, Access::Read).unwrap();
        open(view, node, 1, Access::Read).unwrap();
        assert_eq!(read(view, 1, 0, BODY_BYTES_MAX as u32).unwrap(), data[..BODY_BYTES_MAX]);
        let end = BODY_BYTES_MAX as u64;
        assert_eq!(read(view, 1, end, 100).unwrap(), data[BODY_BYTES_MAX..]);
        assert_eq!(read(view, 1, end + 10, 100).unwrap(), "");
        let too_long = BODY_BYTES_MAX as u32 + 1;
        assert_eq!(read(view, 1, 0, too_long).unwrap_err(), Errno::EINVAL);
        assert_eq!(write(view, 1, 0, b"x").unwrap_err(), Errno::EBADF);
    });
}

#[test]
fn five_thousand_entries_are_listed_while_some_are_deleted() {
    each_way(|dir, view| {
        for at in 0..5000 {
            fs::write(dir.join(format!("file_{at}")), "").unwrap();
        }
        open(view, NodeId::ROOT, 1, Access::Read).unwrap();
        let (mut cookie, mut seen) = (0, Vec::new());
        loop {
            let page = page(view, NodeId::ROOT, cookie, 300);
            seen.extend(page.entries.iter().map(|entry| entry.name.clone()));
            if page.end {
                break;
            }
            cookie = page.entries.last().unwrap().cookie;
            // Behind the reader and in front of it, one of them just listed
            let _ = fs::remove_file(dir.join(format!("file_{}", 2 * seen.len())));
            let last = String::from_utf8(seen.last().unwrap().as_bytes().to_vec()).unwrap();
            let _ = fs::remove_file(dir.join(last));
        }
        let listed = seen.len();
        seen.sort();
        seen.dedup();
        assert_eq!(seen.len(), listed, "an entry was listed twice");
        for entry in fs::read_dir(dir).unwrap() {
            let left = Name::new(entry.unwrap().file_name().into_encoded_bytes()).unwrap();
            assert!(seen.binary_search(&left).is_ok(), "{left:?} was not listed");
        }
    });
}

#[test]
fn attributes_are_set_together() {
    each_way(|dir, view| {
        fs::write(dir.join("file"), "0123456789").unwrap();
        let node = lookup(view, NodeId::ROOT, "file").unwrap().node;
        let before_1970 = Time { seconds: -86_400, nanos: 999_999_999 };
        let attr = set_attr(
            view,
            node,
            AttrChange {
                size: Some(4),
                mode: Some(0o4751),
                mtime: Some(SetTime::At(before_1970)),
                ..AttrChange::default()
            },
        )
        .unwrap();
        assert_eq!((attr.size, attr.mode & 0xffff, attr.mtime), (4, 0o104_751, before_1970));
        assert!(attr.lacks_xattrs(), "told along, so that nobody need ask");
        let stat = fs::metadata(dir.join("file")).unwrap();
        assert_eq!((stat.mtime(), stat.mtime_nsec()), (-86_400, 999_999_999));
        let mut bad = before_1970;
        bad.nanos = 0x3fff_ffff;
        let change = AttrChange { atime: Some(SetTime::At(bad)), ..AttrChange::default() };
        assert_eq!(set_attr(view, node, change).unwrap_err(), Errno::EINVAL);
    });
}

/// A file that was written a moment ago is read for sure, unless somebody may still be writing.
#[test]
fn what_has_just_changed_is_of_its_version_when_nobody_writes() {
    // a file system whose writers this kernel knows
    let dir = tempfile::tempdir_in("/dev/shm").unwrap();
    let view = Share::open(dir.path()).unwrap().view();
    let path = dir.path().join("file");
    fs::write(&path, "hello").unwrap();
    let node = lookup(&view, NodeId::ROOT, "file").unwrap().node;
    open(&view, node, 1, Access::Read).unwrap();
    let is_recent = || {
        let read = Call::ReadVersion { handle: HandleId(1), offset: 0, len: 10 };
        match view.call(read).unwrap() {
            (Reply::Version(found), data) if data == "hello" => found.recent,
            other => panic!("{other:?}"),
        }
    };
    let written = Instant::now();
    while is_recent() {
        assert!(written.elapsed() < Duration::from_secs(1), "as if somebody wrote");
    }
    let writer = fs::OpenOptions::new().append(true).open(&path).unwrap();
    assert!(is_recent());
    drop(writer);
    assert!(!is_recent());
}

#[test]
fn a_symlinks_own_times_are_set() {
    each_way(|dir, view| {
        fs::write(dir.join("file"), "").unwrap();
        let untouched = fs::metadata(dir.join("file")).unwrap().mtime();
        let link = made(
            view,
            Mutation::Symlink {
                parent: ROOT,
                name: name("link"),
                target: Target::new("file").unwrap(),
            },
        );
        let at = Time { seconds: 12, nanos: 34 };
        let change = AttrChange { mtime: Some(SetTime::At(at)), ..AttrChange::default() };
        assert_eq!(set_attr(view, link.node, change).unwrap().mtime, at);
        assert_eq!(fs::metadata(dir.join("file")).unwrap().mtime(), untouched);
        let change = AttrChange { mode: Some(0o600), ..AttrChange::default() };
        assert_eq!(set_attr(view, link.node, change).unwrap_err(), Errno::EOPNOTSUPP);
    });
}

#[test]
fn special_files_are_made_and_never_waited_for() {
    each_way(|dir, view| {
        let fifo = made(
            view,
            Mutation::Mknod { parent: ROOT, name: name("fifo"), mode: 0o010_640, rdev: 0 },
        );
        assert_eq!(fifo.attr.mode & 0xffff, 0o010_640);
        assert!(open(view, fifo.node, 1, Access::Read).is_err());
        assert!(create(view, NodeId::ROOT, "fifo", 1).is_err());
        let change = AttrChange { size: Some(0), ..AttrChange::default() };
        assert_eq!(set_attr(view, fifo.node, change).unwrap_err(), Errno::EINVAL);
        assert!(dir.join("fifo").exists());
    });
}

#[test]
fn extended_attributes_answer_as_the_host_does() {
    each_way(|dir, view| {
        fs::write(dir.join("file"), "").unwrap();
        let node = lookup(view, NodeId::ROOT, "file").unwrap().node;
        let xattr = |name: &str| XattrName(name.into());
        let get = |name: &str| {
            let name = xattr(name);
            view.call(Call::GetXattr { node, name }).map(|(_, body)| body)
        };
        assert_eq!(get("user.none").unwrap_err().number(), libc::ENODATA);
        let set = |flags| {
            let name = xattr("user.colour");
            let set = Mutation::SetXattr { node: node.into(), name, flags };
            apply_with(view, set, b"red")
        };
        set(1).unwrap();
        assert_eq!(set(1).unwrap_err(), Errno::EEXIST);
        assert_eq!(get("user.colour").unwrap(), "red");
        assert!(get("").unwrap().ends_with(b"user.colour\0"));
        let name = xattr("user.colour");
        apply(view, Mutation::RemoveXattr { node: node.into(), name }).unwrap();
        assert_eq!(get("user.colour").unwrap_err().number(), libc::ENODATA);
    });
}

#[test]
fn everything_else_is_what_the_disk_says() {
    each_way(|dir, view| {
        let sub = made(
            view,
            Mutation::Mkdir { parent: ROOT, name: name("sub"), mode: 0o1777, premade: None },
        );
        assert_eq!(sub.attr.mode & 0xffff, 0o041_777);
        let file = create(view, sub.node, "file", 1).unwrap();
        let occupant = Occupant::Any;
        let rmdir = Mutation::Rmdir { parent: ROOT, name: name("sub"), occupant };
        assert_eq!(apply(view, rmdir).unwrap_err().number(), libc::ENOTEMPTY);
        let allocate = Mutation::Fallocate {
            node: file.node.into(),
            handle: Some(HandleId(1)),
            offset: 0,
            len: 8192,
            mode: 0,
        };
        let Outcome::Attr(attr) = apply(view, allocate).unwrap() else {
            panic!("no attributes");
        };
        assert_eq!(attr.size, 8192);
        let sync =
            |handle| Call::Sync { handle: HandleId(handle), data_only: true, upto: Seq::ZERO };
        call(view, sync(1)).unwrap();
        assert_eq!(call(view, sync(9)).unwrap_err(), Errno::EBADF);
        let Ok(Reply::StatFs(space)) = call(view, Call::StatFs) else {
            panic!("no space");
        };
        assert!(space.blocks > 0 && space.namelen == 255);
        let _ = fs::set_permissions(dir.join("sub"), fs::Permissions::from_mode(0o755));
    });
}
