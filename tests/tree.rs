//! A tree of real-looking files crosses in and out, and is the same on the host's disk (D1, D6).

mod compare;
mod generate;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use tempfile::TempDir;

use crate::world::outcome::tool;
use crate::world::{Home, need_mount, need_root, programs, skip};
use compare::Tree;

#[test]
fn a_tree_crosses_with_a_small_cache() {
    need_mount!();
    crosses("8M");
}

#[test]
fn a_tree_crosses_with_a_large_cache() {
    need_mount!();
    crosses("512M");
}

#[test]
fn everything_that_a_node_has_crosses_as_root() {
    need_mount!();
    need_root!();
    if let Some(reason) = programs::missing(&["cp", "rsync", "setfacl", "setcap"]) {
        return skip(&reason);
    }
    let home = Home::on_loopback_with(&["--authorise", "--map", "identity"], |_| {});
    let source = home.world.path("original");
    fs::create_dir(&source).unwrap();
    generate::everything(&source);
    let original = Tree::read(&source);

    home.mount("allow_other,timeout=20");
    for tool in ["cp", "rsync-all"] {
        let inside = home.mountpoint.join(tool);
        copy(tool, &source, &inside);
        home.sync();
        original.assert_same(&Tree::read(&home.disk.join(tool)));
        original.assert_same(&Tree::read(&inside));
        let out = home.world.path(tool);
        copy(tool, &inside, &out);
        original.assert_same(&Tree::read(&out));
    }
    home.unmount();
}

/// `tar` leaves sockets out, so what it unpacks is compared with what it unpacks on the disk.
#[test]
fn an_archive_is_unpacked_and_packed_as_on_the_disk() {
    need_mount!();
    need_root!();
    if let Some(reason) = programs::missing(&["tar", "setfacl", "setcap"]) {
        return skip(&reason);
    }
    let home = Home::on_loopback_with(&["--authorise", "--map", "identity"], |_| {});
    let source = home.world.directory("original");
    generate::everything(&source);
    let archive = home.world.path("archive");
    pack(&source, &archive);
    home.mount("allow_other,timeout=20");

    let (here, plain) = (home.mountpoint.join("there"), home.world.directory("plain"));
    fs::create_dir(&here).unwrap();
    for to in [&here, &plain] {
        let (archive, to) = (archive.to_str().unwrap(), to.to_str().unwrap());
        let kept = ["--xattrs", "--xattrs-include=*", "--acls", "-p"];
        tool("tar", &[&kept[..], &["-xf", archive, "-C", to]].concat());
    }
    home.sync();
    let unpacked = Tree::read(&plain);
    unpacked.assert_same(&Tree::read(&here));
    unpacked.assert_same(&Tree::read(&home.disk.join("there")));
    let (again, from_disk) = (home.world.path("again"), home.world.path("from-disk"));
    pack(&here, &again);
    pack(&plain, &from_disk);
    assert!(fs::read(again).unwrap() == fs::read(from_disk).unwrap(), "the archives differ");
    home.unmount();
}

#[test]
fn names_are_bytes_and_identities_are_the_hosts() {
    need_mount!();
    let home = Home::on_loopback();
    home.mount("timeout=20");

    generate::odd_names(&home.mountpoint);
    home.sync();
    let here = Tree::read(&home.mountpoint);
    let there = Tree::read(&home.disk);
    here.assert_same(&there);
    here.assert_same_inodes(&there);

    home.unmount();
}

#[test]
fn a_tree_is_removed_as_it_came() {
    need_mount!();
    let home = Home::on_loopback();
    home.mount("timeout=20");
    let bed = home.mountpoint.join("bed");

    copy("cp", &Original::get().path, &bed);
    fs::rename(&bed, home.mountpoint.join("moved")).unwrap();
    fs::remove_dir_all(home.mountpoint.join("moved")).unwrap();
    home.sync();
    let left: Vec<_> = fs::read_dir(&home.disk)
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .filter(|name| name != ".p2pfs")
        .collect();
    assert_eq!(left, ["hello"]);

    home.unmount();
}

/// In and out with both tools, seen on the host's disk, on the mount and on a fresh mount.
fn crosses(cache: &str) {
    if let Some(reason) = programs::missing(&["cp", "rsync"]) {
        return skip(&reason);
    }
    let home = Home::on_loopback();
    let options = format!("timeout=20,cache={cache}");
    let source = Original::get();
    let original = Tree::read(&source.path);
    assert!(original.files() >= 2_000, "{} files", original.files());

    for tool in ["cp", "rsync"] {
        home.mount(&options);
        let inside = home.mountpoint.join(tool);
        copy(tool, &source.path, &inside);
        home.sync();
        original.assert_same(&Tree::read(&home.disk.join(tool)));
        original.assert_same(&Tree::read(&inside));
        home.unmount();

        home.mount(&options);
        original.assert_same(&Tree::read(&inside));
        let out = home.world.path("out");
        copy(tool, &inside, &out);
        original.assert_same(&Tree::read(&out));
        fs::remove_dir_all(&out).unwrap();
        home.unmount();
        fs::remove_dir_all(home.disk.join(tool)).unwrap();
    }
}

/// Packs all that tar can, so that the same tree is the same bytes.
#[track_caller]
fn pack(from: &Path, archive: &Path) {
    let (from, archive) = (from.to_str().unwrap(), archive.to_str().unwrap());
    let kept = ["--xattrs", "--xattrs-include=*", "--acls", "--sort=name"];
    let format = ["--format=posix", "--pax-option=delete=atime,delete=ctime,exthdr.name=%d/%f"];
    tool("tar", &[&kept[..], &format[..], &["-cf", archive, "-C", from, "."]].concat());
}

/// Copies a whole directory, all that can be kept, to one that does not exist.
#[track_caller]
fn copy(program: &str, from: &Path, to: &Path) {
    let mut source = from.to_str().unwrap().to_owned();
    let to = to.to_str().unwrap();
    match program {
        "cp" => tool("cp", &["-a", &source, to]),
        "rsync-all" => {
            source.push('/');
            tool("rsync", &["-aHAXS", &source, to])
        }
        _ => {
            source.push('/');
            tool("rsync", &["-aH", &source, to])
        }
    };
}

/// The tree that is copied: made once for the tests that run at one time, removed after the last.
struct Original {
    _dir: TempDir,
    path: PathBuf,
}

impl Original {
    fn get() -> Arc<Self> {
        static CURRENT: Mutex<Weak<Original>> = Mutex::new(Weak::new());
        let mut current = CURRENT.lock().unwrap_or_else(PoisonError::into_inner);
        current.upgrade().unwrap_or_else(|| {
            let dir = tempfile::Builder::new().prefix("p2pfs-tree.").tempdir();
            let dir = dir.unwrap();
            let path = dir.path().join("original");
            generate::tree(&path);
            let original = Arc::new(Self { _dir: dir, path });
            *current = Arc::downgrade(&original);
            original
        })
    }
}
