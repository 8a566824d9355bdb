//! What one key has left another key of the same owner delivers, and the host tells who is away
//! with changes (D3, N1).

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::process::{Signal, kill_process};
use serde_json::Value;

use crate::world::home::Second;
use crate::world::marker::Times;
use crate::world::{Home, Outcome, Paired, Side, eventually, is_mounted, need_mount};

const BYTES: usize = 8 << 20;
const LIMIT: Duration = Duration::from_secs(30);

impl Home {
    /// A mount that has written `late` since its host was killed.
    fn late(&mut self, options: &str) -> File {
        self.mount(options);
        let mut late = File::create(self.mountpoint.join("late")).unwrap();
        late.sync_all().unwrap();
        self.host.kill_now();
        late.write_all(&vec![b'x'; BYTES]).unwrap();
        late
    }

    fn pull_until_locked(&self) {
        self.key.pull();
        eventually("the mount to be locked", LIMIT, || {
            !is_mounted(&self.mountpoint) && self.world.is_locked()
        });
    }

    fn is_on_disk(&self) -> bool {
        let late = fs::read(self.disk.join("late")).unwrap();
        late.len() == BYTES && late.iter().all(|byte| *byte == b'x')
    }

    /// Mounts with another key on the same machine.
    #[track_caller]
    fn mount_with(&self, key: &Paired, mountpoint: &Path) -> Outcome {
        self.world.mount(&key.source("disk"), mountpoint, "timeout=20").ok()
    }

    /// Who is away with changes, as the host's owner sees it.
    fn absent(&self) -> Vec<Value> {
        self.world.status(Side::Host)["absent"].as_array().unwrap().clone()
    }

    fn end_locked(&self) {
        self.world.mountd(&["unmount", self.mountpoint.to_str().unwrap()]).ok();
    }
}

impl Second {
    fn absent(&self, home: &Home) -> Vec<Value> {
        self.status(home)["absent"].as_array().unwrap().clone()
    }
}

/// The stick is broken: its owner takes it off the list, and pairs another one.
#[test]
fn another_key_of_the_owner_delivers_what_was_sealed() {
    need_mount!();
    let mut home = Home::on_loopback();
    let late = home.late("drain=0,grace=60,timeout=20");
    home.pull_until_locked();
    drop(late);
    assert_eq!(home.world.sealed_files().len(), 1);
    home.start_killed_host();
    home.world.hostd(&["keys", "remove", &home.key.id]).ok();
    let other = home.world.pair("other-key", &["--authorise"]);
    let mountpoint = home.world.directory("other");
    let start = Instant::now();
    home.mount_with(&other, &mountpoint);
    let mut times = Times::default();
    times.add("mounted with another key", start.elapsed());
    assert!(home.is_on_disk());
    times.print("8 MiB sealed, its key is gone for good");
    assert_eq!(home.world.sealed_files(), Vec::<PathBuf>::new());
    assert_eq!(home.absent(), Vec::<Value>::new());
    home.world.mountd(&["unmount", mountpoint.to_str().unwrap()]).ok();
    home.end_locked();
}

#[test]
fn another_key_of_the_owner_delivers_what_a_killed_mountd_has_left() {
    need_mount!();
    let mut home = Home::on_loopback();
    let late = home.late("grace=60,timeout=20");
    home.kill_mountd();
    home.key.pull();
    eventually("the mount to be locked", LIMIT, || home.world.is_locked());
    drop(late);
    home.start_killed_host();
    let other = home.world.pair("other-key", &["--authorise"]);
    let mountpoint = home.world.directory("other");
    home.mount_with(&other, &mountpoint);
    assert!(home.is_on_disk());
    assert_eq!(home.absent(), Vec::<Value>::new());
    home.world.mountd(&["unmount", mountpoint.to_str().unwrap()]).ok();
    home.end_locked();
}

/// The host has not even noticed that mountd is gone; and its guard is, so nobody else could.
#[test]
fn another_key_of_the_owner_delivers_what_the_host_still_counts_on() {
    need_mount!();
    let home = Home::on_loopback();
    home.mount("grace=60,timeout=20");
    let mut late = File::create(home.mountpoint.join("late")).unwrap();
    late.write_all(&vec![b'x'; BYTES]).unwrap();
    for program in [&b"p2pfs-guard"[..], b"p2pfs-mountd"] {
        for pid in home.world.processes_of(program) {
            kill_process(pid, Signal::KILL).unwrap();
        }
    }
    drop(late);
    assert_eq!(home.world.sealed_files(), Vec::<PathBuf>::new());
    let other = home.world.pair("other-key", &["--authorise"]);
    let mountpoint = home.world.directory("other");
    let start = Instant::now();
    let told = home.mount_with(&other, &mountpoint).stderr;
    let mut times = Times::default();
    times.add("mounted with another key", start.elapsed());
    times.print("8 MiB journalled, mountd and its guard killed");
    assert!(home.is_on_disk());
    assert!(!told.contains("note: "), "{told}");
    assert_eq!(home.absent(), Vec::<Value>::new());
    home.world.mountd(&["unmount", mountpoint.to_str().unwrap()]).ok();
    home.end_locked();
}

