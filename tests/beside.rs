//! Two mounts of one host, and a process on the host, beside each other (D1, D2).

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::Duration;

use rustix::fs::{Advice, fadvise};
use rustix::process::{Signal, kill_process};

use crate::world::{Home, Outcome, Side, eventually, is_mounted, need_mount};

/// Records of each writer.
const RECORDS: usize = 300;
/// How long a command may take.
const COMMAND: Duration = Duration::from_secs(60);
/// How long the kernel may show a name from before.
const SHOWN: Duration = Duration::from_secs(5);

/// A home with a second mount of the same share.
struct Two {
    home: Home,
    other: PathBuf,
}

impl Two {
    fn mounted() -> Self {
        let home = Home::on_loopback();
        home.mount("timeout=20");
        let other = home.world.directory("other");
        let two = Self { home, other };
        let source = two.home.key.source("disk");
        two.mountd(&["mount", &source, two.other.to_str().unwrap(), "-o", "timeout=20"]);
        two
    }

    /// A command of the other client's user.
    fn mountd(&self, args: &[&str]) {
        let state = self.home.world.path("other-state");
        Outcome::of(self.home.world.program_in(Side::Client, &state, args), COMMAND).ok();
    }

    fn unmount(&self) {
        self.mountd(&["unmount", self.other.to_str().unwrap()]);
        self.home.unmount();
    }
}

#[test]
fn appends_from_everywhere_lose_no_record() {
    need_mount!();
    let two = Two::mounted();
    let dirs = [&two.home.mountpoint, &two.other, &two.home.disk, &two.home.mountpoint];
    fs::write(two.home.disk.join("log"), "").unwrap();
    let writers = dirs.into_iter().enumerate().map(|(number, dir)| {
        let path = dir.join("log");
        thread::spawn(move || append(&path, number))
    });
    for writer in writers.collect::<Vec<_>>() {
        writer.join().unwrap();
    }

    let log = fs::read_to_string(two.home.disk.join("log")).unwrap();
    let mut seen = BTreeMap::new();
    for line in log.lines() {
        *seen.entry(line.to_owned()).or_insert(0) += 1;
    }
    let expected = (0..4).flat_map(|writer| (0..RECORDS).map(move |at| record(writer, at)));
    for record in expected {
        assert_eq!(seen.remove(&record), Some(1), "{record}");
    }
    assert!(seen.is_empty(), "{seen:?}");
    for dir in [&two.home.mountpoint, &two.other] {
        assert_eq!(fs::read_to_string(dir.join("log")).unwrap(), log);
    }
    two.unmount();
}

#[test]
fn each_sees_what_another_has_closed_and_renamed() {
    need_mount!();
    let two = Two::mounted();
    let (one, other, disk) = (&two.home.mountpoint, &two.other, &two.home.disk);

    for round in 0..20 {
        let text = format!("{round} ").repeat(5000 - 200 * round);
        let writer = [one, other, disk][round % 3];
        fs::write(writer.join("file"), &text).unwrap();
        for reader in [one, other, disk] {
            assert!(fs::read_to_string(reader.join("file")).unwrap() == text, "round {round}");
        }
    }

    fs::rename(one.join("file"), one.join("moved")).unwrap();
    for reader in [other, disk] {
        let moved = || !reader.join("file").exists() && reader.join("moved").exists();
        eventually("the new name", SHOWN, moved);
    }
    // an editor's save, on the host
    fs::write(disk.join("new"), "saved").unwrap();
    fs::rename(disk.join("new"), disk.join("moved")).unwrap();
    for reader in [one, other] {
        let saved = || fs::read(reader.join("moved")).is_ok_and(|data| data == b"saved");
        eventually("the new file", SHOWN, saved);
    }
    two.unmount();
}

#[test]
fn one_read_never_mixes_what_was_cached_with_what_is_new() {
    need_mount!();
    let home = Home::on_loopback();
    home.mount("timeout=20");
    let (shown, host) = (home.mountpoint.join("file"), home.disk.join("file"));
    let len = 96 << 10;
    fs::write(&host, vec![0; len]).unwrap();
    let reader = File::open(&shown).unwrap();
    let mut data = vec![0; len];
    for round in 1..30_u8 {
        // the middle is cached; the kernel's pages are not what is tried here
        forget_pages(&reader);
        reader.read_exact_at(&mut data[..8192], 32 << 10).unwrap();
        File::options()
            .write(true)
            .open(&host)
            .unwrap()
            .write_all_at(&vec![round; len], 0)
            .unwrap();
        forget_pages(&reader);
        reader.read_exact_at(&mut data, 0).unwrap();
        assert!(data.iter().all(|byte| *byte == data[0]), "mixed in round {round}");
    }
    drop(reader);
    home.unmount();
}

/// N1: what still delivers when its mount is gone leaves the next mount at the same place alone.
#[test]
fn who_ends_late_leaves_the_next_mount_alone() {
    need_mount!();
    let home = Home::on_loopback();
    home.mount("timeout=20");
    fs::write(home.disk.join("seen"), "by the next").unwrap();
    let late = home.world.processes_of(b"p2pfs-mountd");
    let [late] = late[..] else { panic!("{late:?}") };
    kill_process(late, Signal::STOP).unwrap();
    let unmounted = Command::new("umount").arg("-l").arg(&home.mountpoint).status();
    assert!(unmounted.unwrap().success());
    eventually("the mount to be gone", SHOWN, || !is_mounted(&home.mountpoint));

    let state = home.world.path("other-state");
    let place = home.mountpoint.to_str().unwrap();
    let source = home.key.source("disk");
    let mount = home.world.program_in(Side::Client, &state, &["mount", &source, place]);
    Outcome::of(mount, COMMAND).ok();
    kill_process(late, Signal::CONT).unwrap();
    eventually("the first to end", COMMAND, || {
        !home.world.processes_of(b"p2pfs-mountd").contains(&late)
    });
    assert!(is_mounted(&home.mountpoint), "the first has taken the second along");
    assert_eq!(fs::read_to_string(home.mountpoint.join("seen")).unwrap(), "by the next");
    let unmount = home.world.program_in(Side::Client, &state, &["unmount", place]);
    Outcome::of(unmount, COMMAND).ok();
}

fn append(path: &Path, writer: usize) {
    let mut log = OpenOptions::new().append(true).open(path).unwrap();
    for at in 0..RECORDS {
        log.write_all(format!("{}\n", record(writer, at)).as_bytes()).unwrap();
    }
}

/// Of different lengths, some longer than a page.
fn record(writer: usize, at: usize) -> String {
    format!("{writer}:{at}:{}", "x".repeat(if at.is_multiple_of(50) { 9000 } else { at }))
}

/// No read-ahead either: then a read asks for what it wants only.
fn forget_pages(file: &File) {
    fadvise(file, 0, None, Advice::Random).unwrap();
    fadvise(file, 0, None, Advice::DontNeed).unwrap();
}

/// What was asked for a moment ago says nothing about now: names, listings, contents.
#[test]
fn what_the_host_makes_is_there_at_once() {
    need_mount!();
    let home = Home::on_loopback();
    home.mount("timeout=20");
    let names = |dir: &Path| -> Vec<_> {
        let mut names: Vec<_> =
            fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        names
    };
    fs::create_dir(home.mountpoint.join("new")).unwrap();
    for round in 0..50 {
        let name = format!("new/{round:02}");
        let (here, there) = (home.mountpoint.join(&name), home.disk.join(&name));
        assert!(!here.exists());
        assert_eq!(names(&home.mountpoint.join("new")).len(), round);
        fs::write(&there, "first").unwrap();
        assert_eq!(fs::read_to_string(&here).unwrap(), "first");
        assert_eq!(names(&home.mountpoint.join("new")), names(&home.disk.join("new")));
        fs::write(&there, "second, longer").unwrap();
        assert_eq!(fs::read_to_string(&here).unwrap(), "second, longer");
    }
    home.unmount();
}