/// It may not make such changes itself, so it gets nothing of them, and mounts as if they were not
/// there.
#[test]
fn a_key_that_could_not_make_the_changes_does_not_deliver_them() {
    need_mount!();
    let mut home = Home::on_loopback();
    let late = home.late("drain=0,grace=60,timeout=20");
    home.pull_until_locked();
    drop(late);
    let sealed = home.world.sealed_files();
    let before = fs::read(&sealed[0]).unwrap();
    let music = home.world.directory("music");
    let shares = [("disk", &home.disk), ("music", &music)];
    let shares = shares.map(|(name, dir)| format!("{name}={}", dir.display()));
    home.host = home.world.host(&home.server.ready, &shares);
    let reader = home.world.pair("reader", &["--authorise", "--access", "ro"]);
    let guest = home.world.pair("guest", &["--authorise", "--shares", "music"]);
    for (key, share) in [(&reader, "disk"), (&guest, "music")] {
        let mountpoint = home.world.directory("other");
        home.world.mount(&key.source(share), &mountpoint, "timeout=20").ok();
        assert_eq!(home.world.sealed_files(), sealed);
        assert!(fs::read(&sealed[0]).unwrap() == before);
        assert_eq!(fs::metadata(home.disk.join("late")).unwrap().len(), 0);
        home.world.mountd(&["unmount", mountpoint.to_str().unwrap()]).ok();
    }
    home.key.plug_in();
    eventually("the mount to be back", LIMIT, || home.mountpoint.join("hello").exists());
    assert!(home.is_on_disk());
    home.unmount();
}

/// What is pulled with the host there says how much it keeps; the host tells that elsewhere, also
/// when it was killed in between, until it has arrived.
#[test]
fn other_machines_are_told_what_is_pending() {
    need_mount!();
    let mut home = Home::on_loopback();
    home.mount("drain=0,grace=60,timeout=20");
    let mut late = File::create(home.mountpoint.join("late")).unwrap();
    late.sync_all().unwrap();
    late.write_all(&vec![b'x'; BYTES]).unwrap();
    home.key.pull();
    eventually("the mount to be locked", LIMIT, || home.world.is_locked());
    drop(late);
    assert_eq!(home.world.sealed_files().len(), 1);
    let absent = home.absent();
    assert_eq!(absent.len(), 1);
    assert_eq!(
        (&absent[0]["key"], &absent[0]["share"]),
        (&home.key.id.as_str().into(), &"disk".into())
    );
    assert!(absent[0]["entries"].as_u64().unwrap() > 0, "{absent:?}");
    home.restart_host();
    let (second, told) = home.second_mount_told("timeout=20");
    let note = told.lines().find(|line| line.starts_with("note: ")).unwrap();
    assert!(note.contains("changes of disk") && note.contains("have not arrived"), "{note}");
    let there = second.absent(&home);
    assert_eq!(there.len(), 1);
    for field in ["client", "entries", "bytes"] {
        assert_eq!(there[0][field], absent[0][field], "{field}");
    }
    home.key.plug_in();
    eventually("the mount to be back", LIMIT, || home.mountpoint.join("hello").exists());
    assert!(home.is_on_disk());
    assert_eq!(second.absent(&home), Vec::<Value>::new());
    second.unmount(&home);
    home.unmount();
}

/// Nobody could tell the host that all is well, so it says what it knows; the next mount there
/// tells it.
#[test]
fn who_went_without_a_word_is_told_until_he_is_back() {
    need_mount!();
    let mut home = Home::on_loopback();
    home.mount("grace=1,timeout=20");
    fs::write(home.mountpoint.join("file"), "all of it").unwrap();
    home.sync();
    assert_eq!(home.absent(), Vec::<Value>::new(), "it is there");
    home.host.kill_now();
    home.world.mountd(&["unmount", home.mountpoint.to_str().unwrap()]).ok();
    // what it could tell is not used up by one that does not get through
    home.try_mount("timeout=1").refused(1, "host-offline");
    home.start_killed_host();
    let absent = home.absent();
    assert_eq!((absent.len(), &absent[0]["entries"]), (1, &Value::Null), "{absent:?}");
    let (second, told) = home.second_mount_told("timeout=20");
    assert!(told.contains("without a word"), "{told}");
    let told = home.try_mount("timeout=20").ok().stderr;
    assert!(!told.contains("note: "), "{told}");
    assert_eq!(second.absent(&home), Vec::<Value>::new());
    assert_eq!(home.absent(), Vec::<Value>::new());
    second.unmount(&home);
    home.unmount();
}
